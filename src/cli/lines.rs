//! The registry as JSON Lines, one object a line: `key`, `settings`, `block`, `identity` (the component's own, with its
//! private key), `log` (a row of the audit log), `salt` and `revoked`. What is written here is read back as it was.

use std::{collections::HashSet, fmt, io::Write, path::Path};

use base64::{Engine, engine::general_purpose::STANDARD};
use fingerpost_secure::material::Material;
use fingerpost_wire::{
    jid::identity,
    key::KeyId,
    print::{HashKind, Print},
};
use jid::BareJid;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{KeysError, input};
use crate::registry::{
    forgotten::Revoked,
    model::{ALLOWED_MAX, AuditEvent, Key, NewKey, Party, Settings, Source, check_reason},
    store::{
        Store,
        records::{BlockEntry, Contents, LogRow, OwnIdentity},
    },
};

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Line {
    Key(Box<KeyLine>),
    Settings(SettingsLine),
    Block(BlockLine),
    Identity(IdentityLine),
    Log(LogLine),
    Salt(String),
    Revoked(RevokedLine),
}

/// A user or a domain that is blocked by command. The time is microseconds since 1970, here and below.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct BlockLine {
    jid: BareJid,
    reason: String,
    at: i64,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct IdentityLine {
    component: BareJid,
    certificate: String,
    private_key: String,
}

impl fmt::Debug for IdentityLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentityLine").field("component", &self.component).finish_non_exhaustive()
    }
}

/// A user in the audit log: an address, or what is left of one.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum PartyLine {
    Jid(BareJid),
    Erased(String),
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct LogLine {
    at: i64,
    event: String,
    owner: PartyLine,
    actor_kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    actor: Option<PartyLine>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    other: Option<PartyLine>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    other_key: Option<String>,
}

/// A print that stays revoked for an address; both are hashes.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RevokedLine {
    owner: String,
    print: String,
    method: String,
    at: i64,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct PrintLine {
    hash: String,
    print: String,
}

/// Times are microseconds since 1970.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct KeyLine {
    id: String,
    jid: BareJid,
    method: String,
    state: String,
    assurance: String,
    #[serde(default)]
    source: Option<String>,
    #[serde(default)]
    label: String,
    created: i64,
    changed: i64,
    #[serde(default)]
    expires: Option<i64>,
    #[serde(default)]
    replaced_by: Option<String>,
    #[serde(default)]
    reason: String,
    prints: Vec<PrintLine>,
    #[serde(default)]
    material: Option<String>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct SettingsLine {
    jid: BareJid,
    visibility: String,
    #[serde(default)]
    allowed: Vec<BareJid>,
}

/// Writes all that is in the registry, or all of `owner`.
pub(super) async fn export(
    store: &Store,
    owner: Option<&BareJid>,
    out: &mut impl Write,
) -> Result<(), KeysError> {
    let contents = store.contents(owner).await?;
    let keys = contents
        .keys
        .iter()
        .map(|(key, material)| Line::Key(Box::new(to_line(key, material.as_deref()))));
    let settings = contents.settings.into_iter().map(|(jid, settings)| {
        let visibility = settings.visibility.to_string();
        Line::Settings(SettingsLine { jid, visibility, allowed: settings.allowed })
    });
    let blocks = contents.blocks.into_iter().map(|BlockEntry { jid, reason, at }| {
        Line::Block(BlockLine { jid, reason, at: micros(at) })
    });
    let identities = contents.identities.into_iter().map(|own| {
        Line::Identity(IdentityLine {
            component: own.component,
            certificate: STANDARD.encode(own.certificate),
            private_key: STANDARD.encode(own.private_key),
        })
    });
    let log = contents.log.into_iter().map(|row| Line::Log(to_log_line(row)));
    let salts = contents.salts.iter().map(|salt| Line::Salt(STANDARD.encode(salt)));
    let revoked = contents.revoked.iter().map(|revoked| {
        Line::Revoked(RevokedLine {
            owner: STANDARD.encode(&revoked.owner),
            print: STANDARD.encode(&revoked.print),
            method: revoked.method.to_string(),
            at: micros(revoked.at),
        })
    });
    let lines = keys.chain(settings).chain(blocks).chain(identities).chain(log);
    for line in lines.chain(salts).chain(revoked) {
        writeln!(out, "{}", serde_json::to_string(&line).map_err(input)?)?;
    }
    Ok(())
}

/// Reads a file and stores its content, all or nothing; returns how many keys are new.
pub(super) async fn import(
    store: &Store,
    file: &Path,
    now: OffsetDateTime,
) -> Result<usize, KeysError> {
    let text = if file.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin())?
    } else {
        std::fs::read_to_string(file)
            .map_err(|error| input(format!("{}: {error}", file.display())))?
    };
    let mut contents = Contents::default();
    for (n, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |error: String| input(format!("{}:{}: {error}", file.display(), n + 1));
        let line = serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
        take(&mut contents, line).map_err(wrong)?;
    }
    let ids: HashSet<KeyId> = contents.keys.iter().map(|(key, _)| key.id).collect();
    for (key, _) in &mut contents.keys {
        // What a key points to must be there.
        if let Some(by) = key.replaced_by
            && !ids.contains(&by)
            && store.key(by).await?.is_none()
        {
            key.replaced_by = None;
        }
    }
    Ok(store.import(&contents, now).await?)
}

/// Reads one line.
fn take(contents: &mut Contents, line: Line) -> Result<(), String> {
    match line {
        Line::Key(line) => contents.keys.push(read(*line)?),
        Line::Settings(line) => {
            if line.allowed.len() > ALLOWED_MAX {
                return Err("at most 256 users may be allowed by name".to_owned());
            }
            let visibility = line.visibility.parse().map_err(text)?;
            let allowed = line.allowed.iter().map(identified).collect();
            let settings = Settings { visibility, allowed };
            contents.settings.push((identified(&line.jid), settings));
        }
        Line::Block(line) => contents.blocks.push(BlockEntry {
            jid: identified(&line.jid),
            reason: check_reason(&line.reason).map_err(text)?,
            at: moment(line.at)?,
        }),
        Line::Identity(line) => contents.identities.push(OwnIdentity {
            component: identified(&line.component),
            certificate: bytes(&line.certificate)?,
            private_key: bytes(&line.private_key)?,
        }),
        Line::Log(line) => contents.log.push(of_log_line(line)?),
        Line::Salt(salt) => contents.salts.push(bytes(&salt)?),
        Line::Revoked(line) => contents.revoked.push(Revoked {
            owner: bytes(&line.owner)?,
            print: bytes(&line.print)?,
            method: line.method.parse().map_err(text)?,
            at: moment(line.at)?,
        }),
    }
    Ok(())
}

fn text(error: impl fmt::Display) -> String {
    error.to_string()
}

fn bytes(base64: &str) -> Result<Vec<u8>, String> {
    STANDARD.decode(base64).map_err(text)
}

fn moment(micros: i64) -> Result<OffsetDateTime, String> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000).map_err(text)
}

fn to_party_line(party: Party) -> PartyLine {
    match party {
        Party::User(jid) => PartyLine::Jid(jid),
        Party::Erased(hash) => PartyLine::Erased(hash),
    }
}

fn of_party_line(line: PartyLine) -> Party {
    match line {
        PartyLine::Jid(jid) => Party::User(identified(&jid)),
        PartyLine::Erased(hash) => Party::Erased(hash),
    }
}

fn to_log_line(row: LogRow) -> LogLine {
    let (other, other_key) = row.event.others();
    LogLine {
        at: micros(row.at),
        event: row.event.as_str().to_owned(),
        owner: to_party_line(row.owner),
        actor_kind: row.actor_kind,
        actor: row.actor.map(to_party_line),
        key: row.key.map(|id| id.to_string()),
        other: other.cloned().map(to_party_line),
        other_key: other_key.map(|id| id.to_string()),
    }
}

fn of_log_line(line: LogLine) -> Result<LogRow, String> {
    let id = |id: Option<String>| id.map(|id| id.parse::<KeyId>().map_err(text)).transpose();
    let is_offline = line.actor_kind == "offline";
    if !["user", "admin", "offline"].contains(&line.actor_kind.as_str())
        || is_offline != line.actor.is_none()
    {
        return Err(
            "expected actor_kind user or admin with an actor, or offline without".to_owned()
        );
    }
    let event = AuditEvent::of(&line.event, line.other.map(of_party_line), id(line.other_key)?);
    Ok(LogRow {
        at: moment(line.at)?,
        owner: of_party_line(line.owner),
        actor_kind: line.actor_kind,
        actor: line.actor.map(of_party_line),
        key: id(line.key)?,
        event: event.ok_or("expected an event of the audit log, with what belongs to it")?,
    })
}

fn identified(jid: &BareJid) -> BareJid {
    identity(jid).into_owned()
}

fn micros(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX)
}

fn to_line(key: &Key, material: Option<&[u8]>) -> KeyLine {
    KeyLine {
        id: key.id.to_string(),
        jid: key.owner.clone(),
        method: key.method.to_string(),
        state: key.state.to_string(),
        assurance: key.assurance.to_string(),
        source: Some(key.source.to_string()),
        label: key.label.clone(),
        created: micros(key.created),
        changed: micros(key.changed),
        expires: key.expires.map(micros),
        replaced_by: key.replaced_by.map(|id| id.to_string()),
        reason: key.reason.clone(),
        prints: key
            .prints
            .iter()
            .map(|print| PrintLine {
                hash: print.hash().as_str().to_owned(),
                print: print.to_string(),
            })
            .collect(),
        material: material.map(|bytes| STANDARD.encode(bytes)),
    }
}

fn read(line: KeyLine) -> Result<(Key, Option<Vec<u8>>), String> {
    let method = line.method.parse().map_err(text)?;
    let prints = line
        .prints
        .iter()
        .map(|line| {
            let hash = line.hash.parse::<HashKind>().map_err(text)?;
            Print::parse(&line.print, Some(hash)).map_err(text)
        })
        .collect::<Result<Vec<_>, String>>()?;
    let source = match &line.source {
        Some(source) => source.parse().map_err(text)?,
        None => Source::Import,
    };
    let material = match &line.material {
        Some(material) => {
            let bytes = STANDARD.decode(material).map_err(text)?;
            let material = Material::parse(method, &bytes).map_err(text)?;
            let new = NewKey::of_material(material, &prints, &line.label, source).map_err(text)?;
            new.material().map(<[u8]>::to_vec)
        }
        None => {
            NewKey::of_prints(method, prints.clone(), &line.label, source).map_err(text)?;
            None
        }
    };
    let key = Key {
        id: line.id.parse().map_err(text)?,
        owner: identified(&line.jid),
        method,
        prints,
        has_material: material.is_some(),
        label: line.label,
        state: line.state.parse().map_err(text)?,
        assurance: line.assurance.parse().map_err(text)?,
        source,
        created: moment(line.created)?,
        expires: line.expires.map(moment).transpose()?,
        changed: moment(line.changed)?,
        replaced_by: line.replaced_by.map(|id| id.parse().map_err(text)).transpose()?,
        reason: check_reason(&line.reason).map_err(text)?,
    };
    Ok((key, material))
}
