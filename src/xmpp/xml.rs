//! XML stream bytes <-> stanza elements, for the component link.
//!
//! tokio-xmpp's own stream type cannot carry this link: it insists on a `version` attribute that ejabberd does not
//! send to components (unless a feature is on that would change the namespace of the client program too), ends at
//! the first attribute of more than 8 KiB, and builds elements recursively, so that a stranger's deep nesting
//! overflows the stack. This is the same lexer (rxml) with limits of our own: what is too deep or too long is
//! reported with its addresses and the stream goes on.
//!
//! Inside the program every stanza is in `jabber:client`. The namespace of the stream, `jabber:component:accept`,
//! is mapped here, on the stanza and its direct children, both ways.

use std::io;

use minidom::{Element, Node};
use rxml::{
    AttrMap, Event, Namespace, NcName, NcNameStr, Options, Parse, Parser, WithOptions,
    error::EndOrError,
    parser::CommentMode,
    writer::{Encoder, Item, SimpleNamespaces},
};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{
    ns,
    plain::{self, Plain, Scan},
    text::carried,
};

/// Deepest nesting that is taken, counted from the stanza.
const MAX_DEPTH: usize = 64;
/// Longest stanza that is taken, bytes.
const MAX_STANZA: usize = 1 << 20;
/// Bytes read at once.
const BUFFER: usize = 1 << 18;
/// A stanza in plain spelling that is longer than this is given to the parser: the longest block is shorter.
const PLAIN: usize = 1 << 17;

/// What came from the stream.
#[derive(Debug)]
pub enum Received {
    /// The stream header, with its `id`.
    Header(String),
    /// A first-level element.
    Element(Element),
    /// A first-level element that is too deep or too long: only its head is kept.
    Oversized(Element),
    /// The other side closed the stream.
    Footer,
}

/// What came, perhaps still where it lies.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a view on the stack, made for each stanza")]
pub(crate) enum Came<'a> {
    /// A stanza in plain spelling.
    Plain(Plain<'a>),
    /// Anything.
    Whole(Received),
}

/// Reads a component stream.
///
/// # Cancel safety
/// [`StanzaReader::read`] may be dropped and called again without loss.
pub struct StanzaReader<R> {
    io: R,
    /// What was read is in `start..end`.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    eof: bool,
    parser: Parser,
    tree: Tree,
}

/// A stanza in the making.
#[derive(Debug, Default)]
struct Tree {
    /// The stream header has come.
    open: bool,
    /// The parser has nothing of what comes next.
    between: bool,
    stack: Vec<Element>,
    depth: usize,
    bytes: usize,
    oversized: bool,
}

impl<R> std::fmt::Debug for StanzaReader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StanzaReader").field("tree", &self.tree).finish_non_exhaustive()
    }
}

impl<R: AsyncRead + Unpin> StanzaReader<R> {
    /// Reads from the start of a stream.
    pub fn new(io: R) -> Self {
        let options =
            Options { max_token_length: MAX_STANZA, context: None, comments: CommentMode::Discard };
        let parser = Parser::with_options(options);
        let (buffer, tree) = (vec![0; BUFFER], Tree::default());
        Self { io, buffer, start: 0, end: 0, eof: false, parser, tree }
    }

    /// The next thing on the stream.
    ///
    /// # Errors
    /// An I/O error, also for XML that is not well-formed: the stream is then lost.
    pub async fn read(&mut self) -> io::Result<Received> {
        loop {
            let Self { buffer, start, end, eof, parser, tree, .. } = self;
            if let Some(received) = parse(parser, tree, buffer, start, *end, *eof)? {
                return Ok(received);
            }
            self.fill().await?;
        }
    }

    /// Reads what has arrived, and waits until something has.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(crate) async fn fill(&mut self) -> io::Result<()> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let n = self.io.read(&mut self.buffer[self.end..]).await?;
        self.eof = n == 0;
        self.end += n;
        Ok(())
    }

    /// The next thing of what was read; `None` if [`StanzaReader::fill`] is needed first.
    ///
    /// # Errors
    /// As of [`StanzaReader::read`].
    pub(crate) fn next(&mut self) -> io::Result<Option<Came<'_>>> {
        let Self { buffer, start, end, eof, parser, tree, .. } = self;
        if tree.between {
            while *start < *end && matches!(buffer[*start], b' ' | b'\n') {
                *start += 1;
            }
            match plain::scan(&buffer[*start..*end]) {
                Scan::Plain(stanza, length) => {
                    *start += length;
                    return Ok(Some(Came::Plain(stanza)));
                }
                Scan::Incomplete if !*eof && *end - *start < PLAIN => return Ok(None),
                Scan::Incomplete | Scan::Other => {}
            }
        }
        Ok(parse(parser, tree, buffer, start, *end, *eof)?.map(Came::Whole))
    }
}

/// Gives the parser what lies there until something is complete.
fn parse(
    parser: &mut Parser,
    tree: &mut Tree,
    buffer: &[u8],
    start: &mut usize,
    end: usize,
    eof: bool,
) -> io::Result<Option<Received>> {
    loop {
        let mut rest = &buffer[*start..end];
        let at_end = eof && rest.is_empty();
        let event = parser.parse(&mut rest, at_end);
        *start = end - rest.len();
        tree.between = false;
        match event {
            Ok(None) => return Ok(Some(Received::Footer)),
            Ok(Some(event)) => {
                if let Some(received) = tree.handle(event) {
                    tree.between = tree.open && tree.depth == 0;
                    return Ok(Some(received));
                }
            }
            // The end of what was read may be the end of all of it.
            Err(EndOrError::NeedMoreData) if eof && *start < end => {}
            Err(EndOrError::NeedMoreData) => return Ok(None),
            Err(EndOrError::Error(error)) => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
    }
}

impl Tree {
    fn handle(&mut self, event: Event) -> Option<Received> {
        match event {
            Event::XmlDeclaration(..) => None,
            Event::StartElement(_, _, attrs) if !self.open => {
                self.open = true;
                let id = attrs.get(Namespace::none(), "id").cloned().unwrap_or_default();
                Some(Received::Header(id))
            }
            Event::StartElement(metrics, (namespace, name), attrs) => {
                self.depth += 1;
                self.count(metrics.len());
                if self.depth <= MAX_DEPTH && (!self.oversized || self.depth == 1) {
                    let near = self.depth <= 2;
                    let namespace = match namespace.as_str() {
                        ns::COMPONENT if near => ns::CLIENT,
                        other => other,
                    };
                    let mut element = Element::bare(name.as_str(), namespace);
                    *element.attrs_mut() = attrs;
                    self.stack.push(element);
                } else {
                    self.oversized = true;
                }
                None
            }
            Event::Text(metrics, text) => {
                self.count(metrics.len());
                if !self.oversized
                    && let Some(parent) = self.stack.last_mut()
                {
                    parent.append_text(text);
                }
                None
            }
            Event::EndElement(_) if self.depth == 0 => Some(Received::Footer),
            Event::EndElement(_) => {
                if self.stack.len() == self.depth
                    && let Some(element) = self.stack.pop()
                {
                    match self.stack.last_mut() {
                        Some(parent) => {
                            parent.append_child(element);
                        }
                        None => self.stack.push(element),
                    }
                }
                self.depth -= 1;
                if self.depth > 0 {
                    return None;
                }
                self.bytes = 0;
                let mut element = self.stack.pop()?;
                self.stack.clear();
                if std::mem::take(&mut self.oversized) {
                    drop(element.take_nodes());
                    return Some(Received::Oversized(element));
                }
                Some(Received::Element(element))
            }
        }
    }

    fn count(&mut self, len: usize) {
        self.bytes += len;
        if self.bytes > MAX_STANZA {
            self.oversized = true;
        }
    }
}

/// Writes a stanza for a component stream, behind what is in `out`.
///
/// # Errors
/// If a name in it is not an XML name; `out` then has a part of it. What XML cannot carry in a text is replaced.
pub fn write(element: &Element, out: &mut Vec<u8>) -> io::Result<()> {
    write_element(element, 0, &mut Encoder::<SimpleNamespaces>::new(), out)
}

fn write_element(
    element: &Element,
    depth: usize,
    encoder: &mut Encoder<SimpleNamespaces>,
    out: &mut Vec<u8>,
) -> io::Result<()> {
    fn bad(error: impl std::fmt::Display) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidInput, error.to_string())
    }
    let namespace = match element.ns() {
        namespace if namespace == ns::CLIENT && depth <= 1 => Namespace::from(ns::COMPONENT),
        namespace => Namespace::from(namespace),
    };
    let name: &NcNameStr = element.name().try_into().map_err(bad)?;
    encoder.encode(Item::ElementHeadStart(namespace, name), out).map_err(bad)?;
    for ((namespace, key), value) in element.attrs() {
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
                Node::Element(child) => write_element(child, depth + 1, encoder, out)?,
                // Blocks of in-band bytestreams: nothing in them is to be escaped, and that is seen quickly.
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

/// Undoes the references in an attribute that need not be. The id of a request comes back in its answer: it must not take
/// more room there than it did in the request, or requests with the longest ids could not be answered.
fn shorten(before: usize, out: &mut Vec<u8>) {
    let written =
        String::from_utf8_lossy(&out[before..]).replace("&gt;", ">").replace("&#34;", "\"");
    out.truncate(before);
    out.extend_from_slice(written.as_bytes());
}

/// An element with attributes; names are the program's own constants.
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

/// A copy without children, in another namespace.
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

    const HEADER: &str = "<?xml version='1.0'?><stream:stream \
        xmlns:stream='http://etherx.jabber.org/streams' xmlns='jabber:component:accept' \
        from='xtls.example.org' id='3BF96D32'>";

    async fn all(text: &str) -> Vec<Received> {
        let mut reader = StanzaReader::new(text.as_bytes());
        let mut out = Vec::new();
        while let Ok(received) = reader.read().await {
            let end = matches!(received, Received::Footer);
            out.push(received);
            if end {
                break;
            }
        }
        out
    }

    #[test]
    fn the_default_namespace_of_xmpp_parsers_is_that_of_clients() {
        assert_eq!(xmpp_parsers::ns::DEFAULT_NS, ns::CLIENT);
    }

    #[tokio::test]
    async fn the_namespace_is_mapped_at_the_edge_and_unknown_children_survive() {
        let iq = "<iq type='get' from='a@b/c' to='xtls.example.org' id='1'>\
            <x xmlns='urn:x' q='1'>t<y xmlns='jabber:client'/></x></iq>";
        let got = all(&format!("{HEADER}{iq}</stream:stream>")).await;
        let Some(Received::Element(element)) = got.get(1) else { panic!("{got:?}") };
        assert!(element.is("iq", ns::CLIENT));
        let out = String::from_utf8({
            let mut out = Vec::new();
            write(element, &mut out).unwrap();
            out
        })
        .unwrap();
        assert!(out.starts_with("<iq xmlns='jabber:component:accept'"), "{out}");
        let back: Element = out.parse().unwrap();
        let x = back.get_child("x", "urn:x").unwrap();
        assert_eq!((x.attr("q"), x.text().as_str()), (Some("1"), "t"));
        assert!(x.has_child("y", ns::CLIENT));
    }

    #[tokio::test]
    async fn a_stanza_too_deep_or_too_long_is_reported_and_the_stream_goes_on() {
        let deep = format!(
            "<iq type='get' id='d' from='a@b/c' to='x'>{}{}</iq>",
            "<a>".repeat(20_000),
            "</a>".repeat(20_000)
        );
        let long = format!("<iq type='get' id='l' x='{}'><z>text</z></iq>", "9".repeat(9000));
        let huge = format!("<iq type='get' id='h'><z>{}</z></iq>", "9".repeat(MAX_STANZA + 1));
        let got = all(&format!("{HEADER}{deep}{long}{huge}<iq id='e'/></stream:stream>")).await;
        let Some(Received::Oversized(head)) = got.get(1) else { panic!("deep") };
        assert_eq!((head.attr("id"), head.nodes().len()), (Some("d"), 0));
        assert!(
            matches!(got.get(2), Some(Received::Element(e)) if e.attr("x").unwrap().len() == 9000)
        );
        assert!(matches!(got.get(3), Some(Received::Oversized(e)) if e.attr("id") == Some("h")));
        assert!(matches!(got.get(4), Some(Received::Element(e)) if e.attr("id") == Some("e")));
        assert!(matches!(got.get(5), Some(Received::Footer)));
    }

    /// Gives its bytes in pieces of one size.
    struct Pieces<'a>(&'a [u8], usize);

    impl AsyncRead for Pieces<'_> {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            buf: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            let n = self.1.min(self.0.len()).min(buf.remaining());
            buf.put_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            std::task::Poll::Ready(Ok(()))
        }
    }

    /// Everything on a stream as text, and whether it ended well; with or without the short way for plain stanzas.
    fn read_all(text: &str, piece: usize, plainly: bool) -> (Vec<String>, bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut reader = StanzaReader::new(Pieces(text.as_bytes(), piece));
            let mut out = Vec::new();
            loop {
                let received = if plainly {
                    match reader.next() {
                        Ok(None) => {
                            reader.fill().await.unwrap();
                            continue;
                        }
                        Ok(Some(Came::Plain(stanza))) => Ok(Received::Element(stanza.to_element())),
                        Ok(Some(Came::Whole(received))) => Ok(received),
                        Err(error) => Err(error),
                    }
                } else {
                    reader.read().await
                };
                match received {
                    Err(_) => return (out, false),
                    Ok(Received::Footer) => return (out, true),
                    Ok(received) => out.push(format!("{received:?}")),
                }
            }
        })
    }

    #[test]
    fn a_stream_that_breaks_off_is_an_error_on_either_way() {
        for text in ["<iq id='1'><x xmlns='urn:x'>a", "<iq id='1'/><i", "<iq id='1'/>"] {
            for plainly in [false, true] {
                assert!(!read_all(&format!("{HEADER}{text}"), 7, plainly).1, "{text}");
            }
        }
    }

    proptest! {
        #[test]
        fn the_short_way_reads_the_same_as_the_parser(
            parts in proptest::collection::vec(prop_oneof![
                "<iq( (id|from|a-b|xml:lang)=('[a-z<&]{0,2}'|\"[a-z' ]{0,3}\"))* ?/?>",
                "<(data|x)( xmlns=('urn:x'|'jabber:component:accept'|''|'jabber:client'))?( seq='1')?/?>",
                "[a-z>& \n]{0,4}",
                "</(iq|data|x)>",
                Just("<iq type='get'><data xmlns='urn:y'>text</data></iq>".to_owned()),
                Just("<iq id='1'/>".to_owned()),
                Just(" ".to_owned()),
            ], 0..8),
            piece in 1_usize..90,
        ) {
            let text = format!("{HEADER}{}</stream:stream>", parts.concat());
            prop_assert_eq!(read_all(&text, piece, true), read_all(&text, 1 << 20, false));
        }

        #[test]
        fn mangled_input_never_panics(text in "[<>/ a-c='\"&;]{0,80}") {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(all(&format!("{HEADER}{text}")));
        }
    }
}
