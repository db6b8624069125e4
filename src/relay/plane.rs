//! The shared state of all streams of a process: pipes, counters, the rate, and one clock for all of them.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use fingerpost_carry::tcp;
use fingerpost_wire::transport_kind::TransportKind;

use super::{
    clock::now,
    metrics::{Cause, Metrics, TimeoutPhase},
    pipe::{Ended, PipeAccount},
    splice::{self, PipePool},
    watch::StreamWatch,
};

/// The longest pause between two checks of the streams.
const LOOK: Duration = Duration::from_secs(1);

/// The number of checks in one idle time, if that is short.
const LOOKS: u32 = 4;

/// The data plane. Cheap to clone; all clones share the same state.
///
/// Streams between two sockets have no timer of their own: [`Plane::look`] is called every [`Plane::pause`] and
/// notifies those that were idle for too long. It costs one pass over their counters.
#[derive(Clone, Debug)]
pub struct Plane {
    shared: Arc<PlaneShared>,
}

#[derive(Debug)]
struct PlaneShared {
    pool: PipePool,
    metrics: Metrics,
    bytes_per_second: AtomicU64,
    started: Instant,
    watches: Mutex<Vec<Arc<StreamWatch>>>,
}

/// A stream that holds a pipe and moves fewer bytes than this between two looks does not need the pipe.
const SLOW: u64 = 64 * 1024;

impl Plane {
    /// Creates a plane whose streams may move `bytes_per_second` each, both directions together; 0 is any number.
    pub fn new(bytes_per_second: u64) -> Self {
        Self::with_pool(bytes_per_second, PipePool::new())
    }

    pub(super) fn with_pool(bytes_per_second: u64, pool: PipePool) -> Self {
        Self {
            shared: Arc::new(PlaneShared {
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

    pub(super) fn pool(&self) -> &PipePool {
        &self.shared.pool
    }

    /// Counts why a stream ended.
    pub(super) fn ended(&self, end: Ended) {
        match end {
            Ended::Idle => self.metrics().timed_out(TimeoutPhase::Idle, 1),
            Ended::NotTls => self.metrics().refused(Cause::NotTls),
            // The component, keepalive, or the acknowledgements of an in-band leg found it.
            Ended::Error(io::ErrorKind::TimedOut) => {
                self.metrics().timed_out(TimeoutPhase::Vanished, 1)
            }
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
            watch.look_at(millis, short && moved < SLOW);
        }
        drop(watches);
        self.shared.pool.trim();
    }

    /// Adds what moved since the last look to the counters, and returns how much that is.
    fn count(&self, watch: &StreamWatch, millis: u64) -> u64 {
        let moved = watch.count(millis);
        if moved > 0 {
            self.metrics().moved(TransportKind::S5b, TransportKind::S5b, moved);
        }
        moved
    }

    /// Adds a stream to those that are looked at.
    pub(super) fn watch(&self, idle_timeout: Duration, account: PipeAccount) -> Arc<StreamWatch> {
        let idle_millis = u64::try_from(idle_timeout.as_millis()).unwrap_or(u64::MAX);
        let mut watches = self.lock();
        let watch =
            Arc::new(StreamWatch::new(idle_millis, account, watches.len() as u32, self.millis()));
        watches.push(Arc::clone(&watch));
        drop(watches);
        self.metrics().session_began(TransportKind::S5b, TransportKind::S5b);
        watch
    }

    /// Removes it again.
    pub(super) fn unwatch(&self, watch: &StreamWatch) {
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

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<StreamWatch>>> {
        self.shared.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn no_splice(error: &io::Error) -> String {
    format!(
        "splice(2) does not work here ({error}): streams are copied, which takes more processor time; does a seccomp profile \
         forbid it?"
    )
}

#[cfg(test)]
mod tests {
    use futures::task::noop_waker_ref;

    use super::*;
    use crate::relay::watch::{STILL, StreamNews};

    const IDLE: Duration = Duration::from_secs(600);

    fn news(watch: &StreamWatch) -> StreamNews {
        watch.news(&std::task::Context::from_waker(noop_waker_ref()))
    }

    #[tokio::test(start_paused = true)]
    async fn the_clock_of_idle_streams_goes_on_after_49_days() {
        let wrap = Duration::from_millis(u32::MAX.into());
        let plane = Plane::new(0);
        tokio::time::advance(wrap - IDLE / 4).await;
        let watch = plane.watch(IDLE, PipeAccount::default());
        plane.look();
        tokio::time::advance(IDLE / 2).await;
        plane.look();
        assert_ne!(
            news(&watch),
            StreamNews::Idle,
            "it is beyond the old end of the clock, and not idle"
        );
        watch.a_to_b.store(1, Ordering::Relaxed);
        plane.look();
        tokio::time::advance(IDLE).await;
        plane.look();
        assert_eq!(news(&watch), StreamNews::Idle);
        plane.unwatch(&watch);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_time_of_many_days_is_kept() {
        let days = |days: u64| Duration::from_secs(days * 24 * 3600);
        let plane = Plane::new(0);
        let watch = plane.watch(days(60), PipeAccount::default());
        tokio::time::advance(days(59)).await;
        plane.look();
        assert_ne!(news(&watch), StreamNews::Idle);
        tokio::time::advance(days(1)).await;
        plane.look();
        assert_eq!(news(&watch), StreamNews::Idle);
        plane.unwatch(&watch);
    }

    #[tokio::test(start_paused = true)]
    async fn the_peers_of_a_stream_that_stands_still_are_looked_for_until_nothing_is_on_its_way() {
        let plane = Plane::new(0);
        let watch = plane.watch(IDLE, PipeAccount::default());
        let look = async |after: Duration| {
            tokio::time::advance(after).await;
            plane.look();
            news(&watch)
        };
        let second = Duration::from_secs(1);
        assert_eq!(look(STILL - second).await, StreamNews::None);
        assert_eq!(look(second).await, StreamNews::Still);
        watch.looked(true);
        assert_eq!(look(STILL - second).await, StreamNews::None);
        assert_eq!(look(second).await, StreamNews::Still, "something is on its way to a peer");
        watch.looked(false);
        assert_eq!(
            look(STILL * 3).await,
            StreamNews::None,
            "nothing is, so nothing can be found out"
        );
        watch.b_to_a.store(1, Ordering::Relaxed);
        assert_eq!(look(second).await, StreamNews::None);
        assert_eq!(look(STILL).await, StreamNews::Still, "something has moved since");
        plane.unwatch(&watch);
    }
}
