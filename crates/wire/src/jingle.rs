//! Moves Jingle trees from one leg to the other: addresses, session ids and transports change, the rest is kept.

use jid::{BareJid, Jid};
use minidom::Element;

use crate::{names, ns, word::Word, xml};

/// An action of a `<jingle/>` (XEP-0166, 7.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is defined in XEP-0166")]
pub enum Action {
    ContentAccept,
    ContentAdd,
    ContentModify,
    ContentReject,
    ContentRemove,
    DescriptionInfo,
    SecurityInfo,
    SessionAccept,
    SessionInfo,
    SessionInitiate,
    SessionTerminate,
    TransportAccept,
    TransportInfo,
    TransportReject,
    TransportReplace,
}

names!(
    Action,
    "an action of XEP-0166",
    ContentAccept = "content-accept",
    ContentAdd = "content-add",
    ContentModify = "content-modify",
    ContentReject = "content-reject",
    ContentRemove = "content-remove",
    DescriptionInfo = "description-info",
    SecurityInfo = "security-info",
    SessionAccept = "session-accept",
    SessionInfo = "session-info",
    SessionInitiate = "session-initiate",
    SessionTerminate = "session-terminate",
    TransportAccept = "transport-accept",
    TransportInfo = "transport-info",
    TransportReject = "transport-reject",
    TransportReplace = "transport-replace"
);

/// Why a session ends (XEP-0166, 7.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is defined in XEP-0166")]
pub enum Reason {
    AlternativeSession,
    Busy,
    Cancel,
    ConnectivityError,
    Decline,
    Expired,
    FailedApplication,
    FailedTransport,
    GeneralError,
    Gone,
    IncompatibleParameters,
    MediaError,
    SecurityError,
    Success,
    Timeout,
    UnsupportedApplications,
    UnsupportedTransports,
}

names!(
    Reason,
    "a reason of XEP-0166",
    AlternativeSession = "alternative-session",
    Busy = "busy",
    Cancel = "cancel",
    ConnectivityError = "connectivity-error",
    Decline = "decline",
    Expired = "expired",
    FailedApplication = "failed-application",
    FailedTransport = "failed-transport",
    GeneralError = "general-error",
    Gone = "gone",
    IncompatibleParameters = "incompatible-parameters",
    MediaError = "media-error",
    SecurityError = "security-error",
    Success = "success",
    Timeout = "timeout",
    UnsupportedApplications = "unsupported-applications",
    UnsupportedTransports = "unsupported-transports"
);

/// Returns the namespace of a `<jingle/>`, which is one of the two.
pub fn namespace(jingle: &Element) -> &'static str {
    if jingle.has_ns(ns::JINGLE_0) { ns::JINGLE_0 } else { ns::JINGLE }
}

/// Returns the action of a `<jingle/>`.
pub fn action(jingle: &Element) -> Word<Action> {
    Word::new(jingle.attr("action").unwrap_or_default())
}

/// The addresses and ids on the leg that a Jingle element goes to.
#[derive(Clone, Debug)]
pub struct Frame<'a> {
    /// The Jingle namespace that the user on this leg speaks.
    pub namespace: &'a str,
    /// The session id on this leg.
    pub sid: &'a str,
    /// The initiator as seen on this leg.
    pub initiator: &'a Jid,
    /// The responder as seen on this leg.
    pub responder: &'a Jid,
}

/// Moves a `<jingle/>` to another leg. `content` maps each `<content/>` after the move.
pub fn jingle(
    original: &Element,
    frame: &Frame<'_>,
    mut content: impl FnMut(Element) -> Element,
) -> Element {
    let mut out = xml::head_in(original, frame.namespace);
    xml::set(&mut out, "sid", frame.sid);
    let action = action(original);
    if original.attr("initiator").is_some() || action == Action::SessionInitiate {
        xml::set(&mut out, "initiator", frame.initiator.as_str());
    }
    if original.attr("responder").is_some() || action == Action::SessionAccept {
        xml::set(&mut out, "responder", frame.responder.as_str());
    }
    let from = original.ns();
    for node in original.nodes() {
        match node.as_element() {
            Some(child) if is_hints(child) => {}
            Some(child) => {
                let moved = reframe(child, &from, frame.namespace);
                let is_content = moved.is("content", frame.namespace);
                out.append_child(if is_content { content(moved) } else { moved });
            }
            None => out.append_node(node.clone()),
        }
    }
    out
}

/// Returns whether an element claims to state what only the component knows: about keys, about a stream that stands
/// still or has no protection, or that the component itself ends a session. Such an element of a user is never genuine, wherever it stands.
fn is_hints(element: &Element) -> bool {
    element.has_ns(ns::HINTS)
        && matches!(element.name(), "component" | "hints" | "moving" | "unencrypted" | "waiting")
}

/// Copies a user's element: moves it from one namespace to another and drops hints.
pub fn reframe(element: &Element, from: &str, to: &str) -> Element {
    let namespace = element.ns();
    let mut copy = xml::head_in(element, if namespace == from { to } else { &namespace });
    for node in element.nodes() {
        match node.as_element() {
            Some(child) if is_hints(child) => {}
            Some(child) => {
                copy.append_child(reframe(child, from, to));
            }
            None => copy.append_node(node.clone()),
        }
    }
    copy
}

/// Returns a content for another leg, with the component's transport and hints. The original transport, and hints that
/// a user may have forged, are dropped.
pub fn content(original: &Element, transport: Option<Element>, hints: Option<Element>) -> Element {
    let mut out = xml::head_in(original, &original.ns());
    let mut hints = hints;
    let mut transport = transport;
    for node in original.nodes() {
        match node.as_element() {
            Some(child) if is_hints(child) => {}
            Some(child) if child.name() == "transport" => {
                if let Some(transport) = transport.take() {
                    out.append_child(transport);
                }
            }
            _ => out.append_node(node.clone()),
        }
    }
    if let Some(transport) = transport {
        out.append_child(transport);
    }
    if let Some(hints) = hints.take() {
        out.append_child(hints);
    }
    out
}

/// Returns a `<jingle/>` of the component's own.
pub fn own(action: Action, frame: &Frame<'_>) -> Element {
    xml::element("jingle", frame.namespace, &[("action", action.as_str()), ("sid", frame.sid)])
}

/// Returns a `<jingle/>` of the component's own with one content, which has this name and these children.
pub fn own_content(
    action: Action,
    frame: &Frame<'_>,
    name: &str,
    children: impl IntoIterator<Item = Element>,
) -> Element {
    let attributes = [("creator", "initiator"), ("name", name)];
    let mut content = xml::element("content", frame.namespace, &attributes);
    for child in children {
        content.append_child(child);
    }
    let mut jingle = own(action, frame);
    jingle.append_child(content);
    jingle
}

/// Returns a `session-terminate` with a reason, its text and an application condition.
pub fn terminate(frame: &Frame<'_>, condition: Reason, text: &str) -> Element {
    let mut jingle = own(Action::SessionTerminate, frame);
    jingle.append_child(reason(frame.namespace, condition, text));
    jingle
}

/// Returns a `session-terminate` of the component itself, marked so that a user does not blame the other one. `owner`
/// is the user whose key it refuses, if that is why.
pub fn end(frame: &Frame<'_>, condition: Reason, text: &str, owner: Option<&BareJid>) -> Element {
    let mut mark = Element::bare("component", ns::HINTS);
    if let Some(owner) = owner {
        xml::set(&mut mark, "owner", owner.as_str());
    }
    let mut reason = reason(frame.namespace, condition, text);
    reason.append_child(mark);
    let mut jingle = own(Action::SessionTerminate, frame);
    jingle.append_child(reason);
    jingle
}

/// Returns a reason with its text, if there is one, in this namespace of Jingle.
pub fn reason(namespace: &str, condition: Reason, text: &str) -> Element {
    let mut reason = Element::bare("reason", namespace);
    reason.append_child(Element::bare(condition.as_str(), namespace));
    if !text.is_empty() {
        let mut element = Element::bare("text", namespace);
        element.append_text(text);
        reason.append_child(element);
    }
    reason
}

/// Returns the `<reason/>` of a session-terminate, in whichever namespace of Jingle.
fn given_reason(jingle: &Element) -> Option<&Element> {
    jingle.children().find(|child| child.name() == "reason")
}

/// Returns the reason in a session-terminate, if it is one of XEP-0166, 7.4.
pub fn reason_of(jingle: &Element) -> Option<Reason> {
    let given = given_reason(jingle)?;
    let named = |reason: &Reason| given.children().any(|child| child.name() == reason.as_str());
    Reason::ALL.iter().copied().find(named)
}

/// Returns what a session-terminate says in words; empty if it says nothing.
pub fn reason_text(jingle: &Element) -> String {
    let text = given_reason(jingle)
        .and_then(|given| given.children().find(|child| child.name() == "text"));
    text.map(Element::text).unwrap_or_default()
}

/// Returns whether a session-terminate is the component's own, made by [`end`].
pub fn is_own_end(jingle: &Element) -> bool {
    given_reason(jingle).is_some_and(|given| given.has_child("component", ns::HINTS))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame<'a>(a: &'a Jid, b: &'a Jid) -> Frame<'a> {
        Frame { namespace: ns::JINGLE, sid: "new", initiator: a, responder: b }
    }

    #[test]
    fn unknown_children_and_attributes_survive_forwarding() {
        let original: Element = "<jingle xmlns='urn:xmpp:jingle:0' action='session-info' sid='old' q='1'>\
            <received xmlns='urn:x' name='n'>t<deep xmlns='urn:xmpp:jingle:0' z='2'/></received></jingle>"
            .parse()
            .unwrap();
        let (a, b) = (Jid::new("a@x/1").unwrap(), Jid::new("b@x/2").unwrap());
        let moved = jingle(&original, &frame(&a, &b), |content| content);
        assert_eq!((moved.attr("sid"), moved.attr("q")), (Some("new"), Some("1")));
        let child = moved.get_child("received", "urn:x").unwrap();
        assert_eq!((child.attr("name"), child.text().as_str()), (Some("n"), "t"));
        assert_eq!(child.get_child("deep", ns::JINGLE).unwrap().attr("z"), Some("2"));
    }

    #[test]
    fn forged_hints_do_not_pass() {
        let original: Element = "<content xmlns='urn:xmpp:jingle:1' name='c'>\
            <hints xmlns='urn:fingerpost:xtls:0' jid='evil@x'/><transport xmlns='urn:t'/></content>"
            .parse()
            .unwrap();
        let out = content(&original, Some(Element::bare("transport", "urn:ours")), None);
        assert_eq!(out.children().map(Element::ns).collect::<Vec<_>>(), ["urn:ours"]);
    }

    #[test]
    fn a_user_cannot_end_a_session_as_the_component() {
        let (a, b) = (Jid::new("a@x/1").unwrap(), Jid::new("b@x/2").unwrap());
        let owner = BareJid::new("b@x").unwrap();
        let ended = end(&frame(&a, &b), Reason::SecurityError, "a bad key", Some(&owner));
        assert!(is_own_end(&ended));
        assert_eq!(reason_of(&ended), Some(Reason::SecurityError));
        assert_eq!(reason_text(&ended), "a bad key");
        assert!(String::from(&ended).contains("<component xmlns="), "{}", String::from(&ended));
        let passed = jingle(&ended, &frame(&a, &b), |content| content);
        assert!(!is_own_end(&passed));
        let reason = passed.get_child("reason", ns::JINGLE).unwrap();
        let names: Vec<_> = reason.children().map(Element::name).collect();
        assert_eq!(names, ["security-error", "text"]);
    }

    #[test]
    fn hints_of_a_user_pass_nowhere_in_any_action() {
        let forged = "<hints xmlns='urn:fingerpost:xtls:0' jid='evil@x'/>";
        let (a, b) = (Jid::new("a@x/1").unwrap(), Jid::new("b@x/2").unwrap());
        for action in ["session-initiate", "session-accept", "security-info", "content-modify"] {
            let original: Element = format!(
                "<jingle xmlns='urn:xmpp:jingle:1' action='{action}' sid='s'>{forged}<content name='c'>{forged}\
                 <description xmlns='urn:x'>{forged}</description></content></jingle>"
            )
            .parse()
            .unwrap();
            let moved = jingle(&original, &frame(&a, &b), |content| content);
            assert!(!String::from(&moved).contains("hints"), "{}", String::from(&moved));
            assert!(String::from(&moved).contains("description"));
        }
    }

    fn tree() -> impl Strategy<Value = Element> {
        let leaf = ("[a-c]{1,3}", "urn:[xy]", "[a-z ]{0,5}").prop_map(|(name, namespace, text)| {
            let mut element = xml::element(&name, &namespace, &[("k", &text)]);
            element.append_text(text);
            element
        });
        leaf.prop_recursive(4, 20, 4, |inner| {
            ("[a-c]{1,3}", "urn:[xy]", prop::collection::vec(inner, 0..4)).prop_map(
                |(name, namespace, children)| {
                    let mut element = Element::bare(name, namespace);
                    for child in children {
                        element.append_child(child);
                    }
                    element
                },
            )
        })
    }

    proptest! {
        #[test]
        fn a_tree_that_is_not_jingle_is_moved_unharmed(child in tree()) {
            let (a, b) = (Jid::new("a@x/1").unwrap(), Jid::new("b@x/2").unwrap());
            let mut original = xml::element("jingle", ns::JINGLE, &[("action", "session-info"), ("sid", "s")]);
            original.append_child(child.clone());
            let moved = jingle(&original, &frame(&a, &b), |content| content);
            prop_assert_eq!(moved.children().next(), Some(&child));
        }
    }
}
