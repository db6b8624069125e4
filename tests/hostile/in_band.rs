//! In-band bytestreams of clients that use unwelcome freedoms of the specification, and of servers that slow, hold and
//! cut them.

use std::time::Duration;

use serde_json::json;

use support::process::Process;
use support::programs::{Component, Options, Xtls, event, page, script};
use support::servers::{Kind, Server};
use support::{PATIENCE, wait_for};

/// Returns the configuration of a component for raw bytes.
fn raw(more: &str) -> Options {
    let more = format!("[broker]\nrequire_tls = false\n{more}");
    Options { more, ..Options::default() }
}

/// Nothing slows a sender by message down: its blocks are held, up to a share, and arrive whole.
fn blocks_by_message_arrive(kind: Kind) {
    let server = Server::start(kind);
    let component = Component::start(&server, &raw(""));
    let report = script("ibb_messages.py", &server, json!({"bytes": 10 << 20, "timeout": 140}));
    assert_eq!(report["sent"], report["received"], "{report}\n{}", component.log());
    assert_eq!(report["reason"], "success", "{report}");
    assert_eq!(report["stanza"], "iq", "our proposal instead: {report}");
    // Our blocks are messages too, paced by pings, and leave no trace elsewhere.
    let settings = json!({"bytes": 1 << 20, "replies": true, "timeout": 140});
    let report = script("ibb_messages.py", &server, settings);
    assert_eq!(report["sent"], report["back"], "{report}\n{}", component.log());
    let hints = json!([["{urn:xmpp:hints}no-copy", "{urn:xmpp:hints}no-store"]]);
    assert_eq!(report["hints"], hints, "{report}");
}

#[test]
fn ten_megabytes_by_message_arrive_at_prosody() {
    blocks_by_message_arrive(Kind::Prosody);
}

#[test]
fn ten_megabytes_by_message_arrive_at_ejabberd() {
    blocks_by_message_arrive(Kind::Ejabberd);
}

/// A stream without room in `[ibb] memory` ends, and both users are told why.
#[test]
fn blocks_by_message_hold_no_more_than_the_setting_says() {
    let server = Server::start(Kind::Prosody);
    let component = Component::start(&server, &raw("[ibb]\nmemory = 1048576\n"));
    let report = script("ibb_overflow.py", &server, json!({"bytes": 8 << 20}));
    let told = report["told"].as_str().unwrap();
    assert!(told.contains("more than there is room for"), "{report}\n{}", component.log());
}

/// The guard keeps what may become a ClientHello. Nobody waits for it when the session is over, so its place is free.
#[test]
fn an_ended_session_with_half_a_client_hello_leaves_its_place() {
    let server = Server::start(Kind::Prosody);
    let (options, pages) = Options::default().with_pages();
    let component = Component::start(&server, &options);
    let report = script("half_hello.py", &server, json!({}));
    assert_eq!(report["told"], "cancel", "{report}\n{}", component.log());
    let left = || {
        let metrics = page(pages, "/metrics").unwrap();
        metrics.lines().any(|line| line == "fingerpost_broker_sessions 0")
    };
    // Much less than the idle timeout of a stream.
    wait_for("the end of the session", PATIENCE, || component.log(), left);
}

/// Prosody holds messages for an inactive client, and passes those to a client that has gone to another one of the
/// user.
#[test]
fn messages_reach_an_inactive_client_and_stop_when_it_has_gone() {
    let mut server = Server::start(Kind::Prosody);
    server.reconfigure(true, |text| text.replace("\"roster\"", "\"csi_simple\", \"roster\""));
    let component = Component::start(&server, &raw(""));
    let report = script("ibb_inactive.py", &server, json!({"bytes": 100_000}));
    assert_eq!(report["came"], 100_000, "{report}\n{}", component.log());
    let told = report["told"].as_str().unwrap();
    assert!(told.starts_with("gone ") && told.contains("the peer's client is gone"), "{report}");
    // The blocks on their way when the first ping came back: a window at most, however slow the servers are.
    assert!(report["strays"].as_u64().unwrap() <= 16, "{report}");
}

/// A client whose connection is cut in mid-stream and resumed (XEP-0198) loses nothing, and both users are told
/// meanwhile.
#[test]
fn a_client_that_resumes_its_connection_goes_on() {
    let mut server = Server::start(Kind::Prosody);
    server.reconfigure(true, |text| text.replace("\"roster\"", "\"smacks\", \"roster\""));
    let component = Component::start(&server, &raw(""));
    let report = script("ibb_resumed.py", &server, json!({"bytes": 1_000_000}));
    assert_eq!(report["sent"], report["received"], "{report}\n{}", component.log());
    assert_eq!(report["reason"], "success", "{report}");
    let told = |of: &str| json!([["waiting", {"for": of, "seconds": "300"}], ["moving", {}]]);
    assert_eq!((&report["alice"], &report["bob"]), (&told("peer"), &told("you")), "{report}");
}

/// A sender that ignores the window, and receivers that accept only small blocks.
#[test]
fn clients_without_a_window_and_with_small_blocks_are_served() {
    let server = Server::start(Kind::Prosody);
    let component = Component::start(&server, &raw("[ibb]\nblock_size = 65535\n"));
    for (limit, size) in [(8192, 4096), (4096, 4096)] {
        let settings = json!({"bytes": 60_000, "limit": limit});
        let report = script("ibb_habits.py", &server, settings);
        assert_eq!(report["sent"], report["received"], "{report}\n{}", component.log());
        assert_eq!((&report["size"], &report["answered"]), (&json!(size), &json!(0)), "{report}");
        assert_eq!(report["reason"], "success", "{report}");
    }
}

/// ejabberd with its default limits: `xtls` says how long a large file will take, and then why it is so slow.
#[test]
fn the_limit_of_a_server_is_named_with_its_cure() {
    let server = Server::start_limited(Kind::Ejabberd);
    let _component = Component::start(&server, &Options::default());
    let (alice, bob) = (Xtls::with_key(&server, "alice"), Xtls::with_key(&server, "bob"));
    let _listener = bob.listen(&["--transport", "ibb"]);
    let file = alice.home().join("large");
    std::fs::write(&file, vec![7; 2 << 20]).unwrap();
    let log = alice.home().join("send.log");
    let words = ["send", "--json", "--transport", "ibb", bob.jid(), file.to_str().unwrap()];
    let mut sending = Process::start(alice.command(words), &log);
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    wait_for("the word of a limit", 4 * PATIENCE, said, || event(&said(), "slow").is_some());
    let forecast = event(&said(), "in-band").unwrap();
    assert_eq!(forecast["bytes"], 2 << 20, "{forecast}");
    assert!(forecast["seconds"]["ejabberd"].as_u64().unwrap() > 900, "{forecast}");
    let slow = event(&said(), "slow").unwrap();
    assert_eq!(slow["limit"], 3000, "{slow}");
    // Arrived bytes count: several times as many are written at first.
    assert!((1000..3500).contains(&slow["bytes_per_second"].as_u64().unwrap()), "{slow}");
    sending.stop(Duration::from_secs(10));
}

/// A stream takes the time that a server's limit leaves, and nothing else waits behind it: not many of its bytes are in front
/// of a stanza of the same user.
fn others_do_not_wait_behind_a_limited_stream(kind: Kind) {
    let mut server = Server::start_limited(kind);
    if kind == Kind::Ejabberd {
        // As much as Prosody: with Debian's 3 kB/s the test would take minutes.
        server.reconfigure(true, |text| text.replace("rate: 3000", "rate: 10000"));
    }
    let component = Component::start(&server, &Options::default());
    let (alice, bob) = (Xtls::with_key(&server, "alice"), Xtls::with_key(&server, "bob"));
    std::fs::write(alice.home().join("in"), vec![7; 3 << 20]).unwrap();
    std::fs::write(bob.home().join("in"), b"").unwrap();
    let words = ["pipe", "--listen", "--json", "--transport", "ibb"];
    let mut sending = alice.start_between(words, "in", "out");
    wait_for("listening", PATIENCE, || sending.log(), || sending.log().contains("listening"));
    let to = event(&sending.log(), "listening").unwrap()["jid"].clone();
    let words = ["pipe", "--json", "--transport", "ibb", to.as_str().unwrap()];
    let mut receiving = bob.start_between(words, "in", "out");
    let file = bob.home().join("out");
    let arrived = || std::fs::metadata(&file).map_or(0, |file| file.len());
    // More than a server lets through in one go.
    let logs = || sending.log() + &receiving.log() + &component.log();
    wait_for("the limit", PATIENCE, logs, || arrived() > 20_000);
    let settings = json!({"user": "carol", "to": to, "count": 5, "file": file});
    let report = script("pings.py", &server, settings);
    let grown = report["grown"].as_array().unwrap().iter().map(|grown| grown.as_u64().unwrap());
    let mut grown: Vec<u64> = grown.collect();
    grown.sort_unstable();
    assert!(grown[grown.len() / 2] <= 2 * 8192, "{grown:?}");
    assert!(arrived() < 3 << 20, "the stream was not limited");
    sending.stop(Duration::from_secs(10));
    receiving.stop(Duration::from_secs(10));
}

#[test]
fn prosody_others_do_not_wait_behind_a_limited_stream() {
    others_do_not_wait_behind_a_limited_stream(Kind::Prosody);
}

#[test]
fn ejabberd_others_do_not_wait_behind_a_limited_stream() {
    others_do_not_wait_behind_a_limited_stream(Kind::Ejabberd);
}
