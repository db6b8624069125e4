//! The command `setup`: account, component, key, registration and proof. A second run keeps what is there.

use std::io::{BufRead, IsTerminal, Write, stderr, stdin};

use fingerpost_secure::identity::{Algorithm, Identity};
use jid::BareJid;
use serde_json::json;

use super::{
    account::{self, Account},
    args::{Common, LoginArgs},
    credential, discover,
    login::{self, LoggedIn},
    output::{Output, XtlsError},
    registry::{self, OwnKey},
};

/// Does everything that is missing until files can be sent and received; each step says what it did.
pub(super) async fn setup(
    common: &Common,
    wanted: &LoginArgs,
    label: &str,
    output: Output,
) -> Result<(), XtlsError> {
    if wanted.jid.node().is_none() {
        return Err(XtlsError::usage("the JID must be user@domain"));
    }
    let known = Account::load(Some(&wanted.jid)).ok();
    let LoggedIn { mut account, found } = login::log_in(common, wanted, known.as_ref()).await?;
    let made = if known.is_some() { "logged in again" } else { "logged in, and stored" };
    step(output, "account", known.is_none(), &account.jid.to_string(), made);

    let has_component = known.is_some_and(|known| known.via == account.via && known.via.is_some());
    let identity = own_key(&account, output)?;
    if account.via.is_none() {
        account.via = choose(&found).await?;
        account.store()?;
    }
    let Some(component) = account.via.clone() else {
        return Err(XtlsError::failed("your XMPP server lists no component: the key is not registered")
            .hint("ask the server's operator for the component's address, then run `xtls setup` again with --via"));
    };
    let how = if has_component { "kept" } else { "stored" };
    step(output, "component", !has_component, component.as_str(), how);

    let own = OwnKey::X509(identity);
    let enrolled = registry::enrol(common, &account, &own, label).await?;
    let (made, how) = match enrolled.registered {
        true => (true, format!("registered as {label:?}")),
        false => (false, "registered already".to_owned()),
    };
    step(output, "register", made, &enrolled.id, &how);
    let how = if enrolled.proven { "proven now" } else { "proven already" };
    step(output, "prove", enrolled.proven, &enrolled.id, how);
    let user = &account.jid;
    output.event(
        &json!({"event": "setup", "jid": user.as_str(), "via": component.as_str()}),
        &format!(
            "ready: `xtls listen` receives files, and others send them with `xtls send {user} FILE`"
        ),
    );
    Ok(())
}

/// Reports a step.
fn step(output: Output, name: &str, made: bool, what: &str, how: &str) {
    output.event(
        &json!({"event": "step", "step": name, "made": made, "value": what}),
        &format!("{name}: {what}, {how}"),
    );
}

/// Returns the account's key, which is made if it is missing.
fn own_key(account: &Account, output: Output) -> Result<Identity, XtlsError> {
    let dir = account::directory(&account.jid)?;
    let _lock = account::lock(&dir)?;
    let (identity, made) = match credential::identity_in(&dir)? {
        Some(identity) => (identity, false),
        None => {
            let identity = Identity::generate_by(&account.jid, Algorithm::default())?;
            identity.store(&dir)?;
            (identity, true)
        }
    };
    let how = if made { "made" } else { "kept" };
    step(output, "key", made, &identity.print().to_string(), how);
    Ok(identity)
}

/// Returns one of the components that were found. If there are several, the user chooses.
async fn choose(found: &[BareJid]) -> Result<Option<BareJid>, XtlsError> {
    if found.len() < 2 {
        return Ok(found.first().cloned());
    }
    let several = || {
        let names = discover::names(found);
        XtlsError::usage(format!("your XMPP server lists several components: {names}"))
            .hint("choose one with --via")
    };
    if !stdin().is_terminal() {
        return Err(several());
    }
    let names = discover::names(found);
    let asking = tokio::task::spawn_blocking(move || {
        let _ = write!(stderr(), "Which component ({names})? ");
        let mut line = String::new();
        stdin().lock().read_line(&mut line).map(|_| line)
    });
    let answer = asking.await.map_err(std::io::Error::from)??;
    let chosen = found.iter().find(|component| component.as_str() == answer.trim());
    chosen.cloned().map(Some).ok_or_else(several)
}
