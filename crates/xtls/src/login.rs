//! The commands that create an account: `login` and `keygen`.

use std::{
    io::{IsTerminal, stdin},
    path::Path,
};

use fingerpost_endpoint::{Endpoint, Error};
use fingerpost_secure::{
    identity::{Algorithm, Identity},
    openpgp::OpenPgpKey,
};
use jid::BareJid;
use serde_json::json;
use zeroize::Zeroizing;

use super::{
    account::{self, Account},
    args::{Common, LoginArgs},
    credential::{ask, passphrase},
    discover,
    output::{Output, XtlsError},
    rights,
    secured::{TerminalTurn, UserAnswer},
};

/// An account that has logged in and is stored.
pub(super) struct LoggedIn {
    pub(super) account: Account,
    /// The components that its server lists, if none was named.
    pub(super) found: Vec<BareJid>,
}

/// Logs in once and stores the account.
pub(super) async fn login(
    common: &Common,
    wanted: &LoginArgs,
    output: Output,
) -> Result<(), XtlsError> {
    let LoggedIn { account, found } = log_in(common, wanted, None).await?;
    let note = match found.as_slice() {
        _ if common.via.is_some() => String::new(),
        [] => "; its server lists no component: name one with --via".to_owned(),
        [only] => format!(", with the component {only}"),
        several => {
            let names = discover::names(several);
            format!("; its server lists several components, choose one with --via: {names}")
        }
    };
    let (jid, via) = (&account.jid, account.via.as_ref().map(|via| via.as_str()));
    output.event(
        &json!({"event": "login", "jid": jid.as_str(), "via": via}),
        &format!("logged in as {jid}{note}"),
    );
    Ok(())
}

/// Logs in once and stores the account, with the component if its server lists just one. Takes from `known`, the account
/// as it was stored, what is not given.
pub(super) async fn log_in(
    common: &Common,
    wanted: &LoginArgs,
    known: Option<&Account>,
) -> Result<LoggedIn, XtlsError> {
    let LoginArgs { jid, server, password_file, trust_certificate } = wanted;
    let is_anonymous = jid.node().is_none();
    if let Some(file) = password_file {
        rights::warn_of_password(file);
    }
    let password = match (password_file, std::env::var("XTLS_PASSWORD"), known) {
        _ if is_anonymous => String::new(),
        (Some(file), ..) => std::fs::read_to_string(file)
            .map_err(|error| XtlsError::usage(format!("{}: {error}", file.display())))?
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned(),
        (None, Ok(password), _) => password,
        (None, Err(_), Some(known)) => known.password.clone(),
        (None, Err(_), None) => prompt(jid).await?,
    };
    let ca_file = common.ca_file.clone().map(|file| file.canonicalize().unwrap_or(file));
    if password.is_empty() && !is_anonymous {
        return Err(XtlsError::usage("the password is empty").hint(
            "type it, or put it into the first line of --password-file or in XTLS_PASSWORD",
        ));
    }
    let trust_certificate = trust_certificate.as_ref().map(ToString::to_string);
    let mut account = Account {
        jid: jid.clone(),
        password,
        server: server.clone().or_else(|| known?.server.clone()),
        via: common.via.clone().or_else(|| known?.via.clone()),
        ca_file: ca_file.or_else(|| known?.ca_file.clone()),
        trust_certificate: trust_certificate.or_else(|| known?.trust_certificate.clone()),
        direct_path: common.direct_path.or_else(|| known?.direct_path),
        stun: match known {
            Some(known) if common.stun.is_empty() => known.stun.clone(),
            _ => common.stun.clone(),
        },
    };
    // This tests the password, not a stored token.
    let mut login = account.login(common)?;
    login.fast = None;
    let connection = match fingerpost_endpoint::login(&login).await {
        Err(Error::Certificate { why, shown })
            if login.trust.certificate.is_none() && stdin().is_terminal() =>
        {
            let question = format!(
                "{why}\nAsk the server's operator for its fingerprint. Is it this one, and is it trusted for {jid}? [y/N] "
            );
            if TerminalTurn::new().await.ask(question).await? != UserAnswer::Yes {
                return Err(Error::Certificate { why, shown }.into());
            }
            account.trust_certificate = Some(shown.to_string());
            login.trust.certificate = Some(shown);
            fingerpost_endpoint::login(&login).await?
        }
        tried => tried?,
    };
    let mut found = Vec::new();
    if account.via.is_none() {
        // No session is set up here, so any identity will do.
        let (endpoint, _incoming) = Endpoint::builder(Identity::generate(jid)?).over(connection);
        found = discover::components(&endpoint).await;
        endpoint.close().await;
        if let [only] = found.as_slice() {
            account.via = Some(only.clone());
        }
    }
    account.store()?;
    Ok(LoggedIn { account, found })
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
    let asking = tokio::task::spawn_blocking(move || {
        ask(question, "give it by --password-file or in XTLS_PASSWORD")
    });
    let mut answer = asking.await.map_err(|error| XtlsError::failed(error.to_string()))??;
    Ok(std::mem::take(&mut *answer))
}
