//! A network of its own for some programs: a namespace joined to this machine by a pair of virtual devices.

use std::process::Command;

/// A network namespace. Dropping it removes it.
pub struct Network {
    name: String,
    device: String,
    address: String,
    /// The network between this machine and that one, if there is a hop.
    hop: Option<String>,
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
        let this = Self { name, device, address: here.clone(), hop: None };
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
        Self { name: end, device, address, hop: Some(hop) }
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
        }
    }
}

fn ip(args: &[&str]) {
    let done = Command::new("ip").args(args).output().expect("iproute2 is installed");
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "ip {}: {error} (network namespaces take root)", args.join(" "));
}
