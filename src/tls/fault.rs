//! Why the key that a peer has shown is not taken: one list, from where it is found to the sentence that a person reads.

use rustls::CertificateError;
use time::OffsetDateTime;

use crate::registry::{
    material::{MaterialError, OpenPgpFault},
    model::stamp,
    openpgp::SubkeyFault,
    x509::Unusable,
};

/// Why a certificate is not accepted in a handshake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// It is another key than the one that was offered.
    #[error("the peer's certificate does not match the print it offered")]
    Print,
    /// No session can come about with a certificate of this form or with this kind of key.
    #[error("no session can come about with the peer's certificate: {0}")]
    Unusable(Unusable),
    /// There is no OpenPGP key in it.
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
    /// The subkey that has signed may not.
    #[error("the subkey of the peer's OpenPGP key that signs here {0}")]
    Subkey(SubkeyFault),
    /// The OpenPGP signature is made for each session, and this one is not of now.
    #[error(
        "the peer's OpenPGP signature was made at {}, and it is {} here: one of the two clocks is wrong",
        stamp(*.signed), stamp(*.now)
    )]
    Clock {
        /// When it was made, by the peer's clock.
        signed: OffsetDateTime,
        /// When it was looked at, by the own clock.
        now: OffsetDateTime,
    },
    /// The OpenPGP signature uses a hash that is not taken.
    #[error(
        "the peer's OpenPGP signature uses a hash that can be forged, expected SHA-256 or better"
    )]
    Hash,
    /// The OpenPGP signature is not one of this key over the TLS key.
    #[error("the peer's OpenPGP key has not signed the TLS key that was shown")]
    Signature,
}

impl Fault {
    /// Returns how the peer is told, by an alert (RFC 8446, 6.2): certificate_expired, certificate_revoked,
    /// unsupported_certificate, or access_denied for all else.
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
