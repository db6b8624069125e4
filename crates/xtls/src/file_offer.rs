//! The offer of a file, and its answer (XEP-0234).

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use fingerpost_wire::{ns, text::carried, xml};
use minidom::Element;
use sha2::{Digest, Sha256};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{display::is_hidden, output::XtlsError};

/// Bytes read or written at once.
pub(super) const CHUNK: usize = 64 * 1024;
/// The longest name of a file, in bytes: file systems accept 255, and ` (9999)` may be added.
const NAME: usize = 200;

/// The content of a file offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileOffer {
    pub(super) name: String,
    /// The size in bytes.
    pub(super) size: u64,
    pub(super) sha256: Option<Vec<u8>>,
    /// When the file was changed last, if the sender says so.
    pub(super) modified: Option<OffsetDateTime>,
    /// Whether the sender can start anywhere in the file.
    pub(super) ranged: bool,
}

impl FileOffer {
    /// Reads size, date and hash of a file.
    pub(super) fn of(path: &Path) -> Result<Self, XtlsError> {
        let bad = |error: io::Error| XtlsError::failed(format!("{}: {error}", path.display()));
        // A name that is not Unicode, or that XML cannot carry, gets replacement characters.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = carried(&name).into_owned();
        let mut file = File::open(path).map_err(bad)?;
        let changed = file.metadata().map_err(bad)?.mtime();
        let mut hash = Sha256::new();
        let mut size = 0;
        let mut buffer = vec![0; CHUNK];
        loop {
            let n = file.read(&mut buffer).map_err(bad)?;
            if n == 0 {
                break;
            }
            hash.update(&buffer[..n]);
            size += n as u64;
        }
        Ok(Self {
            name,
            size,
            sha256: Some(hash.finalize().to_vec()),
            modified: OffsetDateTime::from_unix_timestamp(changed).ok(),
            ranged: true,
        })
    }

    /// Returns the `<description/>` of an offer.
    pub(super) fn to_description(&self) -> Element {
        let mut file = Element::bare("file", ns::FILE_TRANSFER);
        let date = self.modified.and_then(|modified| modified.format(&Rfc3339).ok());
        let texts = [
            ("date", date),
            ("name", Some(self.name.clone())),
            ("size", Some(self.size.to_string())),
        ];
        for (name, text) in texts.into_iter().filter_map(|(name, text)| Some((name, text?))) {
            let mut child = Element::bare(name, ns::FILE_TRANSFER);
            child.append_text(text);
            file.append_child(child);
        }
        if self.ranged {
            file.append_child(Element::bare("range", ns::FILE_TRANSFER));
        }
        if let Some(sha256) = &self.sha256 {
            let mut hash = xml::element("hash", ns::HASHES, &[("algo", "sha-256")]);
            hash.append_text(STANDARD.encode(sha256));
            file.append_child(hash);
        }
        let mut description = Element::bare("description", ns::FILE_TRANSFER);
        description.append_child(file);
        description
    }

    /// Reads a `<file/>`.
    pub(super) fn parse(file: &Element) -> Result<Self, XtlsError> {
        let text = |name| file.get_child(name, ns::FILE_TRANSFER).map(Element::text);
        let size = text("size").and_then(|size| size.trim().parse().ok());
        let sha256 = file
            .children()
            .find(|child| child.is("hash", ns::HASHES) && child.attr("algo") == Some("sha-256"))
            .and_then(|hash| STANDARD.decode(hash.text().trim()).ok())
            .filter(|hash| hash.len() == 32);
        Ok(Self {
            name: safe_name(&text("name").unwrap_or_default()),
            size: size.ok_or_else(|| {
                XtlsError::refused("the offer does not say how large the file is")
            })?,
            sha256,
            // XEP-0082: a profile of RFC 3339.
            modified: text("date")
                .and_then(|date| OffsetDateTime::parse(date.trim(), &Rfc3339).ok()),
            ranged: file.has_child("range", ns::FILE_TRANSFER),
        })
    }
}

/// The part of a file that is sent (XEP-0234, 4): from `offset`, `length` bytes or all that follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) offset: u64,
    pub(super) length: Option<u64>,
}

impl Range {
    /// Returns the range in a receiver's answer; the whole file if it has none.
    pub(super) fn read(answer: Option<&Element>) -> Self {
        let range = answer
            .and_then(|description| description.get_child("file", ns::FILE_TRANSFER))
            .and_then(|file| file.get_child("range", ns::FILE_TRANSFER));
        let number = |name| range?.attr(name)?.parse().ok();
        Self { offset: number("offset").unwrap_or(0), length: number("length") }
    }
}

/// Returns whether a receiver's answer accepts a file.
pub(super) fn is_accepted(answer: Option<&Element>) -> bool {
    answer.is_some_and(|description| {
        description.is("description", ns::FILE_TRANSFER)
            && description.has_child("file", ns::FILE_TRANSFER)
    })
}

/// Returns the answer to an offer: the same with the requested range.
pub(super) fn answer(description: &Element, offset: u64) -> Element {
    let mut answer = description.clone();
    if let Some(file) = answer.get_child_mut("file", ns::FILE_TRANSFER) {
        file.remove_child("range", ns::FILE_TRANSFER);
        let offset = offset.to_string();
        let attributes: &[_] = if offset == "0" { &[] } else { &[("offset", offset.as_str())] };
        file.append_child(xml::element("range", ns::FILE_TRANSFER, attributes));
    }
    answer
}

/// Returns a name that stays inside its directory, shows its real type, and is valid on every file system.
///
/// Only the last part of a path counts. Line feeds inside become `_`. Removed are:
/// - characters that are invisible or change the reading order ([`is_hidden`]),
/// - leading dots, dashes and spaces: hidden files, options of commands,
/// - trailing dots and spaces, which Windows drops, so that two names would be one.
///
/// A name that Windows reserves for a device (`NUL`, `com1.txt`) gets a `_` in front. The length is at most [`NAME`]
/// bytes; the extension stays if it is short, also one of two parts (`.tar.gz`). If nothing is left, the name is `file`.
pub(super) fn safe_name(name: &str) -> String {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let edge = |c: char| c == '.' || c.is_whitespace();
    let name: String = last
        .trim_matches(edge)
        .chars()
        .map(|c| if c == '\n' { '_' } else { c })
        .filter(|c| !is_hidden(*c))
        .collect();
    let name = name.trim_start_matches(|c| edge(c) || c == '-').trim_end_matches(edge);
    let extension = if name.len() > NAME { extension(name) } else { "" };
    let name = if name.len() <= NAME {
        name.to_owned()
    } else {
        let end = (0..=NAME - extension.len()).rev().find(|end| name.is_char_boundary(*end));
        let stem = name[..end.unwrap_or_default()].trim_end_matches(edge);
        format!("{stem}{extension}")
    };
    let device = name.split('.').next().unwrap_or_default().trim_end();
    match name.as_str() {
        "" => "file".to_owned(),
        _ if is_device(device) => format!("_{name}"),
        _ => name,
    }
}

/// Returns the extension of a name, with its dot; empty if there is none of at most 16 bytes.
fn extension(name: &str) -> &str {
    let Some((stem, last)) = name.rsplit_once('.') else { return "" };
    let whole = &name[stem.len()..];
    let double = stem.ends_with(".tar").then(|| &name[stem.len() - ".tar".len()..]);
    double
        .filter(|_| last.len() <= 4)
        .or_else(|| (whole.len() <= 16).then_some(whole))
        .unwrap_or("")
}

/// Returns whether a name, without its extensions, is that of a device on Windows.
fn is_device(stem: &str) -> bool {
    let stem = stem.to_ascii_uppercase();
    let numbered = ["COM", "LPT"].iter().find_map(|port| stem.strip_prefix(port));
    matches!(stem.as_str(), "CON" | "PRN" | "AUX" | "NUL" | "CONIN$" | "CONOUT$")
        || numbered.is_some_and(|n| {
            matches!(n, "0" | "1" | "2" | "3" | "4" | "5" | "6" | "7" | "8" | "9" | "¹" | "²" | "³")
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::macros::datetime;

    use super::*;

    #[test]
    fn names_stay_inside_their_directory() {
        let long = format!("{}.tar.gz", "ä".repeat(300));
        let report = format!("{}.pdf", "r".repeat(200));
        for (given, safe) in [
            ("../../etc/passwd", "passwd"),
            ("C:\\x\\y.txt", "y.txt"),
            (".bashrc", "bashrc"),
            ("-rf", "rf"),
            (" .-. .x", "x"),
            ("a\u{202e}txt.exe\n", "atxt.exe"),
            ("a\u{61c}b\u{2028}c\u{2029}d\u{feff}e\u{e0041}f\u{ad}g\u{fe0f}h", "abcdefgh"),
            ("\u{200b}", "file"),
            ("report.pdf. . ", "report.pdf"),
            ("nul", "_nul"),
            ("COM1.tar.gz", "_COM1.tar.gz"),
            ("comet.txt", "comet.txt"),
            ("Größe 12:30?.txt", "Größe 12:30?.txt"),
            ("one\ntwo\r\nthree.txt", "one_two_three.txt"),
            ("\n\t-rf\n", "rf"),
            (&long, &format!("{}.tar.gz", "ä".repeat(96))),
            (&report, &format!("{}.pdf", "r".repeat(196))),
            ("..", "file"),
            ("", "file"),
        ] {
            assert_eq!(safe_name(given), safe, "{given:?}");
        }
    }

    proptest! {
        #[test]
        fn any_name_becomes_one_that_is_safe(
            name in "\\PC{0,40}|.{0,300}|[./ a\u{202e}\u{2066}\u{200b}\u{e0041}\u{0}-\u{1f}\\\\-]{0,30}",
        ) {
            let safe = safe_name(&name);
            prop_assert!(!safe.is_empty() && safe.len() <= NAME + 1, "{safe:?}");
            prop_assert!(!safe.contains(['/', '\\', '\0']), "{safe:?}");
            prop_assert!(!safe.starts_with(['.', '-', ' ']) && !safe.ends_with(['.', ' ']), "{safe:?}");
            prop_assert!(!safe.chars().any(is_hidden), "{safe:?}");
            prop_assert!(!is_device(safe.split('.').next().unwrap()), "{safe:?}");
            let parts: Vec<_> = Path::new(&safe).components().collect();
            prop_assert!(matches!(parts[..], [std::path::Component::Normal(_)]), "{safe:?}");
            prop_assert_eq!(safe_name(&safe), safe);
        }
    }

    #[test]
    fn a_date_is_read_as_xep_0082_has_it_and_nothing_else_is() {
        let read = |date: &str| {
            let file = format!(
                "<file xmlns='{}'><date>{date}</date><size>1</size></file>",
                ns::FILE_TRANSFER
            );
            FileOffer::parse(&file.parse().unwrap()).unwrap().modified
        };
        let known = Some(datetime!(2015-07-26 21:46:00 UTC));
        assert_eq!(read("2015-07-26T21:46:00Z"), known);
        assert_eq!(read(" 2015-07-26T23:46:00.000+02:00\n"), known);
        for wrong in ["", "2015-07-26", "20150726T21:46:00", "yesterday", "2015-13-26T21:46:00Z"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_offer_and_the_range_in_its_answer_are_read_back() {
        let offer = FileOffer {
            name: "a.txt".into(),
            size: 5,
            sha256: Some(vec![1; 32]),
            modified: Some(datetime!(2015-07-26 21:46:00 UTC)),
            ranged: true,
        };
        let description = offer.to_description();
        let file = description.get_child("file", ns::FILE_TRANSFER).unwrap();
        let date = file.get_child("date", ns::FILE_TRANSFER).unwrap().text();
        assert_eq!(date, "2015-07-26T21:46:00Z");
        assert_eq!(FileOffer::parse(file), Ok(offer));
        assert_eq!(Range::read(Some(&description)), Range::default());
        let range = Range::read(Some(&answer(&description, 270_336)));
        assert_eq!(range, Range { offset: 270_336, length: None });
        assert_eq!(Range::read(None), Range::default());
    }
}
