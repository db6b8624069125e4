//! The users who have subscribed to the presence of a proxied address, and what each of them was told.
//!
//! A server probes the contacts of its user at each login. Between two logins the component must tell the user of each
//! change, and for that it remembers the pair of watcher and contact, also over a restart ([`super::reachable`]). A pair
//! costs memory that a stranger could fill: each user, domain and contact has a limit. A watcher beyond it is shown
//! nothing, because it could not be told that the contact went.
//!
//! A contact may have any number of resources that come and go. Changes within two seconds are told together, and the
//! watchers of all contacts together are told at a bounded pace: a presence of a contact may cause thousands.
//!
//! So what each watcher was told is kept apart, as one bit for each resource of its contact. A watcher is brought from
//! that to the present state when its turn comes. It misses no change whose last state differs, a presence that
//! found no room in the queue to the server is said later, and a resource that went and came in the meantime is not said
//! at all. The contacts of one domain wait for each other, and not those of other domains for them.
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

use fingerpost_carry::shares::{Full, Limits, Place, Shares, registered};
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
/// The time that is kept free for each presence: 5000 per second.
const PACE: Duration = Duration::from_micros(200);
/// The most presences of one contact that are said before it is another contact's turn.
const CHUNK: usize = 64;
/// The most presences that the server has not worked off yet, as far as is known: other stanzas wait behind them.
const WINDOW: usize = 256;
/// After so many presences the caller finds out when the server has worked them off.
const MARK: usize = 64;
/// The pause after a presence that found no room in the queue.
const BLOCKED: Duration = Duration::from_millis(50);
/// The most resources of a contact that watchers are told of: those that are here, and those whose watchers do not all
/// know yet that they went. One bit each.
const SLOTS: usize = 32;
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
    /// The resources that it believes to be available: a bit for each slot of the contact.
    told: u32,
    /// Those of which it knows the present priority and capabilities.
    fresh: u32,
    /// Those that it may have been told of before the component started.
    unsure: u32,
    /// The day of its last subscription or probe.
    seen: u32,
    /// The day when the database last noted it.
    stored: u32,
    place: Place,
}

impl Watcher {
    /// Says what this watcher does not know yet, as long as `say` succeeds. Returns the number of presences, and whether
    /// that was all.
    fn tell(
        &mut self,
        slots: &[Option<Slot>],
        may_see: bool,
        say: &mut impl FnMut(&Arc<WatchedPair>, &Shown) -> bool,
    ) -> (usize, bool) {
        let mut said = 0;
        let with_bits = || {
            let bits = (0..SLOTS).map(|at| 1 << at);
            slots.iter().zip(bits).filter_map(|(slot, bit)| Some((slot.as_ref()?, bit)))
        };
        for (slot, bit) in with_bits().filter(|(slot, _)| !may_see || !slot.is_here) {
            // A watcher that may not know of the contact is told only that it hid.
            if self.told & bit != 0 || may_see && self.unsure & bit != 0 {
                if !say(&self.pair, &Shown::Gone(Arc::clone(&slot.resource.jid))) {
                    return (said, false);
                }
                said += 1;
            }
            self.told &= !bit;
            self.fresh &= !bit;
            self.unsure &= !bit;
        }
        for (slot, bit) in with_bits().filter(|(slot, _)| may_see && slot.is_here) {
            if self.told & self.fresh & bit == 0 {
                if !say(&self.pair, &Shown::Here(slot.resource.clone())) {
                    return (said, false);
                }
                said += 1;
                self.knows(bit);
            }
        }
        (said, true)
    }

    fn knows(&mut self, bit: u32) {
        self.told |= bit;
        self.fresh |= bit;
        self.unsure &= !bit;
    }
}

/// A resource that watchers are told of.
#[derive(Debug)]
struct Slot {
    resource: ShownResource,
    is_here: bool,
}

/// When the watchers of a contact are told, with a number that makes the key unique.
type Due = (Instant, u64);

/// How far it is with telling the watchers of a contact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Turn {
    /// There is nothing to tell.
    #[default]
    None,
    /// They are told at this time.
    Due(Due),
    /// They are told when it is the contact's turn.
    Ready,
    /// They are told when the contact's settings have been read.
    Reading,
}

#[derive(Debug, Default)]
struct WatchedContact {
    watchers: Vec<Watcher>,
    /// At most [`SLOTS`].
    slots: Vec<Option<Slot>>,
    /// The capabilities of its resources: `None` while the resource is asked for them.
    vers: Vec<(Arc<FullJid>, Option<Arc<str>>)>,
    turn: Turn,
    /// The next watcher to tell.
    at: usize,
    /// Whether those before it must be told again.
    is_changed: bool,
    /// Whether the settings that are being read may be old.
    is_stale: bool,
    last: Option<Instant>,
}

impl WatchedContact {
    /// Takes the resources that the contact has now. Returns whether any watcher may have to be told.
    fn update(&mut self, resources: &[ShownResource]) -> bool {
        let mut is_changed = false;
        for (at, slot) in self.slots.iter_mut().enumerate() {
            let Some(slot) = slot else { continue };
            let now = resources.iter().find(|now| now.jid == slot.resource.jid);
            is_changed |= slot.is_here != now.is_some();
            slot.is_here = now.is_some();
            if let Some(now) = now.filter(|now| **now != slot.resource) {
                is_changed = true;
                slot.resource = now.clone();
                self.watchers.iter_mut().for_each(|watcher| watcher.fresh &= !(1 << at));
            }
        }
        for resource in resources {
            if self.slot(&resource.jid).is_none() {
                is_changed = true;
                self.take_slot(resource.clone());
            }
        }
        is_changed
    }

    fn watcher(&mut self, jid: &BareJid) -> Option<&mut Watcher> {
        self.watchers.iter_mut().find(|watcher| watcher.pair.watcher == *jid)
    }

    /// Returns the slot of a resource.
    fn slot(&self, jid: &FullJid) -> Option<usize> {
        let is_of =
            |slot: &Option<Slot>| slot.as_ref().is_some_and(|one| *one.resource.jid == *jid);
        self.slots.iter().position(is_of)
    }

    /// Gives a resource a slot, if one is free.
    fn take_slot(&mut self, resource: ShownResource) -> Option<usize> {
        let used = self.watchers.iter().fold(0, |used, one| used | one.told | one.unsure);
        for (at, slot) in self.slots.iter_mut().enumerate() {
            if slot.as_ref().is_some_and(|slot| !slot.is_here) && used & (1 << at) == 0 {
                *slot = None;
            }
        }
        let free = self.slots.iter().position(Option::is_none);
        let at = free.or_else(|| (self.slots.len() < SLOTS).then_some(self.slots.len()))?;
        if at == self.slots.len() {
            self.slots.push(None);
        }
        self.slots[at] = Some(Slot { resource, is_here: true });
        Some(at)
    }
}

/// A presence that the server may not have worked off yet.
#[derive(Debug)]
struct UnderWay {
    pair: Arc<WatchedPair>,
    jid: Arc<FullJid>,
    is_here: bool,
}

/// The watchers of each contact.
#[derive(Debug, Default)]
pub struct Watchers {
    contacts: HashMap<BareJid, WatchedContact>,
    shares: Shares,
    due: BTreeMap<Due, BareJid>,
    number: u64,
    /// The contacts whose turn it is, by registered domain, and the order of these.
    ready: HashMap<String, VecDeque<BareJid>>,
    turns: VecDeque<String>,
    /// Not before this time another contact is told of.
    next_at: Option<Instant>,
    /// The contacts whose settings are being read, and how many presences each may say.
    reading: HashMap<BareJid, usize>,
    /// The presences that the server may not have worked off yet, in their order.
    under_way: VecDeque<UnderWay>,
    /// Those of them that came after the last mark.
    unmarked: usize,
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
            told: 0,
            fresh: 0,
            unsure: 0,
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
        let removed = known.watchers.remove(at);
        if at < known.at {
            known.at -= 1;
        }
        self.forget(&removed);
        self.tidy(contact);
        removed.told != 0
    }

    fn forget(&mut self, watcher: &Watcher) {
        self.shares.give_back(&watcher.place);
        self.changes.push_back(WatchChange::Forget(Arc::clone(&watcher.pair)));
    }

    /// Drops a contact that nobody watches, unless its settings are being read: who watches it next must not be told by
    /// settings that have changed meanwhile.
    fn tidy(&mut self, contact: &BareJid) {
        let is_unused =
            |known: &WatchedContact| known.watchers.is_empty() && known.turn != Turn::Reading;
        if self.contacts.get(contact).is_some_and(is_unused)
            && let Some(known) = self.contacts.remove(contact)
            && let Turn::Due(due) = known.turn
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
            known.at = 0;
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
        self.contacts.get_mut(contact)?.watcher(watcher)
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
        match known.turn {
            Turn::None => {}
            Turn::Due(_) => return,
            Turn::Ready | Turn::Reading => {
                known.is_changed = true;
                return;
            }
        }
        self.number += 1;
        let due = (known.last.map_or(now, |last| now.max(last + GAP)), self.number);
        known.turn = Turn::Due(due);
        self.due.insert(due, contact.clone());
    }

    /// Notes that the visibility of a contact may have changed.
    pub fn visibility_changed(&mut self, contact: &BareJid, now: Instant) {
        if let Some(known) = self.contacts.get_mut(contact) {
            known.is_stale = known.turn == Turn::Reading;
        }
        self.changed(contact, now);
    }

    /// Notes that anybody's visibility or access may have changed.
    pub fn all_changed(&mut self, now: Instant) {
        for contact in self.contacts.keys().cloned().collect::<Vec<_>>() {
            self.visibility_changed(&contact, now);
        }
    }

    /// Returns whether nobody must be told anything.
    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        self.due.is_empty() && self.turns.is_empty() && self.reading.is_empty()
    }

    /// Returns when [`Watchers::next`] has a contact.
    pub fn deadline(&self) -> Option<Instant> {
        let reserved: usize = self.reading.values().sum();
        if self.reading.len() >= AT_ONCE || self.under_way.len() + reserved >= WINDOW {
            return None;
        }
        if !self.turns.is_empty() {
            return self.next_at;
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
        while let Some(first) = self.due.first_entry().filter(|first| first.key().0 <= now) {
            let contact = first.remove();
            let Some(known) = self.contacts.get_mut(&contact) else { continue };
            (known.at, known.is_changed, known.last) = (0, false, Some(now));
            self.queue(contact, now);
        }
        loop {
            let domain = self.turns.pop_front()?;
            let queue = self.ready.get_mut(&domain)?;
            let contact = queue.pop_front();
            match queue.is_empty() {
                true => drop(self.ready.remove(&domain)),
                false => self.turns.push_back(domain),
            }
            let Some(contact) = contact else { continue };
            let known = self.contacts.get_mut(&contact).filter(|known| known.turn == Turn::Ready);
            // It may have been dropped meanwhile.
            let Some(known) = known else { continue };
            known.turn = Turn::Reading;
            known.is_stale = false;
            let most = CHUNK.min(known.watchers.len() * RESOURCES);
            self.reading.insert(contact.clone(), most);
            return Some(contact);
        }
    }

    /// Puts a contact behind the others of its domain whose turn it is.
    fn queue(&mut self, contact: BareJid, now: Instant) {
        let Some(known) = self.contacts.get_mut(&contact) else { return };
        known.turn = Turn::Ready;
        self.next_at.get_or_insert(now);
        let domain = registered(contact.domain().as_str());
        match self.ready.get_mut(domain) {
            Some(queue) => queue.push_back(contact),
            None => {
                self.turns.push_back(domain.to_owned());
                self.ready.insert(domain.to_owned(), VecDeque::from([contact]));
            }
        }
    }

    /// Notes that the settings of a contact could not be read: its watchers are told later.
    pub fn not_read(&mut self, contact: &BareJid, now: Instant) {
        self.reading.remove(contact);
        if let Some(known) = self.contacts.get_mut(contact).filter(|one| one.turn == Turn::Reading)
        {
            (known.turn, known.last) = (Turn::None, Some(now));
            self.changed(contact, now);
            self.tidy(contact);
        }
    }

    /// Tells watchers of a contact, which has these resources now: some of them, the others when it is the contact's turn
    /// again. `sees`: whether a watcher may know of it. `say` sends a presence, or returns `false` if there is no
    /// room for it.
    pub fn tell(
        &mut self,
        contact: &BareJid,
        resources: &[ShownResource],
        now: Instant,
        sees: impl Fn(&BareJid) -> bool,
        mut say: impl FnMut(&BareJid, &Shown) -> bool,
    ) {
        let Some(most) = self.reading.remove(contact) else { return };
        let known = self.contacts.get_mut(contact).filter(|known| known.turn == Turn::Reading);
        let Some(known) = known else { return };
        let (mut said, mut has_room) = (0, true);
        let under_way = &mut self.under_way;
        let mut say = |pair: &Arc<WatchedPair>, shown: &Shown| {
            let has_room = say(&pair.watcher, shown);
            if has_room {
                let (jid, is_here) = match shown {
                    Shown::Here(resource) => (&resource.jid, true),
                    Shown::Gone(jid) => (jid, false),
                };
                let (pair, jid) = (Arc::clone(pair), Arc::clone(jid));
                under_way.push_back(UnderWay { pair, jid, is_here });
            }
            has_room
        };
        if !std::mem::take(&mut known.is_stale) {
            known.vers.retain(|(jid, _)| resources.iter().any(|one| one.jid == *jid));
            known.update(resources);
            while said < most
                && has_room
                && let Some(watcher) = known.watchers.get_mut(known.at)
            {
                let may_see = sees(&watcher.pair.watcher);
                let (more, is_all) = watcher.tell(&known.slots, may_see, &mut say);
                said += more;
                has_room = is_all;
                known.at += usize::from(is_all);
            }
        }
        let pause = match has_room {
            true => PACE * u32::try_from(said.max(1)).unwrap_or(u32::MAX),
            false => BLOCKED,
        };
        self.next_at = Some(self.next_at.map_or(now, |next| next.max(now)) + pause);
        self.unmarked += said;
        if known.at < known.watchers.len() {
            return self.queue(contact.clone(), now);
        }
        let has_slots = resources.iter().all(|resource| known.slot(&resource.jid).is_some());
        known.turn = Turn::None;
        // Slots are free when all know who went.
        if std::mem::take(&mut known.is_changed) || !has_slots {
            self.changed(contact, now);
        }
        self.tidy(contact);
    }

    /// Returns a number of presences that were said, if it is time to find out when the server has worked them off. Give
    /// it to [`Watchers::worked_off`] then.
    pub fn mark(&mut self) -> Option<usize> {
        (self.unmarked >= MARK).then(|| std::mem::take(&mut self.unmarked))
    }

    /// Notes that the server has worked off so many presences.
    pub fn worked_off(&mut self, number: usize) {
        self.under_way.drain(..number.min(self.under_way.len()));
    }

    /// Notes that the link to the server came up. What may have been lost with the last one is said again.
    pub fn link_is_up(&mut self, now: Instant) {
        self.unmarked = 0;
        for UnderWay { pair, jid, is_here } in std::mem::take(&mut self.under_way) {
            let Some(known) = self.contacts.get_mut(&pair.contact) else { continue };
            let resource = || ShownResource { jid: Arc::clone(&jid), priority: 0, ver: None };
            let slot = known.slot(&jid).or_else(|| known.take_slot(resource()));
            if let (Some(slot), Some(found)) = (slot, known.watcher(&pair.watcher)) {
                // It may believe that the resource is still here.
                found.told |= u32::from(!is_here) << slot;
                found.fresh &= !(1 << slot);
            }
            self.changed(&pair.contact, now);
        }
    }

    /// Takes the resources that a contact has now, before one of its watchers is answered. Returns those that may be
    /// shown: each has a slot, if the contact is watched.
    pub fn update(
        &mut self,
        contact: &BareJid,
        mut resources: Vec<ShownResource>,
        now: Instant,
    ) -> Vec<ShownResource> {
        let Some(known) = self.contacts.get_mut(contact) else { return resources };
        let is_changed = known.update(&resources);
        resources.retain(|resource| known.slot(&resource.jid).is_some());
        if is_changed {
            self.changed(contact, now);
        }
        resources
    }

    /// Notes that a watcher was told of a resource in answer to a subscription or a probe; `is_whole`: at its bare JID, and not
    /// just one of its clients. Others of these still have to hear what is due.
    pub fn told(&mut self, watcher: &BareJid, contact: &BareJid, jid: &FullJid, is_whole: bool) {
        let Some(known) = self.contacts.get_mut(contact) else { return };
        let slot = known.slot(jid);
        let is_due = known.turn != Turn::None;
        if let (Some(found), Some(slot)) = (known.watcher(watcher), slot) {
            let bit = 1 << slot;
            let was_fresh = found.told & found.fresh & bit != 0;
            found.knows(bit);
            if is_due && !is_whole && !was_fresh {
                found.fresh &= !bit;
            }
        }
    }

    /// Has a watcher told again all that it may know, because it asks again and cannot be answered at once. Returns
    /// whether the pair is known.
    pub fn tell_again(&mut self, watcher: &BareJid, contact: &BareJid, now: Instant) -> bool {
        let found = self.find(watcher, contact);
        let is_known = found.map(|known| known.fresh = 0).is_some();
        if is_known {
            self.changed(contact, now);
        }
        is_known
    }

    /// Takes a resource that was reachable when the component last ran: those who watched its user then, and were taken
    /// before, may have been told of it.
    pub fn recall_resource(
        &mut self,
        contact: &BareJid,
        jid: &FullJid,
        priority: i8,
        now: Instant,
    ) {
        let Some(known) = self.contacts.get_mut(contact) else { return };
        if known.slot(jid).is_none() {
            let resource = ShownResource { jid: Arc::new(jid.clone()), priority, ver: None };
            if let Some(slot) = known.take_slot(resource) {
                known.watchers.iter_mut().for_each(|watcher| watcher.unsure |= 1 << slot);
            }
        }
        self.changed(contact, now);
    }
}

#[cfg(test)]
#[path = "watchers_tests.rs"]
mod tests;
