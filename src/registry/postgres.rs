//! The store on PostgreSQL, which several Fingerposts may share.

use std::time::Duration;

use jid::BareJid;
use sqlx::{
    Connection as _, Executor as _, PgConnection as Connection, PgPool as Pool, Postgres as Db,
    postgres::{PgListener, PgPoolOptions, PgRow as Row},
};
use tokio::time::timeout;

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

#[path = "postgres_instances.rs"]
mod instances;

pub(super) use instances::Meeting;
use sql::Change;

/// How long a request waits for a connection, that is for a database that is away.
const ACQUIRE: Duration = Duration::from_secs(5);
/// How long an idle connection may take to show that it still works.
const ALIVE: Duration = Duration::from_secs(2);
/// After this long without a notification the listening connection is asked whether it still works, and has
/// [`ALIVE`] to answer. Both together are shorter than the age limit of cached profiles.
const QUIET: Duration = Duration::from_secs(3);
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
            // The library's own test waits without end for a peer that is silent.
            .test_before_acquire(false)
            .before_acquire(move |connection, meta| {
                let trusted = trusted.clone();
                Box::pin(async move {
                    if !trusted.admits(meta.age) {
                        return Ok(false);
                    }
                    let alive = in_time(ALIVE, connection.ping()).await;
                    if alive.is_err() {
                        trusted.withdraw();
                    }
                    alive.map(|()| true)
                })
            })
            .connect(url)
            .await
            .map_err(OpenError::Open)?;
        if migrate {
            sqlx::migrate!("migrations/postgres").run(&pool).await?;
        }
        Ok(Self { pool, trust })
    }

    /// Returns a connection for notifications that the pool does not count: the program holds it for its whole life,
    /// and a pool of one would have none left.
    async fn lone_listener(&self) -> Result<PgListener, sqlx::Error> {
        let own = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ACQUIRE)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_lazy_with((*self.pool.connect_options()).clone());
        let mut connection = PgListener::connect_with(&own).await?;
        // A lost connection is to be told of before there is another: what was changed in between is not heard.
        connection.eager_reconnect(false);
        Ok(connection)
    }

    /// A connection that hears of changes, also those of others.
    pub(super) async fn listen(&self) -> Result<Listener, sqlx::Error> {
        let connect = async {
            let mut connection = self.lone_listener().await?;
            connection.listen(CHANNEL).await?;
            Ok(connection)
        };
        let connection = in_time(ACQUIRE, connect).await?;
        Ok(Listener { connection, trust: self.trust.clone() })
    }
}

/// Receives notifications of changes.
#[derive(Debug)]
pub(super) struct Listener {
    connection: PgListener,
    trust: Trust,
}

impl Listener {
    /// Waits for the address of a user, of whom keys have changed; the text is empty for blocks. An error says that the
    /// connection is lost or silent: changes may have been missed, and this listener hears no more.
    ///
    /// The connections of the pool go the same way: after an error each is replaced before it is used.
    pub(super) async fn next(&mut self) -> Result<String, sqlx::Error> {
        let heard = self.hear().await;
        if heard.is_err() {
            self.trust.withdraw();
        }
        heard
    }

    async fn hear(&mut self) -> Result<String, sqlx::Error> {
        loop {
            // Giving up on `try_recv` loses nothing: it takes whole messages out of the buffer of its connection, or none.
            if let Ok(received) = timeout(QUIET, self.connection.try_recv()).await {
                let notification = received?
                    .ok_or_else(|| sqlx::Error::Io(std::io::ErrorKind::ConnectionAborted.into()))?;
                return Ok(notification.payload().to_owned());
            }
            // Silence is no sign that nothing has changed. What is notified meanwhile is kept for `try_recv`.
            in_time(ALIVE, self.connection.execute("SELECT 1")).await?;
        }
    }
}

/// Waits for the database, but not for ever.
async fn in_time<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let silent = |_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()));
    timeout(limit, answer).await.unwrap_or_else(silent)
}

/// Begins a change. Waits for the one in progress, here or in another Fingerpost.
async fn begin(pool: &Pool) -> Result<Change, sqlx::Error> {
    let mut tx = begin_apart(pool).await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(WRITER).execute(&mut *tx).await?;
    Ok(tx)
}

/// Begins a change that does not depend on others' changes.
async fn begin_apart(pool: &Pool) -> Result<Change, sqlx::Error> {
    Change::begin(pool, "BEGIN").await
}

/// Notifies all Fingerposts of the user whose keys have changed, when the change is committed.
async fn announce(db: &mut Connection, owner: &BareJid) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT pg_notify($1, $2)").bind(CHANNEL).bind(owner.as_str()).execute(db).await?;
    Ok(())
}

/// Notifies them of a change of the block list, by a notification without a name.
async fn announce_blocks(db: &mut Connection) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT pg_notify($1, '')").bind(CHANNEL).execute(db).await?;
    Ok(())
}
