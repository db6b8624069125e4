//! The link to the XMPP server: an XEP-0114 stream that reconnects without end.
//!
//! 1. TCP, stream header, handshake (SHA-1 over stream id and secret).
//! 2. Stanzas both ways. Every 5 s the link sends a numbered ping to its own address, which the server routes back: its
//!    return proves the whole path ([`Echo`]). 16 s without a byte end the connection.
//! 3. A connection that was up is reestablished at once, and then at most once a second, so that no stanza can delay
//!    other users. A jittered pause grows only while connecting or logging in fails.
//! 4. A connection that has died silently is reestablished from the same local port. The server may still hold the old
//!    one; the first packet from its port makes the server's kernel probe, and the answer ends it. From another port,
//!    Prosody would answer `conflict`, and ejabberd would continue to give half of all stanzas to the dead connection.
//! 5. While the link is down, outgoing stanzas are held for a few seconds, and then dropped.
//!
//! Spec: XEP-0114 1.6 (Jabber Component Protocol), section 3.

#[cfg(test)]
mod connection_tests;
pub mod echo;

use std::{collections::VecDeque, fmt, io, net::SocketAddr, time::Duration};

use fingerpost_carry::{
    outbound::{QueuedIbb, QueuedStanza},
    reader::StanzaReader,
    tcp,
};
use fingerpost_secure::redact::Secret;
use fingerpost_wire::{
    handshake,
    jid::{canonical_bare, respelled},
    ns,
    plain::Plain,
    size::{self, Instead},
    stanza::{Condition, OVERSIZED, RequestKind, StanzaType, refuse_oversized},
    tokens::ParseError,
    xml::{self, Came, Received},
};
use jid::BareJid;
use minidom::Element;
use tokio::{
    io::AsyncWriteExt,
    net::{
        TcpSocket, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use self::echo::{Echo, EchoOf, Route};
use crate::metrics;

/// How long connecting and the handshake may take together.
const HANDSHAKE: Duration = Duration::from_secs(15);
/// The silence after which the link counts as dead: three pings have not come back.
const DEAD_AFTER: Duration = Duration::from_secs(16);
/// A silence that is longer than the interval between two pings.
const QUIET: Duration = Duration::from_secs(7);
/// A connection that was up for this long does not belong to two components that push each other out.
const STEADY: Duration = Duration::from_secs(60);
/// How long connecting from the port of a dead connection may take.
const REDIAL: Duration = Duration::from_secs(5);
/// How long connecting may take if there are other servers to try.
const CONNECT: Duration = Duration::from_secs(5);
/// How long only the old port is used: the path may come back.
const ONLY_OLD: Duration = Duration::from_secs(30);
/// How long one write may take.
const WRITE: Duration = Duration::from_secs(60);
/// The precision of these times.
const TICK: Duration = Duration::from_secs(1);
/// The bytes that one write collects.
const BATCH: usize = 64 * 1024;
/// The bytes that may wait for a server that reads too slowly; further answers are dropped.
const BACKLOG: usize = 8 << 20;
/// Of these, the bytes beyond which requests come back as errors, and messages and presences too: one stanza can cause many
/// of these, and somebody waits for each answer.
const FULL: (usize, usize) = (BACKLOG / 4 * 3, BACKLOG / 2);
/// The bytes beyond the backlog for errors in place of answers.
const LAST_ERRORS: usize = 1 << 20;
/// The shortest and longest pause between failing attempts.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// A connection that was up is reestablished at once, unless that was done within this time.
const SETTLED: Duration = Duration::from_secs(10);
/// The pause otherwise: a server that ends every connection is not kept busy.
const AGAIN: Duration = Duration::from_secs(1);
/// How long stanzas are held while the link is down, and how many.
const HOLD: (Duration, usize) = (Duration::from_secs(10), 256);
/// A stanza of this size may exceed the server's limit.
const LARGE: usize = 32 * 1024;
/// How long after a large stanza the end of a connection may be its fault.
const SUSPECT: Duration = Duration::from_secs(10);
/// How long a stopping link may take to send its last stanzas.
const FLUSH: Duration = Duration::from_secs(5);
/// How long the server may take to end the stream, once this side has ended it.
const LAST: Duration = Duration::from_secs(1);

/// The addresses, the name and the secret of a link.
#[derive(Clone, Debug)]
pub struct LinkOptions {
    /// `host:port` of the server's component port, of one or several servers. They are tried in order, and each is
    /// resolved again for each attempt.
    pub servers: Vec<String>,
    /// The component's address.
    pub jid: BareJid,
    /// The shared secret.
    pub secret: Secret,
    /// The longest stanza that the server accepts, in bytes; longer ones are not written.
    pub max_stanza_bytes: usize,
}

/// Receives the events of the link, in order, on the link's own task: it must never wait.
pub trait Handler: Send {
    /// The handshake succeeded, with a server of this kind.
    fn up(&mut self, software: Software);

    /// The connection is lost; another attempt follows.
    fn down(&mut self);

    /// The result of the link's own pings has changed.
    fn route(&mut self, route: Route) {
        let _unused = route;
    }

    /// A ping of the link's own has come back after this time.
    fn trip(&mut self, time: Duration) {
        let _unused = time;
    }

    /// Takes the id of a ping that another program with this component's name has sent to itself. Returns whether that
    /// program is allowed.
    fn echo(&mut self, id: &str) -> bool {
        let _unknown = id;
        false
    }

    /// A stanza for the component, in [`ns::CLIENT`].
    fn stanza(&mut self, element: Element);

    /// May take a stanza before a tree is made of it, and write an answer to `out` as XML. If it returns false, the
    /// stanza comes again in [`Handler::stanza`].
    fn plain(&mut self, stanza: &Plain<'_>, out: &mut Vec<u8>) -> bool {
        let _neither = (stanza, out);
        false
    }
}

/// Why the link gave up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The server does not accept the secret, or has no such component: ejabberd does not tell which.
    #[error("{}: {}", refused(jid, text), refused_cure(jid, text))]
    Refused {
        /// The component's address.
        jid: String,
        /// The server's text; may be empty.
        text: String,
    },
}

/// Returns the meaning of a server's `not-authorized`.
pub(crate) fn refused(jid: impl fmt::Display, text: &str) -> String {
    let or = if text.is_empty() { ", or has no such component" } else { "" };
    format!("the XMPP server refused the secret for {jid}{or}")
}

/// Returns the cure for a refused secret. `text` is the server's; Prosody sends one, and says if the component is
/// unknown.
pub(crate) fn refused_cure(jid: impl fmt::Display, text: &str) -> String {
    if text.is_empty() {
        return format!(
            "ejabberd says the same in both cases: if no listener of ejabberd.yml with `module: ejabberd_service` has \
             {jid} in its `hosts`, add it there; else compare the `password` there with [component] secret"
        );
    }
    format!(
        "the server says {text:?}: set the same secret for {jid} in its configuration and in [component] secret"
    )
}

/// Why one connection ended, or failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unlinked {
    /// The connection broke.
    #[error("{}", broken(.0))]
    Io(io::Error),
    /// The server has ended the stream.
    #[error("the XMPP server closed the stream")]
    Closed,
    /// The server has ended the connection.
    #[error("the XMPP server closed the connection{}", if *.inside { " in the middle of a stanza" } else { "" })]
    Eof { inside: bool },
    /// The server's bytes cannot be parsed.
    #[error("the XMPP server sent {0}")]
    Malformed(ParseError),
    /// The server has sent a stream error.
    #[error("the XMPP server reports {condition} {text}{}", cure(.condition))]
    Stream { condition: String, text: String },
    /// The server is silent.
    #[error("the XMPP server did not answer in time")]
    Timeout,
    /// The component has ended it.
    #[error("stopped")]
    Stopped,
}

/// Returns whether an error is that of a connection which the server closed while bytes were on their way.
fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

/// Returns how a connection broke, as text.
fn broken(error: &io::Error) -> String {
    let what = if is_end(error) { "the XMPP server closed the connection: " } else { "" };
    format!("{what}{error}")
}

impl Unlinked {
    /// Returns whether a stanza that was too large for the server may be the cause.
    fn may_be_for_size(&self) -> bool {
        match self {
            Self::Stream { condition, .. } => {
                matches!(condition.as_str(), "not-well-formed" | "policy-violation")
            }
            // The error may get lost with the last bytes.
            Self::Io(error) => is_end(error),
            Self::Eof { .. } | Self::Closed => true,
            Self::Malformed(_) | Self::Timeout | Self::Stopped => false,
        }
    }

    /// Returns the name of the cause in the metrics.
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
            Self::Io(error) if is_end(error) => "closed",
            Self::Io(_) => "io",
            Self::Closed | Self::Eof { .. } => "closed",
            Self::Malformed(_) => "malformed",
            Self::Stream { condition, .. } => {
                CONDITIONS.into_iter().find(|known| known == condition).unwrap_or("other")
            }
            Self::Timeout => "timeout",
            Self::Stopped => "stopped",
        }
    }

    /// Returns whether the server refuses this component, whatever it sends.
    fn is_refusal(&self) -> bool {
        const CONDITIONS: [&str; 5] =
            ["conflict", "host-gone", "host-unknown", "not-authorized", "see-other-host"];
        matches!(self, Self::Stream { condition, .. } if CONDITIONS.contains(&condition.as_str()))
    }
}

impl From<io::Error> for Unlinked {
    fn from(error: io::Error) -> Self {
        let inner = error.get_ref();
        if let Some(closed) = inner.and_then(|inner| inner.downcast_ref::<xml::Closed>()) {
            return Self::Eof { inside: closed.inside };
        }
        match inner.and_then(|inner| inner.downcast_ref::<ParseError>()) {
            Some(error) => Self::Malformed(*error),
            None => Self::Io(error),
        }
    }
}

/// The pauses before attempts.
#[derive(Debug)]
struct Backoff {
    pause: Duration,
    /// When a connection was last reestablished without a pause.
    at_once: Option<Instant>,
}

/// Returns about this pause. Instances that have lost the same server do not come back together.
fn jittered(pause: Duration) -> Duration {
    let wait = pause.mul_f64(rand::random_range(0.75..1.25));
    if pause < BACKOFF.0 { wait } else { wait.clamp(BACKOFF.0, BACKOFF.1) }
}

impl Backoff {
    fn new() -> Self {
        Self { pause: BACKOFF.0, at_once: None }
    }

    /// Returns the pause after a connection has ended, or failed. `up`: when it had logged in.
    fn next(&mut self, ended: &Unlinked, up: Option<Instant>, now: Instant) -> Duration {
        match up {
            Some(_) if !ended.is_refusal() => {
                self.pause = BACKOFF.0;
                let recently = |last| now.saturating_duration_since(last) < SETTLED;
                if self.at_once.is_some_and(recently) {
                    return AGAIN;
                }
                self.at_once = Some(now);
                return Duration::ZERO;
            }
            Some(since) if now.saturating_duration_since(since) > STEADY => {
                self.pause = BACKOFF.0;
            }
            _ => {}
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(BACKOFF.1);
        pause
    }
}

/// Stanzas that wait while the link is down.
#[derive(Debug, Default)]
struct Held {
    stanzas: VecDeque<QueuedStanza>,
    /// When the link went down.
    since: Option<Instant>,
}

impl Held {
    fn push(&mut self, stanza: QueuedStanza, now: Instant) {
        self.expire(now);
        let is_late = self.since.is_none_or(|since| now - since >= HOLD.0);
        if is_late || self.stanzas.len() == HOLD.1 {
            metrics::STANZAS_DROPPED.count(&["link"]);
        } else {
            self.stanzas.push_back(stanza);
        }
    }

    /// Drops what has waited too long.
    fn expire(&mut self, now: Instant) {
        if self.since.is_none_or(|since| now - since >= HOLD.0) && !self.stanzas.is_empty() {
            metrics::STANZAS_DROPPED.add(&["link"], self.stanzas.len() as u64);
            debug!(dropped = self.stanzas.len(), "stanzas dropped while the link was down");
            self.stanzas.clear();
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
        "not-well-formed" => {
            " (Prosody also sends this for a stanza above its component_stanza_size_limit; large_stanza is the last \
              large one that was sent: compare it with component.max_stanza_bytes)"
        }
        "see-other-host" => " (set [component] server to the host that the server names)",
        _ => "",
    }
}

/// Runs the link until `stop`, or until the server refuses the secret at the first handshake.
///
/// `outbound` carries stanzas with `from` and `to`; `echoes` carries the ids of the link's own pings
/// that came back another way.
///
/// # Errors
/// [`LinkError::Refused`]. After any other failure the link tries again.
pub async fn run(
    options: LinkOptions,
    mut outbound: mpsc::Receiver<QueuedStanza>,
    mut echoes: mpsc::Receiver<String>,
    mut handler: impl Handler,
    stop: CancellationToken,
) -> Result<(), LinkError> {
    let (mut backoff, mut held) = (Backoff::new(), Held::default());
    let (mut ends, mut nonce) = (None, None);
    let mut servers = Servers::new(options.servers.len());
    loop {
        let (mut up, mut large) = (None, None);
        let server = servers.current();
        let ended = connection(
            (&options, server),
            (&mut ends, &mut nonce),
            (&mut outbound, &mut held, &mut echoes),
            &mut handler,
            &stop,
            (&mut up, &mut large),
        )
        .await;
        if up.is_some() {
            held.since = Some(Instant::now());
            handler.down();
        }
        match &ended {
            Unlinked::Stopped => return Ok(()),
            other => metrics::LINK_FAILURES.count(&[other.word()]),
        }
        let silent = ends.as_ref().is_some_and(|ends: &Ends| ends.server == server);
        let next = servers.next(&ended, up.is_some(), silent);
        let pause = match next {
            Next::GiveUp { text } => {
                return Err(LinkError::Refused { jid: options.jid.to_string(), text });
            }
            Next::Other => Duration::ZERO,
            Next::Pause => backoff.next(&ended, up, Instant::now()),
        };
        let wait = jittered(pause);
        let large = large.filter(|large| large.may_be_why(&ended, Instant::now()));
        let large = large.map(tracing::field::display);
        let server = options.servers.get(server);
        warn!(server, reason = %ended, large_stanza = large, retry_ms = wait.as_millis(), "link down");
        let retry = sleep(wait);
        tokio::pin!(retry);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = &mut retry => break,
                Some(element) = outbound.recv() => held.push(element, Instant::now()),
            }
        }
    }
}

/// The order in which several servers are tried.
#[derive(Debug)]
struct Servers {
    count: usize,
    current: usize,
    /// Servers that have refused the secret since the last one that did not. None counts once there was a link.
    refused: Vec<bool>,
    was_up: bool,
}

/// What to do after a connection has ended, or failed.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Every server has refused the secret, this one with this text.
    GiveUp { text: String },
    /// Try the next server at once.
    Other,
    /// All have been tried, or there was a link: start again with the first, after a pause.
    Pause,
}

impl Servers {
    fn new(count: usize) -> Self {
        Self { count, current: 0, refused: vec![false; count], was_up: false }
    }

    /// Returns the number of the server to try.
    fn current(&self) -> usize {
        self.current
    }

    /// Chooses the next server. `up`: whether there was a link. `silent`: whether it died silently; then the same
    /// server comes first, from the same port.
    fn next(&mut self, ended: &Unlinked, up: bool, silent: bool) -> Next {
        self.was_up |= up;
        if up {
            if !silent {
                self.current = 0;
            }
            return Next::Pause;
        }
        let text = match ended {
            Unlinked::Stream { condition, text } if condition == "not-authorized" => Some(text),
            _ => None,
        };
        if let Some(refused) = self.refused.get_mut(self.current) {
            *refused = text.is_some();
        }
        if let Some(text) = text
            && !self.was_up
            && self.refused.iter().all(|refused| *refused)
        {
            return Next::GiveUp { text: text.clone() };
        }
        self.current += 1;
        if self.current < self.count {
            return Next::Other;
        }
        self.current = 0;
        Next::Pause
    }
}

/// One connection from TCP to its end.
///
/// Sets `up` to the time of its login, and `large` to the last large stanza that was sent. `ends` are those of a
/// previous connection that died silently, and become this one's if it does too.
async fn connection(
    (options, server): (&LinkOptions, usize),
    (ends, nonce): (&mut Option<Ends>, &mut Option<u64>),
    (outbound, held, echoes): (
        &mut mpsc::Receiver<QueuedStanza>,
        &mut Held,
        &mut mpsc::Receiver<String>,
    ),
    handler: &mut impl Handler,
    stop: &CancellationToken,
    (up, large): (&mut Option<Instant>, &mut Option<Large>),
) -> Unlinked {
    let connected = tokio::select! {
        biased;
        () = stop.cancelled() => return Unlinked::Stopped,
        connected = timeout(HANDSHAKE, handshake(options, server, ends)) => connected,
    };
    let ((mut reader, writer), software) = match connected {
        Ok(Ok(logged_in)) => logged_in,
        Ok(Err(ended)) => return ended,
        Err(_) => return Unlinked::Timeout,
    };
    let now = Instant::now();
    while let Ok(element) = outbound.try_recv() {
        held.push(element, now);
    }
    held.expire(now);
    *up = Some(now);
    *ends = None;
    metrics::LINK_CONNECTIONS.count(&[]);
    info!(server = options.servers.get(server), jid = %options.jid, "link up");
    let mut out = Out {
        writer,
        domain: options.jid.domain().as_str(),
        limit: options.max_stanza_bytes,
        bytes: Vec::new(),
        written: 0,
        progress: Instant::now(),
        large,
    };
    for stanza in held.stanzas.drain(..) {
        out.push_queued(stanza, handler);
    }
    handler.up(software);
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    let mut pings = Pings::new(&options.jid, nonce, now);
    // Neither direction waits for the other: if both sides' socket buffers are full, each must continue to read.
    loop {
        if let Err(ended) = take_in(&mut reader, &mut pings, outbound, handler, &mut out) {
            return ended;
        }
        while out.left() < BATCH
            && let Ok(stanza) = outbound.try_recv()
        {
            out.push_queued(stanza, handler);
        }
        if let Err(error) = out.write_now() {
            return error.into();
        }
        let (left, empty) = (out.left(), out.left() == 0);
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                let _ = timeout(FLUSH, flush(&mut out, outbound)).await;
                let last = last_words(&mut reader, &mut pings, outbound, handler, &mut out);
                let _ = timeout(LAST, last).await;
                return Unlinked::Stopped;
            }
            filled = reader.fill() => {
                if let Err(error) = filled {
                    return error.into();
                }
                heard = Instant::now();
                tcp::acknowledge_at_once(out.writer.as_ref());
            }
            Some(stanza) = outbound.recv(), if left < BATCH => {
                out.push_queued(stanza, handler);
            }
            Some(id) = echoes.recv() => {
                pings.echo.came(&id, Instant::now());
                pings.tell(Instant::now(), handler);
            }
            writable = out.writer.writable(), if !empty => {
                if let Err(error) = writable {
                    return error.into();
                }
            }
            now = ticks.tick() => {
                let stuck = !empty && now.saturating_duration_since(out.progress) >= WRITE;
                if stuck || now.saturating_duration_since(heard) >= DEAD_AFTER {
                    *ends = Ends::abandon(&out.writer, server);
                    return Unlinked::Timeout;
                }
                for id in pings.echo.due(now) {
                    out.push_or_return(&ping(&options.jid, &id), handler);
                }
                // If nothing comes at all, the connection is dead, and no other one gets its stanzas.
                if now.saturating_duration_since(heard) < QUIET {
                    pings.tell(now, handler);
                }
            }
        }
    }
}

/// Both ends of a connection.
#[derive(Clone, Copy, Debug)]
struct Ends {
    /// The number of the server.
    server: usize,
    local: SocketAddr,
    peer: SocketAddr,
    /// When the connection was given up.
    since: Instant,
}

impl Ends {
    /// Makes the kernel drop a dead connection when it is closed, with the bytes that wait in it, so that its port is
    /// free at once.
    fn abandon(writer: &OwnedWriteHalf, server: usize) -> Option<Self> {
        let stream: &TcpStream = writer.as_ref();
        let (local, peer) = (stream.local_addr().ok()?, stream.peer_addr().ok()?);
        socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).ok()?;
        Some(Self { server, local, peer, since: Instant::now() })
    }

    /// Connects between the same ends again.
    async fn connect(self) -> io::Result<TcpStream> {
        let socket = if self.peer.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(self.local)?;
        timeout(REDIAL, socket.connect(self.peer)).await?
    }
}

/// The link's pings to its own address.
struct Pings<'a> {
    jid: &'a BareJid,
    echo: Echo,
    told: Route,
}

impl<'a> Pings<'a> {
    /// Creates the pings of a connection. `nonce` is that of the previous one, and becomes this one's.
    fn new(jid: &'a BareJid, nonce: &mut Option<u64>, now: Instant) -> Self {
        let own = rand::random();
        Self { jid, echo: Echo::new(own, nonce.replace(own), now), told: Route::Unknown }
    }

    /// Takes a stanza if it is one of these pings, or another program's.
    fn came(&mut self, element: &Element, handler: &mut impl Handler) -> bool {
        let now = Instant::now();
        let is_ours = element.attr("from").is_none_or(|from| from == self.jid.as_str());
        let Some(id) = element.attr("id").filter(|_| element.name() == "iq" && is_ours) else {
            return false;
        };
        let came = self.echo.came(id, now);
        if came == EchoOf::Foreign && !handler.echo(id) {
            self.echo.is_shared(now);
        }
        came != EchoOf::Other
    }

    /// Reports how long a ping took, and a change of the route through the server.
    fn tell(&mut self, now: Instant, handler: &mut impl Handler) {
        if let Some(time) = self.echo.trip() {
            handler.trip(time);
        }
        let route = self.echo.route(now);
        if route == self.told {
            return;
        }
        match (self.told, route) {
            (Route::Lost { .. }, Route::Lost { .. }) => {}
            (_, Route::Lost { missing, of }) => warn!(
                missing,
                of,
                cause = "the server gives stanzas for this component to another connection: one that died silently, or that of a component with the same name or in the same ejabberd listener",
                cure = "stop the other component; give each component of ejabberd a listener of its own; otherwise restart the server's component listener, or wait 16 minutes until the server gives the dead one up",
                "stanzas to this component are lost"
            ),
            (_, Route::Shared) => warn!(
                cause = "a second component is connected with the same name, or another one uses the same ejabberd listener",
                cure = "stop the other component; give each component of ejabberd a listener of its own",
                "stanzas to this component are shared with another connection"
            ),
            (Route::Unknown, _) => {}
            _ => info!("stanzas to this component arrive again"),
        }
        self.told = route;
        handler.route(route);
    }
}

/// A large stanza that was sent, which helps to find the cause of a stream error.
#[derive(Debug)]
struct Large {
    bytes: usize,
    kind: String,
    payload: String,
    sent: Instant,
}

impl Large {
    fn new(element: &Element, bytes: usize) -> Self {
        let payload = element.children().next();
        Self::of(element.name(), payload.map(|payload| (payload.name(), payload.ns())), bytes)
    }

    fn of(kind: &str, payload: Option<(&str, impl fmt::Display)>, bytes: usize) -> Self {
        let payload = payload.map_or("no child".to_owned(), |(name, ns)| format!("{name} ({ns})"));
        let payload = payload.chars().take(100).collect();
        Self { bytes, kind: kind.to_owned(), payload, sent: Instant::now() }
    }

    /// Returns whether it may be the cause of the connection's end.
    fn may_be_why(&self, ended: &Unlinked, now: Instant) -> bool {
        let recent = now.saturating_duration_since(self.sent) < SUSPECT;
        ended.may_be_for_size() && (recent || matches!(ended, Unlinked::Stream { .. }))
    }
}

impl fmt::Display for Large {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes with {}", self.kind, self.bytes, self.payload)
    }
}

/// Returns whether a stanza has an addressee, and a sender of the component's domain: servers end the stream otherwise.
fn is_addressed(element: &Element, domain: &str) -> bool {
    let is_ours = |from: &str| {
        let bare = from.split_once('/').map_or(from, |(bare, _)| bare);
        let of = bare.split_once('@').map_or(bare, |(_, domain)| domain);
        // A server may spell the domain in another way.
        of == domain || canonical_bare(of).is_some_and(|of| canonical_bare(domain) == Some(of))
    };
    element.attr("from").is_some_and(is_ours) && element.attr("to").is_some_and(|to| !to.is_empty())
}

/// Returns how many bytes may wait before a stanza like this one.
fn room(element: &Element) -> usize {
    match element.name() {
        "iq" if StanzaType::of(element).asks() => FULL.0,
        "iq" => BACKLOG,
        _ => FULL.1,
    }
}

/// The bytes to write, and their progress.
struct Out<'a> {
    writer: OwnedWriteHalf,
    /// The component's own domain.
    domain: &'a str,
    /// The longest stanza that may be written.
    limit: usize,
    bytes: Vec<u8>,
    written: usize,
    /// When something was last written, or nothing was left.
    progress: Instant,
    large: &'a mut Option<Large>,
}

impl Out<'_> {
    fn left(&self) -> usize {
        self.bytes.len() - self.written
    }

    /// Queues a stanza of one of the component's parts.
    fn push_queued(&mut self, stanza: QueuedStanza, handler: &mut impl Handler) {
        match stanza {
            QueuedStanza::Ibb(stanza) if self.push_ibb(&stanza) => {}
            other => self.push_or_return(&other.into_element(), handler),
        }
    }

    /// Queues a stanza of an in-band bytestream, if nothing about it is unusual; returns whether it did.
    fn push_ibb(&mut self, stanza: &QueuedIbb) -> bool {
        let of = stanza.from().split_once('/').map_or(stanza.from(), |(bare, _)| bare);
        let of = of.split_once('@').map_or(of, |(_, domain)| domain);
        if self.left() > BACKLOG || of != self.domain || respelled(stanza.to()).is_some() {
            return false;
        }
        let before = self.bytes.len();
        stanza.write(&mut self.bytes);
        let size = self.bytes.len() - before;
        if size > self.limit {
            self.bytes.truncate(before);
            return false;
        }
        metrics::STANZAS.sent("iq");
        if size >= LARGE {
            *self.large = Some(Large::of("iq", stanza.payload().map(|name| (name, ns::IBB)), size));
        }
        true
    }

    /// Queues a stanza. If it is too long and asks for an answer, it gets one from here.
    fn push_or_return(&mut self, element: &Element, handler: &mut impl Handler) {
        if let Some(error) = self.push(element) {
            handler.stanza(error);
        }
    }

    /// Queues a stanza, or the error that replaces it if it is too long. Returns the error that must come back as if
    /// from the addressee.
    #[must_use]
    fn push(&mut self, element: &Element) -> Option<Element> {
        let left = self.left();
        if left > room(element) {
            warn!(stanza = element.name(), "not sent: the XMPP server reads too slowly");
            if left <= BACKLOG + LAST_ERRORS && is_addressed(element, self.domain) {
                return self.replace(size::instead_of_queued(element), "queue");
            }
            metrics::STANZAS_DROPPED.count(&["queue"]);
            return None;
        }
        if !is_addressed(element, self.domain) {
            metrics::STANZAS_DROPPED.count(&["address"]);
            error!(
                stanza = element.name(),
                from = element.attr("from"),
                to = element.attr("to"),
                "stanza without from and to not sent, because the server would end the stream; this is a bug in fingerpost"
            );
            return None;
        }
        let respelled = element.attr("to").and_then(respelled).map(|to| {
            let mut element = element.clone();
            xml::set(&mut element, "to", &to);
            element
        });
        let element = respelled.as_ref().unwrap_or(element);
        let before = self.bytes.len();
        match xml::write(element, &mut self.bytes) {
            Ok(()) => {
                let size = self.bytes.len() - before;
                if size > self.limit {
                    self.bytes.truncate(before);
                    debug!(
                        stanza = element.name(),
                        size,
                        limit = self.limit,
                        "stanza too long to be sent"
                    );
                    return self.replace(size::instead(element, size, self.limit), "size");
                }
                metrics::STANZAS.sent(element.name());
                if size >= LARGE {
                    *self.large = Some(Large::new(element, size));
                }
            }
            Err(error) => {
                self.bytes.truncate(before);
                debug!(stanza = element.name(), %error, "stanza cannot be written");
                return self.replace(size::instead_of_unwritable(element, &error), "unwritable");
            }
        }
        None
    }

    /// Handles a stanza that cannot be written. `reason` is why.
    fn replace(&mut self, instead: Instead, reason: &'static str) -> Option<Element> {
        let error = match instead {
            Instead::Send(error) => {
                let condition = match reason {
                    "size" => Condition::PolicyViolation,
                    "queue" => Condition::ResourceConstraint,
                    _ => Condition::NotAcceptable,
                };
                metrics::REFUSALS.count(&[condition.as_str()]);
                error
            }
            Instead::Return(error) => {
                metrics::STANZAS_DROPPED.count(&[reason]);
                return Some(error);
            }
            Instead::Nothing => {
                metrics::STANZAS_DROPPED.count(&[reason]);
                return None;
            }
        };
        let before = self.bytes.len();
        let written = xml::write(&error, &mut self.bytes);
        if written.is_ok() && self.bytes.len() - before <= self.limit {
            metrics::STANZAS.sent(error.name());
        } else {
            // The id alone is too long: the sender would not recognize any answer.
            self.bytes.truncate(before);
            metrics::STANZAS_DROPPED.count(&[reason]);
            debug!(limit = self.limit, "request not answered: its id is too long");
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

/// Handles the bytes that were read, until the answers fill a write.
fn take_in(
    reader: &mut StanzaReader<OwnedReadHalf>,
    pings: &mut Pings<'_>,
    outbound: &mut mpsc::Receiver<QueuedStanza>,
    handler: &mut impl Handler,
    out: &mut Out<'_>,
) -> Result<(), Unlinked> {
    loop {
        let received = match reader.next_part()? {
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
                let may_answer = out.left() <= BACKLOG && !echo::is_id(stanza.attributes.get("id"));
                let answered = may_answer && handler.plain(&stanza, &mut out.bytes);
                if answered && out.bytes.len() - before > out.limit {
                    // It comes again as a tree, from which an error can be made.
                    out.bytes.truncate(before);
                } else if answered {
                    let size = out.bytes.len() - before;
                    if size > 0 {
                        metrics::STANZAS.sent("iq");
                    }
                    if size >= LARGE {
                        let payload = stanza.payload.as_ref();
                        let payload = payload.map(|payload| (payload.name, payload.namespace));
                        *out.large = Some(Large::of("iq", payload, size));
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
            Received::Oversized(head) => match refuse_oversized(head) {
                Some(refusal) => {
                    metrics::REFUSALS.count(&[OVERSIZED.as_str()]);
                    out.push_or_return(&refusal, handler);
                }
                None => metrics::STANZAS_DROPPED.count(&["oversized"]),
            },
            Received::Element(element) if element.is("error", ns::STREAM) => {
                return Err(stream_error(&element));
            }
            Received::Element(element) if pings.came(&element, handler) => {
                pings.tell(Instant::now(), handler);
            }
            Received::Element(element) => handler.stanza(element),
        }
        // The queue is short, and the answer to the next stanza needs a place in it. When much waits already, half of it stays
        // filled: those who can wait see that there is no room.
        while out.left() <= FULL.1 || outbound.len() > outbound.max_capacity() / 2 {
            let Ok(stanza) = outbound.try_recv() else { break };
            out.push_queued(stanza, handler);
        }
        if out.left() > BATCH {
            out.write_now()?;
        }
    }
}

/// Reads until the server ends the stream, too: what it has sent before concerns another instance, if there is one.
async fn last_words(
    reader: &mut StanzaReader<OwnedReadHalf>,
    pings: &mut Pings<'_>,
    outbound: &mut mpsc::Receiver<QueuedStanza>,
    handler: &mut impl Handler,
    out: &mut Out<'_>,
) {
    while take_in(reader, pings, outbound, handler, out).is_ok() && reader.fill().await.is_ok() {}
}

async fn flush(out: &mut Out<'_>, outbound: &mut mpsc::Receiver<QueuedStanza>) -> io::Result<()> {
    while let Ok(stanza) = outbound.try_recv() {
        // The receiver is gone.
        let _ = out.push(&stanza.into_element());
    }
    out.bytes.extend_from_slice(b"</stream:stream>");
    out.writer.write_all(&out.bytes[out.written..]).await?;
    out.writer.shutdown().await
}

/// A link that is up: its reader and its writer.
pub(crate) type Halves = (StanzaReader<OwnedReadHalf>, OwnedWriteHalf);

/// Connects to one of the servers and logs in. `ends` are those of a dead connection, until another one is established.
async fn handshake(
    options: &LinkOptions,
    server: usize,
    ends: &mut Option<Ends>,
) -> Result<(Halves, Software), Unlinked> {
    if let Some(dead) = ends.filter(|ends| ends.server == server) {
        match dead.connect().await {
            Ok(stream) => {
                *ends = None;
                return log_in(options, stream).await;
            }
            // The server's machine has no such connection, or this machine no such address.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::AddrInUse
                        | io::ErrorKind::AddrNotAvailable
                        | io::ErrorKind::ConnectionRefused
                ) =>
            {
                debug!(%error, "could not connect from the port of the dead connection");
            }
            Err(error) if dead.since.elapsed() < ONLY_OLD => return Err(error.into()),
            Err(error) => debug!(%error, "could not connect from the port of the dead connection"),
        }
    }
    let address = options.servers.get(server).map(String::as_str).unwrap_or_default();
    let connecting = TcpStream::connect(address);
    let stream = match options.servers.len() {
        1 => connecting.await?,
        _ => timeout(CONNECT, connecting).await.map_err(|_| Unlinked::Timeout)??,
    };
    if ends.is_some_and(|ends| ends.server == server) {
        *ends = None;
    }
    log_in(options, stream).await
}

/// Connects to one of the servers and logs in, for a few requests.
pub(crate) async fn visit(options: &LinkOptions, server: usize) -> Result<Halves, Unlinked> {
    Ok(handshake(options, server, &mut None).await?.0)
}

async fn log_in(options: &LinkOptions, stream: TcpStream) -> Result<(Halves, Software), Unlinked> {
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
    let id = header.attr("id").unwrap_or_default();
    let software = Software::of(id);
    let digest = handshake::digest(id, options.secret.expose_secret());
    let handshake = format!("<handshake>{digest}</handshake>");
    writer.write_all(handshake.as_bytes()).await?;
    match reader.read().await? {
        Received::Element(element) if element.name() == "handshake" => {
            Ok(((reader, writer), software))
        }
        Received::Element(element) => Err(stream_error(&element)),
        _ => Err(Unlinked::Closed),
    }
}

/// The kind of server at the other end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Software {
    /// A server without clusters, such as Prosody.
    Alone,
    /// A server that may be a node of a cluster.
    Node,
}

impl Software {
    /// Reads it from the stream's id: Prosody's is a UUID, ejabberd's a number.
    pub(super) fn of(id: &str) -> Self {
        let parts: Vec<&str> = id.split('-').collect();
        let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
        let is_hex = parts.iter().all(|part| part.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if is_hex && lengths == [8, 4, 4, 4, 12] { Self::Alone } else { Self::Node }
    }
}

fn stream_error(element: &Element) -> Unlinked {
    let (condition, text) = xml::stream_error(element);
    Unlinked::Stream { condition: condition.unwrap_or("an error").to_owned(), text }
}

/// Returns a ping from the component to itself.
pub(crate) fn ping(jid: &BareJid, id: &str) -> Element {
    let address = jid.as_str();
    RequestKind::Get.iq(address, address, id, Element::bare("ping", ns::PING))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use fingerpost_carry::outbound::Outbound;
    use tokio::{
        io::AsyncReadExt,
        net::{TcpListener, tcp::OwnedReadHalf},
        task::JoinHandle,
    };

    use super::*;

    const HEADER: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:component:accept' \
        xmlns:stream='http://etherx.jabber.org/streams' id='1'>";

    fn stream_error(condition: &str) -> Unlinked {
        Unlinked::Stream { condition: condition.to_owned(), text: String::new() }
    }

    #[test]
    fn only_what_keeps_from_logging_in_makes_the_pause_grow() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut backoff = Backoff::new();
        let malformed = Unlinked::Malformed(ParseError::NotWellFormed("a name"));
        // Up for a moment each time: at once, then once a second, however often.
        assert_eq!(backoff.next(&malformed, Some(at(0)), at(0)), Duration::ZERO);
        for second in 1..10 {
            assert_eq!(backoff.next(&malformed, Some(at(second)), at(second)), AGAIN);
        }
        assert_eq!(
            backoff.next(&stream_error("not-well-formed"), Some(at(9)), at(10)),
            Duration::ZERO
        );
        assert_eq!(backoff.next(&Unlinked::Closed, Some(at(10)), at(11)), AGAIN);
        // The server is gone, then back.
        let pauses: Vec<_> = (12..20)
            .map(|second| backoff.next(&Unlinked::Timeout, None, at(second)).as_millis())
            .collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        for pause in [BACKOFF.0, BACKOFF.1] {
            assert!((0..99).all(|_| (BACKOFF.0..=BACKOFF.1).contains(&jittered(pause))));
        }
        assert_eq!(jittered(Duration::ZERO), Duration::ZERO);
        assert_eq!(backoff.next(&Unlinked::Closed, Some(at(30)), at(31)), Duration::ZERO);
        assert_eq!(backoff.next(&Unlinked::Timeout, None, at(32)), BACKOFF.0);
        // Two components that push each other out slow down, until one has been up for long.
        let mut backoff = Backoff::new();
        let pauses: Vec<_> = (0..4)
            .map(|second| backoff.next(&stream_error("conflict"), Some(at(second)), at(second)))
            .map(|pause| pause.as_millis())
            .collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000]);
        assert_eq!(backoff.next(&stream_error("conflict"), Some(at(4)), at(100)), BACKOFF.0);
    }

    #[test]
    fn stanzas_are_held_for_a_while_and_within_a_limit() {
        let now = Instant::now();
        let mut held = Held::default();
        let stanza = || Element::bare("message", ns::CLIENT);
        held.push(stanza().into(), now);
        assert!(held.stanzas.is_empty(), "the link was never up");
        held.since = Some(now);
        for _ in 0..HOLD.1 + 9 {
            held.push(stanza().into(), now);
        }
        assert_eq!(held.stanzas.len(), HOLD.1);
        held.expire(now + HOLD.0);
        assert!(held.stanzas.is_empty());
        held.push(stanza().into(), now + HOLD.0);
        assert!(held.stanzas.is_empty());
    }

    #[test]
    fn a_large_stanza_is_suspected_of_an_end_that_it_may_have_caused() {
        let large = Large::of("iq", Some(("query", ns::DISCO_INFO)), 600_000);
        let soon = large.sent + SUSPECT - Duration::from_millis(1);
        let late = large.sent + SUSPECT;
        for (ended, at_once, later) in [
            (stream_error("not-well-formed"), true, true),
            (stream_error("policy-violation"), true, true),
            (stream_error("system-shutdown"), false, false),
            (Unlinked::Eof { inside: false }, true, false),
            (Unlinked::Io(io::ErrorKind::ConnectionReset.into()), true, false),
            (Unlinked::Io(io::ErrorKind::TimedOut.into()), false, false),
            (Unlinked::Timeout, false, false),
        ] {
            assert_eq!(large.may_be_why(&ended, soon), at_once, "{ended}");
            assert_eq!(large.may_be_why(&ended, late), later, "{ended}");
        }
    }

    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Vec<String>>>);

    impl Handler for Seen {
        fn up(&mut self, _: Software) {
            self.0.lock().unwrap().push("up".to_owned());
        }

        fn down(&mut self) {
            self.0.lock().unwrap().push("down".to_owned());
        }

        fn stanza(&mut self, element: Element) {
            self.0.lock().unwrap().push(String::from(&element));
        }
    }

    /// A link to a listener of this test.
    struct Linked {
        listener: TcpListener,
        outbound: Outbound,
        seen: Seen,
        stop: CancellationToken,
        task: JoinHandle<Result<(), LinkError>>,
    }

    impl Linked {
        async fn start() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let options = LinkOptions {
                servers: vec![listener.local_addr().unwrap().to_string()],
                jid: BareJid::new("xtls.example.test").unwrap(),
                secret: Secret::new("secret"),
                max_stanza_bytes: 100_000,
            };
            let (outbound, queue) = mpsc::channel(16);
            let (seen, stop) = (Seen::default(), CancellationToken::new());
            let task =
                tokio::spawn(run(options, queue, mpsc::channel(1).1, seen.clone(), stop.clone()));
            Self { listener, outbound, seen, stop, task }
        }

        /// Takes one connection and lets it log in.
        async fn log_in(&self) -> (OwnedReadHalf, OwnedWriteHalf) {
            let (stream, _) = self.listener.accept().await.unwrap();
            let (mut read, mut write) = stream.into_split();
            read_until(&mut read, ">").await;
            write.write_all(HEADER.as_bytes()).await.unwrap();
            read_until(&mut read, "</handshake>").await;
            write.write_all(b"<handshake/>").await.unwrap();
            (read, write)
        }

        /// Waits until an event with this text has occurred.
        async fn wait_for(&self, text: &str) {
            while !self.seen.0.lock().unwrap().iter().any(|seen| seen.contains(text)) {
                tokio::task::yield_now().await;
            }
        }

        /// Stops the link; returns the events.
        async fn end(self) -> Vec<String> {
            self.stop.cancel();
            self.task.await.unwrap().unwrap();
            let seen = self.seen.0.lock().unwrap();
            seen.clone()
        }
    }

    /// Reads until the received text ends with this.
    async fn read_until(read: &mut OwnedReadHalf, end: &str) -> String {
        let mut text = String::new();
        while !text.ends_with(end) || text.ends_with("?>") {
            let mut byte = [0];
            read.read_exact(&mut byte).await.unwrap();
            text.push(char::from(byte[0]));
        }
        text
    }

    fn iq(type_: &str, child: Element) -> Element {
        let mut iq = xml::element(
            "iq",
            ns::CLIENT,
            &[
                ("type", type_),
                ("from", "xtls.example.test"),
                ("to", "a@example.test/b"),
                ("id", "1"),
            ],
        );
        iq.append_child(child);
        iq
    }

    #[tokio::test]
    async fn a_stream_that_breaks_is_made_anew_and_what_waited_is_sent() {
        let link = Linked::start().await;
        let (read, mut write) = link.log_in().await;
        // Not well-formed, while a request waits.
        write.write_all(b"<iq></message>").await.unwrap();
        drop(read);
        link.wait_for("down").await;
        link.outbound.send(iq("result", Element::bare("x", "urn:x")).into()).await.unwrap();
        let (mut read, mut write) = link.log_in().await;
        let text = read_until(&mut read, "</iq>").await;
        assert!(text.starts_with("<iq xmlns='jabber:component:accept'"), "{text}");
        let stanza = "<message from='a@example.test' to='xtls.example.test'><xml:foo/></message>";
        write.write_all(stanza.as_bytes()).await.unwrap();
        write.write_all(b"<message id='last'/>").await.unwrap();
        link.wait_for("last").await;
        let seen = link.end().await;
        let ups = seen.iter().filter(|seen| *seen == "up").count();
        assert_eq!((ups, seen.iter().filter(|seen| *seen == "down").count()), (2, 2), "{seen:?}");
        assert!(seen.iter().any(|seen| seen.contains("xml:foo")), "{seen:?}");
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_answered_for() {
        let link = Linked::start().await;
        let (mut read, _write) = link.log_in().await;
        link.wait_for("up").await;
        let reserved = || Element::bare("foo", "http://www.w3.org/XML/1998/namespace");
        link.outbound.send(iq("set", reserved()).into()).await.unwrap();
        link.outbound.send(iq("result", reserved()).into()).await.unwrap();
        let text = read_until(&mut read, "</iq>").await;
        assert!(text.contains("type='error'") && text.contains("to='a@example.test/b'"), "{text}");
        let seen = link.end().await;
        let refused = seen.iter().find(|seen| seen.contains("not-acceptable")).unwrap();
        assert!(refused.contains("from='a@example.test/b'"), "{refused}");
        assert!(refused.contains("to='xtls.example.test'"), "{refused}");
    }

    #[test]
    fn an_orderly_end_is_told_from_a_broken_one() {
        let closed = |inside| io::Error::new(io::ErrorKind::UnexpectedEof, xml::Closed { inside });
        for (error, text, word) in [
            (closed(false), "the XMPP server closed the connection", "closed"),
            (
                closed(true),
                "the XMPP server closed the connection in the middle of a stanza",
                "closed",
            ),
            (
                io::ErrorKind::ConnectionReset.into(),
                "the XMPP server closed the connection: connection reset",
                "closed",
            ),
            (io::ErrorKind::ConnectionRefused.into(), "connection refused", "io"),
            (
                io::Error::new(io::ErrorKind::InvalidData, ParseError::NotWellFormed("a name")),
                "the XMPP server sent not well-formed XML: a name",
                "malformed",
            ),
        ] {
            let ended = Unlinked::from(error);
            assert_eq!((ended.to_string().as_str(), ended.word()), (text, word));
        }
    }
}
