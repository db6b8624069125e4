//! Why a file is refused, in the words of stream initiation (XEP-0095) and of Jingle (XEP-0166).

use fingerpost_wire::{
    jingle::Reason,
    ns,
    stanza::{Condition, ErrorType, Refusal},
};
use jid::BareJid;
use minidom::Element;

/// Returns the answer to a sender's offer for a session that a receiver, or the component, has ended for this reason. `None`: a
/// reason that is not of XEP-0166.
pub(super) fn refusal(reason: Option<Reason>, text: String, receiver: &BareJid) -> Refusal {
    let (type_, condition, default) = match reason {
        Some(Reason::Decline | Reason::Cancel) => {
            (ErrorType::Cancel, Condition::Forbidden, "declined the file")
        }
        Some(Reason::Busy) => {
            (ErrorType::Wait, Condition::ResourceConstraint, "is busy: try again later")
        }
        Some(Reason::Gone) => (ErrorType::Wait, Condition::RecipientUnavailable, "went away"),
        Some(Reason::Timeout | Reason::Expired) => {
            (ErrorType::Wait, Condition::RemoteServerTimeout, "did not answer in time")
        }
        Some(Reason::UnsupportedTransports) => {
            (ErrorType::Cancel, Condition::BadRequest, "takes none of the bytestreams")
        }
        Some(Reason::UnsupportedApplications) => {
            (ErrorType::Cancel, Condition::ServiceUnavailable, "cannot receive this file")
        }
        _ => (ErrorType::Cancel, Condition::ServiceUnavailable, "did not take the file"),
    };
    let text = match text.is_empty() {
        true => format!("{receiver} {default}"),
        false => text,
    };
    let refusal = Refusal::new(type_, condition, text);
    match reason {
        Some(Reason::UnsupportedTransports) => refusal.with_extra("no-valid-streams", ns::SI),
        _ => refusal,
    }
}

/// Returns the reason and the text for a sender whose offer a receiver has answered with this error.
pub(super) fn reason(error: &Element, receiver: &BareJid) -> (Reason, String) {
    let (reason, default) = match Condition::of(error) {
        _ if error.has_child("no-valid-streams", ns::SI) => {
            (Reason::UnsupportedTransports, "takes none of the bytestreams")
        }
        Some(Condition::Forbidden | Condition::NotAcceptable | Condition::NotAllowed) => {
            (Reason::Decline, "declined the file")
        }
        Some(Condition::ResourceConstraint) => (Reason::Busy, "is busy: try again later"),
        Some(
            Condition::Gone
            | Condition::ItemNotFound
            | Condition::RecipientUnavailable
            | Condition::RemoteServerNotFound,
        ) => (Reason::Gone, "went away"),
        Some(Condition::RemoteServerTimeout) => (Reason::Timeout, "did not answer in time"),
        Some(
            Condition::FeatureNotImplemented
            | Condition::ServiceUnavailable
            | Condition::BadRequest,
        ) => (Reason::UnsupportedApplications, "cannot receive this file"),
        _ => (Reason::GeneralError, "did not take the file"),
    };
    let text = error.get_child("text", ns::STANZA_ERRORS).map(Element::text);
    let text = text.filter(|text| !text.is_empty());
    (reason, text.unwrap_or_else(|| format!("{receiver} {default}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_the_same_in_both_protocols_and_says_who_gave_it() {
        let bob = BareJid::new("bob@example.org").unwrap();
        for reason in [
            Reason::Decline,
            Reason::Busy,
            Reason::Gone,
            Reason::Timeout,
            Reason::UnsupportedTransports,
            Reason::UnsupportedApplications,
        ] {
            let error = refusal(Some(reason), String::new(), &bob).to_element();
            let (back, text) = super::reason(&error, &bob);
            assert_eq!(back, reason);
            assert!(text.starts_with("bob@example.org "), "{text}");
            let error = refusal(Some(reason), "Not today".to_owned(), &bob).to_element();
            assert_eq!(super::reason(&error, &bob), (reason, "Not today".to_owned()));
        }
        for reason in Reason::ALL.iter().map(|reason| Some(*reason)).chain([None]) {
            let refusal = refusal(reason, String::new(), &bob);
            assert!(!refusal.text.is_empty(), "{reason:?}");
        }
    }

    #[test]
    fn a_user_that_declines_is_told_from_one_that_is_away() {
        let bob = BareJid::new("bob@example.org").unwrap();
        let of = |inside: &str| {
            let error = format!("<error xmlns='jabber:client' type='cancel'>{inside}</error>");
            super::reason(&error.parse().unwrap(), &bob).0
        };
        let stanzas = "xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'";
        // As Pidgin, Psi and QXmpp answer.
        let declined = format!("<forbidden {stanzas}/><text {stanzas}>Offer Declined</text>");
        assert_eq!(of(&declined), Reason::Decline);
        assert_eq!(of(&format!("<recipient-unavailable {stanzas}/>")), Reason::Gone);
        let streams = "<no-valid-streams xmlns='http://jabber.org/protocol/si'/>";
        let streams = format!("<bad-request {stanzas}/>{streams}");
        assert_eq!(of(&streams), Reason::UnsupportedTransports);
        assert_eq!(of(""), Reason::GeneralError);
    }
}
