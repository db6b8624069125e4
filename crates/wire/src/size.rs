//! The longest stanzas on the link, and the replacement of longer ones.
//!
//! A server ends the whole stream when a stanza exceeds its limit, so one user's stanza would cost all users the link.
//! Every stanza is therefore measured in the form in which it is written. That form can be much longer than the
//! received one: `&` in a CDATA section is one byte and becomes five.
//!
//! | too long | replacement |
//! |---|---|
//! | an answer | an error to the user that asked |
//! | a request, ours or a user's | nothing is sent; the sender gets the error that the addressee would send |
//! | a message | as for a request |
//! | an error, a presence, an answer with an id of that length | nothing: it is counted and logged |
//!
//! A stanza that cannot be written at all is replaced in the same way, and one before which too much waits.

use minidom::Element;
use rxml::{Namespace, xml_ncname};

use super::{
    ns,
    stanza::{Condition, ErrorType, Kind, Refusal, StanzaType},
    xml,
};

/// The longest stanza unless configured, in bytes. Prosody ends a component's stream at 524,288 and applies the same
/// limit between servers; the rest is room for what a server adds on the way. ejabberd has no limit of its own.
pub const DEFAULT: usize = 500_000;
/// The least that may be configured: every server accepts this much (RFC 6120, 13.12).
pub const LEAST: usize = 10_000;
/// The most that may be configured: all stanzas that wait to be written may not be longer together.
pub const MOST: usize = 8 << 20;
/// The longest stanza that a user's client sends. Prosody and ejabberd accept 262,144 bytes from clients; the rest is
/// room for the different spellings of the same stanza.
pub const CLIENT: usize = 250_000;
/// The size of a stanza with a block of an in-band bytestream, besides its base64: two addresses and the tags.
const BLOCK_FRAME: usize = 7_000;

/// Returns the length of a stanza, or of another element, in the form in which the link writes it.
///
/// # Errors
/// If it contains characters that XML cannot carry.
pub fn of(element: &Element) -> std::io::Result<usize> {
    let mut bytes = Vec::new();
    xml::write(element, &mut bytes)?;
    Ok(bytes.len())
}

/// Returns the largest block of an in-band bytestream, before base64, whose stanza is not longer than `limit`.
pub fn largest_block(limit: usize) -> u16 {
    u16::try_from(limit.saturating_sub(BLOCK_FRAME) / 4 * 3).unwrap_or(u16::MAX).max(1)
}

/// Returns the refusal of a stanza that would be too long to pass on.
pub fn refusal(size: usize, limit: usize) -> Refusal {
    let text = format!("The stanza would be {size} bytes long; at most {limit} are sent");
    too_big(text)
}

/// Returns the refusal of a request whose result would be too long.
fn answer_refusal(size: usize, limit: usize) -> Refusal {
    let text = format!(
        "The answer would be {size} bytes long; at most {limit} are sent: ask for less of it at once (XEP-0059)"
    );
    too_big(text)
}

/// Returns the error for something that is too long, with the condition of XEP-0205.
pub fn too_big(text: impl Into<String>) -> Refusal {
    Refusal::new(ErrorType::Modify, Condition::PolicyViolation, text)
        .with_extra("stanza-too-big", ns::ERRORS)
}

/// The replacement of a stanza that is too long.
#[derive(Clone, Debug, PartialEq)]
pub enum Instead {
    /// Send this.
    Send(Element),
    /// Send nothing, and return this as if from the addressee.
    Return(Element),
    /// Do nothing.
    Nothing,
}

/// Returns the replacement of `stanza`, which would be `size` bytes long where `limit` is allowed.
pub fn instead(stanza: &Element, size: usize, limit: usize) -> Instead {
    replaced(stanza, |is_answer| match is_answer {
        true => answer_refusal(size, limit),
        false => refusal(size, limit),
    })
}

/// Returns the replacement of `stanza`, which cannot be written.
pub fn instead_of_unwritable(stanza: &Element, error: &std::io::Error) -> Instead {
    let text = format!("The stanza cannot be passed on: {error}");
    replaced(stanza, |_| Refusal::new(ErrorType::Modify, Condition::NotAcceptable, text))
}

/// Returns the replacement of `stanza`, before which too much waits to be written.
pub fn instead_of_queued(stanza: &Element) -> Instead {
    let text = "The XMPP server reads too slowly: try again later";
    replaced(stanza, |_| Refusal::resource_constraint(text))
}

/// Returns the replacement for this refusal, which differs between answers and other stanzas.
fn replaced(stanza: &Element, refusal: impl FnOnce(bool) -> Refusal) -> Instead {
    let (refusal, returns) = match (stanza.name().parse(), StanzaType::of(stanza)) {
        (Ok(Kind::Iq), type_) if type_.asks() => (refusal(false), true),
        (Ok(Kind::Iq), _) => (refusal(true), false),
        (Ok(Kind::Message), type_) if type_ != StanzaType::Error => (refusal(false), true),
        _ => return Instead::Nothing,
    };
    let (from, to) = (stanza.attr("from"), stanza.attr("to"));
    let (from, to) = if returns { (to, from) } else { (from, to) };
    let mut error = Element::bare(stanza.name(), ns::CLIENT);
    for (name, value) in [
        (xml_ncname!("type"), Some("error")),
        (xml_ncname!("from"), from),
        (xml_ncname!("to"), to),
        (xml_ncname!("id"), stanza.attr("id")),
    ] {
        if let Some(value) = value {
            error.attrs_mut().insert(Namespace::NONE, name.to_owned(), value.to_owned());
        }
    }
    error.append_child(refusal.to_element());
    if returns { Instead::Return(error) } else { Instead::Send(error) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stanza(name: &str, type_: &str, filling: usize) -> Element {
        let mut stanza = xml::element(
            name,
            ns::CLIENT,
            &[("type", type_), ("from", "a@x/1"), ("to", "b@y/2"), ("id", "7")],
        );
        let mut payload = Element::bare("x", "urn:x");
        payload.append_text("x".repeat(filling));
        stanza.append_child(payload);
        stanza
    }

    #[test]
    fn requests_and_messages_come_back_and_answers_become_errors() {
        for (name, type_, from, to) in [
            ("iq", "get", Some("b@y/2"), Some("a@x/1")),
            ("iq", "set", Some("b@y/2"), Some("a@x/1")),
            ("message", "chat", Some("b@y/2"), Some("a@x/1")),
            ("iq", "result", Some("a@x/1"), Some("b@y/2")),
            ("iq", "error", Some("a@x/1"), Some("b@y/2")),
        ] {
            let returns = matches!(type_, "get" | "set" | "chat");
            let error = match instead(&stanza(name, type_, 10), 99, 98) {
                Instead::Return(error) if returns => error,
                Instead::Send(error) if !returns => error,
                other => panic!("{name} {type_}: {other:?}"),
            };
            assert_eq!((error.name(), error.attr("type")), (name, Some("error")));
            assert_eq!(
                (error.attr("from"), error.attr("to"), error.attr("id")),
                (from, to, Some("7"))
            );
            let reason = error.get_child("error", ns::CLIENT).unwrap();
            assert!(reason.has_child("policy-violation", ns::STANZA_ERRORS));
            assert!(reason.has_child("stanza-too-big", ns::ERRORS));
            let text = reason.get_child("text", ns::STANZA_ERRORS).unwrap().text();
            assert!(text.contains("99") && text.contains("98"), "{text}");
            assert!(of(&error).unwrap() < LEAST);
        }
        for (name, type_) in [("message", "error"), ("presence", ""), ("presence", "error")] {
            assert_eq!(instead(&stanza(name, type_, 10), 99, 98), Instead::Nothing);
        }
    }

    #[test]
    fn the_longest_addresses_and_a_block_of_that_size_fit() {
        // The longest possible JID (RFC 7622, 3.1).
        let part = "a".repeat(1023);
        let long = format!("{part}@{part}/{part}");
        for limit in [LEAST, 20_000, 100_000, DEFAULT, MOST] {
            let block = largest_block(limit);
            let text = "A".repeat(usize::from(block).div_ceil(3) * 4);
            let mut iq = xml::element(
                "iq",
                ns::CLIENT,
                &[("type", "set"), ("from", &long), ("to", &long), ("id", "ibb0123456789abcdef")],
            );
            let mut data =
                xml::element("data", ns::IBB, &[("sid", &"s".repeat(32)), ("seq", "65535")]);
            data.append_text(text);
            iq.append_child(data);
            assert!(of(&iq).unwrap() <= limit, "{limit}: {block}");
        }
    }

    proptest! {
        #[test]
        fn what_takes_the_place_is_short_whatever_was_too_long(
            name in prop_oneof!["iq", "message", "presence"],
            type_ in prop_oneof!["get", "set", "result", "error", "chat", ""],
            filling in 0_usize..5_000,
        ) {
            let (Instead::Send(error) | Instead::Return(error)) =
                instead(&stanza(&name, &type_, filling), 1, 0) else { return Ok(()) };
            prop_assert!(of(&error).unwrap() < 1_000);
        }
    }
}
