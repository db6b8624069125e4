//! A socket at the SOCKS5 port: peers that break, addresses that want too much, balancers that say nothing.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::json;

use crate::support::{
    self, free_port,
    network::Network,
    programs::{Component, Options, script},
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

/// Sends `before` and a request, and gives the reply code.
fn ask(port: u16, before: &[u8]) -> (TcpStream, Option<u8>) {
    let mut stream = connect(port);
    let _ = stream.write_all(&[before, &request()].concat());
    let mut reply = [0; 2 + 47];
    let code = stream.read_exact(&mut reply).ok().map(|()| reply[3]);
    (stream, code)
}

/// Whether the other side ends the connection.
fn ends(mut stream: &TcpStream) -> bool {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn with_pages(options: Options) -> (Options, u16) {
    let port = free_port();
    let mut options = options;
    options.env.push(("FINGERPOST_HTTP__LISTEN", format!("127.0.0.1:{port}")));
    (options, port)
}

/// A peer closes, half-closes or resets; the other one is silent, says a word or writes without end, and reads later.
#[test]
fn what_was_acknowledged_arrives_and_the_end_is_the_peer_s_own() {
    let server = Server::start(Kind::Prosody);
    let (options, pages) = with_pages(Options::default());
    let component = Component::start(&server, &options);
    let proxy = json!(["127.0.0.1", component.socks5]);
    let report = script("broken_legs.py", &server, json!({"proxy": proxy, "timeout": 140}));
    for (name, end) in [("close", "end"), ("half-close", "end"), ("reset", "reset")] {
        for chatter in [0, 1, 24 << 20] {
            let case = format!("{name} {chatter}");
            assert_eq!(report[&case], json!([3_000_000, true, end]), "{case}: {report}");
        }
    }
    let metrics = get(pages, "/metrics").unwrap();
    let taken = metrics
        .lines()
        .find_map(|line| line.strip_prefix("fingerpost_pipes_taken_total "))
        .unwrap();
    assert_ne!(taken, "0", "the kernel moved the bytes");
    support::scenarios::assert_answers(&server);
}

/// Peers that are cut off without a word: idle, half-closed and silent, with bytes on their way.
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
    let (options, pages) = with_pages(Options {
        more: "[limits]\nconnections_per_ip = 1\n".to_owned(),
        ..Options::default()
    });
    let component = Component::start(&server, &options);
    let (first, code) = ask(component.socks5, &[]);
    assert_eq!(code, Some(0));
    for _ in 0..5 {
        let (refused, code) = ask(component.socks5, &[]);
        assert_eq!(code, Some(2), "not allowed");
        assert!(ends(&refused));
    }
    let metrics = get(pages, "/metrics").unwrap();
    let line = "fingerpost_refusals_total{cause=\"address_limit\"} 5";
    assert!(metrics.lines().any(|written| written == line), "{metrics}");
    drop(first);
}

#[test]
fn a_balancer_s_own_connections_are_served_and_no_fault() {
    let server = Server::start(Kind::Prosody);
    let (mut options, pages) = with_pages(Options {
        more: "[limits]\nhandshake_timeout = \"1s\"\n[log]\nlevel = \"debug\"\n".to_owned(),
        ..Options::default()
    });
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
    let metrics = get(pages, "/metrics").unwrap();
    for cause in ["handshake", "proxy_header"] {
        let line = format!("fingerpost_refusals_total{{cause=\"{cause}\"}} 0");
        assert!(metrics.lines().any(|written| written == line), "{line} in\n{metrics}");
    }
    let mut bare = connect(component.socks5);
    bare.write_all(&request()).unwrap();
    assert!(ends(&bare));
    let metrics = get(pages, "/metrics").unwrap();
    let line = "fingerpost_refusals_total{cause=\"proxy_header\"} 1";
    assert!(metrics.lines().any(|written| written == line), "{line} in\n{metrics}");
    let log = component.log();
    let said = |level: &str| log.contains(&format!("{level} fingerpost::mediator"));
    assert!(!said("ERROR") && !said("WARN"), "{log}");
}

/// SOCKS5 clients that have taken every file descriptor leave some for the pages.
#[test]
fn a_full_port_does_not_hide_the_pages() {
    let server = Server::start(Kind::Prosody);
    let (options, pages) = with_pages(Options {
        more: "[limits]\nconnections_per_ip = 1000\nhandshake_timeout = \"10m\"\n".to_owned(),
        descriptors: Some(100),
        ..Options::default()
    });
    let component = Component::start(&server, &options);
    let crowd: Vec<_> = (0..150).filter_map(|_| ask_half(component.socks5)).collect();
    support::wait_for(
        "a word in the log",
        Duration::from_secs(60),
        || component.log(),
        || component.log().contains("raise the limit of open files"),
    );
    for _ in 0..20 {
        let answer = get(pages, "/healthz").unwrap_or_default();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}\n{}", component.log());
    }
    drop(crowd);
}

fn ask_half(port: u16) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.write_all(&[5]).ok()?;
    Some(stream)
}
