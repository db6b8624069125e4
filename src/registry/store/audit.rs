//! The audit log.

use fingerpost_wire::key::KeyId;
use jid::BareJid;
use time::OffsetDateTime;

use super::{
    Store,
    error::StoreError,
    parties::party,
    sql::{Row, StoreConnection, inconsistent, micros, moment, query},
};
use crate::registry::model::{Actor, AuditEntry, AuditEvent, Party};

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

impl Store {
    /// Returns the last `limit` rows of the audit log, of one user or of all, oldest first.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn audit(
        &self,
        owner: Option<&BareJid>,
        limit: u32,
    ) -> Result<Vec<AuditEntry>, StoreError> {
        let mut entries = self.audit_page(owner, None, 0, limit).await?;
        entries.reverse();
        Ok(entries)
    }

    /// Returns at most `limit` rows of the audit log, of one user or of all, newest first, from the row `newest` (or
    /// the last) down, without the first `skip` of them.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn audit_page(
        &self,
        owner: Option<&BareJid>,
        newest: Option<i64>,
        skip: u32,
        limit: u32,
    ) -> Result<Vec<AuditEntry>, StoreError> {
        self.read("audit_page", async |db| {
            let rows = query(if owner.is_some() { AUDIT_OF_ONE } else { AUDIT_OF_ALL })
                .bind(newest.unwrap_or(i64::MAX))
                .bind(limit)
                .bind(skip);
            let rows = match owner {
                Some(owner) => rows.bind(owner.as_str()),
                None => rows,
            };
            let rows = rows.fetch_all(db).await?;
            rows.iter().map(entry).collect()
        })
        .await
    }

    /// Returns how many rows the audit log has of one user or of all, up to the row `newest`.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn audit_count(
        &self,
        owner: Option<&BareJid>,
        newest: i64,
    ) -> Result<usize, StoreError> {
        self.read("audit_count", async |db| {
            let row = query(if owner.is_some() { COUNT_OF_ONE } else { COUNT_OF_ALL }).bind(newest);
            let row = match owner {
                Some(owner) => row.bind(owner.as_str()),
                None => row,
            };
            let row = row.fetch_one(db).await?;
            Ok(usize::try_from(row.try_get::<i64>("rows")?).unwrap_or_default())
        })
        .await
    }
}

pub(super) async fn log(
    db: &mut StoreConnection,
    owner: &BareJid,
    actor: &Actor,
    now: OffsetDateTime,
    id: Option<KeyId>,
    event: &AuditEvent,
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
    db: &mut StoreConnection,
    (owner, (kind, actor), other): (i64, (&str, Option<i64>), Option<i64>),
    at: OffsetDateTime,
    id: Option<KeyId>,
    event: &AuditEvent,
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
        AuditEvent::of(&name, person("other_jid", "other_erased")?, other_key).ok_or_else(bad)?;
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
