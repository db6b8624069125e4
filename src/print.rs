//! Fingerprints of keys ("prints") and the TLS methods they belong to.
//!
//! Prints come from the wild in many forms: with and without colons or spaces, in either case. They are read in
//! all of them and written in one: upper case hex with colons.

use std::{fmt, str::FromStr};

use sha1::Sha1;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// How two users may prove who they are to each other (`x509`, `openpgp`, `srp`).
///
/// Spec: ProtoXEP jingle-xtls 0.0.4, section 10 (TLS methods).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Method {
    /// X.509 certificates.
    X509,
    /// OpenPGP keys.
    OpenPgp,
    /// A password both sides know.
    Srp,
}

impl Method {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::X509 => "x509",
            Self::OpenPgp => "openpgp",
            Self::Srp => "srp",
        }
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

/// What a print is the hash of, and by which function.
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
    /// The name in the `hash` attribute.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha1 => "sha-1",
            Self::Sha256 => "sha-256",
            Self::SpkiSha256 => "spki-sha-256",
        }
    }

    /// The print's length in bytes.
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
        match text {
            "sha-1" | "sha1" => Ok(Self::Sha1),
            "sha-256" | "sha256" => Ok(Self::Sha256),
            "spki-sha-256" => Ok(Self::SpkiSha256),
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

/// Why a text is no print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrintError {
    /// The hash function is unknown.
    #[error("the hash must be sha-1, sha-256 or spki-sha-256")]
    Hash,
    /// Not hexadecimal.
    #[error("a print must be hexadecimal digits, with or without colons")]
    Hex,
    /// Too short or too long for its hash.
    #[error("a print must have 20 bytes (sha-1) or 32 bytes (sha-256)")]
    Length,
}

impl Print {
    /// Makes a print of raw bytes.
    ///
    /// # Errors
    /// [`PrintError::Length`] if the length is not that of the hash.
    pub fn new(hash: HashKind, bytes: &[u8]) -> Result<Self, PrintError> {
        if bytes.len() == hash.len() {
            Ok(Self { hash, bytes: bytes.to_vec() })
        } else {
            Err(PrintError::Length)
        }
    }

    /// Reads hex in any wild form. Without a `hash` the length decides between SHA-1 and SHA-256.
    ///
    /// # Errors
    /// [`PrintError::Hex`] or [`PrintError::Length`].
    pub fn parse(text: &str, hash: Option<HashKind>) -> Result<Self, PrintError> {
        let mut bytes = Vec::with_capacity(32);
        let mut high = None;
        for c in text.chars() {
            if c == ':' || c.is_ascii_whitespace() {
                continue;
            }
            let digit = c.to_digit(16).and_then(|d| u8::try_from(d).ok()).ok_or(PrintError::Hex)?;
            match high.take() {
                None => high = Some(digit),
                Some(h) => bytes.push(h << 4 | digit),
            }
            if bytes.len() > 32 {
                return Err(PrintError::Length);
            }
        }
        if high.is_some() {
            return Err(PrintError::Hex);
        }
        let hash = match (hash, bytes.len()) {
            (Some(hash), _) => hash,
            (None, 20) => HashKind::Sha1,
            (None, 32) => HashKind::Sha256,
            (None, _) => return Err(PrintError::Length),
        };
        Self::new(hash, &bytes)
    }

    /// The print of a DER certificate.
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

    /// What was hashed and how.
    pub fn hash(&self) -> HashKind {
        self.hash
    }

    /// The hash's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether both have the same bytes. A print of 32 bytes may be of the certificate or of its SPKI
    /// and offers do not say which, so here the kind does not count.
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
        assert_eq!(Print::parse("7", None), Err(PrintError::Hex));
        assert_eq!(Print::parse("xx", None), Err(PrintError::Hex));
        assert_eq!(Print::parse("7272", None), Err(PrintError::Length));
        assert_eq!(Print::parse(SEED, Some(HashKind::Sha256)), Err(PrintError::Length));
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
