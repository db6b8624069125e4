//! TLS between two XMPP users: each side shows a key of its own, and checks the key that the other shows.
//!
//! | question | module |
//! |---|---|
//! | which key and certificate an endpoint has | [`identity`] |
//! | how a stream is secured, and who is the server | [`stream`], TLS 1.3 only |
//! | whether a peer's certificate has the offered print | [`verify`]; why not: [`fault`] |
//! | what a certificate says, X.509 or OpenPGP | [`material`], [`x509`], [`openpgp_certificate`] |
//! | whether a key has made a signature | [`signature`] |
//! | what the methods openpgp and srp do | [`openpgp`], [`srp`] |
//! | what two people compare on first use | [`sas`] |
//! | how secrets stay out of logs, and files safe from other processes | [`redact`], [`shared_file`] |

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests may panic"))]

mod der;
pub mod fault;
pub mod identity;
pub mod material;
pub mod material_error;
#[cfg(feature = "openpgp")]
pub mod openpgp;
#[cfg(not(feature = "openpgp"))]
#[path = "without_openpgp.rs"]
pub mod openpgp;
#[cfg(feature = "openpgp")]
pub mod openpgp_certificate;
mod openpgp_error;
pub mod redact;
pub mod sas;
pub mod shared_file;
pub mod signature;
pub mod srp;
pub mod stream;
pub mod verify;
pub mod x509;

#[cfg(not(feature = "openpgp"))]
use self::openpgp as openpgp_certificate;
