//! Legal but odd stanzas, sent by an ordinary user through real servers to the component and to a proxied user, whose
//! program answers the requests that reach it. None ends a connection, and every request has exactly one answer.
//!
//! `FINGERPOST_TEST_SEED` chooses other stanzas, `FINGERPOST_SOAK_SECONDS` another duration (`make soak`).

#![allow(clippy::print_stdout, reason = "the throughput is part of the output")]

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use support::grammar::{Grammar, HEADER};
use support::programs::{Component, Options, Xtls, page};
use support::raw::{Raw, attribute, start_tag};
use support::servers::{Kind, Server};
use support::{COMPONENT, PATIENCE, free_port};

/// Stanzas to each server in `make test`.
const COUNT: usize = 12_000;
/// The time after which no more are sent, and the sent ones count.
const MOST: Duration = Duration::from_secs(60);
/// The time after which an answer counts as missing.
const ANSWERED: Duration = Duration::from_secs(100);
/// The most unanswered requests.
const WINDOW: usize = 64;
/// The longest piece that the grammar repeats, in bytes: the servers accept 256 KiB from a client.
const SIZE: usize = 64 * 1024;

/// How often each request was answered, and which ones are open.
#[derive(Default)]
struct Answers {
    counts: Mutex<BTreeMap<usize, usize>>,
    changed: Condvar,
}

impl Answers {
    fn ask(&self, number: usize) {
        let counts = self.counts.lock().unwrap();
        let open = |counts: &mut BTreeMap<usize, usize>| {
            counts.values().filter(|count| **count == 0).count() >= WINDOW
        };
        // An unanswered request shows at the end: it must not delay the others.
        let (mut counts, _) = self.changed.wait_timeout_while(counts, ANSWERED, open).unwrap();
        // A request with one answer is done; only open ones, and those with two answers, are kept.
        counts.retain(|_, count| *count != 1);
        counts.insert(number, 0);
    }

    fn answered(&self, number: usize) {
        // An answer to an unknown request is one too many.
        *self.counts.lock().unwrap().entry(number).or_insert(1) += 1;
        self.changed.notify_all();
    }

    /// Waits until no request is open; returns the numbers of those that were not answered exactly once.
    fn wrong(&self) -> Vec<(usize, usize)> {
        let counts = self.counts.lock().unwrap();
        let open = |counts: &mut BTreeMap<usize, usize>| counts.values().any(|count| *count == 0);
        let (counts, _) = self.changed.wait_timeout_while(counts, ANSWERED, open).unwrap();
        counts.iter().filter(|(_, count)| **count != 1).map(|(n, count)| (*n, *count)).collect()
    }
}

/// Reads the user's stream and counts the answers; returns why it ended.
fn listen(mut user: Raw, answers: &Answers) -> String {
    loop {
        let element = match user.read() {
            Ok(element) => element,
            Err(error) => return error.to_string(),
        };
        let tag = start_tag(&element);
        if tag.starts_with("<stream:error") || tag.starts_with("</") {
            return String::from_utf8_lossy(&element).into_owned();
        }
        let name = tag[1..].split([' ', '>', '/']).next().unwrap_or_default();
        let is = |kinds: &[&str]| attribute(&tag, "type").is_some_and(|kind| kinds.contains(&kind));
        if name.rsplit(':').next() == Some("iq") && is(&["result", "error"]) {
            let id = attribute(&tag, "id").unwrap_or_default();
            if let Some(number) = id.split('.').next().and_then(|number| number.parse().ok()) {
                answers.answered(number);
            }
        }
    }
}

fn metric(port: u16, name: &str) -> Option<u64> {
    page(port, "/metrics")?.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// Returns the seed of a run's stanzas.
fn seed() -> u64 {
    std::env::var("FINGERPOST_TEST_SEED").map_or(1, |seed| seed.parse().unwrap())
}

fn soak() -> Option<Duration> {
    let seconds = std::env::var("FINGERPOST_SOAK_SECONDS").ok()?;
    Some(Duration::from_secs(seconds.parse().unwrap()))
}

fn every_stanza_passes_and_every_request_is_answered_once(kind: Kind) {
    let server = Server::start_in_clear(kind);
    let page = free_port();
    let options = Options {
        more: "[limits]\nrequests_per_second = 1000000\n".to_owned(),
        env: vec![("FINGERPOST_HTTP__LISTEN", format!("127.0.0.1:{page}"))],
        ..Options::default()
    };
    let mut component = Component::start(&server, &options);
    let bob = Xtls::with_key(&server, "bob");
    let out = bob.home().join("received");
    std::fs::create_dir_all(&out).unwrap();
    let mut program = bob.start(["listen", "--json", "--out", out.to_str().unwrap()]);
    support::wait_for(
        "listening",
        PATIENCE,
        || program.log(),
        || support::programs::event(&program.log(), "listening").is_some(),
    );
    let listening = support::programs::event(&program.log(), "listening").unwrap();
    let full = listening["jid"].as_str().unwrap().to_owned();
    let (bare, resource) = full.split_once('/').unwrap();
    let escaped = bare.replace('@', "\\40");
    let targets = [
        COMPONENT.to_owned(),
        format!("{escaped}@{COMPONENT}/{resource}"),
        format!("{escaped}@{COMPONENT}"),
        format!("nobody@{COMPONENT}/x"),
        full.clone(),
    ];

    let user = Raw::client(&server, "alice", "odd", HEADER);
    let (mut socket, reader) = user.split();
    // Only the end of the test ends it.
    reader.set_patience(PATIENCE * 100);
    let answers = Arc::<Answers>::default();
    let heard = Arc::clone(&answers);
    let (ended, end): (_, Receiver<String>) = channel();
    thread::spawn(move || ended.send(listen(reader, &heard)));

    let (seed, begin) = (seed(), Instant::now());
    let (count, most) = match soak() {
        Some(time) => (usize::MAX, time),
        None => (COUNT, MOST),
    };
    let mut grammar = Grammar::new(seed, kind == Kind::Ejabberd, SIZE);
    let (mut sent, mut asked, mut bytes) = (0, 0, 0);
    let mut last: Vec<String> = Vec::new();
    let mut why = None;
    while sent < count && begin.elapsed() < most {
        let to = &targets[sent % targets.len()];
        let stanza = grammar.stanza(sent, "alice@example.test/odd", to);
        if stanza.asks {
            asked += 1;
            answers.ask(sent);
        }
        bytes += stanza.text.len();
        let written = socket.write_all(stanza.text.as_bytes());
        last.push(stanza.text);
        if last.len() > 4 * WINDOW {
            last.drain(..WINDOW);
        }
        sent += 1;
        match end.recv_timeout(Duration::ZERO) {
            Ok(reason) => why = Some(reason),
            Err(RecvTimeoutError::Disconnected) => why = Some("the reader is gone".to_owned()),
            Err(RecvTimeoutError::Timeout) if written.is_err() => {
                why = Some("cannot write".to_owned())
            }
            Err(RecvTimeoutError::Timeout) => continue,
        }
        break;
    }
    let wrong = answers.wrong();
    let seconds = begin.elapsed().as_secs_f64();
    let (program_ended, component_runs) = (program.ended(), component.runs());
    let story = || {
        let file = std::env::temp_dir().join(format!("fingerpost-differential-{kind:?}.xml"));
        std::fs::write(&file, last.join("\n")).unwrap();
        format!(
            "seed {seed}, {sent} stanzas sent; the last are in {}\n{}\n{}",
            file.display(),
            component.log(),
            program.log()
        )
    };
    assert_eq!(why, None, "the server has ended the user's stream: {}", story());
    let links = metric(page, "fingerpost_link_connections_total");
    assert_eq!(links, Some(1), "the link has dropped: {}", story());
    assert!(wrong.is_empty(), "(request, answers): {wrong:?}: {}", story());
    assert!(program_ended.is_none(), "xtls listen has ended: {}", story());
    assert!(component_runs, "the component has ended: {}", story());
    drop(socket);
    let rate = f64::from(u32::try_from(sent).unwrap_or(u32::MAX)) / seconds;
    println!(
        "{kind:?} {}: {sent} stanzas, {asked} requests, {} MB in {seconds:.0} s: {rate:.0}/s (seed {seed})",
        kind.version(),
        bytes / 1_000_000
    );
}

#[test]
fn prosody_every_stanza_passes_and_every_request_is_answered_once() {
    every_stanza_passes_and_every_request_is_answered_once(Kind::Prosody);
}

#[test]
fn ejabberd_every_stanza_passes_and_every_request_is_answered_once() {
    every_stanza_passes_and_every_request_is_answered_once(Kind::Ejabberd);
}
