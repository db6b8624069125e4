//! Two hosts behind a NAT each, and a public network between: five namespaces, joined by virtual devices and by nothing to this
//! machine.
//!
//! ```text
//!  host A ── NAT A ── public ── NAT B ── host B
//! ```
//!
//! The kernel's own NAT (nftables) plays all kinds. Each host is the only one behind its NAT. A sixth namespace, for a machine of
//! its own in the public network, is there on demand.

use std::{
    fs::File,
    net::Ipv4Addr,
    path::Path,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

use super::{PATIENCE, process::Process, root, wait_for};

/// How a NAT maps the addresses behind it, and which peers it lets in (RFC 4787; the names are those of RFC 3489).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nat {
    /// The host has a public address.
    None,
    /// One mapping for all peers; everybody gets in.
    FullCone,
    /// One mapping for all peers; an address gets in once the host has sent something to it.
    AddressRestricted,
    /// One mapping for all peers; an address and port get in once the host has sent something to both.
    PortRestricted,
    /// Another mapping for each peer, by chance.
    Symmetric,
}

impl Nat {
    /// All kinds.
    pub const ALL: [Self; 5] = [
        Self::None,
        Self::FullCone,
        Self::AddressRestricted,
        Self::PortRestricted,
        Self::Symmetric,
    ];

    /// Returns its usual name.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::FullCone => "full cone",
            Self::AddressRestricted => "address-restricted",
            Self::PortRestricted => "port-restricted",
            Self::Symmetric => "symmetric",
        }
    }
}

/// What a NAT does with a connection that nobody behind it has asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unasked {
    /// Drops it, as most do.
    Drop,
    /// Refuses it with a RST.
    Reset,
    /// Refuses it with an ICMP error: EHOSTUNREACH.
    Unreachable,
    /// Refuses it with the ICMP error that a connection cannot tell from a RST: ECONNREFUSED.
    PortUnreachable,
    /// Refuses it with the ICMP error that looks like a missing route: ENETUNREACH.
    NetUnreachable,
}

/// A place in the networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The host behind the first NAT.
    HostA,
    /// The first NAT.
    NatA,
    /// The public network, with the servers.
    Public,
    /// The second NAT.
    NatB,
    /// The host behind the second NAT.
    HostB,
    /// A machine of its own in the public network ([`TwoNats::add_component`]).
    Component,
}

/// The networks. Dropping them removes everything.
pub struct TwoNats {
    prefix: String,
    /// The program that delays packets, and its files.
    delay: Option<(Process, TempDir)>,
}

impl TwoNats {
    /// The address of the servers in the public network.
    // 198.18.0.0/15 is reserved for tests between networks (RFC 2544).
    pub const SERVERS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
    /// The port of the [STUN server](Self::start_stun_server), at the servers' address.
    pub const STUN_PORT: u16 = 3478;
    /// The address of the component's machine, if it has one of its own.
    pub const COMPONENT: Ipv4Addr = Ipv4Addr::new(198, 18, 3, 2);

    /// Creates the networks, with NATs that drop what nobody has asked for.
    ///
    /// # Panics
    /// If the kernel does not permit it: it needs root, network namespaces and nftables with NAT.
    pub fn start(a: Nat, b: Nat) -> Self {
        Self::start_with([a, b], Unasked::Drop)
    }

    /// Creates the networks.
    ///
    /// # Panics
    /// If the kernel does not permit it.
    pub fn start_with(nats: [Nat; 2], unasked: Unasked) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        remove_those_of_ended_processes();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let this = Self { prefix: format!("{PREFIX}{}-{count}-", std::process::id()), delay: None };
        this.add(Place::Public);
        this.ip(Place::Public, &format!("addr add {}/32 dev lo", Self::SERVERS));
        this.forward(Place::Public);
        this.build(nats, unasked);
        this
    }

    /// Replaces both NATs and the hosts behind them by others. The public network, and what runs there, stays.
    ///
    /// # Panics
    /// If the kernel does not permit it.
    pub fn replace(&mut self, nats: [Nat; 2]) {
        self.delay = None;
        for (place, port) in
            [(Place::HostA, ""), (Place::NatA, "side1"), (Place::HostB, ""), (Place::NatB, "side2")]
        {
            ip(&["netns", "del", &self.name(place)]);
            if !port.is_empty() {
                // It goes with the other end, but not at once.
                let _gone = Command::new("ip")
                    .args(["-n", &self.name(Place::Public), "link", "del", port])
                    .output();
            }
        }
        self.build(nats, Unasked::Drop);
    }

    fn add(&self, place: Place) {
        ip(&["netns", "add", &self.name(place)]);
        self.ip(place, "link set lo up");
    }

    fn build(&self, nats: [Nat; 2], unasked: Unasked) {
        for place in [Place::HostA, Place::NatA, Place::NatB, Place::HostB] {
            self.add(place);
        }
        for ((host, nat, side), kind) in SIDES.into_iter().zip(nats) {
            let inside = match kind {
                Nat::None => format!("198.18.1{side}"),
                _ => format!("10.{side}.0"),
            };
            let public = format!("198.18.{side}");
            let port = format!("side{side}");
            self.join((nat, "wan"), (Place::Public, &port));
            self.join((host, "eth0"), (nat, "lan"));
            self.ip(Place::Public, &format!("addr add {public}.1/24 dev {port}"));
            self.ip(nat, &format!("addr add {public}.2/24 dev wan"));
            self.ip(nat, &format!("route add default via {public}.1"));
            self.ip(nat, &format!("addr add {inside}.1/24 dev lan"));
            self.ip(host, &format!("addr add {inside}.2/24 dev eth0"));
            self.ip(host, &format!("route add default via {inside}.1"));
            self.forward(nat);
            if kind == Nat::None {
                self.ip(Place::Public, &format!("route add {inside}.0/24 via {public}.2"));
            } else {
                self.nft(nat, &rules(kind, unasked, &format!("{inside}.2")));
            }
        }
    }

    /// Adds a machine for the component, joined to the public network.
    ///
    /// # Panics
    /// If the kernel does not permit it.
    pub fn add_component(&self) {
        self.add(Place::Component);
        self.join((Place::Component, "eth0"), (Place::Public, "component"));
        self.ip(Place::Public, "addr add 198.18.3.1/24 dev component");
        self.ip(Place::Component, &format!("addr add {}/24 dev eth0", Self::COMPONENT));
        self.ip(Place::Component, "route add default via 198.18.3.1");
    }

    /// Gives both hosts a public IPv6 address. There is no NAT, but behind a firewall a host gets only answers to what it
    /// has sent, as at home.
    ///
    /// # Panics
    /// If the kernel does not permit it.
    pub fn add_ipv6(&self, firewalls: [bool; 2]) {
        self.run_in(Place::Public, "sysctl", &["-qw", "net.ipv6.conf.all.forwarding=1"]);
        for ((host, nat, side), has_firewall) in SIDES.into_iter().zip(firewalls) {
            let (public, inside) = (format!("2001:db8:{side}:"), format!("2001:db8:1{side}:"));
            self.run_in(nat, "sysctl", &["-qw", "net.ipv6.conf.all.forwarding=1"]);
            let port = format!("side{side}");
            self.ip(Place::Public, &format!("addr add {public}:1/64 dev {port} nodad"));
            self.ip(Place::Public, &format!("route add {inside}:/64 via {public}:2"));
            self.ip(nat, &format!("addr add {public}:2/64 dev wan nodad"));
            self.ip(nat, &format!("route add default via {public}:1"));
            self.ip(nat, &format!("addr add {inside}:1/64 dev lan nodad"));
            self.ip(host, &format!("addr add {inside}:2/64 dev eth0 nodad"));
            self.ip(host, &format!("route add default via {inside}:1"));
            if has_firewall {
                self.nft(
                    nat,
                    "table ip6 wall {
                        chain on {
                            type filter hook forward priority 0;
                            iifname wan meta l4proto tcp ct state != { established, related } drop
                        }
                    }",
                );
            }
        }
    }

    /// Delays each packet between the two NATs by so many milliseconds. Those to and from the servers are not delayed.
    ///
    /// # Panics
    /// If the kernel does not permit it: it needs `/dev/net/tun`.
    pub fn delay(&mut self, milliseconds: u32) {
        self.route_through_delay(milliseconds);
        for side in ["side1", "side2"] {
            // Before the main table, after the one of local addresses.
            self.ip(Place::Public, &format!("rule add iif {side} lookup 7"));
        }
    }

    /// Delays each packet between the two NATs, and between them and the servers, and limits what each NAT sends into the public
    /// network to `rate`, as `tc` writes it.
    ///
    /// # Panics
    /// If the kernel does not permit it: it needs `/dev/net/tun`.
    pub fn delay_and_limit(&mut self, milliseconds: u32, rate: &str) {
        let public = Place::Public;
        self.route_through_delay(milliseconds);
        // Packets from the servers come back from the device with a source address of this place, and those to them are
        // forwarded to the device first, which the kernel refuses once it has looked up their sockets.
        let settings =
            ["conf.slow.accept_local=1", "conf.slow.rp_filter=0", "conf.all.rp_filter=0"];
        for setting in settings.into_iter().chain(["ip_early_demux=0"]) {
            self.run_in(public, "sysctl", &["-qw", &format!("net.ipv4.{setting}")]);
        }
        let servers = Self::SERVERS;
        for rule in [
            // The kernel answers ARP only for addresses that it finds to be its own.
            "pref 1 iif side1 to 198.18.1.1 lookup local",
            "pref 1 iif side2 to 198.18.2.1 lookup local",
            "pref 2 iif side1 lookup 7",
            "pref 2 iif side2 lookup 7",
            &format!("pref 2 iif lo to {servers} lookup local"),
            "pref 2 iif lo to 127.0.0.0/8 lookup local",
            "pref 3 iif lo lookup 7",
            "pref 4 lookup local",
        ] {
            self.ip(public, &format!("rule add {rule}"));
        }
        self.ip(public, "rule del pref 0");
        // BBR, which machines may have instead, lets connections nearly pause every ten seconds.
        for place in [public, Place::HostA, Place::HostB] {
            self.run_in(place, "sysctl", &["-qw", "net.ipv4.tcp_congestion_control=reno"]);
        }
        for nat in [Place::NatA, Place::NatB] {
            // The queue holds more than a window of 4 MiB, so no packet is lost.
            let limit = format!("qdisc add dev wan root tbf rate {rate} burst 64kb latency 1s");
            self.run_in(nat, "tc", &limit.split(' ').collect::<Vec<_>>());
        }
    }

    /// Starts the program that sends back each packet that is routed to it by table 7, later.
    fn route_through_delay(&mut self, milliseconds: u32) {
        let public = Place::Public;
        self.ip(public, "tuntap add dev slow mode tun");
        self.ip(public, "link set slow up txqueuelen 10000");
        self.ip(public, "route add default dev slow table 7");
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(public), "python3"]);
        command.arg(root().join("tests/peers/delay.py")).args(["slow", &milliseconds.to_string()]);
        let process = Process::start(command, &directory.path().join("log"));
        let is_ready = || process.log().contains("ready");
        wait_for("the delay", PATIENCE, || process.log(), is_ready);
        self.delay = Some((process, directory));
    }

    /// Starts a STUN server in the public network. It prints a line for each question.
    pub fn start_stun_server(&self, directory: &Path) -> Process {
        let log = directory.join("stun.log");
        let _of_another = std::fs::remove_file(&log);
        let process = self.inside(Place::Public, || {
            let mut command = Command::new("python3");
            command.arg(root().join("tests/peers/stun_server.py"));
            command.args([Self::SERVERS.to_string(), Self::STUN_PORT.to_string()]);
            Process::start(command, &log)
        });
        wait_for("the STUN server", PATIENCE, || process.log(), || process.log().contains("ready"));
        process
    }

    /// Returns the name of a place's namespace, for `ip netns exec`.
    pub fn name(&self, place: Place) -> String {
        format!("{}{place:?}", self.prefix)
    }

    /// Runs a closure on a thread of that place: sockets that it opens, and programs that it starts, are there.
    ///
    /// # Panics
    /// If the closure does.
    pub fn inside<T: Send>(&self, place: Place, does: impl FnOnce() -> T + Send) -> T {
        let path = Path::new("/run/netns").join(self.name(place));
        thread::scope(|scope| {
            let thread = scope.spawn(move || {
                let namespace = File::open(&path).expect("the namespace is there");
                move_into_link_name_space(
                    std::os::fd::AsFd::as_fd(&namespace),
                    Some(LinkNameSpaceType::Network),
                )
                .expect("a thread may enter a network namespace as root");
                does()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Adds rules of nftables at a place.
    ///
    /// # Panics
    /// If the kernel does not take them.
    pub fn nft(&self, place: Place, rules: &str) {
        self.run_in(place, "nft", &[rules]);
    }

    /// Runs a program at a place to its end; returns what it prints.
    ///
    /// # Panics
    /// If it fails.
    pub fn run_in(&self, place: Place, program: &str, args: &[&str]) -> String {
        ip(&[&["netns", "exec", &self.name(place), program][..], args].concat())
    }

    fn ip(&self, place: Place, args: &str) {
        let name = self.name(place);
        let args: Vec<&str> = args.split(' ').collect();
        ip(&[&["-n", &name][..], &args].concat());
    }

    fn forward(&self, place: Place) {
        self.run_in(place, "sysctl", &["-qw", "net.ipv4.ip_forward=1"]);
    }

    /// Joins two places by a cable with these ends.
    fn join(&self, (one, one_end): (Place, &str), (other, other_end): (Place, &str)) {
        let far = self.name(other);
        self.ip(one, &format!("link add {one_end} type veth peer name {other_end} netns {far}"));
        self.ip(one, &format!("link set {one_end} up"));
        self.ip(other, &format!("link set {other_end} up"));
    }
}

impl Drop for TwoNats {
    fn drop(&mut self) {
        self.delay = None;
        // The devices go with their namespaces.
        for place in PLACES {
            let name = self.name(place);
            if Path::new("/run/netns").join(&name).exists() {
                let _gone = Command::new("ip").args(["netns", "del", &name]).status();
            }
        }
    }
}

const PREFIX: &str = "fpnat-";
const PLACES: [Place; 6] =
    [Place::HostA, Place::NatA, Place::Public, Place::NatB, Place::HostB, Place::Component];
/// The host and the NAT of each side, and its number.
const SIDES: [(Place, Place, u8); 2] =
    [(Place::HostA, Place::NatA, 1), (Place::HostB, Place::NatB, 2)];

/// Removes the namespaces of test processes that were killed.
fn remove_those_of_ended_processes() {
    let Ok(directory) = std::fs::read_dir("/run/netns") else { return };
    for entry in directory.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if process.is_some_and(|id| !Path::new("/proc").join(id).exists()) {
            let _gone = Command::new("ip").args(["netns", "del", &name]).status();
        }
    }
}

/// Returns the rules of a NAT for the host behind it.
fn rules(kind: Nat, unasked: Unasked, host: &str) -> String {
    let mapping = match kind {
        // Without a conflict masquerade keeps the port: one mapping for all peers.
        Nat::None | Nat::FullCone | Nat::AddressRestricted | Nat::PortRestricted => "masquerade",
        Nat::Symmetric => "masquerade random,fully-random",
    };
    let inbound = match kind {
        Nat::FullCone => format!("iifname wan meta l4proto tcp dnat to {host}"),
        Nat::AddressRestricted => {
            format!("iifname wan meta l4proto tcp ip saddr @contacted dnat to {host}")
        }
        Nat::None | Nat::PortRestricted | Nat::Symmetric => "counter".to_owned(),
    };
    let verdict = match unasked {
        Unasked::Drop => "drop",
        Unasked::Reset => "reject with tcp reset",
        Unasked::Unreachable => "reject with icmp type host-unreachable",
        Unasked::PortUnreachable => "reject with icmp type port-unreachable",
        Unasked::NetUnreachable => "reject with icmp type net-unreachable",
    };
    format!(
        "table ip nat {{
            set contacted {{ type ipv4_addr; flags dynamic; size 1024; }}
            chain out {{
                type nat hook postrouting priority srcnat;
                oifname wan {mapping}
            }}
            chain in {{
                type nat hook prerouting priority dstnat;
                {inbound}
            }}
            chain seen {{
                type filter hook forward priority 0;
                oifname wan add @contacted {{ ip daddr }}
            }}
            chain here {{
                type filter hook input priority 0;
                iifname wan meta l4proto tcp {verdict}
            }}
        }}"
    )
}

/// Runs `ip`, and returns what it prints.
fn ip(args: &[&str]) -> String {
    let done = Command::new("ip").args(args).output().expect("iproute2 is installed");
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(
        done.status.success(),
        "ip {}: {error} (the test needs root, network namespaces and nftables with NAT)",
        args.join(" ")
    );
    String::from_utf8_lossy(&done.stdout).into_owned()
}
