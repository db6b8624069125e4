//! One way to run SQL on SQLite and on PostgreSQL, so that each statement is written once.
//!
//! Placeholders are `$1`, which both accept. Times are microseconds since 1970.

use std::ops::{Deref, DerefMut};

use sqlx::{
    Database, Decode, Encode, Postgres, Row as _, Sqlite, SqliteConnection, Type,
    pool::PoolConnection, postgres::PgRow, sqlite::SqliteRow,
};
use time::OffsetDateTime;
use tokio::runtime::Handle;
use tracing::debug;

use super::{error::StoreError, postgres::pool::PooledConnection};

/// A connection to whichever database there is.
#[derive(Debug)]
pub(super) enum StoreConnection {
    Postgres(PooledConnection),
    Sqlite(PoolConnection<Sqlite>),
    /// One that the pool does not count.
    Single(SqliteConnection),
}

/// A statement with its values.
pub(super) struct Query {
    text: &'static str,
    values: Vec<Value>,
}

/// A value in a statement.
pub(super) enum Value {
    Integer(Option<i64>),
    Text(Option<String>),
    Bytes(Vec<u8>),
}

/// A row of a result.
pub(super) enum Row {
    Postgres(PgRow),
    Sqlite(SqliteRow),
}

pub(super) fn query(text: &'static str) -> Query {
    Query { text, values: Vec::new() }
}

impl Query {
    pub(super) fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Runs the statement, and returns how many rows it has changed.
    pub(super) async fn execute(self, db: &mut StoreConnection) -> Result<u64, sqlx::Error> {
        Ok(match db {
            StoreConnection::Postgres(db) => {
                self.bound::<Postgres>().execute(&mut **db).await?.rows_affected()
            }
            StoreConnection::Sqlite(db) => {
                self.bound::<Sqlite>().execute(&mut **db).await?.rows_affected()
            }
            StoreConnection::Single(db) => {
                self.bound::<Sqlite>().execute(db).await?.rows_affected()
            }
        })
    }

    pub(super) async fn fetch_all(self, db: &mut StoreConnection) -> Result<Vec<Row>, sqlx::Error> {
        let rows = match db {
            StoreConnection::Postgres(db) => {
                let rows = self.bound::<Postgres>().fetch_all(&mut **db).await?;
                return Ok(rows.into_iter().map(Row::Postgres).collect());
            }
            StoreConnection::Sqlite(db) => self.bound::<Sqlite>().fetch_all(&mut **db).await?,
            StoreConnection::Single(db) => self.bound::<Sqlite>().fetch_all(db).await?,
        };
        Ok(rows.into_iter().map(Row::Sqlite).collect())
    }

    pub(super) async fn fetch_optional(
        self,
        db: &mut StoreConnection,
    ) -> Result<Option<Row>, sqlx::Error> {
        Ok(self.fetch_all(db).await?.into_iter().next())
    }

    pub(super) async fn fetch_one(self, db: &mut StoreConnection) -> Result<Row, sqlx::Error> {
        self.fetch_optional(db).await?.ok_or(sqlx::Error::RowNotFound)
    }

    fn bound<D: Database>(self) -> sqlx::query::Query<'static, D, D::Arguments>
    where
        Option<i64>: for<'q> Encode<'q, D> + Type<D>,
        Option<String>: for<'q> Encode<'q, D> + Type<D>,
        Vec<u8>: for<'q> Encode<'q, D> + Type<D>,
    {
        self.values.into_iter().fold(sqlx::query::<D>(self.text), |query, value| match value {
            Value::Integer(number) => query.bind(number),
            Value::Text(text) => query.bind(text),
            Value::Bytes(bytes) => query.bind(bytes),
        })
    }
}

impl Row {
    /// Reads a column.
    pub(super) fn try_get<T>(&self, column: &str) -> Result<T, sqlx::Error>
    where
        T: for<'r> Decode<'r, Postgres> + Type<Postgres>,
        T: for<'r> Decode<'r, Sqlite> + Type<Sqlite>,
    {
        match self {
            Self::Postgres(row) => row.try_get(column),
            Self::Sqlite(row) => row.try_get(column),
        }
    }
}

macro_rules! values {
    ($($type:ty: $value:pat => $into:expr;)*) => {$(
        impl From<$type> for Value {
            fn from($value: $type) -> Self {
                $into
            }
        }
    )*};
}

values! {
    i64: number => Self::Integer(Some(number));
    u32: number => Self::Integer(Some(number.into()));
    i8: number => Self::Integer(Some(number.into()));
    Option<i64>: number => Self::Integer(number);
    &str: text => Self::Text(Some(text.to_owned()));
    String: text => Self::Text(Some(text));
    Option<String>: text => Self::Text(text);
    Vec<u8>: bytes => Self::Bytes(bytes);
}

pub(super) fn micros(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX)
}

pub(super) fn moment(micros: i64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000).ok()
}

pub(super) fn inconsistent(table: &'static str, id: impl ToString) -> StoreError {
    StoreError::Inconsistent { table, id: id.to_string() }
}

/// One change of the database. Dropping it without a commit rolls it back.
///
/// sqlx's own transactions count how deep they are. SQLite takes a transaction back by itself when the disk is full; the
/// count then stays, and each later change on that connection fails. So there is no count here, and a connection
/// that does not take a change back is closed.
pub(super) struct Change(Option<StoreConnection>);

impl Change {
    /// Makes a change of a connection that is within a transaction.
    pub(super) fn of(connection: StoreConnection) -> Self {
        Self(Some(connection))
    }

    /// Does the work of the change, and commits it.
    pub(super) async fn commit_after<T>(
        mut self,
        work: impl AsyncFnOnce(&mut StoreConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let done = work(&mut *self).await?;
        query("COMMIT").execute(&mut self).await?;
        if let Some(StoreConnection::Postgres(connection)) = self.0.take() {
            connection.committed();
        }
        Ok(done)
    }
}

impl Deref for Change {
    type Target = StoreConnection;

    fn deref(&self) -> &StoreConnection {
        self.0.as_ref().expect("a change holds its connection until it is dropped")
    }
}

impl DerefMut for Change {
    fn deref_mut(&mut self) -> &mut StoreConnection {
        self.0.as_mut().expect("a change holds its connection until it is dropped")
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        // A connection to PostgreSQL does so itself.
        if let Some(StoreConnection::Sqlite(connection)) = self.0.take() {
            take_back(connection);
        }
    }
}

/// Rolls back a change, or closes the connection.
fn take_back(mut db: PoolConnection<Sqlite>) {
    let Ok(runtime) = Handle::try_current() else { return };
    runtime.spawn(async move {
        if let Err(error) = sqlx::query("ROLLBACK").execute(&mut *db).await {
            debug!(%error, "closing a connection whose transaction has failed");
            let _ = db.close().await;
        }
    });
}
