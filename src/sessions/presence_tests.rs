//! Reachable resources under floods and over restarts.

use super::*;

fn full(text: &str) -> FullJid {
    FullJid::new(text).unwrap()
}

fn bare(text: &str) -> BareJid {
    BareJid::new(text).unwrap()
}

/// Returns the resource that is first in order.
fn best<'a>(presences: &'a Presences, user: &BareJid) -> Option<&'a FullJid> {
    let user = presences.user(user.as_str());
    let resources = presences.users.get(&user).into_iter().flatten();
    resources
        .filter(|resource| resource.priority >= 0)
        .max_by_key(|resource| (resource.silent.is_none(), resource.confirmed, resource.priority))
        .map(|resource| &*resource.jid)
}

fn drain(presences: &mut Presences) -> Vec<PresenceChange> {
    std::iter::from_fn(|| presences.poll_change()).collect()
}

fn remember(jid: &str, priority: i8, is_new: bool) -> PresenceChange {
    PresenceChange::Remember { jid: Arc::new(full(jid)), priority, is_new }
}

fn gone(jid: &str, remembered: bool) -> PresenceChange {
    PresenceChange::Gone { jid: Arc::new(full(jid)), remembered }
}

#[test]
fn the_highest_priority_is_reached_and_unavailable_ends_it() {
    let now = Instant::now();
    let user = bare("j@c");
    let mut presences = Presences::new(Instant::now());
    assert_eq!(best(&presences, &user), None);
    assert_eq!(presences.available(full("j@c/low"), 1, true, now), Ok(true));
    assert_eq!(presences.available(full("j@c/high"), 5, true, now), Ok(false));
    assert_eq!(presences.available(full("j@c/hidden"), -1, true, now), Ok(false));
    assert_eq!(best(&presences, &user), Some(&full("j@c/high")));
    assert!(presences.unavailable(&full("j@c/high")));
    assert!(!presences.unavailable(&full("j@c/high")));
    assert_eq!(best(&presences, &user), Some(&full("j@c/low")));
    presences.available(full("j@c/late"), 1, true, now).unwrap();
    assert_eq!(best(&presences, &user), Some(&full("j@c/late")));
    presences.available(full("j@c/low"), 1, true, now).unwrap();
    assert_eq!(best(&presences, &user), Some(&full("j@c/low")), "the latest of equals");
    for jid in ["j@c/low", "j@c/late"] {
        assert!(presences.unavailable(&full(jid)));
    }
    assert_eq!(best(&presences, &user), None, "a negative priority is for its own stanzas only");
    assert!(presences.unavailable(&full("j@c/hidden")));
    assert_eq!((presences.bytes(), presences.count()), (0, 0));
}

#[test]
fn no_crowd_of_one_domain_keeps_users_of_another_out() {
    let now = Instant::now();
    let mut presences = Presences::new(Instant::now());
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
    assert_eq!(best(&presences, &bare("b@home.test")), Some(&full("b@home.test/x")));
}

#[test]
fn all_that_is_kept_stays_below_64_mib() {
    // The longest possible addresses, and the shortest.
    const { assert!(USERS.total + GUESTS.total < 60 << 20) };
    let now = Instant::now();
    let mut presences = Presences::new(Instant::now());
    let long = "x".repeat(1023);
    for number in 0..12_000 {
        let jid = full(&format!("{long}@d{number}.test/{long}"));
        let _full = presences.available(jid, 0, true, now);
        presences.changes.clear();
    }
    assert!(presences.bytes() <= USERS.total, "{}", presences.bytes());
    assert!(presences.count() < 12_000, "{}", presences.count());
}

#[test]
fn a_user_displaces_nobody_else() {
    let now = Instant::now();
    let mut presences = Presences::new(Instant::now());
    presences.available(full("a@c/x"), 0, true, now).unwrap();
    for number in 0..100 {
        presences.available(full(&format!("b@c/{number}")), 0, true, now).unwrap();
    }
    assert_eq!(presences.all(&bare("b@c")).count(), RESOURCES.0);
    assert_eq!(best(&presences, &bare("b@c")), Some(&full("b@c/99")), "its own oldest made room");
    assert_eq!(presences.all(&bare("a@c")).count(), 1);
    for number in 0..100 {
        presences.available(full(&format!("guest@d/{number}")), 0, false, now).unwrap();
    }
    assert_eq!(presences.all(&bare("guest@d")).count(), RESOURCES.1);
}

#[test]
fn what_is_to_be_remembered_is_said_once_and_taken_back() {
    let now = Instant::now();
    let mut presences = Presences::new(Instant::now());
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
    let mut presences = Presences::new(Instant::now());
    for jid in ["a@c/there", "a@c/gone", "b@c/silent"] {
        presences.recall(full(jid), 1, now);
    }
    assert_eq!(presences.deadline(), None, "no check before the link is up");
    assert!(best(&presences, &bare("b@c")).is_some(), "at once");
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
    presences.answered(&full("a@c/there"), Sign::Here, at, at);
    presences.answered(&full("a@c/gone"), Sign::Gone, at, at);
    presences.answered(&full("b@c/silent"), Sign::Silence, at, at);
    assert_eq!(drain(&mut presences), [gone("a@c/gone", true)]);
    assert_eq!(best(&presences, &bare("a@c")), Some(&full("a@c/there")));
    assert!(best(&presences, &bare("b@c")).is_some(), "one silence is not enough");
    // It is checked every minute for five minutes.
    for n in 1..=5 {
        assert!(best(&presences, &bare("b@c")).is_some(), "{n}");
        let later = presences.deadline().unwrap();
        assert_eq!(later, at + n * AGAIN);
        assert_eq!(presences.ask(later).as_deref(), Some(&full("b@c/silent")));
        presences.answered(&full("b@c/silent"), Sign::Silence, later, later);
    }
    assert_eq!(drain(&mut presences), []);
    let end = presences.deadline().unwrap();
    assert_eq!(end, at + LOST + LATE, "the last answer may be late");
    assert_eq!(presences.ask(end), None);
    assert_eq!(drain(&mut presences), [gone("b@c/silent", true)]);
    assert_eq!(best(&presences, &bare("b@c")), None);
    assert_eq!(presences.deadline(), Some(at + AGE), "the other one grows old");
}

#[test]
fn who_has_been_heard_of_is_preferred_to_who_was_only_remembered() {
    let now = Instant::now();
    let mut presences = Presences::new(Instant::now());
    presences.recall(full("a@c/old"), 9, now);
    presences.link_is_up(now);
    presences.available(full("a@c/new"), 0, true, now).unwrap();
    assert_eq!(best(&presences, &bare("a@c")), Some(&full("a@c/new")));
    presences.answered(&full("a@c/old"), Sign::Here, now, now);
    assert_eq!(best(&presences, &bare("a@c")), Some(&full("a@c/old")));
}

#[test]
fn a_link_that_breaks_while_somebody_is_asked_proves_nothing() {
    let now = Instant::now();
    let mut presences = Presences::new(Instant::now());
    presences.link_is_up(now);
    presences.available(full("a@c/x"), 0, true, now).unwrap();
    let later = now + AGE;
    assert_eq!(presences.ask(later).as_deref(), Some(&full("a@c/x")));
    presences.link_is_down();
    for _ in 0..5 {
        presences.answered(&full("a@c/x"), Sign::Unknown, later, later);
    }
    assert_eq!(presences.deadline(), None);
    presences.link_is_up(later);
    assert_eq!(presences.deadline(), Some(later));
    assert!(best(&presences, &bare("a@c")).is_some());
}

#[test]
fn an_old_error_does_not_remove_a_resource_that_has_sent_something_since() {
    let now = Instant::now();
    for recalled in [false, true] {
        for (sign, type_) in [(Sign::Gone, "gone"), (Sign::Refused, "refused")] {
            let case = format!("{type_}, recalled: {recalled}");
            let mut presences = Presences::new(now);
            match recalled {
                true => presences.recall(full("a@c/x"), 0, now),
                false => drop(presences.available(full("a@c/x"), 0, true, now).unwrap()),
            }
            presences.link_is_up(now);
            let asked = now + SECOND;
            assert_eq!(presences.ask(asked).as_deref(), Some(&full("a@c/x")), "{case}");
            // It comes back, by a presence or any other stanza, while the error is on its way.
            match recalled {
                true => drop(presences.available(full("a@c/x"), 0, true, asked + SECOND).unwrap()),
                false => presences.heard(&Jid::from(full("a@c/x")), asked + SECOND),
            }
            drain(&mut presences);
            presences.answered(&full("a@c/x"), sign, asked, asked + 2 * SECOND);
            assert_eq!(drain(&mut presences), [], "{case}");
            assert_eq!(best(&presences, &bare("a@c")), Some(&full("a@c/x")), "{case}");
            assert_eq!(presences.silent_since(&full("a@c/x")), None, "{case}");
            // It may have gone right after: it is checked again soon, and that answer counts.
            let again = presences.deadline().unwrap();
            assert_eq!(again, asked + 2 * SECOND + LATER, "{case}");
            assert_eq!(presences.ask(again).as_deref(), Some(&full("a@c/x")), "{case}");
            presences.answered(&full("a@c/x"), Sign::Gone, again, again + SECOND);
            assert_eq!(best(&presences, &bare("a@c")), None, "{case}");
        }
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// Returns the choice for a stanza that came at `since`, where only presence matters, and the resources to check for
/// it.
fn choose(
    presences: &mut Presences,
    since: Instant,
    tried: &[FullJid],
    now: Instant,
) -> (ResourceChoice, Vec<String>) {
    let (choice, ask) = presences.choose(&bare("a@c"), since, tried, |_| Some(0), now);
    (choice, ask.iter().map(ToString::to_string).collect())
}

fn take(jid: &str) -> ResourceChoice {
    ResourceChoice::Take(Arc::new(full(jid)))
}

#[test]
fn who_was_not_heard_of_for_a_while_is_asked_once_for_all_before_it_is_taken() {
    let now = Instant::now();
    let mut presences = Presences::new(Instant::now());
    presences.link_is_up(now);
    presences.available(full("a@c/old"), 0, true, now).unwrap();
    presences.available(full("a@c/new"), 0, true, now).unwrap();
    // What it sent before the stanza came says nothing: it may have fallen asleep right after.
    assert_eq!(choose(&mut presences, now, &[], now), (take("a@c/new"), vec![]));
    let came = now + Duration::from_millis(1);
    let asked = vec!["a@c/new".to_owned(), "a@c/old".to_owned()];
    assert_eq!(choose(&mut presences, came, &[], came), (ResourceChoice::Wait, asked));
    // However many stanzas wait for it, they share one check.
    for n in 0..100 {
        let at = came + Duration::from_millis(n);
        assert_eq!(choose(&mut presences, at, &[], at), (ResourceChoice::Wait, vec![]));
    }
    let later = came + SECOND / 2;
    presences.answered(&full("a@c/old"), Sign::Here, came, later);
    assert_eq!(
        choose(&mut presences, came, &[], later).0,
        ResourceChoice::Wait,
        "the best may answer"
    );
    presences.answered(&full("a@c/new"), Sign::Here, came, later);
    assert_eq!(choose(&mut presences, came, &[], later), (take("a@c/new"), vec![]));
}

#[test]
fn who_does_not_answer_gives_way_to_the_next_and_is_remembered() {
    let now = Instant::now();
    let mut presences = Presences::new(Instant::now());
    presences.link_is_up(now);
    presences.available(full("a@c/there"), 0, true, now).unwrap();
    presences.available(full("a@c/sleeps"), 9, true, now).unwrap();
    let came = now + 60 * SECOND;
    let asked = vec!["a@c/sleeps".to_owned(), "a@c/there".to_owned()];
    assert_eq!(choose(&mut presences, came, &[], came), (ResourceChoice::Wait, asked));
    presences.answered(&full("a@c/there"), Sign::Here, came, came);
    presences.answered(&full("a@c/sleeps"), Sign::Silence, came, came + 3 * SECOND);
    let chosen = choose(&mut presences, came, &[], came + 3 * SECOND);
    assert_eq!(chosen, (take("a@c/there"), vec![]));
    // The next stanza does not wait for the sleeping resource, nor is that one checked again at once.
    let next = came + 5 * SECOND;
    assert_eq!(
        choose(&mut presences, next, &[], next),
        (ResourceChoice::Wait, vec!["a@c/there".to_owned()])
    );
    presences.answered(&full("a@c/there"), Sign::Here, next, next);
    assert_eq!(choose(&mut presences, next, &[], next), (take("a@c/there"), vec![]));
    // It gets the session if no other resource takes it. When it wakes up, it says so itself.
    let tried = [full("a@c/there")];
    let chosen = choose(&mut presences, next, &tried, next);
    assert_eq!(chosen, (ResourceChoice::Nobody(Some(came)), vec![]));
    presences.heard(&Jid::from(full("a@c/sleeps")), next);
    assert_eq!(choose(&mut presences, next, &[], next), (take("a@c/sleeps"), vec![]));
}

#[test]
fn where_nobody_answers_it_is_known_since_when_and_nobody_is_gone_for_five_minutes() {
    let now = Instant::now();
    let mut presences = Presences::new(Instant::now());
    presences.link_is_up(now);
    presences.available(full("a@c/x"), 0, true, now).unwrap();
    let came = now + 10 * SECOND;
    assert_eq!(
        choose(&mut presences, came, &[], came),
        (ResourceChoice::Wait, vec!["a@c/x".to_owned()])
    );
    let end = came + 3 * SECOND;
    presences.answered(&full("a@c/x"), Sign::Silence, came, end);
    assert_eq!(choose(&mut presences, came, &[], end).0, ResourceChoice::Nobody(Some(came)));
    // After repeated checks its silence still begins at the same moment, and it may come back.
    let mut at = end;
    for _ in 0..40 {
        at += 10 * SECOND;
        assert_eq!(
            choose(&mut presences, at, &[], at),
            (ResourceChoice::Wait, vec!["a@c/x".to_owned()])
        );
        presences.answered(&full("a@c/x"), Sign::Silence, at, at + 3 * SECOND);
        let chosen = choose(&mut presences, at, &[], at + 3 * SECOND).0;
        assert_eq!(chosen, ResourceChoice::Nobody(Some(came)));
    }
    assert!(at > came + LOST);
    assert_eq!(presences.silent_since(&full("a@c/x")), Some(came));
    // A late answer to the last check counts: after a tunnel the resource is present.
    let mut back = presences;
    back.answered(&full("a@c/x"), Sign::Here, at, at + 13 * SECOND);
    assert_eq!(choose(&mut back, at, &[], at).0, take("a@c/x"));
    assert_eq!(back.deadline(), Some(at + 13 * SECOND + AGE));
    assert_eq!(drain(&mut back), [remember("a@c/x", 0, true)], "it was never forgotten");
}

/// The answer to a check does not bring back a resource that has gone meanwhile.
#[test]
fn a_late_answer_does_not_bring_back_who_has_gone() {
    let now = Instant::now();
    let mut presences = Presences::new(Instant::now());
    presences.link_is_up(now);
    presences.available(full("a@c/x"), 0, true, now).unwrap();
    presences.answered(&full("a@c/x"), Sign::Silence, now, now + 3 * SECOND);
    presences.unavailable(&full("a@c/x"));
    presences.answered(&full("a@c/x"), Sign::Here, now, now + 5 * SECOND);
    assert_eq!(presences.count(), 0);
}

#[test]
fn a_busy_client_that_was_heard_of_meanwhile_is_there() {
    let now = Instant::now();
    let mut presences = Presences::new(Instant::now());
    presences.link_is_up(now);
    presences.available(full("a@c/x"), 0, true, now).unwrap();
    let came = now + 10 * SECOND;
    assert_eq!(choose(&mut presences, came, &[], came).0, ResourceChoice::Wait);
    presences.heard(&Jid::from(full("a@c/x")), came + SECOND);
    presences.answered(&full("a@c/x"), Sign::Silence, came, came + 3 * SECOND);
    assert_eq!(choose(&mut presences, came, &[], came + 3 * SECOND).0, take("a@c/x"));
}

#[test]
fn of_those_that_answer_the_one_that_can_do_most_is_taken() {
    let now = Instant::now();
    let mut presences = Presences::new(Instant::now());
    presences.link_is_up(now);
    for (name, priority) in [("files", 1), ("pipe", 1), ("chats", 10), ("hidden", -1)] {
        presences.available(full(&format!("a@c/{name}")), priority, true, now).unwrap();
    }
    let user = bare("a@c");
    let unknown = |_: &FullJid| None;
    let (choice, ask) = presences.choose(&user, now, &[], unknown, now);
    assert_eq!((choice, ask.len()), (ResourceChoice::Wait, 3), "their features are requested");
    for name in ["files", "pipe", "chats"] {
        presences.answered(&full(&format!("a@c/{name}")), Sign::Here, now, now);
    }
    let for_files = |jid: &FullJid| Some(if jid.resource().as_str() == "files" { 3 } else { 1 });
    let for_pipes = |jid: &FullJid| Some(if jid.resource().as_str() == "pipe" { 3 } else { 1 });
    assert_eq!(presences.choose(&user, now, &[], for_files, now).0, take("a@c/files"));
    assert_eq!(presences.choose(&user, now, &[], for_pipes, now).0, take("a@c/pipe"));
    // If none has the feature, or none says, the priority decides, and a resource that cannot handle the stanza gives
    // way.
    assert_eq!(presences.choose(&user, now, &[], unknown, now).0, take("a@c/chats"));
    let tried = [full("a@c/chats")];
    assert_eq!(presences.choose(&user, now, &tried, |_| Some(0), now).0, take("a@c/pipe"));
}

#[test]
fn what_goes_to_all_resources_has_each_asked_seldom() {
    let now = Instant::now();
    let mut presences = Presences::new(Instant::now());
    presences.link_is_up(now);
    presences.available(full("a@c/x"), 0, true, now).unwrap();
    presences.available(full("a@c/y"), -1, true, now).unwrap();
    let user = bare("a@c");
    assert_eq!(presences.check_all(&user, now), (vec![], vec![]), "it has just shown itself");
    let later = now + 10 * SECOND;
    assert_eq!(presences.check_all(&user, later).0.len(), 2);
    assert_eq!(presences.check_all(&user, later), (vec![], vec![]), "being asked");
    presences.answered(&full("a@c/x"), Sign::Silence, later, later + 3 * SECOND);
    presences.answered(&full("a@c/y"), Sign::Here, later, later + 3 * SECOND);
    let silent = vec![(Arc::new(full("a@c/x")), later)];
    assert_eq!(presences.check_all(&user, later + 3 * SECOND), (vec![], silent));
}

#[test]
fn one_that_refuses_to_be_asked_right_after_its_last_stanza_is_not_taken() {
    let now = Instant::now();
    let mut presences = Presences::new(Instant::now());
    presences.link_is_up(now);
    presences.available(full("a@c/x"), 0, true, now).unwrap();
    let came = now + Duration::from_millis(1);
    assert_eq!(
        choose(&mut presences, came, &[], came),
        (ResourceChoice::Wait, vec!["a@c/x".to_owned()])
    );
    presences.answered(&full("a@c/x"), Sign::Refused, came, came + SECOND);
    let chosen = choose(&mut presences, came, &[], came + SECOND).0;
    assert_eq!(chosen, ResourceChoice::Nobody(Some(came)));
}
