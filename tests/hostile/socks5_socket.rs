//! A socket at the SOCKS5 port: peers that break, addresses with too many connections, silent balancers.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::json;

use support::{
    self, free_port,
    network::Network,
    process::{Process, run},
    programs::{Component, Options, page, script, without},
    servers::{Kind, Server},
};

const HASH: &str = "972b7bf47291ca609517f67f86b5081086052dad";

/// Greeting and request, in one piece.
fn request() -> Vec<u8> {
    let mut bytes = vec![5, 1, 0, 5, 1, 0, 3, 40];
    bytes.extend(HASH.as_bytes());
    bytes.extend([0, 0]);
    bytes
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

/// Sends `before` and a request, and returns the reply code.
fn ask(port: u16, before: &[u8]) -> (TcpStream, Option<u8>) {
    let mut stream = connect(port);
    let _ = stream.write_all(&[before, &request()].concat());
    let mut reply = [0; 2 + 47];
    let code = stream.read_exact(&mut reply).ok().map(|()| reply[3]);
    (stream, code)
}

/// Returns whether the other side ends the connection.
fn ends(mut stream: &TcpStream) -> bool {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

/// A peer closes, half-closes or resets; the other one is silent, sends a little or writes without end, and reads
/// later.
#[test]
fn what_was_acknowledged_arrives_and_the_end_is_the_peer_s_own() {
    let server = Server::start(Kind::Prosody);
    let (options, pages) = Options::default().with_pages();
    let component = Component::start(&server, &options);
    let proxy = json!(["127.0.0.1", component.socks5]);
    let report = script("broken_legs.py", &server, json!({"proxy": proxy, "timeout": 140}));
    for (name, end) in [("close", "end"), ("half-close", "end"), ("reset", "reset")] {
        for chatter in [0, 1, 24 << 20] {
            let case = format!("{name} {chatter}");
            assert_eq!(report[&case], json!([3_000_000, true, end]), "{case}: {report}");
        }
    }
    let metrics = page(pages, "/metrics").unwrap();
    let taken = metrics
        .lines()
        .find_map(|line| line.strip_prefix("fingerpost_pipes_taken_total "))
        .unwrap();
    assert_ne!(taken, "0", "the kernel moved the bytes");
    support::scenarios::assert_answers(&server);
}

/// Peers that are cut off silently: idle, half-closed and silent, with bytes on their way.
#[test]
fn a_peer_that_vanishes_is_missed_within_two_minutes() {
    let server = Server::start(Kind::Prosody);
    let network = Network::start();
    let address = Some(network.address().to_owned());
    let component = Component::start(&server, &Options { address, ..Options::default() });
    let report = script(
        "vanishing.py",
        &server,
        json!({
            "proxy": [network.address(), component.socks5],
            "network": network.name(),
            "device": format!("{}p", network.name()),
            "timeout": 150,
        }),
    );
    for case in ["idle", "half-closed", "in flight"] {
        assert_eq!(report[case], "reset", "{case}: {report}\n{}", component.log());
    }
}

#[test]
fn an_address_with_too_many_connections_is_told_so_and_counted() {
    let server = Server::start(Kind::Prosody);
    let (options, pages) =
        Options { more: "[limits]\nconnections_per_ip = 1\n".to_owned(), ..Options::default() }
            .with_pages();
    let component = Component::start(&server, &options);
    let (first, code) = ask(component.socks5, &[]);
    assert_eq!(code, Some(0));
    for _ in 0..5 {
        let (refused, code) = ask(component.socks5, &[]);
        assert_eq!(code, Some(2), "not allowed");
        assert!(ends(&refused));
    }
    let metrics = page(pages, "/metrics").unwrap();
    let line = "fingerpost_refusals_total{cause=\"address_limit\"} 5";
    assert!(metrics.lines().any(|written| written == line), "{metrics}");
    drop(first);
}

#[test]
fn a_balancer_s_own_connections_are_served_and_no_fault() {
    let server = Server::start(Kind::Prosody);
    let (mut options, pages) = Options {
        more: "[limits]\nhandshake_timeout = \"1s\"\n[log]\nlevel = \"debug\"\n".to_owned(),
        ..Options::default()
    }
    .with_pages();
    options.env.push(("FINGERPOST_SOCKS5__PROXY_PROTOCOL", "true".to_owned()));
    let component = Component::start(&server, &options);
    const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
    let unix = [b'/'; 216];
    for header in [
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN some words\r\n".to_vec(),
        [SIGNATURE, &[0x20, 0, 0, 0]].concat(),
        [SIGNATURE, &[0x20, 0x11, 0, 2, 7, 7]].concat(),
        [SIGNATURE, &[0x21, 0, 0, 0]].concat(),
        [SIGNATURE, &[0x21, 0x31, 0, 216], &unix].concat(),
    ] {
        let (stream, code) = ask(component.socks5, &header);
        assert!(matches!(code, Some(0 | 2)), "{header:?}: {code:?}");
        drop(stream);
        // A health check.
        let mut check = connect(component.socks5);
        check.write_all(&header).unwrap();
        check.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(ends(&check));
    }
    assert!(ends(&connect(component.socks5)), "silence has an end");
    let mut slow = connect(component.socks5);
    slow.write_all(b"PROXY TC").unwrap();
    assert!(ends(&slow), "and half a header");
    let metrics = page(pages, "/metrics").unwrap();
    for cause in ["handshake", "proxy_header"] {
        let line = format!("fingerpost_refusals_total{{cause=\"{cause}\"}} 0");
        assert!(metrics.lines().any(|written| written == line), "{line} in\n{metrics}");
    }
    let mut bare = connect(component.socks5);
    bare.write_all(&request()).unwrap();
    assert!(ends(&bare));
    let metrics = page(pages, "/metrics").unwrap();
    let line = "fingerpost_refusals_total{cause=\"proxy_header\"} 1";
    assert!(metrics.lines().any(|written| written == line), "{line} in\n{metrics}");
    let log = component.log();
    let said = |level: &str| log.contains(&format!("{level} fingerpost::relay"));
    assert!(!said("ERROR") && !said("WARN"), "{log}");
}

/// SOCKS5 clients that have taken every file descriptor leave some for the status pages.
#[test]
fn a_full_port_does_not_hide_the_pages() {
    let server = Server::start(Kind::Prosody);
    let (options, pages) = Options {
        more: "[limits]\nconnections_per_ip = 1000\nhandshake_timeout = \"10m\"\n".to_owned(),
        descriptors: Some(100),
        ..Options::default()
    }
    .with_pages();
    let component = Component::start(&server, &options);
    let crowd: Vec<_> = (0..150).filter_map(|_| ask_half(component.socks5)).collect();
    support::wait_for(
        "a message in the log",
        Duration::from_secs(60),
        || component.log(),
        || component.log().contains("raise the limit of open files"),
    );
    for _ in 0..20 {
        let answer = page(pages, "/healthz").unwrap_or_default();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}\n{}", component.log());
    }
    drop(crowd);
}

fn ask_half(port: u16) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.write_all(&[5]).ok()?;
    Some(stream)
}

#[test]
fn ordinary_socks5_clients_take_part_in_a_transfer() {
    let server = Server::start(Kind::Prosody);
    let component = Component::start(&server, &Options::default());
    let proxy = json!(["127.0.0.1", component.socks5]);
    let report = script("ordinary_socks5.py", &server, json!({"proxy": proxy}));
    for pair in ["curl PySocks", "PySocks curl"] {
        assert_eq!(report[pair], json!(["result", "a line\n", "a line\n"]), "{pair}: {report}");
    }
}

/// Behind socat all users have one address: the log says so once, with the cure, and a client over the limit is told.
#[test]
fn a_forwarder_that_hides_addresses_is_told_of() {
    let server = Server::start(Kind::Prosody);
    let (options, pages) =
        Options { more: "[limits]\nconnections_per_ip = 30\n".to_owned(), ..Options::default() }
            .with_pages();
    let component = Component::start(&server, &options);
    let port = free_port();
    let directory = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new("socat");
    command.arg(format!("TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork"));
    command.arg(format!("TCP:127.0.0.1:{},bind=127.0.0.7", component.socks5));
    let forwarder = Process::start(command, &directory.path().join("socat.log"));
    support::wait_for(
        "socat",
        Duration::from_secs(60),
        || forwarder.log(),
        || TcpStream::connect(("127.0.0.1", port)).is_ok(),
    );
    let codes: Vec<_> = (0..33).map(|_| ask_for_another(port)).collect();
    let refused = codes.iter().filter(|(_, code)| *code == Some(2)).count();
    assert!(codes.iter().all(|(_, code)| code.is_some()), "everybody is answered");
    assert_eq!(refused, 3, "{}", component.log());
    let log = component.log();
    assert_eq!(log.matches("most SOCKS5 connections come from one address").count(), 1, "{log}");
    let told = log.lines().find(|line| line.contains("most SOCKS5 connections")).unwrap();
    for word in ["127.0.0.7", "proxy_protocol", "host's network", "port_handler"] {
        assert!(told.contains(word), "{word}: {told}");
    }
    let metrics = page(pages, "/metrics").unwrap();
    let line = "fingerpost_refusals_total{cause=\"address_limit\"} 3";
    assert!(metrics.lines().any(|written| written == line), "{metrics}");
}

/// Requests a transfer that no other client requests.
fn ask_for_another(port: u16) -> (TcpStream, Option<u8>) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let mut stream = connect(port);
    let mut bytes = vec![5, 1, 0, 5, 1, 0, 3, 40];
    bytes.extend(format!("{number:040x}").as_bytes());
    bytes.extend([0, 0]);
    let _ = stream.write_all(&bytes);
    let mut reply = [0; 2 + 47];
    let code = stream.read_exact(&mut reply).ok().map(|()| reply[3]);
    (stream, code)
}

/// Streams whose readers stand still give their pipes to moving ones.
#[test]
fn streams_that_nobody_reads_keep_no_pipes_from_others() {
    let server = Server::start(Kind::Prosody);
    let (mut options, pages) = Options {
        more: "[limits]\nsessions_per_user = 1000\nrequests_per_second = 1000\nconnections_per_ip = 1000\n"
            .to_owned(),
        ..Options::default()
    }.with_pages();
    // Small segments: less waits in the kernel for each reader.
    options.env.push(("FINGERPOST_SOCKS5__MAX_SEGMENT", "1220".to_owned()));
    let component = Component::start(&server, &options);
    let proxy = json!(["127.0.0.1", component.socks5]);
    let report =
        script("still_readers.py", &server, json!({"proxy": proxy, "pages": pages, "pairs": 40}));
    // One account's share is half of all pipes.
    assert!(report["busy"].as_u64().unwrap() <= 64, "{report}");
    assert_eq!(report["moved"], 8 << 20, "{report}");
    assert!(report["taken"].as_u64().unwrap() > 0, "the kernel moved the other stream: {report}");
}

/// A seccomp profile forbids splice(2): streams are whole from the first byte on, and the operator is told.
#[test]
fn streams_go_on_where_the_kernel_refuses_splice() {
    let server = Server::start(Kind::Prosody);
    let (options, pages) = Options { without: vec!["splice"], ..Options::default() }.with_pages();
    let component = Component::start(&server, &options);
    let proxy = json!(["127.0.0.1", component.socks5]);
    let report =
        script("still_readers.py", &server, json!({"proxy": proxy, "pages": pages, "pairs": 0}));
    assert_eq!((&report["moved"], &report["taken"]), (&json!(8 << 20), &json!(0)), "{report}");
    let log = component.log();
    assert_eq!(log.matches("splice(2) does not work here").count(), 1, "{log}");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.toml");
    let text = format!(
        "[component]\njid = \"xtls.example.test\"\nsecret = \"s\"\n[database]\nurl = \"sqlite::memory:\"\n\
         [socks5]\nlisten = [\"127.0.0.1:{}\"]\n[http]\nlisten = \"\"\n",
        free_port()
    );
    std::fs::write(&file, text).unwrap();
    let mut check = without(&["splice"], &support::own_program("fingerpost"));
    check.arg("check").arg("-c").arg(&file);
    let checked = run(check, Duration::from_secs(60));
    assert_eq!(checked.code, 0, "{checked:?}");
    assert!(checked.stdout.contains("warning: splice(2) does not work here"), "{checked:?}");
}
