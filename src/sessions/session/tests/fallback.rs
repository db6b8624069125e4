//! From SOCKS5 to in-band bytestreams, on either leg.

use super::*;

/// Returns a session that is accepted, with a SOCKS5 leg on either side.
fn accepted(offer: &str) -> World {
    let mut world = World::initiated(offer, &[ns::JINGLE_S5B]);
    world.accept(S5B_OFFER);
    world.answer("jingle");
    world
}

fn in_band(sid: &str) -> String {
    format!(
        "<content creator='initiator' name='c'><transport xmlns='urn:xmpp:jingle:transports:ibb:1' \
         sid='{sid}' block-size='2048'/></content>"
    )
}

/// Takes our transport-replace to a side from the sent requests: its number and the id of the bytestream.
fn replace(world: &mut World, side: Side) -> (u32, String) {
    let at = world
        .asked
        .iter()
        .position(|(to, _, e)| *to == side && e.attr("action") == Some("transport-replace"));
    let (_, number, jingle) = world.asked.remove(at.expect("a transport-replace"));
    let content = jingle.get_child("content", ns::JINGLE).unwrap();
    let transport = content.get_child("transport", ns::JINGLE_IBB).unwrap();
    (number, transport.attr("sid").unwrap().to_owned())
}

#[test]
fn socks5_that_fails_on_one_leg_becomes_in_band_there_alone() {
    let mut world = World::initiated(S5B_OFFER, &[ns::JINGLE_S5B]);
    world.accept(S5B_OFFER);
    world.jingle(Side::Responder, "transport-info", &news("<candidate-error/>"));
    let (side, _, replace) = world.asked.last().unwrap();
    assert_eq!((*side, replace.attr("action")), (Side::Responder, Some("transport-replace")));
    let accept = "<content creator='initiator' name='c'>\
                  <transport xmlns='urn:xmpp:jingle:transports:ibb:1' sid='x' block-size='2048'/></content>";
    world.jingle(Side::Responder, "transport-accept", accept);
    let (_, _, open) = world.asked.last().unwrap();
    assert_eq!((open.name(), open.attr("block-size")), ("open", Some("2048")));
    assert!(
        matches!(world.session.legs.initiator.plan, Plan::S5b { .. }),
        "the other leg is untouched"
    );
    // The initiator's own fallback is answered on its leg.
    world.sent.clear();
    world.jingle(
        Side::Initiator,
        "transport-replace",
        &format!("<content creator='initiator' name='c'>{IBB_OFFER}</content>"),
    );
    let told = world.sent.last().unwrap().get_child("jingle", ns::JINGLE).unwrap();
    assert_eq!(told.attr("action"), Some("transport-accept"));
}

#[test]
fn on_the_responders_leg_our_replacement_overrules_the_users() {
    let mut world = accepted(S5B_OFFER);
    world.jingle(Side::Responder, "transport-info", &news("<candidate-error/>"));
    let (_, ours) = replace(&mut world, Side::Responder);
    world.jingle(Side::Responder, "transport-replace", &in_band("theirs"));
    assert_eq!(world.refused(), ["conflict", "tie-break"]);
    world.jingle(Side::Responder, "transport-accept", &in_band(&ours));
    let (_, _, open) = world.asked.last().unwrap();
    assert_eq!((open.name(), open.attr("sid")), ("open", Some(ours.as_str())));
}

#[test]
fn on_the_initiators_leg_the_users_replacement_overrules_ours() {
    let mut world = accepted(S5B_OFFER);
    world.jingle(Side::Initiator, "transport-info", &news("<candidate-error/>"));
    assert_eq!(world.told(Side::Initiator, "transport-replace"), [], "it is the user's to offer");
    assert_eq!(world.session.deadline().unwrap(), world.now + Duration::from_secs(5));
    world.wait();
    let (number, _) = replace(&mut world, Side::Initiator);
    world.jingle(Side::Initiator, "transport-replace", &in_band("theirs"));
    assert_eq!(world.told(Side::Initiator, "transport-accept").len(), 1);
    let tie = Refusal::new(ErrorType::Cancel, Condition::Conflict, "")
        .with_extra("tie-break", ns::JINGLE_ERRORS);
    world.tell(SessionInput::Answered(number, Answer::Error(tie.to_element())));
    assert!(!world.session.is_over());
    assert_eq!(world.session.stream_sid(Side::Initiator), "theirs");
    world.open(Side::Initiator, "theirs");
    assert!(world.session.legs.initiator.ready);
}

#[test]
fn an_initiator_that_only_reports_a_failure_is_offered_an_in_band_leg() {
    let mut world = accepted(S5B_OFFER);
    world.jingle(Side::Initiator, "transport-info", &news("<candidate-error/>"));
    world.wait();
    let (_, sid) = replace(&mut world, Side::Initiator);
    world.jingle(Side::Initiator, "transport-accept", &in_band(&sid));
    // Either side may open it: if ours is refused, we wait for the user's own.
    let (side, number, open) = world.asked.pop().unwrap();
    assert_eq!(
        (side, open.name(), open.attr("block-size")),
        (Side::Initiator, "open", Some("2048"))
    );
    let refusal = Refusal::new(ErrorType::Cancel, Condition::NotAcceptable, "").to_element();
    world.tell(SessionInput::Answered(number, Answer::Error(refusal)));
    assert!(!world.session.is_over());
    world.open(Side::Initiator, &sid);
    assert!(world.session.legs.initiator.ready);
}

#[test]
fn a_user_that_says_nothing_of_its_choice_is_offered_an_in_band_leg() {
    let mut world = accepted(S5B_OFFER);
    assert_eq!(world.session.deadline().unwrap(), world.now + Duration::from_secs(20));
    world.wait();
    for side in Side::BOTH {
        replace(&mut world, side);
    }
    assert!(!world.session.is_over());
}

#[test]
fn a_rejected_replacement_leaves_socks5_if_it_has_come_up() {
    for how in ["transport-reject", "error", "silence"] {
        for connected in [true, false] {
            let mut world = accepted(S5B_OFFER);
            world.wait();
            let (number, sid) = replace(&mut world, Side::Responder);
            if connected {
                world.tell(SessionInput::Arrived(Side::Responder));
                world.jingle(Side::Responder, "transport-info", &news("<candidate-used cid='x'/>"));
                assert!(!world.session.legs.responder.ready, "not before the answer");
            }
            match how {
                "transport-reject" => world.jingle(Side::Responder, how, &in_band(&sid)),
                "error" => {
                    let refusal = Refusal::service_unavailable().to_element();
                    world.tell(SessionInput::Answered(number, Answer::Error(refusal)));
                }
                _ => world.tell(SessionInput::Answered(number, Answer::Timeout)),
            }
            assert_eq!(world.session.legs.responder.ready, connected, "{how}");
            assert_eq!(world.session.is_over(), !connected, "{how}");
            if !connected {
                let reasons = world.terminated();
                assert_eq!(reasons.len(), 2);
                assert!(reasons.iter().all(|(_, reason)| reason == "failed-transport"));
            }
        }
    }
}

#[test]
fn a_users_own_candidate_here_is_used_when_activated_and_replaced_when_it_fails() {
    let offer = "<transport xmlns='urn:xmpp:jingle:transports:s5b:1' sid='own-proxy'/>";
    for (news_of_user, ready) in [("<activated cid='own-proxy'/>", true), ("<proxy-error/>", false)]
    {
        let mut world = accepted(offer);
        let used = world.told(Side::Initiator, "transport-info").pop().unwrap();
        assert!(String::from(&used).contains("<candidate-used cid='own-proxy'"), "{used:?}");
        world.tell(SessionInput::Arrived(Side::Initiator));
        // Our connection is not wanted, which does not matter: its own is.
        world.jingle(Side::Initiator, "transport-info", &news("<candidate-error/>"));
        assert!(!world.session.legs.initiator.ready);
        world.jingle(Side::Initiator, "transport-info", &news(news_of_user));
        assert_eq!(world.session.legs.initiator.ready, ready);
        if !ready {
            world.wait();
            replace(&mut world, Side::Initiator);
        }
    }
}

#[test]
fn late_news_of_socks5_do_not_disturb_an_in_band_leg() {
    let mut world = accepted(S5B_OFFER);
    world.jingle(Side::Initiator, "transport-replace", &in_band("theirs"));
    world.asked.clear();
    for news_of_user in ["<candidate-error/>", "<proxy-error/>", "<candidate-used cid='x'/>"] {
        world.jingle(Side::Initiator, "transport-info", &news(news_of_user));
    }
    world.tell(SessionInput::Arrived(Side::Initiator));
    assert!(!world.session.legs.initiator.ready);
    assert!(world.asked.is_empty());
}

#[test]
fn answers_to_what_was_not_offered_are_out_of_order() {
    let mut world = accepted(S5B_OFFER);
    for action in ["transport-accept", "transport-reject"] {
        for side in Side::BOTH {
            world.jingle(side, action, &in_band("none"));
            assert_eq!(world.refused(), ["unexpected-request", "out-of-order"]);
        }
    }
    assert!(!world.session.is_over());
}

#[test]
fn a_replacement_while_bytes_flow_is_rejected() {
    let mut world = accepted(S5B_OFFER);
    for side in Side::BOTH {
        world.tell(SessionInput::Arrived(side));
        world.jingle(side, "transport-info", &news("<candidate-used cid='x'/>"));
    }
    assert!(world.joined());
    world.jingle(Side::Responder, "transport-replace", &in_band("theirs"));
    assert_eq!(world.told(Side::Responder, "transport-reject").len(), 1);
    assert!(!world.session.is_over());
}

#[test]
fn a_bytestream_that_was_replaced_before_it_was_open_is_not_taken() {
    let mut world = World::initiated(IBB_OFFER, &[]);
    world.accept(IBB_OFFER);
    let at = world.asked.iter().position(|(_, _, e)| e.name() == "open").unwrap();
    let (_, old, _) = world.asked.remove(at);
    world.jingle(Side::Responder, "transport-replace", &in_band("theirs"));
    world.tell(SessionInput::Answered(old, Answer::Result(None)));
    assert!(!world.session.legs.responder.ready);
    world.answer("open");
    assert!(matches!(
        world.other.last(),
        Some(SessionAction::TakeStream(Side::Responder, sid, 2048, _)) if sid == "theirs"
    ));
}

#[test]
fn a_raw_stream_gets_its_socks5_candidates_before_it_is_accepted() {
    let mut world = World::new(S5B_OFFER, annotate());
    world.look_up(&[ns::JINGLE_S5B]);
    let (_, number, _) = world.asked.pop().unwrap();
    world.tell(SessionInput::Answered(number, Answer::Result(None)));
    let early = world.told(Side::Initiator, "transport-info").pop().unwrap();
    assert!(String::from(&early).contains("<candidate "), "{early:?}");
    for side in Side::BOTH {
        world.tell(SessionInput::Arrived(side));
        world.jingle(side, "transport-info", &news("<candidate-used cid='x'/>"));
        let said = world.told(side, "transport-info").pop().unwrap();
        assert!(String::from(&said).contains("<candidate-error"), "each side says its own");
    }
    assert!(world.joined());
}
