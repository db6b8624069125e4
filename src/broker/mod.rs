//! The broker: stands between two users in a Jingle session and never sees more than TLS ciphertext.

pub mod offer;
pub mod presence;
pub mod rewrite;
pub mod transport;
