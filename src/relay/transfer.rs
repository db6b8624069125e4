//! One mediated transfer (XEP-0065): two connections that named the same hash, then an activation.
//!
//! | state \ input | arrival | activate | deadline |
//! |---|---|---|---|
//! | one side | both sides | refused: `OneSide` | expired |
//! | both sides | refused | active, both handed out | expired |
//! | active | refused | refused: `Active` | (the pipe has its own) |
//!
//! The two sides are alike: only the activation tells which one is the requester, because its sender is part of the
//! hash.

use std::{
    mem,
    time::{Duration, Instant},
};

/// A transfer that is waiting for its second side or for its activation, or is active.
///
/// `C` is a connection; the transfer owns it until [`Transfer::handle_activate`] hands it out. Before that, only the
/// bytes that came with its request are read; the kernel keeps the rest. `now` is monotonic.
///
/// Spec: XEP-0065 1.8.2, section 6 (Mediated Connection).
#[derive(Debug)]
pub struct Transfer<C> {
    state: TransferState<C>,
    deadline: Instant,
    timeout: Duration,
}

#[derive(Debug)]
enum TransferState<C> {
    One(C),
    Both(C, C),
    Active,
}

/// Why a transfer cannot be activated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivateError {
    /// It is active already.
    Active,
    /// Only one side is connected.
    OneSide,
}

impl<C> Transfer<C> {
    /// Creates a transfer with its first connection. It expires `timeout` after the last one unless it is activated.
    pub fn new(first: C, timeout: Duration, now: Instant) -> Self {
        Self { state: TransferState::One(first), deadline: now + timeout, timeout }
    }

    /// Returns whether another connection would be accepted.
    pub fn has_room(&self) -> bool {
        matches!(self.state, TransferState::One(_))
    }

    /// Takes another connection.
    ///
    /// # Errors
    /// Gives a third connection back.
    pub fn handle_arrival(&mut self, connection: C, now: Instant) -> Result<(), C> {
        match mem::replace(&mut self.state, TransferState::Active) {
            TransferState::One(first) => {
                self.state = TransferState::Both(first, connection);
                self.deadline = now + self.timeout;
                Ok(())
            }
            other => {
                self.state = other;
                Err(connection)
            }
        }
    }

    /// Activates the transfer and hands out both connections, in the order of their arrival.
    ///
    /// # Errors
    /// [`ActivateError`]; the transfer stays as it was.
    pub fn handle_activate(&mut self) -> Result<(C, C), ActivateError> {
        match mem::replace(&mut self.state, TransferState::Active) {
            TransferState::Active => Err(ActivateError::Active),
            TransferState::Both(first, second) => Ok((first, second)),
            one @ TransferState::One(_) => {
                self.state = one;
                Err(ActivateError::OneSide)
            }
        }
    }

    /// Gives up the waiting connections, in the order of their arrival.
    pub fn into_connections(self) -> (Option<C>, Option<C>) {
        match self.state {
            TransferState::Active => (None, None),
            TransferState::Both(first, second) => (Some(first), Some(second)),
            TransferState::One(first) => (Some(first), None),
        }
    }

    /// Returns when the transfer expires; `None` once it is active.
    pub fn deadline(&self) -> Option<Instant> {
        (!self.is_active()).then_some(self.deadline)
    }

    /// Returns whether the transfer has waited too long.
    pub fn is_expired(&self, now: Instant) -> bool {
        self.deadline().is_some_and(|deadline| deadline <= now)
    }

    /// Returns whether it has been activated.
    pub fn is_active(&self) -> bool {
        matches!(self.state, TransferState::Active)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    #[test]
    fn third_connection_to_a_hash_is_refused() {
        let now = Instant::now();
        let mut transfer = Transfer::new(1, TIMEOUT, now);
        assert_eq!(transfer.handle_arrival(2, now), Ok(()));
        assert_eq!(transfer.handle_arrival(3, now), Err(3));
        assert_eq!(transfer.handle_activate(), Ok((1, 2)));
        assert_eq!(transfer.handle_arrival(3, now), Err(3));
        assert_eq!(transfer.handle_activate(), Err(ActivateError::Active));
    }

    #[test]
    fn one_side_alone_is_not_activated() {
        let now = Instant::now();
        let mut transfer = Transfer::new(1, TIMEOUT, now);
        assert_eq!(transfer.handle_activate(), Err(ActivateError::OneSide));
        assert_eq!(transfer.handle_arrival(2, now), Ok(()));
        assert_eq!(transfer.handle_activate(), Ok((1, 2)));
    }

    #[test]
    fn an_unactivated_transfer_expires_after_its_last_arrival() {
        let now = Instant::now();
        let mut transfer = Transfer::new(1, TIMEOUT, now);
        let later = now + TIMEOUT / 2;
        assert_eq!(transfer.handle_arrival(2, later), Ok(()));
        assert!(!transfer.is_expired(now + TIMEOUT));
        assert!(transfer.is_expired(later + TIMEOUT));
        assert_eq!(transfer.handle_activate(), Ok((1, 2)));
        assert_eq!(transfer.deadline(), None);
    }
}
