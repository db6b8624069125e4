//! The store on SQLite: WAL, and every commit on the disk before it is acknowledged.

use std::{str::FromStr, time::Duration};

use jid::BareJid;
use sqlx::{
    SqliteConnection as Connection, SqlitePool as Pool,
    sqlite::{
        Sqlite as Db, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow as Row,
        SqliteSynchronous,
    },
};

use super::store::OpenError;

#[path = "sql.rs"]
#[expect(clippy::duplicate_mod, reason = "one text for both databases")]
mod sql;
#[path = "sql_journal.rs"]
#[expect(clippy::duplicate_mod, reason = "one text for both databases")]
mod sql_journal;

/// How long a writer waits for another.
const BUSY: Duration = Duration::from_secs(10);

/// A SQLite database.
#[derive(Clone, Debug)]
pub(super) struct Database(Pool);

impl Database {
    pub(super) async fn open(
        url: &str,
        connections: u32,
        migrate: bool,
    ) -> Result<Self, OpenError> {
        let memory = url.contains(":memory:");
        let options = SqliteConnectOptions::from_str(url)
            .map_err(OpenError::Open)?
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY);
        if !memory {
            make_private(options.get_filename());
        }
        // Each connection to memory is a database of its own, and gone with its connection.
        let pool = if memory {
            SqlitePoolOptions::new()
                .max_connections(1)
                .idle_timeout(None)
                .max_lifetime(None)
                .connect_with(options)
                .await
        } else {
            SqlitePoolOptions::new().max_connections(connections.max(1)).connect_with(options).await
        };
        let pool = pool.map_err(OpenError::Open)?;
        if migrate {
            sqlx::migrate!("migrations/sqlite").run(&pool).await?;
        }
        Ok(Self(pool))
    }
}

/// Begins a change. IMMEDIATE: what is read here is still true when it is written.
async fn begin(pool: &Pool) -> Result<sqlx::Transaction<'static, Db>, sqlx::Error> {
    pool.begin_with("BEGIN IMMEDIATE").await
}

/// Tells other programs of a change of a user's keys: on SQLite there is none.
async fn announce(_: &mut Connection, _: &BareJid) -> Result<(), sqlx::Error> {
    Ok(())
}

/// The same of whom admins have blocked.
async fn announce_blocks(_: &mut Connection) -> Result<(), sqlx::Error> {
    Ok(())
}

/// A database file is for its owner alone; what exists keeps the rights it has.
fn make_private(path: &std::path::Path) {
    use std::os::unix::fs::OpenOptionsExt;
    let _ = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
}
