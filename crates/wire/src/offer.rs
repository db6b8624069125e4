//! The TLS offer in a Jingle content, in any of its dialects.
//!
//! 1. `<description xmlns='urn:xmpp:jingle:apps:tls'>` with prints inside the methods,
//! 2. the same with bare methods and an `<offer xmlns='urn:xmpp:security-offer'/>` beside the transport,
//! 3. `<security xmlns='urn:xmpp:jingle:security:xtls:0'/>` with fingerprints and methods,
//! 4. `<offer xmlns='urn:xmpp:tmp:c2ctls'/>` of XEP-0250 in the description or beside it.
//!
//! An offer is only read here. The element tree itself is passed on; `dialect.rs` rewrites it only for a peer
//! that knows none of its dialects.
//!
//! # Security
//! Every element that a peer may take for a print counts as offered: at any depth, under any method, and whether its
//! text can be read here or not. Otherwise a user could hide a print from the verdicts and policies.

use std::{borrow::Cow, collections::HashSet, fmt};

use minidom::Element;

use crate::{
    ns,
    print::{HashKind, Method, Print},
    word::Word,
    xml,
};

/// The longest text that is read as a print, in bytes, with each run of white space as one byte. Anyone can send more.
const LONGEST: usize = 1024;
/// The longest part of an unreadable text that hints and refusals repeat, in characters.
const SHOWN: usize = 256;
/// The same for the name of its hash.
const SHOWN_HASH: usize = 64;

impl Word<Method> {
    /// Returns the method that a lenient peer may take the name for.
    pub fn likely(&self) -> Option<Method> {
        match self {
            Self::Known(method) => Some(*method),
            Self::Other(name) => name.trim().to_ascii_lowercase().parse().ok(),
        }
    }
}

/// A print as offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Printed {
    /// A fingerprint.
    Read(Print),
    /// A text that is not a fingerprint by a supported hash, and the name of its hash.
    Unread {
        /// The text.
        text: String,
        /// The name of the hash, as offered.
        hash: Option<String>,
    },
}

impl Printed {
    /// Returns whether an element holds a print.
    fn is_in(element: &Element) -> bool {
        matches!(
            (element.name(), element.ns().as_str()),
            ("print", ns::APPS_TLS | ns::SECURITY_OFFER)
                | ("fingerprint", ns::XTLS)
                | ("keyinfo", ns::TMP_PUBKEY)
        )
    }

    /// Reads an element that holds a print; `None` if the element is another one.
    fn of(element: &Element) -> Option<Self> {
        if !Self::is_in(element) {
            return None;
        }
        let text = match element.name() {
            // In XEP-0189 the text has an element of its own.
            "keyinfo" => element.get_child("name", ns::TMP_PUBKEY).unwrap_or(element).text(),
            _ => element.text(),
        };
        let named = match element.name() {
            "fingerprint" => element.attr("algo").or_else(|| element.attr("hash")),
            _ => element.attr("hash"),
        };
        let short = match text.len() {
            0..=LONGEST => Cow::Borrowed(text.as_str()),
            _ => Cow::Owned(text.split_whitespace().collect::<Vec<_>>().join(" ")),
        };
        let hash = named.and_then(|named| named.parse::<HashKind>().ok());
        // A wrong name of the hash does not hide the print of a revoked key.
        let mut hashes = hash.map(Some).into_iter().chain([None]);
        let print = (short.len() <= LONGEST)
            .then(|| hashes.find_map(|hash| Print::parse(&short, hash).ok()))
            .flatten();
        Some(print.map_or_else(
            || Self::Unread { text: text.trim().to_owned(), hash: named.map(str::to_owned) },
            Self::Read,
        ))
    }

    /// Returns the fingerprint, if it could be read.
    pub fn print(&self) -> Option<&Print> {
        match self {
            Self::Read(print) => Some(print),
            Self::Unread { .. } => None,
        }
    }

    /// Returns the value by which offered prints are compared: whether it was read, and its bytes.
    pub fn identity(&self) -> (bool, &[u8]) {
        match self {
            Self::Read(print) => (true, print.as_bytes()),
            Self::Unread { text, .. } => (false, text.as_bytes()),
        }
    }

    /// Returns the name of the hash for hints.
    pub fn hash(&self) -> Option<String> {
        match self {
            Self::Read(print) => Some(print.hash().as_str().to_owned()),
            Self::Unread { hash, .. } => hash.as_ref().map(|hash| shown(hash, SHOWN_HASH)),
        }
    }
}

impl fmt::Display for Printed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(print) => print.fmt(f),
            Self::Unread { text, .. } => f.write_str(&shown(text, SHOWN)),
        }
    }
}

/// Returns the beginning of a long text.
fn shown(text: &str, most: usize) -> String {
    let mut short: String = text.chars().take(most).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// The methods and prints of one content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Method names in the order offered, including those that are unknown here.
    pub methods: Vec<Word<Method>>,
    /// Each print with its method, if the offer tells the method.
    pub prints: Vec<(Option<Word<Method>>, Printed)>,
}

impl Offer {
    /// Reads all dialects in a `<content/>`.
    pub fn read(content: &Element) -> Self {
        let mut reader = OfferReader::default();
        reader.read(content, None);
        reader.offer
    }

    /// Returns whether it offers neither methods nor prints.
    pub fn is_empty(&self) -> bool {
        self.methods.is_empty() && self.prints.is_empty()
    }

    /// Returns the readable prints that may be meant for a method.
    pub fn prints_for(&self, method: Method) -> Vec<Print> {
        let fits = |name: &Option<Word<Method>>| name.as_ref().is_none_or(|name| *name == method);
        let prints = self.prints.iter().filter(|(name, _)| fits(name));
        prints.filter_map(|(_, printed)| printed.print().cloned()).collect()
    }
}

/// Collects an offer, without repetitions.
#[derive(Default)]
struct OfferReader {
    offer: Offer,
    methods: HashSet<Word<Method>>,
    prints: HashSet<(Option<Word<Method>>, bool, Vec<u8>)>,
}

impl OfferReader {
    /// Reads an element and everything inside it. `method`: that of the prints here.
    fn read(&mut self, element: &Element, method: Option<&Word<Method>>) {
        for child in element.children() {
            if let Some(printed) = Printed::of(child) {
                self.add_print(method, printed);
                continue;
            }
            let named = self.name(child).or_else(|| method.cloned());
            self.read(child, named.as_ref());
        }
    }

    /// Returns the method that an element names for the prints inside it, and notes the methods that it lists.
    fn name(&mut self, element: &Element) -> Option<Word<Method>> {
        match (element.name(), element.ns().as_str()) {
            ("method", ns::APPS_TLS) => self.add_method(element.attr("name").unwrap_or_default()),
            ("security", ns::XTLS) => {
                let listed = element.children().filter(|child| child.is("method", ns::XTLS));
                let names: Vec<Word<Method>> = listed
                    .filter_map(|method| self.add_method(method.attr("name").unwrap_or_default()))
                    .filter(|name| *name != Method::Srp)
                    .collect();
                let known = names.iter().filter(|name| name.known().is_some());
                match known.collect::<Vec<_>>().as_slice() {
                    [one] => Some((*one).clone()),
                    [] if names.len() == 1 => names.into_iter().next(),
                    _ => None,
                }
            }
            ("srp", ns::C2CTLS) => self.add_method("srp"),
            (name @ ("x509" | "openpgp"), ns::C2CTLS) => Some(Word::new(name)),
            _ => None,
        }
    }

    fn add_method(&mut self, name: &str) -> Option<Word<Method>> {
        if name.is_empty() {
            return None;
        }
        let method = Word::new(name);
        if self.methods.insert(method.clone()) {
            self.offer.methods.push(method.clone());
        }
        Some(method)
    }

    fn add_print(&mut self, method: Option<&Word<Method>>, printed: Printed) {
        // A print that is repeated without a method may be meant for another one: both are kept and judged.
        let (is_read, bytes) = printed.identity();
        if self.prints.insert((method.cloned(), is_read, bytes.to_vec())) {
            self.offer.prints.push((method.cloned(), printed));
        }
    }
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

/// How a content says that its stream is protected from end to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// By TLS, in any of the dialects.
    Tls,
    /// The file itself is encrypted: JET (XEP-0391).
    Jet,
    /// The file itself is encrypted by OMEMO, as before JET.
    Omemo,
    /// By a security element of another kind. This program cannot tell how much it protects.
    Other,
    /// Not at all.
    None,
}

/// Returns how a content says that its stream is protected. TLS goes before all else.
pub fn protection(content: &Element) -> Protection {
    let is_tls =
        |child: &Element| child.is("description", ns::APPS_TLS) || child.is("security", ns::XTLS);
    if content.children().any(is_tls)
        || content.has_child("offer", ns::SECURITY_OFFER)
        || is_c2c(content)
    {
        return Protection::Tls;
    }
    let inside = content.children().filter(|child| child.name() == "description");
    if content.children().chain(inside.flat_map(Element::children)).any(is_omemo) {
        return Protection::Omemo;
    }
    match content.children().find(|child| child.name() == "security") {
        Some(security) if security.ns() == ns::JET => Protection::Jet,
        Some(_) => Protection::Other,
        None => Protection::None,
    }
}

/// Returns whether an element, or a child of it, has an OMEMO key for a file.
fn is_omemo(element: &Element) -> bool {
    element.is("encrypted", ns::AXOLOTL) || element.has_child("encrypted", ns::AXOLOTL)
}

/// Returns a copy of a content without the prints in `gone`, and without the methods in `methods`. A method that loses
/// all the prints inside it is removed too.
pub fn without(content: &Element, gone: &[Printed], methods: &[Word<Method>]) -> Element {
    if gone.is_empty() && methods.is_empty() {
        return content.clone();
    }
    let prints: HashSet<_> = gone.iter().map(Printed::identity).collect();
    stripped(content, &prints, methods)
}

fn stripped(content: &Element, gone: &HashSet<(bool, &[u8])>, methods: &[Word<Method>]) -> Element {
    let mut copy = xml::head_in(content, &content.ns());
    for node in content.nodes() {
        let Some(child) = node.as_element() else {
            copy.append_node(node.clone());
            continue;
        };
        if Printed::of(child).is_some_and(|printed| gone.contains(&printed.identity())) {
            continue;
        }
        let kept = stripped(child, gone, methods);
        if is_method(child) {
            let named = child.attr("name").map(Word::new);
            let listed = named.is_some_and(|method| methods.contains(&method));
            if !has_prints(&kept) && (has_prints(child) || listed) {
                continue;
            }
        }
        copy.append_child(kept);
    }
    copy
}

/// Returns whether an element has prints at any depth.
fn has_prints(element: &Element) -> bool {
    element.children().any(|child| Printed::is_in(child) || has_prints(child))
}

fn is_method(element: &Element) -> bool {
    element.name() == "method" && (element.has_ns(ns::APPS_TLS) || element.has_ns(ns::XTLS))
}

/// Returns whether a content has an offer of XEP-0250, beside its description or in it.
pub(super) fn is_c2c(content: &Element) -> bool {
    let has = |element: &Element| element.has_child("offer", ns::C2CTLS);
    has(content) || content.children().any(|c| c.name() == "description" && has(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    const X509: &str = "72:72:DF:06:3A:4D:7D:80:97:0E:53:77:0A:8F:CD:A9:80:A3:CB:38";
    const PGP: &str = "E5:59:E9:8A:9B:C9:ED:0F:60:21:FD:EA:34:BF:24:E4:0D:B0:FE:FC";

    fn read(text: &str) -> Printed {
        Printed::Read(Print::parse(text, None).unwrap())
    }

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
        assert_eq!(offer.methods, [Method::X509, Method::OpenPgp, Method::Srp]);
        assert_eq!(
            offer.prints,
            [
                (Some(Word::Known(Method::X509)), read(X509)),
                (Some(Word::Known(Method::OpenPgp)), read(PGP))
            ]
        );
        assert!(protection(&seed_1()) == Protection::Tls);
    }

    #[test]
    fn the_seeds_second_stanza_is_read() {
        let offer = Offer::read(&content(&format!(
            "<description xmlns='urn:xmpp:jingle:apps:tls'><methods><method name='x509'/>\
             <method name='openpgp'/><method name='srp'/></methods></description>\
             <transport xmlns='urn:xmpp:jingle:transports:ibb:0'/>\
             <offer xmlns='urn:xmpp:security-offer'><print>{X509}</print><print>{PGP}</print></offer>"
        )));
        assert_eq!(offer.methods, [Method::X509, Method::OpenPgp, Method::Srp]);
        assert_eq!(offer.prints, [(None, read(X509)), (None, read(PGP))]);
    }

    #[test]
    fn xtls_security_is_read() {
        let content = content(&format!(
            "<security xmlns='urn:xmpp:jingle:security:xtls:0'>\
             <fingerprint algo='sha1'>{}</fingerprint><method name='x509'/></security>",
            X509.replace(':', "").to_lowercase()
        ));
        let expected = [(Some(Word::Known(Method::X509)), read(X509))];
        assert_eq!(Offer::read(&content).prints, expected);
        assert!(protection(&content) == Protection::Tls);
    }

    /// Texts that are not prints here; a peer may take each for one.
    const UNREADABLE: [&str; 5] = [
        "<P/>",
        "<P>hello</P>",
        "<P hash='sha-384'>ABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABAB\
         ABAB</P>",
        "<P>72:72:DF:06:3A:4D:7D:80:97:0E:53:77:0A:8F:CD:A9:80:A3:CB:38 \
         E5:59:E9:8A:9B:C9:ED:0F:60:21:FD:EA:34:BF:24:E4:0D:B0:FE:FC 00</P>",
        "<P><deep xmlns='urn:x'>72</deep></P>",
    ];

    /// The places of a print in each dialect, each with the method that it belongs to there.
    fn places() -> Vec<(String, Option<&'static str>)> {
        let tls = |inside: &str| {
            format!(
                "<description xmlns='urn:xmpp:jingle:apps:tls'><methods>{inside}</methods></description>"
            )
        };
        let security = |inside: &str| {
            format!("<security xmlns='urn:xmpp:jingle:security:xtls:0'>{inside}</security>")
        };
        let c2c = |inside: &str| format!("<offer xmlns='urn:xmpp:tmp:c2ctls'>{inside}</offer>");
        let keyinfo = "<keyinfo xmlns='urn:xmpp:tmp:pubkey'><name>T</name></keyinfo>";
        vec![
            (tls("<method name='x509'><P/></method>"), Some("x509")),
            (tls("<method name='foo'><P/></method>"), Some("foo")),
            (tls("<method name='X509'><P/></method>"), Some("X509")),
            (tls("<P/><method name='x509'/>"), None),
            (
                tls(
                    "<method name='x509'><x xmlns='urn:x'><print xmlns='urn:xmpp:jingle:apps:tls'>T\
                     </print></x></method>",
                ),
                Some("x509"),
            ),
            (
                "<offer xmlns='urn:xmpp:security-offer'><x xmlns='urn:x'>\
                 <print xmlns='urn:xmpp:security-offer'>T</print></x></offer>"
                    .to_owned(),
                None,
            ),
            (security("<F/><method name='x509'/><method name='srp'/>"), Some("x509")),
            (security("<F/><method name='foo'/>"), Some("foo")),
            (security("<F/>"), None),
            (c2c(keyinfo), None),
            (c2c(&format!("<x509>{keyinfo}</x509><srp/>")), Some("x509")),
            (c2c("<keyinfo xmlns='urn:xmpp:tmp:pubkey'/>"), None),
        ]
    }

    #[test]
    fn every_print_counts_wherever_it_stands_and_whatever_its_text_is() {
        for text in ["hello", "", X509, &"AB".repeat(64), &"x".repeat(5000)] {
            for (place, method) in places() {
                let place = place
                    .replace("<P/>", "<print>T</print>")
                    .replace("<F/>", "<fingerprint>T</fingerprint>")
                    .replace(">T", &format!(">{text}"));
                let content = content(&place);
                let offer = Offer::read(&content);
                let [(named, printed)] = offer.prints.as_slice() else {
                    panic!("{place} {offer:?}")
                };
                assert_eq!(named.as_ref().map(Word::as_str), method, "{place}");
                let empty = place.contains("tmp:pubkey'/>");
                assert_eq!(printed.print().is_some(), text == X509 && !empty, "{place}");
                let stripped = without(&content, std::slice::from_ref(printed), &[]);
                assert_eq!(Offer::read(&stripped).prints, [], "{place}");
            }
        }
    }

    #[test]
    fn an_unreadable_print_is_kept_with_its_text() {
        for element in UNREADABLE {
            let element = element.replace("<P", "<print").replace("</P>", "</print>");
            let content = content(&format!(
                "<offer xmlns='urn:xmpp:security-offer'>{element}<print>{X509}</print></offer>"
            ));
            let prints = Offer::read(&content).prints;
            assert!(matches!(prints[0].1, Printed::Unread { .. }), "{element} {prints:?}");
            assert_eq!(prints[1].1, read(X509), "{element}");
            assert_eq!(
                Offer::read(&without(&content, &[prints[0].1.clone()], &[])).prints.len(),
                1
            );
        }
    }

    #[test]
    fn neither_room_around_a_print_nor_a_wrong_hash_hides_it() {
        let offered = |element: &str| {
            let offer = format!("<offer xmlns='urn:xmpp:security-offer'>{element}</offer>");
            Offer::read(&content(&offer)).prints[0].1.clone()
        };
        let room = " ".repeat(5000);
        assert_eq!(offered(&format!("<print>{room}{X509}{room}</print>")), read(X509));
        for hash in ["sha-256", "sha-384", "spki-sha-256", ""] {
            assert_eq!(offered(&format!("<print hash='{hash}'>{X509}</print>")), read(X509));
        }
        let long = offered(&format!("<print>{}</print>", "ab ".repeat(5000)));
        assert_eq!(long.to_string().chars().count(), SHOWN + 1);
    }

    #[test]
    fn a_stripped_print_takes_its_empty_method_along_and_nothing_else() {
        let stripped = without(&seed_1(), &[read(X509)], &[]);
        let offer = Offer::read(&stripped);
        assert_eq!(offer.methods, [Method::OpenPgp, Method::Srp]);
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
            assert_eq!(offer.methods, [Method::Srp]);
            let print = read("428B1358A286430F628DA23FB33DDAF6E474F5C5");
            assert_eq!(offer.prints, [(None, print.clone())]);
            assert!(protection(&content) == Protection::Tls);
            let gone = [Word::Known(Method::X509)];
            let left = Offer::read(&without(&content, &[print], &gone));
            assert_eq!((left.methods, left.prints.len()), (vec![Method::Srp.into()], 0));
        }
    }

    #[test]
    fn a_password_beside_it_does_not_hide_whose_a_fingerprint_is() {
        let content = content(&format!(
            "<security xmlns='urn:xmpp:jingle:security:xtls:0'><fingerprint>{X509}</fingerprint>\
             <method name='x509'/><method name='srp'/></security>"
        ));
        assert_eq!(Offer::read(&content).prints[0].0, Some(Word::Known(Method::X509)));
    }
}
