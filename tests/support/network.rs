//! A network of its own for some programs: a namespace joined to this machine by a pair of virtual devices.

use std::{path::Path, process::Command, time::Duration};

use tempfile::TempDir;

use super::{process::Process, wait_for};

/// Far more than a program takes to start on a machine that is not busy.
const START: Duration = Duration::from_secs(60);

/// A network namespace. Dropping it removes it.
pub struct Network {
    name: String,
    device: String,
    address: String,
    /// The network between this machine and that one, if there is a hop.
    hop: Option<String>,
    /// What runs on the hop, and its files.
    programs: Vec<Process>,
    files: Option<TempDir>,
}

impl Network {
    /// Creates a namespace and joins it to this machine.
    ///
    /// # Panics
    /// If it is not permitted: it needs root.
    pub fn start() -> Self {
        let id = std::process::id();
        // 198.18.0.0/15 is reserved for tests between networks (RFC 2544).
        let net = format!("198.18.{}.{}", id / 64 % 256, id % 64 * 4);
        let (head, last) = net.rsplit_once('.').unwrap();
        let last: u8 = last.parse().unwrap();
        let [here, there] = [1, 2].map(|n| format!("{head}.{}", last + n));
        let (name, device) = (format!("fp{id}"), format!("fp{id}"));
        let address = here.clone();
        let this = Self { name, device, address, hop: None, programs: Vec::new(), files: None };
        let peer = format!("{}p", this.device);
        ip(&["netns", "add", &this.name]);
        ip(&["-n", &this.name, "link", "set", "lo", "up"]);
        ip(&["link", "add", &this.device, "type", "veth", "peer", "name", &peer]);
        ip(&["link", "set", &peer, "netns", &this.name]);
        ip(&["addr", "add", &format!("{here}/30"), "dev", &this.device]);
        ip(&["link", "set", &this.device, "up"]);
        ip(&["-n", &this.name, "addr", "add", &format!("{there}/30"), "dev", &peer]);
        this.set("up");
        this
    }

    /// Creates a namespace behind a router whose link to it carries packets of at most 1,280 bytes, both ways. The
    /// router sends no errors: larger packets are lost.
    ///
    /// # Panics
    /// If it is not permitted: it needs root.
    pub fn behind_a_narrow_hop() -> Self {
        let this = Self::start();
        let (hop, end) = (this.name.clone(), format!("{}e", this.name));
        let [near, far] = [format!("{}n", this.device), format!("{}f", this.device)];
        let (head, here) = this.address.rsplit_once('.').unwrap();
        let last = here.parse::<u8>().unwrap() - 1;
        let between = format!("{head}.{}", last + 2);
        let head = head.replace("198.18.", "198.19.");
        let [net, router, host] = [0, 1, 2].map(|n| format!("{head}.{}", last + n));
        ip(&["netns", "add", &end]);
        ip(&["-n", &hop, "link", "add", &near, "type", "veth", "peer", "name", &far]);
        ip(&["-n", &hop, "link", "set", &far, "netns", &end]);
        ip(&["-n", &hop, "addr", "add", &format!("{router}/30"), "dev", &near]);
        ip(&["-n", &end, "addr", "add", &format!("{host}/30"), "dev", &far]);
        ip(&["-n", &end, "link", "set", "lo", "up"]);
        // Without this the kernel forwards many segments as one.
        ip(&["link", "set", &this.device, "gso_max_segs", "1"]);
        ip(&["-n", &end, "link", "set", &far, "gso_max_segs", "1", "up"]);
        ip(&["-n", &hop, "link", "set", &near, "up"]);
        ip(&["-n", &end, "route", "add", "default", "via", &router]);
        ip(&["route", "add", &format!("{net}/30"), "via", &between]);
        // Not by the link's own MTU: the sender's kernel would see a packet lost between virtual devices of one
        // machine.
        let quiet = "add table ip quiet; add chain ip quiet on { type filter hook forward priority 0; }; \
                     add rule ip quiet on meta length > 1280 drop";
        ip(&["netns", "exec", &hop, "sysctl", "-qw", "net.ipv4.ip_forward=1"]);
        ip(&["netns", "exec", &hop, "nft", quiet]);
        // Fields of a type with a drop function cannot be moved out one by one.
        let (device, address) = (this.device.clone(), this.address.clone());
        std::mem::forget(this);
        Self { name: end, device, address, hop: Some(hop), programs: Vec::new(), files: None }
    }

    /// Creates a namespace without IPv4 behind a router that translates: NAT64 by tayga, and a DNS server that answers for
    /// `ipv4only.arpa` as a DNS64 does (RFC 7050).
    ///
    /// # Panics
    /// If it is not permitted: it needs root and `/dev/net/tun`.
    pub fn behind_a_nat64() -> Self {
        let mut this = Self::start();
        let (hop, end) = (this.name.clone(), format!("{}e", this.name));
        this.hop = Some(std::mem::replace(&mut this.name, end.clone()));
        let [near, far] = [format!("{}n", this.device), format!("{}f", this.device)];
        let (head, here) = this.address.rsplit_once('.').unwrap();
        let last = here.parse::<u8>().unwrap() - 1;
        let between = format!("{head}.{}", last + 2);
        let head = head.replace("198.18.", "198.19.");
        let [net, router, host] = [0, 1, 2].map(|n| format!("{head}.{}", last + n));
        let at_hop = |args: &[&str]| ip(&[&["netns", "exec", &hop][..], args].concat());
        ip(&["netns", "add", &end]);
        ip(&["-n", &hop, "link", "add", &near, "type", "veth", "peer", "name", &far]);
        ip(&["-n", &hop, "link", "set", &far, "netns", &end]);
        ip(&["-n", &end, "link", "set", "lo", "up"]);
        for (name, device, address) in [(&hop, &near, "fd64:1::1/64"), (&end, &far, "fd64:1::2/64")]
        {
            ip(&["-n", name, "link", "set", device, "up"]);
            ip(&["-n", name, "addr", "add", address, "dev", device, "nodad"]);
        }
        ip(&["-n", &end, "route", "add", "default", "via", "fd64:1::1"]);
        // The translated packets have an address of their own, to which this machine answers.
        ip(&["-n", &hop, "tuntap", "add", "dev", "nat64", "mode", "tun"]);
        ip(&["-n", &hop, "link", "set", "nat64", "up"]);
        ip(&["-n", &hop, "route", "add", "fd64:2::/96", "dev", "nat64"]);
        ip(&["-n", &hop, "route", "add", &format!("{net}/30"), "dev", "nat64"]);
        ip(&["route", "add", &format!("{net}/30"), "via", &between]);
        at_hop(&["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]);

        let files = tempfile::Builder::new().prefix("fingerpost-nat64-").tempdir().unwrap();
        let file = files.path().join("tayga.conf");
        let text = format!(
            "tun-device nat64\nipv4-addr {router}\nprefix fd64:2::/96\nmap {host} fd64:1::2\n\
             data-dir {}\n",
            files.path().display()
        );
        std::fs::write(&file, text).unwrap();
        let translator = ["tayga", "--nodetach", "--config", file.to_str().unwrap()];
        let answer = |v4: &str| format!("--host-record=ipv4only.arpa,{v4},fd64:2::{v4}");
        let (one, two) = (answer("192.0.0.170"), answer("192.0.0.171"));
        let names = ["/usr/sbin/dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null"];
        let more = ["--pid-file=", "--no-resolv", "--no-hosts", "--user=root", "--bind-interfaces"];
        let names = [&names[..], &more, &["--listen-address=fd64:1::1", &one, &two]].concat();
        for (log, args) in [("tayga", &translator[..]), ("dnsmasq", &names)] {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", &hop]).args(args);
            this.programs.push(Process::start(command, &files.path().join(log)));
        }
        // `ip netns exec` puts it in the place of the machine's own.
        let own = Path::new("/etc/netns").join(&end);
        std::fs::create_dir_all(&own).unwrap();
        std::fs::write(own.join("resolv.conf"), "nameserver fd64:1::1\n").unwrap();
        let log = || this.programs.iter().map(Process::log).collect();
        let says = |args: &[&str], what: &str| {
            let done = Command::new("ip").args(args).output().unwrap();
            String::from_utf8_lossy(&done.stdout).contains(what)
        };
        let link = ["-n", &hop, "link", "show", "nat64"];
        wait_for("tayga", START, log, || says(&link, "LOWER_UP"));
        let name = ["netns", "exec", &end, "getent", "ahostsv6", "ipv4only.arpa"];
        wait_for("the DNS64", START, log, || says(&name, "fd64:2::"));
        this.files = Some(files);
        this
    }

    /// Returns its name, for `ip netns exec`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns this machine's address, as seen from there.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Takes it down (`down`) or up again (`up`): no error is sent, nothing arrives.
    pub fn set(&self, state: &str) {
        let beside = self.hop.as_ref().unwrap_or(&self.name);
        ip(&["-n", beside, "link", "set", &format!("{}p", self.device), state]);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _gone = Command::new("ip").args(["link", "del", &self.device]).status();
        for name in [Some(&self.name), self.hop.as_ref()].into_iter().flatten() {
            let _gone = Command::new("ip").args(["netns", "del", name]).status();
            let _none = std::fs::remove_dir_all(Path::new("/etc/netns").join(name));
        }
    }
}

fn ip(args: &[&str]) {
    let done = Command::new("ip").args(args).output().expect("iproute2 is installed");
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "ip {}: {error} (network namespaces take root)", args.join(" "));
}
