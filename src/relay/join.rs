//! Joins two legs of any kind.

use fingerpost_carry::leg_end::LegEnd;
use fingerpost_wire::transport_kind::TransportKind;

use super::{
    pair::Relay,
    pipe::{self, StreamOptions, StreamOutcome},
    plane::Plane,
    socket::SocketLeg,
    watch::StreamProgress,
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
            let relay = Box::pin(Relay::new(a, b, plane.clone(), options));
            progress.follow(relay.watch());
            relay.await
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
    plane.ended(outcome.end);
    outcome
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
