//! The command `pipe`: standard input and output over the secured stream.

use std::{
    io::{self, ErrorKind, IsTerminal},
    sync::atomic::{AtomicU64, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, split},
    sync::watch,
};

use super::output::XtlsError;
use crate::{
    endpoint::{SecureStream, Session},
    stdout,
};

/// The side of a pipe: the one that called, or the one that waited for the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Calls,
    Listens,
}

/// How both directions have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Joined {
    /// Each side ended its direction, the peer after our last byte.
    Whole,
    /// The peer ended its direction before our last byte: it has not confirmed that one.
    Unconfirmed,
    /// Nobody reads standard output any more.
    Unread,
}

/// Joins standard input and output to the stream, and ends the session.
///
/// # Errors
/// If either direction was cut, or the peer has not confirmed that it has everything.
pub(super) async fn run(
    mut session: Session,
    mut stream: SecureStream,
    side: Side,
) -> Result<(), XtlsError> {
    match session.during(join(&mut stream, side)).await {
        Ok(Joined::Whole) => session.terminate("success", "").await,
        Ok(Joined::Unconfirmed) => session.confirmed().await.map_err(|error| {
            let peer = session.peer();
            XtlsError::failed(format!(
                "everything was sent, but {peer} has not confirmed that it arrived: {error}"
            ))
        })?,
        Ok(Joined::Unread) => {
            session.terminate("cancel", "nobody reads the pipe's output any more").await;
        }
        Err(error) => {
            session.terminate("connectivity-error", "").await;
            return Err(error);
        }
    }
    Ok(())
}

/// Carries each direction to its own end.
///
/// A side whose standard input is a terminal, or has ended without a byte, has nothing to say when the peer has said
/// everything: the end of the peer's output ends its own direction. One that waits for a peer ends an empty direction
/// only then, because its `close_notify` is what tells the sender that everything has arrived.
async fn join(stream: &mut SecureStream, side: Side) -> Result<Joined, XtlsError> {
    let peer = stream.peer().clone();
    let (mut read, mut write) = split(stream);
    let sent = AtomicU64::new(0);
    // How many bytes had been sent when the peer's output ended.
    let (tell, mut told) = watch::channel(None);
    let terminal = io::stdin().is_terminal();
    let outgoing = async {
        let mut stdin = tokio::io::stdin();
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let n = tokio::select! {
                biased;
                _ = told.wait_for(Option::is_some), if terminal => 0,
                n = stdin.read(&mut buffer) => n.map_err(|error| {
                    XtlsError::failed(format!("standard input: cannot be read: {error}"))
                })?,
            };
            if n == 0 {
                break;
            }
            let written = async {
                write.write_all(&buffer[..n]).await?;
                write.flush().await
            };
            written.await.map_err(|error| {
                XtlsError::failed(format!("the stream to {peer} broke: {error}"))
            })?;
            sent.fetch_add(n as u64, Ordering::Relaxed);
        }
        if side == Side::Listens && sent.load(Ordering::Relaxed) == 0 {
            // An error of the other direction ends both.
            let _ = told.wait_for(Option::is_some).await;
        }
        write
            .shutdown()
            .await
            .map_err(|error| XtlsError::failed(format!("the stream to {peer} broke: {error}")))
    };
    let mut unread = false;
    let incoming = async {
        let mut stdout = tokio::io::stdout();
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let n = read.read(&mut buffer).await?;
            let written = async {
                stdout.write_all(&buffer[..n]).await?;
                stdout.flush().await
            };
            let written = written.await;
            unread = written.as_ref().is_err_and(|error| error.kind() == ErrorKind::BrokenPipe);
            if unread {
                return Err(XtlsError::failed("standard output is closed"));
            }
            stdout::checked(written, ())?;
            if n == 0 {
                tell.send_replace(Some(sent.load(Ordering::Relaxed)));
                return Ok(());
            }
        }
    };
    match tokio::try_join!(outgoing, incoming) {
        Ok(_) if *tell.borrow() == Some(sent.into_inner()) => Ok(Joined::Whole),
        Ok(_) => Ok(Joined::Unconfirmed),
        Err(_) if unread => Ok(Joined::Unread),
        Err(error) => Err(error),
    }
}
