//! The choices for an endpoint, before it has a connection.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use fingerpost_wire::{print::Print, transport_kind::TransportKind};
use jid::BareJid;

use super::{
    consent::{Consent, DirectPath, NoConsent},
    credential::Credential,
    keeper::{self, Contact},
    message_initiation::Ringer,
    policy::{Policy, Registered},
    stun_servers::StunChoice,
};

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
    pub(super) credential: Credential,
    pub(super) offered: Option<Print>,
    pub(super) via: Option<BareJid>,
    pub(super) component: Option<BareJid>,
    pub(super) transport: Option<TransportKind>,
    pub(super) prefer: Option<TransportKind>,
    pub(super) raw: bool,
    pub(super) policy: Arc<dyn Policy>,
    pub(super) features: Vec<String>,
    pub(super) ringer: Option<Arc<dyn Ringer>>,
    pub(super) available: bool,
    pub(super) accept_direct: bool,
    pub(super) direct_path: DirectPath,
    /// The addresses of both sides on their link.
    pub(super) link: Option<[SocketAddr; 2]>,
    pub(super) consent: Arc<dyn Consent>,
    pub(super) stun: StunChoice,
    /// The most wrong guesses of the password, if they are limited.
    pub(super) guesses: Option<u32>,
    /// How the connection is kept: who hears of it, and whether a new session may follow a lost one.
    pub(super) reconnect: Option<(keeper::Listener, bool)>,
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
            .field("direct_path", &self.direct_path)
            .finish_non_exhaustive()
    }
}

impl Builder {
    pub(super) fn new(credential: Credential) -> Self {
        Self {
            credential,
            offered: None,
            via: None,
            component: None,
            transport: None,
            prefer: None,
            raw: true,
            policy: Arc::new(Registered),
            features: Vec::new(),
            ringer: None,
            available: false,
            accept_direct: false,
            direct_path: DirectPath::default(),
            link: None,
            consent: Arc::new(NoConsent),
            stun: StunChoice::default(),
            guesses: None,
            reconnect: None,
        }
    }

    /// Sends sessions through this component.
    pub fn via(self, component: BareJid) -> Self {
        Self { via: Some(component.clone()), component: Some(component), ..self }
    }

    /// Uses this component for its proxy and its registry only; sessions do not go through it.
    pub fn component(self, component: BareJid) -> Self {
        Self { component: Some(component), ..self }
    }

    /// Requires this transport on this side of every session: no other is announced, offered or accepted, and if it is
    /// not available the session ends with [`Error::Transport`](crate::Error::Transport). By default all are accepted. SOCKS5 is offered
    /// first; without a broker it is ICE, to peers that may learn this machine's addresses and whose program has ICE but no direct
    /// paths.
    pub fn transport(self, transport: TransportKind) -> Self {
        Self { transport: Some(transport), ..self }
    }

    /// Offers this transport first in sessions that start here; the other is used if it is not available.
    pub fn prefer(self, transport: TransportKind) -> Self {
        Self { prefer: Some(transport), ..self }
    }

    /// Sets whether raw TLS streams ([`Application::tls`](crate::Application::tls)) are announced; by default they are.
    /// A program that accepts only other applications sets this to `false`, because a session goes to the user's program
    /// that announces its application.
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

    /// Sets with which peers streams may leave the relay for a direct connection; by default those to which
    /// [`consent`](Self::consent) agrees.
    pub fn direct_path(self, direct_path: DirectPath) -> Self {
        Self { direct_path, ..self }
    }

    /// Says that both programs are connected already, with our address `own` and the peer's address `peer`, as on a local network
    /// (XEP-0174). Streams move to a connection between these two addresses, without a question, and no other address is told.
    pub fn on_link(self, own: SocketAddr, peer: SocketAddr) -> Self {
        let link = [own, peer].map(|of| match of.ip().to_canonical() {
            ip @ IpAddr::V4(_) => SocketAddr::new(ip, of.port()),
            IpAddr::V6(_) => of,
        });
        Self { link: Some(link), direct_path: DirectPath::Always, ..self }
    }

    /// Decides for [`DirectPath::Auto`] which peers may learn this machine's addresses; by default none.
    pub fn consent(self, consent: impl Consent) -> Self {
        Self { consent: Arc::new(consent), ..self }
    }

    /// Sets which STUN servers are asked at which address they see this machine, each `host:port` or `[IPv6]:port`, instead
    /// of those that the user's own XMPP server names (XEP-0215). Two at most are asked. None are with an empty list.
    ///
    /// They are asked over TCP: for ICE when it is offered or accepted, otherwise only after both sides of a session have agreed to a
    /// direct connection.
    pub fn stun_servers(self, servers: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let servers = servers.into_iter().map(Into::into).collect();
        Self { stun: StunChoice::These(servers), ..self }
    }

    /// Limits the wrong guesses of a [`Password`](fingerpost_secure::srp::Password): after so many of all peers together,
    /// every further session is refused, also one that this endpoint starts. This is for a password with few bits, which lives for
    /// one session. By default their pace is limited, and not their number.
    pub fn guesses(self, most: u32) -> Self {
        Self { guesses: Some(most), ..self }
    }

    /// Answers proposals of sessions (XEP-0353) as `ringer` decides, and announces that; by default none are answered. Those without the
    /// broker come to the full JID only, unless the endpoint is [`available`](Self::available).
    pub fn ringer(self, ringer: impl Ringer) -> Self {
        Self { ringer: Some(Arc::new(ringer)), ..self }
    }

    /// Makes the endpoint available to the user's contacts, with a negative priority, and asks the user's server for copies of all
    /// messages (XEP-0280), so that it gets proposals to the bare JID. All other messages are ignored.
    /// [`Endpoint::appear`](crate::Endpoint::appear) does that. By default only the component learns that the endpoint is there.
    pub fn available(self, available: bool) -> Self {
        Self { available, ..self }
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
    /// ([`Endpoint::why_disconnected`](crate::Endpoint::why_disconnected)). Streams over SOCKS5 continue throughout.
    ///
    /// It works with [`login`](Self::login), not with [`over`](Self::over).
    pub fn reconnect(self, listener: impl Fn(&Contact) + Send + Sync + 'static) -> Self {
        Self { reconnect: Some((Arc::new(listener), true)), ..self }
    }

    /// Reconnects when the connection is lost, for up to 30 seconds, but only to resume the session with the server (XEP-0198).
    /// If that is not possible, the endpoint ends.
    ///
    /// This is for a program that needs the endpoint for one session: with another address at the server, its peer could
    /// not find it. It works with [`login`](Self::login), not with [`over`](Self::over).
    pub fn resume(self, listener: impl Fn(&Contact) + Send + Sync + 'static) -> Self {
        Self { reconnect: Some((Arc::new(listener), false)), ..self }
    }
}
