//! Direct connections between the two ends of a session: listens, dials and lets in only the peer.
//!
//! | part | decides |
//! |---|---|
//! | [`addresses`] | which addresses are offered, and which are dialled |
//! | [`stun`] | what a STUN server says of a connection |
//! | [`mapping`] | how the NAT maps a port, from what servers have seen |
//! | [`punch`] | when to dial which of them |
//! | [`greeting`] | whether the other end of a connection is the peer |
//! | [`frames`] | whether bytes after the greeting are the peer's |
//!
//! Everything of an attempt uses one port for each family, so that a NAT maps the dials to the address that the peer knows.

pub(crate) mod addresses;
mod frames;
mod greeting;
mod mapping;
#[cfg(feature = "testing")]
pub mod probe;
pub(crate) mod punch;
mod stream;
mod stun;

use std::{
    collections::VecDeque,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::mpsc,
    task::{AbortHandle, JoinError, JoinSet},
    time::{Instant, sleep_until, timeout},
};

pub(crate) use self::{
    addresses::{Candidate, CandidateKind},
    greeting::GreetingKeys,
    mapping::{Mapping, Observation},
    punch::{Dialled, Pace, Punch, Step},
    stream::DirectStream,
};
use self::{
    addresses::{Scope, Target},
    greeting::{Greeting, NONCE},
    mapping::mapping,
    punch::MOST_MOVES,
};
use super::path;

/// How long a greeting may take.
const GREETING: Duration = Duration::from_secs(3);
/// The most connections from others that have not greeted; one more takes the place of the oldest. So strangers keep the peer
/// out only if they connect faster than it greets.
const MOST_UNGREETED: usize = 16;
/// The most connections that the kernel keeps until they are accepted.
const BACKLOG: u32 = 16;
/// The most connections of the peer that wait to be taken.
const MOST_GREETED: usize = 4;
/// How long accepting pauses after an error, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// A listener for each family.
#[derive(Debug)]
pub(crate) struct Listening {
    v4: Option<TcpListener>,
    v6: Option<TcpListener>,
    observations: Vec<Observation>,
    /// The public address of a NAT that is known to be symmetric.
    varied: Option<IpAddr>,
    /// The connections to STUN servers. If they closed, a NAT could give the listener's mapping to another connection.
    kept: Vec<TcpStream>,
    scope: Scope,
}

impl Listening {
    /// Listens on the port of `also`, the local address of the connection to the relay, if that connection was
    /// [made to share it](path::Port::Shared); otherwise, and for `None`, on any. One family may be missing. The peer is told and dialled
    /// at the addresses of the scope.
    ///
    /// # Errors
    /// If this machine has neither family, or no ports or files are left.
    pub(crate) fn open_in(scope: Scope, also: Option<SocketAddr>) -> io::Result<Self> {
        let [v4_any, v6_any] = match scope {
            Scope::Network | Scope::Link { .. } => {
                [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]
            }
            #[cfg(test)]
            Scope::Loopback => [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        };
        let port = also.map_or(0, |also| also.port());
        let v4 = listen(v4_any, port);
        // The same port for both, where it is free.
        let port = v4.as_ref().ok().and_then(local_port).unwrap_or(port);
        let v6 = listen(v6_any, port);
        let (v4, v6) = match (v4, v6) {
            (Err(error), Err(_)) => return Err(error),
            (v4, v6) => (v4.ok(), v6.ok()),
        };
        Ok(Self { v4, v6, observations: Vec::new(), varied: None, kept: Vec::new(), scope })
    }

    /// Adds what a server sees of one of our connections.
    ///
    /// It is of use if that connection shares the port of the listener. If it does not, but the NAT keeps the numbers of
    /// ports, the NAT is expected to keep the listener's too.
    pub(crate) fn observed(&mut self, observation: Observation) {
        self.observations.push(observation);
    }

    /// Notes that the NAT with this public address was found to be symmetric.
    pub(crate) fn known_to_vary(&mut self, varied: Option<IpAddr>) {
        self.varied = varied;
    }

    /// Asks a STUN server at which address it sees the listener's port. Pass the result to [`keep`](Self::keep).
    ///
    /// # Errors
    /// Those of connecting; if there is no listener of the server's family; or if the server does not say.
    pub(crate) fn ask(
        &self,
        server: SocketAddr,
    ) -> impl Future<Output = io::Result<(TcpStream, Observation)>> + use<> {
        let local = self.dialling_address(server.ip());
        async move {
            let local = local.ok_or(io::ErrorKind::AddrNotAvailable)?;
            let (stream, observed) =
                stun::ask(async { shared(local)?.connect(server).await }).await?;
            let local = stream.local_addr()?;
            tracing::debug!(%server, %observed, "a STUN server has answered");
            Ok((stream, Observation { local, observed }))
        }
    }

    /// Adds what a STUN server has seen, and keeps the connection to it.
    pub(crate) fn keep(&mut self, (stream, observation): (TcpStream, Observation)) {
        self.kept.push(stream);
        self.observed(observation);
    }

    /// Returns how the NAT maps the listener's port of a family.
    pub(crate) fn mapping(&self, is_ipv4: bool) -> Mapping {
        match self.port_of(is_ipv4) {
            Some(own) => mapping(own, is_ipv4, &self.observations, self.varied),
            None => Mapping::Unknown,
        }
    }

    /// Returns the addresses at which the peer may reach this side, at most 18.
    pub(crate) fn candidates(&self) -> Vec<Candidate> {
        let host = addresses::offered(self.scope).into_iter().filter_map(|ip| {
            let address = SocketAddr::new(ip, self.port(ip)?);
            Some(Candidate { address, kind: CandidateKind::Host })
        });
        let reflexive = [true, false].into_iter().filter_map(|is_ipv4| {
            let address = match self.mapping(is_ipv4) {
                Mapping::Unknown => return None,
                Mapping::Stable(address) => address,
                // The peer's NAT may let in all that comes from this address, once the peer has sent something to it.
                Mapping::Varies(ip) => SocketAddr::new(ip, 0),
            };
            Some(Candidate { address, kind: CandidateKind::ServerReflexive })
        });
        // First, because the peer takes only so many.
        reflexive.chain(host).collect()
    }

    /// Returns the port on which the listener of an address's family listens.
    fn port(&self, ip: IpAddr) -> Option<u16> {
        self.port_of(ip.is_ipv4())
    }

    fn port_of(&self, is_ipv4: bool) -> Option<u16> {
        let listener = if is_ipv4 { &self.v4 } else { &self.v6 };
        listener.as_ref().and_then(local_port)
    }

    /// Returns the address from which to dial one of this family; `None` without a listener of the family.
    fn dialling_address(&self, to: IpAddr) -> Option<SocketAddr> {
        let port = self.port(to)?;
        let ip = match self.scope {
            #[cfg(test)]
            Scope::Loopback => to,
            _ if to.is_ipv4() => Ipv4Addr::UNSPECIFIED.into(),
            _ => Ipv6Addr::UNSPECIFIED.into(),
        };
        Some(SocketAddr::new(ip, port))
    }

    /// Dials from the listener's port; `None` without a listener of the family.
    pub(crate) fn dial(
        &self,
        target: SocketAddr,
    ) -> Option<impl Future<Output = io::Result<TcpStream>> + use<>> {
        let local = self.dialling_address(target.ip())?;
        Some(async move { shared(local)?.connect(target).await })
    }

    /// Takes the next connection, of either family.
    ///
    /// # Cancel safety
    /// No connection is lost if the future is dropped.
    pub(crate) async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        tokio::select! {
            accepted = accept(self.v4.as_ref()) => accepted,
            accepted = accept(self.v6.as_ref()) => accepted,
        }
    }

    /// Returns what to dial of a peer's candidates, and how.
    ///
    /// The refusals of an address in an own network, or of the own NAT, are no reason to take another port. The peer would hear of that,
    /// so it could name each port of each machine there as its NAT's, and learn which are open.
    pub(crate) fn targets(&self, theirs: &[Candidate]) -> Vec<(SocketAddr, Pace)> {
        let own = addresses::own();
        let seen = |ip: IpAddr| {
            let mut observed = self.observations.iter().map(|one| one.observed.ip());
            self.varied == Some(ip) || observed.any(|observed| observed == ip)
        };
        let is_secret = |ip: IpAddr| match self.scope {
            Scope::Network | Scope::Link { .. } => addresses::is_nearby(ip, &own) || seen(ip),
            #[cfg(test)]
            Scope::Loopback => false,
        };
        let pace = |Target { address, kind, is_guess }: Target| {
            self.port(address.ip())?;
            let is_reflexive = kind == CandidateKind::ServerReflexive;
            let varies = matches!(self.mapping(address.is_ipv4()), Mapping::Varies(_));
            let pace = match (is_reflexive && varies, is_guess) {
                // Neither side can know where the other one's dials come from.
                (true, true) => return None,
                (false, false) if is_reflexive && !is_secret(address.ip()) => Pace::Crossing,
                (false, false) => Pace::Quick,
                (true, false) | (false, true) => Pace::Slow,
            };
            Some((address, pace))
        };
        let dialled = addresses::dialled(theirs, &own, self.scope);
        dialled.into_iter().filter_map(pace).collect()
    }

    /// Dials the peer and takes its connections, until 5 s are over or the result is dropped. `is_client` says which side of
    /// TLS this is. The next attempt takes another `Listening`.
    pub(crate) fn connect(
        self,
        theirs: &[Candidate],
        keys: GreetingKeys,
        is_client: bool,
    ) -> Connecting {
        let (events, receiver) = mpsc::channel(MOST_GREETED + MOST_MOVES);
        let (sender, changes) = mpsc::channel(2 * MOST_MOVES);
        tokio::spawn(Attempt::new(self, theirs, keys, is_client).run(events, changes));
        Connecting { events: receiver, changes: sender }
    }
}

/// An attempt that runs. Dropping it ends the attempt.
#[derive(Debug)]
pub(crate) struct Connecting {
    events: mpsc::Receiver<Found>,
    changes: mpsc::Sender<Change>,
}

/// The result of an attempt.
#[derive(Debug)]
pub(crate) enum Found {
    /// A connection on which the peer has greeted, and the peer's address. The next byte on it is the first one after the greeting.
    Peer(DirectStream, SocketAddr),
    /// The dials from this port are refused: [take another](Connecting::take_port), and tell the peer.
    PortRefused,
}

/// What changes in an attempt.
#[derive(Debug)]
enum Change {
    Own(Listening),
    Theirs(Vec<Candidate>),
}

impl Connecting {
    /// Returns what comes next, `None` when the attempt is over.
    pub(crate) async fn next(&mut self) -> Option<Found> {
        self.events.recv().await
    }

    /// Goes on from another port. The old one is closed.
    pub(crate) fn take_port(&self, listening: Listening) {
        // If nobody receives this, the attempt is over.
        let _ = self.changes.try_send(Change::Own(listening));
    }

    /// Goes on with what the peer has told since: it has taken another port. Two such changes count, and no new addresses.
    pub(crate) fn peer_has_moved(&self, theirs: Vec<Candidate>) {
        let _ = self.changes.try_send(Change::Theirs(theirs));
    }
}

fn local_port(listener: &TcpListener) -> Option<u16> {
    Some(listener.local_addr().ok()?.port())
}

/// Creates a socket on a port that listeners and dials share.
fn shared(local: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if local.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    path::share_port(&socket)?;
    if local.is_ipv6() {
        SockRef::from(&socket).set_only_v6(true)?;
    }
    path::narrow(&socket)?;
    socket.bind(local)?;
    Ok(socket)
}

fn listen(ip: IpAddr, port: u16) -> io::Result<TcpListener> {
    let socket = shared(SocketAddr::new(ip, port));
    let socket = match socket {
        Err(_) if port != 0 => shared(SocketAddr::new(ip, 0)),
        socket => socket,
    };
    socket?.listen(BACKLOG)
}

/// A connection, and the other end's address, once it has greeted.
type Greeted = Option<(DirectStream, SocketAddr)>;

/// An attempt that is under way.
struct Attempt {
    listening: Listening,
    /// The peer's candidates, and how often they may change.
    theirs: Vec<Candidate>,
    changes_left: usize,
    targets: Vec<(SocketAddr, Pace)>,
    keys: Arc<GreetingKeys>,
    punch: Punch,
    dials: JoinSet<(usize, io::Result<TcpStream>)>,
    greetings: JoinSet<Greeted>,
    /// The greetings of accepted connections, the oldest first.
    accepted: VecDeque<AbortHandle>,
}

impl Attempt {
    fn new(
        listening: Listening,
        theirs: &[Candidate],
        keys: GreetingKeys,
        is_client: bool,
    ) -> Self {
        let targets = listening.targets(theirs);
        Self {
            punch: Punch::new(paces(&targets), is_client, Instant::now()),
            listening,
            theirs: theirs.to_vec(),
            changes_left: MOST_MOVES,
            targets,
            keys: Arc::new(keys),
            dials: JoinSet::new(),
            greetings: JoinSet::new(),
            accepted: VecDeque::new(),
        }
    }

    async fn run(mut self, found: mpsc::Sender<Found>, mut changes: mpsc::Receiver<Change>) {
        loop {
            let until = match self.punch.next(Instant::now()) {
                Step::Dial(number) => {
                    self.dial(number);
                    continue;
                }
                Step::Move => {
                    tracing::debug!("the dials of a direct connection are refused");
                    // Nobody who takes connections is slow to take this.
                    let _ = found.try_send(Found::PortRefused);
                    continue;
                }
                Step::Wait(until) => until,
                Step::Over => break,
            };
            tokio::select! {
                () = found.closed() => return,
                Some(change) = changes.recv() => self.change(change),
                Some(greeted) = self.greetings.join_next() => self.greeted(greeted, &found),
                Some(dialled) = self.dials.join_next() => self.dialled(dialled),
                accepted = self.listening.accept() => self.accepted(accepted).await,
                () = sleep_until(until) => {}
            }
        }
        // The ports are free, but a peer that was connected in time may still greet.
        (self.listening.v4, self.listening.v6) = (None, None);
        self.listening.kept.clear();
        self.dials.abort_all();
        loop {
            tokio::select! {
                () = found.closed() => return,
                greeted = self.greetings.join_next() => match greeted {
                    Some(greeted) => self.greeted(greeted, &found),
                    None => return,
                },
            }
        }
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Own(listening) => self.listening = listening,
            Change::Theirs(theirs) => {
                let Some(left) = self.changes_left.checked_sub(1) else { return };
                self.changes_left = left;
                let known: Vec<IpAddr> = self.theirs.iter().map(|one| one.address.ip()).collect();
                self.theirs = theirs;
                self.theirs.retain(|one| known.contains(&one.address.ip()));
            }
        }
        // The results of the old dials do not count any more.
        self.dials = JoinSet::new();
        self.targets = self.listening.targets(&self.theirs);
        self.punch.restart(paces(&self.targets), Instant::now());
    }

    fn dial(&mut self, number: usize) {
        let (target, _) = self.targets[number];
        // Targets have the family of a listener.
        let Some(dialling) = self.listening.dial(target) else { return };
        self.dials.spawn(async move { (number, dialling.await) });
    }

    fn dialled(&mut self, dialled: Result<(usize, io::Result<TcpStream>), JoinError>) {
        // Dials neither panic nor are they aborted while their results count.
        let Ok((number, stream)) = dialled else { return };
        let (target, _) = self.targets[number];
        let result = Dialled::of(&stream);
        tracing::trace!(%target, ?result, "dialled a candidate");
        self.punch.dialled(number, result, Instant::now(), rand::random());
        if let Ok(stream) = stream {
            self.greetings.spawn(greet(stream, target, Arc::clone(&self.keys)));
        }
    }

    async fn accepted(&mut self, accepted: io::Result<(TcpStream, SocketAddr)>) {
        match accepted {
            Ok((stream, from)) => {
                self.accepted.retain(|greeting| !greeting.is_finished());
                if self.accepted.len() >= MOST_UNGREETED
                    && let Some(oldest) = self.accepted.pop_front()
                {
                    oldest.abort();
                }
                let keys = Arc::clone(&self.keys);
                self.accepted.push_back(self.greetings.spawn(greet(stream, from, keys)));
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept a direct connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    fn greeted(&mut self, greeted: Result<Greeted, JoinError>, found: &mpsc::Sender<Found>) {
        // An error is a greeting that has lost its place.
        if let Ok(Some((stream, from))) = greeted {
            tracing::debug!(%from, "the peer has greeted on a direct connection");
            self.punch.succeeded();
            // More than the receiver looks at are closed.
            let _ = found.try_send(Found::Peer(stream, from));
        }
    }
}

fn paces(targets: &[(SocketAddr, Pace)]) -> impl ExactSizeIterator<Item = Pace> {
    targets.iter().map(|(_, pace)| *pace)
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

/// Returns the connection if the peer is at its other end.
async fn greet(stream: TcpStream, from: SocketAddr, keys: Arc<GreetingKeys>) -> Greeted {
    match timeout(GREETING, exchange(stream, &keys)).await {
        Ok(Ok(stream)) => Some((stream, from)),
        Ok(Err(error)) => {
            tracing::debug!(%from, %error, "no greeting on a direct connection");
            None
        }
        Err(_) => {
            tracing::debug!(%from, "no greeting in time on a direct connection");
            None
        }
    }
}

async fn exchange(mut stream: TcpStream, keys: &GreetingKeys) -> io::Result<DirectStream> {
    stream.set_nodelay(true)?;
    let mut greeting = Greeting::new(keys, rand::random::<[u8; NONCE]>());
    let mut buffer = [0; 64];
    loop {
        let output = greeting.take_output();
        stream.write_all(&output).await?;
        // Never more than the greeting: what follows is the session's.
        let missing = greeting.missing().min(buffer.len());
        if missing == 0 {
            let keys = greeting.frame_keys().ok_or_else(|| io::Error::other("no keys"))?;
            return Ok(DirectStream::new(stream, keys));
        }
        let got = stream.read(&mut buffer[..missing]).await?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        greeting.take(&mut &buffer[..got]).map_err(|_| io::Error::other("it is not the peer's"))?;
    }
}

#[cfg(test)]
mod tests;
