//! Reachable resources.

use jid::{BareJid, FullJid};
use time::OffsetDateTime;

use super::{
    Store,
    error::StoreError,
    sql::{Row, inconsistent, micros, query},
};

impl Store {
    /// Returns the resources that were reachable when the component last ran, at most `limit` of those seen
    /// `since` then, each with its priority; the last seen first.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn reachable(
        &self,
        component: &BareJid,
        since: OffsetDateTime,
        limit: u32,
    ) -> Result<Vec<(FullJid, i8)>, StoreError> {
        self.read("reachable", async |db| {
            let rows = query(
                "SELECT jid, priority FROM reachable WHERE component = $1 AND seen >= $2
                 ORDER BY seen DESC, jid LIMIT $3",
            )
            .bind(component.as_str())
            .bind(micros(since))
            .bind(limit)
            .fetch_all(db)
            .await?;
            rows.iter().map(resource).collect()
        })
        .await
    }

    /// Stores reachable resources with their priorities, and removes those that are not reachable: all or nothing.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn change_reachable(
        &self,
        component: &BareJid,
        here: &[(FullJid, i8)],
        gone: &[FullJid],
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        self.change_apart("change_reachable", async |tx| {
            for (jid, priority) in here {
                query(
                    "INSERT INTO reachable (component, jid, owner, priority, seen)
                     VALUES ($1, $2, $3, $4, $5)
                     ON CONFLICT (component, jid) DO UPDATE SET priority = $4, seen = $5",
                )
                .bind(component.as_str())
                .bind(jid.to_string())
                .bind(jid.to_bare().to_string())
                .bind(*priority)
                .bind(micros(now))
                .execute(tx)
                .await?;
            }
            for jid in gone {
                query("DELETE FROM reachable WHERE component = $1 AND jid = $2")
                    .bind(component.as_str())
                    .bind(jid.to_string())
                    .execute(tx)
                    .await?;
            }
            Ok(())
        })
        .await
    }

    /// Removes the resources that were last seen before this time.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn forget_reachable(
        &self,
        component: &BareJid,
        before: OffsetDateTime,
    ) -> Result<(), StoreError> {
        self.change_apart("forget_reachable", async |tx| {
            query("DELETE FROM reachable WHERE component = $1 AND seen < $2")
                .bind(component.as_str())
                .bind(micros(before))
                .execute(tx)
                .await?;
            Ok(())
        })
        .await
    }
}

fn resource(row: &Row) -> Result<(FullJid, i8), StoreError> {
    let jid: String = row.try_get("jid")?;
    let priority: i16 = row.try_get("priority")?;
    let wrong = || inconsistent("reachable", &jid);
    Ok((FullJid::new(&jid).map_err(|_| wrong())?, i8::try_from(priority).map_err(|_| wrong())?))
}
