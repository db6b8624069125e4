//! From nothing to a sent file: `xtls setup`, `xtls doctor`, and `xtls send --wait`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::Value;
use support::process::{Output, run};
use support::programs::{Component, Options, Xtls, event};
use support::servers::{Kind, Server};
use support::{COMPONENT, random_file, sha256, wait_for};

const LIMIT: Duration = Duration::from_secs(60);

/// Returns the events of a name, or the checks of `doctor`, by their names.
fn by_name(output: &Output, key: &str) -> Vec<(String, Value)> {
    let lines = output.stdout.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter_map(|line| Some((line[key].as_str()?.to_owned(), line.clone()))).collect()
}

fn set_up(user: &Xtls, server: &Server, password_file: Option<&str>) -> Output {
    let mut command =
        user.command(["setup", user.jid(), "--server", &server.client_address(), "--json"]);
    if let Some(file) = password_file {
        command.args(["--password-file", file]);
    }
    run(command, LIMIT)
}

fn one_command_does_everything_that_is_missing(kind: Kind) {
    let server = Server::start(kind);
    let mut component = Component::start(&server, &Options::default());
    let alice = Xtls::new(&server, "alice@example.test");
    let diagnosed = || alice.run(["doctor", "--json"]);

    let nothing = diagnosed();
    assert_eq!(nothing.code, 1, "{nothing:?}");
    let [(check, fault)] = &by_name(&nothing, "check")[..] else { panic!("{nothing:?}") };
    assert_eq!((check.as_str(), &fault["state"]), ("account", &Value::from("failed")));
    assert_eq!(fault["cure"], "run `xtls setup JID`");

    let file = alice.home().join("password");
    fs::write(&file, "alices-password\n").unwrap();
    fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    let file = file.to_str().unwrap();
    // The second run keeps everything, and the third does so without the password.
    for (password, made) in [(Some(file), true), (Some(file), false), (None, false)] {
        let done = set_up(&alice, &server, password);
        assert_eq!(done.code, 0, "{done:?}\n{}", component.log());
        let steps = by_name(&done, "step");
        let names: Vec<_> = steps.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["account", "key", "component", "register", "prove"], "{done:?}");
        for (name, step) in &steps {
            assert_eq!(step["made"], made, "{name}: {done:?}");
        }
        assert_eq!(event(&done.stdout, "setup").unwrap()["via"], COMPONENT);
    }
    let keys = alice.run(["keys", "--json"]);
    assert_eq!(keys.stdout.lines().count(), 1, "{keys:?}");
    assert!(keys.stdout.contains("\"assurance\":\"proven\""), "{keys:?}");

    let healthy = diagnosed();
    assert_eq!(healthy.code, 0, "{healthy:?}");
    let checks = by_name(&healthy, "check");
    let names: Vec<_> = checks.iter().map(|(name, _)| name.as_str()).collect();
    let all =
        ["account", "key", "server", "certificate", "component", "registration", "proxy", "speed"];
    assert_eq!(names, all, "{healthy:?}");
    for (name, check) in &checks {
        assert_eq!(check["state"], "ok", "{name}: {healthy:?}");
    }

    let fault = |name: &str| {
        let ill = diagnosed();
        assert_eq!(ill.code, 1, "{ill:?}");
        let found = by_name(&ill, "check").into_iter().find(|(check, _)| check == name).unwrap();
        assert_eq!(found.1["state"], "failed", "{ill:?}");
        assert!(found.1["cure"].is_string(), "{ill:?}");
        found.1["text"].as_str().unwrap().to_owned()
    };
    let id = serde_json::from_str::<Value>(&keys.stdout).unwrap()["id"].clone();
    assert_eq!(alice.run(["revoke", id.as_str().unwrap()]).code, 0);
    assert_eq!(fault("registration"), "the key is revoked");
    let again = set_up(&alice, &server, None);
    assert_eq!(again.code, 1, "{again:?}");
    assert!(again.stderr.contains("revoked"), "{again:?}");
    component.signal("TERM");
    component.wait(LIMIT);
    assert!(fault("component").contains(COMPONENT));
}

#[test]
fn prosody_one_command_does_everything_that_is_missing() {
    one_command_does_everything_that_is_missing(Kind::Prosody);
}

#[test]
fn ejabberd_one_command_does_everything_that_is_missing() {
    one_command_does_everything_that_is_missing(Kind::Ejabberd);
}

/// The sender may be first: its file goes when the receiver appears.
#[test]
fn a_sender_waits_for_its_receiver() {
    let server = Server::start(Kind::Prosody);
    let _component = Component::start(&server, &Options::default());
    let (alice, bob) = (Xtls::with_key(&server, "alice"), Xtls::with_key(&server, "bob"));
    let letter = alice.home().join("letter.bin");
    random_file(&letter, 100_000);
    let letter = letter.to_str().unwrap();

    for wait in [&[][..], &["--wait", "1s"]] {
        let absent = alice.run([&["send", bob.jid(), letter], wait].concat());
        assert_eq!(absent.code, 3, "{absent:?}");
        assert!(absent.stderr.contains("the other side must run `xtls listen`"), "{absent:?}");
        assert_eq!(absent.stderr.contains("--wait 10m"), wait.is_empty(), "{absent:?}");
    }
    let mut sending = alice.start(["send", "--json", "--wait", "1h", bob.jid(), letter]);
    wait_for("the wait", LIMIT, || sending.log(), || event(&sending.log(), "waiting").is_some());
    let mut listener = bob.listen(&[]);
    assert_eq!(listener.wait(LIMIT), 0, "{}", listener.log());
    let [arrived] = &listener.files()[..] else { panic!("{:?}", listener.files()) };
    assert_eq!(sha256(arrived), sha256(letter.as_ref()));
    assert_eq!(sending.wait(LIMIT).code(), Some(0), "{}", sending.log());
}
