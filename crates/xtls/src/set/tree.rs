//! Where the files of a set land: below one directory, through no link, and over nothing that is there.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
};

use jid::BareJid;
use rustix::{
    fs::{
        AtFlags, CWD, Mode, OFlags, RenameFlags, Timespec, Timestamps, fchmod, futimens, linkat,
        mkdirat, openat, renameat_with, statat, unlinkat,
    },
    io::Errno,
};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;
use time::OffsetDateTime;

use super::{
    super::parts::{self, Claimed},
    CHUNK,
    manifest::Entry,
};

/// The most names that are tried for a file whose own name is taken.
const NAMES: u32 = 1000;
/// The bytes of a record of the journal.
const RECORD: usize = 32;

/// An inbox, as one sender's set sees it.
#[derive(Debug)]
pub(super) struct Tree {
    inbox: PathBuf,
    root: OwnedFd,
    sender: BareJid,
    /// The permission bits that a new file may have here.
    mask: u16,
    /// The directory of the last file.
    last: Option<(Vec<String>, OwnedFd)>,
    journal: Option<Journal>,
    /// The directories at the top of the set, with the names that they have here.
    tops: BTreeMap<String, String>,
    /// A part of another start of this machine may have lost bytes.
    boot: String,
}

/// The files of a sender that have landed under their own names in an unfinished set, and the directories made for it.
#[derive(Debug)]
struct Journal {
    file: NamedTempFile,
    known: HashSet<[u8; RECORD]>,
    _claimed: Claimed,
}

/// A file that is being received.
#[derive(Debug)]
pub(super) struct Landing {
    file: NamedTempFile,
    len: u64,
    _claimed: Option<Claimed>,
}

impl Tree {
    /// Opens an inbox for a sender whose key was accepted.
    pub(super) fn open(inbox: &Path, sender: &BareJid) -> io::Result<Self> {
        let root = openat(
            CWD,
            inbox,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        // The umask and the directory's default access list decide.
        let probe = parts::new(inbox, 0o777)?;
        let mask = probe.as_file().metadata()?.permissions().mode() & 0o777;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let journal = Journal::open(inbox, sender, &boot)?;
        Ok(Self {
            inbox: inbox.to_owned(),
            root,
            sender: sender.clone(),
            mask: mask as u16,
            last: None,
            journal,
            tops: BTreeMap::new(),
            boot,
        })
    }

    /// Makes the directories at the top of the set. A directory that is there already is somebody else's, unless an
    /// unfinished set of this sender made it: nothing is added to it, and the set's gets the next free name.
    pub(super) fn adopt(&mut self, entries: &[Entry]) -> io::Result<()> {
        for entry in entries {
            let landing = entry.landing();
            let is_below = landing.len() > 1 || entry.size.is_none();
            if let Some(top) = landing.into_iter().next().filter(|_| is_below)
                && !self.tops.contains_key(&top)
            {
                let own = self.own_directory(&top)?;
                self.tops.insert(top, own);
            }
        }
        Ok(())
    }

    fn own_directory(&mut self, top: &str) -> io::Result<String> {
        for n in 0..NAMES {
            let tried = if n == 0 { top.to_owned() } else { format!("{top} ({n})") };
            let made = match mkdirat(&self.root, tried.as_str(), Mode::from_raw_mode(0o777)) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(error) => return Err(error.into()),
            };
            let found = statat(&self.root, tried.as_str(), AtFlags::SYMLINK_NOFOLLOW)?;
            let mut record = Sha256::new_with_prefix(b"directory");
            record.update(found.st_dev.to_be_bytes());
            record.update(found.st_ino.to_be_bytes());
            record.update(tried.as_bytes());
            let record = record.finalize().into();
            if made {
                if let Some(journal) = &mut self.journal {
                    journal.add(record)?;
                }
                return Ok(tried);
            }
            let is_directory = rustix::fs::FileType::from_raw_mode(found.st_mode).is_dir();
            if is_directory && self.journal.as_ref().is_some_and(|it| it.known.contains(&record)) {
                return Ok(tried);
            }
        }
        Err(io::Error::other(format!("too many directories are named {top}")))
    }

    /// Returns the parts of the path where an entry lands here.
    fn place(&self, entry: &Entry) -> Vec<String> {
        let mut landing = entry.landing();
        let is_below = landing.len() > 1 || entry.size.is_none();
        if let Some(top) = landing.first_mut().filter(|_| is_below)
            && let Some(own) = self.tops.get(top)
        {
            top.clone_from(own);
        }
        landing
    }

    /// Returns how many bytes of a file are there: all, verified chunks of it, or none.
    pub(super) fn has(&mut self, entry: &Entry) -> Has {
        let size = entry.size.unwrap_or(0);
        let landed = self.journal.as_ref().is_some_and(|it| it.known.contains(&entry.identity()));
        if landed && self.size_of(entry) == Some(size) {
            return Has::All;
        }
        if size <= CHUNK {
            return Has::Until(0);
        }
        let kept = parts::kept_at(&self.inbox.join(self.part(entry)), size);
        Has::Until(if kept == size { size } else { kept - kept % CHUNK })
    }

    /// Returns the size of the file at an entry's own place.
    fn size_of(&mut self, entry: &Entry) -> Option<u64> {
        let place = self.place(entry);
        let (name, parents) = place.split_last()?;
        let dir = self.directory(parents, false).ok()?;
        let found = statat(dir, name.as_str(), AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let is_file = rustix::fs::FileType::from_raw_mode(found.st_mode).is_file();
        is_file.then(|| u64::try_from(found.st_size).ok()).flatten()
    }

    /// Returns the name of an entry's part.
    fn part(&self, entry: &Entry) -> String {
        let mut hash = Sha256::new_with_prefix(entry.identity());
        hash.update(self.boot.as_bytes());
        parts::name(&self.sender, &hash.finalize())
    }

    /// Begins or continues a file.
    pub(super) fn begin(&self, entry: &Entry, offset: u64) -> io::Result<Landing> {
        let size = entry.size.unwrap_or(0);
        if size > CHUNK {
            let path = self.inbox.join(self.part(entry));
            if let Some(claimed) = Claimed::new(path.clone())
                && let Some(mut file) = parts::claim(&path)?
            {
                file.disable_cleanup(true);
                if file.as_file().metadata()?.len() < offset {
                    return Err(io::Error::other("the part that was kept has changed"));
                }
                file.as_file().set_len(offset)?;
                io::Seek::seek(&mut file, io::SeekFrom::Start(offset))?;
                file.disable_cleanup(offset > 0);
                return Ok(Landing { file, len: offset, _claimed: Some(claimed) });
            }
            if offset > 0 {
                return Err(io::Error::other("the part that was kept is in use"));
            }
        }
        Ok(Landing { file: parts::new(&self.inbox, 0o600)?, len: 0, _claimed: None })
    }

    /// Gives a complete file its rights, its date and its name, or the next free one. Returns its path.
    pub(super) fn keep(&mut self, entry: &Entry, landing: Landing) -> io::Result<PathBuf> {
        let parts = self.place(entry);
        let Some((name, parents)) = parts.split_last() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let Landing { mut file, _claimed, .. } = landing;
        set_rights_and_date(file.as_file().as_fd(), entry, (self.mask & 0o777) | 0o600);
        let part = file.path().file_name().unwrap_or_default().to_owned();
        let root = self.root.try_clone()?;
        let dir = self.directory(parents, true)?.try_clone()?;
        let (stem, extension) = match name.rsplit_once('.') {
            Some((stem, extension)) if !stem.is_empty() => (stem, format!(".{extension}")),
            _ => (name.as_str(), String::new()),
        };
        for n in 0..NAMES {
            let tried = if n == 0 { name.clone() } else { format!("{stem} ({n}){extension}") };
            match rename(&root, &part, &dir, &tried) {
                Ok(()) => {
                    file.disable_cleanup(true);
                    if n == 0
                        && let Some(journal) = &mut self.journal
                    {
                        journal.add(entry.identity())?;
                    }
                    let parents: PathBuf = parents.iter().collect();
                    return Ok(self.inbox.join(parents).join(tried));
                }
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::Error::other(format!("too many files are named {name}")))
    }

    /// Makes a directory of the set.
    pub(super) fn make(&mut self, entry: &Entry) -> io::Result<()> {
        self.directory(&self.place(entry), true).map(drop)
    }

    /// Gives a directory its rights and its date, when nothing is written to it any more.
    pub(super) fn finish(&mut self, entry: &Entry) {
        let mask = (self.mask & 0o777) | 0o700;
        if let Ok(dir) = self.directory(&self.place(entry), false) {
            set_rights_and_date(dir.as_fd(), entry, mask);
        }
    }

    /// Writes everything to the disk, and forgets what had landed before if the set is `complete`.
    pub(super) fn close(mut self, complete: bool) -> io::Result<()> {
        rustix::fs::syncfs(&self.root)?;
        if let Some(journal) = self.journal.take() {
            journal.close(complete);
        }
        Ok(())
    }

    /// Opens a directory below the inbox, through no link; makes what is missing of it if `create` is set.
    fn directory(&mut self, parts: &[String], create: bool) -> io::Result<&OwnedFd> {
        let is_last = self.last.as_ref().is_some_and(|(last, _)| last == parts);
        if !is_last {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut dir = self.root.try_clone()?;
            for part in parts {
                dir = match openat(&dir, part.as_str(), flags, Mode::empty()) {
                    Err(Errno::NOENT) if create => {
                        match mkdirat(&dir, part.as_str(), Mode::from_raw_mode(0o777)) {
                            Ok(()) | Err(Errno::EXIST) => {}
                            Err(error) => return Err(error.into()),
                        }
                        openat(&dir, part.as_str(), flags, Mode::empty())?
                    }
                    opened => opened?,
                };
            }
            self.last = Some((parts.to_vec(), dir));
        }
        self.last.as_ref().map(|(_, dir)| dir).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// What is there of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Has {
    All,
    Until(u64),
}

impl Landing {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Appends a chunk whose hash was right.
    pub(super) fn push(&mut self, chunk: &[u8]) -> io::Result<()> {
        if self._claimed.is_some() {
            self.file.disable_cleanup(true);
        }
        self.file.write_all(chunk)?;
        self.len += chunk.len() as u64;
        Ok(())
    }
}

impl Journal {
    /// Opens a sender's journal; `None` if another session of this sender has it.
    fn open(inbox: &Path, sender: &BareJid, boot: &str) -> io::Result<Option<Self>> {
        let mut hash = Sha256::new_with_prefix(b"journal");
        hash.update(boot.as_bytes());
        let path = inbox.join(parts::name(sender, &hash.finalize()));
        let Some(claimed) = Claimed::new(path.clone()) else { return Ok(None) };
        let Some(mut file) = parts::claim(&path)? else { return Ok(None) };
        file.disable_cleanup(true);
        let mut bytes = Vec::new();
        let longest = 4 * RECORD * super::manifest::MOST;
        file.as_file_mut().take(longest as u64).read_to_end(&mut bytes)?;
        let (records, _) = bytes.as_chunks::<RECORD>();
        let known = records.iter().copied().collect();
        // A record that was cut off would shift those behind it.
        let whole = records.len() * RECORD;
        file.as_file().set_len(whole as u64)?;
        io::Seek::seek(&mut file, io::SeekFrom::Start(whole as u64))?;
        Ok(Some(Self { file, known, _claimed: claimed }))
    }

    fn add(&mut self, record: [u8; RECORD]) -> io::Result<()> {
        if self.known.insert(record) {
            self.file.write_all(&record)?;
        }
        Ok(())
    }

    fn close(mut self, complete: bool) {
        self.file.disable_cleanup(!complete && !self.known.is_empty());
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        if let Some(journal) = self.journal.take() {
            journal.close(false);
        }
    }
}

/// Renames a file, if the new name is free.
fn rename(root: &OwnedFd, part: &std::ffi::OsStr, dir: &OwnedFd, name: &str) -> Result<(), Errno> {
    match renameat_with(root, part, dir, name, RenameFlags::NOREPLACE) {
        // The file system cannot do it at once.
        Err(Errno::INVAL | Errno::NOSYS) => {
            linkat(root, part, dir, name, AtFlags::empty())?;
            unlinkat(root, part, AtFlags::empty())
        }
        done => done,
    }
}

/// Sets the permission bits and the date of a file or a directory. Not every file system knows them, and the content is
/// whole without them.
fn set_rights_and_date(file: impl AsFd, entry: &Entry, mask: u16) {
    let mode = (entry.mode & mask) | (mask & 0o600);
    let set = fchmod(&file, Mode::from_raw_mode(u32::from(mode)));
    tracing::trace!(?set, "rights");
    let (seconds, nanos) = entry.modified;
    let date = OffsetDateTime::from_unix_timestamp(seconds).ok();
    if date.is_some_and(|date| parts::is_sane(date, OffsetDateTime::now_utc())) {
        let date = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
        let set = futimens(&file, &Timestamps { last_access: date, last_modification: date });
        tracing::trace!(?set, "date");
    }
}
