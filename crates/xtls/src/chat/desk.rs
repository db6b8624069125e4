//! Standard input for one chat after the other, in a listener that takes other sessions too.
//!
//! A line goes to the current chat. Without a chat the line is dropped with a message: a line that was typed for one person
//! must not reach the next one.

use std::{
    io::{IsTerminal, stdin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use serde_json::json;
use tokio::sync::mpsc;

use super::typed::{Typed, command};
use crate::{output::Output, secured::TerminalTurn};

/// The longest line that is read: the chat says of much shorter ones that they are too long.
const LONGEST: usize = 64 << 10;

/// The place of a chat, of which there is one.
#[derive(Debug)]
pub(crate) struct Desk {
    output: Output,
    taken: Taken,
}

/// Where typed lines go.
type Taken = Arc<Mutex<Option<mpsc::Sender<Typed>>>>;

fn lock(taken: &Taken) -> MutexGuard<'_, Option<mpsc::Sender<Typed>>> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Desk {
    /// Begins to read standard input.
    pub(crate) fn new(output: Output) -> Self {
        let taken = Taken::default();
        let is_person = !output.json && stdin().is_terminal();
        let reader = LineReader { output, taken: Arc::clone(&taken), is_person };
        std::thread::spawn(move || reader.run());
        Self { output, taken }
    }

    /// Returns whether there is a chat.
    pub(crate) fn is_taken(&self) -> bool {
        lock(&self.taken).is_some()
    }

    /// Gives a chat the lines that are typed from now on; `None` if there is another chat.
    pub(crate) fn take(&self) -> Option<Seat> {
        let mut taken = lock(&self.taken);
        if taken.is_some() {
            return None;
        }
        let (sender, typed) = mpsc::channel(1);
        *taken = Some(sender);
        Some(Seat { output: self.output, taken: Arc::clone(&self.taken), typed })
    }
}

/// The lines that are typed for one chat, until this is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    output: Output,
    taken: Taken,
    typed: mpsc::Receiver<Typed>,
}

impl Seat {
    /// Waits for the user's next action.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(super) async fn next(&mut self) -> Typed {
        match self.typed.recv().await {
            Some(typed) => typed,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        *lock(&self.taken) = None;
        // The thread that reads finds it closed, and tells of the line itself.
        self.typed.close();
        while let Ok(typed) = self.typed.try_recv() {
            tell_unsent(self.output, &typed);
        }
    }
}

fn tell_unsent(output: Output, typed: &Typed) {
    if matches!(typed, Typed::Line(_)) {
        let text = "nobody chats with you: the line was not sent";
        output.event(&json!({"event": "note", "message": text}), text);
    }
}

/// The thread that reads standard input.
struct LineReader {
    output: Output,
    taken: Taken,
    /// Whether a person types; a person may type commands.
    is_person: bool,
}

impl LineReader {
    fn run(self) {
        let mut line = Vec::new();
        let mut bytes = [0; 4096];
        while let Some(count) = Self::read(&mut bytes) {
            for byte in &bytes[..count] {
                if *byte != b'\n' {
                    line.push(*byte);
                }
                if *byte == b'\n' || line.len() >= LONGEST {
                    self.typed(&line);
                    line.clear();
                }
            }
        }
        self.typed(&line);
    }

    /// Waits for input and reads it; `None` at its end. While a question owns the terminal, the input is its answer.
    fn read(bytes: &mut [u8]) -> Option<usize> {
        loop {
            Self::poll(None)?;
            let _turn = stdin().is_terminal().then(TerminalTurn::blocking_new);
            if !Self::poll(Some(&Timespec::default()))? {
                continue;
            }
            match rustix::io::read(stdin(), &mut *bytes) {
                Ok(0) => return None,
                Ok(count) => return Some(count),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(_) => return None,
            }
        }
    }

    /// Waits for input; returns whether there is any.
    fn poll(wait: Option<&Timespec>) -> Option<bool> {
        let input = stdin();
        let mut ready = [PollFd::new(&input, PollFlags::IN)];
        loop {
            match poll(&mut ready, wait) {
                Ok(count) => return Some(count > 0),
                Err(Errno::INTR) => {}
                Err(_) => return None,
            }
        }
    }

    fn typed(&self, line: &[u8]) {
        let text = String::from_utf8_lossy(line).trim_end_matches('\r').to_owned();
        let typed = match self.is_person {
            true => command(&text),
            false => (!text.is_empty()).then_some(Typed::Line(text)),
        };
        let Some(typed) = typed else { return };
        let seat = lock(&self.taken).clone();
        let unsent = match seat {
            Some(seat) => seat.blocking_send(typed).err().map(|error| error.0),
            None => Some(typed),
        };
        if let Some(typed) = unsent {
            tell_unsent(self.output, &typed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desk() -> Desk {
        Desk { output: Output { quiet: true, ..Output::default() }, taken: Taken::default() }
    }

    #[tokio::test]
    async fn one_chat_has_the_desk_and_what_was_typed_for_it_is_not_for_the_next() {
        let desk = desk();
        let reader = |is_person| LineReader {
            output: desk.output,
            taken: Arc::clone(&desk.taken),
            is_person,
        };
        let types = |is_person, line: &'static [u8]| {
            let reader = reader(is_person);
            std::thread::spawn(move || reader.typed(line)).join().unwrap();
        };
        types(false, b"to nobody");
        let mut first = desk.take().unwrap();
        assert!(desk.is_taken() && desk.take().is_none());
        types(false, b"/one\r");
        assert_eq!(first.next().await, Typed::Line("/one".to_owned()));
        types(true, b"/quit");
        assert_eq!(first.next().await, Typed::Quit);
        types(true, b"too late");
        drop(first);
        assert!(!desk.is_taken());
        let mut second = desk.take().unwrap();
        types(true, b"two");
        assert_eq!(second.next().await, Typed::Line("two".to_owned()));
    }
}
