//! The four ways to write an offer of TLS, and the translation of one into another.
//!
//! | dialect | feature in disco#info | methods | prints |
//! |---|---|---|---|
//! | [`Dialect::Methods`] | `urn:xmpp:jingle:apps:tls` | in the description | inside their methods |
//! | [`Dialect::Offer`] | `urn:xmpp:security-offer` | in the description | beside the transport, without a method |
//! | [`Dialect::Security`] | `urn:xmpp:jingle:security:xtls:0` | in the security element | beside the methods |
//! | [`Dialect::C2c`] | `urn:xmpp:tmp:c2ctls` | only `srp` has an element | in the description, without a method |
//!
//! An offer stays as it is if the peer announces a dialect that the offer uses, or announces no dialect. Otherwise it
//! is translated into the first dialect of [`Dialect::ALL`] that the peer knows and that can express part of it.
//! [`Dialect::Methods`] needs the description of a raw TLS stream, so another application keeps its description and
//! gets one of the three others. Methods that the new dialect cannot express are left out: fewer methods are offered
//! then, never others. If it can express none, the offer stays as it is.
//!
//! A translation is in canonical form: prints in upper case with colons (in XEP-0250, as in its examples, in lower case
//! without), and each hash is named where an attribute for it exists.

use minidom::{Element, Node};

use super::offer::{Printed, is_c2c};
use crate::{
    ns,
    print::{HashKind, Method},
    word::Word,
    xml,
};

/// A way to write an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// Prints inside the methods of the description.
    Methods,
    /// Bare methods in the description, prints in an offer beside the transport.
    Offer,
    /// A security element (ProtoXEP jingle-xtls 0.0.4).
    Security,
    /// An offer of XEP-0250 inside the description.
    C2c,
}

impl Dialect {
    /// All dialects, the most expressive first.
    pub const ALL: [Self; 4] = [Self::Methods, Self::Security, Self::Offer, Self::C2c];

    /// Returns the feature that announces the dialect.
    pub fn feature(self) -> &'static str {
        match self {
            Self::Methods => ns::APPS_TLS,
            Self::Offer => ns::SECURITY_OFFER,
            Self::Security => ns::XTLS,
            Self::C2c => ns::C2CTLS,
        }
    }

    /// Returns the dialects that a client with these features announces.
    pub fn known(features: &[String]) -> Vec<Self> {
        let announced = |dialect: &Self| features.iter().any(|f| f == dialect.feature());
        Self::ALL.into_iter().filter(announced).collect()
    }

    /// Returns the dialects that a content's offer uses; none if it offers nothing.
    pub fn of(content: &Element) -> Vec<Self> {
        let mut found = Vec::new();
        let beside = content.has_child("offer", ns::SECURITY_OFFER);
        let methods =
            content.children().filter(|c| c.is("description", ns::APPS_TLS)).find_map(methods_of);
        if let Some(methods) = methods {
            let printed = methods.children().any(|method| method.has_child("print", ns::APPS_TLS));
            if printed || !beside {
                found.push(Self::Methods);
            }
            // Bare methods alone look the same in both.
            if !printed || beside {
                found.push(Self::Offer);
            }
        } else if beside {
            found.push(Self::Offer);
        }
        if content.has_child("security", ns::XTLS) {
            found.push(Self::Security);
        }
        if is_c2c(content) {
            found.push(Self::C2c);
        }
        found
    }
}

fn methods_of(description: &Element) -> Option<&Element> {
    description.get_child("methods", ns::APPS_TLS)
}

/// Returns the content for a peer that knows these dialects. `prints` are those of the offer, each with its method.
pub fn for_peer(
    content: &Element,
    known: &[Dialect],
    prints: &[(Word<Method>, Printed)],
) -> Element {
    let now = Dialect::of(content);
    if known.is_empty() || now.is_empty() || now.iter().any(|dialect| known.contains(dialect)) {
        return content.clone();
    }
    Dialect::ALL
        .iter()
        .filter(|dialect| known.contains(dialect))
        .find_map(|dialect| translate(content, *dialect, prints))
        .unwrap_or_else(|| content.clone())
}

/// One method during translation.
struct OfferedMethod {
    name: Word<Method>,
    /// Its element, for the unknown attributes and children.
    element: Option<Element>,
}

/// Writes a content's offer in another dialect and keeps the rest of the content. `None`: the dialect cannot express
/// it.
fn translate(
    content: &Element,
    to: Dialect,
    prints: &[(Word<Method>, Printed)],
) -> Option<Element> {
    let description = content.children().find(|child| child.name() == "description");
    let is_raw = description.is_none_or(|description| description.has_ns(ns::APPS_TLS));
    let methods = offered(content, prints);
    let says_something = match to {
        Dialect::Methods => is_raw,
        Dialect::Security => true,
        Dialect::Offer => is_raw || !prints.is_empty(),
        Dialect::C2c => !prints.is_empty() || methods.iter().any(|m| m.name == Method::Srp),
    };
    if !says_something {
        return None;
    }
    let inside = match to {
        Dialect::Methods => Some(methods_element(&methods, prints)),
        Dialect::Offer if is_raw => Some(methods_element(&methods, &[])),
        Dialect::C2c => Some(c2c(&methods, prints)),
        Dialect::Offer | Dialect::Security => None,
    };
    let beside = match to {
        Dialect::Offer if !prints.is_empty() => Some(offer_element(prints)),
        Dialect::Security => Some(security(&methods, prints)),
        _ => None,
    };
    let mut out = xml::head_in(content, &content.ns());
    if description.is_none()
        && let Some(inside) = &inside
    {
        let mut made = Element::bare("description", ns::APPS_TLS);
        made.append_child(inside.clone());
        out.append_child(made);
    }
    for node in content.nodes() {
        let Some(child) = node.as_element() else {
            out.append_node(node.clone());
            continue;
        };
        if is_offer(child) {
            continue;
        }
        if child.name() != "description" {
            out.append_child(child.clone());
            continue;
        }
        let mut kept = xml::head_in(child, &child.ns());
        for node in child.nodes() {
            let goes = node
                .as_element()
                .is_some_and(|inner| is_offer(inner) || inner.is("methods", ns::APPS_TLS));
            if !goes {
                kept.append_node(node.clone());
            }
        }
        if let Some(inside) = &inside {
            kept.append_child(inside.clone());
        }
        out.append_child(kept);
    }
    if let Some(beside) = beside {
        out.append_child(beside);
    }
    Some(out)
}

/// Returns whether an element is an offer in itself.
fn is_offer(element: &Element) -> bool {
    element.is("offer", ns::SECURITY_OFFER)
        || element.is("offer", ns::C2CTLS)
        || element.is("security", ns::XTLS)
}

/// Returns the methods of an offer: those listed, then those known only from its prints.
fn offered(content: &Element, prints: &[(Word<Method>, Printed)]) -> Vec<OfferedMethod> {
    let mut found: Vec<OfferedMethod> = Vec::new();
    let mut add = |name: Word<Method>, element: Option<&Element>| {
        if !name.as_str().is_empty() && !found.iter().any(|known| known.name == name) {
            found.push(OfferedMethod { name, element: element.cloned() });
        }
    };
    for child in content.children() {
        let listed = match child.name() {
            "description" if child.has_ns(ns::APPS_TLS) => methods_of(child),
            "security" if child.has_ns(ns::XTLS) => Some(child),
            _ => None,
        };
        // As in reading: an element of another namespace is not a method.
        for method in listed.into_iter().flat_map(Element::children) {
            if method.name() == "method"
                && listed.is_some_and(|listed| method.has_ns(listed.ns().as_str()))
            {
                add(Word::new(method.attr("name").unwrap_or_default()), Some(method));
            }
        }
    }
    for (method, _) in prints {
        add(method.clone(), None);
    }
    if is_c2c(content)
        && content
            .children()
            .flat_map(|c| c.children().filter(|_| c.name() == "description").chain([c]))
            .any(|c| c.is("offer", ns::C2CTLS) && c.has_child("srp", ns::C2CTLS))
    {
        add(Method::Srp.into(), None);
    }
    found
}

/// Returns a method element with the attributes and children of the original, except its prints.
fn method_element(method: &OfferedMethod, namespace: &str) -> Element {
    let mut element = xml::element("method", namespace, &[("name", method.name.as_str())]);
    if let Some(original) = &method.element {
        *element.attrs_mut() = original.attrs().clone();
        for child in original.children() {
            if !matches!(child.name(), "print" | "fingerprint") || child.has_ns(ns::HINTS) {
                element.append_child(child.clone());
            }
        }
    }
    element
}

fn with_text(mut element: Element, text: String) -> Element {
    element.append_node(Node::Text(text));
    element
}

/// Returns a `<print/>`. The hash is named only if the length does not tell it. A text that could not be read stays as
/// it is.
fn print_element(printed: &Printed, namespace: &str) -> Element {
    let mut element = Element::bare("print", namespace);
    let hash = match printed {
        Printed::Read(print) => {
            (print.hash() == HashKind::SpkiSha256).then_some(print.hash().as_str())
        }
        Printed::Unread { hash, .. } => hash.as_deref(),
    };
    if let Some(hash) = hash {
        xml::set(&mut element, "hash", hash);
    }
    with_text(element, text_of(printed))
}

/// Returns the whole text of a print.
fn text_of(printed: &Printed) -> String {
    match printed {
        Printed::Read(print) => print.to_string(),
        Printed::Unread { text, .. } => text.clone(),
    }
}

fn methods_element(methods: &[OfferedMethod], prints: &[(Word<Method>, Printed)]) -> Element {
    let mut out = Element::bare("methods", ns::APPS_TLS);
    for method in methods {
        let mut element = method_element(method, ns::APPS_TLS);
        for (_, print) in prints.iter().filter(|(m, _)| *m == method.name) {
            element.append_child(print_element(print, ns::APPS_TLS));
        }
        out.append_child(element);
    }
    out
}

fn offer_element(prints: &[(Word<Method>, Printed)]) -> Element {
    let mut out = Element::bare("offer", ns::SECURITY_OFFER);
    for (_, print) in prints {
        out.append_child(print_element(print, ns::SECURITY_OFFER));
    }
    out
}

fn security(methods: &[OfferedMethod], prints: &[(Word<Method>, Printed)]) -> Element {
    let mut out = Element::bare("security", ns::XTLS);
    for (_, print) in prints {
        let mut head = Element::bare("fingerprint", ns::XTLS);
        let hash = match print {
            Printed::Read(print) => Some(print.hash().as_str()),
            Printed::Unread { hash, .. } => hash.as_deref(),
        };
        if let Some(hash) = hash {
            xml::set(&mut head, "algo", hash);
        }
        out.append_child(with_text(head, text_of(print)));
    }
    for method in methods {
        out.append_child(method_element(method, ns::XTLS));
    }
    out
}

fn c2c(methods: &[OfferedMethod], prints: &[(Word<Method>, Printed)]) -> Element {
    let mut out = Element::bare("offer", ns::C2CTLS);
    for (_, print) in prints {
        let mut keyinfo = Element::bare("keyinfo", ns::TMP_PUBKEY);
        let text = match print {
            Printed::Read(print) => print.to_string().replace(':', "").to_lowercase(),
            Printed::Unread { text, .. } => text.clone(),
        };
        keyinfo.append_child(with_text(Element::bare("name", ns::TMP_PUBKEY), text));
        out.append_child(keyinfo);
    }
    if methods.iter().any(|method| method.name == Method::Srp) {
        out.append_child(Element::bare("srp", ns::C2CTLS));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{offer::Offer, print::Print};

    const X509: &str = "72:72:DF:06:3A:4D:7D:80:97:0E:53:77:0A:8F:CD:A9:80:A3:CB:38";
    const PGP: &str = "E5:59:E9:8A:9B:C9:ED:0F:60:21:FD:EA:34:BF:24:E4:0D:B0:FE:FC";

    fn content(inside: &str) -> Element {
        format!(
            "<content xmlns='urn:xmpp:jingle:1' creator='initiator' name='c'>{inside}</content>"
        )
        .parse()
        .unwrap()
    }

    /// Returns the same offer in each dialect, in canonical form.
    fn offers() -> [(Dialect, Element); 4] {
        let transport = "<transport xmlns='urn:t'/>";
        let plain = |print: &str| print.replace(':', "").to_lowercase();
        [
            (
                Dialect::Methods,
                content(&format!(
                    "<description xmlns='urn:xmpp:jingle:apps:tls'><methods>\
                     <method name='x509'><print>{X509}</print></method>\
                     <method name='openpgp'><print>{PGP}</print></method><method name='srp'/>\
                     </methods></description>{transport}"
                )),
            ),
            (
                Dialect::Security,
                content(&format!(
                    "<description xmlns='urn:xmpp:jingle:apps:tls'/>{transport}\
                     <security xmlns='urn:xmpp:jingle:security:xtls:0'>\
                     <fingerprint algo='sha-1'>{X509}</fingerprint>\
                     <fingerprint algo='sha-1'>{PGP}</fingerprint>\
                     <method name='x509'/><method name='openpgp'/><method name='srp'/></security>"
                )),
            ),
            (
                Dialect::Offer,
                content(&format!(
                    "<description xmlns='urn:xmpp:jingle:apps:tls'><methods><method name='x509'/>\
                     <method name='openpgp'/><method name='srp'/></methods></description>{transport}\
                     <offer xmlns='urn:xmpp:security-offer'><print>{X509}</print>\
                     <print>{PGP}</print></offer>"
                )),
            ),
            (
                Dialect::C2c,
                content(&format!(
                    "<description xmlns='urn:xmpp:jingle:apps:tls'>\
                     <offer xmlns='urn:xmpp:tmp:c2ctls'>\
                     <keyinfo xmlns='urn:xmpp:tmp:pubkey'><name>{}</name></keyinfo>\
                     <keyinfo xmlns='urn:xmpp:tmp:pubkey'><name>{}</name></keyinfo><srp/></offer>\
                     </description>{transport}",
                    plain(X509),
                    plain(PGP)
                )),
            ),
        ]
    }

    fn prints() -> Vec<(Word<Method>, Printed)> {
        let read = |text| Printed::Read(Print::parse(text, None).unwrap());
        vec![(Word::Known(Method::X509), read(X509)), (Word::Known(Method::OpenPgp), read(PGP))]
    }

    #[test]
    fn an_unreadable_print_keeps_its_text_and_its_method_in_every_translation() {
        let sha512 = "ab".repeat(64);
        for name in ["x509", "foo"] {
            let original = content(&format!(
                "<description xmlns='urn:xmpp:jingle:apps:tls'><methods><method name='{name}'>\
                 <print hash='sha-512'>{sha512}</print></method></methods></description>"
            ));
            let offered = Offer::read(&original);
            let [(Some(method), printed)] = offered.prints.as_slice() else {
                panic!("{offered:?}")
            };
            for to in [Dialect::Security, Dialect::Offer, Dialect::C2c] {
                let got = for_peer(&original, &[to], &[(method.clone(), printed.clone())]);
                assert_eq!(Dialect::of(&got), [to]);
                let read = Offer::read(&got);
                let [(_, Printed::Unread { text, hash })] = read.prints.as_slice() else {
                    panic!("{read:?}")
                };
                assert_eq!(*text, sha512);
                assert_eq!(hash.as_deref().unwrap_or("sha-512"), "sha-512");
                // Nobody offered another method.
                assert!(read.methods.iter().all(|listed| listed.as_str() == name), "{read:?}");
            }
        }
    }

    #[test]
    fn each_dialect_is_translated_into_each() {
        for (from, original) in offers() {
            assert_eq!(Dialect::of(&original), [from]);
            for (to, expected) in offers() {
                let got = for_peer(&original, &[to], &prints());
                assert_eq!(String::from(&got), String::from(&expected), "{from:?} to {to:?}");
            }
        }
    }

    #[test]
    fn a_known_dialect_and_a_silent_peer_leave_the_offer_as_it_is() {
        for (from, original) in offers() {
            // Neither colons nor case are corrected.
            let wild: Element =
                String::from(&original).replace("72:72:DF", "7272df").parse().unwrap();
            assert_eq!(for_peer(&wild, &[], &prints()), wild);
            assert_eq!(for_peer(&wild, &Dialect::ALL, &prints()), wild);
            assert_eq!(for_peer(&wild, &[from], &prints()), wild);
        }
    }

    #[test]
    fn another_application_keeps_its_description() {
        let file =
            "<description xmlns='urn:xmpp:jingle:apps:file-transfer:5'><file/></description>";
        let security = format!(
            "<security xmlns='urn:xmpp:jingle:security:xtls:0'><fingerprint>{X509}</fingerprint>\
             <method name='x509'/></security>"
        );
        let original = content(&format!("{file}<transport xmlns='urn:t'/>{security}"));
        let x509 = &prints()[..1];
        assert_eq!(for_peer(&original, &[Dialect::Methods], x509), original);
        for to in [Dialect::Offer, Dialect::C2c] {
            let got = for_peer(&original, &[Dialect::Methods, to], x509);
            let description =
                got.get_child("description", ns::FILE_TRANSFER).expect("it is still a file");
            assert!(description.has_child("file", ns::FILE_TRANSFER));
            assert!(!got.has_child("security", ns::XTLS));
            assert_eq!(Dialect::of(&got), [to]);
            assert_eq!(Offer::read(&got).prints.len(), 1);
            // And back.
            let back = for_peer(&got, &[Dialect::Security], x509);
            assert_eq!(Offer::read(&back), Offer::read(&original));
        }
    }

    #[test]
    fn what_a_method_has_beside_its_prints_goes_along() {
        let original = content(&format!(
            "<description xmlns='urn:xmpp:jingle:apps:tls'><methods><method name='openpgp' x='1'>\
             <print>{PGP}</print><profile xmlns='urn:fingerpost:xtls:0' name='openpgp-spki'/>\
             </method></methods></description>"
        ));
        let got = for_peer(&original, &[Dialect::Security], &prints()[1..]);
        let method = got.get_child("security", ns::XTLS).unwrap().get_child("method", ns::XTLS);
        assert_eq!(method.unwrap().attr("x"), Some("1"));
        assert!(method.unwrap().has_child("profile", ns::HINTS));
    }

    #[test]
    fn a_dialect_without_a_word_for_any_of_it_is_not_used() {
        let bare = content(
            "<description xmlns='urn:xmpp:jingle:apps:tls'><methods><method name='x509'/>\
             </methods></description>",
        );
        assert_eq!(for_peer(&bare, &[Dialect::C2c], &[]), bare);
        assert_eq!(for_peer(&bare, &[Dialect::Offer], &[]), bare, "bare methods are in both");
        let nothing = content("<description xmlns='urn:x'/>");
        assert_eq!(for_peer(&nothing, &Dialect::ALL[..1], &[]), nothing);
    }

    #[test]
    fn features_tell_the_dialects() {
        let features =
            |all: &[&str]| -> Vec<String> { all.iter().map(|&f| f.to_owned()).collect() };
        assert_eq!(Dialect::known(&features(&["urn:xmpp:jingle:1"])), []);
        for dialect in Dialect::ALL {
            assert_eq!(Dialect::known(&features(&["x", dialect.feature()])), [dialect]);
        }
    }
}
