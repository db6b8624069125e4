//! The sender's side of a set.

use std::{io, path::Path};

use indicatif::ProgressBar;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{
    super::{files::NotSent, output::XtlsError},
    CHUNK, Outcome, SKIPPED, THERE, TOO_LARGE,
    manifest::{self, Entry},
    walk::Item,
};

/// The bytes before a chunk: its length and its hash.
const HEAD: usize = 4 + 32;

/// A file after its set was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) outcome: Outcome,
    /// How many bytes the receiver had before.
    pub(crate) resumed: u64,
}

impl Sent {
    /// A file that cannot be read.
    pub(crate) const SKIPPED: Self = Self { outcome: Outcome::Skipped, resumed: 0 };
}

/// Sends a set. Returns the outcome of each of its files, in their order.
///
/// # Errors
/// If the stream breaks, or the receiver does not keep to the protocol.
pub(crate) async fn send<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    items: &[Item],
    bar: &ProgressBar,
) -> Result<Vec<Sent>, NotSent> {
    let wrong = |text: &'static str| NotSent::new(XtlsError::failed(text), text);
    let entries: Vec<Entry> = items.iter().map(|item| item.entry.clone()).collect();
    let bytes = manifest::write(&entries);
    let length = u32::try_from(bytes.len()).map_err(|_| wrong("the manifest is too long"))?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(&bytes).await?;
    stream.flush().await?;

    let files: Vec<(&Item, u64)> =
        items.iter().filter_map(|item| Some((item, item.entry.size?))).collect();
    let mut wanted = Vec::with_capacity(files.len());
    for (_, size) in &files {
        let offset = stream.read_u64().await?;
        let fits = offset <= *size && (offset.is_multiple_of(CHUNK) || offset == *size);
        if !fits && !matches!(offset, THERE | TOO_LARGE) {
            return Err(wrong("the peer requested a range that a file does not have"));
        }
        wanted.push(offset);
    }
    let mut buffer = Vec::new();
    for ((item, size), offset) in files.iter().zip(&wanted) {
        if matches!(*offset, THERE | TOO_LARGE) {
            bar.inc(*size);
            continue;
        }
        bar.inc(*offset);
        send_file(stream, &item.source, (*offset, *size), &mut buffer, bar).await?;
    }
    stream.flush().await?;
    stream.shutdown().await?;

    let mut sent = Vec::with_capacity(files.len());
    for ((_, size), offset) in files.iter().zip(wanted) {
        let outcome = Outcome::read(stream.read_u8().await?)
            .ok_or_else(|| wrong("the peer's result of a file is unknown"))?;
        let resumed = match offset {
            THERE => *size,
            TOO_LARGE => 0,
            offset => offset,
        };
        sent.push(Sent { outcome, resumed });
    }
    if stream.read(&mut [0]).await? != 0 {
        return Err(wrong("the peer sent data where its end was expected"));
    }
    Ok(sent)
}

/// Sends a file from an offset on, in chunks with their hashes.
async fn send_file<S: AsyncWrite + Unpin>(
    stream: &mut S,
    path: &Path,
    (mut at, size): (u64, u64),
    buffer: &mut Vec<u8>,
    bar: &ProgressBar,
) -> Result<(), NotSent> {
    if at == size {
        return Ok(());
    }
    let opened = std::fs::File::open(path).and_then(|mut file| {
        io::Seek::seek(&mut file, io::SeekFrom::Start(at))?;
        Ok(file)
    });
    let mut file = opened.ok();
    while at < size {
        let want = usize::try_from((size - at).min(CHUNK)).unwrap_or(usize::MAX);
        buffer.resize(HEAD + want, 0);
        let read = file.as_mut().map(|file| io::Read::read_exact(file, &mut buffer[HEAD..]));
        if !matches!(read, Some(Ok(()))) {
            stream.write_u32(SKIPPED).await?;
            bar.inc(size - at);
            return Ok(());
        }
        let hash = Sha256::digest(&buffer[HEAD..]);
        let (head, _) = buffer.split_at_mut(HEAD);
        head[..4].copy_from_slice(&u32::try_from(want).unwrap_or(SKIPPED).to_be_bytes());
        head[4..].copy_from_slice(&hash);
        stream.write_all(buffer).await?;
        at += want as u64;
        bar.inc(want as u64);
    }
    Ok(())
}
