//! Stream management (XEP-0198) of a client's stream: the stanzas that each side has handled, and those that are sent
//! again when the stream is resumed.
//!
//! A state machine without input or output. It outlives the connection: its state makes the next connection the same
//! session.

use std::{collections::VecDeque, time::Duration};

use fingerpost_wire::{ns, xml};
use minidom::Element;

/// With this many unacknowledged bytes no more is sent. The connection itself may hold as much.
const FULL: usize = 256 << 10;
/// With more unacknowledged bytes than this, or [`MOST`] stanzas, the session can no longer be resumed. Such an amount
/// comes from answers that the server does not acknowledge, and must not grow without end.
const LIMIT: usize = 4 << 20;
/// See [`LIMIT`].
const MOST: usize = 4096;
/// How long the server is asked to keep the session, in seconds. A component gives its user up after about as long, and
/// a program that was killed does not appear to be coming back for longer.
const KEEP: u64 = 60;
/// The longest stored identifier of a session, in bytes. It goes back to the server in one attribute.
const LONGEST_ID: usize = 4000;

/// The server claims to have handled more than it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server acknowledges stanzas that were never sent")]
pub(super) struct HandledCountTooHigh;

/// The counts of both sides of a managed stream.
#[derive(Debug)]
pub(super) struct Management {
    /// The session's identifier; `None` if it cannot be resumed.
    id: Option<String>,
    /// How long after its loss it can be resumed, at most.
    max: Duration,
    /// Stanzas of the server that were handled, modulo 2^32.
    handled: u32,
    /// Stanzas that the server has acknowledged, modulo 2^32.
    acknowledged: u32,
    /// The stanzas sent after them, as bytes.
    unacknowledged: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Whether an acknowledgement was requested and has not come.
    is_asked: bool,
}

impl Management {
    /// Returns the request to begin: `<enable/>`.
    pub(super) fn enable() -> Element {
        let keep = KEEP.to_string();
        xml::element("enable", ns::SM, &[("resume", "true"), ("max", &keep)])
    }

    /// Creates the state with the server's `<enabled/>`.
    pub(super) fn new(enabled: &Element) -> Self {
        let can_resume = matches!(enabled.attr("resume"), Some("true" | "1"));
        let id = enabled.attr("id").filter(|id| can_resume && id.len() <= LONGEST_ID);
        let max = enabled.attr("max").and_then(|max| max.parse().ok()).unwrap_or(KEEP);
        Self {
            id: id.map(str::to_owned),
            // Servers may keep it longer than requested, and an attempt does no harm.
            max: Duration::from_secs(max.min(3600)),
            handled: 0,
            acknowledged: 0,
            unacknowledged: VecDeque::new(),
            bytes: 0,
            is_asked: false,
        }
    }

    /// Returns how long after the loss of its connection the session may be resumed; `None` if it cannot be.
    pub(super) fn resumable(&self) -> Option<Duration> {
        self.id.as_ref().map(|_| self.max)
    }

    /// Returns the request to continue on another stream: `<resume/>`.
    pub(super) fn resume(&self) -> Option<Element> {
        let handled = self.handled.to_string();
        let id = self.id.as_ref()?;
        Some(xml::element("resume", ns::SM, &[("h", &handled), ("previd", id)]))
    }

    /// Counts a stanza of the server.
    pub(super) fn received(&mut self) {
        self.handled = self.handled.wrapping_add(1);
    }

    /// Returns the count of the server's stanzas that were handled: `<a/>`.
    pub(super) fn answer(&self) -> Element {
        xml::element("a", ns::SM, &[("h", &self.handled.to_string())])
    }

    /// Keeps a sent stanza until it is acknowledged.
    pub(super) fn sent(&mut self, stanza: &[u8]) {
        if self.bytes + stanza.len() > LIMIT || self.unacknowledged.len() >= MOST {
            self.id = None;
        }
        // If the session cannot be resumed, stanzas are only counted.
        let kept = if self.id.is_some() { stanza.to_vec() } else { Vec::new() };
        if self.id.is_none() && self.bytes > 0 {
            self.unacknowledged.iter_mut().for_each(|stanza| *stanza = Vec::new());
            self.bytes = 0;
        }
        self.bytes += kept.len();
        self.unacknowledged.push_back(kept);
    }

    /// Returns whether more may be sent.
    pub(super) fn has_room(&self) -> bool {
        self.bytes < FULL && self.unacknowledged.len() < MOST
    }

    /// Returns the request for an acknowledgement, `<r/>`, if one is due: something is unacknowledged, or `always` is
    /// set, and none was requested.
    pub(super) fn ask(&mut self, always: bool) -> Option<Element> {
        if self.is_asked || (self.unacknowledged.is_empty() && !always) {
            return None;
        }
        self.is_asked = true;
        Some(Element::bare("r", ns::SM))
    }

    /// Takes an acknowledgement: `<a h='…'/>`.
    ///
    /// # Errors
    /// [`HandledCountTooHigh`]; the stream must be given up.
    pub(super) fn acknowledge(&mut self, answer: &Element) -> Result<(), HandledCountTooHigh> {
        let handled = handled(answer).ok_or(HandledCountTooHigh)?;
        self.is_asked = false;
        self.forget(handled)
    }

    /// Continues on another stream, with the server's `<resumed/>`. Returns the stanzas to send again, in their order.
    ///
    /// # Errors
    /// [`HandledCountTooHigh`]; the stream must be given up, and the session with it.
    pub(super) fn resumed(
        &mut self,
        resumed: &Element,
    ) -> Result<impl Iterator<Item = &[u8]>, HandledCountTooHigh> {
        let handled = handled(resumed).ok_or(HandledCountTooHigh)?;
        self.is_asked = false;
        self.forget(handled)?;
        Ok(self.unacknowledged.iter().map(Vec::as_slice))
    }

    fn forget(&mut self, handled: u32) -> Result<(), HandledCountTooHigh> {
        let more = handled.wrapping_sub(self.acknowledged);
        let more = usize::try_from(more).map_err(|_| HandledCountTooHigh)?;
        if more > self.unacknowledged.len() {
            return Err(HandledCountTooHigh);
        }
        for stanza in self.unacknowledged.drain(..more) {
            self.bytes -= stanza.len();
        }
        self.acknowledged = handled;
        Ok(())
    }
}

fn handled(element: &Element) -> Option<u32> {
    element.attr("h")?.parse().ok()
}

/// Returns whether an element is counted, that is, a stanza.
pub(super) fn is_counted(element: &Element) -> bool {
    element.has_ns(ns::CLIENT) && matches!(element.name(), "iq" | "message" | "presence")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn managed() -> Management {
        let enabled = [("resume", "true"), ("id", "x"), ("max", "300")];
        Management::new(&xml::element("enabled", ns::SM, &enabled))
    }

    fn with_h(name: &str, h: &str) -> Element {
        xml::element(name, ns::SM, &[("h", h)])
    }

    fn texts<'a>(stanzas: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
        stanzas.map(|stanza| String::from_utf8(stanza.to_vec()).unwrap()).collect()
    }

    #[test]
    fn exactly_what_the_server_has_not_handled_is_sent_again() {
        let mut managed = managed();
        for stanza in ["a", "b", "c", "d"] {
            managed.sent(stanza.as_bytes());
        }
        managed.acknowledge(&with_h("a", "1")).unwrap();
        // A repeated acknowledgement changes nothing.
        managed.acknowledge(&with_h("a", "1")).unwrap();
        assert_eq!(texts(managed.resumed(&with_h("resumed", "3")).unwrap()), ["d"]);
        managed.sent(b"e");
        // The connection is lost again before anything was acknowledged.
        assert_eq!(texts(managed.resumed(&with_h("resumed", "3")).unwrap()), ["d", "e"]);
        assert_eq!(texts(managed.resumed(&with_h("resumed", "5")).unwrap()), [""; 0]);
        assert_eq!(managed.bytes, 0);
    }

    #[test]
    fn the_count_of_what_was_handled_is_told_and_wraps() {
        let mut managed = managed();
        managed.received();
        managed.received();
        assert_eq!(managed.answer().attr("h"), Some("2"));
        let resume = managed.resume().unwrap();
        assert_eq!((resume.attr("h"), resume.attr("previd")), (Some("2"), Some("x")));
        managed.handled = u32::MAX;
        managed.received();
        assert_eq!(managed.answer().attr("h"), Some("0"));
        managed.acknowledged = u32::MAX;
        managed.sent(b"a");
        managed.sent(b"b");
        assert_eq!(texts(managed.resumed(&with_h("resumed", "0")).unwrap()), ["b"]);
        managed.acknowledge(&with_h("a", "1")).unwrap();
    }

    #[test]
    fn a_server_that_acknowledges_too_much_or_nothing_readable_is_given_up() {
        for h in ["3", "4294967295", "-1", "", "x", "99999999999"] {
            let mut managed = managed();
            managed.sent(b"a");
            managed.sent(b"b");
            assert_eq!(managed.acknowledge(&with_h("a", h)), Err(HandledCountTooHigh), "{h}");
            assert!(managed.resumed(&with_h("resumed", h)).is_err(), "{h}");
        }
        let mut managed = managed();
        managed.sent(b"a");
        managed.acknowledge(&with_h("a", "1")).unwrap();
        // Nor may the count decrease.
        assert_eq!(managed.acknowledge(&with_h("a", "0")), Err(HandledCountTooHigh));
    }

    #[test]
    fn one_acknowledgement_is_asked_for_at_a_time() {
        let mut managed = managed();
        assert_eq!(managed.ask(false), None);
        managed.sent(b"a");
        assert!(managed.ask(false).is_some_and(|r| r.is("r", ns::SM)));
        managed.sent(b"b");
        assert_eq!(managed.ask(true), None);
        managed.acknowledge(&with_h("a", "1")).unwrap();
        assert!(managed.ask(false).is_some());
        managed.acknowledge(&with_h("a", "2")).unwrap();
        assert_eq!(managed.ask(false), None);
        assert!(managed.ask(true).is_some());
    }

    #[test]
    fn what_is_kept_for_a_server_that_acknowledges_nothing_is_bounded() {
        let mut managed = managed();
        let stanza = vec![b'x'; 100_000];
        managed.sent(&stanza);
        assert!(managed.has_room());
        for _ in 0..2 {
            managed.sent(&stanza);
        }
        assert!(!managed.has_room());
        for n in 0..100 {
            managed.sent(&stanza);
            assert!(managed.bytes <= LIMIT, "{n}");
        }
        assert_eq!((managed.resumable(), managed.bytes), (None, 0));
        assert!(managed.resume().is_none());
        // The counts still hold.
        managed.acknowledge(&with_h("a", "103")).unwrap();
        let mut managed = self::managed();
        for _ in 0..=MOST {
            managed.sent(b"x");
        }
        assert_eq!(managed.resumable(), None);
    }

    #[test]
    fn a_server_may_manage_a_stream_without_resumption() {
        for attributes in
            [&[][..], &[("id", "x")], &[("resume", "true")], &[("resume", "false"), ("id", "x")]]
        {
            let managed = Management::new(&xml::element("enabled", ns::SM, attributes));
            assert_eq!(managed.resumable(), None, "{attributes:?}");
        }
        let long = "x".repeat(LONGEST_ID + 1);
        let enabled = [("resume", "1"), ("id", long.as_str())];
        assert_eq!(Management::new(&xml::element("enabled", ns::SM, &enabled)).resumable(), None);
        assert_eq!(managed().resumable(), Some(Duration::from_secs(300)));
    }

    #[test]
    fn stanzas_are_counted_and_nothing_else() {
        for name in ["iq", "message", "presence"] {
            assert!(is_counted(&Element::bare(name, ns::CLIENT)), "{name}");
            assert!(!is_counted(&Element::bare(name, ns::SM)), "{name}");
        }
        assert!(!is_counted(&Element::bare("r", ns::SM)));
        assert!(!is_counted(&Element::bare("features", ns::STREAM)));
    }
}
