//! The application of a session.

use fingerpost_secure::stream::Protocol;
use fingerpost_wire::ns;
use minidom::Element;

use super::{credential::OwnOffer, error::Error};

/// The application protocol (ALPN) of a raw stream between two pipes: chunks with a length, so that each direction can
/// end without a `close_notify`.
pub const CHUNKS: Protocol = b"fingerpost-pipe/1";

/// The application of a session: a raw TLS stream, or one with a `<description/>` of its own.
///
/// ```
/// use fingerpost_endpoint::Application;
/// use minidom::Element;
///
/// let raw = Application::tls();
/// assert!(raw.description().is_none());
///
/// let chess = Application::described(Element::bare("description", "urn:example:chess"));
/// assert!(chess.is("urn:example:chess"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Application {
    description: Option<Element>,
    senders: Option<&'static str>,
    protocol: Option<Protocol>,
}

impl Application {
    /// Creates a raw TLS stream, `urn:xmpp:jingle:apps:tls`.
    pub fn tls() -> Self {
        Self { description: None, senders: None, protocol: None }
    }

    /// Creates a raw TLS stream whose content is in [`CHUNKS`] if the peer's program supports them too.
    pub fn pipe() -> Self {
        Self { protocol: Some(CHUNKS), ..Self::tls() }
    }

    /// Creates an application with a description; TLS is offered beside it (`urn:xmpp:jingle:security:xtls:0`).
    pub fn described(description: Element) -> Self {
        Self { description: Some(description), senders: None, protocol: None }
    }

    /// Returns the same application, in which only the initiator sends (XEP-0166, `senders`).
    #[must_use]
    pub fn from_initiator(self) -> Self {
        Self { senders: Some("initiator"), ..self }
    }

    /// Returns the same application, in which only the responder sends (XEP-0166, `senders`).
    #[must_use]
    pub fn from_responder(self) -> Self {
        Self { senders: Some("responder"), ..self }
    }

    /// Returns the description; `None` for a raw stream.
    pub fn description(&self) -> Option<&Element> {
        self.description.as_ref()
    }

    /// Returns whether the description is in this namespace.
    pub fn is(&self, namespace: &str) -> bool {
        self.description.as_ref().is_some_and(|description| description.has_ns(namespace))
    }

    /// Returns the namespace of its description.
    pub(super) fn namespace(&self) -> String {
        self.description.as_ref().map_or_else(|| ns::APPS_TLS.to_owned(), Element::ns)
    }

    pub(super) fn senders(&self) -> Option<&'static str> {
        self.senders
    }

    pub(super) fn protocol(&self) -> Option<Protocol> {
        self.protocol
    }

    /// Returns the application in a peer's `<content/>`.
    pub(super) fn read(content: &Element) -> Self {
        let description = content
            .children()
            .find(|child| child.name() == "description" && !child.has_ns(ns::APPS_TLS))
            .cloned();
        Self { description, senders: None, protocol: None }
    }

    /// Returns its elements in a session-initiate, with our method in the fitting dialect.
    pub(super) fn to_elements(&self, offered: &OwnOffer) -> Vec<Element> {
        match &self.description {
            None => vec![offered.description()],
            Some(description) => vec![description.clone(), offered.security()],
        }
    }
}

/// Returns the elements that answer `content`, in the dialect of its offer.
pub(super) fn answer(
    content: &Element,
    description: Option<&Element>,
    offered: &OwnOffer,
) -> Vec<Element> {
    let mut children = Vec::new();
    for child in content.children() {
        if child.is("description", ns::APPS_TLS) {
            children.push(offered.description());
        } else if child.name() == "description" {
            children.push(description.unwrap_or(child).clone());
        } else if child.is("security", ns::XTLS) {
            children.push(offered.security());
        }
    }
    children
}

/// Returns the first content of a `<jingle/>`.
pub(super) fn first_content(jingle: &Element) -> Result<Element, Error> {
    let namespace = jingle.ns();
    jingle
        .children()
        .find(|child| child.is("content", namespace.as_str()))
        .cloned()
        .ok_or_else(|| Error::failed("the peer's session has no content"))
}

/// Returns the transport of a content, of any kind.
pub(super) fn transport_of(content: &Element) -> Option<&Element> {
    content.children().find(|child| child.name() == "transport")
}
