//! OpenPGP certificates: until when one is valid, whether it revokes itself, which keys of it may sign; and two states of
//! one certificate made one.
//!
//! Only what the primary key itself has signed counts. Spec: RFC 9580, 5.2.3.10 (self-signatures) and 10.1.

use pgp::{
    composed::{Deserializable, SignedKeyDetails, SignedPublicKey, SignedPublicSubKey},
    packet::{Packet, PacketParser, PublicKey, RevocationCode, Signature, SignatureType},
    ser::Serialize,
    types::{KeyDetails, SignedUser, SignedUserAttribute, Tag},
};
use time::OffsetDateTime;

use super::material::{MATERIAL_MAX, MaterialError, OpenPgpFault};
use crate::print::{HashKind, Print};

/// A certificate in whose packets there is at least one valid self-signature.
#[derive(Debug)]
pub(super) struct Certificate {
    inner: SignedPublicKey,
    /// The end of its validity.
    pub(super) expires: Option<OffsetDateTime>,
    /// Why it revokes itself, if it does; perhaps without words.
    pub(super) revocation: Option<String>,
}

impl Certificate {
    /// Reads the packets of one certificate.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, MaterialError> {
        let unreadable = |_| MaterialError::OpenPgp(OpenPgpFault::Packets);
        let mut all = SignedPublicKey::from_bytes_many(bytes).map_err(unreadable)?;
        let mut inner =
            all.next().ok_or(MaterialError::OpenPgp(OpenPgpFault::NoKey))?.map_err(unreadable)?;
        if all.next().is_some() {
            return Err(MaterialError::Several);
        }
        let stated = revocations(bytes, &inner.primary_key);
        add_signatures(&mut inner.details.revocation_signatures, stated);
        Self::of(inner)
    }

    fn of(inner: SignedPublicKey) -> Result<Self, MaterialError> {
        let expires = expiry(&inner)?;
        let revocation = revocation(&inner);
        Ok(Self { inner, expires, revocation })
    }

    /// The fingerprint of the primary key.
    pub(super) fn print(&self) -> Result<Print, MaterialError> {
        let fingerprint = self.inner.primary_key.fingerprint();
        let hash = match fingerprint.as_bytes().len() {
            20 => HashKind::Sha1,
            _ => HashKind::Sha256,
        };
        Print::new(hash, fingerprint.as_bytes())
            .map_err(|_| MaterialError::OpenPgp(OpenPgpFault::Version))
    }

    /// What is known of one key from two states of its certificate. Nothing that the key has signed is lost, above all no
    /// revocation; where there is no room for all, older signatures that newer ones replace give way.
    pub(super) fn merge(self, other: Self) -> Result<(Self, Vec<u8>), MaterialError> {
        if self.inner.primary_key != other.inner.primary_key {
            return Err(MaterialError::OpenPgp(OpenPgpFault::AnotherKey));
        }
        let mut inner = own_part(self.inner);
        let more = own_part(other.inner);
        let details = &mut inner.details;
        add_signatures(&mut details.revocation_signatures, more.details.revocation_signatures);
        add_signatures(&mut details.direct_signatures, more.details.direct_signatures);
        for user in more.details.users {
            match details.users.iter_mut().find(|known| known.id == user.id) {
                Some(known) => add_signatures(&mut known.signatures, user.signatures),
                None => details.users.push(user),
            }
        }
        for attribute in more.details.user_attributes {
            match details.user_attributes.iter_mut().find(|known| known.attr == attribute.attr) {
                Some(known) => add_signatures(&mut known.signatures, attribute.signatures),
                None => details.user_attributes.push(attribute),
            }
        }
        for subkey in more.public_subkeys {
            match inner.public_subkeys.iter_mut().find(|known| known.key == subkey.key) {
                Some(known) => add_signatures(&mut known.signatures, subkey.signatures),
                None => inner.public_subkeys.push(subkey),
            }
        }
        let written = |inner: &SignedPublicKey| {
            inner.to_bytes().map_err(|_| MaterialError::OpenPgp(OpenPgpFault::Packets))
        };
        let mut bytes = written(&inner)?;
        if bytes.len() > MATERIAL_MAX {
            inner.details.user_attributes.clear();
            keep_newest(&mut inner);
            bytes = written(&inner)?;
        }
        if bytes.len() > MATERIAL_MAX {
            return Err(MaterialError::MergedTooLarge);
        }
        Ok((Self::of(inner)?, bytes))
    }
}

/// A certificate with what its own key has signed alone.
fn own_part(certificate: SignedPublicKey) -> SignedPublicKey {
    let SignedPublicKey { primary_key: key, details, public_subkeys } = certificate;
    let keeps = |s: &Signature| s.verify_key(&key).is_ok();
    let SignedKeyDetails { revocation_signatures, direct_signatures, users, user_attributes } =
        details;
    let users = users.into_iter().map(|user| {
        let valid = |s: &Signature| s.verify_certification(&key, Tag::UserId, &user.id).is_ok();
        let signatures = user.signatures.iter().filter(|s| valid(s)).cloned().collect();
        SignedUser::new(user.id, signatures)
    });
    let user_attributes = user_attributes.into_iter().map(|user| {
        let valid =
            |s: &Signature| s.verify_certification(&key, Tag::UserAttribute, &user.attr).is_ok();
        let signatures = user.signatures.iter().filter(|s| valid(s)).cloned().collect();
        SignedUserAttribute::new(user.attr, signatures)
    });
    let public_subkeys = public_subkeys.into_iter().map(|subkey| {
        let valid = |s: &Signature| s.verify_subkey_binding(&key, &subkey.key).is_ok();
        let signatures = subkey.signatures.iter().filter(|s| valid(s)).cloned().collect();
        SignedPublicSubKey { key: subkey.key, signatures }
    });
    // What nothing valid binds to the key is left out.
    let details = SignedKeyDetails {
        revocation_signatures: revocation_signatures.into_iter().filter(keeps).collect(),
        direct_signatures: direct_signatures.into_iter().filter(keeps).collect(),
        users: users.filter(|user| !user.signatures.is_empty()).collect(),
        user_attributes: user_attributes.filter(|user| !user.signatures.is_empty()).collect(),
    };
    let public_subkeys = public_subkeys.filter(|subkey| !subkey.signatures.is_empty()).collect();
    SignedPublicKey { primary_key: key, details, public_subkeys }
}

fn add_signatures(known: &mut Vec<Signature>, more: Vec<Signature>) {
    for signature in more {
        if !known.contains(&signature) {
            known.push(signature);
        }
    }
}

/// Leaves out signatures that a newer one of the same kind replaces; revocations stay.
fn keep_newest(certificate: &mut SignedPublicKey) {
    let thin = |signatures: &mut Vec<Signature>| {
        let newest =
            signatures.iter().filter(|s| !is_revocation(s)).max_by_key(|s| rank(s)).cloned();
        signatures.retain(|s| is_revocation(s) || Some(s) == newest.as_ref());
    };
    thin(&mut certificate.details.direct_signatures);
    certificate.details.users.iter_mut().for_each(|user| thin(&mut user.signatures));
    certificate.public_subkeys.iter_mut().for_each(|subkey| thin(&mut subkey.signatures));
}

fn is_revocation(signature: &Signature) -> bool {
    matches!(
        signature.typ(),
        Some(
            SignatureType::KeyRevocation
                | SignatureType::SubkeyRevocation
                | SignatureType::CertRevocation
        )
    )
}

/// Later signatures count before earlier ones; of two that were made in the same second, the longer validity.
fn rank(signature: &Signature) -> (u32, u64) {
    let created = signature.created().map_or(0, |time| time.as_secs());
    (created, validity(signature).unwrap_or(u64::MAX))
}

/// For how long after a key was made a signature says that it is valid; `None` for ever.
fn validity(signature: &Signature) -> Option<u64> {
    signature.key_expiration_time().map(|time| u64::from(time.as_secs())).filter(|s| *s > 0)
}

/// The end of validity, by the newest self-signature that says something of it.
fn expiry(certificate: &SignedPublicKey) -> Result<Option<OffsetDateTime>, MaterialError> {
    let key = &certificate.primary_key;
    let details = &certificate.details;
    let direct = details
        .direct_signatures
        .iter()
        .filter(|s| s.typ() == Some(SignatureType::Key) && s.verify_key(key).is_ok());
    let users = details.users.iter().flat_map(|user| {
        let valid = |s: &&Signature| s.verify_certification(key, Tag::UserId, &user.id).is_ok();
        user.signatures.iter().filter(|s| s.is_certification() && !is_revocation(s)).filter(valid)
    });
    let newest = direct
        .chain(users)
        .max_by_key(|signature| rank(signature))
        .ok_or(MaterialError::OpenPgp(OpenPgpFault::Unsigned))?;
    let created = OffsetDateTime::from(std::time::SystemTime::from(key.created_at()));
    Ok(validity(newest).map(|seconds| created + std::time::Duration::from_secs(seconds)))
}

/// The revocations of the primary key by itself among packets, wherever they stand: where one was put at the end of a
/// certificate, the library takes it for one of the last subkey's signatures and leaves it out.
fn revocations(bytes: &[u8], key: &PublicKey) -> Vec<Signature> {
    PacketParser::new(bytes)
        .filter_map(Result::ok)
        .filter_map(|packet| match packet {
            Packet::Signature(signature) => Some(signature),
            _ => None,
        })
        .filter(|s| s.typ() == Some(SignatureType::KeyRevocation) && s.verify_key(key).is_ok())
        .collect()
}

/// Why a certificate revokes itself, if it does.
fn revocation(certificate: &SignedPublicKey) -> Option<String> {
    let key = &certificate.primary_key;
    let revokes =
        |s: &&Signature| s.typ() == Some(SignatureType::KeyRevocation) && s.verify_key(key).is_ok();
    let signature = certificate.details.revocation_signatures.iter().find(revokes)?;
    let why = match signature.revocation_reason_code() {
        Some(RevocationCode::KeySuperseded) => "superseded",
        Some(RevocationCode::KeyCompromised) => "compromised",
        Some(RevocationCode::KeyRetired) => "retired",
        _ => "",
    };
    let words = signature.revocation_reason_string().map(|text| String::from_utf8_lossy(text));
    let words = words.as_deref().map(str::trim).unwrap_or_default();
    Some(match (why, words) {
        ("", words) => words.to_owned(),
        (why, "") => why.to_owned(),
        (why, words) => format!("{why}: {words}"),
    })
}

/// Whether a subkey is bound to its primary key, for signing, and at `now` (seconds of Unix time) neither revoked nor
/// expired.
pub(crate) fn may_sign(subkey: &SignedPublicSubKey, primary: &PublicKey, now: u64) -> bool {
    let of_type = |typ| subkey.signatures.iter().filter(move |s| s.typ() == Some(typ));
    if of_type(SignatureType::SubkeyRevocation).next().is_some() {
        return false;
    }
    let valid = |s: &&Signature| s.verify_subkey_binding(primary, &subkey.key).is_ok();
    let newest = of_type(SignatureType::SubkeyBinding).filter(valid).max_by_key(|s| rank(s));
    let Some(binding) = newest else { return false };
    let created = u64::from(subkey.key.created_at().as_secs());
    let alive = validity(binding).is_none_or(|seconds| now < created + seconds);
    // The subkey must say too that it belongs to the primary key, or one could claim the signatures of another's.
    let back = binding.embedded_signature();
    alive
        && binding.key_flags().sign()
        && back.is_some_and(|s| s.verify_primary_key_binding(&subkey.key, primary).is_ok())
}
