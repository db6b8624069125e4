//! The SOCKS5 port: accepts connections within limits, negotiates, and gives them to the table.

use std::{
    collections::HashMap,
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZero,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use futures::FutureExt;
use socket2::{Domain, SockRef, TcpKeepalive, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, lookup_host},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    metrics::{Cause, Phase},
    proxy_header::{Header, HeaderReader},
    socket::Socket,
    socks5::{Action, Code, Handshake},
    table::{Arrival, Table},
    transfer::DstAddr,
};
use crate::redact::Pii;

/// Accept loops for each address, at most; the kernel spreads new connections over them.
const ACCEPTORS: usize = 8;

/// The shortest time between two log lines that say that there are no file descriptors left.
const LOG_PAUSE: Duration = Duration::from_secs(10);

/// Connections the kernel may queue: enough for the burst after a restart.
const BACKLOG: i32 = 4096;

/// The first and the longest pause after a failed accept, such as for want of file descriptors.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Silence after which the kernel asks whether a peer is still there, and how often it then asks. Linux NAT forgets a
/// half-closed connection after 60 s of silence, so the first question and two more come before.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));

/// Unanswered questions after which a peer is gone: a minute of silence in all.
const KEEPALIVE_PROBES: u32 = 3;

/// Connections over the limit that are told so, of one address and in all; more are closed without a word.
const SURPLUS: (usize, usize) = (16, 256);

/// How long a refused client may take to read why, so that a reset does not overtake the reply.
const GOODBYE: Duration = Duration::from_secs(1);

/// How connections are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How long greeting and request may take together.
    pub handshake_timeout: Duration,
    /// Connections in all, until they end; at the limit the kernel's queue fills.
    pub connections: usize,
    /// Connections of one IPv4 address or IPv6 /64; more are refused when they name their transfer.
    pub connections_per_ip: usize,
    /// Whether every connection begins with a PROXY header, whose source is the address that counts.
    pub proxy_protocol: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            connections: 20_480,
            connections_per_ip: 64,
            proxy_protocol: false,
        }
    }
}

/// The bound ports. The accept loops run until the token is cancelled; dropping this does not end them.
#[derive(Debug)]
pub struct Listener {
    gate: Gate,
    local_addrs: Vec<SocketAddr>,
}

impl Listener {
    /// Binds every address (`host:port`; port 0 takes a free one) and starts to accept, on `tasks`, until `soft` is
    /// cancelled. `[::]` takes IPv4 too, and becomes `0.0.0.0` where there is no IPv6.
    ///
    /// # Errors
    /// The first address that cannot be resolved or bound, by name; none is open then.
    pub async fn bind(
        addresses: &[impl AsRef<str>],
        options: Options,
        table: &Table,
        soft: &CancellationToken,
        tasks: &TaskTracker,
    ) -> io::Result<Self> {
        Self::with(addresses, Vec::new(), options, table, soft, tasks).await
    }

    /// [`Listener::bind`]; but if there are sockets that listen already, those are used and nothing is bound.
    ///
    /// # Errors
    /// As [`Listener::bind`].
    pub async fn with(
        addresses: &[impl AsRef<str>],
        inherited: Vec<std::net::TcpListener>,
        options: Options,
        table: &Table,
        soft: &CancellationToken,
        tasks: &TaskTracker,
    ) -> io::Result<Self> {
        let mut listeners = Vec::new();
        let mut local_addrs = Vec::new();
        let bind = inherited.is_empty();
        for socket in inherited {
            socket.set_nonblocking(true)?;
            prepare(&SockRef::from(&socket))?;
            local_addrs.push(socket.local_addr()?);
            // One queue, and a loop for each core.
            for _ in 1..acceptors() {
                listeners.push(TcpListener::from_std(socket.try_clone()?)?);
            }
            listeners.push(TcpListener::from_std(socket)?);
        }
        let mut wanted = Vec::new();
        for name in addresses.iter().map(AsRef::as_ref).filter(|_| bind) {
            let resolved = lookup_host(name).await.map_err(|error| naming(name, &error))?;
            wanted.extend(resolved.map(|address| (name, address)));
        }
        for (name, address) in &wanted {
            let v4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
            let only_v6 = wanted.iter().any(|(_, other)| *other == v4) && address.port() != 0;
            let opened = listen(*address, only_v6).and_then(|first| {
                local_addrs.push(first.local_addr()?);
                listeners.push(first);
                listeners.extend(others(*address, only_v6, local_addrs[local_addrs.len() - 1])?);
                Ok(())
            });
            opened.map_err(|error| naming(name, &error))?;
        }
        let gate = Gate {
            connections: Arc::new(Semaphore::new(options.connections.min(Semaphore::MAX_PERMITS))),
            per_ip: Arc::default(),
            options: Arc::new(RwLock::new(options)),
        };
        for listener in listeners {
            tasks.spawn(accept(listener, gate.clone(), table.clone(), soft.clone(), tasks.clone()));
        }
        Ok(Self { gate, local_addrs })
    }

    /// Other limits, for connections from now on; whether there are PROXY headers stays.
    pub fn set_options(&self, new: Options) {
        let mut options = self.gate.options.write().unwrap_or_else(PoisonError::into_inner);
        let (before, wanted) = (options.connections, new.connections.min(Semaphore::MAX_PERMITS));
        let connections = if wanted >= before {
            self.gate.connections.add_permits(wanted - before);
            wanted
        } else {
            // Places that are taken now cannot be withdrawn: with them the old limit holds.
            before - self.gate.connections.forget_permits(before - wanted)
        };
        *options = Options { connections, proxy_protocol: options.proxy_protocol, ..new };
    }

    /// The addresses that were bound, with their real ports, in the order given.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.local_addrs
    }
}

/// A connection's place in the limits.
#[derive(Debug)]
pub(super) struct Admission {
    _connection: OwnedSemaphorePermit,
    _ip: IpPlace,
}

#[derive(Clone, Debug)]
struct Gate {
    connections: Arc<Semaphore>,
    per_ip: Arc<Mutex<PerIp>>,
    options: Arc<RwLock<Options>>,
}

/// The connections of each address.
#[derive(Debug, Default)]
struct PerIp {
    counts: HashMap<IpAddr, Count>,
    /// Connections over the limit of their address.
    surplus: usize,
}

#[derive(Debug, Default)]
struct Count {
    within: usize,
    surplus: usize,
}

impl Gate {
    fn options(&self) -> Options {
        *self.options.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection, even one that is over the limit and to be refused; none if it is to be closed at once.
    fn admit(&self, ip: IpAddr) -> Option<IpPlace> {
        let key = network(ip);
        let most = self.options().connections_per_ip;
        let mut per_ip = self.per_ip.lock().unwrap_or_else(PoisonError::into_inner);
        let in_all = per_ip.surplus;
        let count = per_ip.counts.entry(key).or_default();
        let within = count.within < most;
        if within {
            count.within += 1;
        } else {
            let (of_one, of_all) = SURPLUS;
            if count.surplus >= of_one || in_all >= of_all {
                if count.within + count.surplus == 0 {
                    per_ip.counts.remove(&key);
                }
                return None;
            }
            count.surplus += 1;
            per_ip.surplus += 1;
        }
        Some(IpPlace { key, within, per_ip: Arc::clone(&self.per_ip) })
    }
}

#[derive(Debug)]
struct IpPlace {
    key: IpAddr,
    /// Whether the address has not too many connections with this one.
    within: bool,
    per_ip: Arc<Mutex<PerIp>>,
}

impl Drop for IpPlace {
    fn drop(&mut self) {
        let mut per_ip = self.per_ip.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.within {
            per_ip.surplus -= 1;
        }
        let Some(count) = per_ip.counts.get_mut(&self.key) else { return };
        if self.within {
            count.within -= 1;
        } else {
            count.surplus -= 1;
        }
        if count.within + count.surplus == 0 {
            per_ip.counts.remove(&self.key);
        }
    }
}

/// What counts as one address: IPv4 as it is, also inside IPv6, and of IPv6 the /64.
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

fn naming(name: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot listen on {name}: {error}"))
}

/// A listening socket. What connections inherit from it is set here once and not for each of them.
///
/// `joins` one that is bound to the same address already. The first of them binds alone, so that a port which another
/// program has is still an error, and then lets the others join.
fn open(address: SocketAddr, only_v6: bool, joins: bool) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    prepare(&SockRef::from(&socket))?;
    if joins {
        share_port(&socket)?;
    }
    socket.bind(&address.into())?;
    if !joins {
        share_port(&socket)?;
    }
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// SO_REUSEPORT, where it spreads connections over the sockets.
fn share_port(socket: &socket2::Socket) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    socket.set_reuse_port(true)?;
    let _elsewhere = socket;
    Ok(())
}

/// No delay of small segments, and a look at silent peers.
fn prepare(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE.0)
        .with_interval(KEEPALIVE.1)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)
}

/// The other sockets of an address whose first is bound to `bound`: one for each further core.
fn others(wanted: SocketAddr, only_v6: bool, bound: SocketAddr) -> io::Result<Vec<TcpListener>> {
    let more = if cfg!(target_os = "linux") { acceptors() - 1 } else { 0 };
    // `[::]` may have become `0.0.0.0`.
    let only_v6 = only_v6 && wanted.is_ipv6();
    (0..more).map(|_| open(bound, only_v6, true)).collect()
}

fn acceptors() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get).min(ACCEPTORS)
}

fn listen(address: SocketAddr, only_v6: bool) -> io::Result<TcpListener> {
    let open = |address| open(address, only_v6, false);
    let result = open(address);
    let v4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
    let in_use = |error: &io::Error| {
        matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied)
    };
    match result {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && !only_v6 && !in_use(&error) => {
            tracing::info!(%error, "no IPv6, listening on IPv4 only");
            open(v4)
        }
        other => other,
    }
}

async fn accept(
    listener: TcpListener,
    gate: Gate,
    table: Table,
    soft: CancellationToken,
    tasks: TaskTracker,
) {
    let mut backoff = BACKOFF.0;
    let mut spare = Spare::new();
    loop {
        match soft.run_until_cancelled(listener.accept()).await {
            None => return,
            Some(Ok((stream, peer))) => {
                backoff = BACKOFF.0;
                // The place comes second: an idle address must not hold one while another has clients. So at the limit
                // each loop keeps one accepted connection waiting, and the others wait in the kernel.
                let place = Arc::clone(&gate.connections).acquire_owned();
                let Some(Ok(permit)) = soft.run_until_cancelled(place).await else { return };
                // Behind a load balancer the peer's own address says nothing.
                let place = match gate.options().proxy_protocol {
                    true => None,
                    false => match gate.admit(peer.ip()) {
                        Some(place) => Some(place),
                        None => {
                            too_many(&table, peer.ip());
                            continue;
                        }
                    },
                };
                let (gate, table) = (gate.clone(), table.clone());
                let serve = serve(stream, peer.ip(), permit, place, gate, table);
                let soft = soft.clone();
                tasks.spawn(async move {
                    if let Some(Err(error)) = soft.run_until_cancelled(serve).await {
                        tracing::debug!(%error, "no connection was made");
                    }
                });
            }
            Some(Err(error)) if is_of_one_connection(&error) => {
                tracing::debug!(%error, "a connection broke before it was accepted");
            }
            Some(Err(error)) => {
                if matches!(error.raw_os_error(), Some(code) if NO_DESCRIPTORS.contains(&code)) {
                    let refused = spare.refuse(&listener);
                    table.plane().metrics().refused(Cause::Descriptors);
                    spare.log(&error);
                    if refused {
                        // Not at once: who is refused may come again at once.
                        tokio::task::yield_now().await;
                        continue;
                    }
                } else {
                    tracing::warn!(%error, ?backoff, "cannot accept connections");
                }
                if soft.run_until_cancelled(tokio::time::sleep(backoff)).await.is_none() {
                    return;
                }
                backoff = (backoff * 2).min(BACKOFF.1);
            }
        }
    }
}

/// Errors that accept(2) reports about a connection, not about the listening socket.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

/// ENFILE and EMFILE, the same on every system that this runs on.
const NO_DESCRIPTORS: [i32; 2] = [23, 24];

/// A file descriptor kept for the moment when there is no other, so that a client is refused and does not wait.
struct Spare {
    file: Option<File>,
    logged_at: Option<Instant>,
    /// Since the last log line.
    refused: u64,
}

impl Spare {
    fn new() -> Self {
        Self { file: File::open("/dev/null").ok(), logged_at: None, refused: 0 }
    }

    /// Closes the next connection that waits; false if that could not be done.
    fn refuse(&mut self, listener: &TcpListener) -> bool {
        self.refused += 1;
        let had_one = self.file.take().is_some();
        let accepted = had_one && matches!(listener.accept().now_or_never(), Some(Ok(_)));
        self.file = File::open("/dev/null").ok();
        accepted
    }

    fn log(&mut self, error: &io::Error) {
        if self.logged_at.is_some_and(|at| at.elapsed() < LOG_PAUSE) {
            return;
        }
        self.logged_at = Some(Instant::now());
        tracing::warn!(
            %error,
            refused = std::mem::take(&mut self.refused),
            "cannot accept connections: raise the limit of open files, or lower limits.sessions"
        );
    }
}

fn too_many(table: &Table, ip: IpAddr) {
    table.plane().metrics().refused(Cause::AddressLimit);
    tracing::debug!(ip = %Pii(ip), "too many connections of this address");
}

/// `ip` is the address that connected; `place` the connection's place in the limits, if it is known whose it is.
async fn serve(
    mut stream: TcpStream,
    ip: IpAddr,
    permit: OwnedSemaphorePermit,
    place: Option<IpPlace>,
    gate: Gate,
    table: Table,
) -> io::Result<()> {
    #[cfg(not(target_os = "linux"))]
    prepare(&SockRef::from(&stream))?;

    let mut handshake = Handshake::new();
    let negotiation = async {
        let place = match place {
            Some(place) => place,
            None => {
                let Some(header) = read_header(&mut stream, &table).await? else {
                    return Ok(None);
                };
                // A load balancer that speaks for itself, or for somebody it cannot name.
                let ip = header.source.map_or(ip, |source| source.ip());
                let Some(place) = gate.admit(ip) else {
                    too_many(&table, ip);
                    return Ok(None);
                };
                handshake.handle_bytes(&header.rest);
                place
            }
        };
        let asked = negotiate(&mut stream, &mut handshake).await?;
        Ok::<_, io::Error>(Some((place, asked)))
    };
    let (place, asked) = match timeout(gate.options().handshake_timeout, negotiation).await {
        Err(_) => {
            table.plane().metrics().timed_out(Phase::Handshake, 1);
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the handshake took too long"));
        }
        Ok(Ok(Some(done))) => done,
        Ok(Ok(None)) => return Ok(()),
        Ok(Err(error)) => {
            table.plane().metrics().refused(Cause::Handshake);
            return Err(error);
        }
    };
    let hash = match asked {
        Asked::Nothing => return Ok(()),
        Asked::Wrong => {
            table.plane().metrics().refused(Cause::Handshake);
            return say_goodbye(&mut stream).await;
        }
        Asked::Transfer(hash) => hash,
    };
    let success = handshake.reply(Code::Succeeded);
    let refusal = handshake.reply(Code::NotAllowed);
    if !place.within {
        too_many(&table, place.key);
        stream.write_all(&refusal).await?;
        return say_goodbye(&mut stream).await;
    }
    let admission = Admission { _connection: permit, _ip: place };
    let socket = Socket::accepted(stream, handshake.into_rest(), admission);
    match table.arrive(hash, socket, &success) {
        Arrival::Taken => Ok(()),
        Arrival::Gone(error) => Err(error),
        Arrival::Refused(mut socket) => {
            socket.write_all(&refusal).await?;
            say_goodbye(&mut socket).await
        }
    }
}

/// Reads what the load balancer says of the connection; what follows it may be read along. `None` if the connection ended
/// before its first byte, as those of health checks do.
async fn read_header(stream: &mut TcpStream, table: &Table) -> io::Result<Option<Header>> {
    let mut reader = HeaderReader::new();
    let mut buffer = [0; 256];
    let mut untouched = true;
    loop {
        let n = match stream.read(&mut buffer).await {
            Ok(0) if untouched => return Ok(None),
            Err(error) if untouched && is_of_one_connection(&error) => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            other => other?,
        };
        untouched = false;
        match reader.handle_bytes(&buffer[..n]) {
            Ok(Some(header)) => return Ok(Some(header)),
            Ok(None) => {}
            Err(error) => {
                table.plane().metrics().refused(Cause::ProxyHeader);
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
    }
}

/// What a client wanted.
enum Asked {
    /// It left without a word, as health checks do.
    Nothing,
    /// Something that is not served here; it was told so.
    Wrong,
    /// To take part in a transfer.
    Transfer(DstAddr),
}

/// Reads greeting and request, and perhaps the first bytes of the stream, which the handshake keeps.
async fn negotiate(stream: &mut TcpStream, handshake: &mut Handshake) -> io::Result<Asked> {
    // All that may come before the reply to it, so that one read gets it.
    let mut buffer = [0; 512];
    loop {
        while let Some(action) = handshake.poll_action() {
            match action {
                Action::Close => return Ok(Asked::Wrong),
                Action::Connect(hash) => return Ok(Asked::Transfer(hash)),
                Action::Write(bytes) => stream.write_all(&bytes).await?,
            }
        }
        match stream.read(&mut buffer).await {
            Ok(0) if handshake.is_untouched() => return Ok(Asked::Nothing),
            Err(error) if handshake.is_untouched() && is_of_one_connection(&error) => {
                return Ok(Asked::Nothing);
            }
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => handshake.handle_bytes(&buffer[..n]),
            Err(error) => return Err(error),
        }
    }
}

/// Ends the connection so that the last reply arrives: what the client still sends is read, for a while.
async fn say_goodbye(
    stream: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin),
) -> io::Result<()> {
    stream.shutdown().await?;
    let mut rest = stream.take(64 * 1024);
    let _ = timeout(GOODBYE, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
    Ok(())
}

#[cfg(test)]
#[path = "listener_tests.rs"]
mod tests;
