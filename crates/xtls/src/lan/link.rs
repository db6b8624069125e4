//! Carries stanzas of a secured link-local stream for an [`Endpoint`](fingerpost_endpoint::Endpoint), in place of an XMPP
//! server.

use std::{collections::VecDeque, time::Duration};

use fingerpost_carry::{iq::random_id, outbound::QueuedStanza, writer::forward};
use fingerpost_endpoint::Connection;
use fingerpost_wire::{ns, stanza::Stanza, xml};
use jid::{BareJid, FullJid};
use minidom::Element;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split},
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::stream::{Event, Names, Role, XmlStream};

/// How long the closing of the stream may take.
const CLOSE: Duration = Duration::from_secs(5);
/// With this many bytes on their way no more stanzas are taken.
const FULL: usize = 256 << 10;
/// On the link users have no resources; inside the program a session is between two full JIDs.
const RESOURCE: &str = "lan";

/// A running link.
pub(super) struct LanLink {
    token: CancellationToken,
    task: JoinHandle<()>,
}

impl LanLink {
    /// Closes the stream and waits for it.
    pub(super) async fn close(self) {
        self.token.cancel();
        let _ = timeout(CLOSE, self.task).await;
    }

    /// Waits until the peer has closed the stream, or it broke.
    pub(super) async fn ended(&mut self) {
        let _ = (&mut self.task).await;
    }
}

/// Returns the address of a user of the link inside the program.
pub(super) fn full(user: &BareJid) -> Option<FullJid> {
    user.with_resource_str(RESOURCE).ok()
}

/// Begins the stream inside TLS.
pub(super) fn start(
    tls: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    role: Role,
    own: FullJid,
    peer: FullJid,
) -> (Connection, LanLink) {
    let names = Names { own: vec![own.to_bare()], peer: vec![peer.to_bare()] };
    let xml = match role {
        Role::Initiator => XmlStream::initiate(names),
        Role::Responder => XmlStream::respond(names, Vec::new(), random_id()),
    };
    let (outbound, queue) = mpsc::channel(64);
    let (sender, inbound) = mpsc::channel(256);
    let token = CancellationToken::new();
    let jid = own.clone();
    let driver = LinkDriver { xml, own, peer, queue, inbound: sender, arrived: VecDeque::new() };
    let task = tokio::spawn(driver.run(tls, token.clone()));
    let watch = token.clone();
    let connection = Connection {
        jid,
        outbound,
        inbound,
        task: tokio::spawn(async move { watch.cancelled().await }),
    };
    (connection, LanLink { token, task })
}

struct LinkDriver {
    xml: XmlStream,
    own: FullJid,
    peer: FullJid,
    queue: mpsc::Receiver<QueuedStanza>,
    inbound: mpsc::Sender<Stanza>,
    arrived: VecDeque<Stanza>,
}

impl LinkDriver {
    async fn run(mut self, tls: impl AsyncRead + AsyncWrite + Unpin, token: CancellationToken) {
        let (mut read, mut write) = split(tls);
        let inbound = self.inbound.clone();
        let mut buffer = vec![0; 16 << 10];
        let mut pending = Vec::new();
        let mut unflushed = false;
        let mut open = false;
        let mut over = false;
        while !over {
            pending.append(&mut self.xml.take_output());
            tokio::select! {
                written = forward(&mut write, &pending), if !pending.is_empty() || unflushed => {
                    let Ok(count) = written else { break };
                    unflushed = !pending.is_empty();
                    pending.drain(..count);
                }
                permit = inbound.reserve(), if !self.arrived.is_empty() => {
                    let (Ok(permit), Some(stanza)) = (permit, self.arrived.pop_front()) else { break };
                    permit.send(stanza);
                }
                got = read.read(&mut buffer), if self.arrived.is_empty() => {
                    let Ok(count @ 1..) = got else { break };
                    over = self.take(buffer.get(..count).unwrap_or_default(), &mut open);
                }
                stanza = self.queue.recv(), if open && pending.len() < FULL => match stanza {
                    Some(stanza) => self.send(stanza.into_element()),
                    None => break,
                },
                () = token.cancelled() => break,
            }
        }
        // Earlier stanzas, such as the end of a session, go out first.
        while let Ok(stanza) = self.queue.try_recv() {
            self.send(stanza.into_element());
        }
        self.xml.close();
        pending.append(&mut self.xml.take_output());
        let _ = timeout(CLOSE, async {
            write.write_all(&pending).await?;
            write.flush().await?;
            while !over {
                let Ok(count @ 1..) = read.read(&mut buffer).await else { break };
                over = self.take(buffer.get(..count).unwrap_or_default(), &mut open);
            }
            write.shutdown().await
        })
        .await;
    }

    /// Takes bytes; returns true if the stream is over.
    fn take(&mut self, mut bytes: &[u8], open: &mut bool) -> bool {
        while let Some(event) = self.xml.next(&mut bytes) {
            match event {
                Event::Opened { .. } => *open = true,
                Event::Element(mut element) if element.has_ns(ns::CLIENT) => {
                    xml::set(&mut element, "from", self.peer.as_str());
                    xml::set(&mut element, "to", self.own.as_str());
                    if let Ok(stanza) = Stanza::parse(element) {
                        self.arrived.push_back(stanza);
                    }
                }
                Event::Element(_) => {}
                Event::Ended(_) => return true,
            }
        }
        false
    }

    fn send(&mut self, mut element: Element) {
        xml::set(&mut element, "from", self.own.to_bare().as_str());
        xml::set(&mut element, "to", self.peer.to_bare().as_str());
        self.xml.send(&element);
    }
}
