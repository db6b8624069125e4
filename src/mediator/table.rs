//! All live transfers by the hash their connections name: who waits for whom, and who is being relayed.
//!
//! An entry is either a plain transfer (XEP-0065), made by its first connection and relayed from its activation on,
//! or a *registration* by a brokered session, which takes the one connection that names its hash.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use jid::{BareJid, Jid};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    pipe,
    socket::Socket,
    transfer::{DstAddr, Transfer},
};
use crate::xmpp::stanza::Refusal;

/// The longest pause between two looks for expired transfers.
const SWEEP: Duration = Duration::from_secs(1);

/// Limits of plain transfers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How long connections may wait for their activation.
    pub activation_timeout: Duration,
    /// How long an active transfer may move no byte.
    pub idle_timeout: Duration,
    /// Active transfers.
    pub sessions: usize,
    /// Active transfers that one bare JID has activated.
    pub sessions_per_user: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            activation_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(600),
            sessions: 10_000,
            sessions_per_user: 32,
        }
    }
}

/// How much is in a table, and what went through it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Plain transfers that are relayed.
    pub active: usize,
    /// Plain transfers that wait for their second side or activation.
    pub waiting: usize,
    /// Hashes that brokered sessions have registered.
    pub registered: usize,
    /// Bytes relayed by plain transfers that have ended, both directions.
    pub bytes: u64,
}

/// What became of a connection that named a hash.
#[derive(Debug)]
pub enum Arrival {
    /// The entry has it; success was sent.
    Taken,
    /// Two sides are there already; a refusal is to be sent.
    Refused(Socket),
    /// It broke before it could be told of its success.
    Gone(io::Error),
}

/// The transfers; cheap to clone, all clones are the same table.
///
/// The state is under a std `Mutex` because it is never held over an `.await` and each hold is short.
#[derive(Clone, Debug)]
pub struct Table {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: Options,
    tasks: TaskTracker,
    hard: CancellationToken,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<DstAddr, Entry>,
    /// Who waits for a connection, by number; the sender is gone once there was one.
    registrations: HashMap<u64, Option<mpsc::Sender<Socket>>>,
    next_registration: u64,
    active: usize,
    active_by_user: HashMap<BareJid, usize>,
    bytes: u64,
}

#[derive(Debug)]
enum Entry {
    Plain(Box<Transfer<Socket>>),
    Registered(u64),
}

impl Table {
    /// An empty table. Its relays run on `tasks`, together with one task that removes expired transfers; all of
    /// them end with `hard`.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(options: Options, tasks: TaskTracker, hard: CancellationToken) -> Self {
        let inner = Arc::new(Inner { options, tasks, hard, state: Mutex::default() });
        inner.tasks.spawn(sweep(
            Arc::downgrade(&inner),
            inner.hard.clone(),
            (options.activation_timeout / 4).clamp(Duration::from_millis(5), SWEEP),
        ));
        Self { inner }
    }

    /// Takes a connection that named `hash`. `success` is the reply that tells it so; it is sent before the entry
    /// can be activated or handed on, so nothing of the stream comes before it.
    pub fn arrive(&self, hash: DstAddr, socket: Socket, success: &[u8]) -> Arrival {
        let mut state = self.inner.lock();
        let State { entries, registrations, .. } = &mut *state;
        let mut waiting = None;
        let free = match entries.get(&hash) {
            None => !self.inner.hard.is_cancelled(),
            Some(Entry::Plain(transfer)) => transfer.has_room(),
            Some(Entry::Registered(number)) => {
                waiting = registrations.get_mut(number);
                waiting.as_ref().is_some_and(|waiting| waiting.is_some())
            }
        };
        if !free {
            return Arrival::Refused(socket);
        }
        // One small non-blocking send: a connection this young has an empty send buffer.
        if let Err(error) = socket.send_now(success) {
            return Arrival::Gone(error);
        }
        if let Some(sender) = waiting.and_then(Option::take) {
            return match sender.try_send(socket) {
                Ok(()) => Arrival::Taken,
                Err(error) => Arrival::Refused(error.into_inner()),
            };
        }
        let now = now();
        if let Some(Entry::Plain(transfer)) = entries.get_mut(&hash) {
            return match transfer.handle_arrival(socket, now) {
                Ok(()) => Arrival::Taken,
                Err(socket) => Arrival::Refused(socket),
            };
        }
        let transfer = Transfer::new(socket, self.inner.options.activation_timeout, now);
        entries.insert(hash, Entry::Plain(Box::new(transfer)));
        Arrival::Taken
    }

    /// Registers hashes of which one connection is expected. One that waits under such a hash already is handed
    /// over; a hash that is active or registered by another stays with it.
    pub fn register(&self, hashes: impl IntoIterator<Item = DstAddr>) -> Registration {
        let (sender, receiver) = mpsc::channel(1);
        let mut sender = Some(sender);
        let mut surplus = Vec::new();
        let mut state = self.inner.lock();
        let number = state.next_registration;
        state.next_registration += 1;
        let mut mine = Vec::new();
        for hash in hashes {
            match state.entries.remove(&hash) {
                Some(Entry::Plain(transfer)) if !transfer.is_active() => {
                    let (first, second) = transfer.into_connections();
                    for socket in first.into_iter().chain(second) {
                        match sender.take() {
                            Some(sender) => surplus.extend(
                                sender
                                    .try_send(socket)
                                    .map_err(mpsc::error::TrySendError::into_inner)
                                    .err(),
                            ),
                            None => surplus.push(socket),
                        }
                    }
                }
                Some(entry) => {
                    tracing::debug!("a hash is in use already");
                    state.entries.insert(hash, entry);
                    continue;
                }
                None => {}
            }
            state.entries.insert(hash, Entry::Registered(number));
            mine.push(hash);
        }
        state.registrations.insert(number, sender);
        drop(state);
        drop(surplus);
        Registration { table: self.clone(), number, hashes: mine, receiver }
    }

    /// Activates the transfer that `asker` (a full JID) requested with `target` under `sid`, and starts its relay.
    /// For a hash that is registered there is nothing to start.
    ///
    /// # Errors
    /// `item-not-found` if there is no such transfer of this asker, `not-allowed` if not all its sides are
    /// connected, `resource-constraint` if a limit is reached.
    ///
    /// Spec: XEP-0065 1.8.2, section 6.3.5 (Activation of Bytestream).
    pub fn activate(&self, asker: &Jid, sid: &str, target: &Jid) -> Result<(), Refusal> {
        let hash = DstAddr::compute(sid, asker, target);
        let user = asker.to_bare();
        let mut state = self.inner.lock();
        let State { entries, registrations, active, active_by_user, .. } = &mut *state;
        let transfer = match entries.get_mut(&hash) {
            None => return Err(Refusal::item_not_found("no such bytestream of yours")),
            Some(Entry::Registered(number)) => {
                return match registrations.get(number) {
                    Some(None) => Ok(()),
                    _ => Err(super::transfer::ActivateError::OneSide.into()),
                };
            }
            Some(Entry::Plain(transfer)) => transfer,
        };
        let of_user = active_by_user.get(&user).copied().unwrap_or_default();
        if !transfer.is_active() && *active >= self.inner.options.sessions {
            return Err(Refusal::resource_constraint("too many bytestreams"));
        }
        if !transfer.is_active() && of_user >= self.inner.options.sessions_per_user {
            return Err(Refusal::resource_constraint("too many bytestreams of yours"));
        }
        let (a, b) = transfer.handle_activate()?;
        *active += 1;
        active_by_user.insert(user.clone(), of_user + 1);
        drop(state);

        let mut guard = Active { inner: Arc::clone(&self.inner), hash, user, bytes: 0 };
        let hard = self.inner.hard.clone();
        let idle_timeout = self.inner.options.idle_timeout;
        self.inner.tasks.spawn(async move {
            let relay = pipe::relay(a, b, pipe::Options { idle_timeout, guard: false });
            if let Some(outcome) = hard.run_until_cancelled(relay).await {
                guard.bytes = outcome.a_to_b + outcome.b_to_a;
                tracing::debug!(bytes = guard.bytes, end = ?outcome.end, "transfer ended");
            }
            drop(guard);
        });
        Ok(())
    }

    /// What is in the table now.
    pub fn counts(&self) -> Counts {
        let state = self.inner.lock();
        let registered =
            state.entries.values().filter(|entry| matches!(entry, Entry::Registered(_))).count();
        Counts {
            active: state.active,
            waiting: state.entries.len() - registered - state.active,
            registered,
            bytes: state.bytes,
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The expectation of one connection; its hashes are free again when it is dropped, so it is kept as long as its
/// session lives.
#[derive(Debug)]
pub struct Registration {
    table: Table,
    number: u64,
    hashes: Vec<DstAddr>,
    receiver: mpsc::Receiver<Socket>,
}

impl Registration {
    /// Waits for the connection. It was told of its success; nothing of its stream was read. `None` after the
    /// first, for there is only one.
    ///
    /// # Cancel safety
    /// Nothing is lost if the future is dropped.
    pub async fn arrived(&mut self) -> Option<Socket> {
        self.receiver.recv().await
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut state = self.table.inner.lock();
        state.registrations.remove(&self.number);
        for hash in &self.hashes {
            state.entries.remove(hash);
        }
    }
}

/// An active transfer's place in the counts and the table.
struct Active {
    inner: Arc<Inner>,
    hash: DstAddr,
    user: BareJid,
    bytes: u64,
}

impl Drop for Active {
    fn drop(&mut self) {
        let mut state = self.inner.lock();
        state.entries.remove(&self.hash);
        state.active -= 1;
        state.bytes += self.bytes;
        let last = match state.active_by_user.get_mut(&self.user) {
            Some(count) => {
                *count -= 1;
                *count == 0
            }
            None => false,
        };
        if last {
            state.active_by_user.remove(&self.user);
        }
    }
}

/// Removes expired transfers until the table is gone or `hard` is cancelled; then all that wait.
async fn sweep(table: Weak<Inner>, hard: CancellationToken, every: Duration) {
    loop {
        let ended = hard.run_until_cancelled(tokio::time::sleep(every)).await.is_none();
        let Some(inner) = table.upgrade() else { return };
        let now = now();
        let expired: Vec<_> = inner
            .lock()
            .entries
            .extract_if(|_, entry| match entry {
                Entry::Plain(transfer) => {
                    transfer.is_expired(now) || ended && !transfer.is_active()
                }
                Entry::Registered(_) => false,
            })
            .collect();
        if !expired.is_empty() {
            tracing::debug!(count = expired.len(), "transfers were never activated");
        }
        if ended {
            return;
        }
    }
}

/// The runtime's clock, which tests may pause.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
