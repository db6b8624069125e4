//! A token in the password's place (XEP-0484), and where a program keeps it.

use std::fmt;

use fingerpost_secure::redact::Secret;

/// A token that takes the password's place at one server (XEP-0484). `Debug` does not show it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FastToken {
    /// The mechanism that it is for, such as `HT-SHA-256-EXPR`.
    pub mechanism: String,
    /// The token.
    pub token: Secret,
    /// When the server stops accepting it, in XEP-0082 format; empty if unknown.
    pub expiry: String,
}

impl FastToken {
    /// Creates a token from its stored parts.
    pub fn new(
        mechanism: impl Into<String>,
        token: impl Into<String>,
        expiry: impl Into<String>,
    ) -> Self {
        Self { mechanism: mechanism.into(), token: Secret::new(token), expiry: expiry.into() }
    }
}

/// Stores an account's token, for all programs of the account.
///
/// A failure here must not prevent a login, because the password remains.
pub trait FastStore: fmt::Debug + Send + Sync {
    /// Returns an identifier of this installation, a random UUID that stays the same, and the token, if one is stored.
    /// `None`: no token is requested or used.
    fn load(&self) -> Option<(String, Option<FastToken>)>;
    /// Stores a new token in place of the old one.
    fn store(&self, token: &FastToken);
    /// Forgets a token that the server no longer accepts, unless a newer one has been stored.
    fn forget(&self, token: &FastToken);
}
