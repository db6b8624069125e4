//! The state that all sessions share, and the place of one session in it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, atomic::AtomicBool},
    time::Duration,
};

use fingerpost_carry::{
    ibb_handle::IbbHandle,
    ibb_memory::IbbMemory,
    ibb_params::IbbParams,
    ibb_stream::IbbStream,
    iq::{Requests, random_id},
    outbound::Outbound,
    shares::{Full, Limits, Permits, Place},
};
use fingerpost_wire::{dst_addr::DstAddr, ibb_xml::IbbStanza, ns, xml};
use jid::BareJid;
use minidom::Element;
use tokio::{sync::oneshot, time::Instant};

use super::{
    directory::{Directory, Facts, SeenConnection, SessionEntry},
    journal::Journal,
    options::BrokerOptions,
    peer::SessionPeer,
    refusal::SessionRefusal,
    side::Side,
};
use crate::{
    registry::Registry,
    relay::table::{Registration, TransferTable},
};

/// How many times the free sessions one domain may have.
pub(super) const SLOPE: usize = 16;

/// How long the close of a stream may stay unanswered; a little longer than the stream itself allows.
pub(super) const CLOSING: Duration = Duration::from_secs(61);

/// The state that all sessions share.
#[derive(Debug)]
pub(super) struct BrokerState {
    pub(super) options: RwLock<Arc<BrokerOptions>>,
    pub(super) outbound: Outbound,
    pub(super) requests: Requests,
    pub(super) registry: Registry,
    pub(super) table: TransferTable,
    pub(super) journal: Journal,
    /// Whether sessions of an earlier run may exist that are not known here yet.
    pub(super) is_settling: AtomicBool,
    /// The memory of in-band bytestreams.
    pub(super) memory: Permits,
    pub(super) state: Mutex<Directory>,
}

impl BrokerState {
    pub(super) fn options(&self) -> Arc<BrokerOptions> {
        Arc::clone(&self.options.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Directory> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the responder's client knows of the session.
    pub(super) fn acknowledged(&self, peer: &SessionPeer) {
        self.lock().of_leg(peer).for_each(|entry| entry.crossable = None);
    }

    /// Gives a session a place among those of its initiator, and enters its legs in the tables.
    ///
    /// # Errors
    /// The refusal, if there is no place.
    pub(super) fn enter(
        self: &Arc<Self>,
        state: &mut Directory,
        facts: Arc<Facts>,
        legs: impl IntoIterator<Item = SessionEntry>,
    ) -> Result<SessionGuard, SessionRefusal> {
        if state.draining {
            return Err(SessionRefusal::Draining);
        }
        let (all, of_user) = self.options().sessions;
        let place = state
            .shares
            .take(&facts.user(Side::Initiator), 1, &Limits::new(all, of_user, SLOPE))
            .map_err(SessionRefusal::TooManySessions)?;
        for leg in legs {
            state.legs.insert(leg);
        }
        Ok(SessionGuard { shared: Arc::clone(self), facts, place })
    }

    /// Returns a chat message with this text for the responder's client, from the address of the initiator here, and its
    /// delivery receipt. `None` if this client has had one of that user within a day.
    pub(super) fn greeting(
        &self,
        initiator: &SessionPeer,
        responder: &SessionPeer,
        text: &str,
    ) -> Option<(Element, oneshot::Receiver<()>)> {
        let (caller, client) = (initiator.user().to_bare(), responder.user());
        let (from, id) = (responder.mask().as_str(), random_id());
        let mut state = self.lock();
        if !state.greeted.is_first(&caller, client, Instant::now()) {
            return None;
        }
        let receipt = state.receipts.expect(id.clone(), client.clone());
        drop(state);
        let attributes = [("type", "chat"), ("from", from), ("to", client.as_str()), ("id", &id)];
        let mut message = xml::element("message", ns::CLIENT, &attributes);
        let mut body = Element::bare("body", ns::CLIENT);
        body.append_text(text);
        message.append_child(body);
        message.append_child(xml::element("request", ns::RECEIPTS, &[]));
        Some((message, receipt))
    }

    pub(super) fn expect_open(&self, peer: &SessionPeer, sid: Option<String>) {
        self.lock().of_leg(peer).for_each(|entry| entry.ibb = Some(sid.clone()));
    }

    /// Notes the user's end of a leg's SOCKS5 connection, so that the user can ask for it; `None`: it is no longer the leg.
    pub(super) fn see(&self, peer: &SessionPeer, seen: Option<SeenConnection>) {
        let seen = seen.filter(|_| self.options().direct).map(Box::new);
        let mut state = self.lock();
        if let Some(entry) = state.of_leg(peer).next() {
            entry.seen = seen;
        }
    }

    /// Takes the SOCKS5 connections for a stream id of this leg. Clients differ in which side they take for the
    /// requester: either order belongs to it.
    pub(super) fn register(&self, peer: &SessionPeer, sid: &str) -> Registration {
        let (user, mask) = &*peer.pair;
        self.table.register([DstAddr::compute(sid, mask, user), DstAddr::compute(sid, user, mask)])
    }

    /// Returns the refusal of another in-band bytestream of this user, if there is no memory for it.
    pub(super) fn refuses_stream(&self, user: &BareJid, block_size: u16) -> Option<SessionRefusal> {
        IbbMemory::reserve(&self.memory, user, block_size).err().map(SessionRefusal::NoMemory)
    }

    /// Creates an in-band bytestream of this leg.
    ///
    /// # Errors
    /// There is no memory for it.
    pub(super) fn stream(
        &self,
        peer: &SessionPeer,
        sid: String,
        block_size: u16,
        stanza: IbbStanza,
    ) -> Result<(IbbStream, IbbHandle), Full> {
        let memory = IbbMemory::reserve(&self.memory, &peer.user().to_bare(), block_size)?;
        let mut params = IbbParams::between(Arc::clone(&peer.pair), sid);
        (params.block_size, params.stanza) = (block_size, stanza);
        let options = self.options();
        (params.window, params.silence_timeout) = (options.window, options.silence_timeout);
        let (stream, handle) = IbbStream::sharing(params, self.outbound.clone(), memory);
        let mut state = self.lock();
        state.drop_closed(Instant::now());
        state.streams.insert(handle.clone());
        drop(state);
        Ok((stream, handle))
    }
}

/// Removes a session from the tables whenever its task ends.
pub(super) struct SessionGuard {
    pub(super) shared: Arc<BrokerState>,
    pub(super) facts: Arc<Facts>,
    place: Place,
}

impl SessionGuard {
    /// Stops delivery to the session and frees its ids, also while its last bytes still flow.
    pub(super) fn leave(&self) {
        let now = Instant::now();
        let mut state = self.shared.lock();
        for pair in self.facts.ends().iter() {
            for leg in state.legs.remove(pair, &self.facts) {
                state.ended.insert(pair, leg.sid(), now);
            }
        }
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        self.leave();
        let mut state = self.shared.lock();
        let now = Instant::now();
        state.drop_closed(now);
        for pair in self.facts.ends().iter() {
            if !state.streams.drop_over(pair) {
                state.closing.push_back((now + CLOSING, Arc::clone(pair)));
            }
        }
        state.shares.give_back(&self.place);
    }
}
