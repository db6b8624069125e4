//! Two joined sockets. The kernel moves large amounts of bytes through a borrowed pipe; a buffer of the thread moves
//! small ones. So a waiting stream owns neither.
//!
//! The first read of a burst goes to the buffer. If it fills the buffer, more is there, and the direction is *busy*: it
//! takes a pipe, moves the bytes through it to the other socket, and gives the pipe back when nothing more comes. It
//! keeps the pipe only while the other socket accepts nothing more, and not even then if other streams need it. It
//! never fills the pipe much beyond the room of the other socket. Without a pipe it copies.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use fingerpost_carry::{leg_end::LegEnd, tcp};
use fingerpost_wire::client_hello::{self, Guard};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

use super::{
    ending::{Ending, WayFate},
    pipe::{CopyFailure, Ended, RateLimit, StreamOptions, StreamOutcome},
    plane::Plane,
    socket::{self, Socket},
    splice::{Pipe, PipeAccount},
    watch::{StreamNews, StreamWatch},
};

/// The size of the first read; a longer burst is worth a pipe.
const PROBE: usize = 16 * 1024;

/// The size of a read of a busy direction without a pipe.
const COPY: usize = 64 * 1024;

/// The most bytes that are taken out of a pipe into memory when others need the pipe.
const KEPT: usize = 2 * COPY;

/// Rounds in one turn of the task, so that a busy direction starves neither the other direction nor other tasks.
const ROUNDS: usize = 16;

thread_local! {
    /// Holds bytes only within one turn of a task.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A running stream between two sockets, as the future of its end. It behaves as [`super::pipe::relay_at_rate`] does.
#[derive(Debug)]
pub(super) struct Relay {
    a: Socket,
    b: Socket,
    forward: Way,
    backward: Way,
    plane: Plane,
    watch: Arc<StreamWatch>,
    limit: Option<Box<RateLimit>>,
    /// Present when one socket is gone and its bytes are written: the other one soon has them.
    ending: Option<Box<Ending>>,
}

/// The lender of pipes, and the account that borrows them.
#[derive(Clone, Copy)]
struct Lender<'a> {
    plane: &'a Plane,
    account: PipeAccount,
}

/// One direction.
#[derive(Debug, Default)]
struct Way {
    /// A borrowed pipe with bytes in it.
    pipe: Option<Box<Pipe>>,
    /// Bytes that were read and not yet written.
    kept: Option<Box<KeptBytes>>,
    state: WayState,
    fate: WayFate,
    /// Whether the first bytes are not judged yet.
    guarded: bool,
    /// Whether more than [`PROBE`] came at once.
    busy: bool,
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

impl Relay {
    /// Joins two sockets. The bytes that were already read from them go first.
    pub(super) fn new(mut a: Socket, mut b: Socket, plane: Plane, options: StreamOptions) -> Self {
        let way = |early: Vec<u8>, guarded| Way {
            kept: (!early.is_empty()).then(|| Box::new(KeptBytes { bytes: early, start: 0 })),
            guarded,
            ..Way::default()
        };
        let limit = match plane.rate() {
            0 => None,
            rate => Some(Box::new(RateLimit::new(rate))),
        };
        a.arm();
        b.arm();
        Self {
            forward: way(a.take_early(), options.guard),
            backward: way(b.take_early(), false),
            watch: plane.watch(options.idle_timeout, options.account),
            a,
            b,
            plane,
            limit,
            ending: None,
        }
    }

    /// Returns its counters, which others may read.
    pub(super) fn watch(&self) -> &Arc<StreamWatch> {
        &self.watch
    }

    fn poll_ways(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        let Self { a, b, forward, backward, plane, watch, limit, ending } = self;
        let (there, back) = loop {
            let (a, b) = (a.stream_mut(), b.stream_mut());
            let lender = Lender { plane, account: watch.account() };
            let there = forward.poll(cx, a, b, lender, &watch.a_to_b, limit);
            if let Poll::Ready(Err(end)) = there {
                return Poll::Ready(end);
            }
            if forward.guarded {
                return Poll::Pending;
            }
            backward.heed(forward.fate, lender);
            let back = backward.poll(cx, b, a, lender, &watch.b_to_a, limit);
            if let Poll::Ready(Err(end)) = back {
                return Poll::Ready(end);
            }
            // A direction that has just lost its sink is polled again; nothing else would wake it.
            if !forward.heed(backward.fate, lender) {
                break (there.is_ready(), back.is_ready());
            }
        };
        let a_gone = forward.fate.is_source_gone(backward.fate);
        let b_gone = backward.fate.is_source_gone(forward.fate);
        let (delivered, left) = match (a_gone, b_gone) {
            (false, false) if there && back => return Poll::Ready(Ended::Eof),
            (false, false) => return Poll::Pending,
            (true, false) => (there, &*b),
            (false, true) => (back, &*a),
            (true, true) => (false, &*a),
        };
        if delivered {
            let ending = ending.get_or_insert_with(|| Box::new(Ending::new(watch.idle_timeout())));
            ready!(ending.poll(cx, left));
        } else if !(a_gone && b_gone) {
            return Poll::Pending;
        }
        Poll::Ready(self.error().map_or(Ended::Eof, Ended::Error))
    }

    /// Returns whether a reader still waits for bytes.
    fn holds(&self) -> bool {
        self.forward.owes() || self.backward.owes() || self.ending.is_some()
    }

    fn error(&self) -> Option<io::ErrorKind> {
        self.forward.fate.error(self.backward.fate)
    }

    /// Checks whether both peers of a stream that stands still are present.
    fn find_vanished(&mut self) {
        let (a, b) = (self.a.delivery(), self.b.delivery());
        let lender = Lender { plane: &self.plane, account: self.watch.account() };
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
        self.watch.looked(a.is_open() || b.is_open());
    }

    /// A stream that is cut must not look complete to its reader: a leg is closed in order only if it has got
    /// everything.
    fn settle(&self, end: Ended) {
        let nothing = |way: &Way, sink: &Socket| !way.holds() && !sink.delivery().is_open();
        let in_order = match end {
            Ended::Error(_) => false,
            // Otherwise each leg was closed in order when the other one ended.
            Ended::Eof => self.forward.guarded,
            Ended::NotTls => true,
            Ended::Idle => nothing(&self.forward, &self.b) && nothing(&self.backward, &self.a),
        };
        if in_order {
            self.a.disarm();
            self.b.disarm();
        }
    }
}

impl Future for Relay {
    type Output = StreamOutcome;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<StreamOutcome> {
        let this = self.get_mut();
        let news = this.watch.news(cx);
        if news == StreamNews::Still {
            this.find_vanished();
        }
        if this.watch.is_pipe_wanted() {
            let lender = Lender { plane: &this.plane, account: this.watch.account() };
            this.forward.yield_pipe(lender);
            this.backward.yield_pipe(lender);
        }
        let end = match this.poll_ways(cx) {
            Poll::Ready(end) => end,
            // Bytes that moved just now were not seen when the stream was judged idle. They are too few, over too long
            // a time, to make a difference. An ending has its own bound.
            Poll::Pending if news == StreamNews::Idle && this.ending.is_none() => {
                this.error().map_or(Ended::Idle, Ended::Error)
            }
            Poll::Pending => {
                let has_pipe = this.forward.pipe.is_some() || this.backward.pipe.is_some();
                this.watch.set_holds(this.holds(), has_pipe);
                return Poll::Pending;
            }
        };
        this.settle(end);
        Poll::Ready(StreamOutcome {
            a_to_b: this.watch.a_to_b.load(Ordering::Relaxed),
            b_to_a: this.watch.b_to_a.load(Ordering::Relaxed),
            end,
        })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let lender = Lender { plane: &self.plane, account: self.watch.account() };
        self.forward.release(lender);
        self.backward.release(lender);
        self.plane.unwatch(&self.watch);
    }
}

impl Way {
    /// Returns `Ready(Ok)` when this direction is done; an error ends the whole stream.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        lender: Lender<'_>,
        written: &AtomicU64,
        limit: &mut Option<Box<RateLimit>>,
    ) -> Poll<Result<(), Ended>> {
        if self.state == WayState::Copy {
            match self.poll_bytes(cx, from, to, lender, written, limit) {
                Poll::Pending => {
                    if self.pipe.as_ref().is_some_and(|pipe| pipe.held() == 0) {
                        self.release(lender);
                    }
                    return Poll::Pending;
                }
                Poll::Ready(Err(CopyFailure::End(end))) => return Poll::Ready(Err(end)),
                Poll::Ready(Err(CopyFailure::Write(kind))) => {
                    self.fate.broken = Some(kind);
                    self.abandon(lender);
                }
                Poll::Ready(Err(CopyFailure::Read(kind))) => {
                    self.fate.failed = Some(kind);
                    self.done(lender);
                }
                Poll::Ready(Ok(())) => {
                    if self.fate.end() {
                        socket::finish(to, cx);
                    }
                    self.done(lender);
                }
            }
        }
        if self.state == WayState::Drop {
            ready!(self.poll_drop(cx, from, limit));
            self.done(lender);
        }
        Poll::Ready(Ok(()))
    }

    /// Returns whether bytes wait for the sink or for the guard.
    fn holds(&self) -> bool {
        self.pipe.is_some() || self.kept.is_some()
    }

    /// Returns whether bytes wait for the sink. Bytes that the guard has not passed may never go there.
    fn owes(&self) -> bool {
        self.holds() && !self.guarded
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
        self.kept = None;
        self.guarded = false;
        self.release(lender);
    }

    /// Reads and drops until the source ends.
    fn poll_drop(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        limit: &mut Option<Box<RateLimit>>,
    ) -> Poll<()> {
        for _ in 0..ROUNDS {
            let most = match limit {
                None => COPY,
                Some(limit) => ready!(limit.poll_allowed(cx)),
            };
            let n = with_buffer(|buffer| {
                let mut space = ReadBuf::new(&mut buffer[..COPY.min(most)]);
                ready!(Pin::new(&mut *from).poll_read(cx, &mut space))?;
                Poll::Ready(Ok::<_, io::Error>(space.filled().len()))
            });
            match ready!(n) {
                Ok(0) => return Poll::Ready(()),
                Ok(n) => {
                    if let Some(limit) = limit {
                        limit.take(n);
                    }
                }
                Err(error) => {
                    self.fate.failed = Some(error.kind());
                    return Poll::Ready(());
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_bytes(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        lender: Lender<'_>,
        written: &AtomicU64,
        limit: &mut Option<Box<RateLimit>>,
    ) -> Poll<Result<(), CopyFailure>> {
        let mut moved = 0;
        for _ in 0..ROUNDS {
            if self.guarded {
                if self.kept.is_some() && self.is_judged()? {
                    continue;
                }
            } else {
                ready!(self.poll_write_kept(cx, to, written))?;
                ready!(self.poll_drain(cx, to, lender, written))?;
            }
            // Check before anything is borrowed: the other direction may be why this task runs.
            match from.poll_read_ready(cx) {
                Poll::Ready(result) => result.map_err(read_failed)?,
                Poll::Pending => {
                    if moved > 0 && moved < PROBE {
                        self.busy = false;
                    }
                    return self.poll_lost();
                }
            }
            let most = match limit {
                None => usize::MAX,
                Some(limit) => ready!(limit.poll_allowed(cx)),
            };
            if self.busy && !self.guarded && self.pipe.is_none() {
                self.pipe = lender.plane.pool().take(lender.account);
            }
            let n = match &mut self.pipe {
                Some(pipe) => {
                    let from = &*from;
                    // Bytes beyond what the sink accepts would keep the pipe from others while the sink is slow. A
                    // little more than that tells the kernel that the sink's buffer is too small.
                    let most = most.min(tcp::room(&*to).unwrap_or(0).max(COPY));
                    match from.try_io(Interest::READABLE, || pipe.fill(from, most)) {
                        Ok(n) => n,
                        // Nothing was there after all: the next round registers to be woken.
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                        Err(error) if lender.plane.must_copy(&error) => {
                            self.release(lender);
                            continue;
                        }
                        Err(error) => return Poll::Ready(Err(read_failed(error))),
                    }
                }
                None => match self.poll_copy(cx, from, to, written, most) {
                    Poll::Ready(n) => n?,
                    Poll::Pending => return self.poll_lost(),
                },
            };
            if n == 0 {
                return match (self.guarded, self.kept.is_some()) {
                    (false, _) => Poll::Ready(Ok(())),
                    (true, true) => Poll::Ready(Err(CopyFailure::End(Ended::NotTls))),
                    (true, false) => Poll::Ready(Err(CopyFailure::End(Ended::Eof))),
                };
            }
            moved += n;
            if let Some(limit) = limit {
                limit.take(n);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Returns pending, or the error if the source is gone: nothing can be read.
    fn poll_lost(&self) -> Poll<Result<(), CopyFailure>> {
        match self.fate.lost {
            Some(kind) => Poll::Ready(Err(CopyFailure::Read(kind))),
            None => Poll::Pending,
        }
    }

    /// Reads once into the thread's buffer and writes what can be written now; keeps the rest.
    fn poll_copy(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        written: &AtomicU64,
        most: usize,
    ) -> Poll<Result<usize, CopyFailure>> {
        let size = if self.busy { COPY } else { PROBE };
        with_buffer(|buffer| {
            let mut space = ReadBuf::new(&mut buffer[..size.min(most)]);
            ready!(Pin::new(from).poll_read(cx, &mut space)).map_err(read_failed)?;
            let mut bytes = space.filled();
            let n = bytes.len();
            self.busy = n >= PROBE;
            if self.guarded {
                if n > 0 {
                    let kept = self.kept.get_or_insert_with(Box::default);
                    kept.bytes.extend_from_slice(bytes);
                }
                return Poll::Ready(Ok(n));
            }
            while !bytes.is_empty() {
                match Pin::new(&mut *to).poll_write(cx, bytes) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(no_bytes_taken())),
                    Poll::Ready(Ok(n)) => {
                        add(written, n);
                        bytes = &bytes[n..];
                    }
                    Poll::Ready(Err(error)) => {
                        return Poll::Ready(Err(CopyFailure::Write(error.kind())));
                    }
                    Poll::Pending => {
                        self.kept = Some(Box::new(KeptBytes { bytes: bytes.to_vec(), start: 0 }));
                        break;
                    }
                }
            }
            Poll::Ready(Ok(n))
        })
    }

    fn poll_write_kept(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut TcpStream,
        written: &AtomicU64,
    ) -> Poll<Result<(), CopyFailure>> {
        while let Some(kept) = &mut self.kept {
            let bytes = &kept.bytes[kept.start..];
            if bytes.is_empty() {
                self.kept = None;
                break;
            }
            let n = ready!(Pin::new(&mut *to).poll_write(cx, bytes))
                .map_err(|error| CopyFailure::Write(error.kind()))?;
            if n == 0 {
                return Poll::Ready(Err(no_bytes_taken()));
            }
            kept.start += n;
            add(written, n);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut TcpStream,
        lender: Lender<'_>,
        written: &AtomicU64,
    ) -> Poll<Result<(), CopyFailure>> {
        while let Some(pipe) = &mut self.pipe
            && pipe.held() > 0
        {
            let to = &mut *to;
            ready!(to.poll_write_ready(cx)).map_err(|error| CopyFailure::Write(error.kind()))?;
            match to.try_io(Interest::WRITABLE, || pipe.drain(&*to)) {
                Ok(0) => return Poll::Ready(Err(no_bytes_taken())),
                Ok(n) => add(written, n),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if lender.plane.must_copy(&error) && self.keep().is_ok() => {
                    self.release(lender);
                    return self.poll_write_kept(cx, to, written);
                }
                Err(error) => return Poll::Ready(Err(CopyFailure::Write(error.kind()))),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Returns whether the kept bytes begin with a ClientHello; if so, they may go.
    fn is_judged(&mut self) -> Result<bool, CopyFailure> {
        let kept = self.kept.as_ref().map_or(&[][..], |kept| &kept.bytes);
        match client_hello::check_client_hello(kept) {
            Guard::Pass => self.guarded = false,
            Guard::NeedMore => {}
            Guard::Refuse => return Err(CopyFailure::End(Ended::NotTls)),
        }
        Ok(!self.guarded)
    }

    fn release(&mut self, lender: Lender<'_>) {
        if let Some(pipe) = self.pipe.take() {
            lender.plane.pool().give_back(lender.account, pipe);
        }
    }

    /// Gives the pipe to others and keeps its bytes in memory. They are few, unless the sink accepted less than it
    /// said.
    fn yield_pipe(&mut self, lender: Lender<'_>) {
        if self.pipe.as_ref().is_some_and(|pipe| pipe.held() <= KEPT) {
            // If that fails, the bytes stay where they are.
            let _kept = self.keep();
            if self.pipe.as_ref().is_some_and(|pipe| pipe.held() == 0) {
                self.release(lender);
                self.busy = false;
            }
        }
    }

    /// Moves what is in the pipe to memory.
    fn keep(&mut self) -> io::Result<()> {
        let Some(pipe) = self.pipe.as_mut().filter(|pipe| pipe.held() > 0) else { return Ok(()) };
        let kept = self.kept.get_or_insert_with(Box::default);
        pipe.empty(&mut kept.bytes)
    }
}

/// Adds to a counter that only the relay writes, so no locked addition is needed.
fn add(written: &AtomicU64, n: usize) {
    written.store(written.load(Ordering::Relaxed) + n as u64, Ordering::Relaxed);
}

/// Lends the thread's buffer, of [`COPY`] bytes.
fn with_buffer<T>(run: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.is_empty() {
            *buffer = vec![0; COPY];
        }
        run(buffer)
    })
}

fn read_failed(error: io::Error) -> CopyFailure {
    CopyFailure::Read(error.kind())
}

fn no_bytes_taken() -> CopyFailure {
    CopyFailure::Write(io::ErrorKind::WriteZero)
}

#[cfg(test)]
#[path = "pair_tests.rs"]
mod tests;
