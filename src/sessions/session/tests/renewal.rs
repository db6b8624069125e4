//! Streams whose broken legs are replaced.

use fingerpost_wire::transport;

use super::*;
use crate::sessions::journal::{LeftSession, Renewable};

const PATHS: &str = "<paths xmlns='urn:fingerpost:paths:0'/>";

/// Returns a session over SOCKS5 whose bytes flow, with this element in both contents.
fn joined(agreed: &str) -> World {
    let offer = content(&format!("{S5B_OFFER}{agreed}"));
    let options = BrokerOptions { direct: true, ..BrokerOptions::of_tests() };
    let mut world = World::with(std::slice::from_ref(&offer), 0, options);
    world.look_up(&[ns::JINGLE_S5B]);
    world.answer("jingle");
    world.jingle(Side::Responder, "session-accept", &offer);
    world.tell(SessionInput::Keys(Side::Responder, Ok(Vec::new())));
    connect(&mut world);
    assert!(world.joined());
    world
}

fn connect(world: &mut World) {
    connect_over(world, ["s"; 2]);
}

/// Connects both users over the bytestreams with these ids.
fn connect_over(world: &mut World, sids: [&str; 2]) {
    for (side, sid) in Side::BOTH.into_iter().zip(sids) {
        world.tell(SessionInput::Arrived(side));
        let news = news("<candidate-used cid='x'/>").replace("sid='s'", &format!("sid='{sid}'"));
        world.jingle(side, "transport-info", &news);
    }
}

fn broken(world: &mut World) {
    let end = Ended::Error(io::ErrorKind::ConnectionReset);
    world.tell(SessionInput::Relayed(StreamOutcome { a_to_b: 7, b_to_a: 7, end }));
}

fn replace(world: &mut World) {
    let other = S5B_OFFER.replace("a-stream", "another");
    world.other.clear();
    world.asked.clear();
    world.sent.clear();
    world.jingle(Side::Initiator, "transport-replace", &content(&other));
}

fn sid(jingle: &Element) -> String {
    let content = jingle.children().find(|child| child.name() == "content").unwrap();
    let transport = content.children().find(|child| child.name() == "transport").unwrap();
    transport.attr("sid").unwrap().to_owned()
}

#[test]
fn both_legs_of_a_broken_stream_are_replaced_by_new_ones() {
    for is_running in [false, true] {
        let mut world = joined(PATHS);
        if !is_running {
            broken(&mut world);
        }
        replace(&mut world);
        assert!(matches!(world.other.first(), Some(SessionAction::Part)), "{:?}", world.other);
        assert_eq!(sid(&world.told(Side::Initiator, "transport-accept")[0]), "another");
        let (side, _, offered) = world.asked.pop().unwrap();
        assert_eq!((side, offered.attr("action")), (Side::Responder, Some("transport-replace")));
        let answer = S5B_OFFER.replace("a-stream", &sid(&offered));
        world.jingle(Side::Responder, "transport-accept", &content(&answer));
        assert!(!world.joined());
        // What is late, and about the legs before, means nothing.
        for what in ["<candidate-used cid='x'/>", "<candidate-error/>", "<proxy-error/>"] {
            for side in Side::BOTH {
                world.jingle(side, "transport-info", &news(what));
            }
        }
        assert!(!world.joined());
        connect_over(&mut world, ["another", &sid(&offered)]);
        assert!(world.joined() && world.terminated().is_empty());
    }
}

#[test]
fn the_rejection_of_an_older_offer_does_not_end_the_session() {
    let mut world = joined(PATHS);
    replace(&mut world);
    let (_, _, older) = world.asked.pop().unwrap();
    replace(&mut world);
    let (_, _, newer) = world.asked.pop().unwrap();
    let reject = |of: &Element| content(&S5B_OFFER.replace("a-stream", &sid(of)));
    world.jingle(Side::Responder, "transport-reject", &reject(&older));
    assert!(!world.session.is_over());
    world.jingle(Side::Responder, "transport-reject", &reject(&newer));
    assert_eq!(reasons(&world), ["failed-transport"; 2]);
}

/// A program ends a leg that it takes for lost, and the other one then ends its own.
#[test]
fn a_stream_whose_legs_have_both_ended_can_be_gone_on_with() {
    for agreed in [PATHS, ""] {
        let mut world = joined(agreed);
        let end = Ended::Eof;
        world.tell(SessionInput::Relayed(StreamOutcome { a_to_b: 7, b_to_a: 7, end }));
        assert_eq!(world.session.renewable().is_some(), agreed == PATHS);
        // A user that seems to have gone has time to come back, also if no server says anything.
        world.tell(SessionInput::Gone(Side::Initiator));
        assert_eq!(world.session.is_over(), agreed != PATHS);
        if agreed != PATHS {
            continue;
        }
        world.now += AGAIN;
        world.answer_ping(Side::Initiator, Answer::Timeout);
        world.now += RENEWAL - AGAIN - Duration::from_secs(1);
        world.tell(SessionInput::Timeout);
        assert!(!world.session.is_over());
        let mut other = joined(agreed);
        other.tell(SessionInput::Relayed(StreamOutcome { a_to_b: 7, b_to_a: 7, end }));
        replace(&mut other);
        assert!(matches!(other.other.first(), Some(SessionAction::Part)), "{:?}", other.other);
        world.now += Duration::from_secs(1);
        world.tell(SessionInput::Timeout);
        assert_eq!(reasons(&world), ["gone"; 2]);
    }
}

#[test]
fn a_ping_without_an_answer_does_not_shorten_the_time_to_go_on() {
    let mut world = joined(PATHS);
    world.tell(SessionInput::Gone(Side::Initiator));
    world.tell(SessionInput::Timeout);
    broken(&mut world);
    world.answer_ping(Side::Initiator, Answer::Timeout);
    assert!(!world.session.is_over());
    world.now += RENEWAL;
    world.tell(SessionInput::Timeout);
    assert!(world.session.is_over());
}

#[test]
fn legs_are_not_replaced_without_end() {
    let mut world = joined(PATHS);
    for n in 0..105 {
        replace(&mut world);
        let parted = world.other.iter().any(|action| matches!(action, SessionAction::Part));
        assert_eq!(parted, n < 100, "{n}");
        // The other user agrees, so no request is open.
        let Some((_, _, offered)) = world.asked.last().cloned() else { continue };
        world.answer("jingle");
        let answer = S5B_OFFER.replace("a-stream", &sid(&offered));
        world.jingle(Side::Responder, "transport-accept", &content(&answer));
    }
}

/// The initiator begins again, gets its half of the new stream, and the responder's server answers in its place. Returns whether the
/// session goes on.
fn unheard(world: &mut World, answer: Answer) -> bool {
    replace(world);
    let Some((_, number, offered)) = world.asked.pop() else { return false };
    assert_eq!(offered.attr("action"), Some("transport-replace"));
    world.tell(SessionInput::Answered(number, answer));
    let cuts =
        |world: &World| world.other.iter().filter(|one| matches!(one, SessionAction::Part)).count();
    world.now += Duration::from_secs(1);
    world.tell(SessionInput::Timeout);
    assert_eq!(cuts(world), 1, "it is still connecting");
    world.tell(SessionInput::Arrived(Side::Initiator));
    let used = news("<candidate-used cid='x'/>").replace("sid='s'", "sid='another'");
    world.jingle(Side::Initiator, "transport-info", &used);
    world.now += Duration::from_secs(1);
    world.tell(SessionInput::Timeout);
    if world.session.is_over() {
        return false;
    }
    assert_eq!(cuts(world), 2, "{:?}", world.other);
    // What was late is of no leg.
    world.jingle(Side::Initiator, "transport-info", &used);
    world.jingle(
        Side::Responder,
        "transport-accept",
        &content(&S5B_OFFER.replace("a-stream", &sid(&offered))),
    );
    world.jingle(Side::Responder, "transport-info", &news("<candidate-error/>"));
    true
}

#[test]
fn an_attempt_of_which_the_responder_does_not_know_is_cut_and_repeated_for_a_while() {
    for answer in [not_connected(), Answer::Timeout] {
        // The responder comes back at the last moment.
        let mut world = joined(PATHS);
        for _ in 0..9 {
            assert!(unheard(&mut world, answer.clone()));
        }
        replace(&mut world);
        let (_, number, offered) = world.asked.pop().unwrap();
        world.tell(SessionInput::Answered(number, Answer::Result(None)));
        let accept = S5B_OFFER.replace("a-stream", &sid(&offered));
        world.jingle(Side::Responder, "transport-accept", &content(&accept));
        world.now += Duration::from_secs(5);
        world.tell(SessionInput::Timeout);
        connect_over(&mut world, ["another", &sid(&offered)]);
        assert!(world.joined() && world.terminated().is_empty());

        // It does not.
        let mut world = joined(PATHS);
        let begin = world.now;
        while unheard(&mut world, answer.clone()) {}
        let time = world.now - begin;
        assert!((RENEWAL..RENEWAL + Duration::from_secs(5)).contains(&time), "{time:?}");
        assert_eq!(reasons(&world), ["timeout", "timeout"]);
    }
}

/// The first offer was never answered, and the initiator has begun again since.
#[test]
fn an_answer_to_an_older_offer_cuts_nothing() {
    for answer in [not_connected(), Answer::Timeout] {
        let mut world = joined(PATHS);
        replace(&mut world);
        let (_, older, _) = world.asked.pop().unwrap();
        replace(&mut world);
        let (_, _, offered) = world.asked.pop().unwrap();
        connect_over(&mut world, ["another", &sid(&offered)]);
        world.other.clear();
        world.tell(SessionInput::Answered(older, answer));
        world.now += Duration::from_secs(2);
        world.tell(SessionInput::Timeout);
        assert!(!world.other.iter().any(|one| matches!(one, SessionAction::Part)));
    }
}

#[test]
fn a_stream_that_nobody_goes_on_with_ends_with_its_own_reason() {
    let mut world = joined(PATHS);
    broken(&mut world);
    world.now += Duration::from_secs(19);
    world.tell(SessionInput::Timeout);
    assert!(!world.session.is_over());
    world.now += Duration::from_secs(1);
    world.tell(SessionInput::Timeout);
    let reasons = world.terminated().into_iter().map(|(_, reason)| reason);
    assert_eq!(reasons.collect::<Vec<_>>(), ["connectivity-error"; 2]);
    // Without the agreement it ends at once, and nothing is replaced.
    let mut world = joined("");
    replace(&mut world);
    assert_eq!(world.told(Side::Initiator, "transport-reject").len(), 1);
    broken(&mut world);
    world.now += Duration::from_secs(1);
    world.tell(SessionInput::Timeout);
    assert!(world.session.is_over());
}

/// Both servers answer so for a user that is not yet connected again after a restart.
fn not_connected() -> Answer {
    Answer::Error(Refusal::service_unavailable().to_element())
}

/// A joined session with this agreement, with in-band legs if it says so. One user seems to have gone, and bytes no longer flow.
fn lost(side: Side, agreed: &str, in_band: bool) -> World {
    let mut world = if in_band {
        let transport = format!("{IBB_OFFER}{agreed}");
        let options = BrokerOptions { direct: true, ..BrokerOptions::of_tests() };
        let mut world = World::with(&[content(&transport)], 0, options);
        world.look_up(&[ns::JINGLE_IBB]);
        world.answer("jingle");
        world.accept(&transport);
        world.open(Side::Initiator, "a-stream");
        world.answer("open");
        assert!(world.joined());
        world
    } else {
        joined(agreed)
    };
    world.tell(SessionInput::Check);
    world.answer_ping(side, not_connected());
    if !in_band {
        broken(&mut world);
    }
    world
}

#[test]
fn a_user_that_is_not_yet_connected_again_has_time_to_come_back() {
    for (side, in_band) in Side::BOTH.into_iter().flat_map(|side| [(side, false), (side, true)]) {
        // It comes back, and the stream goes on.
        let mut world = lost(side, PATHS, in_band);
        assert!(world.terminated().is_empty() && !world.session.is_over(), "{side:?}, {in_band}");
        world.now += AGAIN;
        world.answer_ping(side, not_connected());
        world.tell(SessionInput::Gone(side));
        world.now += AGAIN;
        world.answer_ping(side, Answer::Result(None));
        replace(&mut world);
        assert!(matches!(world.other.first(), Some(SessionAction::Part)), "{:?}", world.other);
        assert!(world.terminated().is_empty() && !world.session.is_over(), "{side:?}, {in_band}");

        // It does not.
        let mut world = lost(side, PATHS, in_band);
        for _ in 0..3 {
            world.now += AGAIN;
            world.answer_ping(side, not_connected());
            assert!(!world.session.is_over());
        }
        world.now += AGAIN;
        world.tell(SessionInput::Timeout);
        assert_eq!(reasons(&world), ["gone", "gone"], "{side:?}, {in_band}");

        // Its program has forgotten the session.
        let mut world = lost(side, PATHS, in_band);
        world.now += AGAIN;
        world.answer_ping(side, Answer::Error(Refusal::unknown_session("gone").to_element()));
        assert_eq!(reasons(&world), ["gone"], "{side:?}, {in_band}");

        // Nobody could go on with the stream.
        let world = lost(side, "", in_band);
        assert!(world.session.is_over());
        assert!(reasons(&world).iter().all(|reason| reason == "gone"));
    }
}

#[test]
fn only_the_initiator_replaces_legs_and_a_responder_that_refuses_ends_the_session() {
    let mut world = joined(PATHS);
    world.other.clear();
    world.jingle(Side::Responder, "transport-replace", &content(S5B_OFFER));
    assert_eq!(world.told(Side::Responder, "transport-reject").len(), 1);
    assert!(!world.other.iter().any(|action| matches!(action, SessionAction::Part)));
    replace(&mut world);
    let (_, _, offered) = world.asked.pop().unwrap();
    let rejected = S5B_OFFER.replace("a-stream", &sid(&offered));
    world.jingle(Side::Responder, "transport-reject", &content(&rejected));
    assert_eq!(world.terminated().len(), 2);
    assert!(world.session.is_over());
}

/// Returns what another run gets of a session, with the time by which somebody must go on with it.
fn restored(left: &World) -> (World, Duration) {
    restored_with(left, BrokerOptions::of_tests())
}

/// Does the same with the options of that run.
fn restored_with(left: &World, options: BrokerOptions) -> (World, Duration) {
    restored_as(left, options, left.session.renewable().unwrap())
}

/// Does the same with what that run has read.
fn restored_as(left: &World, options: BrokerOptions, renewable: Renewable) -> (World, Duration) {
    let patience = Duration::from_secs(90);
    let peers = left.session.peers().clone();
    let options = Arc::new(options);
    let left_session = LeftSession { session: "s".to_owned(), peers, renewable };
    let until = left.now + patience;
    let session = BrokeredSession::restored(options, count_up, left_session, left.now, until);
    let (asked, sent, other) = (Vec::new(), Vec::new(), Vec::new());
    (World { session, now: left.now, asked, sent, other }, patience)
}

#[test]
fn a_stop_keeps_a_session_that_another_run_can_go_on_with_and_says_nothing() {
    for (agreed, goes_on) in [(PATHS, true), ("", false)] {
        let mut world = joined(agreed);
        world.tell(SessionInput::GoOnElsewhere);
        assert_eq!((world.session.is_over(), world.terminated().len()), (goes_on, 0));
        for stop in [SessionInput::Drain(Instant::now()), SessionInput::EndInBand] {
            let mut world = joined(agreed);
            assert_eq!(world.session.renewable().is_some(), goes_on);
            world.tell(stop);
            assert!(world.session.is_over());
            let left = world.other.iter().any(|action| matches!(action, SessionAction::Leave));
            assert_eq!((left, world.terminated().len()), (goes_on, if goes_on { 0 } else { 2 }));
        }
    }
    // A stream that nobody can go on with has ended in order.
    let mut world = joined("");
    let end = Ended::Eof;
    world.tell(SessionInput::Relayed(StreamOutcome { a_to_b: 7, b_to_a: 7, end }));
    assert_eq!(world.session.renewable(), None);
    world.tell(SessionInput::Drain(world.now));
    assert_eq!(reasons(&world), ["success", "success"]);
}

/// The reasons that users got.
fn reasons(world: &World) -> Vec<String> {
    world.terminated().into_iter().map(|(_, reason)| reason).collect()
}

#[test]
fn a_stop_passes_the_reason_on_that_a_user_has_given_while_the_stream_runs_out() {
    for agreed in [PATHS, ""] {
        let mut world = joined(agreed);
        world.tell(SessionInput::Drain(world.now + RENEWAL));
        world.jingle(Side::Responder, "session-terminate", "<reason><success/></reason>");
        assert!(!world.session.is_over());
        world.now += RENEWAL;
        world.tell(SessionInput::Timeout);
        assert!(world.session.is_over());
        assert_eq!(reasons(&world), ["success"]);
    }
}

#[test]
fn another_run_goes_on_with_a_session_over_new_legs() {
    let (mut world, _) = restored(&joined(PATHS));
    // Users may seem absent to a server that has just lost the component.
    world.tell(SessionInput::Gone(Side::Responder));
    world.tell(SessionInput::Check);
    assert!(world.asked.is_empty() && !world.session.is_over());
    world.open(Side::Initiator, "a-stream");
    assert_eq!(world.refused(), ["not-acceptable"]);
    world.now += PING;
    world.tell(SessionInput::Timeout);
    assert!(world.asked.is_empty() && !world.session.is_over(), "and is not asked");
    replace(&mut world);
    assert!(matches!(world.other.first(), Some(SessionAction::Part)), "{:?}", world.other);
    assert_eq!(sid(&world.told(Side::Initiator, "transport-accept")[0]), "another");
    let (_, _, offered) = world.asked.pop().unwrap();
    let answer = S5B_OFFER.replace("a-stream", &sid(&offered));
    world.jingle(Side::Responder, "transport-accept", &content(&answer));
    connect_over(&mut world, ["another", &sid(&offered)]);
    assert!(world.joined() && world.terminated().is_empty());
    assert!(world.session.renewable().is_some(), "and the next run too");
}

/// Nobody else tells it: the blocks under way were lost with the earlier run.
#[test]
fn another_run_tells_the_initiator_that_an_in_band_leg_is_gone() {
    let left = joined(PATHS);
    for (namespace, is_told) in [(ns::JINGLE_IBB, true), (ns::JINGLE_S5B, false)] {
        let mut renewable = left.session.renewable().unwrap();
        renewable.transports.responder = namespace;
        let (mut world, _) = restored_as(&left, BrokerOptions::of_tests(), renewable);
        world.tell(SessionInput::Check);
        let told = world.told(Side::Initiator, "session-info");
        let lost = told.iter().filter(|told| told.has_child("lost", ns::PATHS));
        assert_eq!(lost.count(), usize::from(is_told), "{namespace}");
        assert!(world.told(Side::Responder, "session-info").is_empty() && world.asked.is_empty());
    }
}

/// The operator has switched SOCKS5 off since.
#[test]
fn another_run_offers_the_responder_no_transport_that_it_does_not_have() {
    let options = BrokerOptions { socks5: false, ..BrokerOptions::of_tests() };
    let (mut world, _) = restored_with(&joined(PATHS), options);
    let transport = transport::ibb(ns::JINGLE_IBB, "another", 4096);
    world.jingle(Side::Initiator, "transport-replace", &content(&String::from(&transport)));
    let (_, _, offered) = world.asked.pop().unwrap();
    let offer = offered.children().find(|child| child.name() == "content").unwrap();
    assert!(offer.has_child("transport", ns::JINGLE_IBB), "{offered:?}");
    let answer = transport::ibb(ns::JINGLE_IBB, &sid(&offered), 4096);
    world.other.clear();
    world.jingle(Side::Responder, "transport-accept", &content(&String::from(&answer)));
    assert!(world.terminated().is_empty() && !world.session.is_over());
}

#[test]
fn a_session_that_nobody_goes_on_with_in_another_run_is_forgotten_without_a_word() {
    let (mut world, patience) = restored(&joined(PATHS));
    world.now += patience;
    world.tell(SessionInput::Timeout);
    assert!(world.session.is_over());
    assert!(world.sent.is_empty() && world.asked.is_empty());
    // A stop does not wait for it.
    let (mut world, _) = restored(&joined(PATHS));
    world.tell(SessionInput::Drain(world.now + patience));
    assert!(world.session.is_over() && world.sent.is_empty());
    // A user that ends it ends it for both.
    let (mut world, _) = restored(&joined(PATHS));
    world.jingle(Side::Responder, "session-terminate", "<reason><success/></reason>");
    assert_eq!(world.told(Side::Initiator, "session-terminate").len(), 1);
    assert!(world.session.is_over());
}
