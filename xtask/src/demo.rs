//! A demonstration: two users on a real Prosody send a file end to end; then one announces a wrong key.
//!
//! Everything runs on loopback with temporary directories, and is removed at the end. Start it with `make demo`.

#![allow(clippy::print_stdout, reason = "the output is the purpose")]

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use support::programs::{Component, Options, Xtls, event};
use support::servers::{Kind, Server};
use support::{COMPONENT, random_file, sha256};

const SIZE: usize = 64 << 20;

/// Runs it.
pub(crate) fn run() {
    println!(
        "Fingerpost: two users, one TLS stream from end to end, and a component between them\n"
    );
    let server = Server::start_as_installed(Kind::Prosody);
    println!("  Prosody      {} (this machine, a private instance)", server.client_address());
    let component = Component::start(&server, &Options::default());
    println!("  component    {COMPONENT}, SOCKS5 on 127.0.0.1:{}", component.socks5);

    let alice = Xtls::with_key(&server, "alice");
    let bob = Xtls::with_key(&server, "bob");
    println!("  users        {} and {}, each with a new key, registered", alice.jid(), bob.jid());
    let file = alice.home().join("letter.bin");
    random_file(&file, SIZE);
    println!("  file         letter.bin, {} MiB of random bytes\n", SIZE >> 20);

    for (transport, name) in [("s5b", "SOCKS5"), ("ibb", "in-band bytestreams")] {
        println!("{} sends it to {} over {name}", alice.jid(), bob.jid());
        send(&alice, &bob, &file, transport);
    }
    println!("{} offers the fingerprint of a key that it does not have", bob.jid());
    refuse(&alice, &bob, &file);

    drop(component);
    drop(server);
    println!("\nEverything that was started has been stopped and removed.");
}

fn send(alice: &Xtls, bob: &Xtls, file: &Path, transport: &str) {
    let mut listener = bob.listen(&["--transport", transport]);
    let sent = alice.run([
        "send".as_ref(),
        bob.jid().as_ref(),
        file.as_os_str(),
        "--transport".as_ref(),
        transport.as_ref(),
        "--json".as_ref(),
    ]);
    assert_eq!(sent.code, 0, "xtls send: {}\n{}\n{}", sent.stdout, sent.stderr, listener.log());
    assert_eq!(listener.wait(Duration::from_secs(60)), 0, "xtls listen: {}", listener.log());

    for (who, whose, lines) in
        [(bob.jid(), alice.jid(), &listener.log()), (alice.jid(), bob.jid(), &sent.stdout)]
    {
        let session = event(lines, "session").unwrap_or_default();
        for hint in session["hints"].as_array().into_iter().flatten() {
            println!(
                "  {who} is told: {whose} offers the {} key {} - {}",
                text(hint, "method"),
                short(text(hint, "print")),
                text(hint, "verdict"),
            );
        }
    }
    let secured = event(&sent.stdout, "secured").unwrap_or_default();
    println!("  legs         both over {}", text(&secured, "transport"));
    println!(
        "  TLS          {}, key exchange {}, between the two users only",
        text(&secured, "tls_version"),
        text(&secured, "key_exchange")
    );
    let done = event(&sent.stdout, "done").unwrap_or_default();
    let (bytes, seconds) =
        (done["bytes"].as_f64().unwrap_or(0.0), done["seconds"].as_f64().unwrap_or(1.0));
    println!(
        "  moved        {bytes} bytes in {seconds:.1} s, {:.1} MiB/s",
        bytes / seconds / f64::from(1 << 20)
    );
    let arrived = listener.files();
    let [arrived] = arrived.as_slice() else { panic!("one file should have arrived: {arrived:?}") };
    let (here, there) = (sha256(file), sha256(arrived));
    assert_eq!(here, there, "the file that arrived differs");
    println!("  SHA-256      {} on both sides\n", short(&here));
    std::fs::remove_file(arrived).unwrap();
}

fn refuse(alice: &Xtls, bob: &Xtls, file: &Path) {
    let listener = bob.listen(&["--offer-print", &"AB".repeat(32)]);
    let sent = alice.run(["send".as_ref(), bob.jid().as_ref(), file.as_os_str()]);
    assert_eq!(sent.code, 4, "xtls send: {}\n{}\n{}", sent.stdout, sent.stderr, listener.log());
    assert!(listener.files().is_empty(), "something arrived");
    let why = sent.stderr.lines().find(|line| line.contains("error")).unwrap_or_default();
    println!("  {}'s xtls: {why}", alice.jid());
    println!("  refused with exit status 4; nothing was sent, nothing arrived");
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or("?")
}

/// Returns the first digits of a fingerprint or hash.
fn short(text: &str) -> String {
    text.chars().take(23).collect::<String>() + "…"
}
