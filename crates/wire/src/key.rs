//! The words for a key: its id, its state, the certainty that it is its owner's, and how a moment is written.

use std::{fmt, str::FromStr};

use data_encoding::HEXLOWER;
use time::OffsetDateTime;

/// Implements the names of an enum on the wire, in the database and in JSON.
#[macro_export]
macro_rules! names {
    ($type:ident, $expected:literal, $($variant:ident = $name:literal),+) => {
        impl $type {
            /// Returns the name on the wire and in the database.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $type {
            type Err = $crate::key::UnknownName;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($name => Ok(Self::$variant),)+
                    _ => Err($crate::key::UnknownName { expected: $expected }),
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

/// The name of a key: 128 random bits, written as 32 lower case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(u128);

impl KeyId {
    /// Creates an id of random bits, which the caller draws.
    pub fn new(random: u128) -> Self {
        Self(random)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for KeyId {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        let bits = HEXLOWER.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        bits.map(|bits| Self(u128::from_be_bytes(bits)))
            .ok_or(UnknownName { expected: "a key id: 32 hexadecimal digits in lower case" })
    }
}

/// The state of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// In use.
    Active,
    /// Its owner has replaced it.
    Superseded,
    /// Never to be trusted again.
    Revoked,
}

names!(
    State,
    "active, superseded or revoked",
    Active = "active",
    Superseded = "superseded",
    Revoked = "revoked"
);

/// The degree of certainty that a key is its owner's; each exceeds the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Assurance {
    /// The owner's own XMPP session claimed it.
    Asserted,
    /// The owner has shown possession of the private key.
    Proven,
    /// An admin vouches for it.
    Attested,
}

names!(
    Assurance,
    "asserted, proven or attested",
    Asserted = "asserted",
    Proven = "proven",
    Attested = "attested"
);

/// Returns a moment as text, to the second: `2026-11-24T02:00:00Z`.
pub fn stamp(time: OffsetDateTime) -> String {
    let time = time.to_offset(time::UtcOffset::UTC);
    let (year, month, day) = time.to_calendar_date();
    let (hour, minute, second) = time.to_hms();
    format!("{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z", u8::from(month))
}
