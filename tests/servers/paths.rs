//! Streams that move to a direct connection while they run, and back.

use std::{
    fs::File,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use support::{
    PATIENCE,
    internet::Internet,
    netns::{Nat, Place},
    network::Network,
    process::Process,
    programs::{Component, Listener, Options, Xtls, page},
    random_file, report,
    servers::{Kind, Server},
    sha256,
    tap::{self, Captured},
    wait_for,
};

/// How large the file is that is on its way, in bytes.
const LARGE: usize = 192 << 20;
/// The pace of the link meanwhile: the file takes much longer than a direct connection, also on a busy machine.
const PACE: &str = "60mbit";
/// How long a transfer may take.
const TRANSFER: Duration = Duration::from_secs(300);

/// Alice on this machine, with the server and the component, and Bob in a network of his own.
struct World {
    network: Network,
    server: Server,
    component: Component,
    /// The port of its status pages.
    pages: u16,
    alice: Xtls,
    bob: Xtls,
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
}

impl World {
    fn start() -> Self {
        Self::start_with(|_| {})
    }

    fn start_with(change: impl FnOnce(&mut Server)) -> Self {
        let network = Network::start();
        let mut server = Server::start_at(Kind::Prosody, network.address());
        change(&mut server);
        let address = Some(network.address().to_owned());
        // The component that stops does not wait long for streams.
        let env = vec![("FINGERPOST_LIMITS__DRAIN_TIMEOUT", "1s".to_owned())];
        let (options, pages) = Options { env, address, ..Options::default() }.with_pages();
        let component = Component::start(&server, &options);
        let alice = Xtls::with_key(&server, "alice");
        let bob = Xtls::login_from(&server, "bob", Some(&network)).and_key();
        random_file(&alice.home().join("large.bin"), LARGE);
        Self { network, server, component, pages, alice, bob }
    }

    /// Starts to send the file over a link that is slow for now.
    fn send(&self, paths: [&str; 2]) -> (Process, Listener) {
        self.send_over(paths, &[])
    }

    fn send_over(&self, paths: [&str; 2], more: &[&str]) -> (Process, Listener) {
        let _old = std::fs::remove_dir_all(self.bob.home().join("received"));
        let listener = self.bob.listen(&[&["--direct-path", paths[1]][..], more].concat());
        let jid = listener.event("listening").unwrap()["jid"].as_str().unwrap().to_owned();
        let file = self.alice.home().join("large.bin");
        let args = ["send", &jid, file.to_str().unwrap(), "--json", "--direct-path", paths[0]];
        (self.alice.start([&args[..], more].concat()), listener)
    }

    /// Returns one of the component's counters.
    fn counted(&self, name: &str) -> u64 {
        let page = page(self.pages, "/metrics").unwrap_or_default();
        let name = format!("fingerpost_{name} ");
        let value = page.lines().find_map(|line| line.strip_prefix(&name));
        value.and_then(|value| value.parse().ok()).unwrap_or_default()
    }

    fn logs(&self, sender: &Process, listener: &Listener) -> String {
        sender.log() + &listener.log() + &self.component.log()
    }

    /// Lets all packets between the two programs vanish, or be refused, but not those of the relay and the server.
    fn cut(&self, verdict: &str) {
        let ports = format!("{{ {}, {} }}", self.server.client_port(), self.component.socks5);
        let rule = format!("tcp sport != {ports} tcp dport != {ports} {verdict}");
        self.filter("cut", [&rule, &rule]);
    }

    /// Adds a table with a rule for the packets that come in and one for those that go out.
    fn filter(&self, table: &str, [incoming, outgoing]: [&str; 2]) {
        self.nft(&format!(
            "add table ip {table}; add chain ip {table} in {{ type filter hook input priority 0; }}; \
             add rule ip {table} in {incoming}; add chain ip {table} out {{ type filter hook output priority 0; }}; \
             add rule ip {table} out {outgoing}"
        ));
    }

    fn nft(&self, rules: &str) {
        run("ip", &["netns", "exec", self.network.name(), "nft", rules]);
    }

    /// Resets all connections of the relay, and refuses new ones, until `mended` returns.
    fn reset_relay(&self, mended: impl FnOnce()) {
        let port = self.component.socks5;
        self.nft(&format!(
            "add table ip relay; add chain ip relay in {{ type filter hook input priority 0; }}; \
             add rule ip relay in tcp sport {port} tcp flags & rst == 0 reject with tcp reset"
        ));
        mended();
        self.nft("delete table ip relay");
    }

    /// Lets the packets of the relay's connections to Bob vanish, as a NAT does that has forgotten them. New ones work.
    fn forget_relay(&self) {
        let (name, port) = (self.network.name(), self.component.socks5);
        let filter = format!("dport = :{port}");
        let found =
            Command::new("ip").args(["netns", "exec", name, "ss", "-Htn", &filter]).output();
        let found = String::from_utf8(found.unwrap().stdout).unwrap();
        let own = |line: &str| Some(line.split_whitespace().nth(3)?.rsplit_once(':')?.1.to_owned());
        let own: Vec<String> = found.lines().filter_map(own).collect();
        assert!(!own.is_empty(), "{found:?}");
        let own = format!("{{ {} }}", own.join(", "));
        let incoming = format!("tcp sport {port} tcp dport {own} drop");
        let outgoing = format!("tcp sport {own} tcp dport {port} drop");
        self.filter("forgotten", [&incoming, &outgoing]);
    }

    /// Makes the link slow, so that a transfer takes a while.
    fn slow_down(&self) {
        // The two ends of the link have the network's name.
        let slow = ["tbf", "rate", PACE, "burst", "64kb", "latency", "50ms"];
        run("tc", &[&["qdisc", "add", "dev", self.network.name(), "root"][..], &slow].concat());
    }

    fn speed_up(&self) {
        run("tc", &["qdisc", "del", "dev", self.network.name(), "root"]);
    }

    /// Returns how many sessions have got both legs so far.
    fn joined(&self) -> usize {
        self.component.log().matches("both legs up").count()
    }

    fn mend(&self) {
        self.nft("delete table ip cut");
    }

    /// Waits until the sender's stream is on a direct path.
    fn wait_until_direct(&self, sender: &Process, listener: &Listener) {
        let is_direct = || sender.log().contains(r#""path":"direct""#);
        wait_for("a direct path", PATIENCE, || self.logs(sender, listener), is_direct);
    }

    fn arrived(&self, mut sender: Process, mut listener: Listener, case: &str) {
        let status = sender.wait(TRANSFER);
        assert_eq!(status.code(), Some(0), "{case}: {}", self.logs(&sender, &listener));
        assert_eq!(listener.wait(PATIENCE), 0, "{case}: {}", listener.log());
        let files = listener.files();
        assert_eq!(files.len(), 1, "{case}");
        assert_eq!(sha256(&files[0]), sha256(&self.alice.home().join("large.bin")), "{case}");
    }
}

#[test]
fn a_running_transfer_moves_to_a_direct_path_and_goes_on_over_the_relay_when_that_is_cut() {
    let world = World::start();
    for (sessions, verdict) in [(1, "drop"), (2, "reject with tcp reset")] {
        world.slow_down();
        let (sender, listener) = world.send(["always", "always"]);
        let logs = || world.logs(&sender, &listener);
        let direct = || world.counted("sessions_direct_total") == sessions;
        wait_for("the direct path", PATIENCE, logs, direct);
        let begun = || listener.parts().iter().any(|f| f.metadata().is_ok_and(|m| m.len() > 0));
        wait_for("the first bytes", PATIENCE, logs, begun);
        let before = world.counted("direct_bytes_total");
        world.cut(verdict);
        // The log is that of both senders, and each begins on the relay.
        let relay = || sender.log().matches("\"path\":\"relay\"").count() as u64 == 2 * sessions;
        wait_for("the relay", PATIENCE, logs, relay);
        assert!(world.counted("direct_bytes_total") - before < LARGE as u64, "{}", logs());
        world.speed_up();
        world.arrived(sender, listener, verdict);
        world.mend();
    }
}

/// The relay is reset, and no direct connection is possible: the transfer goes on over a new leg of the relay.
#[test]
fn a_transfer_goes_on_over_a_new_leg_when_the_relay_is_reset() {
    let world = World::start();
    world.cut("drop");
    world.slow_down();
    // In-band streams would be no part of what is reset.
    let (sender, listener) = world.send_over(["always", "always"], &["--transport", "s5b"]);
    let logs = || world.logs(&sender, &listener);
    for times in 1..3 {
        let up = || world.joined() >= times;
        wait_for("both legs", PATIENCE, logs, up);
        wait_for_bytes(&listener, 1 << 20, logs);
        // A user may ask for new legs before the component has seen the end of both old ones.
        let ends = || {
            let log = world.component.log();
            ["stream ended", "the users replace both legs"].map(|text| log.matches(text).count())
        };
        let before = ends();
        world.reset_relay(|| wait_for("the end of the legs", PATIENCE, logs, || ends() != before));
    }
    wait_for("new legs", PATIENCE, logs, || world.joined() >= 3);
    world.speed_up();
    world.arrived(sender, listener, "a broken relay");
}

/// The relay's connection was idle, and nobody has seen that it broke.
#[test]
fn a_stream_that_returns_to_a_relay_that_is_gone_gets_a_new_leg_long_before_the_kernel_gives_up() {
    let world = World::start();
    world.slow_down();
    let (sender, listener) = world.send_over(["always", "always"], &["--transport", "s5b", "-vv"]);
    let logs = || world.logs(&sender, &listener);
    world.wait_until_direct(&sender, &listener);
    wait_for_bytes(&listener, 1 << 20, logs);
    let had = world.joined();
    world.forget_relay();
    world.cut("drop");
    wait_for("new legs", PATIENCE, logs, || world.joined() > had);
    // A better path is looked for, because the old one is in doubt. The kernel would have ended it.
    let is_doubted = |log: String| {
        log.lines().any(|line| line.contains("lacks something") && line.contains("Better"))
    };
    assert!(is_doubted(logs()), "{}", logs());
    world.speed_up();
    world.arrived(sender, listener, "a relay that is gone");
}

/// While the sender is silent, its server restarts, and the receiver's machine joins another network. Nobody can negotiate a
/// new leg, and the old one is not given up.
#[test]
fn a_transfer_outlives_its_server_when_the_network_changes_while_the_sender_is_silent() {
    let mut world = World::start();
    world.cut("drop");
    world.slow_down();
    let (mut sender, mut listener) = world.send_over(["always", "always"], &["-vv"]);
    wait_for_bytes(&listener, 1 << 20, || world.logs(&sender, &listener));
    let links = world.component.log().matches("link up").count();
    sender.signal("STOP");
    world.server.kill();
    world.server.up();
    world.component.wait_for_links(links + 1);
    let joins = ["-n", world.network.name(), "addr", "add", "192.0.2.7/32", "dev", "lo"];
    run("ip", &joins);
    let doubts = || listener.log().contains("the stream lacks something else than before");
    wait_for("the doubt", PATIENCE, || world.logs(&sender, &listener), doubts);
    world.speed_up();
    sender.signal("CONT");
    assert_eq!(listener.wait(TRANSFER), 0, "{}", world.logs(&sender, &listener));
    let files: Vec<_> = listener.files().iter().map(|file| sha256(file)).collect();
    assert_eq!(files, [sha256(&world.alice.home().join("large.bin"))]);
    // The receiver has confirmed everything inside TLS, with or without the server.
    assert_eq!(sender.wait(PATIENCE).code(), Some(0), "{}", world.logs(&sender, &listener));
}

/// Waits until a receiver has so many bytes more.
fn wait_for_bytes(listener: &Listener, more: u64, logs: impl Fn() -> String) {
    let size = || listener.parts().iter().filter_map(|f| f.metadata().ok()).map(|m| m.len()).sum();
    let before: u64 = size();
    wait_for("some bytes", PATIENCE, logs, || size() > before + more);
}

/// The component is killed in the middle of a transfer, and then stopped in order; each time it starts again.
fn survives_the_component(transport: &str, size: usize) {
    let mut world = World::start();
    world.cut("drop");
    world.slow_down();
    random_file(&world.alice.home().join("large.bin"), size);
    let (sender, listener) = world.send_over(["always", "always"], &["--transport", transport]);
    let mut had = 0;
    for restart in [Component::kill_and_restart as fn(&mut Component), Component::restart] {
        let logs = || world.logs(&sender, &listener);
        wait_for("both legs", PATIENCE, logs, || world.joined() > had);
        wait_for_bytes(&listener, 64 << 10, logs);
        had = world.joined();
        restart(&mut world.component);
    }
    wait_for("new legs", PATIENCE, || world.logs(&sender, &listener), || world.joined() > had);
    world.speed_up();
    world.arrived(sender, listener, transport);
}

#[test]
fn a_transfer_over_the_relay_survives_a_crash_and_a_restart_of_the_component() {
    survives_the_component("s5b", LARGE);
}

#[test]
fn a_transfer_in_band_survives_a_crash_and_a_restart_of_the_component() {
    survives_the_component("ibb", 24 << 20);
}

/// All blocks under way are lost with the component, so nobody refuses one to the sender.
#[test]
fn a_transfer_in_band_survives_a_crash_with_all_blocks_under_way() {
    let mut world = World::start();
    world.cut("drop");
    world.slow_down();
    random_file(&world.alice.home().join("large.bin"), 24 << 20);
    let over = ["--transport", "ibb"];
    let (sender, listener) = world.send_over(["always", "always"], &over);
    let logs = || world.logs(&sender, &listener);
    wait_for("both legs", PATIENCE, logs, || world.joined() > 0);
    wait_for_bytes(&listener, 64 << 10, logs);
    // It answers nothing more, and what comes now is never read.
    world.component.signal("STOP");
    let had = world.joined();
    world.component.kill_and_restart();
    wait_for("new legs", PATIENCE, || world.logs(&sender, &listener), || world.joined() > had);
    world.speed_up();
    world.arrived(sender, listener, "in-band");
}

/// The end of the session cannot come, and the receiver has confirmed everything inside TLS.
#[test]
fn a_direct_transfer_is_whole_when_the_component_stays_away() {
    for signal in ["KILL", "TERM"] {
        let world = World::start();
        world.slow_down();
        let (sender, listener) = world.send(["always", "always"]);
        world.wait_until_direct(&sender, &listener);
        wait_for_bytes(&listener, 1 << 20, || world.logs(&sender, &listener));
        world.component.signal(signal);
        world.speed_up();
        world.arrived(sender, listener, signal);
    }
}

#[test]
fn a_direct_transfer_survives_a_crash_of_the_component_and_can_still_return_to_the_relay() {
    let mut world = World::start();
    world.slow_down();
    let (sender, listener) = world.send(["always", "always"]);
    world.wait_until_direct(&sender, &listener);
    let had = world.joined();
    world.component.kill_and_restart();
    let logs = || world.logs(&sender, &listener);
    wait_for("new legs", PATIENCE, logs, || world.joined() > had);
    wait_for_bytes(&listener, 1 << 20, logs);
    world.cut("drop");
    wait_for("the relay", PATIENCE, logs, || {
        sender.log().matches(r#""path":"relay""#).count() == 2
    });
    world.speed_up();
    world.arrived(sender, listener, "direct");
}

/// A module of Prosody that loses one block of those that users send, and one of those that they get.
const LOSE_BLOCKS: &str = r#"
local function lose(which)
    local seen = 0;
    return function (event)
        if event.stanza:get_child("data", "http://jabber.org/protocol/ibb") then
            seen = seen + 1;
            if seen == which then
                module:log("info", "lost a block");
                return true;
            end
        end
    end
end
module:hook("pre-iq/full", lose(40), 1000);
module:hook("iq/full", lose(200), 1000);
"#;

/// The same for all blocks from one on, until a program asks whether the other side is there. It may also open another bytestream before,
/// because other tests change this machine's network. The second loss begins when the stream has gone on after the first: both together
/// would take longer than a stream waits for a leg.
const LOSE_WINDOW: &str = r#"
local function loss(which, before)
    local loss = { seen = 0, is_over = false };
    function loss.handle(event)
        local stanza = event.stanza;
        if before and not before.is_over then
            return;
        elseif stanza:get_child("data", "http://jabber.org/protocol/ibb") then
            loss.seen = loss.seen + 1;
            if loss.seen >= which and not loss.is_over then
                module:log("info", "lost a block");
                return true;
            end
        elseif loss.seen >= which and (stanza:get_child("ping", "urn:xmpp:ping")
                or stanza:get_child("open", "http://jabber.org/protocol/ibb")) then
            loss.is_over = true;
        end
    end
    return loss;
end
local sent = loss(40);
local received = loss(200, sent);
module:hook("pre-iq/full", sent.handle, 1000);
module:hook("iq/full", received.handle, 1000);
"#;

/// No direct connection is possible, and the server loses blocks by this module, in both ways: the transfer goes on over new
/// in-band bytestreams. Returns how many were lost.
fn goes_on_in_band(module: &str) -> usize {
    let modules = tempfile::tempdir().unwrap();
    std::fs::write(modules.path().join("mod_lose_blocks.lua"), module).unwrap();
    let world = World::start_with(|server| {
        server.reconfigure(true, |text| {
            let path = format!("plugin_paths = {{ \"{}\" }}\n", modules.path().display());
            path + &text.replace("\"roster\", ", "\"roster\", \"lose_blocks\", ")
        });
    });
    world.cut("drop");
    random_file(&world.alice.home().join("large.bin"), 4 << 20);
    let (sender, listener) = world.send_over(["always", "always"], &["--transport", "ibb"]);
    let logs = || world.logs(&sender, &listener) + &world.server.log();
    let joined = || world.component.log().matches("both legs up").count();
    wait_for("new legs, twice", PATIENCE, logs, || joined() >= 3);
    let lost = world.server.log().matches("lost a block").count();
    world.arrived(sender, listener, "lost blocks");
    lost
}

#[test]
fn a_transfer_goes_on_in_band_when_the_server_has_lost_a_block() {
    assert_eq!(goes_on_in_band(LOSE_BLOCKS), 2);
}

#[test]
fn a_transfer_goes_on_in_band_when_the_server_has_lost_all_blocks_under_way() {
    assert!(goes_on_in_band(LOSE_WINDOW) > 2);
}

#[test]
fn a_side_that_says_never_stays_on_the_relay_with_tls_alone() {
    let server = Server::start(Kind::Prosody);
    let component = Component::start(&server, &Options { tap: true, ..Options::default() });
    let alice = Xtls::with_key(&server, "alice");
    let bob = Xtls::with_key(&server, "bob");
    random_file(&alice.home().join("small.bin"), 300_000);
    for paths in [["never", "always"], ["always", "never"]] {
        let mut listener = bob.listen(&["--direct-path", paths[1]]);
        let jid = listener.event("listening").unwrap()["jid"].as_str().unwrap().to_owned();
        let file = alice.home().join("small.bin");
        let sent =
            alice.run(["send", &jid, file.to_str().unwrap(), "--json", "--direct-path", paths[0]]);
        assert_eq!(sent.code, 0, "{sent:?}\n{}", component.log());
        assert_eq!(listener.wait(PATIENCE), 0, "{}", listener.log());
    }
    let streams = component.tap.as_ref().unwrap().captured();
    assert_eq!(streams.len(), 4);
    for Captured { up, down } in &streams {
        for (bytes, from_client) in [(up, true), (down, false)] {
            let records = tap::after_socks5(bytes, from_client).unwrap();
            assert!(tap::tls_records(records).unwrap() > 3);
            assert!(!tap::has_control_records(records));
        }
    }
}

/// The ways in which a direct path breaks: rules for what one machine sends to the other.
const BREAKS: [(&str, &str); 4] = [
    ("all is lost", "iifname { side1, side2 } oifname { side1, side2 } drop"),
    ("the file is lost", "iifname side1 oifname side2 drop"),
    ("the answers are lost", "iifname side2 oifname side1 drop"),
    (
        "both are reset",
        "iifname { side1, side2 } oifname { side1, side2 } meta l4proto tcp reject with tcp reset",
    ),
];

/// Notes when a file grows.
fn watch(path: &Path, stop: &AtomicBool) -> Vec<(Instant, u64)> {
    let mut seen = vec![(Instant::now(), 0)];
    while !stop.load(Ordering::Relaxed) {
        let length = std::fs::metadata(path).map_or(0, |file| file.len());
        if length > seen.last().unwrap().1 {
            seen.push((Instant::now(), length));
        }
        thread::sleep(Duration::from_millis(1));
    }
    seen
}

/// Returns the longest time from `from` on, for at most `within`, in which the file did not grow.
fn longest_stall(seen: &[(Instant, u64)], from: Instant, within: Duration) -> Duration {
    let pairs = seen.windows(2).filter(|pair| pair[1].0 > from && pair[0].0 < from + within);
    pairs.map(|pair| pair[1].0 - pair[0].0.max(from)).max().unwrap_or_default()
}

/// What one cut was like.
#[derive(Debug)]
struct Cut {
    /// The longest pause around the move to the direct path, and after its loss.
    stalls: [Duration; 2],
    /// How many bytes the component had relayed when the path was cut, and how many had arrived when the stream moved there.
    relayed: u64,
    moved_at: u64,
}

/// Sends a file through a pipe that goes direct, and cuts the direct path once a part of the file has arrived. The end of
/// the file is held until then.
fn cut_at(internet: &Internet, file: &Path, part: f64, rule: &str) -> Cut {
    let size = std::fs::metadata(file).unwrap().len();
    let relayed = internet.counted("relayed_bytes_total");
    let always = ["--direct-path", "always"];
    let pipe = internet.pipe(&[], [&always, &always]);
    let output = pipe.output().to_owned();
    let (mut input, mut reader) = (pipe.input(), File::open(file).unwrap());
    let (cut, is_cut) = mpsc::channel::<()>();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let watching = scope.spawn(|| watch(&output, &stop));
        let writing = scope.spawn(move || {
            std::io::copy(&mut Read::by_ref(&mut reader).take(size / 10 * 9), &mut input).unwrap();
            is_cut.recv().unwrap();
            std::io::copy(&mut reader, &mut input).unwrap();
            input.flush().unwrap();
        });
        let arrived = || std::fs::metadata(&output).map_or(0, |file| file.len());
        pipe.wait_until_direct(|| internet.logs(&pipe));
        let (moved, moved_at) = (Instant::now(), arrived());
        let target = (size as f64 * part) as u64;
        wait_for("the moment", PATIENCE, || internet.logs(&pipe), || arrived() >= target);
        let relayed = internet.counted("relayed_bytes_total") - relayed;
        let rules = format!(
            "add table inet cut; add chain inet cut on {{ type filter hook forward priority 0; }}; \
             add rule inet cut on {rule}"
        );
        internet.networks.nft(Place::Public, &rules);
        let begin = Instant::now();
        cut.send(()).unwrap();
        writing.join().unwrap();
        let done = || arrived() == size;
        wait_for("all of the file", PATIENCE, || internet.logs(&pipe), done);
        let log = pipe.ends[0].log();
        pipe.finish();
        stop.store(true, Ordering::Relaxed);
        let seen = watching.join().unwrap();
        internet.networks.nft(Place::Public, "delete table inet cut");
        // At the start, and after the cut.
        assert!(log.matches("\"path\":\"relay\"").count() >= 2, "{log}");
        assert_eq!(sha256(&output), sha256(file));
        let around = Duration::from_millis(200);
        let stalls = [
            longest_stall(&seen, moved - around, 2 * around),
            longest_stall(&seen, begin, Duration::from_secs(60)),
        ];
        Cut { stalls, relayed, moved_at }
    })
}

/// With `FINGERPOST_TEST_CUTS` (`make direct-test`) it tries so many cuts of a gigabyte, each at a random moment, and also
/// checks how long they take.
#[test]
#[expect(clippy::print_stdout, reason = "its figures")]
fn every_direct_path_that_is_cut_is_replaced_by_the_relay_and_the_file_arrives() {
    /// How much may be on its way over the relay when the stream leaves it: the window, and what has arrived since.
    const ON_ITS_WAY: u64 = 8 << 20;
    let cuts = std::env::var("FINGERPOST_TEST_CUTS").ok().map(|cuts| cuts.parse().unwrap());
    let size = if cuts.is_some() { 1 << 30 } else { 40 << 20 };
    let start = |address: &str| Server::start_at(Kind::Prosody, address);
    let nats = [Nat::PortRestricted; 2];
    let internet = Internet::start(nats, Place::Public, start, |_, _| Options::default());
    let file = internet.alice.home().join("large.bin");
    random_file(&file, size);
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    let mut random = seed;
    let mut all = Vec::new();
    for count in 0..cuts.unwrap_or(BREAKS.len()) {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let part = 0.05 + 0.8 * f64::from(random) / f64::from(u32::MAX);
        let (name, rule) = BREAKS[count % BREAKS.len()];
        let cut = cut_at(&internet, &file, part, rule);
        println!("{count}: {name}, {cut:?}");
        assert!(cut.relayed <= cut.moved_at + ON_ITS_WAY, "seed {seed}, {name}: {cut:?}");
        all.push(cut);
    }
    if cuts.is_none() {
        return;
    }
    for (what, index) in [("move to the direct path", 0), ("loss of the direct path", 1)] {
        let mut stalls: Vec<Duration> = all.iter().map(|cut| cut.stalls[index]).collect();
        stalls.sort();
        let at = |percent: usize| stalls[(stalls.len() - 1) * percent / 100];
        println!("stall at the {what}: median {:?}, p99 {:?}, most {:?}", at(50), at(99), at(100));
    }
    assert!(all.iter().all(|cut| cut.stalls[1] < Duration::from_secs(3)), "seed {seed}");
}

/// How long a packet takes between the two users, and between each of them and the servers, in milliseconds.
const DELAY: u32 = 20;
/// How fast each user can send.
const RATE: &str = "40mbit";

/// Lets a stream move to a direct path while a pipe fills it, and goes on for a moment. Returns the longest pause in what arrives
/// from just before the move until 1.5 s after it. With `late` the direct path is possible only once the relay carries the stream at
/// its full speed.
fn stall_of_a_move(internet: &Internet, file: &Path, late: bool) -> Duration {
    const AROUND: Duration = Duration::from_millis(750);
    let nft = |rules: &str| internet.networks.nft(Place::Public, rules);
    if late {
        nft("add table ip cut; add chain ip cut on { type filter hook forward priority 0; }; \
             add rule ip cut on ip saddr { 198.18.1.2, 198.18.2.2 } ip daddr { 198.18.1.2, 198.18.2.2 } drop");
    }
    let always = ["--direct-path", "always"];
    let pipe = internet.pipe(&[], [&always, &always]);
    let output = pipe.output().to_owned();
    let (stop, enough) = (AtomicBool::new(false), AtomicBool::new(false));
    let arrived = || std::fs::metadata(&output).map_or(0, |file| file.len());
    let (stall, written) = thread::scope(|scope| {
        let watching = scope.spawn(|| watch(&output, &stop));
        let (mut input, mut reader) = (pipe.input(), File::open(file).unwrap());
        let enough = &enough;
        let writing = scope.spawn(move || {
            let mut block = vec![0; 1 << 20];
            let mut written = 0;
            while !enough.load(Ordering::Relaxed) {
                let read = reader.read(&mut block).unwrap();
                input.write_all(&block[..read]).unwrap();
                written += read as u64;
            }
            written
        });
        if late {
            let is_full = || arrived() > 24 << 20;
            wait_for("the relay at full speed", PATIENCE, || internet.logs(&pipe), is_full);
            nft("delete table ip cut");
        }
        pipe.wait_until_direct(|| internet.logs(&pipe));
        let moved = Instant::now();
        thread::sleep(3 * AROUND);
        enough.store(true, Ordering::Relaxed);
        let written = writing.join().unwrap();
        stop.store(true, Ordering::Relaxed);
        let seen = watching.join().unwrap();
        let first = seen.iter().find(|(_, length)| *length > 0).unwrap().0;
        let begin = first.max(moved - AROUND);
        (longest_stall(&seen, begin, moved + 2 * AROUND - begin), written)
    });
    wait_for("all of it", PATIENCE, || internet.logs(&pipe), || arrived() == written);
    pipe.finish();
    stall
}

/// With `FINGERPOST_TEST_CUTS` (`make direct-test`) it measures so many moves, writes the table into the page, and checks that
/// half of the pauses are shorter than two round trips.
#[test]
#[expect(clippy::print_stdout, reason = "its figures")]
fn a_stream_moves_to_a_direct_path_with_a_real_delay_and_hardly_stalls() {
    let moves = std::env::var("FINGERPOST_TEST_CUTS").ok().map(|moves| moves.parse().unwrap());
    let start = |address: &str| Server::start_at(Kind::Prosody, address);
    let nats = [Nat::PortRestricted; 2];
    let mut internet = Internet::start(nats, Place::Public, start, |_, _| Options::default());
    internet.networks.delay_and_limit(DELAY, RATE);
    let file = internet.alice.home().join("large.bin");
    random_file(&file, 512 << 20);
    let mut all = [const { Vec::new() }; 2];
    for count in 0..moves.unwrap_or(2) {
        let late = count % 2 == 1;
        let stall = stall_of_a_move(&internet, &file, late);
        println!("{count}: late {late}, {stall:?}");
        all[usize::from(late)].push(stall);
    }
    let mut table = "| | measured | median | p99 | longest |\n|---|---|---|---|---|\n".to_owned();
    let when = ["at once", "from the relay at full speed"];
    for (when, stalls) in when.iter().zip(&mut all).filter(|(_, stalls)| !stalls.is_empty()) {
        stalls.sort();
        let at = |percent: usize| {
            let place = (stalls.len() * percent).div_ceil(100) - 1;
            let stall = stalls[place].as_secs_f64() * 1e3;
            format!("{stall:.0} ms, {:.2}", stall / f64::from(2 * DELAY))
        };
        let row = [50, 99, 100].map(at).join(" | ");
        table.push_str(&format!("| {when} | {} | {row} |\n", stalls.len()));
    }
    println!("{table}");
    if moves.is_some() {
        report::write_interop("moves", &table);
        let goal = Duration::from_millis(2 * 2 * u64::from(DELAY));
        let measured = all.iter().filter(|stalls| !stalls.is_empty());
        assert!(measured.map(|stalls| stalls[(stalls.len() - 1) / 2]).all(|median| median < goal));
    }
}

/// What is measured in one go, in bytes.
const MEASURED: u64 = 1 << 30;

/// Makes a FIFO and opens it, so that nobody waits for its other end.
fn fifo(path: &Path) -> File {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    File::options().read(true).write(true).open(path).unwrap()
}

/// Writes [`MEASURED`] bytes to one end of what is measured, reads them from the other, and returns MB per second.
fn speed(mut input: File, output: File) -> f64 {
    let begin = Instant::now();
    thread::scope(|scope| {
        scope.spawn(move || {
            let block = vec![0; 1 << 16];
            for _ in 0..MEASURED >> 16 {
                input.write_all(&block).unwrap();
            }
        });
        let read = std::io::copy(&mut output.take(MEASURED), &mut std::io::sink()).unwrap();
        assert_eq!(read, MEASURED);
    });
    MEASURED as f64 / 1e6 / begin.elapsed().as_secs_f64()
}

/// Starts a program of OpenSSL at a place, between two FIFOs.
fn openssl(internet: &Internet, place: Place, args: &[&str], files: [PathBuf; 3]) -> Process {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &internet.networks.name(place), "openssl"]).args(args);
    Process::start_between(command, &files[0], &files[1], &files[2])
}

/// A direct path of `xtls` and a connection of OpenSSL with the same cipher suite, over the same devices, in turns.
#[test]
#[ignore = "a measurement, not a test: make direct-bench"]
#[expect(clippy::print_stdout, reason = "its figures")]
fn a_direct_path_is_as_fast_as_openssl() {
    let rounds = std::env::var("FINGERPOST_TEST_SPEED").unwrap_or_else(|_| "3".to_owned());
    let start = |address: &str| Server::start_as_installed_at(Kind::Prosody, address);
    let internet = Internet::start([Nat::None; 2], Place::Public, start, |_, _| Options::default());
    let always = ["--direct-path", "always"];
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let (certificate, key) = (internet.server.ca(), internet.server.ca().with_extension("key"));
    let mut all = [const { Vec::new() }; 2];
    for round in 0..rounds.parse::<usize>().unwrap() {
        let port = (20_000 + round).to_string();
        for name in ["none", "in", "out", "log", "end"] {
            let _old = std::fs::remove_file(at(name));
        }
        let (input, output, _none) = (fifo(&at("in")), fifo(&at("out")), fifo(&at("none")));
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let suite = ["-ciphersuites", "TLS_AES_256_GCM_SHA384", "-tls1_3", "-quiet"];
        let (certificate, key) = (text(&certificate), text(&key));
        let args = ["s_server", "-accept", &port, "-cert", &certificate, "-key", &key];
        let args = [&args[..], &suite].concat();
        let server = openssl(&internet, Place::HostB, &args, ["none", "out", "log"].map(at));
        let is_up = || {
            let filter = format!("sport = :{port}");
            !internet.networks.run_in(Place::HostB, "ss", &["-Htln", &filter]).is_empty()
        };
        wait_for("s_server", PATIENCE, || server.log(), is_up);
        let peer = format!("198.18.12.2:{port}");
        let args = [&["s_client", "-connect", &peer][..], &suite].concat();
        let client = openssl(&internet, Place::HostA, &args, ["in", "end", "log"].map(at));
        all[0].push(speed(input, output));
        drop((client, server));

        internet.clean();
        let output = fifo(&internet.bob.home().join("out"));
        let pipe = internet.pipe_into(&[], [&always, &always]);
        pipe.wait_until_direct(|| internet.logs(&pipe));
        all[1].push(speed(pipe.input(), output));
        pipe.finish();
    }
    let [openssl, direct] = all.each_mut().map(|speeds| {
        speeds.sort_by(f64::total_cmp);
        speeds[speeds.len() / 2]
    });
    println!(
        "{all:.0?}\nMB/s: OpenSSL {openssl:.0}, direct path {direct:.0}, ratio {:.2}",
        direct / openssl
    );
}
