//! Whichever part dies, at any stage of a session: nothing is left behind, both users see why, and the next transfer
//! works at once.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;
use support::network::Network;
use support::postgres::Postgres;
use support::process::Process;
use support::programs::{Component, Listener, Options, Script, Xtls};
use support::servers::{Kind, Server};
use support::{free_port, random_file, sha256, wait_for};

/// How long both sides may take to end after a part was killed.
const BOUND: Duration = Duration::from_secs(60);
/// The same after a network is gone without an error.
const SILENT_BOUND: Duration = Duration::from_secs(240);
/// How long the component lets sessions continue when it is told to stop.
const DRAIN: Duration = Duration::from_secs(20);
/// More than the buffers of all sockets on the path hold.
const LARGE: usize = 64 << 20;
/// The part of it that passes before the transfer is made to stand still.
const PART: usize = 4 << 20;

/// The part that dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Initiator,
    Responder,
    Component,
    Server,
}

const VICTIMS: [Victim; 4] =
    [Victim::Initiator, Victim::Responder, Victim::Component, Victim::Server];

struct World {
    // Dropped in this order.
    component: Component,
    server: Server,
    page: u16,
    links: usize,
    descriptors: usize,
    alice: Xtls,
    bob: Xtls,
}

impl World {
    fn start(network: Option<&Network>, database: Option<String>) -> Self {
        Self::start_at(Kind::Prosody, network, database)
    }

    fn start_at(kind: Kind, network: Option<&Network>, database: Option<String>) -> Self {
        let server = match network {
            Some(network) => Server::start_at(kind, network.address()),
            None => Server::start(kind),
        };
        let page = free_port();
        // No session may end by itself while the stages of others are set up.
        let silence = if network.is_some() { "90s" } else { "60s" };
        let env = [
            ("FINGERPOST_HTTP__LISTEN", format!("127.0.0.1:{page}")),
            // The pool opens a second connection only for requests that come at once, and keeps it: with one, the number of
            // descriptors does not depend on the order of requests.
            ("FINGERPOST_DATABASE__MAX_CONNECTIONS", "1".to_owned()),
            ("FINGERPOST_LIMITS__ACTIVATION_TIMEOUT", silence.to_owned()),
            ("FINGERPOST_LIMITS__IDLE_TIMEOUT", silence.to_owned()),
            ("FINGERPOST_LIMITS__DRAIN_TIMEOUT", DRAIN.as_secs().to_string() + "s"),
        ];
        let address = network.map(|network| network.address().to_owned());
        // The forwarder is on loopback, which another network does not reach.
        let tap = network.is_none();
        let options = Options { env: env.to_vec(), address, database, tap, ..Options::default() };
        let component = Component::start(&server, &options);
        let (alice, bob) = (Xtls::with_key(&server, "alice"), Xtls::with_key(&server, "bob"));
        random_file(&alice.home().join("large.bin"), LARGE);
        random_file(&alice.home().join("small.bin"), 65_536);
        let descriptors = 0;
        let mut world = Self { component, server, page, links: 1, descriptors, alice, bob };
        world.transfer("the first transfer");
        world.descriptors = world.open_descriptors();
        world
    }

    /// Checks that a file arrives.
    fn transfer(&self, what: &str) {
        transfer(&self.alice, &self.bob, what, || self.component.log());
    }

    fn metric(&self, name: &str) -> Option<usize> {
        let mut socket = TcpStream::connect(("127.0.0.1", self.page)).ok()?;
        socket.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").ok()?;
        let mut text = String::new();
        socket.read_to_string(&mut text).ok()?;
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }

    /// Returns the component's open descriptors, without its stock of pipes.
    fn open_descriptors(&self) -> usize {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.component.id())).unwrap().count();
        open - 2 * self.metric("fingerpost_pipes_free").unwrap_or(0)
    }

    fn strike(&mut self, victim: Victim) {
        match victim {
            Victim::Component => {
                self.component.kill_and_restart();
                self.links += 1;
            }
            Victim::Server => {
                self.server.kill();
                self.let_pass();
                self.server.up();
                self.links += 1;
                self.component.wait_for_links(self.links);
            }
            Victim::Initiator | Victim::Responder => {}
        }
        self.let_pass();
    }

    /// Lets a transfer continue that stands still.
    fn let_pass(&self) {
        if let Some(tap) = &self.component.tap {
            tap.open();
        }
    }

    /// Checks that the component has nothing left.
    fn settled(&self, case: &str) {
        let left = || {
            let sessions = self.metric("fingerpost_broker_sessions");
            let descriptors = self.open_descriptors();
            (sessions != Some(0) || descriptors > self.descriptors)
                .then(|| format!("{sessions:?} sessions, {descriptors} descriptors"))
        };
        let why =
            || format!("{:?}, at first {}\n{}", left(), self.descriptors, self.component.log());
        wait_for(&format!("{case}: nothing left"), BOUND, why, || left().is_none());
    }
}

fn transfer(from: &Xtls, to: &Xtls, what: &str, log: impl Fn() -> String) {
    let file = from.home().join("small.bin");
    let directory = to.home().join("received");
    let _old = std::fs::remove_dir_all(&directory);
    let mut listener = to.listen(&[]);
    let sent = from.run([Path::new("send"), Path::new(to.jid()), &file]);
    assert_eq!(sent.code, 0, "{what}: {sent:?}\n{}\n{}", listener.log(), log());
    assert_eq!(listener.wait(BOUND), 0, "{what}: {}", listener.log());
    assert_eq!(listener.files().len(), 1, "{what}");
    assert_eq!(sha256(&listener.files()[0]), sha256(&file), "{what}");
    let _done = std::fs::remove_dir_all(&directory);
}

/// Checks that one of our programs ends in time, with status 1 and one of these messages.
fn fails(case: &str, mut program: Process, bound: Duration, words: &[&str]) {
    let status = program.wait(bound).code();
    let log = program.log();
    assert_eq!(status, Some(1), "{case}: {log}");
    let error = log.lines().find(|line| line.contains("error: "));
    let error = error.unwrap_or_else(|| panic!("{case}: no error is shown: {log}"));
    assert!(words.iter().any(|word| error.contains(word)), "{case}: {error}, expected {words:?}");
}

fn told(case: &str, script: Script, words: &[&str]) {
    let report = script.report();
    let reason = report["told"].as_str().unwrap();
    assert!(words.iter().any(|word| reason.starts_with(word)), "{case}: {report}");
}

/// Returns the possible messages for our own user, and for the other one.
fn expected(victim: Victim) -> (&'static [&'static str], &'static [&'static str]) {
    match victim {
        Victim::Initiator | Victim::Responder => (&["gone: The other user"], &["gone"]),
        // A user that contacts the other while the component is away gets the answer from the server.
        Victim::Component => (
            &[
                "gone: The service was restarted",
                "gone: xtls.example.test is not connected to its XMPP server",
            ],
            &["gone"],
        ),
        // A listener reconnects, and may first learn that the other user has gone.
        Victim::Server => {
            (&["connection to the XMPP server is lost", "gone: The other user"], &["disconnected"])
        }
    }
}

#[test]
fn whoever_is_killed_at_whatever_stage_leaves_nothing_behind() {
    let mut world = World::start(None, None);
    for stage in ["initiated", "accepted", "handshake"] {
        for victim in VICTIMS {
            our_initiator(&mut world, stage, victim);
        }
    }
    for stage in ["accepted", "handshake"] {
        for victim in VICTIMS {
            our_responder(&mut world, stage, victim);
        }
    }
    for victim in VICTIMS {
        in_the_middle_of_a_file(&mut world, victim);
    }
}

/// Runs `xtls send` to a client that stops at a stage.
fn send_to_stage(world: &World, from: &Xtls, stage: &str, resource: &str) -> (Process, Script) {
    let settings =
        json!({"role": "responder", "user": "carol", "resource": resource, "stage": stage});
    let mut other = Script::start("stops.py", &world.server, settings);
    other.wait_for("\"ready\"");
    let ours = send(from, &format!("carol@example.test/{resource}"), "small.bin", resource);
    other.wait_for("\"at\"");
    (ours, other)
}

fn send(from: &Xtls, to: &str, file: &str, log: &str) -> Process {
    let log = from.home().join(format!("{log}.log"));
    let _old = std::fs::remove_file(&log);
    let file = from.home().join(file);
    Process::start(from.command([Path::new("send"), Path::new(to), &file]), &log)
}

fn our_initiator(world: &mut World, stage: &str, victim: Victim) {
    let case = format!("xtls initiates, {stage}, {victim:?} dies");
    let (ours, other) = send_to_stage(world, &world.alice, stage, "stops");
    let (us, them) = expected(victim);
    match victim {
        Victim::Initiator => ours.signal("KILL"),
        Victim::Responder => other.signal("KILL"),
        _ => world.strike(victim),
    }
    if victim != Victim::Initiator {
        fails(&case, ours, BOUND, us);
    }
    if victim != Victim::Responder {
        told(&case, other, them);
    }
    world.settled(&case);
    world.transfer(&case);
}

/// Runs `xtls pipe --listen`, and a client that stops at a stage with it.
fn pipe_to_stage(world: &World, to: &Xtls, stage: &str, resource: &str) -> (Process, Script) {
    std::fs::write(to.home().join("in"), "").unwrap();
    let _old = std::fs::remove_file(to.home().join("pipe.log"));
    let ours = to.start_between(["pipe", "--listen"], "in", "out");
    let listening = || {
        let log = ours.log();
        let (_, rest) = log.split_once("listening as ")?;
        rest.split_whitespace().next().map(str::to_owned)
    };
    wait_for("listening", BOUND, || ours.log(), || listening().is_some());
    let settings = json!({
        "role": "initiator", "user": "carol", "resource": resource, "stage": stage, "peer": listening(),
    });
    let mut other = Script::start("stops.py", &world.server, settings);
    other.wait_for("\"at\"");
    (ours, other)
}

fn our_responder(world: &mut World, stage: &str, victim: Victim) {
    let case = format!("xtls responds, {stage}, {victim:?} dies");
    let (ours, other) = pipe_to_stage(world, &world.bob, stage, "stops");
    let (us, them) = expected(victim);
    match victim {
        Victim::Initiator => other.signal("KILL"),
        Victim::Responder => ours.signal("KILL"),
        _ => world.strike(victim),
    }
    if victim != Victim::Responder {
        fails(&case, ours, BOUND, us);
    }
    if victim != Victim::Initiator {
        told(&case, other, them);
    }
    world.settled(&case);
    world.transfer(&case);
}

/// Returns a large file of which the receiver has a part, and which stands still: at the forwarder until it is opened,
/// or, without a forwarder, because the sender's program is stopped; [`Process::signal`] continues it.
fn half_a_file(world: &World, from: &Xtls, to: &Xtls, log: &str) -> (Process, Listener) {
    let tap = world.component.tap.as_ref();
    if let Some(tap) = tap {
        tap.hold_after(PART);
    }
    let _old = std::fs::remove_dir_all(to.home().join("received"));
    let listener = to.listen(&[]);
    let jid = listener.event("listening").unwrap()["jid"].as_str().unwrap().to_owned();
    let sender = send(from, &jid, "large.bin", log);
    let begun = || listener.parts().iter().any(|f| f.metadata().is_ok_and(|m| m.len() > 0));
    let logs = || sender.log() + &listener.log() + &world.component.log();
    if let Some(tap) = tap {
        tap.wait_until_held(logs);
    }
    wait_for("the first bytes", BOUND, logs, begun);
    if tap.is_none() {
        sender.signal("STOP");
    }
    (sender, listener)
}

fn in_the_middle_of_a_file(world: &mut World, victim: Victim) {
    let case = format!("in the middle of a file, {victim:?} dies");
    let (mut sender, mut listener) = half_a_file(world, &world.alice, &world.bob, "half");
    match victim {
        Victim::Initiator => sender.signal("KILL"),
        Victim::Responder => listener.signal("KILL"),
        _ => {}
    }
    world.strike(victim);
    if victim == Victim::Server {
        // The stream runs beside XMPP: the file arrives, and TLS tells the sender so.
        assert_eq!(listener.wait(SILENT_BOUND), 0, "{case}: {}", listener.log());
        let file = world.alice.home().join("large.bin");
        let files = listener.files();
        assert_eq!(files.len(), 1, "{case}");
        assert_eq!(sha256(&files[0]), sha256(&file), "{case}");
        assert_eq!(sender.wait(BOUND).code(), Some(0), "{case}: {}", sender.log());
        assert!(sender.log().contains("confirmed everything inside TLS"), "{}", sender.log());
    } else {
        // The end of the stream may show before the reason comes; `xtls` waits for it for two seconds only.
        let cut = ["the stream was cut off", "Broken pipe", "reset by peer"];
        let us = &[expected(victim).0, &cut].concat();
        if victim == Victim::Initiator {
            sender.wait(BOUND);
        } else {
            fails(&case, sender, BOUND, us);
        }
        let code = listener.wait(BOUND);
        if victim != Victim::Responder {
            assert_eq!(code, 1, "{case}: {}", listener.log());
            let log = listener.log();
            assert!(us.iter().any(|word| log.contains(word)), "{case}: {log}");
        }
        assert_eq!(listener.files(), Vec::<PathBuf>::new(), "{case}");
    }
    world.settled(&case);
    world.transfer(&case);
}

/// A component that dies on PostgreSQL, which another one shares, tells its own users at the next start.
#[test]
fn what_is_open_at_a_crash_is_kept_in_postgresql_too() {
    let postgres = Postgres::start();
    let mut world = World::start(None, Some(postgres.url()));
    our_initiator(&mut world, "initiated", Victim::Component);
    in_the_middle_of_a_file(&mut world, Victim::Component);
}

/// When it is told to stop, the component accepts nothing new, lets running sessions end, and ends the rest in time.
#[test]
fn a_drain_lets_a_file_finish_and_ends_what_is_stuck_when_its_time_is_up() {
    let mut world = World::start(None, None);
    let (mut stuck, other) = send_to_stage(&world, &world.alice, "handshake", "stops");
    let (mut sender, mut listener) = half_a_file(&world, &world.alice, &world.bob, "half");
    world.component.signal("TERM");
    let since = Instant::now();

    let mut late = send(&world.alice, "carol@example.test/stops", "small.bin", "late");
    assert_eq!(late.wait(BOUND).code(), Some(5), "{}", late.log());
    assert!(late.log().contains("no new sessions"), "{}", late.log());

    world.let_pass();
    assert_eq!(sender.wait(BOUND).code(), Some(0), "{}", sender.log());
    assert_eq!(listener.wait(BOUND), 0, "{}", listener.log());
    let file = world.alice.home().join("large.bin");
    assert_eq!(listener.files().iter().map(|f| sha256(f)).collect::<Vec<_>>(), [sha256(&file)]);
    assert!(stuck.ended().is_none(), "{}", stuck.log());

    fails("stuck", stuck, BOUND, &["gone: The service is being stopped"]);
    assert!(since.elapsed() >= DRAIN, "{:?}", since.elapsed());
    told("stuck", other, &["gone text: The service is being stopped"]);
    assert_eq!(world.component.wait(BOUND), 0, "{}", world.component.log());
}

#[test]
fn a_network_that_is_gone_ends_every_stage_on_both_sides() {
    let network = Network::start();
    let mut world = World::start(Some(&network), None);
    let far = |user: &str| Xtls::login_from(&world.server, user, Some(&network)).and_key();
    // Each pair is alone: a user that knows one key of another accepts no other key.
    let (alice, dave) = (far("alice"), Xtls::with_key(&world.server, "bob"));
    let (eve, bob) = (Xtls::with_key(&world.server, "alice"), far("bob"));
    // It must last until the network goes, even if setting up the other sessions takes long.
    for user in [&alice, &eve] {
        random_file(&user.home().join("large.bin"), 8 * LARGE);
    }
    random_file(&alice.home().join("small.bin"), 65_536);
    transfer(&alice, &dave, "before", || world.component.log());
    world.descriptors = world.open_descriptors();

    let initiators: Vec<_> = ["initiated", "accepted", "handshake"]
        .map(|stage| (stage, send_to_stage(&world, &alice, stage, stage)))
        .into();
    let responder = pipe_to_stage(&world, &bob, "handshake", "far");
    let mut sending = half_a_file(&world, &alice, &dave, "far-send");
    let mut receiving = half_a_file(&world, &eve, &bob, "near-send");
    network.set("down");
    for (sender, _) in [&sending, &receiving] {
        sender.signal("CONT");
    }

    let lost = ["connection to the XMPP server is lost", "timed out", "unreachable"];
    for (stage, (ours, other)) in initiators {
        let case = format!("the initiator's network goes, {stage}");
        // A stream that this side requested and never got an answer for is given up before the session is.
        told(&case, other, &["timeout", "failed-transport"]);
        fails(&case, ours, SILENT_BOUND, &lost);
    }
    told("the responder's network goes", responder.1, &["timeout"]);
    // Its listener gives the peer up, and continues for others when the network is back.
    let listener = responder.0;
    let says = |what: &str, words: &str| {
        wait_for(what, SILENT_BOUND, || listener.log(), || listener.log().contains(words));
    };
    says("the loss of the responder's connection", "lost the connection to the XMPP server");

    let case = "the sender's network goes";
    assert_eq!(sending.1.wait(SILENT_BOUND), 1, "{case}: {}", sending.1.log());
    // The relay passes the end on as a reset, which may show before the reason comes.
    let log = sending.1.log();
    assert!(["timeout", "reset by peer"].iter().any(|word| log.contains(word)), "{case}: {log}");
    assert_eq!(sending.1.files(), Vec::<PathBuf>::new(), "{case}");
    fails(case, sending.0, SILENT_BOUND, &lost);

    let case = "the receiver's network goes";
    // Its own bytes are no longer accepted: the system may give up before the session does.
    fails(case, receiving.0, SILENT_BOUND, &["timeout", "timed out"]);
    assert_eq!(receiving.1.wait(SILENT_BOUND), 1, "{case}: {}", receiving.1.log());
    assert!(
        lost.iter().any(|word| receiving.1.log().contains(word)),
        "{case}: {}",
        receiving.1.log()
    );
    assert_eq!(receiving.1.files(), Vec::<PathBuf>::new(), "{case}");

    world.settled("a network is gone");
    world.transfer("a network is gone");
    network.set("up");
    says("the return of the responder's connection", "connected to the XMPP server again");
    transfer(&alice, &dave, "the network is back", || world.component.log());
}

/// A stream over SOCKS5 does not need the server. When Prosody stops, it says of all users that they go, which ends no
/// stream.
fn a_stream_outlives_its_server(kind: Kind, has_paths: bool) {
    let mut world = World::start_at(kind, None, None);
    if has_paths {
        // They trust each other, so their streams may leave the relay.
        for (user, other) in [(&world.alice, &world.bob), (&world.bob, &world.alice)] {
            user.allow_direct_paths();
            user.trust(other);
        }
    }
    for (what, links) in [("reload", 0), ("restart", 1), ("kill", 1)] {
        let case = format!("{kind:?}, {what}, {has_paths}");
        let (mut sender, mut listener) = half_a_file(&world, &world.alice, &world.bob, "half");
        match what {
            "reload" => world.server.reload(),
            "restart" => world.server.restart(),
            _ => {
                world.server.kill();
                world.server.up();
            }
        }
        world.links += links;
        world.component.wait_for_links(world.links);
        world.let_pass();
        assert_eq!(listener.wait(SILENT_BOUND), 0, "{case}: {}", listener.log());
        let files = listener.files();
        assert_eq!(files.len(), 1, "{case}");
        assert_eq!(sha256(&files[0]), sha256(&world.alice.home().join("large.bin")), "{case}");
        // Without the server, the sender may not learn that everything has arrived.
        sender.wait(SILENT_BOUND);
        world.settled(&case);
    }
}

#[test]
fn prosody_a_stream_outlives_its_server() {
    for has_paths in [false, true] {
        a_stream_outlives_its_server(Kind::Prosody, has_paths);
    }
}

#[test]
fn ejabberd_a_stream_outlives_its_server() {
    for has_paths in [false, true] {
        a_stream_outlives_its_server(Kind::Ejabberd, has_paths);
    }
}

/// A network comes back: the server still holds the silently dead connection, and accepts the new one all the same,
/// because it comes from the same port.
fn a_link_that_died_in_silence_comes_back_from_its_own_port(kind: Kind) {
    let network = Network::start();
    let server = Server::start_at(kind, network.address());
    let options = Options { network: Some(network.name().to_owned()), ..Options::default() };
    let mut component = Component::start(&server, &options);
    let (alice, bob) = (Xtls::with_key(&server, "alice"), Xtls::with_key(&server, "bob"));
    let small = alice.home().join("small.bin");
    random_file(&small, 65_536);
    // The other network's SOCKS5 port cannot be reached from here.
    let arrives = |what: &str, component: &Component| {
        let mut listener = bob.listen(&["--transport", "ibb"]);
        let sent = alice.run(["send", bob.jid(), small.to_str().unwrap(), "--transport", "ibb"]);
        assert_eq!(sent.code, 0, "{what}: {sent:?}\n{}", component.log());
        assert_eq!(listener.wait(BOUND), 0, "{what}: {}", listener.log());
    };
    arrives("before", &component);
    network.set("down");
    wait_for(
        "the loss to be noticed",
        BOUND,
        || component.log(),
        || component.log().contains("link down"),
    );
    network.set("up");
    component.wait_for_links(2);
    let log = component.log();
    assert!(!log.contains("conflict") && !log.contains("are lost"), "{log}");
    arrives("after", &component);
}

#[test]
fn prosody_a_link_that_died_in_silence_comes_back() {
    a_link_that_died_in_silence_comes_back_from_its_own_port(Kind::Prosody);
}

#[test]
fn ejabberd_a_link_that_died_in_silence_comes_back() {
    a_link_that_died_in_silence_comes_back_from_its_own_port(Kind::Ejabberd);
}

/// A router between a user and all others forwards only smaller packets, and no error tells that. `xtls` notices it and
/// says so, and everything arrives, in both directions. For a client that notices nothing, the component's setting
/// helps.
#[test]
fn a_path_that_drops_large_packets_is_no_obstacle() {
    let network = Network::behind_a_narrow_hop();
    let server = Server::start_at(Kind::Prosody, network.address());
    let address = Some(network.address().to_owned());
    let component = Component::start(&server, &Options { address, ..Options::default() });
    let alice = Xtls::with_key(&server, "alice");
    let far = Xtls::login_from(&server, "carol", Some(&network)).and_key();
    let small = alice.run(["keys"]);
    assert!(!small.stderr.contains("large packets"), "{small:?}");
    for (from, to) in [(&alice, &far), (&far, &alice)] {
        let file = from.home().join("file.bin");
        random_file(&file, 500_000);
        let directory = to.home().join("received");
        let mut listener = to.listen(&["--transport", "s5b"]);
        let sent = from.run([Path::new("send"), Path::new(to.jid()), &file]);
        let logs = || format!("{sent:?}\n{}\n{}", listener.log(), component.log());
        assert_eq!(sent.code, 0, "{}", logs());
        let log = if from.jid() == far.jid() { sent.stderr.clone() } else { listener.log() };
        assert_eq!(log.matches("the network loses large packets").count(), 1, "{}", logs());
        assert_eq!(listener.wait(BOUND), 0, "{}", listener.log());
        assert_eq!(sha256(&listener.files()[0]), sha256(&file));
        let _done = std::fs::remove_dir_all(&directory);
    }
}

/// A user's network has no IPv4, and all addresses are given as IPv4 numbers: the server's, and the component's for SOCKS5.
/// `xtls` reaches both through the network's translator.
#[test]
fn an_ipv4_address_is_reached_from_a_network_without_ipv4_through_its_nat64() {
    let network = Network::behind_a_nat64();
    let server = Server::start_at(Kind::Prosody, network.address());
    let address = Some(network.address().to_owned());
    let component = Component::start(&server, &Options { address, ..Options::default() });
    let alice = Xtls::with_key(&server, "alice");
    let far = Xtls::login_from(&server, "carol", Some(&network)).and_key();
    for (from, to) in [(&alice, &far), (&far, &alice)] {
        let file = from.home().join("file.bin");
        random_file(&file, 500_000);
        let mut listener = to.listen(&["--transport", "s5b"]);
        let sent = from.run([Path::new("send"), Path::new(to.jid()), &file]);
        assert_eq!(sent.code, 0, "{sent:?}\n{}\n{}", listener.log(), component.log());
        assert_eq!(listener.wait(BOUND), 0, "{}", listener.log());
        assert_eq!(sha256(&listener.files()[0]), sha256(&file));
    }
}
