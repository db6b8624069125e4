use proptest::prelude::*;

use super::*;

fn machine(options: Options) -> (IbbMachine, Instant) {
    let now = Instant::now();
    (IbbMachine::new(options, now), now)
}

fn actions(machine: &mut IbbMachine) -> Vec<Action> {
    std::iter::from_fn(|| machine.poll_action()).collect()
}

fn acks(machine: &mut IbbMachine) -> Vec<String> {
    actions(machine)
        .into_iter()
        .map(|action| match action {
            Action::Ack { id } => id,
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

/// The condition of the only refusal, which must be followed by a close.
fn refused(machine: &mut IbbMachine) -> &'static str {
    match actions(machine).as_slice() {
        [Action::Refuse { refusal, .. }, Action::SendClose] => refusal.condition,
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
            Some(Action::SendData { seq: expected, payload: b"x".to_vec() })
        );
        machine.handle_answer(expected, true, now);
        machine.handle_data(Some("i"), expected, "eA==", now);
        assert_eq!(machine.poll_action(), Some(Action::Ack { id: "i".to_owned() }));
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
    assert_eq!(refused(&mut machine), "unexpected-request");
    assert_eq!(drain(&mut machine), b"x");
    assert_eq!(machine.end(), Some(Err(IbbError::Sequence)));
    assert_eq!(machine.write(b"x", now), 0);
}

#[test]
fn bad_data_ends_the_stream() {
    for text in ["eA=", "eA", "e A=", "e\nA==", "-_-_", "eA==eA==", "é"] {
        let (mut machine, now) = machine(Options::default());
        machine.handle_data(Some("a"), 0, text, now);
        assert_eq!(refused(&mut machine), "bad-request", "{text}");
        assert_eq!(machine.end(), Some(Err(IbbError::Malformed)));
    }
    let (mut machine, now) = machine(Options { block_size: 3, ..Options::default() });
    machine.handle_data(Some("a"), 0, "QUJD", now);
    assert_eq!(acks(&mut machine), ["a"]);
    machine.handle_data(Some("b"), 1, "QUJDRA==", now);
    assert_eq!(refused(&mut machine), "bad-request");
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
    assert_eq!(refused(&mut machine), "unexpected-request");
}

#[test]
fn blocks_by_message_have_the_room_that_they_are_given() {
    let (mut machine, now) = machine(Options::default());
    let block = STANDARD.encode([7; 8192]);
    machine.set_room(1 << 20);
    let most = u16::try_from((MAX_HELD + (1 << 20)) / 8192).unwrap();
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
    let (mut machine, now) = machine(Options { window: 2, ..Options::default() });
    assert_eq!((machine.write(b"a", now), machine.write(b"b", now)), (1, 1));
    assert_eq!(machine.write(b"c", now), 0);
    machine.handle_answer(1, true, now);
    assert!(!machine.is_flushed());
    assert_eq!(machine.write(b"c", now), 1);
    machine.handle_answer(7, true, now);
    assert!(!machine.has_window());
}

#[test]
fn a_block_holds_no_more_than_block_size() {
    let (mut machine, now) = machine(Options { block_size: 3, ..Options::default() });
    assert_eq!(machine.write(b"abcdef", now), 3);
    assert_eq!(actions(&mut machine), [Action::SendData { seq: 0, payload: b"abc".to_vec() }]);
}

#[test]
fn messages_need_no_answer() {
    let (mut machine, now) =
        machine(Options { acknowledged: false, window: 1, ..Options::default() });
    for _ in 0..100 {
        assert_eq!(machine.write(b"a", now), 1);
    }
    assert!(machine.is_flushed());
    machine.handle_data(None, 0, "eA==", now);
    assert_eq!(machine.chunk(), b"x");
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
        let (mut machine, now) = machine(Options::default());
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
        let (block, mut sent) = (vec![7; usize::from(block_size)], 0);
        // Nobody reads at the far side.
        loop {
            let n = near.write(&block, now);
            sent += n;
            if n == 0 {
                break;
            }
            for action in actions(&mut near) {
                let Action::SendData { seq, payload } = action else { panic!("{action:?}") };
                far.handle_data(Some(&seq.to_string()), seq, &STANDARD.encode(payload), now);
            }
            for id in acks(&mut far) {
                near.handle_answer(id.parse().unwrap(), true, now);
            }
        }
        assert_eq!((near.end(), far.end()), (None, None), "{block_size}");
        assert!((usize::from(block_size)..=MAX_HELD).contains(&sent), "{block_size}: {sent}");
        const { assert!(2 * (MAX_HELD + crate::mediator::pipe::BUFFER) <= 256 * 1024) };
    }
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
        [Action::Refuse { refusal, .. }] if refusal.condition == "item-not-found"));
}

#[test]
fn a_shutdown_lets_the_other_direction_go_on() {
    let options = Options::default();
    let (mut machine, now) = machine(options);
    assert_eq!(machine.write(b"last", now), 4);
    machine.shutdown(now);
    actions(&mut machine);
    assert_eq!(machine.deadline(), Some(now + options.ack_timeout), "no close before the acks");
    machine.handle_answer(0, true, now);
    assert_eq!(machine.deadline(), Some(now + options.close_linger));
    let later = now + options.close_linger / 2;
    machine.handle_data(Some("a"), 0, "eA==", later);
    assert_eq!(acks(&mut machine), ["a"]);
    machine.handle_deadline(now + options.close_linger);
    assert_eq!(actions(&mut machine), []);
    let due = later + options.close_linger;
    machine.handle_deadline(due);
    assert_eq!(actions(&mut machine), [Action::SendClose]);
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
    let later = now + options.ack_timeout / 2;
    machine.handle_answer(0, true, later);
    machine.handle_deadline(now + options.ack_timeout);
    assert_eq!(machine.end(), None);
    machine.handle_deadline(later + options.ack_timeout);
    assert_eq!(machine.end(), Some(Err(IbbError::Timeout)));
    assert_eq!(actions(&mut machine).last(), Some(&Action::SendClose));
}

#[test]
fn a_refused_block_ends_the_stream() {
    let (mut machine, now) = machine(Options::default());
    machine.write(b"a", now);
    actions(&mut machine);
    machine.handle_answer(0, false, now);
    assert_eq!(machine.end(), Some(Err(IbbError::Refused)));
    assert_eq!(actions(&mut machine), [Action::SendClose]);
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
    assert_eq!(sent[0], Action::SendClose);
    assert!(matches!(&sent[1], Action::Refuse { id, .. } if id == "x"));
    assert_eq!(sent[2], Action::Ack { id: "y".to_owned() });
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

proptest! {
    /// Two machines, a reader of any pace and answers of any delay: all bytes arrive, in order.
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
            while let Some(Action::SendData { seq, payload }) = near.poll_action() {
                far.handle_data(Some(&seq.to_string()), seq, &STANDARD.encode(payload), now);
            }
            let n = far.chunk().len().min(pace + 1);
            read.extend_from_slice(&far.chunk()[..n]);
            far.consume(n);
            while let Some(action) = far.poll_action() {
                let Action::Ack { id } = action else { panic!("{action:?}") };
                near.handle_answer(id.parse().unwrap(), true, now);
            }
            if rest.is_empty() && near.is_flushed() && far.chunk().is_empty() {
                break;
            }
        }
        prop_assert_eq!(read, data);
    }

    #[test]
    fn any_input_is_survived(
        inputs in proptest::collection::vec((0_u8..7, 0_u16..4, "[A-D=]{0,8}"), 0..60),
    ) {
        let now = Instant::now();
        let mut machine = IbbMachine::new(Options { block_size: 4, ..Options::default() }, now);
        for (kind, seq, text) in inputs {
            match kind {
                0 => machine.handle_data(Some("i"), seq, &text, now),
                1 => machine.handle_data(None, seq, &text, now),
                2 => machine.handle_answer(seq, text.len() < 6, now),
                3 => machine.consume(usize::from(seq)),
                4 => { machine.write(text.as_bytes(), now); }
                5 if text.len() > 6 => { machine.shutdown(now); }
                6 if text.len() > 6 => machine.handle_close(Some("c")),
                _ => machine.handle_deadline(now + Duration::from_secs(u64::from(seq))),
            }
        }
        let closes = actions(&mut machine).iter().filter(|a| **a == Action::SendClose).count();
        prop_assert!(closes <= 1);
    }
}
