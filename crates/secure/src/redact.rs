//! Values that must not appear in logs.

use std::fmt;

use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A password or shared secret. `Debug` shows `***`; the memory is overwritten on drop.
#[derive(Clone, Default, Zeroize, ZeroizeOnDrop)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// Returns the secret itself; the name is long so that a reviewer sees each use.
    pub fn expose_secret(&self) -> &str {
        &self.0
    }

    /// Returns whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A personal value (a JID or an IP address) for a log line. At most its domain is shown.
#[derive(Clone, Copy)]
pub struct Pii<T>(pub T);

impl<T: fmt::Display> fmt::Display for Pii<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if tracing::enabled!(tracing::Level::TRACE) {
            return self.0.fmt(f);
        }
        let text = self.0.to_string();
        match text.split_once('@') {
            Some((_, rest)) => {
                write!(f, "…@{}", rest.split('/').next().unwrap_or_default())
            }
            None => f.write_str("…"),
        }
    }
}

impl<T: fmt::Display> fmt::Debug for Pii<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "***");
    }

    #[test]
    fn a_jid_shows_only_its_domain() {
        assert_eq!(format!("{}", Pii("juliet@capulet.lit/balcony")), "…@capulet.lit");
        assert_eq!(format!("{}", Pii("192.0.2.1")), "…");
    }
}
