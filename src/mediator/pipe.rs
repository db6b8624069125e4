//! Two legs, each copied into the other until both are done.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, MissedTickBehavior, interval_at},
};

use super::guard::{self, Guard};

/// Bytes read at once, and kept at most, per direction.
const BUFFER: usize = 32 * 1024;

/// How many looks at the counters make an idle time: it is exact to this part of itself.
const LOOKS: u32 = 4;

/// How long the other direction may stand still after one has broken; also the longest pause between looks.
const GRACE: Duration = Duration::from_secs(5);

/// How a pipe is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How long neither direction may move a byte; exact to a quarter, for no timer runs per byte.
    pub idle_timeout: Duration,
    /// Whether the first leg must start with a TLS ClientHello.
    pub guard: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { idle_timeout: Duration::from_secs(600), guard: false }
    }
}

/// What went through a pipe, and why it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
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
    /// Both legs said they were done.
    Eof,
    /// A leg broke.
    Error(io::ErrorKind),
    /// No byte moved for the idle time.
    Idle,
    /// The initiator's first bytes are no ClientHello; nothing was passed on, in either direction.
    NotTls,
}

/// Copies both ways until both legs have ended, one broke, or nothing moves.
///
/// The end of one leg is carried to the other (its write half is shut down) after the last byte, and the other
/// direction goes on. At most 32 KiB per direction are kept; a slow reader slows the writer. If writing to a leg
/// fails, what that leg had sent is still passed on. The legs are dropped at the end; pass `&mut` to keep them.
///
/// # Cancel safety
/// Dropping the future loses what is in its buffers, so it is only for ending both legs.
pub async fn relay<A, B>(a: A, b: B, options: Options) -> Outcome
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let start = Instant::now();
    let step = (options.idle_timeout / LOOKS).clamp(Duration::from_millis(1), GRACE);
    let mut looks = interval_at(start + step, step);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);

    let mut pipe =
        Pipe { a, b, forward: Direction::new(options.guard), backward: Direction::new(false) };
    let (mut moved, mut moved_at) = (0, start);
    let end = poll_fn(|cx| {
        loop {
            if let Poll::Ready(end) = pipe.poll_copy(cx) {
                return Poll::Ready(end);
            }
            let now = ready!(looks.poll_tick(cx));
            if moved != pipe.moved() {
                (moved, moved_at) = (pipe.moved(), now);
            } else if let Some(kind) = pipe.broken()
                && now >= moved_at + step
            {
                return Poll::Ready(Ended::Error(kind));
            } else if now >= moved_at + options.idle_timeout {
                return Poll::Ready(Ended::Idle);
            } else {
                pipe.forward.forget_buffer();
                pipe.backward.forget_buffer();
            }
        }
    })
    .await;
    Outcome { a_to_b: pipe.forward.written, b_to_a: pipe.backward.written, end }
}

/// [`relay`] for a brokered session: before a byte passes, in either direction, the initiator's first bytes must
/// turn out to be a TLS ClientHello; else it ends with [`Ended::NotTls`]. `options.guard` does not matter.
pub async fn relay_guarded<A, B>(initiator: A, responder: B, options: Options) -> Outcome
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    relay(initiator, responder, Options { guard: true, ..options }).await
}

struct Pipe<A, B> {
    a: A,
    b: B,
    forward: Direction,
    backward: Direction,
}

impl<A, B> Pipe<A, B>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    fn poll_copy(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        let forward = self.forward.poll_copy(cx, &mut self.a, &mut self.b);
        if let Poll::Ready(Err(end)) = forward {
            return Poll::Ready(end);
        }
        if self.forward.guarded {
            return Poll::Pending;
        }
        let backward = self.backward.poll_copy(cx, &mut self.b, &mut self.a);
        if let Poll::Ready(Err(end)) = backward {
            return Poll::Ready(end);
        }
        if forward.is_pending() || backward.is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(self.broken().map_or(Ended::Eof, Ended::Error))
    }

    /// A number that changes whenever a byte was read or written.
    fn moved(&self) -> u64 {
        let sum = |d: &Direction| d.read.wrapping_add(d.written);
        sum(&self.forward).wrapping_add(sum(&self.backward))
    }

    fn broken(&self) -> Option<io::ErrorKind> {
        self.forward.broken.or(self.backward.broken)
    }
}

struct Direction {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    read: u64,
    written: u64,
    /// The first bytes are not judged yet.
    guarded: bool,
    unflushed: bool,
    state: State,
    /// Writing failed, so nothing more is read.
    broken: Option<io::ErrorKind>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Copy,
    Shutdown,
    Done,
}

impl Direction {
    fn new(guarded: bool) -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            end: 0,
            read: 0,
            written: 0,
            guarded,
            unflushed: false,
            state: State::Copy,
            broken: None,
        }
    }

    /// `Ready(Ok)` when this direction is done; an error ends the whole pipe.
    fn poll_copy<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        r: &mut R,
        w: &mut W,
    ) -> Poll<Result<(), Ended>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let result = match self.state {
            State::Done => return Poll::Ready(Ok(())),
            State::Copy => ready!(self.poll_bytes(cx, r, w)),
            State::Shutdown => Ok(()),
        };
        match result {
            Err(Failure::End(end)) => return Poll::Ready(Err(end)),
            Err(Failure::Write(kind)) => self.broken = Some(kind),
            Ok(()) => {
                self.state = State::Shutdown;
                // A leg that is gone already needs no goodbye.
                let _ = ready!(Pin::new(w).poll_shutdown(cx));
            }
        }
        self.state = State::Done;
        self.buffer = Vec::new();
        Poll::Ready(Ok(()))
    }

    fn poll_bytes<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        r: &mut R,
        w: &mut W,
    ) -> Poll<Result<(), Failure>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let written = |error: io::Error| Failure::Write(error.kind());
        // So that one busy direction starves neither the other nor the clock.
        for _ in 0..16 {
            while !self.guarded && self.start < self.end {
                let bytes = &self.buffer[self.start..self.end];
                let n = ready!(Pin::new(&mut *w).poll_write(cx, bytes)).map_err(written)?;
                if n == 0 {
                    return Poll::Ready(Err(Failure::Write(io::ErrorKind::WriteZero)));
                }
                self.start += n;
                self.written += n as u64;
                self.unflushed = true;
            }
            if !self.guarded {
                (self.start, self.end) = (0, 0);
            }
            let n = match self.poll_fill(cx, r) {
                Poll::Ready(n) => n?,
                Poll::Pending => {
                    if self.unflushed {
                        ready!(Pin::new(&mut *w).poll_flush(cx)).map_err(written)?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            };
            if self.guarded {
                match guard::check_client_hello(&self.buffer[..self.end]) {
                    Guard::Pass => self.guarded = false,
                    Guard::NeedMore if n > 0 => {}
                    Guard::NeedMore if self.end == 0 => {
                        return Poll::Ready(Err(Failure::End(Ended::Eof)));
                    }
                    Guard::NeedMore | Guard::Refuse => {
                        return Poll::Ready(Err(Failure::End(Ended::NotTls)));
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

    /// A silent direction holds no memory.
    fn forget_buffer(&mut self) {
        if self.end == 0 {
            self.buffer = Vec::new();
        }
    }

    /// Reads once, behind what is kept, and says how much: 0 at the end.
    fn poll_fill<R: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        r: &mut R,
    ) -> Poll<Result<usize, Failure>> {
        self.buffer.resize(BUFFER, 0);
        let mut space = ReadBuf::new(&mut self.buffer[self.end..]);
        ready!(Pin::new(r).poll_read(cx, &mut space))
            .map_err(|error| Failure::End(Ended::Error(error.kind())))?;
        let n = space.filled().len();
        self.end += n;
        self.read += n as u64;
        Poll::Ready(Ok(n))
    }
}

enum Failure {
    /// The pipe ends.
    End(Ended),
    /// This direction ends.
    Write(io::ErrorKind),
}

#[cfg(test)]
#[path = "pipe_tests.rs"]
mod tests;
