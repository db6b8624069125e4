//! Acknowledgement of stanzas (XEP-0198, sections 3 and 4), between the two ends of one stream and without resumption.
//!
//! On an end-to-end stream, an `<a/>` states that the other *user's program* has handled a stanza, like a delivery
//! receipt (XEP-0184) on a stream to a server. XEP-0198 does that for all stanzas with one number, needs no echoed ids,
//! and shows at the end of the stream what was not handled. So it is used here.

use fingerpost_wire::{ns, xml};
use minidom::Element;

use super::Fault;

/// Counts stanzas in both directions.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    sending: Option<u32>,
    acknowledged: u32,
    receiving: Option<u32>,
}

/// The result of an element of XEP-0198.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing to do.
    Done,
    /// Send this.
    Reply(Element),
    /// The peer has handled so many more of our stanzas.
    Handled(u32),
    /// The peer does not count stanzas: nothing will be acknowledged.
    Unavailable,
}

impl Acks {
    /// Returns the stream feature of the responder.
    pub(crate) fn feature() -> Element {
        Element::bare("sm", ns::SM)
    }

    /// Returns the initiator's request, to be sent before its first stanza; stanzas from now on count.
    pub(crate) fn enable(&mut self) -> Element {
        self.sending = Some(0);
        Element::bare("enable", ns::SM)
    }

    /// Returns whether stanzas are counted.
    pub(crate) fn is_on(&self) -> bool {
        self.sending.is_some()
    }

    /// Counts a sent stanza; returns the request to acknowledge it, if the peer counts stanzas.
    pub(crate) fn sent(&mut self) -> Option<Element> {
        let sent = self.sending.as_mut()?;
        *sent = sent.wrapping_add(1);
        Some(Element::bare("r", ns::SM))
    }

    /// Counts a stanza that was received and handled.
    pub(crate) fn received(&mut self) {
        if let Some(received) = &mut self.receiving {
            *received = received.wrapping_add(1);
        }
    }

    /// Returns the acknowledgement to send before the stream is closed.
    pub(crate) fn last_word(&self) -> Option<Element> {
        self.receiving.map(answer)
    }

    /// Handles an element in the namespace of XEP-0198.
    ///
    /// # Errors
    /// [`Fault::HandledTooMany`] if the peer acknowledges stanzas that were not sent, [`Fault::Unsupported`] if the
    /// element is unknown.
    pub(crate) fn handle(&mut self, element: &Element) -> Result<Step, Fault> {
        match (element.name(), self.sending, self.receiving) {
            ("enable", _, None) => {
                self.receiving = Some(0);
                self.sending.get_or_insert(0);
                Ok(Step::Reply(Element::bare("enabled", ns::SM)))
            }
            ("enabled", Some(_), None) => {
                self.receiving = Some(0);
                Ok(Step::Done)
            }
            ("failed", Some(_), _) => {
                self.sending = None;
                Ok(Step::Unavailable)
            }
            ("r", _, Some(received)) => Ok(Step::Reply(answer(received))),
            ("a", Some(sent), _) => {
                let handled: u32 =
                    element.attr("h").and_then(|h| h.parse().ok()).ok_or(Fault::BadFormat)?;
                // Modulo 2^32, as in XEP-0198.
                let more = handled.wrapping_sub(self.acknowledged);
                if more > sent.wrapping_sub(self.acknowledged) {
                    return Err(Fault::HandledTooMany { handled, sent });
                }
                self.acknowledged = handled;
                Ok(Step::Handled(more))
            }
            _ => Err(Fault::Unsupported),
        }
    }
}

fn answer(received: u32) -> Element {
    xml::element("a", ns::SM, &[("h", &received.to_string())])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a(h: &str) -> Element {
        xml::element("a", ns::SM, &[("h", h)])
    }

    #[test]
    fn each_side_counts_what_the_other_has_handled() {
        let (mut romeo, mut juliet) = (Acks::default(), Acks::default());
        let enable = romeo.enable();
        let Ok(Step::Reply(enabled)) = juliet.handle(&enable) else { panic!("no enabled") };
        assert_eq!(romeo.handle(&enabled), Ok(Step::Done));
        for _ in 0..2 {
            romeo.sent();
            juliet.received();
        }
        let request = romeo.sent().unwrap();
        let Ok(Step::Reply(answer)) = juliet.handle(&request) else { panic!("no answer") };
        assert_eq!(romeo.handle(&answer), Ok(Step::Handled(2)));
        juliet.received();
        assert_eq!(romeo.handle(&juliet.last_word().unwrap()), Ok(Step::Handled(1)));
    }

    #[test]
    fn counts_wrap_after_2_to_the_32() {
        let mut acks = Acks { sending: Some(u32::MAX), acknowledged: u32::MAX, receiving: Some(0) };
        acks.sent();
        acks.sent();
        assert_eq!(acks.handle(&a("1")), Ok(Step::Handled(2)));
    }

    #[test]
    fn what_was_not_sent_cannot_be_acknowledged() {
        let mut acks = Acks::default();
        acks.enable();
        acks.sent();
        assert_eq!(acks.handle(&a("2")), Err(Fault::HandledTooMany { handled: 2, sent: 1 }));
        assert_eq!(acks.handle(&a("-1")), Err(Fault::BadFormat));
        assert_eq!(acks.handle(&a("1")), Ok(Step::Handled(1)));
        assert_eq!(acks.handle(&a("0")), Err(Fault::HandledTooMany { handled: 0, sent: 1 }));
    }

    #[test]
    fn a_peer_that_does_not_count_is_not_asked() {
        let mut acks = Acks::default();
        assert_eq!(acks.sent(), None);
        acks.enable();
        assert_eq!(acks.handle(&Element::bare("failed", ns::SM)), Ok(Step::Unavailable));
        assert_eq!(acks.sent(), None);
    }
}
