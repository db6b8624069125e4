//! What users are told when something is refused: the one place that turns a reason into a stanza error.
//!
//! Each room has an enum of its reasons; here each reason gets its type, condition and text.

use fingerpost_wire::{
    file::FileError,
    ns,
    offer::Protection,
    si::SiError,
    stanza::{Condition, ErrorType, Refusal},
};
use jid::BareJid;

use crate::{
    cluster::refusal::ClusterRefusal,
    commands::refusal::CommandRefusal,
    registry::{model::NotAllowed, proof::ProofError, refusal::RegistryRefusal},
    relay::table::NotActivated,
    sessions::refusal::SessionRefusal,
};

/// Why a stanza is refused before it reaches a room, or while it waits for another user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FrontRefusal {
    /// An IQ has another type than the four.
    IqType,
    /// A request does not have exactly one child.
    Children,
    /// The user may not use the service, or not in this way.
    Forbidden,
    /// Nothing here takes such a stanza.
    NotSupported,
    /// A proxied address takes no such request.
    NotPassedOn,
    /// A proxied address takes no files by stream initiation (XEP-0096).
    NotByStreamInitiation,
    /// A proxied address takes no bytestreams that no session has announced.
    NotByBytestreams,
    /// A proxied address takes no messages: the user's own address does.
    NoMessages(BareJid),
    /// A session is proposed to a resource, and not to a user.
    ProposedToResource,
    /// There are no such items of publish-subscribe.
    NoSuchItems,
    /// The user sends requests too fast.
    TooFast,
    /// Too many requests of the user are in work.
    TooManyInWork,
    /// Too many requests are in work.
    Busy,
    /// The address stands for nobody.
    NoSuchUser,
    /// The sender's address does not fit into an address of the component.
    LongJid,
    /// There is no such bytestream.
    NoSuchBytestream,
    /// There is no such session.
    NoSuchSession,
    /// The session may be one of an earlier run, which are still being read.
    Settling,
    /// There is no such node.
    NoSuchNode,
    /// The activation of a bytestream lacks its id or the target.
    Activation,
    /// The question for an observed address lacks the id of the bytestream.
    ObservedSid,
    /// The other user has not answered.
    NoAnswer,
    /// The suitable resources of the user have been silent since then.
    Silent(BareJid, String),
    /// The user's server delivers nothing from the component.
    Undelivered { user: BareJid, component: BareJid },
    /// The time cannot be written.
    Failed,
    /// A session or a proposal is refused.
    Session(SessionRefusal),
    /// The activation of a bytestream is refused.
    Relay(NotActivated),
}

impl From<SessionRefusal> for FrontRefusal {
    fn from(refusal: SessionRefusal) -> Self {
        Self::Session(refusal)
    }
}

fn not_supported(text: impl Into<String>) -> Refusal {
    Refusal::new(ErrorType::Cancel, Condition::ServiceUnavailable, text)
}

/// The fault is here; the log has it.
fn failed() -> Refusal {
    let text = "The service could not do this because of a fault of its own. Try again later";
    Refusal::new(ErrorType::Wait, Condition::InternalServerError, text)
}

fn conflict(text: impl Into<String>) -> Refusal {
    Refusal::new(ErrorType::Cancel, Condition::Conflict, text)
}

/// The user, or its server, is not there now.
fn unavailable(text: impl Into<String>, mark: &'static str) -> Refusal {
    Refusal::new(ErrorType::Wait, Condition::RecipientUnavailable, text).with_extra(mark, ns::HINTS)
}

/// The user has been asked and is silent.
fn silent(text: impl Into<String>) -> Refusal {
    Refusal::new(ErrorType::Wait, Condition::RemoteServerTimeout, text)
        .with_extra("silent", ns::HINTS)
}

fn out_of_order(text: &str) -> Refusal {
    Refusal::new(ErrorType::Wait, Condition::UnexpectedRequest, text)
        .with_extra("out-of-order", ns::JINGLE_ERRORS)
}

/// Returns what to do instead of a session without TLS.
fn without_tls(protection: Protection) -> String {
    let seen = match protection {
        Protection::Jet => "JET (XEP-0391) secures this offer",
        Protection::Omemo => "OMEMO secures this offer",
        Protection::Other => "an unknown security element secures this offer",
        Protection::Tls | Protection::None => "this offer has none",
    };
    format!(
        "This service brokers only sessions that TLS secures from end to end, and {seen}: send to the user's own address, or use a \
         client that offers urn:xmpp:jingle:apps:tls or a security element of urn:xmpp:jingle:security:xtls:0, such as xtls"
    )
}

fn unsecured(text: &str) -> Refusal {
    Refusal::new(ErrorType::Modify, Condition::NotAcceptable, text)
        .with_extra("security-required", ns::JINGLE_ERRORS)
}

/// The offer by stream initiation is not possible (XEP-0095, 3.2).
fn bad_si(mark: &'static str, text: &str) -> Refusal {
    Refusal::new(ErrorType::Cancel, Condition::BadRequest, text).with_extra(mark, ns::SI)
}

fn bad_action(text: &str) -> Refusal {
    Refusal::bad_request(text).with_extra("bad-action", ns::COMMANDS)
}

impl From<FrontRefusal> for Refusal {
    fn from(refused: FrontRefusal) -> Self {
        use FrontRefusal::*;
        match refused {
            IqType => Self::bad_request("The type of an iq must be get, set, result or error"),
            Children => Self::bad_request("An iq of type get or set must have exactly one child"),
            Forbidden => Self::new(
                ErrorType::Auth,
                Condition::Forbidden,
                "You may not use this service, or not in this way. Ask its operator for access",
            ),
            NotSupported => not_supported("The service does not know this kind of request"),
            NotPassedOn => not_supported(
                "This address only passes on sessions between two users. Send other requests to the user's own address",
            ),
            NotByStreamInitiation => not_supported(
                "Files cannot be sent to this address in this old way (stream initiation), which nothing encrypts. Send them by \
                 Jingle, encrypted from end to end with TLS, as the program xtls does",
            ),
            NotByBytestreams => not_supported(
                "This address takes bytestreams only as part of a Jingle session. Start a session with the user first",
            ),
            NoMessages(user) => not_supported(format!(
                "Messages to this address are not delivered. Write to {user}"
            )),
            ProposedToResource => not_supported(
                "A session is proposed to all programs of a user: send the proposal to the address without a resource",
            ),
            NoSuchItems => Self::item_not_found("There are no such items"),
            TooFast => Self::resource_constraint("Too many requests: wait a few seconds"),
            TooManyInWork => {
                Self::resource_constraint("Too many requests of yours are being worked on")
            }
            Busy => Self::resource_constraint("The service is busy"),
            NoSuchUser => Self::item_not_found("There is no such user"),
            LongJid => Self::bad_request("Your JID is too long to be proxied"),
            NoSuchBytestream => Self::item_not_found("There is no such bytestream"),
            NoSuchSession => Self::unknown_session("There is no such session"),
            Settling => {
                Self::resource_constraint("The sessions of the last run are being read: try again")
            }
            NoSuchNode => Self::item_not_found("There is no such node"),
            Activation => {
                Self::bad_request("Expected a sid and an activate element with the target's JID")
            }
            ObservedSid => Self::bad_request("Expected the sid of your bytestream"),
            NoAnswer => silent("The user did not answer"),
            Silent(user, since) => {
                unavailable(format!("{user} is not answering since {since}"), "silent")
            }
            Undelivered { user, component } => unavailable(
                format!(
                    "The server of {user} delivers nothing from {component} to it: the component may be blocked"
                ),
                "refused",
            ),
            Failed => failed(),
            Session(refused) => refused.into(),
            Relay(refused) => refused.into(),
        }
    }
}

impl From<SessionRefusal> for Refusal {
    fn from(refused: SessionRefusal) -> Self {
        use SessionRefusal::*;
        match refused {
            Draining => Self::resource_constraint("The service takes no new sessions now"),
            NoMemory(full) => Self::resource_constraint(format!(
                "There is no memory for another in-band stream: {full}; try again later"
            )),
            TooManySessions(full) => Self::resource_constraint(format!("Too many sessions: {full}")),
            TooManyProposals => Self::resource_constraint("Too many proposals are open"),
            TooManyOffers => Self::resource_constraint(
                "Too many offers wait for this user; try again later",
            ),
            TooManyRequests => Self::resource_constraint("Too many requests for this session at once"),
            NoJingle => Self::bad_request("A jingle element was expected"),
            NoSid => Self::bad_request("The sid of the session is missing"),
            LongSid(most) => {
                Self::bad_request(format!("The sid of a session may be {most} bytes long at most"))
            }
            LongJid => FrontRefusal::LongJid.into(),
            Crossed => conflict("The other user has started the same at this moment")
                .with_extra("tie-break", ns::JINGLE_ERRORS),
            Exists => conflict("The session exists already"),
            NoContent => Self::bad_request("A session-initiate must have a content"),
            UnnamedContent => Self::bad_request(
                "A content must have a name, and as creator initiator or responder",
            ),
            Unsecured(protection) => unsecured(&without_tls(protection)),
            StreamInitiation(SiError::Id) => {
                Self::bad_request("The id of the stream is missing, or too long")
            }
            StreamInitiation(SiError::File) => Self::bad_request("Expected a file"),
            StreamInitiation(SiError::Profile) => {
                bad_si("bad-profile", "Only files can be sent in this way")
            }
            StreamInitiation(SiError::Methods) => {
                bad_si("no-valid-streams", "The stream must be SOCKS5 or in-band bytestreams")
            }
            FileOffer(FileError::Size) => {
                Self::bad_request("Expected the size of the file, in bytes")
            }
            FileOffer(FileError::Name | FileError::Request) => {
                Self::bad_request("Expected the name of the file")
            }
            NoFiles(user) => not_supported(format!(
                "The client of {user} cannot receive this file: it announces neither stream initiation nor Jingle for files"
            )),
            NotTheProxy(component) => Self::item_not_found(format!(
                "This service connects to nobody. Name {component} as file transfer proxy in the settings of your client, or \
                 send in-band"
            )),
            NoTransport => Self::new(
                ErrorType::Cancel,
                Condition::FeatureNotImplemented,
                "The transport must be SOCKS5 or in-band bytestreams",
            )
            .with_extra("unsupported-transports", ns::JINGLE_ERRORS),
            OtherContent => Self::bad_request("A session-accept must have the content offered"),
            UnknownAction => Self::bad_request("The action must be one of XEP-0166"),
            OutOfOrder => out_of_order("The session is not in that state"),
            NotTold => out_of_order("The other user does not know of the session yet"),
            NoOtherTransport => out_of_order("No other transport has been offered"),
            Replacing => conflict("The transport is being replaced")
                .with_extra("tie-break", ns::JINGLE_ERRORS),
            LongBlocks(most) => Self::new(
                ErrorType::Modify,
                Condition::ResourceConstraint,
                format!("The block-size may be {most} at most"),
            ),
            AlreadyOpen => Self::new(
                ErrorType::Cancel,
                Condition::NotAcceptable,
                "The bytestream is already open",
            ),
            Over => Self::unknown_session("The session is over"),
            WentAway => Self::new(
                ErrorType::Wait,
                Condition::RecipientUnavailable,
                "The user went away",
            ),
            Unacknowledged(user) => silent(format!("{user} is not answering at that address")),
            NoAnswer => silent("The other user did not answer"),
            Unreachable => unavailable("The user is not reachable now", "away"),
            Room => Self::new(
                ErrorType::Cancel,
                Condition::NotAcceptable,
                "This is the address of a chat room, or of somebody in it, and sessions do not go through rooms: ask for \
                 the real address",
            )
            .with_extra("room", ns::HINTS),
            Failed => failed(),
            OwnNoJingle => Self::bad_request("Expected jingle"),
            OwnNoContent => Self::bad_request("Expected a sid and a content"),
            OwnUnsecured => {
                unsecured("Expected an offer of TLS with the print of an x509 certificate")
            }
            OwnAction => Self::new(
                ErrorType::Cancel,
                Condition::FeatureNotImplemented,
                "This is a proof, no more",
            ),
            NoProposal => not_supported("This message is not a proposal of a session"),
            ProposalId(most) => {
                Self::bad_request(format!("A proposal must have an id of at most {most} bytes"))
            }
            ProposalFrom => Self::bad_request("A proposal must come from a full JID"),
            ProposalExists => conflict("There is a proposal with this id"),
            NoSuchProposal => Self::item_not_found("There is no such proposal"),
            Wire(refusal) => refusal,
        }
    }
}

impl From<RegistryRefusal> for Refusal {
    fn from(refused: RegistryRefusal) -> Self {
        use RegistryRefusal::*;
        match refused {
            OwnerJid => Self::bad_request("jid must be a bare JID"),
            NoSignature => Self::bad_request("Expected a signature element with base64"),
            SeveralSignatures(found) => Self::bad_request(format!(
                "Expected a signature element with base64, found {found}"
            )),
            Unconfirmed => Self::bad_request(
                "confirm must be your own bare JID: everything held about you will be deleted",
            ),
            UnknownGet => Self::bad_request("Expected keys, key, challenge, settings or export"),
            UnknownSet => Self::bad_request("Expected add, revoke, prove, settings or erase"),
            AllowedJid => Self::bad_request("allow must have a bare JID as jid"),
            TooManyAllowed => Self::bad_request("at most 256 users may be allowed by name"),
            NoKeyId => Self::bad_request("The id of a key is missing"),
            NoKey => Self::bad_request("Expected a key with prints or material"),
            SeveralKeys(found) => Self::bad_request(format!(
                "Expected one key with prints or material, found {found}"
            )),
            SeveralMaterials(found) => {
                Self::bad_request(format!("Expected one material in a key, found {found}"))
            }
            MaterialCode => Self::bad_request("material must be base64 of a certificate"),
            NotItems => Self::bad_request("Expected items"),
            UnknownChange => Self::bad_request("Expected append, disable or revoke"),
            NoName => Self::bad_request("Expected a name"),
            NameInUse => conflict("The name is in use"),
            CertificateCode => Self::bad_request("Expected base64 of a certificate"),
            Known(state) => conflict(format!("This certificate is known already, and is {state}")),
            NoSuchCertificate => {
                Self::item_not_found("You have not registered a certificate of this name")
            }
            NoPublicKey => Self::item_not_found("There is no public key"),
            Invalid(why) => Self::bad_request(why),
            Rules(NotAllowed::NoSuchKey) => Self::item_not_found("There is no such key"),
            Rules(NotAllowed::NotReplaceable) => {
                Self::bad_request("replaces must be the id of one of your active keys")
            }
            Rules(
                limit @ (NotAllowed::TooManyKeys(_)
                | NotAllowed::TooManyEver(_)
                | NotAllowed::TooMuch(_)
                | NotAllowed::TooManyChanges),
            ) => Self::resource_constraint(limit.to_string()),
            Rules(other) => Self::bad_request(other.to_string()),
            Proof(none @ ProofError::NoChallenge) => Self::item_not_found(none.to_string()),
            Proof(other) => Self::bad_request(other.to_string()),
            Failed => failed(),
            Wire(refusal) => refusal,
        }
    }
}

impl From<NotActivated> for Refusal {
    fn from(refused: NotActivated) -> Self {
        let not_allowed = |text| Self::new(ErrorType::Cancel, Condition::NotAllowed, text);
        match refused {
            NotActivated::Unknown => Self::item_not_found("no such bytestream of yours"),
            NotActivated::OneSide => not_allowed("only one side is connected to this bytestream"),
            NotActivated::Active => not_allowed("the bytestream is already active"),
            NotActivated::Draining => {
                Self::resource_constraint("the service takes no new bytestreams now")
            }
            NotActivated::TooManyOfUser => {
                Self::resource_constraint("too many bytestreams of yours")
            }
            NotActivated::TooMany => Self::resource_constraint("too many bytestreams"),
        }
    }
}

impl From<CommandRefusal> for Refusal {
    fn from(refused: CommandRefusal) -> Self {
        use CommandRefusal::*;
        match refused {
            AdminsOnly => Self::new(
                ErrorType::Auth,
                Condition::Forbidden,
                "Only administrators of the service may run this command",
            ),
            NoSuchCommand => Self::item_not_found("There is no such command"),
            NoSuchSession => Self::bad_request("There is no such session of this command")
                .with_extra("bad-sessionid", ns::COMMANDS),
            Expired => Self::new(
                ErrorType::Cancel,
                Condition::NotAllowed,
                "The form was left for too long",
            )
            .with_extra("session-expired", ns::COMMANDS),
            UnknownAction => {
                Self::bad_request("The action must be execute, next, prev, complete or cancel")
                    .with_extra("malformed-action", ns::COMMANDS)
            }
            NothingBefore => bad_action("There is nothing to go back to"),
            NothingToCancel => {
                bad_action("There is nothing to cancel: expected the sessionid of an open command")
            }
            FirstPage => bad_action("This is the first page"),
            NotOnThisPage => bad_action("This page does not have that action"),
            TooMuchInput => Self::new(
                ErrorType::Modify,
                Condition::NotAcceptable,
                "The form has more in it than a command may hold (64 KiB)",
            ),
            Input(why) => Self::bad_request(why),
            TooManyForms => Self::resource_constraint("Too many forms are open"),
            Failed => failed(),
            Registry(refused) => refused.into(),
            Wire(refusal) => refusal,
        }
    }
}

impl From<ClusterRefusal> for Refusal {
    fn from(refused: ClusterRefusal) -> Self {
        match refused {
            ClusterRefusal::Busy => FrontRefusal::Busy.into(),
            ClusterRefusal::NoLeader => Self::new(
                ErrorType::Wait,
                Condition::RemoteServerTimeout,
                "The service is being taken over: try again",
            ),
            ClusterRefusal::Unwritable => Self::new(
                ErrorType::Modify,
                Condition::NotAcceptable,
                "The stanza cannot be passed on",
            ),
        }
    }
}

#[cfg(test)]
mod tests;
