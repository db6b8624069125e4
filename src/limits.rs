//! Rates: a token bucket for each user, in bounded memory.
//!
//! A bucket that was not used for as long as it takes to fill is full, so it need not be kept. Buckets live in two
//! generations: after that time the young generation becomes the old one, and the old one is dropped whole.
//!
//! A domain with more active users than its share (as in [`fingerpost_carry::shares`]) has one bucket for all users beyond the
//! share. Names cost nothing: a stranger who uses each name once must not push others out.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    mem,
    time::{Duration, Instant},
};

use fingerpost_wire::jid::identity;
use jid::BareJid;

/// The most users of one generation; about 3 MB.
const USERS: usize = 32_768;
/// The rate of all users beyond a domain's share together, as a multiple of one user's rate.
const CROWD: f64 = 50.0;

/// A rate: requests per second, and requests at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Requests per second; 0 is unlimited.
    pub per_second: f64,
    /// Requests at once, after a pause.
    pub burst: f64,
}

impl Rate {
    /// Creates a rate with a burst of four seconds' worth.
    pub fn per_second(per_second: u32) -> Self {
        let per_second = f64::from(per_second);
        Self { per_second, burst: per_second * 4.0 }
    }

    fn times(self, factor: f64) -> Self {
        Self { per_second: self.per_second * factor, burst: self.burst * factor }
    }
}

/// A token bucket, without a clock: `now` is monotonic.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// Creates a full bucket.
    pub(crate) fn full(rate: Rate, now: Instant) -> Self {
        Self { tokens: rate.burst, at: now }
    }

    /// Adds the tokens of the time since the last call; returns how many there are.
    pub(crate) fn fill(&mut self, rate: Rate, now: Instant) -> f64 {
        let grown = now.saturating_duration_since(self.at).as_secs_f64() * rate.per_second;
        self.tokens = (self.tokens + grown).min(rate.burst);
        self.at = now;
        self.tokens
    }

    /// Removes tokens.
    pub(crate) fn take(&mut self, tokens: f64) {
        self.tokens = (self.tokens - tokens).max(0.0);
    }

    /// Takes `cost` if there is as much, and at least a whole token. A full bucket suffices for any cost.
    fn allow(&mut self, cost: f64, rate: Rate, now: Instant) -> bool {
        let allowed = self.fill(rate, now) >= cost.min(rate.burst).max(1.0);
        if allowed {
            self.take(cost);
        }
        allowed
    }
}

#[derive(Debug, Default)]
struct Generation {
    users: HashMap<u64, Bucket>,
    /// The number of these users by domain.
    domains: HashMap<u64, usize>,
    /// One bucket for each domain that has more users than its share.
    crowds: HashMap<u64, Bucket>,
}

/// A rate for each user.
#[derive(Debug)]
pub struct Rates {
    rate: Rate,
    hasher: RandomState,
    young: Generation,
    old: Generation,
    since: Option<Instant>,
}

impl Rates {
    /// Allows `per_second` requests for each user, with a burst of four seconds' worth; 0 = unlimited.
    pub fn new(per_second: u32) -> Self {
        Self::at(Rate::per_second(per_second))
    }

    /// Allows `per_second` for each user, and `burst` at once.
    pub fn with_burst(per_second: f64, burst: f64) -> Self {
        Self::at(Rate { per_second, burst })
    }

    /// Allows each user this rate.
    pub fn at(rate: Rate) -> Self {
        Self {
            rate,
            hasher: RandomState::new(),
            young: Generation::default(),
            old: Generation::default(),
            since: None,
        }
    }

    /// Counts one request of `user`; returns `false` if it exceeds the rate.
    pub fn allow(&mut self, user: &BareJid, now: Instant) -> bool {
        let user = identity(user);
        self.take(user.as_str(), user.domain().as_str(), 1.0, now)
    }

    /// Counts `number` more requests of `user`, because one costs as much; returns `false` if that exceeds the rate.
    pub fn allow_more(&mut self, user: &BareJid, number: usize, now: Instant) -> bool {
        let user = identity(user);
        // The one that costs more was counted before: after a pause, the rest is what a full bucket has besides.
        let most = (self.rate.burst - 1.0).max(1.0);
        let cost = f64::from(u32::try_from(number).unwrap_or(u32::MAX)).min(most);
        number == 0 || self.take(user.as_str(), user.domain().as_str(), cost, now)
    }

    /// Returns whether `user` may send one more request, without counting it.
    pub fn has_room(&mut self, user: &BareJid, now: Instant) -> bool {
        let user = identity(user);
        self.take(user.as_str(), user.domain().as_str(), 0.0, now)
    }

    /// Counts one request against the rate of the whole domain.
    pub fn allow_domain(&mut self, user: &BareJid, now: Instant) -> bool {
        let user = identity(user);
        let domain = user.domain().as_str();
        self.take(domain, domain, 1.0, now)
    }

    fn take(&mut self, name: &str, domain: &str, cost: f64, now: Instant) -> bool {
        let rate = self.rate;
        if rate.per_second == 0.0 {
            return true;
        }
        self.grow_old(now);
        let (key, domain) = (self.hasher.hash_one(name), self.hasher.hash_one(domain));
        if let Some(bucket) = self.young.users.get_mut(&key) {
            return bucket.allow(cost, rate, now);
        }
        let full = |rate| Bucket::full(rate, now);
        let count = self.young.domains.get(&domain).copied().unwrap_or(0);
        if count < USERS.saturating_sub(self.young.users.len()) {
            self.young.domains.insert(domain, count + 1);
            let bucket = self.old.users.remove(&key).unwrap_or_else(|| full(rate));
            return self.young.users.entry(key).or_insert(bucket).allow(cost, rate, now);
        }
        let rate = rate.times(CROWD);
        // So many domains at once share one entry.
        let domain = if self.young.crowds.len() < USERS { domain } else { 0 };
        let bucket = self.old.crowds.remove(&domain).unwrap_or_else(|| full(rate));
        self.young.crowds.entry(domain).or_insert(bucket).allow(cost, rate, now)
    }

    /// Drops the buckets that have had time to fill.
    fn grow_old(&mut self, now: Instant) {
        let life = Duration::from_secs_f64(self.rate.burst / self.rate.per_second);
        let since = *self.since.get_or_insert(now);
        let age = now.saturating_duration_since(since);
        if age < life {
            return;
        }
        self.old = mem::take(&mut self.young);
        if age >= 2 * life {
            self.old = Generation::default();
        }
        self.since = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(number: usize, domain: &str) -> BareJid {
        BareJid::new(&format!("u{number}@{domain}")).unwrap()
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

    #[test]
    fn what_costs_as_much_as_several_requests_counts_as_several() {
        let mut rates = Rates::new(2);
        let user = BareJid::new("a@b").unwrap();
        let start = Instant::now();
        assert!(rates.allow_more(&user, 5, start));
        assert!(!rates.allow_more(&user, 5, start), "three are left");
        assert!(rates.allow_more(&user, 0, start) && rates.allow_more(&user, 3, start));
        assert!(!rates.allow(&user, start) && rates.allow_more(&user, 0, start));
        // Even the most expensive one is allowed after a pause.
        let later = start + Duration::from_secs(4);
        assert!(rates.allow(&user, later) && rates.allow_more(&user, 1000, later));
        assert!(!rates.allow(&user, later));
    }

    #[test]
    fn a_bucket_that_is_in_use_outlives_its_generation() {
        let mut rates = Rates::new(2);
        let user = user(0, "a.test");
        let start = Instant::now();
        let mut allowed = 0;
        for tenths in 0..600 {
            let now = start + Duration::from_millis(tenths * 100);
            allowed += (0..5).filter(|_| rates.allow(&user, now)).count();
        }
        // 60 seconds at 2 per second, and the burst.
        assert!((126..=128).contains(&allowed), "{allowed}");
    }

    #[test]
    fn a_domain_with_any_number_of_names_is_limited_and_others_are_served() {
        let mut rates = Rates::new(2);
        let now = Instant::now();
        let allowed =
            (0..200_000).filter(|number| rates.allow(&user(*number, "evil.test"), now)).count();
        assert!(allowed < USERS, "{allowed}");
        assert_eq!((0..20).filter(|_| rates.allow(&user(0, "good.test"), now)).count(), 8);
        assert!(rates.young.users.len() <= USERS && rates.young.crowds.len() <= USERS);
        let later = now + Duration::from_secs(8);
        assert!(rates.allow(&user(0, "good.test"), later));
        assert_eq!((rates.young.users.len(), rates.old.users.len()), (1, 0));
    }

    #[test]
    fn a_domain_has_a_rate_of_its_own() {
        let mut rates = Rates::at(Rate { per_second: 1.0, burst: 3.0 });
        let now = Instant::now();
        let allow = |rates: &mut Rates, domain| {
            (0..9).filter(|n| rates.allow_domain(&user(*n, domain), now)).count()
        };
        assert_eq!(allow(&mut rates, "a.test"), 3);
        assert_eq!(allow(&mut rates, "b.test"), 3);
    }
}
