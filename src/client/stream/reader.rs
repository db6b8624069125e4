//! Bytes of an XML stream from a peer -> its header, first-level elements and end; no input or output of its own.
//!
//! What a peer sends is held in memory only up to [`MAX_STANZA`] bytes and [`MAX_DEPTH`] levels. More of either, and
//! all that a stream must not carry (RFC 6120, 11.1: comments, DTDs, entities), is a [`Fault`]: the stream is over.

use minidom::Element;
use rxml::{
    AttrMap, Error, Event, Namespace, Options, Parse, Parser, WithOptions, error::EndOrError,
    parser::CommentMode,
};

use super::Fault;
use crate::xmpp::ns;

/// Deepest nesting that is taken, counted from a first-level element.
pub(crate) const MAX_DEPTH: usize = 32;
/// Longest first-level element that is taken, bytes. More than in-band blocks of 64 KiB need.
pub(crate) const MAX_STANZA: usize = 128 << 10;
/// Longest name or attribute value, bytes.
const MAX_TOKEN: usize = 16 << 10;

/// What came from the stream.
#[derive(Debug)]
pub(super) enum Received {
    /// The opening tag's attributes.
    Header(AttrMap),
    /// A first-level element.
    Element(Element),
    /// The closing tag.
    Footer,
}

/// Reads one stream, from its header to its end.
#[derive(Debug)]
pub(super) struct Reader {
    parser: Parser,
    open: bool,
    stack: Vec<Element>,
    /// Of the first-level element that is being read, or of what stands between two.
    bytes: usize,
}

impl Reader {
    pub(super) fn new() -> Self {
        let options =
            Options { max_token_length: MAX_TOKEN, context: None, comments: CommentMode::Reject };
        Self { parser: Parser::with_options(options), open: false, stack: Vec::new(), bytes: 0 }
    }

    /// The next thing on the stream, if `input` has the rest of it; what was read is taken off `input`, and no byte
    /// more.
    pub(super) fn next(&mut self, input: &mut &[u8]) -> Result<Option<Received>, Fault> {
        loop {
            let before = input.len();
            let event = self.parser.parse(input, false);
            self.bytes += before - input.len();
            if self.bytes > MAX_STANZA {
                return Err(Fault::TooMuch);
            }
            let event = match event {
                Ok(Some(event)) => event,
                Ok(None) => return Ok(Some(Received::Footer)),
                Err(EndOrError::NeedMoreData) => return Ok(None),
                Err(EndOrError::Error(Error::RestrictedXml(_))) => return Err(Fault::Restricted),
                Err(EndOrError::Error(_)) => return Err(Fault::NotWellFormed),
            };
            if let Some(received) = self.take(event)? {
                self.bytes = 0;
                self.parser.release_temporaries();
                return Ok(Some(received));
            }
        }
    }

    fn take(&mut self, event: Event) -> Result<Option<Received>, Fault> {
        match event {
            Event::XmlDeclaration(..) => Ok(None),
            Event::StartElement(_, (namespace, name), attributes) if !self.open => {
                self.open = true;
                if namespace.as_str() != ns::STREAM {
                    return Err(Fault::InvalidNamespace);
                }
                if name.as_str() != "stream" {
                    return Err(Fault::BadFormat);
                }
                Ok(Some(Received::Header(attributes)))
            }
            Event::StartElement(_, (namespace, name), attributes) => {
                if self.stack.len() == MAX_DEPTH {
                    return Err(Fault::TooMuch);
                }
                let mut element = Element::bare(name.as_str(), namespace.as_str());
                *element.attrs_mut() = attributes;
                self.stack.push(element);
                Ok(None)
            }
            Event::Text(_, text) => {
                match self.stack.last_mut() {
                    Some(parent) => parent.append_text(text),
                    // Between two elements there may be any amount of white space, which keeps a connection alive.
                    None if text.bytes().all(|byte| byte.is_ascii_whitespace()) => self.bytes = 0,
                    None => return Err(Fault::BadFormat),
                }
                Ok(None)
            }
            Event::EndElement(_) => {
                let Some(element) = self.stack.pop() else { return Ok(Some(Received::Footer)) };
                match self.stack.last_mut() {
                    Some(parent) => {
                        parent.append_child(element);
                        Ok(None)
                    }
                    None => Ok(Some(Received::Element(element))),
                }
            }
        }
    }
}

/// An attribute without namespace.
pub(super) fn attribute<'a>(attributes: &'a AttrMap, name: &str) -> Option<&'a str> {
    attributes.get(Namespace::none(), name).map(String::as_str)
}
