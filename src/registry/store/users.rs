//! Users: their settings, what stays revoked for them, and the block list.

use fingerpost_wire::{key::State, print::Print};
use jid::BareJid;
use time::OffsetDateTime;

use super::{
    Store,
    audit::{announce, announce_blocks, log},
    error::StoreError,
    keys::keys_of,
    records::{Block, RetiredAccount},
    sql::{Row, StoreConnection, inconsistent, micros, moment, query},
};
use crate::registry::{
    forgotten::{Forgotten, Revoked, hash_of_owner},
    model::{Actor, Event, Key, Settings},
};

impl Store {
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
            log(tx, owner, actor, now, None, &Event::Settings).await?;
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
            log(tx, owner, actor, now, None, &Event::AccountRetired).await?;
            let keys = forget(tx, owner, hash).await?;
            query("DELETE FROM allowed WHERE jid = $1")
                .bind(owner.as_str())
                .execute(tx)
                .await?;
            for other in &named_by {
                log(tx, other, actor, now, None, &Event::Settings).await?;
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
            log(tx, owner, actor, now, None, &Event::Erased).await?;
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
            let block = Block { jid: jid.clone(), reason: reason.to_owned(), at: now };
            if !write_block(tx, &block).await? {
                return Ok(false);
            }
            log(tx, jid, actor, now, None, &Event::Blocked).await?;
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
            log(tx, jid, actor, now, None, &Event::Unblocked).await?;
            announce_blocks(tx).await?;
            Ok(true)
        })
        .await
    }
}

/// The row of a user, made if there is none.
pub(super) async fn party(db: &mut StoreConnection, jid: &BareJid) -> Result<i64, sqlx::Error> {
    query("INSERT INTO parties (jid) VALUES ($1) ON CONFLICT (jid) DO NOTHING")
        .bind(jid.as_str())
        .execute(db)
        .await?;
    query("SELECT id FROM parties WHERE jid = $1")
        .bind(jid.as_str())
        .fetch_one(db)
        .await?
        .try_get("id")
}

/// The user of a row with the address in `jid`.
pub(super) fn user(row: &Row) -> Result<BareJid, StoreError> {
    let jid: String = row.try_get("jid")?;
    BareJid::new(&jid).map_err(|_| inconsistent("parties", jid))
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

/// What hashes of deleted users are made with.
pub(super) async fn salts(db: &mut StoreConnection) -> Result<Vec<Vec<u8>>, sqlx::Error> {
    let rows = query("SELECT salt FROM salts ORDER BY salt").fetch_all(db).await?;
    rows.iter().map(|row| row.try_get("salt")).collect()
}

/// What stays revoked for an address though its keys are deleted. Where nothing does, for any address, it takes one look.
pub(super) async fn forgotten_of(
    db: &mut StoreConnection,
    owner: &str,
) -> Result<Forgotten, StoreError> {
    let text = "SELECT salt FROM salts WHERE EXISTS (SELECT 1 FROM revoked_prints) ORDER BY salt";
    let rows = query(text).fetch_all(db).await?;
    let salts: Vec<Vec<u8>> =
        rows.iter().map(|row| row.try_get("salt")).collect::<Result<_, _>>()?;
    let mut prints = Vec::new();
    for salt in &salts {
        let rows = query("SELECT owner, print, method, at FROM revoked_prints WHERE owner = $1")
            .bind(hash_of_owner(salt, owner))
            .fetch_all(db)
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
        method: row.try_get::<String>("method")?.parse().map_err(|_| bad())?,
        at: moment(row.try_get("at")?).ok_or_else(bad)?,
    })
}

/// Blocks a user or a domain; says whether that is new.
pub(super) async fn write_block(
    db: &mut StoreConnection,
    block: &Block,
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

/// Keeps prints of a key revoked for the address of its owner.
pub(super) async fn keep_prints(
    db: &mut StoreConnection,
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
    db: &mut StoreConnection,
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
    Ok(done > 0)
}
