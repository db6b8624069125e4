//! Two legs, each copied into the other until both are done: the way for in-band bytestreams. Two sockets are joined by
//! [`super::plane::Plane::join`].

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, MissedTickBehavior, Sleep, interval_at},
};

use super::{
    bucket::Bucket,
    guard::{self, Guard},
    plane::{GRACE, now},
};

/// Bytes read at once, and kept at most, per direction.
pub(super) const BUFFER: usize = 32 * 1024;

/// How many looks at the counters make an idle time: it is exact to this part of itself.
const LOOKS: u32 = 4;

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

/// Copies both ways, through a buffer, until both legs have ended, one broke, or nothing moves.
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
    relay_at_rate(a, b, options, 0, &AtomicU64::new(0)).await
}

/// [`relay`], at so many bytes per second, both directions together; 0 is any number. `progress` is how many bytes have
/// moved so far.
pub(super) async fn relay_at_rate<A, B>(
    a: A,
    b: B,
    options: Options,
    bytes_per_second: u64,
    progress: &AtomicU64,
) -> Outcome
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let start = Instant::now();
    let step = (options.idle_timeout / LOOKS).clamp(Duration::from_millis(1), GRACE);
    let mut looks = interval_at(start + step, step);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);

    let limit = (bytes_per_second > 0).then(|| Limit::new(bytes_per_second));
    let (forward, backward) = (Direction::new(options.guard), Direction::new(false));
    let mut pipe = Pipe { a, b, forward, backward, limit };
    let (mut moved, mut moved_at) = (0, start);
    let end = poll_fn(|cx| {
        loop {
            if let Poll::Ready(end) = pipe.poll_copy(cx) {
                return Poll::Ready(end);
            }
            progress.store(pipe.moved(), Ordering::Relaxed);
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

struct Pipe<A, B> {
    a: A,
    b: B,
    forward: Direction,
    backward: Direction,
    limit: Option<Limit>,
}

/// The rate of a stream, for both directions, and the sleep until some more may pass.
#[derive(Debug)]
pub(super) struct Limit {
    bucket: Bucket,
    sleep: Pin<Box<Sleep>>,
}

impl Limit {
    /// So many bytes per second, from now on.
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self {
            bucket: Bucket::new(bytes_per_second, now()),
            sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
        }
    }

    /// How many bytes may pass now; not 0.
    pub(super) fn poll_allowed(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        loop {
            match self.bucket.available(now()) {
                Ok(most) => return Poll::Ready(most),
                Err(at) => {
                    self.sleep.as_mut().reset(at.into());
                    ready!(self.sleep.as_mut().poll(cx));
                }
            }
        }
    }

    /// Notes that so many passed.
    pub(super) fn take(&mut self, bytes: usize) {
        self.bucket.take(bytes);
    }
}

impl<A, B> Pipe<A, B>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    fn poll_copy(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        let forward = self.forward.poll_copy(cx, &mut self.a, &mut self.b, &mut self.limit);
        if let Poll::Ready(Err(end)) = forward {
            return Poll::Ready(end);
        }
        if self.forward.guarded {
            return Poll::Pending;
        }
        let backward = self.backward.poll_copy(cx, &mut self.b, &mut self.a, &mut self.limit);
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
        limit: &mut Option<Limit>,
    ) -> Poll<Result<(), Ended>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let result = match self.state {
            State::Done => return Poll::Ready(Ok(())),
            State::Copy => ready!(self.poll_bytes(cx, r, w, limit)),
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
        limit: &mut Option<Limit>,
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
            let n = match self.poll_fill(cx, r, limit) {
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
        limit: &mut Option<Limit>,
    ) -> Poll<Result<usize, Failure>> {
        let most = match limit {
            Some(limit) => ready!(limit.poll_allowed(cx)),
            None => BUFFER,
        };
        self.buffer.resize(BUFFER, 0);
        let end = self.end.saturating_add(most).min(BUFFER);
        let mut space = ReadBuf::new(&mut self.buffer[self.end..end]);
        ready!(Pin::new(r).poll_read(cx, &mut space))
            .map_err(|error| Failure::End(Ended::Error(error.kind())))?;
        let n = space.filled().len();
        self.end += n;
        self.read += n as u64;
        if let Some(limit) = limit {
            limit.take(n);
        }
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
