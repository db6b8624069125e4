//! `fingerpost attach`: the lines about this component for the XMPP server's configuration, to paste.
//!
//! The lines go to standard output; their place and the next step go to standard error. So `fingerpost attach prosody
//! >> /etc/prosody/prosody.cfg.lua` works as it looks.

use std::{
    fmt::Write as _,
    fs::OpenOptions,
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use clap::ValueEnum;
use data_encoding::HEXLOWER;

use super::failure::CommandFailure;
use crate::config::{ComponentSettings, Config, ConfigError};

/// An XMPP server whose configuration the program knows.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Server {
    /// Prosody 0.12 or later
    Prosody,
    /// ejabberd 23 or later
    Ejabberd,
}

/// Prints the lines for `server`. If there is no secret yet, creates one and stores it where it will be found.
///
/// # Errors
/// A bad configuration, or a secret that cannot be written.
pub(super) fn run(
    server: Server,
    load: impl Fn() -> Result<Config, ConfigError>,
    out: &mut impl Write,
    err: &mut impl Write,
) -> Result<(), CommandFailure> {
    let config = match load() {
        Err(error) => {
            let Some(path) = error.no_secret() else { return Err(error.into()) };
            make_secret(path).map_err(|error| {
                CommandFailure::new(format!(
                    "{}: the secret cannot be written: {error}",
                    path.display()
                ))
            })?;
            writeln!(err, "A new secret is in {}, readable by its owner only.", path.display())?;
            load()?
        }
        Ok(config) => config,
    };
    let component = &config.component;
    match server {
        Server::Prosody => {
            out.write_all(prosody(component).as_bytes())?;
            writeln!(
                err,
                "Put these lines at the end of /etc/prosody/prosody.cfg.lua, then: systemctl restart prosody"
            )?;
        }
        Server::Ejabberd => {
            out.write_all(ejabberd(component).as_bytes())?;
            writeln!(
                err,
                "Put these lines below the line `listen:` of ejabberd.yml (Debian: /etc/ejabberd), \
                 then: systemctl restart ejabberd"
            )?;
        }
    }
    writeln!(err, "Then, while the service is stopped: fingerpost check --online")?;
    Ok(())
}

/// Writes 256 random bits, as hexadecimal digits, into a new file that only its owner may read.
fn make_secret(path: &Path) -> io::Result<()> {
    let secret: [u8; 32] = rand::random();
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    writeln!(file, "{}", HEXLOWER.encode(&secret))?;
    file.sync_all()
}

fn prosody(component: &ComponentSettings) -> String {
    let (host, port) = address(component);
    let mut text = format!("-- Fingerpost\nComponent \"{}\"\n", component.jid);
    let secret = lua(component.secret.expose_secret());
    let _ = writeln!(text, "\tcomponent_secret = \"{secret}\"");
    // Not active by default: with it `fingerpost check --online` would displace the running service.
    text += "\t-- After a connection that was lost without notice, Prosody can refuse the next one for up to 16 minutes. This line\n\
             \t-- lets the new one replace the old one at once. The price: two programs with this name, also a check of the\n\
             \t-- configuration beside the running service, displace each other.\n\
             \t-- component_conflict_resolve = \"kick_old\"\n";
    // Settings for the whole server must stand above the first host, so they are not among the lines to paste.
    if port != 5347 {
        let _ = writeln!(text, "-- Above the first VirtualHost:  component_ports = {{ {port} }}");
    }
    if !is_local(host) {
        let _ = writeln!(
            text,
            "-- Above the first VirtualHost:  component_interfaces = {{ \"{}\" }}",
            lua(host)
        );
    }
    text
}

fn ejabberd(component: &ComponentSettings) -> String {
    let (host, port) = address(component);
    let listen = match host.parse::<IpAddr>() {
        Ok(address) => address.to_string(),
        Err(_) if is_local(host) => "127.0.0.1".to_owned(),
        Err(_) => "::".to_owned(),
    };
    // A text in JSON is the same text in YAML.
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    format!(
        "  # Fingerpost. A listener of its own, on a port that no other listener has: ejabberd hands the stanzas of all\n  \
         # names in the hosts of one listener to any of its connections, at random.\n  -\n    port: {port}\n    ip: {}\n    module: ejabberd_service\n    \
         shaper: none\n    hosts:\n      {}:\n        password: {}\n",
        quoted(&listen),
        quoted(component.jid.as_str()),
        quoted(component.secret.expose_secret()),
    )
}

/// Returns host and port of the server's component port; the configuration has been checked.
fn address(component: &ComponentSettings) -> (&str, u16) {
    let server = component.server.first().map(String::as_str).unwrap_or_default();
    let (host, port) = server.rsplit_once(':').unwrap_or((server, ""));
    (host.trim_start_matches('[').trim_end_matches(']'), port.parse().unwrap_or(5347))
}

fn is_local(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Returns a text inside a string of Lua.
fn lua(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '"' | '\\' => escaped.extend(['\\', c]),
            c if c.is_ascii_control() => {
                let _ = write!(escaped, "\\{:03}", u32::from(c));
            }
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_stands_in_the_quotes_of_both_languages() {
        let text = "[component]\njid = 'x.example'\nserver = '[::1]:5348'\nsecret = 'a\"b\\c'\n";
        let (config, _) = Config::parse("t.toml", text, []).unwrap();
        let lines = prosody(&config.component);
        assert!(lines.contains(r#"component_secret = "a\"b\\c""#), "{lines}");
        assert!(lines.contains("component_ports = { 5348 }"), "{lines}");
        assert!(!lines.contains("interfaces"), "{lines}");
        let lines = ejabberd(&config.component);
        assert!(lines.contains(r#"password: "a\"b\\c""#), "{lines}");
        assert!(lines.contains("port: 5348\n    ip: \"::1\""), "{lines}");
    }
}
