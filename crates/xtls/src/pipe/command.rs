//! The user's command at the end of a pipe: each session starts it once.
//!
//! The command line comes from the user only. The peer's content reaches the command through standard input, and the peer's
//! address and print through the environment.

use std::{
    io,
    pin::Pin,
    process::Stdio,
    task::{Context, Poll, ready},
    time::Duration,
};

use fingerpost_endpoint::Learned;
use fingerpost_wire::print::Method;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::AsyncWrite,
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::local::Local;
use crate::{credential::SECRETS, output::XtlsError};

/// How long the command may take to end after SIGTERM.
const ENDS: Duration = Duration::from_secs(5);

/// A running command, in a process group of its own. Dropping this kills it while its input is still open.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    input: CommandInput,
    output: ChildStdout,
    /// Cancelled when the command's whole output has been sent.
    said_all: CancellationToken,
}

impl Running {
    /// Starts the command for a peer.
    ///
    /// # Errors
    /// If there is no shell, or no more process.
    pub(super) fn start(command: &str, learned: &Learned) -> Result<Self, XtlsError> {
        let bad = |error: io::Error| XtlsError::failed(format!("sh: cannot be started: {error}"));
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(command).process_group(0);
        shell.stdin(Stdio::piped()).stdout(Stdio::piped());
        for secret in SECRETS {
            shell.env_remove(secret);
        }
        shell.env("XTLS_PEER", learned.peer.as_str()).env("XTLS_METHOD", learned.method.as_str());
        match learned.method {
            Method::Srp => shell.env_remove("XTLS_PRINT"),
            _ => shell.env("XTLS_PRINT", learned.print.to_string()),
        };
        let mut child = shell.spawn().map_err(bad)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(bad(io::Error::other("it has no input or no output")));
        };
        let said_all = CancellationToken::new();
        let input = CommandInput { pipe: Some(input), said_all: said_all.clone(), unread: None };
        Ok(Self { child, input, output, said_all })
    }

    /// Returns the ends to connect to the stream.
    pub(super) fn local(
        &mut self,
    ) -> Local<&mut ChildStdout, &mut CommandInput, impl Future<Output = Result<(), XtlsError>>>
    {
        let Self { child, input, output, said_all } = self;
        let ended = async {
            said_all.cancel();
            let status = child.wait().await?;
            if status.success() {
                return Ok(());
            }
            Err(XtlsError::failed(format!("the command failed: {status}")))
        };
        Local { input: output, terminal: false, output: input, is_command: true, ended }
    }

    /// Ends the command while its input is open: the end of the input would look like the end of the peer's content.
    pub(super) async fn stop(&mut self) {
        self.signal(Signal::TERM);
        if timeout(ENDS, self.child.wait()).await.is_err() {
            self.signal(Signal::KILL);
            let _ = self.child.wait().await;
        }
    }

    /// Signals the whole process group, unless the command has ended: its number may belong to another process then.
    fn signal(&self, signal: Signal) {
        let group = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(group) = group {
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// The command's standard input. A shutdown closes it.
///
/// A command that has stopped reading may still write output: the error is reported after that has been sent.
#[derive(Debug)]
pub(super) struct CommandInput {
    pipe: Option<ChildStdin>,
    said_all: CancellationToken,
    /// Set when the command has stopped reading; completes when the error is due.
    unread: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl CommandInput {
    fn poll_unread(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let said_all = &self.said_all;
        let unread =
            self.unread.get_or_insert_with(|| Box::pin(said_all.clone().cancelled_owned()));
        ready!(unread.as_mut().poll(cx));
        Poll::Ready(io::Error::other("the command has not read everything"))
    }
}

impl AsyncWrite for CommandInput {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let (Some(pipe), None) = (&mut this.pipe, &this.unread) {
            match ready!(Pin::new(pipe).poll_write(cx, buf)) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                written => return Poll::Ready(written),
            }
        }
        this.poll_unread(cx).map(Err)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A pipe has no buffer to flush.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().pipe = None;
        Poll::Ready(Ok(()))
    }
}
