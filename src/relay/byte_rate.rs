//! The rate of one direction of a session.

use std::time::{Duration, Instant};

use crate::limits::{Bucket, Rate};

/// The burst is this part of a second's bytes. Tokens are handed out when a fifth of a burst has gathered: few long
/// reads instead of many short ones.
const BURST: f64 = 4.0;
const PORTION: f64 = 5.0;

/// Bytes that may pass, growing with time. `now` is monotonic.
#[derive(Clone, Copy, Debug)]
pub(super) struct ByteRate {
    rate: Rate,
    bucket: Bucket,
}

impl ByteRate {
    /// Begins with a full bucket; `per_second` is not 0.
    pub(super) fn new(per_second: u64, now: Instant) -> Self {
        let per_second = per_second.max(1) as f64;
        let rate = Rate { per_second, burst: (per_second / BURST).max(1.0) };
        Self { rate, bucket: Bucket::full(rate, now) }
    }

    /// Returns how many bytes may pass now.
    ///
    /// # Errors
    /// The time when some may pass.
    pub(super) fn available(&mut self, now: Instant) -> Result<usize, Instant> {
        let tokens = self.bucket.fill(self.rate, now);
        let portion = (self.rate.burst / PORTION).max(1.0);
        if tokens >= portion {
            return Ok(tokens as usize);
        }
        let missing = Duration::from_secs_f64((portion - tokens) / self.rate.per_second);
        Err(now + missing + Duration::from_nanos(1))
    }

    /// Notes that so many bytes passed.
    pub(super) fn take(&mut self, bytes: usize) {
        self.bucket.take(bytes as f64);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_rate_is_kept_and_reached(per_second in 1_u64..10_000_000_000, greed in 1_usize..2_000_000) {
            let start = Instant::now();
            let end = start + Duration::from_secs(10);
            let mut bucket = ByteRate::new(per_second, start);
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
            let most = lived * per_second as f64 + per_second as f64 / BURST + 2.0;
            prop_assert!(passed as f64 <= most, "{passed} of {most}");
            if now > end {
                let least = (lived - 1.0) * per_second as f64 - 2.0;
                let greedy = greed as f64 >= per_second as f64 / BURST;
                prop_assert!(!greedy || passed as f64 >= least, "{passed} of {least}");
            }
        }
    }
}
