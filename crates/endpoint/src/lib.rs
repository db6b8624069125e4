//! End-to-end TLS to another XMPP user, as a library: negotiate, then read and write.
//!
//! An [`Endpoint`] is one user's program. It logs in to the user's XMPP server, starts [sessions](Endpoint::initiate)
//! with other users and takes those that [come in](Incoming). Each session ends up in a [`SecureStream`]: bytes
//! that only the two programs can read, with what was [learned](Learned) of the peer on the way.
//!
//! A stream that is cut is never taken for one that has ended: reading gives `Ok(0)` only after the peer's own TLS
//! `close_notify`, and an error of kind `UnexpectedEof` wherever somebody between the two, or a crash, ended it.
//!
//! ```text
//!  Login ──login──▶ Endpoint ──initiate──▶ (Session, SecureStream)
//!                      │
//!                   Incoming ──next──▶ Request ──accept──▶ (Session, SecureStream)
//! ```
//!
//! A session runs through a broker (a Fingerpost component, [`Builder::via`]), which finds the user, tells each side
//! what its registry knows of the other's key and carries the bytes; or directly between two full JIDs, with the
//! component as proxy and registry only ([`Builder::component`]), or without any.
//!
//! # Whose key is it?
//! The peer must show the key whose print it has offered, or prove the password that both know; nothing else gets past the
//! handshake. Which it is, the [`Credential`] says that the endpoint is built with.
//! Then the endpoint asks the component's registry about the key that was shown, in every session, and refuses one that is
//! revoked or none of the peer's registered keys.
//! Whether that key is the right user's is for a [`Policy`] to say: [`Registered`] (the registry vouches for it; the
//! default), [`FirstUse`] (the first key is kept, another is refused), or one of your own. Nothing of the application is
//! sent before it has agreed.
//!
//! # Example
//! ```no_run
//! use fingerpost_endpoint::{Application, Endpoint, Error, Login, Reason};
//! use fingerpost_secure::identity::Identity;
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let login = Login::new("alice@example.org".parse()?, "her password");
//! let identity = Identity::generate(&login.jid)?;
//! let (endpoint, _incoming) =
//!     Endpoint::builder(identity).via("xtls.example.org".parse()?).login(&login).await?;
//!
//! let bob = "bob@example.org".parse()?;
//! let (mut session, mut stream) = match endpoint.initiate(&bob, &Application::tls()).await {
//!     Ok(secured) => secured,
//!     Err(Error::Unreachable(why)) => return Ok(println!("try later: {why}")),
//!     Err(error) => return Err(error.into()),
//! };
//! stream.write_all(b"Hello, Bob\n").await?;
//! stream.shutdown().await?;
//! let mut answer = String::new();
//! stream.read_to_string(&mut answer).await?;
//! session.terminate(Reason::Success, "").await;
//! endpoint.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! Whole programs: `examples/echo.rs`, a service, and `examples/send_line.rs`, which asks it. `xtls` is built on this
//! crate too.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests may panic"))]

mod application;
mod cause;
mod dial;
mod discovery;
mod driver;
mod error;
mod fast;
mod guesses;
mod hub;
mod keeper;
mod login;
mod managed;
mod method;
mod nat64;
mod negotiate;
mod path;
mod places;
mod policy;
mod progress;
mod registry;
mod s5b;
mod sasl;
mod sasl2;
mod session;
mod socks5;
mod stream;
mod transport;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use fingerpost_carry::iq::Answer;
use fingerpost_wire::{
    jid::{proxied, unproxied},
    ns,
    print::{Method, Print},
    rsm, xml,
};
pub use fingerpost_wire::{jingle::Reason, stanza::RequestKind, transport_kind::TransportKind};
use jid::{BareJid, Jid};
use minidom::Element;

#[cfg(any(test, feature = "testing"))]
pub use self::stream::testing;
pub use self::{
    application::{Application, CHUNKS},
    dial::{DialError, dial_addresses},
    error::{Detail, Error},
    fast::{FastStore, FastToken},
    keeper::Contact,
    login::{Connection, Login, ServerTrust, login},
    method::Credential,
    negotiate::{Incoming, Request},
    path::loses_large_packets,
    policy::{FirstUse, Hint, Known, Listed, Policy, Registered, Shown, Standing},
    progress::{Monitor, Waiting},
    session::Session,
    stream::{Learned, SecureStream},
};
use self::{
    cause::AskedPeer,
    guesses::Guesses,
    hub::{Admission, Hub},
    keeper::Keeper,
    method::OwnOffer,
    places::Places,
};

/// How long the queue may take to drain at the end.
const FLUSH: Duration = Duration::from_secs(2);
/// How long the component may take to answer a check.
const CHECK: Duration = Duration::from_secs(10);
/// How long a server may take to say whether an address belongs to chat rooms.
const ROOM: Duration = Duration::from_secs(3);
/// How long the closing of the stream may take at the end.
const CLOSE: Duration = Duration::from_secs(5);
/// The most pages of one answer that are read.
const PAGES: usize = 256;

/// One user's end of sessions. Cheap to clone; the connection lives until [`close`](Self::close).
#[derive(Clone, Debug)]
pub struct Endpoint {
    inner: Arc<Inner>,
}

struct Inner {
    hub: Hub,
    builder: Builder,
    guesses: Guesses,
    task: tokio::task::AbortHandle,
    /// The task that reconnects, if any.
    keeper: Option<Keeper>,
    /// The announced priority, if presence was sent.
    appeared: Mutex<Option<i8>>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("jid", &self.hub.jid()).finish_non_exhaustive()
    }
}

/// How an endpoint is to be.
///
/// ```
/// use fingerpost_endpoint::{Endpoint, FirstUse, TransportKind};
/// use fingerpost_secure::identity::Identity;
///
/// let identity = Identity::generate(&"alice@example.org".parse()?)?;
/// let builder = Endpoint::builder(identity)
///     .via("xtls.example.org".parse()?)
///     .transport(TransportKind::Ibb)
///     .policy(FirstUse::default());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct Builder {
    credential: Credential,
    offered: Option<Print>,
    via: Option<BareJid>,
    component: Option<BareJid>,
    transport: Option<TransportKind>,
    prefer: Option<TransportKind>,
    raw: bool,
    policy: Arc<dyn Policy>,
    features: Vec<String>,
    accept_direct: bool,
    reconnect: Option<keeper::Listener>,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("credential", &self.credential)
            .field("via", &self.via)
            .field("component", &self.component)
            .field("transport", &self.transport)
            .field("policy", &self.policy)
            .field("features", &self.features)
            .finish_non_exhaustive()
    }
}

impl Builder {
    /// Sends sessions through this component.
    pub fn via(self, component: BareJid) -> Self {
        Self { via: Some(component.clone()), component: Some(component), ..self }
    }

    /// Uses this component for its proxy and its registry only; sessions do not go through it.
    pub fn component(self, component: BareJid) -> Self {
        Self { component: Some(component), ..self }
    }

    /// Requires this transport on this side of every session: no other is announced, offered or accepted, and if it is
    /// not available the session ends with [`Error::Transport`]. By default both are accepted, SOCKS5 first.
    pub fn transport(self, transport: TransportKind) -> Self {
        Self { transport: Some(transport), ..self }
    }

    /// Offers this transport first in sessions that start here; the other is used if it is not available.
    pub fn prefer(self, transport: TransportKind) -> Self {
        Self { prefer: Some(transport), ..self }
    }

    /// Sets whether raw TLS streams ([`Application::tls`]) are announced; by default they are. A program that accepts
    /// only other applications sets this to `false`, because a session goes to the user's program that announces its
    /// application.
    pub fn raw_streams(self, announced: bool) -> Self {
        Self { raw: announced, ..self }
    }

    /// Sets the policy that accepts keys, instead of [`Registered`].
    pub fn policy(self, policy: impl Policy) -> Self {
        Self { policy: Arc::new(policy), ..self }
    }

    /// Offers this print of the own key instead of the usual one.
    pub fn offer(self, print: Print) -> Self {
        Self { offered: Some(print), ..self }
    }

    /// Sets whether peers may start sessions without the broker, if there is one; by default they may not.
    ///
    /// The registry is asked about the peer's key all the same. Without [`via`](Self::via) this has no effect: all
    /// sessions are accepted then.
    pub fn accept_direct(self, accept_direct: bool) -> Self {
        Self { accept_direct, ..self }
    }

    /// Announces an application by the namespace of its description, so that peers offer it.
    pub fn feature(mut self, namespace: impl Into<String>) -> Self {
        self.features.push(namespace.into());
        self
    }

    /// Reconnects whenever the connection is lost, and notifies `listener` of both events.
    ///
    /// The session with the server is resumed if possible (XEP-0198): nothing is lost then, and nothing comes twice.
    /// Otherwise a new one starts, at the same address if the server allows it. The pauses between attempts grow to a
    /// minute. A refused password, or another program that takes over the address, ends the endpoint
    /// ([`Endpoint::why_disconnected`]). Streams over SOCKS5 continue throughout.
    ///
    /// It works with [`login`](Self::login), not with [`over`](Self::over).
    pub fn reconnect(self, listener: impl Fn(&Contact) + Send + Sync + 'static) -> Self {
        Self { reconnect: Some(Arc::new(listener)), ..self }
    }

    /// Logs in, and starts.
    ///
    /// # Errors
    /// [`Error::Login`].
    pub async fn login(self, login: &Login) -> Result<(Endpoint, Incoming), Error> {
        let Some(listener) = &self.reconnect else {
            return Ok(self.over(self::login::login(login).await?));
        };
        let listener = Arc::clone(listener);
        let (connection, keeper) = keeper::keep(login.clone(), login.keepalive, listener).await?;
        Ok(self.start(connection, Some(keeper)))
    }

    /// Starts over an existing connection.
    pub fn over(self, connection: Connection) -> (Endpoint, Incoming) {
        self.start(connection, None)
    }

    fn start(self, connection: Connection, keeper: Option<Keeper>) -> (Endpoint, Incoming) {
        let mut features: Vec<String> = [
            ns::DISCO_INFO,
            ns::PING,
            ns::JINGLE,
            ns::JINGLE_0,
            ns::SECURITY_OFFER,
            ns::XTLS,
            ns::HINTS,
        ]
        .map(str::to_owned)
        .to_vec();
        if self.raw {
            features.push(ns::APPS_TLS.to_owned());
        }
        if self.transport != Some(TransportKind::Ibb) {
            features.push(ns::JINGLE_S5B.to_owned());
        }
        if self.transport != Some(TransportKind::S5b) {
            features.extend([ns::IBB, ns::JINGLE_IBB, ns::JINGLE_IBB_0].map(str::to_owned));
        }
        features.extend(self.features.iter().cloned());
        let admission = Admission {
            component: self.component.clone(),
            only_brokered: self.via.is_some() && !self.accept_direct,
            policy: Arc::clone(&self.policy),
            places: Places::default(),
        };
        let (hub, arrivals, task) = Hub::start(connection, keeper.clone(), features, admission);
        let inner = Inner {
            hub,
            builder: self,
            guesses: Guesses::default(),
            task: task.abort_handle(),
            keeper,
            appeared: Mutex::default(),
        };
        let endpoint = Endpoint { inner: Arc::new(inner) };
        endpoint.appear_in_each_session();
        (endpoint.clone(), Incoming { endpoint, arrivals })
    }
}

impl Endpoint {
    /// Returns a builder for an endpoint with this credential: an [`Identity`](fingerpost_secure::identity::Identity), an
    /// OpenPGP [`Certifier`](fingerpost_secure::openpgp::Certifier), or a [`Password`](fingerpost_secure::srp::Password).
    pub fn builder(credential: impl Into<Credential>) -> Builder {
        Builder {
            credential: credential.into(),
            offered: None,
            via: None,
            component: None,
            transport: None,
            prefer: None,
            raw: true,
            policy: Arc::new(Registered),
            features: Vec::new(),
            accept_direct: false,
            reconnect: None,
        }
    }

    /// Returns the address that the XMPP server has assigned.
    pub fn jid(&self) -> Jid {
        Jid::from(self.hub().jid())
    }

    /// Returns whether the connection to the XMPP server is up. Streams over SOCKS5 continue without it.
    pub fn is_connected(&self) -> bool {
        !self.inner.task.is_finished() && !self.hub().is_lost()
    }

    /// Returns why the connection is gone for good, once it is: the error that ends [`Incoming::next`].
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

    fn offered(&self) -> OwnOffer {
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

    fn appeared(&self) -> std::sync::MutexGuard<'_, Option<i8>> {
        self.inner.appeared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn announce(&self, priority: i8) {
        let mut element = Element::bare("priority", ns::CLIENT);
        element.append_text(priority.to_string());
        self.presence(None, Some(element)).await;
    }

    /// Repeats the presence of [`appear`](Self::appear) in each new session with the server.
    fn appear_in_each_session(&self) {
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
    fn asked<'a>(&'a self, address: &'a Jid) -> AskedPeer<'a> {
        AskedPeer { address, peer: None, component: self.component() }
    }

    /// Returns whether an address, or its domain, says that it hosts chat rooms.
    async fn is_room(&self, peer: &BareJid) -> bool {
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
                _ => Error::refused(format!("{to}: {}", hub::condition(&error))),
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
    async fn settle(&self) {
        if let Ok(server) = Jid::new(self.hub().jid().domain().as_str()) {
            let _ = self
                .hub()
                .request(RequestKind::Get, &server, Element::bare("ping", ns::PING))
                .await;
        }
    }

    /// Returns the address to start a session to.
    fn address_of(&self, peer: &Jid) -> Result<Jid, Error> {
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
    fn user_of(&self, address: &Jid) -> BareJid {
        user_behind(address, self.component())
    }

    fn hub(&self) -> &Hub {
        &self.inner.hub
    }

    fn guesses(&self) -> &Guesses {
        &self.inner.guesses
    }

    fn credential(&self) -> &Credential {
        &self.inner.builder.credential
    }

    fn via(&self) -> Option<&BareJid> {
        self.inner.builder.via.as_ref()
    }

    /// Returns the address of the component that brokers the sessions, if there is one.
    pub fn component(&self) -> Option<&BareJid> {
        self.inner.builder.component.as_ref()
    }

    fn transport(&self) -> Option<TransportKind> {
        self.inner.builder.transport
    }

    /// Returns the first transport to offer.
    fn first_transport(&self) -> TransportKind {
        let Builder { transport, prefer, .. } = &self.inner.builder;
        transport.or(*prefer).unwrap_or(TransportKind::S5b)
    }

    fn policy(&self) -> &dyn Policy {
        &*self.inner.builder.policy
    }
}

/// Returns the user behind an address: the address itself, or the user that it stands for at the component.
fn user_behind(address: &Jid, component: Option<&BareJid>) -> BareJid {
    component
        .filter(|component| component.domain() == address.domain())
        .and_then(|component| unproxied(address, component))
        .map_or_else(|| address.to_bare(), |user| user.to_bare())
}
