//! The store's SQL, one text for both databases. Each database defines its types and the beginning of a change, and
//! includes this file.
//!
//! Placeholders are `$1`, which both accept. Times are microseconds since 1970.

use std::{
    collections::HashMap,
    ops::{Deref, DerefMut},
    str::FromStr,
};

use fingerpost_secure::material_error::MATERIAL_MAX;
use fingerpost_wire::{
    key::{Assurance, KeyId, State},
    print::Print,
};
use jid::BareJid;
use sqlx::{Row as _, query::Query};
use time::OffsetDateTime;

use super::{
    Connection, Database, Db, Held, Row, announce, announce_blocks, begin, begin_apart, bulk,
    committed, take_back,
};
use crate::registry::{
    forgotten::{Forgotten, Revoked, hash_of_owner},
    model::{
        Actor, Addition, AuditEntry, Event, Key, NewKey, NotAllowed, Party, Settings, Visibility,
    },
    store::{
        error::StoreError,
        records::{Added, Block, News, Profile, RetiredAccount},
    },
};

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

/// The columns of a row of the audit log with its users, and their tables.
macro_rules! select_audit {
    ($rest:literal) => {
        concat!(
            "SELECT audit.*, owners.jid AS owner_jid, owners.erased AS owner_erased,
                    actors.jid AS actor_jid, actors.erased AS actor_erased,
                    others.jid AS other_jid, others.erased AS other_erased
             FROM audit
             JOIN parties AS owners ON owners.id = audit.owner
             LEFT JOIN parties AS actors ON actors.id = audit.actor
             LEFT JOIN parties AS others ON others.id = audit.other ",
            $rest
        )
    };
}
pub(super) use select_audit;

/// Rows of the audit log, newest first. Those of one user have a text of their own, which the index on the owner serves.
pub(super) const AUDIT_OF_ONE: &str = select_audit!(
    "WHERE audit.owner = (SELECT id FROM parties WHERE jid = $4) AND audit.seq <= $1
     ORDER BY audit.seq DESC LIMIT $2 OFFSET $3"
);
const AUDIT_OF_ALL: &str =
    select_audit!("WHERE audit.seq <= $1 ORDER BY audit.seq DESC LIMIT $2 OFFSET $3");
/// How many rows there are.
pub(super) const COUNT_OF_ONE: &str = "SELECT COUNT(*) AS rows FROM audit
     WHERE audit.owner = (SELECT id FROM parties WHERE jid = $2) AND audit.seq <= $1";
const COUNT_OF_ALL: &str = "SELECT COUNT(*) AS rows FROM audit WHERE audit.seq <= $1";

type Arguments = <Db as sqlx::Database>::Arguments;

/// Stores a component's own certificate and key, unless there are some.
pub(super) const KEEP_IDENTITY: &str =
    "INSERT INTO identities (component, certificate, private_key) VALUES ($1, $2, $3)
     ON CONFLICT (component) DO NOTHING";

pub(super) fn query(text: &'static str) -> Query<'static, Db, Arguments> {
    sqlx::query::<Db>(text)
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
pub(in crate::registry) struct Change(Option<Held>);

impl Change {
    /// Makes a change of a connection that is within a transaction.
    pub(super) fn of(held: Held) -> Self {
        Self(Some(held))
    }

    /// Commits the change.
    pub(super) async fn commit(mut self) -> Result<(), sqlx::Error> {
        query("COMMIT").execute(&mut *self).await?;
        if let Some(held) = self.0.take() {
            committed(held);
        }
        Ok(())
    }
}

impl Deref for Change {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.0.as_ref().expect("a change holds its connection until it is dropped")
    }
}

impl DerefMut for Change {
    fn deref_mut(&mut self) -> &mut Connection {
        self.0.as_mut().expect("a change holds its connection until it is dropped")
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        if let Some(held) = self.0.take() {
            take_back(held);
        }
    }
}

/// Returns the number of the last row of the audit log.
pub(super) async fn last_change(db: &mut Connection) -> Result<i64, sqlx::Error> {
    let row = query("SELECT COALESCE(MAX(seq), 0) AS seq FROM audit").fetch_one(db).await?;
    row.try_get("seq")
}

/// Returns what has changed since the row `seq` of the audit log, and moves `seq` to the last row.
pub(super) async fn news_since(db: &mut Connection, seq: &mut i64) -> Result<News, sqlx::Error> {
    let rows = query(
        "SELECT audit.seq, audit.event, parties.jid
         FROM audit JOIN parties ON parties.id = audit.owner
         WHERE audit.seq > $1 ORDER BY audit.seq",
    )
    .bind(*seq)
    .fetch_all(&mut *db)
    .await?;
    let mut owners = Vec::new();
    let mut blocks = false;
    for row in &rows {
        *seq = row.try_get("seq")?;
        let event: String = row.try_get("event")?;
        blocks |= matches!(event.as_str(), "blocked" | "unblocked");
        // The address of an erased user is gone: the row may be anyone's.
        let jid: Option<String> = row.try_get("jid")?;
        let Some(owner) = jid.and_then(|jid| BareJid::new(&jid).ok()) else {
            *seq = last_change(db).await?;
            return Ok(News::Anything);
        };
        owners.push(owner);
    }
    Ok(if owners.is_empty() { News::None } else { News::Of { owners, blocks } })
}

impl Database {
    pub(in crate::registry) async fn ping(&self) -> Result<(), StoreError> {
        query("SELECT 1 FROM keys LIMIT 1").fetch_optional(&self.pool).await?;
        Ok(())
    }

    /// Writes a row of the size of a key's material, and removes it again: a database without room for that does not
    /// accept new keys.
    pub(in crate::registry) async fn write(
        &self,
        component: &BareJid,
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        let mut tx = begin_apart(&self.pool).await?;
        query(
            "INSERT INTO heartbeats (component, at, room) VALUES ($1, $2, $3)
             ON CONFLICT (component) DO UPDATE SET at = excluded.at, room = excluded.room",
        )
        .bind(component.as_str().to_owned())
        .bind(micros(now))
        .bind(vec![0_u8; MATERIAL_MAX])
        .execute(&mut *tx)
        .await?;
        query("UPDATE heartbeats SET room = $2 WHERE component = $1")
            .bind(component.as_str().to_owned())
            .bind(Vec::<u8>::new())
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }

    pub(in crate::registry) async fn profile(
        &self,
        owner: &BareJid,
    ) -> Result<Profile, StoreError> {
        let mut db = self.pool.acquire().await?;
        let keys = keys_of(&mut db, owner.as_str()).await?;
        let forgotten = forgotten_of(&mut db, owner.as_str()).await?;
        let settings = settings_of(&mut db, owner).await?;
        Ok(Profile { keys, settings, forgotten })
    }

    /// Returns what `asker` may know of `owner`; `None` if nothing. `admits` decides by the owner's visibility and by
    /// whether `asker` is named.
    ///
    /// # Security
    /// A hidden user causes the same queries as an unknown one, with the same empty results: the time reveals nothing.
    pub(in crate::registry) async fn visible(
        &self,
        asker: &BareJid,
        owner: &BareJid,
        admits: impl Fn(Option<Visibility>, bool) -> bool,
    ) -> Result<Option<Profile>, StoreError> {
        let mut db = self.pool.acquire().await?;
        let said = said_of(&mut db, asker, owner.as_str()).await?;
        let admitted = admits(said.map(|(visibility, _)| visibility), said.is_some_and(|(_, n)| n));
        let shown = if admitted { owner.as_str() } else { "" };
        let keys = keys_of(&mut db, shown).await?;
        let forgotten = forgotten_of(&mut db, shown).await?;
        if !admitted {
            return Ok(None);
        }
        let settings = match said {
            Some(_) => settings_of(&mut db, owner).await?,
            None => None,
        };
        Ok(Some(Profile { keys, settings, forgotten }))
    }

    /// Returns one key, if `admits` allows it by the owner's visibility and by whether `asker` is named; see
    /// [`Self::visible`].
    pub(in crate::registry) async fn visible_key(
        &self,
        asker: &BareJid,
        id: KeyId,
        admits: impl Fn(&BareJid, Option<Visibility>, bool) -> bool,
    ) -> Result<Option<Key>, StoreError> {
        let mut db = self.pool.acquire().await?;
        let row = query(
            "SELECT parties.jid FROM keys JOIN parties ON parties.id = keys.owner
             WHERE keys.id = $1 AND parties.jid IS NOT NULL",
        )
        .bind(id.to_string())
        .fetch_optional(&mut *db)
        .await?;
        let owner: Option<String> = row.map(|row| row.try_get("jid")).transpose()?;
        let said = said_of(&mut db, asker, owner.as_deref().unwrap_or_default()).await?;
        let owner = match owner {
            Some(jid) => Some(BareJid::new(&jid).map_err(|_| inconsistent("parties", jid))?),
            None => None,
        };
        let admitted = owner.is_some_and(|owner| {
            admits(&owner, said.map(|(visibility, _)| visibility), said.is_some_and(|(_, n)| n))
        });
        let id = if admitted { id.to_string() } else { String::new() };
        key_named(&mut db, &id).await
    }

    pub(in crate::registry) async fn key(&self, id: KeyId) -> Result<Option<Key>, StoreError> {
        key(&mut *self.pool.acquire().await?, id).await
    }

    pub(in crate::registry) async fn material(
        &self,
        id: KeyId,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        material(&mut *self.pool.acquire().await?, id).await
    }

    pub(in crate::registry) async fn all(&self) -> Result<Vec<Key>, StoreError> {
        let rows = query(select_keys!(
            "WHERE parties.jid IS NOT NULL ORDER BY parties.jid, keys.created, keys.id"
        ))
        .fetch_all(&bulk(&self.pool))
        .await?;
        let prints = query("SELECT key_id, hash, bytes FROM prints ORDER BY key_id, position")
            .fetch_all(&bulk(&self.pool))
            .await?;
        read_keys(&rows, &prints)
    }

    pub(in crate::registry) async fn owners_of(
        &self,
        print: &Print,
    ) -> Result<Vec<BareJid>, StoreError> {
        owners_of(&mut *self.pool.acquire().await?, print).await
    }

    pub(in crate::registry) async fn add(
        &self,
        owner: &BareJid,
        new: &NewKey,
        limit: u32,
        actor: &Actor,
        now: OffsetDateTime,
        id: KeyId,
    ) -> Result<Added, StoreError> {
        let mut tx = begin(&self.pool).await?;
        let own = keys_of(&mut tx, owner.as_str()).await?;
        let known = new.known(&own).filter(|key| key.has_material && new.material().is_some());
        let stored = match known {
            Some(key) => material(&mut tx, key.id).await?,
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
        let forgotten = forgotten_of(&mut tx, owner.as_str()).await?;
        let is_kept = |print: &Print| forgotten.find(owner, print).is_some();
        if new.prints().iter().any(is_kept) {
            addition = addition.of_a_revoked_one(now);
        }
        let (addition, without_room) = addition.with_revoked_prints(new, &own, is_kept);
        let is_revoked =
            |key: &Key| own.iter().any(|known| known.id == key.id && known.state == State::Revoked);
        if let Some(more) = new.material()
            && !matches!(addition, Addition::Known { event: None | Some(Event::Revoked), .. })
            && !matches!(&addition, Addition::Known { key, .. } if is_revoked(key))
        {
            let all = stored_bytes(&mut tx, owner).await?;
            let before = stored.as_ref().map_or(0, Vec::len);
            Key::check_room(all, more.len().saturating_sub(before), limit)?;
        }
        let mut also = Vec::new();
        for print in new.prints() {
            for other in owners_of(&mut tx, print).await? {
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
                        update(&mut tx, &key).await?;
                    }
                    write_prints(&mut tx, &key, material).await?;
                    keep_prints(&mut tx, &key, &without_room, now).await?;
                    log(&mut tx, owner, actor, now, Some(key.id), event).await?;
                }
                (key, event, superseded)
            }
            Addition::Fresh { key, superseded } => {
                insert(&mut tx, &key, new.material()).await?;
                log(&mut tx, owner, actor, now, Some(key.id), &Event::Added).await?;
                if key.state == State::Revoked {
                    log(&mut tx, owner, actor, now, Some(key.id), &Event::Revoked).await?;
                }
                for other in &also {
                    let theirs = keys_of(&mut tx, other.as_str()).await?;
                    let shares = |theirs: &&Key| new.prints().iter().any(|print| theirs.has(print));
                    if let Some(theirs) = theirs.iter().find(shares) {
                        let by = Party::User(other.clone());
                        let event = Event::AlsoOwned { by, key: theirs.id };
                        log(&mut tx, owner, actor, now, Some(key.id), &event).await?;
                    }
                }
                (key, Some(Event::Added), superseded)
            }
        };
        let fresh = event == Some(Event::Added);
        let changed = event.is_some() || superseded.is_some();
        if let Some(old) = superseded {
            update(&mut tx, &old).await?;
            let event = Event::Superseded { by: key.id };
            log(&mut tx, owner, actor, now, Some(old.id), &event).await?;
        }
        announce(&mut tx, owner).await?;
        tx.commit().await?;
        let revoked = event == Some(Event::Revoked) || (fresh && key.state == State::Revoked);
        Ok(Added { key, fresh, changed, revoked, also_owned_by: also })
    }

    pub(in crate::registry) async fn revoke(
        &self,
        id: KeyId,
        actor: &Actor,
        reason: &str,
        now: OffsetDateTime,
    ) -> Result<(Key, bool), StoreError> {
        let mut tx = begin(&self.pool).await?;
        let known = key(&mut tx, id).await?.ok_or(NotAllowed::NoSuchKey)?;
        let Some(revoked) = known.revoke(actor, reason, now)? else { return Ok((known, false)) };
        update(&mut tx, &revoked).await?;
        log(&mut tx, &revoked.owner, actor, now, Some(id), &Event::Revoked).await?;
        announce(&mut tx, &revoked.owner).await?;
        tx.commit().await?;
        Ok((revoked, true))
    }

    pub(in crate::registry) async fn retire(
        &self,
        id: KeyId,
        actor: &Actor,
        now: OffsetDateTime,
    ) -> Result<Key, StoreError> {
        let mut tx = begin(&self.pool).await?;
        let known = key(&mut tx, id).await?.ok_or(NotAllowed::NoSuchKey)?;
        let retired = known.retire(actor, now)?;
        update(&mut tx, &retired).await?;
        log(&mut tx, &retired.owner, actor, now, Some(id), &Event::Retired).await?;
        announce(&mut tx, &retired.owner).await?;
        tx.commit().await?;
        Ok(retired)
    }

    pub(in crate::registry) async fn all_settings(
        &self,
    ) -> Result<Vec<(BareJid, Settings)>, StoreError> {
        let mut db = bulk(&self.pool).acquire().await?;
        let rows = query(
            "SELECT parties.jid FROM settings JOIN parties ON parties.id = settings.owner
             WHERE parties.jid IS NOT NULL ORDER BY parties.jid",
        )
        .fetch_all(&mut *db)
        .await?;
        let mut all = Vec::with_capacity(rows.len());
        for row in rows {
            let owner = user(&row)?;
            if let Some(settings) = settings_of(&mut db, &owner).await? {
                all.push((owner, settings));
            }
        }
        Ok(all)
    }

    pub(in crate::registry) async fn raise(
        &self,
        id: KeyId,
        to: Assurance,
        actor: &Actor,
        now: OffsetDateTime,
    ) -> Result<(Key, bool), StoreError> {
        let mut tx = begin(&self.pool).await?;
        let known = key(&mut tx, id).await?.ok_or(NotAllowed::NoSuchKey)?;
        let Some(raised) = known.raise(actor, to, now)? else { return Ok((known, false)) };
        update(&mut tx, &raised).await?;
        let event = if to == Assurance::Attested { Event::Attested } else { Event::Proven };
        log(&mut tx, &raised.owner, actor, now, Some(id), &event).await?;
        announce(&mut tx, &raised.owner).await?;
        tx.commit().await?;
        Ok((raised, true))
    }

    pub(in crate::registry) async fn set_settings(
        &self,
        owner: &BareJid,
        settings: &Settings,
        actor: &Actor,
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        let mut tx = begin(&self.pool).await?;
        if settings_of(&mut tx, owner).await?.as_ref() == Some(settings) {
            return Ok(());
        }
        write_settings(&mut tx, owner, settings).await?;
        log(&mut tx, owner, actor, now, None, &Event::Settings).await?;
        announce(&mut tx, owner).await?;
        tx.commit().await?;
        Ok(())
    }

    pub(in crate::registry) async fn erase(
        &self,
        owner: &BareJid,
        hash: &str,
        actor: &Actor,
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        let mut tx = begin(&self.pool).await?;
        log(&mut tx, owner, actor, now, None, &Event::Erased).await?;
        forget(&mut tx, owner, hash).await?;
        announce(&mut tx, owner).await?;
        tx.commit().await?;
        Ok(())
    }

    pub(in crate::registry) async fn retire_account(
        &self,
        owner: &BareJid,
        hash: &str,
        actor: &Actor,
        now: OffsetDateTime,
    ) -> Result<RetiredAccount, StoreError> {
        let mut tx = begin(&self.pool).await?;
        let named_by = named_by(&mut tx, owner).await?;
        let rows = query(
            "SELECT 1 FROM parties WHERE jid = $1 UNION ALL SELECT 1 FROM reachable WHERE owner = $1",
        );
        let is_known = !rows.bind(owner.as_str().to_owned()).fetch_all(&mut *tx).await?.is_empty();
        if !is_known && named_by.is_empty() {
            return Ok(RetiredAccount::default());
        }
        log(&mut tx, owner, actor, now, None, &Event::AccountRetired).await?;
        let keys = forget(&mut tx, owner, hash).await?;
        query("DELETE FROM allowed WHERE jid = $1")
            .bind(owner.as_str().to_owned())
            .execute(&mut *tx)
            .await?;
        for other in &named_by {
            log(&mut tx, other, actor, now, None, &Event::Settings).await?;
            announce(&mut tx, other).await?;
        }
        announce(&mut tx, owner).await?;
        tx.commit().await?;
        Ok(RetiredAccount { keys, named_by })
    }

    pub(in crate::registry) async fn identity(
        &self,
        component: &BareJid,
    ) -> Result<Option<(Vec<u8>, Vec<u8>)>, StoreError> {
        let row = query("SELECT certificate, private_key FROM identities WHERE component = $1")
            .bind(component.as_str().to_owned())
            .fetch_optional(&self.pool)
            .await?;
        Ok(match row {
            Some(row) => Some((row.try_get("certificate")?, row.try_get("private_key")?)),
            None => None,
        })
    }

    pub(in crate::registry) async fn keep_identity(
        &self,
        component: &BareJid,
        certificate: &[u8],
        private_key: &[u8],
    ) -> Result<(), StoreError> {
        query(KEEP_IDENTITY)
            .bind(component.as_str().to_owned())
            .bind(certificate.to_vec())
            .bind(private_key.to_vec())
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    pub(in crate::registry) async fn audit_page(
        &self,
        owner: Option<&BareJid>,
        newest: Option<i64>,
        skip: i64,
        limit: i64,
    ) -> Result<Vec<AuditEntry>, StoreError> {
        let rows = query(if owner.is_some() { AUDIT_OF_ONE } else { AUDIT_OF_ALL })
            .bind(newest.unwrap_or(i64::MAX))
            .bind(limit)
            .bind(skip);
        let rows = match owner {
            Some(owner) => rows.bind(owner.as_str().to_owned()),
            None => rows,
        };
        let rows = rows.fetch_all(&self.pool).await?;
        rows.iter().map(entry).collect()
    }

    pub(in crate::registry) async fn audit_count(
        &self,
        owner: Option<&BareJid>,
        newest: i64,
    ) -> Result<i64, StoreError> {
        let row = query(if owner.is_some() { COUNT_OF_ONE } else { COUNT_OF_ALL }).bind(newest);
        let row = match owner {
            Some(owner) => row.bind(owner.as_str().to_owned()),
            None => row,
        };
        let row = row.fetch_one(&self.pool).await?;
        Ok(row.try_get("rows")?)
    }

    pub(in crate::registry) async fn owners_like(
        &self,
        part: &str,
        limit: i64,
    ) -> Result<Vec<BareJid>, StoreError> {
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
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(user).collect()
    }

    pub(in crate::registry) async fn blocks(&self) -> Result<Vec<(String, String)>, StoreError> {
        let rows =
            query("SELECT jid, reason FROM blocks ORDER BY jid").fetch_all(&self.pool).await?;
        rows.iter().map(|row| Ok((row.try_get("jid")?, row.try_get("reason")?))).collect()
    }

    pub(in crate::registry) async fn block(
        &self,
        jid: &BareJid,
        reason: &str,
        actor: &Actor,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        let mut tx = begin(&self.pool).await?;
        let block = Block { jid: jid.clone(), reason: reason.to_owned(), at: now };
        if !write_block(&mut tx, &block).await? {
            return Ok(false);
        }
        log(&mut tx, jid, actor, now, None, &Event::Blocked).await?;
        announce_blocks(&mut tx).await?;
        tx.commit().await?;
        Ok(true)
    }

    pub(in crate::registry) async fn unblock(
        &self,
        jid: &BareJid,
        actor: &Actor,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        let mut tx = begin(&self.pool).await?;
        let done = query("DELETE FROM blocks WHERE jid = $1")
            .bind(jid.to_string())
            .execute(&mut *tx)
            .await?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        log(&mut tx, jid, actor, now, None, &Event::Unblocked).await?;
        announce_blocks(&mut tx).await?;
        tx.commit().await?;
        Ok(true)
    }

    pub(in crate::registry) async fn conflicts(&self) -> Result<Vec<Key>, StoreError> {
        let rows = query(select_keys!(
            "WHERE parties.jid IS NOT NULL AND keys.state <> 'revoked' AND EXISTS (
                SELECT 1 FROM prints AS mine
                JOIN prints AS theirs ON theirs.bytes = mine.bytes AND theirs.key_id <> mine.key_id
                JOIN keys AS other ON other.id = theirs.key_id
                WHERE mine.key_id = keys.id AND other.owner <> keys.owner
                      AND other.state <> 'revoked')
             ORDER BY parties.jid, keys.created, keys.id"
        ))
        .fetch_all(&bulk(&self.pool))
        .await?;
        let prints = query(
            "SELECT key_id, hash, bytes FROM prints WHERE bytes IN (
                SELECT bytes FROM prints GROUP BY bytes HAVING COUNT(*) > 1)
             ORDER BY key_id, position",
        )
        .fetch_all(&bulk(&self.pool))
        .await?;
        read_keys(&rows, &prints)
    }
}

/// Deletes all that is held about a user, who has a row in the audit log; that keeps `hash` in place of the address.
/// Returns how many keys the user had.
async fn forget(db: &mut Connection, owner: &BareJid, hash: &str) -> Result<usize, StoreError> {
    let party = party(db, owner).await?;
    let keys = keys_of(db, owner.as_str()).await?;
    for key in keys.iter().filter(|key| key.state == State::Revoked) {
        keep_prints(db, key, &key.prints, key.changed).await?;
    }
    query("DELETE FROM settings WHERE owner = $1").bind(party).execute(&mut *db).await?;
    query("DELETE FROM reachable WHERE owner = $1")
        .bind(owner.as_str().to_owned())
        .execute(&mut *db)
        .await?;
    // One that took another's place goes first, or the reference would hold it.
    query("DELETE FROM prints WHERE key_id IN (SELECT id FROM keys WHERE owner = $1)")
        .bind(party)
        .execute(&mut *db)
        .await?;
    query("DELETE FROM materials WHERE key_id IN (SELECT id FROM keys WHERE owner = $1)")
        .bind(party)
        .execute(&mut *db)
        .await?;
    query("DELETE FROM keys WHERE owner = $1").bind(party).execute(&mut *db).await?;
    query("UPDATE parties SET jid = NULL, erased = $2 WHERE id = $1")
        .bind(party)
        .bind(hash.to_owned())
        .execute(db)
        .await?;
    Ok(keys.len())
}

/// The user of a row with the address in `jid`.
fn user(row: &Row) -> Result<BareJid, StoreError> {
    let jid: String = row.try_get("jid")?;
    BareJid::new(&jid).map_err(|_| inconsistent("parties", jid))
}

/// Users who have named `owner` among those who may see their keys.
async fn named_by(db: &mut Connection, owner: &BareJid) -> Result<Vec<BareJid>, StoreError> {
    let rows = query(
        "SELECT parties.jid FROM allowed JOIN parties ON parties.id = allowed.owner
         WHERE allowed.jid = $1 AND parties.jid IS NOT NULL ORDER BY parties.jid",
    )
    .bind(owner.as_str().to_owned())
    .fetch_all(db)
    .await?;
    rows.iter().map(user).collect()
}

/// What hashes of deleted users are made with.
pub(super) async fn salts(db: &mut Connection) -> Result<Vec<Vec<u8>>, sqlx::Error> {
    let rows = query("SELECT salt FROM salts ORDER BY salt").fetch_all(db).await?;
    rows.iter().map(|row| row.try_get("salt")).collect()
}

/// What stays revoked for an address though its keys are deleted. Where nothing does, for any address, it takes one look.
pub(super) async fn forgotten_of(
    db: &mut Connection,
    owner: &str,
) -> Result<Forgotten, StoreError> {
    let text = "SELECT salt FROM salts WHERE EXISTS (SELECT 1 FROM revoked_prints) ORDER BY salt";
    let rows = query(text).fetch_all(&mut *db).await?;
    let salts: Vec<Vec<u8>> =
        rows.iter().map(|row| row.try_get("salt")).collect::<Result<_, _>>()?;
    let mut prints = Vec::new();
    for salt in &salts {
        let rows = query("SELECT owner, print, method, at FROM revoked_prints WHERE owner = $1")
            .bind(hash_of_owner(salt, owner))
            .fetch_all(&mut *db)
            .await?;
        for row in &rows {
            prints.push(revoked(row)?);
        }
    }
    Ok(Forgotten { salts, prints })
}

/// One row of what stays revoked.
pub(super) fn revoked(row: &Row) -> Result<Revoked, StoreError> {
    let bad = || inconsistent("revoked_prints", "");
    Ok(Revoked {
        owner: row.try_get("owner")?,
        print: row.try_get("print")?,
        method: row.try_get::<String, _>("method")?.parse().map_err(|_| bad())?,
        at: moment(row.try_get("at")?).ok_or_else(bad)?,
    })
}

/// Blocks a user or a domain; says whether that is new.
pub(super) async fn write_block(db: &mut Connection, block: &Block) -> Result<bool, sqlx::Error> {
    let done = query(
        "INSERT INTO blocks (jid, reason, at) VALUES ($1, $2, $3) ON CONFLICT (jid) DO NOTHING",
    )
    .bind(block.jid.to_string())
    .bind(block.reason.clone())
    .bind(micros(block.at))
    .execute(db)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Keeps prints of a key revoked for the address of its owner.
async fn keep_prints(
    db: &mut Connection,
    key: &Key,
    prints: &[Print],
    at: OffsetDateTime,
) -> Result<(), sqlx::Error> {
    if prints.is_empty() {
        return Ok(());
    }
    let Some(salt) = salts(db).await?.into_iter().next() else { return Ok(()) };
    for print in prints {
        let revoked = Revoked::new(&salt, &key.owner, print, key.method, at);
        keep_revoked(db, &revoked).await?;
    }
    Ok(())
}

/// Keeps a print revoked for an address; says whether that is new.
pub(super) async fn keep_revoked(
    db: &mut Connection,
    revoked: &Revoked,
) -> Result<bool, sqlx::Error> {
    let done = query(
        "INSERT INTO revoked_prints (owner, print, method, at) VALUES ($1, $2, $3, $4)
         ON CONFLICT (owner, print) DO NOTHING",
    )
    .bind(revoked.owner.clone())
    .bind(revoked.print.clone())
    .bind(revoked.method.as_str())
    .bind(micros(revoked.at))
    .execute(db)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// The keys of the user with this address; the address of nobody is empty.
pub(super) async fn keys_of(db: &mut Connection, owner: &str) -> Result<Vec<Key>, StoreError> {
    let rows = query(select_keys!("WHERE parties.jid = $1 ORDER BY keys.created, keys.id"))
        .bind(owner.to_owned())
        .fetch_all(&mut *db)
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

pub(super) async fn key(db: &mut Connection, id: KeyId) -> Result<Option<Key>, StoreError> {
    key_named(db, &id.to_string()).await
}

async fn key_named(db: &mut Connection, id: &str) -> Result<Option<Key>, StoreError> {
    let rows = query(select_keys!("WHERE keys.id = $1 AND parties.jid IS NOT NULL"))
        .bind(id.to_owned())
        .fetch_all(&mut *db)
        .await?;
    let prints =
        query("SELECT key_id, hash, bytes FROM prints WHERE key_id = $1 ORDER BY position")
            .bind(id.to_owned())
            .fetch_all(db)
            .await?;
    Ok(read_keys(&rows, &prints)?.pop())
}

pub(super) async fn material(
    db: &mut Connection,
    id: KeyId,
) -> Result<Option<Vec<u8>>, StoreError> {
    let row = query("SELECT bytes FROM materials WHERE key_id = $1")
        .bind(id.to_string())
        .fetch_optional(db)
        .await?;
    Ok(row.map(|row| row.try_get("bytes")).transpose()?)
}

/// Returns the bytes of a user's certificates.
async fn stored_bytes(db: &mut Connection, owner: &BareJid) -> Result<u64, StoreError> {
    let row = query(
        "SELECT CAST(COALESCE(SUM(LENGTH(materials.bytes)), 0) AS BIGINT) AS bytes FROM materials
         JOIN keys ON keys.id = materials.key_id JOIN parties ON parties.id = keys.owner
         WHERE parties.jid = $1",
    )
    .bind(owner.as_str().to_owned())
    .fetch_one(db)
    .await?;
    let bytes: i64 = row.try_get("bytes")?;
    Ok(u64::try_from(bytes).unwrap_or_default())
}

/// Returns the visibility of `owner`, if it was set, and whether `asker` is named.
async fn said_of(
    db: &mut Connection,
    asker: &BareJid,
    owner: &str,
) -> Result<Option<(Visibility, bool)>, StoreError> {
    let row = query(
        "SELECT settings.visibility,
                EXISTS (SELECT 1 FROM allowed
                        WHERE allowed.owner = settings.owner AND allowed.jid = $2) AS named
         FROM settings JOIN parties ON parties.id = settings.owner WHERE parties.jid = $1",
    )
    .bind(owner.to_owned())
    .bind(asker.as_str().to_owned())
    .fetch_optional(db)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let visibility = row.try_get::<String, _>("visibility")?.parse();
    Ok(Some((visibility.map_err(|_| inconsistent("settings", owner))?, row.try_get("named")?)))
}

pub(super) async fn settings_of(
    db: &mut Connection,
    owner: &BareJid,
) -> Result<Option<Settings>, StoreError> {
    let row = query(
        "SELECT settings.owner, settings.visibility FROM settings
         JOIN parties ON parties.id = settings.owner WHERE parties.jid = $1",
    )
    .bind(owner.as_str().to_owned())
    .fetch_optional(&mut *db)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let party: i64 = row.try_get("owner")?;
    let bad = || inconsistent("settings", party);
    let visibility = row.try_get::<String, _>("visibility")?.parse().map_err(|_| bad())?;
    let rows = query("SELECT jid FROM allowed WHERE owner = $1 ORDER BY jid")
        .bind(party)
        .fetch_all(db)
        .await?;
    let allowed = rows
        .iter()
        .map(|row| BareJid::new(&row.try_get::<String, _>("jid")?).map_err(|_| bad()))
        .collect::<Result<_, StoreError>>()?;
    Ok(Some(Settings { visibility, allowed }))
}

pub(super) async fn write_settings(
    db: &mut Connection,
    owner: &BareJid,
    settings: &Settings,
) -> Result<(), sqlx::Error> {
    let party = party(db, owner).await?;
    query(
        "INSERT INTO settings (owner, visibility) VALUES ($1, $2)
         ON CONFLICT (owner) DO UPDATE SET visibility = excluded.visibility",
    )
    .bind(party)
    .bind(settings.visibility.as_str())
    .execute(&mut *db)
    .await?;
    query("DELETE FROM allowed WHERE owner = $1").bind(party).execute(&mut *db).await?;
    for jid in &settings.allowed {
        query("INSERT INTO allowed (owner, jid) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(party)
            .bind(jid.as_str().to_owned())
            .execute(&mut *db)
            .await?;
    }
    Ok(())
}

/// Reads rows of `keys` with their prints.
fn read_keys(rows: &[Row], prints: &[Row]) -> Result<Vec<Key>, StoreError> {
    let mut by_key: HashMap<String, Vec<Print>> = HashMap::new();
    for row in prints {
        let id: String = row.try_get("key_id")?;
        let bytes: Vec<u8> = row.try_get("bytes")?;
        let hash = row.try_get::<String, _>("hash")?.parse().ok();
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

async fn owners_of(db: &mut Connection, print: &Print) -> Result<Vec<BareJid>, StoreError> {
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

/// The row of a user, made if there is none.
pub(super) async fn party(db: &mut Connection, jid: &BareJid) -> Result<i64, sqlx::Error> {
    query("INSERT INTO parties (jid) VALUES ($1) ON CONFLICT (jid) DO NOTHING")
        .bind(jid.as_str().to_owned())
        .execute(&mut *db)
        .await?;
    query("SELECT id FROM parties WHERE jid = $1")
        .bind(jid.as_str().to_owned())
        .fetch_one(db)
        .await?
        .try_get("id")
}

pub(super) async fn insert(
    db: &mut Connection,
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
    .execute(&mut *db)
    .await?;
    write_prints(db, key, material).await
}

async fn update(db: &mut Connection, key: &Key) -> Result<(), StoreError> {
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
    if done.rows_affected() == 1 { Ok(()) } else { Err(inconsistent("keys", key.id)) }
}

async fn write_prints(
    db: &mut Connection,
    key: &Key,
    material: Option<&[u8]>,
) -> Result<(), sqlx::Error> {
    let id = key.id.to_string();
    query("DELETE FROM prints WHERE key_id = $1").bind(id.clone()).execute(&mut *db).await?;
    for (position, print) in (0_i64..).zip(&key.prints) {
        query("INSERT INTO prints (key_id, position, hash, bytes) VALUES ($1, $2, $3, $4)")
            .bind(id.clone())
            .bind(position)
            .bind(print.hash().as_str())
            .bind(print.as_bytes().to_vec())
            .execute(&mut *db)
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

pub(super) async fn log(
    db: &mut Connection,
    owner: &BareJid,
    actor: &Actor,
    now: OffsetDateTime,
    id: Option<KeyId>,
    event: &Event,
) -> Result<(), sqlx::Error> {
    let owner = party(db, owner).await?;
    let (kind, actor) = match actor {
        Actor::User(jid) => ("user", Some(party(db, jid).await?)),
        Actor::Admin(jid) => ("admin", Some(party(db, jid).await?)),
        Actor::Offline => ("offline", None),
    };
    let other = match event.others().0 {
        Some(Party::User(jid)) => Some(party(db, jid).await?),
        _ => None,
    };
    add_to_log(db, (owner, (kind, actor), other), now, id, event).await
}

/// Adds a row to the audit log. Its users are rows: the owner; the actor and what kind of one it is; and the other user
/// that the event is about.
pub(super) async fn add_to_log(
    db: &mut Connection,
    (owner, (kind, actor), other): (i64, (&str, Option<i64>), Option<i64>),
    at: OffsetDateTime,
    id: Option<KeyId>,
    event: &Event,
) -> Result<(), sqlx::Error> {
    query(
        "INSERT INTO audit (at, event, key_id, owner, actor_kind, actor, other, other_key)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(micros(at))
    .bind(event.as_str())
    .bind(id.map(|id| id.to_string()))
    .bind(owner)
    .bind(kind.to_owned())
    .bind(actor)
    .bind(other)
    .bind(event.others().1.map(|id| id.to_string()))
    .execute(db)
    .await?;
    Ok(())
}

/// The user of a row of the audit log, from its columns of the address and of the hash that replaces an erased one.
pub(super) fn person(
    row: &Row,
    seq: i64,
    jid: &str,
    erased: &str,
) -> Result<Option<Party>, StoreError> {
    let jid: Option<String> = row.try_get(jid)?;
    let erased: Option<String> = row.try_get(erased)?;
    match jid {
        Some(jid) => {
            let jid = BareJid::new(&jid).map_err(|_| inconsistent("audit", seq))?;
            Ok(Some(Party::User(jid)))
        }
        None => Ok(erased.map(Party::Erased)),
    }
}

fn entry(row: &Row) -> Result<AuditEntry, StoreError> {
    let seq: i64 = row.try_get("seq")?;
    let bad = || inconsistent("audit", seq);
    let person = |jid: &str, erased: &str| person(row, seq, jid, erased);
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
    let event =
        Event::of(&name, person("other_jid", "other_erased")?, other_key).ok_or_else(bad)?;
    let key: Option<String> = row.try_get("key_id")?;
    Ok(AuditEntry {
        seq,
        at: moment(row.try_get("at")?).ok_or_else(bad)?,
        owner: person("owner_jid", "owner_erased")?.ok_or_else(bad)?,
        actor,
        key: key.map(|id| id.parse().map_err(|_| bad())).transpose()?,
        event,
    })
}
