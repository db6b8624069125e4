//! Why a stanza of a session or of a proposal is refused. `src/front/refusal.rs` says it to the user.

use fingerpost_carry::shares::Full;
use fingerpost_wire::{file::FileError, offer::Protection, si::SiError, stanza::Refusal};
use jid::BareJid;

/// Why a stanza is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionRefusal {
    /// The service is being stopped.
    Draining,
    /// There is no place for another session.
    TooManySessions(Full),
    /// There is no memory for another in-band bytestream.
    NoMemory(Full),
    /// There is no place for another proposal.
    TooManyProposals,
    /// Too many offers that a person answers wait for the user.
    TooManyOffers,
    /// The session has too many requests in work.
    TooManyRequests,
    /// There is no jingle element.
    NoJingle,
    /// There is no session id.
    NoSid,
    /// The session id is longer than this.
    LongSid(usize),
    /// The sender's address does not fit into an address of the component.
    LongJid,
    /// The other user has started the same at this moment.
    Crossed,
    /// The session exists already.
    Exists,
    /// There is no content.
    NoContent,
    /// A content lacks its name or its creator.
    UnnamedContent,
    /// No content is secured by TLS; it may be by something else.
    Unsecured(Protection),
    /// The offer by stream initiation is not one of a file.
    StreamInitiation(SiError),
    /// The offer by stream initiation cannot be said in Jingle, which the other user's client needs.
    FileOffer(FileError),
    /// The user's client takes no files, in neither protocol.
    NoFiles(BareJid),
    /// The component, which is named, is not among the SOCKS5 addresses.
    NotTheProxy(BareJid),
    /// No transport is supported.
    NoTransport,
    /// The session-accept lacks the content that was offered.
    OtherContent,
    /// The action is not one of Jingle.
    UnknownAction,
    /// The session is in another state.
    OutOfOrder,
    /// The other user does not know of the session yet.
    NotTold,
    /// No other transport was offered that could be accepted or rejected.
    NoOtherTransport,
    /// The transport is being replaced by the component.
    Replacing,
    /// A block may have this many bytes at most.
    LongBlocks(u16),
    /// The bytestream is open already.
    AlreadyOpen,
    /// The session is over.
    Over,
    /// The other user went away before it answered.
    WentAway,
    /// The other user has not acknowledged the session.
    Unacknowledged(BareJid),
    /// The other user has not answered.
    NoAnswer,
    /// The user is absent, or hidden from the asker.
    Unreachable,
    /// The address is that of a room, or of its occupant (XEP-0045).
    Room,
    /// The keys of a user cannot be read. The log says why.
    Failed,
    /// A session with the component itself: there is no jingle element.
    OwnNoJingle,
    /// A session with the component itself: there is no session id, or no content.
    OwnNoContent,
    /// A session with the component itself: no key is offered for a proof.
    OwnUnsecured,
    /// A session with the component itself: it is no more than a proof.
    OwnAction,
    /// The message is not a proposal.
    NoProposal,
    /// The id of a proposal is missing, or longer than this.
    ProposalId(usize),
    /// The sender of a proposal is not a full JID.
    ProposalFrom,
    /// The sender has a proposal with this id.
    ProposalExists,
    /// There is no such proposal.
    NoSuchProposal,
    /// A part of the stanza breaks the rules of its protocol.
    Wire(Refusal),
}

impl From<Refusal> for SessionRefusal {
    fn from(refusal: Refusal) -> Self {
        Self::Wire(refusal)
    }
}
