//! Signatures by the key of a certificate, X.509 or OpenPGP.

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use fingerpost_wire::print::Method;
use time::OffsetDateTime;
use x509_parser::{
    asn1_rs::oid,
    oid_registry::{
        OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519, Oid,
    },
    prelude::{FromDer, X509Certificate},
};

use crate::{material_error::MaterialError, openpgp_certificate};

/// Why a signature is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// The signature is not one of these bytes by this key.
    #[error(
        "the signature does not verify: expected one over the challenge's bytes by the key itself"
    )]
    Mismatch,
    /// The certificate has an unsupported kind of key.
    #[error(
        "expected a certificate with an Ed25519, ECDSA P-256, RSA (2048 to 8192 bits) or ML-DSA key"
    )]
    Algorithm,
    /// The feature `openpgp` is off in this build.
    #[error("this program was built without OpenPGP")]
    WithoutOpenPgp,
}

/// Checks a signature over `message` by the key of some material.
///
/// # Errors
/// [`SignatureError::Mismatch`], [`SignatureError::Algorithm`].
pub fn verify(
    method: Method,
    material: &[u8],
    message: &[u8],
    signature: &[u8],
    now: OffsetDateTime,
) -> Result<(), SignatureError> {
    match method {
        Method::X509 => verify_x509(material, message, signature),
        Method::OpenPgp => {
            let now = u64::try_from(now.unix_timestamp()).unwrap_or(0);
            match openpgp_certificate::verify(material, message, signature, now) {
                Ok(true) => Ok(()),
                Ok(false) => Err(SignatureError::Mismatch),
                Err(MaterialError::WithoutOpenPgp) => Err(SignatureError::WithoutOpenPgp),
                Err(_) => Err(SignatureError::Algorithm),
            }
        }
        Method::Srp => Err(SignatureError::Algorithm),
    }
}

/// ML-DSA as in FIPS 204, without a context (RFC 9881, 2).
const ML_DSA: [(Oid<'static>, &dyn VerificationAlgorithm); 3] = [
    (oid!(2.16.840.1.101.3.4.3.17), &signature::ML_DSA_44),
    (oid!(2.16.840.1.101.3.4.3.18), &signature::ML_DSA_65),
    (oid!(2.16.840.1.101.3.4.3.19), &signature::ML_DSA_87),
];

fn verify_x509(der: &[u8], message: &[u8], signature: &[u8]) -> Result<(), SignatureError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| SignatureError::Algorithm)?;
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
        return Err(SignatureError::Algorithm);
    };
    UnparsedPublicKey::new(algorithm, &key.subject_public_key.data)
        .verify(message, signature)
        .map_err(|_| SignatureError::Mismatch)
}
