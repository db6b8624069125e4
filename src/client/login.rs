//! The commands that create an account: `login` and `keygen`.

use std::path::Path;

use jid::BareJid;
use serde_json::json;
use zeroize::Zeroizing;

use super::{
    account::{self, Account},
    args::Common,
    credential::passphrase,
    output::{Output, XtlsError},
    rights,
};
use crate::{
    endpoint,
    tls::{
        identity::{Algorithm, Identity},
        openpgp::OpenPgpKey,
    },
};

/// Logs in once and stores the account.
pub(super) async fn login(
    common: &Common,
    jid: &BareJid,
    server: Option<String>,
    password_file: Option<&Path>,
    output: Output,
) -> Result<(), XtlsError> {
    if jid.node().is_none() {
        return Err(XtlsError::usage("the JID must be user@domain"));
    }
    if let Some(file) = password_file {
        rights::warn_of_password(file);
    }
    let password = match (password_file, std::env::var("XTLS_PASSWORD")) {
        (Some(file), _) => std::fs::read_to_string(file)
            .map_err(|error| XtlsError::usage(format!("{}: {error}", file.display())))?
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned(),
        (None, Ok(password)) => password,
        (None, Err(_)) => prompt(jid).await?,
    };
    let ca_file = common.ca_file.clone().map(|file| file.canonicalize().unwrap_or(file));
    let account = Account { jid: jid.clone(), password, server, via: common.via.clone(), ca_file };
    // This tests the password, not a stored token.
    let mut login = account.login(common);
    login.fast = None;
    let connection = endpoint::login(&login).await?;
    drop(connection);
    account.store()?;
    output.event(&json!({"event": "login", "jid": jid.as_str()}), &format!("logged in as {jid}"));
    Ok(())
}

/// Creates a key, unless one exists.
pub(super) fn keygen(
    common: &Common,
    algorithm: Algorithm,
    output: Output,
) -> Result<(), XtlsError> {
    let account = Account::load(common.account.as_ref())?;
    let dir = account::directory(&account.jid)?;
    let _lock = account::lock(&dir)?;
    if Identity::load(&dir)?.is_some() {
        return Err(XtlsError::usage(format!(
            "there is a key already in {}: move it away to make another",
            dir.display()
        )));
    }
    let identity = Identity::generate_by(&account.jid, algorithm)?;
    identity.store(&dir)?;
    let print = identity.print().to_string();
    output.data(
        &json!({"event": "keygen", "method": "x509", "algorithm": algorithm.as_str(), "print": print}),
        &print,
    );
    Ok(())
}

/// Creates or imports an OpenPGP key, unless one exists.
pub(super) fn keygen_openpgp(
    common: &Common,
    import: Option<&Path>,
    version_6: bool,
    output: Output,
) -> Result<(), XtlsError> {
    let account = Account::load(common.account.as_ref())?;
    let dir = account::directory(&account.jid)?;
    if OpenPgpKey::load(&dir)?.is_some() {
        return Err(XtlsError::usage(format!(
            "there is an OpenPGP key already in {}: move it away to take another",
            dir.display()
        )));
    }
    let key = match import {
        None => OpenPgpKey::generate(&account.jid, version_6)?,
        Some(file) => {
            let bytes = std::fs::read(file)
                .map(Zeroizing::new)
                .map_err(|error| XtlsError::usage(format!("{}: {error}", file.display())))?;
            let key = OpenPgpKey::parse(&bytes)?;
            // It must be able to sign before it is stored.
            key.sign(b"", &passphrase(&key)?)?;
            key
        }
    };
    let lock = account::lock(&dir)?;
    key.store(&dir)?;
    drop(lock);
    let print = key.print().to_string();
    output.data(&json!({"event": "keygen", "method": "openpgp", "print": print}), &print);
    Ok(())
}

/// Asks for the password on the terminal, without echo.
async fn prompt(jid: &BareJid) -> Result<String, XtlsError> {
    let question = format!("Password of {jid}: ");
    // In a thread of its own: Ctrl-C is handled while it waits, and it restores the terminal.
    let answer = tokio::task::spawn_blocking(move || rpassword::prompt_password(question)).await;
    answer.map_err(|error| XtlsError::failed(error.to_string()))?.map_err(|error| {
        XtlsError::failed(format!("no password: {error}"))
            .hint("without a terminal, give it by --password-file or in XTLS_PASSWORD")
    })
}
