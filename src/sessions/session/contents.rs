//! The contents of a Jingle element, and which of them is brokered.

use fingerpost_wire::{
    dialect::Dialect,
    ns,
    offer::{self, Protection},
    print::{Method, Print},
    transport::Transport,
    word::Word,
};
use minidom::Element;

use super::direct;
use crate::sessions::{
    options::{BrokerOptions, PlainFiles},
    refusal::SessionRefusal,
    side::PerSide,
};

/// Returns the number and the transport of the content that is brokered: the first one that is secured, or is a file that may
/// pass without TLS, and has a supported transport.
///
/// # Errors
/// The answer to the initiator, if there is none.
pub(crate) fn choose(
    jingle: &Element,
    options: &BrokerOptions,
) -> Result<(usize, Transport), SessionRefusal> {
    let all: Vec<(&Element, Protection)> =
        contents(jingle).map(|content| (content, offer::protection(content))).collect();
    if all.is_empty() {
        return Err(SessionRefusal::NoContent);
    }
    for (content, _) in &all {
        let creator = content.attr("creator").unwrap_or_default();
        if !matches!(creator, "initiator" | "responder") || name(content).is_empty() {
            return Err(SessionRefusal::UnnamedContent);
        }
    }
    let is_tls = |protection: Protection| protection == Protection::Tls;
    // A content without TLS is brokered only if none has it: nothing shall lead a client away from TLS.
    let has_tls = all.iter().any(|(_, protection)| is_tls(*protection));
    let passes = |content: &Element, protection: Protection| {
        !options.require_tls || is_tls(protection) || (!has_tls && passes_without(content, options))
    };
    let mut passing = all
        .iter()
        .enumerate()
        .filter(|(_, (content, protection))| passes(content, *protection))
        .peekable();
    if passing.peek().is_none() {
        let mut protections = all.iter().map(|(_, protection)| *protection);
        let other = protections.find(|protection| *protection != Protection::None);
        return Err(SessionRefusal::Unsecured(other.unwrap_or(Protection::None)));
    }
    let supported = |(number, (content, _)): (usize, &(&Element, Protection))| {
        let transport = Transport::read(content)?;
        options.takes(&transport).then_some((number, transport))
    };
    passing.find_map(supported).ok_or(SessionRefusal::NoTransport)
}

/// Returns whether a content may be brokered although TLS is required and it has none: a file, if the operator says so.
fn passes_without(content: &Element, options: &BrokerOptions) -> bool {
    options.plain != PlainFiles::Deny && file(content).is_some()
}

/// Returns the application of a content, if that is a file.
fn file(content: &Element) -> Option<&'static str> {
    let of = |child: &Element| {
        ns::FILE_TRANSFERS.into_iter().find(|namespace| child.is("description", *namespace))
    };
    content.children().find_map(of)
}

/// Returns whether nothing encrypts a content of a session-initiate from end to end.
pub(crate) fn is_plain(jingle: &Element, number: usize) -> bool {
    let content = contents(jingle).nth(number);
    content.is_some_and(|content| lacks_encryption(offer::protection(content)))
}

/// Returns whether a content of a session-initiate says nothing at all of how it is protected.
pub(crate) fn is_unprotected(jingle: &Element, number: usize) -> bool {
    let content = contents(jingle).nth(number);
    content.is_some_and(|content| offer::protection(content) == Protection::None)
}

/// Returns whether nothing that the component knows encrypts the stream from end to end.
fn lacks_encryption(protection: Protection) -> bool {
    matches!(protection, Protection::None | Protection::Other)
}

/// Returns the application of a content if two users need it only once between them: a raw TLS stream, or an XML
/// stream. If two offers of it cross, one must give way (XEP-0166, 7.2.16); two files may cross.
pub(crate) fn channel(jingle: &Element, number: usize) -> Option<String> {
    application(jingle, number)
        .filter(|namespace| [ns::APPS_TLS, ns::XMLSTREAM].contains(&namespace.as_str()))
}

/// Returns the application of a content: the namespace of its description.
pub(crate) fn application(jingle: &Element, number: usize) -> Option<String> {
    let mut children = contents(jingle).nth(number)?.children();
    children.find(|child| child.name() == "description").map(Element::ns)
}

/// Returns the contents of a Jingle element.
pub(crate) fn contents(jingle: &Element) -> impl Iterator<Item = &Element> {
    let namespace = jingle.ns();
    jingle.children().filter(move |child| child.is("content", namespace.as_str()))
}

/// Returns the readable prints that a stanza offers, in its contents or beside them.
pub(super) fn offered_prints(jingle: &Element) -> Vec<Print> {
    readable(&offer::Offer::read(jingle))
}

/// Returns the readable prints of an offer.
pub(super) fn readable(offer: &offer::Offer) -> Vec<Print> {
    offer.prints.iter().filter_map(|(_, printed)| printed.print().cloned()).collect()
}

pub(super) fn name(content: &Element) -> &str {
    content.attr("name").unwrap_or_default()
}

/// The content of a session that is brokered.
#[derive(Debug)]
pub(super) struct BrokeredContent {
    pub(super) name: String,
    /// The initiator's other contents.
    pub(super) removed: Vec<Element>,
    /// Whether it is a raw TLS stream, without another application.
    pub(super) is_raw: bool,
    /// The TLS methods of the initiator that policy lets pass.
    pub(super) methods: Vec<Word<Method>>,
    /// The offer dialects that each side knows; empty: any.
    pub(super) dialects: PerSide<Vec<Dialect>>,
    /// Whether the initiator asks for direct paths.
    pub(super) asks_for_paths: bool,
    /// How it says that it is protected.
    pub(super) protection: Protection,
    /// Its application, if that is a file.
    pub(super) file: Option<&'static str>,
    /// Whether the responder's client receives nothing in-band, whatever it announces.
    pub(super) needs_socks5: bool,
}

impl BrokeredContent {
    /// Returns the content of this number in a session-initiate.
    pub(super) fn new(initiate: Option<&Element>, chosen: usize) -> Self {
        let mut removed: Vec<&Element> = initiate.into_iter().flat_map(contents).collect();
        let content = (chosen < removed.len()).then(|| removed.remove(chosen));
        Self {
            name: content.map(name).unwrap_or_default().to_owned(),
            removed: removed.into_iter().cloned().collect(),
            is_raw: content.is_some_and(|content| content.has_child("description", ns::APPS_TLS)),
            methods: Vec::new(),
            dialects: PerSide::default(),
            asks_for_paths: content.is_some_and(direct::is_asked_for),
            protection: content.map_or(Protection::Tls, offer::protection),
            file: content.and_then(file),
            needs_socks5: false,
        }
    }

    /// Returns whether nothing encrypts its stream from end to end.
    pub(super) fn is_plain(&self) -> bool {
        lacks_encryption(self.protection)
    }

    /// Returns the content of this name in a session that both users have accepted earlier. Later offers pass in any dialect.
    pub(super) fn accepted(name: String) -> Self {
        Self {
            name,
            removed: Vec::new(),
            is_raw: false,
            methods: Vec::new(),
            dialects: PerSide::default(),
            asks_for_paths: true,
            protection: Protection::Tls,
            file: None,
            needs_socks5: false,
        }
    }

    /// Returns the brokered content in one side's stanza: the one with its name, or, if the session was offered with
    /// one content, that one under any name.
    pub(super) fn find<'a>(&self, jingle: &'a Element) -> Option<&'a Element> {
        let named = contents(jingle).find(|content| name(content) == self.name);
        named.or_else(|| contents(jingle).next().filter(|_| self.removed.is_empty()))
    }
}
