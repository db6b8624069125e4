//! Files over a secured stream (XEP-0234): offered with size and SHA-256, landed whole or not at all.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::Instant,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use minidom::Element;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::output::{Output, XtlsError};
use crate::{
    endpoint::SecureStream,
    xmpp::{ns, xml},
};

/// Bytes read or written at once.
const CHUNK: usize = 64 * 1024;

/// What a file offer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileOffer {
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) sha256: Option<Vec<u8>>,
}

impl FileOffer {
    /// Reads size and hash of a file.
    pub(crate) fn of(path: &Path) -> Result<Self, XtlsError> {
        let bad = |error: io::Error| XtlsError::failed(format!("{}: {error}", path.display()));
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("file").to_owned();
        let mut file = File::open(path).map_err(bad)?;
        let mut hash = Sha256::new();
        let mut size = 0;
        let mut buffer = vec![0; CHUNK];
        loop {
            let n = file.read(&mut buffer).map_err(bad)?;
            if n == 0 {
                break;
            }
            hash.update(&buffer[..n]);
            size += n as u64;
        }
        Ok(Self { name, size, sha256: Some(hash.finalize().to_vec()) })
    }

    /// The `<file/>` of an offer.
    pub(crate) fn to_element(&self) -> Element {
        let mut file = Element::bare("file", ns::FILE_TRANSFER);
        for (name, text) in [("name", self.name.clone()), ("size", self.size.to_string())] {
            let mut child = Element::bare(name, ns::FILE_TRANSFER);
            child.append_text(text);
            file.append_child(child);
        }
        if let Some(sha256) = &self.sha256 {
            let mut hash = xml::element("hash", ns::HASHES, &[("algo", "sha-256")]);
            hash.append_text(STANDARD.encode(sha256));
            file.append_child(hash);
        }
        file
    }

    /// Reads a `<file/>`.
    pub(crate) fn parse(file: &Element) -> Result<Self, XtlsError> {
        let text = |name| file.get_child(name, ns::FILE_TRANSFER).map(Element::text);
        let size = text("size").and_then(|size| size.trim().parse().ok());
        let sha256 = file
            .children()
            .find(|child| child.is("hash", ns::HASHES) && child.attr("algo") == Some("sha-256"))
            .and_then(|hash| STANDARD.decode(hash.text().trim()).ok());
        Ok(Self {
            name: safe_name(&text("name").unwrap_or_default()),
            size: size.ok_or_else(|| XtlsError::refused("the peer's file has no size"))?,
            sha256,
        })
    }
}

/// A name that stays inside its folder: no path, no control or direction characters, no leading dot.
pub(crate) fn safe_name(name: &str) -> String {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let name: String = last.chars().filter(|c| !hidden(*c)).collect();
    let name = name.trim().trim_start_matches('.').trim();
    let mut end = name.len().min(200);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    if name[..end].is_empty() { "file".to_owned() } else { name[..end].to_owned() }
}

/// What was transferred.
pub(crate) struct Done {
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
    pub(crate) sha256: String,
}

impl Done {
    fn new(bytes: u64, since: Instant, sha256: &[u8]) -> Self {
        let sha256 = sha256.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { bytes, seconds: since.elapsed().as_secs_f64(), sha256 }
    }

    /// Reports a file that has arrived or left whole.
    pub(crate) fn report(&self, output: Output, file: &Path) {
        #[expect(clippy::cast_precision_loss, reason = "a speed for people")]
        let speed = self.bytes as f64 / self.seconds.max(0.001) / 1e6;
        let file = file.display().to_string();
        output.event(
            &json!({"event": "done", "file": file, "bytes": self.bytes,
                    "seconds": self.seconds, "sha256": self.sha256}),
            &format!("{file}: {} bytes, {speed:.1} MB/s, SHA-256 {}", self.bytes, self.sha256),
        );
    }
}

/// Writes the file to the stream.
pub(crate) async fn send(
    stream: &mut SecureStream,
    path: &Path,
    offer: &FileOffer,
    output: Output,
) -> Result<Done, XtlsError> {
    let since = Instant::now();
    let bar = output.progress(offer.size, &offer.name);
    let mut file = tokio::fs::File::open(path).await?;
    let mut buffer = vec![0; CHUNK];
    let mut sent = 0;
    loop {
        let n = file.read(&mut buffer).await?;
        if n == 0 {
            break;
        }
        stream.write_all(&buffer[..n]).await?;
        sent += n as u64;
        bar.set_position(sent);
    }
    stream.flush().await?;
    bar.finish_and_clear();
    if sent != offer.size {
        return Err(XtlsError::failed(format!("{} changed while it was sent", path.display())));
    }
    Ok(Done::new(sent, since, offer.sha256.as_deref().unwrap_or_default()))
}

/// Reads a file from the stream into a folder; it gets its name when it is whole and its hash right.
pub(crate) async fn receive(
    stream: &mut SecureStream,
    dir: &Path,
    offer: &FileOffer,
    output: Output,
) -> Result<(Done, PathBuf), XtlsError> {
    let since = Instant::now();
    let bar = output.progress(offer.size, &offer.name);
    let mut part = tempfile::Builder::new().prefix(".xtls-").suffix(".part").tempfile_in(dir)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut got = 0;
    while got < offer.size {
        let want = usize::try_from(offer.size - got).unwrap_or(CHUNK).min(CHUNK);
        let n = stream.read(&mut buffer[..want]).await?;
        if n == 0 {
            return Err(XtlsError::failed(format!(
                "the stream ended after {got} of {} bytes: nothing was kept",
                offer.size
            )));
        }
        hash.update(&buffer[..n]);
        part.write_all(&buffer[..n])?;
        got += n as u64;
        bar.set_position(got);
    }
    bar.finish_and_clear();
    let sum = hash.finalize().to_vec();
    if offer.sha256.as_ref().is_some_and(|offered| *offered != sum) {
        return Err(XtlsError::failed("the file's hash is not the one offered: nothing was kept"));
    }
    part.as_file().sync_all()?;
    let path = keep(part, dir, &offer.name)?;
    Ok((Done::new(got, since, &sum), path))
}

/// Gives the finished file its name, or the next free one.
fn keep(part: tempfile::NamedTempFile, dir: &Path, name: &str) -> Result<PathBuf, XtlsError> {
    let (stem, extension) = match name.rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() => (stem, format!(".{extension}")),
        _ => (name, String::new()),
    };
    let mut part = part;
    for n in 0..10_000 {
        let name = if n == 0 { name.to_owned() } else { format!("{stem} ({n}){extension}") };
        let path = dir.join(name);
        match part.persist_noclobber(&path) {
            Ok(_) => {
                let _ = fs::File::open(dir).and_then(|dir| dir.sync_all());
                return Ok(path);
            }
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => part = error.file,
            Err(error) => {
                return Err(XtlsError::failed(format!("{}: {}", path.display(), error.error)));
            }
        }
    }
    Err(XtlsError::failed(format!("{}: too many files named {name}", dir.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside_their_folder() {
        for (given, safe) in [
            ("../../etc/passwd", "passwd"),
            ("C:\\x\\y.txt", "y.txt"),
            (".bashrc", "bashrc"),
            ("a\u{202e}txt.exe\n", "atxt.exe"),
            ("..", "file"),
            ("", "file"),
        ] {
            assert_eq!(safe_name(given), safe, "{given:?}");
        }
    }

    #[test]
    fn an_offer_is_read_back() {
        let offer = FileOffer { name: "a.txt".into(), size: 5, sha256: Some(vec![1; 32]) };
        assert_eq!(FileOffer::parse(&offer.to_element()), Ok(offer));
    }

    #[test]
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.txt", "a (1).txt", "a (2).txt"] {
            let part = tempfile::NamedTempFile::new_in(dir.path()).unwrap();
            assert_eq!(keep(part, dir.path(), "a.txt").unwrap(), dir.path().join(name));
        }
    }
}
