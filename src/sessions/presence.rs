//! The reachable resources: users that sent directed presence to the component, and those that were reachable when the
//! component last ran.
//!
//! Only the priority of a presence is kept. Every entry has a weight in bytes. Users with access share one amount, all
//! others a smaller one, divided between domains as in [`fingerpost_carry::shares`].
//!
//! A resource that has been silent for a while is checked with a disco#info request to its full JID. A presence probe
//! would not do, because servers answer it only to subscribed contacts. Nor would an IQ ping: a client that does not
//! support it refuses it with the same error that servers send for an absent resource. After the link was down all
//! entries are checked. Until they answer they count as reachable, behind those that have answered.
//!
//! A resource is also checked before it is offered a session, unless it has sent something since the session was requested:
//! a user whose connection was cut stays available at the server for minutes, and a device may fall asleep right after its
//! last stanza ([`Presences::choose`]). All stanzas that wait for the same check share it, and a silent resource is not
//! checked again for a few seconds. So a stranger cannot make the component flood others with checks.
//!
//! [`Presences`] decides and does no I/O: presences, answers and the time go in, actions come out.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
    num::NonZeroU64,
    sync::Arc,
    time::Duration,
};

use fingerpost_carry::shares::{Full, Limits, Place, Shares};
use jid::{BareJid, FullJid, Jid};
use tokio::time::Instant;

/// The bytes that users with access share: at most 16 resources each.
const USERS: Limits = Limits::new(50 << 20, 16 * ENTRY_MAX, 4);
/// The bytes that all others share: callees of sessions need no access.
const GUESTS: Limits = Limits::new(8 << 20, 4 * ENTRY_MAX, 1);
/// The most resources of one user, with access and without.
const RESOURCES: (usize, usize) = (16, 4);
/// The bytes of an entry besides its addresses: measured, and rounded up.
const ENTRY: usize = 352;
/// The largest entry: two addresses of the greatest length.
const ENTRY_MAX: usize = ENTRY + 2 * 3071;

/// The silence after which a resource is checked.
const AGE: Duration = Duration::from_secs(30 * 60);
/// The pause before the next check of a resource that did not answer.
const AGAIN: Duration = Duration::from_secs(60);
/// The silence after which a resource is gone: a network may be away for minutes, and its user, who stays available
/// meanwhile, sends no new presence.
const LOST: Duration = Duration::from_secs(300);
/// How late the answer to the last check may be.
const LATE: Duration = Duration::from_secs(30);
/// How long an entry waits if too many of its kind are being checked.
const LATER: Duration = Duration::from_secs(5);
/// The shortest time between two checks: 200 per second.
const PACE: Duration = Duration::from_millis(5);
/// A resource that sent something this recently is not checked for a proposal, which goes to all resources.
const FRESH: Duration = Duration::from_secs(1);
/// How long a resource that left a check unanswered is not checked again.
const SILENT: Duration = Duration::from_secs(3);
/// The most resources of one user that are checked at once for a session.
const AT_ONCE: usize = 4;
/// The interval between updates of an entry in the database.
const STORE_AGAIN: Duration = Duration::from_secs(3600);

/// A change of an entry, to be passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PresenceChange {
    /// The entry must be remembered over a restart.
    Remember {
        /// The resource.
        jid: Arc<FullJid>,
        /// Its priority.
        priority: i8,
        /// Whether it was not remembered before.
        is_new: bool,
    },
    /// The entry is gone; if `remembered`, also from the database.
    Gone {
        /// The resource.
        jid: Arc<FullJid>,
        /// Whether it was remembered.
        remembered: bool,
    },
}

/// The result of a check whether a resource is present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// The resource is present.
    Here,
    /// Its server says that it is absent.
    Gone,
    /// Its server refuses to deliver to it: the user may have blocked the component.
    Refused,
    /// No answer came in time.
    Silence,
    /// The link was lost meanwhile, or the check could not be sent.
    Unknown,
}

/// The resource that gets a stanza for the bare JID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResourceChoice {
    /// This resource, which has sent something since the stanza came.
    Take(Arc<FullJid>),
    /// Not known yet: choose again when one of the checked resources has answered.
    Wait,
    /// None. Holds the start of the latest silence among the resources that are present.
    Nobody(Option<Instant>),
}

/// A time in half of an [`Instant`]'s memory: nanoseconds since a table was created, plus one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Moment(NonZeroU64);

impl Moment {
    /// Returns the time later by `span`.
    fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(nanos(span)))
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// The clock of a table.
#[derive(Clone, Copy, Debug)]
struct Clock(Instant);

impl Clock {
    fn moment(self, at: Instant) -> Moment {
        let since = nanos(at.saturating_duration_since(self.0));
        Moment(NonZeroU64::MIN.saturating_add(since))
    }

    fn instant(self, moment: Moment) -> Instant {
        self.0 + Duration::from_nanos(moment.0.get() - 1)
    }
}

#[derive(Debug)]
struct Resource {
    jid: Arc<FullJid>,
    priority: i8,
    /// Whether it has shown itself since the link came up.
    confirmed: bool,
    /// When it last sent something.
    heard: Option<Moment>,
    /// When it last answered a check.
    answered: Option<Moment>,
    /// When it was checked for a session, until that is settled.
    asked: Option<Moment>,
    /// When the first of its unanswered checks was sent, and when the last one timed out.
    silent: Option<(Moment, Moment)>,
    /// Whether it is forgotten at its next turn.
    is_lost: bool,
    has_access: bool,
    /// When it is checked next, with a number that makes the key unique.
    due: Due,
    /// When it was last reported to the database.
    remembered: Option<Moment>,
    place: Place,
}

/// When a resource is checked, with a number that makes the key unique.
type Due = (Moment, u64);

/// A silent resource, and since when.
type SilentSince = (Arc<FullJid>, Instant);

/// The reachable resources of each user.
#[derive(Debug)]
pub struct Presences {
    hasher: RandomState,
    /// By the keyed hash of the bare JID, which nobody can choose to collide.
    users: HashMap<u64, Vec<Resource>>,
    /// The shares of users with access, and of others.
    shares: [Shares; 2],
    due: BTreeMap<Due, Arc<FullJid>>,
    clock: Clock,
    number: u64,
    /// When the next check may be sent; `None` while the link is down.
    ask_at: Option<Instant>,
    changes: VecDeque<PresenceChange>,
}

impl Presences {
    /// Creates an empty table at the time `now`; the link is down.
    pub fn new(now: Instant) -> Self {
        Self {
            hasher: RandomState::new(),
            users: HashMap::new(),
            shares: Default::default(),
            due: BTreeMap::new(),
            // Times shortly before are valid too.
            clock: Clock(now.checked_sub(AGE).unwrap_or(now)),
            number: 0,
            ask_at: None,
            changes: VecDeque::new(),
        }
    }

    /// Returns the key of the user of an address.
    fn user(&self, jid: &str) -> u64 {
        let (bare, _) = jid.split_once('/').unwrap_or((jid, ""));
        self.hasher.hash_one(bare)
    }

    /// Takes the presence of a resource that is available. Returns whether the user was not reachable before.
    ///
    /// # Errors
    /// [`Full`] if it has no place.
    pub fn available(
        &mut self,
        jid: FullJid,
        priority: i8,
        has_access: bool,
        now: Instant,
    ) -> Result<bool, Full> {
        let came = !self.is_reachable(&jid.to_bare());
        let at = self.clock.moment(now);
        let due = self.next_due(now + AGE);
        if let Some(resource) = self.find(&jid) {
            let old = std::mem::replace(&mut resource.due, due);
            resource.confirmed = true;
            resource.silent = None;
            resource.is_lost = false;
            resource.heard = Some(at);
            let changed = resource.priority != priority;
            resource.priority = priority;
            let (jid, has_access) = (Arc::clone(&resource.jid), resource.has_access);
            self.due.remove(&old);
            self.due.insert(due, Arc::clone(&jid));
            self.make_latest(&jid);
            if has_access {
                self.remember_again(&jid, changed, now);
            }
            return Ok(came);
        }
        let resource = self.insert(jid, priority, has_access, due)?;
        resource.confirmed = true;
        resource.heard = Some(at);
        if has_access {
            resource.remembered = Some(at);
            let jid = Arc::clone(&resource.jid);
            let change = PresenceChange::Remember { jid, priority, is_new: true };
            self.changes.push_back(change);
        }
        Ok(came)
    }

    /// Removes a resource that went away. Returns whether it was known.
    pub fn unavailable(&mut self, jid: &FullJid) -> bool {
        let user = self.user(jid.as_str());
        let Some(resources) = self.users.get_mut(&user) else { return false };
        let Some(at) = resources.iter().position(|known| *known.jid == *jid) else { return false };
        let resource = resources.remove(at);
        if resources.is_empty() {
            self.users.remove(&user);
        }
        self.forget(&resource);
        true
    }

    /// Takes a resource that was reachable when the component last ran.
    pub fn recall(&mut self, jid: FullJid, priority: i8, now: Instant) {
        if self.find(&jid).is_some() {
            return;
        }
        let (due, at) = (self.next_due(now), self.clock.moment(now));
        match self.insert(jid.clone(), priority, true, due) {
            Ok(resource) => resource.remembered = Some(at),
            Err(_) => {
                let jid = Arc::new(jid);
                self.changes.push_back(PresenceChange::Gone { jid, remembered: true });
            }
        }
    }

    /// Handles a link that came up: users may have gone away meanwhile.
    pub fn link_is_up(&mut self, now: Instant) {
        self.ask_at = Some(now);
        let (mut number, at) = (self.number, self.clock.moment(now));
        self.due.clear();
        for resource in self.users.values_mut().flatten() {
            number += 1;
            resource.confirmed = false;
            resource.silent = None;
            resource.is_lost = false;
            resource.heard = None;
            resource.due = (at, number);
            self.due.insert(resource.due, Arc::clone(&resource.jid));
        }
        self.number = number;
    }

    /// Returns whether checks can be sent.
    pub fn is_link_up(&self) -> bool {
        self.ask_at.is_some()
    }

    /// Handles the loss of the link: no checks can be sent.
    pub fn link_is_down(&mut self) {
        self.ask_at = None;
    }

    /// Returns when [`Presences::ask`] has a resource to check.
    pub fn deadline(&self) -> Option<Instant> {
        let ask_at = self.ask_at?;
        self.due.first_key_value().map(|((due, _), _)| ask_at.max(self.clock.instant(*due)))
    }

    /// Returns the resource to check now; call until `None`. Give its answer to [`Presences::answered`]. If it cannot
    /// be checked now, call [`Presences::postpone`].
    pub fn ask(&mut self, now: Instant) -> Option<Arc<FullJid>> {
        let jid = loop {
            if self.deadline()? > now {
                return None;
            }
            let (_, jid) = self.due.pop_first()?;
            let clock = self.clock;
            let lost = self.find(&jid).filter(|resource| resource.is_lost);
            let seen = lost.and_then(|resource| resource.silent);
            match seen.map(|(_, seen)| clock.instant(seen)) {
                None => break jid,
                Some(seen) if seen + LATE > now => self.put_off(&jid, seen + LATE),
                Some(_) => {
                    self.unavailable(&jid);
                }
            }
        };
        // Without any answer it is checked again.
        self.put_off(&jid, now + AGAIN);
        self.ask_at = Some(now + PACE);
        Some(jid)
    }

    /// Postpones the check, because too many of its kind are in progress.
    pub fn postpone(&mut self, jid: &FullJid, now: Instant) {
        self.put_off(jid, now + LATER);
    }

    /// Notes that a resource sent something.
    pub fn heard(&mut self, jid: &Jid, now: Instant) {
        let (user, at) = (self.user(jid.as_str()), self.clock.moment(now));
        let Some(resources) = self.users.get_mut(&user) else { return };
        let resource = resources.iter_mut().find(|known| known.jid.as_str() == jid.as_str());
        if let Some(resource) = resource {
            resource.confirmed = true;
            resource.heard = Some(at);
            resource.silent = None;
            resource.is_lost = false;
        }
    }

    /// Takes the result of a check that was sent at `asked`.
    pub fn answered(&mut self, jid: &FullJid, sign: Sign, asked: Instant, now: Instant) {
        let (asked, at) = (self.clock.moment(asked), self.clock.moment(now));
        let Some(resource) = self.find(jid) else { return };
        resource.asked = None;
        // A busy client may answer late: anything that it sent counts as an answer. The news that it was gone may be
        // older than what it sent: servers take seconds to find out that they cannot deliver a stanza.
        let is_heard = resource.heard.is_some_and(|heard| heard > asked);
        let sign = match sign {
            Sign::Silence if is_heard => Sign::Here,
            Sign::Gone | Sign::Refused if is_heard => Sign::Unknown,
            sign => sign,
        };
        match sign {
            Sign::Here => {
                resource.confirmed = true;
                resource.silent = None;
                resource.is_lost = false;
                resource.heard = Some(at);
                resource.answered = Some(at);
                let has_access = resource.has_access;
                self.put_off(jid, now + AGE);
                if has_access {
                    self.remember_again(jid, false, now);
                }
            }
            Sign::Silence | Sign::Refused => match resource.silent {
                None => {
                    resource.silent = Some((asked, at));
                    resource.confirmed = false;
                    self.put_off(jid, now + AGAIN);
                }
                Some((since, _)) => {
                    resource.silent = Some((since, at));
                    // The answer to this check may still come.
                    let is_long = at >= since.after(LOST);
                    if is_long && !std::mem::replace(&mut resource.is_lost, true) {
                        self.put_off(jid, now + LATE);
                    }
                }
            },
            Sign::Gone => {
                self.unavailable(jid);
            }
            Sign::Unknown => self.put_off(jid, now + LATER),
        }
    }

    /// Returns the next change of an entry; call until `None`.
    pub fn poll_change(&mut self) -> Option<PresenceChange> {
        self.changes.pop_front()
    }

    /// Returns all reachable resources of a user.
    pub fn all(&self, user: &BareJid) -> impl Iterator<Item = &FullJid> {
        let resources = self.users.get(&self.user(user.as_str())).into_iter().flatten();
        resources.map(|resource| &*resource.jid)
    }

    /// Returns all reachable resources of a user, each with its priority.
    pub fn resources(&self, user: &BareJid) -> impl Iterator<Item = (&Arc<FullJid>, i8)> {
        let resources = self.users.get(&self.user(user.as_str())).into_iter().flatten();
        resources.map(|resource| (&resource.jid, resource.priority))
    }

    /// Returns whether the user has another resource, not in `tried`, that may take a stanza for the bare JID.
    pub fn has_other(&self, jid: &Jid, tried: &[FullJid]) -> bool {
        let own = self.users.get(&self.user(jid.as_str())).into_iter().flatten();
        let mut others = own.filter(|other| other.jid.as_str() != jid.as_str());
        others.any(|other| {
            other.priority >= 0 && other.silent.is_none() && !tried.contains(&other.jid)
        })
    }

    /// Returns whether any resource may take stanzas for the bare JID.
    fn is_reachable(&self, user: &BareJid) -> bool {
        let mut resources = self.users.get(&self.user(user.as_str())).into_iter().flatten();
        resources.any(|resource| resource.priority >= 0)
    }

    /// Chooses the resource that gets a stanza for the bare JID which came at `since`. Returns also the resources to
    /// check.
    ///
    /// Resources of a negative priority, and those in `tried`, are left out. Of the others that answer, the best by
    /// these criteria wins, in this order: the highest `fit` for the stanza (`None`: not known before a check), one
    /// that has shown itself since the link came up, the highest priority, the latest. The results of the checks, given
    /// to [`Presences::answered`], settle the choice or narrow it down.
    pub fn choose(
        &mut self,
        user: &BareJid,
        since: Instant,
        tried: &[FullJid],
        fit: impl Fn(&FullJid) -> Option<u8>,
        now: Instant,
    ) -> (ResourceChoice, Vec<Arc<FullJid>>) {
        let clock = self.clock;
        let (since, at) = (clock.moment(since), clock.moment(now));
        let mut none: [Resource; 0] = [];
        let user = self.user(user.as_str());
        let resources = self.users.get_mut(&user).map_or(&mut none[..], Vec::as_mut_slice);
        let is_sure = |at: Option<Moment>| at.is_some_and(|at| at >= since);
        let mut order: Vec<_> = resources
            .iter_mut()
            .enumerate()
            .filter(|(_, resource)| resource.priority >= 0 && !tried.contains(&resource.jid))
            .map(|(number, resource)| {
                let fit = fit(&resource.jid);
                // A resource that answers without its features has no special ones.
                let fit = fit.or_else(|| is_sure(resource.answered).then_some(0));
                let rank = (
                    resource.silent.is_none(),
                    fit.unwrap_or(u8::MAX),
                    resource.confirmed,
                    resource.priority,
                    number,
                );
                (rank, fit, resource)
            })
            .collect();
        order.sort_unstable_by_key(|(rank, ..)| std::cmp::Reverse(*rank));
        let is_alone = order.len() == 1;
        let (mut ask, mut waiting, mut silent) = (Vec::new(), 0, None);
        for (_, fit, resource) in order {
            if let Some((began, seen)) = resource.silent
                && seen.after(SILENT) > since
            {
                silent = silent.max(Some(clock.instant(began)));
                continue;
            }
            if is_sure(resource.heard) && (fit.is_some() || is_alone) {
                if waiting == 0 {
                    return (ResourceChoice::Take(Arc::clone(&resource.jid)), Vec::new());
                }
                break;
            }
            if waiting == AT_ONCE {
                break;
            }
            waiting += 1;
            if resource.asked.is_none() {
                resource.asked = Some(at);
                ask.push(Arc::clone(&resource.jid));
            }
        }
        (if waiting > 0 { ResourceChoice::Wait } else { ResourceChoice::Nobody(silent) }, ask)
    }

    /// Returns the resources of a user that must be checked, and those that were silent a moment ago and since when,
    /// because a stanza goes to all of them at `now`.
    pub fn check_all(
        &mut self,
        user: &BareJid,
        now: Instant,
    ) -> (Vec<Arc<FullJid>>, Vec<SilentSince>) {
        let (mut ask, mut silent) = (Vec::new(), Vec::new());
        let (clock, at) = (self.clock, self.clock.moment(now));
        let user = self.user(user.as_str());
        for resource in self.users.get_mut(&user).into_iter().flatten() {
            match resource.silent {
                Some((since, seen)) if seen.after(SILENT) > at => {
                    silent.push((Arc::clone(&resource.jid), clock.instant(since)));
                }
                _ if resource.heard.is_some_and(|heard| heard.after(FRESH) >= at) => {}
                _ if resource.asked.is_some() => {}
                _ => {
                    resource.asked = Some(at);
                    ask.push(Arc::clone(&resource.jid));
                }
            }
        }
        (ask, silent)
    }

    /// Returns since when a resource does not answer, if it does not.
    pub fn silent_since(&self, jid: &FullJid) -> Option<Instant> {
        let resources = self.users.get(&self.user(jid.as_str()))?;
        let resource = resources.iter().find(|resource| *resource.jid == *jid)?;
        resource.silent.map(|(since, _)| self.clock.instant(since))
    }

    /// Returns how many resources are reachable.
    pub fn count(&self) -> usize {
        self.due.len()
    }

    /// Returns the bytes in use.
    pub fn bytes(&self) -> usize {
        self.shares.iter().map(Shares::taken).sum()
    }

    fn find(&mut self, jid: &FullJid) -> Option<&mut Resource> {
        let user = self.user(jid.as_str());
        let resources = self.users.get_mut(&user)?;
        resources.iter_mut().find(|resource| *resource.jid == *jid)
    }

    fn next_due(&mut self, at: Instant) -> Due {
        self.number += 1;
        (self.clock.moment(at), self.number)
    }

    /// Takes a place for a new resource. If a user has the most that a user may have, its oldest one makes room.
    fn insert(
        &mut self,
        jid: FullJid,
        priority: i8,
        has_access: bool,
        due: Due,
    ) -> Result<&mut Resource, Full> {
        let bare = jid.to_bare();
        let most = if has_access { RESOURCES.0 } else { RESOURCES.1 };
        let user = self.user(jid.as_str());
        let own = self.users.get(&user).map(Vec::as_slice).unwrap_or_default();
        if own.len() >= most
            && let Some(oldest) = own.first().map(|resource| Arc::clone(&resource.jid))
        {
            self.unavailable(&oldest);
        }
        let weight = ENTRY + 2 * jid.as_str().len();
        let limits = if has_access { &USERS } else { &GUESTS };
        let place = self.shares[usize::from(!has_access)].take(&bare, weight, limits)?;
        let jid = Arc::new(jid);
        self.due.insert(due, Arc::clone(&jid));
        let resources = self.users.entry(user).or_default();
        resources.reserve_exact(1);
        resources.push(Resource {
            jid,
            priority,
            confirmed: false,
            heard: None,
            answered: None,
            asked: None,
            silent: None,
            is_lost: false,
            has_access,
            due,
            remembered: None,
            place,
        });
        let last = resources.len() - 1;
        Ok(&mut resources[last])
    }

    fn forget(&mut self, resource: &Resource) {
        self.due.remove(&resource.due);
        self.shares[usize::from(!resource.has_access)].give_back(&resource.place);
        self.changes.push_back(PresenceChange::Gone {
            jid: Arc::clone(&resource.jid),
            remembered: resource.remembered.is_some(),
        });
    }

    fn put_off(&mut self, jid: &FullJid, until: Instant) {
        let due = self.next_due(until);
        let Some(resource) = self.find(jid) else { return };
        let jid = Arc::clone(&resource.jid);
        let old = std::mem::replace(&mut resource.due, due);
        self.due.remove(&old);
        self.due.insert(due, jid);
    }

    /// Makes a resource the latest among equals.
    fn make_latest(&mut self, jid: &FullJid) {
        let user = self.user(jid.as_str());
        let Some(resources) = self.users.get_mut(&user) else { return };
        if let Some(at) = resources.iter().position(|resource| *resource.jid == *jid) {
            let resource = resources.remove(at);
            resources.push(resource);
        }
    }

    fn remember_again(&mut self, jid: &FullJid, changed: bool, now: Instant) {
        let at = self.clock.moment(now);
        let Some(resource) = self.find(jid) else { return };
        let is_old = resource.remembered.is_none_or(|before| at >= before.after(STORE_AGAIN));
        if changed || is_old {
            let is_new = resource.remembered.replace(at).is_none();
            let (jid, priority) = (Arc::clone(&resource.jid), resource.priority);
            let change = PresenceChange::Remember { jid, priority, is_new };
            self.changes.push_back(change);
        }
    }
}

#[cfg(test)]
#[path = "presence_tests.rs"]
mod tests;
