//! What a sender puts into a set.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{
    super::{files::shown_path, output::XtlsError},
    manifest::{self, Entry},
};

/// A directory or a file to send.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) source: PathBuf,
    pub(crate) entry: Entry,
}

/// Everything below the paths that a user named.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) items: Vec<Item>,
    /// What cannot be sent.
    pub(crate) failed: Vec<(PathBuf, XtlsError)>,
    names: HashSet<String>,
}

/// Finds all files and directories below the paths. Links inside a directory are not followed.
pub(crate) fn find(paths: &[PathBuf]) -> Found {
    let mut found = Found::default();
    for path in paths {
        let looked = fs::metadata(path).and_then(|metadata| Ok((name(path)?, metadata)));
        match looked {
            Ok((name, metadata)) => {
                let name = found.unique(name);
                found.add(path, name, &metadata);
            }
            Err(error) => found.fail(path, &error),
        }
    }
    found
}

/// Returns the name of a path, also of `.` and `..`.
fn name(path: &Path) -> io::Result<String> {
    let whole;
    let name = match path.file_name() {
        Some(name) => name,
        None => {
            whole = path.canonicalize()?;
            whole.file_name().unwrap_or_default()
        }
    };
    let name = name.to_string_lossy().into_owned();
    Ok(if name.is_empty() { "root".to_owned() } else { name })
}

impl Found {
    fn fail(&mut self, path: &Path, error: &io::Error) {
        let error = XtlsError::usage(format!("{}: {error}", shown_path(path)));
        self.failed.push((path.to_owned(), error));
    }

    /// Returns a path that no other entry has.
    fn unique(&mut self, path: String) -> String {
        let mut unique = path.clone();
        for n in 1.. {
            if self.names.insert(unique.clone()) {
                break;
            }
            unique = format!("{path} ({n})");
        }
        unique
    }

    fn add(&mut self, source: &Path, path: String, metadata: &fs::Metadata) {
        let is_dir = metadata.is_dir();
        if !is_dir && !metadata.is_file() {
            let hint = match path.contains('/') {
                true => "links, sockets and devices inside a directory are left out",
                false => "`xtls pipe` sends whatever comes from standard input",
            };
            let error =
                XtlsError::usage(format!("{} is not a file", shown_path(source))).hint(hint);
            self.failed.push((source.to_owned(), error));
            return;
        }
        if !manifest::is_inside(&path) {
            return self.fail(source, &io::Error::other("its path is too long"));
        }
        let entry = Entry {
            size: (!is_dir).then_some(metadata.len()),
            mode: (metadata.mode() & 0o777) as u16,
            modified: (metadata.mtime(), u32::try_from(metadata.mtime_nsec()).unwrap_or(0)),
            path,
        };
        let path = entry.path.clone();
        self.items.push(Item { source: source.to_owned(), entry });
        if !is_dir {
            return;
        }
        let listed = fs::read_dir(source).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut inside = match listed {
            Ok(inside) => inside,
            Err(error) => return self.fail(source, &error),
        };
        inside.sort_by_key(fs::DirEntry::file_name);
        for entry in inside {
            let name = entry.file_name().to_string_lossy().into_owned();
            let name = self.unique(format!("{path}/{name}"));
            // It does not follow links.
            match entry.metadata() {
                Ok(metadata) => self.add(&entry.path(), name, &metadata),
                Err(error) => self.fail(&entry.path(), &error),
            }
        }
    }
}

/// Splits the items into sets that a receiver takes.
pub(crate) fn sets(items: Vec<Item>) -> Vec<Vec<Item>> {
    let mut sets: Vec<Vec<Item>> = Vec::new();
    let mut bytes = 0;
    for item in items {
        bytes += item.entry.len();
        match sets.last_mut() {
            Some(set) if set.len() < manifest::MOST && bytes <= manifest::LONGEST => set.push(item),
            _ => {
                bytes = item.entry.len();
                sets.push(vec![item]);
            }
        }
    }
    sets
}
