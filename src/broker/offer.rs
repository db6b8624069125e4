//! The TLS offer in a Jingle content, in any of its dialects.
//!
//! 1. `<description xmlns='urn:xmpp:jingle:apps:tls'>` with prints inside the methods,
//! 2. the same with bare methods and an `<offer xmlns='urn:xmpp:security-offer'/>` beside the transport,
//! 3. `<security xmlns='urn:xmpp:jingle:security:xtls:0'/>` with fingerprints and methods,
//! 4. `<offer xmlns='urn:xmpp:tmp:c2ctls'/>` of XEP-0250 in the description or beside it.
//!
//! An offer is only read here. The element tree itself is passed on; [`super::dialect`] rewrites it only for a peer
//! that knows none of its dialects.

use minidom::Element;

use super::dialect;
use crate::{
    print::{HashKind, Method, Print},
    xmpp::{ns, xml},
};

/// The methods and prints of one content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Method names in the order offered, including those that are unknown here.
    pub methods: Vec<String>,
    /// Each print with its method, if the dialect tells the method.
    pub prints: Vec<(Option<Method>, Print)>,
}

impl Offer {
    /// Reads all dialects in a `<content/>`. Skips everything that is not a print.
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
                    named.extend(offer.add_method(method).filter(|m| *m != Method::Srp));
                }
                let only = if let [one] = named.as_slice() { Some(*one) } else { None };
                for print in child.children().filter(|c| c.is("fingerprint", ns::XTLS)) {
                    offer.add_print(only, print, "algo");
                }
            }
            let described = child.children().filter(|_| child.name() == "description");
            for c2c in described.chain([child]).filter(|c| c.is("offer", ns::C2CTLS)) {
                offer.read_c2c(c2c);
            }
        }
        offer
    }

    /// Reads XEP-0250: keys by name, whatever their kind, and whether there is a password.
    fn read_c2c(&mut self, element: &Element) {
        for part in element.children() {
            if part.is("srp", ns::C2CTLS) {
                self.add_name("srp");
            } else if part.is("keyinfo", ns::TMP_PUBKEY)
                && let Some(name) = part.get_child("name", ns::TMP_PUBKEY)
            {
                self.add_print(None, name, "hash");
            }
        }
    }

    fn add_method(&mut self, element: &Element) -> Option<Method> {
        let name = element.attr("name").unwrap_or_default();
        self.add_name(name);
        name.parse().ok()
    }

    fn add_name(&mut self, name: &str) {
        if !name.is_empty() && !self.methods.iter().any(|known| known == name) {
            self.methods.push(name.to_owned());
        }
    }

    fn add_print(&mut self, method: Option<Method>, element: &Element, hash: &str) {
        let hash = element.attr(hash).and_then(|text| text.parse::<HashKind>().ok());
        if let Some(print) = read_print(&element.text(), hash) {
            // A print that is repeated without a method may be meant for another one: both are kept and judged.
            let known = |(m, p): &(Option<Method>, Print)| *m == method && p.same_bytes(&print);
            if !self.prints.iter().any(known) {
                self.prints.push((method, print));
            }
        }
    }
}

/// Reads a print of an offer. A text much longer than any fingerprint is not one: anyone can send it.
fn read_print(text: &str, hash: Option<HashKind>) -> Option<Print> {
    const LONGEST: usize = 1024;
    if text.len() > LONGEST {
        return None;
    }
    Print::parse(text, hash).ok()
}

/// Returns an x509 offer in the first dialect.
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

/// Returns an x509 offer in the third dialect; `print` is a SHA-256.
pub fn security(print: &str) -> Element {
    let mut security = Element::bare("security", ns::XTLS);
    let mut fingerprint = xml::element("fingerprint", ns::XTLS, &[("algo", "sha-256")]);
    fingerprint.append_text(print);
    security.append_child(fingerprint);
    security.append_child(xml::element("method", ns::XTLS, &[("name", "x509")]));
    security
}

/// Returns whether a content asks for TLS at all.
pub fn is_secured(content: &Element) -> bool {
    content
        .children()
        .any(|child| child.is("description", ns::APPS_TLS) || child.is("security", ns::XTLS))
        || content.has_child("offer", ns::SECURITY_OFFER)
        || dialect::is_c2c(content)
}

/// Returns a copy of a content without the prints in `gone`, and without the methods in `methods`. A method that loses
/// all the prints inside it is removed too.
pub fn without(content: &Element, gone: &[Print], methods: &[Method]) -> Element {
    let mut copy = xml::head_in(content, &content.ns());
    for node in content.nodes() {
        let Some(child) = node.as_element() else {
            copy.append_node(node.clone());
            continue;
        };
        if print_text(child)
            .and_then(|text| read_print(&text, None))
            .is_some_and(|print| gone.iter().any(|other| other.same_bytes(&print)))
        {
            continue;
        }
        let kept = without(child, gone, methods);
        if is_method(child) {
            let prints = |e: &Element| e.children().filter(|c| print_text(c).is_some()).count();
            let named = child.attr("name").and_then(|name| name.parse::<Method>().ok());
            let listed = named.is_some_and(|method| methods.contains(&method));
            if prints(&kept) == 0 && (prints(child) > 0 || listed) {
                continue;
            }
        }
        copy.append_child(kept);
    }
    copy
}

fn is_method(element: &Element) -> bool {
    element.name() == "method" && (element.has_ns(ns::APPS_TLS) || element.has_ns(ns::XTLS))
}

/// Returns the text of an element that holds a print.
fn print_text(element: &Element) -> Option<String> {
    match (element.name(), element.ns().as_str()) {
        ("print", ns::APPS_TLS | ns::SECURITY_OFFER) | ("fingerprint", ns::XTLS) => {
            Some(element.text())
        }
        ("keyinfo", ns::TMP_PUBKEY) => Some(element.get_child("name", ns::TMP_PUBKEY)?.text()),
        _ => None,
    }
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
    fn a_print_that_is_much_longer_than_any_is_not_read() {
        let offer = |room: usize| {
            let content = content(&format!(
                "<security xmlns='urn:xmpp:jingle:security:xtls:0'>\
                 <fingerprint>{}{X509}</fingerprint><method name='x509'/></security>",
                " ".repeat(room - X509.len())
            ));
            Offer::read(&content).prints.len()
        };
        assert_eq!((offer(1024), offer(1025)), (1, 0));
    }

    #[test]
    fn a_stripped_print_takes_its_empty_method_along_and_nothing_else() {
        let stripped = without(&seed_1(), &[Print::parse(X509, None).unwrap()], &[]);
        let offer = Offer::read(&stripped);
        assert_eq!(offer.methods, ["openpgp", "srp"]);
        assert_eq!(offer.prints.len(), 1);
        assert!(stripped.has_child("transport", ns::JINGLE_IBB_0));
        assert_eq!(without(&seed_1(), &[], &[]), seed_1());
    }

    #[test]
    fn xep_0250_is_read_in_the_description_and_beside_it() {
        let c2c = "<offer xmlns='urn:xmpp:tmp:c2ctls'><keyinfo xmlns='urn:xmpp:tmp:pubkey'>\
            <name>428b1358a286430f628da23fb33ddaf6e474f5c5</name></keyinfo><srp/></offer>";
        let inside = format!("<description xmlns='urn:x'>{c2c}</description>");
        for content in [content(&inside), content(c2c)] {
            let offer = Offer::read(&content);
            assert_eq!(offer.methods, ["srp"]);
            let print = Print::parse("428B1358A286430F628DA23FB33DDAF6E474F5C5", None).unwrap();
            assert_eq!(offer.prints, [(None, print.clone())]);
            assert!(is_secured(&content));
            let left = Offer::read(&without(&content, &[print], &[Method::X509]));
            assert_eq!((left.methods, left.prints.len()), (vec!["srp".to_owned()], 0));
        }
    }

    #[test]
    fn a_password_beside_it_does_not_hide_whose_a_fingerprint_is() {
        let content = content(&format!(
            "<security xmlns='urn:xmpp:jingle:security:xtls:0'><fingerprint>{X509}</fingerprint>\
             <method name='x509'/><method name='srp'/></security>"
        ));
        assert_eq!(Offer::read(&content).prints[0].0, Some(Method::X509));
    }
}
