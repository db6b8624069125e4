//! Files for a peer that knows a code: `xtls send --code` and `xtls receive`, between accounts without keys.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use support::process::{Output, Process, run};
use support::programs::{Component, Options, Xtls, event};
use support::servers::{FAR_DOMAIN, Federation, Kind, Server};
use support::{MARKER, random_file, sha256, wait_for};

const LIMIT: Duration = Duration::from_secs(120);
/// The name of the file, which no stanza may have.
const NAME: &str = "salaries-of-december.ods";
/// Its size. The sizes of stanzas are other numbers.
const SIZE: usize = 3_141_593;

/// Three users who have accounts, and no keys.
struct Scene {
    // Dropped before the server.
    component: Component,
    alice: Xtls,
    bob: Xtls,
    carol: Xtls,
    server: Server,
}

impl Scene {
    fn start(kind: Kind) -> Self {
        let server = Server::start(kind).with_stanzas_recorded();
        let options = Options {
            tap: true,
            more: "[log]\nlevel = \"trace\"\n".to_owned(),
            ..Options::default()
        };
        let component = Component::start(&server, &options);
        let [alice, bob, carol] = ["alice", "bob", "carol"].map(|user| Xtls::login(&server, user));
        Self { component, alice, bob, carol, server }
    }

    /// Makes alice's file.
    fn file(&self) -> PathBuf {
        let file = self.alice.home().join(NAME);
        random_file(&file, SIZE);
        file
    }

    /// Lets alice send these files, and waits for the code.
    fn send(&self, files: &[&Path], more: &[&str]) -> Sender {
        send(&self.alice, files, more)
    }

    /// Nothing about the files, and no words, have passed the server or the component.
    fn nothing_was_told(&self, codes: &[&str]) {
        let logs = [(self.server.log(), "server"), (self.component.log(), "component")];
        assert!(logs[0].0.contains("urn:fingerpost:code:0"), "the server logs no stanzas");
        for (log, of) in logs {
            for secret in [NAME, MARKER, &SIZE.to_string()] {
                assert!(!log.contains(secret), "the {of} knows {secret}");
            }
            for code in codes {
                let words = code.split_once('-').unwrap().1;
                assert!(!log.contains(words), "the {of} knows the code");
            }
        }
    }
}

struct Sender {
    process: Process,
    code: String,
}

impl Sender {
    fn wait(&mut self) -> i32 {
        self.process.wait(LIMIT).code().unwrap_or(-1)
    }

    fn log(&self) -> String {
        self.process.log()
    }

    /// Returns the code with another last word.
    fn wrong(&self) -> String {
        let (start, last) = self.code.rsplit_once('-').unwrap();
        format!("{start}-{}", if last == "zoo" { "abandon" } else { "zoo" })
    }
}

/// Lets a user send these files, and waits for the code.
fn send(user: &Xtls, files: &[&Path], more: &[&str]) -> Sender {
    let log = user.home().join("send.log");
    let _old = fs::remove_file(&log);
    let mut command = user.command(["send", "--json"]);
    command.args(more).arg("--code").args(files);
    let process = Process::start(command, &log);
    wait_for("a code", LIMIT, || process.log(), || event(&process.log(), "code").is_some());
    let code = event(&process.log(), "code").unwrap();
    let text = code["code"].as_str().unwrap().to_owned();
    let dashes = if text.starts_with('-') { "-- " } else { "" };
    assert_eq!(code["command"], format!("xtls receive {dashes}{text}"));
    Sender { process, code: text }
}

fn inbox(user: &Xtls) -> PathBuf {
    user.home().join("inbox")
}

fn receive_command(user: &Xtls, code: &str, more: &[&str]) -> Command {
    let mut command = user.command(["receive", "--json"]);
    // A user without an account may have a name that begins with a hyphen.
    command.arg("--out").arg(inbox(user)).args(more).args(["--", code]);
    command
}

fn receive(user: &Xtls, code: &str, more: &[&str]) -> Output {
    run(receive_command(user, code, more), LIMIT)
}

/// Returns the files that a user has received.
fn received(user: &Xtls) -> Vec<PathBuf> {
    let found = fs::read_dir(inbox(user)).into_iter().flatten().flatten();
    let mut found: Vec<_> = found.map(|entry| entry.path()).collect();
    found.sort();
    found
}

fn whoever_knows_the_code_gets_the_file_once(kind: Kind) {
    let scene = Scene::start(kind);
    let file = scene.file();
    let mut codes = Vec::new();
    for (user, more) in [
        (&scene.bob, &[][..]),
        (&scene.carol, &["--transport", "ibb"]),
        // Past the component.
        (&scene.bob, &["--direct"]),
    ] {
        let _old = fs::remove_dir_all(inbox(user));
        let mut sender = scene.send(&[&file], &[]);
        assert!(sender.code.starts_with("alice@example.test/"), "{}", sender.code);
        let got = receive(user, &sender.code, more);
        let logs = || format!("{got:?}\n{}\n{}", sender.log(), scene.component.log());
        assert_eq!(got.code, 0, "{more:?}: {}", logs());
        let secured = event(&got.stdout, "secured").unwrap();
        assert_eq!(secured["method"], "srp", "{secured}");
        assert_eq!(received(user), [inbox(user).join(NAME)]);
        assert_eq!(sha256(&received(user)[0]), sha256(&file));
        assert_eq!(sender.wait(), 0, "{}", sender.log());
        assert_eq!(event(&sender.log(), "secured").unwrap()["peer"], user.jid());
        assert!(event(&sender.log(), "done").is_some(), "{}", sender.log());
        // The sender is gone, and the code with it.
        let again = receive(user, &sender.code, more);
        assert_eq!(again.code, 3, "{again:?}");
        assert!(again.stderr.contains("nobody waits with this code"), "{again:?}");
        codes.push(sender.code);
    }
    let codes: Vec<_> = codes.iter().map(String::as_str).collect();
    scene.nothing_was_told(&codes);
}

/// Each stanza crosses from server to server. The component is at one of them.
#[test]
fn a_code_is_good_for_a_user_of_another_server() {
    let servers = Federation::start();
    let more = format!("[access]\nusers = [\"example.test\", \"{FAR_DOMAIN}\"]\n");
    let component = Component::start(&servers.near, &Options { more, ..Options::default() });
    let alice = Xtls::login(&servers.near, "alice");
    let bob = Xtls::login_as(&servers.far, &format!("bob@{FAR_DOMAIN}"));
    for (from, to) in [(&alice, &bob), (&bob, &alice)] {
        let file = from.home().join(NAME);
        random_file(&file, SIZE);
        let mut sender = send(from, &[&file], &[]);
        let wrong = receive(to, &sender.wrong(), &[]);
        assert_eq!(wrong.code, 4, "{wrong:?}\n{}", component.log());
        let got = receive(to, &sender.code, &[]);
        assert_eq!(got.code, 0, "{got:?}\n{}\n{}", sender.log(), component.log());
        assert_eq!(sender.wait(), 0, "{}", sender.log());
        assert_eq!(sha256(&inbox(to).join(NAME)), sha256(&file));
    }
}

fn three_wrong_codes_end_the_sender(kind: Kind) {
    let scene = Scene::start(kind);
    let file = scene.file();
    let mut sender = scene.send(&[&file], &[]);
    for (n, user) in [&scene.bob, &scene.carol, &scene.bob].into_iter().enumerate() {
        let got = receive(user, &sender.wrong(), &[]);
        assert_eq!(got.code, 4, "{got:?}\n{}", sender.log());
        assert!(got.stderr.contains("the words are not the sender's"), "{got:?}");
        wait_for(
            "the report of a wrong code",
            LIMIT,
            || sender.log(),
            || sender.log().matches("\"wrong_code\"").count() == n + 1,
        );
    }
    assert_eq!(sender.wait(), 4, "{}", sender.log());
    assert!(sender.log().contains("3 wrong codes were tried"), "{}", sender.log());
    let wrong = event(&sender.log(), "wrong_code").unwrap();
    assert_eq!(
        (wrong["peer"].as_str(), wrong["left"].as_u64()),
        (Some("bob@example.test"), Some(2))
    );
    // The right one comes too late.
    let got = receive(&scene.bob, &sender.code, &[]);
    assert_eq!(got.code, 3, "{got:?}");
    assert!(received(&scene.bob).is_empty() && received(&scene.carol).is_empty());
    scene.nothing_was_told(&[&sender.code]);

    // Two wrong ones do not: the third is right.
    let mut sender = scene.send(&[&file], &[]);
    for _ in 0..2 {
        assert_eq!(receive(&scene.carol, &sender.wrong(), &[]).code, 4);
    }
    let got = receive(&scene.bob, &sender.code, &[]);
    assert_eq!(got.code, 0, "{got:?}\n{}", sender.log());
    assert_eq!(sender.wait(), 0, "{}", sender.log());
    assert_eq!(sha256(&received(&scene.bob)[0]), sha256(&file));
    scene.nothing_was_told(&[&sender.code]);
}

fn a_second_receiver_comes_too_late(kind: Kind) {
    let scene = Scene::start(kind);
    let file = scene.file();
    let mut sender = scene.send(&[&file], &[]);
    let tap = scene.component.tap.as_ref().unwrap();
    tap.hold_after(500_000);
    let log = scene.bob.home().join("receive.log");
    let mut first = Process::start(receive_command(&scene.bob, &sender.code, &[]), &log);
    tap.wait_until_held(|| format!("{}\n{}", first.log(), sender.log()));
    let second = receive(&scene.carol, &sender.code, &[]);
    assert_eq!(second.code, 5, "{second:?}");
    assert!(second.stderr.contains("the code may have been used just now"), "{second:?}");
    tap.open();
    assert_eq!(first.wait(LIMIT).code(), Some(0), "{}", first.log());
    assert_eq!(sender.wait(), 0, "{}", sender.log());
    assert_eq!(sha256(&received(&scene.bob)[0]), sha256(&file));
    assert!(received(&scene.carol).is_empty());
}

fn directories_and_several_files_go_with_one_code() {
    let scene = Scene::start(Kind::Prosody);
    let notes = scene.alice.home().join("notes");
    fs::create_dir_all(notes.join("old")).unwrap();
    random_file(&notes.join("old/a.txt"), 1000);
    fs::write(notes.join("b.txt"), "").unwrap();
    let file = scene.file();
    let missing = scene.alice.home().join("missing");
    let mut sender = scene.send(&[&notes, &file, &missing], &[]);
    // As somebody types what was read aloud.
    let spoken = sender
        .code
        .replace('-', " ")
        .to_uppercase()
        .replace("ALICE@EXAMPLE.TEST", "Alice@Example.Test");
    let got = receive(&scene.bob, &spoken, &["--max-size", "1M"]);
    assert_eq!(got.code, 1, "{got:?}\n{}", sender.log());
    assert!(got.stderr.contains("1 files were not received"), "{got:?}");
    assert_eq!(
        sha256(&inbox(&scene.bob).join("notes/old/a.txt")),
        sha256(&notes.join("old/a.txt"))
    );
    assert!(inbox(&scene.bob).join("notes/b.txt").exists());
    assert!(!inbox(&scene.bob).join(NAME).exists());
    // The first failure decides: one cannot be read.
    assert_eq!(sender.wait(), 2, "{}", sender.log());
    let summary = event(&sender.log(), "summary").unwrap();
    assert_eq!((summary["files"].as_u64(), summary["sent"].as_u64()), (Some(4), Some(2)));
}

fn a_broken_transfer_goes_on_with_a_new_code() {
    let scene = Scene::start(Kind::Prosody);
    let file = scene.file();
    let mut sender = scene.send(&[&file], &[]);
    let tap = scene.component.tap.as_ref().unwrap();
    tap.hold_after(2_500_000);
    let log = scene.bob.home().join("receive.log");
    let mut first = Process::start(receive_command(&scene.bob, &sender.code, &[]), &log);
    // Two chunks are on the disk.
    let stored = || {
        let mut left = vec![inbox(&scene.bob)];
        let mut bytes = 0;
        while let Some(next) = left.pop() {
            for entry in fs::read_dir(next).into_iter().flatten().flatten() {
                match entry.metadata() {
                    Ok(found) if found.is_dir() => left.push(entry.path()),
                    Ok(found) => bytes += found.len(),
                    Err(_) => {}
                }
            }
        }
        bytes
    };
    wait_for(
        "two chunks",
        LIMIT,
        || format!("{}\n{}", first.log(), sender.log()),
        || stored() >= 2 << 20,
    );
    first.signal("KILL");
    first.wait(LIMIT);
    tap.open();
    assert_eq!(sender.wait(), 1, "{}", sender.log());
    let mut sender = scene.send(&[&file], &[]);
    let got = receive(&scene.bob, &sender.code, &[]);
    assert_eq!(got.code, 0, "{got:?}\n{}", sender.log());
    assert_eq!(sender.wait(), 0, "{}", sender.log());
    assert_eq!(sha256(&inbox(&scene.bob).join(NAME)), sha256(&file));
    assert_eq!(event(&got.stdout, "done").unwrap()["resumed"], 2 << 20);
}

fn a_sender_that_gives_up_is_gone_at_once() {
    let scene = Scene::start(Kind::Prosody);
    let file = scene.file();
    // Nobody comes.
    let mut sender = scene.send(&[&file], &["--wait", "1s"]);
    assert_eq!(sender.wait(), 3, "{}", sender.log());
    assert!(sender.log().contains("nobody has used the code within"), "{}", sender.log());
    // The user stops it.
    let mut sender = scene.send(&[&file], &[]);
    sender.process.signal("INT");
    assert_eq!(sender.wait(), 1, "{}", sender.log());
    assert!(sender.log().contains("the code is no longer valid"), "{}", sender.log());
    let got = receive(&scene.bob, &sender.code, &[]);
    assert_eq!(got.code, 3, "{got:?}");
    // Another number leads to nobody.
    let sender = scene.send(&[&file], &[]);
    let (address, rest) = sender.code.split_once('/').unwrap();
    let (number, words) = rest.split_once('-').unwrap();
    let other = if number == "1" { 2 } else { 1 };
    let got = receive(&scene.bob, &format!("{address}/{other}-{words}"), &[]);
    assert_eq!(got.code, 3, "{got:?}");
    // A mistyped word is noticed before anything is sent.
    let got = receive(&scene.bob, &format!("{address}/{number}-abandn-zoo-zoo"), &[]);
    assert_eq!(got.code, 2, "{got:?}");
    assert!(got.stderr.contains("did the sender say \"abandon\"?"), "{got:?}");
    assert!(!sender.log().contains("wrong_code"), "{}", sender.log());
}

/// Two programs without an account, and one with one.
fn nobody_needs_an_account_where_the_server_takes_anyone() {
    const ANYONE: &str = "anon.example.test";
    let mut server = Server::start(Kind::Prosody);
    server.reconfigure(true, |text| {
        format!("{text}\nVirtualHost \"{ANYONE}\"\n\tauthentication = \"anonymous\"\n")
    });
    let login = |user: &Xtls| user.run(["login", user.jid(), "--server", &server.client_address()]);
    let [first, second] = [(); 2].map(|()| {
        let user = Xtls::new(&server, ANYONE);
        let done = login(&user);
        assert_eq!(done.code, 0, "{done:?}");
        user
    });
    let alice = Xtls::login(&server, "alice");
    for (from, to) in [(&first, &second), (&alice, &second), (&first, &alice)] {
        let file = from.home().join(NAME);
        random_file(&file, 100_000);
        let mut sender = send(from, &[&file], &[]);
        let got = receive(to, &sender.code, &["--direct"]);
        assert_eq!(got.code, 0, "{got:?}\n{}", sender.log());
        assert_eq!(sender.wait(), 0, "{}", sender.log());
        assert_eq!(sha256(&received(to)[0]), sha256(&file));
        fs::remove_dir_all(inbox(to)).unwrap();
    }
    // Nobody could recognize it again, so it is nothing else.
    let listening = first.run(["listen"]);
    assert_eq!(listening.code, 2, "{listening:?}");
    // A server that knows its users does not take it.
    let refused = login(&Xtls::new(&server, "example.test"));
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("offers no login method that xtls has"), "{refused:?}");
}

support::on_both!(
    whoever_knows_the_code_gets_the_file_once,
    three_wrong_codes_end_the_sender,
    a_second_receiver_comes_too_late,
);

// The XMPP server plays no part in these tests.

#[test]
fn prosody_directories_and_several_files_go_with_one_code() {
    directories_and_several_files_go_with_one_code();
}

#[test]
fn prosody_a_sender_that_gives_up_is_gone_at_once() {
    a_sender_that_gives_up_is_gone_at_once();
}

#[test]
fn prosody_nobody_needs_an_account_where_the_server_takes_anyone() {
    nobody_needs_an_account_where_the_server_takes_anyone();
}

#[test]
fn prosody_a_broken_transfer_goes_on_with_a_new_code() {
    a_broken_transfer_goes_on_with_a_new_code();
}
