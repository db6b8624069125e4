//! `xtls` in a real terminal (tmux): progress, colours, Ctrl-C, the password prompt; and the output without a terminal.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use support::process::run;
use support::programs::{Component, Options, Xtls, clean};
use support::servers::{Kind, Server};
use support::{DOMAIN, USERS, make_certificate, own_program, random_file, sha256, wait_for};

const LONG: Duration = Duration::from_secs(60);

/// A terminal of 100 columns with a command in it. It shows the exit status at the end.
pub(crate) struct Terminal {
    socket: PathBuf,
}

impl Terminal {
    pub(crate) fn start(home: &Path, command: &Command, after: &str) -> Self {
        let quoted =
            |text: &std::ffi::OsStr| format!("'{}'", text.to_str().unwrap().replace('\'', "'\\''"));
        let mut line = String::from("env");
        for (name, value) in command.get_envs() {
            let name = name.to_str().unwrap();
            match value {
                Some(value) => line += &format!(" {name}={}", quoted(value)),
                None => line += &format!(" -u {name}"),
            }
        }
        line += &format!(" {}", quoted(command.get_program()));
        for arg in command.get_args() {
            line += &format!(" {}", quoted(arg));
        }
        line += &format!("; echo exit status: $?; {after}; sleep 600");
        // A server of its own: that of an earlier one may still be ending.
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("terminal-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let this = Self { socket: home.join(name) };
        this.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "30", &line]);
        this
    }

    fn tmux(&self, args: &[&str]) -> String {
        let mut tmux = Command::new("tmux");
        tmux.env_remove("TMUX").env_remove("NO_COLOR").arg("-u").arg("-S").arg(&self.socket);
        let done = tmux.args(args).output().unwrap();
        assert!(done.status.success(), "tmux {args:?}: {done:?}");
        String::from_utf8(done.stdout).unwrap()
    }

    /// Returns the text on the screen.
    pub(crate) fn text(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-J"])
    }

    /// Returns the same with colours, as escape sequences.
    fn colours(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-J", "-e"])
    }

    fn press(&self, keys: &[&str]) {
        let mut args = vec!["send-keys"];
        args.extend(keys);
        self.tmux(&args);
    }

    pub(crate) fn wait_for(&self, text: &str) -> String {
        let mut seen = String::new();
        wait_for(
            &format!("{text:?} on the screen"),
            LONG,
            || self.text(),
            || {
                seen = self.text();
                seen.contains(text)
            },
        );
        seen
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let mut tmux = Command::new("tmux");
        let _gone = tmux.arg("-S").arg(&self.socket).arg("kill-server").output();
    }
}

#[test]
fn it_feels_right_in_a_terminal_and_is_quiet_elsewhere() {
    let server = Server::start(Kind::Prosody);
    let component = Component::start(&server, &Options { tap: true, ..Options::default() });
    let tap = component.tap.as_ref().unwrap();
    the_password_is_not_shown(&server);

    let (alice, bob) = (Xtls::with_key(&server, "alice"), Xtls::with_key(&server, "bob"));
    let file = alice.home().join("letter.bin");
    random_file(&file, 48 << 20);
    let send = alice.command(["send".as_ref(), bob.jid().as_ref(), file.as_os_str()]);

    // Progress in colour; Ctrl-C tells the peer, and tells the user what to do. The transfer stands still to be
    // watched.
    tap.hold_after(24 << 20);
    let mut listener = bob.listen(&[]);
    let terminal = Terminal::start(alice.home(), &send, "true");
    let shown = terminal.wait_for("ETA");
    assert!(shown.contains("letter.bin ") && shown.contains("/48.00 MiB"), "{shown}");
    terminal.wait_for("B/s  ETA");
    assert!(terminal.colours().contains("\x1b[36m"), "{}", terminal.colours());
    // The part is large enough to be mentioned later.
    wait_for(
        "a part",
        LONG,
        || listener.log(),
        || {
            listener
                .parts()
                .iter()
                .any(|part| part.metadata().is_ok_and(|part| part.len() > 1 << 20))
        },
    );
    terminal.press(&["C-c"]);
    let shown = terminal.wait_for("exit status: 1");
    assert!(shown.contains("error: interrupted"), "{shown}");
    assert!(shown.contains("hint: run the same command again"), "{shown}");
    assert_eq!(listener.wait(LONG), 5, "{}", listener.log());
    assert!(listener.log().contains("ended the session: cancel"), "{}", listener.log());
    tap.cut();
    drop(terminal);

    // The same without colours, to its end: then the bar is gone.
    tap.hold_after(8 << 20);
    let mut listener = bob.listen(&[]);
    let mut plain = alice.command(["send".as_ref(), bob.jid().as_ref(), file.as_os_str()]);
    plain.env("NO_COLOR", "1");
    let terminal = Terminal::start(alice.home(), &plain, "true");
    terminal.wait_for("ETA");
    assert!(!terminal.colours().contains('\x1b'), "{:?}", terminal.colours());
    tap.open();
    let shown = terminal.wait_for("exit status: 0");
    assert!(shown.contains("were there already"), "{shown}");
    assert!(!shown.contains("ETA"), "{shown}");
    assert_eq!(listener.wait(LONG), 0, "{}", listener.log());
    assert_eq!(sha256(&listener.files()[0]), sha256(&file));
    drop(terminal);

    // Without a terminal: no bar, no colour, no line that is overwritten.
    let small = alice.home().join("small.bin");
    random_file(&small, 1 << 20);
    let mut listener = bob.listen(&[]);
    let sent = alice.run(["send".as_ref(), bob.jid().as_ref(), small.as_os_str()]);
    assert_eq!((sent.code, sent.stdout.as_str()), (0, ""), "{sent:?}");
    assert!(sent.stderr.contains("small.bin: 1.00 MiB in "), "{sent:?}");
    assert!(!sent.stderr.contains(['\x1b', '\r']) && !sent.stderr.contains("ETA"), "{sent:?}");
    assert_eq!(listener.wait(LONG), 0, "{}", listener.log());
    // -q prints nothing at all on success.
    let mut listener = bob.listen(&[]);
    let sent = alice.run(["send".as_ref(), bob.jid().as_ref(), small.as_os_str(), "-q".as_ref()]);
    assert_eq!((sent.code, sent.stdout.as_str(), sent.stderr.as_str()), (0, "", ""), "{sent:?}");
    assert_eq!(listener.wait(LONG), 0, "{}", listener.log());

    // A reader that goes away is neither a failure nor a panic.
    let mut shell = Command::new("bash");
    let program = own_program("xtls");
    shell.args(["-c", "\"$0\" keys --json --ca-file \"$1\" | true; echo ${PIPESTATUS[0]}"]);
    shell.arg(&program).arg(server.ca()).env("XTLS_HOME", alice.home().join("xtls"));
    let output = run(shell, LONG);
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("0\n", ""), "{output:?}");
}

/// `fingerpost top` shows a running session in a terminal, until q; elsewhere it prints the state once.
#[test]
fn the_state_of_the_component_is_shown_live_and_as_text() {
    let server = Server::start(Kind::Prosody);
    let (options, port) = Options { tap: true, ..Options::default() }.with_pages();
    let component = Component::start(&server, &options);
    let top = |args: &[&str]| {
        let mut command = clean(&own_program("fingerpost"));
        command.arg("top").args(args).arg("-c").arg(component.config());
        command.env("FINGERPOST_HTTP__LISTEN", format!("0.0.0.0:{port}"));
        command
    };
    let idle = run(top(&[]), LONG);
    assert_eq!((idle.code, idle.stderr.as_str()), (0, ""), "{idle:?}");
    assert!(idle.stdout.contains("link up\ndatabase up\n"), "{idle:?}");
    assert!(idle.stdout.ends_with("\nsessions 0\n"), "{idle:?}");

    let (alice, bob) = (Xtls::with_key(&server, "alice"), Xtls::with_key(&server, "bob"));
    let file = alice.home().join("letter.bin");
    random_file(&file, 8 << 20);
    let tap = component.tap.as_ref().unwrap();
    tap.hold_after(4 << 20);
    let mut listener = bob.listen(&[]);
    let mut sender = alice.start(["send".as_ref(), bob.jid().as_ref(), file.as_os_str()]);
    tap.wait_until_held(|| sender.log() + &listener.log());
    let terminal = Terminal::start(alice.home(), &top(&["--every", "200ms"]), "true");
    let shown = terminal.wait_for("1 sessions, by rate");
    for text in [alice.jid(), bob.jid(), "s5b-s5b", "● link up", "sessions: 1 of", "q quit"] {
        assert!(shown.contains(text), "{text}: {shown}");
    }
    let refused = run(top(&["--json"]), LONG);
    let document: serde_json::Value = serde_json::from_str(&refused.stdout).unwrap();
    assert_eq!(document["sessions"][0]["users"], serde_json::json!([alice.jid(), bob.jid()]));
    tap.open();
    assert!(sender.wait(LONG).success() && listener.wait(LONG) == 0, "{}", listener.log());
    terminal.wait_for("0 sessions, by rate");
    terminal.press(&["q"]);
    let shown = terminal.wait_for("exit status: 0");
    assert!(!shown.contains("by rate"), "the screen is as it was: {shown}");
    drop(terminal);

    // The service goes away under it.
    let terminal = Terminal::start(alice.home(), &top(&["--every", "200ms"]), "true");
    terminal.wait_for("0 sessions, by rate");
    drop(component);
    terminal.wait_for("refused");
    terminal.press(&["C-c"]);
    terminal.wait_for("exit status: 0");
}

/// The prompt shows nothing of the password, and Ctrl-C restores the terminal.
fn the_password_is_not_shown(server: &Server) {
    let (user, password) = USERS[2];
    let home = tempfile::tempdir().unwrap();
    let mut login = clean(&own_program("xtls"));
    login
        .args(["login", &format!("{user}@{DOMAIN}"), "--server", &server.client_address()])
        .arg("--ca-file")
        .arg(server.ca())
        .env("XTLS_HOME", home.path().join("xtls"));
    for finish in [true, false] {
        let terminal = Terminal::start(home.path(), &login, "stty -a");
        terminal.wait_for(&format!("Password of {user}@{DOMAIN}:"));
        terminal.press(&["-l", password]);
        terminal.press(&[if finish { "Enter" } else { "C-c" }]);
        let (word, status) = if finish {
            ("logged in as", "exit status: 0")
        } else {
            ("interrupted", "exit status: 1")
        };
        terminal.wait_for(status);
        let shown = terminal.wait_for("echoke");
        assert!(shown.contains(word) && !shown.contains(password), "{shown}");
        for flag in [" echo ", " icanon ", "isig "] {
            assert!(shown.replace('\n', " ").contains(flag), "{flag}: {shown}");
        }
    }
}

/// The user may trust a certificate that no authority vouches for, once, and is not asked about another one in its place.
#[test]
fn an_unknown_certificate_is_asked_about_and_pinned() {
    let mut server = Server::start(Kind::Prosody);
    let _component = Component::start(&server, &Options::default());
    let (user, password) = USERS[2];
    let home = tempfile::tempdir().unwrap();
    let xtls = |args: &[&str]| {
        let mut command = clean(&own_program("xtls"));
        command.args(args).env("XTLS_HOME", home.path().join("xtls"));
        command.env("HOME", home.path()).env("XTLS_PASSWORD", password);
        command
    };
    let (jid, address) = (format!("{user}@{DOMAIN}"), server.client_address());
    let set_up = xtls(&["setup", &jid, "--server", &address]);
    for (answer, status) in [("n", "exit status: 1"), ("y", "exit status: 0")] {
        let terminal = Terminal::start(home.path(), &set_up, "true");
        let shown = terminal.wait_for("[y/N]");
        assert!(shown.contains("SHA-256 fingerprint"), "{shown}");
        let keys = run(xtls(&["keys"]), LONG);
        assert_eq!(keys.code, 2, "nothing is stored yet: {keys:?}");
        terminal.press(&[answer, "Enter"]);
        let shown = terminal.wait_for(status);
        assert_eq!(shown.contains("--trust-certificate"), answer == "n", "{shown}");
    }
    let keys = run(xtls(&["keys"]), LONG);
    assert_eq!(keys.code, 0, "{keys:?}");
    let directory = server.directory().to_owned();
    server.reconfigure(true, |text| {
        make_certificate(&directory);
        text
    });
    let terminal = Terminal::start(home.path(), &set_up, "true");
    let shown = terminal.wait_for("exit status: 1");
    assert!(
        shown.contains("is not trusted: only that with") && !shown.contains("[y/N]"),
        "{shown}"
    );
}

/// The earlier question, whose session has ended without an answer, does not take the next one's answer.
#[test]
fn a_question_that_has_ended_does_not_take_the_answer_to_the_next() {
    let server = Server::start(Kind::Prosody);
    let component = Component::start(&server, &Options::default());
    let (alice, bob) = (Xtls::with_key(&server, "alice"), Xtls::with_key(&server, "bob"));
    let (file, received) = (alice.home().join("letter.bin"), bob.home().join("received"));
    random_file(&file, 10_000);
    std::fs::create_dir(&received).unwrap();
    let mut listen = bob.command(["listen", "--confirm-sas", "--out", received.to_str().unwrap()]);
    // Without a question about a direct connection.
    listen.args(["--direct-path", "never"]);
    let terminal = Terminal::start(bob.home(), &listen, "true");
    terminal.wait_for("listening as");
    let send = || alice.start(["send".as_ref(), bob.jid().as_ref(), file.as_os_str()]);
    let asked = |times: usize, sender: &str| {
        let shown = || terminal.text();
        let logs = || format!("{}\n{sender}\n{}", terminal.text(), component.log());
        wait_for("the question", LONG, logs, || shown().matches("[y/N]").count() == times);
    };
    let mut sender = send();
    asked(1, &sender.log());
    sender.signal("INT");
    terminal.wait_for("ended the session");
    assert_eq!(sender.wait(LONG).code(), Some(1), "{}", sender.log());
    let mut sender = send();
    asked(2, &sender.log());
    terminal.press(&["y", "Enter"]);
    assert_eq!(sender.wait(LONG).code(), Some(0), "{}\n{}", sender.log(), terminal.text());
    assert_eq!(sha256(&received.join("letter.bin")), sha256(&file));
}

/// Two further devices of a peer call at once, and the user is asked about the first. The other one needs no question: the user
/// sets its public key meanwhile.
#[test]
fn a_key_whose_public_key_is_set_while_it_waits_for_its_question_is_not_asked_about() {
    let server = Server::start(Kind::Prosody);
    let component = Component::start(&server, &Options::default());
    let (alice, bob) = (Xtls::with_key(&server, "alice"), Xtls::with_key(&server, "bob"));
    let device = || {
        let device = Xtls::login(&server, "bob");
        for command in ["keygen", "prove"] {
            let done = device.run([command]);
            assert_eq!(done.code, 0, "{command}: {done:?}");
        }
        device
    };
    let (laptop, tablet) = (device(), device());
    let (received, events) = (alice.home().join("received"), alice.home().join("events"));
    std::fs::create_dir(&received).unwrap();
    let mut listen = alice.command(["listen", "--json", "--out", received.to_str().unwrap()]);
    listen.args(["--direct-path", "never"]);
    // The events go to a file, the question to the terminal.
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$@\" > \"$0\""]).arg(&events);
    shell.arg(listen.get_program()).args(listen.get_args());
    shell.env("XTLS_HOME", alice.home().join("xtls"));
    let terminal = Terminal::start(alice.home(), &shell, "true");
    let count = |name: &str| {
        let name = format!("\"event\":\"{name}\"");
        support::process::read(&events).matches(&name).count()
    };
    let logs = || format!("{}\n{}", terminal.text(), component.log());
    wait_for("listening", LONG, logs, || count("listening") == 1);
    let send = |device: &Xtls| {
        let file = device.home().join("letter.bin");
        random_file(&file, 10_000);
        device.start(["send".as_ref(), alice.jid().as_ref(), file.as_os_str()])
    };
    let mut sender = send(&bob);
    assert_eq!(sender.wait(LONG).code(), Some(0), "{}\n{}", sender.log(), logs());

    let mut first = send(&laptop);
    terminal.wait_for("[y/N]");
    let mut second = send(&tablet);
    wait_for("two further devices", LONG, logs, || count("new_device") == 2);
    let cert = tablet.home().join("xtls").join(tablet.jid()).join("cert.pem");
    let hash =
        "openssl x509 -in \"$0\" -noout -pubkey | openssl pkey -pubin -outform der | sha256sum";
    let mut openssl = Command::new("sh");
    openssl.args(["-c", hash]).arg(cert);
    let spki = run(openssl, LONG).stdout;
    let spki = spki.split(' ').next().unwrap();
    let set = alice.run(["trust", "set", bob.jid(), spki]);
    assert_eq!(set.code, 0, "{set:?}");
    terminal.press(&["y", "Enter"]);
    for sender in [&mut first, &mut second] {
        assert_eq!(sender.wait(LONG).code(), Some(0), "{}\n{}", sender.log(), logs());
    }
    wait_for("three files", LONG, logs, || count("done") == 3);
    assert_eq!(terminal.text().matches("[y/N]").count(), 1, "{}", terminal.text());
    let known = alice.run(["trust", "list"]).stdout;
    assert_eq!(known.lines().count(), 3, "{known}");
}
