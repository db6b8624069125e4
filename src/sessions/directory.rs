//! The sessions that exist, and where their stanzas go.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    hash::{BuildHasher, RandomState},
    sync::{Arc, OnceLock},
    time::Duration,
};

use fingerpost_carry::{ibb_handle::IbbHandle, iq::random_id, shares::Shares};
use fingerpost_wire::transport_kind::TransportKind;
use hashlink::LruCache;
use jid::{BareJid, Jid};
use tokio::{sync::mpsc, time::Instant};

use super::{
    features,
    peer::{Pair, SessionPeer},
    rooms::Rooms,
    session::SessionInput,
    side::{PerSide, Side},
};
use crate::relay::watch::StreamProgress;

/// The most ended sessions that are known, and for how long. Only the answer to a late stanza depends on it.
pub(super) const ENDED: (usize, Duration) = (10_000, Duration::from_secs(600));

/// A session as other parts see it.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    /// Its name, here and in the log.
    pub id: String,
    /// Initiator and responder.
    pub users: [BareJid; 2],
    /// Both legs' transports, once they are up.
    pub legs: Option<[TransportKind; 2]>,
    /// The time since it began.
    pub age: Duration,
    /// Bytes so far, both directions.
    pub bytes: u64,
}

/// The facts of a session that other tasks may read.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) id: String,
    pub(super) began: Instant,
    /// The component itself may be the responder.
    pub(super) users: PerSide<BareJid>,
    /// Both legs' transports, once they are up.
    pub(super) legs: OnceLock<PerSide<TransportKind>>,
    pub(super) progress: StreamProgress,
}

impl Facts {
    pub(super) fn new(initiator: &Jid, responder: &Jid) -> Self {
        Self {
            id: random_id()[..8].to_owned(),
            began: Instant::now(),
            users: PerSide { initiator: initiator.to_bare(), responder: responder.to_bare() },
            legs: OnceLock::new(),
            progress: StreamProgress::default(),
        }
    }
}

#[derive(Debug)]
pub(super) struct SessionEntry {
    pub(super) facts: Arc<Facts>,
    pub(super) sid: String,
    pub(super) side: Side,
    pub(super) inbox: mpsc::Sender<Box<SessionInput>>,
    /// The in-band bytestream this leg expects: `None` none, `Some(None)` any.
    pub(super) ibb: Option<Option<String>>,
    /// The application of a crossing session, while the responder's client does not know of this one.
    pub(super) crossable: Option<String>,
}

/// The sessions that have ended recently, each with the time until which that is known. Addresses and session ids are
/// kept as keyed hashes, which take few bytes however long the text is.
#[derive(Debug)]
pub(super) struct EndedSessions(RandomState, LruCache<u64, Instant>);

impl Default for EndedSessions {
    fn default() -> Self {
        Self(RandomState::new(), LruCache::new(ENDED.0))
    }
}

impl EndedSessions {
    pub(super) fn insert(&mut self, pair: &Pair, sid: &str, now: Instant) {
        self.1.insert(self.0.hash_one((pair, sid)), now + ENDED.1);
    }

    pub(super) fn has(&self, pair: &Pair, sid: &str, now: Instant) -> bool {
        self.1.peek(&self.0.hash_one((pair, sid))).is_some_and(|until| now < *until)
    }
}

/// The in-band bytestreams, by the user's address and ours as they are written in stanzas. Addresses are kept as keyed
/// hashes, so that nothing is copied to find a stream.
#[derive(Debug, Default)]
pub(super) struct IbbStreams {
    hasher: RandomState,
    by_ends: HashMap<u64, Vec<IbbHandle>>,
}

impl IbbStreams {
    /// Returns the streams between a user's address and ours, in their order.
    pub(super) fn between(
        &self,
        user: &str,
        mask: &str,
    ) -> impl DoubleEndedIterator<Item = &IbbHandle> {
        let streams = self.by_ends.get(&self.hasher.hash_one((user, mask))).into_iter().flatten();
        streams
            .filter(move |handle| handle.peer().as_str() == user && handle.local().as_str() == mask)
    }

    /// Returns all streams.
    pub(super) fn iter(&self) -> impl Iterator<Item = &IbbHandle> {
        self.by_ends.values().flatten()
    }

    pub(super) fn insert(&mut self, handle: IbbHandle) {
        let ends = (handle.peer().as_str(), handle.local().as_str());
        let streams = self.by_ends.entry(self.hasher.hash_one(ends)).or_default();
        streams.retain(|handle| !handle.is_over());
        streams.push(handle);
    }

    /// Forgets the streams of a pair that are over; returns whether all are.
    fn drop_over(&mut self, (user, mask): &Pair) -> bool {
        let key = self.hasher.hash_one((user.as_str(), mask.as_str()));
        let Some(streams) = self.by_ends.get_mut(&key) else { return true };
        streams.retain(|handle| !handle.is_over());
        let all = streams.is_empty();
        if all {
            self.by_ends.remove(&key);
        }
        all
    }
}

#[derive(Debug, Default)]
pub(super) struct Directory {
    pub(super) rooms: Rooms,
    pub(super) sessions: HashMap<Pair, Vec<SessionEntry>>,
    /// The addresses under which a user has sessions.
    pub(super) masks: HashMap<Jid, HashSet<Jid>>,
    pub(super) streams: IbbStreams,
    /// Pairs whose session has ended and whose streams may still lack an answer to their close, with the deadline.
    pub(super) closing: VecDeque<(Instant, Pair)>,
    /// Shares of sessions, by the user that began them.
    pub(super) shares: Shares,
    pub(super) features: features::Cache,
    pub(super) ended: EndedSessions,
    pub(super) draining: bool,
}

impl Directory {
    /// Returns the entries of a leg.
    pub(super) fn of_leg(&mut self, peer: &SessionPeer) -> impl Iterator<Item = &mut SessionEntry> {
        let entries = self.sessions.get_mut(&peer.pair()).into_iter().flatten();
        entries.filter(|entry| entry.sid == peer.sid)
    }

    /// Returns whether there is a session with that sid.
    pub(super) fn has(&self, pair: &Pair, sid: &str) -> bool {
        self.sessions.get(pair).is_some_and(|entries| entries.iter().any(|entry| entry.sid == sid))
    }

    /// Forgets the streams of a pair that are over; returns whether all are.
    pub(super) fn drop_streams(&mut self, pair: &Pair) -> bool {
        self.streams.drop_over(pair)
    }

    /// Forgets the streams whose close was not answered in time.
    pub(super) fn drop_closed(&mut self, now: Instant) {
        while let Some((at, _)) = self.closing.front()
            && *at <= now
            && let Some((_, pair)) = self.closing.pop_front()
        {
            self.drop_streams(&pair);
        }
    }

    pub(super) fn insert(&mut self, pair: &Pair, entry: SessionEntry) {
        self.masks.entry(pair.0.clone()).or_default().insert(pair.1.clone());
        self.sessions.entry(pair.clone()).or_default().push(entry);
    }
}
