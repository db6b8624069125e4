//! Files over a secured stream (XEP-0234): offered with size and SHA-256, stored whole or not at all.
//!
//! One file is one session: the offers are independent, each file is stored as soon as it is complete, and a failed one
//! does not block the others. A broken transfer resumes where it stopped (XEP-0234, 5.5): `<range/>` in the sender's
//! offer says that it can start anywhere, `offset` in the receiver's answer says where, and the hash of the whole file
//! shows in the end whether both meant the same file.

use std::{
    io::{self, SeekFrom},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use data_encoding::HEXLOWER;
use fingerpost_endpoint::Error;
use indicatif::ProgressBar;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeekExt, AsyncWrite, AsyncWriteExt};

#[cfg(test)]
use super::parts;
use super::{
    file_offer::{CHUNK, FileOffer, Range},
    output::{Output, XtlsError},
    parts::PartialFile,
};

/// What a peer is told if the stream broke: the system's error is about this machine.
const CUT: &str = "the stream was cut";

/// The result of a transfer.
#[derive(Debug)]
pub(super) struct Done {
    /// The file's size, bytes.
    pub(super) bytes: u64,
    /// How many of them were there before.
    pub(super) resumed: u64,
    pub(super) seconds: f64,
    pub(super) sha256: String,
}

impl Done {
    /// Reports a file that was received or sent completely.
    pub(super) fn report(&self, output: Output, file: &Path) {
        let file = shown_path(file);
        let moved = self.bytes - self.resumed;
        let resumed = match self.resumed {
            0 => String::new(),
            n => format!(" ({} were there already)", size(n)),
        };
        output.event(
            &json!({"event": "done", "file": file, "bytes": self.bytes, "resumed": self.resumed,
                    "seconds": self.seconds, "sha256": self.sha256}),
            &format!(
                "{file}: {}{resumed} in {}, {}\n  SHA-256 {}",
                size(self.bytes),
                duration(self.seconds),
                speed(moved, self.seconds),
                self.sha256
            ),
        );
    }
}

/// Returns a path as text that no command takes for an option.
pub(super) fn shown_path(path: &Path) -> String {
    let text = path.display().to_string();
    if text.starts_with('-') { format!("./{text}") } else { text }
}

/// Returns a number of bytes as text.
pub(super) fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// Returns seconds as text.
pub(super) fn duration(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    indicatif::HumanDuration(Duration::from_secs_f64(seconds)).to_string()
}

/// Returns a speed as text.
pub(super) fn speed(bytes: u64, seconds: f64) -> String {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rounded number that is not negative"
    )]
    let rate = (bytes as f64 / seconds.max(0.001)) as u64;
    format!("{}/s", size(rate))
}

/// Why a file was not sent.
#[derive(Debug)]
pub(super) struct NotSent {
    pub(super) error: XtlsError,
    /// What the peer is told: nothing about this machine.
    pub(super) words: &'static str,
}

impl NotSent {
    pub(super) fn new(error: XtlsError, words: &'static str) -> Self {
        Self { error, words }
    }
}

impl From<Error> for NotSent {
    fn from(error: Error) -> Self {
        Self::new(error.into(), CUT)
    }
}

impl From<io::Error> for NotSent {
    fn from(error: io::Error) -> Self {
        Self::new(error.into(), CUT)
    }
}

/// Writes the range of the file to the stream, and ends that direction. The caller knows and shows how much of it has
/// arrived. If the file has grown since it was offered, its offered beginning is sent; the receiver's check of the hash
/// decides.
///
/// # Errors
/// If the file cannot be read or is shorter than the offer, or the stream breaks. The direction is not ended then, so
/// that the receiver cannot take its part for the whole.
pub(super) async fn send<S: AsyncWrite + Unpin>(
    stream: &mut S,
    path: &Path,
    offer: &FileOffer,
    range: Range,
    bar: &ProgressBar,
) -> Result<Done, NotSent> {
    let since = Instant::now();
    let named = |error: io::Error| {
        let error = XtlsError::failed(format!("{}: {error}", shown_path(path)));
        NotSent::new(error, "the sender can no longer read the file")
    };
    let Some(rest) = offer.size.checked_sub(range.offset) else {
        let words = "the peer requested a range past the end of the file";
        return Err(NotSent::new(
            XtlsError::failed(words),
            "the range is past the end of the file",
        ));
    };
    let end = range.offset + range.length.unwrap_or(rest).min(rest);
    let mut file = tokio::fs::File::open(path).await.map_err(named)?;
    file.seek(SeekFrom::Start(range.offset)).await.map_err(named)?;
    let mut buffer = vec![0; CHUNK];
    let mut at = range.offset;
    bar.set_position(at);
    bar.reset_eta();
    loop {
        let n = file.read(&mut buffer).await.map_err(named)?;
        let n = usize::try_from(end - at).unwrap_or(CHUNK).min(n);
        if n == 0 {
            break;
        }
        stream.write_all(&buffer[..n]).await?;
        at += n as u64;
    }
    stream.flush().await?;
    if at != end {
        let text = format!("{} became shorter while it was sent", shown_path(path));
        let error = XtlsError::failed(text).hint("send it again when nothing writes to it");
        return Err(NotSent::new(error, "the file became shorter while it was sent"));
    }
    stream.shutdown().await?;
    Ok(Done {
        bytes: offer.size,
        resumed: range.offset,
        seconds: since.elapsed().as_secs_f64(),
        sha256: HEXLOWER.encode(offer.sha256.as_deref().unwrap_or_default()),
    })
}

/// Waits for more from the peer; returns whether it has ended its direction instead.
///
/// # Errors
/// If the stream is cut.
pub(super) async fn is_over<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<bool> {
    Ok(stream.read(&mut [0]).await? == 0)
}

/// Why a file was not received.
#[derive(Debug)]
pub(super) enum NotReceived {
    /// The disk here failed: it is full, or the directory is gone.
    Disk(XtlsError, io::ErrorKind),
    /// The content is not the file that was offered.
    Content(XtlsError),
    /// The stream broke.
    Cut(XtlsError),
}

impl NotReceived {
    /// Returns the error of a file or a directory in `dir`.
    pub(super) fn disk(dir: &Path, error: &io::Error) -> Self {
        Self::Disk(XtlsError::failed(format!("{}: {error}", shown_path(dir))), error.kind())
    }

    fn content(text: impl Into<String>) -> Self {
        Self::Content(XtlsError::failed(text))
    }

    /// Returns what the sender is told. It need not know where its files land, and can act on the kind of an error.
    pub(super) fn words(&self) -> &str {
        use io::ErrorKind::{
            FileTooLarge, NotADirectory, NotFound, PermissionDenied, QuotaExceeded,
            ReadOnlyFilesystem, StorageFull,
        };
        match self {
            Self::Disk(_, StorageFull | QuotaExceeded) => {
                "the file cannot be stored here: the receiver's disk is full"
            }
            Self::Disk(_, FileTooLarge) => {
                "the file cannot be stored here: it is too large for the receiver's file system"
            }
            Self::Disk(_, PermissionDenied | ReadOnlyFilesystem) => {
                "the file cannot be stored here: the receiver may not write to its directory"
            }
            Self::Disk(_, NotFound | NotADirectory) => {
                "the file cannot be stored here: the receiver's directory is gone"
            }
            Self::Disk(..) => "the file cannot be stored here: the receiver's disk failed",
            Self::Content(error) => &error.text,
            Self::Cut(_) => CUT,
        }
    }
}

impl From<Error> for NotReceived {
    fn from(error: Error) -> Self {
        Self::Cut(error.into())
    }
}

impl From<NotReceived> for XtlsError {
    fn from(error: NotReceived) -> Self {
        match error {
            NotReceived::Disk(error, _) | NotReceived::Content(error) | NotReceived::Cut(error) => {
                error
            }
        }
    }
}

/// Reads the rest of a file from the stream into a directory. The file gets its name when it is complete, its hash is
/// right, and the sender itself has ended its direction.
///
/// # Errors
/// If the stream or the disk fails; the received part is kept for another try. If the hash is wrong, or more comes than
/// was announced; nothing is kept then.
pub(super) async fn receive<S: AsyncRead + Unpin>(
    stream: &mut S,
    mut part: PartialFile,
    dir: &Path,
    offer: &FileOffer,
    bar: &ProgressBar,
) -> Result<(Done, PathBuf), NotReceived> {
    let since = Instant::now();
    let mut resumed = part.len();
    bar.set_position(resumed);
    bar.reset_eta();
    fill(stream, &mut part, offer.size, dir, bar).await?;
    let right =
        |part: &PartialFile| offer.sha256.as_ref().is_none_or(|sha256| *sha256 == part.sha256());
    if resumed > 0 && !right(&part) {
        // A sender without support for ranges starts at the beginning: then as many bytes again follow, otherwise its
        // end.
        let size = offer.size.saturating_add(resumed);
        match fill(stream, &mut part, size, dir, bar).await {
            Ok(()) => {
                part.drop_front(resumed).map_err(|error| NotReceived::disk(dir, &error))?;
                resumed = 0;
            }
            Err(NotReceived::Content(_) | NotReceived::Cut(_)) => {}
            Err(error @ NotReceived::Disk(..)) => return Err(error),
        }
    }
    if !right(&part) {
        part.discard();
        return Err(NotReceived::content(match resumed {
            0 => "the file's hash is not the one offered: nothing was kept".to_owned(),
            n => format!(
                "with the {n} bytes that were kept the file's hash is not the one offered: \
                 nothing is kept, and the next try starts from the beginning"
            ),
        }));
    }
    if !is_over(stream).await.map_err(|error| NotReceived::Cut(error.into()))? {
        part.discard();
        return Err(NotReceived::content("the peer sent more than it announced: nothing was kept"));
    }
    let sha256 = HEXLOWER.encode(&part.sha256());
    let path = part
        .keep(dir, &offer.name, offer.modified)
        .map_err(|error| NotReceived::disk(dir, &error))?;
    let seconds = since.elapsed().as_secs_f64();
    Ok((Done { bytes: offer.size, resumed, seconds, sha256 }, path))
}

/// Reads from the stream until the part has `size` bytes.
async fn fill<S: AsyncRead + Unpin>(
    stream: &mut S,
    part: &mut PartialFile,
    size: u64,
    dir: &Path,
    bar: &ProgressBar,
) -> Result<(), NotReceived> {
    let mut buffer = vec![0; CHUNK];
    while part.len() < size {
        let want = usize::try_from(size - part.len()).unwrap_or(CHUNK).min(CHUNK);
        let read = stream.read(&mut buffer[..want]).await;
        let n = read.map_err(|error| NotReceived::Cut(error.into()))?;
        if n == 0 {
            return Err(NotReceived::content(format!(
                "the stream ended after {} of {size} bytes",
                part.len()
            )));
        }
        part.push(&buffer[..n]).map_err(|error| NotReceived::disk(dir, &error))?;
        bar.set_position(part.len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use jid::BareJid;

    use super::*;

    /// A sender's file of 100 kB, and a receiver with its first `kept` bytes, or with others.
    struct Story {
        dir: tempfile::TempDir,
        content: Vec<u8>,
        offer: FileOffer,
    }

    impl Story {
        fn new(prefix: &[u8]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let content: Vec<u8> = (0..100_000_u32).map(|n| (n % 251) as u8).collect();
            let path = dir.path().join("letter");
            fs::write(&path, &content).unwrap();
            let offer = FileOffer::of(&path).unwrap();
            fs::create_dir(dir.path().join("in")).unwrap();
            let this = Self { dir, content, offer };
            if !prefix.is_empty() {
                this.part().push(prefix).unwrap();
            }
            this
        }

        fn inbox(&self) -> PathBuf {
            self.dir.path().join("in")
        }

        fn part(&self) -> PartialFile {
            let sender = BareJid::new("juliet@capulet.lit").unwrap();
            let kept = parts::kept(&self.inbox(), &sender, &self.offer);
            PartialFile::open(&self.inbox(), &sender, &self.offer, kept).unwrap()
        }

        /// Transfers the file. The sender starts at `offset`; `None`: at the requested one.
        async fn transfer(&self, offset: Option<u64>) -> Result<(Done, PathBuf), XtlsError> {
            let part = self.part();
            let range = Range { offset: offset.unwrap_or(part.len()), length: None };
            let (mut a, mut b) = tokio::io::duplex(10_000);
            let (bar, path, inbox) =
                (ProgressBar::hidden(), self.dir.path().join("letter"), self.inbox());
            let sent = async {
                // Its end is the end of the stream.
                send(&mut a, &path, &self.offer, range, &bar).await
            };
            let (_, got) = tokio::join!(sent, receive(&mut b, part, &inbox, &self.offer, &bar));
            got.map_err(XtlsError::from)
        }

        fn left(&self) -> usize {
            fs::read_dir(self.inbox()).unwrap().count()
        }
    }

    /// Returns the text of an error of the content.
    fn content<T: std::fmt::Debug>(got: Result<T, NotReceived>) -> String {
        match got {
            Err(NotReceived::Content(error)) => error.text,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_broken_transfer_goes_on_where_it_stopped() {
        let story = Story::new(&[]);
        let mut part = story.part();
        let half = &story.content[..60_000];
        let (inbox, bar) = (story.inbox(), ProgressBar::hidden());
        let broken = fill(&mut &half[..], &mut part, 100_000, &inbox, &bar).await;
        assert_eq!(content(broken), "the stream ended after 60000 of 100000 bytes");
        drop(part);
        let (done, path) = story.transfer(None).await.unwrap();
        assert_eq!((done.bytes, done.resumed), (100_000, 60_000));
        assert_eq!(fs::read(path).unwrap(), story.content);
        assert_eq!(story.left(), 1);
    }

    #[tokio::test]
    async fn a_wrong_prefix_is_an_error_and_the_next_try_starts_anew() {
        let story = Story::new(b"something else");
        let error = story.transfer(None).await.unwrap_err();
        assert!(error.text.contains("14 bytes that were kept"), "{error}");
        assert_eq!(story.left(), 0);
        let (done, path) = story.transfer(None).await.unwrap();
        assert_eq!(done.resumed, 0);
        assert_eq!(fs::read(path).unwrap(), story.content);
    }

    #[tokio::test]
    async fn a_sender_that_ignores_the_range_is_understood() {
        let story = Story::new(b"something else");
        let (done, path) = story.transfer(Some(0)).await.unwrap();
        assert_eq!((done.bytes, done.resumed), (100_000, 0));
        assert_eq!(fs::read(path).unwrap(), story.content);
        assert_eq!(story.left(), 1);
    }

    #[tokio::test]
    async fn more_or_less_than_was_announced_is_not_the_file() {
        let story = Story::new(&[]);
        let mut more = story.content.clone();
        more.push(0);
        let (bar, inbox) = (ProgressBar::hidden(), story.inbox());
        let got = receive(&mut &more[..], story.part(), &inbox, &story.offer, &bar).await;
        assert!(content(got).contains("more than it announced"));
        assert_eq!(story.left(), 0);
        let less = &story.content[..99_999];
        let got = receive(&mut &less[..], story.part(), &inbox, &story.offer, &bar).await;
        assert_eq!(content(got), "the stream ended after 99999 of 100000 bytes");
    }

    #[tokio::test]
    async fn an_error_of_the_disk_is_not_one_of_the_content() {
        let story = Story::new(&[]);
        let (bar, inbox) = (ProgressBar::hidden(), story.inbox());
        let disk = |got| match got {
            Err(NotReceived::Disk(error, _)) => error.text,
            other => panic!("{other:?}"),
        };
        // Nothing can be written, at the beginning and where the sender starts again.
        for part in
            [PartialFile::read_only(&inbox, b""), PartialFile::read_only(&inbox, b"something else")]
        {
            let got = receive(&mut &story.content[..], part, &inbox, &story.offer, &bar).await;
            assert!(disk(got).starts_with(&format!("{}: ", inbox.display())));
        }
        let part = story.part();
        fs::remove_dir_all(&inbox).unwrap();
        let got = receive(&mut &story.content[..], part, &inbox, &story.offer, &bar).await;
        assert!(disk(got).starts_with(&format!("{}: ", inbox.display())));
    }

    #[tokio::test]
    async fn a_range_behind_the_end_is_an_error() {
        let story = Story::new(&[]);
        let path = story.dir.path().join("letter");
        let range = Range { offset: 100_001, length: None };
        let sent =
            send(&mut tokio::io::sink(), &path, &story.offer, range, &ProgressBar::hidden()).await;
        assert_eq!(
            sent.unwrap_err().error.text,
            "the peer requested a range past the end of the file"
        );
        let mut wire = Vec::new();
        let range = Range { offset: 10, length: Some(5) };
        send(&mut wire, &path, &story.offer, range, &ProgressBar::hidden()).await.unwrap();
        assert_eq!(wire, story.content[10..15]);
    }

    #[tokio::test]
    async fn a_file_that_grows_is_sent_as_it_was_offered_and_a_shorter_one_is_not() {
        let story = Story::new(&[]);
        let path = story.dir.path().join("letter");
        let bar = ProgressBar::hidden();
        fs::write(&path, [&story.content[..], b"and more"].concat()).unwrap();
        let (_, landed) = story.transfer(None).await.unwrap();
        assert_eq!(fs::read(landed).unwrap(), story.content);
        fs::write(&path, &story.content[..50_000]).unwrap();
        let mut wire = Vec::new();
        let sent = send(&mut wire, &path, &story.offer, Range::default(), &bar).await;
        let NotSent { error, words } = sent.unwrap_err();
        assert!(error.text.starts_with(&format!("{} became shorter", path.display())), "{error}");
        assert_eq!(words, "the file became shorter while it was sent");
    }

    #[test]
    fn a_peer_learns_what_it_can_act_on_and_nothing_of_the_system_here() {
        let dir = Path::new("/home/bob");
        for (kind, words) in [
            (io::ErrorKind::StorageFull, "disk is full"),
            (io::ErrorKind::PermissionDenied, "may not write to its directory"),
            (io::ErrorKind::NotFound, "directory is gone"),
            (io::ErrorKind::Other, "disk failed"),
        ] {
            let failure = NotReceived::disk(dir, &io::Error::new(kind, "os error 28"));
            let text = failure.words().to_owned();
            assert!(text.ends_with(words) && !text.contains("bob"), "{text}");
            assert_eq!(XtlsError::from(failure).text, "/home/bob: os error 28");
        }
        let cut = NotReceived::from(Error::from(io::Error::other("os error 104")));
        assert_eq!(cut.words(), CUT);
        assert_eq!(NotSent::from(io::Error::other("os error 104")).words, CUT);
    }

    #[test]
    fn a_path_is_shown_so_that_no_command_takes_it_for_an_option() {
        for (path, shown) in [("-rf", "./-rf"), ("a-b", "a-b"), ("/-x", "/-x")] {
            assert_eq!(shown_path(Path::new(path)), shown);
        }
    }
}
