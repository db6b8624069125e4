//! The time by which streams and transfers are judged.

use std::time::Instant;

/// Returns the runtime's clock, which tests may pause.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
