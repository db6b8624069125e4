//! Stanzas to a bare JID on their way to a resource: what is known of them, and what they wait for.

use fingerpost_carry::shares::Permit;
use fingerpost_wire::stanza::Stanza;
use jid::{FullJid, Jid};
use minidom::Element;
use tokio::time::Instant;

use crate::sessions::Left;

/// What was learned for a stanza since it came.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Whether its sender may know of its addressee.
    pub(super) admitted: bool,
    pub(super) choosing: Option<Choosing>,
}

impl Findings {
    /// Creates findings that say whether its sender may know of its addressee.
    pub(super) fn admitted(admitted: bool) -> Self {
        Self { admitted, choosing: None }
    }
}

/// A choice of a resource in progress.
#[derive(Debug)]
pub(super) struct Choosing {
    pub(super) since: Instant,
    /// The resources that have not taken it.
    pub(super) tried: Vec<FullJid>,
    /// The error of the last of these.
    pub(super) error: Option<Element>,
    /// Since when one of these has been silent.
    pub(super) silent: Option<Instant>,
    /// Whether a server refuses to deliver to one of them.
    pub(super) is_refused: bool,
    /// The place among the requests in work.
    pub(super) permit: Option<Permit>,
}

impl Choosing {
    pub(super) fn new(since: Instant) -> Self {
        Self {
            since,
            tried: Vec::new(),
            error: None,
            silent: None,
            is_refused: false,
            permit: None,
        }
    }
}

/// The resource that gets a stanza.
#[derive(Debug)]
pub(super) struct ChosenResource {
    /// The full JID.
    pub(super) jid: Jid,
    /// The choice for a bare JID.
    pub(super) choosing: Option<Choosing>,
}

#[cfg(test)]
impl ChosenResource {
    /// Creates a choice of a resource that has just shown itself.
    pub(super) fn sure(jid: Jid) -> Self {
        Self { jid, choosing: Some(Choosing::new(Instant::now())) }
    }
}

/// A stanza that waits for the answers of resources.
#[derive(Debug)]
pub(super) struct WaitingStanza {
    pub(super) stanza: Stanza,
    pub(super) choosing: Choosing,
}

/// A session-initiate that its callee did not acknowledge.
#[derive(Debug)]
pub struct Unanswered {
    pub(super) stanza: Stanza,
    pub(super) callee: Jid,
    pub(super) tried: Vec<FullJid>,
    /// Its error, if any.
    pub(super) error: Option<Element>,
    pub(super) at: Instant,
    /// Its session, with the stanzas of its initiator since.
    pub(super) left: Left,
}
