//! One user's end of sessions: its connection, its presence and its requests.

use std::{
    fmt,
    mem::replace,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use fingerpost_carry::iq::{Answer, random_id};
use fingerpost_wire::{
    jid::proxied,
    ns,
    print::{Method, Print},
    rsm,
    stanza::RequestKind,
    transport_kind::TransportKind,
    xml,
};
use jid::{BareJid, Jid};
use minidom::Element;
use tokio::sync::Semaphore;

use super::{
    builder::Builder,
    cause::AskedPeer,
    credential::{Credential, OwnOffer},
    direct::addresses::Scope,
    error::{Error, condition},
    guesses::Guesses,
    hub::{Hub, user_behind},
    keeper::Keeper,
    policy::Policy,
};

/// How long the queue may take to drain at the end.
const FLUSH: Duration = Duration::from_secs(2);
/// How long the component may take to answer a check.
const CHECK: Duration = Duration::from_secs(10);
/// How long a peer's program may take to say what it can do.
const FEATURES: Duration = Duration::from_secs(5);
/// How long a server may take to say whether an address belongs to chat rooms.
const ROOM: Duration = Duration::from_secs(3);
/// How long the closing of the stream may take at the end.
const CLOSE: Duration = Duration::from_secs(5);
/// The most pages of one answer that are read.
const PAGES: usize = 256;

/// One user's end of sessions. Cheap to clone; the connection lives until [`close`](Self::close).
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub(super) inner: Arc<EndpointShared>,
}

pub(super) struct EndpointShared {
    pub(super) hub: Hub,
    pub(super) builder: Builder,
    pub(super) guesses: Guesses,
    /// Places for attempts to connect by ICE that peers have asked for.
    pub(super) ice: Semaphore,
    pub(super) task: tokio::task::AbortHandle,
    /// The task that reconnects, if any.
    pub(super) keeper: Option<Keeper>,
    /// The announced priority, if presence was sent.
    pub(super) appeared: Mutex<Option<i8>>,
    /// The number of sessions with the server before the one in which it is available to the user's contacts.
    pub(super) available: Mutex<Option<u64>>,
}

impl fmt::Debug for EndpointShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointShared").field("jid", &self.hub.jid()).finish_non_exhaustive()
    }
}

impl Endpoint {
    /// Returns a builder for an endpoint with this credential: an [`Identity`](fingerpost_secure::identity::Identity), an
    /// OpenPGP [`Certifier`](fingerpost_secure::openpgp::Certifier), or a [`Password`](fingerpost_secure::srp::Password).
    pub fn builder(credential: impl Into<Credential>) -> Builder {
        Builder::new(credential.into())
    }

    /// Returns the address that the XMPP server has assigned.
    pub fn jid(&self) -> Jid {
        Jid::from(self.hub().jid())
    }

    /// Returns whether the connection to the XMPP server is up. Streams over SOCKS5 continue without it.
    pub fn is_connected(&self) -> bool {
        !self.inner.task.is_finished() && !self.hub().is_lost()
    }

    /// Returns why the connection is gone for good, once it is: the error that ends [`Incoming::next`](crate::Incoming::next).
    pub fn why_disconnected(&self) -> Error {
        let why = self.inner.keeper.as_ref().and_then(Keeper::why_ended);
        why.unwrap_or(Error::Disconnected)
    }

    /// Returns the print that we offer for our key; a password has none.
    pub fn print(&self) -> Option<Print> {
        let Builder { credential, offered, .. } = &self.inner.builder;
        let print = credential.print()?;
        Some(offered.clone().unwrap_or(print))
    }

    /// Returns the TLS method of all sessions.
    pub fn method(&self) -> Method {
        self.credential().method()
    }

    pub(super) fn offered(&self) -> OwnOffer {
        OwnOffer::new(self.method(), self.print())
    }

    /// Announces this endpoint to the component. With a priority of 0 or more, users may start sessions to our bare JID
    /// through it. In any case, their peers are notified at once if this program dies. Returns when the XMPP server has
    /// delivered the presence.
    pub async fn appear(&self, priority: i8) {
        *self.appeared() = Some(priority);
        self.announce(priority).await;
        self.settle().await;
    }

    pub(super) fn appeared(&self) -> std::sync::MutexGuard<'_, Option<i8>> {
        self.inner.appeared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn announce(&self, priority: i8) {
        self.be_available().await;
        self.presence(None, Some(with_priority(priority))).await;
    }

    /// Sends presence to the user's contacts, once in each session with the server, if that is wanted. A negative priority keeps
    /// the user's messages away; copies of them are asked for, because proposals to the bare JID come in these.
    async fn be_available(&self) {
        let session = Some(self.hub().over());
        let known = &self.inner.available;
        if !self.inner.builder.available
            || replace(&mut *known.lock().unwrap_or_else(PoisonError::into_inner), session)
                == session
        {
            return;
        }
        let mut presence = Element::bare("presence", ns::CLIENT);
        presence.append_child(with_priority(-1));
        self.hub().send(presence).await;
        let attributes = [("type", "set"), ("id", &*random_id())];
        let mut enable = xml::element("iq", ns::CLIENT, &attributes);
        enable.append_child(Element::bare("enable", ns::CARBONS));
        self.hub().send(enable).await;
    }

    /// Repeats the presence of [`appear`](Self::appear) in each new session with the server.
    pub(super) fn appear_in_each_session(&self) {
        let Some(keeper) = &self.inner.keeper else { return };
        let (mut status, inner) = (keeper.status.clone(), Arc::downgrade(&self.inner));
        tokio::spawn(async move {
            let mut over = 0;
            while status.changed().await.is_ok() {
                let seen = status.borrow_and_update().clone();
                if seen.bound.is_none() || seen.over == over {
                    continue;
                }
                over = seen.over;
                let Some(inner) = inner.upgrade() else { return };
                let endpoint = Self { inner };
                let priority = *endpoint.appeared();
                if let Some(priority) = priority {
                    endpoint.announce(priority).await;
                }
            }
        });
    }

    /// Withdraws the presence of [`appear`](Self::appear).
    pub async fn disappear(&self) {
        *self.appeared() = None;
        self.presence(Some("unavailable"), None).await;
    }

    /// Checks within ten seconds that the component answers.
    ///
    /// # Errors
    /// [`Error::NoComponent`], [`Error::Blocked`] if our own account has blocked it, or [`Error::Disconnected`].
    /// Without a component there is no check.
    pub async fn check_component(&self) -> Result<(), Error> {
        let Some(component) = self.component() else { return Ok(()) };
        let address = Jid::from(component.clone());
        let ping = self.hub().request(RequestKind::Get, &address, Element::bare("ping", ns::PING));
        let answer = tokio::time::timeout(CHECK, ping).await.unwrap_or(Answer::Timeout);
        match answer {
            Answer::Result(_) => Ok(()),
            _ if self.hub().is_lost() => Err(Error::Disconnected),
            Answer::Timeout => Err(self.asked(&address).silence()),
            // Any answer of its own comes from a component that is present.
            Answer::Error(error) => match self.asked(&address).error(&error) {
                error @ (Error::NoComponent(_) | Error::Blocked(_)) => Err(error),
                _ => Ok(()),
            },
        }
    }

    /// Returns the addressee of a request that is not a peer.
    pub(super) fn asked<'a>(&'a self, address: &'a Jid) -> AskedPeer<'a> {
        AskedPeer { address, peer: None, component: self.component() }
    }

    /// Returns whether an address, or its domain, says that it hosts chat rooms.
    pub(super) async fn is_room(&self, peer: &BareJid) -> bool {
        let domain = Jid::new(peer.domain().as_str());
        for address in [Ok(Jid::from(peer.clone())), domain].into_iter().flatten() {
            let query = Element::bare("query", ns::DISCO_INFO);
            let asked =
                tokio::time::timeout(ROOM, self.hub().request(RequestKind::Get, &address, query));
            if let Ok(Answer::Result(Some(info))) = asked.await
                && info.children().any(|child| {
                    child.is("identity", ns::DISCO_INFO)
                        && child.attr("category") == Some("conference")
                })
            {
                return true;
            }
        }
        false
    }

    /// Asks a peer's program what it can do (XEP-0030).
    pub(super) async fn info_of(&self, address: &Jid) -> Answer {
        let query = Element::bare("query", ns::DISCO_INFO);
        let asked = self.hub().request(RequestKind::Get, address, query);
        tokio::time::timeout(FEATURES, asked).await.unwrap_or(Answer::Timeout)
    }

    async fn presence(&self, type_: Option<&str>, child: Option<Element>) {
        let Some(component) = self.component() else { return };
        let mut presence = xml::element("presence", ns::CLIENT, &[("to", component.as_str())]);
        if let Some(type_) = type_ {
            xml::set(&mut presence, "type", type_);
        }
        if let Some(child) = child {
            presence.append_child(child);
        }
        self.hub().send(presence).await;
    }

    /// Sends an IQ of type `get` or `set`; returns the payload of the answer.
    ///
    /// # Errors
    /// [`Error::Refused`] with the error's condition and text; [`Error::NoComponent`] or [`Error::Blocked`] if the
    /// component was asked and that is the cause; [`Error::NoComponent`] or [`Error::Silent`] after 45 seconds.
    pub async fn request(
        &self,
        kind: RequestKind,
        to: &Jid,
        payload: Element,
    ) -> Result<Option<Element>, Error> {
        match self.hub().request(kind, to, payload).await {
            Answer::Result(payload) => Ok(payload),
            Answer::Error(error) => Err(match self.asked(to).error(&error) {
                error @ (Error::NoComponent(_) | Error::Blocked(_)) => error,
                _ => Error::refused(format!("{to}: {}", condition(&error))),
            }),
            Answer::Timeout if self.hub().is_lost() => Err(Error::Disconnected),
            Answer::Timeout => Err(self.asked(to).silence()),
        }
    }

    /// Sends a `get`; returns the payload of the answer with the items of all its pages (XEP-0059).
    ///
    /// # Errors
    /// Those of [`request`](Self::request); [`Error::Failed`] if the answer has no end.
    pub async fn request_all(&self, to: &Jid, payload: Element) -> Result<Option<Element>, Error> {
        let mut whole: Option<Element> = None;
        let mut next = None;
        for _ in 0..PAGES {
            let mut asked = payload.clone();
            if let Some(set) = next.take() {
                asked.append_child(set);
            }
            let Some(mut page) = self.request(RequestKind::Get, to, asked).await? else {
                return Ok(whole);
            };
            let items = page.children().filter(|child| !child.is("set", ns::RSM)).count();
            let part = rsm::Part::read(&page, items);
            page.remove_child("set", ns::RSM);
            match &mut whole {
                None => whole = Some(page),
                Some(whole) => {
                    for node in page.take_nodes() {
                        whole.append_node(node);
                    }
                }
            }
            match part.last.filter(|_| part.more) {
                Some(last) => next = Some(rsm::after(&last)),
                None => return Ok(whole),
            }
        }
        Err(Error::failed(format!("{to}: the answer has more than {PAGES} pages")))
    }

    /// Ends the connection after all queued stanzas are sent. Sessions should be over by then.
    pub async fn close(&self) {
        let _ = tokio::time::timeout(FLUSH, self.settle()).await;
        if let Some(keeper) = &self.inner.keeper {
            // The server would keep a stream that is not closed, for a client that comes back.
            keeper.closing.cancel();
            let _ = tokio::time::timeout(CLOSE, keeper.done.cancelled()).await;
        }
        self.inner.task.abort();
    }

    /// Waits until the server has handled all stanzas so far: it answers the one after them.
    pub(super) async fn settle(&self) {
        if let Ok(server) = Jid::new(self.hub().jid().domain().as_str()) {
            let _ = self
                .hub()
                .request(RequestKind::Get, &server, Element::bare("ping", ns::PING))
                .await;
        }
    }

    /// Returns the address to start a session to.
    pub(super) fn address_of(&self, peer: &Jid) -> Result<Jid, Error> {
        let Some(via) = self.via() else {
            if peer.resource().is_none() {
                return Err(Error::Address(format!(
                    "without a broker the JID must be full, such as {peer}/laptop"
                )));
            }
            return Ok(peer.clone());
        };
        if peer.domain() == via.domain() {
            return Ok(peer.clone());
        }
        proxied(peer, via)
            .ok_or_else(|| Error::Address(format!("{peer} is too long to be proxied")))
    }

    /// Returns the user behind an address: the address itself, or the user that it stands for at the component.
    pub(super) fn user_of(&self, address: &Jid) -> BareJid {
        user_behind(address, self.component())
    }

    pub(super) fn hub(&self) -> &Hub {
        &self.inner.hub
    }

    /// Returns how many wrong guesses of the password peers have made: see [`Builder::guesses`].
    pub fn wrong_guesses(&self) -> u32 {
        self.guesses().wrong()
    }

    pub(super) fn guesses(&self) -> &Guesses {
        &self.inner.guesses
    }

    pub(super) fn credential(&self) -> &Credential {
        &self.inner.builder.credential
    }

    pub(super) fn via(&self) -> Option<&BareJid> {
        self.inner.builder.via.as_ref()
    }

    /// Returns the address of the component that brokers the sessions, if there is one.
    pub fn component(&self) -> Option<&BareJid> {
        self.inner.builder.component.as_ref()
    }

    pub(super) fn transport(&self) -> Option<TransportKind> {
        self.inner.builder.transport
    }

    /// Returns whether a peer may learn this machine's addresses; `None` if [`Consent::ask`](crate::Consent::ask) decides.
    pub(super) fn may_learn_addresses(&self, peer: &BareJid) -> Option<bool> {
        let Builder { direct_path, consent, .. } = &self.inner.builder;
        direct_path.decide(&**consent, peer)
    }

    /// Returns which addresses direct paths may use.
    pub(super) fn scope(&self) -> Scope {
        self.inner.builder.link.map_or(Scope::Network, |[own, peer]| Scope::Link { own, peer })
    }

    /// Returns the transports to offer, one after the other.
    pub(super) fn transports_in_order(&self) -> Vec<TransportKind> {
        let Builder { transport, prefer, via, .. } = &self.inner.builder;
        if let Some(only) = transport {
            return vec![*only];
        }
        let (ice, first) = match prefer {
            Some(first @ (TransportKind::S5b | TransportKind::Ibb)) => (false, *first),
            Some(TransportKind::Ice) | None => (via.is_none(), TransportKind::S5b),
        };
        let ice = ice.then_some(TransportKind::Ice);
        ice.into_iter().chain([first, first.other()]).collect()
    }

    pub(super) fn policy(&self) -> &dyn Policy {
        &*self.inner.builder.policy
    }
}

fn with_priority(priority: i8) -> Element {
    let mut element = Element::bare("priority", ns::CLIENT);
    element.append_text(priority.to_string());
    element
}
