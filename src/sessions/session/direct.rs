//! Direct paths: whether both users have agreed to them, and what they report of them.
//!
//! Two programs of users may move their TLS stream from the component to a connection of their own. Each of them says
//! in its offer or answer that it can, by `<paths/>` in the content. Later the initiator reports how many bytes went
//! that way. The component has nothing else to do with it, and cannot check the reports, so what they count for has
//! limits.

use fingerpost_wire::{ns, stanza::Stanza, xml};
use minidom::Element;
use tokio::time::Instant;

use super::{BrokeredSession, SessionAction, SessionPhase};

/// The most bytes that a report counts for, for each second since the one before: 10 Gbit/s.
const PER_SECOND: u64 = 1_250_000_000;
/// The most bytes that all reports of one session count for: 16 TiB.
const PER_SESSION: u64 = 1 << 44;

/// Returns whether a content asks for direct paths, or agrees to them.
pub(super) fn is_asked_for(content: &Element) -> bool {
    content.has_child("paths", ns::PATHS)
}

/// Removes the question for direct paths, and the answer to it, from a Jingle stanza: in its contents of any Jingle
/// namespace, and beside them.
pub(super) fn remove(stanza: &mut Stanza) {
    for jingle in stanza.element.children_mut().filter(|child| child.name() == "jingle") {
        xml::remove_children(jingle, "paths", ns::PATHS);
        for content in jingle.children_mut().filter(|child| child.name() == "content") {
            xml::remove_children(content, "paths", ns::PATHS);
        }
    }
}

/// What the initiator has reported of direct paths.
#[derive(Debug)]
pub(super) struct DirectUse {
    /// The bytes that were counted.
    counted: u64,
    /// When the last report came, or the session was accepted.
    since: Instant,
    /// Whether the session has gone direct.
    began: bool,
}

impl DirectUse {
    /// Returns the state of a session without a report.
    pub(super) fn new(now: Instant) -> Self {
        Self { counted: 0, since: now, began: false }
    }

    /// Takes a report: whether a direct path is in use, and the bytes that direct paths have carried so far. Returns the bytes
    /// to count, and whether it is the first report of a direct path. `None`: there is nothing to count.
    fn report(&mut self, is_direct: bool, total: u64, now: Instant) -> Option<(u64, bool)> {
        let millis = now.saturating_duration_since(self.since).as_millis();
        let millis = u64::try_from(millis).unwrap_or(u64::MAX);
        let most = millis.saturating_mul(PER_SECOND / 1000);
        let bytes = total.min(PER_SESSION).saturating_sub(self.counted).min(most);
        let first = !self.began && (is_direct || total > 0);
        self.counted += bytes;
        self.since = now;
        self.began |= first;
        (first || bytes > 0).then_some((bytes, first))
    }
}

impl BrokeredSession {
    /// Counts what a session-info of the initiator reports of direct paths, if there can be any.
    pub(super) fn count_direct(&mut self, jingle: &Element, now: Instant) {
        let (Some(direct), Some(report)) = (&mut self.direct, jingle.get_child("path", ns::PATHS))
        else {
            return;
        };
        // A direct path begins with a stream over the component, and its last report may follow the end of that.
        if matches!(self.phase, SessionPhase::Checking { .. } | SessionPhase::Negotiating) {
            return;
        }
        let is_direct = report.attr("kind") == Some("direct");
        let total = report.attr("bytes").and_then(|bytes| bytes.parse().ok()).unwrap_or_default();
        if let Some((bytes, first)) = direct.report(is_direct, total, now) {
            self.actions.push_back(SessionAction::CountDirect { bytes, first });
        }
    }
}
