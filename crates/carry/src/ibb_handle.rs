//! The router's half of an in-band bytestream: the peer's stanzas in, ours out.

use std::{
    collections::VecDeque,
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Instant,
};

use fingerpost_wire::{
    ibb::{BlockAnswer, IbbAction, IbbError, IbbMachine, MAX_ROOM, Pong},
    ibb_window::MOST,
    ibb_xml::{self, IbbPayload, IbbStanza},
    ns,
    stanza::{Condition, Kind, Refusal, Stanza, StanzaType},
};
use jid::Jid;
use minidom::Element;
use rxml::xml_ncname;
use tokio::sync::mpsc::error::TrySendError;

use crate::{
    ibb_memory::IbbMemory,
    ibb_params::IbbParams,
    outbound::{Ends, Outbound, QueuedStanza},
};

/// The router's half: stanzas. Cheap to clone.
#[derive(Clone)]
pub struct IbbHandle {
    link: Arc<Link>,
}

#[derive(Debug)]
pub(super) struct Link {
    ends: Arc<Ends>,
    /// The kind of stanza that carries our blocks.
    stanza: IbbStanza,
    pub(super) outbound: Outbound,
    /// What the ids of our blocks begin with, which nobody else can guess. Some servers return a message without its
    /// payload.
    blocks: BlockIds,
    shared: Mutex<SharedMachine>,
}

#[derive(Debug)]
pub(super) struct SharedMachine {
    pub(super) machine: IbbMachine,
    /// Our blocks so far, which their ids count.
    blocks: u64,
    /// Our other requests by IQ, with their ids.
    asked: VecDeque<(String, Asked)>,
    /// What it has of the memory that streams share; `None`: it has what it needs.
    memory: Option<IbbMemory>,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
    /// Wakes the task that asked whether the stream waits for a silent peer.
    watcher: Option<Waker>,
    /// Whether it does, as last told.
    waits: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Close,
    Ping,
}

impl IbbHandle {
    pub(super) fn new(link: Arc<Link>) -> Self {
        Self { link }
    }

    /// Takes a stanza of the peer if it belongs to this stream, and returns whether it did. Only the stream answers
    /// such a stanza. Never blocks.
    ///
    /// A stanza belongs to the stream if it goes between the stream's two addresses and is a block, a close, or the
    /// answer to a stanza of the stream. A returned message is also known by its id.
    pub fn handle(&self, stanza: &Stanza) -> bool {
        let ends = &self.link.ends;
        if stanza.from != *ends.peer() || stanza.to != *ends.local() {
            return false;
        }
        let id = match (stanza.kind, stanza.type_) {
            (Kind::Iq, StanzaType::Result | StanzaType::Error) => {
                return self.handle_answer(stanza);
            }
            (Kind::Iq, StanzaType::Set) => Some(stanza.id.as_str()),
            (Kind::Message, _) => None,
            _ => return false,
        };
        let element = stanza.element.children().find(|child| {
            child.ns() == ns::IBB
                && matches!(child.name(), "data" | "close")
                && child.attr("sid") == Some(ends.sid.as_str())
        });
        let now = now();
        if id.is_none() && stanza.type_ == StanzaType::Error {
            let ours = element.is_some() || self.link.blocks.number(&stanza.id).is_some();
            if ours {
                let mut shared = self.link.lock();
                shared.machine.handle_bounce(answer(stanza), now);
                self.settle(&mut shared);
            }
            return ours;
        }
        let Some(element) = element else { return false };
        let mut shared = self.link.lock();
        match IbbPayload::parse(element) {
            Ok(Some(IbbPayload::Data { seq, text, .. })) => {
                if let Some(window) = ibb_xml::window_of_block(element) {
                    shared.machine.handle_window(window);
                }
                shared.make_room(id.is_none(), text.len());
                shared.machine.handle_data(id, seq, &text, now);
            }
            Ok(Some(IbbPayload::Close { .. })) => shared.machine.handle_close(id),
            Ok(_) => return false,
            Err(refusal) => shared.machine.handle_malformed(id, refusal, now),
        }
        self.settle(&mut shared);
        true
    }

    /// Takes a block that the peer has sent by IQ, as [`IbbHandle::handle`] does. `text` is base64.
    pub fn handle_block(&self, id: &str, seq: u16, text: &str) {
        let mut shared = self.link.lock();
        shared.make_room(false, text.len());
        shared.machine.handle_data(Some(id), seq, text, now());
        // A reader of the component runs next. It sends the acknowledgement together with what it passes on, so that both
        // go in one write.
        let is_sent_by_reader = shared.memory.is_some() && shared.reader.is_some();
        self.settle_with(&mut shared, !is_sent_by_reader);
    }

    /// Takes an answer if it is the peer's to an IQ of the stream, and returns whether it is.
    pub fn handle_answer(&self, stanza: &Stanza) -> bool {
        stanza.from == *self.link.ends.peer()
            && self.take_answer(
                &stanza.id,
                || answer(stanza),
                || pong(stanza),
                ibb_xml::window_of_answer(&stanza.element),
            )
    }

    /// Takes a result without an error that came from the peer, as [`IbbHandle::handle_answer`] does.
    pub fn handle_result(&self, id: &str) -> bool {
        self.take_answer(id, || BlockAnswer::Taken, || Pong::Alive, None)
    }

    fn take_answer(
        &self,
        id: &str,
        answer: impl FnOnce() -> BlockAnswer,
        pong: impl FnOnce() -> Pong,
        window: Option<usize>,
    ) -> bool {
        let mut shared = self.link.lock();
        if let Some(number) = self.link.blocks.number(id) {
            let Some(seq) = shared.block(number) else { return false };
            if let Some(window) = window {
                shared.machine.handle_window(window);
            }
            shared.machine.handle_answer(seq, answer(), now());
        } else {
            let Some(at) = shared.asked.iter().position(|(asked, _)| asked == id) else {
                return false;
            };
            match shared.asked.remove(at) {
                Some((_, Asked::Ping)) => shared.machine.handle_pong(pong(), now()),
                _ => shared.machine.handle_close_answer(),
            }
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

    /// Ends a stream whose stanzas can no longer be sent.
    pub fn handle_lost(&self) {
        let mut shared = self.link.lock();
        shared.machine.handle_lost();
        self.settle(&mut shared);
    }

    /// Returns whether the stream stands still because the peer, which owes an answer, is silent.
    pub fn is_waiting(&self) -> bool {
        self.link.lock().waits
    }

    /// Returns that, once it is no longer `known`. One task at a time is woken for it.
    pub fn poll_waiting(&self, known: bool, cx: &Context<'_>) -> Poll<bool> {
        let mut shared = self.link.lock();
        if shared.waits != known {
            return Poll::Ready(shared.waits);
        }
        match &mut shared.watcher {
            Some(watcher) => watcher.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Returns how many bytes the peer has acknowledged.
    pub fn delivered(&self) -> u64 {
        self.link.lock().machine.delivered()
    }

    /// Returns why the stream broke, if it did.
    pub fn failure(&self) -> Option<IbbError> {
        self.link.lock().machine.failure()
    }

    /// Returns the stream's id.
    pub fn sid(&self) -> &str {
        &self.link.ends.sid
    }

    /// Returns the peer's address.
    pub fn peer(&self) -> &Jid {
        self.link.ends.peer()
    }

    /// Returns our address in this stream.
    pub fn local(&self) -> &Jid {
        self.link.ends.local()
    }

    /// Returns whether nothing more can happen on this stream, so that the handle may be dropped.
    pub fn is_over(&self) -> bool {
        let mut shared = self.link.lock();
        shared.machine.handle_deadline(now());
        self.settle(&mut shared);
        shared.machine.is_over() || self.link.outbound.is_closed()
    }

    /// Sends what there is to send after an event, and tells all that wait for the stream.
    fn settle(&self, shared: &mut SharedMachine) {
        self.settle_with(shared, true);
    }

    /// Does the same, and sends only if `sends` says so.
    fn settle_with(&self, shared: &mut SharedMachine, sends: bool) {
        shared.give_back();
        shared.tell();
        if sends {
            self.link.send_now(shared);
        }
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

/// More blocks than are ever unanswered; half of what `seq` tells apart.
const RECENT: u64 = 1 << 15;

/// The most bytes that a stream by message may hold, if there is memory: its sender cannot be slowed down.
const BY_MESSAGE: usize = usize::MAX;

/// The ids of our blocks: a random number, and that of the block.
#[derive(Clone, Copy, Debug)]
struct BlockIds(u64);

impl BlockIds {
    /// Returns the id of the block with this number.
    fn id(self, number: u64) -> String {
        format!("ibb{:016x}-{number:x}", self.0)
    }

    /// Returns the number in an id, as it is written, if the id begins as ours do.
    fn number(self, id: &str) -> Option<&str> {
        let (own, number) = id.strip_prefix("ibb")?.split_at_checked(17)?;
        let own = own.strip_suffix('-')?;
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let is_ours = own.bytes().all(is_digit) && u64::from_str_radix(own, 16) == Ok(self.0);
        is_ours.then_some(number)
    }
}

impl SharedMachine {
    /// Takes room for a block of the peer with so much base64, if it is needed and any is left.
    fn make_room(&mut self, by_message: bool, text: usize) {
        let Some(memory) = &mut self.memory else { return };
        let bytes = self.machine.length_of(text);
        let most = if by_message { BY_MESSAGE } else { MAX_ROOM };
        while self.machine.lacks_room(bytes, by_message) && memory.add_room(bytes, most) {
            self.machine.set_room(memory.room());
        }
    }

    /// Takes memory for a larger window, if it is needed and any is left.
    pub(super) fn use_memory(&mut self) {
        let Some(memory) = &mut self.memory else { return };
        while self.machine.lacks_memory() && memory.add_for_sending() {
            self.machine.set_memory(memory.for_sending());
        }
    }

    /// Gives back the memory that is no longer needed.
    pub(super) fn give_back(&mut self) {
        let Some(memory) = &mut self.memory else { return };
        if memory.shrink_for_sending(self.machine.under_way()) {
            self.machine.set_memory(memory.for_sending());
        }
        if self.machine.has_spare_room(now()) && memory.shrink_room() {
            self.machine.set_room(memory.room());
        }
    }

    /// Gives back all memory, because nothing is held or sent any more.
    pub(super) fn release(&mut self) {
        if let Some(memory) = &mut self.memory {
            memory.release();
        }
    }

    /// Returns the `seq` of the recent block with this number, which is in its id. An answer to an old block, whose
    /// `seq` another one has by now, counts for none.
    fn block(&self, number: &str) -> Option<u16> {
        let number = u64::from_str_radix(number, 16).ok()?;
        let is_recent = number < self.blocks && self.blocks - number <= RECENT;
        let seq = u16::try_from(number % (1 << 16)).ok()?;
        is_recent.then_some(seq)
    }

    fn ask(&mut self, what: Asked) -> String {
        // Only the last answer of a kind counts.
        self.asked.retain(|(_, asked)| *asked != what);
        let id = random_id();
        self.asked.push_back((id.clone(), what));
        id
    }

    /// Tells whether the stream waits for a silent peer, if that has changed.
    pub(super) fn tell(&mut self) {
        let waits = self.machine.is_waiting();
        if mem::replace(&mut self.waits, waits) != waits
            && let Some(watcher) = self.watcher.take()
        {
            watcher.wake();
        }
    }

    /// Wakes the other tasks that wait on this stream.
    pub(super) fn wake(&mut self, cx: &Context<'_>) {
        for waiting in [&mut self.reader, &mut self.writer] {
            if let Some(waker) = waiting.take_if(|waker| !waker.will_wake(cx.waker())) {
                waker.wake();
            }
        }
    }
}

impl Link {
    pub(super) fn new(
        params: IbbParams,
        machine: IbbMachine,
        memory: Option<IbbMemory>,
        outbound: Outbound,
    ) -> Arc<Self> {
        let shared = SharedMachine {
            machine,
            blocks: 0,
            asked: VecDeque::new(),
            memory,
            reader: None,
            writer: None,
            watcher: None,
            waits: false,
        };
        let IbbParams { ends, sid, stanza, .. } = params;
        Arc::new(Self {
            ends: Arc::new(Ends::new(ends, sid)),
            stanza,
            outbound,
            blocks: BlockIds(rand::random()),
            shared: Mutex::new(shared),
        })
    }

    /// Never held over an `.await`.
    pub(super) fn lock(&self) -> MutexGuard<'_, SharedMachine> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what the queue has room for; the rest stays in the machine.
    pub(super) fn send_now(&self, shared: &mut SharedMachine) {
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

    /// Returns the next stanza to send.
    pub(super) fn next_stanza(&self, shared: &mut SharedMachine) -> Option<QueuedStanza> {
        let ends = &self.ends;
        let sid = &ends.sid;
        let element = match shared.machine.poll_action()? {
            IbbAction::Ack { id } => {
                let window = shared.machine.grant().map(ibb_xml::window);
                let plain = if window.is_none() { ends.acknowledgement(&id) } else { None };
                match plain {
                    Some(plain) => return Some(QueuedStanza::Ibb(plain)),
                    None => self.stanza("iq", Some("result"), &id, window),
                }
            }
            IbbAction::Refuse { id, refusal } => {
                self.stanza("iq", Some("error"), &id, Some(Refusal::to_element(&refusal)))
            }
            IbbAction::Ping => {
                let id = shared.ask(Asked::Ping);
                self.stanza("iq", Some("get"), &id, Some(Element::bare("ping", ns::PING)))
            }
            IbbAction::SendClose => {
                let id = shared.ask(Asked::Close);
                self.stanza("iq", Some("set"), &id, Some(ibb_xml::close(sid)))
            }
            IbbAction::SendData { seq, payload } => {
                let id = self.blocks.id(shared.blocks);
                shared.blocks += 1;
                match (self.stanza, ends.is_plain) {
                    // A peer that understands this may send more than one that does not.
                    (IbbStanza::Iq, _) if shared.blocks == 1 && shared.memory.is_none() => {
                        let data = ibb_xml::data_with_window(sid, seq, &payload, MOST);
                        self.stanza("iq", Some("set"), &id, Some(data))
                    }
                    (IbbStanza::Iq, true) => {
                        return Some(QueuedStanza::Ibb(ends.block(id, seq, payload)));
                    }
                    (IbbStanza::Iq, false) => {
                        let data = ibb_xml::data(sid, seq, &payload);
                        self.stanza("iq", Some("set"), &id, Some(data))
                    }
                    (IbbStanza::Message, _) => {
                        let data = ibb_xml::data(sid, seq, &payload);
                        let mut message = self.stanza("message", None, &id, Some(data));
                        // Blocks are for this resource only, and useless later.
                        for hint in ["no-copy", "no-store"] {
                            message.append_child(Element::bare(hint, ns::PROCESSING_HINTS));
                        }
                        message
                    }
                }
            }
        };
        Some(QueuedStanza::Element(element))
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
            .attr(xml_ncname!("from").into(), self.ends.local().as_str())
            .attr(xml_ncname!("to").into(), self.ends.peer().as_str())
            .attr(xml_ncname!("id").into(), id)
            .append_all(payload)
            .build()
    }
}

/// Returns what an answer to a block, or its return, says.
fn answer(stanza: &Stanza) -> BlockAnswer {
    if stanza.type_ == StanzaType::Result {
        return BlockAnswer::Taken;
    }
    match condition(stanza) {
        Some(Condition::UnexpectedRequest) => BlockAnswer::Gap,
        // Servers answer this in place of their users.
        Some(
            Condition::InternalServerError
            | Condition::RecipientUnavailable
            | Condition::RemoteServerNotFound
            | Condition::RemoteServerTimeout
            | Condition::ServiceUnavailable,
        ) => BlockAnswer::Undelivered,
        _ => BlockAnswer::Refused,
    }
}

/// Returns what the answer to a ping says.
fn pong(stanza: &Stanza) -> Pong {
    if stanza.type_ == StanzaType::Result {
        return Pong::Alive;
    }
    match condition(stanza) {
        Some(
            Condition::Gone
            | Condition::ItemNotFound
            | Condition::RecipientUnavailable
            | Condition::ServiceUnavailable,
        ) => Pong::Absent,
        Some(
            Condition::InternalServerError
            | Condition::RemoteServerNotFound
            | Condition::RemoteServerTimeout
            | Condition::ResourceConstraint,
        ) => Pong::Unreachable,
        _ => Pong::Alive,
    }
}

/// Returns the defined condition of an error.
fn condition(stanza: &Stanza) -> Option<Condition> {
    Condition::of(stanza.element.children().find(|child| child.name() == "error")?)
}

fn random_id() -> String {
    format!("ibb{:016x}", rand::random::<u64>())
}

/// Returns the runtime's clock, which tests may pause.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
