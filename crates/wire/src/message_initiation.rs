//! The messages of Jingle message initiation.
//!
//! Spec: XEP-0353 0.8.0, section 3 (Use Cases).

use std::time::Duration;

use jid::Jid;
use minidom::Element;

use crate::{
    jingle::{self, Reason},
    names, ns, xml,
};

/// How long a proposal may ring.
pub const RING: Duration = Duration::from_secs(180);
/// How long the initiator may take to start the session after somebody has said proceed.
pub const START: Duration = Duration::from_secs(60);
/// The longest id that is accepted, in bytes.
pub const LONGEST_ID: usize = 256;

/// What a message says about a proposed session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is defined in XEP-0353")]
pub enum Action {
    Propose,
    Ringing,
    Proceed,
    Reject,
    Retract,
    Finish,
}

names!(
    Action,
    "an action of XEP-0353",
    Propose = "propose",
    Ringing = "ringing",
    Proceed = "proceed",
    Reject = "reject",
    Retract = "retract",
    Finish = "finish"
);

/// Returns the element of a message about a proposed session; `None` if it has none or several.
pub fn read(message: &Element) -> Option<&Element> {
    let mut children = message.children().filter(|child| child.has_ns(ns::JINGLE_MESSAGE));
    children.next().filter(|_| children.next().is_none())
}

/// Returns an element about the proposal with this id.
pub fn said(action: Action, id: &str) -> Element {
    xml::element(action.as_str(), ns::JINGLE_MESSAGE, &[("id", id)])
}

/// Returns the same with a reason and its text.
pub fn said_with(action: Action, id: &str, condition: Reason, text: &str) -> Element {
    let mut element = said(action, id);
    element.append_child(jingle::reason(ns::JINGLE, condition, text));
    element
}

/// Returns the reason that an element of [`read`] gives, if it is one of XEP-0166, 7.4.
pub fn reason_of(said: &Element) -> Option<Reason> {
    let given = said.get_child("reason", ns::JINGLE)?;
    let named = |reason: &Reason| given.has_child(reason.as_str(), ns::JINGLE);
    Reason::ALL.iter().copied().find(named)
}

/// Returns a message with such an element. Servers store it, because all devices of both users follow the session.
pub fn message(from: &Jid, to: &Jid, id: &str, said: Element) -> Element {
    let attributes = [("type", "chat"), ("from", from.as_str()), ("to", to.as_str()), ("id", id)];
    let mut message = xml::element("message", ns::CLIENT, &attributes);
    message.append_child(said);
    message.append_child(Element::bare("store", ns::PROCESSING_HINTS));
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_a_chat_that_servers_store_and_says_one_thing() {
        let [from, to] = ["a@x/1", "b@x"].map(|jid| Jid::new(jid).unwrap());
        let retract = said_with(Action::Retract, "p", Reason::Cancel, "Retracted");
        let sent = message(&from, &to, "m", retract.clone());
        let attributes = ["type", "from", "to", "id"].map(|name| sent.attr(name).unwrap());
        assert_eq!(attributes, ["chat", "a@x/1", "b@x", "m"]);
        assert!(sent.has_child("store", ns::PROCESSING_HINTS));
        assert!(!sent.has_child("body", ns::CLIENT));
        let said = read(&sent).unwrap();
        assert_eq!((said, said.name().parse()), (&retract, Ok(Action::Retract)));
        assert_eq!(reason_of(said), Some(Reason::Cancel));
        let mut two = sent;
        two.append_child(super::said(Action::Proceed, "p"));
        assert_eq!(read(&two), None);
        assert_eq!(read(&Element::bare("message", ns::CLIENT)), None);
        assert_eq!(reason_of(&super::said(Action::Proceed, "p")), None);
    }
}
