//! The users who watch others' presence.

use jid::BareJid;
use time::OffsetDateTime;

use super::{
    Store,
    error::StoreError,
    sql::{Row, inconsistent, micros, moment, query},
};
use crate::sessions::watchers::WatchedPair;

impl Store {
    /// Returns at most `limit` watchers, each with its contact and the time when it last asked; the last first.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn watchers(
        &self,
        component: &BareJid,
        limit: u32,
    ) -> Result<Vec<(BareJid, BareJid, OffsetDateTime)>, StoreError> {
        self.read("watchers", async |db| {
            let rows = query(
                "SELECT watcher, contact, seen FROM watchers WHERE component = $1
                 ORDER BY seen DESC, watcher, contact LIMIT $2",
            )
            .bind(component.as_str())
            .bind(limit)
            .fetch_all(db)
            .await?;
            rows.iter().map(watcher).collect()
        })
        .await
    }

    /// Stores watchers with their contacts, and removes those that watch no more: all or nothing.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn change_watchers(
        &self,
        component: &BareJid,
        here: &[&WatchedPair],
        gone: &[&WatchedPair],
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        self.change_apart("change_watchers", async |tx| {
            for pair in here {
                query(
                    "INSERT INTO watchers (component, watcher, contact, seen)
                     VALUES ($1, $2, $3, $4)
                     ON CONFLICT (component, watcher, contact) DO UPDATE SET seen = $4",
                )
                .bind(component.as_str())
                .bind(pair.watcher.as_str())
                .bind(pair.contact.as_str())
                .bind(micros(now))
                .execute(tx)
                .await?;
            }
            for pair in gone {
                query(
                    "DELETE FROM watchers WHERE component = $1 AND watcher = $2 AND contact = $3",
                )
                .bind(component.as_str())
                .bind(pair.watcher.as_str())
                .bind(pair.contact.as_str())
                .execute(tx)
                .await?;
            }
            Ok(())
        })
        .await
    }

    /// Removes the watchers that last asked before this time.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn forget_watchers(
        &self,
        component: &BareJid,
        before: OffsetDateTime,
    ) -> Result<(), StoreError> {
        self.change_apart("forget_watchers", async |tx| {
            query("DELETE FROM watchers WHERE component = $1 AND seen < $2")
                .bind(component.as_str())
                .bind(micros(before))
                .execute(tx)
                .await?;
            Ok(())
        })
        .await
    }
}

fn watcher(row: &Row) -> Result<(BareJid, BareJid, OffsetDateTime), StoreError> {
    let address = |name| {
        let text: String = row.try_get(name)?;
        BareJid::new(&text).map_err(|_| inconsistent("watchers", &text))
    };
    let (watcher, contact) = (address("watcher")?, address("contact")?);
    let seen = moment(row.try_get("seen")?).ok_or_else(|| inconsistent("watchers", &watcher))?;
    Ok((watcher, contact, seen))
}
