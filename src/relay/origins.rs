//! Detects that all users seem to have one address, as behind many port forwarders.

use std::{collections::VecDeque, net::IpAddr};

/// The number of recent requests that are considered.
const WINDOW: usize = 32;

/// If this many of them come from one address, they are most of them.
const MOST: usize = 24;

/// What to do about a forwarder that hides its users' addresses.
pub(crate) const CURE: &str = "if a port forwarder is in front, limits.connections_per_ip holds for all of its users together: let it \
     send the PROXY protocol (socks5.proxy_protocol), or use the host's network, or for rootless podman \
     --network slirp4netns:port_handler=slirp4netns (docs/OPERATING.md, Port forwarders)";

/// The addresses of the last requests.
#[derive(Debug, Default)]
pub(super) struct Origins {
    recent: VecDeque<IpAddr>,
    told: bool,
}

impl Origins {
    /// Notes who sent a request. `own` says whether the address belongs to this machine, `refused` whether the address
    /// had too many connections. Returns the address, once, if most requests come from it and it cannot be the users'
    /// own.
    pub(super) fn note(
        &mut self,
        ip: IpAddr,
        own: impl FnOnce() -> bool,
        refused: bool,
    ) -> Option<IpAddr> {
        if self.told {
            return None;
        }
        let ip = ip.to_canonical();
        if self.recent.len() == WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back(ip);
        let is_most = || self.recent.iter().filter(|other| **other == ip).count() >= MOST;
        self.told = (refused || is_most()) && (is_private(ip) || own());
        if !self.told {
            return None;
        }
        self.recent = VecDeque::new();
        Some(ip)
    }
}

/// Returns whether an address cannot be a user's own address on the internet.
pub(crate) fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let [first, second, ..] = ip.octets();
            // 100.64.0.0/10 is a provider's NAT (RFC 6598).
            let shared = first == 100 && second & 0xc0 == 64;
            ip.is_private() || ip.is_loopback() || ip.is_link_local() || shared
        }
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Returns how many requests it takes until one address is named, and which.
    fn told(from: impl Iterator<Item = &'static str>, own: bool) -> Option<(usize, IpAddr)> {
        let mut origins = Origins::default();
        from.take(200).enumerate().find_map(|(n, text)| {
            origins.note(ip(text), || own, false).map(|address| (n + 1, address))
        })
    }

    #[test]
    fn one_private_or_own_address_is_told_when_most_come_from_it() {
        for text in ["10.0.2.100", "127.0.0.1", "172.17.0.1", "100.64.0.1", "fd00::1", "::1"] {
            assert_eq!(told(std::iter::repeat(text), false), Some((MOST, ip(text))));
        }
        let gateway = told(std::iter::repeat("::ffff:172.30.0.1"), false);
        assert_eq!(gateway, Some((MOST, ip("172.30.0.1"))));
        assert_eq!(told(std::iter::repeat("192.0.2.1"), false), None, "a user's own address");
        assert_eq!(told(std::iter::repeat("192.0.2.1"), true), Some((MOST, ip("192.0.2.1"))));
    }

    #[test]
    fn many_private_addresses_are_a_private_network() {
        assert_eq!(told(["10.0.0.1", "10.0.0.2"].into_iter().cycle(), false), None);
        let some = ["10.0.0.1", "192.0.2.1", "10.0.0.1", "10.0.0.1"].into_iter().cycle();
        assert_eq!(told(some, false).map(|(_, address)| address), Some(ip("10.0.0.1")));
    }

    #[test]
    fn the_first_one_over_its_limit_is_told_at_once_and_nothing_twice() {
        let mut origins = Origins::default();
        assert_eq!(origins.note(ip("192.0.2.1"), || false, true), None);
        assert_eq!(origins.note(ip("10.0.2.100"), || false, true), Some(ip("10.0.2.100")));
        assert_eq!(origins.note(ip("10.0.2.100"), || false, true), None);
    }
}
