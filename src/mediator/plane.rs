//! What all streams of a process share: pipes, counters, the rate, and one clock that looks after all of them.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::task::AtomicWaker;

use super::{
    leg::Leg,
    metrics::{Cause, Kind, Metrics, Phase},
    pipe::{self, Ended, Options, Outcome},
    relay::Relay,
    splice::Pool,
};

/// The longest pause between two looks at the streams.
const LOOK: Duration = Duration::from_secs(1);

/// How many looks make an idle time, if that is short.
const LOOKS: u32 = 4;

/// How long the other direction may stand still after one has broken.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// The data plane; cheap to clone, all clones are the same.
///
/// Streams between two sockets have no timer of their own: [`Plane::look`] is called every [`Plane::pause`] and
/// tells those that were idle for too long. A look costs one pass over their counters.
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

/// What is known of one stream between two sockets from outside of its task.
#[derive(Debug)]
pub(super) struct Watch {
    /// Bytes written to the second and to the first leg. Only the relay writes these.
    pub(super) a_to_b: AtomicU64,
    pub(super) b_to_a: AtomicU64,
    /// A direction broke.
    pub(super) broken: AtomicBool,
    /// That nothing moved for too long.
    idle: AtomicU8,
    idle_millis: u32,
    waker: AtomicWaker,
    /// Its place in the list.
    index: AtomicU32,
    /// At the last look: when something had last moved, how much had moved in all, and each way.
    moved_at: AtomicU32,
    counted: [AtomicU64; 2],
}

impl Plane {
    /// A plane whose streams may move `bytes_per_second` each, both directions together; 0 is any number.
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

    /// Counts of everything that the mediator does.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Another rate, for streams that begin from now on.
    pub fn set_rate(&self, bytes_per_second: u64) {
        self.shared.bytes_per_second.store(bytes_per_second, Ordering::Relaxed);
    }

    /// The rate of each stream; 0 is none.
    pub fn rate(&self) -> u64 {
        self.shared.bytes_per_second.load(Ordering::Relaxed)
    }

    /// The pipes that exist: those that wait for use, and those that hold bytes in flight.
    pub fn pipes(&self) -> (usize, usize) {
        self.shared.pool.count()
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.shared.pool
    }

    /// Joins two legs until both are done, and says meanwhile how far it is: between two sockets without copying where that can be, else with
    /// [`pipe::relay`].
    ///
    /// # Cancel safety
    /// Dropping the future loses what is in flight, so it is only for ending both legs.
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
                let open = Open::new(self, a.kind_of_transport(), b.kind_of_transport());
                let outcome =
                    Box::pin(pipe::relay_at_rate(a, b, options, self.rate(), &progress.piped))
                        .await;
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
            Ended::Eof | Ended::Error(_) => {}
        }
    }

    /// How often to look at the streams whose idle time is the given one.
    pub fn pause(idle_timeout: Duration) -> Duration {
        (idle_timeout / LOOKS).clamp(Duration::from_millis(1), LOOK)
    }

    /// Looks at every stream between sockets once: counts its bytes, ends it if it idles; and closes spare pipes.
    pub fn look(&self) {
        let millis = self.millis();
        let watches = self.lock();
        for watch in watches.iter() {
            self.count(watch, millis);
            let still = millis.saturating_sub(watch.moved_at.load(Ordering::Relaxed));
            let broken = watch.broken.load(Ordering::Relaxed);
            let grace = (watch.idle_millis / LOOKS).min(GRACE.as_millis() as u32);
            if still >= watch.idle_millis || broken && still >= grace {
                watch.idle.store(1, Ordering::Release);
                watch.waker.wake();
            }
        }
        drop(watches);
        self.shared.pool.trim();
    }

    /// Adds what moved since the last time to the counters.
    fn count(&self, watch: &Watch, millis: u32) {
        for (moved, counted) in [&watch.a_to_b, &watch.b_to_a].into_iter().zip(&watch.counted) {
            let moved = moved.load(Ordering::Relaxed);
            let before = counted.swap(moved, Ordering::Relaxed);
            if moved != before {
                watch.moved_at.store(millis, Ordering::Relaxed);
                self.metrics().moved(Kind::S5b, Kind::S5b, moved - before);
            }
        }
    }

    /// Puts a stream under the clock.
    pub(super) fn watch(&self, idle_timeout: Duration) -> Arc<Watch> {
        let idle_millis = u32::try_from(idle_timeout.as_millis()).unwrap_or(u32::MAX);
        let mut watches = self.lock();
        let watch = Arc::new(Watch {
            a_to_b: AtomicU64::new(0),
            b_to_a: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            idle: AtomicU8::new(0),
            idle_millis,
            waker: AtomicWaker::new(),
            index: AtomicU32::new(watches.len() as u32),
            moved_at: AtomicU32::new(self.millis()),
            counted: [AtomicU64::new(0), AtomicU64::new(0)],
        });
        watches.push(Arc::clone(&watch));
        drop(watches);
        self.metrics().session_began(Kind::S5b, Kind::S5b);
        watch
    }

    /// Takes it out again.
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
        self.count(watch, 0);
        self.metrics().session_ended(Kind::S5b, Kind::S5b);
    }

    fn millis(&self) -> u32 {
        // 49 days, then again from 0: a stream that lives across that moment has moved "just now".
        now().saturating_duration_since(self.shared.started).as_millis() as u32
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Watch>>> {
        self.shared.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How much of one stream has moved, seen from outside of its task.
#[derive(Debug, Default)]
pub struct Progress {
    /// Of a stream between two sockets.
    watch: OnceLock<Arc<Watch>>,
    /// Of any other.
    piped: AtomicU64,
}

impl Progress {
    pub(super) fn follow(&self, watch: &Arc<Watch>) {
        let _once = self.watch.set(Arc::clone(watch));
    }

    /// Bytes so far, both directions.
    pub fn bytes(&self) -> u64 {
        self.watch.get().map_or_else(|| self.piped.load(Ordering::Relaxed), |watch| watch.bytes())
    }
}

impl Watch {
    /// Bytes so far, both directions.
    pub(super) fn bytes(&self) -> u64 {
        self.a_to_b.load(Ordering::Relaxed) + self.b_to_a.load(Ordering::Relaxed)
    }

    /// Lets a look wake this task; says whether one has found it idle.
    pub(super) fn is_idle(&self, cx: &std::task::Context<'_>) -> bool {
        self.waker.register(cx.waker());
        self.idle.load(Ordering::Acquire) != 0
    }
}

/// A stream in the count of open ones.
struct Open<'a> {
    plane: &'a Plane,
    a: Kind,
    b: Kind,
}

impl<'a> Open<'a> {
    fn new(plane: &'a Plane, a: Kind, b: Kind) -> Self {
        plane.metrics().session_began(a, b);
        Self { plane, a, b }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.plane.metrics().session_ended(self.a, self.b);
    }
}

/// The runtime's clock, which tests may pause.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
