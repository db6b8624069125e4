//! The interface of [`openpgp`](self) in a build without the feature of this name: no key can be made or read, and no
//! peer's key is accepted. So all other code is the same in both builds.

use std::{convert::Infallible, path::Path};

use fingerpost_wire::print::Print;
use jid::BareJid;
use rustls::pki_types::UnixTime;
use time::OffsetDateTime;
use zeroize::Zeroizing;

pub use crate::openpgp_error::OpenPgpError;
use crate::{
    fault::Fault,
    identity::Identity,
    material_error::{MaterialError, OpenPgpFault},
};

/// The profile's name in the method's element.
pub const PROFILE: &str = "openpgp-spki";
/// The file of a user's OpenPGP key, in the directory of its account.
pub const FILE: &str = "openpgp.asc";

const MISSING: MaterialError = MaterialError::WithoutOpenPgp;

/// An OpenPGP secret key, of which this build has none.
#[derive(Debug)]
pub struct OpenPgpKey(Infallible);

/// An OpenPGP key that vouches for TLS keys, of which this build has none.
#[derive(Debug)]
pub struct Certifier(Infallible);

impl OpenPgpKey {
    /// Returns the error.
    pub fn generate(_: &BareJid, _: bool) -> Result<Self, OpenPgpError> {
        Err(MISSING.into())
    }

    /// Returns the error.
    pub fn parse(_: &[u8]) -> Result<Self, OpenPgpError> {
        Err(MISSING.into())
    }

    /// Returns the error.
    pub fn load(_: &Path) -> Result<Option<Self>, OpenPgpError> {
        Err(MISSING.into())
    }

    /// Does not come about.
    pub fn store(&self, _: &Path) -> Result<(), OpenPgpError> {
        match self.0 {}
    }

    /// Does not come about.
    pub fn certificate(&self) -> &[u8] {
        match self.0 {}
    }

    /// Does not come about.
    pub fn print(&self) -> &Print {
        match self.0 {}
    }

    /// Does not come about.
    pub fn is_locked(&self) -> bool {
        match self.0 {}
    }

    /// Does not come about.
    pub fn sign(&self, _: &[u8], _: &str) -> Result<Vec<u8>, OpenPgpError> {
        match self.0 {}
    }

    /// Does not come about.
    pub fn unlock(self, _: Zeroizing<String>) -> Result<Certifier, OpenPgpError> {
        match self.0 {}
    }
}

impl Certifier {
    /// Does not come about.
    pub fn print(&self) -> &Print {
        match self.0 {}
    }

    /// Does not come about.
    pub fn certify(&self) -> Result<Identity, OpenPgpError> {
        match self.0 {}
    }
}

/// Accepts nobody.
///
/// # Errors
/// Always the same [`Fault`].
pub fn vouched(_: &[u8], _: &[Print], _: UnixTime) -> Result<Print, Fault> {
    Err(Fault::Material(MISSING))
}

/// Accepts nobody.
///
/// # Errors
/// Always the same [`Fault`].
pub fn still_vouched(_: &[u8], _: &Print, _: &[&[u8]], _: UnixTime) -> Result<(), Fault> {
    Err(Fault::Material(MISSING))
}

pub(crate) fn claimed(_: &[u8]) -> Option<Print> {
    None
}

/// An OpenPGP certificate, of which this build reads none.
#[derive(Debug)]
pub(crate) struct Certificate {
    pub(crate) expires: Option<OffsetDateTime>,
    pub(crate) revocation: Option<String>,
    never: Infallible,
}

impl Certificate {
    pub(crate) fn read(_: &[u8]) -> Result<Self, MaterialError> {
        Err(MISSING)
    }

    pub(crate) fn check(&self, _: OffsetDateTime) -> Result<(), OpenPgpFault> {
        match self.never {}
    }

    pub(crate) fn is_weak(&self) -> bool {
        match self.never {}
    }

    pub(crate) fn print(&self) -> Result<Print, MaterialError> {
        match self.never {}
    }

    pub(crate) fn merge(self, _: Self) -> Result<(Self, Vec<u8>), MaterialError> {
        match self.never {}
    }
}

pub(crate) fn dearmored(_: &[u8]) -> Result<Vec<u8>, MaterialError> {
    Err(MISSING)
}

pub(crate) fn verify(_: &[u8], _: &[u8], _: &[u8], _: u64) -> Result<bool, MaterialError> {
    Err(MISSING)
}
