//! The database, and the operations on it. Their SQL is written once for SQLite and PostgreSQL.
//!
//! | file | content |
//! |---|---|
//! | `keys.rs`, `users.rs`, `audit.rs` | keys; their users, with settings and blocks; the log of all changes |
//! | `parties.rs`, `revoked.rs`, `news.rs` | rows of users; prints that stay revoked; what other programs learn |
//! | `journal.rs`, `reachable.rs`, `watchers.rs`, `identity.rs` | open sessions, reachable resources and who watches them, the component's own key |
//! | `transfer.rs` | export and import of everything |
//! | `sql.rs` | one way to run SQL on both databases |
//! | `sqlite`, `postgres`, `schema.rs` | what is different between them: connections, locks, schemas |
//! | [`open`], [`error`], [`records`] | how a database is opened, how it fails, what it gives and takes |
//! | [`backup`] | a SQLite database as one file |
//!
//! Lookups return an `Option` or a list. Changes take `now` and write their audit rows in the same transaction: an
//! acknowledged change is on the disk, and a failed one has left no trace.

mod audit;
pub mod backup;
pub mod error;
mod identity;
mod journal;
mod keys;
mod news;
pub mod open;
mod parties;
mod postgres;
mod reachable;
pub mod records;
mod revoked;
mod schema;
mod sql;
mod sqlite;
mod transfer;
mod users;
mod watchers;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use fingerpost_secure::material_error::MATERIAL_MAX;
use jid::BareJid;
use time::OffsetDateTime;
use tokio::time::timeout;

pub use self::postgres::Changes;
pub(crate) use self::postgres::Meeting;
use self::{
    error::StoreError,
    open::{Inspected, OpenError, StoreOptions},
    records::{ExternalChanges, Instance},
    sql::{StoreConnection, micros, query},
};
use crate::metrics;

/// A database of keys. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    kind: DatabaseKind,
    /// How long an operation may take.
    deadline: Duration,
    writes: Arc<tokio::sync::Mutex<Writes>>,
}

/// The last attempts to find out whether the database accepts changes.
#[derive(Debug, Default)]
struct Writes {
    tried: Option<Instant>,
    done: Option<Instant>,
}

/// The pause before the next attempt on a database that accepts changes; after a failure it is [`RETRY`].
const ASK_AGAIN: Duration = Duration::from_secs(20);
/// See [`ASK_AGAIN`].
const RETRY: Duration = Duration::from_secs(1);
/// How long a database may take to show that it answers, or takes changes.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
enum DatabaseKind {
    Postgres(postgres::PostgresDatabase),
    Sqlite(sqlite::SqliteDatabase),
}

/// How long a request waits for the database in all.
const DEADLINE: Duration = Duration::from_secs(10);
/// The same for what reads or writes everything.
const BULK: Duration = Duration::from_secs(3600);

/// Checks the address of a database, without asking for it.
///
/// # Errors
/// What is wrong with it, without its password.
pub fn check_address(url: &str) -> Result<(), String> {
    if url.starts_with("postgres") { postgres::check_address(url) } else { Ok(()) }
}

impl Store {
    fn of(kind: DatabaseKind) -> Self {
        Self { kind, deadline: DEADLINE, writes: Arc::default() }
    }

    /// Returns the same database for operations that read or write everything.
    fn bulk(&self) -> Self {
        let kind = match &self.kind {
            DatabaseKind::Postgres(db) => DatabaseKind::Postgres(db.bulk()),
            DatabaseKind::Sqlite(db) => DatabaseKind::Sqlite(db.clone()),
        };
        Self { kind, deadline: BULK, ..self.clone() }
    }

    /// Returns the same database for looks at whether it works.
    fn impatient(&self) -> Self {
        Self { deadline: PATIENCE, ..self.clone() }
    }

    /// Runs an operation that only reads.
    async fn read<T>(
        &self,
        operation: &'static str,
        work: impl AsyncFnOnce(&mut StoreConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let work = async {
            let mut db = match &self.kind {
                DatabaseKind::Postgres(db) => db.acquire().await?,
                DatabaseKind::Sqlite(db) => db.acquire().await?,
            };
            work(&mut db).await
        };
        self.observed(operation, work).await
    }

    /// Runs a change: all or nothing. Waits for the one in progress, here or in another Fingerpost.
    async fn change<T>(
        &self,
        operation: &'static str,
        work: impl AsyncFnOnce(&mut StoreConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let work = async {
            match &self.kind {
                DatabaseKind::Postgres(db) => db.begin().await?.commit_after(work).await,
                DatabaseKind::Sqlite(db) => db.begin().await?.commit_after(work).await,
            }
        };
        self.observed(operation, work).await
    }

    /// Runs a change that does not depend on others' changes.
    async fn change_apart<T>(
        &self,
        operation: &'static str,
        work: impl AsyncFnOnce(&mut StoreConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let work = async {
            match &self.kind {
                DatabaseKind::Postgres(db) => db.begin_apart().await?.commit_after(work).await,
                DatabaseKind::Sqlite(db) => db.begin().await?.commit_after(work).await,
            }
        };
        self.observed(operation, work).await
    }

    /// Limits the time of an operation, counts it and measures it.
    async fn observed<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let began = Instant::now();
        let work = async {
            match &self.kind {
                DatabaseKind::Postgres(db) => db.trust.judged(work.await),
                DatabaseKind::Sqlite(db) => {
                    db.verify().await?;
                    let done = db.trust.judged(work.await);
                    // What went into another file than the one that is there is not done.
                    db.verify().await?;
                    done
                }
            }
        };
        let late = |_| Err(StoreError::Late(self.deadline));
        let done = timeout(self.deadline, work).await.unwrap_or_else(late);
        let outcome = match &done {
            Ok(_) => "done",
            Err(StoreError::NotAllowed(_)) => "refused",
            Err(_) => "failed",
        };
        metrics::REGISTRY_OPERATIONS.count(&[operation, outcome]);
        metrics::REGISTRY_SECONDS.took(began.elapsed());
        done
    }

    /// Returns why this instance cannot serve its users as it should, if there is a reason.
    pub fn obstacle(&self) -> Option<&'static str> {
        match &self.kind {
            DatabaseKind::Postgres(db) => db.obstacle(),
            DatabaseKind::Sqlite(db) => db
                .has_lost_its_file()
                .then_some("the database file was replaced or removed (the log says what to do)"),
        }
    }

    /// Meets the other instances of a component; `None` if the database belongs to one alone, or if a pooler keeps
    /// instances from meeting: then each looks whether it is alone.
    pub(crate) async fn meet(
        &self,
        component: &BareJid,
        id: &str,
    ) -> Result<Option<Meeting>, StoreError> {
        match &self.kind {
            // Instances meet by a lock and by notifications, which belong to a session of the database.
            DatabaseKind::Postgres(db) if db.is_pooled() => {
                db.look_for_rivals(component, id).await?;
                Ok(None)
            }
            DatabaseKind::Postgres(db) => Ok(Some(db.meet(component, id).await?)),
            DatabaseKind::Sqlite(_) => Ok(None),
        }
    }

    /// Returns whether instances can meet in this database: it can be shared, and no pooler is between.
    pub(crate) fn lets_instances_meet(&self) -> bool {
        matches!(&self.kind, DatabaseKind::Postgres(db) if !db.is_pooled())
    }

    /// Returns the instances of a component; none if the database cannot be shared.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn instances(&self, component: &BareJid) -> Result<Vec<Instance>, StoreError> {
        match &self.kind {
            DatabaseKind::Postgres(db) => Ok(db.instances(component).await?),
            DatabaseKind::Sqlite(_) => Ok(Vec::new()),
        }
    }

    /// Opens a database: `sqlite:FILE`, `sqlite::memory:` or `postgres://…`. With `migrate`, updates its schema.
    ///
    /// # Errors
    /// [`OpenError`]
    pub async fn open(url: &str, max_connections: u32, migrate: bool) -> Result<Self, OpenError> {
        Self::open_with(&StoreOptions { url, max_connections, migrate, pooler: false }).await
    }

    /// Opens a database.
    ///
    /// # Errors
    /// [`OpenError`]
    pub async fn open_with(options: &StoreOptions<'_>) -> Result<Self, OpenError> {
        let &StoreOptions { url, max_connections, migrate, .. } = options;
        let kind = if url.starts_with("sqlite:") {
            DatabaseKind::Sqlite(sqlite::SqliteDatabase::open(url, max_connections, migrate).await?)
        } else if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            DatabaseKind::Postgres(postgres::PostgresDatabase::open(options).await?)
        } else {
            return Err(OpenError::Kind);
        };
        Ok(Self::of(kind))
    }

    /// Checks that the server has as many connections for this program as it may need.
    ///
    /// # Errors
    /// [`OpenError`]
    pub async fn check_connections(&self) -> Result<(), OpenError> {
        let shortage = match &self.kind {
            DatabaseKind::Postgres(db) => db.shortage().await.map_err(OpenError::Open)?,
            DatabaseKind::Sqlite(_) => None,
        };
        shortage.map_or(Ok(()), |(most, needed)| Err(OpenError::Connections { most, needed }))
    }

    /// Finds whether [`Self::open`] with the same arguments would give a database that can be used. Nothing is created
    /// and nothing is changed. Also returns the database, if it can be used at once and by several instances together.
    ///
    /// # Errors
    /// [`OpenError`]
    pub async fn inspect(
        options: &StoreOptions<'_>,
    ) -> Result<(Inspected, Option<Self>), OpenError> {
        if options.url.starts_with("sqlite:") {
            return Ok((sqlite::inspect(options.url, options.migrate).await?, None));
        }
        if !options.url.starts_with("postgres") {
            return Err(OpenError::Kind);
        }
        let (db, found) = postgres::PostgresDatabase::look(options).await?;
        let store = Self::of(DatabaseKind::Postgres(db));
        store.check_connections().await?;
        let store = found.to_do.is_none().then_some(store);
        Ok((found, store))
    }

    /// Closes the connections to a file, so that nothing is left beside it.
    pub async fn close(&self) {
        match &self.kind {
            // They end with the program.
            DatabaseKind::Postgres(_) => {}
            DatabaseKind::Sqlite(db) => db.close().await,
        }
    }

    /// Returns whether cached data must be checked at each lookup, because nothing reports changes by other programs.
    pub(super) fn must_look(&self) -> bool {
        match &self.kind {
            DatabaseKind::Postgres(_) => false,
            DatabaseKind::Sqlite(db) => db.is_shared(),
        }
    }

    /// Returns whether changes by other programs are reported by [`Self::changes`].
    pub(super) fn tells(&self) -> bool {
        matches!(self.kind, DatabaseKind::Postgres(_))
    }

    /// Returns what other programs have changed since the last call, where nothing reports it.
    ///
    /// # Errors
    /// [`StoreError`]; then anything may have changed.
    pub(super) async fn news(&self) -> Result<ExternalChanges, StoreError> {
        match &self.kind {
            DatabaseKind::Postgres(_) => Ok(ExternalChanges::None),
            DatabaseKind::Sqlite(db) => {
                db.verify().await?;
                Ok(db.news().await?)
            }
        }
    }

    /// Notices from now on if the file of the database is replaced: then nothing is read or changed any more. Call
    /// `tend` from then on.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn guard_file(&self) -> Result<(), StoreError> {
        match &self.kind {
            DatabaseKind::Postgres(_) => Ok(()),
            DatabaseKind::Sqlite(db) => Ok(db.guard_file().await?),
        }
    }

    /// Does what is to be done every second or so.
    pub(super) async fn tend(&self) {
        if let DatabaseKind::Sqlite(db) = &self.kind {
            db.tend().await;
        }
    }

    /// Checks whether the database accepts changes, and returns how long ago it last did. The check runs at most every
    /// 20 seconds, and every second after a failure.
    pub async fn last_write(&self, component: &BareJid, now: OffsetDateTime) -> Option<Duration> {
        let mut writes = self.writes.lock().await;
        let works = writes.done.is_some() && writes.done >= writes.tried;
        let again = if works { ASK_AGAIN } else { RETRY };
        if writes.tried.is_none_or(|tried| tried.elapsed() >= again) {
            let began = Instant::now();
            writes.tried = Some(began);
            match self.write(component, now).await {
                Ok(()) => writes.done = Some(Instant::now()),
                Err(error) => tracing::warn!(%error, "the database does not take changes"),
            }
        }
        let works = writes.done.is_some() && writes.done >= writes.tried;
        writes.done.filter(|_| works).map(|done| done.elapsed())
    }

    /// Writes a row of the size of a key's material, and removes it again: a database without room for that does not
    /// accept new keys.
    async fn write(&self, component: &BareJid, now: OffsetDateTime) -> Result<(), StoreError> {
        self.impatient()
            .change_apart("write", async |tx| {
                query(
                    "INSERT INTO heartbeats (component, at, room) VALUES ($1, $2, $3)
                     ON CONFLICT (component) DO UPDATE SET at = excluded.at, room = excluded.room",
                )
                .bind(component.as_str())
                .bind(micros(now))
                .bind(vec![0_u8; MATERIAL_MAX])
                .execute(tx)
                .await?;
                query("UPDATE heartbeats SET room = $2 WHERE component = $1")
                    .bind(component.as_str())
                    .bind(Vec::<u8>::new())
                    .execute(tx)
                    .await?;
                Ok(())
            })
            .await
    }

    /// Listens to changes from now on, if the database can be shared.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn changes(&self) -> Result<Option<Changes>, StoreError> {
        match &self.kind {
            DatabaseKind::Postgres(db) => Ok(Some(db.listen().await?)),
            DatabaseKind::Sqlite(_) => Ok(None),
        }
    }

    /// Checks that the database answers.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.impatient()
            .read("ping", async |db| {
                query("SELECT 1 FROM keys LIMIT 1").fetch_optional(db).await?;
                Ok(())
            })
            .await
    }

    /// Returns the connections to the database: open, idle, and at most.
    pub fn connections(&self) -> (u32, usize, u32) {
        match &self.kind {
            DatabaseKind::Postgres(db) => db.connections(),
            DatabaseKind::Sqlite(db) => db.connections(),
        }
    }
}

#[cfg(test)]
mod tests {
    use fingerpost_wire::{
        key::{KeyId, State},
        print::{HashKind, Method, Print},
    };
    use time::macros::datetime;

    use super::records::Added;
    use super::*;
    use crate::registry::model::{
        Actor, AuditEvent, NewKey, NotAllowed, Settings, Source, Visibility,
    };

    const NOW: OffsetDateTime = datetime!(2026-11-24 2:00 UTC);

    fn user(name: &str) -> BareJid {
        BareJid::new(&format!("{name}@example.org")).unwrap()
    }

    fn new(byte: u8) -> NewKey {
        let print = Print::new(HashKind::Sha256, &[byte; 32]).unwrap();
        NewKey::of_prints(Method::X509, vec![print], "laptop", Source::Self_).unwrap()
    }

    async fn add(store: &Store, name: &str, key: NewKey, id: u128) -> Added {
        let owner = user(name);
        let actor = Actor::User(owner.clone());
        store.add(&owner, &key, 32, &actor, NOW, KeyId::new(id)).await.unwrap()
    }

    async fn life_story(store: &Store) {
        let romeo = user("romeo");
        assert_eq!(store.keys_of(&romeo).await.unwrap(), []);
        let first = add(store, "romeo", new(1), 1).await;
        assert!(first.fresh && first.also_owned_by.is_empty());
        let again = add(store, "romeo", new(1), 2).await;
        assert_eq!((again.key.id, again.fresh), (first.key.id, false));
        let other = add(store, "juliet", new(1), 3).await;
        assert_eq!((other.fresh, other.also_owned_by), (true, vec![romeo.clone()]));
        let second = add(store, "romeo", new(2).replacing(Some(first.key.id)), 4).await;
        let keys = store.keys_of(&romeo).await.unwrap();
        assert_eq!(
            keys.iter().map(|key| key.state).collect::<Vec<_>>(),
            [State::Superseded, State::Active]
        );
        assert_eq!(keys[0].replaced_by, Some(second.key.id));

        let stranger = Actor::User(user("juliet"));
        let refused = store.revoke(second.key.id, &stranger, "", NOW).await;
        assert!(matches!(refused, Err(StoreError::NotAllowed(NotAllowed::NoSuchKey))));
        let own = Actor::User(romeo.clone());
        let (revoked, fresh) = store.revoke(second.key.id, &own, "lost", NOW).await.unwrap();
        assert!(fresh);
        assert_eq!((revoked.state, revoked.reason.as_str()), (State::Revoked, "lost"));
        assert_eq!(
            store.revoke(second.key.id, &own, "again", NOW).await.unwrap(),
            (revoked.clone(), false)
        );
        assert_eq!(add(store, "romeo", new(2), 5).await.key, revoked);

        let print = Print::new(HashKind::Sha256, &[1; 32]).unwrap();
        assert_eq!(store.owners_of(&print).await.unwrap(), [user("juliet"), romeo.clone()]);
        let log = store.audit(Some(&romeo), 100).await.unwrap();
        assert_eq!(
            log.iter().map(|entry| entry.event.clone()).collect::<Vec<_>>(),
            [
                AuditEvent::Added,
                AuditEvent::Added,
                AuditEvent::Superseded { by: second.key.id },
                AuditEvent::Revoked
            ]
        );
        assert_eq!(log[0].actor, Some(own));
    }

    #[tokio::test]
    async fn the_life_of_keys_in_memory() {
        life_story(&Store::open("sqlite::memory:", 8, true).await.unwrap()).await;
    }

    #[tokio::test]
    async fn the_life_of_keys_in_a_file_outlasts_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", dir.path().join("keys.db").display());
        life_story(&Store::open(&url, 4, true).await.unwrap()).await;
        let store = Store::open(&url, 4, true).await.unwrap();
        assert_eq!(store.all().await.unwrap().len(), 3);
    }

    #[tokio::test]
    async fn keys_that_are_no_longer_active_count_too() {
        let store = Store::open("sqlite::memory:", 1, true).await.unwrap();
        let owner = user("romeo");
        let actor = Actor::User(owner.clone());
        let limit = 2;
        let refused = async {
            for byte in 0..u8::MAX {
                let id = KeyId::new(byte.into());
                match store.add(&owner, &new(byte), limit, &actor, NOW, id).await {
                    Ok(added) => store.revoke(added.key.id, &actor, "", NOW).await.unwrap(),
                    Err(error) => return (byte, error),
                };
            }
            panic!("there is no limit");
        }
        .await;
        let (count, error) = refused;
        assert_eq!(count, 8);
        assert!(matches!(error, StoreError::NotAllowed(NotAllowed::TooManyEver(8))), "{error}");
        assert!(error.to_string().contains("no longer active"), "{error}");
        // A known key is still returned.
        assert!(
            !store.add(&owner, &new(0), limit, &actor, NOW, KeyId::new(99)).await.unwrap().fresh
        );
    }

    #[tokio::test]
    async fn settings_that_are_as_they_were_leave_no_trace() {
        let store = Store::open("sqlite::memory:", 1, true).await.unwrap();
        let owner = user("romeo");
        let actor = Actor::User(owner.clone());
        for visibility in [Visibility::Nobody, Visibility::Nobody, Visibility::Local] {
            let settings = Settings { visibility, allowed: vec![user("juliet")] };
            store.set_settings(&owner, &settings, &actor, NOW).await.unwrap();
        }
        assert_eq!(store.audit(Some(&owner), 100).await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn the_limit_of_active_keys_holds() {
        let store = Store::open("sqlite::memory:", 1, true).await.unwrap();
        let owner = user("romeo");
        let actor = Actor::User(owner.clone());
        for byte in 0..2 {
            store.add(&owner, &new(byte), 2, &actor, NOW, KeyId::new(byte.into())).await.unwrap();
        }
        let third = store.add(&owner, &new(9), 2, &actor, NOW, KeyId::new(9)).await;
        assert!(matches!(third, Err(StoreError::NotAllowed(NotAllowed::TooManyKeys(2)))));
    }
}
