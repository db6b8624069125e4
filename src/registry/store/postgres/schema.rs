//! The schema, brought up to date in one transaction, also through a pooler; nothing is asked for where there is nothing
//! to do, so that a role that may not create tables can serve.

use data_encoding::HEXLOWER;
use sqlx::{
    AssertSqlSafe, Executor, Row as _,
    migrate::{MigrateError, Migration},
    postgres::PgRow as Row,
};

use super::{
    super::{
        open::{OpenError, SchemaStanding},
        schema::{Applied, POSTGRES, standing},
    },
    pool::{Pool, PooledConnection},
};

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
                       open_sessions parties prints reachable revoked_prints salts settings watchers', ' ')) AS name)
                  AND NOT (has_table_privilege(oid, 'SELECT')
                           AND has_table_privilege(oid, 'INSERT'))) AS closed";

/// Applies the migrations that are missing.
pub(super) async fn bring_up_to_date(pool: &Pool) -> Result<(), OpenError> {
    if stands(&mut pool.acquire().await.map_err(MigrateError::from)?).await?
        == SchemaStanding::Current
    {
        return Ok(());
    }
    let mut session = pool.bulk().acquire().await.map_err(MigrateError::from)?;
    session.begin().await.map_err(MigrateError::from)?;
    session.execute(LOCK).await.map_err(MigrateError::from)?;
    session.execute(TABLE).await.map_err(MigrateError::from)?;
    // Another program may have been faster.
    stands(&mut session).await?;
    Ok(apply(session).await?)
}

/// Applies what is missing of a schema that can be brought up to date.
async fn apply(mut session: PooledConnection) -> Result<(), MigrateError> {
    let applied = applied(&mut session).await?;
    let has = |version| applied.iter().any(|applied| applied.version == version);
    for migration in POSTGRES.iter().filter(|migration| !has(migration.version)) {
        let failed = |error| MigrateError::ExecuteMigration(error, migration.version);
        session.execute(migration.sql.clone()).await.map_err(failed)?;
        session.execute(AssertSqlSafe(note(migration))).await?;
    }
    session.execute("COMMIT").await?;
    session.committed();
    Ok(())
}

/// Returns how the schema stands to the one that this program works on.
pub(super) async fn stands(session: &mut PooledConnection) -> Result<SchemaStanding, OpenError> {
    let applied = applied(session).await.map_err(MigrateError::from)?;
    standing(&applied, &POSTGRES)
}

/// Returns the migrations that the database has had; none if it has no table of them.
async fn applied(session: &mut PooledConnection) -> Result<Vec<Applied>, sqlx::Error> {
    let known = session.fetch_one("SELECT to_regclass('_sqlx_migrations')::TEXT").await?;
    if known.try_get::<Option<String>, _>(0)?.is_none() {
        return Ok(Vec::new());
    }
    let rows = session.fetch_all("SELECT version, checksum, success FROM _sqlx_migrations").await?;
    let read = |row: &Row| {
        Ok(Applied { version: row.try_get(0)?, checksum: row.try_get(1)?, whole: row.try_get(2)? })
    };
    rows.iter().map(read).collect()
}

/// Makes the statement that notes a migration as applied. Only text of this program is in it.
fn note(migration: &Migration) -> String {
    format!(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES ({}, '{}', TRUE, '\\x{}', 0)",
        migration.version,
        migration.description.replace('\'', "''"),
        HEXLOWER.encode(&migration.checksum)
    )
}
