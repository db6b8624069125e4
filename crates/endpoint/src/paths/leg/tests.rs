use std::{sync::atomic::AtomicBool, time::Duration};

use aws_lc_rs::digest::{Context as Hash, SHA256};
use fingerpost_secure::{
    identity::Identity,
    stream::{self as tls, TlsStream},
    verify::Expected,
};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::*;
use crate::paths::records::Control;

/// How much a transfer moves, in bytes.
const ALL: usize = 64 << 20;

pub(in crate::paths) async fn pair() -> [TcpStream; 2] {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connect = TcpStream::connect(listener.local_addr().unwrap());
    let (a, b) = tokio::join!(connect, listener.accept());
    [a.unwrap(), b.unwrap().0]
}

/// Two ends of a TLS stream over paths.
pub(in crate::paths) struct Ends {
    pub(in crate::paths) streams: [TlsStream<PathLeg>; 2],
    pub(in crate::paths) paths: [Paths; 2],
}

pub(in crate::paths) async fn ends() -> Ends {
    let [a, b] = pair().await;
    let legs = [(a, true), (b, false)]
        .map(|(socket, chooses)| PathLeg::with_paths(TcpLeg::Socket(socket), chooses));
    let paths = [0, 1].map(|end| legs[end].paths().unwrap());
    let [a, b] = legs;
    let own = [Identity::anonymous().unwrap(), Identity::anonymous().unwrap()];
    let (a, b) = tokio::join!(
        tls::connect(a, &own[0], Expected::Anyone),
        tls::accept(b, &own[1], Expected::Anyone)
    );
    paths.iter().for_each(Paths::open);
    Ends { streams: [a.unwrap().0, b.unwrap().0], paths }
}

/// How a direct connection ends.
#[derive(Clone, Copy, Debug)]
enum Break {
    Reset,
    Close,
    Silence,
    /// Somebody who carries it says that the stream ends at byte 0, and has what it has not.
    Forgery,
}

/// A direct connection with somebody between its ends.
struct Middle {
    is_silent: Arc<AtomicBool>,
    forward: [JoinHandle<()>; 2],
    /// The sockets in the middle, to be ended.
    broken: [Arc<TcpStream>; 2],
}

impl Middle {
    fn cut(self, how: Break) {
        if matches!(how, Break::Silence) {
            self.is_silent.store(true, Ordering::SeqCst);
            return;
        }
        self.forward.iter().for_each(JoinHandle::abort);
        for socket in &self.broken {
            if matches!(how, Break::Forgery) {
                let mut records = Vec::new();
                Control::Ack(ALL as u64).put(&mut records);
                Control::End(0).put(&mut records);
                // Also as a frame with a tag of the wrong key.
                records.extend(DirectStream::first_frame(&records, true));
                // Nothing is read here any more, so there is room unless the other end is as slow.
                while !records.is_empty() {
                    match socket.try_write(&records) {
                        Ok(written) => drop(records.drain(..written)),
                        Err(_) => break,
                    }
                }
            }
            let linger = matches!(how, Break::Reset).then_some(Duration::ZERO);
            socket2::SockRef::from(&**socket).set_linger(linger).unwrap();
        }
    }
}

/// Forwards bytes one by one piece, until it falls silent: it goes on reading then, and writes nothing.
async fn forward(from: Arc<TcpStream>, to: Arc<TcpStream>, is_silent: Arc<AtomicBool>) {
    let mut bytes = vec![0; 20_000];
    loop {
        from.readable().await.unwrap();
        let read = match from.try_read(&mut bytes) {
            Ok(0) => return,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => return,
        };
        let mut rest = &bytes[..read];
        while !rest.is_empty() && !is_silent.load(Ordering::SeqCst) {
            to.writable().await.unwrap();
            match to.try_write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }
}

impl Ends {
    /// Moves the stream to a direct connection, as the two ends' tasks do.
    async fn move_to_direct(paths: &[Paths; 2]) -> Middle {
        let ([a, in_a], [b, in_b]) = (pair().await, pair().await);
        let broken = [Arc::new(in_a), Arc::new(in_b)];
        let is_silent = Arc::new(AtomicBool::new(false));
        let forward = [(0, 1), (1, 0)].map(|(from, to)| {
            let (from, to) = (Arc::clone(&broken[from]), Arc::clone(&broken[to]));
            tokio::spawn(forward(from, to, Arc::clone(&is_silent)))
        });
        let address = a.peer_addr().unwrap();
        let [a, mut b] =
            [(a, true), (b, false)].map(|(end, first)| DirectStream::played(end, first));
        assert!(paths[0].choose(a, address));
        let number = taken(&mut b).await.unwrap().unwrap();
        assert!(paths[1].follow(number, b, address));
        for path in paths {
            path.path().wait_for(|path| *path != Path::Relay).await.unwrap();
        }
        Middle { is_silent, forward, broken }
    }
}

/// Returns `length` bytes from an offset on that do not repeat soon.
fn content(offset: usize, length: usize) -> Vec<u8> {
    let mut state = 1 + offset as u64;
    (0..length.div_ceil(8))
        .flat_map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_le_bytes()
        })
        .take(length)
        .collect()
}

async fn write(mut stream: TlsStream<PathLeg>, all: usize) -> (TlsStream<PathLeg>, Vec<u8>) {
    let (mut hash, mut offset) = (Hash::new(&SHA256), 0);
    while offset < all {
        let bytes = content(offset, 100_000.min(all - offset));
        hash.update(&bytes);
        stream.write_all(&bytes).await.unwrap();
        offset += bytes.len();
    }
    stream.shutdown().await.unwrap();
    (stream, hash.finish().as_ref().to_vec())
}

async fn read(stream: &mut TlsStream<PathLeg>) -> (usize, Vec<u8>) {
    let (mut hash, mut all, mut bytes) = (Hash::new(&SHA256), 0, vec![0; 50_000]);
    loop {
        match stream.read(&mut bytes).await.unwrap() {
            0 => return (all, hash.finish().as_ref().to_vec()),
            read => {
                hash.update(&bytes[..read]);
                all += read;
            }
        }
    }
}

/// Moves bytes in both directions, moves to a direct connection on the way, and breaks that further on.
async fn transfer(how: Break) {
    let Ends { streams: [a, mut b], paths } = ends().await;
    let writing = tokio::spawn(write(a, ALL));
    let arrived = |least: u64| {
        let paths = paths.clone();
        async move {
            while paths[0].shared.lock().machine.acknowledged() < least {
                tokio::task::yield_now().await;
            }
        }
    };
    let breaking = async {
        arrived(ALL as u64 / 4).await;
        let middle = Ends::move_to_direct(&paths).await;
        arrived(ALL as u64 / 2).await;
        if matches!(how, Break::Silence) {
            // From here on nothing but time moves the stream.
            tokio::time::pause();
        }
        middle.cut(how);
        for path in &paths {
            path.path().wait_for(|path| *path == Path::Relay).await.unwrap();
        }
        if matches!(how, Break::Silence) {
            tokio::time::resume();
        }
    };
    let ((all, hash), ()) = tokio::join!(read(&mut b), breaking);
    b.shutdown().await.unwrap();
    let (mut a, wanted) = writing.await.unwrap();
    assert_eq!((all, hash), (ALL, wanted));
    assert_eq!(a.read(&mut [0]).await.unwrap(), 0);
    let [relay, direct] = paths[0].carried();
    assert!(direct > 1 << 20 && relay > ALL as u64 / 4, "{relay} {direct}");
    drop((a, b));
    // The connections end in order, and the tasks with them.
    for path in &paths {
        path.over().cancelled().await;
    }
}

#[tokio::test]
async fn a_transfer_moves_to_a_direct_connection_and_back_when_that_is_reset() {
    transfer(Break::Reset).await;
}

#[tokio::test]
async fn a_transfer_goes_on_when_its_direct_connection_is_closed() {
    transfer(Break::Close).await;
}

#[tokio::test]
async fn a_transfer_goes_on_when_its_direct_connection_falls_silent() {
    transfer(Break::Silence).await;
}

#[tokio::test]
async fn a_transfer_goes_on_when_somebody_else_speaks_on_its_direct_connection() {
    transfer(Break::Forgery).await;
}

#[tokio::test]
async fn an_end_of_the_last_connection_is_named_to_a_writer() {
    let [socket, other] = pair().await;
    let mut leg = PathLeg::with_paths(TcpLeg::Socket(socket), true);
    let paths = leg.paths().unwrap();
    drop(other);
    paths.over().cancelled().await;
    let error = leg.write_all(&[22, 3, 3, 0, 1, 0]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    assert!(error.to_string().contains("the other end closed its connection"), "{error}");
}

/// A process that was stopped for a while finds the peer's answer and its own deadline at the same time.
#[tokio::test]
async fn what_has_come_in_time_counts_although_it_is_read_late() {
    let [relay, _relay] = pair().await;
    let leg = PathLeg::with_paths(TcpLeg::Socket(relay), true);
    let paths = leg.paths().unwrap();
    let [direct, peer] = pair().await;
    let address = direct.peer_addr().unwrap();
    let mut peer = peer.into_std().unwrap();
    let let_others_run = async || {
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
    };
    let_others_run().await;
    tokio::time::pause();
    assert!(paths.choose(DirectStream::played(direct, true), address));
    let_others_run().await;
    let mut pong = Vec::new();
    Control::Pong(0).put(&mut pong);
    let frame = DirectStream::first_frame(&pong, false);
    std::io::Write::write_all(&mut peer, &frame).unwrap();
    tokio::time::advance(Duration::from_secs(2)).await;
    let_others_run().await;
    assert!(paths.has_answer());
    assert_eq!(*paths.path().borrow(), Path::Direct(address));
}
