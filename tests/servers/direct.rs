//! Direct paths, as far as the component has to do with them.

use std::{fs::File, process::Command, time::Duration};

use serde_json::{Value, json};
use support::{
    MARKER, PATIENCE,
    network::Network,
    process::read,
    programs::{Component, Options, Script, Xtls, event, events, page, script},
    random_file,
    servers::{Kind, Server},
    sha256, wait_for,
};

/// Checks what does not depend on the configuration: nobody learns the address of another user.
fn assert_tells_nobody_else(report: &Value) {
    let unknown = json!(["item-not-found", "There is no such bytestream"]);
    for part in ["not theirs", "unknown", "after the end"] {
        for told in report[part].as_array().unwrap() {
            assert_eq!(*told, unknown, "{part}: {report}");
        }
    }
    assert_eq!(report["path"], json!(["direct", "1000"]), "{report}");
}

#[test]
fn the_operator_decides_about_direct_paths_and_each_user_learns_only_its_own_address() {
    let server = Server::start(Kind::Prosody);
    let (options, port) = Options::default().with_pages();
    let component = Component::start(&server, &options);
    let counted = || {
        let page = page(port, "/metrics").unwrap();
        ["sessions_direct_total", "direct_bytes_total"].map(|name| {
            let name = format!("fingerpost_{name} ");
            page.lines().find_map(|line| line.strip_prefix(&name)).unwrap().to_owned()
        })
    };
    assert_eq!(counted(), ["0", "0"]);
    let report = script("direct_paths.py", &server, json!({}));
    assert_eq!(report["asked"], json!([true, true]), "{report}");
    assert_eq!(report["announced"], true, "{report}");
    for user in ["alice", "bob"] {
        assert_eq!(report[user][1], true, "its own end of the connection: {report}");
        assert_eq!(report[user][0][0], true, "{report}");
    }
    assert_tells_nobody_else(&report);
    assert_eq!(counted(), ["1", "1000"]);

    let config = std::fs::read_to_string(component.config()).unwrap();
    std::fs::write(component.config(), format!("{config}\n[broker]\ndirect = \"deny\"\n")).unwrap();
    component.signal("HUP");
    let reloaded = || component.log().contains("configuration reloaded");
    wait_for("the reload", PATIENCE, || component.log(), reloaded);
    let report = script("direct_paths.py", &server, json!({}));
    assert_eq!(report["asked"], json!([false, false]), "{report}");
    assert_eq!(report["announced"], false, "{report}");
    for user in ["alice", "bob"] {
        assert_eq!(report[user][0][0], "item-not-found", "{report}");
    }
    assert_tells_nobody_else(&report);
    assert_eq!(counted(), ["1", "1000"]);
}

#[test]
fn behind_a_load_balancer_the_observed_address_is_the_clients() {
    let server = Server::start(Kind::Prosody);
    let env = vec![("FINGERPOST_SOCKS5__PROXY_PROTOCOL", "true".to_owned())];
    let _component = Component::start(&server, &Options { env, ..Options::default() });
    let header = "PROXY TCP4 192.0.2.7 198.51.100.1 4711 7625\r\n";
    let report = script("direct_paths.py", &server, json!({ "header": header }));
    for user in ["alice", "bob"] {
        assert_eq!(report[user][0], json!([true, "192.0.2.7", 4711]), "{report}");
    }
    // The balancer does not tell: its own address is nobody's.
    let report = script("direct_paths.py", &server, json!({ "header": "PROXY UNKNOWN\r\n" }));
    for user in ["alice", "bob"] {
        assert_eq!(report[user][0][0], "item-not-found", "{report}");
    }
}

/// A server and a component that is no proxy, so that SOCKS5 is possible only directly. Bob is in a network of his own.
struct Apart {
    network: Network,
    server: Server,
    component: Component,
    alice: Xtls,
    bob: Xtls,
}

impl Apart {
    fn start() -> Self {
        let network = Network::start();
        let server = Server::start_at(Kind::Prosody, network.address());
        let env = vec![("FINGERPOST_SOCKS5__LISTEN", String::new())];
        let component = Component::start(&server, &Options { env, ..Options::default() });
        let alice = Xtls::with_key(&server, "alice").with_direct_paths();
        let bob = Xtls::login_from(&server, "bob", Some(&network)).and_key();
        Self { network, server, component, alice, bob }
    }
}

#[test]
fn without_a_broker_two_users_that_trust_each_other_connect_directly_unless_one_says_never() {
    let apart = Apart::start();
    let file = apart.alice.home().join("letter.bin");
    random_file(&file, 300_000);
    for (case, [alices, bobs], transport) in [
        // At first they do not know each other, and there is no terminal to ask at.
        ("a first session", ["auto", "auto"], "ibb"),
        ("the sender says never", ["never", "always"], "ibb"),
        ("the listener says never", ["always", "never"], "ibb"),
        ("they have kept each other's key", ["", "auto"], "ibb"),
        ("only the sender trusts the listener", ["", "auto"], "ibb"),
        ("they trust each other", ["", "auto"], "s5b"),
        ("always", ["always", "always"], "s5b"),
        ("the sender's account says never", ["", "always"], "ibb"),
    ] {
        match case {
            "only the sender trusts the listener" => apart.alice.trust(&apart.bob),
            "they trust each other" => apart.bob.trust(&apart.alice),
            _ => {}
        }
        if case.contains("account") {
            let account = apart.alice.home().join("xtls/alice@example.test/account.toml");
            let text = std::fs::read_to_string(&account).unwrap();
            std::fs::write(account, format!("{text}direct_path = \"never\"\n")).unwrap();
        }
        let mut listener = apart.bob.listen(&["--direct", "--direct-path", bobs]);
        let jid = listener.event("listening").unwrap()["jid"].as_str().unwrap().to_owned();
        let mut args = vec!["send", &jid, file.to_str().unwrap(), "--json", "--direct"];
        if !alices.is_empty() {
            args.extend(["--direct-path", alices]);
        }
        let sent = apart.alice.run(args);
        let logs = || format!("{sent:?}\n{}\n{}", listener.log(), apart.component.log());
        assert_eq!(sent.code, 0, "{case}: {}", logs());
        let secured = [event(&sent.stdout, "secured").unwrap(), listener.event("secured").unwrap()];
        for side in secured {
            assert_eq!(side["transport"], transport, "{case}: {}", logs());
        }
        assert_eq!(listener.wait(PATIENCE), 0, "{case}: {}", listener.log());
        for received in listener.files() {
            assert_eq!(sha256(&received), sha256(&file), "{case}");
            std::fs::remove_file(received).unwrap();
        }
    }
}

/// The client is written from XEP-0260 and RFC 1928, with slixmpp and OpenSSL.
#[test]
fn another_client_connects_directly_to_a_candidate_of_xtls() {
    let apart = Apart::start();
    random_file(&apart.bob.home().join("in"), 150_000);
    let args =
        ["pipe", "--listen", "--json", "--direct", "--direct-path", "always", "--transport", "s5b"];
    let mut pipe = apart.bob.start_between(args, "in", "out");
    let log = apart.bob.home().join("pipe.log");
    let listening = || read(&log).contains("listening");
    wait_for("listening", PATIENCE, || read(&log), listening);
    let to = event(&read(&log), "listening").unwrap()["jid"].clone();
    let settings = json!({
        "to": to, "role": "initiator", "method": "x509", "transport": "s5b", "send": 90_000, "expect": 150_000,
        "marker": MARKER,
    });
    let client = Script::start("openssl_xtls.py", &apart.server, settings);
    let status = pipe.wait(Duration::from_secs(120));
    assert_eq!(status.code(), Some(0), "{}\n{}", pipe.log(), apart.component.log());
    let report = client.report();
    assert_eq!(report["received"], sha256(&apart.bob.home().join("in")), "{report}");
    assert_eq!(report["sent"], sha256(&apart.bob.home().join("out")), "{report}");
    assert_eq!(event(&pipe.log(), "secured").unwrap()["transport"], "s5b");
    drop(apart.network);
}

/// Both say where the stream goes when it leaves the relay, and neither has to be asked: both have said always.
#[test]
fn a_stream_through_the_broker_moves_to_a_direct_connection_and_both_sides_say_so() {
    let network = Network::start();
    let server = Server::start_at(Kind::Prosody, network.address());
    let address = Some(network.address().to_owned());
    let component = Component::start(&server, &Options { address, ..Options::default() });
    let alice = Xtls::with_key(&server, "alice");
    let bob = Xtls::login_from(&server, "bob", Some(&network)).and_key();
    let direct = ["--json", "--direct-path", "always"];
    // Inputs that stay open.
    let held = [&alice, &bob].map(|user| {
        let fifo = user.home().join("in");
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        File::options().read(true).write(true).open(fifo).unwrap()
    });
    let listen = [&["pipe", "--listen"][..], &direct].concat();
    let mut listener = bob.start_between(listen, "in", "out");
    let logs = |log: &str| format!("{log}\n{}", component.log());
    let listening = || listener.log().contains("listening");
    wait_for("listening", PATIENCE, || listener.log(), listening);
    let mut pipe = alice.start_between([&["pipe", bob.jid()][..], &direct].concat(), "in", "out");
    for log in [&(|| pipe.log()) as &dyn Fn() -> String, &|| listener.log()] {
        let direct = || events(&log(), "path").into_iter().find(|path| path["path"] == "direct");
        wait_for("the direct path", PATIENCE, || logs(&log()), || direct().is_some());
        assert_eq!(event(&log(), "path").unwrap()["path"], "relay");
        let path = direct().unwrap();
        let address = path["address"].as_str().unwrap();
        assert!(address.starts_with("198.18."), "{path}");
    }
    drop(held);
    for side in [&mut pipe, &mut listener] {
        let status = side.wait(Duration::from_secs(120));
        assert_eq!(status.code(), Some(0), "{}", logs(&side.log()));
    }
}
