//! How often the peer may have this side do something that costs time, ports and packets.

use std::time::Duration;

use tokio::time::Instant;

/// Allows a few at once, and one more after each pause. Anything that comes sooner waits.
#[derive(Debug)]
pub(super) struct Quota {
    pause: Duration,
    /// How far the peer may be ahead of one after each pause.
    ahead: Duration,
    /// When all that were taken would be done, with one after each pause.
    paid: Instant,
}

impl Quota {
    /// Creates one of `burst` at once, at least 1, and of one more after each pause.
    pub(super) fn new(burst: u32, pause: Duration, now: Instant) -> Self {
        Self { pause, ahead: pause * burst.saturating_sub(1), paid: now }
    }

    /// Takes one; returns when it may be done.
    pub(super) fn take(&mut self, now: Instant) -> Instant {
        let at = now.max(self.paid.checked_sub(self.ahead).unwrap_or(now));
        self.paid = self.paid.max(at) + self.pause;
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(20);

    #[tokio::test(start_paused = true)]
    async fn a_few_come_at_once_and_the_others_one_after_each_pause() {
        let start = Instant::now() + 100 * PAUSE;
        let mut quota = Quota::new(3, PAUSE, start);
        let mut times = |now: Instant, count: usize| {
            let mut at = now;
            let mut all = Vec::new();
            for _ in 0..count {
                // The next one is asked for when this one is done.
                at = quota.take(at);
                all.push(at.duration_since(start).as_secs());
            }
            all
        };
        assert_eq!(times(start, 6), [0, 0, 0, 20, 40, 60]);
        assert_eq!(times(start + Duration::from_secs(65), 2), [80, 100]);
        // A long pause allows no more than the burst.
        assert_eq!(times(start + Duration::from_secs(1000), 5), [1000, 1000, 1000, 1020, 1040]);
        let mut one = Quota::new(1, PAUSE, start);
        assert_eq!([one.take(start), one.take(start)], [start, start + PAUSE]);
    }
}
