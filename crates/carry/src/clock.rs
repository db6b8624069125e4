//! Wall-clock time as an argument, so that every rule about dates can be tested.

use std::fmt::Debug;

use time::OffsetDateTime;

/// Tells the time of day, UTC.
pub trait Clock: Debug + Send + Sync {
    /// Returns the present moment.
    fn now(&self) -> OffsetDateTime;
}

/// The machine's own clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }
}
