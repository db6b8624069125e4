//! A malicious broker: it swaps prints, terminates TLS on both sides, and lies about its own keys, in hints and as the
//! registry. Users that know each other's certificate, OpenPGP key or password send nothing to it.

use std::time::Duration;

use serde_json::{Value, json};

use support::programs::{Component, Options, Script, Xtls};
use support::servers::{Kind, Server};
use support::{MARKER, SECRET, random_file};

const PASSWORD: &str = "the-password-that-both-users-know";

#[test]
fn a_broker_that_vouches_for_its_own_keys_is_not_believed_by_any_method() {
    let server = Server::start(Kind::Prosody);
    let users = ["alice", "bob"].map(|user| {
        let user = Xtls::login(&server, user);
        for keygen in [&["keygen"][..], &["keygen", "--openpgp"]] {
            assert_eq!(user.run(keygen).code, 0);
        }
        std::fs::write(user.home().join("password"), PASSWORD).unwrap();
        user
    });
    let [alice, bob] = &users;
    let file = alice.home().join("letter.bin");
    random_file(&file, 50_000);
    let password = alice.home().join("password");
    let methods = [
        ("x509", vec!["--method", "x509"]),
        ("openpgp", vec!["--method", "openpgp"]),
        ("srp", vec!["--method", "srp", "--srp-password-file", password.to_str().unwrap()]),
    ];
    let attempt = |options: &[&str]| {
        let options = [options, &["--transport", "ibb"]].concat();
        let mut listener = bob.listen(&options);
        let args = [&["send", bob.jid(), file.to_str().unwrap(), "--json"], options.as_slice()];
        let sent = alice.run(args.concat());
        // A listener that refused the session may wait on: it waits for another one.
        let status = (sent.code == 0).then(|| listener.wait(Duration::from_secs(60)));
        (sent, status, listener)
    };

    // They meet through an honest broker first. A peer known by one method is not accepted by another, so each method
    // is tested alone.
    for (name, options) in &methods {
        let honest = Component::start(&server, &Options::default());
        alice.run(["trust", "forget", bob.jid()]);
        bob.run(["trust", "forget", alice.jid()]);
        let (sent, status, listener) = attempt(options);
        assert_eq!((sent.code, status), (0, Some(0)), "{name}: {sent:?}\n{}", listener.log());
        for path in listener.files() {
            std::fs::remove_file(path).unwrap();
        }
        drop((honest, listener));

        let address = server.component_address();
        let (host, port) = address.rsplit_once(':').unwrap();
        let swap = if *name == "srp" { "" } else { *name };
        let more = json!({
            "link": [host, port.parse::<u16>().unwrap()], "secret": SECRET, "marker": MARKER, "vouch": true,
            "sessions": [{"swap": swap}],
        });
        let mut mallory = Script::start("mitm.py", &server, more);
        mallory.wait_for("linked");
        let known = [alice, bob].map(|user| user.run(["trust", "list"]).stdout);
        let (sent, _, listener) = attempt(options);
        assert_eq!(sent.code, 4, "{name}: {sent:?}\n{}", listener.log());
        assert_eq!(known, [alice, bob].map(|user| user.run(["trust", "list"]).stdout), "{name}");
        assert!(listener.files().is_empty(), "{name}: {}", listener.log());
        let report = mallory.report();
        assert_eq!(report["sessions"][0]["content"], Value::Bool(false), "{name}: {report}");
    }
}
