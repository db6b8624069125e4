//! Keys.

use std::{collections::HashMap, str::FromStr};

use fingerpost_wire::{
    key::{Assurance, KeyId, State},
    print::Print,
};
use jid::BareJid;
use time::OffsetDateTime;

use super::{
    Store,
    audit::log,
    error::StoreError,
    news::announce,
    parties::{party, user},
    records::Added,
    revoked::{forgotten_of, keep_prints},
    sql::{Row, StoreConnection, inconsistent, micros, moment, query},
};
use crate::registry::model::{Actor, Addition, AuditEvent, Key, NewKey, NotAllowed, Party};

/// The columns of a key, and their tables.
macro_rules! select_keys {
    ($rest:literal) => {
        concat!(
            "SELECT keys.*, parties.jid,
                    EXISTS (SELECT 1 FROM materials WHERE key_id = keys.id) AS has_material
             FROM keys JOIN parties ON parties.id = keys.owner ",
            $rest
        )
    };
}

impl Store {
    /// Returns one key.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn key(&self, id: KeyId) -> Result<Option<Key>, StoreError> {
        self.read("key", async |db| key(db, id).await).await
    }

    /// Returns the certificate of a key.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn material(&self, id: KeyId) -> Result<Option<Vec<u8>>, StoreError> {
        self.read("material", async |db| material(db, id).await).await
    }

    /// Returns all keys of all users, by owner and age.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn all(&self) -> Result<Vec<Key>, StoreError> {
        self.bulk().read("all", all_keys).await
    }

    /// Returns keys that are not revoked and share a print with such a key of another user.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn conflicts(&self) -> Result<Vec<Key>, StoreError> {
        self.bulk().read("conflicts", async |db| {
            let rows = query(select_keys!(
                "WHERE parties.jid IS NOT NULL AND keys.state <> 'revoked' AND EXISTS (
                    SELECT 1 FROM prints AS mine
                    JOIN prints AS theirs ON theirs.bytes = mine.bytes AND theirs.key_id <> mine.key_id
                    JOIN keys AS other ON other.id = theirs.key_id
                    WHERE mine.key_id = keys.id AND other.owner <> keys.owner
                          AND other.state <> 'revoked')
                 ORDER BY parties.jid, keys.created, keys.id"
            ))
            .fetch_all(db)
            .await?;
            let prints = query(
                "SELECT key_id, hash, bytes FROM prints WHERE bytes IN (
                    SELECT bytes FROM prints GROUP BY bytes HAVING COUNT(*) > 1)
                 ORDER BY key_id, position",
            )
            .fetch_all(db)
            .await?;
            read_keys(&rows, &prints)
        })
        .await
    }

    /// Returns the users that have a key with this print.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn owners_of(&self, print: &Print) -> Result<Vec<BareJid>, StoreError> {
        self.read("owners_of", async |db| owners_of(db, print).await).await
    }

    /// Returns at most `limit` users that have keys and whose address contains `part`.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn owners_like(&self, part: &str, limit: u32) -> Result<Vec<BareJid>, StoreError> {
        self.read("owners_like", async |db| {
            let escaped: String = part
                .chars()
                .flat_map(|c| matches!(c, '%' | '_' | '!').then_some('!').into_iter().chain([c]))
                .collect();
            let rows = query(
                "SELECT DISTINCT parties.jid FROM parties JOIN keys ON keys.owner = parties.id
                 WHERE parties.jid LIKE $1 ESCAPE '!' ORDER BY parties.jid LIMIT $2",
            )
            .bind(format!("%{escaped}%"))
            .bind(limit)
            .fetch_all(db)
            .await?;
            rows.iter().map(user).collect()
        })
        .await
    }

    /// Adds a key as [`Key::add`] decides; `id` is its name if it is new.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn add(
        &self,
        owner: &BareJid,
        new: &NewKey,
        limit: u32,
        actor: &Actor,
        now: OffsetDateTime,
        id: KeyId,
    ) -> Result<Added, StoreError> {
        self.change("add", async |tx| {
            let own = keys_of(tx, owner.as_str()).await?;
            let known = new.known(&own).filter(|key| key.has_material && new.material().is_some());
            let stored = match known {
                Some(key) => material(tx, key.id).await?,
                None => None,
            };
            let with_stored;
            let new = match &stored {
                Some(stored) => {
                    with_stored = new.with_stored(stored).map_err(NotAllowed::Material)?;
                    &with_stored
                }
                None => new,
            };
            let mut addition = Key::add(owner, new, &own, limit, now, id)?;
            let forgotten = forgotten_of(tx, owner.as_str()).await?;
            let is_kept = |print: &Print| forgotten.find(owner, print).is_some();
            if new.prints().iter().any(is_kept) {
                addition = addition.of_a_revoked_one(now);
            }
            let (addition, without_room) = addition.with_revoked_prints(new, &own, is_kept);
            let is_revoked = |key: &Key| {
                own.iter().any(|known| known.id == key.id && known.state == State::Revoked)
            };
            if let Some(more) = new.material()
                && !matches!(
                    addition,
                    Addition::Known { event: None | Some(AuditEvent::Revoked), .. }
                )
                && !matches!(&addition, Addition::Known { key, .. } if is_revoked(key))
            {
                let all = stored_bytes(tx, owner).await?;
                let before = stored.as_ref().map_or(0, Vec::len);
                Key::check_room(all, more.len().saturating_sub(before), limit)?;
            }
            let mut also = Vec::new();
            for print in new.prints() {
                for other in owners_of(tx, print).await? {
                    if other != *owner && !also.contains(&other) {
                        also.push(other);
                    }
                }
            }
            let (key, event, superseded) = match addition {
                Addition::Known { key, event, superseded } => {
                    if let Some(event) = &event {
                        // The row of a revoked key never changes, but its prints may become more.
                        let material = new.material().filter(|_| !is_revoked(&key));
                        if !is_revoked(&key) {
                            update(tx, &key).await?;
                        }
                        write_prints(tx, &key, material).await?;
                        keep_prints(tx, &key, &without_room, now).await?;
                        log(tx, owner, actor, now, Some(key.id), event).await?;
                    }
                    (key, event, superseded)
                }
                Addition::Fresh { key, superseded } => {
                    insert(tx, &key, new.material()).await?;
                    log(tx, owner, actor, now, Some(key.id), &AuditEvent::Added).await?;
                    if key.state == State::Revoked {
                        log(tx, owner, actor, now, Some(key.id), &AuditEvent::Revoked).await?;
                    }
                    for other in &also {
                        let theirs = keys_of(tx, other.as_str()).await?;
                        let shares =
                            |theirs: &&Key| new.prints().iter().any(|print| theirs.has(print));
                        if let Some(theirs) = theirs.iter().find(shares) {
                            let by = Party::User(other.clone());
                            let event = AuditEvent::AlsoOwned { by, key: theirs.id };
                            log(tx, owner, actor, now, Some(key.id), &event).await?;
                        }
                    }
                    (key, Some(AuditEvent::Added), superseded)
                }
            };
            let fresh = event == Some(AuditEvent::Added);
            let changed = event.is_some() || superseded.is_some();
            if let Some(old) = superseded {
                update(tx, &old).await?;
                let event = AuditEvent::Superseded { by: key.id };
                log(tx, owner, actor, now, Some(old.id), &event).await?;
            }
            announce(tx, owner).await?;
            let revoked =
                event == Some(AuditEvent::Revoked) || (fresh && key.state == State::Revoked);
            Ok(Added { key, fresh, changed, revoked, also_owned_by: also })
        })
        .await
    }

    /// Revokes a key for good, and returns whether it was not revoked before.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn revoke(
        &self,
        id: KeyId,
        actor: &Actor,
        reason: &str,
        now: OffsetDateTime,
    ) -> Result<(Key, bool), StoreError> {
        self.change("revoke", async |tx| {
            let known = key(tx, id).await?.ok_or(NotAllowed::NoSuchKey)?;
            let Some(revoked) = known.revoke(actor, reason, now)? else {
                return Ok((known, false));
            };
            update(tx, &revoked).await?;
            log(tx, &revoked.owner, actor, now, Some(id), &AuditEvent::Revoked).await?;
            announce(tx, &revoked.owner).await?;
            Ok((revoked, true))
        })
        .await
    }

    /// Takes a key out of use, without a replacement.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn retire(
        &self,
        id: KeyId,
        actor: &Actor,
        now: OffsetDateTime,
    ) -> Result<Key, StoreError> {
        self.change("retire", async |tx| {
            let known = key(tx, id).await?.ok_or(NotAllowed::NoSuchKey)?;
            let retired = known.retire(actor, now)?;
            update(tx, &retired).await?;
            log(tx, &retired.owner, actor, now, Some(id), &AuditEvent::Retired).await?;
            announce(tx, &retired.owner).await?;
            Ok(retired)
        })
        .await
    }

    /// Raises the assurance of a key to `to`, and returns whether it was lower before.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn raise(
        &self,
        id: KeyId,
        to: Assurance,
        actor: &Actor,
        now: OffsetDateTime,
    ) -> Result<(Key, bool), StoreError> {
        self.change("raise", async |tx| {
            let known = key(tx, id).await?.ok_or(NotAllowed::NoSuchKey)?;
            let Some(raised) = known.raise(actor, to, now)? else { return Ok((known, false)) };
            update(tx, &raised).await?;
            let event =
                if to == Assurance::Attested { AuditEvent::Attested } else { AuditEvent::Proven };
            log(tx, &raised.owner, actor, now, Some(id), &event).await?;
            announce(tx, &raised.owner).await?;
            Ok((raised, true))
        })
        .await
    }
}

pub(super) async fn all_keys(db: &mut StoreConnection) -> Result<Vec<Key>, StoreError> {
    let rows = query(select_keys!(
        "WHERE parties.jid IS NOT NULL ORDER BY parties.jid, keys.created, keys.id"
    ))
    .fetch_all(db)
    .await?;
    let prints = query("SELECT key_id, hash, bytes FROM prints ORDER BY key_id, position")
        .fetch_all(db)
        .await?;
    read_keys(&rows, &prints)
}

/// The keys of the user with this address; the address of nobody is empty.
pub(super) async fn keys_of(db: &mut StoreConnection, owner: &str) -> Result<Vec<Key>, StoreError> {
    let rows = query(select_keys!("WHERE parties.jid = $1 ORDER BY keys.created, keys.id"))
        .bind(owner.to_owned())
        .fetch_all(db)
        .await?;
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let prints = query(
        "SELECT prints.key_id, prints.hash, prints.bytes FROM prints
         JOIN keys ON keys.id = prints.key_id JOIN parties ON parties.id = keys.owner
         WHERE parties.jid = $1 ORDER BY prints.key_id, prints.position",
    )
    .bind(owner.to_owned())
    .fetch_all(db)
    .await?;
    read_keys(&rows, &prints)
}

pub(super) async fn key(db: &mut StoreConnection, id: KeyId) -> Result<Option<Key>, StoreError> {
    key_named(db, &id.to_string()).await
}

pub(super) async fn key_named(
    db: &mut StoreConnection,
    id: &str,
) -> Result<Option<Key>, StoreError> {
    let rows = query(select_keys!("WHERE keys.id = $1 AND parties.jid IS NOT NULL"))
        .bind(id.to_owned())
        .fetch_all(db)
        .await?;
    let prints =
        query("SELECT key_id, hash, bytes FROM prints WHERE key_id = $1 ORDER BY position")
            .bind(id.to_owned())
            .fetch_all(db)
            .await?;
    Ok(read_keys(&rows, &prints)?.pop())
}

pub(super) async fn material(
    db: &mut StoreConnection,
    id: KeyId,
) -> Result<Option<Vec<u8>>, StoreError> {
    let row = query("SELECT bytes FROM materials WHERE key_id = $1")
        .bind(id.to_string())
        .fetch_optional(db)
        .await?;
    Ok(row.map(|row| row.try_get("bytes")).transpose()?)
}

/// Returns the bytes of a user's certificates.
async fn stored_bytes(db: &mut StoreConnection, owner: &BareJid) -> Result<u64, StoreError> {
    let row = query(
        "SELECT CAST(COALESCE(SUM(LENGTH(materials.bytes)), 0) AS BIGINT) AS bytes FROM materials
         JOIN keys ON keys.id = materials.key_id JOIN parties ON parties.id = keys.owner
         WHERE parties.jid = $1",
    )
    .bind(owner.as_str())
    .fetch_one(db)
    .await?;
    let bytes: i64 = row.try_get("bytes")?;
    Ok(u64::try_from(bytes).unwrap_or_default())
}

/// Reads rows of `keys` with their prints.
fn read_keys(rows: &[Row], prints: &[Row]) -> Result<Vec<Key>, StoreError> {
    let mut by_key: HashMap<String, Vec<Print>> = HashMap::new();
    for row in prints {
        let id: String = row.try_get("key_id")?;
        let bytes: Vec<u8> = row.try_get("bytes")?;
        let hash = row.try_get::<String>("hash")?.parse().ok();
        let print = hash.and_then(|hash| Print::new(hash, &bytes).ok());
        let print = print.ok_or_else(|| inconsistent("prints", &id))?;
        by_key.entry(id).or_default().push(print);
    }
    rows.iter()
        .map(|row| {
            let id: String = row.try_get("id")?;
            let prints = by_key.remove(&id).unwrap_or_default();
            read_key(row, prints)?.ok_or_else(|| inconsistent("keys", &id))
        })
        .collect()
}

/// Reads one row; `None` if this program does not write such rows.
fn read_key(row: &Row, prints: Vec<Print>) -> Result<Option<Key>, sqlx::Error> {
    fn name<T: FromStr>(row: &Row, column: &str) -> Result<Option<T>, sqlx::Error> {
        Ok(row.try_get::<String>(column)?.parse().ok())
    }
    let replaced_by: Option<String> = row.try_get("replaced_by")?;
    let expires: Option<i64> = row.try_get("expires")?;
    let parsed = (
        name(row, "id")?,
        BareJid::new(&row.try_get::<String>("jid")?).ok(),
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
        reason: row.try_get::<Option<String>>("reason")?.unwrap_or_default(),
    }))
}

async fn owners_of(db: &mut StoreConnection, print: &Print) -> Result<Vec<BareJid>, StoreError> {
    let rows = query(
        "SELECT DISTINCT parties.jid
         FROM prints
         JOIN keys ON keys.id = prints.key_id
         JOIN parties ON parties.id = keys.owner
         WHERE prints.bytes = $1 AND parties.jid IS NOT NULL
         ORDER BY parties.jid",
    )
    .bind(print.as_bytes().to_vec())
    .fetch_all(db)
    .await?;
    rows.iter().map(user).collect()
}

pub(super) async fn insert(
    db: &mut StoreConnection,
    key: &Key,
    material: Option<&[u8]>,
) -> Result<(), sqlx::Error> {
    let party = party(db, &key.owner).await?;
    query(
        "INSERT INTO keys (id, owner, method, label, state, assurance, source, created, changed,
                           expires, replaced_by, reason)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
    )
    .bind(key.id.to_string())
    .bind(party)
    .bind(key.method.as_str())
    .bind(key.label.clone())
    .bind(key.state.as_str())
    .bind(key.assurance.as_str())
    .bind(key.source.as_str())
    .bind(micros(key.created))
    .bind(micros(key.changed))
    .bind(key.expires.map(micros))
    .bind(key.replaced_by.map(|id| id.to_string()))
    .bind(key.reason.clone())
    .execute(db)
    .await?;
    write_prints(db, key, material).await
}

async fn update(db: &mut StoreConnection, key: &Key) -> Result<(), StoreError> {
    let done = query(
        "UPDATE keys SET state = $1, assurance = $2, changed = $3, expires = $4, replaced_by = $5,
                         reason = $6 WHERE id = $7",
    )
    .bind(key.state.as_str())
    .bind(key.assurance.as_str())
    .bind(micros(key.changed))
    .bind(key.expires.map(micros))
    .bind(key.replaced_by.map(|id| id.to_string()))
    .bind(key.reason.clone())
    .bind(key.id.to_string())
    .execute(db)
    .await?;
    if done == 1 { Ok(()) } else { Err(inconsistent("keys", key.id)) }
}

async fn write_prints(
    db: &mut StoreConnection,
    key: &Key,
    material: Option<&[u8]>,
) -> Result<(), sqlx::Error> {
    let id = key.id.to_string();
    query("DELETE FROM prints WHERE key_id = $1").bind(id.clone()).execute(db).await?;
    for (position, print) in (0_i64..).zip(&key.prints) {
        query("INSERT INTO prints (key_id, position, hash, bytes) VALUES ($1, $2, $3, $4)")
            .bind(id.clone())
            .bind(position)
            .bind(print.hash().as_str())
            .bind(print.as_bytes().to_vec())
            .execute(db)
            .await?;
    }
    if let Some(material) = material {
        query(
            "INSERT INTO materials (key_id, bytes) VALUES ($1, $2)
             ON CONFLICT (key_id) DO UPDATE SET bytes = excluded.bytes",
        )
        .bind(id)
        .bind(material.to_vec())
        .execute(db)
        .await?;
    }
    Ok(())
}
