//! Checks that clients reach the SOCKS5 port under the announced addresses, and shows their source addresses.

use std::{
    collections::BTreeSet,
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, lookup_host},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};

use crate::{
    config::Config,
    relay::{listener::open_all, origins, proxy_header::HeaderReader},
};

/// How long a connection and its first bytes may take.
const WAIT: Duration = Duration::from_secs(5);
/// The most addresses of one name that are tried.
const ADDRESSES: usize = 8;
/// The most connections of others that are read at once: the port is open during this check.
const STRANGERS: usize = 256;
/// The mark of our own connections.
type ConnectionMark = [u8; 32];

/// A connection that has arrived at a listening address.
struct Arrived {
    nonce: ConnectionMark,
    /// The address that counts for it.
    source: SocketAddr,
    /// Whether it lacks the header that a load balancer must send.
    bare: bool,
}

/// Reports faults of the announced addresses that the addresses themselves show.
///
/// # Errors
/// Those of writing.
pub(crate) fn literals(config: &Config, out: &mut impl Write) -> io::Result<()> {
    if config.socks5.listen.is_empty() {
        return Ok(());
    }
    for (host, port) in &config.socks5.advertise {
        if is_own(host) {
            writeln!(
                out,
                "warning: socks5.advertise: {host}:{port} is an address within this machine: clients on other machines \
                 cannot connect to it and use slow in-band streams"
            )?;
        }
    }
    let is_name = |(host, _): &(String, u16)| host.parse::<IpAddr>().is_err();
    if config.socks5.advertise.iter().any(is_name) {
        return Ok(());
    }
    for (host, port) in &config.socks5.advertise {
        if matches!(host.parse(), Ok(IpAddr::V4(_))) && !is_own(host) {
            writeln!(
                out,
                "warning: socks5.advertise: {host}:{port} is an IPv4 address: most clients on IPv6-only networks, as of \
                 mobile phones, cannot reach it (NAT64 needs a name) and use slow in-band streams; give a name, which is \
                 the default"
            )?;
        }
    }
    Ok(())
}

/// Returns whether an announced host is this machine itself, wherever its name is looked up.
fn is_own(host: &str) -> bool {
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    // RFC 6761, 6.3: each machine takes these names for itself.
    name == "localhost" || name.ends_with(".localhost") || host.parse().is_ok_and(is_loopback)
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// Returns a warning about a name that means this machine only here. Debian's installer writes such a line for the
/// machine's own name into /etc/hosts.
fn only_here(host: &str, told: &str, found: &[SocketAddr]) -> Option<String> {
    let loopback = found.iter().find(|address| is_loopback(address.ip()))?;
    (!is_own(host)).then(|| {
        format!(
            "warning: {told} resolves to {}, an address within this machine, so this check says nothing about clients on \
             other machines, which ask DNS: remove the name from /etc/hosts and check again",
            loopback.ip()
        )
    })
}

/// Connects to every announced address, as clients would. Meanwhile it listens at the configured addresses, to see what
/// arrives.
///
/// # Errors
/// Those of writing.
pub(super) async fn look(config: &Config, out: &mut impl Write) -> io::Result<()> {
    let (arrivals, mut arrived) = mpsc::channel(STRANGERS);
    let mut tasks = JoinSet::new();
    // An earlier check has found them free; another program may have taken one since.
    let opened = open_all(&config.socks5.listen, config.socks5.max_segment).await;
    for socket in opened.into_iter().flatten() {
        let listener = TcpListener::from_std(socket.socket)?;
        tasks.spawn(receive(listener, config.socks5.proxy_protocol, arrivals.clone()));
    }
    if tasks.is_empty() {
        return Ok(());
    }
    let cure =
        "check [socks5] advertise, the name's DNS record, the firewall and the router's forwarding";
    let mut shared = BTreeSet::new();
    for (host, port) in &config.socks5.advertise {
        let told = format!("{host}:{port}, which clients are told,");
        let mut found: Vec<SocketAddr> =
            match timeout(WAIT, lookup_host((host.as_str(), *port))).await {
                Ok(Ok(found)) => found.take(ADDRESSES).collect(),
                Ok(Err(error)) => {
                    writeln!(out, "warning: {told} cannot be reached from here: {error}; {cure}")?;
                    continue;
                }
                Err(_) => Vec::new(),
            };
        if let Some(warning) = only_here(host, &told, &found) {
            writeln!(out, "{warning}")?;
            found.retain(|address| !is_loopback(address.ip()));
            if found.is_empty() {
                continue;
            }
        }
        let mut leads = false;
        for address in &found {
            let of_it = if found.len() > 1 { format!(" at {address}") } else { String::new() };
            match connect(*address, &mut arrived).await {
                Ok(Some((_, Arrived { bare: true, .. }))) => writeln!(
                    out,
                    "warning: {told} leads here{of_it}, but without the PROXY header that socks5.proxy_protocol needs, so \
                     all users would be refused: let the load balancer send it, or switch the setting off"
                )?,
                Ok(Some((from, Arrived { source, .. }))) => {
                    leads = true;
                    let source = source.ip().to_canonical();
                    if source != from.ip().to_canonical() && origins::is_private(source) {
                        shared.insert((*address, source));
                    }
                }
                Ok(None) => writeln!(
                    out,
                    "warning: {told} does not lead here{of_it} (behind a router that may still be right for others): {cure}"
                )?,
                Err(error) => writeln!(
                    out,
                    "warning: {told} cannot be reached from here{of_it}: {error}; {cure}"
                )?,
            }
        }
        if found.is_empty() {
            writeln!(out, "warning: {told} does not resolve to an address: {cure}")?;
        } else if leads {
            writeln!(out, "{told} leads here")?;
        }
    }
    for (address, source) in shared {
        writeln!(
            out,
            "warning: a connection to {address} arrives here from {source}, which is not the address that it was made \
             from: {}",
            origins::CURE
        )?;
    }
    Ok(())
}

/// Connects and waits until the connection arrives; `None` if it arrives elsewhere.
async fn connect(
    address: SocketAddr,
    arrived: &mut mpsc::Receiver<Arrived>,
) -> io::Result<Option<(SocketAddr, Arrived)>> {
    let nonce: ConnectionMark = rand::random();
    let mut stream = timeout(WAIT, TcpStream::connect(address)).await??;
    let from = stream.local_addr()?;
    // A connection that leads elsewhere may be closed at once.
    let _ = stream.write_all(&nonce).await;
    let ours = async {
        loop {
            match arrived.recv().await {
                Some(arrived) if arrived.nonce == nonce => return Some((from, arrived)),
                Some(_) => {}
                None => return None,
            }
        }
    };
    Ok(timeout(WAIT, ours).await.ok().flatten())
}

/// Reads the connections that arrive at a listening address.
async fn receive(listener: TcpListener, proxy_protocol: bool, arrivals: mpsc::Sender<Arrived>) {
    let mut strangers = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, peer)) = accepted else { return };
                if strangers.len() < STRANGERS {
                    strangers.spawn(timeout(WAIT, read(stream, peer, proxy_protocol, arrivals.clone())));
                }
            }
            Some(_) = strangers.join_next() => {}
        }
    }
}

/// Reads a PROXY header, if one is required, and a possible nonce.
async fn read(
    mut stream: TcpStream,
    peer: SocketAddr,
    proxy_protocol: bool,
    arrivals: mpsc::Sender<Arrived>,
) {
    let mut header = proxy_protocol.then(HeaderReader::new);
    let (mut bytes, mut source, mut bare) = (Vec::new(), peer, false);
    let mut buffer = [0; 256];
    while bytes.len() < size_of::<ConnectionMark>() {
        let read = match stream.read(&mut buffer).await {
            Ok(n) if n > 0 => &buffer[..n],
            _ => return,
        };
        match header.as_mut().map(|header| header.handle_bytes(read)) {
            None => bytes.extend_from_slice(read),
            Some(Ok(None)) => {}
            Some(Ok(Some(found))) => {
                source = found.source.unwrap_or(peer);
                bytes = found.rest;
                header = None;
            }
            Some(Err(_)) => {
                (header, bare) = (None, true);
                bytes.extend_from_slice(read);
            }
        }
    }
    if let Ok(nonce) = bytes[..size_of::<ConnectionMark>()].try_into() {
        let _ = arrivals.send(Arrived { nonce, source, bare }).await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const SMALL: &str = "[component]\njid = 'xtls.example.org'\nsecret = 's'\n";

    fn config(socks5: &str) -> Config {
        Config::parse("t.toml", &format!("{SMALL}[socks5]\n{socks5}\n"), []).unwrap().0
    }

    fn free() -> u16 {
        std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
    }

    #[test]
    fn addresses_that_some_or_all_clients_cannot_reach_are_warned_of() {
        let (ipv4, own) = ("is an IPv4 address", "is an address within this machine");
        for (advertise, warned) in [
            ("['192.0.2.1:7625']", Some(ipv4)),
            ("['192.0.2.1:7625', '[2001:db8::1]:7625']", Some(ipv4)),
            ("['192.0.2.1:7625', 'proxy.example.org:7625']", None),
            ("['proxy.example.org:7625']", None),
            ("['[2001:db8::1]:7625']", None),
            ("['127.0.0.1:7625']", Some(own)),
            ("['[::1]:7625', 'proxy.example.org:7625']", Some(own)),
            ("['localhost:7625']", Some(own)),
            ("['LocalHost.:7625']", Some(own)),
            ("['proxy.localhost:7625']", Some(own)),
        ] {
            let mut out = Vec::new();
            literals(&config(&format!("advertise = {advertise}")), &mut out).unwrap();
            let said = String::from_utf8(out).unwrap();
            assert_eq!(said.lines().count(), usize::from(warned.is_some()), "{advertise}: {said}");
            assert!(said.contains(warned.unwrap_or_default()), "{advertise}: {said}");
        }
        let mut out = Vec::new();
        literals(&config(""), &mut out).unwrap();
        assert!(out.is_empty(), "the default is a name");
    }

    #[test]
    fn a_name_that_means_this_machine_only_here_is_warned_of() {
        let warns = |host: &str, found: &[&str]| {
            let found: Vec<SocketAddr> = found.iter().map(|found| found.parse().unwrap()).collect();
            only_here(host, "TOLD", &found).is_some_and(|said| said.contains("/etc/hosts"))
        };
        assert!(warns("proxy.example.org", &["127.0.1.1:1"]));
        assert!(warns("proxy.example.org", &["192.0.2.1:1", "[::1]:1"]));
        assert!(warns("proxy.example.org", &["[::ffff:127.0.0.1]:1"]));
        assert!(!warns("proxy.example.org", &["192.0.2.1:1", "[2001:db8::1]:1"]));
        assert!(!warns("proxy.example.org", &[]));
        assert!(
            !warns("127.0.0.1", &["127.0.0.1:1"]),
            "the address itself is warned of without a connection"
        );
        assert!(!warns("localhost", &["127.0.0.1:1"]));
    }

    /// Returns the report about a port behind a forwarder that puts `before` in front and connects from `from`.
    async fn behind(before: &'static [u8], from: Ipv4Addr, proxy_protocol: bool) -> String {
        let (inner, outer) = (free(), free());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, outer)).await.unwrap();
        let forwarder = tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let socket = tokio::net::TcpSocket::new_v4().unwrap();
                socket.bind((from, 0).into()).unwrap();
                let mut server = socket.connect((Ipv4Addr::LOCALHOST, inner).into()).await.unwrap();
                server.write_all(before).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            }
        });
        let text = format!(
            "listen = ['127.0.0.1:{inner}']\nadvertise = ['127.0.0.1:{outer}']\nproxy_protocol = {proxy_protocol}"
        );
        let mut out = Vec::new();
        look(&config(&text), &mut out).await.unwrap();
        forwarder.abort();
        String::from_utf8(out).unwrap()
    }

    #[tokio::test]
    async fn a_forwarder_that_hides_addresses_is_told_with_its_cure() {
        let told = behind(b"", Ipv4Addr::new(127, 0, 0, 9), false).await;
        assert!(told.contains("leads here\n"), "{told}");
        assert!(
            told.contains("arrives here from 127.0.0.9") && told.contains(origins::CURE),
            "{told}"
        );
        let told = behind(b"", Ipv4Addr::LOCALHOST, false).await;
        assert!(told.contains("leads here\n") && !told.contains("warning"), "{told}");
    }

    #[tokio::test]
    async fn a_load_balancer_s_header_is_read_and_missed() {
        // The header names a client elsewhere, so its address is not ours, and public.
        let header = b"PROXY TCP4 192.0.2.7 192.0.2.8 1 2\r\n";
        let told = behind(header, Ipv4Addr::LOCALHOST, true).await;
        assert!(told.contains("leads here\n") && !told.contains("warning"), "{told}");
        let told = behind(b"", Ipv4Addr::LOCALHOST, true).await;
        assert!(
            told.contains("without the PROXY header") && !told.contains("leads here\n"),
            "{told}"
        );
    }

    #[tokio::test]
    async fn an_address_that_leads_elsewhere_is_told() {
        let elsewhere = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = elsewhere.local_addr().unwrap().port();
        tokio::spawn(async move { elsewhere.accept().await });
        let text = format!(
            "listen = ['127.0.0.1:{}']\nadvertise = ['127.0.0.1:{port}', '127.0.0.1:{}']",
            free(),
            free()
        );
        let mut out = Vec::new();
        look(&config(&text), &mut out).await.unwrap();
        let told = String::from_utf8(out).unwrap();
        assert!(
            told.contains("does not lead here (") && told.contains("cannot be reached"),
            "{told}"
        );
    }
}
