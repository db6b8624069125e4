//! The cache of recently read profiles. It is bounded, and never older than the last known change.
//!
//! Each profile carries the owner's count of changes at the time when it was read from the database, and is used only
//! while that count stands. A change is counted after its commit and before anyone is told of it. Owners share 4096
//! counters, so a change of one owner drops some other profiles too, which costs a lookup.
//!
//! Where notifications report others' changes, one may be late or lost. There a profile is also used for 10 seconds at
//! most, so that a revocation is in force everywhere after that time.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use jid::BareJid;
use quick_cache::{Weighter, sync::Cache};
use tokio::time::Instant;

use crate::registry::store::records::Profile;

/// The bytes that are kept in all, and the weight of a user and of a key besides their texts.
const BYTES: u64 = 48 << 20;
const USER: u64 = 256;
const KEY: u64 = 1024;
const FORGOTTEN: u64 = 192;
const COUNTERS: usize = 4096;
/// How long a profile is used where notifications report others' changes.
const AGE: Duration = Duration::from_secs(10);

/// When a profile was read: the count of changes, and the time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp {
    changes: u64,
    at: Instant,
}

#[derive(Clone, Debug)]
struct CachedProfile {
    read_at: Stamp,
    profile: Arc<Profile>,
}

#[derive(Clone, Debug)]
struct ByKeys;

impl Weighter<BareJid, CachedProfile> for ByKeys {
    fn weight(&self, owner: &BareJid, entry: &CachedProfile) -> u64 {
        let allowed = entry.profile.settings.iter().flat_map(|settings| &settings.allowed);
        let allowed: usize = allowed.map(|jid| 64 + jid.as_str().len()).sum();
        USER + allowed as u64
            + 2 * owner.as_str().len() as u64
            + KEY * entry.profile.keys.len() as u64
            + FORGOTTEN * entry.profile.forgotten.prints.len() as u64
    }
}

/// The cache.
#[derive(Debug)]
pub(super) struct Profiles {
    cache: Cache<BareJid, CachedProfile, ByKeys>,
    changes: Vec<AtomicU64>,
    hasher: RandomState,
    /// Whether the cache is bypassed, because others' changes could be missed.
    bypassed: AtomicBool,
    age: Option<Duration>,
}

impl Default for Profiles {
    fn default() -> Self {
        Self {
            cache: Cache::with_weighter(10_000, BYTES, ByKeys),
            changes: (0..COUNTERS).map(|_| AtomicU64::new(0)).collect(),
            hasher: RandomState::new(),
            bypassed: AtomicBool::new(false),
            age: None,
        }
    }
}

impl Profiles {
    /// Creates a cache for a database that sends notifications of others' changes. It is bypassed until it is known
    /// that they arrive.
    pub(super) fn notified() -> Self {
        Self { bypassed: AtomicBool::new(true), age: Some(AGE), ..Self::default() }
    }

    fn counter(&self, owner: &BareJid) -> &AtomicU64 {
        let hash = self.hasher.hash_one(owner);
        &self.changes[usize::try_from(hash % COUNTERS as u64).unwrap_or_default()]
    }

    /// Returns a profile that is certainly up to date.
    pub(super) fn get(&self, owner: &BareJid) -> Option<Arc<Profile>> {
        if self.bypassed.load(Ordering::SeqCst) {
            return None;
        }
        let entry = self.cache.get(owner)?;
        let now = self.stamp(owner);
        let fresh = self.age.is_none_or(|age| now.at.duration_since(entry.read_at.at) < age);
        (fresh && entry.read_at.changes == now.changes).then_some(entry.profile)
    }

    /// Returns the count of changes and the time; call it before the database is read.
    pub(super) fn stamp(&self, owner: &BareJid) -> Stamp {
        Stamp { changes: self.counter(owner).load(Ordering::SeqCst), at: Instant::now() }
    }

    /// Stores a profile that was read after `read_at` was taken.
    pub(super) fn put(&self, owner: &BareJid, read_at: Stamp, profile: Arc<Profile>) {
        if !self.bypassed.load(Ordering::SeqCst) {
            self.cache.insert(owner.clone(), CachedProfile { read_at, profile });
        }
    }

    /// Notes that a change of a user was committed.
    pub(super) fn changed(&self, owner: &BareJid) {
        self.counter(owner).fetch_add(1, Ordering::SeqCst);
    }

    /// Sets whether others' changes are reported; if not, nothing is cached.
    pub(super) fn set_hearing(&self, hearing: bool) {
        self.bypassed.store(!hearing, Ordering::SeqCst);
        self.all_changed();
    }

    /// Notes that any user's keys may have changed.
    pub(super) fn all_changed(&self) {
        for counter in &self.changes {
            counter.fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_read_before_a_change_is_not_used_after_it() {
        let profiles = Profiles::default();
        let owner = BareJid::new("romeo@m.lit").unwrap();
        assert!(profiles.get(&owner).is_none());
        let stamp = profiles.stamp(&owner);
        profiles.put(&owner, stamp, Arc::default());
        assert!(profiles.get(&owner).is_some());
        // A reader that began before the change and ends after it.
        let stamp = profiles.stamp(&owner);
        profiles.changed(&owner);
        assert!(profiles.get(&owner).is_none());
        profiles.put(&owner, stamp, Arc::default());
        assert!(profiles.get(&owner).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_notified_of_is_used_for_ten_seconds_from_before_it_was_read() {
        let [notified, looked] = [Profiles::notified(), Profiles::default()];
        let owner = BareJid::new("romeo@m.lit").unwrap();
        notified.put(&owner, notified.stamp(&owner), Arc::default());
        assert!(notified.get(&owner).is_none(), "notifications do not arrive yet");
        notified.set_hearing(true);
        for profiles in [&notified, &looked] {
            let stamp = profiles.stamp(&owner);
            tokio::time::advance(Duration::from_secs(4)).await;
            profiles.put(&owner, stamp, Arc::default());
            tokio::time::advance(Duration::from_millis(5999)).await;
            assert!(profiles.get(&owner).is_some());
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!(notified.get(&owner).is_none());
        assert!(looked.get(&owner).is_some(), "here every lookup asks what has changed");
    }

    #[test]
    fn nothing_is_kept_while_others_are_not_heard() {
        let profiles = Profiles::default();
        let owner = BareJid::new("romeo@m.lit").unwrap();
        profiles.set_hearing(false);
        profiles.put(&owner, profiles.stamp(&owner), Arc::default());
        assert!(profiles.get(&owner).is_none());
        profiles.set_hearing(true);
        assert!(profiles.get(&owner).is_none());
    }
}
