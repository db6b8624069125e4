//! Who is reachable, under floods and over restarts.

use super::*;

fn full(text: &str) -> FullJid {
    FullJid::new(text).unwrap()
}

fn bare(text: &str) -> BareJid {
    BareJid::new(text).unwrap()
}

fn drain(presences: &mut Presences) -> Vec<Change> {
    std::iter::from_fn(|| presences.poll_change()).collect()
}

fn remember(jid: &str, priority: i8, is_new: bool) -> Change {
    Change::Remember { jid: Arc::new(full(jid)), priority, is_new }
}

fn gone(jid: &str, remembered: bool) -> Change {
    Change::Gone { jid: Arc::new(full(jid)), remembered }
}

#[test]
fn the_highest_priority_is_reached_and_unavailable_ends_it() {
    let now = Instant::now();
    let user = bare("j@c");
    let mut presences = Presences::new();
    assert_eq!(presences.best(&user), None);
    assert_eq!(presences.available(full("j@c/low"), 1, true, now), Ok(true));
    assert_eq!(presences.available(full("j@c/high"), 5, true, now), Ok(false));
    assert_eq!(presences.available(full("j@c/hidden"), -1, true, now), Ok(false));
    assert_eq!(presences.best(&user), Some(&full("j@c/high")));
    assert!(presences.unavailable(&full("j@c/high")));
    assert!(!presences.unavailable(&full("j@c/high")));
    assert_eq!(presences.best(&user), Some(&full("j@c/low")));
    presences.available(full("j@c/late"), 1, true, now).unwrap();
    assert_eq!(presences.best(&user), Some(&full("j@c/late")));
    presences.available(full("j@c/low"), 1, true, now).unwrap();
    assert_eq!(presences.best(&user), Some(&full("j@c/low")), "the latest of equals");
    for jid in ["j@c/low", "j@c/late"] {
        assert!(presences.unavailable(&full(jid)));
    }
    assert_eq!(presences.best(&user), None, "a negative priority is for its own stanzas only");
    assert!(presences.unavailable(&full("j@c/hidden")));
    assert_eq!((presences.bytes(), presences.count()), (0, 0));
}

#[test]
fn no_crowd_of_one_domain_keeps_users_of_another_out() {
    let now = Instant::now();
    let mut presences = Presences::new();
    let flood = |domain: &str, has_access, presences: &mut Presences| {
        let mut taken = 0;
        let resource = "long".repeat(125);
        for number in 0..30_000 {
            let jid = full(&format!("stranger{number}@{domain}/{resource}"));
            taken += usize::from(presences.available(jid, 0, has_access, now).is_ok());
            presences.changes.clear();
        }
        taken
    };
    assert!(flood("evil.test", false, &mut presences) > 1000);
    assert!(flood("worse.example", false, &mut presences) > 1000);
    let guest = full("callee@elsewhere.invalid/x");
    assert_eq!(presences.available(guest, 0, false, now), Ok(true), "a callee without access");
    assert!(flood("crowd.test", true, &mut presences) > 10_000);
    assert_eq!(presences.available(full("b@home.test/x"), 0, true, now), Ok(true), "a user");
    assert!(presences.bytes() <= USERS.total + GUESTS.total);
    assert_eq!(presences.best(&bare("b@home.test")), Some(&full("b@home.test/x")));
}

#[test]
fn all_that_is_kept_stays_below_64_mib() {
    // The longest addresses that there are, and the shortest.
    const { assert!(USERS.total + GUESTS.total < 60 << 20) };
    let now = Instant::now();
    let mut presences = Presences::new();
    let long = "x".repeat(1023);
    for number in 0..12_000 {
        let jid = full(&format!("{long}@d{number}.test/{long}"));
        let _full = presences.available(jid, 0, true, now);
        presences.changes.clear();
    }
    assert!(presences.bytes() <= USERS.total, "{}", presences.bytes());
    assert!(presences.count() < 11_000, "{}", presences.count());
}

#[test]
fn a_user_displaces_nobody_else() {
    let now = Instant::now();
    let mut presences = Presences::new();
    presences.available(full("a@c/x"), 0, true, now).unwrap();
    for number in 0..100 {
        presences.available(full(&format!("b@c/{number}")), 0, true, now).unwrap();
    }
    assert_eq!(presences.all(&bare("b@c")).count(), RESOURCES.0);
    assert_eq!(presences.best(&bare("b@c")), Some(&full("b@c/99")), "its own oldest made room");
    assert_eq!(presences.all(&bare("a@c")).count(), 1);
    for number in 0..100 {
        presences.available(full(&format!("guest@d/{number}")), 0, false, now).unwrap();
    }
    assert_eq!(presences.all(&bare("guest@d")).count(), RESOURCES.1);
}

#[test]
fn what_is_to_be_remembered_is_said_once_and_taken_back() {
    let now = Instant::now();
    let mut presences = Presences::new();
    presences.available(full("a@c/x"), 3, true, now).unwrap();
    presences.available(full("a@c/x"), 3, true, now + AGE).unwrap();
    assert_eq!(drain(&mut presences), [remember("a@c/x", 3, true)]);
    presences.available(full("a@c/x"), 3, true, now + STORE_AGAIN).unwrap();
    assert_eq!(drain(&mut presences), [remember("a@c/x", 3, false)], "an hour");
    presences.available(full("a@c/x"), 4, true, now + STORE_AGAIN).unwrap();
    assert_eq!(drain(&mut presences), [remember("a@c/x", 4, false)]);
    presences.unavailable(&full("a@c/x"));
    assert_eq!(drain(&mut presences), [gone("a@c/x", true)]);
    presences.available(full("guest@d/x"), 0, false, now).unwrap();
    presences.unavailable(&full("guest@d/x"));
    assert_eq!(drain(&mut presences), [gone("guest@d/x", false)], "guests are not remembered");
}

#[test]
fn after_a_restart_those_who_were_reachable_are_and_are_asked() {
    let now = Instant::now();
    let mut presences = Presences::new();
    for jid in ["a@c/there", "a@c/gone", "b@c/silent"] {
        presences.recall(full(jid), 1, now);
    }
    assert_eq!(presences.deadline(), None, "nobody can be asked before the link is up");
    assert!(presences.best(&bare("b@c")).is_some(), "at once");
    presences.link_is_up(now);
    let mut asked = Vec::new();
    let mut at = now;
    while let Some(deadline) = presences.deadline().filter(|at| *at < now + AGAIN) {
        at = deadline.max(at);
        asked.extend(std::iter::from_fn(|| presences.ask(at)).map(|jid| jid.to_string()));
    }
    assert!(at >= now + 2 * PACE, "they are asked one after the other");
    asked.sort_unstable();
    assert_eq!(asked, ["a@c/gone", "a@c/there", "b@c/silent"]);
    presences.answered(&full("a@c/there"), Sign::Here, at);
    presences.answered(&full("a@c/gone"), Sign::Gone, at);
    presences.answered(&full("b@c/silent"), Sign::Silence, at);
    assert_eq!(drain(&mut presences), [gone("a@c/gone", true)]);
    assert_eq!(presences.best(&bare("a@c")), Some(&full("a@c/there")));
    assert!(presences.best(&bare("b@c")).is_some(), "one silence is not enough");
    let later = presences.deadline().unwrap();
    assert_eq!(later, at + AGAIN);
    assert_eq!(presences.ask(later).as_deref(), Some(&full("b@c/silent")));
    presences.answered(&full("b@c/silent"), Sign::Silence, later);
    assert_eq!(presences.best(&bare("b@c")), None);
    assert_eq!(presences.deadline(), Some(at + AGE), "the other one grows old");
}

#[test]
fn who_has_been_heard_of_is_preferred_to_who_was_only_remembered() {
    let now = Instant::now();
    let mut presences = Presences::new();
    presences.recall(full("a@c/old"), 9, now);
    presences.link_is_up(now);
    presences.available(full("a@c/new"), 0, true, now).unwrap();
    assert_eq!(presences.best(&bare("a@c")), Some(&full("a@c/new")));
    presences.answered(&full("a@c/old"), Sign::Here, now);
    assert_eq!(presences.best(&bare("a@c")), Some(&full("a@c/old")));
}

#[test]
fn a_link_that_breaks_while_somebody_is_asked_proves_nothing() {
    let now = Instant::now();
    let mut presences = Presences::new();
    presences.link_is_up(now);
    presences.available(full("a@c/x"), 0, true, now).unwrap();
    let later = now + AGE;
    assert_eq!(presences.ask(later).as_deref(), Some(&full("a@c/x")));
    presences.link_is_down();
    for _ in 0..5 {
        presences.answered(&full("a@c/x"), Sign::Unknown, later);
    }
    assert_eq!(presences.deadline(), None);
    presences.link_is_up(later);
    assert_eq!(presences.deadline(), Some(later));
    assert!(presences.best(&bare("a@c")).is_some());
}
