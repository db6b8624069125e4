//! Carries out a session's decisions: stanzas, lookups, connections, the relay and the clock.

use std::{
    future::poll_fn,
    os::fd::OwnedFd,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use fingerpost_carry::{
    ibb_handle::IbbHandle,
    leg_end::{self, Delivery},
    shares::Full,
    tcp,
};
use fingerpost_wire::{
    ibb::IbbError,
    ibb_xml::IbbStanza,
    jingle,
    jingle::Reason,
    ns,
    stanza::{RequestKind, Stanza},
    transport_kind::TransportKind,
};
use futures::FutureExt as _;
use minidom::Element;
use tokio::{
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    callee::{Again, Left},
    directory::{Facts, SeenConnection},
    journal::JournalLine,
    lookups::FeatureAnswer,
    machine::Machine,
    refusal::SessionRefusal,
    session::{ANSWER, SessionAction, SessionInput},
    shared::{BrokerState, SessionGuard},
    side::{PerSide, Side},
};
use crate::{
    metrics,
    refuse::Refuse as _,
    relay::{
        join::join,
        pipe::{self, StreamOutcome},
        socket::{Socket, SocketLeg},
        table::Registration,
        watch::StreamProgress,
    },
};

/// How long a stream may move nothing, with no byte waiting for a reader, after both sides know that the session is
/// over.
const LINGER: Duration = Duration::from_secs(5);

/// How often it is looked how much of a stream has moved, if the session awaits that.
const LOOK: Duration = Duration::from_millis(250);

/// How long a client may take to confirm the message that goes before a file.
const RECEIPT: Duration = Duration::from_secs(5);

/// An event that the session has waited for. It is small, because a task has room for its result while it runs.
enum SessionEvent {
    Told(Box<SessionInput>),
    /// The number says after how many partings it was expected.
    Arrived(Side, u32, Option<Box<(Socket, Registration)>>),
    Relayed(u32, Box<StreamOutcome>),
}

impl SessionEvent {
    fn told(input: SessionInput) -> Self {
        Self::Told(Box::new(input))
    }
}

/// The task of one session.
pub(super) struct SessionDriver {
    shared: Arc<BrokerState>,
    facts: Arc<Facts>,
    session: Machine,
    /// The responder's Jingle namespace in the journal.
    noted: &'static str,
    sockets: PerSide<Option<Box<Socket>>>,
    legs: PerSide<Option<SocketLeg>>,
    streams: PerSide<Option<IbbHandle>>,
    /// The connection of a receiver whose success is that it has got all bytes.
    receiver: Option<OwnedFd>,
    /// Whether each in-band leg waits for its user, as the session knows; `None` before both legs are joined.
    waits: PerSide<Option<bool>>,
    /// What ends the stream between the legs.
    relaying: Option<AbortHandle>,
    /// Whether the service has ended the session: no byte flows any more.
    is_cut: bool,
    /// When the service stops.
    stops_at: Option<Instant>,
    /// How often the legs were parted, to be replaced.
    parted: u32,
    /// What waits for the connections of the present legs.
    expected: Vec<AbortHandle>,
    /// The hashes of the connections that have come. Their users may activate them as long as these are here.
    registrations: Vec<Registration>,
    /// The session in the journal, if another run has to know of it.
    line: Option<JournalLine>,
    /// Where the session-initiate goes if the responder does not take it, and the answer to give then.
    again: Option<Again>,
    given_back: Option<Box<(Stanza, Option<Element>)>>,
    /// The tasks that the session waits for. Dropping the session ends them.
    work: JoinSet<SessionEvent>,
    /// The session's places in the tables. It is dropped last, because it checks which streams are over.
    guard: SessionGuard,
}

impl SessionDriver {
    /// Creates a driver for a session that has not begun.
    pub(super) fn new(
        guard: SessionGuard,
        session: Machine,
        line: Option<JournalLine>,
        again: Option<Again>,
    ) -> Self {
        Self {
            shared: Arc::clone(&guard.shared),
            facts: Arc::clone(&guard.facts),
            noted: session.peers().responder.namespace,
            session,
            sockets: PerSide::default(),
            legs: PerSide::default(),
            streams: PerSide::default(),
            receiver: None,
            waits: PerSide::default(),
            relaying: None,
            is_cut: false,
            stops_at: None,
            parted: 0,
            expected: Vec::new(),
            registrations: Vec::new(),
            line,
            again,
            given_back: None,
            work: JoinSet::new(),
            guard,
        }
    }

    /// Returns what other tasks know of the session.
    pub(super) fn facts(&self) -> &Arc<Facts> {
        &self.facts
    }

    /// Runs for the whole life of the session. What is large is boxed, because the future has room for all that it ever
    /// waits for.
    pub(super) async fn run(mut self: Box<Self>) {
        if self.facts.is_plain {
            tracing::info!("nothing encrypts this session from end to end");
        }
        loop {
            while let Some(action) = self.session.poll_action() {
                Box::pin(self.perform(action)).await;
            }
            if self.session.is_over() {
                break;
            }
            let input = tokio::select! {
                biased;
                input = self.facts.inbox.next() => *input,
                Some(done) = self.work.join_next() => match done {
                    Ok(SessionEvent::Told(input)) => *input,
                    Ok(SessionEvent::Arrived(_, parted, _) | SessionEvent::Relayed(parted, _))
                        if parted != self.parted =>
                    {
                        continue;
                    }
                    Ok(SessionEvent::Arrived(side, _, Some(arrived))) => {
                        let (socket, registration) = *arrived;
                        self.sockets[side] = Some(Box::new(socket));
                        self.registrations.push(registration);
                        SessionInput::Arrived(side)
                    }
                    Ok(SessionEvent::Relayed(_, outcome)) => {
                        (self.relaying, self.receiver) = (None, None);
                        self.session.peers().iter().for_each(|peer| self.shared.see(peer, None));
                        let broken = self.broken();
                        self.session.handle(SessionInput::Broken(broken), Instant::now());
                        SessionInput::Relayed(*outcome)
                    }
                    Ok(SessionEvent::Arrived(_, _, None)) | Err(_) => continue,
                },
                (side, waits) = poll_fn(|cx| poll_waiting(&self.streams, self.waits, cx)) => {
                    self.waits[side] = Some(waits);
                    SessionInput::Waits(side, waits)
                }
                moved = delivered(
                    self.session.awaited(),
                    &self.facts.progress,
                    |written| has_got(&self.streams.responder, &self.receiver, written),
                ) => {
                    if self.session.awaited() == Some(moved)
                        && let Some(connection) = self.receiver.take()
                    {
                        // It has everything, so it is closed in order, whatever the sender does with its half.
                        leg_end::set_reset(&connection, false);
                    }
                    SessionInput::Delivered(moved)
                }
                () = until(self.session.deadline()) => SessionInput::Timeout,
            };
            let is_end = matches!(input, SessionInput::End(..) | SessionInput::EndInBand);
            if let SessionInput::Drain(until) = input {
                self.stops_at = Some(until);
            }
            self.session.handle(input, Instant::now());
            self.is_cut |= is_end && self.session.is_over();
        }
        let legs = self.facts.legs.get();
        let legs = legs.map_or(PerSide::both("none"), |legs| legs.map(|leg| leg.as_str()));
        metrics::SESSIONS_ENDED.count(&[legs.initiator, legs.responder, self.session.reason()]);
        if let (Some(given_back), Some(Again(again))) = (self.given_back.take(), self.again.take())
        {
            let (stanza, error) = *given_back;
            let guard = self.into_guard();
            return again(stanza, error, Left { guard }).await;
        }
        Box::pin(self.leave()).await;
    }

    /// Ends what is left: requests that came too late, then bytes.
    async fn leave(&mut self) {
        self.facts.inbox.close();
        self.receiver = None;
        self.guard.leave();
        while let Some(input) = self.facts.inbox.try_next() {
            if let Some(stanza) = input.into_request() {
                self.send(stanza.refuse(SessionRefusal::Over)).await;
            }
        }
        if self.relaying.is_some() && !self.is_cut {
            self.linger().await;
        }
    }

    /// Waits for bytes that still flow when both users know of the end: they may reach their reader.
    async fn linger(&mut self) {
        let rest = async {
            while let Some(done) = self.work.join_next().await {
                if matches!(done, Ok(SessionEvent::Relayed(..))) {
                    break;
                }
            }
        };
        tokio::pin!(rest);
        let progress = &self.facts.progress;
        // A slow reader gets everything, in bounded time: it keeps a place that no user and no admin can see.
        let until = Instant::now() + self.shared.options().idle_timeout;
        let until = self.stops_at.map_or(until, |stop| until.min(stop));
        loop {
            let before = progress.bytes();
            let pause = LINGER.min(until.saturating_duration_since(Instant::now()));
            let over = timeout(pause, &mut rest).await.is_ok() || Instant::now() >= until;
            if over || progress.bytes() == before && !progress.holds() {
                break;
            }
        }
    }

    /// Ends all work; the session keeps its places.
    fn into_guard(self: Box<Self>) -> SessionGuard {
        self.guard
    }

    async fn send(&self, element: Element) {
        let _ = self.shared.outbound.send(element.into()).await;
    }

    async fn perform(&mut self, action: SessionAction) {
        match action {
            SessionAction::Acknowledged => {
                self.shared.acknowledged(&self.session.peers().responder);
            }
            SessionAction::Ask(side, number, payload) => {
                let mut wait = ANSWER;
                let is_offer = payload.is("si", ns::SI);
                if is_offer {
                    // After a crash this receiver cannot be told of the end, and the initiator of a Jingle session can.
                    if let Some(line) = &mut self.line {
                        line.write(self.session.jingle_peers());
                    }
                    // A person answers.
                    wait = self.shared.options().activation_timeout;
                } else if jingle::action(&payload) == jingle::Action::SessionInitiate {
                    // The callee must not learn of a session that a crash would make the component forget.
                    let namespace = self.session.peers().responder.namespace;
                    let is_new = std::mem::replace(&mut self.noted, namespace) != namespace;
                    match &mut self.line {
                        Some(line) if is_new => line.write(self.session.jingle_peers()),
                        Some(_) => {}
                        // It began by stream initiation.
                        None => {
                            let peers = self.session.jingle_peers();
                            self.line = Some(self.shared.journal.begin(peers));
                        }
                    }
                    if let Some(line) = &mut self.line {
                        line.written().await;
                    }
                    wait = self.session.patience();
                }
                let peer = &self.session.peers()[side];
                let (requests, kind) = (&self.shared.requests, RequestKind::Set);
                let pending = match is_offer {
                    true => requests.ask_person(kind, peer.mask(), peer.user(), payload).await,
                    false => Ok(requests.send(kind, peer.mask(), peer.user(), payload).await),
                };
                self.work.spawn(async move {
                    SessionEvent::told(match pending {
                        Ok(pending) => SessionInput::Answered(number, pending.answer(wait).await),
                        Err(_) => SessionInput::Unasked(number),
                    })
                });
            }
            SessionAction::CountDirect { bytes, first } => {
                if first {
                    metrics::SESSIONS_DIRECT.count(&[]);
                }
                metrics::DIRECT_BYTES.add(&[], bytes);
            }
            SessionAction::Connect(side, sid) => {
                let peer = &self.session.peers()[side];
                let mut registration = self.shared.register(peer, &sid);
                let (shared, peer) = (Arc::clone(&self.shared), Box::new(peer.clone()));
                let parted = self.parted;
                let expected = self.work.spawn(async move {
                    let socket = registration.arrived().await;
                    let client = socket.as_ref().and_then(Socket::client);
                    shared.see(&peer, client.map(|client| SeenConnection { sid, client }));
                    let arrived = socket.map(|socket| Box::new((socket, registration)));
                    SessionEvent::Arrived(side, parted, arrived)
                });
                self.expected.push(expected);
            }
            SessionAction::ExpectOpen(side, sid) => {
                self.shared.expect_open(&self.session.peers()[side], sid);
            }
            SessionAction::Join => {
                let PerSide { initiator: a, responder: b } = &mut self.legs;
                let (Some(a), Some(b)) = (a.take(), b.take()) else { return };
                let legs = PerSide { initiator: a.transport_kind(), responder: b.transport_kind() };
                tracing::info!(initiator = %legs.initiator, responder = %legs.responder, "both legs up");
                let settings = self.shared.options();
                let options = pipe::StreamOptions {
                    idle_timeout: settings.idle_timeout,
                    guard: (settings.require_tls && self.session.is_tls()).then_some(
                        match self.parted {
                            0 => pipe::FirstBytes::ClientHello,
                            _ => pipe::FirstBytes::PathUse,
                        },
                    ),
                    account: pipe::PipeAccount::of(&self.facts.user(Side::Initiator)),
                };
                for side in Side::BOTH {
                    self.waits[side] = self.streams[side].as_ref().map(IbbHandle::is_waiting);
                }
                if legs == PerSide::both(TransportKind::S5b) {
                    self.line.iter().for_each(JournalLine::streams);
                }
                if let (Some(line), Some(renewable)) = (&mut self.line, self.session.renewable()) {
                    line.renew(self.session.peers(), renewable);
                }
                if let (Some(_), SocketLeg::Socket(socket)) = (self.session.awaited(), &b) {
                    self.receiver = socket.watch().ok();
                }
                if !self.session.is_activated_late() {
                    self.registrations = Vec::new();
                }
                let _once = self.facts.legs.set(legs);
                let (plane, facts) = (self.shared.table.plane().clone(), Arc::clone(&self.facts));
                let parted = self.parted;
                let relaying = join(plane, a, b, options, ProgressOf(facts));
                self.relaying = Some(self.work.spawn(
                    relaying.map(move |outcome| SessionEvent::Relayed(parted, Box::new(outcome))),
                ));
            }
            SessionAction::Part => {
                // Nothing of the old legs is kept, however often they are replaced.
                self.relaying.take().iter().chain(&self.expected).for_each(AbortHandle::abort);
                self.expected.clear();
                self.receiver = None;
                self.registrations.clear();
                self.parted += 1;
                self.facts.progress.part();
                for side in Side::BOTH {
                    (self.sockets[side], self.legs[side]) = (None, None);
                    (self.streams[side], self.waits[side]) = (None, None);
                    self.shared.see(&self.session.peers()[side], None);
                }
            }
            SessionAction::Greet(text) => {
                let PerSide { initiator, responder } = self.session.peers();
                let greeting = self.shared.greeting(initiator, responder, &text);
                if let Some((message, receipt)) = greeting {
                    self.send(message).await;
                    // Dino has the chat only after it has asked what the address is, and takes no file before.
                    let _in_time = timeout(RECEIPT, receipt).await;
                }
            }
            SessionAction::LookUpFeatures => {
                let shared = Arc::clone(&self.shared);
                let pair = Arc::clone(&self.session.peers().responder.pair);
                self.work.spawn(async move {
                    SessionEvent::told(match shared.features(&pair.0, &pair.1).await {
                        FeatureAnswer::Features(features) => {
                            SessionInput::Features(features.to_vec())
                        }
                        FeatureAnswer::Silence => SessionInput::NoFeatures,
                        FeatureAnswer::Error => {
                            match shared.look_up_room(pair.0.domain().as_str()).await {
                                true => SessionInput::Room,
                                false => SessionInput::Features(Vec::new()),
                            }
                        }
                    })
                });
            }
            SessionAction::LookUpKeys(side, prints) => {
                let shared = Arc::clone(&self.shared);
                let owner = self.facts.user(side);
                let asker = self.facts.user(side.other());
                self.work.spawn(async move {
                    SessionEvent::told(SessionInput::Keys(
                        side,
                        shared.keys(&owner, &asker, &prints).await,
                    ))
                });
            }
            SessionAction::Leave => {
                self.line.iter().for_each(JournalLine::leave);
                // The users' programs go on over other legs.
                self.relaying.take().iter().for_each(AbortHandle::abort);
            }
            SessionAction::GiveBack(stanza, error) => {
                self.given_back = Some(Box::new((*stanza, error)));
            }
            SessionAction::Send(element) => self.send(element).await,
            SessionAction::TakeSocket(side) => {
                self.legs[side] = self.sockets[side].take().map(SocketLeg::Socket);
            }
            SessionAction::TakeStream(side, sid, block_size, stanza) => {
                self.shared.see(&self.session.peers()[side], None);
                match self.stream(side, sid, block_size, stanza) {
                    Ok(leg) => self.legs[side] = Some(leg),
                    Err(full) => {
                        tracing::debug!(side = side.as_str(), %full, "no memory for an in-band stream");
                        let text = "there is no memory for another in-band stream; try again later";
                        let end = SessionInput::End(Reason::FailedTransport, text.to_owned());
                        self.work.spawn(async move { SessionEvent::told(end) });
                    }
                }
            }
        }
    }

    /// Returns which in-band leg broke, and why.
    fn broken(&self) -> Option<(Side, IbbError)> {
        let of = |side: Side| Some((side, self.streams[side].as_ref()?.failure()?));
        of(Side::Initiator).or_else(|| of(Side::Responder))
    }

    fn stream(
        &mut self,
        side: Side,
        sid: String,
        block_size: u16,
        stanza: IbbStanza,
    ) -> Result<SocketLeg, Full> {
        let peer = &self.session.peers()[side];
        let (stream, handle) = self.shared.stream(peer, sid, block_size, stanza)?;
        self.streams[side] = Some(handle);
        Ok(SocketLeg::Ibb(stream))
    }
}

/// The progress of a session's stream, for the task that relays it.
struct ProgressOf(Arc<Facts>);

impl AsRef<StreamProgress> for ProgressOf {
    fn as_ref(&self) -> &StreamProgress {
        &self.0.progress
    }
}

/// Returns the side whose in-band leg begins or ends to wait for its user, and which of both.
fn poll_waiting(
    streams: &PerSide<Option<IbbHandle>>,
    known: PerSide<Option<bool>>,
    cx: &Context<'_>,
) -> Poll<(Side, bool)> {
    for side in Side::BOTH {
        if let (Some(stream), Some(known)) = (&streams[side], known[side])
            && let Poll::Ready(waits) = stream.poll_waiting(known, cx)
        {
            return Poll::Ready((side, waits));
        }
    }
    Poll::Pending
}

/// Returns how many bytes a receiver has surely got, given how many were written to it.
fn has_got(stream: &Option<IbbHandle>, connection: &Option<OwnedFd>, written: u64) -> u64 {
    match (stream, connection) {
        (Some(stream), _) => stream.delivered(),
        (None, Some(connection)) if !Delivery::Tcp(tcp::info(connection)).is_complete() => 0,
        (None, _) => written,
    }
}

/// Waits until the second leg of a stream has got so many bytes, or more than that have come; for ever, if no number is given.
/// Returns how many have come.
async fn delivered(
    expected: Option<u64>,
    progress: &StreamProgress,
    has_got: impl Fn(u64) -> u64,
) -> u64 {
    let Some(expected) = expected else { return std::future::pending().await };
    loop {
        let moved = progress.forward();
        if is_delivered(expected, moved, progress.holds(), &has_got) {
            return moved;
        }
        sleep(LOOK).await;
    }
}

/// Returns whether a receiver has got so many bytes, or more than that have come for it.
fn is_delivered(expected: u64, moved: u64, holds: bool, has_got: impl Fn(u64) -> u64) -> bool {
    moved > expected || moved == expected && !holds && has_got(moved) >= expected
}

/// Waits until this time; for ever, if there is none.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_on_their_way_are_not_delivered() {
        assert!(is_delivered(3, 3, false, |moved| moved));
        assert!(!is_delivered(3, 3, false, |_| 2), "a block without an answer");
        assert!(!is_delivered(3, 3, true, |moved| moved), "a byte that was not written");
        assert!(!is_delivered(3, 2, false, |moved| moved));
        assert!(is_delivered(3, 4, true, |_| 0), "too many have come, delivered or not");
    }
}
