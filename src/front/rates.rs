//! Limits on presences and on messages.

use std::time::Instant;

use jid::BareJid;

use crate::limits::{Rate, Rates};

/// The rate of messages to the component of one user, and of all users of one domain.
const CHAT: (Rate, Rate) =
    (Rate { per_second: 1.0, burst: 60.0 }, Rate { per_second: 50.0, burst: 500.0 });

/// Limits on messages to the component.
#[derive(Debug)]
pub(super) struct ChatRates {
    users: Rates,
    domains: Rates,
}

impl ChatRates {
    pub(super) fn new() -> Self {
        Self { users: Rates::at(CHAT.0), domains: Rates::at(CHAT.1) }
    }

    pub(super) fn allow(&mut self, user: &BareJid, now: Instant) -> bool {
        self.users.allow(user, now) && self.domains.allow_domain(user, now)
    }
}

/// The presence rates of one user without access, and of all users without access of one domain.
const GUEST_RATES: (Rate, Rate) =
    (Rate { per_second: 1.0, burst: 4.0 }, Rate { per_second: 50.0, burst: 500.0 });
/// The presence rate of a domain, as a multiple of one user's.
const DOMAIN_RATE: u32 = 500;

/// Limits on presences.
#[derive(Debug)]
pub(super) struct PresenceRates {
    users: [Rates; 2],
    domains: [Rates; 2],
}

impl PresenceRates {
    /// Users with access may send as many presences as requests.
    pub(super) fn new(per_second: u32) -> Self {
        let domain = Rate::per_second(per_second.saturating_mul(DOMAIN_RATE));
        Self {
            users: [Rates::at(GUEST_RATES.0), Rates::new(per_second)],
            domains: [Rates::at(GUEST_RATES.1), Rates::at(domain)],
        }
    }

    pub(super) fn allow(&mut self, user: &BareJid, has_access: bool, now: Instant) -> bool {
        let kind = usize::from(has_access);
        self.users[kind].allow(user, now) && self.domains[kind].allow_domain(user, now)
    }
}
