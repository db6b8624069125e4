//! Reads fingerprints in all common forms: the output of openssl, certtool, keytool, certutil, gpg, sq and sha256sum,
//! as a line or as a whole page, and the display of chat programs.
//!
//! A page has many hexadecimal numbers. A number is a fingerprint if its length fits and the words before it do not say
//! otherwise; the same words tell what it is the fingerprint of.

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use data_encoding::HEXLOWER_PERMISSIVE;
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

use super::{HashKind, Method, Print, PrintError};

/// The fewest digits that a person may take for a fingerprint.
const SHORTEST: usize = 16;
/// The longest text that is read, in bytes: a tool's page about one key is much shorter.
const LONGEST: usize = 64 << 10;
/// How far before a number the describing words may stand, in bytes.
const NEAR: usize = 256;

/// The object of a fingerprint, as far as its text tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    Unsaid,
    Certificate,
    Spki,
    OpenPgp,
}

/// A fingerprint in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    subject: Subject,
    /// Its 20 or 32 bytes.
    bytes: Vec<u8>,
}

/// All possible fingerprints in a text.
#[derive(Debug, Default)]
struct PrintedPage {
    found: Vec<Found>,
    /// What the text has instead, if it has no fingerprint.
    instead: Option<PrintError>,
}

impl Print {
    /// Reads the print in a text, in any form that tools and programs show. Without a `hash`, the words around it and
    /// its length decide.
    ///
    /// # Errors
    /// [`PrintError`] says what is missing.
    pub fn parse(text: &str, hash: Option<HashKind>) -> Result<Self, PrintError> {
        read(text, None, hash)
    }

    /// Reads the print of a key of this method. Of several prints on a page, takes the one for this method.
    ///
    /// # Errors
    /// [`PrintError`], also if the text says that the print is of another kind of key.
    pub fn read(text: &str, method: Method, hash: Option<HashKind>) -> Result<Self, PrintError> {
        read(text, Some(method), hash)
    }

    /// Reads a print that will identify a key from now on: never a certificate's SHA-1, which can be forged.
    ///
    /// # Errors
    /// [`PrintError`]
    pub fn pin(text: &str, method: Method) -> Result<Self, PrintError> {
        let print = Self::read(text, method, None)?;
        if method == Method::X509 && print.hash == HashKind::Sha1 {
            let says = text.to_ascii_lowercase().replace(['-', '_'], "");
            return Err(match says.contains("sha1") {
                true => PrintError::Sha1,
                false => PrintError::Sha1OrOpenPgp,
            });
        }
        Ok(print)
    }
}

/// Reads the single fingerprint in a text.
fn read(text: &str, method: Option<Method>, hash: Option<HashKind>) -> Result<Print, PrintError> {
    if text.len() > LONGEST {
        return Err(PrintError::Long);
    }
    let text = plain(text);
    let whole = bare(&text).map(|digits| PrintedPage::of_bare(&digits, hash));
    match whole {
        Some(Ok(page)) => page.choose(method, hash),
        // A word before the digits may look like digits too.
        Some(Err(why)) => PrintedPage::of_text(&text).choose(method, hash).map_err(|_| why),
        None => PrintedPage::of_text(&text).choose(method, hash),
    }
}

impl PrintedPage {
    fn of_bare(digits: &str, hash: Option<HashKind>) -> Result<Self, PrintError> {
        let mut page = Self::default();
        match (decoded(digits), digits.len(), hash) {
            (Some(bytes), ..) => page.found.push(Found { subject: Subject::Unsaid, bytes }),
            (None, found, Some(hash)) => {
                return Err(PrintError::Length { found, expected: 2 * hash.len() });
            }
            (None, found, None) => {
                return Err(
                    other_length(found).unwrap_or(PrintError::Length { found, expected: 0 })
                );
            }
        }
        Ok(page)
    }

    fn of_text(text: &str) -> Self {
        let mut page = Self::default();
        let mut section = Section::default();
        let mut run = Run::default();
        for line in text.lines() {
            if section.is_record(line, &mut page) {
                run.end(&mut page);
                continue;
            }
            section.enter(line);
            page.base64(line);
            let heading = section.heading(line);
            let mut label = String::new();
            // The text between the previous number and the next word.
            let mut between = "\n".to_owned();
            for word in words(line) {
                match word {
                    PrintedToken::Other(text) => {
                        // Words from here on describe another number.
                        if text.contains(char::is_alphanumeric) && run.end(&mut page) {
                            label.clear();
                        }
                        between.push_str(text);
                        push_near(&mut label, &text.to_lowercase());
                    }
                    PrintedToken::Hex(digits) => {
                        if !run.takes(digits, &between) {
                            if run.end(&mut page) {
                                label.clear();
                            }
                            run.begin(digits, section.context(heading, &label));
                        }
                        between.clear();
                    }
                }
            }
            run.tail.push_str(&between);
        }
        run.end(&mut page);
        page
    }

    /// Finds fingerprints in base64, and their marks: pins of GnuTLS and curl, and those of SSH keys.
    fn base64(&mut self, line: &str) {
        let line = line.replace('"', "");
        for word in line.split([' ', '\t', ';', ',']) {
            let after = |prefix: &str| {
                let (start, rest) = word.split_at_checked(prefix.len())?;
                start.eq_ignore_ascii_case(prefix).then_some(rest)
            };
            let value = |text: &str| STANDARD_NO_PAD.decode(text.trim_end_matches('=')).ok();
            let is_digest = |bytes: &Vec<u8>| bytes.len() == HashKind::SpkiSha256.len();
            let pin = ["pin-sha256:", "pin-sha256=", "sha256//"].into_iter().find_map(after);
            if let Some(bytes) = pin.and_then(value).filter(is_digest) {
                self.found.push(Found { subject: Subject::Spki, bytes });
            } else if after("SHA256:").and_then(value).filter(is_digest).is_some() {
                self.instead = Some(PrintError::Ssh);
            }
        }
    }

    /// Takes the fingerprint for `method`; of several kinds, the most informative one.
    fn choose(self, method: Option<Method>, hash: Option<HashKind>) -> Result<Print, PrintError> {
        let wanted: &[(Subject, Option<usize>)] = match method {
            Some(Method::X509) => &[
                (Subject::Certificate, Some(32)),
                (Subject::Spki, Some(32)),
                (Subject::Unsaid, None),
                (Subject::Certificate, Some(20)),
            ],
            Some(Method::OpenPgp) => &[(Subject::OpenPgp, None), (Subject::Unsaid, None)],
            Some(Method::Srp) | None => &[
                (Subject::Certificate, Some(32)),
                (Subject::Spki, Some(32)),
                (Subject::OpenPgp, None),
                (Subject::Unsaid, None),
                (Subject::Certificate, Some(20)),
            ],
        };
        for (subject, length) in wanted {
            let fits = |found: &&Found| {
                found.subject == *subject
                    && length.is_none_or(|length| found.bytes.len() == length)
                    && hash.is_none_or(|hash| hash.len() == found.bytes.len())
            };
            let mut fitting = self.found.iter().filter(fits);
            let Some(first) = fitting.next() else { continue };
            if fitting.any(|other| other.bytes != first.bytes) {
                return Err(PrintError::Several);
            }
            let kind = match (hash, first.subject, first.bytes.len()) {
                (_, Subject::Spki, _) => HashKind::SpkiSha256,
                (Some(hash), ..) => hash,
                (None, _, 20) => HashKind::Sha1,
                (None, ..) => HashKind::Sha256,
            };
            return Print::new(kind, &first.bytes);
        }
        let has = |subject| self.found.iter().any(|found| found.subject == subject);
        match (method, self.found.first(), hash) {
            (_, Some(first), Some(hash)) if first.bytes.len() != hash.len() => {
                Err(PrintError::Length { found: 2 * first.bytes.len(), expected: 2 * hash.len() })
            }
            (Some(Method::X509), ..) if has(Subject::OpenPgp) => Err(PrintError::OfOpenPgp),
            (Some(Method::OpenPgp), Some(_), _) => Err(PrintError::OfCertificate),
            (_, Some(_), _) => Err(PrintError::Sha1Spki),
            (_, None, _) => Err(self.instead.unwrap_or(PrintError::Missing)),
        }
    }
}

/// Appends to the words before a number. Words far before it do not count.
fn push_near(label: &mut String, text: &str) {
    let end = |text: &str| text.ceil_char_boundary(text.len().saturating_sub(NEAR));
    label.push_str(&text[end(text)..]);
    if label.len() > 2 * NEAR {
        label.drain(..end(label));
    }
}

/// Returns the text without invisible characters (Windows puts a direction mark before a thumbprint), and with plain
/// spaces.
fn plain(text: &str) -> String {
    text.chars()
        .filter(|c| c.general_category() != GeneralCategory::Format)
        .map(|c| match c {
            '\n' | '\r' => '\n',
            c if c.is_whitespace() => ' ',
            '\u{2010}'..='\u{2015}' => '-',
            c => c,
        })
        .collect()
}

/// Returns the digits, if the text has only digits and separators.
fn bare(text: &str) -> Option<String> {
    let text = text.trim();
    let text = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    let digits: String =
        text.chars().filter(|c| !c.is_whitespace() && !matches!(c, ':' | '-')).collect();
    (!digits.is_empty() && digits.bytes().all(|c| c.is_ascii_hexdigit())).then_some(digits)
}

/// Returns the bytes of 40 or 64 digits.
fn decoded(digits: &str) -> Option<Vec<u8>> {
    if !matches!(digits.len(), 40 | 64) {
        return None;
    }
    HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).ok()
}

/// Returns the error for a number of so many digits, if its kind is known and not accepted.
fn other_length(digits: usize) -> Option<PrintError> {
    Some(match digits {
        8 | 16 => PrintError::KeyId,
        32 => PrintError::OtherHash("MD5"),
        56 => PrintError::OtherHash("SHA-224"),
        96 => PrintError::OtherHash("SHA-384"),
        128 => PrintError::OtherHash("SHA-512"),
        _ => return None,
    })
}

/// A part of a line.
#[derive(Debug, PartialEq, Eq)]
enum PrintedToken<'a> {
    /// Hexadecimal digits.
    Hex(&'a str),
    /// Words, names of hashes with their numbers, and separators.
    Other(&'a str),
}

/// Splits a line into its parts.
fn words(line: &str) -> Vec<PrintedToken<'_>> {
    let mut words = Vec::new();
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let length = if let Some(length) = hash_name(rest).map(|(_, length)| length) {
            length
        } else {
            let other = |c: char| is_word(c) != is_word(first);
            rest.find(other).unwrap_or(rest.len())
        };
        let (word, after) = rest.split_at(length);
        let hex = word.bytes().all(|c| c.is_ascii_hexdigit());
        words.push(if hex { PrintedToken::Hex(word) } else { PrintedToken::Other(word) });
        rest = after;
    }
    words
}

/// Returns the hash whose name begins a text, and the name's length: `SHA256`, `sha-1`, `SHA2-256`, `MD5`.
fn hash_name(text: &str) -> Option<(&'static str, usize)> {
    const NAMES: [(&str, &str); 16] = [
        ("sha2-256", "SHA-256"),
        ("sha2-512", "SHA-512"),
        ("sha3-256", "SHA3-256"),
        ("sha-256", "SHA-256"),
        ("sha_256", "SHA-256"),
        ("sha 256", "SHA-256"),
        ("sha256", "SHA-256"),
        ("sha-1", "SHA-1"),
        ("sha_1", "SHA-1"),
        ("sha1", "SHA-1"),
        ("sha-512", "SHA-512"),
        ("sha512", "SHA-512"),
        ("sha-384", "SHA-384"),
        ("sha384", "SHA-384"),
        ("sha224", "SHA-224"),
        ("md5", "MD5"),
    ];
    NAMES.into_iter().find_map(|(spelling, name)| {
        let (start, rest) = text.split_at_checked(spelling.len())?;
        let ends = !rest.starts_with(|c: char| c.is_ascii_digit());
        (ends && start.eq_ignore_ascii_case(spelling)).then_some((name, spelling.len()))
    })
}

/// Returns the last name of a hash in a label.
fn last_hash(label: &str) -> Option<&'static str> {
    label.char_indices().filter_map(|(at, _)| Some(hash_name(&label[at..])?.0)).next_back()
}

/// Where in a page a line stands.
#[derive(Debug, Default)]
struct Section {
    /// The last line that only announces others, and how far it was indented.
    heading: (usize, String),
    /// Whether the page is about an OpenPGP key; and whether this part is about one of its subkeys.
    openpgp: bool,
    subkey: bool,
}

impl Section {
    /// Takes a line of `gpg --with-colons`, or the first of a key in gpg's list.
    fn is_record(&mut self, line: &str, page: &mut PrintedPage) -> bool {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let kind = fields[0];
        let is_kind = kind.len() == 3
            && kind.starts_with(|c: char| c.is_ascii_lowercase())
            && kind.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        if is_kind && fields.len() > 5 {
            self.openpgp = true;
            match kind {
                "pub" | "sec" => self.subkey = false,
                "sub" | "ssb" => self.subkey = true,
                "fpr" | "fp2" if !self.subkey => {
                    let bytes = fields[1..].iter().find_map(|field| decoded(field));
                    match bytes {
                        Some(bytes) => page.found.push(Found { subject: Subject::OpenPgp, bytes }),
                        None => page.missed(fields[1..].iter().map(|f| f.len()).max().unwrap_or(0)),
                    }
                }
                "fpr" | "fp2" => page.instead = Some(PrintError::Subkey),
                _ => {}
            }
            return true;
        }
        let first = line.split(' ').next().unwrap_or_default();
        let subkey = matches!(first, "sub" | "ssb");
        if subkey || matches!(first, "pub" | "sec") {
            (self.openpgp, self.subkey) = (true, subkey);
            return true;
        }
        false
    }

    /// Takes note of a heading.
    fn enter(&mut self, line: &str) {
        let shown = line.trim_end();
        if shown.ends_with("OpenPGP Certificate.") {
            self.openpgp = true;
        }
        // The packets of `sq packet dump`.
        let packet = |names: [&str; 2]| names.iter().any(|name| shown.starts_with(name));
        let subkey = packet(["Public-Subkey Packet", "Secret-Subkey Packet"]);
        if subkey || packet(["Public-Key Packet", "Secret-Key Packet"]) {
            (self.openpgp, self.subkey) = (true, subkey);
        }
        if shown.ends_with(':') {
            let indent = shown.len() - shown.trim_start().len();
            let mut text = String::new();
            push_near(&mut text, &shown.trim_start().to_lowercase());
            self.heading = (indent, text);
        }
    }

    /// Returns the heading that a line belongs to; empty if there is none.
    fn heading(&self, line: &str) -> &str {
        let indent = line.len() - line.trim_start().len();
        if indent > self.heading.0 { &self.heading.1 } else { "" }
    }

    fn context(&self, heading: &str, own: &str) -> Context {
        let Self { openpgp, subkey, .. } = *self;
        Context { heading: heading.to_owned(), own: own.to_owned(), openpgp, subkey }
    }
}

/// The words before a number.
#[derive(Debug)]
struct Context {
    heading: String,
    /// The words in its own line.
    own: String,
    openpgp: bool,
    subkey: bool,
}

impl Context {
    /// Returns the label that the words give the number.
    fn label(&self) -> Label {
        let Self { heading, own, .. } = self;
        let hash = last_hash(own).or_else(|| last_hash(heading));
        let all = format!("{heading} {own}");
        let has = |words: &[&str]| words.iter().any(|word| all.contains(word));
        let other =
            ["serial", "identifier", "keyid:", "signature", "modulus", "grip", "public key:"];
        // How this program's own lists name the print of any key.
        let own_form = matches!(own.trim(), "sha-1" | "sha-256") && heading.is_empty();
        let kind = if own_form {
            PrintedKind::Of(Subject::Unsaid)
        } else if has(&other) {
            PrintedKind::Other
        } else if has(&["subkey"]) || (self.subkey && hash.is_none()) {
            PrintedKind::Subkey
        } else if has(&["spki", "public key id", "public key pin", "public-key", "pubkey"]) {
            PrintedKind::Of(Subject::Spki)
        } else if hash.is_some() {
            PrintedKind::Of(Subject::Certificate)
        } else if self.openpgp || has(&["fpr", "pgp", "key fingerprint"]) {
            PrintedKind::Of(Subject::OpenPgp)
        } else {
            PrintedKind::Of(Subject::Unsaid)
        };
        Label { kind, hash }
    }
}

#[derive(Clone, Copy, Debug)]
enum PrintedKind {
    Of(Subject),
    Subkey,
    Other,
}

/// The kind and the hash of a number, from the words around it.
#[derive(Clone, Copy, Debug)]
struct Label {
    kind: PrintedKind,
    hash: Option<&'static str>,
}

/// Digits in groups of one length, with one kind of separator between them.
#[derive(Debug, Default)]
struct Run {
    digits: String,
    group: usize,
    separator: Option<char>,
    context: Option<Context>,
    /// The text after it, so far.
    tail: String,
}

impl Run {
    fn begin(&mut self, digits: &str, context: Context) {
        *self = Self {
            digits: digits.to_owned(),
            group: digits.len(),
            context: Some(context),
            ..Self::default()
        };
    }

    /// Adds a group, if it belongs to the run.
    fn takes(&mut self, digits: &str, between: &str) -> bool {
        self.tail.push_str(between);
        let separator = match (self.tail.trim(), self.tail.as_str()) {
            (_, "") => return false,
            ("", _) => ' ',
            // A long one continues in the next line.
            (":", tail) if tail == ":" || tail.contains('\n') => ':',
            ("-", tail) if tail == "-" || tail.contains('\n') => '-',
            _ => return false,
        };
        let whole = matches!(self.digits.len(), 40 | 64) && self.separator != Some(separator);
        let fits = !self.digits.is_empty()
            && !whole
            && digits.len() == self.group
            && self.separator.is_none_or(|own| own == separator);
        if fits {
            self.digits.push_str(digits);
            self.separator = Some(separator);
            self.tail.clear();
        }
        fits
    }

    /// Gives the number to the page; whether it had the length of one.
    fn end(&mut self, page: &mut PrintedPage) -> bool {
        let Self { digits, context, .. } = std::mem::take(self);
        let Some(context) = context else { return false };
        // Dates, sizes, and words that look like digits.
        if digits.len() < SHORTEST {
            return false;
        }
        let Label { kind, hash } = context.label();
        let expected = match hash {
            Some("SHA-1") => Some(40),
            Some("SHA-256") => Some(64),
            Some(other) => {
                page.instead.get_or_insert(PrintError::OtherHash(other));
                return true;
            }
            None => None,
        };
        match (kind, decoded(&digits)) {
            (PrintedKind::Other, _) => return false,
            (PrintedKind::Subkey, Some(_)) => {
                page.instead.get_or_insert(PrintError::Subkey);
            }
            (PrintedKind::Of(subject), Some(bytes))
                if expected.is_none_or(|n| n == digits.len()) =>
            {
                // A key's SHA-1 is never accepted; it is kept for the error message.
                page.found.push(Found { subject, bytes });
            }
            _ => match expected {
                Some(expected) => {
                    let found = digits.len();
                    page.instead.get_or_insert(PrintError::Length { found, expected });
                }
                None => page.missed(digits.len()),
            },
        }
        true
    }
}

impl PrintedPage {
    /// Notes a number that is not a fingerprint because of its length.
    fn missed(&mut self, digits: usize) {
        if digits >= SHORTEST {
            let why = PrintError::Length { found: digits, expected: 0 };
            self.instead.get_or_insert(other_length(digits).unwrap_or(why));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA256: &str = "EF:06:4E:61:E1:21:BF:F3:6B:60:2B:10:E6:47:FB:EE:37:AB:4B:8C:3A:3F:9B:66:01:EB:24:41:26:2C:99:2D";
    const SHA1: &str = "40:EE:0F:B3:A8:2D:86:BB:7A:85:29:3A:44:83:1F:88:42:3C:32:12";
    const GPG: &str = "DDEE AD7C F604 D6F8 786F  CB10 9427 2547 D6F6 6425";

    fn is(text: &str, method: Method, hash: HashKind, expected: &str) {
        let expected = Print::parse(expected, None).unwrap();
        let read = Print::read(text, method, None).unwrap_or_else(|why| panic!("{text:?}: {why}"));
        assert!(read.same_bytes(&expected), "{text:?}: {read}");
        assert_eq!(read.hash(), hash, "{text:?}");
    }

    fn refused(text: &str, method: Method, expected: PrintError) {
        assert_eq!(Print::pin(text, method), Err(expected), "{text:?}");
    }

    #[test]
    fn a_certificates_sha_256_is_read_in_every_form() {
        let plain = SHA256.replace(':', "");
        let lower = plain.to_lowercase();
        let spaced = SHA256.replace(':', " ");
        let dashed = SHA256.replace(':', "-").to_lowercase();
        let wrapped = format!("{}\n    {}", &SHA256[..48], &SHA256[48..]);
        for text in [
            SHA256.to_owned(),
            format!("  {SHA256}\r\n"),
            plain.clone(),
            lower.clone(),
            format!("0x{lower}"),
            spaced.clone(),
            dashed,
            format!("\u{200e}{plain}"),
            format!("\u{feff}{SHA256}"),
            format!("sha256 Fingerprint={SHA256}"),
            format!("SHA256 Fingerprint={SHA256}\n"),
            format!("SHA256: {SHA256}"),
            format!("\t SHA256: {SHA256}"),
            format!("sha256:{lower}"),
            format!("SHA-256:{lower}"),
            format!("sha-256 {SHA256}"),
            format!("SHA-256 {SHA256}"),
            format!("Sha_256={plain}"),
            format!("SHA2-256(stdin)= {lower}"),
            format!("SHA256 (c.der) = {lower}"),
            format!("{lower}  c.der"),
            format!("Certificate fingerprint (SHA-256): {SHA256}"),
            format!("SHA-256 Fingerprint {spaced}"),
            format!("SHA-256 hash: {plain}"),
            format!("Cert Hash(sha256): {lower}"),
            format!("Fingerprint of Ada: {SHA256}"),
            format!("Dada: {SHA256}"),
            format!("sha256 Fingerprint={wrapped}"),
            format!("Fingerprint (SHA-256):\n        {SHA256}"),
            format!("x509  {SHA256}"),
        ] {
            is(&text, Method::X509, HashKind::Sha256, SHA256);
            let any = Print::parse(&text, None).unwrap();
            assert_eq!(any.to_string(), SHA256, "{text:?}");
            assert!(Print::pin(&text, Method::X509).is_ok(), "{text:?}");
        }
    }

    #[test]
    fn an_openpgp_fingerprint_is_read_in_every_form() {
        let plain = GPG.replace(' ', "");
        let v6 = SHA256.replace(':', "");
        for text in [
            GPG.to_owned(),
            plain.clone(),
            plain.to_lowercase(),
            format!("0x{plain}"),
            format!("fpr:::::::::{plain}:"),
            format!("fpr:{plain}"),
            format!("OPENPGP4FPR:{plain}"),
            format!("openpgp4fpr:{}", plain.to_lowercase()),
            format!("Fingerprint: {plain}"),
            format!("      Key fingerprint = {GPG}"),
            format!("sha-1 {plain}"),
            format!(
                "pub   ed25519 2026-11-28 [SC] [expires: 2027-11-28]\n      {GPG}\nuid           Alice\n"
            ),
        ] {
            is(&text, Method::OpenPgp, HashKind::Sha1, GPG);
            assert!(Print::pin(&text, Method::OpenPgp).is_ok(), "{text:?}");
        }
        for text in [v6.clone(), format!("fpr:::::::::{v6}:"), format!("sha-256 {SHA256}")] {
            is(&text, Method::OpenPgp, HashKind::Sha256, SHA256);
        }
    }

    #[test]
    fn a_print_of_the_public_key_says_so() {
        let hex = "d140c8ac4161db69ee5c1fb31b43d5bd2c31c7fd9149f336bb1ba9d8e8cabeb5";
        for text in [
            format!("Public Key ID:\n\tsha1:9eda03e0361d11d3b8a40208ec2a1f4ed038963e\n\tsha256:{hex}"),
            "pin-sha256:0UDIrEFh22nuXB+zG0PVvSwxx/2RSfM2uxup2OjKvrU=".to_owned(),
            "sha256//0UDIrEFh22nuXB+zG0PVvSwxx/2RSfM2uxup2OjKvrU=".to_owned(),
            "Public-Key-Pins: pin-sha256=\"0UDIrEFh22nuXB+zG0PVvSwxx/2RSfM2uxup2OjKvrU=\"; max-age=1".to_owned(),
            format!("spki-sha-256 {hex}"),
            format!("SPKI SHA256: {hex}"),
        ] {
            is(&text, Method::X509, HashKind::SpkiSha256, hex);
        }
        let sha1 = "Public Key ID:\n\tsha1:9eda03e0361d11d3b8a40208ec2a1f4ed038963e";
        refused(sha1, Method::X509, PrintError::Sha1Spki);
    }

    #[test]
    fn what_is_none_is_told_what_is_missing() {
        let x509 = Method::X509;
        let openpgp = Method::OpenPgp;
        let plain = GPG.replace(' ', "");
        for (text, method, expected) in [
            ("", x509, PrintError::Missing),
            ("hello", x509, PrintError::Missing),
            ("AB:CD", x509, PrintError::Length { found: 4, expected: 0 }),
            (&SHA256[3..], x509, PrintError::Length { found: 62, expected: 0 }),
            (
                &format!("sha256 Fingerprint={}", &SHA256[3..]),
                x509,
                PrintError::Length { found: 62, expected: 64 },
            ),
            (&format!("SHA256: {SHA1}"), x509, PrintError::Length { found: 40, expected: 64 }),
            (SHA1, x509, PrintError::Sha1OrOpenPgp),
            (&format!("SHA1 Fingerprint={SHA1}"), x509, PrintError::Sha1),
            (&format!("OPENPGP4FPR:{plain}"), x509, PrintError::OfOpenPgp),
            (&format!("fpr:::::::::{plain}:"), x509, PrintError::OfOpenPgp),
            (&format!("sha256 Fingerprint={SHA256}"), openpgp, PrintError::OfCertificate),
            (&format!("SHA1 Fingerprint={SHA1}"), openpgp, PrintError::OfCertificate),
            ("94272547D6F66425", openpgp, PrintError::KeyId),
            ("0x94272547D6F66425", openpgp, PrintError::KeyId),
            (
                "md5 Fingerprint=3E:1C:EC:F9:C5:54:E8:25:AF:63:AA:BD:93:62:51:F8",
                x509,
                PrintError::OtherHash("MD5"),
            ),
            (
                "256 SHA256:XjwBsHkPdP3vBAIkjsy8OmxXYLHqs9KLTmCuiRm5H+w root@vm (ED25519)",
                x509,
                PrintError::Ssh,
            ),
            (
                &format!("SHA256: {SHA256}\nSHA256: {}", SHA256.replace("EF", "EE")),
                x509,
                PrintError::Several,
            ),
            (
                &format!("sub:u:255:18:D9E5E0ABCCD7E48A:1:::::e:::\nfpr:::::::::{plain}:"),
                openpgp,
                PrintError::Subkey,
            ),
        ] {
            refused(text, method, expected);
        }
        // Nobody is misdirected.
        for error in [PrintError::Length { found: 62, expected: 64 }, PrintError::Sha1] {
            assert!(!error.to_string().contains("openpgp"), "{error}");
        }
        assert!(PrintError::Sha1.to_string().contains("-fingerprint -sha256"));
    }

    /// Anyone can send such a text: the work for each number must not grow with it.
    #[test]
    fn words_far_before_a_number_are_forgotten_and_long_texts_are_not_read() {
        let mut label = String::new();
        for _ in 0..10_000 {
            push_near(&mut label, "\u{fc}ber ");
            assert!(label.len() <= 2 * NEAR, "{}", label.len());
        }
        push_near(&mut label, &"\u{fc}".repeat(10_000));
        assert!(label.len() <= 2 * NEAR && label.ends_with('\u{fc}'));

        let far = format!("serial {} {SHA256}", "x ".repeat(10_000));
        is(&far, Method::X509, HashKind::Sha256, SHA256);
        let near = format!("{} serial {SHA256}", "x ".repeat(10_000));
        assert!(Print::read(&near, Method::X509, None).is_err());

        let page = |length: usize| format!("{}\n{SHA256}", "-".repeat(length - SHA256.len() - 1));
        is(&page(LONGEST), Method::X509, HashKind::Sha256, SHA256);
        let long = Print::read(&page(LONGEST + 1), Method::X509, None);
        assert_eq!(long, Err(PrintError::Long));
    }
}
