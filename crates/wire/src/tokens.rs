//! Splits the bytes of an XML stream into tags, text and the rest, however reads have cut them.
//!
//! quick-xml finds the end of a tag, a comment or a processing instruction, splits attributes, resolves references and
//! normalizes white space and line ends (XML 1.0, 2.11 and 3.3.3). This module keeps incomplete tokens, within a limit.
//! [`super::xml`] handles names, namespaces and nesting.

use std::borrow::Cow;

use quick_xml::{
    XmlVersion,
    escape::unescape,
    events::{BytesText, attributes::Attributes},
    parser::{CommentParser, ElementParser, Parser, PiParser},
};

use super::text::carried;

/// The longest reference; `&#x10FFFF;` has ten bytes, and may have leading zeros.
const REFERENCE: usize = 256;
/// An attribute value longer than this is emptied if its tag is too long to keep.
const LONG_VALUE: usize = 1024;
/// The kept part of a comment or processing instruction: enough to recognize an XML declaration.
const BEGINNING: usize = 16;

/// Why bytes cannot be parsed further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not XML.
    #[error("not well-formed XML: {0}")]
    NotWellFormed(&'static str),
    /// XML that no XMPP stream may have (RFC 6120, 11.1).
    #[error("XML that XMPP forbids: {0}")]
    Restricted(&'static str),
    /// Text between stanzas, where that ends the stream.
    #[error("text between stanzas")]
    StrayText,
    /// More than a limit allows, where that ends the stream.
    #[error("an element is too long or nested too deeply")]
    TooMuch,
}

/// One piece of a stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Token<'a> {
    /// A start tag, or an empty element.
    Start(StartTag<'a>),
    /// An end tag, with its name.
    End(&'a str),
    /// Characters, with references resolved. One run of text may come as several of these.
    Text(Cow<'a, str>),
    /// `<?xml …?>`
    Declaration,
    /// Another processing instruction.
    Instruction,
    /// A comment.
    Comment,
    /// A token that was too long to keep, and how it ended if it was a tag.
    Dropped(Option<Tail>),
}

/// The end of a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// `>`
    Open,
    /// `/>`
    Empty,
    /// It is an end tag.
    End,
}

/// A start tag.
#[derive(Debug, PartialEq, Eq)]
pub struct StartTag<'a> {
    content: &'a str,
    name: usize,
    /// What ends the tag.
    pub tail: Tail,
    /// Whether long values were emptied, because the tag was too long to keep.
    pub is_cut: bool,
}

impl<'a> StartTag<'a> {
    fn new(content: &'a str, is_cut: bool) -> Self {
        let (content, tail) = match content.strip_suffix('/') {
            Some(content) => (content, Tail::Empty),
            None => (content, Tail::Open),
        };
        let name = content.find(is_space).unwrap_or(content.len());
        Self { content, name, tail, is_cut }
    }

    /// Returns the name as written, with its prefix.
    pub fn name(&self) -> &'a str {
        &self.content[..self.name]
    }

    /// Returns attributes and namespace declarations, with their names as written and their values normalized. With
    /// `unique`, a repeated name is an error.
    pub fn attributes(
        &self,
        unique: bool,
    ) -> impl Iterator<Item = Result<(&'a str, Cow<'a, str>), ParseError>> + use<'a> {
        const BAD: ParseError = ParseError::NotWellFormed("an attribute");
        let mut attributes = Attributes::new(self.content, self.name);
        attributes.with_checks(unique);
        let is_cut = self.is_cut;
        attributes.map(move |attribute| {
            let attribute = attribute.map_err(|_| BAD)?;
            if is_cut && attribute.value.len() > LONG_VALUE {
                return Ok((attribute.key.into_inner(), Cow::Borrowed("")));
            }
            let value = attribute.normalized_value(XmlVersion::Implicit1_0).map_err(|_| BAD)?;
            Ok((attribute.key.into_inner(), allowed(value)))
        })
    }
}

/// The kind of markup that is being read.
#[derive(Clone, Copy, Debug)]
enum Markup {
    Tag(ElementParser),
    Comment(CommentParser),
    Instruction(PiParser),
    /// CDATA, with the last two bytes.
    Cdata([u8; 2]),
}

impl Markup {
    /// Returns the kind that some bytes begin, and the length of its mark; `None` if the bytes are too few to tell.
    fn of(bytes: &[u8]) -> Result<Option<(Self, usize)>, ParseError> {
        let begins = |begin: &[u8]| bytes.starts_with(begin);
        Ok(match bytes.get(1) {
            None => None,
            Some(b'?') => Some((Self::Instruction(PiParser::default()), 2)),
            Some(b'!') => {
                if begins(b"<!--") {
                    Some((Self::Comment(CommentParser::default()), 4))
                } else if begins(b"<![CDATA[") {
                    Some((Self::Cdata([0; 2]), 9))
                } else if begins(b"<!D") {
                    return Err(ParseError::Restricted("a document type"));
                } else if b"<!--".starts_with(bytes) || b"<![CDATA[".starts_with(bytes) {
                    None
                } else {
                    return Err(ParseError::NotWellFormed("<!"));
                }
            }
            Some(b'/' | b'_' | b':' | b'a'..=b'z' | b'A'..=b'Z' | 0x80..) => {
                Some((Self::Tag(ElementParser::default()), 2))
            }
            Some(_) => return Err(ParseError::NotWellFormed("<")),
        })
    }

    /// Returns the position of its last byte.
    fn find_end(&mut self, bytes: &[u8]) -> Option<usize> {
        match self {
            Self::Tag(parser) => parser.feed(bytes),
            // This one returns the position after it.
            Self::Comment(parser) => parser.feed(bytes).map(|end| end - 1),
            Self::Instruction(parser) => parser.feed(bytes),
            Self::Cdata(before) => {
                for end in memchr::memchr_iter(b'>', bytes) {
                    let mut last = *before;
                    shift(&mut last, &bytes[..end]);
                    if last == *b"]]" {
                        return Some(end);
                    }
                }
                shift(before, bytes);
                None
            }
        }
    }

    fn token(self, bytes: &[u8], is_cut: bool) -> Result<Token<'_>, ParseError> {
        Ok(match self {
            Self::Tag(_) => {
                let content = &utf8(bytes)?[1..bytes.len() - 1];
                match content.strip_prefix('/') {
                    Some(name) => Token::End(name.trim_end_matches(is_space)),
                    None => Token::Start(StartTag::new(content, is_cut)),
                }
            }
            Self::Comment(_) => Token::Comment,
            Self::Instruction(_) => match bytes.strip_prefix(b"<?xml") {
                Some([next, ..]) if is_space(char::from(*next)) => Token::Declaration,
                _ => Token::Instruction,
            },
            Self::Cdata(_) => {
                let text = BytesText::from_escaped(&utf8(bytes)?[9..bytes.len() - 3]);
                Token::Text(allowed(text.xml10_content()))
            }
        })
    }
}

/// How much of an incomplete token is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    All,
    /// Everything except long attribute values.
    ShortValues,
    Nothing,
}

/// Finds tokens.
#[derive(Debug)]
pub(crate) struct Tokenizer {
    /// The kept part of an incomplete token, after `spent` bytes that were returned.
    held: Vec<u8>,
    spent: usize,
    markup: Option<Markup>,
    kept: Kept,
    /// The bytes of the token, kept or not, and the last two.
    length: usize,
    last: [u8; 2],
    /// Whether the token is an end tag of which nothing is kept.
    is_end: bool,
    /// How much of one token is kept.
    limit: usize,
}

impl Tokenizer {
    /// Creates a tokenizer that keeps about `limit` bytes of one token.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            held: Vec::new(),
            spent: 0,
            markup: None,
            kept: Kept::All,
            length: 0,
            last: [0; 2],
            is_end: false,
            limit,
        }
    }

    /// Returns the number of received bytes of an incomplete token.
    pub(crate) fn pending(&self) -> usize {
        self.length.max(self.held.len() - self.spent)
    }

    /// Returns the next token and its length, and removes exactly its bytes from `input`. `None`: more is needed, and
    /// all was taken.
    pub(crate) fn next<'a, 'i: 'a>(
        &'a mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<(Token<'a>, usize)>, ParseError> {
        self.held.drain(..std::mem::take(&mut self.spent));
        if self.held.is_empty() && self.held.capacity() > self.limit / 8 {
            self.held = Vec::new();
        }
        if self.markup.is_some() {
            return self.rest_of_markup(input);
        }
        match self.held.first().or(input.first()) {
            None => Ok(None),
            Some(b'<') => self.markup(input),
            Some(_) => self.text(input),
        }
    }

    fn text<'a, 'i: 'a>(
        &'a mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<(Token<'a>, usize)>, ParseError> {
        let end = memchr::memchr(b'<', input);
        let (run, rest) = input.split_at(end.unwrap_or(input.len()));
        *input = rest;
        let ready = |run: &[u8]| if end.is_some() { Ok(run.len()) } else { complete(run) };
        let text = if self.held.is_empty() {
            let (text, tail) = run.split_at(ready(run)?);
            self.held.extend_from_slice(tail);
            text
        } else {
            self.held.extend_from_slice(run);
            self.spent = ready(&self.held)?;
            &self.held[..self.spent]
        };
        if text.is_empty() {
            return Ok(None);
        }
        Ok(Some((Token::Text(characters(utf8(text)?)?), text.len())))
    }

    fn markup<'a, 'i: 'a>(
        &'a mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<(Token<'a>, usize)>, ParseError> {
        if self.held.is_empty() {
            let bytes = *input;
            if let Some((mut markup, begin)) = Markup::of(bytes)? {
                // Nearly always the whole token is in the input and is read in place.
                if let Some(end) = markup.find_end(&bytes[begin..]) {
                    let (token, rest) = bytes.split_at(begin + end + 1);
                    *input = rest;
                    return Ok(Some((markup.token(token, false)?, token.len())));
                }
                self.markup = Some(markup);
            }
            self.keep(bytes);
            *input = &[];
            return Ok(None);
        }
        while let Some((byte, rest)) = input.split_first() {
            *input = rest;
            self.keep(&[*byte]);
            if let Some((markup, _)) = Markup::of(&self.held)? {
                self.markup = Some(markup);
                return self.rest_of_markup(input);
            }
        }
        Ok(None)
    }

    fn rest_of_markup<'a, 'i: 'a>(
        &'a mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<(Token<'a>, usize)>, ParseError> {
        let Some(mut markup) = self.markup else { return Ok(None) };
        let end = markup.find_end(input);
        self.markup = Some(markup);
        let (bytes, rest) = input.split_at(end.map_or(input.len(), |end| end + 1));
        *input = rest;
        self.keep(bytes);
        if end.is_none() {
            return Ok(None);
        }
        self.markup = None;
        let length = std::mem::take(&mut self.length);
        self.spent = self.held.len();
        let kept = std::mem::replace(&mut self.kept, Kept::All);
        if kept == Kept::Nothing {
            let tail = match (std::mem::take(&mut self.is_end), self.last[0]) {
                (true, _) => Tail::End,
                (false, b'/') => Tail::Empty,
                (false, _) => Tail::Open,
            };
            let is_tag = matches!(markup, Markup::Tag(_));
            return Ok(Some((Token::Dropped(is_tag.then_some(tail)), length)));
        }
        let is_cut = kept == Kept::ShortValues;
        if is_cut && str::from_utf8(&self.held).is_err() {
            // A character may be cut here. Its value is long, and is emptied later.
            self.held = String::from_utf8_lossy(&self.held).into_owned().into_bytes();
            self.spent = self.held.len();
        }
        Ok(Some((markup.token(&self.held, is_cut)?, length)))
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.length += bytes.len();
        shift(&mut self.last, bytes);
        if self.kept == Kept::Nothing {
            return;
        }
        if let Some(Markup::Comment(_) | Markup::Instruction(_)) = self.markup {
            let room = BEGINNING.saturating_sub(self.held.len());
            self.held.extend_from_slice(&bytes[..bytes.len().min(room)]);
            return;
        }
        self.held.extend_from_slice(bytes);
        if self.held.len() > self.limit {
            self.kept = Kept::ShortValues;
            if let Some(Markup::Tag(_)) = self.markup {
                empty_long_values(&mut self.held);
            }
            if self.held.len() > self.limit / 2 {
                self.kept = Kept::Nothing;
                self.is_end = self.held.get(1) == Some(&b'/');
                self.held = Vec::new();
            }
        }
    }
}

/// Removes long values from a tag that may be incomplete.
fn empty_long_values(tag: &mut Vec<u8>) {
    let mut short = Vec::with_capacity(tag.len());
    let mut rest = tag.as_slice();
    while let Some(at) = memchr::memchr2(b'\'', b'"', rest) {
        let (before, value) = rest.split_at(at + 1);
        short.extend_from_slice(before);
        let end = memchr::memchr(before[at], value).unwrap_or(value.len());
        if end <= LONG_VALUE {
            short.extend_from_slice(&value[..end]);
        } else if end == value.len() {
            // More of it may come, perhaps little, so its length must stay known.
            short.extend_from_slice(&[b'x'; LONG_VALUE + 1]);
        }
        // The closing quote must not be taken for an opening one.
        let closed = (end + 1).min(value.len());
        short.extend_from_slice(&value[end..closed]);
        rest = &value[closed..];
    }
    short.extend_from_slice(rest);
    *tag = short;
}

/// Keeps the last two received bytes.
fn shift(last: &mut [u8; 2], bytes: &[u8]) {
    match bytes {
        [] => {}
        [one] => *last = [last[1], *one],
        [.., a, b] => *last = [*a, *b],
    }
}

/// Returns how much of an incomplete text can be read already: not the beginning of a character, a reference or a line
/// end.
fn complete(run: &[u8]) -> Result<usize, ParseError> {
    let mut end = match str::from_utf8(run) {
        Ok(text) => text.len(),
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        Err(_) => return Err(NOT_UTF8),
    };
    if let Some(start) = memchr::memrchr(b'&', &run[..end])
        && !run[start..].contains(&b';')
    {
        if run.len() - start > REFERENCE {
            return Err(BAD_REFERENCE);
        }
        end = start;
    }
    if run[..end].last() == Some(&b'\r') {
        end -= 1;
    }
    Ok(end)
}

const NOT_UTF8: ParseError = ParseError::NotWellFormed("not valid UTF-8");
const BAD_REFERENCE: ParseError = ParseError::NotWellFormed("a reference");

fn utf8(bytes: &[u8]) -> Result<&str, ParseError> {
    str::from_utf8(bytes).map_err(|_| NOT_UTF8)
}

/// Normalizes line ends and resolves references.
fn characters(raw: &str) -> Result<Cow<'_, str>, ParseError> {
    let bytes = raw.as_bytes();
    for start in memchr::memchr_iter(b'&', bytes) {
        let reference = &bytes[start..bytes.len().min(start + REFERENCE + 1)];
        if !reference.contains(&b';') {
            return Err(BAD_REFERENCE);
        }
    }
    // This comes before references are resolved, so that a reference to a carriage return remains one.
    let text = match BytesText::from_escaped(raw).xml10_content() {
        Cow::Borrowed(_) => unescape(raw).map_err(|_| BAD_REFERENCE)?,
        Cow::Owned(text) => Cow::Owned(unescape(&text).map_err(|_| BAD_REFERENCE)?.into_owned()),
    };
    Ok(allowed(text))
}

/// Replaces characters that XML cannot carry, so that everything that was read can be written.
fn allowed(text: Cow<'_, str>) -> Cow<'_, str> {
    // U+FFFE and U+FFFF begin with 0xef in UTF-8. No early exit, so that the compiler can check many bytes in one step.
    if !text.bytes().fold(false, |odd, byte| odd | (byte < 0x20) | (byte == 0xef)) {
        return text;
    }
    match carried(&text) {
        Cow::Borrowed(_) => text,
        Cow::Owned(text) => Cow::Owned(text),
    }
}

/// Returns whether it is white space in XML.
pub(crate) fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns every token of `bytes`, read in pieces of one size; runs of text joined.
    fn tokens(bytes: &[u8], piece: usize, limit: usize) -> Vec<String> {
        let mut tokenizer = Tokenizer::new(limit);
        let mut out: Vec<String> = Vec::new();
        let mut text = String::new();
        for mut bytes in bytes.chunks(piece) {
            loop {
                let token = match tokenizer.next(&mut bytes) {
                    Ok(Some((Token::Text(more), _))) => {
                        text.push_str(&more);
                        continue;
                    }
                    Ok(Some((Token::Start(tag), _))) => {
                        let attributes: Vec<_> = tag.attributes(true).collect();
                        format!("{} {attributes:?} {:?} {}", tag.name(), tag.tail, tag.is_cut)
                    }
                    Ok(Some((token, _))) => format!("{token:?}"),
                    Ok(None) => {
                        assert!(bytes.is_empty());
                        break;
                    }
                    Err(error) => {
                        out.push(error.to_string());
                        return out;
                    }
                };
                if !text.is_empty() {
                    out.push(std::mem::take(&mut text));
                }
                out.push(token);
            }
        }
        // A text that may continue is not expected at every cut.
        out
    }

    fn attribute(raw: &str) -> String {
        let bytes = format!("<a x='{raw}'/>");
        let mut bytes = bytes.as_bytes();
        let mut tokenizer = Tokenizer::new(1 << 20);
        let Ok(Some((Token::Start(tag), _))) = tokenizer.next(&mut bytes) else { panic!("{raw}") };
        let Some(Ok((_, value))) = tag.attributes(true).next() else { panic!("{raw}") };
        value.into_owned()
    }

    #[test]
    fn white_space_in_attributes_is_normalized_and_references_are_kept() {
        for (raw, value) in [
            ("a\rb", "a b"),
            ("a\r", "a "),
            ("\r", " "),
            ("a\r\nb", "a b"),
            ("a\n\rb", "a  b"),
            ("\t\n", "  "),
            ("a&#13;b&#xD;", "a\rb\r"),
            ("&#10;&#9;", "\n\t"),
            ("&#x1F600;&amp;&lt;&gt;&quot;&apos;", "\u{1f600}&<>\"'"),
            ("&#1;&#xFFFE;\u{ffff}\u{1}", "\u{fffd}\u{fffd}\u{fffd}\u{fffd}"),
            ("\u{7f}\u{85}\u{2028}\u{1fffe}", "\u{7f}\u{85}\u{2028}\u{1fffe}"),
        ] {
            assert_eq!(attribute(raw), value, "{raw:?}");
        }
    }

    #[test]
    fn line_ends_in_text_are_normalized_wherever_reads_cut_them() {
        let text = "<a>x\r\ny\rz\r\r\n&#13;&amp;\u{20ac}\u{1f600}<![CDATA[&lt;\r]]]]></a>";
        let expected = ["a [] Open false", "x\ny\nz\n\n\r&\u{20ac}\u{1f600}&lt;\n]]", "End(\"a\")"];
        for piece in 1..text.len() {
            assert_eq!(tokens(text.as_bytes(), piece, 1 << 20), expected, "{piece}");
        }
    }

    #[test]
    fn what_is_not_xml_or_not_xmpp_is_told_apart() {
        for (text, error) in [
            ("<!DOCTYPE a>", ParseError::Restricted("a document type")),
            ("<!ENTITY>", ParseError::NotWellFormed("<!")),
            ("<!-->", ParseError::NotWellFormed("")),
            ("< a>", ParseError::NotWellFormed("<")),
            ("<1>", ParseError::NotWellFormed("<")),
            ("&bomb;<", BAD_REFERENCE),
            ("&#xD800;<", BAD_REFERENCE),
            ("& <", BAD_REFERENCE),
        ] {
            let got = tokens(text.as_bytes(), 1, 1 << 20);
            if text == "<!-->" {
                assert!(got.is_empty(), "a comment continues: {got:?}");
            } else {
                assert_eq!(got, [error.to_string()], "{text}");
            }
        }
        assert_eq!(tokens(b"\xff<", 9, 9), [NOT_UTF8.to_string()]);
        let zeros = "0".repeat(REFERENCE);
        for piece in [1, 7, 1 << 20] {
            let got = tokens(format!("&#x{zeros}41;<").as_bytes(), piece, 1 << 20);
            assert_eq!(got, [BAD_REFERENCE.to_string()]);
        }
    }

    #[test]
    fn what_is_too_long_to_keep_is_cut_or_dropped_and_the_rest_is_read() {
        let long = "\u{20ac}&amp;".repeat(2000);
        let many: String = (0..2000).map(|n| format!("a{n}='1' ")).collect();
        for piece in [1, 7, 1000, 1 << 20] {
            let text = format!(
                "<iq a='{long}\">' id='1' b=\"{long}\"/><!--{long}--><?{long}?><![CDATA[{long}]]>\
                 <iq {many}/><iq {many}>"
            );
            let got = tokens(text.as_bytes(), piece, 4000);
            if piece < 1 << 20 {
                let [iq, comment, instruction, text, empty, open] = &got[..] else {
                    panic!("{got:?}")
                };
                assert_eq!(
                    iq, "iq [Ok((\"a\", \"\")), Ok((\"id\", \"1\")), Ok((\"b\", \"\"))] Empty true",
                    "{piece}"
                );
                assert_eq!([comment.as_str(), instruction], ["Comment", "Instruction"]);
                assert_eq!(text, "Dropped(None)");
                assert_eq!([empty.as_str(), open], ["Dropped(Some(Empty))", "Dropped(Some(Open))"]);
            } else {
                assert_eq!(got.len(), 6, "a complete token need not be kept");
            }
        }
    }

    proptest! {
        #[test]
        fn any_cutting_gives_the_same(
            text in "([<>/?!a-c='\"&; \r\n\\]-]|<a b='|<!\\[CDATA\\[|\\]\\]>|<!--|-->|&#13;|&lt;|\u{e9}){0,40}",
            piece in 1_usize..20,
        ) {
            let text = format!("{text}<a>");
            let whole = tokens(text.as_bytes(), 1 << 20, 1 << 20);
            prop_assert_eq!(tokens(text.as_bytes(), piece, 1 << 20), whole);
        }
    }
}
