//! The file of the trust store, `trust.toml`: its content, its older form, and how a truncated file is recognized.
//!
//! The file has a list of keys for each peer and method. The older form has one print for each method; it is read too, and
//! the next change writes the new form. The last line is a mark: without it, a file that was cut off between two peers
//! would be a valid file with fewer peers.

use std::{collections::BTreeMap, fmt, fs, io, os::unix::fs::MetadataExt, path::Path};

use fingerpost_wire::print::{Method, Print};
use jid::BareJid;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::output::XtlsError;

/// The first line of a file in the new form.
const HEADER: &str =
    "# Keys of known peers, changed by `xtls trust`; the last line marks the end of the file.";
/// The first line of the older form. A store without peers has it, and is not an empty file.
const OLD_HEADER: &str = "# Keys of known peers, changed by `xtls trust`.\n";
/// The last line of a file in the new form.
const END: &str = "# End of the keys of known peers.";

/// The keys of each known peer.
pub(super) type PeerKeys = BTreeMap<BareJid, Vec<Device>>;

/// A key of a peer. A person has one for each device or program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The TLS method that it is for.
    pub method: Method,
    /// The SHA-256 print of its certificate or its public key, or the fingerprint of its OpenPGP key.
    pub print: Print,
    /// The name that its owner or the user has given it; may be empty.
    pub label: String,
    /// When it was seen first, if that is known.
    pub first_seen: Option<OffsetDateTime>,
    /// How it was verified, if that is known.
    pub verified: Option<Verified>,
    /// The user's answer whether its peer may learn this machine's addresses; `None`: nobody was asked.
    pub direct: Option<bool>,
}

/// How a key was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verified {
    /// It was the first key of its peer.
    FirstUse,
    /// The users have compared the digits.
    Compared,
    /// The user has accepted this further key when asked.
    Asked,
    /// The registry calls this further key proven, and the user relies on the registry.
    Registry,
    /// The user has set it.
    Set,
}

impl Verified {
    /// Returns whether the user has vouched for the key.
    pub(super) fn is_by_user(self) -> bool {
        match self {
            Self::Compared | Self::Asked | Self::Set => true,
            Self::FirstUse | Self::Registry => false,
        }
    }

    /// The name in the file and in events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FirstUse => "first-use",
            Self::Compared => "compared",
            Self::Asked => "asked",
            Self::Registry => "registry",
            Self::Set => "set",
        }
    }
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FirstUse => "first use",
            Self::Compared => "digits compared",
            Self::Asked => "accepted when asked",
            Self::Registry => "by the registry",
            Self::Set => "set by hand",
        })
    }
}

/// A key in the file.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    print: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    label: String,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "time::serde::rfc3339::option"
    )]
    first_seen: Option<OffsetDateTime>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    verified: Option<Verified>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    direct: Option<bool>,
}

impl Stored {
    /// Reads the keys of one method: a list, or in the older form one print.
    fn read(value: toml::Value) -> Option<Vec<Self>> {
        match value {
            toml::Value::String(print) => {
                let label = String::new();
                Some(vec![Self { print, label, first_seen: None, verified: None, direct: None }])
            }
            value => value.try_into().ok().filter(|keys: &Vec<Self>| !keys.is_empty()),
        }
    }

    fn device(self, method: Method) -> Option<Device> {
        let Self { print, label, first_seen, verified, direct } = self;
        let print = Print::parse(&print, None).ok()?;
        Some(Device { method, print, label, first_seen, verified, direct })
    }
}

/// Reads the store as it is now. A store that cannot be parsed is never taken for a store without peers; otherwise anyone
/// who can damage it could turn every key into a first one.
pub(super) fn read(path: &Path) -> Result<PeerKeys, XtlsError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        // A link to nowhere is no store without peers either.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound && path.symlink_metadata().is_err() =>
        {
            return Ok(PeerKeys::new());
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(broken(path, &error.to_string()));
        }
        Err(error) => return Err(unreadable(path, &error)),
    };
    refuse_writable(path)?;
    parse(&text).map_err(|what| broken(path, &what))
}

/// Refuses a file that other users can write: they could make any key a known one.
fn refuse_writable(path: &Path) -> Result<(), XtlsError> {
    let Ok(file) = fs::metadata(path) else { return Ok(()) };
    if file.mode() & 0o022 == 0 {
        return Ok(());
    }
    let shown = path.display();
    let mode = file.mode() & 0o777;
    Err(XtlsError::failed(format!(
        "{shown}: other users can write this file (mode {mode:04o}); nothing was sent"
    ))
    .hint(format!(
        "chmod 600 {shown}, then look whether `xtls trust list` shows a key that you do not know"
    )))
}

fn parse(text: &str) -> Result<PeerKeys, String> {
    let tables: BTreeMap<String, BTreeMap<String, toml::Value>> =
        toml::from_str(text).map_err(|error| error.message().to_owned())?;
    if text.starts_with(HEADER) {
        if !text.lines().any(|line| line == END) {
            return Err(
                "expected the mark of its end in the last line, found a file that was cut off"
                    .to_owned(),
            );
        }
    } else if tables.is_empty() && !text.starts_with(OLD_HEADER) {
        return Err("expected known peers, found an empty file".to_owned());
    }
    let mut peers = PeerKeys::new();
    for (peer, methods) in tables {
        let expected = || format!("{peer}: expected a print for each key");
        let keys = peers.entry(BareJid::new(&peer).map_err(|_| expected())?).or_default();
        for (method, value) in methods {
            let method: Method = method.parse().map_err(|_| expected())?;
            for stored in Stored::read(value).ok_or_else(expected)? {
                keys.push(stored.device(method).ok_or_else(expected)?);
            }
        }
        if keys.is_empty() {
            return Err(expected());
        }
    }
    Ok(peers)
}

/// Returns the text of a store.
pub(super) fn write(peers: &PeerKeys) -> Result<String, toml::ser::Error> {
    let mut tables: BTreeMap<&str, BTreeMap<&str, Vec<Stored>>> = BTreeMap::new();
    for (peer, keys) in peers {
        for Device { method, print, label, first_seen, verified, direct } in keys {
            let methods = tables.entry(peer.as_str()).or_default();
            methods.entry(method.as_str()).or_default().push(Stored {
                print: print.to_string(),
                label: label.clone(),
                first_seen: *first_seen,
                verified: *verified,
                direct: *direct,
            });
        }
    }
    Ok(format!("{HEADER}\n{}\n{END}\n", toml::to_string(&tables)?))
}

/// The file itself may be as it should be.
fn unreadable(path: &Path, error: &io::Error) -> XtlsError {
    let path = path.display();
    XtlsError::failed(format!("{path}: cannot be read: {error}"))
        .hint("it has the keys that you know: keep it, and run the same command again when it can be read")
}

fn broken(path: &Path, what: &str) -> XtlsError {
    let path = path.display();
    XtlsError::failed(format!("{path}: {what}; nothing was sent")).hint(format!(
        "restore {path} from a backup; or remove it, and each peer's next key is taken on first use again"
    ))
}

#[cfg(test)]
mod tests {
    use fingerpost_wire::print::HashKind;
    use time::macros::datetime;

    use super::*;

    fn peer(name: &str) -> BareJid {
        BareJid::new(&format!("{name}@capulet.lit")).unwrap()
    }

    fn device(method: Method, byte: u8) -> Device {
        Device {
            method,
            print: Print::new(HashKind::Sha256, &[byte; 32]).unwrap(),
            label: format!("de\"vice\n{byte}"),
            first_seen: Some(datetime!(2026-11-28 10:00 UTC)),
            verified: Some(Verified::Asked),
            direct: Some(byte.is_multiple_of(2)),
        }
    }

    fn store() -> PeerKeys {
        let unknown = Device {
            label: String::new(),
            first_seen: None,
            verified: None,
            direct: None,
            ..device(Method::X509, 4)
        };
        PeerKeys::from([
            (
                peer("juliet"),
                vec![device(Method::OpenPgp, 1), device(Method::X509, 2), device(Method::X509, 3)],
            ),
            (peer("nurse"), vec![unknown]),
        ])
    }

    #[test]
    fn what_is_written_is_read() {
        for peers in [store(), PeerKeys::new()] {
            assert_eq!(parse(&write(&peers).unwrap()), Ok(peers));
        }
    }

    #[test]
    fn every_beginning_of_a_file_but_the_whole_is_refused() {
        let text = write(&store()).unwrap();
        for end in 0..text.trim_end().len() {
            assert!(parse(&text[..end]).is_err(), "{:?}", &text[..end]);
        }
        let empty = write(&PeerKeys::new()).unwrap();
        for end in 0..empty.trim_end().len() {
            assert!(parse(&empty[..end]).is_err(), "{:?}", &empty[..end]);
        }
        // A file that has lost its first block, or the disk's zeros in place of its last one.
        assert!(parse(&"\0".repeat(4096)).is_err());
        assert!(parse(&format!("{}{}", &text[..200], "\0".repeat(100))).is_err());
    }

    #[test]
    fn the_older_form_is_read_without_loss() {
        let text = format!(
            "{OLD_HEADER}[\"juliet@capulet.lit\"]\nopenpgp = \"{}\"\nx509 = \"{}\"\n\n[\"nurse@capulet.lit\"]\nx509 = \"{}\"\n",
            "01".repeat(20),
            "02:".repeat(32).trim_end_matches(':'),
            "03".repeat(32),
        );
        let peers = parse(&text).unwrap();
        let known: Vec<_> = peers[&peer("juliet")]
            .iter()
            .map(|key| (key.method, key.print.as_bytes()[0], key.first_seen, key.verified))
            .collect();
        assert_eq!(known, [(Method::OpenPgp, 1, None, None), (Method::X509, 2, None, None)]);
        assert_eq!(peers[&peer("nurse")].len(), 1);
        assert_eq!(parse(&write(&peers).unwrap()), Ok(peers));
        assert_eq!(parse(OLD_HEADER), Ok(PeerKeys::new()));
        // A table whose keys were cut off, and a header that was.
        assert!(parse("[\"juliet@capulet.lit\"]\n").is_err());
        assert!(parse(&OLD_HEADER[..30]).is_err());
    }

    #[test]
    fn another_spelling_of_an_address_is_the_same_peer() {
        let print = "02".repeat(32);
        let text = format!("[\"Juliet@CAPULET.lit\"]\nx509 = \"{print}\"\n");
        assert!(parse(&text).unwrap().contains_key(&peer("juliet")));
    }
}
