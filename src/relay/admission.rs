//! A connection's place within the limits of the SOCKS5 port.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::crowd::{AddressSeat, Visitor};

/// A connection's place within the limits.
#[derive(Debug)]
pub(super) struct SocketAdmission {
    connection: ConnectionPlace,
    /// Present until the connection belongs to a user's transfer or session; long streams do without.
    unsettled: Option<Box<Unsettled>>,
}

/// One of all connections: a permit, in half of its memory. It is freed on drop.
#[derive(Debug)]
pub(super) struct ConnectionPlace(Arc<Semaphore>);

impl From<OwnedSemaphorePermit> for ConnectionPlace {
    fn from(permit: OwnedSemaphorePermit) -> Self {
        debug_assert_eq!(permit.num_permits(), 1);
        let place = Self(Arc::clone(permit.semaphore()));
        permit.forget();
        place
    }
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        self.0.add_permits(1);
    }
}

#[derive(Debug)]
struct Unsettled {
    /// Until the handshake is over.
    visitor: Option<Visitor>,
    /// Present while the connection counts against its address.
    seat: Option<AddressSeat>,
    /// The most seats of its address.
    seats: usize,
}

impl SocketAdmission {
    /// Creates the admission of a connection in its handshake, whose address may have so many `seats`.
    pub(super) fn new(connection: OwnedSemaphorePermit, visitor: Visitor, seats: usize) -> Self {
        let unsettled = Unsettled { visitor: Some(visitor), seat: None, seats };
        Self { connection: connection.into(), unsettled: Some(Box::new(unsettled)) }
    }

    pub(super) fn take_seat(&mut self) -> bool {
        let Some(unsettled) = &mut self.unsettled else { return true };
        if let Some(visitor) = unsettled.visitor.as_ref().filter(|_| unsettled.seat.is_none()) {
            unsettled.seat = visitor.seat(unsettled.seats);
        }
        unsettled.seat.is_some()
    }

    pub(super) fn arrived(&mut self) {
        if let Some(unsettled) = &mut self.unsettled {
            unsettled.visitor = None;
        }
    }

    pub(super) fn settle(&mut self) {
        self.unsettled = None;
    }

    /// Returns the place among all connections alone.
    pub(super) fn into_place(self) -> ConnectionPlace {
        self.connection
    }
}
