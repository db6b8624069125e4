//! Pipes through which the kernel moves bytes from one socket to another without copying them (splice(2)).
//!
//! A pipe costs two descriptors and, from a budget that all programs of one user share, pages: 64 MiB in all unless
//! the administrator says otherwise. So there are few, they belong to a [`Pool`], and a direction borrows one only
//! while bytes are in flight. Where there is no splice, or no pipe to be had, [`Pool::take`] gives none and the
//! caller copies. No `unsafe`: the system calls are those of `rustix`.

#[cfg(target_os = "linux")]
pub(super) use linux::Pipe;
#[cfg(not(target_os = "linux"))]
pub(super) use none::Pipe;

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The first pipes are this large: fewer, longer splices cost less per byte.
const LARGE: usize = 1 << 20;
/// How many are large.
const LARGE_PIPES: usize = 32;
/// The others.
const MEDIUM: usize = 1 << 18;
/// A pipe smaller than this moves less at once than a copy does.
const SMALLEST: usize = 1 << 16;
/// Pipes in all: 56 MiB of the 64 that an unprivileged user has.
const PIPES: usize = LARGE_PIPES + 96;
/// After the kernel refused a pipe none is asked for so long.
const PAUSE: Duration = Duration::from_millis(200);

/// Pipes for all pairs of a plane.
#[derive(Debug)]
pub(super) struct Pool {
    limit: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The last one given back is the first one taken: it is warm.
    #[expect(clippy::vec_box, reason = "a direction holds the box: one word while it is idle")]
    free: Vec<Box<Pipe>>,
    /// Free and borrowed.
    made: usize,
    /// The fewest that were free since the last [`Pool::trim`]: nobody needs those.
    spare: usize,
    refused_at: Option<Instant>,
    /// How often one was taken.
    lent: u64,
}

impl Pool {
    /// An empty pool.
    pub(super) fn new() -> Self {
        Self::with_limit(PIPES)
    }

    /// A pool of at most `limit` pipes.
    pub(super) fn with_limit(limit: usize) -> Self {
        Self { limit, state: Mutex::default() }
    }

    /// An empty pipe, if there is one or one can be made.
    pub(super) fn take(&self) -> Option<Box<Pipe>> {
        let mut state = self.lock();
        if let Some(pipe) = state.free.pop() {
            state.spare = state.spare.min(state.free.len());
            state.lent += 1;
            return Some(pipe);
        }
        if state.made >= self.limit
            || state.refused_at.is_some_and(|refused_at| refused_at.elapsed() < PAUSE)
        {
            return None;
        }
        let wanted = if state.made < LARGE_PIPES { LARGE } else { MEDIUM };
        match Pipe::open(wanted, SMALLEST) {
            Ok(pipe) => {
                state.made += 1;
                state.lent += 1;
                state.refused_at = None;
                Some(Box::new(pipe))
            }
            Err(error) => {
                tracing::debug!(%error, "no pipe to be had, copying instead");
                state.refused_at = Some(Instant::now());
                None
            }
        }
    }

    /// Takes a pipe back. One that still holds bytes is closed, and they are gone.
    pub(super) fn give_back(&self, pipe: Box<Pipe>) {
        let mut state = self.lock();
        if pipe.held() == 0 {
            state.free.push(pipe);
        } else {
            state.made -= 1;
        }
    }

    /// Closes the pipes that nobody needed since the last call.
    pub(super) fn trim(&self) {
        let mut state = self.lock();
        let spare = state.spare.min(state.free.len());
        let unused: Vec<_> = state.free.drain(..spare).collect();
        state.made -= spare;
        state.spare = state.free.len();
        drop(state);
        drop(unused);
    }

    /// How many pipes there are: free, and borrowed.
    pub(super) fn count(&self) -> (usize, usize) {
        let state = self.lock();
        (state.free.len(), state.made - state.free.len())
    }

    /// How often a direction has taken one: whether streams go through pipes or are copied.
    pub(super) fn lent(&self) -> u64 {
        self.lock().lent
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        io,
        os::fd::{AsFd, OwnedFd},
    };

    use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

    /// A pipe, and how much is in it.
    #[derive(Debug)]
    pub(in super::super) struct Pipe {
        out: OwnedFd,
        into: OwnedFd,
        size: usize,
        held: usize,
    }

    impl Pipe {
        /// Opens a pipe of `wanted` bytes, or of as many as the kernel grants, but not less than `least`.
        pub(super) fn open(wanted: usize, least: usize) -> io::Result<Self> {
            let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
            let mut size = wanted;
            loop {
                match fcntl_setpipe_size(&into, size) {
                    Ok(size) => return Ok(Self { out, into, size, held: 0 }),
                    Err(_) if size > least => size /= 2,
                    Err(error) => return Err(error.into()),
                }
            }
        }

        /// The bytes in it.
        pub(in super::super) fn held(&self) -> usize {
            self.held
        }

        /// Moves what has arrived at a socket, at most `most`, into the empty pipe; 0 is the end of the stream.
        ///
        /// # Errors
        /// `WouldBlock` if nothing has arrived: it is the socket that is meant, for the pipe is empty.
        pub(in super::super) fn fill(&mut self, from: impl AsFd, most: usize) -> io::Result<usize> {
            debug_assert_eq!(self.held, 0);
            let most = most.min(self.size);
            let n = splice(from, None, &self.into, None, most, FLAGS)?;
            self.held = n;
            Ok(n)
        }

        /// Moves what is in the pipe to a socket.
        ///
        /// # Errors
        /// `WouldBlock` if the socket takes nothing now.
        pub(in super::super) fn drain(&mut self, to: impl AsFd) -> io::Result<usize> {
            let n = splice(&self.out, None, to, None, self.held, FLAGS)?;
            self.held -= n;
            Ok(n)
        }
    }

    const FLAGS: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);
}

#[cfg(not(target_os = "linux"))]
mod none {
    use std::{convert::Infallible, io, net::TcpStream};

    /// There is none here.
    #[derive(Debug)]
    pub(in super::super) struct Pipe(Infallible);

    impl Pipe {
        pub(super) fn open(_wanted: usize, _least: usize) -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(in super::super) fn held(&self) -> usize {
            match self.0 {}
        }

        pub(in super::super) fn fill<S>(&mut self, _from: S, _most: usize) -> io::Result<usize> {
            match self.0 {}
        }

        pub(in super::super) fn drain<S>(&mut self, _to: S) -> io::Result<usize> {
            match self.0 {}
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_pool_lends_so_many_and_closes_what_nobody_needs() {
        let pool = Pool::with_limit(2);
        let (one, two) = (pool.take().unwrap(), pool.take().unwrap());
        assert!(pool.take().is_none());
        pool.give_back(one);
        pool.give_back(two);
        assert_eq!(pool.count(), (2, 0));
        pool.trim();
        assert_eq!(pool.count(), (2, 0), "both were needed since");
        let one = pool.take().unwrap();
        pool.trim();
        assert_eq!(pool.count(), (0, 1), "one was not");
        pool.give_back(one);
        pool.trim();
        pool.trim();
        assert_eq!(pool.count(), (0, 0));
    }
}
