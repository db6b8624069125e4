//! The meeting place of one component's instances: a row for each, a lock that one holds, and a channel to each.
//!
//! All of it uses one connection outside the pool. When the process dies, the database notices the end of this
//! connection and releases the lock at once.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use jid::BareJid;
use sha2::{Digest, Sha256};
use sqlx::{
    Executor as _, Row as _,
    postgres::{PgListener, PgRow},
};
use tokio::time::sleep;
use tracing::error;

use super::pool::{Pool, in_time};
use crate::registry::store::error::StoreError;
use crate::registry::store::records::{Backend, Heard, Instance, Parcel, Silent, Won};

/// How long the database may take for one of these operations.
const PATIENCE: Duration = Duration::from_secs(10);
/// A notification's text must be shorter than 8000 bytes.
const NOTIFICATION: usize = 7900;
/// The silence after which a stanza, or an instance, is forgotten.
const OLD: &str = "60 seconds";
/// How often, and after which pause each, to check whether the database has ended a connection.
const LOOKS: (u32, Duration) = (20, Duration::from_millis(100));
/// The database must notice within about 15 s that an instance's machine is gone: the connection has the lock until
/// then. A setting that the database does not know is skipped.
const KEEPALIVE: &str = "SELECT set_config(wanted.name, wanted.value, FALSE)
    FROM (VALUES ('tcp_keepalives_idle', '5'), ('tcp_keepalives_interval', '3'), ('tcp_keepalives_count', '3'),
                 ('tcp_user_timeout', '15000')) AS wanted(name, value)
    JOIN pg_settings USING (name)";

/// Returns the channel of an instance.
fn channel(id: &str) -> String {
    format!("fingerpost_to_{id}")
}

/// The lock of a component, and the channel on which its instances are told that one of them leads no more.
fn keys(component: &BareJid) -> (i64, String) {
    let hash = Sha256::digest(format!("fingerpost leads {component}"));
    let mut first = [0; 8];
    first.copy_from_slice(&hash[..8]);
    let lock = i64::from_be_bytes(first);
    (lock, format!("fingerpost_of_{lock:016x}"))
}

/// One instance's connection to the others of its component. After an error it is unusable.
#[derive(Debug)]
pub(crate) struct Meeting {
    connection: PgListener,
    component: String,
    id: String,
    lock: i64,
    all: String,
    backend: Backend,
    /// Makes each notification of a transaction different: equal ones are sent once.
    number: u64,
}

/// Returns the instances of a component.
pub(super) async fn instances(
    pool: &Pool,
    component: &BareJid,
) -> Result<Vec<Instance>, sqlx::Error> {
    let rows = sqlx::query(INSTANCES)
        .bind(component.as_str())
        .fetch_all(&mut *pool.acquire().await?)
        .await?;
    rows.iter().map(instance).collect()
}

/// Other instances, as seen by one that cannot meet them.
#[derive(Debug, Default)]
pub(super) struct Rivals {
    /// Since when it has looked, and when it last saw another one.
    seen: Mutex<(Option<Instant>, Option<Instant>)>,
}

impl Rivals {
    /// For how long another instance counts that was seen.
    const LATELY: Duration = Duration::from_secs(5);

    /// Returns whether another instance was recently alive.
    pub(super) fn are_there(&self) -> bool {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).1;
        seen.is_some_and(|seen| seen.elapsed() < Self::LATELY)
    }

    /// Gives a sign of life and looks for other instances, behind a pooler, where they cannot meet.
    pub(super) async fn look_for(
        &self,
        pool: &Pool,
        component: &BareJid,
        id: &str,
    ) -> Result<(), sqlx::Error> {
        let mut connection = pool.acquire().await?;
        connection.begin().await?;
        sqlx::query(
            "INSERT INTO instances (component, id, leads, linked, advertise, seen)
             VALUES ($1, $2, FALSE, FALSE, '', clock_timestamp())
             ON CONFLICT (component, id) DO UPDATE SET seen = clock_timestamp()",
        )
        .bind(component.as_str())
        .bind(id)
        .execute(&mut *connection)
        .await?;
        let text = "DELETE FROM instances WHERE component = $1 AND seen < clock_timestamp() - $2::INTERVAL";
        sqlx::query(text).bind(component.as_str()).bind(OLD).execute(&mut *connection).await?;
        connection.execute("COMMIT").await?;
        connection.committed();
        self.look(id, &instances(pool, component).await?);
        Ok(())
    }

    /// Reads the rows of the instances. An instance is alive if its last sign of life is recent
    /// and was given since this one began to look.
    fn look(&self, own: &str, instances: &[Instance]) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let began = *seen.0.get_or_insert_with(Instant::now);
        let recent = began.elapsed().min(Self::LATELY);
        let is_alive = |other: &&Instance| other.id != own && other.age < recent;
        let Some(other) = instances.iter().find(is_alive) else { return };
        if seen.1.is_none_or(|seen| seen.elapsed() >= Self::LATELY) {
            error!(
                instance = other.id,
                cure = "give each instance the address of PostgreSQL itself, and database.pooler = false",
                "another instance serves this component, and instances cannot meet through a pooler"
            );
        }
        seen.1 = Some(Instant::now());
    }
}

const INSTANCES: &str =
    "SELECT id, leads, linked, advertise, EXTRACT(EPOCH FROM clock_timestamp() - seen)::FLOAT8 AS age,
            (EXTRACT(EPOCH FROM seen) * 1000000)::BIGINT AS beat
     FROM instances WHERE component = $1 ORDER BY id";

/// Whether another instance leads than those that are silent.
macro_rules! is_led {
    () => {
        "EXISTS (SELECT 1 FROM instances WHERE component = $1 AND id <> $2 AND leads
             AND NOT EXISTS (SELECT 1 FROM UNNEST($3::TEXT[], $4::BIGINT[]) AS silent(id, beat)
                             WHERE silent.id = instances.id
                               AND silent.beat = (EXTRACT(EPOCH FROM instances.seen) * 1000000)::BIGINT))"
    };
}

fn instance(row: &PgRow) -> Result<Instance, sqlx::Error> {
    let age: f64 = row.try_get("age")?;
    Ok(Instance {
        id: row.try_get("id")?,
        leads: row.try_get("leads")?,
        linked: row.try_get("linked")?,
        advertise: row.try_get("advertise")?,
        age: Duration::try_from_secs_f64(age.max(0.0)).unwrap_or_default(),
        watched: Duration::ZERO,
        beat: row.try_get("beat")?,
    })
}

/// What `is_led!` takes of those that are silent.
fn columns(silent: &[Silent]) -> (Vec<String>, Vec<i64>) {
    silent.iter().map(|silent| (silent.id.clone(), silent.beat)).unzip()
}

/// Ignores operations that an administrator has forbidden: the connection is useful all the same.
fn allowed(done: Result<(), sqlx::Error>) -> Result<(), sqlx::Error> {
    match done {
        Err(sqlx::Error::Database(_)) => Ok(()),
        done => done,
    }
}

impl Meeting {
    /// Meets the other instances of a component under the name `id`.
    pub(super) async fn on(
        mut connection: PgListener,
        component: &BareJid,
        id: &str,
    ) -> Result<Self, sqlx::Error> {
        let (lock, all) = keys(component);
        connection.listen_all([channel(id).as_str(), all.as_str()]).await?;
        // Data that a crash of the database loses would also be lost with a crash of an instance.
        connection.execute("SET synchronous_commit = off").await?;
        connection.execute(KEEPALIVE).await?;
        let (pid, began) = sqlx::query_as(
            "SELECT pid, (EXTRACT(EPOCH FROM backend_start) * 1000000)::BIGINT
             FROM pg_stat_activity WHERE pid = pg_backend_pid()",
        )
        .fetch_one(&mut connection)
        .await?;
        let (component, id) = (component.to_string(), id.to_owned());
        Ok(Self {
            connection,
            component,
            id,
            lock,
            all,
            backend: Backend { pid, began },
            number: 0,
        })
    }

    /// Returns the database's name for this connection.
    pub(crate) fn backend(&self) -> Backend {
        self.backend
    }

    /// Ends an earlier connection of this instance, which may hold the lock without being usable.
    pub(crate) async fn end(&mut self, last: Backend) -> Result<(), StoreError> {
        let ending = async {
            for _ in 0..LOOKS.0 {
                let ended = sqlx::query(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                     WHERE pid = $1 AND (EXTRACT(EPOCH FROM backend_start) * 1000000)::BIGINT = $2",
                )
                .bind(last.pid)
                .bind(last.began)
                .fetch_all(&mut self.connection)
                .await?;
                if ended.is_empty() {
                    break;
                }
                sleep(LOOKS.1).await;
            }
            Ok(())
        };
        Ok(allowed(in_time(PATIENCE, ending).await)?)
    }

    /// Takes the lock if nobody has it, and if no instance leads but some of those that are silent: a leader whose connection
    /// was ended may not know that yet. Then the rows say so at once: nobody takes this instance for one that does not lead,
    /// or another one for the leader.
    pub(crate) async fn try_lead(&mut self, silent: &[Silent]) -> Result<Option<Won>, StoreError> {
        let (ids, beats) = columns(silent);
        let done = async {
            let asked = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(self.lock);
            let is_free: bool = asked.fetch_one(&mut self.connection).await?;
            if !is_free {
                return Ok(None);
            }
            let asked = sqlx::query_as(concat!(
                "SELECT ",
                is_led!(),
                ", EXISTS (SELECT 1 FROM instances WHERE component = $1 AND id = $2 AND leads)"
            ));
            let asked = asked.bind(&self.component).bind(&self.id);
            let (is_led, has_led): (bool, bool) =
                asked.bind(ids).bind(beats).fetch_one(&mut self.connection).await?;
            if is_led {
                let asked = sqlx::query("SELECT pg_advisory_unlock($1)").bind(self.lock);
                asked.execute(&mut self.connection).await?;
                return Ok(None);
            }
            sqlx::query(
                "UPDATE instances SET leads = (id = $2), seen = CASE id WHEN $2 THEN clock_timestamp() ELSE seen END
                 WHERE component = $1",
            )
            .bind(&self.component)
            .bind(&self.id)
            .execute(&mut self.connection)
            .await?;
            Ok(Some(if has_led { Won::Again } else { Won::Anew }))
        };
        Ok(in_time(PATIENCE, done).await?)
    }

    /// Says that this instance does not lead any more, gives the lock free and tells all.
    pub(crate) async fn yield_lead(&mut self) -> Result<(), StoreError> {
        let done = async {
            let text = "UPDATE instances SET leads = FALSE WHERE component = $1 AND id = $2";
            let asked = sqlx::query(text).bind(&self.component).bind(&self.id);
            asked.execute(&mut self.connection).await?;
            let text = "SELECT pg_advisory_unlock_all(), pg_notify($1, '')";
            sqlx::query(text).bind(&self.all).execute(&mut self.connection).await.map(|_| ())
        };
        Ok(in_time(PATIENCE, done).await?)
    }

    /// Ends the connection that holds the lock, unless another instance leads than those that are silent. Says whether there
    /// was one.
    pub(crate) async fn evict(&mut self, silent: &[Silent]) -> Result<bool, StoreError> {
        let (ids, beats) = columns(silent);
        let text = concat!(
            "SELECT pg_terminate_backend(pid) FROM pg_locks
             WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND pid <> pg_backend_pid()
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
               AND (classid::BIGINT << 32) | objid::BIGINT = $5 AND NOT ",
            is_led!()
        );
        let done = async {
            let mut found = false;
            for _ in 0..LOOKS.0 {
                let asked = sqlx::query(text);
                let asked = asked.bind(&self.component).bind(&self.id).bind(&ids).bind(&beats);
                let ended = asked.bind(self.lock).fetch_all(&mut self.connection).await?;
                if ended.is_empty() {
                    break;
                }
                found = true;
                sleep(LOOKS.1).await;
            }
            Ok(found)
        };
        let mut found = false;
        allowed(in_time(PATIENCE, done).await.map(|some| found = some))?;
        Ok(found)
    }

    /// Gives a sign of life, and tells of all instances, this one too. One that says that it leads is not believed if
    /// another one has come to lead since.
    pub(crate) async fn beat(
        &mut self,
        leads: bool,
        linked: bool,
        advertise: &str,
    ) -> Result<Vec<Instance>, StoreError> {
        let done = async {
            sqlx::query(
                "INSERT INTO instances (component, id, leads, linked, advertise, seen)
                 VALUES ($1, $2, $3 AND NOT EXISTS (SELECT 1 FROM instances WHERE component = $1 AND leads),
                         $4, $5, clock_timestamp())
                 ON CONFLICT (component, id) DO UPDATE
                 SET leads = $3 AND (instances.leads OR excluded.leads),
                     linked = $4, advertise = $5, seen = clock_timestamp()",
            )
            .bind(&self.component)
            .bind(&self.id)
            .bind(leads)
            .bind(linked)
            .bind(advertise)
            .execute(&mut self.connection)
            .await?;
            let asked = sqlx::query(INSTANCES).bind(&self.component);
            asked.fetch_all(&mut self.connection).await
        };
        let rows = in_time(PATIENCE, done).await?;
        Ok(rows.iter().map(instance).collect::<Result<_, _>>()?)
    }

    /// Removes expired instances and stanzas.
    pub(crate) async fn forget_old(&mut self) -> Result<(), StoreError> {
        let done = async {
            let text = "DELETE FROM instances WHERE component = $1 AND seen < clock_timestamp() - $2::INTERVAL";
            let asked = sqlx::query(text).bind(&self.component).bind(OLD);
            asked.execute(&mut self.connection).await?;
            let text = "DELETE FROM handovers WHERE at < clock_timestamp() - $1::INTERVAL";
            sqlx::query(text).bind(OLD).execute(&mut self.connection).await.map(|_| ())
        };
        Ok(in_time(PATIENCE, done).await?)
    }

    /// Sends parcels, in this order: all arrive, or none.
    pub(crate) async fn send(&mut self, parcels: &[(String, Parcel)]) -> Result<(), StoreError> {
        let (mut channels, mut payloads) = (Vec::new(), Vec::new());
        let (mut owners, mut long) = (Vec::new(), Vec::new());
        let mut waiting = Vec::new();
        for (to, parcel) in parcels {
            self.number += 1;
            channels.push(channel(to));
            payloads.push(match parcel {
                Parcel::Echo(id) => format!("E{} {id}", self.number),
                Parcel::Stanza(text) if text.len() <= NOTIFICATION => {
                    format!("S{} {text}", self.number)
                }
                Parcel::Stanza(text) => {
                    owners.push(to.clone());
                    long.push(text.clone());
                    waiting.push(payloads.len());
                    String::new()
                }
            });
        }
        let done = async {
            self.connection.execute("BEGIN").await?;
            for (place, (owner, text)) in waiting.iter().zip(owners.iter().zip(&long)) {
                let id: i64 = sqlx::query_scalar(
                    "INSERT INTO handovers (instance, stanza, at) VALUES ($1, $2, clock_timestamp()) RETURNING id",
                )
                .bind(owner)
                .bind(text)
                .fetch_one(&mut self.connection)
                .await?;
                payloads[*place] = format!("R{id} ");
            }
            sqlx::query(
                "SELECT pg_notify(channel, payload)
                 FROM UNNEST($1::TEXT[], $2::TEXT[]) WITH ORDINALITY AS sent(channel, payload, place) ORDER BY place",
            )
            .bind(&channels)
            .bind(&payloads)
            .execute(&mut self.connection)
            .await?;
            self.connection.execute("COMMIT").await.map(|_| ())
        };
        Ok(in_time(PATIENCE, done).await?)
    }

    /// Waits for messages of others. Fetching a stored stanza removes it.
    ///
    /// # Cancel safety
    /// Only [`Meeting::notified`] may be dropped, not [`Meeting::fetch`].
    pub(crate) async fn notified(&mut self) -> Result<Heard, StoreError> {
        loop {
            let received = self.connection.try_recv().await?;
            let lost = || sqlx::Error::Io(std::io::ErrorKind::ConnectionAborted.into());
            let notification = received.ok_or_else(lost)?;
            if notification.channel() == self.all {
                return Ok(Heard::Left);
            }
            let Some((head, text)) = notification.payload().split_once(' ') else { continue };
            match head.split_at_checked(1) {
                Some(("S", _)) => return Ok(Heard::Stanza(text.to_owned())),
                Some(("E", _)) => return Ok(Heard::Echo(text.to_owned())),
                Some(("R", id)) => match id.parse() {
                    Ok(id) => return Ok(Heard::Written(id)),
                    Err(_) => continue,
                },
                _ => {}
            }
        }
    }

    /// Fetches a stored stanza; `None` if it is gone.
    pub(crate) async fn fetch(&mut self, number: i64) -> Result<Option<String>, StoreError> {
        let text = "DELETE FROM handovers WHERE id = $1 AND instance = $2 RETURNING stanza";
        let asked = sqlx::query_scalar(text).bind(number).bind(&self.id);
        Ok(in_time(PATIENCE, asked.fetch_optional(&mut self.connection)).await?)
    }

    /// Leaves: removes the row, releases the lock, and notifies all.
    pub(crate) async fn leave(mut self) -> Result<(), StoreError> {
        let done = async {
            sqlx::query("DELETE FROM instances WHERE component = $1 AND id = $2")
                .bind(&self.component)
                .bind(&self.id)
                .execute(&mut self.connection)
                .await?;
            let text = "SELECT pg_advisory_unlock_all(), pg_notify($1, '')";
            sqlx::query(text).bind(&self.all).execute(&mut self.connection).await.map(|_| ())
        };
        Ok(in_time(PATIENCE, done).await?)
    }
}
