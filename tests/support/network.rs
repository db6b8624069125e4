//! A network of its own for some programs: a namespace that a pair of virtual devices joins to this machine.

use std::process::Command;

/// A network namespace; it is gone when this is dropped.
pub struct Network {
    name: String,
    device: String,
    address: String,
}

impl Network {
    /// Makes a namespace and joins it.
    ///
    /// # Panics
    /// If that is not allowed: it takes root.
    pub fn start() -> Self {
        let id = std::process::id();
        // 198.18.0.0/15 is for tests between networks (RFC 2544): nobody else is there.
        let net = format!("198.18.{}.{}", id / 64 % 256, id % 64 * 4);
        let (head, last) = net.rsplit_once('.').unwrap();
        let last: u8 = last.parse().unwrap();
        let [here, there] = [1, 2].map(|n| format!("{head}.{}", last + n));
        let this =
            Self { name: format!("fp{id}"), device: format!("fp{id}"), address: here.clone() };
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

    /// Its name, for `ip netns exec`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// This machine, seen from there.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Takes it down (`down`) or up again (`up`): nobody is told, nothing arrives.
    pub fn set(&self, state: &str) {
        ip(&["-n", &self.name, "link", "set", &format!("{}p", self.device), state]);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for args in [["link", "del", &self.device], ["netns", "del", &self.name]] {
            let _gone = Command::new("ip").args(args).status();
        }
    }
}

fn ip(args: &[&str]) {
    let done = Command::new("ip").args(args).output().expect("iproute2 is installed");
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "ip {}: {error} (network namespaces take root)", args.join(" "));
}
