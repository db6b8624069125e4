//! Keeps a connection: it reconnects after each loss, and resumes the session (XEP-0198) where possible. Otherwise it
//! starts a new session at the same address, or gives up if only the old one is of use.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use fingerpost_carry::outbound::QueuedStanza;
use fingerpost_wire::stanza::Stanza;
use jid::FullJid;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, watch},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{
    driver::{Driver, Remedy, StreamEnd, StreamState},
    error::Error,
    login::{self, ARRIVED, Begun, Connection, Login, LoginFailure, QUEUE, Start},
    managed::Management,
    network::Network,
    path::Watched,
    sasl2::Name,
};

/// The longest pause before the first attempt.
const FIRST: Duration = Duration::from_secs(1);
/// The longest pause before any attempt.
const LONGEST: Duration = Duration::from_secs(60);
/// How long a session that is only to be resumed is worth attempts.
const ONLY_RESUMED: Duration = Duration::from_secs(30);
/// After a connection that lived this long, the pauses start with [`FIRST`] again.
const LASTING: Duration = Duration::from_secs(60);

/// A change of the connection of an endpoint that reconnects ([`Builder::reconnect`](super::Builder::reconnect)).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Contact {
    /// The connection is lost, and reconnection begins. Reported once, however many attempts follow.
    Lost {
        /// Why.
        reason: String,
    },
    /// The connection is established again.
    Back {
        /// The address that the server has assigned.
        jid: FullJid,
        /// Whether the session continues (XEP-0198). If not, it is a new session: unanswered requests have failed,
        /// in-band streams have ended, and [`Endpoint::appear`](super::Endpoint::appear) has been repeated.
        resumed: bool,
    },
}

/// A callback for changes of the connection.
pub(super) type Listener = Arc<dyn Fn(&Contact) + Send + Sync>;

/// How a connection is kept.
#[derive(Clone)]
pub(super) struct Keeping {
    pub(super) listener: Listener,
    /// Whether a session with the server that cannot be resumed is followed by a new one.
    pub(super) begins_anew: bool,
    /// The resource to ask for, if not a random one.
    pub(super) resource: Option<String>,
    pub(super) network: Network,
}

/// The state of the connection for the other side of the queues.
#[derive(Clone, Debug)]
pub(super) struct Status {
    /// The number of lost sessions.
    pub(super) over: u64,
    /// The address of the present session, if any.
    pub(super) bound: Option<FullJid>,
}

/// The handle of the rest of the endpoint on its connection.
#[derive(Clone, Debug)]
pub(super) struct Keeper {
    pub(super) status: watch::Receiver<Status>,
    /// Cancel it to close the stream and end the connection.
    pub(super) closing: CancellationToken,
    /// Cancelled when the connection has ended for good.
    pub(super) done: CancellationToken,
    pub(super) network: Network,
    ended: Arc<Mutex<Option<Error>>>,
}

impl Keeper {
    /// Returns the handle on a connection whose state the test decides.
    #[cfg(test)]
    pub(crate) fn played(status: Status) -> (watch::Sender<Status>, Self) {
        let (sender, status) = watch::channel(status);
        let (closing, done) = (CancellationToken::new(), CancellationToken::new());
        let network = Network::fixed();
        (sender, Self { status, closing, done, network, ended: Arc::default() })
    }

    /// Returns why the connection has ended for good, if it has.
    pub(super) fn why_ended(&self) -> Option<Error> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Establishes connections.
pub(super) trait Dialer: Send + Sync + 'static {
    /// A connection.
    type Io: AsyncRead + AsyncWrite + Unpin + Send;

    /// Begins a session with this name, or resumes one.
    fn begin(
        &self,
        name: Name<'_>,
        resumed: Option<&Management>,
    ) -> impl Future<Output = Result<Begun<Self::Io>, LoginFailure>> + Send;
}

impl Dialer for Login {
    type Io = tokio_rustls::client::TlsStream<Watched>;

    fn begin(
        &self,
        name: Name<'_>,
        resumed: Option<&Management>,
    ) -> impl Future<Output = Result<Begun<Self::Io>, LoginFailure>> + Send {
        login::begin(self, name, resumed, true)
    }
}

/// Logs in, and keeps the connection.
///
/// # Errors
/// Those of the first attempt.
pub(super) async fn keep<D: Dialer>(
    dialer: D,
    silence: Duration,
    keeping: Keeping,
) -> Result<(Connection, Keeper), Error> {
    let (tag, resource) = match &keeping.resource {
        Some(resource) => (None, resource.clone()),
        None => {
            let random = login::resource();
            (Some(random.clone()), random)
        }
    };
    let begun = dialer.begin(Name { tag: tag.as_deref(), resource: &resource }, None).await?;
    let Start::Bound { jid, .. } = &begun.start else {
        return Err(Error::login("the XMPP server resumed a session that was not asked for"));
    };
    let jid = jid.clone();
    let (outbound, queue) = mpsc::channel(QUEUE);
    let (sender, inbound) = mpsc::channel(ARRIVED);
    let (status, seen) = watch::channel(Status { over: 0, bound: Some(jid.clone()) });
    let keeper = Keeper {
        status: seen,
        closing: CancellationToken::new(),
        done: CancellationToken::new(),
        network: keeping.network.clone(),
        ended: Arc::default(),
    };
    let mut kept = KeptConnection {
        dialer,
        silence,
        keeping,
        tag,
        is_told: false,
        state: StreamState::new(jid.clone(), None),
        queue,
        inbound: sender,
        status,
        closing: keeper.closing.clone(),
    };
    let Keeper { ended, done, .. } = keeper.clone();
    let task = tokio::spawn(async move {
        let _done = done.drop_guard();
        if let Err(error) = kept.run(begun).await {
            // This comes before the queues close, because their end is the signal for others.
            *ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
        drop(kept);
    });
    Ok((Connection { jid, outbound, inbound, task }, keeper))
}

struct KeptConnection<D> {
    dialer: D,
    silence: Duration,
    keeping: Keeping,
    /// See [`Name`].
    tag: Option<String>,
    /// Whether the loss of the connection was reported, and not yet its return.
    is_told: bool,
    state: StreamState,
    queue: mpsc::Receiver<QueuedStanza>,
    inbound: mpsc::Sender<Stanza>,
    status: watch::Sender<Status>,
    closing: CancellationToken,
}

impl<D: Dialer> KeptConnection<D> {
    /// Runs until no part of the program needs the connection, or no other session is of use; both are a success.
    async fn run(&mut self, begun: Begun<D::Io>) -> Result<(), Error> {
        let mut pauses = Pauses::default();
        let mut begun = Some(begun);
        loop {
            let Begun { stream, start, local } = match begun.take() {
                Some(begun) => begun,
                None => match self.again(&mut pauses).await? {
                    Some(begun) => begun,
                    None => return Ok(()),
                },
            };
            let since = Instant::now();
            let loss = match self.carry(stream, start, local).await {
                StreamEnd::Done => return Ok(()),
                StreamEnd::Lost(loss) => loss,
            };
            tracing::info!(reason = loss.why, "lost the connection to the XMPP server");
            if since.elapsed() >= LASTING {
                pauses = Pauses::default();
            }
            match loss.remedy {
                Remedy::None(error) => return Err(error),
                Remedy::Anew => self.sever(),
                Remedy::Resume if !self.state.can_resume() => self.sever(),
                Remedy::Resume => {}
            }
            if !self.is_worthwhile() {
                return Ok(());
            }
            if !std::mem::replace(&mut self.is_told, true) {
                (self.keeping.listener)(&Contact::Lost { reason: loss.why });
            }
        }
    }

    /// Carries stanzas over a stream until it is lost.
    async fn carry(
        &mut self,
        stream: login::Stream<D::Io>,
        start: Start,
        local: Option<IpAddr>,
    ) -> StreamEnd {
        let (resumed, early) = match start {
            Start::Resumed(resumed) => (Some(resumed), Vec::new()),
            // The lost session was the only one of use.
            Start::Bound { .. } if self.state.management.is_some() && !self.keeping.begins_anew => {
                self.sever();
                return StreamEnd::Done;
            }
            Start::Bound { jid, management, early } => {
                // The session to resume.
                if self.state.management.is_some() {
                    self.sever();
                }
                (self.state.own, self.state.management) = (jid, management);
                (None, early)
            }
        };
        let own = self.state.own.clone();
        let mut driver = Driver::new(stream.reader, stream.writer, &mut self.state, self.silence)
            .leaves_with(self.keeping.network.clone(), local);
        match &resumed {
            Some(resumed) => {
                if let Err(error) = driver.resume(resumed) {
                    return StreamEnd::Lost(error.into());
                }
            }
            None => driver.take_early(early),
        }
        self.status.send_if_modified(|status| {
            let is_new = status.bound.as_ref() != Some(&own);
            status.bound = Some(own.clone());
            is_new
        });
        if std::mem::take(&mut self.is_told) {
            (self.keeping.listener)(&Contact::Back { jid: own, resumed: resumed.is_some() });
        }
        driver.run(&mut self.queue, &self.inbound, &self.closing).await
    }

    /// Returns whether another connection is of use.
    fn is_worthwhile(&self) -> bool {
        self.keeping.begins_anew || self.state.management.is_some()
    }

    /// Gives the session up: its requests will not be answered.
    fn sever(&mut self) {
        self.state.management = None;
        let is_new = self.status.send_if_modified(|status| {
            let is_new = status.bound.take().is_some();
            status.over += u64::from(is_new);
            is_new
        });
        if is_new {
            // The stanzas that wait to be sent belong to it.
            while self.queue.try_recv().is_ok() {}
        }
    }

    /// Reconnects; `None` if no part of the program needs the connection.
    async fn again(&mut self, pauses: &mut Pauses) -> Result<Option<Begun<D::Io>>, Error> {
        let since = Instant::now();
        let mut network = self.keeping.network.clone();
        network.forget_changes();
        loop {
            let over = self.state.management.as_ref().and_then(Management::resumable);
            let longest = if self.keeping.begins_anew { Duration::MAX } else { ONLY_RESUMED };
            if over.is_none_or(|max| since.elapsed() > max.min(longest)) {
                self.sever();
            }
            if !self.is_worthwhile() {
                return Ok(None);
            }
            let pause = pauses.next(rand::random());
            tracing::debug!(?pause, "connecting again");
            let resource = self.state.own.resource().to_string();
            let attempt = async {
                sleep(pause).await;
                let name = Name { tag: self.tag.as_deref(), resource: &resource };
                self.dialer.begin(name, self.state.management.as_ref()).await
            };
            let failure = tokio::select! {
                // An attempt from an address that is gone is given up before it goes on.
                biased;
                () = network.changed() => {
                    // What has failed before may work there.
                    *pauses = Pauses::default();
                    continue;
                }
                begun = attempt => match begun {
                    Ok(begun) => return Ok(Some(begun)),
                    Err(failure) => failure,
                },
                () = self.closing.cancelled() => return Ok(None),
                () = self.inbound.closed() => return Ok(None),
            };
            if failure.is_final {
                return Err(failure.error);
            }
            tracing::info!(error = %failure.error, "cannot connect to the XMPP server");
            if failure.by_server {
                // The server may reject the resumption itself.
                self.sever();
            }
        }
    }
}

/// The pauses before attempts: up to a second at first, up to twice as long each time, up to a minute.
#[derive(Debug, Default)]
struct Pauses {
    failed: u32,
}

impl Pauses {
    /// Returns the next pause. `chance` is from 0 to 1: a server's users must not all come back at one moment.
    fn next(&mut self, chance: f64) -> Duration {
        let most = FIRST.saturating_mul(1 << self.failed.min(16)).min(LONGEST);
        let least = if self.failed == 0 { Duration::ZERO } else { most / 2 };
        self.failed += 1;
        least + (most - least).mul_f64(chance.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests;
