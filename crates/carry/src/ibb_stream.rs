//! An in-band bytestream as a tokio stream: the shell of [`IbbMachine`], which writes and takes whole stanzas.
//!
//! Two halves share the machine. The session reads and writes [`IbbStream`]. The router gives the peer's stanzas to
//! [`IbbHandle`], which never blocks. QueuedStanza stanzas go into one bounded queue. While it is full, writers wait, and
//! answers stay in the machine, which bounds them.

use std::{
    fmt, io, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use fingerpost_wire::{
    ibb::{CLOSING, IbbError, IbbMachine, MAX_ROOM, Options},
    ibb_xml::IbbStanza,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc::{Permit, error::TrySendError},
    time::Sleep,
};
use tokio_util::sync::PollSender;

use super::{
    ibb_handle::{IbbHandle, Link, now},
    ibb_memory::IbbMemory,
    ibb_params::IbbParams,
    outbound::{Outbound, QueuedStanza},
};

/// The session's half: bytes. Dropping it closes the stream at once.
///
/// A shutdown returns when every byte is acknowledged. `<close/>` follows when nothing more comes from the peer and the
/// stream is still read. Reading ends after the last byte that the peer sent before its end.
pub struct IbbStream {
    link: Arc<Link>,
    /// The wait for room in the queue, while the queue is full. One place serves both answers and blocks; otherwise an
    /// answer could wait for a block's place.
    room: Option<Box<PollSender<QueuedStanza>>>,
    /// Whether a writer waits for the room.
    writing: bool,
    /// Whether the task that drives the machine waits for the room, perhaps in place of the writer.
    driving: bool,
    timer: Option<Pin<Box<Sleep>>>,
}

impl IbbStream {
    /// Creates both halves of a stream that may hold as much as any window of its peer. Stanzas to the peer go into
    /// `outbound`.
    pub fn new(params: IbbParams, outbound: Outbound) -> (Self, IbbHandle) {
        Self::with(params, outbound, None)
    }

    /// Creates both halves of a stream that shares memory with others.
    pub fn sharing(params: IbbParams, outbound: Outbound, memory: IbbMemory) -> (Self, IbbHandle) {
        Self::with(params, outbound, Some(memory))
    }

    fn with(params: IbbParams, outbound: Outbound, memory: Option<IbbMemory>) -> (Self, IbbHandle) {
        let options = Options {
            room: memory.as_ref().map_or(MAX_ROOM, IbbMemory::room),
            is_scarce: memory.is_some(),
            block_size: params.block_size.max(1),
            window: params.window.max(1),
            acknowledged: params.stanza == IbbStanza::Iq,
            silence_timeout: params.silence_timeout,
            close_linger: params.close_linger,
            opened: params.opened,
        };
        let mut machine = IbbMachine::new(options, now());
        if let Some(memory) = &memory {
            machine.set_memory(memory.for_sending());
        }
        let link = Link::new(params, machine, memory, outbound);
        let handle = IbbHandle::new(Arc::clone(&link));
        (Self { link, room: None, writing: false, driving: false, timer: None }, handle)
    }

    /// Returns the count of bytes that the peer has acknowledged.
    pub fn delivered(&self) -> u64 {
        self.link.lock().machine.delivered()
    }

    /// Returns whether writing is still possible, now or later.
    pub(super) fn is_writable(&self) -> bool {
        self.link.lock().machine.is_writable()
    }

    /// Does what is due, and sends what the machine has to send.
    fn poll_drive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = self.link.lock();
        while let Some(deadline) = shared.machine.deadline().map(tokio::time::Instant::from_std) {
            let timer =
                self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            // A deadline that has moved is noticed when the timer fires, which is cheaper than a reset for each answer.
            if timer.deadline() > deadline || timer.is_elapsed() {
                timer.as_mut().reset(deadline);
            }
            if timer.as_mut().poll(cx).is_pending() {
                break;
            }
            shared.machine.handle_deadline(now());
            shared.give_back();
            shared.wake(cx);
        }
        shared.tell();
        self.link.send_now(&mut shared);
        while shared.machine.has_actions() {
            self.driving = true;
            let place = ready!(poll_place(&mut self.room, &self.link.outbound, cx))?;
            if let Some(stanza) = self.link.next_stanza(&mut shared) {
                place.send(stanza)?;
            }
        }
        if mem::take(&mut self.driving) {
            shared.wake(cx);
        }
        if !self.writing {
            self.room = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for IbbStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Answers that wait for room do not stop reading.
        let driven = this.poll_drive(cx);
        let mut shared = this.link.lock();
        let n = shared.machine.chunk().len().min(buf.remaining());
        if n > 0 {
            buf.put_slice(&shared.machine.chunk()[..n]);
            shared.machine.consume(n);
            shared.give_back();
            this.link.send_now(&mut shared);
            let left = shared.machine.has_actions();
            drop(shared);
            if left {
                let _ = this.poll_drive(cx);
            }
            return Poll::Ready(Ok(()));
        }
        match shared.machine.end() {
            Some(end) => return Poll::Ready(end.map_err(broken)),
            None if buf.remaining() == 0 => return Poll::Ready(Ok(())),
            None => {}
        }
        if let Poll::Ready(Err(error)) = driven {
            return Poll::Ready(Err(error));
        }
        if this.link.outbound.is_closed() {
            return Poll::Ready(Err(gone()));
        }
        shared.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for IbbStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.link.lock().writer = Some(cx.waker().clone());
        ready!(this.poll_drive(cx))?;
        let mut shared = this.link.lock();
        if !shared.machine.is_writable() {
            this.writing = false;
            let error = shared.machine.end().and_then(Result::err).map_or_else(gone, broken);
            return Poll::Ready(Err(error));
        }
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        loop {
            shared.use_memory();
            if !shared.machine.has_window() {
                return Poll::Pending;
            }
            this.writing = true;
            let place = ready!(poll_place(&mut this.room, &this.link.outbound, cx))?;
            this.writing = false;
            let n = shared.machine.write(buf, now());
            if let Some(stanza) = this.link.next_stanza(&mut shared) {
                place.send(stanza)?;
            }
            if n > 0 {
                return Poll::Ready(Ok(n));
            }
        }
    }

    /// Returns when nothing waits for the rest of its block any more. What has been sent may still be on its way.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.writing = false;
        let mut shared = this.link.lock();
        shared.use_memory();
        let is_flushed = shared.machine.flush(now());
        shared.writer = Some(cx.waker().clone());
        drop(shared);
        ready!(this.poll_drive(cx))?;
        if is_flushed { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.writing = false;
        let mut shared = this.link.lock();
        if shared.machine.shutdown(now()) {
            // From now on a reader on another task watches the timer of the close.
            shared.wake(cx);
        }
        shared.writer = Some(cx.waker().clone());
        drop(shared);
        ready!(this.poll_drive(cx))?;
        let shared = this.link.lock();
        match shared.machine.end() {
            Some(Err(error)) => Poll::Ready(Err(broken(error))),
            _ if shared.machine.is_flushed() => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    }
}

impl Drop for IbbStream {
    fn drop(&mut self) {
        let mut shared = self.link.lock();
        shared.machine.abort(now());
        shared.release();
        // Nothing is left to a reader any more.
        shared.reader = None;
        self.link.send_now(&mut shared);
        if !shared.machine.has_actions() || self.link.outbound.is_closed() {
            return;
        }
        let link = Arc::clone(&self.link);
        let last_words = async move {
            while let Ok(permit) = link.outbound.reserve().await {
                let Some(stanza) = link.next_stanza(&mut link.lock()) else { return };
                permit.send(stanza);
            }
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(tokio::time::timeout(CLOSING, last_words));
        }
    }
}

impl fmt::Debug for IbbStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IbbStream").finish_non_exhaustive()
    }
}

/// A place in the queue.
enum Place<'a> {
    AtOnce(Permit<'a, QueuedStanza>),
    Awaited(Box<PollSender<QueuedStanza>>),
}

impl Place<'_> {
    fn send(self, stanza: QueuedStanza) -> io::Result<()> {
        match self {
            Self::AtOnce(permit) => permit.send(stanza),
            Self::Awaited(mut room) => room.send_item(stanza).map_err(|_| gone())?,
        }
        Ok(())
    }
}

/// Returns a place in the queue. Only a stream that must wait for one has memory for that.
fn poll_place<'a>(
    room: &mut Option<Box<PollSender<QueuedStanza>>>,
    outbound: &'a Outbound,
    cx: &mut Context<'_>,
) -> Poll<io::Result<Place<'a>>> {
    if room.is_none() {
        match outbound.try_reserve() {
            Ok(permit) => return Poll::Ready(Ok(Place::AtOnce(permit))),
            Err(TrySendError::Closed(())) => return Poll::Ready(Err(gone())),
            Err(TrySendError::Full(())) => {}
        }
    }
    let waiting = room.get_or_insert_with(|| Box::new(PollSender::new(outbound.clone())));
    ready!(waiting.poll_reserve(cx)).map_err(|_| gone())?;
    Poll::Ready(room.take().map(Place::Awaited).ok_or_else(gone))
}

fn broken(error: IbbError) -> io::Error {
    let kind = match error {
        IbbError::Timeout => io::ErrorKind::TimedOut,
        IbbError::Refused | IbbError::Gone => io::ErrorKind::ConnectionReset,
        _ => io::ErrorKind::InvalidData,
    };
    io::Error::new(kind, error)
}

fn gone() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}
