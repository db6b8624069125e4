//! The credential by which `xtls` proves its user's identity: the key or the password of the method.

use std::{io, path::Path};

use fingerpost_endpoint::Credential;
use fingerpost_secure::{
    identity::{self, Identity},
    openpgp::{self, OpenPgpKey},
    srp, x509,
};
use fingerpost_wire::print::Method;
use zeroize::Zeroizing;

use super::{
    account::{self, Account},
    args::Common,
    output::XtlsError,
    rights,
};

/// The variables of the environment that hold secrets: other programs are not given them.
pub(super) const SECRETS: [&str; 3] =
    ["XTLS_PASSWORD", "XTLS_SRP_PASSWORD", "XTLS_OPENPGP_PASSPHRASE"];

/// Returns the credential of the requested method.
pub(super) fn load(common: &Common, account: &Account) -> Result<Credential, XtlsError> {
    match common.method {
        Method::X509 => Ok(usable_identity(account)?.into()),
        Method::OpenPgp => {
            let key = own_openpgp(account)?;
            let passphrase = passphrase(&key)?;
            Ok(key.unlock(passphrase)?.into())
        }
        Method::Srp => {
            let text = secret(common.srp_password_file.as_deref(), "XTLS_SRP_PASSWORD", || {
                "Password that you and the peer share: ".to_owned()
            })?;
            let password = srp::Password::new(&text)
                .map_err(|error| XtlsError::usage(format!("the shared password: {error}")))?;
            Ok(password.into())
        }
    }
}

/// Returns the user's certificate and key.
pub(super) fn own_identity(account: &Account) -> Result<Identity, XtlsError> {
    let dir = account::directory(&account.jid)?;
    identity_in(&dir)?
        .ok_or_else(|| XtlsError::usage("you do not have a key yet: run xtls keygen first"))
}

/// The certificate and key in a directory, if they are there.
pub(super) fn identity_in(dir: &Path) -> Result<Option<Identity>, XtlsError> {
    rights::check_key(&dir.join(identity::KEY))?;
    Ok(Identity::load(dir)?)
}

/// Returns the same for a session, unless it is one that every peer would refuse.
fn usable_identity(account: &Account) -> Result<Identity, XtlsError> {
    let identity = own_identity(account)?;
    let dir = account::directory(&account.jid)?;
    x509::check(&identity.certificate).map_err(|why| {
        XtlsError::usage(format!("no session can come about with your certificate: {why}")).hint(
            format!("move cert.pem and key.pem away from {} and run xtls keygen", dir.display()),
        )
    })?;
    Ok(identity)
}

/// Returns the user's OpenPGP key.
pub(super) fn own_openpgp(account: &Account) -> Result<OpenPgpKey, XtlsError> {
    let dir = account::directory(&account.jid)?;
    rights::check_key(&dir.join(openpgp::FILE))?;
    OpenPgpKey::load(&dir)?.ok_or_else(|| {
        XtlsError::usage("there is no OpenPGP key yet: run xtls keygen --openpgp first")
    })
}

/// Returns the passphrase of the key; empty if it is not locked.
pub(super) fn passphrase(key: &OpenPgpKey) -> Result<Zeroizing<String>, XtlsError> {
    if !key.is_locked() {
        return Ok(Zeroizing::default());
    }
    secret(None, "XTLS_OPENPGP_PASSPHRASE", || {
        format!("Passphrase of the OpenPGP key {}: ", key.print())
    })
}

/// Returns a secret from the first line of a file, the environment, or the user; never from the command line, which
/// other users can read.
pub(super) fn secret(
    file: Option<&Path>,
    variable: &str,
    prompt: impl FnOnce() -> String,
) -> Result<Zeroizing<String>, XtlsError> {
    if let Some(file) = file {
        rights::warn_of_password(file);
        let text = std::fs::read_to_string(file)
            .map(Zeroizing::new)
            .map_err(|error| XtlsError::usage(format!("{}: {error}", file.display())))?;
        return Ok(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()));
    }
    if let Ok(text) = std::env::var(variable) {
        return Ok(Zeroizing::new(text));
    }
    ask(prompt(), &format!("set {variable}"))
}

/// Asks for a secret on the terminal, without echo; `otherwise` says how to give it where there is none.
pub(super) fn ask(question: String, otherwise: &str) -> Result<Zeroizing<String>, XtlsError> {
    rpassword::prompt_password(question)
        .map(Zeroizing::new)
        .map_err(|error| unanswered(&error, otherwise))
}

/// Returns the error for a question that got no answer.
fn unanswered(error: &io::Error, otherwise: &str) -> XtlsError {
    match error.kind() {
        // Ctrl-C. The prompt raises the signal too, but the task that waits for it may hear of it later.
        io::ErrorKind::Interrupted => XtlsError::failed("interrupted"),
        _ => XtlsError::usage(format!("cannot ask on the terminal: {error}"))
            .hint(format!("without a terminal, {otherwise}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_that_is_interrupted_is_no_error_of_usage() {
        let error = unanswered(&io::ErrorKind::Interrupted.into(), "set A");
        assert_eq!((error.code, error.text.as_str(), error.hint), (1, "interrupted", None));
        let error = unanswered(&io::ErrorKind::NotFound.into(), "set A");
        assert_eq!((error.code, error.hint.as_deref()), (2, Some("without a terminal, set A")));
    }
}
