//! Why an operation on the database failed, and which connections are used again.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::registry::model::NotAllowed;

/// Which connections of a pool may be reused: those made after the last error of a broken connection. A database that
/// was unavailable, was replaced by its standby or could not read its file gets new connections.
#[derive(Clone, Debug, Default)]
pub(super) struct ConnectionTrust(Arc<Mutex<Option<Instant>>>);

impl ConnectionTrust {
    /// Returns whether a connection of this age may be reused.
    pub(super) fn admits(&self, age: Duration) -> bool {
        let broken = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        broken.is_none_or(|broken| age < broken.elapsed())
    }

    /// Notes whether an operation met a broken connection.
    pub(super) fn judged<T>(&self, done: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(StoreError::Database(error)) = &done
            && tells_of_the_connection(error)
        {
            self.withdraw();
        }
        done
    }

    /// Forbids the reuse of all present connections.
    pub(super) fn withdraw(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}

/// Returns whether the connection alone may cause an error again.
fn tells_of_the_connection(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(error) => {
            let code = error.code().unwrap_or_default();
            let passes = if error.try_downcast_ref::<sqlx::sqlite::SqliteError>().is_some() {
                // Busy, locked and full, with what they are extended to.
                code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 5 | 6 | 13))
            } else {
                // A time limit, somebody's lock, a conflict with another transaction, no room: all pass by themselves.
                matches!(&*code, "57014" | "55P03" | "40001" | "40P01") || code.starts_with("53")
            };
            !(error.is_unique_violation()
                || error.is_foreign_key_violation()
                || error.is_check_violation()
                || passes)
        }
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::WorkerCrashed => true,
        _ => false,
    }
}

/// Why the database refused or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The rules do not allow it.
    #[error(transparent)]
    NotAllowed(#[from] NotAllowed),
    /// The database failed, or is unavailable.
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
    /// The database has not answered in time.
    #[error("the database did not answer within {} s", .0.as_secs())]
    Late(Duration),
    /// Another file is in the place of the one that is open.
    #[error("the database file was replaced while it was in use")]
    Replaced,
    /// A row that this program has not written.
    #[error("the database is inconsistent: {table} {id}")]
    Inconsistent {
        /// The table.
        table: &'static str,
        /// The row.
        id: String,
    },
}
