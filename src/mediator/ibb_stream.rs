//! An in-band bytestream as a tokio stream: the shell of [`IbbMachine`], which writes and takes whole stanzas.
//!
//! Two halves share the machine: [`IbbStream`] is read and written by the session, [`IbbHandle`] is given the peer's
//! stanzas by the router and never blocks. What there is to send goes into one bounded queue; while it is full,
//! writers wait, and answers stay in the machine, which bounds them.

use std::{
    collections::VecDeque,
    fmt, io, mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use jid::Jid;
use minidom::Element;
use rxml::xml_ncname;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc::{self, error::TrySendError},
    time::Sleep,
};
use tokio_util::sync::PollSender;

use super::{
    ibb::{Action, IbbError, IbbMachine, Options},
    ibb_xml::{self, IbbPayload, IbbStanza},
};
use crate::xmpp::{
    ns,
    stanza::{Kind, Refusal, Stanza},
};

/// Between whom a stream runs, and how.
#[derive(Clone, Debug)]
pub struct IbbParams {
    /// Our address, as the peer knows it.
    pub local: Jid,
    /// The peer's full JID.
    pub peer: Jid,
    /// The stream's id.
    pub sid: String,
    /// By which stanzas our blocks are sent.
    pub stanza: IbbStanza,
    /// The largest block in bytes before base64, both ways.
    pub block_size: u16,
    /// Our blocks that may be unacknowledged.
    pub window: u16,
    /// Whether the peer has agreed already; if not, [`IbbHandle::handle_opened`] is awaited before data is sent.
    pub opened: bool,
    /// How long the peer may leave blocks unacknowledged.
    pub ack_timeout: Duration,
    /// How long after a shutdown a silent peer is given to go on.
    pub close_linger: Duration,
}

impl IbbParams {
    /// An open stream by IQ with the default sizes and times.
    pub fn new(local: Jid, peer: Jid, sid: impl Into<String>) -> Self {
        let Options { block_size, window, opened, ack_timeout, close_linger, .. } =
            Options::default();
        let (sid, stanza) = (sid.into(), IbbStanza::Iq);
        Self { local, peer, sid, stanza, block_size, window, opened, ack_timeout, close_linger }
    }
}

/// The session's half: bytes. Dropping it closes the stream at once.
///
/// A shutdown returns when every byte is acknowledged. `<close/>` follows when nothing more comes from the peer, as
/// long as the stream is read; reading ends after the last byte the peer sent before its end.
pub struct IbbStream {
    link: Arc<Link>,
    /// Room in the queue: one place for answers and blocks, or an answer could wait for a block's.
    room: PollSender<Element>,
    /// A writer waits for the room.
    writing: bool,
    /// Whoever drives the machine waits for the room, perhaps in the writer's stead.
    driving: bool,
    timer: Option<Pin<Box<Sleep>>>,
}

/// The router's half: stanzas. Cheap to clone.
#[derive(Clone)]
pub struct IbbHandle {
    link: Arc<Link>,
}

#[derive(Debug)]
struct Link {
    params: IbbParams,
    outbound: mpsc::Sender<Element>,
    shared: Mutex<Shared>,
}

#[derive(Debug)]
struct Shared {
    machine: IbbMachine,
    /// What we asked by IQ and the ids of it.
    asked: VecDeque<(String, Asked)>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Block(u16),
    Close,
}

impl IbbStream {
    /// Makes both halves of a stream. Stanzas to the peer, complete and in [`ns::CLIENT`], go into `outbound`.
    pub fn new(params: IbbParams, outbound: mpsc::Sender<Element>) -> (Self, IbbHandle) {
        let options = Options {
            block_size: params.block_size.max(1),
            window: params.window.max(1),
            acknowledged: params.stanza == IbbStanza::Iq,
            ack_timeout: params.ack_timeout,
            close_linger: params.close_linger,
            opened: params.opened,
        };
        let shared = Shared {
            machine: IbbMachine::new(options, now()),
            asked: VecDeque::new(),
            reader: None,
            writer: None,
        };
        let room = PollSender::new(outbound.clone());
        let link = Arc::new(Link { params, outbound, shared: Mutex::new(shared) });
        let handle = IbbHandle { link: Arc::clone(&link) };
        (Self { link, room, writing: false, driving: false, timer: None }, handle)
    }

    /// Does what is due, and sends what the machine wants sent.
    fn poll_drive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = self.link.lock();
        while let Some(deadline) = shared.machine.deadline().map(tokio::time::Instant::from_std) {
            let timer =
                self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            // A deadline that moved away is noticed when the timer fires: cheaper than a reset per answer.
            if timer.deadline() > deadline || timer.is_elapsed() {
                timer.as_mut().reset(deadline);
            }
            if timer.as_mut().poll(cx).is_pending() {
                break;
            }
            shared.machine.handle_deadline(now());
            shared.wake(cx);
        }
        self.link.send_now(&mut shared);
        while shared.machine.has_actions() {
            self.driving = true;
            ready!(self.room.poll_reserve(cx)).map_err(|_| gone())?;
            if let Some(stanza) = self.link.next_stanza(&mut shared) {
                self.room.send_item(stanza).map_err(|_| gone())?;
            }
        }
        if mem::take(&mut self.driving) {
            shared.wake(cx);
        }
        if !self.writing {
            self.room.abort_send();
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
        // Answers that wait for room keep nobody from reading.
        let driven = this.poll_drive(cx);
        let mut shared = this.link.lock();
        let n = shared.machine.chunk().len().min(buf.remaining());
        if n > 0 {
            buf.put_slice(&shared.machine.chunk()[..n]);
            shared.machine.consume(n);
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
        if !shared.machine.has_window() {
            return Poll::Pending;
        }
        this.writing = true;
        ready!(this.room.poll_reserve(cx)).map_err(|_| gone())?;
        this.writing = false;
        let n = shared.machine.write(buf, now());
        if let Some(stanza) = this.link.next_stanza(&mut shared) {
            this.room.send_item(stanza).map_err(|_| gone())?;
        }
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.writing = false;
        this.link.lock().writer = Some(cx.waker().clone());
        this.poll_drive(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.writing = false;
        let mut shared = this.link.lock();
        if shared.machine.shutdown(now()) {
            // A reader elsewhere has the close's timer to watch from now on.
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
            runtime.spawn(tokio::time::timeout(self.link.params.ack_timeout, last_words));
        }
    }
}

impl fmt::Debug for IbbStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IbbStream").finish_non_exhaustive()
    }
}

impl IbbHandle {
    /// Takes a stanza of the peer if it belongs to this stream, and says whether it did. Such a stanza is answered
    /// by the stream, and by nobody else. Never blocks.
    ///
    /// It belongs to the stream if it goes between its two addresses and is a block, a close, or the answer to a
    /// stanza of the stream.
    pub fn handle(&self, stanza: &Stanza) -> bool {
        let params = &self.link.params;
        if stanza.from != params.peer || stanza.to != params.local {
            return false;
        }
        let id = match (stanza.kind, stanza.type_.as_str()) {
            (Kind::Iq, "result" | "error") => {
                return self.handle_answer(&stanza.id, stanza.type_ == "result");
            }
            (Kind::Iq, "set") => Some(stanza.id.as_str()),
            (Kind::Message, _) => None,
            _ => return false,
        };
        let element = stanza.element.children().find(|child| {
            child.ns() == ns::IBB
                && matches!(child.name(), "data" | "close")
                && child.attr("sid") == Some(params.sid.as_str())
        });
        let Some(element) = element else { return false };
        let mut shared = self.link.lock();
        let now = now();
        match IbbPayload::parse(element) {
            _ if id.is_none() && stanza.type_ == "error" => shared.machine.handle_bounce(now),
            Ok(Some(IbbPayload::Data { seq, text, .. })) => {
                shared.machine.handle_data(id, seq, &text, now);
            }
            Ok(Some(IbbPayload::Close { .. })) => shared.machine.handle_close(id),
            Ok(_) => return false,
            Err(refusal) => shared.machine.handle_malformed(id, refusal, now),
        }
        self.settle(&mut shared);
        true
    }

    /// Takes the answer to the IQ with this id, `ok` if a result, and says whether the stream had sent that IQ.
    pub fn handle_answer(&self, id: &str, ok: bool) -> bool {
        let mut shared = self.link.lock();
        let Some(at) = shared.asked.iter().position(|(asked, _)| asked == id) else {
            return false;
        };
        match shared.asked.remove(at) {
            Some((_, Asked::Block(seq))) => shared.machine.handle_answer(seq, ok, now()),
            Some((_, Asked::Close)) => shared.machine.handle_close_answer(),
            None => {}
        }
        self.settle(&mut shared);
        true
    }

    /// Tells a stream that was made with `opened: false` how the peer answered `<open/>`.
    pub fn handle_opened(&self, ok: bool) {
        let mut shared = self.link.lock();
        shared.machine.handle_opened(ok);
        self.settle(&mut shared);
    }

    /// The stream's id.
    pub fn sid(&self) -> &str {
        &self.link.params.sid
    }

    /// The peer's address.
    pub fn peer(&self) -> &Jid {
        &self.link.params.peer
    }

    /// Our address in this stream.
    pub fn local(&self) -> &Jid {
        &self.link.params.local
    }

    /// Whether nothing more is to be expected for this stream, so that the handle may be dropped.
    pub fn is_over(&self) -> bool {
        let mut shared = self.link.lock();
        shared.machine.handle_deadline(now());
        self.settle(&mut shared);
        shared.machine.is_over() || self.link.outbound.is_closed()
    }

    fn settle(&self, shared: &mut Shared) {
        self.link.send_now(shared);
        for waker in [shared.reader.take(), shared.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

impl fmt::Debug for IbbHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IbbHandle").finish_non_exhaustive()
    }
}

impl Shared {
    /// Wakes whoever else waits on this stream.
    fn wake(&mut self, cx: &Context<'_>) {
        for waiting in [&mut self.reader, &mut self.writer] {
            if let Some(waker) = waiting.take_if(|waker| !waker.will_wake(cx.waker())) {
                waker.wake();
            }
        }
    }
}

impl Link {
    /// Never held over an `.await`.
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what the queue has room for; the rest stays in the machine.
    fn send_now(&self, shared: &mut Shared) {
        while shared.machine.has_actions() {
            match self.outbound.try_reserve() {
                Ok(permit) => match self.next_stanza(shared) {
                    Some(stanza) => permit.send(stanza),
                    None => return,
                },
                Err(TrySendError::Full(()) | TrySendError::Closed(())) => return,
            }
        }
    }

    /// The next stanza to send.
    fn next_stanza(&self, shared: &mut Shared) -> Option<Element> {
        let sid = &self.params.sid;
        Some(match shared.machine.poll_action()? {
            Action::Ack { id } => self.stanza("iq", Some("result"), &id, None),
            Action::Refuse { id, refusal } => {
                self.stanza("iq", Some("error"), &id, Some(Refusal::to_element(&refusal)))
            }
            Action::SendClose => {
                let id = shared.ask(Asked::Close);
                self.stanza("iq", Some("set"), &id, Some(ibb_xml::close(sid)))
            }
            Action::SendData { seq, payload } => {
                let data = Some(ibb_xml::data(sid, seq, &payload));
                match self.params.stanza {
                    IbbStanza::Iq => {
                        let id = shared.ask(Asked::Block(seq));
                        self.stanza("iq", Some("set"), &id, data)
                    }
                    IbbStanza::Message => self.stanza("message", None, &random_id(), data),
                }
            }
        })
    }

    fn stanza(
        &self,
        name: &str,
        type_: Option<&str>,
        id: &str,
        payload: Option<Element>,
    ) -> Element {
        Element::builder(name, ns::CLIENT)
            .attr(xml_ncname!("type").into(), type_)
            .attr(xml_ncname!("from").into(), self.params.local.as_str())
            .attr(xml_ncname!("to").into(), self.params.peer.as_str())
            .attr(xml_ncname!("id").into(), id)
            .append_all(payload)
            .build()
    }
}

impl Shared {
    fn ask(&mut self, what: Asked) -> String {
        let id = random_id();
        self.asked.push_back((id.clone(), what));
        id
    }
}

fn random_id() -> String {
    format!("ibb{:016x}", rand::random::<u64>())
}

fn broken(error: IbbError) -> io::Error {
    let kind = match error {
        IbbError::Timeout => io::ErrorKind::TimedOut,
        IbbError::Refused => io::ErrorKind::ConnectionReset,
        _ => io::ErrorKind::InvalidData,
    };
    io::Error::new(kind, error)
}

fn gone() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

/// The runtime's clock, which tests may pause.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
#[path = "ibb_stream_tests.rs"]
mod tests;
