//! What `xtls` stores, accepts and prints: shared files under many processes, sizes, names, outputs that cannot be
//! written. On a real Prosody.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use support::process::{Process, run};
use support::programs::{Component, Options, Xtls, clean, event};
use support::servers::{Kind, Server};
use support::{own_program, random_file, sha256, wait_for};

const LONG: Duration = Duration::from_secs(120);
const MIB: usize = 1 << 20;

/// An account that never logs in: its directory, as `xtls` would make it.
struct Account {
    home: tempfile::TempDir,
}

impl Account {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("xtls/alice@example.test");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("account.toml"), "jid = 'alice@example.test'\npassword = 'x'\n")
            .unwrap();
        Self { home }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = clean(&own_program("xtls"));
        command.args(args).env("XTLS_HOME", self.home.path().join("xtls"));
        command
    }

    fn trust(&self) -> PathBuf {
        self.home.path().join("xtls/alice@example.test/trust.toml")
    }
}

#[test]
fn keys_that_many_processes_keep_at_once_are_all_kept() {
    let account = Account::new();
    let print = "AB:".repeat(32);
    let print = print.trim_end_matches(':');
    let mut children: Vec<_> = (0..32)
        .map(|n| {
            let peer = format!("peer{n}@example.test");
            account.command(&["trust", "set", &peer, print]).spawn().unwrap()
        })
        .collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    let listed = run(account.command(&["trust", "list"]), LONG);
    assert_eq!(listed.stdout.lines().count(), 32, "{listed:?}");
}

#[test]
fn many_keygens_at_once_make_one_key() {
    let account = Account::new();
    let mut children: Vec<_> = (0..8)
        .map(|_| {
            let mut command = account.command(&["keygen"]);
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    let made = children.iter_mut().filter_map(|child| child.wait().unwrap().code());
    assert_eq!(made.filter(|code| *code == 0).count(), 1);
}

#[test]
fn a_broken_store_of_known_peers_is_told_and_left_as_it_is() {
    let account = Account::new();
    for text in ["", "[\"bob@example.test\"]\nx509 = \"AB:"] {
        fs::write(account.trust(), text).unwrap();
        for args in [
            &["trust", "list"][..],
            &["trust", "forget", "bob@example.test"],
            &["trust", "set", "bob@example.test", &"AB".repeat(32)],
        ] {
            let output = run(account.command(args), LONG);
            assert_eq!(output.code, 1, "{args:?}: {output:?}");
            assert!(output.stderr.contains("trust.toml: "), "{output:?}");
            assert!(output.stderr.contains("hint: restore "), "{output:?}");
        }
        assert_eq!(fs::read_to_string(account.trust()).unwrap(), text);
    }
    // What cannot be read now may be whole.
    fs::remove_file(account.trust()).unwrap();
    fs::create_dir(account.trust()).unwrap();
    let output = run(account.command(&["trust", "list"]), LONG);
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.stderr.contains("trust.toml: cannot be read: "), "{output:?}");
    assert!(output.stderr.contains("keep it") && !output.stderr.contains("restore"), "{output:?}");
}

/// A file that a full disk or a crash has truncated is not a shorter list of peers.
#[test]
fn a_store_that_was_cut_off_between_two_peers_is_refused() {
    let account = Account::new();
    for peer in ["alex@example.test", "bob@example.test"] {
        let set = account.command(&["trust", "set", peer, &"AB".repeat(32)]).status().unwrap();
        assert!(set.success());
    }
    let whole = fs::read_to_string(account.trust()).unwrap();
    let cut = whole.find("[[\"bob@example.test\"").unwrap();
    fs::write(account.trust(), &whole[..cut]).unwrap();
    let listed = run(account.command(&["trust", "list"]), LONG);
    assert_eq!((listed.code, listed.stdout.as_str()), (1, ""), "{listed:?}");
    assert!(listed.stderr.contains("found a file that was cut off"), "{listed:?}");
    assert!(listed.stderr.contains("hint: restore "), "{listed:?}");
}

/// `trust set` adds a key. A store of an earlier version is read and upgraded without loss.
#[test]
fn keys_are_added_and_forgotten_one_by_one() {
    let account = Account::new();
    let old = format!("[\"bob@example.test\"]\nx509 = \"{}\"\n", "AB".repeat(32));
    fs::write(account.trust(), old).unwrap();
    let trust = |args: &[&str]| run(account.command(&[&["trust"], args].concat()), LONG);
    let [first, second] = ["AB", "CD"].map(|byte| vec![byte; 32].join(":"));
    let added = trust(&["set", "--label", "laptop", "bob@example.test", &second]);
    assert_eq!(added.code, 0, "{added:?}");
    let listed = trust(&["list"]).stdout;
    let lines: Vec<_> = listed.lines().collect();
    assert_eq!(lines[0], format!("bob@example.test  x509  {first}"));
    assert!(
        lines[1]
            .starts_with(&format!("bob@example.test  x509  {second}  \"laptop\"  first seen 20"))
    );
    assert!(lines[1].ends_with("  set by hand"), "{listed}");
    let forgotten = trust(&["forget", "bob@example.test", &first]);
    assert_eq!((forgotten.code, trust(&["list"]).stdout.lines().count()), (0, 1));
    let unknown = trust(&["forget", "bob@example.test", &first]);
    assert_eq!(unknown.code, 1, "{unknown:?}");
    assert!(unknown.stderr.contains("is not known by the key"), "{unknown:?}");
    assert_eq!(trust(&["forget", "bob@example.test"]).code, 0);
    assert_eq!(trust(&["list"]).stdout, "");
}

/// A failed write to standard output is an error; a reader that has gone away changes nothing.
#[test]
fn what_cannot_be_written_is_an_error_and_a_closed_pipe_is_not() {
    let account = Account::new();
    let set = ["trust", "set", "bob@example.test", &"AB".repeat(32)];
    assert_eq!(run(account.command(&set), LONG).code, 0);
    let directory = tempfile::tempdir().unwrap();
    let component = |args: &[&str]| {
        let mut command = clean(&own_program("fingerpost"));
        command.args(args).current_dir(directory.path());
        command
    };
    let commands: [&dyn Fn() -> Command; 8] = [
        &|| account.command(&["trust", "list"]),
        &|| account.command(&["trust", "list", "--json"]),
        &|| account.command(&["--version"]),
        &|| account.command(&["send", "--help"]),
        &|| component(&["completions", "bash"]),
        &|| component(&["config"]),
        &|| component(&["--help"]),
        &|| component(&["--version"]),
    ];
    for (n, command) in commands.iter().enumerate() {
        let mut full = command();
        let full = full.stdout(File::options().write(true).open("/dev/full").unwrap());
        let output = full.output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{n}: {text}");
        let sentence = "error: standard output: cannot be written: No space left on device";
        assert!(text.starts_with(sentence) && text.lines().count() == 1, "{n}: {text}");

        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command().stdout(writer).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), text.as_str()), (Some(0), ""), "{n}");
    }
}

struct Scene {
    _component: Component,
    alice: Xtls,
    bob: Xtls,
    server: Server,
}

impl Scene {
    fn start() -> Self {
        let server = Server::start(Kind::Prosody);
        let component = Component::start(&server, &Options::default());
        let (alice, bob) = (Xtls::with_key(&server, "alice"), Xtls::with_key(&server, "bob"));
        Self { _component: component, alice, bob, server }
    }
}

/// Six senders of one account to two new peers, while the same account listens: each succeeds, and each peer is stored.
#[test]
fn many_senders_of_one_account_beside_its_listener() {
    let scene = Scene::start();
    let carol = Xtls::with_key(&scene.server, "carol");
    let receivers = [&scene.bob, &carol];
    let inbox = |user: &Xtls| {
        let dir = user.home().join("received");
        fs::create_dir_all(&dir).unwrap();
        dir
    };
    let listen = |user: &Xtls| {
        let dir = inbox(user);
        let process = user.start(["listen", "--json", "--out", dir.to_str().unwrap()]);
        wait_for(
            "listening",
            LONG,
            || process.log(),
            || event(&process.log(), "listening").is_some(),
        );
        process
    };
    let listening = [listen(&scene.bob), listen(&carol), listen(&scene.alice)];
    let file = scene.alice.home().join("letter.bin");
    random_file(&file, 200_000);
    let senders: Vec<_> = (0..6)
        .map(|n| {
            let mut command = scene.alice.command(["send", receivers[n % 2].jid()]);
            command.arg(&file);
            Process::start(command, &scene.alice.home().join(format!("send-{n}.log")))
        })
        .collect();
    // Others contact the same account meanwhile.
    let back = scene.bob.run([OsStr::new("send"), scene.alice.jid().as_ref(), file.as_os_str()]);
    assert_eq!(back.code, 0, "{back:?}");
    for mut sender in senders {
        assert_eq!(sender.wait(LONG).code(), Some(0), "{}", sender.log());
    }
    for user in receivers {
        assert_eq!(fs::read_dir(inbox(user)).unwrap().count(), 3);
    }
    let known = scene.alice.run(["trust", "list"]).stdout;
    for user in receivers {
        assert!(known.contains(user.jid()), "{known}");
    }
    drop(listening);
}

#[test]
fn a_broken_store_lets_nothing_out_and_nothing_in() {
    let scene = Scene::start();
    let file = scene.alice.home().join("letter.bin");
    random_file(&file, 100_000);
    let store = |user: &Xtls| user.home().join("xtls").join(user.jid()).join("trust.toml");
    for broken in [&scene.alice, &scene.bob] {
        fs::write(store(broken), "").unwrap();
        let mut listener = scene.bob.listen(&[]);
        let sent =
            scene.alice.run([OsStr::new("send"), scene.bob.jid().as_ref(), file.as_os_str()]);
        assert_ne!(sent.code, 0, "{sent:?}");
        assert_ne!(listener.wait(LONG), 0, "{}", listener.log());
        let log = if broken.jid() == scene.alice.jid() { sent.stderr } else { listener.log() };
        assert!(log.contains("trust.toml: expected known peers, found an empty file"), "{log}");
        assert_eq!(listener.files().len(), 0);
        fs::remove_file(store(broken)).unwrap();
    }
}

/// Characters that XML cannot carry are replaced in a name before it is sent; the file arrives.
#[test]
fn names_that_xml_cannot_carry_are_sent_with_replacements() {
    let scene = Scene::start();
    for name in [&b"a\x01b.txt"[..], b"c\xffd.txt", b"e\x1b[2Jf.txt", b"\xef\xbf\xbe.txt"] {
        let file = scene.alice.home().join(OsStr::from_bytes(name));
        random_file(&file, 10_000);
        let mut listener = scene.bob.listen(&[]);
        let sent =
            scene.alice.run([OsStr::new("send"), scene.bob.jid().as_ref(), file.as_os_str()]);
        assert_eq!(sent.code, 0, "{sent:?}\n{}", listener.log());
        assert_eq!(listener.wait(LONG), 0, "{}", listener.log());
        let [arrived] = &listener.files()[..] else { panic!("{:?}", listener.files()) };
        assert_eq!(sha256(arrived), sha256(&file));
        assert!(arrived.to_str().unwrap().ends_with(".txt"), "{arrived:?}");
        fs::remove_file(arrived).unwrap();
    }
    for args in
        [&["register", "--label", "a\u{1}b"][..], &["revoke", "id", "--reason", "a\u{fffe}b"]]
    {
        let refused = scene.alice.run(args);
        assert_eq!(refused.code, 2, "{refused:?}");
        assert!(refused.stderr.contains("that XML can carry"), "{refused:?}");
    }
}

#[test]
fn a_file_that_is_too_large_is_refused_with_a_reason_before_it_is_sent() {
    let scene = Scene::start();
    let file = scene.alice.home().join("letter.bin");
    random_file(&file, 2 * MIB);
    let mut listener = scene.bob.listen(&["--max-size", "1M"]);
    let sent = scene.alice.run([OsStr::new("send"), scene.bob.jid().as_ref(), file.as_os_str()]);
    assert_eq!(sent.code, 5, "{sent:?}");
    assert!(sent.stderr.contains("2.00 MiB and at most 1.00 MiB are taken"), "{sent:?}");
    assert_eq!(listener.wait(LONG), 5, "{}", listener.log());
    assert!(event(&listener.log(), "secured").is_none(), "{}", listener.log());
}

/// Text from others in the registry cannot control a terminal, as text and as JSON.
#[test]
fn a_label_of_another_user_is_escaped() {
    let scene = Scene::start();
    let label = "a\u{202e}b\u{2028}c\u{feff}\u{e0041}é";
    let carol = Xtls::login(&scene.server, "carol");
    assert_eq!(carol.run(["keygen"]).code, 0);
    let registered = carol.run(["register", "--label", label]);
    assert_eq!(registered.code, 0, "{registered:?}");
    for more in [&[][..], &["--json"]] {
        let listed = scene.bob.run([&["keys", carol.jid()], more].concat());
        assert_eq!(listed.code, 0, "{listed:?}");
        let invisible = |c: char| matches!(c, '\u{202e}' | '\u{2028}' | '\u{feff}' | '\u{e0041}');
        assert!(!listed.stdout.contains(invisible), "{listed:?}");
        assert!(listed.stdout.contains("abc"), "the rest of it is there: {listed:?}");
    }
}

/// A key that the component refuses is the peer's, or our own; the sentence names the component, which refuses it.
#[test]
fn a_revoked_key_that_the_component_refuses_is_not_verified() {
    let scene = Scene::start();
    let listed = scene.bob.run(["keys", "--json"]).stdout;
    let key: serde_json::Value = serde_json::from_str(listed.lines().next().unwrap()).unwrap();
    assert_eq!(scene.bob.run(["revoke", key["id"].as_str().unwrap()]).code, 0);
    let file = scene.alice.home().join("letter.bin");
    random_file(&file, 100_000);
    let listener = scene.bob.listen_on(&[]);
    let sent = scene.alice.run([OsStr::new("send"), scene.bob.jid().as_ref(), file.as_os_str()]);
    assert_eq!(sent.code, 4, "{sent:?}");
    for words in ["xtls.example.test ended the session", "which was revoked", "nothing was sent"] {
        assert!(sent.stderr.contains(words), "{words}: {sent:?}");
    }
    assert!(listener.files().is_empty(), "{}", listener.log());
    let _waiting = scene.alice.listen_on(&[]);
    let sent = scene.bob.run([OsStr::new("send"), scene.alice.jid().as_ref(), file.as_os_str()]);
    assert_eq!(sent.code, 5, "{sent:?}");
    assert!(sent.stderr.contains("xtls.example.test ended the session"), "{sent:?}");
    assert!(!sent.stderr.contains("alice@example.test ended"), "{sent:?}");
}

#[test]
fn a_server_and_a_component_are_not_peers() {
    let scene = Scene::start();
    let file = scene.alice.home().join("letter.bin");
    random_file(&file, 10_000);
    let file = file.to_str().unwrap();
    for (peer, what) in [
        ("xtls.example.test", "the component itself"),
        ("xtls.example.test/x", "the component itself"),
        ("example.test", "a server"),
    ] {
        for args in [&["send", peer, file][..], &["pipe", peer], &["chat", peer]] {
            let refused = scene.alice.run(args);
            assert_eq!(refused.code, 2, "{args:?}: {refused:?}");
            let words = format!("expected a user, found the address of {what}");
            assert!(refused.stderr.contains(&words), "{refused:?}");
            assert!(refused.stderr.contains("hint: name the person"), "{refused:?}");
        }
    }
}

/// The component that is missing, or refuses, is named; the peer is not blamed.
#[test]
fn a_refusal_of_the_component_names_the_component() {
    let server = Server::start(Kind::Prosody);
    let more = "[access]\nusers = [\"bob@example.test\"]\n".to_owned();
    let _component = Component::start(&server, &Options { more, ..Options::default() });
    let alice = Xtls::login(&server, "alice");
    assert_eq!(alice.run(["keygen"]).code, 0);
    let file = alice.home().join("letter.bin");
    random_file(&file, 10_000);
    let file = file.to_str().unwrap();
    let sent = alice.run(["send", "bob@example.test", file]);
    assert_eq!(sent.code, 5, "{sent:?}");
    assert!(sent.stderr.contains("xtls.example.test refuses: forbidden"), "{sent:?}");
    for args in [&["send", "bob@example.test", file][..], &["keys"]] {
        let missing = alice.run([args, &["--via", "nosuch.example.org"]].concat());
        assert_eq!(missing.code, 3, "{missing:?}");
        let words = "error: nosuch.example.org cannot be reached from your XMPP server";
        assert!(missing.stderr.contains(words), "{missing:?}");
    }
}

/// The sender does not learn the paths of the receiver.
#[test]
fn a_directory_that_is_gone_is_told_to_its_owner_only() {
    let scene = Scene::start();
    let file = scene.alice.home().join("letter.bin");
    random_file(&file, 10_000);
    let mut listener = scene.bob.listen(&[]);
    fs::remove_dir_all(scene.bob.home().join("received")).unwrap();
    let sent = scene.alice.run([OsStr::new("send"), scene.bob.jid().as_ref(), file.as_os_str()]);
    assert_ne!(sent.code, 0, "{sent:?}");
    assert!(sent.stderr.contains("the file cannot be stored here"), "{sent:?}");
    assert!(!sent.stderr.contains("received"), "{sent:?}");
    assert_ne!(listener.wait(LONG), 0);
    assert!(listener.log().contains("received: No such file or directory"), "{}", listener.log());
}

/// The directory is made, and a listener that could store nothing does not begin to wait.
#[test]
fn a_listener_makes_its_directory_or_says_at_the_start_why_not() {
    let scene = Scene::start();
    let letter = scene.alice.home().join("letter.bin");
    random_file(&letter, 10_000);
    let inbox = scene.bob.home().join("new/inbox");
    let mut listener = scene.bob.listen(&["--out", inbox.to_str().unwrap()]);
    let sent = scene.alice.run([OsStr::new("send"), scene.bob.jid().as_ref(), letter.as_os_str()]);
    assert_eq!(sent.code, 0, "{sent:?}");
    assert_eq!(listener.wait(LONG), 0, "{}", listener.log());
    assert_eq!(sha256(&inbox.join("letter.bin")), sha256(&letter));
    for (out, why) in [
        (letter.to_str().unwrap(), "letter.bin: not a directory"),
        ("/proc/no/inbox", "/proc/no/inbox: cannot be created: "),
        ("/proc", "/proc: cannot be written to: "),
    ] {
        let refused = scene.bob.run(["listen", "--out", out]);
        assert_eq!(refused.code, 2, "{refused:?}");
        assert!(refused.stderr.contains(why), "{refused:?}");
        assert!(refused.stderr.contains("hint: name "), "{refused:?}");
    }
}

#[test]
fn a_chat_that_comes_to_a_listener_for_files_is_told_what_to_run() {
    let scene = Scene::start();
    let listener = scene.bob.listen_on(&[]);
    let called = scene.alice.run(["chat", scene.bob.jid()]);
    assert_eq!(called.code, 5, "{called:?}");
    assert!(called.stderr.contains("wants a chat: run xtls chat --listen"), "{called:?}");
    assert!(listener.log().contains("wants a chat: run xtls chat --listen"), "{}", listener.log());
}

#[test]
fn a_key_without_an_account_is_for_the_local_network_only() {
    let home = tempfile::tempdir().unwrap();
    let command = |args: &[&str]| {
        let mut command = clean(&own_program("xtls"));
        command.args(args).env("XTLS_HOME", home.path().join("xtls"));
        command
    };
    let print = "AB".repeat(32);
    for args in [
        &["trust", "set", "bob@example.test", &print][..],
        &["trust", "forget", "bob@example.test"],
    ] {
        let refused = run(command(args), LONG);
        assert_eq!(refused.code, 2, "{refused:?}");
        assert!(refused.stderr.contains("hint: run xtls login JID first"), "{refused:?}");
    }
    assert_eq!(run(command(&["trust", "set", "bob@pronto.local", &print]), LONG).code, 0);
    assert!(run(command(&["trust", "list"]), LONG).stdout.contains("bob@pronto.local"));
}
