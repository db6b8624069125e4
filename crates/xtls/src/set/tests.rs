//! Both sides of a set over a stream in memory.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use indicatif::ProgressBar;
use jid::BareJid;
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

use super::{
    super::{files::NotReceived, output::XtlsError},
    receive::{Received, Wish, manifest},
    send::{Sent, send},
    tree::Tree,
    walk::{self, Found, Item},
    *,
};

/// A sender's directory, and a receiver's inbox.
struct Scene {
    home: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        for dir in ["out/notes/sub", "out/notes/empty", "in"] {
            fs::create_dir_all(home.path().join(dir)).unwrap();
        }
        Self { home }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn write(&self, name: &str, content: &[u8]) {
        fs::write(self.path("out/notes").join(name), content).unwrap();
    }

    fn found(&self) -> Found {
        walk::find(&[self.path("out/notes")])
    }

    /// Receives what comes over a stream.
    async fn receive(&self, stream: &mut DuplexStream) -> Result<Received, NotReceived> {
        let sender = BareJid::new("juliet@capulet.lit").unwrap();
        let inbox = self.path("in");
        let entries = manifest(stream).await?;
        let wish = Wish::new(entries, &inbox, &sender, Some(10 * CHUNK))?;
        wish.receive(stream, &inbox, &ProgressBar::hidden()).await
    }

    /// Transfers items; returns both sides' results.
    async fn transfer(&self, items: &[Item]) -> (Result<Vec<Sent>, XtlsError>, Received) {
        let (mut a, mut b) = duplex(100_000);
        let bar = ProgressBar::hidden();
        let (sent, received) = tokio::join!(send(&mut a, items, &bar), self.receive(&mut b));
        (sent.map_err(|failure| failure.error), received.map_err(XtlsError::from).unwrap())
    }

    /// Sends these bytes after a manifest, as a lying sender.
    async fn lie(&self, items: &[Item], bytes: &[u8]) -> String {
        let (mut a, mut b) = duplex(1 << 22);
        let entries: Vec<_> = items.iter().map(|item| item.entry.clone()).collect();
        let manifest = manifest::write(&entries);
        a.write_u32(manifest.len() as u32).await.unwrap();
        a.write_all(&manifest).await.unwrap();
        a.write_all(bytes).await.unwrap();
        a.shutdown().await.unwrap();
        XtlsError::from(self.receive(&mut b).await.unwrap_err()).text
    }

    /// Returns the hidden files in the inbox.
    fn parts(&self) -> usize {
        let names = fs::read_dir(self.path("in")).unwrap().flatten();
        names.filter(|name| name.file_name().to_string_lossy().starts_with(".xtls-")).count()
    }
}

fn outcomes(received: &Received) -> Vec<Outcome> {
    received.files.iter().map(|file| file.outcome).collect()
}

fn bytes(size: u64, salt: u8) -> Vec<u8> {
    (0..size).map(|n| (n % 251) as u8 ^ salt).collect()
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn a_tree_lands_with_its_modes_and_dates() {
    let scene = Scene::new();
    scene.write("a.txt", b"hello");
    scene.write("none", b"");
    scene.write("sub/run.sh", b"#!/bin/sh\n");
    scene.write("sub/.hidden", &bytes(2 * CHUNK + 5, 1));
    scene.write("sub/even", &bytes(2 * CHUNK, 2));
    set_mode(&scene.path("out/notes/sub/run.sh"), 0o755);
    set_mode(&scene.path("out/notes/a.txt"), 0o600);
    let date = std::time::SystemTime::UNIX_EPOCH
        + std::time::Duration::from_nanos(1_500_000_000_123_456_789);
    fs::File::open(scene.path("out/notes/a.txt")).unwrap().set_modified(date).unwrap();
    symlink("/etc/passwd", scene.path("out/notes/link")).unwrap();
    let found = scene.found();
    assert_eq!(found.failed.len(), 1, "the link: {:?}", found.failed);
    fs::File::open(scene.path("out/notes/sub")).unwrap().set_modified(date).unwrap();
    let found = scene.found();

    let (sent, received) = scene.transfer(&found.items).await;
    assert!(sent.unwrap().iter().all(|sent| sent.outcome == Outcome::Stored && sent.resumed == 0));
    assert_eq!(outcomes(&received), [Outcome::Stored; 5]);
    for name in ["a.txt", "none", "sub/run.sh", "sub/.hidden", "sub/even"] {
        let (out, landed) = (scene.path("out/notes").join(name), scene.path("in/notes").join(name));
        assert_eq!(fs::read(&landed).unwrap(), fs::read(&out).unwrap(), "{name}");
        let (out, landed) = (fs::metadata(out).unwrap(), fs::metadata(landed).unwrap());
        assert_eq!((landed.mtime(), landed.mtime_nsec()), (out.mtime(), out.mtime_nsec()));
    }
    assert!(scene.path("in/notes/empty").is_dir());
    let mode =
        |name: &str| fs::metadata(scene.path("in/notes").join(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("a.txt"), mode("sub/run.sh") & 0o700), (0o600, 0o700));
    assert_eq!(fs::metadata(scene.path("in/notes/sub")).unwrap().mtime(), 1_500_000_000);
    assert_eq!(scene.parts(), 0);

    // A directory that is there gets nothing more.
    let (_, again) = scene.transfer(&found.items).await;
    assert_eq!(outcomes(&again), [Outcome::Stored; 5]);
    assert_eq!(fs::read(scene.path("in/notes (1)/a.txt")).unwrap(), b"hello");
    assert_eq!(fs::read_dir(scene.path("in/notes")).unwrap().count(), 4);
}

#[tokio::test]
async fn a_broken_set_goes_on_behind_the_last_verified_chunk() {
    let scene = Scene::new();
    scene.write("a", b"first");
    scene.write("b", &bytes(3 * CHUNK + 7, 3));
    scene.write("c", b"last");
    let items = scene.found().items;

    // The stream is cut in the third chunk of the second file.
    let (mut a, mut b) = duplex(100_000);
    let mut cut = Cut { stream: &mut a, left: 2 * CHUNK as usize + 50_000 };
    let bar = ProgressBar::hidden();
    let sending = async {
        let sent = send(&mut cut, &items, &bar).await;
        assert!(sent.is_err());
        let _ = cut.stream.shutdown().await;
    };
    let ((), received) = tokio::join!(sending, scene.receive(&mut b));
    assert!(matches!(received, Err(NotReceived::Cut(_))), "{received:?}");
    assert_eq!(scene.parts(), 2, "the part, and the journal");

    let (sent, received) = scene.transfer(&items).await;
    let resumed: Vec<_> = sent.unwrap().iter().map(|sent| sent.resumed).collect();
    assert_eq!(resumed, [5, 2 * CHUNK, 0]);
    assert_eq!(outcomes(&received), [Outcome::There, Outcome::Stored, Outcome::Stored]);
    for name in ["a", "b", "c"] {
        let (out, landed) = (scene.path("out/notes").join(name), scene.path("in/notes").join(name));
        assert_eq!(fs::read(landed).unwrap(), fs::read(out).unwrap(), "{name}");
    }
    assert_eq!(scene.parts(), 0);
}

#[tokio::test]
async fn a_fault_of_one_file_does_not_stop_the_others() {
    let scene = Scene::new();
    scene.write("gone", b"soon");
    scene.write("huge", &bytes(10 * CHUNK + 1, 0));
    scene.write("kept", b"yes");
    scene.write("short", &bytes(2 * CHUNK, 0));
    scene.write("sub/inside", b"x");
    let items = scene.found().items;
    fs::remove_file(scene.path("out/notes/gone")).unwrap();
    scene.write("short", &bytes(CHUNK + 9, 0));
    // A file in the place of a directory.
    let mut blocked = items[0].clone();
    blocked.entry = manifest::Entry { path: "notes/kept/inside".into(), ..items[2].entry.clone() };
    blocked.entry.size = Some(0);
    let items = [items, vec![blocked]].concat();

    let (sent, received) = scene.transfer(&items).await;
    use Outcome::{NotStored, Skipped, Stored, TooLarge};
    let expected = [Skipped, TooLarge, Stored, Skipped, Stored, NotStored];
    assert_eq!(outcomes(&received), expected);
    let sent: Vec<_> = sent.unwrap().iter().map(|sent| sent.outcome).collect();
    assert_eq!(sent, expected);
    assert_eq!(fs::read(scene.path("in/notes/kept")).unwrap(), b"yes");
}

/// Another program on this machine puts a link where a file should land.
#[test]
fn nothing_lands_behind_a_link() {
    let scene = Scene::new();
    scene.write("sub/inside", b"x");
    let entries: Vec<_> = scene.found().items.into_iter().map(|item| item.entry).collect();
    let inside = entries.iter().find(|entry| entry.size.is_some()).unwrap();
    let sender = BareJid::new("juliet@capulet.lit").unwrap();
    let mut tree = Tree::open(&scene.path("in"), &sender).unwrap();
    tree.adopt(&entries).unwrap();
    fs::create_dir(scene.path("elsewhere")).unwrap();
    symlink(scene.path("elsewhere"), scene.path("in/notes/sub")).unwrap();
    let mut landing = tree.begin(inside, 0).unwrap();
    landing.push(b"x").unwrap();
    tree.keep(inside, landing).unwrap_err();
    drop(tree);
    assert_eq!(fs::read_dir(scene.path("elsewhere")).unwrap().count(), 0);

    // Nor is such a link taken for a directory of the set.
    symlink(scene.path("elsewhere"), scene.path("in/letters")).unwrap();
    let entry = manifest::Entry { path: "letters/a".into(), ..inside.clone() };
    let mut tree = Tree::open(&scene.path("in"), &sender).unwrap();
    tree.adopt(std::slice::from_ref(&entry)).unwrap();
    let mut landing = tree.begin(&entry, 0).unwrap();
    landing.push(b"x").unwrap();
    assert_eq!(tree.keep(&entry, landing).unwrap(), scene.path("in/letters (1)/a"));
}

#[tokio::test]
async fn a_lying_sender_is_found_out() {
    let scene = Scene::new();
    scene.write("a", b"hello");
    let items = scene.found().items;
    let chunk = |length: u32, hash: [u8; 32], bytes: &[u8]| {
        [&length.to_be_bytes()[..], &hash, bytes].concat()
    };
    use sha2::{Digest, Sha256};
    let hash: [u8; 32] = Sha256::digest(b"hello").into();
    for (bytes, why) in [
        (chunk(4, hash, b"hell"), "a chunk of the wrong length"),
        (chunk(u32::MAX - 1, hash, b""), "a chunk of the wrong length"),
        (chunk(5, [0; 32], b"hello"), "the hash of a chunk"),
        (chunk(5, hash, b"hello!"), "more than it announced"),
    ] {
        let error = scene.lie(&items, &bytes).await;
        assert!(error.contains(why), "{error}");
    }
    // Memory is not taken for a promise.
    let (mut a, mut b) = duplex(100);
    a.write_u32(u32::MAX).await.unwrap();
    let error = XtlsError::from(scene.receive(&mut b).await.unwrap_err());
    assert_eq!(error.text, "the manifest is too long");
    let (mut a, mut b) = duplex(100);
    a.write_u32(1000).await.unwrap();
    a.shutdown().await.unwrap();
    let error = XtlsError::from(scene.receive(&mut b).await.unwrap_err());
    assert_eq!(error.text, "the stream ended in the manifest");
}

#[test]
fn a_receiver_that_repeats_the_offer_has_not_accepted_it() {
    let mut description = Element::bare("description", ns::FILE_TRANSFER);
    description.append_child(offer(3, 1000));
    assert!(is_offered(&description));
    assert!(!is_accepted(Some(&description)));
    accept(&mut description);
    assert!(is_accepted(Some(&description)));
    assert!(!is_accepted(None));
}

#[test]
fn outcomes_are_read_back() {
    for outcome in Outcome::ALL {
        assert_eq!(Outcome::read(outcome.to_byte()), Some(outcome));
    }
    assert_eq!(Outcome::read(5), None);
}

/// A stream that breaks after so many written bytes.
struct Cut<'a> {
    stream: &'a mut DuplexStream,
    left: usize,
}

impl tokio::io::AsyncRead for Cut<'_> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut *self.stream).poll_read(cx, buffer)
    }
}

impl tokio::io::AsyncWrite for Cut<'_> {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        if self.left == 0 {
            return std::task::Poll::Ready(Err(std::io::ErrorKind::ConnectionReset.into()));
        }
        let most = bytes.len().min(self.left);
        let written = std::pin::Pin::new(&mut *self.stream).poll_write(cx, &bytes[..most]);
        if let std::task::Poll::Ready(Ok(n)) = written {
            self.left -= n;
        }
        written
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut *self.stream).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut *self.stream).poll_shutdown(cx)
    }
}
