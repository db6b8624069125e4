//! Fingerprints of keys ("prints") and the TLS methods they belong to.
//!
//! Tools and programs show prints in many forms. All of them are accepted; one is written: upper case hex with colons.

mod printed;

use std::{fmt, str::FromStr};

use sha1::Sha1;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// How two users may prove their identity to each other (`x509`, `openpgp`, `srp`).
///
/// Spec: ProtoXEP jingle-xtls 0.0.4, section 10 (TLS methods).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Method {
    /// X.509 certificates.
    X509,
    /// OpenPGP keys.
    OpenPgp,
    /// A password that both sides know.
    Srp,
}

impl Method {
    /// Returns the name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::X509 => "x509",
            Self::OpenPgp => "openpgp",
            Self::Srp => "srp",
        }
    }
}

impl AsRef<str> for Method {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Method {
    type Err = UnknownMethod;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "x509" => Ok(Self::X509),
            "openpgp" => Ok(Self::OpenPgp),
            "srp" => Ok(Self::Srp),
            _ => Err(UnknownMethod),
        }
    }
}

/// The method is none of `x509`, `openpgp`, `srp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the method must be x509, openpgp or srp")]
pub struct UnknownMethod;

/// The hashed object and the hash function of a print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HashKind {
    /// SHA-1 of the DER certificate, or an OpenPGP v4 fingerprint (20 bytes).
    Sha1,
    /// SHA-256 of the DER certificate, or an OpenPGP v6 fingerprint (32 bytes).
    Sha256,
    /// SHA-256 of the certificate's SubjectPublicKeyInfo (32 bytes).
    SpkiSha256,
}

impl HashKind {
    /// Returns the name in the `hash` attribute.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha1 => "sha-1",
            Self::Sha256 => "sha-256",
            Self::SpkiSha256 => "spki-sha-256",
        }
    }

    /// Returns the print's length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a hash is never empty")]
    pub fn len(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 | Self::SpkiSha256 => 32,
        }
    }
}

impl FromStr for HashKind {
    type Err = PrintError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim().to_ascii_lowercase().replace('_', "-").as_str() {
            "sha-1" | "sha1" => Ok(Self::Sha1),
            "sha-256" | "sha256" | "sha2-256" => Ok(Self::Sha256),
            "spki-sha-256" | "spki-sha256" => Ok(Self::SpkiSha256),
            _ => Err(PrintError::Hash),
        }
    }
}

/// A fingerprint: the kind of hash and its bytes. Equality takes the same time for any contents.
#[derive(Clone)]
pub struct Print {
    hash: HashKind,
    bytes: Vec<u8>,
}

/// Why a text is not a print, or not the one that is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PrintError {
    /// The hash function is unknown.
    #[error("the hash must be sha-1, sha-256 or spki-sha-256")]
    Hash,
    /// The text has nothing like a fingerprint.
    #[error(
        "no fingerprint is in it: expected 64 hexadecimal digits (SHA-256), or 40 (SHA-1, OpenPGP)"
    )]
    Missing,
    /// Too short or too long. `expected` is 0 if nothing tells the hash.
    #[error("expected a fingerprint of {} hexadecimal digits, found {found}", match .expected {
        0 => "64 (SHA-256) or 40 (SHA-1, OpenPGP)",
        40 => "40",
        _ => "64",
    })]
    Length {
        /// The number of digits in the text.
        found: usize,
        /// The number of digits of the hash.
        expected: usize,
    },
    /// Longer than a page.
    #[error("expected a fingerprint, or a page of at most 64 KiB with one, found a longer text")]
    Long,
    /// More than one print.
    #[error("expected one fingerprint, found several different ones")]
    Several,
    /// A print by this hash, which is not supported.
    #[error("expected a SHA-256 fingerprint, found one by {0}; {CURE}")]
    OtherHash(&'static str),
    /// A certificate's print, by a hash that does not pin the certificate.
    #[error(
        "expected the certificate's SHA-256 fingerprint, found its SHA-1, which can be forged; {CURE}"
    )]
    Sha1,
    /// Such a print, or an OpenPGP key's: both have 40 digits.
    #[error(
        "expected the certificate's SHA-256 fingerprint (64 digits), found 40 digits: a SHA-1, which can be forged, or an \
         OpenPGP fingerprint; {CURE}; for an OpenPGP key add --method openpgp"
    )]
    Sha1OrOpenPgp,
    /// The SHA-1 print of a public key.
    #[error(
        "expected a SHA-256 fingerprint, found the public key's SHA-1, which can be forged; `certtool --key-id --hash sha256` \
         prints the right one"
    )]
    Sha1Spki,
    /// The print of an OpenPGP key, where a certificate's is needed.
    #[error(
        "expected a certificate's fingerprint, found that of an OpenPGP key: the method must be openpgp"
    )]
    OfOpenPgp,
    /// The print of a certificate, where an OpenPGP key's is needed.
    #[error(
        "expected an OpenPGP key's fingerprint, found that of an X.509 certificate: the method must be x509"
    )]
    OfCertificate,
    /// The print of a subkey.
    #[error("expected the fingerprint of the OpenPGP primary key, found only that of a subkey")]
    Subkey,
    /// The end of an OpenPGP fingerprint.
    #[error(
        "expected a whole fingerprint, found a key ID, which anybody can make; `gpg --fingerprint` prints the right one"
    )]
    KeyId,
    /// The print of an SSH key.
    #[error("expected a certificate's or an OpenPGP key's fingerprint, found that of an SSH key")]
    Ssh,
}

/// The command that prints the right fingerprint.
const CURE: &str = "`openssl x509 -in cert.pem -noout -fingerprint -sha256` prints the right one";

impl Print {
    /// Creates a print from raw bytes.
    ///
    /// # Errors
    /// [`PrintError::Length`] if the length is not that of the hash.
    pub fn new(hash: HashKind, bytes: &[u8]) -> Result<Self, PrintError> {
        if bytes.len() == hash.len() {
            Ok(Self { hash, bytes: bytes.to_vec() })
        } else {
            Err(PrintError::Length { found: 2 * bytes.len(), expected: 2 * hash.len() })
        }
    }

    /// Returns the print of a DER certificate.
    pub fn of_certificate(hash: HashKind, der: &[u8]) -> Option<Self> {
        let bytes = match hash {
            HashKind::Sha1 => Sha1::digest(der).to_vec(),
            HashKind::Sha256 => Sha256::digest(der).to_vec(),
            HashKind::SpkiSha256 => {
                let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
                Sha256::digest(certificate.tbs_certificate.subject_pki.raw).to_vec()
            }
        };
        Some(Self { hash, bytes })
    }

    /// Returns the forms in which hints, offers, the registry and users may name the shown key that has this `print`.
    ///
    /// A certificate has a print by each kind of hash. An OpenPGP key has only its fingerprint: the certificate around
    /// it is made for one session.
    pub fn forms(method: Method, print: &Self, certificate: &[u8]) -> Vec<Self> {
        match method {
            Method::OpenPgp => vec![print.clone()],
            _ => [HashKind::Sha1, HashKind::Sha256, HashKind::SpkiSha256]
                .into_iter()
                .filter_map(|hash| Self::of_certificate(hash, certificate))
                .collect(),
        }
    }

    /// Returns the hashed object and the hash function.
    pub fn hash(&self) -> HashKind {
        self.hash
    }

    /// Returns the hash's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns whether both have the same bytes. Ignores the kind: a print of 32 bytes may be of the certificate or of
    /// its SPKI, and offers do not say which.
    pub fn same_bytes(&self, other: &Self) -> bool {
        self.bytes.ct_eq(&other.bytes).into()
    }
}

impl PartialEq for Print {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.same_bytes(other)
    }
}

impl Eq for Print {}

impl fmt::Display for Print {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.bytes.iter().enumerate() {
            if i > 0 {
                f.write_str(":")?;
            }
            write!(f, "{byte:02X}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Print {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {self}", self.hash.as_str())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SEED: &str = "72:72:DF:06:3A:4D:7D:80:97:0E:53:77:0A:8F:CD:A9:80:A3:CB:38";

    #[test]
    fn the_seeds_print_is_read_with_and_without_colons_in_either_case() {
        let print = Print::parse(SEED, None).unwrap();
        assert_eq!(print.hash(), HashKind::Sha1);
        assert_eq!(print.to_string(), SEED);
        assert_eq!(Print::parse(&SEED.replace(':', "").to_lowercase(), None), Ok(print.clone()));
        assert_eq!(Print::parse(&format!("\n  {SEED}\n"), None), Ok(print));
    }

    #[test]
    fn odd_lengths_and_letters_are_refused() {
        let length = |found, expected| Err(PrintError::Length { found, expected });
        assert_eq!(Print::parse("7", None), length(1, 0));
        assert_eq!(Print::parse("xx", None), Err(PrintError::Missing));
        assert_eq!(Print::parse("7272", None), length(4, 0));
        assert_eq!(Print::parse(SEED, Some(HashKind::Sha256)), length(40, 64));
        for name in ["sha-256", "SHA-256", "sha256", "SHA256", "Sha_256"] {
            assert_eq!(name.parse(), Ok(HashKind::Sha256));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_without_a_panic(text in ".{0,200}") {
            let _ = Print::parse(&text, None);
        }

        #[test]
        fn what_is_written_is_read_back(bytes in proptest::collection::vec(any::<u8>(), 32)) {
            let print = Print::new(HashKind::Sha256, &bytes).unwrap();
            prop_assert_eq!(Print::parse(&print.to_string(), Some(HashKind::Sha256)), Ok(print));
        }
    }
}
