//! Service discovery of the component itself (XEP-0030).

use fingerpost_wire::{ns, xml};
use minidom::Element;

/// Returns the answer to disco#info at a command's node (XEP-0050, 2.3).
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

/// Returns the answer to disco#info at the node of all commands.
pub fn commands() -> Element {
    let mut query = xml::element("query", ns::DISCO_INFO, &[("node", ns::COMMANDS)]);
    query.append_child(xml::element(
        "identity",
        ns::DISCO_INFO,
        &[("category", "automation"), ("type", "command-list"), ("name", "Commands")],
    ));
    query
}

/// Returns the answer to disco#info: identities, features, and contact addresses (XEP-0157), if they are configured.
/// `direct`: whether users may connect directly.
pub fn info(name: &str, contact: &[String], socks5: bool, ibb: bool, direct: bool) -> Element {
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
        ns::CAPS,
        ns::CAPS_2,
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
        ns::RSM,
        ns::VCARD,
    ];
    if socks5 {
        features.extend([ns::BYTESTREAMS, ns::JINGLE_S5B]);
    }
    if ibb {
        features.extend([ns::IBB, ns::JINGLE_IBB, ns::JINGLE_IBB_0]);
    }
    if direct {
        features.push(ns::PATHS);
    }
    for feature in features {
        query.append_child(xml::element("feature", ns::DISCO_INFO, &[("var", feature)]));
    }
    if !contact.is_empty() {
        query.append_child(addresses(contact));
    }
    query
}

/// Returns the form with the addresses of the service's admins (XEP-0157, 2; XEP-0128).
fn addresses(contact: &[String]) -> Element {
    let mut form = xml::element("x", ns::DATA, &[("type", "result")]);
    for (attributes, values) in [
        ([("var", "FORM_TYPE"), ("type", "hidden")], &[ns::SERVER_INFO.to_owned()][..]),
        ([("var", "admin-addresses"), ("type", "list-multi")], contact),
    ] {
        let mut field = xml::element("field", ns::DATA, &attributes);
        for text in values {
            let mut value = Element::bare("value", ns::DATA);
            value.append_text(text.as_str());
            field.append_child(value);
        }
        form.append_child(field);
    }
    form
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contact_addresses_are_told_if_there_are_any() {
        let contact = ["mailto:a@example.org".to_owned(), "xmpp:a@example.org".to_owned()];
        let told = info("Fingerpost", &contact, true, true, true);
        let form = told.get_child("x", ns::DATA).unwrap();
        let fields: Vec<(Option<&str>, Vec<String>)> = form
            .children()
            .map(|field| (field.attr("var"), field.children().map(Element::text).collect()))
            .collect();
        let expected = [
            (Some("FORM_TYPE"), vec![ns::SERVER_INFO.to_owned()]),
            (Some("admin-addresses"), contact.to_vec()),
        ];
        assert_eq!(fields, expected);
        assert!(!info("Fingerpost", &[], true, true, true).has_child("x", ns::DATA));
    }
}
