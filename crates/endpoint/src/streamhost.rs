//! A streamhost of our own: accepts the peer's SOCKS5 connection for one stream (XEP-0065, 5.3.2; RFC 1928).
//!
//! It exists only while a transport is negotiated, and only if the peer may learn this machine's addresses. It serves one
//! request: CONNECT without a login to the name that is the hash of the stream. Anyone who does not know the hash is
//! refused and learns nothing.

use std::{
    collections::VecDeque,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::{AbortHandle, Id, JoinSet},
    time::{sleep, timeout},
};

use super::socks5;

/// How long a client may take to ask for the stream.
const REQUEST: Duration = Duration::from_secs(10);
/// The most connections that have not asked yet. One more takes the place of the oldest, so nobody keeps the peer out.
const MOST_SILENT: usize = 16;
/// The most connections of the peer that wait for its choice. It may try several of our addresses.
const MOST_READY: usize = 4;
/// How long the connection that the peer says it uses may be under way.
const UNDER_WAY: Duration = Duration::from_secs(5);
/// How long accepting pauses after an error, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// What the streamhost answers in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The client asked for the stream.
    Serve,
    /// It asked for something else, or in another way. Nothing follows the answer.
    Refuse,
}

/// The server's side of SOCKS5 for one name, without I/O. It takes exactly the bytes that belong to the handshake, so
/// everything behind them is the stream's.
#[derive(Debug)]
struct Handshake<'a> {
    /// The names that stand for the stream.
    hashes: &'a [String],
    has_greeted: bool,
    taken: Vec<u8>,
}

impl<'a> Handshake<'a> {
    fn new(hashes: &'a [String]) -> Self {
        Self { hashes, has_greeted: false, taken: Vec::new() }
    }

    /// Returns how many bytes have to be read before anything can be answered: at least one until there is a verdict.
    fn missing(&self) -> usize {
        self.whole().saturating_sub(self.taken.len())
    }

    /// Returns the length of the current message, as far as that can be known.
    fn whole(&self) -> usize {
        match (self.has_greeted, self.taken.as_slice()) {
            (false, [_, methods, ..]) => 2 + usize::from(*methods),
            (false, _) => 2,
            // Version, CONNECT, reserved, a name, its length, the name, a port.
            (true, [_, 1, _, 3, length, ..]) => 5 + usize::from(*length) + 2,
            (true, _) => 5,
        }
    }

    /// Takes the bytes that were missing. Returns the answer to them, and the verdict if there is one.
    fn take(&mut self, bytes: &[u8]) -> (Vec<u8>, Option<Verdict>) {
        self.taken.extend_from_slice(bytes);
        let refuse = |code| (vec![5, code, 0, 1, 0, 0, 0, 0, 0, 0], Some(Verdict::Refuse));
        match (self.has_greeted, self.taken.as_slice()) {
            (_, [version, ..]) if *version != 5 => (Vec::new(), Some(Verdict::Refuse)),
            _ if self.missing() > 0 => (Vec::new(), None),
            (false, [_, _, methods @ ..]) if methods.contains(&0) => {
                (self.has_greeted, self.taken) = (true, Vec::new());
                (vec![5, 0], None)
            }
            // No acceptable method.
            (false, _) => (vec![5, 0xff], Some(Verdict::Refuse)),
            (true, [_, 1, _, 3, length, name @ ..]) => {
                let name = &name[..usize::from(*length)];
                if !self.hashes.iter().any(|hash| hash.as_bytes() == name) {
                    // Not allowed by the ruleset.
                    return refuse(2);
                }
                let mut reply = std::mem::take(&mut self.taken);
                (reply[1], reply[2]) = (0, 0);
                (reply, Some(Verdict::Serve))
            }
            // The type of the address, or the command, is not supported.
            (true, [_, 1, ..]) => refuse(8),
            (true, _) => refuse(7),
        }
    }
}

/// Speaks with a client until it has the stream.
///
/// # Errors
/// If it asks for anything else, or the connection breaks.
async fn serve(mut stream: TcpStream, hashes: &[String]) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    socks5::watch(&stream)?;
    let mut handshake = Handshake::new(hashes);
    // The longest name is 255 bytes long.
    let mut buffer = [0; 512];
    loop {
        let missing = handshake.missing();
        let bytes = &mut buffer[..missing];
        stream.read_exact(bytes).await?;
        let (answer, verdict) = handshake.take(bytes);
        stream.write_all(&answer).await?;
        match verdict {
            None => {}
            Some(Verdict::Serve) => return Ok(stream),
            Some(Verdict::Refuse) => {
                stream.shutdown().await?;
                return Err(io::Error::other("a client asked for another stream"));
            }
        }
    }
}

/// A listener for the connections of one stream. It closes when it is dropped.
#[derive(Debug)]
pub(super) struct Streamhost {
    port: u16,
    ready: mpsc::Receiver<TcpStream>,
    /// Ends the listener with this.
    _tasks: JoinSet<()>,
}

impl Streamhost {
    /// Listens for a stream that these names stand for, on a port that the kernel chooses, the same for both families.
    ///
    /// # Errors
    /// Those of listening.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub(super) fn open(hashes: Vec<String>) -> io::Result<Self> {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let listener = std::net::TcpListener::bind(any)
            // A machine without IPv6.
            .or_else(|_| std::net::TcpListener::bind(("0.0.0.0", 0)))?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let port = listener.local_addr()?.port();
        let (send, ready) = mpsc::channel(MOST_READY);
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, hashes, send));
        Ok(Self { port, ready, _tasks: tasks })
    }

    /// Returns the port to which the peer connects.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Returns the peer's connection to this address of ours, and ends listening. If all its connections came to other
    /// addresses, as behind a port forwarder, the last one is it.
    pub(super) async fn take(mut self, address: IpAddr) -> Option<TcpStream> {
        let mut last = None;
        let found = timeout(UNDER_WAY, async {
            // The peer speaks of a connection that was answered: it is here, or about to be.
            while let Some(stream) = self.ready.recv().await {
                let local = stream.local_addr().map(|local| local.ip().to_canonical());
                last = Some(stream);
                if local.is_ok_and(|local| local == address) {
                    break;
                }
            }
        });
        let _ = found.await;
        last
    }
}

/// Accepts connections, and passes on those that have asked for the stream.
async fn accept(listener: TcpListener, hashes: Vec<String>, ready: mpsc::Sender<TcpStream>) {
    let mut asking = JoinSet::new();
    let mut silent: VecDeque<(Id, AbortHandle)> = VecDeque::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else {
                    sleep(PAUSE).await;
                    continue;
                };
                if silent.len() >= MOST_SILENT
                    && let Some((_, oldest)) = silent.pop_front()
                {
                    oldest.abort();
                }
                let hashes = hashes.clone();
                let task = asking.spawn(async move {
                    timeout(REQUEST, serve(stream, &hashes)).await?
                });
                silent.push_back((task.id(), task));
            }
            Some(done) = asking.join_next_with_id() => {
                let id = match &done {
                    Ok((id, _)) => *id,
                    Err(error) => error.id(),
                };
                silent.retain(|(other, _)| *other != id);
                match done {
                    // If the peer makes more connections than it can use, the rest are closed.
                    Ok((_, Ok(stream))) => drop(ready.try_send(stream)),
                    Ok((_, Err(error))) => tracing::debug!(%error, "a connection was not the peer's"),
                    Err(_) => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "f1d2d2f924e986ac86fdf7b36c94bcdf32beec15";

    fn hashes() -> Vec<String> {
        vec![HASH.to_owned(), "e242ed3bffccdf271b7fbaf34ed72d089537b42f".to_owned()]
    }

    fn request(command: u8, kind: u8, name: &str) -> Vec<u8> {
        let mut request = vec![5, command, 0, kind, u8::try_from(name.len()).unwrap()];
        request.extend_from_slice(name.as_bytes());
        request.extend([0, 0]);
        request
    }

    /// Returns everything that is answered, the verdict, and how many bytes were taken, for a client that sends this.
    fn answers(bytes: &[u8]) -> (Vec<u8>, Option<Verdict>, usize) {
        let hashes = hashes();
        let mut handshake = Handshake::new(&hashes);
        let (mut said, mut at) = (Vec::new(), 0);
        loop {
            let missing = handshake.missing();
            assert!(missing > 0, "{bytes:?}");
            let Some(next) = bytes.get(at..at + missing) else { return (said, None, at) };
            at += missing;
            let (answer, verdict) = handshake.take(next);
            said.extend(answer);
            if verdict.is_some() {
                return (said, verdict, at);
            }
        }
    }

    #[test]
    fn the_hash_of_the_stream_is_served_and_what_follows_is_the_streams() {
        for hash in hashes() {
            for greeting in [&[5, 1, 0][..], &[5, 3, 2, 0, 1]] {
                let asked = request(1, 3, &hash);
                let mut sent = [greeting, &asked].concat();
                let handshake = sent.len();
                sent.extend(b"the stream");
                let mut reply = vec![5, 0];
                reply.extend(&asked);
                reply[3] = 0;
                assert_eq!(answers(&sent), (reply, Some(Verdict::Serve), handshake));
            }
        }
    }

    #[test]
    fn everything_else_is_refused_as_soon_as_it_is_known() {
        let refused = |code: u8| vec![5, 0, 5, code, 0, 1, 0, 0, 0, 0, 0, 0];
        let wrong = "0".repeat(40);
        for (asked, answer) in [
            (request(1, 3, &wrong), refused(2)),
            (request(1, 3, &HASH[1..]), refused(2)),
            (request(1, 3, &format!("{HASH}0")), refused(2)),
            (request(1, 3, &HASH.to_uppercase()), refused(2)),
            (request(1, 3, ""), refused(2)),
            (request(1, 3, &"a".repeat(255)), refused(2)),
            // BIND and UDP ASSOCIATE; IPv4 and IPv6.
            (request(2, 3, HASH), refused(7)),
            (request(3, 3, HASH), refused(7)),
            (request(1, 1, HASH), refused(8)),
            (request(1, 4, HASH), refused(8)),
            (vec![4, 1, 0, 3, 40], vec![5, 0]),
        ] {
            let (said, verdict, _) = answers(&[&[5, 1, 0][..], &asked].concat());
            assert_eq!((said, verdict), (answer, Some(Verdict::Refuse)), "{asked:?}");
        }
        for (greeting, answer) in [
            (&[5, 1, 2][..], &[5, 0xff][..]),
            (&[5, 0], &[5, 0xff]),
            (&[4, 1, 0], &[]),
            (b"GET / HTTP/1.1", &[]),
            (&[0x16, 3, 1, 0, 5], &[]),
        ] {
            let (said, verdict, _) = answers(greeting);
            assert_eq!((&*said, verdict), (answer, Some(Verdict::Refuse)), "{greeting:?}");
        }
    }

    async fn connect(port: u16) -> TcpStream {
        TcpStream::connect(("127.0.0.1", port)).await.unwrap()
    }

    #[tokio::test]
    async fn the_peer_gets_through_silent_strangers_and_the_port_closes_then() {
        let host = Streamhost::open(hashes()).unwrap();
        let port = host.port();
        let mut silent = Vec::new();
        for _ in 0..=MOST_SILENT {
            silent.push(connect(port).await);
        }
        // The oldest has made room, and none of them has learned anything.
        let mut byte = [0];
        assert_eq!(silent[0].read(&mut byte).await.unwrap_or(0), 0);
        let mut stranger = connect(port).await;
        stranger.write_all(&[&[5, 1, 0][..], &request(1, 3, "other")].concat()).await.unwrap();
        let mut said = Vec::new();
        stranger.read_to_end(&mut said).await.unwrap();
        assert_eq!(said[..4], [5, 0, 5, 2]);
        let mut peer = socks5::ask(connect(port).await, HASH).await.unwrap();
        let mut taken = host.take("127.0.0.1".parse().unwrap()).await.unwrap();
        peer.write_all(b"hello").await.unwrap();
        let mut got = [0; 5];
        taken.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"hello");
        assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
        assert_eq!(silent[5].read(&mut byte).await.unwrap_or(0), 0);
    }

    #[tokio::test]
    async fn of_several_connections_the_one_to_the_chosen_address_is_taken() {
        let host = Streamhost::open(hashes()).unwrap();
        let port = host.port();
        let first = TcpStream::connect(("127.0.0.2", port)).await.unwrap();
        let second = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let chosen = first.local_addr().unwrap();
        let _first = socks5::ask(first, HASH).await.unwrap();
        let _second = socks5::ask(second, HASH).await.unwrap();
        let taken = host.take("127.0.0.2".parse().unwrap()).await.unwrap();
        let peer = taken.peer_addr().unwrap();
        assert_eq!((peer.ip().to_canonical(), peer.port()), (chosen.ip(), chosen.port()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_never_comes_is_not_waited_for_long() {
        let host = Streamhost::open(hashes()).unwrap();
        assert!(host.take("127.0.0.1".parse().unwrap()).await.is_none());
    }
}
