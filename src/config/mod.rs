//! The configuration, with every value final and checked.
//!
//! A setting comes from the environment, then the TOML file, then its default ([`DEFAULT_TEXT`] shows all of them). An
//! unknown key is an error. Every error names the place, the key and what was expected, on one line.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use fingerpost_secure::redact::Secret;
use fingerpost_wire::jid::identity;
use jid::BareJid;

pub use self::{
    error::ConfigError,
    keys::{Sections, Setting},
    settings::*,
    values::Format,
};
use self::{
    file::{SectionReader, Written},
    values::host_or_any_port,
};

mod env;
mod error;
mod file;
mod keys;
mod settings;
mod values;

/// The default paths of the configuration, in this order.
pub const DEFAULT_PATHS: [&str; 2] = ["fingerpost.toml", "/etc/fingerpost/config.toml"];

/// The variable that names systemd's directory of credentials (`LoadCredential=`).
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";
/// The file with the secret, in that directory or beside the configuration, if no setting names one.
const SECRET_NAME: &str = "secret";

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
        let changed = self.after_restart(new).into_iter().filter(|(_, changed)| *changed);
        changed.map(|(key, _)| key.to_owned()).collect()
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
        let written = Written::parse(name, text, SECTIONS, vars)?;
        let component = written.section("component");
        if !component.is_written("jid") {
            return Err(component.error("jid", "missing; expected the component's domain"));
        }
        let mut config = Self::read(&written)?;
        let mut warnings = Vec::new();
        config.component.secret =
            find_secret(&component, &config, name, credentials.as_deref(), &mut warnings)?;
        let jid = &config.component.jid;
        if !written.section("socks5").is_written("advertise") {
            let ports = config.socks5.listen.iter().filter_map(|text| host_or_any_port(text));
            config.socks5.advertise =
                ports.map(|(_, port)| (jid.domain().as_str().to_owned(), port)).collect();
        }
        config.socks5.advertise.dedup();
        if !written.section("access").is_written("users") {
            config.access.users = vec![parent(jid)];
        }
        if config.socks5.listen.is_empty() && !config.ibb.enabled {
            return Err(written
                .section("ibb")
                .error("enabled", "expected true while [socks5] listen is empty, found false"));
        }
        Ok((config, warnings))
    }
}

/// Returns the secret, wherever it is.
fn find_secret(
    section: &SectionReader<'_>,
    config: &Config,
    file: &str,
    credentials: Option<&Path>,
    warnings: &mut Vec<String>,
) -> Result<Secret, ConfigError> {
    let secret = Some(config.component.secret.clone()).filter(|secret| !secret.is_empty());
    let secret_file = config.component.secret_file.clone();
    // The environment overrides the file here too, whichever of the two it sets.
    let (secret, secret_file) = match (section.in_env("secret"), section.in_env("secret_file")) {
        (true, false) => (secret, None),
        (false, true) => (None, secret_file),
        _ => (secret, secret_file),
    };
    match (secret, secret_file) {
        (Some(_), Some(_)) => {
            Err(section.error("secret_file", "expected either secret or secret_file, found both"))
        }
        (Some(secret), None) => Ok(secret),
        (None, Some(path)) => match path.strip_prefix(format!("${CREDENTIALS}")) {
            Ok(name) => {
                let directory = credentials.ok_or_else(|| {
                    let found = format!("${CREDENTIALS}, which is not set");
                    section.error(
                        "secret_file",
                        format!("expected a file with the secret, found {found}"),
                    )
                })?;
                read_secret(section, &directory.join(name), file, warnings)
            }
            Err(_) => read_secret(section, &path, file, warnings),
        },
        (None, None) => {
            let beside = Path::new(file).with_file_name(SECRET_NAME);
            let given = credentials.map(|directory| directory.join(SECRET_NAME));
            let places = [given, Some(beside.clone())];
            match places.into_iter().flatten().find(|path| path.exists()) {
                Some(path) => read_secret(section, &path, file, warnings),
                None => {
                    let error = section.error("secret", "missing; expected secret or secret_file");
                    Err(ConfigError { no_secret: Some(beside), ..error }.with_hint(
                        "`fingerpost attach prosody` (or ejabberd) makes one and says what to tell the server",
                    ))
                }
            }
        }
    }
}

fn read_secret(
    section: &SectionReader<'_>,
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

/// Returns the parent of a component's domain; a domain without a dot is its own parent.
fn parent(jid: &BareJid) -> String {
    let jid = identity(jid);
    let domain = jid.domain().as_str();
    domain.split_once('.').map_or(domain, |(_, parent)| parent).to_owned()
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
    use super::{values::host_port, *};

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
        for (section, settings) in SECTIONS {
            let body = DEFAULT_TEXT.split(&format!("[{section}]\n")).nth(1).unwrap();
            let body = body.split("\n[").next().unwrap();
            for Setting { key, .. } in *settings {
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
        let servers = |config: Config| config.component.server;
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
    fn a_reload_takes_all_but_what_needs_a_restart() {
        let old = parse(SMALL, &[]).unwrap();
        let text = format!("{SMALL}name = 'N'\n[log]\nlevel = 'debug'\nformat = 'json'\n");
        let new = parse(&text, &[]).unwrap();
        let taken = old.reloaded(&new);
        assert_eq!((taken.component.name.as_str(), taken.log.level.as_str()), ("N", "debug"));
        assert_eq!(taken.log.format, Format::Text);
        assert_eq!(taken.needing_restart(&new), ["log.format"]);
    }

    #[test]
    fn the_docs_list_what_a_reload_cannot_change() {
        let page = include_str!("../../docs/OPERATING.md");
        let (_, after) = page.split_once("settings take effect after a restart; if ").unwrap();
        let list = after.split("\n\n").nth(1).unwrap();
        let listed: Vec<&str> = list.split('`').skip(1).step_by(2).collect();
        let config = parse(SMALL, &[]).unwrap();
        let settings = config.after_restart(&config);
        assert_eq!(listed, settings.iter().map(|(key, _)| *key).collect::<Vec<_>>());
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
    fn clients_are_told_no_address_that_nobody_can_reach() {
        let told = |address| parse(&format!("{SMALL}[socks5]\nadvertise = ['{address}']"), &[]);
        for good in ["proxy.example.org:7625", "192.0.2.1:7625", "[2001:db8::1]:7625"] {
            told(good).unwrap();
        }
        for wrong in [
            "0.0.0.0:7625",
            "[::]:7625",
            "[::ffff:0.0.0.0]:7625",
            "224.0.0.1:1",
            "[ff02::1]:1",
            "255.255.255.255:1",
            "0.1.2.3:1",
            "169.254.1.1:1",
            "[fe80::1]:1",
        ] {
            let error = told(wrong).unwrap_err();
            let expected =
                format!("\"host:port\" that clients can reach in the list, found \"{wrong}\"");
            assert!(error.contains(&expected), "{error}");
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
