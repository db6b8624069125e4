//! Keys and settings as JSON Lines: `{"key": {…}}` and `{"settings": {…}}`, one a line. What is written here is read
//! back as it was.

use std::{collections::HashSet, io::Write, path::Path};

use base64::{Engine, engine::general_purpose::STANDARD};
use jid::BareJid;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{KeysError, input};
use crate::{
    print::{HashKind, Print},
    registry::{
        material::Material,
        model::{ALLOWED_MAX, Key, KeyId, NewKey, Settings, Source, check_reason},
        store::Store,
    },
    xmpp::jid::identity,
};

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Line {
    Key(Box<KeyLine>),
    Settings(SettingsLine),
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

/// Writes the keys and settings of `owner`, or of all.
pub(super) async fn export(
    store: &Store,
    owner: Option<&BareJid>,
    out: &mut impl Write,
) -> Result<(), KeysError> {
    let mut write = |line: &Line| -> Result<(), KeysError> {
        let text = serde_json::to_string(line).map_err(input)?;
        Ok(writeln!(out, "{text}")?)
    };
    let keys = match owner {
        Some(owner) => store.keys_of(owner).await?,
        None => store.all().await?,
    };
    for key in keys {
        let material = if key.has_material { store.material(key.id).await? } else { None };
        write(&Line::Key(Box::new(to_line(&key, material.as_deref()))))?;
    }
    for (jid, settings) in store.all_settings().await? {
        if owner.is_none_or(|owner| *owner == jid) {
            let visibility = settings.visibility.to_string();
            write(&Line::Settings(SettingsLine { jid, visibility, allowed: settings.allowed }))?;
        }
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
    let (mut keys, mut settings) = (Vec::new(), Vec::new());
    for (n, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |error: String| input(format!("{}:{}: {error}", file.display(), n + 1));
        match serde_json::from_str(line).map_err(|error| wrong(error.to_string()))? {
            Line::Key(line) => keys.push(read(*line).map_err(wrong)?),
            Line::Settings(line) => {
                if line.allowed.len() > ALLOWED_MAX {
                    return Err(wrong("at most 256 users may be allowed by name".to_owned()));
                }
                let visibility = line.visibility.parse().map_err(|e| wrong(format!("{e}")))?;
                let allowed = line.allowed.iter().map(identified).collect();
                settings.push((identified(&line.jid), Settings { visibility, allowed }));
            }
        }
    }
    let ids: HashSet<KeyId> = keys.iter().map(|(key, _)| key.id).collect();
    for (key, _) in &mut keys {
        // What a key points to must be there.
        if let Some(by) = key.replaced_by
            && !ids.contains(&by)
            && store.key(by).await?.is_none()
        {
            key.replaced_by = None;
        }
    }
    Ok(store.import(&keys, &settings, now).await?)
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
    fn text(error: impl std::fmt::Display) -> String {
        error.to_string()
    }
    let moment = |micros: i64| {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000).map_err(text)
    };
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
