//! One end of an in-band bytestream, both directions, without XML, queues or clock.
//!
//! Outgoing: blocks of at most block-size bytes, numbered from 0 and wrapping after 65535. At most a window of them is
//! unacknowledged; it follows the path ([`crate::ibb_window`]). Incoming: a block sent by IQ is acknowledged when it has been
//! read, or at once while little waits to be read. So a slow reader slows the sender. Blocks are held up to a bound, and their
//! answers with them.
//!
//! Blocks by message are not acknowledged, so a ping (XEP-0199) to the same resource follows them. Its answer says that
//! the blocks before it have arrived, slows the sender, makes a server release what it holds for an inactive client
//! (XEP-0352), and shows that the resource is present.
//!
//! Doubt: servers answer for their users. When the connection between two servers breaks, some send an error such as
//! `recipient-unavailable` for blocks that have arrived, and the real answers follow. Other servers lose blocks and
//! answers silently. So such an error ends nothing by itself:
//!
//! | what comes next | what it says |
//! |---|---|
//! | the real answer, or that to a later block | everything up to this block has arrived |
//! | `unexpected-request` to a later block | blocks were lost: the stream ends |
//! | ping answered | the peer is present: one more block is sent, and its answer settles the doubt |
//! | three such blocks undelivered, although pings were answered | blocks are lost: the stream ends |
//! | pings say three times that the peer is absent | the client is gone: the stream ends |
//! | nothing | the stream waits, as long as a server may keep a client that has lost its connection (XEP-0198) |
//!
//! A server may also lose everything that is under way, with no error and no later block to show the gap. So if a peer
//! that is one of ours answers a ping and acknowledges nothing, an empty block follows, even if the window is full. A slow
//! reader keeps it, and a gap is refused at once.
//!
//! Closing: in-band bytestreams have no half-close. After [`IbbMachine::shutdown`] the other direction continues until
//! the peer closes, or has sent nothing for the linger time. Then `<close/>` is sent; bytes that arrive before its
//! answer are delivered too.
//!
//! Spec: XEP-0047 2.0.1, section 2.2 (Sending Data) and 2.3 (Closing the Bytestream).

use std::{
    collections::VecDeque,
    mem,
    time::{Duration, Instant},
};

use crate::{
    block_text,
    ibb_window::{Departure, MOST, Window},
    stanza::{Condition, ErrorType, Refusal},
};

/// Bytes that may wait for the reader although they were acknowledged, so that a peer's first bytes never wait.
pub const ACKNOWLEDGED: usize = 16 * 1024;

/// Bytes of ours in unacknowledged blocks on their way to a peer that does not say how much it takes. A single longer
/// block is sent too.
pub const MAX_UNACKNOWLEDGED: usize = 80 * 1024;

/// The most bytes of the peer that are held here: a whole window, and what was acknowledged at once.
pub const MAX_ROOM: usize = MOST + ACKNOWLEDGED;

/// How long a peer that sends nothing keeps the right to send more than at the start. A peer that has paused gives it up
/// itself, much earlier.
const PAUSE: Duration = Duration::from_secs(60);

/// The time in which a peer must have filled its window to be allowed a larger one.
const BUSY: Duration = Duration::from_secs(2);

/// The most blocks of ours on their way. A peer holds [`MAX_ENTRIES`].
const MAX_BLOCKS: usize = MAX_ENTRIES - 16;

/// The most held blocks, and actions that were not taken: a bound against floods of tiny or empty blocks.
const MAX_ENTRIES: usize = 256;

/// How many blocks back a block may be repeated: a client that has resumed its connection sends the blocks again that
/// it has no answer for.
const REPEATED: u16 = 256;

/// One more held block is allowed for each so many bytes of the room for messages.
const BYTES_PER_ENTRY: usize = 512;

/// A rest of less than this part of a block waits for more bytes.
const SMALL: usize = 4;

/// The longest block that is sent to settle a doubt, beyond the window. The peer has room for it, however slow its
/// reader is.
pub const TRIAL: usize = 512;

/// How many of the blocks that are sent to settle one doubt may come back undelivered.
const TRIALS: usize = 3;

/// How long blocks may be without any answer before the peer is pinged.
const PROBE: Duration = Duration::from_secs(10);

/// The time after which an unanswered ping is repeated.
const REPEAT: Duration = Duration::from_secs(30);

/// How long a peer that owes an answer may be silent before the stream counts as waiting.
pub const WAITING: Duration = Duration::from_secs(20);

/// The pauses before a ping is repeated whose answer says that the peer is absent. The first of these answers may be as
/// wrong as those to the blocks, and the real ones may come seconds later. After the last pause the peer counts as
/// gone.
const ABSENT: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(8)];

/// How long a stream by message waits for the answer to its first ping. A peer that answers none cannot be slowed down.
const UNPACED: Duration = Duration::from_secs(5);

/// How long a close may be without its answer.
pub const CLOSING: Duration = Duration::from_secs(60);

/// How a stream is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The largest block in bytes before base64, both ways.
    pub block_size: u16,
    /// The number of blocks to which the window grows quickly.
    pub window: u16,
    /// Whether outgoing blocks are acknowledged (IQ) or not (message).
    pub acknowledged: bool,
    /// How long blocks may stay without any acknowledgement.
    pub silence_timeout: Duration,
    /// How long a shut down stream waits for more from the peer before it is closed.
    pub close_linger: Duration,
    /// The bytes of the peer that may be held at the start.
    pub room: usize,
    /// Whether the room is scarce, so that a peer that understands it is told how much it may send.
    pub is_scarce: bool,
    /// Whether the peer has already agreed to the stream. If not, nothing is sent before [`IbbMachine::handle_opened`].
    pub opened: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            block_size: 8192,
            window: 16,
            acknowledged: true,
            silence_timeout: Duration::from_secs(300),
            close_linger: Duration::from_secs(5),
            room: MAX_ROOM,
            is_scarce: false,
            opened: true,
        }
    }
}

/// A stanza that the owner must send to the peer, in order. An `id` is that of the peer's IQ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IbbAction {
    /// Answer with an empty result.
    Ack {
        /// The IQ's id.
        id: String,
    },
    /// Answer with an error.
    Refuse {
        /// The IQ's id.
        id: String,
        /// The error.
        refusal: Refusal,
    },
    /// Ping the peer's resource (XEP-0199); the answer goes to [`IbbMachine::handle_pong`].
    Ping,
    /// Send `<close/>` by IQ; its answer goes to [`IbbMachine::handle_close_answer`].
    SendClose,
    /// Send a block; its answer, if sent by IQ, goes to [`IbbMachine::handle_answer`].
    SendData {
        /// The block's number.
        seq: u16,
        /// Its bytes, not yet base64.
        payload: Vec<u8>,
    },
}

/// The meaning of an answer to a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockAnswer {
    /// The peer has the block.
    Taken,
    /// The peer says that a block before it is missing.
    Gap,
    /// The peer refuses the block.
    Refused,
    /// An error says that the block could not be delivered. It may be wrong.
    Undelivered,
}

/// The meaning of an answer to a ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pong {
    /// The peer is present.
    Alive,
    /// The peer is absent, or does not know pings.
    Absent,
    /// The peer cannot be reached at present.
    Unreachable,
}

/// Why a stream broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IbbError {
    /// The peer's data is not valid base64, or its stanza is malformed.
    #[error("the peer sent malformed data")]
    Malformed,
    /// The peer's resource is gone.
    #[error("the peer's client is gone")]
    Gone,
    /// The peer sent more than the window allows while the reader was slow.
    #[error("the peer sent more than there is room for")]
    Overflow,
    /// The connection that carries the stanzas broke, and blocks may be lost.
    #[error("the connection to the XMPP server was lost")]
    Lost,
    /// Blocks of ours have not reached the peer.
    #[error("blocks were lost on the way to the peer")]
    Missing,
    /// A block of the peer is missing.
    #[error("a block of the peer is missing: it was lost on the way, or numbered wrongly")]
    Sequence,
    /// The peer answered a block with an error.
    #[error("the peer refused a block")]
    Refused,
    /// The peer did not answer for too long.
    #[error("the peer has not acknowledged anything for too long")]
    Timeout,
    /// A block of the peer is longer than agreed.
    #[error("the peer sent a block longer than the agreed block size")]
    TooLong,
}

/// One end of a stream. The `handle_*` functions take events of the peer and the clock; the others are for the local
/// user. Call [`Self::poll_action`] until `None` after each call. `now` is monotonic.
#[derive(Debug)]
pub struct IbbMachine {
    options: Options,
    opened: bool,
    next_out: u16,
    /// Bytes of ours that wait for the rest of their block.
    collected: Vec<u8>,
    /// Each block of ours that is not acknowledged, with its bytes; the last one's number is before `next_out`.
    unanswered: VecDeque<(usize, Departure)>,
    window: Window,
    /// Bytes of ours that the peer has.
    delivered: u64,
    /// When an answer last came, or the first unanswered stanza was sent.
    progress: Instant,
    /// When the peer itself was last heard, or the first unanswered stanza was sent.
    heard: Instant,
    /// Whether nothing was heard for [`WAITING`] although the peer owes an answer.
    waiting: bool,
    doubt: Option<Doubt>,
    /// Whether a block was sent to find a gap since an answer last came.
    sought_gap: bool,
    ping: Ping,
    next_in: u16,
    /// How many blocks arrived, up to [`REPEATED`].
    came: u16,
    /// Bytes that may be held.
    room: usize,
    /// How much the peer has said it takes.
    peer_window: Option<usize>,
    /// How much may be under way by what its owner has for it.
    memory: usize,
    /// How much the peer was told that it may send.
    granted: usize,
    /// Bytes that came since then, from when on.
    came_since: usize,
    since: Instant,
    /// When the last block came.
    block_at: Instant,
    /// Blocks that arrived and were not read, in order.
    held: VecDeque<Block>,
    /// The bytes of all held blocks, including the part of the first that has been read.
    held_bytes: usize,
    /// The part of the first block that has been read.
    taken: usize,
    /// When, after a local shutdown, the peer was last heard.
    quiet_since: Option<Instant>,
    close: Close,
    peer_closed: bool,
    /// The local reader is gone.
    gone: bool,
    failure: Option<IbbError>,
    actions: VecDeque<IbbAction>,
}

/// The state after an error said that a block was not delivered.
#[derive(Clone, Copy, Debug, Default)]
struct Doubt {
    /// Whether the peer has answered a ping since.
    alive: bool,
    /// The number of the block that was sent since; its answer settles the doubt.
    trial: Option<u16>,
    /// How many such blocks have come back.
    failed: usize,
}

/// The result of the pings to the peer.
#[derive(Clone, Copy, Debug, Default)]
struct Ping {
    /// When the last ping was sent, if it is not answered, and how many unanswered blocks were sent before it.
    asked: Option<(Instant, usize)>,
    /// When the next one is due.
    again: Option<Instant>,
    /// How many answers in succession said that the peer is absent.
    absent: usize,
    /// Whether the last answer was not the peer's.
    missed: bool,
    /// Whether the peer was present when an answer said that it is absent: it does not know pings.
    unknown: bool,
    /// Whether any ping was answered; for blocks by message.
    answered: bool,
    /// Whether the peer answers no pings, so that blocks by message are not slowed down.
    unpaced: bool,
}

#[derive(Debug)]
struct Block {
    /// The id of the IQ that is still to be answered.
    id: Option<String>,
    payload: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Close {
    NotSent,
    Sent,
    Answered,
}

impl IbbMachine {
    /// Creates a stream that has not sent a block.
    pub fn new(options: Options, now: Instant) -> Self {
        let mut window = Window::new(options.block_size, options.window);
        window.set_ceiling(MAX_UNACKNOWLEDGED);
        Self {
            options,
            opened: options.opened,
            next_out: 0,
            collected: Vec::new(),
            unanswered: VecDeque::new(),
            window,
            delivered: 0,
            progress: now,
            heard: now,
            waiting: false,
            doubt: None,
            sought_gap: false,
            ping: Ping::default(),
            next_in: 0,
            came: 0,
            room: options.room,
            peer_window: None,
            memory: usize::MAX,
            granted: 0,
            came_since: 0,
            since: now,
            block_at: now,
            held: VecDeque::new(),
            held_bytes: 0,
            taken: 0,
            quiet_since: None,
            close: Close::NotSent,
            peer_closed: false,
            gone: false,
            failure: None,
            actions: VecDeque::new(),
        }
    }

    /// Handles the peer's answer to `<open/>`: data may flow, or the stream is over with nothing to close.
    pub fn handle_opened(&mut self, ok: bool) {
        self.opened = ok;
        if !ok {
            self.failure.get_or_insert(IbbError::Refused);
            self.close = Close::Answered;
        }
    }

    /// Handles the loss of the connection that carries the stanzas: the stream cannot be closed towards the peer.
    pub fn handle_lost(&mut self) {
        self.failure.get_or_insert(IbbError::Lost);
        self.unanswered.clear();
        self.collected.clear();
        self.actions.clear();
        self.close = Close::Answered;
    }

    /// Sets how many bytes may be held.
    pub fn set_room(&mut self, bytes: usize) {
        self.room = bytes;
        if bytes <= self.options.room {
            // The peer is told again.
            self.granted = 0;
        }
        (self.came_since, self.since) = (0, self.block_at);
    }

    /// Sets how many bytes of ours may be under way; one block always may.
    pub fn set_memory(&mut self, bytes: usize) {
        self.memory = bytes;
        self.limit();
    }

    /// Handles the number of bytes that the peer takes, which may change.
    pub fn handle_window(&mut self, bytes: usize) {
        self.peer_window = Some(bytes.min(MOST));
        self.limit();
    }

    fn limit(&mut self) {
        let peer = match self.peer_window {
            Some(bytes) if self.options.acknowledged => bytes,
            _ => MAX_UNACKNOWLEDGED,
        };
        self.window.set_ceiling(peer.min(self.memory));
    }

    /// Returns whether more could be under way if the owner had memory for it.
    pub fn lacks_memory(&self) -> bool {
        self.memory < self.peer_window.unwrap_or(MAX_UNACKNOWLEDGED)
            && self.window.exceeds(self.memory)
    }

    /// Returns the bytes of ours that are under way, with what their stanzas cost.
    pub fn under_way(&self) -> usize {
        self.window.under_way()
    }

    /// Returns how many bytes a block of the peer with so much base64 has at most. What is longer than agreed is
    /// refused, and needs no room.
    pub fn length_of(&self, text: usize) -> usize {
        (text / 4 * 3).min(self.options.block_size.into())
    }

    /// Returns whether `bytes` more of the peer should have more room than there is. A peer that understands how much
    /// it may send gets more if it uses that; other peers must be held whatever they send, and a block more, so that
    /// this one can be acknowledged. What comes by message may be more than any window.
    pub fn lacks_room(&self, bytes: usize, by_message: bool) -> bool {
        if self.room >= MAX_ROOM && !by_message {
            return false;
        }
        match self.peer_window {
            Some(_) => self.came_since + bytes >= self.granted.max(self.options.room),
            None => self.held_bytes + bytes + usize::from(self.options.block_size) > self.room,
        }
    }

    /// Returns whether the room beyond that at the start is not needed any more.
    pub fn has_spare_room(&self, now: Instant) -> bool {
        self.spare_deadline().is_some_and(|at| at <= now)
    }

    /// Returns how much the peer may send from now on, if an acknowledgement has to say so.
    pub fn grant(&mut self) -> Option<usize> {
        let grant = self.room - self.lead_of(self.room);
        let is_new = self.options.is_scarce && self.peer_window.is_some() && grant != self.granted;
        is_new.then(|| {
            self.granted = grant;
            grant
        })
    }

    /// Returns how many bytes may wait for the reader although they were acknowledged, if there is so much room: the
    /// peer may send as many bytes as the rest.
    fn lead_of(&self, room: usize) -> usize {
        (room.saturating_sub(self.options.room) / 2).min(ACKNOWLEDGED)
    }

    /// Returns how many bytes may wait for the reader although they were acknowledged.
    fn lead(&self) -> usize {
        match (self.options.is_scarce, self.peer_window) {
            (false, _) => ACKNOWLEDGED,
            (true, Some(_)) => self.lead_of(self.room).min(self.room - self.granted.min(self.room)),
            (true, None) => {
                self.room.saturating_sub(usize::from(self.options.block_size)).min(ACKNOWLEDGED)
            }
        }
    }

    /// Returns the bytes that wait for the reader.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Takes a block of the peer: the IQ's id (none for a message), its number and its base64 text.
    ///
    /// A repeated recent block is acknowledged again and dropped. Bad data and gaps are refused and end the stream.
    pub fn handle_data(&mut self, id: Option<&str>, seq: u16, text: &str, now: Instant) {
        if self.is_deaf(id) {
            return;
        }
        self.hear(now);
        let behind = self.next_in.wrapping_sub(seq);
        if (1..=self.came).contains(&behind) {
            return self.answer(id.map(|id| IbbAction::Ack { id: id.to_owned() }));
        }
        if seq != self.next_in {
            let refusal = Refusal::new(
                ErrorType::Cancel,
                Condition::UnexpectedRequest,
                "seq is out of order",
            );
            return self.refuse(id, refusal, IbbError::Sequence, now);
        }
        // Several clients break lines before and after the data; inside it only base64 is allowed.
        let Some(payload) = block_text::decode(text.trim_ascii().as_bytes()) else {
            let refusal = Refusal::bad_request(
                "the data must be base64 (RFC 4648, section 4), with white space around it at most",
            );
            return self.refuse(id, refusal, IbbError::Malformed, now);
        };
        if payload.len() > usize::from(self.options.block_size) {
            let refusal = Refusal::bad_request("the block is longer than block-size");
            return self.refuse(id, refusal, IbbError::TooLong, now);
        }
        let held = self.held_bytes + payload.len();
        let lead = self.room / BYTES_PER_ENTRY;
        let entries = MAX_ENTRIES + lead;
        if held > self.room + TRIALS * TRIAL
            || self.held.len() >= entries
            || self.actions.len() >= MAX_ENTRIES
        {
            let refusal = Refusal::resource_constraint("too many blocks at once");
            return self.refuse(id, refusal, IbbError::Overflow, now);
        }
        self.next_in = seq.wrapping_add(1);
        self.came = (self.came + 1).min(REPEATED);
        if self.quiet_since.is_some() {
            self.quiet_since = Some(now);
        }
        self.held_bytes = held;
        if now > self.since + BUSY {
            (self.came_since, self.since) = (0, now);
        }
        self.came_since += payload.len();
        self.block_at = now;
        let mut id = id.map(str::to_owned);
        // However small its blocks are, a peer may have MAX_ENTRIES of them on their way.
        if held <= self.lead() && self.held.len() < lead {
            self.actions.extend(id.take().map(|id| IbbAction::Ack { id }));
        }
        self.held.push_back(Block { id, payload });
        self.drop_read();
    }

    /// Takes a data or close element that could not be read.
    pub fn handle_malformed(&mut self, id: Option<&str>, refusal: Refusal, now: Instant) {
        if !self.is_deaf(id) {
            self.refuse(id, refusal, IbbError::Malformed, now);
        }
    }

    /// Takes the peer's `<close/>`. What it sent before is still delivered.
    pub fn handle_close(&mut self, id: Option<&str>) {
        if self.peer_closed && self.is_deaf(id) {
            return;
        }
        self.peer_closed = true;
        self.collected.clear();
        self.unanswered.clear();
        self.answer(id.map(|id| IbbAction::Ack { id: id.to_owned() }));
    }

    /// Takes an answer to a block. Unknown numbers are ignored. A block that was reported as undelivered may be
    /// answered a second time.
    pub fn handle_answer(&mut self, seq: u16, answer: BlockAnswer, now: Instant) {
        let Some(at) = self.place(seq) else { return };
        match answer {
            BlockAnswer::Taken => {
                // The peer takes blocks in order only, so it has the earlier ones too.
                self.settle(at + 1, None, now);
                self.doubt = None;
                self.hear(now);
            }
            BlockAnswer::Gap if at > 0 || self.doubt.is_some() => self.fail(IbbError::Missing, now),
            BlockAnswer::Gap | BlockAnswer::Refused => self.fail(IbbError::Refused, now),
            BlockAnswer::Undelivered => self.suspect(Some(seq), now),
        }
    }

    /// Takes the return of a block that was sent by message.
    pub fn handle_bounce(&mut self, answer: BlockAnswer, now: Instant) {
        if !self.is_writable() && self.quiet_since.is_none() {
            return;
        }
        match answer {
            BlockAnswer::Undelivered => self.suspect(None, now),
            BlockAnswer::Gap => self.fail(IbbError::Missing, now),
            BlockAnswer::Taken | BlockAnswer::Refused => self.fail(IbbError::Refused, now),
        }
    }

    /// Takes the answer to our ping.
    pub fn handle_pong(&mut self, pong: Pong, now: Instant) {
        let Some((asked, before)) = self.ping.asked.take() else { return };
        // Blocks by message: those before the ping have arrived, unless an error says that they have not.
        let paces = !self.options.acknowledged && self.doubt.is_none();
        if pong == Pong::Absent && paces && !self.ping.answered {
            // The peer was present a moment ago, when the stream was opened.
            self.ping.unknown = true;
        }
        self.ping.missed = true;
        match pong {
            // Blocks by IQ to an absent peer come back themselves.
            Pong::Absent if self.options.acknowledged && self.doubt.is_none() => {
                self.ping.missed = false;
                self.ping.again = Some(now + REPEAT);
            }
            Pong::Absent if !self.ping.unknown => match ABSENT.get(self.ping.absent) {
                _ if self.heard > asked => self.ping.again = Some(now + ABSENT[0]),
                Some(pause) => {
                    self.ping.absent += 1;
                    self.ping.again = Some(now + *pause);
                }
                None => self.fail(IbbError::Gone, now),
            },
            Pong::Unreachable => self.ping.again = Some(now + PROBE),
            Pong::Absent | Pong::Alive => {
                self.ping.answered = true;
                self.ping.unpaced = false;
                self.hear(now);
                if !self.options.acknowledged {
                    self.doubt = None;
                    self.settle(before, Some(asked), now);
                    self.flush_if_alone(now);
                    self.pace(now);
                } else if let Some(doubt) = &mut self.doubt {
                    doubt.alive = true;
                    self.ping.again = Some(now + PROBE);
                    self.flush(now);
                } else {
                    self.ping.again = Some(now + REPEAT);
                    if self.progress < asked {
                        self.seek_gap(now);
                    }
                }
            }
        }
    }

    /// Sends an empty block to a peer that is present and acknowledges nothing. The peer must be one of ours: what others
    /// make of such a block is not known.
    fn seek_gap(&mut self, now: Instant) {
        let is_useful = !self.unanswered.is_empty() && self.peer_window.is_some();
        let may_go = self.unanswered.len() < MAX_BLOCKS && self.may_send();
        if is_useful && may_go && !mem::replace(&mut self.sought_gap, true) {
            self.send(Vec::new(), now);
        }
    }

    /// Takes the peer's answer, of either kind, to our `<close/>`.
    pub fn handle_close_answer(&mut self) {
        if self.close == Close::Sent {
            self.close = Close::Answered;
        }
    }

    /// Does what is due. A call that is too early does nothing.
    pub fn handle_deadline(&mut self, now: Instant) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if due(self.close_deadline()) {
            self.close = Close::Answered;
        }
        if due(self.unpaced_deadline()) {
            self.ping.unpaced = true;
            self.forget_all(now);
            self.flush(now);
        }
        if due(self.silence_deadline()) {
            let lost = self.doubt.is_some_and(|doubt| doubt.alive);
            self.fail(if lost { IbbError::Missing } else { IbbError::Timeout }, now);
        }
        if due(self.waiting_deadline()) {
            self.waiting = true;
        }
        if due(self.ping_deadline()) {
            self.ask(now);
        }
        if due(self.linger_deadline()) {
            self.send_close(now);
        }
    }

    /// Returns when [`Self::handle_deadline`] is due, or [`Self::has_spare_room`] turns true by time alone.
    pub fn deadline(&self) -> Option<Instant> {
        [
            self.spare_deadline(),
            self.close_deadline(),
            self.unpaced_deadline(),
            self.silence_deadline(),
            self.waiting_deadline(),
            self.ping_deadline(),
            self.linger_deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Returns whether the stream stands still because the peer owes an answer and has been silent for [`WAITING`].
    pub fn is_waiting(&self) -> bool {
        self.waiting && self.owes()
    }

    /// Returns how many bytes of ours the peer has.
    pub fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Returns why the stream broke, if it did.
    pub fn failure(&self) -> Option<IbbError> {
        self.failure
    }

    /// Returns what to send next; call until `None`.
    pub fn poll_action(&mut self) -> Option<IbbAction> {
        self.actions.pop_front()
    }

    /// Returns whether something is to be sent.
    pub fn has_actions(&self) -> bool {
        !self.actions.is_empty()
    }

    /// Returns whether bytes may be written now.
    pub fn has_window(&self) -> bool {
        self.is_writable() && self.lets_block_go()
    }

    /// Returns whether the window lets another block go now.
    fn lets_block_go(&self) -> bool {
        let out = self.unanswered.len();
        let free = match self.doubt {
            // Messages to an absent peer may reach another resource.
            None if self.ping.missed && !self.options.acknowledged => false,
            None => out < MAX_BLOCKS && self.window.next_block().is_some(),
            // One more block, when the peer is present: its answer settles the fate of the earlier ones.
            Some(doubt) => {
                let room = out < MAX_BLOCKS + TRIALS;
                doubt.alive && doubt.trial.is_none() && room
            }
        };
        self.opened && self.may_send() && free
    }

    /// Returns whether writing is still possible, now or later.
    pub fn is_writable(&self) -> bool {
        self.quiet_since.is_none() && self.may_send()
    }

    /// Returns whether blocks can be sent, now or later.
    fn may_send(&self) -> bool {
        !self.peer_closed && self.close == Close::NotSent && self.failure.is_none()
    }

    /// Takes the first bytes for one block and returns how many: 0 if [`Self::has_window`] is false, or if bytes that were
    /// taken before fill a block.
    ///
    /// A small rest waits for more while other blocks are on their way (as in RFC 896), because a stanza costs a server
    /// about as much as some kilobytes. It goes when its block is full, by [`Self::flush`], or when everything before it
    /// has arrived.
    pub fn write(&mut self, bytes: &[u8], now: Instant) -> usize {
        if !self.has_window() || bytes.is_empty() {
            return 0;
        }
        let most = self.longest();
        let n = bytes.len().min(most.saturating_sub(self.collected.len()));
        // The answer to a block in doubt may come with this one only.
        let at_once = self.unanswered.is_empty() || self.doubt.is_some();
        if self.collected.is_empty() && (n >= most / SMALL || at_once) {
            self.send(bytes[..n].to_vec(), now);
            return n;
        }
        self.collected.extend_from_slice(&bytes[..n]);
        if self.collected.len() >= most || at_once {
            self.send_collected(most, now);
        }
        n
    }

    /// Sends what waits for the rest of its block, as far as the window lets it go now. Returns whether nothing is left.
    pub fn flush(&mut self, now: Instant) -> bool {
        while !self.collected.is_empty() && self.lets_block_go() {
            self.send_collected(self.longest(), now);
        }
        self.collected.is_empty() || !self.may_send()
    }

    /// Sends what waits for the rest of its block if nothing else is on its way.
    fn flush_if_alone(&mut self, now: Instant) {
        if self.unanswered.is_empty() {
            self.flush(now);
        }
    }

    /// Returns how many bytes the next block may have.
    fn longest(&self) -> usize {
        match self.doubt {
            Some(_) => TRIAL.min(usize::from(self.options.block_size)),
            None => self.window.next_block().unwrap_or_default(),
        }
    }

    fn send_collected(&mut self, most: usize, now: Instant) {
        let rest = self.collected.split_off(self.collected.len().min(most));
        let block = mem::replace(&mut self.collected, rest);
        self.send(block, now);
    }

    fn send(&mut self, payload: Vec<u8>, now: Instant) {
        let seq = self.next_out;
        self.next_out = seq.wrapping_add(1);
        if let Some(doubt) = &mut self.doubt {
            doubt.trial = Some(seq);
        }
        if self.unanswered.is_empty() {
            (self.progress, self.heard) = (now, now);
        }
        let n = payload.len();
        self.unanswered.push_back((n, self.window.depart(n, now)));
        self.actions.push_back(IbbAction::SendData { seq, payload });
        self.pace(now);
    }

    /// Returns whether every byte was acknowledged (or never will be).
    pub fn is_flushed(&self) -> bool {
        self.unanswered.is_empty() && self.collected.is_empty() || self.failure.is_some()
    }

    /// Ends the local user's writing; returns whether that is new.
    pub fn shutdown(&mut self, now: Instant) -> bool {
        let news = self.quiet_since.is_none();
        self.quiet_since.get_or_insert(now);
        self.flush(now);
        news
    }

    /// Closes at once because the local user is gone, without waiting. Data that still arrives is refused.
    pub fn abort(&mut self, now: Instant) {
        self.shutdown(now);
        self.gone = true;
        self.held.clear();
        self.collected.clear();
        (self.held_bytes, self.taken) = (0, 0);
        if !self.peer_closed {
            self.send_close(now);
        }
    }

    /// Returns the next received bytes; empty if there are none at present.
    pub fn chunk(&self) -> &[u8] {
        self.held.front().map_or(&[], |block| &block.payload[self.taken..])
    }

    /// Removes the first `n` bytes of [`Self::chunk`]. A block that was read is acknowledged.
    pub fn consume(&mut self, n: usize) {
        self.taken += n.min(self.chunk().len());
        self.drop_read();
    }

    /// Returns whether no more bytes will come after those in [`Self::chunk`]: `Ok` if the stream was closed.
    pub fn end(&self) -> Option<Result<(), IbbError>> {
        match self.failure {
            Some(error) => Some(Err(error)),
            None if self.peer_closed || self.close == Close::Answered => Some(Ok(())),
            None => None,
        }
    }

    /// Returns whether neither side will send anything more, answers included.
    pub fn is_over(&self) -> bool {
        (self.peer_closed || self.close == Close::Answered) && !self.has_actions()
    }

    /// Returns whether the stream has stopped listening to the peer; if so, answers the request.
    fn is_deaf(&mut self, id: Option<&str>) -> bool {
        let closed = self.peer_closed || self.close == Close::Answered;
        let deaf = closed || self.gone || self.failure.is_some();
        if deaf {
            let refusal = Refusal::item_not_found("this bytestream is closed");
            self.answer(id.map(|id| IbbAction::Refuse { id: id.to_owned(), refusal }));
        }
        deaf
    }

    /// Queues an answer, unless the owner no longer sends them.
    fn answer(&mut self, answer: Option<IbbAction>) {
        if self.actions.len() <= MAX_ENTRIES {
            self.actions.extend(answer);
        }
    }

    /// Drops what has been read, and acknowledges it.
    fn drop_read(&mut self) {
        while self.held.front().is_some_and(|block| block.payload.len() <= self.taken) {
            let Some(block) = self.held.pop_front() else { return };
            self.taken = 0;
            self.held_bytes -= block.payload.len();
            self.actions.extend(block.id.map(|id| IbbAction::Ack { id }));
        }
    }

    fn refuse(&mut self, id: Option<&str>, refusal: Refusal, error: IbbError, now: Instant) {
        self.answer(id.map(|id| IbbAction::Refuse { id: id.to_owned(), refusal }));
        self.fail(error, now);
    }

    fn fail(&mut self, error: IbbError, now: Instant) {
        self.failure.get_or_insert(error);
        self.unanswered.clear();
        self.collected.clear();
        self.send_close(now);
    }

    fn send_close(&mut self, now: Instant) {
        if self.close == Close::NotSent {
            self.close = Close::Sent;
            self.progress = now;
            self.actions.push_back(IbbAction::SendClose);
        }
    }

    /// Returns which of the unanswered blocks has this number. They are numbered without a gap.
    fn place(&self, seq: u16) -> Option<usize> {
        let behind = usize::from(self.next_out.wrapping_sub(seq));
        self.unanswered.len().checked_sub(behind).filter(|_| behind > 0)
    }

    /// Notes that the first `n` unanswered blocks have arrived. `asked`: when the ping was sent whose answer says so.
    fn settle(&mut self, n: usize, asked: Option<Instant>, now: Instant) {
        let last = self.forget(n, now);
        if let Some(departure) = last {
            self.window.arrive(&departure, asked, now);
        }
    }

    /// Removes the first `n` unanswered blocks, and returns the departure of the last.
    fn forget(&mut self, n: usize, now: Instant) -> Option<Departure> {
        (self.progress, self.sought_gap) = (now, false);
        let settled = self.unanswered.drain(..n.min(self.unanswered.len()));
        settled.fold(None, |_, (bytes, departure)| {
            self.delivered += bytes as u64;
            Some(departure)
        })
    }

    /// Notes that all blocks have left for a peer that acknowledges none.
    fn forget_all(&mut self, now: Instant) {
        if let Some(departure) = self.forget(self.unanswered.len(), now) {
            self.window.forget(&departure);
        }
    }

    /// Notes that the peer itself was heard.
    fn hear(&mut self, now: Instant) {
        self.heard = now;
        self.waiting = false;
        self.ping.absent = 0;
        self.ping.missed = false;
        self.flush_if_alone(now);
    }

    /// Notes an error that says that a block was not delivered. The block's number is known if it was sent by IQ.
    fn suspect(&mut self, block: Option<u16>, now: Instant) {
        let Some(doubt) = &mut self.doubt else {
            if self.unanswered.is_empty() {
                (self.progress, self.heard) = (now, now);
            }
            self.doubt = Some(Doubt::default());
            if self.ping.asked.is_none() {
                self.ask(now);
            }
            return;
        };
        if doubt.trial.is_none() || doubt.trial != block {
            return;
        }
        // The block that was sent to settle the doubt came back too. Each such block costs a pause, and there are few:
        // otherwise a peer that answers pings and refuses blocks would make the stream spin.
        let failed = doubt.failed + 1;
        *doubt = Doubt { failed, ..Doubt::default() };
        if failed >= TRIALS {
            return self.fail(IbbError::Missing, now);
        }
        self.ping.missed = true;
        (self.ping.asked, self.ping.again) = (None, Some(now + ABSENT[0]));
    }

    /// Sends a ping after blocks by message, one at a time.
    fn pace(&mut self, now: Instant) {
        if self.options.acknowledged || self.unanswered.is_empty() {
            return;
        }
        if self.ping.unpaced {
            self.forget_all(now);
        } else if self.ping.asked.is_none() && self.ping.again.is_none() {
            self.ask(now);
        }
    }

    fn ask(&mut self, now: Instant) {
        self.ping.asked = Some((now, self.unanswered.len()));
        self.ping.again = None;
        if !self.actions.contains(&IbbAction::Ping) {
            self.actions.push_back(IbbAction::Ping);
        }
    }

    fn spare_deadline(&self) -> Option<Instant> {
        let is_more = self.options.is_scarce && self.room > self.options.room;
        let pause = if self.peer_window.is_some() { PAUSE } else { BUSY };
        (is_more && self.held_bytes == 0).then(|| self.block_at + pause)
    }

    fn close_deadline(&self) -> Option<Instant> {
        (self.close == Close::Sent).then(|| self.progress + CLOSING)
    }

    /// Returns whether the peer owes an answer: to a block, or to a ping. Without the answer to a failed ping no block
    /// by message is sent.
    fn owes(&self) -> bool {
        let open = self.failure.is_none() && !self.peer_closed && self.close != Close::Answered;
        let missed = self.ping.missed && !self.options.acknowledged;
        open && (!self.unanswered.is_empty() || self.doubt.is_some() || missed)
    }

    fn silence_deadline(&self) -> Option<Instant> {
        self.owes().then(|| self.progress + self.options.silence_timeout)
    }

    fn waiting_deadline(&self) -> Option<Instant> {
        let asked = self.ping.asked.map(|(asked, _)| asked);
        let silent = asked.is_some() || self.ping.missed;
        // A peer that is slow to read may last have been heard at its answer to the ping before, so it has time to answer this one.
        let answers = asked.map(|asked| asked + PROBE);
        let until = answers.into_iter().chain([self.heard + WAITING]).max();
        until.filter(|_| self.owes() && silent && !self.waiting)
    }

    fn ping_deadline(&self) -> Option<Instant> {
        let next = match (self.ping.asked, self.ping.again) {
            (Some((asked, _)), _) => asked + REPEAT,
            (None, Some(again)) if self.doubt.is_some() || self.ping.missed => again,
            (None, Some(again)) => again.max(self.progress + PROBE),
            (None, None) => self.progress + PROBE,
        };
        self.owes().then_some(next)
    }

    fn unpaced_deadline(&self) -> Option<Instant> {
        let Ping { answered, missed, unpaced, .. } = self.ping;
        let known = answered || missed || unpaced || self.doubt.is_some();
        let first = !self.options.acknowledged && !known;
        self.ping.asked.filter(|_| first && self.owes()).map(|(asked, _)| asked + UNPACED)
    }

    fn linger_deadline(&self) -> Option<Instant> {
        let arrived = self.unanswered.is_empty() && self.collected.is_empty();
        let done = arrived && self.close == Close::NotSent && !self.peer_closed;
        self.quiet_since.filter(|_| done).map(|since| since + self.options.close_linger)
    }
}

#[cfg(test)]
#[path = "ibb_tests.rs"]
mod tests;
