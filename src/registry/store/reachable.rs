//! The SQL for reachable resources, one text for both databases, like `sql.rs`.

use jid::{BareJid, FullJid};
use sqlx::Row as _;
use time::OffsetDateTime;

use super::{
    Database, Row, begin_apart,
    sql::{micros, query},
};
use crate::registry::store::error::StoreError;

impl Database {
    pub(in crate::registry) async fn reachable(
        &self,
        component: &BareJid,
        since: OffsetDateTime,
        limit: u32,
    ) -> Result<Vec<(FullJid, i8)>, StoreError> {
        let rows = query(
            "SELECT jid, priority FROM reachable WHERE component = $1 AND seen >= $2
             ORDER BY seen DESC, jid LIMIT $3",
        )
        .bind(component.as_str().to_owned())
        .bind(micros(since))
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(resource).collect()
    }

    pub(in crate::registry) async fn change_reachable(
        &self,
        component: &BareJid,
        here: &[(FullJid, i8)],
        gone: &[FullJid],
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        let component = component.as_str();
        let mut tx = begin_apart(&self.pool).await?;
        for (jid, priority) in here {
            query(
                "INSERT INTO reachable (component, jid, owner, priority, seen)
                 VALUES ($1, $2, $3, $4, $5)
                 ON CONFLICT (component, jid) DO UPDATE SET priority = $4, seen = $5",
            )
            .bind(component.to_owned())
            .bind(jid.to_string())
            .bind(jid.to_bare().to_string())
            .bind(i16::from(*priority))
            .bind(micros(now))
            .execute(&mut *tx)
            .await?;
        }
        for jid in gone {
            query("DELETE FROM reachable WHERE component = $1 AND jid = $2")
                .bind(component.to_owned())
                .bind(jid.to_string())
                .execute(&mut *tx)
                .await?;
        }
        Ok(tx.commit().await?)
    }

    pub(in crate::registry) async fn forget_reachable(
        &self,
        component: &BareJid,
        before: OffsetDateTime,
    ) -> Result<(), StoreError> {
        query("DELETE FROM reachable WHERE component = $1 AND seen < $2")
            .bind(component.as_str().to_owned())
            .bind(micros(before))
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

fn resource(row: &Row) -> Result<(FullJid, i8), StoreError> {
    let jid: String = row.try_get("jid")?;
    let priority: i16 = row.try_get("priority")?;
    let wrong = || StoreError::Inconsistent { table: "reachable", id: jid.clone() };
    Ok((FullJid::new(&jid).map_err(|_| wrong())?, i8::try_from(priority).map_err(|_| wrong())?))
}
