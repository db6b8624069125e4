//! Keys, their states, and the allowed changes.
//!
//! A key begins `active`. It ends `superseded`, when its owner adds another one in its place, or `revoked`. Revoked is
//! final, even for a print that is added again. Nothing is overwritten: the [`AuditEvent`] of each change goes to the audit
//! log.
//!
//! | state | add again | replaced | revoke |
//! |---|---|---|---|
//! | active | the same key | superseded | revoked |
//! | superseded | the same key, still superseded | refused | revoked |
//! | revoked | the same key, still revoked, with the new prints | refused | no change |

use std::fmt;

use fingerpost_secure::{
    material::{self, Material},
    material_error::{MATERIAL_MAX, MaterialError},
};
use fingerpost_wire::{
    key::{Assurance, KeyId, State, stamp},
    print::{HashKind, Method, Print},
};
use jid::BareJid;
use time::OffsetDateTime;
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

/// The longest label, in characters: it fits a line of a list.
pub const LABEL_MAX: usize = 64;
/// The longest reason, in characters: one sentence.
pub const REASON_MAX: usize = 256;
/// The most prints of one key: both hashes of a certificate, that of its SPKI, and room.
pub const PRINTS_MAX: usize = 8;

/// The disadvantages of a key of which only a print is known.
pub const PRINT_ONLY: &str = "Only this print of the key is known, not its certificate: the key cannot be proven, is not \
                              recognised by another hash, and a revocation covers this print alone. Add the \
                              certificate itself to have all of it.";

/// The origin of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The owner sent it.
    Self_,
    /// The owner published it in PEP.
    Pep,
    /// An admin added it.
    Admin,
    /// It was in an imported file.
    Import,
}

fingerpost_wire::names!(
    Source,
    "self, pep, admin or import",
    Self_ = "self",
    Pep = "pep",
    Admin = "admin",
    Import = "import"
);

/// A key in the registry. Its public material, if any, is loaded separately.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its name.
    pub id: KeyId,
    /// Its owner.
    pub owner: BareJid,
    /// Its method.
    pub method: Method,
    /// Its prints; at least one.
    pub prints: Vec<Print>,
    /// Whether the certificate itself is stored.
    pub has_material: bool,
    /// The owner's name for it; may be empty.
    pub label: String,
    /// Its state.
    pub state: State,
    /// Its assurance.
    pub assurance: Assurance,
    /// Its origin.
    pub source: Source,
    /// When it was added, to the microsecond.
    pub created: OffsetDateTime,
    /// The end of the certificate's validity. An expired key keeps its state.
    pub expires: Option<OffsetDateTime>,
    /// When it was last changed, to the microsecond.
    pub changed: OffsetDateTime,
    /// The key that replaces it.
    pub replaced_by: Option<KeyId>,
    /// Why it was revoked; may be empty.
    pub reason: String,
}

/// A key to be added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewKey {
    method: Method,
    prints: Vec<Print>,
    material: Option<Vec<u8>>,
    label: String,
    source: Source,
    expires: Option<OffsetDateTime>,
    replaces: Option<KeyId>,
    /// Why its certificate revokes itself, if it does.
    revocation: Option<String>,
    /// How its certificate compares to the stored one.
    stored: StoredMaterial,
}

/// How a sent certificate compares to the stored one of the same key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum StoredMaterial {
    /// Nothing is stored, or it was not looked up.
    #[default]
    Unknown,
    /// It has nothing new.
    Same,
    /// Both together have more.
    Extended,
}

/// Why something cannot be a key of the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Passwords have no prints.
    #[error("keys have the method x509 or openpgp; srp has no keys")]
    Method,
    /// Neither a print nor material.
    #[error("a key needs at least one print, or material")]
    NoPrint,
    /// More than [`PRINTS_MAX`].
    #[error("a key may have at most 8 prints")]
    TooManyPrints,
    /// The owner's own prints differ from those of the certificate.
    #[error("a print given is not that of the material given")]
    WrongPrint,
    /// Only certificates have SPKI prints.
    #[error("only x509 keys have spki-sha-256 prints")]
    Spki,
    /// Too long or with control characters.
    #[error("a label must be at most 64 characters long, without control characters")]
    Label,
    /// Too long or with control characters.
    #[error("a reason must be at most 256 characters long, without control characters")]
    Reason,
}

impl NewKey {
    /// Returns a key with prints only. Repeated prints are stored once.
    ///
    /// # Errors
    /// [`KeyError`] if that cannot be a key.
    pub fn of_prints(
        method: Method,
        prints: Vec<Print>,
        label: &str,
        source: Source,
    ) -> Result<Self, KeyError> {
        if method == Method::Srp {
            return Err(KeyError::Method);
        }
        if method != Method::X509 && prints.iter().any(|p| p.hash() == HashKind::SpkiSha256) {
            return Err(KeyError::Spki);
        }
        let mut once: Vec<Print> = Vec::with_capacity(prints.len());
        for print in prints {
            if !once.iter().any(|known| known.same_bytes(&print)) {
                once.push(print);
            }
        }
        match once.len() {
            0 => return Err(KeyError::NoPrint),
            1..=PRINTS_MAX => {}
            _ => return Err(KeyError::TooManyPrints),
        }
        Ok(Self {
            method,
            prints: once,
            material: None,
            label: check_label(label)?,
            source,
            expires: None,
            replaces: None,
            revocation: None,
            stored: StoredMaterial::Unknown,
        })
    }

    /// Returns a key with a certificate. `prints` are those that the owner has stated.
    ///
    /// # Errors
    /// [`KeyError::WrongPrint`] if a print is not the material's; [`KeyError::Label`].
    pub fn of_material(
        material: Material,
        prints: &[Print],
        label: &str,
        source: Source,
    ) -> Result<Self, KeyError> {
        let belongs = |print: &Print| material.prints.iter().any(|own| own.same_bytes(print));
        if !prints.iter().all(belongs) {
            return Err(KeyError::WrongPrint);
        }
        Ok(Self {
            method: material.method,
            prints: material.prints,
            material: Some(material.bytes),
            label: check_label(label)?,
            source,
            expires: material.expires,
            replaces: None,
            revocation: material.revocation,
            stored: StoredMaterial::Unknown,
        })
    }

    /// Names the owner's active key that this one replaces.
    pub fn replacing(mut self, id: Option<KeyId>) -> Self {
        self.replaces = id;
        self
    }

    /// Returns its prints.
    pub fn prints(&self) -> &[Print] {
        &self.prints
    }

    /// Returns its certificate, if there is one.
    pub fn material(&self) -> Option<&[u8]> {
        self.material.as_deref()
    }

    /// Returns the note for its owner after it was added as `key`: that no session can use it and why, that it has
    /// expired, or what is missing without a certificate.
    pub fn note(&self, key: &Key, now: OffsetDateTime) -> Option<String> {
        let remark = self.material().and_then(|bytes| material::remark(self.method, bytes, now));
        let expired = key.expires.filter(|_| key.is_expired(now));
        let expired = expired.map(|end| {
            format!("This key has expired, at {}: prolong it, or replace it.", stamp(end))
        });
        let print_only = (!key.has_material).then(|| PRINT_ONLY.to_owned());
        let notes: Vec<String> = [remark, expired, print_only].into_iter().flatten().collect();
        (!notes.is_empty()).then(|| notes.join(" "))
    }

    /// Returns the same key merged with `stored`, the stored certificate.
    ///
    /// # Errors
    /// [`MaterialError`] if they are not of one key, or are too large together.
    pub(super) fn with_stored(&self, stored: &[u8]) -> Result<Self, MaterialError> {
        let Some(sent) = self.material.as_deref().filter(|_| self.method == Method::OpenPgp) else {
            return Ok(self.clone());
        };
        Ok(match Material::merged(stored, sent)? {
            None => Self { stored: StoredMaterial::Same, ..self.clone() },
            Some(merged) => Self {
                material: Some(merged.bytes),
                expires: merged.expires,
                revocation: merged.revocation,
                stored: StoredMaterial::Extended,
                ..self.clone()
            },
        })
    }

    /// Returns the key in `own` that is this one, the active one first. Several may match if they were added by
    /// different prints.
    pub(super) fn known<'a>(&self, own: &'a [Key]) -> Option<&'a Key> {
        own.iter().filter(|key| self.is(key)).min_by_key(|key| key.state != State::Active)
    }

    /// Returns whether `key` is this one. A certificate renewed for the same key pair has the same SPKI and still is
    /// another key.
    fn is(&self, key: &Key) -> bool {
        let known = |print: &Print| key.prints.iter().any(|own| own.same_bytes(print));
        let whole = |print: &&Print| print.hash() != HashKind::SpkiSha256;
        let same_whole =
            |print: &Print| key.prints.iter().filter(whole).any(|own| own.same_bytes(print));
        self.method == key.method
            && (self.prints.iter().all(known) || self.prints.iter().filter(whole).any(same_whole))
    }

    /// Returns whether `key` shares a print with this one.
    fn touches(&self, key: &Key) -> bool {
        self.prints.iter().any(|print| key.has(print))
    }
}

/// The originator of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    /// A user, for the user's own keys.
    User(BareJid),
    /// An admin, over XMPP.
    Admin(BareJid),
    /// Anyone who can run commands on the machine.
    Offline,
}

impl Actor {
    /// Returns whether this one may change keys of `owner`.
    pub fn may_change(&self, owner: &BareJid) -> bool {
        match self {
            Self::User(jid) => jid == owner,
            Self::Admin(_) | Self::Offline => true,
        }
    }
}

/// A change of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditEvent {
    /// It was added.
    Added,
    /// It was added, and another user already had a key with one of its prints.
    AlsoOwned {
        /// The other owner.
        by: Party,
        /// The other owner's key.
        key: KeyId,
    },
    /// More prints or the certificate became known.
    Completed,
    /// A newer state of its OpenPGP certificate became known.
    Updated,
    /// Another key replaced it.
    Superseded {
        /// The replacement.
        by: KeyId,
    },
    /// It was revoked; the key says why.
    Revoked,
    /// Possession of its private key was shown.
    Proven,
    /// An admin vouched for it.
    Attested,
    /// The owner took it out of use.
    Retired,
    /// It came with an imported file, in its former state.
    Imported,
    /// The owner changed the visibility settings.
    Settings,
    /// Everything held about the owner was deleted.
    Erased,
    /// The same, by an admin: the account is no longer its owner's.
    AccountRetired,
    /// An admin has blocked the owner, a user or a domain.
    Blocked,
    /// An admin has removed that block.
    Unblocked,
}

impl AuditEvent {
    /// Returns the name in the database.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::AlsoOwned { .. } => "also-owned",
            Self::Completed => "completed",
            Self::Updated => "updated",
            Self::Superseded { .. } => "superseded",
            Self::Revoked => "revoked",
            Self::Proven => "proven",
            Self::Attested => "attested",
            Self::Retired => "retired",
            Self::Imported => "imported",
            Self::Settings => "settings",
            Self::Erased => "erased",
            Self::AccountRetired => "account-retired",
            Self::Blocked => "blocked",
            Self::Unblocked => "unblocked",
        }
    }

    /// Returns the other user and the other key that it is about, as [`AuditEvent::of`] takes them.
    pub fn others(&self) -> (Option<&Party>, Option<KeyId>) {
        match self {
            Self::AlsoOwned { by, key } => (Some(by), Some(*key)),
            Self::Superseded { by } => (None, Some(*by)),
            _ => (None, None),
        }
    }

    /// The event of a name in the database, with the other user and key that it is about, if there are any.
    pub fn of(name: &str, other: Option<Party>, other_key: Option<KeyId>) -> Option<Self> {
        Some(match name {
            "added" => Self::Added,
            "completed" => Self::Completed,
            "updated" => Self::Updated,
            "revoked" => Self::Revoked,
            "proven" => Self::Proven,
            "attested" => Self::Attested,
            "retired" => Self::Retired,
            "imported" => Self::Imported,
            "settings" => Self::Settings,
            "erased" => Self::Erased,
            "account-retired" => Self::AccountRetired,
            "blocked" => Self::Blocked,
            "unblocked" => Self::Unblocked,
            "superseded" => Self::Superseded { by: other_key? },
            "also-owned" => Self::AlsoOwned { by: other?, key: other_key? },
            _ => return None,
        })
    }
}

/// A user in the audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Party {
    /// Known by address.
    User(BareJid),
    /// Forgotten on request; the salted hash of the address.
    Erased(String),
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(jid) => f.write_str(jid.as_str()),
            Self::Erased(hash) => f.write_str(hash),
        }
    }
}

/// A row of the audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// Its place in the log; later rows have higher numbers.
    pub seq: i64,
    /// The time.
    pub at: OffsetDateTime,
    /// The owner of the key.
    pub owner: Party,
    /// The originator; `None` for a user that was erased since.
    pub actor: Option<Actor>,
    /// The key, if it is about one.
    pub key: Option<KeyId>,
    /// What happened.
    pub event: AuditEvent,
}

/// The result of adding a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addition {
    /// The owner already has it, maybe superseded or revoked.
    Known {
        /// That key, completed by the new one.
        key: Key,
        /// The change, if any: [`AuditEvent::Completed`], [`AuditEvent::Updated`] or [`AuditEvent::Revoked`].
        event: Option<AuditEvent>,
        /// The key that it replaces.
        superseded: Option<Key>,
    },
    /// It is new.
    Fresh {
        /// The key to be stored.
        key: Key,
        /// The key that it replaces.
        superseded: Option<Key>,
    },
}

/// What is said of a key whose print was revoked before all that was held about its owner was deleted.
const REVOKED_BEFORE: &str = "it was revoked for this address before";

impl Addition {
    /// The same for a key that was revoked for the same address before.
    pub(super) fn of_a_revoked_one(self, now: OffsetDateTime) -> Self {
        let revoked = |key: Key| Key {
            state: State::Revoked,
            reason: REVOKED_BEFORE.to_owned(),
            changed: to_micros(now),
            ..key
        };
        match self {
            Self::Fresh { key, .. } => Self::Fresh { key: revoked(key), superseded: None },
            Self::Known { key, .. } if key.state != State::Revoked => {
                let event = Some(AuditEvent::Revoked);
                Self::Known { key: revoked(key), event, superseded: None }
            }
            known @ Self::Known { .. } => known,
        }
    }

    /// Adds the prints of `new` to a key that is revoked, so that it is revoked by whichever of them it is offered. `own`
    /// are all keys that the owner has ever had. Returns the prints for which the key has no room, without those that
    /// are `kept` elsewhere.
    pub(super) fn with_revoked_prints(
        self,
        new: &NewKey,
        own: &[Key],
        kept: impl Fn(&Print) -> bool,
    ) -> (Self, Vec<Print>) {
        let (mut key, event, superseded) = match self {
            Self::Known { key, event, superseded } if key.state == State::Revoked => {
                (key, event, superseded)
            }
            other => return (other, Vec::new()),
        };
        let is_revoked = |print: &&Print| {
            let revoked = own.iter().filter(|key| key.state == State::Revoked);
            revoked.chain([&key]).any(|key| key.has(print))
        };
        let mut more: Vec<Print> =
            new.prints.iter().filter(|print| !is_revoked(print)).cloned().collect();
        let room = PRINTS_MAX.saturating_sub(key.prints.len()).min(more.len());
        let mut rest = more.split_off(room);
        rest.retain(|print| !kept(print));
        let completed = !more.is_empty() || !rest.is_empty();
        key.prints.extend(more);
        let event = event.or_else(|| completed.then_some(AuditEvent::Completed));
        (Self::Known { key, event, superseded }, rest)
    }
}

/// Why a change is not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAllowed {
    /// The key does not exist, or belongs to another user: these look the same.
    #[error("no such key")]
    NoSuchKey,
    /// The key to be replaced is not an active key of the owner.
    #[error("the key to replace is not one of the owner's active keys")]
    NotReplaceable,
    /// Superseded and revoked keys cannot change.
    #[error("the key is no longer active")]
    NotActive,
    /// The owner has the most active keys.
    #[error("the limit of {0} active keys is reached; revoke or replace one")]
    TooManyKeys(u32),
    /// The owner has had the most keys that are remembered for one user.
    #[error(
        "the limit of {0} keys, those that are no longer active among them, is reached; only erasing everything held about you makes room"
    )]
    TooManyEver(u32),
    /// The owner's certificates take the most room.
    #[error(
        "the limit of {0} KiB for all your certificates, those that are no longer active among them, is reached; only erasing everything held about you makes room"
    )]
    TooMuch(u64),
    /// Too many changes.
    #[error(
        "you have made too many changes recently: wait some minutes; keys can be revoked at any time"
    )]
    TooManyChanges,
    /// The addresses of the users who may see the keys take too much room.
    #[error("the addresses of the users who may see your keys are too long together")]
    TooManyNamed,
    /// A certificate that revokes itself, for an unknown key.
    #[error("this OpenPGP certificate carries its own revocation, and is not one of your keys")]
    CarriesRevocation,
    /// A certificate that is too large together with the stored one.
    #[error("{0}")]
    Material(MaterialError),
}

/// How many keys a user may have in all for each that may be active. It bounds alternating add and revoke, and leaves
/// ten years for a monthly rotation of one key.
const HISTORY_FACTOR: u32 = 4;
/// The bytes of certificates that a user may have for each key that may be active: twice the largest.
const BYTES_FACTOR: u64 = 2 * MATERIAL_MAX as u64;

impl Key {
    /// Returns whether one of its prints has these bytes.
    pub fn has(&self, print: &Print) -> bool {
        self.prints.iter().any(|own| own.same_bytes(print))
    }

    /// Returns the key in its state at a moment: an expired active key counts as superseded.
    pub fn as_of(&self, now: OffsetDateTime) -> Self {
        let state = if self.is_expired(now) { State::Superseded } else { self.state };
        Self { state, ..self.clone() }
    }

    /// Returns whether it would be active if its validity had not ended.
    pub fn is_expired(&self, now: OffsetDateTime) -> bool {
        self.state == State::Active && self.expires.is_some_and(|end| end <= now)
    }

    /// Returns the state for people, which includes `expired`.
    pub fn state_shown(&self, now: OffsetDateTime) -> &'static str {
        if self.is_expired(now) { "expired" } else { self.state.as_str() }
    }

    /// Decides the result of adding `new` for `owner`. `own` are all keys that the owner has ever had; `limit` is how
    /// many may be active.
    ///
    /// A revoked key is returned if it shares any print with the new one, including the SPKI: a revoked key pair must
    /// not return in a new certificate.
    ///
    /// # Errors
    /// [`NotAllowed`]
    pub fn add(
        owner: &BareJid,
        new: &NewKey,
        own: &[Self],
        limit: u32,
        now: OffsetDateTime,
        id: KeyId,
    ) -> Result<Addition, NotAllowed> {
        let now = to_micros(now);
        let revoked = own.iter().find(|key| key.state == State::Revoked && new.touches(key));
        if let Some(key) = revoked {
            return Ok(Addition::Known { key: key.clone(), event: None, superseded: None });
        }
        let known = new.known(own);
        if let Some(reason) = &new.revocation {
            let mut key = known.ok_or(NotAllowed::CarriesRevocation)?.clone();
            key.complete(new, now);
            key.has_material |= new.material.is_some();
            key.state = State::Revoked;
            key.reason = shortened(reason, REASON_MAX);
            key.changed = now;
            return Ok(Addition::Known { key, event: Some(AuditEvent::Revoked), superseded: None });
        }
        if let Some(known) = known {
            let mut key = known.clone();
            let event = key.complete(new, now);
            let superseded = match new.replaces {
                Some(old) if old != key.id && key.state == State::Active => {
                    let old = own.iter().find(|k| k.id == old).ok_or(NotAllowed::NotReplaceable)?;
                    // A repeated request: this very key replaced it the first time.
                    if old.replaced_by == Some(key.id) {
                        None
                    } else {
                        Some(old.superseded(key.id, now)?)
                    }
                }
                _ => None,
            };
            return Ok(Addition::Known { key, event, superseded });
        }
        let superseded = match new.replaces {
            Some(old) => Some(
                own.iter()
                    .find(|key| key.id == old)
                    .ok_or(NotAllowed::NotReplaceable)?
                    .superseded(id, now)?,
            ),
            None => None,
        };
        let active = own.iter().filter(|key| key.state == State::Active).count()
            - usize::from(superseded.is_some());
        let room = |have: usize, limit: u32| u32::try_from(have).is_ok_and(|have| have < limit);
        if !room(active, limit) {
            return Err(NotAllowed::TooManyKeys(limit));
        }
        let ever = limit.saturating_mul(HISTORY_FACTOR);
        if !room(own.len(), ever) {
            return Err(NotAllowed::TooManyEver(ever));
        }
        let key = Self {
            id,
            owner: owner.clone(),
            method: new.method,
            prints: new.prints.clone(),
            has_material: new.material.is_some(),
            label: new.label.clone(),
            state: State::Active,
            assurance: Assurance::Asserted,
            source: new.source,
            created: now,
            expires: new.expires.map(to_micros),
            changed: now,
            replaced_by: None,
            reason: String::new(),
        };
        Ok(Addition::Fresh { key, superseded })
    }

    /// Revokes the key; `None` if it is revoked already.
    ///
    /// # Errors
    /// [`NotAllowed::NoSuchKey`] if `by` may not revoke it.
    pub fn revoke(
        &self,
        by: &Actor,
        reason: &str,
        now: OffsetDateTime,
    ) -> Result<Option<Self>, NotAllowed> {
        if !by.may_change(&self.owner) {
            return Err(NotAllowed::NoSuchKey);
        }
        Ok((self.state != State::Revoked).then(|| Self {
            state: State::Revoked,
            changed: to_micros(now),
            reason: reason.to_owned(),
            ..self.clone()
        }))
    }

    /// Takes the key out of use, without a replacement.
    ///
    /// # Errors
    /// [`NotAllowed::NoSuchKey`] if `by` may not change it; [`NotAllowed::NotActive`] if it is not active.
    pub fn retire(&self, by: &Actor, now: OffsetDateTime) -> Result<Self, NotAllowed> {
        if !by.may_change(&self.owner) {
            return Err(NotAllowed::NoSuchKey);
        }
        if self.state != State::Active {
            return Err(NotAllowed::NotActive);
        }
        Ok(Self { state: State::Superseded, changed: to_micros(now), ..self.clone() })
    }

    /// Raises the assurance of the key to `to`; `None` if it is that high already.
    ///
    /// # Errors
    /// [`NotAllowed::NoSuchKey`] if `by` may not change it; [`NotAllowed::NotActive`] if it is not active.
    pub fn raise(
        &self,
        by: &Actor,
        to: Assurance,
        now: OffsetDateTime,
    ) -> Result<Option<Self>, NotAllowed> {
        if !by.may_change(&self.owner)
            || (to == Assurance::Attested && matches!(by, Actor::User(_)))
        {
            return Err(NotAllowed::NoSuchKey);
        }
        if self.state != State::Active {
            return Err(NotAllowed::NotActive);
        }
        Ok((self.assurance < to).then(|| Self {
            assurance: to,
            changed: to_micros(now),
            ..self.clone()
        }))
    }

    /// Checks that there is room for `more` bytes of certificates beside the `stored` of the same owner, who may have
    /// `limit` active keys.
    ///
    /// # Errors
    /// [`NotAllowed::TooMuch`]
    pub fn check_room(stored: u64, more: usize, limit: u32) -> Result<(), NotAllowed> {
        let most = u64::from(limit).saturating_mul(BYTES_FACTOR);
        if stored.saturating_add(more as u64) > most {
            return Err(NotAllowed::TooMuch(most / 1024));
        }
        Ok(())
    }

    /// Takes over what `new` adds to the key. An OpenPGP certificate may grow at any time, because its fingerprint
    /// binds all of it. Otherwise only a merely asserted key without a certificate is completed: a proof or an
    /// attestation was about its earlier prints.
    fn complete(&mut self, new: &NewKey, now: OffsetDateTime) -> Option<AuditEvent> {
        if self.has_material {
            if new.stored != StoredMaterial::Extended {
                return None;
            }
            self.expires = new.expires.map(to_micros);
            self.changed = now;
            return Some(AuditEvent::Updated);
        }
        let is_bound = self.method == Method::OpenPgp || self.assurance == Assurance::Asserted;
        if self.state != State::Active || !is_bound {
            return None;
        }
        let more: Vec<_> = new.prints.iter().filter(|print| !self.has(print)).cloned().collect();
        if (more.is_empty() && new.material.is_none())
            || self.prints.len() + more.len() > PRINTS_MAX
        {
            return None;
        }
        if new.material.is_some() {
            // A print that is not the certificate's does not belong to this key.
            if !self.prints.iter().all(|own| new.prints.iter().any(|p| p.same_bytes(own))) {
                return None;
            }
            self.prints = new.prints.clone();
            self.has_material = true;
            self.expires = new.expires.map(to_micros);
        } else {
            self.prints.extend(more);
        }
        self.changed = now;
        Some(AuditEvent::Completed)
    }

    fn superseded(&self, by: KeyId, now: OffsetDateTime) -> Result<Self, NotAllowed> {
        if self.state != State::Active {
            return Err(NotAllowed::NotReplaceable);
        }
        Ok(Self { state: State::Superseded, changed: now, replaced_by: Some(by), ..self.clone() })
    }
}

/// The visibility of a user's keys. The owner always sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Visibility {
    /// Everyone who may use the service.
    #[default]
    Everyone,
    /// Users of the same domain.
    Local,
    /// Users that the owner has named.
    Listed,
    /// Nobody.
    Nobody,
}

fingerpost_wire::names!(
    Visibility,
    "everyone, local, listed or nobody",
    Everyone = "everyone",
    Local = "local",
    Listed = "listed",
    Nobody = "nobody"
);

impl Visibility {
    /// Returns whether `asker`, who may use the service, may see the keys of `owner`, who has named `listed`.
    pub fn admits(self, asker: &BareJid, owner: &BareJid, listed: &[BareJid]) -> bool {
        self.admits_if_named(asker, owner, listed.contains(asker))
    }

    /// Returns the same, where it is already known whether `owner` has named `asker`.
    pub fn admits_if_named(self, asker: &BareJid, owner: &BareJid, named: bool) -> bool {
        asker == owner
            || match self {
                Self::Everyone => true,
                Self::Local => asker.domain() == owner.domain(),
                Self::Listed => named,
                Self::Nobody => false,
            }
    }
}

/// A user's visibility settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The users that may see the keys.
    pub visibility: Visibility,
    /// The named users, for [`Visibility::Listed`]; at most [`ALLOWED_MAX`].
    pub allowed: Vec<BareJid>,
}

/// The most users that one may name.
pub const ALLOWED_MAX: usize = 256;
/// The most bytes of their addresses together.
pub const ALLOWED_BYTES: usize = 64 * 1024;

/// Returns a moment in the registry's precision: UTC, to the microsecond.
pub fn to_micros(time: OffsetDateTime) -> OffsetDateTime {
    let time = time.to_offset(time::UtcOffset::UTC);
    time.replace_microsecond(time.microsecond()).unwrap_or(time)
}

/// Checks the reason of a revocation.
///
/// # Errors
/// [`KeyError::Reason`]
pub fn check_reason(reason: &str) -> Result<String, KeyError> {
    plain(reason, REASON_MAX).ok_or(KeyError::Reason)
}

fn check_label(label: &str) -> Result<String, KeyError> {
    plain(label, LABEL_MAX).ok_or(KeyError::Label)
}

/// Returns a stranger's text for one line: without characters that hide, and at most `max` characters long.
fn shortened(text: &str, max: usize) -> String {
    text.chars().filter(|c| !hides(*c)).take(max).collect()
}

/// Returns whether a character could change how the text around it is shown: a control character, a break of lines, or
/// an invisible one, such as those that turn the direction. Joiners are part of words and of emoji.
fn hides(c: char) -> bool {
    let joins = matches!(c, '\u{200C}' | '\u{200D}');
    !joins
        && matches!(
            c.general_category(),
            GeneralCategory::Control
                | GeneralCategory::Format
                | GeneralCategory::LineSeparator
                | GeneralCategory::ParagraphSeparator
        )
}

/// Returns a text for one line of a terminal or a chat message: without invisible characters. `None` if it is too long or
/// has control characters.
fn plain(text: &str, max: usize) -> Option<String> {
    let text = text.trim();
    let fits = text.chars().count() <= max && !text.chars().any(char::is_control);
    fits.then(|| text.chars().filter(|c| !hides(*c)).collect())
}
