//! Offline administration of the registry.

use std::{io::Write, path::PathBuf};

use jid::BareJid;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::{
    print::{HashKind, Method, Print},
    registry::{
        material::Material,
        model::{Actor, Key, KeyId, NewKey, Source, check_reason, stamp},
        store::{Store, StoreError},
    },
};

/// An admin's hand is not held: this only stops a runaway script.
const LIMIT: u32 = 10_000;

/// What can be done to the registry offline.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum KeysCommand {
    /// List keys of one user, or all
    List {
        /// Whose
        jid: Option<BareJid>,
    },
    /// Show one key
    Show {
        /// Its id
        id: String,
    },
    /// Add a key for a user
    Add {
        /// Whose
        jid: BareJid,
        /// x509 or openpgp
        #[arg(long)]
        method: Method,
        /// Its print, hexadecimal
        #[arg(long, required_unless_present = "material")]
        print: Vec<String>,
        /// Its certificate, DER or PEM
        #[arg(long, value_name = "FILE")]
        material: Option<PathBuf>,
        /// A name for it
        #[arg(long, default_value = "")]
        label: String,
    },
    /// Revoke a key, finally
    Revoke {
        /// Its id
        id: String,
        /// Why
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
    /// The store said no.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The output cannot be written.
    #[error(transparent)]
    Output(#[from] std::io::Error),
}

fn input(error: impl std::fmt::Display) -> KeysError {
    KeysError::Input(error.to_string())
}

/// Runs a command; what it found goes to `out`.
///
/// # Errors
/// [`KeysError`]
pub async fn run(
    command: KeysCommand,
    store: &Store,
    json: bool,
    now: OffsetDateTime,
    out: &mut impl Write,
) -> Result<(), KeysError> {
    let keys = match command {
        KeysCommand::List { jid: Some(jid) } => store.keys_of(&jid).await?,
        KeysCommand::List { jid: None } => store.all().await?,
        KeysCommand::Show { id } => {
            let id: KeyId = id.parse().map_err(input)?;
            vec![store.key(id).await?.ok_or_else(|| input("no such key"))?]
        }
        KeysCommand::Add { jid, method, print, material, label } => {
            let prints = print
                .iter()
                .map(|text| Print::parse(text, None::<HashKind>).map_err(input))
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
            vec![store.add(&jid, &new, LIMIT, &Actor::Offline, now, id).await?.key]
        }
        KeysCommand::Revoke { id, reason } => {
            let id: KeyId = id.parse().map_err(input)?;
            let reason = check_reason(&reason).map_err(input)?;
            vec![store.revoke(id, &Actor::Offline, &reason, now).await?.0]
        }
    };
    if json {
        let keys: Vec<Value> = keys.iter().map(to_json).collect();
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
            key.state,
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

fn to_json(key: &Key) -> Value {
    let prints: Vec<Value> = key
        .prints
        .iter()
        .map(|print| json!({"hash": print.hash().as_str(), "print": print.to_string()}))
        .collect();
    json!({
        "id": key.id.to_string(),
        "jid": key.owner.as_str(),
        "method": key.method.as_str(),
        "state": key.state.as_str(),
        "assurance": key.assurance.as_str(),
        "source": key.source.as_str(),
        "label": key.label,
        "created": stamp(key.created),
        "expires": key.expires.map(stamp),
        "reason": key.reason,
        "prints": prints,
    })
}
