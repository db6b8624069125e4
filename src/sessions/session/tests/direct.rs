//! Direct paths: what passes between the users, and what their reports count for.

use super::*;

const PATHS: &str = "<paths xmlns='urn:fingerpost:paths:0'/>";
/// An offer in each dialect: inside the description, and beside it.
const OFFERS: [(&str, &str); 4] = [
    ("<methods><method name='x509'><print>PRINT</print></method></methods>", ""),
    (
        "<methods><method name='x509'/></methods>",
        "<offer xmlns='urn:xmpp:security-offer'><print>PRINT</print></offer>",
    ),
    (
        "",
        "<security xmlns='urn:xmpp:jingle:security:xtls:0'><fingerprint>PRINT</fingerprint>\
         <method name='x509'/></security>",
    ),
    (
        "<offer xmlns='urn:xmpp:tmp:c2ctls'><keyinfo xmlns='urn:xmpp:tmp:pubkey'><name>PRINT</name></keyinfo></offer>",
        "",
    ),
];
/// The features of a client that knows one dialect, or does not tell.
const FEATURES: [&[&str]; 5] =
    [&[], &[ns::APPS_TLS], &[ns::SECURITY_OFFER], &[ns::XTLS], &[ns::C2CTLS]];

/// Returns a content with an offer, and with `more`.
fn offering((inside, beside): (&str, &str), more: &str) -> String {
    format!(
        "<content creator='initiator' name='c'><description xmlns='urn:xmpp:jingle:apps:tls'>{inside}</description>\
         {IBB_OFFER}{beside}{more}</content>"
    )
    .replace("PRINT", X509)
}

fn options(direct: bool) -> BrokerOptions {
    BrokerOptions { direct, ..BrokerOptions::of_tests() }
}

fn has_paths(element: &Element) -> bool {
    String::from(element).contains(ns::PATHS)
}

/// Returns a session up to its accept, with these children in the contents of the offer and of the answer.
fn accepted(direct: bool, asked: &str, agreed: &str) -> World {
    let mut world = World::with(&[offering(OFFERS[0], asked)], 0, options(direct));
    world.look_up(&[]);
    world.answer("jingle");
    world.jingle(Side::Responder, "session-accept", &offering(OFFERS[0], agreed));
    world.tell(SessionInput::Keys(Side::Responder, Ok(Vec::new())));
    world
}

/// Returns a session whose legs are joined.
fn joined(direct: bool, asked: &str, agreed: &str) -> World {
    let mut world = accepted(direct, asked, agreed);
    world.answer("open");
    world.open(Side::Initiator, "a-stream");
    assert!(world.joined());
    world
}

#[test]
fn any_number_of_questions_is_removed_and_the_rest_is_kept() {
    let many = PATHS.repeat(40_000);
    let text = format!(
        "<iq xmlns='jabber:client' type='set' id='i' from='a@x/1' to='b@x/1'>\
         <jingle xmlns='urn:xmpp:jingle:1' action='session-initiate' sid='s'><first/>{many}\
         <content creator='initiator' name='c'><description/>{many}<transport/></content><last/></jingle></iq>"
    );
    let mut stanza = Stanza::parse(text.parse().unwrap()).unwrap();
    super::super::direct::remove(&mut stanza);
    let jingle = stanza.payload().unwrap();
    let names = |element: &Element| -> Vec<String> {
        element.children().map(|child| child.name().to_owned()).collect()
    };
    assert_eq!(names(jingle), ["first", "content", "last"]);
    let content = jingle.get_child("content", ns::JINGLE).unwrap();
    assert_eq!(names(content), ["description", "transport"]);
}

/// Sends a report. Returns what was counted for it: bytes, and whether the session has gone direct.
fn report(world: &mut World, side: Side, kind: &str, bytes: &str) -> Option<(u64, bool)> {
    world.other.clear();
    let path = format!("<path xmlns='urn:fingerpost:paths:0' kind='{kind}' bytes='{bytes}'/>");
    world.jingle(side, "session-info", &path);
    let (to, number, passed) = world.asked.pop().expect("it is passed on");
    assert_eq!(to, side.other());
    let got = passed.get_child("path", ns::PATHS).expect("unchanged");
    assert_eq!((got.attr("kind"), got.attr("bytes")), (Some(kind), Some(bytes)));
    let counted = world.other.iter().find_map(|action| match action {
        SessionAction::CountDirect { bytes, first } => Some((*bytes, *first)),
        _ => None,
    });
    world.tell(SessionInput::Answered(number, Answer::Result(None)));
    counted
}

#[test]
fn the_question_for_direct_paths_and_its_answer_pass_in_every_dialect_unless_denied() {
    for direct in [true, false] {
        for offer in OFFERS {
            for answer in OFFERS {
                for features in FEATURES {
                    let mut world = World::with(&[offering(offer, PATHS)], 0, options(direct));
                    world.look_up(features);
                    let initiate = world.told(Side::Responder, "session-initiate").pop().unwrap();
                    let content = initiate.get_child("content", ns::JINGLE).unwrap();
                    assert_eq!(content.has_child("paths", ns::PATHS), direct, "{initiate:?}");
                    assert_eq!(has_paths(&initiate), direct);
                    assert!(!offer::Offer::read(content).is_empty());
                    world.answer("jingle");
                    world.jingle(Side::Responder, "session-accept", &offering(answer, PATHS));
                    world.tell(SessionInput::Keys(Side::Responder, Ok(Vec::new())));
                    let accept = world.told(Side::Initiator, "session-accept").pop().unwrap();
                    let content = accept.get_child("content", ns::JINGLE).unwrap();
                    assert_eq!(content.has_child("paths", ns::PATHS), direct, "{accept:?}");
                    assert_eq!(has_paths(&accept), direct);
                    assert_eq!(world.session.direct.is_some(), direct);
                }
            }
        }
    }
}

#[test]
fn a_denied_question_passes_nowhere_else_either() {
    let beside = format!("{}{PATHS}{PATHS}", offering(OFFERS[0], &PATHS.repeat(3)));
    let other = beside.replace("<content ", "<content xmlns='urn:xmpp:jingle:0' ");
    let mut world = World::with(&[beside, other], 0, options(false));
    world.look_up(&[]);
    world.answer("jingle");
    for side in Side::BOTH {
        for action in ["session-info", "content-modify", "security-info", "content-add"] {
            let inside = format!("{PATHS}{}", offering(OFFERS[0], PATHS));
            world.jingle(side, action, &inside);
            world.tell(SessionInput::Keys(side, Ok(Vec::new())));
        }
    }
    let told = world.sent.iter().chain(world.asked.iter().map(|(.., asked)| asked));
    let found: Vec<_> = told.filter(|element| has_paths(element)).collect();
    assert!(found.is_empty(), "{found:?}");
    assert!(!world.told(Side::Responder, "content-modify").is_empty());
}

#[test]
fn reports_count_once_for_each_byte_and_session() {
    let mut world = joined(true, PATHS, PATHS);
    let second = Duration::from_secs(1);
    let steps = [
        ("relay", "0", None),
        ("direct", "0", Some((0, true))),
        ("direct", "1000000", Some((1_000_000, false))),
        // Repeated, smaller, and nonsense.
        ("direct", "1000000", None),
        ("direct", "7", None),
        ("direct", "-1", None),
        ("direct", "", None),
        ("direct", "99999999999999999999999", None),
        ("sideways", "1000000", None),
        ("relay", "1500000", Some((500_000, false))),
    ];
    for (kind, bytes, counted) in steps {
        world.now += second;
        let got = report(&mut world, Side::Initiator, kind, bytes);
        assert_eq!(got, counted, "{kind} {bytes}");
    }
    // The first report may be the last one too.
    let mut world = joined(true, PATHS, PATHS);
    world.now += second;
    assert_eq!(report(&mut world, Side::Initiator, "relay", "5"), Some((5, true)));
}

#[test]
fn a_lie_counts_for_no_more_than_a_fast_network_carries() {
    let mut world = joined(true, PATHS, PATHS);
    let most = u64::MAX.to_string();
    assert_eq!(report(&mut world, Side::Initiator, "direct", &most), Some((0, true)));
    let mut all = 0;
    for seconds in [1, 60, 100_000, 100_000] {
        world.now += Duration::from_secs(seconds);
        let counted = report(&mut world, Side::Initiator, "direct", &most);
        let counted = counted.map_or(0, |(bytes, _)| bytes);
        assert!(counted <= seconds * 1_250_000_000, "{counted}");
        all += counted;
    }
    assert_eq!(all, 1 << 44);
}

#[test]
fn only_the_initiator_of_a_running_session_whose_users_agreed_is_counted() {
    for (direct, asked, agreed) in
        [(false, PATHS, PATHS), (true, "", PATHS), (true, PATHS, ""), (true, "", "")]
    {
        let mut world = joined(direct, asked, agreed);
        world.now += Duration::from_secs(1);
        assert_eq!(report(&mut world, Side::Initiator, "direct", "9"), None);
    }
    let mut world = accepted(true, PATHS, PATHS);
    world.now += Duration::from_secs(1);
    assert_eq!(report(&mut world, Side::Initiator, "direct", "9"), None, "there is no stream");
    world.answer("open");
    world.open(Side::Initiator, "a-stream");
    assert_eq!(report(&mut world, Side::Responder, "direct", "9"), None);
    assert_eq!(report(&mut world, Side::Initiator, "direct", "9"), Some((9, true)));
}

#[test]
fn the_last_report_counts_after_the_end_of_the_stream() {
    let mut world = joined(true, PATHS, PATHS);
    world.now += Duration::from_secs(1);
    let end = Ended::Eof;
    world.tell(SessionInput::Relayed(StreamOutcome { a_to_b: 1, b_to_a: 1, end }));
    assert_eq!(report(&mut world, Side::Initiator, "direct", "9"), Some((9, true)));
}
