//! Prosody and ejabberd from their Debian packages.
//!
//! They are those of this machine, or, with `FINGERPOST_TEST_DEBIAN=trixie`, those of the Debian 13 in target/trixie,
//! which deploy/ci/trixie.sh creates.

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::process::{Process, read};
use super::{COMPONENT, DOMAIN, SECRET, USERS, debian, free_port, make_certificate, wait_for};

const START_LIMIT: Duration = Duration::from_secs(60);

/// The server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Prosody.
    Prosody,
    /// ejabberd.
    Ejabberd,
}

impl Kind {
    /// Returns the version of the server's package, such as `0.12.3-1+deb12u1`.
    pub fn version(self) -> String {
        let package = match self {
            Self::Prosody => "prosody",
            Self::Ejabberd => "ejabberd",
        };
        debian::version(debian::of_servers().as_deref(), package)
    }
}

fn program(name: &str) -> Command {
    debian::program(debian::of_servers().as_deref(), name)
}

/// A second component, with users of a load generator.
pub const LOAD: &str = "load.example.test";
/// The server's own SOCKS5 proxy, if it has one.
pub const PROXY: &str = "proxy.example.test";

/// How much a server logs.
enum Logs {
    /// Everything, for tests that look into the log.
    All,
    /// As much as the packages' configurations say.
    AsInstalled,
    /// Little, because the time counts.
    Little,
}

/// A running XMPP server with the users of [`USERS`] and a component port.
pub struct Server {
    kind: Kind,
    directory: TempDir,
    c2s: u16,
    component: u16,
    /// The port of its own mod_proxy65, if that is on.
    proxy: Option<u16>,
    /// Its second address besides 127.0.0.1.
    address: Option<String>,
    /// Whether clients have the limits of the packages' configurations.
    limited: bool,
    /// Whether clients may log in without TLS.
    in_clear: bool,
    logs: Logs,
    process: Option<Process>,
    /// Whether it has a component port.
    has_components: bool,
    /// The port of its Erlang node's port mapper, if it is a node of a cluster.
    mapper: Option<u16>,
    /// What it reads instead of /etc/resolv.conf, if it has a name server of its own.
    resolver: Option<PathBuf>,
    /// User, host, password.
    accounts: Vec<(String, String, String)>,
}

/// Two nodes of ejabberd that form one server, and the port mapper by which they find each other.
pub struct Nodes {
    // Dropped in this order.
    /// The nodes.
    pub nodes: [Server; 2],
    _mapper: Process,
    _directory: TempDir,
}

impl Nodes {
    /// Starts both and joins the second to the first.
    pub fn start() -> Self {
        Self::start_as(false)
    }

    /// The same with nodes whose clients may log in without TLS, for streams as bytes.
    pub fn start_in_clear() -> Self {
        Self::start_as(true)
    }

    fn start_as(in_clear: bool) -> Self {
        let directory = tempfile::Builder::new().prefix("fingerpost-epmd-").tempdir().unwrap();
        let port = free_port();
        let mut command = program("epmd");
        command.args(["-port", &port.to_string(), "-address", "127.0.0.1"]);
        let mapper = Process::start(command, &directory.path().join("epmd.log"));
        let is_up = || TcpStream::connect(("127.0.0.1", port)).is_ok();
        wait_for("epmd", START_LIMIT, || mapper.log(), is_up);
        let nodes = [0; 2].map(|_| {
            let mut node = Server::new(Kind::Ejabberd, None, None, false, in_clear);
            node.mapper = Some(port);
            node.prepare_ejabberd();
            node.up();
            node
        });
        let joined = nodes[1].evaluate(&format!("ejabberd_cluster:join('{}').", nodes[0].node()));
        assert_eq!(joined, "ok", "{}", nodes[1].log());
        let both = || nodes[1].evaluate("length(ejabberd_cluster:get_nodes()).") == "2";
        wait_for("the cluster", START_LIMIT, || nodes[1].log(), both);
        for port in [nodes[1].c2s, nodes[1].component] {
            let listens = || TcpStream::connect(("127.0.0.1", port)).is_ok();
            wait_for("the second node", START_LIMIT, || nodes[1].log(), listens);
        }
        Self { nodes, _mapper: mapper, _directory: directory }
    }
}

/// The domain of the second server of a [`Federation`].
pub const FAR_DOMAIN: &str = "far.example.test";

/// Two Prosodys that speak with each other, and the name server by which they find each other.
pub struct Federation {
    // Dropped in this order.
    /// The one with the component.
    pub near: Server,
    /// The one of [`FAR_DOMAIN`].
    pub far: Server,
    _names: Process,
    _directory: TempDir,
}

impl Federation {
    /// Starts all three. It needs root for the port of the name server.
    pub fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("fingerpost-names-").tempdir().unwrap();
        let resolver = directory.path().join("resolv.conf");
        // Addresses that no other test has: the ports are those of the protocols.
        let id = std::process::id();
        let network = format!("127.{}.{}", 64 + id / 256 % 128, id % 256);
        let [near, far, names] = [2, 3, 53].map(|last| format!("{network}.{last}"));
        std::fs::write(&resolver, format!("nameserver {names}\n")).unwrap();
        let mut command = Command::new("/usr/sbin/dnsmasq");
        command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--port=53"]);
        command.args(["--bind-interfaces", "--no-resolv", "--no-hosts", "--user=root"]);
        command.args(["--local=/test/", &format!("--listen-address={names}")]);
        for (name, address) in [(DOMAIN, &near), (COMPONENT, &near), (FAR_DOMAIN, &far)] {
            command.arg(format!("--host-record={name},{address}"));
        }
        let process = Process::start(command, &directory.path().join("dnsmasq.log"));
        let is_up = || TcpStream::connect((names.as_str(), 53)).is_ok();
        wait_for("dnsmasq", START_LIMIT, || process.log(), is_up);
        let server = |address: &str| {
            let mut server = Server::new(Kind::Prosody, None, None, false, false);
            server.resolver = Some(resolver.clone());
            server.prepare_prosody();
            let text = read(&server.path("prosody.cfg.lua"))
                .replace(
                    "s2s_ports = { }",
                    &format!(
                        "s2s_ports = {{ 5269 }}\ns2s_interfaces = {{ \"{address}\" }}\ns2s_secure_auth = false"
                    ),
                )
                .replace("\"roster\", ", "\"roster\", \"dialback\", ")
                .replace("modules_disabled = { \"s2s\" }\n", "");
            server.write("prosody.cfg.lua", &text);
            server
        };
        let (mut near, mut far) = (server(&near), server(&far));
        far.has_components = false;
        let text = read(&far.path("prosody.cfg.lua"));
        let (text, _component) = text.split_once("\nComponent ").unwrap();
        let host = |domain: &str| format!("VirtualHost \"{domain}\"");
        far.write("prosody.cfg.lua", &text.replace(&host(DOMAIN), &host(FAR_DOMAIN)));
        for (user, password) in USERS {
            far.set_password(user, FAR_DOMAIN, password);
        }
        near.up();
        far.up();
        Self { near, far, _names: process, _directory: directory }
    }
}

impl Server {
    /// Starts a private server and waits until it accepts connections.
    pub fn start(kind: Kind) -> Self {
        Self::start_as(kind, None, None, false, false)
    }

    /// Starts one that logs no more than the packages' configurations say, which saves much of Prosody's processor time.
    pub fn start_as_installed(kind: Kind) -> Self {
        Self::start_with_installed_logs(kind, None)
    }

    /// Starts one whose clients may log in without TLS, for streams as bytes, with little logging.
    pub fn start_in_clear(kind: Kind) -> Self {
        Self::start_as(kind, None, None, false, true)
    }

    /// Starts one that components and clients may also reach at `address`.
    pub fn start_at(kind: Kind, address: &str) -> Self {
        Self::start_as(kind, None, Some(address.to_owned()), false, false)
    }

    /// The same as [`start_as_installed`](Self::start_as_installed), also reached at `address`.
    pub fn start_as_installed_at(kind: Kind, address: &str) -> Self {
        Self::start_with_installed_logs(kind, Some(address.to_owned()))
    }

    fn start_with_installed_logs(kind: Kind, address: Option<String>) -> Self {
        let mut server = Self::new(kind, None, address, false, false);
        server.logs = Logs::AsInstalled;
        server.prepare_and_start();
        server
    }

    /// Starts one with the rate limits of Debian's configurations.
    pub fn start_limited(kind: Kind) -> Self {
        Self::start_as(kind, None, None, true, false)
    }

    /// Starts one for measurements: with its own mod_proxy65 as [`PROXY`], the component [`LOAD`], and little logging.
    pub fn start_to_measure(kind: Kind) -> Self {
        Self::start_as(kind, Some(free_port()), None, false, false)
    }

    fn start_as(
        kind: Kind,
        proxy: Option<u16>,
        address: Option<String>,
        limited: bool,
        in_clear: bool,
    ) -> Self {
        let mut server = Self::new(kind, proxy, address, limited, in_clear);
        server.prepare_and_start();
        server
    }

    fn prepare_and_start(&mut self) {
        match self.kind {
            Kind::Prosody => self.prepare_prosody(),
            Kind::Ejabberd => self.prepare_ejabberd(),
        }
        self.up();
    }

    /// Creates one that is not started and has no configuration yet.
    fn new(
        kind: Kind,
        proxy: Option<u16>,
        address: Option<String>,
        limited: bool,
        in_clear: bool,
    ) -> Self {
        let directory = tempfile::Builder::new().prefix("fingerpost-server-").tempdir().unwrap();
        make_certificate(directory.path());
        let measured = proxy.is_some();
        Self {
            kind,
            directory,
            c2s: free_port(),
            component: free_port(),
            proxy,
            address,
            limited,
            in_clear,
            logs: if in_clear || measured { Logs::Little } else { Logs::All },
            process: None,
            has_components: true,
            mapper: None,
            resolver: None,
            accounts: USERS
                .map(|(user, password)| (user.to_owned(), DOMAIN.to_owned(), password.to_owned()))
                .into(),
        }
    }

    /// Returns the name of its Erlang node.
    fn node(&self) -> String {
        format!("fp{}@127.0.0.1", self.c2s)
    }

    /// Has Prosody name a STUN server over TCP to its users (XEP-0215), from the next start on.
    ///
    /// # Panics
    /// With ejabberd.
    pub fn name_stun_server(&mut self, address: SocketAddr) {
        assert_eq!(self.kind, Kind::Prosody);
        let (host, port) = (address.ip(), address.port());
        let service =
            format!("type = \"stun\", transport = \"tcp\", host = \"{host}\", port = {port}");
        let text = read(&self.path("prosody.cfg.lua"))
            .replace("\"disco\", ", "\"disco\", \"external_services\", ")
            .replace(
                "\nVirtualHost ",
                &format!("\nexternal_services = {{ {{ {service} }} }}\nVirtualHost "),
            );
        self.write("prosody.cfg.lua", &text);
    }

    /// Stops the server and starts it again, with the same ports and data.
    pub fn restart(&mut self) {
        self.stop();
        self.up();
    }

    /// Makes the server reload its configuration, and waits until it has.
    pub fn reload(&mut self) {
        match self.kind {
            Kind::Prosody => {
                let text = "Reloading configuration file";
                let before = self.log().matches(text).count();
                if let Some(process) = &self.process {
                    process.signal("HUP");
                }
                let done = || self.log().matches(text).count() > before;
                wait_for("a reload", START_LIMIT, || self.log(), done);
            }
            Kind::Ejabberd => assert_eq!(self.evaluate("ejabberd_config:reload()."), "ok"),
        }
    }

    /// Makes ejabberd evaluate Erlang expressions, with a full stop at their end; returns the value of the last one.
    pub fn evaluate(&self, expressions: &str) -> String {
        let (result, asked) = (self.path("result"), self.path("asked"));
        let _old = std::fs::remove_file(&result);
        std::fs::write(self.path("asked.new"), expressions).unwrap();
        std::fs::rename(self.path("asked.new"), asked).unwrap();
        wait_for(expressions, START_LIMIT, || self.log(), || result.exists());
        read(&result)
    }

    /// Kills the server; [`Server::up`] starts it again, with the same ports and data.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.signal("KILL");
            process.wait(Duration::from_secs(10));
        }
    }

    /// Stops the server.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.stop(Duration::from_secs(10));
        }
    }

    /// Stops the server, changes its configuration, and starts it again; with a component port, if it still has one.
    pub fn reconfigure(&mut self, has_components: bool, change: impl FnOnce(String) -> String) {
        self.stop();
        self.has_components = has_components;
        let name = match self.kind {
            Kind::Prosody => "prosody.cfg.lua",
            Kind::Ejabberd => "ejabberd.yml",
        };
        let text = change(read(&self.path(name)));
        self.write(name, &text);
        self.up();
    }

    /// Gives it stream management (XEP-0198), as in Debian's configuration.
    pub fn with_stream_management(mut self) -> Self {
        let kind = self.kind;
        self.reconfigure(true, |text| match kind {
            Kind::Prosody => text.replace("\"roster\", ", "\"roster\", \"smacks\", "),
            Kind::Ejabberd => {
                text.replace("  mod_roster: {}\n", "  mod_roster: {}\n  mod_stream_mgmt: {}\n")
            }
        });
        self
    }

    /// Records the stanzas of clients, as they are sent and received, for [`Server::stanzas`]. Prosody must log everything already.
    pub fn with_stanzas_recorded(mut self) -> Self {
        match self.kind {
            Kind::Prosody => self.reconfigure(true, |text| {
                text.replace("\"roster\", ", "\"roster\", \"stanza_debug\", ")
            }),
            // Its own log drops lines when there are many, so its hooks write into another file.
            Kind::Ejabberd => {
                let path = self.path("stanzas.log").display().to_string();
                let hook = |name: &str, mark: &str| {
                    format!(
                        "ejabberd_hooks:add({name}, <<\"{DOMAIN}\">>, fun({{Stanza, State}}) -> \
                           Line = [<<\"{mark}\">>, fxml:element_to_binary(xmpp:encode(Stanza)), <<\"\\n\">>], \
                           ok = file:write_file(\"{path}\", Line, [append]), \
                           {{Stanza, State}} \
                         end, 0)"
                    )
                };
                let hooks =
                    [hook("user_send_packet", "RECV: "), hook("user_receive_packet", "SEND: ")];
                assert_eq!(
                    self.evaluate(&format!("{}.", hooks.join(", "))),
                    "ok",
                    "{}",
                    self.log()
                );
            }
        }
        self
    }

    /// Has Prosody answer questions of clients about each other's features by an error.
    ///
    /// # Panics
    /// With ejabberd.
    pub fn without_features(mut self) -> Self {
        assert_eq!(self.kind, Kind::Prosody);
        let module = r#"local st = require "util.stanza";
module:hook("pre-iq/full", function (event)
	local stanza = event.stanza;
	if stanza.attr.type == "get" and stanza:get_child("query", "http://jabber.org/protocol/disco#info") then
		event.origin.send(st.error_reply(stanza, "cancel", "service-unavailable"));
		return true;
	end
end, 1000);
"#;
        self.write("plugins/mod_no_features.lua", module);
        let plugins = format!("plugin_paths = {{ \"{}\" }}\n", self.path("plugins").display());
        self.reconfigure(true, |text| {
            plugins + &text.replace("\"roster\", ", "\"roster\", \"no_features\", ")
        });
        self
    }

    /// Returns the stanzas of clients that were recorded, in lines that may begin with the name of a log.
    pub fn stanzas(&self) -> Vec<String> {
        match self.kind {
            Kind::Prosody => {
                let is_one =
                    |line: &&str| ["SEND: ", "RECV: "].iter().any(|mark| line.contains(mark));
                self.log().lines().filter(is_one).map(str::to_owned).collect()
            }
            Kind::Ejabberd => read(&self.path("stanzas.log")).lines().map(str::to_owned).collect(),
        }
    }

    /// Starts the server again after [`Server::stop`].
    pub fn up(&mut self) {
        let command = match self.kind {
            Kind::Prosody => self.prosody(),
            Kind::Ejabberd => self.ejabberd(),
        };
        let mut process = Process::start(command, &self.path("output.log"));
        let component = self.has_components.then_some(self.component);
        let ports = [Some(self.c2s), component, self.proxy];
        let log = self.path("server.log");
        let output = self.path("output.log");
        wait_for(
            &format!("the start of {:?}", self.kind),
            START_LIMIT,
            || format!("{}\n{}", read(&output), read(&log)),
            || {
                let ended = process.ended();
                assert!(ended.is_none(), "ended: {ended:?}\n{}\n{}", read(&output), read(&log));
                ports.iter().flatten().all(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok())
            },
        );
        if self.kind == Kind::Ejabberd {
            // Its ports open before its users are created.
            wait_for(
                "the making of users",
                START_LIMIT,
                || read(&output),
                || self.path("ready").exists(),
            );
        }
        self.process = Some(process);
    }

    /// Returns the port of its own proxy, if it was started to be measured.
    pub fn proxy_port(&self) -> Option<u16> {
        self.proxy
    }

    /// Returns its process.
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Returns which server it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns host:port for clients.
    pub fn client_address(&self) -> String {
        format!("127.0.0.1:{}", self.c2s)
    }

    /// Returns the port for clients.
    pub fn client_port(&self) -> u16 {
        self.c2s
    }

    /// Returns host:port for the component.
    pub fn component_address(&self) -> String {
        format!("127.0.0.1:{}", self.component)
    }

    /// Returns host:port for a component at the other address.
    ///
    /// # Panics
    /// If the server has no other address.
    pub fn far_component_address(&self) -> String {
        format!("{}:{}", self.address.as_deref().expect("another address"), self.component)
    }

    /// Returns the certificate that clients must trust.
    pub fn ca(&self) -> PathBuf {
        self.path("server.pem")
    }

    /// Returns where its files are.
    pub fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// Returns everything that the server has logged.
    pub fn log(&self) -> String {
        ["output.log", "server.log", "stanzas.log"].map(|name| read(&self.path(name))).concat()
    }

    /// Returns the settings for the scripts in tests/peers.
    pub fn settings(&self) -> Value {
        let users: serde_json::Map<String, Value> = USERS
            .iter()
            .map(|(name, password)| {
                let user = json!({"jid": format!("{name}@{DOMAIN}"), "password": password});
                ((*name).to_owned(), user)
            })
            .collect();
        json!({
            "server": {"host": "127.0.0.1", "port": self.c2s, "ca": self.ca()},
            "component": COMPONENT,
            "users": users,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn prepare_prosody(&self) {
        let here = self.directory.path().display();
        let (c2s, component) = (self.c2s, self.component);
        let also = self.address.as_ref().map_or(String::new(), |also| format!(", \"{also}\""));
        let level = match self.logs {
            Logs::All => "debug",
            Logs::AsInstalled => "info",
            Logs::Little => "warn",
        };
        let encryption = match self.in_clear {
            true => "c2s_require_encryption = false\nallow_unencrypted_plain_auth = true",
            false => "c2s_require_encryption = true",
        };
        let (limits, rate) = match self.limited {
            true => ("\"limits\", ", "limits = { c2s = { rate = \"10kb/s\" } }\n"),
            false => ("", ""),
        };
        // The port is a setting of the whole server.
        let (ports, more) = self.proxy.map_or(Default::default(), |port| {
            (
                format!("proxy65_ports = {{ {port} }}\nproxy65_interfaces = {{ \"127.0.0.1\" }}\n"),
                format!(
                    r#"
Component "{PROXY}" "proxy65"
	proxy65_address = "127.0.0.1"
	proxy65_open_access = true

Component "{LOAD}"
	component_secret = "{SECRET}"
"#
                ),
            )
        });
        self.write(
            "prosody.cfg.lua",
            &format!(
                r#"run_as_root = true
pidfile = "{here}/prosody.pid"
data_path = "{here}/data"
interfaces = {{ "127.0.0.1"{also} }}
c2s_ports = {{ {c2s} }}
c2s_direct_tls_ports = {{ }}
s2s_ports = {{ }}
s2s_direct_tls_ports = {{ }}
component_ports = {{ {component} }}
component_interfaces = {{ "127.0.0.1"{also} }}
{rate}modules_enabled = {{ {limits}"carbons", "disco", "pep", "ping", "roster", "saslauth", "tls" }}
modules_disabled = {{ "s2s" }}
authentication = "internal_plain"
{encryption}
log = {{ {level} = "{here}/server.log" }}
ssl = {{ key = "{here}/server.key", certificate = "{here}/server.pem" }}
{ports}
VirtualHost "{DOMAIN}"

Component "{COMPONENT}"
	component_secret = "{SECRET}"
{more}"#
            ),
        );
        for account in &self.accounts {
            self.write_account(account);
        }
    }

    /// Writes Prosody's file of an account.
    fn write_account(&self, (user, host, password): &(String, String, String)) {
        let encode = |text: &str| -> String {
            let byte = |byte: u8| match byte.is_ascii_alphanumeric() {
                true => char::from(byte).to_string(),
                false => format!("%{byte:02x}"),
            };
            text.bytes().map(byte).collect()
        };
        self.write(
            &format!("data/{}/accounts/{}.dat", encode(host), encode(user)),
            &format!("return {{ [\"password\"] = \"{password}\"; }};\n"),
        );
    }

    /// Gives a user of a host this password, at the next start. The host may still need its configuration; its name is
    /// in the server's spelling. The password is prepared as a server does it (RFC 4013).
    pub fn set_password(&mut self, user: &str, host: &str, password: &str) {
        let account = (user.to_owned(), host.to_owned(), password.to_owned());
        if self.kind == Kind::Prosody {
            self.write_account(&account);
        }
        self.accounts.retain(|(name, at, _)| (name.as_str(), at.as_str()) != (user, host));
        self.accounts.push(account);
    }

    fn prosody(&self) -> Command {
        let mut command = program("prosody");
        command.arg("-F").arg("--config").arg(self.path("prosody.cfg.lua"));
        let Some(resolver) = &self.resolver else { return command };
        // What is mounted is seen by this server alone and is gone with it. All replace themselves: signals reach it.
        let mut wrapped = Command::new("unshare");
        wrapped
            .args(["--mount", "--propagation", "private", "sh", "-euc"])
            .arg("mount --bind \"$0\" \"$1\"; shift; exec \"$@\"")
            .arg(resolver)
            .arg(debian::of_servers().unwrap_or_else(|| PathBuf::from("/")).join("etc/resolv.conf"))
            .arg(command.get_program())
            .args(command.get_args());
        wrapped.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        wrapped
    }

    fn prepare_ejabberd(&self) {
        let here = self.directory.path().display();
        let (c2s, component) = (self.c2s, self.component);
        let level = match self.logs {
            Logs::All => "debug",
            Logs::AsInstalled => "info",
            Logs::Little => "warning",
        };
        let starttls = if self.in_clear { "starttls" } else { "starttls_required" };
        let (load, proxy) = self.proxy.map_or(Default::default(), |port| {
            (
                format!("      \"{LOAD}\":\n        password: \"{SECRET}\"\n"),
                format!(
                    "  mod_proxy65:\n    hosts: [\"{PROXY}\"]\n    port: {port}\n    ip: \"127.0.0.1\"\n    \
                     max_connections: infinity\n"
                ),
            )
        });
        let far = self.address.as_ref().map_or(String::new(), |address| {
            format!(
                "  - port: {component}\n    ip: \"{address}\"\n    module: ejabberd_service\n    shaper: none\n    \
                 global_routes: false\n    hosts:\n      \"{COMPONENT}\":\n        password: \"{SECRET}\"\n  \
                 - port: {c2s}\n    ip: \"{address}\"\n    module: ejabberd_c2s\n    max_stanza_size: 262144\n    \
                 starttls_required: true\n    shaper: none\n"
            )
        });
        let (shaper, shapers) = match self.limited {
            true => (
                "c2s_shaper",
                "shaper:\n  normal:\n    rate: 3000\n    burst_size: 20000\nshaper_rules:\n  c2s_shaper:\n    normal: all\n",
            ),
            false => ("none", ""),
        };
        let mut both = read(&self.path("server.key"));
        both.push_str(&read(&self.path("server.pem")));
        self.write("server.both.pem", &both);
        self.write(
            "ejabberd.yml",
            &format!(
                r#"hosts: ["{DOMAIN}"]
loglevel: {level}
certfiles: ["{here}/server.both.pem"]
ca_file: "{here}/server.pem"
auth_method: internal
{shapers}listen:
  - port: {c2s}
    ip: "127.0.0.1"
    module: ejabberd_c2s
    max_stanza_size: 262144
    {starttls}: true
    shaper: {shaper}
  - port: {component}
    ip: "127.0.0.1"
    module: ejabberd_service
    shaper: none
    global_routes: false
    hosts:
      "{COMPONENT}":
        password: "{SECRET}"
{load}{far}modules:
  mod_caps: {{}}
  mod_disco: {{}}
  mod_ping: {{}}
  mod_pubsub:
    plugins: ["flat", "pep"]
{proxy}  mod_roster: {{}}
"#
            ),
        );
        std::fs::create_dir_all(self.path("spool")).unwrap();
    }

    /// ejabberd's own starter needs its system user. The Erlang machine itself runs as any user, and without
    /// distribution it neither needs a node name nor starts the port mapper.
    fn ejabberd(&self) -> Command {
        let _old = std::fs::remove_file(self.path("ready"));
        let text = |text: &str| -> String {
            text.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(",")
        };
        let users: Vec<String> = self
            .accounts
            .iter()
            .map(|(name, host, password)| {
                format!("{{<<{}>>,<<{}>>,<<{}>>}}", text(name), text(host), text(password))
            })
            .collect();
        let start = format!(
            "case application:ensure_all_started(ejabberd) of \
               {{ok, _}} -> \
                 [case ejabberd_auth:try_register(U, H, P) of \
                    ok -> ok; {{error, exists}} -> ok = ejabberd_auth:set_password(U, H, P) \
                  end || {{U, H, P}} <- [{}]], \
                 ok = file:write_file(\"{here}/ready\", <<>>); \
               E -> io:format(\"~p~n\", [E]), halt(1) \
             end, \
             Eval = fun(Asked) -> \
               {{ok, Tokens, _}} = erl_scan:string(binary_to_list(Asked)), \
               {{ok, Parsed}} = erl_parse:parse_exprs(Tokens), \
               {{value, Value, _}} = erl_eval:exprs(Parsed, []), \
               Value \
             end, \
             Serve = fun Serve() -> \
               case file:read_file(\"{here}/asked\") of \
                 {{ok, Asked}} -> \
                   ok = file:delete(\"{here}/asked\"), \
                   Text = io_lib:format(\"~p\", [catch Eval(Asked)]), \
                   ok = file:write_file(\"{here}/result.new\", Text), \
                   ok = file:rename(\"{here}/result.new\", \"{here}/result\"); \
                 _ -> timer:sleep(50) \
               end, \
               Serve() \
             end, \
             spawn(Serve).",
            users.join(","),
            here = self.directory.path().display()
        );
        let mut command = program("erl");
        command
            .args(["-noinput", "-mnesia", "dir"])
            .arg(format!("\"{}\"", self.path("spool").display()));
        if let Some(port) = self.mapper {
            command
                .args(["-name", &self.node(), "-setcookie", "fingerpost", "-start_epmd", "false"])
                .args(["-kernel", "inet_dist_use_interface", "{127,0,0,1}"])
                .env("ERL_EPMD_PORT", port.to_string());
        }
        command
            .args(["-eval", &start])
            .env("ERL_LIBS", ejabberd_libraries())
            .env("EJABBERD_CONFIG_PATH", self.path("ejabberd.yml"))
            .env("EJABBERD_LOG_PATH", self.path("server.log"))
            .env("ERL_CRASH_DUMP", self.path("crash.dump"))
            .env("HOME", self.directory.path())
            .current_dir(self.directory.path());
        command
    }
}

impl Drop for Server {
    /// Stops the server before its directory is removed.
    fn drop(&mut self) {
        self.stop();
    }
}

/// Returns the directory of ejabberd's code, from its starter.
fn ejabberd_libraries() -> String {
    let root = debian::of_servers().unwrap_or_else(|| PathBuf::from("/"));
    let starter = root.join("usr/sbin/ejabberdctl");
    read(&starter)
        .lines()
        .find_map(|line| line.strip_prefix("ERL_LIBS="))
        .map(|path| path.trim_matches(['\'', '"']).to_owned())
        .unwrap_or_else(|| panic!("{} is not there; `make test` installs it", starter.display()))
}
