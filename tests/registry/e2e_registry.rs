//! The registry, end to end on a real XMPP server, on both databases.

use serde_json::json;
use support::postgres::Postgres;
use support::programs::{Component, Options, Script, Xtls, script};
use support::servers::{Kind, Server};

#[test]
fn every_request_is_answered_as_promised_on_sqlite() {
    every_request(None);
}

#[test]
fn every_request_is_answered_as_promised_on_postgresql() {
    every_request(Some(Postgres::start()));
}

/// Two Fingerposts share a database: a change that one acknowledges is in force at the other at once.
#[test]
fn a_revocation_at_one_is_known_at_the_other() {
    let postgres = Postgres::start();
    let sites = [Server::start(Kind::Prosody), Server::start(Kind::Prosody)];
    let components = sites.each_ref().map(|server| {
        let options = Options { database: Some(postgres.url()), ..Options::default() };
        Component::start(server, &options)
    });
    let alice = Xtls::with_key(&sites[0], "alice");
    let bob = Xtls::login(&sites[1], "bob");
    let state = || {
        let seen = bob.run(["keys", alice.jid(), "--json"]);
        assert_eq!(seen.code, 0, "{seen:?}\n{}", components[1].log());
        seen.stdout
    };
    let before = state();
    assert!(before.contains("active"), "{before}");
    let id = key_id(&before);
    let revoked = alice.run(["revoke", &id, "--reason", "lost"]);
    assert_eq!(revoked.code, 0, "{revoked:?}");
    let after = state();
    assert!(after.contains("revoked"), "{after}");
}

/// The database goes away and comes back: requests are told to wait, streams continue, and nothing acknowledged is
/// lost.
#[test]
fn a_database_that_goes_away_is_waited_for() {
    let mut postgres = Postgres::start();
    let server = Server::start(Kind::Prosody);
    let options = Options { database: Some(postgres.url()), ..Options::default() };
    let mut component = Component::start(&server, &options);
    let alice = Xtls::with_key(&server, "alice");
    let before = alice.run(["keys", "--json"]).stdout;
    let proxy = json!(["127.0.0.1", component.socks5]);
    let mut stream = Script::start("survives.py", &server, json!({"proxy": proxy}));
    stream.wait_for("\"open\": true");
    postgres.stop();
    std::fs::write(stream.directory().join("go"), "").expect("the script's directory is there");
    let report = stream.report();
    assert_eq!(report["received"], report["sent"], "{report}");
    // A profile that was read before may be cached; a change needs the database in any case.
    let request = "<iq from='[from]' to='[component]' id='k' type='set'><settings xmlns='urn:fingerpost:keys:0' \
                   visibility='local'/></iq>";
    let ask = || script("probe.py", &server, json!({"stanzas": [{"id": "k", "xml": request}]}));
    let answer = &ask()["k"];
    assert_eq!(answer["condition"], "internal-server-error", "{answer}");
    assert!(answer["xml"].as_str().unwrap().contains("wait"), "{answer}");
    support::scenarios::assert_answers(&server);
    postgres.start_again();
    support::wait_for(
        "the database",
        std::time::Duration::from_secs(20),
        || component.log(),
        || ask()["k"]["type"] == "result",
    );
    assert_eq!(alice.run(["keys", "--json"]).stdout, before);
    assert!(component.runs());
}

/// A TLS session with the component itself proves the shown certificate, and nothing else does.
#[test]
fn a_session_with_the_component_proves_a_key_on_sqlite() {
    own_session(None);
}

#[test]
fn a_session_with_the_component_proves_a_key_on_postgresql() {
    own_session(Some(Postgres::start()));
}

fn own_session(postgres: Option<Postgres>) {
    let server = Server::start(Kind::Prosody);
    let database = postgres.as_ref().map(Postgres::url);
    let component = Component::start(&server, &Options { database, ..Options::default() });
    let shown = component.command(["keys", "show", "--self"]).stdout;
    let own = shown.lines().find_map(|line| line.strip_prefix("sha-256 ")).unwrap_or_default();
    assert!(component.log().contains(own), "the log names it: {shown}");
    let proxy = json!(["127.0.0.1", component.socks5]);
    let report = script("own_session.py", &server, json!({"proxy": proxy, "own": own}));
    let expected = json!({
        "ibb offered": true,
        "ibb": ["TLSv1.3", true, "success", "proven"],
        "s5b offered": true,
        "s5b": ["success", "proven", 3],
        "other": ["security-error", null],
        "a file": "unsupported-applications",
        "no print": "not-acceptable",
    });
    assert_eq!(report, expected, "{}", component.log());
}

/// Offline administration on the database of a running component, and its export imported into another.
#[test]
fn what_is_exported_is_read_back_as_it_was() {
    let server = Server::start(Kind::Prosody);
    let component = Component::start(&server, &Options::default());
    let alice = Xtls::with_key(&server, "alice");
    let proven = alice.run(["prove", "--json"]);
    assert!(proven.stdout.contains("\"assurance\":\"proven\""), "{proven:?}");
    let id = key_id(&proven.stdout);
    let keys = |args: &[&str]| {
        let done = component.command([&["keys"], args].concat());
        assert_eq!(done.code, 0, "{args:?}: {done:?}");
        done.stdout
    };
    assert!(keys(&["attest", &id]).contains("attested"));
    let print = "AB".repeat(32);
    for user in ["bob@example.test", "carol@example.test"] {
        keys(&["add", user, "--method", "x509", "--print", &print, "--label", "shared"]);
    }
    let conflicts = keys(&["conflicts"]);
    assert_eq!(conflicts.matches("shared").count(), 2, "{conflicts}");
    let carols = key_id(&keys(&["list", "carol@example.test", "--json"]));
    keys(&["revoke", &carols, "--reason", "hers no more"]);
    assert_eq!(keys(&["conflicts"]), "");
    let audit = keys(&["audit", "alice@example.test"]);
    for event in ["added", "proven", "attested"] {
        assert!(audit.contains(event), "{audit}");
    }

    let exported = keys(&["export"]);
    let of_keys = |export: &str| {
        export.lines().filter(|line| line.starts_with("{\"key\"")).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(of_keys(&exported).lines().count(), 3, "{exported}");
    let file = alice.home().join("keys.jsonl");
    std::fs::write(&file, &exported).expect("the home can be written to");
    let postgres = Postgres::start();
    let options = Options { database: Some(postgres.url()), ..Options::default() };
    // Its address is taken: it cannot log in to the server, but its database can be administered.
    let other = Component::launch(&server, &options);
    let path = file.to_str().expect("a temporary path is UTF-8");
    for fresh in ["3 keys imported\n", "0 keys imported\n"] {
        let imported = other.command(["keys", "import", path]);
        assert_eq!((imported.code, imported.stdout.as_str()), (0, fresh), "{}", imported.stderr);
    }
    // It keeps its own certificate if it has made one before the import.
    let of_users = |export: &str| {
        export
            .lines()
            .filter(|line| !line.starts_with("{\"identity\""))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let read_back = other.command(["keys", "export"]).stdout;
    assert_eq!(of_users(&read_back), of_users(&exported));
    assert_eq!(read_back.lines().count(), exported.lines().count(), "{read_back}");

    keys(&["erase", "alice@example.test", "--yes"]);
    assert!(!keys(&["export"]).contains("alice"));
    let audit = keys(&["audit"]);
    assert!(audit.contains("erased sha-256:") && !audit.contains("alice"), "{audit}");
    // If a file has a mistake, nothing of it is stored.
    std::fs::write(&file, format!("{}\n{{\"key\": 1}}\n", exported.lines().next().unwrap_or("")))
        .expect("the home can be written to");
    let refused = component.command(["keys", "import", path]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("keys.jsonl:2"), "{refused:?}");
    assert!(!keys(&["export"]).contains("alice"));
}

/// Returns the id of the first key in the output of `xtls keys --json`.
fn key_id(listed: &str) -> String {
    let start = listed.find("\"id\":\"").expect("a key is listed") + 6;
    listed[start..start + 32].to_owned()
}

fn every_request(postgres: Option<Postgres>) {
    let server = Server::start(Kind::Prosody);
    let database = postgres.as_ref().map(Postgres::url);
    let more = "[limits]\nrequests_per_second = 1000\n".to_owned();
    let component = Component::start(&server, &Options { database, more, ..Options::default() });
    let report = script("keys.py", &server, json!({}));
    let x509 = json!([["sha-1", "sha-256", "spki-sha-256"], "asserted", "proven"]);
    for kind in ["ed25519", "rsa", "p256"] {
        assert_eq!(report[kind], x509, "{kind}: {report}\n{}", component.log());
    }
    assert_eq!(report["gpg"], json!([true, true, "proven"]), "{report}");
    for (name, expected) in [
        ("revoked material", json!([true, "revoked"])),
        ("same key", json!(true)),
        ("replaced", json!("superseded")),
        ("revoked", json!("revoked")),
        ("material", json!(true)),
        ("told", json!(true)),
        ("default", json!("everyone")),
        ("seen", json!(6)),
        ("reached", json!(false)),
        ("hidden keys", json!(true)),
        ("hidden ping", json!(true)),
        ("hidden key", json!(true)),
        ("hidden command", json!(true)),
        ("listed", json!(6)),
        ("erased", json!([0, "everyone", 0])),
    ] {
        assert_eq!(report[name], expected, "{name}: {report}");
    }
    for (name, condition) in [
        ("secret key", "bad-request"),
        ("used", "item-not-found"),
        ("other key", "bad-request"),
        ("other component", "bad-request"),
        ("other user", "bad-request"),
        ("stranger's challenge", "item-not-found"),
        ("revoked challenge", "bad-request"),
        ("stranger's revoke", "item-not-found"),
        ("bad settings", "bad-request"),
        ("unconfirmed", "bad-request"),
    ] {
        let answer = report[name].as_str().unwrap_or_default();
        assert!(answer.starts_with(condition), "{name}: {report}");
    }
    assert!(report["secret key"].as_str().unwrap_or_default().contains("private key"), "{report}");
    let events = json!(["added", "proven", "revoked", "settings", "superseded"]);
    assert_eq!(report["export"], json!([6, "listed", events]), "{report}");
    assert!(!component.log().contains("PRIVATE"), "no log holds a private key");
}
