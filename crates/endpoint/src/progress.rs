//! The progress of a session's stream, so that a slow peer is not taken for a dead one.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use fingerpost_wire::ns;
use minidom::Element;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

/// An in-band stream that stands still because one user's client does not answer. Servers keep a client that has lost
/// its connection for some minutes, so that it can resume (XEP-0198).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Waiting {
    /// Whether the peer's client does not answer; if not, the component cannot reach our own.
    pub peer: bool,
    /// How long the stream is kept.
    pub limit: Duration,
}

/// A view of a session's stream for other tasks. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Monitor(pub(super) Arc<Progress>);

impl Monitor {
    /// Returns how many of our bytes have reached the next hop, the component or the peer, as far as it reports.
    pub fn delivered(&self) -> u64 {
        self.0.delivered.load(Ordering::Relaxed)
    }

    /// Returns how many bytes have come from the peer.
    pub fn received(&self) -> u64 {
        self.0.received()
    }

    /// Removes bytes from the count of received ones, because they were not the application's: its framing, for example.
    pub fn discount(&self, bytes: usize) {
        let mut state = self.0.lock();
        state.received = state.received.saturating_sub(bytes as u64);
    }

    /// Returns whether the peer has ended its direction.
    #[cfg(any(test, feature = "testing"))]
    pub fn has_ended(&self) -> bool {
        self.0.has_ended()
    }
}

/// The progress of one stream, which the stream updates and its session reads.
#[derive(Debug)]
pub(super) struct Progress {
    state: Mutex<ProgressState>,
    /// Bytes of the application that the next hop has acknowledged.
    delivered: AtomicU64,
    waiting: watch::Sender<Option<Waiting>>,
}

#[derive(Debug)]
struct ProgressState {
    /// When a byte last moved, or the stream began to wait for the network.
    moved: Instant,
    received: u64,
    /// Whether the stream's user waits for bytes of the peer.
    reading: bool,
    /// Whether the stream's user waits for room for its own bytes.
    writing: bool,
    /// Whether the peer has ended its direction.
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
        let state = ProgressState {
            moved: Instant::now(),
            received: 0,
            reading: false,
            writing: false,
            ended: false,
        };
        Self {
            state: Mutex::new(state),
            delivered: AtomicU64::new(0),
            waiting: watch::Sender::new(None),
        }
    }
}

impl Progress {
    fn lock(&self) -> MutexGuard<'_, ProgressState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how much has arrived.
    pub(super) fn delivered(&self, bytes: u64) {
        self.delivered.fetch_max(bytes, Ordering::Relaxed);
    }

    /// Takes the component's session-info: the stream waits, or continues.
    pub(super) fn heed(&self, jingle: &Element) {
        let news = jingle.children().find(|child| child.has_ns(ns::HINTS));
        let waiting = match news.map(|news| (news.name(), news)) {
            Some(("waiting", news)) => Some(Waiting {
                peer: news.attr("for") != Some("you"),
                limit: Duration::from_secs(
                    news.attr("seconds")
                        .and_then(|text| text.parse::<u32>().ok())
                        .unwrap_or(0)
                        .into(),
                ),
            }),
            Some(("moving", _)) => None,
            _ => return,
        };
        self.waiting.send_if_modified(|known| std::mem::replace(known, waiting) != waiting);
    }

    /// Returns a channel that tells whether the stream waits.
    pub(super) fn waiting(&self) -> watch::Receiver<Option<Waiting>> {
        self.waiting.subscribe()
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

    /// Returns whether the peer has ended its direction.
    pub(super) fn has_ended(&self) -> bool {
        self.lock().ended
    }

    /// Returns how many bytes have come from the peer.
    pub(super) fn received(&self) -> u64 {
        self.lock().received
    }

    /// Returns when a byte last moved, or the stream began to wait for one; `None` while the stream's user is busy with
    /// the bytes that it has read, for which it has unlimited time.
    pub(super) fn quiet_since(&self) -> Option<Instant> {
        let state = self.lock();
        (state.reading || state.writing || state.ended).then_some(state.moved)
    }

    /// Returns whether nothing has moved for this long.
    pub(super) fn is_quiet(&self, limit: Duration) -> bool {
        self.quiet_since().is_some_and(|since| since + limit <= Instant::now())
    }

    /// Waits until nothing has moved for this long, counted from now at the earliest.
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

    #[test]
    fn what_the_component_says_of_a_stream_that_waits_is_read() {
        let progress = Progress::default();
        let mut waiting = progress.waiting();
        let mut tell = |inside: &str| {
            let xml = format!(
                "<jingle xmlns='urn:xmpp:jingle:1' action='session-info'>{inside}</jingle>"
            );
            progress.heed(&xml.parse().unwrap());
            waiting.has_changed().unwrap().then(|| *waiting.borrow_and_update())
        };
        assert_eq!(tell(""), None);
        assert_eq!(tell("<ringing xmlns='urn:xmpp:jingle:apps:rtp:info:1'/>"), None);
        let minutes = |peer| Some(Some(Waiting { peer, limit: Duration::from_secs(300) }));
        let waits =
            |of| format!("<waiting xmlns='urn:fingerpost:xtls:0' for='{of}' seconds='300'/>");
        assert_eq!(tell(&waits("peer")), minutes(true));
        assert_eq!(tell(&waits("peer")), None, "told once");
        assert_eq!(tell(&waits("you")), minutes(false));
        assert_eq!(tell("<moving xmlns='urn:fingerpost:xtls:0'/>"), Some(None));
        let odd = "<waiting xmlns='urn:fingerpost:xtls:0' seconds='-1'/>";
        assert_eq!(tell(odd), Some(Some(Waiting { peer: true, limit: Duration::ZERO })));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_stalls_when_the_network_brings_nothing_and_not_while_its_user_is_busy() {
        let progress = Progress::default();
        progress.waits(Direction::In);
        assert_eq!(stalls_after(&progress).await, 5);
        // New bytes postpone the deadline; while the user is busy with them there is none.
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
