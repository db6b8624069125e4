//! Standard input and output without a thread between, if they are pipes.
//!
//! tokio reads and writes them on threads of its own, because a file or a terminal may block: two changes of the thread for
//! each read. A pipe is opened a second time for this program alone. Making the one of the shell non-blocking would change
//! it for all programs that share it.

use std::{
    io,
    os::fd::AsFd,
    pin::Pin,
    task::{Context, Poll},
};

use rustix::fs::{FileType, fstat};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, Stdin, Stdout},
    net::unix::pipe,
};

/// Standard input.
#[derive(Debug)]
pub(super) enum Input {
    Pipe(pipe::Receiver),
    Other(Stdin),
}

/// Standard output.
#[derive(Debug)]
pub(super) enum Output {
    Pipe(pipe::Sender),
    Other(Stdout),
}

impl Input {
    /// Opens standard input.
    pub(super) fn open() -> Self {
        const FILE: &str = "/proc/self/fd/0";
        // Of a named pipe whose last writer has gone before it is opened, Linux never reports the end.
        let name = std::fs::read_link(FILE).unwrap_or_default();
        let is_named = !name.as_os_str().as_encoded_bytes().starts_with(b"pipe:[");
        let opened = (is_pipe(io::stdin()) && !is_named)
            .then(|| pipe::OpenOptions::new().open_receiver(FILE));
        match opened {
            Some(Ok(pipe)) => Self::Pipe(pipe),
            // For example, it belongs to another user.
            _ => Self::Other(tokio::io::stdin()),
        }
    }
}

impl Output {
    /// Opens standard output.
    pub(super) fn open() -> Self {
        let opened =
            is_pipe(io::stdout()).then(|| pipe::OpenOptions::new().open_sender("/proc/self/fd/1"));
        match opened {
            Some(Ok(pipe)) => Self::Pipe(pipe),
            // For example, its reader has gone.
            _ => Self::Other(tokio::io::stdout()),
        }
    }
}

fn is_pipe(file: impl AsFd) -> bool {
    fstat(file).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
}

impl AsyncRead for Input {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Pipe(pipe) => Pin::new(pipe).poll_read(cx, buf),
            Self::Other(stdin) => Pin::new(stdin).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Output {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Pipe(pipe) => Pin::new(pipe).poll_write(cx, buf),
            Self::Other(stdout) => Pin::new(stdout).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Pipe(pipe) => Pin::new(pipe).poll_flush(cx),
            Self::Other(stdout) => Pin::new(stdout).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The descriptor of the shell stays open in any case: only the end of the program ends the pipe.
        self.poll_flush(cx)
    }
}
