//! The users who have subscribed to the presence of a proxied address, and what each of them was told.
//!
//! A server probes the contacts of its user at each login. Between two logins the component must tell the user of each
//! change, and for that it remembers the pair of watcher and contact, also over a restart ([`super::reachable`]). A pair
//! costs memory that a stranger could fill: each user, domain and contact has a limit. Beyond it a probe is still
//! answered, but changes are not told.
//!
//! A contact may have any number of resources that come and go. Changes within two seconds are told together, and the
//! watchers of all contacts together are told at a bounded pace.
//!
//! [`Watchers`] decides and does no I/O: subscriptions, changes and the time go in, presences come out.
//!
//! # Security
//! A watcher learns nothing of a hidden contact: only that it went, at the time when it was hidden. So a
//! hidden contact looks like one that is away.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use fingerpost_carry::shares::{Full, Limits, Place, Shares};
use jid::{BareJid, FullJid};
use tokio::time::Instant;

/// The bytes that all pairs share: about 300 of usual length for one user.
const LIMITS: Limits = Limits::new(16 << 20, 96 << 10, 4);
/// The bytes of a pair besides its addresses, measured and rounded up.
const ENTRY: usize = 256;
/// The most watchers of one contact. One domain may have four times as many of them as are still free.
const PER_CONTACT: usize = 500;
/// How many times the free places of a contact one domain may have.
const SLOPE: usize = 4;
/// The most resources of a contact that are shown.
const RESOURCES: usize = 16;
/// The shortest time between two tellings of one contact's changes.
const GAP: Duration = Duration::from_secs(2);
/// The time that is kept free for each watcher that may be told: 5000 presences per second.
const PACE: Duration = Duration::from_micros(200);
/// The most contacts whose settings are read at once.
const AT_ONCE: usize = 16;
/// After so many days without a subscription or a probe a pair is forgotten.
pub const AGE_DAYS: u32 = 90;
/// The days after which the database notes that a pair is still in use.
const STORE_AGAIN: u32 = 7;

/// A user, and the contact whose presence the user has subscribed to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WatchedPair {
    /// The subscriber.
    pub watcher: BareJid,
    /// The user behind the proxied address.
    pub contact: BareJid,
}

/// A change of a pair, to be passed on to the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchChange {
    /// The pair must be remembered over a restart.
    Remember {
        /// The pair.
        pair: Arc<WatchedPair>,
        /// Whether it was not remembered before.
        is_new: bool,
    },
    /// The pair is gone.
    Forget(Arc<WatchedPair>),
}

/// A resource of a contact, as watchers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownResource {
    /// The resource.
    pub jid: Arc<FullJid>,
    /// Its priority.
    pub priority: i8,
    /// The hash of its capabilities (XEP-0115, SHA-1), if it is known.
    pub ver: Option<Arc<str>>,
}

/// A presence for a watcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// The resource is available, or has changed.
    Here(ShownResource),
    /// The resource is unavailable.
    Gone(Arc<FullJid>),
}

#[derive(Debug)]
struct Watcher {
    pair: Arc<WatchedPair>,
    /// Whether it was told that the contact is available.
    is_told: bool,
    /// The day of its last subscription or probe.
    seen: u32,
    /// The day when the database last noted it.
    stored: u32,
    place: Place,
}

/// When the watchers of a contact are told, with a number that makes the key unique.
type Due = (Instant, u64);

#[derive(Debug, Default)]
struct WatchedContact {
    watchers: Vec<Watcher>,
    /// The resources that those who were told know of.
    shown: Vec<ShownResource>,
    /// The capabilities of its resources: `None` while the resource is asked for them.
    vers: Vec<(Arc<FullJid>, Option<Arc<str>>)>,
    due: Option<Due>,
    last: Option<Instant>,
}

/// The watchers of each contact.
#[derive(Debug, Default)]
pub struct Watchers {
    contacts: HashMap<BareJid, WatchedContact>,
    shares: Shares,
    due: BTreeMap<Due, BareJid>,
    number: u64,
    /// Not before this time another contact is told of.
    next_at: Option<Instant>,
    /// How many contacts' settings are being read.
    reading: usize,
    changes: VecDeque<WatchChange>,
    /// The day when old pairs were last looked for.
    swept: u32,
}

impl Watchers {
    /// Takes a subscription or a probe on a day, counted since 1970.
    ///
    /// # Errors
    /// [`Full`] if there is no place for another pair.
    pub fn watch(&mut self, watcher: &BareJid, contact: &BareJid, day: u32) -> Result<(), Full> {
        self.forget_old(day);
        if let Some(known) = self.find(watcher, contact) {
            known.seen = day;
            if day >= known.stored.saturating_add(STORE_AGAIN) {
                known.stored = day;
                let pair = Arc::clone(&known.pair);
                self.changes.push_back(WatchChange::Remember { pair, is_new: false });
            }
            return Ok(());
        }
        let pair = self.insert(watcher, contact, day)?;
        self.changes.push_back(WatchChange::Remember { pair, is_new: true });
        Ok(())
    }

    /// Takes a pair from the database.
    pub fn recall(&mut self, watcher: &BareJid, contact: &BareJid, day: u32) {
        if self.find(watcher, contact).is_some() {
            return;
        }
        if self.insert(watcher, contact, day).is_err() {
            let pair = WatchedPair { watcher: watcher.clone(), contact: contact.clone() };
            self.changes.push_back(WatchChange::Forget(Arc::new(pair)));
        }
    }

    fn insert(
        &mut self,
        watcher: &BareJid,
        contact: &BareJid,
        day: u32,
    ) -> Result<Arc<WatchedPair>, Full> {
        let known = self.contacts.get(contact).map(|known| &known.watchers[..]).unwrap_or_default();
        let free = PER_CONTACT.saturating_sub(known.len());
        let is_near = |other: &&Watcher| other.pair.watcher.domain() == watcher.domain();
        if free == 0 || known.iter().filter(is_near).count() >= SLOPE * free {
            return Err(Full::Domain);
        }
        let weight = ENTRY + 2 * watcher.as_str().len() + 2 * contact.as_str().len();
        let place = self.shares.take(watcher, weight, &LIMITS)?;
        let pair = Arc::new(WatchedPair { watcher: watcher.clone(), contact: contact.clone() });
        self.contacts.entry(contact.clone()).or_default().watchers.push(Watcher {
            pair: Arc::clone(&pair),
            is_told: false,
            seen: day,
            stored: day,
            place,
        });
        Ok(pair)
    }

    /// Forgets a pair. Returns whether its watcher was told that the contact is available.
    pub fn unwatch(&mut self, watcher: &BareJid, contact: &BareJid) -> bool {
        let Some(known) = self.contacts.get_mut(contact) else { return false };
        let at = known.watchers.iter().position(|known| known.pair.watcher == *watcher);
        let Some(at) = at else { return false };
        let removed = known.watchers.swap_remove(at);
        self.forget(&removed);
        self.tidy(contact);
        removed.is_told
    }

    fn forget(&mut self, watcher: &Watcher) {
        self.shares.give_back(&watcher.place);
        self.changes.push_back(WatchChange::Forget(Arc::clone(&watcher.pair)));
    }

    /// Drops a contact that nobody watches.
    fn tidy(&mut self, contact: &BareJid) {
        if self.contacts.get(contact).is_some_and(|known| known.watchers.is_empty())
            && let Some(known) = self.contacts.remove(contact)
            && let Some(due) = known.due
        {
            self.due.remove(&due);
        }
    }

    /// Forgets the pairs that were not used for long; once a day.
    fn forget_old(&mut self, day: u32) {
        if day <= self.swept {
            return;
        }
        self.swept = day;
        let is_old = |watcher: &mut Watcher| watcher.seen.saturating_add(AGE_DAYS) < day;
        let mut old = Vec::new();
        for known in self.contacts.values_mut() {
            old.extend(known.watchers.extract_if(.., is_old));
        }
        for watcher in &old {
            self.forget(watcher);
            self.tidy(&watcher.pair.contact);
        }
    }

    /// Returns the next change for the database; call until `None`.
    pub fn poll_change(&mut self) -> Option<WatchChange> {
        self.changes.pop_front()
    }

    /// Returns how many pairs there are.
    pub fn count(&self) -> usize {
        self.contacts.values().map(|known| known.watchers.len()).sum()
    }

    /// Returns whether anyone watches a contact.
    pub fn has(&self, contact: &BareJid) -> bool {
        self.contacts.contains_key(contact)
    }

    /// Returns whether a pair is known.
    pub fn knows(&mut self, watcher: &BareJid, contact: &BareJid) -> bool {
        self.find(watcher, contact).is_some()
    }

    fn find(&mut self, watcher: &BareJid, contact: &BareJid) -> Option<&mut Watcher> {
        let known = self.contacts.get_mut(contact)?;
        known.watchers.iter_mut().find(|known| known.pair.watcher == *watcher)
    }

    /// Returns the capabilities of a watched contact's resource; `None` also if they are not known.
    pub fn ver(&self, contact: &BareJid, jid: &FullJid) -> Option<Arc<str>> {
        let vers = &self.contacts.get(contact)?.vers;
        vers.iter().find(|(known, _)| **known == *jid)?.1.clone()
    }

    /// Returns whether the capabilities of a watched contact's resource must be asked for. The caller asks.
    pub fn must_ask(&mut self, contact: &BareJid, jid: &Arc<FullJid>) -> bool {
        let Some(known) = self.contacts.get_mut(contact) else { return false };
        let is_new = !known.vers.iter().any(|(known, _)| known == jid);
        if is_new && known.vers.len() < RESOURCES {
            known.vers.push((Arc::clone(jid), None));
            return true;
        }
        false
    }

    /// Forgets all capabilities. They are asked for again when watchers are told.
    pub fn forget_vers(&mut self) {
        self.contacts.values_mut().for_each(|known| known.vers.clear());
    }

    /// Takes the capabilities of a contact's resource.
    pub fn set_ver(&mut self, contact: &BareJid, jid: &Arc<FullJid>, ver: &str, now: Instant) {
        let Some(known) = self.contacts.get_mut(contact) else { return };
        let vers = &mut known.vers;
        let at = vers.iter().position(|(known, _)| known == jid);
        if at.is_some_and(|at| vers[at].1.as_deref() == Some(ver)) {
            return;
        }
        match at {
            Some(at) => vers[at].1 = Some(ver.into()),
            None if vers.len() < RESOURCES => vers.push((Arc::clone(jid), Some(ver.into()))),
            None => return,
        }
        self.changed(contact, now);
    }

    /// Notes that the watchers of a contact may have to be told something.
    pub fn changed(&mut self, contact: &BareJid, now: Instant) {
        let Some(known) = self.contacts.get_mut(contact) else { return };
        if known.due.is_some() {
            return;
        }
        self.number += 1;
        let at = known.last.map_or(now, |last| now.max(last + GAP));
        known.due = Some((at, self.number));
        self.due.insert((at, self.number), contact.clone());
    }

    /// Notes that anybody's visibility or access may have changed.
    pub fn all_changed(&mut self, now: Instant) {
        let is_shown = |known: &WatchedContact| !known.shown.is_empty();
        let shown = self.contacts.iter().filter(|(_, known)| is_shown(known));
        for contact in shown.map(|(contact, _)| contact.clone()).collect::<Vec<_>>() {
            self.changed(&contact, now);
        }
    }

    /// Returns when [`Watchers::next`] has a contact.
    pub fn deadline(&self) -> Option<Instant> {
        if self.reading >= AT_ONCE {
            return None;
        }
        let ((at, _), _) = self.due.first_key_value()?;
        Some(self.next_at.map_or(*at, |next| next.max(*at)))
    }

    /// Returns a contact whose watchers must be told; call until `None`. Give its settings to [`Watchers::tell`], or call
    /// [`Watchers::not_read`].
    pub fn next(&mut self, now: Instant) -> Option<BareJid> {
        if self.deadline()? > now {
            return None;
        }
        let (_, contact) = self.due.pop_first()?;
        let known = self.contacts.get_mut(&contact)?;
        known.due = None;
        known.last = Some(now);
        let number = u32::try_from(known.watchers.len()).unwrap_or(u32::MAX);
        self.next_at = Some(now + PACE * number);
        self.reading += 1;
        Some(contact)
    }

    /// Notes that the settings of a contact could not be read: its watchers are told later.
    pub fn not_read(&mut self, contact: &BareJid, now: Instant) {
        self.reading = self.reading.saturating_sub(1);
        self.changed(contact, now + GAP);
    }

    /// Returns the presences for the watchers of a contact, which has these resources now. `sees`: whether a watcher may
    /// know of it.
    pub fn tell(
        &mut self,
        contact: &BareJid,
        resources: Vec<ShownResource>,
        sees: impl Fn(&BareJid) -> bool,
    ) -> Vec<(BareJid, Shown)> {
        self.reading = self.reading.saturating_sub(1);
        let Some(known) = self.contacts.get_mut(contact) else { return Vec::new() };
        let has = |list: &[ShownResource], jid: &FullJid| list.iter().any(|one| *one.jid == *jid);
        known.vers.retain(|(jid, _)| has(&resources, jid));
        let before = std::mem::replace(&mut known.shown, resources);
        let now_shown = &known.shown;
        let here = |one: &ShownResource| Shown::Here(one.clone());
        let mut out = Vec::new();
        for watcher in &mut known.watchers {
            let to = &watcher.pair.watcher;
            let (was_told, may_see) = (watcher.is_told, sees(to));
            let mut say = |shown| out.push((to.clone(), shown));
            if was_told {
                let gone = before.iter().filter(|one| !may_see || !has(now_shown, &one.jid));
                gone.for_each(|one| say(Shown::Gone(Arc::clone(&one.jid))));
            }
            if may_see {
                let new = now_shown.iter().filter(|one| !was_told || !before.contains(one));
                new.for_each(|one| say(here(one)));
            }
            watcher.is_told = may_see && !now_shown.is_empty();
        }
        out
    }

    /// Notes what a watcher was told in answer to a subscription or a probe: these resources.
    pub fn told(
        &mut self,
        watcher: &BareJid,
        contact: &BareJid,
        resources: &[ShownResource],
        now: Instant,
    ) {
        let Some(known) = self.contacts.get_mut(contact) else { return };
        let others = known.watchers.iter().filter(|known| known.pair.watcher != *watcher);
        let is_first = !others.into_iter().any(|other| other.is_told);
        let found = known.watchers.iter_mut().find(|known| known.pair.watcher == *watcher);
        let Some(found) = found else { return };
        found.is_told = !resources.is_empty();
        if is_first {
            known.shown = resources.to_vec();
        } else if !resources.is_empty() && known.shown != resources {
            self.changed(contact, now);
        }
    }

    /// Forgets that a watcher was told, because it asks again and cannot be answered at once.
    pub fn tell_again(&mut self, watcher: &BareJid, contact: &BareJid, now: Instant) {
        if let Some(known) = self.find(watcher, contact) {
            known.is_told = false;
            self.changed(contact, now);
        }
    }
}

#[cfg(test)]
#[path = "watchers_tests.rs"]
mod tests;
