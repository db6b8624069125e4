use fingerpost_wire::stanza::{Condition, Refusal};

use super::*;

const CALLEE: &str = "bob\\40b.example@xtls.example.org";
const INITIATOR: &str = "alice\\40a.example@xtls.example.org/balcony";

fn ids() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{:08x}", NEXT.fetch_add(1, Ordering::Relaxed))
}

fn full(text: &str) -> FullJid {
    FullJid::new(text).unwrap()
}

fn message(from: &str, to: &str, action: &str, id: &str) -> Stanza {
    let text = format!(
        "<message xmlns='jabber:client' type='chat' id='m1' from='{from}' to='{to}'>\
         <{action} xmlns='urn:xmpp:jingle-message:0' id='{id}'><description xmlns='urn:d'/></{action}>\
         <store xmlns='urn:xmpp:hints'/><other xmlns='urn:o' k='v'/></message>"
    );
    Stanza::parse(text.parse().unwrap()).unwrap()
}

/// From, to, action and id of each message.
fn shown(messages: &[Element]) -> Vec<(String, String, String, String)> {
    messages
        .iter()
        .map(|message| {
            let attr = |name| message.attr(name).unwrap_or_default().to_owned();
            let said = message.children().find(|c| c.has_ns(ns::JINGLE_MESSAGE)).unwrap();
            let id = said.attr("id").unwrap().to_owned();
            (attr("from"), attr("to"), said.name().to_owned(), id)
        })
        .collect()
}

fn who(messages: &[Element]) -> Vec<(String, String)> {
    shown(messages).into_iter().map(|(_, to, action, _)| (to, action)).collect()
}

struct Story {
    proposals: Proposals,
    now: Instant,
    theirs: String,
}

impl Story {
    /// Alice has proposed "a1" to two of Bob's resources.
    fn begun() -> Self {
        let component = BareJid::new("xtls.example.org").unwrap();
        let now = Instant::now();
        let mut proposals = Proposals::new(component, ids, (3, 2), now);
        let out = propose(&mut proposals, "a1", now).unwrap();
        let theirs = shown(&out)[0].3.clone();
        for (message, to) in out.iter().zip(["bob@b.example/phone", "bob@b.example/desk"]) {
            let [from, to_, id] = ["from", "to", "id"].map(|name| message.attr(name).unwrap());
            assert_eq!((from, to_), (INITIATOR, to));
            assert_ne!(id, "m1", "the stanza id is new");
            assert!(
                message.has_child("other", "urn:o") && message.has_child("store", "urn:xmpp:hints")
            );
            let said = message.get_child("propose", ns::JINGLE_MESSAGE).unwrap();
            assert!(said.has_child("description", "urn:d"));
        }
        assert_ne!(theirs, "a1");
        Self { proposals, now, theirs }
    }

    fn bob(&mut self, resource: &str, action: &str) -> Result<Vec<Element>, SessionRefusal> {
        let to = "alice\\40a.example@xtls.example.org";
        let stanza = message(&format!("bob@b.example/{resource}"), to, action, &self.theirs);
        self.proposals.handle(&stanza, &Jid::new("alice@a.example").unwrap(), self.now)
    }

    fn expire(&mut self) -> Vec<Element> {
        self.proposals.expire(self.now, |user, _| format!("{user} is not answering since then"))
    }

    fn alice(&mut self, action: &str) -> Result<Vec<Element>, SessionRefusal> {
        let stanza = message("alice@a.example/balcony", CALLEE, action, "a1");
        self.proposals.handle(&stanza, &Jid::new("bob@b.example").unwrap(), self.now)
    }

    fn session(&mut self, callee: &str) -> Option<(FullJid, String)> {
        let (alice, callee) =
            (Jid::new("alice@a.example/balcony").unwrap(), Jid::new(callee).unwrap());
        let session = self.proposals.session(&alice, &callee, "a1");
        if let Some((_, theirs)) = &session {
            self.proposals.started(theirs, self.now);
        }
        session
    }
}

fn propose(
    proposals: &mut Proposals,
    id: &str,
    now: Instant,
) -> Result<Vec<Element>, SessionRefusal> {
    let stanza = message("alice@a.example/balcony", CALLEE, "propose", id);
    let resources = vec![full("bob@b.example/phone"), full("bob@b.example/desk")];
    proposals.propose(&stanza, &BareJid::new("bob@b.example").unwrap(), resources, now)
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

#[test]
fn the_first_proceed_wins_and_the_session_goes_there_with_the_id_it_knows() {
    let mut story = Story::begun();
    assert_eq!(
        who(&story.bob("phone", "ringing").unwrap()),
        pairs(&[("alice@a.example/balcony", "ringing")])
    );
    assert_eq!(story.session("bob@b.example"), None, "nobody has taken it");
    let out = story.bob("desk", "proceed").unwrap();
    assert_eq!(
        shown(&out)[0],
        (format!("{CALLEE}/desk"), "alice@a.example/balcony".into(), "proceed".into(), "a1".into())
    );
    assert_eq!(shown(&out)[1].2, "retract");
    assert_eq!(shown(&out)[1].1, "bob@b.example/phone");
    // The other one answers too late.
    assert_eq!(
        who(&story.bob("phone", "proceed").unwrap()),
        pairs(&[("bob@b.example/phone", "retract")])
    );
    assert_eq!(
        story.session("bob@b.example/phone"),
        None,
        "the session belongs to the other resource"
    );
    let theirs = story.theirs.clone();
    assert_eq!(story.session("bob@b.example/desk"), Some((full("bob@b.example/desk"), theirs)));
    assert_eq!(story.session("bob@b.example/desk"), None, "one session for one proposal");
    // Both say that it is over.
    assert_eq!(who(&story.alice("finish").unwrap()), pairs(&[("bob@b.example/desk", "finish")]));
    assert_eq!(
        who(&story.bob("desk", "finish").unwrap()),
        pairs(&[("alice@a.example/balcony", "finish")])
    );
    assert!(story.bob("desk", "finish").is_err());
    assert!(story.proposals.open.is_empty() && story.proposals.deadlines.is_empty());
}

#[test]
fn a_finish_counts_once_for_each_side_after_the_decision_and_extends_nothing() {
    let mut story = Story::begun();
    assert_eq!(story.alice("finish").unwrap_err(), SessionRefusal::NoSuchProposal);
    assert_eq!(story.bob("desk", "finish").unwrap_err(), SessionRefusal::NoSuchProposal);
    assert_eq!(story.proposals.deadline(), Some(story.now + RING));
    story.bob("desk", "proceed").unwrap();
    let deadline = story.proposals.deadline();
    story.now += START / 2;
    let finish = story.alice("finish").unwrap();
    assert_eq!(who(&finish), pairs(&[("bob@b.example/desk", "finish")]));
    assert!(!finish[0].has_child("private", ns::CARBONS), "the other devices may get a copy");
    for _ in 0..3 {
        assert_eq!(story.alice("finish").unwrap_err(), SessionRefusal::NoSuchProposal);
    }
    assert_eq!(story.proposals.deadline(), deadline);
    // A session that has begun: its end is soon forgotten.
    let mut story = Story::begun();
    story.bob("desk", "proceed").unwrap();
    story.session("bob@b.example").unwrap();
    assert_eq!(story.bob("desk", "finish").unwrap().len(), 1);
    assert_eq!(story.bob("desk", "finish").unwrap_err(), SessionRefusal::NoSuchProposal);
    assert_eq!(story.proposals.deadline(), Some(story.now + START));
}

#[test]
fn a_few_answers_to_each_proposal_are_free_also_after_its_end_and_nobody_else_s() {
    let alice = Jid::new("alice@a.example").unwrap();
    let free = |story: &mut Story, from: &str, action: &str, id: &str| {
        let to = "alice\\40a.example@xtls.example.org";
        story.proposals.is_free_answer(&message(from, to, action, id), &alice)
    };
    for is_over in [false, true] {
        let mut story = Story::begun();
        let theirs = story.theirs.clone();
        if is_over {
            story.alice("retract").unwrap();
        }
        for (from, action, id) in [
            ("mallory@m.example/x", "ringing", &*theirs),
            ("bob@b.example/phone", "propose", &theirs),
            ("bob@b.example/phone", "retract", &theirs),
            ("bob@b.example/phone", "ringing", "unknown"),
            ("bob@b.example", "ringing", &theirs),
        ] {
            assert!(!free(&mut story, from, action, id), "{from} {action} {id}");
        }
        let mut count = 0;
        for n in 0..100 {
            let (from, action) = [
                ("bob@b.example/phone", "ringing"),
                ("bob@b.example/desk", "proceed"),
                ("bob@b.example/desk", "reject"),
            ][n % 3];
            count += usize::from(free(&mut story, from, action, &theirs));
        }
        assert_eq!(count, 2 * ANSWERS, "{is_over}");
        // None is left after the end either.
        let _over = story.alice("retract");
        assert!(!free(&mut story, "bob@b.example/desk", "reject", &theirs));
    }
}

#[test]
fn a_reject_ends_it_and_a_retract_reaches_all() {
    let mut story = Story::begun();
    let out = story.bob("phone", "reject").unwrap();
    assert_eq!(
        who(&out),
        pairs(&[("alice@a.example/balcony", "reject"), ("bob@b.example/desk", "retract")])
    );
    assert_eq!(story.bob("desk", "proceed").unwrap_err(), SessionRefusal::NoSuchProposal);
    let mut story = Story::begun();
    let out = story.alice("retract").unwrap();
    assert_eq!(
        who(&out),
        pairs(&[("bob@b.example/phone", "retract"), ("bob@b.example/desk", "retract")])
    );
    assert_eq!(story.bob("desk", "proceed").unwrap_err(), SessionRefusal::NoSuchProposal);
}

#[test]
fn only_who_was_asked_can_answer() {
    let mut story = Story::begun();
    assert_eq!(story.bob("elsewhere", "proceed").unwrap_err(), SessionRefusal::NoSuchProposal);
    let theirs = story.theirs.clone();
    let to = "carol\\40c.example@xtls.example.org";
    let stanza = message("bob@b.example/phone", to, "proceed", &theirs);
    let peer = Jid::new("carol@c.example").unwrap();
    let answer = story.proposals.handle(&stanza, &peer, story.now);
    assert_eq!(answer.unwrap_err(), SessionRefusal::NoSuchProposal);
    let stanza = message("mallory@m.example/x", CALLEE, "retract", "a1");
    let peer = Jid::new("bob@b.example").unwrap();
    assert_eq!(
        story.proposals.handle(&stanza, &peer, story.now).unwrap_err(),
        SessionRefusal::NoSuchProposal
    );
}

#[test]
fn old_proposals_end_on_both_sides_and_none_are_left() {
    let mut story = Story::begun();
    assert_eq!(story.expire(), []);
    story.now += RING;
    let out = story.expire();
    assert_eq!(
        who(&out),
        pairs(&[
            ("bob@b.example/phone", "retract"),
            ("bob@b.example/desk", "retract"),
            ("alice@a.example/balcony", "reject")
        ])
    );
    assert_eq!(story.proposals.deadline(), None);
    assert!(
        story.proposals.between.is_empty()
            && story.proposals.by_told.is_empty()
            && story.proposals.by_initiator.is_empty()
    );
}

#[test]
fn who_goes_away_leaves_nobody_waiting() {
    let mut story = Story::begun();
    assert_eq!(story.proposals.gone(&Jid::new("bob@b.example/phone").unwrap()), []);
    let out = story.proposals.gone(&Jid::new("bob@b.example/desk").unwrap());
    assert_eq!(who(&out), pairs(&[("alice@a.example/balcony", "reject")]));
    let mut story = Story::begun();
    let out = story.proposals.gone(&Jid::new("alice@a.example/balcony").unwrap());
    assert_eq!(
        who(&out),
        pairs(&[("bob@b.example/phone", "retract"), ("bob@b.example/desk", "retract")])
    );
}

#[test]
fn the_number_of_proposals_is_bounded_and_started_sessions_make_room() {
    let mut story = Story::begun();
    let again = propose(&mut story.proposals, "a1", story.now);
    assert_eq!(again.unwrap_err(), SessionRefusal::ProposalExists);
    propose(&mut story.proposals, "a2", story.now).unwrap();
    let third = propose(&mut story.proposals, "a3", story.now);
    assert_eq!(third.unwrap_err(), SessionRefusal::TooManyProposals);
    story.bob("desk", "proceed").unwrap();
    story.session("bob@b.example").unwrap();
    propose(&mut story.proposals, "a3", story.now).unwrap();
    assert_eq!(story.proposals.open.len(), 2);
    let none = story.proposals.propose(
        &message("carol@c.example/x", CALLEE, "propose", "c1"),
        &BareJid::new("bob@b.example").unwrap(),
        Vec::new(),
        story.now,
    );
    assert_eq!(none.unwrap_err(), SessionRefusal::Unreachable);
}

/// A caller, one of many, proposes something to Bob's one resource.
fn call(proposals: &mut Proposals, caller: &str, id: &str, now: Instant) -> bool {
    let stanza = message(&format!("{caller}/x"), CALLEE, "propose", id);
    let resources = vec![full("bob@b.example/phone")];
    proposals.propose(&stanza, &BareJid::new("bob@b.example").unwrap(), resources, now).is_ok()
}

fn many() -> (Proposals, Instant) {
    let (component, now) = (BareJid::new("xtls.example.org").unwrap(), Instant::now());
    (Proposals::new(component, ids, (10_000, 1000), now), now)
}

#[test]
fn callers_share_the_proposals_that_ring_at_one_callee() {
    let (mut proposals, now) = many();
    let mut calls = |caller: &str| {
        (0..20).filter(|n| call(&mut proposals, caller, &format!("p{n}"), now)).count()
    };
    assert_eq!(calls("alice@a.test"), 8);
    let crowd: usize = (0..40).map(|n| calls(&format!("a{n}@evil.example"))).sum();
    assert_eq!(crowd, 124, "a domain has no more than it leaves free");
    assert_eq!(calls("carol@c.test"), 8);
    // The end of a proposal frees its place, and so does its session.
    let (bob, alice) = (Jid::new("bob@b.example").unwrap(), Jid::new("alice@a.test/x").unwrap());
    let retract = message("alice@a.test/x", CALLEE, "retract", "p0");
    proposals.handle(&retract, &bob, now).unwrap();
    assert!(call(&mut proposals, "alice@a.test", "q0", now));
    assert!(!call(&mut proposals, "alice@a.test", "q1", now));
    let theirs = proposals.by_initiator[&alice]["p1"].clone();
    let mask = "alice\\40a.test@xtls.example.org/x";
    let proceed = message("bob@b.example/phone", mask, "proceed", &theirs);
    proposals.handle(&proceed, &alice, now).unwrap();
    assert!(!call(&mut proposals, "alice@a.test", "q1", now));
    proposals.started(&theirs, now);
    assert!(call(&mut proposals, "alice@a.test", "q1", now));
    assert!(!call(&mut proposals, "alice@a.test", "q2", now));
    let ended = proposals.gone(&Jid::new("bob@b.example/phone").unwrap());
    assert_eq!(ended.len(), 8 + 124 + 8);
    assert!(proposals.to_callees.is_empty() && proposals.by_told.is_empty());
    assert_eq!(proposals.open.len(), 1, "the session reports its own end");
}

/// Presences of resources that are not there come at any rate.
#[test]
fn a_presence_costs_no_more_for_the_proposals_that_it_is_not_about() {
    let (mut proposals, now) = many();
    for domain in 0..6 {
        for n in 0..256 {
            call(&mut proposals, &format!("a{n}@evil{domain}.example"), "p", now);
        }
    }
    assert!(proposals.open.len() > 200);
    let nobody = full("bob@b.example/nobody");
    assert_eq!(proposals.gone(&nobody.clone().into()), []);
    proposals.here(&nobody);
    assert_eq!(proposals.silent(&nobody, now, true, ""), []);
    // A presence touches the proposals that are kept for its resource, and these are the ones that it was told of.
    let told: usize = proposals.open.values().map(|proposal| proposal.told.len()).sum();
    assert_eq!(told, proposals.by_told.values().map(|told| told.ids.len()).sum::<usize>());
    for (theirs, proposal) in &proposals.open {
        assert!(proposal.told.iter().all(|told| proposals.by_told[&told.jid].ids.contains(theirs)));
    }
}

/// Another proposal says nothing new of the resources that are silent.
#[test]
fn a_later_proposal_does_not_make_an_earlier_one_ring_longer() {
    let mut story = Story::begun();
    let silent = |story: &mut Story, resource: &str| {
        let user = full(&format!("bob@b.example/{resource}"));
        story.proposals.silent(&user, story.now, true, "it may be blocked")
    };
    assert_eq!(silent(&mut story, "phone"), []);
    propose(&mut story.proposals, "a2", story.now).unwrap();
    let alice = Jid::new("alice@a.example/balcony").unwrap();
    let (phone, since) = (full("bob@b.example/phone"), story.now);
    story.proposals.silent_before(&alice, "a2", [(&phone, since)].into_iter());
    let ended = silent(&mut story, "desk");
    assert_eq!(who(&ended).last().unwrap().1, "reject", "{:?}", who(&ended));
    assert_eq!(shown(&ended).last().unwrap().3, "a1");
    assert_eq!(ended.len(), 3);
    assert_eq!(story.proposals.deadline(), Some(story.now + QUIET), "the other one rings nowhere");
}

/// The two users have agreed on nothing yet.
#[test]
fn nothing_goes_with_a_proposal_that_clients_take_for_something_else() {
    let beside = [
        "<body xmlns='jabber:client'>pay here</body>",
        "<subject xmlns='jabber:client'>urgent</subject>",
        "<thread xmlns='jabber:client'>t</thread>",
        "<received xmlns='urn:xmpp:carbons:2'><forwarded xmlns='urn:xmpp:forward:0'><message \
         xmlns='jabber:client' from='bank@bank.test'><body>pay</body></message></forwarded></received>",
        "<x xmlns='jabber:x:conference' jid='room@evil.test'/>",
        "<x xmlns='jabber:x:oob'><url>https://evil.test/</url></x>",
        "<delay xmlns='urn:xmpp:delay' from='b.example' stamp='2020-01-01T00:00:00Z'/>",
        "<stanza-id xmlns='urn:xmpp:sid:0' by='bob@b.example' id='1'/>",
        "<origin-id xmlns='urn:xmpp:sid:0' id='1'/>",
        "<request xmlns='urn:xmpp:receipts'/>",
        "<markable xmlns='urn:xmpp:chat-markers:0'/>",
        "<replace xmlns='urn:xmpp:message-correct:0' id='m0'/>",
        "<composing xmlns='http://jabber.org/protocol/chatstates'/>",
        "<event xmlns='http://jabber.org/protocol/pubsub#event'/>",
        "<encrypted xmlns='eu.siacs.conversations.axolotl'/>",
        "<propose xmlns='urn:xmpp:jingle-message:1' id='x'/>",
    ];
    let add = |mut stanza: Stanza| {
        for text in beside {
            stanza.element.append_child(text.parse().unwrap());
        }
        stanza.element.append_child("<no-copy xmlns='urn:xmpp:hints'/>".parse().unwrap());
        stanza.element.append_text("text beside it");
        stanza
    };
    let check = |passed: &Element, extra: &[&str]| {
        let names: Vec<String> =
            passed.children().map(|child| format!("{} {}", child.name(), child.ns())).collect();
        let mut expected = vec![names[0].clone()];
        expected.extend(
            ["store urn:xmpp:hints", "other urn:o", "no-copy urn:xmpp:hints"].map(str::to_owned),
        );
        expected.extend(extra.iter().map(|name| (*name).to_owned()));
        assert_eq!(names, expected);
        assert!(names[0].ends_with(ns::JINGLE_MESSAGE), "{names:?}");
        assert_eq!(passed.texts().collect::<String>(), "");
        assert_eq!(passed.attr("type"), Some("chat"));
    };
    let mut story = Story::begun();
    let proposed = add(message("alice@a.example/balcony", CALLEE, "propose", "a2"));
    let (callee, phone) = (BareJid::new("bob@b.example").unwrap(), full("bob@b.example/phone"));
    let out = story.proposals.propose(&proposed, &callee, vec![phone], story.now).unwrap();
    check(&out[0], &["private urn:xmpp:carbons:2"]);
    let mask = "alice\\40a.example@xtls.example.org";
    let peer = Jid::new("alice@a.example").unwrap();
    for action in ["ringing", "proceed", "finish"] {
        let said = add(message("bob@b.example/phone", mask, action, &story.theirs));
        let out = story.proposals.handle(&said, &peer, story.now).unwrap();
        check(&out[0], &[]);
    }
    let retracted = add(message("alice@a.example/balcony", CALLEE, "retract", "a2"));
    let out = story.proposals.handle(&retracted, &callee.into(), story.now).unwrap();
    check(&out[0], &["private urn:xmpp:carbons:2"]);
}

/// A callee need not be a user of the service, and nothing is charged for the first answers.
#[test]
fn a_resource_rings_once() {
    let mut story = Story::begun();
    let mut heard = Vec::new();
    for n in 0..100 {
        let resource = ["phone", "desk"][n % 2];
        heard.extend(who(&story.bob(resource, "ringing").unwrap()));
    }
    assert_eq!(heard, pairs(&[("alice@a.example/balcony", "ringing"); 2]));
}

#[test]
fn a_message_about_a_proposal_is_short_and_counts_for_each_resource() {
    let mut stanza = message("alice@a.example/balcony", CALLEE, "propose", "a1");
    let length = Proposals::length(&stanza).unwrap();
    assert_eq!(length, size::of(&stanza.element).unwrap());
    let mut filling = Element::bare("x", "urn:x");
    filling.append_text("a".repeat(LONGEST - length - "<x xmlns='urn:x'></x>".len()));
    stanza.element.append_child(filling);
    let length = Proposals::length(&stanza).unwrap();
    assert!((LONGEST - 10..=LONGEST).contains(&length), "{length}");
    stanza.element.append_child(Element::bare("one-more", "urn:x"));
    let refusal = Refusal::from(Proposals::length(&stanza).unwrap_err());
    assert_eq!(refusal.condition, Condition::PolicyViolation);
    let story = Story::begun();
    let from = |user: &str, action: &str| message(user, CALLEE, action, "a1");
    assert_eq!(story.proposals.copies(&from("alice@a.example/balcony", "retract")), 2);
    assert_eq!(story.proposals.copies(&from("alice@a.example/balcony", "finish")), 1);
    assert_eq!(story.proposals.copies(&from("mallory@m.example/x", "retract")), 1);
}

/// The broker may have no place for it.
#[test]
fn a_session_that_does_not_come_about_may_be_started_again() {
    let mut story = Story::begun();
    story.bob("phone", "proceed").unwrap();
    let (alice, bob) =
        (Jid::new("alice@a.example/balcony").unwrap(), Jid::new("bob@b.example").unwrap());
    let first = story.proposals.session(&alice, &bob, "a1");
    assert!(first.is_some());
    assert_eq!(story.proposals.session(&alice, &bob, "a1"), first);
    story.proposals.started(&first.unwrap().1, story.now);
    assert_eq!(story.proposals.session(&alice, &bob, "a1"), None);
}

#[test]
fn two_that_propose_to_each_other_find_the_same_one_lower() {
    for other in ["0", "a0", "a1x", "z", "~~~~"] {
        let mut story = Story::begun();
        let stanza =
            message("bob@b.example/desk", "alice\\40a.example@xtls.example.org", "propose", other);
        let alice = BareJid::new("alice@a.example").unwrap();
        let resources = vec![full("alice@a.example/balcony")];
        let out = story.proposals.propose(&stanza, &alice, resources, story.now).unwrap();
        let seen = shown(&out)[0].3.clone();
        // Alice compares her "a1" with the id that she sees, Bob his own with the one that he sees.
        assert_eq!(seen.as_str() < "a1", other < story.theirs.as_str(), "{other} {seen}");
    }
}

/// A message that is too long to be passed on is refused, and changes nothing.
#[test]
fn a_message_too_long_to_be_passed_on_is_refused_to_its_sender() {
    let long = |from: &str, to: &str, action: &str, id: &str, length: usize| {
        let mut stanza = message(from, to, action, id);
        let mut filling = Element::bare("filling", "urn:x");
        filling.append_text("&".repeat(length));
        stanza.element.append_child(filling);
        stanza
    };
    let (alice, bob) = ("alice@a.lit/a", "bob@b.lit/one");
    let (their_mask, own_mask) = ("bob\\40b.lit@x.lit", "alice\\40a.lit@x.lit/a");
    let now = Instant::now();
    let mut proposals = Proposals::new(BareJid::new("x.lit").unwrap(), ids, (3, 2), now);
    let callee = BareJid::new("bob@b.lit").unwrap();
    let propose = |proposals: &mut Proposals, length: usize| {
        let stanza = long(alice, their_mask, "propose", "p", length);
        proposals.propose(&stanza, &callee, vec![full(bob)], now)
    };
    let limit = size::of(&propose(&mut proposals, 1000).unwrap()[0]).unwrap();
    for (length, fits) in [(999, true), (1000, true), (1001, false)] {
        let mut proposals = Proposals::new(BareJid::new("x.lit").unwrap(), ids, (3, 2), now);
        proposals.set_max_stanza_bytes(limit);
        let proposed = propose(&mut proposals, length);
        assert_eq!(proposed.is_ok(), fits, "{length}");
        let Ok(out) = proposed else {
            assert_eq!(Refusal::from(proposed.unwrap_err()).condition, Condition::PolicyViolation);
            assert_eq!(proposals.deadline(), None, "nothing was begun");
            continue;
        };
        assert!(size::of(&out[0]).unwrap() <= limit);
        let theirs = out[0].children().find_map(|child| child.attr("id")).unwrap();
        let peer = Jid::new(alice).unwrap();
        let said = |proposals: &mut Proposals, action: &str, length: usize| {
            let stanza = long(bob, own_mask, action, theirs, length);
            proposals.handle(&stanza, &peer, now)
        };
        let refused = Refusal::from(said(&mut proposals, "proceed", 2000).unwrap_err());
        assert_eq!(refused.condition, Condition::PolicyViolation);
        assert_eq!(said(&mut proposals, "proceed", 10).unwrap().len(), 1);
        let retracted = long(alice, their_mask, "retract", "p", 2000);
        let refused =
            Refusal::from(proposals.handle(&retracted, &callee.clone().into(), now).unwrap_err());
        assert_eq!(refused.condition, Condition::PolicyViolation);
    }
}

/// The proposal wakes a sleeping device, which takes a while.
#[test]
fn what_rings_nowhere_is_rejected_when_those_who_may_wake_up_have_had_their_time() {
    let silent = |story: &mut Story, resource: &str, is_refused: bool| {
        let user = full(&format!("bob@b.example/{resource}"));
        story.proposals.silent(&user, story.now, is_refused, "it may be blocked")
    };
    let all = pairs(&[
        ("bob@b.example/phone", "retract"),
        ("bob@b.example/desk", "retract"),
        ("alice@a.example/balcony", "reject"),
    ]);
    let said = |out: &[Element]| {
        assert_eq!(who(out), all);
        let said = out[2].get_child("reject", ns::JINGLE_MESSAGE).unwrap();
        let reason = said.get_child("reason", ns::JINGLE).unwrap();
        assert!(reason.has_child("timeout", ns::JINGLE));
        reason.get_child("text", ns::JINGLE).unwrap().text()
    };
    let quiet = || {
        let mut story = Story::begun();
        let began = story.now;
        story.now += Duration::from_secs(3);
        for resource in ["phone", "stranger", "desk"] {
            assert_eq!(silent(&mut story, resource, false), []);
        }
        assert_eq!(story.proposals.deadline(), Some(began + QUIET));
        (story, began)
    };
    let (mut story, began) = quiet();
    assert_eq!(story.expire(), []);
    story.now = began + QUIET;
    assert_eq!(said(&story.expire()), "bob@b.example is not answering since then");
    // A device wakes up: it rings, comes back, or answers late.
    for wakes in
        [(|story| drop(story.bob("phone", "ringing").unwrap())) as fn(&mut Story), |story| {
            story.proposals.here(&full("bob@b.example/phone"))
        }]
    {
        let (mut story, began) = quiet();
        wakes(&mut story);
        assert_eq!(story.proposals.deadline(), Some(began + RING));
        story.now = began + QUIET;
        assert_eq!(story.expire(), []);
        story.bob("phone", "proceed").unwrap();
        assert_eq!(silent(&mut story, "phone", true), []);
    }
    // Nothing is delivered to anyone.
    let mut story = Story::begun();
    assert_eq!(silent(&mut story, "phone", false), []);
    assert_eq!(silent(&mut story, "desk", true), []);
    assert_eq!(said(&silent(&mut story, "phone", true)), "it may be blocked");
    // One may wake up, the other is gone.
    let (mut story, began) = quiet();
    assert_eq!(story.proposals.gone(&Jid::new("bob@b.example/desk").unwrap()), []);
    story.now = began + QUIET;
    let out = story.expire();
    assert_eq!(
        who(&out),
        pairs(&[("bob@b.example/phone", "retract"), ("alice@a.example/balcony", "reject")])
    );
    let mut story = Story::begun();
    silent(&mut story, "phone", true);
    let out = story.proposals.gone(&Jid::new("bob@b.example/desk").unwrap());
    assert_eq!(who(&out), pairs(&[("alice@a.example/balcony", "reject")]));
}
