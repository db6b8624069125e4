//! The choice of the brokered content, and its dialect for each side.

use fingerpost_wire::{print::Method, word::Word};

use super::*;
use crate::sessions::{PlainFiles, features};

const SECURITY: &str = "urn:xmpp:jingle:security:xtls:0";

fn known(all: &[&str]) -> SessionInput {
    SessionInput::Features(all.iter().map(|&feature| feature.to_owned()).collect())
}

/// Returns the session-initiate for a responder whose client has these features.
fn passed(world: &mut World, all: &[&str]) -> Element {
    world.tell(known(all));
    world.tell(SessionInput::Keys(Side::Initiator, Ok(Vec::new())));
    world.told(Side::Responder, "session-initiate").pop().expect("it is passed on")
}

#[test]
fn an_offer_is_translated_for_the_responder_and_its_answer_for_the_initiator() {
    let mut world = World::new(IBB_OFFER, annotate());
    let initiate = passed(&mut world, &[SECURITY]);
    let got = initiate.get_child("content", ns::JINGLE).unwrap().clone();
    let security = got.get_child("security", ns::XTLS).expect("in its own dialect");
    assert_eq!(security.get_child("fingerprint", ns::XTLS).unwrap().text(), X509);
    assert_eq!(got.get_child("description", ns::APPS_TLS).unwrap().children().count(), 0);
    assert!(got.has_child("hints", ns::HINTS));

    let other = "E5:59:E9:8A:9B:C9:ED:0F:60:21:FD:EA:34:BF:24:E4:0D:B0:FE:FC";
    let answer = format!(
        "<content creator='initiator' name='c'><description xmlns='urn:xmpp:jingle:apps:tls'/>{IBB_OFFER}\
         <security xmlns='{SECURITY}'><fingerprint>{other}</fingerprint><method name='x509'/></security>\
         </content>"
    );
    world.jingle(Side::Responder, "session-accept", &answer);
    world.tell(SessionInput::Keys(Side::Responder, Ok(Vec::new())));
    let accept = world.told(Side::Initiator, "session-accept").pop().unwrap();
    let got = accept.get_child("content", ns::JINGLE).unwrap();
    assert!(!got.has_child("security", ns::XTLS));
    let offer = offer::Offer::read(got);
    assert_eq!(offer.methods, [Method::X509]);
    assert_eq!(offer.prints[0].1.to_string(), other);

    // The same holds for later stanzas of the initiator about the chosen method.
    let chosen = "<content creator='initiator' name='c'><description xmlns='urn:xmpp:jingle:apps:tls'>\
        <methods><method name='x509'/></methods></description></content>";
    world.jingle(Side::Initiator, "security-info", chosen);
    world.tell(SessionInput::Keys(Side::Initiator, Ok(Vec::new())));
    let info = world.told(Side::Responder, "security-info").pop().unwrap();
    assert!(info.get_child("content", ns::JINGLE).unwrap().has_child("security", ns::XTLS));
}

#[test]
fn the_method_of_an_answer_without_words_for_it_is_the_offered_one() {
    for method in ["x509", "openpgp"] {
        let offer = content(IBB_OFFER).replace("x509", method);
        let mut world = World::of(&[offer], 0, annotate());
        passed(&mut world, &[ns::C2CTLS]);
        let key = X509.replace(':', "").to_lowercase();
        let answer = format!(
            "<content creator='initiator' name='c'><description xmlns='urn:xmpp:jingle:apps:tls'>\
             <offer xmlns='urn:xmpp:tmp:c2ctls'><keyinfo xmlns='urn:xmpp:tmp:pubkey'><name>{key}</name></keyinfo>\
             </offer></description>{IBB_OFFER}</content>"
        );
        world.jingle(Side::Responder, "session-accept", &answer);
        world.tell(SessionInput::Keys(Side::Responder, Ok(Vec::new())));
        let accept = world.told(Side::Initiator, "session-accept").pop().unwrap();
        let got = accept.get_child("content", ns::JINGLE).unwrap();
        let hints = got.get_child("hints", ns::HINTS).unwrap();
        let methods: Vec<_> = hints.children().map(|hint| hint.attr("method")).collect();
        assert_eq!(methods, [Some(method)]);
        // The initiator reads it in its own dialect, under that method.
        assert_eq!(offer::Offer::read(got).methods, [Word::new(method)]);
    }
}

#[test]
fn each_leg_has_its_own_jingle() {
    for (offered, known, got) in [
        (ns::JINGLE, vec![], ns::JINGLE),
        (ns::JINGLE, vec![ns::JINGLE_0], ns::JINGLE_0),
        (ns::JINGLE, vec![ns::JINGLE_0, ns::JINGLE], ns::JINGLE),
        (ns::JINGLE_0, vec![], ns::JINGLE_0),
        (ns::JINGLE_0, vec![ns::JINGLE], ns::JINGLE),
        (ns::JINGLE_0, vec![ns::JINGLE_0, ns::JINGLE], ns::JINGLE_0),
    ] {
        let mut world = World::new(IBB_OFFER, annotate());
        for side in Side::BOTH {
            let peer = &mut world.session.peers[side];
            peer.namespace = offered;
        }
        let initiate = world.initiate();
        let moved = jingle::reframe(&initiate.element, ns::JINGLE, offered);
        *initiate = Stanza::parse(moved).unwrap();
        let initiate = passed(&mut world, &known);
        assert_eq!(initiate.ns(), got, "{offered} {known:?}");
        let content = initiate.get_child("content", got).expect("all of it");
        let old = got == ns::JINGLE_0;
        let ibb = if old { ns::JINGLE_IBB_0 } else { ns::JINGLE_IBB };
        let transport = content.get_child("transport", ibb).expect("its transport is as old");
        assert_eq!(transport.attr("block-size"), Some("8192"));
        assert!(transport.attr("sid").is_some());
    }
}

#[test]
fn of_several_contents_the_one_that_can_be_brokered_goes_on() {
    let plain = "<content creator='initiator' name='voice'><description xmlns='urn:x:rtp'/>\
        <transport xmlns='urn:x:ice'/></content>";
    let world = World::of(&[content(IBB_OFFER)], 0, annotate());
    let options = Arc::clone(&world.session.options);
    let jingle = |contents: &[String]| -> Element {
        format!("<jingle xmlns='urn:xmpp:jingle:1'>{}</jingle>", contents.concat()).parse().unwrap()
    };
    let foreign = content("<transport xmlns='urn:x:ice'/>").replace("name='c'", "name='ice'");
    let all = [plain.to_owned(), foreign.clone(), content(IBB_OFFER)];
    assert_eq!(choose(&jingle(&all), &options).unwrap().0, 2);
    let condition = |contents: &[String]| {
        Refusal::from(choose(&jingle(contents), &options).unwrap_err()).condition
    };
    assert_eq!(condition(&[]), Condition::BadRequest);
    for missing in ["name='c'", "creator='initiator'"] {
        let bare = content(IBB_OFFER).replace(missing, "");
        assert_eq!(condition(&[bare]), Condition::BadRequest, "{missing}");
    }
    assert_eq!(condition(&[plain.to_owned()]), Condition::NotAcceptable);
    assert_eq!(condition(&[plain.to_owned(), foreign]), Condition::FeatureNotImplemented);

    let mut world = World::of(&all, 2, annotate());
    let initiate = passed(&mut world, &[]);
    let names: Vec<_> = initiate.children().filter_map(|c| c.attr("name")).collect();
    assert_eq!(names, ["c"]);
    assert_eq!(
        world.told(Side::Initiator, "content-remove"),
        [],
        "not before it knows the session"
    );
    world.answer("jingle");
    let removed = world.told(Side::Initiator, "content-remove").pop().unwrap();
    let names: Vec<_> = removed.children().filter_map(|c| c.attr("name")).collect();
    assert_eq!(names, ["voice", "ice"]);
    assert!(removed.get_child("reason", ns::JINGLE).unwrap().has_child("text", ns::JINGLE));

    // Stanzas about the others have no effect; the accept is that of ours.
    let ice = "<content creator='initiator' name='ice'><transport xmlns='urn:x:ice'/></content>";
    world.jingle(Side::Initiator, "transport-info", ice);
    world.jingle(Side::Initiator, "transport-replace", ice);
    let rejected = world.told(Side::Initiator, "transport-reject").pop().unwrap();
    assert_eq!(rejected.children().next().unwrap().attr("name"), Some("ice"));
    world.jingle(Side::Responder, "session-accept", ice);
    assert_eq!(world.refused(), ["bad-request"]);
    world.accept(IBB_OFFER);
    assert_eq!(world.told(Side::Initiator, "session-accept").len(), 1);
}

#[test]
fn contents_of_one_name_do_not_pass_unchecked() {
    let other = content(S5B_OFFER).replace("x509", "srp");
    let mut world = World::of(&[content(IBB_OFFER), other], 0, annotate());
    let initiate = passed(&mut world, &[]);
    assert_eq!(initiate.children().filter(|c| c.name() == "content").count(), 1);
}

#[test]
fn a_content_that_is_added_later_is_rejected() {
    let mut world = World::initiated(IBB_OFFER, &[]);
    let added = content(S5B_OFFER).replace("name='c'", "name='more'");
    world.jingle(Side::Responder, "content-add", &added);
    assert_eq!(world.sent[0].attr("type"), Some("result"));
    let rejected = world.told(Side::Responder, "content-reject").pop().unwrap();
    assert_eq!(rejected.children().next().unwrap().attr("name"), Some("more"));
    assert_eq!(world.told(Side::Initiator, "content-add"), []);
}

const OTHER: &str = "E5:59:E9:8A:9B:C9:ED:0F:60:21:FD:EA:34:BF:24:E4:0D:B0:FE:FC";

/// Returns the verdicts in an element's hints, with the texts.
fn verdicts(element: &Element) -> Vec<(String, String)> {
    let hints = element.children().filter(|child| child.is("hints", ns::HINTS));
    let all = hints.flat_map(Element::children);
    all.map(|hint| (hint.attr("verdict").unwrap_or_default().to_owned(), hint.text())).collect()
}

/// Offers with this print: in a content in each dialect, and beside the contents.
fn later_offers(print: &str) -> Vec<String> {
    let content =
        |inside: &str| format!("<content creator='initiator' name='c'>{inside}</content>");
    let tls = |inside: &str| {
        format!("<description xmlns='urn:xmpp:jingle:apps:tls'>{inside}</description>")
    };
    let security = format!(
        "<security xmlns='{SECURITY}'><fingerprint>{print}</fingerprint><method name='x509'/></security>"
    );
    let offer = format!("<offer xmlns='urn:xmpp:security-offer'><print>{print}</print></offer>");
    vec![
        content(&tls(&format!(
            "<methods><method name='x509'><print>{print}</print></method></methods>"
        ))),
        content(&offer),
        content(&security),
        content(&tls(&format!(
            "<offer xmlns='urn:xmpp:tmp:c2ctls'><keyinfo xmlns='urn:xmpp:tmp:pubkey'><name>{print}</name>\
             </keyinfo></offer>"
        ))),
        security,
        offer,
    ]
}

#[test]
fn the_offers_of_later_stanzas_are_judged_and_hinted() {
    for action in ["session-info", "security-info", "description-info", "content-modify"] {
        for side in Side::BOTH {
            for print in [OTHER, "hello"] {
                for offer in later_offers(print) {
                    let mut world = World::initiated(IBB_OFFER, &[]);
                    world.jingle(side, action, &offer);
                    assert_eq!(world.told(side.other(), action), [], "not before it is judged");
                    // Later stanzas of both sides wait.
                    world.jingle(side.other(), "session-info", "");
                    assert_eq!(world.told(side, "session-info"), []);
                    world.tell(SessionInput::Keys(side, Ok(Vec::new())));
                    let got = world.told(side.other(), action).pop().expect("it is passed on");
                    let place = got.get_child("content", ns::JINGLE).unwrap_or(&got);
                    assert_eq!(verdicts(place), [("unknown".to_owned(), print.to_owned())]);
                    let printed = &offer::Offer::read(&got).prints[0].1;
                    assert_eq!(printed.to_string(), print, "{got:?}");
                    assert_eq!(world.told(side, "session-info").len(), 1);
                }
            }
        }
    }
}

#[test]
fn policy_holds_for_later_offers_too() {
    let after = |policies, offer: &str| {
        let mut world = World::new(IBB_OFFER, policies);
        world.look_up(&[]);
        world.answer("jingle");
        world.sent.clear();
        world.session.options = Arc::new(BrokerOptions {
            policies: Policies { unknown: policies.mismatch, ..policies },
            ..(*world.session.options).clone()
        });
        world.jingle(Side::Responder, "security-info", offer);
        world.tell(SessionInput::Keys(Side::Responder, Ok(Vec::new())));
        world
    };
    for print in [OTHER, "hello"] {
        for offer in later_offers(print) {
            let world = after(Policies { mismatch: VerdictPolicy::Strip, ..annotate() }, &offer);
            let got = world.told(Side::Initiator, "security-info").pop().unwrap();
            assert_eq!(offer::Offer::read(&got).prints, [], "{got:?}");
            let world = after(Policies { mismatch: VerdictPolicy::Reject, ..annotate() }, &offer);
            assert_eq!(world.told(Side::Initiator, "security-info"), []);
            let reasons = world.terminated();
            assert_eq!(reasons.len(), 2, "{reasons:?}");
            assert!(reasons.iter().all(|(_, reason)| reason == "security-error"), "{reasons:?}");
        }
    }
}

#[test]
fn an_offer_beside_the_content_or_in_one_of_another_namespace_is_not_hidden() {
    let beside = format!("<offer xmlns='urn:xmpp:security-offer'><print>{OTHER}</print></offer>");
    let foreign = content(IBB_OFFER).replace("<content ", "<content xmlns='urn:xmpp:jingle:0' ");
    let mut world = World::of(&[content(IBB_OFFER), beside, foreign], 0, annotate());
    let initiate = passed(&mut world, &[ns::JINGLE_0]);
    let contents = initiate.children().filter(|child| child.name() == "content");
    assert_eq!(contents.count(), 1);
    assert_eq!(verdicts(&initiate), [("unknown".to_owned(), OTHER.to_owned())]);
}

#[test]
fn an_offer_of_which_policy_leaves_nothing_goes_nowhere() {
    let strip = Policies { unknown: VerdictPolicy::Strip, ..annotate() };
    let mut world = World::new(IBB_OFFER, strip);
    world.tell(known(&[]));
    world.tell(SessionInput::Keys(Side::Initiator, Ok(Vec::new())));
    let reason = "unsupported-applications".to_owned();
    assert_eq!(world.terminated(), [("alice@example.org/a".to_owned(), reason.clone())]);

    // Policy leaves a password beside the key, and the responder has only a key.
    let both = content(IBB_OFFER).replace("</methods>", "<method name='srp'/></methods>");
    let mut world = World::of(&[both], 0, strip);
    let initiate = passed(&mut world, &[]);
    let got = offer::Offer::read(initiate.get_child("content", ns::JINGLE).unwrap());
    assert_eq!(got.methods, [Method::Srp]);
    world.accept(IBB_OFFER);
    let reasons = world.terminated();
    assert_eq!(reasons.len(), 2);
    assert!(reasons.iter().all(|(_, told)| *told == reason), "{reasons:?}");
    let text = String::from(world.sent.last().unwrap());
    assert!(text.contains("has srp, the responder none that this service accepts"), "{text}");
}

/// A user's stanza can be longer when it is sent back or on; then it is refused. The end of a session is told in any
/// case.
#[test]
fn nothing_that_repeats_what_a_user_sent_is_longer_than_the_limit() {
    let limit = 500_000;
    let longest = |world: &World| {
        world
            .sent
            .iter()
            .map(|stanza| fingerpost_wire::size::of(stanza).unwrap())
            .max()
            .unwrap_or(0)
    };
    for (action, answer) in
        [("content-add", "content-reject"), ("transport-replace", "transport-reject")]
    {
        let mut world = World::initiated(IBB_OFFER, &[ns::JINGLE_IBB]);
        world.session.content.removed = vec![Element::bare("content", ns::JINGLE)];
        let send = |world: &mut World, name: &str| {
            let content = format!("<content creator='initiator'>{IBB_OFFER}</content>");
            let peer = world.session.peers.responder.clone();
            let mut stanza = jingle(&peer, action, &content);
            let jingle = stanza.element.get_child_mut("jingle", ns::JINGLE).unwrap();
            let content = jingle.get_child_mut("content", ns::JINGLE).unwrap();
            xml::set(content, "name", name);
            world.sent.clear();
            world.tell(SessionInput::Jingle(Side::Responder, stanza));
        };
        send(&mut world, "other");
        assert_eq!(world.told(Side::Responder, answer).len(), 1, "{action}");
        send(&mut world, &"\"".repeat(limit / 5));
        assert_eq!(world.refused(), ["policy-violation", "stanza-too-big"], "{action}");
        assert_eq!(world.told(Side::Responder, answer).len(), 0, "{action}");
        assert!(longest(&world) < limit, "{action}");
        world.sent.clear();
        let text = "&amp;".repeat(limit / 5);
        let reason = format!("<reason><decline/><text>{text}</text></reason>");
        world.jingle(Side::Initiator, "session-terminate", &reason);
        assert_eq!(world.terminated(), [("bob@example.org/b".to_owned(), "decline".to_owned())]);
        assert!(longest(&world) < limit, "{action}");
    }
}

/// A file as an ordinary client offers it.
fn file(security: &str) -> String {
    content(IBB_OFFER).replace(
        "<description xmlns='urn:xmpp:jingle:apps:tls'",
        &format!("{security}<description xmlns='urn:xmpp:jingle:apps:file-transfer:5'"),
    )
}

#[test]
fn files_without_tls_pass_only_if_the_operator_lets_them_and_never_beside_tls() {
    let jingle = |contents: &[String]| -> Element {
        format!("<jingle xmlns='urn:xmpp:jingle:1'>{}</jingle>", contents.concat()).parse().unwrap()
    };
    let options =
        |require_tls, plain| BrokerOptions { require_tls, plain, ..BrokerOptions::of_tests() };
    let deny = options(true, PlainFiles::Deny);
    let jet = "<security xmlns='urn:xmpp:jingle:jet:0'/>";
    let omemo = "<encrypted xmlns='eu.siacs.conversations.axolotl'/>";
    for (security, protection) in [
        ("", Protection::None),
        (jet, Protection::Jet),
        (omemo, Protection::Omemo),
        ("<security xmlns='urn:x:secret'/>", Protection::Other),
    ] {
        let offer = jingle(&[file(security)]);
        assert_eq!(choose(&offer, &deny).unwrap_err(), SessionRefusal::Unsecured(protection));
        for plain in [PlainFiles::Mark, PlainFiles::Allow] {
            assert_eq!(choose(&offer, &options(true, plain)).unwrap().0, 0);
        }
        let is_bare = matches!(protection, Protection::None | Protection::Other);
        assert_eq!(is_plain(&offer, 0), is_bare, "{protection:?}");
    }
    let mark = options(true, PlainFiles::Mark);
    let voice = jingle(&[file("").replace("file-transfer:5", "rtp:1")]);
    assert_eq!(choose(&voice, &mark).unwrap_err(), SessionRefusal::Unsecured(Protection::None));
    assert_eq!(choose(&voice, &options(false, PlainFiles::Deny)).unwrap().0, 0);
    assert_eq!(
        choose(&jingle(&[file(""), content(IBB_OFFER)]), &mark).unwrap().0,
        1,
        "TLS goes first"
    );
    let foreign = content("<transport xmlns='urn:x:ice'/>");
    assert_eq!(
        choose(&jingle(&[file(""), foreign]), &mark).unwrap_err(),
        SessionRefusal::NoTransport
    );
}

#[test]
fn a_file_without_tls_is_marked_for_both_users_and_its_stream_is_not_guarded() {
    for (plain, security, marked) in [
        (PlainFiles::Mark, "", true),
        (PlainFiles::Allow, "", false),
        (PlainFiles::Mark, "<security xmlns='urn:xmpp:jingle:jet:0'/>", false),
    ] {
        let options = BrokerOptions { plain, ..BrokerOptions::of_tests() };
        // Nobody else can set the mark, or keep it away.
        let forged = "<unencrypted xmlns='urn:fingerpost:xtls:0'/>";
        let offered = file(&format!("{security}{forged}"));
        let mut world = World::with(&[offered], 0, options);
        assert!(!world.session.is_tls());
        let initiate = passed(&mut world, &[]);
        let has_mark = |jingle: &Element| {
            jingle.get_child("content", ns::JINGLE).unwrap().has_child("unencrypted", ns::HINTS)
        };
        assert_eq!(has_mark(&initiate), marked, "{plain:?} {security}");
        world.answer("jingle");
        world.jingle(Side::Responder, "session-accept", &file(security));
        world.tell(SessionInput::Keys(Side::Responder, Ok(Vec::new())));
        let accept = world.told(Side::Initiator, "session-accept").pop().unwrap();
        assert_eq!(has_mark(&accept), marked, "{plain:?} {security}");
    }
}

/// A checksum that comes after the data is not known to every client.
#[test]
fn what_a_client_tells_of_a_file_without_tls_is_passed_on_and_cannot_fail_it() {
    let options = BrokerOptions { plain: PlainFiles::Allow, ..BrokerOptions::of_tests() };
    let mut world = World::with(&[file("")], 0, options);
    passed(&mut world, &[]);
    world.answer("jingle");
    world.sent.clear();
    let checksum =
        "<checksum xmlns='urn:xmpp:jingle:apps:file-transfer:5' name='c' creator='initiator'/>";
    world.jingle(Side::Initiator, "session-info", checksum);
    let results = world.sent.iter().filter(|iq| iq.attr("type") == Some("result"));
    assert_eq!(results.count(), 1, "{:?}", world.sent);
    let passed = world.told(Side::Responder, "session-info");
    let described = passed[0].children().any(|child| child.name() == "checksum");
    assert!(described && world.asked.is_empty(), "{passed:?} {:?}", world.asked);
}

/// Returns a session that offers a file without TLS to a client with these features.
fn plain_file(all: &[&str], socks5: bool) -> World {
    let options = BrokerOptions { plain: PlainFiles::Mark, socks5, ..BrokerOptions::of_tests() };
    let mut world = World::with(&[file("")], 0, options);
    world.look_up(all);
    world
}

/// Returns the texts of the reasons for which a side was told that the session is over.
fn reasons(world: &World, side: Side) -> Vec<String> {
    let text = |jingle: &Element| {
        let reason = jingle.get_child("reason", ns::JINGLE)?;
        Some(reason.get_child("text", ns::JINGLE)?.text())
    };
    world.told(side, "session-terminate").iter().filter_map(text).collect()
}

#[test]
fn a_file_goes_only_to_a_client_that_announces_files_and_a_bytestream() {
    for (all, why) in [
        (
            &[ns::JINGLE, ns::JINGLE_S5B][..],
            "does not announce urn:xmpp:jingle:apps:file-transfer:5",
        ),
        (&[ns::JINGLE, ns::FILE_TRANSFER], "announces no bytestream"),
    ] {
        let world = plain_file(all, true);
        assert_eq!(world.told(Side::Responder, "session-initiate"), []);
        let [text] = &reasons(&world, Side::Initiator)[..] else { panic!("one reason") };
        assert!(text.contains("bob@example.org") && text.contains(why), "{text}");
        assert_eq!(world.terminated()[0].1, "unsupported-applications");
    }
    for all in [&[][..], &[ns::FILE_TRANSFER, ns::JINGLE_IBB]] {
        let world = plain_file(all, true);
        assert_eq!(world.told(Side::Responder, "session-initiate").len(), 1, "{all:?}");
    }
}

#[test]
fn dino_gets_a_message_first_and_socks5_alone() {
    let all = [features::DINO, ns::FILE_TRANSFER, ns::JINGLE_S5B, ns::JINGLE_IBB];
    let mut world = plain_file(&all, true);
    let greeting = world.other.iter().find_map(|action| match action {
        SessionAction::Greet(text) => Some(text.as_str()),
        _ => None,
    });
    let greeting = greeting.expect("a message");
    assert!(greeting.contains("alice@example.org") && greeting.contains("not encrypted"));
    assert!(matches!(world.session.legs.responder.plan, Plan::S5b { .. }));
    // Its connection fails: nothing in-band is offered to it, and the caller learns why.
    world.answer("jingle");
    world.jingle(Side::Responder, "session-accept", &file("").replace(IBB_OFFER, S5B_OFFER));
    world.tell(SessionInput::Keys(Side::Responder, Ok(Vec::new())));
    world.jingle(Side::Responder, "transport-info", &news("<candidate-error/>"));
    assert_eq!(world.told(Side::Responder, "transport-replace"), []);
    let [text] = &reasons(&world, Side::Initiator)[..] else { panic!("one reason") };
    assert!(text.contains("uses Dino") && text.contains("failed"), "{text}");
}

#[test]
fn the_caller_is_told_why_dino_cannot_have_a_file() {
    let all = [features::DINO, ns::FILE_TRANSFER, ns::JINGLE_S5B, ns::JINGLE_IBB];
    for (all, socks5, why) in [
        (&all[..], false, "this service has SOCKS5 switched off"),
        (&[features::DINO, ns::FILE_TRANSFER, ns::JINGLE_IBB], true, "does not announce it"),
    ] {
        let world = plain_file(all, socks5);
        assert_eq!(world.told(Side::Responder, "session-initiate"), []);
        assert!(!world.other.iter().any(|action| matches!(action, SessionAction::Greet(_))));
        let [text] = &reasons(&world, Side::Initiator)[..] else { panic!("one reason") };
        assert!(text.contains(why), "{text}");
    }
}

#[test]
fn only_files_are_special_to_dino() {
    let mut world = World::new(IBB_OFFER, annotate());
    passed(&mut world, &[features::DINO, ns::APPS_TLS, ns::JINGLE_IBB]);
    assert!(!world.other.iter().any(|action| matches!(action, SessionAction::Greet(_))));
    assert!(matches!(world.session.legs.responder.plan, Plan::Ibb { .. }));
}
