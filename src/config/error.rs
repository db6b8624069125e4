//! What is wrong with a configuration, and where.

use std::{
    fmt,
    path::{Path, PathBuf},
};

/// The place where a setting was written.
#[derive(Clone, Debug)]
pub(super) enum Where {
    File(String),
    Env(String),
}

/// A fault in a configuration: one line with the place, the key and what was expected.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConfigError {
    pub(super) at: String,
    pub(super) text: String,
    pub(super) hint: Option<String>,
    pub(super) no_secret: Option<PathBuf>,
}

impl ConfigError {
    pub(super) fn new(at: &Where, section: &str, key: &str, text: String) -> Self {
        let (Where::File(at) | Where::Env(at)) = at;
        Self::at(format!("{at}: {section}.{key}"), text)
    }

    pub(super) fn at(at: String, text: String) -> Self {
        Self { at, text, hint: None, no_secret: None }
    }

    pub(super) fn with_hint(self, hint: &str) -> Self {
        Self { hint: Some(hint.to_owned()), ..self }
    }

    /// Returns the file in which the secret would be found, if its absence is the only fault.
    pub fn no_secret(&self) -> Option<&Path> {
        self.no_secret.as_deref()
    }

    /// Returns the cure, if it is more than the line says.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.text)
    }
}

impl std::error::Error for ConfigError {}
