//! The store's SQL for SQLite: WAL, and every commit on the disk before it is acknowledged.

use std::{str::FromStr, time::Duration};

use jid::BareJid;
use sqlx::{
    Row, SqliteConnection, SqlitePool,
    sqlite::{
        SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
    },
};
use time::OffsetDateTime;

use super::{
    model::{Actor, Addition, AuditEntry, Event, Key, KeyId, NewKey, NotAllowed, Party},
    store::{Added, OpenError, StoreError},
};
use crate::print::Print;

/// How long a writer waits for another.
const BUSY: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub(super) struct Sqlite(SqlitePool);

fn micros(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX)
}

fn moment(micros: i64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000).ok()
}

fn inconsistent(table: &'static str, id: impl ToString) -> StoreError {
    StoreError::Inconsistent { table, id: id.to_string() }
}

impl Sqlite {
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

    pub(super) async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1 FROM keys LIMIT 1").fetch_optional(&self.0).await?;
        Ok(())
    }

    pub(super) async fn keys_of(&self, owner: &BareJid) -> Result<Vec<Key>, StoreError> {
        let mut connection = self.0.acquire().await?;
        keys_of(&mut connection, owner).await
    }

    pub(super) async fn key(&self, id: KeyId) -> Result<Option<Key>, StoreError> {
        let mut connection = self.0.acquire().await?;
        key(&mut connection, id).await
    }

    pub(super) async fn material(&self, id: KeyId) -> Result<Option<Vec<u8>>, StoreError> {
        let row = sqlx::query("SELECT bytes FROM materials WHERE key_id = ?")
            .bind(id.to_string())
            .fetch_optional(&self.0)
            .await?;
        Ok(row.map(|row| row.try_get("bytes")).transpose()?)
    }

    pub(super) async fn all(&self) -> Result<Vec<Key>, StoreError> {
        let mut connection = self.0.acquire().await?;
        let rows = sqlx::query(
            "SELECT keys.*, parties.jid,
                    EXISTS (SELECT 1 FROM materials WHERE key_id = keys.id) AS has_material
             FROM keys JOIN parties ON parties.id = keys.owner
             WHERE parties.jid IS NOT NULL
             ORDER BY parties.jid, keys.created, keys.rowid",
        )
        .fetch_all(&mut *connection)
        .await?;
        complete(&mut connection, rows).await
    }

    pub(super) async fn owners_of(&self, print: &Print) -> Result<Vec<BareJid>, StoreError> {
        let mut connection = self.0.acquire().await?;
        owners_of(&mut connection, print).await
    }

    pub(super) async fn add(
        &self,
        owner: &BareJid,
        new: &NewKey,
        limit: u32,
        actor: &Actor,
        now: OffsetDateTime,
        id: KeyId,
    ) -> Result<Added, StoreError> {
        // IMMEDIATE: what is read here is still true when it is written.
        let mut tx = self.0.begin_with("BEGIN IMMEDIATE").await?;
        let own = keys_of(&mut tx, owner).await?;
        let addition = Key::add(owner, new, &own, limit, now, id)?;
        let mut also = Vec::new();
        for print in new.prints() {
            for other in owners_of(&mut tx, print).await? {
                if other != *owner && !also.contains(&other) {
                    also.push(other);
                }
            }
        }
        let (key, fresh, superseded) = match addition {
            Addition::Known { key, completed, superseded } => {
                if completed {
                    update(&mut tx, &key).await?;
                    write_prints(&mut tx, &key, new.material()).await?;
                    log(&mut tx, owner, actor, now, key.id, &Event::Completed).await?;
                }
                (key, false, superseded)
            }
            Addition::Fresh { key, superseded } => {
                let party = party(&mut tx, owner).await?;
                sqlx::query(
                    "INSERT INTO keys (id, owner, method, label, state, assurance, source, created,
                                       changed, expires, replaced_by, reason)
                     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)",
                )
                .bind(key.id.to_string())
                .bind(party)
                .bind(key.method.as_str())
                .bind(&key.label)
                .bind(key.state.as_str())
                .bind(key.assurance.as_str())
                .bind(key.source.as_str())
                .bind(micros(key.created))
                .bind(micros(key.changed))
                .bind(key.expires.map(micros))
                .execute(&mut *tx)
                .await?;
                write_prints(&mut tx, &key, new.material()).await?;
                log(&mut tx, owner, actor, now, key.id, &Event::Added).await?;
                for other in &also {
                    let theirs = keys_of(&mut tx, other).await?;
                    let shares = |theirs: &&Key| new.prints().iter().any(|print| theirs.has(print));
                    if let Some(theirs) = theirs.iter().find(shares) {
                        let by = Party::User(other.clone());
                        let event = Event::AlsoOwned { by, key: theirs.id };
                        log(&mut tx, owner, actor, now, key.id, &event).await?;
                    }
                }
                (key, true, superseded)
            }
        };
        if let Some(old) = superseded {
            update(&mut tx, &old).await?;
            log(&mut tx, owner, actor, now, old.id, &Event::Superseded { by: key.id }).await?;
        }
        tx.commit().await?;
        Ok(Added { key, fresh, also_owned_by: also })
    }

    pub(super) async fn revoke(
        &self,
        id: KeyId,
        actor: &Actor,
        reason: &str,
        now: OffsetDateTime,
    ) -> Result<Key, StoreError> {
        let mut tx = self.0.begin_with("BEGIN IMMEDIATE").await?;
        let known = key(&mut tx, id).await?.ok_or(NotAllowed::NoSuchKey)?;
        let Some(revoked) = known.revoke(actor, reason, now)? else { return Ok(known) };
        update(&mut tx, &revoked).await?;
        log(&mut tx, &revoked.owner, actor, now, id, &Event::Revoked).await?;
        tx.commit().await?;
        Ok(revoked)
    }

    pub(super) async fn audit(&self, owner: &BareJid) -> Result<Vec<AuditEntry>, StoreError> {
        let rows = sqlx::query(
            "SELECT audit.*, actors.jid AS actor_jid, actors.erased AS actor_erased,
                    others.jid AS other_jid, others.erased AS other_erased
             FROM audit
             JOIN parties AS owners ON owners.id = audit.owner
             LEFT JOIN parties AS actors ON actors.id = audit.actor
             LEFT JOIN parties AS others ON others.id = audit.other
             WHERE owners.jid = ?
             ORDER BY audit.seq",
        )
        .bind(owner.as_str())
        .fetch_all(&self.0)
        .await?;
        rows.iter().map(|row| entry(row, owner)).collect()
    }
}

/// A database file is for its owner alone; what exists keeps the rights it has.
fn make_private(path: &std::path::Path) {
    use std::os::unix::fs::OpenOptionsExt;
    let _ = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
}

async fn keys_of(db: &mut SqliteConnection, owner: &BareJid) -> Result<Vec<Key>, StoreError> {
    let rows = sqlx::query(
        "SELECT keys.*, parties.jid,
                EXISTS (SELECT 1 FROM materials WHERE key_id = keys.id) AS has_material
         FROM keys JOIN parties ON parties.id = keys.owner
         WHERE parties.jid = ?
         ORDER BY keys.created, keys.rowid",
    )
    .bind(owner.as_str())
    .fetch_all(&mut *db)
    .await?;
    complete(db, rows).await
}

async fn key(db: &mut SqliteConnection, id: KeyId) -> Result<Option<Key>, StoreError> {
    let row = sqlx::query(
        "SELECT keys.*, parties.jid,
                EXISTS (SELECT 1 FROM materials WHERE key_id = keys.id) AS has_material
         FROM keys JOIN parties ON parties.id = keys.owner
         WHERE keys.id = ? AND parties.jid IS NOT NULL",
    )
    .bind(id.to_string())
    .fetch_all(&mut *db)
    .await?;
    Ok(complete(db, row).await?.pop())
}

/// Rows of `keys` with their prints.
async fn complete(db: &mut SqliteConnection, rows: Vec<SqliteRow>) -> Result<Vec<Key>, StoreError> {
    let mut keys = Vec::with_capacity(rows.len());
    for row in rows {
        let id: String = row.try_get("id")?;
        let prints =
            sqlx::query("SELECT hash, bytes FROM prints WHERE key_id = ? ORDER BY position")
                .bind(&id)
                .fetch_all(&mut *db)
                .await?;
        let prints: Option<Vec<Print>> = prints
            .iter()
            .map(|row| {
                let hash = row.try_get::<String, _>("hash").ok()?.parse().ok()?;
                Print::new(hash, &row.try_get::<Vec<u8>, _>("bytes").ok()?).ok()
            })
            .collect();
        let prints = prints.ok_or_else(|| inconsistent("prints", &id))?;
        keys.push(read_key(&row, prints)?.ok_or_else(|| inconsistent("keys", &id))?);
    }
    Ok(keys)
}

/// One row; `None` if it is not one that this program writes.
fn read_key(row: &SqliteRow, prints: Vec<Print>) -> Result<Option<Key>, sqlx::Error> {
    fn name<T: FromStr>(row: &SqliteRow, column: &str) -> Result<Option<T>, sqlx::Error> {
        Ok(row.try_get::<String, _>(column)?.parse().ok())
    }
    let replaced_by: Option<String> = row.try_get("replaced_by")?;
    let expires: Option<i64> = row.try_get("expires")?;
    let parsed = (
        name(row, "id")?,
        BareJid::new(&row.try_get::<String, _>("jid")?).ok(),
        name(row, "method")?,
        name(row, "state")?,
        name(row, "assurance")?,
        name(row, "source")?,
        moment(row.try_get("created")?),
        moment(row.try_get("changed")?),
    );
    let (
        Some(id),
        Some(owner),
        Some(method),
        Some(state),
        Some(assurance),
        Some(source),
        Some(created),
        Some(changed),
    ) = parsed
    else {
        return Ok(None);
    };
    Ok(Some(Key {
        id,
        owner,
        method,
        prints,
        has_material: row.try_get("has_material")?,
        label: row.try_get("label")?,
        state,
        assurance,
        source,
        created,
        expires: expires.and_then(moment),
        changed,
        replaced_by: replaced_by.and_then(|text| text.parse().ok()),
        reason: row.try_get::<Option<String>, _>("reason")?.unwrap_or_default(),
    }))
}

async fn owners_of(db: &mut SqliteConnection, print: &Print) -> Result<Vec<BareJid>, StoreError> {
    let rows = sqlx::query(
        "SELECT DISTINCT parties.jid
         FROM prints
         JOIN keys ON keys.id = prints.key_id
         JOIN parties ON parties.id = keys.owner
         WHERE prints.bytes = ? AND parties.jid IS NOT NULL
         ORDER BY parties.jid",
    )
    .bind(print.as_bytes())
    .fetch_all(db)
    .await?;
    rows.iter()
        .map(|row| {
            let jid: String = row.try_get("jid")?;
            BareJid::new(&jid).map_err(|_| inconsistent("parties", jid))
        })
        .collect()
}

/// The row of a user, made if there is none.
async fn party(db: &mut SqliteConnection, jid: &BareJid) -> Result<i64, sqlx::Error> {
    sqlx::query("INSERT INTO parties (jid) VALUES (?) ON CONFLICT (jid) DO NOTHING")
        .bind(jid.as_str())
        .execute(&mut *db)
        .await?;
    sqlx::query("SELECT id FROM parties WHERE jid = ?")
        .bind(jid.as_str())
        .fetch_one(db)
        .await?
        .try_get("id")
}

async fn update(db: &mut SqliteConnection, key: &Key) -> Result<(), StoreError> {
    let done = sqlx::query(
        "UPDATE keys SET state = ?, changed = ?, expires = ?, replaced_by = ?, reason = ? WHERE id = ?",
    )
    .bind(key.state.as_str())
    .bind(micros(key.changed))
    .bind(key.expires.map(micros))
    .bind(key.replaced_by.map(|id| id.to_string()))
    .bind(&key.reason)
    .bind(key.id.to_string())
    .execute(db)
    .await?;
    if done.rows_affected() == 1 { Ok(()) } else { Err(inconsistent("keys", key.id)) }
}

async fn write_prints(
    db: &mut SqliteConnection,
    key: &Key,
    material: Option<&[u8]>,
) -> Result<(), sqlx::Error> {
    let id = key.id.to_string();
    sqlx::query("DELETE FROM prints WHERE key_id = ?").bind(&id).execute(&mut *db).await?;
    for (position, print) in (0_i64..).zip(&key.prints) {
        sqlx::query("INSERT INTO prints (key_id, position, hash, bytes) VALUES (?, ?, ?, ?)")
            .bind(&id)
            .bind(position)
            .bind(print.hash().as_str())
            .bind(print.as_bytes())
            .execute(&mut *db)
            .await?;
    }
    if let Some(material) = material {
        sqlx::query("INSERT OR REPLACE INTO materials (key_id, bytes) VALUES (?, ?)")
            .bind(&id)
            .bind(material)
            .execute(db)
            .await?;
    }
    Ok(())
}

async fn log(
    db: &mut SqliteConnection,
    owner: &BareJid,
    actor: &Actor,
    now: OffsetDateTime,
    id: KeyId,
    event: &Event,
) -> Result<(), sqlx::Error> {
    let owner = party(db, owner).await?;
    let (kind, actor) = match actor {
        Actor::User(jid) => ("user", Some(party(db, jid).await?)),
        Actor::Admin(jid) => ("admin", Some(party(db, jid).await?)),
        Actor::Offline => ("offline", None),
    };
    let (other, other_key) = match event {
        Event::AlsoOwned { by: Party::User(jid), key } => (Some(party(db, jid).await?), Some(key)),
        Event::AlsoOwned { key, .. } => (None, Some(key)),
        Event::Superseded { by } => (None, Some(by)),
        Event::Added | Event::Completed | Event::Revoked => (None, None),
    };
    sqlx::query(
        "INSERT INTO audit (at, event, key_id, owner, actor_kind, actor, other, other_key)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(micros(now))
    .bind(event.as_str())
    .bind(id.to_string())
    .bind(owner)
    .bind(kind)
    .bind(actor)
    .bind(other)
    .bind(other_key.map(ToString::to_string))
    .execute(db)
    .await?;
    Ok(())
}

fn entry(row: &SqliteRow, owner: &BareJid) -> Result<AuditEntry, StoreError> {
    let seq: i64 = row.try_get("seq")?;
    let bad = || inconsistent("audit", seq);
    let person = |jid: &str, erased: &str| -> Result<Option<Party>, StoreError> {
        let jid: Option<String> = row.try_get(jid)?;
        let erased: Option<String> = row.try_get(erased)?;
        match jid {
            Some(jid) => Ok(Some(Party::User(BareJid::new(&jid).map_err(|_| bad())?))),
            None => Ok(erased.map(Party::Erased)),
        }
    };
    let kind: String = row.try_get("actor_kind")?;
    let actor = match (kind.as_str(), person("actor_jid", "actor_erased")?) {
        ("user", Some(Party::User(jid))) => Some(Actor::User(jid)),
        ("admin", Some(Party::User(jid))) => Some(Actor::Admin(jid)),
        ("offline", _) => Some(Actor::Offline),
        _ => None,
    };
    let other_key: Option<String> = row.try_get("other_key")?;
    let other_key = other_key.and_then(|text| text.parse().ok());
    let name: String = row.try_get("event")?;
    let event = match (name.as_str(), other_key) {
        ("added", _) => Event::Added,
        ("completed", _) => Event::Completed,
        ("revoked", _) => Event::Revoked,
        ("superseded", Some(by)) => Event::Superseded { by },
        ("also-owned", Some(key)) => {
            let by = person("other_jid", "other_erased")?.ok_or_else(bad)?;
            Event::AlsoOwned { by, key }
        }
        _ => return Err(bad()),
    };
    Ok(AuditEntry {
        seq,
        at: moment(row.try_get("at")?).ok_or_else(bad)?,
        owner: Party::User(owner.clone()),
        actor,
        key: row.try_get::<String, _>("key_id")?.parse().map_err(|_| bad())?,
        event,
    })
}
