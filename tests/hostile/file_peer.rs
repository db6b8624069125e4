//! The peer of a session with `xtls`: it has shown a good key, and misbehaves all the same, with files and in pipes.

use std::fs;
use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use support::{
    programs::{Component, Listener, Options, Script, Xtls},
    random_file,
    servers::{Kind, Server},
};

const LONG: Duration = Duration::from_secs(120);
const MIB: usize = 1 << 20;
const TRANSPORTS: [&str; 2] = ["s5b", "ibb"];

/// A hostile alice, and bob with `xtls`.
struct Scene {
    // Dropped before the server.
    component: Component,
    alice: Xtls,
    bob: Xtls,
    server: Server,
}

impl Scene {
    fn start() -> Self {
        let server = Server::start(Kind::Prosody);
        let component = Component::start(&server, &Options::default());
        let (alice, bob) = (Xtls::with_key(&server, "alice"), Xtls::with_key(&server, "bob"));
        Self { component, alice, bob, server }
    }

    /// Runs a hostile peer that offers, as alice, a file to bob's listener. Returns the answers to it, and the
    /// listener, which has ended.
    fn offers(&self, transport: &str, more: Value, options: &[&str]) -> (Value, Listener) {
        self.bob.run(["trust", "forget", self.alice.jid()]);
        let mut listener = self.bob.listen(options);
        let mut settings = json!({
            "role": "sender", "does": "whole", "transport": transport,
            "name": "letter.bin", "size": 100_000, "bytes": 100_000, "sha256": null,
        });
        for (key, value) in more.as_object().unwrap() {
            settings[key] = value.clone();
        }
        let report = Script::start("hostile_peer.py", &self.server, settings).report();
        let status = listener.wait(LONG);
        let told = json!({"told": report["told"], "status": status, "answer": report["answer"]});
        (told, listener)
    }
}

/// Every name that a peer gives a file becomes a safe one, on the disk and on the screen.
#[test]
fn a_hostile_name_is_made_safe_wherever_it_is_shown() {
    let scene = Scene::start();
    let name = "../../.ssh/\u{61c}\u{202e}x\u{9b}31m\u{feff}\u{e0041}\u{2028}y.txt";
    let (told, listener) = scene.offers("ibb", json!({"name": name}), &[]);
    assert_eq!(told["status"], 0, "{told}: {}", listener.log());
    let names: Vec<_> = listener.files();
    assert_eq!(names[0].file_name().unwrap(), "x31my.txt", "{names:?}");
    let log = listener.log();
    for hidden in ['\u{61c}', '\u{202e}', '\u{9b}', '\u{feff}', '\u{e0041}', '\u{2028}'] {
        assert!(!log.contains(hidden), "U+{:04X}: {log}", u32::from(hidden));
    }
    fs::remove_file(&names[0]).unwrap();
}

/// A file that cannot be stored is refused before it is sent, and the sender is told why.
#[test]
fn an_offer_without_a_size_or_too_large_for_the_disk_is_refused() {
    let scene = Scene::start();
    let (told, listener) = scene.offers("s5b", json!({"does": "offer", "size": 1_u64 << 60}), &[]);
    assert!(told["told"].as_str().unwrap().contains("there is no room for the file"), "{told}");
    assert_eq!(told["status"], 5, "{}", listener.log());
    let (told, _) = scene.offers("s5b", json!({"does": "offer", "size": null}), &[]);
    assert!(told["told"].as_str().unwrap().contains("does not say how large"), "{told}");
    assert_eq!(told["status"], 5, "{told}");
    assert_eq!(listener.files().len() + listener.parts().len(), 0);
}

/// More or fewer bytes than announced, or an end that is not the sender's, is not the file.
#[test]
fn a_sender_that_breaks_its_word_lands_nothing() {
    let scene = Scene::start();
    let whole = STANDARD.encode(Sha256::digest(vec![b'x'; 100_000]));
    for transport in ["s5b", "ibb"] {
        let more = json!({"bytes": 100_001, "sha256": whole});
        let (told, listener) = scene.offers(transport, more, &[]);
        assert_eq!(told["status"], 1, "{told}: {}", listener.log());
        assert!(told["told"].as_str().unwrap().contains("more than it announced"), "{told}");
        assert!(listener.files().is_empty() && listener.parts().is_empty(), "{transport}");

        // In the middle, and at the very end: the carrier of the stream may have changed size and hash of the offer.
        for (bytes, sha256) in
            [(60_000, json!(null)), (100_000, json!(null)), (100_000, json!(whole))]
        {
            let cut = json!({"does": "cut", "bytes": bytes, "sha256": sha256});
            let (told, listener) = scene.offers(transport, cut, &[]);
            assert_ne!(told["status"], 0, "{transport} {bytes} {told}: {}", listener.log());
            assert_eq!(listener.files().len(), 0, "{transport} {bytes}: {}", listener.log());
            for part in listener.parts() {
                fs::remove_file(part).unwrap();
            }
        }
    }
}

/// The kept part of a file stays as it is until the peer that offers it has proven to be its sender.
#[test]
fn a_part_is_not_touched_for_somebody_who_has_proven_nothing() {
    let scene = Scene::start();
    let whole = Sha256::digest(vec![b'x'; 100_000]);
    let received = scene.bob.home().join("received");
    fs::create_dir_all(&received).unwrap();
    let sender = HEXLOWER.encode(&Sha256::digest("alice@example.test")[..8]);
    let hash = HEXLOWER.encode(&whole);
    let part = received.join(format!(".xtls-{hash}-{sender}.part"));
    let content = vec![b'x'; 40_000];
    fs::write(&part, &content).unwrap();
    fs::set_permissions(&part, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let sha256 = STANDARD.encode(whole);

    // The policy refuses the key that was shown, because another one is known.
    let print = "AB".repeat(32);
    assert_eq!(scene.bob.run(["trust", "set", scene.alice.jid(), &print]).code, 0);
    let mut listener = scene.bob.listen(&[]);
    let settings = json!({
        "role": "sender", "does": "offer", "transport": "s5b", "name": "letter.bin",
        "size": 30_000, "bytes": 0, "sha256": sha256,
    });
    let _report = Script::start("hostile_peer.py", &scene.server, settings).report();
    assert_eq!(listener.wait(LONG), 4, "{}", listener.log());
    assert_eq!(fs::read(&part).unwrap(), content, "untouched, also by an offer that is shorter");

    // Its sender resumes it.
    let (told, listener) = scene.offers("s5b", json!({"bytes": 60_000, "sha256": sha256}), &[]);
    assert_eq!(told["answer"], "40000", "{told}");
    assert_eq!(told["status"], 0, "{told}: {}", listener.log());
    assert_eq!(fs::read(&listener.files()[0]).unwrap(), vec![b'x'; 100_000]);
    assert!(!part.exists(), "{}", scene.component.log());
}

/// A peer that claims success and cuts the stream, or that ends its own direction first and goes, has confirmed
/// nothing.
#[test]
fn what_a_peer_has_not_read_is_not_sent() {
    let scene = Scene::start();
    scene.bob.run(["trust", "forget", scene.alice.jid()]);
    let input = scene.bob.home().join("letter");
    random_file(&input, 4 * MIB);
    for transport in TRANSPORTS {
        for (does, command) in [("success", "pipe"), ("early", "pipe"), ("success", "send")] {
            let settings = json!({
                "role": "receiver", "does": does, "transport": transport, "bytes": 100_000,
            });
            let mut peer = Script::start("hostile_peer.py", &scene.server, settings);
            peer.wait_for("listening");
            // Each run has a key of its own.
            scene.bob.run(["trust", "forget", scene.alice.jid()]);
            let file = input.to_str().unwrap();
            let args = match command {
                "send" => vec!["send", scene.alice.jid(), file],
                _ => vec!["pipe", scene.alice.jid()],
            };
            let mut sent = scene.bob.start_between(args, "letter", "out");
            let status = sent.wait(LONG).code();
            let case = format!("{command}, {does} over {transport}: {}", sent.log());
            assert!(status.is_some_and(|status| status != 0), "{case}");
            let _report = peer.report();
        }
    }
}
