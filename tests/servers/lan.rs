//! Users of a local network without a server (XEP-0174): two network namespaces joined by virtual cables, so that no
//! multicast leaves this machine.

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
    programs::{built, clean, event, report},
    random_file, root, sha256, wait_for,
};

const LIMIT: Duration = Duration::from_secs(60);

/// Cables with a host at each end: on the first, `a` has 10.77.0.1 and `b` 10.77.0.2, on the next 10.77.1.1 and so on.
struct Cable {
    hosts: [String; 2],
    /// What the interfaces are called, at both ends.
    names: Vec<String>,
}

impl Cable {
    fn lay() -> Self {
        Self::lay_many(1, true)
    }

    /// Lays so many cables, with IPv4 or only with what IPv6 gives itself.
    fn lay_many(count: usize, with_ipv4: bool) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("fp{}n{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let names = (0..count).map(|n| if n == 0 { "cable".into() } else { format!("cable{n}") });
        let cable = Self { hosts: [format!("{id}a"), format!("{id}b")], names: names.collect() };
        for host in &cable.hosts {
            ip(&["netns", "add", host]);
            // Addresses of IPv6 can be used at once.
            for which in ["all", "default"] {
                let setting = format!("net.ipv6.conf.{which}.accept_dad=0");
                ip(&["netns", "exec", host, "sysctl", "-qw", &setting]);
            }
            ip(&["-n", host, "link", "set", "lo", "up"]);
        }
        let [a, b] = &cable.hosts;
        for (n, name) in cable.names.iter().enumerate() {
            ip(&["-n", a, "link", "add", name, "type", "veth", "peer", "name", name, "netns", b]);
            for (host, last) in [(a, 1), (b, 2)] {
                if with_ipv4 {
                    let address = format!("10.77.{n}.{last}/24");
                    ip(&["-n", host, "address", "add", &address, "dev", name]);
                }
                ip(&["-n", host, "link", "set", name, "up"]);
            }
        }
        cable
    }

    /// Pulls the first cable out of a host (`down`) or puts it back (`up`). The other host keeps its interface.
    fn set(&self, host: usize, state: &str) {
        ip(&["-n", &self.hosts[host], "link", "set", "cable", state]);
    }

    /// Returns the addresses of an interface of a host, in order.
    fn addresses(&self, host: usize, interface: &str) -> Vec<String> {
        let shown = ip(&["-n", &self.hosts[host], "-j", "address", "show", "dev", interface]);
        let shown: Value = serde_json::from_str(&shown).unwrap();
        let infos = shown[0]["addr_info"].as_array().unwrap();
        let mut addresses: Vec<_> =
            infos.iter().map(|info| info["local"].as_str().unwrap().to_owned()).collect();
        addresses.sort();
        addresses
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
fn ip(args: &[&str]) -> String {
    let done = Command::new("ip").args(args).output().expect("ip is installed: run make test");
    assert!(
        done.status.success(),
        "the tests of the local network make network namespaces, which only root may (`sudo make test`): ip {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&done.stderr)
    );
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// The responder of most Linux machines, with a message bus of its own, at one end.
struct Avahi<'a> {
    cable: &'a Cable,
    host: usize,
    directory: tempfile::TempDir,
    daemon: Process,
    _bus: Process,
}

impl<'a> Avahi<'a> {
    /// Starts it for a machine of this name.
    fn start(cable: &'a Cable, host: usize, machine: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("fingerpost-avahi-").tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let bus = format!(
            "<busconfig><type>system</type><listen>unix:path={}</listen><auth>EXTERNAL</auth>\
             <policy context='default'><allow user='*'/><allow own='*'/><allow send_destination='*'/>\
             <allow receive_sender='*'/></policy></busconfig>",
            path("bus").display()
        );
        let settings = format!(
            "[server]\nhost-name={machine}\nuse-ipv4=yes\nuse-ipv6=yes\nallow-interfaces={}\n\
             [publish]\npublish-workstation=no\npublish-hinfo=no\n",
            cable.names.join(",")
        );
        std::fs::write(path("bus.conf"), bus).unwrap();
        std::fs::write(path("avahi.conf"), settings).unwrap();
        let mut command = cable.at(host, Path::new("dbus-daemon"));
        command.args(["--nofork", "--nopidfile", "--config-file"]).arg(path("bus.conf"));
        let bus = Process::start(command, &path("bus.log"));
        wait_for("the bus", LIMIT, || bus.log(), || path("bus").exists());
        // Each has its files under /run for itself.
        let script = "mkdir -p /run/avahi-daemon && mount -t tmpfs none /run/avahi-daemon && exec avahi-daemon \
                      --no-drop-root --no-chroot --no-rlimits --no-proc-title --file \"$0\"";
        let mut command = cable.at(host, Path::new("sh"));
        command.args(["-c", script]).arg(path("avahi.conf"));
        command.env("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={}", path("bus").display()));
        let daemon = Process::start(command, &path("avahi.log"));
        let this = Self { cable, host, directory, daemon, _bus: bus };
        let log = || this.daemon.log();
        wait_for("Avahi", LIMIT, log, || log().contains("Server startup complete"));
        this
    }

    /// Returns a command for a program that uses it.
    fn command(&self, program: &Path) -> Command {
        let mut command = self.cable.at(self.host, program);
        let bus = self.directory.path().join("bus");
        command.env("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={}", bus.display()));
        command
    }

    /// Announces a user until it is dropped.
    fn publish(&self, name: &str, port: &str) -> Process {
        let mut command = self.command(Path::new("avahi-publish"));
        command.args(["-s", name, "_presence._tcp", port, "txtvers=1", "status=avail"]);
        let process = Process::start(command, &self.directory.path().join(format!("{port}.log")));
        let log = || process.log();
        wait_for("a name", LIMIT, log, || log().contains(&format!("under name '{name}'")));
        process
    }

    /// Returns the users that it knows now: name, host, address and port, over IPv4.
    fn users(&self) -> Vec<[String; 4]> {
        let mut command = self.command(Path::new("avahi-browse"));
        command.args(["-rpt", "_presence._tcp"]);
        let printed = run(command, LIMIT).stdout;
        let resolved = printed.lines().filter(|line| line.starts_with('=')).map(|line| {
            let fields: Vec<_> = line.split(';').collect();
            let name = fields[3].replace("\\064", "@");
            (fields[2] == "IPv4")
                .then(|| [&name, fields[6], fields[7], fields[8]].map(str::to_owned))
        });
        let mut users: Vec<_> = resolved.flatten().collect();
        users.sort();
        users
    }

    /// Waits until it knows a user at this port.
    fn wait_for(&self, name: &str, port: &Value) {
        let port = port.to_string();
        let knows = || self.users().iter().any(|user| user[0] == name && user[3] == port);
        wait_for(name, LIMIT, || format!("{:?}", self.users()), knows);
    }
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
    /// On the first cable only.
    on_one: bool,
}

impl<'a> User<'a> {
    fn new(cable: &'a Cable, host: usize, name: &'static str) -> Self {
        let home = tempfile::Builder::new().prefix("fingerpost-lan-").tempdir().unwrap();
        std::fs::create_dir(home.path().join("received")).unwrap();
        Self { cable, host, name, home, on_one: true }
    }

    fn everywhere(cable: &'a Cable, host: usize, name: &'static str) -> Self {
        Self { on_one: false, ..Self::new(cable, host, name) }
    }

    fn random_file(&self, name: &str, size: usize) -> PathBuf {
        let path = self.path(name);
        random_file(&path, size);
        path
    }

    fn send(&self, to: &str, file: &Path) -> Output {
        self.run(["send".as_ref(), to.as_ref(), file.as_os_str()])
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.cable.at(self.host, &own_program("xtls"));
        command.args(args).args(["--lan", "--name", self.name, "--json"]);
        if self.on_one {
            command.args(["--interface", "cable"]);
        }
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

    // A file that is missing here, and one that the receiver refuses, do not keep the next one back.
    assert_eq!(listener.interrupt(), 0);
    let listener = bob.listen(&["--max-size", "1M"]);
    let (missing, three) = (alice.path("missing.bin"), alice.path("three.bin"));
    random_file(&three, 1000);
    let files = [&missing, &one, &three].map(|path| path.as_os_str());
    let some = alice.run([&["send".as_ref(), "bob@bee".as_ref()][..], &files].concat());
    assert_eq!(some.code, 2, "{some:?}");
    let summary = event(&some.stdout, "summary").unwrap();
    assert_eq!((&summary["sent"], &summary["untried"]), (&json!(1), &json!(0)), "{summary}");
    assert_eq!(sha256(&bob.path("received/three.bin")), sha256(&three));
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

    for option in
        [&["--transport", "s5b"][..], &["--prefer", "ibb"], &["--direct"], &["--via", "x.test"]]
    {
        let words = ["send", "bob@bee"].iter().chain(option).map(OsStr::new);
        let wrong = alice.run(words.chain([one.as_os_str()]));
        assert_eq!(wrong.code, 2, "{wrong:?}");
        assert!(wrong.stderr.contains("cannot be used with --lan"), "{wrong:?}");
    }
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
    let host = seen["host"].as_str().unwrap();
    assert!(
        host.len() == 16 + ".local.".len() && host != "bee.local.",
        "a label of its own: {host}"
    );
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
    let told = &report["told"][0];
    assert_eq!(told[0], json!({"from": "bob@bee", "to": "python@ant", "type": "chat"}), "{report}");
    assert!(told[1].as_str().unwrap().contains("xtls chat --lan bob@bee"), "{report}");
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

#[test]
fn two_machines_of_one_name_listen_side_by_side() {
    let cable = Cable::lay();
    // The machine's own responder has the name of the machine.
    let avahi = Avahi::start(&cable, 0, "pronto");
    let (alice, bob) = (User::new(&cable, 0, "alice@pronto"), User::new(&cable, 1, "bob@pronto"));
    let (first, second) = (alice.listen(&[]), bob.listen(&[]));
    for (user, other, name) in [(&alice, &bob, "bob@pronto"), (&bob, &alice, "alice@pronto")] {
        let sent = user.send(name, &user.random_file("file.bin", 10_000));
        assert_eq!(sent.code, 0, "{sent:?}\n{}\n{}", first.log(), second.log());
        assert_eq!(other.received(), ["file.bin"]);
    }
    for (listener, name) in [(&first, "alice@pronto"), (&second, "bob@pronto")] {
        let listening = listener.events("listening");
        assert_eq!(listening[0]["jid"], name);
        assert_eq!(listener.events("renamed"), [Value::Null; 0], "{}", listener.log());
        avahi.wait_for(name, &listening[0]["port"]);
    }
    let [alice, bob] = &avahi.users()[..] else { panic!("{:?}", avahi.users()) };
    assert_eq!((&*alice[2], &*bob[2]), ("10.77.0.1", "10.77.0.2"));
    assert_ne!(alice[1], bob[1], "hosts");
    assert!(!avahi.daemon.log().contains("conflict"), "{}", avahi.daemon.log());
    assert_eq!((first.interrupt(), second.interrupt()), (0, 0));
}

#[test]
fn a_name_that_another_program_has_is_left_to_it_at_the_start_and_later() {
    let cable = Cable::lay();
    let avahi = Avahi::start(&cable, 0, "ant");
    let mut taken = avahi.publish("bob@pronto", "65535");
    let (alice, bob) = (User::new(&cable, 0, "alice@ant"), User::new(&cable, 1, "bob@pronto"));
    let file = alice.random_file("file.bin", 10_000);
    let is_renamed = |listener: &Running| {
        let renamed = listener.events("renamed");
        assert_eq!(renamed.len(), 1, "{}", listener.log());
        assert_eq!(renamed[0]["from"], "bob@pronto");
        assert_eq!(renamed[0]["to"], "bob@pronto-2");
        let told = "another program on the local network is called bob@pronto: this one is called bob@pronto-2 now";
        // It is said on another channel than the event.
        wait_for(
            "the word about it",
            LIMIT,
            || listener.log(),
            || read(&listener.err).contains(told),
        );
        let sent = alice.send("bob@pronto-2", &file);
        assert_eq!(sent.code, 0, "{sent:?}\n{}", listener.log());
    };
    let listener = bob.listen(&[]);
    assert_eq!(listener.events("listening")[0]["jid"], "bob@pronto-2");
    is_renamed(&listener);
    assert_eq!(listener.interrupt(), 0);

    // Alone, it has the name; then the networks become one. Avahi keeps its interface, and so its name: otherwise both
    // would ask for the name at the same time, and the faster one would have it.
    let mut port = 65535;
    let listener = loop {
        cable.set(1, "down");
        let listener = bob.listen(&[]);
        assert_eq!(listener.events("listening")[0]["jid"], "bob@pronto");
        cable.set(1, "up");
        let is_lost = || taken.log().contains("Name collision");
        let logs = || format!("{}\n{}", listener.log(), taken.log());
        let is_renamed = || !listener.events("renamed").is_empty();
        wait_for("one owner of the name", LIMIT, logs, || is_lost() || is_renamed());
        if !is_lost() {
            break listener;
        }
        // Avahi was too slow to answer any of the probes, so the name is the listener's. That is not what is tested.
        assert_eq!(listener.interrupt(), 0);
        port -= 1;
        taken = avahi.publish("bob@pronto", &port.to_string());
    };
    is_renamed(&listener);
    avahi.wait_for("bob@pronto", &json!(port));
    assert_eq!(listener.interrupt(), 0);
    assert_eq!(bob.received().len(), 2);
}

#[test]
fn what_is_forged_of_a_name_is_defended_and_the_user_is_told() {
    let cable = Cable::lay();
    let avahi = Avahi::start(&cable, 0, "ant");
    let (alice, bob) = (User::new(&cable, 0, "alice@ant"), User::new(&cable, 1, "bob@bee"));
    let listener = bob.listen(&[]);
    let port = listener.events("listening")[0]["port"].clone();
    avahi.wait_for("bob@bee", &port);
    for (n, what) in ["place", "properties", "goodbye", "address"].into_iter().enumerate() {
        let forge = json!({"role": "forge", "name": "bob@bee", "what": what});
        cable.script(0, &forge).report();
        let told = || listener.events("defended");
        wait_for(what, LIMIT, || listener.log(), || told().len() > n);
        assert_eq!((&told()[n]["forged"], &told()[n]["jid"]), (&json!(what), &json!("bob@bee")));
        // What the forger has said is forgotten everywhere.
        let truth = ["10.77.0.2".to_owned(), port.to_string()];
        let heals = || {
            let users = avahi.users();
            users.len() == 1 && users[0][2..] == truth
        };
        wait_for("the truth", LIMIT, || format!("{what}: {:?}", avahi.users()), heals);
    }
    let told = read(&listener.err);
    assert!(told.contains("announced that bob@bee is at evil.local.:6666"), "{told}");
    assert_eq!(listener.events("renamed"), [Value::Null; 0], "{}", listener.log());
    let sent = alice.send("bob@bee", &alice.random_file("file.bin", 10_000));
    assert_eq!(sent.code, 0, "{sent:?}\n{}", listener.log());
    assert_eq!(listener.interrupt(), 0);
}

#[test]
fn each_link_gets_the_addresses_of_its_interface_only() {
    let cable = Cable::lay_many(3, true);
    let (alice, bob) =
        (User::everywhere(&cable, 0, "alice@ant"), User::everywhere(&cable, 1, "bob@bee"));
    let listener = bob.listen(&[]);
    let settings = json!({"role": "links", "interfaces": cable.names});
    let report = cable.script(0, &settings).report();
    for name in &cable.names {
        assert_eq!(report[name], json!(cable.addresses(1, name)), "{name}: {report}");
    }
    let sent = alice.send("bob@bee", &alice.random_file("file.bin", 10_000));
    assert_eq!(sent.code, 0, "{sent:?}\n{}", listener.log());
    assert_eq!(listener.interrupt(), 0);
}

#[test]
fn a_peer_with_link_local_addresses_only_is_reached_on_its_link() {
    let cable = Cable::lay_many(2, false);
    let (alice, bob) =
        (User::everywhere(&cable, 0, "alice@ant"), User::everywhere(&cable, 1, "bob@bee"));
    let listener = bob.listen(&[]);
    let sent = alice.send("bob@bee", &alice.random_file("file.bin", 10_000));
    assert_eq!(sent.code, 0, "{sent:?}\n{}", listener.log());
    assert_eq!(bob.received(), ["file.bin"]);
    assert_eq!(listener.interrupt(), 0);
}

/// The stream leaves the link's XML for a connection of its own, with the addresses of the link alone.
#[test]
fn a_file_has_a_connection_of_its_own() {
    for with_ipv4 in [true, false] {
        let cable = Cable::lay_many(1, with_ipv4);
        // The file takes much longer than the connection, also on a busy machine.
        let slow = "qdisc add dev cable root tbf rate 60mbit burst 64kb latency 50ms";
        let tc = [&["-n", &cable.hosts[0]][..], &slow.split(' ').collect::<Vec<_>>()].concat();
        assert!(Command::new("tc").args(tc).status().unwrap().success());
        let (alice, bob) = (User::new(&cable, 0, "alice@ant"), User::new(&cable, 1, "bob@bee"));
        let listener = bob.listen(&[]);
        let file = alice.random_file("file.bin", 64 << 20);
        let sent = alice.send("bob@bee", &file);
        assert_eq!(sent.code, 0, "{sent:?}\n{}", listener.log());
        assert_eq!(sha256(&bob.path("received/file.bin")), sha256(&file));
        let (mine, theirs) = (event(&sent.stdout, "path").unwrap(), listener.events("path"));
        for (event, host) in [(&mine, 1), (&theirs[0], 0)] {
            assert_eq!(event["path"], "direct", "{event}");
            let address = event["address"].as_str().unwrap();
            assert!(cable.addresses(host, "cable").iter().any(|one| one == address), "{event}");
        }
        assert_eq!(listener.interrupt(), 0);
    }
}

/// One after the other, with five seconds for each, these would take longer than a test may.
#[test]
fn addresses_that_nobody_has_do_not_hide_the_one_that_answers() {
    let cable = Cable::lay();
    let bob = User::new(&cable, 1, "bob@bee");
    let dead: Vec<_> = (0..13).map(|n| format!("10.77.0.{}", 100 + n)).collect();
    for address in &dead {
        // Packets go out and nobody takes them, so that no error comes back either.
        let nobody = ["lladdr", "02:00:00:00:00:99", "nud", "permanent", "dev", "cable"];
        ip(&[&["-n", &cable.hosts[1], "neigh", "add", address][..], &nobody].concat());
    }
    let settings = json!({"role": "serve", "name": "python@ant", "starttls": false, "dead": dead, "address": "10.77.0.1"});
    let script = cable.script(0, &settings);
    script.wait_for("announced");
    let refused = bob.run(["chat", "python@ant"]);
    assert!(refused.stderr.contains("offers no STARTTLS"), "{refused:?}");
    assert_eq!(script.report()["closed"], true);
}

#[test]
fn a_user_of_pidgin_learns_that_nothing_was_delivered_and_what_to_use() {
    let cable = Cable::lay();
    let avahi = Avahi::start(&cable, 0, "ant");
    let bonjour = built("bonjour.c", &["purple"]);
    let bob = User::new(&cable, 1, "bob@bee");
    for (chats, instead) in
        [(false, "xtls send --lan bob@bee FILE"), (true, "xtls chat --lan bob@bee")]
    {
        let listener =
            if chats { bob.start(&["chat", "--listen"], "listening") } else { bob.listen(&[]) };
        let home = tempfile::tempdir().unwrap();
        let mut command = avahi.command(&bonjour);
        command.arg(home.path()).args(["romeo@ant", "bob@bee", "M'lady"]);
        let pidgin = Process::start(command, &home.path().join("log"));
        let log = || pidgin.log();
        wait_for("an answer", LIMIT, log, || log().contains("received "));
        let log = log();
        let lines: Vec<_> = log.lines().filter(|line| !line.starts_with("online")).collect();
        let own =
            "received Your message was not delivered: bob@bee takes nothing that is not encrypted";
        assert_eq!(lines[0], "sent M'lady", "{log}");
        assert!(lines[1].starts_with(own) && lines[1].ends_with(instead), "{log}");
        listener.wait_for("error");
        let error = &listener.events("error")[0];
        assert!(error["message"].as_str().unwrap().contains("cannot encrypt"), "{error}");
        assert!(!listener.log().contains("M'lady"), "{}", listener.log());
        // The connection may just be ending: that status is another matter.
        listener.interrupt();
    }
}
