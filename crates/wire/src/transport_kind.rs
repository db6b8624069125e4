//! The kinds of transports.

use std::{fmt, str::FromStr};

/// The transport of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportKind {
    /// SOCKS5 bytestreams (XEP-0065).
    S5b,
    /// In-band bytestreams (XEP-0047).
    Ibb,
    /// A TCP connection of the two programs, found by ICE (XEP-0371, RFC 6544). No broker carries it.
    Ice,
}

impl TransportKind {
    /// Those of a leg of a broker, in the order of preference.
    pub const ALL: [Self; 2] = [Self::S5b, Self::Ibb];
    /// Those of two programs.
    pub const OF_PROGRAMS: [Self; 3] = [Self::S5b, Self::Ibb, Self::Ice];

    /// Returns the transport that may replace it.
    pub fn other(self) -> Self {
        match self {
            Self::S5b => Self::Ibb,
            Self::Ibb | Self::Ice => Self::S5b,
        }
    }

    /// Returns its name for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::S5b => "SOCKS5 bytestreams",
            Self::Ibb => "in-band bytestreams",
            Self::Ice => "connections by ICE",
        }
    }

    /// Returns the name in options and events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::S5b => "s5b",
            Self::Ibb => "ibb",
            Self::Ice => "ice",
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
#[error("expected s5b, ibb or ice")]
pub struct UnknownTransport;

impl FromStr for TransportKind {
    type Err = UnknownTransport;

    fn from_str(text: &str) -> Result<Self, UnknownTransport> {
        Self::OF_PROGRAMS.into_iter().find(|kind| kind.as_str() == text).ok_or(UnknownTransport)
    }
}
