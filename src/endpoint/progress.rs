//! What moves on a session's stream, so that a slow peer is not taken for a dead one.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// The progress of one stream, told by the stream and asked by its session.
#[derive(Debug)]
pub(super) struct Progress(Mutex<State>);

#[derive(Debug)]
struct State {
    /// When a byte last moved, or the stream began to wait for the network.
    moved: Instant,
    received: u64,
    /// Its user waits for bytes of the peer.
    reading: bool,
    /// Its user waits for room for its own.
    writing: bool,
    /// The peer has ended its direction.
    ended: bool,
}

/// The direction of bytes on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    In,
    Out,
}

impl Default for Progress {
    fn default() -> Self {
        Self(Mutex::new(State {
            moved: Instant::now(),
            received: 0,
            reading: false,
            writing: false,
            ended: false,
        }))
    }
}

impl Progress {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that bytes moved.
    pub(super) fn moved(&self, direction: Direction, bytes: usize) {
        let mut state = self.lock();
        state.moved = Instant::now();
        match direction {
            Direction::In => {
                state.reading = false;
                state.received = state.received.saturating_add(bytes as u64);
            }
            Direction::Out => state.writing = false,
        }
    }

    /// Notes that the stream's user waits for the network.
    pub(super) fn waits(&self, direction: Direction) {
        let mut state = self.lock();
        let waiting = match direction {
            Direction::In => &mut state.reading,
            Direction::Out => &mut state.writing,
        };
        if !std::mem::replace(waiting, true) {
            state.moved = Instant::now();
        }
    }

    /// Notes that the peer has ended its direction.
    pub(super) fn ended(&self) {
        let mut state = self.lock();
        state.moved = Instant::now();
        (state.reading, state.ended) = (false, true);
    }

    /// How many bytes have come from the peer.
    pub(super) fn received(&self) -> u64 {
        self.lock().received
    }

    /// When a byte last moved, or the stream began to wait for one; `None` while the stream's user is busy with what it
    /// has read, which may take as long as it likes.
    fn quiet_since(&self) -> Option<Instant> {
        let state = self.lock();
        (state.reading || state.writing || state.ended).then_some(state.moved)
    }

    /// Whether nothing has moved for so long.
    pub(super) fn is_quiet(&self, limit: Duration) -> bool {
        self.quiet_since().is_some_and(|since| since + limit <= Instant::now())
    }

    /// Waits until nothing has moved for so long, counted from now at the earliest.
    pub(super) async fn stalled(&self, limit: Duration) {
        let start = Instant::now();
        loop {
            let now = Instant::now();
            match self.quiet_since().map(|since| since.max(start) + limit) {
                Some(end) if end <= now => return,
                Some(end) => sleep_until(end).await,
                None => sleep_until(now + limit).await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    async fn stalls_after(progress: &Progress) -> u64 {
        let start = Instant::now();
        progress.stalled(LIMIT).await;
        start.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_stalls_when_the_network_brings_nothing_and_not_while_its_user_is_busy() {
        let progress = Progress::default();
        progress.waits(Direction::In);
        assert_eq!(stalls_after(&progress).await, 5);
        // Bytes that come move the end; while the user is busy with them there is none.
        progress.moved(Direction::In, 10);
        assert_eq!(progress.received(), 10);
        let busy = async {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            progress.waits(Direction::In);
        };
        let (waited, ()) = tokio::join!(stalls_after(&progress), busy);
        assert!((3605..3611).contains(&waited), "{waited}");
        progress.ended();
        assert!(!progress.is_quiet(LIMIT));
        assert_eq!(stalls_after(&progress).await, 5);
        assert!(progress.is_quiet(LIMIT));
    }
}
