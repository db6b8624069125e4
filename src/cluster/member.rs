//! Decides which of the instances of a component leads.
//!
//! The lead is a lock in the database that one connection holds. The database gives it free when the leader's process
//! ends. A leader whose machine is gone in silence is found by the age of its last sign of life. A leader without a link
//! to the XMPP server gives the lead to an instance that has one.
//!
//! A leader leads until it sees another one that does. A lock that is taken says nothing, for an old connection
//! of this instance may have it. So an instance alone always serves.
//!
//! A state machine: what the database says and the time go in, steps come out.

use std::time::Duration;

use tokio::time::Instant;

use crate::registry::store::Instance;

/// How long a leader may be without a link where another instance has one.
const LINKLESS: Duration = Duration::from_secs(10);
/// A leader that gave no sign of life for so long may be dead: the lock tells, and nothing is handed to it meanwhile.
const STALE: Duration = Duration::from_secs(3);
/// How long one that has followed leaves the lock to the one that has led, after the database was away for both.
const GRACE: Duration = Duration::from_secs(10);
/// After so many tries without success, and no leader in sight, nobody who serves has the lock.
const TRIES: u32 = 5;

/// The instance that handles the stanzas of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// This instance.
    Leads,
    /// Another one leads; its id, if known.
    Follows(Option<String>),
}

/// An operation to run on the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing.
    Nothing,
    /// Take the lock if it is free: the result goes to [`Member::tried`].
    Try,
    /// End the connection that holds the lock, then continue as for [`Step::Try`].
    Evict,
    /// Release the lock.
    Yield,
}

/// This instance among the others.
#[derive(Debug)]
pub(super) struct Member {
    id: String,
    role: Role,
    /// Whether it has the lock on the connection that there is now.
    holds: bool,
    /// Since when there is no link.
    linkless: Option<Instant>,
    /// Whether another instance had a link when it was last looked.
    is_another_linked: bool,
    /// Since when there is a connection again.
    back_since: Option<Instant>,
    /// Tries without success since a leader was seen.
    failed: u32,
}

impl Member {
    /// Creates an instance that leads until another one is seen.
    pub(super) fn new(id: String, now: Instant) -> Self {
        Self {
            id,
            role: Role::Leads,
            holds: false,
            linkless: Some(now),
            is_another_linked: false,
            back_since: None,
            failed: 0,
        }
    }

    pub(super) fn role(&self) -> &Role {
        &self.role
    }

    /// Returns whether it holds the lock.
    pub(super) fn holds(&self) -> bool {
        self.holds
    }

    /// The connection to the database is lost, and with it the lock. Nobody else is known to have it.
    pub(super) fn disconnected(&mut self) {
        self.holds = false;
        self.failed = 0;
        if let Role::Follows(leader) = &mut self.role {
            *leader = None;
        }
    }

    /// There is a connection again. One that leads takes the lock before others see that it has it not.
    pub(super) fn reconnected(&mut self, now: Instant) -> Step {
        self.back_since = Some(now);
        if self.role == Role::Leads { Step::Try } else { Step::Nothing }
    }

    /// Notes that the link came up or was lost.
    pub(super) fn set_linked(&mut self, linked: bool, now: Instant) {
        match (linked, self.linkless) {
            (true, _) => self.linkless = None,
            (false, None) => self.linkless = Some(now),
            (false, Some(_)) => {}
        }
    }

    /// Returns whether another one, which has a link, should lead.
    fn is_worse(&self, now: Instant) -> bool {
        self.is_another_linked && self.linkless.is_some_and(|since| now - since >= LINKLESS)
    }

    /// Takes what the instances have said of themselves.
    pub(super) fn look(&mut self, instances: &[Instance], now: Instant) -> Step {
        let others = || instances.iter().filter(|other| other.id != self.id);
        let leader = others().filter(|other| other.leads).min_by_key(|other| other.age).cloned();
        self.is_another_linked = others().any(|other| other.is_alive() && other.linked);
        if self.holds {
            self.failed = 0;
            return if self.is_worse(now) { Step::Yield } else { Step::Nothing };
        }
        let step = match leader {
            Some(leader) if leader.age < STALE => {
                self.role = Role::Follows(Some(leader.id));
                self.failed = 0;
                return Step::Nothing;
            }
            Some(leader) if leader.is_alive() => {
                self.failed = 0;
                Step::Try
            }
            Some(_) => Step::Evict,
            None if self.failed >= TRIES => Step::Evict,
            None => Step::Try,
        };
        if let Role::Follows(leader) = &mut self.role {
            *leader = None;
            if self.back_since.is_some_and(|since| now - since < GRACE) {
                return Step::Nothing;
            }
        }
        if self.is_worse(now) {
            return Step::Nothing;
        }
        if self.failed >= TRIES {
            self.role = Role::Leads;
        }
        step
    }

    /// Another one has given the lead free.
    pub(super) fn lead_is_free(&self, now: Instant) -> Step {
        if self.holds || self.is_worse(now) { Step::Nothing } else { Step::Try }
    }

    /// The lock was free, and it is ours now, or some connection has it.
    pub(super) fn tried(&mut self, won: bool) {
        self.holds = won;
        if won {
            self.role = Role::Leads;
            self.failed = 0;
        } else {
            self.failed += 1;
        }
    }

    /// Ends the joining. A leader without a sign of life meanwhile, but with a recent one, is waited for.
    pub(super) fn joined(&mut self, instances: &[Instance]) {
        let leads = |other: &Instance| other.id != self.id && other.leads && other.is_alive();
        if self.role == Role::Leads && !self.holds && instances.iter().any(leads) {
            self.role = Role::Follows(None);
        }
    }

    /// The lock was given free.
    pub(super) fn yielded(&mut self) {
        self.holds = false;
        self.failed = 0;
        self.role = Role::Follows(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(id: &str, leads: bool, linked: bool, age: u64) -> Instance {
        let (id, age) = (id.to_owned(), Duration::from_secs(age));
        Instance { id, leads, linked, advertise: String::new(), age }
    }

    fn follows(id: &str) -> Role {
        Role::Follows(Some(id.to_owned()))
    }

    /// Creates one that has a link.
    fn member(id: &str, now: Instant) -> Member {
        let mut member = Member::new(id.to_owned(), now);
        member.set_linked(true, now);
        member
    }

    fn leader(id: &str, now: Instant) -> Member {
        let mut member = member(id, now);
        member.tried(true);
        member
    }

    fn follower(id: &str, of: &str, now: Instant) -> Member {
        let mut member = member(id, now);
        assert_eq!(member.look(&[instance(of, true, true, 0)], now), Step::Nothing);
        assert_eq!(member.role(), &follows(of));
        member
    }

    #[test]
    fn the_first_one_leads_and_the_next_one_follows() {
        let now = Instant::now();
        let mut a = member("a", now);
        assert_eq!(a.look(&[], now), Step::Try);
        a.tried(true);
        assert_eq!((a.role(), a.holds()), (&Role::Leads, true));
        let mut b = member("b", now);
        b.tried(false);
        let both = [instance("a", true, true, 1), instance("b", false, true, 0)];
        assert_eq!(b.look(&both, now), Step::Nothing);
        assert_eq!(b.role(), &follows("a"));
        assert_eq!(a.look(&both, now), Step::Nothing);
    }

    #[test]
    fn one_alone_leads_whatever_has_the_lock() {
        let now = Instant::now();
        let mut a = leader("a", now);
        // Its old connection lives on in the database and has the lock; its link is down, too.
        a.disconnected();
        assert_eq!(a.reconnected(now), Step::Try);
        a.tried(false);
        a.set_linked(false, now);
        let later = now + 10 * LINKLESS;
        let mut steps = Vec::new();
        for _ in 0..2 * TRIES {
            steps.push(a.look(&[instance("a", false, false, 0)], later));
            assert_eq!(a.role(), &Role::Leads);
            a.tried(false);
            assert_eq!(a.role(), &Role::Leads);
        }
        // It ends that connection at last, whichever instance the rows name as the leader.
        assert_eq!((steps[0], steps.last()), (Step::Try, Some(&Step::Evict)));
        // Rows of vanished instances change nothing.
        let gone = [instance("a", false, false, 0), instance("b", true, true, 15)];
        assert_eq!(a.look(&gone, later), Step::Evict);
        assert_eq!(a.role(), &Role::Leads);
        // A follower without a leader does not lead.
        let other = [instance("a", false, true, 0), instance("b", false, false, 0)];
        a.look(&other, later);
        assert_eq!(a.role(), &Role::Leads);
        a.look(&[instance("b", true, true, 0)], later);
        assert_eq!(a.role(), &follows("b"));
    }

    #[test]
    fn one_that_finds_a_lock_and_nobody_who_has_it_leads_too() {
        let now = Instant::now();
        let mut a = member("a", now);
        a.tried(false);
        a.joined(&[instance("a", false, true, 0), instance("old", true, true, 15)]);
        assert_eq!(a.role(), &Role::Leads);
        a.joined(&[instance("a", false, true, 0), instance("old", true, true, 14)]);
        assert_eq!(a.role(), &Role::Follows(None), "it may only be slow");
        assert_eq!(a.look(&[instance("old", true, true, 14)], now), Step::Try);
        a.tried(false);
        // Then its row is old, and removed; the lock is held on.
        assert_eq!(a.look(&[instance("old", true, true, 15)], now), Step::Evict);
        for _ in 0..TRIES {
            a.tried(false);
            a.look(&[instance("a", false, true, 0)], now);
        }
        assert_eq!(a.role(), &Role::Leads);
    }

    #[test]
    fn a_leader_whose_process_has_died_is_followed_at_once() {
        let now = Instant::now();
        let mut b = follower("b", "a", now);
        assert_eq!(b.look(&[instance("a", true, true, 2)], now), Step::Nothing);
        assert_eq!(b.role(), &follows("a"));
        assert_eq!(b.look(&[instance("a", true, true, 3)], now), Step::Try);
        assert_eq!(b.role(), &Role::Follows(None), "nothing is handed to it");
        // It was slow only: it has the lock.
        b.tried(false);
        assert_eq!(b.look(&[instance("a", true, true, 0)], now), Step::Nothing);
        assert_eq!(b.role(), &follows("a"));
        // It has left.
        assert_eq!(b.look(&[instance("b", false, true, 0)], now), Step::Try);
        b.tried(true);
        assert_eq!(b.role(), &Role::Leads);
        assert_eq!(b.look(&[instance("a", true, true, 16)], now), Step::Nothing);
    }

    #[test]
    fn a_slow_leader_is_not_ended_before_it_is_silent() {
        let now = Instant::now();
        let mut b = follower("b", "a", now);
        for age in 3..15 {
            assert_eq!(b.look(&[instance("a", true, true, age)], now), Step::Try);
            b.tried(false);
            assert_eq!(b.role(), &Role::Follows(None));
        }
        assert_eq!(b.look(&[instance("a", true, true, 15)], now), Step::Evict);
    }

    #[test]
    fn of_several_that_say_they_lead_the_one_heard_of_last_does() {
        let now = Instant::now();
        // `a` was started again as `z`.
        let rows = [instance("a", true, true, 2), instance("z", true, true, 0)];
        let mut b = follower("b", "a", now);
        assert_eq!(b.look(&rows, now), Step::Nothing);
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
        assert_eq!(b.look(&silent(false, false), now), Step::Evict);
        assert_eq!(c.look(&silent(false, false), now), Step::Evict);
        b.tried(true);
        c.tried(false);
        // With the lock the rows have changed, before the next beat of any.
        for _ in 0..3 * TRIES {
            assert_eq!(c.look(&silent(true, false), now), Step::Nothing);
            assert_eq!(b.look(&silent(true, false), now), Step::Nothing);
        }
        assert_eq!((b.role(), c.role()), (&Role::Leads, &follows("b")));
    }

    #[test]
    fn a_database_that_was_away_for_all_changes_no_lead() {
        let now = Instant::now();
        let (mut a, mut b) = (leader("a", now), follower("b", "a", now));
        a.disconnected();
        b.disconnected();
        assert_eq!((a.role(), b.role()), (&Role::Leads, &Role::Follows(None)));
        let rows = [instance("a", true, true, 60), instance("b", false, true, 0)];
        // The follower is back first.
        assert_eq!(b.reconnected(now), Step::Nothing);
        assert_eq!(b.look(&rows, now), Step::Nothing);
        assert_eq!(a.reconnected(now), Step::Try);
        a.tried(true);
        assert_eq!(b.look(&[instance("a", true, true, 0)], now), Step::Nothing);
        assert_eq!((a.role(), b.role()), (&Role::Leads, &follows("a")));
        // Where the leader does not come back the other one waits in vain.
        b.disconnected();
        b.reconnected(now);
        assert_eq!(b.look(&rows, now + GRACE - STALE), Step::Nothing);
        assert_eq!(b.look(&rows, now + GRACE), Step::Evict);
        // Another one was faster than the leader.
        a.disconnected();
        a.reconnected(now);
        a.tried(false);
        assert_eq!(a.role(), &Role::Leads);
        assert_eq!(a.look(&[instance("b", true, true, 0)], now), Step::Nothing);
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
        assert_eq!(a.look(&both(true), now), Step::Nothing, "it may be a restart of the server");
        assert_eq!(a.look(&both(false), later), Step::Nothing, "nobody is better");
        assert_eq!(a.look(&both(true), later), Step::Yield);
        a.yielded();
        assert_eq!(a.lead_is_free(later), Step::Nothing, "its own notification comes back");
        assert_eq!(a.look(&both(true)[1..], later), Step::Nothing, "b takes it");
        let b = follower("b", "a", now);
        assert_eq!(b.lead_is_free(later), Step::Try);
        a.set_linked(true, later);
        assert_eq!(a.look(&both(true)[1..], later), Step::Try);
        assert_eq!(a.lead_is_free(later), Step::Try);
    }
}
