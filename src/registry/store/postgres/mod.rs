//! The store on PostgreSQL, which several Fingerposts may share.

use std::{io, sync::Arc, time::Duration};

use fingerpost_wire::jid::canonical_bare;
use futures::future::BoxFuture;
use jid::BareJid;
use sqlx::{
    Executor as _, Row as _,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    error::{ConnectionTrust, StoreError},
    news::{CHANNEL, last_change, news_since},
    open::{Inspected, OpenError, SchemaStanding, StoreOptions},
    records::{ExternalChanges, Instance},
    sql::{Change, StoreConnection, query},
};

mod address;
mod instances;
pub(super) mod pool;
mod schema;

pub(crate) use instances::Meeting;
use instances::Rivals;
use pool::{ACQUIRE, ALIVE, Pool, STANDING, Servers, in_time};

/// After this long without a notification the listening connection is asked whether it still works, and has
/// [`ALIVE`] to answer. Both together are shorter than the age limit of cached profiles.
const QUIET: Duration = Duration::from_secs(3);
/// Behind a pooler, which passes no notifications on, the audit log is read so often.
const POLL: Duration = Duration::from_secs(2);
/// The lock that changes take in turn ("fngrpost"): one writer at a time, as SQLite has it.
const WRITER: i64 = 0x666e_6772_706f_7374;
/// Connections besides those of the pool: one hears of changes, one is for the instances of a component.
const OTHERS: u32 = 2;

/// A PostgreSQL database.
#[derive(Clone, Debug)]
pub(super) struct PostgresDatabase {
    pool: Pool,
    /// Which connections may be reused.
    pub(super) trust: ConnectionTrust,
    /// Other instances of the component, if a pooler keeps this one from meeting them.
    rivals: Arc<Rivals>,
}

/// Checks an address, and returns what is wrong with it.
pub(super) fn check_address(url: &str) -> Result<(), String> {
    address::servers(url).map(|_| ()).map_err(|error| error.to_string())
}

impl PostgresDatabase {
    pub(super) async fn open(options: &StoreOptions<'_>) -> Result<Self, OpenError> {
        let db = Self::connect(options).await?;
        if options.migrate {
            schema::bring_up_to_date(&db.pool).await?;
        } else {
            db.inspect(false).await?;
        }
        Ok(db)
    }

    /// Connects, and leaves the schema as it is.
    async fn connect(options: &StoreOptions<'_>) -> Result<Self, OpenError> {
        let trust = ConnectionTrust::default();
        let list =
            address::servers(options.url).map_err(|error| OpenError::Address(error.to_string()))?;
        let servers = Servers::new(list, options.pooler, trust.clone());
        if !options.pooler && servers.are_behind_a_pooler().await.map_err(open_error)? {
            return Err(OpenError::Pooler);
        }
        let pool = Pool::new(servers, options.max_connections);
        drop(pool.acquire().await.map_err(open_error)?);
        Ok(Self { pool, trust, rivals: Arc::default() })
    }

    /// Returns the database and whether it can be used, without a change to it.
    pub(super) async fn look(options: &StoreOptions<'_>) -> Result<(Self, Inspected), OpenError> {
        let db = Self::connect(options).await?;
        let found = db.inspect(options.migrate).await?;
        Ok((db, found))
    }

    async fn inspect(&self, migrate: bool) -> Result<Inspected, OpenError> {
        let mut session = self.pool.acquire().await.map_err(OpenError::Open)?;
        let standing = schema::stands(&mut session).await?;
        let row = session.fetch_one(schema::OBSTACLES).await.map_err(OpenError::Open)?;
        let read = |column| row.try_get::<Option<String>, _>(column).map_err(OpenError::Open);
        let is_behind = standing != SchemaStanding::Current;
        if is_behind && migrate && read("may_create")?.as_deref() != Some("true") {
            return Err(OpenError::MayNotCreate);
        }
        if let Some(closed) = read("closed")? {
            return Err(OpenError::Closed(closed));
        }
        Inspected::default().with_schema(standing, migrate)
    }

    /// Returns whether a pooler gives each transaction another connection.
    pub(super) fn is_pooled(&self) -> bool {
        self.pool.servers().pooler
    }

    /// Returns why this instance cannot serve its users as it should, if there is a reason.
    pub(super) fn obstacle(&self) -> Option<&'static str> {
        let text =
            "another instance serves this component, and instances cannot meet through a pooler";
        self.rivals.are_there().then_some(text)
    }

    /// Returns the numbers of open and of idle connections, and the most that may be open.
    pub(super) fn connections(&self) -> (u32, usize, u32) {
        self.pool.counts()
    }

    /// Returns how many connections the server allows and how many are needed, if it allows fewer.
    pub(super) async fn shortage(&self) -> Result<Option<(u32, u32)>, sqlx::Error> {
        // A pooler has connections of its own.
        if self.is_pooled() {
            return Ok(None);
        }
        let text = "SELECT LEAST(
                (SELECT NULLIF(rolconnlimit, -1) FROM pg_roles WHERE rolname = session_user AND NOT rolsuper),
                (SELECT NULLIF(datconnlimit, -1) FROM pg_database WHERE datname = current_database()),
                current_setting('max_connections')::INT - current_setting('superuser_reserved_connections')::INT
                    - COALESCE(current_setting('reserved_connections', TRUE)::INT, 0)
            )::TEXT AS most";
        let row = self.pool.acquire().await?.fetch_one(text).await?;
        let most: String = row.try_get("most")?;
        let most = most.parse().unwrap_or(u32::MAX);
        let needed = self.pool.counts().2 + OTHERS;
        Ok((most < needed).then_some((most, needed)))
    }

    /// Returns a connection for notifications that the pool does not count: the program holds it for its whole life,
    /// and a pool of one would have none left.
    async fn lone_listener(&self) -> Result<PgListener, sqlx::Error> {
        let servers = self.pool.servers();
        let connect = |server: PgConnectOptions| -> BoxFuture<'_, _> {
            Box::pin(async move {
                let own = PgPoolOptions::new()
                    .max_connections(1)
                    .acquire_timeout(ACQUIRE)
                    .idle_timeout(None)
                    .max_lifetime(None)
                    .connect_lazy_with(server);
                let mut connection = PgListener::connect_with(&own).await?;
                // A lost connection is to be told of before there is another: what was changed in between is not heard.
                connection.eager_reconnect(false);
                servers.judge(&connection.fetch_one(STANDING).await?)?;
                Ok(connection)
            })
        };
        servers.first(ACQUIRE, connect).await
    }

    /// Returns the same database with the time limit for statements that read everything.
    pub(super) fn bulk(&self) -> Self {
        Self { pool: self.pool.bulk(), ..self.clone() }
    }

    pub(super) async fn acquire(&self) -> Result<StoreConnection, sqlx::Error> {
        Ok(StoreConnection::Postgres(self.pool.acquire().await?))
    }

    /// Begins a change. Waits for the one in progress, here or in another Fingerpost.
    pub(super) async fn begin(&self) -> Result<Change, sqlx::Error> {
        let mut connection = self.pool.acquire_for_change().await?;
        connection.begin().await?;
        let mut change = Change::of(StoreConnection::Postgres(connection));
        query("SELECT pg_advisory_xact_lock($1)").bind(WRITER).execute(&mut change).await?;
        Ok(change)
    }

    /// Begins a change that does not depend on others' changes.
    pub(super) async fn begin_apart(&self) -> Result<Change, sqlx::Error> {
        let mut connection = self.pool.acquire().await?;
        connection.begin().await?;
        Ok(Change::of(StoreConnection::Postgres(connection)))
    }

    /// Meets the other instances of a component under the name `id`.
    pub(super) async fn meet(&self, component: &BareJid, id: &str) -> Result<Meeting, sqlx::Error> {
        let connect = async { Meeting::on(self.lone_listener().await?, component, id).await };
        in_time(ACQUIRE, connect).await
    }

    /// Returns the instances of a component.
    pub(super) async fn instances(
        &self,
        component: &BareJid,
    ) -> Result<Vec<Instance>, sqlx::Error> {
        instances::instances(&self.pool, component).await
    }

    /// Gives a sign of life and looks for other instances, behind a pooler, where they cannot meet.
    pub(super) async fn look_for_rivals(
        &self,
        component: &BareJid,
        id: &str,
    ) -> Result<(), sqlx::Error> {
        self.rivals.look_for(&self.pool, component, id).await
    }

    /// Hears of changes, also those of others.
    pub(super) async fn listen(&self) -> Result<Changes, sqlx::Error> {
        let mut servers = self.pool.servers().changes();
        servers.mark_unchanged();
        let source = if self.is_pooled() {
            let seq = last_change(&mut self.acquire().await?).await?;
            ChangeSource::Log { db: self.clone(), seq }
        } else {
            let connect = async {
                let mut connection = self.lone_listener().await?;
                connection.listen(CHANNEL).await?;
                Ok(connection)
            };
            ChangeSource::Channel(Box::new(in_time(ACQUIRE, connect).await?))
        };
        Ok(Changes { source, servers, trust: self.trust.clone() })
    }
}

/// Recognizes a refusal that only a pooler gives.
fn open_error(error: sqlx::Error) -> OpenError {
    match &error {
        sqlx::Error::Database(refusal) if pool::is_of_a_pooler(refusal.message()) => {
            OpenError::Pooler
        }
        _ => OpenError::Open(error),
    }
}

/// Receives notifications of changes by other programs in a shared database.
#[derive(Debug)]
pub struct Changes {
    source: ChangeSource,
    /// Told when another server takes the changes.
    servers: watch::Receiver<u64>,
    trust: ConnectionTrust,
}

#[derive(Debug)]
enum ChangeSource {
    /// Notifications, on a connection of its own.
    Channel(Box<PgListener>),
    /// The audit log, read up to this row.
    Log { db: PostgresDatabase, seq: i64 },
}

impl Changes {
    /// Waits for the next change.
    ///
    /// # Errors
    /// If the connection is lost, the database has not answered for 5 seconds, or another server takes the changes.
    /// Changes may have been missed: call [`Store::changes`] again and assume that everything has changed. Each connection
    /// of the pool is then replaced before it is used.
    ///
    /// # Cancel safety
    /// Dropping the future may lose a change: call [`Store::changes`] again and assume that everything has changed.
    ///
    /// [`Store::changes`]: crate::registry::store::Store::changes
    pub async fn next(&mut self) -> Result<ExternalChanges, StoreError> {
        let heard = tokio::select! {
            heard = self.source.hear() => heard,
            _ = self.servers.changed() => {
                Err(sqlx::Error::Io(io::Error::other("another database server takes the changes")))
            }
        };
        if heard.is_err() {
            self.trust.withdraw();
        }
        Ok(heard?)
    }
}

impl ChangeSource {
    async fn hear(&mut self) -> Result<ExternalChanges, sqlx::Error> {
        match self {
            Self::Channel(connection) => notified(connection).await,
            Self::Log { db, seq } => loop {
                sleep(POLL).await;
                let news =
                    in_time(ACQUIRE, async { news_since(&mut db.acquire().await?, seq).await });
                match news.await? {
                    ExternalChanges::None => {}
                    news => return Ok(news),
                }
            },
        }
    }
}

/// Waits for a notification: the address of a user whose keys have changed, or nothing for blocks.
async fn notified(connection: &mut PgListener) -> Result<ExternalChanges, sqlx::Error> {
    loop {
        // Giving up on `try_recv` loses nothing: it takes whole messages out of the buffer of its connection, or none.
        if let Ok(received) = timeout(QUIET, connection.try_recv()).await {
            let notification = received?
                .ok_or_else(|| sqlx::Error::Io(io::ErrorKind::ConnectionAborted.into()))?;
            return Ok(match notification.payload() {
                "" => ExternalChanges::Of { owners: Vec::new(), blocks: true },
                owner => canonical_bare(owner).map_or(ExternalChanges::Anything, |owner| {
                    ExternalChanges::Of { owners: vec![owner], blocks: false }
                }),
            });
        }
        // Silence is no sign that nothing has changed. What is notified meanwhile is kept for `try_recv`.
        in_time(ALIVE, connection.execute("SELECT 1")).await?;
    }
}
