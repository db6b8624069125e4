//! How much of an in-band bytestream may be under way: a window that follows the path.
//!
//! The path leads through servers, and many of them slow their clients. What is sent beyond the path's rate waits in a
//! queue in front of the slowest part, and everything else of the same user waits behind it. So the window is kept near
//! what the path carries:
//!
//! - It starts small and grows with what has been acknowledged, because the first seconds of a slowed connection are
//!   often fast (a server lets a burst through).
//! - It grows only while the round trip of a block stays close to the lowest recent one, as in TCP Vegas, and only if
//!   the window was what held the sender back.
//! - It shrinks when round trips show a queue, and never exceeds what the best measured rate delivers in the lowest round
//!   trip and [`QUEUE`], as in BBR.
//! - Every ten seconds it lets everything arrive and sends one short block alone. Otherwise a queue of our own would
//!   become part of the lowest round trip.
//!
//! When the window is smaller than two blocks, the blocks become shorter: XEP-0047 only limits their length.
//!
//! Sizes are bytes before base64, with [`HEADER`] for each block: base64 makes both longer alike.

use std::time::{Duration, Instant};

/// The largest window, bytes.
pub const MOST: usize = 1 << 20;

/// The largest window at the start, bytes.
pub const START: usize = 4096;

/// What a block costs beside its bytes: the stanza around it, its addresses and its answer.
pub const HEADER: usize = 192;

/// The shortest block that the window asks for, bytes.
pub const SHORTEST: usize = 1024;

/// The least window: two of the shortest blocks, so that one is under way while the answer to the other comes back.
pub const LEAST: usize = 2 * (SHORTEST + HEADER);

/// The most bytes that may wait in the path's queues, as the time in which the path delivers them.
pub const QUEUE: Duration = Duration::from_millis(500);

/// The longest wait in a queue at which the window shrinks no further, if that is more than half of a round trip.
const TOLERATED: Duration = Duration::from_millis(250);

/// The queue that a window which has shrunk aims at.
const AIM: Duration = Duration::from_millis(100);

/// The wait in a queue up to which the window grows, if that is more than a quarter of a round trip. It covers the
/// irregular pace of a busy server, and the 40 ms for which Prosody's TCP waits for an acknowledgement.
const UNNOTICED: Duration = Duration::from_millis(100);

/// How long a measurement counts, at most twice; and how often the path's own round trip is measured.
const PERIOD: Duration = Duration::from_secs(10);

/// The shortest round trip that is told apart.
const TICK: Duration = Duration::from_micros(10);

/// The window of one direction of a stream. Blocks are acknowledged in order.
#[derive(Debug)]
pub(crate) struct Window {
    /// The longest block.
    block_size: usize,
    /// Up to here the window grows quickly.
    threshold: usize,
    /// The most that others allow.
    ceiling: usize,
    size: usize,
    /// Everything that was sent, and what of it is acknowledged.
    sent: u64,
    acknowledged: u64,
    /// [`Self::sent`] when the window was last full.
    full: u64,
    /// [`Self::sent`] when the window last shrank; what was sent before says nothing about the smaller window.
    shrunk: u64,
    /// When something was last acknowledged.
    arrival: Option<Instant>,
    trips: Recent<Duration>,
    /// Bytes per second.
    rates: Recent<u64>,
    probe: Probe,
}

/// What the window knows of a block that is under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Departure {
    at: Instant,
    /// [`Window::sent`] after it.
    end: u64,
    /// [`Window::acknowledged`] before it.
    before: u64,
    /// Whether nothing else was under way.
    alone: bool,
}

/// The measurement of the path without a queue of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    /// When it is due, unless a block is alone before. Nothing has been measured if there is no time.
    Due(Option<Instant>),
    /// Nothing is sent until everything has arrived; then one short block.
    Draining,
}

/// The last two periods of a measurement.
#[derive(Clone, Copy, Debug)]
struct Recent<T> {
    since: Option<Instant>,
    this: Option<T>,
    last: Option<T>,
}

impl<T: Ord + Copy> Recent<T> {
    const NONE: Self = Self { since: None, this: None, last: None };

    fn add(&mut self, value: T, now: Instant, better: fn(T, T) -> T) {
        let since = *self.since.get_or_insert(now);
        if now >= since + PERIOD {
            self.last = if now >= since + 2 * PERIOD { None } else { self.this };
            (self.since, self.this) = (Some(now), None);
        }
        self.this = Some(self.this.map_or(value, |this| better(this, value)));
    }

    fn best(&self, better: fn(T, T) -> T) -> Option<T> {
        match (self.this, self.last) {
            (Some(this), Some(last)) => Some(better(this, last)),
            (this, last) => this.or(last),
        }
    }
}

impl Window {
    /// Creates the window of blocks of so many bytes, which grows quickly to `blocks` of them.
    pub(crate) fn new(block_size: u16, blocks: u16) -> Self {
        let block_size = usize::from(block_size);
        Self {
            block_size,
            threshold: usize::from(blocks) * (block_size + HEADER),
            ceiling: MOST,
            size: START,
            sent: 0,
            acknowledged: 0,
            full: 0,
            shrunk: 0,
            arrival: None,
            trips: Recent::NONE,
            rates: Recent::NONE,
            probe: Probe::Due(None),
        }
    }

    /// Sets how much others allow; at least one block alone is always allowed.
    pub(crate) fn set_ceiling(&mut self, bytes: usize) {
        self.ceiling = bytes;
    }

    /// Returns whether the path would carry more than so much.
    pub(crate) fn exceeds(&self, bytes: usize) -> bool {
        self.size > bytes
    }

    /// Returns the window as it is now.
    pub(crate) fn size(&self) -> usize {
        self.size.min(self.ceiling)
    }

    /// Returns how many bytes the next block may have; `None` if none may go now.
    pub(crate) fn next_block(&self) -> Option<usize> {
        let under_way = self.under_way();
        if self.probe == Probe::Draining {
            return (under_way == 0).then(|| SHORTEST.min(self.block_size));
        }
        let half = (self.size() / 2).saturating_sub(HEADER);
        let block = half.max(SHORTEST).min(self.block_size);
        (under_way == 0 || under_way + block + HEADER <= self.size()).then_some(block)
    }

    /// Notes that a block goes.
    pub(crate) fn depart(&mut self, bytes: usize, now: Instant) -> Departure {
        let (cost, before, alone) = (bytes + HEADER, self.acknowledged, self.under_way() == 0);
        if alone && self.arrival.is_some_and(|at| now >= at + PERIOD) {
            // The path may be another one after a pause.
            self.size = self.size.min(START);
        }
        self.sent += cost as u64;
        let departure = Departure { at: now, end: self.sent, before, alone };
        if self.next_block().is_none() {
            self.full = self.sent;
        }
        departure
    }

    /// Notes that a block, and all before it, will not be answered any more, or were answered without a round trip.
    pub(crate) fn forget(&mut self, departure: &Departure) {
        self.acknowledged = self.acknowledged.max(departure.end);
    }

    /// Notes that a block, and all before it, were acknowledged. `asked`: when the peer was asked, if that was later
    /// than the block.
    pub(crate) fn arrive(&mut self, departure: &Departure, asked: Option<Instant>, now: Instant) {
        let news = departure.end.saturating_sub(self.acknowledged);
        self.forget(departure);
        let begin = asked.map_or(departure.at, |asked| asked.max(departure.at));
        let trip = now.saturating_duration_since(begin).max(TICK);
        let micros = u64::try_from(trip.as_micros()).unwrap_or(u64::MAX).max(1);
        let rate = (self.acknowledged - departure.before).saturating_mul(1_000_000) / micros;
        self.trips.add(trip, now, Ord::min);
        self.rates.add(rate, now, Ord::max);
        let lowest = self.trips.best(Ord::min).unwrap_or(trip);
        match self.probe {
            Probe::Draining if !departure.alone => {}
            Probe::Draining | Probe::Due(None) => self.probe = Probe::Due(Some(now + PERIOD)),
            Probe::Due(_) if departure.alone => self.probe = Probe::Due(Some(now + PERIOD)),
            Probe::Due(Some(at)) if now >= at => self.probe = Probe::Draining,
            Probe::Due(Some(_)) => {}
        }
        // Otherwise the sample is about a larger window.
        let is_new = departure.end > self.shrunk;
        let was_full = departure.end <= self.full;
        let queue = trip.saturating_sub(lowest);
        if is_new && queue > TOLERATED.max(lowest / 2) {
            let aim = delivered(rate, lowest + AIM.max(lowest / 4));
            self.size = self.size.min(aim.max(self.size / 2)).max(LEAST);
            self.shrunk = self.sent;
        } else if is_new
            && was_full
            && queue <= UNNOTICED.max(lowest / 4)
            && self.size <= self.ceiling
        {
            let part = if self.size < self.threshold { 2 } else { 8 };
            self.size += usize::try_from(news / part).unwrap_or_default();
        }
        if was_full {
            let best = self.rates.best(Ord::max).unwrap_or(rate);
            self.size = self.size.min(delivered(best, lowest + QUEUE)).clamp(LEAST, MOST);
        }
        self.arrival = Some(now);
    }

    /// Returns how much is under way.
    pub(crate) fn under_way(&self) -> usize {
        usize::try_from(self.sent - self.acknowledged).unwrap_or(usize::MAX)
    }

    /// Sets the window's size.
    #[cfg(test)]
    pub(crate) fn set_size(&mut self, bytes: usize) {
        self.size = bytes;
    }
}

/// Returns how many bytes arrive in a time.
fn delivered(rate: u64, time: Duration) -> usize {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let bytes = u128::from(rate) * u128::from(micros) / 1_000_000;
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
