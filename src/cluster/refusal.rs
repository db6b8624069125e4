//! Why a request cannot be handed over. `src/front/refusal.rs` says it to the user.

/// Why a request cannot be handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterRefusal {
    /// Too much waits to be handed over.
    Busy,
    /// No instance leads, or it cannot be reached.
    NoLeader,
    /// The stanza cannot be written.
    Unwritable,
}
