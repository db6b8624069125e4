//! The promises that hold on every XMPP server. Each function is one promise; `scenarios!` makes a test of each.

use std::time::Duration;

use serde_json::{Value, json};

use super::programs::{
    Component, Options, Script, Xtls, page, purple_files, qxmpp_transfer, script,
};
use super::servers::{Kind, Server};
use super::{COMPONENT, MARKER, SECRET, USERS, random_file, sha256, tap, wait_for};

/// Makes one test of every scenario, on one kind of server.
#[macro_export]
macro_rules! scenarios {
    ($kind:expr) => {
        $crate::scenarios! {
            @each $kind,
            slixmpp_transfers_64_mib_through_the_proxy,
            other_clients_transfer_through_the_proxy_both_ways,
            the_proxy_keeps_its_rules,
            a_socks5_stream_survives_a_restart_of_the_server,
            first_stanza_of_the_mail_in_the_order_of_xtls,
            first_stanza_of_the_mail_in_the_order_of_the_mail,
            second_stanza_of_the_mail_in_the_order_of_xtls,
            second_stanza_of_the_mail_in_the_order_of_the_mail,
            xtls_sends_over_socks5_and_the_wire_shows_tls_only,
            xtls_sends_in_band,
            xtls_sends_in_band_within_the_servers_default_limits,
            xtls_sends_over_legs_of_two_kinds,
            xtls_sends_without_a_broker,
            a_pipe_joins_two_programs,
            a_sender_that_leaves_leaves_nothing_behind,
            a_wrong_key_is_refused_and_nothing_is_written,
            a_stream_that_is_not_tls_leaks_no_byte,
            files_of_ordinary_clients_pass_as_the_operator_says,
            ordinary_clients_send_each_other_files,
            a_file_between_two_protocols_that_breaks_off_has_failed_for_both,
            nonsense_does_not_end_the_link,
            the_component_is_discovered,
            users_run_commands,
            gajims_library_runs_commands,
            published_openpgp_keys_are_taken_over,
            only_users_may_use_it,
            what_cannot_be_brokered_is_refused,
            a_restart_of_the_server_is_survived,
            a_sighup_is_survived,
            a_sigterm_tells_open_sessions,
            a_wrong_secret_ends_with_status_77,
        }
    };
    (@each $kind:expr, $($name:ident),+ $(,)?) => {
        $(#[test]
        fn $name() {
            $crate::scenarios::$name($kind);
        })+
    };
}

/// Makes one test of every function for each server.
#[macro_export]
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        mod prosody {
            $(#[test]
            fn $name() {
                super::$name($crate::servers::Kind::Prosody);
            })+
        }
        mod ejabberd {
            $(#[test]
            fn $name() {
                super::$name($crate::servers::Kind::Ejabberd);
            })+
        }
    };
}

const MIB: usize = 1 << 20;

/// Any client's XEP-0065 transfer goes through the proxy that the client discovers.
pub fn slixmpp_transfers_64_mib_through_the_proxy(kind: Kind) {
    let server = Server::start(kind);
    let component = Component::start(&server, &Options::default());
    let report = script("s5b.py", &server, json!({"bytes": 64 * MIB}));
    assert_eq!(report["received"], report["sent"], "{report}");
    assert_eq!(report["bytes"], 64 * MIB, "{report}");
    assert_eq!(report["proxy"], json!(["127.0.0.1", component.socks5.to_string()]), "{report}");
}

/// Clients with other libraries transfer through the proxy, each as requester and as target: nbxmpp with GLib's SOCKS5,
/// as in Gajim, and QXmpp's own transfer manager.
pub fn other_clients_transfer_through_the_proxy_both_ways(kind: Kind) {
    let server = Server::start(kind);
    let more = "[log]\nlevel = \"debug\"\n".to_owned();
    let component = Component::start(&server, &Options { more, ..Options::default() });
    let report = script("nbxmpp_transfer.py", &server, json!({"bytes": 8 * MIB}));
    for way in ["alice to bob", "bob to alice"] {
        assert_eq!(report[way]["received"], report[way]["sent"], "{report}\n{}", component.log());
        assert_eq!(report[way]["bytes"], 8 * MIB, "{report}");
    }

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("letter.bin");
    random_file(&file, 8 * MIB);
    let report = qxmpp_transfer(&server, &file, &[]);
    // Method 2 is SOCKS5, error 0 is none; the direction names the sender.
    let fine = json!({"method": 2, "error": 0});
    for way in ["forth", "forth received", "back", "back received"] {
        assert_eq!(report[way], fine, "{report}\n{}", component.log());
    }
    for way in ["forth", "back"] {
        assert_eq!(sha256(&directory.path().join(way)), sha256(&file), "{way}");
    }
    wait_for(
        "four streams through the proxy",
        Duration::from_secs(5),
        || component.log(),
        || component.log().matches("transfer ended").count() == 4,
    );
}

/// The proxy's rules at the socket: errors, early bytes, half-close, a third connection, reuse, a broken peer.
pub fn the_proxy_keeps_its_rules(kind: Kind) {
    let server = Server::start(kind);
    let component = Component::start(&server, &Options::default());
    let proxy = json!(["127.0.0.1", component.socks5]);
    let report = script("proxy_rules.py", &server, json!({"proxy": proxy}));
    let expected = json!({
        "unknown": "item-not-found",
        "one side": "not-allowed",
        "third": 2,
        "not the requester": "item-not-found",
        "before activation": "",
        "both sides": "result",
        "twice": report["twice"],
        "forward": "early last",
        "backward": "answer",
        "reuse": "result",
        "broken": "",
    });
    assert_eq!(report, expected);
    assert_ne!(report["twice"], "result", "{report}");
}

/// A SOCKS5 stream continues while the XMPP server is away.
pub fn a_socks5_stream_survives_a_restart_of_the_server(kind: Kind) {
    let mut server = Server::start(kind);
    let mut component = Component::start(&server, &Options::default());
    let proxy = json!(["127.0.0.1", component.socks5]);
    let mut stream = Script::start("survives.py", &server, json!({"proxy": proxy}));
    stream.wait_for("\"open\": true");
    server.restart();
    component.wait_for_links(2);
    std::fs::write(stream.directory().join("go"), "").unwrap();
    let report = stream.report();
    assert_eq!(report["received"], report["sent"], "{report}");
}

/// The first stanza of the thread in docs/HISTORY.md, session-accept before transport and TLS.
pub fn first_stanza_of_the_mail_in_the_order_of_xtls(kind: Kind) {
    stanza_of_the_mail(kind, 1, "xtls");
}

/// The first stanza of the thread in docs/HISTORY.md, session-accept after TLS.
pub fn first_stanza_of_the_mail_in_the_order_of_the_mail(kind: Kind) {
    stanza_of_the_mail(kind, 1, "seed");
}

/// The second stanza of the thread in docs/HISTORY.md, session-accept before transport and TLS.
pub fn second_stanza_of_the_mail_in_the_order_of_xtls(kind: Kind) {
    stanza_of_the_mail(kind, 2, "xtls");
}

/// The second stanza of the thread in docs/HISTORY.md, session-accept after TLS.
pub fn second_stanza_of_the_mail_in_the_order_of_the_mail(kind: Kind) {
    stanza_of_the_mail(kind, 2, "seed");
}

fn stanza_of_the_mail(kind: Kind, stanza: u8, order: &str) {
    let server = Server::start(kind);
    let component = Component::start(&server, &Options::default());
    let settings = json!({"stanza": stanza, "order": order, "bytes": 128 * 1024, "marker": MARKER});
    let report = script("raw_broker.py", &server, settings);
    let (initiator, responder) = (&report["initiator"], &report["responder"]);

    for side in [initiator, responder] {
        assert!(side["tls"]["version"].as_str().unwrap().starts_with("TLSv1."), "{report}");
    }
    assert_eq!(responder["received"], initiator["sent"], "{report}");
    assert_eq!(initiator["echoed"], initiator["sent"], "{report}");
    let steps = match order {
        "xtls" => json!(["initiated", "accepted", "transport", "tls"]),
        _ => json!(["initiated", "transport", "tls", "accepted"]),
    };
    assert_eq!(initiator["steps"], steps, "{report}");

    // Alice registered the X.509 print of that stanza and no OpenPGP key; bob registered the keys that he shows.
    assert!(responder["from"].as_str().unwrap().starts_with("alice\\40example.test@"), "{report}");
    let x509 =
        hint(&responder["hints"], "72:72:DF:06:3A:4D:7D:80:97:0E:53:77:0A:8F:CD:A9:80:A3:CB:38");
    assert_eq!(x509["verdict"], "match", "{report}");
    assert_eq!(x509["jid"], "alice@example.test", "{report}");
    let openpgp =
        hint(&responder["hints"], "E5:59:E9:8A:9B:C9:ED:0F:60:21:FD:EA:34:BF:24:E4:0D:B0:FE:FC");
    if stanza == 1 {
        assert_eq!(openpgp["verdict"], "unknown", "{report}");
        assert_eq!(openpgp["method"], "openpgp", "{report}");
    } else {
        // Twenty bytes without a method may be either kind of key; in any case they are not one of alice's.
        assert!(
            ["unknown", "mismatch"].contains(&openpgp["verdict"].as_str().unwrap()),
            "{report}"
        );
    }
    let answer = hint(&initiator["hints"], report["responder_print"].as_str().unwrap());
    assert_eq!(answer["verdict"], "match", "{report}");
    assert_eq!(answer["jid"], "bob@example.test", "{report}");
    no_log_tells(&server, &component);
}

fn hint<'a>(hints: &'a Value, print: &str) -> &'a Value {
    hints
        .as_array()
        .unwrap()
        .iter()
        .find(|hint| hint["print"] == print)
        .unwrap_or_else(|| panic!("no hint for {print} in {hints}"))
}

/// A file over SOCKS5: equal hash, TLS 1.3, both keys known; the wire carries only TLS records; no log has content.
pub fn xtls_sends_over_socks5_and_the_wire_shows_tls_only(kind: Kind) {
    let server = Server::start(kind);
    let options =
        Options { tap: true, more: "[log]\nlevel = \"trace\"\n".to_owned(), ..Options::default() };
    let component = Component::start(&server, &options);
    xtls_sends(&server, &component, ["s5b", "s5b"], 8 * MIB);

    let connections = component.tap.as_ref().unwrap().captured();
    assert!(connections.len() >= 2, "both legs pass the tap");
    let mut records = 0;
    for connection in &connections {
        for (bytes, from_client) in [(&connection.up, true), (&connection.down, false)] {
            let stream = tap::after_socks5(bytes, from_client).unwrap_or_default();
            records += tap::tls_records(stream).unwrap();
            assert!(!contains(bytes, MARKER.as_bytes()));
        }
    }
    assert!(records > 500, "{records} records are too few for the file");
    no_log_tells(&server, &component);
}

/// The same for a file over in-band bytestreams.
pub fn xtls_sends_in_band(kind: Kind) {
    let server = Server::start(kind);
    let options = Options { more: "[log]\nlevel = \"trace\"\n".to_owned(), ..Options::default() };
    let component = Component::start(&server, &options);
    xtls_sends(&server, &component, ["ibb", "ibb"], 2 * MIB);
    no_log_tells(&server, &component);
}

/// In-band through a server with its default rate limits: it takes its time, and no client is disconnected.
pub fn xtls_sends_in_band_within_the_servers_default_limits(kind: Kind) {
    let server = Server::start_limited(kind);
    let component = Component::start(&server, &Options::default());
    let begin = std::time::Instant::now();
    xtls_sends(&server, &component, ["ibb", "ibb"], 40 * 1024);
    // More than the burst went through, so the limit applied.
    assert!(begin.elapsed() > std::time::Duration::from_secs(2), "{:?}", begin.elapsed());
    let log = server.log();
    for word in ["policy-violation", "resource-constraint", "not-well-formed", "too big"] {
        assert!(!log.contains(word), "{word}: {log}");
    }
}

/// A file from a SOCKS5 leg into an in-band one, and the other way round.
pub fn xtls_sends_over_legs_of_two_kinds(kind: Kind) {
    let server = Server::start(kind);
    let component = Component::start(&server, &Options::default());
    xtls_sends(&server, &component, ["s5b", "ibb"], MIB);
    xtls_sends(&server, &component, ["ibb", "s5b"], MIB);
}

/// Without a broker: the session runs between the two full JIDs, over the component's proxy or in-band.
pub fn xtls_sends_without_a_broker(kind: Kind) {
    let server = Server::start(kind);
    let _component = Component::start(&server, &Options::default());
    let (alice, bob) = (Xtls::with_key(&server, "alice"), Xtls::with_key(&server, "bob"));
    let file = alice.home().join("letter.bin");
    random_file(&file, MIB);
    for (n, transport) in ["s5b", "ibb"].into_iter().enumerate() {
        let mut listener = bob.listen(&["--direct"]);
        let jid = listener.event("listening").unwrap()["jid"].as_str().unwrap().to_owned();
        let sent = alice.run([
            "send".as_ref(),
            jid.as_ref(),
            file.as_os_str(),
            "--direct".as_ref(),
            "--transport".as_ref(),
            transport.as_ref(),
        ]);
        assert_eq!(sent.code, 0, "{sent:?}\n{}", listener.log());
        assert_eq!(listener.wait(Duration::from_secs(30)), 0, "{}", listener.log());
        assert_eq!(listener.event("secured").unwrap()["transport"], transport);
        let files = listener.files();
        assert_eq!(files.len(), n + 1, "{files:?}");
        assert!(files.iter().all(|received| sha256(received) == sha256(&file)));
    }
}

/// A pipe connects both users' standard input and output; each direction ends by itself.
pub fn a_pipe_joins_two_programs(kind: Kind) {
    let server = Server::start(kind);
    let _component = Component::start(&server, &Options::default());
    let (alice, bob) = (Xtls::with_key(&server, "alice"), Xtls::with_key(&server, "bob"));
    random_file(&alice.home().join("in"), 300_000);
    random_file(&bob.home().join("in"), 70_000);
    let mut listener = bob.start_between(["pipe", "--listen"], "in", "out");
    wait_for(
        "listening",
        Duration::from_secs(30),
        || listener.log(),
        || listener.log().contains("listening as"),
    );
    let mut pipe = alice.start_between(["pipe", bob.jid()], "in", "out");
    for program in [&mut pipe, &mut listener] {
        assert_eq!(program.wait(Duration::from_secs(60)).code(), Some(0), "{}", program.log());
    }
    let sum = |user: &Xtls, name: &str| sha256(&user.home().join(name));
    assert_eq!(sum(&alice, "out"), sum(&bob, "in"));
    assert_eq!(sum(&bob, "out"), sum(&alice, "in"));
}

/// Ctrl-C, or a sender that dies, ends the session at once: the receiver learns of it and shows no partial file; one
/// hidden part waits for another try.
pub fn a_sender_that_leaves_leaves_nothing_behind(kind: Kind) {
    let server = Server::start(kind);
    // At this rate the file takes a quarter of an hour.
    let more = "[limits]\nbytes_per_second = 65536\n".to_owned();
    let _component = Component::start(&server, &Options { more, ..Options::default() });
    let (alice, bob) = (Xtls::with_key(&server, "alice"), Xtls::with_key(&server, "bob"));
    let file = alice.home().join("letter.bin");
    random_file(&file, 64 * MIB);
    for (signal, reason) in [("INT", "cancel"), ("KILL", "gone")] {
        let mut listener = bob.listen(&[]);
        let mut sender = alice.start([
            "send".as_ref(),
            bob.jid().as_ref(),
            file.as_os_str(),
            "--transport".as_ref(),
            "ibb".as_ref(),
        ]);
        wait_for(
            "secured",
            Duration::from_secs(30),
            || sender.log(),
            || listener.event("secured").is_some(),
        );
        sender.signal(signal);
        sender.wait(Duration::from_secs(10));
        assert_ne!(listener.wait(Duration::from_secs(30)), 0, "{}", listener.log());
        assert!(listener.log().contains(reason), "{}", listener.log());
        assert_eq!(listener.files(), Vec::<std::path::PathBuf>::new());
        assert!(listener.parts().len() <= 1, "{:?}", listener.parts());
    }
}

/// Lets alice send bob a file; `legs` are her transport and the only one that bob supports.
fn xtls_sends(server: &Server, component: &Component, legs: [&str; 2], size: usize) {
    let alice = Xtls::with_key(server, "alice");
    let bob = Xtls::with_key(server, "bob");
    let file = alice.home().join("letter.bin");
    random_file(&file, size);
    let mut listener = bob.listen(&["--transport", legs[1]]);
    let sent = alice.run([
        "send".as_ref(),
        bob.jid().as_ref(),
        file.as_os_str(),
        "--transport".as_ref(),
        legs[0].as_ref(),
        "--json".as_ref(),
    ]);
    assert_eq!(sent.code, 0, "{sent:?}\n{}\n{}", listener.log(), component.log());
    assert_eq!(listener.wait(Duration::from_secs(30)), 0, "{}", listener.log());
    let files = listener.files();
    assert_eq!(files.len(), 1, "{files:?}");
    assert_eq!(sha256(&files[0]), sha256(&file));

    let secured = listener.event("secured").unwrap();
    assert_eq!(secured["tls_version"], "TLSv1.3", "{secured}");
    assert_eq!(secured["transport"], legs[1], "{secured}");
    let secured = super::programs::event(&sent.stdout, "secured").unwrap();
    assert_eq!(secured["transport"], legs[0], "{secured}");
    for log in [&sent.stdout, &listener.log()] {
        let session = super::programs::event(log, "session").unwrap();
        let hints = session["hints"].as_array().unwrap();
        assert!(
            !hints.is_empty() && hints.iter().all(|hint| hint["verdict"] == "match"),
            "{session}"
        );
    }
}

/// A responder offers another print than its key's: the sender stops with status 4 and nothing is written.
pub fn a_wrong_key_is_refused_and_nothing_is_written(kind: Kind) {
    let server = Server::start(kind);
    let _component = Component::start(&server, &Options::default());
    let alice = Xtls::with_key(&server, "alice");
    let bob = Xtls::with_key(&server, "bob");
    let file = alice.home().join("letter.bin");
    random_file(&file, MIB);
    let other = "AB".repeat(32);
    let listener = bob.listen(&["--offer-print", &other]);
    let sent = alice.run(["send".as_ref(), bob.jid().as_ref(), file.as_os_str()]);
    assert_eq!(sent.code, 4, "{sent:?}\n{}", listener.log());
    assert_eq!(listener.files(), Vec::<std::path::PathBuf>::new());
}

/// Every pair of clients for files completes a marked file, whatever their habits and in whichever protocol each of them speaks, and
/// the sender to any other client learns why not. QXmpp does the same over each mixture of legs, and Pidgin by its own choice.
pub fn ordinary_clients_send_each_other_files(kind: Kind) {
    let server = Server::start(kind);
    let mut options = Options {
        more: "[limits]\nrequests_per_second = 1000\n".to_owned(),
        env: vec![("FINGERPOST_BROKER__PLAIN", "mark".to_owned())],
        ..Options::default()
    };
    let senders = ["conversations", "dino", "psi", "pidgin", "coyim"];
    let component = Component::start(&server, &options);
    let report = script("ordinary_files.py", &server, json!({"size": 100_000, "senders": senders}));
    let refused = [
        ("gajim", "cannot receive this file: it"),
        ("monal", "cannot receive this file: it"),
        ("no-jingle", "decline"),
        ("no-si", "Offer Declined"),
    ];
    for sender in senders {
        for (receiver, why) in refused {
            let got = &report["pairs"][format!("{sender} to {receiver}")];
            let got = got.as_str().unwrap_or_else(|| panic!("{sender} to {receiver}: {got}"));
            assert!(got.contains(why), "{sender} to {receiver}: {got}");
        }
        for receiver in ["conversations", "dino", "psi", "pidgin", "coyim"] {
            let pair = format!("{sender} to {receiver}");
            let got = &report["pairs"][&pair];
            let legs = if receiver == "coyim" { "ibb" } else { "s5b" };
            // The receiver gets the file in its own protocol.
            let protocol = match sender {
                "pidgin" => "si, socks5",
                "coyim" => "si, ibb",
                _ => "jingle",
            };
            assert_eq!(*got, json!([protocol, legs, true, [true, true]]), "{pair}");
        }
    }
    let alice = format!("alice\\40example.test@{COMPONENT}");
    assert_eq!(report["greeted"], json!({"dino": [alice]}), "{report}");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("letter.bin");
    random_file(&file, 300_000);
    for methods in [["socks", "socks"], ["socks", "ibb"], ["ibb", "ibb"]] {
        let report = qxmpp_transfer(&server, &file, &methods);
        for name in ["forth", "back"] {
            assert_eq!(report[name]["error"], 0, "{methods:?}: {report}");
            let received = sha256(&directory.path().join(name));
            assert_eq!(received, sha256(&file), "{methods:?} {name}");
        }
    }
    // Pidgin does not show the description of a file, and so not what it says of the encryption.
    let shown = purple_files(&server, &file);
    assert_eq!(shown, ["offered: ", "received", "offered: ", "received"]);
    for name in ["alice", "bob"] {
        assert_eq!(sha256(&directory.path().join(name)), sha256(&file), "{name}");
    }
    drop(component);
    options.env = vec![("FINGERPOST_BROKER__PLAIN", "deny".to_owned())];
    let _component = Component::start(&server, &options);
    let report = script("ordinary_files.py", &server, json!({"size": 1000, "senders": ["pidgin"]}));
    let refused = report["pairs"]["pidgin to pidgin"].as_str().unwrap_or_default();
    assert!(refused.contains("which nothing encrypts"), "{report}");
}

/// A file whose sender and receiver speak different protocols breaks off: the user of Jingle is told why, and the stream of the other
/// user ends.
pub fn a_file_between_two_protocols_that_breaks_off_has_failed_for_both(kind: Kind) {
    let server = Server::start(kind);
    let options = Options {
        env: vec![("FINGERPOST_BROKER__PLAIN", "mark".to_owned())],
        ..Options::default()
    };
    let _component = Component::start(&server, &options);
    let report = script("broken_files.py", &server, json!({"size": 200_000}));
    for client in ["pidgin", "coyim"] {
        let said = |what: &str| report[format!("{client} {what}")].as_str().unwrap().to_owned();
        let text = "connectivity-error text: The stream had 100000 bytes, and 200000 were expected";
        assert_eq!(said("stops sending"), text, "{report}");
        assert!(said("stops receiving").starts_with("connectivity-error"), "{report}");
        assert_eq!(said("is cancelled"), "ended", "{report}");
    }
}

/// A stream that does not start with a ClientHello reaches nobody; both sides are told.
pub fn a_stream_that_is_not_tls_leaks_no_byte(kind: Kind) {
    let server = Server::start(kind);
    let _component = Component::start(&server, &Options::default());
    let report = script("not_tls.py", &server, json!({"marker": MARKER}));
    assert_eq!(report["leaked"], 0, "{report}");
    for side in ["initiator", "responder"] {
        assert!(report[side].as_str().unwrap().contains("security-error"), "{report}");
    }
}

/// Two clients without TLS send a file over two kinds of legs if the operator lets them. Then the stanzas, the log and the
/// metrics say that nothing encrypts it from end to end. A file that JET encrypts has no such mark.
pub fn files_of_ordinary_clients_pass_as_the_operator_says(kind: Kind) {
    const JET: &str = "<security xmlns='urn:xmpp:jingle:jet:0' cipher='urn:xmpp:ciphers:aes-256-gcm-nopadding:0'/>";
    let server = Server::start(kind);
    let send = |protection: &str| {
        script("plain_file.py", &server, json!({"size": 200_000, "protection": protection}))
    };
    for plain in ["deny", "mark", "allow"] {
        let options = Options {
            env: vec![("FINGERPOST_BROKER__PLAIN", plain.to_owned())],
            ..Options::default()
        };
        let (options, pages) = options.with_pages();
        let component = Component::start(&server, &options);
        let sent = send("");
        if plain == "deny" {
            assert_eq!(sent["condition"], "not-acceptable", "{sent}");
            assert!(sent["text"].as_str().unwrap().contains("and this offer has none"), "{sent}");
            let jet = send(JET);
            assert!(jet["text"].as_str().unwrap().contains("JET (XEP-0391)"), "{jet}");
            continue;
        }
        assert_eq!(
            sent,
            json!({"equal": true, "marked": [plain == "mark", plain == "mark"]}),
            "{plain}"
        );
        assert_eq!(send(JET), json!({"equal": true, "marked": [false, false]}), "{plain}");
        let log = component.log();
        assert_eq!(
            log.matches("nothing encrypts this session from end to end").count(),
            1,
            "{log}"
        );
        let metrics = page(pages, "/metrics").unwrap();
        assert!(metrics.contains("\nfingerpost_broker_sessions_plain_total 1\n"), "{metrics}");
    }
}

/// Nonsense is answered, or ignored where no answer is allowed, and the component continues.
pub fn nonsense_does_not_end_the_link(kind: Kind) {
    let server = Server::start(kind);
    let mut component = Component::start(&server, &Options::default());
    let iq = |id: &str, kind: &str, body: &str| json!({"id": id, "xml": format!("<iq from='[from]' to='[component]' id='{id}' type='{kind}'>{body}</iq>")});
    let mut unanswered = vec![
        json!({"id": "-", "xml": "<message to='[component]'><x xmlns='urn:example:unknown'/></message>"}),
        json!({"id": "-", "xml": "<presence to='[component]'><priority>much</priority></presence>"}),
        json!({"id": "-", "xml": "<iq to='[component]' id='stray' type='result'/>"}),
        json!({"id": "-", "xml": "<message to='[component]' type='error'><data xmlns='http://jabber.org/protocol/ibb' seq='x'/></message>"}),
    ];
    for stanza in &mut unanswered {
        stanza["answered"] = false.into();
    }
    let mut stanzas = unanswered;
    stanzas.extend([
        iq("unknown", "get", "<query xmlns='urn:example:unknown'/>"),
        iq("child", "set", "<query xmlns='http://jabber.org/protocol/bytestreams' sid='s'><activate>@@</activate></query>"),
        iq("seq", "set", "<data xmlns='http://jabber.org/protocol/ibb' sid='s' seq='many'>!</data>"),
        iq("jingle", "set", "<jingle xmlns='urn:xmpp:jingle:1' action='dance' sid='x'/>"),
        iq("keys", "set", "<add xmlns='urn:fingerpost:keys:0'><key method='x509'><print hash='sha-256'>zz</print></key></add>"),
        iq("nobody", "get", "<ping xmlns='urn:xmpp:ping'/>"),
        iq("ping", "get", "<ping xmlns='urn:xmpp:ping'/>"),
    ]);
    for stanza in &mut stanzas {
        if stanza["id"] == "nobody" {
            let xml = stanza["xml"].as_str().unwrap().replace("to='", "to='nobody@");
            stanza["xml"] = xml.into();
        }
    }
    let answers = script("probe.py", &server, json!({"stanzas": stanzas}));
    for (id, condition) in [
        ("unknown", "service-unavailable"),
        ("child", "bad-request"),
        ("keys", "bad-request"),
        ("nobody", "item-not-found"),
    ] {
        assert_eq!(answers[id]["condition"], condition, "{id}: {answers}");
    }
    for id in ["seq", "jingle"] {
        assert_eq!(answers[id]["type"], "error", "{id}: {answers}");
    }
    assert_eq!(answers["ping"]["type"], "result", "{answers}");
    assert!(component.runs());
    assert_eq!(component.log().matches("link up").count(), 1, "{}", component.log());
}

/// The component describes itself.
pub fn the_component_is_discovered(kind: Kind) {
    let server = Server::start(kind);
    let _component = Component::start(&server, &Options::default());
    let disco = &script("login.py", &server, json!({"disco": true}))["disco"];
    let holds = |list: &str, item: &str| disco[list].as_array().unwrap().iter().any(|i| i == item);
    assert!(holds("identities", "proxy/bytestreams"), "{disco}");
    assert!(holds("identities", "component/generic"), "{disco}");
    assert!(holds("features", "http://jabber.org/protocol/bytestreams"), "{disco}");
    assert!(holds("items", COMPONENT), "{disco}");
}

/// The component survives a restart of the XMPP server: it logs in again and answers.
pub fn a_restart_of_the_server_is_survived(kind: Kind) {
    let mut server = Server::start(kind);
    let mut component = Component::start(&server, &Options::default());
    server.restart();
    component.wait_for_links(2);
    assert_answers(&server);
    assert!(component.runs());
    // An orderly stop is a plain end of TCP, at every server.
    let log = component.log();
    let why = log.lines().find(|line| line.contains("link down")).unwrap();
    assert!(why.contains("reason=the XMPP server closed the connection"), "{log}");
}

/// The component survives SIGHUP.
pub fn a_sighup_is_survived(kind: Kind) {
    let server = Server::start(kind);
    let mut component = Component::start(&server, &Options::default());
    component.signal("HUP");
    assert_answers(&server);
    component.signal("HUP");
    assert_answers(&server);
    assert!(component.runs());
}

/// SIGTERM ends open sessions with a reason and the program with status 0.
pub fn a_sigterm_tells_open_sessions(kind: Kind) {
    let server = Server::start(kind);
    let more = "[limits]\ndrain_timeout = \"2s\"\n".to_owned();
    let mut component = Component::start(&server, &Options { more, ..Options::default() });
    let mut session = Script::start("terminated.py", &server, json!({}));
    session.wait_for("\"open\": true");
    component.signal("TERM");
    let report = session.report();
    for side in ["initiator", "responder"] {
        assert_ne!(report[side], "", "{report}");
    }
    assert_eq!(component.wait(Duration::from_secs(20)), 0, "{}", component.log());
}

/// The server refuses the secret: status 77, one line, and the cure.
pub fn a_wrong_secret_ends_with_status_77(kind: Kind) {
    let server = Server::start(kind);
    let secret = Some("not-the-secret".to_owned());
    let mut component = Component::launch(&server, &Options { secret, ..Options::default() });
    assert_eq!(component.wait(Duration::from_secs(60)), 77, "{}", component.log());
    let log = component.log();
    let errors: Vec<_> = log.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{log}");
    assert!(errors[0].contains("[component] secret"), "one line has fault and cure: {log}");
    assert!(!log.contains("not-the-secret"), "{log}");
    // ejabberd sends the same for an unknown component.
    let also = ", or has no such component: ejabberd says the same in both cases";
    assert_eq!(log.contains(also), kind == Kind::Ejabberd, "{log}");
    let env = vec![("FINGERPOST_COMPONENT__JID", "nope.example.test".to_owned())];
    let mut component = Component::launch(&server, &Options { env, ..Options::default() });
    if kind == Kind::Prosody {
        let told = || component.log().contains("host-unknown");
        wait_for("the reason", Duration::from_secs(60), || component.log(), told);
        let cure = "add this component's address to the server's configuration";
        assert!(component.log().contains(cure), "{}", component.log());
        return;
    }
    assert_eq!(component.wait(Duration::from_secs(60)), 77, "{}", component.log());
    let log = component.log();
    assert!(
        log.contains("refused the secret for nope.example.test") && log.contains(also),
        "{log}"
    );
    assert!(
        log.contains("has nope.example.test in its `hosts`, add it there; else compare"),
        "{log}"
    );
}

/// The ad-hoc commands of users: forms, pages forward and back, wrong input shown again.
pub fn users_run_commands(kind: Kind) {
    let server = Server::start(kind);
    let component = Component::start(&server, &Options::default());
    let report = script("commands.py", &server, json!({}));
    let expected = json!({
        "listed": ["add", "erase", "export", "keys", "lookup", "prove", "revoke", "sessions", "settings"],
        "identity": [["automation", "command-node"]],
        "german": [
            "Schlüssel widerrufen",
            "Schlüssel eines Nutzers nachschlagen",
            "nobody@example.test zeigt Ihnen keine Schlüssel.",
        ],
        "add 1": ["executing", ["next"], ["label", "material", "method", "note", "print", "replaces"]],
        "mistake": ["executing", ["error"], "no fingerprint is in it: expec", "laptop"],
        "add 2": ["executing", ["complete", "prev"]],
        "back": ["executing", "72:72:DF:06:3A:4D:7D:80:97:0E:53:77:0A:8F:CD:A9:80:A3:CB:38"],
        "added": ["completed", ["notebook"], ["active"], "The key is registered."],
        "keys": [
            "executing",
            ["complete", "next"],
            true,
            [{"sha-1": "72:72:DF:06:3A:4D:7D:80:97:0E:53:77:0A:8F:CD:A9:80:A3:CB:38"}],
        ],
        "go on": [["next", "prev"], ["id", "then"]],
        "nothing chosen": ["error"],
        "replace": [true, true],
        "revoke": [["complete", "prev"], true],
        "no key": ["error"],
        "to be signed": true,
        "prints only": ["executing", ["error"], true],
        "lookup": ["completed", [], "nobody@example.test shows you no keys."],
        "settings": "everyone",
        "changed": ["listed", ["bob@example.test"]],
        "cancelled": "canceled",
        "unsure": ["executing", ["error"]],
        "revoked": ["completed", ["revoked"]],
        "sessions": "completed",
        "export": true,
        "unconfirmed": ["executing", ["error"]],
        "erased": ["completed", []],
        "no such command": "item-not-found",
        "no way back": "bad-request",
        "used session": "bad-request",
    });
    assert_eq!(report, expected, "{}", component.log());
}

/// The same commands in Gajim's library.
pub fn gajims_library_runs_commands(kind: Kind) {
    let server = Server::start(kind);
    let component = Component::start(&server, &Options::default());
    let report = script("nbxmpp_commands.py", &server, json!({}));
    let expected = json!({
        "commands": ["add", "erase", "export", "keys", "lookup", "prove", "revoke", "sessions", "settings"],
        "form": [true, "Add a key", ["label", "material", "method", "note", "print", "replaces"]],
        "mistake": ["error"],
        "confirm": ["cancel", "complete", "prev"],
        "done": [true, ["info"]],
        "keys": [["from Gajim (x509, active, asserted)", "SHA-1\n72:72:DF:06:3A:4D:7D:80\n97:0E:53:77:0A:8F:CD:A9\n80:A3:CB:38"]],
        "cancelled": true,
    });
    assert_eq!(report, expected, "{}", component.log());
}

/// OpenPGP keys that a user publishes openly in PEP are imported, and dropped when they are withdrawn.
pub fn published_openpgp_keys_are_taken_over(kind: Kind) {
    let server = Server::start(kind);
    let component = Component::start(&server, &Options::default());
    let report = script("pep.py", &server, json!({}));
    let expected = json!({
        "alice": [["openpgp", "pep", "active", true]],
        "withdrawn": [["openpgp", "pep", "superseded"]],
        "bob": [],
    });
    assert_eq!(report, expected, "{}", component.log());
}

/// Only permitted users may use the service, and a blocked one may not; all others are told so, and callees need not be
/// users.
pub fn only_users_may_use_it(kind: Kind) {
    let server = Server::start(kind);
    let requests = json!({"stanzas": [
        {"id": "proxy", "xml": "<iq from='[from]' to='[component]' id='proxy' type='get'><query xmlns='http://jabber.org/protocol/bytestreams'/></iq>"},
        {"id": "keys", "xml": "<iq from='[from]' to='[component]' id='keys' type='get'><keys xmlns='urn:fingerpost:keys:0'/></iq>"},
        {"id": "session", "xml": "<iq from='[from]' to='bob\\40[domain]@[component]/x' id='session' type='set'><jingle xmlns='urn:xmpp:jingle:1' action='session-initiate' sid='s'/></iq>"},
    ]});
    for access in ["users = [\"bob@example.test\"]", "blocked = [\"alice@example.test\"]"] {
        let more = format!("[access]\n{access}\n");
        let _component = Component::start(&server, &Options { more, ..Options::default() });
        let answers = script("probe.py", &server, requests.clone());
        for id in ["proxy", "keys", "session"] {
            assert_eq!(answers[id]["condition"], "forbidden", "{access} {id}: {answers}");
        }
    }
}

/// A session that cannot be brokered is refused with the condition that says why.
pub fn what_cannot_be_brokered_is_refused(kind: Kind) {
    let server = Server::start(kind);
    let _component = Component::start(&server, &Options::default());
    let tls = "<description xmlns='urn:xmpp:jingle:apps:tls'><methods><method name='srp'/></methods></description>";
    let ibb = "<transport xmlns='urn:xmpp:jingle:transports:ibb:1' sid='x' block-size='4096'/>";
    let content =
        |inside: String| format!("<content creator='initiator' name='c'>{inside}</content>");
    let to = "bob\\40[domain]@[component]/nowhere";
    let initiate = |id: &str, to: &str, inside: String| {
        json!({"id": id, "xml": format!("<iq from='[from]' to='{to}' id='{id}' type='set'><jingle xmlns='urn:xmpp:jingle:1' \
            action='session-initiate' sid='{id}'>{inside}</jingle></iq>")})
    };
    let cases = [
        (
            initiate("plain", to, content(format!("<description xmlns='urn:x'/>{ibb}"))),
            "not-acceptable",
        ),
        (
            initiate("transport", to, content(format!("{tls}<transport xmlns='urn:y'/>"))),
            "feature-not-implemented",
        ),
        (initiate("empty", to, String::new()), "bad-request"),
        (
            initiate("nobody", "bob\\40[domain]@[component]", content(format!("{tls}{ibb}"))),
            "recipient-unavailable",
        ),
        (initiate("gone", to, content(format!("{tls}{ibb}"))), "service-unavailable"),
        (
            initiate("itself", "x\\40[component]@[component]/r", content(format!("{tls}{ibb}"))),
            "item-not-found",
        ),
        (initiate("nojid", "bob@[component]/r", content(format!("{tls}{ibb}"))), "item-not-found"),
        (
            json!({"id": "session", "xml": format!("<iq from='[from]' to='{to}' id='session' type='set'><jingle \
            xmlns='urn:xmpp:jingle:1' action='session-info' sid='none'/></iq>")}),
            "item-not-found",
        ),
        (
            json!({"id": "other", "xml": format!("<iq from='[from]' to='{to}' id='other' type='get'><query \
            xmlns='jabber:iq:roster'/></iq>")}),
            "service-unavailable",
        ),
    ];
    let stanzas: Vec<_> = cases.iter().map(|(stanza, _)| stanza.clone()).collect();
    let answers = script("probe.py", &server, json!({"stanzas": stanzas}));
    for (stanza, condition) in &cases {
        let id = stanza["id"].as_str().unwrap();
        assert_eq!(answers[id]["condition"], *condition, "{id}: {answers}");
    }
    assert!(answers["plain"]["xml"].as_str().unwrap().contains("security-required"), "{answers}");
}

/// Checks that the component answers a ping.
pub fn assert_answers(server: &Server) {
    let ping =
        "<iq from='[from]' to='[component]' id='p' type='get'><ping xmlns='urn:xmpp:ping'/></iq>";
    let answers = script("probe.py", server, json!({"stanzas": [{"id": "p", "xml": ping}]}));
    assert_eq!(answers["p"]["type"], "result", "{answers}");
}

/// Checks that neither log holds content, a password or the secret.
fn no_log_tells(server: &Server, component: &Component) {
    for (whose, log) in [("the server's", server.log()), ("our", component.log())] {
        assert!(!log.contains(MARKER), "{whose} log holds content");
        // ejabberd at debug logs the configuration that it reads, including the secret, which is the server's fault.
        if whose == "our" {
            assert!(!log.contains(SECRET), "our log holds the secret");
            for (_, password) in USERS {
                assert!(!log.contains(password), "our log holds a password");
            }
        }
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
