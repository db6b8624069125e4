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

/// Says what a telling says, in one line for each presence.
fn said(out: Vec<(BareJid, Shown)>) -> Vec<String> {
    let line = |(to, shown)| match shown {
        Shown::Here(one) => format!("{to} +{}", one.jid),
        Shown::Gone(jid) => format!("{to} -{jid}"),
    };
    out.into_iter().map(line).collect()
}

#[test]
fn each_watcher_is_told_what_is_new_and_nothing_twice() {
    let (mut watchers, bob, now) = (Watchers::default(), bare("bob@a"), Instant::now());
    for watcher in ["alice@a", "carol@a"] {
        watchers.watch(&bare(watcher), &bob, 1).unwrap();
    }
    let (one, two) = (resource("bob@a/one"), resource("bob@a/two"));
    let mut tell = |resources: Vec<ShownResource>| said(watchers.tell(&bob, resources, |_| true));
    assert_eq!(tell(vec![one.clone()]), ["alice@a +bob@a/one", "carol@a +bob@a/one"]);
    assert!(tell(vec![one.clone()]).is_empty());
    let both = vec![one.clone(), two.clone()];
    assert_eq!(tell(both), ["alice@a +bob@a/two", "carol@a +bob@a/two"]);
    let with_ver = ShownResource { ver: Some("v".into()), ..two };
    let told = tell(vec![with_ver]);
    assert_eq!(
        told,
        ["alice@a -bob@a/one", "alice@a +bob@a/two", "carol@a -bob@a/one", "carol@a +bob@a/two"]
    );
    let gone = tell(Vec::new());
    assert_eq!(gone, ["alice@a -bob@a/two", "carol@a -bob@a/two"]);
    watchers.told(&bare("alice@a"), &bob, std::slice::from_ref(&one), now);
    assert_eq!(said(watchers.tell(&bob, vec![one], |_| true)), ["carol@a +bob@a/one"]);
}

#[test]
fn a_watcher_that_may_not_see_a_contact_learns_nothing_of_its_changes() {
    let (mut watchers, bob) = (Watchers::default(), bare("bob@a"));
    watchers.watch(&bare("alice@a"), &bob, 1).unwrap();
    let one = || vec![resource("bob@a/one")];
    let mut tell = |resources, sees: bool| said(watchers.tell(&bob, resources, |_| sees));
    assert!(tell(one(), false).is_empty());
    assert!(tell(Vec::new(), false).is_empty());
    assert_eq!(tell(one(), true), ["alice@a +bob@a/one"]);
    assert_eq!(tell(one(), false), ["alice@a -bob@a/one"], "the contact hides");
    assert!(tell(Vec::new(), false).is_empty());
    assert!(tell(one(), false).is_empty());
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
            watchers.tell(&contact, Vec::new(), |_| true);
        }
    }
    assert_eq!(told, 5);
    assert!(watchers.deadline().is_some(), "the last change is told, too");
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
