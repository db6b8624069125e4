//! Works out how a NAT maps a port, from what observers see of it. No I/O.

use std::net::{IpAddr, SocketAddr};

use super::addresses;

/// What a server sees of one of our connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Observation {
    /// Our own address of the connection.
    pub(crate) local: SocketAddr,
    /// The address that the server sees.
    pub(crate) observed: SocketAddr,
}

impl Observation {
    /// Returns what an observer says, if it says something: there is a NAT of one family, and another machine may have the address.
    fn read(self) -> Option<Self> {
        let canonical =
            |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        let (local, observed) = (canonical(self.local), canonical(self.observed));
        let says = local.is_ipv4() == observed.is_ipv4()
            && local.ip() != observed.ip()
            && observed.port() != 0
            && addresses::is_usable(observed.ip());
        says.then_some(Self { local, observed })
    }
}

/// How the NAT before this side maps the port of the listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mapping {
    /// There is no NAT, or nobody has seen it.
    Unknown,
    /// To this address for all addresses that we send to, as far as the observers can tell.
    Stable(SocketAddr),
    /// To another address for each one we send to: a symmetric NAT. This is one of its addresses. No port of it can be
    /// foretold.
    Varies(IpAddr),
}

/// Works out the mapping of the port `own`, in the family of IPv4 or of IPv6. `varied` is the public address of a NAT that was
/// [found to vary](Mapping::Varies) before.
pub(super) fn mapping(
    own: u16,
    is_ipv4: bool,
    observations: &[Observation],
    varied: Option<IpAddr>,
) -> Mapping {
    let read = observations.iter().filter_map(|one| one.read());
    let (same, others): (Vec<_>, Vec<_>) = read
        .filter(|one| one.observed.is_ipv4() == is_ipv4)
        .partition(|one| one.local.port() == own);
    let Some(first) = same.first().or(others.first()) else { return Mapping::Unknown };
    let ip = first.observed.ip();
    let one_address = same.iter().chain(&others).all(|one| one.observed.ip() == ip);
    let one_port = same.iter().all(|one| one.observed.port() == first.observed.port());
    if varied == Some(ip) || !one_address || (!same.is_empty() && !one_port) {
        return Mapping::Varies(ip);
    }
    if !same.is_empty() {
        return Mapping::Stable(first.observed);
    }
    // Nothing is known of the own port. But a NAT that keeps the number of another one is expected to keep it too.
    if others.iter().all(|one| one.local.port() == one.observed.port()) {
        Mapping::Stable(SocketAddr::new(ip, own))
    } else {
        Mapping::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: u16 = 5000;
    const OTHER: u16 = 5001;

    fn seen(local: u16, observed: &str) -> Observation {
        let observed: SocketAddr = observed.parse().unwrap();
        let local = if observed.is_ipv4() {
            SocketAddr::from(([10, 0, 0, 1], local))
        } else {
            SocketAddr::new("fd00::1".parse().unwrap(), local)
        };
        Observation { local, observed }
    }

    fn of(observations: &[Observation]) -> Mapping {
        mapping(OWN, true, observations, None)
    }

    fn stable(address: &str) -> Mapping {
        Mapping::Stable(address.parse().unwrap())
    }

    fn varies(ip: &str) -> Mapping {
        Mapping::Varies(ip.parse().unwrap())
    }

    #[test]
    fn one_observer_is_believed() {
        assert_eq!(of(&[]), Mapping::Unknown);
        // The listener's own port, however the NAT maps it.
        assert_eq!(of(&[seen(OWN, "192.0.2.1:4711")]), stable("192.0.2.1:4711"));
        // A NAT that keeps ports.
        assert_eq!(of(&[seen(OTHER, "192.0.2.1:5001")]), stable("192.0.2.1:5000"));
        // Nothing is known of the listener's port.
        assert_eq!(of(&[seen(OTHER, "192.0.2.1:4711")]), Mapping::Unknown);
    }

    #[test]
    fn two_observers_of_one_port_show_a_symmetric_nat() {
        let [same, other] = ["192.0.2.1:4711", "192.0.2.1:4712"];
        assert_eq!(of(&[seen(OWN, same), seen(OWN, same)]), stable(same));
        assert_eq!(of(&[seen(OWN, same), seen(OWN, other)]), varies("192.0.2.1"));
        assert_eq!(of(&[seen(OWN, same), seen(OWN, same), seen(OWN, other)]), varies("192.0.2.1"));
        // A NAT with several addresses that does not stay with one.
        assert_eq!(of(&[seen(OWN, same), seen(OWN, "192.0.2.2:4711")]), varies("192.0.2.1"));
        assert_eq!(of(&[seen(OWN, same), seen(OTHER, "192.0.2.2:5001")]), varies("192.0.2.1"));
    }

    #[test]
    fn an_observer_of_the_own_port_counts_more_than_one_of_another() {
        let seen = [seen(OTHER, "192.0.2.1:5001"), seen(OWN, "192.0.2.1:4711")];
        assert_eq!(of(&seen), stable("192.0.2.1:4711"));
    }

    #[test]
    fn a_nat_that_has_varied_varies() {
        let varied = Some("192.0.2.1".parse().unwrap());
        let one = [seen(OWN, "192.0.2.1:4711")];
        assert_eq!(mapping(OWN, true, &one, varied), varies("192.0.2.1"));
        // This is another one.
        let one = [seen(OWN, "192.0.2.9:4711")];
        assert_eq!(mapping(OWN, true, &one, varied), stable("192.0.2.9:4711"));
    }

    #[test]
    fn what_says_nothing_does_not_count() {
        let of_both = |local: &str, observed: &str| Observation {
            local: local.parse().unwrap(),
            observed: observed.parse().unwrap(),
        };
        for (local, observed) in [
            // No NAT.
            ("10.0.0.1:5000", "10.0.0.1:5000"),
            // A translator between the families.
            ("10.0.0.1:5000", "[2001:db8::1]:4711"),
            // Addresses that an observer with bad intentions may name.
            ("10.0.0.1:5000", "127.0.0.1:4711"),
            ("10.0.0.1:5000", "224.0.0.1:4711"),
            ("10.0.0.1:5000", "169.254.169.254:4711"),
            ("10.0.0.1:5000", "192.0.2.1:0"),
        ] {
            assert_eq!(of(&[of_both(local, observed)]), Mapping::Unknown, "{observed}");
        }
        let mapped = of_both("[::ffff:10.0.0.1]:5000", "[::ffff:192.0.2.1]:4711");
        assert_eq!(of(&[mapped]), stable("192.0.2.1:4711"));
    }

    #[test]
    fn the_families_are_apart() {
        let both = [seen(OWN, "192.0.2.1:4711"), seen(OWN, "[2001:db8::1]:4712")];
        assert_eq!(mapping(OWN, true, &both, None), stable("192.0.2.1:4711"));
        assert_eq!(mapping(OWN, false, &both, None), stable("[2001:db8::1]:4712"));
    }
}
