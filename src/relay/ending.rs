//! The end of a stream in which one leg has broken: what the other leg still gets, and how it learns of the end.
//!
//! | the broken leg | the other leg gets |
//! |---|---|
//! | had ended its stream, then took no more | every byte, then an orderly end |
//! | was reset, timed out, or failed in-band | every byte that was acknowledged, then a reset (in-band: `<close/>`) |
//!
//! Meanwhile everything that the other leg sends is read and dropped, because a peer that writes before it reads would
//! otherwise never read. The connection is closed only when the peer's kernel has acknowledged everything: a close with
//! unread bytes, and every reset, discards what has not been delivered.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use fingerpost_carry::{
    leg_end::{Delivery, LegEnd},
    tcp::Info,
};
use tokio::time::Sleep;

use super::clock::now;

/// How long a leg may take to get its bytes where the system does not say when it has them.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// The first and the longest pause between two checks of a queue: no event tells that it is empty.
const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));

/// The state of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct WayFate {
    /// Reading failed: the source is gone without an orderly end.
    pub(super) failed: Option<io::ErrorKind>,
    /// Writing failed: the sink takes no more.
    pub(super) broken: Option<io::ErrorKind>,
    /// The source failed, but another part saw the error: what can still be read does not end in order.
    pub(super) lost: Option<io::ErrorKind>,
}

impl WayFate {
    /// Takes over what the opposite direction knows: its sink is this one's source, and its source is this one's sink.
    /// Returns whether this direction has lost its sink.
    ///
    /// The kernel reports an error once. If a write fails with `BrokenPipe`, the peer had ended its own stream before.
    /// After any other error, reading ends as if in order although the stream is not complete.
    pub(super) fn heed(&mut self, opposite: Self) -> bool {
        if let Some(kind) = opposite.broken
            && kind != io::ErrorKind::BrokenPipe
        {
            self.lost.get_or_insert(kind);
        }
        opposite.failed.is_some()
    }

    /// Notes the end of the source; returns whether it is in order.
    pub(super) fn end(&mut self) -> bool {
        self.failed = self.failed.or(self.lost);
        self.failed.is_none()
    }

    /// Returns the first thing that went wrong in either direction.
    pub(super) fn error(self, opposite: Self) -> Option<io::ErrorKind> {
        self.failed.or(opposite.failed).or(self.broken).or(opposite.broken)
    }

    /// Returns whether this direction's source is gone.
    pub(super) fn is_source_gone(self, opposite: Self) -> bool {
        self.failed.or(opposite.broken).is_some()
    }
}

/// Tells when the remaining leg has got everything, or has made no progress for the idle time.
#[derive(Debug)]
pub(super) struct Ending {
    idle_timeout: Duration,
    /// When the peer last acknowledged something, and the count of bytes that it had then.
    progress: Option<(Instant, u64)>,
    pause: Duration,
    /// When to check next.
    due: Option<Instant>,
}

impl Ending {
    /// Creates an ending that begins now.
    pub(super) fn new(idle_timeout: Duration) -> Self {
        Self { idle_timeout, progress: None, pause: PAUSE.0, due: None }
    }

    /// Checks the leg if it is time. Returns when to come again; `None` when the leg may be dropped.
    pub(super) fn look(
        &mut self,
        delivery: impl FnOnce() -> Delivery,
        now: Instant,
    ) -> Option<Instant> {
        if let Some(due) = self.due.filter(|due| *due > now) {
            return Some(due);
        }
        let info = match delivery() {
            Delivery::ByShutdown => return None,
            Delivery::Tcp(info) => info,
        };
        self.due = self.next_look(info, now).map(|pause| now + pause);
        self.due
    }

    /// Returns how long to wait before the next check; `None` if the ending is over.
    fn next_look(&mut self, info: Option<Info>, now: Instant) -> Option<Duration> {
        let acknowledged = info.map_or(0, |info| info.acknowledged);
        let since = match self.progress {
            Some((since, before)) if before == acknowledged => since,
            _ => {
                self.progress = Some((now, acknowledged));
                now
            }
        };
        let limit = match info {
            Some(info) if info.closed || info.is_delivered() || info.is_gone() => return None,
            Some(_) => self.idle_timeout,
            // The state of the queue is not known, so it gets a fixed time.
            None => self.idle_timeout.min(GRACE),
        };
        if now.saturating_duration_since(since) >= limit {
            return None;
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSE.1);
        Some(pause)
    }
}

/// An ending that a task waits for.
#[derive(Debug)]
pub(super) struct AwaitedEnding {
    ending: Ending,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl AwaitedEnding {
    /// Creates an ending that begins now.
    pub(super) fn new(idle_timeout: Duration) -> Self {
        Self { ending: Ending::new(idle_timeout), sleep: None }
    }

    /// Returns `Ready` when the leg may be dropped.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, side: &impl LegEnd) -> Poll<()> {
        while let Some(at) = self.ending.look(|| side.delivery(), now()) {
            let sleep = match &mut self.sleep {
                Some(sleep) => {
                    sleep.as_mut().reset(at.into());
                    sleep
                }
                None => self.sleep.insert(Box::pin(tokio::time::sleep_until(at.into()))),
            };
            ready!(sleep.as_mut().poll(cx));
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IDLE: Duration = Duration::from_secs(600);

    fn on_its_way(acknowledged: u64) -> Info {
        Info { unsent: 1, acknowledged, ..Info::default() }
    }

    #[test]
    fn a_queue_that_is_empty_or_of_nobody_ends_at_once() {
        let now = Instant::now();
        let delivered = Info::default();
        let closed = Info { closed: true, ..on_its_way(0) };
        let silence = Duration::from_secs(60);
        let gone = Info { probes: 6, silence, ..on_its_way(0) };
        for info in [delivered, closed, gone] {
            assert_eq!(Ending::new(IDLE).next_look(Some(info), now), None, "{info:?}");
        }
        assert!(Ending::new(IDLE).next_look(Some(on_its_way(0)), now).is_some());
    }

    #[test]
    fn a_reader_that_takes_nothing_is_waited_for_as_long_as_an_idle_stream() {
        let begin = Instant::now();
        let mut ending = Ending::new(IDLE);
        assert!(ending.next_look(Some(on_its_way(1)), begin).is_some());
        assert!(ending.next_look(Some(on_its_way(1)), begin + IDLE - PAUSE.0).is_some());
        let later = begin + IDLE;
        assert!(ending.next_look(Some(on_its_way(2)), later).is_some(), "it took a byte");
        assert!(ending.next_look(Some(on_its_way(2)), later + IDLE - PAUSE.0).is_some());
        assert_eq!(ending.next_look(Some(on_its_way(2)), later + IDLE), None);
    }

    #[test]
    fn where_the_kernel_says_nothing_a_fixed_time_is_given() {
        let begin = Instant::now();
        let mut ending = Ending::new(IDLE);
        assert!(ending.next_look(None, begin).is_some());
        assert_eq!(ending.next_look(None, begin + GRACE), None);
    }

    #[test]
    fn an_error_that_was_told_to_the_writer_is_not_forgotten_by_the_reader() {
        let with = |broken| WayFate { broken: Some(broken), ..WayFate::default() };
        let mut reader = WayFate::default();
        assert!(!reader.heed(with(io::ErrorKind::BrokenPipe)));
        assert!(reader.end(), "it had ended its stream before");
        let mut reader = WayFate::default();
        assert!(!reader.heed(with(io::ErrorKind::ConnectionReset)));
        assert!(!reader.end());
        assert_eq!(reader.failed, Some(io::ErrorKind::ConnectionReset));
    }

    proptest! {
        #[test]
        fn an_ending_ends(steps in proptest::collection::vec((0_u64..3, any::<bool>()), 0..200)) {
            let mut now = Instant::now();
            let mut ending = Ending::new(IDLE);
            let mut acknowledged = 0;
            let mut moved_at = now;
            for (more, known) in steps {
                acknowledged += more;
                if more > 0 {
                    moved_at = now;
                }
                let info = known.then(|| on_its_way(acknowledged));
                match ending.next_look(info, now) {
                    Some(pause) => {
                        prop_assert!(pause >= PAUSE.0 && pause <= PAUSE.1);
                        now += pause;
                    }
                    None => {
                        prop_assert!(!known || now >= moved_at + IDLE);
                        return Ok(());
                    }
                }
            }
        }
    }
}
