//! Why a peer's key is not accepted: one list, from the place where the fault is found to the sentence for a person.

use fingerpost_wire::key::stamp;
use rustls::CertificateError;
use time::OffsetDateTime;

use crate::{
    material_error::{MaterialError, OpenPgpFault},
    x509::Unusable,
};

/// Why a certificate is not accepted in a handshake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// It is another key than the offered one.
    #[error("the peer's certificate does not match the print it offered")]
    Print,
    /// No session can use a certificate of this form or with this kind of key.
    #[error("no session can come about with the peer's certificate: {0}")]
    Unusable(Unusable),
    /// It carries no OpenPGP key.
    #[error(
        "the peer's certificate carries no OpenPGP key with a signature (profile openpgp-spki)"
    )]
    NotOpenPgp,
    /// The OpenPGP certificate in it cannot be read, or is of no use.
    #[error("the peer's OpenPGP key cannot be used: {0}")]
    Material(MaterialError),
    /// Its primary key has expired.
    #[error("the peer's OpenPGP key has expired, at {}; the peer can prolong it, or a clock is wrong", stamp(*.0))]
    Expired(OffsetDateTime),
    /// It revokes itself.
    #[error("the peer's OpenPGP key was revoked by its owner")]
    Revoked,
    /// The subkey that has signed may not sign.
    #[error("the subkey of the peer's OpenPGP key that signs here {0}")]
    Subkey(SubkeyFault),
    /// The OpenPGP signature is made for each session, and this one is from another time.
    #[error(
        "the peer's OpenPGP signature was made at {}, and it is {} here: one of the two clocks is wrong",
        stamp(*.signed), stamp(*.now)
    )]
    Clock {
        /// The time of the signature, by the peer's clock.
        signed: OffsetDateTime,
        /// The time of the check, by our clock.
        now: OffsetDateTime,
    },
    /// The OpenPGP signature uses a hash that is not accepted.
    #[error(
        "the peer's OpenPGP signature uses a hash that can be forged, expected SHA-256 or better"
    )]
    Hash,
    /// The OpenPGP signature is not this key's signature over the TLS key.
    #[error("the peer's OpenPGP key has not signed the TLS key that was shown")]
    Signature,
}

/// Why a subkey may not sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubkeyFault {
    /// It was revoked.
    #[error("was revoked")]
    Revoked,
    /// It has expired.
    #[error("has expired")]
    Expired,
    /// It is from the future.
    #[error("was made in the future, so one of the two clocks is wrong")]
    Future,
    /// It is bound by a hash that can be forged.
    #[error("is bound to its key by a signature with SHA-1 or MD5, which can be forged")]
    WeakHash,
    /// It is not bound to the primary key, or not for signing.
    #[error("does not belong to its key, or not for signing")]
    Unbound,
}

impl Fault {
    /// Returns the TLS alert for the peer (RFC 8446, 6.2): certificate_expired, certificate_revoked,
    /// unsupported_certificate, or access_denied for all others.
    pub(super) fn to_rustls(&self) -> rustls::Error {
        let error = match self {
            Self::Expired(_)
            | Self::Clock { .. }
            | Self::Subkey(SubkeyFault::Expired | SubkeyFault::Future)
            | Self::Material(MaterialError::OpenPgp(OpenPgpFault::Future(_))) => {
                CertificateError::Expired
            }
            Self::Revoked | Self::Subkey(SubkeyFault::Revoked) => CertificateError::Revoked,
            Self::Unusable(_) | Self::Material(_) | Self::Hash => CertificateError::InvalidPurpose,
            _ => CertificateError::ApplicationVerificationFailure,
        };
        rustls::Error::InvalidCertificate(error)
    }
}
