//! The SOCKS5 port: accepts connections within limits, negotiates, and gives them to the table.

mod reception;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    num::NonZero,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use socket2::{Domain, SockRef, TcpKeepalive, Type};
use tokio::{
    net::lookup_host,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::reception::Reception;
use super::{
    crowd::{Bounds, Crowd},
    origins::{self, Origins},
    table::TransferTable,
};

/// The most accept loops for each address; the kernel spreads new connections over them.
const ACCEPTORS: usize = 8;

/// Connections that the kernel may queue: enough for the burst after a restart.
const BACKLOG: i32 = 4096;

/// The silence after which the kernel probes a peer, and the interval of the probes. Linux NAT forgets a half-closed
/// connection after 60 s of silence, so the first probe and two more come before that.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));

/// Unanswered probes after which a peer is gone: a minute of silence in all.
const KEEPALIVE_PROBES: u32 = 3;

/// When all places are taken: how often to check for a handshake that can make room, and how long each handshake may
/// take before that.
const ROOM: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(1));

/// How connections are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerOptions {
    /// How long greeting and request may take together.
    pub handshake_timeout: Duration,
    /// The most connections in all, until they end. At the limit the kernel's queue fills.
    pub connections: usize,
    /// The most connections of one IPv4 address or IPv6 /64 that wait for a transfer which no session has announced.
    /// Others are refused when they name theirs. Activated transfers, and connections that a session expects, do not
    /// count.
    pub connections_per_ip: usize,
    /// Whether every connection begins with a PROXY header, whose source is the address that counts.
    pub proxy_protocol: bool,
    /// The largest TCP segment in bytes, both ways; 0 leaves it to the path's ends.
    pub max_segment: u32,
}

impl Default for ListenerOptions {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            connections: 20_480,
            connections_per_ip: 64,
            proxy_protocol: false,
            max_segment: 0,
        }
    }
}

/// The bound ports. The accept loops run until the token is cancelled; dropping this does not end them.
#[derive(Debug)]
pub struct Socks5Listener {
    gate: Gate,
    local_addrs: Vec<SocketAddr>,
}

impl Socks5Listener {
    /// Binds every address (`host:port`; port 0 takes a free one) and starts to accept, on `tasks`, until `soft` is
    /// cancelled. `[::]` takes IPv4 too, and becomes `0.0.0.0` where there is no IPv6.
    ///
    /// # Errors
    /// The first address that cannot be resolved or bound, by name; none is open then.
    pub async fn bind(
        addresses: &[impl AsRef<str>],
        options: ListenerOptions,
        table: &TransferTable,
        soft: &CancellationToken,
        tasks: &TaskTracker,
    ) -> io::Result<Self> {
        Self::with(addresses, Vec::new(), options, table, soft, tasks).await
    }

    /// Uses sockets that already listen; without any, does the same as [`Socks5Listener::bind`].
    ///
    /// # Errors
    /// As [`Socks5Listener::bind`].
    pub async fn with(
        addresses: &[impl AsRef<str>],
        inherited: Vec<TcpListener>,
        options: ListenerOptions,
        table: &TransferTable,
        soft: &CancellationToken,
        tasks: &TaskTracker,
    ) -> io::Result<Self> {
        let mut listeners = Vec::new();
        let mut local_addrs = Vec::new();
        if inherited.is_empty() {
            for opened in open_all(addresses, options.max_segment).await? {
                local_addrs.push(opened.bound);
                listeners.extend(opened.others().map_err(|error| naming(&opened.name, &error))?);
                listeners.push(opened.socket);
            }
        }
        for socket in inherited {
            socket.set_nonblocking(true)?;
            prepare(&SockRef::from(&socket), options.max_segment)?;
            local_addrs.push(socket.local_addr()?);
            // One queue, and a loop for each core.
            for _ in 1..acceptors() {
                listeners.push(socket.try_clone()?);
            }
            listeners.push(socket);
        }
        let gate = Gate {
            connections: Arc::new(Semaphore::new(options.connections.min(Semaphore::MAX_PERMITS))),
            crowd: Crowd::default(),
            origins: Arc::default(),
            options: Arc::new(RwLock::new(options)),
        };
        let receptions = listeners.into_iter().map(|listener| {
            Reception::new(listener, gate.clone(), table.clone(), soft.clone(), tasks.clone())
        });
        for reception in receptions.collect::<io::Result<Vec<_>>>()? {
            tasks.spawn(reception.run());
        }
        Ok(Self { gate, local_addrs })
    }

    /// Sets other limits for connections from now on. PROXY headers and the largest segment stay as they are.
    pub fn set_options(&self, new: ListenerOptions) {
        let mut options = self.gate.options.write().unwrap_or_else(PoisonError::into_inner);
        let (before, wanted) = (options.connections, new.connections.min(Semaphore::MAX_PERMITS));
        let connections = if wanted >= before {
            self.gate.connections.add_permits(wanted - before);
            wanted
        } else {
            // Places that are taken now cannot be withdrawn; until they are free, the old limit holds.
            before - self.gate.connections.forget_permits(before - wanted)
        };
        *options = ListenerOptions {
            connections,
            proxy_protocol: options.proxy_protocol,
            max_segment: options.max_segment,
            ..new
        };
    }

    /// Returns the addresses that were bound, with their real ports, in the order given.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.local_addrs
    }
}

#[derive(Clone, Debug)]
struct Gate {
    connections: Arc<Semaphore>,
    crowd: Crowd,
    origins: Arc<Mutex<Origins>>,
    options: Arc<RwLock<ListenerOptions>>,
}

impl Gate {
    fn options(&self) -> ListenerOptions {
        *self.options.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn bounds(&self) -> Bounds {
        let options = self.options();
        Bounds::of(options.connections, options.connections_per_ip)
    }

    /// Waits for a place among all connections. Handshakes that take long make room.
    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        loop {
            match timeout(ROOM.0, Arc::clone(&self.connections).acquire_owned()).await {
                // The semaphore is never closed.
                Ok(place) => return place.ok(),
                Err(_) => self.crowd.displace(ROOM.1),
            }
        }
    }

    /// Notes where a request came from, and to which of our addresses. Warns once if all users seem to have one address.
    fn note(&self, ip: IpAddr, to: impl FnOnce() -> io::Result<SocketAddr>, refused: bool) {
        let own = || to().is_ok_and(|own| own.ip().to_canonical() == ip);
        let mut origins = self.origins.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(address) = origins.note(ip, own, refused) {
            drop(origins);
            tracing::warn!(%address, "most SOCKS5 connections come from one address: {}", origins::CURE);
        }
    }
}

/// A socket that listens at an address of the configuration, without blocking.
#[derive(Debug)]
pub struct OpenedSocket {
    /// The socket.
    pub socket: TcpListener,
    /// Where it listens. `[::]` may have become `0.0.0.0`.
    bound: SocketAddr,
    name: String,
    only_v6: bool,
    max_segment: u32,
}

impl OpenedSocket {
    /// Returns the other sockets of the address: one for each further core.
    fn others(&self) -> io::Result<Vec<TcpListener>> {
        let only_v6 = self.only_v6 && self.bound.is_ipv6();
        (1..acceptors()).map(|_| open(self.bound, only_v6, true, self.max_segment)).collect()
    }
}

/// Listens at every address (`host:port`; port 0 takes a free one), with one socket each. `[::]` takes IPv4 too, and becomes
/// `0.0.0.0` where there is no IPv6.
///
/// # Errors
/// The first address that cannot be resolved or bound, by name; none is open then.
pub async fn open_all(
    addresses: &[impl AsRef<str>],
    max_segment: u32,
) -> io::Result<Vec<OpenedSocket>> {
    let mut wanted = Vec::new();
    for name in addresses.iter().map(AsRef::as_ref) {
        let resolved = lookup_host(name).await.map_err(|error| naming(name, &error))?;
        wanted.extend(resolved.map(|address| (name, address)));
    }
    let opened = wanted.iter().map(|(name, address)| {
        let v4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
        let only_v6 = wanted.iter().any(|(_, other)| *other == v4) && address.port() != 0;
        let socket =
            listen(*address, only_v6, max_segment).map_err(|error| naming(name, &error))?;
        let bound = socket.local_addr()?;
        Ok(OpenedSocket { socket, bound, name: (*name).to_owned(), only_v6, max_segment })
    });
    opened.collect()
}

fn naming(name: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot listen on {name}: {error}"))
}

/// Returns a listening socket. ListenerOptions that connections inherit are set here once, not for each connection.
///
/// `joins` says whether a socket is bound to the same address already. The first one binds alone, so that a port of
/// another program is still an error; then it lets the others join.
fn open(
    address: SocketAddr,
    only_v6: bool,
    joins: bool,
    max_segment: u32,
) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    prepare(&SockRef::from(&socket), max_segment)?;
    if joins {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    if !joins {
        socket.set_reuse_port(true)?;
    }
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Turns off the delay of small segments, turns on keepalive, and may set a smaller segment size, which holds in both
/// directions because the peer is told of it.
fn prepare(socket: &SockRef<'_>, max_segment: u32) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    if max_segment > 0 {
        socket.set_tcp_mss(max_segment)?;
    }
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE.0)
        .with_interval(KEEPALIVE.1)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)
}

fn acceptors() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get).min(ACCEPTORS)
}

fn listen(address: SocketAddr, only_v6: bool, max_segment: u32) -> io::Result<TcpListener> {
    let open = |address| open(address, only_v6, false, max_segment);
    let result = open(address);
    let v4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
    let in_use = |error: &io::Error| {
        matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied)
    };
    match result {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && !only_v6 && !in_use(&error) => {
            tracing::info!(%error, "no IPv6: listening on IPv4 only");
            open(v4)
        }
        other => other,
    }
}

#[cfg(test)]
#[path = "listener_tests.rs"]
mod tests;
