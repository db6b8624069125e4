use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::*;
use crate::mediator::{leg::Leg, plane::Progress, splice::Pool};

const HELLO: [u8; 12] = [0x16, 3, 1, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 3, 3, 7];

/// Both ends of a real TCP connection.
async fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let (theirs, ours) = tokio::join!(TcpStream::connect(address), listener.accept());
    (theirs.unwrap(), ours.unwrap().0)
}

/// The two users' ends of a running stream.
async fn start(plane: &Plane, options: Options) -> (TcpStream, TcpStream, JoinHandle<Outcome>) {
    let (romeo, a) = connected().await;
    let (juliet, b) = connected().await;
    let plane = plane.clone();
    let join =
        async move { plane.join(Leg::from(a), Leg::from(b), options, &Progress::default()).await };
    (romeo, juliet, tokio::spawn(join))
}

/// Sends so many bytes and says what their hash is.
async fn send(mut to: impl AsyncWrite + Unpin, bytes: usize) -> Vec<u8> {
    let mut hash = Sha256::new();
    let mut block = vec![0; 300_000];
    let mut left = bytes;
    while left > 0 {
        let n = left.min(block.len());
        for (i, byte) in block.iter_mut().enumerate() {
            *byte = (i ^ left) as u8;
        }
        hash.update(&block[..n]);
        to.write_all(&block[..n]).await.unwrap();
        left -= n;
    }
    to.shutdown().await.unwrap();
    hash.finalize().to_vec()
}

async fn receive(mut from: impl AsyncRead + Unpin) -> (usize, Vec<u8>) {
    let (mut hash, mut count) = (Sha256::new(), 0);
    let mut block = vec![0; 100_000];
    loop {
        let n = from.read(&mut block).await.unwrap();
        if n == 0 {
            return (count, hash.finalize().to_vec());
        }
        count += n;
        hash.update(&block[..n]);
    }
}

async fn whole_both_ways(plane: &Plane) {
    let (romeo, juliet, relay) = start(plane, Options::default()).await;
    let (r_read, r_write) = romeo.into_split();
    let (j_read, j_write) = juliet.into_split();
    let (there, back) = (64 << 20, 7 << 20);
    let (sent, answered, arrived, returned) = tokio::join!(
        tokio::spawn(send(r_write, there)),
        tokio::spawn(send(j_write, back)),
        tokio::spawn(receive(j_read)),
        tokio::spawn(receive(r_read)),
    );
    assert_eq!(arrived.unwrap(), (there, sent.unwrap()));
    assert_eq!(returned.unwrap(), (back, answered.unwrap()));
    let outcome = relay.await.unwrap();
    let (a_to_b, b_to_a) = (there as u64, back as u64);
    assert_eq!(outcome, Outcome { a_to_b, b_to_a, end: Ended::Eof });
    assert_eq!(plane.pipes().1, 0, "no pipe is borrowed any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn much_goes_whole_both_ways_through_pipes() {
    let plane = Plane::new(0);
    whole_both_ways(&plane).await;
    assert!(plane.pipes().0 > 0, "pipes were used");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_pipe_it_is_copied() {
    whole_both_ways(&Plane::with_pool(0, Pool::with_limit(0))).await;
}

#[tokio::test]
async fn the_end_of_one_direction_leaves_the_other() {
    let plane = Plane::new(0);
    let (mut romeo, mut juliet, relay) = start(&plane, Options::default()).await;
    romeo.write_all(b"last").await.unwrap();
    romeo.shutdown().await.unwrap();
    let mut text = String::new();
    juliet.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "last");
    sleep(Duration::from_millis(50)).await;
    juliet.write_all(b"answer").await.unwrap();
    drop(juliet);
    text.clear();
    romeo.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "answer");
    assert_eq!(relay.await.unwrap(), Outcome { a_to_b: 4, b_to_a: 6, end: Ended::Eof });
}

#[tokio::test]
async fn a_reader_that_stops_holds_its_writer_and_an_idle_pair_holds_nothing() {
    let plane = Plane::new(0);
    let (mut romeo, mut juliet, relay) = start(&plane, Options::default()).await;
    let block = vec![7; 1 << 20];
    let mut sent = 0;
    while let Ok(written) = timeout(Duration::from_millis(300), romeo.write(&block)).await {
        sent += written.unwrap();
        assert!(sent < 64 << 20, "somebody keeps all of it");
    }
    assert_eq!(plane.pipes().1, 1, "what is in flight is in one pipe");
    let mut rest = vec![0; sent];
    juliet.read_exact(&mut rest).await.unwrap();
    sleep(Duration::from_millis(100)).await;
    assert_eq!(plane.pipes().1, 0, "an idle pair has none");
    drop(romeo);
    drop(juliet);
    relay.await.unwrap();
}

#[tokio::test]
async fn a_peer_that_breaks_ends_the_other_at_once() {
    let plane = Plane::new(0);
    let (romeo, mut juliet, relay) = start(&plane, Options::default()).await;
    socket2::SockRef::from(&romeo).set_linger(Some(Duration::ZERO)).unwrap();
    drop(romeo);
    let ended = timeout(Duration::from_secs(1), juliet.read(&mut [0; 8])).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)));
    drop(juliet);
    assert!(matches!(relay.await.unwrap().end, Ended::Error(_)));
}

#[tokio::test]
async fn the_guard_holds_here_too() {
    let options = Options { guard: true, ..Options::default() };
    let plane = Plane::new(0);
    let (mut romeo, mut juliet, relay) = start(&plane, options).await;
    romeo.write_all(b"GET / HTTP/1.1").await.unwrap();
    assert_eq!(relay.await.unwrap(), Outcome { a_to_b: 0, b_to_a: 0, end: Ended::NotTls });
    assert_eq!(juliet.read(&mut [0; 8]).await.unwrap_or(0), 0);

    let (mut romeo, mut juliet, relay) = start(&plane, options).await;
    juliet.write_all(b"banner").await.unwrap();
    for byte in HELLO {
        romeo.write_all(&[byte]).await.unwrap();
        sleep(Duration::from_millis(2)).await;
    }
    let mut hello = [0; HELLO.len()];
    juliet.read_exact(&mut hello).await.unwrap();
    assert_eq!(hello, HELLO);
    let mut banner = [0; 6];
    romeo.read_exact(&mut banner).await.unwrap();
    drop((romeo, juliet));
    relay.await.unwrap();
}

#[tokio::test]
async fn who_says_nothing_is_idle() {
    let plane = Plane::new(0);
    let idle_timeout = Duration::from_millis(200);
    let (_romeo, _juliet, relay) = start(&plane, Options { idle_timeout, guard: false }).await;
    let clock = plane.clone();
    let looks = tokio::spawn(async move {
        loop {
            sleep(Plane::pause(idle_timeout)).await;
            clock.look();
        }
    });
    let outcome = timeout(Duration::from_secs(5), relay).await.unwrap().unwrap();
    assert_eq!(outcome.end, Ended::Idle);
    looks.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_is_kept() {
    let plane = Plane::new(4 << 20);
    let (romeo, juliet, relay) = start(&plane, Options::default()).await;
    let begin = std::time::Instant::now();
    let (sent, received) =
        tokio::join!(tokio::spawn(send(romeo, 8 << 20)), tokio::spawn(receive(juliet)));
    assert_eq!(received.unwrap(), (8 << 20, sent.unwrap()));
    assert!(begin.elapsed() > Duration::from_millis(1500), "{:?}", begin.elapsed());
    relay.await.unwrap();
}

/// What an idle pair costs in this process, besides its task and its entry in the table.
#[test]
fn an_idle_stream_is_small() {
    assert!(size_of::<Relay>() <= 320, "{}", size_of::<Relay>());
    assert!(size_of::<Watch>() <= 96, "{}", size_of::<Watch>());
}
