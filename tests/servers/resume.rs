//! Broken transfers are resumed, and several files are sent by one command: on a real Prosody, counted on the wire.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use support::process::Output;
use support::programs::{Component, Listener, Options, Xtls, event};
use support::servers::{Kind, Server};
use support::{random_file, sha256, wait_for};

const MIB: usize = 1 << 20;
const SIZE: usize = 64 * MIB;
const LONG: Duration = Duration::from_secs(60);

/// A component whose SOCKS5 port is tapped, and two users.
struct Scene {
    component: Component,
    alice: Xtls,
    bob: Xtls,
    _server: Server,
}

impl Scene {
    fn start() -> Self {
        let server = Server::start(Kind::Prosody);
        let options = Options { tap: true, ..Options::default() };
        let component = Component::start(&server, &options);
        let (alice, bob) = (Xtls::with_key(&server, "alice"), Xtls::with_key(&server, "bob"));
        Self { component, alice, bob, _server: server }
    }

    /// Bytes that have passed one leg.
    fn wire(&self) -> usize {
        // Both legs pass the tap.
        self.component.tap.as_ref().unwrap().count() / 2
    }

    fn args<'a>(&'a self, files: &[&'a Path]) -> Vec<&'a OsStr> {
        let mut args: Vec<&OsStr> = vec!["send".as_ref(), self.bob.jid().as_ref()];
        args.extend(files.iter().map(|file| file.as_os_str()));
        args.push("--json".as_ref());
        args
    }

    fn send(&self, files: &[&Path]) -> Output {
        self.alice.run(self.args(files))
    }

    /// Sends until `mebibytes` have passed in this transfer, and kills one side; returns the listener, which has ended.
    fn break_off(&self, file: &Path, mebibytes: usize, kill_sender: bool) -> Listener {
        let tap = self.component.tap.as_ref().unwrap();
        tap.hold_after(mebibytes * MIB);
        let mut listener = self.bob.listen(&[]);
        let mut sender = self.alice.start(self.args(&[file]));
        let logs = || format!("{}\n{}", sender.log(), listener.log());
        tap.wait_until_held(logs);
        // All bytes except what fills one TLS record and the buffers of a program.
        let most = |path: &PathBuf| path.metadata().is_ok_and(|part| part.len() > MIB as u64);
        wait_for("a part", LONG, logs, || listener.parts().iter().any(most));
        if kill_sender {
            sender.signal("KILL");
            tap.cut();
            assert_eq!(listener.wait(LONG), 1, "{}", listener.log());
            // A stream outlives its user's connection to the server, so it is the stream that shows its end.
            let told = ["the stream was cut off", "gone: The other user"];
            assert!(told.iter().any(|words| listener.log().contains(words)), "{}", listener.log());
        } else {
            listener.signal("KILL");
            listener.wait(LONG);
            tap.cut();
        }
        let status = sender.wait(LONG);
        assert!(!status.success(), "{}", sender.log());
        if !kill_sender {
            assert!(sender.log().contains("run the same command again"), "{}", sender.log());
        }
        assert_eq!(listener.files().len(), 0, "no half file is shown");
        let [part] = &listener.parts()[..] else { panic!("one part: {:?}", listener.parts()) };
        assert_eq!(part.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        listener
    }

    /// Runs the same command again; returns the bytes on the wire and the sender's messages.
    fn again(&self, file: &Path) -> (usize, Value) {
        let before = self.wire();
        let mut listener = self.bob.listen(&[]);
        let sent = self.send(&[file]);
        assert_eq!(sent.code, 0, "{sent:?}\n{}", listener.log());
        assert_eq!(listener.wait(LONG), 0, "{}", listener.log());
        let [arrived] = &listener.files()[..] else { panic!("{:?}", listener.files()) };
        assert_eq!(sha256(arrived), sha256(file));
        std::fs::remove_file(arrived).unwrap();
        assert_eq!(listener.parts().len(), 0, "the part became the file");
        let done = event(&sent.stdout, "done").unwrap();
        assert_eq!(done["bytes"], SIZE, "{done}");
        assert_eq!(done["resumed"], event(&listener.log(), "done").unwrap()["resumed"]);
        (self.wire() - before, done)
    }
}

#[test]
fn a_transfer_that_was_killed_goes_on_where_it_stopped() {
    let scene = Scene::start();
    let file = scene.alice.home().join("letter.bin");
    random_file(&file, SIZE);

    for kill_sender in [true, false] {
        let listener = scene.break_off(&file, 20, kill_sender);
        let kept = usize::try_from(listener.parts()[0].metadata().unwrap().len()).unwrap();
        assert!(kept > MIB && kept < SIZE, "{kept} bytes are kept");
        let (passed, done) = scene.again(&file);
        assert_eq!(done["resumed"], kept, "{done}");
        // TLS adds some bytes to each record, and the handshake.
        let rest = SIZE - kept;
        assert!(passed >= rest && passed < rest + MIB, "{passed} bytes passed for {rest}");
    }

    // A prefix that belongs to another file.
    let listener = scene.break_off(&file, 10, true);
    let part = &listener.parts()[0];
    let mut bytes = std::fs::read(part).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(part, bytes).unwrap();
    let mut listener = scene.bob.listen(&[]);
    let sent = scene.send(&[&file]);
    assert_eq!(sent.code, 1, "{sent:?}");
    assert!(sent.stderr.contains("hash is not the one offered"), "{sent:?}");
    assert_eq!(listener.wait(LONG), 1, "{}", listener.log());
    assert!(listener.files().is_empty() && listener.parts().is_empty());
    let (passed, done) = scene.again(&file);
    assert_eq!(done["resumed"], 0, "{done}");
    assert!(passed >= SIZE, "{passed}");
}

#[test]
fn several_files_go_in_one_command_and_what_fails_is_told() {
    let scene = Scene::start();
    let home = scene.alice.home();
    let names = ["a.txt", "b.bin", "c.txt"];
    for (n, name) in names.iter().enumerate() {
        random_file(&home.join(name), 100_000 * (n + 1));
    }
    std::fs::create_dir(home.join("directory")).unwrap();
    let path = |name: &str| home.join(name);
    let received = scene.bob.home().join("received");
    std::fs::create_dir_all(&received).unwrap();
    let log = scene.bob.home().join("background.log");
    let mut listener = scene.bob.start(["listen", "--json", "--out", received.to_str().unwrap()]);
    let listening = || event(&listener.log(), "listening").is_some();
    wait_for("listening", LONG, || support::process::read(&log), listening);

    // All of them.
    let files = names.map(path);
    let sent = scene.send(&files.each_ref().map(|file| file.as_path()));
    assert_eq!(sent.code, 0, "{sent:?}");
    let summary = event(&sent.stdout, "summary").unwrap();
    assert_eq!((&summary["files"], &summary["sent"]), (&3.into(), &3.into()), "{summary}");
    assert_eq!(summary["bytes"], 600_000, "{summary}");
    for file in &files {
        let there = received.join(file.file_name().unwrap());
        assert_eq!(sha256(&there), sha256(file));
    }

    // A missing file does not block the others.
    let some = [path("a.txt"), path("missing"), path("c.txt")];
    let sent = scene.send(&some.each_ref().map(|file| file.as_path()));
    assert_eq!(sent.code, 2, "{sent:?}");
    assert!(sent.stderr.contains("missing: No such file"), "{sent:?}");
    assert!(sent.stderr.contains("1 of 3 files were not sent"), "{sent:?}");
    let summary = event(&sent.stdout, "summary").unwrap();
    assert_eq!((&summary["sent"], summary["failed"].as_array().unwrap().len()), (&2.into(), 1));
    // Nothing is overwritten.
    assert_eq!(sha256(&received.join("a (1).txt")), sha256(&path("a.txt")));
    assert_eq!(sha256(&received.join("c (1).txt")), sha256(&path("c.txt")));

    // A directory without files is refused before the peer is called.
    let sent = scene.send(&[&path("directory")]);
    assert_eq!(sent.code, 2, "{sent:?}");
    assert!(sent.stderr.contains("directory: expected a directory with files"), "{sent:?}");

    // Ctrl-C ends an idle listener.
    listener.signal("INT");
    assert_eq!(listener.wait(LONG).code(), Some(0), "{}", listener.log());
    let hidden = std::fs::read_dir(&received)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with('.'));
    assert_eq!(hidden.count(), 0, "nothing is left behind");

    // Without a peer, the first failure is the only message.
    let sent = scene.send(&files.each_ref().map(|file| file.as_path()));
    assert_eq!(sent.code, 3, "{sent:?}");
    let summary = event(&sent.stdout, "summary").unwrap();
    assert_eq!((&summary["sent"], &summary["untried"]), (&0.into(), &2.into()), "{summary}");
    assert!(sent.stderr.contains("hint: the other side must run `xtls listen`"), "{sent:?}");
}
