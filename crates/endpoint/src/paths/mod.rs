//! Several paths below one TLS stream.
//!
//! A stream starts on the relay at once, moves to a direct connection when there is one, and back when that breaks, with
//! the same TLS and without a lost byte. docs/PROTOCOL.md has the protocol.
//!
//! ```text
//!  TLS ── PathLeg ── Machine (numbers, acknowledges, sends again) ── Carriers ── relay, direct connection
//! ```

use std::{fmt, net::SocketAddr};

mod backlog;
mod carriers;
mod incoming;
mod keys;
mod leg;
mod machine;
mod outgoing;
mod quota;
mod records;
mod renewal;
mod task;

pub(crate) use self::{
    keys::Keys,
    leg::{PathLeg, Paths},
};

/// The error of a stream whose last path does not answer.
pub(crate) const VANISHED: &str = "timed out: the network or the proxy does not answer";

/// The path that a stream is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Path {
    /// The transport that the session has negotiated: through the component, a proxy, or the XMPP servers.
    Relay,
    /// A connection of the two programs, to this address of the peer.
    Direct(SocketAddr),
}

impl fmt::Display for Path {
    /// Writes `relay`, or `direct` and the peer's address without its port.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Relay => f.write_str("relay"),
            Self::Direct(address) => write!(f, "direct {}", address.ip()),
        }
    }
}
