use base64::{Engine, engine::general_purpose::STANDARD};
use proptest::prelude::*;

use super::*;
use crate::ibb_window::{HEADER, LEAST, START};

fn machine(options: Options) -> (IbbMachine, Instant) {
    let now = Instant::now();
    let mut machine = IbbMachine::new(options, now);
    let block = usize::from(options.block_size) + HEADER;
    machine.window.set_size(usize::from(options.window) * block);
    (machine, now)
}

fn actions(machine: &mut IbbMachine) -> Vec<IbbAction> {
    std::iter::from_fn(|| machine.poll_action()).collect()
}

fn acks(machine: &mut IbbMachine) -> Vec<String> {
    actions(machine)
        .into_iter()
        .map(|action| match action {
            IbbAction::Ack { id } => id,
            other => panic!("{other:?}"),
        })
        .collect()
}

fn drain(machine: &mut IbbMachine) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let chunk = machine.chunk().to_vec();
        if chunk.is_empty() {
            return all;
        }
        machine.consume(chunk.len());
        all.extend(chunk);
    }
}

/// Returns the condition of the only refusal, which must be followed by a close.
fn refused(machine: &mut IbbMachine) -> Condition {
    match actions(machine).as_slice() {
        [IbbAction::Refuse { refusal, .. }, IbbAction::SendClose] => refusal.condition,
        other => panic!("{other:?}"),
    }
}

#[test]
fn seq_wraps_after_65535() {
    let (mut machine, now) = machine(Options::default());
    for round in 0..=65_536_u32 {
        assert_eq!(machine.write(b"x", now), 1);
        let expected = u16::try_from(round % 65_536).unwrap();
        assert_eq!(
            machine.poll_action(),
            Some(IbbAction::SendData { seq: expected, payload: b"x".to_vec() })
        );
        machine.handle_answer(expected, BlockAnswer::Taken, now);
        machine.handle_data(Some("i"), expected, "eA==", now);
        assert_eq!(machine.poll_action(), Some(IbbAction::Ack { id: "i".to_owned() }));
        machine.consume(1);
    }
    assert_eq!(machine.end(), None);
}

#[test]
fn a_gap_in_seq_ends_the_stream() {
    let (mut machine, now) = machine(Options::default());
    machine.handle_data(Some("a"), 0, "eA==", now);
    assert_eq!(acks(&mut machine), ["a"]);
    machine.handle_data(Some("b"), 2, "eQ==", now);
    assert_eq!(refused(&mut machine), Condition::UnexpectedRequest);
    assert_eq!(drain(&mut machine), b"x");
    assert_eq!(machine.end(), Some(Err(IbbError::Sequence)));
    assert_eq!(machine.write(b"x", now), 0);
}

#[test]
fn bad_data_ends_the_stream() {
    for text in ["eA=", "eA", "e A=", "e\nA==", "-_-_", "eA==eA==", "é"] {
        let (mut machine, now) = machine(Options::default());
        machine.handle_data(Some("a"), 0, text, now);
        let Some(IbbAction::Refuse { refusal, .. }) = machine.actions.front() else {
            panic!("{text}")
        };
        assert!(refusal.to_element().get_child("text", crate::ns::STANZA_ERRORS).is_some());
        assert_eq!(refused(&mut machine), Condition::BadRequest, "{text}");
        assert_eq!(machine.end(), Some(Err(IbbError::Malformed)));
    }
    let (mut machine, now) = machine(Options { block_size: 3, ..Options::default() });
    machine.handle_data(Some("a"), 0, "QUJD", now);
    assert_eq!(acks(&mut machine), ["a"]);
    machine.handle_data(Some("b"), 1, "QUJDRA==", now);
    assert_eq!(refused(&mut machine), Condition::BadRequest);
    assert_eq!(machine.end(), Some(Err(IbbError::TooLong)));
}

#[test]
fn white_space_around_the_data_is_taken() {
    for text in ["eA==\n", "\r\n  eA==\t\n", " eA== "] {
        let (mut machine, now) = machine(Options::default());
        machine.handle_data(Some("a"), 0, text, now);
        assert_eq!(acks(&mut machine), ["a"], "{text:?}");
        assert_eq!(drain(&mut machine), b"x");
    }
}

#[test]
fn a_block_that_comes_again_is_acknowledged_again_and_dropped() {
    let (mut machine, now) = machine(Options::default());
    let text = ["YQ==", "Yg==", "Yw=="];
    let mut next = 0_u16.wrapping_sub(2);
    (machine.next_in, machine.came) = (next, 0);
    for text in text {
        machine.handle_data(Some("new"), next, text, now);
        next = next.wrapping_add(1);
    }
    for back in 1..=3 {
        machine.handle_data(Some("again"), next.wrapping_sub(back), "Yg==", now);
    }
    machine.handle_data(None, next.wrapping_sub(1), "Yg==", now);
    assert_eq!(acks(&mut machine), ["new", "new", "new", "again", "again", "again"]);
    assert_eq!(drain(&mut machine), b"abc");
    machine.handle_data(Some("never came"), next.wrapping_sub(4), "Yg==", now);
    assert_eq!(refused(&mut machine), Condition::UnexpectedRequest);
}

#[test]
fn blocks_by_message_have_the_room_that_they_are_given() {
    let (mut machine, now) = machine(Options::default());
    let block = STANDARD.encode([7; 8192]);
    machine.set_room(1 << 20);
    let most = u16::try_from((1 << 20) / 8192).unwrap();
    for seq in 0..most {
        machine.handle_data(None, seq, &block, now);
    }
    assert_eq!((machine.held_bytes(), machine.end()), (usize::from(most) * 8192, None));
    machine.handle_data(None, most, &block, now);
    assert_eq!(machine.end(), Some(Err(IbbError::Overflow)));
    assert_eq!(drain(&mut machine).len(), usize::from(most) * 8192);
}

#[test]
fn the_window_bounds_unanswered_blocks() {
    let (mut machine, now) = machine(Options { window: 2, block_size: 4096, ..Options::default() });
    let block = [7; 4096];
    assert_eq!((machine.write(&block, now), machine.write(&block, now)), (4096, 4096));
    assert_eq!(machine.write(&block, now), 0);
    machine.handle_answer(0, BlockAnswer::Taken, now);
    assert!(!machine.is_flushed());
    assert_eq!(machine.write(&block, now), 4096);
    machine.handle_answer(7, BlockAnswer::Taken, now);
    assert_eq!(machine.delivered(), 4096, "there is no such block");
    // A peer takes blocks in order, so it has the earlier ones too.
    machine.handle_answer(2, BlockAnswer::Taken, now);
    assert!(machine.is_flushed());
    assert_eq!(machine.delivered(), 3 * 4096);
}

/// A path of two servers with a fake clock: a queue in front of the part that has the rate, and a delay.
struct Path {
    /// Bytes per second on the wire.
    rate: u64,
    /// The bytes that pass at once after a pause.
    burst: u64,
    delay: Duration,
    /// When the part with the rate has passed on everything that came.
    free: Instant,
}

/// What became of a stream over a path.
#[derive(Debug, Default)]
struct Passage {
    /// Bytes that arrived.
    arrived: usize,
    /// The longest time that the queue would have taken.
    queued: Duration,
    /// The largest and the last window, with headers.
    largest: usize,
    last: usize,
}

/// Sends over a path for a time; `wanted` says how many bytes the application has at a time.
fn pass(
    options: Options,
    path: &mut Path,
    ceiling: usize,
    time: Duration,
    wanted: impl Fn(Duration) -> usize,
) -> Passage {
    let begin = path.free;
    let (mut near, mut far) = (IbbMachine::new(options, begin), IbbMachine::new(options, begin));
    near.window.set_ceiling(ceiling);
    let (mut now, mut passage, mut written) = (begin, Passage::default(), 0_usize);
    let mut answers: VecDeque<(Instant, u16)> = VecDeque::new();
    let byte = |at: usize| (at % 251) as u8;
    while now < begin + time {
        let left = wanted(now - begin).saturating_sub(written);
        let most = if near.has_window() { usize::from(options.block_size) } else { 0 };
        let bytes: Vec<u8> = (written..written + left.min(most)).map(byte).collect();
        let n = near.write(&bytes, now);
        written += n;
        if let Some(IbbAction::SendData { seq, payload }) = near.poll_action() {
            let text = STANDARD.encode(payload);
            let burst = Duration::from_micros(path.burst * 1_000_000 / path.rate);
            let wire = text.len() as u64 + 250;
            path.free =
                path.free.max(now - burst) + Duration::from_micros(wire * 1_000_000 / path.rate);
            let queued = path.free.saturating_duration_since(now);
            passage.queued = passage.queued.max(queued);
            far.handle_data(Some("i"), seq, &text, now);
            for at in far.chunk() {
                assert_eq!(*at, byte(passage.arrived));
                passage.arrived += 1;
            }
            far.consume(usize::MAX);
            assert_eq!(acks(&mut far).len(), 1);
            answers.push_back((path.free.max(now) + 2 * path.delay, seq));
        }
        passage.largest = passage.largest.max(near.window.size());
        if n == 0 {
            // Nothing may go, or there is nothing: until the next answer, or for a moment.
            now = match answers.pop_front() {
                Some((at, seq)) => {
                    near.handle_answer(seq, BlockAnswer::Taken, at.max(now));
                    at.max(now)
                }
                None => now + Duration::from_millis(10),
            };
        }
    }
    passage.last = near.window.size();
    passage
}

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[test]
fn a_fast_path_with_long_round_trips_gets_a_large_window() {
    for (rate, least) in [(50_000_000, MOST), (1_000_000, 60_000)] {
        let mut path = Path { rate, burst: 0, delay: millis(50), free: Instant::now() };
        let passage = pass(Options::default(), &mut path, MOST, seconds(3), |_| usize::MAX);
        assert!((least..=MOST).contains(&passage.largest), "{rate}: {passage:?}");
        assert!(passage.queued < millis(700), "{rate}: {passage:?}");
    }
    // Nothing but the probes leaves the path idle.
    let mut path = Path { rate: 1_000_000, burst: 0, delay: millis(50), free: Instant::now() };
    let passage = pass(Options::default(), &mut path, MOST, seconds(30), |_| usize::MAX);
    assert!(passage.arrived > 750_000 * 30 / 10 * 8, "{passage:?}");
}

/// The limits of servers for their clients: Prosody's, which lets two seconds through at first, and ejabberd's.
#[test]
fn in_front_of_a_servers_limit_waits_no_more_than_two_seconds() {
    for (rate, burst) in
        [(10_000, 20_000), (10_000, 0), (3_000, 3_000), (3_000, 0), (30_000, 60_000)]
    {
        for delay in [0, 1, 50, 300] {
            for block_size in [4096, 65_535] {
                let options = Options { block_size, ..Options::default() };
                let mut path = Path { rate, burst, delay: millis(delay), free: Instant::now() };
                let passage = pass(options, &mut path, MOST, seconds(60), |_| usize::MAX);
                assert!(passage.queued <= seconds(2), "{rate} {delay} {block_size}: {passage:?}");
                // Shorter blocks cost a little more.
                let arrived = rate as usize * 60 / 4 * 3 / 2;
                assert!(passage.arrived > arrived, "{rate} {delay} {block_size}: {passage:?}");
            }
        }
    }
}

#[test]
fn the_window_does_not_grow_while_the_application_limits() {
    // One kilobyte in each tenth of a second.
    let wanted = |time: Duration| time.as_millis() as usize * 10;
    let mut path = Path { rate: 100_000_000, burst: 0, delay: millis(5), free: Instant::now() };
    let passage = pass(Options::default(), &mut path, MOST, seconds(60), wanted);
    assert_eq!((passage.largest, passage.last), (START, START), "{passage:?}");
    assert!(passage.arrived >= 590_000, "{passage:?}");
}

/// What was learned before a pause says nothing of the path after it.
#[test]
fn a_pause_makes_the_window_small_again() {
    let (mut machine, mut now) = machine(Options::default());
    machine.write(&[7; 8192], now);
    now += millis(10);
    machine.handle_answer(0, BlockAnswer::Taken, now);
    let size = machine.window.size();
    assert!(size > START);
    machine.write(&[7; 8192], now + seconds(9));
    machine.handle_answer(1, BlockAnswer::Taken, now + seconds(9) + millis(10));
    assert!(machine.window.size() >= size);
    machine.write(&[7; 8192], now + seconds(30));
    assert_eq!(machine.window.size(), START);
}

#[test]
fn others_may_make_the_window_smaller_but_one_block_always_goes() {
    let (mut machine, now) = machine(Options::default());
    machine.window.set_ceiling(0);
    let n = machine.write(&[7; 8192], now);
    assert!(n > 0 && n + HEADER <= LEAST, "{n}");
    assert_eq!(machine.write(&[7; 8192], now), 0);
    machine.handle_answer(0, BlockAnswer::Taken, now);
    assert_eq!(machine.write(&[7; 8192], now), n);
}

#[test]
fn a_block_holds_no_more_than_block_size() {
    let (mut machine, now) = machine(Options { block_size: 3, ..Options::default() });
    assert_eq!(machine.write(b"abcdef", now), 3);
    assert_eq!(actions(&mut machine), [IbbAction::SendData { seq: 0, payload: b"abc".to_vec() }]);
}

/// Returns the lengths of the blocks that are to be sent.
fn lengths(machine: &mut IbbMachine) -> Vec<usize> {
    let length = |action| match action {
        IbbAction::SendData { payload, .. } => payload.len(),
        other => panic!("{other:?}"),
    };
    actions(machine).into_iter().map(length).collect()
}

/// Returns a machine with a large window and blocks of 8,192 bytes, one of which is on its way.
fn busy() -> (IbbMachine, Instant) {
    let (mut machine, now) = machine(Options::default());
    machine.window.set_size(MAX_UNACKNOWLEDGED);
    assert_eq!(machine.write(&[7; 8192], now), 8192);
    assert_eq!(lengths(&mut machine), [8192]);
    (machine, now)
}

#[test]
fn writes_are_collected_to_whole_blocks_while_others_are_on_their_way() {
    let (mut machine, now) = busy();
    // A TLS record of 16,406 bytes is written twice.
    let mut sent = Vec::new();
    for _ in 0..2 {
        let mut rest = 16_406;
        while rest > 0 {
            rest -= machine.write(&vec![7; rest], now);
            sent.extend(lengths(&mut machine));
        }
    }
    assert_eq!(sent, [8192; 4], "44 bytes wait for the rest of their block");
    assert!(!machine.is_flushed());
    assert!(machine.flush(now));
    assert_eq!(lengths(&mut machine), [44]);
    assert!(machine.flush(now) && lengths(&mut machine).is_empty());
}

#[test]
fn what_was_collected_goes_when_everything_before_it_has_arrived() {
    let (mut machine, now) = busy();
    assert_eq!(machine.write(b"abc", now), 3);
    assert_eq!(machine.write(b"def", now), 3);
    assert!(lengths(&mut machine).is_empty());
    machine.handle_answer(0, BlockAnswer::Taken, now);
    let sent = IbbAction::SendData { seq: 1, payload: b"abcdef".to_vec() };
    assert_eq!(actions(&mut machine), [sent]);
    assert!(!machine.is_flushed());
    machine.handle_answer(1, BlockAnswer::Taken, now);
    assert!(machine.is_flushed());
    assert_eq!(machine.delivered(), 8192 + 6);
    // Nothing is on its way now, so nothing waits.
    assert_eq!(machine.write(b"ghi", now), 3);
    assert_eq!(lengths(&mut machine), [3]);
}

#[test]
fn what_was_collected_settles_a_doubt() {
    let (mut machine, now) = busy();
    assert_eq!(machine.write(&[7; 2 * TRIAL], now), 2 * TRIAL);
    machine.handle_answer(0, BlockAnswer::Undelivered, now);
    assert!(!machine.flush(now), "the peer may be absent");
    assert_eq!(actions(&mut machine), [IbbAction::Ping]);
    machine.handle_pong(Pong::Alive, now);
    assert_eq!(lengths(&mut machine), [TRIAL]);
    machine.handle_answer(1, BlockAnswer::Taken, now);
    assert_eq!(lengths(&mut machine), [TRIAL]);
}

#[test]
fn an_end_of_the_stream_waits_for_nothing_that_was_collected() {
    let (mut machine, now) = busy();
    machine.write(b"abc", now);
    machine.handle_close(Some("c"));
    assert!(machine.flush(now) && machine.is_flushed());
    let (mut machine, now) = busy();
    machine.write(b"abc", now);
    machine.shutdown(now);
    assert_eq!(lengths(&mut machine), [3]);
    let (mut machine, now) = busy();
    machine.write(b"abc", now);
    machine.abort(now);
    let sent = actions(&mut machine);
    assert!(
        matches!(&sent[..], [IbbAction::SendData { seq: 1, .. }, IbbAction::SendClose]),
        "{sent:?}"
    );
}

#[test]
fn an_ack_waits_for_the_reader() {
    let (mut machine, now) = machine(Options::default());
    let block = STANDARD.encode([7; 8192]);
    for seq in 0..8 {
        machine.handle_data(Some(&seq.to_string()), seq, &block, now);
    }
    assert_eq!(acks(&mut machine), ["0", "1"], "little that waits is acknowledged at once");
    for n in [8192, 8192, 8191] {
        machine.consume(n);
        assert_eq!(
            acks(&mut machine),
            Vec::<String>::new(),
            "two were, and the third is not read yet"
        );
    }
    machine.consume(1);
    assert_eq!(acks(&mut machine), ["2"]);
    assert_eq!(drain(&mut machine).len(), 5 * 8192);
    assert_eq!(acks(&mut machine), ["3", "4", "5", "6", "7"]);
}

#[test]
fn too_much_at_once_ends_the_stream() {
    let block = STANDARD.encode([7; 8192]);
    for id in [Some("x"), None] {
        let (mut machine, now) = machine(Options { room: 96 * 1024, ..Options::default() });
        for seq in 0..12 {
            machine.handle_data(id, seq, &block, now);
        }
        assert_eq!(machine.end(), None, "what is acknowledged at once and a whole window");
        actions(&mut machine);
        machine.handle_data(id, 12, &block, now);
        assert_eq!(machine.end(), Some(Err(IbbError::Overflow)));
        assert_eq!(actions(&mut machine).len(), 1 + usize::from(id.is_some()));
        assert_eq!(drain(&mut machine).len(), 12 * 8192, "what was there is still delivered");
    }
}

#[test]
fn a_window_is_as_many_bytes_as_the_other_side_holds() {
    for block_size in [1000, 4096, 8192, 40_000, 65_535] {
        let options = Options { block_size, window: u16::MAX, ..Options::default() };
        let (mut near, now) = machine(options);
        let (mut far, _) = machine(options);
        near.window.set_size(usize::MAX);
        let (block, mut sent) = (vec![7; usize::from(block_size)], 0);
        // The far side does not read.
        loop {
            let n = near.write(&block, now);
            sent += n;
            if n == 0 {
                break;
            }
            for action in actions(&mut near) {
                let IbbAction::SendData { seq, payload } = action else { panic!("{action:?}") };
                far.handle_data(Some(&seq.to_string()), seq, &STANDARD.encode(payload), now);
            }
            for id in acks(&mut far) {
                near.handle_answer(id.parse().unwrap(), BlockAnswer::Taken, now);
            }
        }
        assert_eq!((near.end(), far.end()), (None, None), "{block_size}");
        assert!(
            (usize::from(block_size)..=ACKNOWLEDGED + MAX_UNACKNOWLEDGED).contains(&sent),
            "{block_size}: {sent}"
        );
    }
}

#[test]
fn a_slow_reader_stops_a_sender_whose_blocks_are_small() {
    let (mut machine, now) = machine(Options::default());
    let mut sent = 0;
    let mut send = |machine: &mut IbbMachine| {
        machine.handle_data(Some("x"), sent, "eA==", now);
        sent += 1;
        acks(machine).len()
    };
    while send(&mut machine) == 1 {}
    // A sender that does not wait for each answer may have more on their way.
    for _ in 1..MAX_BLOCKS {
        assert_eq!(send(&mut machine), 0);
    }
    assert_eq!(machine.end(), None);
    assert_eq!(drain(&mut machine).len(), usize::from(sent));
    assert_eq!(acks(&mut machine).len(), MAX_BLOCKS);
}

#[test]
fn a_flood_of_empty_blocks_is_bounded() {
    let (mut machine, now) = machine(Options::default());
    for seq in 0..10_000 {
        machine.handle_data(Some("x"), seq, "", now);
    }
    assert_eq!(machine.end(), Some(Err(IbbError::Overflow)));
    assert!(actions(&mut machine).len() < 2 * MAX_ENTRIES);
}

#[test]
fn data_before_the_peers_close_is_delivered() {
    let (mut machine, now) = machine(Options::default());
    machine.handle_data(Some("a"), 0, "eA==", now);
    machine.handle_close(Some("b"));
    assert_eq!(acks(&mut machine), ["a", "b"]);
    assert_eq!(drain(&mut machine), b"x");
    assert_eq!(machine.end(), Some(Ok(())));
    assert!(!machine.is_writable());
    assert!(machine.is_over());
    machine.handle_data(Some("c"), 1, "eA==", now);
    assert!(matches!(actions(&mut machine).as_slice(),
        [IbbAction::Refuse { refusal, .. }] if refusal.condition == Condition::ItemNotFound));
}

#[test]
fn a_shutdown_lets_the_other_direction_go_on() {
    let options = Options::default();
    let (mut machine, now) = machine(options);
    assert_eq!(machine.write(b"last", now), 4);
    machine.shutdown(now);
    actions(&mut machine);
    machine.handle_deadline(now + options.close_linger);
    assert_eq!(actions(&mut machine), [], "no close before the acks");
    machine.handle_answer(0, BlockAnswer::Taken, now);
    assert_eq!(machine.deadline(), Some(now + options.close_linger));
    let later = now + options.close_linger / 2;
    machine.handle_data(Some("a"), 0, "eA==", later);
    assert_eq!(acks(&mut machine), ["a"]);
    machine.handle_deadline(now + options.close_linger);
    assert_eq!(actions(&mut machine), []);
    let due = later + options.close_linger;
    machine.handle_deadline(due);
    assert_eq!(actions(&mut machine), [IbbAction::SendClose]);
    machine.handle_data(Some("b"), 1, "eQ==", due);
    assert_eq!(acks(&mut machine), ["b"]);
    machine.handle_close_answer();
    assert_eq!(drain(&mut machine), b"xy");
    assert_eq!(machine.end(), Some(Ok(())));
    assert_eq!(machine.deadline(), None);
}

#[test]
fn silence_of_the_peer_ends_the_stream() {
    let options = Options::default();
    let (mut machine, now) = machine(options);
    machine.write(b"a", now);
    machine.write(b"b", now);
    let later = now + options.silence_timeout / 2;
    machine.handle_answer(0, BlockAnswer::Taken, later);
    machine.handle_deadline(now + options.silence_timeout);
    assert_eq!(machine.end(), None);
    machine.handle_deadline(later + options.silence_timeout);
    assert_eq!(machine.end(), Some(Err(IbbError::Timeout)));
    assert_eq!(actions(&mut machine).last(), Some(&IbbAction::SendClose));
}

#[test]
fn a_refused_block_ends_the_stream() {
    let (mut machine, now) = machine(Options::default());
    machine.write(b"a", now);
    actions(&mut machine);
    machine.handle_answer(0, BlockAnswer::Refused, now);
    assert_eq!(machine.end(), Some(Err(IbbError::Refused)));
    assert_eq!(actions(&mut machine), [IbbAction::SendClose]);
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Sixteen blocks of one byte on their way.
fn under_way() -> (IbbMachine, Instant) {
    let (mut machine, now) = machine(Options { block_size: 4096, ..Options::default() });
    for _ in 0..16 {
        assert_eq!(machine.write(b"x", now), 1);
        assert!(machine.flush(now));
    }
    assert_eq!(actions(&mut machine).len(), 16);
    (machine, now)
}

/// Two Prosodys (0.12 and 13) whose connection is reset: errors come first, for blocks that have arrived, and the real
/// results a few seconds later.
#[test]
fn errors_of_servers_for_blocks_that_have_arrived_end_nothing() {
    for answered in [false, true] {
        let (mut machine, now) = under_way();
        for seq in 1..16 {
            machine.handle_answer(seq, BlockAnswer::Undelivered, now);
        }
        assert_eq!(actions(&mut machine), [IbbAction::Ping], "one ping, however many errors");
        assert_eq!(machine.write(b"y", now), 0, "nothing more is sent while in doubt");
        if answered {
            machine.handle_pong(Pong::Alive, now + seconds(1));
        } else {
            machine.handle_pong(Pong::Absent, now + seconds(1));
        }
        for seq in 0..16 {
            assert!(machine.place(seq).is_some());
            machine.handle_answer(seq, BlockAnswer::Taken, now + seconds(3));
        }
        assert_eq!((machine.end(), machine.is_flushed()), (None, true));
        assert_eq!((machine.delivered(), machine.deadline()), (16, None));
        assert_eq!(machine.write(b"y", now + seconds(3)), 1);
    }
}

/// Without second answers, the next block settles the doubt.
#[test]
fn the_answer_to_the_next_block_settles_a_doubt() {
    for (answer, end) in
        [(BlockAnswer::Taken, None), (BlockAnswer::Gap, Some(Err(IbbError::Missing)))]
    {
        let (mut machine, now) = under_way();
        for seq in 0..16 {
            machine.handle_answer(seq, BlockAnswer::Undelivered, now);
        }
        machine.handle_pong(Pong::Alive, now);
        actions(&mut machine);
        // The block is short and beyond the window, so that any peer has room for it.
        assert_eq!(machine.write(&[7; 8192], now), TRIAL);
        assert_eq!(machine.write(&[7; 8192], now), 0);
        machine.handle_answer(16, answer, now + seconds(1));
        assert_eq!(machine.end(), end);
        assert_eq!(machine.is_writable(), end.is_none());
        if end.is_none() {
            assert_eq!(machine.delivered(), 16 + TRIAL as u64);
            assert!((1024..=4096).contains(&machine.write(&[7; 8192], now)));
        }
    }
}

/// A peer that answers every ping and lets every block come back: few trials, a pause before each, then the end.
#[test]
fn trials_that_come_back_are_few_and_slow() {
    let (mut machine, mut now) = under_way();
    machine.handle_answer(0, BlockAnswer::Undelivered, now);
    assert_eq!(actions(&mut machine), [IbbAction::Ping]);
    for trial in 16..19 {
        machine.handle_pong(Pong::Alive, now);
        assert_eq!(machine.write(b"y", now), 1);
        assert_eq!(machine.write(b"y", now), 0, "one trial at a time");
        // The errors for older blocks say nothing about the trial.
        machine.handle_answer(3, BlockAnswer::Undelivered, now);
        assert_eq!((machine.end(), machine.has_window()), (None, false));
        actions(&mut machine);
        machine.handle_answer(trial, BlockAnswer::Undelivered, now);
        if trial < 18 {
            assert_eq!(actions(&mut machine), [], "no ping at once");
            machine.handle_pong(Pong::Alive, now);
            assert!(!machine.has_window(), "an answer to an older ping says nothing");
            now += ABSENT[0];
            assert_eq!(machine.deadline(), Some(now));
            machine.handle_deadline(now);
            assert_eq!(actions(&mut machine), [IbbAction::Ping]);
        }
    }
    assert_eq!(machine.end(), Some(Err(IbbError::Missing)));
    assert_eq!(actions(&mut machine), [IbbAction::SendClose]);
}

/// Taking one block now and then does not help either.
#[test]
fn trials_do_not_go_far_beyond_the_window() {
    let (mut machine, mut now) = under_way();
    let (mut next, mut oldest) = (16, 0);
    for round in 0..1000 {
        machine.handle_answer(next - 1, BlockAnswer::Undelivered, now);
        now += ABSENT[0];
        machine.handle_deadline(now);
        machine.handle_pong(Pong::Alive, now);
        if machine.write(b"y", now) > 0 {
            next += 1;
        }
        if round % 2 == 1 {
            machine.handle_answer(oldest, BlockAnswer::Taken, now);
            oldest += 1;
        }
        actions(&mut machine);
        assert!(machine.unanswered.len() <= MAX_BLOCKS + TRIALS);
        assert_eq!(machine.end(), None);
    }
    assert!(oldest == 500 && next > oldest, "{next}");
}

/// The numbers of blocks on their way wrap.
#[test]
fn blocks_are_found_by_number_across_the_wrap() {
    let (mut machine, now) = machine(Options::default());
    machine.next_out = 65_534;
    for _ in 0..4 {
        assert_eq!(machine.write(b"x", now), 1);
        assert!(machine.flush(now));
    }
    let awaited = [65_533, 65_534, 65_535, 0, 1, 2].map(|seq| machine.place(seq).is_some());
    assert_eq!(awaited, [false, true, true, true, true, false]);
    machine.handle_answer(0, BlockAnswer::Taken, now);
    assert_eq!(machine.delivered(), 3);
    assert!(machine.place(0).is_none() && machine.place(1).is_some());
}

/// Two ejabberds (23.01 and 24.12) whose connection is reset: blocks and answers are lost silently.
#[test]
fn blocks_that_were_lost_without_a_word_are_found_by_the_next_one() {
    let (mut machine, now) = under_way();
    for seq in 0..6 {
        machine.handle_answer(seq, BlockAnswer::Taken, now);
    }
    // Ten answers were lost, and no block.
    machine.write(b"y", now);
    assert!(machine.flush(now));
    machine.handle_answer(16, BlockAnswer::Taken, now);
    assert_eq!((machine.is_flushed(), machine.delivered()), (true, 17));

    let (mut machine, now) = under_way();
    for seq in 0..6 {
        machine.handle_answer(seq, BlockAnswer::Taken, now);
    }
    // Two blocks were lost.
    machine.handle_answer(8, BlockAnswer::Gap, now);
    assert_eq!(machine.end(), Some(Err(IbbError::Missing)));
    assert_eq!(actions(&mut machine), [IbbAction::SendClose]);
}

/// A server that loses everything under way says nothing, and no later block shows the gap: the window is full, or nothing is
/// left to be sent.
#[test]
fn when_all_blocks_under_way_are_lost_an_empty_one_shows_the_gap() {
    for answer in [Some(BlockAnswer::Gap), Some(BlockAnswer::Taken), None] {
        let (mut machine, begin) = under_way();
        machine.handle_window(16 * 1024);
        let asked = begin + PROBE;
        machine.handle_deadline(asked);
        assert_eq!(actions(&mut machine), [IbbAction::Ping]);
        machine.handle_pong(Pong::Alive, asked + seconds(1));
        let empty = IbbAction::SendData { seq: 16, payload: Vec::new() };
        assert_eq!(actions(&mut machine), [empty]);
        match answer {
            Some(answer) => machine.handle_answer(16, answer, asked + seconds(2)),
            // A slow reader keeps it, and gets no second one.
            None => {
                let again = asked + seconds(1) + REPEAT;
                machine.handle_deadline(again);
                assert_eq!(actions(&mut machine), [IbbAction::Ping]);
                machine.handle_pong(Pong::Alive, again);
            }
        }
        let (end, expected) = match answer {
            Some(BlockAnswer::Gap) => (Some(Err(IbbError::Missing)), vec![IbbAction::SendClose]),
            _ => (None, vec![]),
        };
        assert_eq!((machine.end(), actions(&mut machine)), (end, expected));
        assert_eq!(machine.delivered(), if answer == Some(BlockAnswer::Taken) { 16 } else { 0 });
    }
}

/// A block acknowledged meanwhile shows that the peer reads. Others than ours get no empty block.
#[test]
fn no_empty_block_goes_where_none_is_needed_or_understood() {
    for is_ours in [true, false] {
        let (mut machine, begin) = under_way();
        let asked = begin + PROBE;
        if is_ours {
            machine.handle_window(16 * 1024);
        }
        machine.handle_deadline(asked);
        if is_ours {
            machine.handle_answer(0, BlockAnswer::Taken, asked + seconds(1));
        }
        machine.handle_pong(Pong::Alive, asked + seconds(2));
        assert_eq!(actions(&mut machine), [IbbAction::Ping]);
    }
}

#[test]
fn a_client_of_which_three_pings_say_that_it_is_not_there_is_gone() {
    let (mut machine, mut now) = under_way();
    machine.handle_answer(0, BlockAnswer::Undelivered, now);
    for pause in [seconds(0), ABSENT[0], ABSENT[1]] {
        now += pause;
        machine.handle_deadline(now);
        assert_eq!((machine.end(), actions(&mut machine)), (None, vec![IbbAction::Ping]));
        machine.handle_deadline(now + seconds(1));
        assert_eq!(actions(&mut machine), []);
        machine.handle_pong(Pong::Absent, now);
    }
    assert_eq!(machine.end(), Some(Err(IbbError::Gone)));

    // Unless the peer is heard meanwhile.
    let (mut machine, now) = under_way();
    machine.handle_answer(0, BlockAnswer::Undelivered, now);
    for n in 1..20 {
        let now = now + seconds(10 * n);
        machine.handle_data(None, u16::try_from(n - 1).unwrap(), "eA==", now);
        machine.handle_pong(Pong::Absent, now);
        machine.handle_deadline(now + seconds(9));
        assert_eq!(machine.end(), None);
    }
}

/// A client that has lost its connection and may resume it (XEP-0198): its server keeps everything and says nothing.
#[test]
fn a_silent_peer_is_waited_for_as_long_as_its_server_may_keep_it() {
    let options = Options::default();
    let (mut machine, begin) = under_way();
    let (mut now, mut pings, mut waits_from) = (begin, 0, None);
    while machine.end().is_none() {
        now = machine.deadline().unwrap();
        machine.handle_deadline(now);
        pings += actions(&mut machine).iter().filter(|a| **a == IbbAction::Ping).count();
        if machine.is_waiting() {
            waits_from.get_or_insert(now);
        }
    }
    assert_eq!(waits_from, Some(begin + WAITING));
    assert!((5..=10).contains(&pings), "{pings}");
    assert_eq!(
        (now, machine.end()),
        (begin + options.silence_timeout, Some(Err(IbbError::Timeout)))
    );

    // It comes back in time.
    let (mut machine, begin) = under_way();
    for at in [10, 20, 50, 80, 290] {
        machine.handle_deadline(begin + seconds(at));
    }
    assert!(machine.is_waiting());
    for seq in 0..16 {
        machine.handle_answer(seq, BlockAnswer::Taken, begin + seconds(299));
    }
    assert!(!machine.is_waiting() && machine.end().is_none() && machine.is_writable());
}

/// A slow reader answers pings. The stream does not count as waiting, and the client may not know pings.
#[test]
fn a_slow_reader_is_not_taken_for_a_silent_one() {
    for pong in [Pong::Alive, Pong::Absent] {
        let (mut machine, begin) = under_way();
        while let Some(at) = machine.deadline().filter(|at| *at < begin + seconds(290)) {
            machine.handle_deadline(at);
            if actions(&mut machine).contains(&IbbAction::Ping) {
                let answers = at + seconds(1);
                machine.handle_deadline(answers);
                assert!(!machine.is_waiting(), "it has not had the time to answer");
                machine.handle_pong(pong, answers);
            }
            assert!(!machine.is_waiting() && machine.end().is_none(), "{pong:?}");
        }
    }
}

/// Returns the bytes in whole blocks that may be under way.
fn most(block: usize) -> usize {
    MAX_UNACKNOWLEDGED / (block + HEADER) * block
}

fn by_message() -> (IbbMachine, Instant) {
    machine(Options { acknowledged: false, ..Options::default() })
}

#[test]
fn pings_pace_blocks_by_message_and_say_what_has_arrived() {
    let (mut machine, now) = by_message();
    let block = [7; 8192];
    assert_eq!(machine.write(&block, now), 8192);
    assert!(matches!(actions(&mut machine)[..], [IbbAction::SendData { .. }, IbbAction::Ping]));
    let mut more = 0;
    while machine.write(&block, now) > 0 {
        more += 1;
    }
    assert_eq!((more + 1) * 8192, most(8192));
    assert_eq!(actions(&mut machine).len(), more, "one ping at a time");
    machine.handle_pong(Pong::Alive, now);
    assert_eq!(machine.delivered(), 8192, "what was sent before the ping");
    assert_eq!(actions(&mut machine), [IbbAction::Ping]);
    machine.handle_pong(Pong::Alive, now);
    assert_eq!((machine.delivered(), machine.is_flushed()), (most(8192) as u64, true));
    assert_eq!((actions(&mut machine), machine.deadline()), (vec![], None));
    machine.handle_data(None, 0, "eA==", now);
    assert_eq!(machine.chunk(), b"x");
}

#[test]
fn messages_to_a_peer_that_answers_no_ping_go_on() {
    let (mut machine, now) = by_message();
    assert_eq!(machine.write(b"a", now), 1);
    assert_eq!(machine.deadline(), Some(now + UNPACED));
    machine.handle_deadline(now + UNPACED);
    for _ in 0..1000 {
        assert_eq!(machine.write(b"a", now + UNPACED), 1);
    }
    assert!(machine.is_flushed());
    assert_eq!(actions(&mut machine).iter().filter(|a| **a == IbbAction::Ping).count(), 1);
    // A peer that does not know pings is not lost either: its first answer shows that, because it was present when it
    // opened the stream.
    let (mut machine, now) = by_message();
    for _ in 0..100 {
        assert_eq!(machine.write(b"a", now), 1);
        machine.handle_pong(Pong::Absent, now);
    }
    assert_eq!((machine.end(), machine.delivered()), (None, 100));
}

/// The first ping was waited for long enough, and then its answer is an error: the peer is pinged again.
#[test]
fn messages_go_on_after_a_late_error_to_the_first_ping() {
    for (pong, end) in [(Some(Pong::Alive), None), (None, Some(Err(IbbError::Timeout)))] {
        let (mut machine, mut now) = by_message();
        machine.write(b"a", now);
        now += UNPACED;
        machine.handle_deadline(now);
        assert!(machine.is_flushed());
        actions(&mut machine);
        machine.handle_pong(Pong::Unreachable, now);
        assert_eq!(machine.write(b"b", now), 0);
        let mut pings = 0;
        while let Some(at) = machine.deadline().filter(|_| machine.end().is_none()) {
            assert!(at > now, "the clock goes on");
            now = at;
            machine.handle_deadline(now);
            if actions(&mut machine).contains(&IbbAction::Ping) {
                pings += 1;
                if let Some(pong) = pong {
                    machine.handle_pong(pong, now);
                }
            }
        }
        assert!((1..20).contains(&pings), "{pings}");
        assert_eq!((machine.end(), machine.write(b"b", now)), (end, usize::from(end.is_none())));
    }
}

/// An error to the first ping is an answer: the following blocks are not sent to an absent peer.
#[test]
fn an_unreachable_peer_is_not_one_that_answers_no_ping() {
    let (mut machine, now) = by_message();
    machine.write(b"a", now);
    machine.handle_pong(Pong::Unreachable, now);
    machine.handle_deadline(now + PROBE);
    machine.handle_deadline(now + PROBE + UNPACED);
    assert_eq!((machine.delivered(), machine.write(b"b", now + PROBE + UNPACED)), (0, 0));
    machine.handle_pong(Pong::Alive, now + seconds(16));
    assert_eq!((machine.delivered(), machine.write(b"b", now + seconds(16))), (1, 1));
}

#[test]
fn messages_stop_when_the_resource_is_gone() {
    let (mut machine, mut now) = by_message();
    machine.write(b"a", now);
    machine.handle_pong(Pong::Alive, now);
    machine.write(b"b", now);
    actions(&mut machine);
    machine.handle_pong(Pong::Absent, now);
    assert_eq!(machine.write(b"c", now), 0, "nothing more may land elsewhere");
    for pause in ABSENT {
        now += pause;
        machine.handle_deadline(now);
        assert_eq!(actions(&mut machine), [IbbAction::Ping]);
        machine.handle_pong(Pong::Absent, now);
    }
    assert_eq!((machine.end(), machine.delivered()), (Some(Err(IbbError::Gone)), 1));
    // A message that comes back is a doubt, not yet an end.
    let (mut machine, now) = by_message();
    machine.write(b"a", now);
    machine.handle_pong(Pong::Alive, now);
    machine.write(b"b", now);
    actions(&mut machine);
    machine.handle_bounce(BlockAnswer::Undelivered, now);
    assert_eq!((machine.end(), machine.write(b"c", now)), (None, 0));
    machine.handle_pong(Pong::Alive, now);
    assert_eq!(machine.write(b"c", now), 1);
    machine.handle_bounce(BlockAnswer::Refused, now);
    assert_eq!(machine.end(), Some(Err(IbbError::Refused)));
}

#[test]
fn an_aborted_stream_closes_at_once_and_takes_nothing_more() {
    let (mut machine, now) = machine(Options::default());
    machine.write(b"a", now);
    actions(&mut machine);
    machine.abort(now);
    machine.handle_data(Some("x"), 0, "eA==", now);
    machine.handle_close(Some("y"));
    let sent = actions(&mut machine);
    assert_eq!(sent[0], IbbAction::SendClose);
    assert!(matches!(&sent[1], IbbAction::Refuse { id, .. } if id == "x"));
    assert_eq!(sent[2], IbbAction::Ack { id: "y".to_owned() });
    assert!(machine.is_over());
}

#[test]
fn nothing_is_sent_before_the_stream_is_open() {
    let (mut machine, now) = machine(Options { opened: false, ..Options::default() });
    assert_eq!(machine.write(b"a", now), 0);
    machine.handle_opened(true);
    assert_eq!(machine.write(b"a", now), 1);
}

#[test]
fn a_refused_open_needs_no_close() {
    let (mut machine, _) = machine(Options { opened: false, ..Options::default() });
    machine.handle_opened(false);
    assert_eq!(machine.end(), Some(Err(IbbError::Refused)));
    assert_eq!(actions(&mut machine), []);
    assert!(machine.is_over());
}

/// A peer that understands it is told how much it may send: never more than there is room for, whatever it has been told
/// before. It gets more when it uses that, and loses it after a pause.
#[test]
fn a_peer_is_told_how_much_it_may_send() {
    let options = Options { room: 8192, is_scarce: true, block_size: 4096, ..Options::default() };
    let (mut machine, mut now) = machine(options);
    let block = STANDARD.encode([7; 4096]);
    assert_eq!(machine.grant(), None, "nobody is told who may not understand it");
    machine.handle_window(MOST);
    let (mut seq, mut room) = (0, 8192);
    for _ in 0..1000 {
        if machine.lacks_room(4096, false) && room < MAX_ROOM {
            room = (room * 2).min(MAX_ROOM);
            machine.set_room(room);
        }
        machine.handle_data(Some("i"), seq, &block, now);
        seq += 1;
        let early = actions(&mut machine).len();
        let granted = machine.granted;
        assert!(early == 0 || machine.held_bytes() + granted <= room, "{granted} of {room}");
        drain(&mut machine);
        let late = actions(&mut machine).len();
        assert_eq!(early + late, 1);
        machine.grant();
        assert!((8192..=room).contains(&machine.granted));
        now += millis(1);
    }
    assert_eq!((room, machine.granted, machine.grant()), (MAX_ROOM, MOST, None));
    let due = machine.deadline().unwrap();
    assert_eq!((due - now).as_secs(), PAUSE.as_secs() - 1);
    assert!(!machine.has_spare_room(now) && machine.has_spare_room(due));
    machine.set_room(8192);
    assert_eq!((machine.grant(), machine.deadline()), (Some(8192), None));
}

/// Without memory one block after the other is acknowledged when it is read, and the stream goes on.
#[test]
fn a_stream_without_memory_takes_one_block_after_the_other() {
    let options = Options { room: 8192, is_scarce: true, ..Options::default() };
    let (mut machine, now) = machine(options);
    let block = STANDARD.encode([7; 8192]);
    for seq in 0..100 {
        assert!(machine.lacks_room(8192, false));
        machine.handle_data(Some("i"), seq, &block, now);
        assert_eq!(acks(&mut machine).len(), 0, "another block would not fit");
        assert_eq!((drain(&mut machine).len(), acks(&mut machine).len()), (8192, 1));
    }
    assert_eq!(machine.end(), None);
    machine.set_memory(0);
    for seq in 0..100 {
        assert!(machine.write(&[7; 8192], now) > 0 && machine.lacks_memory());
        assert_eq!(machine.write(&[7; 8192], now), 0);
        machine.handle_answer(seq, BlockAnswer::Taken, now);
    }
}

/// A peer takes a whole window, or less than ours would be.
#[test]
fn the_window_is_no_larger_than_the_peer_says() {
    let (mut machine, now) = machine(Options { window: 200, ..Options::default() });
    for (told, most) in [(usize::MAX, MOST), (20_000, 20_000)] {
        machine.handle_window(told);
        while machine.write(&[7; 8192], now) > 0 {}
        assert!((most - 16_384..=most).contains(&machine.under_way()), "{}", machine.under_way());
        machine.handle_answer(machine.next_out - 1, BlockAnswer::Taken, now);
    }
}

proptest! {
    /// Two machines, a reader of any pace and answers with any delay: all bytes arrive, in order.
    #[test]
    fn what_is_written_is_read(
        data in (0_usize..400_000).prop_map(|n| (0..n).map(|i| (i % 251) as u8).collect::<Vec<_>>()),
        block_size in prop_oneof![500_u16..5000, Just(40_000), Just(65_535)],
        window in 1_u16..20,
        paces in proptest::collection::vec(0_usize..70_000, 1..50),
    ) {
        let now = Instant::now();
        let options = Options { block_size, window, ..Options::default() };
        let (mut near, mut far) = (IbbMachine::new(options, now), IbbMachine::new(options, now));
        let (mut rest, mut read) = (data.as_slice(), Vec::new());
        for pace in paces.into_iter().cycle() {
            loop {
                let n = near.write(rest, now);
                rest = &rest[n..];
                if n == 0 {
                    break;
                }
            }
            while let Some(IbbAction::SendData { seq, payload }) = near.poll_action() {
                far.handle_data(Some(&seq.to_string()), seq, &STANDARD.encode(payload), now);
            }
            let n = far.chunk().len().min(pace + 1);
            read.extend_from_slice(&far.chunk()[..n]);
            far.consume(n);
            while let Some(action) = far.poll_action() {
                let IbbAction::Ack { id } = action else { panic!("{action:?}") };
                near.handle_answer(id.parse().unwrap(), BlockAnswer::Taken, now);
            }
            if rest.is_empty() && near.is_flushed() && far.chunk().is_empty() {
                break;
            }
        }
        prop_assert_eq!(read, data);
    }

    #[test]
    fn any_input_is_survived(
        acknowledged: bool,
        inputs in proptest::collection::vec((0_u8..10, 0_u16..4, "[A-D=]{0,8}"), 0..60),
    ) {
        let mut now = Instant::now();
        let options = Options { block_size: 4, acknowledged, ..Options::default() };
        let mut machine = IbbMachine::new(options, now);
        let answers = [BlockAnswer::Taken, BlockAnswer::Gap, BlockAnswer::Refused, BlockAnswer::Undelivered];
        for (kind, seq, text) in inputs {
            let answer = answers[text.len() % 4];
            match kind {
                0 => machine.handle_data(Some("i"), seq, &text, now),
                1 => machine.handle_data(None, seq, &text, now),
                2 => machine.handle_answer(seq, answer, now),
                3 => machine.consume(usize::from(seq)),
                4 => { machine.write(text.as_bytes(), now); }
                5 if text.len() > 6 => { machine.shutdown(now); }
                6 if text.len() > 6 => machine.handle_close(Some("c")),
                7 if seq == 0 => machine.handle_bounce(answer, now),
                8 => {
                    let pongs = [Pong::Alive, Pong::Absent, Pong::Unreachable, Pong::Alive];
                    machine.handle_pong(pongs[usize::from(seq)], now);
                }
                9 => now += Duration::from_secs(u64::from(seq) * 20),
                _ => machine.handle_deadline(now + Duration::from_secs(u64::from(seq))),
            }
        }
        // A deadline that is due is gone or replaced once it has been handled.
        let limit = now + Duration::from_secs(3600);
        while let Some(at) = machine.deadline() {
            machine.handle_deadline(at);
            prop_assert!(at < limit);
            prop_assert!(machine.deadline().is_none_or(|next| next > at));
            prop_assert!(machine.actions.len() < 2 * MAX_ENTRIES);
            now = at;
        }
        prop_assert!(machine.unanswered.is_empty() || machine.end().is_some(), "{now:?}");
        let closes = actions(&mut machine).iter().filter(|a| **a == IbbAction::SendClose).count();
        prop_assert!(closes <= 1);
    }
}
