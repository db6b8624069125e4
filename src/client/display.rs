//! What others wrote, made safe to be shown: nothing in it can control a terminal or change the order of what is read.

/// Text of a peer for one line of a terminal, or with `line_start` for several: what a break is followed by.
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

/// A line of JSON with what could control a terminal as escapes: the same JSON to a program.
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

fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{061C}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}'
            | '\u{2028}' | '\u{2029}' | '\u{FFF9}'..='\u{FFFB}' | '\u{FEFF}' | '\u{E0000}'..='\u{E007F}')
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
