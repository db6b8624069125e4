//! Measures in-band bytestreams: through the component, and from user to user through the same server.

use std::time::{Duration, Instant};

use base64::{Engine, engine::general_purpose::STANDARD};

use super::link::{Link, attribute, proxied};
use super::relays::Relay;

const TIME: Duration = Duration::from_secs(2);
/// Bytes in blocks that a user sends without an answer; a single longer block is sent too.
const WINDOW: usize = 80 * 1024;

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    pub(crate) bytes_per_second: f64,
    /// The component's processor time.
    pub(crate) seconds_per_gb: f64,
}

/// Measures one stream in blocks of so many bytes, either brokered by the component or direct.
pub(crate) fn run(relay: &Relay, block: usize, brokered: bool) -> Figure {
    let (_, link) = relay.link().unwrap();
    let mut link = link.lock().unwrap();
    let sid = link.next_sid();
    let (from, target) = (link.from(), link.target());
    let to = if brokered { proxied(&target) } else { target.clone() };
    if brokered {
        link.send(&format!(
            "<iq type='set' id='i' from='{from}' to='{to}'><jingle xmlns='urn:xmpp:jingle:1' action='session-initiate' \
             initiator='{from}' sid='{sid}'><content creator='initiator' name='c'><description \
             xmlns='urn:xmpp:jingle:apps:tls'><methods><method name='x509'/></methods></description><transport \
             xmlns='urn:xmpp:jingle:transports:ibb:1' sid='{sid}' block-size='{block}'/></content></jingle></iq>"
        ));
        while !until(&mut link, |stanza| {
            stanza.contains("'session-accept'") || stanza.contains("\"session-accept\"")
        }) {}
    }
    link.send(&format!(
        "<iq type='set' id='o' from='{from}' to='{to}'><open xmlns='http://jabber.org/protocol/ibb' sid='{sid}' \
         block-size='{block}' stanza='iq'/></iq>"
    ));
    while !until(&mut link, |stanza| {
        attribute(stanza, "id") == Some("o") && attribute(stanza, "to") == Some(&from)
    }) {}

    let text = STANDARD.encode(vec![7; block]);
    let window = (WINDOW / block).clamp(1, 16);
    let (mut seq, mut unanswered, mut arrived) = (0_u16, 0, 0_usize);
    let (begin, spent) = (Instant::now(), relay.processor_time());
    loop {
        let over = begin.elapsed() >= TIME;
        if over && unanswered == 0 {
            break;
        }
        while !over && unanswered < window {
            link.send(&format!(
                "<iq type='set' id='x{seq}' from='{from}' to='{to}'><data xmlns='http://jabber.org/protocol/ibb' \
                 sid='{sid}' seq='{seq}'>{text}</data></iq>"
            ));
            seq = seq.wrapping_add(1);
            unanswered += 1;
        }
        let stanza = link.stanza();
        if attribute(&stanza, "to") == Some(&from)
            && attribute(&stanza, "id").is_some_and(|id| id.starts_with('x'))
        {
            assert_eq!(attribute(&stanza, "type"), Some("result"), "{stanza}");
            unanswered -= 1;
            continue;
        }
        if let Some(at) = stanza.find("<data") {
            let data = &stanza[at..];
            let text =
                data.find('>').map_or("", |begin| &data[begin + 1..data.find("</").unwrap()]);
            arrived += text.len() / 4 * 3;
        }
        answer(&mut link, &stanza);
    }
    let took = begin.elapsed().as_secs_f64();
    let spent = relay.processor_time() - spent;
    if brokered {
        link.send(&format!(
            "<iq type='set' id='t' from='{from}' to='{to}'><jingle xmlns='urn:xmpp:jingle:1' action='session-terminate' \
             sid='{sid}'><reason><success/></reason></jingle></iq>"
        ));
        while !until(&mut link, |stanza| stanza.contains("session-terminate")) {}
    } else {
        link.send(&format!(
            "<iq type='set' id='c' from='{from}' to='{to}'><close xmlns='http://jabber.org/protocol/ibb' sid='{sid}'/></iq>"
        ));
        while !until(&mut link, |stanza| {
            attribute(stanza, "id") == Some("c") && attribute(stanza, "to") == Some(&from)
        }) {}
    }
    Figure {
        bytes_per_second: arrived as f64 / took,
        seconds_per_gb: spent / (arrived as f64 / 1e9),
    }
}

/// Takes a stanza, answers it, and returns whether it was the expected one.
fn until(link: &mut Link, wanted: impl Fn(&str) -> bool) -> bool {
    let stanza = link.stanza();
    answer(link, &stanza);
    wanted(&stanza)
}

/// Both users' part: their addresses, and an acceptance of everything.
pub(crate) fn answer(link: &mut Link, stanza: &str) {
    let kind = attribute(stanza, "type");
    if !stanza.starts_with("<iq") || !matches!(kind, Some("get" | "set")) {
        assert_ne!(kind, Some("error"), "{stanza}");
        return;
    }
    let get = |name| attribute(stanza, name).unwrap_or_default();
    let (id, us, them) = (get("id"), get("to"), get("from"));
    let info = if stanza.contains("disco#info") {
        "<query xmlns='http://jabber.org/protocol/disco#info'><identity category='client' type='bot'/>\
         <feature var='urn:xmpp:jingle:1'/><feature var='urn:xmpp:jingle:apps:tls'/>\
         <feature var='urn:xmpp:jingle:transports:ibb:1'/><feature var='http://jabber.org/protocol/ibb'/></query>"
    } else {
        ""
    };
    link.send(&format!("<iq type='result' id='{id}' from='{us}' to='{them}'>{info}</iq>"));
    if stanza.contains("session-initiate") {
        // The offer is accepted as it is; only the root's attributes are rewritten.
        let jingle = &stanza[stanza.find("<jingle").unwrap()..];
        let sid = attribute(jingle, "sid").unwrap();
        let transport = &jingle[jingle.find("<transport").unwrap()..];
        let block = attribute(transport, "block-size").unwrap();
        let stream = attribute(transport, "sid").unwrap();
        let content = attribute(&jingle[jingle.find("<content").unwrap()..], "name").unwrap();
        link.send(&format!(
            "<iq type='set' id='a' from='{us}' to='{them}'><jingle xmlns='urn:xmpp:jingle:1' action='session-accept' \
             responder='{us}' sid='{sid}'><content creator='initiator' name='{content}'><description \
             xmlns='urn:xmpp:jingle:apps:tls'><methods><method name='x509'/></methods></description><transport \
             xmlns='urn:xmpp:jingle:transports:ibb:1' sid='{stream}' block-size='{block}'/></content></jingle></iq>"
        ));
    }
}
