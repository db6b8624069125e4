//! A user that hides a print from the verdicts and policies: in a form that cannot be read here, or at an odd place.

use serde_json::{Value, json};

use support::{
    programs::{Component, Options, script},
    servers::{Kind, Server},
};

const KNOWN: &str = "72:72:DF:06:3A:4D:7D:80:97:0E:53:77:0A:8F:CD:A9:80:A3:CB:38";
const OTHER: &str = "E5:59:E9:8A:9B:C9:ED:0F:60:21:FD:EA:34:BF:24:E4:0D:B0:FE:FC";

/// Returns offers of a print, each with a name: unreadable ones in each dialect, and readable ones at odd places.
fn offers() -> Vec<(&'static str, String)> {
    let tls = |inside: &str| {
        format!(
            "<description xmlns='urn:xmpp:jingle:apps:tls'><methods>{inside}</methods></description>"
        )
    };
    let x509 = |print: &str| tls(&format!("<method name='x509'>{print}</method>"));
    let file = |inside: &str| {
        format!("<description xmlns='urn:xmpp:jingle:apps:file-transfer:5'/>{inside}")
    };
    let security = |inside: &str| {
        let ns = "urn:xmpp:jingle:security:xtls:0";
        file(&format!("<security xmlns='{ns}'>{inside}<method name='x509'/></security>"))
    };
    let c2c = |name: &str| {
        let keyinfo = format!("<keyinfo xmlns='urn:xmpp:tmp:pubkey'><name>{name}</name></keyinfo>");
        format!(
            "<description xmlns='urn:xmpp:jingle:apps:tls'><offer xmlns='urn:xmpp:tmp:c2ctls'>\
             <x509>{keyinfo}</x509><srp/></offer></description>"
        )
    };
    let offer = |print: &str| {
        format!("<offer xmlns='urn:xmpp:security-offer'><print>{print}</print></offer>")
    };
    let long = "AB".repeat(64);
    vec![
        ("no print", x509("<print>hello</print>")),
        ("empty", x509("<print/>")),
        ("sha-512", x509(&format!("<print>{long}</print>"))),
        ("sha-384", x509(&format!("<print hash='sha-384'>{}</print>", "AB".repeat(48)))),
        ("long", x509(&format!("<print>{}</print>", "AB".repeat(2000)))),
        ("xtls", security(&format!("<fingerprint hash='sha-512'>{long}</fingerprint>"))),
        ("security-offer", x509("") + &offer("hello")),
        ("xep-0250", c2c("hello")),
        ("outside of the method", tls(&format!("<print>{OTHER}</print><method name='x509'/>"))),
        (
            "nested",
            x509(&format!(
                "<x xmlns='urn:x'><print xmlns='urn:xmpp:jingle:apps:tls'>{OTHER}</print></x>"
            )),
        ),
        ("nested xep-0250", c2c(OTHER)),
        ("wrong hash", x509(&format!("<print hash='sha-256'>{OTHER}</print>"))),
        ("room", x509(&format!("<print>{}{OTHER}</print>", " ".repeat(3000)))),
    ]
}

fn ask(policy: &str, known: Option<&str>, features: &[&str]) -> Value {
    let server = Server::start(Kind::Prosody);
    let more = format!("[broker]\n{policy}\n[limits]\nrequests_per_second = 1000\n");
    let _component = Component::start(&server, &Options { more, ..Options::default() });
    let settings = json!({"known": known, "features": features, "offers": offers()});
    script("hidden_prints.py", &server, settings)
}

#[test]
fn a_print_that_cannot_be_read_is_judged_and_hides_no_policy() {
    let report = ask("", Some(KNOWN), &[]);
    for (name, _) in offers() {
        assert_eq!(report[name][0], "passed", "{name}: {report}");
        assert_eq!(report[name][1], json!([["x509", "mismatch"]]), "{name}: {report}");
    }
    let report = ask("mismatch = \"reject\"", Some(KNOWN), &[]);
    for (name, _) in offers() {
        assert_eq!(report[name][0], "security-error", "{name}: {report}");
    }
    let report = ask("unknown = \"strip\"", None, &[]);
    for (name, _) in offers() {
        // XEP-0250 also offers a password, which is left.
        let left = if name.contains("xep-0250") { "passed" } else { "unsupported-applications" };
        assert_eq!(report[name][0], left, "{name}: {report}");
        assert_eq!(report[name][2], json!([]), "{name}: {report}");
    }
}

#[test]
fn a_print_that_cannot_be_read_is_kept_in_a_translation() {
    let report = ask("", None, &["urn:xmpp:jingle:apps:tls", "urn:xmpp:security-offer"]);
    for (name, text) in [("xtls", "AB".repeat(64)), ("xep-0250", "hello".to_owned())] {
        assert_eq!(report[name][1], json!([["x509", "unknown"]]), "{name}: {report}");
        assert_eq!(report[name][2], json!([text]), "{name}: {report}");
    }
}
