use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::JoinHandle,
    time::sleep,
};

use super::*;

const HELLO: [u8; 12] = [0x16, 3, 1, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 3, 3, 7];

fn guarded() -> StreamOptions {
    StreamOptions { guard: Some(FirstBytes::ClientHello), ..StreamOptions::default() }
}

/// Returns the two users' ends of a running pipe.
fn start(
    options: StreamOptions,
    size: usize,
) -> (DuplexStream, DuplexStream, JoinHandle<StreamOutcome>) {
    let (romeo, a) = duplex(size);
    let (juliet, b) = duplex(size);
    (romeo, juliet, tokio::spawn(relay(a, b, options)))
}

#[tokio::test]
async fn half_close_carries_the_last_byte() {
    let (mut romeo, mut juliet, pipe) = start(StreamOptions::default(), 64);
    romeo.write_all(b"last").await.unwrap();
    romeo.shutdown().await.unwrap();
    let mut got = Vec::new();
    juliet.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"last");
    juliet.write_all(b"and the answer").await.unwrap();
    juliet.shutdown().await.unwrap();
    got.clear();
    romeo.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"and the answer");
    assert_eq!(pipe.await.unwrap(), StreamOutcome { a_to_b: 4, b_to_a: 14, end: Ended::Eof });
}

#[tokio::test]
async fn much_goes_both_ways_at_once() {
    let (romeo, juliet, pipe) = start(StreamOptions::default(), 1000);
    let data: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    let user = |end: DuplexStream| {
        let data = data.clone();
        tokio::spawn(async move {
            let (mut r, mut w) = tokio::io::split(end);
            let write = async {
                w.write_all(&data).await.unwrap();
                w.shutdown().await.unwrap();
            };
            let mut got = Vec::new();
            let (_, read) = tokio::join!(write, r.read_to_end(&mut got));
            read.unwrap();
            assert!(got == data);
        })
    };
    let (romeo, juliet) = (user(romeo), user(juliet));
    romeo.await.unwrap();
    juliet.await.unwrap();
    assert_eq!(pipe.await.unwrap().end, Ended::Eof);
}

#[tokio::test(start_paused = true)]
async fn a_pipe_in_which_nothing_moves_ends() {
    let idle_timeout = Duration::from_secs(600);
    let (mut romeo, mut juliet, pipe) =
        start(StreamOptions { idle_timeout, ..StreamOptions::default() }, 64);
    let begin = Instant::now();
    tokio::time::sleep(Duration::from_secs(500)).await;
    romeo.write_all(b"x").await.unwrap();
    assert_eq!(juliet.read_u8().await.unwrap(), b'x');
    assert_eq!(pipe.await.unwrap(), StreamOutcome { a_to_b: 1, b_to_a: 0, end: Ended::Idle });
    let lived = begin.elapsed();
    assert!(lived >= Duration::from_secs(1100) && lived <= Duration::from_secs(1250), "{lived:?}");
}

#[tokio::test(start_paused = true)]
async fn a_leg_that_takes_no_more_may_still_deliver() {
    let (romeo, a) = duplex(64);
    drop(romeo);
    let (mut juliet, b) = duplex(64);
    let last = late_reader(b"last words");
    let pipe = tokio::spawn(relay(tokio::io::join(last, a), b, StreamOptions::default()));
    juliet.write_all(b"lost").await.unwrap();
    let mut got = [0; 10];
    juliet.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"last words");
    drop(juliet);
    assert_eq!(pipe.await.unwrap().end, Ended::Error(io::ErrorKind::BrokenPipe));
}

/// Returns a reader that gives its bytes after a while, then ends.
fn late_reader(bytes: &'static [u8]) -> DuplexStream {
    let (mut writer, reader) = duplex(64);
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        writer.write_all(bytes).await.unwrap();
    });
    reader
}

#[tokio::test(start_paused = true)]
async fn not_one_byte_leaks_for_a_wrong_prefix() {
    // The bytes at 4, 7 and 8 may have any value as long as the length they belong to is plausible, and that at 2 any at all.
    for wrong in [0, 1, 3, 5, 6] {
        let mut bytes = HELLO.to_vec();
        bytes[wrong] = 0xff;
        let (mut romeo, a) = duplex(64);
        let (mut juliet, b) = duplex(64);
        juliet.write_all(b"banner").await.unwrap();
        let pipe = tokio::spawn(relay(a, b, guarded()));
        romeo.write_all(&bytes).await.unwrap();
        let outcome = pipe.await.unwrap();
        assert_eq!(
            outcome,
            StreamOutcome { a_to_b: 0, b_to_a: 0, end: Ended::NotTls },
            "byte {wrong}"
        );
        let mut got = Vec::new();
        juliet.read_to_end(&mut got).await.unwrap();
        romeo.read_to_end(&mut got).await.unwrap();
        assert!(got.is_empty(), "byte {wrong}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_hello_byte_by_byte_passes_whole() {
    let (mut romeo, a) = duplex(1);
    let (mut juliet, b) = duplex(64);
    juliet.write_all(b"banner").await.unwrap();
    let pipe = tokio::spawn(relay(a, b, guarded()));
    for byte in HELLO {
        romeo.write_all(&[byte]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut got = [0; 12];
    juliet.read_exact(&mut got).await.unwrap();
    assert_eq!(got, HELLO);
    let mut got = [0; 6];
    romeo.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"banner");
    drop((romeo, juliet));
    assert_eq!(pipe.await.unwrap().a_to_b, 12);
}

#[tokio::test(start_paused = true)]
async fn a_later_leg_begins_with_a_record_of_the_path_layer() {
    let later = StreamOptions { guard: Some(FirstBytes::PathUse), ..StreamOptions::default() };
    let record = [26, 3, 3, 0, 5, 8, 0x80, 0, 0, 0];
    let (mut romeo, mut juliet, _pipe) = start(later, 64);
    for byte in record {
        romeo.write_all(&[byte]).await.unwrap();
    }
    let mut got = [0; 10];
    juliet.read_exact(&mut got).await.unwrap();
    assert_eq!(got, record);
    for other in [&HELLO[..], b"GET / HTTP/1.1"] {
        let (mut romeo, _juliet, pipe) = start(later, 64);
        romeo.write_all(other).await.unwrap();
        assert_eq!(pipe.await.unwrap(), StreamOutcome { a_to_b: 0, b_to_a: 0, end: Ended::NotTls });
    }
}

#[tokio::test(start_paused = true)]
async fn a_hello_that_ends_early_is_no_hello() {
    let (mut romeo, juliet, pipe) = start(guarded(), 64);
    romeo.write_all(&HELLO[..5]).await.unwrap();
    drop(romeo);
    assert_eq!(pipe.await.unwrap(), StreamOutcome { a_to_b: 0, b_to_a: 0, end: Ended::NotTls });
    drop(juliet);
}

#[tokio::test(start_paused = true)]
async fn an_initiator_that_leaves_without_a_word_gets_none() {
    let (mut romeo, mut juliet, pipe) = start(guarded(), 64);
    juliet.write_all(b"banner").await.unwrap();
    romeo.shutdown().await.unwrap();
    assert_eq!(pipe.await.unwrap(), StreamOutcome { a_to_b: 0, b_to_a: 0, end: Ended::Eof });
    let mut got = Vec::new();
    romeo.read_to_end(&mut got).await.unwrap();
    assert!(got.is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_idle() {
    let (_romeo, _juliet, pipe) = start(guarded(), 64);
    assert_eq!(pipe.await.unwrap().end, Ended::Idle);
}

#[tokio::test(start_paused = true)]
async fn a_rate_is_kept_in_both_directions_together() {
    let (mut romeo, a) = duplex(1 << 20);
    let (mut juliet, b) = duplex(1 << 20);
    let progress = StreamProgress::default();
    let pipe = tokio::spawn(async move {
        relay_at_rate(a, b, StreamOptions::default(), 10_000, &progress).await
    });
    let begin = Instant::now();
    let send = async |end: &mut DuplexStream| end.write_all(&[7; 50_000]).await.unwrap();
    tokio::join!(send(&mut romeo), send(&mut juliet));
    let receive = async |end: &mut DuplexStream| end.read_exact(&mut [0; 50_000]).await.unwrap();
    tokio::join!(receive(&mut romeo), receive(&mut juliet));
    let took = begin.elapsed().as_secs_f64();
    assert!((9.0..11.0).contains(&took), "{took}");
    drop((romeo, juliet));
    pipe.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_the_guard_keeps_is_owed_to_no_reader() {
    let options = StreamOptions { idle_timeout: Duration::from_secs(600), ..guarded() };
    let (mut romeo, a) = duplex(64);
    let (_juliet, b) = duplex(8);
    let progress = Arc::<StreamProgress>::default();
    let watched = Arc::clone(&progress);
    let _pipe = tokio::spawn(async move { relay_at_rate(a, b, options, 0, &watched).await });
    romeo.write_all(&HELLO[..1]).await.unwrap();
    sleep(Duration::from_secs(60)).await;
    assert!(!progress.holds());
    // The rest of the message fills the small buffer of a reader that stands still.
    romeo.write_all(&HELLO[1..]).await.unwrap();
    sleep(Duration::from_secs(60)).await;
    assert_eq!((progress.bytes(), progress.holds()), (8, true));
}
