//! Sessions with the component itself. It answers as TLS server with its own certificate; a user that shows the offered
//! certificate, and holds its key, has proven it.
//!
//! Only the handshake matters: the session ends when it is done.

use std::{sync::Arc, time::Duration};

use fingerpost_carry::{
    clock::{Clock, SystemClock},
    ibb_params::IbbParams,
    ibb_stream::IbbStream,
    iq::random_id,
};
use fingerpost_secure::{self, identity::Identity};
use fingerpost_wire::{
    dst_addr::DstAddr,
    ibb_xml::IbbPayload,
    jingle::{self, Frame},
    ns, offer,
    print::{Method, Print},
    stanza::{Condition, ErrorType, Refusal, Stanza},
    transport::{self, Transport},
    xml,
};
use jid::Jid;
use minidom::Element;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{
    Shared,
    session::{Input, Peer, unknown_session},
};
use crate::{
    refuse::Refuse as _,
    registry::Notice,
    relay::socket::{Socket, SocketLeg},
};

/// The smallest block that is worth a stanza, which is the one requested.
const BLOCK: u16 = 4096;
/// How long to wait for the peer's own session-terminate.
const GOODBYE: Duration = Duration::from_secs(2);

/// A session of one user with the component.
pub(super) struct OwnSession {
    pub(super) shared: Arc<Shared>,
    pub(super) peer: Peer,
    pub(super) identity: Arc<Identity>,
    pub(super) notices: mpsc::Sender<Notice>,
    pub(super) inbox: mpsc::Receiver<Input>,
    /// The content's name in the offer.
    pub(super) content: String,
    pub(super) deadline: Instant,
}

/// Why a session ends without a proof: the reason and a text.
struct Failure(&'static str, String);

impl OwnSession {
    /// Runs for the whole life of the session. `pins` are the offered x509 prints.
    pub(super) async fn run(mut self, initiate: Stanza, transport: Transport, pins: Vec<Print>) {
        self.send(initiate.result(None)).await;
        let offered = initiate.payload().and_then(first_content).cloned();
        let ended = match self.secure(offered, transport, pins).await {
            Ok(text) => Some(("success", text)),
            Err(Some(Failure(reason, text))) => Some((reason, text)),
            Err(None) => None,
        };
        if let Some((reason, text)) = ended {
            tracing::info!(reason, "session with the component ended");
            let jingle = jingle::end(&self.frame(), reason, &text, None);
            self.tell(jingle).await;
        }
        self.inbox.close();
        while let Some(input) = self.inbox.recv().await {
            if let Some(stanza) = input.into_request() {
                self.send(stanza.refuse(&unknown_session())).await;
            }
        }
    }

    async fn send(&self, element: Element) {
        let _ = self.shared.outbound.send(element).await;
    }

    fn frame(&self) -> Frame<'_> {
        let Peer { user, mask, sid, namespace } = &self.peer;
        Frame { namespace, sid, initiator: user, responder: mask }
    }

    async fn tell(&self, jingle: Element) {
        let Peer { user, mask, .. } = &self.peer;
        let mut iq = xml::element(
            "iq",
            ns::CLIENT,
            &[
                ("type", "set"),
                ("from", mask.as_str()),
                ("to", user.as_str()),
                ("id", &random_id()),
            ],
        );
        iq.append_child(jingle);
        self.send(iq).await;
    }

    /// Accepts, gets the transport, does the handshake, records the proof. `Err(None)`: the user has ended it.
    async fn secure(
        &mut self,
        offered: Option<Element>,
        transport: Transport,
        pins: Vec<Print>,
    ) -> Result<String, Option<Failure>> {
        let mut arrival = self.accept(offered, &transport).await;
        let leg = self.leg(&transport, &mut arrival).await?;
        let identity = Arc::clone(&self.identity);
        let handshake = fingerpost_secure::stream::accept(leg, &identity, pins);
        tokio::pin!(handshake);
        let done = loop {
            tokio::select! {
                done = &mut handshake => break done,
                input = self.inbox.recv() => { self.other(input).await?; }
                () = sleep_until(self.deadline) => return Err(Some(late())),
            }
        };
        let (mut stream, _) =
            done.map_err(|error| Some(Failure("security-error", error.to_string())))?;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).cloned();
        let Some(certificate) = shown else {
            return Err(Some(Failure("security-error", "No certificate was shown".to_owned())));
        };
        let now = SystemClock.now();
        let recorded = self.shared.registry.shown(&self.peer.user, &certificate, now).await;
        let (key, notice) =
            recorded.map_err(|refusal| Some(Failure("security-error", refusal.text)))?;
        if let Some(notice) = notice {
            let _ = self.notices.send(notice).await;
        }
        // The peer may want to end TLS first.
        let _ = stream.shutdown().await;
        let mut rest = [0; 256];
        let _ = tokio::time::timeout(GOODBYE, stream.read(&mut rest)).await;
        Ok(format!("The key {} is proven", key.id))
    }

    /// Sends the session-accept; returns the coming connection if the transport is SOCKS5.
    async fn accept(
        &self,
        offered: Option<Element>,
        transport: &Transport,
    ) -> Option<crate::relay::table::Registration> {
        let options = self.shared.options();
        let Peer { user, mask, .. } = &self.peer;
        let (element, arrival) = match transport {
            Transport::Ibb { namespace, sid, block_size } => {
                let sid = sid.as_deref().unwrap_or(&self.peer.sid);
                (transport::ibb(namespace, sid, (*block_size).min(options.block_size)), None)
            }
            Transport::S5b { sid, .. } => {
                let hashes =
                    vec![DstAddr::compute(sid, mask, user), DstAddr::compute(sid, user, mask)];
                let host = hashes[0].to_string();
                let element = transport::s5b(
                    sid,
                    &host,
                    &random_id(),
                    options.jid.as_str(),
                    &options.advertise,
                );
                (element, Some(self.shared.table.register(hashes)))
            }
        };
        let frame = self.frame();
        let mut jingle = jingle::own("session-accept", &frame);
        xml::set(&mut jingle, "responder", mask.as_str());
        let mut content = self.content(frame.namespace);
        // The answer uses the dialect of the offer.
        let print = self.identity.print().to_string();
        let has_security = offered.is_some_and(|c| c.has_child("security", ns::XTLS));
        content.append_child(if has_security {
            offer::security(&print)
        } else {
            offer::description(&print)
        });
        content.append_child(element);
        jingle.append_child(content);
        self.tell(jingle).await;
        if let Transport::S5b { sid, .. } = transport {
            let none = Element::bare("candidate-error", ns::JINGLE_S5B);
            self.tell_transport("transport-info", transport::s5b_news(sid, none)).await;
        }
        arrival
    }

    fn content(&self, namespace: &str) -> Element {
        xml::element("content", namespace, &[("creator", "initiator"), ("name", &self.content)])
    }

    async fn tell_transport(&self, action: &str, transport: Element) {
        let frame = self.frame();
        let mut jingle = jingle::own(action, &frame);
        let mut content = self.content(frame.namespace);
        content.append_child(transport);
        jingle.append_child(content);
        self.tell(jingle).await;
    }

    /// Waits for the bytestream: SOCKS5 until the user has chosen the connection, in-band until the stream is opened.
    async fn leg(
        &mut self,
        transport: &Transport,
        arrival: &mut Option<crate::relay::table::Registration>,
    ) -> Result<SocketLeg, Option<Failure>> {
        let mut socket: Option<Socket> = None;
        let mut used = !matches!(transport, Transport::S5b { .. });
        loop {
            if used && let Some(socket) = socket.take() {
                return Ok(SocketLeg::Socket(socket));
            }
            let came = async {
                match arrival {
                    Some(arrival) => arrival.arrived().await,
                    None => std::future::pending().await,
                }
            };
            let input = tokio::select! {
                input = self.inbox.recv() => input,
                arrived = came => {
                    socket = arrived;
                    *arrival = None;
                    continue;
                }
                () = sleep_until(self.deadline) => return Err(Some(late())),
            };
            match self.other(input).await? {
                Some(Other::Used) => used = true,
                Some(Other::Open(stanza)) => {
                    if let Some(leg) = self.open(&stanza).await {
                        return Ok(leg);
                    }
                }
                None => {}
            }
        }
    }

    async fn open(&self, stanza: &Stanza) -> Option<SocketLeg> {
        let (sid, block_size, kind) = match IbbPayload::parse(stanza.payload()?) {
            Ok(Some(IbbPayload::Open { sid, block_size, stanza })) => (sid, block_size, stanza),
            Ok(_) => return None,
            Err(refusal) => {
                self.send(stanza.refuse(&refusal)).await;
                return None;
            }
        };
        let mut params =
            IbbParams::new(self.peer.mask.clone(), self.peer.user.clone(), sid.as_str());
        params.block_size = block_size;
        params.stanza = kind;
        let options = self.shared.options();
        (params.window, params.silence_timeout) = (options.window, options.silence_timeout);
        let (stream, handle) = IbbStream::new(params, self.shared.outbound.clone());
        self.shared.add_stream(&self.peer, sid, handle);
        self.send(stanza.result(None)).await;
        Some(SocketLeg::Ibb(stream))
    }

    /// Answers all other stanzas of the session.
    async fn other(&self, input: Option<Input>) -> Result<Option<Other>, Option<Failure>> {
        let gone = |text: &str| Err(Some(Failure("gone", text.to_owned())));
        let stanza = match input {
            Some(Input::Jingle(_, stanza)) => stanza,
            Some(Input::Open(_, stanza)) => {
                return Ok(Some(Other::Open(Box::new(stanza))));
            }
            Some(Input::Gone(_)) => return Err(None),
            Some(Input::End(reason, text)) => return Err(Some(Failure(reason, text))),
            Some(Input::Check) => return Ok(None),
            Some(_) | None => return gone("The service is being stopped"),
        };
        let jingle =
            stanza.payload().cloned().unwrap_or_else(|| Element::bare("jingle", ns::JINGLE));
        let content = first_content(&jingle);
        match jingle.attr("action").unwrap_or_default() {
            "session-terminate" => {
                self.send(stanza.result(None)).await;
                Err(None)
            }
            "session-info" => {
                self.send(stanza.result(None)).await;
                Ok(None)
            }
            "transport-info" => {
                self.send(stanza.result(None)).await;
                let used = content
                    .and_then(|content| content.get_child("transport", ns::JINGLE_S5B))
                    .is_some_and(|transport| transport.has_child("candidate-used", ns::JINGLE_S5B));
                Ok(used.then_some(Other::Used))
            }
            "transport-replace" => {
                self.send(stanza.result(None)).await;
                match content.and_then(Transport::read) {
                    Some(Transport::Ibb { namespace, sid, block_size })
                        if self.shared.options().ibb =>
                    {
                        let sid = sid.unwrap_or_else(random_id);
                        self.shared.expect_open(&self.peer, Some(sid.clone()));
                        let size = block_size.clamp(1, BLOCK);
                        let answer = transport::ibb(&namespace, &sid, size);
                        self.tell_transport("transport-accept", answer).await;
                    }
                    _ => {
                        let transport = content
                            .and_then(|c| c.children().find(|c| c.name() == "transport"))
                            .cloned()
                            .unwrap_or_else(|| Element::bare("transport", ns::JINGLE_IBB));
                        self.tell_transport("transport-reject", transport).await;
                    }
                }
                Ok(None)
            }
            _ => {
                let refusal = Refusal::new(
                    ErrorType::Cancel,
                    Condition::FeatureNotImplemented,
                    "This is a proof, no more",
                );
                self.send(stanza.refuse(&refusal)).await;
                Ok(None)
            }
        }
    }
}

/// A stanza other than an answer.
enum Other {
    /// The user has chosen the SOCKS5 connection to us.
    Used,
    /// The user opens an in-band bytestream.
    Open(Box<Stanza>),
}

fn late() -> Failure {
    Failure("timeout", "It took too long".to_owned())
}

pub(super) fn first_content(jingle: &Element) -> Option<&Element> {
    let namespace = jingle.ns();
    jingle.children().find(|child| child.is("content", namespace.as_str()))
}

/// Returns whether the application of a content is a raw TLS stream and nothing else.
pub(super) fn is_raw(content: &Element) -> bool {
    let mut descriptions = content.children().filter(|child| child.name() == "description");
    let first = descriptions.next();
    first.is_some_and(|first| first.has_ns(ns::APPS_TLS)) && descriptions.next().is_none()
}

/// Returns the x509 prints of an offer.
pub(super) fn pins(content: &Element) -> Vec<Print> {
    offer::Offer::read(content).prints_for(Method::X509)
}

/// Returns the address that the component uses in a session of its own.
pub(super) fn mask(component: &jid::BareJid) -> Jid {
    Jid::from(component.clone())
}
