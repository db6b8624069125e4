//! Reads stanzas in their plainest spelling, without a copy.
//!
//! Most stanzas, and all of those whose speed matters, are one element with at most one child, which holds only text.
//! They are printable ASCII, without prefixes, references, comments or CDATA. This module reads them without a tree.
//! Everything else is `Scan::Other` and goes to the XML parser from its first byte. So whatever is accepted here must
//! be well-formed and mean exactly the same to the parser; in doubt it is not accepted.

use minidom::Element;
use rxml::{Namespace, NcName, xml_ncname};

use super::ns;

/// The most attributes of one tag; a tag with more is not plain.
const ATTRIBUTES: usize = 8;

/// The classification of some bytes.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a view on the stack, made for each stanza")]
pub(crate) enum Scan<'a> {
    /// A plain stanza of so many bytes.
    Plain(Plain<'a>, usize),
    /// Perhaps a plain stanza, when more has come.
    Incomplete,
    /// Not a plain stanza.
    Other,
}

/// A stanza as a view of its bytes.
#[derive(Debug)]
pub struct Plain<'a> {
    /// The local name, in the stream's namespace.
    pub name: &'a str,
    /// Its attributes.
    pub attributes: Attributes<'a>,
    /// Its one child, if it has one.
    pub payload: Option<Payload<'a>>,
}

/// Its one child.
#[derive(Debug)]
pub struct Payload<'a> {
    /// The local name.
    pub name: &'a str,
    /// Its namespace inside the program: the stream's is [`ns::CLIENT`].
    pub namespace: &'a str,
    /// Its attributes.
    pub attributes: Attributes<'a>,
    /// Its text, in which nothing needs to be decoded.
    pub text: &'a str,
}

/// The attributes of a tag, without its namespace. No value contains a quote or any other character that needs
/// escaping.
#[derive(Debug, Default)]
pub struct Attributes<'a> {
    pairs: [(&'a str, &'a str); ATTRIBUTES],
    count: usize,
}

impl<'a> Attributes<'a> {
    /// Returns an attribute's value; empty if it is absent.
    pub fn get(&self, name: &str) -> &'a str {
        let pairs = &self.pairs[..self.count];
        pairs.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value)
    }

    /// Returns whether it has none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn set_on(&self, element: &mut Element) {
        for (name, value) in &self.pairs[..self.count] {
            let (namespace, name) = match *name {
                "xml:lang" => (Namespace::XML, xml_ncname!("lang").to_owned()),
                name => match NcName::try_from(name) {
                    Ok(name) => (Namespace::NONE, name),
                    Err(_) => continue,
                },
            };
            element.attrs_mut().insert(namespace, name, (*value).to_owned());
        }
    }
}

impl Plain<'_> {
    /// Returns the same as a tree, in [`ns::CLIENT`].
    pub fn to_element(&self) -> Element {
        let mut element = Element::bare(self.name, ns::CLIENT);
        self.attributes.set_on(&mut element);
        if let Some(payload) = &self.payload {
            let mut child = Element::bare(payload.name, payload.namespace);
            payload.attributes.set_on(&mut child);
            if !payload.text.is_empty() {
                child.append_text(payload.text);
            }
            element.append_child(child);
        }
        element
    }
}

/// Why scanning stops.
enum Stop {
    Incomplete,
    Other,
}

/// Scans the beginning of a text that follows a complete stanza (or the stream header) of a stream whose stanzas are in
/// `stream`.
pub(crate) fn scan<'a>(bytes: &'a [u8], stream: &'static str) -> Scan<'a> {
    match (Scanner { bytes, at: 0, stream }).stanza() {
        Ok((plain, length)) => Scan::Plain(plain, length),
        Err(Stop::Incomplete) => Scan::Incomplete,
        Err(Stop::Other) => Scan::Other,
    }
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
    stream: &'static str,
}

/// A start tag.
struct Tag<'a> {
    name: &'a str,
    namespace: Option<&'a str>,
    attributes: Attributes<'a>,
    /// `/>`
    closed: bool,
}

impl<'a> Scanner<'a> {
    fn stanza(mut self) -> Result<(Plain<'a>, usize), Stop> {
        self.expect(b"<")?;
        let tag = self.tag()?;
        if tag.namespace.is_some_and(|namespace| namespace != self.stream) {
            return Err(Stop::Other);
        }
        let mut payload = None;
        if !tag.closed {
            self.expect(b"<")?;
            if self.peek()? != b'/' {
                payload = Some(self.payload()?);
                self.expect(b"<")?;
            }
            self.end(tag.name)?;
        }
        Ok((Plain { name: tag.name, attributes: tag.attributes, payload }, self.at))
    }

    fn payload(&mut self) -> Result<Payload<'a>, Stop> {
        let tag = self.tag()?;
        let mut text = "";
        if !tag.closed {
            let rest = &self.bytes[self.at..];
            let length = memchr::memchr(b'<', rest).ok_or(Stop::Incomplete)?;
            text = plain_text(&rest[..length])?;
            self.at += length + 1;
            self.end(tag.name)?;
        }
        let namespace = match tag.namespace {
            Some(other) if other != self.stream => other,
            _ => ns::CLIENT,
        };
        Ok(Payload { name: tag.name, namespace, attributes: tag.attributes, text })
    }

    /// Reads a start tag from its name on.
    fn tag(&mut self) -> Result<Tag<'a>, Stop> {
        let name = self.name()?;
        let mut tag =
            Tag { name, namespace: None, attributes: Attributes::default(), closed: false };
        loop {
            let mut spaces = 0;
            while self.peek()? == b' ' {
                self.at += 1;
                spaces += 1;
            }
            match self.peek()? {
                b'>' => {
                    self.at += 1;
                    return Ok(tag);
                }
                b'/' => {
                    self.expect(b"/>")?;
                    tag.closed = true;
                    return Ok(tag);
                }
                _ if spaces == 0 => return Err(Stop::Other),
                _ => self.attribute(&mut tag)?,
            }
        }
    }

    fn attribute(&mut self, tag: &mut Tag<'a>) -> Result<(), Stop> {
        let mut name = self.name()?;
        if self.peek()? == b':' && name == "xml" {
            self.expect(b":lang")?;
            name = "xml:lang";
        }
        self.expect(b"=")?;
        let quote = self.peek()?;
        if !matches!(quote, b'\'' | b'"') {
            return Err(Stop::Other);
        }
        self.at += 1;
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|byte| *byte == quote).ok_or(Stop::Incomplete)?;
        let value = plain_text(&rest[..length])?;
        self.at += length + 1;
        if value.contains(['\'', '"']) {
            return Err(Stop::Other);
        }
        if name == "xmlns" {
            // The few names that may not be declared, and the declaration that removes the default.
            if tag.namespace.is_some()
                || value.is_empty()
                || value.starts_with("http://www.w3.org/")
            {
                return Err(Stop::Other);
            }
            tag.namespace = Some(value);
            return Ok(());
        }
        let Attributes { pairs, count } = &mut tag.attributes;
        if *count == ATTRIBUTES || pairs[..*count].iter().any(|(known, _)| *known == name) {
            return Err(Stop::Other);
        }
        pairs[*count] = (name, value);
        *count += 1;
        Ok(())
    }

    /// Reads an end tag, from its slash on.
    fn end(&mut self, name: &str) -> Result<(), Stop> {
        self.expect(b"/")?;
        self.expect(name.as_bytes())?;
        self.expect(b">")
    }

    fn name(&mut self) -> Result<&'a str, Stop> {
        let rest = &self.bytes[self.at..];
        let length = rest
            .iter()
            .position(|byte| !matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-'))
            .ok_or(Stop::Incomplete)?;
        if !rest[0].is_ascii_alphabetic() {
            return Err(Stop::Other);
        }
        self.at += length;
        str::from_utf8(&rest[..length]).map_err(|_| Stop::Other)
    }

    fn peek(&self) -> Result<u8, Stop> {
        self.bytes.get(self.at).copied().ok_or(Stop::Incomplete)
    }

    fn expect(&mut self, text: &[u8]) -> Result<(), Stop> {
        let rest = &self.bytes[self.at..];
        let there = rest.len().min(text.len());
        if rest[..there] != text[..there] {
            return Err(Stop::Other);
        }
        if there < text.len() {
            return Err(Stop::Incomplete);
        }
        self.at += there;
        Ok(())
    }
}

fn plain_text(bytes: &[u8]) -> Result<&str, Stop> {
    if !is_plain(bytes) {
        return Err(Stop::Other);
    }
    str::from_utf8(bytes).map_err(|_| Stop::Other)
}

/// Returns whether a value can be written between either kind of quotes as it is.
pub fn is_plain_value(value: &str) -> bool {
    is_plain(value.as_bytes()) && !value.contains(['\'', '"'])
}

/// Returns whether a text stands for itself everywhere: printable ASCII except `<`, `>` and `&`. An attribute's value
/// must not contain its quote either.
pub(crate) fn is_plain(bytes: &[u8]) -> bool {
    let is_odd =
        |byte: u8| !(0x20..0x7f).contains(&byte) | (byte == b'<') | (byte == b'>') | (byte == b'&');
    // No early exit, so that the compiler can check many bytes in one step.
    !bytes.iter().fold(false, |odd, byte| odd | is_odd(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> Option<(Plain<'_>, usize)> {
        match scan(text.as_bytes(), ns::COMPONENT) {
            Scan::Plain(plain, length) => Some((plain, length)),
            _ => None,
        }
    }

    #[test]
    fn a_block_is_read_in_place() {
        let text = "<iq from='a@b/c' to=\"d\" type='set' id='1' xml:lang='en'><data \
                    xmlns='http://jabber.org/protocol/ibb' sid='s' seq='7'>qANQ==</data></iq><iq/>";
        let (stanza, length) = plain(text).unwrap();
        assert_eq!(&text[length..], "<iq/>");
        assert_eq!((stanza.name, stanza.attributes.get("to")), ("iq", "d"));
        assert_eq!(stanza.attributes.get("xml:lang"), "en");
        let data = stanza.payload.unwrap();
        assert_eq!((data.name, data.namespace, data.text), ("data", ns::IBB, "qANQ=="));
        assert_eq!((data.attributes.get("seq"), data.attributes.get("none")), ("7", ""));
    }

    #[test]
    fn every_beginning_of_a_plain_stanza_is_incomplete() {
        let text = "<iq id='1'><data xmlns='urn:x' seq='7'>qANQ==</data></iq>";
        for end in 0..text.len() {
            let scanned = scan(&text.as_bytes()[..end], ns::COMPONENT);
            assert!(matches!(scanned, Scan::Incomplete), "{end}: {scanned:?}");
        }
    }

    #[test]
    fn what_is_not_plain_is_left_to_the_parser() {
        for text in [
            "<iq a='1' a='2'/>",
            "<iq a='1'b='2'/>",
            "<iq a='&lt;'/>",
            "<iq a='x\ty'/>",
            "<iq a=\"it's\"/>",
            "<iq xmlns='urn:other'/>",
            "<iq><x xmlns=''/></iq>",
            "<iq><x xmlns='http://www.w3.org/2000/xmlns/'/></iq>",
            "<iq><x>a<y/></x></iq>",
            "<iq><x>]]></x></iq>",
            "<iq><x>\u{e9}</x></iq>",
            "<iq><x/><y/></iq>",
            "<iq>text</iq>",
            "<iq><x></y></iq>",
            "<iq></message>",
            "<p:iq/>",
            "<iq p:a='1'/>",
            "<1q/>",
            "<!-- -->",
            "</stream:stream>",
            "text",
        ] {
            let scanned = scan(text.as_bytes(), ns::COMPONENT);
            assert!(matches!(scanned, Scan::Other), "{text}");
        }
    }
}
