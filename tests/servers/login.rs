//! Logging in at real servers and staying connected: accounts, mechanisms, DNS, and lost connections.

use std::cell::RefCell;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use support::process::{Output, Process, run};
use support::programs::{Component, Listener, Options, Xtls, clean, event};
use support::servers::{Kind, Server};
use support::tap::Tap;
use support::{
    COMPONENT, DOMAIN, free_port, make_certificate, own_program, random_file, sha256, wait_for,
};

const LIMIT: Duration = Duration::from_secs(60);
/// The bytes of a file that pass before something happens.
const PART: usize = 300_000;
/// The bytes of answers to its blocks that pass before something happens.
const ANSWERS: usize = 10_000;
const LARGE: usize = 3_000_000;

/// Logs in with the most verbose log; `server` overrides the records of the domain.
fn login(user: &Xtls, password: &str, server: Option<&str>, resolver: Option<u16>) -> Output {
    let mut command = user.command(["-v", "-v", "login", user.jid(), "--via", COMPONENT]);
    command.env("XTLS_PASSWORD", password);
    if let Some(server) = server {
        command.args(["--server", server]);
    }
    if let Some(port) = resolver {
        command.env("XTLS_RESOLVER", format!("127.0.0.1:{port}"));
    }
    run(command, LIMIT)
}

/// Hosts of one server with different login methods.
fn hosts(kind: Kind, directory: &str, old_tls: u16, text: &str) -> String {
    match kind {
        Kind::Prosody => format!(
            r#"{text}
VirtualHost "bücher.test"

VirtualHost "plain.{DOMAIN}"
	disable_sasl_mechanisms = {{ "SCRAM-SHA-1", "SCRAM-SHA-256", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256-PLUS", "OAUTHBEARER" }}

VirtualHost "sha1.{DOMAIN}"
	disable_sasl_mechanisms = {{ "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256-PLUS", "OAUTHBEARER" }}

VirtualHost "tls12.{DOMAIN}"
	ssl = {{ key = "{directory}/server.key", certificate = "{directory}/server.pem", protocol = "tlsv1_2" }}
"#
        ),
        Kind::Ejabberd => {
            let hosts = format!(
                "hosts: [\"{DOMAIN}\", \"bücher.test\", \"plain.{DOMAIN}\", \"sha1.{DOMAIN}\", \"tls12.{DOMAIN}\"]"
            );
            let more = format!(
                r#"host_config:
  plain.{DOMAIN}:
    disable_sasl_mechanisms: ["SCRAM-SHA-1", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS", "SCRAM-SHA-512", "SCRAM-SHA-512-PLUS", "DIGEST-MD5", "X-OAUTH2"]
  sha1.{DOMAIN}:
    disable_sasl_mechanisms: ["PLAIN", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS", "SCRAM-SHA-512", "SCRAM-SHA-512-PLUS", "DIGEST-MD5", "X-OAUTH2"]
listen:
  - port: {old_tls}
    ip: "127.0.0.1"
    module: ejabberd_c2s
    starttls_required: true
    protocol_options: ["no_sslv3", "no_tlsv1", "no_tlsv1_1", "no_tlsv1_3"]
"#
            );
            text.replace(&format!("hosts: [\"{DOMAIN}\"]"), &hosts).replacen("listen:\n", &more, 1)
        }
    }
}

/// One server, and all unusual accounts and login methods.
fn unusual_accounts_log_in(kind: Kind) {
    let mut server = Server::start(kind);
    let old_tls = if kind == Kind::Ejabberd { free_port() } else { server.client_port() };
    // As typed, and as prepared.
    let accounts = [
        ("a=b,c", DOMAIN, "pass,word=1", "pass,word=1"),
        ("alice", "bücher.test", "büchers", "büchers"),
        ("square", DOMAIN, "m²", "m2"),
        ("micro", DOMAIN, "5µ", "5μ"),
        ("space", DOMAIN, "a\u{a0}b", "a b"),
        ("accent", DOMAIN, "cafe\u{301}", "café"),
        ("alice", "plain.example.test", "plain", "plain"),
        ("alice", "sha1.example.test", "sha1", "sha1"),
        ("alice", "tls12.example.test", "tls12", "tls12"),
    ];
    for (user, host, _, prepared) in accounts {
        server.set_password(user, host, prepared);
    }
    let directory = server.directory().to_str().unwrap().to_owned();
    server.reconfigure(true, |text| hosts(kind, &directory, old_tls, &text));

    for (user, host, typed, prepared) in accounts {
        let port = if host.starts_with("tls12") { old_tls } else { server.client_port() };
        for password in [typed, prepared] {
            let xtls = Xtls::new(&server, &format!("{user}@{host}"));
            let done = login(&xtls, password, Some(&format!("127.0.0.1:{port}")), None);
            assert_eq!(done.code, 0, "{user}@{host}: {done:?}\n{}", server.log());
            let log = done.stderr;
            let line = log.lines().find(|line| line.contains("logging in"));
            let line = line.unwrap_or_else(|| panic!("{log}"));
            let mechanism = line.split('"').nth(1).unwrap_or_else(|| panic!("{line}"));
            match host.split('.').next().unwrap() {
                "plain" => assert_eq!(mechanism, "PLAIN", "{log}"),
                "sha1" => assert_eq!(mechanism, "SCRAM-SHA-1", "{log}"),
                _ => assert!(mechanism.starts_with("SCRAM-"), "{log}"),
            }
            if host.starts_with("tls12") {
                assert!(log.contains("TLSv1_2"), "{log}");
            }
            if typed == prepared {
                break;
            }
        }
        let xtls = Xtls::new(&server, &format!("{user}@{host}"));
        let refused = login(&xtls, "wrong", Some(&format!("127.0.0.1:{port}")), None);
        assert_eq!(refused.code, 1, "{user}@{host}: {refused:?}");
        assert!(refused.stderr.contains("not-authorized"), "{refused:?}");
    }

    // The operator may write the domain either way.
    let more = "[access]\nusers = [\"xn--bcher-kva.test\"]\n".to_owned();
    let component = Component::start(&server, &Options { more, ..Options::default() });
    let alice = Xtls::new(&server, "alice@bücher.test");
    let done = login(&alice, "büchers", Some(&server.client_address()), None);
    assert_eq!(done.code, 0, "{done:?}");
    let alice = alice.and_key();
    let listed = alice.run(["keys"]);
    assert_eq!(listed.code, 0, "{listed:?}\n{}", component.log());
}

#[test]
fn prosody_unusual_accounts_log_in() {
    unusual_accounts_log_in(Kind::Prosody);
}

#[test]
fn ejabberd_unusual_accounts_log_in() {
    unusual_accounts_log_in(Kind::Ejabberd);
}

/// Returns a DNS server on loopback with these lines of configuration.
fn dns(port: u16, lines: &[String]) -> (Process, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new("/usr/sbin/dnsmasq");
    command
        .args(["--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null"])
        .args(["--listen-address=127.0.0.1", "--bind-interfaces", "--pid-file=", "--user="])
        .args(["--log-facility=-", "--log-queries", "--local=/test/"])
        .arg(format!("--port={port}"))
        .args(lines);
    let mut process = Process::start(command, &directory.path().join("dns.log"));
    wait_for("the DNS server", LIMIT, String::new, || {
        assert!(process.ended().is_none(), "{}", process.log());
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    (process, directory)
}

#[test]
fn the_server_is_found_by_its_records_in_dns() {
    let mut server = Server::start(Kind::Prosody);
    let direct = free_port();
    server.reconfigure(true, |text| {
        text.replace(
            "c2s_direct_tls_ports = { }",
            &format!("c2s_direct_tls_ports = {{ {direct} }}"),
        )
    });
    let (closed, resolver, c2s) = (free_port(), free_port(), server.client_port());
    let host = |name: &str, address: &str| format!("--address=/{name}.test/{address}");
    let srv = |service: &str, target: &str, port: u16, priority: u16| {
        format!("--srv-host=_{service}._tcp.{DOMAIN},{target}.test,{port},{priority},10")
    };
    let alice = Xtls::new(&server, "alice@example.test");
    let attempt = |lines: &[String]| {
        let (dns, _directory) = dns(resolver, lines);
        let done = login(&alice, "alices-password", None, Some(resolver));
        (done, dns.log())
    };

    // A host that does not exist, then one that does not listen, then one of which only the IPv4 address answers.
    let (done, log) = attempt(&[
        srv("xmpp-client", "gone", c2s, 1),
        srv("xmpp-client", "closed", closed, 5),
        srv("xmpp-client", "xmpp", c2s, 10),
        srv("xmpp-client", "closed", c2s, 20),
        host("closed", "127.0.0.9"),
        host("xmpp", "127.0.0.1"),
        host("xmpp", "fd00:6669:6e67:6572::1"),
    ]);
    assert_eq!(done.code, 0, "{done:?}\n{log}");
    for asked in ["_xmpp-client._tcp.example.test", "_xmpps-client._tcp.example.test", "xmpp.test"]
    {
        assert!(log.contains(asked), "{asked}: {log}");
    }
    assert!(log.contains("query[AAAA] xmpp.test"), "{log}");

    // TLS from the first byte counts the same.
    let lines = [srv("xmpps-client", "xmpp", direct, 5), host("xmpp", "127.0.0.1")];
    let (done, log) = attempt(&lines);
    assert_eq!(done.code, 0, "{done:?}\n{log}");

    // Nothing listens anywhere: each address is named. The domain itself is not tried then.
    let (done, log) = attempt(&[
        srv("xmpp-client", "xmpp", closed, 5),
        srv("xmpps-client", "other", closed, 6),
        host("xmpp", "127.0.0.1"),
        host("other", "127.0.0.9"),
        format!("--address=/{DOMAIN}/127.0.0.1"),
    ]);
    assert_eq!(done.code, 1, "{done:?}\n{log}");
    for tried in
        [format!("xmpp.test:{closed}: 127.0.0.1:"), format!("other.test:{closed}: 127.0.0.9:")]
    {
        assert!(done.stderr.contains(&tried), "{tried}: {done:?}\n{log}");
    }
    assert!(!done.stderr.contains(":5222"), "{done:?}");

    // The root as target: the domain does not offer the service.
    let (done, log) = attempt(&[
        format!("--srv-host=_xmpp-client._tcp.{DOMAIN}"),
        format!("--address=/{DOMAIN}/127.0.0.1"),
    ]);
    assert_eq!(done.code, 1, "{done:?}\n{log}");
    assert!(done.stderr.contains("example.test has no XMPP service"), "{done:?}\n{log}");

    // Without records, the domain itself is tried.
    let (done, log) = attempt(&[format!("--address=/{DOMAIN}/127.0.0.9")]);
    assert_eq!(done.code, 1, "{done:?}\n{log}");
    assert!(done.stderr.contains("example.test:5222: 127.0.0.9:5222: "), "{done:?}\n{log}");
}

/// Without `--via`, the component is found by service discovery; of several, or none, the user is told.
fn the_component_is_found(kind: Kind) {
    let server = Server::start(kind);
    let alice = Xtls::new(&server, "alice@example.test");
    let attempt = || {
        let args = ["login", alice.jid(), "--server", &server.client_address(), "--json"];
        let mut command = alice.command(args);
        command.env("XTLS_PASSWORD", "alices-password");
        let done = run(command, LIMIT);
        assert_eq!(done.code, 0, "{done:?}");
        event(&done.stdout, "login").unwrap()["via"].clone()
    };
    assert_eq!(attempt(), Value::Null, "it is not connected yet");
    let component = Component::start(&server, &Options::default());
    assert_eq!(attempt(), COMPONENT, "{}", component.log());
    let alice = alice.and_key();
    let listed = alice.run(["keys"]);
    assert_eq!(listed.code, 0, "{listed:?}");
}

#[test]
fn prosody_the_component_is_found() {
    the_component_is_found(Kind::Prosody);
}

#[test]
fn ejabberd_the_component_is_found() {
    the_component_is_found(Kind::Ejabberd);
}

/// The command of every manual: its certificate claims to be an authority.
#[test]
fn a_self_signed_certificate_is_accepted_when_it_is_named() {
    let mut server = Server::start(Kind::Prosody);
    let directory = server.directory().to_owned();
    let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    server.reconfigure(true, |text| {
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=example.test", "-addext", "subjectAltName=DNS:example.test"])
            .args(["-keyout", &path("server.key"), "-out", &path("server.pem")])
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        text
    });
    let alice = Xtls::new(&server, "alice@example.test");
    let done = login(&alice, "alices-password", Some(&server.client_address()), None);
    assert_eq!(done.code, 0, "{done:?}\n{}", server.log());
}

/// A certificate that no authority has signed is shown, pinned as SSH pins a key, and then the only one that counts.
#[test]
fn an_unknown_certificate_is_shown_and_can_be_pinned() {
    let mut server = Server::start(Kind::Prosody);
    let _component = Component::start(&server, &Options::default());
    let alice = Xtls::new(&server, "alice@example.test");
    let bare = |args: &[&str]| {
        let mut command = clean(&own_program("xtls"));
        command.args(args).env("XTLS_HOME", alice.home().join("xtls"));
        command.env("HOME", alice.home()).env("XTLS_PASSWORD", "alices-password");
        run(command, LIMIT)
    };
    let address = server.client_address();
    let log_in = |more: &[&str]| {
        bare(&[&["login", alice.jid(), "--server", &address, "--via", COMPONENT], more].concat())
    };
    let print_of = |directory: &Path| {
        let shown = Command::new("openssl")
            .args(["x509", "-noout", "-fingerprint", "-sha256", "-in"])
            .arg(directory.join("server.pem"))
            .output()
            .unwrap();
        String::from_utf8(shown.stdout).unwrap().trim().rsplit('=').next().unwrap().to_owned()
    };
    let directory = server.directory().to_owned();
    let print = print_of(&directory);

    let unknown = log_in(&[]);
    assert_eq!(unknown.code, 1, "{unknown:?}");
    assert!(unknown.stderr.contains(&print), "{unknown:?}");
    assert!(unknown.stderr.contains("hint: "), "{unknown:?}");
    assert!(unknown.stderr.contains("--trust-certificate SHA256"), "{unknown:?}");

    let wrong = log_in(&["--trust-certificate", &"AB".repeat(32)]);
    assert_eq!(wrong.code, 1, "{wrong:?}");
    assert!(wrong.stderr.contains(&print) && wrong.stderr.contains("AB:AB:AB"), "{wrong:?}");
    let short = log_in(&["--trust-certificate", "ABAB"]);
    assert_eq!(short.code, 2, "{short:?}");

    let pinned = log_in(&["--trust-certificate", &print]);
    assert_eq!(pinned.code, 0, "{pinned:?}");
    for later in [&["keygen"][..], &["register"]] {
        let done = bare(later);
        assert_eq!(done.code, 0, "{later:?}: {done:?}");
    }

    server.reconfigure(true, |text| {
        make_certificate(&directory);
        text
    });
    let other = print_of(&directory);
    assert_ne!(other, print);
    let changed = bare(&["keys"]);
    assert_eq!(changed.code, 1, "{changed:?}");
    assert!(changed.stderr.contains(&other) && changed.stderr.contains(&print), "{changed:?}");
}

#[test]
fn a_login_that_cannot_work_is_not_tried() {
    let server = Server::start(Kind::Prosody);
    let alice = Xtls::new(&server, "alice@example.test");
    let done = login(&alice, "", Some(&server.client_address()), None);
    assert_eq!(done.code, 2, "{done:?}");
    assert!(done.stderr.contains("error: the password is empty"), "{done:?}");
    assert!(!server.log().contains("not-authorized"), "{}", server.log());
    for address in ["127.0.0.1", "127.0.0.1:99999", ""] {
        let done = login(&alice, "alices-password", Some(address), None);
        assert_eq!(done.code, 2, "{address}: {done:?}");
        assert!(done.stderr.contains("expected HOST:PORT"), "{address}: {done:?}");
    }
}

/// Sends a file that stands still at `tap` when a part of it has passed.
fn half_sent(tap: &Tap, part: usize, alice: &Xtls, listener: &Listener) -> Process {
    tap.hold_after(part);
    let jid = listener.event("listening").unwrap()["jid"].as_str().unwrap().to_owned();
    let file = alice.home().join("large.bin");
    let command = alice.command(["send", &jid, file.to_str().unwrap()]);
    let sender = Process::start(command, &alice.home().join("send.log"));
    tap.wait_until_held(|| sender.log() + &listener.log());
    sender
}

/// Waits for a file to arrive, and removes it.
fn arrived(listener: &Listener, alice: &Xtls, before: usize) {
    let done = listener.wait_for_event("done", before);
    let [file] = &listener.files()[..] else { panic!("{done}: {:?}", listener.files()) };
    assert_eq!(sha256(file), sha256(&alice.home().join("large.bin")));
    std::fs::remove_file(file).unwrap();
}

/// A listener whose network falls silent in the middle of an in-band transfer, and whose server is killed, restarted,
/// and given another password.
fn a_listener_stays(kind: Kind) {
    let mut server = Server::start(kind).with_stream_management();
    let options = Options { tap: true, ..Options::default() };
    let mut component = Component::start(&server, &options);
    let network = Tap::start(server.client_port());
    let alice = Xtls::with_key(&server, "alice");
    let bob = Xtls::login_at(&server, "bob", network.port()).and_key();
    random_file(&alice.home().join("large.bin"), LARGE);

    // The stanzas of bob's client are discarded. The transfer resumes where it stood: nothing is lost or comes twice.
    let mut listener = bob.listen_on(&["--keepalive", "2", "--transport", "ibb"]);
    let mut sender = half_sent(&network, ANSWERS, &alice, &listener);
    listener.wait_for_event("disconnected", 0);
    network.cut();
    assert_eq!(listener.wait_for_event("connected", 0)["resumed"], true, "{}", listener.log());
    arrived(&listener, &alice, 0);
    assert_eq!(sender.wait(LIMIT).code(), Some(0), "{}", sender.log());
    assert_eq!(listener.events("disconnected").len(), 1, "{}", listener.log());
    listener.signal("TERM");
    assert_eq!(listener.wait(LIMIT), 0, "{}", listener.log());

    // The server dies; a stream beside it continues.
    let mut listener = bob.listen_on(&[]);
    let links = component.log().matches("link up").count();
    let tap = component.tap.as_ref().unwrap();
    let mut sender = half_sent(tap, PART, &alice, &listener);
    server.kill();
    listener.wait_for_event("disconnected", 0);
    server.up();
    let back = listener.wait_for_event("connected", 0);
    assert_eq!(back["resumed"], false, "{}", listener.log());
    assert_eq!(back["jid"], listener.event("listening").unwrap()["jid"], "the address stays");
    tap.open();
    arrived(&listener, &alice, 0);
    sender.wait(LIMIT);
    component.wait_for_links(links + 1);

    // An orderly restart; then the listener is reachable as before, without any action.
    server.restart();
    listener.wait_for_event("connected", 1);
    component.wait_for_links(links + 2);
    let file = alice.home().join("large.bin");
    let sent = RefCell::new(Vec::new());
    wait_for(
        "a file to the listener",
        LIMIT,
        || format!("{sent:?}\n{}\n{}", listener.log(), component.log()),
        || {
            let done = alice.run(["send", bob.jid(), file.to_str().unwrap()]);
            let is_done = done.code == 0;
            sent.borrow_mut().push(done);
            is_done
        },
    );
    arrived(&listener, &alice, 1);
    // Each loss is reported once.
    assert_eq!(listener.events("disconnected").len(), 2, "{}", listener.log());

    // Another password: the listener ends, and says why.
    server.set_password("bob", DOMAIN, "another");
    server.restart();
    if kind == Kind::Ejabberd {
        // The server accepts users before it has loaded their passwords.
        server.restart();
    }
    assert_eq!(listener.wait(LIMIT), 1, "{}", listener.log());
    let error = listener.event("error").unwrap();
    let message = error["message"].as_str().unwrap();
    assert!(message.starts_with("login as bob@example.test failed: not-authorized"), "{error}");
}

#[test]
fn prosody_a_listener_stays() {
    a_listener_stays(Kind::Prosody);
}

#[test]
fn ejabberd_a_listener_stays() {
    a_listener_stays(Kind::Ejabberd);
}

/// Returns the mechanism of each login in a log.
fn mechanisms(log: &str) -> Vec<&str> {
    let lines = log.lines().filter(|line| line.contains("logging in"));
    lines.map(|line| line.split('"').nth(1).unwrap_or_else(|| panic!("{line}"))).collect()
}

/// Prosody 13 with the modules of Debian 13 has SASL2, Bind 2 and FAST. Prosody 0.12 does not: the password is used.
#[test]
fn prosody_a_token_takes_the_passwords_place() {
    let mut server = Server::start(Kind::Prosody).with_stream_management();
    let has_tokens = server.kind().version().starts_with("13");
    if has_tokens {
        server.reconfigure(true, |text| {
            let more = "\"smacks\", \"sasl2\", \"sasl2_bind2\", \"sasl2_fast\", \"sasl2_sm\", ";
            // Each login brings another token.
            let text = text.replace("\"smacks\", ", more);
            text.replace("authentication = ", "sasl2_fast_token_min_ttl = 0\nauthentication = ")
        });
    }
    let _component = Component::start(&server, &Options::default());
    let network = Tap::start(server.client_port());
    let bob = Xtls::login_at(&server, "bob", network.port()).and_key();
    let path = bob.home().join("xtls").join(bob.jid()).join("fast.toml");
    let kept = || -> toml::Table { std::fs::read_to_string(&path).unwrap().parse().unwrap() };
    let mut tokens = Vec::new();
    for _ in 0..2 {
        let listed = bob.run(["-v", "-v", "keys"]);
        assert_eq!(listed.code, 0, "{listed:?}");
        let [mechanism] = mechanisms(&listed.stderr)[..] else { panic!("{listed:?}") };
        assert_eq!(mechanism.starts_with("HT-SHA-256-"), has_tokens, "{listed:?}");
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let token = kept().get("token").map(|token| token.as_str().unwrap().to_owned());
        assert_eq!(token.is_some(), has_tokens);
        if let Some(token) = token {
            assert!(!listed.stderr.contains(&token) && !listed.stdout.contains(&token));
            assert!(!tokens.contains(&token), "each is used once");
            tokens.push(token);
        }
    }

    // A token that the server does not know is forgotten, and the password is used.
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("secret-token:", "secret-token:not-")).unwrap();
    let listed = bob.run(["-v", "-v", "keys"]);
    assert_eq!(listed.code, 0, "{listed:?}");
    let used = mechanisms(&listed.stderr);
    assert!(used.last().unwrap().starts_with("SCRAM-"), "{listed:?}");
    assert_eq!(used.len(), if has_tokens { 2 } else { 1 }, "{listed:?}");

    // A lost session is resumed in the same step.
    let listener = bob.listen_on(&["-v", "-v", "--keepalive", "2"]);
    network.hold_after(0);
    listener.wait_for_event("disconnected", 0);
    network.cut();
    assert_eq!(listener.wait_for_event("connected", 0)["resumed"], true, "{}", listener.log());
    let log = listener.log();
    assert_eq!(mechanisms(&log).last().unwrap().starts_with("HT-"), has_tokens, "{log}");
}
