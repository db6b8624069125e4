//! A session's rate: a token bucket, without a clock.

use std::time::{Duration, Instant};

/// The burst is this part of a second's bytes. Tokens are handed out when a fifth of a burst has gathered: few long
/// reads instead of many short ones.
const BURST: u64 = 4;
const PORTION: u64 = 5;

/// Bytes that may pass, growing with time. `now` is monotonic.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    per_second: u64,
    tokens: u64,
    filled_at: Instant,
}

impl Bucket {
    /// Creates a full bucket; `per_second` is not 0.
    pub(super) fn new(per_second: u64, now: Instant) -> Self {
        let mut bucket = Self { per_second: per_second.max(1), tokens: 0, filled_at: now };
        bucket.tokens = bucket.burst();
        bucket
    }

    /// Returns how many bytes may pass now.
    ///
    /// # Errors
    /// The time when some may pass.
    pub(super) fn available(&mut self, now: Instant) -> Result<usize, Instant> {
        let nanos = now.saturating_duration_since(self.filled_at).as_nanos();
        let grown = nanos.saturating_mul(u128::from(self.per_second)) / NANOS;
        // Time that has not made a whole byte yet counts the next time.
        if grown > 0 {
            let grown = u64::try_from(grown).unwrap_or(u64::MAX);
            self.tokens = self.tokens.saturating_add(grown);
            self.filled_at += self.time_for(grown).min(now - self.filled_at);
            if self.tokens >= self.burst() {
                self.tokens = self.burst();
                self.filled_at = now;
            }
        }
        let portion = (self.burst() / PORTION).max(1);
        if self.tokens >= portion {
            return Ok(usize::try_from(self.tokens).unwrap_or(usize::MAX));
        }
        Err(self.filled_at + self.time_for(portion - self.tokens) + Duration::from_nanos(1))
    }

    /// Notes that so many bytes passed.
    pub(super) fn take(&mut self, bytes: usize) {
        self.tokens = self.tokens.saturating_sub(bytes as u64);
    }

    fn burst(&self) -> u64 {
        (self.per_second / BURST).max(1)
    }

    fn time_for(&self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * NANOS / u128::from(self.per_second);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

const NANOS: u128 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_rate_is_kept_and_reached(per_second in 1_u64..10_000_000_000, greed in 1_usize..2_000_000) {
            let start = Instant::now();
            let end = start + Duration::from_secs(10);
            let mut bucket = Bucket::new(per_second, start);
            let (mut now, mut passed) = (start, 0_u64);
            for _ in 0..1_000 {
                match bucket.available(now) {
                    Ok(n) => {
                        prop_assert!(n > 0);
                        let n = n.min(greed);
                        bucket.take(n);
                        passed += n as u64;
                        now += Duration::from_micros(10);
                    }
                    Err(at) => {
                        prop_assert!(at > now, "no busy loop");
                        now = at;
                    }
                }
                if now > end {
                    break;
                }
            }
            let lived = now.duration_since(start).as_secs_f64();
            let most = lived * per_second as f64 + (per_second / BURST) as f64 + 2.0;
            prop_assert!(passed as f64 <= most, "{passed} of {most}");
            if now > end {
                let least = (lived - 1.0) * per_second as f64 - 2.0;
                let greedy = greed as u64 >= per_second / BURST;
                prop_assert!(!greedy || passed as f64 >= least, "{passed} of {least}");
            }
        }
    }
}
