//! One user's connection.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use fingerpost_endpoint::{Application, Endpoint, Incoming, Request, RequestKind};
use fingerpost_wire::{ns, xml};
use jid::{BareJid, Jid};
use minidom::Element;
use tokio::sync::Mutex;

use crate::{
    fault::{Fault, Kind},
    link::Link,
    settings::Settings,
};

/// One user's connection to its XMPP server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    endpoint: Endpoint,
    component: BareJid,
    certificate: Arc<[u8]>,
}

/// The sessions that peers start.
#[derive(Debug)]
pub struct Requests {
    incoming: Mutex<Incoming>,
}

impl Client {
    /// Logs in.
    ///
    /// # Errors
    /// [`Kind::Argument`] for a setting; [`Kind::Login`] or [`Kind::Certificate`].
    pub async fn login(settings: Settings) -> Result<(Self, Requests), Fault> {
        let (login, builder, component, certificate) = settings.prepare()?;
        let (endpoint, incoming) = builder.login(&login).await?;
        let client = Self { endpoint, component, certificate: certificate.into() };
        Ok((client, Requests { incoming: Mutex::new(incoming) }))
    }

    /// Returns the address that the XMPP server has assigned.
    pub fn jid(&self) -> String {
        self.endpoint.jid().to_string()
    }

    /// Returns the SHA-256 fingerprint of the user's own key.
    pub fn fingerprint(&self) -> String {
        self.endpoint.print().map(|print| print.to_string()).unwrap_or_default()
    }

    /// Returns whether the connection to the XMPP server is up.
    pub fn is_connected(&self) -> bool {
        self.endpoint.is_connected()
    }

    /// Registers the user's key at the component under a label.
    ///
    /// # Errors
    /// [`Kind::Refused`], or that of a component that does not answer.
    pub async fn register(&self, label: &str) -> Result<(), Fault> {
        if label.chars().any(char::is_control) {
            return Err(Fault::argument("label: expected no control characters"));
        }
        let mut key = xml::element("key", ns::KEYS, &[("method", "x509"), ("label", label)]);
        let mut material = Element::bare("material", ns::KEYS);
        material.append_text(STANDARD.encode(&self.certificate));
        key.append_child(material);
        let mut add = Element::bare("add", ns::KEYS);
        add.append_child(key);
        let to = Jid::from(self.component.clone());
        self.endpoint.request(RequestKind::Set, &to, add).await?;
        Ok(())
    }

    /// Announces that peers may start sessions.
    pub async fn appear(&self) {
        self.endpoint.appear(0).await;
    }

    /// Starts a session with a peer.
    ///
    /// # Errors
    /// Any kind of the endpoint's errors.
    ///
    /// # Cancel safety
    /// A session that has begun is ended with `cancel`.
    pub async fn connect(&self, peer: &str) -> Result<Link, Fault> {
        let peer: Jid = peer.parse().map_err(|error| {
            Fault::new(
                Kind::Address,
                format!("expected a JID such as bob@example.org, found {peer:?}: {error}"),
            )
        })?;
        let (session, stream) = self.endpoint.initiate(&peer, &Application::tls()).await?;
        Ok(Link::start(session, stream, true))
    }

    /// Ends the connection. Streams over SOCKS5 continue.
    pub async fn close(&self) {
        self.endpoint.close().await;
    }

    /// Returns why the connection is gone.
    fn why(&self) -> Fault {
        self.endpoint.why_disconnected().into()
    }
}

impl Requests {
    /// Returns the next session that a peer starts.
    ///
    /// # Errors
    /// [`Kind::Disconnected`] or the reason why the connection is gone; [`Kind::State`] if another call waits.
    ///
    /// # Cancel safety
    /// No session is lost.
    pub async fn next(&self, client: &Client) -> Result<Arrival, Fault> {
        let Ok(mut incoming) = self.incoming.try_lock() else {
            return Err(Fault::state("another call waits for the next session"));
        };
        loop {
            let Some(request) = incoming.next().await else { return Err(client.why()) };
            if request.application().description().is_none() {
                return Ok(Arrival { request });
            }
            tokio::spawn(async move { request.decline("only raw TLS streams are accepted").await });
        }
    }
}

/// A session that a peer has started. Dropping it ends it with `cancel`.
#[derive(Debug)]
pub struct Arrival {
    request: Request,
}

impl Arrival {
    /// Returns the user that started it. The key is not checked yet.
    pub fn peer(&self) -> String {
        self.request.peer().to_string()
    }

    /// Accepts the session.
    ///
    /// # Errors
    /// Any kind of the endpoint's errors.
    pub async fn accept(self) -> Result<Link, Fault> {
        let (session, stream) = self.request.accept().await?;
        Ok(Link::start(session, stream, false))
    }

    /// Declines the session with a text for the peer's user.
    pub async fn decline(self, text: &str) {
        self.request.decline(text).await;
    }
}
