use std::time::Duration;

use fingerpost_carry::outbound::QueuedStanza;
use fingerpost_secure::identity::Identity;
use fingerpost_wire::{
    print::{HashKind, Print},
    transport_kind::TransportKind,
    xml,
};

use super::*;
use crate::{Builder, FirstUse, Incoming, login::Connection};

const OWN: &str = "bob@b.example/x";
const ALICE: &str = "alice@a.example/x";
const MALLORY: &str = "mallory@m.example/x";
const COMPONENT: &str = "xtls.example.org";
const PROXIED_MALLORY: &str = "mallory\\40m.example@xtls.example.org/x";
const APP: &str = "urn:example:app";

/// Answers everything for the application in the same way; expects carol.
#[derive(Debug)]
struct Always(ProposalAnswer);

impl Ringer for Always {
    fn expects(&self, peer: &BareJid) -> bool {
        peer.as_str() == "carol@c.example"
    }

    fn answer(&self, proposed: &Proposed) -> ProposalAnswer {
        match proposed.descriptions().iter().all(|description| description.has_ns(APP)) {
            true => self.0,
            false => ProposalAnswer::Silence,
        }
    }
}

/// Bob's endpoint, which knows Alice's key, between queues.
struct Scene {
    endpoint: Endpoint,
    incoming: Incoming,
    sent: mpsc::Receiver<QueuedStanza>,
    stanzas: mpsc::Sender<Stanza>,
}

fn builder() -> Builder {
    let own = BareJid::new("bob@b.example").unwrap();
    let print = Print::new(HashKind::Sha256, &[7; 32]).unwrap();
    let policy = FirstUse::default().with(BareJid::new("alice@a.example").unwrap(), print);
    let identity = Identity::generate(&own).unwrap();
    Endpoint::builder(identity).policy(policy).transport(TransportKind::Ibb)
}

fn component() -> BareJid {
    BareJid::new(COMPONENT).unwrap()
}

impl Scene {
    fn new(builder: Builder) -> Self {
        let (outbound, sent) = mpsc::channel(64);
        let (stanzas, inbound) = mpsc::channel(64);
        let (jid, task) = (FullJid::new(OWN).unwrap(), tokio::spawn(async {}));
        let (endpoint, incoming) = builder.over(Connection { jid, outbound, inbound, task });
        Self { endpoint, incoming, sent, stanzas }
    }

    async fn hear(&self, text: &str) {
        self.stanzas.send(Stanza::parse(text.parse().unwrap()).unwrap()).await.unwrap();
    }

    async fn next(&mut self) -> Element {
        let next = tokio::time::timeout(Duration::from_secs(60), self.sent.recv()).await;
        next.expect("a stanza is sent").unwrap().into_element()
    }

    /// Returns addressee, action and id of the next message.
    async fn said(&mut self) -> (String, String, String) {
        let message = self.next().await;
        let said = wire::read(&message).unwrap_or_else(|| panic!("{message:?}"));
        assert_eq!((message.attr("from"), message.attr("type")), (Some(OWN), Some("chat")));
        assert!(message.has_child("store", ns::PROCESSING_HINTS));
        let to = message.attr("to").unwrap().to_owned();
        (to, said.name().to_owned(), said.attr("id").unwrap().to_owned())
    }

    async fn says(&mut self, to: &str, action: &str, id: &str) {
        assert_eq!(self.said().await, (to.to_owned(), action.to_owned(), id.to_owned()));
    }

    /// Checks that nothing was said to whatever came so far.
    async fn says_nothing(&mut self) {
        let ping = "<iq xmlns='jabber:client' type='get' id='ping' from='b.example' to='bob@b.example/x'>\
                    <ping xmlns='urn:xmpp:ping'/></iq>";
        self.hear(ping).await;
        let next = self.next().await;
        assert_eq!((next.name(), next.attr("id")), ("iq", Some("ping")), "{next:?}");
    }
}

fn message(from: &str, to: &str, action: &str, id: &str, inside: &str) -> String {
    format!(
        "<message xmlns='jabber:client' type='chat' from='{from}' to='{to}' id='m'>\
         <{action} xmlns='urn:xmpp:jingle-message:0' id='{id}'>{inside}</{action}></message>"
    )
}

fn propose(from: &str, id: &str) -> String {
    message(from, OWN, "propose", id, "<description xmlns='urn:example:app'/>")
}

fn copy(of: &str, name: &str, by: &str) -> String {
    format!(
        "<message xmlns='jabber:client' type='chat' from='{by}' to='{OWN}'>\
         <{name} xmlns='urn:xmpp:carbons:2'><forwarded xmlns='urn:xmpp:forward:0'>{of}</forwarded></{name}></message>"
    )
}

#[tokio::test]
async fn past_a_broker_only_peers_that_are_known_or_expected_learn_that_the_user_is_here() {
    let mut bob = Scene::new(builder().ringer(Always(ProposalAnswer::Proceed)));
    bob.hear(&propose(MALLORY, "p")).await;
    bob.hear(&propose(PROXIED_MALLORY, "p")).await;
    bob.says_nothing().await;
    for from in [ALICE, "carol@c.example/x"] {
        bob.hear(&propose(from, "p")).await;
        bob.says(from, "proceed", "p").await;
    }
    // With a broker, direct sessions are not accepted, and not answered.
    let brokered = builder().via(component()).ringer(Always(ProposalAnswer::Proceed));
    let mut bob = Scene::new(brokered.clone());
    for from in [ALICE, MALLORY, COMPONENT, "mallory@xtls.example.org"] {
        bob.hear(&propose(from, "p")).await;
    }
    bob.says_nothing().await;
    bob.hear(&propose(PROXIED_MALLORY, "p")).await;
    bob.says(PROXIED_MALLORY, "proceed", "p").await;
    let mut bob = Scene::new(brokered.accept_direct(true));
    bob.hear(&propose(MALLORY, "p")).await;
    bob.says_nothing().await;
    bob.hear(&propose(ALICE, "p")).await;
    bob.says(ALICE, "proceed", "p").await;
}

#[tokio::test]
async fn only_whole_and_recent_proposals_of_a_wanted_application_are_answered() {
    let mut bob = Scene::new(builder().ringer(Always(ProposalAnswer::Proceed)));
    let good = propose(ALICE, "p");
    let described = "<description xmlns='urn:example:app'/>";
    let late = "<delay xmlns='urn:xmpp:delay' stamp='2020-01-01T00:00:00Z'/></message>";
    for bad in [
        message(ALICE, OWN, "propose", "p", ""),
        message(ALICE, OWN, "propose", "", described),
        message(ALICE, OWN, "propose", &"i".repeat(257), described),
        message(ALICE, OWN, "propose", "p", "<description xmlns='urn:example:other'/>"),
        message(ALICE, OWN, "propose", "p", &described.repeat(KINDS + 1)),
        message(ALICE, "bob@b.example/other", "propose", "p", described),
        message("alice@a.example", OWN, "propose", "p", described),
        message(ALICE, OWN, "invite", "p", described),
        good.replace("type='chat'", "type='groupchat'"),
        good.replace("type='chat'", "type='error'"),
        good.replace("type='chat' ", ""),
        good.replace("</message>", late),
        good.replace("</message>", "<delay xmlns='urn:xmpp:delay' stamp='soon'/></message>"),
        good.replace("</message>", "<retract xmlns='urn:xmpp:jingle-message:0' id='p'/></message>"),
        "<message xmlns='jabber:client' type='chat' from='alice@a.example/x' to='bob@b.example/x'>\
         <body>hello</body></message>"
            .to_owned(),
    ] {
        bob.hear(&bad).await;
        bob.says_nothing().await;
    }
    let long = |length: usize| {
        let name = "n".repeat(length);
        let name = format!("<description xmlns='urn:example:app' name='{name}'/>");
        message(ALICE, OWN, "propose", &length.to_string(), &name.repeat(2))
    };
    bob.hear(&long(DESCRIPTIONS / 2)).await;
    bob.says_nothing().await;
    bob.hear(&long(DESCRIPTIONS / 2 - 100)).await;
    bob.says(ALICE, "proceed", &(DESCRIPTIONS / 2 - 100).to_string()).await;
    bob.hear(&good).await;
    bob.hear(&good).await;
    bob.says(ALICE, "proceed", "p").await;
    bob.says_nothing().await;
    // Without a ringer, none is.
    let mut bob = Scene::new(builder());
    bob.hear(&good).await;
    bob.says_nothing().await;
}

#[tokio::test]
async fn copies_count_only_from_our_own_server() {
    let mut bob = Scene::new(builder().ringer(Always(ProposalAnswer::Ring)));
    let of_alice =
        message(ALICE, "bob@b.example", "propose", "p", "<description xmlns='urn:example:app'/>");
    for by in [MALLORY, "mallory@m.example", ALICE, "b.example", OWN] {
        bob.hear(&copy(&of_alice, "received", by)).await;
    }
    let to_carol = of_alice.replace("bob@b.example", "carol@c.example");
    bob.hear(&copy(&to_carol, "received", "bob@b.example")).await;
    bob.hear(&copy(&of_alice, "sent", "bob@b.example")).await;
    bob.says_nothing().await;
    bob.hear(&copy(&of_alice, "received", "bob@b.example")).await;
    bob.says(ALICE, "ringing", "p").await;
    let rings = |bob: &Scene| {
        let from = FullJid::new(ALICE).unwrap();
        bob.endpoint.hub().initiations().open.rings(&from, "p", Instant::now())
    };
    // Another device of Bob's takes it.
    let taken = message("bob@b.example/phone", ALICE, "proceed", "p", "");
    bob.hear(&copy(&taken, "sent", MALLORY)).await;
    bob.hear(&copy(
        &taken.replace("phone", "x").replace("bob@", "mallory@"),
        "sent",
        "bob@b.example",
    ))
    .await;
    bob.says_nothing().await;
    assert!(rings(&bob));
    bob.hear(&copy(&taken, "sent", "bob@b.example")).await;
    bob.says_nothing().await;
    assert!(!rings(&bob));
}

#[tokio::test(start_paused = true)]
async fn it_is_available_only_if_that_is_wanted_and_says_so_once() {
    for (builder, available) in [(builder(), false), (builder().available(true), true)] {
        let mut bob = Scene::new(builder);
        // Nobody answers the ping at the end.
        bob.endpoint.appear(1).await;
        bob.endpoint.appear(1).await;
        let mut sent = Vec::new();
        while let Ok(stanza) = bob.sent.try_recv() {
            sent.push(stanza.into_element());
        }
        let presences: Vec<_> = sent.iter().filter(|stanza| stanza.name() == "presence").collect();
        let copies = sent.iter().filter(|stanza| stanza.has_child("enable", ns::CARBONS)).count();
        assert_eq!((presences.len(), copies), (available.into(), available.into()), "{sent:?}");
        for presence in presences {
            let priority = presence.get_child("priority", ns::CLIENT).unwrap().text();
            assert_eq!(
                (presence.attr("to"), presence.attr("type"), &*priority),
                (None, None, "-1")
            );
        }
    }
}

#[tokio::test]
async fn answers_are_announced_only_if_they_are_given() {
    let answers = builder().ringer(Always(ProposalAnswer::Ring));
    for (builder, expected) in [(builder(), false), (answers, true)] {
        let mut bob = Scene::new(builder);
        bob.hear(
            "<iq xmlns='jabber:client' type='get' id='i' from='alice@a.example/x' to='bob@b.example/x'>\
             <query xmlns='http://jabber.org/protocol/disco#info'/></iq>",
        )
        .await;
        let info = bob.next().await;
        let query = info.get_child("query", ns::DISCO_INFO).unwrap();
        let is_announced = xml::features(query).any(|feature| feature == ns::JINGLE_MESSAGE);
        assert_eq!(is_announced, expected);
    }
}

#[tokio::test]
async fn a_program_that_rings_decides_later() {
    #[derive(Debug)]
    struct Later(mpsc::UnboundedSender<Proposed>);
    impl Ringer for Later {
        fn answer(&self, proposed: &Proposed) -> ProposalAnswer {
            self.0.send(proposed.clone()).unwrap();
            ProposalAnswer::Ring
        }
    }
    let (sender, mut rung) = mpsc::unbounded_channel();
    let mut bob = Scene::new(builder().ringer(Later(sender)));
    for (id, decision) in [("p", "proceed"), ("q", "reject"), ("r", "retract")] {
        bob.hear(&propose(ALICE, id)).await;
        bob.says(ALICE, "ringing", id).await;
        let proposed = rung.recv().await.unwrap();
        assert!(proposed.rings() && proposed.peer().as_str() == "alice@a.example");
        match decision {
            "proceed" => assert!(proposed.proceed().await),
            "reject" => assert!(proposed.reject().await),
            _ => {
                bob.hear(&message(ALICE, OWN, decision, id, "")).await;
                bob.says_nothing().await;
            }
        }
        if decision != "retract" {
            bob.says(ALICE, decision, id).await;
        }
        assert!(!proposed.rings() && !proposed.proceed().await && !proposed.reject().await);
    }
    bob.says_nothing().await;
}

#[tokio::test]
async fn a_proposal_goes_to_the_bare_address_without_a_word_about_the_content() {
    let mut secret = Element::bare("description", APP);
    secret.append_text("letter.pdf");
    let application = Application::described(secret);
    let proxied = "alice\\40a.example@xtls.example.org";
    for (builder, peer, to) in [
        (builder(), "alice@a.example", "alice@a.example"),
        (builder(), ALICE, "alice@a.example"),
        (builder().via(component()), "alice@a.example", proxied),
        (builder().via(component()), ALICE, proxied),
    ] {
        let mut bob = Scene::new(builder);
        let proposal = bob.endpoint.propose(&Jid::new(peer).unwrap(), &application).await.unwrap();
        let message = bob.next().await;
        assert_eq!(message.attr("to"), Some(to));
        assert_eq!(message.attr("id"), Some(proposal.id()));
        let said = wire::read(&message).unwrap();
        let [description] = &said.children().collect::<Vec<_>>()[..] else { panic!("{said:?}") };
        assert_eq!(**description, Element::bare("description", APP));
        let id = proposal.id().to_owned();
        drop(proposal);
        bob.says(to, "retract", &id).await;
        bob.says_nothing().await;
    }
}

/// Bob proposes to Alice; returns the proposal when her desk has taken it.
async fn taken(bob: &mut Scene) -> Proposal {
    let peer = Jid::new("alice@a.example").unwrap();
    let mut proposal = bob.endpoint.propose(&peer, &Application::tls()).await.unwrap();
    let (_, _, id) = bob.said().await;
    for (from, action) in [
        (MALLORY, "proceed"),
        ("alice@a.example/phone", "ringing"),
        ("alice@a.example/desk", "proceed"),
        ("alice@a.example/phone", "proceed"),
    ] {
        bob.hear(&message(from, OWN, action, &id, "")).await;
    }
    assert_eq!(proposal.next().await, Ok(ProposalNews::Ringing));
    assert_eq!(proposal.next().await, Ok(ProposalNews::Proceeds));
    proposal
}

#[tokio::test]
async fn the_session_goes_to_the_resource_that_proceeds_under_the_proposal_s_id() {
    for is_accepted in [true, false] {
        let mut bob = Scene::new(builder());
        let proposal = taken(&mut bob).await;
        let id = proposal.id().to_owned();
        let session = tokio::spawn(async move { proposal.initiate(&Application::tls()).await });
        let initiate = bob.next().await;
        let jingle = initiate.get_child("jingle", ns::JINGLE).unwrap();
        assert_eq!(initiate.attr("to"), Some("alice@a.example/desk"));
        assert_eq!(
            (jingle.attr("action"), jingle.attr("sid")),
            (Some("session-initiate"), Some(&*id))
        );
        let iq = initiate.attr("id").unwrap();
        let (type_, inside) = match is_accepted {
            true => ("result", ""),
            false => (
                "error",
                "<error type='cancel'><service-unavailable xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error>",
            ),
        };
        bob.hear(&format!(
            "<iq xmlns='jabber:client' type='{type_}' id='{iq}' from='alice@a.example/desk' to='{OWN}'>{inside}</iq>"
        ))
        .await;
        if is_accepted {
            bob.hear(&format!(
                "<iq xmlns='jabber:client' type='set' id='t' from='alice@a.example/desk' to='{OWN}'>\
                 <jingle xmlns='urn:xmpp:jingle:1' action='session-terminate' sid='{id}'>\
                 <reason><decline/></reason></jingle></iq>"
            ))
            .await;
            assert_eq!(bob.next().await.attr("id"), Some("t"));
            bob.says("alice@a.example/desk", "finish", &id).await;
            assert!(matches!(session.await.unwrap(), Err(Error::Refused(_))));
        } else {
            bob.says("alice@a.example", "retract", &id).await;
            assert!(matches!(session.await.unwrap(), Err(Error::Unreachable(_))));
        }
        bob.says_nothing().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_callee_says_at_the_end_of_a_proposed_session_that_it_is_over() {
    let mut bob = Scene::new(builder().ringer(Always(ProposalAnswer::Proceed)));
    bob.hear(&propose(ALICE, "p")).await;
    bob.says(ALICE, "proceed", "p").await;
    for (sid, is_proposed) in [("q", false), ("p", true)] {
        bob.hear(&format!(
            "<iq xmlns='jabber:client' type='set' id='i' from='{ALICE}' to='{OWN}'>\
             <jingle xmlns='urn:xmpp:jingle:1' action='session-initiate' sid='{sid}'>\
             <content creator='initiator' name='c'><description xmlns='urn:example:app'/></content></jingle></iq>"
        ))
        .await;
        assert_eq!(bob.next().await.attr("type"), Some("result"));
        drop(bob.incoming.next().await.unwrap());
        assert!(bob.next().await.get_child("jingle", ns::JINGLE).is_some());
        if is_proposed {
            bob.says(ALICE, "finish", "p").await;
        }
        bob.says_nothing().await;
    }
}

#[tokio::test]
async fn the_broker_s_refusal_ends_a_proposal_and_no_other_one_does() {
    let mut bob = Scene::new(builder().via(component()));
    let peer = Jid::new("alice@a.example").unwrap();
    let proxied = "alice\\40a.example@xtls.example.org";
    for (name, is_away) in [("recipient-unavailable", true), ("forbidden", false)] {
        let mut proposal = bob.endpoint.propose(&peer, &Application::tls()).await.unwrap();
        let id = proposal.id().to_owned();
        bob.says(proxied, "propose", &id).await;
        for from in
            ["b.example", "mallory\\40m.example@xtls.example.org", "alice@a.example", proxied]
        {
            assert!(
                bob.endpoint.hub().initiations().open.is_unheard(&id, &Jid::new(proxied).unwrap())
            );
            bob.hear(&format!(
                "<message xmlns='jabber:client' type='error' id='{id}' from='{from}' to='{OWN}'><error type='wait'>\
                 <{name} xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></message>"
            ))
            .await;
            bob.says_nothing().await;
        }
        let refused = proposal.next().await.unwrap_err();
        assert_eq!(matches!(refused, Error::Unreachable(_)), is_away, "{refused:?}");
        assert_eq!(matches!(refused, Error::Failed(_)), !is_away, "{refused:?}");
        drop(proposal);
        bob.says_nothing().await;
    }
}

#[tokio::test]
async fn of_two_proposals_that_cross_the_higher_one_is_taken_back_or_rejected() {
    for (theirs, stays) in [("!", false), ("~", true)] {
        let mut bob = Scene::new(builder().ringer(Always(ProposalAnswer::Proceed)));
        let peer = Jid::new("alice@a.example").unwrap();
        let mut proposal = bob.endpoint.propose(&peer, &Application::tls()).await.unwrap();
        let id = proposal.id().to_owned();
        bob.says("alice@a.example", "propose", &id).await;
        bob.hear(&propose(ALICE, theirs)).await;
        let said = bob.next().await;
        let element = wire::read(&said).unwrap();
        assert!(element.has_child("tie-break", ns::JINGLE_MESSAGE));
        assert_eq!(wire::reason_of(element), Some(Reason::Expired));
        let shown = (said.attr("to").unwrap(), element.name(), element.attr("id").unwrap());
        if stays {
            assert_eq!(shown, (ALICE, "reject", theirs));
            bob.hear(&message(ALICE, OWN, "proceed", &id, "")).await;
            assert_eq!(proposal.next().await, Ok(ProposalNews::Proceeds));
        } else {
            assert_eq!(shown, ("alice@a.example", "retract", &*id));
            bob.says(ALICE, "proceed", theirs).await;
            assert!(matches!(proposal.next().await, Err(Error::Silent(_))));
            drop(proposal);
        }
        bob.says_nothing().await;
    }
}

#[tokio::test]
async fn a_lost_session_with_the_server_ends_its_proposals() {
    let bob = Scene::new(builder());
    let peer = Jid::new("alice@a.example").unwrap();
    let mut proposal = bob.endpoint.propose(&peer, &Application::tls()).await.unwrap();
    drop(bob.stanzas);
    assert_eq!(proposal.next().await, Err(Error::Disconnected));
}
