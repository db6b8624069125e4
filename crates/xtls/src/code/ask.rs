//! Asks for a code: at a terminal with completion of its words, otherwise as the first line of standard input.

use std::io::{BufRead, IsTerminal, stderr, stdin, stdout};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use rustyline::{
    Context, Editor, Helper, completion::Completer, error::ReadlineError, highlight::Highlighter,
    hint::Hinter, history::DefaultHistory, validate::Validator,
};

use super::{
    super::output::XtlsError,
    phrase::{beginning_with, is_between},
};

const PROMPT: &str = "Code (Tab completes a word): ";

/// Returns what the user types.
///
/// # Errors
/// If there is no line, or the user gives up.
pub(super) async fn code() -> Result<String, XtlsError> {
    let is_person = stdin().is_terminal() && stdout().is_terminal() && stderr().is_terminal();
    // The editor's thread may still wait for a key when a signal ends the program.
    let _modes = Modes(tcgetattr(stdin()).ok().filter(|_| is_person));
    let asked =
        tokio::task::spawn_blocking(move || if is_person { edited() } else { first_line() });
    asked.await.map_err(|error| XtlsError::failed(error.to_string()))?
}

fn first_line() -> Result<String, XtlsError> {
    let mut line = String::new();
    match stdin().lock().read_line(&mut line)? {
        0 => Err(XtlsError::usage("expected a code, found the end of standard input")
            .hint("give the code that `xtls send --code` shows")),
        _ => Ok(line),
    }
}

fn edited() -> Result<String, XtlsError> {
    let bad = |error: ReadlineError| match error {
        ReadlineError::Interrupted | ReadlineError::Eof => XtlsError::failed("interrupted"),
        error => XtlsError::failed(format!("the terminal: {error}")),
    };
    let mut editor = Editor::<Words, DefaultHistory>::new().map_err(bad)?;
    editor.set_helper(Some(Words));
    editor.readline(PROMPT).map_err(bad)
}

/// The settings of the terminal, which come back when this is dropped.
struct Modes(Option<Termios>);

impl Drop for Modes {
    fn drop(&mut self) {
        if let Some(modes) = &self.0 {
            let _ = tcsetattr(stdin(), OptionalActions::Now, modes);
        }
    }
}

/// Completes the words of a code.
struct Words;

impl Helper for Words {}
impl Highlighter for Words {}
impl Validator for Words {}

impl Hinter for Words {
    type Hint = String;
}

impl Completer for Words {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        let typed = line.get(..position).unwrap_or_default();
        Ok(completions(typed))
    }
}

/// Returns the words that may stand where the cursor is, and where they begin.
fn completions(typed: &str) -> (usize, Vec<String>) {
    let Some(slash) = typed.rfind('/') else { return (0, Vec::new()) };
    let begin = typed
        .rfind(is_between)
        .map_or(0, |at| at + typed[at..].chars().next().map_or(0, char::len_utf8));
    // Before the first separator there is the number.
    if begin <= slash + 1 {
        return (typed.len(), Vec::new());
    }
    let words = beginning_with(&typed[begin..]).map(str::to_owned);
    (begin, words.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_words_are_completed() {
        let code = "alice@my-host.example.org/7-guitar-wint";
        let (begin, words) = completions(code);
        assert_eq!((&code[begin..], words), ("wint", vec!["winter".to_owned()]));
        assert_eq!(completions("alice@example.org/7-win").1.len(), 7);
        assert_eq!(completions("alice@example.org/7 Guita").1, ["guitar"]);
        assert_eq!(completions("alice@example.org/7 – guita").1, ["guitar"]);
        assert_eq!(completions("alice@example.org/7-").1.len(), 2048);
        for text in [
            "",
            "alice@my-host",
            "alice@my-host/",
            "alice@my-host/7",
            "alice@example.org/7-guitarx",
        ] {
            assert!(completions(text).1.is_empty(), "{text}");
        }
    }
}
