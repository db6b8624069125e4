//! The receiver's side of a set.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use indicatif::ProgressBar;
use jid::BareJid;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{
    super::{
        files::{self, NotReceived},
        output::{Output, XtlsError},
    },
    CHUNK, Outcome, SKIPPED, THERE, TOO_LARGE,
    manifest::{self, Entry},
    tree::{Has, Landing, Tree},
};

/// A set that was received.
#[derive(Debug, Default)]
pub(crate) struct Received {
    /// Its files, each with its path, if it was stored, and how many of its bytes were there before.
    pub(crate) files: Vec<ReceivedFile>,
}

impl Received {
    /// Returns the number of files that are not here.
    pub(crate) fn missing(&self) -> usize {
        let is_here =
            |file: &&ReceivedFile| matches!(file.outcome, Outcome::Stored | Outcome::There);
        self.files.len() - self.files.iter().filter(is_here).count()
    }

    /// Reports each file that was stored, those that were not, and the set.
    pub(crate) fn report(&self, output: Output, sender: &BareJid, seconds: f64) {
        for file in &self.files {
            if let Some(path) = &file.path {
                let event = json!({"event": "done", "file": files::shown_path(path), "bytes": file.bytes,
                                   "resumed": file.resumed, "seconds": file.seconds});
                // Of several, the last line has the number.
                let text = match self.files.len() {
                    1 => files::shown_path(path),
                    _ => String::new(),
                };
                output.event(&event, &text);
            } else if file.outcome != Outcome::There {
                output.warn(&format!("{}: {}", file.name, file.outcome.here()));
            }
        }
        let count = |wanted| self.files.iter().filter(|file| file.outcome == wanted).count();
        let (stored, there) = (count(Outcome::Stored), count(Outcome::There));
        let bytes: u64 =
            self.files.iter().filter(|file| file.path.is_some()).map(|file| file.bytes).sum();
        let known = if there > 0 { format!(", {there} were there already") } else { String::new() };
        output.event(
            &json!({"event": "received", "peer": sender.as_str(), "files": self.files.len(),
                    "stored": stored, "there": there, "bytes": bytes, "seconds": seconds}),
            &format!(
                "{stored} of {} files of {sender} received, {} in {}{known}",
                self.files.len(),
                files::size(bytes),
                files::duration(seconds)
            ),
        );
    }
}

/// A file of a set.
#[derive(Debug)]
pub(crate) struct ReceivedFile {
    pub(crate) name: String,
    pub(crate) outcome: Outcome,
    pub(crate) path: Option<PathBuf>,
    pub(crate) bytes: u64,
    pub(crate) resumed: u64,
    pub(crate) seconds: f64,
}

/// Reads the manifest.
///
/// # Errors
/// If it is not one, or the stream breaks.
pub(crate) async fn manifest<S: AsyncRead + Unpin>(
    stream: &mut S,
) -> Result<Vec<Entry>, NotReceived> {
    let wrong = |text: &str| NotReceived::Content(XtlsError::failed(text));
    let length = stream.read_u32().await.map_err(cut)? as usize;
    if length > manifest::LONGEST {
        return Err(wrong("the manifest is too long"));
    }
    // Memory follows what has come, not what was promised.
    let mut bytes = Vec::new();
    (&mut *stream).take(length as u64).read_to_end(&mut bytes).await.map_err(cut)?;
    if bytes.len() < length {
        return Err(wrong("the stream ended in the manifest"));
    }
    manifest::read(&bytes).map_err(wrong)
}

fn cut(error: std::io::Error) -> NotReceived {
    NotReceived::Cut(error.into())
}

/// What the receiver wants of a set.
#[derive(Debug)]
pub(crate) struct Wish {
    tree: Tree,
    entries: Vec<Entry>,
    /// For each file: what goes on the wire.
    offsets: Vec<u64>,
    /// The bytes that will come.
    pub(crate) bytes: u64,
}

impl Wish {
    /// Looks what is there of the files of a sender whose key was accepted.
    ///
    /// # Errors
    /// If the inbox cannot be used.
    pub(crate) fn new(
        entries: Vec<Entry>,
        inbox: &Path,
        sender: &BareJid,
        max_size: Option<u64>,
    ) -> Result<Self, NotReceived> {
        let disk = |error| NotReceived::disk(inbox, &error);
        let mut tree = Tree::open(inbox, sender).map_err(disk)?;
        tree.adopt(&entries).map_err(disk)?;
        let mut bytes: u64 = 0;
        let mut offsets = Vec::new();
        for entry in &entries {
            let Some(size) = entry.size else { continue };
            offsets.push(match tree.has(entry) {
                _ if max_size.is_some_and(|most| size > most) => TOO_LARGE,
                Has::All => THERE,
                Has::Until(offset) => {
                    bytes = bytes.saturating_add(size - offset);
                    offset
                }
            });
        }
        Ok(Self { tree, entries, offsets, bytes })
    }

    /// Receives the set, and tells the sender what became of each file.
    ///
    /// # Errors
    /// If the stream breaks, the sender does not keep to the protocol, or the disk is full. What has come is kept.
    pub(crate) async fn receive<S: AsyncRead + AsyncWrite + Unpin>(
        mut self,
        stream: &mut S,
        inbox: &Path,
        bar: &ProgressBar,
    ) -> Result<Received, NotReceived> {
        let mut wanted = Vec::with_capacity(8 * self.offsets.len());
        for offset in &self.offsets {
            wanted.extend_from_slice(&offset.to_be_bytes());
        }
        stream.write_all(&wanted).await.map_err(cut)?;
        stream.flush().await.map_err(cut)?;

        let mut received = Received::default();
        let mut buffer = Vec::new();
        let mut offsets = std::mem::take(&mut self.offsets).into_iter();
        for entry in &self.entries {
            let Some(size) = entry.size else {
                if let Err(error) = self.tree.make(entry) {
                    tracing::debug!(path = entry.path, %error, "a directory was not made");
                }
                continue;
            };
            let offset = offsets.next().unwrap_or(TOO_LARGE);
            let since = Instant::now();
            let (outcome, path) = match offset {
                THERE => (Outcome::There, None),
                TOO_LARGE => (Outcome::TooLarge, None),
                offset => {
                    one(&mut self.tree, stream, entry, (offset, size), inbox, &mut buffer, bar)
                        .await?
                }
            };
            let resumed = match offset {
                THERE => size,
                TOO_LARGE => 0,
                offset => offset,
            };
            received.files.push(ReceivedFile {
                name: entry.path.clone(),
                outcome,
                path,
                bytes: size,
                resumed,
                seconds: since.elapsed().as_secs_f64(),
            });
        }
        if stream.read(&mut [0]).await.map_err(cut)? != 0 {
            let text = "the peer sent more than it announced";
            return Err(NotReceived::Content(XtlsError::failed(text)));
        }
        for entry in self.entries.iter().rev().filter(|entry| entry.size.is_none()) {
            self.tree.finish(entry);
        }
        let done = |file: &ReceivedFile| matches!(file.outcome, Outcome::Stored | Outcome::There);
        let complete = received.files.iter().all(done);
        self.tree.close(complete).map_err(|error| NotReceived::disk(inbox, &error))?;
        let outcomes: Vec<u8> = received.files.iter().map(|file| file.outcome.to_byte()).collect();
        stream.write_all(&outcomes).await.map_err(cut)?;
        stream.shutdown().await.map_err(cut)?;
        Ok(received)
    }
}

/// Receives one file. A fault of this file alone does not end the set.
async fn one<S: AsyncRead + Unpin>(
    tree: &mut Tree,
    stream: &mut S,
    entry: &Entry,
    (offset, size): (u64, u64),
    inbox: &Path,
    buffer: &mut Vec<u8>,
    bar: &ProgressBar,
) -> Result<(Outcome, Option<PathBuf>), NotReceived> {
    let wrong = |text: &str| NotReceived::Content(XtlsError::failed(text));
    let mut landing = survivable(tree.begin(entry, offset), entry, inbox)?;
    let mut at = offset;
    while at < size {
        let want = (size - at).min(CHUNK);
        let length = stream.read_u32().await.map_err(cut)?;
        if length == SKIPPED {
            return Ok((Outcome::Skipped, None));
        }
        if u64::from(length) != want {
            return Err(wrong("the peer sent a chunk of the wrong length"));
        }
        let mut hash = [0; 32];
        stream.read_exact(&mut hash).await.map_err(cut)?;
        buffer.resize(length as usize, 0);
        stream.read_exact(buffer).await.map_err(cut)?;
        if Sha256::digest(&*buffer)[..] != hash {
            return Err(wrong("the hash of a chunk is not the one that was sent"));
        }
        if let Some(mut open) = landing.take() {
            landing = survivable(open.push(buffer).map(|()| open), entry, inbox)?;
        }
        at += want;
        bar.inc(want);
    }
    let Some(landing) = landing.filter(|landing: &Landing| landing.len() == size) else {
        return Ok((Outcome::NotStored, None));
    };
    Ok(match survivable(tree.keep(entry, landing), entry, inbox)? {
        Some(path) => (Outcome::Stored, Some(path)),
        None => (Outcome::NotStored, None),
    })
}

/// Returns the value, or `None` if only this file cannot be stored.
///
/// # Errors
/// If no other file can be stored either.
fn survivable<T>(
    done: std::io::Result<T>,
    entry: &Entry,
    inbox: &Path,
) -> Result<Option<T>, NotReceived> {
    use std::io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    match done {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem) => {
            Err(NotReceived::disk(inbox, &error))
        }
        Err(error) => {
            tracing::warn!(path = entry.path, %error, "a file of a set was not stored");
            Ok(None)
        }
    }
}
