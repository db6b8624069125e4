//! The secured stream, and what the negotiation has learned of the peer.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use fingerpost_secure::sas;
use fingerpost_wire::{
    print::{Method, Print},
    transport_kind::TransportKind,
};
use jid::{BareJid, Jid};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    sync::watch,
    time::{Instant, Sleep},
};
use tokio_rustls::TlsStream;

use super::{
    application::CHUNKS,
    error::{Detail, Error},
    paths::{Path, PathLeg, Paths, VANISHED},
    policy::{Hint, Known, Listed, Standing},
    progress::{Direction, Monitor, Progress},
};

/// How often a stream that waits for the network checks that the other end is present.
const LOOK: Duration = Duration::from_secs(2);
/// How long nothing may move until we send a sign of life, a new traffic key (RFC 8446, 4.6.3): every peer accepts it,
/// and no application sees it. The component ends a stream on which nothing moves.
const SILENCE: Duration = Duration::from_secs(240);
/// The most signs of life until we send data again: rustls and others accept at most 32 in a row.
const RENEWALS: u32 = 30;

/// The results of a negotiation.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Learned {
    /// The user at the other end.
    pub peer: BareJid,
    /// The address of the other end: the peer's own, or the one that stands for the peer at the component.
    pub address: Jid,
    /// The TLS method.
    pub method: Method,
    /// The print of the key that the peer has shown and holds: the SHA-256 of its certificate, or its OpenPGP
    /// fingerprint. With the method srp the certificate is made for the session and proves nothing.
    pub print: Print,
    /// The broker's hints about the offered prints; empty without a broker.
    pub hints: Vec<Hint>,
    /// The registry's view of the key that the peer has shown. The method srp has none.
    pub standing: Standing,
    /// The registry's entry of that key, if it vouches for it.
    pub listed: Option<Listed>,
    /// Whether the key was known before.
    pub known: Known,
    /// The TLS version, such as `TLSv1.3`.
    pub tls_version: String,
    /// The key exchange group, such as `X25519MLKEM768`.
    pub key_exchange: String,
    /// The transport on our side.
    pub transport: TransportKind,
}

/// A TLS stream to another user's program, which nobody between can read.
///
/// # How it ends
/// Reading returns `Ok(0)` in one case only: the peer has sent TLS `close_notify`. If the stream ends in any other way,
/// because the peer's program died or a third party cut it, reading fails, with
/// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) if nothing else is known. The error's text says how many bytes had
/// arrived, and each later read returns the same error. A party that only carries the stream cannot make it look
/// complete.
///
/// A shutdown of the write side reaches the peer as the end of its input; the other direction continues for as long as
/// it takes. Writing after a shutdown fails. To know that the peer has read everything, let it answer, or end its own
/// direction: bytes that were written and flushed may still be on their way.
///
/// The stream lives beside its [`Session`](super::Session): keep the session for as long as the stream is used.
#[derive(Debug)]
pub struct SecureStream {
    tls: TlsStream<PathLeg>,
    learned: Learned,
    /// The initiator and the responder of the session.
    sides: [BareJid; 2],
    progress: Arc<Progress>,
    /// The application bytes that were written, and the acknowledged bytes of the handshake before them.
    written: u64,
    handshake: u64,
    /// Whether our `close_notify` is sent, or about to be.
    shut: bool,
    end: Option<ReadEnd>,
    /// When to check next that the other end is present, while the stream waits for the network.
    look: Pin<Box<Sleep>>,
    renewal: Renewal,
}

/// When to send a sign of life.
#[derive(Debug)]
struct Renewal {
    /// When the last one was sent.
    last: Option<Instant>,
    /// How many were sent since our last data.
    count: u32,
}

impl Renewal {
    /// Returns whether one is due on a stream that has been quiet since then; if so, counts it.
    fn is_due(&mut self, quiet_since: Option<Instant>, now: Instant) -> bool {
        let due = self.count < RENEWALS
            && quiet_since.max(self.last).is_some_and(|since| since + SILENCE <= now);
        if due {
            (self.last, self.count) = (Some(now), self.count + 1);
        }
        due
    }
}

/// The end of the peer's direction.
#[derive(Debug)]
enum ReadEnd {
    /// By its `close_notify`.
    Whole,
    /// In another way.
    Cut(io::ErrorKind, String),
}

impl SecureStream {
    pub(super) fn new(
        tls: TlsStream<PathLeg>,
        learned: Learned,
        sides: [BareJid; 2],
        progress: Arc<Progress>,
    ) -> Self {
        let look = Box::pin(tokio::time::sleep(LOOK));
        let handshake = tls.get_ref().0.delivered().unwrap_or(0);
        let renewal = Renewal { last: None, count: 0 };
        Self {
            tls,
            learned,
            sides,
            progress,
            written: 0,
            handshake,
            shut: false,
            end: None,
            look,
            renewal,
        }
    }

    /// Notes how many bytes of the application have arrived.
    fn note_delivered(&self) {
        let arrived = match self.tls.get_ref().0.delivered() {
            Some(acknowledged) => payload_of(acknowledged.saturating_sub(self.handshake)),
            None => self.written,
        };
        self.progress.delivered(arrived.min(self.written));
    }

    /// Returns what was learned of the peer.
    pub fn learned(&self) -> &Learned {
        &self.learned
    }

    /// Returns the path layer below the stream, if there is one.
    pub(super) fn paths(&self) -> Option<Paths> {
        self.tls.get_ref().0.paths()
    }

    /// Returns the user at the other end.
    pub fn peer(&self) -> &BareJid {
        &self.learned.peer
    }

    /// Returns key material that only the two ends can compute (RFC 8446, 7.5; for channel binding, RFC 9266).
    ///
    /// `length` is in bytes.
    ///
    /// # Errors
    /// [`Error::Failed`] if TLS does not support this length.
    pub fn export_keying_material(
        &self,
        label: &[u8],
        context: Option<&[u8]>,
        length: usize,
    ) -> Result<Vec<u8>, Error> {
        let output = vec![0; length];
        let exported = match &self.tls {
            TlsStream::Client(tls) => {
                tls.get_ref().1.export_keying_material(output, label, context)
            }
            TlsStream::Server(tls) => {
                tls.get_ref().1.export_keying_material(output, label, context)
            }
        };
        exported.map_err(|error| Error::failed(Detail::of(error)))
    }

    /// Returns the prints by which others may name the key that the peer has shown.
    pub fn forms(&self) -> Vec<Print> {
        let certificate = self.tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let certificate = certificate.map(AsRef::as_ref).unwrap_or_default();
        Print::forms(self.learned.method, &self.learned.print, certificate)
    }

    /// Returns whether both ends have agreed on [`CHUNKS`].
    pub fn is_chunked(&self) -> bool {
        self.tls.get_ref().1.alpn_protocol() == Some(CHUNKS)
    }

    /// Returns a view of the stream for other tasks.
    pub fn monitor(&self) -> Monitor {
        Monitor(Arc::clone(&self.progress))
    }

    /// Returns a channel with the path that this side's bytes take. It does not change if the session has not agreed on
    /// direct paths.
    pub fn path(&self) -> watch::Receiver<Path> {
        match self.tls.get_ref().0.paths() {
            Some(paths) => paths.path(),
            None => watch::channel(self.tls.get_ref().0.only_path()).1,
        }
    }

    /// Returns the user who started the session.
    pub fn initiator(&self) -> &BareJid {
        &self.sides[0]
    }

    /// Returns twelve digits that both users see only if nobody is between them. They read them to each other, together
    /// with the name of the initiator. Takes about a third of a second, on purpose. The future does not borrow the stream,
    /// which can be read and written meanwhile.
    ///
    /// # Errors
    /// [`Error::Failed`] if TLS exports no key material.
    pub fn short_authentication_string(
        &self,
    ) -> impl Future<Output = Result<String, Error>> + use<> {
        let [initiator, responder] = &self.sides;
        let digits = sas::of(&self.tls, initiator, responder);
        async move { Ok(digits.await?) }
    }

    /// Notes that the stream's user waits for the network; returns an error if the other end has vanished.
    fn poll_waiting(&mut self, direction: Direction, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.progress.waits(direction);
        self.note_delivered();
        while self.look.as_mut().poll(cx).is_ready() {
            if self.tls.get_ref().0.is_gone() {
                let error = io::Error::new(io::ErrorKind::TimedOut, VANISHED);
                return Poll::Ready(Err(self.cut(&error)));
            }
            let now = Instant::now();
            if !self.shut
                && self.renewal.is_due(self.progress.quiet_since(), now)
                && self.renew().is_ok()
            {
                // A message without room now goes out with the next write.
                let _ = Pin::new(&mut self.tls).poll_flush(cx);
            }
            self.look.as_mut().reset(Instant::now() + LOOK);
        }
        Poll::Pending
    }

    /// Switches to a new traffic key, and requests one from the peer, which it sends with its next write.
    fn renew(&mut self) -> Result<(), rustls::Error> {
        match &mut self.tls {
            TlsStream::Client(tls) => tls.get_mut().1.refresh_traffic_keys(),
            TlsStream::Server(tls) => tls.get_mut().1.refresh_traffic_keys(),
        }
    }

    /// Notes that the peer's direction broke; returns the error.
    fn cut(&mut self, error: &io::Error) -> io::Error {
        let received = self.progress.received();
        let text = match error.kind() {
            io::ErrorKind::UnexpectedEof => format!(
                "the stream was cut off after {received} bytes: it ended without the peer's close_notify"
            ),
            _ => format!("the stream broke after {received} bytes: {error}"),
        };
        self.progress.ended();
        self.end = Some(ReadEnd::Cut(error.kind(), text.clone()));
        io::Error::new(error.kind(), text)
    }

    /// Waits until the transport has ended in both directions, which it does when each side has the other's
    /// `close_notify`. Both sides must have shut down their direction before. This end is not authenticated and proves
    /// nothing.
    pub async fn finish(&mut self) {
        let _ = self.tls.shutdown().await;
        let leg = &mut self.tls.get_mut().0;
        while leg.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {}
    }
}

/// Returns the number of application bytes in so many bytes of TLS records, if these are full (RFC 8446, 5.2).
fn payload_of(records: u64) -> u64 {
    const PLAIN: u64 = 1 << 14;
    const OVERHEAD: u64 = 22;
    let rest = (records % (PLAIN + OVERHEAD)).saturating_sub(OVERHEAD);
    records / (PLAIN + OVERHEAD) * PLAIN + rest
}

impl AsyncRead for SecureStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match &this.end {
            Some(ReadEnd::Whole) => return Poll::Ready(Ok(())),
            Some(ReadEnd::Cut(kind, text)) => {
                return Poll::Ready(Err(io::Error::new(*kind, text.clone())));
            }
            None => {}
        }
        let before = buf.filled().len();
        match Pin::new(&mut this.tls).poll_read(cx, buf) {
            Poll::Pending => return this.poll_waiting(Direction::In, cx),
            Poll::Ready(Err(error)) => return Poll::Ready(Err(this.cut(&error))),
            Poll::Ready(Ok(())) => {}
        }
        match buf.filled().len() - before {
            0 if buf.remaining() == 0 => {}
            0 => {
                this.progress.ended();
                this.end = Some(ReadEnd::Whole);
                if this.shut {
                    // Both directions are done, so the transport may end too. If that takes a while, dropping it does
                    // it.
                    let _ = Pin::new(&mut this.tls).poll_shutdown(cx);
                }
            }
            read => this.progress.moved(Direction::In, read),
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SecureStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.shut {
            let text = "the stream was shut down for writing";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, text)));
        }
        let polled = Pin::new(&mut this.tls).poll_write(cx, buf);
        match &polled {
            Poll::Pending => return this.poll_waiting(Direction::Out, cx).map_ok(|()| 0),
            Poll::Ready(Ok(written)) => {
                this.renewal.count = 0;
                this.written += *written as u64;
                this.progress.moved(Direction::Out, *written);
                this.note_delivered();
            }
            Poll::Ready(Err(_)) => {}
        }
        polled
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.tls).poll_flush(cx);
        match &polled {
            Poll::Pending => return this.poll_waiting(Direction::Out, cx),
            Poll::Ready(_) => this.progress.moved(Direction::Out, 0),
        }
        polled
    }

    /// Ends our direction in TLS. The transport below stays open until the peer has ended its own: in-band bytestreams
    /// have no half-close, and middleboxes forget half-closed connections.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !std::mem::replace(&mut this.shut, true) {
            this.tls.get_mut().1.send_close_notify();
        }
        match this.end {
            Some(_) => Pin::new(&mut this.tls).poll_shutdown(cx),
            None => Pin::new(&mut this.tls).poll_flush(cx),
        }
    }
}

/// Two ends of a secured stream, without a server.
#[cfg(any(test, feature = "testing"))]
#[expect(clippy::unwrap_used, reason = "for tests")]
pub mod testing {
    use fingerpost_secure::{
        identity::Identity,
        stream::{self as tls, Protocol, Secured},
        verify::Expected,
    };
    use tokio::net::TcpStream;

    use super::*;
    use crate::transport::TcpLeg;

    pub(super) fn plain(socket: TcpStream) -> PathLeg {
        PathLeg::Plain(TcpLeg::Socket(socket))
    }

    /// Returns the two ends of a stream over two connections: the initiator's and the responder's.
    pub async fn secured(
        [a, b]: [TcpStream; 2],
        protocols: [Option<Protocol>; 2],
    ) -> [SecureStream; 2] {
        let own = || Identity::anonymous().unwrap();
        let (own, other) = (own(), own());
        let (a, b) = tokio::join!(
            tls::connect_for(plain(a), &own, Expected::Anyone, protocols[0]),
            tls::accept_for(plain(b), &other, Expected::Anyone, protocols[1])
        );
        [secure(a.unwrap()), secure(b.unwrap())]
    }

    pub(super) fn secure((tls, secured): (TlsStream<PathLeg>, Secured)) -> SecureStream {
        let peer = BareJid::new("bob@example.org").unwrap();
        let learned = Learned {
            peer: peer.clone(),
            address: peer.clone().into(),
            method: Method::X509,
            print: secured.peer,
            hints: Vec::new(),
            standing: Standing::NoRegistry,
            listed: None,
            known: Known::Same,
            tls_version: secured.version,
            key_exchange: secured.key_exchange,
            transport: TransportKind::S5b,
        };
        SecureStream::new(tls, learned, [peer.clone(), peer], Arc::default())
    }
}

#[cfg(test)]
mod tests {
    use fingerpost_secure::{identity::Identity, stream as tls, verify::Expected};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_stream_can_move_to_another_task() {
        fn check<T: AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static>() {}
        check::<SecureStream>();
    }

    async fn pair() -> (SecureStream, SecureStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connect = TcpStream::connect(listener.local_addr().unwrap());
        let (a, b) = tokio::join!(connect, listener.accept());
        testing::secured([a.unwrap(), b.unwrap().0], [None, None]).await.into()
    }

    #[tokio::test]
    async fn a_stream_that_is_cut_is_an_error_for_ever_and_says_what_has_arrived() {
        let (mut alice, mut bob) = pair().await;
        alice.write_all(b"hello").await.unwrap();
        alice.flush().await.unwrap();
        // The carrier of the stream ends it.
        alice.tls.get_mut().0.shutdown().await.unwrap();
        let mut got = Vec::new();
        for _ in 0..3 {
            let error = bob.read_to_end(&mut got).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            assert!(error.to_string().contains("after 5 bytes"), "{error}");
        }
        assert_eq!(got, b"hello");
    }

    #[test]
    fn records_are_counted_without_their_overhead() {
        for (payload, records) in [(0, 0), (1, 1), (16_384, 1), (16_385, 2), (10 << 20, 640)] {
            assert_eq!(payload_of(payload + 22 * records), payload);
        }
        assert_eq!((payload_of(5), payload_of(22)), (0, 0));
    }

    #[tokio::test]
    async fn what_has_arrived_is_told_apart_from_what_was_written() {
        let (mut alice, mut bob) = pair().await;
        let monitor = Monitor(Arc::clone(&alice.progress));
        alice.write_all(&[7; 300_000]).await.unwrap();
        alice.flush().await.unwrap();
        let mut got = vec![0; 300_000];
        bob.read_exact(&mut got).await.unwrap();
        bob.write_all(b"all").await.unwrap();
        bob.flush().await.unwrap();
        alice.read_exact(&mut got[..3]).await.unwrap();
        // Bob's answer acknowledges what came before it.
        while monitor.delivered() < 300_000 {
            let _ = futures::poll!(Box::pin(alice.read(&mut got[..1])));
            tokio::task::yield_now().await;
        }
        assert_eq!(monitor.delivered(), 300_000);
    }

    #[tokio::test]
    async fn an_end_is_one_direction_s_and_the_transport_outlives_it() {
        let (mut alice, mut bob) = pair().await;
        alice.write_all(b"hello").await.unwrap();
        alice.shutdown().await.unwrap();
        let refused = alice.write_all(b"more").await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::BrokenPipe);
        let mut got = String::new();
        bob.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "hello");
        // The transport below has not ended: a relay gets no signal to give up the other direction.
        let mut byte = [0];
        let open = futures::poll!(Box::pin(bob.tls.get_mut().0.read(&mut byte)));
        assert!(open.is_pending());
        bob.write_all(b"goodbye").await.unwrap();
        bob.shutdown().await.unwrap();
        let mut got = String::new();
        alice.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "goodbye");
        assert_eq!(alice.read(&mut byte).await.unwrap(), 0);
        // Now it has, from both sides.
        assert_eq!(bob.tls.get_mut().0.read(&mut byte).await.unwrap(), 0);
        assert_eq!(alice.tls.get_mut().0.read(&mut byte).await.unwrap(), 0);
    }

    #[test]
    fn a_quiet_stream_is_kept_alive_and_not_for_ever() {
        let begin = Instant::now();
        let mut renewal = Renewal { last: None, count: 0 };
        assert!(!renewal.is_due(None, begin + SILENCE), "its user is busy");
        assert!(!renewal.is_due(Some(begin), begin + SILENCE - LOOK));
        let mut at = begin;
        for _ in 0..RENEWALS {
            at += SILENCE;
            assert!(renewal.is_due(Some(begin), at));
            assert!(!renewal.is_due(Some(begin), at + LOOK), "once");
        }
        assert!(!renewal.is_due(Some(begin), at + SILENCE), "the peer would take it for an attack");
        renewal.count = 0;
        assert!(renewal.is_due(Some(begin), at + SILENCE));
    }

    #[tokio::test]
    async fn a_sign_of_life_is_no_content() {
        let (mut alice, mut bob) = pair().await;
        for _ in 0..RENEWALS {
            alice.renew().unwrap();
            alice.flush().await.unwrap();
            let mut byte = [0];
            assert!(futures::poll!(Box::pin(bob.read(&mut byte))).is_pending());
        }
        alice.write_all(b"hello").await.unwrap();
        alice.shutdown().await.unwrap();
        let mut got = String::new();
        bob.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "hello");
        // The peer's own keys are new now.
        bob.write_all(b"goodbye").await.unwrap();
        bob.shutdown().await.unwrap();
        got.clear();
        alice.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "goodbye");
    }

    /// The most signs of life in a row do not end a stream to OpenSSL.
    #[tokio::test]
    async fn openssl_takes_our_signs_of_life() {
        use std::{
            io::{BufRead, BufReader},
            process::{Child, Command, Stdio},
        };

        struct Server(Child);
        impl Drop for Server {
            fn drop(&mut self) {
                let _ended = self.0.kill();
                let _status = self.0.wait();
            }
        }
        let directory = tempfile::tempdir().unwrap();
        let mut made = Command::new("openssl");
        made.args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ])
        .args(["-subj", "/CN=bob", "-keyout", "key", "-out", "cert"])
        .current_dir(&directory);
        assert!(made.output().unwrap().status.success());
        // It prints its input until its own standard input ends.
        let mut serve = Command::new("openssl");
        serve
            .args(["s_server", "-accept", "127.0.0.1:0", "-tls1_3", "-key", "key", "-cert", "cert"])
            .current_dir(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut server = Server(serve.spawn().unwrap());
        let printed = BufReader::new(server.0.stdout.take().unwrap());
        let mut lines = printed.lines().map_while(Result::ok);
        let address =
            lines.find_map(|line| line.strip_prefix("ACCEPT ").map(str::to_owned)).unwrap();
        let leg = testing::plain(TcpStream::connect(address).await.unwrap());
        let own = Identity::anonymous().unwrap();
        let secured = tls::connect(leg, &own, Expected::Anyone).await.unwrap();
        let mut alice = testing::secure(secured);
        for _ in 0..RENEWALS {
            alice.renew().unwrap();
            alice.flush().await.unwrap();
        }
        alice.write_all(b"hello\n").await.unwrap();
        alice.flush().await.unwrap();
        let told = lines.find(|line| line.contains("hello") || line.contains("ERROR"));
        assert_eq!(told.as_deref(), Some("hello"));
    }
}
