//! X.509 certificates that no session can use, and why.
//!
//! Peers check a certificate's form and its key with webpki and the algorithms of the TLS provider. This module finds
//! what these refuse, and names it, before a handshake fails over it.

use aws_lc_rs::signature::{self, ParsedPublicKey, VerificationAlgorithm};
use rustls::{
    pki_types::{AlgorithmIdentifier, CertificateDer, alg_id},
    server::ParsedCertificate,
};
use x509_parser::{
    asn1_rs::Tag,
    prelude::{FromDer, X509Certificate},
    public_key::PublicKey,
    x509::{SubjectPublicKeyInfo, X509Version},
};

use crate::der::der_header;

/// Why no session can use a certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unusable {
    /// An old form, without extensions.
    #[error("it is an X.509 certificate of version {0}, expected version 3")]
    Version(u32),
    /// An unknown critical extension.
    #[error("it has the critical extension {0}, which TLS libraries do not know")]
    Extension(String),
    /// A curve that TLS 1.3 peers do not accept.
    #[error("its key is on the curve {0}, expected P-256, P-384, P-521 or Ed25519")]
    Curve(String),
    /// The curve is written out instead of named.
    #[error("its key gives its curve by explicit parameters, expected a named curve")]
    ExplicitCurve,
    /// An unsupported kind of key.
    #[error("its key is of the kind {0}, expected Ed25519, ECDSA, RSA or ML-DSA")]
    Algorithm(String),
    /// An RSA key that is too short or too long.
    #[error("its RSA key has {0} bits, expected 2048 to 8192")]
    RsaBits(usize),
    /// The public key is malformed.
    #[error("its public key is malformed")]
    Key,
    /// Any other error in its form.
    #[error("TLS libraries cannot read it")]
    Form,
}

/// The kinds of keys that can sign a TLS 1.3 handshake here, with the readers of their public keys.
const KINDS: [(AlgorithmIdentifier, &dyn VerificationAlgorithm); 8] = [
    (alg_id::ED25519, &signature::ED25519),
    (alg_id::ECDSA_P256, &signature::ECDSA_P256_SHA256_ASN1),
    (alg_id::ECDSA_P384, &signature::ECDSA_P384_SHA384_ASN1),
    (alg_id::ECDSA_P521, &signature::ECDSA_P521_SHA512_ASN1),
    (alg_id::RSA_ENCRYPTION, &signature::RSA_PSS_2048_8192_SHA256),
    (alg_id::ML_DSA_44, &signature::ML_DSA_44),
    (alg_id::ML_DSA_65, &signature::ML_DSA_65),
    (alg_id::ML_DSA_87, &signature::ML_DSA_87),
];

/// Critical extensions that webpki understands (RFC 5280, 4.2.1).
const UNDERSTOOD: [&str; 5] = ["2.5.29.15", "2.5.29.17", "2.5.29.19", "2.5.29.30", "2.5.29.37"];

/// Checks whether a session can use a certificate (DER).
///
/// # Errors
/// [`Unusable`]
pub fn check(der: &[u8]) -> Result<(), Unusable> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| Unusable::Form)?;
    if certificate.version() != X509Version::V3 {
        return Err(Unusable::Version(certificate.version().0.saturating_add(1)));
    }
    let critical = certificate.extensions().iter().filter(|extension| extension.critical);
    let mut unknown = critical
        .map(|extension| extension.oid.to_id_string())
        .filter(|oid| !UNDERSTOOD.contains(&oid.as_str()));
    if let Some(oid) = unknown.next() {
        return Err(Unusable::Extension(oid));
    }
    check_key(certificate.public_key())?;
    // The library decides.
    ParsedCertificate::try_from(&CertificateDer::from(der)).map_err(|_| Unusable::Form)?;
    Ok(())
}

fn check_key(spki: &SubjectPublicKeyInfo<'_>) -> Result<(), Unusable> {
    let algorithm = der_header(spki.raw).and_then(|(_, inner, _)| der_header(inner));
    let (_, algorithm, _) = algorithm.ok_or(Unusable::Key)?;
    let Some((_, reader)) = KINDS.iter().find(|(known, _)| known.as_ref() == algorithm) else {
        return Err(unknown_kind(spki));
    };
    if let Ok(PublicKey::RSA(rsa)) = spki.parsed()
        && !(2048..=8192).contains(&bits(rsa.modulus))
    {
        return Err(Unusable::RsaBits(bits(rsa.modulus)));
    }
    ParsedPublicKey::new(*reader, &spki.subject_public_key.data).map_err(|_| Unusable::Key)?;
    Ok(())
}

/// Returns the length of a number, big-endian, without leading zeros.
fn bits(number: &[u8]) -> usize {
    let digits = number.iter().position(|byte| *byte != 0).map_or(&[][..], |at| &number[at..]);
    digits.first().map_or(0, |first| digits.len() * 8 - first.leading_zeros() as usize)
}

fn unknown_kind(spki: &SubjectPublicKeyInfo<'_>) -> Unusable {
    let kind = spki.algorithm.algorithm.to_id_string();
    let name = match kind.as_str() {
        "1.2.840.10045.2.1" => {
            let parameters = spki.algorithm.parameters.as_ref();
            return match parameters.map(|any| (any.tag(), any.as_oid())) {
                Some((Tag::Oid, Ok(oid))) => Unusable::Curve(curve_name(&oid.to_id_string())),
                Some((Tag::Sequence, _)) => Unusable::ExplicitCurve,
                _ => Unusable::Key,
            };
        }
        // The kind is right, but not its parameters.
        "1.2.840.113549.1.1.1" | "1.3.101.112" => return Unusable::Key,
        "1.2.840.113549.1.1.10" => "RSASSA-PSS",
        "1.2.840.10040.4.1" => "DSA",
        "1.3.101.110" => "X25519",
        "1.3.101.111" => "X448",
        "1.3.101.113" => "Ed448",
        "1.2.643.7.1.1.1.1" | "1.2.643.7.1.1.1.2" => "GOST R 34.10-2012",
        _ if kind.starts_with("2.16.840.1.101.3.4.4.") => "ML-KEM",
        _ if kind.starts_with("2.16.840.1.101.3.4.3.") => "SLH-DSA",
        _ => &kind,
    };
    Unusable::Algorithm(name.to_owned())
}

fn curve_name(oid: &str) -> String {
    match oid {
        "1.3.132.0.10" => "secp256k1",
        "1.3.132.0.33" => "P-224",
        "1.2.840.10045.3.1.1" => "P-192",
        "1.3.36.3.3.2.8.1.1.7" => "brainpoolP256r1",
        "1.3.36.3.3.2.8.1.1.11" => "brainpoolP384r1",
        "1.3.36.3.3.2.8.1.1.13" => "brainpoolP512r1",
        "1.2.156.10197.1.301" => "SM2",
        oid => oid,
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use rustls::crypto::aws_lc_rs::default_provider;

    use super::*;

    #[test]
    fn the_kinds_of_keys_are_those_of_the_tls_provider() {
        // RSA keys sign TLS 1.3 with PSS only, and all have one kind.
        let taken: Vec<_> = default_provider()
            .signature_verification_algorithms
            .mapping
            .iter()
            .map(|(_, algorithms)| algorithms[0].public_key_alg_id())
            .collect();
        for (known, _) in KINDS {
            assert!(taken.contains(&known), "{known:?}");
        }
        for kind in taken {
            assert!(KINDS.iter().any(|(known, _)| *known == kind), "{kind:?}");
        }
    }

    #[test]
    fn the_length_of_a_number_counts_from_its_first_bit() {
        assert_eq!(bits(&[0, 0x80, 0]), 16);
        assert_eq!(bits(&[0x7f, 0]), 15);
        assert_eq!(bits(&[]), 0);
    }
}
