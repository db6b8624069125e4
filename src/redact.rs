//! Values that must not appear in logs.

use std::{borrow::Cow, fmt};

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

/// Returns an error's text as it is shown to a user: one line, without control characters, and not too long. Errors of
/// libraries may repeat what strangers have sent.
pub fn sentence(text: &str) -> Cow<'_, str> {
    const LONGEST: usize = 500;
    let bad =
        |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{fffe}' | '\u{ffff}');
    if text.len() <= LONGEST && !text.chars().any(bad) {
        return Cow::Borrowed(text);
    }
    let plain = text.chars().map(|c| if bad(c) { ' ' } else { c });
    let mut short: String = plain.clone().take(LONGEST).collect();
    if plain.count() > LONGEST {
        short.push('…');
    }
    Cow::Owned(short)
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
    fn a_sentence_is_one_line_of_bounded_length() {
        assert_eq!(sentence("expected a key"), "expected a key");
        assert_eq!(sentence("a\nb\u{1}c\u{85}d\u{ffff}"), "a b c d ");
        let long = sentence(&"ä".repeat(600)).into_owned();
        assert_eq!((long.chars().count(), long.ends_with('…')), (501, true));
    }

    #[test]
    fn a_jid_shows_only_its_domain() {
        assert_eq!(format!("{}", Pii("juliet@capulet.lit/balcony")), "…@capulet.lit");
        assert_eq!(format!("{}", Pii("192.0.2.1")), "…");
    }
}
