//! A stranger: an account on the server that the component does not know. It may send any XML that its server passes
//! on.

use std::time::Duration;

use serde_json::{Value, json};

use support::{
    COMPONENT, DOMAIN, free_port,
    programs::{Component, Options, Xtls, page, script},
    random_file,
    servers::{Kind, Server},
};

/// Returns a stanza that is sent exactly as it is written here.
fn stanza(id: &str, xml: String) -> Value {
    json!({"id": id, "xml": xml, "answered": xml.starts_with("<iq")})
}

/// XML that both servers accept from a client, one oddity each: in attributes of a stanza, in its content, and in
/// declarations of the stream header.
fn oddities() -> Vec<(&'static str, String, String)> {
    let long = "v".repeat(20_000);
    let deep = format!("{}{}", "<d>".repeat(100), "</d>".repeat(100));
    [
        ("plain", "", ""),
        ("xml-element", "", "<xml:foo/>"),
        ("xml-element-inside", "", "<x xmlns='urn:x'><xml:foo xml:bar='1'/></x>"),
        ("xml-attribute", "xml:foo='1'", "<x xmlns='urn:x' xml:foo='1' xml:base='http://x/'/>"),
        ("xml-base", "xml:base='http://example.test/' xml:space='preserve' xml:id='i'", ""),
        ("xml-declared", "", "<x xmlns:xml='http://www.w3.org/XML/1998/namespace' xml:foo='1'/>"),
        ("cr", "x='a&#13;b' y='c&#13;'", "<x xmlns='urn:x' y='&#13;'>&#13;a&#13;</x>"),
        ("white-space", "x='a&#10;b&#9;' y='&#10;'", "<x xmlns='urn:x' y='&#9;'>&#13;&#10;</x>"),
        ("cr-in-namespace", "", "<x xmlns='urn:x&#13;y' xmlns:p='u&#13;' p:z='1'/>"),
        ("header-prefix", "sp:y='1'", "<sp:x/>"),
        ("header-prefix-inside", "", "<x xmlns='urn:x' sp:y='1' y='1'><sp:x sp:y='1'/></x>"),
        ("prefix", "xmlns:q='urn:q' q:y='1'", "<q:x q:y='2' y='3'/>"),
        ("no-namespace", "", "<x xmlns=''><y/></x>"),
        ("long-attribute", "", &format!("<x xmlns='urn:x' y='{long}'/>")),
        ("long-attribute-of-stanza", &format!("y='{long}'"), ""),
        ("deep", "", &deep),
        ("cdata", "", "<x xmlns='urn:x'><![CDATA[<a>&amp;]]&gt;]]></x>"),
        (
            "characters",
            "y='&#x1F600;&#xA0;'",
            "<x xmlns='urn:x'>\u{7f}\u{85}\u{2028}\u{1fffe}&#x10FFFF;</x>",
        ),
        ("names", "\u{e9}.-_1='1'", "<_\u{e9}\u{3042}.- xmlns='urn:x'/>"),
        ("entities", "y='&lt;&gt;&amp;&quot;&apos;'", "<x xmlns='urn:x'>]]&gt;&quot;&apos;</x>"),
    ]
    .map(|(name, attributes, content): (&str, &str, &str)| {
        (name, attributes.to_owned(), content.to_owned())
    })
    .into()
}

/// Sends stanzas as carol, whose stream header declares a prefix; returns the answers to each.
fn send(server: &Server, stanzas: &[Value]) -> Value {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("stanzas.json");
    std::fs::write(&file, serde_json::to_string(stanzas).unwrap()).unwrap();
    script("stranger.py", server, json!({"header": "xmlns:sp='u:sp'", "file": file}))
}

/// Nothing that a stranger's server passes on ends the link or the connection of `xtls listen`. Each request is
/// answered once, and sessions still work.
fn no_stanza_ends_the_link(kind: Kind) {
    let server = Server::start(kind);
    let more = "[limits]\nrequests_per_second = 10000\n".to_owned();
    let http = free_port();
    let env = vec![("FINGERPOST_HTTP__LISTEN", format!("127.0.0.1:{http}"))];
    let component = Component::start(&server, &Options { more, env, ..Options::default() });
    let (alice, bob) = (Xtls::with_key(&server, "alice"), Xtls::with_key(&server, "bob"));
    let mut listener = bob.listen(&[]);
    let full = listener.event("listening").unwrap()["jid"].as_str().unwrap().to_owned();
    let (_, resource) = full.split_once('/').unwrap();
    let mut stanzas = Vec::new();
    for (at, to) in [
        ("own", COMPONENT.to_owned()),
        ("nobody", format!("bob\\40{DOMAIN}@{COMPONENT}/none")),
        ("proxied", format!("bob\\40{DOMAIN}@{COMPONENT}/{resource}")),
        ("full", full.clone()),
    ] {
        for (name, attributes, content) in oddities() {
            let id = format!("{at}-{name}");
            let iq = |kind: &str, payload: &str, id: &str| {
                let xml =
                    format!("<iq type='{kind}' id='{id}' to='{to}' {attributes}>{payload}</iq>");
                stanza(id, xml)
            };
            let payload = if content.is_empty() { "<x xmlns='urn:x'/>" } else { &content };
            stanzas.extend([
                iq("get", payload, &format!("{id}-get")),
                iq("set", &format!("<x xmlns='urn:x'>{content}</x>"), &format!("{id}-inside")),
                iq(
                    "get",
                    &format!(
                        "<query xmlns='http://jabber.org/protocol/disco#info'>{content}</query>"
                    ),
                    &format!("{id}-disco"),
                ),
                stanza(&id, format!("<message to='{to}' {attributes}>{content}</message>")),
                stanza(&id, format!("<presence to='{to}' {attributes}>{content}</presence>")),
            ]);
        }
    }
    let report = send(&server, &stanzas);
    for stanza in stanzas.iter().filter(|stanza| stanza["answered"] == true) {
        let id = stanza["id"].as_str().unwrap();
        let answers = report["answers"][id].as_array().unwrap();
        assert_eq!(answers.len(), 1, "{id}: {answers:?}\n{}", component.log());
    }
    // The listener is present and answers, through the component and directly.
    for id in ["full-plain-disco", "proxied-plain-disco"] {
        let answer = report["answers"][id][0].as_str().unwrap();
        assert!(answer.contains("category='client'"), "{answer}\n{}", listener.log());
    }
    let file = alice.home().join("letter.bin");
    random_file(&file, 100_000);
    let sent = alice.run(["send".as_ref(), bob.jid().as_ref(), file.as_os_str()]);
    assert_eq!(sent.code, 0, "{sent:?}\n{}\n{}", listener.log(), component.log());
    assert_eq!(listener.wait(Duration::from_secs(60)), 0, "{}", listener.log());
    let page = page(http, "/metrics").unwrap();
    assert!(page.contains("\nfingerpost_link_connections_total 1\n"), "{page}");
    let log = component.log();
    assert_eq!((log.matches("link up").count(), log.matches("link down").count()), (1, 0), "{log}");
}

#[test]
fn no_stanza_ends_the_link_at_prosody() {
    no_stanza_ends_the_link(Kind::Prosody);
}

#[test]
fn no_stanza_ends_the_link_at_ejabberd() {
    no_stanza_ends_the_link(Kind::Ejabberd);
}
