//! A user with access, whose stanzas and keys are as long as possible.

use std::path::Path;

use serde_json::{Value, json};

use support::{
    programs::{Component, Options, Xtls, script},
    servers::{Kind, Server},
};

#[test]
fn nothing_is_too_long_for_prosody() {
    nothing_is_too_long_for(Kind::Prosody);
}

#[test]
fn nothing_is_too_long_for_ejabberd() {
    nothing_is_too_long_for(Kind::Ejabberd);
}

/// Stanzas that grow when they are rewritten are answered, long answers come in pages, and the link stays up.
fn nothing_is_too_long_for(kind: Kind) {
    let server = Server::start(kind);
    let more = "[limits]\nrequests_per_second = 1000\n".to_owned();
    let component = Component::start(&server, &Options { more, ..Options::default() });
    let directory = tempfile::tempdir().unwrap();
    import_revoked_keys(&component, directory.path(), "carol@example.test", 654);
    let certificates = directory.path().join("certificates");
    std::fs::create_dir(&certificates).unwrap();
    for number in 0..32 {
        let file = certificates.join(format!("{number:02}"));
        std::fs::write(file, large_certificate(number)).unwrap();
    }
    let more = json!({"certificates": certificates, "owner": "carol@example.test"});
    let report = script("long_stanzas.py", &server, more);
    let log = component.log();
    for (request, expected) in [
        // Unknown children change nothing, and none comes back.
        ("angle-200000-own", "result"),
        ("ampersand-200000-own", "result"),
        ("plain-200000-own", "result"),
        ("plain-200000-ping", "result"),
        ("ampersand-1000-ping", "result"),
        ("angle-200000-ping", "policy-violation"),
        ("less-200000-ping", "policy-violation"),
        ("ampersand-120000-ping", "policy-violation"),
        ("ampersand-200000-ping", "policy-violation"),
        ("quotes-120000-ping", "policy-violation"),
        ("apostrophes-120000-ping", "policy-violation"),
        ("long answer", "policy-violation"),
        ("long id 0", "result"),
        ("long id 1", "result"),
        ("message", "policy-violation"),
    ] {
        assert_eq!(report[request], expected, "{request}: {report}\n{log}");
    }
    assert_eq!(report["answers"], json!([1]), "{report}\n{log}");
    let count = |value: &Value| value.as_u64().unwrap();
    assert_eq!(count(&report["certificates"]), 32);
    assert_eq!((count(&report["keys"]), count(&report["pages of keys"])), (32, 1), "{report}");
    assert_eq!(report["items"], json!([32, 32, true]), "{report}");
    assert_eq!(report["export"], json!([32, 32, 32, true]), "{report}");
    assert_eq!(report["many"], json!([654, true]), "{report}");

    let bob = Xtls::login(&server, "bob");
    let listed = bob.run(["keys", "carol@example.test", "--json"]);
    assert_eq!(listed.code, 0, "{listed:?}");
    assert_eq!(listed.stdout.matches("\"revoked\"").count(), 654, "{}", listed.stderr);

    let log = component.log();
    assert_eq!(log.matches("link up").count(), 1, "{log}");
    assert!(!log.contains("link down"), "{log}");
}

/// Puts revoked keys of one user into the database of a component.
fn import_revoked_keys(component: &Component, directory: &Path, owner: &str, count: usize) {
    let lines: String = (0..count)
        .map(|number| {
            let print = format!("{number:064x}");
            let line = json!({"key": {
                "id": format!("{number:032x}"), "jid": owner, "method": "x509", "state": "revoked",
                "assurance": "asserted", "label": "l".repeat(64), "created": number, "changed": number,
                "reason": "r".repeat(256),
                "prints": (0..8).map(|other| {
                    let print = format!("{other}{}", &print[1..]);
                    json!({"hash": "sha-256", "print": print})
                }).collect::<Vec<_>>(),
            }});
            format!("{line}\n")
        })
        .collect();
    let file = directory.join("keys.jsonl");
    std::fs::write(&file, lines).unwrap();
    let imported = component.command(["keys", "import", file.to_str().unwrap()]);
    assert_eq!(imported.code, 0, "{imported:?}");
}

/// Returns a certificate, DER, close to the largest size.
fn large_certificate(number: usize) -> Vec<u8> {
    let names: Vec<String> = (0..200)
        .map(|other| format!("{number:02}-{other:03}-{}.example.test", "n".repeat(55)))
        .collect();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    let der = certificate.der().to_vec();
    assert!((14_000..16_384).contains(&der.len()), "{}", der.len());
    der
}
