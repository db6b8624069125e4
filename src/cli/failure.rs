//! How a command fails: what is said, and the exit status.

use std::io::{self, Write};

use fingerpost_wire::text::sentence;

use crate::config::ConfigError;

/// Exit status: a failure at run time.
pub const FAILED: u8 = 1;
/// Exit status: the configuration is wrong.
pub const BAD_CONFIG: u8 = 78;

/// Why a command ended early: one line, perhaps a cure, and the exit status.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CommandFailure {
    /// The exit status.
    pub code: u8,
    /// What happened, on one line.
    pub text: String,
    /// The cure.
    pub hint: Option<String>,
}

impl CommandFailure {
    /// Creates a failure at run time.
    pub fn new(text: impl Into<String>) -> Self {
        Self { code: FAILED, text: text.into(), hint: None }
    }

    /// Sets another exit status.
    pub fn with_code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// Adds a cure.
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// Writes the lines `error: …` and `hint: …`.
    ///
    /// # Errors
    /// Those of writing.
    pub fn report(&self, err: &mut impl Write) -> io::Result<()> {
        writeln!(err, "error: {}", sentence(&self.text))?;
        match &self.hint {
            Some(hint) => writeln!(err, "hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl From<ConfigError> for CommandFailure {
    fn from(error: ConfigError) -> Self {
        Self {
            code: BAD_CONFIG,
            text: error.to_string(),
            hint: error.hint().map(ToOwned::to_owned),
        }
    }
}

impl From<io::Error> for CommandFailure {
    fn from(error: io::Error) -> Self {
        Self::new(error.to_string())
    }
}
