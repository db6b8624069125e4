//! One Jingle session of an endpoint: its actions in both directions, and its end (XEP-0166).

use std::{collections::VecDeque, sync::Arc, time::Duration};

use fingerpost_carry::iq::{Answer, random_id};
use fingerpost_wire::{
    jingle::{self, Action, Reason},
    ns,
    stanza::{Condition, RequestKind, Stanza},
    word::Word,
    xml,
};
use jid::{BareJid, Jid};
use minidom::Element;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    cause::{AskedPeer, is_absent},
    consent::SessionConsent,
    endpoint::Endpoint,
    error::{Detail, Error, condition},
    hub::Inbox,
    message_initiation::Finish,
    paths::Paths,
    places::SessionPlace,
    progress::{Monitor, Progress, Waiting},
    s5b::KnownProxies,
};

/// How long a step of the transport may take.
pub(super) const STEP: Duration = Duration::from_secs(60);
/// How long to wait for the answer to a session-terminate.
const GOODBYE: Duration = Duration::from_secs(5);
/// How long to wait before the session-terminate is sent again, if the component asks for that.
const GOODBYE_AGAIN: Duration = Duration::from_millis(500);
/// How long to wait without a new byte after the peer has ended the session, before bytes on their way are given up.
const LINGER: Duration = Duration::from_secs(5);
/// How long an in-band stream is silent before the other side is asked whether the session still exists (XEP-0166,
/// 6.8).
const PROBE: Duration = Duration::from_secs(10);
/// The most actions that wait for their turn.
const HELD: usize = 32;
/// The reasons of a session whose two sides do not reach each other any more.
const PARTED: [Reason; 5] = [
    Reason::ConnectivityError,
    Reason::Expired,
    Reason::FailedTransport,
    Reason::Gone,
    Reason::Timeout,
];
/// How long the reason of a stream's end may come after the end itself.
const REASON: Duration = Duration::from_secs(2);

/// The Jingle session that a secured stream belongs to.
///
/// It ends with [`terminate`](Self::terminate). If the peer ends it, [`terminated`](Self::terminated) and
/// [`during`](Self::during) return. If it is dropped before that, for example on Ctrl-C, the peer gets `cancel`.
#[derive(Debug)]
pub struct Session {
    pub(super) endpoint: Endpoint,
    pub(super) inbox: Inbox,
    pub(super) address: Jid,
    pub(super) peer: BareJid,
    pub(super) sid: String,
    pub(super) namespace: String,
    pub(super) content: String,
    pub(super) initiator: bool,
    /// Whether one side has ended it, or the other side never knew of it.
    pub(super) over: bool,
    /// Actions that came while the session waited for something else.
    held: VecDeque<(Word<Action>, Element)>,
    pub(super) answer: Option<Element>,
    /// The progress of the stream.
    pub(super) progress: Arc<Progress>,
    /// Whether the peer has proven its key.
    pub(super) is_secured: bool,
    /// Whether the session ended because the two sides do not reach each other any more.
    is_parted: bool,
    /// Why the session ended while the stream's user ended well; [`confirmed`](Self::confirmed) says it.
    reason: Option<Error>,
    /// The path layer of the stream, if it has one.
    pub(super) paths: Option<Paths>,
    /// Whether the other side is asked for the session while the stream is silent.
    pub(super) asks_for_session: bool,
    /// The place of a session that the peer started.
    pub(super) place: Option<SessionPlace>,
    /// Whether the peer may learn this machine's addresses.
    pub(super) consent: SessionConsent,
    /// The proxies that are offered without a broker.
    pub(super) proxies: KnownProxies,
    /// The id of the bytestream that was offered.
    pub(super) bytestream: Option<String>,
    /// What the peer's and our own programs are told at the end, if the session was proposed.
    pub(super) finish: Option<Finish>,
    /// Whether this is the part that negotiates the transport again: see [`aside`](Self::aside).
    is_aside: bool,
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.over || self.is_aside {
            return;
        }
        let mut iq = xml::element(
            "iq",
            ns::CLIENT,
            &[("type", "set"), ("to", self.address.as_str()), ("id", &random_id())],
        );
        iq.append_child(self.goodbye(Reason::Cancel, ""));
        self.endpoint.hub().try_send(iq);
    }
}

impl Session {
    pub(super) fn new(endpoint: &Endpoint, inbox: Inbox, address: Jid, sid: String) -> Self {
        Self {
            peer: endpoint.user_of(&address),
            endpoint: endpoint.clone(),
            inbox,
            address,
            sid,
            namespace: ns::JINGLE.to_owned(),
            content: "e2e-tls".to_owned(),
            initiator: true,
            over: false,
            held: VecDeque::new(),
            answer: None,
            progress: Arc::default(),
            is_secured: false,
            is_parted: false,
            reason: None,
            paths: None,
            asks_for_session: false,
            place: None,
            consent: SessionConsent::default(),
            proxies: KnownProxies::default(),
            bytestream: None,
            finish: None,
            is_aside: false,
        }
    }

    /// Returns a part of this session that negotiates its transport while the rest is in use elsewhere. It gets no other actions of the
    /// peer, and it ends with the session. `None` if the session is over.
    pub(super) fn aside(&self) -> Option<Self> {
        Some(Self {
            endpoint: self.endpoint.clone(),
            inbox: self.inbox.aside(self.initiator)?,
            address: self.address.clone(),
            peer: self.peer.clone(),
            sid: self.sid.clone(),
            namespace: self.namespace.clone(),
            content: self.content.clone(),
            initiator: self.initiator,
            over: false,
            held: VecDeque::new(),
            answer: None,
            progress: Arc::clone(&self.progress),
            is_secured: true,
            is_parted: false,
            reason: None,
            paths: None,
            asks_for_session: false,
            place: None,
            consent: self.consent.clone(),
            proxies: self.proxies.clone(),
            bytestream: None,
            finish: None,
            is_aside: true,
        })
    }

    /// Returns the user at the other end.
    pub fn peer(&self) -> &BareJid {
        &self.peer
    }

    /// Returns the address of the other end: the peer's own, or the one that stands for the peer at the component.
    pub fn address(&self) -> &Jid {
        &self.address
    }

    /// Returns the responder's `<description/>`, on the initiator's side.
    pub fn answer(&self) -> Option<&Element> {
        self.answer.as_ref()
    }

    /// Returns a view of the session's stream for other tasks.
    pub fn monitor(&self) -> Monitor {
        Monitor(Arc::clone(&self.progress))
    }

    /// Returns a channel that tells whether an in-band stream stands still because one user's client is silent. The
    /// component reports it.
    pub fn waiting(&self) -> watch::Receiver<Option<Waiting>> {
        self.progress.waiting()
    }

    /// Returns whether the session runs through the broker.
    pub(super) fn is_brokered(&self) -> bool {
        self.endpoint.component().is_some_and(|via| via.domain() == self.address.domain())
    }

    /// Ends the session with a reason and a text for the peer's user, which may be empty. Does nothing if it is over
    /// already.
    pub async fn terminate(&mut self, reason: Reason, text: &str) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        let hub = self.endpoint.hub();
        let goodbye = self.goodbye(reason, text);
        let saying = async {
            // A component that has just been started may not know its sessions yet.
            while let Answer::Error(error) =
                hub.request(RequestKind::Set, &self.address, goodbye.clone()).await
                && Condition::of(&error) == Some(Condition::ResourceConstraint)
            {
                sleep(GOODBYE_AGAIN).await;
            }
        };
        let _ = timeout(GOODBYE, saying).await;
        self.finished(reason == Reason::Success);
    }

    /// Says that a proposed session is over.
    fn finished(&mut self, is_success: bool) {
        if let Some(finish) = self.finish.take() {
            finish.say(is_success);
        }
    }

    fn goodbye(&self, reason: Reason, text: &str) -> Element {
        let me = self.endpoint.jid();
        jingle::terminate(&self.frame(&me), reason, text)
    }

    /// Returns a session-info without content.
    pub(super) fn info(&self) -> Element {
        jingle::own(Action::SessionInfo, &self.frame(&self.endpoint.jid()))
    }

    fn frame<'a>(&'a self, me: &'a Jid) -> jingle::Frame<'a> {
        jingle::Frame {
            namespace: &self.namespace,
            sid: &self.sid,
            initiator: me,
            responder: &self.address,
        }
    }

    /// Does `work` on the session's stream until it is done, or the peer ends the session.
    ///
    /// A peer that ends it with success has sent everything. Bytes on their way still arrive while the stream moves,
    /// and `work` has unlimited time for the bytes that it has read. The same holds for a peer that goes away, if the end of its
    /// stream may have come. A lost XMPP connection does not end a stream that may run beside it. An in-band stream cannot show the loss
    /// of the component or of the peer by itself. So while it is silent, the other side is asked whether the session exists.
    ///
    /// # Errors
    /// Those of `work`, or the reason why the session has ended, which tells more, with the number of bytes that had
    /// arrived.
    pub async fn during<T, E: From<Error>>(
        &mut self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        tokio::pin!(work);
        let missed = self.missed(self.asks_for_session);
        let ended = tokio::select! {
            biased;
            done = &mut work => {
                let Err(error) = done else { return done };
                // Without a peer, the work may still have failed by itself.
                let reason = self.reason().await.filter(|reason| *reason != Error::Disconnected);
                return Err(reason.map_or(error, |reason| self.with_received(reason).into()));
            }
            ended = self.terminated() => ended,
            error = missed => return Err(self.with_received(error).into()),
        };
        let reason = match ended {
            Ok(()) => None,
            Err(_) if !self.over => return work.await,
            // The end of the peer's stream may have come, and the work may only need a moment for what it has not read yet.
            Err(error) if self.is_parted && (self.paths.is_some() || self.progress.has_ended()) => {
                self.reason = Some(error.clone());
                Some(error)
            }
            Err(error) => return Err(self.with_received(error).into()),
        };
        if let Some(paths) = &self.paths {
            // From now on nobody negotiates a new leg of the relay.
            paths.give_up();
        }
        tokio::select! {
            biased;
            done = work => match (done, reason) {
                (Err(_), Some(reason)) => Err(self.with_received(reason).into()),
                (done, _) => done,
            },
            () = self.progress.stalled(LINGER) => {
                let early = || Error::failed("the session was ended before the stream");
                Err(self.with_received(reason.unwrap_or_else(early)).into())
            }
        }
    }

    /// Waits until the peer ends the session with success, which says that it has received everything.
    ///
    /// # Errors
    /// If the session ends in another way; [`Error::Gone`] or [`Error::Disconnected`] if the peer cannot say so any more. What the
    /// stream itself has confirmed remains true then.
    pub async fn confirmed(&mut self) -> Result<(), Error> {
        if let Some(reason) = self.reason.take() {
            return Err(reason);
        }
        let missed = self.missed(true);
        tokio::select! {
            biased;
            ended = self.terminated() => ended,
            error = missed => Err(error),
        }
    }

    /// Adds to an error how many bytes had arrived when the session ended.
    fn with_received(&self, error: Error) -> Error {
        let received = self.progress.received();
        let more = |text: Detail| text.and(&format!(" (after {received} bytes had arrived)"));
        match error {
            error if received == 0 => error,
            Error::Failed(text) => Error::Failed(more(text)),
            Error::Gone(text) => Error::Gone(more(text)),
            Error::Refused(text) => Error::Refused(more(text)),
            error => error,
        }
    }

    /// Waits until the session is found to be gone without a session-terminate, for example because the component was killed.
    fn missed(&self, asks: bool) -> impl Future<Output = Error> + use<> {
        let (hub, address) = (self.endpoint.hub().clone(), self.address.clone());
        let (peer, progress) = (self.peer.clone(), Arc::clone(&self.progress));
        let question = self.info();
        let broker = self.is_brokered().then(|| Jid::new(address.domain().as_str()).ok()).flatten();
        async move {
            if !asks {
                return std::future::pending().await;
            }
            // When the connection between two servers breaks, they say that a present user is absent.
            let mut doubted = false;
            loop {
                sleep(PROBE).await;
                if !progress.is_quiet(PROBE) {
                    continue;
                }
                if let Some(broker) = &broker {
                    let ping = Element::bare("ping", ns::PING);
                    // The server answers in place of the component, which is absent.
                    if let Answer::Error(error) = hub.request(RequestKind::Get, broker, ping).await
                        && is_absent(Condition::of(&error))
                    {
                        return Error::gone(format!("{broker} is gone, and the session with it"));
                    }
                }
                // A peer that does not answer may be suspended. If it is gone, its server answers.
                let Answer::Error(error) =
                    hub.request(RequestKind::Set, &address, question.clone()).await
                else {
                    doubted = false;
                    continue;
                };
                let named = Condition::of(&error);
                let absent = is_absent(named) && named != Some(Condition::RemoteServerTimeout);
                let sure = doubted || named != Some(Condition::RecipientUnavailable);
                if absent && sure {
                    let said = condition(&error);
                    return Error::gone(format!("the session with {peer} is gone: {said}"));
                }
                doubted = absent;
            }
        }
    }

    /// Waits for the reason why the session is over. It may come a moment after the stream broke, and tells more.
    async fn reason(&mut self) -> Option<Error> {
        if self.is_aside {
            return None;
        }
        timeout(REASON, self.terminated()).await.ok()?.err()
    }

    /// Waits until the peer ends the session, if it is not over.
    ///
    /// # Errors
    /// The reason, unless it is success.
    ///
    /// # Cancel safety
    /// It may be dropped and called again.
    pub async fn terminated(&mut self) -> Result<(), Error> {
        if self.over {
            return Ok(());
        }
        loop {
            let (action, jingle) = self.next().await?;
            if action == Action::SessionTerminate {
                return Ok(());
            }
            // Another attempt to replace a lost leg ends the one in hand.
            if self.is_aside && action == Action::TransportReplace {
                return Err(self.other_transport(jingle));
            }
        }
    }

    /// Returns the next action. A session-terminate comes as one only if it says success, otherwise as an error.
    pub(super) async fn next(&mut self) -> Result<(Word<Action>, Element), Error> {
        if let Some(held) = self.held.pop_front() {
            return Ok(held);
        }
        let stanza = self.inbox.next().await;
        self.received(stanza)
    }

    fn received(&mut self, stanza: Option<Stanza>) -> Result<(Word<Action>, Element), Error> {
        let jingle = payload(&stanza.ok_or(Error::Disconnected)?);
        let action = jingle::action(&jingle);
        if action == Action::SessionInfo && self.is_brokered() {
            self.progress.heed(&jingle);
        }
        if action != Action::SessionTerminate {
            return Ok((action, jingle));
        }
        self.over = true;
        let end = Farewell::read(&jingle);
        self.finished(end.reason == Reason::Success);
        self.is_parted = end.reason.known().is_some_and(|reason| PARTED.contains(&reason));
        if end.reason == Reason::Success {
            return Ok((action, jingle));
        }
        Err(self.ended(&end))
    }

    /// Returns why the other side has ended the session: the peer, or the component by itself.
    fn ended(&self, end: &Farewell) -> Error {
        let peer = &self.peer;
        // Only the component knows whether it speaks for itself.
        let mark = end.mark.as_ref().filter(|_| self.is_brokered());
        let component = mark.and_then(|_| self.endpoint.component());
        let ended_by = match component {
            Some(component) => component.to_string(),
            None => peer.to_string(),
        };
        let Farewell { reason, text: more, .. } = end;
        let text = format!("{ended_by} ended the session: {reason}{more}");
        match reason.known() {
            Some(known) if PARTED.contains(&known) => {
                Error::gone(format!("the session with {peer} was ended: {reason}{more}"))
            }
            Some(Reason::UnsupportedTransports) => Error::Transport(text),
            Some(Reason::SecurityError) if component.is_some() => {
                match mark.and_then(|mark| mark.attr("owner")) {
                    Some(owner) if owner == peer.as_str() && !self.is_secured => {
                        Error::unverified(format!("{text}: nothing was sent"))
                    }
                    // Our own key.
                    Some(_) => Error::refused(text),
                    None => Error::failed(text),
                }
            }
            // The failure is on the other side; it is not a refusal.
            Some(Reason::FailedApplication | Reason::GeneralError | Reason::MediaError) => {
                Error::failed(text)
            }
            _ => Error::refused(text),
        }
    }

    /// Returns the next action of a given name.
    pub(super) async fn expect(
        &mut self,
        wanted: &[Action],
        wait: Duration,
    ) -> Result<(Action, Element), Error> {
        let wanted_action = async {
            loop {
                let (action, jingle) = self.next().await?;
                if let Some(action) = action.known().filter(|action| wanted.contains(action)) {
                    return Ok((action, jingle));
                }
                if action == Action::SessionTerminate {
                    return Err(Error::refused("the peer ended the session early"));
                }
                if self.is_aside && action == Action::TransportReplace {
                    return Err(self.other_transport(jingle));
                }
            }
        };
        timeout(wait, wanted_action).await.map_err(|_| {
            let wanted: Vec<_> = wanted.iter().map(|action| action.as_str()).collect();
            Error::failed(format!("the peer did not answer in time ({})", wanted.join(", ")))
        })?
    }

    /// Returns the error for a transport-replace that does not belong to the attempt in hand. While a lost leg is replaced, the peer may
    /// have begun another attempt, so it is kept for that.
    pub(super) fn other_transport(&mut self, jingle: Element) -> Error {
        if !self.is_aside {
            return Error::failed("the peer requested an unknown transport");
        }
        self.held.push_front((Word::Known(Action::TransportReplace), jingle));
        Error::failed("the peer offers another transport")
    }

    /// Returns whether a transport that the peer names belongs to the attempt with this id. While a lost leg is replaced, stanzas of an
    /// attempt that was given up may still arrive.
    pub(super) fn is_of_attempt(&self, sid: &str, transport: Option<&Element>) -> bool {
        let named = transport.and_then(|transport| transport.attr("sid"));
        !self.is_aside || named.is_none_or(|named| named == sid)
    }

    /// Runs a step of the negotiation, which the peer may end.
    pub(super) async fn unless_ended<T>(
        &mut self,
        step: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        tokio::select! {
            done = step => match done {
                Err(Error::Failed(text)) => {
                    Err(self.reason().await.unwrap_or(Error::Failed(text)))
                }
                done => done,
            },
            ended = self.terminated() => Err(match ended {
                Ok(()) => Error::refused("the peer ended the session before it was secured"),
                Err(error) => error,
            }),
        }
    }

    /// Returns a `<jingle/>` of this session with one content.
    pub(super) fn jingle(
        &self,
        action: Action,
        senders: Option<&str>,
        children: Vec<Element>,
    ) -> Element {
        let me = self.endpoint.jid();
        let mut jingle = jingle::own(action, &self.frame(&me));
        match action {
            Action::SessionInitiate => xml::set(&mut jingle, "initiator", me.as_str()),
            Action::SessionAccept => xml::set(&mut jingle, "responder", me.as_str()),
            _ => {}
        }
        let mut content = xml::element(
            "content",
            &self.namespace,
            &[("creator", "initiator"), ("name", &self.content)],
        );
        if let Some(senders) = senders {
            xml::set(&mut content, "senders", senders);
        }
        for child in children {
            content.append_child(child);
        }
        jingle.append_child(content);
        jingle
    }

    /// Sends a request, unless the peer ends the session; keeps its other stanzas meanwhile.
    pub(super) async fn ask(&mut self, jingle: Element) -> Result<(), Error> {
        let (hub, address) = (self.endpoint.hub().clone(), self.address.clone());
        let over = hub.over();
        let replaces = self.initiator && jingle::action(&jingle) == Action::TransportReplace;
        if replaces {
            self.inbox.replaces(true);
        }
        let asking = hub.request(RequestKind::Set, &address, jingle);
        tokio::pin!(asking);
        let answer = loop {
            tokio::select! {
                // Actions that came before the answer are handled before it.
                biased;
                stanza = self.inbox.next() => {
                    let news = self.received(stanza)?;
                    if news.0 == Action::SessionTerminate {
                        return Err(Error::refused("the peer ended the session early"));
                    }
                    if self.held.len() >= HELD {
                        return Err(Error::refused("the peer says too much at once"));
                    }
                    self.held.push_back(news);
                }
                answer = &mut asking => break answer,
            }
        };
        if replaces && !matches!(answer, Answer::Result(_)) {
            self.inbox.replaces(false);
        }
        match answer {
            Answer::Result(_) => Ok(()),
            // Other errors may come from a server that lost its way for a moment.
            Answer::Error(error)
                if self.is_aside && error.has_child("unknown-session", ns::JINGLE_ERRORS) =>
            {
                Err(Error::refused("the session is gone"))
            }
            Answer::Error(error)
                if self.is_aside
                    && Condition::of(&error) == Some(Condition::ResourceConstraint) =>
            {
                Err(Error::failed("the component asks for patience"))
            }
            Answer::Error(error) => Err(self.asked().error(&error)),
            Answer::Timeout if hub.is_lost() || hub.over() != over => Err(Error::Disconnected),
            Answer::Timeout => Err(self.asked().silence()),
        }
    }

    /// Sends the same in a session that both sides know of: a peer that was reached once has gone.
    pub(super) async fn tell(&mut self, jingle: Element) -> Result<(), Error> {
        let peer = self.peer.clone();
        self.ask(jingle).await.map_err(|error| match error {
            Error::Unreachable(why)
            | Error::Silent(why)
            | Error::NoComponent(why)
            | Error::BlockedByPeer(why) => {
                Error::failed(format!("the session with {peer} is gone: {why}"))
            }
            error => error,
        })
    }

    fn asked(&self) -> AskedPeer<'_> {
        let component = self.endpoint.component();
        AskedPeer { address: &self.address, peer: Some(&self.peer), component }
    }

    pub(super) async fn tell_transport(
        &mut self,
        action: Action,
        transport: Element,
    ) -> Result<(), Error> {
        self.tell(self.jingle(action, None, vec![transport])).await
    }
}

/// What a session-terminate says.
#[derive(Debug)]
struct Farewell {
    reason: Word<Reason>,
    /// Its text after a colon, if it has one.
    text: String,
    /// The mark of a component that ends the session by itself.
    mark: Option<Element>,
}

impl Farewell {
    fn read(jingle: &Element) -> Self {
        let namespace = jingle.ns();
        let reason = jingle.get_child("reason", namespace.as_str());
        let named = reason.and_then(|reason| {
            reason.children().find(|child| child.name() != "text" && child.ns() == namespace)
        });
        let text = reason.and_then(|reason| reason.get_child("text", namespace.as_str()));
        let text: String = text.map(Element::text).unwrap_or_default();
        let text: String = text.chars().filter(|c| !c.is_control()).take(300).collect();
        Self {
            reason: Word::new(named.map_or("no reason", Element::name)),
            text: if text.is_empty() { text } else { format!(": {text}") },
            mark: reason.and_then(|reason| reason.get_child("component", ns::HINTS)).cloned(),
        }
    }
}

/// Returns the `<jingle/>` of a stanza.
pub(super) fn payload(stanza: &Stanza) -> Element {
    stanza.payload().cloned().unwrap_or_else(|| Element::bare("jingle", ns::JINGLE))
}
