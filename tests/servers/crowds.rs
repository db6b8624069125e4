//! The SOCKS5 port under many connections: short sessions that leave nothing, garbage, idle pairs, too few descriptors;
//! behind a load balancer; and the status pages about it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use support::process::Process;
use support::programs::{Component, Options, script};
use support::servers::{Kind, Server};

/// How long a silent connection is held: far longer than anything here takes.
const LIMITS: &str = "[limits]\nrequests_per_second = 1000000\nconnections_per_ip = 1000000\n\
                      sessions_per_user = 1000000\nsessions = 20000\nhandshake_timeout = \"10m\"\n";

/// The number of idle pairs: each takes two descriptors of the component and of the script.
const PAIRS: usize = 10_000;
/// The same if a process may have no more than 20,000 files and may not raise that limit.
const FEWER_PAIRS: usize = 9_900;
/// Pairs whose readers stop.
const STALLED: usize = 8;
/// The number of sessions one after the other, some at once.
const SESSIONS: usize = 20_000;

#[test]
fn crowds_are_borne_and_leave_nothing() {
    let pairs = if may_open(3 * PAIRS as u64) { PAIRS } else { FEWER_PAIRS };
    let server = Server::start(Kind::Prosody);
    let options = Options { more: LIMITS.to_owned(), ..Options::default() };
    let component = Component::start(&server, &options);
    let report = script(
        "crowd.py",
        &server,
        json!({
            "proxy": ["127.0.0.1", component.socks5],
            "pid": component.id(),
            "pairs": pairs,
            "stalled": STALLED,
            "sessions": SESSIONS,
            "garbage": 500,
            "timeout": 1500,
        }),
    );
    assert_eq!(report["short"], json!([SESSIONS, SESSIONS]), "{report}");
    assert_eq!(report["in the crowd"], true, "{report}");
    assert_eq!(report["crowd was there"], true, "{report}");
    let most = report["most sent to a stalled reader"].as_u64().unwrap_or(u64::MAX);
    assert!(most < 64 << 20, "nothing read it, so it is kept somewhere: {report}");
    let kept = report["bytes per stalled pair"].as_i64().unwrap_or(i64::MAX);
    assert!(kept < 256 * 1024, "{report}");
    assert_eq!(report["whole"], STALLED, "{report}");
    assert_eq!(report["idle"], pairs, "{report}");
    assert_eq!(report["alive"], true, "{report}");
    assert_eq!(report["broken"], 0, "{report}");
    assert!(report["descriptors left"].as_i64().is_some_and(|left| left <= 2), "{report}");
    let per_pair = report["bytes per idle pair"].as_i64().unwrap_or(i64::MAX);
    assert!(per_pair < 8192, "an idle pair holds no buffer and no pipe: {report}");
}

/// Lets this process and its children have so many open files, if that is permitted.
fn may_open(files: u64) -> bool {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= files);
    let is = getrlimit(Resource::Nofile);
    let maximum = if enough(is.maximum) { is.maximum } else { Some(files) };
    enough(is.current)
        || setrlimit(Resource::Nofile, Rlimit { current: Some(files), maximum }).is_ok()
}

/// At the limit of open files connections are refused, the log gives the reason, and the program neither ends nor
/// spins.
#[test]
fn a_lack_of_descriptors_is_said_and_survived() {
    let server = Server::start(Kind::Prosody);
    let options = Options { more: LIMITS.to_owned(), descriptors: Some(80), ..Options::default() };
    let mut component = Component::start(&server, &options);
    let crowd: Vec<_> =
        (0..150).filter_map(|_| TcpStream::connect(("127.0.0.1", component.socks5)).ok()).collect();
    support::wait_for(
        "a word in the log",
        Duration::from_secs(10),
        || component.log(),
        || component.log().contains("raise the limit of open files"),
    );
    let refused = || crowd.iter().filter(|stream| is_closed(stream)).count();
    support::wait_for(
        "the refusal of most",
        Duration::from_secs(60),
        || format!("only {} of {} were refused\n{}", refused(), crowd.len(), component.log()),
        || refused() > 60,
    );
    let before = component.processor_time();
    std::thread::sleep(Duration::from_secs(2));
    let spent = component.processor_time() - before;
    assert!(spent < 0.5, "it spins: {spent} s of 2 s");
    drop(crowd);
    support::scenarios::assert_answers(&server);
    let report =
        script("proxy_rules.py", &server, json!({"proxy": ["127.0.0.1", component.socks5]}));
    assert_eq!(report["backward"], "answer", "{report}");
    assert!(component.runs());
}

/// Returns whether the other side has closed a connection.
fn is_closed(mut stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).expect("a socket can be read without waiting");
    match stream.read(&mut [0]) {
        Ok(n) => n == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

/// Behind HAProxy, which names the client by the PROXY protocol (both versions); a connection without a header is
/// refused.
#[test]
fn a_load_balancer_may_stand_in_front() {
    let server = Server::start(Kind::Prosody);
    let env = vec![("FINGERPOST_SOCKS5__PROXY_PROTOCOL", "true".to_owned())];
    let component = Component::start(&server, &Options { env, ..Options::default() });
    let directory = tempfile::tempdir().expect("a directory");
    for version in ["send-proxy", "send-proxy-v2"] {
        let (port, balancer) = balance(directory.path(), component.socks5, version);
        let report = script("proxy_rules.py", &server, json!({"proxy": ["127.0.0.1", port]}));
        assert_eq!(report["forward"], "early last", "{version}: {report}\n{}", component.log());
        assert_eq!(report["backward"], "answer", "{version}: {report}");
        // Its own connections, which name no client, find the component healthy.
        let well = "Health check for server front/behind succeeded";
        support::wait_for(
            "a health check",
            Duration::from_secs(60),
            || balancer.log(),
            || balancer.log().contains(well),
        );
        assert!(!balancer.log().contains("is DOWN"), "{version}: {}", balancer.log());
    }
    let mut bare = TcpStream::connect(("127.0.0.1", component.socks5)).expect("the port is open");
    bare.write_all(&[5, 1, 0]).expect("it takes bytes");
    assert_eq!(bare.read(&mut [0; 2]).unwrap_or(0), 0, "no header, no answer");
}

/// HAProxy may stand in front of ejabberd's port for components too, with both versions of the PROXY protocol.
#[test]
fn the_link_may_come_through_a_load_balancer() {
    let mut server = Server::start(Kind::Ejabberd);
    server.reconfigure(true, |text| {
        let listener = "    module: ejabberd_service\n";
        text.replace(listener, &format!("{listener}    use_proxy_protocol: true\n"))
    });
    let directory = tempfile::tempdir().expect("a directory");
    let port = server.component_address().rsplit_once(':').map(|(_, port)| port.parse());
    let behind = port.expect("an address").expect("a port");
    for version in ["send-proxy", "send-proxy-v2"] {
        let (port, _balancer) = balance(directory.path(), behind, version);
        let env = vec![("FINGERPOST_COMPONENT__SERVER", format!("127.0.0.1:{port}"))];
        let mut component = Component::start(&server, &Options { env, ..Options::default() });
        support::scenarios::assert_answers(&server);
        assert!(component.runs(), "{version}: {}", component.log());
    }
}

/// Starts HAProxy in front of a port, with health checks.
fn balance(directory: &Path, behind: u16, version: &str) -> (u16, Process) {
    let port = support::free_port();
    let config = directory.join("haproxy.cfg");
    let text = format!(
        "global\n  log stderr format raw local0\ndefaults\n  log global\n  option log-health-checks\n  mode tcp\n  \
         timeout connect 60s\n  timeout client 60s\n  timeout server 60s\n  timeout check 60s\nlisten front\n  \
         bind 127.0.0.1:{port}\n  server behind 127.0.0.1:{behind} {version} check check-send-proxy inter 100ms\n",
    );
    std::fs::write(&config, text).expect("the directory can be written to");
    let mut command = std::process::Command::new("haproxy");
    command.arg("-db").arg("-f").arg(&config);
    let balancer = Process::start(command, &directory.join(format!("{version}.log")));
    support::wait_for(
        "HAProxy",
        Duration::from_secs(10),
        || balancer.log(),
        || TcpStream::connect(("127.0.0.1", port)).is_ok(),
    );
    (port, balancer)
}

/// Health, readiness, metrics and the page, over HTTP.
#[test]
fn the_pages_tell_how_it_is() {
    let mut server = Server::start(Kind::Prosody);
    let port = support::free_port();
    let env = vec![("FINGERPOST_HTTP__LISTEN", format!("127.0.0.1:{port}"))];
    let component = Component::start(&server, &Options { env, ..Options::default() });
    let get = |path: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the port is open");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .expect("it takes a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers in text");
        answer
    };
    assert!(get("/healthz").starts_with("HTTP/1.1 200 "));
    // The log says that the link is up a moment before.
    let is_ready = || get("/readyz").starts_with("HTTP/1.1 200 ");
    support::wait_for("readiness", support::PATIENCE, || component.log(), is_ready);
    assert!(get("/nowhere").starts_with("HTTP/1.1 404 "));
    let proxy = json!(["127.0.0.1", component.socks5]);
    script("proxy_rules.py", &server, json!({"proxy": proxy}));
    let lines = [
        "fingerpost_link_up 1",
        "fingerpost_streams_total{initiator=\"s5b\",responder=\"s5b\"} 2",
        "fingerpost_relayed_bytes_total{from=\"s5b\",to=\"s5b\"} 16",
        "fingerpost_refusals_total{cause=\"third_connection\"} 1",
        "fingerpost_refusals_total{cause=\"one_side\"} 1",
        "fingerpost_setup_seconds_count 2",
    ];
    // Bytes are counted when the streams are checked.
    support::wait_for(
        "all that was done in the metrics",
        Duration::from_secs(20),
        || format!("{lines:#?}\n{}", get("/metrics")),
        || {
            let metrics = get("/metrics");
            lines.iter().all(|line| metrics.lines().any(|written| written == *line))
        },
    );
    let page = get("/");
    assert!(page.contains("<h1>Fingerpost</h1>") && !page.contains('@'), "it names nobody: {page}");
    server.stop();
    support::wait_for(
        "503",
        Duration::from_secs(20),
        || component.log(),
        || get("/readyz").starts_with("HTTP/1.1 503 "),
    );
    assert!(get("/readyz").contains("link"), "and why");
    assert!(get("/healthz").starts_with("HTTP/1.1 200 "));
}
