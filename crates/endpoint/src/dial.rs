//! Connects to a host by whichever of its addresses answers first (Happy Eyeballs, RFC 8305). On IPv6-only networks it
//! reaches an IPv4 address through the network's translator.

use std::{
    collections::VecDeque,
    error::Error,
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use super::{
    discovery::addresses,
    nat64::{self, Prefix},
    path::{self, Port},
};

/// The pause before the next address is tried beside those that have not answered (RFC 8305, section 5).
const STAGGER: Duration = Duration::from_millis(250);
/// The most addresses of one name that are tried; real hosts have fewer.
const MAX_ADDRESSES: usize = 16;
/// How long to wait for the network's translation prefix.
const TRANSLATION: Duration = Duration::from_secs(2);

/// Why no address of a host answered.
#[derive(Debug)]
#[non_exhaustive]
pub enum DialError {
    /// The name does not resolve to an address.
    Resolve(io::Error),
    /// The addresses that were tried, each with its error.
    Connect(Vec<(SocketAddr, io::Error)>),
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolve(error) => write!(f, "{error}"),
            Self::Connect(tried) => {
                for (i, (address, error)) in tried.iter().enumerate() {
                    let separator = if i == 0 { "" } else { "; " };
                    write!(f, "{separator}{address}: {error}")?;
                }
                Ok(())
            }
        }
    }
}

impl Error for DialError {
    /// Returns the error of the first address that was tried, or of the resolver.
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Resolve(error) => Some(error),
            Self::Connect(tried) => tried.first().map(|(_, error)| error as _),
        }
    }
}

/// Connects to `host:port`, or to `[IPv6]:port`.
///
/// Tries the addresses in the resolver's order, but with the two families in turn. The next attempt starts when the one
/// before it has failed or has not answered for 250 ms. If all are IPv4 addresses and the first has not answered by
/// then, asks the network for a translator's prefix (RFC 7050), and tries the addresses with it too (RFC 8305, section
/// 7).
///
/// # Errors
/// An error with every address that was tried.
pub(super) async fn dial(address: &str) -> Result<TcpStream, DialError> {
    let found = addresses(address).await.map_err(DialError::Resolve)?;
    dial_any(found, Port::Own, translate).await
}

/// Does the same from a port on which this user may also listen, and only to those addresses that `choose` leaves.
///
/// # Errors
/// Those of [`dial`].
pub(super) async fn dial_chosen(
    address: &str,
    choose: impl FnOnce(Vec<SocketAddr>) -> Vec<SocketAddr>,
) -> Result<TcpStream, DialError> {
    let found = addresses(address).await.map_err(DialError::Resolve)?;
    dial_any(choose(found), Port::Shared, translate).await
}

/// Connects, as to a server, to the addresses of one machine on a local network, where nothing is translated.
///
/// # Errors
/// An error with every address that was tried.
pub async fn dial_addresses(addresses: Vec<SocketAddr>) -> Result<TcpStream, DialError> {
    dial_any(addresses, Port::Own, |_| std::future::ready(Vec::new())).await
}

/// The result of an attempt.
enum Attempt {
    Connected(SocketAddr, io::Result<TcpStream>),
    Translated(Vec<SocketAddr>),
}

/// Does the same as [`dial`] for addresses, with a way to have IPv4 addresses translated.
async fn dial_any<F>(
    found: Vec<SocketAddr>,
    port: Port,
    translate: impl FnOnce(Vec<(Ipv4Addr, u16)>) -> F,
) -> Result<TcpStream, DialError>
where
    F: Future<Output = Vec<SocketAddr>> + Send + 'static,
{
    let addresses = interleave(found);
    if addresses.is_empty() {
        let error = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        return Err(DialError::Resolve(error));
    }
    let v4 = only_v4(&addresses);
    let mut translate = (!v4.is_empty()).then_some(translate);
    let mut waiting = VecDeque::from(addresses);
    let mut attempts = JoinSet::new();
    let mut failed = Vec::new();
    let mut next_at = Instant::now();
    loop {
        let more = !waiting.is_empty() || translate.is_some();
        tokio::select! {
            biased;
            Some(attempt) = attempts.join_next() => match attempt {
                Ok(Attempt::Connected(_, Ok(stream))) => return Ok(stream),
                Ok(Attempt::Connected(address, Err(error))) => {
                    failed.push((address, error));
                    next_at = Instant::now();
                }
                Ok(Attempt::Translated(translated)) => {
                    waiting.extend(translated);
                    next_at = Instant::now();
                }
                // Attempts are neither aborted nor do they panic.
                Err(_) => {}
            },
            () = sleep_until(next_at), if more => {
                // Runs beside the second attempt.
                let begun = !attempts.is_empty() || !failed.is_empty();
                if begun && let Some(translate) = translate.take() {
                    let translating = translate(v4.clone());
                    attempts.spawn(async move { Attempt::Translated(translating.await) });
                }
                if let Some(address) = waiting.pop_front() {
                    attempts.spawn(async move {
                        Attempt::Connected(address, path::connect(address, port).await)
                    });
                }
                next_at = Instant::now() + STAGGER;
            }
            else => return Err(DialError::Connect(failed)),
        }
    }
}

/// Returns the addresses, if all of them are IPv4 addresses of other machines.
fn only_v4(addresses: &[SocketAddr]) -> Vec<(Ipv4Addr, u16)> {
    let other_machine = |address: &SocketAddr| match address.ip() {
        IpAddr::V4(ip) if !ip.is_loopback() && !ip.is_unspecified() => Some((ip, address.port())),
        _ => None,
    };
    addresses.iter().map(other_machine).collect::<Option<_>>().unwrap_or_default()
}

/// Asks the network's DNS for its translation prefix and translates the addresses; returns none without a prefix.
async fn translate(addresses: Vec<(Ipv4Addr, u16)>) -> Vec<SocketAddr> {
    let asking = tokio::net::lookup_host((nat64::WELL_KNOWN_NAME, 0));
    let Ok(Ok(found)) = timeout(TRANSLATION, asking).await else { return Vec::new() };
    let prefixes = Prefix::discover(found.map(|address| address.ip()));
    let mut translated = Vec::new();
    for (ip, port) in addresses {
        let mapped = prefixes.iter().filter_map(|prefix| prefix.map(ip));
        translated.extend(mapped.map(|ip| SocketAddr::from((ip, port))));
    }
    translated
}

/// Returns the same addresses, each once, beginning with the family of the first, the families in turn.
fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let mut once: Vec<SocketAddr> = Vec::new();
    for address in addresses {
        if !once.contains(&address) {
            once.push(address);
        }
    }
    let first_is_v6 = once.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) =
        once.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut turns = Vec::new();
    loop {
        let pair = [first.next(), second.next()];
        if pair == [None, None] || turns.len() >= MAX_ADDRESSES {
            return turns;
        }
        turns.extend(pair.into_iter().flatten());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_families_take_turns_and_each_address_is_tried_once() {
        let found =
            all(&["[::1]:1", "[::2]:1", "[::1]:1", "127.0.0.1:1", "127.0.0.2:1", "127.0.0.3:1"]);
        let turns = all(&["[::1]:1", "127.0.0.1:1", "[::2]:1", "127.0.0.2:1", "127.0.0.3:1"]);
        assert_eq!(interleave(found), turns);
        assert_eq!(interleave(Vec::new()), Vec::new());
        let many = (0..100).map(|n| SocketAddr::from(([127, 0, 0, n], 1))).collect();
        assert_eq!(interleave(many).len(), MAX_ADDRESSES);
    }

    #[tokio::test]
    async fn every_address_that_was_tried_is_named() {
        // A listener that is closed again: the port is refused on both families.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let error = dial(&format!("127.0.0.1:{port}")).await.unwrap_err();
        assert!(matches!(&error, DialError::Connect(tried) if tried.len() == 1), "{error:?}");
        assert!(error.to_string().starts_with(&format!("127.0.0.1:{port}: ")), "{error}");
        let error = dial("no-such-host.invalid:5222").await.unwrap_err();
        assert!(matches!(error, DialError::Resolve(_)), "{error:?}");
    }

    #[tokio::test]
    async fn an_ipv4_address_is_reached_through_the_translator() {
        let listener = tokio::net::TcpListener::bind("[::1]:0").await.unwrap();
        let there = listener.local_addr().unwrap();
        // A multicast address cannot be connected to.
        let dead = all(&["224.0.0.1:7"]);
        let stream = dial_any(dead.clone(), Port::Own, |v4| async move {
            assert_eq!(v4, [(Ipv4Addr::new(224, 0, 0, 1), 7)]);
            vec![there]
        });
        assert_eq!(stream.await.unwrap().peer_addr().unwrap(), there);
        let error = dial_any(dead, Port::Own, |_| async { Vec::new() }).await.unwrap_err();
        assert!(matches!(&error, DialError::Connect(tried) if tried.len() == 1), "{error:?}");
    }

    #[tokio::test]
    async fn no_translator_is_asked_for_where_none_is_needed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let closed = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, address.port()));
        for found in [vec![address], vec![all(&["224.0.0.1:7"])[0], closed]] {
            let asked = |_| async { unreachable!("nothing here is translated") };
            assert!(dial_any(found, Port::Own, asked).await.is_err());
        }
        assert_eq!(only_v4(&all(&["192.0.2.1:1", "[::2]:1"])), []);
        assert_eq!(only_v4(&all(&["192.0.2.1:1", "192.0.2.2:2"])).len(), 2);
    }

    #[tokio::test]
    async fn a_dead_address_does_not_hide_a_live_one() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        // The name has both families where the machine has IPv6; only one of them listens.
        let stream = dial(&format!("localhost:{port}")).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), listener.local_addr().unwrap());
    }
}
