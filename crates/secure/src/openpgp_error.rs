//! Why a user's own OpenPGP key cannot be used.

use std::io;

use crate::{identity::IdentityError, material_error::MaterialError};

/// Why an OpenPGP key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenPgpError {
    /// The input is not one secret key, or is broken.
    #[error("expected one OpenPGP secret key, binary or armoured, which this is not: {0}")]
    NotASecretKey(&'static str),
    /// The input has more than one certificate.
    #[error(
        "expected one OpenPGP secret key, found several certificates: export only the one to be used"
    )]
    Several,
    /// Every peer would refuse its public part.
    #[error(transparent)]
    Material(#[from] MaterialError),
    /// It has expired.
    #[error("the OpenPGP key has expired")]
    Expired,
    /// The passphrase is wrong, or one is needed.
    #[error("the passphrase does not unlock the OpenPGP key")]
    Passphrase,
    /// The key cannot sign, or cannot be created.
    #[cfg(feature = "openpgp")]
    #[error("the OpenPGP key cannot be used: {0}")]
    Key(#[from] pgp::errors::Error),
    /// The TLS key cannot be created.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The file cannot be read.
    #[error("{0}: {1}")]
    Io(String, io::Error),
}

impl From<rcgen::Error> for OpenPgpError {
    fn from(error: rcgen::Error) -> Self {
        Self::Identity(error.into())
    }
}
