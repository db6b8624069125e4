//! Standard input and output without a thread between, if they are pipes.
//!
//! tokio reads and writes them on threads of its own, because a file or a terminal may block: two changes of the thread for
//! each read. A pipe is opened a second time for this program alone. Making the one of the shell non-blocking would change
//! it for all programs that share it.

use std::{io, os::fd::AsFd};

use rustix::fs::{FileType, fstat};
use tokio::{
    io::{Stdin, Stdout},
    net::unix::pipe,
};
use tokio_util::either::Either;

/// Opens standard input.
pub(super) fn input() -> Either<pipe::Receiver, Stdin> {
    const FILE: &str = "/proc/self/fd/0";
    // Of a named pipe whose last writer has gone before it is opened, Linux never reports the end. This is the name of others.
    let name = std::fs::read_link(FILE).unwrap_or_default();
    let is_unnamed = name.as_os_str().as_encoded_bytes().starts_with(b"pipe:[");
    match is_unnamed.then(|| pipe::OpenOptions::new().open_receiver(FILE)) {
        Some(Ok(pipe)) => Either::Left(pipe),
        // For example, it belongs to another user.
        _ => Either::Right(tokio::io::stdin()),
    }
}

/// Opens standard output. The descriptor of the shell stays open in any case: only the end of the program ends the pipe.
pub(super) fn output() -> Either<pipe::Sender, Stdout> {
    let opened =
        is_pipe(io::stdout()).then(|| pipe::OpenOptions::new().open_sender("/proc/self/fd/1"));
    match opened {
        Some(Ok(pipe)) => Either::Left(pipe),
        // For example, its reader has gone.
        _ => Either::Right(tokio::io::stdout()),
    }
}

fn is_pipe(file: impl AsFd) -> bool {
    fstat(file).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
}
