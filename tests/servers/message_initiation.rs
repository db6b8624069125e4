//! Sessions that are proposed before they are started (XEP-0353), on real XMPP servers.

use serde_json::json;
use support::programs::{Component, Options, script};
use support::servers::{Kind, Server};

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
        "finish": [["finish", "success"], ["finish", "success"]],
        "finish back": [format!("{bob}/desk"), "finish", "p1", "success"],
        "reject": [format!("{bob}/phone"), "reject", "p2", "busy"],
        "the desk": ["retract", "cancel"],
        "after reject": ["error", "cancel", "item-not-found"],
        "retract": [["retract", "cancel"], ["retract", "cancel"]],
        "gone": [bob, "reject", "p4", "gone"],
    });
    assert_eq!(report, expected, "{}", component.log());
}
