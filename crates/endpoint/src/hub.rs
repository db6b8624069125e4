//! The endpoint's stanza hub: answers common requests, and passes each stanza to its session or stream.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use fingerpost_carry::{
    ibb_handle::IbbHandle,
    ibb_params::IbbParams,
    ibb_stream::IbbStream,
    iq::{Answer, Requests},
    outbound::Outbound,
};
use fingerpost_wire::{
    jid::unproxied,
    jingle::{self, Action},
    ns,
    stanza::{Condition, ErrorType, Kind, Refusal, RequestKind, Stanza},
    xml,
};
use jid::{BareJid, FullJid, Jid};
use minidom::Element;
use tokio::sync::mpsc;

use super::{
    application::first_content,
    error::{Error, condition},
    keeper::{Keeper, Status},
    login::Connection,
    message_initiation::{Initiations, Ringer},
    network::Network,
    places::{self, Places, SessionPlace},
    policy::Policy,
};

/// How long to wait for the answer to a request.
const ANSWER: Duration = Duration::from_secs(45);
/// How long the peer of an in-band bytestream may leave blocks unacknowledged. The component has its own limits, and a
/// silent stream makes its session ask. So this is for a peer that answers and does not read.
const SILENCE: Duration = Duration::from_secs(3600);
type Streams = HashMap<(Jid, String), IbbHandle>;

#[derive(Debug)]
struct HubState {
    jid: FullJid,
    lost: bool,
    /// The number of lost sessions with the server at the last check.
    over: u64,
    sessions: HashMap<(Jid, String), OpenSession>,
    opens: HashMap<(Jid, String), mpsc::Sender<Stanza>>,
    streams: Streams,
}

/// A Jingle session.
#[derive(Debug)]
struct OpenSession {
    inbox: mpsc::Sender<Stanza>,
    /// The inbox for actions about its transport, if that is a separate one.
    aside: Option<mpsc::Sender<Stanza>>,
    /// Whether it has a stream of its own, which does not need the connection to the server.
    is_secured: bool,
    /// Whether we have offered another transport as the session's initiator, and the peer has neither accepted nor rejected it.
    replaces: bool,
    /// Whether only we offer other transports: we are the initiator of a session whose stream gets new legs.
    is_only_offerer: bool,
}

/// The rules for peers' sessions.
#[derive(Clone, Debug)]
pub(super) struct Admission {
    /// The component, whose addresses stand for users.
    pub(super) component: Option<BareJid>,
    /// Whether sessions must come through the component.
    pub(super) only_brokered: bool,
    pub(super) policy: Arc<dyn Policy>,
    pub(super) places: Places,
    /// Decides on proposals of sessions, if any are answered.
    pub(super) ringer: Option<Arc<dyn Ringer>>,
}

impl Admission {
    fn admit(&self, from: &Jid) -> Result<SessionPlace, Refusal> {
        let component = self.component.as_ref();
        if let Some(component) = component
            && self.only_brokered
            && component.domain() != from.domain()
        {
            let text = format!("Direct sessions are not taken here: start it through {component}");
            return Err(Refusal::new(ErrorType::Cancel, Condition::NotAllowed, &text));
        }
        let peer = user_behind(from, component);
        self.places.admit(&peer, || self.policy.remembers(&peer)).map_err(|places::NoPlace| {
            Refusal::resource_constraint("Too many sessions are open here")
        })
    }
}

/// The hub. Cheap to clone; the connection lives as long as its clones.
#[derive(Clone, Debug)]
pub(crate) struct Hub {
    outbound: Outbound,
    requests: Requests,
    admission: Arc<Admission>,
    pub(super) initiations: Arc<Mutex<Initiations>>,
    state: Arc<Mutex<HubState>>,
    features: Arc<Vec<String>>,
    /// The task that reconnects, if any.
    keeper: Option<Keeper>,
}

/// A session-initiate that was acknowledged, and where the session's stanzas go.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) stanza: Stanza,
    pub(super) inbox: Inbox,
    pub(super) place: SessionPlace,
}

impl Hub {
    /// Starts to route the connection's stanzas. Returns the new sessions, and the connection's task.
    pub(super) fn start(
        connection: Connection,
        keeper: Option<Keeper>,
        features: Vec<String>,
        admission: Admission,
    ) -> (Self, mpsc::Receiver<Arrival>, tokio::task::JoinHandle<()>) {
        let Connection { jid, outbound, mut inbound, task } = connection;
        let state = HubState {
            jid,
            lost: false,
            over: 0,
            sessions: HashMap::new(),
            opens: HashMap::new(),
            streams: HashMap::new(),
        };
        let hub = Self {
            requests: Requests::new(outbound.clone()),
            outbound,
            admission: Arc::new(admission),
            initiations: Arc::default(),
            state: Arc::new(Mutex::new(state)),
            features: Arc::new(features),
            keeper,
        };
        let (sender, arrivals) = mpsc::channel(places::MOST);
        let router = hub.clone();
        tokio::spawn(async move {
            let mut status = router.keeper.as_ref().map(|keeper| keeper.status.clone());
            loop {
                let changed = async {
                    match &mut status {
                        Some(status) => status.changed().await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    // Stanzas of a new session come after the end of the old one.
                    biased;
                    changed = changed => match (changed, &mut status) {
                        (Ok(()), Some(status)) => {
                            let status = status.borrow_and_update().clone();
                            router.follow(status);
                        }
                        _ => status = None,
                    },
                    stanza = inbound.recv() => match stanza {
                        Some(stanza) => router.route(stanza, &sender).await,
                        None => break,
                    },
                }
            }
            router.lock().lost = true;
            router.forget(|_| false);
        });
        (hub, arrivals, task)
    }

    /// Handles a change of the connection.
    fn follow(&self, status: Status) {
        let mut state = self.lock();
        let is_over = std::mem::replace(&mut state.over, status.over) != status.over;
        let is_same = status.bound.as_ref().is_none_or(|jid| *jid == state.jid);
        if let Some(jid) = status.bound {
            state.jid = jid;
        }
        drop(state);
        if is_over || !is_same {
            // At another address, peers can no longer find this endpoint.
            self.forget(|open| is_same && open.is_secured);
        }
    }

    /// Ends everything that belonged to a lost session with the server.
    fn forget(&self, keeps: impl Fn(&OpenSession) -> bool) {
        self.requests.fail_all();
        self.forget_proposals();
        let mut state = self.lock();
        state.sessions.retain(|_, open| keeps(open));
        state.opens.clear();
        for (_, stream) in state.streams.drain() {
            stream.handle_lost();
        }
    }

    pub(super) fn admission(&self) -> &Admission {
        &self.admission
    }

    /// Returns our address.
    pub(crate) fn jid(&self) -> FullJid {
        self.lock().jid.clone()
    }

    /// Returns whether the session with the server is lost. Another one may follow.
    pub(super) fn is_lost(&self) -> bool {
        let is_between =
            self.keeper.as_ref().is_some_and(|keeper| keeper.status.borrow().bound.is_none());
        is_between || self.lock().lost
    }

    /// Waits until there is a session with the server. Without one that reconnects, it waits for ever once the connection is lost.
    pub(super) async fn found(&self) {
        if let Some(keeper) = &self.keeper {
            let mut status = keeper.status.clone();
            let is_found = status.wait_for(|status| status.bound.is_some()).await.is_ok();
            if is_found && !self.lock().lost {
                return;
            }
        }
        std::future::pending().await
    }

    /// Returns this machine's network from now on, as the connection to the server follows it.
    pub(crate) fn network(&self) -> Network {
        let mut network =
            self.keeper.as_ref().map_or_else(Network::fixed, |keeper| keeper.network.clone());
        network.forget_changes();
        network
    }

    /// Returns the number of lost sessions with the server.
    pub(super) fn over(&self) -> u64 {
        self.keeper.as_ref().map_or(0, |keeper| keeper.status.borrow().over)
    }

    fn lock(&self) -> MutexGuard<'_, HubState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a stanza. Without a session with the server the stanza is dropped: it would answer a lost request.
    pub(crate) async fn send(&self, element: Element) {
        if !self.is_lost() {
            let _ = self.outbound.send(element.into()).await;
        }
    }

    /// Sends a stanza if there is room for it, without waiting.
    pub(crate) fn try_send(&self, element: Element) {
        if !self.is_lost() {
            let _ = self.outbound.try_send(element.into());
        }
    }

    async fn route(&self, stanza: Stanza, arrivals: &mpsc::Sender<Arrival>) {
        if stanza.kind == Kind::Message {
            return self.handle_message(stanza).await;
        }
        if !stanza.is_request() {
            if stanza.kind == Kind::Iq && !self.requests.handle(&stanza) {
                let handles: Vec<_> = self.lock().streams.values().cloned().collect();
                let _ = handles.iter().any(|handle| handle.handle_answer(&stanza));
            }
            return;
        }
        let Some(payload) = stanza.payload() else {
            return self.send(stanza.refusal(&Refusal::bad_request("A child was expected"))).await;
        };
        if payload.name() == "jingle"
            && [ns::JINGLE, ns::JINGLE_0].iter().any(|n| payload.has_ns(*n))
        {
            let key = (stanza.from.clone(), payload.attr("sid").unwrap_or_default().to_owned());
            let action = jingle::action(payload);
            let mut is_crossed = false;
            let session = self.lock().sessions.get_mut(&key).map(|open| {
                match action.known() {
                    Some(Action::TransportReplace) => {
                        is_crossed = open.replaces || open.is_only_offerer;
                    }
                    Some(Action::TransportAccept | Action::TransportReject) => {
                        open.replaces = false;
                    }
                    _ => {}
                }
                let aside = open.aside.as_ref().filter(|_| is_of_transport(payload));
                aside.unwrap_or(&open.inbox).clone()
            });
            let answer = match session {
                // The initiator's wins (XEP-0166, 7.2.16).
                Some(_) if is_crossed => stanza.refusal(&crossed()),
                // Acknowledged on arrival: two sides that wait for each other's answer must not block.
                Some(inbox) => match inbox.try_send(stanza.clone()) {
                    Ok(()) => stanza.result(None),
                    Err(_) => stanza.refusal(&unknown_session()),
                },
                None if action == Action::SessionInitiate => {
                    self.arrive(&stanza, payload, arrivals)
                }
                None => stanza.refusal(&unknown_session()),
            };
            return self.send(answer).await;
        }
        if payload.has_ns(ns::IBB) {
            let key = (stanza.from.clone(), payload.attr("sid").unwrap_or_default().to_owned());
            let (open, stream) = {
                let mut state = self.lock();
                // A bytestream is expected, and the hub does not wait for its reader, because it handles all peers'
                // stanzas.
                let open = if payload.name() == "open" { state.opens.remove(&key) } else { None };
                (open, state.streams.get(&key).cloned())
            };
            let taken = match (open, stream) {
                (Some(open), _) => open.try_send(stanza.clone()).is_ok(),
                (None, Some(stream)) => stream.handle(&stanza),
                _ => false,
            };
            if !taken {
                self.send(stanza.refusal(&Refusal::item_not_found("There is no such bytestream")))
                    .await;
            }
            return;
        }
        let answer = match (payload.name(), payload.ns().as_str()) {
            ("query", ns::DISCO_INFO) => stanza.result(Some(self.info(payload.attr("node")))),
            ("ping", ns::PING) => stanza.result(None),
            _ => stanza.refusal(&Refusal::service_unavailable()),
        };
        self.send(answer).await;
    }

    /// Accepts a new session if it has room; returns the answer.
    fn arrive(
        &self,
        stanza: &Stanza,
        jingle: &Element,
        arrivals: &mpsc::Sender<Arrival>,
    ) -> Element {
        if first_content(jingle).is_err() {
            return stanza.refusal(&Refusal::bad_request("A content was expected"));
        }
        let place = match self.admission.admit(&stanza.from) {
            Ok(place) => place,
            Err(refusal) => return stanza.refusal(&refusal),
        };
        let Ok(arrival) = arrivals.try_reserve() else {
            return stanza.refusal(&Refusal::resource_constraint("No sessions are taken here"));
        };
        let inbox = self.session(&stanza.from, jingle.attr("sid").unwrap_or_default());
        arrival.send(Arrival { stanza: stanza.clone(), inbox, place });
        stanza.result(None)
    }

    fn info(&self, node: Option<&str>) -> Element {
        let mut query = Element::bare("query", ns::DISCO_INFO);
        if let Some(node) = node {
            xml::set(&mut query, "node", node);
        }
        query.append_child(xml::element(
            "identity",
            ns::DISCO_INFO,
            &[("category", "client"), ("type", "console"), ("name", "xtls")],
        ));
        for feature in self.features.iter() {
            query.append_child(xml::element("feature", ns::DISCO_INFO, &[("var", feature)]));
        }
        query
    }

    /// Sends a request as ourselves and waits for the answer, 45 seconds at most.
    pub(crate) async fn request(&self, kind: RequestKind, to: &Jid, payload: Element) -> Answer {
        if self.is_lost() {
            return Answer::Timeout;
        }
        self.requests.request(kind, &Jid::from(self.jid()), to, payload, ANSWER).await
    }

    /// Returns the inbox of a session; stanzas go there until the guard is dropped.
    pub(crate) fn session(&self, peer: &Jid, sid: &str) -> Inbox {
        let (sender, receiver) = mpsc::channel(32);
        let key = (peer.clone(), sid.to_owned());
        self.lock().sessions.insert(
            key.clone(),
            OpenSession {
                inbox: sender,
                aside: None,
                is_secured: false,
                replaces: false,
                is_only_offerer: false,
            },
        );
        Inbox { hub: self.clone(), key, receiver, is_aside: false }
    }

    /// Returns a channel for the `<open/>` that a peer is expected to send.
    pub(crate) fn expect_open(&self, peer: &Jid, sid: &str) -> mpsc::Receiver<Stanza> {
        let (sender, receiver) = mpsc::channel(1);
        let mut state = self.lock();
        // A session may end before its bytestream is opened.
        state.opens.retain(|_, open| !open.is_closed());
        state.opens.insert((peer.clone(), sid.to_owned()), sender);
        receiver
    }

    /// Opens an in-band bytestream.
    pub(crate) async fn open(
        &self,
        peer: &Jid,
        sid: &str,
        block_size: u16,
    ) -> Result<IbbStream, Error> {
        let size = block_size.to_string();
        let open =
            xml::element("open", ns::IBB, &[("sid", sid), ("block-size", &size), ("stanza", "iq")]);
        // The peer may send as soon as it has answered.
        let stream = self.stream(peer, sid, block_size);
        match self.request(RequestKind::Set, peer, open).await {
            Answer::Result(_) => Ok(stream),
            Answer::Error(error) => Err(Error::failed(format!(
                "the in-band bytestream was refused: {}",
                condition(&error)
            ))),
            Answer::Timeout => Err(Error::failed("the in-band bytestream was not answered")),
        }
    }

    /// Creates our end of an open in-band bytestream.
    pub(crate) fn stream(&self, peer: &Jid, sid: &str, block_size: u16) -> IbbStream {
        let mut params = IbbParams::new(Jid::from(self.jid()), peer.clone(), sid);
        (params.block_size, params.silence_timeout) = (block_size, SILENCE);
        let (stream, handle) = IbbStream::new(params, self.outbound.clone());
        let mut state = self.lock();
        state.streams.retain(|_, handle| !handle.is_over());
        state.streams.insert((peer.clone(), sid.to_owned()), handle);
        state.opens.remove(&(peer.clone(), sid.to_owned()));
        stream
    }
}

/// Returns whether an action of a session is about its transport.
fn is_of_transport(jingle: &Element) -> bool {
    match jingle::action(jingle).known() {
        Some(
            Action::TransportAccept
            | Action::TransportInfo
            | Action::TransportReject
            | Action::TransportReplace,
        ) => true,
        Some(Action::SessionInfo) => jingle.has_child("lost", ns::PATHS),
        _ => false,
    }
}

fn unknown_session() -> Refusal {
    Refusal::unknown_session("There is no such session")
}

fn crossed() -> Refusal {
    Refusal::new(ErrorType::Cancel, Condition::Conflict, "Another transport is offered already")
        .with_extra("tie-break", ns::JINGLE_ERRORS)
}

/// A session's stanzas.
#[derive(Debug)]
pub(crate) struct Inbox {
    hub: Hub,
    key: (Jid, String),
    receiver: mpsc::Receiver<Stanza>,
    /// Whether another inbox has the rest of the session.
    is_aside: bool,
}

impl Inbox {
    /// Returns an inbox for actions about the session's transport from now on. It ends with this one. If we are the session's
    /// initiator, the peer's own offers of another transport are refused: each of ours would cross them.
    pub(crate) fn aside(&self, is_initiator: bool) -> Option<Self> {
        let (sender, receiver) = mpsc::channel(32);
        let mut state = self.hub.lock();
        let open = state.sessions.get_mut(&self.key)?;
        (open.aside, open.is_only_offerer) = (Some(sender), is_initiator);
        drop(state);
        Some(Self { hub: self.hub.clone(), key: self.key.clone(), receiver, is_aside: true })
    }

    /// Returns the next Jingle request of this session; `None` if the connection is gone.
    pub(crate) async fn next(&mut self) -> Option<Stanza> {
        self.receiver.recv().await
    }

    /// Notes whether we have offered another transport as the session's initiator.
    pub(super) fn replaces(&self, replaces: bool) {
        if let Some(open) = self.hub.lock().sessions.get_mut(&self.key) {
            open.replaces = replaces;
        }
    }

    /// Notes that the session has a stream and outlives the session with the server.
    pub(super) fn secured(&self) {
        if let Some(open) = self.hub.lock().sessions.get_mut(&self.key) {
            open.is_secured = true;
        }
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        if self.is_aside {
            return;
        }
        self.hub.lock().sessions.remove(&self.key);
    }
}

/// Returns the user behind an address: the address itself, or the user that it stands for at the component.
pub(super) fn user_behind(address: &Jid, component: Option<&BareJid>) -> BareJid {
    component
        .filter(|component| component.domain() == address.domain())
        .and_then(|component| unproxied(address, component))
        .map_or_else(|| address.to_bare(), |user| user.to_bare())
}

#[cfg(test)]
mod tests {
    use fingerpost_carry::outbound::QueuedStanza;

    use super::*;
    use crate::policy::Registered;

    /// Returns a hub, the stanzas that it sends, and the sender of its stanzas.
    fn hub() -> (Hub, mpsc::Receiver<QueuedStanza>, mpsc::Sender<Stanza>) {
        let (outbound, sent) = mpsc::channel(64);
        let (stanzas, inbound) = mpsc::channel(64);
        let connection = Connection {
            jid: FullJid::new("bob@example.org/x").unwrap(),
            outbound,
            inbound,
            task: tokio::spawn(async {}),
        };
        let admission = Admission {
            component: None,
            only_brokered: false,
            policy: Arc::new(Registered),
            places: Places::default(),
            ringer: None,
        };
        (Hub::start(connection, None, Vec::new(), admission).0, sent, stanzas)
    }

    fn set(from: &Jid, id: &str, payload: Element) -> Stanza {
        let mut iq = xml::element(
            "iq",
            ns::CLIENT,
            &[("type", "set"), ("from", from.as_str()), ("to", "bob@example.org/x"), ("id", id)],
        );
        iq.append_child(payload);
        Stanza::parse(iq).unwrap()
    }

    fn open(sid: &str) -> Element {
        xml::element("open", ns::IBB, &[("sid", sid), ("block-size", "4096"), ("stanza", "iq")])
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_opens_a_bytestream_again_and_again_holds_up_nobody() {
        let (hub, mut sent, stanzas) = hub();
        let mallory = Jid::new("mallory@example.org/x").unwrap();
        let alice = Jid::new("alice@example.org/x").unwrap();
        let mut opens = hub.expect_open(&mallory, "s");
        for n in 0..3 {
            stanzas.send(set(&mallory, &format!("open{n}"), open("s"))).await.unwrap();
        }
        stanzas.send(set(&alice, "ping", Element::bare("ping", ns::PING))).await.unwrap();
        for (id, type_) in [("open1", "error"), ("open2", "error"), ("ping", "result")] {
            let next = tokio::time::timeout(Duration::from_secs(60), sent.recv()).await;
            let answer = next.expect("no stanza waits for another").unwrap().into_element();
            assert_eq!((answer.attr("id"), answer.attr("type")), (Some(id), Some(type_)));
        }
        assert_eq!(opens.recv().await.unwrap().id, "open0");
    }

    /// The peer's transport-replace crosses ours.
    #[tokio::test]
    async fn the_initiator_s_offer_of_another_transport_wins() {
        let (hub, mut sent, stanzas) = hub();
        let peer = Jid::new("alice@example.org/x").unwrap();
        let mut inbox = hub.session(&peer, "s");
        let say =
            |action: &str| xml::element("jingle", ns::JINGLE, &[("action", action), ("sid", "s")]);
        inbox.replaces(true);
        for (action, is_taken) in [
            ("transport-replace", false),
            ("transport-info", true),
            ("transport-accept", true),
            ("transport-replace", true),
        ] {
            stanzas.send(set(&peer, action, say(action))).await.unwrap();
            let answer = sent.recv().await.unwrap().into_element();
            assert_eq!(answer.attr("type"), Some(if is_taken { "result" } else { "error" }));
            if is_taken {
                assert_eq!(inbox.next().await.unwrap().id, action);
            } else {
                let error = answer.get_child("error", ns::CLIENT).unwrap();
                assert!(error.has_child("tie-break", ns::JINGLE_ERRORS));
                assert_eq!(Condition::of(error), Some(Condition::Conflict));
            }
        }
    }

    /// The component offers an in-band bytestream after the time of an attempt that has failed, beside the next attempt.
    #[tokio::test]
    async fn only_the_initiator_offers_new_legs_of_a_stream() {
        for is_initiator in [true, false] {
            let (hub, mut sent, stanzas) = hub();
            let peer = Jid::new("alice@example.org/x").unwrap();
            let inbox = hub.session(&peer, "s");
            let mut aside = inbox.aside(is_initiator).unwrap();
            for action in ["transport-replace", "transport-accept", "transport-replace"] {
                let say = xml::element("jingle", ns::JINGLE, &[("action", action), ("sid", "s")]);
                stanzas.send(set(&peer, action, say)).await.unwrap();
                let answer = sent.recv().await.unwrap().into_element();
                if is_initiator && action == "transport-replace" {
                    let error = answer.get_child("error", ns::CLIENT).unwrap();
                    assert!(error.has_child("tie-break", ns::JINGLE_ERRORS));
                    assert_eq!(Condition::of(error), Some(Condition::Conflict));
                } else {
                    assert_eq!(answer.attr("type"), Some("result"));
                    assert_eq!(aside.next().await.unwrap().id, action);
                }
            }
        }
    }

    #[tokio::test]
    async fn bytestreams_that_nobody_waits_for_any_more_are_forgotten() {
        let (hub, ..) = hub();
        let mallory = Jid::new("mallory@example.org/x").unwrap();
        for n in 0..100 {
            drop(hub.expect_open(&mallory, &n.to_string()));
        }
        assert!(hub.lock().opens.len() <= 1);
    }
}
