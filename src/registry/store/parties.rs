//! Rows of users, to which keys, settings and the audit log refer.

use jid::BareJid;

use super::{
    error::StoreError,
    sql::{Row, StoreConnection, inconsistent, query},
};

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
