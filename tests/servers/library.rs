//! The library in other programs: the examples, between a real Prosody and `xtls`.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use fingerpost_endpoint::{Application, DirectPath, Endpoint, Error, FirstUse, Login, Reason};
use fingerpost_secure::identity::Identity;
use support::process::{Output, Process, read, run};
use support::programs::{Component, Options, Xtls, clean};
use support::servers::{Kind, Server};
use support::{COMPONENT, DOMAIN, USERS, root, wait_for};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

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

/// A peer that goes away when its whole stream has come does not keep the program from ending well.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_has_the_whole_stream_ends_well_though_its_peer_goes_away() {
    const SIZE: usize = 1 << 20;
    let server = Server::start(Kind::Prosody);
    let component = Component::start(&server, &Options::default());
    let login = async |user: &str| {
        let (_, password) = USERS.iter().find(|(name, _)| *name == user).unwrap();
        let jid = format!("{user}@{DOMAIN}").parse().unwrap();
        let mut login = Login::new(jid, (*password).to_owned());
        login.server = Some(server.client_address());
        login.trust.ca_file = Some(server.ca());
        let identity = Identity::generate(&login.jid).unwrap();
        Endpoint::builder(identity)
            .via(COMPONENT.parse().unwrap())
            .policy(FirstUse::default())
            .direct_path(DirectPath::Always)
            .login(&login)
            .await
            .unwrap()
    };
    let (bob, mut incoming) = login("bob").await;
    bob.appear(0).await;
    let (alice, _none) = login("alice").await;
    let (secured, at_bob) = tokio::join!(
        async {
            alice.initiate(&format!("bob@{DOMAIN}").parse().unwrap(), &Application::tls()).await
        },
        async { incoming.next().await.unwrap().accept().await }
    );
    let (mut session, mut stream) = secured.unwrap();
    let (mut session_of_bob, mut stream_of_bob) = at_bob.unwrap();
    stream.write_all(&vec![7; SIZE]).await.unwrap();
    stream.shutdown().await.unwrap();

    let (read, has_read) = tokio::sync::oneshot::channel();
    let (release, released) = tokio::sync::oneshot::channel();
    let reading = session_of_bob.during(async {
        let mut got = Vec::new();
        stream_of_bob.read_to_end(&mut got).await.unwrap();
        read.send(()).unwrap();
        released.await.unwrap();
        Ok::<_, Error>(got.len())
    });
    let ending = async {
        has_read.await.unwrap();
        session.terminate(Reason::Gone, "").await;
        let ended = || component.log().contains("session terminated");
        wait_for("the end", Duration::from_secs(20), || component.log(), ended);
        // What the component answers now comes after the news of the end.
        bob.check_component().await.unwrap();
        tokio::task::yield_now().await;
        let _given_up = release.send(());
    };
    let (worked, ()) = tokio::join!(reading, ending);
    assert_eq!(worked, Ok(SIZE));
}
