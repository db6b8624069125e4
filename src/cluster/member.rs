//! Decides which of a component's instances leads.
//!
//! The lead is a lock in the database that one connection holds, and a lease: an instance leads for [`LEASE`] after its
//! last sign of life that the database has taken, and no longer. The others take a lock that is free
//! after [`FREE`], and end the connection that holds it after [`Instance::SILENT`]. So a leader that is cut off from the
//! database, or whose process stood still, has stopped to lead before another one does. It may stand still at any moment:
//! the lease is looked at whenever a stanza comes.
//!
//! One that stops in good order says so in its row; then nobody waits. A leader without a link to the XMPP server gives
//! the lead to an instance that has one.
//!
//! The lease holds for an instance that knows of nobody, too: while it is cut off from the database, another one may start
//! or come back there. An instance leads without a lease only if the database cannot be shared ([`Member::set_sole`]). A lock
//! that stays taken while no other instance is alive does not count: an old connection may have it.
//!
//! This is a state machine: the database's answers and the time go in, steps come out.

use std::time::Duration;

use tokio::time::Instant;

use crate::registry::store::records::{Instance, Silent, Won};

/// How long a leader may be without a link when another instance has one.
const LINKLESS: Duration = Duration::from_secs(10);
/// A leader that gave no sign of life for so long may be dead: nothing is handed to it meanwhile.
const STALE: Duration = Duration::from_secs(3);
/// How long an instance that knows of others leads after a sign of life, from before that was sent.
pub(super) const LEASE: Duration = Duration::from_secs(4);
/// How long a leader was seen to give no sign of life whose lease is over: longer than [`LEASE`].
const FREE: Duration = Duration::from_secs(5);
/// How long one that has followed leaves the lock to the one that has led, after the database was away for both.
const GRACE: Duration = Duration::from_secs(10);
/// After this many failed tries, with no leader in sight, no serving instance holds the lock.
const TRIES: u32 = 5;

/// The role of this instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// This instance.
    Leads,
    /// Another one, if it is known which.
    Follows(Option<String>),
}

/// What to ask of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MemberStep {
    /// Nothing.
    Nothing,
    /// Take the lock if it is free: the result goes to [`Member::tried`].
    Try,
    /// End the connection that holds the lock, then as [`MemberStep::Try`].
    Evict,
    /// Give the lock free.
    Yield,
}

/// One instance among the others.
#[derive(Debug)]
pub(super) struct Member {
    id: String,
    /// The role, but for the lease.
    role: Role,
    /// Whether it holds the lock on its present connection.
    holds: bool,
    /// Whether another instance was alive when it was last looked.
    in_company: bool,
    /// Whether no other instance can use the database.
    is_sole: bool,
    /// The end of the lease.
    lease: Instant,
    /// Those that have led and have been silent for so long that their leases are over.
    silent: Vec<Silent>,
    /// Since when there is no link.
    linkless: Option<Instant>,
    /// Whether another instance had a link at the last look.
    is_another_linked: bool,
    /// When the connection was reestablished.
    back_since: Option<Instant>,
    /// Failed tries since a leader was last seen.
    failed: u32,
    /// Whether it never leads again.
    is_retired: bool,
}

impl Member {
    /// An instance whose lease has ended: it leads when it has the lock, or in a database that cannot be shared.
    pub(super) fn new(id: String, now: Instant) -> Self {
        Self {
            id,
            role: Role::Leads,
            holds: false,
            in_company: false,
            is_sole: false,
            lease: now,
            silent: Vec::new(),
            linkless: Some(now),
            is_another_linked: false,
            back_since: None,
            failed: 0,
            is_retired: false,
        }
    }

    /// Its role, as long as [`Member::until`] says.
    pub(super) fn role(&self) -> &Role {
        &self.role
    }

    /// Until when it may lead if nothing happens; `None` if there cannot be another instance.
    pub(super) fn until(&self) -> Option<Instant> {
        (!self.is_sole).then_some(self.lease)
    }

    /// The database cannot be shared: this instance leads.
    pub(super) fn set_sole(&mut self) {
        self.is_sole = true;
    }

    /// Whether it has the lock.
    pub(super) fn holds(&self) -> bool {
        self.holds
    }

    /// Those whose leases are over: the lock may be taken from them.
    pub(super) fn silent(&self) -> &[Silent] {
        &self.silent
    }

    /// The connection to the database is lost, and with it the lock: the lease is over.
    pub(super) fn disconnected(&mut self, now: Instant) {
        self.holds = false;
        self.failed = 0;
        self.lease = now;
        self.silent.clear();
        if let Role::Follows(leader) = &mut self.role {
            *leader = None;
        }
    }

    /// There is a connection again. One that leads takes the lock, unless another one has led since.
    pub(super) fn reconnected(&mut self, now: Instant) -> MemberStep {
        self.back_since = Some(now);
        if self.role == Role::Leads { MemberStep::Try } else { MemberStep::Nothing }
    }

    /// The link came up or was lost.
    pub(super) fn set_linked(&mut self, linked: bool, now: Instant) {
        match (linked, self.linkless) {
            (true, _) => self.linkless = None,
            (false, None) => self.linkless = Some(now),
            (false, Some(_)) => {}
        }
    }

    /// Whether another one, which has a link, is to lead.
    fn is_worse(&self, now: Instant) -> bool {
        self.is_another_linked && self.linkless.is_some_and(|since| now - since >= LINKLESS)
    }

    fn others<'a>(
        &self,
        instances: &'a [Instance],
    ) -> impl Iterator<Item = &'a Instance> + use<'a> {
        let id = self.id.clone();
        instances.iter().filter(move |other| other.id != id)
    }

    /// Takes what the instances have said of themselves. `began`: before this one's own sign of life was sent.
    pub(super) fn look(
        &mut self,
        instances: &[Instance],
        began: Instant,
        now: Instant,
    ) -> MemberStep {
        let leaders = || self.others(instances).filter(|other| other.leads);
        let leader = leaders().min_by_key(|other| other.age).cloned();
        self.silent = match &leader {
            Some(leader) if !is_over(leader) => Vec::new(),
            _ => leaders().filter(|leader| is_over(leader)).map(Silent::of).collect(),
        };
        self.in_company = self.others(instances).any(Instance::is_alive);
        self.is_another_linked =
            self.others(instances).any(|other| other.is_alive() && other.linked);
        if self.holds {
            self.failed = 0;
            self.lease = began + LEASE;
            return if self.is_worse(now) { MemberStep::Yield } else { MemberStep::Nothing };
        }
        let is_back = self.back_since.is_some_and(|since| now - since < GRACE);
        let step = match leader {
            Some(leader) if leader.age < STALE => {
                self.role = Role::Follows(Some(leader.id));
                self.failed = 0;
                return MemberStep::Nothing;
            }
            Some(leader) if leader.is_alive() => {
                self.failed = 0;
                if is_over(&leader) { MemberStep::Try } else { MemberStep::Nothing }
            }
            Some(leader) if !is_over(&leader) => MemberStep::Nothing,
            Some(_) if is_back && self.role != Role::Leads => MemberStep::Nothing,
            Some(_) => MemberStep::Evict,
            None if self.failed >= TRIES => MemberStep::Evict,
            None => MemberStep::Try,
        };
        if let Role::Follows(leader) = &mut self.role {
            *leader = None;
        }
        if self.is_retired {
            return MemberStep::Nothing;
        }
        if self.is_worse(now) {
            return if self.role == Role::Leads { MemberStep::Yield } else { MemberStep::Nothing };
        }
        if self.failed >= TRIES && !self.in_company {
            self.role = Role::Leads;
            self.lease = began + LEASE;
        }
        step
    }

    /// Takes what the instances say while this one looks for a leader since `began`. `None`: it has found one.
    pub(super) fn seek(
        &mut self,
        instances: &[Instance],
        began: Instant,
        now: Instant,
    ) -> Option<MemberStep> {
        self.in_company = self.others(instances).any(Instance::is_alive);
        let leader =
            self.others(instances).filter(|other| other.leads).min_by_key(|other| other.age);
        let Some(leader) = leader else { return Some(MemberStep::Try) };
        if leader.age < now.saturating_duration_since(began) {
            return None;
        }
        if !is_over(leader) {
            return Some(MemberStep::Nothing);
        }
        self.silent = vec![Silent::of(leader)];
        Some(MemberStep::Try)
    }

    /// A try at `began` has ended so.
    pub(super) fn tried(&mut self, won: Option<Won>, began: Instant) {
        self.holds = won.is_some();
        if self.holds {
            self.role = Role::Leads;
            self.lease = began + LEASE;
            self.failed = 0;
        } else {
            self.failed += 1;
        }
    }

    /// The first looks are over: an instance that has not come to lead follows.
    pub(super) fn joined(&mut self) {
        if !self.holds && !self.is_sole && self.role == Role::Leads {
            self.role = Role::Follows(None);
        }
    }

    /// It is about to leave: it only hands on what still comes.
    pub(super) fn retired(&mut self) {
        self.is_retired = true;
    }

    /// It leads no more: the lock is about to be given free.
    pub(super) fn yielded(&mut self) {
        self.holds = false;
        self.failed = 0;
        self.role = Role::Follows(None);
    }
}

/// Returns whether the lease of an instance that has led is over, whatever the clock of the database says.
fn is_over(leader: &Instance) -> bool {
    leader.age >= FREE && leader.watched >= LEASE
}

#[cfg(test)]
mod tests {
    use proptest::{collection, prelude::*};

    use super::{super::sightings::Sightings, *};

    fn instance(id: &str, leads: bool, linked: bool, age: u64) -> Instance {
        let (id, age) = (id.to_owned(), Duration::from_secs(age));
        Instance { id, leads, linked, advertise: String::new(), age, watched: age, beat: 0 }
    }

    fn follows(id: &str) -> Role {
        Role::Follows(Some(id.to_owned()))
    }

    /// One that has a link.
    fn member(id: &str, now: Instant) -> Member {
        let mut member = Member::new(id.to_owned(), now);
        member.set_linked(true, now);
        member
    }

    fn leader(id: &str, now: Instant) -> Member {
        let mut member = member(id, now);
        member.tried(Some(Won::Anew), now);
        member
    }

    fn follower(id: &str, of: &str, now: Instant) -> Member {
        let mut member = member(id, now);
        assert_eq!(member.look(&[instance(of, true, true, 0)], now, now), MemberStep::Nothing);
        assert_eq!(member.role(), &follows(of));
        member
    }

    #[test]
    fn the_first_one_leads_and_the_next_one_follows() {
        let now = Instant::now();
        let mut a = member("a", now);
        assert_eq!(a.look(&[], now, now), MemberStep::Try);
        a.tried(Some(Won::Anew), now);
        assert_eq!((a.role(), a.holds()), (&Role::Leads, true));
        let mut b = member("b", now);
        b.tried(None, now);
        let both = [instance("a", true, true, 1), instance("b", false, true, 0)];
        assert_eq!(b.look(&both, now, now), MemberStep::Nothing);
        assert_eq!(b.role(), &follows("a"));
        assert_eq!(a.look(&both, now, now), MemberStep::Nothing);
    }

    /// Whether it leads at `now`.
    fn leads(member: &Member, now: Instant) -> bool {
        *member.role() == Role::Leads && member.until().is_none_or(|until| now < until)
    }

    #[test]
    fn one_alone_leads_whatever_has_the_lock() {
        let now = Instant::now();
        let mut a = leader("a", now);
        // Its old connection lives on in the database and has the lock; its link is down, too.
        a.disconnected(now);
        assert_eq!(a.reconnected(now), MemberStep::Try);
        a.tried(None, now);
        a.set_linked(false, now);
        let later = now + 10 * LINKLESS;
        let mut steps = Vec::new();
        for _ in 0..2 * TRIES {
            steps.push(a.look(&[instance("a", false, false, 0)], later, later));
            assert_eq!(a.role(), &Role::Leads);
            a.tried(None, now);
            assert_eq!(a.role(), &Role::Leads);
        }
        assert!(leads(&a, later), "nobody else is there for several looks");
        // In the end it closes that connection, also if another instance recorded the lead.
        assert_eq!((steps[0], steps.last()), (MemberStep::Try, Some(&MemberStep::Evict)));
        // Rows of those that are gone change nothing.
        let gone = [instance("a", false, false, 0), instance("b", true, true, 15)];
        assert_eq!(a.look(&gone, later, later), MemberStep::Evict);
        assert_eq!(a.role(), &Role::Leads);
        // One that follows without a lead does not lead.
        let other = [instance("a", false, true, 0), instance("b", false, false, 0)];
        a.look(&other, later, later);
        assert_eq!(a.role(), &Role::Leads);
        a.look(&[instance("b", true, true, 0)], later, later);
        assert_eq!(a.role(), &follows("b"));
    }

    #[test]
    fn one_that_finds_a_lock_and_nobody_who_has_it_leads_too() {
        let now = Instant::now();
        let mut a = member("a", now);
        a.tried(None, now);
        a.joined();
        assert_eq!(a.role(), &Role::Follows(None), "it may only be slow");
        assert_eq!(a.look(&[instance("old", true, true, 14)], now, now), MemberStep::Try);
        a.tried(None, now);
        // Then its row is old, and removed; the lock is held on.
        assert_eq!(a.look(&[instance("old", true, true, 15)], now, now), MemberStep::Evict);
        for _ in 0..TRIES {
            a.tried(None, now);
            a.look(&[instance("a", false, true, 0)], now, now);
        }
        assert!(leads(&a, now));
    }

    #[test]
    fn a_leader_whose_process_has_died_is_followed_when_its_lease_is_over() {
        let now = Instant::now();
        let mut b = follower("b", "a", now);
        assert_eq!(b.look(&[instance("a", true, true, 2)], now, now), MemberStep::Nothing);
        assert_eq!(b.role(), &follows("a"));
        for age in [3, 4] {
            assert_eq!(b.look(&[instance("a", true, true, age)], now, now), MemberStep::Nothing);
            assert_eq!(b.role(), &Role::Follows(None), "nothing is handed to it");
        }
        assert_eq!(b.look(&[instance("a", true, true, 5)], now, now), MemberStep::Try);
        // It was slow only: it has the lock.
        b.tried(None, now);
        assert_eq!(b.look(&[instance("a", true, true, 0)], now, now), MemberStep::Nothing);
        assert_eq!(b.role(), &follows("a"));
        // It has left.
        assert_eq!(b.look(&[instance("b", false, true, 0)], now, now), MemberStep::Try);
        b.tried(Some(Won::Anew), now);
        assert_eq!(b.role(), &Role::Leads);
        assert_eq!(b.look(&[instance("a", true, true, 16)], now, now), MemberStep::Nothing);
    }

    #[test]
    fn a_slow_leader_is_not_ended_before_it_is_silent() {
        let now = Instant::now();
        let mut b = follower("b", "a", now);
        for age in 5..15 {
            assert_eq!(b.look(&[instance("a", true, true, age)], now, now), MemberStep::Try);
            b.tried(None, now);
            assert_eq!(b.role(), &Role::Follows(None));
        }
        assert_eq!(b.look(&[instance("a", true, true, 15)], now, now), MemberStep::Evict);
    }

    #[test]
    fn of_several_that_say_they_lead_the_one_heard_of_last_does() {
        let now = Instant::now();
        // `a` was started again as `z`.
        let rows = [instance("a", true, true, 2), instance("z", true, true, 0)];
        let mut b = follower("b", "a", now);
        assert_eq!(b.look(&rows, now, now), MemberStep::Nothing);
        assert_eq!(b.role(), &follows("z"));
    }

    #[test]
    fn after_a_crash_of_the_leader_one_of_three_leads_and_stays() {
        let now = Instant::now();
        let (mut b, mut c) = (follower("b", "a", now), follower("c", "a", now));
        let silent = |b: bool, c: bool| {
            let a = instance("a", !b && !c, true, 20);
            [a, instance("b", b, true, 0), instance("c", c, true, 0)]
        };
        assert_eq!(b.look(&silent(false, false), now, now), MemberStep::Evict);
        assert_eq!(c.look(&silent(false, false), now, now), MemberStep::Evict);
        b.tried(Some(Won::Anew), now);
        c.tried(None, now);
        // With the lock the rows have changed, before the next beat of any.
        for _ in 0..3 * TRIES {
            assert_eq!(c.look(&silent(true, false), now, now), MemberStep::Nothing);
            assert_eq!(b.look(&silent(true, false), now, now), MemberStep::Nothing);
        }
        assert_eq!((b.role(), c.role()), (&Role::Leads, &follows("b")));
    }

    #[test]
    fn a_database_that_was_away_for_all_changes_no_lead() {
        let now = Instant::now();
        let (mut a, mut b) = (leader("a", now), follower("b", "a", now));
        a.disconnected(now);
        b.disconnected(now);
        assert_eq!((a.role(), b.role()), (&Role::Leads, &Role::Follows(None)));
        let rows = [instance("a", true, true, 60), instance("b", false, true, 0)];
        // The one that has followed is back first.
        assert_eq!(b.reconnected(now), MemberStep::Nothing);
        assert_eq!(b.look(&rows, now, now), MemberStep::Nothing);
        assert_eq!(a.reconnected(now), MemberStep::Try);
        a.tried(Some(Won::Anew), now);
        assert_eq!(b.look(&[instance("a", true, true, 0)], now, now), MemberStep::Nothing);
        assert_eq!((a.role(), b.role()), (&Role::Leads, &follows("a")));
        // Where the leader does not come back the other one waits in vain.
        b.disconnected(now);
        b.reconnected(now);
        assert_eq!(b.look(&rows, now + GRACE - STALE, now + GRACE - STALE), MemberStep::Nothing);
        assert_eq!(b.look(&rows, now + GRACE, now + GRACE), MemberStep::Evict);
        // Another one was faster than the leader.
        a.disconnected(now);
        a.reconnected(now);
        a.tried(None, now);
        assert_eq!(a.role(), &Role::Leads);
        assert_eq!(a.look(&[instance("b", true, true, 0)], now, now), MemberStep::Nothing);
        assert_eq!(a.role(), &follows("b"));
    }

    #[test]
    fn a_leader_without_a_link_gives_way_to_one_that_has_one() {
        let now = Instant::now();
        let mut a = leader("a", now);
        a.set_linked(false, now);
        let later = now + LINKLESS;
        a.set_linked(false, later);
        let both = |linked| [instance("a", true, false, 0), instance("b", false, linked, 0)];
        assert_eq!(
            a.look(&both(true), now, now),
            MemberStep::Nothing,
            "it may be a restart of the server"
        );
        assert_eq!(a.look(&both(false), later, later), MemberStep::Nothing, "nobody is better");
        assert_eq!(a.look(&both(true), later, later), MemberStep::Yield);
        a.yielded();
        assert_eq!(a.look(&both(true)[1..], later, later), MemberStep::Nothing, "b takes it");
        let mut b = follower("b", "a", now);
        let left = [instance("a", false, false, 0), instance("b", false, true, 0)];
        assert_eq!(b.look(&left, later, later), MemberStep::Try, "its row says so");
        a.set_linked(true, later);
        assert_eq!(a.look(&both(true)[1..], later, later), MemberStep::Try);
    }

    #[test]
    fn none_leads_longer_than_its_lease_whether_or_not_it_knows_of_others() {
        let now = Instant::now();
        let later = now + BEFORE;
        let alone = [instance("a", true, true, 0)];
        let both = [alone[0].clone(), instance("b", false, true, 0)];
        for known in [&alone[..], &both] {
            let mut a = leader("a", now);
            assert_eq!(a.look(known, now, later), MemberStep::Nothing);
            assert_eq!(a.until(), Some(now + LEASE), "from before its sign of life was sent");
            assert!(LEASE < FREE);
            // Another one may have ended its connection.
            a.disconnected(later);
            assert_eq!((a.role(), a.until()), (&Role::Leads, Some(later)));
            a.reconnected(later);
            a.tried(Some(Won::Again), later);
            a.look(known, later, later);
            assert_eq!(a.until(), Some(later + LEASE));
        }
        let mut sole = member("a", now);
        sole.set_sole();
        sole.joined();
        assert_eq!((sole.role(), sole.until()), (&Role::Leads, None));
    }

    #[test]
    fn one_alone_that_is_cut_off_has_stopped_before_one_that_starts_leads() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let mut a = leader("a", now);
        a.look(&[instance("a", true, true, 0)], now, now);
        // The database closes its connection, and `a` does not learn of it. `b` starts at once.
        let mut b = member("b", now);
        for age in 0..5 {
            assert_eq!(
                b.seek(&[instance("a", true, true, age)], now, now),
                Some(MemberStep::Nothing)
            );
        }
        assert_eq!(b.seek(&[instance("a", true, true, 5)], now, at(5)), Some(MemberStep::Try));
        b.tried(Some(Won::Anew), at(5));
        assert_eq!([&a, &b].map(|member| leads(member, at(5))), [false, true]);
    }

    #[test]
    fn one_that_was_forgotten_and_one_that_forgot_it_do_not_both_lead() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let (mut a, mut b) = (leader("a", now), follower("b", "a", now));
        // `b` is cut off; after a minute its row is gone, and then `a` is cut off.
        b.disconnected(now);
        a.look(&[instance("a", true, true, 0)], at(61), at(61));
        a.disconnected(at(62));
        // `b` is back, and waits for `a`, which has led; then it leads.
        assert_eq!(b.reconnected(at(70)), MemberStep::Nothing);
        let rows = |age| [instance("a", true, true, age), instance("b", false, true, 0)];
        assert_eq!(b.look(&rows(9), at(70), at(70)), MemberStep::Try);
        assert_eq!(b.look(&rows(20), at(81), at(81)), MemberStep::Evict);
        b.tried(Some(Won::Anew), at(81));
        assert_eq!([&a, &b].map(|member| leads(member, at(81))), [false, true]);
    }

    #[test]
    fn one_that_starts_without_the_database_does_not_lead_until_it_has_looked() {
        let now = Instant::now();
        let mut a = member("a", now);
        a.disconnected(now);
        a.joined();
        assert!(!leads(&a, now));
        assert_eq!(a.reconnected(now), MemberStep::Nothing);
        assert_eq!(a.look(&[instance("a", false, true, 0)], now, now), MemberStep::Try);
        a.tried(Some(Won::Anew), now);
        assert!(leads(&a, now));
    }

    #[test]
    fn one_that_comes_waits_for_the_lease_of_the_one_that_led() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let mut a = member("a", now);
        assert_eq!(a.seek(&[], now, now), Some(MemberStep::Try));
        let dead = |age| [instance("dead", true, true, age), instance("b", false, true, 0)];
        for known in [1, 2] {
            assert_eq!(a.seek(&dead(1)[..known], now, now), Some(MemberStep::Nothing));
            assert_eq!(a.seek(&dead(5)[..known], now, at(4)), Some(MemberStep::Try));
            assert_eq!(a.silent(), [Silent::of(&dead(5)[0])]);
        }
        let alive = [instance("alive", true, true, 0), instance("b", false, true, 0)];
        assert_eq!(a.seek(&alive, now, at(1)), None);
    }

    #[test]
    fn one_that_has_found_a_leader_follows_it_at_once() {
        let now = Instant::now();
        let mut a = follower("a", "b", now);
        a.joined();
        assert_eq!(a.role(), &follows("b"));
        let mut alone = member("a", now);
        alone.joined();
        assert_eq!(alone.role(), &Role::Follows(None));
    }

    #[test]
    fn a_clock_that_is_set_while_one_comes_ends_no_lease() {
        let now = Instant::now();
        let seen_for = |seconds| Instance {
            watched: Duration::from_secs(seconds),
            ..instance("b", true, true, 3600 + seconds)
        };
        let mut a = member("a", now);
        for seconds in [0, 3] {
            assert_eq!(a.seek(&[seen_for(seconds)], now, now), Some(MemberStep::Nothing));
            assert_eq!(a.look(&[seen_for(seconds)], now, now), MemberStep::Nothing);
            assert_eq!((a.silent(), leads(&a, now)), (&[][..], false));
        }
        assert_eq!(a.look(&[seen_for(4)], now, now), MemberStep::Evict);
        assert_eq!(a.silent(), [Silent::of(&seen_for(4))]);
    }

    const BEFORE: Duration = Duration::from_millis(700);

    /// What keeps an instance from the others for a while.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Fault {
        /// Its process stands still.
        Paused,
        /// Its connection is silent, and new ones are.
        Silent,
        /// The same, and the database has seen the end of the old one.
        HalfClosed,
        /// The clock of the database is set by so many seconds, and the process stands still.
        ClockSet(i64),
    }

    struct Node {
        member: Member,
        seen: Sightings,
        fault: Option<Fault>,
        /// Whether the database knows its connection, and it does.
        connected: [bool; 2],
        /// Since when it waits for the database.
        waits: Option<Instant>,
    }

    /// Three instances and their database, one look in a second each, with what `seat.rs` does.
    struct World {
        now: Instant,
        start: Instant,
        clock: i64,
        /// The microsecond that makes each stamp another one, also after the clock was set back.
        beats: i64,
        holder: Option<usize>,
        rows: Vec<Instance>,
        nodes: Vec<Node>,
    }

    impl World {
        fn new() -> Self {
            let now = Instant::now();
            let nodes = (0..3).map(|id: usize| Node {
                member: member(&id.to_string(), now),
                seen: Sightings::default(),
                fault: None,
                connected: [true; 2],
                waits: None,
            });
            let (nodes, rows) = (nodes.collect(), Vec::new());
            Self { now, start: now, clock: 0, beats: 0, holder: None, rows, nodes }
        }

        fn stamp(&self) -> i64 {
            i64::try_from((self.now - self.start).as_micros()).unwrap()
                + self.clock * 1_000_000
                + self.beats
        }

        fn is_led(&self, id: usize) -> bool {
            let silent = self.nodes[id].member.silent();
            let id = id.to_string();
            let mut others = self.rows.iter().filter(|row| row.id != id && row.leads);
            others.any(|row| !silent.contains(&Silent::of(row)))
        }

        fn release(&mut self, id: usize) {
            self.nodes[id].connected[0] = false;
            self.holder = self.holder.filter(|holder| *holder != id);
        }

        fn attempt(&mut self, id: usize) {
            let mut won = None;
            if self.holder.is_none_or(|holder| holder == id) && !self.is_led(id) {
                self.holder = Some(id);
                let name = id.to_string();
                let again = self.rows.iter().any(|row| row.id == name && row.leads);
                let stamp = self.stamp();
                for row in &mut self.rows {
                    row.leads = row.id == name;
                    row.beat = if row.leads { stamp } else { row.beat };
                }
                won = Some(if again { Won::Again } else { Won::Anew });
            }
            self.nodes[id].member.tried(won, self.now);
        }

        fn step(&mut self, id: usize, step: MemberStep) {
            match step {
                MemberStep::Nothing => {}
                MemberStep::Evict => {
                    if let Some(holder) = self.holder.filter(|holder| *holder != id)
                        && !self.is_led(id)
                    {
                        self.release(holder);
                    }
                    self.attempt(id);
                }
                MemberStep::Try => self.attempt(id),
                MemberStep::Yield => unreachable!("all have links"),
            }
        }

        fn beat(&mut self, id: usize) {
            self.beats += 1;
            let now = self.now;
            let node = &mut self.nodes[id];
            match node.fault {
                Some(Fault::Paused | Fault::ClockSet(_)) => return,
                Some(Fault::Silent | Fault::HalfClosed) => {
                    let since = *node.waits.get_or_insert(now);
                    if node.connected[1] && now - since >= Duration::from_secs(10) {
                        node.connected[1] = false;
                        node.member.disconnected(now);
                    }
                    return;
                }
                None => node.waits = None,
            }
            if node.connected == [false, true] {
                node.connected[1] = false;
                node.member.disconnected(now);
                return;
            }
            if !node.connected[1] {
                // The old connection is ended first.
                self.release(id);
                self.nodes[id].connected = [true; 2];
                let step = self.nodes[id].member.reconnected(now);
                self.step(id, step);
            }
            let (name, stamp) = (id.to_string(), self.stamp());
            let leads = self.nodes[id].member.role() == &Role::Leads;
            let is_another = self.rows.iter().any(|row| row.leads && row.id != name);
            match self.rows.iter_mut().find(|row| row.id == name) {
                Some(row) => (row.leads, row.beat) = (leads && (row.leads || !is_another), stamp),
                None => self.rows.push(Instance {
                    beat: stamp,
                    ..instance(&name, leads && !is_another, true, 0)
                }),
            }
            let age = |row: &Instance| {
                Duration::from_micros(u64::try_from(stamp - row.beat).unwrap_or(0))
            };
            let rows = self.rows.iter().map(|row| Instance { age: age(row), ..row.clone() });
            let rows = rows.collect();
            // As often as can be: an instance that is away soon knows of no other one, and none of it.
            if self.nodes[id].member.holds() {
                self.rows.retain(|row| stamp - row.beat < 60_000_000);
            }
            let node = &mut self.nodes[id];
            let rows = node.seen.aged(rows, now);
            let step = node.member.look(&rows, now, now);
            self.step(id, step);
        }

        fn leaders(&self) -> Vec<usize> {
            (0..self.nodes.len()).filter(|id| leads(&self.nodes[*id].member, self.now)).collect()
        }

        /// Lets a quarter of a second pass.
        fn pass(&mut self, quarter: u64) {
            self.now += Duration::from_millis(250);
            for id in 0..self.nodes.len() {
                // The instance learns at once that the database has closed it, unless the network is silent.
                let node = &self.nodes[id];
                if quarter % 4 == id as u64
                    || node.fault.is_none() && node.connected == [false, true]
                {
                    self.beat(id);
                }
                assert!(self.leaders().len() < 2, "{:?} lead", self.leaders());
            }
        }
    }

    fn fault() -> impl Strategy<Value = Fault> {
        prop_oneof![
            Just(Fault::Paused),
            Just(Fault::Silent),
            Just(Fault::HalfClosed),
            (-3600..3600_i64).prop_map(Fault::ClockSet),
        ]
    }

    proptest! {
        #[test]
        fn no_two_lead_at_any_moment_and_one_does_in_the_end(
            faults in collection::vec((0..3_usize, fault(), 1..400_u64, 0..120_u64), 1..12)
        ) {
            let mut world = World::new();
            for (id, fault, length, calm) in faults {
                // It most often meets the one that leads.
                let id = world.leaders().first().copied().filter(|_| length % 3 > 0).unwrap_or(id);
                world.nodes[id].fault = Some(fault);
                match fault {
                    Fault::HalfClosed => world.release(id),
                    Fault::ClockSet(seconds) => world.clock += seconds,
                    Fault::Paused | Fault::Silent => {}
                }
                (0..length).for_each(|quarter| world.pass(quarter));
                world.nodes[id].fault = None;
                (0..calm).for_each(|quarter| world.pass(quarter));
            }
            (0..200).for_each(|quarter| world.pass(quarter));
            let leaders = world.leaders();
            prop_assert_eq!(leaders.len(), 1);
            let leader = leaders[0].to_string();
            for (id, node) in world.nodes.iter().enumerate() {
                if id != leaders[0] {
                    prop_assert_eq!(node.member.role(), &follows(&leader));
                }
            }
        }
    }
}
