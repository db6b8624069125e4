//! Requests of one user to another, and which requests go to the component itself.

use std::time::Instant;

use fingerpost_carry::iq::Answer;
use fingerpost_wire::{
    jid::{canonical, proxied, unproxied},
    jingle::{self, Action},
    ns,
    stanza::{RequestKind, Stanza, StanzaType},
    xml,
};
use jid::{BareJid, Jid};
use minidom::Element;

use super::{
    FORWARD, KnownStanza, Router,
    refusal::FrontRefusal,
    waiting::{ChosenResource, Findings},
};
use crate::{
    refuse::Refuse as _,
    registry::refusal::RegistryRefusal,
    sessions::{Callee, of_peer, refusal::SessionRefusal},
};

impl Router {
    /// Handles a request. `found`: what was learned since the first attempt.
    pub(super) fn handle_request(
        &mut self,
        stanza: &Stanza,
        mut found: Option<Findings>,
    ) -> Result<(), FrontRefusal> {
        let mut payloads = stanza.element.children().filter(|child| !child.is("error", ns::CLIENT));
        let (Some(payload), None) = (payloads.next(), payloads.next()) else {
            return Err(FrontRefusal::Children);
        };
        let asker = stanza.from.to_bare();
        if self.options.access.blocks(&asker) {
            return Err(FrontRefusal::Forbidden);
        }
        let is_jingle = payload.is("jingle", ns::JINGLE) || payload.is("jingle", ns::JINGLE_0);
        // A session admits its own stanzas: its callee need not be a user of the service.
        if is_jingle && stanza.type_ == StanzaType::Set && self.broker.handle_jingle(stanza) {
            return Ok(());
        }
        if payload.has_ns(ns::IBB) && stanza.type_ == StanzaType::Set {
            if self.broker.handle_ibb(stanza) {
                return Ok(());
            }
            return Err(FrontRefusal::NoSuchBytestream);
        }
        if payload.is("query", ns::BYTESTREAMS)
            && stanza.type_ == StanzaType::Set
            && self.broker.handle_bytestreams(stanza)
        {
            return Ok(());
        }
        if is_jingle && found.is_none() && self.handle_waiting(stanza, payload)? {
            return Ok(());
        }
        if found.is_none() && !self.rates.allow(&asker, Instant::now()) {
            return Err(FrontRefusal::TooFast);
        }
        if !self.options.access.admits(&asker) {
            if is_jingle && self.broker.remembers(stanza) {
                return Err(SessionRefusal::Over.into());
            }
            if !self.serves_callee(stanza, payload) {
                return Err(FrontRefusal::Forbidden);
            }
        }
        if stanza.type_ == StanzaType::Get && payload.is("observed", ns::PATHS) {
            return self.handle_observed(stanza, payload);
        }
        if stanza.to.node().is_none() {
            return self.handle_own(stanza, payload);
        }
        let Some(callee) = unproxied(&stanza.to, &self.options.jid) else {
            return Err(FrontRefusal::NoSuchUser);
        };
        if self.options.access.blocks(&callee.to_bare()) {
            return Err(SessionRefusal::Unreachable.into());
        }
        if is_jingle && self.broker.is_room(callee.domain().as_str()) == Some(true) {
            return Err(SessionRefusal::Room.into());
        }
        let forwarded = payload.is("query", ns::DISCO_INFO) || payload.is("ping", ns::PING);
        if stanza.type_ == StanzaType::Get && payload.is("offer", ns::C2CTLS) {
            return self.handle_offer(stanza, payload, callee, found);
        }
        if stanza.type_ == StanzaType::Get && payload.is("pubkey", ns::PUBKEY) {
            let (registry, stanza) = (self.registry.clone(), stanza.clone());
            return self.work(self.permit(&stanza)?, async move {
                match registry.pubkey(&stanza.from.to_bare(), &callee.to_bare()).await {
                    Ok(pubkey) => stanza.result(Some(pubkey)),
                    Err(refusal) => stanza.refuse(refusal),
                }
            });
        }
        if is_jingle && stanza.type_ == StanzaType::Set {
            if jingle::action(payload) != Action::SessionInitiate {
                let is_settling = self.broker.is_settling();
                return Err(match is_settling {
                    true => FrontRefusal::Settling,
                    false => FrontRefusal::NoSuchSession,
                });
            }
            let sid = payload.attr("sid").unwrap_or_default();
            if let Some((taker, theirs)) = self.proposals.session(&stanza.from, &callee, sid) {
                let callee = Callee { sid: Some(theirs.clone()), ..Callee::new(taker.into()) };
                // A session that finds no place now may be started again.
                self.broker.initiate(stanza.clone(), callee)?;
                self.proposals.started(&theirs, tokio::time::Instant::now());
                return Ok(());
            }
            let choosing = found.as_mut().and_then(|found| found.choosing.as_mut());
            let known = choosing.and_then(|choosing| choosing.application.take());
            let application = known.or_else(|| self.broker.application(payload));
            let application = application.as_ref().map(|(name, is_plain)| (&**name, *is_plain));
            return match self.reachable(stanza, callee, application, found)? {
                Some(taken) => self.initiate(stanza, taken),
                None => Ok(()),
            };
        }
        if payload.is("si", ns::SI)
            && stanza.type_ == StanzaType::Set
            && self.broker.takes_stream_initiation()
        {
            if let Some(taken) = self.reachable(stanza, callee, Some((ns::SI_FILE, true)), found)? {
                self.broker.initiate_stream(stanza.clone(), taken.jid)?;
            }
            return Ok(());
        }
        if forwarded && stanza.type_ == StanzaType::Get {
            return match self.reachable(stanza, callee, None, found)? {
                Some(ChosenResource { jid, .. }) => self.forward(stanza, payload.clone(), jid),
                None => Ok(()),
            };
        }
        if stanza.type_ == StanzaType::Get && payload.is("query", ns::DISCO_ITEMS) {
            // Nobody learns here which resources or services a user has.
            let mut items = Element::bare("query", ns::DISCO_ITEMS);
            if let Some(node) = payload.attr("node") {
                xml::set(&mut items, "node", node);
            }
            self.send(stanza.result(Some(items)));
            return Ok(());
        }
        Err(match payload.ns().as_str() {
            ns::SI => FrontRefusal::NotByStreamInitiation,
            ns::BYTESTREAMS => FrontRefusal::NotByBytestreams,
            _ => FrontRefusal::NotPassedOn,
        })
    }

    /// Returns whether a request is part of a session that its sender has. A callee need not be a user of the service,
    /// and may use what a session needs, at the address of the other user and at the component.
    fn serves_callee(&self, stanza: &Stanza, payload: &Element) -> bool {
        let get = stanza.type_ == StanzaType::Get;
        let asks = payload.is("ping", ns::PING)
            || payload.is("query", ns::DISCO_INFO) && payload.attr("node").is_none();
        if stanza.to.node().is_some() {
            let asks = asks || payload.is("offer", ns::C2CTLS) || payload.is("observed", ns::PATHS);
            return get && asks && self.broker.has_session(&stanza.from, Some(&stanza.to));
        }
        let is_streamhost = payload.is("query", ns::BYTESTREAMS);
        if get {
            return (asks || is_streamhost) && self.broker.has_session(&stanza.from, None);
        }
        // The client that offers the component as its proxy activates the stream.
        let target = payload.get_child("activate", ns::BYTESTREAMS).map(Element::text);
        let target = target.and_then(|target| canonical(target.trim()));
        is_streamhost
            && target.is_some_and(|target| self.broker.has_session(&stanza.from, Some(&target)))
    }

    /// Tells a user the address from which its SOCKS5 connection in a session has come. Every other stream is unknown,
    /// whether it exists or not: the sender's own address decides.
    fn handle_observed(&self, stanza: &Stanza, observed: &Element) -> Result<(), FrontRefusal> {
        let sid = observed.attr("sid").filter(|sid| !sid.is_empty());
        let sid = sid.ok_or(FrontRefusal::ObservedSid)?;
        let client = self.broker.observed(&stanza.from, &stanza.to, sid);
        let client = client.ok_or(FrontRefusal::NoSuchBytestream)?;
        let (host, port) = (client.ip().to_string(), client.port().to_string());
        let answer = [("sid", sid), ("host", &host), ("port", &port)];
        self.send(stanza.result(Some(xml::element("observed", ns::PATHS, &answer))));
        Ok(())
    }

    /// Returns whether the sender of a stanza may know of `owner`. `None`: the stanza will be handled when that is
    /// known.
    pub(super) fn admitted(
        &self,
        stanza: &Stanza,
        owner: &BareJid,
        known: Option<bool>,
    ) -> Result<Option<bool>, FrontRefusal> {
        if known.is_none() && !self.registry.shows(&stanza.from.to_bare(), owner) {
            self.look_up(stanza, owner.clone())?;
            return Ok(None);
        }
        Ok(Some(known.unwrap_or(true)))
    }

    /// Looks up whether a stanza's sender may know of `owner`, then has the stanza handled again.
    fn look_up(&self, stanza: &Stanza, owner: BareJid) -> Result<(), FrontRefusal> {
        let permit = self.permit(stanza)?;
        let (registry, again) = (self.registry.clone(), self.back.known.clone());
        let (outbound, stanza) = (self.outbound.clone(), stanza.clone());
        self.tasks.spawn(async move {
            let _permit = permit;
            match registry.visible(&stanza.from.to_bare(), &owner).await {
                Ok(visible) => {
                    let _ = again.send(KnownStanza(Box::new(stanza), visible.is_some())).await;
                }
                Err(error) => {
                    let _ = outbound.send(stanza.refuse(RegistryRefusal::from(error)).into()).await;
                }
            }
        });
        Ok(())
    }

    /// Asks the callee and passes the answer back to the asker alone.
    fn forward(&self, stanza: &Stanza, payload: Element, callee: Jid) -> Result<(), FrontRefusal> {
        let Some(mask) = proxied(&stanza.from, &self.options.jid) else {
            return Err(FrontRefusal::LongJid);
        };
        let (requests, stanza) = (self.requests.clone(), stanza.clone());
        // The component has announced the client's capabilities under this node, which the client does not know.
        let node = payload.attr("node").filter(|node| {
            payload.is("query", ns::DISCO_INFO)
                && node.split_once('#').is_some_and(|(of, _)| of == ns::OWN_CAPS)
        });
        let node = node.map(str::to_owned);
        // Under another node the answer has a hash of its client's own.
        let is_about_files = payload.is("query", ns::DISCO_INFO)
            && (node.is_some() || payload.attr("node").is_none());
        let translation = self.options.translation.filter(|_| is_about_files);
        let payload = match node {
            Some(_) => Element::bare("query", ns::DISCO_INFO),
            None => payload,
        };
        self.work(self.permit(&stanza)?, async move {
            match requests.request(RequestKind::Get, &mask, &callee, payload, FORWARD).await {
                Answer::Result(payload) => stanza.result(payload.map(|mut payload| {
                    if let Some(translation) = translation {
                        translation.announce(&mut payload);
                    }
                    if let Some(node) = node {
                        xml::set(&mut payload, "node", &node);
                    }
                    payload
                })),
                Answer::Error(error) => stanza.error(of_peer(error)),
                Answer::Timeout => stanza.refuse(FrontRefusal::NoAnswer),
            }
        })
    }

    /// Handles a XEP-0250 query. The callee answers it; if the callee cannot be reached, the registry answers.
    fn handle_offer(
        &mut self,
        stanza: &Stanza,
        payload: &Element,
        callee: Jid,
        found: Option<Findings>,
    ) -> Result<(), FrontRefusal> {
        let owner = callee.to_bare();
        let reached = match self.reachable(stanza, callee, None, found) {
            Ok(Some(taken)) => Some(taken.jid),
            Ok(None) => return Ok(()),
            Err(_) => None,
        };
        let Some(mask) = proxied(&stanza.from, &self.options.jid) else {
            return Err(FrontRefusal::LongJid);
        };
        let (requests, registry) = (self.requests.clone(), self.registry.clone());
        let (stanza, payload) = (stanza.clone(), payload.clone());
        self.work(self.permit(&stanza)?, async move {
            if let Some(callee) = reached {
                let asked = requests
                    .request(RequestKind::Get, &mask, &callee, payload.clone(), FORWARD)
                    .await;
                if let Answer::Result(answer) = asked {
                    return stanza.result(answer);
                }
            }
            match registry.offer(&stanza.from.to_bare(), &owner, &payload).await {
                Ok(offer) => stanza.result(Some(offer)),
                Err(refusal) => stanza.refuse(refusal),
            }
        })
    }
}
