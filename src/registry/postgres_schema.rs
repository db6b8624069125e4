//! The schema, brought up to date in one transaction, also through a pooler; nothing is asked for where there is nothing
//! to do, so that a role that may not create tables can serve.

use std::fmt::Write;

use sqlx::{
    AssertSqlSafe, Executor, Row as _,
    migrate::{MigrateError, Migration, Migrator},
};

use super::pool::{Pool, Session};

pub(super) static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");
/// One program migrates at a time ("fngrmigr").
const LOCK: &str = "SELECT pg_advisory_xact_lock(7380950580466378610)";
/// The table of applied migrations, with the name and the columns that the database library gives it.
const TABLE: &str = "CREATE TABLE IF NOT EXISTS _sqlx_migrations (
    version BIGINT PRIMARY KEY,
    description TEXT NOT NULL,
    installed_on TIMESTAMPTZ NOT NULL DEFAULT now(),
    success BOOLEAN NOT NULL,
    checksum BYTEA NOT NULL,
    execution_time BIGINT NOT NULL
)";

/// Asks what can keep a role from using a database.
pub(super) const OBSTACLES: &str = "
    SELECT COALESCE(has_schema_privilege(current_schema(), 'CREATE'), FALSE)::TEXT AS may_create,
           (SELECT string_agg(relname, ', ' ORDER BY relname) FROM pg_class
            WHERE oid IN (SELECT to_regclass(name) FROM unnest(string_to_array(
                      'allowed audit blocks handovers heartbeats identities instances keys materials \
                       open_sessions parties prints reachable revoked_prints salts settings', ' ')) AS name)
                  AND NOT (has_table_privilege(oid, 'SELECT')
                           AND has_table_privilege(oid, 'INSERT'))) AS closed";

/// Applies the migrations that are missing.
pub(super) async fn bring_up_to_date(pool: &Pool) -> Result<(), MigrateError> {
    if missing(&mut pool.acquire().await?).await?.is_empty() {
        return Ok(());
    }
    let mut session = pool.bulk().acquire().await?;
    session.begin().await?;
    session.execute(LOCK).await?;
    session.execute(TABLE).await?;
    // Another program may have been faster.
    for migration in missing(&mut session).await? {
        let failed = |error| MigrateError::ExecuteMigration(error, migration.version);
        session.execute(migration.sql.clone()).await.map_err(failed)?;
        session.execute(AssertSqlSafe(note(migration))).await?;
    }
    session.execute("COMMIT").await?;
    session.committed();
    Ok(())
}

/// Returns the migrations that are not applied yet.
pub(super) async fn missing(
    session: &mut Session,
) -> Result<Vec<&'static Migration>, MigrateError> {
    let all = || MIGRATIONS.iter();
    let known = session.fetch_one("SELECT to_regclass('_sqlx_migrations')::TEXT").await?;
    if known.try_get::<Option<String>, _>(0)?.is_none() {
        return Ok(all().collect());
    }
    let text = "SELECT version::TEXT, encode(checksum, 'hex'), success::TEXT FROM _sqlx_migrations";
    let mut applied = Vec::new();
    for row in session.fetch_all(text).await? {
        let version: String = row.try_get(0)?;
        let version = version.parse().unwrap_or_default();
        if row.try_get::<String, _>(2)? != "true" {
            return Err(MigrateError::Dirty(version));
        }
        let Some(migration) = all().find(|migration| migration.version == version) else {
            return Err(MigrateError::VersionMissing(version));
        };
        if row.try_get::<String, _>(1)? != hex(&migration.checksum) {
            return Err(MigrateError::VersionMismatch(version));
        }
        applied.push(version);
    }
    Ok(all().filter(|migration| !applied.contains(&migration.version)).collect())
}

/// Makes the statement that notes a migration as applied. Only text of this program is in it.
fn note(migration: &Migration) -> String {
    format!(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES ({}, '{}', TRUE, '\\x{}', 0)",
        migration.version,
        migration.description.replace('\'', "''"),
        hex(&migration.checksum)
    )
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
