use proptest::prelude::*;

use super::*;

fn jid(text: &str) -> BareJid {
    BareJid::new(text).unwrap()
}

fn names(own: &str, peer: &str) -> Names {
    Names { own: vec![jid(own)], peer: vec![jid(peer)] }
}

fn juliet() -> XmlStream {
    let feature = Element::bare("sm", ns::SM);
    XmlStream::respond(
        names("juliet@capulet.lit", "romeo@montague.lit"),
        vec![feature],
        "hs91".to_owned(),
    )
}

fn romeo() -> XmlStream {
    XmlStream::initiate(names("romeo@montague.lit", "juliet@capulet.lit"))
}

/// Returns all events of `bytes`.
fn feed(stream: &mut XmlStream, mut bytes: &[u8]) -> Vec<Event> {
    std::iter::from_fn(|| stream.next(&mut bytes)).collect()
}

/// Passes each side the other's bytes until both are quiet.
fn drive(a: &mut XmlStream, b: &mut XmlStream) -> (Vec<Event>, Vec<Event>) {
    let mut seen = (Vec::new(), Vec::new());
    loop {
        let (to_b, to_a) = (a.take_output(), b.take_output());
        if to_a.is_empty() && to_b.is_empty() {
            return seen;
        }
        seen.0.extend(feed(a, &to_a));
        seen.1.extend(feed(b, &to_b));
    }
}

fn text(stream: &mut XmlStream) -> String {
    String::from_utf8(stream.take_output()).unwrap()
}

const HEADER: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
    xmlns:stream='http://etherx.jabber.org/streams' from='romeo@montague.lit/orchard' \
    to='juliet@capulet.lit/balcony' version='1.0'>";

fn opened() -> XmlStream {
    let mut stream = juliet();
    feed(&mut stream, HEADER.as_bytes());
    stream.take_output();
    stream
}

/// Returns the fault and the answer that a peer's `bytes` on an open stream cause.
fn fault(bytes: &str) -> (Fault, String) {
    let mut stream = opened();
    let events = feed(&mut stream, bytes.as_bytes());
    match events.last() {
        Some(Event::Ended(End::Fault(fault))) => (*fault, text(&mut stream)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn both_sides_open_talk_and_close() {
    let (mut romeo, mut juliet) = (romeo(), juliet());
    let (a, b) = drive(&mut romeo, &mut juliet);
    let [Event::Opened { from: Some(from), features: Some(features) }] = &a[..] else {
        panic!("{a:?}")
    };
    assert_eq!(from, &jid("juliet@capulet.lit"));
    assert!(features.has_child("sm", ns::SM));
    assert!(matches!(&b[..], [Event::Opened { from: Some(_), features: None }]), "{b:?}");
    let message: Element =
        "<message xmlns='jabber:client'><body>M&apos;lady</body></message>".parse().unwrap();
    romeo.send(&message);
    romeo.close();
    romeo.send(&message);
    let (a, b) = drive(&mut romeo, &mut juliet);
    let [Event::Element(got), Event::Ended(End::Closed)] = &b[..] else { panic!("{b:?}") };
    assert_eq!(got, &message);
    assert!(matches!(&a[..], [Event::Ended(End::Closed)]), "{a:?}");
}

#[test]
fn the_header_of_xep_0247_is_understood_and_answered_with_bare_jids() {
    let mut stream = juliet();
    let events = feed(&mut stream, HEADER.as_bytes());
    assert!(matches!(&events[..], [Event::Opened { .. }]));
    let out = text(&mut stream);
    assert!(out.contains("id='hs91' from='juliet@capulet.lit' to='romeo@montague.lit'>"), "{out}");
    assert!(out.ends_with("</stream:features>"), "{out}");
}

#[test]
fn a_peer_that_knows_no_features_is_offered_none() {
    let mut stream = juliet();
    feed(&mut stream, HEADER.replace("balcony' version='1.0'", "balcony'").as_bytes());
    assert!(!stream.is_modern());
    let out = text(&mut stream);
    assert!(out.ends_with("to='romeo@montague.lit'><stream:features/>"), "{out}");
}

#[test]
fn a_stanza_without_namespace_declaration_is_in_that_of_clients() {
    let mut stream = opened();
    let events = feed(&mut stream, b"<message><body>hi</body></message>");
    let [Event::Element(message)] = &events[..] else { panic!("{events:?}") };
    assert!(message.has_child("body", ns::CLIENT));
}

#[test]
fn a_stream_for_another_or_from_another_is_refused() {
    for (attributes, condition) in [
        ("from='romeo@montague.lit' to='nurse@capulet.lit'", "host-unknown"),
        ("from='tybalt@capulet.lit' to='juliet@capulet.lit'", "invalid-from"),
        ("from='@' to='juliet@capulet.lit'", "improper-addressing"),
    ] {
        let mut stream = juliet();
        let header = format!(
            "<stream:stream xmlns='jabber:client' xmlns:stream='{}' {attributes} version='1.0'>",
            ns::STREAM
        );
        let events = feed(&mut stream, header.as_bytes());
        assert!(matches!(&events[..], [Event::Ended(End::Fault(_))]), "{events:?}");
        let out = text(&mut stream);
        assert!(out.contains("<stream:stream "), "{out}");
        assert!(out.contains(&format!("<stream:error><{condition} ")), "{out}");
        assert!(out.ends_with("</stream:error></stream:stream>"), "{out}");
    }
}

#[test]
fn what_is_no_stream_is_answered_with_a_stream_error() {
    for (bytes, expected) in [
        ("GET / HTTP/1.1\r\n\r\n<", Fault::NotWellFormed),
        ("<stream xmlns='jabber:client'>", Fault::InvalidNamespace),
        ("<s:features xmlns:s='http://etherx.jabber.org/streams'>", Fault::BadFormat),
    ] {
        let mut stream = juliet();
        let events = feed(&mut stream, bytes.as_bytes());
        assert!(
            matches!(&events[..], [Event::Ended(End::Fault(fault))] if *fault == expected),
            "{bytes}: {events:?}"
        );
        assert!(text(&mut stream).contains("<stream:error>"), "{bytes}");
    }
}

#[test]
fn what_is_malformed_deep_large_or_restricted_ends_the_stream_with_its_error() {
    let deep = "<a>".repeat(MAX_DEPTH + 1);
    let large = format!("<message><body>{}", "x".repeat(MAX_STANZA));
    let attributes: String = (0..20_000).map(|n| format!("a{n}='1' ")).collect();
    for (bytes, expected) in [
        ("<message></massage>", Fault::NotWellFormed),
        ("<message>&bomb;", Fault::NotWellFormed),
        ("text<", Fault::BadFormat),
        (deep.as_str(), Fault::TooMuch),
        (large.as_str(), Fault::TooMuch),
        (&format!("<message {attributes}"), Fault::TooMuch),
        ("<!-- comment -->", Fault::Restricted),
    ] {
        let (fault, out) = fault(bytes);
        assert_eq!(fault, expected, "{}", &bytes[..bytes.len().min(40)]);
        let error = format!(
            "<stream:error><{} xmlns='{}'/></stream:error></stream:stream>",
            fault.condition(),
            ns::STREAM_ERRORS
        );
        assert_eq!(out, error);
    }
}

#[test]
fn an_hour_of_white_space_is_no_fault() {
    let mut stream = opened();
    for _ in 0..100 {
        assert!(feed(&mut stream, " ".repeat(8192).as_bytes()).is_empty());
    }
    assert!(matches!(&feed(&mut stream, b"<iq/>")[..], [Event::Element(_)]));
}

#[test]
fn a_stream_error_of_the_peer_and_a_broken_stream_are_told_apart() {
    let mut stream = opened();
    let error = format!(
        "<stream:error><policy-violation xmlns='{0}'/><text xmlns='{0}'>no</text></stream:error>",
        ns::STREAM_ERRORS
    );
    let events = feed(&mut stream, error.as_bytes());
    let [Event::Ended(end)] = &events[..] else { panic!("{events:?}") };
    assert_eq!(end, &End::Error("policy-violation".to_owned(), "no".to_owned()));
    assert!(stream.handle_end().is_none());
    let mut stream = opened();
    assert!(matches!(stream.handle_end(), Some(Event::Ended(End::Broken))));
}

#[test]
fn no_byte_after_an_element_is_read_with_it() {
    let mut stream = opened();
    let mut bytes: &[u8] = b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>injected";
    assert!(matches!(stream.next(&mut bytes), Some(Event::Element(_))));
    assert_eq!(bytes, b"injected");
}

proptest! {
    #[test]
    fn mangled_input_never_panics_and_any_chunking_gives_the_same(
        body in "[<>/ a-c='\"&;:]{0,80}",
        cut in 1_usize..40,
    ) {
        let bytes = format!("{HEADER}<message>{body}</message><iq/></stream:stream>");
        let mut whole = juliet();
        let expected = format!("{:?}", feed(&mut whole, bytes.as_bytes()));
        let mut pieces = juliet();
        let got: Vec<_> =
            bytes.as_bytes().chunks(cut).flat_map(|chunk| feed(&mut pieces, chunk)).collect();
        prop_assert_eq!(format!("{got:?}"), expected);
        prop_assert_eq!(pieces.take_output(), whole.take_output());
    }
}

#[test]
fn a_sign_of_life_is_sent_on_an_open_stream_only() {
    let mut stream = opened();
    stream.keep_alive();
    assert_eq!(text(&mut stream), " ");
    stream.close();
    text(&mut stream);
    stream.keep_alive();
    let mut unopened = juliet();
    unopened.keep_alive();
    assert_eq!((text(&mut stream), text(&mut unopened)), (String::new(), String::new()));
}
