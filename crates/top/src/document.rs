//! What a service says of itself at a moment.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The state of a service at a moment. Fields that a reader does not know are ignored, and missing ones are empty, so that
/// the program and the service may have different versions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatusDocument {
    /// The address of the component.
    pub component: String,
    /// The version of the service.
    pub version: String,
    /// Seconds since the start.
    pub uptime_seconds: u64,
    /// Whether the link to the XMPP server is up.
    pub link: bool,
    /// How long the last ping through the XMPP server took, in microseconds.
    pub link_micros: Option<u64>,
    /// How long the database took to answer, in microseconds; `None` if it did not.
    pub database_micros: Option<u64>,
    /// Whether new sessions are refused.
    pub draining: bool,
    /// Relayed bytes since the start, both directions.
    pub bytes: u64,
    /// Streams that have begun since the start.
    pub streams: u64,
    /// What is limited, and how much of it is in use.
    pub usage: Vec<Usage>,
    /// Requests that were refused since the start, by the condition of the error.
    pub refusals: BTreeMap<String, u64>,
    /// How many sessions and transfers there are.
    pub sessions_total: usize,
    /// The oldest of them.
    pub sessions: Vec<SessionDocument>,
}

/// How much of something limited is in use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// What it is, for people.
    pub name: String,
    /// How much is in use.
    pub used: u64,
    /// How much there may be.
    pub limit: u64,
    /// Whether both are bytes.
    pub is_bytes: bool,
}

/// A session or transfer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionDocument {
    /// Its name in the log.
    pub id: String,
    /// Both users, as the viewer may see them.
    pub users: [String; 2],
    /// The transports of both legs, once they are up.
    pub legs: Option<[String; 2]>,
    /// Seconds since it began.
    pub age_seconds: u64,
    /// Bytes so far, both directions.
    pub bytes: u64,
    /// Whether nothing encrypts it from end to end.
    pub is_plain: bool,
}
