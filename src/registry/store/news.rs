//! What programs with the same database learn of each other's changes.

use jid::BareJid;

use super::{
    records::ExternalChanges,
    sql::{StoreConnection, query},
};

/// The channel of PostgreSQL that names a user whose keys have changed.
pub(super) const CHANNEL: &str = "fingerpost_keys";

/// Returns the number of the last row of the audit log.
pub(super) async fn last_change(db: &mut StoreConnection) -> Result<i64, sqlx::Error> {
    let row = query("SELECT COALESCE(MAX(seq), 0) AS seq FROM audit").fetch_one(db).await?;
    row.try_get("seq")
}

/// Returns what has changed since the row `seq` of the audit log, and moves `seq` to the last row.
pub(super) async fn news_since(
    db: &mut StoreConnection,
    seq: &mut i64,
) -> Result<ExternalChanges, sqlx::Error> {
    let rows = query(
        "SELECT audit.seq, audit.event, parties.jid
         FROM audit JOIN parties ON parties.id = audit.owner
         WHERE audit.seq > $1 ORDER BY audit.seq",
    )
    .bind(*seq)
    .fetch_all(db)
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
            return Ok(ExternalChanges::Anything);
        };
        owners.push(owner);
    }
    Ok(if owners.is_empty() {
        ExternalChanges::None
    } else {
        ExternalChanges::Of { owners, blocks }
    })
}

/// Tells other programs of the user whose keys have changed, when the change is committed. Those that share a file find it
/// themselves.
pub(super) async fn announce(db: &mut StoreConnection, owner: &BareJid) -> Result<(), sqlx::Error> {
    notify(db, owner.as_str()).await
}

/// Tells them of a change of the block list, by a notification without a name.
pub(super) async fn announce_blocks(db: &mut StoreConnection) -> Result<(), sqlx::Error> {
    notify(db, "").await
}

async fn notify(db: &mut StoreConnection, text: &str) -> Result<(), sqlx::Error> {
    if let StoreConnection::Postgres(_) = db {
        query("SELECT pg_notify($1, $2)").bind(CHANNEL).bind(text).execute(db).await?;
    }
    Ok(())
}
