//! Measures the cost of idle pairs.

use std::time::Duration;

use super::relays::{Relay, kib};

/// How long a relay may take to settle.
const SETTLE: Duration = Duration::from_millis(1500);

/// The cost of one idle pair.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    /// Resident bytes of the relay.
    pub(crate) user: f64,
    /// Bytes of the kernel's slabs, including both users' ends.
    pub(crate) kernel: f64,
    /// The relay's descriptors.
    pub(crate) descriptors: f64,
}

/// Creates so many pairs and leaves them idle.
pub(crate) fn run(relay: &Relay, pairs: usize) -> Figure {
    // Memory that a relay allocates once does not belong to a pair.
    drop(relay.connect(64));
    std::thread::sleep(SETTLE);
    let before = state(relay);
    let ends = relay.connect(pairs);
    std::thread::sleep(SETTLE);
    let after = state(relay);
    drop(ends);
    std::thread::sleep(SETTLE);
    let each = |n: usize| (after[n] - before[n]) / pairs as f64;
    Figure { user: each(0), kernel: each(1), descriptors: each(2) }
}

fn state(relay: &Relay) -> [f64; 3] {
    let ids = relay.processes();
    let descriptors =
        ids.iter().map(|id| std::fs::read_dir(format!("/proc/{id}/fd")).map_or(0, Iterator::count));
    [relay.resident(), kib("/proc/meminfo", "Slab:"), descriptors.sum::<usize>() as f64]
}
