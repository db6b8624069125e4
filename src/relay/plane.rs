//! The shared state of all streams of a process: pipes, counters, the rate, and one clock for all of them.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use fingerpost_carry::{side::Side, tcp};
use fingerpost_wire::transport_kind::TransportKind;
use futures::task::AtomicWaker;

use super::{
    metrics::{Cause, Metrics, Phase},
    pipe::{self, Account, Ended, Options, Outcome},
    socket::Leg,
    splice::{self, Pool},
};
use crate::relay::pair::Relay;

/// The longest pause between two checks of the streams.
const LOOK: Duration = Duration::from_secs(1);

/// The number of checks in one idle time, if that is short.
const LOOKS: u32 = 4;

/// How long a leg may take to get its bytes where the system does not say when it has them.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// The silence both ways after which a stream's peers are checked, and the interval of the checks.
pub(super) const STILL: Duration = Duration::from_secs(15);

/// The data plane. Cheap to clone; all clones share the same state.
///
/// Streams between two sockets have no timer of their own: [`Plane::look`] is called every [`Plane::pause`] and
/// notifies those that were idle for too long. It costs one pass over their counters.
#[derive(Clone, Debug)]
pub struct Plane {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    pool: Pool,
    metrics: Metrics,
    bytes_per_second: AtomicU64,
    started: Instant,
    watches: Mutex<Vec<Arc<Watch>>>,
}

/// What other tasks can see of one stream between two sockets.
#[derive(Debug)]
pub(super) struct Watch {
    /// Bytes written to the second and to the first leg. Only the relay writes these.
    pub(super) a_to_b: AtomicU64,
    pub(super) b_to_a: AtomicU64,
    /// What the last look found: a [`News`].
    news: AtomicU8,
    /// How often the peers were checked since something last moved; [`SETTLED`] if no check is needed.
    asked: AtomicU32,
    idle_millis: u64,
    /// Whether bytes wait for a reader, whether in a pipe, and whether another stream wants the pipe.
    holds: AtomicBool,
    has_pipe: AtomicBool,
    pipe_wanted: AtomicBool,
    waker: AtomicWaker,
    account: Account,
    /// Its place in the list.
    index: AtomicU32,
    /// At the last look: when something had last moved, and how much had moved each way.
    moved_at: AtomicU64,
    counted: [AtomicU64; 2],
}

/// A stream that holds a pipe and moves fewer bytes than this between two looks does not need the pipe.
const SLOW: u64 = 64 * 1024;

/// Nothing is on its way to either peer, so only keepalive can find a vanished peer.
const SETTLED: u32 = u32::MAX;

/// The result of a look at a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// Nothing for the stream's task.
    None = 0,
    /// Nothing has moved for [`STILL`], or for that long again.
    Still = 1,
    /// Nothing has moved for its idle time.
    Idle = 2,
}

impl Plane {
    /// Creates a plane whose streams may move `bytes_per_second` each, both directions together; 0 is any number.
    pub fn new(bytes_per_second: u64) -> Self {
        Self::with_pool(bytes_per_second, Pool::new())
    }

    pub(super) fn with_pool(bytes_per_second: u64, pool: Pool) -> Self {
        Self {
            shared: Arc::new(Shared {
                pool,
                metrics: Metrics::default(),
                bytes_per_second: bytes_per_second.into(),
                started: now(),
                watches: Mutex::default(),
            }),
        }
    }

    /// Returns the counters of streams.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Sets another rate, for streams that begin from now on.
    pub fn set_rate(&self, bytes_per_second: u64) {
        self.shared.bytes_per_second.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Returns the rate of each stream; 0 is unlimited.
    pub fn rate(&self) -> u64 {
        self.shared.bytes_per_second.load(Ordering::Relaxed)
    }

    /// Returns the pipes that exist: those that wait for use, and those that hold bytes in flight.
    pub fn pipes(&self) -> (usize, usize) {
        self.shared.pool.count()
    }

    /// Returns how often a direction of a stream has taken a pipe; if it stays 0, everything is copied.
    pub fn pipes_lent(&self) -> u64 {
        self.shared.pool.lent()
    }

    /// Returns whether an error of splice(2) says that the system refuses the call itself; then everything is copied
    /// from now on. Sockets have some of these errors too, and a peer may cause them (`EACCES` is what ICMP says of a
    /// firewall). Reading a socket's error removes it, so the call is tried on sockets of our own.
    pub(super) fn must_copy(&self, error: &io::Error) -> bool {
        let refused = splice::is_refused(error)
            && splice::probe().is_err_and(|probed| splice::is_refused(&probed));
        if refused {
            self.copy_only(error);
        }
        refused
    }

    /// Copies everything from now on, because the system refuses splice(2). Logs that once.
    pub(super) fn copy_only(&self, error: &io::Error) {
        if self.shared.pool.close() {
            tracing::warn!("{}", no_splice(error));
        }
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.shared.pool
    }

    /// Joins two legs until both are done, and reports progress meanwhile. Two sockets are joined without copying where
    /// possible, other legs with `pipe::relay_at_rate`.
    ///
    /// # Cancel safety
    /// Dropping the future loses what is in flight, so do that only to end both legs.
    pub async fn join(
        &self,
        initiator: Leg,
        responder: Leg,
        options: Options,
        progress: &Progress,
    ) -> Outcome {
        let outcome = match (initiator, responder) {
            (Leg::Socket(a), Leg::Socket(b)) => {
                let relay = Box::pin(Relay::new(a, b, self.clone(), options));
                progress.follow(relay.watch());
                relay.await
            }
            (a, b) => {
                let open = Open::new(self, a.transport_kind(), b.transport_kind());
                a.arm();
                b.arm();
                let outcome =
                    Box::pin(pipe::relay_at_rate(a, b, options, self.rate(), progress)).await;
                self.metrics().moved(open.a, open.b, outcome.a_to_b);
                self.metrics().moved(open.b, open.a, outcome.b_to_a);
                outcome
            }
        };
        self.ended(outcome.end);
        outcome
    }

    /// Counts why a stream ended.
    pub(super) fn ended(&self, end: Ended) {
        match end {
            Ended::Idle => self.metrics().timed_out(Phase::Idle, 1),
            Ended::NotTls => self.metrics().refused(Cause::NotTls),
            // The component, keepalive, or the acknowledgements of an in-band leg found it.
            Ended::Error(io::ErrorKind::TimedOut) => self.metrics().timed_out(Phase::Vanished, 1),
            Ended::Eof | Ended::Error(_) => {}
        }
    }

    /// Returns the pause between two looks at streams with this idle time.
    pub fn pause(idle_timeout: Duration) -> Duration {
        (idle_timeout / LOOKS).clamp(Duration::from_millis(1), LOOK)
    }

    /// Tries the system calls that the system may refuse (seccomp, old kernels). Returns a sentence for each that it
    /// refuses; streams then do without it from the first byte on.
    pub fn probe(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if let Err(error) = splice::probe() {
            self.shared.pool.close();
            missing.push(no_splice(&error));
        }
        missing.extend(tcp::missing());
        missing
    }

    /// Looks at every stream between sockets once. Counts its bytes, ends it if it idles, takes pipes from streams that
    /// hardly move if others need them, and closes spare pipes.
    pub fn look(&self) {
        let millis = self.millis();
        let short = self.shared.pool.was_short();
        let watches = self.lock();
        for watch in watches.iter() {
            let moved = self.count(watch, millis);
            let takes = short && moved < SLOW && watch.has_pipe.load(Ordering::Relaxed);
            if takes {
                watch.pipe_wanted.store(true, Ordering::Release);
            }
            if watch.look(millis) != News::None || takes {
                watch.waker.wake();
            }
        }
        drop(watches);
        self.shared.pool.trim();
    }

    /// Adds what moved since the last look to the counters, and returns how much that is.
    fn count(&self, watch: &Watch, millis: u64) -> u64 {
        let mut all = 0;
        for (moved, counted) in [&watch.a_to_b, &watch.b_to_a].into_iter().zip(&watch.counted) {
            let moved = moved.load(Ordering::Relaxed);
            let before = counted.swap(moved, Ordering::Relaxed);
            if moved != before {
                watch.moved_at.store(millis, Ordering::Relaxed);
                watch.asked.store(0, Ordering::Relaxed);
                self.metrics().moved(TransportKind::S5b, TransportKind::S5b, moved - before);
                all += moved - before;
            }
        }
        all
    }

    /// Adds a stream to those that are looked at.
    pub(super) fn watch(&self, idle_timeout: Duration, account: Account) -> Arc<Watch> {
        let idle_millis = u64::try_from(idle_timeout.as_millis()).unwrap_or(u64::MAX);
        let mut watches = self.lock();
        let watch = Arc::new(Watch {
            a_to_b: AtomicU64::new(0),
            b_to_a: AtomicU64::new(0),
            news: AtomicU8::new(News::None as u8),
            asked: AtomicU32::new(0),
            idle_millis,
            holds: AtomicBool::new(false),
            has_pipe: AtomicBool::new(false),
            pipe_wanted: AtomicBool::new(false),
            waker: AtomicWaker::new(),
            account,
            index: AtomicU32::new(watches.len() as u32),
            moved_at: AtomicU64::new(self.millis()),
            counted: [AtomicU64::new(0), AtomicU64::new(0)],
        });
        watches.push(Arc::clone(&watch));
        drop(watches);
        self.metrics().session_began(TransportKind::S5b, TransportKind::S5b);
        watch
    }

    /// Removes it again.
    pub(super) fn unwatch(&self, watch: &Watch) {
        let mut watches = self.lock();
        let index = watch.index.load(Ordering::Relaxed);
        watches.swap_remove(index as usize);
        if let Some(moved) = watches.get(index as usize) {
            moved.index.store(index, Ordering::Relaxed);
        }
        if watches.capacity() > 64 && watches.len() < watches.capacity() / 4 {
            watches.shrink_to_fit();
        }
        drop(watches);
        let _counted = self.count(watch, 0);
        self.metrics().session_ended(TransportKind::S5b, TransportKind::S5b);
    }

    fn millis(&self) -> u64 {
        let running = now().saturating_duration_since(self.shared.started);
        u64::try_from(running.as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Watch>>> {
        self.shared.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How much of one stream has moved, as other tasks see it.
#[derive(Debug, Default)]
pub struct Progress {
    /// For a stream between two sockets.
    watch: OnceLock<Arc<Watch>>,
    /// For any other stream: how much has moved, and whether bytes wait.
    piped: AtomicU64,
    holds: AtomicBool,
}

impl Progress {
    pub(super) fn follow(&self, watch: &Arc<Watch>) {
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

impl Watch {
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
    pub(super) fn account(&self) -> Account {
        self.account
    }

    /// Returns how long neither direction may move a byte.
    pub(super) fn idle_timeout(&self) -> Duration {
        Duration::from_millis(self.idle_millis)
    }

    /// Registers this task to be woken by a look. Returns the result of the last look, each once, except that it is
    /// idle.
    pub(super) fn news(&self, cx: &std::task::Context<'_>) -> News {
        self.waker.register(cx.waker());
        match self.news.load(Ordering::Acquire) {
            news if news == News::Idle as u8 => News::Idle,
            news if news == News::Still as u8 => {
                let (still, none) = (News::Still as u8, News::None as u8);
                let (ordering, failed) = (Ordering::AcqRel, Ordering::Relaxed);
                // If the stream has become idle just now, the next poll learns of it.
                let _ = self.news.compare_exchange(still, none, ordering, failed);
                News::Still
            }
            _ => News::None,
        }
    }

    /// Notes that both peers were checked; `open` if something is on its way to one of them.
    pub(super) fn looked(&self, open: bool) {
        if !open {
            self.asked.store(SETTLED, Ordering::Relaxed);
        }
    }

    /// Looks at the stream at the time `millis`.
    fn look(&self, millis: u64) -> News {
        let still = millis.saturating_sub(self.moved_at.load(Ordering::Relaxed));
        let asked = self.asked.load(Ordering::Relaxed);
        let due = u64::from(asked).saturating_add(1).saturating_mul(STILL.as_millis() as u64);
        let news = if still >= self.idle_millis {
            News::Idle
        } else if asked < SETTLED && still >= due {
            self.asked.store(asked + 1, Ordering::Relaxed);
            News::Still
        } else {
            return News::None;
        };
        self.news.store(news as u8, Ordering::Release);
        news
    }
}

fn no_splice(error: &io::Error) -> String {
    format!(
        "splice(2) does not work here ({error}): streams are copied, which takes more processor time; does a seccomp profile \
         forbid it?"
    )
}

/// A stream's entry in the count of open ones.
struct Open<'a> {
    plane: &'a Plane,
    a: TransportKind,
    b: TransportKind,
}

impl<'a> Open<'a> {
    fn new(plane: &'a Plane, a: TransportKind, b: TransportKind) -> Self {
        plane.metrics().session_began(a, b);
        Self { plane, a, b }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.plane.metrics().session_ended(self.a, self.b);
    }
}

/// Returns the runtime's clock, which tests may pause.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use futures::task::noop_waker_ref;

    use super::*;

    const IDLE: Duration = Duration::from_secs(600);

    fn news(watch: &Watch) -> News {
        watch.news(&std::task::Context::from_waker(noop_waker_ref()))
    }

    #[tokio::test(start_paused = true)]
    async fn the_clock_of_idle_streams_goes_on_after_49_days() {
        let wrap = Duration::from_millis(u32::MAX.into());
        let plane = Plane::new(0);
        tokio::time::advance(wrap - IDLE / 4).await;
        let watch = plane.watch(IDLE, Account::default());
        plane.look();
        tokio::time::advance(IDLE / 2).await;
        plane.look();
        assert_ne!(news(&watch), News::Idle, "it is beyond the old end of the clock, and not idle");
        watch.a_to_b.store(1, Ordering::Relaxed);
        plane.look();
        tokio::time::advance(IDLE).await;
        plane.look();
        assert_eq!(news(&watch), News::Idle);
        plane.unwatch(&watch);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_time_of_many_days_is_kept() {
        let days = |days: u64| Duration::from_secs(days * 24 * 3600);
        let plane = Plane::new(0);
        let watch = plane.watch(days(60), Account::default());
        tokio::time::advance(days(59)).await;
        plane.look();
        assert_ne!(news(&watch), News::Idle);
        tokio::time::advance(days(1)).await;
        plane.look();
        assert_eq!(news(&watch), News::Idle);
        plane.unwatch(&watch);
    }

    #[tokio::test(start_paused = true)]
    async fn the_peers_of_a_stream_that_stands_still_are_looked_for_until_nothing_is_on_its_way() {
        let plane = Plane::new(0);
        let watch = plane.watch(IDLE, Account::default());
        let look = async |after: Duration| {
            tokio::time::advance(after).await;
            plane.look();
            news(&watch)
        };
        let second = Duration::from_secs(1);
        assert_eq!(look(STILL - second).await, News::None);
        assert_eq!(look(second).await, News::Still);
        watch.looked(true);
        assert_eq!(look(STILL - second).await, News::None);
        assert_eq!(look(second).await, News::Still, "something is on its way to a peer");
        watch.looked(false);
        assert_eq!(look(STILL * 3).await, News::None, "nothing is, so nothing can be found out");
        watch.b_to_a.store(1, Ordering::Relaxed);
        assert_eq!(look(second).await, News::None);
        assert_eq!(look(STILL).await, News::Still, "something has moved since");
        plane.unwatch(&watch);
    }
}
