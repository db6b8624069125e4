//! Stream initiation for files, read and written (XEP-0095, XEP-0096), and the offer of SOCKS5 addresses that follows it
//! (XEP-0065).
//!
//! ```text
//! sender                                receiver
//!   <si id='S'> file, its methods      →
//!   ← <si> the chosen method
//!   SOCKS5:  <query sid='S'> addresses →     in-band:  <open sid='S'> →
//!   ← <query> the address used
//! ```

use minidom::Element;

use crate::{ns, xml};

/// The name of the field that has the methods.
const FIELD: &str = "stream-method";
/// The longest id of a stream, in bytes: each stanza of the stream repeats it.
const SID: usize = 1024;

/// The ways in which a stream may be carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SiMethods {
    /// SOCKS5 bytestreams.
    pub socks5: bool,
    /// In-band bytestreams.
    pub ibb: bool,
}

impl SiMethods {
    /// Returns those that both have.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { socks5: self.socks5 && other.socks5, ibb: self.ibb && other.ibb }
    }

    /// Returns whether there is none.
    pub fn is_empty(self) -> bool {
        !self.socks5 && !self.ibb
    }

    /// Returns whether this one is among them.
    pub fn has(self, method: SiMethod) -> bool {
        match method {
            SiMethod::Socks5 => self.socks5,
            SiMethod::Ibb => self.ibb,
        }
    }
}

/// The one way in which a stream is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiMethod {
    /// SOCKS5 bytestreams.
    Socks5,
    /// In-band bytestreams.
    Ibb,
}

impl SiMethod {
    /// Returns its namespace, by which it is named.
    pub fn namespace(self) -> &'static str {
        match self {
            Self::Socks5 => ns::BYTESTREAMS,
            Self::Ibb => ns::IBB,
        }
    }
}

/// Why an offer is not one of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiError {
    /// Its id is missing, or too long.
    Id,
    /// Its profile is not that of files.
    Profile,
    /// The file is missing.
    File,
    /// It names none of the known methods.
    Methods,
}

/// Reads the offer of a file: its id and the sender's methods.
///
/// # Errors
/// [`SiError`].
///
/// Spec: XEP-0095 1.2, section 3.2; XEP-0096 1.3.1, section 4.
pub fn offer(si: &Element) -> Result<(&str, SiMethods), SiError> {
    let id = si.attr("id").filter(|id| (1..=SID).contains(&id.len())).ok_or(SiError::Id)?;
    if si.attr("profile") != Some(ns::SI_FILE) {
        return Err(SiError::Profile);
    }
    if !si.has_child("file", ns::SI_FILE) {
        return Err(SiError::File);
    }
    let mut methods = SiMethods::default();
    for value in values(si) {
        methods.socks5 |= value == ns::BYTESTREAMS;
        methods.ibb |= value == ns::IBB;
    }
    if methods.is_empty() {
        return Err(SiError::Methods);
    }
    Ok((id, methods))
}

/// Returns the method that an answer chooses. `None`: none that is known.
pub fn chosen(si: &Element) -> Option<SiMethod> {
    values(si).into_iter().find_map(|value| {
        [SiMethod::Socks5, SiMethod::Ibb].into_iter().find(|method| method.namespace() == value)
    })
}

/// Returns the values of the field that has the methods, whether they are options or chosen.
fn values(si: &Element) -> Vec<String> {
    let fields = si
        .get_child("feature", ns::FEATURE_NEG)
        .and_then(|feature| feature.get_child("x", ns::DATA))
        .into_iter()
        .flat_map(Element::children)
        .filter(|field| field.is("field", ns::DATA) && field.attr("var") == Some(FIELD));
    let mut found = Vec::new();
    for child in fields.flat_map(Element::children) {
        let values = child.children().filter(|value| value.is("value", ns::DATA));
        if child.is("option", ns::DATA) {
            found.extend(values.map(Element::text));
        } else if child.is("value", ns::DATA) {
            found.push(child.text());
        }
    }
    found
}

/// Returns an offer under another id, with other methods. `mark`: the text that says that nothing encrypts the file; it
/// follows the file's description, which clients show.
pub fn reoffer(si: &Element, id: &str, methods: SiMethods, mark: Option<&str>) -> Element {
    let mut field = xml::element("field", ns::DATA, &[("var", FIELD), ("type", "list-single")]);
    let known = [(methods.socks5, SiMethod::Socks5), (methods.ibb, SiMethod::Ibb)];
    for (_, method) in known.into_iter().filter(|(offered, _)| *offered) {
        let mut option = Element::bare("option", ns::DATA);
        option.append_child(value(method));
        field.append_child(option);
    }
    let mut out = with_field(si, "form", field);
    xml::set(&mut out, "id", id);
    if let Some(text) = mark {
        out.append_child(Element::bare("unencrypted", ns::HINTS));
        // One file, with one description: all that a client may show is marked.
        let files = xml::remove_children(&mut out, "file", ns::SI_FILE);
        if let Some(mut file) = files.into_iter().next() {
            describe(&mut file, text);
            out.append_child(file);
        }
    }
    out
}

/// Returns an answer to the offer of this id with another method, and with the mark if nothing encrypts the file.
pub fn answer(si: &Element, id: &str, method: SiMethod, is_marked: bool) -> Element {
    let mut field = xml::element("field", ns::DATA, &[("var", FIELD)]);
    field.append_child(value(method));
    let mut out = with_field(si, "submit", field);
    if out.attr("id").is_some() {
        xml::set(&mut out, "id", id);
    }
    if is_marked {
        out.append_child(Element::bare("unencrypted", ns::HINTS));
    }
    out
}

fn value(method: SiMethod) -> Element {
    let mut value = Element::bare("value", ns::DATA);
    value.append_text(method.namespace());
    value
}

/// Returns a copy of an `<si/>` whose negotiation has this field alone, and without a mark that a user has set.
fn with_field(si: &Element, type_: &str, field: Element) -> Element {
    let mut out = xml::head_in(si, ns::SI);
    for child in si.children() {
        if !child.is("feature", ns::FEATURE_NEG) && !child.is("unencrypted", ns::HINTS) {
            out.append_child(child.clone());
        }
    }
    let mut form = xml::element("x", ns::DATA, &[("type", type_)]);
    form.append_child(field);
    let mut feature = Element::bare("feature", ns::FEATURE_NEG);
    feature.append_child(form);
    out.append_child(feature);
    out
}

/// Adds a text to the description of a file, which has one description then: which of several a client shows is unknown.
fn describe(file: &mut Element, text: &str) {
    let old = xml::remove_children(file, "desc", ns::SI_FILE);
    let described = old.iter().map(Element::text).find(|text| !text.is_empty()).unwrap_or_default();
    let separator = if described.is_empty() { "" } else { "\n" };
    let mut desc = Element::bare("desc", ns::SI_FILE);
    desc.append_text(format!("{described}{separator}{text}"));
    file.append_child(desc);
}

/// Returns whether a user's `<query/>` offers the component's own SOCKS5 addresses, for TCP.
pub fn offers_host(query: &Element, component: &str) -> bool {
    let is_tcp = query.attr("mode").is_none_or(|mode| mode == "tcp");
    is_tcp
        && query.children().any(|child| {
            child.is("streamhost", ns::BYTESTREAMS) && child.attr("jid") == Some(component)
        })
}

/// Returns a `<query/>` that offers the component's own SOCKS5 addresses.
pub fn hosts(sid: &str, component: &str, advertise: &[(String, u16)]) -> Element {
    let mut query = xml::element("query", ns::BYTESTREAMS, &[("sid", sid), ("mode", "tcp")]);
    for (host, port) in advertise {
        let port = port.to_string();
        let attributes = [("jid", component), ("host", host), ("port", &port)];
        query.append_child(xml::element("streamhost", ns::BYTESTREAMS, &attributes));
    }
    query
}

/// Returns the answer that says that the component's own addresses are used.
pub fn host_used(sid: &str, component: &str) -> Element {
    let mut query = xml::element("query", ns::BYTESTREAMS, &[("sid", sid)]);
    query.append_child(xml::element("streamhost-used", ns::BYTESTREAMS, &[("jid", component)]));
    query
}

/// Returns whether an answer says that the component's own addresses are used.
pub fn uses_host(query: &Element, component: &str) -> bool {
    query
        .get_child("streamhost-used", ns::BYTESTREAMS)
        .is_some_and(|used| used.attr("jid") == Some(component))
}

#[cfg(test)]
mod tests {
    use std::str::FromStr as _;

    use super::*;

    /// XEP-0096, example 1, with both methods of XEP-0095.
    const OFFER: &str = "<si xmlns='http://jabber.org/protocol/si' id='a0' mime-type='text/plain' \
        profile='http://jabber.org/protocol/si/profile/file-transfer'>\
        <file xmlns='http://jabber.org/protocol/si/profile/file-transfer' name='test.txt' size='1022'>\
        <desc>This is info about the file.</desc><range/></file>\
        <feature xmlns='http://jabber.org/protocol/feature-neg'><x xmlns='jabber:x:data' type='form'>\
        <field var='stream-method' type='list-single'>\
        <option><value>http://jabber.org/protocol/bytestreams</value></option>\
        <option><value>http://jabber.org/protocol/ibb</value></option></field></x></feature></si>";

    fn si() -> Element {
        Element::from_str(OFFER).unwrap()
    }

    #[test]
    fn an_offer_is_read_and_made_again_for_another_receiver() {
        let both = SiMethods { socks5: true, ibb: true };
        assert_eq!(offer(&si()), Ok(("a0", both)));
        let ibb = SiMethods { ibb: true, ..SiMethods::default() };
        let other = reoffer(&si(), "b1", ibb, Some("Nothing encrypts it"));
        assert_eq!(offer(&other), Ok(("b1", ibb)));
        let file = other.get_child("file", ns::SI_FILE).unwrap();
        assert!(file.has_child("range", ns::SI_FILE));
        let desc = file.get_child("desc", ns::SI_FILE).unwrap().text();
        assert_eq!(desc, "This is info about the file.\nNothing encrypts it");
        // A client may show any of several descriptions or files, so one of each goes on.
        let twice = "<desc>one</desc><desc>two</desc></file><file xmlns='http://jabber.org/protocol/si/profile/file-transfer' \
            name='b' size='1'>";
        let twice = OFFER.replace("<desc>This is info about the file.</desc>", twice);
        let si =
            reoffer(&Element::from_str(&twice).unwrap(), "b0", both, Some("Nothing encrypts it"));
        let files: Vec<_> = si.children().filter(|child| child.name() == "file").collect();
        let descs: Vec<_> = files[0].children().filter(|child| child.name() == "desc").collect();
        assert_eq!((files.len(), descs.len()), (1, 1));
        assert_eq!(
            (files[0].attr("name"), descs[0].text().as_str()),
            (Some("test.txt"), "one\nNothing encrypts it")
        );
        assert!(other.has_child("unencrypted", ns::HINTS));
        // A user cannot set the mark.
        let plain = reoffer(&other, "c2", both, None);
        assert!(!plain.has_child("unencrypted", ns::HINTS));
        assert_eq!(offer(&plain), Ok(("c2", both)));
    }

    #[test]
    fn of_any_number_of_descriptions_and_files_one_is_left_and_the_rest_of_the_offer_is_kept() {
        let descs = format!("<desc/>{}<range/>", "<desc>many</desc>".repeat(40_000));
        let files = format!("<file xmlns='{}'/>", ns::SI_FILE).repeat(40_000);
        let many = OFFER
            .replace("<desc>This is info about the file.</desc><range/>", &descs)
            .replace("<feature ", &format!("{files}<other xmlns='urn:o'/><feature "));
        let both = SiMethods { socks5: true, ibb: true };
        let si = reoffer(&Element::from_str(&many).unwrap(), "b0", both, Some("mark"));
        let names: Vec<&str> = si.children().map(Element::name).collect();
        assert_eq!(names, ["other", "feature", "unencrypted", "file"]);
        let file = si.get_child("file", ns::SI_FILE).unwrap();
        let inside: Vec<_> = file.children().map(|child| (child.name(), child.text())).collect();
        let expected = [("range", String::new()), ("desc", "many\nmark".to_owned())];
        assert_eq!(inside, expected);
    }

    #[test]
    fn an_answer_chooses_one_method() {
        for method in [SiMethod::Socks5, SiMethod::Ibb] {
            let answer = answer(&si(), "b1", method, true);
            assert_eq!((chosen(&answer), answer.attr("id")), (Some(method), Some("b1")));
            assert!(answer.has_child("unencrypted", ns::HINTS));
            let form = answer.get_child("feature", ns::FEATURE_NEG).unwrap();
            assert_eq!(form.get_child("x", ns::DATA).unwrap().attr("type"), Some("submit"));
        }
        let other = OFFER.replace("bytestreams<", "unknown<").replace("ibb<", "unknown<");
        assert_eq!(chosen(&Element::from_str(&other).unwrap()), None);
    }

    #[test]
    fn what_is_not_an_offer_of_a_file_is_named() {
        for (from, to, error) in [
            (" id='a0'", "", SiError::Id),
            (" id='a0'", " id=''", SiError::Id),
            ("profile='http://jabber.org/protocol/si/profile/file-transfer'", "", SiError::Profile),
            ("<file ", "<tree ", SiError::File),
            ("protocol/bytestreams", "protocol/x", SiError::Methods),
        ] {
            let changed = OFFER
                .replace(from, to)
                .replace("</file>", if to == "<tree " { "</tree>" } else { "</file>" });
            let changed = match error {
                SiError::Methods => changed.replace("protocol/ibb", "protocol/y"),
                _ => changed,
            };
            assert_eq!(offer(&Element::from_str(&changed).unwrap()), Err(error), "{from}");
        }
    }

    #[test]
    fn only_the_addresses_of_the_component_count() {
        let query = hosts("s", "xtls.example.org", &[("proxy.example.org".to_owned(), 7625)]);
        assert!(offers_host(&query, "xtls.example.org"));
        assert!(!offers_host(&query, "other.example.org"));
        let mut udp = query.clone();
        xml::set(&mut udp, "mode", "udp");
        assert!(!offers_host(&udp, "xtls.example.org"));
        let used = host_used("s", "xtls.example.org");
        assert!(uses_host(&used, "xtls.example.org"));
        assert!(!uses_host(&used, "other.example.org"));
    }
}
