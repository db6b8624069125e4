//! One user's end of a session.

use fingerpost_wire::jingle::Frame;
use jid::Jid;

use super::side::Side;

/// The addresses of one leg: the user's, and ours towards it.
pub(crate) type Pair = (Jid, Jid);

/// One user's end of the session.
#[derive(Clone, Debug)]
pub(crate) struct SessionPeer {
    /// The user's full JID.
    pub(crate) user: Jid,
    /// The address under which the other user appears here.
    pub(crate) mask: Jid,
    /// The Jingle session id here.
    pub(crate) sid: String,
    /// The Jingle namespace spoken here.
    pub(crate) namespace: String,
}

impl SessionPeer {
    /// Returns the addresses and ids of a Jingle element on this leg, whose user is on this side of the session.
    pub(crate) fn frame(&self, side: Side) -> Frame<'_> {
        let Self { user, mask, sid, namespace } = self;
        let (initiator, responder) = match side {
            Side::Initiator => (user, mask),
            Side::Responder => (mask, user),
        };
        Frame { namespace, sid, initiator, responder }
    }

    /// Returns the addresses of this leg.
    pub(crate) fn pair(&self) -> Pair {
        (self.user.clone(), self.mask.clone())
    }
}
