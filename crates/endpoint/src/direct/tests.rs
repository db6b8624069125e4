//! Attempts on loopback: the peer, strangers, and what follows a greeting.

use tokio::sync::mpsc::{Receiver, error::TryRecvError};

use super::*;

const A: u8 = 1;
const B: u8 = 2;

fn keys(own: u8, peer: u8) -> GreetingKeys {
    GreetingKeys { own: [own; 32], peer: [peer; 32] }
}

fn open() -> Listening {
    Listening::open_in(Scope::Loopback, None).unwrap()
}

/// Returns the first connections of two sides whose next bytes meet.
async fn pair(
    a: &mut Receiver<(TcpStream, SocketAddr)>,
    b: &mut Receiver<(TcpStream, SocketAddr)>,
) -> (TcpStream, TcpStream) {
    let (mut one, _) = a.recv().await.unwrap();
    one.write_all(b"one").await.unwrap();
    loop {
        let (mut other, _) = b.recv().await.unwrap();
        if other.peer_addr().unwrap() == one.local_addr().unwrap() {
            let mut got = [0; 3];
            other.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, b"one");
            return (one, other);
        }
    }
}

#[tokio::test]
async fn two_sides_connect() {
    let (a, b) = (open(), open());
    let (of_a, of_b) = (a.candidates(), b.candidates());
    assert!(of_a.iter().all(|own| own.address.ip().is_loopback() && own.address.port() != 0));
    let mut a = a.connect(&of_b, keys(A, B));
    let mut b = b.connect(&of_a, keys(B, A));
    pair(&mut a, &mut b).await;
}

#[tokio::test]
async fn one_side_may_only_accept() {
    let (a, b) = (open(), open());
    let of_a = a.candidates();
    let mut a = a.connect(&[], keys(A, B));
    let mut b = b.connect(&of_a, keys(B, A));
    let (one, other) = pair(&mut a, &mut b).await;
    // Accepted, and from the port on which the other side listens.
    assert_eq!(one.peer_addr().unwrap(), other.local_addr().unwrap());
    assert!(of_a.iter().any(|own| own.address == one.local_addr().unwrap()));
}

#[tokio::test]
async fn a_dial_comes_from_the_listener_s_port() {
    let (a, b) = (open(), open());
    let (of_a, of_b) = (a.candidates(), b.candidates());
    let mut a = a.connect(&[], keys(A, B));
    let _b = b.connect(&of_a, keys(B, A));
    let (_, from) = a.recv().await.unwrap();
    assert!(of_b.iter().any(|candidate| candidate.address == from), "{from} {of_b:?}");
}

#[tokio::test]
async fn a_stranger_gets_random_bytes_and_the_peer_gets_in() {
    let (a, b) = (open(), open());
    let of_a = a.candidates();
    let mut a = a.connect(&[], keys(A, B));
    let mut strangers = Vec::new();
    // More than wait at a time: the first have lost their place.
    for _ in 0..2 * MOST_UNGREETED {
        let mut stranger = TcpStream::connect(of_a[0].address).await.unwrap();
        let mut nonce = [0; NONCE];
        stranger.read_exact(&mut nonce).await.unwrap();
        strangers.push((stranger, nonce));
    }
    for (stranger, _) in &mut strangers[..MOST_UNGREETED] {
        let ended = stranger.read(&mut [0; 1]).await;
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    }
    let mut b = b.connect(&of_a, keys(B, A));
    pair(&mut a, &mut b).await;
    let mut nonces: Vec<_> = strangers.iter().map(|(_, nonce)| *nonce).collect();
    nonces.sort_unstable();
    nonces.dedup();
    assert_eq!(nonces.len(), strangers.len(), "each nonce is new");
}

#[tokio::test]
async fn a_stranger_with_a_wrong_proof_or_the_own_one_is_dropped() {
    for reflects in [false, true] {
        let a = open();
        let of_a = a.candidates();
        let mut found = a.connect(&[], keys(A, B));
        let mut stranger = TcpStream::connect(of_a[0].address).await.unwrap();
        let mut greeting = [0; 48];
        stranger.read_exact(&mut greeting[..NONCE]).await.unwrap();
        stranger.write_all(&greeting[..NONCE]).await.unwrap();
        stranger.read_exact(&mut greeting[NONCE..]).await.unwrap();
        if !reflects {
            greeting[47] ^= 1;
        }
        stranger.write_all(&greeting[NONCE..]).await.unwrap();
        assert_eq!(stranger.read(&mut [0]).await.unwrap(), 0, "nothing more");
        assert_eq!(found.try_recv().unwrap_err(), TryRecvError::Empty);
    }
}

#[tokio::test]
async fn bytes_right_after_the_greeting_are_kept() {
    let a = open();
    let of_a = a.candidates();
    let mut found = a.connect(&[], keys(A, B));
    let mut peer = TcpStream::connect(of_a[0].address).await.unwrap();
    let mut nonce = [0; NONCE];
    peer.read_exact(&mut nonce).await.unwrap();
    let b_keys = keys(B, A);
    let mut greeting = Greeting::new(&b_keys, [7; NONCE]);
    let mut all = greeting.take_output();
    greeting.take(&mut &nonce[..]).unwrap();
    all.extend(greeting.take_output());
    all.extend_from_slice(b"a record");
    peer.write_all(&all).await.unwrap();
    let (mut stream, _) = found.recv().await.unwrap();
    let mut got = [0; 8];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"a record");
}

#[tokio::test]
async fn an_attempt_ends_with_its_receiver() {
    let a = open();
    let of_a = a.candidates();
    drop(a.connect(&[], keys(A, B)));
    // The port is closed as soon as the attempt has noticed.
    while TcpStream::connect(of_a[0].address).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_without_the_peer_ends() {
    let a = open();
    let begun = Instant::now();
    assert!(a.connect(&[], keys(A, B)).recv().await.is_none());
    assert_eq!(begun.elapsed(), punch::ATTEMPT);
}

#[tokio::test]
async fn the_port_of_a_shared_connection_is_used() {
    let relay = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = relay.local_addr().unwrap();
    let connected = path::connect(address, path::Port::Shared).await.unwrap();
    let local = connected.local_addr().unwrap();
    let listening = Listening::open_in(Scope::Loopback, Some(local)).unwrap();
    assert_eq!(listening.port(local.ip()), Some(local.port()));

    let alone = path::connect(address, path::Port::Own).await.unwrap();
    let local = alone.local_addr().unwrap();
    let listening = Listening::open_in(Scope::Loopback, Some(local)).unwrap();
    assert_ne!(listening.port(local.ip()), Some(local.port()), "not taken from others");
}

#[tokio::test]
async fn the_observed_address_is_offered_if_it_says_something() {
    let mut listening = open();
    let port = listening.port(Ipv4Addr::LOCALHOST.into()).unwrap();
    let other = port ^ 1;
    let local = |port| SocketAddr::from(([10, 0, 0, 1], port));
    let seen = |port| SocketAddr::from(([192, 0, 2, 1], port));
    for (at, observed, expected) in [
        // The listener's own port, however the NAT maps it.
        (local(port), seen(4711), Some(seen(4711))),
        // A NAT that keeps ports.
        (local(other), seen(other), Some(seen(port))),
        // Nothing is known of the listener's port.
        (local(other), seen(4711), None),
        // No NAT.
        (local(port), local(port), None),
        (local(port), "[2001:db8::1]:4711".parse().unwrap(), None),
        (
            "[::ffff:10.0.0.1]:4711".parse().unwrap(),
            "[::ffff:192.0.2.1]:4711".parse().unwrap(),
            Some(seen(port)),
        ),
    ] {
        listening.reflexive = None;
        listening.observed(at, observed);
        assert_eq!(listening.reflexive, expected, "{at} {observed}");
        let offered = listening.candidates();
        let first = offered.first().filter(|own| own.kind == CandidateKind::ServerReflexive);
        assert_eq!(first.map(|own| own.address), expected);
    }
}
