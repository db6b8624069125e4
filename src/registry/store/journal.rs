//! The journal's SQL, one text for both databases, like `sql.rs`.

use jid::{BareJid, Jid};
use sqlx::Row as _;
use time::OffsetDateTime;

use super::{Database, Row, begin_apart, sql::query};
use crate::registry::store::{error::StoreError, records::OpenSide};

impl Database {
    pub(in crate::registry) async fn open_sides(
        &self,
        component: &BareJid,
    ) -> Result<Vec<OpenSide>, StoreError> {
        let rows =
            query("SELECT * FROM open_sessions WHERE component = $1 ORDER BY began, session")
                .bind(component.as_str().to_owned())
                .fetch_all(&self.pool)
                .await?;
        rows.iter().map(side).collect()
    }

    pub(in crate::registry) async fn open_of(
        &self,
        user: &BareJid,
    ) -> Result<Vec<(OpenSide, OffsetDateTime)>, StoreError> {
        let rows = query(
            "SELECT * FROM open_sessions WHERE user_jid = $1 OR SUBSTR(user_jid, 1, $3) = $2
             ORDER BY began, session, sid",
        )
        .bind(user.as_str().to_owned())
        .bind(format!("{user}/"))
        .bind(i32::try_from(user.as_str().chars().count()).unwrap_or(i32::MAX).saturating_add(1))
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                let began = i128::from(row.try_get::<i64, _>("began")?) * 1000;
                let began = OffsetDateTime::from_unix_timestamp_nanos(began).map_err(|_| {
                    StoreError::Inconsistent { table: "open_sessions", id: began.to_string() }
                })?;
                Ok((side(row)?, began))
            })
            .collect()
    }

    pub(in crate::registry) async fn change_open(
        &self,
        component: &BareJid,
        begun: &[OpenSide],
        ended: &[String],
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        let component = component.as_str();
        let now = i64::try_from(now.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX);
        let mut tx = begin_apart(&self.pool).await?;
        for OpenSide { session, user, mask, sid, namespace } in begun {
            query(
                "INSERT INTO open_sessions
                     (component, session, sid, user_jid, mask, namespace, began)
                 VALUES ($1, $2, $3, $4, $5, $6, $7)
                 ON CONFLICT (component, session, sid) DO UPDATE SET namespace = $6",
            )
            .bind(component.to_owned())
            .bind(session.clone())
            .bind(sid.clone())
            .bind(user.to_string())
            .bind(mask.to_string())
            .bind(namespace.clone())
            .bind(now)
            .execute(&mut *tx)
            .await?;
        }
        for session in ended {
            query("DELETE FROM open_sessions WHERE component = $1 AND session = $2")
                .bind(component.to_owned())
                .bind(session.clone())
                .execute(&mut *tx)
                .await?;
        }
        Ok(tx.commit().await?)
    }
}

fn side(row: &Row) -> Result<OpenSide, StoreError> {
    let session: String = row.try_get("session")?;
    let address = |column: &str| -> Result<Jid, StoreError> {
        let text: String = row.try_get(column)?;
        Jid::new(&text)
            .map_err(|_| StoreError::Inconsistent { table: "open_sessions", id: session.clone() })
    };
    Ok(OpenSide {
        user: address("user_jid")?,
        mask: address("mask")?,
        sid: row.try_get("sid")?,
        namespace: row.try_get("namespace")?,
        session: session.clone(),
    })
}
