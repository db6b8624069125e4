//! What a Jingle content offers for TLS, in any of its dialects.
//!
//! 1. `<description xmlns='urn:xmpp:jingle:apps:tls'>` with prints inside the methods,
//! 2. the same with bare methods and an `<offer xmlns='urn:xmpp:security-offer'/>` beside the transport,
//! 3. `<security xmlns='urn:xmpp:jingle:security:xtls:0'/>` with fingerprints and methods.
//!
//! An offer is only read here; what is passed on is always the element tree itself.

use minidom::Element;

use crate::{
    print::{HashKind, Method, Print},
    xmpp::{ns, xml},
};

/// The methods and prints of one content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Method names in the order offered, also those that are unknown here.
    pub methods: Vec<String>,
    /// Each print with its method, if the dialect says to which it belongs.
    pub prints: Vec<(Option<Method>, Print)>,
}

impl Offer {
    /// Reads all dialects that are in a `<content/>`. What is no print is passed over.
    pub fn read(content: &Element) -> Self {
        let mut offer = Self::default();
        for child in content.children() {
            if child.is("description", ns::APPS_TLS) {
                for methods in child.children().filter(|c| c.is("methods", ns::APPS_TLS)) {
                    for method in methods.children().filter(|c| c.is("method", ns::APPS_TLS)) {
                        let name = offer.add_method(method);
                        for print in method.children().filter(|c| c.is("print", ns::APPS_TLS)) {
                            offer.add_print(name, print, "hash");
                        }
                    }
                }
            } else if child.is("offer", ns::SECURITY_OFFER) {
                for print in child.children().filter(|c| c.is("print", ns::SECURITY_OFFER)) {
                    offer.add_print(None, print, "hash");
                }
            } else if child.is("security", ns::XTLS) {
                let mut named = Vec::new();
                for method in child.children().filter(|c| c.is("method", ns::XTLS)) {
                    named.push(offer.add_method(method));
                }
                let only = if let [one] = named.as_slice() { *one } else { None };
                for print in child.children().filter(|c| c.is("fingerprint", ns::XTLS)) {
                    offer.add_print(only, print, "algo");
                }
            }
        }
        offer
    }

    fn add_method(&mut self, element: &Element) -> Option<Method> {
        let name = element.attr("name").unwrap_or_default();
        if !name.is_empty() && !self.methods.iter().any(|known| known == name) {
            self.methods.push(name.to_owned());
        }
        name.parse().ok()
    }

    fn add_print(&mut self, method: Option<Method>, element: &Element, hash: &str) {
        let hash = element.attr(hash).and_then(|text| text.parse::<HashKind>().ok());
        if let Ok(print) = Print::parse(&element.text(), hash) {
            let known = |(m, p): &(Option<Method>, Print)| *m == method && p.same_bytes(&print);
            if !self.prints.iter().any(known) {
                self.prints.push((method, print));
            }
        }
    }
}

/// An x509 offer in the first dialect.
pub fn description(print: &str) -> Element {
    let mut description = Element::bare("description", ns::APPS_TLS);
    let mut methods = Element::bare("methods", ns::APPS_TLS);
    let mut method = xml::element("method", ns::APPS_TLS, &[("name", "x509")]);
    let mut element = Element::bare("print", ns::APPS_TLS);
    element.append_text(print);
    method.append_child(element);
    methods.append_child(method);
    description.append_child(methods);
    description
}

/// An x509 offer in the third dialect; `print` is one of SHA-256.
pub fn security(print: &str) -> Element {
    let mut security = Element::bare("security", ns::XTLS);
    let mut fingerprint = xml::element("fingerprint", ns::XTLS, &[("algo", "sha-256")]);
    fingerprint.append_text(print);
    security.append_child(fingerprint);
    security.append_child(xml::element("method", ns::XTLS, &[("name", "x509")]));
    security
}

/// Whether a content asks for TLS at all.
pub fn is_secured(content: &Element) -> bool {
    content
        .children()
        .any(|child| child.is("description", ns::APPS_TLS) || child.is("security", ns::XTLS))
}

/// A copy of a content without the prints in `gone`; a method that had prints and has none left goes too.
pub fn without(content: &Element, gone: &[Print]) -> Element {
    let mut copy = xml::head_in(content, &content.ns());
    for node in content.nodes() {
        let Some(child) = node.as_element() else {
            copy.append_node(node.clone());
            continue;
        };
        let is_print = matches!(child.name(), "print" | "fingerprint")
            && [ns::APPS_TLS, ns::SECURITY_OFFER, ns::XTLS].iter().any(|n| child.has_ns(*n));
        if is_print
            && Print::parse(&child.text(), None)
                .is_ok_and(|print| gone.iter().any(|other| other.same_bytes(&print)))
        {
            continue;
        }
        let kept = without(child, gone);
        let is_offer_part = matches!(child.name(), "method" | "security" | "offer");
        let prints = |e: &Element| {
            e.children().filter(|c| matches!(c.name(), "print" | "fingerprint")).count()
        };
        if is_offer_part && child.name() == "method" && prints(child) > 0 && prints(&kept) == 0 {
            continue;
        }
        copy.append_child(kept);
    }
    copy
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) const X509: &str = "72:72:DF:06:3A:4D:7D:80:97:0E:53:77:0A:8F:CD:A9:80:A3:CB:38";
    pub(crate) const PGP: &str = "E5:59:E9:8A:9B:C9:ED:0F:60:21:FD:EA:34:BF:24:E4:0D:B0:FE:FC";

    fn content(inside: &str) -> Element {
        format!("<content xmlns='urn:xmpp:jingle:0' creator='initiator' name='e2e-tls'>{inside}</content>")
            .parse()
            .unwrap()
    }

    fn seed_1() -> Element {
        content(&format!(
            "<description xmlns='urn:xmpp:jingle:apps:tls'><methods>\
             <method name='x509'>\n\n<print>{X509}</print></method>\
             <method name='openpgp'><print>{PGP}</print></method><method name='srp'/></methods>\
             </description><transport xmlns='urn:xmpp:jingle:transports:ibb:0'/>"
        ))
    }

    #[test]
    fn the_seeds_first_stanza_is_read() {
        let offer = Offer::read(&seed_1());
        assert_eq!(offer.methods, ["x509", "openpgp", "srp"]);
        assert_eq!(
            offer.prints,
            [
                (Some(Method::X509), Print::parse(X509, None).unwrap()),
                (Some(Method::OpenPgp), Print::parse(PGP, None).unwrap())
            ]
        );
        assert!(is_secured(&seed_1()));
    }

    #[test]
    fn the_seeds_second_stanza_is_read() {
        let offer = Offer::read(&content(&format!(
            "<description xmlns='urn:xmpp:jingle:apps:tls'><methods><method name='x509'/>\
             <method name='openpgp'/><method name='srp'/></methods></description>\
             <transport xmlns='urn:xmpp:jingle:transports:ibb:0'/>\
             <offer xmlns='urn:xmpp:security-offer'><print>{X509}</print><print>{PGP}</print></offer>"
        )));
        assert_eq!(offer.methods, ["x509", "openpgp", "srp"]);
        assert_eq!(offer.prints.iter().map(|(m, _)| *m).collect::<Vec<_>>(), [None, None]);
    }

    #[test]
    fn xtls_security_is_read() {
        let content = content(&format!(
            "<security xmlns='urn:xmpp:jingle:security:xtls:0'>\
             <fingerprint algo='sha1'>{}</fingerprint><method name='x509'/></security>",
            X509.replace(':', "").to_lowercase()
        ));
        let print = Print::parse(X509, None).unwrap();
        assert_eq!(Offer::read(&content).prints, [(Some(Method::X509), print)]);
        assert!(is_secured(&content));
    }

    #[test]
    fn a_stripped_print_takes_its_empty_method_along_and_nothing_else() {
        let stripped = without(&seed_1(), &[Print::parse(X509, None).unwrap()]);
        let offer = Offer::read(&stripped);
        assert_eq!(offer.methods, ["openpgp", "srp"]);
        assert_eq!(offer.prints.len(), 1);
        assert!(stripped.has_child("transport", ns::JINGLE_IBB_0));
        assert_eq!(without(&seed_1(), &[]), seed_1());
    }
}
