//! The two users of a session, and a value for each of them.

use std::ops::{Index, IndexMut};

/// One of the two users of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    /// The user that sent the session-initiate; the TLS client.
    Initiator,
    /// The user that received it; the TLS server.
    Responder,
}

impl Side {
    /// Both sides, the initiator first.
    pub(super) const BOTH: [Self; 2] = [Self::Initiator, Self::Responder];

    pub(super) fn other(self) -> Self {
        match self {
            Self::Initiator => Self::Responder,
            Self::Responder => Self::Initiator,
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Initiator => "initiator",
            Self::Responder => "responder",
        }
    }
}

/// A value for each side, indexed by [`Side`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PerSide<T> {
    /// The initiator's.
    pub(crate) initiator: T,
    /// The responder's.
    pub(crate) responder: T,
}

impl<T> PerSide<T> {
    /// Returns the same value for both sides.
    pub(super) fn both(value: T) -> Self
    where
        T: Clone,
    {
        Self { initiator: value.clone(), responder: value }
    }

    /// Returns references to both values, the initiator's first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        [&self.initiator, &self.responder].into_iter()
    }

    /// Returns both values, the initiator's first.
    pub(super) fn to_array(&self) -> [T; 2]
    where
        T: Clone,
    {
        [self.initiator.clone(), self.responder.clone()]
    }

    /// Returns the results of a function for both values.
    pub(super) fn map<U>(self, mut of: impl FnMut(T) -> U) -> PerSide<U> {
        PerSide { initiator: of(self.initiator), responder: of(self.responder) }
    }
}

impl<T> Index<Side> for PerSide<T> {
    type Output = T;

    fn index(&self, side: Side) -> &T {
        match side {
            Side::Initiator => &self.initiator,
            Side::Responder => &self.responder,
        }
    }
}

impl<T> IndexMut<Side> for PerSide<T> {
    fn index_mut(&mut self, side: Side) -> &mut T {
        match side {
            Side::Initiator => &mut self.initiator,
            Side::Responder => &mut self.responder,
        }
    }
}
