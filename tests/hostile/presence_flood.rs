//! Crowds of one domain, with and without access, against users of another.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use sha1::{Digest, Sha1};

use support::programs::{Component, Options, Script, script};
use support::raw::{self, Raw};
use support::servers::{Kind, LOAD, Server};
use support::{COMPONENT, DOMAIN, SECRET, wait_for};

const STRANGERS: usize = 20_000;

/// A component of its own whose users are as many as it likes, and which answers nothing by itself.
struct Crowd {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Crowd {
    fn join(server: &Server) -> Self {
        let stream = TcpStream::connect(server.component_address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(150))).unwrap();
        let mut crowd = Self { stream, received: Vec::new() };
        crowd.say(&format!(
            "<?xml version='1.0'?><stream:stream xmlns='jabber:component:accept' \
             xmlns:stream='http://etherx.jabber.org/streams' to='{LOAD}'>"
        ));
        crowd.wait_for(|text| text.contains("id=") && text.ends_with('>'));
        let text = crowd.text();
        let id = text.split("id=").nth(1).unwrap();
        let id = id[1..].split(&id[..1]).next().unwrap();
        let digest = Sha1::digest(format!("{id}{SECRET}").as_bytes());
        crowd.say(&format!("<handshake>{}</handshake>", HEXLOWER.encode(&digest)));
        crowd.wait_for(|text| text.contains("<handshake"));
        crowd
    }

    fn say(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.received).into_owned()
    }

    fn wait_for(&mut self, mut there: impl FnMut(&str) -> bool) {
        let mut part = vec![0; 1 << 16];
        while !there(&self.text()) {
            let n = self.stream.read(&mut part).unwrap();
            assert!(n > 0, "the server has closed the crowd's stream: {}", self.text());
            self.received.extend_from_slice(&part[..n]);
        }
    }

    /// Sends one stanza of each of so many users, then a ping; its answer shows that all were handled.
    fn storm(&mut self, users: usize, stanza: impl Fn(usize) -> String + Send + 'static) {
        self.received.clear();
        let mut writer = self.stream.try_clone().unwrap();
        let writing: JoinHandle<()> = thread::spawn(move || {
            let mut text = String::new();
            for number in 0..users {
                text += &stanza(number);
                if text.len() > 1 << 16 {
                    writer.write_all(text.as_bytes()).unwrap();
                    text.clear();
                }
            }
            text += &format!(
                "<iq type='get' id='the-end' from='end@{LOAD}/x' to='{COMPONENT}'><ping xmlns='urn:xmpp:ping'/></iq>"
            );
            writer.write_all(text.as_bytes()).unwrap();
        });
        self.wait_for(|text| text.contains("the-end"));
        writing.join().unwrap();
    }
}

fn presence(number: usize) -> String {
    let padding = "x".repeat(900);
    format!(
        "<presence from='u{number}@{LOAD}/resource' to='{COMPONENT}'><status>{padding}</status></presence>"
    )
}

/// Returns the anonymous memory of a process, in bytes.
fn memory(component: &Component) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", component.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn stay(server: &Server, resource: &str) -> Script {
    let mut bob = Script::start("reach.py", server, json!({"stay": true, "resource": resource}));
    bob.wait_for("\"here\": true");
    bob
}

fn ask(server: &Server, times: usize) -> Value {
    script("reach.py", server, json!({"ask": times}))
}

/// 20,000 users without access, 1 KB each, then a user that was not there before.
fn strangers_fill_nothing(kind: Kind) {
    let server = Server::start_to_measure(kind);
    let component = Component::start(&server, &Options::default());
    let before = memory(&component);
    let mut crowd = Crowd::join(&server);
    crowd.storm(STRANGERS, presence);
    let grown = memory(&component).saturating_sub(before);
    assert!(grown < 64 << 20, "grew by {grown} bytes");
    let _bob = stay(&server, "late");
    let report = ask(&server, 1);
    assert_eq!((&report["reached"], &report["keys"]), (&json!(1), &json!(1)), "{report}");
}

#[test]
fn presences_of_strangers_keep_nobody_from_being_reachable_at_prosody() {
    strangers_fill_nothing(Kind::Prosody);
}

#[test]
fn presences_of_strangers_keep_nobody_from_being_reachable_at_ejabberd() {
    strangers_fill_nothing(Kind::Ejabberd);
}

/// A domain that has access, and whose server never answers, against users of another domain.
#[test]
fn a_presence_storm_of_a_domain_with_access_refuses_no_key_request() {
    let server = Server::start_to_measure(Kind::Prosody);
    let more = format!("[access]\nusers = [\"{DOMAIN}\", \"{LOAD}\"]\n");
    let component = Component::start(&server, &Options { more, ..Options::default() });
    let before = memory(&component);
    let mut crowd = Crowd::join(&server);
    crowd.storm(STRANGERS, presence);
    let asked = crowd.text().matches("<pubsub").count();
    assert!((1..=64).contains(&asked), "{asked} questions for published keys");
    let _bob = stay(&server, "late");
    let report = ask(&server, 20);
    assert_eq!((&report["reached"], &report["keys"]), (&json!(20), &json!(20)), "{report}");
    // One account comes and goes.
    crowd.storm(8400, |number| {
        let type_ = if number % 2 == 0 { "" } else { " type='unavailable'" };
        format!("<presence from='one@{LOAD}/x' to='{COMPONENT}'{type_}/>")
    });
    // On a busy machine, questions to users of the first crowd may still come.
    let text = crowd.text();
    let of_one = |stanza: &&str| stanza.contains("<pubsub") && stanza.contains("one@");
    let asked = text.split("<iq").filter(of_one).count();
    assert!(asked <= 3, "{asked} questions for the published keys of one account");
    let report = ask(&server, 20);
    assert_eq!((&report["reached"], &report["keys"]), (&json!(20), &json!(20)), "{report}");
    let grown = memory(&component).saturating_sub(before);
    assert!(grown < 128 << 20, "grew by {grown} bytes");
}

/// Requests of all kinds that wait for an answer that never comes, from any number of users of one domain.
#[test]
fn requests_that_wait_hold_up_no_other_domain() {
    let server = Server::start_to_measure(Kind::Prosody);
    let more = format!("[access]\nusers = [\"{DOMAIN}\", \"{LOAD}\"]\n");
    let component = Component::start(&server, &Options { more, ..Options::default() });
    let mut crowd = Crowd::join(&server);
    let to = |number: usize| format!("peer{number}\\40{LOAD}@{COMPONENT}/x");
    crowd.storm(20_000, move |number| {
        let from = format!("u{number}@{LOAD}/x");
        format!(
            "<iq type='get' id='p{number}' from='{from}' to='{}'><ping xmlns='urn:xmpp:ping'/></iq>",
            to(number)
        )
    });
    let refused = crowd.text().matches("resource-constraint").count();
    assert!(refused > 10_000, "the crowd has used its share: {refused} refused");
    crowd.storm(5_000, |number| {
        format!(
            "<iq type='set' id='c{number}' from='u{number}@{LOAD}/x' to='{COMPONENT}'>\
             <command xmlns='http://jabber.org/protocol/commands' node='urn:fingerpost:cmd:add' action='execute'/></iq>"
        )
    });
    let _bob = stay(&server, "late");
    // The server still works through the crowd's stanzas, so Bob's client may be slow. A question that the component holds up has
    // another error.
    let report = script("reach.py", &server, json!({"ask": 20, "patient": true}));
    assert_eq!((&report["reached"], &report["keys"]), (&json!(20), &json!(20)), "{report}");
    drop(component);
}

/// Users that were reachable are reachable at once when the component is back, whether it was stopped or killed; those
/// that went away meanwhile are not.
fn reachable_over_a_restart(kind: Kind) {
    let server = Server::start(kind);
    let mut component = Component::start(&server, &Options::default());
    let bob = stay(&server, "there");
    assert_eq!(ask(&server, 1)["reached"], 1);
    wait_for(
        "the record of reachable users",
        Duration::from_secs(20),
        || component.log(),
        || remembered(&component).contains("bob@example.test/there"),
    );
    for kill in [true, false] {
        if kill {
            component.kill_and_restart();
        } else {
            component.restart();
        }
        let report = ask(&server, 1);
        assert_eq!(report["reached"], 1, "{report}\n{}", component.log());
    }
    component.signal("KILL");
    component.wait(Duration::from_secs(10));
    drop(bob);
    component.start_again();
    wait_for(
        "the answer of Bob's server",
        Duration::from_secs(20),
        || component.log(),
        || !remembered(&component).contains("bob@example.test/there"),
    );
    let report = ask(&server, 1);
    assert_eq!(report["reached"], 0, "{report}");
    assert!(report["errors"][0].as_str().unwrap().contains("recipient-unavailable"), "{report}");
    assert!(component.runs());
}

/// Returns the reachable users in the component's database.
fn remembered(component: &Component) -> String {
    let read = "import sqlite3, sys; print(list(sqlite3.connect(sys.argv[1]).execute('SELECT jid FROM reachable')))";
    let output = std::process::Command::new("python3")
        .args(["-c", read])
        .arg(component.database())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn users_are_reachable_at_once_after_a_restart_at_prosody() {
    reachable_over_a_restart(Kind::Prosody);
}

#[test]
fn users_are_reachable_at_once_after_a_restart_at_ejabberd() {
    reachable_over_a_restart(Kind::Ejabberd);
}

/// Whether an element is a check of this resource by the component.
fn is_check(element: &[u8]) -> bool {
    raw::contains(element, b"disco#info") && !raw::contains(element, b"type='result'")
}

/// Answers a request that is read as bytes.
fn answer(request: &[u8], type_: &str, payload: &str) -> String {
    let tag = raw::start_tag(request);
    let of = |name| raw::attribute(&tag, name).unwrap();
    let (id, from, to) = (of("id"), of("to"), of("from"));
    format!("<iq type='{type_}' id='{id}' from='{from}' to='{to}'>{payload}</iq>")
}

/// The component checks a user that it remembers while that user's server is away. The error takes its time, and the user
/// is back before it comes.
fn an_error_that_is_older_than_the_user_s_return(kind: Kind) {
    let server = Server::start_to_measure(kind);
    let more = format!("[access]\nusers = [\"{DOMAIN}\", \"{LOAD}\"]\n");
    let mut component = Component::start(&server, &Options { more, ..Options::default() });
    let mut load = Raw::component_of(&server, LOAD);
    let here = format!("<presence from='late@{LOAD}/x' to='{COMPONENT}'/>");
    load.send(&here);
    wait_for(
        "the record of the user",
        Duration::from_secs(20),
        || component.log(),
        || remembered(&component).contains("late@"),
    );
    for condition in ["remote-server-not-found", "item-not-found"] {
        component.kill_and_restart();
        let check = std::iter::from_fn(|| load.read().ok()).find(|element| is_check(element));
        load.send(&here);
        let error = format!(
            "<error type='cancel'><{condition} xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error>"
        );
        load.send(&answer(&check.unwrap(), "error", &error));
        load.send(&format!(
            "<iq type='get' id='ping' from='other@{LOAD}/x' to='late\\40{LOAD}@{COMPONENT}'>\
             <ping xmlns='urn:xmpp:ping'/></iq>"
        ));
        let answered = loop {
            let element = load.read().unwrap();
            let tag = raw::start_tag(&element);
            if raw::attribute(&tag, "id") == Some("ping") {
                break tag;
            }
            if is_check(&element) {
                let query = "<query xmlns='http://jabber.org/protocol/disco#info'/>";
                load.send(&answer(&element, "result", query));
            } else if raw::contains(&element, b"urn:xmpp:ping") {
                load.send(&answer(&element, "result", ""));
            }
        };
        assert_eq!(raw::attribute(&answered, "type"), Some("result"), "{condition}: {answered}");
    }
}

#[test]
fn a_late_error_does_not_make_who_is_back_unreachable_after_a_restart_at_prosody() {
    an_error_that_is_older_than_the_user_s_return(Kind::Prosody);
}

#[test]
fn a_late_error_does_not_make_who_is_back_unreachable_after_a_restart_at_ejabberd() {
    an_error_that_is_older_than_the_user_s_return(Kind::Ejabberd);
}
