//! All live transfers, by the hash that their connections name: those that wait for a side, and those that are relayed.
//!
//! An entry is either a plain transfer (XEP-0065), which its first connection creates and its activation starts, or a
//! *registration* by a brokered session, which takes the one connection that names its hash.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak},
    time::{Duration, Instant},
};

use fingerpost_carry::{
    rows::{Row, Rows},
    shares::{Full, Limits, Place, Shares},
};
use fingerpost_wire::dst_addr::DstAddr;
use jid::{BareJid, Jid};
use tokio::{
    sync::{Notify, mpsc},
    time::timeout,
};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

use super::{
    clock::now,
    engine::PairId,
    metrics::{Cause, TimeoutPhase},
    names::{Name, Names},
    pipe,
    plane::Plane,
    socket::Socket,
    transfer::{ActivateError, Transfer},
    watch::StreamOwner,
};

/// The longest pause between two checks for expired transfers.
const SWEEP: Duration = Duration::from_secs(1);

/// How many times the free transfers one domain may have active.
const SLOPE: usize = 16;

/// Limits of plain transfers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferOptions {
    /// How long an activation may wait for the second side to connect.
    pub activation_grace: Duration,
    /// How long connections may wait for their activation.
    pub activation_timeout: Duration,
    /// Bytes per second of each session, both directions together; 0 is unlimited.
    pub bytes_per_second: u64,
    /// How long an active transfer may move no byte.
    pub idle_timeout: Duration,
    /// The most active transfers.
    pub sessions: usize,
    /// The most active transfers of one bare JID.
    pub sessions_per_user: usize,
    /// The most transfers that wait for their second side or activation; the oldest makes room for a new one.
    pub waiting: usize,
}

impl Default for TransferOptions {
    fn default() -> Self {
        Self {
            activation_grace: Duration::from_secs(3),
            activation_timeout: Duration::from_secs(60),
            bytes_per_second: 0,
            idle_timeout: Duration::from_secs(600),
            sessions: 10_000,
            sessions_per_user: 32,
            waiting: 5_000,
        }
    }
}

/// The content of a table, and the bytes that went through it.
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

/// The result for a connection that named a hash.
#[derive(Debug)]
pub enum SocketArrival {
    /// The entry has taken it; success was sent.
    Taken,
    /// Two sides are connected already, or the address has too many connections. The caller sends a refusal.
    Refused(Socket, Cause),
    /// It broke before the success could be sent.
    Gone(io::Error),
}

/// The transfers. Cheap to clone; all clones share the same table.
///
/// The state is under a std `Mutex` because it is never held over an `.await` and each hold is short.
#[derive(Clone, Debug)]
pub struct TransferTable {
    inner: Arc<TableShared>,
}

#[derive(Debug)]
struct TableShared {
    options: RwLock<TransferOptions>,
    tasks: TaskTracker,
    hard: CancellationToken,
    plane: Plane,
    /// The ages of transfers count from here.
    started: Instant,
    state: Mutex<TableState>,
}

#[derive(Debug, Default)]
struct TableState {
    entries: Rows<TableEntry>,
    /// The registrations that wait for a connection, by number. The sender is gone once a connection came.
    registrations: HashMap<u64, Option<mpsc::Sender<Socket>>>,
    next_registration: u64,
    /// Shares of active transfers, by the user that activated them.
    shares: Shares,
    /// The users of active transfers.
    names: Names,
    /// Plain transfers that are not active, by the numbers of their rows, oldest first.
    waiting: BTreeMap<u64, u32>,
    /// How many transfers have waited so far, and how many were active (modulo 2^32).
    arrived: u64,
    numbered: u32,
    /// Present while a transfer is active: the service waits for its end.
    tracked: Option<TaskTrackerToken>,
    /// Whether activations are refused.
    draining: bool,
    /// Activations that wait for the second side.
    awaited: HashMap<DstAddr, Arc<Notify>>,
    bytes: u64,
}

/// A hash, and what it stands for.
#[derive(Debug)]
struct TableEntry {
    hash: DstAddr,
    state: EntryState,
}

/// What a hash stands for. The relay owns the connections of an active transfer.
#[derive(Debug)]
enum EntryState {
    Plain(Box<WaitingTransfer>),
    Active(ActiveTransfer),
    Registered(u64),
}

impl Row for TableEntry {
    type Key = DstAddr;

    fn key(&self) -> &DstAddr {
        &self.hash
    }
}

/// An active transfer, as other tasks see it.
#[derive(Debug)]
struct ActiveTransfer {
    place: Place,
    /// Requester and target.
    users: [Name; 2],
    /// Tenths of seconds from the table's start to its activation.
    began: u32,
    /// How many transfers had been active when it was.
    number: u32,
    stream: PairId,
}

// Each active transfer takes this much, so it must not grow by accident.
const _: () = assert!(size_of::<TableEntry>() <= 64);

/// The name of an active transfer, which no later one has. It finds the transfer at once, however many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TransferId {
    number: u32,
    row: u32,
}

/// Names the transfer for people and for the log: `7-0`.
impl fmt::Display for TransferId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.number, self.row)
    }
}

/// An active transfer.
#[derive(Clone, Debug)]
pub struct TransferInfo {
    /// Its name, for [`TransferTable::end`].
    pub id: TransferId,
    /// Requester and target.
    pub users: [BareJid; 2],
    /// The time since its activation.
    pub age: Duration,
    /// Bytes so far, both directions.
    pub bytes: u64,
}

#[derive(Debug)]
struct WaitingTransfer {
    transfer: Transfer<Socket>,
    since: Instant,
    number: u64,
}

/// Why a transfer was not activated. `src/front/refusal.rs` says it to the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotActivated {
    /// The user has no such transfer.
    Unknown,
    /// One side is missing; it may still connect.
    OneSide,
    /// It is active already.
    Active,
    /// The service is being stopped.
    Draining,
    /// The user has the most transfers.
    TooManyOfUser,
    /// All users have the most transfers.
    TooMany,
}

impl TransferTable {
    /// Creates an empty table. Its relays run on `tasks`, together with one task that removes expired transfers; all of
    /// them end with `hard`.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(options: TransferOptions, tasks: TaskTracker, hard: CancellationToken) -> Self {
        let plane = Plane::new(options.bytes_per_second);
        Self::on_plane(options, plane, tasks, hard)
    }

    /// Creates a table as [`TransferTable::new`] does, on an existing plane.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn on_plane(
        options: TransferOptions,
        plane: Plane,
        tasks: TaskTracker,
        hard: CancellationToken,
    ) -> Self {
        let inner = Arc::new(TableShared {
            options: RwLock::new(options),
            tasks,
            hard,
            plane,
            started: now(),
            state: Mutex::default(),
        });
        inner.tasks.spawn(sweep(
            Arc::downgrade(&inner),
            inner.hard.clone(),
            (options.activation_timeout / 4)
                .clamp(Duration::from_millis(5), SWEEP)
                .min(Plane::pause(options.idle_timeout)),
        ));
        Self { inner }
    }

    /// Returns the plane on which its streams run, with their counters.
    pub fn plane(&self) -> &Plane {
        &self.inner.plane
    }

    /// Takes a connection that named `hash`. `success` is the reply for it. The reply is sent before the entry can be
    /// activated or handed on, so no byte of the stream precedes it.
    ///
    /// The connections of a plain transfer count against their addresses until the transfer is activated. A connection
    /// that a session expects does not count.
    pub fn arrive(&self, hash: DstAddr, mut socket: Socket, success: &[u8]) -> SocketArrival {
        let mut state = self.inner.lock();
        let TableState { entries, registrations, awaited, .. } = &mut *state;
        let mut waiting = None;
        let row = entries.find(&hash);
        let refused = match row.and_then(|row| entries.get(row)).map(|entry| &entry.state) {
            None if self.inner.hard.is_cancelled() => Some(Cause::Draining),
            None => (!socket.take_seat()).then_some(Cause::AddressLimit),
            Some(EntryState::Plain(waiting)) if !waiting.transfer.has_room() => {
                Some(Cause::ThirdConnection)
            }
            Some(EntryState::Plain(_)) => (!socket.take_seat()).then_some(Cause::AddressLimit),
            Some(EntryState::Active(_)) => Some(Cause::ThirdConnection),
            Some(EntryState::Registered(number)) => {
                waiting = registrations.get_mut(number);
                let free = waiting.as_ref().is_some_and(|waiting| waiting.is_some());
                (!free).then_some(Cause::ThirdConnection)
            }
        };
        if let Some(cause) = refused {
            self.inner.plane.metrics().refused(cause);
            return SocketArrival::Refused(socket, cause);
        }
        if waiting.is_some() {
            socket.settle();
        } else {
            socket.arrived();
        }
        // One small non-blocking send: a connection this young has an empty send buffer.
        if let Err(error) = socket.send_now(success) {
            return SocketArrival::Gone(error);
        }
        if let Some(sender) = waiting.and_then(Option::take) {
            return match sender.try_send(socket) {
                Ok(()) => {
                    wake(awaited, hash);
                    SocketArrival::Taken
                }
                Err(error) => SocketArrival::Refused(error.into_inner(), Cause::ThirdConnection),
            };
        }
        let now = now();
        if let Some(TableEntry { state: EntryState::Plain(waiting), .. }) =
            row.and_then(|row| entries.get_mut(row))
        {
            return match waiting.transfer.handle_arrival(socket, now) {
                Ok(()) => {
                    wake(awaited, hash);
                    SocketArrival::Taken
                }
                Err(socket) => SocketArrival::Refused(socket, Cause::ThirdConnection),
            };
        }
        let options = self.inner.options();
        let transfer = Transfer::new(socket, options.activation_timeout, now);
        let made_room = (state.waiting.len() >= options.waiting.max(1))
            .then(|| state.waiting.pop_first())
            .flatten()
            .and_then(|(_, oldest)| state.entries.remove(oldest));
        let number = state.arrived;
        state.arrived += 1;
        let waiting = Box::new(WaitingTransfer { transfer, since: now, number });
        let row = state.entries.insert(TableEntry { hash, state: EntryState::Plain(waiting) });
        state.waiting.insert(number, row);
        drop(state);
        if made_room.is_some() {
            self.inner.plane.metrics().refused(Cause::MadeRoom);
        }
        SocketArrival::Taken
    }

    /// Registers hashes for which one connection is expected. A connection that already waits under such a hash is
    /// handed over. A hash that is active, or registered by another session, stays with its owner.
    pub fn register(&self, hashes: impl IntoIterator<Item = DstAddr>) -> Registration {
        let (sender, receiver) = mpsc::channel(1);
        let mut sender = Some(sender);
        let mut surplus = Vec::new();
        let mut state = self.inner.lock();
        let number = state.next_registration;
        state.next_registration += 1;
        let mut mine = Vec::new();
        for hash in hashes {
            let row = state.entries.find(&hash);
            let entry = row.and_then(|row| state.entries.get(row));
            if entry.is_some_and(|entry| !matches!(entry.state, EntryState::Plain(_))) {
                tracing::debug!("hash already in use");
                continue;
            }
            if let Some(entry) = row.and_then(|row| state.entries.remove(row))
                && let EntryState::Plain(waiting) = entry.state
            {
                state.waiting.remove(&waiting.number);
                let (first, second) = waiting.transfer.into_connections();
                for mut socket in first.into_iter().chain(second) {
                    socket.settle();
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
            let registered = TableEntry { hash, state: EntryState::Registered(number) };
            mine.push(state.entries.insert(registered));
        }
        state.registrations.insert(number, sender);
        drop(state);
        drop(surplus);
        Registration { table: self.clone(), number, rows: mine, receiver }
    }

    /// Activates the transfer that `asker` (a full JID) requested with `target` under `sid`, and starts its relay. A
    /// registered hash needs no start. If one side is missing, it may still connect within a grace period: some clients
    /// ask as soon as they are connected themselves.
    ///
    /// # Errors
    /// [`NotActivated`].
    ///
    /// # Cancel safety
    /// Nothing is lost if the future is dropped.
    ///
    /// Spec: XEP-0065 1.8.2, section 6.3.5 (Activation of Bytestream).
    pub async fn activate_soon(
        &self,
        asker: &Jid,
        sid: &str,
        target: &Jid,
    ) -> Result<(), NotActivated> {
        let hash = DstAddr::compute(sid, asker, target);
        let awaiting = Awaiting::new(&self.inner, hash);
        let came = awaiting.came.notified();
        // The side may have connected before the wait began.
        let mut result = self.try_activate(asker, sid, target);
        if result == Err(NotActivated::OneSide)
            && timeout(self.inner.options().activation_grace, came).await.is_ok()
        {
            result = self.try_activate(asker, sid, target);
        }
        if result == Err(NotActivated::OneSide) {
            self.inner.plane.metrics().refused(Cause::OneSide);
        }
        result
    }

    /// Returns whether a session has announced the stream of this activation.
    pub fn is_registered(&self, asker: &Jid, sid: &str, target: &Jid) -> bool {
        let state = self.inner.lock();
        let row = state.entries.find(&DstAddr::compute(sid, asker, target));
        let entry = row.and_then(|row| state.entries.get(row));
        entry.is_some_and(|entry| matches!(entry.state, EntryState::Registered(_)))
    }

    /// Activates as [`TransferTable::activate_soon`] does, without the grace period. The error tells whether the reason may
    /// pass.
    ///
    /// # Errors
    /// [`NotActivated`].
    pub fn try_activate(&self, asker: &Jid, sid: &str, target: &Jid) -> Result<(), NotActivated> {
        let hash = DstAddr::compute(sid, asker, target);
        let refuse = |cause, refusal| {
            self.inner.plane.metrics().refused(cause);
            Err(refusal)
        };
        let user = asker.to_bare();
        let account = pipe::PipeAccount::of(&user);
        let mut state = self.inner.lock();
        let TableState {
            entries,
            registrations,
            shares,
            names,
            draining,
            numbered,
            tracked,
            waiting: queue,
            ..
        } = &mut *state;
        let Some(row) = entries.find(&hash) else {
            return refuse(Cause::NotFound, NotActivated::Unknown);
        };
        let Some(TableEntry { state: entry, .. }) = entries.get_mut(row) else {
            return refuse(Cause::NotFound, NotActivated::Unknown);
        };
        let waiting = match entry {
            EntryState::Registered(number) => {
                return match registrations.get(number) {
                    Some(None) => Ok(()),
                    _ => Err(NotActivated::OneSide),
                };
            }
            EntryState::Active(_) => {
                return refuse(Cause::AlreadyActive, NotActivated::Active);
            }
            EntryState::Plain(waiting) => waiting,
        };
        if *draining {
            return refuse(Cause::Draining, NotActivated::Draining);
        }
        let options = self.inner.options();
        let limits = Limits::new(options.sessions, options.sessions_per_user, SLOPE);
        let place = match shares.take(&user, 1, &limits) {
            Ok(place) => place,
            Err(Full::User) => {
                return refuse(Cause::UserLimit, NotActivated::TooManyOfUser);
            }
            Err(Full::All | Full::Domain) => {
                return refuse(Cause::SessionLimit, NotActivated::TooMany);
            }
        };
        let (mut a, mut b) = match waiting.transfer.handle_activate() {
            Ok(sides) => sides,
            Err(error) => {
                shares.give_back(&place);
                return match error {
                    ActivateError::OneSide => Err(NotActivated::OneSide),
                    ActivateError::Active => refuse(Cause::AlreadyActive, NotActivated::Active),
                };
            }
        };
        a.settle();
        b.settle();
        queue.remove(&waiting.number);
        let took = now().saturating_duration_since(waiting.since);
        let number = numbered.wrapping_add(1);
        let owner = Arc::downgrade(&self.inner);
        let options =
            pipe::StreamOptions { idle_timeout: options.idle_timeout, guard: None, account };
        // The end of the stream waits for the lock, so the row is active before it ends.
        let Ok(stream) = self.inner.plane.run(a, b, options, (owner, row)) else {
            shares.give_back(&place);
            entries.remove(row);
            return refuse(Cause::SessionLimit, NotActivated::TooMany);
        };
        *numbered = number;
        tracked.get_or_insert_with(|| self.inner.tasks.token());
        *entry = EntryState::Active(ActiveTransfer {
            place,
            users: [names.take(&user), names.take(&target.to_bare())],
            began: self.inner.tenths(),
            number,
            stream,
        });
        drop(state);
        self.inner.plane.metrics().set_up(took);
        if self.inner.hard.is_cancelled() {
            self.inner.plane.cut(stream);
        }
        Ok(())
    }

    /// Returns the active transfers, oldest first.
    pub fn list(&self) -> Vec<TransferInfo> {
        let now = self.inner.tenths();
        let state = self.inner.lock();
        let mut found: Vec<TransferInfo> = state
            .entries
            .iter()
            .filter_map(|(row, entry)| match &entry.state {
                EntryState::Active(transfer) => {
                    let [requester, target] = &transfer.users;
                    // Its end waits for the lock, so these are its counters.
                    let counters = self.inner.plane.counters(transfer.stream)?;
                    Some(TransferInfo {
                        id: TransferId { number: transfer.number, row },
                        users: [state.names.get(requester)?, state.names.get(target)?],
                        age: Duration::from_millis(100) * now.saturating_sub(transfer.began),
                        bytes: counters.get().bytes(),
                    })
                }
                EntryState::Plain(_) | EntryState::Registered(_) => None,
            })
            .collect();
        drop(state);
        // Those of one tenth of a second by their numbers.
        found.sort_by_key(|transfer| (std::cmp::Reverse(transfer.age), transfer.id));
        found
    }

    /// Ends an active transfer and closes both connections. Returns whether it existed.
    pub fn end(&self, id: TransferId) -> bool {
        let state = self.inner.lock();
        let stream = match state.entries.get(id.row).map(|entry| &entry.state) {
            Some(EntryState::Active(found)) if found.number == id.number => Some(found.stream),
            _ => None,
        };
        drop(state);
        if let Some(stream) = stream {
            self.inner.plane.cut(stream);
        }
        stream.is_some()
    }

    /// Refuses activations from now on, or accepts them again.
    pub fn refuse_activations(&self, refuse: bool) {
        self.inner.lock().draining = refuse;
    }

    /// Sets other limits, for transfers that begin from now on.
    pub fn set_options(&self, options: TransferOptions) {
        self.inner.plane.set_rate(options.bytes_per_second);
        *self.inner.options.write().unwrap_or_else(PoisonError::into_inner) = options;
    }

    /// Returns the current counts of the table.
    pub fn counts(&self) -> Counts {
        let state = self.inner.lock();
        let (active, waiting) = (state.shares.taken(), state.waiting.len());
        Counts {
            active,
            waiting,
            registered: state.entries.len() - waiting - active,
            bytes: state.bytes,
        }
    }
}

impl TableShared {
    fn options(&self) -> TransferOptions {
        *self.options.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the time since the start, in tenths of seconds: more than 13 years.
    fn tenths(&self) -> u32 {
        let tenths = now().saturating_duration_since(self.started).as_millis() / 100;
        u32::try_from(tenths).unwrap_or(u32::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, TableState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The expectation of one connection. Its hashes are free again when it is dropped, so the session keeps it for life.
#[derive(Debug)]
pub struct Registration {
    table: TransferTable,
    number: u64,
    rows: Vec<u32>,
    receiver: mpsc::Receiver<Socket>,
}

impl Registration {
    /// Waits for the connection. Success was sent to it, and it holds the bytes that were read of its stream. `None`
    /// after the first call, because there is only one.
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
        for row in &self.rows {
            state.entries.remove(*row);
        }
    }
}

/// Wakes the activations that wait for a hash, because it is complete.
fn wake(awaited: &HashMap<DstAddr, Arc<Notify>>, hash: DstAddr) {
    if let Some(came) = awaited.get(&hash) {
        came.notify_waiters();
    }
}

/// An activation that waits for the second side.
struct Awaiting<'a> {
    inner: &'a TableShared,
    hash: DstAddr,
    came: Arc<Notify>,
}

impl<'a> Awaiting<'a> {
    fn new(inner: &'a TableShared, hash: DstAddr) -> Self {
        let came = Arc::clone(inner.lock().awaited.entry(hash).or_default());
        Self { inner, hash, came }
    }
}

impl Drop for Awaiting<'_> {
    fn drop(&mut self) {
        let mut state = self.inner.lock();
        // The table's reference and this one: no other activation waits.
        if Arc::strong_count(&self.came) <= 2 {
            state.awaited.remove(&self.hash);
        }
    }
}

/// Gives the row and the place of a transfer back when its stream ends. Nothing else removes the row.
impl StreamOwner for TableShared {
    fn ended(&self, row: u32, moved: [u64; 2], end: Option<pipe::Ended>) {
        let bytes: u64 = moved.iter().sum();
        let mut state = self.lock();
        state.bytes += bytes;
        let entry = state.entries.remove(row);
        let Some(TableEntry { state: EntryState::Active(transfer), .. }) = &entry else { return };
        state.shares.give_back(&transfer.place);
        transfer.users.iter().for_each(|name| state.names.give_back(name));
        let tracked = if state.shares.taken() == 0 { state.tracked.take() } else { None };
        drop(state);
        if let Some(end) = end {
            self.plane.metrics().ended(end);
            let id = TransferId { number: transfer.number, row };
            let _in = tracing::info_span!("session", id = format!("t{id}")).entered();
            tracing::debug!(bytes, ?end, "transfer ended");
        }
        drop(tracked);
    }
}

/// Looks at the streams and removes expired transfers until the table is gone or `hard` is cancelled. Then ends all
/// that wait or run.
async fn sweep(table: Weak<TableShared>, hard: CancellationToken, every: Duration) {
    loop {
        let ended = hard.run_until_cancelled(tokio::time::sleep(every)).await.is_none();
        let Some(inner) = table.upgrade() else { return };
        inner.plane.look();
        let now = now();
        let mut state = inner.lock();
        let is_over = |entry: &TableEntry| match &entry.state {
            EntryState::Plain(waiting) => ended || waiting.transfer.is_expired(now),
            EntryState::Active(_) | EntryState::Registered(_) => false,
        };
        // Those that do not wait are not looked at, however many they are.
        let TableState { entries, waiting, .. } = &mut *state;
        let mut expired = Vec::new();
        waiting.retain(|_, row| {
            let over = entries.get(*row).is_some_and(is_over);
            expired.extend(over.then(|| entries.remove(*row)).flatten());
            !over
        });
        let mut running = Vec::new();
        if ended {
            running.extend(state.entries.iter().filter_map(|(_, entry)| match &entry.state {
                EntryState::Active(transfer) => Some(transfer.stream),
                _ => None,
            }));
        }
        drop(state);
        if !expired.is_empty() && !ended {
            inner.plane.metrics().timed_out(TimeoutPhase::Activation, expired.len());
            tracing::debug!(count = expired.len(), "transfers expired before their activation");
        }
        if ended {
            running.into_iter().for_each(|stream| inner.plane.cut(stream));
            return;
        }
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
