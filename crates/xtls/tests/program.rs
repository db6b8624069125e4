//! The program as it is called. With this test cargo builds it for the end-to-end tests in tests/ too.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::process::{Command, Output};

fn xtls(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtls")).args(arguments).output().unwrap()
}

#[test]
fn it_names_itself_and_its_version() {
    let output = xtls(&["--version"]);
    let expected = format!("xtls {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn an_unknown_option_is_a_usage_error() {
    let output = xtls(&["--no-such-option"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
    assert!(String::from_utf8(output.stderr).unwrap().contains("--no-such-option"));
}

#[test]
fn an_unknown_transport_is_told_the_known_ones() {
    for (option, unknown, known) in [
        ("--transport", "udp", "[possible values: s5b, ibb, ice]"),
        // A connection by ICE is offered by itself where it can be had.
        ("--prefer", "ice", "[possible values: s5b, ibb]"),
    ] {
        let output = xtls(&["listen", option, unknown]);
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8(output.stderr).unwrap().contains(known), "{option}");
    }
}
