//! How a session's legs get their transports: offered, accepted, chosen, replaced, opened, joined.
//!
//! On a SOCKS5 leg the component offers itself and connects to nothing, so the user decides: `candidate-used` (or
//! `activated`, for its own candidate at this component) takes the connection; `candidate-error` or `proxy-error` means
//! that it failed (XEP-0260, 2.4). Then in-band bytestreams take its place (section 3):
//!
//! | leg | side that falls back |
//! |---|---|
//! | responder's | the component at once, being the initiator there |
//! | initiator's | the user; if it has not within [`PATIENCE`], the component |
//! | either, if a user does not choose within [`SILENCE`] | the component |
//!
//! A responder that receives nothing in-band has no such fallback: the session ends.
//!
//! A user's transport-replace is accepted at any time before bytes flow, and later as `renewal` says. If it crosses
//! ours, that of the leg's initiator counts: on the responder's leg ours, and the user gets `<conflict/>` and
//! `<tie-break/>`; on the initiator's leg the user's. If ours is rejected, SOCKS5 is used if it has come up meanwhile;
//! otherwise the session ends.

use std::time::Duration;

use fingerpost_wire::{
    dst_addr::DstAddr,
    ibb_xml::IbbPayload,
    jingle::{self, Reason},
    ns, size,
    stanza::Stanza,
    transport::{self, Transport},
    xml,
};
use minidom::Element;
use tokio::time::Instant;
use tracing::debug;

use super::{
    BrokeredSession, Question, SessionAction, SessionPhase, contents::contents, dino, timers::Timer,
};
use crate::{
    refuse::Refuse as _,
    sessions::{
        legs::{LegState, Plan},
        refusal::SessionRefusal,
        side::{PerSide, Side},
    },
};

/// How long the initiator has to fall back by itself.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most open requests of our own in one session.
const QUESTIONS: usize = 8;
/// How long a user has to choose. Some initiators never say that they have found no candidate.
const SILENCE: Duration = Duration::from_secs(20);

impl BrokeredSession {
    /// Chooses the transport of the responder's leg by its features.
    pub(super) fn offer_leg(&mut self, features: &[String]) -> Option<Element> {
        let speaks = |feature: &str| features.iter().any(|known| known == feature);
        let sid = (self.ids)();
        if self.options.socks5 && speaks(ns::JINGLE_S5B) {
            self.legs.responder = LegState::s5b(sid.clone(), (self.ids)(), None);
            self.actions.push_back(SessionAction::Connect(Side::Responder, sid));
            return Some(self.s5b_transport(Side::Responder));
        }
        if !self.options.ibb {
            return None;
        }
        // The initiator's form if the responder does not object, otherwise the responder's.
        let old = match &self.legs.initiator.plan {
            Plan::Ibb { namespace, .. } => *namespace == ns::JINGLE_IBB_0,
            Plan::S5b { .. } => self.peers.responder.namespace == ns::JINGLE_0,
        };
        let namespace = match (speaks(ns::JINGLE_IBB_0), speaks(ns::JINGLE_IBB)) {
            (true, false) => ns::JINGLE_IBB_0,
            (false, true) => ns::JINGLE_IBB,
            (false, false) if self.peers.responder.namespace == ns::JINGLE_0 => ns::JINGLE_IBB_0,
            (true, true) if old => ns::JINGLE_IBB_0,
            _ => ns::JINGLE_IBB,
        };
        let block_size = self.options.block_size;
        self.legs.responder = LegState::ibb(namespace, Some(sid.clone()), block_size);
        Some(transport::ibb(namespace, &sid, block_size))
    }

    /// Returns our SOCKS5 transport for a side whose plan it is.
    pub(super) fn s5b_transport(&self, side: Side) -> Element {
        let peer = &self.peers[side];
        let Plan::S5b { sid, cid, .. } = &self.legs[side].plan else {
            return Element::bare("transport", ns::JINGLE_S5B);
        };
        let hash = DstAddr::compute(sid, peer.mask(), peer.user()).to_string();
        transport::s5b(sid, &hash, cid, self.options.jid.as_str(), &self.options.advertise)
    }

    /// Returns our transport for a side, as we offer or accept it.
    pub(super) fn leg_transport(&self, side: Side) -> Element {
        match &self.legs[side].plan {
            Plan::Ibb { namespace, sid, block_size, .. } => {
                let sid = sid.as_deref().unwrap_or(&self.peers[side].sid);
                transport::ibb(namespace, sid, (*block_size).min(self.options.block_size))
            }
            Plan::S5b { .. } => self.s5b_transport(side),
        }
    }

    /// Lets the initiator of a raw TLS stream connect before the responder has accepted, as in docs/HISTORY.md.
    pub(super) fn offer_early(&mut self) {
        if self.content.is_raw && self.legs.initiator.awaits_socks5() {
            let transport = self.s5b_transport(Side::Initiator);
            self.tell_transport(Side::Initiator, jingle::Action::TransportInfo, transport);
        }
    }

    /// Tells a user which of its candidates we use: none, or its own one at this component.
    pub(super) fn nominate(&mut self, side: Side) {
        let Plan::S5b { sid, own_proxy, nominated, .. } = &mut self.legs[side].plan else {
            return;
        };
        if std::mem::replace(nominated, true) {
            return;
        }
        let news = match own_proxy {
            Some(cid) => xml::element("candidate-used", ns::JINGLE_S5B, &[("cid", &**cid)]),
            None => Element::bare("candidate-error", ns::JINGLE_S5B),
        };
        let transport = transport::s5b_news(sid, news);
        self.tell_transport(side, jingle::Action::TransportInfo, transport);
    }

    /// Gives a user time to choose a candidate.
    pub(super) fn expect_choice(&mut self, side: Side, now: Instant) {
        let (leg, timer) = (&self.legs[side], Timer::FallBack(side));
        if leg.awaits_socks5() && leg.replacing.is_none() && !self.timers.is_set(timer) {
            self.timers.set(timer, now + SILENCE);
        }
    }

    pub(super) fn tell_transport(
        &mut self,
        side: Side,
        action: jingle::Action,
        transport: Element,
    ) {
        let name = self.content.name.clone();
        let jingle = self.transport_jingle(side, action, &name, transport);
        self.tell(side, jingle);
    }

    pub(super) fn transport_jingle(
        &self,
        side: Side,
        action: jingle::Action,
        name: &str,
        transport: Element,
    ) -> Element {
        jingle::own_content(action, &self.frame(side), name, [transport])
    }

    /// Handles a transport action of one side, which stays on that leg.
    pub(super) fn handle_transport(
        &mut self,
        side: Side,
        action: jingle::Action,
        stanza: &Stanza,
        jingle: &Element,
        now: Instant,
    ) {
        let Some(content) = self.content.find(jingle) else {
            let Some(other) =
                contents(jingle).next().filter(|_| action == jingle::Action::TransportReplace)
            else {
                return self.send(stanza.result(None));
            };
            let rejection = self.replace_rejection(side, other);
            return self.answer_and_tell(side, stanza, rejection);
        };
        let replacing = self.legs[side].replacing.is_some();
        match action {
            jingle::Action::TransportInfo | jingle::Action::TransportReject
                if self.is_of_older_leg(side, content) =>
            {
                self.send(stanza.result(None));
            }
            jingle::Action::TransportInfo => {
                self.send(stanza.result(None));
                let news = content
                    .children()
                    .find(|c| c.is("transport", ns::JINGLE_S5B))
                    .and_then(|transport| transport.children().next());
                self.handle_news(side, news.map(Element::name).unwrap_or_default(), now);
            }
            // Both sides sent the same action: that of the leg's initiator counts (XEP-0166, 7.2.16).
            jingle::Action::TransportReplace if replacing && side == Side::Responder => {
                self.send(stanza.refuse(SessionRefusal::Replacing));
            }
            jingle::Action::TransportReplace => {
                self.send(stanza.result(None));
                if side == Side::Initiator && self.can_renew() && self.renews(content) {
                    return self.renew(content, now);
                }
                self.handle_replace(side, content);
            }
            jingle::Action::TransportAccept if self.legs[side].is_offered => {
                self.send(stanza.result(None));
                self.renewed(Transport::read(content), now);
            }
            jingle::Action::TransportReject if self.legs[side].is_offered => {
                self.send(stanza.result(None));
                self.end_both(Reason::FailedTransport, "No transport was left to try");
            }
            jingle::Action::TransportAccept if replacing => {
                self.send(stanza.result(None));
                self.replaced(side, Transport::read(content));
                self.open(side);
            }
            jingle::Action::TransportReject if replacing => {
                self.send(stanza.result(None));
                self.refused(side, None);
            }
            _ => {
                self.send(stanza.refuse(SessionRefusal::NoOtherTransport));
            }
        }
    }

    /// Returns whether a transport is that of a leg which has been replaced since.
    fn is_of_older_leg(&self, side: Side, content: &Element) -> bool {
        let transport = content.children().find(|child| child.name() == "transport");
        let given = transport.and_then(|transport| transport.attr("sid"));
        let own = match &self.legs[side].plan {
            Plan::S5b { sid, .. } => Some(&**sid),
            Plan::Ibb { sid, .. } => sid.as_deref(),
        };
        self.renewals > 0 && given.is_some() && own.is_some() && given != own
    }

    /// Handles a user's message about the SOCKS5 candidates.
    fn handle_news(&mut self, side: Side, news: &str, now: Instant) {
        if !self.legs[side].awaits_socks5() {
            return;
        }
        match news {
            "candidate-used" | "activated" => {
                self.nominate_if_told(side);
                self.legs[side].mark_used();
                self.check_connected(side);
            }
            // Our candidate is not wanted, but the user's own at this component may still be activated.
            "candidate-error" if self.legs[side].has_own_proxy() => {
                self.nominate_if_told(side);
            }
            "candidate-error" | "proxy-error" => {
                self.nominate_if_told(side);
                self.fall_back(side, now);
            }
            _ => {}
        }
    }

    fn nominate_if_told(&mut self, side: Side) {
        if !matches!(self.phase, SessionPhase::Checking { .. }) {
            self.nominate(side);
        }
    }

    /// Handles one side's wish for another transport on its leg.
    fn handle_replace(&mut self, side: Side, content: &Element) {
        match Transport::read(content) {
            Some(Transport::Ibb { namespace, sid, block_size })
                if self.options.ibb && !self.legs[side].ready && !self.asks_enough() =>
            {
                let block_size = block_size.min(self.options.block_size);
                let sid = sid.unwrap_or_else(self.ids);
                let answer = transport::ibb(namespace, &sid, block_size);
                self.replace_leg(side, LegState::ibb(namespace, Some(sid.clone()), block_size));
                self.actions.push_back(SessionAction::ExpectOpen(side, Some(sid)));
                self.tell_transport(side, jingle::Action::TransportAccept, answer);
                // The initiator of a session opens its bytestreams; on leg B that is us.
                if side == Side::Responder {
                    self.open(side);
                }
            }
            _ => {
                let rejection = self.replace_rejection(side, content);
                self.tell(side, rejection);
            }
        }
    }

    /// Returns whether too many requests of our own are open for another transport.
    pub(super) fn asks_enough(&self) -> bool {
        let ours =
            self.questions.iter().filter(|(_, asked)| !matches!(asked, Question::Forwarded(_)));
        ours.count() >= QUESTIONS
    }

    pub(super) fn replace_rejection(&self, side: Side, content: &Element) -> Element {
        let transport = transport::given(Some(content));
        let name = content.attr("name").unwrap_or_default();
        self.transport_jingle(side, jingle::Action::TransportReject, name, transport)
    }

    /// Replaces SOCKS5, which failed on this leg, by IBB, without the other leg's knowledge.
    fn fall_back(&mut self, side: Side, now: Instant) {
        match side {
            Side::Initiator => self.timers.set(Timer::FallBack(side), now + PATIENCE),
            Side::Responder => self.offer_in_band(side, now),
        }
    }

    /// Offers an in-band bytestream in place of SOCKS5, which has not come up.
    pub(super) fn offer_in_band(&mut self, side: Side, now: Instant) {
        let leg = &self.legs[side];
        if !leg.awaits_socks5() || leg.replacing.is_some() {
            return;
        }
        if self.is_unanswered() && side == Side::Initiator {
            // The user has not been told of the session yet.
            return self.fall_back(side, now);
        }
        if side == Side::Responder && self.content.needs_socks5 {
            let user = self.peers.responder.user().to_bare();
            let text = dino::needs_socks5(&user, "its connection to this service failed");
            return self.end_both(Reason::FailedTransport, &text);
        }
        if !self.options.ibb {
            return self.end_both(Reason::FailedTransport, "SOCKS5 failed and IBB is switched off");
        }
        let sid = (self.ids)();
        let block_size = self.options.block_size;
        self.timers.stop(Timer::FallBack(side));
        self.legs[side].replacing = Some(Box::new((sid.clone(), block_size)));
        self.actions.push_back(SessionAction::ExpectOpen(side, Some(sid.clone())));
        let transport = transport::ibb(ns::JINGLE_IBB, &sid, block_size);
        let jingle = self.transport_jingle(
            side,
            jingle::Action::TransportReplace,
            &self.content.name,
            transport,
        );
        self.ask(side, jingle, Question::Replace(side));
    }

    /// Sets another transport for a leg.
    fn replace_leg(&mut self, side: Side, with: LegState) {
        self.legs[side] = with;
        self.timers.stop(Timer::FallBack(side));
    }

    /// Moves the leg to the in-band bytestream that we have offered.
    fn replaced(&mut self, side: Side, answer: Option<Transport>) {
        if let Some(replacing) = self.legs[side].replacing.take() {
            let (sid, block_size) = *replacing;
            self.replace_leg(side, LegState::ibb(ns::JINGLE_IBB, Some(sid), block_size));
            self.legs[side].accept(answer);
        }
    }

    /// Handles the refusal of the in-band bytestream that we have offered; `error` is set unless it was a
    /// transport-reject.
    pub(super) fn refused(&mut self, side: Side, error: Option<&Element>) {
        if self.legs[side].replacing.take().is_none() {
            // The user's own has come first.
            return;
        }
        let tie = error.is_some_and(|error| error.has_child("tie-break", ns::JINGLE_ERRORS));
        if self.legs[side].is_connected() {
            self.check_connected(side);
        } else if !(tie && side == Side::Initiator) {
            self.end_both(Reason::FailedTransport, "No transport was left to try");
        }
    }

    /// Opens a leg, if it is in-band and not yet open.
    pub(super) fn open(&mut self, side: Side) {
        let sid = self.stream_sid(side);
        let leg = &mut self.legs[side];
        let Plan::Ibb { block_size, opened, .. } = &mut leg.plan else { return };
        if leg.ready || leg.is_offered || std::mem::replace(opened, true) {
            return;
        }
        let block_size = *block_size;
        let size = block_size.to_string();
        let open = xml::element(
            "open",
            ns::IBB,
            &[("sid", &sid), ("block-size", &size), ("stanza", "iq")],
        );
        self.ask(side, open, Question::Open(side, sid, block_size));
    }

    /// Returns the in-band bytestream's id on a leg: its own, or that of the session, for transports without an id as in
    /// docs/HISTORY.md.
    pub(super) fn stream_sid(&self, side: Side) -> String {
        match &self.legs[side].plan {
            Plan::Ibb { sid: Some(sid), .. } => sid.to_string(),
            Plan::S5b { sid, .. } if self.legs[side].is_offered => sid.to_string(),
            _ => self.peers[side].sid.to_string(),
        }
    }

    /// Handles an `<open/>` of one side.
    pub(super) fn handle_open(&mut self, side: Side, stanza: &Stanza) {
        let Some(open) = stanza.payload() else { return };
        let (sid, block_size, kind) = match IbbPayload::parse(open) {
            Ok(Some(IbbPayload::Open { sid, block_size, stanza })) => (sid, block_size, stanza),
            Ok(_) => return,
            Err(refusal) => return self.send(stanza.refuse(refusal)),
        };
        let largest = size::largest_block(self.options.max_stanza_bytes);
        if block_size > largest {
            return self.send(stanza.refuse(SessionRefusal::LongBlocks(largest)));
        }
        if self.legs[side].ready {
            return self.send(stanza.refuse(SessionRefusal::AlreadyOpen));
        }
        self.replaced(side, None);
        self.actions.push_back(SessionAction::TakeStream(side, sid, block_size, kind));
        self.send(stanza.result(None));
        self.ready(side);
    }

    /// Makes a SOCKS5 leg ready when its connection is established and the user has chosen it.
    pub(super) fn check_connected(&mut self, side: Side) {
        let leg = &mut self.legs[side];
        if !leg.ready && leg.is_connected() {
            self.actions.push_back(SessionAction::TakeSocket(side));
            self.ready(side);
        }
    }

    /// Handles a leg that is ready: opens the other, or joins both.
    pub(super) fn ready(&mut self, side: Side) {
        debug!(side = side.as_str(), "leg ready");
        self.legs[side].ready = true;
        self.timers.stop(Timer::FallBack(side));
        if side == Side::Initiator && matches!(self.phase, SessionPhase::Negotiating) {
            self.open(Side::Responder);
        }
        if matches!(self.phase, SessionPhase::Negotiating) && self.legs.iter().all(|leg| leg.ready)
        {
            self.phase = SessionPhase::Relaying { doubted: PerSide::default(), broken: None };
            // The stream has an idle time of its own.
            self.timers.stop(Timer::Phase);
            self.actions.push_back(SessionAction::Join);
        }
    }
}
