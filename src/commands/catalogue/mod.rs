//! The texts of the commands, in each language.
//!
//! `english.rs` names all texts. A further language is a file like `german.rs` and a variant of [`Language`].

macro_rules! texts {
    ($($name:ident => $english:literal,)*) => {
        /// A text of the commands.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Text {
            $(#[doc = $english] $name,)*
        }

        impl Text {
            #[cfg(test)]
            pub(super) const ALL: &[Self] = &[$(Self::$name),*];
        }

        /// Returns a text in English.
        pub(super) const fn english(text: Text) -> &'static str {
            match text {
                $(Text::$name => $english,)*
            }
        }
    };
}

mod english;
mod german;

use std::{borrow::Cow, fmt::Display};

use minidom::Element;

pub use self::english::Text;

/// A language that the commands speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Language {
    /// The language of all who ask for none of the others.
    #[default]
    English,
    /// German.
    German,
}

impl Language {
    /// Returns the language that an element names by its `xml:lang`, if the element has that attribute.
    pub fn of(element: &Element) -> Option<Self> {
        element.attr_ns(rxml::Namespace::xml(), "lang").map(Self::named)
    }

    /// Returns the language of a tag (BCP 47).
    pub fn named(tag: &str) -> Self {
        let primary = tag.split('-').next().unwrap_or_default();
        if primary.eq_ignore_ascii_case("de") { Self::German } else { Self::English }
    }

    /// Returns a text.
    pub const fn text(self, text: Text) -> &'static str {
        match self {
            Self::English => english::english(text),
            Self::German => german::german(text),
        }
    }

    /// Returns a text with values for `{0}`, `{1}` and so on.
    pub(super) fn fill(self, text: Text, values: &[&dyn Display]) -> String {
        text.with(values).in_language(self).into_owned()
    }
}

impl Text {
    /// Returns the text with values for `{0}`, `{1}` and so on.
    pub(super) fn with(self, values: &[&dyn Display]) -> Said {
        Said::Text(self, values.iter().map(ToString::to_string).collect())
    }
}

/// What the component says to a user whose language is not known yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// Nothing.
    Nothing,
    /// A text, with its values.
    Text(Text, Vec<String>),
    /// A text of another part of the program, or of a user: it has one language.
    Foreign(String),
}

impl From<Text> for Said {
    fn from(text: Text) -> Self {
        Self::Text(text, Vec::new())
    }
}

impl Said {
    pub(super) fn in_language(&self, language: Language) -> Cow<'static, str> {
        match self {
            Self::Nothing => Cow::Borrowed(""),
            Self::Foreign(text) => Cow::Owned(text.clone()),
            Self::Text(text, values) if values.is_empty() => Cow::Borrowed(language.text(*text)),
            Self::Text(text, values) => Cow::Owned(filled(language.text(*text), values)),
        }
    }
}

/// Replaces each `{0}` of a text. The values may have braces of their own.
fn filled(text: &str, values: &[String]) -> String {
    let mut parts = text.split('{');
    let mut filled = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (number, rest) = part.split_once('}').unwrap_or((part, ""));
        let value = number.parse().ok().and_then(|number: usize| values.get(number));
        filled.push_str(value.map_or("", String::as_str));
        filled.push_str(rest);
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_language_has_every_text_with_the_same_values() {
        let values = |text: &str| -> Vec<String> {
            let parts = text.split('{').skip(1);
            let mut values: Vec<String> =
                parts.map(|part| part.split_once('}').unwrap().0.to_owned()).collect();
            values.sort();
            values
        };
        for text in Text::ALL {
            let [english, german] =
                [Language::English, Language::German].map(|language| language.text(*text));
            assert!(!english.is_empty() && !german.is_empty(), "{text:?}");
            assert_eq!(values(english), values(german), "{text:?}");
        }
    }

    #[test]
    fn a_text_has_the_language_and_the_values() {
        let text = Text::BlockedNow.with(&[&"{1}@a.example", &2]);
        let german = "{1}@a.example ist jetzt gesperrt. Beendete Sitzungen: 2.";
        assert_eq!(text.in_language(Language::German), german);
        let of = |lang: &str| {
            let element = format!("<command xmlns='a' xml:lang='{lang}'/>").parse().unwrap();
            Language::of(&element).unwrap()
        };
        assert_eq!([of("DE-at"), of("de"), of("den"), of("fr")], {
            [Language::German, Language::German, Language::English, Language::English]
        });
        assert_eq!(Language::of(&Element::bare("command", "a")), None);
    }
}
