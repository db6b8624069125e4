//! Attempts on loopback: the peer, strangers, and what follows a greeting.

use tokio::sync::mpsc::error::TryRecvError;

use super::*;

const A: u8 = 1;
const B: u8 = 2;

fn keys(own: u8, peer: u8) -> GreetingKeys {
    GreetingKeys { own: [own; 32], peer: [peer; 32] }
}

fn open() -> Listening {
    Listening::open_in(Scope::Loopback, None).unwrap()
}

fn connect(listening: Listening, theirs: &[Candidate], keys: GreetingKeys) -> Connecting {
    let is_client = keys.own == [A; 32];
    listening.connect(theirs, keys, is_client)
}

/// Returns the next connection of the peer.
async fn greeted(connecting: &mut Connecting) -> Option<(DirectStream, SocketAddr)> {
    loop {
        match connecting.next().await? {
            Found::Peer(stream, from) => return Some((stream, from)),
            Found::PortRefused => {}
        }
    }
}

/// Returns the first connections of two sides whose next bytes meet.
async fn pair(a: &mut Connecting, b: &mut Connecting) -> (DirectStream, DirectStream) {
    let (mut one, _) = greeted(a).await.unwrap();
    one.write_all(b"one").await.unwrap();
    loop {
        let (mut other, _) = greeted(b).await.unwrap();
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
    let mut a = connect(a, &of_b, keys(A, B));
    let mut b = connect(b, &of_a, keys(B, A));
    pair(&mut a, &mut b).await;
}

#[tokio::test]
async fn one_side_may_only_accept() {
    let (a, b) = (open(), open());
    let of_a = a.candidates();
    let mut a = connect(a, &[], keys(A, B));
    let mut b = connect(b, &of_a, keys(B, A));
    let (one, other) = pair(&mut a, &mut b).await;
    // Accepted, and from the port on which the other side listens.
    assert_eq!(one.peer_addr().unwrap(), other.local_addr().unwrap());
    assert!(of_a.iter().any(|own| own.address == one.local_addr().unwrap()));
}

#[tokio::test]
async fn a_dial_comes_from_the_listener_s_port() {
    let (a, b) = (open(), open());
    let (of_a, of_b) = (a.candidates(), b.candidates());
    let mut a = connect(a, &[], keys(A, B));
    let _b = connect(b, &of_a, keys(B, A));
    let (_, from) = greeted(&mut a).await.unwrap();
    assert!(of_b.iter().any(|candidate| candidate.address == from), "{from} {of_b:?}");
}

#[tokio::test]
async fn a_stranger_gets_random_bytes_and_the_peer_gets_in() {
    let (a, b) = (open(), open());
    let of_a = a.candidates();
    let mut a = connect(a, &[], keys(A, B));
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
    let mut b = connect(b, &of_a, keys(B, A));
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
        let mut found = connect(a, &[], keys(A, B));
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
        assert_eq!(found.events.try_recv().unwrap_err(), TryRecvError::Empty);
    }
}

#[tokio::test]
async fn bytes_right_after_the_greeting_are_kept() {
    let a = open();
    let of_a = a.candidates();
    let mut found = connect(a, &[], keys(A, B));
    let mut peer = TcpStream::connect(of_a[0].address).await.unwrap();
    let mut nonce = [0; NONCE];
    peer.read_exact(&mut nonce).await.unwrap();
    let b_keys = keys(B, A);
    let mut greeting = Greeting::new(&b_keys, [7; NONCE]);
    let mut all = greeting.take_output();
    greeting.take(&mut &nonce[..]).unwrap();
    all.extend(greeting.take_output());
    greeting.frame_keys().unwrap().seal(b"a record", &mut all).unwrap();
    peer.write_all(&all).await.unwrap();
    let (mut stream, _) = greeted(&mut found).await.unwrap();
    let mut got = [0; 8];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"a record");
}

#[tokio::test]
async fn an_attempt_ends_with_its_receiver() {
    let a = open();
    let of_a = a.candidates();
    drop(connect(a, &[], keys(A, B)));
    // The port is closed as soon as the attempt has noticed.
    while TcpStream::connect(of_a[0].address).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_without_the_peer_ends() {
    let a = open();
    let begun = Instant::now();
    assert!(greeted(&mut connect(a, &[], keys(A, B))).await.is_none());
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
async fn the_observed_address_is_offered_first_and_without_a_port_that_cannot_be_foretold() {
    let mut listening = open();
    let port = listening.port(Ipv4Addr::LOCALHOST.into()).unwrap();
    let local = SocketAddr::from(([10, 0, 0, 1], port));
    let seen = |port| SocketAddr::from(([192, 0, 2, 1], port));
    for (observed, expected) in [(seen(4711), seen(4711)), (seen(4712), seen(0))] {
        listening.observed(Observation { local, observed });
        let first = listening.candidates()[0];
        assert_eq!((first.address, first.kind), (expected, CandidateKind::ServerReflexive));
    }
    assert!(listening.candidates()[1..].iter().all(|one| one.kind == CandidateKind::Host));
}

#[tokio::test]
async fn between_two_symmetric_nats_only_other_addresses_are_dialled() {
    let own = |ports: &[u16]| {
        let mut listening = Listening::open_in(Scope::Network, None).unwrap();
        let local = SocketAddr::from((
            [10, 0, 0, 1],
            listening.port(Ipv4Addr::UNSPECIFIED.into()).unwrap(),
        ));
        for port in ports {
            let observed = SocketAddr::from(([192, 0, 2, 1], *port));
            listening.observed(Observation { local, observed });
        }
        listening
    };
    let of = |address: &str, kind| Candidate { address: address.parse().unwrap(), kind };
    let host = of("198.51.100.1:5000", CandidateKind::Host);
    let [stable, varies] = ["198.51.100.2:4711", "198.51.100.2:0"]
        .map(|address| of(address, CandidateKind::ServerReflexive));
    let targets = |ports: &[u16], reflexive| {
        let targets = own(ports).targets(&[host, reflexive]);
        targets.into_iter().map(|(address, pace)| (address.to_string(), pace)).collect::<Vec<_>>()
    };
    let target = |address: &str, pace| (address.to_owned(), pace);
    let [direct, known, guess] = ["198.51.100.1:5000", "198.51.100.2:4711", "198.51.100.2:5000"];
    let [quick, crossing, slow] = [Pace::Quick, Pace::Crossing, Pace::Slow];
    assert_eq!(targets(&[1], stable), [target(known, crossing), target(direct, quick)]);
    assert_eq!(targets(&[1], varies), [target(guess, slow), target(direct, quick)]);
    assert_eq!(targets(&[1, 2], stable), [target(known, slow), target(direct, quick)]);
    assert_eq!(targets(&[1, 2], varies), [target(direct, quick)]);
}

/// The peer hears of a port that is taken because dials were refused, so it must not choose who refuses in our own network.
#[tokio::test]
async fn refusals_in_an_own_network_are_no_reason_to_take_another_port() {
    let listening = Listening::open_in(Scope::Network, None).unwrap();
    let of = |address: &str| {
        let address = address.parse().unwrap();
        let paces =
            listening.targets(&[Candidate { address, kind: CandidateKind::ServerReflexive }]);
        paces.into_iter().map(|(_, pace)| pace).next()
    };
    for address in ["192.168.77.7:5000", "10.77.77.7:5000", "[fd77::7]:5000"] {
        assert_eq!(of(address), Some(Pace::Quick), "{address}");
    }
    assert_eq!(of("198.51.100.2:5000"), Some(Pace::Crossing));
    // The peer knows the address of our NAT.
    let mut listening = listening;
    let own = "10.0.0.1:6000".parse().unwrap();
    listening.observed(Observation { local: own, observed: "198.51.100.2:6000".parse().unwrap() });
    listening.known_to_vary(Some("198.51.100.3".parse().unwrap()));
    for (address, pace) in [
        ("198.51.100.2:5000", Some(Pace::Quick)),
        ("198.51.100.3:5000", Some(Pace::Quick)),
        ("198.51.100.4:5000", Some(Pace::Crossing)),
    ] {
        let theirs =
            Candidate { address: address.parse().unwrap(), kind: CandidateKind::ServerReflexive };
        let paces = listening.targets(&[theirs]).into_iter().map(|(_, pace)| pace);
        assert_eq!(paces.clone().next(), pace, "{address}");
    }
}

#[tokio::test]
async fn a_stun_server_is_asked_from_the_listener_s_port_and_the_connection_is_kept() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut listening = open();
    let own = listening.port(Ipv4Addr::LOCALHOST.into()).unwrap();
    let asking = listening.ask(server.local_addr().unwrap());
    let answering = async {
        let (mut stream, from) = server.accept().await.unwrap();
        let mut answer = [0; 20];
        stream.read_exact(&mut answer).await.unwrap();
        // 192.0.2.1:32853.
        (answer[0], answer[1], answer[3]) = (1, 1, 12);
        let mapped = [0, 0x20, 0, 8, 0, 1, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43];
        stream.write_all(&[&answer[..], &mapped].concat()).await.unwrap();
        (stream, from)
    };
    let (answer, (mut stream, from)) = tokio::join!(asking, answering);
    assert_eq!(from.port(), own);
    listening.keep(answer.unwrap());
    let expected = SocketAddr::from(([192, 0, 2, 1], 32853));
    assert_eq!(listening.mapping(true), Mapping::Stable(expected));
    assert_eq!(stream.try_read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    drop(listening);
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_peer_that_has_moved_is_dialled_where_it_is_now() {
    let (old, new, b) = (open(), open(), open());
    let (of_old, of_new) = (old.candidates(), new.candidates());
    // Nobody listens there any more.
    drop(old);
    let mut b = connect(b, &of_old, keys(B, A));
    let mut a = connect(new, &[], keys(A, B));
    b.peer_has_moved(of_new);
    pair(&mut a, &mut b).await;
}

#[tokio::test]
async fn a_side_that_takes_another_port_is_reached_there() {
    let (a, b, new) = (open(), open(), open());
    let (of_a, of_new) = (a.candidates(), new.candidates());
    let mut a = connect(a, &[], keys(A, B));
    a.take_port(new);
    let mut b = connect(b, &of_new, keys(B, A));
    pair(&mut a, &mut b).await;
    // The old port is closed.
    while TcpStream::connect(of_a[0].address).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_peer_moves_twice_and_to_no_other_address() {
    let of = |text: &str| Candidate { address: text.parse().unwrap(), kind: CandidateKind::Host };
    let listening = Listening::open_in(Scope::Network, None).unwrap();
    let theirs = [of("192.0.2.1:5000"), of("192.0.2.2:5000")];
    let mut attempt = Attempt::new(listening, &theirs, keys(A, B), true);
    let mut moved = |theirs: &[&str]| {
        attempt.change(Change::Theirs(theirs.iter().map(|text| of(text)).collect()));
        attempt.targets.iter().map(|(address, _)| address.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(moved(&["192.0.2.1:5001", "198.51.100.1:5001"]), ["192.0.2.1:5001"]);
    assert_eq!(moved(&["192.0.2.1:5002", "192.0.2.2:5002"]), ["192.0.2.1:5002"]);
    assert_eq!(moved(&["192.0.2.1:5003"]), ["192.0.2.1:5002"]);
}
