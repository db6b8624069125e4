//! Which of this machine's addresses are offered to a peer, and which of the peer's are dialled.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use if_addrs::{IfAddr, Interface};

/// The most addresses that are offered, and that are taken of a peer.
const MOST: usize = 16;
/// Ports below are those of services. No side listens there, so no peer can have them dialled.
const FIRST_PORT: u16 = 1024;
/// The beginnings of the names of interfaces between this machine and its own containers and virtual machines.
const OWN_NETWORKS: [&str; 13] = [
    "docker", "br-", "virbr", "veth", "cni", "podman", "lxc", "lxdbr", "flannel", "cali", "vmnet",
    "vboxnet", "kube",
];

/// Flags of an IPv6 address (`linux/if_addr.h`).
const TEMPORARY: u8 = 0x01;
const DAD_FAILED: u8 = 0x08;
const DEPRECATED: u8 = 0x20;
const TENTATIVE: u8 = 0x40;

/// Where an address comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CandidateKind {
    /// An interface has it.
    Host,
    /// A server sees it, behind a NAT. With the port 0, the NAT takes another port for each peer.
    ServerReflexive,
}

/// An address at which a side may be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// The address, in the family in which it is dialled.
    pub(crate) address: SocketAddr,
    /// Where it comes from.
    pub(crate) kind: CandidateKind,
}

/// Which addresses an attempt uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Those that other machines can reach.
    Network,
    /// Our own and the peer's on a link that both are connected by already.
    Link { own: SocketAddr, peer: SocketAddr },
    /// Those of this machine only, for tests.
    #[cfg(test)]
    Loopback,
}

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Own {
    interface: String,
    ip: IpAddr,
    is_up: bool,
    /// The flags of an IPv6 address; 0 where they are not known.
    flags: u8,
}

/// Returns all addresses of this machine.
pub(crate) fn own() -> Vec<IpAddr> {
    if_addrs::get_if_addrs().unwrap_or_default().iter().map(Interface::ip).collect()
}

/// Returns the addresses of interfaces that are up, and of these the ones that lead to other machines; `None` if the system does not
/// list them.
pub(crate) fn up() -> Option<[BTreeSet<IpAddr>; 2]> {
    let interfaces = if_addrs::get_if_addrs().ok()?;
    let up = || interfaces.iter().filter(|of| of.is_oper_up());
    let outer = up().filter(|of| !is_inner(&of.name));
    Some([up().map(Interface::ip).collect(), outer.map(Interface::ip).collect()])
}

/// Returns whether an interface leads to this machine's own containers or virtual machines.
fn is_inner(interface: &str) -> bool {
    OWN_NETWORKS.iter().any(|name| interface.starts_with(name))
}

/// Returns the addresses of this machine that a peer may be told, IPv6 first.
pub(crate) fn offered(scope: Scope) -> Vec<IpAddr> {
    match scope {
        Scope::Network => {
            let flags = fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
            let interfaces = if_addrs::get_if_addrs().unwrap_or_else(|error| {
                tracing::debug!(%error, "cannot list the interfaces");
                Vec::new()
            });
            let own: Vec<Own> = interfaces.iter().map(|of| own_address(of, &flags)).collect();
            choose(&own)
        }
        Scope::Link { own, .. } => vec![own.ip()],
        #[cfg(test)]
        Scope::Loopback => vec![Ipv6Addr::LOCALHOST.into(), std::net::Ipv4Addr::LOCALHOST.into()],
    }
}

fn own_address(interface: &Interface, flags: &str) -> Own {
    let flags = match &interface.addr {
        IfAddr::V4(_) => 0,
        IfAddr::V6(address) => flags_of(address.ip, &interface.name, flags),
    };
    Own {
        interface: interface.name.clone(),
        ip: interface.ip(),
        is_up: interface.is_oper_up(),
        flags,
    }
}

/// Finds the flags of an address in the text of `/proc/net/if_inet6`, a line for each: address, index of the interface, length
/// of the prefix, scope, flags (all hexadecimal), name of the interface.
fn flags_of(address: Ipv6Addr, interface: &str, text: &str) -> u8 {
    let wanted = format!("{:032x}", address.to_bits());
    text.lines()
        .find_map(|line| {
            let mut words = line.split_whitespace();
            let (found, flags) = (words.next()?, words.nth(3)?);
            let is_it = found == wanted && words.next() == Some(interface);
            is_it.then(|| u8::from_str_radix(flags, 16).ok())?
        })
        .unwrap_or_default()
}

/// Chooses what a peer may be told. Of the addresses that one network gives, the temporary ones (RFC 8981) stand for the
/// lasting ones, which would tell this machine from others for years.
fn choose(own: &[Own]) -> Vec<IpAddr> {
    let is_temporary = |of: &Own| of.flags & TEMPORARY != 0;
    let usable: Vec<&Own> = own
        .iter()
        .filter(|of| of.is_up && of.flags & (DAD_FAILED | DEPRECATED | TENTATIVE) == 0)
        .filter(|of| !is_inner(&of.interface))
        .filter(|of| is_usable(of.ip))
        .collect();
    let network = |ip: IpAddr| match ip {
        IpAddr::V6(ip) => Some(ip.to_bits() >> 64),
        IpAddr::V4(_) => None,
    };
    let has_stand_in = |of: &Own| {
        of.ip.is_ipv6()
            && !is_temporary(of)
            && usable.iter().any(|other| {
                is_temporary(other)
                    && other.interface == of.interface
                    && network(other.ip) == network(of.ip)
            })
    };
    let mut chosen: Vec<IpAddr> = Vec::new();
    for of in usable.iter().filter(|of| !has_stand_in(of)) {
        if !chosen.contains(&of.ip) {
            chosen.push(of.ip);
        }
    }
    chosen.sort_by_key(IpAddr::is_ipv4);
    chosen.truncate(MOST);
    chosen
}

/// Returns whether another machine may have this address.
pub(crate) fn is_usable(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let first = ip.octets()[0];
            // 240/4 has never been given out; 255.255.255.255 is in it.
            first != 0
                && first < 240
                && !ip.is_loopback()
                && !ip.is_link_local()
                && !ip.is_multicast()
        }
        IpAddr::V6(ip) => {
            let [a, b, ..] = ip.segments();
            let is_v4_inside = ip.to_bits() >> 32 == 0
                || ip.to_ipv4_mapped().is_some()
                // NAT64 (RFC 6052), 6to4 (RFC 3056) and Teredo (RFC 4380): all lead to an IPv4 address.
                || (a, b) == (0x64, 0xff9b)
                || a == 0x2002
                || (a, b) == (0x2001, 0);
            !is_v4_inside && !ip.is_unicast_link_local() && !ip.is_multicast()
        }
    }
}

/// Returns whether an address is one of this machine's own networks, as far as the address shows: a private one, or close to one of its
/// own. `own` has the addresses of this machine.
pub(crate) fn is_nearby(ip: IpAddr, own: &[IpAddr]) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let network = |ip: std::net::Ipv4Addr| ip.to_bits() >> 8;
            // 100.64/10 is between a provider and its customers (RFC 6598).
            let is_shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
            let is_close = |own: &IpAddr| match own {
                IpAddr::V4(own) => network(*own) == network(ip),
                IpAddr::V6(_) => false,
            };
            ip.is_private() || is_shared || own.iter().any(is_close)
        }
        IpAddr::V6(ip) => {
            let network = |ip: Ipv6Addr| ip.to_bits() >> 64;
            let is_close = |own: &IpAddr| match own {
                IpAddr::V4(_) => false,
                IpAddr::V6(own) => network(*own) == network(ip),
            };
            ip.is_unique_local() || own.iter().any(is_close)
        }
    }
}

/// Returns whether a server or a peer may have this side connect to an address: one of another machine, and not the port of a
/// usual service. `own` has the addresses of this machine.
pub(crate) fn may_be_dialled(address: SocketAddr, own: &[IpAddr]) -> bool {
    let ip = address.ip().to_canonical();
    is_usable(ip) && !own.contains(&ip) && address.port() >= FIRST_PORT
}

/// An address to dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) address: SocketAddr,
    pub(super) kind: CandidateKind,
    /// Whether the port is a guess, because the NAT's is not known. A dial lets the NAT on this side know the address: some let its
    /// connections in then, whatever their ports.
    pub(super) is_guess: bool,
}

/// Returns the addresses to dial, in order, without repetitions.
///
/// The kinds and families take turns. The peer decides how many of a kind it names, and these must not keep one of
/// another kind waiting until the attempt is over.
pub(super) fn dialled(theirs: &[Candidate], own: &[IpAddr], scope: Scope) -> Vec<Target> {
    let mut kinds = [const { Vec::new() }; 4];
    let mut seen = Vec::new();
    for candidate in theirs.iter().take(MOST) {
        let ip = candidate.address.ip().to_canonical();
        let is_guess =
            candidate.kind == CandidateKind::ServerReflexive && candidate.address.port() == 0;
        // A NAT that does not keep the host's port most of the time may still do so now.
        let port = match is_guess {
            true => listening_port(theirs, ip.is_ipv4()).unwrap_or_default(),
            false => candidate.address.port(),
        };
        let mut address = SocketAddr::new(ip, port);
        let allowed = match scope {
            Scope::Network => may_be_dialled(address, own),
            Scope::Link { mut peer, .. } => {
                let is_peer = ip == peer.ip() && port >= FIRST_PORT;
                // With the interface, without which a link-local address says nothing.
                peer.set_port(port);
                address = peer;
                is_peer
            }
            #[cfg(test)]
            Scope::Loopback => ip.is_loopback() && port >= FIRST_PORT,
        };
        if !allowed || seen.contains(&address) {
            continue;
        }
        seen.push(address);
        let order = match (candidate.kind, ip) {
            (CandidateKind::Host, IpAddr::V6(_)) => 0,
            (CandidateKind::ServerReflexive, IpAddr::V4(_)) => 1,
            (CandidateKind::Host, IpAddr::V4(_)) => 2,
            (CandidateKind::ServerReflexive, IpAddr::V6(_)) => 3,
        };
        kinds[order].push(Target { address, kind: candidate.kind, is_guess });
    }
    let longest = kinds.iter().map(Vec::len).max().unwrap_or_default();
    (0..longest).flat_map(|n| kinds.iter().filter_map(move |kind| kind.get(n).copied())).collect()
}

/// Returns the port on which a peer listens, behind its NAT.
fn listening_port(theirs: &[Candidate], is_ipv4: bool) -> Option<u16> {
    let hosts = theirs.iter().take(MOST).filter(|one| one.kind == CandidateKind::Host);
    hosts.map(|host| host.address).find(|host| host.is_ipv4() == is_ipv4).map(|host| host.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(address: &str) -> Candidate {
        Candidate { address: address.parse().unwrap(), kind: CandidateKind::Host }
    }

    fn reflexive(address: &str) -> Candidate {
        Candidate { address: address.parse().unwrap(), kind: CandidateKind::ServerReflexive }
    }

    fn of(interface: &str, ip: &str, flags: u8) -> Own {
        Own { interface: interface.to_owned(), ip: ip.parse().unwrap(), is_up: true, flags }
    }

    /// Returns what is dialled by a machine without addresses.
    fn targets(theirs: &[Candidate]) -> Vec<String> {
        let targets = dialled(theirs, &[], Scope::Network);
        targets.iter().map(|target| target.address.to_string()).collect()
    }

    fn texts(addresses: &[impl ToString]) -> Vec<String> {
        addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn on_a_link_only_its_addresses_are_told_and_dialled() {
        let [own, peer] =
            ["[fe80::1%3]:1024", "[fe80::2%3]:5298"].map(|text| text.parse().unwrap());
        let scope = Scope::Link { own, peer };
        assert_eq!(texts(&offered(scope)), ["fe80::1"]);
        let theirs =
            ["[fe80::2]:5000", "[fe80::3]:5000", "192.0.2.1:5000", "[fe80::2]:22"].map(host);
        let targets = dialled(&theirs, &[], scope);
        let addresses: Vec<_> = targets.iter().map(|target| target.address).collect();
        assert_eq!(texts(&addresses), ["[fe80::2%3]:5000"]);
    }

    #[test]
    fn addresses_of_other_machines_are_usable() {
        for (ip, usable) in [
            ("192.0.2.1", true),
            ("10.0.0.1", true),
            ("192.168.1.1", true),
            ("100.64.0.1", true),
            ("100.127.255.254", true),
            ("2001:db8::1", true),
            ("fd00::1", true),
            ("0.0.0.0", false),
            ("0.1.2.3", false),
            ("127.0.0.1", false),
            ("127.255.255.255", false),
            ("169.254.1.1", false),
            ("224.0.0.1", false),
            ("239.255.255.255", false),
            ("240.0.0.1", false),
            ("255.255.255.255", false),
            ("::", false),
            ("::1", false),
            ("::7f00:1", false),
            ("::ffff:192.0.2.1", false),
            ("fe80::1", false),
            ("febf::1", false),
            ("ff02::1", false),
            ("64:ff9b::7f00:1", false),
            ("2002:7f00:1::1", false),
            ("2001:0:7f00:1::1", false),
        ] {
            assert_eq!(is_usable(ip.parse().unwrap()), usable, "{ip}");
        }
    }

    #[test]
    fn addresses_of_own_networks_are_nearby() {
        let own = ["198.51.100.7", "2001:db8:0:1::7"].map(|ip| ip.parse().unwrap());
        for (ip, is) in [
            ("10.1.2.3", true),
            ("172.16.0.1", true),
            ("192.168.1.1", true),
            ("::ffff:192.168.1.1", true),
            ("100.64.0.1", true),
            ("100.128.0.1", false),
            ("198.51.100.200", true),
            ("198.51.101.7", false),
            ("fd00::1", true),
            ("2001:db8:0:1::99", true),
            ("2001:db8:0:2::7", false),
        ] {
            assert_eq!(is_nearby(ip.parse().unwrap(), &own), is, "{ip}");
        }
    }

    #[test]
    fn what_only_this_machine_can_reach_is_not_offered() {
        let down = Own { is_up: false, ..of("eth1", "192.0.2.9", 0) };
        let own = [
            of("lo", "127.0.0.1", 0x80),
            of("lo", "::1", 0x80),
            of("eth0", "192.168.1.2", 0),
            of("eth0", "fe80::1", 0x80),
            of("eth0", "169.254.3.4", 0),
            of("eth0", "2001:db8::2", 0x80),
            of("docker0", "172.17.0.1", 0),
            of("br-0123456789ab", "172.18.0.1", 0),
            of("virbr0", "192.168.122.1", 0),
            of("veth01", "192.0.2.3", 0),
            of("cni0", "10.88.0.1", 0),
            of("podman1", "10.89.0.1", 0),
            of("lxcbr0", "10.0.3.1", 0),
            of("tun0", "100.64.0.7", 0),
            of("wg0", "10.9.0.1", 0),
            of("wg0", "10.9.0.1", 0),
            down,
        ];
        let expected = ["2001:db8::2", "192.168.1.2", "100.64.0.7", "10.9.0.1"];
        assert_eq!(texts(&choose(&own)), expected);
    }

    #[test]
    fn a_temporary_address_stands_for_the_lasting_one_of_its_network() {
        let own = [
            of("eth0", "2001:db8:0:1::1", 0),
            of("eth0", "2001:db8:0:1::a1", TEMPORARY | DEPRECATED),
            of("eth0", "2001:db8:0:1::a2", TEMPORARY),
            of("eth0", "2001:db8:0:2::1", 0),
            of("eth0", "2001:db8:0:2::a1", TEMPORARY | DEPRECATED),
            of("eth0", "2001:db8:0:3::1", TENTATIVE),
            of("eth0", "2001:db8:0:4::1", DAD_FAILED),
            of("eth1", "2001:db8:0:1::2", 0),
        ];
        let expected = ["2001:db8:0:1::a2", "2001:db8:0:2::1", "2001:db8:0:1::2"];
        assert_eq!(texts(&choose(&own)), expected);
    }

    #[test]
    fn so_many_addresses_are_offered_and_no_more() {
        let many: Vec<Own> = (0..100).map(|n| of("eth0", &format!("10.0.0.{n}"), 0)).collect();
        assert_eq!(choose(&many).len(), MOST);
    }

    #[test]
    fn the_flags_of_the_kernel_are_read() {
        let text = "\
            00000000000000000000000000000001 01 80 10 80       lo\n\
            20010db8000000000000000000000002 02 40 00 21     eth0\n\
            20010db8000000000000000000000002 03 40 00 01     eth1\n\
            odd\n";
        let ip = "2001:db8::2".parse().unwrap();
        assert_eq!(flags_of(ip, "eth0", text), TEMPORARY | DEPRECATED);
        assert_eq!(flags_of(ip, "eth1", text), TEMPORARY);
        assert_eq!(flags_of(ip, "eth2", text), 0);
        assert_eq!(flags_of(Ipv6Addr::LOCALHOST, "lo", text), 0x80);
        assert_eq!(flags_of(ip, "eth0", ""), 0);
    }

    #[test]
    fn a_peer_cannot_have_this_machine_or_odd_addresses_dialled() {
        let own = ["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        let theirs = [
            "127.0.0.1:5000",
            "0.0.0.0:5000",
            "[::1]:5000",
            "[::]:5000",
            "[::ffff:127.0.0.1]:5000",
            "[::ffff:192.0.2.7]:5000",
            "[::127.0.0.1]:5000",
            "169.254.169.254:5000",
            "[fe80::1]:5000",
            "224.0.0.251:5353",
            "192.0.2.7:5000",
            "[2001:db8::7]:5000",
            "192.0.2.8:22",
            "192.0.2.8:0",
        ];
        let theirs: Vec<Candidate> = theirs.into_iter().map(host).collect();
        assert_eq!(dialled(&theirs, &own, Scope::Network), []);
    }

    #[test]
    fn a_mapped_address_is_dialled_as_ipv4_and_once() {
        let theirs = [host("[::ffff:192.0.2.1]:5000"), host("192.0.2.1:5000")];
        assert_eq!(targets(&theirs), ["192.0.2.1:5000"]);
    }

    #[test]
    fn kinds_take_turns() {
        let theirs = [
            host("10.0.0.1:5000"),
            host("10.0.0.2:5000"),
            host("100.64.0.1:5000"),
            host("[2001:db8::1]:5000"),
            reflexive("192.0.2.1:5001"),
        ];
        let order = [
            "[2001:db8::1]:5000",
            "192.0.2.1:5001",
            "10.0.0.1:5000",
            "10.0.0.2:5000",
            "100.64.0.1:5000",
        ];
        assert_eq!(targets(&theirs), order);
    }

    #[test]
    fn behind_a_nat_without_a_port_the_listener_s_port_is_dialled() {
        let theirs = [reflexive("192.0.2.1:0"), host("10.0.0.1:5000"), host("[2001:db8::1]:5001")];
        let dialled = dialled(&theirs, &[], Scope::Network);
        assert_eq!(targets(&theirs), ["[2001:db8::1]:5001", "192.0.2.1:5000", "10.0.0.1:5000"]);
        assert_eq!(
            dialled.iter().map(|one| one.is_guess).collect::<Vec<_>>(),
            [false, true, false]
        );
        // Without a listener in its family, or with one on the port of a service, there is nothing to dial.
        assert_eq!(targets(&theirs[..1]), [""; 0]);
        assert_eq!(targets(&[reflexive("192.0.2.1:0"), host("10.0.0.1:22")]), [""; 0]);
        assert_eq!(targets(&[host("192.0.2.1:0"), host("10.0.0.1:5000")]), ["10.0.0.1:5000"]);
    }

    #[test]
    fn so_many_of_a_peer_s_addresses_are_dialled_and_no_more() {
        let many: Vec<Candidate> = (0..100).map(|n| host(&format!("10.0.0.{n}:5000"))).collect();
        assert_eq!(dialled(&many, &[], Scope::Network).len(), MOST);
    }
}
