//! The kinds of transports.

use std::{fmt, str::FromStr};

/// The transport of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportKind {
    /// SOCKS5 bytestreams (XEP-0065).
    S5b,
    /// In-band bytestreams (XEP-0047).
    Ibb,
}

impl TransportKind {
    /// Both, in the order of preference.
    pub const ALL: [Self; 2] = [Self::S5b, Self::Ibb];

    /// Returns the transport that may replace it.
    pub fn other(self) -> Self {
        match self {
            Self::S5b => Self::Ibb,
            Self::Ibb => Self::S5b,
        }
    }

    /// Returns its name for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::S5b => "SOCKS5 bytestreams",
            Self::Ibb => "in-band bytestreams",
        }
    }

    /// Returns the name in options and events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::S5b => "s5b",
            Self::Ibb => "ibb",
        }
    }
}

impl fmt::Display for TransportKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name of a transport is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected s5b or ibb")]
pub struct UnknownTransport;

impl FromStr for TransportKind {
    type Err = UnknownTransport;

    fn from_str(text: &str) -> Result<Self, UnknownTransport> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or(UnknownTransport)
    }
}
