//! Direct connections between two hosts behind real NATs.

use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use fingerpost_endpoint::probe::{Moves, Probe};
use support::{
    PATIENCE,
    internet::Internet,
    netns::{Nat, Place, TwoNats, Unasked},
    process::{Process, read},
    programs::{Options, events},
    random_file, report, root,
    servers::{Kind, Server},
    sha256, wait_for,
};

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

/// What an attempt comes to.
struct Attempted {
    /// Whether the two sides have connected.
    is_connected: bool,
    /// The address of each side that servers see, as it is told to the other side.
    reflexive: [Option<SocketAddr>; 2],
}

/// Runs one attempt of both sides, of which the second begins late.
fn attempt(
    networks: &TwoNats,
    observer: SocketAddr,
    stun: Option<SocketAddr>,
    late: Duration,
) -> Attempted {
    let (to_a, from_b) = std::sync::mpsc::channel();
    let (to_b, from_a) = std::sync::mpsc::channel();
    let [moves_of_a, moves_of_b] = Moves::pair();
    let side = |is_client: bool,
                moves: Moves,
                tell: std::sync::mpsc::Sender<_>,
                hear: std::sync::mpsc::Receiver<_>| {
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let probe = Probe::open(observer, stun).await.unwrap();
                let own = probe.candidates();
                tell.send(own.clone()).unwrap();
                let theirs = hear.recv().unwrap();
                if !is_client {
                    tokio::time::sleep(late).await;
                }
                (probe.connect(&theirs, is_client, moves).await, own.reflexive())
            })
        }
    };
    let ((a, of_a), (b, of_b)) = thread::scope(|scope| {
        let a = scope.spawn(|| networks.inside(Place::HostA, side(true, moves_of_a, to_b, from_b)));
        let b =
            scope.spawn(|| networks.inside(Place::HostB, side(false, moves_of_b, to_a, from_a)));
        (a.join().unwrap(), b.join().unwrap())
    });
    assert_eq!(a.is_some(), b.is_some(), "both know whether they are connected: {a:?} {b:?}");
    Attempted { is_connected: a.is_some(), reflexive: [of_a, of_b] }
}

/// Returns whether the two sides connect, with one observer.
fn connects(networks: &TwoNats, observer: SocketAddr, late: Duration) -> bool {
    attempt(networks, observer, None, late).is_connected
}

/// Returns whether TCP can connect hosts behind these NATs directly: not if the mapping of one side cannot be foretold, and the
/// other NAT lets in only the addresses and ports to which its host has sent something.
fn is_possible(nats: [Nat; 2]) -> bool {
    let strict = |nat| matches!(nat, Nat::PortRestricted | Nat::Symmetric);
    !(nats.contains(&Nat::Symmetric) && nats.iter().all(|nat| strict(*nat)))
}

/// Whether A and B have a firewall that lets in nothing over IPv6 that was not asked for.
const FIREWALLS: [[bool; 2]; 4] = [[false, false], [false, true], [true, false], [true, true]];

fn table() -> String {
    let names: Vec<&str> = Nat::ALL.iter().map(|nat| nat.name()).collect();
    let mut table = format!("| | {} |\n|---|{}\n", names.join(" | "), "---|".repeat(names.len()));
    for a in Nat::ALL {
        let cells = Nat::ALL.map(|b| if is_possible([a, b]) { "direct" } else { "relay" });
        table.push_str(&format!("| {} | {} |\n", a.name(), cells.join(" | ")));
    }
    // Nothing is translated there, so TCP can always connect: what a firewall asks for is that both sides dial.
    table
        .push_str("\n| IPv6 | firewall at none | at B | at A | at both |\n|---|---|---|---|---|\n");
    table.push_str(&format!("| | {} |\n", ["direct"; FIREWALLS.len()].join(" | ")));
    table
}

/// Whether everything is tried (`make direct-test`), and the page written.
fn tries_all() -> bool {
    std::env::var_os("FINGERPOST_WRITE_INTEROP").is_some()
}

/// Returns the pairs of NATs to try.
fn pairs() -> Vec<[Nat; 2]> {
    let all = Nat::ALL.into_iter().flat_map(|a| Nat::ALL.map(|b| [a, b]));
    let some = [
        [Nat::None; 2],
        [Nat::PortRestricted; 2],
        [Nat::AddressRestricted, Nat::Symmetric],
        [Nat::Symmetric; 2],
    ];
    if tries_all() { all.collect() } else { some.to_vec() }
}

#[test]
fn hosts_behind_nats_connect_wherever_tcp_can() {
    for nats in pairs() {
        let networks = TwoNats::start(nats[0], nats[1]);
        let observer = observer(&networks);
        assert_eq!(connects(&networks, observer, Duration::ZERO), is_possible(nats), "{nats:?}");
    }
}

/// Lets the second NAT count the connections that the first one's host begins and that it lets in nowhere.
fn count_vain_dials(networks: &TwoNats) -> impl Fn() -> u64 {
    let from = "iifname wan ip saddr 198.18.1.2 tcp flags & (syn | ack) == syn";
    networks.nft(Place::NatB, &format!("insert rule ip nat here {from} counter"));
    || {
        let chain = networks.run_in(Place::NatB, "nft", &["list", "chain", "ip", "nat", "here"]);
        let count = chain.split("counter packets ").nth(1).and_then(|rest| rest.split(' ').next());
        count.expect("the rule").parse().unwrap()
    }
}

#[test]
fn two_observers_show_a_symmetric_nat_and_nothing_is_dialled_that_it_cannot_let_in() {
    let directory = tempfile::tempdir().unwrap();
    let stun = SocketAddr::from((TwoNats::SERVERS, TwoNats::STUN_PORT));
    for nats in pairs() {
        let networks = TwoNats::start(nats[0], nats[1]);
        let observer = observer(&networks);
        let _server = networks.start_stun_server(directory.path());
        let attempted = attempt(&networks, observer, Some(stun), Duration::ZERO);
        assert_eq!(attempted.is_connected, is_possible(nats), "{nats:?}");
        let publics = ["198.18.1.2", "198.18.2.2"].map(|ip| ip.parse::<IpAddr>().unwrap());
        for ((nat, address), public) in nats.into_iter().zip(attempted.reflexive).zip(publics) {
            assert_eq!(address.is_none(), nat == Nat::None, "{nats:?}");
            if let Some(address) = address {
                assert_eq!(address.ip(), public, "{nats:?}");
                assert_eq!(address.port() == 0, nat == Nat::Symmetric, "{nats:?} {address}");
            }
        }
    }
    let networks = TwoNats::start_with([Nat::Symmetric; 2], Unasked::Reset);
    let observer = observer(&networks);
    let _server = networks.start_stun_server(directory.path());
    let dials = count_vain_dials(&networks);
    assert!(!attempt(&networks, observer, Some(stun), Duration::ZERO).is_connected);
    assert_eq!(dials(), 0);
    assert!(!connects(&networks, observer, Duration::ZERO));
    assert!(dials() > 0, "with one observer the NAT is not known");
}

/// Lets alice send bob a file through a pipe, and checks that the two go direct, or that their attempt fails; either way the file
/// arrives. Returns the addresses that they tell.
fn send_when_settled(internet: &Internet, is_direct: bool, case: &str) -> Option<[String; 2]> {
    let always = ["--direct-path", "always", "-vv"];
    send_settled(internet, [&always, &always], is_direct, case)
}

/// Does the same with these options of the two sides.
fn send_settled(
    internet: &Internet,
    options: [&[&str]; 2],
    is_direct: bool,
    case: &str,
) -> Option<[String; 2]> {
    let file = internet.alice.home().join("file.bin");
    let pipe = internet.pipe(&[], options);
    let addresses = if is_direct {
        Some(pipe.wait_until_direct(|| format!("{case}\n{}", internet.logs(&pipe))))
    } else {
        let failed = || pipe.ends[0].log().contains("no direct connection");
        wait_for(case, PATIENCE, || internet.logs(&pipe), failed);
        None
    };
    pipe.input().write_all(&std::fs::read(&file).unwrap()).unwrap();
    let output = pipe.output().to_owned();
    let ends = pipe.finish();
    assert_eq!(sha256(&output), sha256(&file), "{case}");
    let told = ends.each_ref().map(|end: &Process| {
        events(&end.log(), "path").iter().map(|path| path["path"] == "direct").collect::<Vec<_>>()
    });
    assert!(
        told.iter().all(|told| !told[0] && told.contains(&true) == is_direct),
        "{case}: {told:?}"
    );
    addresses
}

/// Both programs with all that they need: a server, a component, keys. With `FINGERPOST_WRITE_INTEROP` set (`make direct-test`)
/// this tries all pairs and writes the table into the page. Otherwise it tries some, and the table must be there.
#[test]
fn xtls_behind_nats_goes_direct_wherever_tcp_can_and_stays_on_the_relay_elsewhere() {
    let start = |address: &str| Server::start_at(Kind::Prosody, address);
    let mut internet =
        Internet::start([Nat::None; 2], Place::Public, start, |_, _| Options::default());
    random_file(&internet.alice.home().join("file.bin"), 1_000_000);
    for nats in pairs() {
        internet.networks.replace(nats);
        send_when_settled(&internet, is_possible(nats), &format!("{nats:?}"));
    }
    for firewalls in if tries_all() { &FIREWALLS[..] } else { &FIREWALLS[3..] } {
        internet.networks.replace([Nat::Symmetric; 2]);
        internet.networks.add_ipv6(*firewalls);
        let case = format!("IPv6, {firewalls:?}");
        let addresses = send_when_settled(&internet, true, &case).unwrap();
        assert_eq!(addresses, ["2001:db8:12::2", "2001:db8:11::2"], "{case}");
    }

    if tries_all() {
        report::write_interop("nats", &table());
    } else {
        let page = read(&root().join("docs/INTEROP.md"));
        assert!(page.contains(&table()), "run `make direct-test` to rewrite the page");
    }
}

#[test]
fn xtls_asks_the_stun_server_that_its_own_server_names_and_only_if_both_sides_agree() {
    let stun = SocketAddr::from((TwoNats::SERVERS, TwoNats::STUN_PORT));
    let start = |address: &str| {
        let mut server = Server::start_at(Kind::Prosody, address);
        server.name_stun_server(stun);
        server.restart();
        server
    };
    let mut internet =
        Internet::start([Nat::Symmetric; 2], Place::Public, start, |_, _| Options::default());
    random_file(&internet.alice.home().join("file.bin"), 100_000);
    let directory = tempfile::tempdir().unwrap();
    let server = internet.networks.start_stun_server(directory.path());
    let is_known = || {
        let logs = [&internet.alice, &internet.bob].map(|user| read(&user.home().join("pipe.log")));
        logs.map(|log| log.contains("the NAT takes another port for each peer"))
    };
    let asked = || server.log().matches("asked by").count();
    let never = ["--direct-path", "never", "-vv"];
    let always = ["--direct-path", "always", "-vv"];
    let pipe = internet.pipe(&[], [&always, &never]);
    pipe.input().write_all(b"over the relay").unwrap();
    pipe.finish();
    assert_eq!(asked(), 0, "one side has not agreed");
    send_settled(&internet, [&always, &always], false, "two symmetric NATs");
    assert_eq!(is_known(), [true; 2]);
    assert!(asked() >= 2, "{}", server.log());

    internet.networks.replace([Nat::AddressRestricted, Nat::Symmetric]);
    send_settled(&internet, [&always, &always], true, "one symmetric NAT");

    let before = asked();
    internet.networks.replace([Nat::PortRestricted; 2]);
    let without = [&always[..], &["--stun", "none"]].concat();
    send_settled(&internet, [&without, &without], true, "without STUN");
    assert_eq!(asked(), before);
    // The options of the user win over what the server names.
    let named = stun.to_string();
    let of_user = [&always[..], &["--stun", &named]].concat();
    send_settled(&internet, [&of_user, &without], true, "a server of the user's");
    assert_eq!(asked(), before + 1, "{}", server.log());
    // Those of the account win too, and the options over them.
    internet.alice.change_account(|text| format!("{text}stun = [\"none\"]\n"));
    send_settled(&internet, [&always, &without], true, "none in the account");
    assert_eq!(asked(), before + 1, "{}", server.log());
    send_settled(&internet, [&of_user, &without], true, "none in the account, one in the options");
    assert_eq!(asked(), before + 2, "{}", server.log());
}

/// Sends a file, and returns how long it takes until its first bytes have arrived, in milliseconds.
fn first_byte(internet: &Internet, file: &Path, path: &str) -> f64 {
    let mut listener = internet.bob.listen(&["--direct-path", path]);
    let jid = listener.event("listening").unwrap()["jid"].as_str().unwrap().to_owned();
    let args = ["send", &jid, file.to_str().unwrap(), "--direct-path", path];
    let begin = Instant::now();
    let mut sender = internet.alice.start(args);
    let has_bytes = || {
        let found = [listener.parts(), listener.files()].concat();
        found.iter().any(|file| file.metadata().is_ok_and(|file| file.len() > 0))
    };
    while !has_bytes() {
        assert!(sender.ended().is_none_or(|status| status.success()), "{}", sender.log());
        thread::sleep(Duration::from_micros(500));
    }
    let time = begin.elapsed().as_secs_f64() * 1e3;
    assert_eq!(sender.wait(PATIENCE).code(), Some(0), "{}", sender.log());
    assert_eq!(listener.wait(PATIENCE), 0, "{}", listener.log());
    for received in listener.files() {
        assert_eq!(sha256(&received), sha256(file));
        std::fs::remove_file(received).unwrap();
    }
    time
}

fn median(times: &[f64]) -> f64 {
    let mut times = times.to_vec();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The first byte comes over the relay, so that it never waits for a direct connection. Only with all that is tried: this one
/// measures, and writes its table into the page.
#[test]
#[expect(clippy::print_stdout, reason = "its figures")]
fn the_first_byte_does_not_wait_for_a_direct_connection() {
    /// How often both ways are measured with each pair of NATs.
    const ROUNDS: usize = 7;
    /// The same at most: a machine that is busy with something else is noisy.
    const MOST_ROUNDS: usize = 42;
    /// What the median of their differences may be, in milliseconds.
    const ALLOWED: f64 = 50.0;
    if !tries_all() {
        return;
    }
    let start = |address: &str| Server::start_as_installed_at(Kind::Prosody, address);
    let mut internet =
        Internet::start([Nat::None; 2], Place::Public, start, |_, _| Options::default());
    let file = internet.alice.home().join("file.bin");
    random_file(&file, 1_000_000);
    let mut all = [const { Vec::new() }; 2];
    let mut cells = Vec::new();
    for nats in pairs() {
        internet.networks.replace(nats);
        let mut differences = Vec::new();
        while differences.len() < ROUNDS
            || (median(&differences) > ALLOWED && differences.len() < MOST_ROUNDS)
        {
            // In turns, so that a busy moment of the machine is in both.
            let mut times = [0.0; 2];
            for turn in 0..2 {
                let choice = (differences.len() + turn) % 2;
                times[choice] = first_byte(&internet, &file, ["never", "always"][choice]);
                all[choice].push(times[choice]);
            }
            differences.push(times[1] - times[0]);
        }
        let difference = median(&differences);
        println!(
            "{nats:?}: {difference:+.1} ms in {} rounds: {differences:.1?}",
            differences.len()
        );
        cells.push(difference);
    }
    let [never, always] = all.each_ref().map(|times| median(times));
    let names = Nat::ALL.map(Nat::name);
    let mut text = format!("| ms | {} |\n|---|{}\n", names.join(" | "), "---|".repeat(names.len()));
    for (name, row) in names.iter().zip(cells.chunks(names.len())) {
        let row: Vec<String> = row.iter().map(|cell| format!("{cell:+.0}")).collect();
        text.push_str(&format!("| {name} | {} |\n", row.join(" | ")));
    }
    text.push_str(&format!(
        "\nMedians over all pairs: {never:.0} ms with `never`, {always:.0} ms with `always`.\n"
    ));
    println!("{text}");
    report::write_interop("first byte", &text);
    assert!(cells.iter().all(|cell| *cell <= ALLOWED), "{cells:.1?}");
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
            let connected = connects(&networks, observer, Duration::from_millis(late));
            assert!(connected, "{unasked:?}, {late} ms late");
        }
    }
}

/// On a network as fast as this, about a third of these attempts never succeed between the same two ports.
#[test]
fn sides_whose_nats_answer_with_icmp_errors_take_other_ports_until_they_are_connected() {
    for unasked in [Unasked::Unreachable, Unasked::PortUnreachable, Unasked::NetUnreachable] {
        for late in [0, 2, 7, 15, 300] {
            let mut networks = TwoNats::start_with([Nat::PortRestricted; 2], unasked);
            networks.delay(1);
            let observer = observer(&networks);
            let connected = connects(&networks, observer, Duration::from_millis(late));
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
