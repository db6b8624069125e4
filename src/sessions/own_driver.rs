//! Carries out the decisions of a session with the component: stanzas, connections, the handshake and its record.

use std::sync::Arc;

use fingerpost_secure::{
    identity::Identity,
    stream::{self, TlsError, TlsStream},
};
use fingerpost_wire::{print::Print, stanza::Refusal};
use minidom::Element;
use time::OffsetDateTime;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
    task::JoinSet,
    time::{Duration, sleep_until, timeout},
};

use super::{
    inbox::Inbox,
    own::{OwnAction, OwnSession},
    peer::SessionPeer,
    session::SessionInput,
    shared::BrokerState,
    side::Side,
};
use crate::{
    registry::KeyNotice,
    relay::socket::{Socket, SocketLeg},
};

/// How long to wait for the peer's own session-terminate.
const GOODBYE: Duration = Duration::from_secs(2);

/// What the session has waited for.
enum OwnDone {
    Arrived(Option<Socket>),
    Secured(Box<Result<TlsStream<SocketLeg>, TlsError>>),
}

/// The task of a session of one user with the component.
pub(super) struct OwnDriver {
    shared: Arc<BrokerState>,
    peer: SessionPeer,
    session: OwnSession,
    identity: Arc<Identity>,
    pins: Vec<Print>,
    notices: mpsc::Sender<KeyNotice>,
    socket: Option<Socket>,
    /// The tasks that the session waits for. Dropping the session ends them.
    work: JoinSet<OwnDone>,
}

impl OwnDriver {
    /// Creates a driver for a session that has been accepted. `pins` are the offered x509 prints.
    pub(super) fn new(
        shared: Arc<BrokerState>,
        peer: SessionPeer,
        session: OwnSession,
        identity: Arc<Identity>,
        pins: Vec<Print>,
        notices: mpsc::Sender<KeyNotice>,
    ) -> Self {
        let (socket, work) = (None, JoinSet::new());
        Self { shared, peer, session, identity, pins, notices, socket, work }
    }

    /// Runs for the whole life of the session.
    pub(super) async fn run(mut self, inbox: &Inbox) {
        loop {
            while let Some(action) = self.session.poll_action() {
                self.perform(action).await;
            }
            if self.session.is_over() {
                break;
            }
            let input = tokio::select! {
                input = inbox.next() => *input,
                Some(done) = self.work.join_next() => match done {
                    Ok(OwnDone::Arrived(Some(socket))) => {
                        self.socket = Some(socket);
                        SessionInput::Arrived(Side::Initiator)
                    }
                    Ok(OwnDone::Secured(stream)) => {
                        let proven = self.prove(*stream).await;
                        self.session.secured(proven);
                        continue;
                    }
                    Ok(OwnDone::Arrived(None)) | Err(_) => continue,
                },
                () = sleep_until(self.session.deadline()) => SessionInput::Timeout,
            };
            self.session.handle(input);
        }
        inbox.close();
        while let Some(input) = inbox.try_next() {
            self.session.handle(*input);
            while let Some(action) = self.session.poll_action() {
                self.perform(action).await;
            }
        }
    }

    async fn send(&self, element: Element) {
        let _ = self.shared.outbound.send(element.into()).await;
    }

    async fn perform(&mut self, action: OwnAction) {
        match action {
            OwnAction::Send(element) => self.send(element).await,
            OwnAction::Connect(sid) => {
                let mut registration = self.shared.register(&self.peer, &sid);
                self.work.spawn(async move { OwnDone::Arrived(registration.arrived().await) });
            }
            OwnAction::ExpectOpen(sid) => self.shared.expect_open(&self.peer, Some(sid)),
            OwnAction::SecureSocket => {
                if let Some(socket) = self.socket.take() {
                    self.secure(SocketLeg::Socket(Box::new(socket)));
                }
            }
            OwnAction::SecureStream(sid, block_size, stanza) => {
                // Without memory the session ends when its time is up; only a race with other streams comes here.
                if let Ok((stream, _)) = self.shared.stream(&self.peer, sid, block_size, stanza) {
                    self.secure(SocketLeg::Ibb(stream));
                }
            }
        }
    }

    /// Does the handshake over a leg.
    fn secure(&mut self, leg: SocketLeg) {
        let (identity, pins) = (Arc::clone(&self.identity), std::mem::take(&mut self.pins));
        self.work.spawn(async move {
            let secured = stream::accept(leg, &identity, pins).await;
            OwnDone::Secured(Box::new(secured.map(|(stream, _)| stream)))
        });
    }

    /// Records the key that was shown in the handshake; returns its id.
    ///
    /// # Errors
    /// The text for the user, if none is proven.
    async fn prove(
        &self,
        secured: Result<TlsStream<SocketLeg>, TlsError>,
    ) -> Result<String, String> {
        let mut stream = secured.map_err(|error| error.to_string())?;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).cloned();
        let certificate = shown.ok_or("No certificate was shown")?;
        let now = OffsetDateTime::now_utc();
        let recorded = self.shared.registry.shown(self.peer.user(), &certificate, now).await;
        let (key, notice) = recorded.map_err(|refusal| Refusal::from(refusal).text)?;
        if let Some(notice) = notice {
            let _ = self.notices.send(notice).await;
        }
        // The peer may want to end TLS first.
        let _ = stream.shutdown().await;
        let _ = timeout(GOODBYE, stream.read(&mut [0; 256])).await;
        Ok(key.id.to_string())
    }
}
