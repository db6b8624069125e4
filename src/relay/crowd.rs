//! The connections at the SOCKS5 port: those in their handshake, and connections that count against their address.
//!
//! | connection | bound | what happens at the bound |
//! |---|---|---|
//! | in its handshake | [`Bounds::of_one`] of an address, [`Bounds::of_all`] together | the oldest one makes room |
//! | waits for a transfer that nobody has announced | a number of seats of its address | the request is refused |
//! | of an activated transfer, or of a session | none: users have shares of those | |
//!
//! So a crowd of silent connections does not keep other clients out. This holds whether it comes from one address or,
//! through a port forwarder, from the address that all clients share.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::clock::now;

/// The most connections that may be in their handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Of one address.
    pub(super) of_one: usize,
    /// Of all addresses together.
    pub(super) of_all: usize,
}

impl Bounds {
    /// Returns the bounds for a listener that serves so many connections, and so many of one address. Few places are
    /// not divided.
    pub(super) fn of(connections: usize, of_one: usize) -> Self {
        let of_all = if connections < 128 { connections.max(1) } else { connections / 2 };
        let of_all = of_all.min(2048);
        Self { of_one: of_one.max(256).min(of_all), of_all }
    }
}

/// All connections of a listener. Cheap to clone; all clones share the same state.
#[derive(Clone, Debug, Default)]
pub(super) struct Crowd {
    state: Arc<Mutex<CrowdState>>,
}

#[derive(Debug, Default)]
struct CrowdState {
    next: u64,
    /// Those in their handshake, oldest first.
    greeting: BTreeMap<u64, Greeting>,
    networks: HashMap<IpAddr, Network>,
}

#[derive(Debug)]
struct Greeting {
    network: Option<IpAddr>,
    since: Instant,
    displaced: Arc<Displaced>,
}

/// The connections of one address.
#[derive(Debug, Default)]
struct Network {
    /// Those in their handshake.
    greeting: usize,
    seats: usize,
}

/// The connections that must make room, by number. Each accept loop has one of these.
#[derive(Debug, Default)]
pub(super) struct Displaced {
    numbers: Mutex<Vec<u64>>,
    came: Notify,
}

impl Displaced {
    fn push(&self, number: u64) {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner).push(number);
        self.came.notify_one();
    }

    /// Waits until one must make room.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(super) async fn came(&self) {
        self.came.notified().await;
    }

    /// Returns those that have not been returned yet.
    pub(super) fn take(&self) -> Vec<u64> {
        std::mem::take(&mut self.numbers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Crowd {
    /// Lets a connection begin its handshake. If there are too many, the oldest one makes room: its number is added to
    /// the `displaced` of its own loop. A connection without an address counts only among all: behind a load balancer
    /// the address is not known yet.
    pub(super) fn enter(
        &self,
        ip: Option<IpAddr>,
        bounds: Bounds,
        displaced: &Arc<Displaced>,
    ) -> Visitor {
        let mut state = self.lock();
        if state.greeting.len() >= bounds.of_all {
            state.displace(None, Duration::ZERO);
        }
        let number = state.next;
        state.next += 1;
        let displaced = Arc::clone(displaced);
        state.greeting.insert(number, Greeting { network: None, since: now(), displaced });
        let network = ip.map(network);
        if let Some(network) = network {
            state.comes_from(number, network, bounds);
        }
        drop(state);
        Visitor { crowd: self.clone(), number, network }
    }

    /// Ends the oldest handshake if it has taken at least this long.
    pub(super) fn displace(&self, at_least: Duration) {
        self.lock().displace(None, at_least);
    }

    /// Never held over an `.await`.
    fn lock(&self) -> MutexGuard<'_, CrowdState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CrowdState {
    /// Ends the oldest handshake, of one address or of all.
    fn displace(&mut self, network: Option<IpAddr>, at_least: Duration) {
        // An address with so many handshakes has some of the oldest.
        let mut all = self.greeting.iter();
        let oldest = all.find(|(_, greeting)| network.is_none() || greeting.network == network);
        let Some((&oldest, greeting)) = oldest else { return };
        if now().saturating_duration_since(greeting.since) >= at_least
            && let Some(greeting) = self.leave(oldest)
        {
            greeting.displaced.push(oldest);
        }
    }

    /// Notes the address of a handshake; the oldest one of that address makes room if there are too many.
    fn comes_from(&mut self, number: u64, network: IpAddr, bounds: Bounds) {
        if self.networks.get(&network).is_some_and(|of| of.greeting >= bounds.of_one) {
            self.displace(Some(network), Duration::ZERO);
        }
        // A connection that has made room already counts nowhere.
        if let Some(greeting) = self.greeting.get_mut(&number) {
            greeting.network = Some(network);
            self.change(network, |of| of.greeting += 1);
        }
    }

    fn leave(&mut self, number: u64) -> Option<Greeting> {
        let greeting = self.greeting.remove(&number)?;
        if let Some(network) = greeting.network {
            self.change(network, |of| of.greeting = of.greeting.saturating_sub(1));
        }
        Some(greeting)
    }

    /// Updates the record of an address, and drops a record that is empty.
    fn change(&mut self, network: IpAddr, change: impl FnOnce(&mut Network)) {
        let of = self.networks.entry(network).or_default();
        change(of);
        if of.greeting == 0 && of.seats == 0 {
            self.networks.remove(&network);
        }
    }
}

/// A connection in its handshake, until this is dropped.
#[derive(Debug)]
pub(super) struct Visitor {
    crowd: Crowd,
    number: u64,
    network: Option<IpAddr>,
}

impl Visitor {
    /// Returns the connection's number, which no other connection of the listener ever has.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Notes the address that counts; the oldest handshake of that address makes room if there are too many.
    pub(super) fn comes_from(&mut self, ip: IpAddr, bounds: Bounds) {
        let network = network(ip);
        self.crowd.lock().comes_from(self.number, network, bounds);
        self.network = Some(network);
    }

    /// Counts the connection against its address, unless `most` seats of that address are taken.
    pub(super) fn seat(&self, most: usize) -> Option<AddressSeat> {
        let network = self.network?;
        let mut state = self.crowd.lock();
        if state.networks.get(&network).is_some_and(|of| of.seats >= most) || most == 0 {
            return None;
        }
        state.change(network, |of| of.seats += 1);
        drop(state);
        Some(AddressSeat { crowd: self.crowd.clone(), network })
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        self.crowd.lock().leave(self.number);
    }
}

/// A connection that counts against its address, until this is dropped.
#[derive(Debug)]
pub(super) struct AddressSeat {
    crowd: Crowd,
    network: IpAddr,
}

impl Drop for AddressSeat {
    fn drop(&mut self) {
        self.crowd.lock().change(self.network, |of| of.seats = of.seats.saturating_sub(1));
    }
}

/// Returns what counts as one address: an IPv4 address, also inside IPv6, or the /64 of an IPv6 address.
pub(super) fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { of_one: 2, of_all: 4 };

    fn ip(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }

    /// A crowd with one loop, and the numbers that have made room.
    #[derive(Default)]
    struct Room {
        crowd: Crowd,
        loop_: Arc<Displaced>,
        gone: Vec<u64>,
    }

    impl Room {
        fn enter(&self, ip: Option<IpAddr>) -> Visitor {
            self.crowd.enter(ip, BOUNDS, &self.loop_)
        }

        fn displaced(&mut self, visitors: &[Visitor]) -> Vec<bool> {
            self.gone.extend(self.loop_.take());
            visitors.iter().map(|visitor| self.gone.contains(&visitor.number())).collect()
        }
    }

    #[test]
    fn the_oldest_handshake_of_an_address_makes_room_for_its_next() {
        let mut room = Room::default();
        let mine: Vec<_> = [1, 2, 1, 1].map(|n| room.enter(Some(ip(n)))).into();
        assert_eq!(
            room.displaced(&mine),
            [true, false, false, false],
            "another address is not affected"
        );
        // A connection that has made room no longer counts, whether or not it is gone.
        let next = room.enter(Some(ip(3)));
        assert_eq!(room.displaced(&mine), [true, false, false, false]);
        let one_more = room.enter(Some(ip(4)));
        assert_eq!(room.displaced(&mine), [true, true, false, false], "the oldest of all");
        drop((mine, next, one_more));
        assert!(room.crowd.lock().networks.is_empty() && room.crowd.lock().greeting.is_empty());
    }

    #[test]
    fn without_an_address_a_handshake_counts_among_all_only() {
        let mut room = Room::default();
        let mut behind: Vec<_> = (0..4).map(|_| room.enter(None)).collect();
        assert_eq!(room.displaced(&behind), [false; 4]);
        assert!(behind[0].seat(9).is_none(), "the address of this seat is not known");
        for visitor in &mut behind {
            visitor.comes_from(ip(7), BOUNDS);
        }
        assert_eq!(room.displaced(&behind), [true, true, false, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_young_handshake_is_given_time() {
        let mut room = Room::default();
        let mine = [room.enter(Some(ip(1)))];
        room.crowd.displace(Duration::from_secs(1));
        assert_eq!(room.displaced(&mine), [false]);
        tokio::time::advance(Duration::from_secs(1)).await;
        room.crowd.displace(Duration::from_secs(1));
        assert_eq!(room.displaced(&mine), [true]);
    }

    #[test]
    fn an_address_has_so_many_seats_and_all_are_given_back() {
        let room = Room::default();
        let visitor = room.enter(Some(ip(1)));
        let other = room.enter(Some(ip(2)));
        let seats: Vec<_> = (0..5).filter_map(|_| visitor.seat(3)).collect();
        assert_eq!(seats.len(), 3);
        assert!(other.seat(3).is_some());
        drop((visitor, other));
        assert_eq!(room.crowd.lock().networks.len(), 1, "the seats outlive the handshake");
        drop(seats);
        assert!(room.crowd.lock().networks.is_empty());
    }

    #[test]
    fn few_places_are_not_shared_out() {
        assert_eq!(Bounds::of(1, 64), Bounds { of_one: 1, of_all: 1 });
        assert_eq!(Bounds::of(2, 64), Bounds { of_one: 2, of_all: 2 });
        assert_eq!(Bounds::of(20_000, 64), Bounds { of_one: 256, of_all: 2048 });
        assert_eq!(Bounds::of(20_000, 1000), Bounds { of_one: 1000, of_all: 2048 });
    }

    #[test]
    fn an_ipv6_network_counts_as_one_address() {
        let ip = |text: &str| network(text.parse().unwrap());
        assert_eq!(ip("2001:db8::1"), ip("2001:db8::ffff:1"));
        assert_ne!(ip("2001:db8::1"), ip("2001:db8:0:1::1"));
        assert_eq!(ip("::ffff:192.0.2.1"), ip("192.0.2.1"));
        assert_ne!(ip("192.0.2.1"), ip("192.0.2.2"));
    }
}
