//! The store on PostgreSQL, which several Fingerposts may share.

use std::time::Duration;

use jid::BareJid;
use sqlx::{
    PgConnection as Connection, PgPool as Pool, Postgres as Db,
    postgres::{PgListener, PgPoolOptions, PgRow as Row},
};

use super::store::{OpenError, Trust};

#[path = "sql.rs"]
#[expect(clippy::duplicate_mod, reason = "one text for both databases")]
mod sql;
#[path = "sql_journal.rs"]
#[expect(clippy::duplicate_mod, reason = "one text for both databases")]
mod sql_journal;
#[path = "sql_reachable.rs"]
#[expect(clippy::duplicate_mod, reason = "one text for both databases")]
mod sql_reachable;

use sql::Change;

/// How long a request waits for a connection, that is for a database that is away.
const ACQUIRE: Duration = Duration::from_secs(5);
/// The lock that changes take in turn ("fngrpost"): one writer at a time, as SQLite has it.
const WRITER: i64 = 0x666e_6772_706f_7374;
/// The channel on which a user whose keys have changed is named.
const CHANNEL: &str = "fingerpost_keys";

/// A PostgreSQL database.
#[derive(Clone, Debug)]
pub(super) struct Database {
    pool: Pool,
    /// Which connections may be used on.
    pub(super) trust: Trust,
}

impl Database {
    pub(super) async fn open(
        url: &str,
        connections: u32,
        migrate: bool,
    ) -> Result<Self, OpenError> {
        let trust = Trust::default();
        let trusted = trust.clone();
        let pool = PgPoolOptions::new()
            .max_connections(connections.max(1))
            .acquire_timeout(ACQUIRE)
            .before_acquire(move |_, connection| {
                let good = trusted.admits(connection.age);
                Box::pin(async move { Ok(good) })
            })
            .connect(url)
            .await
            .map_err(OpenError::Open)?;
        if migrate {
            sqlx::migrate!("migrations/postgres").run(&pool).await?;
        }
        Ok(Self { pool, trust })
    }

    /// A connection that hears of changes, also those of others.
    pub(super) async fn listen(&self) -> Result<Listener, sqlx::Error> {
        let mut listener = PgListener::connect_with(&self.pool).await?;
        listener.listen(CHANNEL).await?;
        Ok(Listener(listener))
    }
}

/// Hears of changes.
#[derive(Debug)]
pub(super) struct Listener(PgListener);

impl Listener {
    /// Whose keys have changed; `None` when the connection was lost, so that anyone's may have.
    pub(super) async fn next(&mut self) -> Result<Option<String>, sqlx::Error> {
        Ok(self.0.try_recv().await?.map(|notification| notification.payload().to_owned()))
    }
}

/// Begins a change; it waits for the one under way, here or in another Fingerpost.
async fn begin(pool: &Pool) -> Result<Change, sqlx::Error> {
    let mut tx = begin_apart(pool).await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(WRITER).execute(&mut *tx).await?;
    Ok(tx)
}

/// Begins a change that does not depend on what others change.
async fn begin_apart(pool: &Pool) -> Result<Change, sqlx::Error> {
    Change::begin(pool, "BEGIN").await
}

/// Tells all Fingerposts, when the change is committed, whose keys have changed.
async fn announce(db: &mut Connection, owner: &BareJid) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT pg_notify($1, $2)").bind(CHANNEL).bind(owner.as_str()).execute(db).await?;
    Ok(())
}

/// Tells them that someone was blocked or is no longer: a notification that names nobody.
async fn announce_blocks(db: &mut Connection) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT pg_notify($1, '')").bind(CHANNEL).execute(db).await?;
    Ok(())
}
