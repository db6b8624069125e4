//! The characters that XML 1.0 can carry (its production 2, `Char`): all text of a stanza is checked here.
//!
//! Control characters, U+FFFE and U+FFFF have no spelling in XML 1.0, not even as references. A stanza with one of them
//! cannot be written, and its sender would wait for an answer that never comes.

use std::borrow::Cow;

use minidom::{Element, Node};

/// Returns whether XML can carry a character.
pub fn is_carried(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{FFFD}' | '\u{10000}'..)
}

/// Returns the first character of a text that XML cannot carry.
pub fn first_not_carried(text: &str) -> Option<char> {
    text.chars().find(|c| !is_carried(*c))
}

/// Returns the text with U+FFFD in place of each character that XML cannot carry.
pub fn carried(text: &str) -> Cow<'_, str> {
    match first_not_carried(text) {
        None => Cow::Borrowed(text),
        Some(_) => Cow::Owned(
            text.chars()
                .map(|c| if is_carried(c) { c } else { char::REPLACEMENT_CHARACTER })
                .collect(),
        ),
    }
}

/// Replaces characters that XML cannot carry in the attributes and texts of an element, at every depth.
pub fn replace_not_carried(element: &mut Element) {
    let replace = |text: &mut String| {
        if let Cow::Owned(replaced) = carried(text) {
            *text = replaced;
        }
    };
    element.attrs_mut().values_mut().for_each(replace);
    for node in element.nodes_mut() {
        match node {
            Node::Element(child) => replace_not_carried(child),
            Node::Text(text) => replace(text),
        }
    }
}

/// Returns an error's text as it is shown to a user: one line, without control characters, and not too long. Errors of
/// libraries may repeat what strangers have sent.
pub fn sentence(text: &str) -> Cow<'_, str> {
    const LONGEST: usize = 500;
    let bad =
        |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{fffe}' | '\u{ffff}');
    if text.len() <= LONGEST && !text.chars().any(bad) {
        return Cow::Borrowed(text);
    }
    let plain = text.chars().map(|c| if bad(c) { ' ' } else { c });
    let mut short: String = plain.clone().take(LONGEST).collect();
    if plain.count() > LONGEST {
        short.push('…');
    }
    Cow::Owned(short)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xml;

    #[test]
    fn every_character_is_carried_or_replaced_by_one_that_is() {
        for c in '\0'..=char::MAX {
            let text = c.to_string();
            let carried = carried(&text);
            assert!(carried.chars().all(is_carried), "U+{:04X}", u32::from(c));
            assert_eq!(carried == text, is_carried(c), "U+{:04X}", u32::from(c));
        }
        let not: Vec<_> = ('\0'..=char::MAX).filter(|c| !is_carried(*c)).map(u32::from).collect();
        let controls = (0..0x20).filter(|c| ![9, 10, 13].contains(c));
        assert_eq!(not, controls.chain([0xFFFE, 0xFFFF]).collect::<Vec<_>>());
    }

    #[test]
    fn a_stanza_is_written_whatever_its_texts_are() {
        let mut stanza = xml::element("message", "jabber:client", &[("id", "a\u{1}b")]);
        let mut body = Element::bare("body", "jabber:client");
        body.append_text("c\u{FFFE}d");
        stanza.append_child(body);
        let mut out = Vec::new();
        xml::write(&stanza, &mut out).unwrap();
        let out = String::from_utf8(out).unwrap();
        assert!(out.contains("a\u{FFFD}b") && out.contains("c\u{FFFD}d"), "{out}");
        replace_not_carried(&mut stanza);
        assert_eq!(stanza.attr("id"), Some("a\u{FFFD}b"));
        assert_eq!(stanza.children().next().unwrap().text(), "c\u{FFFD}d");
    }

    #[test]
    fn a_sentence_is_one_line_of_bounded_length() {
        assert_eq!(sentence("expected a key"), "expected a key");
        assert_eq!(sentence("a\nb\u{1}c\u{85}d\u{ffff}"), "a b c d ");
        let long = sentence(&"ä".repeat(600)).into_owned();
        assert_eq!((long.chars().count(), long.ends_with('…')), (501, true));
    }
}
