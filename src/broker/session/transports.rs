//! How a session's legs get their transports: offered, accepted, chosen, replaced, opened, joined.

use std::time::Duration;

use minidom::Element;
use tracing::debug;

use super::{Action, Phase, Question, Session, content_name, contents};
use crate::{
    broker::{
        Side,
        legs::{LegState, Plan},
        rewrite,
        transport::{self, Transport},
    },
    mediator::{ibb_xml::IbbStanza, transfer::DstAddr},
    xmpp::{
        ns,
        stanza::{Refusal, Stanza},
        xml,
    },
};

impl Session {
    /// Chooses the transport of the responder's leg, by what it says it can do.
    pub(super) fn offer_leg(&mut self, features: &[String]) -> Option<Element> {
        let speaks = |feature: &str| features.iter().any(|known| known == feature);
        let sid = (self.ids)();
        if self.options.socks5 && speaks(ns::JINGLE_S5B) {
            *self.leg(Side::Responder) = LegState::s5b(sid.clone(), (self.ids)(), None);
            self.actions.push_back(Action::Connect(Side::Responder, sid));
            return Some(self.s5b_transport(Side::Responder));
        }
        if !self.options.ibb {
            return None;
        }
        let old = self.initiator_is_old() || speaks(ns::JINGLE_IBB_0);
        let namespace =
            if speaks(ns::JINGLE_IBB) || !old { ns::JINGLE_IBB } else { ns::JINGLE_IBB_0 };
        let block_size = self.options.block_size;
        *self.leg(Side::Responder) = LegState::ibb(namespace, Some(sid.clone()), block_size);
        Some(transport::ibb(namespace, &sid, block_size))
    }

    /// Whether the initiator speaks the forms of 2009 and the responder did not object.
    fn initiator_is_old(&self) -> bool {
        matches!(
            &self.legs[0].plan,
            Plan::Ibb { namespace, .. } if namespace == ns::JINGLE_IBB_0
        ) && self.peer(Side::Responder).namespace == ns::JINGLE_0
    }

    /// Our SOCKS5 transport towards a side whose plan it is.
    fn s5b_transport(&self, side: Side) -> Element {
        let peer = self.peer(side);
        let Plan::S5b { sid, cid, .. } = &self.legs[side.index()].plan else {
            return Element::bare("transport", ns::JINGLE_S5B);
        };
        let hash = DstAddr::compute(sid, &peer.mask, &peer.user).to_string();
        transport::s5b(sid, &hash, cid, self.options.jid.as_str(), &self.options.advertise)
    }

    /// Our transport in the answer to the initiator.
    pub(super) fn accept_leg(&self) -> Element {
        match &self.legs[0].plan {
            Plan::Ibb { namespace, sid, block_size } => {
                let sid = sid.as_deref().unwrap_or(&self.peer(Side::Initiator).sid);
                transport::ibb(namespace, sid, (*block_size).min(self.options.block_size))
            }
            Plan::S5b { .. } => self.s5b_transport(Side::Initiator),
        }
    }

    /// Says which of the user's candidates we use: none, or its own one at this very component.
    pub(super) fn nominate(&mut self, side: Side, content: &str) {
        let Plan::S5b { sid, own_proxy, nominated, .. } = &mut self.legs[side.index()].plan else {
            return;
        };
        if std::mem::replace(nominated, true) {
            return;
        }
        let news = match own_proxy {
            Some(cid) => xml::element("candidate-used", ns::JINGLE_S5B, &[("cid", cid.as_str())]),
            None => Element::bare("candidate-error", ns::JINGLE_S5B),
        };
        let transport = transport::s5b_news(sid, news);
        self.tell_transport(side, "transport-info", content, transport);
    }

    fn tell_transport(&mut self, side: Side, action: &str, name: &str, transport: Element) {
        let jingle = self.transport_jingle(side, action, name, transport);
        self.tell(side, jingle);
    }

    fn transport_jingle(
        &self,
        side: Side,
        action: &str,
        name: &str,
        transport: Element,
    ) -> Element {
        let frame = self.frame(side);
        let mut jingle = rewrite::own(action, &frame);
        let mut content =
            xml::element("content", frame.namespace, &[("creator", "initiator"), ("name", name)]);
        content.append_child(transport);
        jingle.append_child(content);
        jingle
    }

    /// A transport action of one side: it stays on that leg.
    pub(super) fn handle_transport(&mut self, side: Side, action: &str, jingle: &Element) {
        let Some(content) = contents(jingle).next() else { return };
        let name = content_name(content);
        match action {
            "transport-info" => {
                let news = content
                    .children()
                    .find(|c| c.is("transport", ns::JINGLE_S5B))
                    .and_then(|transport| transport.children().next());
                match news.map(Element::name) {
                    Some("candidate-used" | "activated") => {
                        self.leg(side).mark_used();
                        self.check_connected(side);
                    }
                    Some("candidate-error" | "proxy-error")
                        if !self.legs[side.index()].has_own_proxy() =>
                    {
                        self.fall_back(side, name);
                    }
                    _ => {}
                }
            }
            "transport-replace" => self.handle_replace(side, content),
            "transport-accept" => {
                self.leg(side).accept(Transport::read(content));
                self.open(side);
            }
            _ => self.end_both("failed-transport", "No transport was left to try"),
        }
    }

    /// One side wants another transport on its leg.
    fn handle_replace(&mut self, side: Side, content: &Element) {
        let name = content_name(content);
        match Transport::read(content) {
            Some(Transport::Ibb { namespace, sid, block_size })
                if self.options.ibb && !self.legs[side.index()].ready =>
            {
                let block_size = block_size.min(self.options.block_size);
                let sid = sid.unwrap_or_else(self.ids);
                let answer = transport::ibb(&namespace, &sid, block_size);
                self.leg(side).replace(LegState::ibb(&namespace, Some(sid.clone()), block_size));
                self.actions.push_back(Action::ExpectOpen(side, Some(sid)));
                self.tell_transport(side, "transport-accept", name, answer);
                // The initiator of a session opens its bytestreams; on leg B that is us.
                if side == Side::Responder {
                    self.open(side);
                }
            }
            _ => {
                let transport = content.children().find(|c| c.name() == "transport").cloned();
                let transport =
                    transport.unwrap_or_else(|| Element::bare("transport", ns::JINGLE_IBB));
                self.tell_transport(side, "transport-reject", name, transport);
            }
        }
    }

    /// SOCKS5 failed on this leg: IBB instead, without the other leg knowing.
    fn fall_back(&mut self, side: Side, name: &str) {
        if self.legs[side.index()].ready {
            return;
        }
        if !self.options.ibb {
            return self.end_both("failed-transport", "SOCKS5 failed and IBB is switched off");
        }
        // XEP-0260, section 3: the initiator of the leg replaces the transport; on leg A that is the user.
        if side == Side::Initiator {
            return;
        }
        let sid = (self.ids)();
        let block_size = self.options.block_size;
        let leg = LegState::ibb(ns::JINGLE_IBB, Some(sid.clone()), block_size);
        self.leg(side).replace(LegState { opening: true, ..leg });
        self.actions.push_back(Action::ExpectOpen(side, Some(sid.clone())));
        let transport = transport::ibb(ns::JINGLE_IBB, &sid, block_size);
        let jingle = self.transport_jingle(side, "transport-replace", name, transport);
        self.ask(side, jingle, Question::Replace);
    }

    /// Opens the responder's leg, if it is in-band and not yet open.
    pub(super) fn open_responder(&mut self) {
        if !self.legs[1].opening {
            self.open(Side::Responder);
        }
    }

    pub(super) fn open(&mut self, side: Side) {
        let sid = self.stream_sid(side);
        let leg = self.leg(side);
        let Plan::Ibb { block_size, .. } = leg.plan else { return };
        if leg.ready || leg.opened {
            return;
        }
        leg.opened = true;
        leg.opening = true;
        let size = block_size.to_string();
        let open = xml::element(
            "open",
            ns::IBB,
            &[("sid", &sid), ("block-size", &size), ("stanza", "iq")],
        );
        self.ask(side, open, Question::Open(side, block_size));
    }

    /// The in-band bytestream's id on a leg: its own, or as the seed has it that of the session.
    pub(super) fn stream_sid(&self, side: Side) -> String {
        match &self.legs[side.index()].plan {
            Plan::Ibb { sid: Some(sid), .. } => sid.clone(),
            _ => self.peer(side).sid.clone(),
        }
    }

    /// One side opens its in-band bytestream.
    pub(super) fn handle_open(&mut self, side: Side, stanza: &Stanza) {
        let Some(open) = stanza.payload() else { return };
        let size = open.attr("block-size").and_then(|text| text.parse::<u16>().ok());
        let Some(block_size) = size.filter(|size| *size > 0) else {
            let refusal = Refusal::bad_request("The block-size must be 1 to 65535");
            return self.send(stanza.refuse(&refusal));
        };
        let sid = open.attr("sid").unwrap_or_default().to_owned();
        let kind =
            if open.attr("stanza") == Some("message") { IbbStanza::Message } else { IbbStanza::Iq };
        if self.legs[side.index()].ready {
            let refusal =
                Refusal::new("cancel", "not-acceptable", "The bytestream is already open");
            return self.send(stanza.refuse(&refusal));
        }
        self.actions.push_back(Action::TakeStream(side, sid, block_size, kind));
        self.send(stanza.result(None));
        self.ready(side);
    }

    /// A SOCKS5 leg is ready when its connection is there and the user has chosen it.
    pub(super) fn check_connected(&mut self, side: Side) {
        let leg = self.leg(side);
        if !leg.ready && leg.is_connected() {
            self.actions.push_back(Action::TakeSocket(side));
            self.ready(side);
        }
    }

    /// A leg is ready: open the other, or join both.
    pub(super) fn ready(&mut self, side: Side) {
        debug!(side = side.as_str(), "leg ready");
        self.leg(side).ready = true;
        if side == Side::Initiator && matches!(self.phase, Phase::Negotiating) {
            self.open_responder();
        }
        if matches!(self.phase, Phase::Negotiating) && self.legs.iter().all(|leg| leg.ready) {
            self.phase = Phase::Relaying;
            // The stream has an idle time of its own.
            self.deadline += Duration::from_secs(365 * 24 * 3600);
            self.actions.push_back(Action::Join);
        }
    }
}
