//! Messages: proposals of sessions, and notices to users.

use std::time::Instant;

use fingerpost_carry::iq::random_id;
use fingerpost_wire::{
    jid::unproxied,
    ns,
    stanza::{Stanza, StanzaType},
    xml,
};
use jid::{BareJid, FullJid};
use minidom::Element;
use time::OffsetDateTime;

use super::{Router, refusal::FrontRefusal};
use crate::{
    chat, metrics,
    refuse::Refuse as _,
    registry::KeyNotice,
    sessions::{
        message_initiation::{self, Proposals},
        refusal::SessionRefusal,
    },
};

/// The bytes of copies that count as one request.
const FOR_ONE: usize = 4 << 10;

impl Router {
    pub(super) fn handle_message(&mut self, stanza: &Stanza) {
        let is_taken = self.broker.handle_ibb(stanza) || self.broker.handle_receipt(stanza);
        if is_taken || stanza.type_ == StanzaType::Error {
            return;
        }
        if stanza.element.children().any(|child| child.has_ns(ns::JINGLE_MESSAGE)) {
            if let Err(refusal) = self.handle_initiation(stanza, None) {
                self.refuse(stanza, refusal);
            }
            return;
        }
        if stanza.to.node().is_none() {
            return self.handle_chat(stanza);
        }
        // A message that a person wrote gets an answer; notices and the like do not.
        let has_body = stanza.element.has_child("body", ns::CLIENT);
        if has_body && self.rates.allow(&stanza.from.to_bare(), Instant::now()) {
            let refusal = match unproxied(&stanza.to, &self.options.jid) {
                Some(user) => FrontRefusal::NoMessages(user.to_bare()),
                None => FrontRefusal::NoSuchUser,
            };
            self.send(stanza.refuse(refusal));
        }
    }

    /// Handles a message to the component itself: a person may write commands.
    fn handle_chat(&mut self, stanza: &Stanza) {
        let Some(written) = chat::readable(stanza) else { return };
        let user = stanza.from.to_bare();
        let now = Instant::now();
        if self.options.access.blocks(&user) || !self.rates.allow(&user, now) {
            return metrics::STANZAS_DROPPED.count(&["chat"]);
        }
        if !self.chat_rates.allow(&user, now) {
            return self.send(stanza.refuse(FrontRefusal::TooFast));
        }
        if !self.options.access.admits(&user) {
            return self.send(stanza.refuse(FrontRefusal::Forbidden));
        }
        let permit = match self.permit(stanza) {
            Ok(permit) => permit,
            Err(refusal) => return self.send(stanza.refuse(refusal)),
        };
        let (chats, outbound) = (self.chats.clone(), self.outbound.clone());
        let (notices, component) = (self.back.notices.clone(), self.options.jid.clone());
        let room = self.options.max_stanza_bytes;
        self.tasks.spawn(async move {
            let _permit = permit;
            let said = chats.handle(&written, OffsetDateTime::now_utc(), room).await;
            if let Some(notice) = said.notice {
                let _ = notices.send(notice).await;
            }
            if let Some(text) = said.text {
                let answer = written.answer(&component, &random_id(), &text);
                let _ = outbound.send(answer.into()).await;
            }
        });
    }

    /// Handles a message of Jingle message initiation: a proposal, or a message about one.
    pub(super) fn handle_initiation(
        &mut self,
        stanza: &Stanza,
        known: Option<bool>,
    ) -> Result<(), FrontRefusal> {
        let asker = stanza.from.to_bare();
        if self.options.access.blocks(&asker) {
            return Err(FrontRefusal::Forbidden);
        }
        let peer = unproxied(&stanza.to, &self.options.jid);
        let is_charged = known.is_none()
            && !peer.as_ref().is_some_and(|peer| self.proposals.is_free_answer(stanza, peer));
        if is_charged && !self.rates.allow(&asker, Instant::now()) {
            return Err(FrontRefusal::TooFast);
        }
        let bytes = Proposals::length(stanza)?;
        let Some(peer) = peer else { return Err(FrontRefusal::NoSuchUser) };
        if self.options.access.blocks(&peer.to_bare()) {
            return Err(SessionRefusal::Unreachable.into());
        }
        let now = tokio::time::Instant::now();
        let proposed = message_initiation::read(stanza).filter(|(action, _)| action == "propose");
        let out = if let Some((_, id)) = proposed {
            if !self.options.access.admits(&asker) {
                return Err(FrontRefusal::Forbidden);
            }
            if peer.resource().is_some() {
                return Err(FrontRefusal::ProposedToResource);
            }
            let callee = peer.to_bare();
            let Some(admitted) = self.admitted(stanza, &callee, known)? else { return Ok(()) };
            let resources: Vec<FullJid> =
                self.presences.all(&callee).filter(|_| admitted).cloned().collect();
            self.charge(&asker, bytes * resources.len())?;
            let out = self.proposals.propose(stanza, &callee, resources, now)?;
            self.check_all(&callee, &stanza.from, &id, now);
            out
        } else {
            // The proposal's addressee need not be a user of the service.
            self.charge(&asker, bytes * self.proposals.copies(stanza))?;
            self.proposals.handle(stanza, &peer, now)?
        };
        self.send_all(out);
        Ok(())
    }

    /// Charges a message that is copied, with so many bytes in all, to its sender's rate. It was charged once when it came.
    fn charge(&mut self, sender: &BareJid, bytes: usize) -> Result<(), FrontRefusal> {
        let more = bytes.div_ceil(FOR_ONE).saturating_sub(1);
        match self.rates.allow_more(sender, more, Instant::now()) {
            true => Ok(()),
            false => Err(FrontRefusal::TooFast),
        }
    }

    /// Sends one chat message to the bare JID and to each reachable resource.
    pub fn notify(&self, notice: &KeyNotice) {
        let resources = self.presences.all(&notice.owner);
        let to =
            std::iter::once(notice.owner.to_string()).chain(resources.map(ToString::to_string));
        for to in to {
            let mut message = xml::element(
                "message",
                ns::CLIENT,
                &[
                    ("type", "chat"),
                    ("from", self.options.jid.as_str()),
                    ("to", &to),
                    ("id", &random_id()),
                ],
            );
            let mut body = Element::bare("body", ns::CLIENT);
            body.append_text(notice.text.as_str());
            message.append_child(body);
            self.send(message);
        }
    }
}
