//! Backup and restore of a SQLite database: everything in one file.
//!
//! A backup is made while the database is in use. A restore is made while nothing has it open: SQLite holds a lock on
//! the file for as long as it is open, and here the whole file is locked.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
    str::FromStr,
};

use fingerpost_secure::shared_file;
use rustix::fs::{FlockOperation, fcntl_lock};
use sqlx::{Connection as _, SqliteConnection as Connection, sqlite::SqliteConnectOptions};
use time::OffsetDateTime;

use super::{
    open::{OpenError, SchemaStanding},
    schema::{SQLITE, standing},
    sqlite::{self, BUSY, beside, directory_of},
};

/// Why there is no backup, or nothing was restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// Its server has programs for this.
    #[error("the database is PostgreSQL, whose own programs make and restore backups")]
    Postgres,
    /// It is nowhere.
    #[error("the database is in memory only")]
    InMemory,
    /// A program has the database open.
    #[error("{}: the database is in use", .0.display())]
    InUse(PathBuf),
    /// The target of a backup is there already.
    #[error("{}: the file exists already", .0.display())]
    Exists(PathBuf),
    /// What is in a file is not good.
    #[error("{}: {text}", .file.display())]
    Content {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        text: String,
    },
    /// The schema is not one of this program.
    #[error("{}: {source}", .file.display())]
    Schema {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        source: OpenError,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", .file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// Says of an error which file it is about.
fn of<E: Into<sqlx::Error>>(file: &Path) -> impl Fn(E) -> BackupError {
    move |error| {
        let file = file.to_owned();
        match error.into() {
            sqlx::Error::Io(source) => BackupError::File { file, source },
            sqlx::Error::Database(error) => {
                BackupError::Content { file, text: error.message().to_owned() }
            }
            other => BackupError::Content { file, text: other.to_string() },
        }
    }
}

/// The options by which a database's file is opened.
fn options(url: &str) -> Result<SqliteConnectOptions, BackupError> {
    if !url.starts_with("sqlite:") {
        return Err(BackupError::Postgres);
    }
    if url.contains(":memory:") {
        return Err(BackupError::InMemory);
    }
    let options = SqliteConnectOptions::from_str(url).map_err(of(Path::new(url)))?;
    Ok(options.create_if_missing(false).busy_timeout(BUSY).pragma("wal_autocheckpoint", "0"))
}

/// Writes all that is in the database at `url` into a new file for its owner alone, also while the database is in use.
///
/// # Errors
/// [`BackupError`]; then there is no new file.
pub async fn back_up(url: &str, target: &Path) -> Result<(), BackupError> {
    let options = options(url)?;
    let path = options.get_filename().to_owned();
    if target.symlink_metadata().is_ok() {
        return Err(BackupError::Exists(target.to_owned()));
    }
    path.metadata().map_err(of(&path))?;
    let mut db = Connection::connect_with(&options).await.map_err(of(&path))?;
    is_ours(&mut db, &path).await?;
    let directory = directory_of(target);
    let scratch = tempfile::Builder::new().prefix(".fingerpost-backup-").tempdir_in(directory);
    let scratch = scratch.map_err(of(directory))?;
    let file = scratch.path().join("new.db");
    sqlite::save(&mut db, &file).await.map_err(of(target))?;
    db.close().await.map_err(of(&path))?;
    let mut copy = sqlite::Look::open(&file).await.map_err(of(target))?;
    if let Some(text) = copy.damage().await.map_err(of(&path))? {
        return Err(BackupError::Content { file: path, text });
    }
    File::open(&file).and_then(|file| file.sync_all()).map_err(of(target))?;
    // A link does not replace what has appeared meanwhile.
    fs::hard_link(&file, target).map_err(of(target))?;
    shared_file::sync(directory).map_err(of(directory))
}

/// Puts the database of a backup in place of the one at `url`, which is kept beside it; gives the name of that one, if
/// there was one.
///
/// # Errors
/// [`BackupError`]; then the database is as it was.
pub async fn restore(
    url: &str,
    backup: &Path,
    now: OffsetDateTime,
) -> Result<Option<PathBuf>, BackupError> {
    let options = options(url)?;
    let path = options.get_filename();
    let old = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => Some(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(of(path)(error)),
    };
    if let Some(old) = &old {
        // Held until all is done: a program that starts meanwhile waits for it.
        fcntl_lock(old, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| BackupError::InUse(path.to_owned()))?;
        let same = |a: fs::Metadata, b: fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
        if same(old.metadata().map_err(of(path))?, backup.metadata().map_err(of(backup))?) {
            let text = "this is the database itself".to_owned();
            return Err(BackupError::Content { file: backup.to_owned(), text });
        }
    }
    let directory = directory_of(path);
    let scratch = tempfile::Builder::new().prefix(".fingerpost-restore-").tempdir_in(directory);
    let scratch = scratch.map_err(of(directory))?;
    let new = scratch.path().join("new.db");
    fs::copy(backup, &new).map_err(of(backup))?;
    let log = beside(backup, "-wal");
    if log.exists() {
        fs::copy(&log, beside(&new, "-wal")).map_err(of(&log))?;
    }
    make_whole(&new, backup).await?;
    let file = OpenOptions::new().write(true).open(&new).map_err(of(&new))?;
    let owner = old.as_ref().map_or_else(|| directory.metadata(), File::metadata);
    give(&file, &owner.map_err(of(path))?, old.is_some()).map_err(of(path))?;
    file.sync_all().map_err(of(&new))?;
    let kept = match old {
        Some(_) => Some(keep(path, now).map_err(of(path))?),
        None => None,
    };
    for suffix in ["-wal", "-shm"] {
        match fs::remove_file(beside(path, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(of(path)(error)),
            _ => {}
        }
    }
    fs::rename(&new, path).map_err(of(path))?;
    shared_file::sync(directory).map_err(of(directory))?;
    Ok(kept)
}

/// Checks a copy of `backup` as thoroughly as SQLite can, and moves what its log has into it.
async fn make_whole(copy: &Path, backup: &Path) -> Result<(), BackupError> {
    let broken = |text| BackupError::Content { file: backup.to_owned(), text };
    let options = SqliteConnectOptions::new().filename(copy);
    let mut db = Connection::connect_with(&options).await.map_err(of(backup))?;
    let found: Vec<String> = sqlx::query_scalar("PRAGMA integrity_check(1)")
        .fetch_all(&mut db)
        .await
        .map_err(of(backup))?;
    if found != ["ok"] {
        return Err(broken(format!("the file is damaged: {}", found.join(", "))));
    }
    is_ours(&mut db, backup).await?;
    let dangling = sqlx::query("PRAGMA foreign_key_check").fetch_optional(&mut db).await;
    if dangling.map_err(of(backup))?.is_some() {
        return Err(broken("the file is damaged: a row refers to one that is missing".to_owned()));
    }
    sqlx::query("PRAGMA journal_mode = DELETE").execute(&mut db).await.map_err(of(backup))?;
    db.close().await.map_err(of(backup))
}

/// Checks that a database is one of this program, of a version that it knows.
async fn is_ours(db: &mut Connection, file: &Path) -> Result<(), BackupError> {
    let applied = sqlite::applied(db).await.map_err(of(file))?;
    let schema = |source| BackupError::Schema { file: file.to_owned(), source };
    match standing(&applied, &SQLITE).map_err(schema)? {
        SchemaStanding::Behind { found: 0, .. } => Err(BackupError::Content {
            file: file.to_owned(),
            text: "this is not a database of fingerpost".to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Gives a new file the owner, and if `with_mode` the rights, of what it replaces.
fn give(file: &File, like: &fs::Metadata, with_mode: bool) -> io::Result<()> {
    let own = file.metadata()?;
    let mode = if with_mode { like.mode() & 0o777 } else { 0o600 };
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    if (own.uid(), own.gid()) == (like.uid(), like.gid()) {
        return Ok(());
    }
    fchown(file, Some(like.uid()), Some(like.gid()))
}

/// Keeps the database under another name, with the log that belongs to it.
fn keep(path: &Path, now: OffsetDateTime) -> io::Result<PathBuf> {
    let kept = beside(path, &format!(".before-restore-{}", now.unix_timestamp()));
    fs::hard_link(path, &kept)?;
    let log = beside(path, "-wal");
    if log.exists() {
        fs::hard_link(log, beside(&kept, "-wal"))?;
    }
    Ok(kept)
}
