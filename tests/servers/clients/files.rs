//! Clients with their windows send files through the addresses at the component, and chat with it: `make clients-test`.
//!
//! Each client is in a network of its own, behind a NAT, from which it reaches the servers and nothing else. Dino is that of the
//! chosen Debian; Pidgin and Psi+ are always this machine's.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use support::{
    COMPONENT, DOMAIN, PATIENCE, USERS, debian,
    netns::{Nat, Place, TwoNats},
    process::Process,
    programs::{Component, Options, page},
    random_file, root,
    servers::{Kind, Server},
    sha256, wait_for,
};
use tempfile::TempDir;

use super::writes_screenshots;

/// How many bytes a file has: several times what fits into all buffers on its way.
const SIZE: usize = 4_000_000;

/// The networks, and what runs in the public one.
struct World {
    // Dropped in this order: the networks last.
    component: Component,
    /// The port of the component's pages.
    pages: u16,
    _names: Process,
    _server: Server,
    directory: TempDir,
    networks: TwoNats,
}

impl World {
    fn start() -> Self {
        let networks = TwoNats::start(Nat::PortRestricted, Nat::PortRestricted);
        // The servers are reached; nobody behind the other NAT is.
        networks.run_in(Place::Public, "sysctl", &["-qw", "net.ipv4.ip_forward=0"]);
        let directory = tempfile::Builder::new().prefix("fingerpost-windows-").tempdir().unwrap();
        // Programs of other users read what is in it.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let address = TwoNats::SERVERS.to_string();
        let groups = directory.path().join("groups.txt");
        fs::write(&groups, contacts()).unwrap();
        let (server, component, pages, names) = networks.inside(Place::Public, || {
            let mut server = Server::start_at(Kind::Prosody, &address);
            server.reconfigure(true, |text| {
                let file = format!("groups_file = \"{}\"\nVirtualHost ", groups.display());
                text.replace("\"roster\", ", "\"roster\", \"groups\", ").replacen(
                    "VirtualHost ",
                    &file,
                    1,
                )
            });
            let options = Options {
                address: Some(address.clone()),
                env: vec![("FINGERPOST_BROKER__PLAIN", "mark".to_owned())],
                ..Options::default()
            };
            let (options, pages) = options.with_pages();
            let component = Component::start(&server, &options);
            let names = name_server(&address, server.client_port(), directory.path());
            (server, component, pages, names)
        });
        fs::write(directory.path().join("resolv.conf"), format!("nameserver {address}\n")).unwrap();
        // The certificates that programs trust, and the server's.
        let mut trusted = fs::read(TRUSTED).unwrap_or_default();
        trusted.extend(fs::read(server.ca()).unwrap());
        fs::write(directory.path().join("trusted.pem"), trusted).unwrap();
        Self { component, pages, _names: names, _server: server, directory, networks }
    }

    /// Starts a client at a place, with a screen and a home of its own.
    fn client(&self, client: &str, place: Place, more: Value) -> Process {
        let (user, peer) = match place {
            Place::HostA => (0, 1),
            _ => (1, 0),
        };
        let (name, password) = USERS[user];
        let directory = self.directory.path();
        let home = directory.join(name);
        fs::create_dir(&home).unwrap();
        // Hidden from the dialogs for files.
        let run = home.join(".run");
        fs::create_dir(&run).unwrap();
        fs::set_permissions(&run, fs::Permissions::from_mode(0o700)).unwrap();
        let mut settings = json!({
            "client": client,
            "prefix": debian::words(debian_of(client).as_deref()),
            "jid": format!("{name}@{DOMAIN}"),
            "password": password,
            "contact": proxied(USERS[peer].0),
            "contact_name": contact_name(USERS[peer].0),
            "component": COMPONENT,
            "home": home,
        });
        settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.networks.name(place)]);
        // Nothing of what it starts outlives it, and only these programs see the mounts.
        command.args(["unshare", "--mount", "--propagation", "private"]);
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-euc"]);
        command.arg(
            "mkdir -p /tmp/.X11-unix; mount -t tmpfs none /tmp/.X11-unix; \
             mount --bind \"$0/resolv.conf\" \"$1/etc/resolv.conf\"; mount --bind \"$0/trusted.pem\" \"$1$2\"; shift 2; \
             exec dbus-run-session -- \"$@\"",
        );
        let debian = debian_of(client).unwrap_or_else(|| PathBuf::from("/"));
        command.arg(directory).arg(debian).arg(TRUSTED).arg("/usr/bin/python3");
        command.arg(root().join("tests/clients/file_window.py")).arg(settings.to_string());
        command.env("HOME", &home).env("LANG", "C.UTF-8").env("XDG_RUNTIME_DIR", run);
        for (name, path) in [("CONFIG", ".config"), ("DATA", ".local/share"), ("CACHE", ".cache")] {
            command.env(format!("XDG_{name}_HOME"), home.join(path));
        }
        for (name, value) in [
            ("GDK_BACKEND", "x11"),
            ("GTK_USE_PORTAL", "0"),
            ("GTK_A11Y", "none"),
            ("NO_AT_BRIDGE", "1"),
        ] {
            command.env(name, value);
        }
        Process::start(command, &directory.join(format!("{name}.log")))
    }

    /// Lets one client send a file to the other; both are compared.
    #[expect(clippy::print_stdout, reason = "the report of `make clients-test`")]
    fn transfers(&self, from: &str, to: &str) {
        let file = self.directory.path().join("letter.bin");
        random_file(&file, SIZE);
        let mut settings = json!({"name": "letter.bin", "size": SIZE});
        if to == "dino" && writes_screenshots() {
            settings["screenshot"] = json!(root().join("docs/file-in-dino.png"));
        }
        let mut receiver = self.client(to, Place::HostB, settings);
        waits_for_line(&mut receiver, "ready");
        let mut sender = self.client(from, Place::HostA, json!({"file": file}));
        waits_for_line(&mut sender, "report: ");
        let logs = || format!("{}\n{}", sender.log(), self.component.log());
        let report = || {
            let line = receiver
                .log()
                .lines()
                .find_map(|line| line.strip_prefix("report: ").map(|report| report.to_owned()))?;
            serde_json::from_str::<Value>(&line).ok()
        };
        wait_for(
            "the received file",
            PATIENCE,
            || format!("{}\n{}", receiver.log(), logs()),
            || report().is_some(),
        );
        let received = report().unwrap()["file"].as_str().unwrap().to_owned();
        assert_eq!(sha256(Path::new(&received)), sha256(&file), "{}", logs());
        let metrics = self.networks.inside(Place::Public, || page(self.pages, "/metrics")).unwrap();
        assert!(metrics.contains("\nfingerpost_broker_sessions_plain_total 1\n"), "{metrics}");
        let log = self.component.log();
        let legs = log.lines().find_map(|line| line.split_once("both legs up "));
        let (_, legs) = legs.expect("the legs in the log");
        println!("{from} {} to {to} {}: {SIZE} bytes, {legs}", version(from), version(to));
    }
}

#[expect(clippy::print_stdout, reason = "the report of `make clients-test`")]
fn adds_a_key_in_a_chat(client: &str) {
    let print = ["5A"; 32].join(":");
    let chat = [
        ("help", "lookup"),
        ("keys", "You have no keys"),
        ("add x509", "A name for it"),
        ("laptop", "The certificate"),
        ("-", "Or its print"),
        (&print, "It replaces"),
        ("-", "Add this key?"),
        ("yes", "The key is registered"),
        ("keys", "laptop (x509, active, asserted)"),
    ];
    let world = World::start();
    let mut started = world.client(client, Place::HostA, json!({"chat": chat}));
    waits_for_line(&mut started, "report: ");
    println!("{client} {}: {} messages and their answers", version(client), chat.len());
}

/// Where Debian has the certificates that programs trust.
const TRUSTED: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Returns the root directory of the Debian that has a client, if it is not this machine's.
fn debian_of(client: &str) -> Option<PathBuf> {
    debian::of_clients().filter(|_| client == "dino")
}

/// Returns the version of a client's package.
fn version(client: &str) -> String {
    let package = if client == "dino" { "dino-im" } else { client };
    debian::version(debian_of(client).as_deref(), package)
}

/// Returns the address of a user at the component.
fn proxied(user: &str) -> String {
    format!("{user}\\40{DOMAIN}@{COMPONENT}")
}

/// Returns the name of that address in contact lists.
fn contact_name(user: &str) -> String {
    format!("{user} here")
}

/// Returns the group that the server puts into all contact lists. It makes the users reachable at the component.
fn contacts() -> String {
    let mut group = "[Files]\n".to_owned();
    let users = &USERS[..2];
    users.iter().for_each(|(user, _)| group.push_str(&format!("{user}@{DOMAIN}\n")));
    group.push_str(&format!("{COMPONENT}=Fingerpost\n"));
    for (user, _) in users {
        group.push_str(&format!("{}={}\n", proxied(user), contact_name(user)));
    }
    group
}

/// Starts a name server by which clients find the port of the server.
fn name_server(address: &str, port: u16, directory: &Path) -> Process {
    let mut command = Command::new("/usr/sbin/dnsmasq");
    command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--port=53"]);
    command.args(["--bind-interfaces", "--no-resolv", "--no-hosts", "--user=root"]);
    command.args(["--local=/test/", &format!("--listen-address={address}")]);
    command.arg(format!("--host-record={DOMAIN},{address}"));
    command.arg(format!("--srv-host=_xmpp-client._tcp.{DOMAIN},{DOMAIN},{port}"));
    let process = Process::start(command, &directory.join("dnsmasq.log"));
    let is_up = || std::net::TcpStream::connect((address, 53)).is_ok();
    wait_for("dnsmasq", PATIENCE, || process.log(), is_up);
    process
}

/// Waits until a client's program prints a line.
fn waits_for_line(client: &mut Process, start: &str) {
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        let (ended, log) = (client.ended(), client.log());
        if log.lines().any(|line| line.starts_with(start)) {
            return;
        }
        assert!(ended.is_none(), "ended: {ended:?}\n{log}");
        assert!(std::time::Instant::now() < end, "not printed: {start}\n{log}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

#[test]
#[ignore = "needs clients: `make clients-test`"]
fn dino_sends_dino_a_file() {
    World::start().transfers("dino", "dino");
}

#[test]
#[ignore = "needs clients: `make clients-test`"]
fn pidgin_sends_pidgin_a_file() {
    World::start().transfers("pidgin", "pidgin");
}

#[test]
#[ignore = "needs clients: `make clients-test`"]
fn pidgin_sends_psi_a_file() {
    World::start().transfers("pidgin", "psi-plus");
}

#[test]
#[ignore = "needs clients: `make clients-test`"]
fn psi_sends_pidgin_a_file() {
    World::start().transfers("psi-plus", "pidgin");
}

/// Psi+ has stream initiation alone, and Dino has Jingle alone.
#[test]
#[ignore = "needs clients: `make clients-test`"]
fn psi_sends_dino_a_file() {
    World::start().transfers("psi-plus", "dino");
}

/// The same the other way round.
#[test]
#[ignore = "needs clients: `make clients-test`"]
fn dino_sends_pidgin_a_file() {
    World::start().transfers("dino", "pidgin");
}

#[test]
#[ignore = "needs clients: `make clients-test`"]
fn pidgin_sends_dino_a_file() {
    World::start().transfers("pidgin", "dino");
}

#[test]
#[ignore = "needs clients: `make clients-test`"]
fn dino_sends_psi_a_file() {
    World::start().transfers("dino", "psi-plus");
}

#[test]
#[ignore = "needs clients: `make clients-test`"]
fn dino_adds_a_key_in_a_chat() {
    adds_a_key_in_a_chat("dino");
}

#[test]
#[ignore = "needs clients: `make clients-test`"]
fn pidgin_adds_a_key_in_a_chat() {
    adds_a_key_in_a_chat("pidgin");
}
