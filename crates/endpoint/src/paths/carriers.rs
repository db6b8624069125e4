//! The task that owns the connections of a stream over several paths.
//!
//! The user of the stream does the work of the task at once, unless the task is doing it already: waking the task costs a thread
//! switch for each record. The connections wake the task in any case, so they are also read while nobody uses the stream.

use std::{
    future::poll_fn,
    io, mem,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use fingerpost_carry::leg_end::LegEnd;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

use super::{
    Path, VANISHED,
    leg::{Shared, now},
    machine::{Event, RELAY, is_direct},
};
use crate::{direct::DirectStream, transport::TcpLeg};

/// How many bytes are read at once.
const PIECE: usize = 64 << 10;
/// How long the connections of a stream that is over, or that nobody holds any more, may take to end in order.
const LINGER: Duration = Duration::from_secs(5);

/// What carries bytes of a stream.
#[derive(Debug)]
pub(super) enum CarrierLeg {
    /// A leg of the relay.
    Relay(TcpLeg),
    /// A direct connection.
    Direct(DirectStream),
}

impl CarrierLeg {
    /// Makes small records, which are whole messages of the application, go out at once.
    fn set_nodelay(&self) -> io::Result<()> {
        match self {
            Self::Relay(TcpLeg::Socket(stream)) => stream.set_nodelay(true),
            Self::Relay(TcpLeg::Ibb(_)) => Ok(()),
            Self::Direct(stream) => stream.set_nodelay(true),
        }
    }

    fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Relay(leg) => leg.local_addr(),
            Self::Direct(stream) => stream.local_addr().ok(),
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Relay(leg) => Pin::new(leg).poll_read(cx, buf),
            Self::Direct(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Relay(leg) => Pin::new(leg).poll_write(cx, bytes),
            Self::Direct(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Relay(leg) => Pin::new(leg).poll_flush(cx),
            Self::Direct(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Relay(leg) => Pin::new(leg).poll_shutdown(cx),
            Self::Direct(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// One connection.
#[derive(Debug)]
struct Carrier {
    number: u32,
    leg: CarrierLeg,
    address: Option<SocketAddr>,
    /// What the machine has transmitted, and how much of it the kernel has.
    out: Vec<u8>,
    written: usize,
    /// Whether the other end has ended it.
    is_ended: bool,
    /// Whether our end of it is ended.
    is_shut: bool,
}

impl Carrier {
    fn new(number: u32, leg: CarrierLeg, address: Option<SocketAddr>) -> Self {
        Self { number, leg, address, out: Vec::new(), written: 0, is_ended: false, is_shut: false }
    }

    fn unwritten(&self) -> usize {
        self.out.len() - self.written
    }

    /// Returns the index of its kind in [`Shared::carried`].
    fn kind(&self) -> usize {
        usize::from(is_direct(self.number))
    }
}

/// All connections of one stream.
pub(super) struct Carriers {
    carriers: Vec<Carrier>,
    piece: Box<[u8]>,
    timer: Pin<Box<Sleep>>,
    /// When the connections are closed at the latest.
    close: Option<Instant>,
    /// Wakes the task.
    task: Option<Waker>,
}

/// Moves bytes until the stream is over.
pub(super) async fn run(shared: Arc<Shared>) {
    poll_fn(|cx| {
        let mut carriers = shared.carriers();
        let Some(carriers) = &mut *carriers else { return Poll::Ready(()) };
        if carriers.task.as_ref().is_none_or(|task| !task.will_wake(cx.waker())) {
            carriers.task = Some(cx.waker().clone());
        }
        carriers.poll(&shared, cx)
    })
    .await;
    // Others keep the shared state for longer.
    *shared.carriers() = None;
    let mut state = shared.lock();
    state.machine.end_all();
    state.unwritten = 0;
    state.wake();
    drop(state);
    shared.over.cancel();
}

impl Carriers {
    pub(super) fn new(relay: TcpLeg) -> Self {
        Self {
            carriers: vec![Carrier::new(RELAY, CarrierLeg::Relay(relay), None)],
            piece: vec![0; PIECE].into_boxed_slice(),
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            close: None,
            task: None,
        }
    }

    /// Does what the task would do next. Returns `false` if the task has not begun.
    pub(super) fn poll_now(&mut self, shared: &Shared) -> bool {
        let Some(task) = self.task.clone() else { return false };
        if self.poll(shared, &mut Context::from_waker(&task)).is_ready() {
            task.wake();
        }
        true
    }

    fn poll(&mut self, shared: &Shared, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            self.begin(shared, cx);
            let mut moved = false;
            for index in 0..self.carriers.len() {
                moved |= self.read(shared, index, cx);
            }
            // Bytes that came in time count, even if this task was late.
            shared.lock().machine.handle_deadline(now());
            for index in 0..self.carriers.len() {
                moved |= self.write(shared, index, cx);
            }
            self.tell(shared);
            if self.is_over(shared, cx) {
                return Poll::Ready(());
            }
            if !moved && self.arm(shared, cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Takes new connections, and what others have noted.
    fn begin(&mut self, shared: &Shared, cx: &Context<'_>) {
        let mut state = shared.lock();
        state.driver = Some(cx.waker().clone());
        for (number, leg, address) in state.added.drain(..) {
            if let Err(error) = leg.set_nodelay() {
                tracing::debug!(%error, "could not set TCP_NODELAY");
            }
            self.carriers.push(Carrier::new(number, leg, address));
        }
        if let Some(network) = state.network.take() {
            let left =
                |one: &&Carrier| one.leg.local_addr().is_some_and(|local| !network.has(local.ip()));
            let lost: Vec<u32> = self.carriers.iter().filter(left).map(|one| one.number).collect();
            if !lost.is_empty() {
                let text = "this machine has left the network".to_owned();
                state.broken = Some((io::ErrorKind::NetworkDown, text));
            }
            state.machine.handle_network(&lost, now());
        }
        if mem::take(&mut state.is_looked_at) {
            // A direct connection has its own signs of life.
            let relay = self.carriers.iter().find_map(|one| match &one.leg {
                CarrierLeg::Relay(leg) => Some((one.number, leg.delivery())),
                CarrierLeg::Direct(_) => None,
            });
            state.is_gone = false;
            match relay {
                Some((number, next_hop)) if state.machine.renews() => {
                    if next_hop.is_gone() {
                        state.broken = Some((io::ErrorKind::TimedOut, VANISHED.to_owned()));
                        state.machine.handle_loss(number, now());
                    } else if next_hop.is_doubtful() {
                        state.machine.handle_doubt(number);
                    }
                }
                Some((_, next_hop)) => {
                    state.is_gone = next_hop.is_gone() && self.carriers.len() == 1
                }
                None => {}
            }
        }
    }

    /// Reads once from a connection.
    fn read(&mut self, shared: &Shared, index: usize, cx: &mut Context<'_>) -> bool {
        let Self { carriers, piece, .. } = self;
        let carrier = &mut carriers[index];
        if carrier.is_ended {
            return false;
        }
        let mut buf = ReadBuf::new(piece);
        let read = match carrier.leg.poll_read(cx, &mut buf) {
            Poll::Pending => return false,
            Poll::Ready(read) => read,
        };
        let bytes = buf.filled();
        let mut state = shared.lock();
        match read {
            Ok(()) if !bytes.is_empty() => {
                shared.carried[carrier.kind()].fetch_add(bytes.len() as u64, Ordering::Relaxed);
                // A fault ends all paths; the stream tells it.
                let _ = state.machine.receive(carrier.number, bytes, now());
            }
            ended => {
                carrier.is_ended = true;
                if state.machine.is_done() {
                    return true;
                }
                state.broken = ended.err().map(|error| (error.kind(), error.to_string()));
                state.machine.handle_loss(carrier.number, now());
            }
        }
        true
    }

    /// Writes to a connection what the machine has for it, and it takes.
    fn write(&mut self, shared: &Shared, index: usize, cx: &mut Context<'_>) -> bool {
        let carrier = &mut self.carriers[index];
        if carrier.is_shut {
            return false;
        }
        let mut moved = false;
        let broken = loop {
            if carrier.unwritten() == 0 {
                carrier.out.clear();
                carrier.written = 0;
                let mut state = shared.lock();
                state.machine.transmit(carrier.number, now(), &mut carrier.out);
                state.unwritten += carrier.out.len();
            }
            let result = if carrier.out.is_empty() {
                match carrier.leg.poll_flush(cx) {
                    Poll::Ready(Ok(())) | Poll::Pending => return moved,
                    Poll::Ready(Err(error)) => Err(error),
                }
            } else {
                match carrier.leg.poll_write(cx, &carrier.out[carrier.written..]) {
                    Poll::Pending => return moved,
                    Poll::Ready(Ok(0)) => Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(result) => result,
                }
            };
            match result {
                Err(error) => break error,
                Ok(written) => {
                    moved = true;
                    carrier.written += written;
                    shared.carried[carrier.kind()].fetch_add(written as u64, Ordering::Relaxed);
                    shared.lock().unwritten -= written;
                }
            }
        };
        let mut state = shared.lock();
        // Bytes that the other end sent before it went must still be read.
        state.broken = Some((broken.kind(), broken.to_string()));
        carrier.is_shut = true;
        state.unwritten -= carrier.unwritten();
        carrier.written = carrier.out.len();
        if carrier.is_ended || is_direct(carrier.number) {
            state.machine.handle_loss(carrier.number, now());
        }
        true
    }

    /// Handles what the machine says, and wakes those who wait for it.
    fn tell(&mut self, shared: &Shared) {
        let mut state = shared.lock();
        while let Some(event) = state.machine.poll_event() {
            match event {
                Event::Closed(number) => {
                    let Some(index) = self.carriers.iter().position(|one| one.number == number)
                    else {
                        // It was lost before this task had it.
                        state.added.retain(|(added, ..)| *added != number);
                        continue;
                    };
                    let gone = self.carriers.remove(index);
                    state.unwritten -= gone.unwritten();
                    tracing::debug!(number, "a path is over");
                }
                Event::Moved(number) => {
                    let carrier = self.carriers.iter().find(|one| one.number == number);
                    let added = || state.added.iter().find(|(added, ..)| *added == number);
                    let address = match carrier {
                        Some(carrier) => carrier.address,
                        None => added().and_then(|(_, _, address)| *address),
                    };
                    let path = address.map_or(Path::Relay, Path::Direct);
                    tracing::debug!(number, "the stream goes on over another path");
                    shared.path.send_if_modified(|old| mem::replace(old, path) != path);
                }
                // A message beyond the limit is dropped: its sender does not depend on it.
                Event::Sealed(message) => drop(state.sealed.try_send(message)),
            }
        }
        let need = state.machine.need();
        if shared.need.send_if_modified(|old| mem::replace(old, need) != need) {
            tracing::debug!(?need, "the stream lacks something else than before");
        }
        state.wake();
    }

    /// Ends the connections when the stream is over; returns whether this task is done.
    fn is_over(&mut self, shared: &Shared, cx: &mut Context<'_>) -> bool {
        let state = shared.lock();
        let machine = &state.machine;
        if machine.is_over() {
            return true;
        }
        let is_done = machine.is_done();
        if !is_done && !state.is_dropped {
            return false;
        }
        let close = *self.close.get_or_insert_with(|| Instant::now() + LINGER);
        if close <= Instant::now() {
            return true;
        }
        let is_sent = state.unwritten == 0 && machine.is_transmitted();
        // The relay may still have to carry bytes that a direct connection loses.
        let is_safe = is_done || !machine.may_repeat() || !machine.is_finished();
        drop(state);
        if is_sent && is_safe {
            for carrier in &mut self.carriers {
                if !carrier.is_shut && carrier.leg.poll_shutdown(cx).is_ready() {
                    carrier.is_shut = true;
                }
            }
        }
        self.carriers.iter().all(|carrier| carrier.is_ended && carrier.is_shut)
    }

    /// Sets the timer to what is next; ready if that is now.
    fn arm(&mut self, shared: &Shared, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = shared.lock();
        let deadline = state.machine.deadline().map(Instant::from_std);
        let Some(next) = deadline.into_iter().chain(self.close).min() else {
            state.armed = None;
            return Poll::Pending;
        };
        state.armed = Some(next.into_std());
        drop(state);
        if self.timer.deadline() != next {
            self.timer.as_mut().reset(next);
        }
        ready!(self.timer.as_mut().poll(cx));
        Poll::Ready(())
    }
}
