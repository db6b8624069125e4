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
    net::{TcpStream, tcp::OwnedWriteHalf},
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use xmpp_parsers::component::Handshake;

use super::{
    ns,
    stanza::{Refusal, Stanza},
    xml::{self, Received, StanzaReader},
};
use crate::redact::Secret;

/// Connecting and the handshake may take this long together.
const HANDSHAKE: Duration = Duration::from_secs(15);
/// Silence after which the link is probed.
const PING_AFTER: Duration = Duration::from_secs(30);
/// Silence after which the link counts as dead.
const DEAD_AFTER: Duration = Duration::from_secs(60);
/// One stanza must be written within this time.
const WRITE: Duration = Duration::from_secs(60);
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
}

/// What the link tells the service.
#[derive(Debug)]
pub enum LinkEvent {
    /// The handshake succeeded.
    Up,
    /// The connection is lost; another will be tried.
    Down,
    /// A stanza for the component, in [`ns::CLIENT`].
    Stanza(Element),
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

/// Why one connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the XMPP server closed the stream")]
    Closed,
    #[error("the XMPP server reports {condition} {text}{}", cure(.condition))]
    Stream { condition: String, text: String },
    #[error("the XMPP server did not answer in time")]
    Timeout,
    #[error("stopped")]
    Stopped,
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
    events: mpsc::Sender<LinkEvent>,
    stop: CancellationToken,
) -> Result<(), LinkError> {
    let mut pause = BACKOFF.0;
    let mut was_up = false;
    loop {
        let started = Instant::now();
        let mut up = false;
        let ended = connection(&options, &mut outbound, &events, &stop, &mut up).await;
        if up {
            was_up = true;
            let _ = events.send(LinkEvent::Down).await;
        }
        match &ended {
            Ended::Stopped => return Ok(()),
            Ended::Stream { condition, .. } if condition == "not-authorized" && !was_up => {
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
            debug!(dropped, "stanzas dropped while the link was down");
        }
    }
}

/// One connection from TCP to its end.
async fn connection(
    options: &LinkOptions,
    outbound: &mut mpsc::Receiver<Element>,
    events: &mpsc::Sender<LinkEvent>,
    stop: &CancellationToken,
    up: &mut bool,
) -> Ended {
    let connected = tokio::select! {
        biased;
        () = stop.cancelled() => return Ended::Stopped,
        connected = timeout(HANDSHAKE, handshake(options)) => connected,
    };
    let (mut reader, mut writer) = match connected {
        Ok(Ok(halves)) => halves,
        Ok(Err(ended)) => return ended,
        Err(_) => return Ended::Timeout,
    };
    while outbound.try_recv().is_ok() {}
    *up = true;
    info!(server = options.server, jid = %options.jid, "link up");
    if events.send(LinkEvent::Up).await.is_err() {
        return Ended::Stopped;
    }
    // Reading and writing are two tasks: if both sides' socket buffers are full, each must go on reading.
    let (answers, mut queued) = mpsc::channel::<Element>(64);
    let ping_jid = options.jid.clone();
    let read_events = events.clone();
    let mut reading =
        tokio::spawn(async move { read(&mut reader, &ping_jid, &answers, &read_events).await });
    let ended = loop {
        let element = tokio::select! {
            biased;
            () = stop.cancelled() => {
                let _ = timeout(FLUSH, flush(&mut writer, outbound)).await;
                break Ended::Stopped;
            }
            ended = &mut reading => break ended.unwrap_or(Ended::Closed),
            Some(element) = queued.recv() => element,
            Some(element) = outbound.recv() => element,
        };
        match timeout(WRITE, write(&mut writer, &element)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => break Ended::Io(error),
            Err(_) => break Ended::Timeout,
        }
    };
    reading.abort();
    ended
}

async fn flush(
    writer: &mut OwnedWriteHalf,
    outbound: &mut mpsc::Receiver<Element>,
) -> io::Result<()> {
    while let Ok(element) = outbound.try_recv() {
        write(writer, &element).await?;
    }
    writer.write_all(b"</stream:stream>").await?;
    writer.shutdown().await
}

async fn write(writer: &mut OwnedWriteHalf, element: &Element) -> io::Result<()> {
    match xml::write(element) {
        Ok(bytes) => writer.write_all(&bytes).await,
        Err(error) => {
            warn!(%error, "a stanza could not be written and was dropped");
            Ok(())
        }
    }
}

type Halves = (StanzaReader<tokio::net::tcp::OwnedReadHalf>, OwnedWriteHalf);

async fn handshake(options: &LinkOptions) -> Result<Halves, Ended> {
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
    let Received::Header(id) = reader.read().await? else {
        return Err(Ended::Closed);
    };
    let digest = Handshake::from_stream_id_and_password(id, options.secret.expose_secret());
    let digest =
        digest.data.map(|bytes| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>());
    let handshake = format!("<handshake>{}</handshake>", digest.unwrap_or_default());
    writer.write_all(handshake.as_bytes()).await?;
    match reader.read().await? {
        Received::Element(element) if element.name() == "handshake" => Ok((reader, writer)),
        Received::Element(element) => Err(stream_error(&element)),
        _ => Err(Ended::Closed),
    }
}

fn stream_error(element: &Element) -> Ended {
    let condition =
        element.children().find(|child| child.has_ns(ns::STREAM_ERRORS) && child.name() != "text");
    let text = element.get_child("text", ns::STREAM_ERRORS).map(Element::text).unwrap_or_default();
    Ended::Stream {
        condition: condition.map_or("an error", Element::name).to_owned(),
        text: text.chars().filter(|c| !c.is_control()).take(200).collect(),
    }
}

/// Reads until the connection ends; `answers` takes what must be sent whatever the service does.
async fn read<R: tokio::io::AsyncRead + Unpin>(
    reader: &mut StanzaReader<R>,
    jid: &BareJid,
    answers: &mpsc::Sender<Element>,
    events: &mpsc::Sender<LinkEvent>,
) -> Ended {
    let mut pinged = false;
    loop {
        let wait = if pinged { DEAD_AFTER - PING_AFTER } else { PING_AFTER };
        let received = match timeout(wait, reader.read()).await {
            Ok(Ok(received)) => received,
            Ok(Err(error)) => return Ended::Io(error),
            Err(_) if pinged => return Ended::Timeout,
            Err(_) => {
                pinged = true;
                if answers.send(ping(jid)).await.is_err() {
                    return Ended::Closed;
                }
                continue;
            }
        };
        pinged = false;
        match received {
            Received::Header(_) => {}
            Received::Footer => return Ended::Closed,
            Received::Oversized(head) => {
                if let Ok(stanza) = Stanza::parse(head)
                    && stanza.is_request()
                {
                    let refusal = Refusal::new(
                        "modify",
                        "not-acceptable",
                        "The stanza is nested too deeply or too long",
                    );
                    if answers.send(stanza.refuse(&refusal)).await.is_err() {
                        return Ended::Closed;
                    }
                }
            }
            Received::Element(element) if element.is("error", ns::STREAM) => {
                return stream_error(&element);
            }
            Received::Element(element) if is_own_ping(&element, jid) => {}
            Received::Element(element) => {
                if events.send(LinkEvent::Stanza(element)).await.is_err() {
                    return Ended::Closed;
                }
            }
        }
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
