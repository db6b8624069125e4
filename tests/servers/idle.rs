//! Five minutes without a stanza, on both servers at the same time; and silent streams.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use support::process::{Process, read};
use support::programs::{Component, Options, Xtls};
use support::scenarios::assert_answers;
use support::servers::{Kind, Server};
use support::wait_for;

const IDLE: Duration = Duration::from_secs(305);
const LONG: Duration = Duration::from_secs(60);

#[test]
fn five_idle_minutes_do_not_end_the_link() {
    let mut running: Vec<_> = [Kind::Prosody, Kind::Ejabberd]
        .map(|kind| {
            let server = Server::start(kind);
            let component = Component::start(&server, &Options::default());
            (server, component)
        })
        .into();
    thread::sleep(IDLE);
    for (server, component) in &mut running {
        assert_answers(server);
        assert!(component.runs());
        let log = component.log();
        assert_eq!(log.matches("link up").count(), 1, "{:?}: {log}", server.kind());
    }
}

/// Starts `xtls`, waits until it says `ready`; returns it, its later messages, and the place of its output.
fn quiet(user: &Xtls, args: &[&str], ready: &str) -> (Process, File, PathBuf) {
    let file = |kind: &str| user.home().join(format!("{}{}.{kind}", args[0], args.len()));
    let (input, output) = (file("in"), file("out"));
    assert!(Command::new("mkfifo").arg(&input).status().unwrap().success());
    // Both ends are ours until the program has its own.
    let keyboard = OpenOptions::new().read(true).write(true).open(&input).unwrap();
    let program = Process::start_between(user.command(args), &input, &output, &file("log"));
    let told = || format!("{}{}", program.log(), read(&output));
    wait_for(ready, LONG, told, || told().contains(ready));
    let writer = OpenOptions::new().write(true).open(&input).unwrap();
    drop(keyboard);
    (program, writer, output)
}

/// A stream with silent users is not one whose users have vanished.
#[test]
fn quiet_streams_outlive_the_idle_timeout() {
    let server = Server::start(Kind::Prosody);
    // Three times the pause between two signs of life.
    let more = "[limits]\nidle_timeout = \"90s\"\n".to_owned();
    let component = Component::start(&server, &Options { more, ..Options::default() });
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(|user| Xtls::with_key(&server, user));
    let listening = [
        quiet(&bob, &["pipe", "--listen"], "listening as"),
        quiet(&alice, &["chat", "--listen"], "listening as"),
    ];
    let calling = [
        quiet(&carol, &["pipe", bob.jid()], "secured with"),
        quiet(&bob, &["chat", alice.jid()], "secured with"),
    ];
    thread::sleep(Duration::from_secs(200));
    for ((mut caller, mut says, _), (mut listener, silent, hears)) in
        calling.into_iter().zip(listening)
    {
        let logs = format!("{}\n{}\n{}", caller.log(), listener.log(), component.log());
        says.write_all(b"still here\n").unwrap();
        drop((says, silent));
        assert_eq!(caller.wait(LONG).code(), Some(0), "{}\n{logs}", caller.log());
        assert_eq!(listener.wait(LONG).code(), Some(0), "{}\n{logs}", listener.log());
        assert!(read(&hears).contains("still here"), "{}\n{logs}", read(&hears));
    }
}
