//! The step between handshake and content: tells the user who the peer is and how the stream is secured, offers to
//! compare the short authentication string, and stores the peer's first key.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::fd::AsFd,
    sync::{Arc, LazyLock},
};

use jid::BareJid;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    termios::{QueueSelector, tcflush},
};
use serde_json::json;
use tokio::sync::Mutex;

use super::{Client, output::XtlsError, trust::Trust};
use crate::{
    endpoint::{Known, SecureStream, Session, Waiting},
    print::Method,
};

impl Client {
    /// Runs the step. Call it before a byte of the application is sent or received.
    ///
    /// # Errors
    /// Exit status 4 if the user does not confirm the short authentication string; the peer has been told then.
    pub(super) async fn secured(
        &self,
        session: &mut Session,
        stream: &SecureStream,
    ) -> Result<(), XtlsError> {
        self.tell_waiting(session);
        let done = self.tell_and_keep(session, stream).await;
        if done.is_err() {
            session.terminate("security-error", "").await;
        }
        done
    }

    /// Reports when the stream begins to wait for a silent client, and when it continues, for as long as the session
    /// lasts.
    fn tell_waiting(&self, session: &Session) {
        let (output, peer) = (self.output, session.peer().clone());
        let mut waiting = session.waiting();
        tokio::spawn(async move {
            while waiting.changed().await.is_ok() {
                let (event, text) = match *waiting.borrow_and_update() {
                    None => (
                        json!({"event": "moving", "peer": peer}),
                        "the stream continues".to_owned(),
                    ),
                    Some(Waiting { peer: of_peer, limit, .. }) => {
                        let whom = if of_peer { peer.as_str() } else { "this side" };
                        let seconds = limit.as_secs();
                        (
                            json!({"event": "waiting", "peer": peer, "for": whom, "seconds": seconds}),
                            format!(
                                "the stream waits: the XMPP client of {whom} does not answer; \
                                 it may come back within {seconds} s"
                            ),
                        )
                    }
                };
                output.event(&event, &text);
            }
        });
    }

    async fn tell_and_keep(
        &self,
        session: &mut Session,
        stream: &SecureStream,
    ) -> Result<(), XtlsError> {
        let learned = stream.learned();
        let first = learned.known == Known::First;
        let sas = if first || self.confirm_sas {
            Some(stream.short_authentication_string().await?)
        } else {
            None
        };
        self.tell(stream, sas.as_deref());
        if let (true, Some(sas)) = (self.confirm_sas, sas) {
            tokio::select! {
                answer = confirm(&learned.peer, &sas) => answer?,
                ended = session.terminated() => {
                    ended?;
                    return Err(XtlsError::refused("the peer ended the session"));
                }
            }
        }
        if first && learned.method != Method::Srp {
            // Another session may have been faster, with another key.
            Trust::load(&self.dir)?.keep(&learned.peer, learned.method, &learned.print)?;
        }
        Ok(())
    }

    fn tell(&self, stream: &SecureStream, sas: Option<&str>) {
        let learned = stream.learned();
        let (peer, print, transport) = (&learned.peer, &learned.print, learned.transport);
        let first = learned.known == Known::First;
        let mut text = format!(
            "secured with {peer} over {transport}: {} {}\n  ",
            learned.tls_version, learned.key_exchange,
        );
        text += &match learned.method {
            Method::X509 => format!("key {print}"),
            Method::OpenPgp => format!("OpenPGP key {print}"),
            Method::Srp => "the peer knows the password".to_owned(),
        };
        if first {
            text += " (first use: trusted from now on)";
        }
        if let Some(sas) = sas {
            text += &comparison(sas, stream.initiator());
        }
        self.output.event(
            &json!({
                "event": "secured",
                "peer": peer.as_str(),
                "method": learned.method.as_str(),
                "tls_version": learned.tls_version,
                "key_exchange": learned.key_exchange,
                "peer_print": print.to_string(),
                "transport": transport.as_str(),
                "first_use": first,
                "registry": (learned.method != Method::Srp).then(|| learned.standing.as_str()),
                "sas": sas,
                "initiator": stream.initiator().as_str(),
            }),
            &text,
        );
    }
}

/// Returns the text about the short authentication string.
pub(super) fn comparison(sas: &str, initiator: &BareJid) -> String {
    format!(
        "\n  {sas} is what you both see if nobody is between you (session started by {initiator})"
    )
}

/// The most bytes of an answer that are read.
const LONGEST: usize = 4096;

/// Held while a question owns the terminal.
static TERMINAL: LazyLock<Arc<Mutex<()>>> = LazyLock::new(Arc::default);

/// Asks the user whether the peer sees the same short authentication string. Asks one question at a time.
///
/// # Errors
/// Exit status 4 if the answer is no, or if there is no terminal.
///
/// # Cancel safety
/// Dropping the future ends the question: later input belongs to the next one.
pub(super) async fn confirm(peer: &BareJid, sas: &str) -> Result<(), XtlsError> {
    let question = format!("Does {peer} see {sas}? [y/N] ");
    let turn = Arc::clone(&TERMINAL).lock_owned().await;
    let (over, _until_dropped) = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
    let asked = tokio::task::spawn_blocking(move || {
        // The next question waits until this one has stopped reading.
        let _turn = turn;
        ask(&question, over)
    });
    asked.await.map_err(|error| XtlsError::failed(error.to_string()))?
}

/// Asks at the terminal, wherever standard input and output go, until the other end of `over` is closed. Earlier input
/// does not count as an answer.
fn ask(question: &str, over: impl AsFd) -> Result<(), XtlsError> {
    let answer = || -> io::Result<Option<String>> {
        let mut terminal = OpenOptions::new().read(true).write(true).open("/dev/tty")?;
        tcflush(&terminal, QueueSelector::IFlush)?;
        terminal.write_all(question.as_bytes())?;
        terminal.flush()?;
        let line = read_line(&terminal, over)?;
        if line.is_none() {
            terminal.write_all(b"\n")?;
        }
        Ok(line)
    };
    match answer() {
        Ok(Some(line)) if matches!(line.trim(), "y" | "Y" | "yes") => Ok(()),
        Ok(_) => Err(XtlsError::unverified(
            "the short authentication string was not confirmed: nothing was sent",
        )),
        Err(_) => {
            Err(XtlsError::unverified("--confirm-sas needs a terminal to ask at: nothing was sent"))
        }
    }
}

/// Reads a line of a terminal; returns `None`, with nothing read, as soon as the other end of `over` is closed.
fn read_line(mut terminal: &File, over: impl AsFd) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    loop {
        let mut ready =
            [PollFd::new(&over, PollFlags::empty()), PollFd::new(terminal, PollFlags::IN)];
        match poll(&mut ready, None) {
            Err(Errno::INTR) => continue,
            polled => polled?,
        };
        if !ready[0].revents().is_empty() {
            return Ok(None);
        }
        // A terminal in its usual mode delivers whole lines.
        let mut bytes = [0; 256];
        let read = terminal.read(&mut bytes)?;
        line.extend_from_slice(&bytes[..read]);
        if read == 0 || line.ends_with(b"\n") || line.len() >= LONGEST {
            return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use rustix::{
        fs::{Mode, OFlags, open},
        pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    };

    use super::*;

    /// Returns a pseudoterminal: the keyboard's side, and the program's.
    fn terminal() -> (File, File) {
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&keyboard).unwrap();
        unlockpt(&keyboard).unwrap();
        let name = ptsname(&keyboard, Vec::new()).unwrap();
        let program = open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        (keyboard.into(), program.into())
    }

    fn question() -> (OwnedFd, OwnedFd) {
        pipe_with(PipeFlags::CLOEXEC).unwrap()
    }

    #[test]
    fn a_question_that_has_ended_takes_no_answer() {
        let (mut keyboard, program) = terminal();
        let (over, open) = question();
        let asked = {
            let program = program.try_clone().unwrap();
            std::thread::spawn(move || read_line(&program, over).unwrap())
        };
        drop(open);
        assert_eq!(asked.join().unwrap(), None);
        // Also a question that is over before it is read.
        let (over, open) = question();
        drop(open);
        keyboard.write_all(b"y\n").unwrap();
        assert_eq!(read_line(&program, over).unwrap(), None);
        // The answer remains for the question that it belongs to.
        let (over, _open) = question();
        assert_eq!(read_line(&program, over).unwrap().as_deref(), Some("y\n"));
    }

    #[test]
    fn an_end_of_input_and_an_endless_line_are_answers_too() {
        let (mut keyboard, program) = terminal();
        let (over, _open) = question();
        // Ctrl-D.
        keyboard.write_all(&[4]).unwrap();
        assert_eq!(read_line(&program, &over).unwrap().as_deref(), Some(""));
        keyboard.write_all(b"no\n").unwrap();
        assert_eq!(read_line(&program, &over).unwrap().as_deref(), Some("no\n"));
    }
}
