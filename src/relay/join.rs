//! Joins two legs of any kind.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use fingerpost_carry::leg_end::LegEnd;
use fingerpost_wire::transport_kind::TransportKind;
use tokio::sync::oneshot;

use super::{
    engine::PairId,
    pipe::{self, Ended, StreamOptions, StreamOutcome},
    plane::Plane,
    socket::SocketLeg,
    watch::{Counters, StreamOwner, StreamProgress},
};

/// Joins two legs until both are done, and reports progress meanwhile. Two sockets are joined without copying where
/// possible, other legs with `pipe::relay_at_rate`.
///
/// # Cancel safety
/// Dropping the future loses what is in flight, so do that only to end both legs.
pub async fn join(
    plane: &Plane,
    initiator: SocketLeg,
    responder: SocketLeg,
    options: StreamOptions,
    progress: &StreamProgress,
) -> StreamOutcome {
    let outcome = match (initiator, responder) {
        (SocketLeg::Socket(a), SocketLeg::Socket(b)) => {
            let (told, end) = oneshot::channel();
            let joined =
                Arc::new(Joined { counters: Counters::default(), told: Mutex::new(Some(told)) });
            progress.follow(joined.clone());
            let failed = |kind| joined.counters.outcome(Ended::Error(kind));
            match plane.run(a, b, options, joined.clone()) {
                Ok(id) => {
                    let _cut = CutOnDrop { plane, id };
                    // Nobody cuts it while this task waits, so an outcome is told, unless the engine's thread is gone.
                    end.await.unwrap_or_else(|_| failed(io::ErrorKind::Other))
                }
                Err(error) => failed(error.kind()),
            }
        }
        (a, b) => {
            let open = OpenStream::new(plane, a.transport_kind(), b.transport_kind());
            a.arm();
            b.arm();
            let outcome =
                Box::pin(pipe::relay_at_rate(a, b, options, plane.rate(), progress)).await;
            plane.metrics().moved(open.a, open.b, outcome.a_to_b);
            plane.metrics().moved(open.b, open.a, outcome.b_to_a);
            outcome
        }
    };
    plane.metrics().ended(outcome.end);
    outcome
}

/// A pair of sockets whose end a task waits for.
#[derive(Debug)]
struct Joined {
    counters: Counters,
    told: Mutex<Option<oneshot::Sender<StreamOutcome>>>,
}

impl StreamOwner for Joined {
    fn counters(&self) -> &Counters {
        &self.counters
    }

    fn ended(&self, outcome: Option<StreamOutcome>) {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (Some(told), Some(outcome)) = (told, outcome) {
            // The task may have been dropped.
            let _heard = told.send(outcome);
        }
    }
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
struct OpenStream<'a> {
    plane: &'a Plane,
    a: TransportKind,
    b: TransportKind,
}

impl<'a> OpenStream<'a> {
    fn new(plane: &'a Plane, a: TransportKind, b: TransportKind) -> Self {
        plane.metrics().session_began(a, b);
        Self { plane, a, b }
    }
}

impl Drop for OpenStream<'_> {
    fn drop(&mut self) {
        self.plane.metrics().session_ended(self.a, self.b);
    }
}
