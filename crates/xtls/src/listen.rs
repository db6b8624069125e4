//! The command `listen`: peers' sessions, and their files.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use fingerpost_endpoint::{
    Endpoint, Error, Incoming, ProposalAnswer, Proposed, Reason, Request, Ringer, SecureStream,
    Session, TransportKind,
};
use fingerpost_wire::ns;
use jid::BareJid;
use minidom::Element;
use serde_json::json;
use tokio::{io::AsyncWriteExt, sync::Mutex, task::JoinSet, time::timeout};

use super::{
    chat::{self, Desk},
    client::{Client, Takes},
    file_offer::{self, FileOffer},
    files::{self, NotReceived},
    interrupt::interrupted,
    output::{Output, XtlsError},
    pace,
    parts::{self, PartialFile},
    pipe::{self, Ends, PipeSide},
    set, watch,
};

/// The text for a peer that calls during another chat.
const BUSY: &str = "another chat is under way here: try again later";
/// How long a chat may take to close when the user ends the listener.
const CHAT_ENDS: Duration = Duration::from_secs(10);

/// How to handle incoming sessions.
#[derive(Debug)]
pub(super) struct Listen {
    pub(super) client: Client,
    kinds: Kinds,
    /// Whether to end after one session.
    pub(super) once: bool,
    /// The users whose sessions are accepted; all if it is empty.
    pub(super) accept: Vec<BareJid>,
    /// Held while the user is told of a peer: one question at a time, and never two first keys of one peer.
    telling: Mutex<()>,
    /// Whether the one session that `once` allows has been secured.
    taken: AtomicBool,
}

/// The kinds of sessions that a listener accepts.
#[derive(Debug, Default)]
pub(super) struct Kinds {
    /// Where files land.
    pub(super) files: Option<FileInbox>,
    /// The local ends of pipes.
    pub(super) pipes: Option<Ends>,
    /// The desk for chats.
    pub(super) chats: Option<Desk>,
}

impl Kinds {
    /// Accepts only files.
    pub(super) fn files(inbox: FileInbox) -> Self {
        Self { files: Some(inbox), ..Self::default() }
    }

    fn takes(&self) -> Takes {
        Takes {
            files: self.files.is_some(),
            pipes: self.pipes.is_some(),
            chats: self.chats.is_some(),
            ..Takes::default()
        }
    }

    /// Describes the kinds to the user.
    fn shown(&self) -> String {
        let files = self
            .files
            .as_ref()
            .map(|inbox| format!(", files land in {}", files::shown_path(&inbox.dir)));
        let pipes = self.pipes.as_ref().filter(|ends| **ends != Ends::Standard);
        let pipes = pipes.map(|_| ", pipes run the command".to_owned());
        let chats = self.chats.as_ref().map(|_| ", chats are taken one at a time".to_owned());
        [files, pipes, chats].into_iter().flatten().collect()
    }
}

/// The purpose of a session.
enum Wanted<'a> {
    File(&'a FileInbox, Element, FileOffer),
    Pipe(&'a Ends),
    Chat(&'a Desk),
}

/// The result of a session.
#[derive(Debug)]
struct Served {
    done: Result<(), XtlsError>,
    /// Whether it ends a listener that accepts one session.
    counts: bool,
}

/// Why a session failed.
struct SessionFailure {
    error: XtlsError,
    /// Whether the peer has shown no key in time.
    expired: bool,
}

impl From<XtlsError> for SessionFailure {
    fn from(error: XtlsError) -> Self {
        Self { error, expired: false }
    }
}

impl From<Error> for SessionFailure {
    fn from(error: Error) -> Self {
        Self { expired: matches!(error, Error::Expired(_)), error: error.into() }
    }
}

/// Where files are stored, and which ones are accepted.
#[derive(Debug)]
pub(super) struct FileInbox {
    dir: PathBuf,
    max_size: Option<u64>,
    /// The bytes of files that are being received.
    promised: AtomicU64,
}

/// Room for a file that is being received, until this is dropped.
#[derive(Debug)]
struct Room<'a> {
    inbox: &'a FileInbox,
    bytes: u64,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.inbox.promised.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl FileInbox {
    pub(super) fn new(dir: PathBuf, max_size: Option<u64>) -> Self {
        Self { dir, max_size, promised: AtomicU64::new(0) }
    }

    /// Checks that a file of this size is accepted.
    fn admit(&self, size: u64) -> Result<(), XtlsError> {
        match self.max_size {
            Some(most) if size > most => Err(XtlsError::refused(format!(
                "the file has {} and at most {} are taken",
                files::size(size),
                files::size(most)
            ))),
            _ => Ok(()),
        }
    }

    /// Reserves room for so many more bytes, beside those of other files.
    fn room(&self, bytes: u64) -> Result<Room<'_>, NotReceived> {
        let free = rustix::fs::statvfs(&self.dir)
            .map(|system| system.f_bavail.saturating_mul(system.f_frsize))
            .map_err(|error| NotReceived::disk(&self.dir, &error.into()))?;
        let others = self.promised.fetch_add(bytes, Ordering::Relaxed);
        let room = Room { inbox: self, bytes };
        if bytes.saturating_add(others) > free {
            return Err(NotReceived::Content(XtlsError::refused(format!(
                "there is no room for the file: it needs {} more",
                files::size(bytes)
            ))));
        }
        Ok(room)
    }

    /// Receives many files in one session, which is secured. Returns the number of those that are not here now.
    ///
    /// # Errors
    /// If the stream breaks, or no more files can be stored.
    pub(super) async fn receive_set(
        &self,
        mut session: Session,
        mut stream: SecureStream,
        output: Output,
    ) -> Result<usize, XtlsError> {
        let (sender, since) = (session.peer().clone(), Instant::now());
        let in_band = stream.learned().transport == TransportKind::Ibb;
        let monitor = session.monitor();
        let receiving = async {
            let entries = set::receive::manifest(&mut stream).await?;
            let wish = set::receive::Wish::new(entries, &self.dir, &sender, self.max_size)?;
            let _room = self.room(wish.bytes)?;
            let bar = output.progress(wish.bytes, sender.as_str());
            let received = wish.receive(&mut stream, &self.dir, &bar).await;
            bar.finish_and_clear();
            parts::sweep(&self.dir);
            received
        };
        let watched = pace::during(receiving, output, in_band, || monitor.received(), |_| {});
        let received = session.during(watched).await;
        let mut missing = 0;
        let done = received.map(|received| {
            received.report(output, &sender, since.elapsed().as_secs_f64());
            missing = received.missing();
        });
        goodbye(session, done).await?;
        Ok(missing)
    }

    /// Creates the directory if it is missing, and checks that files can be written to it.
    ///
    /// # Errors
    /// Exit status 2 if not.
    pub(super) fn prepare(self) -> Result<Self, XtlsError> {
        let shown = files::shown_path(&self.dir);
        if self.dir.symlink_metadata().is_ok() && !self.dir.is_dir() {
            return Err(XtlsError::usage(format!("{shown}: not a directory"))
                .hint("name a directory for received files with --out"));
        }
        std::fs::create_dir_all(&self.dir).map_err(|error| {
            XtlsError::usage(format!("{shown}: cannot be created: {error}"))
                .hint("name another directory for received files with --out")
        })?;
        parts::check_writable(&self.dir).map_err(|error| {
            XtlsError::usage(format!("{shown}: cannot be written to: {error}"))
                .hint("name another directory for received files with --out")
        })?;
        Ok(self)
    }
}

/// Waits for sessions, until Ctrl-C. Reconnects after a loss of the connection.
///
/// # Errors
/// If the server refuses the login, or a running session or the wait for a pipe was interrupted; with `once`, the error
/// of the session.
pub(super) async fn listen(listen: Listen) -> Result<(), XtlsError> {
    let listen = Arc::new(listen);
    let stop = interrupted();
    tokio::pin!(stop);
    let (endpoint, incoming) = tokio::select! {
        biased;
        () = &mut stop => return listen.stopped(true),
        connected = listen.connect() => connected?,
    };
    let appear = async {
        listen.appear(&endpoint).await;
        watch::component(&endpoint, listen.client.output).await;
    };
    let done = tokio::select! {
        done = listen.serve_all(&endpoint, incoming, stop) => done,
        () = appear => Ok(()),
    };
    endpoint.disappear().await;
    endpoint.close().await;
    done
}

impl Listen {
    /// What to do with sessions that come.
    pub(super) fn new(client: Client, kinds: Kinds, once: bool, accept: Vec<BareJid>) -> Self {
        let (telling, taken) = (Mutex::default(), AtomicBool::default());
        let client = client.taking(kinds.takes());
        Self { client, kinds, once, accept, telling, taken }
    }

    async fn connect(self: &Arc<Self>) -> Result<(Endpoint, Incoming), XtlsError> {
        if let Some(inbox) = &self.kinds.files {
            parts::sweep(&inbox.dir);
        }
        self.client.connect_to_listen(Arc::clone(self)).await
    }

    /// Returns the result when the user ends it. A pipe that has not come has failed.
    fn stopped(&self, is_idle: bool) -> Result<(), XtlsError> {
        if is_idle && self.kinds.files.is_some() {
            Ok(())
        } else {
            Err(XtlsError::failed("interrupted"))
        }
    }

    /// Announces us to the component and the user.
    async fn appear(&self, endpoint: &Endpoint) {
        endpoint.appear(1).await;
        let jid = endpoint.jid();
        self.client.output.event(
            &json!({"event": "listening", "jid": jid.as_str()}),
            &format!("listening as {jid}{} (Ctrl-C ends)", self.kinds.shown()),
        );
    }

    async fn serve_all(
        self: &Arc<Self>,
        endpoint: &Endpoint,
        mut incoming: Incoming,
        mut stop: impl Future<Output = ()> + Unpin,
    ) -> Result<(), XtlsError> {
        let mut sessions = JoinSet::new();
        let mut connected = true;
        while connected || !sessions.is_empty() {
            tokio::select! {
                biased;
                () = &mut stop => {
                    self.let_the_chat_end(&mut sessions).await;
                    let is_idle = sessions.is_empty();
                    // Dropped sessions send their session-terminate.
                    sessions.shutdown().await;
                    return self.stopped(is_idle);
                }
                Some(served) = sessions.join_next() => {
                    let served = served.unwrap_or_else(|error| {
                        Served { done: Err(XtlsError::failed(error.to_string())), counts: true }
                    });
                    if self.once && served.counts {
                        return served.done;
                    }
                    if let Err(error) = served.done {
                        self.client.output.error(&error);
                    }
                }
                // The endpoint limits their number: so many for each peer, and others for known peers.
                request = incoming.next(), if connected => match request {
                    Some(request) => {
                        let this = Arc::clone(self);
                        sessions.spawn(async move { this.take(request).await });
                    }
                    // A stream may run beside the connection, and continue without it.
                    None => connected = false,
                },
            }
        }
        Err(endpoint.why_disconnected().into())
    }

    /// Waits for an interrupted chat to close its stream.
    async fn let_the_chat_end(&self, sessions: &mut JoinSet<Served>) {
        let Some(desk) = &self.kinds.chats else { return };
        let ending = async {
            while desk.is_taken()
                && let Some(served) = sessions.join_next().await
            {
                if let Ok(Served { done: Err(error), .. }) = served {
                    self.client.output.error(&error);
                }
            }
        };
        // The user wants an end, even if the chat does not close.
        let _ = timeout(CHAT_ENDS, ending).await;
    }

    /// Serves one session.
    pub(super) async fn serve(&self, request: Request) -> Result<(), XtlsError> {
        self.take(request).await.done
    }

    /// Serves one session. With `once`, a peer that only waits does not end the listener, nor does one that is not
    /// accepted.
    async fn take(&self, request: Request) -> Served {
        let peer = request.peer();
        if !self.accepts(peer) {
            let error = XtlsError::refused(format!("{peer} is not among those to accept"));
            request.decline(&error.text).await;
            return Served { done: Err(error), counts: false };
        }
        let mut claimed = false;
        match self.secure_and_serve(request, &mut claimed).await {
            Ok(()) => Served { done: Ok(()), counts: true },
            Err(SessionFailure { error, expired }) => {
                let counts = claimed || !(expired || self.taken.load(Ordering::SeqCst));
                Served { done: Err(error), counts }
            }
        }
    }

    async fn secure_and_serve(
        &self,
        request: Request,
        claimed: &mut bool,
    ) -> Result<(), SessionFailure> {
        match self.admit(&request) {
            Ok(Wanted::File(inbox, description, offer)) => {
                self.take_file(request, inbox, description, offer, claimed).await
            }
            Ok(Wanted::Pipe(ends)) => {
                let (mut session, stream) = request.accept_pipe().await?;
                self.secured(&mut session, &stream, claimed).await?;
                Ok(pipe::run(session, stream, PipeSide::Listens, ends, self.client.output).await?)
            }
            Ok(Wanted::Chat(desk)) => {
                let (mut session, stream) = request.accept().await?;
                self.secured(&mut session, &stream, claimed).await?;
                let Some(seat) = desk.take() else {
                    session.terminate(Reason::Busy, BUSY).await;
                    return Err(XtlsError::refused(BUSY).into());
                };
                Ok(chat::serve(&self.client, session, stream, Some(seat)).await?)
            }
            Err(error) => {
                request.decline(&error.text).await;
                Err(error.into())
            }
        }
    }

    async fn take_file(
        &self,
        request: Request,
        inbox: &FileInbox,
        description: Element,
        offer: FileOffer,
        claimed: &mut bool,
    ) -> Result<(), SessionFailure> {
        let sender = request.peer().clone();
        if set::is_offered(&description) {
            return self.take_set(request, inbox, &description, claimed).await;
        }
        let kept = if offer.ranged { parts::kept(&inbox.dir, &sender, &offer) } else { 0 };
        let answer = offer.ranged.then(|| file_offer::answer(&description, kept));
        let (mut session, mut stream) = request.accept_with(answer).await?;
        self.secured(&mut session, &stream, claimed).await?;
        // The peer's identity is known only now. The sender learns the reason before it has sent much.
        let (room, part) = match self.prepare(inbox, &sender, &offer, kept).await {
            Ok(prepared) => prepared,
            Err(failure) => {
                let reason = match &failure {
                    NotReceived::Content(_) => Reason::Decline,
                    _ => Reason::FailedApplication,
                };
                session.terminate(reason, failure.words()).await;
                return Err(XtlsError::from(failure).into());
            }
        };
        let bar = self.client.output.progress(offer.size, &offer.name);
        let in_band = stream.learned().transport == TransportKind::Ibb;
        let monitor = session.monitor();
        let receiving = async {
            let received = files::receive(&mut stream, part, &inbox.dir, &offer, &bar).await?;
            // This shows the sender that we ourselves have everything.
            let _ = stream.shutdown().await;
            Ok(received)
        };
        let output = self.client.output;
        let watched = pace::during(receiving, output, in_band, || monitor.received(), |_| {});
        let received = session.during(watched).await;
        drop(room);
        bar.finish_and_clear();
        let done = received.map(|(done, path)| done.report(self.client.output, &path));
        Ok(goodbye(session, done).await?)
    }

    /// Receives many files in one session.
    async fn take_set(
        &self,
        request: Request,
        inbox: &FileInbox,
        description: &Element,
        claimed: &mut bool,
    ) -> Result<(), SessionFailure> {
        let mut answer = description.clone();
        set::accept(&mut answer);
        let (mut session, stream) = request.accept_with(Some(answer)).await?;
        self.secured(&mut session, &stream, claimed).await?;
        inbox.receive_set(session, stream, self.client.output).await?;
        Ok(())
    }

    /// Tells the user about the peer. Sets `claimed` if the session is the one that is accepted, or one of many.
    async fn secured(
        &self,
        session: &mut Session,
        stream: &SecureStream,
        claimed: &mut bool,
    ) -> Result<(), XtlsError> {
        // Other sessions do not wait for the user's answer about a further key.
        let admitted = self.client.admit(session, stream).await?;
        let _turn = self.telling.lock().await;
        if self.once && self.taken.load(Ordering::SeqCst) {
            session.terminate(Reason::Busy, "").await;
            return Err(XtlsError::refused("another session was secured first"));
        }
        self.client.settle(session, stream, admitted).await?;
        self.taken.store(true, Ordering::SeqCst);
        *claimed = true;
        Ok(())
    }

    /// Whether a session is wanted here.
    fn admit(&self, request: &Request) -> Result<Wanted<'_>, XtlsError> {
        let user = request.peer();
        let refused = |what: &str| Err(XtlsError::refused(format!("{user} {what}")));
        let Some(description) = request.application().description() else {
            return match &self.kinds.pipes {
                Some(ends) => Ok(Wanted::Pipe(ends)),
                None => refused("wants a pipe: run xtls pipe --listen for that"),
            };
        };
        if description.has_ns(ns::XMLSTREAM) {
            return match &self.kinds.chats {
                Some(desk) if desk.is_taken() => Err(XtlsError::refused(BUSY)),
                Some(desk) => Ok(Wanted::Chat(desk)),
                None => refused("wants a chat: run xtls chat --listen for that"),
            };
        }
        let file = description
            .get_child("file", ns::FILE_TRANSFER)
            .filter(|_| description.has_ns(ns::FILE_TRANSFER));
        match (&self.kinds.files, file) {
            (Some(inbox), Some(file)) => {
                let offer = FileOffer::parse(file)?;
                inbox.admit(offer.size)?;
                Ok(Wanted::File(inbox, description.clone(), offer))
            }
            (None, Some(_)) => refused("wants to send a file: run xtls listen for that"),
            (_, None) => refused("wants something that is not known here"),
        }
    }

    /// Reserves room for a file, and returns the part of it whose first `kept` bytes exist.
    async fn prepare<'a>(
        &self,
        inbox: &'a FileInbox,
        sender: &BareJid,
        offer: &FileOffer,
        kept: u64,
    ) -> Result<(Room<'a>, PartialFile), NotReceived> {
        let room = inbox.room(offer.size.saturating_sub(kept))?;
        let (dir, sender, mut offer) = (inbox.dir.clone(), sender.clone(), offer.clone());
        if !offer.ranged {
            offer.sha256 = None;
        }
        let opened = tokio::task::spawn_blocking(move || {
            let part = PartialFile::open(&dir, &sender, &offer, kept)
                .map_err(|error| NotReceived::disk(&dir, &error));
            // A stream that is still open stays so.
            parts::sweep(&dir);
            part
        });
        let opened = opened.await.map_err(std::io::Error::from);
        Ok((room, opened.map_err(|error| NotReceived::disk(&inbox.dir, &error))??))
    }
}

impl Listen {
    /// Returns whether sessions of this user are accepted.
    fn accepts(&self, peer: &BareJid) -> bool {
        self.accept.is_empty() || self.accept.contains(peer)
    }

    /// Returns whether a session with this description is wanted now.
    fn wants(&self, description: &Element) -> bool {
        match description.ns().as_str() {
            ns::FILE_TRANSFER => self.kinds.files.is_some(),
            ns::APPS_TLS => self.kinds.pipes.is_some(),
            ns::XMLSTREAM => self.kinds.chats.as_ref().is_some_and(|desk| !desk.is_taken()),
            _ => false,
        }
    }
}

/// Takes what it would accept. It never rejects: another of the user's programs may want the session.
impl Ringer for Listen {
    fn expects(&self, peer: &BareJid) -> bool {
        self.accept.contains(peer)
    }

    fn answer(&self, proposed: &Proposed) -> ProposalAnswer {
        let is_over = self.once && self.taken.load(Ordering::SeqCst);
        let is_wanted = self.accepts(proposed.peer())
            && proposed.descriptions().iter().all(|description| self.wants(description));
        match is_wanted && !is_over {
            true => ProposalAnswer::Proceed,
            false => ProposalAnswer::Silence,
        }
    }
}

/// Ends a session in the way its stream has ended.
async fn goodbye(mut session: Session, done: Result<(), NotReceived>) -> Result<(), XtlsError> {
    let (reason, text) = last_words(&done);
    session.terminate(reason, text).await;
    Ok(done?)
}

/// Returns the reason and the text for the sender at the end of a session.
fn last_words(done: &Result<(), NotReceived>) -> (Reason, &str) {
    match done {
        Ok(()) => (Reason::Success, ""),
        Err(failure) => (Reason::MediaError, failure.words()),
    }
}
