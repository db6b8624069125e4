//! The transport below TLS: the relay's leg alone, or records over several paths.
//!
//! A [`PathLeg`] with paths shares its [`Machine`] with a task that owns the connections. That task reads and answers while
//! the application is busy, so a peer that is slow is never taken for a path that is lost.

use std::{
    fmt,
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::Instant,
};

use fingerpost_wire::transport_kind::TransportKind;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    sync::{mpsc, watch},
    task::coop,
};
use tokio_util::sync::CancellationToken;

use super::{
    Path,
    carriers::{self, CarrierLeg, Carriers},
    machine::{Machine, Need, RELAY, Role, is_direct},
    records::{USE_LENGTH, read_use},
};
use crate::{direct::DirectStream, ice::IceStream, network::Network, transport::TcpLeg};

/// The most sealed messages of the peer that wait to be read.
const SEALED: usize = 4;

/// Returns the time of the machine. It stands still when tokio's does.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The transport below a TLS stream.
#[derive(Debug)]
pub(crate) enum PathLeg {
    /// The relay's leg with the bytes of TLS, and nothing else.
    Plain(TcpLeg),
    /// Records over the relay's leg and, at times, a direct connection.
    Paths(PathStream),
    /// A direct connection from the beginning, without a relay.
    Ice(IceStream),
}

impl PathLeg {
    /// Puts the path layer on a leg, and starts the task that owns it. `chooses` says whether this side is the TLS client.
    pub(crate) fn with_paths(leg: TcpLeg, chooses: bool) -> Self {
        let role = if chooses { Role::Chooses } else { Role::Follows };
        let (sender, sealed) = mpsc::channel(SEALED);
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                relay: Relay::of(&leg, None),
                machine: Machine::new(role, now()),
                reader: None,
                writer: None,
                driver: None,
                added: Vec::new(),
                network: None,
                unwritten: 0,
                broken: None,
                is_gone: false,
                is_looked_at: false,
                is_dropped: false,
                armed: None,
                sealed: sender,
                unread: Some(sealed),
            }),
            path: watch::Sender::new(Path::Relay),
            need: watch::Sender::new(Need::Nothing),
            renewed: watch::Sender::new(RELAY),
            over: CancellationToken::new(),
            carried: [AtomicU64::new(0), AtomicU64::new(0)],
            carriers: Mutex::new(Some(Carriers::new(leg))),
        });
        tokio::spawn(carriers::run(Arc::clone(&shared)));
        Self::Paths(PathStream { shared })
    }

    /// Returns what moves the stream to direct connections; `None` without the path layer.
    pub(crate) fn paths(&self) -> Option<Paths> {
        match self {
            Self::Plain(_) | Self::Ice(_) => None,
            Self::Paths(stream) => Some(Paths { shared: Arc::clone(&stream.shared) }),
        }
    }

    /// Returns whether the other end has vanished, as [`TcpLeg`] does. While a direct connection is in use, that one's
    /// signs of life decide.
    pub(crate) fn is_gone(&self) -> bool {
        match self {
            Self::Plain(leg) => leg.is_gone(),
            Self::Ice(leg) => leg.is_gone(),
            Self::Paths(stream) => {
                let mut state = stream.shared.lock();
                state.is_looked_at = true;
                state.wake_driver();
                state.is_gone
            }
        }
    }

    /// Returns how many of all written bytes the next hop has acknowledged; with the path layer, the peer itself.
    pub(crate) fn delivered(&self) -> Option<u64> {
        match self {
            Self::Plain(leg) => leg.delivered(),
            // The kernel counts frames and checks too.
            Self::Ice(_) => None,
            Self::Paths(stream) => Some(stream.shared.lock().machine.acknowledged()),
        }
    }

    /// Returns the path of a stream that stays on one.
    pub(crate) fn only_path(&self) -> Path {
        match self {
            Self::Plain(_) | Self::Paths(_) => Path::Relay,
            Self::Ice(leg) => Path::Direct(leg.remote()),
        }
    }

    /// Returns the kind of the relay's leg, or of the only one.
    pub(crate) fn transport_kind(&self) -> TransportKind {
        match self {
            Self::Plain(leg) => leg.transport_kind(),
            Self::Ice(_) => TransportKind::Ice,
            Self::Paths(stream) => stream.shared.lock().relay.kind,
        }
    }
}

/// The state that the stream, the task of its connections and the search for paths share.
pub(super) struct Shared {
    state: Mutex<State>,
    pub(super) path: watch::Sender<Path>,
    /// What the stream lacks.
    pub(super) need: watch::Sender<Need>,
    /// The number of the relay's newest leg that is in use.
    renewed: watch::Sender<u32>,
    /// Cancelled when no path is left and none will come.
    pub(super) over: CancellationToken,
    /// How many bytes the relay and direct connections have carried, in both directions.
    pub(super) carried: [AtomicU64; 2],
    /// The connections, until the stream is over. Locked before the state.
    carriers: Mutex<Option<Carriers>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("path", &*self.path.borrow()).finish_non_exhaustive()
    }
}

/// The newest leg of the relay.
#[derive(Clone, Debug)]
pub(super) struct Relay {
    kind: TransportKind,
    /// Our address on it, if it is a connection.
    local: Option<SocketAddr>,
    /// The id of its bytestream, if a broker knows it.
    bytestream: Option<String>,
}

impl Relay {
    fn of(leg: &TcpLeg, bytestream: Option<String>) -> Self {
        Self { kind: leg.transport_kind(), local: leg.local_addr(), bytestream }
    }
}

pub(super) struct State {
    relay: Relay,
    pub(super) machine: Machine,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<(Waker, Wait)>,
    pub(super) driver: Option<Waker>,
    /// Connections that the machine uses already and the task has not taken yet.
    pub(super) added: Vec<(u32, CarrierLeg, Option<SocketAddr>)>,
    /// This machine's network, after a change.
    pub(super) network: Option<Network>,
    /// How many bytes were transmitted by the machine and not yet taken by the kernel.
    pub(super) unwritten: usize,
    /// Why the last path broke, unless it ended in order.
    pub(super) broken: Option<(io::ErrorKind, String)>,
    /// Whether the relay's other end has vanished, and no direct connection is in use.
    pub(super) is_gone: bool,
    pub(super) is_looked_at: bool,
    /// Whether nobody holds the stream any more.
    pub(super) is_dropped: bool,
    /// When the task wakes by itself.
    pub(super) armed: Option<Instant>,
    pub(super) sealed: mpsc::Sender<Vec<u8>>,
    unread: Option<mpsc::Receiver<Vec<u8>>>,
}

/// What a writer waits for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wait {
    Room,
    Flush,
    Delivery,
}

impl State {
    /// Wakes the tasks whose condition is now true.
    pub(super) fn wake(&mut self) {
        let is_over = self.machine.is_over();
        if is_over || self.machine.has_ended() || !self.machine.chunk().is_empty() {
            self.reader.take().into_iter().for_each(Waker::wake);
        }
        let is_true = |(_, wait): &mut (Waker, Wait)| match wait {
            _ if is_over => true,
            Wait::Room => self.machine.has_room(),
            Wait::Flush => self.unwritten == 0 && self.machine.is_transmitted(),
            Wait::Delivery => self.machine.is_delivered(),
        };
        self.writer.take_if(is_true).into_iter().for_each(|(writer, _)| writer.wake());
    }

    /// Returns what a shutdown waits for. The relay may have to carry some bytes again until the peer has them, and an in-band
    /// bytestream holds the bytes that its peer has not acknowledged.
    fn last_wait(&self) -> Wait {
        if self.machine.may_repeat() || self.relay.kind == TransportKind::Ibb {
            Wait::Delivery
        } else {
            Wait::Flush
        }
    }

    pub(super) fn wake_driver(&mut self) {
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
    }

    /// Lets the task wake earlier if the machine has to be called earlier.
    fn wake_if_earlier(&mut self) {
        let deadline = self.machine.deadline();
        if deadline.is_some_and(|deadline| self.armed.is_none_or(|armed| deadline < armed)) {
            self.wake_driver();
        }
    }

    fn is_flushed(&self) -> bool {
        self.unwritten == 0 && self.machine.is_transmitted()
    }

    /// Returns the error of a stream that no path carries any more.
    fn error(&self) -> io::Error {
        if let Some(fault) = self.machine.fault() {
            return io::Error::new(io::ErrorKind::InvalidData, fault);
        }
        match &self.broken {
            Some((kind, text)) => {
                io::Error::new(*kind, format!("no path to the other end is left: {text}"))
            }
            None => io::Error::new(
                io::ErrorKind::BrokenPipe,
                "the stream was cut off: the other end closed its connection",
            ),
        }
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn carriers(&self) -> MutexGuard<'_, Option<Carriers>> {
        self.carriers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the bytes that can be moved now. If another thread is doing that already, it does so once more.
    fn drive(&self) {
        let carriers = match self.carriers.try_lock() {
            Ok(carriers) => Some(carriers),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        let is_done = carriers.is_some_and(|mut carriers| {
            carriers.as_mut().is_some_and(|carriers| carriers.poll_now(self))
        });
        if !is_done {
            self.lock().wake_driver();
        }
    }
}

/// A stream over several paths.
#[derive(Debug)]
pub(crate) struct PathStream {
    shared: Arc<Shared>,
}

impl Drop for PathStream {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.is_dropped = true;
        state.machine.discard();
        state.wake_driver();
    }
}

impl AsyncRead for PathStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Otherwise a reader that always finds bytes would keep all other tasks of its thread waiting.
        let proceed = ready!(coop::poll_proceed(cx));
        let mut state = self.shared.lock();
        if state.machine.chunk().is_empty() && buf.remaining() > 0 {
            drop(state);
            self.shared.drive();
            state = self.shared.lock();
        }
        let mut read = 0;
        while buf.remaining() > 0 {
            let chunk = state.machine.chunk();
            let length = chunk.len().min(buf.remaining());
            if length == 0 {
                break;
            }
            buf.put_slice(&chunk[..length]);
            state.machine.consume(length, now());
            read += length;
        }
        if read > 0 {
            proceed.made_progress();
            if state.machine.owes_acknowledgement() {
                state.wake_driver();
            }
            state.wake_if_earlier();
            return Poll::Ready(Ok(()));
        }
        if buf.remaining() == 0 || state.machine.has_ended() {
            return Poll::Ready(Ok(()));
        }
        if state.machine.is_over() {
            let is_cut = state.machine.fault().is_none() && state.broken.is_none();
            // TLS tells an end without its own close_notify from a whole stream.
            return Poll::Ready(if is_cut { Ok(()) } else { Err(state.error()) });
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for PathStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    /// TLS writes several records at once.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let proceed = ready!(coop::poll_proceed(cx));
        let mut state = self.shared.lock();
        if state.machine.is_over() || state.machine.is_finished() {
            return Poll::Ready(Err(state.error()));
        }
        let mut written = 0;
        for buf in bufs.iter().filter(|buf| !buf.is_empty()) {
            let taken = state.machine.write(buf);
            let taken = taken.map_err(|error| io::Error::other(error.to_string()))?;
            written += taken;
            if taken < buf.len() {
                break;
            }
        }
        if written == 0 && bufs.iter().any(|buf| !buf.is_empty()) {
            state.writer = Some((cx.waker().clone(), Wait::Room));
            return Poll::Pending;
        }
        proceed.made_progress();
        drop(state);
        self.shared.drive();
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Waits until the kernel has taken everything, or a direct connection has it in a frame.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.shared.lock();
        if state.machine.is_over() {
            return Poll::Ready(Err(state.error()));
        }
        if state.is_flushed() {
            return Poll::Ready(Ok(()));
        }
        state.writer = Some((cx.waker().clone(), Wait::Flush));
        Poll::Pending
    }

    /// Ends our direction. If some of it may have to be sent again, this waits until the peer has all of it.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.shared.lock();
        if !state.machine.is_finished() {
            state.machine.finish();
            state.wake_driver();
        }
        let wait = state.last_wait();
        let is_flushed = matches!(wait, Wait::Flush) && state.is_flushed();
        if is_flushed || state.machine.is_delivered() {
            return Poll::Ready(Ok(()));
        }
        if state.machine.is_over() {
            // A peer that has ended its own direction and is gone does not acknowledge ours.
            let has_ended = state.machine.is_whole();
            return Poll::Ready(if has_ended { Ok(()) } else { Err(state.error()) });
        }
        state.writer = Some((cx.waker().clone(), wait));
        Poll::Pending
    }
}

/// What moves a stream to direct connections. Cheap to clone; the stream does not depend on it.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    shared: Arc<Shared>,
}

impl Paths {
    /// Returns a channel with the path that our direction is on.
    pub(crate) fn path(&self) -> watch::Receiver<Path> {
        self.shared.path.subscribe()
    }

    /// Returns our own address on the relay's newest leg, and the id of its bytestream. The address is `None` if the leg is
    /// in-band.
    pub(crate) fn relay(&self) -> (Option<SocketAddr>, Option<String>) {
        let state = self.shared.lock();
        (state.relay.local, state.relay.bytestream.clone())
    }

    /// Notes the id of the relay's bytestream.
    pub(crate) fn name_bytestream(&self, sid: Option<String>) {
        self.shared.lock().relay.bytestream = sid;
    }

    /// Returns the kind of the relay's newest leg.
    pub(crate) fn relay_kind(&self) -> TransportKind {
        self.shared.lock().relay.kind
    }

    /// Returns a channel that tells what the stream lacks.
    pub(crate) fn need(&self) -> watch::Receiver<Need> {
        self.shared.need.subscribe()
    }

    /// Returns a channel that tells when the relay has a new leg.
    pub(crate) fn renewed(&self) -> watch::Receiver<u32> {
        self.shared.renewed.subscribe()
    }

    /// Returns whether anything has come on the newest direct connection.
    pub(crate) fn has_answer(&self) -> bool {
        self.shared.lock().machine.has_answer()
    }

    /// Returns whether a path is left, even if it does not answer.
    pub(crate) fn has_path(&self) -> bool {
        self.shared.lock().machine.has_path()
    }

    /// Returns the number of the relay's newest leg.
    pub(crate) fn leg(&self) -> u32 {
        self.shared.lock().machine.leg()
    }

    /// Calls the machine, and lets its task do what follows from that.
    fn with_machine(&self, call: impl FnOnce(&mut Machine)) {
        let mut state = self.shared.lock();
        call(&mut state.machine);
        state.wake_driver();
    }

    /// Notes that somebody negotiates new legs of the relay from now on.
    pub(crate) fn renew(&self) {
        self.with_machine(Machine::renew);
    }

    /// Notes that the relay gets no more new legs. A stream without a path is cut.
    pub(crate) fn give_up(&self) {
        self.with_machine(Machine::give_up);
    }

    /// Notes that this machine has left a network, or joined one.
    pub(crate) fn heed(&self, network: &Network) {
        let mut state = self.shared.lock();
        state.network = Some(network.clone());
        state.wake_driver();
    }

    /// Notes that the peer has lost the relay's leg with this number.
    pub(crate) fn told_lost(&self, number: u32) {
        self.with_machine(|machine| machine.handle_told_loss(number, now()));
    }

    /// Notes that the peer doubts the relay's leg with this number.
    pub(crate) fn told_doubt(&self, number: u32) {
        self.with_machine(|machine| machine.handle_doubt(number));
    }

    /// Takes a new leg of the relay: the TLS client's part. Returns `false` if the stream is over.
    pub(crate) fn replace(&self, leg: TcpLeg, bytestream: Option<String>) -> bool {
        let number = self.shared.lock().machine.next_leg();
        number.is_some_and(|number| self.follow_leg(number, leg, bytestream))
    }

    /// Takes the new leg of the relay with this number, which the TLS client has given it. Returns `false` if it has given up
    /// that leg since.
    pub(crate) fn follow_leg(&self, number: u32, leg: TcpLeg, bytestream: Option<String>) -> bool {
        let mut state = self.shared.lock();
        let relay = Relay::of(&leg, bytestream);
        let is_taken = !is_direct(number) && add(&mut state, number, CarrierLeg::Relay(leg), None);
        if is_taken {
            state.relay = relay;
            // What negotiates the next one looks before the task does.
            let need = state.machine.need();
            self.shared.need.send_if_modified(|old| std::mem::replace(old, need) != need);
            self.shared.renewed.send_replace(number);
        }
        is_taken
    }

    /// Returns what is cancelled when no path is left.
    pub(crate) fn over(&self) -> &CancellationToken {
        &self.shared.over
    }

    /// Returns how many bytes the relay and direct connections have carried, in both directions.
    pub(crate) fn carried(&self) -> [u64; 2] {
        [0, 1].map(|index| self.shared.carried[index].load(Ordering::Relaxed))
    }

    /// Sends the peer a message that the path layer does not read.
    pub(crate) fn seal(&self, message: Vec<u8>) {
        let mut state = self.shared.lock();
        state.machine.seal(message);
        state.wake_driver();
    }

    /// Notes that the peer is verified.
    pub(crate) fn open(&self) {
        let mut state = self.shared.lock();
        state.machine.open(now());
        state.wake_driver();
    }

    /// Returns the channel of the peer's sealed messages, to the first who asks.
    pub(crate) fn sealed(&self) -> Option<mpsc::Receiver<Vec<u8>>> {
        self.shared.lock().unread.take()
    }

    /// Moves the stream to a direct connection that has greeted: the TLS client's choice. Returns `false` if the stream
    /// is over, or this side does not choose.
    pub(crate) fn choose(&self, stream: DirectStream, address: SocketAddr) -> bool {
        let mut state = self.shared.lock();
        let number = state.machine.next_number();
        let leg = CarrierLeg::Direct(stream);
        number.is_some_and(|number| add(&mut state, number, leg, Some(address)))
    }

    /// Gives up a direct connection, as if it were lost.
    #[cfg(test)]
    pub(super) fn give_up_direct(&self) {
        let mut state = self.shared.lock();
        let current = state.machine.current();
        state.machine.handle_loss(current, now());
        state.wake_driver();
    }

    /// Moves the stream to a direct connection that the TLS client has chosen. Returns `false` if it has given up that
    /// connection since.
    pub(crate) fn follow(&self, number: u32, stream: DirectStream, address: SocketAddr) -> bool {
        let leg = CarrierLeg::Direct(stream);
        is_direct(number) && add(&mut self.shared.lock(), number, leg, Some(address))
    }
}

/// Waits on a connection that has greeted, or a new leg of the relay, until the TLS client takes it; returns its number,
/// `None` if another record comes.
///
/// # Errors
/// Those of reading, which the end of the connection is too.
pub(crate) async fn taken(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<u32>> {
    let mut record = [0; USE_LENGTH];
    stream.read_exact(&mut record).await?;
    Ok(read_use(&record))
}

fn add(state: &mut State, number: u32, leg: CarrierLeg, address: Option<SocketAddr>) -> bool {
    let is_taken = !state.is_dropped && state.machine.install(number, now());
    if is_taken {
        state.added.push((number, leg, address));
    }
    state.wake_driver();
    is_taken
}

impl AsyncRead for PathLeg {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(leg) => Pin::new(leg).poll_read(cx, buf),
            Self::Ice(leg) => Pin::new(leg).poll_read(cx, buf),
            Self::Paths(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for PathLeg {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(leg) => Pin::new(leg).poll_write(cx, buf),
            Self::Ice(leg) => Pin::new(leg).poll_write(cx, buf),
            Self::Paths(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(leg) => Pin::new(leg).poll_write_vectored(cx, bufs),
            Self::Ice(leg) => Pin::new(leg).poll_write_vectored(cx, bufs),
            Self::Paths(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(leg) => leg.is_write_vectored(),
            Self::Ice(leg) => leg.is_write_vectored(),
            Self::Paths(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(leg) => Pin::new(leg).poll_flush(cx),
            Self::Ice(leg) => Pin::new(leg).poll_flush(cx),
            Self::Paths(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(leg) => Pin::new(leg).poll_shutdown(cx),
            Self::Ice(leg) => Pin::new(leg).poll_shutdown(cx),
            Self::Paths(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
