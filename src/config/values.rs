//! The values of settings: readers that say what they expect.

use std::fmt::Display;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use fingerpost_secure::redact::Secret;
use fingerpost_wire::jid::canonical_bare;
use jid::{BareJid, Jid};
use toml::Value;
use tracing_subscriber::EnvFilter;

use super::error::{ConfigError, Where};
use crate::{
    registry::{model::Visibility, store::check_address},
    sessions::{PlainFiles, hints::VerdictPolicy},
};

/// The longest text of a wrong value that an error repeats, in characters.
const MAX_SHOWN: usize = 60;

/// A day; the longest handshake, activation or drain.
pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// The shortest timeout that leaves a peer time to act.
pub(super) const SHORTEST: Duration = Duration::from_millis(100);
/// The values of a log level.
pub(super) const LEVELS: &str =
    "error, warn, info, debug, trace or a filter of targets with these levels";

pub(super) const POLICIES: &[(&str, VerdictPolicy)] = &[
    ("annotate", VerdictPolicy::Annotate),
    ("strip", VerdictPolicy::Strip),
    ("reject", VerdictPolicy::Reject),
];

pub(super) const PLAIN: &[(&str, PlainFiles)] =
    &[("deny", PlainFiles::Deny), ("mark", PlainFiles::Mark), ("allow", PlainFiles::Allow)];

pub(super) const ALLOWED: &[(&str, bool)] = &[("allow", true), ("deny", false)];

pub(super) const VISIBILITIES: &[(&str, Visibility)] = &[
    ("everyone", Visibility::Everyone),
    ("local", Visibility::Local),
    ("listed", Visibility::Listed),
    ("nobody", Visibility::Nobody),
];

/// The format of the log's lines.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// A value of a setting.
#[derive(Debug)]
pub(super) struct Given<'a> {
    pub(super) section: &'static str,
    pub(super) key: &'static str,
    /// The setting's default or example.
    pub(super) shown: &'static str,
    /// Where the value was written.
    pub(super) at: Where,
    pub(super) value: &'a Value,
}

impl Given<'_> {
    fn error(&self, text: String) -> ConfigError {
        ConfigError::new(&self.at, self.section, self.key, text)
    }

    fn unexpected(&self, expected: &str) -> ConfigError {
        // A database's address may contain a password.
        if matches!(self.key, "secret" | "url") {
            return self.error(format!("expected {expected}"));
        }
        self.error(format!("expected {expected}, found {}", shown(self.value)))
    }

    fn whole<T: TryFrom<i64> + FromStr>(&self) -> Option<T> {
        match (&self.at, self.value) {
            (_, Value::Integer(value)) => T::try_from(*value).ok(),
            (Where::Env(_), Value::String(text)) => text.parse().ok(),
            _ => None,
        }
    }
}

/// Reads a text that `parse` accepts.
pub(super) fn text<T>(
    expected: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> impl Fn(&Given<'_>) -> Result<T, ConfigError> {
    move |given| given.value.as_str().and_then(&parse).ok_or_else(|| given.unexpected(expected))
}

/// Reads true or false.
pub(super) fn boolean(given: &Given<'_>) -> Result<bool, ConfigError> {
    let read = match (&given.at, given.value) {
        (_, Value::Boolean(value)) => Some(*value),
        (Where::Env(_), Value::String(text)) => text.parse().ok(),
        _ => None,
    };
    read.ok_or_else(|| given.unexpected("true or false"))
}

/// Reads a whole number from `min` to `max`.
pub(super) fn number<T>(min: T, max: T) -> impl Fn(&Given<'_>) -> Result<T, ConfigError>
where
    T: TryFrom<i64> + FromStr + PartialOrd + Display + Copy,
{
    move |given| {
        let number = given.whole::<T>().filter(|number| (min..=max).contains(number));
        number.ok_or_else(|| given.unexpected(&format!("a whole number from {min} to {max}")))
    }
}

/// Reads a largest segment. Every IPv4 host must accept 536 bytes (RFC 9293, 3.7.1).
pub(super) fn segment(given: &Given<'_>) -> Result<u32, ConfigError> {
    let size = given.whole::<u32>().filter(|size| *size == 0 || (536..=32_767).contains(size));
    size.ok_or_else(|| given.unexpected("0 or a whole number from 536 to 32767"))
}

/// Reads a duration written as text, from `min` to `max`.
pub(super) fn duration(
    min: Duration,
    max: Duration,
) -> impl Fn(&Given<'_>) -> Result<Duration, ConfigError> {
    move |given| {
        let expected = format!(
            "a duration from {} to {} such as {}",
            humantime::format_duration(min),
            humantime::format_duration(max),
            given.shown
        );
        let parse = |text: &str| humantime::parse_duration(text).ok();
        text(&expected, |text| parse(text).filter(|read| (min..=max).contains(read)))(given)
    }
}

/// Reads one of several words.
pub(super) fn choice<T: Copy>(
    choices: &[(&str, T)],
) -> impl Fn(&Given<'_>) -> Result<T, ConfigError> {
    move |given| {
        let words: Vec<String> = choices.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        text(&format!("one of {}", words.join(", ")), |text| {
            choices.iter().find(|(word, _)| *word == text).map(|(_, choice)| *choice)
        })(given)
    }
}

/// Reads one text that `parse` accepts, or a list of at least one such text. In the environment they are separated by
/// commas.
pub(super) fn one_or_several<T>(
    expected: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> impl Fn(&Given<'_>) -> Result<Vec<T>, ConfigError> {
    move |given| {
        if matches!(given.at, Where::File(_)) && !given.value.is_array() {
            let or_list = if given.value.is_str() { "" } else { " or a list of such" };
            let one = text(&format!("{expected}{or_list}"), &parse)(given)?;
            return Ok(vec![one]);
        }
        let read = list(expected, &parse)(given)?;
        if read.is_empty() {
            return Err(given.unexpected(&format!("{expected} or a list of such")));
        }
        Ok(read)
    }
}

/// Reads a list of texts that `parse` accepts. In the environment they are separated by commas.
pub(super) fn list<T>(
    expected: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> impl Fn(&Given<'_>) -> Result<Vec<T>, ConfigError> {
    move |given| {
        let list = match (&given.at, given.value) {
            (Where::Env(_), Value::String(text)) => text
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(|item| Value::String(item.to_owned()))
                .collect(),
            (_, Value::Array(list)) => list.clone(),
            _ => return Err(given.unexpected(&format!("a list of {expected}"))),
        };
        let read = list.iter().map(|item| {
            item.as_str().and_then(&parse).ok_or_else(|| {
                given.error(format!("expected {expected} in the list, found {}", shown(item)))
            })
        });
        read.collect()
    }
}

/// Returns a value for an error message, on one line and not too long.
pub(super) fn shown(value: &Value) -> String {
    let text = match value {
        Value::Table(_) => "a section".to_owned(),
        value => value.to_string().replace(['\n', '\r'], " "),
    };
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Reads the component's domain.
pub(super) fn domain(given: &Given<'_>) -> Result<BareJid, ConfigError> {
    text("a domain such as \"xtls.example.org\"", |text| {
        // Spelled as the server has it, without DNS's dot at the end.
        let text = text.strip_suffix('.').unwrap_or(text);
        BareJid::new(text).ok().filter(|jid| jid.node().is_none())
    })(given)
}

/// Reads a database's address.
pub(super) fn database_url(given: &Given<'_>) -> Result<String, ConfigError> {
    let schemes = ["sqlite:", "postgres://", "postgresql://"];
    let expected = "\"sqlite:PATH\" or \"postgres://USER:PASSWORD@HOST/DATABASE\"";
    let url = text(expected, |text| {
        schemes
            .iter()
            .find_map(|scheme| text.strip_prefix(scheme))
            .filter(|rest| !rest.is_empty())
            .map(|_| text.to_owned())
    })(given)?;
    check_address(&url).map_err(|wrong| given.error(wrong))?;
    Ok(url)
}

pub(super) fn secret(text: &str) -> Option<Secret> {
    (!text.is_empty()).then(|| Secret::new(text))
}

pub(super) fn path(text: &str) -> Option<Option<PathBuf>> {
    (!text.is_empty()).then(|| Some(PathBuf::from(text)))
}

pub(super) fn name(text: &str) -> Option<String> {
    (1..=100).contains(&text.chars().count()).then(|| text.to_owned())
}

pub(super) fn uri(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once(':')?;
    let named = scheme.chars().all(|c| c.is_ascii_alphanumeric()) && !scheme.is_empty();
    (named && !rest.is_empty() && text.len() <= 1000).then(|| text.to_owned())
}

pub(super) fn user(text: &str) -> Option<String> {
    if text == "*" { Some(text.to_owned()) } else { bare(text) }
}

pub(super) fn admin(text: &str) -> Option<String> {
    canonical_bare(text).filter(|jid| jid.node().is_some()).map(|jid| jid.to_string())
}

/// Reads a bare JID or a domain.
pub(super) fn bare(text: &str) -> Option<String> {
    canonical_bare(text).map(|jid| jid.to_string())
}

pub(super) fn level(text: &str) -> Option<String> {
    let word = text.chars().all(char::is_alphabetic);
    let level = text.parse::<tracing::Level>().is_ok();
    (!text.is_empty() && (level || !word) && EnvFilter::try_new(text).is_ok())
        .then(|| text.to_owned())
}

/// Splits `host:port`; removes the brackets of an IPv6 address. Port 0 is not valid.
pub(super) fn host_port(text: &str) -> Option<(String, u16)> {
    host_or_any_port(text).filter(|(_, port)| *port != 0)
}

/// Reads `host:port` that clients are told. Nobody can connect to a wildcard or to several machines at once, and a link-local
/// address means another machine on each link.
pub(super) fn told_address(text: &str) -> Option<(String, u16)> {
    host_port(text).filter(|(host, _)| {
        let unusable = |ip: IpAddr| {
            let ip = ip.to_canonical();
            let is_of_no_network = match ip {
                IpAddr::V4(ip) => ip.octets()[0] == 0 || ip.is_link_local() || ip.is_broadcast(),
                IpAddr::V6(ip) => ip.is_unspecified() || ip.is_unicast_link_local(),
            };
            is_of_no_network || ip.is_multicast()
        };
        !host.parse().is_ok_and(unusable)
    })
}

/// Checks `host:port`, and leaves it as it is.
pub(super) fn address(text: &str) -> Option<String> {
    host_port(text).map(|_| text.to_owned())
}

/// The same for an address to listen on, with any port. A wildcard is `0.0.0.0` or `[::]`.
pub(super) fn own_address(text: &str) -> Option<String> {
    let (host, _) = host_or_any_port(text)?;
    let is_name = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
    let is_good = host.parse::<std::net::IpAddr>().is_ok() || host.chars().all(is_name);
    is_good.then(|| text.to_owned())
}

/// Reads the status server's address; an empty text switches it off.
pub(super) fn status_address(text: &str) -> Option<Option<String>> {
    if text.is_empty() { Some(None) } else { own_address(text).map(Some) }
}

/// Splits `host:port`, with any port.
pub(super) fn host_or_any_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.bytes().all(|digit| digit.is_ascii_digit()).then(|| port.parse().ok())??;
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().ok()?.to_string(),
        None if host.contains([':', '/', '[', ']']) => return None,
        None => Jid::new(host).ok().filter(|jid| jid.node().is_none()).map(|_| host.to_owned())?,
    };
    Some((host, port))
}
