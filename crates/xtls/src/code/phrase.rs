//! A code: where a sender waits, and the words that both sides know. `alice@example.org/7-guitar-window-orbit` is at the
//! resource `xtls-code-7` of `alice@example.org`.
//!
//! The number and the address are no secret: they only lead to the sender. The words are the password of the method `srp`.
//! They are three of the 2048 English words of BIP 39, which are common, and differ in their first four letters: 33 bits.

use std::{cmp::Reverse, fmt, sync::LazyLock};

use fingerpost_secure::srp;
use jid::{FullJid, Jid};
use zeroize::Zeroizing;

/// All words, in the order of the alphabet.
pub(super) static WORDS: LazyLock<Vec<&'static str>> =
    LazyLock::new(|| include_str!("words.txt").lines().collect());

/// The number of words in a code.
const COUNT: usize = 3;
/// The bits of a word's place in the list.
const BITS: u32 = 11;
/// The highest number. Another waiting program of the same account rarely has the same one.
const HIGHEST: u16 = 9999;
/// The resource of a waiting sender, before the number.
const RESOURCE: &str = "xtls-code-";
/// The longest code that is read, in bytes: an address may have 3071.
const LONGEST: usize = 4096;
/// The most letters by which a word may differ from one of the list for that to be suggested.
const NEAR: usize = 2;

/// An example for messages.
const EXAMPLE: &str = "alice@example.org/7-guitar-window-orbit";

/// A code. `Debug` does not show the words.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Code {
    /// The address: a user, at the resource that the number names; or the address of a program.
    at: Jid,
    number: u16,
    words: Words,
}

/// The secret part of a code.
#[derive(Clone, PartialEq, Eq)]
struct Words([&'static str; COUNT]);

/// The number and the words of a code, before its address is known.
#[derive(Clone)]
pub(super) struct Secret {
    number: u16,
    words: Words,
}

/// Why a text is not a code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum CodeError {
    #[error("the code: expected an address, a number and three words, such as {EXAMPLE}")]
    Shape,
    #[error("the code: expected an address before the last slash, found \"{0}\"")]
    Address(String),
    #[error("the code: expected a number from 1 to {HIGHEST} after the slash, found \"{0}\"")]
    Number(String),
    #[error("the code: expected three words after the number, found {0}")]
    Count(usize),
    #[error("the code: \"{0}\" is not one of the words of codes: did the sender say \"{1}\"?")]
    Near(String, &'static str),
    #[error("the code: \"{0}\" is not one of the words of codes")]
    Unknown(String),
}

impl Secret {
    /// Makes a new one.
    pub(super) fn random() -> Self {
        let mut bits: u64 = rand::random();
        let words = std::array::from_fn(|_| {
            let place = bits & ((1 << BITS) - 1);
            bits >>= BITS;
            usize::try_from(place).ok().and_then(|place| WORDS.get(place)).copied().unwrap_or("")
        });
        Self { number: rand::random_range(1..=HIGHEST), words: Words(words) }
    }

    /// Returns the resource at which the sender waits.
    pub(super) fn resource(&self) -> String {
        resource(self.number)
    }

    /// Returns the words as a password.
    pub(super) fn password(&self) -> Result<srp::Password, srp::BadPassword> {
        self.words.password()
    }

    /// Returns the code of a sender that waits at this address. It has the resource only if the server has chosen another.
    pub(super) fn at(&self, bound: &FullJid) -> Code {
        let Self { number, words } = self.clone();
        let is_ours = bound.resource().as_str() == resource(number);
        let at = if is_ours { bound.to_bare().into() } else { bound.clone().into() };
        Code { at, number, words }
    }
}

fn resource(number: u16) -> String {
    format!("{RESOURCE}{number}")
}

impl Words {
    fn password(&self) -> Result<srp::Password, srp::BadPassword> {
        srp::Password::new(&Zeroizing::new(self.0.join("-")))
    }
}

impl Code {
    /// Reads a code as people type it: in any case, with spaces or other dashes between its parts.
    ///
    /// # Errors
    /// What is wrong with it, without its right words.
    pub(super) fn parse(text: &str) -> Result<Self, CodeError> {
        let text = text.trim();
        let (address, rest) =
            text.rsplit_once('/').filter(|_| text.len() <= LONGEST).ok_or(CodeError::Shape)?;
        let mut parts = rest.split(is_between).filter(|part| !part.is_empty());
        let at = Jid::new(address.trim()).map_err(|_| CodeError::Address(short(address.trim())))?;
        let number = parts.next().ok_or(CodeError::Shape)?;
        let number = number
            .parse()
            .ok()
            .filter(|known| (1..=HIGHEST).contains(known))
            .ok_or_else(|| CodeError::Number(short(number)))?;
        let words = parts.map(word).collect::<Result<Vec<_>, _>>()?;
        let words = <[_; COUNT]>::try_from(words).map_err(|found| CodeError::Count(found.len()))?;
        Ok(Self { at, number, words: Words(words) })
    }

    /// Returns the address of the sender's program.
    pub(super) fn sender(&self) -> Jid {
        match self.at.try_as_full() {
            Ok(full) => full.clone().into(),
            Err(bare) => bare
                .with_resource_str(&resource(self.number))
                .map_or_else(|_| bare.clone().into(), Jid::from),
        }
    }

    /// Returns the words as a password.
    pub(super) fn password(&self) -> Result<srp::Password, srp::BadPassword> {
        self.words.password()
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}-{}", self.at, self.number, self.words.0.join("-"))
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Code").field("at", &self.at).finish_non_exhaustive()
    }
}

/// Returns whether a character separates the parts of a code. Phones turn a hyphen into a dash.
pub(super) fn is_between(c: char) -> bool {
    c.is_whitespace() || matches!(c, '-' | '_' | '.' | ',' | '\u{2010}'..='\u{2015}')
}

/// Returns the word of the list that a text is.
fn word(text: &str) -> Result<&'static str, CodeError> {
    let lower = text.to_lowercase();
    if let Ok(place) = WORDS.binary_search(&lower.as_str()) {
        return Ok(WORDS[place]);
    }
    match nearest(&lower) {
        Some(near) => Err(CodeError::Near(short(text), near)),
        None => Err(CodeError::Unknown(short(text))),
    }
}

/// Returns the words that begin so.
pub(super) fn beginning_with(start: &str) -> impl Iterator<Item = &'static str> {
    let start = start.to_lowercase();
    WORDS.iter().copied().filter(move |word| word.starts_with(&start))
}

/// Returns the word of the list that differs least from a text, if it is similar. Of several it is the one that begins like the
/// text: people mistype the beginning of a word least.
fn nearest(text: &str) -> Option<&'static str> {
    let text: Vec<char> = text.chars().take(32).collect();
    let key = |word: &&str| {
        let same = text.iter().zip(word.chars()).take_while(|(typed, right)| **typed == *right);
        (distance(&text, word), Reverse(same.count()))
    };
    let near = WORDS.iter().copied().min_by_key(key);
    near.filter(|word| distance(&text, word) <= NEAR)
}

/// Returns how many letters must be changed, added, removed or swapped with the next one to make a text into a word.
fn distance(text: &[char], word: &str) -> usize {
    let word: Vec<char> = word.chars().collect();
    let mut rows = vec![vec![0; word.len() + 1]; text.len() + 1];
    for i in 0..=text.len() {
        for j in 0..=word.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let change = rows[i - 1][j - 1] + usize::from(text[i - 1] != word[j - 1]);
                let mut least = change.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && text[i - 1] == word[j - 2] && text[i - 2] == word[j - 1] {
                    least = least.min(rows[i - 2][j - 2] + 1);
                }
                least
            };
        }
    }
    rows[text.len()][word.len()]
}

/// Returns the beginning of a text, for a message.
fn short(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CODE: &str = "alice@example.org/7-lunar-otter-gate";

    fn read(text: &str) -> Result<String, String> {
        Code::parse(text).map(|code| code.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_list_has_as_many_words_as_its_bits_can_name() {
        assert_eq!(WORDS.len(), 1 << BITS);
        assert!(WORDS.is_sorted(), "a word is searched by halves");
        let starts: std::collections::HashSet<_> =
            WORDS.iter().map(|word| word.chars().take(4).collect::<String>()).collect();
        assert_eq!(starts.len(), WORDS.len());
        assert!(WORDS.iter().all(|word| word.bytes().all(|byte| byte.is_ascii_lowercase())));
    }

    #[test]
    fn a_code_is_read_as_people_type_it() {
        let code = "alice@example.org/7-lunar-oven-gate";
        for text in [
            code,
            "  alice@example.org/7-lunar-oven-gate\n",
            "Alice@Example.ORG/7 Lunar OVEN gate",
            "alice@example.org/7_lunar_oven_gate",
            "alice@example.org/7 – lunar — oven‑gate",
            "alice@example.org / 7, lunar, oven, gate.",
            "alice@example.org/007-lunar--oven-gate",
        ] {
            assert_eq!(read(text), Ok(code.to_owned()), "{text}");
        }
        let parsed = Code::parse(code).unwrap();
        assert_eq!(parsed.sender().as_str(), "alice@example.org/xtls-code-7");
        assert!(!format!("{parsed:?}").contains("lunar"));
        // A server that assigns another resource.
        let full = "alice@example.org/a/b/7-lunar-oven-gate";
        assert_eq!(Code::parse(full).unwrap().sender().as_str(), "alice@example.org/a/b");
        assert_eq!(read(full), Ok(full.to_owned()));
    }

    #[test]
    fn what_is_wrong_with_a_code_is_said() {
        for (text, part) in [
            ("", "expected an address, a number and three words, such as alice@"),
            ("7-lunar-oven-gate", "expected an address, a number and three words"),
            ("alice@example.org", "expected an address, a number and three words"),
            ("alice@example.org/", "expected an address, a number and three words"),
            ("@/7-lunar-oven-gate", "expected an address before the last slash, found \"@\""),
            (
                "alice@example.org/lunar-oven-gate",
                "expected a number from 1 to 9999 after the slash, found \"lunar\"",
            ),
            ("alice@example.org/0-lunar-oven-gate", "found \"0\""),
            ("alice@example.org/10000-lunar-oven-gate", "found \"10000\""),
            ("alice@example.org/7", "expected three words after the number, found 0"),
            ("alice@example.org/7-lunar-oven", "expected three words after the number, found 2"),
            ("alice@example.org/7-lunar-oven-gate-gate", "found 4"),
            (
                "alice@example.org/7-lunar-ovne-gate",
                "\"ovne\" is not one of the words of codes: did the sender say \"oven\"?",
            ),
            ("alice@example.org/7-luna-oven-gate", "did the sender say \"lunar\"?"),
            (
                "alice@example.org/7-lunar-oven-Gaite",
                "\"Gaite\" is not one of the words of codes: did the sender say \"gate\"?",
            ),
            (
                "alice@example.org/7-lunar-oven-xylophone",
                "\"xylophone\" is not one of the words of codes",
            ),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert_eq!(read(CODE).unwrap_err(), CodeError::Near("otter".into(), "other").to_string());
        assert_eq!(read(&format!("a@b/{}", "7".repeat(5000))), read(""));
    }

    #[test]
    fn a_new_code_is_read_back_and_leads_to_its_sender() {
        for _ in 0..100 {
            let secret = Secret::random();
            let own = format!("alice@example.org/{}", secret.resource());
            let code = secret.at(&FullJid::new(&own).unwrap());
            assert_eq!(Code::parse(&code.to_string()).as_ref(), Ok(&code));
            assert_eq!(code.sender().as_str(), own);
            assert!(code.password().is_ok());
            let other = secret.at(&FullJid::new("alice@example.org/server-made").unwrap());
            assert_eq!(Code::parse(&other.to_string()).as_ref(), Ok(&other));
            assert_eq!(other.sender().as_str(), "alice@example.org/server-made");
        }
        assert_ne!(Secret::random().words.0, Secret::random().words.0);
    }

    #[test]
    fn a_user_of_an_anonymous_server_is_an_address_too() {
        let code = "5f1e@anon.example.org/12-lunar-oven-gate";
        assert_eq!(
            Code::parse(code).unwrap().sender().as_str(),
            "5f1e@anon.example.org/xtls-code-12"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_a_code_or_an_error(text in "\\PC{0,80}|[a-z@/ 0-9-]{0,60}") {
            if let Ok(code) = Code::parse(&text) {
                prop_assert_eq!(Code::parse(&code.to_string()), Ok(code));
            }
        }
    }
}
