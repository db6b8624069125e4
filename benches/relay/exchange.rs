//! Measures how many exchanges a proxy handles per second: pairs set up, and requests answered.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::relays::Relay;

const TIME: Duration = Duration::from_secs(2);
/// Threads that set up pairs.
const THREADS: usize = 4;
/// Pairs that are set up in step, and requests sent at once.
const AT_ONCE: usize = 32;

/// The rate per second, and the relay's processor time for each, in µs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    pub(crate) per_second: f64,
    pub(crate) micros: f64,
}

/// Measures the whole exchange of XEP-0065 except the users' own messages: two connections, greeting and request on
/// both, activation.
pub(crate) fn pairs(relay: &Relay) -> Figure {
    measure(relay, |begin, count| {
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    while begin.elapsed() < TIME {
                        for stream in relay.set_up(AT_ONCE) {
                            // With a reset: ports in TIME_WAIT would run out.
                            let socket = socket2::SockRef::from(&stream);
                            socket.set_linger(Some(Duration::ZERO)).unwrap();
                        }
                        count.fetch_add(AT_ONCE, Ordering::Relaxed);
                    }
                });
            }
        });
    })
}

/// disco#info of the proxy.
pub(crate) fn questions(relay: &Relay) -> Figure {
    let (jid, link) = relay.link().unwrap();
    measure(relay, |begin, count| {
        let more = || begin.elapsed() < TIME;
        let answered = |questions| {
            count.fetch_add(questions, Ordering::Relaxed);
        };
        link.lock().unwrap().ask(jid, AT_ONCE * 4, more, answered);
    })
}

fn measure(relay: &Relay, load: impl FnOnce(Instant, &AtomicUsize)) -> Figure {
    let count = AtomicUsize::new(0);
    let (begin, spent) = (Instant::now(), relay.processor_time());
    load(begin, &count);
    let took = begin.elapsed().as_secs_f64();
    let spent = relay.processor_time() - spent;
    let count = count.into_inner() as f64;
    Figure { per_second: count / took, micros: spent / count * 1e6 }
}
