//! One user's end of a session.

use std::sync::Arc;

use fingerpost_wire::jingle::Frame;
use jid::Jid;

use super::side::Side;

/// The addresses of one leg: the user's, and ours towards it.
pub(crate) type Pair = (Jid, Jid);

/// One user's end of the session. Its addresses and its id are shared by all that need them.
#[derive(Clone, Debug)]
pub(crate) struct SessionPeer {
    /// The user's full JID, and the address under which the other user appears here.
    pub(crate) pair: Arc<Pair>,
    /// The Jingle session id here.
    pub(crate) sid: Arc<str>,
    /// The Jingle namespace spoken here.
    pub(crate) namespace: &'static str,
}

impl SessionPeer {
    /// Returns the user's full JID.
    pub(crate) fn user(&self) -> &Jid {
        &self.pair.0
    }

    /// Returns the address under which the other user appears here.
    pub(crate) fn mask(&self) -> &Jid {
        &self.pair.1
    }

    /// Returns the addresses and ids of a Jingle element on this leg, whose user is on this side of the session.
    pub(crate) fn frame(&self, side: Side) -> Frame<'_> {
        let Self { pair, sid, namespace } = self;
        let (user, mask) = &**pair;
        let (initiator, responder) = match side {
            Side::Initiator => (user, mask),
            Side::Responder => (mask, user),
        };
        Frame { namespace, sid, initiator, responder }
    }
}
