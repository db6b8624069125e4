//! Any inputs in any order.

use proptest::prelude::*;

use super::*;

const ACTIONS: [&str; 13] = [
    "session-accept",
    "session-info",
    "security-info",
    "transport-info",
    "transport-info",
    "transport-replace",
    "transport-replace",
    "transport-accept",
    "transport-reject",
    "content-add",
    "content-remove",
    "session-initiate",
    "dance",
];

/// Returns what a Jingle element may hold.
fn inside() -> impl Strategy<Value = String> {
    let socks5 = prop::sample::select(vec![
        "<candidate-used cid='x'/>",
        "<candidate-error/>",
        "<activated cid='x'/>",
        "<proxy-error/>",
        "<nonsense/>",
    ]);
    prop_oneof![
        4 => socks5.prop_map(news),
        3 => Just(content(IBB_OFFER)),
        1 => Just(content(S5B_OFFER)),
        1 => Just(content("").replace("name='c'", "name='other'")),
        1 => Just(String::new()),
    ]
}

/// One input.
#[derive(Clone, Debug)]
enum News {
    Answered(usize, u8),
    Arrived(Side),
    Features(bool),
    Jingle(Side, usize, String),
    Keys(Side, bool),
    Open(Side),
    Terminate(Side),
    Time,
}

fn any_news() -> impl Strategy<Value = News> {
    let side = || prop::sample::select(vec![Side::Initiator, Side::Responder]);
    prop_oneof![
        6 => (any::<usize>(), 0..20u8).prop_map(|(which, how)| News::Answered(which, how)),
        2 => side().prop_map(News::Arrived),
        2 => any::<bool>().prop_map(News::Features),
        16 => (side(), 0..ACTIONS.len(), inside()).prop_map(|(s, a, i)| News::Jingle(s, a, i)),
        3 => (side(), any::<bool>()).prop_map(|(side, ok)| News::Keys(side, ok)),
        2 => side().prop_map(News::Open),
        1 => side().prop_map(News::Terminate),
        1 => Just(News::Time),
    ]
}

impl World {
    /// Takes one input; notes a request in it with its id.
    fn take(&mut self, news: News, requests: &mut Vec<String>) {
        match news {
            News::Answered(..) if self.asked.is_empty() => {}
            News::Answered(which, how) => {
                let (_, number, _) = self.asked.remove(which % self.asked.len());
                let tie = || Refusal::new(ErrorType::Cancel, Condition::Conflict, "");
                let answer = match how {
                    0 => Answer::Timeout,
                    1 => Answer::Error(Refusal::service_unavailable().to_element()),
                    2 => {
                        Answer::Error(tie().with_extra("tie-break", ns::JINGLE_ERRORS).to_element())
                    }
                    _ => Answer::Result(None),
                };
                self.tell(SessionInput::Answered(number, answer));
            }
            News::Arrived(side) => self.tell(SessionInput::Arrived(side)),
            News::Features(true) => {
                self.tell(SessionInput::Features(vec![ns::JINGLE_S5B.to_owned()]))
            }
            News::Features(false) => self.tell(SessionInput::Features(vec![ns::XTLS.to_owned()])),
            News::Jingle(side, action, inside) => {
                let peer = self.session.peers[side].clone();
                let stanza = jingle(&peer, ACTIONS[action], &inside);
                requests.push(stanza.id.clone());
                self.tell(SessionInput::Jingle(side, stanza));
            }
            News::Keys(side, ok) => {
                self.tell(SessionInput::Keys(side, if ok { Ok(Vec::new()) } else { Err(()) }));
            }
            News::Open(side) => {
                let open = "<open xmlns='http://jabber.org/protocol/ibb' sid='s' block-size='9'/>";
                let stanza = iq(&self.session.peers[side].clone(), open);
                requests.push(stanza.id.clone());
                self.tell(SessionInput::Open(side, stanza));
            }
            News::Terminate(side) => {
                let peer = self.session.peers[side].clone();
                let stanza = jingle(&peer, "session-terminate", "<reason><success/></reason>");
                requests.push(stanza.id.clone());
                self.tell(SessionInput::Jingle(side, stanza));
            }
            News::Time => self.wait(),
        }
    }

    /// Lets both users do what is asked of them.
    fn help(&mut self, requests: &mut Vec<String>) {
        self.tell(SessionInput::Features(vec![ns::JINGLE_S5B.to_owned()]));
        for side in Side::BOTH {
            self.tell(SessionInput::Keys(side, Ok(Vec::new())));
        }
        // Each of the stanzas that waited may have an offer that has to be checked.
        while let Some(Check { side, .. }) = self.session.check.as_deref() {
            let keys = SessionInput::Keys(*side, Ok(Vec::new()));
            self.tell(keys);
        }
        while !self.asked.is_empty() {
            self.take(News::Answered(0, 19), requests);
        }
        for side in Side::BOTH {
            let at = |action| ACTIONS.iter().position(|known| *known == action).unwrap();
            let (accept, info) = (at("transport-accept"), at("transport-info"));
            let leg = &self.session.legs[side];
            if self.session.is_over() || leg.ready {
                continue;
            }
            if leg.replacing.is_some() {
                self.take(News::Jingle(side, accept, content(IBB_OFFER)), requests);
            } else if leg.awaits_socks5() {
                self.take(News::Arrived(side), requests);
                self.take(News::Jingle(side, info, news("<candidate-used cid='x'/>")), requests);
            } else {
                self.take(News::Open(side), requests);
            }
        }
    }

    fn count(&self, wanted: impl Fn(&SessionAction) -> bool) -> usize {
        self.other.iter().filter(|action| wanted(action)).count()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_request_is_answered_once_and_the_session_carries_bytes_or_ends(
        begun in 0..3u8,
        own_proxy in any::<bool>(),
        in_band in any::<bool>(),
        helped in any::<bool>(),
        all in prop::collection::vec(any_news(), 0..40),
    ) {
        let proxy = S5B_OFFER.replace("a-stream", "own-proxy");
        let offer = if in_band { IBB_OFFER } else if own_proxy { &proxy } else { S5B_OFFER };
        let mut requests = Vec::new();
        let mut world = if begun > 0 {
            World::initiated(offer, &[ns::JINGLE_S5B])
        } else {
            let mut world = World::new(offer, annotate());
            requests.push(world.initiate().id.clone());
            world
        };
        if begun == 2 {
            world.accept(S5B_OFFER);
        }
        for news in all {
            if world.session.is_over() {
                break;
            }
            world.take(news, &mut requests);
        }

        if helped {
            for _ in 0..3 {
                world.help(&mut requests);
            }
            let joined = matches!(world.session.phase, SessionPhase::Relaying { .. });
            let ended = matches!(world.session.phase, SessionPhase::Over { .. } | SessionPhase::Leaving { .. });
            prop_assert!(joined || ended, "{:?}", world.session);
        }
        // Nothing more comes: with time alone it carries bytes, or ends.
        let mut waits = 0;
        while !world.session.is_over() && !matches!(world.session.phase, SessionPhase::Relaying { .. }) {
            world.wait();
            waits += 1;
            prop_assert!(waits < 20, "{:?}", world.session);
        }
        let relaying = !world.session.is_over();
        if relaying {
            prop_assert_eq!(world.count(|action| matches!(action, SessionAction::Join)), 1);
            for wanted in Side::BOTH {
                let taken = |action: &SessionAction| match action {
                    SessionAction::TakeSocket(side) | SessionAction::TakeStream(side, ..) => *side == wanted,
                    _ => false,
                };
                prop_assert_eq!(world.count(taken), 1, "one leg on each side");
            }
            let end = Ended::Eof;
            world.tell(SessionInput::Relayed(StreamOutcome { a_to_b: 1, b_to_a: 1, end }));
            world.tell(SessionInput::Gone(Side::Initiator));
        }
        prop_assert!(world.session.is_over());
        let answers: Vec<_> = world.sent.iter()
            .filter(|iq| matches!(iq.attr("type"), Some("result" | "error")))
            .filter_map(|iq| iq.attr("id"))
            .collect();
        for id in requests {
            prop_assert_eq!(answers.iter().filter(|answer| **answer == id).count(), 1, "{}", id);
        }
    }
}
