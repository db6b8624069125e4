//! An endpoint's own key and self-signed certificate, stored in two PEM files of mode 0600.

use std::{fmt, io, path::Path, str::FromStr};

use fingerpost_wire::print::{HashKind, Print};
use jid::BareJid;
use rcgen::{
    CertificateParams, CustomExtension, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256,
    PKCS_ED25519, PKCS_ML_DSA_65, PublicKeyData,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use zeroize::Zeroizing;

use crate::shared_file;

const CERTIFICATE: &str = "cert.pem";
/// The file of the private key, in its directory.
pub const KEY: &str = "key.pem";

/// A certificate and its private key.
pub struct Identity {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("print", &self.print()).finish_non_exhaustive()
    }
}

/// The kind of a new key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// EdDSA on Curve25519 (RFC 8410).
    Ed25519,
    /// ECDSA on P-256, which every TLS library accepts.
    #[default]
    P256,
    /// ML-DSA-65 (FIPS 204, RFC 9881): no known quantum attack forges its signatures. OpenSSL 3.5 and rustls accept it;
    /// GnuTLS 3.8.9 and OpenSSL 3.0 do not.
    MlDsa65,
}

impl Algorithm {
    /// All algorithms.
    pub const ALL: [Self; 3] = [Self::Ed25519, Self::P256, Self::MlDsa65];

    /// Returns the name on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ed25519 => "ed25519",
            Self::P256 => "p256",
            Self::MlDsa65 => "ml-dsa-65",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Algorithm {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = |algorithm: &Self| algorithm.as_str().eq_ignore_ascii_case(text);
        Self::ALL.into_iter().find(named).ok_or("expected ed25519, p256 or ml-dsa-65")
    }
}

/// Why an identity cannot be loaded or created.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The files cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The system's error.
        source: io::Error,
    },
    /// A certificate or key is missing in the files.
    #[error("{path}: no PEM certificate or PKCS#8 key is in it")]
    Pem {
        /// The file.
        path: String,
    },
    /// The key cannot be created.
    #[error("cannot create the key: {0}")]
    Make(#[from] rcgen::Error),
}

impl Identity {
    /// Creates an ECDSA P-256 key and a self-signed certificate that names `jid`.
    ///
    /// # Errors
    /// [`IdentityError::Make`].
    pub fn generate(jid: &BareJid) -> Result<Self, IdentityError> {
        Self::generate_by(jid, Algorithm::P256)
    }

    /// Returns an identity with a key of this algorithm.
    ///
    /// # Errors
    /// [`IdentityError::Make`].
    pub fn generate_by(jid: &BareJid, algorithm: Algorithm) -> Result<Self, IdentityError> {
        Self::make_by(algorithm, Some(jid), |_| Ok(None))
    }

    /// Creates an identity with an extension about the key, which is derived from its SubjectPublicKeyInfo (DER).
    /// Without a `jid` the certificate lacks a name.
    pub(super) fn make<E: From<rcgen::Error>>(
        jid: Option<&BareJid>,
        extension: impl FnOnce(&[u8]) -> Result<Option<CustomExtension>, E>,
    ) -> Result<Self, E> {
        Self::make_by(Algorithm::P256, jid, extension)
    }

    fn make_by<E: From<rcgen::Error>>(
        algorithm: Algorithm,
        jid: Option<&BareJid>,
        extension: impl FnOnce(&[u8]) -> Result<Option<CustomExtension>, E>,
    ) -> Result<Self, E> {
        let key = KeyPair::generate_for(match algorithm {
            Algorithm::Ed25519 => &PKCS_ED25519,
            Algorithm::P256 => &PKCS_ECDSA_P256_SHA256,
            Algorithm::MlDsa65 => &PKCS_ML_DSA_65,
        })?;
        let mut params = CertificateParams::default();
        let mut name = DistinguishedName::new();
        if let Some(jid) = jid {
            name.push(DnType::CommonName, jid.as_str());
        }
        params.distinguished_name = name;
        params.custom_extensions.extend(extension(&key.subject_public_key_info())?);
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            certificate: certificate.der().clone(),
            key: PrivatePkcs8KeyDer::from(key.serialize_der()),
        })
    }

    /// Returns an identity that reveals nothing about its user, for channels that are authenticated by other means.
    ///
    /// # Errors
    /// [`IdentityError::Make`].
    pub fn anonymous() -> Result<Self, IdentityError> {
        Self::make(None, |_| Ok(None))
    }

    /// Creates an identity from its parts: a DER certificate and a PKCS#8 key.
    pub fn of_parts(certificate: Vec<u8>, key: Vec<u8>) -> Self {
        Self { certificate: certificate.into(), key: key.into() }
    }

    /// Returns the private key, PKCS#8, for storage only.
    pub fn private_key(&self) -> &[u8] {
        self.key.secret_pkcs8_der()
    }

    /// Reads the identity in a directory; `None` if it has none.
    ///
    /// # Errors
    /// [`IdentityError::Io`] or [`IdentityError::Pem`].
    pub fn load(dir: &Path) -> Result<Option<Self>, IdentityError> {
        let path = dir.join(CERTIFICATE);
        if !path.exists() {
            return Ok(None);
        }
        let pem = |path: &Path| IdentityError::Pem { path: path.display().to_string() };
        let certificate = CertificateDer::from_pem_file(&path).map_err(|_| pem(&path))?;
        let path = dir.join(KEY);
        let key = PrivatePkcs8KeyDer::from_pem_file(&path).map_err(|_| pem(&path))?;
        Ok(Some(Self { certificate, key }))
    }

    /// Writes both files, mode 0600, into an existing directory. The certificate comes last, so that it never exists
    /// without its key.
    ///
    /// # Errors
    /// [`IdentityError::Io`]; also if either file exists.
    pub fn store(&self, dir: &Path) -> Result<(), IdentityError> {
        let key = Zeroizing::new(to_pem("PRIVATE KEY", self.key.secret_pkcs8_der()));
        write_new(&dir.join(KEY), key.as_bytes())?;
        let certificate = to_pem("CERTIFICATE", &self.certificate);
        write_new(&dir.join(CERTIFICATE), certificate.as_bytes())
    }

    /// Returns the certificate's SHA-256 print.
    pub fn print(&self) -> Print {
        Print::of_certificate(HashKind::Sha256, &self.certificate)
            .expect("SHA-256 of any bytes exists")
    }

    /// Signs with the private key: Ed25519, ECDSA P-256 with SHA-256, RSA-PSS with SHA-256 or ML-DSA, depending on its
    /// type; `None` for any other type.
    pub fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        use rustls::SignatureScheme::{
            ECDSA_NISTP256_SHA256, ED25519, ML_DSA_44, ML_DSA_65, ML_DSA_87, RSA_PSS_SHA256,
        };
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&self.key()).ok()?;
        let signer = key.choose_scheme(&[
            ED25519,
            ECDSA_NISTP256_SHA256,
            RSA_PSS_SHA256,
            ML_DSA_44,
            ML_DSA_65,
            ML_DSA_87,
        ])?;
        signer.sign(message).ok()
    }

    /// Returns the private key.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.clone_key())
    }
}

fn to_pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

pub(super) fn write_new(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    shared_file::create(path, bytes)
        .map_err(|source| IdentityError::Io { path: path.display().to_string(), source })
}
