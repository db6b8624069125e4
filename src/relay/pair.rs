//! Two joined sockets. The kernel moves large amounts of bytes through a borrowed pipe; a buffer of the thread moves
//! small ones. So a waiting stream owns neither.
//!
//! The first read of a burst goes to the buffer. If it fills the buffer, more is there, and the direction is *busy*: it
//! takes a pipe, moves the bytes through it to the other socket, and gives the pipe back when nothing more comes. It
//! keeps the pipe only while the other socket accepts nothing more, and not even then if other streams need it. It
//! never fills the pipe much beyond the room of the other socket. Without a pipe it copies.
//!
//! A pair never waits. The [engine](super::engine) tells it what its sockets are ready for and runs it; the pair
//! answers how it can go on. Most pairs wait most of the time, so what only a pair in motion needs is boxed.

use std::{
    io::{self, Read as _, Write as _},
    mem,
    net::{Shutdown, TcpStream},
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{AtomicU64, Ordering},
    task::Poll,
    time::{Duration, Instant},
};

use fingerpost_carry::{
    leg_end::{self, Delivery},
    tcp,
};
use fingerpost_wire::client_hello::Guard;

use super::{
    admission::ConnectionPlace,
    byte_rate::ByteRate,
    ending::{Ending, WayFate},
    pipe::{CopyFailure, Ended, FirstBytes, StreamOptions},
    plane::{Resources, SLOW},
    socket::Socket,
    splice::{Pipe, PipeAccount},
    watch::{Counters, Silence, StreamNews, add},
};

/// The size of the first read; a longer burst is worth a pipe.
const PROBE: usize = 16 * 1024;

/// The size of a read of a busy direction without a pipe, and of the buffer of a thread.
pub(super) const COPY: usize = 64 * 1024;

/// The most bytes that are taken out of a pipe into memory when others need the pipe.
const KEPT: usize = 2 * COPY;

/// Rounds in one turn, so that a busy direction starves neither the other direction nor other pairs.
const ROUNDS: usize = 4;

/// A direction that moves this much from one wait to the next is *polled*: its socket no longer reports each segment.
/// In KiB.
const FAST: u16 = 256;

/// A polled direction that has gathered less than this reports again. In KiB.
const GATHERED: u16 = 64;

/// The time between two polls: short beside a network's round trip, and long enough for many segments.
const POLL: Duration = Duration::from_micros(200);

/// What a thread of the engine lends a pair for one turn.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    /// The pipes and counters of all pairs.
    pub(super) resources: &'a Resources,
    /// A buffer of [`COPY`] bytes, which holds bytes only within the turn.
    pub(super) buffer: &'a mut [u8],
    /// The counters of the pair.
    pub(super) counters: &'a Counters,
    /// The time.
    pub(super) now: Instant,
}

/// How a pair goes on after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// With another turn, after those of other pairs.
    Again,
    /// When a socket is ready for more, or at this time.
    Wait(Option<Instant>),
    /// Not at all.
    Ended(Ended),
}

/// A socket of a pair, and what it is ready for as far as we know.
#[derive(Debug)]
pub(super) struct Side {
    stream: TcpStream,
    /// A read may give bytes or the end; false once a read would have blocked.
    readable: bool,
    /// A write may take bytes; false once a write would have blocked.
    writable: bool,
    /// The peer has sent its last byte, or the connection is broken: reads never block again.
    ended: bool,
    /// What the engine is to be told of the socket.
    wanted: Reports,
    /// What it is told.
    pub(super) reports: Reports,
}

/// What a socket reports besides its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reports {
    /// Bytes that arrive.
    pub(super) bytes: bool,
    /// Room for more bytes. Most pairs never ask.
    pub(super) room: bool,
}

/// A running stream between two sockets. It behaves as [`super::pipe::relay_at_rate`] does.
#[derive(Debug)]
pub(super) struct Pair {
    a: Side,
    b: Side,
    forward: Way,
    backward: Way,
    silence: Silence,
    account: PipeAccount,
    limit: Option<Box<ByteRate>>,
    /// Present when one socket is gone and its bytes are written: the other one soon has them.
    ending: Option<Box<Ending>>,
    _places: [Option<ConnectionPlace>; 2],
}

// Each waiting pair takes this much, so it must not grow by accident.
const _: () = assert!(size_of::<Pair>() <= 112);

/// One direction.
#[derive(Debug, Default)]
struct Way {
    /// Present while bytes are on their way.
    flow: Option<Box<Flow>>,
    state: WayState,
    fate: WayFate,
    /// What the first bytes must be, while they are not judged.
    guard: Option<FirstBytes>,
    /// Whether more than [`PROBE`] came at once.
    busy: bool,
    /// KiB that have come since there was nothing to read; each read is rounded up.
    burst: u16,
}

/// What a direction has while bytes are on their way.
#[derive(Debug, Default)]
struct Flow {
    /// A borrowed pipe with bytes in it.
    pipe: Option<Box<Pipe>>,
    /// Bytes that were read and not yet written.
    kept: Option<KeptBytes>,
    /// Present while the source is polled.
    polling: Option<Polling>,
}

/// A source that does not report its bytes, because many come in a short time.
#[derive(Debug)]
struct Polling {
    /// When to read next.
    at: Instant,
    /// Whether it has been read since then.
    is_over: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum WayState {
    #[default]
    Copy,
    /// The sink is gone: bytes that arrive are dropped.
    Drop,
    Done,
}

#[derive(Debug, Default)]
struct KeptBytes {
    bytes: Vec<u8>,
    start: usize,
}

/// Why a direction stops for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    /// A socket is not ready.
    Socket,
    /// The rate allows more at this time, or the source is read again.
    Until(Instant),
    /// It had its rounds.
    Turn,
}

/// The result of a part of a turn.
type Step<T> = Result<T, Stop>;

enum Stop {
    Pause(Pause),
    Failure(CopyFailure),
}

impl From<Pause> for Stop {
    fn from(pause: Pause) -> Self {
        Self::Pause(pause)
    }
}

impl From<CopyFailure> for Stop {
    fn from(failure: CopyFailure) -> Self {
        Self::Failure(failure)
    }
}

/// The lender of pipes, and the account that borrows them.
#[derive(Clone, Copy)]
struct Lender<'a> {
    resources: &'a Resources,
    account: PipeAccount,
}

/// What both directions use in one turn.
struct Work<'a> {
    lender: Lender<'a>,
    buffer: &'a mut [u8],
    now: Instant,
    limit: &'a mut Option<Box<ByteRate>>,
}

impl Side {
    fn new(stream: TcpStream) -> Self {
        let reports = Reports { bytes: true, room: false };
        Self { stream, readable: true, writable: true, ended: false, wanted: reports, reports }
    }

    /// Notes what the kernel reports.
    pub(super) fn handle_ready(&mut self, readable: bool, writable: bool, ended: bool) {
        self.readable |= readable || ended;
        self.writable |= writable;
        self.ended |= ended;
    }

    /// Returns what the engine is to be told from now on, if that has changed.
    pub(super) fn wants(&self) -> Option<Reports> {
        (self.wanted != self.reports).then_some(self.wanted)
    }

    /// Reads once; pending if nothing has come.
    fn poll_read(&mut self, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let room = buffer.len();
        let read = self.poll_io(true, |stream| (&*stream).read(buffer));
        // Less than asked for: the next read would block, unless the end has come.
        if matches!(read, Poll::Ready(Ok(n)) if n < room) && !self.ended {
            self.readable = false;
        }
        read
    }

    /// Writes once; pending if the socket takes nothing.
    fn poll_write(&mut self, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_io(false, |stream| (&*stream).write(bytes))
    }

    /// Calls the system if the socket is ready for it, as far as we know.
    fn poll_io<T>(
        &mut self,
        reads: bool,
        mut call: impl FnMut(&TcpStream) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        let ready = if reads { &mut self.readable } else { &mut self.writable };
        if !*ready {
            return Poll::Pending;
        }
        loop {
            match call(&self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    *ready = false;
                    self.wanted.room |= !reads;
                    return Poll::Pending;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return Poll::Ready(other),
            }
        }
    }

    /// Ends our half in order; a close is no longer a reset. shutdown(2) never waits, and a connection that is gone
    /// needs none.
    fn finish(&self) {
        leg_end::set_reset(&self.stream, false);
        let _gone = self.stream.shutdown(Shutdown::Write);
    }

    fn delivery(&self) -> Delivery {
        Delivery::Tcp(tcp::info(&self.stream))
    }
}

impl AsFd for Side {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Pair {
    /// Joins two sockets at the time `now`, `millis` on the plane's clock. The bytes that were already read from them
    /// go first. Each session may move `bytes_per_second`, both directions together; 0 is any number.
    ///
    /// # Errors
    /// The system's, if a socket cannot leave the runtime.
    pub(super) fn new(
        a: Socket,
        b: Socket,
        options: StreamOptions,
        bytes_per_second: u64,
        (now, millis): (Instant, u64),
    ) -> io::Result<Self> {
        let way = |early: Vec<u8>, guard| Way {
            flow: (!early.is_empty()).then(|| {
                let kept = Some(KeptBytes { bytes: early, start: 0 });
                Box::new(Flow { kept, ..Flow::default() })
            }),
            guard,
            ..Way::default()
        };
        let (a, early, place) = a.into_parts()?;
        let forward = way(early, options.guard);
        let (b, early, other) = b.into_parts()?;
        leg_end::set_reset(&a, true);
        leg_end::set_reset(&b, true);
        Ok(Self {
            forward,
            backward: way(early, None),
            a: Side::new(a),
            b: Side::new(b),
            silence: Silence::new(options.idle_timeout, millis),
            account: options.account,
            limit: (bytes_per_second > 0).then(|| Box::new(ByteRate::new(bytes_per_second, now))),
            ending: None,
            _places: [place, other],
        })
    }

    /// Returns whether there is something to do before a socket is ready.
    pub(super) fn has_early_bytes(&self) -> bool {
        self.forward.holds() || self.backward.holds()
    }

    /// Returns the first socket, or the second.
    pub(super) fn side(&self, second: bool) -> &Side {
        if second { &self.b } else { &self.a }
    }

    /// Returns the first socket, or the second.
    pub(super) fn side_mut(&mut self, second: bool) -> &mut Side {
        if second { &mut self.b } else { &mut self.a }
    }

    /// Moves what can be moved now, within bounds.
    pub(super) fn run(&mut self, turn: &mut Turn<'_>) -> Next {
        let next = self.run_ways(turn);
        match next {
            Next::Ended(end) => self.settle(end),
            _ => {
                let holds = self.forward.owes() || self.backward.owes() || self.ending.is_some();
                turn.counters.holds.store(holds, Ordering::Relaxed);
            }
        }
        next
    }

    /// Looks at the silence at the time `millis`, when so many bytes have moved in all. `short` says that other pairs
    /// need pipes.
    pub(super) fn look(
        &mut self,
        bytes: u64,
        millis: u64,
        short: bool,
        resources: &Resources,
    ) -> Next {
        let (moved, news) = self.silence.look(bytes, millis);
        let lender = self.lender(resources);
        if short && moved < SLOW {
            self.forward.yield_pipe(lender);
            self.backward.yield_pipe(lender);
        }
        match news {
            StreamNews::Still => {
                self.find_vanished(lender);
                Next::Again
            }
            // An ending has its own bound.
            StreamNews::Idle if self.ending.is_none() => {
                let end = self.error().map_or(Ended::Idle, Ended::Error);
                self.settle(end);
                Next::Ended(end)
            }
            StreamNews::None | StreamNews::Idle => Next::Wait(None),
        }
    }

    /// Gives back what it has borrowed. The bytes in its pipes are lost.
    pub(super) fn release(&mut self, resources: &Resources) {
        let lender = self.lender(resources);
        self.forward.release(lender);
        self.backward.release(lender);
    }

    fn lender<'a>(&self, resources: &'a Resources) -> Lender<'a> {
        Lender { resources, account: self.account }
    }

    fn run_ways(&mut self, turn: &mut Turn<'_>) -> Next {
        let lender = self.lender(turn.resources);
        let Self { a, b, forward, backward, limit, .. } = self;
        let (counters, now) = (turn.counters, turn.now);
        let mut work = Work { lender, buffer: &mut *turn.buffer, now, limit };
        let (there, back) = loop {
            let there = match forward.run(&mut work, a, b, &counters.a_to_b) {
                Ok(there) => there,
                Err(end) => return Next::Ended(end),
            };
            if forward.guard.is_some() {
                // Nothing of the second leg is passed on either.
                return there.map_or(Next::Wait(None), Next::after);
            }
            backward.heed(forward.fate, lender);
            let back = match backward.run(&mut work, b, a, &counters.b_to_a) {
                Ok(back) => back,
                Err(end) => return Next::Ended(end),
            };
            // A direction that has just lost its sink is run again; nothing else would run it.
            if !forward.heed(backward.fate, lender) {
                break (there, back);
            }
        };
        let a_gone = forward.fate.is_source_gone(backward.fate);
        let b_gone = backward.fate.is_source_gone(forward.fate);
        let pauses = [there, back].into_iter().flatten();
        let waits = pauses.map(Next::after).reduce(Next::or).unwrap_or(Next::Wait(None));
        let (delivered, left) = match (a_gone, b_gone) {
            (false, false) if there.is_none() && back.is_none() => return Next::Ended(Ended::Eof),
            (false, false) => return waits,
            (true, false) => (there.is_none(), &*b),
            (false, true) => (back.is_none(), &*a),
            (true, true) => return Next::Ended(self.error().map_or(Ended::Eof, Ended::Error)),
        };
        if !delivered {
            return waits;
        }
        let idle_timeout = self.silence.idle_timeout();
        let ending = self.ending.get_or_insert_with(|| Box::new(Ending::new(idle_timeout)));
        match ending.look(|| left.delivery(), now) {
            Some(at) => waits.or(Next::Wait(Some(at))),
            None => Next::Ended(self.error().map_or(Ended::Eof, Ended::Error)),
        }
    }

    fn error(&self) -> Option<io::ErrorKind> {
        self.forward.fate.error(self.backward.fate)
    }

    /// Checks whether both peers of a stream that stands still are present.
    fn find_vanished(&mut self, lender: Lender<'_>) {
        let (a, b) = (self.a.delivery(), self.b.delivery());
        if a.is_gone() {
            self.forward.fate.lost.get_or_insert(io::ErrorKind::TimedOut);
            self.backward.fate.broken.get_or_insert(io::ErrorKind::TimedOut);
            self.backward.abandon(lender);
        }
        if b.is_gone() {
            self.backward.fate.lost.get_or_insert(io::ErrorKind::TimedOut);
            self.forward.fate.broken.get_or_insert(io::ErrorKind::TimedOut);
            self.forward.abandon(lender);
        }
        self.silence.checked(a.is_open() || b.is_open());
    }

    /// A stream that is cut must not look complete to its reader: a leg is closed in order only if it has got
    /// everything.
    fn settle(&self, end: Ended) {
        let nothing = |way: &Way, sink: &Side| !way.holds() && !sink.delivery().is_open();
        let in_order = match end {
            Ended::Error(_) => false,
            // Otherwise each leg was closed in order when the other one ended.
            Ended::Eof => self.forward.guard.is_some(),
            Ended::NotTls => true,
            Ended::Idle => nothing(&self.forward, &self.b) && nothing(&self.backward, &self.a),
        };
        if in_order {
            leg_end::set_reset(&self.a.stream, false);
            leg_end::set_reset(&self.b.stream, false);
        }
    }
}

impl Next {
    fn after(pause: Pause) -> Self {
        match pause {
            Pause::Turn => Self::Again,
            Pause::Socket => Self::Wait(None),
            Pause::Until(at) => Self::Wait(Some(at)),
        }
    }

    /// Returns what comes first of two.
    fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Wait(Some(one)), Self::Wait(Some(other))) => Self::Wait(Some(one.min(other))),
            (Self::Wait(None), other) => other,
            (Self::Wait(Some(_)), Self::Again | Self::Ended(_)) => other,
            (this, _) => this,
        }
    }
}

impl Way {
    /// Moves what it can. Returns why it stops, or `None` when this direction is done; an error ends the whole stream.
    fn run(
        &mut self,
        work: &mut Work<'_>,
        from: &mut Side,
        to: &mut Side,
        written: &AtomicU64,
    ) -> Result<Option<Pause>, Ended> {
        let lender = work.lender;
        if self.state == WayState::Copy {
            match self.move_bytes(work, from, to, written) {
                Err(Stop::Pause(pause)) => {
                    if self.pipe().is_some_and(|pipe| pipe.held() == 0) {
                        self.release(lender);
                    }
                    self.tidy();
                    return Ok(Some(pause));
                }
                Err(Stop::Failure(CopyFailure::End(end))) => return Err(end),
                Err(Stop::Failure(CopyFailure::Write(kind))) => {
                    self.fate.broken = Some(kind);
                    self.abandon(lender);
                }
                Err(Stop::Failure(CopyFailure::Read(kind))) => {
                    self.fate.failed = Some(kind);
                    self.done(lender);
                }
                Ok(()) => {
                    if self.fate.end() {
                        to.finish();
                    }
                    self.done(lender);
                }
            }
        }
        if self.state == WayState::Drop {
            self.stop_polling(from);
            if let Err(pause) = self.drop_bytes(work, from) {
                return Ok(Some(pause));
            }
            self.done(lender);
        }
        Ok(None)
    }

    /// Returns whether bytes wait for the sink or for the guard.
    fn holds(&self) -> bool {
        self.flow.as_ref().is_some_and(|flow| flow.pipe.is_some() || flow.kept.is_some())
    }

    /// Returns the borrowed pipe.
    fn pipe(&mut self) -> Option<&mut Pipe> {
        self.flow.as_mut()?.pipe.as_deref_mut()
    }

    /// Returns the bytes that were read and not yet written.
    fn kept(&mut self) -> Option<&mut KeptBytes> {
        self.flow.as_mut()?.kept.as_mut()
    }

    fn flow(&mut self) -> &mut Flow {
        self.flow.get_or_insert_default()
    }

    /// Frees what a waiting direction does not need.
    fn tidy(&mut self) {
        self.flow
            .take_if(|flow| flow.pipe.is_none() && flow.kept.is_none() && flow.polling.is_none());
    }

    /// Returns whether bytes wait for the sink. Bytes that the guard has not passed may never go there.
    fn owes(&self) -> bool {
        self.holds() && self.guard.is_none()
    }

    /// Takes over what the opposite direction knows; returns whether this one has just lost its sink.
    fn heed(&mut self, opposite: WayFate, lender: Lender<'_>) -> bool {
        let lost = self.fate.heed(opposite) && self.state == WayState::Copy;
        if lost {
            self.abandon(lender);
        }
        lost
    }

    /// Only empties this direction's source from now on.
    fn abandon(&mut self, lender: Lender<'_>) {
        if self.state == WayState::Copy {
            self.done(lender);
            self.state = WayState::Drop;
        }
    }

    fn done(&mut self, lender: Lender<'_>) {
        self.state = WayState::Done;
        self.guard = None;
        self.release(lender);
        self.flow = None;
    }

    /// Reads and drops until the source ends.
    fn drop_bytes(&mut self, work: &mut Work<'_>, from: &mut Side) -> Result<(), Pause> {
        for _ in 0..ROUNDS {
            let most = work.allowed()?.min(COPY);
            match from.poll_read(&mut work.buffer[..most]) {
                Poll::Pending => return Err(Pause::Socket),
                Poll::Ready(Ok(0)) => return Ok(()),
                Poll::Ready(Ok(n)) => work.took(n),
                Poll::Ready(Err(error)) => {
                    self.fate.failed = Some(error.kind());
                    return Ok(());
                }
            }
        }
        Err(Pause::Turn)
    }

    /// Moves bytes until the source ends.
    fn move_bytes(
        &mut self,
        work: &mut Work<'_>,
        from: &mut Side,
        to: &mut Side,
        written: &AtomicU64,
    ) -> Step<()> {
        for _ in 0..ROUNDS {
            if self.guard.is_some() {
                if self.kept().is_some() && self.is_judged()? {
                    continue;
                }
            } else {
                self.write_kept(to, written)?;
                self.drain(work, to, written)?;
            }
            // Check before anything is borrowed: the other direction may be why this pair runs.
            if !from.readable {
                self.wait(from, work.limit.is_some())?;
            }
            let most = work.allowed()?;
            if self.busy && self.guard.is_none() && self.pipe().is_none() {
                let pipe = work.lender.resources.pool.take(work.lender.account);
                if pipe.is_some() {
                    self.flow().pipe = pipe;
                }
            }
            let n = match self.pipe() {
                Some(pipe) => {
                    // Bytes beyond what the sink accepts would keep the pipe from others while the sink is slow. A
                    // little more than that tells the kernel that the sink's buffer is too small.
                    let most = most.min(tcp::room(&*to).unwrap_or(0).max(COPY));
                    match from.poll_io(true, |from| pipe.fill(from, most)) {
                        Poll::Ready(Ok(n)) => n,
                        // Nothing was there after all.
                        Poll::Pending => continue,
                        Poll::Ready(Err(error)) if work.lender.resources.must_copy(&error) => {
                            self.release(work.lender);
                            continue;
                        }
                        Poll::Ready(Err(error)) => return Err(read_failed(error)),
                    }
                }
                None => match self.copy(work, from, to, written, most)? {
                    Some(n) => n,
                    None => continue,
                },
            };
            if n == 0 {
                return match (self.guard.is_some(), self.kept().is_some()) {
                    (false, _) => Ok(()),
                    (true, true) => Err(CopyFailure::End(Ended::NotTls).into()),
                    (true, false) => Err(CopyFailure::End(Ended::Eof).into()),
                };
            }
            let kib = u16::try_from(n.div_ceil(1024)).unwrap_or(u16::MAX);
            self.burst = self.burst.saturating_add(kib);
            work.took(n);
        }
        Err(Pause::Turn.into())
    }

    /// Nothing can be read, as far as we know. Returns if it is time to poll the source; otherwise waits.
    fn wait(&mut self, from: &mut Side, is_limited: bool) -> Step<()> {
        if let Some(kind) = self.fate.lost {
            return Err(CopyFailure::Read(kind).into());
        }
        let burst = mem::take(&mut self.burst);
        let Some(polling) = self.flow.as_mut().and_then(|flow| flow.polling.as_mut()) else {
            if burst > 0 && usize::from(burst) < PROBE / 1024 {
                self.busy = false;
            }
            if burst < FAST || is_limited {
                return Err(Pause::Socket.into());
            }
            let at = Instant::now() + POLL;
            self.flow().polling = Some(Polling { at, is_over: false });
            from.wanted.bytes = false;
            return Err(Pause::Until(at).into());
        };
        let now = Instant::now();
        if burst > 0 || polling.is_over {
            if burst < GATHERED {
                self.stop_polling(from);
                return Err(Pause::Socket.into());
            }
            *polling = Polling { at: now + POLL, is_over: false };
        }
        if now < polling.at {
            return Err(Pause::Until(polling.at).into());
        }
        polling.is_over = true;
        from.readable = true;
        Ok(())
    }

    /// Lets the source report its bytes again. If some have come meanwhile, the kernel reports them at once.
    fn stop_polling(&mut self, from: &mut Side) {
        if let Some(flow) = &mut self.flow {
            flow.polling = None;
        }
        self.busy = false;
        from.wanted.bytes = true;
    }

    /// Reads once into the thread's buffer and writes what can be written now; keeps the rest. Returns how many bytes
    /// came; `None` if nothing was there after all.
    fn copy(
        &mut self,
        work: &mut Work<'_>,
        from: &mut Side,
        to: &mut Side,
        written: &AtomicU64,
        most: usize,
    ) -> Step<Option<usize>> {
        let size = if self.busy { COPY } else { PROBE };
        let buffer = &mut work.buffer[..size.min(most)];
        let n = match from.poll_read(buffer) {
            Poll::Pending => return Ok(None),
            Poll::Ready(read) => read.map_err(read_failed)?,
        };
        self.busy = n >= PROBE;
        let mut bytes = &buffer[..n];
        if self.guard.is_some() {
            if n > 0 {
                self.flow().kept.get_or_insert_default().bytes.extend_from_slice(bytes);
            }
            return Ok(Some(n));
        }
        while !bytes.is_empty() {
            match to.poll_write(bytes) {
                Poll::Ready(Ok(0)) => return Err(no_bytes_taken()),
                Poll::Ready(Ok(n)) => {
                    add(written, n);
                    bytes = &bytes[n..];
                }
                Poll::Ready(Err(error)) => return Err(write_failed(error)),
                Poll::Pending => {
                    self.flow().kept = Some(KeptBytes { bytes: bytes.to_vec(), start: 0 });
                    break;
                }
            }
        }
        Ok(Some(n))
    }

    fn write_kept(&mut self, to: &mut Side, written: &AtomicU64) -> Step<()> {
        while let Some(flow) = &mut self.flow
            && let Some(kept) = &mut flow.kept
        {
            let bytes = &kept.bytes[kept.start..];
            if bytes.is_empty() {
                flow.kept = None;
                break;
            }
            match to.poll_write(bytes) {
                Poll::Pending => return Err(Pause::Socket.into()),
                Poll::Ready(Ok(0)) => return Err(no_bytes_taken()),
                Poll::Ready(Ok(n)) => {
                    kept.start += n;
                    add(written, n);
                }
                Poll::Ready(Err(error)) => return Err(write_failed(error)),
            }
        }
        Ok(())
    }

    fn drain(&mut self, work: &Work<'_>, to: &mut Side, written: &AtomicU64) -> Step<()> {
        while let Some(pipe) = self.pipe()
            && pipe.held() > 0
        {
            match to.poll_io(false, |to| pipe.drain(to)) {
                Poll::Pending => return Err(Pause::Socket.into()),
                Poll::Ready(Ok(0)) => return Err(no_bytes_taken()),
                Poll::Ready(Ok(n)) => add(written, n),
                Poll::Ready(Err(error))
                    if work.lender.resources.must_copy(&error) && self.keep().is_ok() =>
                {
                    self.release(work.lender);
                    return self.write_kept(to, written);
                }
                Poll::Ready(Err(error)) => return Err(write_failed(error)),
            }
        }
        Ok(())
    }

    /// Returns whether the kept bytes begin as they must; if so, they may go.
    fn is_judged(&mut self) -> Result<bool, CopyFailure> {
        let Some(guard) = self.guard else { return Ok(true) };
        let kept = self.kept().map_or(&[][..], |kept| &kept.bytes);
        match guard.judge(kept) {
            Guard::Pass => self.guard = None,
            Guard::NeedMore => {}
            Guard::Refuse => return Err(CopyFailure::End(Ended::NotTls)),
        }
        Ok(self.guard.is_none())
    }

    fn release(&mut self, lender: Lender<'_>) {
        if let Some(pipe) = self.flow.as_mut().and_then(|flow| flow.pipe.take()) {
            lender.resources.pool.give_back(lender.account, pipe);
        }
    }

    /// Gives the pipe to others and keeps its bytes in memory. They are few, unless the sink accepted less than it
    /// said.
    fn yield_pipe(&mut self, lender: Lender<'_>) {
        if self.pipe().is_some_and(|pipe| pipe.held() <= KEPT) {
            // If that fails, the bytes stay where they are.
            let _kept = self.keep();
            if self.pipe().is_some_and(|pipe| pipe.held() == 0) {
                self.release(lender);
                self.tidy();
                self.busy = false;
            }
        }
    }

    /// Moves what is in the pipe to memory.
    fn keep(&mut self) -> io::Result<()> {
        let Some(Flow { pipe: Some(pipe), kept, .. }) = self.flow.as_deref_mut() else {
            return Ok(());
        };
        if pipe.held() == 0 {
            return Ok(());
        }
        pipe.empty(&mut kept.get_or_insert_default().bytes)
    }
}

impl Work<'_> {
    /// Returns how many bytes may pass now; not 0.
    fn allowed(&mut self) -> Result<usize, Pause> {
        match self.limit {
            None => Ok(usize::MAX),
            Some(limit) => limit.available(self.now).map_err(Pause::Until),
        }
    }

    /// Notes that so many bytes have passed.
    fn took(&mut self, bytes: usize) {
        if let Some(limit) = self.limit {
            limit.take(bytes);
        }
    }
}

fn read_failed(error: io::Error) -> Stop {
    CopyFailure::Read(error.kind()).into()
}

fn write_failed(error: io::Error) -> Stop {
    CopyFailure::Write(error.kind()).into()
}

fn no_bytes_taken() -> Stop {
    CopyFailure::Write(io::ErrorKind::WriteZero).into()
}

#[cfg(test)]
#[path = "pair_tests.rs"]
mod tests;
