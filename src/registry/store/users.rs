//! Users: what may be known of them, their settings, and the block list.

use fingerpost_wire::key::{KeyId, State};
use jid::BareJid;
use time::OffsetDateTime;

use super::{
    Store,
    audit::log,
    error::StoreError,
    keys::{key_named, keys_of},
    news::{announce, announce_blocks},
    parties::{party, user},
    records::{BlockEntry, Profile, RetiredAccount},
    revoked::{forgotten_of, keep_prints},
    sql::{StoreConnection, inconsistent, micros, query},
};
use crate::registry::model::{Actor, AuditEvent, Key, Settings, Visibility};

impl Store {
    /// Returns the record of a user; an empty one for an unknown user.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn profile(&self, owner: &BareJid) -> Result<Profile, StoreError> {
        self.read("profile", async |db| {
            let keys = keys_of(db, owner.as_str()).await?;
            let forgotten = forgotten_of(db, owner.as_str()).await?;
            let settings = settings_of(db, owner).await?;
            Ok(Profile { keys, settings, forgotten })
        })
        .await
    }

    /// Returns what `asker` may know of `owner`; `None` if nothing. `admits` decides by the owner's visibility
    /// and by whether `asker` is named.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn visible(
        &self,
        asker: &BareJid,
        owner: &BareJid,
        admits: impl Fn(Option<Visibility>, bool) -> bool,
    ) -> Result<Option<Profile>, StoreError> {
        self.read("visible", async |db| {
            let said = said_of(db, asker, owner.as_str()).await?;
            let admitted =
                admits(said.map(|(visibility, _)| visibility), said.is_some_and(|(_, n)| n));
            let shown = if admitted { owner.as_str() } else { "" };
            let keys = keys_of(db, shown).await?;
            let forgotten = forgotten_of(db, shown).await?;
            if !admitted {
                return Ok(None);
            }
            let settings = match said {
                Some(_) => settings_of(db, owner).await?,
                None => None,
            };
            Ok(Some(Profile { keys, settings, forgotten }))
        })
        .await
    }

    /// Returns one key, if `admits` allows it; see [`Store::visible`].
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn visible_key(
        &self,
        asker: &BareJid,
        id: KeyId,
        admits: impl Fn(&BareJid, Option<Visibility>, bool) -> bool,
    ) -> Result<Option<Key>, StoreError> {
        self.read("visible_key", async |db| {
            let row = query(
                "SELECT parties.jid FROM keys JOIN parties ON parties.id = keys.owner
                 WHERE keys.id = $1 AND parties.jid IS NOT NULL",
            )
            .bind(id.to_string())
            .fetch_optional(db)
            .await?;
            let owner: Option<String> = row.map(|row| row.try_get("jid")).transpose()?;
            let said = said_of(db, asker, owner.as_deref().unwrap_or_default()).await?;
            let owner = match owner {
                Some(jid) => Some(BareJid::new(&jid).map_err(|_| inconsistent("parties", jid))?),
                None => None,
            };
            let admitted = owner.is_some_and(|owner| {
                admits(&owner, said.map(|(visibility, _)| visibility), said.is_some_and(|(_, n)| n))
            });
            let id = if admitted { id.to_string() } else { String::new() };
            key_named(db, &id).await
        })
        .await
    }

    /// Returns all keys that a user has ever had, oldest first.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn keys_of(&self, owner: &BareJid) -> Result<Vec<Key>, StoreError> {
        Ok(self.profile(owner).await?.keys)
    }

    /// Stores a user's visibility settings.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn set_settings(
        &self,
        owner: &BareJid,
        settings: &Settings,
        actor: &Actor,
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        self.change("set_settings", async |tx| {
            if settings_of(tx, owner).await?.as_ref() == Some(settings) {
                return Ok(());
            }
            write_settings(tx, owner, settings).await?;
            log(tx, owner, actor, now, None, &AuditEvent::Settings).await?;
            announce(tx, owner).await?;
            Ok(())
        })
        .await
    }

    /// Ends the life of an account: its keys, settings and reachable resources are deleted, nobody else's settings name it
    /// any more, and the audit log keeps `hash` in place of the address. What was revoked stays revoked.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn retire_account(
        &self,
        owner: &BareJid,
        hash: &str,
        actor: &Actor,
        now: OffsetDateTime,
    ) -> Result<RetiredAccount, StoreError> {
        self.change("retire_account", async |tx| {
            let named_by = named_by(tx, owner).await?;
            let rows = query(
                "SELECT 1 FROM parties WHERE jid = $1 UNION ALL SELECT 1 FROM reachable WHERE owner = $1",
            );
            let is_known = !rows.bind(owner.as_str()).fetch_all(tx).await?.is_empty();
            if !is_known && named_by.is_empty() {
                return Ok(RetiredAccount::default());
            }
            log(tx, owner, actor, now, None, &AuditEvent::AccountRetired).await?;
            let keys = forget(tx, owner, hash).await?;
            query("DELETE FROM allowed WHERE jid = $1")
                .bind(owner.as_str())
                .execute(tx)
                .await?;
            for other in &named_by {
                log(tx, other, actor, now, None, &AuditEvent::Settings).await?;
                announce(tx, other).await?;
            }
            announce(tx, owner).await?;
            Ok(RetiredAccount { keys, named_by })
        })
        .await
    }

    /// Deletes all that is held about a user. The audit log keeps `hash` in place of the address, and of revoked prints salted
    /// hashes stay: they are revoked for this address for good.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn erase(
        &self,
        owner: &BareJid,
        hash: &str,
        actor: &Actor,
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        self.change("erase", async |tx| {
            log(tx, owner, actor, now, None, &AuditEvent::Erased).await?;
            forget(tx, owner, hash).await?;
            announce(tx, owner).await?;
            Ok(())
        })
        .await
    }

    /// Returns the block list, each entry with its reason: bare JIDs and domains.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn blocks(&self) -> Result<Vec<(String, String)>, StoreError> {
        self.read("blocks", async |db| {
            let rows = query("SELECT jid, reason FROM blocks ORDER BY jid").fetch_all(db).await?;
            rows.iter().map(|row| Ok((row.try_get("jid")?, row.try_get("reason")?))).collect()
        })
        .await
    }

    /// Blocks a user or a domain, and returns whether the block is new.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn block(
        &self,
        jid: &BareJid,
        reason: &str,
        actor: &Actor,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        self.change("block", async |tx| {
            let block = BlockEntry { jid: jid.clone(), reason: reason.to_owned(), at: now };
            if !write_block(tx, &block).await? {
                return Ok(false);
            }
            log(tx, jid, actor, now, None, &AuditEvent::Blocked).await?;
            announce_blocks(tx).await?;
            Ok(true)
        })
        .await
    }

    /// Removes a block, and returns whether there was one.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn unblock(
        &self,
        jid: &BareJid,
        actor: &Actor,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        self.change("unblock", async |tx| {
            let done = query("DELETE FROM blocks WHERE jid = $1")
                .bind(jid.to_string())
                .execute(tx)
                .await?;
            if done == 0 {
                return Ok(false);
            }
            log(tx, jid, actor, now, None, &AuditEvent::Unblocked).await?;
            announce_blocks(tx).await?;
            Ok(true)
        })
        .await
    }
}

pub(super) async fn settings_of(
    db: &mut StoreConnection,
    owner: &BareJid,
) -> Result<Option<Settings>, StoreError> {
    let row = query(
        "SELECT settings.owner, settings.visibility FROM settings
         JOIN parties ON parties.id = settings.owner WHERE parties.jid = $1",
    )
    .bind(owner.as_str())
    .fetch_optional(db)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let party: i64 = row.try_get("owner")?;
    let bad = || inconsistent("settings", party);
    let visibility = row.try_get::<String>("visibility")?.parse().map_err(|_| bad())?;
    let rows = query("SELECT jid FROM allowed WHERE owner = $1 ORDER BY jid")
        .bind(party)
        .fetch_all(db)
        .await?;
    let allowed = rows
        .iter()
        .map(|row| BareJid::new(&row.try_get::<String>("jid")?).map_err(|_| bad()))
        .collect::<Result<_, StoreError>>()?;
    Ok(Some(Settings { visibility, allowed }))
}

pub(super) async fn write_settings(
    db: &mut StoreConnection,
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
    .execute(db)
    .await?;
    query("DELETE FROM allowed WHERE owner = $1").bind(party).execute(db).await?;
    for jid in &settings.allowed {
        query("INSERT INTO allowed (owner, jid) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(party)
            .bind(jid.as_str())
            .execute(db)
            .await?;
    }
    Ok(())
}

/// Deletes all that is held about a user, who has a row in the audit log; that keeps `hash` in place of the address.
/// Returns how many keys the user had.
async fn forget(
    db: &mut StoreConnection,
    owner: &BareJid,
    hash: &str,
) -> Result<usize, StoreError> {
    let party = party(db, owner).await?;
    let keys = keys_of(db, owner.as_str()).await?;
    for key in keys.iter().filter(|key| key.state == State::Revoked) {
        keep_prints(db, key, &key.prints, key.changed).await?;
    }
    query("DELETE FROM settings WHERE owner = $1").bind(party).execute(db).await?;
    query("DELETE FROM reachable WHERE owner = $1").bind(owner.as_str()).execute(db).await?;
    query("DELETE FROM watchers WHERE watcher = $1 OR contact = $1")
        .bind(owner.as_str())
        .execute(db)
        .await?;
    // One that took another's place goes first, or the reference would hold it.
    query("DELETE FROM prints WHERE key_id IN (SELECT id FROM keys WHERE owner = $1)")
        .bind(party)
        .execute(db)
        .await?;
    query("DELETE FROM materials WHERE key_id IN (SELECT id FROM keys WHERE owner = $1)")
        .bind(party)
        .execute(db)
        .await?;
    query("DELETE FROM keys WHERE owner = $1").bind(party).execute(db).await?;
    query("UPDATE parties SET jid = NULL, erased = $2 WHERE id = $1")
        .bind(party)
        .bind(hash.to_owned())
        .execute(db)
        .await?;
    Ok(keys.len())
}

/// Users who have named `owner` among those who may see their keys.
async fn named_by(db: &mut StoreConnection, owner: &BareJid) -> Result<Vec<BareJid>, StoreError> {
    let rows = query(
        "SELECT parties.jid FROM allowed JOIN parties ON parties.id = allowed.owner
         WHERE allowed.jid = $1 AND parties.jid IS NOT NULL ORDER BY parties.jid",
    )
    .bind(owner.as_str())
    .fetch_all(db)
    .await?;
    rows.iter().map(user).collect()
}

/// Blocks a user or a domain; says whether that is new.
pub(super) async fn write_block(
    db: &mut StoreConnection,
    block: &BlockEntry,
) -> Result<bool, sqlx::Error> {
    let done = query(
        "INSERT INTO blocks (jid, reason, at) VALUES ($1, $2, $3) ON CONFLICT (jid) DO NOTHING",
    )
    .bind(block.jid.to_string())
    .bind(block.reason.clone())
    .bind(micros(block.at))
    .execute(db)
    .await?;
    Ok(done > 0)
}

/// Returns the visibility of `owner`, if it was set, and whether `asker` is named.
async fn said_of(
    db: &mut StoreConnection,
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
    .bind(asker.as_str())
    .fetch_optional(db)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let visibility = row.try_get::<String>("visibility")?.parse();
    Ok(Some((visibility.map_err(|_| inconsistent("settings", owner))?, row.try_get("named")?)))
}
