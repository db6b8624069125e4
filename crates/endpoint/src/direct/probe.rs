//! One side of an attempt without a session, for tests in networks with NATs.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    sync::mpsc,
    task::JoinSet,
};

use super::{Candidate, GreetingKeys, Listening, addresses::Scope};
use crate::path::{self, Port};

/// One side. It behaves as the side of a session does after TLS.
#[derive(Debug)]
pub struct Probe {
    listening: Listening,
    /// Keeps the mapping of the NAT, as the connection to the relay does.
    _relay: TcpStream,
}

/// The addresses of a side.
#[derive(Clone, Debug)]
pub struct Candidates(Vec<Candidate>);

impl Probe {
    /// Connects to an observer, which answers with a line of the address that it sees, and keeps the connection. Then listens on the
    /// same port.
    ///
    /// # Errors
    /// Those of connecting and listening, or if the answer is not an address.
    pub async fn open(observer: SocketAddr) -> io::Result<Self> {
        let mut relay = path::connect(observer, Port::Shared).await?;
        let mut text = String::new();
        BufReader::new(&mut relay).take(64).read_line(&mut text).await?;
        let observed = text.trim().parse().map_err(io::Error::other)?;
        let local = relay.local_addr()?;
        let mut listening = Listening::open_in(Scope::Network, Some(local))?;
        listening.observed(local, observed);
        Ok(Self { listening, _relay: relay })
    }

    /// Returns the addresses to tell the other side.
    pub fn candidates(&self) -> Candidates {
        Candidates(self.listening.candidates())
    }

    /// Connects to the other side; returns its address when bytes have gone both ways, or `None` when the attempt is over.
    /// The client chooses the connection.
    pub async fn connect(self, theirs: &Candidates, is_client: bool) -> Option<SocketAddr> {
        let (client, server) = ([1; 32], [2; 32]);
        let (own, peer) = if is_client { (client, server) } else { (server, client) };
        let found = self.listening.connect(&theirs.0, GreetingKeys { own, peer });
        if is_client { choose(found).await } else { wait(found).await }
    }
}

async fn choose(mut found: mpsc::Receiver<(TcpStream, SocketAddr)>) -> Option<SocketAddr> {
    let (mut stream, from) = found.recv().await?;
    stream.write_all(b"use").await.ok()?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.ok()?;
    (&answer == b"used").then_some(from)
}

async fn wait(mut found: mpsc::Receiver<(TcpStream, SocketAddr)>) -> Option<SocketAddr> {
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            Some((mut stream, from)) = found.recv() => {
                streams.spawn(async move {
                    let mut word = [0; 3];
                    stream.read_exact(&mut word).await.ok()?;
                    stream.write_all(b"used").await.ok()?;
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
