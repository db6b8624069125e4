//! Makes strangers' text safe to show: it cannot control a terminal or change the reading order.

use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

/// Returns a peer's text for one line of a terminal, or for several lines if `line_start` gives their prefix.
///
/// Control characters (C0, DEL, C1), the controls of writing direction (Unicode TR 9), separators of lines and
/// paragraphs and tag characters are shown as `<U+XXXX>`. A tab is a space.
pub(crate) fn shown(text: &str, line_start: Option<&str>) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match (c, line_start) {
            ('\t', _) => out.push(' '),
            ('\n', Some(start)) => {
                out.push('\n');
                out.push_str(start);
            }
            (c, _) if is_unsafe(c) => out.push_str(&format!("<U+{:04X}>", u32::from(c))),
            (c, _) => out.push(c),
        }
    }
    out
}

/// Returns a line of JSON with escapes for characters that could control a terminal; a program reads the same JSON.
pub(crate) fn escaped_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if is_unsafe(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// Returns whether a character can control a terminal or change the reading order: the controls (general category Cc),
/// the format characters (Cf: direction, tags, byte order marks) and the separators of lines and paragraphs (Zl, Zp).
/// The two joiners, which emoji and many scripts need, do neither.
fn is_unsafe(c: char) -> bool {
    is_control(c) && !matches!(c, '\u{200C}' | '\u{200D}')
}

fn is_control(c: char) -> bool {
    use GeneralCategory::{Control, Format, LineSeparator, ParagraphSeparator, Surrogate};
    matches!(
        c.general_category(),
        Control | Format | LineSeparator | ParagraphSeparator | Surrogate
    )
}

/// Returns whether a character does not belong into a name: [`is_unsafe`], or invisible, so that two names look the
/// same.
pub(super) fn is_hidden(c: char) -> bool {
    is_control(c) || is_ignorable(c)
}

/// Returns whether a character outside Cf has the property `Default_Ignorable_Code_Point` (Unicode 16,
/// DerivedCoreProperties.txt): fillers, variation selectors, and places reserved for more of them.
fn is_ignorable(c: char) -> bool {
    matches!(c,
        '\u{034F}' | '\u{115F}'..='\u{1160}' | '\u{17B4}'..='\u{17B5}' | '\u{180B}'..='\u{180F}' | '\u{2065}'
        | '\u{3164}' | '\u{FE00}'..='\u{FE0F}' | '\u{FFA0}' | '\u{FFF0}'..='\u{FFF8}' | '\u{E0000}'..='\u{E0FFF}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_controls_the_terminal_or_the_order_of_reading() {
        let evil = "a\u{1b}[2J\u{9b}31m\r\u{7}\u{202E}txt\u{2066}\u{E0041}é👍\u{2028}";
        let safe = shown(evil, None);
        assert_eq!(
            safe,
            "a<U+001B>[2J<U+009B>31m<U+000D><U+0007><U+202E>txt<U+2066><U+E0041>é👍<U+2028>"
        );
        assert_eq!(shown("one\ntwo", None), "one<U+000A>two");
        assert_eq!(shown("one\ntwo\tthree", Some("  ")), "one\n  two three");
    }

    #[test]
    fn json_says_the_same_to_a_program_and_nothing_to_a_terminal() {
        let text = "a\u{9b}\u{202E}\u{1b}\u{E0041}é👍";
        let line = escaped_json(&serde_json::json!({ "text": text }).to_string());
        assert!(!line.chars().any(is_unsafe), "{line}");
        let back: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(back["text"], text);
    }
}
