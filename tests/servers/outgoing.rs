//! Where the component connects to: its server and its database, and nowhere else.

use std::{net::TcpStream, process::Command};

use serde_json::{Value, json};
use support::{
    PATIENCE, free_port,
    internet::Internet,
    netns::{Nat, Place, TwoNats},
    postgres::Postgres,
    process::Process,
    programs::{Options, script},
    servers::{Kind, Server},
    wait_for,
};
use tempfile::TempDir;

/// Returns how many connections of each kind the component's machine has begun, by the rules of [`watch`].
fn begun(internet: &Internet) -> [u64; 3] {
    let list = ["-j", "list", "counters", "table", "inet", "begun"];
    let text = internet.networks.run_in(Place::Component, "nft", &list);
    let answer: Value = serde_json::from_str(&text).unwrap();
    ["server", "database", "elsewhere"].map(|name| {
        let all = answer["nftables"].as_array().unwrap().iter();
        let mut counters = all.map(|one| &one["counter"]).filter(|one| one["name"] == name);
        counters.next().unwrap()["packets"].as_u64().unwrap()
    })
}

/// The component is alone on its machine. Its kernel counts the packets with which connections begin; for UDP these are
/// the first ones.
fn watch(networks: &TwoNats, server: u16, database: u16) {
    let address = TwoNats::SERVERS;
    let rule = |port| format!("ct state new ip daddr {address} tcp dport {port} counter name");
    networks.nft(
        Place::Component,
        &format!(
            "table inet begun {{
                counter server {{ }}
                counter database {{ }}
                counter elsewhere {{ }}
                set places {{ type ipv4_addr . inet_service; flags dynamic; size 64; }}
                chain out {{
                    type filter hook output priority 0;
                    oifname lo accept
                    {} server accept
                    {} database accept
                    ct state new ip protocol {{ tcp, udp }} add @places {{ ip daddr . th dport }}
                    ct state new meta l4proto {{ tcp, udp, udplite, sctp, dccp }} counter name elsewhere
                }}
            }}",
            rule(server),
            rule(database)
        ),
    );
}

/// PostgreSQL in the public network, at an address of its own besides loopback.
struct Database {
    // Dropped in this order.
    _forwarder: Process,
    _files: TempDir,
    postgres: Postgres,
    port: u16,
}

impl Database {
    fn start() -> Self {
        let postgres = Postgres::start();
        let (port, files) = (free_port(), tempfile::tempdir().unwrap());
        let mut command = Command::new("socat");
        command.arg(format!("TCP-LISTEN:{port},bind={},fork,reuseaddr", TwoNats::SERVERS));
        command.arg(format!("TCP:127.0.0.1:{}", postgres.port()));
        let forwarder = Process::start(command, &files.path().join("socat"));
        let is_up = || TcpStream::connect((TwoNats::SERVERS, port)).is_ok();
        wait_for("the database's port", PATIENCE, || forwarder.log(), is_up);
        Self { _forwarder: forwarder, _files: files, postgres, port }
    }

    fn url(&self) -> String {
        let loopback = format!("127.0.0.1:{}", self.postgres.port());
        self.postgres.url().replace(&loopback, &format!("{}:{}", TwoNats::SERVERS, self.port))
    }
}

#[test]
fn the_component_connects_to_its_server_and_its_database_only() {
    let mut database = None;
    let start = |address: &str| Server::start_at(Kind::Prosody, address);
    let nats = [Nat::PortRestricted; 2];
    let internet = Internet::start(nats, Place::Component, start, |networks, server| {
        let database = database.insert(Database::start());
        let port = server.component_address().rsplit(':').next().unwrap().parse().unwrap();
        watch(networks, port, database.port);
        Options { database: Some(database.url()), ..Options::default() }
    });
    // The registry has the keys of both users. A session over the relay, one that goes direct, and one without a broker that uses
    // the component as a proxy:
    for (more, paths, is_direct) in
        [(&[][..], "never", false), (&[], "always", true), (&["--direct"], "always", false)]
    {
        let choice = ["--direct-path", paths];
        let mut pipe = internet.pipe(more, [&choice, &choice]);
        if is_direct {
            pipe.wait_until_direct(|| internet.logs(&pipe));
        }
        pipe.exchange(["to bob", "to alice"]);
        pipe.finish();
    }
    assert_eq!(internet.counted("sessions_direct_total"), 1);
    // Another program's file through the proxy, and the component's other services.
    let transfer = |name: &str, settings| {
        internet.networks.inside(Place::Public, || script(name, &internet.server, settings))
    };
    let report = transfer("s5b.py", json!({"bytes": 1 << 20}));
    assert_eq!(report["sent"], report["received"], "{report}");
    assert!(internet.counted("transfers_bytes_total") >= 1 << 20);
    assert_eq!(internet.alice.run(["keys"]).code, 0);

    let [server, to_database, elsewhere] = begun(&internet);
    assert!(server >= 1 && to_database >= 1, "{server} {to_database}");
    let places = ["list", "set", "inet", "begun", "places"];
    let places = internet.networks.run_in(Place::Component, "nft", &places);
    assert_eq!(elsewhere, 0, "{places}\n{}", internet.component.log());
    // That such a connection counts: refused, as nothing listens there.
    let connected = internet
        .networks
        .inside(Place::Component, || TcpStream::connect((TwoNats::SERVERS, 9)).is_ok());
    assert!(!connected);
    assert_eq!(begun(&internet)[2], 1);
}
