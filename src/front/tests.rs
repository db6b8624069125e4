//! The choice of resources, with stanzas in and stanzas out.

use fingerpost_carry::outbound::QueuedStanza;
use fingerpost_wire::{
    ns,
    print::{HashKind, Method, Print},
};
use time::OffsetDateTime;
use tokio::sync::mpsc::Receiver;
use tokio_util::sync::CancellationToken;

use super::{waiting::ChosenResource, *};
use crate::{
    access::Access,
    chat, control,
    logging::LogLevel,
    registry::{
        RegistryOptions,
        model::{NewKey, Source, Visibility},
        store::Store,
    },
    relay::table,
    sessions::{
        self, features,
        hints::{Policies, VerdictPolicy},
        journal::Journal,
        reachable::day_of,
    },
};

const COMPONENT: &str = "xtls.example.test";
const ALICE: &str = "alice@example.test/a";
const MASK: &str = "bob\\40example.test@xtls.example.test";

/// A router whose users are of `example.test`, with its stanzas and the results of its work.
struct World {
    router: Router,
    sent: Receiver<QueuedStanza>,
    reports: Receiver<Report>,
    /// Reports that came while a stanza was waited for.
    held: Vec<Report>,
    known: Receiver<KnownStanza>,
    stop: CancellationToken,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl World {
    async fn new() -> Self {
        let jid = BareJid::new(COMPONENT).unwrap();
        let store = Store::open("sqlite::memory:", 1, true).await.unwrap();
        let (component, visibility) = (jid.clone(), Visibility::Everyone);
        let registry = Registry::new(
            store.clone(),
            RegistryOptions { component, visibility, keys_per_user: 9 },
        );
        let print = Print::new(HashKind::Sha256, &[7; 32]).unwrap();
        let key = NewKey::of_prints(Method::X509, vec![print], "", Source::Self_).unwrap();
        let bob = Jid::new("bob@example.test/one").unwrap();
        registry.add(&bob, &key, OffsetDateTime::now_utc()).await.unwrap();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let (outbound, sent) = mpsc::channel(1000);
        let (report, reports) = mpsc::channel(100);
        let (know, known) = mpsc::channel(100);
        let (notices, _) = mpsc::channel(100);
        let (reloads, _) = mpsc::channel(1);
        let table =
            TransferTable::new(table::TransferOptions::default(), tasks.clone(), stop.clone());
        let journal = Journal::new(store.clone(), jid.clone());
        tasks.spawn(journal.clone().run(stop.clone()));
        let requests = Requests::new(outbound.clone());
        let second = Duration::from_secs(1);
        let broker = Broker::new(
            sessions::BrokerOptions {
                jid: jid.clone(),
                require_tls: false,
                plain: sessions::PlainFiles::Deny,
                policies: Policies {
                    unknown: VerdictPolicy::Annotate,
                    mismatch: VerdictPolicy::Annotate,
                    revoked: VerdictPolicy::Annotate,
                },
                direct: true,
                socks5: false,
                advertise: Vec::new(),
                ibb: true,
                max_stanza_bytes: 200_000,
                block_size: 4096,
                window: 16,
                memory: 1 << 20,
                silence_timeout: 300 * second,
                activation_timeout: 60 * second,
                idle_timeout: 600 * second,
                sessions: (10, 10),
            },
            outbound.clone(),
            requests.clone(),
            registry.clone(),
            table.clone(),
            journal,
            tasks.clone(),
        );
        let access = Access { users: vec!["example.test".to_owned()], ..Access::default() };
        let doors = Doors::new(access);
        let control = Control::new(control::Parts {
            doors: doors.clone(),
            broker: broker.clone(),
            table: table.clone(),
            store: store.clone(),
            log: LogLevel::start("warn", false),
            notices: notices.clone(),
            reloads,
        });
        let (cluster, _) = Cluster::join(&store, &jid, String::new()).await;
        let options = RouterOptions {
            jid: jid.clone(),
            name: String::new(),
            contact: Vec::new(),
            max_stanza_bytes: 200_000,
            access: doors,
            requests_per_second: 1000,
            advertise: Vec::new(),
            socks5: false,
            ibb: true,
            direct: true,
            import_pep: false,
            proposals: (10, 10),
            translation: None,
        };
        let mut router = Router::new(
            options,
            outbound,
            requests,
            broker,
            registry,
            table,
            control,
            cluster,
            Back { reports: report, known: know, notices },
            Arc::new(Identity::generate(&jid).unwrap()),
            Reachable::new(store, jid),
            tasks,
        );
        router.link_is_up();
        Self { router, sent, reports, held: Vec::new(), known, stop }
    }

    fn say(&mut self, text: &str) {
        self.router.handle(text.parse().unwrap());
    }

    /// Sends a presence and returns what the watcher at its address is told: the types, with the sender's resource.
    async fn presence(&mut self, from: &str, to: &str, type_: &str, number: usize) -> Vec<String> {
        self.say(&format!(
            "<presence xmlns='jabber:client' from='{from}' to='{to}' type='{type_}'/>"
        ));
        let mut told = Vec::new();
        for _ in 0..number {
            let presence = self.next(|sent| sent.name() == "presence").await;
            let from = Jid::new(presence.attr("from").unwrap()).unwrap();
            let resource = from.resource().map_or_else(String::new, |text| format!(" {text}"));
            told.push(format!("{}{resource}", presence.attr("type").unwrap_or("available")));
        }
        told
    }

    fn come(&mut self, from: &str) {
        self.say(&format!("<presence xmlns='jabber:client' from='{from}' to='{COMPONENT}'/>"));
    }

    /// Returns the next sent stanza that fits.
    async fn next(&mut self, is_meant: impl Fn(&Element) -> bool) -> Element {
        loop {
            tokio::select! {
                biased;
                Some(sent) = self.sent.recv() => {
                    let sent = sent.into_element();
                    if is_meant(&sent) {
                        return sent;
                    }
                }
                Some(known) = self.known.recv() => self.router.handle_known(known),
                Some(report) = self.reports.recv() => match report {
                    Report::Probed(..) => self.router.handle_report(report),
                    _ => self.held.push(report),
                },
            }
        }
    }

    /// Handles the next report that is not about a probe.
    async fn report(&mut self) {
        if !self.held.is_empty() {
            let report = self.held.remove(0);
            return self.router.handle_report(report);
        }
        loop {
            let report = self.reports.recv().await.unwrap();
            let is_probe = matches!(report, Report::Probed(..));
            self.router.handle_report(report);
            if !is_probe {
                return;
            }
        }
    }

    /// Returns the next disco#info query to a resource.
    async fn asked(&mut self, of: &str) -> Element {
        self.next(|sent| sent.attr("to") == Some(of) && sent.has_child("query", ns::DISCO_INFO))
            .await
    }

    /// Answers a request for its addressee.
    fn answer(&mut self, asked: &Element, type_: &str, payload: &str) {
        let attr = |name| asked.attr(name).unwrap();
        let (from, to, id) = (attr("to"), attr("from"), attr("id"));
        self.say(&format!(
            "<iq xmlns='jabber:client' type='{type_}' from='{from}' to='{to}' id='{id}'>{payload}</iq>"
        ));
    }
}

fn error(condition: &str, more: &str) -> String {
    let of = ns::STANZA_ERRORS;
    format!("<error type='wait'><{condition} xmlns='{of}'/>{more}</error>")
}

#[tokio::test]
async fn a_server_that_answers_in_the_place_of_a_client_does_not_make_it_there() {
    for condition in ["remote-server-timeout", "internal-server-error", "resource-constraint"] {
        let mut world = World::new().await;
        world.come("bob@example.test/one");
        // Earlier signs of life no longer count.
        world.router.link_is_up();
        world.say(&format!(
            "<iq xmlns='jabber:client' type='get' id='p' from='{ALICE}' to='{MASK}'>\
             <ping xmlns='urn:xmpp:ping'/></iq>"
        ));
        let asked = world.asked("bob@example.test/one").await;
        world.answer(&asked, "error", &error(condition, ""));
        world.report().await;
        let answer = world.next(|sent| sent.attr("id") == Some("p")).await;
        let silent = answer.get_child("error", ns::CLIENT).unwrap();
        assert!(silent.has_child("silent", ns::HINTS), "{condition}: {}", String::from(&answer));
    }
}

#[tokio::test]
async fn a_user_without_a_socks5_connection_in_a_session_has_no_observed_address() {
    let mut world = World::new().await;
    for (to, sid, condition) in [
        (MASK, "sid='s'", "item-not-found"),
        (COMPONENT, "sid='s'", "item-not-found"),
        ("not-a-user@xtls.example.test/x", "sid='s'", "item-not-found"),
        (MASK, "sid=''", "bad-request"),
        (MASK, "", "bad-request"),
    ] {
        world.say(&format!(
            "<iq xmlns='jabber:client' type='get' id='o' from='{ALICE}' to='{to}'>\
             <observed xmlns='urn:fingerpost:paths:0' {sid}/></iq>"
        ));
        let answer = world.next(|sent| sent.attr("id") == Some("o")).await;
        let error = answer.get_child("error", ns::CLIENT).unwrap();
        assert!(error.has_child(condition, ns::STANZA_ERRORS), "{to} {sid} {answer:?}");
    }
}

#[tokio::test]
async fn a_probe_is_answered_truthfully_and_of_a_guest_not_at_all() {
    let mut world = World::new().await;
    let alice = "alice@example.test";
    assert_eq!(world.presence(alice, MASK, "subscribe", 2).await, ["subscribed", "unavailable"]);
    world.come("bob@example.test/one");
    assert_eq!(world.presence(ALICE, MASK, "probe", 1).await, ["available one"]);
    let blocked = [("bob@example.test".to_owned(), String::new())];
    world.router.options.access.set_commanded(blocked);
    assert_eq!(world.presence(ALICE, MASK, "probe", 1).await, ["unavailable"]);
    world.router.options.access.set_commanded([]);
    let guest = "mallory@elsewhere.test";
    assert_eq!(world.presence(guest, MASK, "subscribe", 1).await, ["unsubscribed"]);
    assert_eq!(world.presence(guest, COMPONENT, "probe", 1).await, ["available"]);
    assert_eq!(world.router.watchers.count(), 1);
    assert_eq!(world.presence(alice, MASK, "unsubscribe", 1).await, ["unavailable"]);
    assert_eq!(world.router.watchers.count(), 0);
}

/// It could not be told that the contact went.
#[tokio::test]
async fn a_watcher_beyond_the_limits_is_shown_nothing() {
    let mut world = World::new().await;
    let bob = BareJid::new("bob@example.test").unwrap();
    let watcher = |number| BareJid::new(&format!("w{number}@example.test")).unwrap();
    let (mut number, day) = (0, day_of(OffsetDateTime::now_utc()));
    while world.router.watchers.watch(&watcher(number), &bob, day).is_ok() {
        number += 1;
    }
    assert!(number > 0);
    world.come("bob@example.test/one");
    let alice = "alice@example.test";
    assert_eq!(world.presence(alice, MASK, "subscribe", 2).await, ["subscribed", "unavailable"]);
    assert_eq!(world.presence(alice, MASK, "probe", 1).await, ["unavailable"]);
    assert_eq!(world.presence("w0@example.test", MASK, "probe", 1).await, ["available one"]);
}

impl World {
    /// Lets the router work until all watchers have been told, with a server that works off everything; returns the
    /// presences that were sent, without the answers to subscriptions.
    async fn settle(&mut self) -> Vec<Element> {
        let mut presences = Vec::new();
        loop {
            let (due, now) = (self.router.watchers.deadline(), tokio::time::Instant::now());
            let is_idle = self.router.watchers.is_idle() && self.router.probes.is_empty();
            tokio::select! {
                biased;
                Some(sent) = self.sent.recv() => {
                    let sent = sent.into_element();
                    if sent.name() == "presence" && sent.attr("type") != Some("subscribed") {
                        presences.push(sent);
                    } else if sent.attr("to") == Some(COMPONENT) {
                        // What the component sends to itself, which it does not refuse.
                        assert_ne!(sent.attr("type"), Some("error"));
                        self.router.handle(sent);
                    }
                }
                () = std::future::ready(()), if is_idle => return presences,
                Some(report) = self.reports.recv() => self.router.handle_report(report),
                () = tokio::time::sleep_until(due.unwrap_or(now)), if due.is_some() => {
                    self.router.expire();
                }
            }
        }
    }
}

#[tokio::test]
async fn a_crowd_is_told_of_every_resource_though_the_queue_holds_few_of_the_presences() {
    let mut world = World::new().await;
    let (watchers, resources) = (390, 8);
    for number in 0..watchers {
        world.say(&format!(
            "<presence xmlns='jabber:client' type='subscribe' from='w{number}@example.test' to='{MASK}'/>"
        ));
    }
    world.settle().await;
    assert_eq!(world.router.watchers.count(), watchers);
    for type_ in [None, Some("unavailable")] {
        for number in 0..resources {
            let attribute = type_.map_or_else(String::new, |type_| format!("type='{type_}'"));
            world.say(&format!(
                "<presence xmlns='jabber:client' from='bob@example.test/{number}' to='{COMPONENT}' {attribute}/>"
            ));
        }
        let presences = world.settle().await;
        assert!(presences.iter().all(|sent| sent.attr("type") == type_));
        let told: std::collections::HashSet<_> =
            presences.iter().map(|sent| (sent.attr("to"), sent.attr("from"))).collect();
        assert_eq!(told.len(), watchers * resources, "{type_:?}");
    }
}

#[tokio::test]
async fn the_probes_of_a_watcher_share_one_lookup_and_a_flood_of_them_takes_no_place_of_requests() {
    let mut world = World::new().await;
    for number in 0..1000 {
        // Both resources of the watcher are answered.
        for resource in ["", "/a", "/a"] {
            world.say(&format!(
                "<presence xmlns='jabber:client' type='probe' from='w{number}@example.test{resource}' to='{MASK}'/>"
            ));
        }
    }
    assert_eq!(world.router.at_once.taken(), 0);
    assert!(world.router.looking_up.taken() <= 16, "of one domain");
    let joined = world.router.probes.len();
    world.come("bob@example.test/one");
    let told = world.settle().await;
    let known = world.router.watchers.count();
    assert_eq!(world.router.looking_up.taken(), 0);
    // Those that found no place are told a little later, once each.
    let told: Vec<_> = told.iter().map(|sent| (sent.attr("to"), sent.attr("type"))).collect();
    assert!(told.iter().all(|(_, type_)| type_.is_none()), "{told:?}");
    assert_eq!(told.len(), known + joined, "{joined}");
}

#[tokio::test]
async fn a_lookup_that_is_older_than_the_contact_s_settings_shows_nobody() {
    let mut world = World::new().await;
    world.come("bob@example.test/one");
    world
        .say(&format!("<presence xmlns='jabber:client' type='probe' from='{ALICE}' to='{MASK}'/>"));
    // It was read as visible; the report is on its way when the contact hides.
    let report = world.reports.recv().await.unwrap();
    let bob = BareJid::new("bob@example.test").unwrap();
    let settings = Settings { visibility: Visibility::Nobody, allowed: Vec::new() };
    let now = OffsetDateTime::now_utc();
    world.router.registry.set_settings(&bob, &settings, now).await.unwrap();
    world.router.visibility_changed(Some(&bob));
    world.router.handle_report(report);
    let told = world.settle().await;
    assert!(told.is_empty(), "{told:?}");
}

#[tokio::test]
async fn the_clients_of_a_watched_contact_are_asked_once_and_their_features_are_announced() {
    let mut world = World::new().await;
    world.presence("alice@example.test", MASK, "subscribe", 2).await;
    world.come("bob@example.test/one");
    world.router.expire();
    world.report().await;
    let asked = world.asked("bob@example.test/one").await;
    let features =
        "<query xmlns='http://jabber.org/protocol/disco#info'><feature var='f'/></query>";
    world.answer(&asked, "result", features);
    world.report().await;
    let contact = BareJid::new("bob@example.test").unwrap();
    let resource = FullJid::new("bob@example.test/one").unwrap();
    let ver = world.router.watchers.ver(&contact, &resource).unwrap();
    assert_eq!(world.presence(ALICE, MASK, "probe", 1).await, ["available one"]);
    world.say(&format!(
        "<iq xmlns='jabber:client' type='get' id='i' from='{ALICE}' to='{MASK}/one'>\
         <query xmlns='{}' node='{}#{ver}'/></iq>",
        ns::DISCO_INFO,
        ns::OWN_CAPS
    ));
    let asked = world.asked("bob@example.test/one").await;
    assert_eq!(asked.get_child("query", ns::DISCO_INFO).unwrap().attr("node"), None);
    world.answer(&asked, "result", features);
    let answer = world.next(|sent| sent.attr("id") == Some("i")).await;
    let node = answer.get_child("query", ns::DISCO_INFO).unwrap().attr("node").unwrap();
    assert_eq!(node, format!("{}#{ver}", ns::OWN_CAPS));
}

#[tokio::test]
async fn a_contact_is_announced_with_the_protocol_that_is_translated_for_it() {
    let mut world = World::new().await;
    let translation = Some(features::Translation { socks5: false, ibb: true });
    world.router.reload(RouterOptions { translation, ..world.router.options.clone() });
    world.presence("alice@example.test", MASK, "subscribe", 2).await;
    let said = format!(
        "<query xmlns='{}'><feature var='{}'/><feature var='{}'/></query>",
        ns::DISCO_INFO,
        ns::SI_FILE,
        ns::IBB
    );
    let own = features::ver(&said.parse().unwrap()).unwrap();
    let come = |resource: &str| {
        format!(
            "<presence xmlns='jabber:client' from='bob@example.test/{resource}' to='{COMPONENT}'>\
             <c xmlns='{}' hash='sha-1' node='n' ver='{own}'/></presence>",
            ns::CAPS
        )
    };
    world.say(&come("one"));
    let asked = world.asked("bob@example.test/one").await;
    world.answer(&asked, "result", &said);
    world.report().await;
    let contact = BareJid::new("bob@example.test").unwrap();
    let ver = |world: &World, resource: &str| {
        let jid = FullJid::new(&format!("bob@example.test/{resource}")).unwrap();
        world.router.watchers.ver(&contact, &jid)
    };
    let announced = ver(&world, "one").unwrap();
    assert_ne!(*announced, *own);
    // Another client of the same kind need not be asked.
    world.say(&come("two"));
    assert_eq!(ver(&world, "two").as_ref(), Some(&announced));
    for (node, is_ours) in
        [(format!("{}#{announced}", ns::OWN_CAPS), true), (format!("n#{own}"), false)]
    {
        world.say(&format!(
            "<iq xmlns='jabber:client' type='get' id='i' from='{ALICE}' to='{MASK}/one'>\
             <query xmlns='{}' node='{node}'/></iq>",
            ns::DISCO_INFO
        ));
        let asked = world.asked("bob@example.test/one").await;
        world.answer(&asked, "result", &said);
        let answer = world.next(|sent| sent.attr("id") == Some("i")).await;
        let info = answer.get_child("query", ns::DISCO_INFO).unwrap();
        let expected = if is_ours { &*announced } else { own.as_str() };
        assert_eq!(features::ver(info).as_deref(), Some(expected), "{node}");
    }
    // The operator switches it off.
    world.router.reload(RouterOptions { translation: None, ..world.router.options.clone() });
    assert_eq!(ver(&world, "one"), None, "it is asked again");
    world.say(&come("one"));
    assert_eq!(ver(&world, "one").as_deref(), Some(own.as_str()));
}

/// The answers of a busy resource may wait behind its own blocks.
#[tokio::test]
async fn who_was_just_heard_of_is_waited_for_as_long_as_nobody_else_can_take_a_session() {
    let mut world = World::new().await;
    let patience = |world: &World| {
        let jid = Jid::new("bob@example.test/busy").unwrap();
        let callee = world.router.callee(ChosenResource::sure(jid));
        (callee.patience.as_secs(), callee.has_others)
    };
    world.come("bob@example.test/busy");
    assert_eq!(patience(&world), (30, false));
    world.say(&format!(
        "<presence xmlns='jabber:client' from='bob@example.test/chat' to='{COMPONENT}'>\
         <priority>-1</priority></presence>"
    ));
    assert_eq!(patience(&world), (30, false), "that one takes nothing for the bare JID");
    world.come("bob@example.test/other");
    assert_eq!(patience(&world), (5, true));
    let asked = tokio::time::Instant::now();
    let other = FullJid::new("bob@example.test/other").unwrap();
    world.router.presences.answered(&other, Sign::Refused, asked, asked);
    assert_eq!(patience(&world), (30, false), "that one is not answering");
}

/// Nothing here depends on time: a program declines a session, and something happens before the next one gets it.
#[tokio::test]
async fn a_session_that_is_taken_back_on_its_way_to_the_next_program_goes_nowhere() {
    let jingle = |action: &str, id: &str| {
        format!(
            "<iq xmlns='jabber:client' type='set' id='{id}' from='{ALICE}' to='{MASK}'>\
             <jingle xmlns='urn:xmpp:jingle:1' action='{action}' sid='s' initiator='{ALICE}'>\
             <content creator='initiator' name='c'>\
             <description xmlns='urn:xmpp:jingle:apps:file-transfer:5'/>\
             <transport xmlns='urn:xmpp:jingle:transports:ibb:1' sid='t' block-size='4096'/>\
             </content></jingle></iq>"
        )
    };
    let gone = format!(
        "<presence xmlns='jabber:client' type='unavailable' from='{ALICE}' to='{COMPONENT}'/>"
    );
    let info = "<query xmlns='http://jabber.org/protocol/disco#info'/>";
    for (what, goes_on) in [
        (jingle("session-terminate", "end"), false),
        (gone, false),
        (jingle("session-info", "news"), true),
    ] {
        let mut world = World::new().await;
        world.come("bob@example.test/two");
        world.come("bob@example.test/one");
        world.say(&jingle("session-initiate", "start"));
        // Both may be checked; the first that is offered the session cannot handle it.
        let (mut offered, mut reported) = (0, false);
        while !reported {
            tokio::select! {
                biased;
                Some(known) = world.known.recv() => world.router.handle_known(known),
                Some(report) = world.reports.recv() => {
                    reported = matches!(report, Report::Unanswered(_));
                    if reported {
                        world.say(&what);
                    }
                    world.router.handle_report(report);
                }
                Some(sent) = world.sent.recv() => {
                    let sent = sent.into_element();
                    if sent.has_child("jingle", ns::JINGLE) {
                        offered += 1;
                        world.answer(&sent, "error", &error("service-unavailable", ""));
                    } else if sent.has_child("query", ns::DISCO_INFO) {
                        world.answer(&sent, "result", info);
                    }
                }
            }
        }
        assert_eq!(offered, 1);
        let is_offer = |sent: &Element| {
            sent.get_child("jingle", ns::JINGLE)
                .is_some_and(|jingle| jingle.attr("action") == Some("session-initiate"))
        };
        let is_answer = |sent: &Element| sent.attr("id") == Some("start");
        if what.contains("'end'") {
            let answer = world.next(|sent| sent.attr("id") == Some("end")).await;
            assert_eq!(answer.attr("type"), Some("result"), "{}", String::from(&answer));
        }
        let next = loop {
            let next = tokio::select! {
                biased;
                Some(report) = world.reports.recv() => {
                    world.router.handle_report(report);
                    continue;
                }
                next = world.sent.recv() => next.unwrap().into_element(),
            };
            if next.has_child("query", ns::DISCO_INFO) {
                world.answer(&next, "result", info);
            } else if is_offer(&next) || is_answer(&next) {
                break next;
            }
        };
        assert_eq!(is_offer(&next), goes_on, "{what}: {}", String::from(&next));
        assert_eq!(is_answer(&next), !goes_on, "{what}: {}", String::from(&next));
        assert_eq!(world.router.broker.sessions(), usize::from(goes_on), "{what}");
    }
}

/// A stranger may propose and retract as often as its own rate allows.
#[tokio::test]
async fn who_answers_many_proposals_keeps_its_rate() {
    let mut world = World::new().await;
    world.router.reload(RouterOptions { requests_per_second: 1, ..world.router.options.clone() });
    world.come("bob@example.test/one");
    let say = |world: &mut World, from: &str, to: &str, action: &str, id: &str| {
        world.say(&format!(
            "<message xmlns='jabber:client' type='chat' id='m' from='{from}' to='{to}'>\
             <{action} xmlns='urn:xmpp:jingle-message:0' id='{id}'/></message>"
        ));
    };
    let bob = "bob@example.test/one";
    for n in 0..10 {
        let (from, mask) =
            (format!("m{n}@example.test/x"), format!("m{n}\\40example.test@{COMPONENT}"));
        say(&mut world, &from, MASK, "propose", "p");
        let to_bob = |sent: &Element| sent.name() == "message" && sent.attr("to") == Some(bob);
        let proposed = world.next(to_bob).await;
        let said = proposed.get_child("propose", ns::JINGLE_MESSAGE).unwrap();
        let id = said.attr("id").unwrap().to_owned();
        say(&mut world, bob, &mask, "ringing", &id);
        let rings = world.next(|sent| sent.attr("to") == Some(&from)).await;
        assert!(rings.has_child("ringing", ns::JINGLE_MESSAGE), "{}", String::from(&rings));
        say(&mut world, &from, MASK, "retract", "p");
        world.next(to_bob).await;
        // Too late: it was retracted meanwhile.
        say(&mut world, bob, &mask, "proceed", &id);
        let late = world.next(to_bob).await;
        let error = late.get_child("error", ns::CLIENT).unwrap();
        assert!(error.has_child("item-not-found", ns::STANZA_ERRORS), "{}", String::from(&late));
    }
    // What belongs to no proposal is charged.
    let mut found = Vec::new();
    for n in 0..6 {
        say(&mut world, bob, "m1\\40example.test@xtls.example.test", "proceed", &format!("u{n}"));
        let answer = world.next(|sent| sent.attr("to") == Some(bob)).await;
        let error = answer.get_child("error", ns::CLIENT).unwrap();
        found.push(error.has_child("item-not-found", ns::STANZA_ERRORS));
    }
    assert!(found[0] && !found[5], "{found:?}");
}

/// A message is copied to each of the callee's resources.
#[tokio::test]
async fn a_proposal_is_short_and_its_copies_are_charged() {
    let mut world = World::new().await;
    world.router.reload(RouterOptions { requests_per_second: 2, ..world.router.options.clone() });
    let resources: Vec<String> = (0..8).map(|n| format!("bob@example.test/{n}")).collect();
    for resource in &resources {
        world.come(resource);
    }
    let mut last = 0;
    let mut say = async |world: &mut World, action: &str, id: &str, length: usize| {
        last += 1;
        let (mark, filling) = (format!("m{last}"), "a".repeat(length));
        world.say(&format!(
            "<message xmlns='jabber:client' type='chat' id='{mark}' from='{ALICE}' to='{MASK}'>\
             <{action} xmlns='urn:xmpp:jingle-message:0' id='{id}'>{filling}</{action}></message>"
        ));
        let answer = world
            .next(|sent| {
                sent.name() == "message"
                    && (sent.attr("id") == Some(&mark) || sent.attr("to") == Some(&resources[7]))
            })
            .await;
        let error = answer.get_child("error", ns::CLIENT).map(|error| {
            ["policy-violation", "resource-constraint"]
                .into_iter()
                .find(|condition| error.has_child(*condition, ns::STANZA_ERRORS))
                .unwrap_or("another")
        });
        error.unwrap_or("passed on")
    };
    // Eight requests may come at once.
    assert_eq!(say(&mut world, "propose", "p1", 16 << 10).await, "policy-violation");
    assert_eq!(say(&mut world, "propose", "p1", 100).await, "passed on");
    assert_eq!(say(&mut world, "retract", "p1", 16 << 10).await, "policy-violation");
    assert_eq!(say(&mut world, "retract", "p1", 1800).await, "passed on");
    assert_eq!(say(&mut world, "propose", "p2", 3000).await, "resource-constraint");
}

/// Each answer of a resource takes up again whatever waits for its user.
#[tokio::test]
async fn a_stanza_that_waits_is_kept_once_whatever_its_callee_s_resources_say() {
    let mut world = World::new().await;
    for n in 0..4 {
        world.come(&format!("bob@example.test/{n}"));
    }
    world.say(&format!(
        "<iq xmlns='jabber:client' type='get' id='p' from='{ALICE}' to='{MASK}'><ping xmlns='urn:xmpp:ping'/></iq>"
    ));
    let mut asked = Vec::new();
    for _ in 0..4 {
        asked.push(world.next(|sent| sent.has_child("query", ns::DISCO_INFO)).await);
    }
    let waiting = |world: &World| {
        let alice = Jid::new(ALICE).unwrap();
        let (_, waiting) = world.router.waiting.of_sender(&alice).next().unwrap();
        Arc::as_ptr(&waiting.stanza)
    };
    let first = waiting(&world);
    for asked in &asked[..3] {
        world.answer(asked, "error", &error("item-not-found", ""));
        world.report().await;
        assert_eq!(waiting(&world), first);
    }
}

/// A program at the other end may answer whatever it is asked, with the same words each time.
#[tokio::test]
async fn a_chat_with_a_program_that_answers_everything_ends() {
    let world = World::new().await;
    let say = async |text: &str| {
        let message = format!(
            "<message xmlns='jabber:client' type='chat' from='{ALICE}' to='{COMPONENT}'><body>{text}</body></message>"
        );
        let stanza = Stanza::parse_canonical(message.parse().unwrap()).unwrap();
        let written = chat::readable(&stanza).unwrap();
        let said = world.router.chats.handle(&written, OffsetDateTime::now_utc(), 10_000).await;
        said.text
    };
    // One question of which the answer is not understood, and one whose answer the command refuses.
    for command in ["visibility", "lookup"] {
        let question = say(command).await.unwrap();
        let mut answers = Vec::new();
        while let Some(answer) = say("I am a program").await {
            answers.push(answer);
            assert!(answers.len() < 10, "{answers:#?}");
        }
        let again =
            answers.iter().filter(|answer| answer.contains(question.lines().last().unwrap()));
        assert_eq!(again.count(), 3, "{question} {answers:#?}");
    }
}
