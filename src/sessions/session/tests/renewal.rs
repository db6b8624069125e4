//! Streams whose broken legs are replaced.

use super::*;

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
    for side in Side::BOTH {
        world.tell(SessionInput::Arrived(side));
        world.jingle(side, "transport-info", &news("<candidate-used cid='x'/>"));
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
        connect(&mut world);
        assert!(world.joined() && world.terminated().is_empty());
    }
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

#[test]
fn only_the_initiator_replaces_legs_and_a_responder_that_refuses_ends_the_session() {
    let mut world = joined(PATHS);
    world.other.clear();
    world.jingle(Side::Responder, "transport-replace", &content(S5B_OFFER));
    assert_eq!(world.told(Side::Responder, "transport-reject").len(), 1);
    assert!(!world.other.iter().any(|action| matches!(action, SessionAction::Part)));
    replace(&mut world);
    world.jingle(Side::Responder, "transport-reject", &content(S5B_OFFER));
    assert_eq!(world.terminated().len(), 2);
    assert!(world.session.is_over());
}
