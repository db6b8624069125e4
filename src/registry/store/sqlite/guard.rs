//! Notices that the file of the database is no longer the one that is open: another file was moved or copied over it, or it
//! was removed.
//!
//! What is written then would be lost: SQLite would go on with a file that was removed from its directory, or mix pages
//! of both. So each operation asks here first, and once more before its result counts.
//!
//! A file that is moved has another inode. One that is copied over has not, but its length or the time of its last change
//! differ. Such a change is also made by a checkpoint, which moves pages from SQLite's log into the file. Therefore no
//! connection of this program makes one by itself (`wal_autocheckpoint` is 0). The guard makes them, and says so in the
//! file's header, for other instances: it raises the number there (`user_version`) in front of each. A change that
//! no raised number explains was not made by a checkpoint.

use std::{
    fs::{Metadata, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use sqlx::{
    AssertSqlSafe, Connection as _, SqliteConnection as Connection, sqlite::SqliteConnectOptions,
};
use tokio::{sync::Mutex, time::sleep};
use tracing::{debug, error, warn};

use super::look::beside;
use crate::registry::store::error::StoreError;

/// The log is moved into the file when it is this long: 1024 pages, about as much as SQLite would wait for.
const LOG_MAX: u64 = 4 << 20;
/// How long a checkpoint waits for readers and writers before it is tried again later.
const BUSY: Duration = Duration::from_millis(200);
/// How often, and how far apart, a changed file is looked at before it counts as another one: a checkpoint of another
/// instance may be under way.
const LOOKS: (u32, Duration) = (20, Duration::from_millis(100));

/// What can be seen of a file from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl FileStamp {
    fn of(path: &Path) -> io::Result<Self> {
        path.metadata().map(|file| Self::from(&file))
    }

    fn is_same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

impl From<&Metadata> for FileStamp {
    fn from(file: &Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
        }
    }
}

/// What a header says: whose file it is (drawn once), and how many checkpoints were announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct HeaderMark {
    lineage: i64,
    round: i64,
}

impl HeaderMark {
    async fn read(db: &mut Connection) -> Result<Self, sqlx::Error> {
        let lineage = sqlx::query_scalar("PRAGMA application_id").fetch_one(&mut *db).await?;
        let round = sqlx::query_scalar("PRAGMA user_version").fetch_one(db).await?;
        Ok(Self { lineage, round })
    }

    /// What stands in the file itself, whatever SQLite's log has to add.
    async fn in_file(path: &Path) -> Result<Self, sqlx::Error> {
        let options = SqliteConnectOptions::new().filename(path).read_only(true).immutable(true);
        let mut db = Connection::connect_with(&options).await?;
        let mark = Self::read(&mut db).await?;
        db.close().await?;
        Ok(mark)
    }
}

/// Watches one file.
#[derive(Debug)]
pub(super) struct FileGuard {
    path: PathBuf,
    /// How the file looked after the last checkpoint.
    seen: std::sync::Mutex<FileStamp>,
    inner: Mutex<GuardState>,
    lost: AtomicBool,
}

#[derive(Debug)]
struct GuardState {
    /// A connection that stays open, so that SQLite's log stays too.
    db: Option<Connection>,
    /// What the file's own header says.
    in_file: HeaderMark,
    /// The same with what the log adds.
    announced: i64,
}

impl FileGuard {
    /// Watches the file of `options` from now on.
    pub(super) async fn start(options: &SqliteConnectOptions) -> Result<Arc<Self>, sqlx::Error> {
        let path = options.get_filename().to_owned();
        let options = options.clone().create_if_missing(false).busy_timeout(BUSY);
        let mut db = Connection::connect_with(&options).await?;
        if HeaderMark::read(&mut db).await?.lineage == 0 {
            // Positive, and not 0.
            let lineage = (rand::random::<u32>() >> 1) | 1;
            set(&mut db, "application_id", lineage.into()).await;
        }
        checkpoint(&mut db).await;
        let announced = HeaderMark::read(&mut db).await?.round;
        let in_file = HeaderMark::in_file(&path).await?;
        let seen = FileStamp::of(&path)?;
        Ok(Arc::new(Self {
            path,
            seen: std::sync::Mutex::new(seen),
            inner: Mutex::new(GuardState { db: Some(db), in_file, announced }),
            lost: AtomicBool::new(false),
        }))
    }

    /// Whether the file was found to be another one.
    pub(super) fn has_lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst)
    }

    /// Checks that the file is still the one that is open.
    ///
    /// # Errors
    /// [`StoreError::Replaced`], from then on always.
    pub(super) async fn verify(self: &Arc<Self>) -> Result<(), StoreError> {
        if self.has_lost() {
            return Err(StoreError::Replaced);
        }
        if FileStamp::of(&self.path).is_ok_and(|stamp| stamp == self.seen()) {
            return Ok(());
        }
        let mut inner = self.inner.lock().await;
        for look in 0..LOOKS.0 {
            if self.has_lost() {
                return Err(StoreError::Replaced);
            }
            match FileStamp::of(&self.path) {
                Ok(stamp) if stamp == self.seen() => return Ok(()),
                Ok(stamp) if stamp.is_same_file(&self.seen()) => {
                    if self.is_explained(&mut inner, stamp).await {
                        return Ok(());
                    }
                }
                // It was removed from its directory, or is another one.
                _ => break,
            }
            debug!(look, "the database file has changed");
            sleep(LOOKS.1).await;
        }
        self.lost.store(true, Ordering::SeqCst);
        let guard = Arc::clone(self);
        // Not given up with the request that has found it out.
        tokio::spawn(async move { guard.secure().await });
        Err(StoreError::Replaced)
    }

    /// Whether another instance's checkpoint has changed the file.
    async fn is_explained(&self, inner: &mut GuardState, stamp: FileStamp) -> bool {
        let Some(db) = &mut inner.db else { return false };
        let (Ok(in_file), Ok(all)) =
            (HeaderMark::in_file(&self.path).await, HeaderMark::read(db).await)
        else {
            return false;
        };
        let explained = in_file.lineage == inner.in_file.lineage
            && in_file.round >= inner.in_file.round
            && all.round > inner.announced;
        if explained {
            (inner.in_file, inner.announced) = (in_file, all.round);
            self.see(stamp);
        }
        explained
    }

    /// Moves SQLite's log into the file if it has become long.
    pub(super) async fn tend(self: &Arc<Self>) {
        let log = beside(&self.path, "-wal").metadata().map_or(0, |log| log.len());
        if log < LOG_MAX || self.verify().await.is_err() {
            return;
        }
        let mut inner = self.inner.lock().await;
        let GuardState { db: Some(db), in_file, announced } = &mut *inner else { return };
        checkpoint(db).await;
        if let (Ok(file), Ok(all)) =
            (HeaderMark::in_file(&self.path).await, HeaderMark::read(db).await)
        {
            (*in_file, *announced) = (file, all.round);
        }
        if let Ok(stamp) = FileStamp::of(&self.path)
            && stamp.is_same_file(&self.seen())
        {
            self.see(stamp);
        }
    }

    /// Keeps what was acknowledged before the file was replaced, and keeps SQLite's log away from the other file.
    async fn secure(&self) {
        error!(
            file = %self.path.display(),
            "the database file was replaced or removed while it was in use: nothing is read or changed any more; stop \
             fingerpost, put the right file there with `fingerpost restore`, start it"
        );
        let mut inner = self.inner.lock().await;
        let Some(mut db) = inner.db.take() else { return };
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let aside = beside(&self.path, &format!(".replaced-{seconds}"));
        let was_moved =
            FileStamp::of(&self.path).map_or(true, |now| !now.is_same_file(&self.seen()));
        if was_moved {
            // What is open is whole, though its name is gone.
            if let Err(error) = save(&mut db, &aside).await {
                error!(%error, file = %aside.display(), "could not save what the file had in it");
            } else {
                warn!(file = %aside.display(), "what was acknowledged before is saved in this file");
            }
            checkpoint_now(&mut db).await;
        }
        for suffix in ["-wal", "-shm"] {
            let file = beside(&self.path, suffix);
            if file.metadata().is_ok_and(|file| file.len() > 0)
                // Under a name that SQLite does not take for the log of the file that is saved.
                && let Err(error) = std::fs::rename(&file, beside(&aside, &suffix.replace('-', ".")))
            {
                error!(%error, file = %file.display(), "could not move this file away");
            }
        }
        // The last connection that is closed would write the log into the file.
        std::mem::forget(db);
    }

    fn seen(&self) -> FileStamp {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn see(&self, stamp: FileStamp) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = stamp;
    }
}

/// Announces a checkpoint in the header and makes it. If others are busy, some or all of it is left for the next.
async fn checkpoint(db: &mut Connection) {
    let Ok(mark) = HeaderMark::read(db).await else { return };
    if set(db, "user_version", mark.round + 1).await {
        checkpoint_now(db).await;
    }
}

async fn checkpoint_now(db: &mut Connection) {
    if let Err(error) = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").fetch_all(db).await {
        debug!(%error, "no checkpoint");
    }
}

/// Sets a number in the header; says whether it was possible.
async fn set(db: &mut Connection, name: &str, value: i64) -> bool {
    let set = AssertSqlSafe(format!("PRAGMA {name} = {value}"));
    let done = sqlx::query(set).execute(db).await;
    if let Err(error) = &done {
        debug!(%error, name, "the header of the database was not changed");
    }
    done.is_ok()
}

/// Writes all that a connection sees into a new file, for its owner alone.
pub(crate) async fn save(db: &mut Connection, file: &Path) -> Result<(), sqlx::Error> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    let name = file.to_str().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidFilename))?;
    sqlx::query("VACUUM INTO $1").bind(name.to_owned()).execute(db).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use jid::BareJid;
    use time::{OffsetDateTime, macros::datetime};

    use super::{super::SqliteDatabase, *};
    use crate::registry::{
        model::{Actor, Settings, Visibility},
        store::{DatabaseKind, Store},
    };

    const NOW: OffsetDateTime = datetime!(2026-11-24 2:00 UTC);

    async fn open(dir: &tempfile::TempDir) -> SqliteDatabase {
        let url = format!("sqlite:{}", dir.path().join("keys.db").display());
        let db = SqliteDatabase::open(&url, 2, true).await.unwrap();
        db.guard_file().await.unwrap();
        db
    }

    /// Writes about 250 KB.
    async fn write(db: &SqliteDatabase, number: usize) {
        let owner = BareJid::new("romeo@montague.lit").unwrap();
        let jid =
            |n| BareJid::new(&format!("{number}-{n}{}@example.org", "x".repeat(900))).unwrap();
        let allowed = (0..256).map(jid).collect();
        let settings = Settings { visibility: Visibility::Listed, allowed };
        let store = Store::of(DatabaseKind::Sqlite(db.clone()));
        store.set_settings(&owner, &settings, &Actor::Offline, NOW).await.unwrap();
    }

    fn log_size(dir: &tempfile::TempDir) -> u64 {
        dir.path().join("keys.db-wal").metadata().unwrap().len()
    }

    #[tokio::test]
    async fn checkpoints_of_several_instances_are_told_from_another_file() {
        let dir = tempfile::tempdir().unwrap();
        let dbs = [open(&dir).await, open(&dir).await];
        let mut checkpoints = 0;
        for number in 0..120 {
            write(&dbs[number % 2], number).await;
            let before = log_size(&dir);
            dbs[(number / 40) % 2].tend().await;
            checkpoints += u32::from(log_size(&dir) < before);
            for db in &dbs {
                db.verify().await.unwrap();
            }
        }
        assert!(checkpoints >= 3, "{checkpoints}");

        // The same bytes, written by another program.
        let file = dir.path().join("keys.db");
        let copy = dir.path().join("copy.db");
        fs::copy(&file, &copy).unwrap();
        fs::copy(&copy, &file).unwrap();
        for db in &dbs {
            assert!(matches!(db.verify().await, Err(StoreError::Replaced)));
            assert!(db.has_lost_its_file());
        }
    }

    #[tokio::test]
    async fn a_file_with_another_name_or_none_is_lost() {
        for put_another in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let db = open(&dir).await;
            write(&db, 1).await;
            let file = dir.path().join("keys.db");
            fs::rename(&file, dir.path().join("away.db")).unwrap();
            if put_another {
                fs::write(&file, "another").unwrap();
            }
            assert!(matches!(db.verify().await, Err(StoreError::Replaced)));
            fs::rename(dir.path().join("away.db"), &file).unwrap();
            assert!(matches!(db.verify().await, Err(StoreError::Replaced)), "until a restart");
        }
    }
}
