//! What others see of one stream while it runs, how they learn of its end, and how long it has been silent.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use super::pipe::Ended;

/// The silence both ways after which a stream's peers are checked, and the interval of the checks.
pub(super) const STILL: Duration = Duration::from_secs(15);

/// Nothing is on its way to either peer, so only keepalive can find a vanished peer.
const SETTLED: u32 = u32::MAX;

/// The unit in which the silence of a stream is counted, in milliseconds: its clock begins again after 497 days, and no
/// silence lasts that long.
const TICK: u64 = 10;

/// How much earlier than the beginning of a stream a look at it may be, in [`TICK`]s: a minute.
const EARLY: u32 = 6_000;

/// The number of streams whose counters are allocated together.
pub(super) const BLOCK: usize = 64;

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
    /// Creates counters of a stream that has not begun.
    pub(super) const fn new() -> Self {
        Self { a_to_b: AtomicU64::new(0), b_to_a: AtomicU64::new(0), holds: AtomicBool::new(false) }
    }

    /// Returns the bytes moved so far, both directions.
    pub(super) fn bytes(&self) -> u64 {
        self.moved().iter().sum()
    }

    /// Returns the bytes moved so far: from the first leg, and from the second.
    pub(super) fn moved(&self) -> [u64; 2] {
        [&self.a_to_b, &self.b_to_a].map(|counter| counter.load(Ordering::Acquire))
    }

    /// Sets all of them.
    pub(super) fn set(&self, [a_to_b, b_to_a]: [u64; 2], holds: bool) {
        self.a_to_b.store(a_to_b, Ordering::Release);
        self.b_to_a.store(b_to_a, Ordering::Release);
        self.holds.store(holds, Ordering::Release);
    }
}

/// The counters of many streams, in less memory than each would take alone.
pub(super) type CounterBlock = Arc<[Counters; BLOCK]>;

/// The counters of one pair that the engine runs. They are those of another pair some time after it has ended.
#[derive(Clone, Debug)]
pub(super) struct CounterRow {
    block: CounterBlock,
    row: usize,
}

impl CounterRow {
    /// Returns a row of a block.
    pub(super) fn new(block: CounterBlock, row: usize) -> Self {
        Self { block, row: row % BLOCK }
    }

    /// Returns the counters.
    pub(super) fn get(&self) -> &Counters {
        &self.block[self.row]
    }
}

/// Adds to a counter that only one thread writes, so no locked addition is needed.
pub(super) fn add(counter: &AtomicU64, n: usize) {
    counter.store(counter.load(Ordering::Relaxed) + n as u64, Ordering::Release);
}

/// The owner of pairs that the engine runs.
pub(super) trait StreamOwner: fmt::Debug + Send + Sync {
    /// Learns, once and on a thread of the engine, that a pair has ended, and how many bytes it has moved. `name` is
    /// what the owner calls the pair. `end` is `None` if it was cut by us. The pair's sockets are closed; its counters
    /// are its own until this returns.
    fn ended(&self, name: u32, moved: [u64; 2], end: Option<Ended>);
}

/// How much a pair of sockets has moved, also after its end.
#[derive(Debug, Default)]
pub(super) struct PairProgress {
    running: OnceLock<CounterRow>,
    is_over: AtomicBool,
    /// What it had moved when it ended.
    last: Counters,
}

impl PairProgress {
    /// Follows a pair that the engine has begun to run. It may have ended already.
    pub(super) fn follow(&self, running: CounterRow) {
        let _once = self.running.set(running);
    }

    /// Notes the end, before the counters become those of another pair.
    pub(super) fn end(&self, moved: [u64; 2]) {
        self.last.set(moved, false);
        self.is_over.store(true, Ordering::Release);
    }

    /// Returns the bytes moved so far: from the first leg, and from the second.
    pub(super) fn moved(&self) -> [u64; 2] {
        self.read(Counters::moved)
    }

    /// What is read from the counters of another pair is read after `is_over` was set.
    fn read<T>(&self, what: impl Fn(&Counters) -> T) -> T {
        let running = self.running.get().map(|row| what(row.get()));
        match running {
            Some(read) if !self.is_over.load(Ordering::Acquire) => read,
            _ => what(&self.last),
        }
    }
}

/// How much of one stream has moved, as other tasks see it.
#[derive(Debug, Default)]
pub struct StreamProgress {
    /// For a stream between two sockets.
    pair: Mutex<Option<Arc<PairProgress>>>,
    /// For any other stream.
    piped: Counters,
    /// The bytes that earlier legs have moved.
    earlier: AtomicU64,
}

impl AsRef<Self> for StreamProgress {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl StreamProgress {
    /// Follows a pair of sockets.
    pub(super) fn follow(&self, pair: Arc<PairProgress>) {
        *self.pair() = Some(pair);
    }

    /// Notes that other legs take the place of the present ones.
    pub fn part(&self) {
        let bytes = self.read(Counters::bytes);
        self.earlier.fetch_add(bytes, Ordering::Relaxed);
        *self.pair() = None;
        self.piped.set([0; 2], false);
    }

    fn pair(&self) -> MutexGuard<'_, Option<Arc<PairProgress>>> {
        self.pair.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the progress of a stream of another kind.
    pub(super) fn note(&self, moved: [u64; 2], holds: bool) {
        self.piped.set(moved, holds);
    }

    /// Returns whether bytes wait for a slow reader.
    pub fn holds(&self) -> bool {
        self.read(|counters| counters.holds.load(Ordering::Acquire))
    }

    /// Returns the bytes that the present legs have moved so far from the first to the second.
    pub fn forward(&self) -> u64 {
        let [forward, _] = self.read(Counters::moved);
        forward
    }

    /// Returns the bytes moved so far, both directions.
    pub fn bytes(&self) -> u64 {
        self.earlier.load(Ordering::Relaxed) + self.read(Counters::bytes)
    }

    fn read<T>(&self, what: impl Fn(&Counters) -> T) -> T {
        match &*self.pair() {
            Some(pair) => pair.read(what),
            None => what(&self.piped),
        }
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

/// How long a stream has been silent, in [`TICK`]s of the plane's clock. Each waiting pair has one, so the numbers are
/// small and wrap.
#[derive(Debug)]
pub(super) struct Silence {
    idle_ticks: u32,
    /// At the last look: when something had last moved, and how much had moved.
    moved_at: u32,
    counted: u32,
    /// How often the peers were checked since something last moved; [`SETTLED`] if no check is needed.
    asked: u32,
}

impl Silence {
    /// Begins at the time `millis`.
    pub(super) fn new(idle_timeout: Duration, millis: u64) -> Self {
        let idle_ticks = idle_timeout.as_millis().div_ceil(TICK.into());
        let longest = u32::MAX - EARLY;
        let idle_ticks = u32::try_from(idle_ticks).map_or(longest, |ticks| ticks.min(longest));
        Self { idle_ticks, moved_at: (millis / TICK) as u32, counted: 0, asked: 0 }
    }

    /// Returns how long neither direction may move a byte.
    pub(super) fn idle_timeout(&self) -> Duration {
        Duration::from_millis(TICK * u64::from(self.idle_ticks))
    }

    /// Looks at a stream that has moved so many bytes in all at the time `millis`. Returns how many of them have moved
    /// since the last look (modulo 2^32), and what is to be done.
    pub(super) fn look(&mut self, bytes: u64, millis: u64) -> (u64, StreamNews) {
        let (bytes, now) = (bytes as u32, (millis / TICK) as u32);
        let moved = bytes.wrapping_sub(self.counted);
        if moved > 0 {
            self.counted = bytes;
            self.moved_at = now;
            self.asked = 0;
            return (moved.into(), StreamNews::None);
        }
        let still = now.wrapping_sub(self.moved_at);
        let still = if still > u32::MAX - EARLY { 0 } else { still };
        let each = STILL.as_millis() as u64 / TICK;
        let due = u64::from(self.asked).saturating_add(1).saturating_mul(each);
        let news = if still >= self.idle_ticks {
            StreamNews::Idle
        } else if self.asked < SETTLED && u64::from(still) >= due {
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
    fn the_clock_of_idle_streams_goes_on_after_497_days() {
        let (wrap, idle) = (TICK << 32, IDLE.as_millis() as u64);
        let mut silence = Silence::new(IDLE, wrap - idle / 4);
        let (_, news) = silence.look(0, wrap + idle / 4);
        assert_ne!(news, StreamNews::Idle, "beyond the end of a 32-bit clock, and not idle");
        assert_eq!(silence.look(1, wrap + idle), (1, StreamNews::None));
        assert_eq!(silence.look(1, wrap + 2 * idle), (0, StreamNews::Idle));
    }

    #[test]
    fn a_stream_moves_while_its_bytes_are_more_than_four_gigabytes() {
        let mut silence = Silence::new(IDLE, 0);
        let much = (1 << 32) + 5;
        assert_eq!(silence.look(much, 10), (5, StreamNews::None));
        assert_eq!(silence.look(much + 7, 20), (7, StreamNews::None));
        assert_eq!(silence.look(much + 7, 30), (0, StreamNews::None));
    }

    #[test]
    fn progress_stays_that_of_its_stream_when_its_counters_get_another() {
        let block: CounterBlock = Arc::new([const { Counters::new() }; BLOCK]);
        let (progress, pair) = (StreamProgress::default(), Arc::<PairProgress>::default());
        progress.follow(Arc::clone(&pair));
        assert_eq!((progress.bytes(), progress.holds()), (0, false));
        pair.follow(CounterRow::new(Arc::clone(&block), BLOCK + 3));
        block[3].set([5, 2], true);
        assert_eq!((progress.bytes(), progress.holds()), (7, true));
        pair.end([6, 2]);
        block[3].set([1000, 0], true);
        assert_eq!((progress.bytes(), progress.holds()), (8, false));
    }

    #[test]
    fn a_look_from_before_the_beginning_of_a_stream_finds_no_silence() {
        let mut silence = Silence::new(IDLE, 1_000);
        assert_eq!(silence.look(0, 900), (0, StreamNews::None));
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
