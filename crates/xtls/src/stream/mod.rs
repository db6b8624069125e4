//! The rules of one XML stream between two users' programs (XEP-0246, XEP-0247; RFC 6120, 4), without a socket.
//!
//! The initiator sends its stream header, the responder its own and its features. Then both send elements until one
//! sends the closing tag, which the other answers with its own.
//!
//! [`XmlStream::next`] takes received bytes, [`XmlStream::take_output`] returns the bytes to send. The same rules apply
//! to the stream before STARTTLS on a local network and to the one inside TLS: each is an `XmlStream` of its own.

pub(crate) mod acks;
mod reader;
#[cfg(test)]
mod tests;

use fingerpost_wire::{ns, text::replace_not_carried, xml::escaped};
use jid::{BareJid, Jid};
use minidom::Element;

pub use self::reader::MAX_DEPTH;
use self::reader::{ElementReader, StreamPart};
pub(crate) use self::reader::{MAX_STANZA, read_pieces};

/// The side that opens the stream, or the one that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Sends the first header.
    Initiator,
    /// Answers it, and offers features.
    Responder,
}

/// The names of both sides. Our header has the first of each list; the peer may use the others too.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    /// Ourselves.
    pub(crate) own: Vec<BareJid>,
    /// The other side; empty if only its header will tell.
    pub(crate) peer: Vec<BareJid>,
}

/// An event of a stream for its owner.
#[derive(Debug)]
pub(crate) enum Event {
    /// Both headers were exchanged, and elements may be sent.
    Opened {
        /// The sender in the peer's header, if it has one.
        from: Option<BareJid>,
        /// The responder's features; `None` for the responder itself, and if it does not support XMPP 1.0.
        features: Option<Element>,
    },
    /// A first-level element.
    Element(Element),
    /// The stream has ended.
    Ended(End),
}

/// How a stream ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By the closing tag.
    Closed,
    /// The peer ended it with a stream error: its condition, and its text.
    Error(String, String),
    /// We ended it with a stream error, for what the peer sent.
    Fault(Fault),
    /// The bytes ended before the closing tag.
    Broken,
}

/// Errors of a peer; each is a stream error (RFC 6120, 4.9.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("it is not an XMPP stream")]
    BadFormat,
    #[error("it acknowledged {handled} stanzas of {sent} sent")]
    HandledTooMany { handled: u32, sent: u32 },
    #[error("its stream is for another user")]
    HostUnknown,
    #[error("its address is missing or not valid")]
    ImproperAddressing,
    #[error("its address is not that of the user whose key it has")]
    InvalidFrom,
    #[error("its stream is not in XMPP's namespace")]
    InvalidNamespace,
    #[error("its key is not the known one")]
    NotAuthorized,
    #[error("it does not secure the stream")]
    NotSecured,
    #[error("its XML is not well-formed")]
    NotWellFormed,
    #[error("its stanza is larger than {} KiB or deeper than {MAX_DEPTH} levels", MAX_STANZA >> 10)]
    TooMuch,
    #[error("it has XML that XMPP forbids")]
    Restricted,
    #[error("it was silent for too long")]
    Timeout,
    #[error("it has an element that is not understood")]
    Unsupported,
}

impl Fault {
    fn condition(self) -> &'static str {
        match self {
            Self::BadFormat => "bad-format",
            Self::HandledTooMany { .. } => "undefined-condition",
            Self::HostUnknown => "host-unknown",
            Self::ImproperAddressing => "improper-addressing",
            Self::InvalidFrom => "invalid-from",
            Self::InvalidNamespace => "invalid-namespace",
            Self::NotAuthorized => "not-authorized",
            Self::NotSecured => "policy-violation",
            Self::NotWellFormed => "not-well-formed",
            Self::TooMuch => "policy-violation",
            Self::Restricted => "restricted-xml",
            Self::Timeout => "connection-timeout",
            Self::Unsupported => "unsupported-stanza-type",
        }
    }

    /// Returns the application's own condition beside the defined one (XEP-0198, 4).
    fn extra(self) -> String {
        match self {
            Self::HandledTooMany { handled, sent } => format!(
                "<handled-count-too-high xmlns='{}' h='{handled}' send-count='{sent}'/>",
                ns::SM
            ),
            _ => String::new(),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// The peer's header is still to come.
    Header,
    /// The responder's features are still to come.
    Features(Option<BareJid>),
    Open,
    Ended,
}

/// One stream. See the module's documentation.
#[derive(Debug)]
pub(crate) struct XmlStream {
    role: Role,
    names: Names,
    features: Vec<Element>,
    id: String,
    reader: ElementReader,
    state: State,
    out: Vec<u8>,
    closing: bool,
    /// The peer's header says that it speaks XMPP 1.0: it knows what features are.
    modern: bool,
}

impl XmlStream {
    /// Creates a stream that we open: the header is ready to be sent.
    pub(crate) fn initiate(names: Names) -> Self {
        let mut stream = Self::new(Role::Initiator, names, Vec::new(), String::new());
        let to = stream.names.peer.first().cloned();
        stream.write_header(to.as_ref());
        stream
    }

    /// Creates a stream that the peer opens. `id` must be unguessable (RFC 6120, 4.7.3).
    pub(crate) fn respond(names: Names, features: Vec<Element>, id: String) -> Self {
        Self::new(Role::Responder, names, features, id)
    }

    fn new(role: Role, names: Names, features: Vec<Element>, id: String) -> Self {
        Self {
            role,
            names,
            features,
            id,
            reader: ElementReader::new(),
            state: State::Header,
            out: Vec::new(),
            closing: false,
            modern: false,
        }
    }

    /// Returns whether the peer's header says that it speaks XMPP 1.0, and so may secure the stream.
    pub(crate) fn is_modern(&self) -> bool {
        self.modern
    }

    /// Returns our side.
    pub(crate) fn role(&self) -> Role {
        self.role
    }

    /// Returns the next event in `input`, and removes its bytes. `None`: more is needed, or the stream has ended.
    pub(crate) fn next(&mut self, input: &mut &[u8]) -> Option<Event> {
        while self.state != State::Ended {
            let taken = match self.reader.next(input) {
                Ok(Some(received)) => self.take(received),
                Ok(None) => return None,
                Err(fault) => Err(fault),
            };
            match taken {
                Ok(Some(event)) => return Some(event),
                Ok(None) => {}
                Err(fault) => return Some(self.fail(fault)),
            }
        }
        None
    }

    /// Handles the end of the bytes.
    pub(crate) fn handle_end(&mut self) -> Option<Event> {
        let ended = std::mem::replace(&mut self.state, State::Ended) == State::Ended;
        (!ended).then_some(Event::Ended(End::Broken))
    }

    /// Sends an element, if the stream is open and not closing.
    pub(crate) fn send(&mut self, element: &Element) {
        if self.state == State::Open && !self.closing {
            self.write(element);
        }
    }

    /// Sends white space, as a sign of life (RFC 6120, 4.6.1), if the stream is open and not closing.
    pub(crate) fn keep_alive(&mut self) {
        if self.state == State::Open && !self.closing {
            self.out.push(b' ');
        }
    }

    /// Sends the closing tag; the peer may still send until its own.
    pub(crate) fn close(&mut self) {
        if self.state != State::Ended && !std::mem::replace(&mut self.closing, true) {
            self.out.extend_from_slice(b"</stream:stream>");
        }
    }

    /// Ends the stream with an error.
    pub(crate) fn fail(&mut self, fault: Fault) -> Event {
        if self.state == State::Header && self.role == Role::Responder {
            self.write_header(None);
        }
        if !self.closing {
            let error = format!(
                "<stream:error><{} xmlns='{}'/>{}</stream:error></stream:stream>",
                fault.condition(),
                ns::STREAM_ERRORS,
                fault.extra(),
            );
            self.out.extend_from_slice(error.as_bytes());
            self.closing = true;
        }
        self.state = State::Ended;
        Event::Ended(End::Fault(fault))
    }

    /// Returns the bytes to send.
    pub(crate) fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    fn take(&mut self, received: StreamPart) -> Result<Option<Event>, Fault> {
        let element = match received {
            StreamPart::Header(header) => return self.take_header(&header),
            StreamPart::Footer => {
                self.close();
                self.state = State::Ended;
                return Ok(Some(Event::Ended(End::Closed)));
            }
            StreamPart::Element(element) => element,
        };
        if element.is("error", ns::STREAM) {
            self.close();
            self.state = State::Ended;
            let find = |text: bool| {
                element
                    .children()
                    .find(|c| c.has_ns(ns::STREAM_ERRORS) && (c.name() == "text") == text)
            };
            let condition = find(false).map_or("undefined-condition", Element::name).to_owned();
            let text = find(true).map(Element::text).unwrap_or_default();
            return Ok(Some(Event::Ended(End::Error(condition, text))));
        }
        match &mut self.state {
            State::Features(from) => {
                if !element.is("features", ns::STREAM) {
                    return Err(Fault::BadFormat);
                }
                let from = from.take();
                self.state = State::Open;
                Ok(Some(Event::Opened { from, features: Some(element) }))
            }
            State::Open => Ok(Some(Event::Element(element))),
            State::Header | State::Ended => Err(Fault::BadFormat),
        }
    }

    fn take_header(&mut self, header: &Element) -> Result<Option<Event>, Fault> {
        let address = |name| match header.attr(name).map(Jid::new) {
            None => Ok(None),
            Some(Ok(jid)) => Ok(Some(jid.to_bare())),
            Some(Err(_)) => Err(Fault::ImproperAddressing),
        };
        let (from, to) = (address("from")?, address("to")?);
        let known = |names: &[BareJid], name: &Option<BareJid>| {
            names.is_empty() || name.as_ref().is_none_or(|name| names.contains(name))
        };
        if !known(&self.names.own, &to) {
            return Err(Fault::HostUnknown);
        }
        if !known(&self.names.peer, &from) {
            return Err(Fault::InvalidFrom);
        }
        if self.names.peer.is_empty() && from.is_none() {
            return Err(Fault::ImproperAddressing);
        }
        self.modern = header.attr("version").is_some_and(|version| version != "0.9");
        if self.role == Role::Initiator {
            if self.modern {
                self.state = State::Features(from);
                return Ok(None);
            }
            self.state = State::Open;
            return Ok(Some(Event::Opened { from, features: None }));
        }
        self.write_header(from.as_ref().or(self.names.peer.first()).cloned().as_ref());
        self.state = State::Open;
        let features = std::mem::take(&mut self.features);
        if self.modern {
            self.out.extend_from_slice(b"<stream:features>");
            for feature in &features {
                self.write(feature);
            }
            self.out.extend_from_slice(b"</stream:features>");
        } else if !features.is_empty() {
            // It cannot take what we offer.
            self.out.extend_from_slice(b"<stream:features/>");
        }
        Ok(Some(Event::Opened { from, features: None }))
    }

    fn write_header(&mut self, to: Option<&BareJid>) {
        let mut header = format!(
            "<?xml version='1.0'?><stream:stream xmlns='{}' xmlns:stream='{}' version='1.0'",
            ns::CLIENT,
            ns::STREAM
        );
        let id = (self.role == Role::Responder).then_some(self.id.as_str());
        let from = self.names.own.first().map(|jid| jid.as_str());
        for (name, value) in [("id", id), ("from", from), ("to", to.map(|jid| jid.as_str()))] {
            if let Some(value) = value {
                header.push_str(&format!(" {name}='{}'", escaped(value)));
            }
        }
        header.push('>');
        self.out.extend_from_slice(header.as_bytes());
    }

    fn write(&mut self, element: &Element) {
        let start = self.out.len();
        let mut element = element.clone();
        replace_not_carried(&mut element);
        if let Err(error) = element.write_to(&mut self.out) {
            tracing::debug!(%error, "an element was not sent");
            self.out.truncate(start);
        }
    }
}
