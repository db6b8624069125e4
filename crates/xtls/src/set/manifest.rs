//! The list of a set's directories and files, and its bytes on the wire.
//!
//! An entry is, with all numbers in network order: the kind (0 directory, 1 file), 1 byte; the permission bits, 2; the
//! date of the last change, 8 (seconds since 1970, signed) and 4 (nanoseconds); the size, 8; the length of the path, 2;
//! the path in UTF-8, with `/` between its parts.

use std::collections::HashSet;

use sha2::{Digest, Sha256};

use super::super::file_offer::safe_name;

/// The most entries of a set.
pub(crate) const MOST: usize = 65_536;
/// The most bytes of a manifest.
pub(crate) const LONGEST: usize = 8 << 20;
/// The longest path in bytes, the most parts of one, and the longest part.
const PATH: (usize, usize, usize) = (4096, 64, 255);
/// The bytes of an entry before its path.
const HEAD: usize = 1 + 2 + 8 + 4 + 8 + 2;
/// The permission bits: everything but setuid, setgid and sticky.
const PERMISSIONS: u16 = 0o777;

/// A directory or a file of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: String,
    /// The size of a file in bytes; `None` for a directory.
    pub(crate) size: Option<u64>,
    pub(crate) mode: u16,
    /// The date of the last change: seconds since 1970, and nanoseconds.
    pub(crate) modified: (i64, u32),
}

impl Entry {
    /// Returns the number of its bytes in a manifest.
    pub(crate) fn len(&self) -> usize {
        HEAD + self.path.len()
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.size.is_some()));
        out.extend_from_slice(&self.mode.to_be_bytes());
        out.extend_from_slice(&self.modified.0.to_be_bytes());
        out.extend_from_slice(&self.modified.1.to_be_bytes());
        out.extend_from_slice(&self.size.unwrap_or(0).to_be_bytes());
        out.extend_from_slice(&u16::try_from(self.path.len()).unwrap_or(u16::MAX).to_be_bytes());
        out.extend_from_slice(self.path.as_bytes());
    }

    /// Returns what identifies its content: another size or date means another file.
    pub(crate) fn identity(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(self.size.unwrap_or(0).to_be_bytes());
        hash.update(self.modified.0.to_be_bytes());
        hash.update(self.modified.1.to_be_bytes());
        hash.update(self.path.as_bytes());
        hash.finalize().into()
    }

    /// Returns the parts of the path under which it lands: each is made safe as the name of a file is, but below the
    /// first directory a leading dot stays.
    pub(crate) fn landing(&self) -> Vec<String> {
        let parts = self.path.split('/').enumerate();
        parts.map(|(depth, part)| if depth == 0 { safe_name(part) } else { inner(part) }).collect()
    }
}

/// Returns the safe form of a name inside a directory that the sender has named.
fn inner(part: &str) -> String {
    match part.strip_prefix('.').filter(|rest| !rest.starts_with('.')).map(safe_name) {
        // What `xtls` itself keeps in an inbox begins with `.xtls-`.
        Some(rest) if !rest.starts_with("xtls-") => format!(".{rest}"),
        _ => safe_name(part),
    }
}

/// Returns the bytes of a manifest.
pub(crate) fn write(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(entries.iter().map(Entry::len).sum());
    for entry in entries {
        entry.write(&mut out);
    }
    out
}

/// Reads a manifest.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn read(mut bytes: &[u8]) -> Result<Vec<Entry>, &'static str> {
    if bytes.len() > LONGEST {
        return Err("the manifest is too long");
    }
    let mut entries = Vec::new();
    let mut total: u64 = 0;
    while !bytes.is_empty() {
        if entries.len() == MOST {
            return Err("the manifest has too many entries");
        }
        let entry = next(&mut bytes)?;
        total = total
            .checked_add(entry.size.unwrap_or(0))
            .filter(|total| i64::try_from(*total).is_ok())
            .ok_or("the files of the manifest are too large together")?;
        entries.push(entry);
    }
    let paths: HashSet<&str> = entries.iter().map(|entry| entry.path.as_str()).collect();
    if paths.len() < entries.len() {
        return Err("the manifest has a path twice");
    }
    Ok(entries)
}

fn next(bytes: &mut &[u8]) -> Result<Entry, &'static str> {
    const SHORT: &str = "the manifest is cut off";
    fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], &'static str> {
        let (taken, rest) = bytes.split_first_chunk::<N>().ok_or(SHORT)?;
        *bytes = rest;
        Ok(*taken)
    }
    let [kind] = take(bytes)?;
    let mode = u16::from_be_bytes(take(bytes)?);
    let modified = (i64::from_be_bytes(take(bytes)?), u32::from_be_bytes(take(bytes)?));
    let size = u64::from_be_bytes(take(bytes)?);
    let length = usize::from(u16::from_be_bytes(take(bytes)?));
    let (path, rest) = bytes.split_at_checked(length).ok_or(SHORT)?;
    *bytes = rest;
    let size = match (kind, size) {
        (0, 0) => None,
        (1, size) => Some(size),
        _ => return Err("the manifest has an unknown kind of entry"),
    };
    if mode & !PERMISSIONS != 0 || modified.1 >= 1_000_000_000 {
        return Err("the manifest has an impossible mode or date");
    }
    let path =
        std::str::from_utf8(path).map_err(|_| "the manifest has a path that is not UTF-8")?;
    if !is_inside(path) {
        return Err("the manifest has a path that leaves its directory, or is too long");
    }
    Ok(Entry { path: path.to_owned(), size, mode, modified })
}

/// Returns whether a path stays below the directory in which it begins, and is not too long.
pub(crate) fn is_inside(path: &str) -> bool {
    let (longest, most, longest_part) = PATH;
    let is_name = |part: &str| {
        !matches!(part, "" | "." | "..") && part.len() <= longest_part && !part.contains('\0')
    };
    path.len() <= longest && path.split('/').count() <= most && path.split('/').all(is_name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(path: &str, size: u64) -> Entry {
        Entry { path: path.into(), size: Some(size), mode: 0o644, modified: (1_700_000_000, 5) }
    }

    #[test]
    fn no_path_leaves_its_directory() {
        for path in ["", "/etc/passwd", "..", "a/../b", "a//b", "a/", "./a", "a/\0", "a/.."] {
            assert!(read(&write(&[file(path, 1)])).is_err(), "{path:?}");
        }
        let (long, deep) = ("a".repeat(256), ["a"; 65].join("/"));
        for path in [long, deep, ["a".repeat(200).as_str(); 21].join("/")] {
            assert!(read(&write(&[file(&path, 1)])).is_err(), "{path:?}");
        }
    }

    #[test]
    fn a_landing_path_is_made_of_safe_names() {
        for (path, landing) in [
            ("notes/.git/config", &["notes", ".git", "config"][..]),
            (".ssh/authorized_keys", &["ssh", "authorized_keys"]),
            ("a/-rf", &["a", "rf"]),
            ("a/...", &["a", "file"]),
            ("a/..\\..\\b", &["a", "b"]),
            ("a/.xtls-0.part", &["a", "xtls-0.part"]),
            ("a/.\u{200b}xtls-0.part", &["a", "xtls-0.part"]),
            ("a/b\u{202e}c\n.txt", &["a", "bc_.txt"]),
        ] {
            assert_eq!(file(path, 1).landing(), landing, "{path:?}");
        }
    }

    #[test]
    fn impossible_entries_are_refused() {
        let good = write(&[file("a", 1)]);
        assert_eq!(read(&good), Ok(vec![file("a", 1)]));
        assert_eq!(read(&[]), Ok(Vec::new()));
        assert!(read(&good[..good.len() - 1]).is_err());
        for (at, byte) in [(0, 2), (0, 0), (1, 0x0f), (11, 0xff)] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert!(read(&bad).is_err(), "{at}");
        }
        assert!(read(&write(&[file("a", 1), file("a", 2)])).is_err());
        assert!(read(&write(&[file("a", u64::MAX)])).is_err());
        assert!(read(&write(&[file("a", 1 << 62), file("b", 1 << 62)])).is_err());
        let many: Vec<_> = (0..=MOST).map(|n| file(&n.to_string(), 0)).collect();
        assert!(read(&write(&many)).is_err());
        assert!(read(&write(&many[1..])).is_ok());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            paths in proptest::collection::hash_set("[a-z.]{1,9}(/[ -.0-~]{1,9}){0,3}", 0..9),
            size in proptest::option::of(0_u64..1 << 40),
            mode in 0_u16..0o1000,
            modified in (any::<i64>(), 0_u32..1_000_000_000),
        ) {
            let paths = paths.into_iter().filter(|path| is_inside(path));
            let entries: Vec<_> = paths.map(|path| Entry { path, size, mode, modified }).collect();
            prop_assert_eq!(read(&write(&entries)), Ok(entries));
        }
    }
}
