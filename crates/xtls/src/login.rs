//! The commands that create an account: `login` and `keygen`.

use std::{collections::BTreeSet, path::Path, time::Duration};

use fingerpost_endpoint::{self, Connection, Endpoint, RequestKind};
use fingerpost_secure::{
    identity::{Algorithm, Identity},
    openpgp::OpenPgpKey,
};
use fingerpost_wire::{ns, print::Print, xml};
use futures::future::join_all;
use jid::{BareJid, Jid};
use minidom::Element;
use serde_json::json;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::{
    account::{self, Account},
    args::Common,
    credential::{ask, passphrase},
    output::{Output, XtlsError},
    rights,
};

/// How long the server, and then each component, may take to answer a query of service discovery.
const DISCO: Duration = Duration::from_secs(5);
/// The most listed services that are asked what they are.
const ITEMS: usize = 32;

/// Logs in once and stores the account.
pub(super) async fn login(
    common: &Common,
    jid: &BareJid,
    server: Option<String>,
    password_file: Option<&Path>,
    trust_certificate: Option<&Print>,
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
    if password.is_empty() {
        return Err(XtlsError::usage("the password is empty").hint(
            "type it, or put it into the first line of --password-file or in XTLS_PASSWORD",
        ));
    }
    let mut account = Account {
        jid: jid.clone(),
        password,
        server,
        via: common.via.clone(),
        ca_file,
        trust_certificate: trust_certificate.map(|print| print.to_string()),
        direct_path: common.direct_path,
        stun: common.stun.clone(),
    };
    // This tests the password, not a stored token.
    let mut login = account.login(common)?;
    login.fast = None;
    let connection = fingerpost_endpoint::login(&login).await?;
    let mut note = String::new();
    if account.via.is_none() {
        let found = components(jid, connection).await?;
        note = match found.as_slice() {
            [] => "; its server lists no component: name one with --via".to_owned(),
            [only] => {
                account.via = Some(only.clone());
                format!(", with the component {only}")
            }
            several => {
                let names: Vec<_> = several.iter().map(|jid| jid.as_str()).collect();
                format!(
                    "; its server lists several components, choose one with --via: {}",
                    names.join(", ")
                )
            }
        };
    }
    account.store()?;
    let via = account.via.as_ref().map(|via| via.as_str());
    output.event(
        &json!({"event": "login", "jid": jid.as_str(), "via": via}),
        &format!("logged in as {jid}{note}"),
    );
    Ok(())
}

/// Returns the components with a registry that the account's own server lists (XEP-0030), by their names.
async fn components(jid: &BareJid, connection: Connection) -> Result<Vec<BareJid>, XtlsError> {
    // No session is set up here, so any identity will do.
    let (endpoint, _incoming) = Endpoint::builder(Identity::generate(jid)?).over(connection);
    let ask = async |to: &Jid, namespace: &str| {
        let asked = endpoint.request(RequestKind::Get, to, Element::bare("query", namespace));
        timeout(DISCO, asked).await.ok()?.ok()?
    };
    let listed = match Jid::new(jid.domain().as_str()) {
        Ok(server) => ask(&server, ns::DISCO_ITEMS).await,
        Err(_) => None,
    };
    let listed: BTreeSet<BareJid> = listed
        .iter()
        .flat_map(Element::children)
        .filter(|item| item.is("item", ns::DISCO_ITEMS) && item.attr("node").is_none())
        .filter_map(|item| BareJid::new(item.attr("jid")?).ok())
        .filter(|item| item.node().is_none())
        .take(ITEMS)
        .collect();
    // In parallel: one that does not answer must not use up the time of the others.
    let asked = listed.into_iter().map(async |item| {
        let info = ask(&Jid::from(item.clone()), ns::DISCO_INFO).await?;
        xml::features(&info).any(|feature| feature == ns::KEYS).then_some(item)
    });
    let found = join_all(asked).await.into_iter().flatten().collect();
    endpoint.close().await;
    Ok(found)
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
