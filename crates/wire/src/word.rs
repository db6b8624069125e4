//! Words of the protocol: those of a list, and any other, which passes as it was written.

use std::{fmt, str::FromStr};

/// Implements the names of an enum on the wire, in the database and in JSON.
#[macro_export]
macro_rules! names {
    ($type:ident, $expected:literal, $($variant:ident = $name:literal),+) => {
        impl $type {
            /// All of them, in the order of their declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Returns the name on the wire and in the database.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $type {
            type Err = $crate::word::UnknownName;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($name => Ok(Self::$variant),)+
                    _ => Err($crate::word::UnknownName { expected: $expected }),
                }
            }
        }
    };
}

/// An unknown name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}")]
pub struct UnknownName {
    /// The known names.
    pub expected: &'static str,
}

/// A word of a list that a newer peer may know more of.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Word<T> {
    /// A word that is known here.
    Known(T),
    /// Any other, as it was written.
    Other(String),
}

impl<T> Word<T> {
    /// Reads a word.
    pub fn new(text: &str) -> Self
    where
        T: FromStr,
    {
        text.parse().map_or_else(|_| Self::Other(text.to_owned()), Self::Known)
    }

    /// Returns the word as it is written.
    pub fn as_str(&self) -> &str
    where
        T: AsRef<str>,
    {
        match self {
            Self::Known(word) => word.as_ref(),
            Self::Other(word) => word,
        }
    }

    /// Returns the word if it is known here.
    pub fn known(&self) -> Option<T>
    where
        T: Copy,
    {
        match self {
            Self::Known(word) => Some(*word),
            Self::Other(_) => None,
        }
    }
}

impl<T> Default for Word<T> {
    fn default() -> Self {
        Self::Other(String::new())
    }
}

impl<T> From<T> for Word<T> {
    fn from(word: T) -> Self {
        Self::Known(word)
    }
}

impl<T: PartialEq> PartialEq<T> for Word<T> {
    fn eq(&self, other: &T) -> bool {
        matches!(self, Self::Known(word) if word == other)
    }
}

impl<T: AsRef<str>> fmt::Display for Word<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fmt::Debug};

    use super::*;
    use crate::{
        jingle::{Action, Reason},
        key::{Assurance, State, Verdict},
        print::Method,
    };

    fn has_these_words<T>(all: &[T], words: &[&str])
    where
        T: AsRef<str> + Copy + Debug + fmt::Display + FromStr<Err: Debug> + PartialEq,
    {
        assert_eq!(all.iter().map(AsRef::as_ref).collect::<Vec<_>>(), words);
        assert_eq!(words.iter().collect::<BTreeSet<_>>().len(), words.len());
        for (word, text) in all.iter().zip(words) {
            assert_eq!(text.parse::<T>().unwrap(), *word);
            assert_eq!(word.to_string(), *text);
            let read = Word::<T>::new(text);
            assert_eq!((read.known(), read.as_str()), (Some(*word), *text));
            assert_eq!(read, Word::from(*word));
            assert!(read == *word);
        }
        for text in ["", "a-word-of-tomorrow", " success", "SESSION-INFO", "Match", "é"] {
            let read = Word::<T>::new(text);
            assert_eq!((read.known(), read.as_str()), (None, text));
            assert_eq!(read.to_string(), text);
            assert!(all.iter().all(|known| read != *known), "{text}");
        }
    }

    #[test]
    fn each_word_is_read_and_written_as_in_its_specification_and_unknown_ones_survive() {
        has_these_words(
            Action::ALL,
            &[
                "content-accept",
                "content-add",
                "content-modify",
                "content-reject",
                "content-remove",
                "description-info",
                "security-info",
                "session-accept",
                "session-info",
                "session-initiate",
                "session-terminate",
                "transport-accept",
                "transport-info",
                "transport-reject",
                "transport-replace",
            ],
        );
        has_these_words(
            Reason::ALL,
            &[
                "alternative-session",
                "busy",
                "cancel",
                "connectivity-error",
                "decline",
                "expired",
                "failed-application",
                "failed-transport",
                "general-error",
                "gone",
                "incompatible-parameters",
                "media-error",
                "security-error",
                "success",
                "timeout",
                "unsupported-applications",
                "unsupported-transports",
            ],
        );
        has_these_words(
            Verdict::ALL,
            &["registered", "match", "unknown", "superseded", "mismatch", "revoked"],
        );
        has_these_words(State::ALL, &["active", "superseded", "revoked"]);
        has_these_words(Assurance::ALL, &["asserted", "proven", "attested"]);
        has_these_words(&[Method::X509, Method::OpenPgp, Method::Srp], &["x509", "openpgp", "srp"]);
    }
}
