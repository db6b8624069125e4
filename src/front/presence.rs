//! Presences: which resources are reachable, and the keys that their users publish.

use std::time::Instant;

use fingerpost_carry::iq::{Answer, Requests};
use fingerpost_wire::{
    jid::full,
    ns,
    stanza::{RequestKind, Stanza, StanzaType},
};
use jid::{BareJid, FullJid, Jid};
use time::OffsetDateTime;
use tracing::{debug, warn};

use super::{FORWARD, Report, Router, watching::is_about_subscriptions};
use crate::{metrics, registry::pep};

impl Router {
    pub(super) fn handle_presence(&mut self, stanza: &Stanza) {
        let user = stanza.from.to_bare();
        if self.options.access.blocks(&user) {
            return;
        }
        let jid = full(&stanza.from);
        match (stanza.type_, jid) {
            // Accepted at any rate: it frees resources.
            (StanzaType::Unavailable | StanzaType::Error, Some(jid)) => {
                if stanza.type_ == StanzaType::Error {
                    self.presence_failed(stanza);
                }
                self.presences.unavailable(&jid);
                self.withdraw_all(&stanza.from);
                self.broker.user_gone(&stanza.from);
                self.broker.forget(&stanza.from);
                let out = self.proposals.gone(&stanza.from);
                self.send_all(out);
                self.pass_changes();
            }
            (StanzaType::Error, None) => self.presence_failed(stanza),
            (StanzaType::Absent | StanzaType::Unavailable, None) => {}
            (type_, jid) if type_ == StanzaType::Absent || is_about_subscriptions(type_) => {
                let has_access = self.options.access.admits(&user);
                if !self.presence_rates.allow(&user, has_access, Instant::now()) {
                    metrics::PRESENCES_DROPPED.count(&["rate"]);
                    if type_ == StanzaType::Probe && has_access {
                        self.probe_later(stanza);
                    }
                    return;
                }
                match (type_, jid) {
                    (StanzaType::Absent, Some(jid)) => self.available(stanza, jid, has_access),
                    (StanzaType::Subscribe, _) => self.subscribe(stanza, has_access),
                    (StanzaType::Unsubscribe, _) => self.unsubscribe(stanza),
                    _ => self.probe(stanza, has_access),
                }
            }
            _ => {}
        }
    }

    /// Handles the presence of a resource that says that it is reachable.
    fn available(&mut self, stanza: &Stanza, jid: FullJid, has_access: bool) {
        let priority = stanza
            .element
            .get_child("priority", ns::CLIENT)
            .and_then(|priority| priority.text().trim().parse().ok())
            .unwrap_or(0);
        let user = stanza.from.to_bare();
        let now = tokio::time::Instant::now();
        let taken = self.presences.available(jid, priority, has_access, now);
        self.pass_changes();
        if let Some(jid) = full(&stanza.from) {
            self.proposals.here(&jid);
            if taken.is_ok() {
                self.contact_is_here(&jid, &stanza.element);
            }
        }
        match taken {
            Ok(came) => {
                if came {
                    // Another program may have the address now.
                    self.broker.forget(&stanza.from);
                }
                self.broker.announce(stanza);
                if came && has_access && self.options.import_pep {
                    self.refresh_pep(user);
                }
            }
            Err(full) => {
                metrics::PRESENCES_DROPPED.count(&["share"]);
                debug!(%full, "presence refused: no place for another reachable resource");
            }
        }
    }

    /// Reads the OpenPGP keys that a newly reachable user publishes, when the user's turn comes.
    fn refresh_pep(&mut self, user: BareJid) {
        if self.readers.begin(&user, Instant::now()) {
            self.read_pep(user);
        }
    }

    pub(super) fn read_pep(&self, user: BareJid) {
        let (requests, registry) = (self.requests.clone(), self.registry.clone());
        let (own, back) = (Jid::from(self.options.jid.clone()), self.back.clone());
        self.tasks.spawn(async move {
            let to = Jid::from(user.clone());
            if let Some(published) = published_keys(&requests, &own, &to).await {
                match registry.refresh_pep(&user, &published, OffsetDateTime::now_utc()).await {
                    Ok(changes) => {
                        for notice in changes {
                            let _ = back.notices.send(notice).await;
                        }
                    }
                    Err(error) => warn!(%error, "could not store published keys"),
                }
            }
            let _ = back.reports.send(Report::PublishedKeys(user)).await;
        });
    }
}

/// Returns the certificates that a user publishes; `None` if the user's server does not answer.
async fn published_keys(requests: &Requests, own: &Jid, user: &Jid) -> Option<Vec<Vec<u8>>> {
    let ask = |payload| requests.request(RequestKind::Get, own, user, payload, FORWARD);
    // An error means that the user publishes nothing openly. Silence means nothing.
    let listed = match ask(pep::list_request()).await {
        Answer::Result(Some(answer)) => pep::fingerprints(&answer),
        Answer::Result(None) | Answer::Error(_) => Vec::new(),
        Answer::Timeout => return None,
    };
    let mut published = Vec::new();
    for fingerprint in listed {
        match ask(pep::key_request(&fingerprint)).await {
            Answer::Result(Some(answer)) => published.extend(pep::certificate(&answer)),
            Answer::Result(None) | Answer::Error(_) => {}
            Answer::Timeout => return None,
        }
    }
    Some(published)
}
