//! Sessions that are proposed before they are started (XEP-0353), on real XMPP servers.

use std::time::Duration;

use serde_json::json;
use support::process::Process;
use support::programs::{Component, Options, Script, Xtls, event, script};
use support::servers::{Kind, Server};
use support::{random_file, sha256, wait_for};

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn a_proposal_rings_everywhere_and_the_first_to_proceed_gets_the_session_on_prosody() {
    a_proposal_rings_everywhere(Kind::Prosody);
}

#[test]
fn a_proposal_rings_everywhere_and_the_first_to_proceed_gets_the_session_on_ejabberd() {
    a_proposal_rings_everywhere(Kind::Ejabberd);
}

fn a_proposal_rings_everywhere(kind: Kind) {
    let server = Server::start(kind);
    let component = Component::start(&server, &Options::default());
    let report = script("message_initiation.py", &server, json!({}));
    let bob = "bob\\40example.test@xtls.example.test";
    let alice = "alice\\40example.test@xtls.example.test/balcony";
    let expected = json!({
        "announced": true,
        "unreachable": ["error", "wait", "recipient-unavailable"],
        "hidden": ["error", "wait", "recipient-unavailable"],
        "unknown id": ["error", "cancel", "item-not-found"],
        "ringing": [format!("{bob}/phone"), "ringing", "p1"],
        "proceed": [format!("{bob}/desk"), "proceed", "p1"],
        "the phone": [alice, "retract", true, "cancel"],
        "too late": ["retract", "cancel"],
        "session": [true, true, 0],
        "accept": "p1",
        "tls": ["TLSv1.3", true],
        "finish": ["finish", "success"],
        "finish back": [format!("{bob}/desk"), "finish", "p1", "success"],
        "reject": [format!("{bob}/phone"), "reject", "p2", "busy"],
        "the desk": ["retract", "cancel"],
        "after reject": ["error", "cancel", "item-not-found"],
        "retract": [["retract", "cancel"], ["retract", "cancel"]],
        "gone": [bob, "reject", "p4", "gone"],
    });
    assert_eq!(report, expected, "{}", component.log());
}

fn wait_for_event(process: &Process, name: &str) {
    wait_for(name, LIMIT, || process.log(), || event(&process.log(), name).is_some());
}

/// The sender waits, and the session that it proposes rings at the receiver that appears.
fn a_waiting_sender_s_file_goes_where_it_rings(mode: &[&str], accept: &[&str]) {
    let server = Server::start(Kind::Prosody);
    let component = Component::start(&server, &Options::default());
    let (alice, bob) = (Xtls::with_key(&server, "alice"), Xtls::with_key(&server, "bob"));
    let letter = alice.home().join("letter.bin");
    random_file(&letter, 100_000);
    let send = ["send", "--json", "--wait", "1h", bob.jid(), letter.to_str().unwrap()];
    let mut sending = alice.start([&send[..], mode].concat());
    wait_for_event(&sending, "waiting");
    let mut listener = bob.listen(&[mode, accept].concat());
    assert_eq!(listener.wait(LIMIT), 0, "{}\n{}", listener.log(), component.log());
    let [arrived] = &listener.files()[..] else { panic!("{:?}", listener.files()) };
    assert_eq!(sha256(arrived), sha256(letter.as_ref()));
    assert_eq!(sending.wait(LIMIT).code(), Some(0), "{}", sending.log());
    assert!(event(&sending.log(), "ringing").is_some(), "{}", sending.log());
    assert_eq!(listener.events("session").len(), 1, "{}", listener.log());
}

#[test]
fn a_waiting_sender_rings_through_the_broker() {
    a_waiting_sender_s_file_goes_where_it_rings(&[], &[]);
}

/// Without a broker the sender knows no full address: only the proposal finds the receiver.
#[test]
fn a_waiting_sender_rings_without_a_broker() {
    a_waiting_sender_s_file_goes_where_it_rings(
        &["--direct"],
        &["--available", "--accept", "alice@example.test"],
    );
}

/// The component knows of no program of Bob's, and refuses each proposal. A full address needs no more than a call.
#[test]
fn a_waiting_sender_goes_on_calling_a_full_address_whose_user_is_not_reachable() {
    let server = Server::start(Kind::Prosody);
    let component = Component::start(&server, &Options::default());
    let (alice, bob) = (Xtls::with_key(&server, "alice"), Xtls::with_key(&server, "bob"));
    let letter = alice.home().join("letter.bin");
    random_file(&letter, 1000);
    let (letter, desk) = (letter.to_str().unwrap(), format!("{}/desk", bob.jid()));
    let mut sending = alice.start(["send", "--json", "--wait", "1h", &desk, letter]);
    wait_for_event(&sending, "waiting");
    let report = script("called_desk.py", &server, json!({}));
    let from = report["from"].as_str().unwrap();
    let mask = "alice\\40example.test@xtls.example.test/";
    assert!(from.starts_with(mask), "{from}\n{}", component.log());
    assert_eq!(sending.wait(LIMIT).code(), Some(5), "{}", sending.log());
}

#[test]
fn an_interrupted_sender_retracts_and_an_ordinary_client_gets_no_text() {
    let server = Server::start(Kind::Prosody);
    let _component = Component::start(&server, &Options::default());
    let (alice, bob) = (Xtls::with_key(&server, "alice"), Xtls::with_key(&server, "bob"));
    let mut phone = Script::start("ringing_phone.py", &server, json!({}));
    phone.wait_for("online");
    let letter = alice.home().join("letter.bin");
    random_file(&letter, 1000);
    let letter = letter.to_str().unwrap();
    let mut sending =
        alice.start(["send", "--direct", "--json", "--wait", "1h", bob.jid(), letter]);
    wait_for_event(&sending, "ringing");
    sending.signal("INT");
    assert_eq!(sending.wait(LIMIT).code(), Some(1), "{}", sending.log());
    let hint = ["{urn:xmpp:hints}store"];
    let application = "{urn:xmpp:jingle:apps:file-transfer:5}description";
    let expected = json!([
        ["chat", "propose", [application, 0, null, 0], hint],
        ["chat", "retract", ["{urn:xmpp:jingle:1}reason", 2, null, 0], hint],
    ]);
    assert_eq!(phone.report(), expected, "{}", sending.log());
}

#[test]
fn a_program_that_waits_for_a_chat_takes_proposals_of_chats_alone() {
    let server = Server::start(Kind::Prosody);
    let component = Component::start(&server, &Options::default());
    let bob = Xtls::with_key(&server, "bob");
    let waiting = bob.start(["chat", "--listen", "--json"]);
    wait_for_event(&waiting, "listening");
    let report = script("proposed_chat.py", &server, json!({}));
    let from = report[0].as_str().unwrap();
    assert!(from.starts_with("bob\\40example.test@xtls.example.test/"), "{from}");
    assert_eq!(report[1], "proceed", "{}\n{}", waiting.log(), component.log());
    assert_eq!(report[2], "chat", "{}\n{}", waiting.log(), component.log());
}
