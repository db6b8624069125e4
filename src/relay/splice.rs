//! Pipes through which the kernel moves bytes from one socket to another without copying them (splice(2)).
//!
//! A pipe costs two descriptors and, from a budget that all programs of one user share, pages: 64 MiB in all unless the
//! administrator says otherwise. So there are few, they belong to a [`PipePool`], and a direction borrows one only while
//! bytes are in flight. If there is no splice(2), or no pipe is free, [`PipePool::take`] returns none and the caller
//! copies. No `unsafe`: `rustix` provides the system calls.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    io, mem,
    os::fd::{AsFd, OwnedFd},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use fingerpost_wire::jid::identity;
use jid::BareJid;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

/// The first pipes are this large: fewer, longer splices cost less per byte.
const LARGE: usize = 1 << 20;
/// The number of large pipes.
const LARGE_PIPES: usize = 32;
/// The size of the other pipes.
const MEDIUM: usize = 1 << 18;
/// A pipe smaller than this moves less at once than a copy does.
const SMALLEST: usize = 1 << 16;
/// Pipes in all: 56 MiB of the 64 that an unprivileged user has.
const PIPES: usize = LARGE_PIPES + 96;
/// How long no pipe is requested after the kernel refused one.
const PAUSE: Duration = Duration::from_millis(200);

/// The account of a stream, for shares of pipes: a keyed hash of the address. The default belongs to nobody and has no
/// share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PipeAccount(u32);

impl PipeAccount {
    /// Returns the account of a user.
    pub fn of(user: &BareJid) -> Self {
        static HASHER: OnceLock<RandomState> = OnceLock::new();
        let hash = HASHER.get_or_init(RandomState::new).hash_one(identity(user).as_str());
        // The hash 0 belongs to nobody.
        Self(hash as u32 | 1)
    }
}

/// Pipes for all pairs of a plane. An account may take one more while it has fewer than are left for all, so some are
/// left for the next account.
#[derive(Debug)]
pub(super) struct PipePool {
    limit: usize,
    state: Mutex<PoolState>,
}

#[derive(Debug, Default)]
struct PoolState {
    /// The last pipe given back is the first one taken: its pages are warm.
    #[expect(clippy::vec_box, reason = "a direction holds the box: one word while it is idle")]
    free: Vec<Box<Pipe>>,
    /// The number of pipes, free and borrowed.
    made: usize,
    /// The fewest pipes that were free since the last [`PipePool::trim`]: these are not needed.
    spare: usize,
    refused_at: Option<Instant>,
    /// How often a pipe was taken.
    lent: u64,
    /// The number of pipes that each account has taken.
    taken: HashMap<PipeAccount, usize>,
    /// How often a caller got no pipe.
    shortages: u64,
    /// Why the pool gives no more pipes.
    closed: bool,
}

impl PipePool {
    /// Creates an empty pool.
    pub(super) fn new() -> Self {
        Self::with_limit(PIPES)
    }

    /// Creates a pool of at most `limit` pipes.
    pub(super) fn with_limit(limit: usize) -> Self {
        Self { limit, state: Mutex::default() }
    }

    /// Takes an empty pipe, if one is free or can be made, and the account has not used its share.
    pub(super) fn take(&self, account: PipeAccount) -> Option<Box<Pipe>> {
        let mut state = self.lock();
        if state.closed {
            return None;
        }
        let held = state.taken.get(&account).copied().unwrap_or(0);
        let left = self.limit.saturating_sub(state.made - state.free.len());
        if left == 0 || account != PipeAccount::default() && held >= left {
            state.shortages += 1;
            return None;
        }
        let pipe = match state.free.pop() {
            Some(pipe) => {
                state.spare = state.spare.min(state.free.len());
                pipe
            }
            None => self.make(&mut state)?,
        };
        state.lent += 1;
        *state.taken.entry(account).or_default() += 1;
        Some(pipe)
    }

    fn make(&self, state: &mut PoolState) -> Option<Box<Pipe>> {
        if state.refused_at.is_some_and(|refused_at| refused_at.elapsed() < PAUSE) {
            state.shortages += 1;
            return None;
        }
        let wanted = if state.made < LARGE_PIPES { LARGE } else { MEDIUM };
        match Pipe::open(wanted, SMALLEST) {
            Ok(pipe) => {
                state.made += 1;
                state.refused_at = None;
                Some(Box::new(pipe))
            }
            Err(error) => {
                tracing::debug!(%error, "no pipe available: copying instead");
                state.refused_at = Some(Instant::now());
                state.shortages += 1;
                None
            }
        }
    }

    /// Takes a pipe back. A pipe that still holds bytes is closed, and they are lost.
    pub(super) fn give_back(&self, account: PipeAccount, pipe: Box<Pipe>) {
        let mut state = self.lock();
        if let Some(held) = state.taken.get_mut(&account) {
            *held -= 1;
            if *held == 0 {
                state.taken.remove(&account);
            }
        }
        if pipe.held() == 0 && !state.closed {
            state.free.push(pipe);
        } else {
            state.made -= 1;
        }
    }

    /// Returns how often a caller got no pipe.
    pub(super) fn shortages(&self) -> u64 {
        self.lock().shortages
    }

    /// Gives no more pipes, because the system refuses to move bytes through them. Returns whether it gave some before.
    pub(super) fn close(&self) -> bool {
        let mut state = self.lock();
        let closes = !mem::replace(&mut state.closed, true);
        let unused = mem::take(&mut state.free);
        state.made -= unused.len();
        state.spare = 0;
        drop(state);
        drop(unused);
        closes
    }

    /// Closes the pipes that were not needed since the last call.
    pub(super) fn trim(&self) {
        let mut state = self.lock();
        let spare = state.spare.min(state.free.len());
        let unused: Vec<_> = state.free.drain(..spare).collect();
        state.made -= spare;
        state.spare = state.free.len();
        drop(state);
        drop(unused);
    }

    /// Returns how many pipes there are: free, and borrowed.
    pub(super) fn count(&self) -> (usize, usize) {
        let state = self.lock();
        (state.free.len(), state.made - state.free.len())
    }

    /// Returns how often a direction has taken one, which shows whether streams go through pipes or are copied.
    pub(super) fn lent(&self) -> u64 {
        self.lock().lent
    }

    fn lock(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pipe, and how much is in it.
#[derive(Debug)]
pub(super) struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
    size: usize,
    held: usize,
}

impl Pipe {
    /// Opens a pipe of `wanted` bytes, or of as many as the kernel grants, but not less than `least`.
    fn open(wanted: usize, least: usize) -> io::Result<Self> {
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

    /// Returns the number of bytes in it.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Moves at most `most` bytes that have arrived at a socket into the empty pipe; 0 is the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` if nothing has arrived at the socket; the pipe is empty, so it cannot be the cause.
    pub(super) fn fill(&mut self, from: impl AsFd, most: usize) -> io::Result<usize> {
        debug_assert_eq!(self.held, 0);
        let most = most.min(self.size);
        let n = splice(from, None, &self.into, None, most, FLAGS)?;
        self.held = n;
        Ok(n)
    }

    /// Reads the pipe's content.
    ///
    /// # Errors
    /// Those of read(2); the bytes that were read before the error are in `bytes`.
    pub(super) fn empty(&mut self, bytes: &mut Vec<u8>) -> io::Result<()> {
        let start = bytes.len();
        bytes.resize(start + self.held, 0);
        let mut end = start;
        while self.held > 0 {
            match rustix::io::read(&self.out, &mut bytes[end..]) {
                Ok(n) if n > 0 => {
                    end += n;
                    self.held -= n;
                }
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    bytes.truncate(end);
                    return Err(error.into());
                }
            }
        }
        bytes.truncate(end);
        Ok(())
    }

    /// Moves the pipe's content to a socket.
    ///
    /// # Errors
    /// `WouldBlock` if the socket accepts nothing now.
    pub(super) fn drain(&mut self, to: impl AsFd) -> io::Result<usize> {
        let n = splice(&self.out, None, to, None, self.held, FLAGS)?;
        self.held -= n;
        Ok(n)
    }
}

const FLAGS: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);

/// Returns whether an error of splice(2) says that the call does not work here at all, rather than that a stream
/// failed.
pub(super) fn is_refused(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput
    )
}

/// Tries to move bytes through a pipe, on a pair of sockets of its own.
///
/// # Errors
/// The system's error for the first call that it refuses.
pub(super) fn probe() -> io::Result<()> {
    use std::{io::Write, os::unix::net::UnixStream};
    let ((mut there, here), (on, _end)) = (UnixStream::pair()?, UnixStream::pair()?);
    there.write_all(b"probe")?;
    let mut pipe = Pipe::open(SMALLEST, SMALLEST)?;
    pipe.fill(&here, 3)?;
    pipe.drain(&on)?;
    pipe.fill(&here, 2)?;
    pipe.empty(&mut Vec::new())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
    };

    use super::*;

    const NOBODY: PipeAccount = PipeAccount(0);

    #[test]
    fn a_pool_lends_so_many_and_closes_what_nobody_needs() {
        let pool = PipePool::with_limit(2);
        let (one, two) = (pool.take(NOBODY).unwrap(), pool.take(NOBODY).unwrap());
        assert_eq!(pool.shortages(), 0);
        assert!(pool.take(NOBODY).is_none());
        assert_eq!(pool.shortages(), 1);
        pool.give_back(NOBODY, one);
        pool.give_back(NOBODY, two);
        assert_eq!(pool.count(), (2, 0));
        pool.trim();
        assert_eq!(pool.count(), (2, 0), "both were needed since");
        let one = pool.take(NOBODY).unwrap();
        pool.trim();
        assert_eq!(pool.count(), (0, 1), "one was not");
        pool.give_back(NOBODY, one);
        pool.trim();
        pool.trim();
        assert_eq!(pool.count(), (0, 0));
    }

    #[test]
    fn an_account_leaves_as_many_as_it_takes() {
        let pool = PipePool::with_limit(32);
        let take = |account| -> Vec<_> { std::iter::from_fn(|| pool.take(account)).collect() };
        let taken: Vec<_> = (1..5).map(|n| (PipeAccount(n), take(PipeAccount(n)))).collect();
        let counts: Vec<_> = taken.iter().map(|(_, pipes)| pipes.len()).collect();
        assert_eq!(counts, [16, 8, 4, 2]);
        for (account, pipes) in taken {
            pipes.into_iter().for_each(|pipe| pool.give_back(account, pipe));
        }
        assert_eq!(take(PipeAccount(9)).len(), 16, "a pipe that was given back no longer counts");
        assert_ne!(PipeAccount::of(&BareJid::new("a@b.c").unwrap()), NOBODY);
        let spelled = |text: &str| PipeAccount::of(&BareJid::new(text).unwrap());
        assert_eq!(spelled("a@b.c"), spelled("a@b.c."), "another spelling is the same account");
    }

    #[test]
    fn what_is_in_a_pipe_can_be_read_out() {
        probe().unwrap();
        let ((mut there, here), (on, mut end)) =
            (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        let sent: Vec<u8> = (0..50_000_u32).map(|n| (n % 251) as u8).collect();
        there.write_all(&sent).unwrap();
        let mut pipe = Pipe::open(LARGE, SMALLEST).unwrap();
        let (mut got, mut kept) = (Vec::new(), vec![9]);
        while got.len() + kept.len() - 1 < sent.len() {
            pipe.fill(&here, 20_000).unwrap();
            if got.is_empty() {
                let drained = pipe.drain(&on).unwrap();
                got.resize(drained, 0);
                end.read_exact(&mut got).unwrap();
            }
            pipe.empty(&mut kept).unwrap();
            assert_eq!(pipe.held(), 0);
        }
        assert_eq!(kept.remove(0), 9, "what was there stays");
        got.extend(kept);
        assert!(got == sent);
    }

    #[test]
    fn a_pool_that_is_closed_gives_nothing() {
        let pool = PipePool::with_limit(2);
        let (one, two) = (pool.take(NOBODY).unwrap(), pool.take(NOBODY).unwrap());
        pool.give_back(NOBODY, one);
        let refused = io::Error::from_raw_os_error(libc::EPERM);
        assert!(is_refused(&refused) && is_refused(&io::Error::from_raw_os_error(libc::ENOSYS)));
        assert!(!is_refused(&io::Error::from_raw_os_error(libc::ECONNRESET)));
        assert!(pool.close() && !pool.close());
        assert!(pool.take(NOBODY).is_none());
        pool.give_back(NOBODY, two);
        assert_eq!(pool.count(), (0, 0));
    }
}
