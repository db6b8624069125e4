//! ICE over TCP: a connection of the two programs by the standard's negotiation (XEP-0371, RFC 8445, RFC 6544).
//!
//! | part | decides |
//! |---|---|
//! | [`agent`] | which connection is used |
//! | [`attempt`] | carries that out on sockets |
//! | [`message`] | what checks look like |
//! | [`frames`] | where messages and the application's bytes begin and end |
//! | [`stream`] | the application's bytes on the connection |
//! | [`session`] | offers it in a session, and falls back to other transports |
//!
//! Which addresses are offered and dialled, and when, is decided as for direct paths (`direct/`). Between two programs of this project
//! those are negotiated inside the stream. This is for programs of others.

mod agent;
mod attempt;
mod frames;
#[cfg(feature = "testing")]
pub mod fuzzing;
mod message;
mod session;
mod stream;

use std::{io, net::SocketAddr, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use fingerpost_wire::ice::{
    Candidate, CandidateType, Credentials, IceTransport, MOST_CANDIDATES, NO_PORT, TcpType,
    priority,
};
use tokio::time::timeout;

pub(crate) use self::stream::IceStream;
use crate::{
    direct::{self, CandidateKind, Listening, addresses::Scope},
    stun_servers::{self, StunServers},
};

/// How long STUN servers may take to say where they see us, with the time to find them.
const OBSERVED: Duration = Duration::from_secs(2);
/// The most host addresses that are offered, each with three candidates.
const MOST_HOSTS: usize = 4;

/// Our side of an attempt, before the peer's is known.
#[derive(Debug)]
pub(crate) struct Gathered {
    listening: Listening,
    own: Credentials,
    candidates: Vec<Candidate>,
}

impl Gathered {
    /// Listens, and asks STUN servers about the port.
    async fn gather(stun: &StunServers) -> io::Result<Self> {
        let mut listening = Listening::open_in(Scope::Network, None)?;
        let mut answering = None;
        let asking = stun_servers::ask(Some(stun), &mut answering, &listening);
        let answers = timeout(OBSERVED, asking).await.unwrap_or_default();
        answers.into_iter().for_each(|answer| listening.keep(answer));
        let candidates = offered(&listening.candidates());
        Ok(Self { listening, own: credentials(), candidates })
    }

    /// Returns what is offered.
    pub(crate) fn transport(&self) -> IceTransport {
        IceTransport {
            credentials: Some(self.own.clone()),
            candidates: self.candidates.clone(),
            ..IceTransport::default()
        }
    }
}

/// Returns new credentials: 48 and 192 random bits. Their alphabet is the one of base64.
fn credentials() -> Credentials {
    loop {
        let ufrag = STANDARD_NO_PAD.encode(rand::random::<[u8; 6]>());
        let pwd = STANDARD_NO_PAD.encode(rand::random::<[u8; 24]>());
        if let Some(credentials) = Credentials::new(&ufrag, &pwd) {
            return credentials;
        }
    }
}

/// Returns the addresses with those of hosts first, of both families in turn: a machine with many addresses of one family still
/// offers the other one (RFC 8421, 4).
fn in_turn(addresses: &[direct::Candidate]) -> impl Iterator<Item = &direct::Candidate> {
    let hosts = |ip4: bool| {
        let is_host = move |one: &&direct::Candidate| {
            one.kind == CandidateKind::Host && one.address.is_ipv4() == ip4
        };
        addresses.iter().filter(is_host)
    };
    let (mut ip6, mut ip4) = (hosts(false), hosts(true));
    let rounds = std::iter::from_fn(move || {
        let pair = [ip6.next(), ip4.next()];
        pair.iter().any(Option::is_some).then_some(pair)
    });
    let others = addresses.iter().filter(|one| one.kind != CandidateKind::Host);
    rounds.flatten().flatten().chain(others)
}

/// Returns the candidates for our addresses. All of a family have the same port, on which this side both listens and dials.
fn offered(addresses: &[direct::Candidate]) -> Vec<Candidate> {
    let mut offered = Vec::new();
    let (mut hosts, mut reflexive) = (0, 0);
    let base_of = |ip4: bool| {
        addresses
            .iter()
            .find(|one| one.kind == CandidateKind::Host && one.address.is_ipv4() == ip4)
            .map(|host| host.address)
    };
    for direct::Candidate { address, kind } in in_turn(addresses) {
        match kind {
            CandidateKind::Host if hosts < MOST_HOSTS => {
                for tcp_type in [TcpType::Active, TcpType::Passive, TcpType::So] {
                    let port = if tcp_type == TcpType::Active { NO_PORT } else { address.port() };
                    let address = SocketAddr::new(address.ip(), port);
                    offered.push(candidate(address, tcp_type, CandidateType::Host, hosts, None));
                }
                hosts += 1;
            }
            // Without a port it says only which NAT there is.
            CandidateKind::ServerReflexive if address.port() != 0 => {
                for tcp_type in [TcpType::So, TcpType::Passive] {
                    let related = base_of(address.is_ipv4());
                    let kind = CandidateType::ServerReflexive;
                    offered.push(candidate(*address, tcp_type, kind, reflexive, related));
                }
                reflexive += 1;
            }
            CandidateKind::Host | CandidateKind::ServerReflexive => {}
        }
    }
    offered.sort_by_key(|one| std::cmp::Reverse(one.priority));
    debug_assert!(offered.len() <= MOST_CANDIDATES);
    offered
}

fn candidate(
    address: SocketAddr,
    tcp_type: TcpType,
    kind: CandidateType,
    place: usize,
    related: Option<SocketAddr>,
) -> Candidate {
    Candidate {
        address,
        tcp_type,
        kind,
        priority: priority(kind, tcp_type, u16::try_from(place).unwrap_or(u16::MAX)),
        foundation: format!("{}{}{place}", kind.as_str(), tcp_type.as_str()),
        related,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str, kind: CandidateKind) -> direct::Candidate {
        direct::Candidate { address: text.parse().unwrap(), kind }
    }

    #[test]
    fn each_address_has_its_candidates_and_none_more_than_fit() {
        let reflexive = |text| address(text, CandidateKind::ServerReflexive);
        let mut addresses = vec![reflexive("192.0.2.1:4711"), reflexive("[2001:db8::1]:0")];
        addresses.push(address("10.0.0.1:5000", CandidateKind::Host));
        let texts = |addresses: &[_]| -> Vec<String> {
            let text = |one: &Candidate| {
                format!("{} {} {}", one.kind.as_str(), one.tcp_type.as_str(), one.address)
            };
            offered(addresses).iter().map(text).collect()
        };
        assert_eq!(
            texts(&addresses),
            [
                "host active 10.0.0.1:9",
                "host passive 10.0.0.1:5000",
                "host so 10.0.0.1:5000",
                "srflx so 192.0.2.1:4711",
                "srflx passive 192.0.2.1:4711",
            ]
        );
        assert_eq!(offered(&addresses)[3].related, Some("10.0.0.1:5000".parse().unwrap()));
        for n in 2..20 {
            addresses.push(address(&format!("10.0.0.{n}:5000"), CandidateKind::Host));
        }
        addresses[1].address.set_port(4711);
        assert_eq!(offered(&addresses).len(), MOST_CANDIDATES);
    }

    #[test]
    fn a_machine_with_many_ipv6_addresses_offers_its_ipv4_addresses_too() {
        let v6 = (1..9).map(|n| format!("[2001:db8::{n}]:5000"));
        let v4 = ["192.0.2.1:5001", "192.0.2.2:5001"].map(str::to_owned);
        let all: Vec<_> = v6.chain(v4).map(|text| address(&text, CandidateKind::Host)).collect();
        let offered = offered(&all);
        let passive = offered.iter().filter(|one| one.tcp_type == TcpType::Passive);
        let passive: Vec<String> = passive.map(|one| one.address.to_string()).collect();
        let wanted =
            ["[2001:db8::1]:5000", "192.0.2.1:5001", "[2001:db8::2]:5000", "192.0.2.2:5001"];
        assert_eq!(passive, wanted);
    }

    #[test]
    fn credentials_are_new_each_time() {
        let (one, other) = (credentials(), credentials());
        assert_eq!((one.ufrag().len(), one.pwd().len()), (8, 32));
        assert_ne!(one, other);
    }
}
