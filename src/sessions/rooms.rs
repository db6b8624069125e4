//! The domains that are known to host chat rooms.

use std::time::Duration;

use hashlink::LruCache;
use tokio::time::Instant;

/// How long it stays known that a domain hosts chat rooms, that it does not, and that it does not say.
pub(super) const ROOMS: [Duration; 3] =
    [Duration::from_secs(3600), Duration::from_secs(600), Duration::from_secs(10)];

/// The most domains for which that is known.
pub(super) const DOMAINS: usize = 1000;

/// The domains that are known to host chat rooms (XEP-0045) or not, and until when that is valid.
#[derive(Debug)]
pub(super) struct Rooms(pub(super) LruCache<String, (Instant, bool)>);

impl Default for Rooms {
    fn default() -> Self {
        Self(LruCache::new(DOMAINS))
    }
}
