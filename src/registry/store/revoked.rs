//! Prints that stay revoked for an address though its keys are deleted.

use fingerpost_wire::print::Print;
use time::OffsetDateTime;

use super::{
    error::StoreError,
    sql::{Row, StoreConnection, inconsistent, micros, moment, query},
};
use crate::registry::{
    forgotten::{Forgotten, Revoked, hash_of_owner},
    model::Key,
};

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
