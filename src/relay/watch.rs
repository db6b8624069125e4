//! What others see of one stream while it runs, how they learn of its end, and how long it has been silent.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use super::pipe::{Ended, StreamOutcome};

/// The silence both ways after which a stream's peers are checked, and the interval of the checks.
pub(super) const STILL: Duration = Duration::from_secs(15);

/// Nothing is on its way to either peer, so only keepalive can find a vanished peer.
const SETTLED: u32 = u32::MAX;

/// How much of a stream has moved. Only its relay writes these.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Bytes written to the second and to the first leg.
    pub(super) a_to_b: AtomicU64,
    pub(super) b_to_a: AtomicU64,
    /// Whether bytes wait for a slow reader.
    pub(super) holds: AtomicBool,
}

impl Counters {
    /// Returns the bytes moved so far, both directions.
    pub(super) fn bytes(&self) -> u64 {
        self.a_to_b.load(Ordering::Relaxed) + self.b_to_a.load(Ordering::Relaxed)
    }

    /// Returns the outcome of a stream that ends now.
    pub(super) fn outcome(&self, end: Ended) -> StreamOutcome {
        StreamOutcome {
            a_to_b: self.a_to_b.load(Ordering::Relaxed),
            b_to_a: self.b_to_a.load(Ordering::Relaxed),
            end,
        }
    }
}

/// Adds to a counter that only one thread writes, so no locked addition is needed.
pub(super) fn add(counter: &AtomicU64, n: usize) {
    counter.store(counter.load(Ordering::Relaxed) + n as u64, Ordering::Relaxed);
}

/// The owner of a pair that the engine runs.
pub(super) trait StreamOwner: fmt::Debug + Send + Sync {
    /// Returns the counters, which the engine keeps up to date.
    fn counters(&self) -> &Counters;

    /// Learns, once and on a thread of the engine, that the pair has ended; `None` if it was cut by us.
    fn ended(&self, outcome: Option<StreamOutcome>);
}

/// How much of one stream has moved, as other tasks see it.
#[derive(Debug, Default)]
pub struct StreamProgress {
    /// For a stream between two sockets.
    pair: OnceLock<Arc<dyn StreamOwner>>,
    /// For any other stream.
    piped: Counters,
}

impl StreamProgress {
    /// Follows a pair of sockets.
    pub(super) fn follow(&self, pair: Arc<dyn StreamOwner>) {
        let _once = self.pair.set(pair);
    }

    /// Notes the progress of a stream of another kind.
    pub(super) fn note(&self, a_to_b: u64, b_to_a: u64, holds: bool) {
        self.piped.a_to_b.store(a_to_b, Ordering::Relaxed);
        self.piped.b_to_a.store(b_to_a, Ordering::Relaxed);
        self.piped.holds.store(holds, Ordering::Relaxed);
    }

    /// Returns whether bytes wait for a slow reader.
    pub fn holds(&self) -> bool {
        self.counters().holds.load(Ordering::Relaxed)
    }

    /// Returns the bytes moved so far, both directions.
    pub fn bytes(&self) -> u64 {
        self.counters().bytes()
    }

    fn counters(&self) -> &Counters {
        self.pair.get().map_or(&self.piped, |pair| pair.counters())
    }
}

/// The result of a look at a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamNews {
    /// Nothing to do.
    None,
    /// Nothing has moved for [`STILL`], or for that long again: the peers must be checked.
    Still,
    /// Nothing has moved for the idle time.
    Idle,
}

/// How long a stream has been silent, in milliseconds of the plane's clock.
#[derive(Debug)]
pub(super) struct Silence {
    idle_millis: u64,
    /// At the last look: when something had last moved, and how much had moved.
    moved_at: u64,
    counted: u64,
    /// How often the peers were checked since something last moved; [`SETTLED`] if no check is needed.
    asked: u32,
}

impl Silence {
    /// Begins at the time `millis`.
    pub(super) fn new(idle_timeout: Duration, millis: u64) -> Self {
        let idle_millis = u64::try_from(idle_timeout.as_millis()).unwrap_or(u64::MAX);
        Self { idle_millis, moved_at: millis, counted: 0, asked: 0 }
    }

    /// Returns how long neither direction may move a byte.
    pub(super) fn idle_timeout(&self) -> Duration {
        Duration::from_millis(self.idle_millis)
    }

    /// Looks at a stream that has moved so many bytes in all at the time `millis`. Returns how many of them have moved
    /// since the last look, and what is to be done.
    pub(super) fn look(&mut self, bytes: u64, millis: u64) -> (u64, StreamNews) {
        let moved = bytes - self.counted;
        if moved > 0 {
            self.counted = bytes;
            self.moved_at = millis;
            self.asked = 0;
            return (moved, StreamNews::None);
        }
        let still = millis.saturating_sub(self.moved_at);
        let due = u64::from(self.asked).saturating_add(1).saturating_mul(STILL.as_millis() as u64);
        let news = if still >= self.idle_millis {
            StreamNews::Idle
        } else if self.asked < SETTLED && still >= due {
            self.asked += 1;
            StreamNews::Still
        } else {
            StreamNews::None
        };
        (0, news)
    }

    /// Notes that both peers were checked; `open` if something is on its way to one of them.
    pub(super) fn checked(&mut self, open: bool) {
        if !open {
            self.asked = SETTLED;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(600);
    const DAY: u64 = 24 * 3600 * 1000;

    #[test]
    fn the_clock_of_idle_streams_goes_on_after_49_days() {
        let (wrap, idle) = (u64::from(u32::MAX), IDLE.as_millis() as u64);
        let mut silence = Silence::new(IDLE, wrap - idle / 4);
        let (_, news) = silence.look(0, wrap + idle / 4);
        assert_ne!(news, StreamNews::Idle, "beyond the end of a 32-bit clock, and not idle");
        assert_eq!(silence.look(1, wrap + idle), (1, StreamNews::None));
        assert_eq!(silence.look(1, wrap + 2 * idle), (0, StreamNews::Idle));
    }

    #[test]
    fn an_idle_time_of_many_days_is_kept() {
        let mut silence = Silence::new(Duration::from_millis(60 * DAY), 0);
        assert_ne!(silence.look(0, 59 * DAY).1, StreamNews::Idle);
        assert_eq!(silence.look(0, 60 * DAY).1, StreamNews::Idle);
    }

    #[test]
    fn the_peers_of_a_stream_that_stands_still_are_checked_until_nothing_is_on_its_way() {
        let still = STILL.as_millis() as u64;
        let mut silence = Silence::new(IDLE, 0);
        let mut now = 0;
        let mut look = |silence: &mut Silence, after: u64, bytes: u64| {
            now += after;
            silence.look(bytes, now).1
        };
        assert_eq!(look(&mut silence, still - 1, 0), StreamNews::None);
        assert_eq!(look(&mut silence, 1, 0), StreamNews::Still);
        silence.checked(true);
        assert_eq!(look(&mut silence, still - 1, 0), StreamNews::None);
        assert_eq!(
            look(&mut silence, 1, 0),
            StreamNews::Still,
            "something is on its way to a peer"
        );
        silence.checked(false);
        let news = look(&mut silence, 3 * still, 0);
        assert_eq!(news, StreamNews::None, "nothing is, so nothing can be found out");
        assert_eq!(look(&mut silence, 1, 1), StreamNews::None);
        assert_eq!(look(&mut silence, still, 1), StreamNews::Still, "something has moved since");
    }
}
