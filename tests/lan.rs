//! Users of a local network without a server (XEP-0174): two network namespaces joined by a virtual cable, so that no
//! multicast leaves this machine.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use std::{
    ffi::OsStr,
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use serde_json::{Value, json};
use support::{
    own_program,
    process::{Output, Process, end_of, read, run},
    programs::{clean, event, report},
    random_file, root, sha256, wait_for,
};

const LIMIT: Duration = Duration::from_secs(60);

/// A cable with a host at each end: `a` has 10.77.0.1, `b` 10.77.0.2.
struct Cable {
    hosts: [String; 2],
}

impl Cable {
    fn lay() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("fp{}n{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let cable = Self { hosts: [format!("{id}a"), format!("{id}b")] };
        let [a, b] = &cable.hosts;
        ip(&["netns", "add", a]);
        ip(&["netns", "add", b]);
        ip(&["-n", a, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", b]);
        for (host, address) in [(a, "10.77.0.1/24"), (b, "10.77.0.2/24")] {
            ip(&["-n", host, "address", "add", address, "dev", "cable"]);
            ip(&["-n", host, "link", "set", "cable", "up"]);
            ip(&["-n", host, "link", "set", "lo", "up"]);
        }
        cable
    }

    fn at(&self, host: usize, program: &Path) -> Command {
        let mut command = clean(Path::new("ip"));
        command.args(["netns", "exec", &self.hosts[host]]).arg(program);
        command
    }

    fn script(&self, host: usize, settings: &Value) -> Script {
        let directory = tempfile::tempdir().unwrap();
        let mut settings = settings.clone();
        settings["directory"] = directory.path().to_str().unwrap().into();
        settings["address"] = format!("10.77.0.{}", host + 1).into();
        let python = std::env::var_os("FINGERPOST_TEST_PYTHON")
            .map_or_else(|| root().join("target/venv/bin/python"), PathBuf::from);
        assert!(python.exists(), "{} is not there: run make test", python.display());
        let mut command = self.at(host, &python);
        command
            .arg(root().join("tests/peers/lan.py"))
            .arg(settings.to_string())
            .env("PYTHONDONTWRITEBYTECODE", "1");
        Script {
            process: Process::start(command, &directory.path().join("log")),
            _directory: directory,
        }
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for host in &self.hosts {
            let _ = Command::new("ip").args(["netns", "delete", host]).status();
        }
    }
}

/// Runs `ip`, which needs root.
fn ip(args: &[&str]) {
    let done = Command::new("ip").args(args).output().expect("ip is installed: run make test");
    assert!(
        done.status.success(),
        "the tests of the local network make network namespaces, which only root may (`sudo make test`): ip {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&done.stderr)
    );
}

struct Script {
    process: Process,
    _directory: tempfile::TempDir,
}

impl Script {
    fn wait_for(&self, text: &str) {
        let log = || self.process.log();
        wait_for(text, LIMIT, log, || log().lines().any(|line| line == text));
    }

    fn report(mut self) -> Value {
        report(&mut self.process, "lan.py")
    }
}

/// A user at one end, without any account.
struct User<'a> {
    cable: &'a Cable,
    host: usize,
    name: &'static str,
    home: tempfile::TempDir,
}

impl<'a> User<'a> {
    fn new(cable: &'a Cable, host: usize, name: &'static str) -> Self {
        let home = tempfile::Builder::new().prefix("fingerpost-lan-").tempdir().unwrap();
        std::fs::create_dir(home.path().join("received")).unwrap();
        Self { cable, host, name, home }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.cable.at(self.host, &own_program("xtls"));
        command.args(args).args(["--lan", "--name", self.name, "--interface", "cable", "--json"]);
        command.env("XTLS_HOME", self.path("xtls"));
        command
    }

    fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        run(self.command(args), LIMIT)
    }

    /// Starts it with an input that stays open, and waits until it says `event`.
    fn start(&self, args: &[&str], first: &str) -> Running {
        let mut command = self.command(args);
        let (out, err) = (self.path("out"), self.path("err"));
        command.stdin(Stdio::piped());
        command.stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap());
        let running = Running { child: command.spawn().unwrap(), out, err };
        running.wait_for(first);
        running
    }

    fn listen(&self, more: &[&str]) -> Running {
        let received = self.path("received");
        let mut args = vec!["listen", "--out", received.to_str().unwrap()];
        args.extend(more);
        self.start(&args, "listening")
    }

    fn received(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.path("received"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    }

    /// The next start makes another key.
    fn lose_key(&self) {
        for file in ["cert.pem", "key.pem"] {
            std::fs::remove_file(self.path("xtls/lan").join(file)).unwrap();
        }
    }
}

struct Running {
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Running {
    fn log(&self) -> String {
        format!("{}\n{}", read(&self.out), read(&self.err))
    }

    fn events(&self, name: &str) -> Vec<Value> {
        let out = read(&self.out);
        let parsed = out.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        parsed.filter(|value| value["event"] == name).collect()
    }

    fn wait_for(&self, event: &str) {
        wait_for(event, LIMIT, || self.log(), || !self.events(event).is_empty());
    }

    fn type_(&mut self, line: &str) {
        self.child.stdin.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
    }

    fn interrupt(mut self) -> i32 {
        let id = self.child.id();
        Command::new("sh").arg("-c").arg(format!("kill -INT {id}")).status().unwrap();
        self.wait()
    }

    fn wait(&mut self) -> i32 {
        let log = self.log();
        end_of(&mut self.child, LIMIT, || log.clone()).code().unwrap_or(-1)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "{}", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn files_go_from_one_machine_to_the_other_and_a_changed_key_is_refused_by_both() {
    let cable = Cable::lay();
    let (alice, bob) = (User::new(&cable, 0, "alice@ant"), User::new(&cable, 1, "bob@bee"));
    let (one, two) = (alice.path("one.bin"), alice.path("two.bin"));
    random_file(&one, 3 << 20);
    random_file(&two, 1000);
    let send =
        || alice.run(["send".as_ref(), "bob@bee".as_ref(), one.as_os_str(), two.as_os_str()]);
    let listener = bob.listen(&[]);
    let sent = send();
    assert_eq!(sent.code, 0, "{sent:?}\n{}", listener.log());
    assert_eq!(bob.received(), ["one.bin", "two.bin"]);
    for file in [&one, &two] {
        let there = bob.path("received").join(file.file_name().unwrap());
        assert_eq!(sha256(&there), sha256(file));
    }
    let (mine, theirs) = (event(&sent.stdout, "secured").unwrap(), listener.events("secured"));
    assert_eq!((&mine["transport"], &mine["tls_version"]), (&json!("lan"), &json!("TLSv1.3")));
    assert_eq!(mine["key_exchange"], "X25519MLKEM768");
    assert_eq!((&mine["first_use"], &theirs[0]["first_use"]), (&json!(true), &json!(true)));
    assert_eq!(mine["sas"], theirs[0]["sas"]);
    assert_eq!(mine["sas"].as_str().unwrap().len(), 14, "{mine}");
    let known = alice.cable.at(0, &own_program("xtls"));
    let mut known = known;
    known.args(["trust", "list"]).env("XTLS_HOME", alice.path("xtls"));
    assert!(run(known, LIMIT).stdout.starts_with("bob@bee.local  x509  "));

    let again = send();
    assert_eq!(again.code, 0, "{again:?}");
    assert_eq!(event(&again.stdout, "secured").unwrap()["first_use"], false);
    assert_eq!(listener.interrupt(), 0);

    // Bob's key is another: alice sends nothing.
    let before = bob.received();
    bob.lose_key();
    let listener = bob.listen(&[]);
    let refused = send();
    assert_eq!(refused.code, 4, "{refused:?}");
    assert!(refused.stderr.contains("THE KEY OF bob@bee.local HAS CHANGED"), "{refused:?}");
    // Nor does bob take anything from another alice.
    let other = User::new(&cable, 0, "alice@ant");
    let refused = other.run(["send".as_ref(), "bob@bee".as_ref(), one.as_os_str()]);
    assert_ne!(refused.code, 0, "{refused:?}");
    assert_eq!(bob.received(), before);
    assert!(
        listener.log().contains("THE KEY OF alice@ant.local HAS CHANGED"),
        "{}",
        listener.log()
    );

    let nobody = alice.run(["send".as_ref(), "carol@cat".as_ref(), one.as_os_str()]);
    assert_eq!(nobody.code, 3, "{nobody:?}");
    assert!(nobody.stderr.contains("there are bob@bee"), "{nobody:?}");
    assert_eq!(listener.interrupt(), 0);
}

#[test]
fn two_users_chat_on_the_local_network() {
    let cable = Cable::lay();
    let (alice, bob) = (User::new(&cable, 0, "alice@ant"), User::new(&cable, 1, "bob@bee"));
    let mut waiting = bob.start(&["chat", "--listen", "--accept", "alice@ant"], "listening");
    let stranger = User::new(&cable, 0, "mallory@ant");
    let refused = stranger.run(["chat", "bob@bee"]);
    assert_ne!(refused.code, 0, "{refused:?}");
    let mut caller = alice.start(&["chat", "bob@bee"], "chat");
    caller.type_("M'lady\n");
    waiting.wait_for("message");
    waiting.type_("Art thou not Romeo?\n");
    caller.wait_for("message");
    caller.wait_for("arrived");
    waiting.wait_for("arrived");
    drop(caller.child.stdin.take());
    assert_eq!((caller.wait(), waiting.wait()), (0, 0), "{}\n{}", caller.log(), waiting.log());
    assert_eq!(waiting.events("message")[0]["text"], "M'lady");
    assert_eq!(waiting.events("message")[0]["from"], "alice@ant");
    assert_eq!(caller.events("message")[0]["text"], "Art thou not Romeo?");
}

#[test]
fn zeroconf_sees_who_is_there_and_who_has_gone() {
    let cable = Cable::lay();
    let bob = User::new(&cable, 1, "bob@bee");
    let listener = bob.listen(&[]);
    let browser = cable.script(0, &json!({"role": "browse", "count": 1, "gone_after": true}));
    browser.wait_for("seen");
    let port = listener.events("listening")[0]["port"].clone();
    assert_eq!(listener.interrupt(), 0);
    let report = browser.report();
    let seen = &report["seen"]["bob@bee._presence._tcp.local."];
    assert_eq!(seen["port"], port, "{report}");
    assert_eq!(seen["host"], "bee.local.");
    assert_eq!(seen["addresses"], json!(["10.77.0.2"]));
    let txt = json!({"txtvers": "1", "port.p2pj": port.to_string(), "status": "avail"});
    assert_eq!(seen["txt"], txt);
    assert_eq!(report["gone"], json!(["bob@bee._presence._tcp.local."]));
}

#[test]
fn openssl_and_expat_speak_the_link_local_stream_in_both_roles() {
    let cable = Cable::lay();
    let bob = User::new(&cable, 1, "bob@bee");
    let call = |more: Value| {
        let mut settings = json!({"role": "call", "name": "bob@bee", "own": "python@ant"});
        for (key, value) in more.as_object().unwrap() {
            settings[key] = value.clone();
        }
        cable.script(0, &settings).report()
    };
    let mut waiting = bob.start(&["chat", "--listen"], "listening");
    // Stanzas in clear are refused, both instead of STARTTLS and after it.
    let report = call(json!({"plain": true}));
    assert_eq!(report["error"], "policy-violation", "{report}");
    let report = call(json!({"inject": true}));
    assert_eq!((&report["error"], &report["proceed"]), (&json!("policy-violation"), &json!(false)));
    waiting.type_("Art thou not Romeo?\n");
    let report = call(json!({"say": "M'lady"}));
    assert_eq!(report["header"]["from"], "bob@bee");
    assert_eq!(report["header"]["to"], "python@ant");
    assert_eq!(
        report["features"],
        json!(["urn:ietf:params:xml:ns:xmpp-tls required", "urn:xmpp:tmp:c2ctls offer"])
    );
    let print = report["peer_print"].as_str().unwrap();
    assert_eq!(report["offer"], print.replace(':', "").to_lowercase());
    assert_eq!(report["tls"], "TLSv1.3");
    assert_eq!(report["heard"], "Art thou not Romeo?");
    assert_eq!(report["addresses"], json!({"from": "bob@bee", "to": "python@ant"}));
    assert_eq!((&report["closed"], &report["error"]), (&json!(true), &Value::Null));
    assert_eq!(waiting.wait(), 0, "{}", waiting.log());
    assert_eq!(waiting.events("message")[0]["text"], "M'lady");
    assert!(!waiting.log().contains("in clear\""), "{}", waiting.log());

    // Another key of the same name is refused with a word.
    let waiting = bob.start(&["chat", "--listen"], "listening");
    let report = call(json!({"keys": "other"}));
    assert_eq!(report["error"], "not-authorized", "{report}");
    assert_eq!(waiting.interrupt(), 0);

    // And it is called: as a server without STARTTLS it hears nothing, with it the chat.
    let certificate = std::fs::read_to_string(bob.path("xtls/lan/cert.pem")).unwrap();
    let serve = |more: Value| {
        let mut settings = json!({"role": "serve", "name": "python@ant", "say": "hello", "peer_certificate": certificate});
        for (key, value) in more.as_object().unwrap() {
            settings[key] = value.clone();
        }
        let script = cable.script(0, &settings);
        script.wait_for("announced");
        script
    };
    let script = serve(json!({"starttls": false}));
    let refused = bob.run(["chat", "python@ant"]);
    assert_eq!(refused.code, 4, "{refused:?}");
    assert!(refused.stderr.contains("offers no STARTTLS"), "{refused:?}");
    let report = script.report();
    assert!(!report["seen"].as_str().unwrap().contains("message"), "{report}");

    // The name is known from its call, with a key that is not this one.
    let script = serve(json!({"keys": "third"}));
    let refused = bob.run(["chat", "python@ant"]);
    assert_eq!(refused.code, 4, "{refused:?}");
    assert!(refused.stderr.contains("HAS CHANGED"), "{refused:?}");
    assert_eq!(script.report()["seen"], "");

    let mut forget = cable.at(1, &own_program("xtls"));
    forget.args(["trust", "forget", "python@ant.local"]).env("XTLS_HOME", bob.path("xtls"));
    assert_eq!(run(forget, LIMIT).code, 0);
    let script = serve(json!({}));
    let mut caller = bob.start(&["chat", "python@ant"], "chat");
    caller.type_("M'lady\n");
    caller.wait_for("message");
    drop(caller.child.stdin.take());
    assert_eq!(caller.wait(), 0, "{}", caller.log());
    assert_eq!(script.report()["heard"], "M'lady");
    assert_eq!(caller.events("message")[0]["text"], "hello");
}
