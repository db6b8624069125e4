//! The command `listen`: sessions of others, and their files.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jid::BareJid;
use minidom::Element;
use serde_json::json;
use tokio::{sync::Mutex, task::JoinSet};

use super::{
    Client,
    files::{self, FileOffer},
    interrupted,
    output::XtlsError,
    parts::{self, Part},
    pipe::pipe,
};
use crate::{
    endpoint::{Endpoint, Incoming, Request, SecureStream, Session},
    xmpp::ns,
};

/// How many sessions run at once; the next ones wait.
const SESSIONS: usize = 8;

/// A component that was started anew does not know who is reachable, and nothing tells us of its start: it is told again.
const REAPPEAR: Duration = Duration::from_secs(60);

/// What to do with sessions that come.
#[derive(Debug)]
pub(super) struct Listen {
    pub(super) client: Client,
    /// Where files land; without it one pipe is taken.
    pub(super) out: Option<PathBuf>,
    /// Whether to end after one session.
    pub(super) once: bool,
    /// Whose sessions to take; everybody's if it is empty.
    pub(super) accept: Vec<BareJid>,
    /// Held while the user is told of a peer: one question at a time, and no two first keys of one peer.
    pub(super) telling: Mutex<()>,
}

/// Waits for sessions, until Ctrl-C.
///
/// # Errors
/// If the connection is lost, or a session under way was interrupted; with `once`, as the session ends.
pub(super) async fn listen(listen: Listen) -> Result<(), XtlsError> {
    let listen = Arc::new(listen);
    let stop = interrupted();
    tokio::pin!(stop);
    let (endpoint, incoming) = tokio::select! {
        biased;
        () = &mut stop => return Ok(()),
        connected = listen.start() => connected?,
    };
    let again = async {
        loop {
            tokio::time::sleep(REAPPEAR).await;
            endpoint.appear(1).await;
        }
    };
    let done = tokio::select! {
        done = listen.serve_all(incoming, stop) => done,
        () = again => Ok(()),
    };
    endpoint.disappear().await;
    endpoint.close().await;
    done
}

impl Listen {
    async fn start(&self) -> Result<(Endpoint, Incoming), XtlsError> {
        if let Some(dir) = &self.out {
            parts::sweep(dir);
        }
        let (endpoint, incoming) = self.client.connect().await?;
        endpoint.appear(1).await;
        let jid = endpoint.jid();
        let lands = match &self.out {
            Some(dir) => format!(", files land in {}", dir.display()),
            None => String::new(),
        };
        self.client.output.event(
            &json!({"event": "listening", "jid": jid.as_str()}),
            &format!("listening as {jid}{lands} (Ctrl-C ends)"),
        );
        Ok((endpoint, incoming))
    }

    async fn serve_all(
        self: &Arc<Self>,
        mut incoming: Incoming,
        mut stop: impl Future<Output = ()> + Unpin,
    ) -> Result<(), XtlsError> {
        let mut sessions = JoinSet::new();
        let most = if self.once { 1 } else { SESSIONS };
        loop {
            tokio::select! {
                biased;
                () = &mut stop => {
                    let idle = sessions.is_empty();
                    // What is dropped says goodbye.
                    sessions.shutdown().await;
                    return if idle { Ok(()) } else { Err(XtlsError::failed("interrupted")) };
                }
                Some(done) = sessions.join_next() => {
                    let done = done.unwrap_or_else(|error| Err(XtlsError::failed(error.to_string())));
                    if self.once {
                        return done;
                    }
                    if let Err(error) = done {
                        self.client.output.error(&error);
                    }
                }
                request = incoming.next(), if sessions.len() < most => {
                    let Some(request) = request else {
                        return Err(crate::endpoint::Error::Disconnected.into());
                    };
                    let this = Arc::clone(self);
                    sessions.spawn(async move { this.serve(request).await });
                }
            }
        }
    }

    /// Takes one session.
    pub(super) async fn serve(&self, request: Request) -> Result<(), XtlsError> {
        let offer = match self.admit(&request) {
            Ok(offer) => offer,
            Err(error) => {
                request.decline(&error.text).await;
                return Err(error);
            }
        };
        let (Some(dir), Some((description, offer))) = (&self.out, offer) else {
            let (mut session, stream) = request.accept().await?;
            self.secured(&mut session, &stream).await?;
            let done = session.during(pipe(stream)).await;
            return goodbye(session, done).await;
        };
        let part = match self.part(dir, request.peer(), &offer).await {
            Ok(part) => part,
            Err(error) => {
                request.decline("the file cannot be stored here").await;
                return Err(error);
            }
        };
        let answer = offer.ranged.then(|| files::answer(&description, part.len()));
        let (mut session, mut stream) = request.accept_with(answer).await?;
        self.secured(&mut session, &stream).await?;
        let bar = self.client.output.progress(offer.size, &offer.name);
        let received = session.during(files::receive(&mut stream, part, dir, &offer, &bar)).await;
        bar.finish_and_clear();
        let done = received.map(|(done, path)| done.report(self.client.output, &path));
        goodbye(session, done).await
    }

    async fn secured(&self, session: &mut Session, stream: &SecureStream) -> Result<(), XtlsError> {
        let _turn = self.telling.lock().await;
        self.client.secured(session, stream).await
    }

    /// Whether a session is wanted here: the file that it brings, or none for a pipe.
    fn admit(&self, request: &Request) -> Result<Option<(Element, FileOffer)>, XtlsError> {
        let user = request.peer();
        if !self.accept.is_empty() && !self.accept.contains(user) {
            return Err(XtlsError::refused(format!("{user} is not among those to accept")));
        }
        let description = request.application().description();
        let file = description
            .filter(|description| description.has_ns(ns::FILE_TRANSFER))
            .and_then(|description| description.get_child("file", ns::FILE_TRANSFER));
        match (&self.out, description, file) {
            (Some(_), Some(description), Some(file)) => {
                Ok(Some((description.clone(), FileOffer::parse(file)?)))
            }
            (None, None, _) => Ok(None),
            (Some(_), None, _) => Err(XtlsError::refused(format!(
                "{user} wants a pipe: run xtls pipe --listen for that"
            ))),
            (None, _, Some(_)) => Err(XtlsError::refused(format!(
                "{user} wants to send a file: run xtls listen for that"
            ))),
            _ => Err(XtlsError::refused(format!("{user} wants something that is not known here"))),
        }
    }

    /// What is there of a file already, from a sender that can go on behind it.
    async fn part(
        &self,
        dir: &Path,
        sender: &BareJid,
        offer: &FileOffer,
    ) -> Result<Part, XtlsError> {
        let (dir, sender, mut offer) = (dir.to_owned(), sender.clone(), offer.clone());
        if !offer.ranged {
            offer.sha256 = None;
        }
        let opened = tokio::task::spawn_blocking(move || {
            parts::sweep(&dir);
            Part::open(&dir, &sender, &offer)
                .map_err(|error| XtlsError::failed(format!("{}: {error}", dir.display())))
        });
        opened.await.map_err(|error| XtlsError::failed(error.to_string()))?
    }
}

/// Ends a session as its stream has ended.
async fn goodbye(mut session: Session, done: Result<(), XtlsError>) -> Result<(), XtlsError> {
    match &done {
        Ok(()) => session.terminate("success", "").await,
        Err(error) => session.terminate("media-error", &error.text).await,
    }
    done
}
