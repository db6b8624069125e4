//! Files that several processes of one user share. They are changed under a lock and replaced whole.
//!
//! To change such a file, take the directory's [`Lock`], read the file again, and replace it. A reader needs no lock:
//! it sees the old file or the new one.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// The file that is locked while another file of its directory is changed. It is empty and stays.
const LOCK: &str = ".lock";

/// The right to change the shared files of a directory, until it is dropped.
///
/// The lock belongs to an open file (flock(2)). It works between processes and between the tasks of one process, and
/// the system releases it when its owner ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the lock of an existing directory. The wait is short: each holder makes a few writes.
    ///
    /// # Errors
    /// If the lock file cannot be created or locked.
    pub fn acquire(dir: &Path) -> io::Result<Self> {
        let file = open(&dir.join(LOCK))?;
        loop {
            match file.lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes another lock of a directory, by the name of its file, if nobody has it.
    ///
    /// # Errors
    /// If the file cannot be created or locked; [`ErrorKind::WouldBlock`] if another process has the lock.
    pub fn take(dir: &Path, name: &str) -> io::Result<Self> {
        let file = open(&dir.join(name))?;
        file.try_lock()?;
        Ok(Self { _file: file })
    }
}

/// Opens a file to be locked, which is empty and stays.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Writes a file of mode 0600 whole or not at all, and replaces the old one if it exists.
///
/// The new file has a temporary name until it is on the disk. If `path` is a symbolic link, its target is replaced.
///
/// # Errors
/// The system's error; the old file is untouched then.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let dir = path.parent().unwrap_or_else(|| Path::new("/"));
    let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(dir)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(&path)?;
    sync(dir)
}

/// Writes a new file of mode 0600 whole or not at all.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`] if the file exists, otherwise the system's error.
pub fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or_else(|| Path::new("/"));
    let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(dir)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist_noclobber(path)?;
    sync(dir)
}

/// Puts a directory's new names on the disk. Not all file systems can do that.
///
/// # Errors
/// The system's error, unless the file system cannot do it.
pub fn sync(dir: &Path) -> io::Result<()> {
    match fs::File::open(dir)?.sync_all() {
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => {
            Ok(())
        }
        synced => synced,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn changes_by_many_at_once_are_all_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list");
        std::thread::scope(|scope| {
            for n in 0..8 {
                let (dir, path) = (dir.path(), &path);
                scope.spawn(move || {
                    for m in 0..10 {
                        let _lock = Lock::acquire(dir).unwrap();
                        let old = fs::read_to_string(path).unwrap_or_default();
                        replace(path, format!("{old}{n} {m}\n").as_bytes()).unwrap();
                    }
                });
            }
        });
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 80);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // Nothing but the list and the lock is left.
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_new_file_takes_no_other_ones_place_and_a_link_stays_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("key"), dir.path().join("link"));
        create(&path, b"one").unwrap();
        assert_eq!(create(&path, b"two").unwrap_err().kind(), ErrorKind::AlreadyExists);
        std::os::unix::fs::symlink(&path, &link).unwrap();
        replace(&link, b"three").unwrap();
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(fs::read(&path).unwrap(), b"three");
    }
}
