//! The sessions that exist, and where their stanzas go.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    hash::{BuildHasher, Hash, RandomState},
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use compact_str::CompactString;
use fingerpost_carry::{ibb_handle::IbbHandle, iq::random_id, shares::Shares};
use fingerpost_wire::transport_kind::TransportKind;
use hashlink::LruCache;
use jid::{BareJid, Jid};
use tokio::{sync::oneshot, time::Instant};

use super::{
    features,
    inbox::Inbox,
    peer::{Pair, SessionPeer},
    rooms::Rooms,
    session::SessionInput,
    side::{PerSide, Side},
};
use crate::relay::watch::StreamProgress;

/// The most ended sessions that are known, and for how long. Only the answer to a late stanza depends on it.
pub(super) const ENDED: (usize, Duration) = (10_000, Duration::from_secs(600));

/// The most clients that are known to have had a message before a file, and for how long. A forgotten one gets it again.
pub(super) const GREETED: (usize, Duration) = (10_000, Duration::from_secs(24 * 3600));

/// The name of a session, and the addresses by which it is found among many.
#[derive(Clone, Debug)]
pub struct SessionKey {
    /// The initiator's address, and ours.
    pub(super) ends: Arc<Pair>,
    /// Its name, here and in the log.
    pub id: String,
}

/// A session as other parts see it.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    /// Its name.
    pub key: SessionKey,
    /// Initiator and responder.
    pub users: [BareJid; 2],
    /// Both legs' transports, once they are up.
    pub legs: Option<[TransportKind; 2]>,
    /// The time since it began.
    pub age: Duration,
    /// Bytes so far, both directions.
    pub bytes: u64,
    /// Whether nothing encrypts it from end to end.
    pub is_plain: bool,
}

/// What other tasks know of a session, and what they have told it.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) id: CompactString,
    pub(super) began: Instant,
    /// The addresses of each leg: the user's, and ours towards it. The component itself may be the responder.
    ends: PerSide<Arc<Pair>>,
    /// The id of each leg: of its Jingle session, or of its stream.
    sids: PerSide<Arc<str>>,
    /// Both legs' transports, once they are up.
    pub(super) legs: OnceLock<PerSide<TransportKind>>,
    pub(super) progress: StreamProgress,
    /// Whether nothing encrypts the stream from end to end.
    pub(super) is_plain: bool,
    pub(super) inbox: Inbox,
}

impl Facts {
    /// Returns those of a session between two users.
    pub(super) fn between(peers: &PerSide<SessionPeer>, is_plain: bool) -> Self {
        let ends = PerSide {
            initiator: Arc::clone(&peers.initiator.pair),
            responder: Arc::clone(&peers.responder.pair),
        };
        let sids = PerSide {
            initiator: Arc::clone(&peers.initiator.sid),
            responder: Arc::clone(&peers.responder.sid),
        };
        Self { is_plain, ..Self::new(ends, sids) }
    }

    /// Returns those of a session between a user and the component itself.
    pub(super) fn own(peer: &SessionPeer) -> Self {
        let (user, mask) = &*peer.pair;
        let ends = PerSide {
            initiator: Arc::clone(&peer.pair),
            responder: Arc::new((mask.clone(), user.clone())),
        };
        Self::new(ends, PerSide::both(Arc::clone(&peer.sid)))
    }

    fn new(ends: PerSide<Arc<Pair>>, sids: PerSide<Arc<str>>) -> Self {
        Self {
            id: random_id()[..8].into(),
            began: Instant::now(),
            ends,
            sids,
            legs: OnceLock::new(),
            progress: StreamProgress::default(),
            is_plain: false,
            inbox: Inbox::default(),
        }
    }

    /// Returns the addresses of both legs.
    pub(super) fn ends(&self) -> &PerSide<Arc<Pair>> {
        &self.ends
    }

    /// Returns the user of a side.
    pub(super) fn user(&self, side: Side) -> BareJid {
        self.ends[side].0.to_bare()
    }
}

#[derive(Debug)]
pub(super) struct SessionEntry {
    pub(super) facts: Arc<Facts>,
    pub(super) side: Side,
    /// The in-band bytestream this leg expects: `None` none, `Some(None)` any.
    pub(super) ibb: Option<Option<String>>,
    /// The application of a crossing session, while the responder's client does not know of this one.
    pub(super) crossable: Option<String>,
    /// The user's SOCKS5 connection, while it is this leg.
    pub(super) seen: Option<Box<SeenConnection>>,
}

/// The SOCKS5 connection of a leg, as the component sees it.
#[derive(Debug)]
pub(super) struct SeenConnection {
    /// The bytestream's id.
    pub(super) sid: String,
    /// The user's end.
    pub(super) client: SocketAddr,
}

impl SessionEntry {
    /// Returns the entry of a leg that expects no bytestream and crosses no other session.
    pub(super) fn new(facts: &Arc<Facts>, side: Side) -> Self {
        Self { facts: Arc::clone(facts), side, ibb: None, crossable: None, seen: None }
    }

    /// Returns the user's address, and ours.
    pub(super) fn pair(&self) -> &Arc<Pair> {
        &self.facts.ends[self.side]
    }

    /// Returns the Jingle session id.
    pub(super) fn sid(&self) -> &str {
        &self.facts.sids[self.side]
    }

    fn is_between(&self, user: &Jid, mask: &Jid) -> bool {
        let pair = self.pair();
        pair.0 == *user && pair.1 == *mask
    }

    /// Gives an input to the session; returns whether it takes it.
    pub(super) fn tell(&self, input: SessionInput) -> bool {
        self.facts.inbox.tell(input)
    }
}

/// What has happened recently, each with the time until which that is known. Names are kept as keyed hashes, which take few
/// bytes however long the text is.
#[derive(Debug)]
struct Recent {
    hasher: RandomState,
    until: LruCache<u64, Instant>,
    age: Duration,
}

impl Recent {
    fn new((most, age): (usize, Duration)) -> Self {
        Self { hasher: RandomState::new(), until: LruCache::new(most), age }
    }

    fn insert(&mut self, name: impl Hash, now: Instant) {
        self.until.insert(self.hasher.hash_one(name), now + self.age);
    }

    fn has(&self, name: impl Hash, now: Instant) -> bool {
        self.until.peek(&self.hasher.hash_one(name)).is_some_and(|until| now < *until)
    }
}

/// The sessions that have ended recently.
#[derive(Debug)]
pub(super) struct EndedSessions(Recent);

impl Default for EndedSessions {
    fn default() -> Self {
        Self(Recent::new(ENDED))
    }
}

impl EndedSessions {
    pub(super) fn insert(&mut self, pair: &Pair, sid: &str, now: Instant) {
        self.0.insert((pair, sid), now);
    }

    pub(super) fn has(&self, pair: &Pair, sid: &str, now: Instant) -> bool {
        self.0.has((pair, sid), now)
    }
}

/// Which clients have recently had a message before a file of which user.
#[derive(Debug)]
pub(super) struct Greeted(Recent);

impl Default for Greeted {
    fn default() -> Self {
        Self(Recent::new(GREETED))
    }
}

impl Greeted {
    /// Notes that a client has had the message; returns whether it had none recently.
    pub(super) fn is_first(&mut self, caller: &BareJid, client: &Jid, now: Instant) -> bool {
        let name = (caller.as_str(), client.as_str());
        if self.0.has(name, now) {
            return false;
        }
        self.0.insert(name, now);
        true
    }
}

/// Messages whose delivery receipts (XEP-0184) sessions wait for, by their ids.
#[derive(Debug, Default)]
pub(super) struct Receipts(HashMap<String, (Jid, oneshot::Sender<()>)>);

impl Receipts {
    /// Returns what waits for the receipt that this client sends for a message.
    pub(super) fn expect(&mut self, id: String, client: Jid) -> oneshot::Receiver<()> {
        // Those that nobody waits for any longer need no place.
        self.0.retain(|_, (_, told)| !told.is_closed());
        let (told, receipt) = oneshot::channel();
        self.0.insert(id, (client, told));
        receipt
    }

    /// Takes a client's receipt for a message; returns whether it was expected.
    pub(super) fn take(&mut self, id: &str, client: &Jid) -> bool {
        let is_expected = self.0.get(id).is_some_and(|(expected, _)| expected == client);
        if is_expected && let Some((_, told)) = self.0.remove(id) {
            let _ = told.send(());
        }
        is_expected
    }
}

/// The clients that have asked for the component's SOCKS5 addresses, so that they offer it as their proxy. Addresses are kept as
/// keyed hashes; a forgotten client is only slower.
#[derive(Debug)]
pub(super) struct ProxyUsers(RandomState, LruCache<u64, ()>);

/// The most clients that are known to use the component as their proxy.
const PROXY_USERS: usize = 10_000;

impl Default for ProxyUsers {
    fn default() -> Self {
        Self(RandomState::new(), LruCache::new(PROXY_USERS))
    }
}

impl ProxyUsers {
    pub(super) fn insert(&mut self, client: &Jid) {
        self.1.insert(self.0.hash_one(client.as_str()), ());
    }

    pub(super) fn has(&self, client: &Jid) -> bool {
        self.1.peek(&self.0.hash_one(client.as_str())).is_some()
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
        let key = self.hasher.hash_one(ends);
        // Nearly all have one.
        let streams = self.by_ends.entry(key).or_insert_with(|| Vec::with_capacity(1));
        streams.retain(|handle| !handle.is_over());
        streams.push(handle);
    }

    /// Forgets the streams of a pair that are over; returns whether all are.
    pub(super) fn drop_over(&mut self, (user, mask): &Pair) -> bool {
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

/// The sessions, by each of their users and the address under which the other one appears there. Addresses are kept
/// once, and found by keyed hashes.
#[derive(Debug, Default)]
pub(super) struct Legs {
    hasher: RandomState,
    by_ends: HashMap<u64, Vec<SessionEntry>>,
    /// The hash of each user's address, with the keys above of its legs.
    by_user: BTreeSet<(u64, u64)>,
}

impl Legs {
    fn key(&self, user: &Jid, mask: &Jid) -> u64 {
        self.hasher.hash_one((user.as_str(), mask.as_str()))
    }

    /// Returns the legs of a user at one address here.
    pub(super) fn between(&self, user: &Jid, mask: &Jid) -> impl Iterator<Item = &SessionEntry> {
        let entries = self.by_ends.get(&self.key(user, mask)).into_iter().flatten();
        entries.filter(move |entry| entry.is_between(user, mask))
    }

    /// Returns the same.
    pub(super) fn between_mut(
        &mut self,
        user: &Jid,
        mask: &Jid,
    ) -> impl Iterator<Item = &mut SessionEntry> {
        let key = self.key(user, mask);
        let entries = self.by_ends.get_mut(&key).into_iter().flatten();
        entries.filter(move |entry| entry.is_between(user, mask))
    }

    /// Returns whether a user has a leg.
    pub(super) fn has_user(&self, user: &Jid) -> bool {
        self.of_user(user).next().is_some()
    }

    /// Returns all legs of a user.
    pub(super) fn of_user(&self, user: &Jid) -> impl Iterator<Item = &SessionEntry> {
        let hash = self.hasher.hash_one(user.as_str());
        let keys = self.by_user.range((hash, 0)..=(hash, u64::MAX));
        let entries = keys.filter_map(|(_, key)| self.by_ends.get(key)).flatten();
        entries.filter(move |entry| entry.pair().0 == *user)
    }

    /// Returns all legs.
    pub(super) fn iter(&self) -> impl Iterator<Item = &SessionEntry> {
        self.by_ends.values().flatten()
    }

    /// Returns one leg of each session that two users have, and of each with the component: the initiator's.
    pub(super) fn sessions(&self) -> impl Iterator<Item = &SessionEntry> {
        self.iter().filter(|entry| entry.side == Side::Initiator)
    }

    pub(super) fn insert(&mut self, entry: SessionEntry) {
        let (user, mask) = &**entry.pair();
        let (key, user) = (self.key(user, mask), self.hasher.hash_one(user.as_str()));
        self.by_user.insert((user, key));
        // Nearly all have one.
        self.by_ends.entry(key).or_insert_with(|| Vec::with_capacity(1)).push(entry);
    }

    /// Removes the legs of one session at these addresses, and returns them. Another session may have the same addresses by
    /// now.
    pub(super) fn remove(&mut self, pair: &Pair, facts: &Arc<Facts>) -> Vec<SessionEntry> {
        let key = self.key(&pair.0, &pair.1);
        let Some(entries) = self.by_ends.get_mut(&key) else { return Vec::new() };
        let removed = entries.extract_if(.., |entry| Arc::ptr_eq(&entry.facts, facts)).collect();
        if entries.is_empty() {
            self.by_ends.remove(&key);
            self.by_user.remove(&(self.hasher.hash_one(pair.0.as_str()), key));
        }
        removed
    }
}

#[derive(Debug, Default)]
pub(super) struct Directory {
    pub(super) rooms: Rooms,
    pub(super) legs: Legs,
    pub(super) streams: IbbStreams,
    /// Pairs whose session has ended and whose streams may still lack an answer to their close, with the deadline.
    pub(super) closing: VecDeque<(Instant, Arc<Pair>)>,
    /// Shares of sessions, by the user that began them.
    pub(super) shares: Shares,
    pub(super) features: features::Cache,
    pub(super) ended: EndedSessions,
    pub(super) greeted: Greeted,
    pub(super) receipts: Receipts,
    pub(super) proxy_users: ProxyUsers,
    pub(super) draining: bool,
}

impl Directory {
    /// Returns the entries of a leg.
    pub(super) fn of_leg(&mut self, peer: &SessionPeer) -> impl Iterator<Item = &mut SessionEntry> {
        self.legs.between_mut(peer.user(), peer.mask()).filter(|entry| *entry.sid() == *peer.sid)
    }

    /// Returns whether there is a session with that sid.
    pub(super) fn has(&self, (user, mask): &Pair, sid: &str) -> bool {
        self.legs.between(user, mask).any(|entry| entry.sid() == sid)
    }

    /// Forgets the streams whose close was not answered in time.
    pub(super) fn drop_closed(&mut self, now: Instant) {
        while let Some((at, _)) = self.closing.front()
            && *at <= now
            && let Some((_, pair)) = self.closing.pop_front()
        {
            self.streams.drop_over(&pair);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_greeted_once_a_day_for_each_caller() {
        let mut greeted = Greeted::default();
        let mut now = Instant::now();
        let (alice, carol) = (BareJid::new("alice@x").unwrap(), BareJid::new("carol@x").unwrap());
        let (phone, laptop) = (Jid::new("bob@x/phone").unwrap(), Jid::new("bob@x/laptop").unwrap());
        assert!(greeted.is_first(&alice, &phone, now));
        assert!(!greeted.is_first(&alice, &phone, now));
        assert!(greeted.is_first(&carol, &phone, now));
        assert!(greeted.is_first(&alice, &laptop, now));
        now += GREETED.1;
        assert!(greeted.is_first(&alice, &phone, now));
        for number in 0..GREETED.0 + 10 {
            greeted.is_first(&alice, &Jid::new(&format!("u{number}@x/1")).unwrap(), now);
        }
        assert!(greeted.0.until.len() <= GREETED.0);
    }

    #[tokio::test]
    async fn a_receipt_is_taken_once_and_from_the_client_that_has_the_message() {
        let mut receipts = Receipts::default();
        let (phone, laptop) = (Jid::new("bob@x/phone").unwrap(), Jid::new("bob@x/laptop").unwrap());
        let mut receipt = receipts.expect("1".to_owned(), phone.clone());
        assert!(!receipts.take("1", &laptop) && !receipts.take("2", &phone));
        assert!(receipt.try_recv().is_err());
        assert!(receipts.take("1", &phone) && !receipts.take("1", &phone));
        assert_eq!(receipt.await, Ok(()));
        drop(receipts.expect("2".to_owned(), phone.clone()));
        let _waits = receipts.expect("3".to_owned(), phone);
        assert_eq!(receipts.0.len(), 1);
    }
}
