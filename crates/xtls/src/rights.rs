//! Checks the rights of files with secrets, as ssh does: a private key that other users can read is not used, and a
//! password that they can read is used with a warning.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use super::output::{Output, XtlsError};

/// Files of which the user has been warned.
static WARNED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Returns the mode of a file of this user that other users can read or write. A file of another owner, for example a
/// secret that the system gives to a service, is not checked, and neither is a pipe.
fn exposed(path: &Path) -> Option<u32> {
    let file = fs::metadata(path).ok()?;
    let ours = file.is_file() && file.uid() == rustix::process::geteuid().as_raw();
    (ours && file.mode() & 0o077 != 0).then(|| file.mode() & 0o777)
}

/// Refuses a private key that others can read or write.
///
/// # Errors
/// If they can; the hint names the cure.
pub(super) fn check_key(path: &Path) -> Result<(), XtlsError> {
    let Some(mode) = exposed(path) else { return Ok(()) };
    let path = path.display();
    Err(XtlsError::failed(format!(
        "{path}: expected a private key that only you can read, found mode {mode:04o}: it is not used"
    ))
    .hint(format!("chmod 600 {path}; if others may have read it, revoke the key and make another")))
}

/// Warns, once, of a file with a password that others can read or write.
pub(super) fn warn_of_password(path: &Path) {
    let Some(mode) = exposed(path) else { return };
    if WARNED.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned()) {
        let path = path.display();
        Output::default().warn_with_hint(
            &format!("{path}: other users can read this password (mode {mode:04o})"),
            &format!("chmod 600 {path}"),
        );
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        assert_eq!(check_key(&path), Ok(()), "whether it is there is for others to say");
        fs::write(&path, "key").unwrap();
        for mode in [0o600, 0o400, 0o700] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(check_key(&path), Ok(()), "{mode:o}");
        }
        for mode in [0o640, 0o604, 0o660, 0o602, 0o601, 0o777] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let refused = check_key(&path).unwrap_err();
            assert!(refused.text.contains(&format!("mode {mode:04o}")), "{refused}");
            assert!(refused.hint.unwrap().starts_with("chmod 600 "), "{mode:o}");
        }
        assert_eq!(check_key(dir.path()), Ok(()), "a directory is no key");
    }
}
