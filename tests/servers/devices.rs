//! A person with several devices, as the person's peers see them: which further keys are taken, after which question, and
//! which never. On real Prosody and ejabberd.

use std::{
    ffi::OsStr,
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};
use support::{
    process::{Output, end_of, read, run},
    programs::{Component, Listener, Options, Xtls, at_a_terminal, event, script},
    random_file,
    servers::{Kind, Server},
    sha256, wait_for,
};

const LONG: Duration = Duration::from_secs(120);

struct Scene {
    server: Server,
    component: Component,
    alice: Xtls,
    bob: Xtls,
}

impl Scene {
    fn start(kind: Kind) -> Self {
        let server = Server::start(kind);
        let component = Component::start(&server, &Options::default());
        let (alice, bob) = (Xtls::with_key(&server, "alice"), Xtls::with_key(&server, "bob"));
        Self { server, component, alice, bob }
    }

    /// A program of bob's on another device, with a key of its own that is not registered.
    fn device(&self) -> Xtls {
        let device = Xtls::login(&self.server, "bob");
        assert_eq!(device.run(["keygen"]).code, 0);
        device
    }

    /// Alice sends to bob's program on this device; gives her output and what the listener says.
    fn send(&self, device: &Xtls, more: &[&str]) -> (Output, Listener) {
        let mut listener = device.listen(&[]);
        let sent = run(self.send_command(more), LONG);
        listener.wait(LONG);
        let arrived = listener.files();
        assert_eq!(arrived.len(), usize::from(sent.code == 0), "{sent:?}\n{}", listener.log());
        for path in arrived {
            fs::remove_file(path).unwrap();
        }
        (sent, listener)
    }

    fn send_command(&self, more: &[&str]) -> Command {
        let file = self.alice.home().join("letter.bin");
        if !file.exists() {
            random_file(&file, 50_000);
        }
        let mut command = self.alice.command(["send", self.bob.jid(), file.to_str().unwrap()]);
        command.arg("--json").args(more);
        command
    }

    /// The same by a person at a terminal, who answers the question if there is one.
    fn send_at_a_terminal(&self, device: &Xtls, answer: Option<&str>) -> Value {
        let mut listener = device.listen(&[]);
        let command = self.send_command(&[]);
        let mut steps = Vec::new();
        if let Some(answer) = answer {
            steps.push(json!(["wait", "[y/N]"]));
            steps.push(json!(["type", format!("{answer}\r")]));
        }
        steps.push(json!(["end"]));
        let mut settings = at_a_terminal(&command, json!(steps));
        settings["controls"] = json!(true);
        let sent = script("terminal.py", &self.server, settings);
        listener.wait(LONG);
        for path in listener.files() {
            fs::remove_file(path).unwrap();
        }
        sent
    }

    /// What alice knows of bob: method, print's first digits, label and how it came to be trusted.
    fn known(&self) -> Vec<Value> {
        let listed = self.alice.run(["trust", "list", "--json"]);
        listed.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn ok(output: &Output) {
    assert_eq!(output.code, 0, "{output:?}");
}

fn a_further_device_is_shown_and_asked_for_once(kind: Kind) {
    let scene = Scene::start(kind);
    let (alice, bob) = (&scene.alice, &scene.bob);
    ok(&bob.run(["prove"]));
    ok(&scene.send(bob, &[]).0);
    let laptop = scene.device();
    let new = laptop.print();

    // One that is not registered, and one that only bob's account has named.
    let (sent, _) = scene.send(&laptop, &["--accept-new-device", "registry"]);
    assert_eq!(sent.code, 4, "{sent:?}");
    ok(&laptop.run(["register", "--label", "the lap\u{202e}top"]));
    for how in ["ask", "registry", "never"] {
        let (sent, _) = scene.send(&laptop, &["--accept-new-device", how]);
        assert_eq!(sent.code, 4, "{how}: {sent:?}");
        assert!(sent.stderr.contains("THE KEY OF bob@example.test HAS CHANGED"), "{sent:?}");
        assert!(sent.stderr.contains("bob@example.test has not proven it"), "{sent:?}");
        assert!(sent.stderr.contains(&new), "{sent:?}");
    }

    // Proven, but nobody can be asked, or is to be.
    ok(&laptop.run(["prove"]));
    let (sent, listener) = scene.send(&laptop, &[]);
    assert_eq!(sent.code, 4, "{sent:?}\n{}", scene.component.log());
    assert!(sent.stderr.contains("there is no terminal to ask at: nothing was sent"), "{sent:?}");
    assert!(
        sent.stderr.contains(&format!("xtls trust set bob@example.test {new}"))
            && sent.stderr.contains("hint: ")
            && sent.stderr.contains("--accept-new-device registry"),
        "{sent:?}"
    );
    let told = event(&sent.stdout, "new_device").unwrap();
    assert_eq!((&told["print"], &told["assurance"]), (&json!(new), &json!("proven")), "{told}");
    assert!(listener.log().contains("security-error"), "{}", listener.log());
    let (sent, _) = scene.send(&laptop, &["--accept-new-device", "never"]);
    assert_eq!(sent.code, 4, "{sent:?}");
    assert!(sent.stderr.contains("HAS CHANGED"), "{sent:?}");
    assert!(sent.stderr.contains("has proven it; with --accept-new-device never"), "{sent:?}");
    assert_eq!(scene.known().len(), 1, "nothing was kept");

    // A person says no, then yes, and is not asked again. The registry has taken what turns the direction out of the label.
    let sent = scene.send_at_a_terminal(&laptop, Some("n"));
    assert_eq!(sent["status"], 4, "{sent}");
    assert_eq!(scene.known().len(), 1, "nothing was kept");
    let sent = scene.send_at_a_terminal(&laptop, Some("y"));
    assert_eq!(sent["status"], 0, "{sent}");
    let screen = sent["screens"][0].as_str().unwrap().replace('\n', "");
    assert!(screen.contains("The registry calls it a proven key of bob@example.test."), "{screen}");
    assert!(screen.contains(&format!("known: x509 {}", bob.print())), "{screen}");
    assert!(screen.contains(&format!("shown: x509 {new}")), "{screen}");
    assert!(screen.contains("\"the laptop\""), "{screen}");
    ok(&scene.send(&laptop, &["--accept-new-device", "never"]).0);
    ok(&scene.send(bob, &["--accept-new-device", "never"]).0);
    let known = scene.known();
    let of = |print: &str| known.iter().find(|key| key["print"] == print).unwrap();
    assert_eq!(known.len(), 2, "{known:?}");
    assert_eq!(of(&new)["label"], "the laptop", "{known:?}");
    assert_eq!((&of(&new)["verified"], &of(&new)["method"]), (&json!("asked"), &json!("x509")));
    assert_eq!(of(&bob.print())["verified"], "first-use", "{known:?}");
    assert!(of(&new)["first_seen"].as_str().unwrap().starts_with("20"), "{known:?}");
    let text = alice.run(["trust", "list"]).stdout;
    assert!(text.contains("\"the laptop\"  first seen 20"), "{text}");
    assert!(text.contains("accepted when asked") && text.contains("first use"), "{text}");

    // One device is forgotten, and comes back on the registry's word. The other one stays.
    ok(&alice.run(["trust", "forget", bob.jid(), &new]));
    assert_eq!(scene.known().len(), 1);
    let (sent, _) = scene.send(&laptop, &["--accept-new-device", "registry"]);
    ok(&sent);
    let secured = event(&sent.stdout, "secured").unwrap();
    assert_eq!((&secured["new_device"], &secured["first_use"]), (&json!(true), &json!(false)));
    assert!(secured["sas"].is_string(), "{secured}");
    assert!(scene.known().iter().any(|key| key["verified"] == "registry"));

    // One that has been revoked since is refused, whatever is known; what is known stays, for the registry could lie.
    let keys = laptop.run(["keys", "--json"]).stdout;
    let id = |label: &str| {
        let keys = keys.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let mut ids = keys.filter(|key| key["label"] == label).map(|key| key["id"].clone());
        ids.next().unwrap().as_str().unwrap().to_owned()
    };
    ok(&laptop.run(["revoke", &id("the laptop")]));
    for how in ["ask", "registry"] {
        let mut listener = laptop.listen(&[]);
        let sent = run(scene.send_command(&["--accept-new-device", how]), LONG);
        assert_ne!(sent.code, 0, "{sent:?}");
        assert!(matches!(sent.code, 4 | 5), "{sent:?}");
        listener.signal("TERM");
        listener.wait(LONG);
        assert!(listener.files().is_empty(), "{}", listener.log());
    }
    assert_eq!(scene.known().len(), 2);
}

/// The same at the listening side, which has nobody to ask; and by the other method.
fn a_listener_takes_a_further_device_only_as_it_was_told(kind: Kind) {
    let scene = Scene::start(kind);
    let (alice, bob) = (&scene.alice, &scene.bob);
    let file = bob.home().join("letter.bin");
    random_file(&file, 50_000);
    let send = |device: &Xtls, listens: &[&str], sends: &[&str]| {
        let mut listener = alice.listen(&[listens, sends].concat());
        let mut command = device.command(["send", alice.jid(), file.to_str().unwrap()]);
        command.args(sends);
        let sent = run(command, LONG);
        let status = listener.wait(LONG);
        for path in listener.files() {
            fs::remove_file(path).unwrap();
        }
        (sent.code, status, listener.log())
    };
    assert_eq!(send(bob, &[], &[]).0, 0);
    let laptop = scene.device();
    for user in [alice, &laptop] {
        ok(&user.run(["keygen", "--openpgp"]));
    }
    for method in ["x509", "openpgp"] {
        // It may know alice by her other key.
        laptop.run(["trust", "forget", alice.jid()]);
        ok(&laptop.run(["prove", "--method", method]));
        let (sent, status, log) = send(&laptop, &[], &["--method", method]);
        assert_eq!((sent, status), (5, 4), "{method}: {log}");
        assert!(log.contains("there is no terminal to ask at"), "{method}: {log}");
        let listens = ["--accept-new-device", "registry"];
        let (sent, status, log) = send(&laptop, &listens, &["--method", method]);
        assert_eq!((sent, status), (0, 0), "{method}: {log}");
    }
    let methods: Vec<_> = scene.known().iter().map(|key| key["method"].clone()).collect();
    assert_eq!(methods, [json!("openpgp"), json!("x509"), json!("x509")]);
}

/// A key that its owner has replaced is refused, also by those who knew it.
#[test]
fn prosody_a_key_that_was_replaced_is_refused() {
    let scene = Scene::start(Kind::Prosody);
    ok(&scene.send(&scene.bob, &[]).0);
    let laptop = scene.device();
    let old = scene.bob.run(["keys", "--json"]).stdout;
    let old: Value = serde_json::from_str(old.lines().next().unwrap()).unwrap();
    let cert = fs::read_to_string(laptop.home().join("xtls").join(laptop.jid()).join("cert.pem"));
    let settings = json!({
        "user": "bob", "replaces": old["id"], "certificate": cert.unwrap(),
    });
    script("replace_key.py", &scene.server, settings);
    for known in [true, false] {
        if !known {
            ok(&scene.alice.run(["trust", "forget", scene.bob.jid()]));
        }
        let (sent, _) = scene.send(&scene.bob, &["--accept-new-device", "registry"]);
        assert_eq!(sent.code, 4, "{sent:?}");
        assert!(sent.stderr.contains("was replaced by another one"), "{sent:?}");
    }
}

/// Files have the rights that any new file has where they land, and the sender's date.
#[test]
fn prosody_landed_files_follow_umask_group_and_date() {
    let scene = Scene::start(Kind::Prosody);
    let file = scene.alice.home().join("run.sh");
    random_file(&file, 50_000);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4755)).unwrap();
    let date = SystemTime::UNIX_EPOCH + Duration::from_secs(1_307_328_360);
    fs::File::options().write(true).open(&file).unwrap().set_modified(date).unwrap();
    let inbox = scene.bob.home().join("shared");
    fs::create_dir(&inbox).unwrap();
    // As far as this user may give a directory to another group.
    let _not_ours = std::os::unix::fs::chown(&inbox, None, Some(54_321));
    fs::set_permissions(&inbox, fs::Permissions::from_mode(0o2775)).unwrap();
    for (umask, mode) in [("002", 0o664), ("022", 0o644), ("077", 0o600)] {
        let listen =
            scene.bob.command(["listen", "--once", "--json", "--out", inbox.to_str().unwrap()]);
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("umask {umask}; exec \"$@\"")).arg("sh");
        command.arg(listen.get_program()).args(listen.get_args());
        command.envs(listen.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let log = scene.bob.home().join(format!("umask-{umask}.log"));
        let mut listener = support::process::Process::start(command, &log);
        wait_for("listening", LONG, || listener.log(), || listener.log().contains("listening"));
        let args = [OsStr::new("send"), scene.bob.jid().as_ref(), file.as_os_str()];
        let sent = scene.alice.run(args);
        assert_eq!(sent.code, 0, "{sent:?}");
        assert!(listener.wait(LONG).success(), "{}", listener.log());
        let landed = inbox.join("run.sh");
        let found = fs::metadata(&landed).unwrap();
        assert_eq!(found.mode() & 0o7777, mode, "umask {umask}");
        assert_eq!(found.gid(), fs::metadata(&inbox).unwrap().gid());
        assert_eq!(found.modified().unwrap(), date);
        assert_eq!(sha256(&landed), sha256(&file));
        fs::remove_file(landed).unwrap();
    }
}

/// A private key that others can read is not used; a password that they can read is used with a warning.
#[test]
fn prosody_secrets_are_their_owners_alone() {
    let scene = Scene::start(Kind::Prosody);
    let alice = &scene.alice;
    ok(&alice.run(["keygen", "--openpgp"]));
    let folder = alice.home().join("xtls").join(alice.jid());
    let expose = |file: &Path, mode| {
        fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
    };
    for (file, method) in [("key.pem", "x509"), ("openpgp.asc", "openpgp")] {
        let file = folder.join(file);
        expose(&file, 0o644);
        for command in [&["register"][..], &["prove"], &["send", scene.bob.jid(), "/etc/hostname"]]
        {
            let refused = alice.run([command, &["--method", method]].concat());
            assert_eq!(refused.code, 1, "{command:?}: {refused:?}");
            let hint = format!("hint: chmod 600 {}", file.display());
            assert!(refused.stderr.contains("found mode 0644: it is not used"), "{refused:?}");
            assert!(refused.stderr.contains(&hint), "{refused:?}");
        }
        expose(&file, 0o600);
        ok(&alice.run(["register", "--method", method]));
    }
    let account = folder.join("account.toml");
    expose(&account, 0o640);
    let warned = alice.run(["keys"]);
    ok(&warned);
    assert!(warned.stderr.contains("warning: "), "{warned:?}");
    assert!(
        warned.stderr.contains(&format!("hint: chmod 600 {}", account.display())),
        "{warned:?}"
    );
    assert_eq!(warned.stderr.matches("warning: ").count(), 1, "{warned:?}");
    expose(&account, 0o600);
    assert_eq!(alice.run(["keys"]).stderr, "");
}

/// A program whose standard input stays open.
struct Open {
    child: Child,
    input: Option<ChildStdin>,
    log: PathBuf,
}

impl Open {
    fn start(user: &Xtls, name: &str, args: &[&str]) -> Self {
        Self::spawn(user.command(args), user.home().join(format!("{name}.log")))
    }

    fn spawn(mut command: Command, log: PathBuf) -> Self {
        let out = fs::File::create(&log).unwrap();
        command.stdin(Stdio::piped()).stdout(out.try_clone().unwrap()).stderr(out);
        let mut child = command.spawn().unwrap();
        let input = child.stdin.take();
        Self { child, input, log }
    }

    fn log(&self) -> String {
        read(&self.log)
    }

    fn wait_for(&self, text: &str) {
        self.wait_for_times(text, 1);
    }

    fn wait_for_times(&self, text: &str, times: usize) {
        wait_for(text, LONG, || self.log(), || self.log().matches(text).count() >= times);
    }

    fn says(&mut self, text: &str) {
        self.input.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn signal(&self, name: &str) {
        let mut kill = Command::new("sh");
        kill.arg("-c").arg(format!("kill -{name} {}", self.child.id()));
        assert!(kill.status().unwrap().success());
    }

    fn wait(&mut self) -> i32 {
        let log = self.log();
        end_of(&mut self.child, LONG, || log.clone()).code().unwrap_or(-1)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What each run of the command does is said by the first line of its input.
const JOB: &str = r#"
read -r word
case "$word" in
upper) env > "$HOME/env"; tr a-z A-Z ;;
fails) cat > /dev/null; exit 3 ;;
early) echo enough ;;
holds) echo $$ > "$HOME/pid"; cat > "$HOME/copy" && touch "$HOME/complete" ;;
esac
"#;

/// Bob's one listener for everything.
fn listen_for_all(scene: &Scene, more: &[&str]) -> Open {
    let bob = &scene.bob;
    fs::write(bob.home().join("job"), JOB).unwrap();
    let out = bob.home().join("received");
    fs::create_dir_all(&out).unwrap();
    let args = [
        &[
            "listen",
            "--json",
            "--chat",
            "--pipe",
            "sh \"$HOME/job\"",
            "--out",
            out.to_str().unwrap(),
        ],
        more,
    ];
    let mut command = bob.command(args.concat());
    command.env("XTLS_SRP_PASSWORD", "no command sees this");
    let listener = Open::spawn(command, bob.home().join("listen.log"));
    listener.wait_for("\"listening\"");
    listener
}

/// Alice pipes a text to bob; gives her status, what came back, and what she was told.
fn pipe(scene: &Scene, name: &str, text: &str, transport: &str) -> (i32, String, String) {
    let (input, output) = (format!("{name}.in"), format!("{name}.out"));
    fs::write(scene.alice.home().join(&input), text).unwrap();
    let args = ["pipe", scene.bob.jid(), "--transport", transport];
    let file = |name: &str| scene.alice.home().join(name);
    let log = file(&format!("{name}.log"));
    let mut piped = support::process::Process::start_between(
        scene.alice.command(args),
        &file(&input),
        &file(&output),
        &log,
    );
    let status = piped.wait(LONG).code().unwrap_or(-1);
    (status, read(&file(&output)), read(&log))
}

/// Whether a process has ended, although nobody may have asked how.
fn is_gone(pid: &str) -> bool {
    match fs::read_to_string(format!("/proc/{}/stat", pid.trim())) {
        Ok(stat) => stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')),
        Err(_) => true,
    }
}

fn one_listener_takes_all_kinds(kind: Kind) {
    let scene = Scene::start(kind);
    let (alice, bob) = (&scene.alice, &scene.bob);
    let mut listener = listen_for_all(&scene, &[]);

    // A file and pipes, side by side with a chat. Each pipe has a run of the command of its own.
    let mut chat = Open::start(alice, "chat", &["chat", bob.jid(), "--json"]);
    chat.wait_for("\"chat\"");
    chat.says("Art thou not Romeo?\n");
    listener.wait_for("Art thou not Romeo?");
    listener.says("Neither, fair saint\n");
    chat.wait_for("Neither, fair saint");
    let file = alice.home().join("letter.bin");
    random_file(&file, 50_000);
    ok(&alice.run([OsStr::new("send"), bob.jid().as_ref(), file.as_os_str()]));
    assert_eq!(sha256(&bob.home().join("received/letter.bin")), sha256(&file));
    std::thread::scope(|scope| {
        for (n, transport) in ["s5b", "ibb", "s5b"].into_iter().enumerate() {
            let scene = &scene;
            scope.spawn(move || {
                let name = format!("upper-{n}");
                let (status, got, log) = pipe(scene, &name, &format!("upper\n{name}"), transport);
                assert_eq!((status, got.as_str()), (0, name.to_uppercase().as_str()), "{log}");
            });
        }
    });
    listener.wait_for_times("\"piped\"", 3);
    let environment = read(&bob.home().join("env"));
    assert!(
        environment.lines().any(|line| line == "XTLS_PEER=alice@example.test"),
        "{environment}"
    );
    let print = format!("XTLS_PRINT={}", alice.print());
    assert!(environment.lines().any(|line| line == print), "{environment}");
    assert!(!environment.contains("no command sees this"), "{environment}");

    // One chat at a time; what is typed while there is none goes to nobody.
    let refused = alice.run(["chat", bob.jid()]);
    assert_eq!(refused.code, 5, "{refused:?}");
    assert!(refused.stderr.contains("another chat is under way here"), "{refused:?}");
    chat.input = None;
    assert_eq!(chat.wait(), 0, "{}", chat.log());
    listener.wait_for("\"ended\"");
    listener.says("to nobody\n");
    listener.wait_for("nobody chats with you: the line was not sent");
    let mut chat = Open::start(alice, "chat", &["chat", bob.jid(), "--json"]);
    chat.wait_for("\"chat\"");
    listener.says("to alice\n");
    chat.wait_for("to alice");
    assert!(!chat.log().contains("to nobody"), "{}", chat.log());

    // A command that fails, or does not read everything, is an error at both sides; the listener goes on.
    let (status, _, log) = pipe(&scene, "fails", "fails\nall of it", "s5b");
    assert_eq!(status, 1, "{log}");
    assert!(log.contains("the command failed: exit status: 3"), "{log}");
    let (status, _, log) = pipe(&scene, "early", &format!("early\n{}", "x".repeat(4 << 20)), "s5b");
    assert_eq!(status, 1, "{log}");
    assert!(log.contains("the command has not read everything"), "{log}");

    // The end of a sender that dies is not the end of what it had to say.
    let holds = |name: &str| {
        for old in ["pid", "copy"] {
            let _none = fs::remove_file(bob.home().join(old));
        }
        let mut piped = Open::start(alice, name, &["pipe", bob.jid()]);
        piped.says("holds\nthe first half");
        let copy = bob.home().join("copy");
        wait_for("the first half", LONG, || piped.log(), || read(&copy).ends_with("half"));
        (piped, read(&bob.home().join("pid")))
    };
    let (piped, pid) = holds("dies");
    piped.signal("KILL");
    wait_for("the end of the command", LONG, || listener.log(), || is_gone(&pid));
    let (piped, pid) = holds("stays");
    listener.signal("INT");
    let _status = listener.wait();
    wait_for("the end of the command", LONG, || listener.log(), || is_gone(&pid));
    assert!(!bob.home().join("complete").exists(), "no run has seen the end of its input");
    drop(piped);
    // The chat has been closed, and not cut off.
    assert_eq!(chat.wait(), 0, "{}", chat.log());
}

/// With --once the listener ends with the first session, whichever kind it is, and with its status.
#[test]
fn prosody_once_means_one_session_of_any_kind() {
    let scene = Scene::start(Kind::Prosody);
    let mut listener = listen_for_all(&scene, &["--once"]);
    let (status, got, log) = pipe(&scene, "once", "upper\nonce", "s5b");
    assert_eq!((status, got.as_str()), (0, "ONCE"), "{log}");
    assert_eq!(listener.wait(), 0, "{}", listener.log());
    let mut listener = listen_for_all(&scene, &["--once"]);
    let (status, _, log) = pipe(&scene, "once", "fails\n", "s5b");
    assert_eq!(status, 1, "{log}");
    assert_eq!(listener.wait(), 1, "{}", listener.log());
    let mut listener = listen_for_all(&scene, &["--once"]);
    let mut chat = Open::start(&scene.alice, "chat", &["chat", scene.bob.jid(), "--json"]);
    chat.wait_for("\"chat\"");
    chat.input = None;
    assert_eq!((chat.wait(), listener.wait()), (0, 0), "{}\n{}", chat.log(), listener.log());
}

support::on_both!(
    a_further_device_is_shown_and_asked_for_once,
    a_listener_takes_a_further_device_only_as_it_was_told,
    one_listener_takes_all_kinds,
);
