//! Why public key material is refused.

use fingerpost_wire::key::stamp;
use time::OffsetDateTime;

/// The largest material, in bytes: a certificate with an 8192-bit RSA key and many names has about 6 KiB, one with an
/// ML-DSA-87 key about 8 KiB.
pub const MATERIAL_MAX: usize = 16 * 1024;

/// A fault of an OpenPGP certificate. It contains neither the input nor the library's text, which repeats the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenPgpFault {
    /// The armour is broken.
    #[error("its armour cannot be read")]
    Armour,
    /// The armour is that of something else.
    #[error("its armour is not that of a public key")]
    Label,
    /// The packets are broken, or not those of a certificate.
    #[error("its packets cannot be read")]
    Packets,
    /// The packets have no public key.
    #[error("there is no public key in it")]
    NoKey,
    /// No self-signature is valid.
    #[error("it has no valid self-signature")]
    Unsigned,
    /// An old key.
    #[error("expected a key of version 4 or 6")]
    Version,
    /// Two certificates are not of one key.
    #[error("its primary key is another one")]
    AnotherKey,
    /// A key of this kind, whose signatures cannot be checked.
    #[error("its primary key is {0}, expected Ed25519, Ed448, RSA or ECDSA on a NIST curve")]
    Kind(&'static str),
    /// A key from the future.
    #[error("it was made in the future, at {}, so one of the two clocks is wrong", stamp(*.0))]
    Future(OffsetDateTime),
}

impl OpenPgpFault {
    /// Returns the beginning of its sentence, which says whether it is an OpenPGP certificate at all.
    fn introduction(self) -> &'static str {
        match self {
            Self::Kind(_) | Self::Future(_) => "no session can come about with this OpenPGP key",
            _ => "expected one OpenPGP certificate, binary or armoured, which this is not",
        }
    }
}

/// Why material is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MaterialError {
    /// Larger than [`MATERIAL_MAX`].
    #[error("key material must not be larger than 16 KiB")]
    TooLarge,
    /// The material is empty.
    #[error("the key material is empty")]
    Empty,
    /// A private key, in the clear or encrypted.
    #[error(
        "this is a private key, which must never leave its owner; nothing was stored: send the certificate, and consider the private key exposed"
    )]
    PrivateKey,
    /// Not an OpenPGP certificate, or one without valid self-signatures, or one of no use.
    #[error("{}: {fault}", .0.introduction(), fault = .0)]
    OpenPgp(OpenPgpFault),
    /// The feature `openpgp` is off in this build.
    #[error("this program was built without OpenPGP")]
    WithoutOpenPgp,
    /// The certificate carries its own revocation.
    #[error("this OpenPGP certificate carries its own revocation")]
    Revoked,
    /// Together with the stored certificate it is larger than [`MATERIAL_MAX`].
    #[error("with what is known of this key already the certificate is larger than 16 KiB")]
    MergedTooLarge,
    /// SRP has no keys.
    #[error("keys have the method x509 or openpgp; srp has no keys")]
    Srp,
    /// More than one certificate.
    #[error(
        "expected one certificate, found several certificates: send only your own, without its issuers"
    )]
    Several,
    /// The PEM is that of something else.
    #[error("expected PEM with the label CERTIFICATE")]
    Label,
    /// Broken PEM.
    #[error("malformed PEM: {0}")]
    Pem(&'static str),
    /// Broken DER.
    #[error("expected an X.509 certificate as DER or PEM, which this is not: {0}")]
    Der(&'static str),
    /// A certificate and something after it.
    #[error("there are {0} bytes after the end of the certificate")]
    Trailing(usize),
}
