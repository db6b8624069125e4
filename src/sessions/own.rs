//! Sessions with the component itself. It answers as TLS server with its own certificate; a user that shows the offered
//! certificate, and holds its key, has proven it.
//!
//! Only the handshake matters: the session ends when it is done.
//!
//! [`OwnSession`] decides and does no I/O, as a brokered session does: inputs go in, actions come out.

use std::{collections::VecDeque, sync::Arc};

use fingerpost_wire::{
    dst_addr::DstAddr,
    ibb_xml::{IbbPayload, IbbStanza},
    jingle::{self, Action, Frame, Reason},
    ns, offer,
    print::{Method, Print},
    stanza::{RequestKind, Stanza},
    transport::{self, Transport},
    xml,
};
use jid::Jid;
use minidom::Element;
use tokio::time::Instant;

use super::{
    options::BrokerOptions,
    peer::SessionPeer,
    refusal::SessionRefusal,
    session::{self, SessionInput},
    side::Side,
};
use crate::refuse::Refuse as _;

/// The smallest block that is worth a stanza, which is the one requested.
const BLOCK: u16 = 4096;

/// An action that a session with the component requests.
#[derive(Debug)]
pub(super) enum OwnAction {
    /// Send a stanza.
    Send(Element),
    /// Take SOCKS5 connections for this stream id: [`SessionInput::Arrived`].
    Connect(String),
    /// Take an in-band `<open/>` with this sid: [`SessionInput::Open`].
    ExpectOpen(String),
    /// Do the handshake over the SOCKS5 connection: [`OwnSession::secured`].
    SecureSocket,
    /// Do the handshake over an in-band bytestream: its sid, its block size, and the kind of its stanzas.
    SecureStream(String, u16, IbbStanza),
}

/// How far a session with the component has come.
#[derive(Debug)]
enum OwnPhase {
    /// The user sets up the transport.
    Connecting {
        /// Whether the SOCKS5 connection is established.
        arrived: bool,
        /// Whether the user has chosen the connection to us.
        used: bool,
    },
    /// The handshake is being done.
    Securing,
    /// Nothing is left to do.
    Over,
}

/// The machine of a session of one user with the component.
#[derive(Debug)]
pub(super) struct OwnSession {
    options: Arc<BrokerOptions>,
    ids: fn() -> String,
    peer: SessionPeer,
    /// The content's name in the offer.
    content: String,
    phase: OwnPhase,
    deadline: Instant,
    actions: VecDeque<OwnAction>,
}

impl OwnSession {
    /// Accepts a session-initiate that offers this transport. `print` is that of our certificate.
    pub(super) fn accept(
        options: Arc<BrokerOptions>,
        ids: fn() -> String,
        peer: SessionPeer,
        print: &str,
        initiate: &Stanza,
        transport: &Transport,
        now: Instant,
    ) -> Self {
        let offered = initiate.payload().and_then(first_content);
        let content = offered.and_then(|content| content.attr("name"));
        let mut session = Self {
            deadline: now + options.activation_timeout,
            options,
            ids,
            peer,
            content: content.unwrap_or_default().to_owned(),
            phase: OwnPhase::Connecting { arrived: false, used: false },
            actions: VecDeque::new(),
        };
        session.send(initiate.result(None));
        // The answer uses the dialect of the offer.
        let security = match offered.is_some_and(|c| c.has_child("security", ns::XTLS)) {
            true => offer::security(print),
            false => offer::description(print),
        };
        session.tell_accept(security, transport);
        session
    }

    /// Returns the next action; call until `None`.
    pub(super) fn poll_action(&mut self) -> Option<OwnAction> {
        self.actions.pop_front()
    }

    /// Returns when [`SessionInput::Timeout`] is due.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Returns whether it has ended; [`OwnSession::poll_action`] may still return the last actions.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.phase, OwnPhase::Over)
    }

    /// Handles one input.
    pub(super) fn handle(&mut self, input: SessionInput) {
        match input {
            SessionInput::Jingle(_, stanza) | SessionInput::Open(_, stanza) if self.is_over() => {
                self.send(stanza.refuse(SessionRefusal::Over));
            }
            _ if self.is_over() => {}
            SessionInput::Jingle(_, stanza) => self.handle_jingle(&stanza),
            SessionInput::Open(_, stanza) => self.handle_open(&stanza),
            SessionInput::Arrived(_) => {
                if let OwnPhase::Connecting { arrived, .. } = &mut self.phase {
                    *arrived = true;
                }
                self.check_connected();
            }
            SessionInput::Check => {}
            SessionInput::Gone(_) => self.phase = OwnPhase::Over,
            SessionInput::End(reason, text) => self.end(reason, &text),
            SessionInput::Timeout => self.end(Reason::Timeout, "It took too long"),
            _ => self.end(Reason::Gone, "The service is being stopped"),
        }
    }

    /// Ends the session after the handshake: with the id of the key that is proven now, or with the fault.
    pub(super) fn secured(&mut self, proven: Result<String, String>) {
        match proven {
            Ok(key) => self.end(Reason::Success, &format!("The key {key} is proven")),
            Err(fault) => self.end(Reason::SecurityError, &fault),
        }
    }

    fn send(&mut self, element: Element) {
        self.actions.push_back(OwnAction::Send(element));
    }

    fn frame(&self) -> Frame<'_> {
        self.peer.frame(Side::Initiator)
    }

    fn tell(&mut self, jingle: Element) {
        let (user, mask) = &*self.peer.pair;
        self.send(RequestKind::Set.iq(mask.as_str(), user.as_str(), &(self.ids)(), jingle));
    }

    fn end(&mut self, reason: Reason, text: &str) {
        tracing::info!(reason = reason.as_str(), "session with the component ended");
        let jingle = jingle::end(&self.frame(), reason, text, None);
        self.tell(jingle);
        self.phase = OwnPhase::Over;
    }

    fn tell_accept(&mut self, security: Element, transport: &Transport) {
        let SessionPeer { pair, sid: session, .. } = &self.peer;
        let (user, mask) = &**pair;
        let element = match transport {
            Transport::Ibb { namespace, sid, block_size } => {
                let sid = sid.as_deref().unwrap_or(session);
                transport::ibb(namespace, sid, (*block_size).min(self.options.block_size))
            }
            Transport::S5b { sid, .. } => {
                self.actions.push_back(OwnAction::Connect(sid.clone()));
                let host = DstAddr::compute(sid, mask, user).to_string();
                let BrokerOptions { jid, advertise, .. } = &*self.options;
                transport::s5b(sid, &host, &(self.ids)(), jid.as_str(), advertise)
            }
        };
        let mut jingle = self.jingle(Action::SessionAccept, [security, element]);
        xml::set(&mut jingle, "responder", self.peer.mask().as_str());
        self.tell(jingle);
        if let Transport::S5b { sid, .. } = transport {
            let none = Element::bare("candidate-error", ns::JINGLE_S5B);
            self.tell_transport(Action::TransportInfo, transport::s5b_news(sid, none));
        }
    }

    fn jingle(&self, action: Action, children: impl IntoIterator<Item = Element>) -> Element {
        jingle::own_content(action, &self.frame(), &self.content, children)
    }

    fn tell_transport(&mut self, action: Action, transport: Element) {
        self.tell(self.jingle(action, [transport]));
    }

    /// Uses the SOCKS5 connection when it is established and the user has chosen it.
    fn check_connected(&mut self) {
        if matches!(self.phase, OwnPhase::Connecting { arrived: true, used: true }) {
            self.phase = OwnPhase::Securing;
            self.actions.push_back(OwnAction::SecureSocket);
        }
    }

    /// Handles an `<open/>`.
    fn handle_open(&mut self, stanza: &Stanza) {
        let (sid, block_size, kind) = match stanza.payload().map(IbbPayload::parse) {
            Some(Ok(Some(IbbPayload::Open { sid, block_size, stanza }))) => {
                (sid, block_size, stanza)
            }
            Some(Err(refusal)) => return self.send(stanza.refuse(refusal)),
            _ => return,
        };
        if matches!(self.phase, OwnPhase::Securing) {
            return self.send(stanza.refuse(SessionRefusal::AlreadyOpen));
        }
        self.phase = OwnPhase::Securing;
        self.actions.push_back(OwnAction::SecureStream(sid, block_size, kind));
        self.send(stanza.result(None));
    }

    fn handle_jingle(&mut self, stanza: &Stanza) {
        let none = Element::bare("jingle", ns::JINGLE);
        let jingle = stanza.payload().unwrap_or(&none);
        match jingle::action(jingle).known() {
            Some(Action::SessionTerminate) => {
                self.send(stanza.result(None));
                self.phase = OwnPhase::Over;
            }
            Some(Action::SessionInfo) => self.send(stanza.result(None)),
            Some(Action::TransportInfo) => {
                self.send(stanza.result(None));
                let is_used = first_content(jingle)
                    .and_then(|content| content.get_child("transport", ns::JINGLE_S5B))
                    .is_some_and(|transport| transport.has_child("candidate-used", ns::JINGLE_S5B));
                if let OwnPhase::Connecting { used, .. } = &mut self.phase {
                    *used |= is_used;
                }
                self.check_connected();
            }
            Some(Action::TransportReplace) => {
                self.send(stanza.result(None));
                self.replace(first_content(jingle));
            }
            _ => {
                self.send(stanza.refuse(SessionRefusal::OwnAction));
            }
        }
    }

    /// Handles the user's wish for another transport.
    fn replace(&mut self, content: Option<&Element>) {
        match content.and_then(Transport::read) {
            Some(Transport::Ibb { namespace, sid, block_size }) if self.options.ibb => {
                let sid = sid.unwrap_or_else(self.ids);
                self.actions.push_back(OwnAction::ExpectOpen(sid.clone()));
                let answer = transport::ibb(namespace, &sid, block_size.clamp(1, BLOCK));
                self.tell_transport(Action::TransportAccept, answer);
            }
            _ => {
                self.tell_transport(Action::TransportReject, transport::given(content));
            }
        }
    }
}

/// Returns the first content of a Jingle element.
pub(super) fn first_content(jingle: &Element) -> Option<&Element> {
    session::contents(jingle).next()
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const IBB: &str =
        "<transport xmlns='urn:xmpp:jingle:transports:ibb:1' sid='a-stream' block-size='4096'/>";
    const S5B: &str = "<transport xmlns='urn:xmpp:jingle:transports:s5b:1' sid='a-stream'/>";
    const TLS: &str = "<description xmlns='urn:xmpp:jingle:apps:tls'/>";
    const XTLS: &str =
        "<description xmlns='urn:x'/><security xmlns='urn:xmpp:jingle:security:xtls:0'/>";
    const USED: &str = "<transport xmlns='urn:xmpp:jingle:transports:s5b:1' sid='a-stream'>\
                        <candidate-used cid='c'/></transport>";

    fn count_up() -> String {
        thread_local!(static NEXT: Cell<u32> = const { Cell::new(0) });
        NEXT.set(NEXT.get() + 1);
        format!("id{}", NEXT.get())
    }

    fn jingle(action: &str, inside: &str) -> Stanza {
        let iq = format!(
            "<iq xmlns='jabber:client' type='set' id='{}' from='a@example.org/a' to='xtls.example.org'>\
             <jingle xmlns='urn:xmpp:jingle:1' action='{action}' sid='s'>\
             <content creator='initiator' name='c'>{inside}</content></jingle></iq>",
            count_up()
        );
        Stanza::parse(iq.parse().unwrap()).unwrap()
    }

    fn open() -> SessionInput {
        let iq = format!(
            "<iq xmlns='jabber:client' type='set' id='{}' from='a@example.org/a' to='xtls.example.org'>\
             <open xmlns='http://jabber.org/protocol/ibb' sid='a-stream' block-size='4096'/></iq>",
            count_up()
        );
        SessionInput::Open(Side::Initiator, Stanza::parse(iq.parse().unwrap()).unwrap())
    }

    fn session(offer: &str, transport: &str) -> OwnSession {
        let initiate = jingle("session-initiate", &format!("{offer}{transport}"));
        let peer = SessionPeer {
            pair: Arc::new((initiate.from.clone(), initiate.to.clone())),
            sid: "s".into(),
            namespace: ns::JINGLE,
        };
        let transport = initiate.payload().and_then(first_content).and_then(Transport::read);
        let (options, transport) = (Arc::new(BrokerOptions::of_tests()), transport.unwrap());
        let now = Instant::now();
        OwnSession::accept(options, count_up, peer, "AA:BB", &initiate, &transport, now)
    }

    /// Returns the stanzas that a session sends, and its other actions.
    fn actions(session: &mut OwnSession) -> (Vec<Element>, Vec<OwnAction>) {
        let (mut sent, mut other) = (Vec::new(), Vec::new());
        while let Some(action) = session.poll_action() {
            match action {
                OwnAction::Send(element) => sent.push(element),
                action => other.push(action),
            }
        }
        (sent, other)
    }

    /// Returns the reason with which a session has ended for its user.
    fn reason(sent: &[Element]) -> Option<String> {
        let jingle = sent.last()?.get_child("jingle", ns::JINGLE)?;
        let reason = jingle.get_child("reason", ns::JINGLE)?.children().next()?;
        (jingle.attr("action") == Some("session-terminate")).then(|| reason.name().to_owned())
    }

    #[test]
    fn an_offer_is_accepted_in_its_own_dialect() {
        for (offer, word) in [(TLS, "description"), (XTLS, "security")] {
            let (sent, _) = actions(&mut session(offer, IBB));
            assert_eq!(sent[0].attr("type"), Some("result"));
            let accept = sent[1].get_child("jingle", ns::JINGLE).unwrap();
            assert_eq!(accept.attr("action"), Some("session-accept"));
            let content = first_content(accept).unwrap();
            assert_eq!(content.children().next().unwrap().name(), word);
        }
    }

    #[test]
    fn the_handshake_begins_when_the_socks5_connection_is_there_and_chosen() {
        for arrives_first in [true, false] {
            let mut session = session(TLS, S5B);
            let (sent, other) = actions(&mut session);
            assert_eq!(sent.len(), 3, "it has no candidate of its own to choose");
            assert!(matches!(&other[..], [OwnAction::Connect(sid)] if sid == "a-stream"));
            let used = SessionInput::Jingle(Side::Initiator, jingle("transport-info", USED));
            let mut inputs = [SessionInput::Arrived(Side::Initiator), used];
            if !arrives_first {
                inputs.reverse();
            }
            let [first, second] = inputs;
            session.handle(first);
            assert!(actions(&mut session).1.is_empty());
            session.handle(second);
            assert!(matches!(&actions(&mut session).1[..], [OwnAction::SecureSocket]));
        }
    }

    #[test]
    fn an_in_band_stream_is_opened_once() {
        let mut session = session(TLS, IBB);
        actions(&mut session);
        session.handle(open());
        let (sent, other) = actions(&mut session);
        assert_eq!(sent[0].attr("type"), Some("result"));
        assert!(matches!(&other[..], [OwnAction::SecureStream(sid, 4096, _)] if sid == "a-stream"));
        session.handle(open());
        let (sent, other) = actions(&mut session);
        assert!(sent[0].attr("type") == Some("error") && other.is_empty());
    }

    #[test]
    fn in_band_bytestreams_may_take_the_place_of_socks5_and_nothing_else() {
        for (transport, action) in [(IBB, "transport-accept"), (S5B, "transport-reject")] {
            let mut session = session(TLS, S5B);
            actions(&mut session);
            session.handle(SessionInput::Jingle(
                Side::Initiator,
                jingle("transport-replace", transport),
            ));
            let (sent, other) = actions(&mut session);
            let answer = sent[1].get_child("jingle", ns::JINGLE).unwrap();
            assert_eq!(answer.attr("action"), Some(action));
            assert_eq!(other.len(), usize::from(transport == IBB));
        }
    }

    #[test]
    fn each_end_has_its_reason_unless_the_user_is_the_one_who_ends_it() {
        let terminate = SessionInput::Jingle(Side::Initiator, jingle("session-terminate", ""));
        for (input, expected) in [
            (terminate, None),
            (SessionInput::Gone(Side::Initiator), None),
            (SessionInput::Timeout, Some("timeout")),
            (SessionInput::End(Reason::Gone, String::new()), Some("gone")),
            (SessionInput::Drain(Instant::now()), Some("gone")),
        ] {
            let mut session = session(TLS, IBB);
            actions(&mut session);
            session.handle(input);
            assert!(session.is_over());
            let (sent, _) = actions(&mut session);
            assert_eq!(reason(&sent).as_deref(), expected);
        }
        for (proven, expected) in
            [(Ok("1".to_owned()), "success"), (Err(String::new()), "security-error")]
        {
            let mut session = session(TLS, IBB);
            session.handle(open());
            session.secured(proven);
            assert!(session.is_over());
            assert_eq!(reason(&actions(&mut session).0).as_deref(), Some(expected));
            session.handle(open());
            assert_eq!(actions(&mut session).0[0].attr("type"), Some("error"));
        }
    }
}
