//! The component, and the users behind it, as contacts in a roster. On real servers.

use std::fs::write;

use serde_json::json;
use support::{
    programs::{Component, Options, Script, script},
    root,
    servers::{Kind, Server},
};

#[test]
fn prosody_presence_tells_who_is_reachable_and_visible() {
    presence_tells_who_is_reachable_and_visible(Kind::Prosody);
}

#[test]
fn ejabberd_presence_tells_who_is_reachable_and_visible() {
    presence_tells_who_is_reachable_and_visible(Kind::Ejabberd);
}

fn presence_tells_who_is_reachable_and_visible(kind: Kind) {
    let server = Server::start(kind);
    let mut component = Component::start(&server, &Options::default());
    let mut alice = Script::start("contact.py", &server, json!({}));
    alice.wait_for("bob comes");
    let mut bob = Script::start("contact.py", &server, json!({"bob": true}));
    alice.wait_for("bob hides");
    write(bob.directory().join("hide"), "").unwrap();
    alice.wait_for("bob is seen");
    bob.wait_for("done hide");
    write(bob.directory().join("show"), "").unwrap();
    alice.wait_for("restart");
    component.kill_and_restart();
    write(alice.directory().join("restarted"), "").unwrap();
    alice.wait_for("bob goes");
    write(bob.directory().join("go"), "").unwrap();
    let expected = json!({
        "component": ["subscribed", "available", true],
        "its caps": [true, true],
        "commands": true,
        "bob": ["subscribed", "unavailable"],
        "hidden": ["subscribed", "unavailable"],
        "unknown": ["subscribed", "unavailable"],
        "invalid": "unsubscribed",
        "bob came": ["available there", 3],
        "his caps": [true, true],
        "files": true,
        "bob hid": "unavailable there",
        "bob is seen": "available there",
        "next login": ["available", "available there"],
        "bob went": "unavailable there",
        "unsubscribed": "unavailable",
    });
    assert_eq!(alice.report(), expected, "{}", component.log());
}

#[test]
fn prosody_the_component_has_a_card_and_says_in_words_what_a_proxied_address_does_not_take() {
    has_a_card_and_refuses_in_words(Kind::Prosody);
}

#[test]
fn ejabberd_the_component_has_a_card_and_says_in_words_what_a_proxied_address_does_not_take() {
    has_a_card_and_refuses_in_words(Kind::Ejabberd);
}

fn has_a_card_and_refuses_in_words(kind: Kind) {
    let server = Server::start(kind);
    let component = Component::start(&server, &Options::default());
    let icon = root().join("deploy/icon/fingerpost.png");
    let mut report = script("contact.py", &server, json!({"card": true, "icon": icon}));
    for (name, words) in [
        ("files", "Send them by Jingle"),
        ("bytestream", "Start a session with the user first"),
        ("in-band", "There is no such bytestream"),
        ("unknown", "Send other requests to the user's own address"),
        ("message", "Write to bob@example.test"),
    ] {
        let said = report.as_object_mut().unwrap().remove(name).unwrap_or_default();
        let text = said[1].as_str().unwrap_or_default();
        assert!(said[0] == "en" && text.contains(words), "{name}: {said}\n{}", component.log());
    }
    let expected = json!({
        "name": ["Fingerpost", "Fingerpost"],
        "icon": ["image/png", true],
        "avatar": [true, true, true],
        "nickname": "Fingerpost",
        "items": 0,
    });
    assert_eq!(report, expected, "{}", component.log());
}

#[test]
fn prosody_a_user_writes_commands_to_the_component() {
    a_user_writes_commands_to_the_component(Kind::Prosody);
}

#[test]
fn ejabberd_a_user_writes_commands_to_the_component() {
    a_user_writes_commands_to_the_component(Kind::Ejabberd);
}

fn a_user_writes_commands_to_the_component(kind: Kind) {
    let server = Server::start(kind);
    let more = "[access]\nadmins = [\"carol@example.test\"]\n".to_owned();
    let component = Component::start(&server, &Options { more, ..Options::default() });
    let print = "AB".repeat(32);
    // The user, the language, the message, and a part of the expected answer.
    let lines = [
        ("alice", "en", "Help", "lookup \u{2013} "),
        ("alice", "de", "hilfe", "Verzeichnis"),
        ("alice", "en", "admin stats", "I do not know that word"),
        ("carol", "en", "help", "admin stats \u{2013} "),
        ("carol", "en", "admin stats", ":"),
        ("alice", "en", "add", "(1/"),
        ("alice", "en", "perhaps", "I did not understand that."),
        ("alice", "en", "x509", "(2/"),
        ("alice", "en", "laptop", "(3/"),
        ("alice", "en", "-", "(4/"),
        ("alice", "en", &print, "(5/"),
        ("alice", "en", "-", "AB:AB"),
        ("alice", "en", "yes", "The key is registered"),
        ("alice", "en", "keys", "laptop"),
        ("carol", "en", "lookup alice@example.test", "laptop"),
        ("carol", "en", "lookup", "(1/1)"),
        ("carol", "en", "not an address", "Expected an address"),
        ("carol", "de", "abbrechen", "Abgebrochen."),
        ("alice", "en", "revoke", "1. laptop"),
        ("alice", "en", "1", "(1/2)"),
        ("alice", "en", "lost", "(2/2)"),
        ("alice", "en", "back", "1. laptop"),
        ("alice", "en", "-", "(1/2)"),
        ("alice", "en", "-", "yes or no"),
        ("alice", "en", "yes", "The key is revoked"),
        ("alice", "en", "keys", "revoked"),
        ("alice", "en", "sessions", "You have no sessions now"),
    ];
    let written: Vec<[&str; 3]> =
        lines.iter().map(|(who, lang, text, _)| [*who, lang, text]).collect();
    let report = script("contact_chat.py", &server, json!({"lines": written}));
    for ((who, lang, text, expected), answer) in
        lines.iter().zip(report["answers"].as_array().unwrap())
    {
        let said = answer[1].as_str().unwrap_or_default();
        let is_right = answer[0] == *lang && said.contains(expected);
        assert!(is_right, "{who} wrote {text}: {answer}\n{report}\n{}", component.log());
    }
    let help = report["answers"][0][1].as_str().unwrap();
    assert!(!help.contains("admin"), "{help}");
    assert_eq!(report["silence"], true, "{report}");
    assert_eq!(report["unknown"], 3, "{report}");
}
