//! An HTTP client of the status server: requests that never end, and requests that pretend to be local.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::json;

use support::{
    programs::{Component, Options, Script},
    servers::{Kind, Server},
};

/// More than the server holds at once.
const CROWD: usize = 3000;

/// Sends a request unchanged, and returns the whole answer.
fn send(port: u16, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

/// Lets this process have so many open files.
fn may_open(files: u64) -> bool {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let is = getrlimit(Resource::Nofile);
    let maximum = is.maximum.map(|most| most.max(files));
    let enough = is.current.is_none_or(|limit| limit >= files);
    enough || setrlimit(Resource::Nofile, Rlimit { current: Some(files), maximum }).is_ok()
}

#[test]
fn half_sent_requests_keep_nobody_out() {
    let crowd = if may_open(CROWD as u64 + 200) { CROWD } else { 600 };
    let server = Server::start(Kind::Prosody);
    let (options, port) = Options::default().with_pages();
    let component = Component::start(&server, &options);
    let healthz = || send(port, "GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let pieces = [
        "",
        "GET / HT",
        "GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: ",
        "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nx",
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ];
    let mut held = Vec::new();
    for n in 0..crowd {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let _ = stream.write_all(pieces[n % pieces.len()].as_bytes());
        held.push(stream);
        if n % 100 == 0 {
            let answer = healthz();
            assert!(answer.starts_with("HTTP/1.1 200 "), "{n}: {answer}");
        }
    }
    assert!(healthz().starts_with("HTTP/1.1 200 "));
    let files = std::fs::read_dir(format!("/proc/{}/fd", component.id())).unwrap().count();
    assert!(files < 600, "{files} descriptors");
    // SOCKS5 is not affected.
    let mut socks5 = TcpStream::connect(("127.0.0.1", component.socks5)).unwrap();
    socks5.write_all(&[5, 1, 0]).unwrap();
    let mut reply = [0; 2];
    socks5.read_exact(&mut reply).unwrap();
    assert_eq!(reply, [5, 0]);
    // And no connection lasts without end.
    for mut stream in held {
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut rest = Vec::new();
        let end = stream.read_to_end(&mut rest).map_err(|error| error.kind());
        assert!(matches!(end, Ok(_) | Err(std::io::ErrorKind::ConnectionReset)), "{end:?}");
    }
}

#[test]
fn nobody_seems_local_through_a_proxy_or_another_name() {
    let server = Server::start(Kind::Prosody);
    let (options, port) = Options::default().with_pages();
    let component = Component::start(&server, &options);
    let proxy = json!(["127.0.0.1", component.socks5]);
    let mut stream = Script::start("survives.py", &server, json!({"proxy": proxy}));
    stream.wait_for("\"open\": true");

    let page = |start: &str, headers: &str| {
        send(port, &format!("{start}\r\n{headers}Connection: close\r\n\r\n"))
    };
    let own = format!("Host: 127.0.0.1:{port}\r\n");
    let local = page("GET / HTTP/1.1", &own);
    assert!(local.contains("alice@example.test → bob@example.test"), "{local}");
    let far = [
        ("GET / HTTP/1.0", own.clone()),
        ("GET / HTTP/1.0", String::new()),
        ("GET http://status.example.test/ HTTP/1.1", own.clone()),
        ("GET / HTTP/1.1", "Host: status.example.test\r\n".to_owned()),
        ("GET / HTTP/1.1", format!("Host: rebound.example.test:{port}\r\n")),
        ("GET / HTTP/1.1", format!("Host: localhost.example.test:{port}\r\n")),
        ("GET / HTTP/1.1", "Host: localhost@example.test\r\n".to_owned()),
        ("GET / HTTP/1.1", "Host: 0.0.0.0\r\n".to_owned()),
    ];
    let headers = [
        "X-Forwarded-For: 192.0.2.1",
        "X-Forwarded-For: 127.0.0.1",
        "X-Forwarded-For:",
        "x-forwarded-proto: https",
        "X-Forwarded-Host: localhost",
        "X-Forwarded-Server: a",
        "Forwarded: for=127.0.0.1",
        "Forwarded: for=unknown",
        "X-Real-IP: 127.0.0.1",
        "X-Client-IP: 127.0.0.1",
        "True-Client-IP: 127.0.0.1",
        "CF-Connecting-IP: 127.0.0.1",
        "Via: 1.1 localhost",
    ];
    let headers = headers.map(|header| ("GET / HTTP/1.1", format!("{own}{header}\r\n")));
    for (start, headers) in far.into_iter().chain(headers) {
        let answer = page(start, &headers);
        assert!(
            !answer.contains("alice") && !answer.contains("bob"),
            "{start} {headers}: {answer}"
        );
        let refused = answer.starts_with("HTTP/1.1 400 ");
        assert!(refused || answer.contains("…@example.test"), "{start} {headers}: {answer}");
    }
    std::fs::write(stream.directory().join("go"), "").unwrap();
    stream.report();
}
