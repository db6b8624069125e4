//! The operations on the database. Their SQL is in `sql.rs`, once for both kinds.
//!
//! | file | content |
//! |---|---|
//! | [`open`], [`error`], [`records`] | how a database is opened, how it fails, what it gives and takes |
//! | [`backup`] | a SQLite database as one file |
//!
//! Lookups return an `Option` or a list. Changes take `now` and write their audit rows in the same transaction: an
//! acknowledged change is on the disk, and a failed one has left no trace.

pub mod backup;
pub mod error;
pub mod open;
mod postgres;
pub mod records;
mod schema;
mod sqlite;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use fingerpost_wire::{
    key::{Assurance, KeyId},
    print::Print,
};
use jid::{BareJid, FullJid};
use time::OffsetDateTime;

use self::{
    error::StoreError,
    open::{Inspected, OpenError, Options},
    records::{
        Added, Backend, Contents, Heard, Instance, News, OpenSide, Parcel, Profile, RetiredAccount,
        Silent, Won,
    },
};
use crate::{
    metrics,
    registry::model::{Actor, AuditEntry, Key, NewKey, Settings, Visibility},
};

/// A database of keys. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    kind: Kind,
    writes: Arc<tokio::sync::Mutex<Writes>>,
}

/// The last attempts to find out whether the database accepts changes.
#[derive(Debug, Default)]
struct Writes {
    tried: Option<Instant>,
    done: Option<Instant>,
}

/// The pause before the next attempt on a database that accepts changes; after a failure it is [`RETRY`].
const ASK_AGAIN: Duration = Duration::from_secs(20);
/// See [`ASK_AGAIN`].
const RETRY: Duration = Duration::from_secs(1);
/// How long a database may take to show that it answers, or takes changes.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
enum Kind {
    Postgres(postgres::Database),
    Sqlite(sqlite::Database),
}

/// How long a request waits for the database in all.
const DEADLINE: Duration = Duration::from_secs(10);
/// The same for what reads or writes everything.
const BULK: Duration = Duration::from_secs(3600);

/// Asks whichever database there is, and waits for [`DEADLINE`] or as long as is said.
macro_rules! ask {
    ($store:expr, $db:ident => $same:ident . $operation:ident ( $($argument:expr),* )) => {
        ask!($store, DEADLINE, $db => $same.$operation($($argument),*))
    };
    ($store:expr, $limit:expr, $db:ident => $same:ident . $operation:ident ( $($argument:expr),* )) => {
        observed(stringify!($operation), $limit, async {
            let done = match &$store.kind {
                Kind::Postgres($db) => $db.trust.judged($same.$operation($($argument),*).await),
                Kind::Sqlite($db) => {
                    $db.verify().await?;
                    let done = $db.trust.judged($same.$operation($($argument),*).await);
                    // What went into another file than the one that is there is not done.
                    $db.verify().await?;
                    done
                }
            };
            done
        })
        .await
    };
}

/// Counts an operation, and measures its duration.
async fn observed<T>(
    operation: &'static str,
    limit: Duration,
    done: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let began = Instant::now();
    let done = tokio::time::timeout(limit, done).await.unwrap_or(Err(StoreError::Late(limit)));
    let outcome = match &done {
        Ok(_) => "done",
        Err(StoreError::NotAllowed(_)) => "refused",
        Err(_) => "failed",
    };
    metrics::REGISTRY_OPERATIONS.count(&[operation, outcome]);
    metrics::REGISTRY_SECONDS.took(began.elapsed());
    done
}

/// Checks the address of a database, without asking for it.
///
/// # Errors
/// What is wrong with it, without its password.
pub fn check_address(url: &str) -> Result<(), String> {
    if url.starts_with("postgres") { postgres::check_address(url) } else { Ok(()) }
}

/// Receives notifications of changes by other programs in a shared database.
#[derive(Debug)]
pub struct Changes(postgres::Listener);

impl Changes {
    /// Waits for the next change.
    ///
    /// # Errors
    /// If the connection is lost, the database has not answered for 5 seconds, or another server takes the changes.
    /// Changes may have been missed: call [`Store::changes`] again and assume that everything has changed.
    ///
    /// # Cancel safety
    /// Dropping the future may lose a change: call [`Store::changes`] again and assume that everything has changed.
    pub async fn next(&mut self) -> Result<News, StoreError> {
        Ok(self.0.next().await?)
    }
}

/// An instance's connection to the others of its component. After an error it is unusable.
#[derive(Debug)]
pub(crate) struct Meeting(postgres::Meeting);

impl Meeting {
    /// Leads from now on, if nobody does but some of those that are silent. `None`: another one does.
    pub(crate) async fn try_lead(&mut self, silent: &[Silent]) -> Result<Option<Won>, StoreError> {
        Ok(self.0.try_lead(silent).await?)
    }

    /// Does not lead any more, and says so.
    pub(crate) async fn yield_lead(&mut self) -> Result<(), StoreError> {
        Ok(self.0.yield_lead().await?)
    }

    /// Returns the database's name for this connection.
    pub(crate) fn backend(&self) -> Backend {
        self.0.backend()
    }

    /// Ends the last connection of the same instance.
    pub(crate) async fn end(&mut self, last: Backend) -> Result<(), StoreError> {
        Ok(self.0.end(last).await?)
    }

    /// Ends the connection that has the lead, unless another one leads than those that are silent. Says whether there was
    /// one.
    pub(crate) async fn evict(&mut self, silent: &[Silent]) -> Result<bool, StoreError> {
        Ok(self.0.evict(silent).await?)
    }

    /// Gives a sign of life; tells of all instances, this one too. `leads`: unless another one has come to lead since.
    pub(crate) async fn beat(
        &mut self,
        leads: bool,
        linked: bool,
        advertise: &str,
    ) -> Result<Vec<Instance>, StoreError> {
        Ok(self.0.beat(leads, linked, advertise).await?)
    }

    /// Removes expired instances and stanzas.
    pub(crate) async fn forget_old(&mut self) -> Result<(), StoreError> {
        Ok(self.0.forget_old().await?)
    }

    /// Sends parcels to instances, in this order: all arrive, or none.
    pub(crate) async fn send(&mut self, parcels: &[(String, Parcel)]) -> Result<(), StoreError> {
        Ok(self.0.send(parcels).await?)
    }

    /// Waits for messages of others.
    ///
    /// # Cancel safety
    /// Nothing is lost if the future is dropped.
    pub(crate) async fn notified(&mut self) -> Result<Heard, StoreError> {
        Ok(self.0.notified().await?)
    }

    /// Fetches the stanza of a [`Heard::Written`] and removes it. `None` if it was too old.
    pub(crate) async fn fetch(&mut self, number: i64) -> Result<Option<String>, StoreError> {
        Ok(self.0.fetch(number).await?)
    }

    /// Leaves the other instances in order.
    pub(crate) async fn leave(self) -> Result<(), StoreError> {
        Ok(self.0.leave().await?)
    }
}

impl Store {
    /// Returns why this instance cannot serve its users as it should, if there is a reason.
    pub fn obstacle(&self) -> Option<&'static str> {
        match &self.kind {
            Kind::Postgres(db) => db.obstacle(),
            Kind::Sqlite(db) => db
                .has_lost_its_file()
                .then_some("the database file was replaced or removed (the log says what to do)"),
        }
    }

    /// Meets the other instances of a component; `None` if the database belongs to one alone, or if a pooler keeps
    /// instances from meeting: then each looks whether it is alone.
    pub(crate) async fn meet(
        &self,
        component: &BareJid,
        id: &str,
    ) -> Result<Option<Meeting>, StoreError> {
        match &self.kind {
            // Instances meet by a lock and by notifications, which belong to a session of the database.
            Kind::Postgres(db) if db.is_pooled() => {
                db.look_for_rivals(component, id).await?;
                Ok(None)
            }
            Kind::Postgres(db) => Ok(Some(Meeting(db.meet(component, id).await?))),
            Kind::Sqlite(_) => Ok(None),
        }
    }

    /// Returns whether instances can meet in this database: it can be shared, and no pooler is between.
    pub(crate) fn lets_instances_meet(&self) -> bool {
        matches!(&self.kind, Kind::Postgres(db) if !db.is_pooled())
    }

    /// Returns the instances of a component; none if the database cannot be shared.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn instances(&self, component: &BareJid) -> Result<Vec<Instance>, StoreError> {
        match &self.kind {
            Kind::Postgres(db) => Ok(db.instances(component).await?),
            Kind::Sqlite(_) => Ok(Vec::new()),
        }
    }

    /// Opens a database: `sqlite:FILE`, `sqlite::memory:` or `postgres://…`. With `migrate`, updates its schema.
    ///
    /// # Errors
    /// [`OpenError`]
    pub async fn open(url: &str, max_connections: u32, migrate: bool) -> Result<Self, OpenError> {
        Self::open_with(&Options { url, max_connections, migrate, pooler: false }).await
    }

    /// Opens a database.
    ///
    /// # Errors
    /// [`OpenError`]
    pub async fn open_with(options: &Options<'_>) -> Result<Self, OpenError> {
        let &Options { url, max_connections, migrate, .. } = options;
        let kind = if url.starts_with("sqlite:") {
            Kind::Sqlite(sqlite::Database::open(url, max_connections, migrate).await?)
        } else if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            Kind::Postgres(postgres::Database::open(options).await?)
        } else {
            return Err(OpenError::Kind);
        };
        Ok(Self { kind, writes: Arc::default() })
    }

    /// Checks that the server has as many connections for this program as it may need.
    ///
    /// # Errors
    /// [`OpenError`]
    pub async fn check_connections(&self) -> Result<(), OpenError> {
        let shortage = match &self.kind {
            Kind::Postgres(db) => db.shortage().await.map_err(OpenError::Open)?,
            Kind::Sqlite(_) => None,
        };
        shortage.map_or(Ok(()), |(most, needed)| Err(OpenError::Connections { most, needed }))
    }

    /// Finds whether [`Self::open`] with the same arguments would give a database that can be used. Nothing is created
    /// and nothing is changed. Also returns the database, if it can be used at once and by several instances together.
    ///
    /// # Errors
    /// [`OpenError`]
    pub async fn inspect(options: &Options<'_>) -> Result<(Inspected, Option<Self>), OpenError> {
        if options.url.starts_with("sqlite:") {
            return Ok((sqlite::inspect(options.url, options.migrate).await?, None));
        }
        if !options.url.starts_with("postgres") {
            return Err(OpenError::Kind);
        }
        let (db, found) = postgres::Database::look(options).await?;
        let store = Self { kind: Kind::Postgres(db), writes: Arc::default() };
        store.check_connections().await?;
        let store = found.to_do.is_none().then_some(store);
        Ok((found, store))
    }

    /// Closes the connections to a file, so that nothing is left beside it.
    pub async fn close(&self) {
        match &self.kind {
            // They end with the program.
            Kind::Postgres(_) => {}
            Kind::Sqlite(db) => db.close().await,
        }
    }

    /// Returns whether cached data must be checked at each lookup, because nothing reports changes by other programs.
    pub(super) fn must_look(&self) -> bool {
        match &self.kind {
            Kind::Postgres(_) => false,
            Kind::Sqlite(db) => db.is_shared(),
        }
    }

    /// Returns whether changes by other programs are reported by [`Self::changes`].
    pub(super) fn tells(&self) -> bool {
        matches!(self.kind, Kind::Postgres(_))
    }

    /// Returns what other programs have changed since the last call, where nothing reports it.
    ///
    /// # Errors
    /// [`StoreError`]; then anything may have changed.
    pub(super) async fn news(&self) -> Result<News, StoreError> {
        match &self.kind {
            Kind::Postgres(_) => Ok(News::None),
            Kind::Sqlite(db) => {
                db.verify().await?;
                Ok(db.news().await?)
            }
        }
    }

    /// Notices from now on if the file of the database is replaced: then nothing is read or changed any more. Call
    /// `tend` from then on.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn guard_file(&self) -> Result<(), StoreError> {
        match &self.kind {
            Kind::Postgres(_) => Ok(()),
            Kind::Sqlite(db) => Ok(db.guard_file().await?),
        }
    }

    /// Does what is to be done every second or so.
    pub(super) async fn tend(&self) {
        if let Kind::Sqlite(db) = &self.kind {
            db.tend().await;
        }
    }

    /// Checks whether the database accepts changes, and returns how long ago it last did. The check runs at most every
    /// 20 seconds, and every second after a failure.
    pub async fn last_write(&self, component: &BareJid, now: OffsetDateTime) -> Option<Duration> {
        let mut writes = self.writes.lock().await;
        let works = writes.done.is_some() && writes.done >= writes.tried;
        let again = if works { ASK_AGAIN } else { RETRY };
        if writes.tried.is_none_or(|tried| tried.elapsed() >= again) {
            let began = Instant::now();
            writes.tried = Some(began);
            match ask!(self, PATIENCE, db => db.write(component, now)) {
                Ok(()) => writes.done = Some(Instant::now()),
                Err(error) => tracing::warn!(%error, "the database does not take changes"),
            }
        }
        let works = writes.done.is_some() && writes.done >= writes.tried;
        writes.done.filter(|_| works).map(|done| done.elapsed())
    }

    /// Listens to changes from now on, if the database can be shared.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn changes(&self) -> Result<Option<Changes>, StoreError> {
        match &self.kind {
            Kind::Postgres(db) => Ok(Some(Changes(db.listen().await?))),
            Kind::Sqlite(_) => Ok(None),
        }
    }

    /// Checks that the database answers.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn ping(&self) -> Result<(), StoreError> {
        ask!(self, PATIENCE, db => db.ping())
    }

    /// Returns the record of a user; an empty one for an unknown user.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn profile(&self, owner: &BareJid) -> Result<Profile, StoreError> {
        ask!(self, db => db.profile(owner))
    }

    /// Returns what `asker` may know of `owner`; `None` if nothing. `admits` decides by the owner's visibility
    /// and by whether `asker` is named.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn visible(
        &self,
        asker: &BareJid,
        owner: &BareJid,
        admits: impl Fn(Option<Visibility>, bool) -> bool,
    ) -> Result<Option<Profile>, StoreError> {
        ask!(self, db => db.visible(asker, owner, &admits))
    }

    /// Returns one key, if `admits` allows it; see [`Store::visible`].
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn visible_key(
        &self,
        asker: &BareJid,
        id: KeyId,
        admits: impl Fn(&BareJid, Option<Visibility>, bool) -> bool,
    ) -> Result<Option<Key>, StoreError> {
        ask!(self, db => db.visible_key(asker, id, &admits))
    }

    /// Returns all keys that a user has ever had, oldest first.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn keys_of(&self, owner: &BareJid) -> Result<Vec<Key>, StoreError> {
        Ok(self.profile(owner).await?.keys)
    }

    /// Returns one key.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn key(&self, id: KeyId) -> Result<Option<Key>, StoreError> {
        ask!(self, db => db.key(id))
    }

    /// Returns the certificate of a key.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn material(&self, id: KeyId) -> Result<Option<Vec<u8>>, StoreError> {
        ask!(self, db => db.material(id))
    }

    /// Returns all keys of all users, by owner and age.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn all(&self) -> Result<Vec<Key>, StoreError> {
        ask!(self, BULK, db => db.all())
    }

    /// Returns keys that are not revoked and share a print with such a key of another user.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn conflicts(&self) -> Result<Vec<Key>, StoreError> {
        ask!(self, BULK, db => db.conflicts())
    }

    /// Returns the users that have a key with this print.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn owners_of(&self, print: &Print) -> Result<Vec<BareJid>, StoreError> {
        ask!(self, db => db.owners_of(print))
    }

    /// Adds a key as [`Key::add`] decides; `id` is its name if it is new.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn add(
        &self,
        owner: &BareJid,
        new: &NewKey,
        limit: u32,
        actor: &Actor,
        now: OffsetDateTime,
        id: KeyId,
    ) -> Result<Added, StoreError> {
        ask!(self, db => db.add(owner, new, limit, actor, now, id))
    }

    /// Revokes a key for good, and returns whether it was not revoked before.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn revoke(
        &self,
        id: KeyId,
        actor: &Actor,
        reason: &str,
        now: OffsetDateTime,
    ) -> Result<(Key, bool), StoreError> {
        ask!(self, db => db.revoke(id, actor, reason, now))
    }

    /// Takes a key out of use, without a replacement.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn retire(
        &self,
        id: KeyId,
        actor: &Actor,
        now: OffsetDateTime,
    ) -> Result<Key, StoreError> {
        ask!(self, db => db.retire(id, actor, now))
    }

    /// Reads all that is in the database, or all of one user, without what belongs to one run of the component.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn contents(&self, owner: Option<&BareJid>) -> Result<Contents, StoreError> {
        ask!(self, BULK, db => db.contents(owner))
    }

    /// Stores what was elsewhere as it was: all or nothing. A key whose id is known stays as it is, and so does a row of the
    /// log. Says how many keys are new.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn import(
        &self,
        contents: &Contents,
        now: OffsetDateTime,
    ) -> Result<usize, StoreError> {
        ask!(self, BULK, db => db.import(contents, now))
    }

    /// Ends the life of an account: its keys, settings and reachable resources are deleted, nobody else's settings name it
    /// any more, and the audit log keeps `hash` in place of the address. What was revoked stays revoked.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn retire_account(
        &self,
        owner: &BareJid,
        hash: &str,
        actor: &Actor,
        now: OffsetDateTime,
    ) -> Result<RetiredAccount, StoreError> {
        ask!(self, db => db.retire_account(owner, hash, actor, now))
    }

    /// Raises the assurance of a key to `to`, and returns whether it was lower before.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn raise(
        &self,
        id: KeyId,
        to: Assurance,
        actor: &Actor,
        now: OffsetDateTime,
    ) -> Result<(Key, bool), StoreError> {
        ask!(self, db => db.raise(id, to, actor, now))
    }

    /// Stores a user's visibility settings.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn set_settings(
        &self,
        owner: &BareJid,
        settings: &Settings,
        actor: &Actor,
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        ask!(self, db => db.set_settings(owner, settings, actor, now))
    }

    /// Deletes all that is held about a user. The audit log keeps `hash` in place of the address, and of revoked prints salted
    /// hashes stay: they are revoked for this address for good.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn erase(
        &self,
        owner: &BareJid,
        hash: &str,
        actor: &Actor,
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        ask!(self, db => db.erase(owner, hash, actor, now))
    }

    /// Returns the component's own certificate and private key (PKCS#8), if they are stored.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn identity(
        &self,
        component: &BareJid,
    ) -> Result<Option<(Vec<u8>, Vec<u8>)>, StoreError> {
        ask!(self, db => db.identity(component))
    }

    /// Stores the component's own certificate and private key, unless some are stored already.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn keep_identity(
        &self,
        component: &BareJid,
        certificate: &[u8],
        private_key: &[u8],
    ) -> Result<(), StoreError> {
        ask!(self, db => db.keep_identity(component, certificate, private_key))
    }

    /// Returns the sessions of a component that are open, or were when it died; the oldest first.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn open_sides(&self, component: &BareJid) -> Result<Vec<OpenSide>, StoreError> {
        ask!(self, db => db.open_sides(component))
    }

    /// Returns the open sessions of a user, and when each began.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn open_of(
        &self,
        user: &BareJid,
    ) -> Result<Vec<(OpenSide, OffsetDateTime)>, StoreError> {
        ask!(self, db => db.open_of(user))
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
        ask!(self, db => db.change_open(component, begun, ended, now))
    }

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
        ask!(self, db => db.reachable(component, since, limit))
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
        ask!(self, db => db.change_reachable(component, here, gone, now))
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
        ask!(self, db => db.forget_reachable(component, before))
    }

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
        ask!(self, db => db.audit_page(owner, newest, i64::from(skip), i64::from(limit)))
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
        let count = ask!(self, db => db.audit_count(owner, newest))?;
        Ok(usize::try_from(count).unwrap_or_default())
    }

    /// Returns at most `limit` users that have keys and whose address contains `part`.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn owners_like(&self, part: &str, limit: u32) -> Result<Vec<BareJid>, StoreError> {
        ask!(self, db => db.owners_like(part, i64::from(limit)))
    }

    /// Returns the block list, each entry with its reason: bare JIDs and domains.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn blocks(&self) -> Result<Vec<(String, String)>, StoreError> {
        ask!(self, db => db.blocks())
    }

    /// Blocks a user or a domain, and returns whether the block is new.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn block(
        &self,
        jid: &BareJid,
        reason: &str,
        actor: &Actor,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        ask!(self, db => db.block(jid, reason, actor, now))
    }

    /// Removes a block, and returns whether there was one.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn unblock(
        &self,
        jid: &BareJid,
        actor: &Actor,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        ask!(self, db => db.unblock(jid, actor, now))
    }

    /// Returns the connections to the database: open, idle, and at most.
    pub fn connections(&self) -> (u32, usize, u32) {
        match &self.kind {
            Kind::Postgres(db) => db.connections(),
            Kind::Sqlite(db) => db.connections(),
        }
    }
}

#[cfg(test)]
mod tests {
    use fingerpost_wire::{
        key::State,
        print::{HashKind, Method},
    };
    use time::macros::datetime;

    use super::*;
    use crate::registry::model::{Event, NotAllowed, Source};

    const NOW: OffsetDateTime = datetime!(2026-11-24 2:00 UTC);

    fn user(name: &str) -> BareJid {
        BareJid::new(&format!("{name}@example.org")).unwrap()
    }

    fn new(byte: u8) -> NewKey {
        let print = Print::new(HashKind::Sha256, &[byte; 32]).unwrap();
        NewKey::of_prints(Method::X509, vec![print], "laptop", Source::Self_).unwrap()
    }

    async fn add(store: &Store, name: &str, key: NewKey, id: u128) -> Added {
        let owner = user(name);
        let actor = Actor::User(owner.clone());
        store.add(&owner, &key, 32, &actor, NOW, KeyId::new(id)).await.unwrap()
    }

    async fn life_story(store: &Store) {
        let romeo = user("romeo");
        assert_eq!(store.keys_of(&romeo).await.unwrap(), []);
        let first = add(store, "romeo", new(1), 1).await;
        assert!(first.fresh && first.also_owned_by.is_empty());
        let again = add(store, "romeo", new(1), 2).await;
        assert_eq!((again.key.id, again.fresh), (first.key.id, false));
        let other = add(store, "juliet", new(1), 3).await;
        assert_eq!((other.fresh, other.also_owned_by), (true, vec![romeo.clone()]));
        let second = add(store, "romeo", new(2).replacing(Some(first.key.id)), 4).await;
        let keys = store.keys_of(&romeo).await.unwrap();
        assert_eq!(
            keys.iter().map(|key| key.state).collect::<Vec<_>>(),
            [State::Superseded, State::Active]
        );
        assert_eq!(keys[0].replaced_by, Some(second.key.id));

        let stranger = Actor::User(user("juliet"));
        let refused = store.revoke(second.key.id, &stranger, "", NOW).await;
        assert!(matches!(refused, Err(StoreError::NotAllowed(NotAllowed::NoSuchKey))));
        let own = Actor::User(romeo.clone());
        let (revoked, fresh) = store.revoke(second.key.id, &own, "lost", NOW).await.unwrap();
        assert!(fresh);
        assert_eq!((revoked.state, revoked.reason.as_str()), (State::Revoked, "lost"));
        assert_eq!(
            store.revoke(second.key.id, &own, "again", NOW).await.unwrap(),
            (revoked.clone(), false)
        );
        assert_eq!(add(store, "romeo", new(2), 5).await.key, revoked);

        let print = Print::new(HashKind::Sha256, &[1; 32]).unwrap();
        assert_eq!(store.owners_of(&print).await.unwrap(), [user("juliet"), romeo.clone()]);
        let log = store.audit(Some(&romeo), 100).await.unwrap();
        assert_eq!(
            log.iter().map(|entry| entry.event.clone()).collect::<Vec<_>>(),
            [Event::Added, Event::Added, Event::Superseded { by: second.key.id }, Event::Revoked]
        );
        assert_eq!(log[0].actor, Some(own));
    }

    #[tokio::test]
    async fn the_life_of_keys_in_memory() {
        life_story(&Store::open("sqlite::memory:", 8, true).await.unwrap()).await;
    }

    #[tokio::test]
    async fn the_life_of_keys_in_a_file_outlasts_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", dir.path().join("keys.db").display());
        life_story(&Store::open(&url, 4, true).await.unwrap()).await;
        let store = Store::open(&url, 4, true).await.unwrap();
        assert_eq!(store.all().await.unwrap().len(), 3);
    }

    #[tokio::test]
    async fn keys_that_are_no_longer_active_count_too() {
        let store = Store::open("sqlite::memory:", 1, true).await.unwrap();
        let owner = user("romeo");
        let actor = Actor::User(owner.clone());
        let limit = 2;
        let refused = async {
            for byte in 0..u8::MAX {
                let id = KeyId::new(byte.into());
                match store.add(&owner, &new(byte), limit, &actor, NOW, id).await {
                    Ok(added) => store.revoke(added.key.id, &actor, "", NOW).await.unwrap(),
                    Err(error) => return (byte, error),
                };
            }
            panic!("there is no limit");
        }
        .await;
        let (count, error) = refused;
        assert_eq!(count, 8);
        assert!(matches!(error, StoreError::NotAllowed(NotAllowed::TooManyEver(8))), "{error}");
        assert!(error.to_string().contains("no longer active"), "{error}");
        // A known key is still returned.
        assert!(
            !store.add(&owner, &new(0), limit, &actor, NOW, KeyId::new(99)).await.unwrap().fresh
        );
    }

    #[tokio::test]
    async fn settings_that_are_as_they_were_leave_no_trace() {
        let store = Store::open("sqlite::memory:", 1, true).await.unwrap();
        let owner = user("romeo");
        let actor = Actor::User(owner.clone());
        for visibility in [Visibility::Nobody, Visibility::Nobody, Visibility::Local] {
            let settings = Settings { visibility, allowed: vec![user("juliet")] };
            store.set_settings(&owner, &settings, &actor, NOW).await.unwrap();
        }
        assert_eq!(store.audit(Some(&owner), 100).await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn the_limit_of_active_keys_holds() {
        let store = Store::open("sqlite::memory:", 1, true).await.unwrap();
        let owner = user("romeo");
        let actor = Actor::User(owner.clone());
        for byte in 0..2 {
            store.add(&owner, &new(byte), 2, &actor, NOW, KeyId::new(byte.into())).await.unwrap();
        }
        let third = store.add(&owner, &new(9), 2, &actor, NOW, KeyId::new(9)).await;
        assert!(matches!(third, Err(StoreError::NotAllowed(NotAllowed::TooManyKeys(2)))));
    }
}
