//! ICE over TCP (XEP-0371, RFC 6544) between `xtls` and a client that is written from the specifications, and between two `xtls`.

use std::net::SocketAddr;

use serde_json::{Value, json};
use support::{
    MARKER, PATIENCE,
    internet::Internet,
    netns::{Nat, Place, TwoNats},
    process::{Process, read},
    programs::{Options, Script, event, events},
    random_file,
    servers::{Kind, Server},
    sha256, wait_for,
};

/// How many bytes go from `xtls` to the other client, and back.
const THERE: usize = 1_500_000;
const BACK: usize = 700_000;
/// `xtls` lets everybody learn its addresses.
const ALWAYS: [&str; 4] = ["--json", "--direct", "--direct-path", "always"];

fn internet(nats: [Nat; 2], kind: Kind) -> Internet {
    Internet::start(nats, Place::Public, |at| Server::start_at(kind, at), |_, _| Options::default())
}

/// The addresses of host A, and of its NAT.
fn address_of_a(nat: Nat) -> &'static str {
    if nat == Nat::None { "198.18.11.2" } else { "10.1.0.2" }
}

/// Starts the other client on host A, as alice.
fn client(internet: &Internet, nat: Nat, more: Value) -> Script {
    let server = &internet.server;
    let mut settings = json!({
        "server": {"host": TwoNats::SERVERS, "port": server.client_port(), "ca": server.ca()},
        "address": address_of_a(nat), "send": BACK, "expect": THERE, "marker": MARKER,
        "directory": internet.alice.home(),
    });
    for (key, value) in more.as_object().unwrap() {
        settings[key] = value.clone();
    }
    internet.networks.inside(Place::HostA, || Script::start("ice_tcp.py", server, settings))
}

/// What a session came to.
struct Done {
    /// The report of the other client.
    report: Value,
    /// What `xtls` on host B has printed.
    log: String,
}

impl Done {
    /// Checks that the stream was whole; returns the transport on which `xtls` was.
    fn transport(&self, internet: &Internet) -> String {
        let home = internet.bob.home();
        let (report, log) = (&self.report, &self.log);
        assert_eq!(report["received"], sha256(&home.join("in")), "{report}\n{log}");
        assert_eq!(report["sent"], sha256(&home.join("out")), "{report}\n{log}");
        assert_eq!(report["version"], "TLSv1.3", "{report}");
        assert_eq!(report["terminated"], json!(["success"]), "{report}\n{log}");
        assert_ne!(report["shown is offered"], false, "{report}");
        event(log, "secured").unwrap()["transport"].as_str().unwrap().to_owned()
    }

    /// Checks that the stream was on a connection by ICE; returns the peer's address that `xtls` tells.
    fn ice(&self, internet: &Internet) -> String {
        let transport = self.transport(internet);
        assert_eq!((&*transport, &self.report["path"]), ("ice", &json!("ice")), "{}", self.report);
        let path = event(&self.log, "path").expect("the path is told");
        assert_eq!(path["path"], "direct", "{path}");
        path["address"].as_str().unwrap().to_owned()
    }
}

/// Runs one session. The other client is its initiator, or the responder.
fn session(
    internet: &Internet,
    nat: Nat,
    is_initiator: bool,
    options: &[&str],
    more: Value,
) -> Done {
    internet.clean();
    random_file(&internet.bob.home().join("in"), THERE);
    let (mut pipe, client) = begin(internet, nat, is_initiator, options, more);
    let report = client.report();
    let status = pipe.wait(PATIENCE);
    assert_eq!(status.code(), Some(0), "{report}\n{}", pipe.log());
    Done { log: pipe.log(), report }
}

/// Starts both sides of one session.
fn begin(
    internet: &Internet,
    nat: Nat,
    is_initiator: bool,
    options: &[&str],
    mut more: Value,
) -> (Process, Script) {
    if is_initiator {
        let args = [&["pipe", "--listen"], options].concat();
        let pipe = internet.bob.start_between(args, "in", "out");
        let listening = || event(&pipe.log(), "listening").is_some();
        wait_for("listening", PATIENCE, || pipe.log(), listening);
        more["to"] = event(&pipe.log(), "listening").unwrap()["jid"].clone();
        more["role"] = "initiator".into();
        return (pipe, client(internet, nat, more));
    }
    more["role"] = "responder".into();
    let mut client = client(internet, nat, more);
    client.wait_for("listening");
    let log = read(&client.directory().join("script.log"));
    let jid = event(&log, "listening").unwrap()["jid"].as_str().unwrap().to_owned();
    let pipe = internet.bob.start_between([&["pipe", &jid], options].concat(), "in", "out");
    (pipe, client)
}

#[test]
fn another_client_connects_in_both_roles_without_a_nat() {
    let nat = Nat::None;
    let internet = internet([nat; 2], Kind::Prosody);
    for is_initiator in [true, false] {
        for more in [
            json!({}),
            json!({"trickles": true}),
            // RFC 6544 forms pairs of both kinds.
            json!({"only": "passive"}),
            json!({"only": "so"}),
            // Only xtls dials.
            json!({"mute": true}),
        ] {
            let case = format!("initiator: {is_initiator}, {more}");
            let done = session(&internet, nat, is_initiator, &ALWAYS, more);
            assert_eq!(done.ice(&internet), "198.18.11.2", "{case}");
            assert_eq!(done.report["remote"][0], "198.18.12.2", "{case}");
            assert_eq!(done.report["controlling"], is_initiator, "{case}");
            assert_eq!(done.report["codes"], json!([]), "{case}: {}", done.report);
            // Regular nomination: one pair, by the controlling side.
            assert_eq!(done.report["nominations"], u8::from(!is_initiator), "{case}");
        }
        // Both sides claim the same role: the tie-breakers decide, and one of them is told so.
        let claims = if is_initiator { "controlled" } else { "controlling" };
        let done = session(&internet, nat, is_initiator, &ALWAYS, json!({"claims": claims}));
        done.ice(&internet);
    }
}

#[test]
fn another_client_connects_at_ejabberd() {
    let nat = Nat::None;
    let internet = internet([nat; 2], Kind::Ejabberd);
    for is_initiator in [true, false] {
        let done = session(&internet, nat, is_initiator, &ALWAYS, json!({}));
        assert_eq!(done.ice(&internet), "198.18.11.2");
    }
}

#[test]
fn two_nats_are_passed_by_connections_that_both_sides_open_at_once() {
    let nat = Nat::PortRestricted;
    let internet = internet([nat; 2], Kind::Prosody);
    let directory = tempfile::tempdir().unwrap();
    let stun = SocketAddr::from((TwoNats::SERVERS, TwoNats::STUN_PORT));
    let server = internet.networks.start_stun_server(directory.path());
    let named = stun.to_string();
    let options = [&ALWAYS[..], &["--stun", &named]].concat();
    for is_initiator in [true, false] {
        let more = json!({"stun": [TwoNats::SERVERS, TwoNats::STUN_PORT]});
        let done = session(&internet, nat, is_initiator, &options, more);
        assert_eq!(done.ice(&internet), "198.18.1.2");
        assert_eq!(done.report["remote"][0], "198.18.2.2");
        let told = done.report["told"].as_array().unwrap();
        let reflexive = |one: &&Value| one[0] == "srflx" && one[1] == "so";
        let reflexive = told.iter().find(reflexive).expect("it was told");
        assert_eq!([&reflexive[2], &reflexive[5]], ["198.18.2.2", "10.2.0.2"]);
    }
    assert!(server.log().matches("asked by").count() >= 4, "{}", server.log());
}

#[test]
fn where_ice_is_impossible_other_transports_follow() {
    let nat = Nat::Symmetric;
    let internet = internet([nat; 2], Kind::Prosody);
    // xtls offers SOCKS5, with the proxy; the other client offers an in-band bytestream.
    for (is_initiator, transport) in [(false, "s5b"), (true, "ibb")] {
        for more in [json!({}), json!({"only": "udp"})] {
            let done = session(&internet, nat, is_initiator, &ALWAYS, more);
            assert_eq!(done.transport(&internet), transport, "{}", done.report);
            assert_eq!(done.report["path"], transport, "{}", done.report);
            let told = events(&done.log, "path");
            assert!(told.iter().all(|path| path["path"] == "relay"), "{}", done.log);
        }
    }
    // A demand is a demand.
    let options = [&ALWAYS[..], &["--transport", "ice"]].concat();
    for is_initiator in [false, true] {
        internet.clean();
        random_file(&internet.bob.home().join("in"), 1000);
        let more = json!({"refused": true, "timeout": 100});
        let (mut pipe, client) = begin(&internet, nat, is_initiator, &options, more);
        assert_eq!(pipe.wait(PATIENCE).code(), Some(1), "{}", pipe.log());
        assert!(pipe.log().contains("ICE found no connection"), "{}", pipe.log());
        drop(client);
    }
}

#[test]
fn a_client_with_another_password_is_refused() {
    let nat = Nat::None;
    let internet = internet([nat; 2], Kind::Prosody);
    let options = [&ALWAYS[..], &["--transport", "ice"]].concat();
    for is_initiator in [true, false] {
        internet.clean();
        random_file(&internet.bob.home().join("in"), 1000);
        let more = json!({"wrong": true, "refused": true});
        let (mut pipe, client) = begin(&internet, nat, is_initiator, &options, more);
        assert_eq!(pipe.wait(PATIENCE).code(), Some(1), "{}", pipe.log());
        let report = client.report();
        let codes = report["codes"].as_array().unwrap();
        assert!(!codes.is_empty() && codes.iter().all(|code| *code == 401), "{report}");
        assert!(report["refused"].as_str().unwrap().starts_with("failed-transport"), "{report}");
    }
}

/// Returns the stanzas of clients since the last call, and whether one has the address of host B.
fn stanzas(internet: &Internet, seen: &mut usize) -> (String, bool) {
    let lines = internet.server.stanzas();
    let text = lines[*seen..].join("\n");
    *seen = lines.len();
    assert!(text.contains("session-initiate"), "the stanzas are there:\n{text}");
    let has_address = text.contains("198.18.12.2");
    (text, has_address)
}

#[test]
fn without_consent_no_address_is_told_and_nothing_is_dialled() {
    let nat = Nat::None;
    let start = |at: &str| Server::start_at(Kind::Prosody, at).with_stanzas_recorded();
    let internet = Internet::start([nat; 2], Place::Public, start, |_, _| Options::default());
    let of = |choice| ["--json", "--direct", "--direct-path", choice];
    let mut seen = 0;
    // With auto nothing was agreed to, and there is nobody to ask.
    for choice in ["never", "auto"] {
        internet.clean();
        random_file(&internet.bob.home().join("in"), 1000);
        let (pipe, client) = begin(&internet, nat, true, &of(choice), json!({"refused": true}));
        let report = client.report();
        let text = "unsupported-transports text: direct connections with this peer are not allowed: offer another transport";
        assert_eq!(report["refused"], text, "{report}");
        assert_eq!((&report["told"], &report["codes"]), (&json!([]), &json!([])), "{report}");
        pipe.signal("TERM");
        drop(pipe);
        let (text, has_address) = stanzas(&internet, &mut seen);
        assert!(!has_address, "{choice}: {text}");

        // As the initiator xtls offers something else, although the client has ICE.
        internet.clean();
        random_file(&internet.bob.home().join("in"), 1000);
        let (mut pipe, client) = begin(&internet, nat, false, &of(choice), json!({}));
        let log = || read(&client.directory().join("script.log"));
        wait_for("the offer", PATIENCE, log, || log().contains("expected ICE, got"));
        pipe.signal("TERM");
        pipe.wait(PATIENCE);
        let (text, has_address) = stanzas(&internet, &mut seen);
        assert!(!has_address, "{choice}: {text}");
    }
    // That the search finds what there is.
    session(&internet, nat, false, &ALWAYS, json!({})).ice(&internet);
    let (text, has_address) = stanzas(&internet, &mut seen);
    assert!(has_address, "{text}");
}

#[test]
fn two_xtls_connect_by_ice_if_they_have_to() {
    let internet = internet([Nat::PortRestricted; 2], Kind::Prosody);
    let directory = tempfile::tempdir().unwrap();
    let _server = internet.networks.start_stun_server(directory.path());
    let stun = SocketAddr::from((TwoNats::SERVERS, TwoNats::STUN_PORT)).to_string();
    let ice = ["--direct", "--direct-path", "always", "--stun", &stun, "--transport", "ice"];
    let only = ["--direct", "--direct-path", "always", "--stun", &stun];
    // The listener need not insist.
    for of in [[&ice[..], &ice], [&ice, &only]] {
        let mut pipe = internet.pipe(&[], of);
        for end in &pipe.ends {
            assert_eq!(event(&end.log(), "secured").unwrap()["transport"], "ice");
        }
        let addresses = pipe.wait_until_direct(|| internet.logs(&pipe));
        assert_eq!(addresses, ["198.18.2.2", "198.18.1.2"]);
        pipe.exchange(["there", "and back"]);
        pipe.finish();
    }
    // By themselves they use a relay, and find a direct path inside the stream.
    let pipe = internet.pipe(&[], [&only, &only]);
    for end in &pipe.ends {
        assert_eq!(event(&end.log(), "secured").unwrap()["transport"], "s5b");
    }
    pipe.wait_until_direct(|| internet.logs(&pipe));
    pipe.finish();
}
