//! Measures brokered sessions: the memory of one whose stream is up and idle, and the processor time that sets it up.

use std::time::{Duration, Instant};

use super::inband::answer;
use super::link::{Link, attribute, proxied};
use super::relays::Relay;

/// Sessions that are set up before the first measurement, so that memory that is allocated once does not count.
const BEFORE: usize = 256;
/// Sessions that are being set up at once.
const AT_ONCE: usize = 64;
/// How long the component may take to forget what it no longer needs.
const SETTLE: Duration = Duration::from_secs(12);

/// The cost of one session.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    /// Resident bytes of the component.
    pub(crate) bytes: f64,
    /// The component's processor time to set it up, in µs.
    pub(crate) micros: f64,
}

/// Sets up so many sessions in a component of their own, each with two users of its own, and leaves them idle.
pub(crate) fn run(sessions: usize) -> Figure {
    let relay = Relay::fingerpost();
    let (_, link) = relay.link().unwrap();
    let mut link = link.lock().unwrap();
    set_up(&mut link, BEFORE);
    serve(&mut link);
    let (resident, spent) = (relay.resident(), relay.processor_time());
    set_up(&mut link, sessions);
    let spent = relay.processor_time() - spent;
    serve(&mut link);
    let each = |value: f64| value / sessions as f64;
    Figure { bytes: each(relay.resident() - resident), micros: each(spent) * 1e6 }
}

/// Sets up sessions with in-band legs, until both legs of each are open.
fn set_up(link: &mut Link, sessions: usize) {
    let (mut begun, mut initiators, mut responders) = (0, 0, 0);
    while initiators.min(responders) < sessions {
        while begun < sessions && begun - initiators.min(responders) < AT_ONCE {
            begun += 1;
            let sid = link.next_sid();
            let (from, to) =
                (format!("a{sid}@{0}/a", link.domain), format!("b{sid}@{0}/b", link.domain));
            let to = proxied(&to);
            link.send(&format!(
                "<iq type='set' id='i' from='{from}' to='{to}'><jingle xmlns='urn:xmpp:jingle:1' \
                 action='session-initiate' initiator='{from}' sid='{sid}'><content creator='initiator' name='c'>\
                 <description xmlns='urn:xmpp:jingle:apps:tls'><methods><method name='x509'/></methods></description>\
                 <transport xmlns='urn:xmpp:jingle:transports:ibb:1' sid='{sid}' block-size='4096'/></content></jingle></iq>"
            ));
        }
        let stanza = link.stanza();
        answer(link, &stanza);
        let get = |name| attribute(&stanza, name).unwrap_or_default();
        let (from, to) = (get("from"), get("to"));
        if get("type") == "set" && stanza.contains("session-accept") {
            let sid = to[1..].split('@').next().unwrap();
            link.send(&format!(
                "<iq type='set' id='o' from='{to}' to='{from}'><open xmlns='http://jabber.org/protocol/ibb' \
                 sid='{sid}' block-size='4096' stanza='iq'/></iq>"
            ));
        }
        initiators += usize::from(get("type") == "result" && get("id") == "o");
        responders += usize::from(stanza.contains("<open"));
    }
}

/// Answers the component's requests for a while.
fn serve(link: &mut Link) {
    let end = Instant::now() + SETTLE;
    while Instant::now() < end {
        link.serve();
        std::thread::sleep(Duration::from_millis(1));
    }
}
