//! Places for the sessions that peers start: a limit for each peer, one for all, and separate places for known peers.
//!
//! A session holds a place from its arrival to its end. It is unproven until its peer has shown its key (or proved the
//! password). A stranger is a peer without a remembered key; unproven sessions of strangers never take another peer's
//! place.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jid::BareJid;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The most sessions.
#[derive(Clone, Copy, Debug)]
struct PlaceLimits {
    /// Unproven sessions of strangers: for each, and for all together.
    strangers: (usize, usize),
    /// Sessions of known peers: for each, and for all together.
    known: (usize, usize),
}

const LIMITS: PlaceLimits = PlaceLimits { strangers: (8, 32), known: (16, 128) };
/// A session that is unproven for this long gives way to a newer one of its kind if all places are taken.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most peers that are remembered as proven.
const PROVEN: usize = 256;
/// The most places in all.
pub(super) const MOST: usize = LIMITS.strangers.1 + LIMITS.known.1;

/// The session has no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoPlace;

#[derive(Debug)]
struct HeldPlaces {
    peer: BareJid,
    /// Whether the place is one of those for strangers.
    stranger: bool,
    /// Whether this session's peer has shown its key, or proved the password.
    proven: bool,
    since: Instant,
    given_way: CancellationToken,
}

/// The places in use.
#[derive(Debug, Default)]
struct Table {
    held: BTreeMap<u64, HeldPlaces>,
    next: u64,
    /// Proven peers, the most recent at the end.
    proven: VecDeque<BareJid>,
}

impl Table {
    /// Gives a place to a session of `peer`. `remembered` is asked at most once.
    fn admit(
        &mut self,
        peer: &BareJid,
        remembered: impl FnOnce() -> bool,
        now: Instant,
    ) -> Result<(u64, CancellationToken), NoPlace> {
        let of_peer = self.held.values().filter(|held| held.peer == *peer).count();
        if of_peer >= LIMITS.known.0 {
            return Err(NoPlace);
        }
        let stranger = !self.proven.contains(peer) && !remembered();
        let (each, all) = if stranger { LIMITS.strangers } else { LIMITS.known };
        let of_kind = self.held.values().filter(|held| held.stranger == stranger).count();
        if of_peer >= each || (of_kind >= all && !self.make_room(stranger, now)) {
            return Err(NoPlace);
        }
        let number = self.next;
        self.next += 1;
        let given_way = CancellationToken::new();
        let held = HeldPlaces {
            peer: peer.clone(),
            stranger,
            proven: false,
            since: now,
            given_way: given_way.clone(),
        };
        self.held.insert(number, held);
        Ok((number, given_way))
    }

    /// Ends the oldest unproven session of the peer with the most places, among strangers or among known peers.
    fn make_room(&mut self, stranger: bool, now: Instant) -> bool {
        let mut counts: BTreeMap<&BareJid, usize> = BTreeMap::new();
        for held in self.held.values().filter(|held| held.stranger == stranger) {
            *counts.entry(&held.peer).or_default() += 1;
        }
        let oldest = self
            .held
            .iter()
            .filter(|(_, held)| held.stranger == stranger && !held.proven)
            .filter(|(_, held)| now.duration_since(held.since) >= PATIENCE)
            .max_by_key(|(number, held)| (counts.get(&held.peer), std::cmp::Reverse(*number)))
            .map(|(number, _)| *number);
        let Some(held) = oldest.and_then(|number| self.held.remove(&number)) else { return false };
        held.given_way.cancel();
        true
    }

    /// Notes that the session's peer has shown its key, or proved the password.
    fn prove(&mut self, number: u64) {
        let Some(held) = self.held.get_mut(&number) else { return };
        (held.stranger, held.proven) = (false, true);
        let peer = held.peer.clone();
        self.proven.retain(|other| *other != peer);
        if self.proven.len() >= PROVEN {
            self.proven.pop_front();
        }
        self.proven.push_back(peer);
    }
}

/// The places of an endpoint. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(Arc<Mutex<Table>>);

impl Places {
    /// Gives a place to a session of `peer`, until it is dropped.
    pub(super) fn admit(
        &self,
        peer: &BareJid,
        remembered: impl FnOnce() -> bool,
    ) -> Result<SessionPlace, NoPlace> {
        let (number, given_way) =
            self.with(|table| table.admit(peer, remembered, Instant::now()))?;
        Ok(SessionPlace { places: self.clone(), number, given_way })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Table) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The place of one session. Dropping it frees the place.
#[derive(Debug)]
pub(super) struct SessionPlace {
    places: Places,
    number: u64,
    given_way: CancellationToken,
}

impl SessionPlace {
    /// Notes that the session's peer has shown its key, or proved the password.
    pub(super) fn prove(&self) {
        self.places.with(|table| table.prove(self.number));
    }

    /// Returns a token that is cancelled when the place goes to a newer session.
    pub(super) fn given_way(&self) -> CancellationToken {
        self.given_way.clone()
    }
}

impl Drop for SessionPlace {
    fn drop(&mut self) {
        self.places.with(|table| table.held.remove(&self.number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: impl std::fmt::Display) -> BareJid {
        BareJid::new(&format!("{name}@example.org")).unwrap()
    }

    fn stranger(table: &mut Table, name: &str, now: Instant) -> Result<u64, NoPlace> {
        table.admit(&user(name), || false, now).map(|(number, _)| number)
    }

    fn friend(table: &mut Table, name: &str, now: Instant) -> Result<u64, NoPlace> {
        table.admit(&user(name), || true, now).map(|(number, _)| number)
    }

    #[test]
    fn a_strangers_sessions_leave_places_for_other_strangers_and_for_known_peers() {
        let (mut table, now) = (Table::default(), Instant::now());
        let got = (0..50).filter(|_| stranger(&mut table, "mallory", now).is_ok()).count();
        assert_eq!(got, LIMITS.strangers.0);
        assert!(stranger(&mut table, "carol", now).is_ok());
        assert!(friend(&mut table, "alice", now).is_ok());
        // Many strangers fill their places, but not those of known peers.
        for n in 0..1000 {
            let _ = stranger(&mut table, &format!("m{n}"), now);
        }
        assert_eq!(table.held.len(), LIMITS.strangers.1 + 1);
        for _ in 1..LIMITS.known.0 {
            assert!(friend(&mut table, "alice", now).is_ok());
        }
        assert_eq!(friend(&mut table, "alice", now), Err(NoPlace));
        assert!(friend(&mut table, "bob", now).is_ok());
    }

    #[test]
    fn a_new_stranger_takes_the_oldest_place_of_whoever_has_most_after_a_while_and_no_proven_one() {
        let (mut table, now) = (Table::default(), Instant::now());
        let (quiet, quiet_way) = table.admit(&user("quiet"), || false, now).unwrap();
        let (proven, proven_way) = table.admit(&user("proven"), || false, now).unwrap();
        table.prove(proven);
        let mut ways = Vec::new();
        for n in 0..LIMITS.strangers.1 - 1 {
            let name = user(format!("m{}", n % 4));
            ways.push(table.admit(&name, || false, now).unwrap().1);
        }
        assert_eq!(stranger(&mut table, "carol", now), Err(NoPlace));
        let later = now + PATIENCE;
        // Until each of the four has one left.
        for n in 0..ways.len() - 4 {
            assert!(stranger(&mut table, &format!("late{n}"), later).is_ok());
            assert_eq!(ways.iter().filter(|way| way.is_cancelled()).count(), n + 1);
            assert!(table.held.contains_key(&quiet));
        }
        assert!(!quiet_way.is_cancelled() && !proven_way.is_cancelled());
        assert_eq!(table.held.values().filter(|held| held.stranger).count(), LIMITS.strangers.1);
    }

    #[test]
    fn known_peers_that_prove_nothing_any_more_do_not_shut_out_a_friend() {
        let (mut table, now) = (Table::default(), Instant::now());
        let (quiet, quiet_way) = table.admit(&user("quiet"), || true, now).unwrap();
        let (proven, proven_way) = table.admit(&user("proven"), || true, now).unwrap();
        table.prove(proven);
        let mut ways = Vec::new();
        // Eight accounts that have once proved themselves.
        for n in 0..LIMITS.known.1 - 2 {
            ways.push(table.admit(&user(format!("m{}", n % 8)), || true, now).unwrap().1);
        }
        assert_eq!(friend(&mut table, "alice", now), Err(NoPlace));
        let later = now + PATIENCE;
        assert!(friend(&mut table, "alice", later).is_ok());
        assert!(friend(&mut table, "bob", later).is_ok());
        assert_eq!(ways.iter().filter(|way| way.is_cancelled()).count(), 2);
        assert!(table.held.contains_key(&quiet) && table.held.contains_key(&proven));
        assert!(!quiet_way.is_cancelled() && !proven_way.is_cancelled());
        // Sessions that have proved themselves never give way.
        for number in table.held.keys().copied().collect::<Vec<_>>() {
            table.prove(number);
        }
        assert_eq!(friend(&mut table, "carol", later + PATIENCE), Err(NoPlace));
    }

    #[test]
    fn a_peer_that_has_proved_itself_is_known_from_then_on() {
        let (mut table, now) = (Table::default(), Instant::now());
        let first = stranger(&mut table, "alice", now).unwrap();
        table.prove(first);
        table.held.remove(&first);
        for n in 0..1000 {
            let _ = stranger(&mut table, &format!("m{n}"), now);
        }
        for _ in 0..LIMITS.known.0 {
            assert!(stranger(&mut table, "alice", now).is_ok());
        }
        // This memory is bounded.
        for n in 0..PROVEN {
            let number = friend(&mut table, &format!("f{n}"), now).unwrap();
            table.prove(number);
            table.held.remove(&number);
        }
        assert_eq!(table.proven.len(), PROVEN);
        assert!(!table.proven.contains(&user("alice")));
    }

    #[test]
    fn a_place_is_free_again_when_its_session_is_over() {
        let places = Places::default();
        let held: Vec<_> =
            (0..LIMITS.strangers.0).map(|_| places.admit(&user("a"), || false).unwrap()).collect();
        assert!(places.admit(&user("a"), || false).is_err());
        drop(held);
        assert!(places.admit(&user("a"), || false).is_ok());
    }
}
