//! What all listeners share: the errors of accept(2), the pause after an error, and a reserve of file descriptors.

use std::{fs::File, io, net::SocketAddr, time::Duration};

use futures::FutureExt;
use tokio::net::{TcpListener, TcpStream};

/// The first and the longest pause after a failed accept, for example without free file descriptors.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// ENFILE and EMFILE. Their values are the same on every system that the program supports.
const NO_DESCRIPTORS: [i32; 2] = [23, 24];

/// What an error of accept(2) is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    /// One connection, which is gone. The next one can be accepted at once.
    Connection,
    /// No file descriptor is free.
    Descriptors,
    /// The listening socket, or the system.
    Listener,
}

impl Failed {
    /// Classifies an error of accept(2).
    pub(crate) fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted => Self::Connection,
            _ if error.raw_os_error().is_some_and(|code| NO_DESCRIPTORS.contains(&code)) => {
                Self::Descriptors
            }
            _ => Self::Listener,
        }
    }
}

/// The pause after a failed accept, which grows until one succeeds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff(Duration);

impl Backoff {
    /// Returns the shortest pause.
    pub(crate) fn new() -> Self {
        Self(PAUSE.0)
    }

    /// Notes that a connection was accepted.
    pub(crate) fn reset(&mut self) {
        *self = Self::new();
    }

    /// Returns how long to pause now, and doubles the next pause up to a second.
    pub(crate) fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(PAUSE.1);
        pause
    }
}

/// File descriptors that nothing else can take.
#[derive(Debug)]
pub(crate) struct Reserve {
    files: Vec<File>,
    size: usize,
}

impl Reserve {
    /// Takes `size` descriptors, or as many as there are.
    pub(crate) fn new(size: usize) -> Self {
        let mut reserve = Self { files: Vec::new(), size };
        reserve.refill();
        reserve
    }

    /// Replaces the descriptors that were used, as far as free ones exist.
    pub(crate) fn refill(&mut self) {
        while self.files.len() < self.size
            && let Ok(file) = File::open("/dev/null")
        {
            self.files.push(file);
        }
    }

    /// Returns whether no descriptor is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Accepts a waiting connection with a reserved descriptor.
    pub(crate) fn accept(&mut self, listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
        let would_block = || Err(io::ErrorKind::WouldBlock.into());
        self.accept_by(|| listener.accept().now_or_never().unwrap_or_else(would_block))
    }

    /// Calls `accept`, which does not wait, with a reserved descriptor. If another thread takes that descriptor first,
    /// tries the next one.
    pub(crate) fn accept_by<T>(&mut self, mut accept: impl FnMut() -> io::Result<T>) -> Option<T> {
        while let Some(file) = self.files.pop() {
            drop(file);
            match accept() {
                Ok(accepted) => return Some(accepted),
                Err(error) if Failed::of(&error) == Failed::Descriptors => {}
                Err(_) => return None,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_a_second_and_starts_again() {
        let mut backoff = Backoff::new();
        let pauses: Vec<_> = (0..8).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(pauses, [20, 40, 80, 160, 320, 640, 1000, 1000]);
        backoff.reset();
        assert_eq!(backoff.next().as_millis(), 20);
    }

    #[test]
    fn an_error_is_one_connection_s_or_a_lack_or_the_listener_s() {
        let of = |code| Failed::of(&io::Error::from_raw_os_error(code));
        for code in [libc::ECONNABORTED, libc::EINTR, libc::ECONNRESET] {
            assert_eq!(of(code), Failed::Connection);
        }
        for code in [libc::EMFILE, libc::ENFILE] {
            assert_eq!(of(code), Failed::Descriptors);
        }
        for code in [libc::ENOBUFS, libc::EBADF, libc::EPERM] {
            assert_eq!(of(code), Failed::Listener);
        }
    }

    #[tokio::test]
    async fn a_reserved_descriptor_takes_only_what_waits() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut reserve = Reserve::new(2);
        assert!(reserve.accept(&listener).is_none(), "nobody waits");
        reserve.refill();
        assert_eq!(reserve.files.len(), 2);
        let made = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        // The runtime learns of a waiting connection a moment later.
        let (_, peer) = loop {
            reserve.refill();
            match reserve.accept(&listener) {
                Some(accepted) => break accepted,
                None => tokio::task::yield_now().await,
            }
        };
        assert_eq!(peer, made.local_addr().unwrap());
    }
}
