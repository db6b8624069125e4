//! The peer of a session: it poses as a user whose key it does not have, or is a stranger.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use support::process::{Output, Process, run};
use support::programs::{Component, Listener, Options, Script, Xtls};
use support::servers::{Kind, Server};
use support::{COMPONENT, MARKER, random_file, wait_for};

const XTLS: &str = "urn:xmpp:jingle:security:xtls:0";
const FILE: &str = "<description xmlns='urn:xmpp:jingle:apps:file-transfer:5'><file><name>gift.txt</name>\
    <size>34</size></file></description>";

/// Returns the print of a user's certificate.
pub(crate) fn certificate_print(user: &Xtls) -> String {
    use sha2::{Digest, Sha256};
    let dir = user.home().join("xtls").join(user.jid());
    let mut command = Command::new("openssl");
    command.args(["x509", "-outform", "DER", "-in"]).arg(dir.join("cert.pem"));
    let der = command.output().unwrap().stdout;
    Sha256::digest(der).iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":")
}

/// Offers that try to pass an impostor's key as alice's; they contain her registered print.
fn lies(alice: &str) -> Vec<(&'static str, String)> {
    let security = |prints: &[&str], methods: &[&str]| {
        let prints: String =
            prints.iter().map(|print| format!("<fingerprint>{print}</fingerprint>")).collect();
        let methods: String =
            methods.iter().map(|name| format!("<method name='{name}'/>")).collect();
        format!("<security xmlns='{XTLS}'>{prints}{methods}</security>")
    };
    let hints = |print: &str| {
        format!(
            "<hints xmlns='urn:fingerpost:xtls:0' jid='alice@example.test'><print method='x509' verdict='match' \
             assurance='attested'>{print}</print></hints>"
        )
    };
    let both = &["x509", "openpgp"][..];
    vec![
        ("two prints, two methods", security(&[alice, "OWN_SHA256"], both)),
        ("the other order", security(&["OWN_SHA256", alice], &["openpgp", "x509"])),
        ("with a password beside", security(&[alice, "OWN_SHA256"], &["x509", "openpgp", "srp"])),
        ("one method", security(&[alice, "OWN_SHA256"], &["x509"])),
        ("no method", security(&[alice, "OWN_SHA256"], &[])),
        ("by SHA-1", security(&[alice, "OWN_SHA1"], both)),
        ("by its SubjectPublicKeyInfo", security(&[alice, "OWN_SPKI"], both)),
        ("its own print alone", security(&["OWN_SHA256"], both)),
        (
            "repeated prints",
            security(&["OWN_SHA256", alice, "OWN_SHA256", alice, "OWN_SHA1", "OWN_SHA256"], both),
        ),
        (
            "in several dialects",
            format!(
                "<offer xmlns='urn:xmpp:security-offer'><print>OWN_SHA256</print></offer>{}",
                security(&[alice], &["x509"])
            ),
        ),
        (
            "with hints of its own",
            format!(
                "{}{}{}",
                hints("OWN_SHA256"),
                security(&[alice, "OWN_SHA256"], both),
                hints("OWN_SHA256")
            ),
        ),
    ]
}

/// Returns whether bob has stored a key of alice.
fn is_known(bob: &Xtls) -> bool {
    bob.run(["trust", "list"]).stdout.contains("alice@example.test")
}

fn impostor(server: &Server, more: Value) -> Script {
    let mut settings = json!({"user": "alice", "marker": MARKER});
    for (key, value) in more.as_object().unwrap() {
        settings[key] = value.clone();
    }
    Script::start("impostor.py", server, settings)
}

/// Alice's name at the component, or bob's.
fn stand_in(user: &str) -> String {
    format!("{user}\\40example.test@{COMPONENT}")
}

fn letter(user: &Xtls) -> PathBuf {
    let file = user.home().join("letter.bin");
    random_file(&file, 30_000);
    file
}

fn send(user: &Xtls, to: &str, file: &Path, more: &[&str]) -> Output {
    let mut command = user.command(["send", to, file.to_str().unwrap(), "--transport", "ibb"]);
    command.arg("--json").args(more);
    run(command, Duration::from_secs(120))
}

fn listen(user: &Xtls, more: &[&str]) -> Listener {
    user.listen(&[&["--transport", "ibb"], more].concat())
}

/// A verdict belongs to the key that was shown: whatever else an offer names, the impostor's key is not one of alice's.
fn an_account_without_its_key_gets_nothing_and_is_not_remembered(kind: Kind) {
    let server = Server::start(kind);
    let component = Component::start(&server, &Options::default());
    let alice = Xtls::with_key(&server, "alice");
    let bob = Xtls::with_key(&server, "bob");
    let file = letter(&bob);
    let print = certificate_print(&alice);
    for (lie, offer) in lies(&print) {
        let inside = format!("DESCRIPTION{offer}");
        let mut mallory = impostor(&server, json!({"role": "responder", "inside": inside}));
        mallory.wait_for("listening");
        let sent = send(&bob, alice.jid(), &file, &[]);
        let report = mallory.report();
        assert_eq!(sent.code, 4, "{lie}: {sent:?}\n{report}\n{}", component.log());
        assert_eq!(report["received"], 0, "{lie}: {report}");
        assert_eq!(report["content"], false, "{lie}: {report}");
        assert!(!is_known(&bob), "{lie}: {sent:?}");

        let mut listener = listen(&bob, &[]);
        let settings =
            json!({"role": "initiator", "to": stand_in("bob"), "inside": format!("{FILE}{offer}")});
        let report = impostor(&server, settings).report();
        let status = listener.wait(Duration::from_secs(60));
        assert_eq!(status, 4, "{lie}: {}\n{report}\n{}", listener.log(), component.log());
        assert!(listener.files().is_empty(), "{lie}");
        assert!(!is_known(&bob), "{lie}: {}", listener.log());
    }
}

/// OpenPGP is another method: a certificate of alice's does not vouch for an OpenPGP key, in any offer.
#[test]
fn an_openpgp_key_does_not_pass_by_the_print_of_a_certificate() {
    let server = Server::start(Kind::Prosody);
    let _component = Component::start(&server, &Options::default());
    let [alice, bob] = ["alice", "bob"].map(|user| {
        let user = Xtls::with_key(&server, user);
        for command in [&["keygen", "--openpgp"][..], &["register", "--method", "openpgp"]] {
            assert_eq!(user.run(command).code, 0);
        }
        user
    });
    let file = letter(&bob);
    let x509 = certificate_print(&alice);
    let listed = alice.run(["keys", "--json"]).stdout;
    let openpgp = listed
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|key| key["method"] == "openpgp")
        .map(|key| key["prints"][0]["print"].as_str().unwrap().to_owned())
        .unwrap();
    let profile = "<profile xmlns='urn:fingerpost:xtls:0' name='openpgp-spki'/>";
    for prints in [
        vec![openpgp.as_str(), "OWN_OPENPGP"],
        vec!["OWN_OPENPGP", x509.as_str()],
        vec!["OWN_OPENPGP"],
        vec![x509.as_str(), openpgp.as_str(), "OWN_OPENPGP"],
    ] {
        let fingerprints: String =
            prints.iter().map(|print| format!("<fingerprint>{print}</fingerprint>")).collect();
        let inside = format!(
            "DESCRIPTION<security xmlns='{XTLS}'>{fingerprints}<method name='openpgp'>{profile}</method>\
             <method name='x509'/></security>"
        );
        let settings = json!({"role": "responder", "inside": inside, "method": "openpgp"});
        let mut mallory = impostor(&server, settings);
        mallory.wait_for("listening");
        let sent = send(&bob, alice.jid(), &file, &["--method", "openpgp"]);
        let report = mallory.report();
        assert_eq!(sent.code, 4, "{prints:?}: {sent:?}\n{report}");
        assert_eq!(report["received"], 0, "{prints:?}: {report}");
        assert!(!is_known(&bob), "{prints:?}");
    }
}

/// A broker that refuses mismatching keys sees them in every offer, and the impostor never gets as far as TLS.
#[test]
fn a_broker_that_rejects_mismatches_lets_no_lie_pass() {
    let server = Server::start(Kind::Prosody);
    let more = "[broker]\nmismatch = \"reject\"\n".to_owned();
    let component = Component::start(&server, &Options { more, ..Options::default() });
    let alice = Xtls::with_key(&server, "alice");
    let bob = Xtls::with_key(&server, "bob");
    let file = letter(&bob);
    let print = certificate_print(&alice);
    for (lie, offer) in lies(&print) {
        let inside = format!("DESCRIPTION{offer}");
        let mut mallory = impostor(&server, json!({"role": "responder", "inside": inside}));
        mallory.wait_for("listening");
        let sent = send(&bob, alice.jid(), &file, &[]);
        let report = mallory.report();
        // The component's word on the peer's key, not the peer's refusal.
        assert_eq!(sent.code, 4, "{lie}: {sent:?}\n{report}\n{}", component.log());
        assert!(sent.stderr.contains("security-error"), "{lie}: {sent:?}");
        assert_eq!(report["handshake"], Value::Null, "{lie}: {report}");
        assert!(!is_known(&bob), "{lie}");
    }
}

/// A peer cannot avoid the registry by calling directly.
fn the_registry_is_asked_in_direct_sessions_too(kind: Kind) {
    let server = Server::start(kind);
    let component = Component::start(&server, &Options::default());
    let alice = Xtls::with_key(&server, "alice");
    let bob = Xtls::with_key(&server, "bob");
    let file = letter(&alice);
    let full = |listener: &Listener| {
        listener.event("listening").unwrap()["jid"].as_str().unwrap().to_owned()
    };
    let forget = || {
        alice.run(["trust", "forget", bob.jid()]);
        bob.run(["trust", "forget", alice.jid()]);
    };
    let direct = ["--direct"];

    // A listener with a broker accepts no direct session unless it is told to.
    let listener = listen(&bob, &[]);
    let sent = send(&alice, &full(&listener), &file, &direct);
    assert_eq!(sent.code, 5, "{sent:?}\n{}", listener.log());
    assert!(sent.stderr.contains("Direct sessions are not taken here"), "{sent:?}");
    assert!(listener.event("session").is_none(), "{}", listener.log());
    drop(listener);

    // With good keys it accepts them.
    let mut listener = listen(&bob, &["--accept-direct"]);
    let sent = send(&alice, &full(&listener), &file, &direct);
    assert_eq!(sent.code, 0, "{sent:?}\n{}", listener.log());
    assert_eq!(listener.wait(Duration::from_secs(30)), 0, "{}", listener.log());
    assert_eq!(listener.event("secured").unwrap()["registry"], "match", "{}", listener.log());
    std::fs::remove_file(&listener.files()[0]).unwrap();
    forget();

    // The caller shows a key that is not registered, on first contact.
    let renew = |user: &Xtls| {
        let directory = user.home().join("xtls").join(user.jid());
        for file in ["cert.pem", "key.pem"] {
            std::fs::remove_file(directory.join(file)).unwrap();
        }
        assert_eq!(user.run(["keygen"]).code, 0);
    };
    let refused_by_bob = |what: &str| {
        for more in [&["--accept-direct"][..], &["--direct"]] {
            let mut listener = listen(&bob, more);
            let sent = send(&alice, &full(&listener), &file, &direct);
            let status = listener.wait(Duration::from_secs(60));
            assert_eq!(status, 4, "{what}: {}\n{sent:?}", listener.log());
            assert_eq!(sent.code, 5, "{what}: {sent:?}\n{}", listener.log());
            assert!(listener.log().contains(what), "{}", listener.log());
            assert!(listener.files().is_empty() && !is_known(&bob));
        }
    };
    renew(&alice);
    refused_by_bob("mismatch");
    // The called side does: nothing is sent.
    renew(&bob);
    assert_eq!(alice.run(["register"]).code, 0);
    let mut listener = listen(&bob, &["--accept-direct"]);
    let sent = send(&alice, &full(&listener), &file, &direct);
    assert_eq!(sent.code, 4, "{sent:?}\n{}", listener.log());
    assert!(sent.stderr.contains("mismatch"), "{sent:?}");
    assert_ne!(listener.wait(Duration::from_secs(60)), 0, "{}", listener.log());
    assert!(listener.files().is_empty());
    assert_eq!(bob.run(["register"]).code, 0);
    forget();

    // A revoked key, even one that was known before.
    let mut listener = listen(&bob, &["--accept-direct"]);
    assert_eq!(send(&alice, &full(&listener), &file, &direct).code, 0, "{}", listener.log());
    assert_eq!(listener.wait(Duration::from_secs(30)), 0, "{}", listener.log());
    std::fs::remove_file(&listener.files()[0]).unwrap();
    revoke_all(&alice);
    let mut listener = listen(&bob, &["--accept-direct"]);
    let sent = send(&alice, &full(&listener), &file, &direct);
    let status = listener.wait(Duration::from_secs(60));
    assert_eq!((sent.code, status), (5, 4), "{sent:?}\n{}", listener.log());
    assert!(listener.log().contains("revoked"), "{}", listener.log());
    // Through the broker, the broker refuses it.
    let listener = listen(&bob, &[]);
    let sent = send(&alice, bob.jid(), &file, &[]);
    assert_eq!(sent.code, 5, "{sent:?}\n{}\n{}", listener.log(), component.log());
    drop(listener);
    renew(&alice);
    assert_eq!(alice.run(["register"]).code, 0);
    forget();

    // Without an answer of the registry, a first key is refused. Only the caller accepts a known key, with a warning:
    // the called side must not let its peer choose that the registry is not asked.
    let mut listener = listen(&bob, &["--accept-direct"]);
    let to = full(&listener);
    drop(component);
    let sent = send(&alice, &to, &file, &direct);
    assert_eq!(sent.code, 4, "{sent:?}\n{}", listener.log());
    assert!(sent.stderr.contains("the registry could not be asked"), "{sent:?}");
    assert_ne!(listener.wait(Duration::from_secs(60)), 0, "{}", listener.log());
    for (user, other) in [(&alice, &bob), (&bob, &alice)] {
        let print = certificate_print(other);
        assert_eq!(user.run(["trust", "set", other.jid(), &print]).code, 0);
    }
    let mut listener = listen(&bob, &["--accept-direct"]);
    let sent = send(&alice, &full(&listener), &file, &direct);
    assert_eq!(sent.code, 5, "{sent:?}\n{}", listener.log());
    assert!(sent.stderr.contains("the registry could not be asked"), "{sent:?}");
    assert_eq!(listener.wait(Duration::from_secs(60)), 4, "{}", listener.log());
    assert!(listener.log().contains("the registry could not be asked"), "{}", listener.log());
    assert!(listener.files().is_empty(), "{}", listener.log());
}

/// Revokes all keys of a user.
fn revoke_all(user: &Xtls) {
    let listed = user.run(["keys", "--json"]).stdout;
    for key in listed.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        if key["state"] == "active" {
            assert_eq!(user.run(["revoke", key["id"].as_str().unwrap()]).code, 0);
        }
    }
}

/// A peer that is reached directly can write hints into its offer; they do not count.
#[test]
fn hints_in_a_direct_session_are_the_peers_own_and_worth_nothing() {
    let server = Server::start(Kind::Prosody);
    let _component = Component::start(&server, &Options::default());
    let alice = Xtls::with_key(&server, "alice");
    let bob = Xtls::with_key(&server, "bob");
    let print = certificate_print(&alice);
    for (lie, offer) in lies(&print) {
        let mut listener = listen(&bob, &["--accept-direct"]);
        let to = listener.event("listening").unwrap()["jid"].as_str().unwrap().to_owned();
        let settings = json!({"role": "initiator", "to": to, "inside": format!("{FILE}{offer}")});
        let report = impostor(&server, settings).report();
        let status = listener.wait(Duration::from_secs(60));
        assert_eq!(status, 4, "{lie}: {}\n{report}", listener.log());
        assert!(listener.files().is_empty() && !is_known(&bob), "{lie}");
    }
}

/// If the peer's key cannot be checked, it could not be verified: exit status 4.
#[test]
fn a_peer_that_proves_no_key_is_not_verified() {
    let server = Server::start(Kind::Prosody);
    let component = Component::start(&server, &Options::default());
    let bob = Xtls::with_key(&server, "bob");
    let file = letter(&bob);
    let offer = format!(
        "<security xmlns='{XTLS}'><fingerprint>OWN_SHA256</fingerprint><method name='x509'/></security>"
    );
    let promised = offer.replace("OWN_SHA256", &"AB".repeat(32));
    let inside = format!("{FILE}{offer}");
    for (what, more) in [
        ("no certificate", json!({"inside": inside, "certificate": false})),
        ("TLS 1.2 alone", json!({"inside": inside, "newest": "1.2"})),
        ("another certificate", json!({"inside": format!("{FILE}{promised}")})),
    ] {
        let mut listener = listen(&bob, &[]);
        let mut settings = json!({"role": "initiator", "to": stand_in("bob")});
        settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let report = impostor(&server, settings).report();
        let status = listener.wait(Duration::from_secs(60));
        assert_eq!(status, 4, "{what}: {}\n{report}\n{}", listener.log(), component.log());
        assert!(listener.files().is_empty() && !is_known(&bob), "{what}");
    }
    for (what, inside, newest) in [
        ("TLS 1.2 alone", format!("DESCRIPTION{offer}"), "1.2"),
        ("another certificate", format!("DESCRIPTION{promised}"), "1.3"),
    ] {
        let settings = json!({"role": "responder", "inside": inside, "newest": newest});
        let mut mallory = impostor(&server, settings);
        mallory.wait_for("listening");
        let sent = send(&bob, "alice@example.test", &file, &[]);
        let report = mallory.report();
        assert_eq!(sent.code, 4, "{what}: {sent:?}\n{report}\n{}", component.log());
        assert_eq!(report["received"], 0, "{what}: {report}");
    }
}

/// Starts `xtls listen` for many sessions.
fn serve(user: &Xtls, more: &[&str]) -> Process {
    let out = user.home().join("received");
    std::fs::create_dir_all(&out).unwrap();
    let out = out.to_str().unwrap();
    let process = user.start([&["listen", "--json", "--out", out], more].concat());
    wait_for(
        "listening",
        Duration::from_secs(30),
        || process.log(),
        || process.log().contains("listening"),
    );
    process
}

/// A stranger that starts sessions and leaves them half open takes no place of a known peer, and not all places of
/// other strangers.
#[test]
fn half_open_sessions_of_a_stranger_keep_nobody_waiting() {
    let server = Server::start(Kind::Prosody);
    let more = "[limits]\nsessions_per_user = 500\nrequests_per_second = 1000\n".to_owned();
    let component = Component::start(&server, &Options { more, ..Options::default() });
    let alice = Xtls::with_key(&server, "alice");
    let bob = Xtls::with_key(&server, "bob");
    let file = letter(&alice);
    for (count, known) in [(8, false), (50, true)] {
        let listener = serve(&bob, &[]);
        let settings = json!({"user": "carol", "to": stand_in("bob"), "count": count});
        let mut carol = Script::start("half_open.py", &server, settings);
        carol.wait_for("\"open\"");
        let sent = send(&alice, bob.jid(), &file, &[]);
        assert_eq!(sent.code, 0, "{sent:?}\n{}\n{}", listener.log(), component.log());
        std::fs::write(carol.directory().join("go"), "").unwrap();
        let report = carol.report();
        // They existed all the time, as many as a stranger may have.
        let alive = report["alive"].as_u64().unwrap();
        assert!((1..=8).contains(&alive), "{report}");
        assert!(known || alive == 8, "{report}");
        assert!(bob.run(["trust", "list"]).stdout.contains(alice.jid()));
    }
    // They do not end a listener for a single session either.
    let settings = json!({"user": "carol", "to": stand_in("bob"), "count": 8});
    let mut listener = listen(&bob, &[]);
    let mut carol = Script::start("half_open.py", &server, settings);
    carol.wait_for("\"open\"");
    let sent = send(&alice, bob.jid(), &file, &[]);
    assert_eq!(sent.code, 0, "{sent:?}\n{}", listener.log());
    assert_eq!(listener.wait(Duration::from_secs(30)), 0, "{}", listener.log());
    std::fs::write(carol.directory().join("go"), "").unwrap();
    carol.report();
}

/// Wrong passwords in parallel sessions wait for each other. A user that knows the password waits for none of them.
#[test]
fn guesses_of_a_stranger_do_not_delay_the_right_user() {
    let server = Server::start(Kind::Prosody);
    let component = Component::start(&server, &Options::default());
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(|name| {
        let user = Xtls::login(&server, name);
        let password = if name == "carol" { "a-guess" } else { "the-right-one" };
        std::fs::write(user.home().join("password"), password).unwrap();
        user
    });
    let options = |user: &Xtls| {
        let file = user.home().join("password").to_str().unwrap().to_owned();
        ["--method".to_owned(), "srp".to_owned(), "--srp-password-file".to_owned(), file]
    };
    let file = letter(&alice);
    let own = options(&bob);
    let listener = serve(&bob, &own.iter().map(String::as_str).collect::<Vec<_>>());
    let mut guesses: Vec<Process> = (0..8)
        .map(|n| {
            let mut command = carol.command(["send", bob.jid(), file.to_str().unwrap(), "--json"]);
            command.args(options(&carol)).args(["--transport", "ibb"]);
            Process::start(command, &carol.home().join(format!("guess{n}.log")))
        })
        .collect();
    // One guess was wrong: the others wait.
    wait_for(
        "a wrong guess",
        Duration::from_secs(60),
        || format!("{}\n{}", listener.log(), component.log()),
        || listener.log().contains("has not shown to know the password"),
    );
    let own = options(&alice);
    let sent = send(&alice, bob.jid(), &file, &own.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(sent.code, 0, "{sent:?}\n{}", listener.log());
    let waiting =
        guesses.iter_mut().filter_map(|guess| guess.ended().is_none().then_some(())).count();
    assert!(waiting > 0, "all guesses were made before the right user was let in");
}

support::on_both!(
    an_account_without_its_key_gets_nothing_and_is_not_remembered,
    the_registry_is_asked_in_direct_sessions_too,
);
