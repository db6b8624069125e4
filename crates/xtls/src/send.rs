//! The command `send`: files, one session each. XEP-0234 allows several contents in one session, but separate sessions
//! are independent.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use fingerpost_endpoint::{
    Application, Endpoint, Error, Reason, SecureStream, Session, TransportKind,
};
use jid::Jid;
use serde_json::json;

use super::{
    client::Client,
    file_offer::{FileOffer, Range, is_accepted},
    files::{self, Done, NotSent},
    output::XtlsError,
    pace,
};

/// The first and the longest pause between two attempts to reach a peer.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// What to do about a peer that is not there.
const ABSENT: &str =
    "the other side must run `xtls listen`, or another program that takes files and is online";

/// Files to send, each with the result of a first look at it.
pub(super) type Checked = Vec<(PathBuf, Result<(), XtlsError>)>;

/// Looks at the files before the peer is called.
///
/// # Errors
/// The first file's, if none can be sent.
pub(super) fn check_all(client: &Client, files: Vec<PathBuf>) -> Result<Checked, XtlsError> {
    let checked: Checked = files
        .into_iter()
        .map(|path| {
            let fit = check(&path);
            (path, fit)
        })
        .collect();
    if checked.iter().any(|(_, fit)| fit.is_ok()) {
        return Ok(checked);
    }
    let mut summary = Summary::new(checked.len());
    for (path, fit) in checked {
        summary.add(client, &path, fit.map(|()| None));
    }
    summary.report(client).map(|()| Checked::new())
}

/// Sends files to a peer over the XMPP server.
///
/// # Errors
/// As [`send_all`]
pub(super) async fn send(
    client: &Client,
    jid: &Jid,
    files: Vec<PathBuf>,
    wait: Option<Duration>,
) -> Result<(), XtlsError> {
    let files = check_all(client, files)?;
    let patience = wait.map(Patience::new);
    let (endpoint, _incoming) = match patience {
        Some(_) => client.connect_to_wait().await?,
        None => client.connect().await?,
    };
    endpoint.appear(-1).await;
    let sent = send_all(client, &endpoint, jid, files, patience).await;
    endpoint.close().await;
    sent
}

/// Sends files to a peer, one after the other. A failed file does not block the others, unless they would fail for the
/// same reason.
///
/// # Errors
/// The first failure's exit status, if any file was not sent.
pub(super) async fn send_all(
    client: &Client,
    endpoint: &Endpoint,
    jid: &Jid,
    files: Checked,
    mut patience: Option<Patience>,
) -> Result<(), XtlsError> {
    let mut summary = Summary::new(files.len());
    let mut hopeless = false;
    for (path, fit) in files {
        let done = match fit {
            Err(error) => Err(error),
            Ok(()) if hopeless => Ok(None),
            Ok(()) => send_one(client, endpoint, jid, &path, patience.as_mut()).await.map(Some),
        };
        // No peer, a wrong key, or no connection: the next file would fail too.
        hopeless |= matches!(&done, Err(XtlsError { code: 3 | 4, .. })) || !endpoint.is_connected();
        summary.add(client, &path, done);
    }
    summary.report(client)
}

/// Returns whether a path names a file that can be read.
fn check(path: &Path) -> Result<(), XtlsError> {
    let named = |error| XtlsError::usage(format!("{}: {error}", path.display()));
    let metadata = std::fs::metadata(path).map_err(named)?;
    if metadata.is_dir() {
        let shown = path.display();
        return Err(XtlsError::usage(format!(
            "{shown} is a directory, and only files can be sent"
        ))
        .hint(format!("send it as one: tar czf directory.tar.gz {shown}")));
    }
    if !metadata.is_file() {
        return Err(XtlsError::usage(format!("{} is not a file", path.display()))
            .hint("`xtls pipe` sends whatever comes from standard input"));
    }
    Ok(())
}

/// How long to wait for a peer that is not there.
#[derive(Debug)]
pub(super) struct Patience {
    wait: Duration,
    until: Instant,
    /// Whether the user knows that we wait.
    told: bool,
}

impl Patience {
    fn new(wait: Duration) -> Self {
        Self { wait, until: Instant::now() + wait, told: false }
    }
}

/// Starts a session. If the peer is not there, tries again as long as there is patience.
async fn initiate(
    client: &Client,
    endpoint: &Endpoint,
    peer: &Jid,
    application: &Application,
    mut patience: Option<&mut Patience>,
) -> Result<(Session, SecureStream), XtlsError> {
    let mut pause = PAUSES.0;
    loop {
        let error = match endpoint.initiate(peer, application).await {
            Ok(started) => return Ok(started),
            Err(error) => error,
        };
        let is_away = matches!(error, Error::Unreachable(_) | Error::Silent(_));
        // Between two connections to the server nobody can be reached.
        let may_change =
            is_away || (matches!(error, Error::Disconnected) && endpoint.is_connected());
        match patience.as_mut() {
            Some(patience) if may_change && Instant::now() < patience.until => {
                if !std::mem::replace(&mut patience.told, true) {
                    let wait = patience.wait.as_secs();
                    client.output.event(
                        &json!({"event": "waiting", "peer": peer.as_str(), "seconds": wait}),
                        &format!(
                            "{peer} is not there yet: waiting up to {} (Ctrl-C ends)",
                            indicatif::HumanDuration(patience.wait)
                        ),
                    );
                }
                let left = patience.until.saturating_duration_since(Instant::now());
                tokio::time::sleep(pause.min(left)).await;
                pause = (pause * 2).min(PAUSES.1);
            }
            given => {
                let is_absent = matches!(error, Error::Unreachable(_));
                let error = XtlsError::from(error);
                let again = "; `xtls send --wait 10m` waits for that";
                return Err(match given {
                    _ if !is_absent => error,
                    Some(_) => error.hint(ABSENT),
                    None => error.hint(format!("{ABSENT}{again}")),
                });
            }
        }
    }
}

async fn send_one(
    client: &Client,
    endpoint: &Endpoint,
    peer: &Jid,
    path: &Path,
    patience: Option<&mut Patience>,
) -> Result<Done, XtlsError> {
    let output = client.output;
    let waiting = output.waiting(&format!("reading {}", path.display()));
    let owned = path.to_owned();
    let offer = tokio::task::spawn_blocking(move || FileOffer::of(&owned))
        .await
        .map_err(|error| XtlsError::failed(error.to_string()))??;
    waiting.set_message(format!("waiting for {peer}"));
    let application = Application::described(offer.to_description()).from_initiator();
    let initiated = initiate(client, endpoint, peer, &application, patience).await;
    waiting.finish_and_clear();
    let (mut session, mut stream) = initiated?;
    // Any TLS server can read a stream to its end. One that has accepted a file says so.
    if !is_accepted(session.answer()) {
        let error = XtlsError::refused(format!(
            "{peer} did not accept the file: its program answered with another application"
        ));
        session.terminate(Reason::UnsupportedApplications, &error.text).await;
        return Err(error.hint("the other side must run `xtls listen`"));
    }
    client.secured(&mut session, &stream).await?;
    let range = Range::read(session.answer());
    let in_band = stream.learned().transport == TransportKind::Ibb;
    if in_band {
        pace::forecast(output, offer.size.saturating_sub(range.offset));
    }
    let bar = output.progress(offer.size, &offer.name);
    let (monitor, since) = (session.monitor(), Instant::now());
    // The bytes that have arrived count, not those that were written.
    let watching = pace::watch(
        output,
        in_band,
        || monitor.delivered(),
        |bytes| bar.set_position(range.offset.saturating_add(bytes).min(offer.size)),
    );
    let sending = async {
        let mut done = files::send(&mut stream, path, &offer, range, &bar).await?;
        // The receiver ends its direction when it has the whole file and its hash is right.
        if files::is_over(&mut stream).await? {
            done.seconds = since.elapsed().as_secs_f64();
            return Ok(done);
        }
        let words = "the peer sent data where its end was expected";
        Err(NotSent::new(XtlsError::failed(words), "data came where the end was expected"))
    };
    let sent = session
        .during(async {
            tokio::select! {
                biased;
                sent = sending => sent,
                () = watching => std::future::pending().await,
            }
        })
        .await;
    let done = match sent {
        Ok(done) => done,
        Err(NotSent { error, words }) => {
            bar.finish_and_clear();
            session.terminate(Reason::FailedApplication, words).await;
            return Err(go_on(error));
        }
    };
    let ended = session.confirmed().await;
    bar.finish_and_clear();
    ended.map_err(|error| go_on(error.into()))?;
    done.report(output, path);
    if std::fs::metadata(path).is_ok_and(|now| now.len() > offer.size) {
        output.warn(&format!(
            "{} has grown while it was sent: the other side has its first {} bytes",
            files::shown_path(path),
            offer.size
        ));
    }
    Ok(done)
}

/// Adds the hint that a broken transfer can be resumed.
fn go_on(error: XtlsError) -> XtlsError {
    if error.code == 1 && error.hint.is_none() {
        return error.hint("run the same command again: it goes on where it stopped");
    }
    error
}

/// The results of several files.
#[derive(Debug)]
struct Summary {
    since: Instant,
    files: usize,
    sent: usize,
    bytes: u64,
    failed: Vec<(PathBuf, XtlsError)>,
}

impl Summary {
    fn new(files: usize) -> Self {
        Self { since: Instant::now(), files, sent: 0, bytes: 0, failed: Vec::new() }
    }

    /// Records a file: sent, failed, or not tried.
    fn add(&mut self, client: &Client, path: &Path, done: Result<Option<Done>, XtlsError>) {
        match done {
            Ok(Some(done)) => {
                self.sent += 1;
                self.bytes += done.bytes;
            }
            Ok(None) => {}
            Err(error) => {
                if self.files > 1 {
                    let mut shown = error.clone();
                    if !shown.text.contains(&path.display().to_string()) {
                        shown.text = format!("{}: {}", path.display(), shown.text);
                    }
                    client.output.error(&shown);
                }
                self.failed.push((path.to_owned(), error));
            }
        }
    }

    /// Returns the result of all files, and reports it if there is more than one.
    fn report(self, client: &Client) -> Result<(), XtlsError> {
        let seconds = self.since.elapsed().as_secs_f64();
        let untried = self.files - self.sent - self.failed.len();
        if self.files > 1 {
            let failed: Vec<_> = self
                .failed
                .iter()
                .map(|(path, error)| {
                    json!({"file": path.display().to_string(), "message": error.text, "code": error.code})
                })
                .collect();
            client.output.event(
                &json!({"event": "summary", "files": self.files, "sent": self.sent, "failed": failed,
                        "untried": untried, "bytes": self.bytes, "seconds": seconds}),
                &format!(
                    "{} of {} files sent, {} in {}",
                    self.sent,
                    self.files,
                    files::size(self.bytes),
                    files::duration(seconds)
                ),
            );
        }
        let Some((_, first)) = self.failed.into_iter().next() else { return Ok(()) };
        if self.files == 1 {
            return Err(first);
        }
        let text = match (self.files - self.sent, untried) {
            (n, 0) => format!("{n} of {} files were not sent", self.files),
            (n, untried) => {
                format!("{n} of {} files were not sent, {untried} of them not tried", self.files)
            }
        };
        Err(XtlsError { code: first.code, ..XtlsError::failed(text) })
    }
}
