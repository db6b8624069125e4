//! Our own programs and the scripts of the independent clients.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::network::Network;
use super::process::{Output, Process, read, run};
use super::servers::Server;
use super::tap::Tap;
use super::{COMPONENT, DOMAIN, PATIENCE, SECRET, USERS, free_port, own_program, root, wait_for};

/// How long a script may take.
const SCRIPT_LIMIT: Duration = Duration::from_secs(1600);

/// Returns a command for which the kernel refuses system calls.
pub fn without(calls: &[&str], program: &Path) -> Command {
    let mut command = clean(Path::new("python3"));
    command.arg(root().join("tests/peers/without.py")).args(calls).arg("--").arg(program);
    command
}

/// A running `fingerpost serve`.
pub struct Component {
    // Dropped in this order: nothing writes into a directory that is being removed.
    process: Process,
    directory: TempDir,
    options: Options,
    /// The port that takes SOCKS5 connections.
    pub socks5: u16,
    /// What stands in front of it, if anything.
    pub tap: Option<Tap>,
}

/// The options of a component.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// TOML added at the end of the configuration.
    pub more: String,
    /// Whether bytes to the SOCKS5 port are captured.
    pub tap: bool,
    /// Another secret than the server's.
    pub secret: Option<String>,
    /// Settings that override the file, such as `("FINGERPOST_HTTP__LISTEN", …)`.
    pub env: Vec<(&'static str, String)>,
    /// The limit of its open files.
    pub descriptors: Option<u32>,
    /// The SOCKS5 port, if it is already chosen.
    pub socks5: Option<u16>,
    /// Another database than a SQLite file of its own.
    pub database: Option<String>,
    /// The address of SOCKS5, if not 127.0.0.1.
    pub address: Option<String>,
    /// The network namespace that it runs in.
    pub network: Option<String>,
    /// System calls that the kernel refuses to it.
    pub without: Vec<&'static str>,
}

impl Options {
    /// Returns the same with the status pages, and their port.
    pub fn with_pages(mut self) -> (Self, u16) {
        let port = free_port();
        self.env.push(("FINGERPOST_HTTP__LISTEN", format!("127.0.0.1:{port}")));
        (self, port)
    }
}

impl Component {
    /// Starts the component and waits until it is logged in.
    pub fn start(server: &Server, options: &Options) -> Self {
        let mut component = Self::launch(server, options);
        component.wait_for_links(1);
        component
    }

    /// Starts the component and does not wait.
    pub fn launch(server: &Server, options: &Options) -> Self {
        let directory = tempfile::Builder::new().prefix("fingerpost-component-").tempdir().unwrap();
        let socks5 = options.socks5.unwrap_or_else(free_port);
        let tap = options.tap.then(|| Tap::start(socks5));
        let told = tap.as_ref().map_or(socks5, Tap::port);
        let config = directory.path().join("fingerpost.toml");
        let host = options.address.as_deref().unwrap_or("127.0.0.1");
        let secret = options.secret.as_deref().unwrap_or(SECRET);
        let text = format!(
            "[component]\njid = \"{COMPONENT}\"\nserver = \"{}\"\nsecret = \"{secret}\"\n\
             [database]\nurl = \"{}\"\n\
             [socks5]\nlisten = [\"{host}:{socks5}\"]\nadvertise = [\"{host}:{told}\"]\n\
             [http]\nlisten = \"\"\n\
             {}\n",
            match options.network {
                Some(_) => server.far_component_address(),
                None => server.component_address(),
            },
            options.database.clone().unwrap_or_else(|| {
                format!("sqlite:{}", directory.path().join("fingerpost.db").display())
            }),
            options.more,
        );
        std::fs::write(&config, text).unwrap();
        // It holds a secret.
        std::fs::set_permissions(&config, Permissions::from_mode(0o600)).unwrap();
        let log = directory.path().join("component.log");
        let process = Process::start(Self::serve(&config, options), &log);
        Self { directory, process, options: options.clone(), socks5, tap }
    }

    fn serve(config: &Path, options: &Options) -> Command {
        let program = own_program("fingerpost");
        let mut command = match (options.descriptors, &options.network) {
            (None, None) if !options.without.is_empty() => without(&options.without, &program),
            (None, None) => clean(&program),
            (None, Some(network)) => {
                let mut command = clean(Path::new("ip"));
                command.args(["netns", "exec", network]).arg(program);
                command
            }
            (Some(most), _) => {
                let mut command = clean(Path::new("prlimit"));
                command.arg(format!("--nofile={most}:{most}")).arg(program);
                command
            }
        };
        command.arg("serve").arg("-c").arg(config).envs(options.env.iter().cloned());
        command
    }

    /// Kills it and starts it again, with the same configuration and database.
    pub fn kill_and_restart(&mut self) {
        let links = self.log().matches("link up").count();
        self.signal("KILL");
        self.process.wait(Duration::from_secs(10));
        let command = Self::serve(&self.config(), &self.options);
        self.process = Process::start(command, &self.log_path());
        self.wait_for_links(links + 1);
    }

    /// Starts it again after it has ended, with the same configuration and database.
    pub fn start_again(&mut self) {
        let links = self.log().matches("link up").count();
        let command = Self::serve(&self.config(), &self.options);
        self.process = Process::start(command, &self.log_path());
        self.wait_for_links(links + 1);
    }

    /// Returns its own SQLite file.
    pub fn database(&self) -> PathBuf {
        self.directory.path().join("fingerpost.db")
    }

    /// Stops it in order and starts it again, with the same configuration and database.
    pub fn restart(&mut self) {
        let links = self.log().matches("link up").count();
        self.signal("TERM");
        assert_eq!(self.wait(Duration::from_secs(60)), 0, "{}", self.log());
        let command = Self::serve(&self.config(), &self.options);
        self.process = Process::start(command, &self.log_path());
        self.wait_for_links(links + 1);
    }

    /// Starts another process with the same configuration, database and log; returns the old one.
    pub fn succeed(&mut self) -> Process {
        let command = Self::serve(&self.config(), &self.options);
        let next = Process::start(command, &self.log_path());
        std::mem::replace(&mut self.process, next)
    }

    /// Returns the file with everything it has logged.
    pub fn log_path(&self) -> PathBuf {
        self.directory.path().join("component.log")
    }

    /// Waits until the link has come up `count` times in all.
    pub fn wait_for_links(&mut self, count: usize) {
        let log = self.directory.path().join("component.log");
        wait_for(
            &format!("link number {count}"),
            Duration::from_secs(60),
            || read(&log),
            || {
                let ended = self.process.ended();
                assert!(ended.is_none(), "the component ended: {ended:?}\n{}", read(&log));
                read(&log).matches("link up").count() >= count
            },
        );
    }

    /// Returns its configuration file.
    pub fn config(&self) -> PathBuf {
        self.directory.path().join("fingerpost.toml")
    }

    /// Returns everything that it has logged.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Returns its process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Returns the processor time that it has used, seconds.
    pub fn processor_time(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        // utime and stime, in clock ticks; Linux has 100 per second.
        let ticks: f64 = fields[11..13].iter().map(|field| field.parse::<f64>().unwrap()).sum();
        ticks / 100.0
    }

    /// Sends it a signal.
    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// Returns whether it runs.
    pub fn runs(&mut self) -> bool {
        self.process.ended().is_none()
    }

    /// Waits until it ends; returns its exit status.
    pub fn wait(&mut self, limit: Duration) -> i32 {
        self.process.wait(limit).code().unwrap_or(-1)
    }

    /// Runs another command of `fingerpost` with this configuration.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        let mut command = clean(&own_program("fingerpost"));
        command.args(args).arg("-c").arg(self.config());
        run(command, Duration::from_secs(60))
    }
}

/// One user of `xtls`, with a home of its own.
pub struct Xtls {
    home: TempDir,
    ca: PathBuf,
    jid: String,
    /// Its network, if not the machine's.
    network: Option<String>,
}

impl Xtls {
    /// Creates a user's `xtls`, logged in.
    pub fn login(server: &Server, user: &str) -> Self {
        Self::login_from(server, user, None)
    }

    /// Returns the same, for a server at another port of this machine.
    pub fn login_at(server: &Server, user: &str, port: u16) -> Self {
        Self::login_with(server, user, None, &format!("127.0.0.1:{port}"))
    }

    /// Returns the same, from a network of its own.
    pub fn login_from(server: &Server, user: &str, network: Option<&Network>) -> Self {
        let address = match network {
            None => server.client_address(),
            Some(network) => format!("{}:{}", network.address(), server.client_port()),
        };
        Self::login_with(server, user, network.map(Network::name), &address)
    }

    /// Returns the same, from the network namespace of this name, for a server at `address` (host:port).
    pub fn login_inside(server: &Server, user: &str, network: &str, address: &str) -> Self {
        Self::login_with(server, user, Some(network), address)
    }

    fn login_with(server: &Server, user: &str, network: Option<&str>, address: &str) -> Self {
        let mut this = Self::new(server, &format!("{user}@{DOMAIN}"));
        this.network = network.map(str::to_owned);
        this.logged_in(address)
    }

    /// Creates a user's `xtls` at another domain than the usual one, logged in.
    pub fn login_as(server: &Server, jid: &str) -> Self {
        Self::new(server, jid).logged_in(&server.client_address())
    }

    fn logged_in(self, address: &str) -> Self {
        let user = self.jid.split('@').next();
        let (_, password) = USERS.iter().find(|(name, _)| Some(*name) == user).unwrap();
        let mut command =
            self.command(["login", &self.jid, "--server", address, "--via", COMPONENT]);
        // All programs of a test share a machine: at some time in any transfer their bytes would leave the relay.
        command.args(["--direct-path", "never"]);
        command.env("XTLS_PASSWORD", password);
        let output = run(command, Duration::from_secs(60));
        assert_eq!(output.code, 0, "xtls login: {output:?}");
        self
    }

    /// Creates a user's `xtls`, without an account yet.
    pub fn new(server: &Server, jid: &str) -> Self {
        let home = tempfile::Builder::new().prefix("fingerpost-xtls-").tempdir().unwrap();
        Self { home, ca: server.ca(), jid: jid.to_owned(), network: None }
    }

    /// Returns the same with a new key, registered.
    pub fn with_key(server: &Server, user: &str) -> Self {
        Self::login(server, user).and_key()
    }

    /// Returns the same with a new key, registered.
    pub fn and_key(self) -> Self {
        for command in ["keygen", "register"] {
            let output = self.run([command]);
            assert_eq!(output.code, 0, "xtls {command}: {output:?}");
        }
        self
    }

    /// Lets the user's `xtls` decide about direct paths as it does by itself.
    pub fn with_direct_paths(self) -> Self {
        self.allow_direct_paths();
        self
    }

    /// Does the same.
    pub fn allow_direct_paths(&self) {
        self.change_account(|text| text.replace("direct_path = \"never\"\n", ""));
    }

    /// Changes the file of the user's account.
    pub fn change_account(&self, change: impl FnOnce(&str) -> String) {
        let account = self.home().join("xtls").join(&self.jid).join("account.toml");
        let text = std::fs::read_to_string(&account).unwrap();
        let changed = change(&text);
        assert_ne!(changed, text, "{text}");
        std::fs::write(account, changed).unwrap();
    }

    /// Returns the SHA-256 print of its certificate.
    pub fn print(&self) -> String {
        let mut openssl = Command::new("openssl");
        let certificate = self.home().join("xtls").join(&self.jid).join("cert.pem");
        openssl.args(["x509", "-noout", "-fingerprint", "-sha256", "-in"]).arg(certificate);
        let output = run(openssl, Duration::from_secs(60));
        output.stdout.trim().rsplit('=').next().unwrap().to_owned()
    }

    /// Has the user vouch for the key of another one.
    pub fn trust(&self, other: &Self) {
        let output = self.run(["trust", "set", &other.jid, &other.print()]);
        assert_eq!(output.code, 0, "xtls trust: {output:?}");
    }

    /// Returns the user's address.
    pub fn jid(&self) -> &str {
        &self.jid
    }

    /// Returns its home.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Returns the command with these arguments.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = match &self.network {
            None => clean(&own_program("xtls")),
            Some(network) => {
                // `ip` replaces itself, so signals reach the program.
                let mut command = clean(Path::new("ip"));
                command.args(["netns", "exec", network]).arg(own_program("xtls"));
                command
            }
        };
        command
            .args(args)
            .arg("--ca-file")
            .arg(&self.ca)
            .env("XTLS_HOME", self.home.path().join("xtls"))
            .env("HOME", self.home.path());
        command
    }

    /// Runs it to its end.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        run(self.command(args), Duration::from_secs(180))
    }

    /// Starts it with its standard input and output in files of its home.
    pub fn start_between<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        input: &str,
        output: &str,
    ) -> Process {
        let file = |name: &str| self.home.path().join(name);
        Process::start_between(self.command(args), &file(input), &file(output), &file("pipe.log"))
    }

    /// Starts it in the background.
    pub fn start<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Process {
        Process::start(self.command(args), &self.home.path().join("background.log"))
    }

    /// Starts `xtls listen --once --json` with more arguments, and waits until it listens.
    pub fn listen(&self, more: &[&str]) -> Listener {
        self.listen_on(&[&["--once"], more].concat())
    }

    /// Returns the same without `--once`.
    pub fn listen_on(&self, more: &[&str]) -> Listener {
        let out = self.home.path().join("received");
        std::fs::create_dir_all(&out).unwrap();
        let log = self.home.path().join("listen.log");
        let _old = std::fs::remove_file(&log);
        let mut command = self.command(["listen", "--json"]);
        if !more.contains(&"--out") {
            command.arg("--out").arg(&out);
        }
        command.args(more);
        let process = Process::start(command, &log);
        let listener = Listener { process, out };
        wait_for(
            "listening",
            Duration::from_secs(30),
            || listener.log(),
            || listener.event("listening").is_some(),
        );
        listener
    }
}

/// A running `xtls listen`.
pub struct Listener {
    process: Process,
    out: PathBuf,
}

impl Listener {
    /// Returns everything that it has printed.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Returns the first event of this name.
    pub fn event(&self, name: &str) -> Option<Value> {
        event(&self.log(), name)
    }

    /// Returns all events of this name.
    pub fn events(&self, name: &str) -> Vec<Value> {
        events(&self.log(), name)
    }

    /// Waits for the event of this name after `before` others; returns it.
    pub fn wait_for_event(&self, name: &str, before: usize) -> Value {
        let limit = Duration::from_secs(60);
        wait_for(name, limit, || self.log(), || self.events(name).len() > before);
        self.events(name).swap_remove(before)
    }

    /// Waits until it ends; returns its exit status.
    pub fn wait(&mut self, limit: Duration) -> i32 {
        self.process.wait(limit).code().unwrap_or(-1)
    }

    /// Sends it a signal.
    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// Returns the files that have arrived, and everything else in the directory except [`parts`](Self::parts).
    pub fn files(&self) -> Vec<PathBuf> {
        self.found(false)
    }

    /// Returns the kept parts of files whose transfer broke.
    pub fn parts(&self) -> Vec<PathBuf> {
        self.found(true)
    }

    fn found(&self, parts: bool) -> Vec<PathBuf> {
        let mut files: Vec<_> =
            std::fs::read_dir(&self.out).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| {
            let name = path.file_name().unwrap().to_string_lossy();
            (name.starts_with(".xtls-") && name.ends_with(".part")) == parts
        });
        files.sort();
        files
    }
}

/// Returns the first event of this name in the output of `--json`: `{"event": NAME, …}` or `{NAME: {…}}`.
pub fn event(lines: &str, name: &str) -> Option<Value> {
    lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|value| {
        if value.get("event").and_then(Value::as_str) == Some(name) {
            return Some(value);
        }
        value.get(name).cloned()
    })
}

/// Returns all of them.
pub fn events(lines: &str, name: &str) -> Vec<Value> {
    lines.lines().filter_map(|line| event(line, name)).collect()
}

/// A running script of tests/peers.
pub struct Script {
    process: Process,
    directory: TempDir,
    name: String,
}

impl Script {
    /// Starts a script with the server's settings and `more` over them.
    pub fn start(name: &str, server: &Server, more: Value) -> Self {
        let directory = tempfile::Builder::new().prefix("fingerpost-peer-").tempdir().unwrap();
        let mut settings = server.settings();
        settings["directory"] = directory.path().to_str().unwrap().into();
        for (key, value) in more.as_object().unwrap() {
            settings[key] = value.clone();
        }
        let mut command = Command::new(python(name));
        command
            .arg(root().join("tests/peers").join(name))
            .arg(settings.to_string())
            .env("PYTHONDONTWRITEBYTECODE", "1");
        let process = Process::start(command, &directory.path().join("script.log"));
        Self { process, directory, name: name.to_owned() }
    }

    /// Returns its directory, which it knows as `directory`.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Sends it a signal.
    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// Waits until it prints a line that contains `text`.
    pub fn wait_for(&mut self, text: &str) {
        let log = self.directory.path().join("script.log");
        wait_for(
            text,
            PATIENCE,
            || read(&log),
            || {
                let there = read(&log).contains(text);
                let ended = self.process.ended();
                assert!(there || ended.is_none(), "{} ended: {ended:?}\n{}", self.name, read(&log));
                there
            },
        );
    }

    /// Waits for its report and returns it.
    ///
    /// # Panics
    /// If it reports an error or ends without a report, with everything that it printed.
    pub fn report(mut self) -> Value {
        report(&mut self.process, &self.name)
    }
}

/// Waits until a script of tests/peers prints its report, and returns it.
///
/// A script is judged by its report. How its process ends afterwards does not matter: an interpreter may crash while it
/// unloads its libraries.
///
/// # Panics
/// If it reports a failure or ends without a report, with everything that it printed.
pub fn report(process: &mut Process, name: &str) -> Value {
    let end = Instant::now() + SCRIPT_LIMIT;
    loop {
        // In this order, so that everything that it printed before its end is seen.
        let ended = process.ended();
        let log = process.log();
        let whole = &log[..log.rfind('\n').map_or(0, |at| at + 1)];
        assert!(!whole.lines().any(|line| line.starts_with("failed: ")), "{name}:\n{log}");
        let last = whole.lines().rev().find_map(|line| line.strip_prefix("report: "));
        if let Some(text) = last {
            let report: Value = serde_json::from_str(text)
                .unwrap_or_else(|error| panic!("{name}: {error} in its report\n{log}"));
            // Its sockets are closed when it ends, or when we end it.
            process.stop(Duration::from_secs(5));
            return report;
        }
        assert!(ended.is_none(), "{name} ended without a report: {ended:?}\n{log}");
        assert!(Instant::now() < end, "{name} did not report in {SCRIPT_LIMIT:?}\n{log}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a script to its end; returns its report.
pub fn script(name: &str, server: &Server, more: Value) -> Value {
    Script::start(name, server, more).report()
}

/// Asks a status server; returns its whole answer, `None` if there is none.
pub fn page(port: u16, path: &str) -> Option<String> {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).ok()?;
    socket.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(socket, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// Returns the settings of terminal.py for a command whose user does `steps`.
pub fn at_a_terminal(command: &Command, steps: Value) -> Value {
    let text = |value: &OsStr| value.to_str().unwrap().to_owned();
    let words: Vec<_> =
        std::iter::once(command.get_program()).chain(command.get_args()).map(text).collect();
    let environment: serde_json::Map<String, Value> = command
        .get_envs()
        .filter_map(|(name, value)| Some((text(name), json!(text(value?)))))
        .collect();
    json!({"command": words, "environment": environment, "steps": steps})
}

/// Lets alice and bob, on QXmpp, send each other a file through the proxy; the files are stored beside it as `forth`
/// and `back`. With `methods` (`socks` or `ibb` for each), each sends to the address of the other at the component.
pub fn qxmpp_transfer(server: &Server, file: &Path, methods: &[&str]) -> Value {
    let settings = server.settings();
    let user = |name: &str, what: &str| settings["users"][name][what].as_str().unwrap().to_owned();
    let mut command = Command::new(built("qxmpp_transfer.cpp", &["qxmpp", "Qt5Network", "Qt5Xml"]));
    command
        .env("QT_LOGGING_RULES", "*=false")
        .args(server.client_address().split(':'))
        .arg(COMPONENT)
        .arg(file)
        .arg(file.parent().unwrap());
    for name in ["alice", "bob"] {
        command.args([user(name, "jid"), user(name, "password")]);
    }
    command.args(methods);
    let output = run(command, SCRIPT_LIMIT);
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Lets alice and bob, on Pidgin's library, send each other a file to the address of the other at the component. The files land
/// beside it as `alice` and `bob`. Returns what a user would see.
pub fn purple_files(server: &Server, file: &Path) -> Vec<String> {
    let settings = server.settings();
    let mut command = Command::new(built("purple_files.c", &["purple"]));
    command.arg(file.parent().unwrap()).args(server.client_address().split(':'));
    command.arg(COMPONENT).arg(file);
    for user in [&settings["users"]["alice"], &settings["users"]["bob"]] {
        command.args([user["jid"].as_str().unwrap(), user["password"].as_str().unwrap()]);
    }
    let output = run(command, SCRIPT_LIMIT);
    assert_eq!(output.code, 0, "{output:?}");
    output.stdout.lines().map(str::to_owned).collect()
}

/// Returns a C or C++ program of tests/peers, with libraries; builds it if it has changed.
pub fn built(source: &str, libraries: &[&str]) -> PathBuf {
    let source = root().join("tests/peers").join(source);
    let directory = root().join("target/peers");
    std::fs::create_dir_all(&directory).unwrap();
    let program = directory.join(source.file_stem().unwrap());
    let written = |path: &Path| std::fs::metadata(path).and_then(|found| found.modified()).ok();
    // The one header.
    let header = source.with_file_name("purple_loop.h");
    if written(&program) < written(&source).max(written(&header)) {
        let mut arguments = vec!["--cflags", "--libs"];
        arguments.extend(libraries);
        let flags = run_tool("pkg-config", &arguments);
        let is_c = source.extension().is_some_and(|extension| extension == "c");
        let (compiler, standard) = if is_c { ("cc", "-std=gnu11") } else { ("g++", "-std=c++17") };
        // Another test may be building it too, so only whole files count.
        let mine = program.with_extension(std::process::id().to_string());
        let mut arguments = vec![standard, "-fPIC", source.to_str().unwrap()];
        arguments.extend(flags.split_whitespace());
        arguments.extend(["-o", mine.to_str().unwrap()]);
        run_tool(compiler, &arguments);
        std::fs::rename(&mine, &program).unwrap();
    }
    program
}

fn run_tool(name: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(name);
    command.args(arguments);
    let output = run(command, SCRIPT_LIMIT);
    assert_eq!(output.code, 0, "{name}: {output:?}");
    output.stdout
}

/// Returns the Python with slixmpp; for nbxmpp, which needs GLib, Debian's.
pub fn python(script: &str) -> PathBuf {
    if script.starts_with("nbxmpp_") {
        return PathBuf::from("/usr/bin/python3");
    }
    let path = std::env::var_os("FINGERPOST_TEST_PYTHON")
        .map_or_else(|| root().join("target/venv/bin/python"), PathBuf::from);
    assert!(path.exists(), "{} is not there: run make test", path.display());
    path
}

/// Returns a program of ours with no settings of ours in its environment.
pub fn clean(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("FINGERPOST_") || name.starts_with("XTLS_") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command
}
