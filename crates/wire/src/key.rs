//! The words for a key: its id, its state, the certainty that it is its owner's, and how a moment is written.

use std::{fmt, str::FromStr};

use data_encoding::HEXLOWER;
use time::OffsetDateTime;

use crate::{names, word::UnknownName};

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

/// The registry's verdict on a print, in hints; each is worse than the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// The print was not offered: it is that of an active key of a method that came without a print.
    Registered,
    /// The print of an active key.
    Match,
    /// The user has no active key of this method.
    Unknown,
    /// The print of a key that was replaced or has expired.
    Superseded,
    /// The user has active keys of this method, and none has this print. Or the print may be that of a revoked key, of
    /// which only a print by another hash is known.
    Mismatch,
    /// The print of a revoked key.
    Revoked,
}

names!(
    Verdict,
    "registered, match, unknown, superseded, mismatch or revoked",
    Registered = "registered",
    Match = "match",
    Unknown = "unknown",
    Superseded = "superseded",
    Mismatch = "mismatch",
    Revoked = "revoked"
);

/// Returns a moment as text, to the second: `2026-11-24T02:00:00Z`.
pub fn stamp(time: OffsetDateTime) -> String {
    let time = time.to_offset(time::UtcOffset::UTC);
    let (year, month, day) = time.to_calendar_date();
    let (hour, minute, second) = time.to_hms();
    format!("{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z", u8::from(month))
}
