//! The token that replaces the password at the next login (XEP-0484), in a file of the account.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use fingerpost_endpoint::{FastStore, FastToken};
use fingerpost_secure::shared_file::{self, Lock};
use serde::{Deserialize, Serialize};

/// The file, in the account's directory. It is as secret as the password beside it.
pub(super) const FILE: &str = "fast.toml";

/// The file whose lock the one program holds that may use the identifier.
const TURN: &str = "fast.lock";

/// Stores the token of an account.
///
/// Servers end an older connection with the same identifier (ejabberd 24.12 does). So one program at a time uses it, for
/// as long as it runs. The others log in with the password and without an identifier.
#[derive(Debug)]
pub(super) struct FastFile {
    dir: PathBuf,
}

/// The content of the file. It has no `Debug`, because it holds a secret.
#[derive(Deserialize, Serialize)]
struct StoredToken {
    /// The identifier of this installation, to which the server binds tokens.
    id: String,
    mechanism: Option<String>,
    token: Option<String>,
    expiry: Option<String>,
}

impl FastFile {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    fn read(&self) -> Option<StoredToken> {
        toml::from_str(&fs::read_to_string(self.dir.join(FILE)).ok()?).ok()
    }

    /// Changes the file under its lock, if the change still applies. A file that cannot be read is replaced, because
    /// the password remains. Returns the identifier.
    fn change(
        &self,
        token: Option<&FastToken>,
        is_due: impl FnOnce(&StoredToken) -> bool,
    ) -> Option<String> {
        let _lock = Lock::acquire(&self.dir).ok()?;
        let old = self.read();
        if old.as_ref().is_some_and(|kept| !is_due(kept)) {
            return old.map(|kept| kept.id);
        }
        let id = old.map_or_else(random_uuid, |kept| kept.id);
        let kept = StoredToken {
            id: id.clone(),
            mechanism: token.map(|token| token.mechanism.clone()),
            token: token.map(|token| token.token.expose_secret().to_owned()),
            expiry: token.map(|token| token.expiry.clone()),
        };
        let text = toml::to_string(&kept).ok()?;
        shared_file::replace(&self.dir.join(FILE), text.as_bytes()).ok()?;
        Some(id)
    }

    /// Forgets any token: the account has another password.
    pub(super) fn clear(&self) {
        if self.read().is_some() {
            self.change(None, |_| true);
        }
    }
}

/// Returns whether this process is the one program of an account that uses the identifier, until it ends.
fn has_turn(dir: &Path) -> bool {
    static HELD: Mutex<BTreeMap<PathBuf, Lock>> = Mutex::new(BTreeMap::new());
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    if !held.contains_key(dir)
        && let Ok(lock) = Lock::take(dir, TURN)
    {
        held.insert(dir.to_owned(), lock);
    }
    held.contains_key(dir)
}

impl FastStore for FastFile {
    fn load(&self) -> Option<(String, Option<FastToken>)> {
        if !has_turn(&self.dir) {
            return None;
        }
        let Some(kept) = self.read() else {
            // Another program may be faster.
            return self.change(None, |_| false).map(|id| (id, None));
        };
        let token = kept.mechanism.zip(kept.token).map(|(mechanism, token)| {
            FastToken::new(mechanism, token, kept.expiry.unwrap_or_default())
        });
        Some((kept.id, token))
    }

    fn store(&self, token: &FastToken) {
        if self.change(Some(token), |_| true).is_none() {
            tracing::warn!("could not store the token for the next login");
        }
    }

    fn forget(&self, token: &FastToken) {
        self.change(None, |kept| kept.token.as_deref() == Some(token.token.expose_secret()));
    }
}

/// Returns a random UUID (RFC 9562, section 5.4).
fn random_uuid() -> String {
    let random = rand::random::<u128>() & !(0xf << 76) & !(0x3 << 62) | (4 << 76) | (2 << 62);
    let hex = format!("{random:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn a_token_is_kept_for_its_owner_alone_and_takes_the_old_ones_place() {
        let dir = tempfile::tempdir().unwrap();
        let file = FastFile::new(dir.path().to_owned());
        let (id, none) = file.load().unwrap();
        assert_eq!(none, None);
        for token in ["one", "two"] {
            let token = FastToken::new("HT-SHA-256-EXPR", token, "2027-01-01T00:00:00Z");
            file.store(&token);
            assert_eq!(file.load(), Some((id.clone(), Some(token))));
        }
        let path = dir.path().join(FILE);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!fs::read_to_string(&path).unwrap().contains("one"));
        // A refused token that another program has replaced meanwhile is not forgotten.
        file.forget(&FastToken::new("HT-SHA-256-EXPR", "one", ""));
        assert!(file.load().unwrap().1.is_some());
        file.forget(&FastToken::new("HT-SHA-256-EXPR", "two", ""));
        assert_eq!(file.load(), Some((id.clone(), None)));
        file.store(&FastToken::new("HT-SHA-256-EXPR", "two", ""));
        file.clear();
        assert_eq!(file.load(), Some((id, None)));
        assert!(!fs::read_to_string(&path).unwrap().contains("two"));
    }

    #[test]
    fn one_program_at_a_time_has_the_identifier() {
        let dir = tempfile::tempdir().unwrap();
        let other = File::create(dir.path().join(TURN)).unwrap();
        other.lock().unwrap();
        let file = FastFile::new(dir.path().to_owned());
        assert_eq!(file.load(), None);
        drop(other);
        let kept = file.load();
        assert!(kept.is_some());
        let other = File::open(dir.path().join(TURN)).unwrap();
        assert!(other.try_lock().is_err(), "until the process ends");
        assert_eq!(file.load(), kept);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = FastFile::new(dir.path().to_owned());
        for text in ["", "token = 1", "\u{0}"] {
            fs::write(dir.path().join(FILE), text).unwrap();
            let (id, token) = file.load().unwrap();
            assert_eq!((id.len(), token), (36, None));
        }
        // Without the directory nothing can be stored: the password is used.
        assert_eq!(FastFile::new(dir.path().join("none")).load(), None);
    }

    #[test]
    fn identifiers_are_uuids_of_version_4() {
        for _ in 0..64 {
            let id = random_uuid();
            let parts: Vec<&str> = id.split('-').collect();
            assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
            assert!(
                parts[2].starts_with('4') && parts[3].starts_with(['8', '9', 'a', 'b']),
                "{id}"
            );
        }
    }
}
