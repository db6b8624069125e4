//! The offer of a file in the words of two protocols: stream initiation (XEP-0096) and Jingle (XEP-0234).
//!
//! | | stream initiation | Jingle |
//! |---|---|---|
//! | name, size | attributes of `<file/>` | elements of `<file/>` |
//! | time of the last change | attribute `date` | `<date/>` |
//! | type | attribute `mime-type` of `<si/>` | `<media-type/>` |
//! | MD5 | attribute `hash`, hex | `<hash algo='md5'/>`, base64 |
//! | description | `<desc/>` | `<desc/>` |
//! | a part can be had | `<range/>` | `<range/>` |
//!
//! A translation leaves out details that only one of them can express, such as a hash other than MD5.
//!
//! Spec: XEP-0096 1.3.1, section 4; XEP-0234 0.19.1, sections 5 and 6.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use minidom::Element;

use crate::{ns, xml};

/// The name of a file whose sender gives none. Stream initiation needs one.
const UNNAMED: &str = "file";
/// The bytes of an MD5.
const MD5: usize = 16;

/// A file as it is offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileOffer {
    /// Its name, as its sender writes it.
    pub name: String,
    /// Its bytes.
    pub size: u64,
    /// When it was last changed, as its sender writes it.
    date: Option<String>,
    /// Its media type.
    media_type: Option<String>,
    /// Its MD5.
    md5: Option<Vec<u8>>,
    /// What its sender says of it.
    desc: Option<String>,
    /// Whether the receiver may ask for a part of it.
    pub has_range: bool,
}

/// Why an offer cannot be expressed in the other protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileError {
    /// It asks for a file.
    Request,
    /// The name of the file is missing.
    Name,
    /// The size of the file is missing, or not a number.
    Size,
}

/// A part of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileRange {
    /// The number of the first byte.
    pub offset: u64,
    /// The bytes; `None`: up to the end of the file.
    pub length: Option<u64>,
}

impl FileRange {
    /// Returns how many bytes the part has in a file of this size; `None` if it is not a part of that file.
    pub fn of(self, size: u64) -> Option<u64> {
        let rest = size.checked_sub(self.offset)?;
        self.length.map_or(Some(rest), |length| (length <= rest).then_some(length))
    }

    /// Reads the part in a `<file/>`, if there is one.
    ///
    /// # Errors
    /// A number in it cannot be read.
    fn read(file: &Element) -> Result<Option<Self>, FileError> {
        let Some(range) = file.get_child("range", file.ns().as_str()) else {
            return Ok(None);
        };
        let number = |name| range.attr(name).map(str::parse).transpose();
        let offset = number("offset").map_err(|_| FileError::Size)?.unwrap_or_default();
        let length = number("length").map_err(|_| FileError::Size)?;
        Ok(Some(Self { offset, length }))
    }

    /// Reads the part that the answer of a receiver asks for, an `<si/>` or the content of a session-accept. Without one it
    /// asks for the whole file.
    ///
    /// # Errors
    /// A number in it cannot be read.
    pub fn asked(answer: &Element) -> Result<Self, FileError> {
        let file = match answer.has_ns(ns::SI) {
            true => answer.get_child("file", ns::SI_FILE),
            false => description(answer).and_then(file_of),
        };
        Ok(file.map(Self::read).transpose()?.flatten().unwrap_or_default())
    }

    /// Writes it as it stands in a `<file/>` of this namespace.
    pub fn to_element(self, namespace: &str) -> Element {
        let mut range = Element::bare("range", namespace);
        if self.offset > 0 {
            xml::set(&mut range, "offset", &self.offset.to_string());
        }
        if let Some(length) = self.length {
            xml::set(&mut range, "length", &length.to_string());
        }
        range
    }
}

/// Returns whether an element of a content is the description of a file.
fn describes_file(child: &Element) -> bool {
    child.name() == "description" && ns::FILE_TRANSFERS.contains(&child.ns().as_str())
}

/// Returns the description of a file in a content.
fn description(content: &Element) -> Option<&Element> {
    content.children().find(|child| describes_file(child))
}

/// Returns the file in a description. Version 3 has it inside an `<offer/>`.
fn file_of(description: &Element) -> Option<&Element> {
    let namespace = description.ns();
    let inside = description.get_child("offer", namespace.as_str()).unwrap_or(description);
    inside.get_child("file", namespace.as_str())
}

impl FileOffer {
    /// Reads the offer in an `<si/>`.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn of_si(si: &Element) -> Result<Self, FileError> {
        let file = si.get_child("file", ns::SI_FILE).ok_or(FileError::Name)?;
        let get = |name| file.attr(name).filter(|text| !text.is_empty()).map(str::to_owned);
        let md5 = get("hash").and_then(|hash| HEXLOWER_PERMISSIVE.decode(hash.as_bytes()).ok());
        Ok(Self {
            name: get("name").ok_or(FileError::Name)?,
            size: file.attr("size").and_then(|size| size.parse().ok()).ok_or(FileError::Size)?,
            date: get("date"),
            media_type: si.attr("mime-type").map(str::to_owned),
            md5: md5.filter(|md5| md5.len() == MD5),
            desc: text(file, "desc"),
            has_range: file.has_child("range", ns::SI_FILE),
        })
    }

    /// Reads the offer in the content of a session-initiate.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn of_jingle(content: &Element) -> Result<Self, FileError> {
        // A content without senders means both, and clients leave it out.
        let sends = !matches!(content.attr("senders"), Some("responder" | "none"));
        let file = description(content).and_then(file_of);
        let file = file.filter(|_| sends).ok_or(FileError::Request)?;
        let namespace = file.ns();
        let md5 = file
            .children()
            .find(|child| child.is("hash", ns::HASHES) && child.attr("algo") == Some("md5"));
        let md5 = md5.and_then(|hash| STANDARD.decode(hash.text().trim()).ok());
        Ok(Self {
            name: text(file, "name").unwrap_or_else(|| UNNAMED.to_owned()),
            size: text(file, "size")
                .and_then(|size| size.trim().parse().ok())
                .ok_or(FileError::Size)?,
            date: text(file, "date"),
            media_type: text(file, "media-type"),
            md5: md5.filter(|md5| md5.len() == MD5),
            desc: text(file, "desc"),
            has_range: file.has_child("range", namespace.as_str()),
        })
    }

    /// Writes it as an `<si/>` of this id that names no method yet.
    pub fn to_si(&self, id: &str) -> Element {
        let mut si = xml::element("si", ns::SI, &[("id", id), ("profile", ns::SI_FILE)]);
        if let Some(media_type) = &self.media_type {
            xml::set(&mut si, "mime-type", media_type);
        }
        let size = self.size.to_string();
        let attributes = [("name", self.name.as_str()), ("size", &size)];
        let mut file = xml::element("file", ns::SI_FILE, &attributes);
        if let Some(date) = &self.date {
            xml::set(&mut file, "date", date);
        }
        if let Some(md5) = &self.md5 {
            xml::set(&mut file, "hash", &HEXLOWER.encode(md5));
        }
        if let Some(desc) = &self.desc {
            file.append_child(with_text("desc", ns::SI_FILE, desc));
        }
        if self.has_range {
            file.append_child(Element::bare("range", ns::SI_FILE));
        }
        si.append_child(file);
        si
    }

    /// Writes it as the description of a Jingle content.
    pub fn to_jingle(&self) -> Element {
        let mut file = Element::bare("file", ns::FILE_TRANSFER);
        let size = self.size.to_string();
        for (name, value) in [
            ("media-type", self.media_type.as_deref()),
            ("name", Some(self.name.as_str())),
            ("date", self.date.as_deref()),
            ("desc", self.desc.as_deref()),
            ("size", Some(size.as_str())),
        ] {
            if let Some(value) = value {
                file.append_child(with_text(name, ns::FILE_TRANSFER, value));
            }
        }
        if let Some(md5) = &self.md5 {
            let mut hash = with_text("hash", ns::HASHES, &STANDARD.encode(md5));
            xml::set(&mut hash, "algo", "md5");
            file.append_child(hash);
        }
        if self.has_range {
            file.append_child(Element::bare("range", ns::FILE_TRANSFER));
        }
        let mut description = Element::bare("description", ns::FILE_TRANSFER);
        description.append_child(file);
        description
    }
}

/// Returns a copy of a content that has the description of the file and nothing else. The peer cannot accept anything else that the
/// user may have offered.
pub fn only(content: &Element) -> Element {
    let mut out = xml::head_in(content, &content.ns());
    content.children().filter(|child| describes_file(child)).for_each(|description| {
        out.append_child(description.clone());
    });
    out
}

/// Sets the part of the file that the answer of a receiver asks for: in the description of a session-accept's content.
pub fn set_range(content: &mut Element, range: FileRange) {
    let found = content.children_mut().find(|child| describes_file(child));
    let Some(description) = found else { return };
    let namespace = description.ns();
    let inside = match description.has_child("offer", namespace.as_str()) {
        true => description.get_child_mut("offer", namespace.as_str()),
        false => Some(description),
    };
    if let Some(file) = inside.and_then(|inside| inside.get_child_mut("file", namespace.as_str())) {
        xml::remove_children(file, "range", &namespace);
        if range != FileRange::default() {
            file.append_child(range.to_element(&namespace));
        }
    }
}

/// Returns the text of a child of a `<file/>`, if it has some.
fn text(file: &Element, name: &str) -> Option<String> {
    let child = file.get_child(name, file.ns().as_str())?;
    Some(child.text()).filter(|text| !text.is_empty())
}

fn with_text(name: &str, namespace: &str, text: &str) -> Element {
    let mut element = Element::bare(name, namespace);
    element.append_text(text);
    element
}

#[cfg(test)]
mod tests {
    use super::*;

    /// XEP-0096, example 2.
    const SI: &str = "<si xmlns='http://jabber.org/protocol/si' id='a0' mime-type='text/plain' \
        profile='http://jabber.org/protocol/si/profile/file-transfer'>\
        <file xmlns='http://jabber.org/protocol/si/profile/file-transfer' name='test.txt' size='1022' \
        hash='552da749930852c69ae5d2141d3766b1' date='1969-07-21T02:56:15Z'>\
        <desc>This is a test. If this were a real file...</desc><range/></file></si>";

    fn element(text: &str) -> Element {
        text.parse().unwrap()
    }

    /// Returns a content with an offer of a file; `file` is what is in its `<file/>`.
    fn content(senders: &str, namespace: &str, file: &str) -> Element {
        element(&format!(
            "<content xmlns='urn:xmpp:jingle:1' creator='initiator' name='f' {senders}>\
             <description xmlns='{namespace}'>{file}</description></content>"
        ))
    }

    #[test]
    fn an_offer_is_the_same_in_both_protocols() {
        let offer = FileOffer::of_si(&element(SI)).unwrap();
        assert_eq!((offer.name.as_str(), offer.size, offer.has_range), ("test.txt", 1022, true));
        let mut content = xml::element("content", ns::JINGLE, &[("senders", "initiator")]);
        content.append_child(offer.to_jingle());
        let file = content.get_child("description", ns::FILE_TRANSFER).unwrap();
        let file = file.get_child("file", ns::FILE_TRANSFER).unwrap();
        let said: Vec<(&str, String)> =
            file.children().map(|child| (child.name(), child.text())).collect();
        let desc = "This is a test. If this were a real file...".to_owned();
        let expected = [
            ("media-type", "text/plain".to_owned()),
            ("name", "test.txt".to_owned()),
            ("date", "1969-07-21T02:56:15Z".to_owned()),
            ("desc", desc),
            ("size", "1022".to_owned()),
            // `echo 552da749930852c69ae5d2141d3766b1 | xxd -r -p | base64`
            ("hash", "VS2nSZMIUsaa5dIUHTdmsQ==".to_owned()),
            ("range", String::new()),
        ];
        assert_eq!(said, expected);
        assert_eq!(FileOffer::of_jingle(&content).as_ref(), Ok(&offer));
        let si = offer.to_si("b1");
        assert_eq!((si.attr("id"), si.attr("profile")), (Some("b1"), Some(ns::SI_FILE)));
        assert_eq!(FileOffer::of_si(&si), Ok(offer));
    }

    #[test]
    fn what_an_offer_does_not_say_is_not_made_up() {
        let plain = content("", ns::FILE_TRANSFER, "<file><size> 7 </size></file>");
        let offer = FileOffer::of_jingle(&plain).unwrap();
        assert_eq!((offer.name.as_str(), offer.size), ("file", 7));
        let si = offer.to_si("b1");
        let file = si.get_child("file", ns::SI_FILE).unwrap();
        assert_eq!((file.children().count(), file.attrs().iter().count()), (0, 2));
        assert_eq!(si.attr("mime-type"), None);
        // Only MD5 has a place in stream initiation.
        let hashed = "<file><size>7</size><hash xmlns='urn:xmpp:hashes:2' algo='sha-256'>AAAA</hash>\
                      <hash xmlns='urn:xmpp:hashes:2' algo='md5'>AAAA</hash></file>";
        let offer = FileOffer::of_jingle(&content("", ns::FILE_TRANSFER, hashed)).unwrap();
        assert_eq!(offer.md5, None, "too short");
        let offered = "<offer><file><name>n</name><size>7</size></file></offer>";
        let old = content("senders='initiator'", ns::FILE_TRANSFERS[0], offered);
        assert_eq!(FileOffer::of_jingle(&old).unwrap().name, "n");
    }

    #[test]
    fn an_offer_that_the_other_protocol_cannot_say_is_named() {
        let file = "<file><size>7</size></file>";
        for (senders, inside, error) in [
            ("senders='responder'", file, FileError::Request),
            ("senders='none'", file, FileError::Request),
            ("", "<request><file><size>7</size></file></request>", FileError::Request),
            ("", "<file><name>n</name></file>", FileError::Size),
            ("", "<file><size>-1</size></file>", FileError::Size),
            ("", "<file><size>18446744073709551616</size></file>", FileError::Size),
        ] {
            let content = content(senders, ns::FILE_TRANSFER, inside);
            assert_eq!(FileOffer::of_jingle(&content), Err(error), "{senders} {inside}");
        }
        for (from, to, error) in [
            ("name='test.txt'", "", FileError::Name),
            ("name='test.txt'", "name=''", FileError::Name),
            ("size='1022'", "", FileError::Size),
            ("size='1022'", "size='1 kB'", FileError::Size),
        ] {
            let si = element(&SI.replace(from, to));
            assert_eq!(FileOffer::of_si(&si), Err(error), "{to}");
        }
    }

    #[test]
    fn a_part_that_is_asked_for_is_the_same_in_both_protocols() {
        let part = FileRange { offset: 7, length: Some(3) };
        let mut si = Element::bare("si", ns::SI);
        assert_eq!(FileRange::asked(&si), Ok(FileRange::default()));
        let mut file = Element::bare("file", ns::SI_FILE);
        file.append_child(part.to_element(ns::SI_FILE));
        si.append_child(file);
        assert_eq!(FileRange::asked(&si), Ok(part));
        for (namespace, inside) in [
            (ns::FILE_TRANSFER, "<file><size>9</size><range/></file>"),
            (ns::FILE_TRANSFERS[0], "<offer><file><size>9</size></file></offer>"),
        ] {
            let mut accept = content("", namespace, inside);
            assert_eq!(FileRange::asked(&accept), Ok(FileRange::default()));
            set_range(&mut accept, part);
            assert_eq!(FileRange::asked(&accept), Ok(part));
            set_range(&mut accept, FileRange::default());
            assert!(!String::from(&accept).contains("range"));
        }
        let bad = content("", ns::FILE_TRANSFER, "<file><range offset='-1'/></file>");
        assert_eq!(FileRange::asked(&bad), Err(FileError::Size));
    }

    #[test]
    fn any_number_of_parts_becomes_the_one_that_is_asked_for_and_the_rest_is_kept() {
        let many = "<range offset='1'/>".repeat(40_000);
        let file = format!("<file><name>n</name>{many}<size>9</size></file>");
        let mut accept = content("", ns::FILE_TRANSFER, &file);
        let part = FileRange { offset: 7, length: Some(3) };
        set_range(&mut accept, part);
        let file = description(&accept).and_then(file_of).unwrap();
        let names: Vec<&str> = file.children().map(Element::name).collect();
        assert_eq!(names, ["name", "size", "range"]);
        assert_eq!(FileRange::asked(&accept), Ok(part));
    }

    #[test]
    fn a_part_lies_inside_its_file() {
        for (offset, length, of_ten) in [
            (0, None, Some(10)),
            (10, None, Some(0)),
            (11, None, None),
            (4, Some(6), Some(6)),
            (4, Some(7), None),
            (u64::MAX, Some(u64::MAX), None),
        ] {
            assert_eq!(FileRange { offset, length }.of(10), of_ten, "{offset} {length:?}");
        }
    }
}
