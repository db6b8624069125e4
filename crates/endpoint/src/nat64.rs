//! IPv4 addresses on IPv6-only networks: the IPv6 addresses that stand for them (RFC 6052), and their discovery (RFC
//! 7050). No I/O.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The name that has IPv4 addresses only: IPv6 ones come from the network's DNS64 (RFC 7050, section 2.2).
pub(super) const WELL_KNOWN_NAME: &str = "ipv4only.arpa";
/// The addresses of that name.
const WELL_KNOWN: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 0, 170), Ipv4Addr::new(192, 0, 0, 171)];
/// The prefix that all networks may use, for addresses of the internet only (RFC 6052, section 3.1).
const WELL_KNOWN_PREFIX: Ipv6Addr = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0);
/// The lengths that a prefix may have (RFC 6052, section 2.2), the usual one first.
const LENGTHS: [u32; 6] = [96, 64, 56, 48, 40, 32];
/// The most prefixes that are accepted from one network.
const MAX_PREFIXES: usize = 4;
/// Bits 64 to 71 must be zero (RFC 6052, section 2.2).
const RESERVED: u128 = 0xff << 56;

/// The bits before an IPv4 address, and perhaps behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prefix {
    bits: u128,
    /// The prefix's length in bits.
    length: u32,
}

impl Prefix {
    /// Finds the prefixes of a network in the addresses of [`WELL_KNOWN_NAME`].
    pub(super) fn discover(found: impl IntoIterator<Item = IpAddr>) -> Vec<Self> {
        let found: Vec<Ipv6Addr> = found
            .into_iter()
            .filter_map(|address| match address {
                IpAddr::V6(address) if address.to_ipv4_mapped().is_none() => Some(address),
                _ => None,
            })
            .collect();
        let mut prefixes: Vec<Self> = Vec::new();
        for address in &found {
            let readings: Vec<Self> = LENGTHS
                .into_iter()
                .filter_map(|length| Self::of(*address, length, &WELL_KNOWN))
                .collect();
            // More than one length may fit. The right one fits both well-known addresses (RFC 7050, section 3).
            let fits_both =
                |prefix: &&Self| WELL_KNOWN.iter().all(|v4| found.contains(&prefix.embed(*v4)));
            let prefix = readings.iter().find(fits_both).or(readings.first()).copied();
            if let Some(prefix) = prefix
                && !prefixes.contains(&prefix)
                && prefixes.len() < MAX_PREFIXES
            {
                prefixes.push(prefix);
            }
        }
        prefixes
    }

    /// Reads a prefix of this length from an address that stands for one of `known`.
    fn of(address: Ipv6Addr, length: u32, known: &[Ipv4Addr]) -> Option<Self> {
        let prefix = Self { bits: address.to_bits() & !(u128::MAX >> length), length };
        known.iter().any(|v4| prefix.embed(*v4) == address).then_some(prefix)
    }

    /// Returns the address that stands for an IPv4 address. `None` if the network's translator would not accept it: it
    /// is not that of another machine, or not one of the internet behind the well-known prefix.
    pub(super) fn map(self, v4: Ipv4Addr) -> Option<Ipv6Addr> {
        let nowhere = v4.is_unspecified() || v4.is_loopback() || v4.is_link_local();
        let private = v4.is_private() || v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64;
        let well_known = self.length == 96 && self.bits == WELL_KNOWN_PREFIX.to_bits();
        let refused = nowhere || v4.is_multicast() || v4.is_broadcast() || well_known && private;
        (!refused).then(|| self.embed(v4))
    }

    /// Puts the four bytes behind the prefix, around the reserved byte.
    fn embed(self, v4: Ipv4Addr) -> Ipv6Addr {
        let v4 = u128::from(v4.to_bits());
        let straight = v4 << (96 - self.length);
        let embedded = if self.length == 96 {
            straight
        } else {
            // Bits in the reserved byte, and behind it, move by eight bits.
            let before = straight & !(u128::from(u64::MAX));
            let after = straight & u128::from(u64::MAX);
            before | after >> 8
        };
        Ipv6Addr::from_bits(self.bits & !if self.length < 96 { RESERVED } else { 0 } | embedded)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v6(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    fn prefix(text: &str) -> Prefix {
        let (bits, length) = text.split_once('/').unwrap();
        Prefix { bits: v6(bits).to_bits(), length: length.parse().unwrap() }
    }

    /// RFC 6052, section 2.4, tables 2 and 3.
    const VECTORS: [(&str, &str); 7] = [
        ("2001:db8::/32", "2001:db8:c000:221::"),
        ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
        ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
        ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
        ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
        ("2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33"),
        ("64:ff9b::/96", "64:ff9b::192.0.2.33"),
    ];

    #[test]
    fn an_address_is_mapped_as_the_vectors_of_rfc_6052() {
        for (text, mapped) in VECTORS {
            let mapped = Some(v6(mapped));
            assert_eq!(prefix(text).map(Ipv4Addr::new(192, 0, 2, 33)), mapped, "{text}");
        }
    }

    #[test]
    fn a_prefix_of_any_length_is_found_in_the_addresses_of_the_name() {
        for (text, _) in VECTORS {
            let prefix = prefix(text);
            let both = WELL_KNOWN.map(|v4| IpAddr::from(prefix.embed(v4)));
            assert_eq!(Prefix::discover(both), [prefix], "{text}");
            let with_v4 = both.into_iter().chain(WELL_KNOWN.map(IpAddr::from));
            assert_eq!(Prefix::discover(with_v4), [prefix], "{text}");
            assert_eq!(Prefix::discover([both[0]]), [prefix], "{text}, one answer");
        }
        // The answer of BIND's dns64 with a prefix of its own.
        let bind = ["2001:db8:6464::c000:aa", "2001:db8:6464::c000:ab"].map(|text| v6(text).into());
        assert_eq!(Prefix::discover(bind), [prefix("2001:db8:6464::/96")]);
    }

    #[test]
    fn no_other_answer_is_a_prefix() {
        for other in ["2001:db8::1", "::", "::ffff:192.0.0.170", "2001:db8::c000:ac"] {
            assert_eq!(Prefix::discover([v6(other).into()]), [], "{other}");
        }
        assert_eq!(Prefix::discover(WELL_KNOWN.map(IpAddr::from)), []);
    }

    #[test]
    fn several_prefixes_are_kept_and_an_ambiguous_one_is_the_one_that_fits_both() {
        let (one, two) = (prefix("2001:db8:1::/96"), prefix("2001:db8:2::/64"));
        let all = WELL_KNOWN.iter().flat_map(|v4| [one.embed(*v4).into(), two.embed(*v4).into()]);
        assert_eq!(Prefix::discover(all), [one, two]);
        // The prefix itself contains a well-known address.
        let twice = prefix("2001:db8:c000:aa::/96");
        let both = WELL_KNOWN.map(|v4| IpAddr::from(twice.embed(v4)));
        assert_eq!(Prefix::discover(both), [twice]);
        let many =
            (0..100).map(|n| prefix(&format!("2001:db8:{n}::/96")).embed(WELL_KNOWN[0]).into());
        assert_eq!(Prefix::discover(many).len(), MAX_PREFIXES);
    }

    #[test]
    fn what_no_translator_takes_is_not_mapped() {
        let own = prefix("2001:db8:6464::/96");
        for text in ["127.0.0.1", "0.0.0.0", "169.254.1.1", "224.0.0.251", "255.255.255.255"] {
            assert_eq!(own.map(text.parse().unwrap()), None, "{text}");
        }
        let private = Ipv4Addr::new(10, 0, 0, 1);
        assert!(own.map(private).is_some(), "a network may translate its own addresses");
        assert_eq!(prefix("64:ff9b::/96").map(private), None);
        assert_eq!(prefix("64:ff9b::/96").map(Ipv4Addr::new(100, 64, 0, 1)), None);
    }

    proptest! {
        #[test]
        fn what_is_mapped_can_be_read_back(bits in any::<u128>(), v4 in any::<u32>(), index in 0_usize..6) {
            let length = LENGTHS[index];
            let bits = bits & !(u128::MAX >> length);
            let bits = if length == 96 { bits } else { bits & !RESERVED };
            let prefix = Prefix { bits, length };
            let v4 = Ipv4Addr::from_bits(v4);
            let address = prefix.embed(v4);
            prop_assert_eq!(Prefix::of(address, length, &[v4]), Some(prefix));
            if length < 96 {
                prop_assert_eq!(address.octets()[8], 0);
            }
        }
    }
}
