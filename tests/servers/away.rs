//! Peers that sleep, block, or do not exist; several programs of one account; transports that are not available. On
//! real XMPP servers.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use support::process::{Output, Process, read};
use support::programs::{Component, Options, Script, Xtls, event, script};
use support::raw::Raw;
use support::servers::{Kind, Server};
use support::{COMPONENT, random_file, wait_for};

const LONG: Duration = Duration::from_secs(120);
/// The address of a service with chat rooms.
const ROOMS: &str = "rooms.example.test";
/// The hint that blames the other side for not listening.
const NOT_LISTENING: &str = "must run `xtls listen`";

struct Scene {
    // Dropped before the server.
    component: Component,
    alice: Xtls,
    bob: Xtls,
    server: Server,
}

/// A user's program that waits for peers.
struct Waiting {
    process: Process,
    log: PathBuf,
    out: PathBuf,
}

impl Waiting {
    /// Returns its messages to the user, and its output.
    fn log(&self) -> String {
        read(&self.log) + &read(&self.out.join("stdout"))
    }

    fn wait_for(&self, what: &str, there: impl Fn(&str) -> bool) {
        wait_for(what, LONG, || self.log(), || there(&self.log()));
    }

    fn has(&self, name: &str) -> bool {
        self.out.join(name).exists()
    }
}

impl Scene {
    fn start(server: Server, options: &Options) -> Self {
        let component = Component::start(&server, options);
        let (alice, bob) = (Xtls::with_key(&server, "alice"), Xtls::with_key(&server, "bob"));
        Self { component, alice, bob, server }
    }

    /// Starts a command of bob's that waits for peers, with its files in a directory of this name.
    fn wait(&self, name: &str, args: &[&str]) -> Waiting {
        let out = self.bob.home().join(name);
        fs::create_dir_all(&out).unwrap();
        let (input, output) = (out.join("stdin"), out.join("stdout"));
        let log = out.join("log");
        fs::write(&input, "").unwrap();
        let mut command = self.bob.command(args);
        command.current_dir(&out);
        let process = Process::start_between(command, &input, &output, &log);
        let waiting = Waiting { process, log, out };
        waiting.wait_for("listening", |log| log.contains("listening"));
        waiting
    }

    fn listen(&self, name: &str, more: &[&str]) -> Waiting {
        self.wait(name, &[&["listen"][..], more].concat())
    }

    fn send(&self, to: &str, name: &str, more: &[&str]) -> Output {
        let file = self.alice.home().join(name);
        random_file(&file, 20_000);
        self.alice.run([&["send", to, file.to_str().unwrap()][..], more].concat())
    }
}

fn assert_says(output: &Output, code: i32, words: &[&str], case: &str) {
    assert_eq!(output.code, code, "{case}: {output:?}");
    for word in words {
        assert!(output.stderr.contains(word), "{case}: {word}: {output:?}");
    }
    if !words.contains(&NOT_LISTENING) {
        assert!(!output.stderr.contains(NOT_LISTENING), "{case}: {output:?}");
    }
}

fn programs_that_sleep(kind: Kind) {
    let scene = Scene::start(Server::start(kind), &Options::default());
    let bob = scene.bob.jid().to_owned();
    let (old, new) = (scene.listen("old", &[]), scene.listen("new", &[]));
    let sent = scene.send(&bob, "first", &[]);
    assert_eq!(sent.code, 0, "{sent:?}");
    assert!(new.has("first"), "the newest of equals gets it: {}", new.log());
    new.process.signal("STOP");
    let sent = scene.send(&bob, "second", &[]);
    assert_eq!(sent.code, 0, "{sent:?} {}", scene.component.log());
    assert!(old.has("second"), "{}", old.log());
    old.process.signal("STOP");
    let words = ["bob@example.test is not answering since 20", "suspended or has lost its network"];
    assert_says(&scene.send(&bob, "third", &[]), 3, &words, "all sleep");
    for sleeper in [&old, &new] {
        sleeper.process.signal("CONT");
    }
    wait_for(
        "the return of those that slept",
        LONG,
        || scene.component.log(),
        || scene.send(&bob, "fourth", &[]).code == 0,
    );
    // A chat program and a pipe start later: each gets the sessions that it is for.
    let pipe = scene.wait("pipe", &["pipe", "--listen"]);
    let chat = scene.wait("chat", &["chat", "--listen"]);
    let sent = scene.send(&bob, "fifth", &[]);
    assert_eq!(sent.code, 0, "{sent:?} {}", chat.log());
    assert!(old.has("fifth") || new.has("fifth"), "{}", new.log());
    let home = scene.alice.home();
    for (args, waiting) in [(["pipe", &bob], &pipe), (["chat", &bob], &chat)] {
        fs::write(home.join("said"), "a line for the right one\n").unwrap();
        let mut said = scene.alice.start_between(args, "said", "heard");
        assert!(said.wait(LONG).success(), "{args:?}: {} {}", said.log(), waiting.log());
        waiting.wait_for("the line", |log| log.contains("a line for the right one"));
    }
}

#[test]
fn programs_that_sleep_give_way_and_each_kind_gets_its_own_at_prosody() {
    programs_that_sleep(Kind::Prosody);
}

#[test]
fn programs_that_sleep_give_way_and_each_kind_gets_its_own_at_ejabberd() {
    programs_that_sleep(Kind::Ejabberd);
}

/// Returns a server with rooms whose users can block others.
fn social(kind: Kind) -> Server {
    let mut server = Server::start(kind);
    server.reconfigure(true, |config| match kind {
        Kind::Prosody => {
            config.replacen("\"disco\",", "\"disco\", \"blocklist\",", 1)
                + &format!("\nComponent \"{ROOMS}\" \"muc\"\n")
        }
        Kind::Ejabberd => config.replacen(
            "modules:\n",
            &format!(
                "modules:\n  mod_privacy: {{}}\n  mod_blocking: {{}}\n  mod_muc:\n    hosts: [\"{ROOMS}\"]\n"
            ),
            1,
        ),
    });
    server
}

fn causes(kind: Kind) {
    let mut scene = Scene::start(social(kind), &Options::default());
    let bob = scene.bob.jid().to_owned();
    assert_says(&scene.send(&bob, "away", &[]), 3, &[NOT_LISTENING], "away");
    // Rooms, and their occupants.
    let (room, carol) = (format!("talk@{ROOMS}"), format!("talk@{ROOMS}/Carol (ö)"));
    let mut inside = Script::start("away.py", &scene.server, json!({"join": carol}));
    inside.wait_for("\"joined\": true");
    let absent = format!("nothing@{ROOMS}");
    for address in [&room, &carol, &absent] {
        for more in [&[][..], &["--direct"]] {
            let words = [room.split("@").nth(1).unwrap(), "chat room", "real address"];
            let case = format!("{address} {more:?}");
            assert_says(&scene.send(address, "room", more), 2, &words, &case);
        }
    }
    drop(inside);
    // A user was present and then blocks the component.
    let before = scene.listen("before", &[]);
    assert_eq!(scene.send(&bob, "free", &[]).code, 0, "{}", before.log());
    script("away.py", &scene.server, json!({"block": true}));
    let words = ["delivers nothing from xtls.example.test", "may be blocked", "unblock"];
    assert_says(&scene.send(&bob, "blocked", &[]), 3, &words, "the peer blocks");
    let after = scene.wait("after", &["listen", "--json"]);
    after.wait_for("the news", |log| log.contains("component-gone"));
    let told = event(&after.log(), "component-gone").unwrap();
    assert!(told["message"].as_str().unwrap().contains("blocked by your own account"), "{told}");
    let file = scene.bob.home().join("own");
    random_file(&file, 1000);
    let sent = scene.bob.run(["send", "alice@example.test", file.to_str().unwrap()]);
    assert_says(&sent, 3, &["blocked by your own account", "unblock it"], "one's own block");
    // The component is stopped.
    scene.component.signal("TERM");
    scene.component.wait(LONG);
    let words = ["xtls.example.test is not connected", "ask the operator"];
    assert_says(&scene.send(&bob, "stopped", &[]), 3, &words, "the component is stopped");
    assert_says(&scene.alice.run(["keys"]), 3, &words, "keys of a component that is stopped");
    let alone = scene.alice.home().join("alone");
    fs::create_dir_all(&alone).unwrap();
    let out = alone.join("stdout");
    fs::write(alone.join("stdin"), "").unwrap();
    let listener = Process::start_between(
        scene.alice.command(["listen", "--json", "--out", alone.to_str().unwrap()]),
        &alone.join("stdin"),
        &out,
        &alone.join("log"),
    );
    let said = |name: &str| event(&read(&out), name);
    let log = || read(&out) + &listener.log();
    wait_for("the news", LONG, log, || said("component-gone").is_some());
    let gone = said("component-gone").unwrap();
    assert_eq!(gone["component"], "xtls.example.test", "{gone}");
    assert!(said("listening").is_some() && said("component-back").is_none());
    scene.component.start_again();
    wait_for("the return", LONG, log, || said("component-back").is_some());
}

#[test]
fn the_error_names_who_is_to_blame_at_prosody() {
    causes(Kind::Prosody);
}

#[test]
fn the_error_names_who_is_to_blame_at_ejabberd() {
    causes(Kind::Ejabberd);
}

#[test]
fn a_demanded_transport_is_had_or_the_session_fails_and_a_wish_gives_way() {
    // Nothing listens at the announced address.
    let nowhere = ("FINGERPOST_SOCKS5__ADVERTISE", "127.0.0.1:9".to_owned());
    let options = Options { env: vec![nowhere], ..Options::default() };
    let mut scene = Scene::start(Server::start(Kind::Prosody), &options);
    let bob = scene.bob.jid().to_owned();
    let no_socks5 = "SOCKS5 bytestreams are not available";
    let listener = scene.listen("any", &[]);
    let demanded = scene.send(&bob, "demanded", &["--transport", "s5b"]);
    assert_says(&demanded, 1, &[no_socks5, "--prefer"], "a demand of the sender");
    listener.wait_for("the other side's error", |log| log.contains(no_socks5));
    assert!(!listener.has("demanded"));
    let wished = scene.send(&bob, "wished", &["--prefer", "s5b", "--json"]);
    assert_eq!(wished.code, 0, "{wished:?}");
    assert_eq!(event(&wished.stdout, "secured").unwrap()["transport"], "ibb", "{wished:?}");
    stop(listener);
    let listener = scene.listen("strict", &["--transport", "s5b"]);
    let refused = scene.send(&bob, "refused", &[]);
    assert!(refused.code != 0 && refused.stderr.contains(no_socks5), "{refused:?}");
    listener.wait_for("its own error", |log| log.contains(no_socks5));
    assert!(!listener.has("refused"));
    stop(listener);
    let pipe = scene.wait("pipe", &["pipe", "--listen"]);
    fs::write(scene.alice.home().join("said"), "nothing\n").unwrap();
    let args = ["pipe", &bob, "--transport", "s5b"];
    let mut said = scene.alice.start_between(args, "said", "heard");
    assert_eq!(said.wait(LONG).code(), Some(1), "{}", said.log());
    assert!(said.log().contains(no_socks5), "{}", said.log());
    assert_eq!(read(&pipe.out.join("stdout")), "");
    stop(pipe);
    // In-band bytestreams are switched off, and SOCKS5 works.
    scene.component.signal("TERM");
    scene.component.wait(LONG);
    let more = "[ibb]\nenabled = false\n".to_owned();
    scene.component = Component::start(&scene.server, &Options { more, ..Options::default() });
    for user in [&scene.alice, &scene.bob] {
        assert_eq!(user.run(["register"]).code, 0);
    }
    let listener = scene.listen("socks5", &[]);
    let demanded = scene.send(&bob, "in-band", &["--transport", "ibb"]);
    assert_says(&demanded, 1, &["transport", "--prefer"], "in-band is off");
    let wished = scene.send(&bob, "either", &["--prefer", "ibb", "--json"]);
    assert_eq!(wished.code, 0, "{wished:?} {}", listener.log());
    assert_eq!(event(&wished.stdout, "secured").unwrap()["transport"], "s5b", "{wished:?}");
    assert!(listener.has("either") && !listener.has("in-band"));
}

fn stop(mut waiting: Waiting) {
    waiting.process.stop(LONG);
}

/// A client that reads nothing more, as a device that was suspended right after its last stanza.
#[test]
fn one_that_falls_asleep_after_its_last_stanza_is_not_offered_a_session() {
    for kind in [Kind::Prosody, Kind::Ejabberd] {
        let server = Server::start_in_clear(kind);
        let _component = Component::start(&server, &Options::default());
        let mut bob = Raw::client(&server, "bob", "raw", "");
        let mut alice = Raw::client(&server, "alice", "raw", "");
        bob.send(&format!("<presence to='{COMPONENT}'/>"));
        // The component has seen it before what alice sends then.
        bob.send(&format!(
            "<iq type='get' to='{COMPONENT}' id='seen'><ping xmlns='urn:xmpp:ping'/></iq>"
        ));
        bob.wait_for("id='seen'");
        alice.send(&format!(
            "<iq type='set' to='bob\\40example.test@{COMPONENT}' id='initiate'>\
             <jingle xmlns='urn:xmpp:jingle:1' action='session-initiate' sid='s'>\
             <content creator='initiator' name='c'>\
             <description xmlns='urn:xmpp:jingle:apps:tls'><methods><method name='x509'/></methods></description>\
             <transport xmlns='urn:xmpp:jingle:transports:ibb:1' sid='t' block-size='4096'/>\
             </content></jingle></iq>"
        ));
        alice.wait_for("bob@example.test is not answering since 20");
        // When it wakes up, it finds the question and no session.
        bob.wait_for("http://jabber.org/protocol/disco#info");
        bob.send(&format!(
            "<iq type='get' to='{COMPONENT}' id='awake'><ping xmlns='urn:xmpp:ping'/></iq>"
        ));
        bob.wait_for("awake");
        let came = String::from_utf8_lossy(&bob.seen).into_owned();
        assert!(!came.contains("session-initiate"), "{kind:?}: {came}");
    }
}
