//! The library in other programs: the examples, between a real Prosody and `xtls`.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use support::process::{Output, Process, read, run};
use support::programs::{Component, Options, Xtls, clean};
use support::servers::{Kind, Server};
use support::{COMPONENT, DOMAIN, USERS, root, wait_for};

/// Builds the examples, which are not built with any test, and returns the path of one.
fn example(name: &str) -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let release = here.components().any(|part| part.as_os_str() == "release");
    let mut build = Command::new(env!("CARGO"));
    build
        .args(["build", "--quiet", "--locked", "--workspace", "--example", name])
        .current_dir(root());
    if release {
        build.arg("--release");
    }
    assert!(build.status().unwrap().success(), "example {name} does not build");
    let directory = here.parent().and_then(|deps| deps.parent()).unwrap();
    directory.join("examples").join(name)
}

fn command(name: &str, user: &str, server: &Server, args: &[&str]) -> Command {
    let (_, password) = USERS.iter().find(|(name, _)| *name == user).unwrap();
    let mut command = clean(&example(name));
    command
        .args([&format!("{user}@{DOMAIN}"), COMPONENT])
        .args(args)
        .arg(server.client_address())
        .arg(server.ca())
        .env("XMPP_PASSWORD", password);
    command
}

#[test]
fn the_examples_talk_to_each_other_and_to_xtls() {
    let server = Server::start(Kind::Prosody);
    let _component = Component::start(&server, &Options::default());
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("echo.log");
    let echo = format!("bob@{DOMAIN}");
    let send_line = || -> Output {
        run(command("send_line", "alice", &server, &[&echo, "Hello"]), Duration::from_secs(60))
    };

    // No listener is present yet.
    let sent = send_line();
    assert_eq!((sent.code, sent.stdout.as_str()), (3, ""), "{sent:?}");

    let mut service = Process::start(command("echo", "bob", &server, &[]), &log);
    wait_for(
        "ready",
        Duration::from_secs(60),
        || read(&log),
        || {
            assert!(service.ended().is_none(), "{}", read(&log));
            read(&log).contains("ready as")
        },
    );
    let sent = send_line();
    assert_eq!((sent.code, sent.stdout.as_str()), (0, "Hello\n"), "{sent:?}\n{}", read(&log));
    assert!(sent.stderr.contains(&format!("{echo} holds the key ")), "{sent:?}");
    assert!(sent.stderr.contains("TLSv1.3 over s5b"), "{sent:?}");
    wait_for(
        "the echo",
        Duration::from_secs(20),
        || read(&log),
        || read(&log).contains(&format!("alice@{DOMAIN}: 6 bytes")),
    );

    // Each run of send_line has a new key: the service knows alice by another one now.
    let sent = send_line();
    assert_ne!(sent.code, 0, "{sent:?}");
    assert_eq!(sent.stdout, "", "{sent:?}");
    wait_for(
        "the service's message about the changed key",
        Duration::from_secs(20),
        || read(&log),
        || read(&log).contains("has changed"),
    );

    let carol = Xtls::with_key(&server, "carol");
    std::fs::write(carol.home().join("in"), "from xtls").unwrap();
    let mut pipe = carol.start_between(["pipe", &echo], "in", "out");
    assert_eq!(pipe.wait(Duration::from_secs(60)).code(), Some(0), "{}", pipe.log());
    assert_eq!(read(&carol.home().join("out")), "from xtls");

    // A session that it does not support is declined, with the reason.
    let sent = carol.run(["send".as_ref(), echo.as_ref(), carol.home().join("in").as_os_str()]);
    assert_eq!(sent.code, 5, "{sent:?}");
    assert!(sent.stderr.contains("only raw TLS streams are echoed"), "{sent:?}");
}
