//! Accounts of `xtls`: one directory each, readable by its owner only.

use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use fingerpost_endpoint::{FastStore, Login, ServerTrust};
use fingerpost_secure::shared_file::{self, Lock};
use fingerpost_wire::print::Print;
use jid::BareJid;
use serde::{Deserialize, Serialize};

use super::{
    args::{self, Common, DirectPathChoice},
    fast::{self, FastFile},
    output::XtlsError,
    rights,
};

/// The file of an account, in its directory.
pub(super) const FILE: &str = "account.toml";

/// A stored account.
#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// The user's JID.
    pub jid: BareJid,
    /// Its password.
    pub password: String,
    /// `host:port`; overrides the DNS records of the JID's domain.
    pub server: Option<String>,
    /// The component to use.
    pub via: Option<BareJid>,
    /// More certificates to trust for the XMPP server, PEM.
    pub ca_file: Option<PathBuf>,
    /// The SHA-256 fingerprint of the only certificate of the XMPP server to trust.
    pub trust_certificate: Option<String>,
    /// With which peers its sessions may leave the relay.
    pub direct_path: Option<DirectPathChoice>,
    /// The STUN servers to ask instead of those that the XMPP server names, as `--stun` takes them; empty for the latter.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stun: Vec<String>,
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Account").field("jid", &self.jid).finish_non_exhaustive()
    }
}

/// Returns the directory of all accounts.
///
/// # Errors
/// If the environment does not name one.
pub fn home() -> Result<PathBuf, XtlsError> {
    let get = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    get("XTLS_HOME")
        .or_else(|| get("XDG_CONFIG_HOME").map(|dir| dir.join("xtls")))
        .or_else(|| get("HOME").map(|dir| dir.join(".config/xtls")))
        .ok_or_else(|| XtlsError::failed("no directory for accounts: set XTLS_HOME"))
}

/// Returns the directory of one account; creates it if it is missing.
///
/// # Errors
/// If it cannot be created.
pub fn directory(jid: &BareJid) -> Result<PathBuf, XtlsError> {
    let name: String = jid.as_str().chars().map(|c| if c == '/' { '_' } else { c }).collect();
    let dir = home()?.join(name);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .map_err(|error| XtlsError::failed(format!("{}: {error}", dir.display())))?;
    Ok(dir)
}

/// Locks an account's directory against changes by other processes, and waits for the lock.
///
/// # Errors
/// If the directory cannot be locked.
pub(super) fn lock(dir: &Path) -> Result<Lock, XtlsError> {
    Lock::acquire(dir)
        .map_err(|error| XtlsError::failed(format!("{}: cannot be locked: {error}", dir.display())))
}

/// Reads the fingerprint of a server's certificate.
fn pinned(text: &str) -> Result<Print, XtlsError> {
    args::certificate(text).map_err(|why| XtlsError::failed(format!("trust_certificate: {why}")))
}

impl Account {
    /// Returns whether it is only a server, which makes an address for each login.
    pub(super) fn is_anonymous(&self) -> bool {
        self.jid.node().is_none()
    }

    /// Returns the login of the account.
    ///
    /// # Errors
    /// If its file has a fingerprint that cannot be read.
    pub(super) fn login(&self, common: &Common) -> Result<Login, XtlsError> {
        if let Ok(dir) = directory(&self.jid) {
            for secret in [FILE, fast::FILE] {
                rights::warn_of_password(&dir.join(secret));
            }
        }
        let mut login = Login::new(self.jid.clone(), self.password.clone());
        login.server.clone_from(&self.server);
        login.trust = ServerTrust {
            ca_file: common.ca_file.clone().or_else(|| self.ca_file.clone()),
            certificate: self.trust_certificate.as_deref().map(pinned).transpose()?,
            insecure: common.insecure_tls,
        };
        login.fast = directory(&self.jid)
            .ok()
            .filter(|_| !self.is_anonymous())
            .map(|dir| Arc::new(FastFile::new(dir)) as Arc<dyn FastStore>);
        if let Some(seconds) = common.keepalive {
            login.keepalive = Duration::from_secs(seconds.max(1));
        }
        Ok(login)
    }

    /// Stores the account.
    ///
    /// # Errors
    /// If its file cannot be written.
    pub fn store(&self) -> Result<(), XtlsError> {
        let dir = directory(&self.jid)?;
        let path = dir.join(FILE);
        let text = toml::to_string(self).map_err(|error| XtlsError::failed(error.to_string()))?;
        {
            let _lock = lock(&dir)?;
            shared_file::replace(&path, text.as_bytes())
                .map_err(|error| XtlsError::failed(format!("{}: {error}", path.display())))?;
        }
        FastFile::new(dir).clear();
        Ok(())
    }

    /// Reads the named account, or the only one that exists.
    ///
    /// # Errors
    /// Exit status 2 if none or several fit.
    pub fn load(jid: Option<&BareJid>) -> Result<Self, XtlsError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(home()?).into_iter().flatten().flatten() {
            let path = entry.path().join(FILE);
            let Ok(text) = fs::read_to_string(&path) else { continue };
            let account: Self = toml::from_str(&text).map_err(|error| {
                XtlsError::failed(format!("{}: {}", path.display(), error.message()))
            })?;
            if jid.is_none_or(|jid| *jid == account.jid) {
                found.push(account);
            }
        }
        if found.len() > 1 {
            return Err(XtlsError::usage(
                "there are several accounts: choose one with --account JID",
            ));
        }
        found.pop().ok_or_else(|| match jid {
            Some(jid) => XtlsError::usage(format!("there is no account {jid} here"))
                .hint(format!("xtls setup {jid}")),
            None => XtlsError::usage("there is no account here yet")
                .hint("xtls setup JID, such as alice@example.org"),
        })
    }
}
