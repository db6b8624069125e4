//! What `xtls` says: text for a person on standard error, or one JSON object a line on standard output.

use std::io::{IsTerminal, Write, stderr, stdout};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::{
    endpoint::Error,
    tls::{identity::IdentityError, openpgp::OpenPgpError},
};

/// How a command failed; the exit status is part of the program's contract.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct XtlsError {
    /// 1 failed, 2 usage, 3 unreachable, 4 key not verified, 5 refused by the peer.
    pub code: u8,
    /// What happened and what to do.
    pub text: String,
}

impl XtlsError {
    /// Failed at run time.
    pub fn failed(text: impl Into<String>) -> Self {
        Self { code: 1, text: text.into() }
    }

    /// Bad usage.
    pub fn usage(text: impl Into<String>) -> Self {
        Self { code: 2, text: text.into() }
    }

    /// The peer cannot be reached.
    pub fn unreachable(text: impl Into<String>) -> Self {
        Self { code: 3, text: text.into() }
    }

    /// The peer's key could not be verified; nothing was sent.
    pub fn unverified(text: impl Into<String>) -> Self {
        Self { code: 4, text: text.into() }
    }

    /// The peer refused.
    pub fn refused(text: impl Into<String>) -> Self {
        Self { code: 5, text: text.into() }
    }
}

impl From<std::io::Error> for XtlsError {
    fn from(error: std::io::Error) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<Error> for XtlsError {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::Address(_) => Self::usage(text),
            Error::Unreachable(_) => Self::unreachable(text),
            Error::Unverified(_) => Self::unverified(text),
            Error::Refused(_) | Error::Unsupported(_) => Self::refused(text),
            _ => Self::failed(text),
        }
    }
}

impl From<XtlsError> for Error {
    fn from(error: XtlsError) -> Self {
        match error.code {
            4 => Self::Unverified(error.text),
            _ => Self::Failed(error.text),
        }
    }
}

impl From<OpenPgpError> for XtlsError {
    fn from(error: OpenPgpError) -> Self {
        match error {
            OpenPgpError::Passphrase => Self::usage(format!(
                "{error}: it is asked for, or taken from XTLS_OPENPGP_PASSPHRASE"
            )),
            _ => Self::failed(error.to_string()),
        }
    }
}

impl From<IdentityError> for XtlsError {
    fn from(error: IdentityError) -> Self {
        Self::failed(error.to_string())
    }
}

/// Where and how much to say.
#[derive(Clone, Copy, Debug, Default)]
pub struct Output {
    /// JSON instead of text.
    pub json: bool,
    /// Only errors.
    pub quiet: bool,
    /// Standard output carries a stream's bytes and nothing else.
    pub piped: bool,
}

impl Output {
    /// An event: JSON on standard output (on standard error of a pipe), or the text on standard error.
    pub fn event(&self, event: &Value, text: &str) {
        // A reader that went away is no reason to fail.
        if self.json && self.piped {
            let _ = writeln!(stderr(), "{event}");
        } else if self.json {
            let _ = writeln!(stdout(), "{event}");
        } else if !self.quiet && !text.is_empty() {
            let _ = writeln!(stderr(), "{text}");
        }
    }

    /// A warning, never hidden.
    pub fn warn(&self, text: &str) {
        let _ = writeln!(stderr(), "warning: {text}");
    }

    /// Data that was asked for.
    pub fn data(&self, value: &Value, text: &str) {
        let _ =
            if self.json { writeln!(stdout(), "{value}") } else { writeln!(stdout(), "{text}") };
    }

    /// The error a command ends with.
    pub fn error(&self, error: &XtlsError) {
        if self.json {
            let event =
                serde_json::json!({"event": "error", "message": error.text, "code": error.code});
            self.event(&event, "");
        }
        let _ = writeln!(stderr(), "error: {}", error.text);
    }

    /// A progress bar for `size` bytes; hidden unless a person watches.
    pub fn progress(&self, size: u64, name: &str) -> ProgressBar {
        if self.quiet || self.json || !stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template(
            "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}",
        );
        let bar = ProgressBar::new(size).with_message(name.to_owned());
        match style {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        }
    }
}
