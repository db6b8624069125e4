//! Subscriptions to presence, and probes: of the component, and of the users behind proxied addresses.
//!
//! The component is always available. A proxied contact is available exactly while its user is reachable and visible to the
//! asker. Its presences carry the resource, the priority, and the hash of what the user's client says of itself, so that
//! the asker's client knows what to offer. Everything else in the user's presence stays with the component.
//!
//! # Security
//! A hidden user, an unknown one and one that is away get the same answer, after the same lookup.

use std::{sync::Arc, time::Duration};

use fingerpost_carry::{outbound::Outbound, shares::Permit};
use fingerpost_wire::{
    jid::{proxied, unproxied},
    ns,
    stanza::{Condition, RequestKind, Stanza, StanzaType},
    xml,
};
use jid::{BareJid, FullJid, Jid};
use minidom::Element;
use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::{Report, Router, caps, profile};
use crate::{
    metrics,
    registry::model::Settings,
    sessions::{
        features,
        reachable::day_of,
        watchers::{Shown, ShownResource, WatchedPair},
    },
};

/// The part of the queue to the server that is left to other stanzas when watchers are told.
const KEPT_FREE: usize = 2;

/// How long the server may take to work off the presences that watchers were told.
const WORKED_OFF: Duration = Duration::from_secs(10);
/// The most addresses of a watcher that wait for the same lookup.
const ASKERS: usize = 16;

/// A lookup of whether a watcher may know of its contact.
#[derive(Debug)]
pub(super) struct Probe {
    /// The senders of subscriptions and probes, and the addresses that they were sent to.
    askers: Vec<(Jid, Jid)>,
    /// Whether the contact's visibility may have changed since it began.
    is_old: bool,
}

impl Router {
    /// Handles a subscription to the presence of the component or of a proxied contact.
    pub(super) fn subscribe(&mut self, stanza: &Stanza, has_access: bool) {
        if stanza.to.node().is_none() {
            self.answer_presence(stanza, Some("subscribed"));
            return self.show_self(stanza);
        }
        if !has_access || unproxied(&stanza.to, &self.options.jid).is_none() {
            return self.answer_presence(stanza, Some("unsubscribed"));
        }
        self.answer_presence(stanza, Some("subscribed"));
        self.watch(stanza);
        self.show(stanza);
    }

    /// Handles the end of a subscription.
    pub(super) fn unsubscribe(&mut self, stanza: &Stanza) {
        if let Some(contact) = unproxied(&stanza.to, &self.options.jid) {
            self.watchers.unwatch(&stanza.from.to_bare(), &contact.to_bare());
            self.pass_watchers();
        }
        self.answer_presence(stanza, Some("unavailable"));
    }

    /// Handles the probe of a server whose user has logged in.
    pub(super) fn probe(&mut self, stanza: &Stanza, has_access: bool) {
        if stanza.to.node().is_none() {
            return self.show_self(stanza);
        }
        if !has_access || unproxied(&stanza.to, &self.options.jid).is_none() {
            return self.answer_presence(stanza, Some("unsubscribed"));
        }
        self.watch(stanza);
        self.show(stanza);
    }

    /// Handles a probe that came too fast: a watcher that is known is told a little later.
    pub(super) fn probe_later(&mut self, stanza: &Stanza) {
        if let Some(contact) = unproxied(&stanza.to, &self.options.jid) {
            let (watcher, contact) = (stanza.from.to_bare(), contact.to_bare());
            self.watchers.tell_again(&watcher, &contact, Instant::now());
        }
    }

    /// Handles a presence of type error: a watcher that is not there is told no more.
    pub(super) fn presence_failed(&mut self, stanza: &Stanza) {
        let condition = stanza.element.get_child("error", ns::CLIENT).and_then(Condition::of);
        let is_final = matches!(
            condition,
            Some(Condition::Gone | Condition::ItemNotFound | Condition::JidMalformed)
        );
        if is_final && let Some(contact) = unproxied(&stanza.to, &self.options.jid) {
            self.watchers.unwatch(&stanza.from.to_bare(), &contact.to_bare());
            self.pass_watchers();
        }
    }

    fn watch(&mut self, stanza: &Stanza) {
        let Some(contact) = unproxied(&stanza.to, &self.options.jid) else { return };
        let (watcher, contact) = (stanza.from.to_bare(), contact.to_bare());
        let day = day_of(OffsetDateTime::now_utc());
        if let Err(full) = self.watchers.watch(&watcher, &contact, day) {
            metrics::PRESENCES_DROPPED.count(&["watchers"]);
            debug!(%full, "subscription not remembered: its user is shown nothing");
        }
        self.pass_watchers();
    }

    /// Tells the sender of a subscription or probe whether its contact is available, when it is known whether it may know
    /// of the contact.
    fn show(&mut self, stanza: &Stanza) {
        let Some(contact) = unproxied(&stanza.to, &self.options.jid) else { return };
        let pair = WatchedPair { watcher: stanza.from.to_bare(), contact: contact.to_bare() };
        if self.registry.shows(&pair.watcher, &pair.contact) {
            return self.answer_probe(&pair, &stanza.from, &stanza.to, true);
        }
        let asker = (stanza.from.clone(), stanza.to.clone());
        if let Some(probe) = self.probes.get_mut(&pair) {
            if probe.askers.contains(&asker) {
                return;
            }
            if probe.askers.len() < ASKERS {
                return probe.askers.push(asker);
            }
        } else if let Ok(permit) = self.looking_up.take(&pair.watcher, 1) {
            return self.look_up_probe(pair, asker, permit);
        }
        if !self.watchers.tell_again(&pair.watcher, &pair.contact, Instant::now()) {
            metrics::PRESENCES_DROPPED.count(&["rate"]);
        }
    }

    /// Looks up whether a watcher may know of its contact.
    fn look_up_probe(&mut self, pair: WatchedPair, asker: (Jid, Jid), permit: Permit) {
        let (registry, reports) = (self.registry.clone(), self.back.reports.clone());
        self.probes.insert(pair.clone(), Probe { askers: vec![asker], is_old: false });
        self.tasks.spawn(async move {
            let found = registry.visible(&pair.watcher, &pair.contact).await;
            drop(permit);
            let found =
                found.inspect_err(|error| warn!(%error, "could not read who may see a user")).ok();
            let _ = reports.send(Report::Probed(pair, found.map(|found| found.is_some()))).await;
        });
    }

    /// Answers the subscriptions and probes that have waited for a lookup.
    pub(super) fn handle_probed(&mut self, pair: &WatchedPair, admitted: Option<bool>) {
        let Some(Probe { askers, is_old }) = self.probes.remove(pair) else { return };
        for (from, to) in askers {
            match admitted.filter(|_| !is_old) {
                Some(admitted) => self.answer_probe(pair, &from, &to, admitted),
                // The settings of the contact are read with the next changes, and again if that fails, too.
                None => {
                    self.watchers.tell_again(&pair.watcher, &pair.contact, Instant::now());
                }
            }
        }
    }

    /// Tells `from` whether the contact at `to` is available. `admitted`: whether it may know of the contact.
    fn answer_probe(&mut self, pair: &WatchedPair, from: &Jid, to: &Jid, admitted: bool) {
        let WatchedPair { watcher, contact } = pair;
        let doors = &self.options.access;
        // A watcher that could not be told that the contact went is not told that it is here.
        let is_remembered = self.watchers.knows(watcher, contact);
        let may_see = admitted && is_remembered && doors.admits(watcher) && !doors.blocks(contact);
        let now = Instant::now();
        let mut resources = Vec::new();
        if may_see {
            resources = self.shown(contact, now);
            resources = self.watchers.update(contact, resources, now);
        }
        if resources.is_empty() {
            let gone = presence(&Jid::from(to.to_bare()), from, Some("unavailable"));
            self.send(gone);
        }
        let own = &self.options.jid;
        for resource in resources {
            let jid = Arc::clone(&resource.jid);
            if !say(&self.outbound, own, from, &Shown::Here(resource)) {
                self.watchers.tell_again(watcher, contact, now);
                return;
            }
            self.watchers.told(watcher, contact, &jid, from.resource().is_none());
        }
    }

    /// Tells the sender that the component is available.
    fn show_self(&self, stanza: &Stanza) {
        let from = Jid::from(self.options.jid.clone());
        let mut presence = presence(&from, &stanza.from, None);
        if let Some(caps) = &self.own_caps {
            caps.announce(&mut presence);
        }
        profile::announce(&mut presence);
        self.send(presence);
    }

    /// Returns the reachable resources of a contact, as a watcher may see them. The clients of a watched contact are asked
    /// for capabilities that are not known.
    fn shown(&mut self, contact: &BareJid, now: Instant) -> Vec<ShownResource> {
        let resources = self.presences.resources(contact);
        let resources: Vec<ShownResource> = resources
            .map(|(jid, priority)| ShownResource {
                jid: Arc::clone(jid),
                priority,
                ver: self.watchers.ver(contact, jid),
            })
            .collect();
        for resource in resources.iter().filter(|resource| resource.ver.is_none()) {
            if self.watchers.must_ask(contact, &resource.jid) {
                self.ask_for_sign(Arc::clone(&resource.jid), now);
            }
        }
        resources
    }

    /// Takes the presence of a resource that may be watched.
    pub(super) fn contact_is_here(&mut self, jid: &FullJid, presence: &Element) {
        let (contact, now) = (jid.to_bare(), Instant::now());
        if !self.watchers.has(&contact) {
            return;
        }
        if let Some(own) = features::announced_ver(presence) {
            let jid = Arc::new(jid.clone());
            match self.contact_caps.of(own) {
                Some(ver) => self.watchers.set_ver(&contact, &jid, ver, now),
                // What is announced for it depends on its answer.
                None => {
                    self.watchers.must_ask(&contact, &jid);
                    self.ask_for_sign(jid, now);
                }
            }
        }
        self.watchers.changed(&contact, now);
    }

    /// Takes a client's answer to disco#info.
    pub(super) fn contact_says(&mut self, jid: &Arc<FullJid>, info: &Element) {
        let contact = jid.to_bare();
        if self.watchers.has(&contact)
            && let Some(ver) = self.contact_caps.learn(info)
        {
            self.watchers.set_ver(&contact, jid, &ver, Instant::now());
        }
    }

    /// Notes that a user's visibility may have changed; `None`: anybody's, or who may use the service.
    pub fn visibility_changed(&mut self, user: Option<&BareJid>) {
        let now = Instant::now();
        for (pair, probe) in &mut self.probes {
            probe.is_old |= user.is_none_or(|user| pair.contact == *user);
        }
        match user {
            Some(user) => self.watchers.visibility_changed(user, now),
            None => self.watchers.all_changed(now),
        }
    }

    /// Begins to tell watchers of changes, as far as it is time.
    pub(super) fn tell_watchers(&mut self, now: Instant) {
        while self.presences.is_link_up()
            && let Some(contact) = self.watchers.next(now)
        {
            let (registry, reports) = (self.registry.clone(), self.back.reports.clone());
            self.tasks.spawn(async move {
                let settings = registry.settings(&contact).await;
                let settings = settings
                    .inspect_err(|error| warn!(%error, "could not read who may see a user"))
                    .ok();
                let _ = reports.send(Report::Settings(contact, settings)).await;
            });
        }
    }

    /// Tells the watchers of a contact, whose settings have been read.
    pub(super) fn handle_settings(&mut self, contact: &BareJid, settings: Option<Settings>) {
        let now = Instant::now();
        let Some(Settings { visibility, allowed }) = settings else {
            return self.watchers.not_read(contact, now);
        };
        let resources = self.shown(contact, now);
        let (doors, outbound, own) = (&self.options.access, &self.outbound, &self.options.jid);
        let is_blocked = doors.blocks(contact);
        let sees = |watcher: &BareJid| {
            !is_blocked && doors.admits(watcher) && visibility.admits(watcher, contact, &allowed)
        };
        let kept_free = outbound.max_capacity() / KEPT_FREE;
        let say = |to: &BareJid, shown: &Shown| {
            outbound.capacity() > kept_free && say(outbound, own, &Jid::from(to.clone()), shown)
        };
        self.watchers.tell(contact, &resources, now, sees, say);
        if let Some(number) = self.watchers.mark() {
            self.find_out_when_worked_off(number);
        }
    }

    /// Sends the component a ping through its server, which works off all earlier stanzas first.
    fn find_out_when_worked_off(&self, number: usize) {
        let (requests, reports) = (self.requests.clone(), self.back.reports.clone());
        let (own, link) = (Jid::from(self.options.jid.clone()), self.links);
        self.tasks.spawn(async move {
            let ping = Element::bare("ping", ns::PING);
            // An error is as good as an answer. Without either, telling goes on when the time is over.
            let _answer = requests.request(RequestKind::Get, &own, &own, ping, WORKED_OFF).await;
            let _ = reports.send(Report::WorkedOff { link, number }).await;
        });
    }

    /// Has changes of watchers recorded.
    pub(super) fn pass_watchers(&mut self) {
        while let Some(change) = self.watchers.poll_change() {
            self.reachable.note_watcher(change);
        }
    }

    fn answer_presence(&self, stanza: &Stanza, type_: Option<&str>) {
        // Subscriptions are between bare addresses.
        self.send(presence(&Jid::from(stanza.to.to_bare()), &stanza.from, type_));
    }
}

/// Sends a presence of a proxied contact to a watcher. Returns whether there was room for it.
fn say(outbound: &Outbound, own: &BareJid, to: &Jid, shown: &Shown) -> bool {
    let of = |jid: &FullJid| proxied(&Jid::from(jid.clone()), own);
    let stanza = match shown {
        Shown::Here(ShownResource { jid, priority, ver }) => of(jid).map(|from| {
            let mut stanza = presence(&from, to, None);
            let mut element = Element::bare("priority", ns::CLIENT);
            element.append_text(priority.to_string());
            stanza.append_child(element);
            if let Some(ver) = ver {
                stanza.append_child(caps::announced(ver));
            }
            stanza
        }),
        Shown::Gone(jid) => of(jid).map(|from| presence(&from, to, Some("unavailable"))),
    };
    // Without an address there is nobody to show.
    stanza.is_none_or(|stanza| outbound.try_send(stanza.into()).is_ok())
}

fn presence(from: &Jid, to: &Jid, type_: Option<&str>) -> Element {
    let mut presence =
        xml::element("presence", ns::CLIENT, &[("from", from.as_str()), ("to", to.as_str())]);
    if let Some(type_) = type_ {
        xml::set(&mut presence, "type", type_);
    }
    presence
}

/// Returns whether a presence is about subscriptions.
pub(super) fn is_about_subscriptions(type_: StanzaType) -> bool {
    matches!(type_, StanzaType::Subscribe | StanzaType::Unsubscribe | StanzaType::Probe)
}
