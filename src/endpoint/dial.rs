//! Connects to a host by whichever of its addresses answers first (Happy Eyeballs, RFC 8305).

use std::{fmt, io, net::SocketAddr, time::Duration};

use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep_until},
};

/// Pause before the next address is tried beside the ones that have not answered (RFC 8305, section 5).
const STAGGER: Duration = Duration::from_millis(250);
/// Addresses of one name that are tried; more than any real host has.
const MAX_ADDRESSES: usize = 16;

/// Why no address of a host answered.
#[derive(Debug)]
pub(super) enum DialError {
    /// The name does not resolve to an address.
    Resolve(io::Error),
    /// Each address that was tried, with its error.
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

/// Connects to `host:port`, or to `[IPv6]:port`.
///
/// Addresses are tried in the resolver's order, but with the two families in turn, each as soon as one before it has
/// failed or has not answered for 250 ms.
///
/// # Errors
/// [`DialError`], with every address that was tried.
pub(super) async fn dial(address: &str) -> Result<TcpStream, DialError> {
    let found = tokio::net::lookup_host(address).await.map_err(DialError::Resolve)?;
    let addresses = interleave(found.collect());
    if addresses.is_empty() {
        let error = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        return Err(DialError::Resolve(error));
    }
    let mut waiting = addresses.into_iter();
    let mut attempts = JoinSet::new();
    let mut failed = Vec::new();
    let mut next_at = Instant::now();
    loop {
        let more = waiting.len() > 0;
        tokio::select! {
            biased;
            Some(attempt) = attempts.join_next() => match attempt {
                Ok((_, Ok(stream))) => return Ok(stream),
                Ok((address, Err(error))) => {
                    failed.push((address, error));
                    next_at = Instant::now();
                }
                // Attempts are neither aborted nor do they panic.
                Err(_) => {}
            },
            () = sleep_until(next_at), if more => {
                if let Some(address) = waiting.next() {
                    attempts.spawn(async move { (address, TcpStream::connect(address).await) });
                }
                next_at = Instant::now() + STAGGER;
            }
            else => return Err(DialError::Connect(failed)),
        }
    }
}

/// The same addresses, each once, beginning with the family of the first, the families in turn.
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
    async fn a_dead_address_does_not_hide_a_live_one() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        // The name has both families where the machine has IPv6; only one of them listens.
        let stream = dial(&format!("localhost:{port}")).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), listener.local_addr().unwrap());
    }
}
