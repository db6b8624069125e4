//! What `xtls` keeps, takes and prints: shared files under many processes, files of strangers, names that were made to harm,
//! outputs that cannot be written. On a real Prosody.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::process::{Process, run};
use support::programs::{Component, Listener, Options, Script, Xtls, clean, event};
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
}

/// Every write to standard output counts; a reader that went away changes nothing.
#[test]
fn what_cannot_be_written_is_an_error_and_a_closed_pipe_is_not() {
    let account = Account::new();
    let set = ["trust", "set", "bob@example.test", &"AB".repeat(32)];
    assert_eq!(run(account.command(&set), LONG).code, 0);
    let folder = tempfile::tempdir().unwrap();
    let component = |args: &[&str]| {
        let mut command = clean(&own_program("fingerpost"));
        command.args(args).current_dir(folder.path());
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
    component: Component,
    alice: Xtls,
    bob: Xtls,
    server: Server,
}

impl Scene {
    fn start() -> Self {
        let server = Server::start(Kind::Prosody);
        let component = Component::start(&server, &Options::default());
        let (alice, bob) = (Xtls::with_key(&server, "alice"), Xtls::with_key(&server, "bob"));
        Self { component, alice, bob, server }
    }

    /// A hostile peer as alice offers bob's listener a file; gives what it was told, and the listener, which has ended.
    fn offers(&self, transport: &str, more: Value, options: &[&str]) -> (Value, Listener) {
        self.bob.run(["trust", "forget", self.alice.jid()]);
        let mut listener = self.bob.listen(options);
        let mut settings = json!({
            "role": "sender", "does": "whole", "transport": transport,
            "name": "letter.bin", "size": 100_000, "bytes": 100_000, "sha256": null,
        });
        for (key, value) in more.as_object().unwrap() {
            settings[key] = value.clone();
        }
        let report = Script::start("hostile_peer.py", &self.server, settings).report();
        let status = listener.wait(LONG);
        let told = json!({"told": report["told"], "status": status, "answer": report["answer"]});
        (told, listener)
    }
}

/// Six senders of one account to two new peers, while the same account listens: each succeeds, and each peer is kept.
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
    // Others reach the same account meanwhile.
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

/// What XML cannot carry in a name is replaced before it is sent; the file arrives.
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

/// Every name that a peer gives a file becomes one that is safe, on the disk and on the screen.
#[test]
fn a_hostile_name_is_made_safe_wherever_it_is_shown() {
    let scene = Scene::start();
    let name = "../../.ssh/\u{61c}\u{202e}x\u{9b}31m\u{feff}\u{e0041}\u{2028}y.txt";
    let (told, listener) = scene.offers("ibb", json!({"name": name}), &[]);
    assert_eq!(told["status"], 0, "{told}: {}", listener.log());
    let names: Vec<_> = listener.files();
    assert_eq!(names[0].file_name().unwrap(), "x31my.txt", "{names:?}");
    let log = listener.log();
    for hidden in ['\u{61c}', '\u{202e}', '\u{9b}', '\u{feff}', '\u{e0041}', '\u{2028}'] {
        assert!(!log.contains(hidden), "U+{:04X}: {log}", u32::from(hidden));
    }
    fs::remove_file(&names[0]).unwrap();
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

    let (told, listener) = scene.offers("s5b", json!({"does": "offer", "size": 1_u64 << 60}), &[]);
    assert!(told["told"].as_str().unwrap().contains("there is no room for the file"), "{told}");
    assert_eq!(told["status"], 5, "{}", listener.log());
    let (told, _) = scene.offers("s5b", json!({"does": "offer", "size": null}), &[]);
    assert!(told["told"].as_str().unwrap().contains("does not say how large"), "{told}");
    assert_eq!(told["status"], 5, "{told}");
    assert_eq!(listener.files().len() + listener.parts().len(), 0);
}

/// More or less than was announced, or an end that is not the sender's, is not the file.
#[test]
fn a_sender_that_breaks_its_word_lands_nothing() {
    let scene = Scene::start();
    let whole = STANDARD.encode(Sha256::digest(vec![b'x'; 100_000]));
    for transport in ["s5b", "ibb"] {
        let more = json!({"bytes": 100_001, "sha256": whole});
        let (told, listener) = scene.offers(transport, more, &[]);
        assert_eq!(told["status"], 1, "{told}: {}", listener.log());
        assert!(told["told"].as_str().unwrap().contains("more than it announced"), "{told}");
        assert!(listener.files().is_empty() && listener.parts().is_empty(), "{transport}");

        // The middle, and the very end: who carries the stream may have changed size and hash of the offer.
        for (bytes, sha256) in
            [(60_000, json!(null)), (100_000, json!(null)), (100_000, json!(whole))]
        {
            let cut = json!({"does": "cut", "bytes": bytes, "sha256": sha256});
            let (told, listener) = scene.offers(transport, cut, &[]);
            assert_ne!(told["status"], 0, "{transport} {bytes} {told}: {}", listener.log());
            assert_eq!(listener.files().len(), 0, "{transport} {bytes}: {}", listener.log());
            for part in listener.parts() {
                fs::remove_file(part).unwrap();
            }
        }
    }
}

/// What was kept of a file stays as it is until the one who offers it has proven to be its sender.
#[test]
fn a_part_is_not_touched_for_somebody_who_has_proven_nothing() {
    let scene = Scene::start();
    let whole = Sha256::digest(vec![b'x'; 100_000]);
    let received = scene.bob.home().join("received");
    fs::create_dir_all(&received).unwrap();
    let sender: String =
        Sha256::digest("alice@example.test")[..8].iter().map(|b| format!("{b:02x}")).collect();
    let hash: String = whole.iter().map(|b| format!("{b:02x}")).collect();
    let part = received.join(format!(".xtls-{hash}-{sender}.part"));
    let content = vec![b'x'; 40_000];
    fs::write(&part, &content).unwrap();
    fs::set_permissions(&part, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let sha256 = STANDARD.encode(whole);

    // The policy refuses the key that was shown: another one is known.
    let print = "AB".repeat(32);
    assert_eq!(scene.bob.run(["trust", "set", scene.alice.jid(), &print]).code, 0);
    let mut listener = scene.bob.listen(&[]);
    let settings = json!({
        "role": "sender", "does": "offer", "transport": "s5b", "name": "letter.bin",
        "size": 30_000, "bytes": 0, "sha256": sha256,
    });
    let _report = Script::start("hostile_peer.py", &scene.server, settings).report();
    assert_eq!(listener.wait(LONG), 4, "{}", listener.log());
    assert_eq!(fs::read(&part).unwrap(), content, "untouched, also by an offer that is shorter");

    // Its sender goes on with it.
    let (told, listener) = scene.offers("s5b", json!({"bytes": 60_000, "sha256": sha256}), &[]);
    assert_eq!(told["answer"], "40000", "{told}");
    assert_eq!(told["status"], 0, "{told}: {}", listener.log());
    assert_eq!(fs::read(&listener.files()[0]).unwrap(), vec![b'x'; 100_000]);
    assert!(!Path::new(&part).exists(), "{}", scene.component.log());
}
