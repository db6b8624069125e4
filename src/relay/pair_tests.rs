use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use fingerpost_carry::tcp;
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::*;
use crate::relay::{
    join, pipe::StreamOutcome, plane::Plane, socket::SocketLeg, splice::PipePool,
    watch::StreamProgress,
};

const HELLO: [u8; 12] = [0x16, 3, 1, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 3, 3, 7];

/// Returns both ends of a real TCP connection.
async fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let (theirs, ours) = tokio::join!(TcpStream::connect(address), listener.accept());
    (theirs.unwrap(), ours.unwrap().0)
}

/// Returns the two users' ends of a running stream.
async fn start(
    plane: &Plane,
    options: StreamOptions,
) -> (TcpStream, TcpStream, JoinHandle<StreamOutcome>) {
    let (romeo, a) = connected().await;
    let (juliet, b) = connected().await;
    let plane = plane.clone();
    let join = async move {
        let [a, b] = [a, b].map(|stream| SocketLeg::Socket(Box::new(stream.into())));
        join::join(plane.clone(), a, b, options, StreamProgress::default()).await
    };
    (romeo, juliet, tokio::spawn(join))
}

/// Sends so many bytes and returns their hash.
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
    let (romeo, juliet, relay) = start(plane, StreamOptions::default()).await;
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
    assert_eq!(outcome, StreamOutcome { a_to_b, b_to_a, end: Ended::Eof });
    assert_eq!(plane.pipes().1, 0, "no pipe is borrowed now");
}

#[tokio::test(flavor = "multi_thread")]
async fn much_goes_whole_both_ways_through_pipes() {
    let plane = Plane::new(0);
    whole_both_ways(&plane).await;
    check_path(&plane, false);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_pipe_it_is_copied() {
    let plane = Plane::with_pool(0, PipePool::with_limit(0));
    whole_both_ways(&plane).await;
    check_path(&plane, true);
}

#[tokio::test]
async fn the_end_of_one_direction_leaves_the_other() {
    let plane = Plane::new(0);
    let (mut romeo, mut juliet, relay) = start(&plane, StreamOptions::default()).await;
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
    assert_eq!(relay.await.unwrap(), StreamOutcome { a_to_b: 4, b_to_a: 6, end: Ended::Eof });
}

#[tokio::test]
async fn a_reader_that_stops_holds_its_writer_and_an_idle_pair_holds_nothing() {
    let plane = Plane::new(0);
    let (mut romeo, mut juliet, relay) = start(&plane, StreamOptions::default()).await;
    let block = vec![7; 1 << 20];
    let mut sent = 0;
    while let Ok(written) = timeout(Duration::from_millis(300), romeo.write(&block)).await {
        sent += written.unwrap();
        assert!(sent < 64 << 20, "all of it is kept somewhere");
    }
    assert_eq!(plane.pipes().1, 1, "what is in flight is in one pipe");
    let mut rest = vec![0; sent];
    juliet.read_exact(&mut rest).await.unwrap();
    // An idle pair has no pipe.
    while plane.pipes().1 > 0 {
        sleep(Duration::from_millis(5)).await;
    }
    drop(romeo);
    drop(juliet);
    relay.await.unwrap();
}

/// Returns a plane that moves bytes through pipes, and one that copies them.
fn both() -> [Plane; 2] {
    [Plane::new(0), Plane::with_pool(0, PipePool::with_limit(0))]
}

/// Checks that a plane of [`both`] took the path that it is for.
fn check_path(plane: &Plane, copies: bool) {
    assert_eq!(plane.pipes_lent() == 0, copies, "the path under test was not taken");
    assert_eq!(plane.pipes().1, 0, "no pipe is borrowed now");
}

/// Returns a large pattern in which every offset can be told from its neighbours.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect()
}

/// Waits until the kernel has got an acknowledgement for everything that was written.
async fn acknowledged(stream: &TcpStream) {
    while !tcp::info(stream).unwrap().is_delivered() {
        sleep(Duration::from_millis(1)).await;
    }
}

fn resets(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

/// Reads until the end, and returns how it ended.
async fn rest(stream: &mut TcpStream) -> (Vec<u8>, Result<(), io::ErrorKind>) {
    let mut bytes = Vec::new();
    let end = stream.read_to_end(&mut bytes).await;
    (bytes, end.map(drop).map_err(|error| error.kind()))
}

/// Returns a stream whose second user has a small buffer and has read nothing that the first one sent.
async fn unread(plane: &Plane, bytes: &[u8]) -> (TcpStream, TcpStream, JoinHandle<StreamOutcome>) {
    let (mut romeo, juliet, relay) = start(plane, StreamOptions::default()).await;
    socket2::SockRef::from(&juliet).set_recv_buffer_size(16 * 1024).unwrap();
    romeo.write_all(bytes).await.unwrap();
    acknowledged(&romeo).await;
    (romeo, juliet, relay)
}

const UNREAD: usize = 3_000_000;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_arrives_after_its_sender_is_gone() {
    for (plane, copies) in both().into_iter().zip([false, true]) {
        let sent = pattern(UNREAD);
        let (romeo, mut juliet, relay) = unread(&plane, &sent).await;
        drop(romeo);
        // More than all buffers hold together, and never read: it has to be dropped, or she never reads.
        juliet.write_all(&vec![7; 32 << 20]).await.unwrap();
        let (got, end) = rest(&mut juliet).await;
        assert!(got == sent, "{} of {}", got.len(), sent.len());
        assert_eq!(end, Ok(()), "he had ended his stream");
        drop(juliet);
        assert_eq!(relay.await.unwrap().end, Ended::Error(io::ErrorKind::BrokenPipe));
        check_path(&plane, copies);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_closed_stream_is_whole_when_its_sender_breaks_later() {
    for (plane, copies) in both().into_iter().zip([false, true]) {
        let sent = pattern(UNREAD);
        let (mut romeo, mut juliet, relay) = unread(&plane, &sent).await;
        romeo.shutdown().await.unwrap();
        acknowledged(&romeo).await;
        juliet.write_all(b"first").await.unwrap();
        romeo.readable().await.unwrap();
        resets(romeo);
        juliet.write_all(&vec![7; 32 << 20]).await.unwrap();
        let (got, end) = rest(&mut juliet).await;
        assert!(got == sent, "{} of {}", got.len(), sent.len());
        assert_eq!(end, Ok(()));
        drop(juliet);
        assert!(matches!(relay.await.unwrap().end, Ended::Error(_)));
        check_path(&plane, copies);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_is_passed_on_after_what_was_acknowledged() {
    for (plane, copies) in both().into_iter().zip([false, true]) {
        for talks in [false, true] {
            let sent = pattern(UNREAD);
            let (romeo, mut juliet, relay) = unread(&plane, &sent).await;
            resets(romeo);
            if talks {
                juliet.write_all(&vec![7; 32 << 20]).await.unwrap();
            }
            let (got, end) = rest(&mut juliet).await;
            assert!(got == sent, "{} of {}", got.len(), sent.len());
            assert_eq!(end, Err(io::ErrorKind::ConnectionReset), "talks: {talks}");
            assert!(matches!(relay.await.unwrap().end, Ended::Error(_)));
        }
        check_path(&plane, copies);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_in_the_middle_cuts_nothing_that_was_acknowledged() {
    for (plane, copies) in both().into_iter().zip([false, true]) {
        // More than the buffers of two connections hold.
        let sent = pattern(64 << 20);
        let (mut romeo, mut juliet, relay) = start(&plane, StreamOptions::default()).await;
        // The acknowledgement of the connection's first, empty segment counts as one.
        let arrived =
            |romeo: &TcpStream| tcp::info(romeo).unwrap().acknowledged.saturating_sub(1) as usize;
        let mut written = 0;
        // Nothing reads, so the stream ends in full buffers.
        while written < sent.len() {
            match timeout(Duration::from_millis(300), romeo.write(&sent[written..])).await {
                Ok(more) => written += more.unwrap(),
                Err(_) if arrived(&romeo) > 0 => break,
                Err(_) => {}
            }
        }
        let acknowledged = arrived(&romeo);
        assert!(written < sent.len());
        resets(romeo);
        let (got, end) = rest(&mut juliet).await;
        assert!(got.len() >= acknowledged, "{} of {acknowledged}", got.len());
        assert!(got == sent[..got.len()]);
        assert_eq!(end, Err(io::ErrorKind::ConnectionReset));
        relay.await.unwrap();
        check_path(&plane, copies);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_leg_may_break_too() {
    for (plane, copies) in both().into_iter().zip([false, true]) {
        let sent = pattern(UNREAD);
        let (mut romeo, mut juliet, relay) = start(&plane, StreamOptions::default()).await;
        juliet.write_all(&sent).await.unwrap();
        acknowledged(&juliet).await;
        resets(juliet);
        romeo.write_all(&vec![7; 32 << 20]).await.unwrap();
        let (got, end) = rest(&mut romeo).await;
        assert!(got == sent, "{} of {}", got.len(), sent.len());
        assert_eq!(end, Err(io::ErrorKind::ConnectionReset));
        relay.await.unwrap();
        check_path(&plane, copies);
    }
}

#[tokio::test]
async fn a_peer_that_breaks_ends_the_other_at_once() {
    let plane = Plane::new(0);
    let (romeo, mut juliet, relay) = start(&plane, StreamOptions::default()).await;
    resets(romeo);
    let ended = timeout(Duration::from_secs(60), juliet.read(&mut [0; 8])).await.unwrap();
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(relay.await.unwrap().end, Ended::Error(io::ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_waited_for_within_bounds() {
    let plane = Plane::new(0);
    let idle_timeout = Duration::from_millis(300);
    let (mut romeo, juliet, relay) =
        start(&plane, StreamOptions { idle_timeout, ..StreamOptions::default() }).await;
    socket2::SockRef::from(&juliet).set_recv_buffer_size(16 * 1024).unwrap();
    romeo.write_all(&pattern(UNREAD)).await.unwrap();
    acknowledged(&romeo).await;
    resets(romeo);
    let outcome = timeout(Duration::from_secs(30), relay).await.unwrap().unwrap();
    assert_eq!(outcome.end, Ended::Error(io::ErrorKind::ConnectionReset));
    drop(juliet);
}

#[tokio::test]
async fn a_stream_that_is_cut_never_looks_complete() {
    let plane = Plane::new(0);
    let (mut romeo, mut juliet, relay) = start(&plane, StreamOptions::default()).await;
    romeo.write_all(b"part").await.unwrap();
    juliet.read_exact(&mut [0; 4]).await.unwrap();
    relay.abort();
    assert!(relay.await.unwrap_err().is_cancelled());
    for user in [&mut romeo, &mut juliet] {
        assert_eq!(rest(user).await, (Vec::new(), Err(io::ErrorKind::ConnectionReset)));
    }

    // A complete direction stays complete.
    let (mut romeo, mut juliet, relay) = start(&plane, StreamOptions::default()).await;
    romeo.write_all(b"whole").await.unwrap();
    romeo.shutdown().await.unwrap();
    let mut whole = [0; 5];
    juliet.read_exact(&mut whole).await.unwrap();
    assert_eq!(juliet.read(&mut [0]).await.unwrap(), 0);
    juliet.write_all(b"part").await.unwrap();
    romeo.read_exact(&mut [0; 4]).await.unwrap();
    relay.abort();
    assert!(relay.await.unwrap_err().is_cancelled());
    assert_eq!(rest(&mut juliet).await, (Vec::new(), Ok(())));
    assert_eq!(rest(&mut romeo).await, (Vec::new(), Err(io::ErrorKind::ConnectionReset)));
}

#[tokio::test]
async fn the_guard_holds_here_too() {
    let options =
        StreamOptions { guard: Some(FirstBytes::ClientHello), ..StreamOptions::default() };
    let plane = Plane::new(0);
    let (mut romeo, mut juliet, relay) = start(&plane, options).await;
    romeo.write_all(b"GET / HTTP/1.1").await.unwrap();
    assert_eq!(relay.await.unwrap(), StreamOutcome { a_to_b: 0, b_to_a: 0, end: Ended::NotTls });
    assert_eq!(juliet.read(&mut [0; 8]).await.unwrap_or(0), 0);

    let (mut romeo, mut juliet, relay) = start(&plane, options).await;
    juliet.write_all(b"banner").await.unwrap();
    // Each byte of the message is in a record of its own, and each byte of those in a segment.
    let mut bytes = Vec::new();
    for byte in &HELLO[5..] {
        bytes.extend([0x16, 3, 1, 0, 1, *byte]);
    }
    let mut relayed = vec![0; bytes.len()];
    let writes = async {
        for byte in &bytes {
            romeo.write_all(&[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    let (_, read) = tokio::join!(writes, juliet.read_exact(&mut relayed));
    read.unwrap();
    assert_eq!(relayed, bytes);
    let mut banner = [0; 6];
    romeo.read_exact(&mut banner).await.unwrap();
    drop((romeo, juliet));
    relay.await.unwrap();
}

#[tokio::test]
async fn who_says_nothing_is_idle() {
    let plane = Plane::new(0);
    let idle_timeout = Duration::from_millis(200);
    let (_romeo, _juliet, relay) =
        start(&plane, StreamOptions { idle_timeout, ..StreamOptions::default() }).await;
    let clock = plane.clone();
    let looks = tokio::spawn(async move {
        loop {
            sleep(Plane::pause(idle_timeout)).await;
            clock.look();
        }
    });
    let outcome = timeout(Duration::from_secs(60), relay).await.unwrap().unwrap();
    assert_eq!(outcome.end, Ended::Idle);
    looks.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_is_kept() {
    let plane = Plane::new(4 << 20);
    let (romeo, juliet, relay) = start(&plane, StreamOptions::default()).await;
    let begin = std::time::Instant::now();
    let (sent, received) =
        tokio::join!(tokio::spawn(send(romeo, 8 << 20)), tokio::spawn(receive(juliet)));
    assert_eq!(received.unwrap(), (8 << 20, sent.unwrap()));
    assert!(begin.elapsed() > Duration::from_millis(1500), "{:?}", begin.elapsed());
    relay.await.unwrap();
}

/// Measures what an idle pair costs in this process, besides its entry in the table.
#[test]
fn an_idle_stream_is_small() {
    assert!(size_of::<Pair>() <= 216, "{}", size_of::<Pair>());
}

/// Writes until nothing accepts more, and returns how much that was.
async fn stuff(stream: &mut TcpStream, bytes: &[u8]) -> usize {
    let mut written = 0;
    while let Ok(n) = timeout(Duration::from_millis(300), stream.write(&bytes[written..])).await {
        written += n.unwrap();
        assert!(written < bytes.len(), "all of it is kept somewhere");
    }
    written
}

#[tokio::test(flavor = "multi_thread")]
async fn pipes_are_taken_from_streams_that_do_not_move() {
    let plane = Plane::with_pool(0, PipePool::with_limit(2));
    let bytes = pattern(64 << 20);
    let mut still = Vec::new();
    for _ in 0..2 {
        let (mut romeo, juliet, relay) = start(&plane, StreamOptions::default()).await;
        let written = stuff(&mut romeo, &bytes).await;
        still.push((romeo, juliet, relay, written));
    }
    assert_eq!(plane.pipes(), (0, 2), "the readers that stand still hold both");
    // A look sees what moved before it, and no other stream needs the pipes.
    plane.look();
    plane.look();
    plane.settle();
    assert_eq!(plane.pipes(), (0, 2));

    let (mut romeo, mut juliet, relay) = start(&plane, StreamOptions::default()).await;
    let lent = plane.pipes_lent();
    let mut piece = vec![0; 1 << 20];
    let mut pieces = 0;
    while plane.pipes_lent() == lent {
        let (sent, got) =
            tokio::join!(romeo.write_all(&bytes[..1 << 20]), juliet.read_exact(&mut piece));
        sent.unwrap();
        got.unwrap();
        assert!(piece == bytes[..1 << 20]);
        pieces += 1;
        assert!(pieces < 10_000, "it is copied from now on");
        plane.look();
    }
    drop((romeo, juliet));
    relay.await.unwrap();
    // Nothing from the pipes was lost.
    for (romeo, mut juliet, relay, written) in still {
        drop(romeo);
        let (got, end) = rest(&mut juliet).await;
        assert!(got == bytes[..written], "{} of {written}", got.len());
        assert_eq!(end, Ok(()));
        drop(juliet);
        relay.await.unwrap();
    }
    assert_eq!(plane.pipes().1, 0);
}

#[test]
fn what_a_peer_can_bring_about_takes_no_pipes_from_others() {
    let plane = Plane::new(0);
    for code in [libc::EACCES, libc::EPERM, libc::EINVAL, libc::ECONNRESET] {
        assert!(!plane.resources().must_copy(&io::Error::from_raw_os_error(code)), "{code}");
    }
    let pool = &plane.resources().pool;
    let pipe = pool.take(PipeAccount::default());
    pool.give_back(PipeAccount::default(), pipe.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_where_splice_is_refused() {
    let plane = Plane::new(0);
    let (mut romeo, mut juliet, relay) = start(&plane, StreamOptions::default()).await;
    let bytes = pattern(8 << 20);
    let (sent, mut got) = (bytes.clone(), vec![0; bytes.len() / 2]);
    let writing = tokio::spawn(async move {
        romeo.write_all(&sent).await.unwrap();
    });
    juliet.read_exact(&mut got).await.unwrap();
    // In the middle of it the system begins to refuse.
    plane.resources().copy_only(&io::Error::from_raw_os_error(libc::EPERM));
    juliet.read_to_end(&mut got).await.unwrap();
    assert!(got == bytes);
    writing.await.unwrap();
    drop(juliet);
    relay.await.unwrap();
    assert_eq!(plane.pipes(), (0, 0));
}

#[tokio::test]
async fn a_thread_that_panics_cuts_its_streams_and_takes_no_more() {
    let plane = Plane::new(0);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(16);
    let mut streams = Vec::new();
    for _ in 0..cores {
        streams.push(start(&plane, StreamOptions::default()).await);
    }
    for (romeo, juliet, _) in &mut streams {
        romeo.write_all(b"x").await.unwrap();
        juliet.read_exact(&mut [0]).await.unwrap();
    }
    plane.break_threads();
    for (mut romeo, _juliet, relay) in streams {
        assert_eq!(rest(&mut romeo).await.1, Err(io::ErrorKind::ConnectionReset));
        assert_eq!(relay.await.unwrap().end, Ended::Error(io::ErrorKind::Other));
    }
    let (_romeo, _juliet, relay) = start(&plane, StreamOptions::default()).await;
    assert_eq!(relay.await.unwrap().end, Ended::Error(io::ErrorKind::Other));
    assert_eq!(plane.pipes().1, 0);
}
