//! Parses the bytes of an XML stream from a peer into its header, first-level elements and end; without input or output
//! of its own.
//!
//! At most [`MAX_STANZA`] bytes and [`MAX_DEPTH`] levels of a peer's element are held in memory. More of either, and
//! anything that a stream must not carry (RFC 6120, 11.1: comments, DTDs, entities), is a [`Fault`] that ends the
//! stream.

use fingerpost_wire::{
    ns,
    tokens::ParseError,
    xml::{self, Rules, XmlParser},
};
use minidom::Element;

use super::Fault;

/// The deepest accepted nesting, counted from a first-level element.
pub const MAX_DEPTH: usize = 32;
/// The longest accepted first-level element, in bytes: more than in-band blocks of 64 KiB need.
pub(crate) const MAX_STANZA: usize = 128 << 10;

const RULES: Rules =
    Rules { namespace: ns::CLIENT, depth: MAX_DEPTH, bytes: MAX_STANZA, strict: true };

/// A part of the stream.
#[derive(Debug)]
pub(super) enum StreamPart {
    /// The opening tag.
    Header(Element),
    /// A first-level element.
    Element(Element),
    /// The closing tag.
    Footer,
}

/// Reads one stream, from its header to its end.
#[derive(Debug)]
pub(super) struct ElementReader {
    parser: XmlParser,
}

impl ElementReader {
    pub(super) fn new() -> Self {
        Self { parser: XmlParser::new(RULES) }
    }

    /// Returns the next part of the stream, if `input` has the rest of it, and removes exactly its bytes from `input`.
    pub(super) fn next(&mut self, input: &mut &[u8]) -> Result<Option<StreamPart>, Fault> {
        let Some(received) = self.parser.next(input)? else { return Ok(None) };
        Ok(Some(match received {
            xml::Received::Header(header) if !header.has_ns(ns::STREAM) => {
                return Err(Fault::InvalidNamespace);
            }
            xml::Received::Header(header) if header.name() != "stream" => {
                return Err(Fault::BadFormat);
            }
            xml::Received::Header(header) => StreamPart::Header(header),
            xml::Received::Element(element) => StreamPart::Element(element),
            xml::Received::Oversized(_) | xml::Received::Dropped => return Err(Fault::TooMuch),
            xml::Received::Footer => StreamPart::Footer,
        }))
    }
}

impl From<ParseError> for Fault {
    fn from(error: ParseError) -> Self {
        match error {
            ParseError::NotWellFormed(_) => Self::NotWellFormed,
            ParseError::Restricted(_) => Self::Restricted,
            ParseError::StrayText => Self::BadFormat,
            ParseError::TooMuch => Self::TooMuch,
        }
    }
}

/// Reads a stream whose bytes come in pieces of one size. Returns its first-level elements, and how it ended. Only
/// fuzzing calls it.
pub(crate) fn read_pieces(bytes: &[u8], size: usize) -> (Vec<Element>, String) {
    let (mut reader, mut found) = (ElementReader::new(), Vec::new());
    let mut pending = Vec::new();
    for piece in bytes.chunks(size) {
        pending.extend_from_slice(piece);
        loop {
            let mut input = pending.as_slice();
            let received = reader.next(&mut input);
            let taken = pending.len() - input.len();
            pending.drain(..taken);
            match received {
                Ok(Some(StreamPart::Header(_))) => {}
                Ok(Some(StreamPart::Element(element))) => found.push(element),
                Ok(Some(StreamPart::Footer)) => return (found, "closed".to_owned()),
                Ok(None) => break,
                Err(fault) => return (found, fault.to_string()),
            }
        }
    }
    (found, "more is to come".to_owned())
}
