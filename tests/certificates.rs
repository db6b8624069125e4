//! OpenPGP certificates of GnuPG and Sequoia in the registry: prolonged, grown, revoked, and added again in any order.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::path::Path;
use std::process::{Command, Stdio};

use fingerpost::print::Method;
use fingerpost::registry::material::Material;
use fingerpost::registry::model::{
    Event, Key, KeyId, NewKey, NotAllowed, Source, State, Visibility,
};
use fingerpost::registry::store::{Store, StoreError};
use fingerpost::registry::verdict::{Verdict, judge};
use fingerpost::registry::{Notice, Options, Registry, proof};
use jid::{BareJid, Jid};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};

/// A GnuPG with a key of alice's.
struct Gpg {
    home: TempDir,
    fingerprint: String,
}

impl Gpg {
    /// A key that signs and is valid for `time`.
    fn with_key(time: &str) -> Self {
        let home = tempfile::Builder::new().prefix("fingerpost-gpg-").tempdir().unwrap();
        let mut this = Self { home, fingerprint: String::new() };
        this.run(&["--quick-gen-key", "Alice <xmpp:alice@example.org>", "ed25519", "sign", time]);
        this.fingerprint = this.fingerprints("fpr").remove(0);
        this
    }

    /// Another machine with the same key.
    fn copy(&self) -> Self {
        let home = tempfile::Builder::new().prefix("fingerpost-gpg-").tempdir().unwrap();
        let done = Command::new("cp")
            .arg("-a")
            .args(["pubring.kbx", "private-keys-v1.d", "trustdb.gpg", "openpgp-revocs.d"])
            .arg(home.path())
            .current_dir(self.home.path())
            .status();
        assert!(done.unwrap().success());
        Self { home, fingerprint: self.fingerprint.clone() }
    }

    fn fingerprints(&self, _: &str) -> Vec<String> {
        let listed = self.run(&["--with-colons", "--list-keys"]);
        let listed = String::from_utf8(listed).unwrap();
        let of = |line: &str| Some(line.strip_prefix("fpr:")?.trim_matches(':').to_owned());
        listed.lines().filter_map(of).collect()
    }

    fn run(&self, args: &[&str]) -> Vec<u8> {
        self.run_with(args, "")
    }

    fn run_with(&self, args: &[&str], input: &str) -> Vec<u8> {
        use std::io::Write;
        let mut child = Command::new("gpg")
            .args(["--no-tty", "--yes", "--pinentry-mode", "loopback", "--passphrase", ""])
            .args(if input.is_empty() { &["--batch"][..] } else { &["--command-fd", "0"] })
            .arg("--homedir")
            .arg(self.home.path())
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let done = child.wait_with_output().unwrap();
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
        done.stdout
    }

    fn export(&self) -> Vec<u8> {
        self.run(&["--export", &self.fingerprint])
    }

    /// A detached signature by the key with this fingerprint, and no other.
    fn sign(&self, by: &str, message: &[u8]) -> Vec<u8> {
        let file = self.home.path().join("message");
        std::fs::write(&file, message).unwrap();
        let by = format!("{by}!");
        self.run(&["-u", &by, "--detach-sign", "-o", "-", file.to_str().unwrap()])
    }

    /// Takes the revocation that GnuPG makes with each key.
    fn revoke(&self) {
        let folder = self.home.path().join("openpgp-revocs.d");
        let file = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
        let text = std::fs::read_to_string(&file).unwrap().replace(":-----BEGIN", "-----BEGIN");
        let ready = self.home.path().join("revocation");
        std::fs::write(&ready, text).unwrap();
        self.run(&["--import", ready.to_str().unwrap()]);
    }
}

impl Drop for Gpg {
    fn drop(&mut self) {
        let _ = Command::new("gpgconf")
            .args(["--kill", "all", "--homedir"])
            .arg(self.home.path())
            .output();
    }
}

fn alice() -> Jid {
    Jid::new("alice@example.org/here").unwrap()
}

fn owner() -> BareJid {
    alice().to_bare()
}

async fn registry() -> Registry {
    let store = Store::open("sqlite::memory:", 1, true).await.unwrap();
    let component = BareJid::new("xtls.example.org").unwrap();
    Registry::new(store, Options { component, visibility: Visibility::Everyone, keys_per_user: 9 })
}

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

async fn add(registry: &Registry, certificate: &[u8]) -> Result<(Key, Option<Notice>), StoreError> {
    let material = Material::parse(Method::OpenPgp, certificate).unwrap();
    let new = NewKey::of_material(material, &[], "pgp", Source::Self_).unwrap();
    registry.add(&alice(), &new, now()).await
}

async fn events(registry: &Registry) -> Vec<Event> {
    let log = registry.store().audit(Some(&owner()), 100).await.unwrap();
    log.into_iter().map(|entry| entry.event).collect()
}

async fn material(registry: &Registry, id: KeyId) -> Vec<u8> {
    registry.store().material(id).await.unwrap().unwrap()
}

/// What a peer is told of the key at a time.
async fn verdict(registry: &Registry, time: OffsetDateTime) -> Verdict {
    let profile = registry.profile(&owner()).await.unwrap();
    let keys: Vec<Key> = profile.keys.iter().map(|key| key.as_of(time)).collect();
    judge(&keys, Some(Method::OpenPgp), &keys[0].prints[0]).verdict
}

async fn proves(registry: &Registry, key: &Key, gpg: &Gpg, by: &str) -> bool {
    let (nonce, _) = registry.challenge(&owner(), key.id, now()).await.unwrap();
    let message = proof::message(registry.component(), &owner(), &nonce);
    let signature = gpg.sign(by, &message);
    registry.prove(&alice(), key.id, &signature, now()).await.is_ok()
}

#[tokio::test]
async fn a_certificate_that_was_prolonged_is_valid_for_longer() {
    let gpg = Gpg::with_key("1d");
    let short = gpg.export();
    gpg.run(&["--quick-set-expire", &gpg.fingerprint, "2y"]);
    let long = gpg.export();
    let registry = registry().await;
    let (first, _) = add(&registry, &short).await.unwrap();
    let in_a_month = now() + Duration::days(30);
    assert_eq!(verdict(&registry, in_a_month).await, Verdict::Superseded);
    let (second, told) = add(&registry, &long).await.unwrap();
    assert_eq!((second.id, second.state), (first.id, State::Active));
    assert!(second.expires > Some(now() + Duration::days(700)), "{second:?}");
    assert!(told.unwrap().text.contains("was changed"));
    assert_eq!(verdict(&registry, in_a_month).await, Verdict::Match);
    // The old state again, or the new one, says nothing new.
    let before = material(&registry, first.id).await;
    for certificate in [&short, &long, &before] {
        let (again, told) = add(&registry, certificate).await.unwrap();
        assert_eq!((again, told), (second.clone(), None));
    }
    assert_eq!(material(&registry, first.id).await, before);
    assert_eq!(events(&registry).await, [Event::Added, Event::Updated]);
    // The other order gives the same.
    let other = self::registry().await;
    add(&other, &long).await.unwrap();
    let (key, _) = add(&other, &short).await.unwrap();
    assert_eq!(key.expires, second.expires);
}

#[tokio::test]
async fn a_certificate_that_revokes_itself_revokes_the_key_for_good() {
    let gpg = Gpg::with_key("1y");
    let before = gpg.export();
    let registry = registry().await;
    let (key, _) = add(&registry, &before).await.unwrap();
    gpg.revoke();
    let after = gpg.export();
    let (revoked, told) = add(&registry, &after).await.unwrap();
    assert_eq!((revoked.id, revoked.state), (key.id, State::Revoked));
    assert!(told.unwrap().text.contains("was revoked, for good,"));
    assert_eq!(verdict(&registry, now()).await, Verdict::Revoked);
    assert_eq!(events(&registry).await, [Event::Added, Event::Revoked]);
    let kept = Material::parse(Method::OpenPgp, &material(&registry, key.id).await).unwrap();
    assert!(kept.revocation.is_some(), "others can see it too");
    for certificate in [&before, &after] {
        let (again, told) = add(&registry, certificate).await.unwrap();
        assert_eq!((again.state, told), (State::Revoked, None));
    }
    // Of a key that nobody has heard of there is nothing to revoke.
    let other = self::registry().await;
    let refused = add(&other, &after).await.unwrap_err();
    assert!(matches!(refused, StoreError::NotAllowed(NotAllowed::CarriesRevocation)), "{refused}");
}

#[tokio::test]
async fn subkeys_and_user_ids_of_two_machines_come_together() {
    let one = Gpg::with_key("1y");
    let two = one.copy();
    let registry = registry().await;
    let (key, _) = add(&registry, &one.export()).await.unwrap();
    one.run(&["--quick-add-key", &one.fingerprint, "ed25519", "sign", "1y"]);
    two.run(&["--quick-add-uid", &two.fingerprint, "Alice <alice@example.net>"]);
    let subkey = one.fingerprints("sub").remove(1);
    let (_, told) = add(&registry, &one.export()).await.unwrap();
    assert!(told.is_some(), "a new subkey is a change");
    assert!(proves(&registry, &key, &one, &subkey).await, "any current signing subkey proves");
    add(&registry, &two.export()).await.unwrap();
    let merged = material(&registry, key.id).await;
    let third = one.copy();
    third.run(&["--delete-secret-and-public-key", &one.fingerprint]);
    let file = third.home.path().join("merged");
    std::fs::write(&file, &merged).unwrap();
    third.run(&["--import", file.to_str().unwrap()]);
    let seen = String::from_utf8(third.run(&["--with-colons", "--check-sigs"])).unwrap();
    assert_eq!(seen.matches("\nuid:").count(), 2, "{seen}");
    assert_eq!(seen.matches("\nsub:").count(), 1, "{seen}");
    assert!(!seen.contains("sig:-:"), "each signature holds: {seen}");
    let second = |line: &&str| line.starts_with("uid:") && line.contains("alice@example.net");
    assert_eq!(seen.lines().filter(second).count(), 1, "{seen}");
    let (_, told) = add(&registry, &merged).await.unwrap();
    assert_eq!(told, None);
}

#[tokio::test]
async fn a_revoked_subkey_stays_revoked_whatever_comes_again() {
    let gpg = Gpg::with_key("1y");
    gpg.run(&["--quick-add-key", &gpg.fingerprint, "ed25519", "sign", "1y"]);
    let with_subkey = gpg.export();
    let stolen = gpg.copy();
    let subkey = gpg.fingerprints("sub").remove(1);
    let registry = registry().await;
    let (key, _) = add(&registry, &with_subkey).await.unwrap();
    let fingerprint = gpg.fingerprint.clone();
    gpg.run_with(&["--edit-key", &fingerprint], "key 1\nrevkey\ny\n1\n\ny\nsave\n");
    add(&registry, &gpg.export()).await.unwrap();
    for _ in 0..2 {
        assert!(!proves(&registry, &key, &stolen, &subkey).await);
        add(&registry, &with_subkey).await.unwrap();
    }
    assert!(proves(&registry, &key, &stolen, &fingerprint).await, "the primary key is as it was");
}

#[tokio::test]
async fn a_revoked_user_id_does_not_lift_the_end_of_validity() {
    let gpg = Gpg::with_key("1y");
    let registry = registry().await;
    let (key, _) = add(&registry, &gpg.export()).await.unwrap();
    gpg.run(&["--quick-add-uid", &gpg.fingerprint, "Alice <alice@example.net>"]);
    gpg.run(&["--quick-revoke-uid", &gpg.fingerprint, "Alice <alice@example.net>"]);
    let (after, _) = add(&registry, &gpg.export()).await.unwrap();
    assert_eq!(after.expires, key.expires);
}

#[tokio::test]
async fn certificates_published_in_pep_are_merged_too() {
    let gpg = Gpg::with_key("1d");
    let registry = registry().await;
    let refresh = async |certificate: Vec<u8>| {
        registry.refresh_pep(&owner(), &[certificate], now()).await.unwrap()
    };
    assert_eq!(refresh(gpg.export()).await.len(), 1);
    gpg.run(&["--quick-set-expire", &gpg.fingerprint, "2y"]);
    assert_eq!(refresh(gpg.export()).await.len(), 1);
    assert_eq!(verdict(&registry, now() + Duration::days(30)).await, Verdict::Match);
    gpg.revoke();
    let told = refresh(gpg.export()).await;
    assert!(told[0].text.contains("was revoked, for good,"), "{told:?}");
    assert_eq!(verdict(&registry, now()).await, Verdict::Revoked);
    assert_eq!(refresh(gpg.export()).await, []);
}

#[tokio::test]
async fn a_replacement_may_be_a_newer_state_of_a_known_key() {
    let (old, new) = (Gpg::with_key("1y"), Gpg::with_key("1d"));
    let registry = registry().await;
    let (old, _) = add(&registry, &old.export()).await.unwrap();
    let (known, _) = add(&registry, &new.export()).await.unwrap();
    new.run(&["--quick-set-expire", &new.fingerprint, "2y"]);
    let material = Material::parse(Method::OpenPgp, &new.export()).unwrap();
    let replacing = NewKey::of_material(material, &[], "", Source::Self_).unwrap();
    let replacing = replacing.replacing(Some(old.id));
    let (key, told) = registry.add(&alice(), &replacing, now()).await.unwrap();
    assert_eq!((key.id, told.is_some()), (known.id, true));
    assert!(key.expires > known.expires);
    let profile = registry.profile(&owner()).await.unwrap();
    let state = profile.keys.iter().find(|key| key.id == old.id).unwrap().state;
    assert_eq!(state, State::Superseded);
}

fn sq(folder: &Path, args: &[&str]) -> Vec<u8> {
    let done = Command::new("sq").args(args).current_dir(folder).output().unwrap();
    assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    done.stdout
}

#[tokio::test]
async fn a_certificate_of_sequoia_revokes_itself_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let user = ["--userid", "Alice <xmpp:alice@example.org>", "--export", "key.pgp"];
    sq(dir, &[&["key", "generate"], &user[..]].concat());
    sq(dir, &["key", "extract-cert", "--output", "cert.pgp", "key.pgp"]);
    let why = [
        "--certificate",
        "cert.pgp",
        "--revocation-key",
        "key.pgp",
        "compromised",
        "It was stolen",
    ];
    let revocation = sq(dir, &[&["revoke", "certificate"], &why[..]].concat());
    std::fs::write(dir.join("revocation.pgp"), revocation).unwrap();
    let packets = |name| sq(dir, &["dearmor", name]);
    let registry = registry().await;
    let (key, _) = add(&registry, &packets("cert.pgp")).await.unwrap();
    // The revocation is at the end, where one that was put there by hand is.
    let after = [packets("cert.pgp"), packets("revocation.pgp")].concat();
    let (revoked, told) = add(&registry, &after).await.unwrap();
    assert_eq!((revoked.id, revoked.state), (key.id, State::Revoked));
    assert_eq!(revoked.reason, "compromised: It was stolen");
    assert!(told.is_some());
}

#[test]
fn several_certificates_are_refused_and_nothing_sent_is_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    for name in ["a", "b"] {
        sq(
            dir,
            &["key", "generate", "--userid", "<a@example.org>", "--export", &format!("{name}.key")],
        );
        let [cert, key] = [format!("{name}.cert"), format!("{name}.key")];
        sq(dir, &["key", "extract-cert", "--output", &cert, &key]);
    }
    let read = |name| std::fs::read_to_string(dir.join(name)).unwrap();
    let both = format!("{}{}", read("a.cert"), read("b.cert"));
    let refused = Material::parse(Method::OpenPgp, both.as_bytes()).unwrap_err().to_string();
    assert!(refused.contains("several"), "{refused}");
    let both = format!("{}{}", read("a.key"), read("b.key"));
    let refused = fingerpost::tls::openpgp::OpenPgpKey::parse(both.as_bytes()).unwrap_err();
    assert!(refused.to_string().contains("several certificates"), "{refused}");
    let pem = "-----BEGIN CERTIFICATE-----\nTk9UIEEgQ0VSVElGSUNBVEU=\n-----END CERTIFICATE-----\n";
    let armour = read("a.cert");
    for (method, sent) in [
        (Method::OpenPgp, pem.as_bytes()),
        (Method::OpenPgp, &pem.repeat(2).into_bytes()),
        (Method::OpenPgp, b"\xc6\x04NOT A CERTIFICATE"),
        (Method::X509, armour.as_bytes()),
        (Method::X509, b"NOT A CERTIFICATE"),
        (Method::X509, b"\x30\x11NOT A CERTIFICATE"),
    ] {
        let said = Material::parse(method, sent).unwrap_err().to_string();
        assert!(said.len() < 200 && !said.contains("NOT A") && !said.contains("84"), "{said}");
    }
}
