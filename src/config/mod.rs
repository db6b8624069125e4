//! The configuration, with every value final and checked.
//!
//! A setting comes from the environment, then the TOML file, then its default ([`DEFAULT_TEXT`] shows all of them). An
//! unknown key is an error. Every error names the place, the key and what was expected, on one line.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fingerpost_secure::redact::Secret;
use fingerpost_wire::{
    jid::{canonical_bare, identity},
    size,
};
use jid::{BareJid, Jid};
use tracing_subscriber::EnvFilter;

pub use self::error::ConfigError;
use self::{
    error::Where,
    file::{Section, Written},
};
use crate::registry::store::check_address;

mod env;
mod error;
mod file;
mod keys;

/// Every setting with its default and its purpose, as TOML.
pub const DEFAULT_TEXT: &str = include_str!("default.toml");
/// The default paths of the configuration, in this order.
pub const DEFAULT_PATHS: [&str; 2] = ["fingerpost.toml", "/etc/fingerpost/config.toml"];

/// The variable that names systemd's directory of credentials (`LoadCredential=`).
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";
/// The file with the secret, in that directory or beside the configuration, if no setting names one.
const SECRET_NAME: &str = "secret";

/// A day; the longest handshake, activation or drain.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// The values of a largest segment. Every IPv4 host must accept 536 bytes (RFC 9293, 3.7.1).
const SEGMENT: &str = "0 or a whole number from 536 to 32767";
/// The shortest timeout that leaves a peer time to act.
const SHORTEST: Duration = Duration::from_millis(100);

/// The whole configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The component and its XMPP server.
    pub component: Component,
    /// The database of keys.
    pub database: Database,
    /// SOCKS5 streams.
    pub socks5: Socks5,
    /// Streams inside XMPP.
    pub ibb: Ibb,
    /// Brokered sessions.
    pub broker: Broker,
    /// The registry of keys.
    pub registry: Registry,
    /// Access rights.
    pub access: Access,
    /// Limits on numbers and times.
    pub limits: Limits,
    /// Health, metrics, status page.
    pub http: Http,
    /// The log.
    pub log: Log,
}

/// The component and its XMPP server.
#[derive(Clone, Debug, PartialEq)]
pub struct Component {
    /// The component's own address, a domain.
    pub jid: BareJid,
    /// host:port of the component port of one or several servers, in the order in which they are tried; at least one.
    pub servers: Vec<String>,
    /// The secret shared with the server.
    pub secret: Secret,
    /// The name shown in service discovery.
    pub name: String,
    /// Contact addresses of the operators, as URIs.
    pub contact: Vec<String>,
    /// The longest stanza that is sent to the server, in bytes.
    pub max_stanza_bytes: usize,
}

/// The database of keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Database {
    /// `sqlite:PATH`, `sqlite::memory:` or `postgres://USER:PASSWORD@HOST/DATABASE`, with one or several hosts.
    pub url: String,
    /// The most open connections.
    pub max_connections: u32,
    /// Whether a pooler in front of PostgreSQL gives each transaction another connection.
    pub pooler: bool,
    /// Whether `serve` updates the schema itself.
    pub migrate: bool,
}

/// SOCKS5 streams.
#[derive(Clone, Debug, PartialEq)]
pub struct Socks5 {
    /// host:port of each listener; none switches SOCKS5 off. The system picks a port for 0.
    pub listen: Vec<String>,
    /// The host and port of each announced address.
    pub advertise: Vec<(String, u16)>,
    /// Whether connections start with a PROXY header.
    pub proxy_protocol: bool,
    /// The largest TCP segment of these connections in bytes, both ways; 0 leaves it to the path's ends.
    pub max_segment: u32,
}

/// Streams inside XMPP.
#[derive(Clone, Debug, PartialEq)]
pub struct Ibb {
    /// Whether in-band streams are on.
    pub enabled: bool,
    /// Bytes in one block on the component's own legs.
    pub block_size: u16,
    /// The most unacknowledged blocks, per direction.
    pub window: u16,
    /// Bytes of blocks by message that may wait for their readers, in all streams together.
    pub memory: usize,
    /// How long a user's client may leave blocks unacknowledged.
    pub silence_timeout: Duration,
}

/// Brokered sessions.
#[derive(Clone, Debug, PartialEq)]
pub struct Broker {
    /// Whether sessions without TLS are refused, and streams without a ClientHello ended.
    pub require_tls: bool,
    /// For a print that the registry has never seen.
    pub unknown: Policy,
    /// For a print that belongs to none of the user's registered keys.
    pub mismatch: Policy,
    /// For a print of a revoked key.
    pub revoked: Policy,
}

/// The treatment of an offered print that the registry cannot vouch for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Policy {
    /// Pass it on, with the verdict beside it.
    Annotate,
    /// Remove it from the offer.
    Strip,
    /// Refuse the session.
    Reject,
}

/// The registry of keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Registry {
    /// The visibility of users that have not chosen.
    pub visibility: Visibility,
    /// The most active keys of one user.
    pub keys_per_user: u32,
    /// Whether OpenPGP keys published in PEP are read.
    pub import_pep: bool,
}

/// The visibility of a user's keys.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Visibility {
    /// Everyone who may use the service.
    Everyone,
    /// Users of the same domain.
    Local,
    /// Users that the owner has named.
    Listed,
    /// Nobody but the owner.
    Nobody,
}

/// Access rights.
#[derive(Clone, Debug, PartialEq)]
pub struct Access {
    /// Bare JIDs and domains that may use the service; `*` is anyone.
    pub users: Vec<String>,
    /// Bare JIDs of administrators.
    pub admins: Vec<String>,
    /// Bare JIDs and domains that may not; this list overrides the others.
    pub blocked: Vec<String>,
}

/// Limits on numbers and times.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Sessions at the same time.
    pub sessions: usize,
    /// Sessions of one user at the same time.
    pub sessions_per_user: usize,
    /// Requests of one user per second; bursts are four times as many.
    pub requests_per_second: u32,
    /// SOCKS5 connections from one address at the same time.
    pub connections_per_ip: usize,
    /// Bytes per second of one session; 0 is unlimited.
    pub bytes_per_second: u64,
    /// How long SOCKS5 greeting and request may take.
    pub handshake_timeout: Duration,
    /// How long a stream may be connected and not activated, and a session without a transport.
    pub activation_timeout: Duration,
    /// How long a stream may move no byte.
    pub idle_timeout: Duration,
    /// How long sessions may take to end by themselves when the program stops.
    pub drain_timeout: Duration,
}

/// Health, metrics, status page.
#[derive(Clone, Debug, PartialEq)]
pub struct Http {
    /// host:port, or `None` for off.
    pub listen: Option<String>,
}

/// The log.
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// A level, or a filter in tracing's syntax.
    pub level: String,
    /// The format of lines.
    pub format: Format,
}

/// The format of the log's lines.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// A configuration, and remarks for its reader.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// The file that it came from.
    pub path: PathBuf,
    /// Sentences for the operator about problems that do not prevent a start.
    pub warnings: Vec<String>,
}

impl Config {
    /// Reads the configuration file `path`, or the first of [`DEFAULT_PATHS`] that exists; `vars` override it.
    ///
    /// # Errors
    /// A file that cannot be read, or the first fault in it.
    pub fn load(
        path: Option<&Path>,
        vars: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Loaded, ConfigError> {
        let path = match path {
            Some(path) => path.to_owned(),
            None => DEFAULT_PATHS
                .iter()
                .map(PathBuf::from)
                .find(|path| path.exists())
                .ok_or_else(no_file)?,
        };
        let name = path.display().to_string();
        let text = std::fs::read_to_string(&path).map_err(|error| {
            ConfigError::at(name.clone(), format!("cannot be read: {}", plain(&error)))
                .with_hint("`fingerpost config` prints a configuration to start from")
        })?;
        let (config, mut warnings) = Self::parse(&name, &text, vars)?;
        if is_open(&path) {
            warnings.extend(secrets(&text).map(|key| {
                format!("{name}: {key}: everyone on this machine can read this secret; chmod o-rwx {name}")
            }));
        }
        Ok(Loaded { config, path, warnings })
    }

    /// Returns the settings that differ in `new` and take effect only after a restart.
    pub fn needing_restart(&self, new: &Self) -> Vec<String> {
        let changed = self.after_restart(new);
        changed.iter().filter(|(_, changed)| *changed).map(|(key, _)| (*key).to_owned()).collect()
    }

    /// Returns all settings that take effect only after a restart, and whether each differs in `new`.
    fn after_restart(&self, new: &Self) -> [(&'static str, bool); 12] {
        let (component, database) = (&self.component, &self.database);
        [
            ("component.jid", component.jid != new.component.jid),
            ("component.server", component.servers != new.component.servers),
            ("component.secret", component.secret != new.component.secret),
            (
                "component.max_stanza_bytes",
                component.max_stanza_bytes != new.component.max_stanza_bytes,
            ),
            ("database.url", database.url != new.database.url),
            ("database.max_connections", database.max_connections != new.database.max_connections),
            ("database.pooler", database.pooler != new.database.pooler),
            ("socks5.listen", self.socks5.listen != new.socks5.listen),
            ("socks5.proxy_protocol", self.socks5.proxy_protocol != new.socks5.proxy_protocol),
            ("socks5.max_segment", self.socks5.max_segment != new.socks5.max_segment),
            ("http.listen", self.http.listen != new.http.listen),
            ("log.format", self.log.format != new.log.format),
        ]
    }

    /// Reads a configuration from `text`, which came from the file `name`; `vars` override it.
    ///
    /// Also returns the warnings: sentences for the operator.
    ///
    /// # Errors
    /// The first fault in it.
    pub fn parse(
        name: &str,
        text: &str,
        vars: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(Self, Vec<String>), ConfigError> {
        let vars: Vec<(String, String)> = vars.into_iter().collect();
        let credentials = vars
            .iter()
            .find(|(name, directory)| name == CREDENTIALS && !directory.is_empty())
            .map(|(_, directory)| PathBuf::from(directory));
        let written = Written::parse(name, text, vars)?;
        let mut warnings = Vec::new();
        let component =
            component(&written.section("component"), name, credentials.as_deref(), &mut warnings)?;
        let socks5 = socks5(&written.section("socks5"), &component.jid)?;
        let access = access(&written.section("access"), &component.jid)?;
        let config = Self {
            component,
            database: database(&written.section("database"))?,
            socks5,
            ibb: ibb(&written.section("ibb"))?,
            broker: broker(&written.section("broker"))?,
            registry: registry(&written.section("registry"))?,
            access,
            limits: limits(&written.section("limits"))?,
            http: http(&written.section("http"))?,
            log: log(&written.section("log"))?,
        };
        if config.socks5.listen.is_empty() && !config.ibb.enabled {
            return Err(written
                .section("ibb")
                .error("enabled", "expected true while [socks5] listen is empty, found false"));
        }
        Ok((config, warnings))
    }
}

fn component(
    section: &Section<'_>,
    file: &str,
    credentials: Option<&Path>,
    warnings: &mut Vec<String>,
) -> Result<Component, ConfigError> {
    let jid = section
        .text("jid", "a domain such as \"xtls.example.org\"", |text| {
            // Spelled as the server has it, without DNS's dot at the end.
            let text = text.strip_suffix('.').unwrap_or(text);
            BareJid::new(text).ok().filter(|jid| jid.node().is_none())
        })?
        .ok_or_else(|| section.error("jid", "missing; expected the component's domain"))?;
    let servers = section
        .one_or_several("server", "\"host:port\"", |text| host_port(text).map(|_| text.to_owned()))?
        .unwrap_or_else(|| vec!["127.0.0.1:5347".to_owned()]);
    let secret = section.text("secret", "a text that is not empty", |text| {
        (!text.is_empty()).then(|| Secret::new(text))
    })?;
    let secret_file = section
        .text("secret_file", "a path", |text| (!text.is_empty()).then(|| PathBuf::from(text)))?;
    // The environment overrides the file here too, whichever of the two it sets.
    let (secret, secret_file) = match (section.in_env("secret"), section.in_env("secret_file")) {
        (true, false) => (secret, None),
        (false, true) => (None, secret_file),
        _ => (secret, secret_file),
    };
    let secret = match (secret, secret_file) {
        (Some(_), Some(_)) => {
            return Err(
                section.error("secret_file", "expected either secret or secret_file, found both")
            );
        }
        (Some(secret), None) => secret,
        (None, Some(path)) => match path.strip_prefix(format!("${CREDENTIALS}")) {
            Ok(name) => {
                let directory = credentials.ok_or_else(|| {
                    let found = format!("${CREDENTIALS}, which is not set");
                    section.error(
                        "secret_file",
                        format!("expected a file with the secret, found {found}"),
                    )
                })?;
                read_secret(section, &directory.join(name), file, warnings)?
            }
            Err(_) => read_secret(section, &path, file, warnings)?,
        },
        (None, None) => {
            let beside = Path::new(file).with_file_name(SECRET_NAME);
            let given = credentials.map(|directory| directory.join(SECRET_NAME));
            let places = [given, Some(beside.clone())];
            match places.into_iter().flatten().find(|path| path.exists()) {
                Some(path) => read_secret(section, &path, file, warnings)?,
                None => {
                    let error = section.error("secret", "missing; expected secret or secret_file");
                    return Err(ConfigError { no_secret: Some(beside), ..error }.with_hint(
                        "`fingerpost attach prosody` (or ejabberd) makes one and says what to tell the server",
                    ));
                }
            }
        }
    };
    let name = section
        .text("name", "a name of 1 to 100 characters", |text| {
            (1..=100).contains(&text.chars().count()).then(|| text.to_owned())
        })?
        .unwrap_or_else(|| "Fingerpost".to_owned());
    let contact = section
        .list("contact", "an address such as \"mailto:admin@example.org\"", |text| {
            let (scheme, rest) = text.split_once(':')?;
            let named = scheme.chars().all(|c| c.is_ascii_alphanumeric()) && !scheme.is_empty();
            (named && !rest.is_empty() && text.len() <= 1000).then(|| text.to_owned())
        })?
        .unwrap_or_default();
    let max_stanza_bytes =
        section.number("max_stanza_bytes", (size::LEAST, size::MOST), size::DEFAULT)?;
    Ok(Component { jid, servers, secret, name, contact, max_stanza_bytes })
}

fn read_secret(
    section: &Section<'_>,
    path: &Path,
    file: &str,
    warnings: &mut Vec<String>,
) -> Result<Secret, ConfigError> {
    let refuse = |why: String| {
        section.error("secret_file", format!("expected a file with the secret, found {why}"))
    };
    let text = std::fs::read_to_string(path).map_err(|error| {
        let missing = error.kind() == ErrorKind::NotFound;
        ConfigError {
            no_secret: missing.then(|| path.to_owned()),
            ..refuse(format!("{}: {}", path.display(), plain(&error)))
        }
    })?;
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.is_empty() {
        return Err(refuse(format!("{}, which is empty", path.display())));
    }
    if is_open(path) {
        warnings.push(format!(
            "{file}: component.secret_file: {} is readable by everyone; chmod o-rwx it",
            path.display()
        ));
    }
    Ok(Secret::new(secret))
}

/// Returns whether everyone on the machine may read or change a file.
fn is_open(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o007 != 0)
}

/// Returns the settings in a configuration that are secrets: the component's, and a database's address with a password.
fn secrets(text: &str) -> impl Iterator<Item = &'static str> {
    let table: toml::Table = toml::from_str(text).unwrap_or_default();
    let value = |section: &str, key: &str| {
        table.get(section)?.get(key)?.as_str().map(str::to_owned).filter(|text| !text.is_empty())
    };
    let password = |url: &String| {
        let user = url.split_once("://").and_then(|(_, rest)| rest.rsplit_once('@'));
        user.is_some_and(|(user, _)| user.contains(':')) || url.contains("password=")
    };
    let found = [
        value("component", "secret").map(|_| "component.secret"),
        value("database", "url").filter(password).map(|_| "database.url"),
    ];
    found.into_iter().flatten()
}

fn database(section: &Section<'_>) -> Result<Database, ConfigError> {
    const EXPECTED: &str = "\"sqlite:PATH\" or \"postgres://USER:PASSWORD@HOST/DATABASE\"";
    let url = section.text("url", EXPECTED, |text| {
        ["sqlite:", "postgres://", "postgresql://"]
            .iter()
            .find_map(|scheme| text.strip_prefix(scheme))
            .filter(|rest| !rest.is_empty())
            .map(|_| text.to_owned())
    })?;
    if let Some(Err(wrong)) = url.as_deref().map(check_address) {
        return Err(section.error("url", wrong));
    }
    Ok(Database {
        url: url.unwrap_or_else(|| "sqlite:fingerpost.db".to_owned()),
        max_connections: section.number("max_connections", (1, 1000), 8)?,
        pooler: section.boolean("pooler", false)?,
        migrate: section.boolean("migrate", true)?,
    })
}

fn socks5(section: &Section<'_>, jid: &BareJid) -> Result<Socks5, ConfigError> {
    let listen = section
        .list("listen", "\"address:port\"", |text| {
            own_address(text).map(|(_, port)| (text.to_owned(), port))
        })?
        .unwrap_or_else(|| vec![("[::]:7625".to_owned(), 7625)]);
    let advertise = section.list("advertise", "\"host:port\"", host_port)?;
    let told =
        || listen.iter().map(|(_, port)| (jid.domain().as_str().to_owned(), *port)).collect();
    let mut advertise = advertise.unwrap_or_else(told);
    advertise.dedup();
    let proxy_protocol = section.boolean("proxy_protocol", false)?;
    let max_segment = section.read("max_segment", SEGMENT, |at, value| {
        let size = match (at, value) {
            (_, toml::Value::Integer(size)) => u32::try_from(*size).ok(),
            (Where::Env(_), toml::Value::String(text)) => text.parse().ok(),
            _ => None,
        };
        size.filter(|size| *size == 0 || (536..=32_767).contains(size))
    })?;
    Ok(Socks5 {
        listen: listen.into_iter().map(|(text, _)| text).collect(),
        advertise,
        proxy_protocol,
        max_segment: max_segment.unwrap_or(0),
    })
}

fn ibb(section: &Section<'_>) -> Result<Ibb, ConfigError> {
    Ok(Ibb {
        enabled: section.boolean("enabled", true)?,
        block_size: section.number("block_size", (256, u16::MAX), 8192)?,
        window: section.number("window", (1, 256), 16)?,
        memory: section.number("memory", (1 << 20, 1 << 40), 64 << 20)?,
        silence_timeout: section.duration(
            "silence_timeout",
            (SHORTEST, DAY),
            Duration::from_secs(300),
        )?,
    })
}

fn broker(section: &Section<'_>) -> Result<Broker, ConfigError> {
    let choices =
        [("annotate", Policy::Annotate), ("strip", Policy::Strip), ("reject", Policy::Reject)];
    Ok(Broker {
        require_tls: section.boolean("require_tls", true)?,
        unknown: section.choice("unknown", &choices, Policy::Annotate)?,
        mismatch: section.choice("mismatch", &choices, Policy::Annotate)?,
        revoked: section.choice("revoked", &choices, Policy::Reject)?,
    })
}

fn registry(section: &Section<'_>) -> Result<Registry, ConfigError> {
    let choices = [
        ("everyone", Visibility::Everyone),
        ("local", Visibility::Local),
        ("listed", Visibility::Listed),
        ("nobody", Visibility::Nobody),
    ];
    Ok(Registry {
        visibility: section.choice("visibility", &choices, Visibility::Everyone)?,
        keys_per_user: section.number("keys_per_user", (1, 10_000), 32)?,
        import_pep: section.boolean("import_pep", true)?,
    })
}

fn access(section: &Section<'_>, jid: &BareJid) -> Result<Access, ConfigError> {
    let bare = |text: &str| canonical_bare(text).map(|jid| jid.to_string());
    let users = section.list("users", "a bare JID, a domain or \"*\"", |text| match text {
        "*" => Some(text.to_owned()),
        text => bare(text),
    })?;
    let admins = section.list("admins", "a bare JID such as \"admin@example.org\"", |text| {
        canonical_bare(text).filter(|jid| jid.node().is_some()).map(|jid| jid.to_string())
    })?;
    let blocked = section.list("blocked", "a bare JID or a domain", bare)?;
    Ok(Access {
        users: users.unwrap_or_else(|| vec![parent(jid)]),
        admins: admins.unwrap_or_default(),
        blocked: blocked.unwrap_or_default(),
    })
}

/// Returns the parent of a component's domain; a domain without a dot is its own parent.
fn parent(jid: &BareJid) -> String {
    let jid = identity(jid);
    let domain = jid.domain().as_str();
    domain.split_once('.').map_or(domain, |(_, parent)| parent).to_owned()
}

fn limits(section: &Section<'_>) -> Result<Limits, ConfigError> {
    let second = Duration::from_secs;
    Ok(Limits {
        sessions: section.number("sessions", (1, 1_000_000), 10_000)?,
        sessions_per_user: section.number("sessions_per_user", (1, 1_000_000), 32)?,
        requests_per_second: section.number("requests_per_second", (1, 1_000_000), 20)?,
        connections_per_ip: section.number("connections_per_ip", (1, 1_000_000), 64)?,
        bytes_per_second: section.number("bytes_per_second", (0, 1_000_000_000_000_u64), 0)?,
        handshake_timeout: section.duration("handshake_timeout", (SHORTEST, DAY), second(10))?,
        activation_timeout: section.duration("activation_timeout", (SHORTEST, DAY), second(60))?,
        idle_timeout: section.duration("idle_timeout", (SHORTEST, DAY * 30), second(600))?,
        drain_timeout: section.duration("drain_timeout", (Duration::ZERO, DAY), second(30))?,
    })
}

fn http(section: &Section<'_>) -> Result<Http, ConfigError> {
    let listen = section.text("listen", "\"address:port\" or \"\"", |text| match text {
        "" => Some(None),
        text => own_address(text).map(|_| Some(text.to_owned())),
    })?;
    Ok(Http { listen: listen.unwrap_or_else(|| Some("127.0.0.1:7626".to_owned())) })
}

fn log(section: &Section<'_>) -> Result<Log, ConfigError> {
    let expected = "error, warn, info, debug, trace or a filter of targets with these levels";
    let level = section.text("level", expected, |text| {
        let word = text.chars().all(char::is_alphabetic);
        let level = text.parse::<tracing::Level>().is_ok();
        (!text.is_empty() && (level || !word) && EnvFilter::try_new(text).is_ok())
            .then(|| text.to_owned())
    })?;
    let choices = [("text", Format::Text), ("json", Format::Json)];
    Ok(Log {
        level: level.unwrap_or_else(|| "info".to_owned()),
        format: section.choice("format", &choices, Format::Text)?,
    })
}

/// Splits `host:port`; removes the brackets of an IPv6 address. Port 0 is not valid.
fn host_port(text: &str) -> Option<(String, u16)> {
    host_or_any_port(text).filter(|(_, port)| *port != 0)
}

/// The same for an address to listen on, with any port. A wildcard is `0.0.0.0` or `[::]`.
fn own_address(text: &str) -> Option<(String, u16)> {
    host_or_any_port(text).filter(|(host, _)| {
        let is_name = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
        host.parse::<std::net::IpAddr>().is_ok() || host.chars().all(is_name)
    })
}

fn host_or_any_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.bytes().all(|digit| digit.is_ascii_digit()).then(|| port.parse().ok())??;
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().ok()?.to_string(),
        None if host.contains([':', '/', '[', ']']) => return None,
        None => Jid::new(host).ok().filter(|jid| jid.node().is_none()).map(|_| host.to_owned())?,
    };
    Some((host, port))
}

fn plain(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "no such file".to_owned(),
        ErrorKind::PermissionDenied => "permission denied".to_owned(),
        ErrorKind::InvalidData => "not valid UTF-8".to_owned(),
        _ => error.to_string(),
    }
}

fn no_file() -> ConfigError {
    ConfigError::at(DEFAULT_PATHS.join(" or "), "no such file".to_owned()).with_hint(
        "name a configuration with -c FILE; `fingerpost config` prints one to start from",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "[component]\njid = 'xtls.example.org'\nsecret = 's'\n";

    fn parse(text: &str, vars: &[(&str, &str)]) -> Result<Config, String> {
        let vars = vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::parse("t.toml", text, vars)
            .map(|(config, _)| config)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_annotated_default_is_the_default() {
        let annotated = parse(DEFAULT_TEXT, &[("FINGERPOST_COMPONENT__SECRET", "s")]).unwrap();
        assert_eq!(annotated, parse(SMALL, &[]).unwrap());
        for (section, keys) in keys::KEYS {
            let body = DEFAULT_TEXT.split(&format!("[{section}]\n")).nth(1).unwrap();
            let body = body.split("\n[").next().unwrap();
            for key in *keys {
                let there = body
                    .lines()
                    .any(|line| line.trim_start_matches("# ").starts_with(&format!("{key} = ")));
                assert!(there, "{section}.{key} is not in the annotated default");
            }
        }
    }

    #[test]
    fn there_are_one_or_several_servers() {
        let written = |line: &str| format!("{SMALL}server = {line}\n");
        let servers = |config: Config| config.component.servers;
        let both = ["a.example:5347", "[::1]:5348"];
        assert_eq!(servers(parse(SMALL, &[]).unwrap()), ["127.0.0.1:5347"]);
        assert_eq!(servers(parse(&written("'a.example:5347'"), &[]).unwrap()), &both[..1]);
        let list = written("['a.example:5347', '[::1]:5348']");
        assert_eq!(servers(parse(&list, &[]).unwrap()), both);
        let vars = [("FINGERPOST_COMPONENT__SERVER", "a.example:5347, [::1]:5348")];
        assert_eq!(servers(parse(&written("'c.example:1'"), &vars).unwrap()), both);
        let one = parse(&list, &[("FINGERPOST_COMPONENT__SERVER", "c.example:1")]).unwrap();
        assert_eq!(servers(one), ["c.example:1"]);
        for (line, found) in [("[]", "[]"), ("['a']", "\"a\""), ("['a:1', 2]", "2"), ("5", "5")] {
            let error = parse(&written(line), &[]).unwrap_err();
            assert!(
                error.starts_with("t.toml: component.server: expected \"host:port\""),
                "{error}"
            );
            assert!(error.ends_with(&format!("found {found}")), "{error}");
        }
        let vars = [("FINGERPOST_COMPONENT__SERVER", " , ")];
        let error = parse(SMALL, &vars).unwrap_err();
        assert!(error.starts_with("FINGERPOST_COMPONENT__SERVER: component.server: "), "{error}");
        // The order counts, and it takes effect after a restart.
        let (old, new) =
            (parse(&list, &[]).unwrap(), parse(&written("'[::1]:5348'"), &[]).unwrap());
        assert_eq!(old.needing_restart(&new), ["component.server"]);
    }

    #[test]
    fn what_a_reload_cannot_change_is_named() {
        let old = parse(SMALL, &[]).unwrap();
        let text = format!(
            "{SMALL}name = 'N'\n[log]\nlevel = 'debug'\nformat = 'json'\n[socks5]\nlisten = ['[::]:1']\n"
        );
        let new = parse(&text, &[]).unwrap();
        assert_eq!(old.needing_restart(&new), ["socks5.listen", "log.format"]);
        assert_eq!(old.needing_restart(&old), [""; 0]);
    }

    #[test]
    fn the_docs_list_what_a_reload_cannot_change() {
        let page = include_str!("../../docs/OPERATING.md");
        let (_, after) = page.split_once("settings take effect after a restart; if ").unwrap();
        let list = after.split("\n\n").nth(1).unwrap();
        let listed: Vec<&str> = list.split('`').skip(1).step_by(2).collect();
        let config = parse(SMALL, &[]).unwrap();
        assert_eq!(listed, config.after_restart(&config).map(|(key, _)| key));
    }

    #[test]
    fn what_is_not_written_follows_from_the_address() {
        let config = parse(SMALL, &[]).unwrap();
        assert_eq!(config.socks5.advertise, [("xtls.example.org".to_owned(), 7625)]);
        assert_eq!(config.access.users, ["example.org"]);
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let vars = [
            ("FINGERPOST_COMPONENT__SECRET", "other"),
            ("FINGERPOST_IBB__BLOCK_SIZE", "4096"),
            ("FINGERPOST_BROKER__REQUIRE_TLS", "false"),
            ("FINGERPOST_ACCESS__USERS", "a.example, b@c.example"),
            ("FINGERPOST_TEST_PYTHON", "ignored"),
            ("FINGERPOST_OTHER__THING", "ignored"),
        ];
        let config = parse(SMALL, &vars).unwrap();
        assert_eq!(config.component.secret, Secret::new("other"));
        assert_eq!(config.ibb.block_size, 4096);
        assert!(!config.broker.require_tls);
        assert_eq!(config.access.users, ["a.example", "b@c.example"]);
    }

    #[test]
    fn a_secret_from_the_environment_wins_over_a_file_of_secrets() {
        let text = "[component]\njid = 'xtls.example.org'\nsecret_file = '/nowhere'\n";
        let config = parse(text, &[("FINGERPOST_COMPONENT__SECRET", "s")]).unwrap();
        assert_eq!(config.component.secret, Secret::new("s"));
    }

    #[test]
    fn an_error_from_the_environment_names_the_variable() {
        assert_eq!(
            parse(SMALL, &[("FINGERPOST_IBB__BLOCKSIZE", "4096")]).unwrap_err(),
            "FINGERPOST_IBB__BLOCKSIZE: ibb.blocksize: unknown key in [ibb]; did you mean `block_size`?"
        );
        assert_eq!(
            parse(SMALL, &[("FINGERPOST_IBB__WINDOW", "0")]).unwrap_err(),
            "FINGERPOST_IBB__WINDOW: ibb.window: expected a whole number from 1 to 256, found \"0\""
        );
    }

    #[test]
    fn a_largest_segment_is_one_that_every_host_takes() {
        let size = |text: &str, vars: &[(&str, &str)]| {
            parse(&format!("{SMALL}[socks5]\n{text}"), vars).map(|config| config.socks5.max_segment)
        };
        assert_eq!(size("", &[]), Ok(0));
        assert_eq!(size("max_segment = 1220", &[]), Ok(1220));
        assert_eq!(size("", &[("FINGERPOST_SOCKS5__MAX_SEGMENT", "1220")]), Ok(1220));
        for wrong in ["1", "535", "32768", "-1", "'1220'", "true"] {
            let error = size(&format!("max_segment = {wrong}"), &[]).unwrap_err();
            assert!(error.contains("socks5.max_segment: expected 0 or a whole number"), "{error}");
        }
    }

    #[test]
    fn addresses_come_with_a_port() {
        assert_eq!(host_port("[::1]:7625"), Some(("::1".to_owned(), 7625)));
        assert_eq!(host_port("example.org:1"), Some(("example.org".to_owned(), 1)));
        for text in ["localhost", ":1", "a:0", "a:65536", "::1:80", "[::1]", "a/b:1", "a:+1"] {
            assert_eq!(host_port(text), None, "{text}");
        }
    }

    #[test]
    fn a_secret_is_found_among_the_credentials_else_beside_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.toml");
        let given = directory.path().join("given");
        std::fs::create_dir(&given).unwrap();
        let text = "[component]\njid = 'xtls.example.org'\n";
        let parse = |text: &str, vars: &[(&str, &Path)]| {
            let vars =
                vars.iter().map(|(name, path)| ((*name).to_owned(), path.display().to_string()));
            Config::parse(&file.display().to_string(), text, vars)
                .map(|(config, _)| config.component.secret)
        };
        let beside = directory.path().join("secret");
        assert_eq!(parse(text, &[]).unwrap_err().no_secret(), Some(beside.as_path()));
        std::fs::write(&beside, "beside\n").unwrap();
        assert_eq!(parse(text, &[]).unwrap(), Secret::new("beside"));
        let credentials = [(CREDENTIALS, given.as_path())];
        assert_eq!(parse(text, &credentials).unwrap(), Secret::new("beside"));
        std::fs::write(given.join("secret"), "given\n").unwrap();
        std::fs::write(given.join("other"), "other\n").unwrap();
        assert_eq!(parse(text, &credentials).unwrap(), Secret::new("given"));
        let named = format!("{text}secret_file = '$CREDENTIALS_DIRECTORY/other'\n");
        assert_eq!(parse(&named, &credentials).unwrap(), Secret::new("other"));
        let error = parse(&named, &[]).unwrap_err().to_string();
        assert!(error.ends_with("found $CREDENTIALS_DIRECTORY, which is not set"), "{error}");
    }

    #[test]
    fn a_configuration_with_a_secret_that_everyone_can_read_is_warned_of() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.toml");
        let warnings = |text: &str, mode| {
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
            Config::load(Some(&file), []).unwrap().warnings
        };
        assert_eq!(warnings(SMALL, 0o600), [""; 0]);
        assert_eq!(warnings(SMALL, 0o640), [""; 0]);
        let [warning] = warnings(SMALL, 0o644).try_into().unwrap();
        assert!(warning.contains("component.secret") && warning.contains("chmod"), "{warning}");
        assert!(!warning.contains("'s'"), "{warning}");
        let with_password = format!("{SMALL}[database]\nurl = 'postgres://user:pw@host/db'\n");
        assert_eq!(warnings(&with_password, 0o644).len(), 2);
        let without = format!("{SMALL}[database]\nurl = 'postgres://user@host/db'\n");
        assert_eq!(warnings(&without, 0o644).len(), 1);
        // The secret is in another file, which nobody else can read.
        let secret = directory.path().join("secret");
        std::fs::write(&secret, "s\n").unwrap();
        std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(warnings("[component]\njid = 'xtls.example.org'\n", 0o644), [""; 0]);
    }

    #[test]
    fn a_database_url_may_name_several_hosts_and_is_checked() {
        let url = |url: &str| parse(&format!("{SMALL}[database]\nurl = '{url}'\n"), &[]);
        for good in [
            "postgres://u:p@a.test:5432,b.test:5432/db?target_session_attrs=read-write",
            "postgresql://[::1],b.test/db",
            "postgres://u:p,w@a.test/db",
            "postgres:///db?options=-c%20a=b,c",
            "sqlite:a,b.db",
        ] {
            assert!(url(good).is_ok(), "{good}");
        }
        for (bad, expected) in [
            (
                "postgres://u:pw@a.test/db?target_session_attrs=standby",
                "target_session_attrs=read-write",
            ),
            ("postgres://u:pw@::1/db", "[::1]"),
            ("postgres://u:pw@a.test:99999/db", "99999"),
        ] {
            let error = url(bad).unwrap_err().to_string();
            assert!(
                error.contains("database.url: expected") && error.contains(expected),
                "{error}"
            );
            assert!(!error.contains("pw"), "{error}");
        }
    }

    #[test]
    fn every_spelling_of_a_user_or_a_domain_is_the_same() {
        let text = "users = ['xn--bcher-kva.test', 'EXAMPLE.test.', 'a@b\u{fc}cher\u{3002}test']\n\
                    admins = ['Root@XN--BCHER-KVA.test']\nblocked = ['evil\u{ff0e}test']\n";
        let config = parse(&format!("{SMALL}[access]\n{text}"), &[]).unwrap();
        assert_eq!(config.access.users, ["b\u{fc}cher.test", "example.test", "a@b\u{fc}cher.test"]);
        assert_eq!(config.access.admins, ["root@b\u{fc}cher.test"]);
        assert_eq!(config.access.blocked, ["evil.test"]);
        let small = "[component]\njid = 'xtls.xn--bcher-kva.test.'\nsecret = 's'\n";
        let config = parse(small, &[]).unwrap();
        assert_eq!(config.component.jid.as_str(), "xtls.xn--bcher-kva.test");
        assert_eq!(config.access.users, ["b\u{fc}cher.test"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_secret_that_everyone_can_read_is_warned_of() {
        use std::os::unix::fs::PermissionsExt;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "s\n").unwrap();
        let text = format!(
            "[component]\njid = 'xtls.example.org'\nsecret_file = '{}'\n",
            file.path().display()
        );
        let warnings = |mode| {
            std::fs::set_permissions(file.path(), PermissionsExt::from_mode(mode)).unwrap();
            let (config, warnings) = Config::parse("t.toml", &text, []).unwrap();
            assert_eq!(config.component.secret, Secret::new("s"));
            warnings.len()
        };
        assert_eq!(warnings(0o640), 0);
        assert_eq!(warnings(0o644), 1);
    }
}
