//! OpenPGP certificates: validity, self-revocation, signing subkeys, and the merging of two states of one certificate.
//!
//! Only what the primary key itself has signed counts. Spec: RFC 9580, 5.2.3.10 (self-signatures) and 10.1.

use std::io::Read;

use fingerpost_wire::print::{HashKind, Print};
use pgp::{
    armor::{BlockType, Dearmor},
    composed::{
        Deserializable, DetachedSignature, SignedKeyDetails, SignedPublicKey, SignedPublicSubKey,
    },
    crypto::{ecc_curve::ECCCurve, hash::HashAlgorithm},
    packet::{Packet, PacketParser, PublicKey, RevocationCode, Signature, SignatureType},
    ser::Serialize,
    types::{
        EcdsaPublicParams, EddsaLegacyPublicParams, KeyDetails, PublicParams, SignedUser,
        SignedUserAttribute, Tag,
    },
};
use time::OffsetDateTime;

use crate::{
    fault::SubkeyFault,
    material_error::{MATERIAL_MAX, MaterialError, OpenPgpFault},
};

/// How many seconds another clock may be ahead.
pub(crate) const SKEW: u64 = 300;

/// A certificate whose packets have at least one valid self-signature.
#[derive(Debug)]
pub struct Certificate {
    inner: SignedPublicKey,
    /// When its primary key was made.
    pub created: OffsetDateTime,
    /// The end of its validity.
    pub expires: Option<OffsetDateTime>,
    /// Why it revokes itself, if it does; may be empty.
    pub revocation: Option<String>,
    /// Whether all self-signatures use a hash that can be forged.
    weak: bool,
}

/// The result of the search for the maker of a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signer {
    /// The primary key, or a subkey that may sign.
    Allowed,
    /// A subkey that may not sign.
    Subkey(SubkeyFault),
    /// No key of the certificate.
    Nobody,
}

impl Certificate {
    /// Reads the packets of one certificate.
    pub fn read(bytes: &[u8]) -> Result<Self, MaterialError> {
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
        let key = &inner.primary_key;
        if let Some(kind) = unknown_kind(key.public_params()) {
            return Err(MaterialError::OpenPgp(OpenPgpFault::Kind(kind)));
        }
        let created = OffsetDateTime::from(std::time::SystemTime::from(key.created_at()));
        let own = self_signatures(&inner);
        let newest = own.iter().copied().max_by_key(|signature| rank(signature));
        let newest = newest.ok_or(MaterialError::OpenPgp(OpenPgpFault::Unsigned))?;
        let expires =
            validity(newest).map(|seconds| created + std::time::Duration::from_secs(seconds));
        let weak = own.iter().all(|signature| is_weak(signature));
        let revocation = revocation(&inner);
        Ok(Self { created, expires, weak, revocation, inner })
    }

    /// Checks that the key is not from the future. An expired key is no error here, because it can be prolonged.
    ///
    /// # Errors
    /// [`OpenPgpFault::Future`]
    pub fn check(&self, now: OffsetDateTime) -> Result<(), OpenPgpFault> {
        if self.created > now + std::time::Duration::from_secs(SKEW) {
            return Err(OpenPgpFault::Future(self.created));
        }
        Ok(())
    }

    /// Returns whether every self-signature uses a hash with known collisions.
    ///
    /// # Security
    /// The primary key is known by its fingerprint and needs no self-signature. A subkey that is bound by such a
    /// signature does not count.
    pub(crate) fn is_weak(&self) -> bool {
        self.weak
    }

    /// Finds the key that has made a signature over `message`, and whether it may sign at `now` (seconds of Unix time).
    pub(crate) fn signer(&self, signature: &DetachedSignature, message: &[u8], now: u64) -> Signer {
        let primary = &self.inner.primary_key;
        if signature.verify(primary, message).is_ok() {
            return Signer::Allowed;
        }
        let mut subkeys = self.inner.public_subkeys.iter();
        let subkey = subkeys.find(|subkey| signature.verify(&subkey.key, message).is_ok());
        match subkey.map(|subkey| may_sign(subkey, primary, now)) {
            Some(Ok(())) => Signer::Allowed,
            Some(Err(fault)) => Signer::Subkey(fault),
            None => Signer::Nobody,
        }
    }

    /// Returns the fingerprint of the primary key.
    pub(super) fn print(&self) -> Result<Print, MaterialError> {
        let fingerprint = self.inner.primary_key.fingerprint();
        let hash = match fingerprint.as_bytes().len() {
            20 => HashKind::Sha1,
            _ => HashKind::Sha256,
        };
        Print::new(hash, fingerprint.as_bytes())
            .map_err(|_| MaterialError::OpenPgp(OpenPgpFault::Version))
    }

    /// Merges two states of one key's certificate. Nothing that the key has signed is lost, least of all a revocation.
    /// If there is not enough room, older signatures give way to newer ones that replace them.
    pub(super) fn merge(self, other: Self) -> Result<(Self, Vec<u8>), MaterialError> {
        let mut inner = self.union(other)?;
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

    /// Returns the merged certificate for a verdict, not for storage, so its size does not matter.
    ///
    /// # Errors
    /// [`OpenPgpFault::AnotherKey`]
    pub fn with(self, other: Self) -> Result<Self, MaterialError> {
        Self::of(self.union(other)?)
    }

    fn union(self, other: Self) -> Result<SignedPublicKey, MaterialError> {
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
        Ok(inner)
    }
}

/// Returns a certificate with only the parts that its own key has signed.
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
    // Parts that nothing valid binds to the key are left out.
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

/// Removes signatures that a newer one of the same kind replaces; revocations stay.
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

/// Ranks signatures: later ones count more; of two from the same second, the one with the longer validity.
fn rank(signature: &Signature) -> (u32, u64) {
    let created = signature.created().map_or(0, |time| time.as_secs());
    (created, validity(signature).unwrap_or(u64::MAX))
}

/// Returns how long after the key's creation a signature declares it valid; `None` for ever.
fn validity(signature: &Signature) -> Option<u64> {
    signature.key_expiration_time().map(|time| u64::from(time.as_secs())).filter(|s| *s > 0)
}

/// Returns the valid self-signatures of the primary key and its user IDs.
fn self_signatures(certificate: &SignedPublicKey) -> Vec<&Signature> {
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
    direct.chain(users).collect()
}

/// Returns whether a signature uses a hash with known collisions.
fn is_weak(signature: &Signature) -> bool {
    use HashAlgorithm::{Md5, Ripemd160, Sha1};
    signature.hash_alg().is_none_or(|hash| matches!(hash, Md5 | Sha1 | Ripemd160))
}

/// Returns the kind of a key whose signatures cannot be checked here.
fn unknown_kind(params: &PublicParams) -> Option<&'static str> {
    let curve = |curve: &ECCCurve| match curve {
        ECCCurve::BrainpoolP256r1 => "brainpoolP256r1",
        ECCCurve::BrainpoolP384r1 => "brainpoolP384r1",
        ECCCurve::BrainpoolP512r1 => "brainpoolP512r1",
        _ => "on an unknown curve",
    };
    match params {
        PublicParams::ECDSA(EcdsaPublicParams::Unsupported { curve: of, .. })
        | PublicParams::EdDSALegacy(EddsaLegacyPublicParams::Unsupported { curve: of, .. }) => {
            Some(curve(of))
        }
        PublicParams::Elgamal(_) => Some("ElGamal"),
        PublicParams::Unknown { .. } => Some("of an unknown algorithm"),
        _ => None,
    }
}

/// Returns the primary key's own revocations among packets, wherever they stand. The library takes one at the end of a
/// certificate for a signature of the last subkey, and leaves it out.
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

/// Returns why a certificate revokes itself, if it does.
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

/// Checks that a subkey is bound to its primary key for signing, and at `now` (seconds of Unix time) neither revoked
/// nor expired.
///
/// # Errors
/// [`SubkeyFault`]
pub(crate) fn may_sign(
    subkey: &SignedPublicSubKey,
    primary: &PublicKey,
    now: u64,
) -> Result<(), SubkeyFault> {
    let of_type = |typ| subkey.signatures.iter().filter(move |s| s.typ() == Some(typ));
    if of_type(SignatureType::SubkeyRevocation).next().is_some() {
        return Err(SubkeyFault::Revoked);
    }
    let valid = |s: &&Signature| s.verify_subkey_binding(primary, &subkey.key).is_ok();
    let bindings: Vec<_> = of_type(SignatureType::SubkeyBinding).filter(valid).collect();
    let strong = bindings.iter().filter(|s| !is_weak(s));
    let binding = strong.max_by_key(|s| rank(s)).ok_or(match bindings.is_empty() {
        true => SubkeyFault::Unbound,
        false => SubkeyFault::WeakHash,
    })?;
    // The subkey must also confirm the primary key. Otherwise one could claim the signatures of another's subkey.
    let back = binding.embedded_signature();
    let mutual = back.is_some_and(|s| s.verify_primary_key_binding(&subkey.key, primary).is_ok());
    if !mutual || !binding.key_flags().sign() {
        return Err(SubkeyFault::Unbound);
    }
    let created = u64::from(subkey.key.created_at().as_secs());
    if created > now + SKEW {
        return Err(SubkeyFault::Future);
    }
    if validity(binding).is_some_and(|seconds| now >= created + seconds) {
        return Err(SubkeyFault::Expired);
    }
    Ok(())
}

/// Returns whether a signature, binary or armoured, is one over `message` by the primary key or a subkey that may sign at
/// `now`.
pub(crate) fn verify(
    certificate: &[u8],
    message: &[u8],
    signature: &[u8],
    now: u64,
) -> Result<bool, MaterialError> {
    let SignedPublicKey { primary_key, public_subkeys, .. } =
        SignedPublicKey::from_bytes(certificate)
            .map_err(|_| MaterialError::OpenPgp(OpenPgpFault::Packets))?;
    let signature = if signature.starts_with(b"-----BEGIN") {
        DetachedSignature::from_armor_single(signature).map(|(signature, _)| signature)
    } else {
        DetachedSignature::from_bytes(signature)
    };
    let Ok(signature) = signature else { return Ok(false) };
    let by_subkey = |subkey: &SignedPublicSubKey| {
        may_sign(subkey, &primary_key, now).is_ok()
            && signature.verify(&subkey.key, message).is_ok()
    };
    Ok(signature.verify(&primary_key, message).is_ok() || public_subkeys.iter().any(by_subkey))
}

/// Returns the packets in an armoured certificate.
pub(crate) fn dearmored(block: &[u8]) -> Result<Vec<u8>, MaterialError> {
    let mut dearmor = Dearmor::new(block);
    let mut packets = Vec::new();
    let read = dearmor.read_to_end(&mut packets);
    read.map_err(|_| MaterialError::OpenPgp(OpenPgpFault::Armour))?;
    match dearmor.typ {
        Some(BlockType::PublicKey) => Ok(packets),
        _ => Err(MaterialError::OpenPgp(OpenPgpFault::Label)),
    }
}
