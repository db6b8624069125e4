//! What other tasks see of one stream, and what they tell it: counters, silence, whether it should give its pipe back.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
    task::Context,
    time::Duration,
};

use futures::task::AtomicWaker;

use super::splice::PipeAccount;

/// The silence both ways after which a stream's peers are checked, and the interval of the checks.
pub(super) const STILL: Duration = Duration::from_secs(15);

/// Nothing is on its way to either peer, so only keepalive can find a vanished peer.
const SETTLED: u32 = u32::MAX;

/// The result of a look at a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamNews {
    /// Nothing for the stream's task.
    None = 0,
    /// Nothing has moved for [`STILL`], or for that long again.
    Still = 1,
    /// Nothing has moved for its idle time.
    Idle = 2,
}

/// What other tasks can see of one stream between two sockets.
#[derive(Debug)]
pub(super) struct StreamWatch {
    /// Bytes written to the second and to the first leg. Only the relay writes these.
    pub(super) a_to_b: AtomicU64,
    pub(super) b_to_a: AtomicU64,
    /// What the last look found: a [`StreamNews`].
    news: AtomicU8,
    /// How often the peers were checked since something last moved; [`SETTLED`] if no check is needed.
    asked: AtomicU32,
    idle_millis: u64,
    /// Whether bytes wait for a reader, whether in a pipe, and whether another stream wants the pipe.
    holds: AtomicBool,
    has_pipe: AtomicBool,
    pipe_wanted: AtomicBool,
    waker: AtomicWaker,
    account: PipeAccount,
    /// Its place in the list.
    pub(super) index: AtomicU32,
    /// At the last look: when something had last moved, and how much had moved each way.
    moved_at: AtomicU64,
    counted: [AtomicU64; 2],
}

/// How much of one stream has moved, as other tasks see it.
#[derive(Debug, Default)]
pub struct StreamProgress {
    /// For a stream between two sockets.
    watch: OnceLock<Arc<StreamWatch>>,
    /// For any other stream: how much has moved, and whether bytes wait.
    piped: AtomicU64,
    holds: AtomicBool,
}

impl StreamProgress {
    pub(super) fn follow(&self, watch: &Arc<StreamWatch>) {
        let _once = self.watch.set(Arc::clone(watch));
    }

    /// Notes the progress of a stream that has no watch.
    pub(super) fn note(&self, bytes: u64, holds: bool) {
        self.piped.store(bytes, Ordering::Relaxed);
        self.holds.store(holds, Ordering::Relaxed);
    }

    /// Returns whether bytes wait for a slow reader.
    pub fn holds(&self) -> bool {
        match self.watch.get() {
            Some(watch) => watch.holds.load(Ordering::Relaxed),
            None => self.holds.load(Ordering::Relaxed),
        }
    }

    /// Returns the bytes moved so far, both directions.
    pub fn bytes(&self) -> u64 {
        self.watch.get().map_or_else(|| self.piped.load(Ordering::Relaxed), |watch| watch.bytes())
    }
}

impl StreamWatch {
    /// Creates the watch of a stream that begins at the time `millis`, with its place in the list.
    pub(super) fn new(idle_millis: u64, account: PipeAccount, index: u32, millis: u64) -> Self {
        Self {
            a_to_b: AtomicU64::new(0),
            b_to_a: AtomicU64::new(0),
            news: AtomicU8::new(StreamNews::None as u8),
            asked: AtomicU32::new(0),
            idle_millis,
            holds: AtomicBool::new(false),
            has_pipe: AtomicBool::new(false),
            pipe_wanted: AtomicBool::new(false),
            waker: AtomicWaker::new(),
            account,
            index: AtomicU32::new(index),
            moved_at: AtomicU64::new(millis),
            counted: [AtomicU64::new(0), AtomicU64::new(0)],
        }
    }

    /// Returns how many bytes have moved since the last count.
    pub(super) fn count(&self, millis: u64) -> u64 {
        let mut all = 0;
        for (moved, counted) in [&self.a_to_b, &self.b_to_a].into_iter().zip(&self.counted) {
            let moved = moved.load(Ordering::Relaxed);
            let before = counted.swap(moved, Ordering::Relaxed);
            if moved != before {
                self.moved_at.store(millis, Ordering::Relaxed);
                self.asked.store(0, Ordering::Relaxed);
                all += moved - before;
            }
        }
        all
    }

    /// Looks at the stream at the time `millis`, and wakes it if there is something to do. `slow` says that it moves
    /// little while others need pipes.
    pub(super) fn look_at(&self, millis: u64, slow: bool) {
        let takes = slow && self.has_pipe.load(Ordering::Relaxed);
        if takes {
            self.pipe_wanted.store(true, Ordering::Release);
        }
        if self.look(millis) != StreamNews::None || takes {
            self.waker.wake();
        }
    }

    /// Returns the bytes moved so far, both directions.
    pub(super) fn bytes(&self) -> u64 {
        self.a_to_b.load(Ordering::Relaxed) + self.b_to_a.load(Ordering::Relaxed)
    }

    /// Notes whether bytes wait for a reader, and whether in a pipe.
    pub(super) fn set_holds(&self, holds: bool, has_pipe: bool) {
        self.holds.store(holds, Ordering::Relaxed);
        self.has_pipe.store(has_pipe, Ordering::Relaxed);
    }

    /// Returns, once, whether another stream wants the pipe of this one.
    pub(super) fn is_pipe_wanted(&self) -> bool {
        self.pipe_wanted.load(Ordering::Acquire) && self.pipe_wanted.swap(false, Ordering::AcqRel)
    }

    /// Returns the account of the stream.
    pub(super) fn account(&self) -> PipeAccount {
        self.account
    }

    /// Returns how long neither direction may move a byte.
    pub(super) fn idle_timeout(&self) -> Duration {
        Duration::from_millis(self.idle_millis)
    }

    /// Registers this task to be woken by a look. Returns the result of the last look, each once, except that it is
    /// idle.
    pub(super) fn news(&self, cx: &Context<'_>) -> StreamNews {
        self.waker.register(cx.waker());
        match self.news.load(Ordering::Acquire) {
            news if news == StreamNews::Idle as u8 => StreamNews::Idle,
            news if news == StreamNews::Still as u8 => {
                let (still, none) = (StreamNews::Still as u8, StreamNews::None as u8);
                let (ordering, failed) = (Ordering::AcqRel, Ordering::Relaxed);
                // If the stream has become idle just now, the next poll learns of it.
                let _ = self.news.compare_exchange(still, none, ordering, failed);
                StreamNews::Still
            }
            _ => StreamNews::None,
        }
    }

    /// Notes that both peers were checked; `open` if something is on its way to one of them.
    pub(super) fn looked(&self, open: bool) {
        if !open {
            self.asked.store(SETTLED, Ordering::Relaxed);
        }
    }

    /// Looks at the stream at the time `millis`.
    fn look(&self, millis: u64) -> StreamNews {
        let still = millis.saturating_sub(self.moved_at.load(Ordering::Relaxed));
        let asked = self.asked.load(Ordering::Relaxed);
        let due = u64::from(asked).saturating_add(1).saturating_mul(STILL.as_millis() as u64);
        let news = if still >= self.idle_millis {
            StreamNews::Idle
        } else if asked < SETTLED && still >= due {
            self.asked.store(asked + 1, Ordering::Relaxed);
            StreamNews::Still
        } else {
            return StreamNews::None;
        };
        self.news.store(news as u8, Ordering::Release);
        news
    }
}
