use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const STRANGER: Id = 1000;

fn credentials(name: &str) -> Credentials {
    Credentials::new(name, &name.repeat(6)).unwrap()
}

fn candidate(address: &str, tcp_type: TcpType, kind: CandidateType) -> Candidate {
    Candidate {
        address: address.parse().unwrap(),
        tcp_type,
        kind,
        priority: priority(kind, tcp_type, 0),
        foundation: "1".to_owned(),
        related: None,
    }
}

fn agent(controlling: bool, own: &str, peer: &str, seed: u64) -> Agent {
    let mut count = u128::from(seed);
    let random = move || {
        count = count.wrapping_mul(0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645).wrapping_add(1);
        count
    };
    Agent::new(controlling, credentials(own), credentials(peer), Box::new(random))
}

/// Two agents, and the connections between them. A connection has one number on both sides.
struct Net {
    agents: [Agent; 2],
    /// What is on its way on each connection: to which side, and the message.
    wires: BTreeMap<Id, VecDeque<(usize, Vec<u8>)>>,
    selected: [Option<Id>; 2],
    /// All messages so far, and which side sent each.
    sent: Vec<(usize, Vec<u8>)>,
    now: Instant,
}

impl Net {
    fn new(roles: [bool; 2], seed: u64) -> Self {
        let mut agents =
            [agent(roles[0], "alice", "bobby", seed), agent(roles[1], "bobby", "alice", !seed)];
        let passive = |side| candidate(&address(side), TcpType::Passive, CandidateType::Host);
        agents[0].add_remote(&[passive(1)]);
        agents[1].add_remote(&[passive(0)]);
        Self {
            agents,
            wires: BTreeMap::new(),
            selected: [None; 2],
            sent: Vec::new(),
            now: Instant::now(),
        }
    }

    /// Connects the sides; those of `dialled` have dialled.
    fn connect(&mut self, id: Id, dialled: [bool; 2]) {
        self.wires.insert(id, VecDeque::new());
        for (side, dialled) in dialled.into_iter().enumerate() {
            let remote = address(1 - side).parse().unwrap();
            let agent = &mut self.agents[side];
            if dialled {
                agent.dialled(id, remote, self.now);
            } else {
                agent.accepted(id, remote, self.now);
            }
            self.poll(side);
        }
    }

    fn poll(&mut self, side: usize) {
        while let Some(output) = self.agents[side].poll() {
            match output {
                Output::Send(id, message) => {
                    self.sent.push((side, message.clone()));
                    if let Some(wire) = self.wires.get_mut(&id) {
                        wire.push_back((1 - side, message));
                    }
                }
                // What was sent before arrives, and then the end.
                Output::Close(id) => {
                    if let Some(wire) = self.wires.get_mut(&id) {
                        wire.retain(|(to, _)| *to != side);
                        wire.push_back((1 - side, Vec::new()));
                    }
                }
                Output::Selected(id) => {
                    assert_eq!(self.selected[side].replace(id), None, "one is selected once");
                }
            }
        }
    }

    fn lose(&mut self, id: Id) {
        self.wires.remove(&id);
        for side in 0..2 {
            self.agents[side].closed(id, self.now);
            self.poll(side);
        }
    }

    /// Delivers one message of one of the connections. Returns whether there was one.
    fn deliver(&mut self, choice: usize) -> bool {
        let full: Vec<Id> =
            self.wires.iter().filter(|(_, wire)| !wire.is_empty()).map(|(id, _)| *id).collect();
        let Some(id) = full.get(choice % full.len().max(1)).copied() else { return false };
        let (side, message) = self.wires.get_mut(&id).unwrap().pop_front().unwrap();
        if message.is_empty() {
            self.agents[side].closed(id, self.now);
            self.wires.remove(&id);
        } else {
            assert!(self.agents[side].received(id, &message, self.now));
        }
        self.poll(side);
        true
    }

    /// Lets both sides finish.
    fn run(&mut self) {
        for turn in 0..10_000 {
            if self.deliver(turn) {
                continue;
            }
            let deadlines = self.agents.iter().filter_map(Agent::deadline);
            let Some(next) = deadlines.min().filter(|_| self.selected.contains(&None)) else {
                return;
            };
            self.now = self.now.max(next);
            for side in 0..2 {
                self.agents[side].timeout(self.now);
                self.poll(side);
            }
        }
        panic!("the agents do not come to an end");
    }
}

fn address(side: usize) -> String {
    format!("192.0.2.{}:5000", side + 1)
}

#[test]
fn pairs_are_those_of_the_rfc_the_best_first() {
    use CandidateType::{Host, ServerReflexive};
    use TcpType::{Active, Passive, So};
    let mut alice = agent(true, "alice", "bobby", 1);
    alice.add_remote(&[
        candidate("192.0.2.9:5000", So, ServerReflexive),
        candidate("192.0.2.9:5000", Passive, ServerReflexive),
        candidate("10.0.0.9:9", Active, Host),
        candidate("10.0.0.9:5000", So, Host),
        candidate("10.0.0.9:5000", Passive, Host),
    ]);
    let pairs: Vec<_> = alice
        .pairs()
        .into_iter()
        .map(|pair| (pair.remote.address.to_string(), pair.remote.tcp_type, pair.tcp_type))
        .collect();
    let expected = [("10.0.0.9:5000", Passive, Active), ("192.0.2.9:5000", So, So)];
    assert_eq!(pairs, expected.map(|(address, theirs, own)| (address.to_owned(), theirs, own)));
}

#[test]
fn a_peer_has_so_many_candidates() {
    let mut alice = agent(true, "alice", "bobby", 1);
    for port in 1024..2000 {
        let one = format!("192.0.2.9:{port}");
        alice.add_remote(&[candidate(&one, TcpType::Passive, CandidateType::Host)]);
    }
    assert_eq!(alice.pairs().len(), MOST_CANDIDATES);
}

#[test]
fn one_connection_is_selected_by_both() {
    for dialled in [[true, false], [false, true], [true, true]] {
        let mut net = Net::new([true, false], 1);
        net.connect(1, dialled);
        net.run();
        assert_eq!(net.selected, [Some(1); 2], "{dialled:?}");
        let nominating =
            net.sent.iter().filter(|(_, message)| Check::read(message).unwrap().nominates);
        assert_eq!(nominating.map(|(side, _)| *side).collect::<Vec<_>>(), [0]);
    }
}

#[test]
fn roles_in_conflict_are_decided_by_the_tie_breakers() {
    // RFC 8445, 7.3.1.1: the higher one controls.
    for roles in [[true, true], [false, false]] {
        for tie_breakers in [[2, 1], [1, 2], [7, 7]] {
            for dialler in 0..2 {
                let mut net = Net::new(roles, 1);
                for (agent, tie_breaker) in net.agents.iter_mut().zip(tie_breakers) {
                    agent.tie_breaker = tie_breaker;
                }
                net.connect(1, [dialler == 0, dialler == 1]);
                net.run();
                let case = format!("{roles:?} {tie_breakers:?} {dialler}");
                if tie_breakers[0] == tie_breakers[1] {
                    // One in 2^64: all that counts is that it ends.
                    continue;
                }
                assert_eq!(net.selected, [Some(1); 2], "{case}");
                let controlling = net.agents.each_ref().map(|agent| agent.controlling);
                assert_eq!(controlling, [tie_breakers[0] == 2, tie_breakers[1] == 2], "{case}");
                assert!(net.agents.iter().all(|agent| agent.switches <= 1), "{case}");
            }
        }
    }
}

#[test]
fn an_answer_without_the_peers_password_is_none() {
    let mut alice = agent(true, "alice", "bobby", 1);
    let (now, at) = (Instant::now(), address(1).parse().unwrap());
    alice.dialled(1, at, now);
    let Some(Output::Send(1, request)) = alice.poll() else { panic!("a check is sent") };
    let check = Check::read(&request).unwrap();
    let forged = check.success(at, &Credentials::new("bobby", &"wrong".repeat(6)).unwrap());
    assert!(alice.received(1, &forged, now));
    alice.timeout(now + PATIENCE);
    assert_eq!(alice.poll(), None);
    // The right one still counts.
    let answer = check.success(at, &credentials("bobby"));
    assert!(alice.received(1, &answer, now));
    alice.timeout(now + PATIENCE);
    let Some(Output::Send(1, request)) = alice.poll() else { panic!("it is nominated") };
    assert!(Check::read(&request).unwrap().nominates);
    // An answer to an older request says nothing about this one.
    alice.received(1, &answer, now);
    assert_eq!(alice.poll(), None);
}

#[test]
fn a_better_pair_that_comes_at_once_is_nominated() {
    let mut net = Net::new([true, false], 1);
    let better = candidate("192.0.2.3:5000", TcpType::Passive, CandidateType::Host);
    net.agents[0].remote[0].priority = 1;
    net.agents[0].add_remote(&[better]);
    net.connect(1, [true, false]);
    while net.deliver(0) {}
    assert_eq!(net.selected, [None; 2], "a better one may come");
    net.wires.insert(2, VecDeque::new());
    net.agents[0].dialled(2, "192.0.2.3:5000".parse().unwrap(), net.now);
    net.agents[1].accepted(2, "192.0.2.1:5001".parse().unwrap(), net.now);
    net.poll(0);
    while net.deliver(0) {}
    assert_eq!(net.selected, [Some(2); 2]);
}

#[test]
fn a_pair_that_breaks_when_it_is_nominated_is_followed_by_the_next() {
    let mut net = Net::new([true, false], 1);
    net.connect(1, [true, false]);
    while !net.sent.iter().any(|(_, message)| Check::read(message).unwrap().nominates) {
        assert!(net.deliver(0));
    }
    net.lose(1);
    net.connect(2, [true, false]);
    net.run();
    assert_eq!(net.selected, [Some(2); 2]);
}

#[test]
fn a_peer_that_answers_no_nomination_is_given_up() {
    let mut net = Net::new([true, false], 1);
    net.connect(1, [true, false]);
    while !net.sent.iter().any(|(_, message)| Check::read(message).unwrap().nominates) {
        assert!(net.deliver(0));
    }
    let until = net.agents[0].deadline().unwrap();
    assert_eq!(until, net.now + ANSWER);
    net.agents[0].timeout(until);
    assert_eq!(net.agents[0].poll(), Some(Output::Close(1)));
    assert_eq!(net.agents[0].deadline(), None);
}

#[test]
fn a_wrong_password_is_refused() {
    let mut net = Net::new([true, false], 1);
    net.agents[0].peer = Credentials::new("bobby", &"wrong".repeat(6)).unwrap();
    net.connect(1, [true, false]);
    net.run();
    assert_eq!(net.selected, [None; 2]);
    let codes: Vec<_> =
        net.sent.iter().filter_map(|(_, message)| Check::read(message).unwrap().error).collect();
    assert_eq!(codes, [401]);
    assert!(net.agents.iter().all(|agent| agent.links.is_empty()));
}

#[test]
fn a_stranger_costs_no_more_than_its_time_and_learns_nothing() {
    let mut bob = agent(false, "bobby", "alice", 1);
    let now = Instant::now();
    bob.accepted(1, "203.0.113.7:4711".parse().unwrap(), now);
    assert_eq!(bob.poll(), None, "nothing is sent to a stranger");
    assert!(!bob.received(1, b"GET / HTTP/1.1", now) && !bob.is_peers(1));
    bob.timeout(bob.deadline().unwrap());
    assert_eq!(bob.poll(), Some(Output::Close(1)));
    assert!(bob.links.is_empty());
}

#[test]
fn a_flood_of_messages_ends_the_connection() {
    for is_indication in [false, true] {
        let mut net = Net::new([true, false], 1);
        net.connect(1, [true, false]);
        let (_, request) = net.sent[0].clone();
        let message = if is_indication { indication() } else { request };
        for _ in 0..MOST_MESSAGES {
            assert!(net.agents[1].received(1, &message, net.now));
        }
        let before = net.agents[1].outputs.len();
        net.agents[1].received(1, &message, net.now);
        assert_eq!(net.agents[1].outputs.split_off(before), [Output::Close(1)]);
    }
}

/// Returns a Binding indication: anybody can write one, and it needs no answer.
fn indication() -> Vec<u8> {
    use stun_types::message::{
        BINDING, Message, MessageClass, MessageType, MessageWrite, MessageWriteExt, MessageWriteVec,
    };
    let kind = MessageType::from_class_method(MessageClass::Indication, BINDING);
    let mut message = Message::builder(kind, 1_u128.into(), MessageWriteVec::new());
    message.add_fingerprint().unwrap();
    message.finish()
}

proptest! {
    #[test]
    fn both_sides_select_one_connection_that_stays(
        roles: [bool; 2], seed: u64,
        dialled in prop::collection::vec((any::<bool>(), any::<bool>()), 1..6),
        order in prop::collection::vec((any::<usize>(), 0_u8..20), 0..80),
    ) {
        let mut net = Net::new(roles, seed);
        let mut later = (1..).zip(dialled);
        // The first one stays.
        let connect = |net: &mut Net, later: &mut dyn Iterator<Item = (Id, (bool, bool))>| {
            if let Some((id, (a, b))) = later.next() {
                net.connect(id, [a || !b, b]);
            }
        };
        connect(&mut net, &mut later);
        for (choice, event) in order {
            let has_begun = net.selected != [None; 2]
                || net.sent.iter().any(|(_, message)| Check::read(message).unwrap().nominates);
            match event {
                0 | 1 => connect(&mut net, &mut later),
                2 if !has_begun => net.lose(2 + choice as u64 % 6),
                _ => { net.deliver(choice); }
            }
        }
        net.run();
        prop_assert!(net.selected[0].is_some());
        prop_assert_eq!(net.selected[0], net.selected[1]);
        let mut controlling = net.agents.iter().filter(|agent| agent.controlling);
        prop_assert!(controlling.next().is_some() && controlling.next().is_none());
    }

    #[test]
    fn a_connection_on_which_checks_are_replayed_is_never_used(
        roles: [bool; 2], seed: u64, victim in 0_usize..2, dialled: bool,
    ) {
        // A stranger has seen everything that the two sides have ever said, and repeats it to one of them.
        let mut net = Net::new(roles, seed);
        net.connect(1, [true, false]);
        net.run();
        // What was said to the victim: anything else ends the connection at once.
        let heard: Vec<Vec<u8>> =
            net.sent.iter().filter(|(side, _)| *side != victim).map(|(_, message)| message.clone()).collect();
        let names = [("alice", "bobby"), ("bobby", "alice")][victim];
        let mut target = agent(roles[victim], names.0, names.1, seed ^ 0x5555);
        let from = "203.0.113.7:4711".parse().unwrap();
        if dialled {
            target.dialled(STRANGER, from, net.now);
        } else {
            target.accepted(STRANGER, from, net.now);
        }
        let mut outputs = Vec::new();
        for message in &heard {
            target.received(STRANGER, message, net.now);
            outputs.extend(std::iter::from_fn(|| target.poll()));
        }
        target.timeout(net.now + PATIENCE);
        outputs.extend(std::iter::from_fn(|| target.poll()));
        prop_assert!(!outputs.contains(&Output::Selected(STRANGER)));
        prop_assert!(!outputs.contains(&Output::Close(STRANGER)), "all of it has the right password");
        prop_assert!(target.links.iter().all(|link| !link.is_valid));
    }

    #[test]
    fn garbage_changes_nothing(
        seed: u64, garbage in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..200), 0_usize..3, any::<usize>()), 0..20),
    ) {
        let mut net = Net::new([true, false], seed);
        net.connect(1, [true, false]);
        let from = "203.0.113.7:4711".parse().unwrap();
        net.agents[1].accepted(STRANGER, from, net.now);
        for (bytes, kind, at) in garbage {
            let (_, said) = &net.sent[at % net.sent.len()];
            let mut frame = match kind {
                0 => bytes,
                1 => said[..at % said.len()].to_vec(),
                _ => said.clone(),
            };
            if kind == 2 {
                let place = at % frame.len();
                frame[place] ^= 1 << (at % 8);
            }
            for (side, id) in [(0, 1), (1, 1), (1, STRANGER)] {
                prop_assert!(!net.agents[side].received(id, &frame, net.now));
                net.poll(side);
            }
            net.deliver(at);
        }
        net.run();
        prop_assert_eq!(net.selected, [Some(1); 2]);
    }
}
