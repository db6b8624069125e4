//! The shared state of all streams of a process: pipes, counters, the rate, and one clock for all of them.

use std::{
    io,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use fingerpost_carry::tcp;
use fingerpost_wire::transport_kind::TransportKind;

use super::{
    clock::now,
    engine::{Engine, OwnedPair, PairId},
    metrics::Metrics,
    pair::Pair,
    pipe::StreamOptions,
    socket::Socket,
    splice::{self, PipePool},
    watch::{CounterRow, StreamOwner},
};

/// The longest pause between two checks of the streams.
const LOOK: Duration = Duration::from_secs(1);

/// The number of checks in one idle time, if that is short.
const LOOKS: u32 = 4;

/// A stream that holds a pipe and moves fewer bytes than this between two looks does not need the pipe.
pub(super) const SLOW: u64 = 64 * 1024;

/// The data plane. Cheap to clone; all clones share the same state.
///
/// Streams between two sockets have no timer of their own: [`Plane::look`] is called every [`Plane::pause`] and ends
/// those that were idle for too long. It costs one pass over their counters.
#[derive(Clone, Debug)]
pub struct Plane {
    shared: Arc<PlaneShared>,
}

#[derive(Debug)]
struct PlaneShared {
    resources: Arc<Resources>,
    engine: Engine,
    bytes_per_second: AtomicU64,
    started: Instant,
}

/// What all streams share.
#[derive(Debug)]
pub(super) struct Resources {
    pub(super) pool: PipePool,
    pub(super) metrics: Metrics,
}

impl Resources {
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
        if self.pool.close() {
            tracing::warn!("{}", no_splice(error));
        }
    }
}

impl Plane {
    /// Creates a plane whose streams may move `bytes_per_second` each, both directions together; 0 is any number.
    pub fn new(bytes_per_second: u64) -> Self {
        Self::with_pool(bytes_per_second, PipePool::new())
    }

    pub(super) fn with_pool(bytes_per_second: u64, pool: PipePool) -> Self {
        let resources = Arc::new(Resources { pool, metrics: Metrics::default() });
        Self {
            shared: Arc::new(PlaneShared {
                engine: Engine::new(Arc::clone(&resources)),
                resources,
                bytes_per_second: bytes_per_second.into(),
                started: now(),
            }),
        }
    }

    /// Returns the counters of streams.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.resources.metrics
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
        self.shared.resources.pool.count()
    }

    /// Returns how often a direction of a stream has taken a pipe; if it stays 0, everything is copied.
    pub fn pipes_lent(&self) -> u64 {
        self.shared.resources.pool.lent()
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
            self.shared.resources.pool.close();
            missing.push(no_splice(&error));
        }
        missing.extend(tcp::missing());
        missing
    }

    /// Runs the stream between two sockets; `owner`, which calls it `name`, learns of its end.
    ///
    /// # Errors
    /// The system's, if it cannot begin; then the sockets are closed, and the owner learns nothing.
    pub(super) fn run(
        &self,
        a: Socket,
        b: Socket,
        options: StreamOptions,
        (owner, name): (Weak<dyn StreamOwner>, u32),
    ) -> io::Result<PairId> {
        let now = (Instant::now(), self.millis());
        let pair = Pair::new(a, b, options, self.rate(), now)?;
        self.metrics().session_began(TransportKind::S5b, TransportKind::S5b);
        self.shared.engine.run(OwnedPair { pair, owner, name }).inspect_err(|error| {
            tracing::warn!(%error, "cannot begin a stream");
            self.metrics().session_ended(TransportKind::S5b, TransportKind::S5b);
        })
    }

    /// Returns the counters of a stream that [`Plane::run`] began. Its owner must not have learned yet that it has ended.
    pub(super) fn counters(&self, id: PairId) -> Option<CounterRow> {
        self.shared.engine.counters(id)
    }

    /// Cuts a stream that [`Plane::run`] began; nothing happens if it has ended.
    pub(super) fn cut(&self, id: PairId) {
        self.shared.engine.cut(id);
    }

    /// Looks at every stream between sockets once: ends it if it idles, takes pipes from streams that hardly move if
    /// others need them. Closes spare pipes.
    pub fn look(&self) {
        self.shared.engine.look(self.millis());
        self.shared.resources.pool.trim();
    }

    fn millis(&self) -> u64 {
        let running = now().saturating_duration_since(self.shared.started);
        u64::try_from(running.as_millis()).unwrap_or(u64::MAX)
    }

    #[cfg(test)]
    pub(super) fn resources(&self) -> &Resources {
        &self.shared.resources
    }

    /// Makes every thread of the engine panic.
    #[cfg(test)]
    pub(super) fn break_threads(&self) {
        self.shared.engine.break_threads();
    }

    /// Waits until earlier looks and cuts have been carried out.
    #[cfg(test)]
    pub(super) fn settle(&self) {
        self.shared.engine.settle();
    }
}

fn no_splice(error: &io::Error) -> String {
    format!(
        "splice(2) does not work here ({error}): streams are copied, which takes more processor time; does a seccomp profile \
         forbid it?"
    )
}
