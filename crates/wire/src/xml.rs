//! XML stream bytes <-> stanza elements, for every stream: the component's link, a client's connection, streams of
//! peers.
//!
//! A stranger can make a server write unusual XML on these streams, so nothing that a conforming server passes on may
//! end them. `tokens.rs`, on top of quick-xml, finds tags and text. Names are resolved here, because quick-xml's own
//! resolver refuses XML that servers really write:
//! - Prosody binds other prefixes, or none, to the namespace of `xml:`. They are read as `xml:`.
//! - ejabberd passes on prefixes that a client declared only in its own stream header. Their meaning is lost: such
//!   names get a namespace of their own, [`ns::UNDECLARED`] and the prefix. A stanza with such a prefix counts as a
//!   stanza.
//! - Prosody writes carriage returns, tabs and line feeds into attributes. They are read as spaces, as XML requires.
//!
//! rxml refuses all of these, and each of its errors is final, so one stanza of a stranger would cut a connection. Only
//! its types and its writer are used. tokio-xmpp's stream cannot carry the link either: it requires a `version`
//! attribute that ejabberd does not send to components, ends at the first attribute of more than 8 KiB, and builds
//! elements recursively.
//!
//! An element that is too deep, too long or too costly to keep is reported with its head, and the stream continues.
//! From a peer without a server in between, it ends the stream.
//!
//! Inside the program every stanza is in `jabber:client`. The namespace of a component's stream,
//! `jabber:component:accept`, is mapped here, on the stanza and its direct children, both ways.

use std::io;

use minidom::{Element, Node};
use rxml::{
    AttrMap, Namespace, NcName, NcNameStr,
    writer::{Encoder, Item, SimpleNamespaces},
};

use super::{
    ns,
    plain::{self, Plain, Scan},
    text::carried,
    tokens::{ParseError, StartTag, Tail, Token, Tokenizer, is_space},
};

/// The bytes that are read at once.
const BUFFER: usize = 1 << 18;
/// A stanza in plain spelling that is longer than this goes to the parser: the longest block is shorter.
const PLAIN: usize = 1 << 17;
/// The most namespace declarations in force at one place.
const DECLARATIONS: usize = 128;
/// The cost of an element or an attribute besides its text, in bytes.
const NODE: usize = 64;
/// How many times its bytes a stanza may cost. An element inherits a namespace that was written once.
const EXPANSION: usize = 4;

/// The limits of a stream.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The namespace of its stanzas; inside the program it is [`ns::CLIENT`].
    pub namespace: &'static str,
    /// The deepest nesting, counted from the stanza.
    pub depth: usize,
    /// The longest stanza, in bytes.
    pub bytes: usize,
    /// Whether a larger stanza, comments, processing instructions and stray text are errors.
    pub strict: bool,
}

impl Rules {
    /// A component's stream with its server.
    pub const COMPONENT: Self =
        Self { namespace: ns::COMPONENT, depth: 64, bytes: 1 << 20, strict: false };
    /// A client's stream with its server.
    pub const CLIENT: Self = Self { namespace: ns::CLIENT, ..Self::COMPONENT };
}

/// A received part of the stream.
#[derive(Debug)]
pub enum Received {
    /// The stream header, without what follows it.
    Header(Element),
    /// A first-level element.
    Element(Element),
    /// A first-level element that is too deep, too long or too costly. Only its head is kept, without long values.
    Oversized(Element),
    /// An element whose head could not be kept either.
    Dropped,
    /// The other side closed the stream.
    Footer,
}

/// A received part of the stream, perhaps still in the buffer.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a view on the stack, made for each stanza")]
pub enum Came<'a> {
    /// A stanza in plain spelling.
    Plain(Plain<'a>),
    /// Any part.
    Whole(Received),
}

/// The connection ended without the end of the stream.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the connection was closed{}", if *.inside { " in the middle of a stanza" } else { "" })]
pub struct Closed {
    /// Whether a part of a stanza had arrived.
    pub inside: bool,
}

/// The bytes of a stream that have been read, and the parser of them.
pub struct StanzaBuffer {
    /// The bytes that were read are in `start..end`.
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    parser: XmlParser,
}

impl std::fmt::Debug for StanzaBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StanzaBuffer").field("parser", &self.parser).finish_non_exhaustive()
    }
}

impl StanzaBuffer {
    /// Reads from the start of a stream.
    pub fn new(rules: Rules) -> Self {
        Self { bytes: vec![0; BUFFER], start: 0, end: 0, parser: XmlParser::new(rules) }
    }

    /// Returns whether only white space has come after the last element.
    pub fn is_clean(&self) -> bool {
        let rest = &self.bytes[self.start..self.end];
        self.parser.is_between() && rest.iter().all(|byte| is_space((*byte).into()))
    }

    /// Returns the place for the bytes that are read next.
    pub fn free(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.bytes[self.end..]
    }

    /// Notes that `n` bytes were read into the free place; 0 means that the connection has ended.
    ///
    /// # Errors
    /// [`Closed`], if the connection ends without the end of the stream.
    pub fn filled(&mut self, n: usize) -> Result<(), Closed> {
        self.end += n;
        if n == 0 {
            return Err(Closed { inside: self.start < self.end || !self.parser.is_between() });
        }
        Ok(())
    }

    /// Returns the next part of the bytes that were read, read by the parser; `None` if more bytes are needed first.
    ///
    /// # Errors
    /// [`ParseError`]; the stream is then lost.
    pub fn next_whole(&mut self) -> Result<Option<Received>, ParseError> {
        let Self { bytes, start, end, parser } = self;
        parse(parser, bytes, start, *end)
    }

    /// Returns the next part of the bytes that were read, as it is if it is a stanza in plain spelling; `None` if more
    /// bytes are needed first.
    ///
    /// # Errors
    /// [`ParseError`]; the stream is then lost.
    pub fn next_part(&mut self) -> Result<Option<Came<'_>>, ParseError> {
        let Self { bytes, start, end, parser } = self;
        if parser.is_between() {
            while *start < *end && is_space(char::from(bytes[*start])) {
                *start += 1;
            }
            match plain::scan(&bytes[*start..*end], parser.tree.rules.namespace) {
                Scan::Plain(stanza, length) => {
                    *start += length;
                    return Ok(Some(Came::Plain(stanza)));
                }
                Scan::Incomplete if *end - *start < PLAIN => return Ok(None),
                Scan::Incomplete | Scan::Other => {}
            }
        }
        Ok(parse(parser, bytes, start, *end)?.map(Came::Whole))
    }
}

fn parse(
    parser: &mut XmlParser,
    bytes: &[u8],
    start: &mut usize,
    end: usize,
) -> Result<Option<Received>, ParseError> {
    let mut rest = &bytes[*start..end];
    let received = parser.next(&mut rest);
    *start = end - rest.len();
    received
}

/// Makes elements of a stream's bytes, without input or output of its own.
#[derive(Debug)]
pub struct XmlParser {
    tokens: Tokenizer,
    tree: Tree,
}

impl XmlParser {
    /// Reads from the start of a stream.
    pub fn new(rules: Rules) -> Self {
        Self { tokens: Tokenizer::new(rules.bytes), tree: Tree::new(rules) }
    }

    /// Returns the next part of the stream, and removes exactly its bytes from `input`. `None`: more is needed, and all
    /// was taken.
    ///
    /// # Errors
    /// [`ParseError`]; the stream is then lost.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Received>, ParseError> {
        loop {
            if std::mem::take(&mut self.tree.is_empty) {
                if let Some(received) = self.tree.end(None)? {
                    return Ok(Some(received));
                }
                continue;
            }
            let Some((token, length)) = self.tokens.next(input)? else {
                let pending = self.tokens.pending();
                if self.tree.rules.strict && self.tree.bytes + pending > self.tree.rules.bytes {
                    return Err(ParseError::TooMuch);
                }
                return Ok(None);
            };
            if let Some(received) = self.tree.handle(token, length)? {
                return Ok(Some(received));
            }
        }
    }

    /// Returns whether a first-level element, or white space before it, comes next.
    pub fn is_between(&self) -> bool {
        self.tree.is_open
            && self.tree.depth == 0
            && !self.tree.is_empty
            && self.tokens.pending() == 0
    }
}

/// A namespace declaration in force: the depth of its element, the prefix (empty for the default), the name.
type Declaration = (usize, String, Namespace<'static>);

/// A stanza under construction.
#[derive(Debug)]
struct Tree {
    rules: Rules,
    /// Whether the stream header has come.
    is_open: bool,
    /// Whether the end of the last start tag is still to be handled, because it was an empty element.
    is_empty: bool,
    declarations: Vec<Declaration>,
    /// The names of open elements as written, as far as they are kept.
    names: Vec<String>,
    stack: Vec<Element>,
    text: String,
    /// The number of open elements below the stream's.
    depth: usize,
    /// The stanza's bytes on the wire, and its cost.
    bytes: usize,
    cost: usize,
    is_oversized: bool,
}

impl Tree {
    fn new(rules: Rules) -> Self {
        Self {
            rules,
            is_open: false,
            is_empty: false,
            declarations: Vec::new(),
            names: Vec::new(),
            stack: Vec::new(),
            text: String::new(),
            depth: 0,
            bytes: 0,
            cost: 0,
            is_oversized: false,
        }
    }

    fn handle(&mut self, token: Token<'_>, length: usize) -> Result<Option<Received>, ParseError> {
        match token {
            Token::Start(mut tag) => {
                self.count(length, 0)?;
                tag.is_cut |= length > self.rules.bytes;
                self.start(&tag)
            }
            Token::End(name) => {
                self.count(length, 0)?;
                self.end(Some(name))
            }
            Token::Text(text) => self.take_text(&text, length).map(|()| None),
            Token::Declaration if !self.is_open => Ok(None),
            Token::Declaration | Token::Instruction if self.rules.strict => {
                Err(ParseError::Restricted("a processing instruction"))
            }
            Token::Comment if self.rules.strict => Err(ParseError::Restricted("a comment")),
            Token::Declaration | Token::Instruction | Token::Comment => Ok(None),
            Token::Dropped(tag) => {
                if !self.is_open {
                    return Err(ParseError::TooMuch);
                }
                self.too_much()?;
                match tag {
                    Some(Tail::End) => return self.end(None),
                    Some(tail) => {
                        self.depth += 1;
                        self.is_empty = tail == Tail::Empty;
                    }
                    None => {}
                }
                Ok(None)
            }
        }
    }

    fn start(&mut self, tag: &StartTag<'_>) -> Result<Option<Received>, ParseError> {
        let level = self.depth + usize::from(self.is_open);
        self.flush_text();
        if self.is_open {
            self.depth += 1;
        }
        self.is_empty = tag.tail == Tail::Empty;
        if self.depth > self.rules.depth {
            self.too_much()?;
        }
        if tag.is_cut {
            self.too_much()?;
        }
        // Only the head of an oversized stanza is kept.
        if self.is_oversized && self.depth > 1 {
            return Ok(None);
        }
        let attributes = tag.attributes(self.rules.strict).collect::<Result<Vec<_>, _>>()?;
        for (name, value) in &attributes {
            let prefix = match name.split_once(':') {
                None if *name == "xmlns" => "",
                Some(("xmlns", prefix)) => prefix,
                _ => continue,
            };
            if self.declarations.len() == DECLARATIONS {
                self.too_much()?;
                continue;
            }
            self.declarations.push((level, prefix.to_owned(), Namespace::from(value.to_string())));
        }
        let (prefix, local) = split(tag.name())?;
        let namespace = match self.resolve(prefix) {
            // Whatever a server sends as a stanza counts as one.
            None if self.depth == 1 => self.resolve("").unwrap_or(Namespace::NONE),
            None => undeclared(prefix),
            Some(namespace) => namespace,
        };
        let is_near = self.depth <= 2 && self.is_open;
        let namespace = match namespace.as_str() {
            stream if is_near && stream == self.rules.namespace => ns::CLIENT,
            other => other,
        };
        self.count(0, NODE + local.len() + namespace.len())?;
        let mut element = Element::bare(local.as_str(), namespace);
        for (name, value) in attributes {
            let (prefix, local) = match split(name)? {
                ("", local) if local.as_str() == "xmlns" => continue,
                ("xmlns", _) => continue,
                split => split,
            };
            let namespace = match prefix {
                "" => Namespace::NONE,
                prefix => self.resolve(prefix).unwrap_or_else(|| undeclared(prefix)),
            };
            self.count(0, NODE + namespace.len())?;
            if self.is_oversized && self.depth > 1 {
                break;
            }
            // The first of two attributes with one name counts.
            if !element.attrs().contains_key(&namespace, local) {
                element.attrs_mut().insert(namespace, local.to_ncname(), value.into_owned());
            }
        }
        if !self.is_open {
            self.is_open = true;
            (self.bytes, self.cost, self.is_oversized) = (0, 0, false);
            self.names.push(tag.name().to_owned());
            return Ok(Some(Received::Header(element)));
        }
        self.names.push(tag.name().to_owned());
        self.stack.push(element);
        Ok(None)
    }

    /// Handles the end of an element. `name` is that of the end tag, if there is one.
    fn end(&mut self, name: Option<&str>) -> Result<Option<Received>, ParseError> {
        if !self.is_open {
            return Err(ParseError::NotWellFormed("an end tag without its start"));
        }
        self.flush_text();
        let level = self.depth;
        // The names of elements that are not kept are not known.
        let is_kept = self.names.len() == level + 1;
        if is_kept
            && let Some(open) = self.names.pop()
            && name.is_some_and(|name| name != open)
        {
            return Err(ParseError::NotWellFormed("an end tag for another element"));
        }
        while self.declarations.last().is_some_and(|(at, ..)| *at >= level.max(1)) {
            self.declarations.pop();
        }
        if level == 0 {
            return Ok(Some(Received::Footer));
        }
        self.depth -= 1;
        if is_kept
            && self.depth > 0
            && let Some(element) = self.stack.pop()
        {
            match self.stack.last_mut() {
                Some(parent) => {
                    parent.append_child(element);
                }
                None => self.stack.push(element),
            }
        }
        if self.depth > 0 {
            return Ok(None);
        }
        (self.bytes, self.cost) = (0, 0);
        let element = std::mem::take(&mut self.stack).into_iter().next();
        let is_oversized = std::mem::take(&mut self.is_oversized);
        Ok(Some(match element {
            Some(mut element) if is_oversized => {
                drop(element.take_nodes());
                Received::Oversized(element)
            }
            Some(element) => Received::Element(element),
            None => Received::Dropped,
        }))
    }

    fn take_text(&mut self, text: &str, length: usize) -> Result<(), ParseError> {
        if self.depth > 0 {
            self.count(length, 0)?;
            if !self.is_oversized {
                self.text.push_str(text);
            }
            return Ok(());
        }
        // Between two stanzas any amount of white space is allowed; it keeps a connection alive.
        if text.chars().all(is_space) {
            return Ok(());
        }
        match (self.is_open, self.rules.strict) {
            (false, _) => Err(ParseError::NotWellFormed("text before the stream")),
            (true, true) => Err(ParseError::StrayText),
            (true, false) => Ok(()),
        }
    }

    fn flush_text(&mut self) {
        if !self.text.is_empty()
            && let Some(parent) = self.stack.last_mut()
        {
            parent.append_text(std::mem::take(&mut self.text));
        }
        self.text.clear();
    }

    /// Returns the namespace of a prefix, if it is declared.
    fn resolve(&self, prefix: &str) -> Option<Namespace<'static>> {
        match prefix {
            "xml" => return Some(Namespace::XML),
            "xmlns" => return Some(Namespace::XMLNS),
            _ => {}
        }
        let declared = self.declarations.iter().rev().find(|(_, known, _)| known == prefix);
        match declared {
            Some((.., namespace)) if prefix.is_empty() || namespace.is_some() => {
                Some(namespace.clone())
            }
            None if prefix.is_empty() => Some(Namespace::NONE),
            _ => None,
        }
    }

    /// Counts the size of a stanza, and stops keeping it beyond the limits.
    fn count(&mut self, bytes: usize, cost: usize) -> Result<(), ParseError> {
        self.bytes += bytes;
        self.cost += cost;
        if self.bytes > self.rules.bytes || self.cost > self.rules.bytes * EXPANSION {
            self.too_much()?;
        }
        Ok(())
    }

    fn too_much(&mut self) -> Result<(), ParseError> {
        if self.rules.strict {
            return Err(ParseError::TooMuch);
        }
        self.is_oversized = true;
        self.text = String::new();
        Ok(())
    }
}

/// Splits a written name into the prefix, which may be empty, and the local name.
fn split(name: &str) -> Result<(&str, &NcNameStr), ParseError> {
    let (prefix, local) = name.split_once(':').unwrap_or(("", name));
    let local = local.try_into().map_err(|_| ParseError::NotWellFormed("a name"))?;
    if !prefix.is_empty() && <&NcNameStr>::try_from(prefix).is_err() {
        return Err(ParseError::NotWellFormed("a prefix"));
    }
    Ok((prefix, local))
}

/// Returns the namespace for a prefix without a declaration.
fn undeclared(prefix: &str) -> Namespace<'static> {
    Namespace::from(format!("{}{prefix}", ns::UNDECLARED))
}

/// Appends a stanza for a component's stream to `out`.
///
/// # Errors
/// If a name in it is not an XML name, or is one that servers write wrongly; `out` then has a part of it. Characters
/// that XML cannot carry are replaced.
pub fn write(element: &Element, out: &mut Vec<u8>) -> io::Result<()> {
    write_within(element, ns::COMPONENT, out)
}

/// Writes a stanza for a stream whose stanzas are in `namespace`.
///
/// # Errors
/// Those of [`write()`].
pub fn write_within(
    element: &Element,
    namespace: &'static str,
    out: &mut Vec<u8>,
) -> io::Result<()> {
    write_element(element, namespace, 0, &mut Encoder::<SimpleNamespaces>::new(), out)
}

fn write_element(
    element: &Element,
    stream: &'static str,
    depth: usize,
    encoder: &mut Encoder<SimpleNamespaces>,
    out: &mut Vec<u8>,
) -> io::Result<()> {
    fn bad(error: impl std::fmt::Display) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidInput, error.to_string())
    }
    let namespace = match element.ns() {
        namespace if namespace == ns::CLIENT && depth <= 1 => Namespace::from(stream),
        namespace => Namespace::from(namespace),
    };
    let name: &NcNameStr = element.name().try_into().map_err(bad)?;
    if is_reserved(&namespace, None) {
        return Err(bad("an element in a namespace that XML reserves"));
    }
    encoder.encode(Item::ElementHeadStart(namespace, name), out).map_err(bad)?;
    for ((namespace, key), value) in element.attrs() {
        if is_reserved(namespace, Some(key)) {
            return Err(bad("an attribute in a namespace that XML reserves"));
        }
        let value = carried(value);
        let before = out.len();
        encoder.encode(Item::Attribute(namespace.borrow(), key, &value), out).map_err(bad)?;
        if depth == 0 && value.contains(['>', '"']) {
            shorten(before, out);
        }
    }
    if element.nodes().len() > 0 {
        encoder.encode(Item::ElementHeadEnd, out).map_err(bad)?;
        for node in element.nodes() {
            match node {
                Node::Element(child) => write_element(child, stream, depth + 1, encoder, out)?,
                // Blocks of in-band bytestreams need no escaping, which this check finds quickly.
                Node::Text(text) if plain::is_plain(text.as_bytes()) => {
                    out.extend_from_slice(text.as_bytes())
                }
                Node::Text(text) => {
                    encoder.encode(Item::Text(&carried(text)), out).map_err(bad)?;
                }
            }
        }
    }
    encoder.encode(Item::ElementFoot, out).map_err(bad)
}

/// Replaces references in an attribute that are not needed. The id of a request comes back in its answer. There it must
/// not be longer than in the request, or requests with the longest ids could not be answered.
fn shorten(before: usize, out: &mut Vec<u8>) {
    let written =
        String::from_utf8_lossy(&out[before..]).replace("&gt;", ">").replace("&#34;", "\"");
    out.truncate(before);
    out.extend_from_slice(written.as_bytes());
}

/// Returns whether XML reserves the namespace and defines no such name in it. Prosody writes such names with another
/// prefix or none, and a strict reader ends the connection at that.
fn is_reserved(namespace: &Namespace<'_>, attribute: Option<&NcNameStr>) -> bool {
    let is_known = |name: &NcNameStr| matches!(name.as_str(), "base" | "id" | "lang" | "space");
    *namespace == Namespace::XMLNS
        || *namespace == Namespace::XML && !attribute.is_some_and(is_known)
}

/// Returns an element with attributes. The names are the program's own constants.
pub fn element(name: &str, namespace: &str, attributes: &[(&str, &str)]) -> Element {
    let mut element = Element::bare(name, namespace);
    for (name, value) in attributes {
        set(&mut element, name, value);
    }
    element
}

/// Sets an attribute without namespace; the name is one of the program's own constants.
pub fn set(element: &mut Element, name: &str, value: &str) {
    let name = NcName::try_from(name).expect("attribute names are constants");
    element.attrs_mut().insert(Namespace::NONE, name, value.to_owned());
}

/// Removes all children of a name, and returns them; the other nodes stay in their order. [`Element::remove_child`] for
/// each of many children takes a time that grows with the square of their number.
pub fn remove_children(element: &mut Element, name: &str, namespace: &str) -> Vec<Element> {
    let mut removed = Vec::new();
    if element.has_child(name, namespace) {
        for node in element.take_nodes() {
            match node {
                Node::Element(child) if child.is(name, namespace) => removed.push(child),
                node => element.append_node(node),
            }
        }
    }
    removed
}

/// Returns the features in an answer to disco#info (XEP-0030, section 3.1).
pub fn features(info: &Element) -> impl Iterator<Item = &str> {
    let features = info.children().filter(|child| child.is("feature", ns::DISCO_INFO));
    features.filter_map(|feature| feature.attr("var"))
}

/// Returns the condition of a stream error, if it has one, and its text on one line (RFC 6120, 4.9).
pub fn stream_error(error: &Element) -> (Option<&str>, String) {
    let condition = error
        .children()
        .find(|child| child.has_ns(ns::STREAM_ERRORS) && child.name() != "text")
        .map(Element::name);
    let text = error.get_child("text", ns::STREAM_ERRORS).map(Element::text).unwrap_or_default();
    (condition, text.chars().filter(|c| !c.is_control()).take(200).collect())
}

/// Escapes text for an attribute between apostrophes.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;")
}

/// Returns a copy without children, in another namespace.
pub fn head_in(element: &Element, namespace: &str) -> Element {
    let mut copy = Element::bare(element.name(), namespace);
    let attributes: &AttrMap = element.attrs();
    *copy.attrs_mut() = attributes.clone();
    copy
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX_STANZA: usize = Rules::COMPONENT.bytes;
    const HEADER: &str = "<?xml version='1.0'?><stream:stream \
        xmlns:stream='http://etherx.jabber.org/streams' xmlns='jabber:component:accept' \
        from='xtls.example.org' id='3BF96D32'>";

    /// A component's stream whose bytes come in pieces of one size.
    struct Reader<'a> {
        rest: &'a [u8],
        piece: usize,
        buffer: StanzaBuffer,
    }

    impl<'a> Reader<'a> {
        fn new(text: &'a str, piece: usize) -> Self {
            Self { rest: text.as_bytes(), piece, buffer: StanzaBuffer::new(Rules::COMPONENT) }
        }

        fn fill(&mut self) -> Result<(), Closed> {
            let free = self.buffer.free();
            let n = self.piece.min(self.rest.len()).min(free.len());
            free[..n].copy_from_slice(&self.rest[..n]);
            self.rest = &self.rest[n..];
            self.buffer.filled(n)
        }

        /// Returns the next part, with or without the fast path for plain stanzas; an error as its text.
        fn read(&mut self, plainly: bool) -> Result<Received, String> {
            loop {
                let came = if plainly {
                    self.buffer.next_part().map_err(|error| error.to_string())?
                } else {
                    let whole = self.buffer.next_whole().map_err(|error| error.to_string())?;
                    whole.map(Came::Whole)
                };
                match came {
                    Some(Came::Plain(stanza)) => return Ok(Received::Element(stanza.to_element())),
                    Some(Came::Whole(received)) => return Ok(received),
                    None => self.fill().map_err(|closed| closed.to_string())?,
                }
            }
        }
    }

    fn all(text: &str) -> Vec<Received> {
        let mut reader = Reader::new(text, usize::MAX);
        let mut out = Vec::new();
        while let Ok(received) = reader.read(false) {
            let end = matches!(received, Received::Footer);
            out.push(received);
            if end {
                break;
            }
        }
        out
    }

    /// Returns the stanzas of a stream that continues to its end.
    fn stanzas(text: &str) -> Vec<Element> {
        let mut got = all(&format!("{HEADER}{text}</stream:stream>"));
        assert!(matches!(got.pop(), Some(Received::Footer)), "{text}: {got:?}");
        assert!(matches!(got.remove(0), Received::Header(_)));
        let element = |received| match received {
            Received::Element(element) => element,
            other => panic!("{text}: {other:?}"),
        };
        got.into_iter().map(element).collect()
    }

    fn written(element: &Element) -> io::Result<String> {
        let mut out = Vec::new();
        write(element, &mut out).map(|()| String::from_utf8(out).unwrap())
    }

    #[test]
    fn the_default_namespace_of_xmpp_parsers_is_that_of_clients() {
        assert_eq!(xmpp_parsers::ns::DEFAULT_NS, ns::CLIENT);
    }

    #[test]
    fn the_namespace_is_mapped_at_the_edge_and_unknown_children_survive() {
        let iq = "<iq type='get' from='a@b/c' to='xtls.example.org' id='1'>\
            <x xmlns='urn:x' q='1'>t<y xmlns='jabber:client'/></x></iq>";
        let got = stanzas(iq);
        assert!(got[0].is("iq", ns::CLIENT));
        let out = written(&got[0]).unwrap();
        assert!(out.starts_with("<iq xmlns='jabber:component:accept'"), "{out}");
        let back: Element = out.parse().unwrap();
        let x = back.get_child("x", "urn:x").unwrap();
        assert_eq!((x.attr("q"), x.text().as_str()), (Some("1"), "t"));
        assert!(x.has_child("y", ns::CLIENT));
    }

    #[test]
    fn names_in_the_namespace_of_xml_are_read_in_every_spelling_and_not_written() {
        const XML: &str = "http://www.w3.org/XML/1998/namespace";
        for child in [
            format!("<foo xmlns='{XML}'/>"),
            "<xml:foo/>".to_owned(),
            format!("<xml:foo xmlns:xml='{XML}'/>"),
            format!("<ns1:foo xmlns:ns1='{XML}'/>"),
        ] {
            let got = stanzas(&format!("<message>{child}</message><iq/>"));
            assert!(got[0].has_child("foo", XML), "{child}: {got:?}");
            assert!(written(&got[0]).is_err());
            assert_eq!(got.len(), 2);
        }
        for attribute in ["xml:foo='1'", &format!("xmlns:ns1='{XML}' ns1:foo='1'")] {
            let got = stanzas(&format!("<message {attribute}/><iq/>"));
            assert_eq!(got[0].attr_ns(XML, "foo"), Some("1"), "{attribute}");
            assert!(written(&got[0]).is_err());
            assert_eq!(got.len(), 2);
        }
        for name in ["lang", "base", "space", "id"] {
            let got = stanzas(&format!("<message xml:{name}='1'/>"));
            assert!(written(&got[0]).unwrap().contains(&format!(" xml:{name}='1'")));
        }
        let xmlns = "<message><xmlns:foo xmlns:xmlns='u'/><x xmlns='http://www.w3.org/2000/xmlns/'/></message>";
        assert!(written(&stanzas(xmlns)[0]).is_err());
    }

    #[test]
    fn undeclared_prefixes_are_kept_apart_and_written_with_a_declaration() {
        let got = stanzas(
            "<sp:message sp:y='1' y='2' id='1'><sp:x/><p:x xmlns:p=''/><q:x xmlns:q='urn:q' q:a='1' sp:a='2'/>\
             </sp:message>",
        );
        let message = &got[0];
        assert!(message.is("message", ns::CLIENT));
        let (sp, p) = ("urn:fingerpost:undeclared-prefix:sp", "urn:fingerpost:undeclared-prefix:p");
        assert_eq!((message.attr_ns(sp, "y"), message.attr("y")), (Some("1"), Some("2")));
        assert!(message.has_child("x", sp) && message.has_child("x", p));
        let q = message.get_child("x", "urn:q").unwrap();
        assert_eq!((q.attr_ns("urn:q", "a"), q.attr_ns(sp, "a")), (Some("1"), Some("2")));
        let again = stanzas(&written(message).unwrap());
        assert_eq!(&again[0], message);
    }

    #[test]
    fn what_else_is_legal_or_passed_on_is_read() {
        for (text, expected) in [
            ("<message id='a\rb'/>", "<message xmlns='jabber:client' id='a b'/>"),
            ("<message id='b\r'/>", "<message xmlns='jabber:client' id='b '/>"),
            ("<message id='&#xD;'/>", "<message xmlns='jabber:client' id='&#xD;'/>"),
            ("<message>\ra\r\n</message>", "<message xmlns='jabber:client'>\na\n</message>"),
            (
                "<message><x xmlns=''/></message>",
                "<message xmlns='jabber:client'><x xmlns=''/></message>",
            ),
            (
                "<message><!-- --><?pi?>a<![CDATA[<b>]]>c</message>",
                "<message xmlns='jabber:client'>a&lt;b&gt;c</message>",
            ),
            ("text <!-- --> <?pi?>\r\n<message/>", "<message xmlns='jabber:client'/>"),
            ("<message a='1' a='2'/>", "<message xmlns='jabber:client' a='1'/>"),
            (
                "<message xmlns:a='u' xmlns:b='u' a:x='1' b:x='2'/>",
                "<message xmlns='jabber:client' xmlns:a='u' a:x='1'/>",
            ),
            ("<message\n\tid = \"1\"\r></message >", "<message xmlns='jabber:client' id='1'/>"),
            (
                "<message>\u{1}\u{fffe}&#1;]]></message>",
                "<message xmlns='jabber:client'>\u{fffd}\u{fffd}\u{fffd}]]&gt;</message>",
            ),
            (
                "<message><\u{e9}._-\u{b7}1 \u{10000}='\u{1f600}'/></message>",
                "<message xmlns='jabber:client'><\u{e9}._-\u{b7}1 \u{10000}='\u{1f600}'/></message>",
            ),
        ] {
            let got = stanzas(text);
            let expected: Element = expected.parse().unwrap();
            assert_eq!(got, [expected], "{}", &text[..text.len().min(100)]);
            assert_eq!(stanzas(&written(&got[0]).unwrap()), got);
        }
        let long = "v".repeat(500_000);
        let got = stanzas(&format!("<message id='{long}'><x y='{long}'/></message>"));
        let child = got[0].get_child("x", ns::CLIENT).unwrap();
        assert_eq!([got[0].attr("id"), child.attr("y")], [Some(long.as_str()); 2]);
    }

    #[test]
    fn a_stanza_too_deep_or_too_long_is_reported_and_the_stream_goes_on() {
        let deep = format!(
            "<iq type='get' id='d' from='a@b/c' to='x'>{}{}</iq>",
            "<a>".repeat(20_000),
            "</a>".repeat(20_000)
        );
        let long = format!("<iq type='get' id='l' x='{}'><z>text</z></iq>", "9".repeat(9000));
        let huge = format!("<iq type='get' id='h'><z>{}</z></iq>", "9".repeat(MAX_STANZA + 1));
        let got = all(&format!("{HEADER}{deep}{long}{huge}<iq id='e'/></stream:stream>"));
        let Some(Received::Oversized(head)) = got.get(1) else { panic!("deep") };
        assert_eq!((head.attr("id"), head.nodes().len()), (Some("d"), 0));
        assert!(
            matches!(got.get(2), Some(Received::Element(e)) if e.attr("x").unwrap().len() == 9000)
        );
        assert!(matches!(got.get(3), Some(Received::Oversized(e)) if e.attr("id") == Some("h")));
        assert!(matches!(got.get(4), Some(Received::Element(e)) if e.attr("id") == Some("e")));
        assert!(matches!(got.get(5), Some(Received::Footer)));
    }

    #[test]
    fn every_way_to_be_too_much_leaves_the_head_and_the_stream() {
        let value = "9".repeat(MAX_STANZA + 1);
        let name = "n".repeat(MAX_STANZA + 9);
        let namespace = "n".repeat(MAX_STANZA / 4);
        let attributes: String = (0..200_000).map(|n| format!(" a{n}='1'")).collect();
        let declarations: String = (0..200).map(|n| format!(" xmlns:p{n}='u'")).collect();
        for (attributes, content) in [
            (format!("a='{value}' "), String::new()),
            (String::new(), format!("<x a='{value}'/>")),
            (String::new(), format!("<x a='{value}'><y/></x><z></z>")),
            (String::new(), format!("<![CDATA[{value}]]>")),
            (String::new(), format!("<!--{value}--><x>{value}</x>")),
            (String::new(), format!("<x{attributes}/>")),
            (String::new(), format!("<x{declarations}/>")),
            // Each child inherits the long namespace.
            (String::new(), format!("<x xmlns='{namespace}'>{}</x>", "<a/>".repeat(100))),
            (String::new(), "<a/>".repeat(100_000)),
            (String::new(), format!("<{name}>x</{name}>")),
            (String::new(), format!("<x>x</x{}>", " ".repeat(MAX_STANZA + 9))),
        ] {
            let text = format!(
                "{HEADER}<iq {attributes}id='1'>{content}</iq><iq id='2'/></stream:stream>"
            );
            let got = all(&text);
            let beginning = &text[HEADER.len()..HEADER.len() + 60];
            let Some(Received::Oversized(head)) = got.get(1) else { panic!("{beginning}") };
            assert_eq!((head.attr("id"), head.nodes().len()), (Some("1"), 0), "{beginning}");
            let next = |e: &Element| e.attr("id") == Some("2");
            assert!(matches!(got.get(2), Some(Received::Element(e)) if next(e)), "{beginning}");
            assert!(matches!(got.get(3), Some(Received::Footer)), "{beginning}");
        }
        let text = format!("{HEADER}<iq{attributes}><a/></iq><iq id='2'/></stream:stream>");
        let got = all(&text);
        assert!(matches!(got[1], Received::Dropped | Received::Oversized(_)));
        assert_eq!(got.len(), 4);
    }

    #[test]
    fn what_is_not_well_formed_is_an_error() {
        for text in ["<a></b>", "</a>", "<a", "<a>&b;</a>", "<a:b:c/>", "<a b/>", "<!DOCTYPE a>"] {
            let got = all(&format!("{HEADER}{text}</stream:stream><iq/>"));
            assert!(!got.iter().any(|r| matches!(r, Received::Element(_))), "{text}: {got:?}");
        }
    }

    #[test]
    fn a_connection_that_ends_says_where() {
        for (text, expected) in [
            ("", "the connection was closed"),
            ("<iq/> ", "the connection was closed"),
            ("<iq>", "the connection was closed in the middle of a stanza"),
            ("<i", "the connection was closed in the middle of a stanza"),
        ] {
            for plainly in [false, true] {
                let (_, error) = read_all(&format!("{HEADER}{text}"), 7, plainly);
                assert_eq!(error.unwrap(), expected, "{text}");
            }
        }
    }

    /// Returns everything on a stream as text, and how it broke, if it did.
    fn read_all(text: &str, piece: usize, plainly: bool) -> (Vec<String>, Option<String>) {
        let mut reader = Reader::new(text, piece);
        let mut out = Vec::new();
        loop {
            match reader.read(plainly) {
                Err(error) => return (out, Some(error)),
                Ok(Received::Footer) => return (out, None),
                Ok(received) => out.push(format!("{received:?}")),
            }
        }
    }

    proptest! {
        #[test]
        fn the_short_way_and_any_cutting_read_the_same_as_the_parser(
            parts in proptest::collection::vec(prop_oneof![
                "<iq( (id|from|a-b|xml:lang|xmlns|p:a|xmlns:p)=('[a-z<&\r]{0,2}'|\"[a-z' ]{0,3}\"))* ?/?>",
                "<(p:)?(data|x)( xmlns=('urn:x'|'jabber:component:accept'|''|'jabber:client'))?( seq='1')?/?>",
                "[a-z>& \r\n\u{e9}]{0,4}",
                "</(iq|data|x|p:x)>",
                Just("<iq type='get'><data xmlns='urn:y'>text</data></iq>".to_owned()),
                Just("<iq id='1'/>".to_owned()),
                Just("<!-- ' --><![CDATA[<]]>&#13;&lt;".to_owned()),
                Just(" ".to_owned()),
            ], 0..8),
            piece in 1_usize..90,
        ) {
            let text = format!("{HEADER}{}</stream:stream>", parts.concat());
            let whole = read_all(&text, 1 << 20, false);
            prop_assert_eq!(read_all(&text, piece, true), whole.clone());
            prop_assert_eq!(read_all(&text, piece, false), whole);
        }

        /// A stanza that the fast path accepts is the same to the parser.
        #[test]
        fn plain_stanzas_are_the_same_to_the_parser(
            stanza in "<[a-z]{1,2}( (id|from|xml:lang|xmlns)=('[a-z&\t ]{0,3}'|'jabber:component:accept'))* ?(/>|>\
                (<x( (id|xmlns|xmlns:p)=('[a-z:]{0,3}'|'jabber:client'|'jabber:component:accept'))* ?(/>|>[a-z\"'\\];]{0,3}</x>))?</[a-z]{1,2}>)",
        ) {
            if let Scan::Plain(plain, length) = plain::scan(stanza.as_bytes(), ns::COMPONENT) {
                prop_assert_eq!(length, stanza.len());
                let parsed = stanzas(&stanza);
                prop_assert_eq!(parsed, vec![plain.to_element()]);
            }
        }

        /// An element that was read is written so that it reads the same, or not at all.
        #[test]
        fn what_is_written_is_read_the_same(
            text in "(<x:?[a-c]( (a|p:a|xml:lang|xmlns:p|xmlns)='[a-c&#13;\r\n<]{0,3}')*>?|</x:?[a-c]>|[a-c \r&;]|&#(10|13|1);){0,12}",
        ) {
            let text = format!("{HEADER}<iq>{text}</iq></stream:stream>");
            for received in all(&text) {
                if let Received::Element(element) = received
                    && let Ok(out) = written(&element)
                {
                    prop_assert_eq!(stanzas(&out), vec![element]);
                }
            }
        }

        #[test]
        fn mangled_input_never_panics(text in "[<>/ a-c='\"&;:!?\\[\\]\r-]{0,80}") {
            all(&format!("{HEADER}{text}"));
        }
    }
}
