//! Sessions with other TLS libraries: OpenSSL at one end of `xtls`, by certificates and by a key of GnuPG; and GnuTLS
//! at both ends, with a kind of TLS that `xtls` does not support.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use data_encoding::HEXLOWER;
use fingerpost_secure::{
    identity::{Algorithm, Identity},
    stream::{Secured, TlsError, accept, connect},
};
use fingerpost_wire::print::Print;
use jid::BareJid;
use serde_json::{Value, json};
use support::process::{Process, read};
use support::programs::{Component, Options, Script, Xtls, event, python, report, script};
use support::servers::{Kind, Server};
use support::{MARKER, free_port, random_file, sha256, tap, wait_for};
use tokio::net::TcpStream;

const OURS: usize = 150_000;
const THEIRS: usize = 90_000;

fn openssl_initiates_and_responds_over_each_transport(kind: Kind) {
    let server = Server::start(kind);
    let component = Component::start(&server, &Options::default());
    let bob = Xtls::with_key(&server, "bob");
    for keys in [&["keygen", "--openpgp"][..], &["register", "--method", "openpgp"]] {
        assert_eq!(bob.run(keys).code, 0);
    }
    random_file(&bob.home().join("in"), OURS);
    for method in ["x509", "openpgp"] {
        for role in ["initiator", "responder"] {
            for transport in ["s5b", "ibb"] {
                let case = format!("{method}, OpenSSL is the {role}, {transport}");
                // It has another key each time.
                bob.run(["trust", "forget", "alice@example.test"]);
                let log = bob.home().join("pipe.log");
                let _old = std::fs::remove_file(&log);
                let settings = json!({
                    "role": role, "method": method, "transport": transport, "send": THEIRS, "expect": OURS,
                    "marker": MARKER,
                });
                let options = ["--json", "--method", method, "--transport", transport];
                let (openssl, mut pipe) = if role == "initiator" {
                    let args = [&["pipe", "--listen"][..], &options].concat();
                    let pipe = bob.start_between(args, "in", "out");
                    wait_for(
                        "listening",
                        Duration::from_secs(30),
                        || read(&log),
                        || read(&log).contains("listening"),
                    );
                    (Script::start("openssl_xtls.py", &server, settings), pipe)
                } else {
                    let mut openssl = Script::start("openssl_xtls.py", &server, settings);
                    openssl.wait_for("listening");
                    let args = [&["pipe", "alice@example.test"][..], &options].concat();
                    (openssl, bob.start_between(args, "in", "out"))
                };
                let status = pipe.wait(Duration::from_secs(90));
                assert_eq!(status.code(), Some(0), "{case}: {}\n{}", pipe.log(), component.log());
                let report = openssl.report();
                assert_eq!(report["version"], "TLSv1.3", "{case}: {report}");
                assert_eq!(report["received"], sha256(&bob.home().join("in")), "{case}");
                assert_eq!(report["sent"], sha256(&bob.home().join("out")), "{case}");
                assert_eq!(report["methods"], json!([method]), "{case}");
                if (method, role) == ("x509", "initiator") {
                    assert_eq!(report["shown is offered"], true, "{case}: {report}");
                }
                assert_eq!(report["hints"][0]["verdict"], "match", "{case}: {report}");
                let secured = event(&pipe.log(), "secured").unwrap();
                assert_eq!(secured["transport"], transport, "{case}");
                assert_eq!(secured["method"], method, "{case}");
            }
        }
    }
}

/// A FIFO with the content of a file, whose end comes when this is dropped.
struct Feed(#[expect(dead_code, reason = "it is held open")] File);

impl Feed {
    fn start(content: &Path, fifo: &Path) -> Self {
        assert!(Command::new("mkfifo").arg(fifo).status().unwrap().success());
        // Opened for both, it waits for nobody.
        let held = File::options().read(true).write(true).open(fifo).unwrap();
        let (mut writer, content) = (held.try_clone().unwrap(), std::fs::read(content).unwrap());
        thread::spawn(move || writer.write_all(&content));
        Self(held)
    }
}

/// The password check of another program, which was written from the protocol's page.
fn the_password_check_of_another_program_passes(kind: Kind) {
    let server = Server::start(kind);
    let component = Component::start(&server, &Options::default());
    let bob = Xtls::login(&server, "bob");
    random_file(&bob.home().join("in"), OURS);
    let password = bob.home().join("password");
    std::fs::write(&password, "a-password-of-both").unwrap();
    for (theirs, right) in [("another-password", false), ("a-password-of-both", true)] {
        let log = bob.home().join("pipe.log");
        let _old = std::fs::remove_file(&log);
        let args = ["pipe", "--listen", "--json", "--method", "srp", "--srp-password-file"];
        let args = args.into_iter().chain([password.to_str().unwrap()]);
        // s_client leaves at the peer's end of stream, also with input that it has not read: that end comes last.
        let open = right.then(|| Feed::start(&bob.home().join("in"), &bob.home().join("fed")));
        let mut pipe = bob.start_between(args, if right { "fed" } else { "in" }, "out");
        wait_for(
            "listening",
            Duration::from_secs(30),
            || read(&log),
            || read(&log).contains("listening"),
        );
        let settings = json!({"password": theirs, "send": THEIRS, "expect": OURS});
        let other = Script::start("openssl_srp.py", &server, settings);
        if !right {
            let status = pipe.wait(Duration::from_secs(60));
            assert_eq!(status.code(), Some(4), "{}\n{}", pipe.log(), component.log());
            assert!(pipe.log().contains("has not shown to know the password"), "{}", pipe.log());
            continue;
        }
        let out = bob.home().join("out");
        wait_for(
            "the content",
            Duration::from_secs(60),
            || format!("{}\n{}", pipe.log(), component.log()),
            || std::fs::metadata(&out).is_ok_and(|file| file.len() == THEIRS as u64),
        );
        drop(open);
        std::fs::write(other.directory().join("go"), "").unwrap();
        let report = other.report();
        assert_eq!(report["proved"], true, "{report}");
        assert_eq!(report["TLSv1.3"], true, "{report}");
        assert_eq!(report["methods"], json!(["srp"]), "{report}");
        assert_eq!(report["received"], sha256(&bob.home().join("in")), "{report}");
        assert_eq!(report["sent"], sha256(&out), "{report}");
        assert_eq!(event(&pipe.log(), "secured").unwrap()["method"], "srp");
    }
}

fn gnutls_speaks_tls_srp_through_a_brokered_session(kind: Kind) {
    let server = Server::start(kind);
    let options = Options { tap: true, ..Options::default() };
    let component = Component::start(&server, &options);
    let password = "a-password-of-gnutls";
    let report: Value = script(
        "gnutls_srp.py",
        &server,
        json!({"password": password, "wrong": "another-password", "bytes": 20_000, "port": free_port()}),
    );
    let right = &report["right"];
    assert_eq!(right["status"], 0, "{report}\n{}", component.log());
    assert_eq!(right["echoed"], right["sent"], "{report}");
    for side in ["offered", "answered"] {
        assert_eq!(right[side], json!(["srp"]), "{report}");
    }
    let said = right["log"].as_str().unwrap();
    assert!(said.contains("(TLS1.2") && said.contains("-(SRP)-"), "{report}");
    assert_ne!(report["wrong"]["status"], 0, "{report}");
    assert_ne!(report["wrong"]["echoed"], report["wrong"]["sent"], "{report}");
    assert_eq!(report["password passed"], false, "{report}");
    let captured = component.tap.as_ref().unwrap().captured();
    for connection in &captured {
        for (bytes, from_client) in [(&connection.up, true), (&connection.down, false)] {
            tap::tls_records(tap::after_socks5(bytes, from_client).unwrap_or_default()).unwrap();
            assert!(!bytes.windows(password.len()).any(|part| part == password.as_bytes()));
        }
    }
    assert!(captured.len() >= 4, "{} connections", captured.len());
}

/// Runs one end of TLS over a TCP connection; sends a text and reads one of the same length.
async fn ours(
    stream: TcpStream,
    calls: bool,
    own: &Identity,
    peer: Vec<Print>,
) -> Result<(Secured, String), TlsError> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (mut tls, secured) = match calls {
        true => connect(stream, own, peer).await?,
        false => accept(stream, own, peer).await?,
    };
    tls.write_all(b"from rustls ").await.unwrap();
    tls.flush().await.unwrap();
    let mut read = [0; 12];
    tls.read_exact(&mut read).await.unwrap();
    Ok((secured, String::from_utf8_lossy(&read).into_owned()))
}

/// A post-quantum key at one end or both, in both roles, with a post-quantum key exchange: with OpenSSL 3.5, which also
/// reads our key files.
#[tokio::test]
async fn openssl_3_5_speaks_ml_dsa_in_both_roles() {
    let jid = BareJid::new("alice@example.test").unwrap();
    let identity = |algorithm| Identity::generate_by(&jid, algorithm).unwrap();
    for (mine, theirs) in [
        (Algorithm::MlDsa65, Algorithm::MlDsa65),
        (Algorithm::MlDsa65, Algorithm::P256),
        (Algorithm::Ed25519, Algorithm::MlDsa65),
    ] {
        let (own, other) = (identity(mine), identity(theirs));
        for role in ["client", "server"] {
            let case = format!("{mine}, OpenSSL with {theirs} as the {role}");
            let directory = tempfile::tempdir().unwrap();
            other.store(directory.path()).unwrap();
            let listener =
                (role == "client").then(|| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
            let port = match &listener {
                Some(listener) => listener.local_addr().unwrap().port(),
                None => free_port(),
            };
            let settings = json!({
                "role": role, "port": port, "directory": directory.path(), "send": "from openssl", "expect": 12,
            });
            let mut command = std::process::Command::new(python("tls_peer.py"));
            command.arg(support::root().join("tests/peers/tls_peer.py")).arg(settings.to_string());
            let mut peer = Process::start(command, &directory.path().join("peer.log"));
            let stream = match listener {
                Some(listener) => {
                    listener.set_nonblocking(true).unwrap();
                    tokio::net::TcpListener::from_std(listener).unwrap().accept().await.unwrap().0
                }
                None => {
                    wait_for(
                        "listening",
                        support::PATIENCE,
                        || peer.log(),
                        || peer.log().contains("listening"),
                    );
                    TcpStream::connect(("127.0.0.1", port)).await.unwrap()
                }
            };
            let done = ours(stream, role == "server", &own, vec![other.print()]).await;
            let (secured, read) = done.unwrap_or_else(|e| panic!("{case}: {e}\n{}", peer.log()));
            let report = report(&mut peer, "tls_peer.py");
            assert_eq!(secured.peer, other.print(), "{case}");
            assert_eq!(secured.key_exchange, "X25519MLKEM768", "{case}");
            assert_eq!(read, "from openssl", "{case}");
            assert_eq!(report["received"], "from rustls ", "{case}");
            assert_eq!(report["version"], "TLSv1.3", "{case}");
            assert!(report["openssl"].as_str().unwrap().starts_with("OpenSSL 3.5."), "{report}");
            assert_eq!(report["shown"], HEXLOWER.encode(&own.certificate), "{case}");
        }
    }
}

/// OpenSSL before 3.5 does not support ML-DSA: both ends are told so, and nobody is accused of a wrong key.
#[tokio::test]
async fn a_library_without_ml_dsa_is_told_that_the_key_does_not_suit_it() {
    let jid = BareJid::new("alice@example.test").unwrap();
    let own = Identity::generate_by(&jid, Algorithm::MlDsa65).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let other = Identity::generate(&jid).unwrap();
    other.store(directory.path()).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut command = std::process::Command::new("openssl");
    let address = listener.local_addr().unwrap().to_string();
    command.current_dir(directory.path()).args(["s_client", "-connect", &address, "-tls1_3"]);
    // The text of a library without it, whichever version is installed here.
    command.args(["-sigalgs", "ECDSA+SHA256:ed25519", "-cert", "cert.pem", "-key", "key.pem"]);
    let _peer = Process::start(command, &directory.path().join("peer.log"));
    let (stream, _) = listener.accept().await.unwrap();
    let refused = ours(stream, false, &own, vec![other.print()]).await.unwrap_err();
    let text = fingerpost_endpoint::Error::from(refused).to_string();
    assert!(text.contains("accepts no signature algorithm of our key"), "{text}");
}

#[test]
fn prosody_the_password_check_of_another_program_passes() {
    the_password_check_of_another_program_passes(Kind::Prosody);
}

support::on_both!(
    openssl_initiates_and_responds_over_each_transport,
    gnutls_speaks_tls_srp_through_a_brokered_session,
);
