//! Finds out why a user or the component could not be reached, from the error that came back.
//!
//! The same condition has different causes, depending on its sender: the component (it marks its own errors, and those
//! of the peer's side, in the namespace of its hints), our own XMPP server in its place, or the peer's server. The
//! table of docs/INTEROP.md shows what servers send.

use fingerpost_wire::{ns, stanza::Condition};
use jid::{BareJid, Jid};
use minidom::Element;

use super::error::{Error, condition};

/// The element that Prosody adds to the error for a component that is not connected.
const PROSODY_COMPONENT: &str = "xmpp:prosody.im/protocol/component";

/// The address of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct AskedPeer<'a> {
    /// The address.
    pub(super) address: &'a Jid,
    /// The user that it stands for; `None` for the component itself.
    pub(super) peer: Option<&'a BareJid>,
    /// The component, if we know of one.
    pub(super) component: Option<&'a BareJid>,
}

impl AskedPeer<'_> {
    /// Returns the component, if it had to pass the request on or answer it.
    fn component(&self) -> Option<&BareJid> {
        self.component.filter(|component| component.domain() == self.address.domain())
    }

    fn name(&self) -> String {
        self.peer.map_or_else(|| self.address.to_string(), ToString::to_string)
    }

    /// Returns the cause of an error.
    pub(super) fn error(&self, error: &Element) -> Error {
        let said = condition(error);
        let name = Condition::of(error);
        let peer = self.name();
        let component = self.component();
        let has = |mark: &str| error.has_child(mark, ns::HINTS);
        // An error marked as the peer side's is always the peer's. Without a component, marks are the peer's own.
        let is_peers = has("peer") || component.is_none();
        let marked = |mark: &str| !is_peers && has(mark);
        // Whatever the address, this error comes from our own server.
        if !has("peer") && is_our_own_block(error, name) {
            let whom =
                self.component().map_or_else(|| self.address.to_string(), BareJid::to_string);
            return Error::Blocked(format!("{whom} is blocked by your own account ({said})"));
        }
        if error.has_child("unsupported-transports", ns::JINGLE_ERRORS) {
            return Error::Transport(format!("{peer}: {said}"));
        }
        if marked("room") {
            return room(&peer);
        }
        if marked("silent") {
            return Error::Silent(
                text(error).unwrap_or_else(|| format!("{peer} is not answering")),
            );
        }
        if marked("refused") {
            let text = text(error).unwrap_or_else(|| format!("{peer} may block {}", self.address));
            return Error::BlockedByPeer(text);
        }
        if marked("away") {
            return Error::Unreachable(format!("{peer}: {said}"));
        }
        if !is_peers && let Some(component) = component {
            let absent = |why| Error::NoComponent(format!("{component} {why}: {said}"));
            return match name {
                Some(Condition::RemoteServerTimeout)
                    if error.has_child("not-connected", PROSODY_COMPONENT) =>
                {
                    absent("is not connected to its XMPP server")
                }
                Some(Condition::RemoteServerNotFound | Condition::RemoteServerTimeout) => {
                    absent("is not connected to its XMPP server, or there is no such component")
                }
                // The component answers no request of ours with this one: our server does not connect to its domain.
                Some(Condition::NotAllowed) => absent("cannot be reached from your XMPP server"),
                Some(Condition::ServiceUnavailable) if self.peer.is_some() => {
                    absent("does not set up sessions, or does not exist")
                }
                // The address, or its user, is unknown.
                _ if is_absent(name) => Error::Unreachable(format!("{peer}: {said}")),
                Some(Condition::InternalServerError) => {
                    Error::failed(format!("{component} failed: {said}"))
                }
                _ => Error::refused(format!("{component} refuses: {said}")),
            };
        }
        match name {
            Some(Condition::RemoteServerNotFound) => {
                let domain = self.peer.unwrap_or(&self.address.to_bare()).domain().to_string();
                Error::Unreachable(format!("the XMPP server of {domain} was not found: {said}"))
            }
            Some(Condition::RemoteServerTimeout) => {
                let domain = self.peer.unwrap_or(&self.address.to_bare()).domain().to_string();
                Error::Unreachable(format!("the XMPP server of {domain} does not answer: {said}"))
            }
            _ => other(&peer, name, &said),
        }
    }

    /// Returns the cause if no answer came back.
    pub(super) fn silence(&self) -> Error {
        match self.component() {
            Some(component) => {
                Error::NoComponent(format!("{component} is connected, but does not answer"))
            }
            None => Error::Silent(format!("{} did not answer", self.name())),
        }
    }
}

fn other(peer: &str, name: Option<Condition>, said: &str) -> Error {
    let text = format!("{peer}: {said}");
    if is_absent(name) { Error::Unreachable(text) } else { Error::refused(text) }
}

/// Returns whether a condition says that the addressee does not exist.
pub(super) fn is_absent(name: Option<Condition>) -> bool {
    matches!(
        name,
        Some(
            Condition::RecipientUnavailable
                | Condition::ItemNotFound
                | Condition::ServiceUnavailable
                | Condition::RemoteServerNotFound
                | Condition::RemoteServerTimeout
                | Condition::Gone
        )
    )
}

/// Returns the error for the address of a chat room or of its occupant.
pub(super) fn room(address: &str) -> Error {
    Error::Room(format!(
        "{address} is the address of a chat room, or of somebody in it, and no session goes through a room"
    ))
}

/// Returns whether our own server refuses to send anything to an address that we have blocked (XEP-0191; ejabberd names
/// the privacy list in which it keeps blocked addresses).
fn is_our_own_block(error: &Element, name: Option<Condition>) -> bool {
    name == Some(Condition::NotAcceptable)
        && (error.has_child("blocked", ns::BLOCKING_ERRORS)
            || text(error).is_some_and(|text| text.contains("privacy list")))
}

fn text(error: &Element) -> Option<String> {
    let text = error.get_child("text", ns::STANZA_ERRORS)?.text();
    Some(text.chars().filter(|c| !c.is_control()).take(300).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(inside: &str) -> Element {
        format!("<error xmlns='jabber:client' type='cancel'>{inside}</error>").parse().unwrap()
    }

    fn stanza_error(name: &str, text: &str, more: &str) -> Element {
        let of = "xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'";
        error(&format!("<{name} {of}/><text {of}>{text}</text>{more}"))
    }

    /// What each server sends, and its cause.
    #[test]
    fn each_cause_is_told_from_the_others_by_what_the_servers_say() {
        let bob = BareJid::new("bob@example.test").unwrap();
        let component = BareJid::new("xtls.example.test").unwrap();
        let proxied = Jid::new("bob\\40example.test@xtls.example.test").unwrap();
        let full = Jid::new("bob@example.test/x").unwrap();
        let brokered =
            AskedPeer { address: &proxied, peer: Some(&bob), component: Some(&component) };
        let direct = AskedPeer { address: &full, ..brokered };
        let own = Jid::from(component.clone());
        let itself = AskedPeer { address: &own, peer: None, component: Some(&component) };
        let mark = |name: &str| format!("<{name} xmlns='urn:fingerpost:xtls:0'/>");
        let prosody = "<not-connected xmlns='xmpp:prosody.im/protocol/component'/>";
        let blocked = "<blocked xmlns='urn:xmpp:blocking:errors'/>";
        let enoname = "DNS lookup failed: enoname";
        let list = "Your active privacy list has denied the routing of this stanza.";
        let cases = [
            // The component is not connected.
            (brokered, "remote-server-timeout", "Component unavailable", prosody, "component"),
            (itself, "remote-server-timeout", "Component unavailable", prosody, "component"),
            (brokered, "remote-server-not-found", enoname, "", "component"),
            (itself, "remote-server-not-found", enoname, "", "component"),
            // We block it.
            (brokered, "not-acceptable", "You have blocked this JID", blocked, "blocked"),
            (itself, "not-acceptable", list, "", "blocked"),
            (direct, "not-acceptable", list, "", "blocked"),
            // The peer is absent, or sleeps, or blocks the component, or does not exist.
            (brokered, "recipient-unavailable", "gone", &mark("away"), "away"),
            (brokered, "recipient-unavailable", "not answering since", &mark("silent"), "silent"),
            (brokered, "remote-server-timeout", "not answering", &mark("silent"), "silent"),
            (brokered, "recipient-unavailable", "may be blocked", &mark("refused"), "by peer"),
            (brokered, "not-acceptable", "a room", &mark("room"), "room"),
            // An error from the peer's side is not the component's.
            (brokered, "remote-server-not-found", enoname, &mark("peer"), "away"),
            (brokered, "remote-server-timeout", "", &mark("peer"), "away"),
            (brokered, "service-unavailable", "", &mark("peer"), "away"),
            (brokered, "not-acceptable", "You are not in the room", &mark("peer"), "refused"),
            // It cannot blame anyone else.
            (brokered, "not-acceptable", list, &(mark("peer") + blocked), "refused"),
            (brokered, "not-acceptable", "", &(mark("room") + &mark("peer")), "refused"),
            (brokered, "remote-server-timeout", "", &(mark("silent") + &mark("peer")), "away"),
            (brokered, "forbidden", "", &(mark("refused") + &mark("peer")), "refused"),
            (brokered, "forbidden", "", &(mark("away") + &mark("peer")), "refused"),
            (brokered, "remote-server-timeout", "", &(mark("peer") + prosody), "away"),
            (direct, "forbidden", "", &mark("silent"), "refused"),
            (direct, "forbidden", "", &mark("room"), "refused"),
            (direct, "service-unavailable", "User session not found", "", "away"),
            (direct, "remote-server-not-found", enoname, "", "away"),
            // The component itself refuses.
            (brokered, "forbidden", "", "", "refused"),
            (brokered, "resource-constraint", "Too many sessions", "", "refused"),
            (brokered, "internal-server-error", "", "", "failed"),
            // Our server does not reach it.
            (brokered, "not-allowed", "Communication with remote domains", "", "component"),
            (itself, "not-allowed", "Communication with remote domains", "", "component"),
            (brokered, "not-allowed", "not here", &mark("peer"), "refused"),
        ];
        for (asked, name, text, more, expected) in cases {
            let found = match asked.error(&stanza_error(name, text, more)) {
                Error::NoComponent(_) => "component",
                Error::Blocked(_) => "blocked",
                Error::BlockedByPeer(_) => "by peer",
                Error::Silent(_) => "silent",
                Error::Unreachable(_) => "away",
                Error::Room(_) => "room",
                Error::Refused(_) => "refused",
                Error::Failed(_) => "failed",
                _ => "else",
            };
            assert_eq!(found, expected, "{asked:?} {name} {text} {more}");
        }
        assert!(matches!(brokered.silence(), Error::NoComponent(_)));
        assert!(matches!(direct.silence(), Error::Silent(_)));
    }

    #[test]
    fn a_sentence_names_who_is_to_blame() {
        let bob = BareJid::new("bob@example.test").unwrap();
        let component = BareJid::new("xtls.example.test").unwrap();
        let address = Jid::new("bob\\40example.test@xtls.example.test").unwrap();
        let asked = AskedPeer { address: &address, peer: Some(&bob), component: Some(&component) };
        let error = asked.error(&stanza_error("remote-server-not-found", "DNS", ""));
        let text = error.to_string();
        assert!(text.starts_with("xtls.example.test is not connected"), "{text}");
        assert!(!text.contains("bob"), "{text}");
        let error = asked.error(&stanza_error("forbidden", "Not one of its users", ""));
        let expected = "xtls.example.test refuses: forbidden (Not one of its users)";
        assert_eq!(error, Error::refused(expected));
    }
}
