//! The link to the XMPP server: an XEP-0114 stream that lives for ever.
//!
//! 1. TCP, stream header, handshake (SHA-1 over stream id and secret).
//! 2. Stanzas both ways. After 30 s of silence the link sends a ping to its own address, which the server
//!    routes back: its return proves the whole path. 60 s without a byte ends the connection.
//! 3. A lost connection is retried after a jittered exponential pause. While it is down, what would be sent is dropped.
//!
//! Spec: XEP-0114 1.6 (Jabber Component Protocol), section 3.

use std::{io, time::Duration};

use jid::BareJid;
use minidom::Element;
use tokio::{
    io::AsyncWriteExt,
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use xmpp_parsers::component::Handshake;

use super::{
    ns,
    plain::Plain,
    size::{self, Instead},
    stanza::{Refusal, Stanza},
    xml::{self, Came, Received, StanzaReader},
};
use crate::{metrics, redact::Secret};

/// Connecting and the handshake may take this long together.
const HANDSHAKE: Duration = Duration::from_secs(15);
/// Silence after which the link is probed.
const PING_AFTER: Duration = Duration::from_secs(30);
/// Silence after which the link counts as dead.
const DEAD_AFTER: Duration = Duration::from_secs(60);
/// Something must be written within this time.
const WRITE: Duration = Duration::from_secs(60);
/// How exactly these times are kept.
const TICK: Duration = Duration::from_secs(1);
/// Bytes collected for one write.
const BATCH: usize = 64 * 1024;
/// Bytes that may wait for a server that reads too slowly; answers beyond it are dropped.
const BACKLOG: usize = 8 << 20;
/// The shortest and longest pause between attempts.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Stanzas a stopping link still writes must go out within this time.
const FLUSH: Duration = Duration::from_secs(5);
/// Marks the link's own pings.
const PING_ID: &str = "link-ping";

/// Where to connect and as whom.
#[derive(Clone, Debug)]
pub struct LinkOptions {
    /// `host:port` of the server's component port; resolved anew for each attempt.
    pub server: String,
    /// The component's address.
    pub jid: BareJid,
    /// The shared secret.
    pub secret: Secret,
    /// The longest stanza that the server accepts, in bytes; longer ones are not written.
    pub max_stanza_bytes: usize,
}

/// Who is told what comes over the link, in order, on the link's own task: nothing here may wait.
pub trait Handler: Send {
    /// The handshake succeeded.
    fn up(&mut self);

    /// The connection is lost; another will be tried.
    fn down(&mut self);

    /// A stanza for the component, in [`ns::CLIENT`].
    fn stanza(&mut self, element: Element);

    /// May take a stanza before a tree is made of it, and write an answer to `out` as XML. If it says no, the stanza
    /// comes again to [`Handler::stanza`].
    fn plain(&mut self, stanza: &Plain<'_>, out: &mut Vec<u8>) -> bool {
        let _neither = (stanza, out);
        false
    }
}

/// Why the link gave up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The server does not take the secret.
    #[error(
        "the XMPP server refused the secret for {jid}: set the same secret for this component in the server's configuration and in [component] secret"
    )]
    Refused {
        /// The component's address.
        jid: String,
    },
}

/// Why one connection ended, or was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unlinked {
    /// The connection broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The server has ended it.
    #[error("the XMPP server closed the stream")]
    Closed,
    /// The server has said why.
    #[error("the XMPP server reports {condition} {text}{}", cure(.condition))]
    Stream { condition: String, text: String },
    /// The server is silent.
    #[error("the XMPP server did not answer in time")]
    Timeout,
    /// We have ended it.
    #[error("stopped")]
    Stopped,
}

impl Unlinked {
    /// One of a few words, for counting.
    fn word(&self) -> &'static str {
        const CONDITIONS: [&str; 6] = [
            "conflict",
            "host-unknown",
            "invalid-namespace",
            "not-authorized",
            "see-other-host",
            "system-shutdown",
        ];
        match self {
            Self::Io(_) => "io",
            Self::Closed => "closed",
            Self::Stream { condition, .. } => {
                CONDITIONS.into_iter().find(|known| known == condition).unwrap_or("other")
            }
            Self::Timeout => "timeout",
            Self::Stopped => "stopped",
        }
    }
}

fn cure(condition: &str) -> &'static str {
    match condition {
        "conflict" => {
            " (another connection holds this component's address: stop the other process, or wait until the \
              server notices that it is gone)"
        }
        "host-unknown" => " (add this component's address to the server's configuration)",
        "see-other-host" => " (set [component] server to the host that the server names)",
        _ => "",
    }
}

/// Runs the link until `stop`, or until the server refuses the secret at the first handshake.
///
/// `outbound` takes stanzas in [`ns::CLIENT`] with `from` and `to`.
///
/// # Errors
/// [`LinkError::Refused`]; all else is retried.
pub async fn run(
    options: LinkOptions,
    mut outbound: mpsc::Receiver<Element>,
    mut handler: impl Handler,
    stop: CancellationToken,
) -> Result<(), LinkError> {
    let mut pause = BACKOFF.0;
    let mut was_up = false;
    loop {
        let started = Instant::now();
        let mut up = false;
        let ended = connection(&options, &mut outbound, &mut handler, &stop, &mut up).await;
        if up {
            was_up = true;
            handler.down();
        }
        match &ended {
            Unlinked::Stopped => return Ok(()),
            other => metrics::LINK_FAILURES.count(&[other.word()]),
        }
        match &ended {
            Unlinked::Stream { condition, .. } if condition == "not-authorized" && !was_up => {
                return Err(LinkError::Refused { jid: options.jid.to_string() });
            }
            _ => {}
        }
        if up && started.elapsed() > DEAD_AFTER {
            pause = BACKOFF.0;
        }
        let wait = pause.mul_f64(rand::random_range(0.5..1.0));
        warn!(server = options.server, reason = %ended, retry_ms = wait.as_millis(), "link down");
        pause = (pause * 2).min(BACKOFF.1);
        let retry = sleep(wait);
        tokio::pin!(retry);
        let mut dropped = 0u64;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = &mut retry => break,
                Some(_) = outbound.recv() => dropped += 1,
            }
        }
        if dropped > 0 {
            metrics::STANZAS_DROPPED.add(&["link"], dropped);
            debug!(dropped, "stanzas dropped while the link was down");
        }
    }
}

/// One connection from TCP to its end.
async fn connection(
    options: &LinkOptions,
    outbound: &mut mpsc::Receiver<Element>,
    handler: &mut impl Handler,
    stop: &CancellationToken,
    up: &mut bool,
) -> Unlinked {
    let connected = tokio::select! {
        biased;
        () = stop.cancelled() => return Unlinked::Stopped,
        connected = timeout(HANDSHAKE, handshake(options)) => connected,
    };
    let (mut reader, writer) = match connected {
        Ok(Ok(halves)) => halves,
        Ok(Err(ended)) => return ended,
        Err(_) => return Unlinked::Timeout,
    };
    while outbound.try_recv().is_ok() {
        metrics::STANZAS_DROPPED.count(&["link"]);
    }
    *up = true;
    metrics::LINK_CONNECTIONS.count(&[]);
    info!(server = options.server, jid = %options.jid, "link up");
    handler.up();
    let mut out = Out {
        writer,
        limit: options.max_stanza_bytes,
        bytes: Vec::new(),
        written: 0,
        progress: Instant::now(),
    };
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut heard, mut pinged) = (Instant::now(), false);
    // Neither direction waits for the other: if both sides' socket buffers are full, each must go on reading.
    loop {
        if let Err(ended) = take_in(&mut reader, &options.jid, outbound, handler, &mut out) {
            return ended;
        }
        while out.left() < BATCH
            && let Ok(element) = outbound.try_recv()
        {
            out.push_or_return(&element, handler);
        }
        if let Err(error) = out.write_now() {
            return Unlinked::Io(error);
        }
        let (left, empty) = (out.left(), out.left() == 0);
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                let _ = timeout(FLUSH, flush(&mut out, outbound)).await;
                return Unlinked::Stopped;
            }
            filled = reader.fill() => {
                if let Err(error) = filled {
                    return Unlinked::Io(error);
                }
                (heard, pinged) = (Instant::now(), false);
                acknowledge_at_once(&out.writer);
            }
            Some(element) = outbound.recv(), if left < BATCH => {
                out.push_or_return(&element, handler);
            }
            writable = out.writer.writable(), if !empty => {
                if let Err(error) = writable {
                    return Unlinked::Io(error);
                }
            }
            now = ticks.tick() => {
                let silent = now.saturating_duration_since(heard);
                if silent >= DEAD_AFTER || !empty && now.saturating_duration_since(out.progress) >= WRITE {
                    return Unlinked::Timeout;
                }
                if silent >= PING_AFTER && !pinged {
                    pinged = true;
                    out.push_or_return(&ping(&options.jid), handler);
                }
            }
        }
    }
}

/// Has the kernel acknowledge what was read now, not in 40 ms: a server that has not switched Nagle's algorithm off sends
/// nothing more until then, and an in-band stream would stand still. Linux forgets the setting, so it is made anew.
fn acknowledge_at_once(writer: &OwnedWriteHalf) {
    #[cfg(target_os = "linux")]
    let _ = socket2::SockRef::from(writer.as_ref()).set_tcp_quickack(true);
    #[cfg(not(target_os = "linux"))]
    let _ = writer;
}

/// What is to be written, and how far it has been.
struct Out {
    writer: OwnedWriteHalf,
    /// The longest stanza that may be written.
    limit: usize,
    bytes: Vec<u8>,
    written: usize,
    /// When something was last written, or nothing was left.
    progress: Instant,
}

impl Out {
    fn left(&self) -> usize {
        self.bytes.len() - self.written
    }

    /// Queues a stanza. One that is too long and asks for an answer gets it from here.
    fn push_or_return(&mut self, element: &Element, handler: &mut impl Handler) {
        if let Some(error) = self.push(element) {
            handler.stanza(error);
        }
    }

    /// Queues a stanza, or the error that takes its place if it is too long. Gives the error that is to come back as
    /// from the addressee.
    #[must_use]
    fn push(&mut self, element: &Element) -> Option<Element> {
        if self.left() > BACKLOG {
            metrics::STANZAS_DROPPED.count(&["queue"]);
            warn!("the XMPP server reads too slowly: an answer was dropped");
            return None;
        }
        let before = self.bytes.len();
        match xml::write(element, &mut self.bytes) {
            Ok(()) => {
                let size = self.bytes.len() - before;
                if size > self.limit {
                    self.bytes.truncate(before);
                    return self.refuse(element, size);
                }
                metrics::STANZAS.sent(element.name());
            }
            Err(error) => {
                self.bytes.truncate(before);
                warn!(%error, "a stanza could not be written and was dropped");
            }
        }
        None
    }

    /// Does what is to be done in place of writing a stanza that is `size` bytes long.
    fn refuse(&mut self, element: &Element, size: usize) -> Option<Element> {
        let limit = self.limit;
        debug!(stanza = element.name(), size, limit, "a stanza is too long to be written");
        let error = match size::instead(element, size, limit) {
            Instead::Send(error) => {
                metrics::REFUSALS.count(&["policy-violation"]);
                error
            }
            Instead::Return(error) => {
                metrics::STANZAS_DROPPED.count(&["size"]);
                return Some(error);
            }
            Instead::Nothing => {
                metrics::STANZAS_DROPPED.count(&["size"]);
                return None;
            }
        };
        let before = self.bytes.len();
        let written = xml::write(&error, &mut self.bytes);
        if written.is_ok() && self.bytes.len() - before <= limit {
            metrics::STANZAS.sent(error.name());
        } else {
            // The id alone is too long: nothing can be said that the sender would recognise.
            self.bytes.truncate(before);
            metrics::STANZAS_DROPPED.count(&["size"]);
            debug!(size, limit, "a request has an id that is too long to be answered");
        }
        None
    }

    /// Writes what can be written without waiting.
    fn write_now(&mut self) -> io::Result<()> {
        let mut wrote = false;
        while self.left() > 0 {
            match self.writer.try_write(&self.bytes[self.written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    self.written += n;
                    wrote = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if self.left() == 0 {
            self.bytes.clear();
            self.bytes.shrink_to(4 * BATCH);
            self.written = 0;
        } else if self.written > BACKLOG / 8 {
            self.bytes.drain(..self.written);
            self.written = 0;
        }
        if wrote || self.left() == 0 {
            self.progress = Instant::now();
        }
        Ok(())
    }
}

/// Handles everything that was read, up to a good write's worth of answers.
fn take_in(
    reader: &mut StanzaReader<OwnedReadHalf>,
    jid: &BareJid,
    outbound: &mut mpsc::Receiver<Element>,
    handler: &mut impl Handler,
    out: &mut Out,
) -> Result<(), Unlinked> {
    loop {
        let received = match reader.next()? {
            None => return Ok(()),
            Some(Came::Whole(received)) => {
                if let Received::Element(element) = &received {
                    metrics::STANZAS.received(element.name());
                }
                received
            }
            Some(Came::Plain(stanza)) => {
                metrics::STANZAS.received(stanza.name);
                let before = out.bytes.len();
                let may_answer = out.left() <= BACKLOG && stanza.attributes.get("id") != PING_ID;
                let answered = may_answer && handler.plain(&stanza, &mut out.bytes);
                if answered && out.bytes.len() - before > out.limit {
                    // Comes again as a tree, of which an error can be made.
                    out.bytes.truncate(before);
                } else if answered {
                    if out.bytes.len() > before {
                        metrics::STANZAS.sent("iq");
                    }
                    if out.left() > BATCH {
                        out.write_now()?;
                    }
                    continue;
                }
                Received::Element(stanza.to_element())
            }
        };
        match received {
            Received::Header(_) => {}
            Received::Footer => return Err(Unlinked::Closed),
            Received::Dropped => metrics::STANZAS_DROPPED.count(&["oversized"]),
            Received::Oversized(head) => {
                if let Ok(stanza) = Stanza::parse(head)
                    && stanza.is_request()
                {
                    let refusal = Refusal::new(
                        "modify",
                        "not-acceptable",
                        "The stanza is nested too deeply or too long",
                    );
                    out.push_or_return(&stanza.refuse(&refusal), handler);
                }
            }
            Received::Element(element) if element.is("error", ns::STREAM) => {
                return Err(stream_error(&element));
            }
            Received::Element(element) if is_own_ping(&element, jid) => {}
            Received::Element(element) => handler.stanza(element),
        }
        // The queue is short, and the answer to what comes next needs a place in it.
        while let Ok(element) = outbound.try_recv() {
            out.push_or_return(&element, handler);
        }
        if out.left() > BATCH {
            out.write_now()?;
        }
    }
}

async fn flush(out: &mut Out, outbound: &mut mpsc::Receiver<Element>) -> io::Result<()> {
    while let Ok(element) = outbound.try_recv() {
        // Nobody is left to be told.
        let _ = out.push(&element);
    }
    out.bytes.extend_from_slice(b"</stream:stream>");
    out.writer.write_all(&out.bytes[out.written..]).await?;
    out.writer.shutdown().await
}

/// A link that is up: what comes, and where to write.
pub(crate) type Halves = (StanzaReader<OwnedReadHalf>, OwnedWriteHalf);

/// Connects and logs in.
pub(crate) async fn handshake(options: &LinkOptions) -> Result<Halves, Unlinked> {
    let stream = TcpStream::connect(&options.server).await?;
    stream.set_nodelay(true)?;
    let (read, mut writer) = stream.into_split();
    let mut reader = StanzaReader::new(read);
    let header = format!(
        "<?xml version='1.0'?><stream:stream xmlns='{}' xmlns:stream='{}' to='{}'>",
        ns::COMPONENT,
        ns::STREAM,
        options.jid
    );
    writer.write_all(header.as_bytes()).await?;
    let Received::Header(header) = reader.read().await? else {
        return Err(Unlinked::Closed);
    };
    let id = header.attr("id").unwrap_or_default().to_owned();
    let digest = Handshake::from_stream_id_and_password(id, options.secret.expose_secret());
    let digest =
        digest.data.map(|bytes| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>());
    let handshake = format!("<handshake>{}</handshake>", digest.unwrap_or_default());
    writer.write_all(handshake.as_bytes()).await?;
    match reader.read().await? {
        Received::Element(element) if element.name() == "handshake" => Ok((reader, writer)),
        Received::Element(element) => Err(stream_error(&element)),
        _ => Err(Unlinked::Closed),
    }
}

fn stream_error(element: &Element) -> Unlinked {
    let condition =
        element.children().find(|child| child.has_ns(ns::STREAM_ERRORS) && child.name() != "text");
    let text = element.get_child("text", ns::STREAM_ERRORS).map(Element::text).unwrap_or_default();
    Unlinked::Stream {
        condition: condition.map_or("an error", Element::name).to_owned(),
        text: text.chars().filter(|c| !c.is_control()).take(200).collect(),
    }
}

fn ping(jid: &BareJid) -> Element {
    let address = jid.as_str();
    let mut iq = xml::element(
        "iq",
        ns::CLIENT,
        &[("type", "get"), ("from", address), ("to", address), ("id", PING_ID)],
    );
    iq.append_child(Element::bare("ping", ns::PING));
    iq
}

fn is_own_ping(element: &Element, jid: &BareJid) -> bool {
    element.name() == "iq"
        && element.attr("id") == Some(PING_ID)
        && (element.attr("from").is_none() || element.attr("from") == Some(jid.as_str()))
}
