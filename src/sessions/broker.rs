//! Finds the session of a stanza, or creates one.

use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use fingerpost_carry::{
    ibb_handle::IbbHandle,
    iq::{Requests, random_id},
    outbound::Outbound,
    shares::Permits,
};
use fingerpost_secure::identity::Identity;
use fingerpost_wire::{
    ibb_xml::IbbPayload,
    jid::proxied,
    jingle::{self, Reason},
    ns,
    si::{self, SiError},
    stanza::{Kind, RequestKind, Stanza, StanzaType},
    transport::Transport,
    transport_kind::TransportKind,
};
use jid::Jid;
use minidom::Element;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::task::TaskTracker;

use super::{
    callee::Callee,
    directory::{Facts, SessionEntry, SessionInfo, SessionKey},
    driver::SessionDriver,
    features,
    journal::{Journal, LeftSession, Restored},
    legs::LegState,
    machine::Machine,
    options::BrokerOptions,
    own::{self, OwnSession},
    own_driver::OwnDriver,
    peer::SessionPeer,
    refusal::SessionRefusal,
    session::{self, BrokeredSession, SessionInput},
    shared::BrokerState,
    si::SiSession,
    side::{PerSide, Side},
};
use crate::{
    metrics,
    refuse::Refuse as _,
    registry::{KeyNotice, Registry},
    relay::table::TransferTable,
};

/// The longest accepted session id, in bytes: each stanza of the session repeats it.
const SID: usize = 1024;

/// The broker. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Broker {
    shared: Arc<BrokerState>,
    tasks: TaskTracker,
}

impl Broker {
    /// Creates a broker without sessions.
    pub fn new(
        options: BrokerOptions,
        outbound: Outbound,
        requests: Requests,
        registry: Registry,
        table: TransferTable,
        journal: Journal,
        tasks: TaskTracker,
    ) -> Self {
        let state = Mutex::default();
        Self {
            shared: Arc::new(BrokerState {
                is_settling: AtomicBool::new(false),
                memory: Permits::new(options.memory()),
                options: RwLock::new(Arc::new(options)),
                outbound,
                requests,
                registry,
                table,
                journal,
                state,
            }),
            tasks,
        }
    }

    /// Returns how many bytes in-band bytestreams hold or have reserved, and how many they may.
    pub fn memory(&self) -> (usize, usize) {
        (self.shared.memory.taken(), self.shared.options().memory)
    }

    /// Returns how many sessions there may be.
    pub fn most_sessions(&self) -> usize {
        self.shared.options().sessions.0
    }

    /// Returns how many sessions there are.
    pub fn sessions(&self) -> usize {
        self.shared.lock().shares.taken()
    }

    /// Returns whether a Jingle stanza belongs to a session that exists, and if so passes it there.
    pub fn handle_jingle(&self, stanza: &Stanza) -> bool {
        let Some(sid) = stanza.payload().and_then(|jingle| jingle.attr("sid")) else {
            return false;
        };
        let told = {
            let state = self.shared.lock();
            let mut entries = state.legs.between(&stanza.from, &stanza.to);
            let found = entries.find(|entry| entry.sid() == sid);
            found.map(|entry| entry.tell(SessionInput::Jingle(entry.side, stanza.clone())))
        };
        let Some(told) = told else { return false };
        if !told {
            let refused = stanza.refuse(SessionRefusal::TooManyRequests);
            let _ = self.shared.outbound.try_send(refused.into());
        }
        true
    }

    /// Returns the address from which a user has connected as one leg of a session: `user` with the user at `mask`, by the
    /// id of the leg's bytestream. `None` also if users may not connect directly.
    pub fn observed(&self, user: &Jid, mask: &Jid, sid: &str) -> Option<SocketAddr> {
        if !self.shared.options().direct {
            return None;
        }
        let state = self.shared.lock();
        let mut seen = state.legs.between(user, mask).filter_map(|entry| entry.seen.as_ref());
        seen.find(|seen| seen.sid == sid).map(|seen| seen.client)
    }

    /// Returns whether a user has a session: with the user at that address here, or any.
    pub fn has_session(&self, user: &Jid, mask: Option<&Jid>) -> bool {
        let state = self.shared.lock();
        match mask {
            Some(mask) => state.legs.between(user, mask).next().is_some(),
            None => state.legs.has_user(user),
        }
    }

    /// Returns whether a Jingle stanza is about a session that has ended recently.
    pub fn remembers(&self, stanza: &Stanza) -> bool {
        let sid = stanza.payload().and_then(|jingle| jingle.attr("sid")).unwrap_or_default();
        let pair = (stanza.from.clone(), stanza.to.clone());
        self.shared.lock().ended.has(&pair, sid, Instant::now())
    }

    /// Creates a session for a session-initiate from `stanza.from` to `callee`.
    ///
    /// # Errors
    /// The answer to the initiator, if the session cannot be created.
    pub fn initiate(&self, stanza: Stanza, callee: Callee) -> Result<(), SessionRefusal> {
        let Callee { jid: callee, sid: known, patience, has_others, again } = callee;
        let callee = &callee;
        let shared = &self.shared;
        let options = shared.options();
        let Some(jingle) = stanza.payload() else {
            return Err(SessionRefusal::NoJingle);
        };
        let namespace = jingle::namespace(jingle);
        let Some(sid) = jingle.attr("sid").filter(|sid| !sid.is_empty()).map(str::to_owned) else {
            return Err(SessionRefusal::NoSid);
        };
        if sid.len() > SID {
            return Err(SessionRefusal::LongSid(SID));
        }
        let (chosen, transport) = session::choose(jingle, &options)?;
        let channel = session::channel(jingle, chosen);
        let Some(mask) = proxied(&stanza.from, &options.jid) else {
            return Err(SessionRefusal::LongJid);
        };
        let initiator = SessionPeer {
            pair: Arc::new((stanza.from.clone(), stanza.to.clone())),
            sid: sid.into(),
            namespace,
        };
        // Sorts before the sids of others, so that a crossing session-initiate of the responder gives way.
        let theirs = known.unwrap_or_else(|| format!("-{}", random_id()));
        let responder =
            SessionPeer { pair: Arc::new((callee.clone(), mask)), sid: theirs.into(), namespace };
        let peers = PerSide { initiator, responder };
        let is_plain = session::is_plain(jingle, chosen);
        let facts = Arc::new(Facts::between(&peers, is_plain));
        let (leg, ibb) = match transport {
            Transport::Ibb { namespace, sid, block_size } => {
                (LegState::ibb(namespace, sid.clone(), block_size), Some(sid))
            }
            Transport::S5b { sid, candidates } => {
                (LegState::offered_s5b(sid, candidates, &options.jid, random_id()), None)
            }
        };
        let entry = |side| SessionEntry::new(&facts, side);
        let ours = SessionEntry { ibb, ..entry(Side::Initiator) };
        let crossable = channel.clone();
        let theirs = SessionEntry { ibb: Some(None), crossable, ..entry(Side::Responder) };
        let guard = {
            let mut state = shared.lock();
            // If the callee's own session-initiate came first, this one is an answer to a session that it does not
            // know.
            if channel.is_some()
                && let Some(theirs) = proxied(callee, &options.jid)
                && let mut entries = state.legs.between(&stanza.from, &theirs)
                && entries.any(|e| e.crossable == channel && *e.sid() < *peers.initiator.sid)
            {
                return Err(SessionRefusal::Crossed);
            }
            if state.has(ours.pair(), ours.sid()) {
                return Err(SessionRefusal::Exists);
            }
            shared.enter(&mut state, facts, [ours, theirs])?
        };
        let line = shared.journal.begin(peers.iter());
        let mut machine = BrokeredSession::new(
            Arc::clone(&options),
            random_id,
            peers,
            leg,
            chosen,
            stanza,
            Instant::now(),
        );
        machine.expect_acknowledgement(patience, again.is_some(), has_others);
        if is_plain {
            metrics::SESSIONS_PLAIN.count(&[]);
        }
        self.begin(SessionDriver::new(guard, Machine::Jingle(machine, None), Some(line), again));
        Ok(())
    }

    /// Returns whether files by stream initiation (XEP-0096) are brokered. Nothing encrypts them.
    pub fn takes_stream_initiation(&self) -> bool {
        self.shared.options().takes_plain_files()
    }

    /// Notes that a client knows the component as its proxy.
    pub fn note_proxy_user(&self, client: &Jid) {
        self.shared.lock().proxy_users.insert(client);
    }

    /// Creates a session for a file that `stanza.from` offers to `callee` by stream initiation.
    ///
    /// # Errors
    /// The answer to the sender, if the session cannot be created.
    pub fn initiate_stream(&self, stanza: Stanza, callee: Jid) -> Result<(), SessionRefusal> {
        let shared = &self.shared;
        let options = shared.options();
        let offer = stanza.payload().ok_or(SessionRefusal::StreamInitiation(SiError::File))?;
        let (sid, methods) = si::offer(offer).map_err(SessionRefusal::StreamInitiation)?;
        if methods.and(SiSession::own_methods(&options)).is_empty() {
            return Err(SessionRefusal::StreamInitiation(SiError::Methods));
        }
        let mask = proxied(&stanza.from, &options.jid).ok_or(SessionRefusal::LongJid)?;
        let peer = |pair, sid| SessionPeer { pair: Arc::new(pair), sid, namespace: ns::SI };
        let peers = PerSide {
            initiator: peer((stanza.from.clone(), stanza.to.clone()), sid.into()),
            responder: peer((callee, mask), random_id().into()),
        };
        let facts = Arc::new(Facts::between(&peers, true));
        let (guard, knows_proxy) = {
            let mut state = shared.lock();
            let legs = Side::BOTH.map(|side| SessionEntry::new(&facts, side));
            if legs.iter().any(|leg| state.has(leg.pair(), leg.sid())) {
                return Err(SessionRefusal::Exists);
            }
            let knows_proxy = state.proxy_users.has(&stanza.from);
            (shared.enter(&mut state, facts, legs)?, knows_proxy)
        };
        metrics::SESSIONS_PLAIN.count(&[]);
        let machine = SiSession::new(options, peers, stanza, methods, knows_proxy, Instant::now());
        // A receiver learns of a lost stream by its end, so the journal has no line of it.
        self.begin(SessionDriver::new(guard, Machine::Si(Box::new(machine)), None, None));
        Ok(())
    }

    /// Returns whether SOCKS5 addresses (XEP-0065) belong to a session, and if so passes them there.
    pub fn handle_bytestreams(&self, stanza: &Stanza) -> bool {
        let Some(sid) = stanza.payload().and_then(|query| query.attr("sid")) else {
            return false;
        };
        let state = self.shared.lock();
        let mut entries = state.legs.between(&stanza.from, &stanza.to);
        entries.any(|entry| {
            entry.sid() == sid && entry.tell(SessionInput::Bytestreams(entry.side, stanza.clone()))
        })
    }

    /// Goes on with the sessions that an earlier run has left, and notifies the users of those that cannot continue. That run
    /// may still carry their streams, for as long as `drain`. Call it when the link is up.
    ///
    /// It ends early if `leads` returns `false`: the sessions are another instance's then. It calls `settled` when the sessions
    /// are here, before the database has to take anything.
    pub async fn settle(&self, drain: Duration, leads: impl Fn() -> bool, settled: impl FnOnce()) {
        let BrokerState { journal, outbound, .. } = &*self.shared;
        let patience = drain + session::RENEWAL;
        let told = journal.settle(outbound, &leads, |left| self.restore(left, patience)).await;
        self.set_settling(false);
        settled();
        journal.forget_told(told, leads).await;
    }

    /// Notes whether sessions of an earlier run may exist that are not known here yet.
    pub fn set_settling(&self, is_settling: bool) {
        self.shared.is_settling.store(is_settling, Ordering::Relaxed);
    }

    /// Returns whether a session that is not known here may be one of an earlier run.
    pub fn is_settling(&self) -> bool {
        self.shared.is_settling.load(Ordering::Relaxed)
    }

    /// Goes on with a session.
    fn restore(&self, left: LeftSession, patience: Duration) -> Restored {
        let shared = &self.shared;
        let options = shared.options();
        if !options.direct {
            return Restored::Lost;
        }
        let peers = &left.peers;
        let facts = Arc::new(Facts::between(peers, false));
        let legs = Side::BOTH.map(|side| SessionEntry::new(&facts, side));
        let guard = {
            let mut state = shared.lock();
            if peers.iter().any(|peer| state.has(&peer.pair, &peer.sid)) {
                // This process has it: another one has led for a while.
                drop(state);
                shared.journal.end(&left);
                return Restored::Here;
            }
            if state.draining {
                return Restored::Later;
            }
            let Ok(guard) = shared.enter(&mut state, facts, legs) else {
                return Restored::Lost;
            };
            guard
        };
        let line = shared.journal.go_on(&left);
        let now = Instant::now();
        let machine = BrokeredSession::restored(options, random_id, left, now, now + patience);
        self.begin(SessionDriver::new(guard, Machine::Jingle(machine, None), Some(line), None));
        Restored::Here
    }

    /// Starts the task of a session.
    fn begin(&self, driver: SessionDriver) {
        metrics::SESSIONS.count(&[]);
        let facts = Arc::clone(driver.facts());
        self.tasks.spawn(in_span(facts, Box::pin(Box::new(driver).run())));
    }

    /// Leaves the sessions with which another instance can go on. The programs of their users then do so there.
    pub fn leave_renewable(&self) {
        for entry in self.shared.lock().legs.sessions() {
            entry.tell(SessionInput::GoOnElsewhere);
        }
    }

    /// Starts a session between a user and the component itself, which proves the offered key.
    ///
    /// # Errors
    /// The answer to the user, if the session cannot be created.
    pub fn initiate_own(
        &self,
        stanza: Stanza,
        identity: Arc<Identity>,
        notices: mpsc::Sender<KeyNotice>,
    ) -> Result<(), SessionRefusal> {
        let shared = &self.shared;
        let options = shared.options();
        let jingle = stanza.payload().ok_or(SessionRefusal::OwnNoJingle)?;
        let sid = jingle.attr("sid").filter(|sid| !sid.is_empty());
        let (Some(sid), Some(content)) = (sid, own::first_content(jingle)) else {
            return Err(SessionRefusal::OwnNoContent);
        };
        if sid.len() > SID {
            return Err(SessionRefusal::LongSid(SID));
        }
        if !own::is_raw(content) {
            return self.refuse_application(&stanza, jingle, sid);
        }
        let pins = own::pins(content);
        if pins.is_empty() {
            return Err(SessionRefusal::OwnUnsecured);
        }
        let transport = Transport::read(content).filter(|transport| options.takes(transport));
        let transport = transport.ok_or(SessionRefusal::NoTransport)?;
        let peer = SessionPeer {
            pair: Arc::new((stanza.from.clone(), own::mask(&options.jid))),
            sid: sid.into(),
            namespace: jingle::namespace(jingle),
        };
        let ibb = match &transport {
            Transport::Ibb { sid, .. } => Some(sid.clone()),
            Transport::S5b { .. } => None,
        };
        let facts = Arc::new(Facts::own(&peer));
        let leg = SessionEntry { ibb, ..SessionEntry::new(&facts, Side::Initiator) };
        let guard = {
            let mut state = shared.lock();
            if state.has(leg.pair(), leg.sid()) {
                return Err(SessionRefusal::Exists);
            }
            shared.enter(&mut state, Arc::clone(&facts), [leg])?
        };
        let line = shared.journal.begin([&peer]);
        let print = identity.print().to_string();
        let machine = OwnSession::accept(
            options,
            random_id,
            peer.clone(),
            &print,
            &stanza,
            &transport,
            Instant::now(),
        );
        let driver = OwnDriver::new(Arc::clone(shared), peer, machine, identity, pins, notices);
        let run = Box::pin(async move {
            let _line = line;
            // It leaves the tables before its line of the journal is removed.
            let guard = guard;
            driver.run(&guard.facts.inbox).await;
        });
        self.tasks.spawn(in_span(facts, run));
        Ok(())
    }

    /// Refuses a session with the component itself in which a user wants more than to prove a key (XEP-0166, 6.2: the
    /// request is acknowledged, then the session ends).
    fn refuse_application(
        &self,
        stanza: &Stanza,
        jingle: &Element,
        sid: &str,
    ) -> Result<(), SessionRefusal> {
        let namespace = jingle.ns();
        let (initiator, responder) = (&stanza.from, &stanza.to);
        let frame = jingle::Frame { namespace: &namespace, sid, initiator, responder };
        let text = "The component takes no files or streams, only proofs of keys: offer \
                    urn:xmpp:jingle:apps:tls, or start the session with the other user's address at the component";
        let refused = jingle::end(&frame, Reason::UnsupportedApplications, text, None);
        let (from, to) = (responder.as_str(), initiator.as_str());
        let iq = RequestKind::Set.iq(from, to, &random_id(), refused);
        for element in [stanza.result(None), iq] {
            let _ = self.shared.outbound.try_send(element.into());
        }
        Ok(())
    }

    /// Passes an in-band stanza (`<open/>`, `<data/>`, `<close/>`) to its session or stream. A message that came back may have
    /// lost its payload.
    pub fn handle_ibb(&self, stanza: &Stanza) -> bool {
        let Some(payload) = stanza.element.children().find(|child| child.has_ns(ns::IBB)) else {
            let returned = stanza.kind == Kind::Message && stanza.type_ == StanzaType::Error;
            return returned && self.streams(stanza).iter().any(|handle| handle.handle(stanza));
        };
        let sid = payload.attr("sid").unwrap_or_default();
        // A request opens a stream; a message of the stream may come back as an error.
        if payload.name() != "open" || !stanza.is_request() {
            let handle = self.stream(stanza.from.as_str(), stanza.to.as_str(), sid);
            return handle.is_some_and(|handle| handle.handle(stanza));
        }
        if let Ok(Some(IbbPayload::Open { block_size, .. })) = IbbPayload::parse(payload)
            && let Some(refusal) = self.shared.refuses_stream(&stanza.from.to_bare(), block_size)
        {
            let _ = self.shared.outbound.try_send(stanza.refuse(refusal).into());
            return true;
        }
        let state = self.shared.lock();
        // One that expects this stream, otherwise one that expects any.
        let expects = |entry: &SessionEntry| match &entry.ibb {
            Some(Some(expected)) => (expected == sid).then_some(0),
            Some(None) => Some(1),
            None => None,
        };
        let entries = state.legs.between(&stanza.from, &stanza.to);
        let found = entries.filter_map(|entry| Some((expects(entry)?, entry)));
        let found = found.min_by_key(|(rank, _)| *rank);
        found.is_some_and(|(_, entry)| entry.tell(SessionInput::Open(entry.side, stanza.clone())))
    }

    /// Takes a delivery receipt that a session waits for.
    pub fn handle_receipt(&self, stanza: &Stanza) -> bool {
        let receipt = stanza.element.get_child("received", ns::RECEIPTS);
        let id = receipt.and_then(|receipt| receipt.attr("id"));
        id.is_some_and(|id| self.shared.lock().receipts.take(id, &stanza.from))
    }

    /// Takes an answer to one of our in-band blocks.
    pub fn handle_ibb_answer(&self, stanza: &Stanza) -> bool {
        self.streams(stanza).iter().any(|handle| handle.handle_answer(stanza))
    }

    /// Takes the result that a user has sent to one of our in-band blocks; returns the user's address if it is one. The
    /// addresses are as they are written.
    pub fn handle_ibb_result(&self, from: &str, to: &str, id: &str) -> Option<Jid> {
        let state = self.shared.lock();
        let mut streams = state.streams.between(from, to);
        streams.find(|handle| handle.handle_result(id)).map(|handle| handle.peer().clone())
    }

    /// Returns the in-band bytestream with this id between a user and us. The addresses are as they are written.
    pub fn stream(&self, user: &str, mask: &str, sid: &str) -> Option<IbbHandle> {
        let state = self.shared.lock();
        state.streams.between(user, mask).rev().find(|handle| handle.sid() == sid).cloned()
    }

    /// Returns the streams between the two addresses of a stanza.
    fn streams(&self, stanza: &Stanza) -> Vec<IbbHandle> {
        let state = self.shared.lock();
        state.streams.between(stanza.from.as_str(), stanza.to.as_str()).cloned().collect()
    }

    /// Returns the application of a session-initiate that would be brokered: the namespace of its description, and whether
    /// nothing encrypts it.
    pub fn application(&self, jingle: &Element) -> Option<(String, bool)> {
        let (number, _) = session::choose(jingle, &self.shared.options()).ok()?;
        let is_plain = session::is_unprotected(jingle, number);
        session::application(jingle, number).map(|application| (application, is_plain))
    }

    /// Returns how well a client fits an application, if that is known: see [`features::fit`].
    pub fn fit(&self, user: &Jid, application: &str, is_plain: bool) -> Option<u8> {
        let known = self.shared.lock().features.known(user, Instant::now().into_std())?;
        Some(features::fit(&known, application, is_plain))
    }

    /// Returns whether a domain hosts chat rooms, if that is known.
    pub fn is_room(&self, domain: &str) -> Option<bool> {
        self.shared.is_room(domain)
    }

    /// Returns whether a domain hosts chat rooms.
    pub async fn look_up_room(&self, domain: &str) -> bool {
        self.shared.look_up_room(domain).await
    }

    /// Takes the capabilities in a reachable resource's presence.
    pub fn announce(&self, presence: &Stanza) {
        self.shared.lock().features.announce(&presence.from, &presence.element);
    }

    /// Forgets the features of a resource that is no longer reachable.
    pub fn forget(&self, user: &Jid) {
        self.shared.lock().features.forget(user);
    }

    /// Takes an answer to disco#info that came without a session.
    pub fn learn(&self, user: &Jid, answer: &Element) {
        self.shared.lock().features.learn(user, answer, Instant::now().into_std());
    }

    /// Ends the sessions of a resource that has gone.
    pub fn user_gone(&self, user: &Jid) {
        for entry in self.shared.lock().legs.of_user(user) {
            entry.tell(SessionInput::Gone(entry.side));
        }
    }

    /// Handles a link that is up again: blocks of in-band streams may be missing, and users may have gone unnoticed.
    pub fn link_is_back(&self) {
        let state = self.shared.lock();
        for stream in state.streams.iter() {
            stream.handle_lost();
        }
        drop(state);
        self.check_users();
    }

    /// Checks the users of all sessions, because some may have gone unnoticed.
    pub fn check_users(&self) {
        for entry in self.shared.lock().legs.sessions() {
            entry.tell(SessionInput::Check);
        }
    }

    /// Returns all sessions, oldest first.
    pub fn list(&self) -> Vec<SessionInfo> {
        let state = self.shared.lock();
        let mut found: Vec<SessionInfo> = state
            .legs
            .iter()
            .filter(|entry| entry.side == Side::Initiator)
            .map(|entry| SessionInfo {
                key: SessionKey { ends: Arc::clone(entry.pair()), id: entry.facts.id.to_string() },
                users: Side::BOTH.map(|side| entry.facts.user(side)),
                legs: entry.facts.legs.get().map(|legs| legs.to_array()),
                age: entry.facts.began.elapsed(),
                bytes: entry.facts.progress.bytes(),
                is_plain: entry.facts.is_plain,
            })
            .collect();
        found.sort_by_key(|session| std::cmp::Reverse(session.age));
        found
    }

    /// Ends a session of [`Broker::list`] with a reason (a condition of XEP-0166, 7.4, and a text) that both users see.
    /// Returns whether it still existed.
    pub fn end_session(&self, session: &SessionKey, reason: Reason, text: &str) -> bool {
        let SessionKey { ends, id } = session;
        let state = self.shared.lock();
        state.legs.between(&ends.0, &ends.1).any(|entry| {
            entry.facts.id == id.as_str()
                && entry.side == Side::Initiator
                && entry.tell(SessionInput::End(reason, text.to_owned()))
        })
    }

    /// Ends the streams inside XMPP, because the link is about to end.
    pub fn end_in_band(&self) {
        for entry in self.shared.lock().legs.sessions() {
            let legs = entry.facts.legs.get();
            let needs_link =
                legs.is_none_or(|legs| legs.iter().any(|leg| *leg == TransportKind::Ibb));
            if needs_link {
                entry.tell(SessionInput::EndInBand);
            }
        }
    }

    /// Refuses new sessions from now on, or accepts them again.
    pub fn refuse_sessions(&self, refuse: bool) {
        self.shared.lock().draining = refuse;
    }

    /// Sets other settings, for sessions that begin from now on.
    pub fn set_options(&self, options: BrokerOptions) {
        self.shared.memory.set_limits(options.memory());
        *self.shared.options.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(options);
    }

    /// Accepts no more sessions; existing ones have until the deadline.
    pub fn drain(&self, deadline: Instant) {
        let mut state = self.shared.lock();
        state.draining = true;
        for entry in state.legs.sessions() {
            entry.tell(SessionInput::Drain(deadline));
        }
    }
}

/// Runs a session, whose name is in its lines of the log. A span that lives as long as the session would take 350
/// bytes.
fn in_span(
    facts: Arc<Facts>,
    mut run: Pin<Box<impl Future<Output = ()>>>,
) -> impl Future<Output = ()> {
    poll_fn(move |cx| {
        let _span = tracing::info_span!("session", id = facts.id.as_str()).entered();
        run.as_mut().poll(cx)
    })
}
