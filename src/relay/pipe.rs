//! Copies two legs into each other until both are done. In-band bytestreams use this; [`super::join`] joins two
//! sockets.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use fingerpost_carry::leg_end::{Delivery, LegEnd};
use fingerpost_wire::{
    client_hello::{Guard, check_client_hello},
    path_use::check_path_use,
};
use tokio::{
    io::ReadBuf,
    time::{Instant, MissedTickBehavior, Sleep, interval_at},
};

pub use super::splice::PipeAccount;
use super::{
    byte_rate::ByteRate,
    clock::now,
    ending::{AwaitedEnding, GRACE, WayFate},
    watch::{STILL, StreamProgress},
};

/// Bytes that are read at once, and kept at most, per direction.
pub(super) const BUFFER: usize = 32 * 1024;

thread_local! {
    /// Takes what is read when a direction has no buffer, so that none is made before something comes. Its content is
    /// of no use after one read.
    static SPACE: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER]);
}

/// The number of checks of the counters in one idle time, which is exact to this part.
const LOOKS: u32 = 4;

/// How a pipe is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// How long neither direction may move a byte. It is exact to a quarter, because no timer runs per byte.
    pub idle_timeout: Duration,
    /// What the first leg must start with, if it matters.
    pub guard: Option<FirstBytes>,
    /// The account of the stream, for its share of the kernel's pipes.
    pub account: PipeAccount,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(600),
            guard: None,
            account: PipeAccount::default(),
        }
    }
}

/// What the bytes of a brokered session start with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstBytes {
    /// A TLS ClientHello.
    ClientHello,
    /// A record of the path layer that says that TLS goes on here.
    PathUse,
}

impl FirstBytes {
    /// Judges the bytes that have come so far.
    pub(super) fn judge(self, first: &[u8]) -> Guard {
        match self {
            Self::ClientHello => check_client_hello(first),
            Self::PathUse => check_path_use(first),
        }
    }
}

/// What a pipe moved, and why it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamOutcome {
    /// Bytes from the first leg written to the second.
    pub a_to_b: u64,
    /// Bytes from the second leg written to the first.
    pub b_to_a: u64,
    /// Why it ended.
    pub end: Ended,
}

/// Why a pipe ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ended {
    /// Both legs ended in order.
    Eof,
    /// A leg broke.
    Error(io::ErrorKind),
    /// No byte moved for the idle time.
    Idle,
    /// The initiator's first bytes are not a ClientHello; nothing was passed on in either direction.
    NotTls,
}

/// Runs [`relay_at_rate`] without a limit.
#[cfg(test)]
pub(super) async fn relay<A: LegEnd, B: LegEnd>(
    a: A,
    b: B,
    options: StreamOptions,
) -> StreamOutcome {
    relay_at_rate(a, b, options, 0, StreamProgress::default()).await
}

/// Copies both ways, through a buffer, until both legs have ended, one broke, or nothing moves. The rate is in bytes
/// per second for both directions together; 0 is unlimited. `progress` shows how far it is.
///
/// The end of one leg reaches the other (its write half is shut down) after the last byte, and the other direction
/// continues. At most 32 KiB per direction are kept; a slow reader slows the writer. If a leg breaks, the other one
/// gets what the broken one had sent, and then its end ([`super::ending`]). The legs are dropped at the end.
///
/// # Cancel safety
/// Dropping the future loses what is in its buffers, so do that only to end both legs.
pub(super) fn relay_at_rate<A: LegEnd, B: LegEnd>(
    a: A,
    b: B,
    options: StreamOptions,
    bytes_per_second: u64,
    progress: impl AsRef<StreamProgress>,
) -> impl Future<Output = StreamOutcome> {
    let start = Instant::now();
    let step = (options.idle_timeout / LOOKS).clamp(Duration::from_millis(1), GRACE);
    let mut looks = interval_at(start + step, step);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);

    let limit = (bytes_per_second > 0).then(|| Box::new(RateLimit::new(bytes_per_second)));
    let (forward, backward) = (CopyDirection::new(options.guard), CopyDirection::new(None));
    let mut pipe = CopiedPair { a, b, forward, backward, limit, ending: None, options };
    let (mut moved, mut moved_at) = (0, start);
    let mut poll_end = move |pipe: &mut CopiedPair<A, B>, cx: &mut Context<'_>| {
        loop {
            if let Poll::Ready(end) = pipe.poll_copy(cx) {
                return Poll::Ready(end);
            }
            progress.as_ref().note([pipe.forward.written, pipe.backward.written], pipe.holds());
            let now = ready!(looks.poll_tick(cx));
            if moved != pipe.moved() {
                (moved, moved_at) = (pipe.moved(), now);
                continue;
            }
            // An ending has its own bound.
            if now >= moved_at + options.idle_timeout && pipe.ending.is_none() {
                return Poll::Ready(pipe.error().map_or(Ended::Idle, Ended::Error));
            }
            if now >= moved_at + STILL {
                pipe.find_vanished();
            }
            pipe.forward.forget_buffer();
            pipe.backward.forget_buffer();
        }
    };
    // An async block would have room for the pair twice: where it comes from, and where it lives.
    poll_fn(move |cx| {
        let end = ready!(poll_end(&mut pipe, cx));
        pipe.settle(end);
        let (a_to_b, b_to_a) = (pipe.forward.written, pipe.backward.written);
        Poll::Ready(StreamOutcome { a_to_b, b_to_a, end })
    })
}

struct CopiedPair<A, B> {
    a: A,
    b: B,
    forward: CopyDirection,
    backward: CopyDirection,
    limit: Option<Box<RateLimit>>,
    ending: Option<Box<AwaitedEnding>>,
    options: StreamOptions,
}

/// The rate of a stream for both directions, and the sleep until more may pass.
#[derive(Debug)]
pub(super) struct RateLimit {
    rate: ByteRate,
    sleep: Pin<Box<Sleep>>,
}

impl RateLimit {
    /// Creates a limit of so many bytes per second.
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self {
            rate: ByteRate::new(bytes_per_second, now()),
            sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
        }
    }

    /// Returns how many bytes may pass now; not 0.
    pub(super) fn poll_allowed(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        loop {
            match self.rate.available(now()) {
                Ok(most) => return Poll::Ready(most),
                Err(at) => {
                    self.sleep.as_mut().reset(at.into());
                    ready!(self.sleep.as_mut().poll(cx));
                }
            }
        }
    }

    /// Notes that so many bytes have passed.
    pub(super) fn take(&mut self, bytes: usize) {
        self.rate.take(bytes);
    }
}

impl<A: LegEnd, B: LegEnd> CopiedPair<A, B> {
    fn poll_copy(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        let Self { a, b, forward, backward, limit, ending, options } = self;
        let (there, back) = loop {
            let there = forward.poll_copy(cx, a, b, limit);
            if let Poll::Ready(Err(end)) = there {
                return Poll::Ready(end);
            }
            if forward.guard.is_some() {
                return Poll::Pending;
            }
            backward.heed(forward.fate);
            let back = backward.poll_copy(cx, b, a, limit);
            if let Poll::Ready(Err(end)) = back {
                return Poll::Ready(end);
            }
            // A direction that has just lost its sink is polled again; nothing else would wake it.
            if !forward.heed(backward.fate) {
                break (there.is_ready(), back.is_ready());
            }
        };
        let a_gone = forward.fate.is_source_gone(backward.fate);
        let b_gone = backward.fate.is_source_gone(forward.fate);
        if !a_gone && !b_gone {
            if there && back {
                return Poll::Ready(Ended::Eof);
            }
            // A leg that has closed both directions no longer reads: close the other one once it has everything.
            let a_closed = there && !a.takes_more();
            let b_closed = back && !b.takes_more();
            if !a_closed && !b_closed {
                return Poll::Pending;
            }
            let unread = if a_closed { backward } else { forward };
            if unread.state != DirectionState::Drop {
                unread.abandon();
                cx.waker().wake_by_ref();
            }
            let ending =
                ending.get_or_insert_with(|| Box::new(AwaitedEnding::new(options.idle_timeout)));
            ready!(if a_closed { ending.poll(cx, b) } else { ending.poll(cx, a) });
            return Poll::Ready(Ended::Eof);
        }
        if !(a_gone && b_gone) {
            if !(if a_gone { there } else { back }) {
                return Poll::Pending;
            }
            let ending =
                ending.get_or_insert_with(|| Box::new(AwaitedEnding::new(options.idle_timeout)));
            ready!(if a_gone { ending.poll(cx, b) } else { ending.poll(cx, a) });
        }
        Poll::Ready(self.error().map_or(Ended::Eof, Ended::Error))
    }

    /// Returns a number that changes whenever a byte was written, or read to be written.
    fn moved(&self) -> u64 {
        let sum = |d: &CopyDirection| d.read.wrapping_add(d.written);
        sum(&self.forward).wrapping_add(sum(&self.backward))
    }

    /// Returns whether a reader still waits for bytes. Bytes that the guard has not passed may never go there.
    fn holds(&self) -> bool {
        let holds = |d: &CopyDirection| {
            d.end > d.start && d.guard.is_none() || d.state == DirectionState::Shutdown
        };
        holds(&self.forward) || holds(&self.backward) || self.ending.is_some()
    }

    fn error(&self) -> Option<io::ErrorKind> {
        self.forward.fate.error(self.backward.fate)
    }

    /// Checks whether the peers of a stream that stands still are present.
    fn find_vanished(&mut self) {
        let kind = io::ErrorKind::TimedOut;
        if self.a.delivery().is_gone() {
            self.forward.fate.lost.get_or_insert(kind);
            self.backward.fate.broken.get_or_insert(kind);
            self.backward.abandon();
        }
        if self.b.delivery().is_gone() {
            self.backward.fate.lost.get_or_insert(kind);
            self.forward.fate.broken.get_or_insert(kind);
            self.forward.abandon();
        }
    }

    /// A stream that is cut must not look complete to its reader: a leg is closed in order only if it has got
    /// everything.
    fn settle(&self, end: Ended) {
        let nothing = |d: &CopyDirection, open: bool| d.end == 0 && !open;
        let in_order = match end {
            Ended::Error(_) => false,
            Ended::Eof | Ended::NotTls => true,
            Ended::Idle => {
                nothing(&self.forward, self.b.delivery().is_open())
                    && nothing(&self.backward, self.a.delivery().is_open())
            }
        };
        if in_order {
            self.a.disarm();
            self.b.disarm();
        }
    }
}

struct CopyDirection {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    read: u64,
    written: u64,
    /// What the first bytes must be, while they are not judged.
    guard: Option<FirstBytes>,
    unflushed: bool,
    state: DirectionState,
    fate: WayFate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DirectionState {
    Copy,
    Shutdown,
    /// The sink is gone: bytes that arrive are dropped.
    Drop,
    Done,
}

impl CopyDirection {
    fn new(guard: Option<FirstBytes>) -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            end: 0,
            read: 0,
            written: 0,
            guard,
            unflushed: false,
            state: DirectionState::Copy,
            fate: WayFate::default(),
        }
    }

    /// Returns `Ready(Ok)` when this direction is done; an error ends the whole pipe.
    fn poll_copy(
        &mut self,
        cx: &mut Context<'_>,
        r: &mut impl LegEnd,
        w: &mut impl LegEnd,
        limit: &mut Option<Box<RateLimit>>,
    ) -> Poll<Result<(), Ended>> {
        if self.state == DirectionState::Copy {
            match ready!(self.poll_bytes(cx, r, w, limit)) {
                Err(CopyFailure::End(end)) => return Poll::Ready(Err(end)),
                Err(CopyFailure::Write(kind)) => {
                    self.fate.broken = Some(kind);
                    self.abandon();
                }
                Err(CopyFailure::Read(kind)) => {
                    self.fate.failed = Some(kind);
                    self.guard = None;
                    self.state = DirectionState::Shutdown;
                }
                Ok(()) => {
                    self.fate.end();
                    self.state = DirectionState::Shutdown;
                }
            }
        }
        if self.state == DirectionState::Shutdown {
            // A leg that can be reset counts as done once it has everything; another leg only after a shutdown.
            if self.fate.failed.is_none() || matches!(w.delivery(), Delivery::ByShutdown) {
                // A leg that is gone needs no shutdown.
                let _ = ready!(Pin::new(w).poll_shutdown(cx));
            }
            self.state = DirectionState::Done;
        }
        if self.state == DirectionState::Drop {
            ready!(self.poll_drop(cx, r, limit));
            self.state = DirectionState::Done;
        }
        self.buffer = Vec::new();
        Poll::Ready(Ok(()))
    }

    /// Takes over what the opposite direction knows; returns whether this one has just lost its sink.
    fn heed(&mut self, opposite: WayFate) -> bool {
        let lost = self.fate.heed(opposite) && self.state == DirectionState::Copy;
        if lost {
            self.abandon();
        }
        lost
    }

    /// Only empties this direction's source from now on.
    fn abandon(&mut self) {
        if matches!(self.state, DirectionState::Copy | DirectionState::Shutdown) {
            self.state = DirectionState::Drop;
            self.guard = None;
            (self.start, self.end) = (0, 0);
        }
    }

    /// Reads and drops until the source ends.
    fn poll_drop(
        &mut self,
        cx: &mut Context<'_>,
        r: &mut impl LegEnd,
        limit: &mut Option<Box<RateLimit>>,
    ) -> Poll<()> {
        for _ in 0..16 {
            let read = self.read;
            let n = match ready!(self.poll_fill(cx, r, limit)) {
                Ok(n) => n,
                Err(kind) => {
                    self.fate.failed = Some(kind);
                    return Poll::Ready(());
                }
            };
            // Dropped bytes do not keep the stream from being idle.
            (self.end, self.read) = (0, read);
            if n == 0 {
                return Poll::Ready(());
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_bytes(
        &mut self,
        cx: &mut Context<'_>,
        r: &mut impl LegEnd,
        w: &mut impl LegEnd,
        limit: &mut Option<Box<RateLimit>>,
    ) -> Poll<Result<(), CopyFailure>> {
        let written = |error: io::Error| CopyFailure::Write(error.kind());
        // One busy direction must starve neither the other nor the clock.
        for _ in 0..16 {
            while self.guard.is_none() && self.start < self.end {
                let bytes = &self.buffer[self.start..self.end];
                let n = ready!(Pin::new(&mut *w).poll_write(cx, bytes)).map_err(written)?;
                if n == 0 {
                    return Poll::Ready(Err(CopyFailure::Write(io::ErrorKind::WriteZero)));
                }
                self.start += n;
                self.written += n as u64;
                self.unflushed = true;
            }
            if self.guard.is_none() {
                (self.start, self.end) = (0, 0);
            }
            let n = match self.poll_fill(cx, r, limit) {
                Poll::Ready(n) => n.map_err(CopyFailure::Read)?,
                Poll::Pending => {
                    if self.unflushed {
                        ready!(Pin::new(&mut *w).poll_flush(cx)).map_err(written)?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            };
            if let Some(guard) = self.guard {
                match guard.judge(&self.buffer[..self.end]) {
                    Guard::Pass => self.guard = None,
                    Guard::NeedMore if n > 0 => {}
                    Guard::NeedMore if self.end == 0 => {
                        return Poll::Ready(Err(CopyFailure::End(Ended::Eof)));
                    }
                    Guard::NeedMore | Guard::Refuse => {
                        return Poll::Ready(Err(CopyFailure::End(Ended::NotTls)));
                    }
                }
            }
            if n == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Frees the buffer, so that a silent direction holds no memory.
    fn forget_buffer(&mut self) {
        if self.end == 0 {
            self.buffer = Vec::new();
        }
    }

    /// Reads once, behind the kept bytes, and returns how many: 0 at the end.
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        r: &mut impl LegEnd,
        limit: &mut Option<Box<RateLimit>>,
    ) -> Poll<Result<usize, io::ErrorKind>> {
        let most = match limit {
            Some(limit) => ready!(limit.poll_allowed(cx)),
            None => BUFFER,
        };
        let Self { buffer, end, .. } = self;
        let mut read = |bytes: &mut [u8]| {
            let mut space = ReadBuf::new(bytes);
            ready!(Pin::new(&mut *r).poll_read(cx, &mut space)).map_err(|error| error.kind())?;
            Poll::Ready(Ok(space.filled().len()))
        };
        let read = if buffer.is_empty() {
            SPACE.with_borrow_mut(|space| {
                let read = read(&mut space[..most.min(BUFFER)]);
                if let Poll::Ready(Ok(n @ 1..)) = read {
                    buffer.resize(BUFFER, 0);
                    buffer[..n].copy_from_slice(&space[..n]);
                }
                read
            })
        } else {
            let most = end.saturating_add(most).min(BUFFER);
            read(&mut buffer[*end..most])
        };
        let n = match (read, self.fate.lost) {
            (Poll::Ready(read), _) => read?,
            // The source is gone, so nothing more comes.
            (Poll::Pending, Some(kind)) => return Poll::Ready(Err(kind)),
            (Poll::Pending, None) => return Poll::Pending,
        };
        self.end += n;
        // A peer that sends its first bytes one by one must not appear to stand still.
        if self.guard.is_none() {
            self.read += n as u64;
        }
        if let Some(limit) = limit {
            limit.take(n);
        }
        Poll::Ready(Ok(n))
    }
}

/// Why a direction stops copying.
pub(super) enum CopyFailure {
    /// The stream ends.
    End(Ended),
    /// The source is gone.
    Read(io::ErrorKind),
    /// The sink accepts nothing more.
    Write(io::ErrorKind),
}

#[cfg(test)]
#[path = "pipe_tests.rs"]
mod tests;
