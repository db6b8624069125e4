//! Checked views of stanzas, and the answers to them.

use std::fmt;

use jid::Jid;
use minidom::Element;

use super::{
    jid::{canonical, learn_spelling},
    ns, xml,
};
use crate::{names, text::sentence};

/// The three kinds of stanza (RFC 6120, 8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `<iq/>`.
    Iq,
    /// `<message/>`.
    Message,
    /// `<presence/>`.
    Presence,
}

names!(Kind, "iq, message or presence", Iq = "iq", Message = "message", Presence = "presence");

/// The `type` attribute of a stanza, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StanzaType {
    /// There is no such attribute, or it is empty: a presence is *available*.
    Absent,
    /// A request for information.
    Get,
    /// A request for a change.
    Set,
    /// The answer to a request.
    Result,
    /// A stanza that could not be handled comes back.
    Error,
    /// A resource has gone.
    Unavailable,
    /// A user asks for presences.
    Subscribe,
    /// A user wants no more presences.
    Unsubscribe,
    /// A server asks for a presence.
    Probe,
    /// Any other.
    Other,
}

impl StanzaType {
    /// Reads the `type` attribute of an element.
    pub fn of(element: &Element) -> Self {
        match element.attr("type").unwrap_or_default() {
            "" => Self::Absent,
            "get" => Self::Get,
            "set" => Self::Set,
            "result" => Self::Result,
            "error" => Self::Error,
            "unavailable" => Self::Unavailable,
            "subscribe" => Self::Subscribe,
            "unsubscribe" => Self::Unsubscribe,
            "probe" => Self::Probe,
            _ => Self::Other,
        }
    }

    /// Returns whether an IQ of this type asks for an answer.
    pub fn asks(self) -> bool {
        matches!(self, Self::Get | Self::Set)
    }
}

/// The type of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// `type='get'`.
    Get,
    /// `type='set'`.
    Set,
}

impl RequestKind {
    /// Returns the `type` attribute.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Set => "set",
        }
    }

    /// Returns a request of this kind.
    pub fn iq(self, from: &str, to: &str, id: &str, payload: Element) -> Element {
        let attributes = [("type", self.as_str()), ("from", from), ("to", to), ("id", id)];
        let mut iq = xml::element("iq", ns::CLIENT, &attributes);
        iq.append_child(payload);
        iq
    }
}

/// A stanza with its addresses read. The whole element is kept, so nothing unknown is lost.
#[derive(Clone, Debug)]
pub struct Stanza {
    /// Which kind it is.
    pub kind: Kind,
    /// The sender, stamped by the server.
    pub from: Jid,
    /// The addressee, at the component's domain.
    pub to: Jid,
    /// The `type` attribute.
    pub type_: StanzaType,
    /// The `id` attribute; empty if absent.
    pub id: String,
    /// The whole stanza, in [`ns::CLIENT`].
    pub element: Element,
}

/// Why an element is not a stanza that can be handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StanzaError {
    /// Not iq, message or presence.
    #[error("not an iq, message or presence")]
    Kind,
    /// `from` or `to` is missing or not a JID.
    #[error("from and to must be JIDs")]
    Address,
}

/// An element that is not a stanza that can be handled, with the reason.
///
/// Servers pass on addresses that this program does not accept: Prosody 0.12 allows characters that are newer than the
/// stringprep profiles. A request from such an address is answered all the same (RFC 6120, 8.2.3).
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Unreadable {
    /// What is wrong with it.
    pub reason: StanzaError,
    element: Element,
}

impl Unreadable {
    fn new(reason: StanzaError, element: Element) -> Box<Self> {
        Box::new(Self { reason, element })
    }

    /// Returns the answer to a request, from and to the addresses as they were written.
    ///
    /// `None` if the element does not ask for an answer or has no addresses.
    pub fn refusal(&self, refusal: &Refusal) -> Option<Element> {
        let asked = &self.element;
        if asked.name() != "iq" || !StanzaType::of(asked).asks() {
            return None;
        }
        let mut answer = Element::bare("iq", ns::CLIENT);
        for (name, value) in [
            ("type", "error"),
            ("from", asked.attr("to")?),
            ("to", asked.attr("from")?),
            ("id", asked.attr("id").unwrap_or_default()),
        ] {
            xml::set(&mut answer, name, value);
        }
        answer.append_child(refusal.to_element());
        Some(answer)
    }

    /// Returns the answer to a request with an unreadable address.
    pub fn address_refusal(&self) -> Option<Element> {
        let text = "An address of this stanza cannot be read";
        self.refusal(&Refusal::new(ErrorType::Modify, Condition::JidMalformed, text))
    }
}

impl Stanza {
    /// Reads the addresses of an element.
    ///
    /// # Errors
    /// [`Unreadable`], with the element, if it is not a stanza or has no addresses.
    pub fn parse(element: Element) -> Result<Self, Box<Unreadable>> {
        let Ok(kind) = element.name().parse() else {
            return Err(Unreadable::new(StanzaError::Kind, element));
        };
        let address = |name| element.attr(name).and_then(|text| Jid::new(text).ok());
        let (Some(from), Some(to)) = (address("from"), address("to")) else {
            return Err(Unreadable::new(StanzaError::Address, element));
        };
        Ok(Self {
            kind,
            from,
            to,
            type_: StanzaType::of(&element),
            id: element.attr("id").unwrap_or_default().to_owned(),
            element,
        })
    }

    /// Returns the stanza with its sender's address in canonical form; answers go to the address as it was stamped.
    ///
    /// # Errors
    /// [`Unreadable`], with the element.
    pub fn parse_canonical(element: Element) -> Result<Self, Box<Unreadable>> {
        let mut stanza = Self::parse(element)?;
        let stamped = stanza.stamped();
        let Some(from) = canonical(stamped) else {
            return Err(Unreadable::new(StanzaError::Address, stanza.element));
        };
        learn_spelling(stamped, &from);
        stanza.from = from;
        Ok(stanza)
    }

    /// Returns the sender's address as the server has stamped it.
    fn stamped(&self) -> &str {
        self.element.attr("from").unwrap_or_else(|| self.from.as_str())
    }

    /// Returns whether it is an IQ that asks for an answer.
    pub fn is_request(&self) -> bool {
        self.kind == Kind::Iq && self.type_.asks()
    }

    /// Returns the first child element other than `<error/>`: an IQ's payload.
    pub fn payload(&self) -> Option<&Element> {
        self.element.children().find(|child| !child.is("error", ns::CLIENT))
    }

    /// Returns about how many bytes of memory it takes.
    pub fn weight(&self) -> usize {
        weight(&self.element)
    }

    /// Returns the `type='result'` answer, with the given payload.
    pub fn result(&self, payload: Option<Element>) -> Element {
        let mut builder = Element::builder("iq", ns::CLIENT)
            .attr(rxml::xml_ncname!("type").into(), "result")
            .attr(rxml::xml_ncname!("from").into(), self.to.as_str())
            .attr(rxml::xml_ncname!("to").into(), self.stamped())
            .attr(rxml::xml_ncname!("id").into(), self.id.as_str());
        if let Some(payload) = payload {
            builder = builder.append(payload);
        }
        builder.build()
    }

    /// Returns the `type='error'` answer.
    pub fn refusal(&self, refusal: &Refusal) -> Element {
        self.error(refusal.to_element())
    }

    /// Returns the same answer with the `<error/>` of another party.
    pub fn error(&self, error: Element) -> Element {
        Element::builder(self.kind.as_str(), ns::CLIENT)
            .attr(rxml::xml_ncname!("type").into(), "error")
            .attr(rxml::xml_ncname!("from").into(), self.to.as_str())
            .attr(rxml::xml_ncname!("to").into(), self.stamped())
            .attr(rxml::xml_ncname!("id").into(), self.id.as_str())
            .append(error)
            .build()
    }
}

/// The memory of an element besides its text, and of an attribute besides its value.
const OVERHEAD: (usize, usize) = (256, 96);

/// Returns the memory of an element. Its depth was bounded when it was read.
fn weight(element: &Element) -> usize {
    let attributes: usize = element.attrs().iter().map(|(_, value)| OVERHEAD.1 + value.len()).sum();
    let texts: usize = element.texts().map(str::len).sum();
    OVERHEAD.0 + attributes + texts + element.children().map(weight).sum::<usize>()
}

/// Returns the answer to a stanza that was too large to be read; `None` if it must not be answered.
pub fn refuse_oversized(head: Element) -> Option<Element> {
    let text = "The stanza is nested too deeply or too long";
    let refusal = Refusal::new(ErrorType::Modify, OVERSIZED, text);
    match Stanza::parse(head) {
        Ok(stanza) => stanza.is_request().then(|| stanza.refusal(&refusal)),
        Err(unreadable) => unreadable.refusal(&refusal),
    }
}

/// The condition of the answer to a stanza that was too large to be read.
pub const OVERSIZED: Condition = Condition::NotAcceptable;

/// Defines an enum of words on the wire, each written once.
macro_rules! words {
    ($(#[$about:meta])* $type:ident, $expected:literal, $($variant:ident = $word:literal),+) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $type {
            $(#[doc = concat!("`", $word, "`.")] $variant),+
        }

        names!($type, $expected, $($variant = $word),+);
    };
}

words! {
    /// What the sender of a refused stanza may do (RFC 6120, 8.3.2).
    ErrorType,
    "auth, cancel, continue, modify or wait",
    Auth = "auth",
    Cancel = "cancel",
    Continue = "continue",
    Modify = "modify",
    Wait = "wait"
}

words! {
    /// A defined condition of a stanza error (RFC 6120, 8.3.3).
    Condition,
    "a condition of RFC 6120",
    BadRequest = "bad-request",
    Conflict = "conflict",
    FeatureNotImplemented = "feature-not-implemented",
    Forbidden = "forbidden",
    Gone = "gone",
    InternalServerError = "internal-server-error",
    ItemNotFound = "item-not-found",
    JidMalformed = "jid-malformed",
    NotAcceptable = "not-acceptable",
    NotAllowed = "not-allowed",
    NotAuthorized = "not-authorized",
    PolicyViolation = "policy-violation",
    RecipientUnavailable = "recipient-unavailable",
    Redirect = "redirect",
    RegistrationRequired = "registration-required",
    RemoteServerNotFound = "remote-server-not-found",
    RemoteServerTimeout = "remote-server-timeout",
    ResourceConstraint = "resource-constraint",
    ServiceUnavailable = "service-unavailable",
    SubscriptionRequired = "subscription-required",
    UndefinedCondition = "undefined-condition",
    UnexpectedRequest = "unexpected-request"
}

impl Condition {
    /// Returns the condition of an `<error/>`; `None` if it has none that is defined.
    pub fn of(error: &Element) -> Option<Self> {
        let mut children = error.children().filter(|child| child.has_ns(ns::STANZA_ERRORS));
        children.find_map(|child| child.name().parse().ok())
    }
}

/// A stanza error: the answer to a request that is not allowed or not possible (RFC 6120, 8.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What its receiver may do.
    pub type_: ErrorType,
    /// The defined condition.
    pub condition: Condition,
    /// One sentence for a person; empty for none.
    pub text: String,
    /// An application-specific condition: local name and namespace.
    pub extra: Option<(&'static str, &'static str)>,
}

impl Refusal {
    /// Creates a refusal without an application condition.
    pub fn new(type_: ErrorType, condition: Condition, text: impl Into<String>) -> Self {
        Self { type_, condition, text: text.into(), extra: None }
    }

    /// Creates the error for a known payload with bad content; says what was expected.
    pub fn bad_request(expected: impl Into<String>) -> Self {
        Self::new(ErrorType::Modify, Condition::BadRequest, expected)
    }

    /// Creates the error for a thing that does not exist (for this requester).
    pub fn item_not_found(text: impl Into<String>) -> Self {
        Self::new(ErrorType::Cancel, Condition::ItemNotFound, text)
    }

    /// Creates the error for a Jingle session that does not exist (XEP-0166, 10).
    pub fn unknown_session(text: impl Into<String>) -> Self {
        Self::item_not_found(text).with_extra("unknown-session", ns::JINGLE_ERRORS)
    }

    /// Creates the error for a request that is not supported here.
    pub fn service_unavailable() -> Self {
        Self::new(ErrorType::Cancel, Condition::ServiceUnavailable, "")
    }

    /// Creates the error for a limit that is reached.
    pub fn resource_constraint(text: impl Into<String>) -> Self {
        Self::new(ErrorType::Wait, Condition::ResourceConstraint, text)
    }

    /// Creates the error for a fault of our own; it reveals nothing else.
    pub fn internal() -> Self {
        Self::new(ErrorType::Wait, Condition::InternalServerError, "")
    }

    /// Adds an application-specific condition.
    pub fn with_extra(mut self, name: &'static str, namespace: &'static str) -> Self {
        self.extra = Some((name, namespace));
        self
    }

    /// Returns the `<error/>` element.
    pub fn to_element(&self) -> Element {
        let mut error = Element::builder("error", ns::CLIENT)
            .attr(rxml::xml_ncname!("type").into(), self.type_.as_str())
            .append(Element::builder(self.condition.as_str(), ns::STANZA_ERRORS).build());
        if !self.text.is_empty() {
            let mut text = Element::bare("text", ns::STANZA_ERRORS);
            let lang = rxml::xml_ncname!("lang").into();
            text.attrs_mut().insert(rxml::Namespace::XML, lang, "en".to_owned());
            text.append_text(&*sentence(&self.text));
            error = error.append(text);
        }
        if let Some((name, namespace)) = self.extra {
            error = error.append(Element::builder(name, namespace).build());
        }
        error.build()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}) {}", self.condition, self.type_, self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An address with a character that is newer than the stringprep profiles.
    const YOUNG: &str = "\u{1f9e6}@a.example";

    fn iq(type_: &str, attributes: &str) -> Element {
        format!("<iq xmlns='jabber:client' type='{type_}' id='7' {attributes}><p xmlns='u'/></iq>")
            .parse()
            .unwrap()
    }

    #[test]
    fn a_client_on_tokio_xmpp_reads_our_answers() {
        use tokio_xmpp::{Stanza as Theirs, parsers::iq::Iq};
        let request = Stanza::parse(iq("get", "from='a@a.example/r' to='b.example'")).unwrap();
        let refusal =
            Refusal::new(ErrorType::Cancel, Condition::ItemNotFound, "There is no such key");
        assert!(matches!(
            Theirs::try_from(request.result(None)).unwrap(),
            Theirs::Iq(Iq::Result { id, payload: None, .. }) if id == "7"
        ));
        let Theirs::Iq(Iq::Error { error, to, .. }) =
            Theirs::try_from(request.refusal(&refusal)).unwrap()
        else {
            panic!("not an error");
        };
        assert_eq!(error.texts.values().next().map(String::as_str), Some("There is no such key"));
        assert_eq!(to.unwrap().to_string(), "a@a.example/r");
    }

    #[test]
    fn a_request_of_an_unreadable_address_is_answered_at_any_size() {
        let from_to = format!("from='{YOUNG}' to='b.example'");
        let unreadable = Stanza::parse_canonical(iq("get", &from_to)).unwrap_err();
        assert_eq!(unreadable.reason, StanzaError::Address);
        let answers = [
            (unreadable.address_refusal(), "jid-malformed"),
            (refuse_oversized(iq("set", &from_to)), "not-acceptable"),
        ];
        for (answer, condition) in answers {
            let answer = answer.expect(condition);
            assert_eq!(answer.attr("to"), Some(YOUNG));
            assert_eq!(answer.attr("from"), Some("b.example"));
            assert_eq!(answer.attr("id"), Some("7"));
            let error = answer.get_child("error", ns::CLIENT).unwrap();
            assert!(error.has_child(condition, ns::STANZA_ERRORS), "{answer:?}");
        }
    }

    #[test]
    fn what_asks_for_nothing_or_names_nobody_is_not_answered() {
        for (type_, attributes) in [
            ("result", format!("from='{YOUNG}' to='b.example'")),
            ("error", format!("from='{YOUNG}' to='b.example'")),
            ("get", "to='b.example'".to_owned()),
            ("get", "from='a@a.example'".to_owned()),
        ] {
            let unreadable = Stanza::parse_canonical(iq(type_, &attributes)).unwrap_err();
            assert_eq!(unreadable.address_refusal(), None, "{type_} {attributes}");
            assert_eq!(refuse_oversized(iq(type_, &attributes)), None, "{type_} {attributes}");
        }
    }
}
