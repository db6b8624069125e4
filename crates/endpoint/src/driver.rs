//! A logged-in stream: carries stanzas both ways until it is closed or lost.

use std::{collections::VecDeque, io, mem, net::IpAddr, time::Duration};

use fingerpost_carry::{outbound::QueuedStanza, reader::StanzaReader, writer::forward};
use fingerpost_wire::{
    ns,
    size::{self, Instead},
    stanza::{Stanza, refuse_oversized},
    xml::{self, Came, Received},
};
use jid::FullJid;
use minidom::Element;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    error::Error,
    managed::{HandledCountTooHigh, Management, is_counted},
    network::Network,
};

/// How long one write may take.
const WRITE: Duration = Duration::from_secs(30);
/// How long a requested acknowledgement may take. The stanzas before it may take long where the server slows its
/// clients down.
const ACKNOWLEDGE: Duration = Duration::from_secs(180);
/// How long the server may be silent after this machine has left a network or joined one.
pub(super) const NEW_NETWORK: Duration = Duration::from_secs(2);
/// With this many bytes on their way, no more stanzas are taken.
const FULL: usize = 256 << 10;
/// How long the closing of the stream may take.
const CLOSE: Duration = Duration::from_secs(5);

/// How a stream came to its end.
#[derive(Debug)]
pub(super) enum StreamEnd {
    /// No part of the program needs it now.
    Done,
    /// It is lost.
    Lost(Loss),
}

/// Why a stream was lost, and what can be done about it.
#[derive(Debug)]
pub(super) struct Loss {
    pub(super) why: String,
    pub(super) remedy: Remedy,
}

/// What can follow the loss of a stream.
#[derive(Debug)]
pub(super) enum Remedy {
    /// Another connection may continue the session.
    Resume,
    /// The session is over; a new one may follow.
    Anew,
    /// Another connection would do harm.
    None(Error),
}

impl From<io::Error> for Loss {
    fn from(error: io::Error) -> Self {
        let remedy = match error.kind() {
            // A resumed session would begin with the same bytes.
            io::ErrorKind::InvalidData => Remedy::Anew,
            _ => Remedy::Resume,
        };
        Self { why: error.to_string(), remedy }
    }
}

impl From<HandledCountTooHigh> for Loss {
    fn from(error: HandledCountTooHigh) -> Self {
        Self { why: error.to_string(), remedy: Remedy::Anew }
    }
}

/// The state that outlives a connection.
#[derive(Debug)]
pub(super) struct StreamState {
    pub(super) own: FullJid,
    pub(super) management: Option<Management>,
    /// Stanzas that arrived and wait for a place.
    arrived: VecDeque<Stanza>,
}

impl StreamState {
    pub(super) fn new(own: FullJid, management: Option<Management>) -> Self {
        Self { own, management, arrived: VecDeque::new() }
    }

    /// Returns whether another connection may continue the session.
    pub(super) fn can_resume(&self) -> bool {
        self.management.as_ref().is_some_and(|managed| managed.resumable().is_some())
    }

    /// Fills in our own addresses, which a server may leave out.
    fn address(&self, element: &mut Element) {
        if element.attr("from").is_none() {
            xml::set(element, "from", self.own.to_bare().as_str());
        }
        if element.attr("to").is_none() {
            xml::set(element, "to", self.own.as_str());
        }
    }
}

/// Carries stanzas both ways until either side is done.
pub(super) struct Driver<'a, S> {
    reader: StanzaReader<ReadHalf<S>>,
    writer: WriteHalf<S>,
    state: &'a mut StreamState,
    /// The silence after which the server is asked for a sign of life; after as much again it counts as gone.
    silence: Duration,
    /// The network, and our address on this connection, if known.
    network: (Network, Option<IpAddr>),
    /// The bytes to write.
    pending: Vec<u8>,
    is_unflushed: bool,
    /// When the wait for an acknowledgement began.
    waiting: Option<Instant>,
    /// Why the server has ended the stream.
    over: Option<Loss>,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Driver<'a, S> {
    pub(super) fn new(
        reader: StanzaReader<ReadHalf<S>>,
        writer: WriteHalf<S>,
        state: &'a mut StreamState,
        silence: Duration,
    ) -> Self {
        Self {
            reader,
            writer,
            state,
            silence,
            network: (Network::fixed(), None),
            pending: Vec::new(),
            is_unflushed: false,
            waiting: None,
            over: None,
        }
    }

    /// Gives the connection up when its address is no longer this machine's, if another one can continue the session.
    pub(super) fn leaves_with(mut self, mut network: Network, local: Option<IpAddr>) -> Self {
        if local.is_none_or(|local| network.has(local)) {
            // Earlier changes do not concern this connection.
            network.forget_changes();
        }
        self.network = (network, local);
        self
    }

    /// Takes stanzas that came before the stream was ready.
    pub(super) fn take_early(&mut self, early: Vec<Element>) {
        for element in early {
            self.take(element);
        }
    }

    /// Continues a session, with the server's `<resumed/>`.
    pub(super) fn resume(&mut self, resumed: &Element) -> Result<(), HandledCountTooHigh> {
        if let Some(management) = &mut self.state.management {
            for stanza in management.resumed(resumed)? {
                self.pending.extend_from_slice(stanza);
            }
        }
        self.request_acknowledgement(false);
        Ok(())
    }

    /// Carries stanzas until `closing`, until all users of the stream are gone, or until the stream is lost. In the
    /// first two cases it closes the stream.
    pub(super) async fn run(
        mut self,
        queue: &mut mpsc::Receiver<QueuedStanza>,
        inbound: &mpsc::Sender<Stanza>,
        closing: &CancellationToken,
    ) -> StreamEnd {
        let carried = tokio::select! {
            carried = self.carry(queue, inbound) => carried,
            () = closing.cancelled() => Ok(()),
        };
        if let Err(loss) = carried {
            return StreamEnd::Lost(loss);
        }
        while let Ok(stanza) = queue.try_recv() {
            self.send_queued(stanza);
        }
        self.pending.extend_from_slice(b"</stream:stream>");
        let _ = timeout(CLOSE, async {
            self.writer.write_all(&self.pending).await?;
            self.writer.shutdown().await
        })
        .await;
        StreamEnd::Done
    }

    /// Carries stanzas; returns well if all users of the stream are gone.
    async fn carry(
        &mut self,
        queue: &mut mpsc::Receiver<QueuedStanza>,
        inbound: &mpsc::Sender<Stanza>,
    ) -> Result<(), Loss> {
        let (mut heard, mut is_asked) = (Instant::now(), false);
        // Until when the server must have answered, because this machine's addresses have changed.
        let mut hurry: Option<Instant> = None;
        let (mut progress, mut was_idle) = (Instant::now(), true);
        loop {
            self.take_in()?;
            if self.state.arrived.is_empty()
                && let Some(loss) = self.over.take()
            {
                return Err(loss);
            }
            let is_idle = self.pending.is_empty() && !self.is_unflushed;
            // The time of a write that follows a pause begins now.
            if is_idle || was_idle {
                progress = Instant::now();
            }
            was_idle = is_idle;
            let silent = heard + if is_asked { self.silence * 2 } else { self.silence };
            let mut deadline = if is_idle { silent } else { silent.min(progress + WRITE) };
            if let Some(since) = self.waiting {
                deadline = deadline.min(since + ACKNOWLEDGE);
            }
            if let Some(hurry) = hurry {
                deadline = deadline.min(hurry);
            }
            let may_send = self.may_send();
            tokio::select! {
                written = forward(&mut self.writer, &self.pending), if !is_idle => {
                    let count = written?;
                    self.is_unflushed = count > 0;
                    self.pending.drain(..count);
                    progress = Instant::now();
                }
                permit = inbound.reserve(), if !self.state.arrived.is_empty() => {
                    let Ok(permit) = permit else { return Ok(()) };
                    if let Some(stanza) = self.state.arrived.pop_front() {
                        permit.send(stanza);
                    }
                }
                // A stanza may need an answer, so nothing is read while the server takes no answers.
                filled = self.reader.fill(), if self.state.arrived.is_empty()
                    && self.over.is_none()
                    && self.pending.len() < 2 * FULL =>
                {
                    filled?;
                    (heard, is_asked, hurry) = (Instant::now(), false, None);
                }
                stanza = queue.recv(), if may_send => {
                    let Some(stanza) = stanza else { return Ok(()) };
                    self.send_queued(stanza);
                    // What else waits goes out in the same write.
                    while self.may_send()
                        && let Ok(stanza) = queue.try_recv()
                    {
                        self.send_queued(stanza);
                    }
                }
                () = self.network.0.changed(), if self.state.can_resume() => {
                    let (network, local) = &self.network;
                    if local.is_some_and(|local| !network.has(local)) {
                        let why = "this machine has left the network".to_owned();
                        return Err(Loss { why, remedy: Remedy::Resume });
                    }
                    // The way to the server may be another one now.
                    if !mem::replace(&mut is_asked, true) {
                        self.ask();
                    }
                    hurry = Some(Instant::now() + NEW_NETWORK);
                }
                () = sleep_until(deadline) => {
                    let now = Instant::now();
                    if !is_idle && now >= progress + WRITE {
                        return Err(io::Error::from(io::ErrorKind::TimedOut).into());
                    }
                    if !self.state.arrived.is_empty() {
                        // While stanzas wait to be taken nothing is read, so silence means nothing.
                        (heard, hurry) = (now, None);
                        self.waiting = self.waiting.map(|_| now);
                    } else if self.waiting.is_some_and(|since| now >= since + ACKNOWLEDGE) {
                        let why = "the server no longer acknowledges anything".to_owned();
                        return Err(Loss { why, remedy: Remedy::Anew });
                    } else if now >= silent || hurry.is_some_and(|hurry| now >= hurry) {
                        if is_asked {
                            return Err(Loss {
                                why: "the server does not answer".to_owned(),
                                remedy: Remedy::Resume,
                            });
                        }
                        is_asked = true;
                        self.ask();
                    }
                }
            }
        }
    }

    /// Handles the bytes that were read, until a stanza waits to be taken.
    fn take_in(&mut self) -> Result<(), Loss> {
        while self.state.arrived.is_empty() && self.over.is_none() {
            let received = match self.reader.next_part()? {
                None => return Ok(()),
                Some(Came::Plain(stanza)) => Received::Element(stanza.to_element()),
                Some(Came::Whole(received)) => received,
            };
            match received {
                Received::Header(_) => {}
                // It can only have been a stanza.
                Received::Dropped => self.count(),
                Received::Footer => {
                    let why = "the server closed the stream".to_owned();
                    self.over = Some(Loss { why, remedy: Remedy::Anew });
                }
                Received::Element(element) if element.has_ns(ns::SM) => self.manage(&element)?,
                Received::Element(element) => {
                    if is_counted(&element) {
                        self.count();
                    }
                    // Features come again after a login in one step (XEP-0388, section 2.6.4).
                    if !element.is("features", ns::STREAM) {
                        self.take(element);
                    }
                }
                Received::Oversized(mut head) => {
                    if is_counted(&head) {
                        self.count();
                    }
                    self.state.address(&mut head);
                    if let Some(refusal) = refuse_oversized(head) {
                        self.send(&refusal);
                    }
                }
            }
        }
        Ok(())
    }

    fn count(&mut self) {
        if let Some(management) = &mut self.state.management {
            management.received();
        }
    }

    /// Handles an element of stream management.
    fn manage(&mut self, element: &Element) -> Result<(), Loss> {
        let Some(management) = &mut self.state.management else { return Ok(()) };
        match element.name() {
            "r" => {
                let answer = management.answer();
                self.write(&answer);
            }
            "a" => {
                management.acknowledge(element)?;
                self.waiting = None;
                self.request_acknowledgement(false);
            }
            _ => {}
        }
        Ok(())
    }

    fn take(&mut self, mut element: Element) {
        if element.is("error", ns::STREAM) {
            self.over = Some(stream_error(&element, &self.state.own));
            return;
        }
        self.state.address(&mut element);
        match Stanza::parse(element) {
            Ok(stanza) => self.state.arrived.push_back(stanza),
            Err(unreadable) => {
                if let Some(refusal) = unreadable.address_refusal() {
                    self.send(&refusal);
                }
            }
        }
    }

    /// Returns whether more stanzas may be taken to be sent.
    fn may_send(&self) -> bool {
        self.pending.len() < FULL && self.state.management.as_ref().is_none_or(Management::has_room)
    }

    fn send_queued(&mut self, stanza: QueuedStanza) {
        if let QueuedStanza::Ibb(stanza) = &stanza {
            let before = self.pending.len();
            stanza.write(&mut self.pending);
            if self.pending.len() - before <= size::CLIENT {
                return self.manage_sent(before);
            }
            self.pending.truncate(before);
        }
        self.send(&stanza.into_element());
    }

    /// Notes that a stanza was written, from this place on.
    fn manage_sent(&mut self, before: usize) {
        if let Some(management) = &mut self.state.management {
            management.sent(&self.pending[before..]);
            self.request_acknowledgement(false);
        }
    }

    fn send(&mut self, element: &Element) {
        let before = self.pending.len();
        if let Some(mut answer) = write_fitting(element, &mut self.pending) {
            self.state.address(&mut answer);
            self.take(answer);
            return;
        }
        if self.pending.len() > before && is_counted(element) {
            self.manage_sent(before);
        }
    }

    /// Requests an acknowledgement if one is due.
    fn request_acknowledgement(&mut self, always: bool) {
        if let Some(request) = self.state.management.as_mut().and_then(|m| m.ask(always)) {
            self.waiting = Some(Instant::now());
            self.write(&request);
        }
    }

    /// Writes an element that is not a stanza.
    fn write(&mut self, element: &Element) {
        let before = self.pending.len();
        if xml::write_within(element, ns::CLIENT, &mut self.pending).is_err() {
            self.pending.truncate(before);
        }
    }

    /// Asks the server for a sign of life.
    fn ask(&mut self) {
        if self.state.management.is_some() {
            // An acknowledgement that was requested and did not come serves the same purpose.
            return self.request_acknowledgement(true);
        }
        let domain = self.state.own.domain().as_str();
        let attributes = [("type", "get"), ("id", "alive"), ("to", domain)];
        let mut iq = xml::element("iq", ns::CLIENT, &attributes);
        iq.append_child(Element::bare("ping", ns::PING));
        self.send(&iq);
    }
}

/// Translates a stream error of the server (RFC 6120, section 4.9.3).
fn stream_error(error: &Element, own: &FullJid) -> Loss {
    let (condition, text) = xml::stream_error(error);
    let condition = condition.unwrap_or("an error");
    let text = if text.is_empty() { text } else { format!(" ({text})") };
    let why = format!("the server ended the stream: {condition}{text}");
    let remedy = match condition {
        // Otherwise each program would end the other in turn.
        "conflict" => Remedy::None(Error::failed(format!(
            "another program has taken over the address {own}: conflict{text}"
        ))),
        _ => Remedy::Anew,
    };
    Loss { why, remedy }
}

/// Writes a stanza, or an error in place of an answer that cannot be sent. Returns the error that comes back for a
/// stanza that cannot be written, or for which the server would end the connection.
fn write_fitting(element: &Element, out: &mut Vec<u8>) -> Option<Element> {
    let before = out.len();
    let written = xml::write_within(element, ns::CLIENT, out);
    let size = out.len() - before;
    let instead = match written {
        Ok(()) if size <= size::CLIENT => return None,
        Ok(()) => size::instead(element, size, size::CLIENT),
        Err(error) => size::instead_of_unwritable(element, &error),
    };
    out.truncate(before);
    match instead {
        Instead::Return(answer) => return Some(answer),
        Instead::Send(answer) => {
            if xml::write_within(&answer, ns::CLIENT, out).is_err() {
                out.truncate(before);
            }
        }
        Instead::Nothing => {}
    }
    None
}

#[cfg(test)]
mod tests {
    use fingerpost_carry::outbound::Outbound;
    use fingerpost_wire::xml::Rules;
    use tokio::{
        io::{AsyncReadExt, DuplexStream, duplex, split},
        task::JoinHandle,
    };

    use super::*;

    /// The silence of an ordinary connection.
    const SILENCE: Duration = Duration::from_secs(30);

    const HEADER: &str = "<stream:stream xmlns='jabber:client' \
        xmlns:stream='http://etherx.jabber.org/streams' id='1' version='1.0'>";

    /// Returns a driver that is logged in, and the server's end of its connection.
    fn driven() -> (DuplexStream, mpsc::Receiver<Stanza>, JoinHandle<()>, Outbound) {
        let (ours, server) = duplex(1 << 16);
        let (read, writer) = split(ours);
        let reader = StanzaReader::with_rules(read, Rules::CLIENT);
        let own = FullJid::new("bob@example.test/xtls").unwrap();
        let (outbound, mut queue) = mpsc::channel(4);
        let (sender, inbound) = mpsc::channel(4);
        let task = tokio::spawn(async move {
            let mut state = StreamState::new(own, None);
            let driver = Driver::new(reader, writer, &mut state, SILENCE);
            driver.run(&mut queue, &sender, &CancellationToken::new()).await;
        });
        (server, inbound, task, outbound)
    }

    async fn read(server: &mut DuplexStream) -> String {
        let mut buffer = vec![0; 4096];
        let count = server.read(&mut buffer).await.unwrap();
        String::from_utf8(buffer[..count].to_vec()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_asked_for_a_sign_of_life_and_lives_on() {
        let (mut server, _inbound, task, _outbound) = driven();
        server.write_all(HEADER.as_bytes()).await.unwrap();
        // Its answers fit into the queue, which is never emptied.
        for _ in 0..3 {
            let asked = read(&mut server).await;
            assert!(asked.contains("id='alive'"), "{asked}");
            server.write_all(b"<iq type='result' id='alive'/>").await.unwrap();
        }
        assert!(!task.is_finished());
        // Then nothing more comes back.
        let begin = Instant::now();
        let asked = read(&mut server).await;
        assert!(asked.contains("id='alive'"), "{asked}");
        task.await.unwrap();
        assert!(begin.elapsed() >= SILENCE * 2, "{:?}", begin.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_whose_address_cannot_be_read_is_answered() {
        let (mut server, _inbound, _task, _outbound) = driven();
        server.write_all(HEADER.as_bytes()).await.unwrap();
        let request = "<iq type='get' id='1' from='eve@example.test/\u{1f4f1}' to='bob@example.test/xtls'><a xmlns='u'/></iq>";
        server.write_all(request.as_bytes()).await.unwrap();
        let answer = read(&mut server).await;
        assert!(answer.contains("jid-malformed") && answer.contains("id='1'"), "{answer}");
        assert!(answer.contains("to='eve@example.test/\u{1f4f1}'"), "{answer}");
    }

    /// Both servers' clients may send stanzas of 262,144 bytes.
    #[test]
    fn no_stanza_is_longer_than_what_servers_accept_of_clients() {
        let build = |name: &str, type_: &str, length: usize| {
            let attributes = [("type", type_), ("from", "a@b.c/d"), ("to", "x.b.c"), ("id", "1")];
            let mut stanza = xml::element(name, ns::CLIENT, &attributes);
            stanza.append_text("&".repeat(length));
            stanza
        };
        for (name, type_) in [("iq", "get"), ("iq", "result"), ("message", "chat")] {
            let mut out = Vec::new();
            assert_eq!(write_fitting(&build(name, type_, 49_000), &mut out), None);
            assert!(out.len() > 49_000);
            out.clear();
            let back = write_fitting(&build(name, type_, 50_000), &mut out);
            assert_eq!(back.is_some(), type_ != "result", "{name} {type_}");
            let written = String::from_utf8(out).unwrap();
            let text = back.as_ref().map_or(written, String::from);
            assert!(text.contains("type='error'"), "{name} {type_}: {text}");
            assert!(text.contains("at most 250000 are sent"), "{text}");
        }
    }
}
