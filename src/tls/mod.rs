//! End-to-end TLS: an endpoint's own certificate, peers pinned to the offered print, TLS 1.3 only.

pub mod fault;
pub mod identity;
pub mod openpgp;
pub mod sas;
pub mod srp;
pub mod stream;
pub mod verify;
