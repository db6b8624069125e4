//! A permitted user that attacks the registry: sends broken certificates, fills it, and spells addresses in every
//! possible way.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use support::{
    COMPONENT, DOMAIN,
    programs::{Component, Options, script},
    servers::{Kind, Server},
};

const KEYS: &str = "urn:fingerpost:keys:0";

/// Returns a request of a user to an address; its id is its number.
fn iq(number: usize, kind: &str, to: &str, payload: &str) -> Value {
    let xml = format!("<iq from='[from]' to='{to}' id='n{number}' type='{kind}'>{payload}</iq>");
    json!({"id": format!("n{number}"), "xml": xml})
}

/// Sends requests of `user`, each with its type, address and payload; returns the answers in order.
fn send(server: &Server, user: &str, requests: &[(&str, &str, String)]) -> Vec<Value> {
    let stanzas: Vec<Value> = requests
        .iter()
        .enumerate()
        .map(|(number, (kind, to, payload))| iq(number, kind, to, payload))
        .collect();
    let report = script("probe.py", server, json!({"user": user, "stanzas": stanzas}));
    (0..requests.len()).map(|number| report[format!("n{number}")].clone()).collect()
}

fn xml(answer: &Value) -> &str {
    answer["xml"].as_str().unwrap_or_default()
}

fn add(method: &str, material: &[u8]) -> String {
    let material = STANDARD.encode(material);
    format!(
        "<add xmlns='{KEYS}'><key method='{method}'><material>{material}</material></key></add>"
    )
}

fn add_print(print: &str) -> String {
    format!("<add xmlns='{KEYS}'><key method='x509'><print>{print}</print></key></add>")
}

fn component(server: &Server, more: &str) -> Component {
    let more = format!("[limits]\nrequests_per_second = 10000\n{more}");
    Component::start(server, &Options { more, ..Options::default() })
}

/// RFC 9580, A.3: a certificate of version 6.
const V6: &str = "xioGY4d/4xsAAAAg+U2nu0jWCmHlZ3BqZYfQMxmZu52JGggkLq2EVD34laPCsQYf\
GwoAAABCBYJjh3/jAwsJBwUVCg4IDAIWAAKbAwIeCSIhBssYbE8GCaaX5NUt+mxy\
KwwfHifBilZwj2Ul7Ce62azJBScJAgcCAAAAAK0oIBA+LX0ifsDm185Ecds2v8lw\
gyU2kCcUmKfvBXbAf6rhRYWzuQOwEn7E/aLwIwRaLsdry0+VcallHhSu4RN6HWaE\
QsiPlR4zxP/TP7mhfVEe7XWPxtnMUMtf15OyA51YBM4qBmOHf+MZAAAAIIaTJINn\
+eUBXbki+PSAld2nhJh/LVmFsS+60WyvXkQ1wpsGGBsKAAAALAWCY4d/4wKbDCIh\
BssYbE8GCaaX5NUt+mxyKwwfHifBilZwj2Ul7Ce62azJAAAAAAQBIKbpGG2dWTX8\
j+VjFM21J0hqWlEg+bdiojWnKfA5AQpWUWtnNwDEM0g12vYxoWM8Y81W+bHBw805\
I8kWVkXU6vFOi+HWvv/ira7ofJu16NnoUkhclkUrk0mXubZvyl4GBg==";

/// The fault is named in one sentence, without the sent content, to the user and in the log.
#[test]
fn nothing_that_is_sent_is_repeated_in_errors_or_fills_the_log() {
    let server = Server::start(Kind::Prosody);
    let component = component(&server, "");
    let pem = "-----BEGIN CERTIFICATE-----\nTk9UIEEgQ0VSVElGSUNBVEU=\n-----END CERTIFICATE-----\n";
    let certificate = STANDARD.decode(V6).unwrap();
    let odd = |packets: &[u8]| [certificate.as_slice(), packets].concat();
    let mut requests = Vec::new();
    for _ in 0..4 {
        for (method, sent) in [
            ("openpgp", pem.repeat(10).into_bytes()),
            ("openpgp", pem.as_bytes().to_vec()),
            ("x509", pem.repeat(2).into_bytes()),
            ("x509", certificate.clone()),
            ("openpgp", b"\xc6\x04NOT A CERTIFICATE".to_vec()),
            ("openpgp", vec![0xc6; 1000]),
            // Packets of private use, of an unknown critical kind, of a wrong length.
            ("openpgp", odd(b"\xfd\x0eNOT A PACKET ")),
            ("openpgp", odd(b"\xe7\x0eNOT A PACKET ")),
            ("openpgp", odd(b"\xc2\x50NOT A PACKET")),
        ] {
            requests.push(("set", COMPONENT, add(method, &sent)));
        }
    }
    let said = component.log().len();
    for answer in send(&server, "alice", &requests) {
        let text = xml(&answer);
        assert!(text.len() < 900, "{} bytes: {text}", text.len());
        assert!(!text.contains("NOT A") && !text.contains("78, 79, 84"), "{text}");
    }
    let log = component.log();
    assert!(log.len() - said < 2000, "{} bytes for {} requests", log.len() - said, requests.len());
    assert!(!log.contains("backtrace"), "{log}");
}

/// All keys count, whatever their state, and the answer says so.
#[test]
fn adding_and_revoking_in_turn_does_not_fill_the_registry() {
    let server = Server::start(Kind::Prosody);
    let _component = component(&server, "[registry]\nkeys_per_user = 2\n");
    let mut refused = Value::Null;
    let mut count = 0;
    for byte in 0..20_u8 {
        let print = format!("{byte:02X}").repeat(32);
        let [answer] =
            send(&server, "alice", &[("set", COMPONENT, add_print(&print))]).try_into().unwrap();
        if answer["type"] == "error" {
            refused = answer;
            break;
        }
        count += 1;
        let text = xml(&answer);
        let (_, id) = text.split_once(" id=\"").or_else(|| text.split_once(" id='")).unwrap();
        let ids: Vec<&str> = text.match_indices("id=").map(|(at, _)| &text[at + 4..]).collect();
        let id = ids
            .iter()
            .find(|id| id.len() > 32 && id[..32].bytes().all(|c| c.is_ascii_hexdigit()))
            .unwrap_or(&id);
        let revoke = format!("<revoke xmlns='{KEYS}' id='{}'/>", &id[..32]);
        let revoked = send(&server, "alice", &[("set", COMPONENT, revoke)]);
        assert_eq!(revoked[0]["type"], "result", "{revoked:?}");
    }
    assert_eq!((count, &refused["condition"]), (8, &json!("resource-constraint")), "{refused}");
    assert!(
        xml(&refused).contains("8 keys") && xml(&refused).contains("no longer active"),
        "{refused}"
    );
}

/// Each spelling of an address is the same user, wherever it occurs.
#[test]
fn no_spelling_of_an_address_is_another_user() {
    let server = Server::start(Kind::Prosody);
    let _component = component(&server, "[access]\nusers = [\"EXAMPLE.test.\"]\n");
    let spellings = [
        format!("alice@{DOMAIN}"),
        format!("ALICE@{}", DOMAIN.to_uppercase()),
        format!("alice@{DOMAIN}."),
        format!("alice@{}", DOMAIN.replace('.', "\u{3002}")),
        format!("alice@{}\u{ff61}", DOMAIN.replace('.', "\u{ff0e}")),
    ];
    let print = "AB".repeat(32);
    let allow = format!(
        "<settings xmlns='{KEYS}' visibility='listed'><allow jid='BOB@{DOMAIN}.'/></settings>"
    );
    let own = [("set", COMPONENT, add_print(&print)), ("set", COMPONENT, allow)];
    for answer in send(&server, "alice", &own) {
        assert_eq!(answer["type"], "result", "{answer}");
    }
    let asked = spellings
        .clone()
        .map(|jid| ("get", COMPONENT, format!("<keys xmlns='{KEYS}' jid='{jid}'/>")));
    for (who, sees) in [("bob", true), ("carol", false)] {
        for answer in send(&server, who, &asked) {
            let text = xml(&answer);
            assert!(text.contains(&format!("alice@{DOMAIN}")), "one address is named: {text}");
            assert_eq!(text.contains("AB:AB:AB"), sees, "{who}: {text}");
        }
    }
    // The component's own address, escaped: a stanza that would return to it without end.
    let offer = "<ping xmlns='urn:xmpp:ping'/>".to_owned();
    let own = [COMPONENT.to_owned(), format!("{COMPONENT}."), COMPONENT.replace('.', "\u{3002}")];
    let own = own.map(|domain| format!("a\\40{domain}@{COMPONENT}"));
    let pings: Vec<_> = own.iter().map(|to| ("get", to.as_str(), offer.clone())).collect();
    for answer in send(&server, "bob", &pings) {
        assert_eq!(answer["condition"], "item-not-found", "{answer}");
    }
    let erase = format!("<erase xmlns='{KEYS}' confirm='{}'/>", spellings[3]);
    assert_eq!(send(&server, "alice", &[("set", COMPONENT, erase)])[0]["type"], "result");
}
