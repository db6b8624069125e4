//! The table of all refusals, as users' clients get them.

use std::{collections::BTreeSet, fmt::Debug};

use fingerpost_carry::shares::Full;
use fingerpost_wire::key::State;

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

const FAILED: &str = "The service could not do this because of a fault of its own. Try again later";

/// A refusal that came from the rules of a protocol.
fn wire() -> Refusal {
    Refusal::bad_request("x must be y")
}

fn user() -> BareJid {
    BareJid::new("romeo@montague.lit").unwrap()
}

#[test]
fn the_router_says_why_a_stanza_goes_nowhere() {
    use FrontRefusal::*;
    let component = BareJid::new("xtls.montague.lit").unwrap();
    check(
        include_str!("../refusal.rs"),
        "FrontRefusal",
        [
            (
                IqType,
                "modify bad-request",
                "The type of an iq must be get, set, result or error",
                None,
            ),
            (
                Children,
                "modify bad-request",
                "An iq of type get or set must have exactly one child",
                None,
            ),
            (
                Forbidden,
                "auth forbidden",
                "You may not use this service, or not in this way. Ask its operator for access",
                None,
            ),
            (
                NotSupported,
                "cancel service-unavailable",
                "The service does not know this kind of request",
                None,
            ),
            (
                NotPassedOn,
                "cancel service-unavailable",
                "This address only passes on sessions between two users. Send other requests to the user's own address",
                None,
            ),
            (
                NotByStreamInitiation,
                "cancel service-unavailable",
                "Files cannot be sent to this address in this old way (stream initiation), which nothing encrypts. Send them \
                 by Jingle, encrypted from end to end with TLS, as the program xtls does",
                None,
            ),
            (
                NotByBytestreams,
                "cancel service-unavailable",
                "This address takes bytestreams only as part of a Jingle session. Start a session with the user first",
                None,
            ),
            (
                NoMessages(user()),
                "cancel service-unavailable",
                "Messages to this address are not delivered. Write to romeo@montague.lit",
                None,
            ),
            (
                ProposedToResource,
                "cancel service-unavailable",
                "A session is proposed to all programs of a user: send the proposal to the address without a resource",
                None,
            ),
            (NoSuchItems, "cancel item-not-found", "There are no such items", None),
            (TooFast, "wait resource-constraint", "Too many requests: wait a few seconds", None),
            (
                TooManyInWork,
                "wait resource-constraint",
                "Too many requests of yours are being worked on",
                None,
            ),
            (Busy, "wait resource-constraint", "The service is busy", None),
            (NoSuchUser, "cancel item-not-found", "There is no such user", None),
            (LongJid, "modify bad-request", "Your JID is too long to be proxied", None),
            (NoSuchBytestream, "cancel item-not-found", "There is no such bytestream", None),
            (ObservedSid, "modify bad-request", "Expected the sid of your bytestream", None),
            (
                NoSuchSession,
                "cancel item-not-found",
                "There is no such session",
                jingle("unknown-session"),
            ),
            (
                Settling,
                "wait resource-constraint",
                "The sessions of the last run are being read: try again",
                None,
            ),
            (NoSuchNode, "cancel item-not-found", "There is no such node", None),
            (
                Activation,
                "modify bad-request",
                "Expected a sid and an activate element with the target's JID",
                None,
            ),
            (NoAnswer, "wait remote-server-timeout", "The user did not answer", hint("silent")),
            (
                Silent(user(), "2026-11-24T02:00:00Z".to_owned()),
                "wait recipient-unavailable",
                "romeo@montague.lit is not answering since 2026-11-24T02:00:00Z",
                hint("silent"),
            ),
            (
                Undelivered { user: user(), component },
                "wait recipient-unavailable",
                "The server of romeo@montague.lit delivers nothing from xtls.montague.lit to it: the component may be \
                 blocked",
                hint("refused"),
            ),
            (Failed, "wait internal-server-error", FAILED, None),
            (
                Session(SessionRefusal::Exists),
                "cancel conflict",
                "The session exists already",
                None,
            ),
            (
                Relay(NotActivated::TooMany),
                "wait resource-constraint",
                "too many bytestreams",
                None,
            ),
        ],
    );
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
            (
                NoMemory(Full::All),
                "wait resource-constraint",
                "There is no memory for another in-band stream: all places are taken; try again later",
                None,
            ),
            (
                TooManyOffers,
                "wait resource-constraint",
                "Too many offers wait for this user; try again later",
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
                Unsecured(Protection::None),
                "modify not-acceptable",
                "This service brokers only sessions that TLS secures from end to end, and this offer has none: send to the user's \
                 own address, or use a client that offers urn:xmpp:jingle:apps:tls or a security element of \
                 urn:xmpp:jingle:security:xtls:0, such as xtls",
                jingle("security-required"),
            ),
            (
                Unsecured(Protection::Jet),
                "modify not-acceptable",
                "This service brokers only sessions that TLS secures from end to end, and JET (XEP-0391) secures this offer: send \
                 to the user's own address, or use a client that offers urn:xmpp:jingle:apps:tls or a security element of \
                 urn:xmpp:jingle:security:xtls:0, such as xtls",
                jingle("security-required"),
            ),
            (
                StreamInitiation(SiError::Id),
                "modify bad-request",
                "The id of the stream is missing, or too long",
                None,
            ),
            (StreamInitiation(SiError::File), "modify bad-request", "Expected a file", None),
            (
                StreamInitiation(SiError::Profile),
                "cancel bad-request",
                "Only files can be sent in this way",
                Some(("bad-profile", ns::SI)),
            ),
            (
                StreamInitiation(SiError::Methods),
                "cancel bad-request",
                "The stream must be SOCKS5 or in-band bytestreams",
                Some(("no-valid-streams", ns::SI)),
            ),
            (
                FileOffer(FileError::Size),
                "modify bad-request",
                "Expected the size of the file, in bytes",
                None,
            ),
            (
                FileOffer(FileError::Name),
                "modify bad-request",
                "Expected the name of the file",
                None,
            ),
            (
                NoFiles(user()),
                "cancel service-unavailable",
                "The client of romeo@montague.lit cannot receive this file: it announces neither stream initiation nor Jingle \
                 for files",
                None,
            ),
            (
                NotTheProxy(user()),
                "cancel item-not-found",
                "This service connects to nobody. Name romeo@montague.lit as file transfer proxy in the settings of your \
                 client, or send in-band",
                None,
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
            (Failed, "wait internal-server-error", FAILED, None),
            (OwnNoJingle, "modify bad-request", "Expected jingle", None),
            (OwnNoContent, "modify bad-request", "Expected a sid and a content", None),
            (
                OwnUnsecured,
                "modify not-acceptable",
                "Expected an offer of TLS with the print of an x509 certificate",
                jingle("security-required"),
            ),
            (OwnAction, "cancel feature-not-implemented", "This is a proof, no more", None),
            (
                NoProposal,
                "cancel service-unavailable",
                "This message is not a proposal of a session",
                None,
            ),
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

#[test]
fn the_registry_says_why_it_refuses() {
    use RegistryRefusal::*;
    check(
        include_str!("../../registry/refusal.rs"),
        "RegistryRefusal",
        [
            (OwnerJid, "modify bad-request", "jid must be a bare JID", None),
            (NoSignature, "modify bad-request", "Expected a signature element with base64", None),
            (
                SeveralSignatures(2),
                "modify bad-request",
                "Expected a signature element with base64, found 2",
                None,
            ),
            (
                Unconfirmed,
                "modify bad-request",
                "confirm must be your own bare JID: everything held about you will be deleted",
                None,
            ),
            (
                UnknownGet,
                "modify bad-request",
                "Expected keys, key, challenge, settings or export",
                None,
            ),
            (
                UnknownSet,
                "modify bad-request",
                "Expected add, revoke, prove, settings or erase",
                None,
            ),
            (AllowedJid, "modify bad-request", "allow must have a bare JID as jid", None),
            (
                TooManyAllowed,
                "modify bad-request",
                "at most 256 users may be allowed by name",
                None,
            ),
            (NoKeyId, "modify bad-request", "The id of a key is missing", None),
            (NoKey, "modify bad-request", "Expected a key with prints or material", None),
            (
                SeveralKeys(2),
                "modify bad-request",
                "Expected one key with prints or material, found 2",
                None,
            ),
            (
                SeveralMaterials(3),
                "modify bad-request",
                "Expected one material in a key, found 3",
                None,
            ),
            (MaterialCode, "modify bad-request", "material must be base64 of a certificate", None),
            (NotItems, "modify bad-request", "Expected items", None),
            (UnknownChange, "modify bad-request", "Expected append, disable or revoke", None),
            (NoName, "modify bad-request", "Expected a name", None),
            (NameInUse, "cancel conflict", "The name is in use", None),
            (CertificateCode, "modify bad-request", "Expected base64 of a certificate", None),
            (
                Known(State::Revoked),
                "cancel conflict",
                "This certificate is known already, and is revoked",
                None,
            ),
            (
                NoSuchCertificate,
                "cancel item-not-found",
                "You have not registered a certificate of this name",
                None,
            ),
            (NoPublicKey, "cancel item-not-found", "There is no public key", None),
            (Invalid("x is not y".to_owned()), "modify bad-request", "x is not y", None),
            (Rules(NotAllowed::NoSuchKey), "cancel item-not-found", "There is no such key", None),
            (
                Rules(NotAllowed::NotReplaceable),
                "modify bad-request",
                "replaces must be the id of one of your active keys",
                None,
            ),
            (
                Rules(NotAllowed::TooManyKeys(9)),
                "wait resource-constraint",
                "the limit of 9 active keys is reached; revoke or replace one",
                None,
            ),
            (
                Rules(NotAllowed::TooManyEver(36)),
                "wait resource-constraint",
                "the limit of 36 keys, those that are no longer active among them, is reached; only erasing everything \
                 held about you makes room",
                None,
            ),
            (
                Rules(NotAllowed::TooMuch(288)),
                "wait resource-constraint",
                "the limit of 288 KiB for all your certificates, those that are no longer active among them, is \
                 reached; only erasing everything held about you makes room",
                None,
            ),
            (
                Rules(NotAllowed::TooManyChanges),
                "wait resource-constraint",
                "you have made too many changes recently: wait some minutes; keys can be revoked at any time",
                None,
            ),
            (
                Rules(NotAllowed::NotActive),
                "modify bad-request",
                "the key is no longer active",
                None,
            ),
            (
                Rules(NotAllowed::TooManyNamed),
                "modify bad-request",
                "the addresses of the users who may see your keys are too long together",
                None,
            ),
            (
                Rules(NotAllowed::CarriesRevocation),
                "modify bad-request",
                "this OpenPGP certificate carries its own revocation, and is not one of your keys",
                None,
            ),
            (
                Proof(ProofError::NoChallenge),
                "cancel item-not-found",
                "there is no such challenge: ask for one, answer it within 5 minutes and only once",
                None,
            ),
            (
                Proof(ProofError::NoMaterial),
                "modify bad-request",
                "the registry has only prints of this key: add it with its certificate first",
                None,
            ),
            (Failed, "wait internal-server-error", FAILED, None),
            (Wire(wire()), "modify bad-request", "x must be y", None),
        ],
    );
}

#[test]
fn the_relay_says_why_it_does_not_activate() {
    use NotActivated::*;
    check(
        include_str!("../../relay/table.rs"),
        "NotActivated",
        [
            (Unknown, "cancel item-not-found", "no such bytestream of yours", None),
            (OneSide, "cancel not-allowed", "only one side is connected to this bytestream", None),
            (Active, "cancel not-allowed", "the bytestream is already active", None),
            (
                Draining,
                "wait resource-constraint",
                "the service takes no new bytestreams now",
                None,
            ),
            (TooManyOfUser, "wait resource-constraint", "too many bytestreams of yours", None),
            (TooMany, "wait resource-constraint", "too many bytestreams", None),
        ],
    );
}

#[test]
fn commands_say_why_they_do_not_go_on() {
    use CommandRefusal::*;
    check(
        include_str!("../../commands/refusal.rs"),
        "CommandRefusal",
        [
            (
                AdminsOnly,
                "auth forbidden",
                "Only administrators of the service may run this command",
                None,
            ),
            (NoSuchCommand, "cancel item-not-found", "There is no such command", None),
            (
                NoSuchSession,
                "modify bad-request",
                "There is no such session of this command",
                command("bad-sessionid"),
            ),
            (
                Expired,
                "cancel not-allowed",
                "The form was left for too long",
                command("session-expired"),
            ),
            (
                UnknownAction,
                "modify bad-request",
                "The action must be execute, next, prev, complete or cancel",
                command("malformed-action"),
            ),
            (
                NothingBefore,
                "modify bad-request",
                "There is nothing to go back to",
                command("bad-action"),
            ),
            (
                NothingToCancel,
                "modify bad-request",
                "There is nothing to cancel: expected the sessionid of an open command",
                command("bad-action"),
            ),
            (FirstPage, "modify bad-request", "This is the first page", command("bad-action")),
            (
                NotOnThisPage,
                "modify bad-request",
                "This page does not have that action",
                command("bad-action"),
            ),
            (
                TooMuchInput,
                "modify not-acceptable",
                "The form has more in it than a command may hold (64 KiB)",
                None,
            ),
            (Input("x is not y".to_owned()), "modify bad-request", "x is not y", None),
            (TooManyForms, "wait resource-constraint", "Too many forms are open", None),
            (Failed, "wait internal-server-error", FAILED, None),
            (Registry(RegistryRefusal::NameInUse), "cancel conflict", "The name is in use", None),
            (Wire(wire()), "modify bad-request", "x must be y", None),
        ],
    );
}

#[test]
fn a_follower_says_why_it_does_not_hand_over() {
    use ClusterRefusal::*;
    check(
        include_str!("../../cluster/refusal.rs"),
        "ClusterRefusal",
        [
            (Busy, "wait resource-constraint", "The service is busy", None),
            (
                NoLeader,
                "wait remote-server-timeout",
                "The service is being taken over: try again",
                None,
            ),
            (Unwritable, "modify not-acceptable", "The stanza cannot be passed on", None),
        ],
    );
}
