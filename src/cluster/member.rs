//! Decides which of the instances of a component leads.
//!
//! The lead is a lock in the database that one connection holds. The database gives it free when the leader's process
//! ends. A leader whose machine is gone in silence is found by the age of its last sign of life. A leader without a link
//! to the XMPP server gives the lead to an instance that has one.
//!
//! A state machine: what the database says and the time go in, steps come out.

use std::time::Duration;

use tokio::time::Instant;

use crate::registry::store::Instance;

/// How long a leader may be without a link where another instance has one.
const LINKLESS: Duration = Duration::from_secs(10);

/// Who handles the stanzas of all instances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// This instance.
    Leads,
    /// Another one, if it is known which.
    Follows(Option<String>),
}

/// What to ask of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing.
    Nothing,
    /// Take the lock if it is free: the result goes to [`Member::tried`].
    Try,
    /// End the connection that holds the lock, then as [`Step::Try`].
    Evict,
    /// Give the lock free.
    Yield,
}

/// One instance among the others.
#[derive(Debug)]
pub(super) struct Member {
    id: String,
    role: Role,
    /// Whether it has the lock on the connection that there is now.
    holds: bool,
    /// Since when there is no link.
    linkless: Option<Instant>,
}

impl Member {
    /// An instance that leads until it is told otherwise.
    pub(super) fn new(id: String, now: Instant) -> Self {
        Self { id, role: Role::Leads, holds: false, linkless: Some(now) }
    }

    pub(super) fn role(&self) -> &Role {
        &self.role
    }

    /// Whether it has the lock.
    pub(super) fn holds(&self) -> bool {
        self.holds
    }

    /// The connection to the database is lost, and with it the lock. Nobody else is known to have it.
    pub(super) fn disconnected(&mut self) {
        self.holds = false;
        if let Role::Follows(leader) = &mut self.role {
            *leader = None;
        }
    }

    /// The link came up or was lost.
    pub(super) fn set_linked(&mut self, linked: bool, now: Instant) {
        match (linked, self.linkless) {
            (true, _) => self.linkless = None,
            (false, None) => self.linkless = Some(now),
            (false, Some(_)) => {}
        }
    }

    /// Takes what the instances have said of themselves.
    pub(super) fn look(&mut self, instances: &[Instance], now: Instant) -> Step {
        let others = || instances.iter().filter(|other| other.id != self.id && other.is_alive());
        let another_has_a_link = others().any(|other| other.linked);
        if self.holds {
            let long = self.linkless.is_some_and(|since| now - since >= LINKLESS);
            return if long && another_has_a_link { Step::Yield } else { Step::Nothing };
        }
        let leader = others().find(|other| other.leads).map(|other| other.id.clone());
        if let Some(leader) = leader {
            self.role = Role::Follows(Some(leader));
            return Step::Nothing;
        }
        if let Role::Follows(leader) = &mut self.role {
            *leader = None;
        }
        if self.linkless.is_some_and(|since| now - since >= LINKLESS) && another_has_a_link {
            return Step::Nothing;
        }
        let silent = |other: &Instance| other.id != self.id && other.leads && !other.is_alive();
        if instances.iter().any(silent) { Step::Evict } else { Step::Try }
    }

    /// The lock was free, and it is ours now, or another has it.
    pub(super) fn tried(&mut self, won: bool) {
        self.holds = won;
        match (won, &self.role) {
            (true, _) => self.role = Role::Leads,
            (false, Role::Leads) => self.role = Role::Follows(None),
            (false, Role::Follows(_)) => {}
        }
    }

    /// The lock was given free.
    pub(super) fn yielded(&mut self) {
        self.holds = false;
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

    #[test]
    fn the_first_one_leads_and_the_next_one_follows() {
        let now = Instant::now();
        let mut a = Member::new("a".to_owned(), now);
        assert_eq!(a.look(&[], now), Step::Try);
        a.tried(true);
        assert_eq!((a.role(), a.holds()), (&Role::Leads, true));
        let mut b = Member::new("b".to_owned(), now);
        assert_eq!(b.look(&[instance("b", false, false, 0)], now), Step::Try);
        b.tried(false);
        assert_eq!(b.role(), &Role::Follows(None), "another has the lock");
        let both = [instance("a", true, true, 1), instance("b", false, true, 0)];
        assert_eq!(b.look(&both, now), Step::Nothing);
        assert_eq!(b.role(), &follows("a"));
        assert_eq!(a.look(&both, now), Step::Nothing);
    }

    #[test]
    fn a_leader_that_is_gone_is_followed_by_another() {
        let now = Instant::now();
        let mut b = Member::new("b".to_owned(), now);
        b.look(&[instance("a", true, true, 0)], now);
        assert_eq!(b.role(), &follows("a"));
        // It has left, or its process has ended and the row says so still: the lock decides.
        assert_eq!(b.look(&[instance("b", false, true, 0)], now), Step::Try);
        assert_eq!(b.role(), &Role::Follows(None));
        // In silence.
        assert_eq!(b.look(&[instance("a", true, true, 15)], now), Step::Evict);
        b.tried(true);
        assert_eq!(b.role(), &Role::Leads);
        assert_eq!(b.look(&[instance("a", true, true, 16)], now), Step::Nothing);
    }

    #[test]
    fn a_database_that_is_away_changes_no_lead() {
        let now = Instant::now();
        let mut a = Member::new("a".to_owned(), now);
        a.tried(true);
        a.disconnected();
        assert_eq!((a.role(), a.holds()), (&Role::Leads, false));
        assert_eq!(a.look(&[instance("a", true, true, 3)], now), Step::Try);
        // Another one was faster.
        let mut late = Member::new("a".to_owned(), now);
        late.tried(true);
        late.disconnected();
        late.tried(false);
        assert_eq!(late.role(), &Role::Follows(None));
        let mut b = Member::new("b".to_owned(), now);
        b.look(&[instance("a", true, true, 0)], now);
        b.disconnected();
        assert_eq!(b.role(), &Role::Follows(None));
    }

    #[test]
    fn a_leader_without_a_link_gives_way_to_one_that_has_one() {
        let now = Instant::now();
        let mut a = Member::new("a".to_owned(), now);
        a.tried(true);
        a.set_linked(true, now);
        a.set_linked(false, now);
        let later = now + LINKLESS;
        a.set_linked(false, later);
        let both = |linked| [instance("a", true, false, 0), instance("b", false, linked, 0)];
        assert_eq!(a.look(&both(true), now), Step::Nothing, "it may be a restart of the server");
        assert_eq!(a.look(&both(false), later), Step::Nothing, "nobody is better");
        assert_eq!(a.look(&both(true), later), Step::Yield);
        a.yielded();
        assert_eq!(a.look(&both(true)[1..], later), Step::Nothing, "b takes it");
        a.set_linked(true, later);
        assert_eq!(a.look(&both(true)[1..], later), Step::Try);
    }
}
