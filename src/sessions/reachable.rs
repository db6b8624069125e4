//! The database remembers the reachable resources, and who watches them, so that a restarted component knows them at once.
//!
//! Changes are collected for a second and written in one transaction of bounded size: a user that comes and goes a
//! hundred times costs one row. Changes that could not be written are kept until that is possible. Only resources that
//! were written need to be removed, so at most one change is kept for each entry of the table and each row of the
//! database.
//!
//! Before another instance reads the table, all changes are written at once ([`Reachable::flush`]).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jid::{BareJid, FullJid};
use time::OffsetDateTime;
use tokio::{
    sync::{self, Notify},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    presence::PresenceChange,
    watchers::{AGE_DAYS, WatchChange, WatchedPair},
};
use crate::registry::store::{Store, error::StoreError};

/// Changes within this time are written together.
const COLLECT: Duration = Duration::from_secs(1);
/// The most changes in one transaction.
const BATCH: usize = 1000;
/// How long one transaction may take.
const WRITE: Duration = Duration::from_secs(15);
/// How long the lead waits for the last changes before it goes to another instance.
const FLUSH: Duration = Duration::from_secs(2);
/// The pause before another try after the database has failed.
const AGAIN: Duration = Duration::from_secs(5);
/// Resources that were not seen for this long before the start are not checked.
const OLD: Duration = Duration::from_secs(24 * 3600);
/// The most resources, and the most watchers, that are read at the start.
const READ: u32 = 120_000;
/// The seconds of a day.
const DAY: i64 = 24 * 3600;

/// A watcher and its contact, and the day since 1970 when the watcher last asked.
pub type RecalledWatcher = (BareJid, BareJid, u32);

/// Returns the days since 1970.
pub fn day_of(time: OffsetDateTime) -> u32 {
    u32::try_from(time.unix_timestamp() / DAY).unwrap_or_default()
}

/// A row of the database.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Row {
    /// A reachable resource.
    Resource(Arc<FullJid>),
    /// Somebody who watches a user.
    Watcher(Arc<WatchedPair>),
}

/// A pending change of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PendingChange {
    Here {
        /// The priority of a resource.
        priority: i8,
        /// Whether the database has nothing of it.
        is_new: bool,
    },
    Gone,
}

impl PendingChange {
    /// Returns the change to write after a newer one; `None` if the database needs neither.
    fn then(self, newer: Self) -> Option<Self> {
        match (self, newer) {
            (Self::Here { is_new: true, .. }, Self::Gone) => None,
            (Self::Here { is_new, .. }, Self::Here { priority, .. }) => {
                Some(Self::Here { priority, is_new })
            }
            (Self::Gone, Self::Here { priority, .. }) => {
                Some(Self::Here { priority, is_new: false })
            }
            (_, Self::Gone) => Some(Self::Gone),
        }
    }
}

type ReachableChanges = HashMap<Row, PendingChange>;

/// Adds a newer change.
fn add(changes: &mut ReachableChanges, row: Row, newer: PendingChange) {
    let change = match changes.remove(&row) {
        Some(older) => older.then(newer),
        None => Some(newer),
    };
    if let Some(change) = change {
        changes.insert(row, change);
    }
}

/// The database's memory of one component. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reachable {
    store: Store,
    component: BareJid,
    changes: Arc<Mutex<ReachableChanges>>,
    news: Arc<Notify>,
    /// Held while changes are written.
    writing: Arc<sync::Mutex<()>>,
}

impl Reachable {
    /// Returns the memory of `component`. Nothing is written until [`Reachable::run`] does it.
    pub fn new(store: Store, component: BareJid) -> Self {
        Self {
            store,
            component,
            changes: Arc::default(),
            news: Arc::default(),
            writing: Arc::default(),
        }
    }

    /// Never held over an `.await`.
    fn lock(&self) -> MutexGuard<'_, ReachableChanges> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the resources that were reachable when the component last ran. Old ones are forgotten.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn recall(&self) -> Result<Vec<(FullJid, i8)>, StoreError> {
        let since = OffsetDateTime::now_utc() - OLD;
        self.store.forget_reachable(&self.component, since).await?;
        self.store.reachable(&self.component, since, READ).await
    }

    /// Returns the users that watched others when the component last ran. Old ones are forgotten.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn recall_watchers(&self) -> Result<Vec<RecalledWatcher>, StoreError> {
        let since = OffsetDateTime::now_utc() - time::Duration::days(AGE_DAYS.into());
        self.store.forget_watchers(&self.component, since).await?;
        let rows = self.store.watchers(&self.component, READ).await?;
        let with_day = |(watcher, contact, seen)| (watcher, contact, day_of(seen));
        Ok(rows.into_iter().map(with_day).collect())
    }

    /// Takes a change of a watcher.
    pub fn note_watcher(&self, change: WatchChange) {
        let (pair, what) = match change {
            WatchChange::Remember { pair, is_new } => {
                (pair, PendingChange::Here { priority: 0, is_new })
            }
            WatchChange::Forget(pair) => (pair, PendingChange::Gone),
        };
        add(&mut self.lock(), Row::Watcher(pair), what);
        self.news.notify_one();
    }

    /// Takes a change of a resource.
    pub fn note(&self, change: PresenceChange) {
        let (jid, what) = match change {
            PresenceChange::Remember { jid, priority, is_new } => {
                (jid, PendingChange::Here { priority, is_new })
            }
            PresenceChange::Gone { jid, remembered: true } => (jid, PendingChange::Gone),
            PresenceChange::Gone { remembered: false, .. } => return,
        };
        add(&mut self.lock(), Row::Resource(jid), what);
        self.news.notify_one();
    }

    /// Writes all changes now, because another instance or process is about to read them.
    pub async fn flush(&self) {
        match timeout(FLUSH, self.write_all()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "could not hand over all reachable users"),
            Err(_) => warn!("could not hand over all reachable users in time"),
        }
    }

    /// Drops removals that could not be written: another instance leads, and these resources may be back.
    pub fn follow(&self) {
        self.lock().retain(|_, change| match change {
            PendingChange::Here { is_new, .. } => {
                // The one that leads may have written it, too.
                *is_new = false;
                true
            }
            PendingChange::Gone => false,
        });
    }

    /// Writes changes until `stop`, then the rest.
    pub async fn run(self, stop: CancellationToken) {
        let mut failing = false;
        loop {
            tokio::select! {
                biased;
                () = self.news.notified() => {}
                () = stop.cancelled() => {}
            }
            let _stopped = timeout(COLLECT, stop.cancelled()).await;
            match self.write_all().await {
                Ok(()) if failing => info!("reachable users are recorded again"),
                Ok(()) => {}
                Err(error) if stop.is_cancelled() => {
                    warn!(%error, "could not record all reachable users");
                }
                Err(error) => {
                    if !failing {
                        warn!(%error, "could not record reachable users: after a restart each needs a new presence");
                    }
                    failing = true;
                    let _stopped = timeout(AGAIN, stop.cancelled()).await;
                    self.news.notify_one();
                    continue;
                }
            }
            failing = false;
            if stop.is_cancelled() {
                return;
            }
        }
    }

    async fn write_all(&self) -> Result<(), StoreError> {
        let _writing = self.writing.lock().await;
        loop {
            let mut taken = self.take();
            if taken.changes.is_empty() {
                return Ok(());
            }
            let (mut here, mut gone) = (Vec::new(), Vec::new());
            let (mut watching, mut left) = (Vec::new(), Vec::new());
            for (row, change) in &taken.changes {
                match (row, change) {
                    (Row::Resource(jid), PendingChange::Here { priority, .. }) => {
                        here.push((FullJid::clone(jid), *priority));
                    }
                    (Row::Resource(jid), PendingChange::Gone) => gone.push(FullJid::clone(jid)),
                    (Row::Watcher(pair), PendingChange::Here { .. }) => watching.push(&**pair),
                    (Row::Watcher(pair), PendingChange::Gone) => left.push(&**pair),
                }
            }
            let now = OffsetDateTime::now_utc();
            let (store, component) = (&self.store, &self.component);
            let mut is_refused = true;
            let writing = async {
                if !here.is_empty() || !gone.is_empty() {
                    store.change_reachable(component, &here, &gone, now).await?;
                    is_refused = false;
                }
                if !watching.is_empty() || !left.is_empty() {
                    store.change_watchers(component, &watching, &left, now).await?;
                }
                Ok(())
            };
            match timeout(WRITE, writing).await {
                Ok(Ok(())) => taken.changes.clear(),
                Ok(Err(error)) => {
                    taken.is_refused = is_refused;
                    return Err(error);
                }
                Err(_) => return Err(StoreError::Database(sqlx::Error::PoolTimedOut)),
            }
            drop(taken);
            // Others may write in between.
            sleep(Duration::from_millis(1)).await;
        }
    }

    fn take(&self) -> Taken<'_> {
        let mut changes = self.lock();
        let taken = if changes.len() <= BATCH {
            std::mem::take(&mut *changes)
        } else {
            let some: Vec<Row> = changes.keys().take(BATCH).cloned().collect();
            some.iter().filter_map(|row| changes.remove_entry(row)).collect()
        };
        Taken { memory: self, changes: taken, is_refused: false }
    }
}

/// Changes that are being written. Those that were not written, also because nobody waits any more, are pending again.
struct Taken<'a> {
    memory: &'a Reachable,
    changes: ReachableChanges,
    /// Whether the database has taken none of them. Otherwise it may have taken them.
    is_refused: bool,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if self.changes.is_empty() {
            return;
        }
        let mut older = std::mem::take(&mut self.changes);
        if !self.is_refused {
            for change in older.values_mut() {
                if let PendingChange::Here { is_new, .. } = change {
                    *is_new = false;
                }
            }
        }
        let mut pending = self.memory.lock();
        let newer = std::mem::replace(&mut *pending, older);
        for (row, change) in newer {
            add(&mut pending, row, change);
        }
        drop(pending);
        self.memory.news.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(text: &str) -> Arc<FullJid> {
        Arc::new(FullJid::new(text).unwrap())
    }

    fn here(jid: &str, priority: i8, is_new: bool) -> PresenceChange {
        PresenceChange::Remember { jid: full(jid), priority, is_new }
    }

    async fn memory() -> Reachable {
        at("sqlite::memory:").await
    }

    async fn at(url: &str) -> Reachable {
        let store = Store::open(url, 1, true).await.unwrap();
        Reachable::new(store, BareJid::new("xtls.example.org").unwrap())
    }

    #[tokio::test]
    async fn what_is_noted_is_recalled_by_the_next_run_and_by_no_other_component() {
        let memory = memory().await;
        for number in 0..BATCH + 10 {
            memory.note(here(&format!("u{number}@a/x"), 1, true));
        }
        memory.note(here("u0@a/x", -7, false));
        memory.note(PresenceChange::Gone { jid: full("u1@a/x"), remembered: true });
        assert_eq!(memory.lock().len(), BATCH + 9, "a resource that came and went is not written");
        let stop = CancellationToken::new();
        stop.cancel();
        memory.clone().run(stop.clone()).await;
        let recalled = memory.recall().await.unwrap();
        assert_eq!(recalled.len(), BATCH + 9);
        assert!(recalled.contains(&(FullJid::clone(&full("u0@a/x")), -7)));
        memory.note(PresenceChange::Gone { jid: full("u2@a/x"), remembered: true });
        memory.note(PresenceChange::Gone { jid: full("u3@a/x"), remembered: false });
        memory.clone().run(stop).await;
        assert_eq!(memory.recall().await.unwrap().len(), BATCH + 8);
        let other = Reachable::new(memory.store.clone(), BareJid::new("other.test").unwrap());
        assert_eq!(other.recall().await.unwrap(), []);
    }

    #[tokio::test]
    async fn the_next_leader_reads_what_was_noted_last() {
        let memory = memory().await;
        memory.note(here("old@a/x", 1, true));
        memory.flush().await;
        memory.note(here("new@a/x", 2, true));
        memory.note(PresenceChange::Gone { jid: full("old@a/x"), remembered: true });
        memory.flush().await;
        assert_eq!(memory.recall().await.unwrap(), [(FullJid::clone(&full("new@a/x")), 2)]);
    }

    /// The lead does not wait for ever for the database. What was on its way there is written later.
    #[tokio::test]
    async fn a_write_that_nobody_waits_for_any_more_loses_nothing() {
        // A database in memory is gone with the connection whose work was broken off.
        let directory = tempfile::tempdir().unwrap();
        let file = format!("sqlite:{}", directory.path().join("test.db").display());
        let memory = at(&file).await;
        memory.note(here("old@a/x", 1, true));
        memory.flush().await;
        memory.note(here("new@a/x", 2, true));
        memory.note(PresenceChange::Gone { jid: full("old@a/x"), remembered: true });
        tokio::select! {
            biased;
            _ = memory.write_all() => {}
            () = std::future::ready(()) => {}
        }
        // The row may be there already: it is removed if the resource goes away now.
        memory.note(PresenceChange::Gone { jid: full("new@a/x"), remembered: true });
        let pending = memory.lock().clone();
        assert!(pending.values().all(|change| *change == PendingChange::Gone), "{pending:?}");
        memory.note(here("new@a/x", 3, false));
        memory.flush().await;
        assert_eq!(memory.recall().await.unwrap(), [(FullJid::clone(&full("new@a/x")), 3)]);
    }

    #[tokio::test]
    async fn one_that_leads_no_more_removes_nobody_who_may_be_back() {
        let memory = memory().await;
        memory.note(here("gone@a/x", 1, true));
        memory.flush().await;
        memory.note(PresenceChange::Gone { jid: full("gone@a/x"), remembered: true });
        memory.note(here("here@a/x", 1, true));
        memory.follow();
        memory.flush().await;
        assert_eq!(memory.recall().await.unwrap().len(), 2);
        // The new leader may have written what is pending here: its removal is not skipped.
        memory.note(here("late@a/x", 1, true));
        memory.follow();
        memory.note(PresenceChange::Gone { jid: full("late@a/x"), remembered: true });
        let late = Row::Resource(full("late@a/x"));
        assert_eq!(memory.lock().get(&late), Some(&PendingChange::Gone));
    }

    #[tokio::test]
    async fn what_was_not_seen_for_a_day_is_forgotten() {
        let memory = memory().await;
        let jid = FullJid::clone(&full("a@b/c"));
        let old = OffsetDateTime::now_utc() - OLD - Duration::from_secs(60);
        memory.store.change_reachable(&memory.component, &[(jid, 0)], &[], old).await.unwrap();
        assert_eq!(memory.recall().await.unwrap(), []);
    }

    #[tokio::test]
    async fn while_the_database_is_away_no_more_is_kept_than_there_is() {
        use sqlx::Connection as _;
        // Without its table nothing can be written.
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", dir.path().join("keys.db").display());
        let store = Store::open(&url, 1, true).await.unwrap();
        let mut other = sqlx::SqliteConnection::connect(&url).await.unwrap();
        sqlx::query("DROP TABLE reachable").execute(&mut other).await.unwrap();
        let memory = Reachable::new(store, BareJid::new("xtls.example.org").unwrap());
        for number in 0..10_000 {
            let jid = format!("u@a/{number}");
            memory.note(here(&jid, 1, true));
            if number % 100 == 0 {
                assert!(memory.write_all().await.is_err());
            }
            memory.note(PresenceChange::Gone { jid: full(&jid), remembered: true });
        }
        memory.note(PresenceChange::Gone { jid: full("old@a/x"), remembered: true });
        assert_eq!(memory.lock().len(), 1);
    }

    #[tokio::test]
    async fn watchers_are_recalled_until_they_leave_or_one_of_both_is_erased() {
        use crate::registry::model::Actor;
        let memory = memory().await;
        let bare = |text| BareJid::new(text).unwrap();
        let pair = |watcher, contact| {
            Arc::new(WatchedPair { watcher: bare(watcher), contact: bare(contact) })
        };
        for (watcher, contact) in [("a@x", "b@x"), ("b@x", "c@x"), ("c@x", "d@x"), ("e@x", "f@x")] {
            let pair = pair(watcher, contact);
            memory.note_watcher(WatchChange::Remember { pair, is_new: true });
        }
        memory.write_all().await.unwrap();
        memory.note_watcher(WatchChange::Forget(pair("e@x", "f@x")));
        memory.write_all().await.unwrap();
        let erased = bare("b@x");
        let now = OffsetDateTime::now_utc();
        memory.store.erase(&erased, "hash", &Actor::User(erased.clone()), now).await.unwrap();
        let recalled = memory.recall_watchers().await.unwrap();
        assert_eq!(recalled, [(bare("c@x"), bare("d@x"), day_of(now))]);
        let old = now - Duration::from_secs(u64::from(AGE_DAYS + 1) * 86_400);
        let pair = pair("c@x", "d@x");
        memory.store.change_watchers(&memory.component, &[&*pair], &[], old).await.unwrap();
        assert_eq!(memory.recall_watchers().await.unwrap(), []);
    }

    #[tokio::test]
    async fn an_erased_user_is_not_recalled() {
        use crate::registry::model::Actor;
        let memory = memory().await;
        memory.note(here("a@b/c", 1, true));
        memory.write_all().await.unwrap();
        let owner = BareJid::new("a@b").unwrap();
        let now = OffsetDateTime::now_utc();
        memory.store.erase(&owner, "hash", &Actor::User(owner.clone()), now).await.unwrap();
        assert_eq!(memory.recall().await.unwrap(), []);
    }
}
