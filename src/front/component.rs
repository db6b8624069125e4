//! Requests to the component itself.

use std::sync::Arc;

use fingerpost_wire::{
    jingle::{self, Action},
    ns, rsm,
    stanza::{Refusal, RequestKind, Stanza, StanzaType},
    xml,
};
use jid::Jid;
use minidom::Element;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::sync::mpsc;

use super::{Router, disco, profile, refusal::FrontRefusal};
use crate::{
    commands::catalogue::Language,
    refuse::Refuse as _,
    registry::{KeyNotice, requests::Handled},
    relay::table::NotActivated,
};

impl Router {
    /// Handles requests to the component itself.
    pub(super) fn handle_own(
        &self,
        stanza: &Stanza,
        payload: &Element,
    ) -> Result<(), FrontRefusal> {
        let get = stanza.type_ == StanzaType::Get;
        let language = Language::of(&stanza.element).unwrap_or_default();
        let answer = match (payload.name(), payload.ns().as_str()) {
            ("query", ns::DISCO_INFO) if get => match payload.attr("node") {
                None => self.options.info(),
                Some(ns::COMMANDS) => disco::commands(),
                Some(node) if self.own_caps.as_ref().is_some_and(|caps| caps.names(node)) => {
                    let mut info = self.options.info();
                    xml::set(&mut info, "node", node);
                    info
                }
                Some(node) => match self.commands.find(node, &stanza.from.to_bare()) {
                    Some(command) => disco::command(node, command.title(language)),
                    None => return Err(FrontRefusal::NoSuchNode),
                },
            },
            ("query", ns::DISCO_ITEMS) if get => {
                let mut query = Element::bare("query", ns::DISCO_ITEMS);
                if let Some(node) = payload.attr("node") {
                    if node != ns::COMMANDS {
                        return Err(FrontRefusal::NoSuchNode);
                    }
                    xml::set(&mut query, "node", node);
                    for command in self.commands.list(&stanza.from.to_bare()) {
                        let node = command.node();
                        let item = [
                            ("jid", self.options.jid.as_str()),
                            ("node", node.as_str()),
                            ("name", command.title(language)),
                        ];
                        query.append_child(xml::element("item", ns::DISCO_ITEMS, &item));
                    }
                }
                query
            }
            ("ping", ns::PING) if get => return self.reply(stanza, None),
            ("query", ns::VERSION) if get => {
                let mut query = Element::bare("query", ns::VERSION);
                for (name, text) in [("name", "Fingerpost"), ("version", env!("CARGO_PKG_VERSION"))]
                {
                    let mut child = Element::bare(name, ns::VERSION);
                    child.append_text(text);
                    query.append_child(child);
                }
                query
            }
            ("query", ns::LAST) if get => {
                let seconds = self.started.elapsed().as_secs().to_string();
                xml::element("query", ns::LAST, &[("seconds", &seconds)])
            }
            ("time", ns::TIME) if get => {
                let mut time = Element::bare("time", ns::TIME);
                let now = OffsetDateTime::now_utc();
                let now = now.replace_nanosecond(0).unwrap_or(now);
                let utc = now.format(&Rfc3339).map_err(|_| FrontRefusal::Failed)?;
                for (name, text) in [("tzo", "+00:00"), ("utc", utc.as_str())] {
                    let mut child = Element::bare(name, ns::TIME);
                    child.append_text(text);
                    time.append_child(child);
                }
                time
            }
            ("vCard", ns::VCARD) if get => profile::vcard(&self.options.name, &self.options.jid),
            ("pubsub", ns::PUBSUB) if get => {
                let items = profile::items(payload, &self.options.name);
                items.ok_or(FrontRefusal::NoSuchItems)?
            }
            ("query", ns::BYTESTREAMS) if self.options.socks5 => {
                return self.handle_bytestreams(stanza, payload, get);
            }
            ("jingle", ns::JINGLE | ns::JINGLE_0) if !get => {
                if jingle::action(payload) != Action::SessionInitiate {
                    return Err(FrontRefusal::NoSuchSession);
                }
                let (identity, notices) = (Arc::clone(&self.identity), self.back.notices.clone());
                return Ok(self.broker.initiate_own(stanza.clone(), identity, notices)?);
            }
            ("command", ns::COMMANDS) if !get => return self.handle_command(stanza, payload),
            (_, ns::SASLCERT) => {
                let (registry, payload) = (self.registry.clone(), payload.clone());
                let (stanza_, notices) = (stanza.clone(), self.back.notices.clone());
                let room = self.room(stanza);
                return self.work(self.permit(stanza)?, async move {
                    let now = OffsetDateTime::now_utc();
                    let from = &stanza_.from;
                    let done =
                        registry.handle_saslcert_within(from, !get, &payload, now, room).await;
                    finish(&stanza_, done, &notices).await
                });
            }
            (_, ns::KEYS) => return self.handle_keys(stanza, payload, get),
            _ => return Err(FrontRefusal::NotSupported),
        };
        self.reply(stanza, Some(answer))
    }

    fn reply(&self, stanza: &Stanza, payload: Option<Element>) -> Result<(), FrontRefusal> {
        self.send(stanza.result(payload));
        Ok(())
    }

    /// Handles a user's SOCKS5 addresses, or its activation, in a session of this instance while another one leads. Returns whether
    /// it is of such a session.
    pub(super) fn handle_streamhosts_of_rest(&self, stanza: &Stanza, query: &Element) -> bool {
        if stanza.type_ != StanzaType::Set {
            return false;
        }
        if stanza.to.node().is_some() {
            return self.broker.handle_bytestreams(stanza);
        }
        let is_ours = activation(query)
            .is_some_and(|(sid, target)| self.table.is_registered(&stanza.from, sid, &target));
        if is_ours && let Err(refusal) = self.handle_bytestreams(stanza, query, false) {
            self.refuse(stanza, refusal);
        }
        is_ours
    }

    /// Handles XEP-0065: the address query (get) and the activation (set).
    fn handle_bytestreams(
        &self,
        stanza: &Stanza,
        query: &Element,
        get: bool,
    ) -> Result<(), FrontRefusal> {
        if get {
            self.broker.note_proxy_user(&stanza.from);
            let mut answer = Element::bare("query", ns::BYTESTREAMS);
            for (host, port) in &self.options.advertise {
                answer.append_child(xml::element(
                    "streamhost",
                    ns::BYTESTREAMS,
                    &[
                        ("jid", self.options.jid.as_str()),
                        ("host", host),
                        ("port", &port.to_string()),
                    ],
                ));
            }
            return self.reply(stanza, Some(answer));
        }
        let Some((sid, target)) = activation(query) else { return Err(FrontRefusal::Activation) };
        if self.options.access.blocks(&target.to_bare()) {
            return Err(FrontRefusal::Forbidden);
        }
        match self.table.try_activate(&stanza.from, sid, &target) {
            Ok(()) => return self.reply(stanza, None),
            Err(NotActivated::OneSide) => {}
            Err(refusal) => return Err(FrontRefusal::Relay(refusal)),
        }
        let (table, stanza, sid) = (self.table.clone(), stanza.clone(), sid.to_owned());
        let control = self.control.clone();
        self.work(self.permit(&stanza)?, async move {
            match table.activate_soon(&stanza.from, &sid, &target).await {
                Ok(()) => {
                    // A user may have been blocked while the request waited.
                    let barred = |jid: &Jid| control.doors().blocks(&jid.to_bare());
                    if barred(&stanza.from) || barred(&target) {
                        control.enforce();
                    }
                    stanza.result(None)
                }
                Err(refusal) => stanza.refuse(refusal),
            }
        })
    }

    /// Returns the longest permitted payload of the answer to a request.
    fn room(&self, stanza: &Stanza) -> usize {
        rsm::room_inside(&stanza.result(None), self.options.max_stanza_bytes)
    }

    fn handle_keys(
        &self,
        stanza: &Stanza,
        payload: &Element,
        get: bool,
    ) -> Result<(), FrontRefusal> {
        let registry = self.registry.clone();
        let payload = payload.clone();
        let kind = if get { RequestKind::Get } else { RequestKind::Set };
        let room = self.room(stanza);
        let (stanza, notices) = (stanza.clone(), self.back.notices.clone());
        self.work(self.permit(&stanza)?, async move {
            let now = OffsetDateTime::now_utc();
            let done = registry.handle_within(&stanza.from, kind, &payload, now, room).await;
            finish(&stanza, done, &notices).await
        })
    }

    fn handle_command(&self, stanza: &Stanza, payload: &Element) -> Result<(), FrontRefusal> {
        let (commands, payload) = (self.commands.clone(), payload.clone());
        let room = self.room(stanza);
        let (stanza, notices) = (stanza.clone(), self.back.notices.clone());
        self.work(self.permit(&stanza)?, async move {
            let now = OffsetDateTime::now_utc();
            let language = Language::of(&stanza.element).unwrap_or_default();
            let done = commands.handle_within(&stanza.from, &payload, now, room, language).await;
            let done = done.map(|(answer, notice)| Handled { answer: Some(answer), notice });
            finish(&stanza, done, &notices).await
        })
    }
}

/// Returns the answer to a request that may have changed a key, after queuing its notice.
async fn finish(
    stanza: &Stanza,
    done: Result<Handled, impl Into<Refusal>>,
    notices: &mpsc::Sender<KeyNotice>,
) -> Element {
    match done {
        Ok(Handled { answer, notice }) => {
            if let Some(notice) = notice {
                let _ = notices.send(notice).await;
            }
            stanza.result(answer)
        }
        Err(refusal) => stanza.refuse(refusal),
    }
}

/// Returns the stream's id and the target of an activation.
fn activation(query: &Element) -> Option<(&str, Jid)> {
    let sid = query.attr("sid").filter(|sid| !sid.is_empty())?;
    let activate = query.get_child("activate", ns::BYTESTREAMS)?;
    Some((sid, Jid::new(activate.text().trim()).ok()?))
}
