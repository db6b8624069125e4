//! Proofs of possession: a challenge, and a signature over it by the key.
//!
//! The signed bytes are `"fingerpost:prove:0" ‖ 0x00 ‖ component JID ‖ 0x00 ‖ bare JID ‖ 0x00 ‖ nonce`: a signature
//! made for another purpose does not fit, and one made for one component, user or challenge is not valid for another.

use std::{sync::Mutex, sync::PoisonError, time::Duration};

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use hashlink::LruCache;
use jid::BareJid;
use pgp::composed::{Deserializable, DetachedSignature, SignedPublicKey};
use time::OffsetDateTime;
use x509_parser::{
    asn1_rs::oid,
    oid_registry::{
        OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519, Oid,
    },
    prelude::{FromDer, X509Certificate},
};

use super::{model::KeyId, openpgp::may_sign};
use crate::print::Method;

/// How long a challenge is valid.
pub const LIFETIME: Duration = Duration::from_secs(300);
/// The most challenges of all users; the oldest is forgotten first.
const MOST: usize = 10_000;
const DOMAIN: &[u8] = b"fingerpost:prove:0";

/// 32 random bytes.
pub type Nonce = [u8; 32];

/// Why a proof is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProofError {
    /// Never requested, used, too old, or another user's.
    #[error("there is no such challenge: ask for one, answer it within 5 minutes and only once")]
    NoChallenge,
    /// The signature is not one of these bytes by this key.
    #[error(
        "the signature does not verify: expected one over the challenge's bytes by the key itself"
    )]
    Signature,
    /// The certificate has an unsupported kind of key.
    #[error(
        "expected a certificate with an Ed25519, ECDSA P-256, RSA (2048 to 8192 bits) or ML-DSA key"
    )]
    Algorithm,
    /// Only prints of the key are known.
    #[error("the registry has only prints of this key: add it with its certificate first")]
    NoMaterial,
}

/// Challenges that wait for their answers, the oldest first. All have the same lifetime, so the oldest expires first
/// too.
#[derive(Debug)]
pub struct Challenges(Mutex<LruCache<KeyId, (BareJid, Nonce, OffsetDateTime)>>);

impl Default for Challenges {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(MOST)))
    }
}

impl Challenges {
    /// Sets a challenge for a key of `owner`, in place of an older one for that key. Returns its expiry.
    pub fn set(
        &self,
        key: KeyId,
        owner: &BareJid,
        nonce: Nonce,
        now: OffsetDateTime,
    ) -> OffsetDateTime {
        let mut challenges = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while challenges.iter().next().is_some_and(|(_, (_, _, expires))| *expires <= now) {
            challenges.remove_lru();
        }
        let expires = now + LIFETIME;
        challenges.insert(key, (owner.clone(), nonce, expires));
        expires
    }

    /// Takes the challenge for a key; it is used up whatever the result.
    ///
    /// # Errors
    /// [`ProofError::NoChallenge`]
    pub fn take(
        &self,
        key: KeyId,
        owner: &BareJid,
        now: OffsetDateTime,
    ) -> Result<Nonce, ProofError> {
        let mut challenges = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match challenges.peek(&key) {
            // A stranger cannot use up another user's challenge.
            Some((user, ..)) if user != owner => return Err(ProofError::NoChallenge),
            _ => {}
        }
        challenges
            .remove(&key)
            .filter(|(_, _, expires)| now < *expires)
            .map(|(_, nonce, _)| nonce)
            .ok_or(ProofError::NoChallenge)
    }
}

/// Returns the bytes to be signed.
pub fn message(component: &BareJid, owner: &BareJid, nonce: &Nonce) -> Vec<u8> {
    [DOMAIN, component.as_str().as_bytes(), owner.as_str().as_bytes(), nonce].join(&0)
}

/// Checks a signature over `message` by the key of some material.
///
/// # Errors
/// [`ProofError::Signature`], [`ProofError::Algorithm`].
pub fn verify(
    method: Method,
    material: &[u8],
    message: &[u8],
    signature: &[u8],
    now: OffsetDateTime,
) -> Result<(), ProofError> {
    match method {
        Method::X509 => verify_x509(material, message, signature),
        Method::OpenPgp => {
            let now = u64::try_from(now.unix_timestamp()).unwrap_or(0);
            verify_openpgp(material, message, signature, now)
        }
        Method::Srp => Err(ProofError::Algorithm),
    }
}

/// ML-DSA as in FIPS 204, without a context (RFC 9881, 2).
const ML_DSA: [(Oid<'static>, &dyn VerificationAlgorithm); 3] = [
    (oid!(2.16.840.1.101.3.4.3.17), &signature::ML_DSA_44),
    (oid!(2.16.840.1.101.3.4.3.18), &signature::ML_DSA_65),
    (oid!(2.16.840.1.101.3.4.3.19), &signature::ML_DSA_87),
];

fn verify_x509(der: &[u8], message: &[u8], signature: &[u8]) -> Result<(), ProofError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| ProofError::Algorithm)?;
    let key = certificate.public_key();
    let kind = &key.algorithm.algorithm;
    let curve = key.algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok());
    let algorithm: &'static dyn VerificationAlgorithm = if *kind == OID_SIG_ED25519 {
        &signature::ED25519
    } else if *kind == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == Some(OID_EC_P256) {
        &signature::ECDSA_P256_SHA256_ASN1
    } else if *kind == OID_PKCS1_RSAENCRYPTION {
        &signature::RSA_PSS_2048_8192_SHA256
    } else if let Some((_, algorithm)) = ML_DSA.iter().find(|(oid, _)| kind == oid) {
        *algorithm
    } else {
        return Err(ProofError::Algorithm);
    };
    UnparsedPublicKey::new(algorithm, &key.subject_public_key.data)
        .verify(message, signature)
        .map_err(|_| ProofError::Signature)
}

/// Checks a signature, binary or armoured, by the primary key or a signing subkey.
fn verify_openpgp(
    certificate: &[u8],
    message: &[u8],
    signature: &[u8],
    now: u64,
) -> Result<(), ProofError> {
    let certificate =
        SignedPublicKey::from_bytes(certificate).map_err(|_| ProofError::Algorithm)?;
    let signature = if signature.starts_with(b"-----BEGIN") {
        DetachedSignature::from_armor_single(signature).map(|(signature, _)| signature)
    } else {
        DetachedSignature::from_bytes(signature)
    };
    let signature = signature.map_err(|_| ProofError::Signature)?;
    if signature.verify(&certificate.primary_key, message).is_ok() {
        return Ok(());
    }
    certificate
        .public_subkeys
        .iter()
        .filter(|subkey| may_sign(subkey, &certificate.primary_key, now).is_ok())
        .any(|subkey| signature.verify(&subkey.key, message).is_ok())
        .then_some(())
        .ok_or(ProofError::Signature)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-24 2:00 UTC);

    #[test]
    fn a_challenge_is_good_once_in_time_and_for_its_user() {
        let challenges = Challenges::default();
        let (romeo, juliet) =
            (BareJid::new("romeo@m.lit").unwrap(), BareJid::new("j@c.lit").unwrap());
        let key = KeyId::new(1);
        assert_eq!(challenges.take(key, &romeo, NOW), Err(ProofError::NoChallenge));
        let end = challenges.set(key, &romeo, [7; 32], NOW);
        assert_eq!(end, NOW + LIFETIME);
        assert_eq!(challenges.take(key, &juliet, NOW), Err(ProofError::NoChallenge));
        assert_eq!(challenges.take(key, &romeo, NOW), Ok([7; 32]));
        assert_eq!(challenges.take(key, &romeo, NOW), Err(ProofError::NoChallenge));
        challenges.set(key, &romeo, [7; 32], NOW);
        assert_eq!(challenges.take(key, &romeo, end), Err(ProofError::NoChallenge));
        challenges.set(key, &romeo, [7; 32], NOW);
        challenges.set(key, &romeo, [8; 32], NOW);
        assert_eq!(challenges.take(key, &romeo, NOW), Ok([8; 32]));
    }

    #[test]
    fn what_is_signed_names_component_user_and_nonce() {
        let component = BareJid::new("xtls.example.org").unwrap();
        let owner = BareJid::new("romeo@m.lit").unwrap();
        let mut expected = b"fingerpost:prove:0\0xtls.example.org\0romeo@m.lit\0".to_vec();
        expected.extend([9; 32]);
        assert_eq!(message(&component, &owner, &[9; 32]), expected);
    }

    #[test]
    fn challenges_do_not_grow_without_bound() {
        let challenges = Challenges::default();
        let romeo = BareJid::new("romeo@m.lit").unwrap();
        for n in 0..2 * MOST as u128 {
            challenges.set(KeyId::new(n), &romeo, [0; 32], NOW);
        }
        assert_eq!(challenges.0.lock().unwrap().len(), MOST);
    }
}
