//! Connections to PostgreSQL: to the one of several servers that takes changes, and no more than may be open.
//!
//! The database library has a pool too. It knows one server, does not ask whether a server takes changes, and waits
//! without end for one that has become silent. It names the statements that it prepares, which a pooler that gives each
//! transaction another connection does not bear.
//!
//! Every statement has a time limit here, for each caller: the server ends it in time, or else it is given up.
//!
//! Behind such a pooler each use of a connection is one transaction: all that is set and prepared ends with it.

use std::{
    io,
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{
    future::BoxFuture,
    stream::{self, BoxStream, StreamExt},
};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Either, Execute, Executor, PgConnection, Postgres as Db,
    Row as _, SqlStr,
    error::BoxDynError,
    postgres::{
        PgArguments as Arguments, PgConnectOptions as Server, PgQueryResult as Done, PgRow as Row,
        PgStatement as Statement, PgTypeInfo as TypeInfo,
    },
};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{sleep, timeout, timeout_at},
};
use tracing::{debug, info};

use crate::registry::store::error::ConnectionTrust;

/// How long a connection may take to be made, that is how long a request waits for a database that is away.
pub(super) const ACQUIRE: Duration = Duration::from_secs(5);
/// How long a connection at hand may take to show that it still works.
pub(super) const ALIVE: Duration = Duration::from_secs(2);
/// How long one server may take if there are others.
const ATTEMPT: Duration = Duration::from_secs(2);
/// How long one statement may take, also waiting for somebody's lock.
const STATEMENT: Duration = Duration::from_secs(5);
/// The same for a statement that reads everything.
const BULK: Duration = Duration::from_secs(600);
/// A transaction whose program has gone silent ends after this time: it may hold the lock that changes take.
const ABANDONED: Duration = Duration::from_secs(10);
/// A connection is used for so long at most, and left unused for so long.
const LIFETIME: Duration = Duration::from_secs(30 * 60);
const UNUSED: Duration = Duration::from_secs(10 * 60);
/// The pauses between attempts to connect.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// What a server is asked: whether it takes changes, and which it is. No two servers have started at the same
/// microsecond, and one that was started again may not have what it had before.
pub(super) const STANDING: &str = "SELECT current_setting('transaction_read_only') AS read_only,
    EXTRACT(EPOCH FROM pg_postmaster_start_time())::TEXT AS server";

/// Waits for the database, for a limited time.
pub(super) async fn in_time<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let silent = |_| Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into()));
    timeout(limit, answer).await.unwrap_or_else(silent)
}

fn no_changes() -> sqlx::Error {
    sqlx::Error::Io(io::Error::other(
        "the server takes no changes: it is a standby, or set to be read only",
    ))
}

/// The servers of an address, of which one takes changes.
#[derive(Debug)]
pub(super) struct Servers {
    list: Vec<Server>,
    /// The one that took changes when it was last asked.
    current: AtomicUsize,
    /// What that one says of itself.
    seen: Mutex<Option<String>>,
    /// Counts the times that it was another one.
    changes: watch::Sender<u64>,
    trust: ConnectionTrust,
    /// How many connections are open.
    open: Arc<AtomicU32>,
    /// Whether a pooler gives each transaction another connection.
    pub(super) pooler: bool,
}

impl Servers {
    pub(super) fn new(list: Vec<Server>, pooler: bool, trust: ConnectionTrust) -> Self {
        let plain = |server: Server| match pooler {
            // A pooler refuses this parameter, and keeps no statement.
            true => server.extra_float_digits(None).statement_cache_capacity(0),
            false => server,
        };
        Self {
            list: list.into_iter().map(plain).collect(),
            current: AtomicUsize::new(0),
            seen: Mutex::new(None),
            changes: watch::Sender::new(0),
            trust,
            open: Arc::default(),
            pooler,
        }
    }

    /// Returns a receiver that is told whenever another server takes the changes.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Tries the servers, first the one that was good last, until one takes changes or time is up.
    pub(super) async fn first<'a, T>(
        &self,
        limit: Duration,
        connect: impl Fn(Server) -> BoxFuture<'a, Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        let until = Instant::now() + limit;
        let mut pause = PAUSES.0;
        loop {
            let first = self.current.load(Ordering::Relaxed);
            let mut failed = None;
            for step in 0..self.list.len() {
                let at = (first + step) % self.list.len();
                let left = until.saturating_duration_since(Instant::now());
                let limit = if self.list.len() > 1 { left.min(ATTEMPT) } else { left };
                match in_time(limit, connect(self.list[at].clone())).await {
                    Ok(connected) => {
                        self.current.store(at, Ordering::Relaxed);
                        return Ok(connected);
                    }
                    Err(error) => {
                        debug!(%error, server = at, "no connection to a database server");
                        failed = Some(match failed {
                            Some(before) if !passes(&error) || passes(&before) => before,
                            _ => error,
                        });
                    }
                }
            }
            let failed = failed.unwrap_or_else(no_changes);
            if !passes(&failed) || Instant::now() + pause >= until {
                return Err(failed);
            }
            sleep(pause).await;
            pause = PAUSES.1.min(2 * pause);
        }
    }

    /// Reads what a server says of itself. Returns an error if it takes no changes.
    pub(super) fn judge(&self, standing: &Row) -> Result<(), sqlx::Error> {
        let read_only: String = standing.try_get("read_only")?;
        if read_only != "off" {
            return Err(no_changes());
        }
        let server: String = standing.try_get("server")?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let is_other = seen.as_ref().is_some_and(|seen| *seen != server);
        *seen = Some(server);
        drop(seen);
        if is_other {
            info!(
                "another database server takes the changes, or it was restarted: all connections are replaced"
            );
            // What was read from the other one may not be true here.
            self.trust.withdraw();
            self.changes.send_modify(|count| *count += 1);
        }
        Ok(())
    }

    /// Connects to the server that takes changes.
    async fn connect(&self, patience: Duration) -> Result<ServerConnection, sqlx::Error> {
        let connect = |server: Server| -> BoxFuture<'_, _> {
            Box::pin(async move {
                let db = server.connect().await?;
                let open = OpenCount::count(&self.open);
                let named = !self.pooler;
                let mut connection = ServerConnection { db, named, patience: None, _open: open };
                connection.prepare(self, patience).await?;
                Ok(connection)
            })
        };
        self.first(ACQUIRE, connect).await
    }

    /// Returns whether a pooler that gives each transaction another connection is between us and the server: two
    /// connections then share one session of the server, or one connection has two.
    pub(super) async fn are_behind_a_pooler(&self) -> Result<bool, sqlx::Error> {
        async fn session(db: &mut PgConnection) -> Result<i32, sqlx::Error> {
            let rows = in_time(ALIVE, db.fetch_all("SELECT pg_backend_pid()::TEXT")).await?;
            let pid: String = rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)?;
            Ok(pid.parse().unwrap_or_default())
        }
        let look = |server: Server| -> BoxFuture<'_, _> {
            Box::pin(async move {
                let mut one = server.connect().await?;
                let mut other = server.connect().await?;
                let before = session(&mut one).await?;
                other.execute("BEGIN").await?;
                let others = session(&mut other).await?;
                let is_pooler = others == before || session(&mut one).await? != before;
                other.execute("ROLLBACK").await?;
                Ok(is_pooler)
            })
        };
        self.first(ACQUIRE, look).await
    }
}

/// Returns whether a later attempt may succeed: the server is away, starts, is full or takes no changes yet.
fn passes(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) => true,
        sqlx::Error::Database(error) => {
            let code = error.code().unwrap_or_default();
            // A pooler has one code for all, also for what it does not support.
            code == "53300"
                || code.starts_with("57P")
                || (code.starts_with("08") && !is_of_a_pooler(error.message()))
        }
        _ => false,
    }
}

/// Returns whether only a pooler says so: PostgreSQL itself accepts the parameter.
pub(super) fn is_of_a_pooler(text: &str) -> bool {
    text.contains("unsupported startup parameter")
}

/// Returns whether the server accepts no more connections.
fn is_full(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(error) if error.code().is_some_and(|code| code == "53300"))
}

/// A connection on which statements are named, or not.
#[derive(Debug)]
pub(crate) struct ServerConnection {
    db: PgConnection,
    named: bool,
    /// How long its statements may take, as it was last told.
    patience: Option<Duration>,
    _open: OpenCount,
}

/// One of the connections that are open.
#[derive(Debug)]
struct OpenCount(Arc<AtomicU32>);

impl OpenCount {
    fn count(open: &Arc<AtomicU32>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(open))
    }
}

impl Drop for OpenCount {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ServerConnection {
    /// Prepares the connection for one use, behind a pooler within a transaction of its own. Returns an error if the
    /// server takes no changes.
    async fn prepare(&mut self, servers: &Servers, patience: Duration) -> Result<(), sqlx::Error> {
        let (begin, local) = if self.named { ("", "") } else { ("BEGIN;", "LOCAL") };
        let set = if self.named && self.patience == Some(patience) {
            String::new()
        } else {
            format!(
                "SET {local} statement_timeout = {}; SET {local} idle_in_transaction_session_timeout = {};",
                patience.as_millis(),
                ABANDONED.as_millis()
            )
        };
        self.patience = None;
        let text = AssertSqlSafe(format!("{begin} {set} {STANDING}"));
        let rows = self.db.fetch_all(text).await?;
        servers.judge(rows.last().ok_or(sqlx::Error::RowNotFound)?)?;
        self.patience = Some(patience);
        Ok(())
    }
}

/// A statement that is prepared without a name.
struct Unnamed<E>(E);

impl<'q, E: Execute<'q, Db>> Execute<'q, Db> for Unnamed<E> {
    fn sql(self) -> SqlStr {
        self.0.sql()
    }

    fn statement(&self) -> Option<&Statement> {
        self.0.statement()
    }

    fn take_arguments(&mut self) -> Result<Option<Arguments>, BoxDynError> {
        self.0.take_arguments()
    }

    fn persistent(&self) -> bool {
        false
    }
}

type Items<'e> = BoxStream<'e, Result<Either<Done, Row>, sqlx::Error>>;

/// Ends a statement's results with an error if they are not complete after `limit`: a server that is silent does not
/// end the statement itself.
fn limited<'e>(items: Items<'e>, limit: Duration) -> Items<'e> {
    let until = tokio::time::Instant::now() + limit;
    let next = move |items: Option<Items<'e>>| async move {
        let mut items = items?;
        match timeout_at(until, items.next()).await {
            Ok(item) => Some((item?, Some(items))),
            Err(_) => Some((Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into())), None)),
        }
    };
    stream::unfold(Some(items), next).boxed()
}

impl ServerConnection {
    /// Returns how long to wait for a statement: longer than the server itself lets it take.
    fn limit(&self) -> Duration {
        self.patience.unwrap_or(STATEMENT) + ALIVE
    }
}

impl<'c> Executor<'c> for &'c mut ServerConnection {
    type Database = Db;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> Items<'e>
    where
        'c: 'e,
        E: 'q + Execute<'q, Db>,
    {
        let limit = self.limit();
        let items = match self.named {
            true => self.db.fetch_many(query),
            false => self.db.fetch_many(Unnamed(query)),
        };
        limited(items, limit)
    }

    fn fetch_optional<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxFuture<'e, Result<Option<Row>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Db>,
    {
        let limit = self.limit();
        let row = match self.named {
            true => self.db.fetch_optional(query),
            false => self.db.fetch_optional(Unnamed(query)),
        };
        Box::pin(in_time(limit, row))
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [TypeInfo],
    ) -> BoxFuture<'e, Result<Statement, sqlx::Error>>
    where
        'c: 'e,
    {
        self.db.prepare_with(sql, parameters)
    }
}

/// A pool of connections. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    shared: Arc<PoolCore>,
    /// How long a statement may take.
    patience: Duration,
}

#[derive(Debug)]
struct PoolCore {
    servers: Servers,
    /// One for each connection that may be open.
    places: Arc<Semaphore>,
    /// Changes wait for each other here: those that wait in the database would take all connections from readers.
    turns: Arc<Semaphore>,
    /// The one that was used last is used next.
    idle: Mutex<Vec<Idle>>,
    most: u32,
}

#[derive(Debug)]
struct Idle {
    connection: ServerConnection,
    made: Instant,
    since: Instant,
}

impl Pool {
    pub(super) fn new(servers: Servers, most: u32) -> Self {
        let most = most.max(1);
        let shared = PoolCore {
            servers,
            places: Arc::new(Semaphore::new(most as usize)),
            turns: Arc::new(Semaphore::new(1)),
            idle: Mutex::default(),
            most,
        };
        Self { shared: Arc::new(shared), patience: STATEMENT }
    }

    pub(super) fn servers(&self) -> &Servers {
        &self.shared.servers
    }

    /// Returns the same pool with the time limit for statements that read everything.
    pub(super) fn bulk(&self) -> Self {
        Self { patience: BULK, ..self.clone() }
    }

    /// Returns the numbers of open and of idle connections, and the most that may be open.
    pub(super) fn counts(&self) -> (u32, usize, u32) {
        let idle = self.idle().len();
        (self.shared.servers.open.load(Ordering::Relaxed), idle, self.shared.most)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Idle>> {
        self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Acquires a connection to the server that takes changes.
    pub(super) async fn acquire(&self) -> Result<PooledConnection, sqlx::Error> {
        let place = Arc::clone(&self.shared.places).acquire_owned().await;
        let place = place.map_err(|_| sqlx::Error::PoolClosed)?;
        let began = Instant::now();
        let mut pause = PAUSES.0;
        loop {
            if let Some(mut session) = self.at_hand().await {
                session.place = Some(place);
                return Ok(session);
            }
            match self.shared.servers.connect(self.patience).await {
                Ok(connection) => {
                    let mut session = PooledConnection::new(self, connection, Instant::now());
                    session.place = Some(place);
                    return Ok(session);
                }
                // One that is in use now will do.
                Err(error) if is_full(&error) && began.elapsed() + pause < ACQUIRE => {
                    sleep(pause).await;
                    pause = PAUSES.1.min(2 * pause);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Acquires a connection for a change, after the change under way here.
    pub(super) async fn acquire_for_change(&self) -> Result<PooledConnection, sqlx::Error> {
        let turn = Arc::clone(&self.shared.turns).acquire_owned().await;
        let turn = turn.map_err(|_| sqlx::Error::PoolClosed)?;
        let mut session = self.acquire().await?;
        session.turn = Some(turn);
        Ok(session)
    }

    /// Returns an idle connection that still works.
    async fn at_hand(&self) -> Option<PooledConnection> {
        loop {
            let Idle { connection, made, since } = self.idle().pop()?;
            let mut session = PooledConnection::new(self, connection, made);
            if !self.shared.servers.trust.admits(made.elapsed())
                || made.elapsed() > LIFETIME
                || since.elapsed() > UNUSED
            {
                session.end();
                continue;
            }
            // A pooler may let a client wait for its turn.
            let limit = if self.shared.servers.pooler { ACQUIRE } else { ALIVE };
            let connection = session.connection.as_mut()?;
            match in_time(limit, connection.prepare(&self.shared.servers, self.patience)).await {
                Ok(()) => return Some(session),
                Err(error) => {
                    debug!(%error, "a connection to the database is of no use any more");
                    self.shared.servers.trust.withdraw();
                    session.end();
                }
            }
        }
    }
}

/// One use of a connection. Dropped, it gives the connection back, and takes back what was not committed.
#[derive(Debug)]
pub(crate) struct PooledConnection {
    connection: Option<ServerConnection>,
    made: Instant,
    /// Whether a transaction is open.
    open: bool,
    pool: Pool,
    turn: Option<OwnedSemaphorePermit>,
    place: Option<OwnedSemaphorePermit>,
}

impl PooledConnection {
    fn new(pool: &Pool, connection: ServerConnection, made: Instant) -> Self {
        let open = pool.shared.servers.pooler;
        let pool = pool.clone();
        Self { connection: Some(connection), made, open, pool, turn: None, place: None }
    }

    /// Begins a transaction, if none is open.
    pub(super) async fn begin(&mut self) -> Result<(), sqlx::Error> {
        if !self.open {
            self.open = true;
            self.execute("BEGIN").await?;
        }
        Ok(())
    }

    /// Notes that the transaction was committed.
    pub(crate) fn committed(mut self) {
        self.open = false;
    }

    /// Closes the connection, which has failed.
    fn end(&mut self) {
        self.connection = None;
    }
}

impl Deref for PooledConnection {
    type Target = ServerConnection;

    fn deref(&self) -> &ServerConnection {
        self.connection.as_ref().expect("a session has its connection until it ends")
    }
}

impl DerefMut for PooledConnection {
    fn deref_mut(&mut self) -> &mut ServerConnection {
        self.connection.as_mut().expect("a session has its connection until it ends")
    }
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        let (pool, made) = (self.pool.clone(), self.made);
        // The turn and the place are free only when the connection is.
        let kept = (self.turn.take(), self.place.take());
        let give_back = move |connection| {
            pool.idle().push(Idle { connection, made, since: Instant::now() });
            drop(kept);
        };
        if !self.open {
            return give_back(connection);
        }
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(async move {
            match in_time(ALIVE, connection.execute("ROLLBACK")).await {
                Ok(_) => give_back(connection),
                Err(error) => debug!(%error, "closing a connection whose transaction has failed"),
            }
        });
    }
}
