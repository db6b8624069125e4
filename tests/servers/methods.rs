//! The methods of TLS security between two `xtls`, on both servers: x509, openpgp and srp, over each transport, with
//! and without the broker; and everything that must be refused.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use support::process::{Output, run};
use support::programs::{Component, Listener, Options, Xtls, at_a_terminal, event, script};
use support::servers::{Kind, Server};
use support::{MARKER, random_file, sha256, tap};

const SIZE: usize = 200_000;
const PASSWORD: &str = "the-password-that-both-users-know";

/// Two users with keys of every kind, registered.
struct Users {
    server: Server,
    component: Component,
    alice: Xtls,
    bob: Xtls,
}

impl Users {
    fn start(kind: Kind, options: &Options) -> Self {
        let server = Server::start(kind);
        let component = Component::start(&server, options);
        let [alice, bob] = ["alice", "bob"].map(|user| {
            let user = Xtls::with_key(&server, user);
            std::fs::write(password_file(&user), format!("{PASSWORD}\n")).unwrap();
            user
        });
        Self { server, component, alice, bob }
    }

    fn forget_each_other(&self) {
        for (user, other) in [(&self.alice, &self.bob), (&self.bob, &self.alice)] {
            user.run(["trust", "forget", other.jid()]);
        }
    }

    fn logs(&self, listener: &Listener) -> String {
        format!("{}\n{}", listener.log(), self.component.log())
    }
}

fn password_file(user: &Xtls) -> PathBuf {
    user.home().join("password")
}

/// Returns the options that choose a method.
fn method(user: &Xtls, name: &str) -> Vec<String> {
    let mut options = vec!["--method".to_owned(), name.to_owned()];
    if name == "srp" {
        options.push("--srp-password-file".to_owned());
        options.push(password_file(user).to_str().unwrap().to_owned());
    }
    options
}

fn listen(user: &Xtls, name: &str, more: &[&str]) -> Listener {
    let mut options = method(user, name);
    options.extend(more.iter().map(|&option| option.to_owned()));
    user.listen(&options.iter().map(String::as_str).collect::<Vec<_>>())
}

fn send(user: &Xtls, name: &str, to: &str, file: &Path, more: &[&str]) -> Output {
    run(send_command(user, name, to, file, more), Duration::from_secs(120))
}

fn send_command(user: &Xtls, name: &str, to: &str, file: &Path, more: &[&str]) -> Command {
    let mut command = user.command(["send", to, file.to_str().unwrap(), "--json"]);
    command.args(method(user, name)).args(more);
    command
}

/// Returns a new file of alice's.
fn letter(users: &Users, name: &str) -> PathBuf {
    let file = users.alice.home().join(name);
    random_file(&file, SIZE);
    file
}

/// Lets alice send bob a file by a method; returns both `secured` events.
fn transfer(users: &Users, name: &str, transport: &str, direct: bool) -> [Value; 2] {
    let more: &[&str] =
        if direct { &["--transport", transport, "--direct"] } else { &["--transport", transport] };
    let mut listener = listen(&users.bob, name, more);
    let full = listener.event("listening").unwrap()["jid"].as_str().unwrap().to_owned();
    let to = if direct { full.as_str() } else { users.bob.jid() };
    let file = letter(users, &format!("{name}-{transport}-{direct}.bin"));
    let sent = send(&users.alice, name, to, &file, more);
    let case = format!("{name} over {transport}, direct: {direct}");
    assert_eq!(sent.code, 0, "{case}: {sent:?}\n{}", users.logs(&listener));
    assert_eq!(listener.wait(Duration::from_secs(30)), 0, "{case}: {}", listener.log());
    let arrived = listener.files().into_iter().find(|path| path.file_name() == file.file_name());
    assert_eq!(sha256(&arrived.expect(&case)), sha256(&file), "{case}");
    let secured = [event(&sent.stdout, "secured").unwrap(), listener.event("secured").unwrap()];
    for side in &secured {
        assert_eq!(side["method"], name, "{case}");
        assert_eq!(side["transport"], transport, "{case}");
        assert_eq!(side["tls_version"], "TLSv1.3", "{case}");
        assert_eq!(side["initiator"], "alice@example.test", "{case}");
    }
    secured
}

/// Lets alice try to send; nothing may arrive. Returns her result and bob's status.
fn refused(users: &Users, alice: &str, mut listener: Listener, more: &[&str]) -> (Output, i32) {
    let before = listener.files();
    let file = letter(users, "refused.bin");
    let sent = send(&users.alice, alice, users.bob.jid(), &file, more);
    let status = listener.wait(Duration::from_secs(60));
    assert_eq!(listener.files(), before, "{sent:?}\n{}", listener.log());
    (sent, status)
}

fn methods_over_each_transport_with_and_without_a_broker(kind: Kind) {
    let options =
        Options { tap: true, more: "[log]\nlevel = \"trace\"\n".to_owned(), ..Options::default() };
    let users = Users::start(kind, &options);
    for user in [&users.alice, &users.bob] {
        for command in [
            &["keygen", "--openpgp"][..],
            &["register", "--method", "openpgp"],
            &["prove", "--method", "openpgp"],
        ] {
            let done = user.run(command);
            assert_eq!(done.code, 0, "{command:?}: {done:?}");
        }
    }
    for name in ["x509", "openpgp", "srp"] {
        if name != "srp" {
            users.forget_each_other();
        }
        for (n, (transport, direct)) in
            [("s5b", false), ("ibb", false), ("s5b", true), ("ibb", true)].into_iter().enumerate()
        {
            let [alice, bob] = transfer(&users, name, transport, direct);
            let first = n == 0 && name != "srp";
            for side in [&alice, &bob] {
                assert_eq!(side["first_use"], first, "{name}: {side}");
                assert_eq!(side["sas"].is_string(), first, "{name}: {side}");
            }
            // No attacker is in the middle.
            assert_eq!(alice["sas"], bob["sas"], "{name}");
        }
    }
    let listed = users.alice.run(["trust", "list", "--json"]);
    assert!(listed.stdout.contains("\"method\":\"openpgp\""), "{listed:?}");

    // Neither the wire nor the logs reveal a password or content.
    let captured = users.component.tap.as_ref().unwrap().captured();
    assert!(captured.len() >= 9, "{} connections are too few", captured.len());
    for connection in &captured {
        for (bytes, from_client) in [(&connection.up, true), (&connection.down, false)] {
            tap::tls_records(tap::after_socks5(bytes, from_client).unwrap_or_default()).unwrap();
            for secret in [PASSWORD, MARKER] {
                assert!(!bytes.windows(secret.len()).any(|part| part == secret.as_bytes()));
            }
        }
    }
    let logs = [users.server.log(), users.component.log()];
    assert!(logs.iter().all(|log| !log.contains(PASSWORD) && !log.contains(MARKER)));
}

fn what_is_not_verified_gets_nothing(kind: Kind) {
    let users = Users::start(kind, &Options::default());
    let Users { alice, bob, .. } = &users;
    for user in [alice, bob] {
        assert_eq!(user.run(["keygen", "--openpgp"]).code, 0);
    }

    // Another method than the peer's.
    for (ours, theirs) in [("openpgp", "x509"), ("srp", "openpgp"), ("x509", "srp")] {
        let (sent, status) = refused(&users, ours, listen(bob, theirs, &[]), &[]);
        assert_eq!((sent.code, status), (5, 5), "{ours} to {theirs}: {sent:?}");
        let told = format!("alice@example.test offers {ours}, and the method here is {theirs}");
        assert!(sent.stderr.contains(&told), "{sent:?}");
    }

    // Another password; the program reveals it neither to its user nor to its log.
    std::fs::write(password_file(bob), "another password\n").unwrap();
    for transport in ["s5b", "ibb"] {
        let listener = listen(bob, "srp", &["-vv"]);
        let (sent, status) = refused(&users, "srp", listener, &["-vv", "--transport", transport]);
        assert_eq!((sent.code, status), (4, 4), "{sent:?}");
        assert!(sent.stderr.contains("has not shown to know the password"), "{sent:?}");
        let log = std::fs::read_to_string(bob.home().join("listen.log")).unwrap();
        for (text, secret) in [(&sent.stderr, PASSWORD), (&log, "another password")] {
            assert!(!text.contains(secret), "{text}");
        }
    }

    // Without a terminal nobody can confirm; the key is not stored either.
    for (more_a, more_b) in [(&["--confirm-sas"][..], &[][..]), (&[], &["--confirm-sas"])] {
        let (sent, status) = refused(&users, "x509", listen(bob, "x509", more_b), more_a);
        assert_ne!((sent.code, status), (0, 0), "{sent:?}");
        let (own, user) = if more_a.is_empty() { (status, bob) } else { (sent.code, alice) };
        assert_eq!(own, 4, "{sent:?}");
        assert!(!user.run(["trust", "list"]).stdout.contains("example.test"));
        users.forget_each_other();
    }

    // A key that is not the known one, by each method with keys.
    for (name, files) in [("x509", &["cert.pem", "key.pem"][..]), ("openpgp", &["openpgp.asc"])] {
        users.forget_each_other();
        transfer(&users, name, "s5b", false);
        let directory = bob.home().join("xtls/bob@example.test");
        for file in files {
            std::fs::remove_file(directory.join(file)).unwrap();
        }
        let keygen: &[&str] = if name == "x509" { &["keygen"] } else { &["keygen", "--openpgp"] };
        assert_eq!(bob.run(keygen).code, 0);
        // The registry would say mismatch, but the trust store suffices.
        let listed = bob.run(["keys", "--json"]);
        for key in listed.stdout.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok())
        {
            if key["method"] == name {
                bob.run(["revoke", key["id"].as_str().unwrap()]);
            }
        }
        assert_eq!(bob.run(["register", "--method", name]).code, 0);
        let (sent, _) = refused(&users, name, listen(bob, name, &[]), &[]);
        assert_eq!(sent.code, 4, "{name}: {sent:?}");
        assert!(sent.stderr.contains("THE KEY OF bob@example.test HAS CHANGED"), "{sent:?}");
    }

    // A peer that is known by its OpenPGP key is not accepted with a certificate.
    let (sent, _) = refused(&users, "x509", listen(bob, "x509", &[]), &[]);
    assert_eq!(sent.code, 4, "{sent:?}");
    assert!(sent.stderr.contains("IS KNOWN BY ANOTHER KEY"), "{sent:?}");
}

/// GnuPG's key, locked by a passphrase, is imported, registered, proven and used; version 6 meets version 4.
fn an_openpgp_key_of_gnupg_is_taken_over(kind: Kind) {
    let users = Users::start(kind, &Options::default());
    let Users { alice, bob, .. } = &users;
    let home = alice.home().join("gnupg");
    std::fs::create_dir(&home).unwrap();
    let only_mine = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(&home, only_mine).unwrap();
    let gpg = |args: &[&str]| {
        let mut command = Command::new("gpg");
        command.arg("--homedir").arg(&home);
        command.args([
            "--batch",
            "--yes",
            "--pinentry-mode",
            "loopback",
            "--passphrase",
            "open sesame",
        ]);
        let done = command.args(args).output().unwrap();
        assert!(done.status.success(), "gpg {args:?}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8_lossy(&done.stdout).into_owned()
    };
    // A primary key that only certifies, and a subkey that signs.
    gpg(&["--quick-gen-key", "Alice <xmpp:alice@example.test>", "ed25519", "cert", "1y"]);
    let listed = gpg(&["--with-colons", "--list-keys"]);
    let print = listed.lines().find_map(|line| line.strip_prefix("fpr:::::::::")).unwrap();
    let print = print.trim_end_matches(':').to_owned();
    gpg(&["--quick-add-key", &print, "ed25519", "sign", "1y"]);
    let file = alice.home().join("secret.asc");
    gpg(&["--armor", "--output", file.to_str().unwrap(), "--export-secret-keys"]);

    let with = |passphrase: &str, args: &[&str]| {
        let mut command = alice.command(args);
        command.env("XTLS_OPENPGP_PASSPHRASE", passphrase);
        run(command, Duration::from_secs(60))
    };
    let import = ["keygen", "--openpgp", "--import", file.to_str().unwrap()];
    let wrong = with("open barley", &import);
    assert_eq!(wrong.code, 2, "{wrong:?}");
    assert!(wrong.stderr.contains("passphrase does not unlock"), "{wrong:?}");
    let imported = with("open sesame", &import);
    assert_eq!(imported.code, 0, "{imported:?}");
    assert_eq!(imported.stdout.trim().replace(':', ""), print);
    let proven = with("open sesame", &["prove", "--method", "openpgp", "--json"]);
    assert!(proven.stdout.contains("\"assurance\":\"proven\""), "{proven:?}");

    assert_eq!(bob.run(["keygen", "--openpgp", "--key-version", "6"]).code, 0);
    assert_eq!(bob.run(["register", "--method", "openpgp"]).code, 0);
    let mut listener = listen(bob, "openpgp", &[]);
    let file = letter(&users, "signed.bin");
    let mut command = send_command(alice, "openpgp", bob.jid(), &file, &[]);
    command.env("XTLS_OPENPGP_PASSPHRASE", "open sesame");
    let sent = run(command, Duration::from_secs(60));
    assert_eq!(sent.code, 0, "{sent:?}\n{}", users.logs(&listener));
    assert_eq!(listener.wait(Duration::from_secs(30)), 0, "{}", listener.log());
    let seen = listener.event("secured").unwrap();
    assert_eq!(seen["peer_print"].as_str().unwrap().replace(':', ""), print);
    let seen = event(&sent.stdout, "secured").unwrap();
    assert_eq!(seen["peer_print"].as_str().unwrap().replace(':', "").len(), 64);
    for (log, user) in [(listener.log(), "alice"), (sent.stdout, "bob")] {
        let session = event(&log, "session").unwrap();
        assert_eq!(session["peer"], format!("{user}@example.test"));
        assert_eq!(session["hints"][0]["method"], "openpgp", "{session}");
        assert_eq!(session["hints"][0]["verdict"], "match", "{session}");
    }
}

/// Post-quantum keys at both ends, created, registered and proven by `xtls`, and used through the broker; the same for
/// Ed25519.
fn keys_of_other_algorithms_are_made_proven_and_used(kind: Kind) {
    let users = Users::start(kind, &Options::default());
    for (algorithm, transport) in [("ml-dsa-65", "ibb"), ("ed25519", "s5b")] {
        users.forget_each_other();
        for user in [&users.alice, &users.bob] {
            let directory = user.home().join("xtls").join(user.jid());
            for file in ["cert.pem", "key.pem"] {
                std::fs::remove_file(directory.join(file)).unwrap();
            }
            let made = user.run(["keygen", "--algorithm", algorithm, "--json"]);
            assert_eq!(made.code, 0, "{made:?}");
            assert!(made.stdout.contains(algorithm), "{made:?}");
            let proven = user.run(["prove", "--json"]);
            assert!(proven.stdout.contains("\"assurance\":\"proven\""), "{proven:?}");
        }
        for side in transfer(&users, "x509", transport, false) {
            assert_eq!(side["key_exchange"], "X25519MLKEM768", "{side}");
            assert_eq!(side["registry"], "match", "{side}");
        }
    }
    let refused = users.alice.run(["keygen", "--algorithm", "rsa"]);
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.stderr.contains("expected ed25519, p256 or ml-dsa-65"), "{refused:?}");
}

/// The peer's certificate is older than the registry's, in which the signing subkey was revoked since. It is not
/// accepted, and the user reads why. The peer is not asked.
fn a_signing_subkey_that_the_registry_knows_as_revoked_is_refused(kind: Kind) {
    let users = Users::start(kind, &Options::default());
    let Users { alice, bob, .. } = &users;
    let home = tempfile::Builder::new().prefix("fingerpost-gpg-").tempdir().unwrap();
    let gpg = |args: &[&str], input: &str| {
        let mut command = Command::new("gpg");
        command.arg("--homedir").arg(home.path()).args(["--no-tty", "--yes"]);
        command.args(["--pinentry-mode", "loopback", "--passphrase", ""]);
        command.args(if input.is_empty() { &["--batch"][..] } else { &["--command-fd", "0"] });
        let typed = alice.home().join("typed");
        std::fs::write(&typed, input).unwrap();
        command.stdin(std::fs::File::open(&typed).unwrap());
        let done = command.args(args).output().unwrap();
        assert!(done.status.success(), "gpg {args:?}: {}", String::from_utf8_lossy(&done.stderr));
        done.stdout
    };
    gpg(&["--quick-gen-key", "Alice <xmpp:alice@example.test>", "ed25519", "cert", "1y"], "");
    let listed = String::from_utf8(gpg(&["--with-colons", "--list-keys"], "")).unwrap();
    let print = listed.lines().find_map(|line| line.strip_prefix("fpr:::::::::")).unwrap();
    let print = print.trim_end_matches(':').to_owned();
    gpg(&["--quick-add-key", &print, "ed25519", "sign", "1y"], "");
    let secret = alice.home().join("secret.asc");
    std::fs::write(&secret, gpg(&["--armor", "--export-secret-keys"], "")).unwrap();
    let import = ["keygen", "--openpgp", "--import", secret.to_str().unwrap()];
    for (user, command) in [
        (alice, &import[..]),
        (alice, &["register", "--method", "openpgp"]),
        (bob, &["keygen", "--openpgp"]),
        (bob, &["register", "--method", "openpgp"]),
    ] {
        let done = user.run(command);
        assert_eq!(done.code, 0, "{command:?}: {done:?}");
    }
    transfer(&users, "openpgp", "s5b", false);

    // Her other machine revokes the subkey and tells the registry; the thief's copy stays as it was.
    gpg(&["--edit-key", &print], "key 1\nrevkey\ny\n1\n\ny\nsave\n");
    let newer = alice.home().join("newer.asc");
    std::fs::write(&newer, gpg(&["--armor", "--export", &print], "")).unwrap();
    let add = ["keys", "add", alice.jid(), "--method", "openpgp", "--material"];
    let added = users.component.command([&add[..], &[newer.to_str().unwrap()]].concat());
    assert_eq!(added.code, 0, "{added:?}");
    for direct in [false, true] {
        let options: &[&str] = if direct { &["--accept-direct"] } else { &[] };
        let mut listener = listen(bob, "openpgp", options);
        let full = listener.event("listening").unwrap()["jid"].as_str().unwrap().to_owned();
        let (to, more) =
            if direct { (full.as_str(), &["--direct"][..]) } else { (bob.jid(), &[][..]) };
        let before = listener.files();
        let file = letter(&users, "stolen.bin");
        let sent = send(alice, "openpgp", to, &file, more);
        assert_ne!(sent.code, 0, "{sent:?}");
        let status = listener.wait(Duration::from_secs(60));
        let log = listener.log();
        assert_eq!(status, 4, "direct: {direct}: {log}");
        let why = "the subkey of the peer's OpenPGP key that signs here was revoked, as the registry's copy";
        assert!(log.contains(why), "direct: {direct}: {log}");
        assert_eq!(listener.files(), before);
    }
    // The other way round too: a caller is not accepted either.
    let mut listener = listen(alice, "openpgp", &[]);
    let file = bob.home().join("to-the-thief.bin");
    random_file(&file, SIZE);
    let sent = send(bob, "openpgp", alice.jid(), &file, &[]);
    assert_eq!(sent.code, 4, "{sent:?}");
    assert!(sent.stderr.contains("was revoked, as the registry's copy of alice"), "{sent:?}");
    listener.wait(Duration::from_secs(60));
    assert_eq!(listener.files(), Vec::<PathBuf>::new());
    let _ = Command::new("gpgconf").args(["--kill", "all", "--homedir"]).arg(home.path()).output();
}

/// Two people at terminals see the same string; a refusal ends the session before a byte of the file.
fn the_string_is_confirmed_at_a_terminal(kind: Kind) {
    let users = Users::start(kind, &Options::default());
    let Users { alice, bob, .. } = &users;
    // Input before the question does not count as an answer.
    for (ahead, answer, code) in [("", "n", 4), ("y\r", "n", 4), ("", "y", 0)] {
        let mut listener = listen(bob, "x509", &[]);
        let file = letter(&users, "read-aloud.bin");
        let mut command = alice.command(["send", bob.jid(), file.to_str().unwrap()]);
        command.args(method(alice, "x509")).arg("--confirm-sas");
        let steps =
            json!([["type", ahead], ["wait", "[y/N]"], ["type", format!("{answer}\r")], ["end"]]);
        let mut settings = at_a_terminal(&command, steps);
        settings["controls"] = json!(true);
        let sent = script("terminal.py", &users.server, settings);
        assert_eq!(sent["status"], code, "{sent}\n{}", users.logs(&listener));
        let status = listener.wait(Duration::from_secs(30));
        assert_eq!(status == 0, code == 0, "{}", listener.log());
        assert_eq!(listener.files().len(), usize::from(code == 0));
        let sas = listener.event("secured").unwrap()["sas"].as_str().unwrap().to_owned();
        let screen = sent["screens"][1].as_str().unwrap();
        assert!(screen.contains(&format!("Does bob@example.test see {sas}? [y/N]")), "{screen}");
        bob.run(["trust", "forget", alice.jid()]);
    }
}

support::on_both!(
    methods_over_each_transport_with_and_without_a_broker,
    what_is_not_verified_gets_nothing,
);

// The XMPP server plays no part in these tests.

#[test]
fn prosody_an_openpgp_key_of_gnupg_is_taken_over() {
    an_openpgp_key_of_gnupg_is_taken_over(Kind::Prosody);
}

#[test]
fn prosody_keys_of_other_algorithms_are_made_proven_and_used() {
    keys_of_other_algorithms_are_made_proven_and_used(Kind::Prosody);
}

#[test]
fn prosody_a_signing_subkey_that_the_registry_knows_as_revoked_is_refused() {
    a_signing_subkey_that_the_registry_knows_as_revoked_is_refused(Kind::Prosody);
}

#[test]
fn prosody_the_string_is_confirmed_at_a_terminal() {
    the_string_is_confirmed_at_a_terminal(Kind::Prosody);
}
