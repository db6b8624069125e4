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
    fmt, mem,
    str::FromStr,
    time::{Duration, Instant},
};

use jid::Jid;
use sha1::{Digest, Sha1};

use crate::xmpp::{jid::respelled, stanza::Refusal};

/// The name of a transfer: SHA-1 of stream id, requester and target, written as 40 lower case hex digits.
///
/// # Security
/// Anyone who knows the hash can connect in the place of a side, so `Debug` does not show it.
///
/// Spec: XEP-0065 1.8.2, section 5.3.2 (Target Connects).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DstAddr([u8; 20]);

impl DstAddr {
    /// Computes the name from the full JIDs as they are written on the wire.
    pub fn compute(sid: &str, requester: &Jid, target: &Jid) -> Self {
        let mut sha1 = Sha1::new();
        sha1.update(sid.as_bytes());
        for jid in [requester, target] {
            let spelled = respelled(jid.as_str());
            sha1.update(spelled.as_deref().unwrap_or(jid.as_str()));
        }
        Self(sha1.finalize().into())
    }
}

impl FromStr for DstAddr {
    type Err = NoDstAddr;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 40 {
            return Err(NoDstAddr);
        }
        let mut hash = [0; 20];
        for (byte, pair) in hash.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            for digit in pair {
                let digit = char::from(*digit).to_digit(16).ok_or(NoDstAddr)?;
                *byte = *byte << 4 | u8::try_from(digit).map_err(|_| NoDstAddr)?;
            }
        }
        Ok(Self(hash))
    }
}

impl fmt::Display for DstAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for DstAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DstAddr(…)")
    }
}

/// The text is not 40 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the destination must be 40 hexadecimal digits")]
pub struct NoDstAddr;

/// A transfer that is waiting for its second side or for its activation, or is active.
///
/// `C` is a connection; the transfer owns it until [`Transfer::handle_activate`] hands it out. Before that, only the
/// bytes that came with its request are read; the kernel keeps the rest. `now` is monotonic.
///
/// Spec: XEP-0065 1.8.2, section 6 (Mediated Connection).
#[derive(Debug)]
pub struct Transfer<C> {
    state: State<C>,
    deadline: Instant,
    timeout: Duration,
}

#[derive(Debug)]
enum State<C> {
    One(C),
    Both(C, C),
    Active,
}

/// Why a transfer cannot be activated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ActivateError {
    /// It is active already.
    #[error("the bytestream is already active")]
    Active,
    /// Only one side is connected.
    #[error("only one side is connected to this bytestream")]
    OneSide,
}

impl From<ActivateError> for Refusal {
    fn from(error: ActivateError) -> Self {
        Self::new("cancel", "not-allowed", error.to_string())
    }
}

impl<C> Transfer<C> {
    /// Creates a transfer with its first connection. It expires `timeout` after the last one unless it is activated.
    pub fn new(first: C, timeout: Duration, now: Instant) -> Self {
        Self { state: State::One(first), deadline: now + timeout, timeout }
    }

    /// Returns whether another connection would be accepted.
    pub fn has_room(&self) -> bool {
        matches!(self.state, State::One(_))
    }

    /// Takes another connection.
    ///
    /// # Errors
    /// Gives a third connection back.
    pub fn handle_arrival(&mut self, connection: C, now: Instant) -> Result<(), C> {
        match mem::replace(&mut self.state, State::Active) {
            State::One(first) => {
                self.state = State::Both(first, connection);
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
        match mem::replace(&mut self.state, State::Active) {
            State::Active => Err(ActivateError::Active),
            State::Both(first, second) => Ok((first, second)),
            one @ State::One(_) => {
                self.state = one;
                Err(ActivateError::OneSide)
            }
        }
    }

    /// Gives up the waiting connections, in the order of their arrival.
    pub fn into_connections(self) -> (Option<C>, Option<C>) {
        match self.state {
            State::Active => (None, None),
            State::Both(first, second) => (Some(first), Some(second)),
            State::One(first) => (Some(first), None),
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
        matches!(self.state, State::Active)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    #[test]
    fn the_hash_is_that_of_sid_requester_and_target() {
        let requester = Jid::new("requester@example.org/foo").unwrap();
        let target = Jid::new("target@example.org/bar").unwrap();
        let hash = DstAddr::compute("mySID", &requester, &target);
        let text = Sha1::digest(b"mySIDrequester@example.org/footarget@example.org/bar")
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect::<String>();
        assert_eq!(hash.to_string(), text);
        assert_eq!(text.to_uppercase().parse(), Ok(hash));
        assert_ne!(hash, DstAddr::compute("mySID", &target, &requester));
        assert!(!format!("{hash:?}").contains(&text[..4]));
    }

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
        assert_eq!(Refusal::from(ActivateError::OneSide).condition, "not-allowed");
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

    proptest! {
        #[test]
        fn any_text_is_a_hash_or_refused(text in "\\PC{0,50}") {
            let _ = text.parse::<DstAddr>();
        }

        #[test]
        fn either_case_is_read_and_lower_case_written(text in "[0-9a-fA-F]{40}") {
            let hash: DstAddr = text.parse().unwrap();
            prop_assert_eq!(hash.to_string(), text.to_lowercase());
        }
    }
}
