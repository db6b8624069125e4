//! Places that many users share. Each user has a limit, and no domain takes what others need.
//!
//! A domain may hold at most `slope` times as much as is still free, and the registered domain above it (its last two
//! labels) at most four times that. A domain that is alone gets `slope / (slope + 1)` of all places. Whatever the first
//! domains do, some places stay free for the next one, and nobody's place is ever taken away.
//!
//! Users and domains are kept as keyed hashes: addresses of 2 kB cost no more than short ones, and nobody can choose
//! two that collide.

use std::{
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use fingerpost_wire::jid::identity;
use jid::BareJid;

use crate::rows::{Row, Rows};

/// How many places all users, one user, and one domain may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// All users together.
    pub total: usize,
    /// One user (bare JID).
    pub per_user: usize,
    /// How many times the free places one domain may hold.
    pub slope: usize,
}

impl Limits {
    /// Limits with the given total, share of a user, and slope.
    pub const fn new(total: usize, per_user: usize, slope: usize) -> Self {
        Self { total, per_user, slope }
    }

    /// Returns whether a domain (or its registered domain) with `held` places leaves enough free, when `taken` are
    /// taken in all. A total so small that a domain's share would be less than one place is not divided.
    fn leaves_room(&self, slope: usize, held: usize, taken: usize) -> bool {
        self.total < 2 * self.slope || held <= slope.saturating_mul(self.total - taken)
    }
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// All places are taken.
    #[error("all places are taken")]
    All,
    /// The user's domain has used its share.
    #[error("the domain has its share")]
    Domain,
    /// The user has used its share.
    #[error("the user has its share")]
    User,
}

/// Places that were taken and must be given back to the shares that gave them.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a place that is not given back is lost"]
pub struct Place {
    /// The number of the user's row.
    user: u32,
    weight: NonZeroU32,
}

/// The places that each user and each domain holds.
#[derive(Debug, Default)]
pub struct Shares {
    hasher: RandomState,
    taken: usize,
    /// The row above a user's is its domain's.
    users: Rows<Holder>,
    /// The row above a domain's is its registered domain's.
    domains: Rows<Holder>,
    /// By registered domain.
    above: Rows<Holder>,
}

/// A user, a domain or a registered domain that holds places.
#[derive(Debug)]
struct Holder {
    /// The keyed hash of its name.
    name: u64,
    held: NonZeroU32,
    /// The number of the row above, where there is one.
    above: u32,
}

impl Row for Holder {
    type Key = u64;

    fn key(&self) -> &u64 {
        &self.name
    }
}

impl Shares {
    /// Takes `weight` places for `user`, at least one. All together never hold more than [`u32::MAX`].
    ///
    /// # Errors
    /// [`Full`]
    pub fn take(&mut self, user: &BareJid, weight: usize, limits: &Limits) -> Result<Place, Full> {
        let user = identity(user);
        let domain = user.domain().as_str();
        let [name, domain, above] =
            [user.as_str(), domain, registered(domain)].map(|name| self.hasher.hash_one(name));
        let (user, held) = look_up(&self.users, name);
        let (its_domain, held_domain) = look_up(&self.domains, domain);
        let (its_above, held_above) = look_up(&self.above, above);
        let weight = self.admit(weight, [held, held_domain, held_above], limits)?;
        let above = add(&mut self.above, its_above, Holder { name: above, held: weight, above: 0 });
        let domain =
            add(&mut self.domains, its_domain, Holder { name: domain, held: weight, above });
        let user = add(&mut self.users, user, Holder { name, held: weight, above: domain });
        Ok(Place { user, weight })
    }

    /// Takes `weight` more places for the user that has a place.
    ///
    /// # Errors
    /// [`Full`]
    fn take_more(&mut self, place: &Place, weight: usize, limits: &Limits) -> Result<Place, Full> {
        let of = |rows: &Rows<Holder>, number| rows.get(number).map(|row| (row.held, row.above));
        let (held, domain) = of(&self.users, place.user).ok_or(Full::User)?;
        let (held_domain, above) = of(&self.domains, domain).ok_or(Full::Domain)?;
        let (held_above, _) = of(&self.above, above).ok_or(Full::Domain)?;
        let held = [held, held_domain, held_above].map(|held| held.get() as usize);
        let weight = self.admit(weight, held, limits)?;
        let rows =
            [(&mut self.users, place.user), (&mut self.domains, domain), (&mut self.above, above)];
        for (rows, number) in rows {
            if let Some(row) = rows.get_mut(number) {
                row.held = row.held.saturating_add(weight.get());
            }
        }
        Ok(Place { user: place.user, weight })
    }

    /// Counts `weight` more places as taken, if a user, its domain and its registered domain may have them that hold so many
    /// places.
    fn admit(
        &mut self,
        weight: usize,
        [user, domain, above]: [usize; 3],
        limits: &Limits,
    ) -> Result<NonZeroU32, Full> {
        if user.saturating_add(weight) > limits.per_user {
            return Err(Full::User);
        }
        let weight = NonZeroU32::new(u32::try_from(weight).map_err(|_| Full::All)?);
        let weight = weight.unwrap_or(NonZeroU32::MIN);
        let places = weight.get() as usize;
        let taken = self.taken.saturating_add(places);
        if taken > limits.total.min(u32::MAX as usize) {
            return Err(Full::All);
        }
        if !limits.leaves_room(limits.slope, domain + places, taken)
            || !limits.leaves_room(4 * limits.slope, above + places, taken)
        {
            return Err(Full::Domain);
        }
        self.taken = taken;
        Ok(weight)
    }

    /// Gives the places back.
    pub fn give_back(&mut self, place: &Place) {
        let domain = subtract(&mut self.users, Some(place.user), place.weight);
        let above = subtract(&mut self.domains, domain, place.weight);
        subtract(&mut self.above, above, place.weight);
        self.taken -= place.weight.get() as usize;
    }

    /// Returns how much is taken.
    pub fn taken(&self) -> usize {
        self.taken
    }
}

/// Returns the number of a holder's row, and how many places it has.
fn look_up(rows: &Rows<Holder>, name: u64) -> (Option<u32>, usize) {
    let found = rows.find(&name);
    let held = found.and_then(|number| rows.get(number)).map_or(0, |row| row.held.get() as usize);
    (found, held)
}

/// Adds the places of a holder to the row that it has, or its row. Returns the number of the row.
fn add(rows: &mut Rows<Holder>, found: Option<u32>, holder: Holder) -> u32 {
    let Some(number) = found else { return rows.insert(holder) };
    if let Some(row) = rows.get_mut(number) {
        row.held = row.held.saturating_add(holder.held.get());
    }
    number
}

/// Subtracts places of a holder, and returns the number of the row above.
fn subtract(rows: &mut Rows<Holder>, number: Option<u32>, weight: NonZeroU32) -> Option<u32> {
    let number = number?;
    let row = rows.get_mut(number)?;
    let above = row.above;
    match NonZeroU32::new(row.held.get().saturating_sub(weight.get())) {
        Some(left) => row.held = left,
        None => drop(rows.remove(number)),
    }
    Some(above)
}

/// Returns the last two labels of a domain: its owner may have any number of names below it.
pub fn registered(domain: &str) -> &str {
    if domain.starts_with('[') || domain.parse::<IpAddr>().is_ok() {
        return domain;
    }
    match domain.rmatch_indices('.').nth(1) {
        Some((dot, _)) => &domain[dot + 1..],
        None => domain,
    }
}

/// [`Shares`] for tasks. Cheap to clone; all clones share the same places.
#[derive(Clone, Debug)]
pub struct Permits {
    held: Arc<Mutex<Held>>,
}

#[derive(Debug)]
struct Held {
    limits: Limits,
    shares: Shares,
}

impl Permits {
    /// Creates permits with all places free.
    pub fn new(limits: Limits) -> Self {
        Self { held: Arc::new(Mutex::new(Held { limits, shares: Shares::default() })) }
    }

    /// Sets other limits for places that are taken from now on.
    pub fn set_limits(&self, limits: Limits) {
        self.lock().limits = limits;
    }

    /// Takes `weight` places for `user`, until the permit is dropped.
    ///
    /// # Errors
    /// [`Full`]
    pub fn take(&self, user: &BareJid, weight: usize) -> Result<Permit, Full> {
        let mut held = self.lock();
        let limits = held.limits;
        let place = held.shares.take(user, weight, &limits)?;
        drop(held);
        Ok(Permit { permits: self.clone(), place })
    }

    /// Returns how much is taken.
    pub fn taken(&self) -> usize {
        self.lock().shares.taken()
    }

    /// Never held over an `.await`.
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Places that are given back when the permit is dropped.
#[derive(Debug)]
#[must_use = "a dropped permit is given back"]
pub struct Permit {
    permits: Permits,
    place: Place,
}

impl Permit {
    /// Takes `weight` more places for the same user, until the new permit is dropped.
    ///
    /// # Errors
    /// [`Full`]
    pub fn more(&self, weight: usize) -> Result<Self, Full> {
        let mut held = self.permits.lock();
        let limits = held.limits;
        let place = held.shares.take_more(&self.place, weight, &limits)?;
        drop(held);
        Ok(Self { permits: self.permits.clone(), place })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.permits.lock().shares.give_back(&self.place);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn user(number: usize, domain: &str) -> BareJid {
        BareJid::new(&format!("u{number}@{domain}")).unwrap()
    }

    fn fill(shares: &mut Shares, domain: &str, limits: &Limits) -> usize {
        (0..limits.total).filter(|n| shares.take(&user(*n, domain), 1, limits).is_ok()).count()
    }

    #[test]
    fn a_domain_leaves_room_for_the_next_however_many_came_before() {
        let limits = Limits::new(1000, 4, 1);
        let mut shares = Shares::default();
        let mut last = limits.total;
        for domain in ["a.test", "b.example", "c.invalid", "d.org", "e.net", "f.com"] {
            let got = fill(&mut shares, domain, &limits);
            assert!(got > 0 && got <= last, "{domain} got {got}");
            last = got;
        }
        assert_eq!(Shares::default().take(&user(0, "a.test"), 1001, &limits), Err(Full::User));
    }

    #[test]
    fn any_number_of_names_below_one_domain_leave_room_for_another() {
        let limits = Limits::new(1000, 4, 1);
        let mut shares = Shares::default();
        for number in 0..2000 {
            let _taken = shares.take(&user(0, &format!("d{number}.evil.test")), 1, &limits);
        }
        assert_eq!(shares.taken(), 800);
        assert_eq!(fill(&mut shares, "good.example", &limits), 100);
    }

    #[test]
    fn a_user_has_a_share_and_few_places_are_not_shared_out() {
        let limits = Limits::new(4, 3, 16);
        let mut shares = Shares::default();
        let mine: Vec<Place> =
            (0..3).map(|_| shares.take(&user(0, "a.test"), 1, &limits).unwrap()).collect();
        assert_eq!(shares.take(&user(0, "a.test"), 1, &limits), Err(Full::User));
        let _other = shares.take(&user(1, "a.test"), 1, &limits).unwrap();
        assert_eq!(shares.take(&user(2, "b.test"), 1, &limits), Err(Full::All));
        shares.give_back(&mine[0]);
        assert!(shares.take(&user(2, "b.test"), 1, &limits).is_ok());
    }

    #[test]
    fn a_dropped_permit_is_given_back() {
        let permits = Permits::new(Limits::new(64, 1, 1));
        let permit = permits.take(&user(0, "a.test"), 1).unwrap();
        assert_eq!(permits.take(&user(0, "a.test"), 1).unwrap_err(), Full::User);
        drop(permit);
        assert!(permits.take(&user(0, "a.test"), 1).is_ok());
        assert_eq!(permits.taken(), 0);
    }

    #[test]
    fn a_permit_gets_more_for_its_user_within_the_same_limits() {
        let permits = Permits::new(Limits::new(64, 5, 16));
        let permit = permits.take(&user(0, "a.test"), 2).unwrap();
        let more = permit.more(3).unwrap();
        assert_eq!(permit.more(1).unwrap_err(), Full::User);
        assert_eq!(permits.take(&user(0, "a.test"), 1).unwrap_err(), Full::User);
        drop(permit);
        assert_eq!(permits.taken(), 3);
        assert_eq!(more.more(2).unwrap().more(1).unwrap_err(), Full::User);
        let others: Vec<Permit> =
            (1..).map_while(|n| permits.take(&user(n, "a.test"), 1).ok()).collect();
        assert_eq!(more.more(1).unwrap_err(), Full::Domain, "the rest is for other domains");
        drop((more, others));
        assert_eq!(permits.taken(), 0);
        let held = permits.lock();
        assert!(held.shares.users.is_empty() && held.shares.domains.is_empty());
    }

    #[test]
    fn a_place_takes_few_bytes() {
        assert_eq!(size_of::<Place>(), 8);
        assert_eq!(
            size_of::<Option<Holder>>(),
            16,
            "a row that is free needs no more than a used one"
        );
    }

    #[test]
    fn the_registered_domain_is_the_last_two_labels() {
        for (domain, above) in [
            ("example.org", "example.org"),
            ("a.b.example.org", "example.org"),
            ("localhost", "localhost"),
            ("192.0.2.7", "192.0.2.7"),
            ("[2001:db8::7]", "[2001:db8::7]"),
        ] {
            assert_eq!(registered(domain), above);
        }
    }

    proptest! {
        #[test]
        fn what_is_given_back_was_never_taken(
            takes in proptest::collection::vec((0usize..5, 0usize..4, 1usize..9), 0..200)
        ) {
            let limits = Limits::new(200, 40, 2);
            let mut shares = Shares::default();
            let mut held: Vec<Place> = Vec::new();
            for (n, domain, weight) in takes {
                let who = user(n, &format!("d{domain}.test"));
                match shares.take(&who, weight, &limits) {
                    Ok(place) => held.push(place),
                    Err(_) if n % 2 == 0 => held.pop().iter().for_each(|p| shares.give_back(p)),
                    Err(_) => {}
                }
                prop_assert_eq!(shares.taken(), held.iter().map(|p| p.weight.get() as usize).sum::<usize>());
                prop_assert!(shares.taken() <= limits.total);
            }
            held.iter().for_each(|place| shares.give_back(place));
            prop_assert_eq!(shares.taken(), 0);
            prop_assert!(shares.users.is_empty() && shares.domains.is_empty());
            prop_assert!(shares.above.is_empty());
        }
    }
}
