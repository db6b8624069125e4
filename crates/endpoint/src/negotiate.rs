//! From a session-initiate to a secured stream.
//!
//! The responder is the TLS server. The order is: session-initiate, session-accept, transport, TLS, data,
//! session-terminate (ProtoXEP jingle-xtls 0.0.4). The peer's offer pins its certificate. Hints and policy decide
//! before a byte of the application is sent.

use std::{sync::Arc, time::Duration};

use fingerpost_carry::iq::random_id;
use fingerpost_secure::{
    openpgp::still_vouched,
    stream::{Protocol, Secured},
};
use fingerpost_wire::{
    jingle::{Action, Reason},
    ns,
    print::{Method, Print},
    transport_kind::TransportKind,
};
use jid::{BareJid, Jid};
use minidom::Element;
use rustls::pki_types::UnixTime;
use tokio::{sync::mpsc, time::timeout};
use tokio_rustls::TlsStream;

use super::{
    application::{Application, answer, first_content, transport_of},
    cause,
    endpoint::Endpoint,
    error::{Detail, Error},
    hub::Arrival,
    ice::Gathered,
    message_initiation::Proposal,
    method::expected,
    paths::{Keys, PathLeg},
    places::SessionPlace,
    policy::{
        Hint, Known, KnownKey, Listed, Shown, Standing, by_hints, by_keys, refuse_offer,
        without_answer, worse,
    },
    registry::RegistryAnswer,
    session::{Session, payload},
    stream::{Learned, SecureStream},
    transport::{OfferedTransport, SessionLeg},
};

/// How long a peer's user may take to decide.
const ACCEPT: Duration = Duration::from_secs(300);
/// How long a peer that has started a session may take to set up TLS: on a connection by ICE, and again on what replaces it.
const TLS_UP: Duration = Duration::from_secs(30);

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
    /// # use fingerpost_endpoint::{Application, Endpoint, Error, Reason};
    /// # async fn example(endpoint: Endpoint) -> Result<(), Error> {
    /// use tokio::io::AsyncWriteExt;
    ///
    /// let bob = "bob@example.org".parse().unwrap();
    /// let (mut session, mut stream) = endpoint.initiate(&bob, &Application::tls()).await?;
    /// println!("{} holds the key {}", stream.peer(), stream.learned().print);
    /// stream.write_all(b"Hello\n").await?;
    /// stream.shutdown().await?;
    /// session.terminate(Reason::Success, "").await;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn initiate(
        &self,
        peer: &Jid,
        application: &Application,
    ) -> Result<(Session, SecureStream), Error> {
        if self.via().is_none() && peer.resource().is_none() && self.is_room(&peer.to_bare()).await
        {
            return Err(cause::room(peer.as_str()));
        }
        match self.initiate_at(&self.address_of(peer)?, application, None).await {
            Err(
                Error::Refused(_)
                | Error::Unreachable(_)
                | Error::Silent(_)
                | Error::BlockedByPeer(_),
            ) if self.is_room(&peer.to_bare()).await => Err(cause::room(peer.as_str())),
            done => done,
        }
    }

    /// Starts a session at this address and secures it. A proposed one has the proposal's id; if it has to be started again with
    /// another transport, that one has not.
    pub(super) async fn initiate_at(
        &self,
        address: &Jid,
        application: &Application,
        mut proposal: Option<Proposal>,
    ) -> Result<(Session, SecureStream), Error> {
        let mut outcome = Err(Error::Transport(String::new()));
        for kind in self.transports_in_order() {
            outcome = self.initiate_over(kind, address, application, proposal.take()).await;
            // If one transport is not available, another may be.
            if !matches!(outcome, Err(Error::Transport(_))) {
                break;
            }
        }
        outcome
    }

    async fn initiate_over(
        &self,
        kind: TransportKind,
        address: &Jid,
        application: &Application,
        proposal: Option<Proposal>,
    ) -> Result<(Session, SecureStream), Error> {
        let sid = proposal.as_ref().map_or_else(random_id, |proposal| proposal.id().to_owned());
        let inbox = self.hub().session(address, &sid);
        let mut session = Session::new(self, inbox, address.clone(), sid);
        session.remember_consent();
        let (offered, transport) = match session.offer(kind).await {
            Ok(offer) => offer,
            Err(error) => {
                session.over = true;
                return Err(error);
            }
        };
        session.bytestream = transport.attr("sid").map(str::to_owned);
        let mut children = application.to_elements(&self.offered());
        children.push(transport);
        let offers_paths = session.allows_direct_paths();
        if offers_paths {
            children.push(Element::bare("paths", ns::PATHS));
        }
        let initiate = session.jingle(Action::SessionInitiate, application.senders(), children);
        let asked = session.ask(initiate).await;
        // A peer that has ended the session had begun it.
        if matches!(asked, Ok(()) | Err(Error::Refused(_))) {
            session.finish = proposal.and_then(Proposal::started);
        }
        if let Err(error) = asked {
            session.over = true;
            return Err(error);
        }
        let accepted = match &offered {
            Offered::Bytestream(_) => {
                let accepted = session.expect(&[Action::SessionAccept], ACCEPT).await;
                accepted.map(|(_, jingle)| (jingle, Vec::new()))
            }
            Offered::Ice(gathered) => {
                session.say_gathered(gathered);
                session.ice_accepted(ACCEPT).await
            }
        };
        let (jingle, early) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                session.terminate(Reason::Cancel, "").await;
                return Err(error);
            }
        };
        let outcome = async {
            let content = first_content(&jingle)?;
            session.answer = Application::read(&content).description().cloned();
            let hints = session.hints(&content)?;
            let expected = expected(&session.peer, self.method(), &content)?;
            let leg = match offered {
                Offered::Bytestream(offered) => {
                    SessionLeg::Bytestream(session.initiator_leg(&content, offered).await?)
                }
                Offered::Ice(offered) => {
                    session.ice_initiator_leg(&content, *offered, early).await?
                }
            };
            session.demand(leg.transport_kind())?;
            let has_paths = offers_paths && content.has_child("paths", ns::PATHS);
            let leg = session.with_paths(leg, has_paths);
            let (mut tls, secured) = session.secure(leg, expected, application.protocol()).await?;
            session.authenticate(&mut tls).await?;
            Ok((tls, secured, hints))
        }
        .await;
        session.finish(outcome).await
    }
}

/// The transport that we have offered as initiator.
#[derive(Debug)]
enum Offered {
    Bytestream(OfferedTransport),
    Ice(Box<Gathered>),
}

impl Session {
    async fn offer(&self, kind: TransportKind) -> Result<(Offered, Element), Error> {
        if kind == TransportKind::Ice {
            let offered = self.offer_ice().await?;
            let transport = offered.transport().to_element();
            return Ok((Offered::Ice(Box::new(offered)), transport));
        }
        let (offered, transport) = self.offer_transport(kind).await;
        Ok((Offered::Bytestream(offered), transport))
    }
}

/// New sessions that peers start, in the order of their arrival.
#[derive(Debug)]
pub struct Incoming {
    pub(super) endpoint: Endpoint,
    pub(super) arrivals: mpsc::Receiver<Arrival>,
}

impl Incoming {
    /// Returns the next session; `None` if the connection to the XMPP server is gone.
    ///
    /// # Cancel safety
    /// No session is lost if the future is dropped.
    pub async fn next(&mut self) -> Option<Request> {
        let Arrival { stanza, inbox, place } = self.arrivals.recv().await?;
        let jingle = payload(&stanza);
        let sid = jingle.attr("sid").unwrap_or_default().to_owned();
        let finish = self.endpoint.hub().proposed_session(&stanza.from, &sid);
        let mut session = Session::new(&self.endpoint, inbox, stanza.from, sid);
        session.finish = finish;
        let content = first_content(&jingle).ok()?;
        session.namespace = jingle.ns();
        session.content = content.attr("name").unwrap_or_default().to_owned();
        session.initiator = false;
        session.place = Some(place);
        Some(Request { session, application: Application::read(&content), content })
    }
}

/// A session that a peer has started, to be accepted or declined. Dropping it ends it with `cancel`.
#[derive(Debug)]
pub struct Request {
    session: Session,
    application: Application,
    content: Element,
}

impl Request {
    /// Returns the user that started it. The key is not checked yet.
    pub fn peer(&self) -> &BareJid {
        self.session.peer()
    }

    /// Returns its application.
    pub fn application(&self) -> &Application {
        &self.application
    }

    /// Accepts the session and secures it, with the peer's own description as the answer.
    ///
    /// # Errors
    /// Any; the peer has been told by then.
    ///
    /// ```no_run
    /// # use fingerpost_endpoint::Incoming;
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

    /// Accepts a raw stream of a pipe: the other end of [`Application::pipe`].
    pub async fn accept_pipe(self) -> Result<(Session, SecureStream), Error> {
        self.accept_for(None, Application::pipe().protocol()).await
    }

    /// Accepts the session with another `<description/>` than the offered one.
    ///
    /// # Errors
    /// Those of [`accept`](Self::accept).
    pub async fn accept_with(
        self,
        description: Option<Element>,
    ) -> Result<(Session, SecureStream), Error> {
        self.accept_for(description, None).await
    }

    async fn accept_for(
        self,
        description: Option<Element>,
        protocol: Option<Protocol>,
    ) -> Result<(Session, SecureStream), Error> {
        let Self { mut session, content, .. } = self;
        session.remember_consent();
        let given_way = session.place.as_ref().map(SessionPlace::given_way).unwrap_or_default();
        let peer = session.peer.clone();
        let work = async {
            let answered = async {
                let endpoint = session.endpoint.clone();
                let expected = expected(&session.peer, endpoint.method(), &content)?;
                let hints = session.hints(&content)?;
                let mut children = answer(&content, description.as_ref(), &endpoint.offered());
                let paths = content.get_child("paths", ns::PATHS);
                let has_paths = session.allows_direct_paths() && paths.is_some();
                if has_paths {
                    children.push(Element::bare("paths", ns::PATHS));
                }
                let transport = transport_of(&content);
                session.bytestream =
                    transport.and_then(|transport| transport.attr("sid")).map(str::to_owned);
                let ice = transport.filter(|transport| transport.has_ns(ns::JINGLE_ICE));
                let tried = match ice {
                    Some(ice) => Some(session.ice_answer(&content, ice, children.clone()).await?),
                    None => None,
                };
                Ok((expected, hints, children, has_paths, tried))
            };
            let late = || Error::Expired(format!("{peer} did not secure the session in time"));
            // What replaces ICE has a time of its own.
            let (expected, hints, children, has_paths, tried) =
                timeout(TLS_UP, answered).await.unwrap_or_else(|_| Err(late()))?;
            let tls_up = async {
                let leg = match tried {
                    Some(outcome) => session.ice_responder_leg(outcome).await?,
                    None => {
                        SessionLeg::Bytestream(session.responder_leg(&content, children).await?)
                    }
                };
                session.demand(leg.transport_kind())?;
                let leg = session.with_paths(leg, has_paths);
                session.secure(leg, expected, protocol).await
            };
            let (mut tls, secured) =
                timeout(TLS_UP, tls_up).await.unwrap_or_else(|_| Err(late()))?;
            session.authenticate(&mut tls).await?;
            Ok((tls, secured, hints))
        };
        let outcome = tokio::select! {
            outcome = work => outcome,
            () = given_way.cancelled() => {
                Err(Error::Expired(format!("{peer}'s session gave way to newer ones")))
            }
        };
        session.finish(outcome).await
    }

    /// Declines the session, with a text for the peer's user.
    pub async fn decline(mut self, text: &str) {
        self.session.terminate(Reason::Decline, text).await;
    }
}

type Outcome = Result<(TlsStream<PathLeg>, Secured, Vec<Hint>), Error>;

impl Session {
    /// Returns the broker's hints about the offered prints, if policy accepts them.
    fn hints(&self, content: &Element) -> Result<Vec<Hint>, Error> {
        // Only the component's hints count: a peer that is reached directly would vouch for itself.
        let hints = if self.is_brokered() { Hint::read(content, &self.peer) } else { Vec::new() };
        let method = self.endpoint.method();
        self.endpoint.policy().offered(&self.peer, method, &hints)?;
        refuse_offer(&self.peer, method, &hints)?;
        Ok(hints)
    }

    /// Runs the last checks, after the handshake and before the first byte of the application.
    async fn finish(mut self, outcome: Outcome) -> Result<(Self, SecureStream), Error> {
        let checked = match outcome {
            Ok((tls, secured, hints)) => self.check(tls, secured, hints).await,
            Err(error) => Err(error),
        };
        match checked {
            Ok(stream) => {
                self.is_secured = true;
                let is_in_band = stream.learned().transport == TransportKind::Ibb;
                // A stream with the path layer finds out by itself, and may outlive the component.
                self.paths = stream.paths();
                self.asks_for_session = is_in_band && self.paths.is_none();
                if !self.asks_for_session {
                    self.inbox.secured();
                }
                Ok((self, stream))
            }
            Err(error) => {
                // The peer's user may learn only that no method or transport is common; anything else would reveal too
                // much.
                let text = match &error {
                    Error::Unsupported(text) | Error::Transport(text) => text.as_str(),
                    _ => "",
                };
                self.terminate(error.reason(), text).await;
                Err(error)
            }
        }
    }

    async fn check(
        &mut self,
        tls: TlsStream<PathLeg>,
        secured: Secured,
        hints: Vec<Hint>,
    ) -> Result<SecureStream, Error> {
        let (leg, connection) = tls.get_ref();
        let certificate = connection.peer_certificates().and_then(<[_]>::first);
        let certificate = certificate.map(AsRef::as_ref).unwrap_or_default();
        let method = self.endpoint.method();
        let (known, standing, listed) = match method {
            // Nothing could be recognized later.
            Method::Srp => (Known::Same, Standing::NoRegistry, None),
            _ => {
                let (standing, listed) = self.standing(&secured, certificate, &hints).await?;
                let shown = Shown {
                    peer: &self.peer,
                    method,
                    print: &secured.peer,
                    certificate,
                    hints: &hints,
                    standing,
                    listed: listed.as_ref(),
                };
                shown.refuse_bad()?;
                (self.endpoint.policy().shown(&shown)?, standing, listed)
            }
        };
        if known == Known::Further {
            self.forget_consent();
        }
        if let Some(place) = &self.place {
            place.prove();
        }
        let transport = leg.transport_kind();
        let learned = Learned {
            peer: self.peer.clone(),
            method,
            address: self.address.clone(),
            print: secured.peer,
            hints,
            standing,
            listed,
            known,
            tls_version: secured.version,
            key_exchange: secured.key_exchange,
            transport,
        };
        if let Some(paths) = leg.paths() {
            self.find_paths(paths, Keys::of(&tls)?);
        }
        let me = self.endpoint.jid().to_bare();
        let sides = if self.initiator { [&me, &self.peer] } else { [&self.peer, &me] };
        Ok(SecureStream::new(tls, learned, sides.map(Clone::clone), Arc::clone(&self.progress)))
    }

    /// Returns the registry's view of the key that the peer has shown: the worse of its own answer and the broker's
    /// hints; and its entry, if it vouches for the key.
    async fn standing(
        &self,
        secured: &Secured,
        certificate: &[u8],
        hints: &[Hint],
    ) -> Result<(Standing, Option<Listed>), Error> {
        let method = self.endpoint.method();
        let forms = Print::forms(method, &secured.peer, certificate);
        let hinted = self.is_brokered().then(|| by_hints(method, &forms, hints));
        let openpgp = (method == Method::OpenPgp).then_some(&secured.peer);
        let listed = |standing, keys| match standing {
            Standing::Vouched => (standing, Listed::read(method, &forms, keys, hints)),
            _ => (standing, None),
        };
        let keys = match self.endpoint.keys_of(&self.peer, openpgp).await {
            None => return Ok((worse(hinted, Standing::NoRegistry), None)),
            Some(RegistryAnswer::Keys(keys)) => keys,
            // The component brokers for users who may not ask its registry; its hints are all that it says to them.
            Some(RegistryAnswer::NotServed) => {
                return Ok(listed(hinted.unwrap_or(Standing::Unavailable), None));
            }
            Some(RegistryAnswer::Unavailable(why)) => {
                tracing::warn!(peer = %self.peer, why, "cannot ask the registry");
                let asked = without_answer(&self.peer, self.initiator, hinted)?;
                return Ok((worse(hinted, asked), None));
            }
        };
        if let Some(print) = openpgp {
            self.refuse_older_state(print, certificate, &keys)?;
        }
        let asked = by_keys(method, &forms, &keys);
        let standing = worse(hinted, asked);
        Ok(listed(standing, Some(&keys)))
    }

    /// Judges the peer's OpenPGP key also by everything that the registry knows of it. The peer may have shown an older
    /// state of its certificate, in which the signing subkey was not revoked yet, or the key expired later.
    fn refuse_older_state(
        &self,
        print: &Print,
        certificate: &[u8],
        keys: &[KnownKey],
    ) -> Result<(), Error> {
        let known: Vec<&[u8]> = keys.iter().filter_map(|key| key.material.as_deref()).collect();
        still_vouched(certificate, print, &known, UnixTime::now()).map_err(|fault| {
            let text = format!(
                "{fault}, as the registry's copy of {}'s OpenPGP certificate says: nothing was sent",
                self.peer
            );
            Error::unverified(Detail::new(text, fault))
        })
    }
}
