//! The broker stands between two users in a Jingle session and sees nothing but TLS ciphertext.
//!
//! [`Broker`] finds the session of a stanza, or creates one. Each session is a task of its own (`session.rs`).

mod driver;
pub mod features;
pub mod hints;
pub mod journal;
mod legs;
pub mod message_initiation;
mod own;
mod own_driver;
pub mod presence;
pub mod reachable;
mod session;
mod side;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
    hash::{BuildHasher, RandomState},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock},
    time::Duration,
};

use fingerpost_carry::{
    ibb_handle::IbbHandle,
    iq::{Answer, Requests, random_id},
    shares::{Limits, Permits, Place, Shares},
};
use fingerpost_secure::identity::Identity;
use fingerpost_wire::{
    dst_addr::DstAddr,
    jid::proxied,
    jingle::{self, Action, Reason},
    ns,
    print::Print,
    stanza::{Condition, ErrorType, Kind, Refusal, RequestKind, Stanza, StanzaType},
    transport::Transport,
    transport_kind::TransportKind,
    xml,
};
use hashlink::LruCache;
use jid::{BareJid, Jid};
use minidom::Element;
use time::OffsetDateTime;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::task::TaskTracker;

use self::{
    driver::Driver,
    hints::Policies,
    journal::Journal,
    legs::LegState,
    own::OwnSession,
    own_driver::OwnDriver,
    session::{Input, Peer, Session},
    side::{PerSide, Side},
};
use crate::{
    metrics,
    refuse::Refuse as _,
    registry::{Notice, Registry, model::Key},
    relay::{
        table::{Registration, TransferTable},
        watch::StreamProgress,
    },
};

/// How long a user may take to answer one of our requests.
const ANSWER: Duration = Duration::from_secs(30);
/// How long it stays known that a domain hosts chat rooms, that it does not, and that it does not say.
const ROOMS: [Duration; 3] =
    [Duration::from_secs(3600), Duration::from_secs(600), Duration::from_secs(10)];
/// The most domains for which that is known.
const DOMAINS: usize = 1000;
/// How long a user may take to answer disco#info before its features count as unknown.
const DISCO: Duration = Duration::from_secs(3);
/// How many times the free sessions one domain may have.
const SLOPE: usize = 16;
/// How long the close of a stream may stay unanswered; a little longer than the stream itself allows.
const CLOSING: Duration = Duration::from_secs(61);
/// The most stanzas that wait for one session.
const INBOX: usize = 64;
/// The most ended sessions that are known, and for how long. Only the answer to a late stanza depends on it.
const ENDED: (usize, Duration) = (10_000, Duration::from_secs(600));
/// The longest accepted session id, in bytes: each stanza of the session repeats it.
const SID: usize = 1024;

fn long_sid() -> Refusal {
    Refusal::bad_request(format!("The sid of a session may be {SID} bytes long at most"))
}

/// Returns the error of a user or its server as it is passed on: marked as theirs, and without conditions that only the
/// component or the asker's server may use.
pub(crate) fn of_peer(mut error: Element) -> Element {
    for node in error.take_nodes() {
        let is_others = node
            .as_element()
            .is_some_and(|child| child.has_ns(ns::HINTS) || child.has_ns(ns::BLOCKING_ERRORS));
        if !is_others {
            error.append_node(node);
        }
    }
    error.append_child(Element::bare("peer", ns::HINTS));
    error
}

/// The broker's settings.
#[derive(Clone, Debug)]
pub struct Options {
    /// The component's address.
    pub jid: BareJid,
    /// Refuse sessions without TLS security and streams that do not start with TLS.
    pub require_tls: bool,
    /// What to do with prints of bad verdict.
    pub policies: Policies,
    /// Whether SOCKS5 legs are available.
    pub socks5: bool,
    /// The SOCKS5 addresses for users: host and port.
    pub advertise: Vec<(String, u16)>,
    /// Whether in-band legs are available.
    pub ibb: bool,
    /// The longest stanza that can be sent, in bytes.
    pub max_stanza_bytes: usize,
    /// The block size of our in-band legs, bytes.
    pub block_size: u16,
    /// Unacknowledged blocks per direction.
    pub window: u16,
    /// The bytes of in-band blocks by message that may wait for their readers, in all streams together. Their senders
    /// can hardly be slowed down.
    pub memory: usize,
    /// How long a user's client may leave in-band blocks unacknowledged.
    pub silence_timeout: Duration,
    /// How long a session may exist without a stream.
    pub activation_timeout: Duration,
    /// How long a stream may move no byte.
    pub idle_timeout: Duration,
    /// Sessions in all, and for each user.
    pub sessions: (usize, usize),
}

/// The resource that gets a session-initiate.
#[derive(Debug)]
pub struct Callee {
    /// The full JID.
    pub jid: Jid,
    /// The session id that it already knows from a proposal.
    pub sid: Option<String>,
    /// How long it may take to acknowledge the session-initiate.
    pub patience: Duration,
    /// Whether another resource may take the session instead.
    pub has_others: bool,
    /// Where the session-initiate goes if this resource does not take it or cannot handle it.
    pub again: Option<Again>,
}

impl Callee {
    /// Creates a callee with the usual patience.
    pub fn new(jid: Jid) -> Self {
        Self { jid, sid: None, patience: ANSWER, has_others: false, again: None }
    }
}

/// Receives a session-initiate that its callee did not take, with the error if there was one, and the session that is
/// over.
pub struct Again(Box<dyn FnOnce(Stanza, Option<Element>, Left) -> Back + Send + Sync>);

type Back = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Again {
    /// Passes it to this function.
    pub fn new<F>(
        take: impl FnOnce(Stanza, Option<Element>, Left) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self(Box::new(|stanza, error, left| Box::pin(take(stanza, error, left))))
    }
}

/// A session that its callee did not take. It keeps its place, so that stanzas of its initiator are not lost meanwhile,
/// until [`Left::close`] or its drop.
pub struct Left {
    guard: Guard,
    inbox: mpsc::Receiver<Input>,
}

impl Left {
    /// Frees the session's place. Returns the answers to the stanzas that came for it meanwhile, and whether the
    /// session is over: its initiator has withdrawn it or is gone, or it was ended.
    pub fn close(mut self) -> (Vec<Element>, bool) {
        self.inbox.close();
        self.guard.leave();
        let (mut answers, mut is_over) = (Vec::new(), false);
        while let Ok(input) = self.inbox.try_recv() {
            match input {
                Input::Jingle(Side::Initiator, stanza) if is_terminate(&stanza) => {
                    is_over = true;
                    answers.push(stanza.result(None));
                }
                Input::Jingle(_, stanza) | Input::Open(_, stanza) => {
                    answers.push(stanza.refuse(&session::unknown_session()));
                }
                Input::Gone(Side::Initiator) | Input::End(..) => is_over = true,
                _ => {}
            }
        }
        (answers, is_over)
    }
}

impl fmt::Debug for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Left")
    }
}

fn is_terminate(stanza: &Stanza) -> bool {
    stanza.payload().is_some_and(|jingle| jingle::action(jingle) == Action::SessionTerminate)
}

impl fmt::Debug for Again {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Again")
    }
}

impl Options {
    /// Returns the shares of blocks by message: a quarter for one user.
    fn memory(&self) -> Limits {
        Limits::new(self.memory, self.memory / 4, 4)
    }
}

/// The addresses of one leg: the user's, and ours towards it.
type Pair = (Jid, Jid);

/// A session as other parts see it.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    /// Its name, here and in the log.
    pub id: String,
    /// Initiator and responder.
    pub users: [BareJid; 2],
    /// Both legs' transports, once they are up.
    pub legs: Option<[TransportKind; 2]>,
    /// The time since it began.
    pub age: Duration,
    /// Bytes so far, both directions.
    pub bytes: u64,
}

/// The facts of a session that other tasks may read.
#[derive(Debug)]
struct Facts {
    id: String,
    began: Instant,
    /// The component itself may be the responder.
    users: PerSide<BareJid>,
    /// Both legs' transports, once they are up.
    legs: OnceLock<PerSide<TransportKind>>,
    progress: StreamProgress,
}

impl Facts {
    fn new(initiator: &Jid, responder: &Jid) -> Self {
        Self {
            id: random_id()[..8].to_owned(),
            began: Instant::now(),
            users: PerSide { initiator: initiator.to_bare(), responder: responder.to_bare() },
            legs: OnceLock::new(),
            progress: StreamProgress::default(),
        }
    }
}

#[derive(Debug)]
struct Entry {
    facts: Arc<Facts>,
    sid: String,
    side: Side,
    inbox: mpsc::Sender<Input>,
    /// The in-band bytestream this leg expects: `None` none, `Some(None)` any.
    ibb: Option<Option<String>>,
    /// The application of a crossing session, while the responder's client does not know of this one.
    crossable: Option<String>,
}

/// A client's answer to disco#info.
enum Found {
    /// Its features.
    Features(features::Features),
    /// No answer in time.
    Silence,
    /// An error, which may come from its server.
    Error,
}

/// The domains that are known to host chat rooms (XEP-0045) or not, and until when that is valid.
#[derive(Debug)]
struct Rooms(LruCache<String, (Instant, bool)>);

impl Default for Rooms {
    fn default() -> Self {
        Self(LruCache::new(DOMAINS))
    }
}

/// The sessions that have ended recently, each with the time until which that is known. Addresses and session ids are
/// kept as keyed hashes, which take few bytes however long the text is.
#[derive(Debug)]
struct Ended(RandomState, LruCache<u64, Instant>);

impl Default for Ended {
    fn default() -> Self {
        Self(RandomState::new(), LruCache::new(ENDED.0))
    }
}

impl Ended {
    fn insert(&mut self, pair: &Pair, sid: &str, now: Instant) {
        self.1.insert(self.0.hash_one((pair, sid)), now + ENDED.1);
    }

    fn has(&self, pair: &Pair, sid: &str, now: Instant) -> bool {
        self.1.peek(&self.0.hash_one((pair, sid))).is_some_and(|until| now < *until)
    }
}

#[derive(Debug, Default)]
struct State {
    rooms: Rooms,
    sessions: HashMap<Pair, Vec<Entry>>,
    /// The addresses under which a user has sessions.
    masks: HashMap<Jid, HashSet<Jid>>,
    streams: HashMap<Pair, Vec<(String, IbbHandle)>>,
    /// Pairs whose session has ended and whose streams may still lack an answer to their close, with the deadline.
    closing: VecDeque<(Instant, Pair)>,
    /// Shares of sessions, by the user that began them.
    shares: Shares,
    features: features::Cache,
    ended: Ended,
    draining: bool,
}

impl State {
    /// Returns whether there is a session with that sid.
    fn has(&self, pair: &Pair, sid: &str) -> bool {
        self.sessions.get(pair).is_some_and(|entries| entries.iter().any(|entry| entry.sid == sid))
    }

    /// Forgets the streams of a pair that are over; returns whether all are.
    fn drop_streams(&mut self, pair: &Pair) -> bool {
        let Some(streams) = self.streams.get_mut(pair) else { return true };
        streams.retain(|(_, handle)| !handle.is_over());
        let all = streams.is_empty();
        if all {
            self.streams.remove(pair);
        }
        all
    }

    /// Forgets the streams whose close was not answered in time.
    fn drop_closed(&mut self, now: Instant) {
        while let Some((at, _)) = self.closing.front()
            && *at <= now
            && let Some((_, pair)) = self.closing.pop_front()
        {
            self.drop_streams(&pair);
        }
    }

    fn insert(&mut self, pair: &Pair, entry: Entry) {
        self.masks.entry(pair.0.clone()).or_default().insert(pair.1.clone());
        self.sessions.entry(pair.clone()).or_default().push(entry);
    }
}

/// The state that all sessions share.
#[derive(Debug)]
struct Shared {
    options: RwLock<Arc<Options>>,
    outbound: mpsc::Sender<Element>,
    requests: Requests,
    registry: Registry,
    table: TransferTable,
    journal: Journal,
    /// The room for blocks by message.
    memory: Permits,
    state: Mutex<State>,
}

impl Shared {
    fn options(&self) -> Arc<Options> {
        Arc::clone(&self.options.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the features that a user's client announces.
    async fn features(&self, user: &Jid, mask: &Jid) -> Found {
        let known = self.lock().features.known(user, Instant::now().into_std());
        if let Some(known) = known {
            return Found::Features(known);
        }
        let query = Element::bare("query", ns::DISCO_INFO);
        match self.requests.request(RequestKind::Get, mask, user, query, DISCO).await {
            Answer::Result(Some(answer)) => Found::Features(self.lock().features.learn(
                user,
                &answer,
                Instant::now().into_std(),
            )),
            Answer::Result(None) => Found::Features(features::Features::default()),
            Answer::Error(_) => Found::Error,
            Answer::Timeout => Found::Silence,
        }
    }

    /// whether a domain hosts chat rooms, if that is known.
    fn is_room(&self, domain: &str) -> Option<bool> {
        let mut state = self.lock();
        let (until, is_room) = *state.rooms.0.peek(domain)?;
        if Instant::now() < until {
            return Some(is_room);
        }
        state.rooms.0.remove(domain);
        None
    }

    /// Asks a domain whether it hosts chat rooms. Each domain is asked once at a time, and seldom.
    async fn look_up_room(&self, domain: &str) -> bool {
        if let Some(known) = self.is_room(domain) {
            return known;
        }
        let Ok(to) = Jid::new(domain) else { return false };
        let keep = |is_room, time| {
            let until = Instant::now() + time;
            self.lock().rooms.0.insert(domain.to_owned(), (until, is_room));
        };
        let [found, not, silent] = ROOMS;
        keep(false, silent);
        let own = Jid::from(self.options().jid.clone());
        let query = Element::bare("query", ns::DISCO_INFO);
        let is_room = match self.requests.request(RequestKind::Get, &own, &to, query, DISCO).await {
            Answer::Result(Some(info)) => info.children().any(|child| {
                child.is("identity", ns::DISCO_INFO) && child.attr("category") == Some("conference")
            }),
            Answer::Result(None) | Answer::Error(_) => false,
            Answer::Timeout => return false,
        };
        keep(is_room, if is_room { found } else { not });
        is_room
    }

    /// Notes that the responder's client knows of the session.
    fn acknowledged(&self, peer: &Peer) {
        let mut state = self.lock();
        if let Some(entries) = state.sessions.get_mut(&peer.pair()) {
            for entry in entries.iter_mut().filter(|entry| entry.sid == peer.sid) {
                entry.crossable = None;
            }
        }
    }

    /// Returns the present keys of `owner` that `asker` may know of, to judge `prints` by.
    async fn keys(
        &self,
        owner: &BareJid,
        asker: &BareJid,
        prints: &[Print],
    ) -> Result<Vec<Key>, ()> {
        let now = OffsetDateTime::now_utc();
        match self.registry.keys_to_judge(asker, owner, prints).await {
            Ok(keys) => Ok(keys.iter().map(|key| key.as_of(now)).collect()),
            Err(error) => {
                tracing::error!(%error, "the registry cannot be read");
                Err(())
            }
        }
    }

    /// Takes a place for another session of `user`.
    fn admit(&self, state: &mut State, user: &BareJid) -> Result<Place, Refusal> {
        if state.draining {
            return Err(Refusal::resource_constraint("The service takes no new sessions now"));
        }
        let (all, of_user) = self.options().sessions;
        state
            .shares
            .take(user, 1, &Limits::new(all, of_user, SLOPE))
            .map_err(|full| Refusal::resource_constraint(format!("Too many sessions: {full}")))
    }

    fn expect_open(&self, peer: &Peer, sid: Option<String>) {
        let mut state = self.lock();
        if let Some(entries) = state.sessions.get_mut(&peer.pair()) {
            for entry in entries.iter_mut().filter(|entry| entry.sid == peer.sid) {
                entry.ibb = Some(sid.clone());
            }
        }
    }

    /// Takes the SOCKS5 connections for a stream id of this leg. Clients differ in which side they take for the
    /// requester: either order belongs to it.
    fn register(&self, peer: &Peer, sid: &str) -> Registration {
        let Peer { user, mask, .. } = peer;
        self.table.register([DstAddr::compute(sid, mask, user), DstAddr::compute(sid, user, mask)])
    }

    fn add_stream(&self, peer: &Peer, sid: String, handle: IbbHandle) {
        let mut state = self.lock();
        state.drop_closed(Instant::now());
        let streams = state.streams.entry(peer.pair()).or_default();
        streams.retain(|(_, handle)| !handle.is_over());
        streams.push((sid, handle));
    }
}

/// Removes a session from the tables whenever its task ends.
struct Guard {
    shared: Arc<Shared>,
    pairs: Vec<Pair>,
    facts: Arc<Facts>,
    place: Place,
}

impl Guard {
    /// Stops delivery to the session and frees its ids, also while its last bytes still flow.
    fn leave(&self) {
        let now = Instant::now();
        let mut state = self.shared.lock();
        for pair in &self.pairs {
            let State { sessions, masks, ended, .. } = &mut *state;
            if let Some(entries) = sessions.get_mut(pair) {
                // Another session may have the sid by now.
                for entry in entries.extract_if(.., |entry| Arc::ptr_eq(&entry.facts, &self.facts))
                {
                    ended.insert(pair, &entry.sid, now);
                }
                if entries.is_empty() {
                    sessions.remove(pair);
                    if let Some(of_user) = masks.get_mut(&pair.0) {
                        of_user.remove(&pair.1);
                        if of_user.is_empty() {
                            masks.remove(&pair.0);
                        }
                    }
                }
            }
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.leave();
        let mut state = self.shared.lock();
        let now = Instant::now();
        state.drop_closed(now);
        for pair in &self.pairs {
            if !state.drop_streams(pair) {
                state.closing.push_back((now + CLOSING, pair.clone()));
            }
        }
        state.shares.give_back(&self.place);
    }
}

/// The broker. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Broker {
    shared: Arc<Shared>,
    tasks: TaskTracker,
}

impl Broker {
    /// Creates a broker without sessions.
    pub fn new(
        options: Options,
        outbound: mpsc::Sender<Element>,
        requests: Requests,
        registry: Registry,
        table: TransferTable,
        journal: Journal,
        tasks: TaskTracker,
    ) -> Self {
        let state = Mutex::default();
        Self {
            shared: Arc::new(Shared {
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

    /// Returns how many sessions there are.
    pub fn sessions(&self) -> usize {
        self.shared.lock().shares.taken()
    }

    /// Returns whether a Jingle stanza belongs to a session that exists, and if so passes it there.
    pub fn handle_jingle(&self, stanza: &Stanza) -> bool {
        let Some(sid) = stanza.payload().and_then(|jingle| jingle.attr("sid")) else {
            return false;
        };
        let found = {
            let state = self.shared.lock();
            let entries = state.sessions.get(&(stanza.from.clone(), stanza.to.clone()));
            entries
                .and_then(|entries| entries.iter().find(|entry| entry.sid == sid))
                .map(|entry| (entry.side, entry.inbox.clone()))
        };
        let Some((side, inbox)) = found else { return false };
        if inbox.try_send(Input::Jingle(side, stanza.clone())).is_err() {
            let refusal =
                Refusal::resource_constraint("Too many requests for this session at once");
            let _ = self.shared.outbound.try_send(stanza.refuse(&refusal));
        }
        true
    }

    /// Returns whether a user has a session: with the user at that address here, or any.
    pub fn has_session(&self, user: &Jid, mask: Option<&Jid>) -> bool {
        let state = self.shared.lock();
        let masks = state.masks.get(user);
        masks.is_some_and(|masks| mask.is_none_or(|mask| masks.contains(mask)))
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
    pub fn initiate(&self, stanza: Stanza, callee: Callee) -> Result<(), Refusal> {
        let Callee { jid: callee, sid: known, patience, has_others, again } = callee;
        let callee = &callee;
        let shared = &self.shared;
        let options = shared.options();
        let Some(jingle) = stanza.payload() else {
            return Err(Refusal::bad_request("A jingle element was expected"));
        };
        let namespace = jingle.ns();
        let Some(sid) = jingle.attr("sid").filter(|sid| !sid.is_empty()).map(str::to_owned) else {
            return Err(Refusal::bad_request("The sid of the session is missing"));
        };
        if sid.len() > SID {
            return Err(long_sid());
        }
        let (chosen, transport) = session::choose(jingle, &options)?;
        let channel = session::channel(jingle, chosen);
        let Some(mask) = proxied(&stanza.from, &options.jid) else {
            return Err(Refusal::bad_request("Your JID is too long to be proxied"));
        };
        let user = stanza.from.to_bare();
        let initiator = Peer {
            user: stanza.from.clone(),
            mask: stanza.to.clone(),
            sid,
            namespace: namespace.clone(),
        };
        // Sorts before the sids of others, so that a crossing session-initiate of the responder gives way.
        let theirs = known.unwrap_or_else(|| format!("-{}", random_id()));
        let responder = Peer { user: callee.clone(), mask, sid: theirs, namespace };
        let peers = PerSide { initiator, responder };
        let pairs =
            PerSide { initiator: peers.initiator.pair(), responder: peers.responder.pair() };
        let facts = Arc::new(Facts::new(&stanza.from, callee));
        let id = facts.id.clone();
        let (inbox, inputs) = mpsc::channel(INBOX);
        let (leg, ibb) = match transport {
            Transport::Ibb { namespace, sid, block_size } => {
                (LegState::ibb(&namespace, sid.clone(), block_size), Some(sid))
            }
            Transport::S5b { sid, candidates } => {
                let own = candidates
                    .into_iter()
                    .find(|(_, type_, jid)| type_ == "proxy" && jid == options.jid.as_str());
                (LegState::s5b(sid, random_id(), own.map(|(cid, ..)| cid)), None)
            }
        };
        let place = {
            let mut state = shared.lock();
            // If the callee's own session-initiate came first, this one is an answer to a session that it does not
            // know.
            if channel.is_some()
                && let Some(theirs) = proxied(callee, &options.jid)
                && let Some(entries) = state.sessions.get(&(stanza.from.clone(), theirs))
                && entries.iter().any(|e| e.crossable == channel && e.sid < peers.initiator.sid)
            {
                let text = "The other user has started the same at this moment";
                return Err(Refusal::new(ErrorType::Cancel, Condition::Conflict, text)
                    .with_extra("tie-break", ns::JINGLE_ERRORS));
            }
            if state.has(&pairs.initiator, &peers.initiator.sid) {
                return Err(Refusal::new(
                    ErrorType::Cancel,
                    Condition::Conflict,
                    "The session exists already",
                ));
            }
            let place = shared.admit(&mut state, &user)?;
            state.insert(
                &pairs.initiator,
                Entry {
                    facts: Arc::clone(&facts),
                    sid: peers.initiator.sid.clone(),
                    side: Side::Initiator,
                    inbox: inbox.clone(),
                    ibb,
                    crossable: None,
                },
            );
            state.insert(
                &pairs.responder,
                Entry {
                    facts: Arc::clone(&facts),
                    sid: peers.responder.sid.clone(),
                    side: Side::Responder,
                    inbox,
                    ibb: Some(None),
                    crossable: channel,
                },
            );
            place
        };
        let guard = Guard {
            shared: Arc::clone(shared),
            pairs: vec![pairs.initiator, pairs.responder],
            facts: Arc::clone(&facts),
            place,
        };
        let mut machine = Session::new(
            Arc::clone(&options),
            random_id,
            peers.clone(),
            leg,
            chosen,
            stanza,
            Instant::now(),
        );
        machine.expect_acknowledgement(patience, again.is_some(), has_others);
        let line = shared.journal.begin(peers.iter());
        metrics::SESSIONS.count(&[]);
        let driver = Driver::new(guard, peers, machine, line, again);
        let span = tracing::info_span!("session", id);
        self.tasks.spawn(tracing::Instrument::instrument(driver.run(inputs), span));
        Ok(())
    }

    /// Starts a session between a user and the component itself, which proves the offered key.
    ///
    /// # Errors
    /// The answer to the user, if the session cannot be created.
    pub fn initiate_own(
        &self,
        stanza: Stanza,
        identity: Arc<Identity>,
        notices: mpsc::Sender<Notice>,
    ) -> Result<(), Refusal> {
        let shared = &self.shared;
        let options = shared.options();
        let jingle = stanza.payload().ok_or_else(|| Refusal::bad_request("Expected jingle"))?;
        let sid = jingle.attr("sid").filter(|sid| !sid.is_empty());
        let (Some(sid), Some(content)) = (sid, own::first_content(jingle)) else {
            return Err(Refusal::bad_request("Expected a sid and a content"));
        };
        if sid.len() > SID {
            return Err(long_sid());
        }
        if !own::is_raw(content) {
            return self.refuse_application(&stanza, jingle, sid);
        }
        let pins = own::pins(content);
        if pins.is_empty() {
            let text = "Expected an offer of TLS with the print of an x509 certificate";
            return Err(Refusal::new(ErrorType::Modify, Condition::NotAcceptable, text)
                .with_extra("security-required", ns::JINGLE_ERRORS));
        }
        let transport = Transport::read(content).filter(|transport| match transport {
            Transport::Ibb { .. } => options.ibb,
            Transport::S5b { .. } => options.socks5,
        });
        let transport = transport.ok_or_else(|| {
            let text = "The transport must be SOCKS5 or in-band bytestreams";
            Refusal::new(ErrorType::Cancel, Condition::FeatureNotImplemented, text)
                .with_extra("unsupported-transports", ns::JINGLE_ERRORS)
        })?;
        let peer = Peer {
            user: stanza.from.clone(),
            mask: own::mask(&options.jid),
            sid: sid.to_owned(),
            namespace: jingle.ns(),
        };
        let ibb = match &transport {
            Transport::Ibb { sid, .. } => Some(sid.clone()),
            Transport::S5b { .. } => None,
        };
        let (inbox, inputs) = mpsc::channel(INBOX);
        let facts = Arc::new(Facts::new(&peer.user, &peer.mask));
        let id = facts.id.clone();
        let user = peer.user.to_bare();
        let pair = peer.pair();
        let place = {
            let mut state = shared.lock();
            if state.has(&pair, &peer.sid) {
                return Err(Refusal::new(
                    ErrorType::Cancel,
                    Condition::Conflict,
                    "The session exists already",
                ));
            }
            let place = shared.admit(&mut state, &user)?;
            let (sid, side) = (peer.sid.clone(), Side::Initiator);
            let facts = Arc::clone(&facts);
            state.insert(&pair, Entry { facts, sid, side, inbox, ibb, crossable: None });
            place
        };
        let guard = Guard { shared: Arc::clone(shared), pairs: vec![pair], facts, place };
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
        let span = tracing::info_span!("session", id);
        self.tasks.spawn(tracing::Instrument::instrument(
            async move {
                let _guard = (guard, line);
                driver.run(inputs).await;
            },
            span,
        ));
        Ok(())
    }

    /// Refuses a session with the component itself in which a user wants more than to prove a key (XEP-0166, 6.2: the
    /// request is acknowledged, then the session ends).
    fn refuse_application(
        &self,
        stanza: &Stanza,
        jingle: &Element,
        sid: &str,
    ) -> Result<(), Refusal> {
        let namespace = jingle.ns();
        let (initiator, responder) = (&stanza.from, &stanza.to);
        let frame = jingle::Frame { namespace: &namespace, sid, initiator, responder };
        let text = "The component takes no files or streams, only proofs of keys: offer \
                    urn:xmpp:jingle:apps:tls, or start the session with the other user's address at the component";
        let refused = jingle::end(&frame, Reason::UnsupportedApplications, text, None);
        let mut iq = xml::element(
            "iq",
            ns::CLIENT,
            &[
                ("type", "set"),
                ("from", responder.as_str()),
                ("to", initiator.as_str()),
                ("id", &random_id()),
            ],
        );
        iq.append_child(refused);
        for element in [stanza.result(None), iq] {
            let _ = self.shared.outbound.try_send(element);
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
        let pair = (stanza.from.clone(), stanza.to.clone());
        // A request opens a stream; a message of the stream may come back as an error.
        if payload.name() != "open" || !stanza.is_request() {
            let handle = {
                let state = self.shared.lock();
                state
                    .streams
                    .get(&pair)
                    .and_then(|streams| streams.iter().rev().find(|(known, _)| known == sid))
                    .map(|(_, handle)| handle.clone())
            };
            return handle.is_some_and(|handle| handle.handle(stanza));
        }
        let found = {
            let state = self.shared.lock();
            let entries = state.sessions.get(&pair).map(Vec::as_slice).unwrap_or_default();
            let by_sid =
                entries.iter().find(|entry| entry.ibb.as_ref() == Some(&Some(sid.to_owned())));
            let any = || entries.iter().find(|entry| entry.ibb == Some(None));
            by_sid.or_else(any).map(|entry| (entry.side, entry.inbox.clone()))
        };
        found.is_some_and(|(side, inbox)| inbox.try_send(Input::Open(side, stanza.clone())).is_ok())
    }

    /// Takes an answer to one of our in-band blocks.
    pub fn handle_ibb_answer(&self, stanza: &Stanza) -> bool {
        self.streams(stanza).iter().any(|handle| handle.handle_answer(stanza))
    }

    /// Returns the streams between the two addresses of a stanza.
    fn streams(&self, stanza: &Stanza) -> Vec<IbbHandle> {
        let state = self.shared.lock();
        let streams = state.streams.get(&(stanza.from.clone(), stanza.to.clone()));
        streams.into_iter().flatten().map(|(_, handle)| handle.clone()).collect()
    }

    /// Returns the application of a session-initiate that would be brokered: the namespace of its description.
    pub fn application(&self, jingle: &Element) -> Option<String> {
        let (number, _) = session::choose(jingle, &self.shared.options()).ok()?;
        session::application(jingle, number)
    }

    /// Returns how well a client fits an application, if that is known: see [`features::fit`].
    pub fn fit(&self, user: &Jid, application: &str) -> Option<u8> {
        let known = self.shared.lock().features.known(user, Instant::now().into_std())?;
        Some(features::fit(&known, application))
    }

    /// whether a domain hosts chat rooms, if that is known.
    pub fn is_room(&self, domain: &str) -> Option<bool> {
        self.shared.is_room(domain)
    }

    /// whether a domain hosts chat rooms.
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
        let state = self.shared.lock();
        for mask in state.masks.get(user).into_iter().flatten() {
            let entries = state.sessions.get(&(user.clone(), mask.clone()));
            for entry in entries.into_iter().flatten() {
                let _ = entry.inbox.try_send(Input::Gone(entry.side));
            }
        }
    }

    /// Handles a link that is up again: blocks of in-band streams may be missing, and users may have gone unnoticed.
    pub fn link_is_back(&self) {
        let state = self.shared.lock();
        for (_, stream) in state.streams.values().flatten() {
            stream.handle_lost();
        }
        drop(state);
        self.check_users();
    }

    /// Checks the users of all sessions, because some may have gone unnoticed.
    pub fn check_users(&self) {
        let state = self.shared.lock();
        for entry in state.sessions.values().flatten() {
            if entry.side == Side::Initiator {
                let _ = entry.inbox.try_send(Input::Check);
            }
        }
    }

    /// Returns all sessions, oldest first.
    pub fn list(&self) -> Vec<SessionInfo> {
        let state = self.shared.lock();
        let entries = state.sessions.values().flatten();
        let mut found: Vec<SessionInfo> = entries
            .filter(|entry| entry.side == Side::Initiator)
            .map(|entry| SessionInfo {
                id: entry.facts.id.clone(),
                users: entry.facts.users.to_array(),
                legs: entry.facts.legs.get().map(|legs| legs.to_array()),
                age: entry.facts.began.elapsed(),
                bytes: entry.facts.progress.bytes(),
            })
            .collect();
        found.sort_by_key(|session| std::cmp::Reverse(session.age));
        found
    }

    /// Ends a session with a reason (a condition of XEP-0166, 7.4, and a text) that both users see. Returns whether the
    /// session existed.
    pub fn end_session(&self, id: &str, reason: Reason, text: &str) -> bool {
        let end = |entry: &Entry| entry.inbox.try_send(Input::End(reason, text.to_owned())).is_ok();
        let state = self.shared.lock();
        let mut entries = state.sessions.values().flatten();
        entries.any(|entry| entry.facts.id == id && entry.side == Side::Initiator && end(entry))
    }

    /// Ends the streams inside XMPP, because the link is about to end.
    pub fn end_in_band(&self) {
        for session in self.list() {
            if session.legs.is_none_or(|legs| legs.contains(&TransportKind::Ibb)) {
                self.end_session(
                    &session.id,
                    Reason::Gone,
                    "The service is being restarted: try again",
                );
            }
        }
    }

    /// Refuses new sessions from now on, or accepts them again.
    pub fn refuse_sessions(&self, refuse: bool) {
        self.shared.lock().draining = refuse;
    }

    /// Sets other settings, for sessions that begin from now on.
    pub fn set_options(&self, options: Options) {
        self.shared.memory.set_limits(options.memory());
        *self.shared.options.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(options);
    }

    /// Accepts no more sessions; existing ones have until the deadline.
    pub fn drain(&self, deadline: Instant) {
        let mut state = self.shared.lock();
        state.draining = true;
        for entry in state.sessions.values().flatten() {
            if entry.side == Side::Initiator {
                let _ = entry.inbox.try_send(Input::Drain(deadline));
            }
        }
    }
}
