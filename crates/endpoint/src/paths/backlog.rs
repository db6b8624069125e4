//! What the relay still holds of our stream when the stream moves to a direct connection.
//!
//! The kernels and the component on the way may hold a whole window. As long as the relay delivers it, bytes that are sent again
//! on the direct connection come twice. They hold up new ones there, and the relay as well if both have the same bottleneck. But
//! bytes that the relay does not deliver soon hold up the whole stream. So the sender looks at what is acknowledged:
//!
//! 1. After a period it repeats what the relay will not have delivered after [`AHEAD`] more, at the pace that it has had.
//! 2. When nothing was acknowledged for a period, and in any case after [`MOST`] periods, it repeats all that is left.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

/// How many periods the relay may take for what it holds, at the pace of the first one.
const AHEAD: u32 = 4;
/// How many periods the relay may take in all. If both have the same bottleneck, the direct connection may take half of its rate.
const MOST: u32 = 1 + 2 * AHEAD;

/// The bytes of our stream that only the relay carries, from the last acknowledged one to where the direct connection goes on.
#[derive(Debug)]
pub(super) struct Backlog {
    end: u64,
    /// What was acknowledged when the stream left the relay, and when that was.
    acknowledged: u64,
    left: Instant,
    /// When more was last acknowledged.
    advanced: Instant,
    is_judged: bool,
}

impl Backlog {
    /// Returns what the relay holds if our stream has left it at the byte `end`; `None` if that is nothing.
    pub(super) fn new(acknowledged: u64, end: u64, now: Instant) -> Option<Self> {
        (acknowledged < end).then_some(Self {
            end,
            acknowledged,
            left: now,
            advanced: now,
            is_judged: false,
        })
    }

    /// Takes an acknowledgement of more bytes; returns whether something is left.
    pub(super) fn acknowledge(&mut self, offset: u64, now: Instant) -> bool {
        self.advanced = now;
        offset < self.end
    }

    /// Returns when [`repeat`](Self::repeat) has to be called.
    pub(super) fn deadline(&self, period: Duration) -> Instant {
        let most = self.left + if self.is_judged { MOST * period } else { period };
        most.min(self.advanced + period)
    }

    /// Returns what is to be sent again on the direct connection now, if there is something. The backlog ends at the first of
    /// these bytes then. `boundary` finds the last boundary of a record at or before an offset.
    pub(super) fn repeat(
        &mut self,
        acknowledged: u64,
        boundary: impl Fn(u64) -> u64,
        period: Duration,
        now: Instant,
    ) -> Option<Range<u64>> {
        if now < self.deadline(period) {
            return None;
        }
        let mut from = acknowledged;
        if now < self.advanced + period && !self.is_judged {
            self.is_judged = true;
            let delivered = u128::from(acknowledged.saturating_sub(self.acknowledged));
            let time = now.saturating_duration_since(self.left).as_micros().max(1);
            let soon = delivered * (AHEAD * period).as_micros() / time;
            from = acknowledged.saturating_add(u64::try_from(soon).unwrap_or(u64::MAX));
        }
        let from = boundary(from).min(self.end);
        let end = std::mem::replace(&mut self.end, from);
        (from < end).then_some(from..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_millis(500);

    /// Lets the relay deliver so many bytes in each tenth of a period. Returns what is sent again, and in which tenth.
    fn repeats(size: u64, pace: impl Fn(u32) -> u64) -> Vec<(u32, Range<u64>)> {
        let left = Instant::now();
        let mut backlog = Backlog::new(0, size, left);
        let (mut acknowledged, mut repeats) = (0, Vec::new());
        for tenth in 1.. {
            let Some(left_over) = &mut backlog else { break };
            let now = left + PERIOD / 10 * tenth;
            let delivered = pace(tenth);
            acknowledged += delivered;
            if delivered > 0 && !left_over.acknowledge(acknowledged, now) {
                break;
            }
            let again = left_over.repeat(acknowledged, |offset| offset / 10 * 10, PERIOD, now);
            let is_left = again.as_ref().is_none_or(|again| again.start > acknowledged);
            repeats.extend(again.map(|again| (tenth, again)));
            backlog = backlog.filter(|_| is_left);
        }
        repeats
    }

    #[test]
    fn nothing_is_sent_again_while_the_relay_delivers() {
        assert_eq!(repeats(1000, |_| 100), []);
        assert_eq!(repeats(1000, |_| 20), []);
        // The relay becomes slower, because the direct connection takes a part of the bottleneck.
        assert_eq!(repeats(4000, |tenth| if tenth <= 10 { 100 } else { 50 }), []);
    }

    #[test]
    fn what_a_slow_relay_will_not_deliver_soon_is_sent_again() {
        assert_eq!(repeats(1000, |_| 10), [(10, 500..1000)]);
    }

    #[test]
    fn all_is_sent_again_when_the_relay_delivers_nothing() {
        assert_eq!(repeats(1000, |_| 0), [(10, 0..1000)]);
        assert_eq!(repeats(1000, |tenth| if tenth <= 7 { 100 } else { 0 }), [(17, 700..1000)]);
        assert_eq!(
            repeats(1000, |tenth| if tenth <= 12 { 11 } else { 0 }),
            [(10, 550..1000), (22, 130..550)]
        );
    }

    #[test]
    fn a_relay_that_becomes_slow_does_not_hold_the_stream_for_long() {
        assert_eq!(repeats(5000, |tenth| if tenth <= 10 { 100 } else { 1 }), [(90, 1080..5000)]);
    }
}
