//! Sessions with TLS that is not ours: OpenSSL at one end of `xtls`, by certificates and by a key of GnuPG; and GnuTLS at
//! both ends, with a kind of TLS that we do not speak at all.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::process::read;
use support::programs::{Component, Options, Script, Xtls, event, script};
use support::servers::{Kind, Server};
use support::{MARKER, free_port, random_file, sha256, tap, wait_for};

const OURS: usize = 150_000;
const THEIRS: usize = 90_000;

fn openssl_initiates_and_responds_over_each_transport(kind: Kind) {
    let server = Server::start(kind);
    let component = Component::start(&server, &Options::default());
    let bob = Xtls::with_key(&server, "bob");
    for keys in [&["keygen", "--openpgp"][..], &["register", "--method", "openpgp"]] {
        assert_eq!(bob.run(keys).code, 0);
    }
    random_file(&bob.home().join("in"), OURS);
    for method in ["x509", "openpgp"] {
        for role in ["initiator", "responder"] {
            for transport in ["s5b", "ibb"] {
                let case = format!("{method}, OpenSSL is the {role}, {transport}");
                // Each time it has another key.
                bob.run(["trust", "forget", "alice@example.test"]);
                let log = bob.home().join("pipe.log");
                let _old = std::fs::remove_file(&log);
                let settings = json!({
                    "role": role, "method": method, "transport": transport, "send": THEIRS, "expect": OURS,
                    "marker": MARKER,
                });
                let options = ["--json", "--method", method, "--transport", transport];
                let (openssl, mut pipe) = if role == "initiator" {
                    let args = [&["pipe", "--listen"][..], &options].concat();
                    let pipe = bob.start_between(args, "in", "out");
                    wait_for(
                        "listening",
                        Duration::from_secs(30),
                        || read(&log),
                        || read(&log).contains("listening"),
                    );
                    (Script::start("openssl_xtls.py", &server, settings), pipe)
                } else {
                    let mut openssl = Script::start("openssl_xtls.py", &server, settings);
                    openssl.wait_for("listening");
                    let args = [&["pipe", "alice@example.test"][..], &options].concat();
                    (openssl, bob.start_between(args, "in", "out"))
                };
                let status = pipe.wait(Duration::from_secs(90));
                assert_eq!(status.code(), Some(0), "{case}: {}\n{}", pipe.log(), component.log());
                let report = openssl.report();
                assert_eq!(report["version"], "TLSv1.3", "{case}: {report}");
                assert_eq!(report["received"], sha256(&bob.home().join("in")), "{case}");
                assert_eq!(report["sent"], sha256(&bob.home().join("out")), "{case}");
                assert_eq!(report["methods"], json!([method]), "{case}");
                if (method, role) == ("x509", "initiator") {
                    assert_eq!(report["shown is offered"], true, "{case}: {report}");
                }
                assert_eq!(report["hints"][0]["verdict"], "match", "{case}: {report}");
                let secured = event(&pipe.log(), "secured").unwrap();
                assert_eq!(secured["transport"], transport, "{case}");
                assert_eq!(secured["method"], method, "{case}");
            }
        }
    }
}

/// The password check as another program does it that was written from the protocol's page.
fn the_password_check_of_another_program_passes(kind: Kind) {
    let server = Server::start(kind);
    let component = Component::start(&server, &Options::default());
    let bob = Xtls::login(&server, "bob");
    random_file(&bob.home().join("in"), OURS);
    let password = bob.home().join("password");
    std::fs::write(&password, "a-password-of-both").unwrap();
    for (theirs, right) in [("another-password", false), ("a-password-of-both", true)] {
        let log = bob.home().join("pipe.log");
        let _old = std::fs::remove_file(&log);
        let args = ["pipe", "--listen", "--json", "--method", "srp", "--srp-password-file"];
        let args = args.into_iter().chain([password.to_str().unwrap()]);
        let mut pipe = bob.start_between(args, "in", "out");
        wait_for(
            "listening",
            Duration::from_secs(30),
            || read(&log),
            || read(&log).contains("listening"),
        );
        let settings = json!({"password": theirs, "send": THEIRS, "expect": OURS});
        let other = Script::start("openssl_srp.py", &server, settings);
        if !right {
            let status = pipe.wait(Duration::from_secs(60));
            assert_eq!(status.code(), Some(4), "{}\n{}", pipe.log(), component.log());
            assert!(pipe.log().contains("has not shown to know the password"), "{}", pipe.log());
            continue;
        }
        let out = bob.home().join("out");
        wait_for(
            "the content",
            Duration::from_secs(60),
            || format!("{}\n{}", pipe.log(), component.log()),
            || std::fs::metadata(&out).is_ok_and(|file| file.len() == THEIRS as u64),
        );
        std::fs::write(other.folder().join("go"), "").unwrap();
        let report = other.report();
        assert_eq!(report["proved"], true, "{report}");
        assert_eq!(report["TLSv1.3"], true, "{report}");
        assert_eq!(report["methods"], json!(["srp"]), "{report}");
        assert_eq!(report["received"], sha256(&bob.home().join("in")), "{report}");
        assert_eq!(report["sent"], sha256(&out), "{report}");
        assert_eq!(event(&pipe.log(), "secured").unwrap()["method"], "srp");
    }
}

fn gnutls_speaks_tls_srp_through_a_brokered_session(kind: Kind) {
    let server = Server::start(kind);
    let options = Options { tap: true, ..Options::default() };
    let component = Component::start(&server, &options);
    let password = "a-password-of-gnutls";
    let report: Value = script(
        "gnutls_srp.py",
        &server,
        json!({"password": password, "wrong": "another-password", "bytes": 20_000, "port": free_port()}),
    );
    let right = &report["right"];
    assert_eq!(right["status"], 0, "{report}\n{}", component.log());
    assert_eq!(right["echoed"], right["sent"], "{report}");
    for side in ["offered", "answered"] {
        assert_eq!(right[side], json!(["srp"]), "{report}");
    }
    let said = right["log"].as_str().unwrap();
    assert!(said.contains("(TLS1.2") && said.contains("-(SRP)-"), "{report}");
    assert_ne!(report["wrong"]["status"], 0, "{report}");
    assert_ne!(report["wrong"]["echoed"], report["wrong"]["sent"], "{report}");
    assert_eq!(report["password passed"], false, "{report}");
    let captured = component.tap.as_ref().unwrap().captured();
    for connection in &captured {
        for (bytes, from_client) in [(&connection.up, true), (&connection.down, false)] {
            tap::tls_records(tap::after_socks5(bytes, from_client).unwrap_or_default()).unwrap();
            assert!(!bytes.windows(password.len()).any(|part| part == password.as_bytes()));
        }
    }
    assert!(captured.len() >= 4, "{} connections", captured.len());
}

#[test]
fn prosody_the_password_check_of_another_program_passes() {
    the_password_check_of_another_program_passes(Kind::Prosody);
}

on_both!(
    openssl_initiates_and_responds_over_each_transport,
    gnutls_speaks_tls_srp_through_a_brokered_session,
);
