//! OpenPGP certificates of GnuPG and Sequoia in the registry: prolonged, extended, revoked, and added again in any
//! order; and keys and fingerprints from OpenSSL, GnuTLS, Java, GnuPG and Sequoia.

use std::path::Path;
use std::process::{Command, Stdio};

use fingerpost::registry::{
    KeyNotice, Registry, RegistryOptions,
    model::{AuditEvent, Key, NewKey, NotAllowed, Source, Visibility},
    store::{Store, error::StoreError},
    verdict::judge,
};
use fingerpost_endpoint::Error;
use fingerpost_secure::{
    identity::Identity,
    material::{Material, remark},
    material_error::MaterialError,
    stream::connect,
    x509,
};
use fingerpost_wire::{
    key::{KeyId, State, Verdict},
    print::{HashKind, Method, Print, PrintError},
    stanza::RequestKind,
};
use jid::{BareJid, Jid};
use support::process::Process;
use support::{free_port, wait_for};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};

/// A GnuPG home with a key of alice's.
struct Gpg {
    home: TempDir,
    fingerprint: String,
}

impl Gpg {
    /// Creates a key that signs and is valid for `time`.
    fn with_key(time: &str) -> Self {
        let home = tempfile::Builder::new().prefix("fingerpost-gpg-").tempdir().unwrap();
        let mut this = Self { home, fingerprint: String::new() };
        this.run(&["--quick-gen-key", "Alice <xmpp:alice@example.org>", "ed25519", "sign", time]);
        this.fingerprint = this.fingerprints("fpr").remove(0);
        this
    }

    /// Returns another machine with the same key.
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

    /// Returns a detached signature by exactly the key with this fingerprint.
    fn sign(&self, by: &str, message: &[u8]) -> Vec<u8> {
        let file = self.home.path().join("message");
        std::fs::write(&file, message).unwrap();
        let by = format!("{by}!");
        self.run(&["-u", &by, "--detach-sign", "-o", "-", file.to_str().unwrap()])
    }

    /// Takes the revocation that GnuPG makes with each key.
    fn revoke(&self) {
        let directory = self.home.path().join("openpgp-revocs.d");
        let file = std::fs::read_dir(directory).unwrap().next().unwrap().unwrap().path();
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
    Registry::new(
        store,
        RegistryOptions { component, visibility: Visibility::Everyone, keys_per_user: 9 },
    )
}

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

async fn add(
    registry: &Registry,
    certificate: &[u8],
) -> Result<(Key, Option<KeyNotice>), StoreError> {
    let material = Material::parse(Method::OpenPgp, certificate).unwrap();
    let new = NewKey::of_material(material, &[], "pgp", Source::Self_).unwrap();
    registry.add(&alice(), &new, now()).await
}

async fn events(registry: &Registry) -> Vec<AuditEvent> {
    let log = registry.store().audit(Some(&owner()), 100).await.unwrap();
    log.into_iter().map(|entry| entry.event).collect()
}

async fn material(registry: &Registry, id: KeyId) -> Vec<u8> {
    registry.store().material(id).await.unwrap().unwrap()
}

/// Returns the registry's view of the key for a peer at a time.
async fn verdict(registry: &Registry, time: OffsetDateTime) -> Verdict {
    let profile = registry.profile(&owner()).await.unwrap();
    let keys: Vec<Key> = profile.keys.iter().map(|key| key.as_of(time)).collect();
    judge(&keys, Some(Method::OpenPgp), &keys[0].prints[0]).verdict
}

async fn proves(registry: &Registry, key: &Key, gpg: &Gpg, by: &str) -> bool {
    let (nonce, _) = registry.challenge(&owner(), key.id, now()).await.unwrap();
    let message = fingerpost_wire::proof::message(registry.component(), &owner(), &nonce);
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
    // The old state again, or the new one, adds nothing.
    let before = material(&registry, first.id).await;
    for certificate in [&short, &long, &before] {
        let (again, told) = add(&registry, certificate).await.unwrap();
        assert_eq!((again, told), (second.clone(), None));
    }
    assert_eq!(material(&registry, first.id).await, before);
    assert_eq!(events(&registry).await, [AuditEvent::Added, AuditEvent::Updated]);
    // The other order has the same result.
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
    assert_eq!(events(&registry).await, [AuditEvent::Added, AuditEvent::Revoked]);
    let kept = Material::parse(Method::OpenPgp, &material(&registry, key.id).await).unwrap();
    assert!(kept.revocation.is_some(), "others can see it too");
    for certificate in [&before, &after] {
        let (again, told) = add(&registry, certificate).await.unwrap();
        assert_eq!((again.state, told), (State::Revoked, None));
    }
    // An unknown key cannot be revoked.
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

fn sq(directory: &Path, args: &[&str]) -> Vec<u8> {
    let done = Command::new("sq").args(args).current_dir(directory).output().unwrap();
    assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    done.stdout
}

#[tokio::test]
async fn a_certificate_of_sequoia_revokes_itself_with_its_reason() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
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
    // The revocation is at the end, where a manually appended one is.
    let after = [packets("cert.pgp"), packets("revocation.pgp")].concat();
    let (revoked, told) = add(&registry, &after).await.unwrap();
    assert_eq!((revoked.id, revoked.state), (key.id, State::Revoked));
    assert_eq!(revoked.reason, "compromised: It was stolen");
    assert!(told.is_some());
}

#[test]
fn several_certificates_are_refused_and_nothing_sent_is_repeated() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
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
    let refused = fingerpost_secure::openpgp::OpenPgpKey::parse(both.as_bytes()).unwrap_err();
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

/// Runs a tool in a directory and returns its output.
fn tool(directory: &Path, line: &str) -> String {
    let done = Command::new("sh").args(["-ec", line]).current_dir(directory).output().unwrap();
    assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// Returns an OpenSSL certificate in `name.pem`, with its key in `name.key`.
fn openssl(directory: &Path, name: &str, key: &str, certificate: &str) -> Vec<u8> {
    tool(directory, &format!("openssl genpkey {key} -out {name}.key 2>&1"));
    let request = format!("openssl req -new -key {name}.key -subj /CN={name}");
    tool(directory, &format!("{request} {certificate}"));
    tool(directory, &format!("openssl x509 -in {name}.pem -outform DER -out {name}.der"));
    std::fs::read(directory.join(format!("{name}.der"))).unwrap()
}

#[test]
fn fingerprints_are_read_as_tools_print_them() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let der = openssl(dir, "c", "-algorithm ed25519", "-x509 -days 30 -out c.pem");
    let of = |hash| Print::of_certificate(hash, &der).unwrap();
    let (certificate, spki) = (of(HashKind::Sha256), of(HashKind::SpkiSha256));
    for line in [
        "openssl x509 -in c.pem -noout -fingerprint -sha256",
        "openssl x509 -in c.pem -noout -text -fingerprint -sha256",
        "openssl dgst -sha256 c.der",
        "openssl dgst -sha256 -c <c.der",
        "sha256sum c.der",
        "sha256sum --tag c.der",
        "certtool --fingerprint --hash sha256 --infile c.pem",
        "certtool -i --infile c.pem",
        "keytool -printcert -file c.pem",
    ] {
        let printed = tool(dir, line);
        let read =
            Print::pin(&printed, Method::X509).unwrap_or_else(|e| panic!("{line}: {e}: {printed}"));
        assert_eq!(read, certificate, "{line}: {printed}");
        // A page with both is about a certificate, whatever the reader has asked for.
        assert_eq!(Print::parse(&printed, None).as_ref(), Ok(&certificate), "{line}");
        assert!(
            !matches!(Print::pin(&printed, Method::OpenPgp), Err(PrintError::Missing)),
            "{line}"
        );
    }
    for line in [
        "certtool --key-id --hash sha256 --infile c.pem",
        "certtool --pubkey-info --infile c.pem",
        "openssl x509 -in c.pem -noout -pubkey | openssl pkey -pubin -outform DER | sha256sum",
    ] {
        let printed = tool(dir, line);
        let read =
            Print::pin(&printed, Method::X509).unwrap_or_else(|e| panic!("{line}: {e}: {printed}"));
        // Bare digits do not say what they belong to; the trust store accepts both.
        assert!(read.same_bytes(&spki), "{line}: {printed}");
    }
    for (line, expected) in [
        ("openssl x509 -in c.pem -noout -fingerprint", PrintError::Sha1),
        ("certtool --fingerprint --infile c.pem", PrintError::Sha1OrOpenPgp),
        ("openssl x509 -in c.pem -noout -fingerprint -md5", PrintError::OtherHash("MD5")),
        ("openssl x509 -in c.pem -noout -fingerprint -sha512", PrintError::OtherHash("SHA-512")),
        ("ssh-keygen -q -t ed25519 -N '' -f s; ssh-keygen -l -f s.pub", PrintError::Ssh),
        ("ssh-keygen -l -E md5 -f s.pub", PrintError::OtherHash("MD5")),
        ("openssl x509 -in c.pem -noout -subject", PrintError::Missing),
    ] {
        let printed = tool(dir, line);
        assert_eq!(Print::pin(&printed, Method::X509), Err(expected), "{line}: {printed}");
    }

    let gpg = Gpg::with_key("1y");
    gpg.run(&["--quick-add-key", &gpg.fingerprint, "cv25519", "encr", "1y"]);
    std::fs::write(dir.join("p.pgp"), gpg.export()).unwrap();
    let expected = Print::parse(&gpg.fingerprint, None).unwrap();
    let gpg_prints = [
        &["--fingerprint"][..],
        &["--fingerprint", "--fingerprint"],
        &["--list-keys"],
        &["--list-keys", "--keyid-format", "0xlong"],
        &["--list-keys", "--with-subkey-fingerprint"],
        &["--list-secret-keys", "--with-keygrip"],
        &["--with-colons", "--list-keys"],
        &["--with-colons", "--fingerprint", "--fingerprint"],
        &["--show-keys", "--with-fingerprint", dir.join("p.pgp").to_str().unwrap()],
    ]
    .map(|args| (args.join(" "), String::from_utf8(gpg.run(args)).unwrap()));
    let sq_prints = ["inspect p.pgp", "keyring list p.pgp", "packet dump p.pgp"]
        .map(|line| (line.to_owned(), tool(dir, &format!("sq {line} 2>/dev/null"))));
    for (line, printed) in gpg_prints.into_iter().chain(sq_prints) {
        let read = Print::pin(&printed, Method::OpenPgp)
            .unwrap_or_else(|e| panic!("{line}: {e}: {printed}"));
        assert_eq!(read, expected, "{line}: {printed}");
        for each in printed.lines().filter(|line| line.starts_with("fpr:")).take(1) {
            assert_eq!(Print::pin(each, Method::OpenPgp).as_ref(), Ok(&expected), "{each}");
            assert_eq!(Print::pin(each, Method::X509), Err(PrintError::OfOpenPgp), "{each}");
        }
    }
}

/// Connects by TLS 1.3 to an `openssl s_server` with a certificate; returns the text for the user.
async fn session_with(directory: &Path, name: &str, der: &[u8]) -> Result<(), String> {
    let port = free_port();
    let mut command = Command::new("openssl");
    command
        .args(["s_server", "-tls1_3", "-quiet", "-cipher", "ALL:@SECLEVEL=0"])
        .args(["-accept", &format!("127.0.0.1:{port}"), "-cert"])
        .arg(directory.join(format!("{name}.pem")))
        .arg("-key")
        .arg(directory.join(format!("{name}.key")));
    let log = directory.join(format!("{name}.log"));
    let server = Process::start(command, &log);
    wait_for(
        "s_server",
        support::PATIENCE,
        || server.log(),
        || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok(),
    );
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let pins = vec![Print::of_certificate(HashKind::Sha256, der).unwrap()];
    let own = Identity::generate(&owner()).unwrap();
    match connect(stream, &own, pins).await {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::from(error).to_string()),
    }
}

#[tokio::test]
async fn a_certificate_with_which_no_session_can_come_about_is_told_why() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let v3 = "-x509 -days 30 -out NAME.pem";
    let v1 = "-out v1.csr; openssl x509 -req -in v1.csr -key v1.key -out v1.pem -days 30 2>&1";
    let critical = "-x509 -days 30 -out critical.pem -addext 1.2.3.4=critical,ASN1:NULL";
    let rows = [
        ("v1", "-algorithm ed25519", v1, Some("version 1")),
        ("critical", "-algorithm ed25519", critical, Some("critical extension 1.2.3.4")),
        (
            "explicit",
            "-algorithm EC -pkeyopt ec_paramgen_curve:P-256 -pkeyopt ec_param_enc:explicit",
            v3,
            Some("explicit parameters"),
        ),
        ("k1", "-algorithm EC -pkeyopt ec_paramgen_curve:secp256k1", v3, Some("secp256k1")),
        (
            "brainpool",
            "-algorithm EC -pkeyopt ec_paramgen_curve:brainpoolP256r1",
            v3,
            Some("brainpoolP256r1"),
        ),
        ("p224", "-algorithm EC -pkeyopt ec_paramgen_curve:secp224r1", v3, Some("P-224")),
        ("ed448", "-algorithm ed448", v3, Some("Ed448")),
        ("rsa1024", "-algorithm RSA -pkeyopt rsa_keygen_bits:1024", v3, Some("1024 bits")),
        ("pss", "-algorithm RSA-PSS -pkeyopt rsa_keygen_bits:2048", v3, Some("RSASSA-PSS")),
        ("ed25519", "-algorithm ed25519", v3, None),
        ("p256", "-algorithm EC -pkeyopt ec_paramgen_curve:P-256", v3, None),
        ("p384", "-algorithm EC -pkeyopt ec_paramgen_curve:P-384", v3, None),
        ("p521", "-algorithm EC -pkeyopt ec_paramgen_curve:P-521", v3, None),
        ("rsa2048", "-algorithm RSA -pkeyopt rsa_keygen_bits:2048", v3, None),
    ];
    for (name, key, certificate, why) in rows {
        let der = openssl(dir, name, key, &certificate.replace("NAME", name));
        let found = x509::check(&der).map_err(|fault| fault.to_string());
        assert_eq!(found.is_ok(), why.is_none(), "{name}: {found:?}");
        // The text matches the behaviour of TLS.
        let session = session_with(dir, name, &der).await;
        assert_eq!(session.is_ok(), why.is_none(), "{name}: {session:?}");
        let material = Material::parse(Method::X509, &der).unwrap();
        let said = remark(Method::X509, &material.bytes, now());
        let Some(why) = why else {
            assert_eq!(said, None, "{name}");
            continue;
        };
        assert!(said.as_ref().is_some_and(|said| said.contains(why)), "{name}: {said:?}");
        let read = session.unwrap_err();
        assert!(!read.contains("does not match"), "{name}: {read}");
        // OpenSSL itself may be the first to find that its key fits none of our algorithms.
        assert!(read.contains(why) || read.contains("signature algorithm"), "{name}: {read}");
    }
}

#[test]
fn pem_is_read_as_people_have_it() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let der = openssl(
        dir,
        "c",
        "-algorithm ed25519",
        "-x509 -days 30 -out c.pem -addext 2.5.29.16=DER:30:00",
    );
    let pem = tool(dir, "cat c.pem");
    let bundle = "openssl pkcs12 -export -in c.pem -inkey c.key -name 'my private key' -passout pass:x -out c.p12";
    tool(dir, bundle);
    let utf16 = |order: fn(u16) -> [u8; 2]| {
        ["\u{feff}", &pem].concat().encode_utf16().flat_map(order).collect::<Vec<u8>>()
    };
    let texts = [
        pem.clone().into_bytes(),
        tool(dir, "openssl x509 -in c.pem -text").into_bytes(),
        tool(dir, "openssl pkcs12 -in c.p12 -nokeys -passin pass:x").into_bytes(),
        tool(dir, "openssl x509 -in c.pem -trustout -addtrust serverAuth").into_bytes(),
        tool(dir, "certtool -i --infile c.pem").into_bytes(),
        format!("\u{feff}{pem}").into_bytes(),
        utf16(u16::to_le_bytes),
        utf16(u16::to_be_bytes),
        pem.replace('\n', "\r\n").into_bytes(),
        pem.replace('\n', "\r").into_bytes(),
        pem.replace('\n', "\n    ").into_bytes(),
        pem.replace('\n', " \n\n").into_bytes(),
        pem.replace("CERTIFICATE", "X509 CERTIFICATE").into_bytes(),
        format!("subject=CN = c\nissuer=CN = c\n{pem}---\nServer certificate\n").into_bytes(),
    ];
    for text in texts {
        let read = Material::parse(Method::X509, &text);
        let shown = String::from_utf8_lossy(&text).into_owned();
        assert_eq!(read.map(|material| material.bytes), Ok(der.clone()), "{shown}");
    }
    let refused = |text: &str| Material::parse(Method::X509, text.as_bytes()).unwrap_err();
    assert_eq!(refused(&format!("{pem}\nand\n{pem}")), MaterialError::Several);
    let key = tool(dir, "openssl pkey -in c.key -text");
    assert_eq!(refused(&key), MaterialError::PrivateKey);
    assert_eq!(refused(&format!("{pem}{key}")), MaterialError::PrivateKey);
    let all = tool(dir, "openssl pkcs12 -in c.p12 -nodes -passin pass:x");
    assert_eq!(refused(&all), MaterialError::PrivateKey);

    let gpg = Gpg::with_key("1y");
    let armour = String::from_utf8(gpg.run(&["--armor", "--export"])).unwrap();
    for text in [
        armour.clone(),
        format!("\u{feff}{armour}"),
        format!("My key, as promised:\r\n\r\n{}\r\nBye", armour.replace('\n', "\r\n")),
        armour.replace('\n', "\n  "),
    ] {
        let read = Material::parse(Method::OpenPgp, text.as_bytes());
        assert_eq!(read.map(|material| material.bytes), Ok(gpg.export()), "{text}");
    }
}

#[tokio::test]
async fn openpgp_keys_of_another_time_or_with_old_algorithms_are_told_in_their_own_words() {
    let home = || tempfile::Builder::new().prefix("fingerpost-gpg-").tempdir().unwrap();
    let made = |options: &[&str], algorithm: &str, expires: &str| {
        let mut gpg = Gpg { home: home(), fingerprint: String::new() };
        let user = "Alice <xmpp:alice@example.org>";
        gpg.run(&[options, &["--quick-gen-key", user, algorithm, "sign", expires]].concat());
        gpg.fingerprint = gpg.fingerprints("fpr").remove(0);
        gpg.export()
    };
    let sha1 = ["--allow-weak-digest-algos", "--cert-digest-algo", "SHA1"];
    let future = ["--faked-system-time", "20990101T000000"];
    let past = ["--faked-system-time", "20200101T000000"];
    let registry = registry().await;
    for (certificate, says) in [
        (made(&future, "ed25519", "never"), Some("made in the future, at 2099-01-01")),
        (made(&past, "ed25519", "1y"), Some("has expired, at 2020-12-31")),
        (made(&sha1, "rsa2048", "never"), Some("use SHA-1 or MD5")),
        (made(&[], "ed25519", "1y"), None),
        (made(&[], "rsa2048", "never"), None),
        (made(&[], "nistp256", "never"), None),
    ] {
        let element: minidom::Element = format!(
            "<add xmlns='urn:fingerpost:keys:0'><key method='openpgp'><material>{}</material></key></add>",
            base64_of(&certificate)
        )
        .parse()
        .unwrap();
        let answer = registry.handle(&alice(), RequestKind::Set, &element, now()).await.unwrap();
        let answer = answer.answer.unwrap();
        let note = answer.get_child("note", "urn:fingerpost:keys:0").map(minidom::Element::text);
        match (says, &note) {
            (Some(says), Some(note)) => assert!(note.contains(says), "{note}"),
            (None, None) => {}
            _ => panic!("expected {says:?}: {note:?}"),
        }
        // An expired one is not shown as active to anyone.
        let expired = says.is_some_and(|says| says.starts_with("has expired"));
        for request in ["keys", "export"] {
            let get = minidom::Element::bare(request, "urn:fingerpost:keys:0");
            let listed = registry.handle(&alice(), RequestKind::Get, &get, now()).await.unwrap();
            let listed = listed.answer.unwrap();
            let exported = listed.get_child("keys", "urn:fingerpost:keys:0");
            let listed = exported.unwrap_or(&listed);
            let key = listed.children().find(|key| key.attr("id") == answer.attr("id")).unwrap();
            assert_eq!(key.attr("expired") == Some("true"), expired, "{key:?}");
            assert_eq!(key.attr("state") == Some("superseded"), expired, "{key:?}");
        }
    }
    for (algorithm, says) in
        [("brainpoolP256r1", "is brainpoolP256r1"), ("brainpoolP512r1", "is brainpoolP512r1")]
    {
        let certificate = made(&[], algorithm, "never");
        let said = Material::parse(Method::OpenPgp, &certificate).unwrap_err().to_string();
        assert!(said.contains(says) && said.starts_with("no session can come about"), "{said}");
    }
}

fn base64_of(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
