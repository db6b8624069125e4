//! Measures whether one of many costs more than one of few: pairs that carry messages, and users that are reachable.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::inband;
use super::link::{Link, attribute};
use super::relays::Relay;

/// The numbers of pairs that carry messages.
pub(crate) const BUSY: [usize; 5] = [1, 8, 64, 512, 4_096];
/// The bytes of a message.
pub(crate) const MESSAGE: usize = 16 << 10;
/// The messages, or requests, that are on their way at once.
pub(crate) const AT_ONCE: usize = 64;
/// The number of idle pairs, as far as there are descriptors for both ends.
const IDLE: usize = 10_000;
/// Descriptors that both programs need besides those of pairs.
const OTHERS: usize = 400;
/// The numbers of reachable users.
const USERS: [usize; 3] = [10, 1_000, 100_000];
const TIME: Duration = Duration::from_secs(2);
/// How long the component must be idle after new users, which it writes to its database after a second, and how much
/// processor time counts as idle.
const IDLE_FOR: Duration = Duration::from_millis(2_500);
const IDLE_BELOW: f64 = 0.05;

/// Returns the relay's processor time for a message, in µs, with each number of pairs.
pub(crate) fn busy(relay: &Relay) -> Vec<f64> {
    BUSY.iter().map(|pairs| messages(relay, &mut relay.connect(*pairs))).collect()
}

/// Returns the number of idle pairs, and the processor time for a message on other pairs beside them, in µs.
pub(crate) fn beside_idle(relay: &Relay) -> (usize, f64) {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let most = limit.map_or(IDLE, |limit| usize::try_from(limit).unwrap_or(IDLE));
    let idle = IDLE.min(most.saturating_sub(OTHERS) / 2);
    let _idle = relay.connect(idle);
    (idle, messages(relay, &mut relay.connect(AT_ONCE)))
}

/// One message crosses each pair in turn, on [`AT_ONCE`] pairs at once.
fn messages(relay: &Relay, pairs: &mut [(TcpStream, TcpStream)]) -> f64 {
    let mut message = vec![7; MESSAGE];
    let mut count = 0;
    let (begin, spent) = (Instant::now(), relay.processor_time());
    while begin.elapsed() < TIME {
        for some in pairs.chunks_mut(AT_ONCE) {
            for (writer, _) in &mut *some {
                writer.write_all(&message).unwrap();
            }
            for (_, reader) in &mut *some {
                reader.read_exact(&mut message).unwrap();
            }
            count += some.len();
        }
    }
    (relay.processor_time() - spent) / count as f64 * 1e6
}

/// The cost of stanzas among so many reachable users.
pub(crate) struct Row {
    pub(crate) users: usize,
    /// The users that the component had places for.
    pub(crate) kept: usize,
    /// The component's processor time for the first presence of a user, with its record in the database, in µs.
    pub(crate) first: f64,
    /// The same for a further presence, a ping and a lookup.
    pub(crate) micros: [f64; 3],
}

/// Makes users reachable, and measures stanzas from and for all of them in turn.
pub(crate) fn users(component: &Relay) -> Vec<Row> {
    let (jid, link) = component.link().unwrap();
    let mut link = link.lock().unwrap();
    let domain = link.domain;
    let user = |n: usize| format!("u{n}@{domain}/r");
    let presence = |n| format!("<presence from='{}' to='{jid}'/>", user(n));
    let ping = |n| {
        let from = user(n);
        format!("<iq type='get' id='p' from='{from}' to='{jid}'><ping xmlns='urn:xmpp:ping'/></iq>")
    };
    let lookup = |n| {
        let from = user(n / 2);
        format!(
            "<iq type='get' id='l' from='{from}' to='u{n}\\40{domain}@{jid}'><query \
             xmlns='http://jabber.org/protocol/disco#info'/></iq>"
        )
    };
    let mut reachable = 0;
    let mut row = |users: usize| {
        let (before, spent) = (reachable, component.processor_time());
        while reachable < users {
            let some = reachable..users.min(reachable + AT_ONCE);
            reachable = some.end;
            let presences: String = some.map(presence).collect();
            // The answer to a ping shows that all before it has been handled.
            exchange(&mut link, &(presences + &ping(0)), 1);
        }
        settle(component, &mut link);
        let first = (component.processor_time() - spent) / (users - before) as f64 * 1e6;
        let refused = component.counted("fingerpost_presences_dropped_total");
        let kept = users - usize::try_from(refused).unwrap();
        let mut measure = |stanza: &dyn Fn(usize) -> String, answered: bool| {
            let (mut count, mut next) = (0, 0);
            let (begin, spent) = (Instant::now(), component.processor_time());
            while begin.elapsed() < TIME {
                let mut stanzas = String::new();
                for _ in 0..AT_ONCE {
                    stanzas.push_str(&stanza(next));
                    // A prime, so that each user has a turn.
                    next = (next + 7_919) % kept;
                }
                count += AT_ONCE;
                match answered {
                    true => exchange(&mut link, &stanzas, AT_ONCE),
                    false => exchange(&mut link, &(stanzas + &ping(0)), 1),
                }
            }
            (component.processor_time() - spent) / count as f64 * 1e6
        };
        let micros = [measure(&presence, false), measure(&ping, true), measure(&lookup, true)];
        Row { users, kept, first, micros }
    };
    USERS.into_iter().map(&mut row).collect()
}

/// Waits until the component has nothing to do.
fn settle(component: &Relay, link: &mut Link) {
    loop {
        let (begin, spent) = (Instant::now(), component.processor_time());
        while begin.elapsed() < IDLE_FOR {
            link.serve();
            std::thread::sleep(Duration::from_millis(10));
        }
        if component.processor_time() - spent < IDLE_BELOW {
            return;
        }
    }
}

/// Sends stanzas, answers for the users, and waits for so many answers.
fn exchange(link: &mut Link, stanzas: &str, answers: usize) {
    link.send(stanzas);
    let mut missing = answers;
    while missing > 0 {
        let stanza = link.stanza();
        match attribute(&stanza, "type") {
            Some("result") => missing -= 1,
            Some("get") => inband::answer(link, &stanza),
            _ => panic!("{stanza}"),
        }
    }
}
