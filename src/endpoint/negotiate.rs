//! From a session-initiate to a secured stream.
//!
//! The responder is the TLS server. Order: session-initiate, session-accept, transport, TLS, data,
//! session-terminate (ProtoXEP jingle-xtls 0.0.4). What the peer offered pins its certificate; hints and policy are
//! asked before a byte of the application is sent.

use std::{sync::Arc, time::Duration};

use jid::{BareJid, Jid};
use minidom::Element;
use tokio::sync::mpsc;
use tokio_rustls::TlsStream;

use super::{
    Endpoint,
    application::{Application, answer, first_content},
    error::Error,
    hub::Arrival,
    method::expected,
    policy::{Hint, Known, Shown},
    session::{Session, payload},
    stream::{Learned, SecureStream},
};
use crate::{mediator::leg::Leg, print::Method, tls::stream::Secured, xmpp::iq::random_id};

/// How long a peer's user may think.
const ACCEPT: Duration = Duration::from_secs(300);

impl Endpoint {
    /// Starts a session with a user and secures it.
    ///
    /// With a broker, `peer` is the user, with or without a resource. Without one it must be a full JID.
    ///
    /// # Errors
    /// [`Error::Address`] if `peer` cannot be used so, else any variant. The peer has been told by then.
    ///
    /// # Cancel safety
    /// Dropping the future ends the session.
    ///
    /// ```no_run
    /// # use fingerpost::endpoint::{Application, Endpoint, Error};
    /// # async fn example(endpoint: Endpoint) -> Result<(), Error> {
    /// use tokio::io::AsyncWriteExt;
    ///
    /// let bob = "bob@example.org".parse().unwrap();
    /// let (mut session, mut stream) = endpoint.initiate(&bob, &Application::tls()).await?;
    /// println!("{} holds the key {}", stream.peer(), stream.learned().print);
    /// stream.write_all(b"Hello\n").await?;
    /// stream.shutdown().await?;
    /// session.terminate("success", "").await;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn initiate(
        &self,
        peer: &Jid,
        application: &Application,
    ) -> Result<(Session, SecureStream), Error> {
        let address = self.address_of(peer)?;
        let sid = random_id();
        let inbox = self.hub().session(&address, &sid);
        let mut session = Session::new(self, inbox, address, sid);
        let (offered, transport) = session.offer_transport().await;
        let mut children = application.to_elements(&self.offered());
        children.push(transport);
        let initiate = session.jingle("session-initiate", application.senders(), children);
        if let Err(error) = session.ask(initiate).await {
            session.over = true;
            return Err(error);
        }
        let (_, jingle) = match session.expect(&["session-accept"], ACCEPT).await {
            Ok(accept) => accept,
            Err(error) => {
                session.terminate("cancel", "").await;
                return Err(error);
            }
        };
        let outcome = async {
            let content = first_content(&jingle)?;
            session.answer = Application::read(&content).description().cloned();
            let hints = session.hints(&content)?;
            let expected = expected(&session.peer, self.method(), &content)?;
            let leg = session.initiator_leg(&content, &offered).await?;
            Ok((session.secure(leg, expected).await?, hints))
        }
        .await;
        session.finish(outcome).await
    }
}

/// New sessions that peers start, in the order of their arrival.
#[derive(Debug)]
pub struct Incoming {
    pub(super) endpoint: Endpoint,
    pub(super) arrivals: mpsc::Receiver<Arrival>,
}

impl Incoming {
    /// The next session; `None` if the connection to the XMPP server is gone.
    ///
    /// # Cancel safety
    /// No session is lost if the future is dropped.
    pub async fn next(&mut self) -> Option<Request> {
        let Arrival { stanza, inbox } = self.arrivals.recv().await?;
        let jingle = payload(&stanza);
        let sid = jingle.attr("sid").unwrap_or_default().to_owned();
        let mut session = Session::new(&self.endpoint, inbox, stanza.from, sid);
        let content = first_content(&jingle).ok()?;
        session.namespace = jingle.ns();
        session.content = content.attr("name").unwrap_or_default().to_owned();
        session.initiator = false;
        Some(Request { session, application: Application::read(&content), content })
    }
}

/// A session that a peer wants, to be accepted or declined. Dropped, it is ended with `cancel`.
#[derive(Debug)]
pub struct Request {
    session: Session,
    application: Application,
    content: Element,
}

impl Request {
    /// Who wants it. The key is not checked yet.
    pub fn peer(&self) -> &BareJid {
        self.session.peer()
    }

    /// What for.
    pub fn application(&self) -> &Application {
        &self.application
    }

    /// Accepts the session and secures it, with the peer's own description as the answer.
    ///
    /// # Errors
    /// Any; the peer has been told by then.
    ///
    /// ```no_run
    /// # use fingerpost::endpoint::Incoming;
    /// # async fn example(mut incoming: Incoming) {
    /// while let Some(request) = incoming.next().await {
    ///     if request.application().description().is_some() {
    ///         request.decline("only raw streams are taken here").await;
    ///         continue;
    ///     }
    ///     match request.accept().await {
    ///         Ok((session, stream)) => println!("{} is there", stream.peer()),
    ///         Err(error) => eprintln!("{error}"),
    ///     }
    /// }
    /// # }
    /// ```
    pub async fn accept(self) -> Result<(Session, SecureStream), Error> {
        self.accept_with(None).await
    }

    /// Accepts the session with another `<description/>` than the offered one.
    ///
    /// # Errors
    /// As [`accept`](Self::accept).
    pub async fn accept_with(
        self,
        description: Option<Element>,
    ) -> Result<(Session, SecureStream), Error> {
        let Self { mut session, content, .. } = self;
        let outcome = async {
            let endpoint = session.endpoint.clone();
            let expected = expected(&session.peer, endpoint.method(), &content)?;
            let hints = session.hints(&content)?;
            let children = answer(&content, description.as_ref(), &endpoint.offered());
            let leg = session.responder_leg(&content, children).await?;
            Ok((session.secure(leg, expected).await?, hints))
        }
        .await;
        session.finish(outcome).await
    }

    /// Declines the session, with a text for the peer's user.
    pub async fn decline(mut self, text: &str) {
        self.session.terminate("decline", text).await;
    }
}

type Outcome = Result<((TlsStream<Leg>, Secured), Vec<Hint>), Error>;

impl Session {
    /// What the registry says of the offered prints, if the policy goes along with it.
    fn hints(&self, content: &Element) -> Result<Vec<Hint>, Error> {
        // Only the component's word counts: a peer that is reached directly would be praising itself.
        let hints = if self.is_brokered() { Hint::read(content) } else { Vec::new() };
        self.endpoint.policy().offered(&self.peer, self.endpoint.method(), &hints)?;
        Ok(hints)
    }

    /// The policy's word, after the handshake and before the first byte of the application.
    async fn finish(mut self, outcome: Outcome) -> Result<(Self, SecureStream), Error> {
        match outcome.and_then(|(secured, hints)| self.check(secured, hints)) {
            Ok(stream) => {
                self.in_band = stream.learned().transport == super::TransportKind::Ibb;
                Ok((self, stream))
            }
            Err(error) => {
                // Only that there is no method in common is of use to the peer's user; all else says too much.
                let text = match &error {
                    Error::Unsupported(text) => text.as_str(),
                    _ => "",
                };
                self.terminate(error.reason(), text).await;
                Err(error)
            }
        }
    }

    fn check(
        &self,
        (tls, secured): (TlsStream<Leg>, Secured),
        hints: Vec<Hint>,
    ) -> Result<SecureStream, Error> {
        let (leg, connection) = tls.get_ref();
        let certificate = connection.peer_certificates().and_then(<[_]>::first);
        let method = self.endpoint.method();
        let shown = Shown {
            peer: &self.peer,
            method,
            print: &secured.peer,
            certificate: certificate.map(AsRef::as_ref).unwrap_or_default(),
            hints: &hints,
        };
        let known = match method {
            // There is no key to know again.
            Method::Srp => Known::Same,
            _ => self.endpoint.policy().shown(&shown)?,
        };
        let transport = match leg {
            Leg::Socket(_) => super::TransportKind::S5b,
            Leg::Ibb(_) => super::TransportKind::Ibb,
        };
        let learned = Learned {
            peer: self.peer.clone(),
            method,
            address: self.address.clone(),
            print: secured.peer,
            hints,
            known,
            tls_version: secured.version,
            key_exchange: secured.key_exchange,
            transport,
        };
        let me = self.endpoint.jid().to_bare();
        let sides = if self.initiator { [&me, &self.peer] } else { [&self.peer, &me] };
        Ok(SecureStream::new(tls, learned, sides.map(Clone::clone), Arc::clone(&self.progress)))
    }
}
