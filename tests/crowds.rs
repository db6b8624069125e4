//! The SOCKS5 port under crowds: short sessions that leave nothing, garbage, idle pairs, and too few descriptors.

mod support;

use serde_json::json;
use support::programs::{Component, Options, script};
use support::servers::{Kind, Server};

const LIMITS: &str = "[limits]\nrequests_per_second = 1000000\nconnections_per_ip = 1000000\n\
                      sessions_per_user = 1000000\nsessions = 20000\n";

/// Idle pairs at one time: two descriptors each, of the component and of the script, and 20,000 is as many as a process
/// may have on the smallest machine that this runs on.
const PAIRS: usize = 9_900;
/// Sessions one after the other, some at once.
const SESSIONS: usize = 20_000;

#[test]
fn crowds_are_borne_and_leave_nothing() {
    let server = Server::start(Kind::Prosody);
    let options = Options { more: LIMITS.to_owned(), ..Options::default() };
    let component = Component::start(&server, &options);
    let report = script(
        "crowd.py",
        &server,
        json!({
            "proxy": ["127.0.0.1", component.socks5],
            "pid": component.id(),
            "pairs": PAIRS,
            "sessions": SESSIONS,
            "garbage": 500,
            "timeout": 140,
        }),
    );
    assert_eq!(report["short"], json!([SESSIONS, SESSIONS]), "{report}");
    assert_eq!(report["in the crowd"], true, "{report}");
    assert_eq!(report["in time"], true, "{report}");
    assert_eq!(report["idle"], PAIRS, "{report}");
    assert_eq!(report["alive"], true, "{report}");
    assert_eq!(report["broken"], 0, "{report}");
    assert!(report["descriptors left"].as_i64().is_some_and(|left| left <= 2), "{report}");
    let per_pair = report["bytes per idle pair"].as_i64().unwrap_or(i64::MAX);
    assert!(per_pair < 8192, "an idle pair holds no buffer and no pipe: {report}");
}

/// At the limit of open files connections wait or are refused, the log says why, and the program neither ends nor spins.
#[test]
fn a_lack_of_descriptors_is_said_and_survived() {
    let server = Server::start(Kind::Prosody);
    let options = Options { more: LIMITS.to_owned(), descriptors: Some(80), ..Options::default() };
    let mut component = Component::start(&server, &options);
    let crowd: Vec<_> = (0..150)
        .filter_map(|_| std::net::TcpStream::connect(("127.0.0.1", component.socks5)).ok())
        .collect();
    support::wait_for(
        "a word in the log",
        std::time::Duration::from_secs(10),
        || component.log(),
        || component.log().contains("raise the limit of open files"),
    );
    let before = component.processor_time();
    std::thread::sleep(std::time::Duration::from_secs(2));
    let spent = component.processor_time() - before;
    assert!(spent < 0.5, "it spins: {spent} s of 2 s");
    drop(crowd);
    support::scenarios::assert_answers(&server);
    let report =
        script("proxy_rules.py", &server, json!({"proxy": ["127.0.0.1", component.socks5]}));
    assert_eq!(report["backward"], "answer", "{report}");
    assert!(component.runs());
}
