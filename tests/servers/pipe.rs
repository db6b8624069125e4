//! The end of a stream is reliable: `xtls pipe` with peers that are slow or are killed, over both transports, on a real
//! Prosody.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use support::process::{Process, read};
use support::programs::{Component, Options, Xtls};
use support::servers::{Kind, Server};
use support::{random_file, sha256, wait_for};

const MIB: usize = 1 << 20;
const LONG: Duration = Duration::from_secs(120);
const TRANSPORTS: [&str; 2] = ["s5b", "ibb"];

struct Scene {
    // Dropped before the server.
    component: Component,
    alice: Xtls,
    bob: Xtls,
    _server: Server,
}

/// A waiting pipe of bob's, in a shell.
struct Listening {
    process: Process,
    status: PathBuf,
    out: PathBuf,
    log: PathBuf,
}

impl Listening {
    /// Waits for the end; returns the exit status of `xtls` and its messages.
    fn wait(&mut self) -> (String, String) {
        self.process.wait(LONG);
        (read(&self.status).trim().to_owned(), read(&self.log))
    }
}

impl Scene {
    fn start(limits: &str) -> Self {
        let server = Server::start(Kind::Prosody);
        let more = format!("[limits]\n{limits}\n");
        let component = Component::start(&server, &Options { more, ..Options::default() });
        let (alice, bob) = (Xtls::with_key(&server, "alice"), Xtls::with_key(&server, "bob"));
        Self { component, alice, bob, _server: server }
    }

    /// Starts `xtls` as bob in a shell: `{ xtls ARGS; } SHELL`, and waits until it says `ready`.
    fn shell<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        shell: &str,
        ready: &str,
    ) -> Listening {
        let inner = self.bob.command(args);
        let file = |name: &str| self.bob.home().join(name);
        let (status, out, log) = (file("status"), file("out"), file("log"));
        for old in [&status, &out, &log] {
            let _none = std::fs::remove_file(old);
        }
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(format!("{{ \"$@\" 2>\"$LOG\"; echo $? >\"$STATUS\"; }} {shell}"))
            .arg("sh")
            .arg(inner.get_program())
            .args(inner.get_args())
            .envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .envs([("STATUS", &status), ("OUT", &out), ("LOG", &log)]);
        let process = Process::start(command, &file("shell.log"));
        wait_for("listening", LONG, || read(&log), || read(&log).contains(ready));
        Listening { process, status, out, log }
    }

    /// Runs `xtls pipe --listen` with `more`, in a shell.
    fn listen(&self, transport: &str, shell: &str) -> Listening {
        self.shell(["pipe", "--listen", "--transport", transport], shell, "listening as")
    }

    fn pipe(&self, input: &str, transport: &str) -> Process {
        let _old = std::fs::remove_file(self.alice.home().join("pipe.log"));
        let args = ["pipe", self.bob.jid(), "--transport", transport];
        self.alice.start_between(args, input, "out")
    }

    fn input(&self, size: usize) -> PathBuf {
        let path = self.alice.home().join("in");
        random_file(&path, size);
        path
    }

    /// Sends the input to bob's slow or odd reader; both must end well, and everything must arrive.
    fn arrives(&self, case: &str, transport: &str, shell: &str, size: usize) {
        let input = self.input(size);
        let mut listening = self.listen(transport, shell);
        let mut sender = self.pipe("in", transport);
        let status = sender.wait(LONG).code();
        let (got, log) = listening.wait();
        let all =
            format!("{case}, {transport}:\n{}\n{log}\n{}", sender.log(), self.component.log());
        assert_eq!(status, Some(0), "the sender, {all}");
        assert_eq!(got, "0", "the reader, {all}");
        assert_eq!(sha256(&listening.out), sha256(&input), "{all}");
    }
}

/// The cut of a stream is never taken for its end, at any place and over any transport.
#[test]
fn a_sender_or_component_that_is_killed_is_no_end() {
    for transport in TRANSPORTS {
        // Slow enough to be cut in the middle, on any machine.
        let (size, cut) =
            if transport == "s5b" { (64 * MIB, 20 * MIB) } else { (16 * MIB, 2 * MIB) };
        for victim in ["sender", "component"] {
            let scene = Scene::start("bytes_per_second = 20000000");
            scene.input(size);
            let mut listening = scene.listen(transport, "</dev/null >\"$OUT\"");
            let mut sender = scene.pipe("in", transport);
            let out = listening.out.clone();
            let arrived = || std::fs::metadata(&out).map_or(0, |out| out.len());
            wait_for(
                "the middle of the stream",
                LONG,
                || format!("{}\n{}", sender.log(), read(&listening.log)),
                || usize::try_from(arrived()).unwrap() > cut,
            );
            match victim {
                "sender" => sender.signal("KILL"),
                _ => scene.component.signal("KILL"),
            }
            let (status, log) = listening.wait();
            let case = format!("{victim} killed, {transport}: {log}");
            assert_eq!(status, "1", "{case}");
            assert!(log.contains("error: ") && log.contains(" bytes"), "{case}");
            assert!(arrived() < u64::try_from(size).unwrap(), "{case}");
            let status = sender.wait(LONG).code();
            assert_ne!(status, Some(0), "{case}\n{}", sender.log());
            if victim == "component" {
                assert_eq!(status, Some(1), "{case}\n{}", sender.log());
            }
        }
    }
}

/// A reader may take its time, whether its own input has ended or not; the sender's status 0 means that it has
/// everything.
#[test]
fn a_slow_reader_gets_everything() {
    let scene = Scene::start("");
    std::fs::write(scene.bob.home().join("few"), "a few words\n").unwrap();
    let few = scene.bob.home().join("few");
    let answers = format!("<{} | (sleep 8; cat >\"$OUT\")", few.display());
    for transport in TRANSPORTS {
        let slow = "</dev/null | (sleep 8; cat >\"$OUT\")";
        scene.arrives("nothing to say", transport, slow, 2 * MIB);
        // The reader has ended its direction long before.
        scene.arrives("a few words to say", transport, &answers, 2 * MIB);
        let words = read(&scene.alice.home().join("out"));
        assert_eq!(words, "a few words\n", "{transport}");
    }
}

/// A peer that does not read is present. It pauses for longer than a network may be silent, with more bytes on their
/// way than all buffers between the two hold.
#[test]
fn a_reader_that_pauses_is_not_taken_for_one_that_is_gone() {
    let scene = Scene::start("");
    scene.arrives("a pause", "s5b", "</dev/null | (sleep 50; cat >\"$OUT\")", 40 * MIB);
}

#[test]
fn a_slow_component_delivers_everything() {
    let scene = Scene::start("bytes_per_second = 20000");
    for transport in TRANSPORTS {
        scene.arrives("20 kB/s", transport, "</dev/null >\"$OUT\"", 300_000);
    }
}

/// The README's example: the reader's input is a terminal without any typing.
#[test]
fn a_pipe_to_a_terminals_user_ends_by_itself() {
    let scene = Scene::start("");
    let input = scene.input(MIB);
    // script(1) gives its child a terminal as standard input; its own is open and silent.
    let inner = scene.bob.command(["pipe", "--listen"]);
    let line: Vec<_> = [inner.get_program()]
        .into_iter()
        .chain(inner.get_args())
        .map(|word| format!("'{}'", word.to_string_lossy()))
        .collect();
    let (out, log) = (scene.bob.home().join("out"), scene.bob.home().join("log"));
    let line = format!("{} >'{}' 2>'{}'", line.join(" "), out.display(), log.display());
    let mut command = Command::new("sh");
    command
        .args(["-c", "tail -f /dev/null | script -qec \"$LINE\" /dev/null & wait $!"])
        .env("LINE", line)
        .envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut listening = Process::start(command, &scene.bob.home().join("shell.log"));
    wait_for("listening", LONG, || read(&log), || read(&log).contains("listening as"));
    let mut sender = scene.pipe("in", "s5b");
    assert_eq!(sender.wait(LONG).code(), Some(0), "{}\n{}", sender.log(), read(&log));
    // Ctrl-D is not pressed.
    assert_eq!(listening.wait(LONG).code(), Some(0), "{}", read(&log));
    assert_eq!(sha256(&out), sha256(&input), "{}", read(&log));
}

#[test]
fn two_empty_inputs_are_a_pipe_that_ends() {
    let scene = Scene::start("");
    std::fs::write(scene.alice.home().join("in"), "").unwrap();
    let mut listening = scene.listen("s5b", "</dev/null >\"$OUT\"");
    let mut caller = scene.pipe("in", "s5b");
    assert_eq!(caller.wait(LONG).code(), Some(0), "{}", caller.log());
    assert_eq!(listening.wait().0, "0");
}

/// Nobody has the pipe open for writing when `xtls` comes to it, and its content must be read up to its end all the same.
#[test]
fn a_named_pipe_whose_writer_has_gone_is_read_to_its_end() {
    let scene = Scene::start("");
    let path = scene.alice.home().join("in");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    // Nobody waits for the other end, which this one is as well.
    let mut writer = File::options().read(true).write(true).open(&path).unwrap();
    let input = File::open(&path).unwrap();
    writer.write_all(&[b'x'; 4096]).unwrap();
    drop(writer);
    let mut listening = scene.listen("s5b", "</dev/null >\"$OUT\"");
    let (command, file) =
        (scene.alice.command(["pipe", scene.bob.jid()]), |name| scene.alice.home().join(name));
    let mut caller = Process::start_reading(command, input, &file("out"), &file("pipe.log"));
    assert_eq!(caller.wait(LONG).code(), Some(0), "{}", caller.log());
    assert_eq!(listening.wait().0, "0");
    assert_eq!(read(&listening.out), "x".repeat(4096));
}

/// A reader that goes away ends quietly, and its sender is not told that everything has arrived.
#[test]
fn a_reader_that_goes_away_is_quiet_and_the_sender_knows() {
    let scene = Scene::start("");
    scene.input(8 * MIB);
    let mut listening = scene.listen("s5b", "</dev/null | head -c 10 >\"$OUT\"");
    let mut sender = scene.pipe("in", "s5b");
    assert_eq!(sender.wait(LONG).code(), Some(5), "{}", sender.log());
    assert!(sender.log().contains("the reader of the pipe's output is gone"), "{}", sender.log());
    let (status, log) = listening.wait();
    assert_eq!(status, "0", "{log}");
    assert!(!log.contains("error"), "{log}");
}
