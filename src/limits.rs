//! Rates: a token bucket for each user.

use std::time::Instant;

use hashlink::LruCache;
use jid::BareJid;

use crate::xmpp::jid::identity;

/// Most users whose rates are kept; beyond it the one that has been quiet for longest is forgotten.
const USERS: usize = 100_000;

/// How often each user may do something, on the whole and at once.
#[derive(Debug)]
pub struct Rates {
    per_second: f64,
    burst: f64,
    users: LruCache<BareJid, (f64, Instant)>,
}

impl Rates {
    /// Allows `per_second` requests for each user, with a burst of four seconds' worth; 0 = unlimited.
    pub fn new(per_second: u32) -> Self {
        Self::with_burst(f64::from(per_second), f64::from(per_second) * 4.0)
    }

    /// Allows `per_second` for each user, and `burst` at once.
    pub fn with_burst(per_second: f64, burst: f64) -> Self {
        Self { per_second, burst, users: LruCache::new(USERS) }
    }

    /// Counts one request of `user`; `false` if it is one too many.
    pub fn allow(&mut self, user: &BareJid, now: Instant) -> bool {
        self.take(user, 1.0, now)
    }

    /// Whether `user` may do something more, without counting it.
    pub fn has_room(&mut self, user: &BareJid, now: Instant) -> bool {
        self.take(user, 0.0, now)
    }

    fn take(&mut self, user: &BareJid, cost: f64, now: Instant) -> bool {
        if self.per_second == 0.0 {
            return true;
        }
        let user = identity(user);
        if !self.users.contains_key(&*user) {
            self.users.insert(user.clone().into_owned(), (self.burst, now));
        }
        let Some((tokens, at)) = self.users.get_mut(&*user) else { return false };
        let earned = now.duration_since(*at).as_secs_f64() * self.per_second;
        *tokens = (*tokens + earned).min(self.burst);
        *at = now;
        let allowed = *tokens >= 1.0;
        if allowed {
            *tokens -= cost;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn newcomers_are_let_in_when_there_are_very_many() {
        let mut rates = Rates::new(2);
        let now = Instant::now();
        let user = |n: usize| BareJid::new(&format!("u{n}@b")).unwrap();
        for n in 0..USERS + 1000 {
            assert!(rates.allow(&user(n), now), "{n}");
        }
        assert_eq!(rates.users.len(), USERS);
    }

    #[test]
    fn a_burst_is_allowed_then_the_rate() {
        let mut rates = Rates::new(2);
        let user = BareJid::new("a@b").unwrap();
        let start = Instant::now();
        assert_eq!((0..20).filter(|_| rates.allow(&user, start)).count(), 8);
        let later = start + Duration::from_secs(1);
        assert_eq!((0..20).filter(|_| rates.allow(&user, later)).count(), 2);
    }
}
