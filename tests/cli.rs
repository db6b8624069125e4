//! The `fingerpost` program as an operator sees it: exit status, standard output, standard error.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use fingerpost::config::DEFAULT_TEXT;
use support::own_program;
use support::process::{Output, run};
use support::programs::clean;

fn command(directory: &Path, args: &[&str]) -> Command {
    let mut command = clean(&own_program("fingerpost"));
    command.args(args).current_dir(directory);
    command
}

fn fingerpost(directory: &Path, args: &[&str]) -> Output {
    run(command(directory, args), Duration::from_secs(30))
}

/// Returns a directory with a good configuration, plus `more`.
fn directory(more: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let port = support::free_port();
    let text = format!(
        "[component]\njid = \"xtls.example.org\"\nsecret = \"s\"\n{more}\n\
         [socks5]\nlisten = [\"127.0.0.1:{port}\"]\n[http]\nlisten = \"\"\n"
    );
    let file = directory.path().join("fingerpost.toml");
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    directory
}

#[test]
fn a_bad_configuration_ends_with_status_78_and_one_line() {
    let directory = directory("server = \"localhost\"");
    for args in [&["serve"][..], &["check"], &["attach", "prosody"], &["keys", "list"]] {
        let output = fingerpost(directory.path(), args);
        assert_eq!(output.code, 78, "{args:?}: {output:?}");
        assert_eq!(output.stdout, "", "{args:?}");
        assert_eq!(
            output.stderr,
            "error: fingerpost.toml: component.server: expected \"host:port\", found \"localhost\"\n",
        );
    }
}

#[test]
fn an_unknown_key_is_named_with_the_one_that_was_meant() {
    let directory = directory("sever = \"localhost:1\"");
    let output = fingerpost(directory.path(), &["check"]);
    assert_eq!(output.code, 78, "{output:?}");
    assert_eq!(
        output.stderr,
        "error: fingerpost.toml: component.sever: unknown key in [component]; did you mean `server`?\n",
    );
}

#[test]
fn a_missing_configuration_comes_with_a_hint() {
    let directory = tempfile::tempdir().unwrap();
    let output = fingerpost(directory.path(), &["serve", "-c", "none.toml"]);
    assert_eq!(output.code, 78, "{output:?}");
    assert_eq!(
        output.stderr,
        "error: none.toml: cannot be read: no such file\n\
         hint: `fingerpost config` prints a configuration to start from\n",
    );
}

#[test]
fn the_environment_wins_over_the_file() {
    let directory = directory("");
    let mut command = command(directory.path(), &["check"]);
    command.env("FINGERPOST_COMPONENT__SERVER", "nowhere");
    let output = run(command, Duration::from_secs(30));
    assert_eq!(output.code, 78, "{output:?}");
    assert!(output.stderr.starts_with("error: FINGERPOST_COMPONENT__SERVER: "), "{output:?}");
}

#[test]
fn bad_usage_ends_with_status_2() {
    let directory = tempfile::tempdir().unwrap();
    for args in [&["dance"][..], &["serve", "--loud"], &["completions", "cobol"]] {
        assert_eq!(fingerpost(directory.path(), args).code, 2, "{args:?}");
    }
}

#[test]
fn the_default_configuration_is_printed() {
    let directory = tempfile::tempdir().unwrap();
    let output = fingerpost(directory.path(), &["config"]);
    assert_eq!((output.code, output.stdout.as_str()), (0, DEFAULT_TEXT));
    assert_eq!(output.stderr, "");
}

#[test]
fn a_good_configuration_passes_the_check() {
    let directory = directory("");
    assert_eq!(fingerpost(directory.path(), &["migrate"]).code, 0);
    let output = fingerpost(directory.path(), &["check"]);
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(output.stderr, "");
}

#[test]
fn a_port_that_is_taken_fails_the_check() {
    let directory = directory("");
    let config = std::fs::read_to_string(directory.path().join("fingerpost.toml")).unwrap();
    let port = config.split("127.0.0.1:").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
    let _taken = std::net::TcpListener::bind(("127.0.0.1", port.parse::<u16>().unwrap())).unwrap();
    let output = fingerpost(directory.path(), &["check"]);
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.stderr.starts_with("error: socks5.listen: cannot listen on "), "{output:?}");
}

#[test]
fn an_unreachable_server_fails_the_online_check() {
    let directory = directory(&format!("server = \"127.0.0.1:{}\"", support::free_port()));
    assert_eq!(fingerpost(directory.path(), &["migrate"]).code, 0);
    let output = fingerpost(directory.path(), &["check", "--online"]);
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.stderr.starts_with("error: "), "{output:?}");
}

#[test]
fn completions_and_manual_pages_are_made() {
    let directory = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let output = fingerpost(directory.path(), &["completions", shell]);
        assert_eq!(output.code, 0, "{shell}: {output:?}");
        assert!(output.stdout.contains("migrate"), "{shell}");
    }
    assert_eq!(fingerpost(directory.path(), &["man", "pages"]).code, 0);
    assert!(directory.path().join("pages/fingerpost-serve.1").exists());
}

#[test]
fn an_empty_registry_is_listed_as_json() {
    let directory = directory("");
    let output = fingerpost(directory.path(), &["keys", "list", "--json"]);
    assert_eq!(output.code, 0, "{output:?}");
    for line in output.stdout.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
}

/// The secret is created once, readable by its owner only, and found again without a setting.
#[test]
fn attach_prints_the_lines_for_the_server_and_makes_the_secret() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let config = "[component]\njid = \"xtls.example.org\"\n";
    std::fs::write(directory.path().join("fingerpost.toml"), config).unwrap();
    let prosody = fingerpost(directory.path(), &["attach", "prosody"]);
    assert_eq!(prosody.code, 0, "{prosody:?}");
    let secret = directory.path().join("secret");
    let mode = std::fs::metadata(&secret).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let secret = std::fs::read_to_string(secret).unwrap().trim().to_owned();
    assert_eq!(secret.len(), 64, "{secret}");
    let lines = format!(
        "-- Fingerpost\nComponent \"xtls.example.org\"\n\tcomponent_secret = \"{secret}\"\n"
    );
    assert!(prosody.stdout.starts_with(&lines), "{prosody:?}");
    let rest = &prosody.stdout[lines.len()..];
    assert!(rest.contains("component_conflict_resolve = \"kick_old\""), "{rest}");
    assert!(rest.lines().all(|line| line.starts_with("\t-- ")), "only by choice: {rest}");
    assert!(prosody.stderr.contains("/etc/prosody/prosody.cfg.lua"), "{prosody:?}");
    let ejabberd = fingerpost(directory.path(), &["attach", "ejabberd"]);
    assert!(ejabberd.stdout.contains(&format!("password: \"{secret}\"")), "{ejabberd:?}");
    assert!(ejabberd.stdout.contains("A listener of its own"), "{ejabberd:?}");
    assert!(!ejabberd.stderr.contains("new secret"), "{ejabberd:?}");
    // A named file that does not exist is created.
    let named = format!("{config}secret_file = \"other\"\n");
    std::fs::write(directory.path().join("fingerpost.toml"), named).unwrap();
    assert_eq!(fingerpost(directory.path(), &["attach", "prosody"]).code, 0);
    assert!(directory.path().join("other").exists());
}
