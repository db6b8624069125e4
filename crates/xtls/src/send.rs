//! The command `send`: a few files, one session each, because separate sessions are independent; many files and
//! directories in one session, a [set].

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
    output::{Output, XtlsError},
    pace,
    set::{
        self, Outcome,
        manifest::{self, Entry},
        send::Sent,
        walk::{self, Found, Item},
    },
    wait::{Patience, initiate},
};

/// From this number on, files go together in one session.
const MANY: usize = 8;

/// What to send.
#[derive(Debug)]
pub(super) struct Checked {
    /// What can be sent.
    items: Vec<Item>,
    /// What cannot.
    failed: Vec<(PathBuf, XtlsError)>,
}

impl Checked {
    /// Returns the number of files that can be sent.
    fn files(&self) -> usize {
        self.items.iter().filter(|item| item.entry.size.is_some()).count()
    }

    /// Returns the same, if one session can carry them.
    ///
    /// # Errors
    /// Exit status 2 if they are too many.
    pub(super) fn in_one_session(self) -> Result<Self, XtlsError> {
        match walk::sets(self.items.clone()).len() {
            0 | 1 => Ok(self),
            _ => Err(XtlsError::usage(format!(
                "expected at most {} files and directories for a code, found {}",
                manifest::MOST,
                self.items.len()
            ))
            .hint("put them into an archive first")),
        }
    }

    /// Returns whether they are worth a set: a directory, or many files.
    fn is_set(&self) -> bool {
        self.files() >= MANY || self.items.iter().any(|item| item.entry.size.is_none())
    }
}

/// Looks at the files before the peer is called.
///
/// # Errors
/// The first file's, if none can be sent.
pub(super) fn check_all(client: &Client, paths: &[PathBuf]) -> Result<Checked, XtlsError> {
    let Found { items, failed, .. } = walk::find(paths);
    let checked = Checked { items, failed };
    if checked.files() > 0 {
        return Ok(checked);
    }
    if checked.failed.is_empty() {
        let shown = paths.first().map(|path| files::shown_path(path)).unwrap_or_default();
        return Err(XtlsError::usage(format!(
            "{shown}: expected a directory with files, found none"
        )));
    }
    let mut summary = Summary::new(checked.failed.len());
    for (path, error) in checked.failed {
        summary.add(client, &path, Err(error));
    }
    summary.report(client)?;
    Err(XtlsError::silent())
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
    let files = check_all(client, &files)?;
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
    let mut summary = Summary::new(files.files() + files.failed.len());
    let is_set = files.is_set();
    for (path, error) in files.failed {
        summary.add(client, &path, Err(error));
    }
    let mut one_by_one = Vec::new();
    let mut hopeless = false;
    let sets = if is_set { walk::sets(files.items) } else { vec![files.items] };
    for set in sets {
        if !is_set || !one_by_one.is_empty() {
            one_by_one.extend(set);
            continue;
        }
        if hopeless {
            break;
        }
        match send_set(client, endpoint, jid, &set, patience.as_mut()).await {
            Ok(SetSent::Whole(sent)) => {
                summary.add_set(client, &set, sent);
            }
            Ok(SetSent::One(source, done)) => {
                hopeless |= done.as_ref().is_err_and(is_final);
                summary.add(client, &source, done.map(Some));
                one_by_one.extend(set.into_iter().filter(|item| item.source != source));
            }
            Err(error) => {
                hopeless = true;
                let path = set.first().map(|item| item.source.clone()).unwrap_or_default();
                summary.add(client, &path, Err(error));
            }
        }
    }
    for Item { source: path, entry } in one_by_one {
        if entry.size.is_none() {
            continue;
        }
        let done = match hopeless {
            true => Ok(None),
            false => send_one(client, endpoint, jid, &path, patience.as_mut()).await.map(Some),
        };
        hopeless |= done.as_ref().is_err_and(is_final) || !endpoint.is_connected();
        summary.add(client, &path, done);
    }
    summary.report(client)
}

/// Sends files as one set in a session that is secured.
///
/// # Errors
/// As [`send_all`]
pub(super) async fn deliver_all(
    client: &Client,
    session: Session,
    stream: SecureStream,
    files: Checked,
) -> Result<(), XtlsError> {
    let mut summary = Summary::new(files.files() + files.failed.len());
    for (path, error) in files.failed {
        summary.add(client, &path, Err(error));
    }
    match deliver_set(client, session, stream, &files.items).await {
        Ok(sent) => summary.add_set(client, &files.items, sent),
        Err(error) => {
            let path = files.items.first().map(|item| item.source.clone()).unwrap_or_default();
            summary.add(client, &path, Err(error));
        }
    }
    summary.report(client)
}

/// Returns whether the next file would fail too: there is no peer, or its key is wrong.
fn is_final(error: &XtlsError) -> bool {
    matches!(error.code, 3 | 4)
}

/// Returns the result of a file of a set.
fn outcome(entry: &Entry, sent: Sent) -> Result<Option<Done>, XtlsError> {
    match sent.outcome.there() {
        None => Ok(Some(Done {
            bytes: entry.size.unwrap_or(0),
            resumed: sent.resumed,
            seconds: 0.0,
            sha256: String::new(),
        })),
        Some(why) if sent.outcome == Outcome::Skipped => Err(XtlsError::failed(why)),
        Some(why) => Err(XtlsError::refused(why)),
    }
}

/// What became of a set.
enum SetSent {
    /// The peer took it: the results of its files, in their order.
    Whole(Vec<Sent>),
    /// The peer's program takes one file a session: this one was sent, or not.
    One(PathBuf, Result<Done, XtlsError>),
}

/// Sends many files in one session, or one of them if the peer's program does not take sets.
async fn send_set(
    client: &Client,
    endpoint: &Endpoint,
    peer: &Jid,
    set: &[Item],
    patience: Option<&mut Patience>,
) -> Result<SetSent, XtlsError> {
    let output = client.output;
    let mut files: Vec<_> = set.iter().filter(|item| item.entry.size.is_some()).collect();
    let bytes: u64 = files.iter().filter_map(|item| item.entry.size).sum();
    // A program without sets sees one file alone. The smallest one is read in no time.
    files.sort_by_key(|item| item.entry.size);
    let read = |item: &&Item| Some((item.source.clone(), FileOffer::of(&item.source).ok()?));
    let Some((source, offer)) = files.iter().find_map(read) else {
        return Ok(SetSent::Whole(vec![Sent::SKIPPED; files.len()]));
    };
    let mut description = offer.to_description();
    description.append_child(set::offer(files.len(), bytes));
    let application = Application::described(description).from_initiator();
    let waiting = output.waiting(&format!("waiting for {peer}"));
    let initiated = initiate(client, endpoint, peer, &application, patience).await;
    waiting.finish_and_clear();
    let (mut session, stream) = initiated?;
    if !set::is_accepted(session.answer()) {
        if files.len() < set.len() {
            output.warn(&format!("{peer} takes no directories: each file is sent by itself"));
        }
        let done = deliver(client, session, stream, &source, &offer).await;
        return Ok(SetSent::One(source, done));
    }
    client.secured(&mut session, &stream).await?;
    deliver_set(client, session, stream, set).await.map(SetSent::Whole)
}

/// Sends a set in a session that is secured. Returns the results of its files, in their order.
async fn deliver_set(
    client: &Client,
    mut session: Session,
    mut stream: SecureStream,
    set: &[Item],
) -> Result<Vec<Sent>, XtlsError> {
    let output = client.output;
    let bytes: u64 = set.iter().filter_map(|item| item.entry.size).sum();
    let in_band = stream.learned().transport == TransportKind::Ibb;
    if in_band {
        pace::forecast(output, bytes);
    }
    let bar = output.progress(bytes, session.peer().as_str());
    let monitor = session.monitor();
    let sending = set::send::send(&mut stream, set, &bar);
    let watched = pace::during(sending, output, in_band, || monitor.delivered(), |_| {});
    let sent = session.during(watched).await;
    bar.finish_and_clear();
    match sent {
        Ok(sent) => {
            confirmed(&mut session, output).await?;
            Ok(sent)
        }
        Err(NotSent { error, words }) => {
            session.terminate(Reason::FailedApplication, words).await;
            Err(go_on(error))
        }
    }
}

/// Reports the files of a set that have arrived.
fn report_set(client: &Client, set: &[Item], sent: &[Sent]) {
    let files = set.iter().filter(|item| item.entry.size.is_some());
    for (item, one) in files.zip(sent) {
        if one.outcome.there().is_none() {
            let shown = files::shown_path(&item.source);
            let event = json!({"event": "done", "file": shown, "bytes": item.entry.size,
                               "resumed": one.resumed});
            // Of several, the summary has the number.
            let text = if sent.len() == 1 { format!("{shown}: sent") } else { String::new() };
            client.output.event(&event, &text);
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
    let (session, stream) = initiated?;
    deliver(client, session, stream, path, &offer).await
}

/// Sends the one file that was offered.
async fn deliver(
    client: &Client,
    mut session: Session,
    mut stream: SecureStream,
    path: &Path,
    offer: &FileOffer,
) -> Result<Done, XtlsError> {
    let output = client.output;
    // Any TLS server can read a stream to its end. One that has accepted a file says so.
    if !is_accepted(session.answer()) {
        let peer = session.peer();
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
    let sending = async {
        let mut done = files::send(&mut stream, path, offer, range, &bar).await?;
        // The receiver ends its direction when it has the whole file and its hash is right.
        if files::is_over(&mut stream).await? {
            done.seconds = since.elapsed().as_secs_f64();
            return Ok(done);
        }
        let words = "the peer sent data where its end was expected";
        Err(NotSent::new(XtlsError::failed(words), "data came where the end was expected"))
    };
    // The bytes that have arrived count, not those that were written.
    let watched = pace::during(
        sending,
        output,
        in_band,
        || monitor.delivered(),
        |bytes| bar.set_position(range.offset.saturating_add(bytes).min(offer.size)),
    );
    let sent = session.during(watched).await;
    let done = match sent {
        Ok(done) => done,
        Err(NotSent { error, words }) => {
            bar.finish_and_clear();
            session.terminate(Reason::FailedApplication, words).await;
            return Err(go_on(error));
        }
    };
    let ended = confirmed(&mut session, output).await;
    bar.finish_and_clear();
    ended?;
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

/// Waits until the peer ends a session in which it has confirmed everything inside TLS. If the component, the peer's program or the
/// connection to the XMPP server is gone, that end cannot come, and nothing is missing.
async fn confirmed(session: &mut Session, output: Output) -> Result<(), XtlsError> {
    match session.confirmed().await {
        Err(error @ (Error::Disconnected | Error::Gone(_))) => {
            let peer = session.peer();
            output.warn(&format!(
                "{peer} has confirmed everything inside TLS. Then the session was lost: {error}"
            ));
            Ok(())
        }
        ended => ended.map_err(|error| go_on(error.into())),
    }
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

    /// Records the files of a set, and reports those that have arrived.
    fn add_set(&mut self, client: &Client, set: &[Item], sent: Vec<Sent>) {
        report_set(client, set, &sent);
        let files = set.iter().filter(|item| item.entry.size.is_some());
        for (item, sent) in files.zip(sent) {
            self.add(client, &item.source, outcome(&item.entry, sent));
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
