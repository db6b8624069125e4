//! The strongest man in the middle: the broker itself. It swaps the prints in both users' offers for those of its own
//! keys and terminates TLS on both sides. A user that knows the other's key, its OpenPGP key or a password detects it
//! before a byte is sent; on first use the two short authentication strings differ.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use support::process::Output;
use support::programs::{Component, Options, Script, Xtls, event};
use support::servers::{Kind, Server};
use support::{MARKER, SECRET, random_file, sha256};

const PASSWORD: &str = "the-password-that-both-users-know";

/// The result of one attempt of alice to send bob a file.
struct Attempt {
    sent: Output,
    received: i32,
    log: String,
    arrived: bool,
}

fn attempt(alice: &Xtls, bob: &Xtls, file: &Path, options: &[&str]) -> Attempt {
    let options = [options, &["--transport", "ibb"]].concat();
    let mut listener = bob.listen(&options);
    let mut args = vec!["send", bob.jid(), file.to_str().unwrap(), "--json"];
    args.extend(&options);
    let sent = alice.run(args);
    let received = listener.wait(Duration::from_secs(60));
    let arrived = listener.files().iter().any(|path| sha256(path) == sha256(file));
    for path in listener.files() {
        std::fs::remove_file(path).unwrap();
    }
    Attempt { sent, received, log: listener.log(), arrived }
}

fn a_broker_that_terminates_tls_is_caught(kind: Kind) {
    let server = Server::start(kind);
    let users = ["alice", "bob"].map(|user| {
        let user = Xtls::login(&server, user);
        for keygen in [&["keygen"][..], &["keygen", "--openpgp"]] {
            assert_eq!(user.run(keygen).code, 0);
        }
        user
    });
    let [alice, bob] = &users;
    let password = alice.home().join("password");
    std::fs::write(&password, PASSWORD).unwrap();
    let file = alice.home().join("letter.bin");
    random_file(&file, 50_000);
    let x509 = ["--method", "x509"];
    let openpgp = ["--method", "openpgp"];
    let srp = ["--method", "srp", "--srp-password-file", password.to_str().unwrap()];
    let forget = || {
        alice.run(["trust", "forget", bob.jid()]);
        bob.run(["trust", "forget", alice.jid()]);
    };

    // The users meet through an honest broker first.
    let honest = Component::start(&server, &Options::default());
    for options in [&openpgp[..], &srp] {
        let met = attempt(alice, bob, &file, options);
        assert_eq!((met.sent.code, met.received), (0, 0), "{:?}\n{}", met.sent, met.log);
        assert!(met.arrived);
    }
    for (user, other) in [(alice, bob), (bob, alice)] {
        let shown = std::fs::read(other.home().join("xtls").join(other.jid()).join("cert.pem"));
        let print = x509_print(&shown.unwrap());
        assert_eq!(user.run(["trust", "set", other.jid(), &print]).code, 0);
    }
    let met = attempt(alice, bob, &file, &x509);
    assert_eq!((met.sent.code, met.received), (0, 0), "{:?}\n{}", met.sent, met.log);
    drop(honest);

    let address = server.component_address();
    let (host, port) = address.rsplit_once(':').unwrap();
    let plans = ["x509", "", "openpgp", "", "x509"].map(|swap| json!({"swap": swap}));
    let more = json!({
        "link": [host, port.parse::<u16>().unwrap()], "secret": SECRET, "marker": MARKER, "sessions": plans,
    });
    let mut mallory = Script::start("mitm.py", &server, more);
    mallory.wait_for("linked");

    // A known certificate, another print in the offer.
    let caught = attempt(alice, bob, &file, &x509);
    assert_eq!(caught.sent.code, 4, "{:?}\n{}", caught.sent, caught.log);
    assert!(caught.sent.stderr.contains("THE KEY OF bob@example.test HAS CHANGED"));
    assert!(!caught.arrived);

    // The true print of an OpenPGP key, without that key's signature for the certificate in the middle.
    let caught = attempt(alice, bob, &file, &openpgp);
    assert_eq!(caught.sent.code, 4, "{:?}\n{}", caught.sent, caught.log);
    assert!(caught.sent.stderr.contains("carries no OpenPGP key"), "{:?}", caught.sent);
    assert!(!caught.arrived);

    // An OpenPGP key of its own, which vouches for its certificate.
    let caught = attempt(alice, bob, &file, &openpgp);
    assert_eq!(caught.sent.code, 4, "{:?}\n{}", caught.sent, caught.log);
    assert!(caught.sent.stderr.contains("THE KEY OF bob@example.test HAS CHANGED"));
    assert!(!caught.arrived);

    // The password check is passed on unchanged, but the two channels differ.
    let caught = attempt(alice, bob, &file, &srp);
    assert_eq!((caught.sent.code, caught.received), (4, 4), "{:?}\n{}", caught.sent, caught.log);
    assert!(caught.sent.stderr.contains("has not shown to know the password"));
    assert!(!caught.arrived);

    // Two users that have never met: the attack succeeds, and the strings that they would read to each other differ.
    forget();
    let fooled = attempt(alice, bob, &file, &x509);
    assert_eq!((fooled.sent.code, fooled.received), (0, 0), "{:?}\n{}", fooled.sent, fooled.log);
    assert!(fooled.arrived);
    let strings = [&fooled.sent.stdout, &fooled.log].map(|log| {
        let secured = event(log, "secured").unwrap();
        assert_eq!(secured["first_use"], true, "{secured}");
        secured["sas"].as_str().unwrap().to_owned()
    });
    assert!(strings.iter().all(|sas| sas.len() == 14), "{strings:?}");
    assert_ne!(strings[0], strings[1]);

    let report = mallory.report();
    let seen: Vec<Value> = report["sessions"].as_array().unwrap().clone();
    // It has set up TLS with the responder in all sessions, with the initiator at least when it got further than that,
    // and not when its certificate was refused. It read only the messages of the password check; of the users that had
    // never met, everything.
    for (n, session) in seen.iter().enumerate() {
        assert_eq!(session["handshakes"][1], true, "{report}");
        assert_eq!(session["content"], n == 4, "{report}");
    }
    assert_ne!(seen[1]["handshakes"][0], true, "{report}");
    for session in &seen[3..] {
        assert_eq!(session["handshakes"][0], true, "{report}");
    }
    for session in &seen[..3] {
        assert_eq!(session["read"], json!([0, 0]), "{report}");
    }
    // A, M1 and their heads; salt, B and their head.
    assert_eq!(seen[3]["read"], json!([3 + 384 + 3 + 32, 3 + 16 + 384]), "{report}");
}

fn x509_print(pem: &[u8]) -> String {
    use base64::Engine;
    use sha2::{Digest, Sha256};
    let text: String =
        String::from_utf8_lossy(pem).lines().filter(|l| !l.starts_with('-')).collect();
    let der = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    Sha256::digest(der).iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":")
}

#[test]
fn prosody_a_broker_that_terminates_tls_is_caught() {
    a_broker_that_terminates_tls_is_caught(Kind::Prosody);
}

#[test]
fn ejabberd_a_broker_that_terminates_tls_is_caught() {
    a_broker_that_terminates_tls_is_caught(Kind::Ejabberd);
}
