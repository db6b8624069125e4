//! Partially received files: hidden, private to their owner, and kept for a while if the transfer breaks. A complete file
//! gets the rights of any new file in its directory, and the sender's date.
//!
//! A part's name combines the hash of the whole file and the sender, so that only the same sender's same file resumes.
//! A part is a prefix of the file, written in order; the hash of the whole file shows whether it is the right one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use data_encoding::HEXLOWER;
use jid::BareJid;
use rustix::fs::{FlockOperation, Gid, OFlags, fchown, flock};
use sha2::{Digest, Sha256};
use tempfile::{NamedTempFile, TempPath};
use time::OffsetDateTime;

use super::file_offer::{CHUNK, FileOffer};

const PREFIX: &str = ".xtls-";
const SUFFIX: &str = ".part";
/// How long a part waits for its sender to try again.
const AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// The most parts of one sender that a directory keeps: the youngest ones. One sender's parts never displace another's.
const MOST: usize = 16;

/// A file with a prefix on the disk.
#[derive(Debug)]
pub(super) struct PartialFile {
    file: NamedTempFile,
    /// Whether it is kept if the transfer breaks.
    lasting: bool,
    /// The number of bytes on the disk.
    len: u64,
    hash: Sha256,
    /// Its entry among those in use, if others may resume it.
    _claimed: Option<Claimed>,
}

/// The parts that this process writes to.
static IN_USE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// A part in [`IN_USE`], until this is dropped.
#[derive(Debug)]
pub(super) struct Claimed(PathBuf);

impl Claimed {
    pub(super) fn new(path: PathBuf) -> Option<Self> {
        let mut in_use = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
        in_use.insert(path.clone()).then(|| Self(path))
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        IN_USE.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// Returns how many bytes of an offered file exist from its sender's earlier try; 0 if they cannot be resumed.
///
/// An offer by a peer that has not proven its identity changes nothing here: only the length of the part is read, and
/// nothing is opened or created.
pub(super) fn kept(dir: &Path, sender: &BareJid, offer: &FileOffer) -> u64 {
    let Some(sha256) = &offer.sha256 else { return 0 };
    kept_at(&dir.join(name(sender, sha256)), offer.size)
}

/// Returns how many bytes a part has, if it can be one of a file of `size` bytes and is not in use; otherwise 0.
pub(super) fn kept_at(path: &Path, size: u64) -> u64 {
    let in_use = IN_USE.lock().unwrap_or_else(PoisonError::into_inner).contains(path);
    match path.symlink_metadata() {
        Ok(part) if !in_use && is_private(&part) && part.len() <= size => part.len(),
        _ => 0,
    }
}

/// Creates a part with a unique name, which is removed when it is dropped. The umask applies to its mode.
pub(super) fn new(dir: &Path, mode: u32) -> io::Result<NamedTempFile> {
    let file = tempfile::Builder::new()
        .prefix(PREFIX)
        .suffix(SUFFIX)
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(dir)?;
    // Otherwise another process, or another arriving file, could remove it.
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

/// Returns whether a file belongs to us alone.
fn is_private(file: &fs::Metadata) -> bool {
    file.is_file()
        && file.nlink() == 1
        && file.mode() & 0o077 == 0
        && file.uid() == rustix::process::geteuid().as_raw()
}

impl PartialFile {
    /// Resumes the first `kept` bytes of a file, which are read for their hash, or starts from the beginning.
    ///
    /// Without a hash in the offer, or if the part is in use, it gets a unique name and is not kept.
    ///
    /// # Errors
    /// The system's error; also if the part has changed since its sender was told of `kept` bytes.
    pub(super) fn open(
        dir: &Path,
        sender: &BareJid,
        offer: &FileOffer,
        kept: u64,
    ) -> io::Result<Self> {
        if let Some(sha256) = &offer.sha256 {
            let path = dir.join(name(sender, sha256));
            if let Some(claimed) = Claimed::new(path.clone())
                && let Some(file) = claim(&path)?
            {
                return Self::read(file, kept, claimed);
            }
        }
        if kept > 0 {
            return Err(io::Error::other(
                "the part that was kept is in use: send the file again later",
            ));
        }
        let file = new(dir, 0o600)?;
        Ok(Self { file, lasting: false, len: 0, hash: Sha256::new(), _claimed: None })
    }

    fn read(mut file: NamedTempFile, kept: u64, claimed: Claimed) -> io::Result<Self> {
        // No failure here is a reason to lose the bytes.
        file.disable_cleanup(true);
        let mut hash = Sha256::new();
        let mut buffer = vec![0; CHUNK];
        let mut len = 0;
        file.seek(SeekFrom::Start(0))?;
        while len < kept {
            let want = usize::try_from(kept - len).unwrap_or(CHUNK).min(CHUNK);
            let n = file.read(&mut buffer[..want])?;
            if n == 0 {
                return Err(io::Error::other(
                    "the part that was kept has changed: send the file again",
                ));
            }
            hash.update(&buffer[..n]);
            len += n as u64;
        }
        file.as_file().set_len(len)?;
        file.disable_cleanup(len > 0);
        Ok(Self { file, lasting: true, len, hash, _claimed: Some(claimed) })
    }

    /// Creates a part with this content that cannot be written to.
    #[cfg(test)]
    pub(super) fn read_only(dir: &Path, content: &[u8]) -> Self {
        let (mut file, path) = NamedTempFile::new_in(dir).unwrap().into_parts();
        file.write_all(content).unwrap();
        let file = NamedTempFile::from_parts(File::open(&path).unwrap(), path);
        let hash = Sha256::new_with_prefix(content);
        Self { file, lasting: true, len: content.len() as u64, hash, _claimed: None }
    }

    /// Returns its length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Appends bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.disable_cleanup(self.lasting);
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Drops the first `n` bytes.
    pub(super) fn drop_front(&mut self, n: u64) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK];
        let mut at = n;
        self.hash = Sha256::new();
        loop {
            self.file.seek(SeekFrom::Start(at))?;
            let read = self.file.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            self.file.seek(SeekFrom::Start(at - n))?;
            self.file.write_all(&buffer[..read])?;
            self.hash.update(&buffer[..read]);
            at += read as u64;
        }
        self.len = at - n;
        self.file.as_file().set_len(self.len)?;
        self.file.seek(SeekFrom::Start(self.len)).map(|_| ())
    }

    /// Returns the SHA-256 of its bytes.
    pub(super) fn sha256(&self) -> Vec<u8> {
        self.hash.clone().finalize().to_vec()
    }

    /// Removes it.
    pub(super) fn discard(mut self) {
        self.file.disable_cleanup(false);
    }

    /// Gives the complete file its rights, its date, and its name or the next free one: nothing is overwritten.
    pub(super) fn keep(
        self,
        dir: &Path,
        name: &str,
        modified: Option<OffsetDateTime>,
    ) -> io::Result<PathBuf> {
        let (stem, extension) = match name.rsplit_once('.') {
            Some((stem, extension)) if !stem.is_empty() => (stem, format!(".{extension}")),
            _ => (name, String::new()),
        };
        let mut part = self.file;
        // Not every file system knows rights and dates, and the file is whole without them.
        if let Err(error) = share(part.as_file(), dir) {
            tracing::debug!(%error, "a file stays its owner's alone");
        }
        if let Some(modified) =
            modified.filter(|modified| is_sane(*modified, OffsetDateTime::now_utc()))
        {
            let dated = part.as_file().set_modified(modified.into());
            tracing::debug!(?dated, "the date of a file is its sender's");
        }
        part.as_file().sync_all()?;
        for n in 0..10_000 {
            let name = if n == 0 { name.to_owned() } else { format!("{stem} ({n}){extension}") };
            let path = dir.join(name);
            match part.persist_noclobber(&path) {
                Ok(_) => {
                    let _ = File::open(dir).and_then(|dir| dir.sync_all());
                    return Ok(path);
                }
                Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
                    part = error.file;
                }
                Err(error) => return Err(error.error),
            }
        }
        Err(io::Error::other(format!("too many files are named {name}")))
    }
}

/// Gives a file the rights and the group of a new file in this directory: the umask, the directory's group and its default
/// access list decide. The sender has no influence, and no file becomes executable.
fn share(file: &File, dir: &Path) -> io::Result<()> {
    let probe = new(dir, 0o666)?;
    let (new, own) = (probe.as_file().metadata()?, file.metadata()?);
    let mut mode = new.mode() & 0o666;
    // The directory's group may have changed since the file was begun.
    if new.gid() != own.gid() && fchown(file, None, Some(Gid::from_raw(new.gid()))).is_err() {
        mode &= !0o070;
    }
    file.set_permissions(Permissions::from_mode(mode))
}

/// Checks that files can be created in a directory.
pub(super) fn check_writable(dir: &Path) -> io::Result<()> {
    new(dir, 0o600).map(drop)
}

/// Returns whether a file can have been modified at that time. Other dates would confuse programs that compare dates.
pub(super) fn is_sane(modified: OffsetDateTime, now: OffsetDateTime) -> bool {
    (OffsetDateTime::UNIX_EPOCH..=now).contains(&modified)
}

/// Returns the part's name, made of the file's hash and its sender.
pub(super) fn name(sender: &BareJid, sha256: &[u8]) -> String {
    let sender = HEXLOWER.encode(&Sha256::digest(sender.as_str().as_bytes())[..8]);
    format!("{PREFIX}{}-{sender}{SUFFIX}", HEXLOWER.encode(sha256))
}

/// Opens or creates a part for ourselves alone; `None` if it is in use or not ours.
pub(super) fn claim(path: &Path) -> io::Result<Option<NamedTempFile>> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(path);
    let file = match opened {
        Ok(file) => file,
        // It is a link, or belongs to another user: the directory is shared with other writers.
        Err(error) if path.symlink_metadata().is_ok() => {
            tracing::debug!(%error, "a part is not ours");
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(None);
    }
    let ours = file.metadata()?;
    let named = path.symlink_metadata();
    let same = named.is_ok_and(|named| (named.dev(), named.ino()) == (ours.dev(), ours.ino()));
    if !same || !is_private(&ours) {
        return Ok(None);
    }
    Ok(Some(NamedTempFile::from_parts(file, TempPath::try_from_path(path)?)))
}

/// Removes parts that are too old, then each sender's oldest beyond the limit; not those in use.
pub(super) fn sweep(dir: &Path) {
    let mut parts: Vec<(SystemTime, String, PathBuf)> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let name = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
            let sender = name.rsplit_once('-').map_or("", |(_, sender)| sender).to_owned();
            let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
            Some((metadata.modified().ok()?, sender, entry.path()))
        })
        .collect();
    parts.sort_by_key(|(modified, ..)| std::cmp::Reverse(*modified));
    let mut kept: BTreeMap<&str, usize> = BTreeMap::new();
    for (modified, sender, path) in &parts {
        let of_sender = kept.entry(sender).or_default();
        *of_sender += 1;
        let old = modified.elapsed().is_ok_and(|age| age > AGE);
        if (old || *of_sender > MOST)
            && let Ok(file) = File::open(path)
            && flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
        {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(size: u64) -> FileOffer {
        FileOffer {
            name: "a.txt".into(),
            size,
            sha256: Some(vec![7; 32]),
            modified: None,
            ranged: true,
        }
    }

    /// Opens whatever exists.
    fn open(
        dir: &tempfile::TempDir,
        sender: &BareJid,
        offer: &FileOffer,
    ) -> io::Result<PartialFile> {
        PartialFile::open(dir.path(), sender, offer, kept(dir.path(), sender, offer))
    }

    fn sender() -> BareJid {
        BareJid::new("juliet@capulet.lit").unwrap()
    }

    #[test]
    fn what_is_there_is_taken_up_by_the_same_sender_and_by_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let mut part = open(&dir, &sender(), &offer(10)).unwrap();
        part.push(b"hello").unwrap();
        let busy = open(&dir, &sender(), &offer(10)).unwrap();
        assert_eq!(busy.len(), 0, "a part in use is left alone");
        drop(busy);
        drop(part);
        let mode = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().metadata().unwrap();
        assert_eq!(mode.mode() & 0o777, 0o600);
        let other = BareJid::new("mallory@capulet.lit").unwrap();
        assert_eq!(open(&dir, &other, &offer(10)).unwrap().len(), 0);
        let mut part = open(&dir, &sender(), &offer(10)).unwrap();
        assert_eq!(part.len(), 5);
        part.push(b"world").unwrap();
        assert_eq!(part.sha256(), Sha256::digest(b"helloworld").to_vec());
        let path = part.keep(dir.path(), "a.txt", None).unwrap();
        assert_eq!(fs::read(path).unwrap(), b"helloworld");
    }

    #[test]
    fn a_part_that_is_too_long_or_was_put_there_by_others_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name(&sender(), &[7; 32]));
        let mut part = open(&dir, &sender(), &offer(10)).unwrap();
        part.push(b"longer than ten").unwrap();
        drop(part);
        assert_eq!(open(&dir, &sender(), &offer(10)).unwrap().len(), 0);
        assert!(!path.exists(), "it is empty again and gone");
        let secret = dir.path().join("secret");
        fs::write(&secret, b"x").unwrap();
        std::os::unix::fs::symlink(&secret, &path).unwrap();
        let mut part = open(&dir, &sender(), &offer(10)).unwrap();
        part.push(b"y").unwrap();
        assert_eq!(fs::read(secret).unwrap(), b"x");
    }

    #[test]
    fn before_the_sender_is_known_nothing_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(kept(dir.path(), &sender(), &offer(10)), 0);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let mut part = open(&dir, &sender(), &offer(10)).unwrap();
        part.push(b"hello").unwrap();
        assert_eq!(kept(dir.path(), &sender(), &offer(10)), 0, "it is in use");
        drop(part);
        assert_eq!(kept(dir.path(), &sender(), &offer(10)), 5);
        // It is too long for the offered file: it is inspected, and left for its own file.
        assert_eq!(kept(dir.path(), &sender(), &offer(4)), 0);
        assert_eq!(kept(dir.path(), &sender(), &offer(10)), 5);
    }

    #[test]
    fn a_part_that_changed_since_it_was_promised_is_an_error_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let mut part = open(&dir, &sender(), &offer(10)).unwrap();
        part.push(b"hello").unwrap();
        let busy = PartialFile::open(dir.path(), &sender(), &offer(10), 5).unwrap_err();
        assert!(busy.to_string().contains("in use"), "{busy}");
        drop(part);
        let shorter = PartialFile::open(dir.path(), &sender(), &offer(10), 6).unwrap_err();
        assert!(shorter.to_string().contains("has changed"), "{shorter}");
        let part = PartialFile::open(dir.path(), &sender(), &offer(10), 3).unwrap();
        assert_eq!((part.len(), part.sha256()), (3, Sha256::digest(b"hel").to_vec()));
    }

    #[test]
    fn a_whole_file_has_the_rights_of_any_new_file_there_and_no_part_has() {
        let dir = tempfile::tempdir().unwrap();
        let (shared, plain) = (dir.path().join("shared"), dir.path().join("plain"));
        for path in [&shared, &plain] {
            fs::create_dir(path).unwrap();
        }
        // A group other than the one that new files have elsewhere, as far as this user may give one.
        let group = rustix::process::getgroups()
            .unwrap()
            .into_iter()
            .find(|group| *group != rustix::process::getegid())
            .unwrap_or(Gid::from_raw(54_321));
        let _not_ours = std::os::unix::fs::chown(&shared, None, Some(group.as_raw()));
        fs::set_permissions(&shared, Permissions::from_mode(0o2775)).unwrap();
        for dir in [&shared, &plain] {
            let other = File::create(dir.join("other")).unwrap().metadata().unwrap();
            let mut part = PartialFile::open(dir, &sender(), &offer(5), 0).unwrap();
            part.push(b"hello").unwrap();
            assert_eq!(part.file.as_file().metadata().unwrap().mode() & 0o7777, 0o600);
            let landed = fs::metadata(part.keep(dir, "a.sh", None).unwrap()).unwrap();
            assert_eq!((landed.mode(), landed.gid()), (other.mode(), other.gid()), "{dir:?}");
            assert_eq!(landed.mode() & 0o7111, 0, "no file can be run");
            assert_eq!(fs::read_dir(dir).unwrap().count(), 2);
        }
        assert_eq!(
            fs::metadata(shared.join("a.sh")).unwrap().gid(),
            fs::metadata(&shared).unwrap().gid()
        );
    }

    #[test]
    fn the_date_is_the_senders_if_it_can_be_true() {
        let dir = tempfile::tempdir().unwrap();
        let land = |n: u8, modified: Option<OffsetDateTime>| {
            let offer = FileOffer { sha256: Some(vec![n; 32]), ..offer(5) };
            let mut part = open(&dir, &sender(), &offer).unwrap();
            part.push(b"hello").unwrap();
            let path = part.keep(dir.path(), "a", modified).unwrap();
            fs::metadata(path).unwrap().mtime()
        };
        let now = OffsetDateTime::now_utc();
        assert_eq!(land(1, Some(OffsetDateTime::UNIX_EPOCH)), 0);
        let date = time::macros::datetime!(2011-06-06 02:46:00 +2);
        assert_eq!(land(2, Some(date)), date.unix_timestamp());
        for (n, wrong) in [
            (3, None),
            (4, Some(time::macros::datetime!(1969-12-31 23:59:59 UTC))),
            (5, Some(now + Duration::from_secs(3600))),
            (6, Some(time::macros::datetime!(9999-12-31 0:00 UTC))),
        ] {
            assert!(land(n, wrong) >= now.unix_timestamp(), "{wrong:?}");
        }
    }

    #[test]
    fn what_came_twice_is_dropped_in_front() {
        let dir = tempfile::tempdir().unwrap();
        let mut part = open(&dir, &sender(), &offer(10)).unwrap();
        part.push(b"old").unwrap();
        part.push(b"oldnew").unwrap();
        part.drop_front(3).unwrap();
        assert_eq!((part.len(), part.sha256()), (6, Sha256::digest(b"oldnew").to_vec()));
        assert_eq!(fs::read(part.keep(dir.path(), "b", None).unwrap()).unwrap(), b"oldnew");
    }

    #[test]
    fn a_part_that_is_being_written_is_not_swept() {
        let dir = tempfile::tempdir().unwrap();
        let mut named = open(&dir, &sender(), &offer(10)).unwrap();
        named.push(b"hello").unwrap();
        // The same file again, and one without a hash: parts that nothing else resumes.
        let mut again = open(&dir, &sender(), &offer(10)).unwrap();
        again.push(b"hello").unwrap();
        let mut nameless = open(&dir, &sender(), &FileOffer { sha256: None, ..offer(10) }).unwrap();
        nameless.push(b"hello").unwrap();
        for part in [&named, &again, &nameless] {
            let long_ago = SystemTime::now() - 2 * AGE;
            part.file.as_file().set_modified(long_ago).unwrap();
        }
        sweep(dir.path());
        for part in [&named, &again, &nameless] {
            assert!(part.file.path().exists(), "{:?}", part.file.path());
        }
        assert_eq!(fs::read(nameless.keep(dir.path(), "a", None).unwrap()).unwrap(), b"hello");
    }

    #[test]
    fn a_sender_of_many_files_does_not_make_anothers_part_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut part = open(&dir, &sender(), &offer(10)).unwrap();
        part.push(b"hello").unwrap();
        part.file.as_file().set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
        drop(part);
        let mallory = BareJid::new("mallory@capulet.lit").unwrap();
        for n in 0..40 {
            let offer = FileOffer { sha256: Some(vec![n; 32]), ..offer(10) };
            open(&dir, &mallory, &offer).unwrap().push(b"x").unwrap();
            sweep(dir.path());
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), MOST + 1);
        assert_eq!(kept(dir.path(), &sender(), &offer(10)), 5);
    }

    #[test]
    fn old_parts_and_too_many_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        for n in 0..20_u8 {
            let path = dir.path().join(format!("{PREFIX}{n}{SUFFIX}"));
            let age =
                if n == 0 { AGE + Duration::from_secs(60) } else { Duration::from_secs(n.into()) };
            File::create(&path).unwrap().set_modified(now - age).unwrap();
        }
        fs::write(dir.path().join("letter.part"), b"not ours").unwrap();
        sweep(dir.path());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), MOST + 1);
        assert!(!dir.path().join(format!("{PREFIX}0{SUFFIX}")).exists());
        assert!(dir.path().join(format!("{PREFIX}1{SUFFIX}")).exists());
    }

    #[test]
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.txt", "a (1).txt", "a (2).txt"] {
            let part = open(&dir, &sender(), &offer(10)).unwrap();
            assert_eq!(part.keep(dir.path(), "a.txt", None).unwrap(), dir.path().join(name));
        }
    }
}
