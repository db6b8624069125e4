//! Streams that move to a direct connection while they run, and back.

use std::{process::Command, time::Duration};

use support::{
    PATIENCE,
    network::Network,
    process::Process,
    programs::{Component, Listener, Options, Xtls, page},
    random_file,
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
        let network = Network::start();
        let server = Server::start_at(Kind::Prosody, network.address());
        let address = Some(network.address().to_owned());
        let (options, pages) = Options { address, ..Options::default() }.with_pages();
        let component = Component::start(&server, &options);
        let alice = Xtls::with_key(&server, "alice");
        let bob = Xtls::login_from(&server, "bob", Some(&network)).and_key();
        random_file(&alice.home().join("large.bin"), LARGE);
        Self { network, server, component, pages, alice, bob }
    }

    /// Starts to send the file over a link that is slow for now.
    fn send(&self, paths: [&str; 2]) -> (Process, Listener) {
        let _old = std::fs::remove_dir_all(self.bob.home().join("received"));
        let listener = self.bob.listen(&["--direct-path", paths[1]]);
        let jid = listener.event("listening").unwrap()["jid"].as_str().unwrap().to_owned();
        let file = self.alice.home().join("large.bin");
        let args = ["send", &jid, file.to_str().unwrap(), "--json", "--direct-path", paths[0]];
        (self.alice.start(args), listener)
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
        let rules = format!(
            "add table ip cut; add chain ip cut in {{ type filter hook input priority 0; }}; \
             add rule ip cut in {rule}; add chain ip cut out {{ type filter hook output priority 0; }}; \
             add rule ip cut out {rule}"
        );
        run("ip", &["netns", "exec", self.network.name(), "nft", &rules]);
    }

    fn mend(&self) {
        run("ip", &["netns", "exec", self.network.name(), "nft", "delete", "table", "ip", "cut"]);
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
    // The two ends of the link have the network's name.
    let device = world.network.name().to_owned();
    for (sessions, verdict) in [(1, "drop"), (2, "reject with tcp reset")] {
        let slow = ["tbf", "rate", PACE, "burst", "64kb", "latency", "50ms"];
        run("tc", &[&["qdisc", "add", "dev", &device, "root"][..], &slow].concat());
        let (sender, listener) = world.send(["always", "always"]);
        let logs = || world.logs(&sender, &listener);
        let direct = || world.counted("sessions_direct_total") == sessions;
        wait_for("the direct path", PATIENCE, logs, direct);
        let begun = || listener.parts().iter().any(|f| f.metadata().is_ok_and(|m| m.len() > 0));
        wait_for("the first bytes", PATIENCE, logs, begun);
        let before = world.counted("direct_bytes_total");
        world.cut(verdict);
        // Its initiator tells of the way back, and how many bytes went directly.
        let relay = || world.counted("direct_bytes_total") > before;
        wait_for("the relay", PATIENCE, logs, relay);
        assert!(world.counted("direct_bytes_total") - before < LARGE as u64, "{}", logs());
        run("tc", &["qdisc", "del", "dev", &device, "root"]);
        world.arrived(sender, listener, verdict);
        world.mend();
    }
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
