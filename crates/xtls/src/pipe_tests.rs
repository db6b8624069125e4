use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use fingerpost_endpoint::{CHUNKS, testing};
use futures::future::join_all;
use tokio::{
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
};

use super::*;

/// The ends of a pipe without a command.
fn local<I, O>(
    input: I,
    terminal: bool,
    output: O,
) -> Local<I, O, std::future::Ready<Result<(), XtlsError>>> {
    Local { input, terminal, output, is_command: false, ended: ready(Ok(())) }
}

/// How long both sides must be silent until the attacker releases what it holds. A wrong guess only weakens an attack.
const SILENCE: Duration = Duration::from_millis(30);

/// The attacker's treatment of the TLS records.
#[derive(Clone, Copy, Debug)]
struct Attack {
    /// The side whose records are discarded: 0 is the caller, 1 the listener.
    cuts: usize,
    /// The number of them that pass first.
    after: usize,
    /// Whether those of the other side are held until both sides wait.
    holds: bool,
}

async fn connected() -> [TcpStream; 2] {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connect = TcpStream::connect(listener.local_addr().unwrap());
    let (a, b) = tokio::join!(connect, listener.accept());
    [a.unwrap(), b.unwrap().0]
}

/// Reads TLS records; sends an empty one for the end.
async fn records(side: usize, mut read: OwnedReadHalf, to: mpsc::Sender<(usize, Vec<u8>)>) {
    loop {
        let mut record = vec![0; 5];
        let whole = async {
            read.read_exact(&mut record).await?;
            let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
            record.resize(5 + length, 0);
            read.read_exact(&mut record[5..]).await
        };
        let over = whole.await.is_err();
        if over {
            record.clear();
        }
        if to.send((side, record)).await.is_err() || over {
            return;
        }
    }
}

/// Relays between two connections; attacks once it is told to.
async fn between(sides: [TcpStream; 2], attack: Option<Attack>, armed: Arc<AtomicBool>) {
    let (send, mut recv) = mpsc::channel(1);
    let mut writers = Vec::new();
    for (side, stream) in sides.into_iter().enumerate() {
        let (read, write) = stream.into_split();
        writers.push(write);
        tokio::spawn(records(side, read, send.clone()));
    }
    drop(send);
    async fn pass(to: &mut OwnedWriteHalf, record: &[u8]) {
        // The receiving side may have gone.
        let _ = if record.is_empty() { to.shutdown().await } else { to.write_all(record).await };
    }
    let (mut passed, mut kept, mut released) = (0, Vec::<Vec<u8>>::new(), false);
    loop {
        let quiet = async {
            match armed.load(Ordering::SeqCst) && attack.is_some() {
                true => sleep(SILENCE).await,
                false => std::future::pending().await,
            }
        };
        let (side, record) = tokio::select! {
            came = recv.recv() => match came {
                Some(came) => came,
                None => return,
            },
            () = quiet => match (attack, std::mem::replace(&mut released, true)) {
                (Some(attack), false) => {
                    for record in kept.drain(..) {
                        pass(&mut writers[attack.cuts], &record).await;
                    }
                    continue;
                }
                // A side that still waits has been cut off.
                _ => return,
            },
        };
        if let Some(attack) = attack.filter(|_| armed.load(Ordering::SeqCst)) {
            if side == attack.cuts {
                if passed >= attack.after {
                    continue;
                }
                passed += 1;
            } else if attack.holds && !released {
                kept.push(record);
                continue;
            }
        }
        pass(&mut writers[1 - side], &record).await;
    }
}

type Ended = (Result<Joined, XtlsError>, Vec<u8>);

async fn one(mut stream: SecureStream, side: PipeSide, says: &[u8]) -> Ended {
    let mut output = Vec::new();
    let ends = local(says, false, &mut output);
    let joined = join(&mut stream, side, ends).await;
    if joined == Ok(Joined::Whole) {
        stream.finish().await;
    }
    (joined, output)
}

/// Returns two pipes with an attacker between them.
async fn two(says: [&[u8]; 2], attack: Option<Attack>) -> [Ended; 2] {
    let ([a, near], [far, b]) = (connected().await, connected().await);
    let armed = Arc::<AtomicBool>::default();
    let attacker = tokio::spawn(between([near, far], attack, Arc::clone(&armed)));
    let [alice, bob] = testing::secured([a, b], [Some(CHUNKS); 2]).await;
    armed.store(true, Ordering::SeqCst);
    let alice = one(alice, PipeSide::Calls, says[0]);
    let bob = one(bob, PipeSide::Listens, says[1]);
    let (alice, bob) = tokio::join!(alice, bob);
    attacker.await.unwrap();
    [alice, bob]
}

fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n / 7 % 251) as u8).collect()
}

const CASES: [[usize; 2]; 6] =
    [[0, 0], [60_000, 0], [0, 60_000], [60_000, 30_000], [5, 60_000], [60_000, 5]];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_say_that_all_went_well_if_it_did() {
    for lengths in CASES {
        let [a, b] = lengths.map(content);
        let [alice, bob] = two([&a, &b], None).await;
        assert_eq!(alice, (Ok(Joined::Whole), b.clone()), "{lengths:?}");
        assert_eq!(bob, (Ok(Joined::Whole), a.clone()), "{lengths:?}");
    }
}

/// Wherever the stream is cut, whichever side talks, and however long the rest is held: no side reports success unless
/// everything has arrived, both ways.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_between_can_make_a_cut_stream_look_whole() {
    for lengths in CASES {
        let [a, b] = &lengths.map(content);
        let attacks = (0..8).flat_map(|after| {
            [(0, false), (0, true), (1, false), (1, true)].map(|(cuts, holds)| Attack {
                cuts,
                after,
                holds,
            })
        });
        let all = attacks.map(|attack| async move {
            let case = format!("{lengths:?}, {attack:?}");
            let [alice, bob] = two([a.as_slice(), b.as_slice()], Some(attack)).await;
            let (there, back) = (&bob.1 == a, &alice.1 == b);
            assert!(a.starts_with(&bob.1) && b.starts_with(&alice.1), "{case}");
            for (side, (joined, _)) in [("alice", &alice), ("bob", &bob)] {
                let whole = *joined == Ok(Joined::Whole);
                assert!(!whole || there && back, "{case}: {side} says {joined:?}");
            }
        });
        join_all(all).await;
    }
}

/// The end of a caller's content and its close_notify are separate: the answer may take its time.
#[tokio::test]
async fn a_direction_ends_alone() {
    let [alice, bob] = testing::secured(connected().await, [Some(CHUNKS); 2]).await;
    let (mut answer, input) = tokio::io::duplex(100);
    let (output, mut question) = tokio::io::duplex(100);
    let bob = async {
        let mut bob = bob;
        join(&mut bob, PipeSide::Listens, local(input, false, output)).await
    };
    let program = async {
        let mut asked = [0; 8];
        question.read_exact(&mut asked).await.unwrap();
        answer.write_all(&asked).await.unwrap();
        drop(answer);
        question
    };
    let ((alice, got), bob, _) =
        tokio::join!(one(alice, PipeSide::Calls, b"question"), bob, program);
    assert_eq!((alice, bob), (Ok(Joined::Whole), Ok(Joined::Whole)));
    assert_eq!(got, b"question");
}

/// At a terminal, Ctrl-D is not needed when the peer has sent everything.
#[tokio::test]
async fn the_peers_end_ends_the_pipe_of_a_person() {
    for protocol in [Some(CHUNKS), None] {
        let [alice, bob] = testing::secured(connected().await, [protocol; 2]).await;
        let (_keyboard, input) = tokio::io::duplex(100);
        let bob = async {
            let (mut bob, mut output) = (bob, Vec::new());
            let ends = local(input, true, &mut output);
            (join(&mut bob, PipeSide::Listens, ends).await, output)
        };
        let ((alice, _), bob) = tokio::join!(one(alice, PipeSide::Calls, b"hello"), bob);
        assert_eq!(alice, Ok(Joined::Whole), "{protocol:?}");
        assert_eq!(bob, (Ok(Joined::Whole), b"hello".to_vec()), "{protocol:?}");
    }
}

/// The end and the sign of life after it may be read together.
#[tokio::test]
async fn an_end_with_a_sign_of_life_behind_it_is_an_end() {
    let [mut alice, bob] = testing::secured(connected().await, [Some(CHUNKS); 2]).await;
    let (_keyboard, input) = tokio::io::duplex(100);
    let bob = async {
        let mut bob = bob;
        join(&mut bob, PipeSide::Listens, local(input, true, Vec::new())).await
    };
    let alice = async {
        alice.write_all(&[chunks::END, chunks::KEEP].concat()).await.unwrap();
        alice.flush().await.unwrap();
        let mut got = Vec::new();
        alice.read_to_end(&mut got).await.unwrap();
        alice.shutdown().await.unwrap();
        got
    };
    let (joined, got) = tokio::join!(bob, alice);
    assert_eq!((joined, got), (Ok(Joined::Whole), chunks::END.to_vec()));
}

/// A program that closes our output early gets no message, but the status shows whether the peer may lack something.
#[tokio::test]
async fn a_closed_output_confirms_nothing_that_was_said() {
    for (says, confirmed) in [(&b""[..], true), (b"hello", false)] {
        let [mut alice, bob] = testing::secured(connected().await, [Some(CHUNKS); 2]).await;
        alice.write_all(&[0, 1, b'x']).await.unwrap();
        alice.flush().await.unwrap();
        let (output, reader) = tokio::io::duplex(100);
        drop(reader);
        let mut bob = bob;
        let ends = local(says, false, output);
        let joined = join(&mut bob, PipeSide::Calls, ends).await;
        assert_eq!(joined, Ok(Joined::Unread { confirmed }), "{says:?}");
    }
}

/// The content of a cut stream is counted without the headers of its chunks.
#[tokio::test]
async fn a_cut_tells_how_much_of_the_content_came() {
    let [mut alice, bob] = testing::secured(connected().await, [Some(CHUNKS); 2]).await;
    alice.write_all(&[0, 3, b'o', b'n', b'e', 0, 9, b't']).await.unwrap();
    alice.flush().await.unwrap();
    drop(alice);
    let (joined, output) = one(bob, PipeSide::Listens, b"").await;
    assert_eq!(output, b"onet");
    let error = joined.unwrap_err();
    assert_eq!(error.code, 1);
    assert!(error.text.contains("after 4 bytes"), "{error}");
}

#[tokio::test]
async fn a_close_before_the_end_of_the_content_or_more_after_it_is_an_error() {
    for (bytes, what) in [
        (&[0, 3, b'o', b'n', b'e'][..], "closed it before the end"),
        (&[0, 3, b'o'], "closed it before the end"),
        (&[0], "closed it before the end"),
        (&[], "closed it before the end"),
        (&[0, 0, 0, 1, 7], "more after the end"),
        (&[0, 0, 7], "closed it before the end"),
    ] {
        let [mut alice, bob] = testing::secured(connected().await, [Some(CHUNKS); 2]).await;
        alice.write_all(bytes).await.unwrap();
        alice.shutdown().await.unwrap();
        let (joined, _) = one(bob, PipeSide::Listens, b"").await;
        let error = joined.unwrap_err();
        assert!(error.code == 1 && error.text.contains(what), "{bytes:?}: {error}");
    }
}

/// With a program that is not one of our pipes, its close_notify counts if it comes after our last byte.
#[tokio::test]
async fn another_program_confirms_by_its_close_notify_after_the_last_byte() {
    let [alice, mut other] = testing::secured(connected().await, [Some(CHUNKS), None]).await;
    assert!(!alice.is_chunked() && !other.is_chunked());
    let reads = async {
        let mut got = Vec::new();
        other.read_to_end(&mut got).await.unwrap();
        other.shutdown().await.unwrap();
        got
    };
    let ((joined, _), got) = tokio::join!(one(alice, PipeSide::Calls, b"hello"), reads);
    assert_eq!((joined, &got[..]), (Ok(Joined::Whole), &b"hello"[..]));

    // A side that closes first has confirmed nothing.
    let [alice, mut other] = testing::secured(connected().await, [Some(CHUNKS), None]).await;
    let (mut keyboard, input) = tokio::io::duplex(100);
    let monitor = alice.monitor();
    let alice = async {
        let (mut alice, output) = (alice, Vec::new());
        join(&mut alice, PipeSide::Calls, local(input, false, output)).await
    };
    let closes = async {
        other.write_all(b"bye").await.unwrap();
        other.shutdown().await.unwrap();
        while !monitor.has_ended() {
            tokio::task::yield_now().await;
        }
        let mut seen = Vec::new();
        keyboard.write_all(b"more").await.unwrap();
        drop(keyboard);
        other.read_to_end(&mut seen).await.unwrap();
        seen
    };
    let (joined, seen) = tokio::join!(alice, closes);
    assert_eq!((joined, &seen[..]), (Ok(Joined::Unconfirmed), &b"more"[..]));
}

/// The component ends streams on which nothing moves; a quiet pipe is not one of them, even after it has ended its
/// direction.
#[tokio::test]
async fn a_quiet_pipe_shows_that_it_is_there() {
    for (ends, expected) in [(false, [0xff; 6]), (true, [0, 0, 0xff, 0xff, 0xff, 0xff])] {
        let [mut alice, mut other] = testing::secured(connected().await, [Some(CHUNKS); 2]).await;
        tokio::time::pause();
        let (keyboard, input) = tokio::io::duplex(100);
        let _keyboard = (!ends).then_some(keyboard);
        let ends = local(input, false, Vec::new());
        let mut got = [0; 6];
        tokio::select! {
            joined = join(&mut alice, PipeSide::Calls, ends) => panic!("{joined:?}"),
            read = other.read_exact(&mut got) => assert_eq!(read.unwrap(), 6),
        }
        assert_eq!(got, expected);
        tokio::time::resume();
    }
}
