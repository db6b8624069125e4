//! The reachable resources: users that sent directed presence to the component, and those that were reachable when the
//! component ran last.
//!
//! Of a presence its priority is kept, and nothing else. Every entry has its weight in bytes; users with access share
//! one amount, all others together a smaller one, each domain in it what [`crate::shares`] gives it.
//!
//! A resource that was silent for a while is asked whether it is still there, by disco#info to its full JID: servers answer a presence probe only to subscribed contacts, and an IQ ping is refused by clients that do not know it
//! in the same words in which servers say that there is no such resource. After the link was down all entries are
//! asked; until they answer they count as reachable, behind those that have.
//!
//! Before a resource is offered a session it is asked the same, unless it sent something a moment ago: a user whose
//! connection was cut stays available at the server for minutes ([`Presences::choose`]). A question is shared by all who
//! wait for its answer, and what came of it is believed for a few seconds, so nobody can have others asked at a rate.
//!
//! [`Presences`] decides and does nothing: presences, answers and the time go in, what is to be done comes out.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use jid::{BareJid, FullJid, Jid};
use tokio::time::Instant;

use crate::shares::{Full, Limits, Place, Shares};

/// What users with access share, in bytes: at most 16 resources each.
const USERS: Limits = Limits::new(44 << 20, 16 * ENTRY_MAX, 4);
/// What all others share: callees of sessions need no access.
const GUESTS: Limits = Limits::new(8 << 20, 4 * ENTRY_MAX, 1);
/// Resources of one user, with access and without.
const RESOURCES: (usize, usize) = (16, 4);
/// Bytes that an entry takes besides its addresses: measured, and rounded up.
const ENTRY: usize = 512;
/// The largest entry: two addresses of the greatest length.
const ENTRY_MAX: usize = ENTRY + 2 * 3071;

/// A resource that was silent for this time is asked whether it is still there.
const AGE: Duration = Duration::from_secs(30 * 60);
/// One that did not answer is asked again after this time.
const AGAIN: Duration = Duration::from_secs(60);
/// One that has answered nothing for so long is gone: a network may be away for minutes, and its user, who stays available
/// meanwhile, sends no presence again.
const LOST: Duration = Duration::from_secs(300);
/// An answer to the last question may be late by so much.
const LATE: Duration = Duration::from_secs(30);
/// An entry whose place among those that are asked is taken waits for so long.
const LATER: Duration = Duration::from_secs(5);
/// The shortest time between two questions: 200 in a second.
const PACE: Duration = Duration::from_millis(5);
/// A resource that sent something so shortly before the session was asked for gets it without a question.
const FRESH: Duration = Duration::from_secs(1);
/// A resource that left a question unanswered is not asked another one for so long.
const SILENT: Duration = Duration::from_secs(3);
/// Resources of one user that are asked at once for a session.
const AT_ONCE: usize = 4;
/// How often the database is told that an entry is still there.
const STORE_AGAIN: Duration = Duration::from_secs(3600);

/// What became of an entry; to be passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is to be remembered over a restart.
    Remember {
        /// Who.
        jid: Arc<FullJid>,
        /// With which priority.
        priority: i8,
        /// Whether it was not to be remembered before.
        is_new: bool,
    },
    /// It is gone. `remembered`: also from what is remembered.
    Gone {
        /// Who.
        jid: Arc<FullJid>,
        /// Whether it was to be remembered.
        remembered: bool,
    },
}

/// How a resource that was asked whether it is there has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// It is there.
    Here,
    /// Its server says that it is not.
    Gone,
    /// Its server passes nothing on to it: the user may have blocked the component.
    Refused,
    /// Nothing came in time.
    Silence,
    /// The link was lost meanwhile, or the question could not be sent.
    Unknown,
}

/// Which resource of a user gets a stanza for its bare JID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// This one. `true` if it has sent something since the stanza came, `false` if only a moment before.
    Take(Arc<FullJid>, bool),
    /// It is not known yet: choose again when one of those has answered that are asked.
    Wait,
    /// None. Of those that are there the one that was silent last is so since then.
    Nobody(Option<Instant>),
}

#[derive(Debug)]
struct Resource {
    jid: Arc<FullJid>,
    priority: i8,
    /// Whether it has shown itself since the link came up.
    confirmed: bool,
    /// When it last sent something.
    heard: Option<Instant>,
    /// When it last answered a question.
    answered: Option<Instant>,
    /// When it was asked for a session, until that is settled.
    asked: Option<Instant>,
    /// When the first of the last questions was asked that it left unanswered, and when that was seen of the last one.
    silent: Option<(Instant, Instant)>,
    /// Whether it is to be forgotten when it is its turn to be asked.
    is_lost: bool,
    has_access: bool,
    /// When it is asked next, and a number that tells it from others of that moment.
    due: (Instant, u64),
    /// When it was last to be remembered.
    remembered: Option<Instant>,
    place: Place,
}

/// A resource that was silent, and since when.
type SilentSince = (Arc<FullJid>, Instant);

/// The reachable resources of each user.
#[derive(Debug)]
pub struct Presences {
    users: HashMap<BareJid, Vec<Resource>>,
    /// What users with access hold, and what others hold.
    shares: [Shares; 2],
    due: BTreeMap<(Instant, u64), Arc<FullJid>>,
    number: u64,
    /// When the next question may be asked; `None` while the link is down.
    ask_at: Option<Instant>,
    changes: VecDeque<Change>,
}

impl Default for Presences {
    fn default() -> Self {
        Self::new()
    }
}

impl Presences {
    /// Nobody is reachable, and the link is down.
    pub fn new() -> Self {
        Self {
            users: HashMap::new(),
            shares: Default::default(),
            due: BTreeMap::new(),
            number: 0,
            ask_at: None,
            changes: VecDeque::new(),
        }
    }

    /// A resource became available, or says so again. Says whether the user was not reachable before.
    ///
    /// # Errors
    /// [`Full`] if there is no place for it.
    pub fn available(
        &mut self,
        jid: FullJid,
        priority: i8,
        has_access: bool,
        now: Instant,
    ) -> Result<bool, Full> {
        let came = !self.is_reachable(&jid.to_bare());
        let due = self.next_due(now + AGE);
        if let Some(resource) = self.find(&jid) {
            let old = std::mem::replace(&mut resource.due, due);
            resource.confirmed = true;
            resource.silent = None;
            resource.is_lost = false;
            resource.heard = Some(now);
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
        resource.heard = Some(now);
        if has_access {
            resource.remembered = Some(now);
            let jid = Arc::clone(&resource.jid);
            let change = Change::Remember { jid, priority, is_new: true };
            self.changes.push_back(change);
        }
        Ok(came)
    }

    /// A resource went away. Says whether it was known.
    pub fn unavailable(&mut self, jid: &FullJid) -> bool {
        let bare = jid.to_bare();
        let Some(resources) = self.users.get_mut(&bare) else { return false };
        let Some(at) = resources.iter().position(|known| *known.jid == *jid) else { return false };
        let resource = resources.remove(at);
        if resources.is_empty() {
            self.users.remove(&bare);
        }
        self.forget(&resource);
        true
    }

    /// Takes a resource that was reachable when the component ran last.
    pub fn recall(&mut self, jid: FullJid, priority: i8, now: Instant) {
        if self.find(&jid).is_some() {
            return;
        }
        let due = self.next_due(now);
        match self.insert(jid.clone(), priority, true, due) {
            Ok(resource) => resource.remembered = Some(now),
            Err(_) => {
                let jid = Arc::new(jid);
                self.changes.push_back(Change::Gone { jid, remembered: true });
            }
        }
    }

    /// The link came up: who went away meanwhile is not known.
    pub fn link_is_up(&mut self, now: Instant) {
        self.ask_at = Some(now);
        let mut number = self.number;
        self.due.clear();
        for resource in self.users.values_mut().flatten() {
            number += 1;
            resource.confirmed = false;
            resource.silent = None;
            resource.is_lost = false;
            resource.heard = None;
            resource.due = (now, number);
            self.due.insert(resource.due, Arc::clone(&resource.jid));
        }
        self.number = number;
    }

    /// Returns whether somebody can be asked.
    pub fn is_link_up(&self) -> bool {
        self.ask_at.is_some()
    }

    /// The link is down: nobody can be asked.
    pub fn link_is_down(&mut self) {
        self.ask_at = None;
    }

    /// When [`Presences::ask`] has somebody to ask.
    pub fn deadline(&self) -> Option<Instant> {
        let ask_at = self.ask_at?;
        self.due.first_key_value().map(|((due, _), _)| ask_at.max(*due))
    }

    /// Returns the resource to ask now whether it is there: call until `None`. Its answer goes to
    /// [`Presences::answered`]; if it cannot be asked now, that is [`Presences::postpone`].
    pub fn ask(&mut self, now: Instant) -> Option<Arc<FullJid>> {
        let jid = loop {
            if self.deadline()? > now {
                return None;
            }
            let (_, jid) = self.due.pop_first()?;
            let lost = self.find(&jid).filter(|resource| resource.is_lost);
            match lost.and_then(|resource| resource.silent) {
                None => break jid,
                Some((_, seen)) if seen + LATE > now => self.put_off(&jid, seen + LATE),
                Some(_) => {
                    self.unavailable(&jid);
                }
            }
        };
        // Without an answer of any kind it is asked again.
        self.put_off(&jid, now + AGAIN);
        self.ask_at = Some(now + PACE);
        Some(jid)
    }

    /// Too many of its kind are being asked: it is asked a little later.
    pub fn postpone(&mut self, jid: &FullJid, now: Instant) {
        self.put_off(jid, now + LATER);
    }

    /// Something came from a resource.
    pub fn heard(&mut self, jid: &Jid, now: Instant) {
        let Some(resources) = self.users.get_mut(&jid.to_bare()) else { return };
        let resource = resources.iter_mut().find(|known| known.jid.as_str() == jid.as_str());
        if let Some(resource) = resource {
            resource.confirmed = true;
            resource.heard = Some(now);
            resource.silent = None;
            resource.is_lost = false;
        }
    }

    /// Forgets when a resource last sent something, because a session came back from it: it is asked before the next one.
    pub fn doubt(&mut self, jid: &FullJid) {
        if let Some(resource) = self.find(jid) {
            resource.heard = None;
        }
    }

    /// How a resource has answered a question that was asked at `asked`.
    pub fn answered(&mut self, jid: &FullJid, sign: Sign, asked: Instant, now: Instant) {
        let Some(resource) = self.find(jid) else { return };
        resource.asked = None;
        // A client that is busy may be late with its answer: whatever came from it is as good.
        let is_heard = resource.heard.is_some_and(|heard| heard > asked);
        let sign = if sign == Sign::Silence && is_heard { Sign::Here } else { sign };
        match sign {
            Sign::Here => {
                resource.confirmed = true;
                resource.silent = None;
                resource.is_lost = false;
                resource.heard = Some(now);
                resource.answered = Some(now);
                let has_access = resource.has_access;
                self.put_off(jid, now + AGE);
                if has_access {
                    self.remember_again(jid, false, now);
                }
            }
            Sign::Silence | Sign::Refused => match resource.silent {
                None => {
                    resource.silent = Some((asked, now));
                    resource.confirmed = false;
                    self.put_off(jid, now + AGAIN);
                }
                Some((since, _)) => {
                    resource.silent = Some((since, now));
                    // The answer to this question may still come.
                    let is_long = now.saturating_duration_since(since) >= LOST;
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

    /// Returns what became of entries since the last call: call until `None`.
    pub fn poll_change(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }

    /// Returns all reachable resources of a user.
    pub fn all(&self, user: &BareJid) -> impl Iterator<Item = &FullJid> {
        self.users.get(user).into_iter().flatten().map(|resource| &*resource.jid)
    }

    /// Returns whether another resource of the user than this one, and than those in `tried`, may take a stanza for the
    /// bare JID.
    pub fn has_other(&self, jid: &Jid, tried: &[FullJid]) -> bool {
        let own = self.users.get(&jid.to_bare()).into_iter().flatten();
        let mut others = own.filter(|other| other.jid.as_str() != jid.as_str());
        others.any(|other| {
            other.priority >= 0 && other.silent.is_none() && !tried.contains(&other.jid)
        })
    }

    /// Returns whether stanzas for the bare JID have somewhere to go.
    fn is_reachable(&self, user: &BareJid) -> bool {
        self.users.get(user).into_iter().flatten().any(|resource| resource.priority >= 0)
    }

    /// Chooses the resource that gets a stanza for the bare JID which came at `since`. Returns also the resources to ask.
    ///
    /// Those of a negative priority, and those in `tried`, are left out. Of the others that answer it is the one that
    /// `fit` says can do most with the stanza (`None`: not known before it is asked), then one that has shown itself since
    /// the link came up, then that of the highest priority, then the latest. What [`Presences::answered`] is told of those
    /// that are asked settles the choice, or narrows it down.
    pub fn choose(
        &mut self,
        user: &BareJid,
        since: Instant,
        tried: &[FullJid],
        fit: impl Fn(&FullJid) -> Option<u8>,
        now: Instant,
    ) -> (Choice, Vec<Arc<FullJid>>) {
        let mut none: [Resource; 0] = [];
        let resources = self.users.get_mut(user).map_or(&mut none[..], Vec::as_mut_slice);
        let is_fresh = |at: Option<Instant>| at.is_some_and(|at| at + FRESH >= since);
        let mut order: Vec<_> = resources
            .iter_mut()
            .enumerate()
            .filter(|(_, resource)| resource.priority >= 0 && !tried.contains(&resource.jid))
            .map(|(number, resource)| {
                let fit = fit(&resource.jid);
                // A resource that answers, but not what it can do, can do nothing special.
                let fit = fit.or_else(|| is_fresh(resource.answered).then_some(0));
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
                && seen + SILENT > since
            {
                silent = silent.max(Some(began));
                continue;
            }
            if is_fresh(resource.heard) && (fit.is_some() || is_alone) {
                if waiting == 0 {
                    let sure = resource.heard.is_some_and(|heard| heard >= since);
                    return (Choice::Take(Arc::clone(&resource.jid), sure), Vec::new());
                }
                break;
            }
            if waiting == AT_ONCE {
                break;
            }
            waiting += 1;
            if resource.asked.is_none() {
                resource.asked = Some(now);
                ask.push(Arc::clone(&resource.jid));
            }
        }
        (if waiting > 0 { Choice::Wait } else { Choice::Nobody(silent) }, ask)
    }

    /// Says which resources of a user are to be asked whether they are there, and which were silent a moment ago and since
    /// when, because something goes to all of them at `now`.
    pub fn check_all(
        &mut self,
        user: &BareJid,
        now: Instant,
    ) -> (Vec<Arc<FullJid>>, Vec<SilentSince>) {
        let (mut ask, mut silent) = (Vec::new(), Vec::new());
        for resource in self.users.get_mut(user).into_iter().flatten() {
            match resource.silent {
                Some((since, seen)) if seen + SILENT > now => {
                    silent.push((Arc::clone(&resource.jid), since));
                }
                _ if resource.heard.is_some_and(|heard| heard + FRESH >= now) => {}
                _ if resource.asked.is_some() => {}
                _ => {
                    resource.asked = Some(now);
                    ask.push(Arc::clone(&resource.jid));
                }
            }
        }
        (ask, silent)
    }

    /// Since when a resource has not answered, if that is so.
    pub fn silent_since(&self, jid: &FullJid) -> Option<Instant> {
        let resources = self.users.get(&jid.to_bare())?;
        let resource = resources.iter().find(|resource| *resource.jid == *jid)?;
        resource.silent.map(|(since, _)| since)
    }

    /// Returns how many resources are reachable.
    pub fn count(&self) -> usize {
        self.due.len()
    }

    /// Returns the bytes that are taken.
    pub fn bytes(&self) -> usize {
        self.shares.iter().map(Shares::taken).sum()
    }

    fn find(&mut self, jid: &FullJid) -> Option<&mut Resource> {
        let resources = self.users.get_mut(&jid.to_bare())?;
        resources.iter_mut().find(|resource| *resource.jid == *jid)
    }

    fn next_due(&mut self, at: Instant) -> (Instant, u64) {
        self.number += 1;
        (at, self.number)
    }

    /// Takes a place for a new resource; the oldest of a user that has as many as a user may have makes room.
    fn insert(
        &mut self,
        jid: FullJid,
        priority: i8,
        has_access: bool,
        due: (Instant, u64),
    ) -> Result<&mut Resource, Full> {
        let bare = jid.to_bare();
        let most = if has_access { RESOURCES.0 } else { RESOURCES.1 };
        let own = self.users.get(&bare).map(Vec::as_slice).unwrap_or_default();
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
        let resources = self.users.entry(bare).or_default();
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
        self.changes.push_back(Change::Gone {
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

    /// Among equals the latest is asked for.
    fn make_latest(&mut self, jid: &FullJid) {
        let Some(resources) = self.users.get_mut(&jid.to_bare()) else { return };
        if let Some(at) = resources.iter().position(|resource| *resource.jid == *jid) {
            let resource = resources.remove(at);
            resources.push(resource);
        }
    }

    fn remember_again(&mut self, jid: &FullJid, changed: bool, now: Instant) {
        let Some(resource) = self.find(jid) else { return };
        let is_old =
            resource.remembered.is_none_or(|at| now.saturating_duration_since(at) >= STORE_AGAIN);
        if changed || is_old {
            let is_new = resource.remembered.replace(now).is_none();
            let (jid, priority) = (Arc::clone(&resource.jid), resource.priority);
            let change = Change::Remember { jid, priority, is_new };
            self.changes.push_back(change);
        }
    }
}

#[cfg(test)]
#[path = "presence_tests.rs"]
mod tests;
