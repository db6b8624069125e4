use proptest::prelude::*;

use super::*;

const BOB: &str = "bob@b.example";
const PHONE: &str = "bob@b.example/phone";
const DESK: &str = "bob@b.example/desk";
const MALLORY: &str = "mallory@m.example/x";

fn jid(text: &str) -> Jid {
    Jid::new(text).unwrap()
}

fn full(text: &str) -> FullJid {
    FullJid::new(text).unwrap()
}

fn bare(text: &str) -> BareJid {
    BareJid::new(text).unwrap()
}

/// Handles a message without a reason.
fn hear(proposals: &mut Proposals, from: &str, action: Action, id: &str) -> Option<News> {
    let (reason, is_tie_break) = (None, false);
    proposals.handle(Said { from: &jid(from), action, id, reason, is_tie_break })
}

/// Alice has proposed "p" to Bob.
fn proposed() -> Proposals {
    let mut proposals = Proposals::default();
    proposals.propose("p".to_owned(), jid(BOB));
    proposals
}

/// Bob's program rings for Alice's proposals.
fn rings(proposals: &mut Proposals, from: &str, id: &str, now: Instant) -> bool {
    let is_known = from.starts_with("alice@");
    let (from, peer) = (full(from), full(from).to_bare());
    let is_new = proposals.has_room(&from, &peer, id, is_known, now);
    if is_new {
        proposals.ring(from, peer, id.to_owned(), is_known, now);
    }
    is_new
}

#[test]
fn it_rings_once_and_the_first_to_proceed_gets_the_session() {
    let mut alice = proposed();
    assert!(alice.is_unheard("p", &jid(BOB)));
    assert_eq!(hear(&mut alice, PHONE, Action::Ringing, "p"), Some(News::Ringing));
    assert!(!alice.is_unheard("p", &jid(BOB)));
    assert_eq!(hear(&mut alice, DESK, Action::Ringing, "p"), None);
    assert_eq!(hear(&mut alice, DESK, Action::Proceed, "p"), Some(News::Proceeds(full(DESK))));
    for from in [DESK, PHONE] {
        for action in [Action::Proceed, Action::Ringing] {
            assert_eq!(hear(&mut alice, from, action, "p"), None, "{from} {action}");
        }
    }
    // The resource that takes it may change its mind; no other one decides any more.
    assert_eq!(hear(&mut alice, PHONE, Action::Reject, "p"), None);
    assert_eq!(hear(&mut alice, DESK, Action::Reject, "p"), Some(News::Rejected(None)));
    assert!(!alice.forget("p"));
}

#[test]
fn only_the_user_that_was_asked_answers_and_only_by_a_resource() {
    let mut alice = proposed();
    for action in [Action::Ringing, Action::Proceed, Action::Reject] {
        for from in [MALLORY, "bob@m.example/phone", "b.example", "alice@a.example/x"] {
            assert_eq!(hear(&mut alice, from, action, "p"), None, "{from} {action}");
        }
        for id in ["", "P", "p ", &"p".repeat(100_000)] {
            assert_eq!(hear(&mut alice, PHONE, action, id), None, "{action}");
        }
    }
    for action in [Action::Ringing, Action::Proceed] {
        assert_eq!(hear(&mut alice, BOB, action, "p"), None, "{action}");
    }
    for action in [Action::Propose, Action::Retract, Action::Finish] {
        assert_eq!(hear(&mut alice, PHONE, action, "p"), None, "{action}");
    }
    assert!(alice.is_unheard("p", &jid(BOB)) && !alice.is_unheard("p", &jid(MALLORY)));
    assert_eq!(hear(&mut alice, PHONE, Action::Proceed, "p"), Some(News::Proceeds(full(PHONE))));
}

#[test]
fn a_proposal_to_one_resource_is_answered_by_that_one() {
    let mut alice = Proposals::default();
    alice.propose("p".to_owned(), jid(DESK));
    for action in [Action::Ringing, Action::Proceed, Action::Reject] {
        assert_eq!(hear(&mut alice, PHONE, action, "p"), None, "{action}");
    }
    assert_eq!(hear(&mut alice, DESK, Action::Proceed, "p"), Some(News::Proceeds(full(DESK))));
}

#[test]
fn a_proposal_that_is_over_has_no_more_news() {
    let ends: [fn(&mut Proposals); 3] = [
        |alice| assert!(alice.forget("p")),
        |alice| {
            let ended = hear(alice, PHONE, Action::Reject, "p");
            assert_eq!(ended, Some(News::Rejected(None)));
        },
        // The broker speaks for the user as a whole.
        |alice| assert_eq!(hear(alice, BOB, Action::Reject, "p"), Some(News::Ended)),
    ];
    for end in ends {
        let mut alice = proposed();
        end(&mut alice);
        for action in [Action::Ringing, Action::Proceed, Action::Reject] {
            assert_eq!(hear(&mut alice, PHONE, action, "p"), None, "{action}");
        }
        assert!(!alice.forget("p") && !alice.is_unheard("p", &jid(BOB)));
    }
}

#[test]
fn a_reject_has_its_reason_and_a_crossing_is_not_the_user_s() {
    let reject = |is_tie_break| {
        let (from, action, reason) = (&jid(PHONE), Action::Reject, Some(Reason::Busy));
        proposed().handle(Said { from, action, id: "p", reason, is_tie_break })
    };
    assert_eq!(reject(false), Some(News::Rejected(Some(Reason::Busy))));
    assert_eq!(reject(true), Some(News::Crossed));
}

#[test]
fn a_proposal_rings_until_somebody_decides_and_its_session_comes_within_a_minute() {
    let (mut bob, now) = (Proposals::default(), Instant::now());
    let (alice, other) = ("alice@a.example/x", "alice@a.example/y");
    assert!(rings(&mut bob, alice, "p", now));
    assert!(bob.rings(&full(alice), "p", now));
    // Again, it is not a new one. Nobody else can end it.
    assert!(!rings(&mut bob, alice, "p", now));
    for from in [other, MALLORY, "alice@a.example"] {
        assert_eq!(hear(&mut bob, from, Action::Retract, "p"), None);
        assert!(bob.rings(&full(alice), "p", now), "{from}");
    }
    assert!(!bob.start(&full(other), "p", now));
    assert!(bob.proceed(&full(alice), "p", now));
    assert!(!bob.proceed(&full(alice), "p", now) && !bob.reject(&full(alice), "p", now));
    // Another device has proceeded too: the initiator decides.
    bob.decided_elsewhere(&bare("alice@a.example"), "p");
    assert!(bob.start(&full(alice), "p", now));
    assert!(!bob.start(&full(alice), "p", now));

    assert!(rings(&mut bob, alice, "late", now));
    assert!(bob.proceed(&full(alice), "late", now));
    assert!(!bob.start(&full(alice), "late", now + START));
    assert!(rings(&mut bob, alice, "old", now));
    assert!(!bob.proceed(&full(alice), "old", now + RING));
}

#[test]
fn it_stops_ringing_when_it_is_withdrawn_or_decided_on_another_device() {
    let now = Instant::now();
    let alice = "alice@a.example/x";
    let ends: [fn(&mut Proposals); 3] = [
        |bob| assert_eq!(hear(bob, "alice@a.example/x", Action::Retract, "p"), None),
        |bob| assert_eq!(hear(bob, "alice@a.example/x", Action::Finish, "p"), None),
        |bob| bob.decided_elsewhere(&bare("alice@a.example"), "p"),
    ];
    for end in ends {
        let mut bob = Proposals::default();
        assert!(rings(&mut bob, alice, "p", now));
        for (peer, id) in [("alice@a.example", "q"), ("mallory@m.example", "p")] {
            bob.decided_elsewhere(&bare(peer), id);
        }
        assert!(bob.rings(&full(alice), "p", now));
        end(&mut bob);
        assert!(!bob.rings(&full(alice), "p", now));
        assert!(!bob.proceed(&full(alice), "p", now) && !bob.start(&full(alice), "p", now));
    }
    // After proceed, a retract still holds.
    let mut bob = Proposals::default();
    assert!(rings(&mut bob, alice, "p", now) && bob.proceed(&full(alice), "p", now));
    hear(&mut bob, alice, Action::Retract, "p");
    assert!(!bob.start(&full(alice), "p", now));
}

#[test]
fn a_peer_has_a_few_proposals_open_and_strangers_leave_room_for_known_peers() {
    let (mut bob, now) = (Proposals::default(), Instant::now());
    for id in ["", &"i".repeat(LONGEST_ID + 1)] {
        assert!(!rings(&mut bob, MALLORY, id, now));
    }
    assert!(rings(&mut bob, MALLORY, &"i".repeat(LONGEST_ID), now));
    // Other resources and other ids are the same peer.
    let of_mallory = |n| format!("mallory@m.example/{n}");
    let taken = (0..100).filter(|n| rings(&mut bob, &of_mallory(*n), &n.to_string(), now)).count();
    assert_eq!(taken, OF_PEER - 1);
    // One domain, whatever names are below it, leaves room for strangers of other domains.
    for n in 0..100 {
        rings(&mut bob, &format!("m{n}@s{n}.m.example/x"), "p", now);
    }
    assert_eq!(bob.incoming.len(), OF_STRANGERS / 2);
    for n in 0..100 {
        rings(&mut bob, &format!("m@m{n}.test/x"), "p", now);
    }
    assert_eq!(bob.incoming.len(), OF_STRANGERS);
    for n in 0..100 {
        rings(&mut bob, &format!("alice@a{n}.example/x"), "p", now);
    }
    assert_eq!(bob.incoming.len(), OPEN);
    assert!(!rings(&mut bob, "alice@a.example/x", "p", now));
    assert!(rings(&mut bob, "alice@a.example/x", "p", now + RING));
    assert_eq!(bob.incoming.len(), 1);
}

#[test]
fn a_peer_that_proposes_and_retracts_without_end_gets_few_answers() {
    let (mut bob, begin) = (Proposals::default(), Instant::now());
    // Other resources are the same peer.
    let mut answers = |from: &str, second: u64| {
        let now = begin + Duration::from_secs(second);
        let is_answered = |n: &u32| {
            let (from, id) = (format!("{from}/{}", n % 3), n.to_string());
            let is_new = rings(&mut bob, &from, &id, now);
            hear(&mut bob, &from, Action::Retract, &id);
            is_new
        };
        (0..20).filter(is_answered).count()
    };
    for peer in ["alice@a.example", "mallory@m.example"] {
        for (second, expected) in [(0, 4), (9, 0), (10, 1), (30, 2), (31, 0), (1000, 4)] {
            assert_eq!(answers(peer, second), expected, "{peer} {second}");
        }
    }
    // One domain leaves room for others.
    let many = (0..1000).filter(|n| answers(&format!("m{n}@m.test"), 2000) > 0).count();
    assert_eq!(many, ANSWERED / 2);
    let many = (0..1000).filter(|n| answers(&format!("m{n}@m{n}.test"), 2000) > 0).count();
    assert_eq!(many, ANSWERED / 2);
    assert_eq!(answers("alice@a.example", 2000), 4, "a known peer");
    assert_eq!(answers("other@m.test", 2040), 4);
}

#[test]
fn of_two_proposals_that_cross_the_lower_one_stays_on_both_sides() {
    let users = [bare("alice@a.example"), bare(BOB)];
    // Ids, and whether Alice's stays. Octets decide; between equal ids the lower address does.
    for (of_alice, of_bob, stays) in
        [("a", "b", true), ("b", "a", false), ("B", "a", true), ("a", "a", true), ("a", "aa", true)]
    {
        let (mut alice, mut bob) = (Proposals::default(), Proposals::default());
        alice.propose(of_alice.to_owned(), jid(BOB));
        bob.propose(of_bob.to_owned(), jid("alice@a.example"));
        let at_alice = alice.cross(&full(PHONE), of_bob, [&users[0], &users[1]]);
        let from = full("alice@a.example/x");
        let at_bob = bob.cross(&from, of_alice, [&users[1], &users[0]]);
        let lost = |id: &str| Some(Crossing::Theirs(vec![id.to_owned()]));
        let expected = match stays {
            true => (Some(Crossing::Ours), lost(of_bob)),
            false => (lost(of_alice), Some(Crossing::Ours)),
        };
        assert_eq!((at_alice, at_bob), expected, "{of_alice} {of_bob}");
        assert_eq!((alice.forget(of_alice), bob.forget(of_bob)), (stays, !stays));
    }
}

#[test]
fn proposals_to_others_and_those_that_were_answered_do_not_cross() {
    let users = [bare("alice@a.example"), bare(BOB)];
    let mut alice = Proposals::default();
    alice.propose("z".to_owned(), jid("carol@c.example"));
    assert_eq!(alice.cross(&full(PHONE), "a", [&users[0], &users[1]]), None);
    alice.propose("y".to_owned(), jid(BOB));
    assert!(hear(&mut alice, PHONE, Action::Proceed, "y").is_some());
    assert_eq!(alice.cross(&full(DESK), "a", [&users[0], &users[1]]), None);
    assert!(alice.forget("y") && alice.forget("z"));
}

proptest! {
    /// Whatever comes in whatever order: at most one resource gets the session, nothing follows the end, and the limits hold.
    #[test]
    fn any_messages_in_any_order(
        heard in prop::collection::vec((0..6_usize, 0..5_usize, "[pq]{0,2}", any::<bool>(), any::<bool>()), 0..60)
    ) {
        let senders = [PHONE, DESK, BOB, MALLORY, "mallory@m.example"];
        let (mut proposals, now) = (proposed(), Instant::now());
        let (mut taken, mut over) = (0, false);
        for (action, from, id, is_tie_break, answers) in heard {
            let (from, action) = (jid(senders[from]), Action::ALL[action]);
            let news = proposals.handle(Said { from: &from, action, id: &id, reason: None, is_tie_break });
            prop_assert!(news.is_none() || id == "p" && from.to_bare() == bare(BOB) && !over);
            match news {
                Some(News::Proceeds(by)) => {
                    taken += 1;
                    prop_assert_eq!(Jid::from(by), from.clone());
                }
                Some(News::Rejected(_) | News::Ended | News::Crossed) => over = true,
                Some(News::Ringing) => prop_assert_eq!(taken, 0),
                None => {}
            }
            if action == Action::Propose
                && let Ok(from) = FullJid::try_from(from)
                && rings(&mut proposals, from.as_str(), &id, now)
                && answers
            {
                prop_assert!(proposals.proceed(&from, &id, now));
            }
            prop_assert!(proposals.incoming.len() <= OPEN && taken <= 1);
        }
        prop_assert_eq!(proposals.forget("p"), !over);
    }
}
