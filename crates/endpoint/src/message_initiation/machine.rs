//! Proposed sessions in both roles: what a message about one means.
//!
//! ```text
//! initiator, at one address                       callee, at several
//!   propose id  →  (the bare JID)                   ring, or proceed at once, or say nothing
//!   ←  ringing id     News::Ringing
//!   ←  proceed id     News::Proceeds                from the first one: session-initiate with sid = id to it alone
//!   ←  reject id      News::Rejected
//!   retract id  →                                   forget it
//! ```
//!
//! An answer counts if it names the id of an open proposal and comes from a resource of the user that got it. The first
//! proceed or reject decides. A resource that proceeds has a minute to get its session. Of two proposals that cross, the
//! one with the lower id stays.
//!
//! [`Proposals`] decides and does no I/O: messages and the time go in, news come out. Its caller decides whether a proposal
//! is answered at all.
//!
//! Spec: XEP-0353 0.8.0, sections 3 and 4.1.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use fingerpost_carry::shares::registered;
use fingerpost_wire::{
    jingle::Reason,
    message_initiation::{Action, LONGEST_ID, RING, START},
};
use jid::{BareJid, FullJid, Jid};
use tokio::time::Instant;

/// The most open proposals: of one peer, of all peers whose key is not known, and of all together.
const OF_PEER: usize = 4;
const OF_STRANGERS: usize = 16;
const OPEN: usize = 32;
/// The most answered proposals of one peer at once, and the time until it has one more.
const ANSWERS: (u32, Duration) = (4, Duration::from_secs(10));
/// How many peers whose key is not known may recently have got an answer.
const ANSWERED: usize = 256;

/// A message about a proposal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Said<'a> {
    /// The sender.
    pub(super) from: &'a Jid,
    /// What it says.
    pub(super) action: Action,
    /// The id of the proposal.
    pub(super) id: &'a str,
    /// Its reason, if it gives one that is known here.
    pub(super) reason: Option<Reason>,
    /// Whether it says that two proposals have crossed.
    pub(super) is_tie_break: bool,
}

/// What has become of a proposal of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// A resource rings.
    Ringing,
    /// This resource takes the session.
    Proceeds(FullJid),
    /// The user does not want the session.
    Rejected(Option<Reason>),
    /// Nobody has decided: the broker gives it up.
    Ended,
    /// A proposal of the peer has overruled it.
    Crossed,
}

/// How far a proposal of ours is.
#[derive(Debug)]
enum Stage {
    Waiting,
    Ringing,
    Proceeding(FullJid),
}

#[derive(Debug)]
struct Outgoing {
    /// The user, or the one resource that may answer.
    to: Jid,
    stage: Stage,
}

impl Outgoing {
    /// Returns whether an answer from this address may count.
    fn may_answer(&self, from: &Jid) -> bool {
        from.to_bare() == self.to.to_bare()
            && (self.to.is_bare() || from.is_bare() || *from == self.to)
    }
}

/// A proposal of a peer.
#[derive(Debug)]
struct Incoming {
    /// The user behind the address.
    peer: BareJid,
    is_known: bool,
    /// Whether we have said proceed.
    is_taken: bool,
    deadline: Instant,
}

/// Which of two proposals that cross stays.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Crossing {
    /// Ours.
    Ours,
    /// The peer's. Ours with these ids are over.
    Theirs(Vec<String>),
}

/// The open proposals of an endpoint: its own by id, those of peers by address and id.
#[derive(Debug, Default)]
pub(super) struct Proposals {
    outgoing: HashMap<String, Outgoing>,
    incoming: HashMap<(FullJid, String), Incoming>,
    /// When each peer that has got answers may have all of [`ANSWERS`] again, and its registered domain, by keyed hash.
    answered: HashMap<u64, (Instant, u64)>,
    hasher: RandomState,
}

impl Proposals {
    /// Adds a proposal of ours with a new id. If `to` has a resource, only that one may answer.
    pub(super) fn propose(&mut self, id: String, to: Jid) {
        self.outgoing.insert(id, Outgoing { to, stage: Stage::Waiting });
    }

    /// Forgets a proposal of ours; returns whether it was open, and the peer has to be told.
    pub(super) fn forget(&mut self, id: &str) -> bool {
        self.outgoing.remove(id).is_some()
    }

    /// Returns whether a proposal of ours to the user of this address waits for its first answer.
    pub(super) fn is_unheard(&self, id: &str, from: &Jid) -> bool {
        self.outgoing
            .get(id)
            .is_some_and(|open| open.may_answer(from) && matches!(open.stage, Stage::Waiting))
    }

    /// Handles a message about an open proposal. Returns news of one of ours.
    pub(super) fn handle(&mut self, said: Said<'_>) -> Option<News> {
        match said.action {
            Action::Ringing | Action::Proceed | Action::Reject => self.answered(said),
            // A proposal that ends before its session has begun gets no session.
            Action::Retract | Action::Finish => {
                let from = FullJid::try_from(said.from.clone()).ok()?;
                self.incoming.remove(&(from, said.id.to_owned()));
                None
            }
            Action::Propose => None,
        }
    }

    fn answered(&mut self, said: Said<'_>) -> Option<News> {
        let open = self.outgoing.get_mut(said.id).filter(|open| open.may_answer(said.from))?;
        // Only a broker speaks for the user as a whole.
        let from = FullJid::try_from(said.from.clone()).ok();
        match (said.action, &open.stage, from) {
            (Action::Ringing, Stage::Waiting, Some(_)) => {
                open.stage = Stage::Ringing;
                Some(News::Ringing)
            }
            (Action::Proceed, Stage::Waiting | Stage::Ringing, Some(from)) => {
                open.stage = Stage::Proceeding(from.clone());
                Some(News::Proceeds(from))
            }
            (Action::Reject, Stage::Proceeding(by), Some(from)) if *by != from => None,
            (Action::Reject, _, from) => {
                self.outgoing.remove(said.id);
                Some(match from {
                    _ if said.is_tie_break => News::Crossed,
                    Some(_) => News::Rejected(said.reason),
                    None => News::Ended,
                })
            }
            _ => None,
        }
    }

    /// Returns whether there is room for a peer's proposal, and it is a new one. Peers that are not known leave room for
    /// others. A peer that proposes and retracts in turns gets an answer to a few of its proposals.
    pub(super) fn has_room(
        &mut self,
        from: &FullJid,
        peer: &BareJid,
        id: &str,
        is_known: bool,
        now: Instant,
    ) -> bool {
        self.incoming.retain(|_, open| now < open.deadline);
        self.answered.retain(|_, (full, _)| now < *full);
        let (most, gap) = ANSWERS;
        let may_get_one = self
            .answered
            .get(&self.hasher.hash_one(peer))
            .is_none_or(|(full, _)| *full <= now + gap * most.saturating_sub(1));
        let of_peer = self.incoming.values().filter(|open| open.peer == *peer).count();
        (1..=LONGEST_ID).contains(&id.len())
            && !self.incoming.contains_key(&(from.clone(), id.to_owned()))
            && may_get_one
            && of_peer < OF_PEER
            && (is_known || self.has_room_for_a_stranger(peer))
            && self.incoming.len() < OPEN
    }

    /// Returns whether a peer that is not known has room, too. One domain has at most half of it.
    fn has_room_for_a_stranger(&self, peer: &BareJid) -> bool {
        let domain = registered(peer.domain().as_str());
        let strangers = || self.incoming.values().filter(|open| !open.is_known);
        let of_domain =
            strangers().filter(|open| registered(open.peer.domain().as_str()) == domain);
        let domain = self.hasher.hash_one(domain);
        let answered = self.answered.values().filter(|(_, of)| *of == domain);
        strangers().count() < OF_STRANGERS
            && of_domain.count() < OF_STRANGERS / 2
            && (self.answered.contains_key(&self.hasher.hash_one(peer))
                || (self.answered.len() < ANSWERED && answered.count() < ANSWERED / 2))
    }

    /// Returns which proposal stays, if one of `peer` crosses ours. If it is the peer's, ours are forgotten. Addresses
    /// decide between equal ids.
    pub(super) fn cross(
        &mut self,
        from: &FullJid,
        id: &str,
        [own, peer]: [&BareJid; 2],
    ) -> Option<Crossing> {
        let user = from.to_bare();
        let is_crossed = |open: &Outgoing| {
            open.to.to_bare() == user && !matches!(open.stage, Stage::Proceeding(_))
        };
        let ours = self.outgoing.iter().filter(|(_, open)| is_crossed(open));
        let ours: Vec<String> = ours.map(|(id, _)| id.clone()).collect();
        let lowest = ours.iter().min()?;
        if (lowest.as_str(), own) < (id, peer) {
            return Some(Crossing::Ours);
        }
        self.outgoing.retain(|_, open| !is_crossed(open));
        Some(Crossing::Theirs(ours))
    }

    /// Adds a peer's proposal, which rings here from now on, and counts the answer.
    pub(super) fn ring(
        &mut self,
        from: FullJid,
        peer: BareJid,
        id: String,
        is_known: bool,
        now: Instant,
    ) {
        let domain = self.hasher.hash_one(registered(peer.domain().as_str()));
        let (full, _) = self.answered.entry(self.hasher.hash_one(&peer)).or_insert((now, domain));
        *full = (*full).max(now) + ANSWERS.1;
        let open = Incoming { peer, is_known, is_taken: false, deadline: now + RING };
        self.incoming.insert((from, id), open);
    }

    /// Returns whether a peer's proposal rings here.
    pub(super) fn rings(&self, from: &FullJid, id: &str, now: Instant) -> bool {
        let open = self.incoming.get(&(from.clone(), id.to_owned()));
        open.is_some_and(|open| !open.is_taken && now < open.deadline)
    }

    /// Takes a proposal that rings here; returns whether it still did.
    pub(super) fn proceed(&mut self, from: &FullJid, id: &str, now: Instant) -> bool {
        let rings = self.rings(from, id, now);
        if let Some(open) = self.incoming.get_mut(&(from.clone(), id.to_owned()))
            && rings
        {
            (open.is_taken, open.deadline) = (true, now + START);
        }
        rings
    }

    /// Rejects a proposal that rings here; returns whether it still did.
    pub(super) fn reject(&mut self, from: &FullJid, id: &str, now: Instant) -> bool {
        let rings = self.rings(from, id, now);
        if rings {
            self.incoming.remove(&(from.clone(), id.to_owned()));
        }
        rings
    }

    /// Handles the decision of another resource of our own user about a proposal of `peer`: it no longer rings here.
    pub(super) fn decided_elsewhere(&mut self, peer: &BareJid, id: &str) {
        self.incoming
            .retain(|(from, of), open| open.is_taken || of != id || from.to_bare() != *peer);
    }

    /// Returns whether a session that has come was proposed, and forgets the proposal.
    pub(super) fn start(&mut self, from: &FullJid, sid: &str, now: Instant) -> bool {
        let open = self.incoming.remove(&(from.clone(), sid.to_owned()));
        open.is_some_and(|open| now < open.deadline)
    }
}

#[cfg(test)]
mod tests;
