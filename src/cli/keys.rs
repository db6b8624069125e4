//! Offline administration of the registry.

#[path = "lines.rs"]
mod lines;

use std::{io::Write, path::PathBuf};

use fingerpost_secure::material::Material;
use fingerpost_wire::{
    jid::canonical_bare,
    key::{Assurance, KeyId, stamp},
    print::{Method, Print},
};
use jid::BareJid;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::registry::{
    model::{Actor, AuditEntry, Key, NewKey, Source, check_reason},
    salted_hash,
    store::{Store, error::StoreError},
};

/// The limit of keys for admins; it only stops a runaway script.
const LIMIT: u32 = 10_000;

/// The commands on the registry that need no connection to the XMPP server.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum KeysCommand {
    /// List keys of one user, or all
    List {
        /// The user
        #[arg(value_parser = address)]
        jid: Option<BareJid>,
    },
    /// Show one key, or the component's own certificate
    Show {
        /// The key's id
        #[arg(required_unless_present = "own")]
        id: Option<KeyId>,
        /// Show the component's own certificate
        #[arg(long = "self", conflicts_with = "id")]
        own: bool,
    },
    /// Add a key for a user
    Add {
        /// The user
        #[arg(value_parser = address)]
        jid: BareJid,
        /// The method: x509 or openpgp
        #[arg(long, value_parser = keyed)]
        method: Method,
        /// A fingerprint of the key, hexadecimal
        #[arg(long, required_unless_present = "material")]
        print: Vec<String>,
        /// The key's certificate, DER or PEM
        #[arg(long, value_name = "FILE")]
        material: Option<PathBuf>,
        /// A name for the key
        #[arg(long, default_value = "")]
        label: String,
    },
    /// Vouch for a key
    Attest {
        /// The key's id
        id: KeyId,
    },
    /// Delete everything held about a user
    Erase {
        /// The user
        #[arg(value_parser = address)]
        jid: BareJid,
        /// Confirm the deletion
        #[arg(long, required = true)]
        yes: bool,
    },
    /// End the life of an account: the next owner of the address finds nothing of it
    Retire {
        /// The user
        #[arg(value_parser = address)]
        jid: BareJid,
    },
    /// Write all that is in the registry, or all of one user, as JSON Lines; without JID the component's private key too
    Export {
        /// The user
        #[arg(value_parser = address)]
        jid: Option<BareJid>,
    },
    /// Read a file that export has written; existing keys stay as they are
    Import {
        /// The file; - for standard input
        file: PathBuf,
    },
    /// Show keys that several users claim
    Conflicts,
    /// Show the audit log, of one user or of all
    Audit {
        /// The user
        #[arg(value_parser = address)]
        jid: Option<BareJid>,
        /// The number of rows, counted from the last
        #[arg(long, default_value_t = 1000)]
        limit: u32,
    },
    /// Revoke a key for good
    Revoke {
        /// The key's id
        id: KeyId,
        /// The reason
        #[arg(long, default_value = "")]
        reason: String,
    },
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The input is wrong.
    #[error("{0}")]
    Input(String),
    /// The store refused, or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The output cannot be written.
    #[error(transparent)]
    Output(#[from] std::io::Error),
}

/// Reads an address in any spelling into its canonical form.
fn address(text: &str) -> Result<BareJid, &'static str> {
    canonical_bare(text).ok_or("expected a bare address such as romeo@montague.lit")
}

/// Reads a method that has keys.
fn keyed(text: &str) -> Result<Method, &'static str> {
    let method = text.parse::<Method>().ok().filter(|method| *method != Method::Srp);
    method.ok_or("expected x509 or openpgp")
}

fn input(error: impl std::fmt::Display) -> KeysError {
    KeysError::Input(error.to_string())
}

/// Runs a command; its result goes to `out`.
///
/// # Errors
/// [`KeysError`]
pub async fn run(
    command: KeysCommand,
    store: &Store,
    component: &BareJid,
    json: bool,
    now: OffsetDateTime,
    out: &mut impl Write,
) -> Result<(), KeysError> {
    let keys = match command {
        KeysCommand::List { jid: Some(jid) } => store.keys_of(&jid).await?,
        KeysCommand::List { jid: None } => store.all().await?,
        KeysCommand::Show { own: true, .. } => {
            let kept = store.identity(component).await?;
            let (certificate, _) = kept.ok_or_else(|| {
                input("not created yet: fingerpost serve creates it when it starts")
            })?;
            let material = Material::parse(Method::X509, &certificate).map_err(input)?;
            for print in &material.prints {
                let hash = print.hash().as_str();
                if json {
                    let row = json!({"hash": hash, "print": print.to_string()});
                    writeln!(out, "{row}")?;
                } else {
                    writeln!(out, "{hash} {print}")?;
                }
            }
            return Ok(());
        }
        KeysCommand::Show { id, .. } => {
            let id = id.ok_or_else(|| input("expected the id of a key"))?;
            vec![store.key(id).await?.ok_or_else(|| input("no such key"))?]
        }
        KeysCommand::Add { jid, method, print, material, label } => {
            let prints = print
                .iter()
                .map(|text| Print::read(text, method, None).map_err(input))
                .collect::<Result<Vec<_>, _>>()?;
            let new = match material {
                Some(file) => {
                    let bytes = std::fs::read(&file)
                        .map_err(|error| input(format!("{}: {error}", file.display())))?;
                    let material = Material::parse(method, &bytes).map_err(input)?;
                    NewKey::of_material(material, &prints, &label, Source::Admin)
                }
                None => NewKey::of_prints(method, prints, &label, Source::Admin),
            };
            let new = new.map_err(input)?;
            let id = KeyId::new(rand::random());
            let key = store.add(&jid, &new, LIMIT, &Actor::Offline, now, id).await?.key;
            if let Some(note) = new.note(&key, now) {
                writeln!(std::io::stderr(), "warning: {note}")?;
            }
            vec![key]
        }
        KeysCommand::Attest { id } => {
            vec![store.raise(id, Assurance::Attested, &Actor::Offline, now).await?.0]
        }
        KeysCommand::Erase { jid, .. } => {
            let hash = salted_hash(&jid, rand::random());
            store.erase(&jid, &hash, &Actor::Offline, now).await?;
            Vec::new()
        }
        KeysCommand::Retire { jid } => {
            let hash = salted_hash(&jid, rand::random());
            let retired = store.retire_account(&jid, &hash, &Actor::Offline, now).await?;
            let (keys, named_by) = (retired.keys, retired.named_by.len());
            if json {
                let row = json!({"jid": jid.as_str(), "keys": keys, "named_by": named_by});
                writeln!(out, "{row}")?;
            } else {
                writeln!(
                    out,
                    "{jid}: keys deleted: {keys}; users who no longer show it their keys: {named_by}"
                )?;
            }
            return Ok(());
        }
        KeysCommand::Export { jid } => return lines::export(store, jid.as_ref(), out).await,
        KeysCommand::Import { file } => {
            let fresh = lines::import(store, &file, now).await?;
            if json {
                writeln!(out, "{}", json!({"imported": fresh}))?;
            } else {
                writeln!(out, "{fresh} keys imported")?;
            }
            return Ok(());
        }
        KeysCommand::Conflicts => store.conflicts().await?,
        KeysCommand::Audit { jid, limit } => {
            for entry in store.audit(jid.as_ref(), limit).await? {
                audit(&entry, json, out)?;
            }
            return Ok(());
        }
        KeysCommand::Revoke { id, reason } => {
            let reason = check_reason(&reason).map_err(input)?;
            vec![store.revoke(id, &Actor::Offline, &reason, now).await?.0]
        }
    };
    if json {
        let keys: Vec<Value> = keys.iter().map(|key| to_json(key, now)).collect();
        writeln!(out, "{}", Value::from(keys))?;
        return Ok(());
    }
    for key in keys {
        writeln!(
            out,
            "{} {} {} {} {} {} {}",
            key.id,
            key.owner,
            key.method,
            key.state_shown(now),
            key.assurance,
            stamp(key.created),
            key.label
        )?;
        for print in &key.prints {
            writeln!(out, "  {} {print}", print.hash().as_str())?;
        }
    }
    Ok(())
}

fn audit(entry: &AuditEntry, json: bool, out: &mut impl Write) -> Result<(), KeysError> {
    let actor = match &entry.actor {
        Some(Actor::User(jid)) => jid.to_string(),
        Some(Actor::Admin(jid)) => format!("admin {jid}"),
        Some(Actor::Offline) => "offline".to_owned(),
        None => "erased".to_owned(),
    };
    let key = entry.key.map(|id| id.to_string());
    let (at, event) = (stamp(entry.at), entry.event.as_str());
    if json {
        let row = json!({
            "seq": entry.seq, "at": at, "event": event, "jid": entry.owner.to_string(), "by": actor, "key": key,
        });
        writeln!(out, "{row}")?;
    } else {
        let key = key.unwrap_or_default();
        writeln!(out, "{} {at} {event} {} by {actor} {key}", entry.seq, entry.owner)?;
    }
    Ok(())
}

fn to_json(key: &Key, now: OffsetDateTime) -> Value {
    let prints: Vec<Value> = key
        .prints
        .iter()
        .map(|print| json!({"hash": print.hash().as_str(), "print": print.to_string()}))
        .collect();
    json!({
        "id": key.id.to_string(),
        "jid": key.owner.as_str(),
        "method": key.method.as_str(),
        "state": key.as_of(now).state.as_str(),
        "expired": key.is_expired(now),
        "assurance": key.assurance.as_str(),
        "source": key.source.as_str(),
        "label": key.label,
        "created": stamp(key.created),
        "expires": key.expires.map(stamp),
        "reason": key.reason,
        "prints": prints,
    })
}
