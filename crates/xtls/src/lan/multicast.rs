//! The interfaces of this machine and sockets of multicast DNS on them (RFC 6762, 3 and 11).
//!
//! Each interface has its own sockets, bound to the groups. So unicast messages, perhaps from far away, do not come in, and
//! answers to another program of this machine are not taken from it.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    path::Path,
    sync::Arc,
    time::Duration,
};

use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};
use tokio::{
    net::UdpSocket,
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::sleep,
};

const PORT: u16 = 5353;
const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
/// How large a message is at most (RFC 6762, 17).
const LARGEST: usize = 9000;
/// So many messages wait to be read; more are lost, as they may be on any network.
const WAITING: usize = 64;
/// On so many interfaces we are at most: each costs a thread and some sockets.
const MOST: usize = 64;
/// The pause after a socket's error.
const PAUSE: Duration = Duration::from_secs(1);

/// An interface and its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) name: String,
    index: u32,
    addresses: Vec<IpAddr>,
}

/// Returns the addresses of this machine.
pub(super) fn own_addresses() -> Vec<IpAddr> {
    if_addrs::get_if_addrs().unwrap_or_default().iter().map(if_addrs::Interface::ip).collect()
}

/// Returns the interfaces of these names that are up; if there are no names, all but loopback and the ports of bridges.
pub(super) fn interfaces(names: &[String]) -> io::Result<Vec<Interface>> {
    let mut found: BTreeMap<u32, Interface> = BTreeMap::new();
    for address in if_addrs::get_if_addrs()? {
        let Some(index) = address.index else { continue };
        let is_wanted = if names.is_empty() {
            !address.is_loopback() && !is_port_of_a_bridge(&address.name)
        } else {
            names.contains(&address.name)
        };
        if !is_wanted || !address.is_oper_up() {
            continue;
        }
        let ip = address.ip();
        let interface = found.entry(index).or_insert(Interface {
            name: address.name,
            index,
            addresses: Vec::new(),
        });
        interface.addresses.push(ip);
    }
    if found.len() > MOST {
        tracing::debug!(count = found.len(), "too many interfaces: the first are used");
    }
    Ok(found.into_values().take(MOST).collect())
}

/// Tells whether an interface is a port of a bridge, whose messages are those of the bridge.
fn is_port_of_a_bridge(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).join("brport").exists()
}

/// Sockets on some interfaces, and what comes in on them.
#[derive(Debug)]
pub(super) struct MulticastGroup {
    interfaces: Vec<(Interface, Vec<Port>)>,
    readers: JoinSet<()>,
    sender: mpsc::Sender<Vec<u8>>,
    messages: mpsc::Receiver<Vec<u8>>,
}

#[derive(Debug)]
struct Port {
    socket: Arc<UdpSocket>,
    group: SocketAddr,
    reader: AbortHandle,
}

impl Drop for Port {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl MulticastGroup {
    pub(super) fn new() -> Self {
        let (sender, messages) = mpsc::channel(WAITING);
        Self { interfaces: Vec::new(), readers: JoinSet::new(), sender, messages }
    }

    /// Returns the interfaces in use.
    pub(super) fn interfaces(&self) -> impl Iterator<Item = &Interface> {
        self.interfaces.iter().map(|(interface, _)| interface)
    }

    /// Changes to these interfaces; returns true if there are others to speak on than before. An interface that could not be
    /// opened is tried again at each call.
    ///
    /// # Errors
    /// If there are interfaces, and no socket could be opened on any.
    pub(super) fn join(&mut self, interfaces: Vec<Interface>) -> io::Result<bool> {
        let mut changed = !self.interfaces().eq(&interfaces);
        if !changed && self.interfaces.iter().all(|(_, ports)| !ports.is_empty()) {
            return Ok(false);
        }
        let mut before = std::mem::take(&mut self.interfaces);
        let mut failed = None;
        for interface in interfaces {
            let known = before.iter().position(|(known, _)| *known == interface);
            let mut ports = known.map_or_else(Vec::new, |known| before.swap_remove(known).1);
            if ports.is_empty() {
                ports = self.open(&interface).unwrap_or_else(|error| {
                    tracing::debug!(%error, interface = interface.name, "no multicast DNS");
                    failed = Some(error);
                    Vec::new()
                });
                changed |= !ports.is_empty();
            }
            self.interfaces.push((interface, ports));
        }
        // Readers that were stopped.
        while self.readers.try_join_next().is_some() {}
        match failed {
            Some(error) if self.interfaces.iter().all(|(_, ports)| ports.is_empty()) => Err(error),
            _ => Ok(changed),
        }
    }

    /// Sends a message on all interfaces. What an interface refuses is lost, as it may be on any network.
    pub(super) async fn send(&self, message: &[u8]) {
        for port in self.interfaces.iter().flat_map(|(_, ports)| ports) {
            if let Err(error) = port.socket.send_to(message, port.group).await {
                tracing::debug!(%error, "a message of multicast DNS was not sent");
            }
        }
    }

    /// Returns the next message. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Vec<u8>> {
        self.messages.recv().await
    }

    fn open(&mut self, interface: &Interface) -> io::Result<Vec<Port>> {
        let index = interface.index;
        let mut ports = Vec::new();
        let v4 = interface.addresses.iter().find_map(|ip| match ip {
            IpAddr::V4(ip) => Some(*ip),
            IpAddr::V6(_) => None,
        });
        let mut failed = None;
        if let Some(address) = v4 {
            match socket_v4(index, address) {
                Ok(socket) => ports.push(self.port(socket, (GROUP_V4, PORT).into())),
                Err(error) => failed = Some(error),
            }
        }
        if interface.addresses.iter().any(IpAddr::is_ipv6) {
            let group = SocketAddrV6::new(GROUP_V6, PORT, 0, index).into();
            match socket_v6(index, group) {
                Ok(socket) => ports.push(self.port(socket, group)),
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) if ports.is_empty() => Err(error),
            _ => Ok(ports),
        }
    }

    fn port(&mut self, socket: UdpSocket, group: SocketAddr) -> Port {
        let socket = Arc::new(socket);
        let reader = self.readers.spawn(read(Arc::clone(&socket), self.sender.clone()));
        Port { socket, group, reader }
    }
}

async fn read(socket: Arc<UdpSocket>, messages: mpsc::Sender<Vec<u8>>) {
    let mut buffer = vec![0; LARGEST];
    loop {
        match socket.recv(&mut buffer).await {
            Ok(count) => {
                let _ = messages.try_send(buffer.get(..count).unwrap_or_default().to_vec());
            }
            Err(error) => {
                tracing::debug!(%error, "multicast DNS");
                sleep(PAUSE).await;
            }
        }
    }
}

fn socket_v4(index: u32, address: Ipv4Addr) -> io::Result<UdpSocket> {
    let socket = shared_socket(Domain::IPV4)?;
    // Else the groups that other programs have joined come in too.
    socket.set_multicast_all_v4(false)?;
    socket.bind(&SocketAddr::from((GROUP_V4, PORT)).into())?;
    socket.join_multicast_v4_n(&GROUP_V4, &InterfaceIndexOrAddress::Index(index))?;
    socket.set_multicast_if_v4(&address)?;
    socket.set_multicast_ttl_v4(255)?;
    UdpSocket::from_std(socket.into())
}

fn socket_v6(index: u32, group: SocketAddr) -> io::Result<UdpSocket> {
    let socket = shared_socket(Domain::IPV6)?;
    socket.set_only_v6(true)?;
    socket.set_multicast_all_v6(false)?;
    socket.bind(&group.into())?;
    socket.join_multicast_v6(&GROUP_V6, index)?;
    socket.set_multicast_if_v6(index)?;
    socket.set_multicast_hops_v6(255)?;
    UdpSocket::from_std(socket.into())
}

/// Creates a socket that shares its port with the machine's own responder and other programs.
fn shared_socket(domain: Domain) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
