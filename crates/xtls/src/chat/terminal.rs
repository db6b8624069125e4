//! Input and output of a chat: a terminal with line editing, or lines of standard input and output.

use std::io::{IsTerminal, Write, stdin, stdout};

use fingerpost_terminal::Stdout;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use rustyline::{DefaultEditor, ExternalPrinter, error::ReadlineError};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    sync::mpsc,
};

use super::{
    conversation::News,
    desk::Seat,
    typed::{Typed, command},
};
use crate::{
    display::{escaped_json, shown},
    output::{Output, XtlsError},
};

const PROMPT: &str = "> ";
/// Ends a terminal's bracketed paste, which the line editor may have left on.
const PASTE_OFF: &str = "\u{1b}[?2004l";

/// The user's side of a chat.
pub(super) struct Terminal {
    output: Output,
    peer: String,
    input: Input,
    screen: Option<Screen>,
}

/// Where it comes from what the user does.
enum Input {
    /// Standard input, which is this chat's alone.
    Own(mpsc::Receiver<Typed>),
    /// The part of it that is this chat's.
    Shared(Seat),
}

/// A terminal with a person at it.
struct Screen {
    printer: Box<dyn ExternalPrinter + Send>,
    colours: bool,
    /// The terminal's settings before the line editor changed them.
    modes: Option<Termios>,
}

impl Drop for Screen {
    /// Restores the terminal: the line editor may still wait for a key in its own thread when the peer leaves.
    fn drop(&mut self) {
        if let Some(modes) = &self.modes {
            let _ = tcsetattr(stdin(), OptionalActions::Now, modes);
        }
        let _ = write!(stdout(), "{PASTE_OFF}\r");
        let _ = stdout().flush();
    }
}

impl Terminal {
    /// Begins to read what the user types to `peer`: at the seat, if there is one.
    ///
    /// # Errors
    /// If the terminal cannot be used.
    pub(super) fn start(output: Output, peer: &str, seat: Option<Seat>) -> Result<Self, XtlsError> {
        let peer = shown(peer, None);
        if let Some(seat) = seat {
            return Ok(Self { output, peer, input: Input::Shared(seat), screen: None });
        }
        let (sender, typed) = mpsc::channel(1);
        let person = !output.json && stdin().is_terminal() && stdout().is_terminal();
        let screen = if person {
            Some(edit(sender)?)
        } else {
            tokio::spawn(read_lines(sender));
            None
        };
        Ok(Self { output, peer, input: Input::Own(typed), screen })
    }

    /// Returns the user's next action.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(super) async fn next(&mut self) -> Typed {
        match &mut self.input {
            Input::Own(typed) => typed.recv().await.unwrap_or(Typed::End),
            Input::Shared(seat) => seat.next().await,
        }
    }

    /// Shows news to the user.
    pub(super) fn tell(&mut self, news: &[News]) {
        let arrived = news.iter().filter(|news| matches!(news, News::Arrived(_))).count();
        let mut counted = false;
        for news in news {
            let peer = self.peer.as_str();
            match news {
                News::Started { acknowledged } => {
                    let event =
                        json!({"event": "chat", "peer": peer, "acknowledged": acknowledged});
                    let note =
                        if *acknowledged { "" } else { "; it does not say what has arrived" };
                    let help =
                        if self.screen.is_some() { " (/help lists the commands)" } else { "" };
                    self.note(&event, &format!("chat with {peer}{note}{help}"));
                }
                News::Message(text) => self.message(text),
                News::Arrived(line) => {
                    let event = json!({"event": "arrived", "line": line});
                    let text = match (self.screen.is_some(), arrived) {
                        (false, _) => format!("arrived: line {line}"),
                        (true, _) if counted => String::new(),
                        (true, 1) => "✓ arrived".to_owned(),
                        (true, _) => format!("✓ {arrived} lines arrived"),
                    };
                    counted = true;
                    self.note(&event, &text);
                }
                News::NotTaken(condition) => {
                    let condition = shown(condition, None);
                    let event = json!({"event": "not_taken", "condition": condition});
                    self.note(
                        &event,
                        &format!("{peer}'s program did not take a line: {condition}"),
                    );
                }
                News::Ended { lost, .. } => {
                    self.note(&json!({"event": "ended", "lost": lost}), "the chat has ended");
                }
            }
        }
    }

    /// Notes that a line was sent.
    pub(super) fn sent(&self, line: u64) {
        if self.output.json {
            self.json(&json!({"event": "sent", "line": line}));
        }
    }

    /// Shows a remark that is neither news nor the end.
    pub(super) fn remark(&mut self, text: &str) {
        self.note(&json!({"event": "note", "message": text}), text);
    }

    fn message(&mut self, text: &str) {
        if self.output.json {
            return self.json(&json!({"event": "message", "from": self.peer, "text": text}));
        }
        let Some(screen) = &mut self.screen else {
            // Several people may chat with a listener, one after the other.
            let _ = match self.input {
                Input::Own(_) => writeln!(Stdout, "{}", shown(text, Some(""))),
                Input::Shared(_) => {
                    writeln!(Stdout, "{}: {}", self.peer, shown(text, Some("    ")))
                }
            };
            return;
        };
        // Continued lines are indented, so that no text looks like another person's line.
        let (text, peer) = (shown(text, Some("    ")), &self.peer);
        screen.print(&if screen.colours {
            format!("\u{1b}[1;36m{peer}:\u{1b}[0m {text}")
        } else {
            format!("{peer}: {text}")
        });
    }

    fn note(&mut self, event: &Value, text: &str) {
        match &mut self.screen {
            Some(_) if text.is_empty() || self.output.quiet => {}
            Some(screen) if screen.colours => screen.print(&format!("\u{1b}[2m{text}\u{1b}[0m")),
            Some(screen) => screen.print(text),
            None if self.output.json => self.json(event),
            None => self.output.event(event, text),
        }
    }

    fn json(&self, event: &Value) {
        let _ = writeln!(Stdout, "{}", escaped_json(&event.to_string()));
    }
}

impl Screen {
    fn print(&mut self, line: &str) {
        let _ = self.printer.print(format!("{line}\n"));
    }
}

/// Reads standard input line by line to its end.
async fn read_lines(typed: mpsc::Sender<Typed>) {
    let mut input = BufReader::new(tokio::io::stdin());
    let mut line = Vec::new();
    while let Ok(1..) = input.read_until(b'\n', &mut line).await {
        let text = String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned();
        line.clear();
        if !text.is_empty() && typed.send(Typed::Line(text)).await.is_err() {
            return;
        }
    }
    let _ = typed.send(Typed::End).await;
}

/// Starts the line editor in a thread of its own.
fn edit(typed: mpsc::Sender<Typed>) -> Result<Screen, XtlsError> {
    let bad = |error: ReadlineError| XtlsError::failed(format!("the terminal: {error}"));
    let modes = tcgetattr(stdin()).ok();
    let mut editor = DefaultEditor::new().map_err(bad)?;
    let printer = Box::new(editor.create_external_printer().map_err(bad)?);
    std::thread::spawn(move || {
        loop {
            let next = match editor.readline(PROMPT) {
                Ok(line) => {
                    let _ = editor.add_history_entry(line.as_str());
                    command(&line)
                }
                // Ctrl-D, Ctrl-C, or the terminal is gone.
                Err(_) => Some(Typed::Quit),
            };
            let Some(next) = next else { continue };
            let last = next == Typed::Quit;
            if typed.blocking_send(next).is_err() || last {
                return;
            }
        }
    });
    let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    Ok(Screen { printer, colours, modes })
}
