//! Reads a database file without changing it, for any user of the system, also while another process has it open.

use std::{
    ffi::OsString,
    fs::Metadata,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use rustix::fs::{Access, access};
use sqlx::{
    Connection as _, Row as _, SqliteConnection as Connection, sqlite::SqliteConnectOptions,
};
use tempfile::TempDir;

use crate::registry::store::{
    open::{Inspected, OpenError, SchemaStanding},
    schema::{Applied, SQLITE, standing},
};

/// Finds whether the database can be used, without a change to it or its directory.
pub(crate) async fn inspect(url: &str, migrate: bool) -> Result<Inspected, OpenError> {
    let options = SqliteConnectOptions::from_str(url).map_err(OpenError::Open)?;
    let path = options.get_filename();
    let needed = SQLITE.iter().map(|migration| migration.version).max().unwrap_or_default();
    if url.contains(":memory:") {
        return Inspected::default()
            .with_schema(SchemaStanding::Behind { found: 0, needed }, migrate);
    }
    check_rights(path)?;
    if !path.try_exists().map_err(|error| OpenError::Open(error.into()))? {
        let found = Inspected::default();
        let found = found.with_schema(SchemaStanding::Behind { found: 0, needed }, migrate)?;
        let to_do = format!("`fingerpost serve` makes the database {}", path.display());
        return Ok(Inspected { to_do: Some(to_do), ..found });
    }
    let looked = async {
        let mut look = Look::open(path).await?;
        let applied = applied(&mut look.db).await?;
        let sound = look.damage().await?;
        look.db.close().await?;
        Ok((applied, sound))
    };
    let (applied, damage) = looked.await.map_err(OpenError::Open)?;
    if let Some(damage) = damage {
        return Err(OpenError::Damaged(damage));
    }
    let found = Inspected { warnings: owners(path).into_iter().collect(), ..Inspected::default() };
    found.with_schema(standing(&applied, &SQLITE)?, migrate)
}

/// The migrations that a database has had; none if it has no table of them.
pub(crate) async fn applied(db: &mut Connection) -> Result<Vec<Applied>, sqlx::Error> {
    let known = "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = '_sqlx_migrations')";
    if !sqlx::query_scalar::<_, bool>(known).fetch_one(&mut *db).await? {
        return Ok(Vec::new());
    }
    let rows = sqlx::query("SELECT version, checksum, success FROM _sqlx_migrations");
    rows.fetch_all(db)
        .await?
        .iter()
        .map(|row| {
            Ok(Applied {
                version: row.try_get("version")?,
                checksum: row.try_get("checksum")?,
                whole: row.try_get("success")?,
            })
        })
        .collect()
}

/// A connection that only reads.
pub(crate) struct Look {
    pub(super) db: Connection,
    /// Where a copy lies that is read instead.
    _copy: Option<TempDir>,
}

impl Look {
    /// Opens a file for reading.
    ///
    /// SQLite itself would make the files beside it. If a program has the file open they are there and are read; if not, a
    /// log that a crash has left is read in a copy.
    pub(crate) async fn open(path: &Path) -> Result<Self, sqlx::Error> {
        let (log, index) = (beside(path, "-wal"), beside(path, "-shm"));
        let options = SqliteConnectOptions::new().read_only(true);
        let log_size = log.metadata().map_or(0, |log| log.len());
        let (options, copy) = match (log.exists(), index.exists()) {
            (true, true) => (options.filename(read_only(path)), None),
            (true, false) if log_size > 0 => {
                let folder = tempfile::tempdir()?;
                let copy = folder.path().join("copy.db");
                std::fs::copy(path, &copy)?;
                std::fs::copy(&log, beside(&copy, "-wal"))?;
                (SqliteConnectOptions::new().filename(copy), Some(folder))
            }
            _ => (options.filename(path).immutable(true), None),
        };
        Ok(Self { db: Connection::connect_with(&options).await?, _copy: copy })
    }

    /// What is wrong with the file, if anything.
    pub(crate) async fn damage(&mut self) -> Result<Option<String>, sqlx::Error> {
        let found: String =
            sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&mut self.db).await?;
        Ok((found != "ok").then_some(found))
    }
}

/// The name of a file by which SQLite reads it, with the files beside it, and writes none of them.
fn read_only(path: &Path) -> String {
    let mut name = "file:".to_owned();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => {
                name.push(char::from(*byte));
            }
            byte => name += &format!("%{byte:02X}"),
        }
    }
    name + "?mode=ro&readonly_shm=1"
}

/// The file that SQLite keeps beside a database.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

pub(crate) fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Checks that this user may read and write the database and make files beside it.
///
/// # Errors
/// [`OpenError::File`], with the name of the directory or file. SQLite names neither.
pub(crate) fn check_rights(path: &Path) -> Result<(), OpenError> {
    let directory = directory_of(path);
    usable(directory, Access::WRITE_OK | Access::EXEC_OK, "make files in this directory")?;
    for file in [path.to_owned(), beside(path, "-wal"), beside(path, "-shm")] {
        if file.exists() {
            usable(&file, Access::READ_OK | Access::WRITE_OK, "read and write this file")?;
        }
    }
    Ok(())
}

fn usable(path: &Path, how: Access, what: &str) -> Result<(), OpenError> {
    let unusable =
        |error: io::Error| OpenError::File(format!("{}: cannot {what}: {error}", path.display()));
    access(path, how).map_err(|error| unusable(error.into()))
}

/// What root should know: a service that runs as the directory's owner cannot open files of others.
fn owners(path: &Path) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let owner = |path: &Path| path.metadata().as_ref().map(Metadata::uid).ok();
    let directory = directory_of(path);
    let service = owner(directory)?;
    let files = [path.to_owned(), beside(path, "-wal"), beside(path, "-shm")];
    let other = files.iter().find(|file| owner(file).is_some_and(|uid| uid != service))?;
    Some(format!(
        "{} belongs to another user than its directory: a service that runs as the directory's owner cannot open it \
         (chown --reference={} {})",
        other.display(),
        directory.display(),
        other.display()
    ))
}
