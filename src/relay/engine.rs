//! The threads that run pairs of sockets: one for each core, with an epoll instance of its own.
//!
//! An accepted connection belongs to the runtime until its stream begins. Then it comes here, where a waiting pair is an
//! entry of a list rather than a task. A thread learns of sockets edge-triggered, so it asks the kernel only for what it
//! does not know yet.
//!
//! Pairs that are ready have a turn each. Pairs that have more to do after that get further turns one by one; between
//! two of these the thread looks for others that have become ready, so a bulk stream delays an interactive one by one
//! turn at most.
//!
//! Pairs and their counters lie in blocks of [`BLOCK`], so that many of them take no more than their size.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    io, mem,
    num::NonZero,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use fingerpost_wire::transport_kind::TransportKind;
use rustix::{
    buffer::spare_capacity,
    event::{
        EventfdFlags, PollFd, PollFlags, Timespec,
        epoll::{self, Event, EventData, EventFlags},
        eventfd, poll,
    },
    io::Errno,
};

use super::{
    pair::{COPY, Next, Pair, Reports, Turn},
    pipe::Ended,
    plane::Resources,
    watch::{BLOCK, CounterBlock, CounterRow, Counters, StreamOwner},
};

/// The most threads; more cores than that move more than their network carries.
const MOST_THREADS: usize = 16;

/// The number of events that are taken at once.
const EVENTS: usize = 256;

/// The number of orders that wake a thread, so that new pairs do not wait outside of its list.
const MANY: usize = 64;

/// epoll_wait(2) counts milliseconds; a shorter wait needs ppoll(2).
const SHORT: Duration = Duration::from_millis(2);

/// The name of the event that wakes a thread; no pair has it.
const WAKE: u64 = u64::MAX;

/// The threads. They start with the first pair and end when this is dropped; pairs that run then are cut.
#[derive(Debug)]
pub(super) struct Engine {
    resources: Arc<Resources>,
    cores: OnceLock<Vec<Arc<Core>>>,
    turn: AtomicUsize,
}

/// The name of a running pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PairId {
    core: u16,
    slot: Slot,
}

/// A place in the list of a thread. `generation` tells it from an earlier pair in the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Slot {
    index: u32,
    generation: u32,
}

/// One thread, as others see it.
#[derive(Debug)]
struct Core {
    epoll: OwnedFd,
    wake: OwnedFd,
    inbox: Mutex<Inbox>,
    /// Whether something is in the inbox.
    pending: AtomicBool,
}

#[derive(Debug, Default)]
struct Inbox {
    orders: Vec<Order>,
    /// The counters of all places.
    counters: Vec<CounterBlock>,
    /// Free places, and the number of places so far.
    free: Vec<u32>,
    places: u32,
    generation: u32,
    /// Pairs that run here.
    running: usize,
    closed: bool,
}

#[derive(Debug)]
enum Order {
    /// Run this pair, whose sockets are registered already.
    Run(Slot, OwnedPair),
    /// Cut it.
    Cut(Slot),
    /// Look at all pairs at this time of the plane's clock; the second number changes when a pair got no pipe.
    Look(u64, u64),
    /// Tell that all earlier orders have been carried out.
    #[cfg(test)]
    Tell(std::sync::mpsc::Sender<()>),
    #[cfg(test)]
    Panic,
}

/// A pair, and the owner that learns of its end. If the owner is gone, nobody has to.
#[derive(Debug)]
pub(super) struct OwnedPair {
    pub(super) pair: Pair,
    pub(super) owner: Weak<dyn StreamOwner>,
    /// What the owner calls the pair.
    pub(super) name: u32,
}

impl Engine {
    /// Creates an engine without a thread.
    pub(super) fn new(resources: Arc<Resources>) -> Self {
        Self { resources, cores: OnceLock::new(), turn: AtomicUsize::new(0) }
    }

    /// Runs a pair.
    ///
    /// # Errors
    /// The system's, if there is no thread or a socket cannot be registered. The sockets are closed then.
    pub(super) fn run(&self, pair: OwnedPair) -> io::Result<PairId> {
        let cores = self.cores.get_or_init(|| self.start());
        let number = self.turn.fetch_add(1, Ordering::Relaxed) % cores.len().max(1);
        match cores.get(number) {
            Some(core) => core.run(pair).map(|slot| PairId { core: number as u16, slot }),
            None => Err(io::Error::other("no thread for streams could be started")),
        }
    }

    /// Returns the counters of a pair. Its owner must not have learned yet that it has ended.
    pub(super) fn counters(&self, id: PairId) -> Option<CounterRow> {
        let core = self.cores.get()?.get(usize::from(id.core))?;
        let index = id.slot.index as usize;
        let block = core.lock().counters.get(index / BLOCK).map(Arc::clone)?;
        Some(CounterRow::new(block, index))
    }

    /// Cuts a pair; nothing happens if it has ended.
    pub(super) fn cut(&self, id: PairId) {
        if let Some(core) = self.cores.get().and_then(|cores| cores.get(usize::from(id.core))) {
            core.order(Order::Cut(id.slot));
        }
    }

    /// Lets all threads look at their pairs.
    pub(super) fn look(&self, millis: u64) {
        let short = self.resources.pool.shortages();
        for core in self.cores.get().into_iter().flatten() {
            if core.lock().running > 0 {
                core.order(Order::Look(millis, short));
            }
        }
    }

    /// Waits until every thread has carried out the orders so far.
    #[cfg(test)]
    pub(super) fn settle(&self) {
        for core in self.cores.get().into_iter().flatten() {
            let (done, told) = std::sync::mpsc::channel();
            core.order(Order::Tell(done));
            told.recv().unwrap();
        }
    }

    /// Makes every thread panic.
    #[cfg(test)]
    pub(super) fn break_threads(&self) {
        for core in self.cores.get().into_iter().flatten() {
            core.order(Order::Panic);
        }
    }

    fn start(&self) -> Vec<Arc<Core>> {
        let wanted = thread::available_parallelism().map_or(1, NonZero::get).min(MOST_THREADS);
        let mut cores = Vec::new();
        for number in 0..wanted {
            match Core::start(number, Arc::clone(&self.resources)) {
                Ok(core) => cores.push(core),
                Err(error) => {
                    tracing::error!(%error, started = cores.len(), wanted, "cannot start a thread for streams");
                    break;
                }
            }
        }
        cores
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        for core in self.cores.get().into_iter().flatten() {
            core.lock().closed = true;
            core.pending.store(true, Ordering::Release);
            core.wake();
        }
    }
}

impl Core {
    fn start(number: usize, resources: Arc<Resources>) -> io::Result<Arc<Self>> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE), EventFlags::IN | EventFlags::ET)?;
        let core = Arc::new(Self {
            epoll,
            wake,
            inbox: Mutex::default(),
            pending: AtomicBool::new(false),
        });
        let runner = Runner::new(Arc::clone(&core), resources);
        thread::Builder::new().name(format!("streams-{number}")).spawn(|| runner.run())?;
        Ok(core)
    }

    /// Registers the sockets of a pair and puts it into the inbox. The thread is not woken for one: a pair that waits for
    /// its first byte costs it nothing.
    fn run(&self, owned: OwnedPair) -> io::Result<Slot> {
        let mut inbox = self.lock();
        if inbox.closed {
            return Err(io::Error::other("a thread for streams has ended"));
        }
        let index = inbox.free.pop().unwrap_or(inbox.places);
        inbox.generation = inbox.generation.wrapping_add(1) & (u32::MAX >> 1);
        let slot = Slot { index, generation: inbox.generation };
        for second in [false, true] {
            let (data, side) = (EventData::new_u64(slot.name(second)), owned.pair.side(second));
            if let Err(error) = epoll::add(&self.epoll, side, data, flags(side.reports)) {
                if index < inbox.places {
                    inbox.free.push(index);
                }
                return Err(error.into());
            }
        }
        inbox.places = inbox.places.max(index + 1);
        inbox.running += 1;
        match inbox.counters.get(index as usize / BLOCK) {
            Some(block) => block[index as usize % BLOCK].set([0, 0], false),
            None => inbox.counters.push(Arc::new([const { Counters::new() }; BLOCK])),
        }
        let wakes = owned.pair.has_early_bytes() || (inbox.orders.len() + 1).is_multiple_of(MANY);
        inbox.orders.push(Order::Run(slot, owned));
        self.pending.store(true, Ordering::Release);
        drop(inbox);
        if wakes {
            self.wake();
        }
        Ok(slot)
    }

    fn order(&self, order: Order) {
        self.lock().orders.push(order);
        self.pending.store(true, Ordering::Release);
        self.wake();
    }

    /// Wakes the thread. If the counter of the event is full, it is awake.
    fn wake(&self) {
        let _full = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// Returns the name of one of the two sockets in events.
    fn name(self, second: bool) -> u64 {
        u64::from(self.index) << 32 | u64::from(self.generation) << 1 | u64::from(second)
    }

    fn named(name: u64) -> (Self, bool) {
        let slot = Self { index: (name >> 32) as u32, generation: (name as u32) >> 1 };
        (slot, name & 1 == 1)
    }
}

/// Returns the events of a socket, edge-triggered.
fn flags(reports: Reports) -> EventFlags {
    let mut flags = EventFlags::RDHUP | EventFlags::ET;
    flags.set(EventFlags::IN, reports.bytes);
    flags.set(EventFlags::OUT, reports.room);
    flags
}

/// The state of one thread.
struct Runner {
    core: Arc<Core>,
    resources: Arc<Resources>,
    pairs: Vec<Block>,
    /// Orders that are being carried out.
    orders: Vec<Order>,
    /// Pairs that something has happened to, in that order.
    ready: Vec<u32>,
    /// Pairs that had a turn and have more to do.
    busy: VecDeque<u32>,
    timers: BinaryHeap<Reverse<(Instant, Slot)>>,
    /// The first timer of each pair that has one.
    first_timers: HashMap<u32, Instant>,
    buffer: Vec<u8>,
    shortages: u64,
}

/// Pairs side by side, and their counters.
struct Block {
    counters: CounterBlock,
    entries: Box<[Option<Entry>]>,
}

struct Entry {
    generation: u32,
    /// Whether it is among those that get a turn.
    queued: bool,
    owned: OwnedPair,
}

// Each waiting pair takes this much, so it must not grow by accident.
const _: () = assert!(size_of::<Option<Entry>>() <= 144);

impl Runner {
    fn new(core: Arc<Core>, resources: Arc<Resources>) -> Self {
        Self {
            core,
            resources,
            pairs: Vec::new(),
            orders: Vec::new(),
            ready: Vec::new(),
            busy: VecDeque::new(),
            timers: BinaryHeap::new(),
            first_timers: HashMap::new(),
            buffer: vec![0; COPY],
            shortages: 0,
        }
    }

    fn run(mut self) {
        let mut events: Vec<Event> = Vec::with_capacity(EVENTS);
        loop {
            events.clear();
            if let Err(error) = self.wait(&mut events) {
                tracing::error!(%error, "a thread of streams ends: its streams are cut");
                break;
            }
            if self.core.pending.swap(false, Ordering::Acquire) && !self.take_orders() {
                break;
            }
            for event in events.drain(..) {
                self.note(event);
            }
            self.expire();
            let mut ready = mem::take(&mut self.ready);
            for index in ready.drain(..) {
                self.turn(index);
            }
            self.ready = ready;
            if let Some(index) = self.busy.pop_front() {
                self.turn(index);
            }
        }
    }

    /// Waits for events, or for the next timer, or not at all if pairs have more to do.
    fn wait(&self, events: &mut Vec<Event>) -> rustix::io::Result<()> {
        let span = |wait: Duration| Timespec {
            tv_sec: wait.as_secs() as i64,
            tv_nsec: wait.subsec_nanos().into(),
        };
        let mut timeout = Some(Duration::ZERO);
        if self.busy.is_empty() {
            let now = Instant::now();
            let next = self.timers.peek();
            timeout = next.map(|Reverse((at, _))| at.saturating_duration_since(now));
            if let Some(wait) = timeout.filter(|wait| !wait.is_zero() && *wait < SHORT) {
                let mut ready = [PollFd::new(&self.core.epoll, PollFlags::IN)];
                match poll(&mut ready, Some(&span(wait))) {
                    Ok(_) | Err(Errno::INTR) => timeout = Some(Duration::ZERO),
                    Err(error) => return Err(error),
                }
            }
        }
        let timeout = timeout.map(span);
        match epoll::wait(&self.core.epoll, spare_capacity(events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Carries out what is in the inbox; returns false if this thread is to end.
    fn take_orders(&mut self) -> bool {
        let mut inbox = self.core.lock();
        let mut orders = mem::take(&mut self.orders);
        mem::swap(&mut inbox.orders, &mut orders);
        let closed = inbox.closed;
        for counters in &inbox.counters[self.pairs.len()..] {
            let entries = (0..BLOCK).map(|_| None).collect();
            self.pairs.push(Block { counters: Arc::clone(counters), entries });
        }
        drop(inbox);
        for order in orders.drain(..) {
            match order {
                Order::Run(slot, owned) => {
                    let early = owned.pair.has_early_bytes();
                    let index = slot.index as usize;
                    self.pairs[index / BLOCK].entries[index % BLOCK] =
                        Some(Entry { generation: slot.generation, queued: early, owned });
                    if early {
                        self.ready.push(slot.index);
                    }
                }
                Order::Cut(slot) => {
                    if self.entry(slot).is_some() {
                        self.remove(slot.index, None);
                    }
                }
                Order::Look(millis, shortages) => self.look(millis, shortages),
                #[cfg(test)]
                Order::Panic => panic!("a test asked for this"),
                #[cfg(test)]
                Order::Tell(done) => {
                    let _gone = done.send(());
                }
            }
        }
        orders.shrink_to(MANY);
        self.orders = orders;
        !closed
    }

    fn entry(&mut self, slot: Slot) -> Option<&mut Entry> {
        let (entry, _) = Block::find(&mut self.pairs, slot.index)?;
        (entry.generation == slot.generation).then_some(entry)
    }

    /// Puts a pair among those that are ready, unless a turn awaits it already.
    fn queue(&mut self, slot: Slot) {
        if let Some(entry) = self.entry(slot)
            && !mem::replace(&mut entry.queued, true)
        {
            self.ready.push(slot.index);
        }
    }

    /// Notes what a socket is ready for.
    fn note(&mut self, event: Event) {
        let (name, flags) = (event.data.u64(), event.flags);
        if name == WAKE {
            return;
        }
        let (slot, second) = Slot::named(name);
        // A new pair may still be in the inbox. Otherwise the event is of a pair that has ended meanwhile.
        if self.entry(slot).is_none() {
            let closed = !self.take_orders();
            self.core.pending.fetch_or(closed, Ordering::Relaxed);
        }
        let Some(entry) = self.entry(slot) else { return };
        let ended = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        let readable = flags.contains(EventFlags::IN);
        let writable = flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR);
        entry.owned.pair.side_mut(second).handle_ready(readable, writable, ended);
        self.queue(slot);
    }

    /// Gives a turn to the pairs whose time has come.
    fn expire(&mut self) {
        let Some(Reverse((first, _))) = self.timers.peek() else { return };
        let now = Instant::now();
        if *first > now {
            return;
        }
        while let Some(Reverse((at, slot))) = self.timers.peek().copied()
            && at <= now
        {
            self.timers.pop();
            if self.entry(slot).is_some() {
                self.first_timers.remove(&slot.index);
                self.queue(slot);
            }
        }
    }

    /// Gives one pair a turn.
    fn turn(&mut self, index: u32) {
        let Some((entry, counters)) = Block::find(&mut self.pairs, index) else { return };
        entry.queued = false;
        let mut turn = Turn {
            resources: &self.resources,
            buffer: &mut self.buffer,
            counters,
            now: Instant::now(),
        };
        let before = counters.bytes();
        let next = entry.owned.pair.run(&mut turn);
        let moved = counters.bytes() - before;
        if moved > 0 {
            self.resources.metrics.moved(TransportKind::S5b, TransportKind::S5b, moved);
        }
        self.follow(index, next);
    }

    /// Does what a pair needs to go on.
    fn follow(&mut self, index: u32, next: Next) {
        let Some((entry, _)) = Block::find(&mut self.pairs, index) else { return };
        let slot = Slot { index, generation: entry.generation };
        let pair = &mut entry.owned.pair;
        for second in [false, true] {
            let Some(reports) = pair.side(second).wants() else { continue };
            // If it is ready already, the kernel says so at once.
            let (data, flags) = (EventData::new_u64(slot.name(second)), flags(reports));
            match epoll::modify(&self.core.epoll, pair.side(second), data, flags) {
                Ok(()) => pair.side_mut(second).reports = reports,
                Err(error) => {
                    tracing::warn!(%error, "cannot wait for a socket: its stream is cut");
                    return self.remove(index, None);
                }
            }
        }
        match next {
            Next::Again if entry.queued => {}
            Next::Again => {
                entry.queued = true;
                self.busy.push_back(index);
            }
            Next::Wait(Some(at))
                if self.first_timers.get(&index).is_none_or(|timer| at < *timer) =>
            {
                self.first_timers.insert(index, at);
                self.timers.push(Reverse((at, slot)));
            }
            Next::Wait(_) => {}
            Next::Ended(end) => self.remove(index, Some(end)),
        }
    }

    /// Looks at the silence of all pairs.
    fn look(&mut self, millis: u64, shortages: u64) {
        let short = mem::replace(&mut self.shortages, shortages) != shortages;
        for index in 0..self.places() {
            let Some((entry, counters)) = Block::find(&mut self.pairs, index) else { continue };
            let next = entry.owned.pair.look(counters.bytes(), millis, short, &self.resources);
            if next != Next::Wait(None) {
                self.follow(index, next);
            }
        }
    }

    /// Returns the number of places in the list.
    fn places(&self) -> u32 {
        (self.pairs.len() * BLOCK) as u32
    }

    /// Removes a pair, closes its sockets, tells its owner, and then frees its place and its counters.
    fn remove(&mut self, index: u32, end: Option<Ended>) {
        let Some(block) = self.pairs.get_mut(index as usize / BLOCK) else { return };
        let row = index as usize % BLOCK;
        let Some(Entry { owned, .. }) = block.entries[row].take() else { return };
        let OwnedPair { mut pair, owner, name } = owned;
        let moved = block.counters[row].moved();
        pair.release(&self.resources);
        drop(pair);
        self.first_timers.remove(&index);
        self.resources.metrics.session_ended(TransportKind::S5b, TransportKind::S5b);
        if let Some(owner) = owner.upgrade() {
            owner.ended(name, moved, end);
        }
        let mut inbox = self.core.lock();
        inbox.free.push(index);
        inbox.running -= 1;
    }
}

impl Block {
    /// Returns the pair at a place, and its counters.
    fn find(blocks: &mut [Self], index: u32) -> Option<(&mut Entry, &Counters)> {
        let block = blocks.get_mut(index as usize / BLOCK)?;
        let row = index as usize % BLOCK;
        Some((block.entries[row].as_mut()?, &block.counters[row]))
    }
}

/// Cuts all pairs, also if the thread panics: their owners learn of it, and no further pair comes here.
impl Drop for Runner {
    fn drop(&mut self) {
        self.core.lock().closed = true;
        self.take_orders();
        for index in 0..self.places() {
            self.remove(index, None);
        }
    }
}
