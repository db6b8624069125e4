//! The output of `xtls`: text for a person on standard error, or one JSON object per line on standard output.

use std::{
    io::{IsTerminal, Write, stderr},
    sync::LazyLock,
    time::Duration,
};

use fingerpost_endpoint::Error;
use fingerpost_secure::{identity::IdentityError, openpgp::OpenPgpError};
use fingerpost_terminal::Stdout;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::display::{escaped_json, shown};

/// How a command failed; scripts rely on the exit status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct XtlsError {
    /// 1 failed, 2 usage, 3 unreachable, 4 key not verified, 5 refused by the peer.
    pub code: u8,
    /// What happened.
    pub text: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl XtlsError {
    /// Creates an error at run time.
    pub fn failed(text: impl Into<String>) -> Self {
        Self { code: 1, text: text.into(), hint: None }
    }

    /// Creates an error at run time that needs no message: only the exit status shows it.
    pub fn silent() -> Self {
        Self::failed("")
    }

    /// Creates an error of usage.
    pub fn usage(text: impl Into<String>) -> Self {
        Self { code: 2, text: text.into(), hint: None }
    }

    /// Creates the error for a peer that cannot be reached.
    pub fn unreachable(text: impl Into<String>) -> Self {
        Self { code: 3, text: text.into(), hint: None }
    }

    /// Creates the error for a peer's key that could not be verified; nothing was sent.
    pub fn unverified(text: impl Into<String>) -> Self {
        Self { code: 4, text: text.into(), hint: None }
    }

    /// Creates the error for a refusal by the peer.
    pub fn refused(text: impl Into<String>) -> Self {
        Self { code: 5, text: text.into(), hint: None }
    }

    /// Returns the error with a hint about its cure.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
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
            Error::Address(_) => Self::usage(text).hint(
                "`xtls listen` shows the full JID; `xtls send --wait` finds a listener with --available",
            ),
            Error::Unreachable(_) => Self::unreachable(text)
                .hint("the other side must run `xtls listen` (or what fits this command) first"),
            Error::Silent(_) => Self::unreachable(text).hint(
                "the program there is suspended or has lost its network: try again when it is back",
            ),
            Error::NoComponent(_) => Self::unreachable(text).hint(
                "nothing is wrong at the other side: ask the operator of the component, or name another one with --via",
            ),
            Error::Blocked(_) => {
                Self::unreachable(text).hint("unblock it with a chat program (XEP-0191)")
            }
            Error::BlockedByPeer(_) => Self::unreachable(text)
                .hint("the other side must unblock the component, or start its program again"),
            Error::Room(_) => Self::usage(text)
                .hint("ask the person for the real address, such as user@example.org, and name that"),
            Error::Transport(_) => Self::failed(text).hint(
                "leave out --transport, or give --prefer, to take the other transport where this one cannot be had",
            ),
            Error::Unverified(_) => Self::unverified(text),
            Error::Refused(_) | Error::Unsupported(_) => Self::refused(text),
            Error::Login(_) => Self::failed(text)
                .hint("`xtls login JID` stores another password, server or authority"),
            Error::Certificate { .. } => Self::failed(text).hint(
                "ask the server's operator for its fingerprint; if it is this one, give it to `xtls login JID \
                 --trust-certificate SHA256`. If the server has its own authority, name that with --ca-file",
            ),
            Error::Disconnected => Self::failed(text).hint("run the same command again"),
            _ => Self::failed(text),
        }
    }
}

impl From<XtlsError> for Error {
    fn from(error: XtlsError) -> Self {
        match error.code {
            4 => Self::Unverified(error.text.into()),
            _ => Self::Failed(error.text.into()),
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

/// The form and the amount of output.
#[derive(Clone, Copy, Debug, Default)]
pub struct Output {
    /// JSON instead of text.
    pub json: bool,
    /// Show errors only.
    pub quiet: bool,
    /// Whether standard output carries a stream's bytes and nothing else.
    pub piped: bool,
}

/// All progress bars: other output goes above them.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Whether standard error is a terminal that shows colours (<https://no-color.org>).
static COLOURS: LazyLock<bool> = LazyLock::new(|| {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    stderr().is_terminal() && !set("NO_COLOR") && !is_dumb()
});

fn is_dumb() -> bool {
    std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb")
}

/// The colours of words, as SGR parameters (ECMA-48, 8.3.117).
#[derive(Clone, Copy, Debug)]
enum Colour {
    Error,
    Hint,
    Warning,
}

impl Colour {
    fn paint(self, word: &str) -> String {
        if !*COLOURS {
            return word.to_owned();
        }
        let code = match self {
            Self::Error => "1;31",
            Self::Hint => "36",
            Self::Warning => "1;33",
        };
        format!("\x1b[{code}m{word}\x1b[0m")
    }
}

/// Writes a line to standard error, above the progress bars.
///
/// All text of peers passes here, so it cannot control the terminal. Lines after the first are indented, so that none
/// of them looks like a line of this program.
fn tell(label: &str, text: &str) {
    let text = shown(text, Some("  ")).replace("\n    ", "\n  ");
    // A reader that has gone away is no reason to fail.
    BARS.suspend(|| {
        let _ = writeln!(stderr(), "{label}{text}");
    });
}

/// Writes a line to standard output, where a failure decides the exit status.
fn print(line: &str) {
    let _ = writeln!(Stdout, "{line}");
}

impl Output {
    /// Reports an event: as JSON on standard output (on standard error of a pipe), or as text on standard error.
    pub fn event(&self, event: &Value, text: &str) {
        if self.json && self.piped {
            let _ = writeln!(stderr(), "{}", escaped_json(&event.to_string()));
        } else if self.json {
            print(&escaped_json(&event.to_string()));
        } else if !self.quiet && !text.is_empty() {
            tell("", text);
        }
    }

    /// Reports an event that the user must see: as JSON on standard output, or as a warning that is never hidden.
    pub fn alert(&self, event: &Value, text: &str, hint: Option<String>) {
        if self.json {
            return self.event(event, "");
        }
        match hint {
            Some(hint) => self.warn_with_hint(text, &hint),
            None => self.warn(text),
        }
    }

    /// Shows a warning, which is never hidden.
    pub fn warn(&self, text: &str) {
        tell(&Colour::Warning.paint("warning: "), text);
    }

    /// A warning with what to do about it, never hidden.
    pub fn warn_with_hint(&self, text: &str, hint: &str) {
        self.warn(text);
        tell(&Colour::Hint.paint("hint: "), hint);
    }

    /// Writes requested data.
    pub fn data(&self, value: &Value, text: &str) {
        if self.json {
            print(&escaped_json(&value.to_string()));
        } else {
            print(&shown(text, Some("")));
        }
    }

    /// Reports the error that ends a command or a part of it.
    pub fn error(&self, error: &XtlsError) {
        if error.text.is_empty() {
            return;
        }
        if self.json {
            let event = json!({
                "event": "error", "message": error.text, "code": error.code, "hint": error.hint,
            });
            self.event(&event, "");
        }
        tell(&Colour::Error.paint("error: "), &error.text);
        if let Some(hint) = &error.hint {
            tell(&Colour::Hint.paint("hint: "), hint);
        }
    }

    /// Returns whether a person watches the progress.
    fn is_watched(&self) -> bool {
        !self.quiet && !self.json && stderr().is_terminal() && !is_dumb()
    }

    /// Returns a progress bar for `size` bytes; hidden unless a person watches.
    pub fn progress(&self, size: u64, name: &str) -> ProgressBar {
        let template = if *COLOURS {
            "{msg} {wide_bar:.cyan} {percent:>3}%  {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  ETA {eta}"
        } else {
            "{msg} {wide_bar} {percent:>3}%  {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  ETA {eta}"
        };
        self.bar(ProgressBar::new(size), template, name)
    }

    /// Returns a sign of life while something is waited for; hidden unless a person watches.
    pub fn waiting(&self, what: &str) -> ProgressBar {
        self.bar(ProgressBar::new_spinner(), "{spinner} {msg} ({elapsed})", what)
    }

    fn bar(&self, bar: ProgressBar, template: &str, message: &str) -> ProgressBar {
        if !self.is_watched() {
            return ProgressBar::hidden();
        }
        let message = shown(message, None);
        let short = message.char_indices().nth(48).map_or(message.as_str(), |(n, _)| &message[..n]);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        let bar = BARS.add(bar.with_message(short.to_owned()));
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }
}
