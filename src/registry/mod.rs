//! The registry: users' keys, their origin, and their history.
//!
//! | file | content |
//! |---|---|
//! | [`model`] | keys, their states, which change is allowed (pure) |
//! | [`proof`] | challenges, and how long they are valid (pure) |
//! | [`pep`] | OpenPGP keys that users publish (XEP-0373) |
//! | [`verdict`] | an offered print judged by its user's keys (pure) |
//! | [`store`] | the operations on the database, SQLite or PostgreSQL |
//! | [`requests`] | `urn:fingerpost:keys:0` |
//! | [`forgotten`] | revoked prints of users whose keys are deleted (pure) |
//! | `export.rs` | all that is held about a user, in pages |
//! | `adapters.rs` | XEP-0257, XEP-0250 and XEP-0189 |

mod adapters;
mod export;
pub mod forgotten;
pub mod model;
pub mod pep;
mod profiles;
pub mod proof;
pub mod refusal;
pub mod requests;
pub mod store;
pub mod verdict;

use std::{
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use data_encoding::HEXLOWER;
use fingerpost_secure::material::Material;
use fingerpost_wire::{
    jid::respelled,
    key::{Assurance, KeyId, State, stamp},
    print::{Method, Print},
    proof::Nonce,
};
use jid::{BareJid, Jid};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use tokio::sync::{Notify, broadcast};

use self::{
    model::{ALLOWED_BYTES, Actor, Key, NewKey, NotAllowed, Settings, Source, Visibility},
    profiles::Profiles,
    proof::{Challenges, ProofError},
    refusal::RegistryRefusal,
    store::{
        Store,
        error::StoreError,
        records::{ExternalChanges, Profile, RetiredAccount},
    },
};
use crate::{limits::Rates, metrics};

/// The registry's settings.
#[derive(Clone, Debug)]
pub struct RegistryOptions {
    /// The component's address.
    pub component: BareJid,
    /// The visibility of users that have not set their own.
    pub visibility: Visibility,
    /// The most active keys of a user.
    pub keys_per_user: u32,
}

/// Why the registry did not do it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The proof is not valid.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// The store refused, or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<RegistryError> for RegistryRefusal {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Store(error) => error.into(),
            RegistryError::Proof(error) => Self::Proof(error),
        }
    }
}

impl From<NotAllowed> for RegistryError {
    fn from(error: NotAllowed) -> Self {
        Self::Store(error.into())
    }
}

/// A message for a user about a change of the user's keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyNotice {
    /// The owner of the keys.
    pub owner: BareJid,
    /// What changed, from where, and how to revoke.
    pub text: String,
}

/// A key after a change, and the message for its owner, if anything changed.
pub type Changed = (Key, Option<KeyNotice>);

/// The registry: a store and the rules of visibility. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Registry {
    component: BareJid,
    store: Store,
    options: Arc<RwLock<RegistryOptions>>,
    profiles: Arc<Profiles>,
    catching_up: Arc<CatchingUp>,
    challenges: Arc<Challenges>,
    /// The rate of each user's changes: the audit log keeps them for ever.
    changes: Arc<Mutex<Rates>>,
    blocks_changed: Arc<Notify>,
    /// The users whose visibility may have changed.
    visibility_changed: broadcast::Sender<BareJid>,
}

/// The queries for others' changes. Lookups that wait at the same time share one.
#[derive(Debug, Default)]
struct CatchingUp {
    /// Held from a query until what it found is applied.
    turn: tokio::sync::Mutex<()>,
    /// How many queries have begun.
    begun: AtomicU64,
    /// The number of the last query whose result is applied.
    applied: AtomicU64,
}

/// How many changes of visibility are kept for a listener.
const VISIBILITY_CHANGES: usize = 1024;

/// The changes that one user may make at once, and the time until one more is allowed.
const CHANGES: (f64, Duration) = (1000.0, Duration::from_secs(20));

impl Registry {
    /// Creates a registry on a store.
    pub fn new(store: Store, options: RegistryOptions) -> Self {
        let profiles = if store.tells() { Profiles::notified() } else { Profiles::default() };
        Self {
            component: options.component.clone(),
            store,
            options: Arc::new(RwLock::new(options)),
            profiles: Arc::new(profiles),
            catching_up: Arc::default(),
            challenges: Arc::default(),
            changes: Arc::new(Mutex::new(Rates::with_burst(
                1.0 / CHANGES.1.as_secs_f64(),
                CHANGES.0,
            ))),
            blocks_changed: Arc::default(),
            visibility_changed: broadcast::Sender::new(VISIBILITY_CHANGES),
        }
    }

    /// Returns whether a user may make one more change now. Revoking is always possible, and bounded by the number of
    /// keys.
    fn check_changes(&self, owner: &BareJid) -> Result<(), NotAllowed> {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        if changes.has_room(owner, Instant::now()) {
            Ok(())
        } else {
            Err(NotAllowed::TooManyChanges)
        }
    }

    /// Counts a change by a user.
    fn count_change(&self, owner: &BareJid) {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).allow(owner, Instant::now());
    }

    /// Sets other settings, from now on; the component's address stays.
    pub fn set_options(&self, options: RegistryOptions) {
        *self.options.write().unwrap_or_else(PoisonError::into_inner) = options;
    }

    /// Waits until another program on a shared database may have changed the block list.
    pub async fn blocks_changed(&self) {
        self.blocks_changed.notified().await;
    }

    /// Returns a receiver of the users whose visibility may have changed. A receiver that lags must assume all.
    pub fn visibility_changes(&self) -> broadcast::Receiver<BareJid> {
        self.visibility_changed.subscribe()
    }

    /// Notes a committed change of a user that may have changed the user's visibility.
    fn settings_changed(&self, owner: &BareJid) {
        self.profiles.changed(owner);
        let _nobody_listens = self.visibility_changed.send(owner.clone());
    }

    fn options(&self) -> (Visibility, u32) {
        let options = self.options.read().unwrap_or_else(PoisonError::into_inner);
        (options.visibility, options.keys_per_user)
    }

    /// Listens to changes by others in a shared database; ends at once if the database cannot be shared.
    pub async fn listen(&self) {
        const AGAIN: Duration = Duration::from_secs(1);
        while self.store.must_look() {
            self.catch_up().await;
            self.store.tend().await;
            tokio::time::sleep(AGAIN).await;
        }
        loop {
            match self.store.changes().await {
                Ok(None) => return,
                Ok(Some(mut changes)) => {
                    self.profiles.set_hearing(true);
                    self.blocks_changed.notify_one();
                    let error = loop {
                        match changes.next().await {
                            Ok(news) => self.forget(news),
                            Err(error) => break error,
                        }
                    };
                    self.profiles.set_hearing(false);
                    metrics::NOTICES_LOST.count(&[]);
                    tracing::warn!(
                        %error,
                        "lost the database's change notices; the profile cache is bypassed until they resume"
                    );
                }
                Err(error) => tracing::warn!(%error, "database does not answer"),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Drops cached profiles that other programs have changed.
    fn forget(&self, news: ExternalChanges) {
        let blocks = match news {
            ExternalChanges::None => false,
            ExternalChanges::Of { owners, blocks } => {
                owners.iter().for_each(|owner| self.settings_changed(owner));
                blocks
            }
            ExternalChanges::Anything => {
                self.profiles.all_changed();
                true
            }
        };
        if blocks {
            self.blocks_changed.notify_one();
        }
    }

    /// Drops cached profiles that other programs have changed since.
    async fn catch_up(&self) {
        if !self.store.must_look() {
            return;
        }
        // Each change is reported once. A lookup that was told of a change must have dropped the affected profiles
        // before the next lookup hears that nothing is new.
        // It needs a query that begins from now on; another lookup may have made one by the time that it is its turn.
        let CatchingUp { turn, begun, applied } = &*self.catching_up;
        let wanted = begun.load(Ordering::SeqCst) + 1;
        let _turn = turn.lock().await;
        if applied.load(Ordering::SeqCst) >= wanted {
            return;
        }
        let number = begun.fetch_add(1, Ordering::SeqCst) + 1;
        match self.store.news().await {
            Ok(news) => self.forget(news),
            Err(error) => {
                tracing::debug!(%error, "could not read from the database what has changed");
                self.profiles.all_changed();
            }
        }
        applied.store(number, Ordering::SeqCst);
    }

    /// Returns a user's profile, which is never older than the last acknowledged change by any program.
    ///
    /// # Errors
    /// [`StoreError`] if the database cannot be read.
    pub async fn profile(&self, owner: &BareJid) -> Result<Arc<Profile>, StoreError> {
        self.catch_up().await;
        if let Some(profile) = self.profiles.get(owner) {
            return Ok(profile);
        }
        let read_at = self.profiles.stamp(owner);
        let profile = Arc::new(self.store.profile(owner).await?);
        self.profiles.put(owner, read_at, Arc::clone(&profile));
        Ok(profile)
    }

    /// Returns whether `asker`, who may use the service, may know of `owner`, whose profile is `profile`.
    pub fn admits(&self, asker: &BareJid, owner: &BareJid, profile: &Profile) -> bool {
        match &profile.settings {
            Some(settings) => settings.visibility.admits(asker, owner, &settings.allowed),
            None => self.options().0.admits(asker, owner, &[]),
        }
    }

    /// Returns whether the cache alone shows that `asker` may see the keys of `owner`, who has some. If it does not,
    /// the database is asked in the same way whatever the answer will be.
    pub fn shows(&self, asker: &BareJid, owner: &BareJid) -> bool {
        !self.store.must_look() && self.at_hand(asker, owner).is_some()
    }

    /// Returns the cached profile of `owner`, if `asker` may know of it and it has keys.
    fn at_hand(&self, asker: &BareJid, owner: &BareJid) -> Option<Arc<Profile>> {
        let profile = self.profiles.get(owner)?;
        (!profile.keys.is_empty() && self.admits(asker, owner, &profile)).then_some(profile)
    }

    /// Returns the profile of `owner` as far as `asker` may know of it; `None` if nothing.
    ///
    /// # Errors
    /// [`StoreError`] if the database cannot be read.
    ///
    /// # Security
    /// Only visible profiles are answered from the cache. A hidden user costs as much as an unknown one: the time does
    /// not tell whether someone uses the service.
    pub async fn visible(
        &self,
        asker: &BareJid,
        owner: &BareJid,
    ) -> Result<Option<Arc<Profile>>, StoreError> {
        self.catch_up().await;
        if let Some(profile) = self.at_hand(asker, owner) {
            return Ok(Some(profile));
        }
        let default = self.options().0;
        let read_at = self.profiles.stamp(owner);
        let found = self
            .store
            .visible(asker, owner, |said, named| {
                said.unwrap_or(default).admits_if_named(asker, owner, named)
            })
            .await?
            .map(Arc::new);
        if let Some(profile) = found.as_ref().filter(|profile| !profile.keys.is_empty()) {
            self.profiles.put(owner, read_at, Arc::clone(profile));
        }
        Ok(found)
    }

    /// Returns the keys of `owner` that `asker` may know of: all, or none. Hidden, unknown and keyless look the same.
    ///
    /// # Errors
    /// [`StoreError`] if the database cannot be read.
    pub async fn visible_keys(
        &self,
        asker: &BareJid,
        owner: &BareJid,
    ) -> Result<Vec<Key>, StoreError> {
        Ok(self
            .visible(asker, owner)
            .await?
            .map(|profile| profile.keys.clone())
            .unwrap_or_default())
    }

    /// Returns one key, if `asker` may know of it.
    ///
    /// # Errors
    /// [`StoreError`]; [`NotAllowed::NoSuchKey`] both for a missing and for a hidden key.
    pub async fn visible_key(&self, asker: &BareJid, id: KeyId) -> Result<Key, StoreError> {
        let default = self.options().0;
        let admits = |owner: &BareJid, said: Option<Visibility>, named| {
            said.unwrap_or(default).admits_if_named(asker, owner, named)
        };
        Ok(self.store.visible_key(asker, id, admits).await?.ok_or(NotAllowed::NoSuchKey)?)
    }

    /// Adds a key of the user at `from`.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn add(
        &self,
        from: &Jid,
        new: &NewKey,
        now: OffsetDateTime,
    ) -> Result<Changed, StoreError> {
        let owner = from.to_bare();
        let actor = Actor::User(owner.clone());
        let id = KeyId::new(rand::random());
        let limit = self.options().1;
        self.check_changes(&owner)?;
        let added = self.store.add(&owner, new, limit, &actor, now, id).await?;
        self.profiles.changed(&owner);
        if added.changed {
            self.count_change(&owner);
        }
        if added.fresh && !added.also_owned_by.is_empty() {
            tracing::warn!(key = %added.key.id, "a print is claimed by more than one user");
        }
        let what = match (added.fresh, added.revoked) {
            (true, true) => {
                "was added as revoked, for it had been revoked for your address before,"
            }
            (true, false) => "was added",
            (_, true) => "was revoked, for good, by what its own certificate says,",
            _ => "was changed",
        };
        let notice = added.changed.then(|| self.notice(&added.key, what, from, now));
        Ok((added.key, notice))
    }

    /// Revokes a key on behalf of `actor` at `from`.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn revoke(
        &self,
        from: &Jid,
        actor: &Actor,
        id: KeyId,
        reason: &str,
        now: OffsetDateTime,
    ) -> Result<Changed, StoreError> {
        let (key, changed) = self.store.revoke(id, actor, reason, now).await?;
        self.profiles.changed(&key.owner);
        let notice = changed.then(|| self.notice(&key, "was revoked, for good,", from, now));
        Ok((key, notice))
    }

    /// Takes a key of the user at `from` out of use, without a replacement.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn retire(
        &self,
        from: &Jid,
        id: KeyId,
        now: OffsetDateTime,
    ) -> Result<Changed, StoreError> {
        let actor = Actor::User(from.to_bare());
        let key = self.store.retire(id, &actor, now).await?;
        self.profiles.changed(&key.owner);
        let notice = Some(self.notice(&key, "was taken out of use", from, now));
        Ok((key, notice))
    }

    /// Vouches for a key on behalf of an admin at `from`.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn attest(
        &self,
        from: &Jid,
        id: KeyId,
        now: OffsetDateTime,
    ) -> Result<Changed, StoreError> {
        let actor = Actor::Admin(from.to_bare());
        let (key, changed) = self.store.raise(id, Assurance::Attested, &actor, now).await?;
        self.profiles.changed(&key.owner);
        let notice = changed.then(|| self.notice(&key, "was attested", from, now));
        Ok((key, notice))
    }

    /// Returns a challenge for one of the asker's own active keys: the nonce and its expiry.
    ///
    /// # Errors
    /// [`RegistryError`]
    pub async fn challenge(
        &self,
        owner: &BareJid,
        id: KeyId,
        now: OffsetDateTime,
    ) -> Result<(Nonce, OffsetDateTime), RegistryError> {
        self.own_active(owner, id).await?;
        let nonce: Nonce = rand::random();
        let expires = self.challenges.set(id, owner, nonce, now);
        Ok((nonce, expires))
    }

    /// Makes a key proven by a signature over its challenge.
    ///
    /// # Errors
    /// [`RegistryError`]; the challenge is used up in any case.
    pub async fn prove(
        &self,
        from: &Jid,
        id: KeyId,
        signature: &[u8],
        now: OffsetDateTime,
    ) -> Result<Changed, RegistryError> {
        let owner = from.to_bare();
        let key = self.own_active(&owner, id).await?;
        let nonce = self.challenges.take(id, &owner, now)?;
        let material = self.store.material(id).await?.ok_or(ProofError::NoMaterial)?;
        let verify = |owner: &BareJid| {
            let message = fingerpost_wire::proof::message(&self.component, owner, &nonce);
            fingerpost_secure::signature::verify(key.method, &material, &message, signature, now)
                .map_err(ProofError::from)
        };
        // A user signs the address as the server has assigned it, in its spelling.
        let spelled = respelled(owner.as_str()).and_then(|jid| BareJid::new(&jid).ok());
        spelled
            .filter(|spelled| verify(spelled).is_ok())
            .map_or_else(|| verify(&owner), |_| Ok(()))?;
        Ok(self.proven(from, id, now).await?)
    }

    /// Records that possession of a key was shown.
    async fn proven(
        &self,
        from: &Jid,
        id: KeyId,
        now: OffsetDateTime,
    ) -> Result<Changed, StoreError> {
        let actor = Actor::User(from.to_bare());
        let (key, changed) = self.store.raise(id, Assurance::Proven, &actor, now).await?;
        self.profiles.changed(&key.owner);
        let notice = changed.then(|| self.notice(&key, "was proven", from, now));
        Ok((key, notice))
    }

    /// Records a certificate that the user at `from` has shown in a TLS handshake as proven; it is added if it is new.
    ///
    /// # Errors
    /// The text for the user, if it is not a certificate, or a key that can no longer be proven.
    pub async fn shown(
        &self,
        from: &Jid,
        certificate: &[u8],
        now: OffsetDateTime,
    ) -> Result<Changed, RegistryRefusal> {
        let material =
            Material::parse(Method::X509, certificate).map_err(RegistryRefusal::invalid)?;
        let new = NewKey::of_material(material, &[], "", Source::Self_)
            .map_err(RegistryRefusal::invalid)?;
        let (key, added) = self.add(from, &new, now).await?;
        let (key, proven) = self.proven(from, key.id, now).await?;
        Ok((key, proven.or(added)))
    }

    async fn own_active(&self, owner: &BareJid, id: KeyId) -> Result<Key, RegistryError> {
        let profile = self.profile(owner).await?;
        let key = profile.keys.iter().find(|key| key.id == id).ok_or(NotAllowed::NoSuchKey)?;
        if key.state != State::Active {
            return Err(NotAllowed::NotActive.into());
        }
        Ok(key.clone())
    }

    /// Returns a user's visibility settings, or the default.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn settings(&self, owner: &BareJid) -> Result<Settings, StoreError> {
        let profile = self.profile(owner).await?;
        Ok(profile
            .settings
            .clone()
            .unwrap_or_else(|| Settings { visibility: self.options().0, allowed: Vec::new() }))
    }

    /// Stores the visibility settings of `owner`.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn set_settings(
        &self,
        owner: &BareJid,
        settings: &Settings,
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        let actor = Actor::User(owner.clone());
        self.check_changes(owner)?;
        if settings.allowed.iter().map(|jid| jid.as_str().len()).sum::<usize>() > ALLOWED_BYTES {
            return Err(NotAllowed::TooManyNamed.into());
        }
        self.store.set_settings(owner, settings, &actor, now).await?;
        self.count_change(owner);
        self.settings_changed(owner);
        Ok(())
    }

    /// Deletes everything held about `owner`; the audit log keeps a salted hash of the address.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn erase(
        &self,
        owner: &BareJid,
        actor: &Actor,
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        self.check_changes(owner)?;
        self.store.erase(owner, &salted_hash(owner, rand::random()), actor, now).await?;
        self.count_change(owner);
        self.settings_changed(owner);
        Ok(())
    }

    /// Ends the life of an account that is no longer its owner's. The next owner of the address finds nothing of it, and
    /// nobody is told.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn retire_account(
        &self,
        owner: &BareJid,
        actor: &Actor,
        now: OffsetDateTime,
    ) -> Result<RetiredAccount, StoreError> {
        let hash = salted_hash(owner, rand::random());
        let retired = self.store.retire_account(owner, &hash, actor, now).await?;
        self.settings_changed(owner);
        retired.named_by.iter().for_each(|other| self.settings_changed(other));
        Ok(retired)
    }

    /// Returns the keys by which offered `prints` of `owner` are judged for `asker`: those that `asker` may know of, and
    /// those of `prints` that stay revoked although their keys are deleted.
    ///
    /// # Errors
    /// [`StoreError`] if the database cannot be read.
    pub async fn keys_to_judge(
        &self,
        asker: &BareJid,
        owner: &BareJid,
        prints: &[Print],
    ) -> Result<Vec<Key>, StoreError> {
        let Some(profile) = self.visible(asker, owner).await? else { return Ok(Vec::new()) };
        let mut keys = profile.keys.clone();
        keys.extend(profile.forgotten.keys(owner, prints));
        Ok(keys)
    }

    /// Returns the component's address, to which proofs are bound.
    pub fn component(&self) -> &BareJid {
        &self.component
    }

    /// Returns the store, for requests of admins.
    pub fn store(&self) -> &Store {
        &self.store
    }

    fn notice(&self, key: &Key, what: &str, from: &Jid, now: OffsetDateTime) -> KeyNotice {
        let print = key.prints.first().map(ToString::to_string).unwrap_or_default();
        let label =
            if key.label.is_empty() { String::new() } else { format!(" “{}”", key.label) };
        let component = &self.component;
        let cure = match key.state {
            State::Revoked => format!(
                "add another key, and look at the others: xtls keys lists them, and xtls revoke ID, or the command \
                 “Revoke a key” of {component}, revokes one"
            ),
            State::Active | State::Superseded => format!(
                "revoke the key: xtls revoke {}, or the command “Revoke a key” of {component}",
                key.id
            ),
        };
        let text = format!(
            "Your {} key{label} {print} {what} by {from} at {}. If that was not you, change your password and {cure}.",
            key.method,
            stamp(now),
        );
        KeyNotice { owner: key.owner.clone(), text }
    }
}

/// Returns what the audit log keeps of an erased user: only someone who knows the address can recognize it.
pub fn salted_hash(owner: &BareJid, salt: [u8; 16]) -> String {
    let mut hash = Sha256::new();
    hash.update(salt);
    hash.update(owner.as_str());
    format!("sha-256:{}:{}", HEXLOWER.encode(&salt), HEXLOWER.encode(&hash.finalize()))
}

#[cfg(test)]
mod tests {
    use fingerpost_wire::{key::Verdict, print::HashKind};
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-24 2:00 UTC);

    fn bare(text: &str) -> BareJid {
        BareJid::new(text).unwrap()
    }

    async fn registry(url: &str) -> Registry {
        let store = Store::open(url, 2, true).await.unwrap();
        let component = bare("xtls.m.lit");
        let visibility = Visibility::Everyone;
        Registry::new(store, RegistryOptions { component, visibility, keys_per_user: 9 })
    }

    async fn add(registry: &Registry, byte: u8) -> Key {
        let print = Print::new(HashKind::Sha256, &[byte; 32]).unwrap();
        let new = NewKey::of_prints(Method::X509, vec![print], "", Source::Self_).unwrap();
        registry.add(&Jid::new("romeo@m.lit/here").unwrap(), &new, NOW).await.unwrap().0
    }

    #[tokio::test]
    async fn lookups_that_wait_at_the_same_time_share_the_query_for_changes() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", dir.path().join("keys.db").display());
        let registry = registry(&url).await;
        assert!(registry.store.must_look());
        let begun = || registry.catching_up.begun.load(Ordering::SeqCst);
        let before = begun();
        let mut lookups: Vec<_> = (0..100).map(|_| Box::pin(registry.catch_up())).collect();
        std::future::poll_fn(|context| {
            for lookup in &mut lookups {
                assert!(lookup.as_mut().poll(context).is_pending());
            }
            std::task::Poll::Ready(())
        })
        .await;
        // The first query had begun when the second lookup came; the next one serves all others.
        for lookup in lookups {
            lookup.await;
        }
        assert_eq!(begun(), before + 2);
        registry.catch_up().await;
        assert_eq!(begun(), before + 3, "nobody else has looked since");
    }

    #[tokio::test]
    async fn what_another_program_changes_is_in_force_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", dir.path().join("keys.db").display());
        let [here, there] = [registry(&url).await, registry(&url).await];
        let (romeo, juliet) = (bare("romeo@m.lit"), bare("juliet@c.lit"));
        for byte in 1..20 {
            let key = add(&here, byte).await;
            let seen = async || {
                let own = here.profile(&romeo).await.unwrap().keys.last().map(|key| key.state);
                let others = here.visible_keys(&juliet, &romeo).await.unwrap();
                assert_eq!(own, others.last().map(|key| key.state));
                own
            };
            assert_eq!(seen().await, Some(State::Active));
            there.store().revoke(key.id, &Actor::Offline, "", NOW).await.unwrap();
            assert_eq!(seen().await, Some(State::Revoked));
            there.store().erase(&romeo, "hash", &Actor::Offline, NOW).await.unwrap();
            assert_eq!(seen().await, None);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn of_several_lookups_at_once_none_misses_what_another_was_told() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", dir.path().join("keys.db").display());
        let [here, there] = [registry(&url).await, registry(&url).await];
        let romeo = bare("romeo@m.lit");
        for byte in 1..60 {
            add(&here, byte).await;
            here.profile(&romeo).await.unwrap();
            there.store().erase(&romeo, "hash", &Actor::Offline, NOW).await.unwrap();
            let lookups: Vec<_> = (0..8)
                .map(|_| {
                    let (here, romeo) = (here.clone(), romeo.clone());
                    tokio::spawn(async move { here.profile(&romeo).await.unwrap().keys.len() })
                })
                .collect();
            for lookup in lookups {
                assert_eq!(lookup.await.unwrap(), 0, "round {byte}");
            }
        }
    }

    #[tokio::test]
    async fn a_revoked_print_stays_revoked_for_its_address_when_all_else_is_deleted() {
        for retire in [false, true] {
            let registry = registry("sqlite::memory:").await;
            let (romeo, juliet) = (bare("romeo@m.lit"), bare("juliet@c.lit"));
            let named = Settings { visibility: Visibility::Listed, allowed: vec![romeo.clone()] };
            registry.set_settings(&juliet, &named, NOW).await.unwrap();
            let (revoked, other) = (add(&registry, 1).await, add(&registry, 2).await);
            registry.store().revoke(revoked.id, &Actor::Offline, "lost", NOW).await.unwrap();
            if retire {
                let retired = registry.retire_account(&romeo, &Actor::Offline, NOW).await.unwrap();
                assert_eq!((retired.keys, retired.named_by), (2, vec![juliet.clone()]));
                assert!(registry.settings(&juliet).await.unwrap().allowed.is_empty());
            } else {
                registry.erase(&romeo, &Actor::Offline, NOW).await.unwrap();
                assert_eq!(registry.settings(&juliet).await.unwrap(), named);
            }
            // The next owner sees nothing.
            assert_eq!(registry.profile(&romeo).await.unwrap().keys, []);
            assert_eq!(registry.store().audit(Some(&romeo), 100).await.unwrap(), []);
            // An offer of the print is an offer of a revoked key, whether it is added again or not.
            let prints = [revoked.prints[0].clone(), other.prints[0].clone()];
            let judged = async |jid: &str| {
                let keys = registry.keys_to_judge(&juliet, &bare(jid), &prints).await.unwrap();
                prints.clone().map(|print| verdict::judge(&keys, None, &print).verdict)
            };
            let (unknown, is_revoked) = (Verdict::Unknown, Verdict::Revoked);
            assert_eq!(judged("romeo@m.lit").await, [is_revoked, unknown]);
            assert_eq!(judged("mercutio@m.lit").await, [unknown, unknown]);
            let again = add(&registry, 1).await;
            assert_eq!(again.state, State::Revoked);
            assert_ne!(again.id, revoked.id);
            assert_eq!(add(&registry, 2).await.state, State::Active);
            // Also a second time.
            registry.erase(&romeo, &Actor::Offline, NOW).await.unwrap();
            assert_eq!(add(&registry, 1).await.state, State::Revoked);
        }
    }

    #[tokio::test]
    async fn the_next_owner_of_an_address_begins_with_nothing_but_its_block() {
        for retire in [false, true] {
            let registry = registry("sqlite::memory:").await;
            let (store, component) = (registry.store(), bare("xtls.m.lit"));
            let romeo = bare("romeo@m.lit");
            let fresh = registry.settings(&romeo).await.unwrap();
            let hidden = Settings {
                visibility: Visibility::Listed,
                allowed: vec![bare("juliet@c.lit"), bare("nurse@c.lit")],
            };
            registry.set_settings(&romeo, &hidden, NOW).await.unwrap();
            add(&registry, 1).await;
            let here = [(jid::FullJid::new("romeo@m.lit/here").unwrap(), 0)];
            store.change_reachable(&component, &here, &[], NOW).await.unwrap();
            store.block(&romeo, "spam", &Actor::Offline, NOW).await.unwrap();
            if retire {
                registry.retire_account(&romeo, &Actor::Offline, NOW).await.unwrap();
            } else {
                registry.erase(&romeo, &Actor::Offline, NOW).await.unwrap();
            }
            assert_eq!(registry.settings(&romeo).await.unwrap(), fresh);
            assert_eq!(store.reachable(&component, NOW, 9).await.unwrap(), []);
            let export = registry.export(&romeo, None, 100_000, NOW).await.unwrap();
            let text = String::from(&export);
            for held in ["<key ", "<entry", "<allow", "nurse", "juliet"] {
                assert!(!text.contains(held), "{held}: {text}");
            }
            let blocks = store.blocks().await.unwrap();
            assert_eq!(blocks, [("romeo@m.lit".to_owned(), "spam".to_owned())], "it is kept");
            // Administrators see the old rows, and a hash in the place of the address.
            let rows = store.audit(None, 100).await.unwrap();
            let has_hash = |text: &str| text.starts_with("sha-256:");
            assert!(rows.len() > 2, "{rows:?}");
            assert!(rows.iter().all(|row| has_hash(&row.owner.to_string())), "{rows:?}");
        }
    }

    #[tokio::test]
    async fn the_end_of_an_account_of_which_nothing_is_held_leaves_no_trace() {
        let registry = registry("sqlite::memory:").await;
        let retired =
            registry.retire_account(&bare("x@m.lit"), &Actor::Offline, NOW).await.unwrap();
        assert_eq!((retired.keys, retired.named_by.len()), (0, 0));
        assert_eq!(registry.store().audit(None, 100).await.unwrap(), []);
    }

    #[tokio::test]
    async fn nothing_about_a_hidden_user_is_at_hand() {
        let registry = registry("sqlite::memory:").await;
        let (romeo, juliet) = (bare("romeo@m.lit"), bare("juliet@c.lit"));
        add(&registry, 1).await;
        let profile = registry.profile(&romeo).await.unwrap();
        assert!(registry.shows(&juliet, &romeo), "a visible profile is answered at once");
        let settings = Settings { visibility: Visibility::Nobody, allowed: Vec::new() };
        registry.set_settings(&romeo, &settings, NOW).await.unwrap();
        registry.profile(&romeo).await.unwrap();
        assert_eq!(registry.profiles.get(&romeo).unwrap().keys, profile.keys, "it is in the cache");
        assert!(!registry.shows(&juliet, &romeo));
        assert_eq!(registry.visible(&juliet, &romeo).await.unwrap(), None);
        assert!(!registry.shows(&juliet, &bare("nobody@m.lit")));
        let refused = registry.visible_key(&juliet, profile.keys[0].id).await.unwrap_err();
        assert!(matches!(refused, StoreError::NotAllowed(NotAllowed::NoSuchKey)));
        let named = Settings { visibility: Visibility::Listed, allowed: vec![juliet.clone()] };
        registry.set_settings(&romeo, &named, NOW).await.unwrap();
        assert_eq!(registry.visible_keys(&juliet, &romeo).await.unwrap(), profile.keys);
        assert_eq!(registry.visible_keys(&bare("eve@c.lit"), &romeo).await.unwrap(), []);
        assert_eq!(
            registry.visible_key(&juliet, profile.keys[0].id).await.unwrap(),
            profile.keys[0]
        );
    }
}
