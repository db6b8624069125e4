//! The names of settings.

use super::error::{ConfigError, Where};

/// A setting as the documentation shows it.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its name, in its section.
    pub key: &'static str,
    /// Its default, or else an example, as TOML.
    pub shown: &'static str,
    /// Whether `shown` is the default.
    pub has_default: bool,
    /// Its purpose, in lines.
    pub about: &'static [&'static str],
}

/// Sections with their settings.
pub type Sections = &'static [(&'static str, &'static [Setting])];

/// Returns the error for a key that its section does not have.
pub(super) fn unknown_key(
    at: &Where,
    section: &str,
    key: &str,
    settings: &[Setting],
) -> ConfigError {
    let known: Vec<&str> = settings.iter().map(|setting| setting.key).collect();
    let text = match closest(key, &known) {
        Some(known) => format!("unknown key in [{section}]; did you mean `{known}`?"),
        None => format!("unknown key in [{section}]"),
    };
    ConfigError::new(at, section, key, text)
}

/// Returns the known word that `word` was probably meant to be.
pub(super) fn closest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|known| (strsim::levenshtein(word, known), *known))
        .filter(|(distance, known)| *distance <= 1 + known.len() / 4)
        .min()
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_finds_the_word() {
        let keys = ["jid", "server", "secret", "secret_file", "name"];
        assert_eq!(closest("sever", &keys), Some("server"));
        assert_eq!(closest("secrt", &keys), Some("secret"));
        assert_eq!(closest("colour", &keys), None);
    }
}
