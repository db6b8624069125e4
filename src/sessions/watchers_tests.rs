//! What watchers are told.

use super::*;

fn bare(text: &str) -> BareJid {
    BareJid::new(text).unwrap()
}

fn resource(jid: &str) -> ShownResource {
    ShownResource { jid: Arc::new(FullJid::new(jid).unwrap()), priority: 0, ver: None }
}

fn changes(watchers: &mut Watchers) -> Vec<WatchChange> {
    std::iter::from_fn(|| watchers.poll_change()).collect()
}

/// Returns a presence as one line.
fn line(to: &BareJid, shown: &Shown) -> String {
    match shown {
        Shown::Here(one) => format!("{to} +{}", one.jid),
        Shown::Gone(jid) => format!("{to} -{jid}"),
    }
}

/// Tells the watchers of a contact as long as `say` finds room, until its turn ends; returns what was said, by turns.
fn tell_with(
    watchers: &mut Watchers,
    contact: &BareJid,
    resources: &[ShownResource],
    now: &mut Instant,
    sees: impl Fn(&BareJid) -> bool,
    mut has_room: impl FnMut() -> bool,
) -> Vec<Vec<String>> {
    *now += GAP;
    watchers.changed(contact, *now);
    let mut turns = Vec::new();
    // Its own turns come before the time of the next change.
    let end = *now + GAP / 2;
    while let Some(at) = watchers.deadline().filter(|at| *at < end) {
        *now = at.max(*now);
        let next = watchers.next(*now).unwrap();
        let mut said = Vec::new();
        watchers.tell(&next, resources, *now, &sees, |to, shown| {
            let has_room = has_room();
            said.extend(has_room.then(|| line(to, shown)));
            has_room
        });
        watchers.worked_off(said.len());
        turns.push(said);
    }
    turns
}

#[test]
fn each_watcher_is_told_what_is_new_and_nothing_twice() {
    let (mut watchers, bob, mut now) = (Watchers::default(), bare("bob@a"), Instant::now());
    for watcher in ["alice@a", "carol@a"] {
        watchers.watch(&bare(watcher), &bob, 1).unwrap();
    }
    let (one, two) = (resource("bob@a/one"), resource("bob@a/two"));
    let mut tell = |resources: &[ShownResource]| {
        tell_with(&mut watchers, &bob, resources, &mut now, |_| true, || true).concat()
    };
    assert_eq!(tell(std::slice::from_ref(&one)), ["alice@a +bob@a/one", "carol@a +bob@a/one"]);
    assert!(tell(std::slice::from_ref(&one)).is_empty());
    let both = [one.clone(), two.clone()];
    assert_eq!(tell(&both), ["alice@a +bob@a/two", "carol@a +bob@a/two"]);
    let with_ver = ShownResource { ver: Some("v".into()), ..two };
    let told = tell(&[with_ver]);
    assert_eq!(
        told,
        ["alice@a -bob@a/one", "alice@a +bob@a/two", "carol@a -bob@a/one", "carol@a +bob@a/two"]
    );
    let gone = tell(&[]);
    assert_eq!(gone, ["alice@a -bob@a/two", "carol@a -bob@a/two"]);
    // The answer to a probe counts, too.
    let here = watchers.update(&bob, vec![one.clone()], now);
    assert_eq!(here, std::slice::from_ref(&one));
    watchers.told(&bare("alice@a"), &bob, &one.jid, true);
    let mut tell = |sees: bool| {
        let here = [one.clone()];
        tell_with(&mut watchers, &bob, &here, &mut now, |_| sees, || true).concat()
    };
    assert_eq!(tell(true), ["carol@a +bob@a/one"]);
    assert_eq!(tell(false), ["alice@a -bob@a/one", "carol@a -bob@a/one"]);
}

/// A second client of Alice's logs in while Bob's return is still to be told.
#[test]
fn an_answer_to_one_client_of_a_watcher_does_not_stand_for_what_is_due_to_all() {
    for is_whole in [false, true] {
        let (mut watchers, bob, mut now) = (Watchers::default(), bare("bob@a"), Instant::now());
        watchers.watch(&bare("alice@a"), &bob, 1).unwrap();
        let one = resource("bob@a/one");
        let here = std::slice::from_ref(&one);
        watchers.changed(&bob, now);
        assert_eq!(watchers.update(&bob, here.to_vec(), now), here);
        watchers.told(&bare("alice@a"), &bob, &one.jid, is_whole);
        let told = tell_with(&mut watchers, &bob, here, &mut now, |_| true, || true).concat();
        let expected: &[&str] = if is_whole { &[] } else { &["alice@a +bob@a/one"] };
        assert_eq!(told, expected);
        // When nothing is due, all have heard everything.
        watchers.told(&bare("alice@a"), &bob, &one.jid, false);
        assert!(
            tell_with(&mut watchers, &bob, here, &mut now, |_| true, || true).concat().is_empty()
        );
    }
}

#[test]
fn a_watcher_that_may_not_see_a_contact_learns_nothing_of_its_changes() {
    let (mut watchers, bob, mut now) = (Watchers::default(), bare("bob@a"), Instant::now());
    watchers.watch(&bare("alice@a"), &bob, 1).unwrap();
    let one = [resource("bob@a/one")];
    // Nor that it was remembered when the component started.
    watchers.recall_resource(&bob, &resource("bob@a/old").jid, 0, now);
    let mut tell = |resources: &[ShownResource], sees: bool| {
        tell_with(&mut watchers, &bob, resources, &mut now, |_| sees, || true).concat()
    };
    assert!(tell(&one, false).is_empty());
    assert!(tell(&[], false).is_empty());
    assert_eq!(tell(&one, true), ["alice@a +bob@a/one"]);
    assert_eq!(tell(&one, false), ["alice@a -bob@a/one"], "the contact hides");
    assert!(tell(&[], false).is_empty());
    assert!(tell(&one, false).is_empty());
}

/// A crowd of watchers and resources, a queue that is often full, and resources that come and go all the time.
#[test]
fn all_are_told_in_the_end_at_the_pace_of_presences_whatever_fails_and_changes() {
    let (mut watchers, bob) = (Watchers::default(), bare("bob@b"));
    let start = Instant::now();
    let mut now = start;
    let count = 400;
    for number in 0..count {
        watchers.watch(&bare(&format!("w{number}@a")), &bob, 1).unwrap();
    }
    let mut believes: HashMap<BareJid, std::collections::BTreeSet<String>> = HashMap::new();
    let (mut calls, mut total, mut marked) = (0_u32, 0_u32, 0);
    let mut round = 0;
    let mut shown = Vec::new();
    while round < 20 || watchers.deadline().is_some() {
        if round < 20 {
            // Other names each time: those that went take places until all know it.
            shown = (0..16).map(|n| resource(&format!("bob@b/r{}", round * 3 + n))).collect();
            if round == 19 {
                shown.truncate(4);
            }
            watchers.changed(&bob, now);
        }
        round += 1;
        let end = now + Duration::from_millis(700);
        while let Some(at) = watchers.deadline().filter(|at| *at < end) {
            now = at.max(now);
            let next = watchers.next(now).unwrap();
            let mut said = 0;
            watchers.tell(
                &next,
                &shown,
                now,
                |_| true,
                |to, presence| {
                    calls += 1;
                    if calls % 97 < 3 {
                        return false;
                    }
                    said += 1;
                    let known = believes.entry(to.clone()).or_default();
                    match presence {
                        Shown::Here(one) => {
                            assert!(known.insert(one.jid.to_string()), "told twice")
                        }
                        Shown::Gone(jid) => assert!(known.remove(&jid.to_string()), "never told"),
                    }
                    true
                },
            );
            assert!(said <= CHUNK + SLOTS);
            marked += watchers.mark().unwrap_or_default();
            if watchers.deadline().is_none() || calls % 5 == 0 {
                // The server is slow, and then it has caught up.
                watchers.worked_off(std::mem::take(&mut marked));
            }
            total += u32::try_from(said).unwrap();
            assert!(
                now >= start + PACE * total.saturating_sub(u32::try_from(CHUNK + SLOTS).unwrap())
            );
        }
        now = now.max(end);
    }
    let expected = shown.iter().map(|one| one.jid.to_string()).collect();
    assert_eq!(believes.len(), count);
    assert!(believes.values().all(|known| *known == expected));
}

#[test]
fn a_resource_that_went_and_came_while_its_watchers_wait_is_not_told_again() {
    let (mut watchers, bob, mut now) = (Watchers::default(), bare("bob@a"), Instant::now());
    watchers.watch(&bare("alice@a"), &bob, 1).unwrap();
    let (one, two) = ([resource("bob@a/one")], [resource("bob@a/one"), resource("bob@a/two")]);
    let mut tell = |resources: &[ShownResource], fails: bool| {
        tell_with(&mut watchers, &bob, resources, &mut now, |_| true, || !fails).concat()
    };
    assert_eq!(tell(&one, false), ["alice@a +bob@a/one"]);
    assert!(tell(&[], true).is_empty(), "the queue is full");
    assert!(tell(&one, false).is_empty());
    assert!(tell(&two, true).is_empty());
    assert!(tell(&one, false).is_empty());
    assert!(tell(&[], true).is_empty());
    assert_eq!(tell(&[], false), ["alice@a -bob@a/one"]);
}

#[test]
fn a_remembered_resource_that_went_before_its_watchers_were_told_is_told_as_gone() {
    let (mut watchers, bob, mut now) = (Watchers::default(), bare("bob@a"), Instant::now());
    watchers.recall(&bare("alice@a"), &bob, 1);
    watchers.recall_resource(&bob, &resource("bob@a/one").jid, 0, now);
    watchers.watch(&bare("new@a"), &bob, 1).unwrap();
    let told = tell_with(&mut watchers, &bob, &[], &mut now, |_| true, || true).concat();
    assert_eq!(told, ["alice@a -bob@a/one"]);
    assert!(tell_with(&mut watchers, &bob, &[], &mut now, |_| true, || true).concat().is_empty());
}

#[test]
fn settings_that_changed_while_they_were_read_are_not_used() {
    let (mut watchers, bob, now) = (Watchers::default(), bare("bob@a"), Instant::now());
    watchers.watch(&bare("alice@a"), &bob, 1).unwrap();
    watchers.changed(&bob, now);
    assert_eq!(watchers.next(now), Some(bob.clone()));
    watchers.visibility_changed(&bob, now);
    let one = [resource("bob@a/one")];
    watchers.tell(&bob, &one, now, |_| true, |_, _| panic!("hidden meanwhile"));
    assert!(watchers.deadline().unwrap() < now + GAP / 2, "read again at once");
}

#[test]
fn a_contact_that_flaps_is_told_of_at_a_bounded_pace() {
    let (mut watchers, bob, now) = (Watchers::default(), bare("bob@a"), Instant::now());
    watchers.watch(&bare("alice@a"), &bob, 1).unwrap();
    watchers.changed(&bare("nobody@a"), now);
    assert_eq!(watchers.deadline(), None, "nobody watches that one");
    let mut told = 0;
    for tenths in 0..100 {
        let now = now + Duration::from_millis(100) * tenths;
        watchers.changed(&bob, now);
        while let Some(contact) = watchers.next(now) {
            told += 1;
            watchers.tell(&contact, &[], now, |_| true, |_, _| true);
        }
    }
    assert_eq!(told, 5);
    assert!(watchers.deadline().is_some(), "the last change is told, too");
}

/// The crowd fills its own time only.
#[test]
fn the_contacts_of_one_domain_do_not_hold_up_those_of_others() {
    let (mut watchers, mut now) = (Watchers::default(), Instant::now());
    let all: Vec<_> = (0..300).map(|n| bare(&format!("c{n}@x{n}.evil.test"))).collect();
    for (number, contact) in all.iter().enumerate() {
        for of in 0..20 {
            watchers.watch(&bare(&format!("w{of}@d{number}.test")), contact, 1).unwrap();
        }
        watchers.changed(contact, now);
    }
    let bob = bare("bob@good.test");
    watchers.watch(&bare("alice@good.test"), &bob, 1).unwrap();
    let shown: Vec<_> = (0..16).map(|n| resource(&format!("any@b/r{n}"))).collect();
    for turn in 0..10 {
        now = now.max(watchers.deadline().unwrap());
        let next = watchers.next(now).unwrap();
        if next == bob {
            assert!(turn > 5);
            return;
        }
        if turn == 5 {
            watchers.changed(&bob, now);
        }
        watchers.tell(&next, &shown, now, |_| true, |_, _| true);
        watchers.worked_off(WINDOW);
    }
    panic!("the honest contact waits for the crowd");
}

#[test]
fn no_more_is_said_than_the_server_works_off() {
    let (mut watchers, bob, mut now) = (Watchers::default(), bare("bob@b"), Instant::now());
    for number in 0..400 {
        watchers.watch(&bare(&format!("w{number}@a")), &bob, 1).unwrap();
    }
    watchers.changed(&bob, now);
    let shown: Vec<_> = (0..4).map(|n| resource(&format!("bob@b/r{n}"))).collect();
    let (mut said, mut marked) = (0, 0);
    while let Some(at) = watchers.deadline() {
        now = at;
        let next = watchers.next(now).unwrap();
        watchers.tell(
            &next,
            &shown,
            now,
            |_| true,
            |_, _| {
                said += 1;
                true
            },
        );
        marked += watchers.mark().unwrap_or_default();
        assert!(said < 400 * 4, "all at once");
    }
    assert!((WINDOW..WINDOW + CHUNK + SLOTS).contains(&said), "{said}");
    assert!(marked > WINDOW - MARK, "{marked}");
    watchers.worked_off(marked);
    assert!(watchers.deadline().is_some());
}

#[test]
fn what_was_lost_with_the_link_is_said_again_and_nothing_else() {
    let (mut watchers, bob, mut now) = (Watchers::default(), bare("bob@b"), Instant::now());
    for watcher in ["alice@a", "carol@a", "dave@a"] {
        watchers.watch(&bare(watcher), &bob, 1).unwrap();
    }
    let (one, two) = (resource("bob@b/one"), resource("bob@b/two"));
    let everybody = |_: &BareJid| true;
    tell_with(&mut watchers, &bob, &[one], &mut now, everybody, || true);
    // The server worked those off. The next ones are under way, except for Dave's, who finds no room.
    let mut room = 4;
    now += GAP;
    watchers.changed(&bob, now);
    let next = watchers.next(now).unwrap();
    let here = std::slice::from_ref(&two);
    watchers.tell(&next, here, now, everybody, |_, _| {
        room -= 1;
        room >= 0
    });
    watchers.link_is_up(now);
    let told = |watchers: &mut Watchers, now: &mut Instant| {
        let mut told = tell_with(watchers, &bob, here, now, everybody, || true).concat();
        told.sort();
        told
    };
    let again = told(&mut watchers, &mut now);
    let expected = ["alice@a", "carol@a", "dave@a"]
        .map(|name| [format!("{name} +bob@b/two"), format!("{name} -bob@b/one")]);
    assert_eq!(again, expected.concat());
    assert!(told(&mut watchers, &mut now).is_empty());
    watchers.link_is_up(now);
    assert!(watchers.deadline().is_none(), "all was worked off");
    // A contact that hid is said to have gone again, and nothing more.
    now += GAP;
    watchers.changed(&bob, now);
    let next = watchers.next(now).unwrap();
    watchers.tell(&next, here, now, |_| false, |_, _| true);
    watchers.link_is_up(now);
    let gone = tell_with(&mut watchers, &bob, here, &mut now, |_| false, || true).concat();
    assert_eq!(gone, ["alice@a", "carol@a", "dave@a"].map(|name| format!("{name} -bob@b/two")));
}

/// The contact hides while a watcher goes and comes back.
#[test]
fn settings_that_were_read_before_a_watcher_came_back_are_read_again() {
    let (mut watchers, alice, bob) = (Watchers::default(), bare("alice@a"), bare("bob@b"));
    let (mut now, here) = (Instant::now(), [resource("bob@b/one")]);
    watchers.watch(&alice, &bob, 1).unwrap();
    watchers.changed(&bob, now);
    assert_eq!(watchers.next(now).as_ref(), Some(&bob));
    watchers.unwatch(&alice, &bob);
    watchers.visibility_changed(&bob, now);
    watchers.watch(&alice, &bob, 1).unwrap();
    watchers.tell(&bob, &here, now, |_| true, |_, _| panic!("said by the old settings"));
    assert!(
        tell_with(&mut watchers, &bob, &here, &mut now, |_| false, || true).concat().is_empty()
    );
    // A contact that nobody watches any more is dropped when its settings are there.
    now += GAP;
    watchers.changed(&bob, now);
    let next = watchers.next(now.max(watchers.deadline().unwrap())).unwrap();
    watchers.unwatch(&alice, &bob);
    assert!(watchers.has(&bob));
    watchers.tell(&next, &here, now, |_| true, |_, _| panic!("nobody watches"));
    assert!(!watchers.has(&bob) && watchers.is_idle());
}

/// Its settings may let its watchers see it now.
#[test]
fn a_contact_that_was_shown_to_nobody_is_read_when_anything_may_have_changed() {
    let (mut watchers, alice, bob) = (Watchers::default(), bare("alice@a"), bare("bob@b"));
    let (mut now, here) = (Instant::now(), [resource("bob@b/one")]);
    watchers.watch(&alice, &bob, 1).unwrap();
    assert!(watchers.is_idle());
    watchers.all_changed(now);
    assert_eq!(watchers.next(now).as_ref(), Some(&bob));
    watchers.not_read(&bob, now);
    let told = tell_with(&mut watchers, &bob, &here, &mut now, |_| true, || true).concat();
    assert_eq!(told, ["alice@a +bob@b/one"]);
}

#[test]
fn no_more_contacts_are_read_at_once_than_allowed() {
    let (mut watchers, now) = (Watchers::default(), Instant::now());
    for number in 0..AT_ONCE + 5 {
        let contact = bare(&format!("c{number}@a"));
        watchers.watch(&bare("alice@a"), &contact, 1).unwrap();
        watchers.changed(&contact, now);
    }
    let later = now + Duration::from_secs(1);
    let mut read = Vec::new();
    for step in 0..100 {
        read.extend(watchers.next(later + Duration::from_millis(step)));
    }
    assert_eq!((read.len(), watchers.deadline()), (AT_ONCE, None));
    watchers.not_read(&read[0], later);
    assert!(watchers.deadline().is_some());
}

#[test]
fn pairs_are_remembered_renewed_and_forgotten_when_they_are_old() {
    let (mut watchers, alice, bob) = (Watchers::default(), bare("alice@a"), bare("bob@a"));
    watchers.watch(&alice, &bob, 10).unwrap();
    watchers.watch(&alice, &bob, 11).unwrap();
    let pair = Arc::new(WatchedPair { watcher: alice.clone(), contact: bob.clone() });
    let remember = |is_new| WatchChange::Remember { pair: Arc::clone(&pair), is_new };
    assert_eq!(changes(&mut watchers), [remember(true)]);
    watchers.watch(&alice, &bob, 20).unwrap();
    assert_eq!(changes(&mut watchers), [remember(false)]);
    watchers.watch(&bare("other@a"), &bare("third@a"), 20 + AGE_DAYS).unwrap();
    assert!(watchers.knows(&alice, &bob));
    changes(&mut watchers);
    watchers.watch(&bare("other@a"), &bare("third@a"), 21 + AGE_DAYS).unwrap();
    assert_eq!(changes(&mut watchers), [WatchChange::Forget(Arc::clone(&pair))]);
    assert!(!watchers.knows(&alice, &bob) && !watchers.has(&bob));
    watchers.recall(&alice, &bob, 30);
    assert_eq!(changes(&mut watchers), []);
    assert!(!watchers.unwatch(&alice, &bob), "it was told nothing");
    assert_eq!(changes(&mut watchers), [WatchChange::Forget(pair)]);
    assert_eq!((watchers.count(), watchers.shares.taken()), (1, watchers.shares.taken()));
}

#[test]
fn a_crowd_of_watchers_keeps_nobody_else_from_watching() {
    let mut watchers = Watchers::default();
    let bob = bare("bob@good.test");
    let kept = (0..2000)
        .filter(|number| watchers.watch(&bare(&format!("u{number}@evil.test")), &bob, 1).is_ok())
        .count();
    assert!(kept > 100 && kept < PER_CONTACT, "{kept}");
    watchers.watch(&bare("alice@good.test"), &bob, 1).unwrap();
    let of_one = (0..5000)
        .filter(|number| {
            watchers.watch(&bare("eve@evil.test"), &bare(&format!("c{number}@x.test")), 1).is_ok()
        })
        .count();
    assert!(of_one > 100 && of_one < 500, "{of_one}");
    for number in 0..200_000 {
        let watcher = bare(&format!("w{}@evil.test", number / 100));
        let _ = watchers.watch(&watcher, &bare(&format!("d{number}@x.test")), 1);
    }
    assert!(watchers.shares.taken() < LIMITS.total);
    watchers.watch(&bare("carol@good.test"), &bare("dave@good.test"), 1).unwrap();
}
