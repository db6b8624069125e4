//! Joins two legs of any kind.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use fingerpost_carry::leg_end::LegEnd;
use fingerpost_wire::transport_kind::TransportKind;
use futures::future::{BoxFuture, FutureExt as _};
use tokio::sync::oneshot;

use super::{
    engine::PairId,
    pipe::{self, Ended, StreamOptions, StreamOutcome},
    plane::Plane,
    socket::{Socket, SocketLeg},
    watch::{PairProgress, StreamOwner, StreamProgress},
};

/// Joins two legs until both are done, and reports progress meanwhile. Two sockets are joined without copying where
/// possible, other legs with `pipe::relay_at_rate`. The future owns all that it needs, so the task that runs it has no
/// second copy of that.
///
/// # Cancel safety
/// Dropping the future loses what is in flight, so do that only to end both legs.
pub fn join<'a>(
    plane: Plane,
    initiator: SocketLeg,
    responder: SocketLeg,
    options: StreamOptions,
    progress: impl AsRef<StreamProgress> + Send + 'a,
) -> BoxFuture<'a, StreamOutcome> {
    // Each kind has memory of its own size, and no second copy of the legs in a future around it.
    match (initiator, responder) {
        (SocketLeg::Socket(a), SocketLeg::Socket(b)) => {
            let pair = Arc::<PairProgress>::default();
            progress.as_ref().follow(Arc::clone(&pair));
            Box::pin(join_sockets(plane, a, b, options, pair))
        }
        (a, b) => {
            let rate = plane.rate();
            let open = OpenStream::new(plane, a.transport_kind(), b.transport_kind());
            a.arm();
            b.arm();
            let relaying = pipe::relay_at_rate(a, b, options, rate, progress);
            Box::pin(relaying.map(move |outcome| {
                let metrics = open.plane.metrics();
                metrics.moved(open.a, open.b, outcome.a_to_b);
                metrics.moved(open.b, open.a, outcome.b_to_a);
                metrics.ended(outcome.end);
                outcome
            }))
        }
    }
}

async fn join_sockets(
    plane: Plane,
    a: Box<Socket>,
    b: Box<Socket>,
    options: StreamOptions,
    pair: Arc<PairProgress>,
) -> StreamOutcome {
    let (told, end) = oneshot::channel();
    let told = Mutex::new(Some(told));
    let joined = Arc::new(Joined { progress: Arc::clone(&pair), told });
    let failed = |kind| outcome(pair.moved(), Ended::Error(kind));
    let owner = Arc::downgrade(&joined);
    let outcome = match plane.run(*a, *b, options, (owner, 0)) {
        Ok(id) => {
            if let Some(counters) = plane.counters(id) {
                pair.follow(counters);
            }
            let _cut = CutOnDrop { plane: &plane, id };
            // Nobody cuts it while this task waits, so an outcome is told, unless the engine's thread is gone.
            end.await.unwrap_or_else(|_| failed(io::ErrorKind::Other))
        }
        Err(error) => failed(error.kind()),
    };
    plane.metrics().ended(outcome.end);
    outcome
}

/// A pair of sockets whose end a task waits for.
#[derive(Debug)]
struct Joined {
    progress: Arc<PairProgress>,
    told: Mutex<Option<oneshot::Sender<StreamOutcome>>>,
}

impl StreamOwner for Joined {
    fn ended(&self, _: u32, moved: [u64; 2], end: Option<Ended>) {
        self.progress.end(moved);
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (Some(told), Some(end)) = (told, end) {
            // The task may have been dropped.
            let _heard = told.send(outcome(moved, end));
        }
    }
}

fn outcome([a_to_b, b_to_a]: [u64; 2], end: Ended) -> StreamOutcome {
    StreamOutcome { a_to_b, b_to_a, end }
}

/// Cuts a pair when the task that waits for its end is dropped.
struct CutOnDrop<'a> {
    plane: &'a Plane,
    id: PairId,
}

impl Drop for CutOnDrop<'_> {
    fn drop(&mut self) {
        self.plane.cut(self.id);
    }
}

/// A stream's entry in the count of open ones.
struct OpenStream {
    plane: Plane,
    a: TransportKind,
    b: TransportKind,
}

impl OpenStream {
    fn new(plane: Plane, a: TransportKind, b: TransportKind) -> Self {
        plane.metrics().session_began(a, b);
        Self { plane, a, b }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.plane.metrics().session_ended(self.a, self.b);
    }
}
