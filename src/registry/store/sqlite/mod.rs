//! The store on SQLite: WAL, and every commit is on the disk before it is acknowledged.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt, fchown},
    path::Path,
    str::FromStr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use sqlx::{
    Connection as _, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::sync::Mutex;

use super::{
    error::{ConnectionTrust, StoreError},
    news::{last_change, news_since},
    open::{OpenError, SchemaStanding},
    records::ExternalChanges,
    schema::{SQLITE, standing},
    sql::{Change, StoreConnection, query},
};

mod guard;
mod look;

use guard::FileGuard;
pub(super) use guard::save;
pub(super) use look::{Look, applied, beside, directory_of, inspect};

/// How long a writer waits for another.
pub(super) const BUSY: Duration = Duration::from_secs(10);

/// A SQLite database.
#[derive(Clone, Debug)]
pub(super) struct SqliteDatabase {
    pool: SqlitePool,
    /// Which connections may be reused.
    pub(super) trust: ConnectionTrust,
    /// Detects changes by other connections; `None` for a database in memory, which has only one.
    watch: Option<Arc<FileWatch>>,
    /// Sees that the file is replaced, if that was asked for.
    guard: Arc<OnceLock<Arc<FileGuard>>>,
}

impl SqliteDatabase {
    /// Notices from now on if the file is replaced.
    pub(super) async fn guard_file(&self) -> Result<(), sqlx::Error> {
        if let Some(watch) = &self.watch {
            let _ = self.guard.set(FileGuard::start(&watch.options).await?);
        }
        Ok(())
    }

    /// Whether the file was found to be another one.
    pub(super) fn has_lost_its_file(&self) -> bool {
        self.guard.get().is_some_and(|guard| guard.has_lost())
    }

    /// Checks that the file is still the one that is open.
    pub(super) async fn verify(&self) -> Result<(), StoreError> {
        match self.guard.get() {
            Some(guard) => guard.verify().await,
            None => Ok(()),
        }
    }

    /// What is to be done from time to time.
    pub(super) async fn tend(&self) {
        if let Some(guard) = self.guard.get() {
            guard.tend().await;
        }
    }

    pub(super) async fn open(
        url: &str,
        connections: u32,
        migrate: bool,
    ) -> Result<Self, OpenError> {
        Self::open_with(url, connections, migrate, BUSY).await
    }

    pub(super) async fn open_with(
        url: &str,
        connections: u32,
        migrate: bool,
        busy: Duration,
    ) -> Result<Self, OpenError> {
        let memory = url.contains(":memory:");
        let options = SqliteConnectOptions::from_str(url)
            .map_err(OpenError::Open)?
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            // The guard moves the log into the file, and the last connection that is closed.
            .pragma("wal_autocheckpoint", "0")
            .busy_timeout(busy);
        let trust = ConnectionTrust::default();
        let path = options.get_filename().to_owned();
        let mut before = None;
        // Each connection to memory is a database of its own, which ends with its connection.
        let (pool, watch) = if memory {
            let pool = SqlitePoolOptions::new()
                .max_connections(1)
                .idle_timeout(None)
                .max_lifetime(None)
                .connect_with(options)
                .await;
            (pool, None)
        } else {
            look::check_rights(&path)?;
            make_private(&path);
            before = inode(&path);
            let trusted = trust.clone();
            let pool = SqlitePoolOptions::new()
                .max_connections(connections.max(1))
                .before_acquire(move |_, connection| {
                    let good = trusted.admits(connection.age);
                    Box::pin(async move { Ok(good) })
                })
                .connect_with(options.clone())
                .await;
            (pool, Some(Arc::new(FileWatch { options, state: Mutex::new(None) })))
        };
        let pool = pool.map_err(OpenError::Open)?;
        // A restore may have waited for no program to have the file open, too.
        if !memory && inode(&path) != before {
            return Err(OpenError::Replaced);
        }
        if let Err(error) = prepare(&pool, migrate).await {
            // Otherwise the files beside the database may stay.
            pool.close().await;
            return Err(error);
        }
        Ok(Self { pool, trust, watch, guard: Arc::default() })
    }

    pub(super) async fn acquire(&self) -> Result<StoreConnection, sqlx::Error> {
        Ok(StoreConnection::Sqlite(self.pool.acquire().await?))
    }

    /// Begins a change. IMMEDIATE: the rows that are read here are still true when they are written.
    pub(super) async fn begin(&self) -> Result<Change, sqlx::Error> {
        let mut change = Change::of(self.acquire().await?);
        query("BEGIN IMMEDIATE").execute(&mut change).await?;
        Ok(change)
    }

    /// Closes all connections.
    pub(super) async fn close(&self) {
        self.pool.close().await;
    }

    /// Returns the numbers of open and of idle connections, and the most that may be open.
    pub(super) fn connections(&self) -> (u32, usize, u32) {
        (self.pool.size(), self.pool.num_idle(), self.pool.options().get_max_connections())
    }

    /// Returns whether other programs may change it.
    pub(super) fn is_shared(&self) -> bool {
        self.watch.is_some()
    }

    /// Returns what others have changed since the last call: everything that was committed before this call.
    pub(super) async fn news(&self) -> Result<ExternalChanges, sqlx::Error> {
        match &self.watch {
            Some(watch) => watch.look().await,
            None => Ok(ExternalChanges::None),
        }
    }
}

/// Makes sure that the schema is the one that this program works on.
async fn prepare(pool: &SqlitePool, migrate: bool) -> Result<(), OpenError> {
    let applied = applied(&mut *pool.acquire().await.map_err(OpenError::Open)?).await;
    match standing(&applied.map_err(OpenError::Open)?, &SQLITE)? {
        SchemaStanding::Current => Ok(()),
        SchemaStanding::Behind { .. } if migrate => Ok(SQLITE.run(pool).await?),
        SchemaStanding::Behind { found, needed } => Err(OpenError::Behind { found, needed }),
    }
}

/// A connection that changes nothing itself. So `PRAGMA data_version` shows it that another one has, in this process or
/// another; the audit log then tells what.
#[derive(Debug)]
struct FileWatch {
    options: SqliteConnectOptions,
    state: Mutex<Option<Seen>>,
}

#[derive(Debug)]
struct Seen {
    db: StoreConnection,
    version: i64,
    /// The last row of the audit log.
    seq: i64,
}

impl FileWatch {
    async fn look(&self) -> Result<ExternalChanges, sqlx::Error> {
        let mut state = self.state.lock().await;
        let Some(mut seen) = state.take() else {
            *state = Some(Seen::new(&self.options).await?);
            return Ok(ExternalChanges::Anything);
        };
        // After an error or a cancellation there is no state: the next call assumes that anything has changed.
        let news = seen.look().await?;
        *state = Some(seen);
        Ok(news)
    }
}

impl Seen {
    async fn new(options: &SqliteConnectOptions) -> Result<Self, sqlx::Error> {
        let mut db = StoreConnection::Single(SqliteConnection::connect_with(options).await?);
        let version = data_version(&mut db).await?;
        let seq = last_change(&mut db).await?;
        Ok(Self { db, version, seq })
    }

    async fn look(&mut self) -> Result<ExternalChanges, sqlx::Error> {
        let version = data_version(&mut self.db).await?;
        if version == self.version {
            return Ok(ExternalChanges::None);
        }
        let news = news_since(&mut self.db, &mut self.seq).await?;
        self.version = version;
        Ok(news)
    }
}

async fn data_version(db: &mut StoreConnection) -> Result<i64, sqlx::Error> {
    query("PRAGMA data_version").fetch_one(db).await?.try_get("data_version")
}

/// Makes a new database file private to its owner; an existing file keeps its mode.
fn make_private(path: &Path) {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    if let Ok(file) = made {
        let _ = give_to_service(&file, directory_of(path));
    }
}

/// Gives a file that root has made to the owner of its directory: the service that it is for runs as that user.
fn give_to_service(file: &File, directory: &Path) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let owner = directory.metadata()?;
    fchown(file, Some(owner.uid()), Some(owner.gid()))
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    path.metadata().map(|file| (file.dev(), file.ino())).ok()
}

#[cfg(test)]
mod tests {
    use fingerpost_wire::{
        key::KeyId,
        print::{HashKind, Method, Print},
    };
    use jid::BareJid;
    use time::{OffsetDateTime, macros::datetime};

    use super::*;
    use crate::registry::{
        model::{Actor, NewKey, Settings, Source, Visibility},
        store::{DatabaseKind, Store, audit, transfer},
    };

    const NOW: OffsetDateTime = datetime!(2026-11-24 2:00 UTC);
    const SHORT: Duration = Duration::from_millis(50);

    fn romeo() -> BareJid {
        BareJid::new("romeo@montague.lit").unwrap()
    }

    fn url(dir: &tempfile::TempDir) -> String {
        format!("sqlite:{}", dir.path().join("keys.db").display())
    }

    fn store(db: &SqliteDatabase) -> Store {
        Store::of(DatabaseKind::Sqlite(db.clone()))
    }

    async fn add(db: &SqliteDatabase, byte: u8) -> Result<(), StoreError> {
        let print = Print::new(HashKind::Sha256, &[byte; 32]).unwrap();
        let new = NewKey::of_prints(Method::X509, vec![print], "", Source::Self_).unwrap();
        let id = KeyId::new(byte.into());
        store(db).add(&romeo(), &new, 100, &Actor::User(romeo()), NOW, id).await.map(|_| ())
    }

    /// Returns a list that needs many pages.
    fn long(visibility: Visibility) -> Settings {
        let jid = |n| BareJid::new(&format!("{n}{}@example.org", "x".repeat(900))).unwrap();
        Settings { visibility, allowed: (0..256).map(jid).collect() }
    }

    async fn set(db: &SqliteDatabase, settings: &Settings) -> Result<(), StoreError> {
        store(db).set_settings(&romeo(), settings, &Actor::User(romeo()), NOW).await
    }

    #[tokio::test]
    async fn a_disk_that_was_full_once_does_no_harm() {
        for connections in [1, 4] {
            let dir = tempfile::tempdir().unwrap();
            let db = SqliteDatabase::open(&url(&dir), connections, true).await.unwrap();
            // Each connection has its own limit: all possible ones are opened and held to set it.
            let limit = async |pages: &str| {
                let mut held = Vec::new();
                for _ in 0..connections {
                    held.push(db.pool.acquire().await.unwrap());
                }
                for connection in &mut held {
                    let set = format!("PRAGMA max_page_count = {pages}");
                    let set = sqlx::query(sqlx::AssertSqlSafe(set));
                    set.fetch_all(&mut **connection).await.unwrap();
                }
            };
            add(&db, 1).await.unwrap();
            limit("1").await;
            let full = set(&db, &long(Visibility::Listed)).await.unwrap_err();
            assert!(full.to_string().contains("full"), "{full}");
            let seen = store(&db).profile(&romeo()).await.unwrap();
            assert_eq!((seen.keys.len(), seen.settings), (1, None), "half a change");
            limit("1000000").await;
            for byte in 2..10 {
                add(&db, byte).await.unwrap();
            }
            set(&db, &long(Visibility::Listed)).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_lock_that_is_held_for_too_long_does_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let db = SqliteDatabase::open_with(&url(&dir), 2, true, SHORT).await.unwrap();
        add(&db, 1).await.unwrap();
        let options = SqliteConnectOptions::from_str(&url(&dir)).unwrap();
        let mut other = SqliteConnection::connect_with(&options).await.unwrap();
        sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
        for _ in 0..5 {
            let locked = add(&db, 2).await.unwrap_err();
            assert!(locked.to_string().contains("locked"), "{locked}");
        }
        assert_eq!(store(&db).profile(&romeo()).await.unwrap().keys.len(), 1);
        sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
        add(&db, 2).await.unwrap();
    }

    #[tokio::test]
    async fn a_change_that_is_not_waited_for_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let db = SqliteDatabase::open(&url(&dir), 1, true).await.unwrap();
        for _ in 0..3 {
            let mut change = db.begin().await.unwrap();
            query("INSERT INTO blocks (jid, reason, at) VALUES ('a', '', 0)")
                .execute(&mut change)
                .await
                .unwrap();
            drop(change);
        }
        assert_eq!(store(&db).blocks().await.unwrap(), []);
        add(&db, 1).await.unwrap();
    }

    #[tokio::test]
    async fn what_others_change_is_seen_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let [here, there] = [
            SqliteDatabase::open(&url(&dir), 2, true).await.unwrap(),
            SqliteDatabase::open(&url(&dir), 2, true).await.unwrap(),
        ];
        assert_eq!(here.news().await.unwrap(), ExternalChanges::Anything);
        assert_eq!(here.news().await.unwrap(), ExternalChanges::None);
        add(&there, 1).await.unwrap();
        let of = |blocks| ExternalChanges::Of { owners: vec![romeo()], blocks };
        assert_eq!(here.news().await.unwrap(), of(false));
        assert_eq!(here.news().await.unwrap(), ExternalChanges::None);
        store(&there).block(&romeo(), "", &Actor::Offline, NOW).await.unwrap();
        assert_eq!(here.news().await.unwrap(), of(true));
        // A change that concerns no user.
        store(&there).write(&BareJid::new("xtls.m.lit").unwrap(), NOW).await.unwrap();
        assert_eq!(here.news().await.unwrap(), ExternalChanges::None);
        store(&there).erase(&romeo(), "hash", &Actor::Offline, NOW).await.unwrap();
        assert_eq!(here.news().await.unwrap(), ExternalChanges::Anything);
        assert_eq!(here.news().await.unwrap(), ExternalChanges::None);
    }

    #[tokio::test]
    async fn the_export_of_one_user_reads_no_row_of_another() {
        let db = SqliteDatabase::open("sqlite::memory:", 1, true).await.unwrap();
        for text in [audit::AUDIT_OF_ONE, audit::COUNT_OF_ONE, transfer::LOG_OF] {
            let plan = sqlx::query(sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {text}")));
            let steps = plan.fetch_all(&db.pool).await.unwrap();
            let steps: Vec<String> =
                steps.iter().map(|step| sqlx::Row::get(step, "detail")).collect();
            assert!(steps.iter().all(|step| !step.starts_with("SCAN")), "{text}: {steps:?}");
        }
        // Another user's rows that cannot be read do no harm.
        add(&db, 1).await.unwrap();
        set(&db, &long(Visibility::Listed)).await.unwrap();
        let before = store(&db).contents(Some(&romeo())).await.unwrap();
        assert_eq!((before.keys.len(), before.settings.len(), before.log.len()), (1, 1, 2));
        for text in [
            "INSERT INTO parties (id, jid) VALUES (99, '@')",
            "INSERT INTO settings (owner, visibility) VALUES (99, 'nobody')",
            "INSERT INTO blocks (jid, reason, at) VALUES ('@', '', 0)",
            "INSERT INTO audit (at, event, owner, actor_kind) VALUES (0, 'x', 99, 'offline')",
        ] {
            sqlx::query(text).execute(&db.pool).await.unwrap();
        }
        store(&db).contents(None).await.unwrap_err();
        assert_eq!(store(&db).contents(Some(&romeo())).await.unwrap(), before);
    }
}
