//! The journal of open sessions.

use jid::{BareJid, Jid};
use time::OffsetDateTime;

use super::{
    Store,
    error::StoreError,
    records::{OpenSide, RenewableSide},
    sql::{Row, inconsistent, micros, moment, query},
};

impl Store {
    /// Returns the sessions of a component that are open, or were when it died; the oldest first.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn open_sides(&self, component: &BareJid) -> Result<Vec<OpenSide>, StoreError> {
        self.read("open_sides", async |db| {
            let rows =
                query("SELECT * FROM open_sessions WHERE component = $1 ORDER BY began, session")
                    .bind(component.as_str())
                    .fetch_all(db)
                    .await?;
            rows.iter().map(side).collect()
        })
        .await
    }

    /// Returns the open sessions of a user, and when each began.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn open_of(
        &self,
        user: &BareJid,
    ) -> Result<Vec<(OpenSide, OffsetDateTime)>, StoreError> {
        self.read("open_of", async |db| {
            let rows = query(
                "SELECT * FROM open_sessions WHERE user_jid = $1 OR SUBSTR(user_jid, 1, LENGTH($2)) = $2
                 ORDER BY began, session, sid",
            )
            .bind(user.as_str())
            .bind(format!("{user}/"))
            .fetch_all(db)
            .await?;
            rows.iter()
                .map(|row| {
                    let began: i64 = row.try_get("began")?;
                    let began = moment(began).ok_or_else(|| inconsistent("open_sessions", began));
                    Ok((side(row)?, began?))
                })
                .collect()
        })
        .await
    }

    /// Stores new sessions of a component and removes (by name) those that have ended: all or nothing.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn change_open(
        &self,
        component: &BareJid,
        begun: &[OpenSide],
        ended: &[String],
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        self.change_apart("change_open", async |tx| {
            for OpenSide { session, user, mask, sid, namespace, renewable } in begun {
                let renewable = renewable.as_ref();
                query(
                    "INSERT INTO open_sessions
                         (component, session, sid, user_jid, mask, namespace, began, role, content, transport)
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
                     ON CONFLICT (component, session, sid)
                         DO UPDATE SET namespace = $6, role = $8, content = $9, transport = $10",
                )
                .bind(component.as_str())
                .bind(session.as_str())
                .bind(sid.as_str())
                .bind(user.to_string())
                .bind(mask.to_string())
                .bind(namespace.as_str())
                .bind(micros(now))
                .bind(renewable.map(|side| side.role.clone()))
                .bind(renewable.map(|side| side.content.clone()))
                .bind(renewable.map(|side| side.transport.clone()))
                .execute(tx)
                .await?;
            }
            for session in ended {
                query("DELETE FROM open_sessions WHERE component = $1 AND session = $2")
                    .bind(component.as_str())
                    .bind(session.as_str())
                    .execute(tx)
                    .await?;
            }
            Ok(())
        })
        .await
    }
}

fn side(row: &Row) -> Result<OpenSide, StoreError> {
    let session: String = row.try_get("session")?;
    let address = |column: &str| -> Result<Jid, StoreError> {
        let text: String = row.try_get(column)?;
        Jid::new(&text).map_err(|_| inconsistent("open_sessions", &session))
    };
    Ok(OpenSide {
        user: address("user_jid")?,
        mask: address("mask")?,
        sid: row.try_get("sid")?,
        namespace: row.try_get("namespace")?,
        renewable: renewable(row)?,
        session: session.clone(),
    })
}

fn renewable(row: &Row) -> Result<Option<RenewableSide>, StoreError> {
    let text = |column| -> Result<Option<String>, StoreError> { Ok(row.try_get(column)?) };
    let all = (text("role")?, text("content")?, text("transport")?);
    let (Some(role), Some(content), Some(transport)) = all else { return Ok(None) };
    Ok(Some(RenewableSide { role, content, transport }))
}
