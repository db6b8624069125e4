//! Export and import of everything.

use std::collections::{BTreeSet, HashMap, HashSet};

use data_encoding::HEXLOWER;
use fingerpost_wire::{
    jid::canonical_bare,
    key::{KeyId, State},
};
use jid::BareJid;
use time::OffsetDateTime;

use super::{
    Store,
    audit::{add_to_log, log, person, select_audit},
    error::StoreError,
    identity::KEEP_IDENTITY,
    keys::{all_keys, insert, key, keys_of, material},
    news::{announce, announce_blocks},
    parties::{party, user},
    records::{BlockEntry, Contents, LogRow, OwnIdentity},
    revoked::{forgotten_of, keep_revoked, revoked, salts},
    sql::{Row, StoreConnection, inconsistent, micros, moment, query},
    users::{settings_of, write_block, write_settings},
};
use crate::registry::{
    forgotten::{Revoked, hash_of_owner},
    model::{Actor, AuditEvent, Key, Party, Settings},
};

const BLOCKS: &str = "SELECT jid, reason, at FROM blocks ORDER BY jid";
pub(super) const BLOCK_OF: &str = "SELECT jid, reason, at FROM blocks WHERE jid = $1";
const WHOLE_LOG: &str = select_audit!("ORDER BY audit.seq");
pub(super) const LOG_OF: &str =
    select_audit!("WHERE audit.owner = (SELECT id FROM parties WHERE jid = $1) ORDER BY audit.seq");

impl Store {
    /// Reads all that is in the database, or all of one user, without what belongs to one run of the component.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn contents(&self, owner: Option<&BareJid>) -> Result<Contents, StoreError> {
        self.bulk()
            .read("contents", async |db| match owner {
                Some(owner) => contents_of(db, owner).await,
                None => whole_contents(db).await,
            })
            .await
    }

    /// Stores what was elsewhere as it was: all or nothing. A key whose id is known stays as it is, and so does a row of the
    /// log. Says how many keys are new.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn import(
        &self,
        contents: &Contents,
        now: OffsetDateTime,
    ) -> Result<usize, StoreError> {
        self.bulk()
            .change("import", async |tx| {
                let mut owners = HashSet::new();
                let told = Told::by(&write_log(tx, &contents.log).await?);
                let fresh = write_keys(tx, &contents.keys, &told, now).await?;
                owners.extend(contents.keys.iter().map(|(key, _)| &key.owner));
                for (owner, settings) in &contents.settings {
                    if settings_of(tx, owner).await?.as_ref() == Some(settings) {
                        continue;
                    }
                    write_settings(tx, owner, settings).await?;
                    if !told.settings.contains(owner) {
                        log(tx, owner, &Actor::Offline, now, None, &AuditEvent::Settings).await?;
                    }
                    owners.insert(owner);
                }
                let mut has_blocked = false;
                for block in &contents.blocks {
                    if write_block(tx, block).await? {
                        has_blocked = true;
                        if !told.blocks.contains(&block.jid) {
                            log(tx, &block.jid, &Actor::Offline, now, None, &AuditEvent::Blocked)
                                .await?;
                        }
                    }
                }
                for identity in &contents.identities {
                    write_identity(tx, identity).await?;
                }
                if !contents.salts.is_empty() && all_revoked(tx).await?.is_empty() {
                    // No hash has been made with the own one yet.
                    query("DELETE FROM salts").execute(tx).await?;
                }
                for salt in &contents.salts {
                    query("INSERT INTO salts (salt) VALUES ($1) ON CONFLICT (salt) DO NOTHING")
                        .bind(salt.clone())
                        .execute(tx)
                        .await?;
                }
                let mut hashes = BTreeSet::new();
                for revoked in &contents.revoked {
                    if keep_revoked(tx, revoked).await? {
                        hashes.insert(revoked.owner.clone());
                    }
                }
                let revoked_of = owners_of_hashes(tx, hashes).await?;
                for owner in &revoked_of {
                    if !told.prints_of(owner) {
                        let owner = party_of(tx, owner).await?;
                        let offline = (owner, ("offline", None), None);
                        add_to_log(tx, offline, now, None, &AuditEvent::Imported).await?;
                    }
                    // Nobody has read anything of an unknown user.
                    if let Party::User(owner) = owner {
                        owners.insert(owner);
                    }
                }
                for owner in owners {
                    announce(tx, owner).await?;
                }
                if has_blocked {
                    announce_blocks(tx).await?;
                }
                Ok(fresh)
            })
            .await
    }
}

async fn whole_contents(db: &mut StoreConnection) -> Result<Contents, StoreError> {
    let known = all_keys(db).await?;
    let settings = all_settings(db).await?;
    Ok(Contents {
        keys: with_material(db, known).await?,
        settings,
        blocks: read_blocks(&query(BLOCKS).fetch_all(db).await?)?,
        identities: identities(db).await?,
        log: read_log(&query(WHOLE_LOG).fetch_all(db).await?)?,
        salts: salts(db).await?,
        revoked: all_revoked(db).await?,
    })
}

/// Returns what there is of one user, and reads no row of another.
async fn contents_of(db: &mut StoreConnection, owner: &BareJid) -> Result<Contents, StoreError> {
    let known = keys_of(db, owner.as_str()).await?;
    let settings = settings_of(db, owner).await?;
    let blocks = query(BLOCK_OF).bind(owner.as_str()).fetch_all(db).await?;
    let log = query(LOG_OF).bind(owner.as_str()).fetch_all(db).await?;
    let mut revoked = forgotten_of(db, owner.as_str()).await?.prints;
    revoked.sort_by(|a, b| (&a.owner, &a.print).cmp(&(&b.owner, &b.print)));
    Ok(Contents {
        keys: with_material(db, known).await?,
        settings: settings.map(|settings| (owner.clone(), settings)).into_iter().collect(),
        blocks: read_blocks(&blocks)?,
        identities: Vec::new(),
        log: read_log(&log)?,
        salts: salts(db).await?,
        revoked,
    })
}

async fn all_settings(db: &mut StoreConnection) -> Result<Vec<(BareJid, Settings)>, StoreError> {
    let rows = query(
        "SELECT parties.jid FROM settings JOIN parties ON parties.id = settings.owner
         WHERE parties.jid IS NOT NULL ORDER BY parties.jid",
    )
    .fetch_all(db)
    .await?;
    let mut all = Vec::with_capacity(rows.len());
    for row in rows {
        let owner = user(&row)?;
        if let Some(settings) = settings_of(db, &owner).await? {
            all.push((owner, settings));
        }
    }
    Ok(all)
}

/// What the rows that came into the log tell themselves, so that no row is added for it. A row that was there before tells
/// nothing of what has changed now.
#[derive(Default)]
struct Told {
    /// Users with any row.
    users: HashSet<BareJid>,
    /// Whether anything held about a user was deleted. The row does not say whose.
    erased: bool,
    keys: HashSet<KeyId>,
    settings: HashSet<BareJid>,
    blocks: HashSet<BareJid>,
}

impl Told {
    fn by(fresh: &[&LogRow]) -> Self {
        let mut told = Self::default();
        for row in fresh {
            told.keys.extend(row.key);
            told.erased |= matches!(row.event, AuditEvent::Erased | AuditEvent::AccountRetired);
            let Party::User(owner) = &row.owner else { continue };
            told.users.insert(owner.clone());
            match row.event {
                AuditEvent::Settings => drop(told.settings.insert(owner.clone())),
                AuditEvent::Blocked => drop(told.blocks.insert(owner.clone())),
                _ => {}
            }
        }
        told
    }

    /// Returns whether the rows may tell why prints of a user stay revoked.
    fn prints_of(&self, owner: &Party) -> bool {
        self.erased || matches!(owner, Party::User(owner) if self.users.contains(owner))
    }
}

/// Returns the users with these hashes. A user who is not known here remains a hash.
async fn owners_of_hashes(
    db: &mut StoreConnection,
    mut hashes: BTreeSet<Vec<u8>>,
) -> Result<Vec<Party>, StoreError> {
    if hashes.is_empty() {
        return Ok(Vec::new());
    }
    let salts = salts(db).await?;
    let rows = query("SELECT jid FROM parties WHERE jid IS NOT NULL ORDER BY jid");
    let mut owners = Vec::new();
    for row in rows.fetch_all(db).await? {
        let jid: String = row.try_get("jid")?;
        let mut is_one = false;
        for salt in &salts {
            is_one |= hashes.remove(&hash_of_owner(salt, &jid));
        }
        if is_one {
            owners.push(Party::User(BareJid::new(&jid).map_err(|_| inconsistent("parties", jid))?));
        }
    }
    let erased = |hash: Vec<u8>| Party::Erased(format!("sha-256:{}", HEXLOWER.encode(&hash)));
    owners.extend(hashes.into_iter().map(erased));
    Ok(owners)
}

/// Adds the keys that are not known; says how many.
async fn write_keys(
    db: &mut StoreConnection,
    keys: &[(Key, Option<Vec<u8>>)],
    told: &Told,
    now: OffsetDateTime,
) -> Result<usize, StoreError> {
    let mut fresh = 0;
    for (new, material) in keys {
        if key(db, new.id).await?.is_some() {
            continue;
        }
        insert(db, new, material.as_deref()).await?;
        if new.state != State::Revoked {
            bring_back(db, new).await?;
        }
        if !told.keys.contains(&new.id) {
            log(db, &new.owner, &Actor::Offline, now, Some(new.id), &AuditEvent::Imported).await?;
        }
        fresh += 1;
    }
    Ok(fresh)
}

/// Forgets that prints of a key were revoked: the import says that the key is good.
async fn bring_back(db: &mut StoreConnection, key: &Key) -> Result<(), sqlx::Error> {
    for salt in salts(db).await? {
        for print in &key.prints {
            let known = Revoked::new(&salt, &key.owner, print, key.method, key.changed);
            query("DELETE FROM revoked_prints WHERE owner = $1 AND print = $2")
                .bind(known.owner)
                .bind(known.print)
                .execute(db)
                .await?;
        }
    }
    Ok(())
}

/// Reads the certificates of keys.
async fn with_material(
    db: &mut StoreConnection,
    keys: Vec<Key>,
) -> Result<Vec<(Key, Option<Vec<u8>>)>, StoreError> {
    let mut found = Vec::with_capacity(keys.len());
    for key in keys {
        let bytes = if key.has_material { material(db, key.id).await? } else { None };
        found.push((key, bytes));
    }
    Ok(found)
}

fn read_blocks(rows: &[Row]) -> Result<Vec<BlockEntry>, StoreError> {
    rows.iter()
        .map(|row| {
            let jid: String = row.try_get("jid")?;
            let bad = || inconsistent("blocks", &jid);
            Ok(BlockEntry {
                jid: canonical_bare(&jid).ok_or_else(bad)?,
                reason: row.try_get("reason")?,
                at: moment(row.try_get("at")?).ok_or_else(bad)?,
            })
        })
        .collect()
}

async fn identities(db: &mut StoreConnection) -> Result<Vec<OwnIdentity>, StoreError> {
    let rows =
        query("SELECT component, certificate, private_key FROM identities ORDER BY component")
            .fetch_all(db)
            .await?;
    rows.iter()
        .map(|row| {
            let jid: String = row.try_get("component")?;
            Ok(OwnIdentity {
                component: BareJid::new(&jid).map_err(|_| inconsistent("identities", jid))?,
                certificate: row.try_get("certificate")?,
                private_key: row.try_get("private_key")?,
            })
        })
        .collect()
}

async fn write_identity(db: &mut StoreConnection, own: &OwnIdentity) -> Result<(), sqlx::Error> {
    query(KEEP_IDENTITY)
        .bind(own.component.as_str())
        .bind(own.certificate.clone())
        .bind(own.private_key.clone())
        .execute(db)
        .await?;
    Ok(())
}

async fn all_revoked(db: &mut StoreConnection) -> Result<Vec<Revoked>, StoreError> {
    let text = "SELECT owner, print, method, at FROM revoked_prints ORDER BY owner, print";
    query(text).fetch_all(db).await?.iter().map(revoked).collect()
}

fn read_log(rows: &[Row]) -> Result<Vec<LogRow>, StoreError> {
    rows.iter().map(log_row).collect()
}

fn log_row(row: &Row) -> Result<LogRow, StoreError> {
    let seq: i64 = row.try_get("seq")?;
    let bad = || inconsistent("audit", seq);
    let person = |jid: &str, erased: &str| person(row, seq, jid, erased);
    let id = |column: &str| -> Result<Option<KeyId>, StoreError> {
        let id: Option<String> = row.try_get(column)?;
        id.map(|id| id.parse().map_err(|_| bad())).transpose()
    };
    let name: String = row.try_get("event")?;
    let other = person("other_jid", "other_erased")?;
    Ok(LogRow {
        at: moment(row.try_get("at")?).ok_or_else(bad)?,
        owner: person("owner_jid", "owner_erased")?.ok_or_else(bad)?,
        actor_kind: row.try_get("actor_kind")?,
        actor: person("actor_jid", "actor_erased")?,
        key: id("key_id")?,
        event: AuditEvent::of(&name, other, id("other_key")?).ok_or_else(bad)?,
    })
}

/// Adds the rows that are not in the log, in their order, and returns them. Of rows that are alike as many are kept as
/// there are.
async fn write_log<'a>(
    db: &mut StoreConnection,
    rows: &'a [LogRow],
) -> Result<Vec<&'a LogRow>, StoreError> {
    let mut fresh = Vec::new();
    let mut alike: HashMap<String, i64> = HashMap::new();
    for row in rows {
        let (other, other_key) = row.event.others();
        let owner = party_of(db, &row.owner).await?;
        let actor = match &row.actor {
            Some(actor) => Some(party_of(db, actor).await?),
            None => None,
        };
        let other = match other {
            Some(other) => Some(party_of(db, other).await?),
            None => None,
        };
        let count = alike.entry(format!("{row:?}")).or_default();
        *count += 1;
        let known = query(
            "SELECT COUNT(*) AS known FROM audit
             WHERE owner = $1 AND at = $2 AND event = $3 AND COALESCE(key_id, '') = $4
                   AND actor_kind = $5 AND COALESCE(actor, 0) = $6 AND COALESCE(other, 0) = $7
                   AND COALESCE(other_key, '') = $8",
        )
        .bind(owner)
        .bind(micros(row.at))
        .bind(row.event.as_str())
        .bind(row.key.map(|id| id.to_string()).unwrap_or_default())
        .bind(row.actor_kind.clone())
        .bind(actor.unwrap_or_default())
        .bind(other.unwrap_or_default())
        .bind(other_key.map(|id| id.to_string()).unwrap_or_default())
        .fetch_one(db)
        .await?;
        if known.try_get::<i64>("known")? >= *count {
            continue;
        }
        let actor = (row.actor_kind.as_str(), actor);
        add_to_log(db, (owner, actor, other), row.at, row.key, &row.event).await?;
        fresh.push(row);
    }
    Ok(fresh)
}

/// The row of a user, known or deleted; made if there is none.
async fn party_of(db: &mut StoreConnection, who: &Party) -> Result<i64, StoreError> {
    let hash = match who {
        Party::User(jid) => return Ok(party(db, jid).await?),
        Party::Erased(hash) => hash,
    };
    let find = || query("SELECT id FROM parties WHERE erased = $1 ORDER BY id").bind(hash.clone());
    if let Some(row) = find().fetch_optional(db).await? {
        return Ok(row.try_get("id")?);
    }
    query("INSERT INTO parties (erased) VALUES ($1)").bind(hash.clone()).execute(db).await?;
    Ok(find().fetch_one(db).await?.try_get("id")?)
}
