//! The table of all refusals, as users' clients get them.

use std::{collections::BTreeSet, fmt::Debug};

use fingerpost_carry::shares::Full;

use jid::BareJid;

use super::*;

/// An application condition: its name and namespace.
type Extra = Option<(&'static str, &'static str)>;

/// Returns the names of the values of an enum, as its source has them.
fn names(source: &str, name: &str) -> BTreeSet<String> {
    let (_, values) = source.split_once(&format!("enum {name} {{\n")).expect(name);
    let (values, _) = values.split_once("\n}").expect(name);
    values.lines().filter_map(|line| line.strip_prefix("    ")).filter_map(first_word).collect()
}

/// Returns the name that a text begins with.
fn first_word(text: &str) -> Option<String> {
    let word = text.split(|c: char| !c.is_alphanumeric()).next()?;
    word.starts_with(char::is_uppercase).then(|| word.to_owned())
}

/// Checks the rows of an enum, of which each value must have at least one.
fn check<R: Debug + Into<Refusal>>(
    source: &str,
    name: &str,
    rows: impl IntoIterator<Item = (R, &'static str, &'static str, Extra)>,
) {
    let mut seen = BTreeSet::new();
    for (reason, said, text, extra) in rows {
        let shown = format!("{reason:?}");
        seen.extend(first_word(&shown));
        let refusal: Refusal = reason.into();
        assert_eq!(format!("{} {}", refusal.type_, refusal.condition), said, "{shown}");
        assert_eq!((&*refusal.text, refusal.extra), (text, extra), "{shown}");
    }
    assert_eq!(seen, names(source, name), "{name}: a value has no row");
}

fn hint(name: &'static str) -> Extra {
    Some((name, ns::HINTS))
}

fn jingle(name: &'static str) -> Extra {
    Some((name, ns::JINGLE_ERRORS))
}

fn command(name: &'static str) -> Extra {
    Some((name, ns::COMMANDS))
}

/// A refusal that came from the rules of a protocol.
fn wire() -> Refusal {
    Refusal::bad_request("x must be y")
}

fn user() -> BareJid {
    BareJid::new("romeo@montague.lit").unwrap()
}

#[test]
fn sessions_and_proposals_say_why_they_refuse() {
    use SessionRefusal::*;
    check(
        include_str!("../../sessions/refusal.rs"),
        "SessionRefusal",
        [
            (Draining, "wait resource-constraint", "The service takes no new sessions now", None),
            (
                TooManySessions(Full::User),
                "wait resource-constraint",
                "Too many sessions: the user has its share",
                None,
            ),
            (TooManyProposals, "wait resource-constraint", "Too many proposals are open", None),
            (
                TooManyRequests,
                "wait resource-constraint",
                "Too many requests for this session at once",
                None,
            ),
            (NoJingle, "modify bad-request", "A jingle element was expected", None),
            (NoSid, "modify bad-request", "The sid of the session is missing", None),
            (
                LongSid(1024),
                "modify bad-request",
                "The sid of a session may be 1024 bytes long at most",
                None,
            ),
            (LongJid, "modify bad-request", "Your JID is too long to be proxied", None),
            (
                Crossed,
                "cancel conflict",
                "The other user has started the same at this moment",
                jingle("tie-break"),
            ),
            (Exists, "cancel conflict", "The session exists already", None),
            (NoContent, "modify bad-request", "A session-initiate must have a content", None),
            (
                UnnamedContent,
                "modify bad-request",
                "A content must have a name, and as creator initiator or responder",
                None,
            ),
            (
                Unsecured,
                "modify not-acceptable",
                "Only sessions secured by TLS are brokered: offer urn:xmpp:jingle:apps:tls or a security element",
                jingle("security-required"),
            ),
            (
                NoTransport,
                "cancel feature-not-implemented",
                "The transport must be SOCKS5 or in-band bytestreams",
                jingle("unsupported-transports"),
            ),
            (
                OtherContent,
                "modify bad-request",
                "A session-accept must have the content offered",
                None,
            ),
            (UnknownAction, "modify bad-request", "The action must be one of XEP-0166", None),
            (
                OutOfOrder,
                "wait unexpected-request",
                "The session is not in that state",
                jingle("out-of-order"),
            ),
            (
                NotTold,
                "wait unexpected-request",
                "The other user does not know of the session yet",
                jingle("out-of-order"),
            ),
            (
                NoOtherTransport,
                "wait unexpected-request",
                "No other transport has been offered",
                jingle("out-of-order"),
            ),
            (Replacing, "cancel conflict", "The transport is being replaced", jingle("tie-break")),
            (
                LongBlocks(4096),
                "modify resource-constraint",
                "The block-size may be 4096 at most",
                None,
            ),
            (AlreadyOpen, "cancel not-acceptable", "The bytestream is already open", None),
            (Over, "cancel item-not-found", "The session is over", jingle("unknown-session")),
            (WentAway, "wait recipient-unavailable", "The user went away", None),
            (
                Unacknowledged(user()),
                "wait remote-server-timeout",
                "romeo@montague.lit is not answering at that address",
                hint("silent"),
            ),
            (
                NoAnswer,
                "wait remote-server-timeout",
                "The other user did not answer",
                hint("silent"),
            ),
            (
                Unreachable,
                "wait recipient-unavailable",
                "The user is not reachable now",
                hint("away"),
            ),
            (
                Room,
                "cancel not-acceptable",
                "This is the address of a chat room, or of somebody in it, and sessions do not go through rooms: ask \
                 for the real address",
                hint("room"),
            ),
            (Failed, "wait internal-server-error", "", None),
            (OwnNoJingle, "modify bad-request", "Expected jingle", None),
            (OwnNoContent, "modify bad-request", "Expected a sid and a content", None),
            (
                OwnUnsecured,
                "modify not-acceptable",
                "Expected an offer of TLS with the print of an x509 certificate",
                jingle("security-required"),
            ),
            (OwnAction, "cancel feature-not-implemented", "This is a proof, no more", None),
            (NoProposal, "cancel service-unavailable", "", None),
            (
                ProposalId(256),
                "modify bad-request",
                "A proposal must have an id of at most 256 bytes",
                None,
            ),
            (ProposalFrom, "modify bad-request", "A proposal must come from a full JID", None),
            (ProposalExists, "cancel conflict", "There is a proposal with this id", None),
            (NoSuchProposal, "cancel item-not-found", "There is no such proposal", None),
            (Wire(wire()), "modify bad-request", "x must be y", None),
        ],
    );
}
