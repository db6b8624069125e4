//! The transport of a session: SOCKS5 if possible, otherwise in-band bytestreams (XEP-0260, XEP-0261).

use std::time::Duration;

use fingerpost_carry::{
    iq::{Answer, random_id},
    leg,
};
use fingerpost_wire::{
    dst_addr::DstAddr, ibb_xml::IbbPayload, jingle::Action, ns, stanza::Stanza,
    transport_kind::TransportKind, xml,
};
use minidom::Element;
use tokio::net::TcpStream;
use tokio::{sync::mpsc, time::timeout};

use super::{
    application::{first_content, transport_of},
    error::Error,
    ice::IceStream,
    s5b::{self, OwnCandidates},
    session::{STEP, Session},
};

/// The transport of a session: a TCP connection to the component or the peer, or an in-band bytestream.
pub(super) type TcpLeg = leg::Leg<TcpStream>;

/// What carries a session.
#[derive(Debug)]
pub(super) enum SessionLeg {
    /// A SOCKS5 or an in-band bytestream.
    Bytestream(TcpLeg),
    /// A connection by ICE.
    Ice(IceStream),
}

impl SessionLeg {
    pub(super) fn transport_kind(&self) -> TransportKind {
        match self {
            Self::Bytestream(leg) => leg.transport_kind(),
            Self::Ice(_) => TransportKind::Ice,
        }
    }
}

/// The in-band block size that we offer, in bytes.
const BLOCK: u16 = 8192;

/// The transport that we have offered.
#[derive(Debug)]
pub(super) struct OfferedTransport {
    sid: String,
    candidates: OwnCandidates,
}

impl OfferedTransport {
    /// Returns the id of the bytestream.
    pub(super) fn sid(&self) -> &str {
        &self.sid
    }
}

impl Session {
    /// Returns the transport to offer as initiator.
    pub(super) async fn offer_transport(&self, kind: TransportKind) -> (OfferedTransport, Element) {
        let sid = random_id();
        if kind == TransportKind::Ibb {
            let transport = xml::element(
                "transport",
                ns::JINGLE_IBB,
                &[("sid", &sid), ("block-size", &BLOCK.to_string())],
            );
            let candidates = OwnCandidates::default();
            return (OfferedTransport { sid, candidates }, transport);
        }
        let candidates = self.own_candidates(&sid, false).await;
        let dst = DstAddr::compute(&sid, &self.endpoint.jid(), &self.address).to_string();
        let transport = s5b::transport(&sid, &dst, &candidates.all);
        (OfferedTransport { sid, candidates }, transport)
    }

    /// Checks that a leg has the required transport.
    pub(super) fn check_demand(&self, leg: &TcpLeg) -> Result<(), Error> {
        self.demand(leg.transport_kind())
    }

    /// Checks that this transport may be used here.
    pub(super) fn demand(&self, kind: TransportKind) -> Result<(), Error> {
        match self.endpoint.transport() {
            Some(demanded) if demanded != kind => Err(Error::Transport(format!(
                "{} are not available, and no other transport is accepted here",
                demanded.title()
            ))),
            _ => Ok(()),
        }
    }

    /// Returns the candidates to offer for a stream. With a broker there are none: it offers itself. `has_agreed` says whether
    /// the peer's program has said that it takes direct connections.
    async fn own_candidates(&self, sid: &str, has_agreed: bool) -> OwnCandidates {
        if self.is_brokered() {
            return OwnCandidates::default();
        }
        let proxies = self.proxies.candidates(&self.endpoint).await;
        // Nobody has proved to be the peer yet, so a question would ask about a stranger.
        let may_tell =
            self.consent.is_given() && (has_agreed || self.takes_direct_connections().await);
        if !may_tell {
            return OwnCandidates { all: proxies, host: None };
        }
        let me = self.endpoint.jid();
        // Clients differ in which side they take for the requester.
        let hashes =
            [DstAddr::compute(sid, &me, &self.address), DstAddr::compute(sid, &self.address, &me)];
        OwnCandidates::with_host(proxies, &me, hashes.map(|hash| hash.to_string()).into())
    }

    /// Returns whether addresses of this machine are of use to the peer's program: they would be in stanzas for nothing if it
    /// is one of ours and its user takes no direct connections. Other programs have no such setting. A program that does not say
    /// what it has may be one of ours, so it gets none; proxies and in-band bytestreams remain for it.
    async fn takes_direct_connections(&self) -> bool {
        match self.endpoint.info_of(&self.address).await {
            Answer::Result(Some(info)) => {
                let has = |feature: &str| xml::features(&info).any(|one| one == feature);
                has(ns::PATHS) || !has(ns::HINTS)
            }
            Answer::Timeout | Answer::Error(_) | Answer::Result(None) => false,
        }
    }

    /// Sets up the transport that the responder has accepted.
    pub(super) async fn initiator_leg(
        &mut self,
        content: &Element,
        offered: OfferedTransport,
    ) -> Result<TcpLeg, Error> {
        let transport = transport_of(content);
        let transport = transport.ok_or_else(|| Error::failed("the peer named no transport"))?;
        let hub = self.endpoint.hub().clone();
        if !transport.has_ns(ns::JINGLE_S5B) {
            self.demand(TransportKind::Ibb)?;
            let size = block_size(transport).unwrap_or(4096);
            let sid = transport.attr("sid").unwrap_or(&offered.sid);
            let address = self.address.clone();
            let open = hub.open(&address, sid, size.min(BLOCK));
            return Ok(TcpLeg::Ibb(self.unless_ended(open).await?));
        }
        let OfferedTransport { sid, candidates } = offered;
        if let Some(socket) = self.s5b(transport, &sid, candidates).await? {
            return Ok(TcpLeg::Socket(socket));
        }
        self.demand(TransportKind::Ibb)?;
        let sid = random_id();
        let replace = xml::element(
            "transport",
            ns::JINGLE_IBB,
            &[("sid", &sid), ("block-size", &BLOCK.to_string())],
        );
        self.tell_transport(Action::TransportReplace, replace).await?;
        let Some(accepted) = self.answered(&sid, STEP).await? else {
            return Err(Error::failed("SOCKS5 failed and the peer refuses the in-band transport"));
        };
        let size = transport_of(&accepted).and_then(block_size).unwrap_or(BLOCK);
        let address = self.address.clone();
        let open = hub.open(&address, &sid, size.min(BLOCK));
        Ok(TcpLeg::Ibb(self.unless_ended(open).await?))
    }

    /// Waits for the answer to our offer of the transport with this id. Returns the content with the one that the peer has accepted,
    /// `None` if it takes none.
    pub(super) async fn answered(
        &mut self,
        sid: &str,
        wait: Duration,
    ) -> Result<Option<Element>, Error> {
        loop {
            let wanted = [Action::TransportAccept, Action::TransportReject];
            let (action, jingle) = self.expect(&wanted, wait).await?;
            let content = first_content(&jingle);
            let transport = content.as_ref().ok().and_then(transport_of);
            if !self.is_of_attempt(sid, transport) {
                continue;
            }
            return if action == Action::TransportReject { Ok(None) } else { content.map(Some) };
        }
    }

    /// Accepts the session with `children` as the answer, and sets up the offered transport.
    pub(super) async fn responder_leg(
        &mut self,
        content: &Element,
        children: Vec<Element>,
    ) -> Result<TcpLeg, Error> {
        self.accepted_leg(Action::SessionAccept, content, children).await
    }

    /// Accepts the transport in a content by an action, and sets it up.
    pub(super) async fn accepted_leg(
        &mut self,
        accept: Action,
        content: &Element,
        mut children: Vec<Element>,
    ) -> Result<TcpLeg, Error> {
        let Some(transport) = transport_of(content) else {
            return Err(Error::failed("the peer offered no transport"));
        };
        let senders = content.attr("senders");
        let hub = self.endpoint.hub().clone();
        if transport.has_ns(ns::JINGLE_S5B) {
            let sid = transport.attr("sid").unwrap_or_default().to_owned();
            // If in-band bytestreams are required, no candidate is of use, and in-band replaces SOCKS5.
            let is_wanted = self.demand(TransportKind::S5b).is_ok();
            let has_agreed = content.has_child("paths", ns::PATHS);
            let own = match is_wanted {
                true => self.own_candidates(&sid, has_agreed).await,
                false => OwnCandidates::default(),
            };
            let dst = DstAddr::compute(&sid, &self.endpoint.jid(), &self.address).to_string();
            children.push(s5b::transport(&sid, &dst, &own.all));
            self.tell(self.jingle(accept, senders, children)).await?;
            let none = s5b::transport(&sid, &dst, &[]);
            let theirs = if is_wanted { transport } else { &none };
            if let Some(socket) = self.s5b(theirs, &sid, own).await? {
                return Ok(TcpLeg::Socket(socket));
            }
            self.demand(TransportKind::Ibb)?;
            let (_, jingle) = self.expect(&[Action::TransportReplace], STEP).await?;
            let content = first_content(&jingle)?;
            let replaced = transport_of(&content).cloned();
            let Some(replaced) = replaced.filter(|transport| transport.has_ns(ns::JINGLE_IBB))
            else {
                return Err(self.other_transport(jingle));
            };
            let sid = replaced.attr("sid").unwrap_or_default().to_owned();
            let mut opens = hub.expect_open(&self.address, &sid);
            self.tell_transport(Action::TransportAccept, replaced).await?;
            return self.opened(&mut opens, &sid).await;
        }
        if ![ns::JINGLE_IBB, ns::JINGLE_IBB_0].iter().any(|n| transport.has_ns(*n)) {
            return Err(Error::failed("the peer requested an unknown transport"));
        }
        self.demand(TransportKind::Ibb)?;
        let sid = transport.attr("sid").unwrap_or(&self.sid).to_owned();
        let size = BLOCK.min(block_size(transport).unwrap_or(4096)).to_string();
        let mut opens = hub.expect_open(&self.address, &sid);
        children.push(xml::element(
            "transport",
            &transport.ns(),
            &[("sid", &sid), ("block-size", &size)],
        ));
        self.tell(self.jingle(accept, senders, children)).await?;
        self.opened(&mut opens, &sid).await
    }

    async fn opened(
        &mut self,
        opens: &mut mpsc::Receiver<Stanza>,
        sid: &str,
    ) -> Result<TcpLeg, Error> {
        let open = async {
            let stanza = timeout(STEP, opens.recv()).await.ok().flatten();
            stanza.ok_or_else(|| Error::failed("the peer did not open the in-band bytestream"))
        };
        let stanza = self.unless_ended(open).await?;
        let hub = self.endpoint.hub();
        let payload = stanza.payload().map(IbbPayload::parse);
        let size = match payload {
            Some(Ok(Some(IbbPayload::Open { block_size, .. }))) => block_size,
            Some(Err(refusal)) => {
                hub.send(stanza.refusal(&refusal)).await;
                return Err(Error::failed("the peer opened a bytestream with invalid parameters"));
            }
            _ => return Err(Error::failed("the peer did not open the in-band bytestream")),
        };
        let stream = hub.stream(&self.address, sid, size);
        hub.send(stanza.result(None)).await;
        Ok(TcpLeg::Ibb(stream))
    }
}

fn block_size(element: &Element) -> Option<u16> {
    element.attr("block-size")?.parse().ok()
}
