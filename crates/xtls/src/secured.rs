//! The step between handshake and content: tells the user who the peer is and how the stream is secured, offers to
//! compare the short authentication string, and stores the peer's first key.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::fd::AsFd,
    sync::{Arc, LazyLock, PoisonError},
    time::Duration,
};

use fingerpost_endpoint::{Known, Learned, Path, Reason, SecureStream, Session, Waiting};
use fingerpost_wire::{
    key::Assurance,
    print::{Method, Print},
};
use jid::BareJid;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    termios::{QueueSelector, tcflush},
};
use serde_json::{Value, json};
use tokio::{
    sync::{Mutex, OwnedMutexGuard, watch},
    time::timeout,
};

use super::{
    args::AcceptNewDevice,
    client::{Client, Code},
    display::shown,
    output::XtlsError,
    trust::{Device, NAMED, Trust, Verified, set_command},
};

impl Client {
    /// Runs the step. Call it before a byte of the application is sent or received.
    ///
    /// # Errors
    /// Exit status 4 if the user does not accept a further key of the peer, or does not confirm the short authentication
    /// string; the peer has been told then.
    pub(super) async fn secured(
        &self,
        session: &mut Session,
        stream: &SecureStream,
    ) -> Result<(), XtlsError> {
        let admitted = self.admit(session, stream).await?;
        self.settle(session, stream, admitted).await
    }

    /// Runs the first half of [`secured`](Self::secured): decides on a further key of a known peer. This may wait for the
    /// user's answer, so no other session should wait for it.
    ///
    /// # Errors
    /// Exit status 4 if the key is not accepted; the peer has been told then.
    pub(super) async fn admit(
        &self,
        session: &mut Session,
        stream: &SecureStream,
    ) -> Result<Admitted, XtlsError> {
        if stream.learned().known != Known::Further {
            return Ok(Admitted::default());
        }
        let done = self.further(session, stream).await;
        if done.is_err() {
            session.terminate(Reason::SecurityError, "").await;
        }
        done
    }

    /// Runs the second half: tells the user, and keeps the peer's key.
    ///
    /// # Errors
    /// Exit status 4 if the user does not confirm the short authentication string; the peer has been told then.
    pub(super) async fn settle(
        &self,
        session: &mut Session,
        stream: &SecureStream,
        admitted: Admitted,
    ) -> Result<(), XtlsError> {
        self.tell_waiting(session);
        self.tell_path(stream);
        let done = self.tell_and_keep(session, stream, admitted).await;
        if done.is_err() {
            session.terminate(Reason::SecurityError, "").await;
        }
        done
    }

    /// Accepts a further key of a known peer, which the registry calls proven, if the user wants that.
    async fn further(
        &self,
        session: &mut Session,
        stream: &SecureStream,
    ) -> Result<Admitted, XtlsError> {
        let learned = stream.learned();
        let sas = stream.short_authentication_string().await?;
        let (forms, initiator) = (stream.forms(), stream.initiator());
        let further = Further { learned, forms: &forms, sas: &sas, initiator };
        self.output.event(&further.event(), "");
        let asked = self.accept_new_device == AcceptNewDevice::Ask;
        if asked {
            while_there(session, self.ask_about(&further)).await?;
        }
        Ok(Admitted { sas: Some(sas), asked })
    }

    /// Asks the user. After an answer other than yes there is no further question about the peer while the program runs;
    /// otherwise anyone who can register keys for the peer could keep a listener's user busy.
    async fn ask_about(&self, further: &Further<'_>) -> Result<(), XtlsError> {
        let Learned { peer, method, print, .. } = further.learned;
        let turn = TerminalTurn::new().await;
        let mut trust = Trust::load(&self.dir)?;
        if trust.check_forms(peer, *method, print, further.forms) == Known::Same {
            // Another session has asked meanwhile, or the user has set a print of the key.
            return Ok(());
        }
        let declined = || self.declined.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = |why: &str| {
            XtlsError::unverified(format!("{why}: nothing was sent\n  shown: {method} {print}"))
                .hint(format!(
                    "ask {peer} for the fingerprint, and trust it: {}",
                    set_command(peer, *method, print)
                ))
        };
        if declined().contains(peer) {
            return Err(refused(&format!(
                "{peer} has shown a further key once more, after one was not accepted"
            )));
        }
        let question = further.question(&trust);
        let answer = timeout(PATIENCE, turn.ask(question)).await.unwrap_or(Ok(UserAnswer::No))?;
        match answer {
            UserAnswer::Yes => trust.add(peer, device(further.learned, Verified::Asked)),
            UserAnswer::No | UserAnswer::Unclear => {
                declined().insert(peer.clone());
                Err(refused(&format!("the further key of {peer} was not accepted")))
            }
            UserAnswer::NoTerminal => {
                let error = refused(&format!(
                    "{peer} has shown a further key, and there is no terminal to ask at"
                ));
                let hint = error.hint.unwrap_or_default();
                Err(XtlsError {
                    hint: Some(format!(
                        "{hint}; or take the registry's word for it: --accept-new-device registry"
                    )),
                    ..error
                })
            }
        }
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

    /// Reports the path that the stream takes, and each change for as long as it lasts. On a link without a component there is
    /// no relay to report.
    fn tell_path(&self, stream: &SecureStream) {
        let (output, peer, mut path) = (self.output, stream.peer().clone(), stream.path());
        let tell = move |now: Path| output.event(&path_event(&peer, now), &format!("path: {now}"));
        let mut told = *path.borrow_and_update();
        if told != Path::Relay || self.component.is_some() {
            tell(told);
        }
        tokio::spawn(async move {
            while path.changed().await.is_ok() {
                let now = *path.borrow_and_update();
                if now != told {
                    told = now;
                    tell(now);
                }
            }
        });
    }

    async fn tell_and_keep(
        &self,
        session: &mut Session,
        stream: &SecureStream,
        admitted: Admitted,
    ) -> Result<(), XtlsError> {
        let learned = stream.learned();
        let new = learned.known != Known::Same;
        let sas = match admitted.sas {
            None if new || self.confirm_sas => Some(stream.short_authentication_string().await?),
            sas => sas,
        };
        self.tell(stream, sas.as_deref());
        let confirms = self.confirm_sas && !admitted.asked;
        if let (true, Some(sas)) = (confirms, sas) {
            while_there(session, confirm(&learned.peer, &sas)).await?;
        }
        if learned.method == Method::Srp {
            return Ok(());
        }
        let verified = match learned.known {
            _ if confirms => Verified::Compared,
            Known::Further => Verified::Registry,
            _ => Verified::FirstUse,
        };
        let device = device(learned, verified);
        match learned.known {
            // Another session may have been faster, with another key.
            Known::First => {
                let mut trust = Trust::load(&self.dir)?;
                trust.keep(&learned.peer, device, &stream.forms()).map(|_| ())
            }
            Known::Further if !admitted.asked => Trust::load(&self.dir)?.add(&learned.peer, device),
            Known::Same if confirms => {
                let mut trust = Trust::load(&self.dir)?;
                trust.set_compared(&learned.peer, learned.method, &learned.print, &stream.forms())
            }
            _ => Ok(()),
        }
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
            Method::Srp if self.takes.code != Code::None => "the peer knows the code".to_owned(),
            Method::Srp => "the peer knows the password".to_owned(),
        };
        text += match learned.known {
            Known::First => " (first use: trusted from now on)",
            Known::Further => {
                " (a further key, which the registry calls proven: trusted from now on)"
            }
            Known::Same => "",
        };
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
                "new_device": learned.known == Known::Further,
                "registry": (learned.method != Method::Srp).then(|| learned.standing.as_str()),
                "sas": sas,
                "initiator": stream.initiator().as_str(),
            }),
            &text,
        );
    }
}

/// The decision on a further key of a known peer.
#[derive(Debug, Default)]
pub(super) struct Admitted {
    /// The short authentication string, if it was needed.
    sas: Option<String>,
    /// Whether the user was asked, and has accepted the key.
    asked: bool,
}

/// A further key of a known peer, which the registry calls proven.
struct Further<'a> {
    learned: &'a Learned,
    /// Its prints; the user may trust it by any of them.
    forms: &'a [Print],
    sas: &'a str,
    initiator: &'a BareJid,
}

/// Returns the label that the registry has for the key that was shown, or none.
fn label(learned: &Learned) -> &str {
    learned.listed.as_ref().map_or("", |listed| &listed.label)
}

/// Returns the key that was shown, to be kept.
fn device(learned: &Learned, verified: Verified) -> Device {
    Device::seen_now(learned.method, learned.print.clone(), label(learned), verified)
}

/// Returns the event about the path that a stream takes from now on.
fn path_event(peer: &BareJid, path: Path) -> Value {
    match path {
        Path::Direct(address) => json!({
            "event": "path", "peer": peer.as_str(), "path": "direct", "address": address.ip().to_string(),
        }),
        _ => json!({"event": "path", "peer": peer.as_str(), "path": "relay"}),
    }
}

/// Waits for the user's answer, unless the peer ends the session first.
async fn while_there(
    session: &mut Session,
    answer: impl Future<Output = Result<(), XtlsError>>,
) -> Result<(), XtlsError> {
    tokio::select! {
        answer = answer => answer,
        ended = session.terminated() => {
            ended?;
            Err(XtlsError::refused("the peer ended the session"))
        }
    }
}

impl Further<'_> {
    fn event(&self) -> Value {
        let Learned { peer, method, print, listed, .. } = self.learned;
        json!({
            "event": "new_device", "peer": peer.as_str(), "method": method.as_str(), "print": print.to_string(),
            "label": label(self.learned), "assurance": listed.as_ref().map(|listed| listed.assurance.as_str()),
            "sas": self.sas,
        })
    }

    fn question(&self, trust: &Trust) -> String {
        let Learned { peer, method, print, listed, .. } = self.learned;
        let assurance = match listed {
            Some(listed) if listed.assurance == Assurance::Attested => "an attested",
            _ => "a proven",
        };
        let label = match label(self.learned) {
            "" => String::new(),
            label => format!(" \"{}\"", shown(label, None)),
        };
        let known: String = trust
            .keys(peer)
            .iter()
            .take(NAMED)
            .map(|key| format!("\n  known: {} {}", key.method, key.print))
            .collect();
        format!(
            "{peer} shows a key that is not known here.\n  The registry calls it {assurance} key of {peer}.{known}\n  \
             shown: {method} {print}{label}{}\nHas {peer} told you of this key, or do they see these digits? Accept it? [y/N] ",
            comparison(self.sas, self.initiator)
        )
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
/// How long a question about a further key waits for its answer.
const PATIENCE: Duration = Duration::from_secs(300);

/// Held while a question owns the terminal.
static TERMINAL: LazyLock<Arc<Mutex<()>>> = LazyLock::new(Arc::default);

/// How many questions wait for the terminal.
static WANTED: LazyLock<watch::Sender<usize>> = LazyLock::new(watch::Sender::default);

/// Counts as a question that waits for the terminal.
struct Wish;

impl Wish {
    fn new() -> Self {
        WANTED.send_modify(|count| *count += 1);
        Self
    }
}

impl Drop for Wish {
    fn drop(&mut self) {
        WANTED.send_modify(|count| *count -= 1);
    }
}

/// The user's answer to a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UserAnswer {
    Yes,
    No,
    /// Something else, or the end of the input: a terminal may have been closed.
    Unclear,
    NoTerminal,
}

impl UserAnswer {
    /// Reads a line, with its end.
    fn read(line: &str) -> Self {
        match line.strip_suffix('\n').map(str::trim) {
            Some("y" | "Y" | "yes") => Self::Yes,
            Some("" | "n" | "N" | "no") => Self::No,
            _ => Self::Unclear,
        }
    }
}

/// The right to ask a question, or to read the terminal otherwise. One question is asked at a time.
#[derive(Debug)]
pub(super) struct TerminalTurn {
    _held: OwnedMutexGuard<()>,
}

impl TerminalTurn {
    pub(super) async fn new() -> Self {
        let _wish = Wish::new();
        Self { _held: Arc::clone(&TERMINAL).lock_owned().await }
    }

    /// Waits for the right in a thread of its own.
    pub(super) fn blocking_new() -> Self {
        Self { _held: Arc::clone(&TERMINAL).blocking_lock_owned() }
    }

    /// Waits until another question waits for the terminal.
    pub(super) async fn wanted() {
        let mut wanted = WANTED.subscribe();
        // The sender is never dropped.
        let _ = wanted.wait_for(|count| *count > 0).await;
    }

    /// Asks at the terminal.
    ///
    /// # Cancel safety
    /// Dropping the future ends the question: later input belongs to the next one.
    pub(super) async fn ask(self, question: String) -> Result<UserAnswer, XtlsError> {
        let (over, _until_dropped) = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
        let asked = tokio::task::spawn_blocking(move || {
            // The next question waits until this one has stopped reading.
            let _turn = self;
            ask(&question, over)
        });
        asked.await.map_err(|error| XtlsError::failed(error.to_string()))
    }
}

/// Asks the user whether the peer sees the same short authentication string.
///
/// # Errors
/// Exit status 4 if the answer is no, or if there is no terminal.
///
/// # Cancel safety
/// Dropping the future ends the question: later input belongs to the next one.
pub(super) async fn confirm(peer: &BareJid, sas: &str) -> Result<(), XtlsError> {
    let question = format!("Does {peer} see {sas}? [y/N] ");
    match TerminalTurn::new().await.ask(question).await? {
        UserAnswer::Yes => Ok(()),
        UserAnswer::No | UserAnswer::Unclear => Err(XtlsError::unverified(
            "the short authentication string was not confirmed: nothing was sent",
        )),
        UserAnswer::NoTerminal => {
            Err(XtlsError::unverified("--confirm-sas needs a terminal to ask at: nothing was sent"))
        }
    }
}

fn terminal() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/tty")
}

/// Returns whether there is a terminal to ask at.
pub(super) fn has_terminal() -> bool {
    terminal().is_ok()
}

/// Asks at the terminal, wherever standard input and output go, until the other end of `over` is closed. Earlier input
/// does not count as an answer.
fn ask(question: &str, over: impl AsFd) -> UserAnswer {
    let answer = || -> io::Result<Option<String>> {
        let mut terminal = terminal()?;
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
        Ok(line) => UserAnswer::read(line.as_deref().unwrap_or_default()),
        Err(_) => UserAnswer::NoTerminal,
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

    #[test]
    fn an_end_of_input_and_other_texts_are_neither_yes_nor_no() {
        for (line, answer) in [
            ("y\n", UserAnswer::Yes),
            (" yes \r\n", UserAnswer::Yes),
            ("\n", UserAnswer::No),
            ("no\n", UserAnswer::No),
            ("maybe\n", UserAnswer::Unclear),
            ("", UserAnswer::Unclear),
            ("y", UserAnswer::Unclear),
        ] {
            assert_eq!(UserAnswer::read(line), answer, "{line:?}");
        }
    }

    fn question() -> (OwnedFd, OwnedFd) {
        pipe_with(PipeFlags::CLOEXEC).unwrap()
    }

    #[tokio::test]
    async fn whoever_has_the_terminal_learns_that_another_one_waits_for_it() {
        let turn = TerminalTurn::new().await;
        let next = tokio::spawn(TerminalTurn::new());
        TerminalTurn::wanted().await;
        drop(turn);
        drop(next.await.unwrap());
        assert_eq!(*WANTED.borrow(), 0);
    }

    #[test]
    fn the_event_of_a_path_names_the_address_without_the_port() {
        let peer = BareJid::new("bob@example.org").unwrap();
        let direct = Path::Direct("192.0.2.7:4711".parse().unwrap());
        assert_eq!(
            path_event(&peer, direct),
            json!({"event": "path", "peer": "bob@example.org", "path": "direct", "address": "192.0.2.7"})
        );
        assert_eq!(
            path_event(&peer, Path::Relay),
            json!({"event": "path", "peer": "bob@example.org", "path": "relay"})
        );
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
