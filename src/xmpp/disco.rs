//! Service discovery of the component itself (XEP-0030).

use minidom::Element;

use super::{ns, xml};

/// The answer to disco#info at a command's node (XEP-0050, 2.3).
pub fn command(node: &str, title: &str) -> Element {
    let mut query = xml::element("query", ns::DISCO_INFO, &[("node", node)]);
    query.append_child(xml::element(
        "identity",
        ns::DISCO_INFO,
        &[("category", "automation"), ("type", "command-node"), ("name", title)],
    ));
    for feature in [ns::COMMANDS, ns::DATA] {
        query.append_child(xml::element("feature", ns::DISCO_INFO, &[("var", feature)]));
    }
    query
}

/// The answer to disco#info at the node of all commands.
pub fn commands() -> Element {
    let mut query = xml::element("query", ns::DISCO_INFO, &[("node", ns::COMMANDS)]);
    query.append_child(xml::element(
        "identity",
        ns::DISCO_INFO,
        &[("category", "automation"), ("type", "command-list"), ("name", "Commands")],
    ));
    query
}

/// The answer to disco#info: identities, then features.
pub fn info(name: &str, socks5: bool, ibb: bool) -> Element {
    let mut query = Element::bare("query", ns::DISCO_INFO);
    let mut identities = vec![("component", "generic")];
    if socks5 {
        identities.insert(0, ("proxy", "bytestreams"));
    }
    for (category, type_) in identities {
        query.append_child(xml::element(
            "identity",
            ns::DISCO_INFO,
            &[("category", category), ("type", type_), ("name", name)],
        ));
    }
    let mut features = vec![
        ns::DISCO_INFO,
        ns::DISCO_ITEMS,
        ns::COMMANDS,
        ns::DATA,
        ns::PING,
        ns::VERSION,
        ns::LAST,
        ns::TIME,
        ns::JINGLE,
        ns::JINGLE_0,
        ns::JINGLE_MESSAGE,
        ns::APPS_TLS,
        ns::SECURITY_OFFER,
        ns::XTLS,
        ns::HINTS,
        ns::KEYS,
        ns::SASLCERT,
        ns::C2CTLS,
        ns::PUBKEY,
    ];
    if socks5 {
        features.extend([ns::BYTESTREAMS, ns::JINGLE_S5B]);
    }
    if ibb {
        features.extend([ns::IBB, ns::JINGLE_IBB, ns::JINGLE_IBB_0]);
    }
    for feature in features {
        query.append_child(xml::element("feature", ns::DISCO_INFO, &[("var", feature)]));
    }
    query
}
