//! The connections of one listening socket until they have named their transfers. One task serves all of them.
//!
//! Most of them are here for less than a millisecond, so none has a task, a timer or a place in the runtime's poller: they
//! are entries of a list, and wait in an epoll instance of their own, which the runtime polls as one descriptor. Usually
//! the greeting has come by the time a connection is accepted, and is read at once.

use std::{
    io::{self, Read as _, Write as _},
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use fingerpost_secure::redact::Pii;
use fingerpost_wire::dst_addr::DstAddr;
use futures::future::OptionFuture;
use hashlink::LinkedHashMap;
use rustix::{
    event::{
        Timespec,
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
    },
    process::{Resource, getrlimit},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, Interest, unix::AsyncFd},
    sync::OwnedSemaphorePermit,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::Gate;
use crate::{
    accept::{Backoff, Failed, Reserve},
    relay::{
        admission::SocketAdmission,
        clock::now,
        crowd::{Displaced, Visitor},
        metrics::{Cause, TimeoutPhase},
        proxy_header::{HeaderError, HeaderReader},
        socket::Socket,
        socks5::{Code, Handshake, Reply, Socks5Action},
        table::{SocketArrival, TransferTable},
    },
};

/// The shortest time between two log lines about missing file descriptors.
const LOG_PAUSE: Duration = Duration::from_secs(10);

/// How long a refused client may take to read the reason, so that a reset does not overtake the reply.
const GOODBYE: Duration = Duration::from_secs(1);

/// The last file descriptors, which the status server, the database and the link need: no client gets one.
const KEPT: u64 = 16;

/// The connections that are accepted, and the events that are handled, before other tasks have a turn.
const TURN: usize = 64;

/// The size of one read: the bytes that may precede the reply, so that one read gets them.
const READ: usize = 1024;

/// The name of the listening socket in the epoll instance; no connection has this number.
const LISTENER: u64 = u64::MAX;

/// What an epoll instance reports of a socket, once for each change.
const ARRIVALS: EventFlags = EventFlags::IN.union(EventFlags::RDHUP).union(EventFlags::ET);

/// A listening socket, and its connections in their handshake.
pub(super) struct Reception {
    listener: TcpListener,
    gate: Gate,
    table: TransferTable,
    soft: CancellationToken,
    tasks: TaskTracker,
    /// Watches the listening socket and the connections.
    poller: Arc<AsyncFd<OwnedFd>>,
    /// The connections, oldest first, by the numbers that the crowd gave them.
    guests: LinkedHashMap<u64, Guest>,
    /// Those of them that must make room.
    displaced: Arc<Displaced>,
    /// Whether connections may wait in the kernel's queue.
    queued: bool,
    /// A connection for which there was no place. No other is accepted meanwhile.
    held: Option<(TcpStream, SocketAddr)>,
    /// Until when nothing is accepted, after an error.
    paused: Option<Instant>,
    backoff: Backoff,
    spare: Spare,
    buffer: Box<[u8]>,
}

impl Reception {
    /// Creates a reception for a listening socket, which must not block.
    pub(super) fn new(
        listener: TcpListener,
        gate: Gate,
        table: TransferTable,
        soft: CancellationToken,
        tasks: TaskTracker,
    ) -> io::Result<Self> {
        let poller = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&poller, &listener, EventData::new_u64(LISTENER), ARRIVALS)?;
        #[expect(deprecated, reason = "the sound one is unsafe, and the descriptor is owned")]
        let poller = AsyncFd::with_interest(poller, Interest::READABLE)?;
        Ok(Self {
            listener,
            gate,
            table,
            soft,
            tasks,
            poller: Arc::new(poller),
            guests: LinkedHashMap::new(),
            displaced: Arc::default(),
            queued: true,
            held: None,
            paused: None,
            backoff: Backoff::new(),
            spare: Spare::new(),
            buffer: vec![0; READ].into(),
        })
    }

    /// Accepts and serves connections until the token is cancelled.
    pub(super) async fn run(mut self) {
        let (gate, poller) = (self.gate.clone(), Arc::clone(&self.poller));
        let (displaced, soft) = (Arc::clone(&self.displaced), self.soft.clone());
        let mut stopped = pin!(soft.cancelled());
        let mut timer = pin!(sleep(Duration::ZERO));
        let (mut place, mut is_waiting) = (pin!(OptionFuture::from(None)), false);
        let mut displaced_one = pin!(displaced.came());
        loop {
            // Most connections go before the time for which the timer was set, which is early for the next one then.
            let due = self.due().map(tokio::time::Instant::from_std);
            if let Some(due) = due
                && (timer.is_elapsed() || due < timer.deadline())
            {
                timer.as_mut().reset(due);
            }
            tokio::select! {
                biased;
                () = &mut stopped => return,
                () = &mut displaced_one => {
                    displaced_one.set(displaced.came());
                    self.make_room();
                }
                () = &mut timer, if due.is_some() => self.expire(),
                Some(permit) = &mut place, if is_waiting => {
                    is_waiting = false;
                    self.seat(permit);
                }
                ready = poller.readable() => {
                    let Ok(mut ready) = ready else { return };
                    if self.turn() {
                        tokio::task::yield_now().await;
                    } else {
                        ready.clear_ready();
                    }
                }
                () = tokio::task::yield_now(), if self.may_accept() => self.accept(),
            }
            // At the limit each loop keeps one accepted connection waiting, and the others wait in the kernel. The
            // connection comes first, its place second: an idle address must not hold a place that another one needs.
            if self.held.is_some() && !is_waiting {
                place.set(Some(gate.place()).into());
                is_waiting = true;
            }
        }
    }

    /// Returns when [`Reception::expire`] is due.
    fn due(&self) -> Option<Instant> {
        let oldest = self.guests.front().map(|(_, guest)| guest.since);
        let expires = oldest.map(|since| since + self.gate.options().handshake_timeout);
        expires.into_iter().chain(self.paused).min()
    }

    /// Ends handshakes that take too long, and the pause after an error.
    fn expire(&mut self) {
        let now = now();
        let timeout = self.gate.options().handshake_timeout;
        while let Some((_, guest)) = self.guests.front()
            && guest.since + timeout <= now
        {
            self.guests.pop_front();
            self.table.plane().metrics().timed_out(TimeoutPhase::Handshake, 1);
            tracing::debug!("handshake timed out");
        }
        if self.paused.is_some_and(|until| until <= now) {
            self.paused = None;
        }
    }

    /// Ends the connections that must make room.
    fn make_room(&mut self) {
        for number in self.displaced.take() {
            if self.guests.remove(&number).is_some() {
                self.table.plane().metrics().refused(Cause::MadeRoom);
            }
        }
    }

    /// Gives the connection that waits a place, and accepts others.
    fn seat(&mut self, place: Option<OwnedSemaphorePermit>) {
        // The semaphore is never closed.
        if let (Some(place), Some((stream, peer))) = (place, self.held.take()) {
            self.welcome(stream, peer, place);
        }
    }

    /// Handles some of what has happened, and accepts some connections. Returns whether more may have happened.
    fn turn(&mut self) -> bool {
        let mut events = [const { MaybeUninit::<Event>::uninit() }; TURN];
        let waited = epoll::wait(self.poller.get_ref(), &mut events, Some(&Timespec::default()));
        let happened = match waited {
            Ok((happened, _)) => happened,
            Err(error) => {
                tracing::debug!(%error, "could not ask what has happened to connections");
                &mut []
            }
        };
        for event in &*happened {
            match event.data.u64() {
                LISTENER => self.queued = true,
                number => self.hear(number, event.flags),
            }
        }
        let more = happened.len() == TURN;
        self.accept();
        more
    }

    /// Returns whether connections may wait that can be accepted now.
    fn may_accept(&self) -> bool {
        self.queued && self.held.is_none() && self.paused.is_none()
    }

    /// Accepts some of the connections that wait.
    fn accept(&mut self) {
        for _ in 0..TURN {
            if !self.may_accept() {
                return;
            }
            match self.listener.accept() {
                Ok((stream, _)) if self.spare.is_needed(&stream) => {
                    drop(stream);
                    self.table.plane().metrics().refused(Cause::Descriptors);
                    self.spare.note(&io::Error::from_raw_os_error(libc::EMFILE));
                    // A refused client may come again at once: others have a turn first.
                    return;
                }
                Ok((stream, peer)) => {
                    self.backoff.reset();
                    match Arc::clone(&self.gate.connections).try_acquire_owned() {
                        Ok(place) => self.welcome(stream, peer, place),
                        Err(_) => self.held = Some((stream, peer)),
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.queued = false,
                Err(error) => match Failed::of(&error) {
                    Failed::Connection => {
                        tracing::debug!(%error, "connection broke before it was accepted");
                    }
                    failed => return self.failed(failed, &error),
                },
            }
        }
    }

    /// Handles an error of accept(2).
    fn failed(&mut self, failed: Failed, error: &io::Error) {
        let pause = self.backoff.next();
        if failed == Failed::Descriptors {
            let refused = self.spare.refuse(&self.listener);
            self.table.plane().metrics().refused(Cause::Descriptors);
            self.spare.note(error);
            if refused {
                self.backoff.reset();
                return;
            }
        } else {
            tracing::warn!(%error, ?pause, "cannot accept connections");
        }
        self.paused = Some(now() + pause);
    }

    /// Lets a connection begin its handshake.
    fn welcome(&mut self, stream: TcpStream, peer: SocketAddr, place: OwnedSemaphorePermit) {
        if let Err(error) = stream.set_nonblocking(true) {
            return tracing::debug!(%error, "could not accept a connection");
        }
        // Behind a load balancer the peer's own address says nothing.
        let proxied = self.gate.options().proxy_protocol;
        let known = (!proxied).then(|| peer.ip());
        let visitor = self.gate.crowd.enter(known, self.gate.bounds(), &self.displaced);
        let number = visitor.number();
        let mut guest = Guest {
            stream,
            ip: peer.ip(),
            client: (!proxied).then_some(peer),
            since: now(),
            header: proxied.then(HeaderReader::new),
            handshake: Handshake::new(),
            visitor,
            place,
        };
        match guest.read(&mut self.buffer, false, &self.gate) {
            Step::Wait => {
                let (poller, name) = (self.poller.get_ref(), EventData::new_u64(number));
                match epoll::add(poller, &guest.stream, name, ARRIVALS) {
                    Ok(()) => drop(self.guests.insert(number, guest)),
                    Err(error) => tracing::debug!(%error, "could not accept a connection"),
                }
            }
            step => self.finish(guest, step),
        }
    }

    /// Reads what has come for a connection.
    fn hear(&mut self, number: u64, flags: EventFlags) {
        // It may have made room.
        let Some(guest) = self.guests.get_mut(&number) else { return };
        let ends = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        let step = guest.read(&mut self.buffer, ends, &self.gate);
        if let Step::Wait = step {
            return;
        }
        let Some(guest) = self.guests.remove(&number) else { return };
        if let Err(error) = epoll::delete(self.poller.get_ref(), &guest.stream) {
            tracing::debug!(%error, "could not stop to watch a connection");
        }
        self.finish(guest, step);
    }

    /// Does what the handshake's last step asks for.
    fn finish(&self, guest: Guest, step: Step) {
        let metrics = self.table.plane().metrics();
        let done = match step {
            Step::Wait | Step::Nothing => Ok(()),
            Step::Wrong => {
                metrics.refused(Cause::Handshake);
                tokio::net::TcpStream::from_std(guest.stream)
                    .map(|stream| self.say_goodbye(stream, None, (guest.visitor, guest.place)))
            }
            Step::Failed(error) => {
                if error.get_ref().is_some_and(|inner| inner.is::<HeaderError>()) {
                    metrics.refused(Cause::ProxyHeader);
                }
                metrics.refused(Cause::Handshake);
                Err(error)
            }
            Step::Transfer(hash, before) => self.bring(guest, hash, before),
        };
        if let Err(error) = done {
            tracing::debug!(%error, "could not accept a connection");
        }
    }

    /// Brings a connection to the transfer that it named. `before` precedes the reply.
    fn bring(&self, guest: Guest, hash: DstAddr, before: Option<Reply>) -> io::Result<()> {
        let answer = |code| {
            let reply = guest.handshake.reply(code);
            match &before {
                Some(before) => before.then(&reply),
                None => reply,
            }
        };
        let (success, refusal) = (answer(Code::Succeeded), answer(Code::NotAllowed));
        let ip = guest.ip.to_canonical();
        self.gate.note(ip, || guest.stream.local_addr(), false);
        let seats = self.gate.options().connections_per_ip;
        let admission = SocketAdmission::new(guest.place, guest.visitor, seats);
        let stream = tokio::net::TcpStream::from_std(guest.stream)?;
        let client = guest.client.map(|at| SocketAddr::new(at.ip().to_canonical(), at.port()));
        let socket = Socket::accepted(stream, guest.handshake.into_rest(), admission, client);
        match self.table.arrive(hash, socket, &success) {
            SocketArrival::Taken => {}
            SocketArrival::Gone(error) => return Err(error),
            SocketArrival::Refused(mut socket, cause) => {
                if cause == Cause::AddressLimit {
                    self.gate.note(ip, || socket.stream_mut().local_addr(), true);
                    tracing::debug!(ip = %Pii(ip), "too many connections from this address");
                }
                self.say_goodbye(socket, Some(refusal), ());
            }
        }
        Ok(())
    }

    /// Ends a connection so that the last reply arrives: reads what the client still sends, for a while. `held` is freed
    /// then.
    fn say_goodbye(
        &self,
        mut stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        refusal: Option<Reply>,
        held: impl Send + 'static,
    ) {
        let soft = self.soft.clone();
        let goodbye = async move {
            let _held = held;
            stream.write_all(refusal.as_deref().unwrap_or_default()).await?;
            stream.shutdown().await?;
            let mut rest = stream.take(64 * 1024);
            let _ = timeout(GOODBYE, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
            io::Result::Ok(())
        };
        self.tasks.spawn(async move {
            if let Some(Err(error)) = soft.run_until_cancelled(goodbye).await {
                tracing::debug!(%error, "could not refuse a connection");
            }
        });
    }
}

/// A connection in its handshake.
struct Guest {
    stream: TcpStream,
    /// The address that counts, or that of the load balancer until its header has come.
    ip: IpAddr,
    /// The client's end, once it is known. A load balancer may not tell it.
    client: Option<SocketAddr>,
    since: Instant,
    /// Present until the load balancer's header has come.
    header: Option<HeaderReader>,
    handshake: Handshake,
    visitor: Visitor,
    place: OwnedSemaphorePermit,
}

/// How a handshake goes on.
#[expect(clippy::large_enum_variant, reason = "handled at once, and never kept")]
enum Step {
    /// With the next bytes.
    Wait,
    /// The client left without a byte, as health checks do.
    Nothing,
    /// The client asked for something that is not served here, and was told.
    Wrong,
    /// The client asked for a part in a transfer. The reply follows these bytes.
    Transfer(DstAddr, Option<Reply>),
    /// The connection broke, or its bytes make no sense.
    Failed(io::Error),
}

impl Guest {
    /// Reads what has come. `ends`: whether the last byte has come too.
    fn read(&mut self, buffer: &mut [u8], ends: bool, gate: &Gate) -> Step {
        loop {
            let n = match self.stream.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Step::Wait,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(0) if self.is_untouched() => return Step::Nothing,
                Err(error) if self.is_untouched() && Failed::of(&error) == Failed::Connection => {
                    return Step::Nothing;
                }
                Ok(0) => return Step::Failed(io::ErrorKind::UnexpectedEof.into()),
                Err(error) => return Step::Failed(error),
                Ok(n) => n,
            };
            match self.handle_bytes(&buffer[..n], gate) {
                // A short read has emptied the kernel's buffer, and the kernel reports what comes after it.
                Ok(Step::Wait) if n < buffer.len() && !ends => return Step::Wait,
                Ok(Step::Wait) => {}
                Ok(step) => return step,
                Err(error) => return Step::Failed(error),
            }
        }
    }

    /// Returns whether the client, or the load balancer, has not sent anything yet. Perhaps it sends only its header.
    fn is_untouched(&self) -> bool {
        self.header.as_ref().map_or(self.handshake.is_untouched(), HeaderReader::is_untouched)
    }

    fn handle_bytes(&mut self, bytes: &[u8], gate: &Gate) -> io::Result<Step> {
        let Some(header) = &mut self.header else {
            self.handshake.handle_bytes(bytes);
            return self.act();
        };
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let Some(header) = header.handle_bytes(bytes).map_err(invalid)? else {
            return Ok(Step::Wait);
        };
        self.header = None;
        // The load balancer connects for itself, or for a client whose address it cannot tell.
        self.client = header.source;
        self.ip = header.source.map_or(self.ip, |source| source.ip());
        self.visitor.comes_from(self.ip, gate.bounds());
        self.handshake.handle_bytes(&header.rest);
        self.act()
    }

    /// Does what the handshake asks for. The answer to the greeting is sent together with the next reply if the request
    /// has come too.
    fn act(&mut self) -> io::Result<Step> {
        let mut before: Option<Reply> = None;
        while let Some(action) = self.handshake.poll_action() {
            match action {
                Socks5Action::Connect(hash) => return Ok(Step::Transfer(hash, before)),
                Socks5Action::Close => {
                    self.send(before)?;
                    return Ok(Step::Wrong);
                }
                Socks5Action::Write(reply) => {
                    before = Some(match before {
                        Some(before) => before.then(&reply),
                        None => reply,
                    });
                }
            }
        }
        self.send(before)?;
        Ok(Step::Wait)
    }

    /// Sends a reply. A connection this young has an empty send buffer, so it need not wait.
    fn send(&mut self, reply: Option<Reply>) -> io::Result<()> {
        reply.map_or(Ok(()), |reply| self.stream.write_all(&reply))
    }
}

/// File descriptors that clients do not get, and one in reserve, so that a client can be refused when no other is free.
struct Spare {
    reserve: Reserve,
    /// The first of the last descriptors.
    first_kept: u64,
    logged_at: Option<Instant>,
    /// Connections refused since the last log line.
    refused: u64,
}

impl Spare {
    fn new() -> Self {
        let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        Self {
            reserve: Reserve::new(1),
            first_kept: most.saturating_sub(KEPT),
            logged_at: None,
            refused: 0,
        }
    }

    /// Returns whether a connection has one of the last descriptors: the kernel gives the lowest that is free.
    fn is_needed(&self, stream: &TcpStream) -> bool {
        u64::try_from(stream.as_raw_fd()).is_ok_and(|descriptor| descriptor >= self.first_kept)
    }

    /// Closes the next waiting connection; returns false if that failed.
    fn refuse(&mut self, listener: &TcpListener) -> bool {
        let accepted = self.reserve.accept_by(|| listener.accept()).is_some();
        self.reserve.refill();
        accepted
    }

    /// Counts a refused connection, and logs the lack at most once in a while.
    fn note(&mut self, error: &io::Error) {
        self.refused += 1;
        if self.logged_at.is_some_and(|at| at.elapsed() < LOG_PAUSE) {
            return;
        }
        self.logged_at = Some(Instant::now());
        tracing::warn!(
            %error,
            refused = std::mem::take(&mut self.refused),
            "cannot accept connections: raise the limit of open files, or lower limits.sessions"
        );
    }
}
