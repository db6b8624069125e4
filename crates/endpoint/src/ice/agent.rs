//! Decides which connection the session uses: an ICE agent for one component over TCP (RFC 8445, RFC 6544). No I/O.
//!
//! It is told of the peer's candidates, of connections and of what comes on them. It says what to send, which connections to close, and
//! in the end which one is selected. Which address is dialled when is decided elsewhere (`direct/punch.rs`).
//!
//! | on a connection | next |
//! |---|---|
//! | this side has dialled | a check |
//! | it was accepted | nothing, until the peer sends a check with the session's password; then an own check on the same connection |
//! | the own check is answered | the pair is valid; the controlling side nominates the best one |
//! | the nominating check is answered | selected, on the controlling side |
//! | the peer has nominated it, and the own check is answered | selected, on the controlled side |
//!
//! TCP delivers, so no check is repeated. Both sides may dial from one port, so a remote address has one pair here: the one of higher
//! priority of those that RFC 6544 forms.

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use fingerpost_wire::ice::{
    Candidate, CandidateType, Credentials, MOST_CANDIDATES, TcpType, pair_priority, priority,
};
use stun_types::{attribute::ErrorCode, message::TransactionId};
use tokio::time::Instant;

use super::message::{Check, Class, Request};

/// How long a connection has until its check is answered.
pub(super) const ANSWER: Duration = Duration::from_secs(3);
/// How long a valid pair waits for better ones before it is nominated.
const PATIENCE: Duration = Duration::from_millis(100);
/// The most messages that are read on a connection. A peer sends a few.
const MOST_MESSAGES: u32 = 32;
/// How often the role changes at most. Two sides need it once.
const MOST_SWITCHES: u32 = 4;

/// The number of a connection.
pub(super) type Id = u64;

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// Send this message on a connection.
    Send(Id, Vec<u8>),
    /// Close a connection after what was sent on it. It is forgotten here.
    Close(Id),
    /// Use this connection, and end the attempt.
    Selected(Id),
}

/// What was sent last on a connection, and is not answered.
#[derive(Clone, Copy, Debug)]
struct Sent {
    id: TransactionId,
    controlling: bool,
    nominates: bool,
}

/// A connection, which is one candidate pair.
#[derive(Debug)]
struct Link {
    id: Id,
    remote: SocketAddr,
    tcp_type: TcpType,
    /// The priority of the peer's candidate, if one is known.
    theirs: Option<u32>,
    /// When it is given up, unless its check is answered.
    until: Instant,
    sent: Option<Sent>,
    /// Whether the peer has shown the session's password on it.
    is_peers: bool,
    /// Whether its check was answered.
    is_valid: bool,
    /// Whether the peer has nominated it.
    is_nominated: bool,
    /// How many messages came.
    messages: u32,
}

impl Link {
    /// Returns whether it is given up when its time is over.
    fn waits(&self) -> bool {
        !self.is_valid || self.sent.is_some()
    }
}

/// A candidate pair whose remote address this side dials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) remote: Candidate,
    /// The type of the local candidate.
    pub(super) tcp_type: TcpType,
    priority: u64,
}

/// One side of ICE for one session.
pub(super) struct Agent {
    controlling: bool,
    tie_breaker: u64,
    switches: u32,
    own: Credentials,
    peer: Credentials,
    remote: Vec<Candidate>,
    links: Vec<Link>,
    /// Since when there is a valid pair.
    valid_since: Option<Instant>,
    is_over: bool,
    outputs: VecDeque<Output>,
    /// Gives random numbers for transactions.
    random: Box<dyn FnMut() -> u128 + Send>,
}

impl Agent {
    /// Begins. `random` gives a new random number each time.
    pub(super) fn new(
        controlling: bool,
        own: Credentials,
        peer: Credentials,
        mut random: Box<dyn FnMut() -> u128 + Send>,
    ) -> Self {
        let [tie_breaker, _] = halves(random());
        Self {
            controlling,
            tie_breaker,
            switches: 0,
            own,
            peer,
            remote: Vec::new(),
            links: Vec::new(),
            valid_since: None,
            is_over: false,
            outputs: VecDeque::new(),
            random,
        }
    }

    /// Adds candidates of the peer, up to [`MOST_CANDIDATES`] in all.
    pub(super) fn add_remote(&mut self, candidates: &[Candidate]) {
        for candidate in candidates {
            if self.remote.len() < MOST_CANDIDATES && !self.remote.contains(candidate) {
                self.remote.push(candidate.clone());
            }
        }
    }

    /// Returns the pairs to dial, the best first. Pairs whose local candidate is passive are left out, and so are those whose remote
    /// address has a better one (RFC 6544, 6.2).
    pub(super) fn pairs(&self) -> Vec<Pair> {
        let mut pairs: Vec<Pair> = self
            .remote
            .iter()
            .filter(|remote| remote.tcp_type != TcpType::Active)
            .map(|remote| {
                let tcp_type = remote.tcp_type.opposite();
                let own = priority(CandidateType::Host, tcp_type, 0);
                Pair {
                    remote: remote.clone(),
                    tcp_type,
                    priority: self.pair_priority(own, remote.priority),
                }
            })
            .collect();
        pairs.sort_by_key(|pair| std::cmp::Reverse(pair.priority));
        let mut seen = Vec::new();
        pairs.retain(|pair| {
            let address = pair.remote.address;
            let is_new = !seen.contains(&address);
            seen.push(address);
            is_new
        });
        pairs
    }

    fn pair_priority(&self, own: u32, theirs: u32) -> u64 {
        if self.controlling { pair_priority(own, theirs) } else { pair_priority(theirs, own) }
    }

    /// Takes a connection that this side has dialled, to an address of [`pairs`](Self::pairs).
    pub(super) fn dialled(&mut self, id: Id, remote: SocketAddr, now: Instant) {
        let pair = self.pairs().into_iter().find(|pair| pair.remote.address == remote);
        let (tcp_type, theirs) = match pair {
            Some(pair) => (pair.tcp_type, Some(pair.remote.priority)),
            None => (TcpType::Active, None),
        };
        self.add(id, remote, tcp_type, theirs, now);
        self.check(id, false, now);
    }

    /// Takes a connection that was accepted, maybe from a stranger.
    pub(super) fn accepted(&mut self, id: Id, remote: SocketAddr, now: Instant) {
        // A candidate whose SYN came first, or one that nobody knew of.
        let known = self.remote.iter().find(|one| {
            one.address == remote && matches!(one.tcp_type, TcpType::So | TcpType::Active)
        });
        let (tcp_type, theirs) = match known {
            Some(known) => (known.tcp_type.opposite(), Some(known.priority)),
            None => (TcpType::Passive, None),
        };
        self.add(id, remote, tcp_type, theirs, now);
    }

    fn add(
        &mut self,
        id: Id,
        remote: SocketAddr,
        tcp_type: TcpType,
        theirs: Option<u32>,
        now: Instant,
    ) {
        self.links.push(Link {
            id,
            remote,
            tcp_type,
            theirs,
            until: now + ANSWER,
            sent: None,
            is_peers: false,
            is_valid: false,
            is_nominated: false,
            messages: 0,
        });
    }

    /// Takes a frame that may be STUN. Returns whether it is.
    pub(super) fn received(&mut self, id: Id, frame: &[u8], now: Instant) -> bool {
        let Some(check) = Check::read(frame) else { return false };
        let link = self.links.iter_mut().find(|link| link.id == id);
        if let Some(link) = link.filter(|_| !self.is_over) {
            link.messages += 1;
            if link.messages > MOST_MESSAGES {
                self.close(id);
                self.decide(now);
                return true;
            }
            match check.class {
                Class::Request => self.requested(id, &check, now),
                Class::Success | Class::Error => self.answered(id, &check, now),
                Class::Indication => {}
            }
        }
        true
    }

    /// Returns whether the peer has shown the session's password on one of the connections.
    pub(super) fn has_peer(&self) -> bool {
        self.links.iter().any(|link| link.is_peers)
    }

    /// Returns whether the peer has shown the session's password on a connection.
    pub(super) fn is_peers(&self, id: Id) -> bool {
        self.links.iter().any(|link| link.id == id && link.is_peers)
    }

    /// Notes that a connection has ended.
    pub(super) fn closed(&mut self, id: Id, now: Instant) {
        self.links.retain(|link| link.id != id);
        self.decide(now);
    }

    /// Returns when to call [`timeout`](Self::timeout).
    pub(super) fn deadline(&self) -> Option<Instant> {
        let nomination = self.valid_since.filter(|_| self.may_nominate());
        let waiting = self.links.iter().filter(|link| link.waits()).map(|link| link.until);
        waiting.chain(nomination.map(|since| since + PATIENCE)).min()
    }

    /// Does what is due.
    pub(super) fn timeout(&mut self, now: Instant) {
        let late = |link: &&Link| link.waits() && link.until <= now;
        for id in self.links.iter().filter(late).map(|link| link.id).collect::<Vec<_>>() {
            self.close(id);
        }
        self.decide(now);
    }

    /// Returns what to do next.
    pub(super) fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Returns whether a connection is selected.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    fn link(&mut self, id: Id) -> Option<&mut Link> {
        self.links.iter_mut().find(|link| link.id == id)
    }

    fn close(&mut self, id: Id) {
        self.links.retain(|link| link.id != id);
        self.outputs.push_back(Output::Close(id));
    }

    /// Sends a check on a connection.
    fn check(&mut self, id: Id, nominates: bool, now: Instant) {
        let transaction: TransactionId = (self.random)().into();
        let (controlling, tie_breaker) = (self.controlling, self.tie_breaker);
        let Some(link) = self.links.iter_mut().find(|link| link.id == id) else { return };
        link.sent = Some(Sent { id: transaction, controlling, nominates });
        link.until = now + ANSWER;
        let request = Request {
            id: transaction,
            own: &self.own,
            peer: &self.peer,
            priority: priority(CandidateType::PeerReflexive, link.tcp_type, 0),
            controlling,
            tie_breaker,
            nominates,
        };
        self.outputs.push_back(Output::Send(id, request.write()));
    }

    fn requested(&mut self, id: Id, check: &Check<'_>, now: Instant) {
        let Some(remote) = self.link(id).map(|link| link.remote) else { return };
        if let Err(refusal) = check.authenticate(&self.own) {
            self.outputs.push_back(Output::Send(id, refusal));
            return self.close(id);
        }
        let Some(priority) = check.priority else {
            let refusal = check.refusal(ErrorCode::BAD_REQUEST, Some(&self.own));
            return self.outputs.push_back(Output::Send(id, refusal));
        };
        // RFC 8445, 7.3.1.1.
        if let Some((controlling, tie_breaker)) = check.role
            && controlling == self.controlling
        {
            if (self.tie_breaker >= tie_breaker) == self.controlling {
                let refusal = check.refusal(ErrorCode::ROLE_CONFLICT, Some(&self.own));
                return self.outputs.push_back(Output::Send(id, refusal));
            }
            self.switch(!self.controlling);
        }
        self.outputs.push_back(Output::Send(id, check.success(remote, &self.own)));
        let Some(link) = self.link(id) else { return };
        link.is_peers = true;
        link.is_nominated |= check.nominates;
        // Otherwise it is a peer-reflexive candidate (RFC 8445, 7.3.1.3).
        link.theirs.get_or_insert(priority);
        // The triggered check (RFC 8445, 7.3.1.4) is sent on the connection of the request (RFC 6544, 7.2).
        if link.sent.is_none() && !link.is_valid {
            self.check(id, false, now);
        }
        self.decide(now);
    }

    fn answered(&mut self, id: Id, check: &Check<'_>, now: Instant) {
        let Some(link) = self.links.iter_mut().find(|link| link.id == id) else { return };
        let Some(sent) = link.sent.filter(|sent| sent.id == check.id()) else { return };
        // Errors about the credentials themselves are not signed.
        if !check.is_signed(&self.peer) {
            if check.class == Class::Error {
                self.close(id);
                self.decide(now);
            }
            return;
        }
        link.sent = None;
        link.is_peers = true;
        match (check.class, check.error) {
            (Class::Success, _) if check.mapped.is_some() => {
                link.is_valid = true;
                self.valid_since.get_or_insert(now);
                if sent.nominates && self.controlling {
                    return self.select(id);
                }
            }
            (Class::Error, Some(ErrorCode::ROLE_CONFLICT)) if self.switches < MOST_SWITCHES => {
                // RFC 8445, 7.2.5.1 and 16.1.
                [self.tie_breaker, _] = halves((self.random)());
                self.switch(!sent.controlling);
                if self.link(id).is_some_and(|link| !link.is_valid) {
                    self.check(id, false, now);
                }
            }
            _ => self.close(id),
        }
        self.decide(now);
    }

    fn switch(&mut self, controlling: bool) {
        if self.controlling != controlling && self.switches < MOST_SWITCHES {
            tracing::debug!(controlling, "ICE: the role has changed");
            self.switches += 1;
            self.controlling = controlling;
        }
    }

    fn may_nominate(&self) -> bool {
        let is_nominating =
            |link: &Link| link.sent.is_some_and(|sent| sent.nominates && sent.controlling);
        self.controlling
            && !self.is_over
            && !self.links.iter().any(is_nominating)
            && self.links.iter().any(|link| link.is_valid)
    }

    /// Nominates or selects a pair, if it is time.
    fn decide(&mut self, now: Instant) {
        if self.is_over {
            return;
        }
        let priority_of = |link: &Link| {
            let own = priority(CandidateType::Host, link.tcp_type, 0);
            self.pair_priority(own, link.theirs.unwrap_or(1))
        };
        if !self.controlling {
            let nominated = self.links.iter().filter(|link| link.is_nominated && link.is_valid);
            if let Some(id) = nominated.max_by_key(|link| priority_of(link)).map(|link| link.id) {
                self.select(id);
            }
            return;
        }
        let Some(since) = self.valid_since.filter(|_| self.may_nominate()) else { return };
        let valid = self.links.iter().filter(|link| link.is_valid);
        let Some(best) = valid.max_by_key(|link| priority_of(link)) else { return };
        let (id, own) = (best.id, priority_of(best));
        let may_improve = self.pairs().first().is_some_and(|pair| pair.priority > own);
        if !may_improve || now >= since + PATIENCE {
            self.check(id, true, now);
        }
    }

    fn select(&mut self, id: Id) {
        self.is_over = true;
        self.outputs.push_back(Output::Selected(id));
    }
}

fn halves(number: u128) -> [u64; 2] {
    let bytes = number.to_be_bytes();
    let (high, low) = bytes.split_at(8);
    [high, low].map(|half| half.try_into().map_or(0, u64::from_be_bytes))
}

#[cfg(test)]
#[path = "agent_tests.rs"]
mod tests;
