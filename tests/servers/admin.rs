//! Administration over XMPP, seen from outside, on real servers; the commands are run by slixmpp.

use serde_json::{Value, json};
use support::free_port;
use support::programs::{Component, Options, script};
use support::servers::{Kind, Server};

#[test]
fn every_admin_command_does_what_it_says_on_prosody() {
    every_command(Kind::Prosody);
}

#[test]
fn every_admin_command_does_what_it_says_on_ejabberd() {
    every_command(Kind::Ejabberd);
}

fn every_command(kind: Kind) {
    let server = Server::start(kind);
    let http = format!("127.0.0.1:{}", free_port());
    let options = Options {
        more: "[access]\nadmins = [\"carol@example.test\"]\nblocked = [\"mallory@example.test\"]\n\
               [limits]\nrequests_per_second = 1000\n"
            .to_owned(),
        env: vec![("FINGERPOST_HTTP__LISTEN", http.clone())],
        ..Options::default()
    };
    let mut component = Component::start(&server, &options);
    let run = |component: &Component, parts: &[&str]| {
        let settings = json!({
            "proxy": ["127.0.0.1", component.socks5],
            "http": http,
            "config": component.config(),
            "log": component.log_path(),
            "parts": parts,
        });
        script("admin.py", &server, settings)
    };
    let report = run(&component, &["outsiders", "keys", "sessions", "flowing", "blocks"]);
    assert_eq!(report, expected_before(), "{}", component.log());
    // A block survives a restart, and is in the audit log.
    component.restart();
    let answer = script(
        "probe.py",
        &server,
        json!({"user": "bob", "stanzas": [{"id": "p", "xml":
            "<iq from='[from]' to='[component]' id='p' type='get'><ping xmlns='urn:xmpp:ping'/></iq>"}]}),
    );
    assert_eq!(answer["p"]["condition"], "forbidden", "{answer}");
    let report = run(&component, &["drain", "reload", "log_level", "audit", "stats", "retire"]);
    assert_eq!(report, expected_after(), "{}", component.log());
}

/// The refusal for a user without access.
const FORBIDDEN: &str = "auth forbidden textYou may not use this service, or not in this way. Ask its operator for access";

fn expected_before() -> Value {
    let admin = |names: &[&str]| -> Value {
        let mut names: Vec<String> = names.iter().map(|name| format!("admin:{name}")).collect();
        names.sort();
        names.into()
    };
    json!({
        "outsiders": {
            "seen by an admin": admin(&[
                "sessions", "keys", "attest", "revoke", "retire", "block", "unblock", "stats", "drain", "reload", "loglevel",
                "audit",
            ]),
            "looked at": true,
            "run": ["forbidden"],
            "an admin's look": ["command-node"],
        },
        "keys": {
            "mistake": ["error"],
            "by address": [["alice@example.test", "alice@example.test"], ["active", "active"]],
            "by print, by id": [true, true],
            "no key": ["error"],
            "asks": ["executing", ["complete", "prev"]],
            "back": true,
            "unsure": ["error"],
            "seen by the owner": [["asserted", "revoked"], ["attested", "active"]],
            "told": true,
            "cancelled": "canceled",
        },
        "sessions": {
            "activated": "result",
            "mistake": ["error"],
            "labels": [true, true],
            "listed": [["SOCKS5 transfer", "Bytes: 4"], ["brokered", "Bytes: 0"]],
            "none chosen": ["error"],
            "ended": ["completed", true],
            "alice": [true, true],
            "bob": [true, true],
            "none left": ["completed", "There are no such sessions now."],
            "a user's own": [
                ["1: alice@example.test"],
                [["With: alice@example.test", "SOCKS5 transfer"]],
            ],
            "not another's": "completed",
            "ended by it": true,
        },
        "flowing": ["completed", [true, true, true]],
        "blocks": {
            "mistake": ["error"],
            "oneself": ["error"],
            "patterns": ["error", "error"],
            "blocked": [
                "completed",
                "alice@example.test is blocked now. Sessions ended: 2.",
                true,
            ],
            "told": [
                "cancel text: One of the users has lost access to the service",
                "cancel text: One of the users has lost access to the service",
            ],
            "asks": FORBIDDEN,
            "activates": "forbidden",
            "called": ["wait", "recipient-unavailable"],
            "listed": ["alice@example.test (spam)", "mallory@example.test (in the configuration)"],
            "of the file": [
                "error",
                "mallory@example.test is blocked by the configuration: take it out of [access] blocked and reload",
            ],
            "unblocked": ["completed", ""],
        },
    })
}

fn expected_after() -> Value {
    let levels = json!(["configured", "debug", "error", "info", "trace", "warn"]);
    json!({
        "drain": {
            "ready": [200, ""],
            "mistake": ["error"],
            "draining": [
                [503, "draining: new sessions are refused"],
                true,
                "resource-constraint",
            ],
            "a session": ["wait", "resource-constraint"],
            "offers": "take",
            "again": [[200, ""], "result"],
        },
        "reload": {
            "read": [["info"], "The configuration was reloaded."],
            "taken over": [["Signpost"], FORBIDDEN, true],
            "bad": [["error"], true, ["Signpost"]],
            "restart": "The configuration was reloaded. These settings take effect after a restart: log.format.",
            "as before": [["Fingerpost"], ""],
        },
        "log_level": {
            "before": false,
            "offers": levels,
            "mistake": ["error"],
            "debug": ["The log level is debug now.", true],
            "back": ["The log level is info now.", false],
        },
        "audit": {
            "mistake": ["error"],
            "page 1": [
                ["complete", "next", "prev"],
                20,
                ["unblocked", "blocked"],
                "eve@example.test",
            ],
            "page 3": [["complete", "prev"], 16, true],
            "back": [["complete", "next", "prev"], true],
            "left": "completed",
            "alice": [
                ["unblocked", "blocked", "revoked", "attested", "added", "added"],
                ["admin carol@example.test", "alice@example.test"],
            ],
        },
        "stats": {"counted": [3, 4, 0], "words": ["up", "taken", "info"]},
        "retire": {
            "mistake": ["error"],
            "oneself": ["error"],
            "unsure": ["error"],
            "retired": [
                "completed",
                "alice@example.test is retired. Keys deleted: 2. Users who no longer show it their keys: 1. \
                 Sessions ended: 1.",
                true,
            ],
            "the next owner sees": [[], 0, 0],
            "others show": 0,
            "added again": ["active", "revoked"],
            "nothing held": "completed",
        },
    })
}
