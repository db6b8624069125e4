//! One side of an attempt without a session, for tests in networks with NATs.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    sync::mpsc,
    task::JoinSet,
};

use super::{
    Candidate, CandidateKind, Connecting, DirectStream, Found, GreetingKeys, Listening, Mapping,
    Observation, addresses::Scope,
};
use crate::path::{self, Port};

/// One side. It behaves as the side of a session does after TLS.
#[derive(Debug)]
pub struct Probe {
    listening: Listening,
    seen: Observation,
    /// Keeps the mapping of the NAT, as the connection to the relay does.
    _relay: TcpStream,
}

/// The addresses of a side.
#[derive(Clone, Debug)]
pub struct Candidates(Vec<Candidate>);

impl Candidates {
    /// Returns the address that servers see. Its port is 0 if each server sees another one.
    pub fn reflexive(&self) -> Option<SocketAddr> {
        let reflexive = self.0.iter().find(|one| one.kind == CandidateKind::ServerReflexive);
        reflexive.map(|one| one.address)
    }
}

/// A way to tell the other side of another port in an attempt, and to be told.
#[derive(Debug)]
pub struct Moves {
    tell: mpsc::UnboundedSender<Candidates>,
    hear: mpsc::UnboundedReceiver<Candidates>,
}

impl Moves {
    /// Returns the ways of both sides.
    pub fn pair() -> [Self; 2] {
        let ((to_a, of_a), (to_b, of_b)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        [Self { tell: to_b, hear: of_a }, Self { tell: to_a, hear: of_b }]
    }
}

impl Probe {
    /// Connects to an observer, which answers with a line of the address that it sees, and keeps the connection. Then listens on the
    /// same port, and asks a STUN server about it, if there is one.
    ///
    /// # Errors
    /// Those of connecting and listening, or if an answer is not an address.
    pub async fn open(observer: SocketAddr, stun: Option<SocketAddr>) -> io::Result<Self> {
        let mut relay = path::connect(observer, Port::Shared).await?;
        let mut text = String::new();
        BufReader::new(&mut relay).take(64).read_line(&mut text).await?;
        let observed = text.trim().parse().map_err(io::Error::other)?;
        let local = relay.local_addr()?;
        let mut listening = Listening::open_in(Scope::Network, Some(local))?;
        let seen = Observation { local, observed };
        listening.observed(seen);
        if let Some(server) = stun {
            let asked = listening.ask(server).await?;
            listening.keep(asked);
        }
        Ok(Self { listening, seen, _relay: relay })
    }

    /// Returns the addresses to tell the other side.
    pub fn candidates(&self) -> Candidates {
        Candidates(self.listening.candidates())
    }

    /// Connects to the other side; returns its address when bytes have gone both ways, or `None` when the attempt is over.
    /// The client chooses the connection.
    pub async fn connect(
        self,
        theirs: &Candidates,
        is_client: bool,
        moves: Moves,
    ) -> Option<SocketAddr> {
        let (client, server) = ([1; 32], [2; 32]);
        let (own, peer) = if is_client { (client, server) } else { (server, client) };
        let varied = match self.listening.mapping(true) {
            Mapping::Varies(ip) => Some(ip),
            _ => None,
        };
        let connecting = self.listening.connect(&theirs.0, GreetingKeys { own, peer }, is_client);
        let (peers, found) = mpsc::channel(4);
        tokio::spawn(drive(connecting, self.seen, varied, moves, peers));
        if is_client { choose(found).await } else { wait(found).await }
    }
}

/// Does what a session does in an attempt.
async fn drive(
    mut connecting: Connecting,
    seen: Observation,
    varied: Option<IpAddr>,
    mut moves: Moves,
    peers: mpsc::Sender<(DirectStream, SocketAddr)>,
) {
    loop {
        tokio::select! {
            found = connecting.next() => match found {
                Some(Found::Peer(stream, from)) => if peers.send((stream, from)).await.is_err() {
                    return;
                },
                Some(Found::PortRefused) => {
                    let Ok(mut listening) = Listening::open_in(Scope::Network, None) else { continue };
                    listening.observed(seen);
                    listening.known_to_vary(varied);
                    let _ = moves.tell.send(Candidates(listening.candidates()));
                    connecting.take_port(listening);
                }
                None => return,
            },
            Some(theirs) = moves.hear.recv() => connecting.peer_has_moved(theirs.0),
        }
    }
}

async fn choose(mut found: mpsc::Receiver<(DirectStream, SocketAddr)>) -> Option<SocketAddr> {
    let (mut stream, from) = found.recv().await?;
    stream.write_all(b"use").await.ok()?;
    stream.flush().await.ok()?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.ok()?;
    (&answer == b"used").then_some(from)
}

async fn wait(mut found: mpsc::Receiver<(DirectStream, SocketAddr)>) -> Option<SocketAddr> {
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            Some((mut stream, from)) = found.recv() => {
                streams.spawn(async move {
                    let mut word = [0; 3];
                    stream.read_exact(&mut word).await.ok()?;
                    stream.write_all(b"used").await.ok()?;
                    stream.flush().await.ok()?;
                    (&word == b"use").then_some(from)
                });
            }
            Some(used) = streams.join_next() => {
                if let Ok(Some(from)) = used {
                    return Some(from);
                }
            }
            else => return None,
        }
    }
}
