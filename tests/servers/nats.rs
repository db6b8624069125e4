//! Direct connections between two hosts behind real NATs.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::thread;
use std::time::Duration;

use fingerpost_endpoint::probe::Probe;
use support::netns::{Nat, Place, TwoNats, Unasked};
use support::root;

/// Answers each connection in the public network with the address that it comes from.
fn observer(networks: &TwoNats) -> SocketAddr {
    let listener =
        networks.inside(Place::Public, || TcpListener::bind((TwoNats::SERVERS, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    // It ends with the process.
    thread::spawn(move || {
        let mut connections = Vec::new();
        while let Ok((mut connection, from)) = listener.accept() {
            let _ = connection.write_all(format!("{from}\n").as_bytes());
            connections.push(connection);
        }
    });
    address
}

/// Runs one attempt of both sides, of which the second begins late; returns whether they have connected.
fn attempt(networks: &TwoNats, observer: SocketAddr, late: Duration) -> bool {
    let (to_a, from_b) = std::sync::mpsc::channel();
    let (to_b, from_a) = std::sync::mpsc::channel();
    let side =
        |is_client: bool, tell: std::sync::mpsc::Sender<_>, hear: std::sync::mpsc::Receiver<_>| {
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.unwrap().block_on(async {
                    let probe = Probe::open(observer).await.unwrap();
                    tell.send(probe.candidates()).unwrap();
                    let theirs = hear.recv().unwrap();
                    if !is_client {
                        tokio::time::sleep(late).await;
                    }
                    probe.connect(&theirs, is_client).await
                })
            }
        };
    let (a, b) = thread::scope(|scope| {
        let a = scope.spawn(|| networks.inside(Place::HostA, side(true, to_b, from_b)));
        let b = scope.spawn(|| networks.inside(Place::HostB, side(false, to_a, from_a)));
        (a.join().unwrap(), b.join().unwrap())
    });
    assert_eq!(a.is_some(), b.is_some(), "both know whether they are connected: {a:?} {b:?}");
    a.is_some()
}

/// Returns whether TCP can connect hosts behind these NATs directly: not if the mapping of one side cannot be foretold, and the
/// other NAT lets in only the addresses and ports to which its host has sent something.
fn is_possible(nats: [Nat; 2]) -> bool {
    let strict = |nat| matches!(nat, Nat::PortRestricted | Nat::Symmetric);
    !(nats.contains(&Nat::Symmetric) && nats.iter().all(|nat| strict(*nat)))
}

fn table() -> String {
    let names: Vec<&str> = Nat::ALL.iter().map(|nat| nat.name()).collect();
    let mut table = format!("| | {} |\n|---|{}\n", names.join(" | "), "---|".repeat(names.len()));
    for a in Nat::ALL {
        let cells = Nat::ALL.map(|b| if is_possible([a, b]) { "direct" } else { "relay" });
        table.push_str(&format!("| {} | {} |\n", a.name(), cells.join(" | ")));
    }
    table
}

/// With `FINGERPOST_WRITE_INTEROP` set (`make direct-test`), tries all pairs and writes the table into the page. Otherwise
/// tries some, and the table must be there.
#[test]
fn hosts_behind_nats_connect_wherever_tcp_can() {
    const BEGIN: &str = "<!-- nats -->\n";
    const END: &str = "<!-- end of nats -->";
    let writes = std::env::var_os("FINGERPOST_WRITE_INTEROP").is_some();
    let all = Nat::ALL.into_iter().flat_map(|a| Nat::ALL.map(|b| [a, b]));
    let some = [
        [Nat::None; 2],
        [Nat::PortRestricted; 2],
        [Nat::AddressRestricted, Nat::Symmetric],
        [Nat::Symmetric; 2],
    ];
    let pairs: Vec<[Nat; 2]> = if writes { all.collect() } else { some.to_vec() };
    for nats in pairs {
        let networks = TwoNats::start(nats[0], nats[1]);
        let observer = observer(&networks);
        assert_eq!(attempt(&networks, observer, Duration::ZERO), is_possible(nats), "{nats:?}");
    }

    let path = root().join("docs/INTEROP.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let from = page.find(BEGIN).expect("the page has a table") + BEGIN.len();
    let to = page.find(END).expect("the table has an end");
    if writes {
        let written = format!("{}{}{}", &page[..from], table(), &page[to..]);
        std::fs::write(path, written).unwrap();
    } else {
        assert_eq!(&page[from..to], table(), "run `make direct-test` to rewrite the page");
    }
}

/// The first dial of the earlier side finds the other NAT closed. If that NAT resets it, the side dials again and again until
/// the two sides' dials cross.
#[test]
fn a_side_that_begins_late_is_reached_also_if_its_nat_refuses_the_first_dials() {
    for unasked in [Unasked::Drop, Unasked::Reset] {
        let mut networks = TwoNats::start_with([Nat::PortRestricted; 2], unasked);
        // Without a delay the dials would hardly ever cross.
        networks.delay(10);
        let observer = observer(&networks);
        for late in [0, 35, 300] {
            let connected = attempt(&networks, observer, Duration::from_millis(late));
            assert!(connected, "{unasked:?}, {late} ms late");
        }
    }
}

#[test]
fn the_networks_are_removed_also_after_a_panic() {
    let mut names = Vec::new();
    let panics = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let networks = TwoNats::start(Nat::None, Nat::Symmetric);
        names =
            [Place::HostA, Place::Public, Place::NatB].map(|place| networks.name(place)).to_vec();
        assert!(names.iter().all(|name| Path::new("/run/netns").join(name).exists()));
        networks.inside(Place::HostA, || panic!("in a namespace"));
    }));
    assert_eq!(panics.unwrap_err().downcast_ref(), Some(&"in a namespace"));
    assert_eq!(names.len(), 3);
    assert!(!names.iter().any(|name| Path::new("/run/netns").join(name).exists()));
}
