//! Chats on a real Prosody: between two `xtls`, with OpenSSL and expat on the other side, and in a terminal.

use std::{
    fs::File,
    io::Write,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use support::{
    DOMAIN,
    process::{end_of, read},
    programs::{Component, Options, Script, Xtls, at_a_terminal, event, script},
    servers::{Kind, Server},
    wait_for,
};

/// An `xtls` with a standard input that stays open.
struct Running {
    child: Child,
    input: Option<ChildStdin>,
    name: &'static str,
    home: std::path::PathBuf,
}

impl Running {
    fn start(user: &Xtls, name: &'static str, args: &[&str]) -> Self {
        let mut command: Command = user.command(args);
        let file = |end: &str| File::create(user.home().join(format!("{name}.{end}"))).unwrap();
        command.stdin(Stdio::piped()).stdout(file("out")).stderr(file("err"));
        let mut child = command.spawn().unwrap();
        let input = child.stdin.take();
        Self { child, input, name, home: user.home().to_owned() }
    }

    fn out(&self) -> String {
        read(&self.home.join(format!("{}.out", self.name)))
    }

    fn err(&self) -> String {
        read(&self.home.join(format!("{}.err", self.name)))
    }

    fn wait_for(&self, text: &str) {
        let seen = || format!("{}\n{}", self.out(), self.err());
        wait_for(text, Duration::from_secs(40), seen, || seen().contains(text));
    }

    fn type_(&mut self, line: &str) {
        self.input.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
    }

    fn signal(&self, name: &str) {
        let id = self.child.id();
        let sent = Command::new("sh").arg("-c").arg(format!("kill -{name} {id}")).status().unwrap();
        assert!(sent.success());
    }

    fn wait(&mut self) -> i32 {
        let seen = format!("{}\n{}", self.out(), self.err());
        end_of(&mut self.child, Duration::from_secs(40), || seen.clone()).code().unwrap_or(-1)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "{}:\n{}\n{}", self.name, self.out(), self.err());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Stage {
    server: Server,
    _component: Component,
    alice: Xtls,
    bob: Xtls,
}

impl Stage {
    fn set() -> Self {
        let server = Server::start(Kind::Prosody);
        let component = Component::start(&server, &Options::default());
        let (alice, bob) = (Xtls::with_key(&server, "alice"), Xtls::with_key(&server, "bob"));
        Self { server, _component: component, alice, bob }
    }

    fn listener(&self, args: &[&str]) -> Running {
        let all: Vec<&str> = ["chat", "--listen"].iter().chain(args).copied().collect();
        let bob = Running::start(&self.bob, "bob", &all);
        bob.wait_for("listening");
        bob
    }
}

fn events(lines: &str, name: &str) -> Vec<Value> {
    lines
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|value| value["event"] == name)
        .collect()
}

#[test]
fn two_users_chat_see_what_has_arrived_and_both_ends_leave_well() {
    let stage = Stage::set();
    let mut bob = stage.listener(&["--json"]);
    let mut alice = Running::start(&stage.alice, "alice", &["chat", stage.bob.jid(), "--json"]);
    alice.wait_for("\"chat\"");
    alice.type_("M'lady <&> é 👍\nsecond\n");
    alice.wait_for("\"line\":2}");
    bob.wait_for("second");
    bob.type_("Art thou not Romeo?\n");
    alice.wait_for("Romeo");
    // The end of alice's input ends the chat for both.
    alice.type_("goodbye\n");
    alice.input = None;
    assert_eq!(alice.wait(), 0, "{}\n{}", alice.out(), alice.err());
    assert_eq!(bob.wait(), 0, "{}\n{}", bob.out(), bob.err());
    let said = |out: &str| -> Vec<String> {
        let text = |event: &Value| event["text"].as_str().unwrap().to_owned();
        events(out, "message").iter().map(text).collect()
    };
    assert_eq!(said(&bob.out()), ["M'lady <&> é 👍", "second", "goodbye"]);
    assert_eq!(said(&alice.out()), ["Art thou not Romeo?"]);
    let arrived: Vec<_> =
        events(&alice.out(), "arrived").iter().map(|e| e["line"].clone()).collect();
    assert_eq!(arrived, [json!(1), json!(2), json!(3)]);
    assert_eq!(event(&alice.out(), "chat").unwrap()["acknowledged"], true);
    assert_eq!(event(&alice.out(), "ended").unwrap()["lost"], json!([]));
    assert_eq!(event(&bob.out(), "secured").unwrap()["tls_version"], "TLSv1.3");

    // Plain lines, in-band, with the listener's input at its end from the start; an interrupt ends the chat well too.
    let mut bob = stage.listener(&[]);
    bob.input = None;
    let mut alice =
        Running::start(&stage.alice, "alice", &["chat", stage.bob.jid(), "--transport", "ibb"]);
    alice.type_("one\ntwo\n");
    bob.wait_for("two");
    alice.wait_for("arrived: line 2");
    alice.signal("INT");
    assert_eq!(alice.wait(), 0, "{}", alice.err());
    assert_eq!(bob.wait(), 0, "{}", bob.err());
    assert_eq!(bob.out(), "one\ntwo\n");

    // A user that is not accepted is told so, and the listener continues to wait.
    let mut bob = stage.listener(&["--accept", "carol@example.test"]);
    let refused = stage.alice.run(["chat", stage.bob.jid()]);
    assert_eq!(refused.code, 5, "{refused:?}");
    assert!(refused.stderr.contains("not among those to accept"), "{refused:?}");
    bob.signal("INT");
    assert_eq!(bob.wait(), 0, "{}", bob.err());

    // A peer that dies leaves a clear word.
    let mut bob = stage.listener(&[]);
    let mut alice = Running::start(&stage.alice, "alice", &["chat", stage.bob.jid()]);
    alice.type_("hello\n");
    alice.wait_for("arrived: line 1");
    bob.signal("KILL");
    bob.wait();
    alice.type_("are you there?\n");
    assert_eq!(alice.wait(), 1, "{}", alice.err());
    assert!(alice.err().contains("error: "), "{}", alice.err());
}

#[test]
fn openssl_and_expat_chat_and_what_they_send_controls_no_terminal() {
    let stage = Stage::set();
    let talk = |more: Value| {
        let mut bob = stage.listener(&["--json"]);
        bob.type_("Art thou not Romeo?\n");
        let to = event(&bob.out(), "listening").unwrap()["jid"].clone();
        let mut settings = json!({"to": to, "expect": 1});
        for (key, value) in more.as_object().unwrap() {
            settings[key] = value.clone();
        }
        let report = script("chat.py", &stage.server, settings);
        let status = bob.wait();
        // The next one has a key of its own again.
        let carol = format!("carol@{DOMAIN}");
        assert_eq!(stage.bob.run(["trust", "forget", carol.as_str()]).code, 0);
        (report, bob.out(), status)
    };
    let evil = "a\u{9b}31m\u{202e}b\u{85}c";
    let (report, out, status) = talk(json!({"say": ["M'lady <3", evil], "end": "close"}));
    assert_eq!(status, 0, "{out}");
    assert_eq!(report["header"]["from"], format!("bob@{DOMAIN}"));
    assert_eq!(report["header"]["to"], format!("carol@{DOMAIN}"));
    assert_eq!(report["features"], json!(["urn:xmpp:sm:3 sm"]));
    assert_eq!(report["handled"], "3");
    assert_eq!(report["heard"], json!(["Art thou not Romeo?"]));
    assert_eq!((&report["closed"], &report["error"]), (&json!(true), &Value::Null));
    assert!(report["goodbye"].as_str().unwrap().starts_with("success"), "{report}");
    let texts: Vec<_> = events(&out, "message").iter().map(|event| event["text"].clone()).collect();
    assert_eq!(texts, [json!("M'lady <3"), json!(evil)]);
    assert!(!out.contains(['\u{9b}', '\u{202e}', '\u{85}']), "{out:?}");
    assert_eq!(events(&out, "arrived").len(), 1, "{out}");

    for (raw, condition) in [
        ("<message></massage>", "not-well-formed"),
        ("{<a>*40}", "policy-violation"),
        ("<message><body>{x*140000}", "policy-violation"),
        ("<!-- no -->", "restricted-xml"),
        ("<x xmlns='urn:x'/>", "unsupported-stanza-type"),
        ("<a xmlns='urn:xmpp:sm:3' h='99'/>", "undefined-condition"),
    ] {
        let (report, out, status) = talk(json!({ "raw": raw }));
        assert_eq!(report["error"], condition, "{raw}: {report}");
        assert_eq!(report["closed"], true, "{raw}: {report}");
        assert_eq!(status, 1, "{raw}: {out}");
    }
}

#[test]
fn a_person_chats_in_a_terminal_and_lines_that_come_in_do_not_break_the_one_being_typed() {
    let stage = Stage::set();
    let program = stage.alice.command(["chat", stage.bob.jid()]);
    let terminal =
        |steps: Value| Script::start("terminal.py", &stage.server, at_a_terminal(&program, steps));

    let mut bob = stage.listener(&[]);
    let mut person = terminal(json!([
        ["wait", "/help"],
        ["prompt"],
        ["type", "hello\r"],
        ["wait", "✓ arrived"],
        ["prompt"],
        ["type", "half a li"],
        ["wait", "> half a li"],
        ["say", "half a line is typed"],
        ["wait", "<U+202E>\n> half a li"],
        ["type", "ne\r"],
        ["wait", "> half a line\n✓ arrived"],
        ["prompt"],
        ["type", "/what\r"],
        ["wait", "unknown command /what"],
        ["prompt"],
        ["type", "/quit\r"],
        ["end"]
    ]));
    bob.wait_for("hello");
    person.wait_for("half a line is typed");
    bob.type_("interrupting\u{1b}[2J\u{202e}\n");
    let report = person.report();
    let screen = report["screens"][8].as_str().unwrap().to_owned();
    let lines: Vec<&str> = screen.lines().collect();
    let shown = format!("bob@{DOMAIN}: interrupting");
    let at = lines
        .iter()
        .position(|line| line.starts_with(&shown))
        .unwrap_or_else(|| panic!("{screen}"));
    assert!(lines[at].ends_with("<U+202E>"), "{screen}");
    assert_eq!(lines[at + 1], "> half a li", "{screen}");
    assert_eq!((&report["status"], &report["modes"]), (&json!(0), &json!(true)), "{report}");
    assert_eq!(bob.wait(), 0, "{}", bob.err());
    assert!(bob.out().contains("half a line\n"), "{}", bob.out());

    // Ctrl-D ends it too, and so does the peer while the line editor waits: the terminal is restored.
    let mut bob = stage.listener(&[]);
    let person = terminal(json!([["wait", "/help"], ["prompt"], ["type", "\u{4}"], ["end"]]));
    let report = person.report();
    assert_eq!((&report["status"], &report["modes"]), (&json!(0), &json!(true)), "{report}");
    assert_eq!(bob.wait(), 0, "{}", bob.err());
    let mut bob = stage.listener(&[]);
    let mut person = terminal(json!([
        ["wait", "/help"],
        ["prompt"],
        ["type", "half"],
        ["wait", "> half"],
        ["say", "half is typed"],
        ["end"]
    ]));
    bob.wait_for("chat with");
    person.wait_for("half is typed");
    bob.signal("INT");
    let report = person.report();
    assert_eq!((&report["status"], &report["modes"]), (&json!(0), &json!(true)), "{report}");
    assert_eq!(bob.wait(), 0, "{}", bob.err());
    assert!(Path::new(program.get_program()).exists());
}
