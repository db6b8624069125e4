//! The command `pipe`: standard input and output over the secured stream, or those of the user's command.

mod command;
mod local;
mod standard;

use std::{
    future::{poll_fn, ready},
    io::{self, ErrorKind, IsTerminal},
    pin::Pin,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    task::Poll,
    time::Duration,
};

use fingerpost_endpoint::{Reason, SecureStream, Session};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, split},
    sync::watch,
    time::{sleep, timeout},
};

use self::{command::Running, local::Local};
use super::{
    chunks::{self, Piece},
    client::KEEPALIVE,
    output::{Output, XtlsError},
};

/// How long a peer that is not one of our pipes may send nothing until a caller without input ends its direction. Such
/// a peer may wait for that end and stay silent until it comes.
const GIVES_WAY: Duration = Duration::from_secs(5);

/// How long the peer may take to read our last bytes.
const LAST_WORD: Duration = Duration::from_secs(5);

/// The side of a pipe: the one that called, or the one that waited for the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PipeSide {
    Calls,
    Listens,
}

/// The local ends of a pipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ends {
    /// Standard input and output.
    Standard,
    /// Those of the user's command, which each session starts once.
    Command(String),
}

/// How both directions have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Joined {
    /// Each side ended its direction, the peer after our last byte.
    Whole,
    /// The peer ended its direction before our last byte, so it has not confirmed that byte.
    Unconfirmed,
    /// The reader of standard output is gone.
    Unread {
        /// Whether the peer has confirmed everything that was sent, or nothing was sent.
        confirmed: bool,
    },
}

/// Connects the ends to the stream, and ends the session.
///
/// # Errors
/// If either direction was cut, or the peer has not confirmed that it has everything. There is no message if the reader
/// of standard output is gone. Statements outside TLS, such as the end of the session, confirm nothing, whether the
/// peer or a third party makes them. A command that fails, or does not read everything, is an error at both sides.
pub(super) async fn run(
    session: Session,
    stream: SecureStream,
    side: PipeSide,
    ends: &Ends,
    output: Output,
) -> Result<(), XtlsError> {
    match ends {
        Ends::Standard => run_standard(session, stream, side).await,
        Ends::Command(command) => run_command(session, stream, side, command, output).await,
    }
}

async fn run_standard(
    mut session: Session,
    mut stream: SecureStream,
    side: PipeSide,
) -> Result<(), XtlsError> {
    let local = Local {
        input: standard::input(),
        terminal: io::stdin().is_terminal(),
        output: standard::output(),
        is_command: false,
        ended: ready(Ok(())),
    };
    let joined = session.during(join(&mut stream, side, local)).await;
    if joined.is_err() {
        session.terminate(Reason::ConnectivityError, "").await;
    }
    goodbye(session, stream, joined?).await
}

async fn run_command(
    mut session: Session,
    mut stream: SecureStream,
    side: PipeSide,
    command: &str,
    output: Output,
) -> Result<(), XtlsError> {
    let (peer, monitor) = (stream.peer().clone(), stream.monitor());
    let mut running = match Running::start(command, stream.learned()) {
        Ok(running) => running,
        Err(error) => {
            session.terminate(Reason::FailedApplication, "the command cannot be started").await;
            return Err(error);
        }
    };
    let joined = session.during(join(&mut stream, side, running.local())).await;
    if let Err(error) = &joined {
        // The command must not take the end of a cut stream for the end of the peer's content.
        running.stop().await;
        // An error of the system is about this machine.
        let words = Some(error.text.as_str()).filter(|text| text.starts_with("the command "));
        session.terminate(Reason::FailedApplication, words.unwrap_or("the pipe broke")).await;
    }
    goodbye(session, stream, joined?).await?;
    let received = monitor.received();
    output.event(
        &json!({"event": "piped", "peer": peer.as_str(), "received": received}),
        &format!("the pipe of {peer} has ended after {received} bytes, and so has its command"),
    );
    Ok(())
}

/// Ends the session according to how its stream has ended.
async fn goodbye(
    mut session: Session,
    mut stream: SecureStream,
    joined: Joined,
) -> Result<(), XtlsError> {
    match joined {
        Joined::Whole => {
            if stream.is_chunked() {
                // The end of the session must not overtake our last bytes on their way to the peer.
                tokio::select! {
                    Ok(()) = session.terminated() => {}
                    _ = timeout(LAST_WORD, stream.finish()) => {}
                }
            }
            session.terminate(Reason::Success, "").await;
        }
        Joined::Unconfirmed => {
            // The peer may still be reading.
            let ended = session.confirmed().await;
            let peer = session.peer();
            let why = ended.err().map(|error| format!(": {error}")).unwrap_or_default();
            return Err(XtlsError::failed(format!(
                "everything was sent, but {peer} has not confirmed inside TLS that it arrived{why}"
            )));
        }
        Joined::Unread { confirmed } => {
            session.terminate(Reason::Cancel, "the reader of the pipe's output is gone").await;
            if !confirmed {
                return Err(XtlsError::silent());
            }
        }
    }
    Ok(())
}

/// Carries each direction to its own end.
///
/// Between two pipes the content is in [`chunks`]. Each side sends its `close_notify` when it has sent everything and
/// has passed on everything that the peer has sent. So the peer's `close_notify` proves that everything has arrived.
/// With another program the content is raw. Then the peer's `close_notify` counts as that proof if it comes after our
/// last byte. A side without input holds its own back until the peer has ended, so that the peer can do the same.
///
/// If the input is a terminal, the end of the peer's direction ends ours.
async fn join<I: AsyncRead + Unpin, O: AsyncWrite + Unpin>(
    stream: &mut SecureStream,
    side: PipeSide,
    local: Local<I, O, impl Future<Output = Result<(), XtlsError>>>,
) -> Result<Joined, XtlsError> {
    let Local { mut input, terminal, mut output, is_command, ended: done } = local;
    let (peer, monitor) = (stream.peer().clone(), stream.monitor());
    let chunked = stream.is_chunked();
    let (mut read, mut write) = split(stream);
    // Whether the peer has sent everything.
    let (tell, mut told) = watch::channel(false);
    let received = AtomicU64::new(0);
    let (ended, confirmed) = (AtomicBool::new(false), AtomicBool::new(false));
    // Whether any of our bytes was sent, or begun to be.
    let said = AtomicBool::new(false);
    let broke =
        |error: io::Error| XtlsError::failed(format!("the stream to {peer} broke: {error}"));
    let outgoing = async {
        let mut buffer = vec![0; chunks::HEADER + chunks::MOST];
        let (mut silent, mut flushed) = (true, true);
        loop {
            // While there is more input, nothing waits until the network has taken what was written.
            let n = tokio::select! {
                biased;
                () = everything(&mut told), if terminal => Some(0),
                n = fill(&mut input, &mut buffer[chunks::HEADER..]) => Some(n.map_err(|error| {
                    XtlsError::failed(format!("standard input: cannot be read: {error}"))
                })?),
                done = write.flush(), if !flushed => {
                    done.map_err(broke)?;
                    flushed = true;
                    confirmed.store(false, Ordering::Relaxed);
                    continue;
                }
                () = sleep(KEEPALIVE), if chunked => None,
            };
            let n = match n {
                Some(0) => break,
                Some(n) => n,
                None => {
                    write.write_all(&chunks::KEEP).await.map_err(broke)?;
                    write.flush().await.map_err(broke)?;
                    continue;
                }
            };
            silent = false;
            said.store(true, Ordering::Relaxed);
            buffer[..chunks::HEADER].copy_from_slice(&chunks::header(n));
            let from = if chunked { 0 } else { chunks::HEADER };
            write.write_all(&buffer[from..chunks::HEADER + n]).await.map_err(broke)?;
            flushed = false;
        }
        if !flushed {
            write.flush().await.map_err(broke)?;
            confirmed.store(false, Ordering::Relaxed);
        }
        if chunked {
            ended.store(true, Ordering::Relaxed);
            write.write_all(&chunks::END).await.map_err(broke)?;
            write.flush().await.map_err(broke)?;
            let over = async {
                done.await?;
                everything(&mut told).await;
                Ok::<_, XtlsError>(())
            };
            tokio::pin!(over);
            loop {
                match timeout(KEEPALIVE, &mut over).await {
                    Ok(over) => break over?,
                    Err(_) => {
                        write.write_all(&chunks::KEEP).await.map_err(broke)?;
                        write.flush().await.map_err(broke)?;
                    }
                }
            }
            return write.shutdown().await.map_err(broke);
        }
        if silent {
            let gives_way = async {
                if side == PipeSide::Listens {
                    return std::future::pending().await;
                }
                let mut before = None;
                loop {
                    let now = received.load(Ordering::Relaxed);
                    if before.replace(now) == Some(now) {
                        return;
                    }
                    sleep(GIVES_WAY).await;
                }
            };
            tokio::select! {
                () = everything(&mut told) => {}
                () = gives_way => {}
            }
        }
        write.shutdown().await.map_err(broke)?;
        done.await
    };
    let mut unread = false;
    let mut seen = |written: io::Result<()>| {
        unread = written.as_ref().is_err_and(|error| error.kind() == ErrorKind::BrokenPipe);
        if unread {
            return Err(XtlsError::failed("standard output is closed"));
        }
        if is_command {
            return Ok(written?);
        }
        Ok(fingerpost_terminal::checked(written, ())?)
    };
    let incoming = async {
        let mut reader = chunked.then(chunks::ChunkReader::default);
        let mut buffer = vec![0; 16 * 1024];
        let mut flushed = true;
        loop {
            // While more comes, nothing waits until the reader of the output has it.
            let filled = tokio::select! {
                biased;
                n = read.read(&mut buffer) => Some(n?),
                done = output.flush(), if !flushed => {
                    flushed = true;
                    seen(done)?;
                    None
                }
            };
            let Some(n) = filled else { continue };
            let (mut rest, mut over, mut wrong) = (&buffer[..n], n == 0, false);
            let written = async {
                while !rest.is_empty() && !wrong {
                    let before = rest.len();
                    let piece = match &mut reader {
                        Some(reader) => reader.next(&mut rest),
                        None => Ok(Some(Piece::Data(std::mem::take(&mut rest)))),
                    };
                    let data = match piece {
                        Ok(Some(Piece::Data(data))) => data,
                        Ok(end) => {
                            // A sign of life may follow in the same read.
                            over |= end.is_some();
                            &[]
                        }
                        Err(chunks::AfterEnd) => {
                            wrong = true;
                            &[]
                        }
                    };
                    // Headers do not belong to the application.
                    monitor.discount(before - rest.len() - data.len());
                    received.fetch_add(data.len() as u64, Ordering::Relaxed);
                    output.write_all(data).await?;
                }
                if over { output.flush().await } else { Ok(()) }
            };
            seen(written.await)?;
            flushed = over;
            if wrong {
                return Err(XtlsError::failed(format!(
                    "{peer} sent more after the end of its content"
                )));
            }
            if n == 0 && reader.as_ref().is_some_and(|reader| !reader.is_ended()) {
                let received = monitor.received();
                return Err(XtlsError::failed(format!(
                    "the stream was cut off after {received} bytes: {peer} closed it before the end of its content"
                )));
            }
            if n == 0 {
                // Sending more from now on revokes it.
                confirmed.store(!chunked || ended.load(Ordering::Relaxed), Ordering::Relaxed);
            }
            if over {
                // The command sees the end of its input. Everything before it has been flushed.
                let _ = output.shutdown().await;
                tell.send_replace(true);
            }
            if n == 0 {
                return Ok(());
            }
        }
    };
    // Written bytes go out before anything is read, so that an answer to them never seems to precede them.
    match tokio::try_join!(biased; outgoing, incoming) {
        Ok(_) if confirmed.load(Ordering::Relaxed) => Ok(Joined::Whole),
        Ok(_) => Ok(Joined::Unconfirmed),
        Err(_) if unread => {
            let confirmed = !said.into_inner() || confirmed.load(Ordering::Relaxed);
            Ok(Joined::Unread { confirmed })
        }
        Err(error) => {
            // What came before the stream broke is its reader's.
            let _ = timeout(LAST_WORD, output.flush()).await;
            Err(error)
        }
    }
}

/// Reads until the buffer is full, or nothing more is there. Returns 0 at the end only. An error comes when everything before
/// it has been returned.
async fn fill(from: &mut (impl AsyncRead + Unpin), buffer: &mut [u8]) -> io::Result<usize> {
    let mut buffer = ReadBuf::new(buffer);
    poll_fn(|cx| {
        while buffer.remaining() > 0 {
            let before = buffer.filled().len();
            match Pin::new(&mut *from).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if buffer.filled().len() > before => {}
                Poll::Pending if before == 0 => return Poll::Pending,
                Poll::Ready(read) if before == 0 => return Poll::Ready(read.map(|()| 0)),
                _ => break,
            }
        }
        Poll::Ready(Ok(buffer.filled().len()))
    })
    .await
}

/// Waits until the peer has sent everything.
async fn everything(told: &mut watch::Receiver<bool>) {
    // An error of the other direction ends both.
    let _ = told.wait_for(|told| *told).await;
}

#[cfg(test)]
#[path = "pipe_tests.rs"]
mod tests;
