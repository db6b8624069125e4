//! The harness itself: both servers start, accept their users, and start again with the same data.

use serde_json::json;
use support::programs::script;
use support::servers::{Kind, Server};
use support::tap;

fn users_log_in_before_and_after_a_restart(kind: Kind) {
    let mut server = Server::start(kind);
    let jids =
        json!(["alice@example.test/desk", "bob@example.test/desk", "carol@example.test/desk"]);
    assert_eq!(script("login.py", &server, json!({}))["jids"], jids);
    server.restart();
    assert_eq!(script("login.py", &server, json!({}))["jids"], jids);
}

#[test]
fn prosody_takes_its_users_before_and_after_a_restart() {
    users_log_in_before_and_after_a_restart(Kind::Prosody);
}

#[test]
fn ejabberd_takes_its_users_before_and_after_a_restart() {
    users_log_in_before_and_after_a_restart(Kind::Ejabberd);
}

#[test]
fn tls_records_are_told_from_other_bytes() {
    assert_eq!(tap::tls_records(&[22, 3, 1, 0, 2, 9, 9, 23, 3, 3, 0, 1, 9]), Ok(2));
    assert!(tap::tls_records(b"GET / HTTP/1.1").is_err());
    let greeting = [5, 1, 0, 5, 1, 0, 3, 2, b'a', b'b', 0, 0, 22, 3];
    assert_eq!(tap::after_socks5(&greeting, true), Some(&[22, 3][..]));
}
