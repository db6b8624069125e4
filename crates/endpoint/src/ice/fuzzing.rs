//! The pure parts of ICE with inputs of any kind, for the fuzz targets (fuzz/src/lib.rs).

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use fingerpost_wire::ice::{Candidate, CandidateType, Credentials, TcpType, priority};
use tokio::time::Instant;

use super::{
    agent::{Agent, Id, Output},
    frames::{Frames, Next},
};

/// The connection of a stranger to each of both agents; those between the two have lower numbers.
const STRANGER: Id = 9;

/// Takes bytes apart into frames, in pieces of a size that the first one gives.
///
/// # Panics
/// If more comes out than goes in, or it does not end.
pub fn frames(data: &[u8]) {
    let Some((size, mut bytes)) = data.split_first() else { return };
    let (mut frames, mut out) = (Frames::new(), 0);
    loop {
        match frames.next() {
            Next::Stun(range) if range.len() % 2 == 0 => {
                out += range.len();
                frames.take_stun(&range);
            }
            Next::Stun(range) => frames.is_data(&range),
            Next::Data(range) => {
                out += range.len();
                frames.take_data(range.len());
            }
            Next::More if bytes.is_empty() => break,
            Next::More => {
                let free = frames.free();
                let (piece, later) =
                    bytes.split_at(bytes.len().min(usize::from(*size).max(1)).min(free.len()));
                assert!(!piece.is_empty(), "there is room for what is missing");
                free[..piece.len()].copy_from_slice(piece);
                frames.filled(piece.len());
                bytes = later;
            }
        }
    }
    assert!(out <= data.len());
}

/// Lets two agents check a connection. The input says which role each claims, what is delivered when, what is changed on
/// the way, and what a stranger repeats of it.
///
/// # Panics
/// If a connection of a stranger is selected, or two are.
pub fn agents(data: &[u8]) {
    let mut input = data.iter().copied();
    let Some(roles) = input.next() else { return };
    let mut net = Net::new(roles);
    net.connect(1);
    for side in 0..2 {
        net.agents[side].accepted(STRANGER, "203.0.113.7:4711".parse().unwrap_or(net.at), net.now);
    }
    while let Some(operation) = input.next() {
        let side = usize::from(operation & 1);
        match (operation >> 1) & 7 {
            0 => net.deliver(side, None),
            1 => net.advance(Duration::from_millis(10)),
            2 => net.advance(Duration::from_millis(10 * u64::from(input.next().unwrap_or(0)))),
            3 => net.deliver(side, Some(usize::from(input.next().unwrap_or(0)))),
            4 => {
                let length = usize::from(input.next().unwrap_or(0));
                let id = if operation & 0x80 == 0 { STRANGER } else { 1 };
                let bytes: Vec<u8> = input.by_ref().take(length).collect();
                net.give(side, id, &bytes);
            }
            5 => net.close(Id::from(1 + (operation >> 4) % 8)),
            6 => {
                let number = usize::from(input.next().unwrap_or(0));
                if let Some(said) = net.said.get(number % net.said.len().max(1)).cloned() {
                    net.give(side, STRANGER, &said);
                }
            }
            _ => net.connect(Id::from(2 + (operation >> 4) % 7)),
        }
    }
}

struct Net {
    agents: [Agent; 2],
    /// What is on its way to each side, and on which connection.
    wires: [VecDeque<(Id, Vec<u8>)>; 2],
    open: Vec<Id>,
    said: Vec<Vec<u8>>,
    selected: [Option<Id>; 2],
    at: SocketAddr,
    now: Instant,
}

impl Net {
    fn new(roles: u8) -> Self {
        let at = SocketAddr::from(([192, 0, 2, 1], 5000));
        let credentials = |name: &str| {
            Credentials::new(name, &name.repeat(6))
                .unwrap_or_else(|| unreachable!("it is long enough"))
        };
        let agent = |role: u8, own: &str, peer: &str, mut seed: u128| {
            let random = Box::new(move || {
                seed = seed.wrapping_mul(0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645).wrapping_add(1);
                seed
            });
            let mut agent = Agent::new(role != 0, credentials(own), credentials(peer), random);
            agent.add_remote(&[Candidate {
                address: at,
                tcp_type: TcpType::Passive,
                kind: CandidateType::Host,
                priority: priority(CandidateType::Host, TcpType::Passive, 0),
                foundation: String::new(),
                related: None,
            }]);
            agent
        };
        Self {
            agents: [
                agent(roles & 1, "alice", "bobby", 1),
                agent(roles & 2, "bobby", "alice", u128::from(roles) << 64),
            ],
            wires: Default::default(),
            open: Vec::new(),
            said: Vec::new(),
            selected: [None; 2],
            at,
            now: Instant::now(),
        }
    }

    fn connect(&mut self, id: Id) {
        if self.open.contains(&id) {
            return;
        }
        self.open.push(id);
        self.agents[0].dialled(id, self.at, self.now);
        self.agents[1].accepted(id, self.at, self.now);
        self.poll();
    }

    fn close(&mut self, id: Id) {
        self.open.retain(|open| *open != id);
        for (agent, wire) in self.agents.iter_mut().zip(&mut self.wires) {
            wire.retain(|(of, _)| *of != id);
            agent.closed(id, self.now);
        }
        self.poll();
    }

    /// Delivers the next message to a side, with a bit of this byte changed.
    fn deliver(&mut self, side: usize, change: Option<usize>) {
        let Some((id, mut message)) = self.wires[side].pop_front() else { return };
        if let Some(at) = change {
            let place = at % message.len().max(1);
            if let Some(byte) = message.get_mut(place) {
                *byte ^= 1 << (at % 8);
            }
        }
        let is_stun = self.agents[side].received(id, &message, self.now);
        assert_eq!(is_stun, change.is_none(), "a changed message is noticed");
        self.poll();
    }

    fn give(&mut self, side: usize, id: Id, bytes: &[u8]) {
        self.agents[side].received(id, bytes, self.now);
        self.poll();
    }

    fn advance(&mut self, by: Duration) {
        self.now += by;
        for agent in &mut self.agents {
            agent.timeout(self.now);
        }
        self.poll();
    }

    fn poll(&mut self) {
        for side in 0..2 {
            while let Some(output) = self.agents[side].poll() {
                match output {
                    Output::Send(id, message) => {
                        self.said.push(message.clone());
                        if id != STRANGER && self.open.contains(&id) {
                            self.wires[1 - side].push_back((id, message));
                        }
                    }
                    Output::Close(id) => {
                        self.open.retain(|open| *open != id);
                        for wire in &mut self.wires {
                            wire.retain(|(of, _)| *of != id);
                        }
                        self.agents[1 - side].closed(id, self.now);
                    }
                    Output::Selected(id) => {
                        assert_ne!(id, STRANGER, "it has shown no password");
                        assert_eq!(self.selected[side].replace(id), None, "one is selected once");
                    }
                }
            }
        }
    }
}
