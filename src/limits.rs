//! Rates: a token bucket for each user.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use jid::BareJid;

/// Most users whose rates are kept; beyond it those that have been quiet are forgotten.
const USERS: usize = 100_000;

/// Requests per second for each user, with a burst of four seconds' worth.
#[derive(Debug)]
pub struct Rates {
    per_second: f64,
    users: HashMap<BareJid, (f64, Instant)>,
}

impl Rates {
    /// Allows `per_second` requests for each user; 0 = unlimited.
    pub fn new(per_second: u32) -> Self {
        Self { per_second: f64::from(per_second), users: HashMap::new() }
    }

    /// Counts one request of `user`; `false` if it is one too many.
    pub fn allow(&mut self, user: &BareJid, now: Instant) -> bool {
        if self.per_second == 0.0 {
            return true;
        }
        let burst = self.per_second * 4.0;
        if self.users.len() >= USERS {
            self.users.retain(|_, (_, at)| now.duration_since(*at) < Duration::from_secs(4));
            if self.users.len() >= USERS {
                return false;
            }
        }
        let (tokens, at) = self.users.entry(user.clone()).or_insert((burst, now));
        *tokens = (*tokens + now.duration_since(*at).as_secs_f64() * self.per_second).min(burst);
        *at = now;
        if *tokens < 1.0 {
            return false;
        }
        *tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
