//! The journal of open sessions: after a crash, both users of every session learn that it is over.
//!
//! A session is recorded before its session-initiate reaches the callee, and removed when it ends. One task writes all
//! changes that have gathered in one transaction, so a thousand sessions that begin at once wait for one disk write. An
//! unavailable database delays no session: changes that could not be written are kept, and a session that ends
//! meanwhile is removed from them. So at most one entry per session is kept.
//!
//! At the next start the sessions whose users' programs can go on with them are taken back, and the users of the others are
//! notified that they are gone.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use fingerpost_carry::{iq::random_id, outbound::Outbound};
use fingerpost_wire::{
    jingle::{self, Frame, Reason},
    ns,
    stanza::RequestKind,
};
use jid::BareJid;
use minidom::Element;
use time::OffsetDateTime;
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    peer::SessionPeer,
    side::{PerSide, Side},
};
use crate::registry::store::{
    Store,
    error::StoreError,
    records::{OpenSide, RenewableSide},
};

/// How long a session waits for its line to be on the disk. Then it continues without.
const WAIT: Duration = Duration::from_secs(2);
/// How long one transaction may take.
const WRITE: Duration = Duration::from_secs(15);
/// The pause before another try after the database has failed.
const AGAIN: Duration = Duration::from_secs(2);
/// How long after a write without an answer the database may still carry it out.
const LATE: Duration = Duration::from_secs(60);
/// The transports of legs that can be replaced.
const TRANSPORTS: [&str; 3] = [ns::JINGLE_S5B, ns::JINGLE_IBB, ns::JINGLE_IBB_0];
/// The text for the users of a lost session.
const LOST: &str = "The service was restarted";

/// A change of one session's line.
#[derive(Debug)]
enum LineChange {
    Begun {
        sides: Vec<OpenSide>,
        /// Whether nothing of it is on the disk yet.
        fresh: bool,
        waiting: Option<oneshot::Sender<()>>,
    },
    Ended,
}

/// What becomes of a session's line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LineFate {
    /// The line is removed when the session ends.
    Removed,
    /// The same; the session needs no link to continue.
    Streams,
    /// The same; another process may go on with the session.
    Renewable,
    /// Another process goes on with the session or notifies the users, and removes the line.
    Left,
}

#[derive(Debug, Default)]
struct JournalState {
    changes: HashMap<String, LineChange>,
    /// Whether the last write failed; then sessions do not wait for the next.
    failing: bool,
    /// When lines are looked for that a late write has left without a session.
    sweep_at: Option<Instant>,
    /// The present sessions by their numbers, and what becomes of their lines.
    lines: HashMap<u64, LineFate>,
    /// The sessions of this run that it has left to another process. It may have to go on with them itself.
    left: HashSet<u64>,
    /// How many sessions this run has had.
    numbered: u64,
}

/// The journal of one component. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Journal {
    store: Store,
    component: BareJid,
    run: Arc<JournalRun>,
}

/// What the lines of one run share.
#[derive(Debug)]
struct JournalRun {
    /// The prefix of the names of this run's sessions, before their numbers.
    name: String,
    state: Mutex<JournalState>,
    news: Notify,
}

/// A session in the journal. Dropping it removes the session.
#[derive(Debug)]
pub(super) struct JournalLine {
    run: Arc<JournalRun>,
    /// The session's number in this run.
    number: u64,
    noted: bool,
    /// What is noted for a later run that may go on with the session.
    renewable: Option<Box<Renewable>>,
    written: Option<oneshot::Receiver<()>>,
}

/// What a later run needs to go on with a session, beside its addresses and ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Renewable {
    /// The name of its content.
    pub(super) content: String,
    /// The namespace of each leg's Jingle transport.
    pub(super) transports: PerSide<&'static str>,
}

/// A session that an earlier run has left, and that can be gone on with.
#[derive(Clone, Debug)]
pub(super) struct LeftSession {
    /// Its name in the journal.
    pub(super) session: String,
    pub(super) peers: PerSide<SessionPeer>,
    pub(super) renewable: Renewable,
}

/// What becomes of a session that an earlier run has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Restored {
    /// It exists here.
    Here,
    /// Another process takes it.
    Later,
    /// Its users are told that it is over.
    Lost,
}

impl LeftSession {
    /// Reads the lines of one session; `None` if it cannot be gone on with.
    fn read(sides: &[OpenSide]) -> Option<Self> {
        let of = |side: Side| {
            let is_it =
                |(_, renewable): &(&OpenSide, &RenewableSide)| renewable.role == side.as_str();
            let mut all = sides.iter().filter_map(|one| Some((one, one.renewable.as_ref()?)));
            let (open, renewable) = all.find(is_it)?;
            let namespace =
                [ns::JINGLE, ns::JINGLE_0].into_iter().find(|n| *n == open.namespace)?;
            let pair = Arc::new((open.user.clone(), open.mask.clone()));
            Some((SessionPeer { pair, sid: open.sid.as_str().into(), namespace }, renewable))
        };
        let ((initiator, first), (responder, second)) =
            (of(Side::Initiator)?, of(Side::Responder)?);
        let known = |name: &str| TRANSPORTS.into_iter().find(|known| *known == name);
        let transports =
            PerSide { initiator: known(&first.transport)?, responder: known(&second.transport)? };
        let renewable = Renewable { content: first.content.clone(), transports };
        let session = sides.first()?.session.clone();
        Some(Self { session, peers: PerSide { initiator, responder }, renewable })
    }
}

impl JournalRun {
    /// Never held over an `.await`.
    fn lock(&self) -> MutexGuard<'_, JournalState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the name of a session in the journal.
    fn name_of(&self, number: u64) -> String {
        format!("{}{number:x}", self.name)
    }

    /// Returns the number of a session with this name; `None` if it is another run's.
    fn number_of(&self, session: &str) -> Option<u64> {
        u64::from_str_radix(session.strip_prefix(self.name.as_str())?, 16).ok()
    }
}

impl Journal {
    /// Returns the journal of `component`. Nothing is written until [`Journal::run`] does it.
    pub fn new(store: Store, component: BareJid) -> Self {
        let (name, state, news) = (random_id(), Mutex::default(), Notify::default());
        Self { store, component, run: Arc::new(JournalRun { name, state, news }) }
    }

    /// Records the beginning of a session.
    pub(super) fn begin<'a>(
        &self,
        peers: impl IntoIterator<Item = &'a SessionPeer>,
    ) -> JournalLine {
        let mut state = self.run.lock();
        state.numbered += 1;
        let number = state.numbered;
        state.lines.insert(number, LineFate::Removed);
        drop(state);
        let run = Arc::clone(&self.run);
        let mut line = JournalLine { run, number, noted: false, renewable: None, written: None };
        line.write(peers);
        line
    }

    /// Records a session that an earlier run has left, as one of this run. The same transaction removes the old line.
    pub(super) fn go_on(&self, left: &LeftSession) -> JournalLine {
        let mut line = self.begin([]);
        line.renew(&left.peers, left.renewable.clone());
        self.end(left);
        line
    }

    /// Removes the line of a session that an earlier run has left.
    pub(super) fn end(&self, left: &LeftSession) {
        let mut state = self.run.lock();
        if let Some(number) = self.run.number_of(&left.session) {
            state.left.remove(&number);
        }
        state.changes.insert(left.session.clone(), LineChange::Ended);
        drop(state);
        self.run.news.notify_one();
    }

    /// Writes changes until `stop`, then the rest.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            let sweep_at = self.run.lock().sweep_at;
            let stopped = tokio::select! {
                biased;
                () = self.run.news.notified() => false,
                () = stop.cancelled() => true,
                () = sleep_until(sweep_at.unwrap_or_else(Instant::now)), if sweep_at.is_some() => {
                    self.sweep().await;
                    continue;
                }
            };
            let written = self.write().await;
            if stopped {
                return;
            }
            if let Err(error) = written {
                if !std::mem::replace(&mut self.run.lock().failing, true) {
                    warn!(%error, "could not record open sessions; after a crash their users would not be notified");
                }
                let _stopped = timeout(AGAIN, stop.cancelled()).await;
                self.run.news.notify_one();
            } else if std::mem::replace(&mut self.run.lock().failing, false) {
                info!("open sessions are recorded again");
            }
        }
    }

    async fn write(&self) -> Result<(), StoreError> {
        let changes = std::mem::take(&mut self.run.lock().changes);
        let (mut begun, mut ended) = (Vec::new(), Vec::new());
        for (session, change) in &changes {
            match change {
                LineChange::Begun { sides, .. } => begun.extend(sides.iter().cloned()),
                LineChange::Ended => ended.push(session.clone()),
            }
        }
        let now = OffsetDateTime::now_utc();
        let writing = self.store.change_open(&self.component, &begun, &ended, now);
        let written = timeout(WRITE, writing).await;
        // The database may still carry it out.
        let is_unknown = written.is_err();
        let written =
            written.unwrap_or_else(|_| Err(StoreError::Database(sqlx::Error::PoolTimedOut)));
        if written.is_ok() {
            for change in changes.into_values() {
                if let LineChange::Begun { waiting: Some(waiting), .. } = change {
                    let _ = waiting.send(());
                }
            }
            return Ok(());
        }
        let mut state = self.run.lock();
        if is_unknown {
            state.sweep_at = Some(Instant::now() + LATE);
        }
        for (session, change) in changes {
            // The waiting session continues: the sender is dropped.
            let change = match change {
                LineChange::Begun { sides, fresh, .. } => {
                    LineChange::Begun { sides, fresh: fresh && !is_unknown, waiting: None }
                }
                LineChange::Ended => LineChange::Ended,
            };
            match (state.changes.get(&session), change) {
                (Some(LineChange::Ended), LineChange::Begun { fresh: true, .. }) => {
                    state.changes.remove(&session);
                }
                (Some(_), _) => {}
                (None, change) => {
                    state.changes.insert(session, change);
                }
            }
        }
        written
    }

    /// Removes lines of this run whose sessions are over: a write without an answer was carried out after their removal.
    async fn sweep(&self) {
        self.run.lock().sweep_at = None;
        let sweeping = async {
            let mut open = self.open(true).await?;
            {
                let state = self.run.lock();
                let is_here = |number: u64| state.lines.contains_key(&number);
                open.retain(|side| !self.run.number_of(&side.session).is_some_and(is_here));
            }
            if open.is_empty() { Ok(()) } else { self.forget(open).await }
        };
        let swept = timeout(WRITE, sweeping).await;
        if !matches!(swept, Ok(Ok(()))) {
            self.run.lock().sweep_at = Some(Instant::now() + LATE);
        }
    }

    /// Returns the recorded sessions of this run, or, without `own`, those that an earlier run left open.
    async fn open(&self, own: bool) -> Result<Vec<OpenSide>, StoreError> {
        let mut open = self.store.open_sides(&self.component).await?;
        let mut state = self.run.lock();
        // Other processes have taken the rest.
        let number_of = |side: &OpenSide| self.run.number_of(&side.session);
        let there: HashSet<u64> = open.iter().filter_map(number_of).collect();
        state.left.retain(|number| there.contains(number));
        let is_own =
            |side: &OpenSide| number_of(side).is_some_and(|number| !state.left.contains(&number));
        open.retain(|side| is_own(side) == own);
        Ok(open)
    }

    /// Goes on with the sessions that were open when the component died, or notifies their users; then forgets their lines.
    /// `restore` says what becomes of a session, and `leads` whether they are still this instance's. Call this when the link is
    /// up for the first time. Returns the lines to [forget](Self::forget_told).
    pub(super) async fn settle(
        &self,
        outbound: &Outbound,
        leads: impl Fn() -> bool,
        mut restore: impl FnMut(LeftSession) -> Restored,
    ) -> Vec<OpenSide> {
        let open = loop {
            let open = self.open(false).await;
            if !leads() {
                return Vec::new();
            }
            match open {
                Ok(open) => break open,
                Err(error) => warn!(%error, "cannot read the sessions of the last run yet"),
            }
            sleep(AGAIN).await;
        };
        let (mut restored, mut told) = (0, Vec::new());
        // Those of one session are one after the other.
        for sides in open.chunk_by(|one, next| one.session == next.session) {
            match LeftSession::read(sides).map_or(Restored::Lost, &mut restore) {
                Restored::Here => restored += 1,
                Restored::Later => {}
                Restored::Lost => {
                    for side in sides {
                        if outbound.send(terminate(side).into()).await.is_err() {
                            return told;
                        }
                    }
                    told.extend_from_slice(sides);
                }
            }
        }
        if !open.is_empty() {
            let users = told.len();
            info!(
                restored,
                users, "took back sessions of the last run, and told the users of others"
            );
        }
        told
    }

    /// Forgets the sessions whose users have been told of their end.
    pub(super) async fn forget_told(&self, told: Vec<OpenSide>, leads: impl Fn() -> bool) {
        while !told.is_empty()
            && leads()
            && let Err(error) = self.forget(told.clone()).await
        {
            warn!(%error, "cannot remove lost sessions from the journal yet");
            sleep(AGAIN).await;
        }
    }

    /// Removes the lines of streams that continue here while another process takes the component over: they are not lost.
    /// Those with which the other process can go on are left to it.
    pub async fn hand_over(&self) {
        self.leave(|fate| fate == LineFate::Renewable).await;
    }

    /// Leaves the lines to another instance, which leads from now on and has a link. It goes on with the sessions, or notifies
    /// their users, however these end here. Other streams between two sockets continue and are not lost.
    pub async fn leave_to_the_next(&self) {
        self.leave(|fate| fate != LineFate::Streams).await;
    }

    /// Leaves lines of present sessions to another process, and removes the others.
    async fn leave(&self, is_left: impl Fn(LineFate) -> bool) {
        for fate in self.run.lock().lines.values_mut().filter(|fate| is_left(**fate)) {
            *fate = LineFate::Left;
        }
        let forgetting = async {
            let mut removed = self.open(true).await?;
            removed.retain(|side| {
                let number = self.run.number_of(&side.session);
                let fate = number.and_then(|number| self.run.lock().lines.get(&number).copied());
                fate.is_some_and(|fate| fate != LineFate::Left)
            });
            self.forget(removed).await
        };
        match timeout(WAIT, forgetting).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "could not hand over running sessions"),
            Err(_) => warn!("could not hand over running sessions in time"),
        }
    }

    async fn forget(&self, sides: Vec<OpenSide>) -> Result<(), StoreError> {
        let mut sessions: Vec<String> = sides.into_iter().map(|side| side.session).collect();
        sessions.dedup();
        self.store.change_open(&self.component, &[], &sessions, OffsetDateTime::now_utc()).await
    }
}

fn terminate(side: &OpenSide) -> Element {
    let frame = Frame {
        namespace: &side.namespace,
        sid: &side.sid,
        initiator: &side.user,
        responder: &side.mask,
    };
    let end = jingle::end(&frame, Reason::Gone, LOST, None);
    RequestKind::Set.iq(side.mask.as_str(), side.user.as_str(), &random_id(), end)
}

impl JournalLine {
    /// Records the session as it is now.
    pub(super) fn write<'a>(&mut self, peers: impl IntoIterator<Item = &'a SessionPeer>) {
        self.change(peers.into_iter().map(|peer| self.side(peer, None)).collect());
    }

    /// Records that a later run can go on with the session.
    pub(super) fn renew(&mut self, peers: &PerSide<SessionPeer>, renewable: Renewable) {
        if self.renewable.as_deref() == Some(&renewable) {
            return;
        }
        let side = |side: Side| {
            let renewable = RenewableSide {
                role: side.as_str().to_owned(),
                content: renewable.content.clone(),
                transport: renewable.transports[side].to_owned(),
            };
            self.side(&peers[side], Some(renewable))
        };
        self.change(Side::BOTH.map(side).into());
        self.renewable = Some(Box::new(renewable));
        self.decide(LineFate::Renewable);
    }

    fn side(&self, peer: &SessionPeer, renewable: Option<RenewableSide>) -> OpenSide {
        OpenSide {
            session: self.run.name_of(self.number),
            user: peer.user().clone(),
            mask: peer.mask().clone(),
            sid: peer.sid.to_string(),
            namespace: peer.namespace.to_owned(),
            renewable,
        }
    }

    fn change(&mut self, sides: Vec<OpenSide>) {
        let (sender, receiver) = oneshot::channel();
        let session = self.run.name_of(self.number);
        let mut state = self.run.lock();
        let fresh = match state.changes.get(&session) {
            Some(LineChange::Begun { fresh, .. }) => *fresh,
            _ => !self.noted,
        };
        let waiting = (!state.failing).then_some(sender);
        state.changes.insert(session, LineChange::Begun { sides, fresh, waiting });
        drop(state);
        self.noted = true;
        self.written = Some(receiver);
        self.run.news.notify_one();
    }

    /// Notes that the session continues without a link: its bytes go from one socket to another.
    pub(super) fn streams(&self) {
        if self.renewable.is_none() {
            self.decide(LineFate::Streams);
        }
    }

    /// Leaves the line to another process, which goes on with the session.
    pub(super) fn leave(&self) {
        self.decide(LineFate::Left);
    }

    /// Decides what becomes of the line, unless it is left already.
    fn decide(&self, what: LineFate) {
        if let Some(fate) = self.run.lock().lines.get_mut(&self.number)
            && *fate != LineFate::Left
        {
            *fate = what;
        }
    }

    /// Waits until the line is on the disk, or until that takes too long.
    pub(super) async fn written(&mut self) {
        if let Some(written) = self.written.take() {
            let _ = timeout(WAIT, written).await;
        }
    }
}

impl Drop for JournalLine {
    fn drop(&mut self) {
        let mut state = self.run.lock();
        if state.lines.remove(&self.number) == Some(LineFate::Left) {
            state.left.insert(self.number);
            return;
        }
        let session = self.run.name_of(self.number);
        let change = state.changes.remove(&session);
        if !matches!(change, Some(LineChange::Begun { fresh: true, .. })) {
            state.changes.insert(session, LineChange::Ended);
            self.run.news.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use fingerpost_wire::ns;
    use jid::Jid;
    use tokio::sync::mpsc;
    use tokio_util::task::TaskTracker;

    use super::*;

    fn peer(name: &str) -> SessionPeer {
        SessionPeer {
            pair: Arc::new((
                Jid::new(&format!("{name}@example.org/x")).unwrap(),
                Jid::new("other\\40example.org@xtls.example.org/y").unwrap(),
            )),
            sid: format!("sid-of-{name}").into(),
            namespace: ns::JINGLE,
        }
    }

    fn journal(store: &Store) -> Journal {
        Journal::new(store.clone(), BareJid::new("xtls.example.org").unwrap())
    }

    /// Tells the users of all sessions that an earlier run has left.
    async fn tell(journal: &Journal, outbound: &Outbound) {
        let told = journal.settle(outbound, || true, |_| Restored::Lost).await;
        journal.forget_told(told, || true).await;
    }

    fn run(journal: &Journal) -> (CancellationToken, TaskTracker) {
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(journal.clone().run(stop.clone()));
        tasks.close();
        (stop, tasks)
    }

    /// A write was not answered, its session has ended, and the database carries it out after the removal.
    #[tokio::test]
    async fn a_line_that_comes_late_does_not_outlive_its_session() {
        let store = Store::open("sqlite::memory:", 1, true).await.unwrap();
        let journal = journal(&store);
        let line = journal.begin(&[peer("alice"), peer("bob")]);
        let late = journal.begin(&[peer("carol")]);
        let sides = vec![late.side(&peer("carol"), None)];
        journal.write().await.unwrap();
        drop(late);
        journal.write().await.unwrap();
        let now = OffsetDateTime::now_utc();
        store.change_open(&journal.component, &sides, &[], now).await.unwrap();
        assert_eq!(journal.open(true).await.unwrap().len(), 3);
        journal.sweep().await;
        let left = journal.open(true).await.unwrap();
        assert_eq!(left.len(), 2);
        assert!(left.iter().all(|side| side.session == line.run.name_of(line.number)));
        assert_eq!(journal.run.lock().sweep_at, None);
    }

    #[tokio::test]
    async fn what_is_open_at_a_crash_is_told_to_both_sides_once() {
        let store = Store::open("sqlite::memory:", 1, true).await.unwrap();
        let first = journal(&store);
        let (stop, tasks) = run(&first);
        let mut kept = first.begin(&[peer("alice"), peer("bob")]);
        kept.written().await;
        let mut ended = first.begin(&[peer("carol")]);
        ended.written().await;
        drop(ended);
        // A crash: the line is never removed.
        std::mem::forget(kept);
        stop.cancel();
        tasks.wait().await;

        let (outbound, mut sent) = mpsc::channel(8);
        let other = Journal::new(store.clone(), BareJid::new("other.example.org").unwrap());
        tell(&other, &outbound).await;
        assert!(sent.try_recv().is_err(), "another component's sessions are its own");
        let second = journal(&store);
        let (stop, tasks) = run(&second);
        let mut own = second.begin(&[peer("dave")]);
        own.written().await;
        tell(&second, &outbound).await;
        for name in ["alice", "bob"] {
            let iq = sent.recv().await.unwrap().into_element();
            assert_eq!(iq.attr("to"), Some(format!("{name}@example.org/x").as_str()));
            let jingle = iq.get_child("jingle", ns::JINGLE).unwrap();
            assert_eq!(jingle.attr("action"), Some("session-terminate"));
            let reason = jingle.get_child("reason", ns::JINGLE).unwrap();
            assert!(reason.has_child("gone", ns::JINGLE));
            assert_eq!(reason.get_child("text", ns::JINGLE).unwrap().text(), LOST);
        }
        assert!(sent.try_recv().is_err(), "a running session is not lost");
        assert_eq!(second.open(false).await.unwrap(), []);
        assert_eq!(second.open(true).await.unwrap().len(), 1);
        second.hand_over().await;
        assert_eq!(second.open(true).await.unwrap(), []);
        drop(own);
        stop.cancel();
        tasks.wait().await;
    }

    #[tokio::test]
    async fn the_next_instance_tells_of_what_cannot_go_on_and_of_nothing_else() {
        let store = Store::open("sqlite::memory:", 1, true).await.unwrap();
        let (first, second) = (journal(&store), journal(&store));
        let (stop, tasks) = run(&first);
        let mut streams = first.begin(&[peer("alice"), peer("bob")]);
        streams.streams();
        streams.written().await;
        let mut in_band = first.begin(&[peer("carol"), peer("dave")]);
        in_band.written().await;
        first.leave_to_the_next().await;
        drop(in_band);
        let mut later = first.begin(&[peer("erin")]);
        later.written().await;
        drop(later);
        drop(streams);
        stop.cancel();
        tasks.wait().await;
        let (outbound, mut sent) = mpsc::channel(8);
        tell(&second, &outbound).await;
        for name in ["carol", "dave"] {
            let to = format!("{name}@example.org/x");
            assert_eq!(sent.recv().await.unwrap().into_element().attr("to"), Some(to.as_str()));
        }
        assert!(sent.try_recv().is_err());
        assert_eq!(second.open(false).await.unwrap(), []);
        assert!(first.run.lock().lines.is_empty());
    }

    #[tokio::test]
    async fn a_database_that_cannot_be_written_holds_nothing_up() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", dir.path().join("keys.db").display());
        let store = Store::open(&url, 4, true).await.unwrap();
        let pool = sqlx::SqlitePool::connect(&url).await.unwrap();
        let locked = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
        let journal = journal(&store);
        let (stop, tasks) = run(&journal);
        let mut line = journal.begin(&[peer("alice")]);
        // The write does not wait for the lock, which is still held.
        line.written().await;
        assert_eq!(journal.open(true).await.unwrap(), []);
        drop(locked);
        // Changes that could not be written are written when that is possible.
        let end = Instant::now() + Duration::from_secs(30);
        while journal.open(true).await.unwrap().is_empty() {
            assert!(Instant::now() < end);
            sleep(Duration::from_millis(50)).await;
        }
        drop(line);
        stop.cancel();
        tasks.wait().await;
        assert_eq!(journal.open(true).await.unwrap(), []);
    }

    #[tokio::test]
    async fn a_session_with_which_a_later_run_can_go_on_is_given_to_it() {
        let store = Store::open("sqlite::memory:", 1, true).await.unwrap();
        let first = journal(&store);
        let (stop, tasks) = run(&first);
        let peers = PerSide { initiator: peer("alice"), responder: peer("bob") };
        let transports = PerSide { initiator: ns::JINGLE_S5B, responder: ns::JINGLE_IBB };
        let renewable = Renewable { content: "c".to_owned(), transports };
        let lines = [(); 3].map(|()| {
            let mut line = first.begin(peers.iter());
            line.renew(&peers, renewable.clone());
            line
        });
        let [mut ended, mut handed_over, mut left] = lines;
        for line in [&mut ended, &mut handed_over, &mut left] {
            line.written().await;
        }
        drop(ended);
        left.leave();
        drop(left);
        first.hand_over().await;
        drop(handed_over);
        stop.cancel();
        tasks.wait().await;

        let (outbound, mut sent) = mpsc::channel(8);
        let second = journal(&store);
        let (stop, tasks) = run(&second);
        let mut lines = Vec::new();
        let restore = |session: LeftSession| {
            assert_eq!(session.renewable, renewable);
            for side in Side::BOTH {
                assert_eq!(session.peers[side].pair, peers[side].pair);
                assert_eq!(session.peers[side].sid, peers[side].sid);
            }
            lines.push(second.go_on(&session));
            if lines.len() == 1 { Restored::Here } else { Restored::Lost }
        };
        // Another instance may lead by now.
        assert_eq!(second.settle(&outbound, || false, |_| panic!("its own")).await, []);
        assert!(sent.try_recv().is_err());
        let told = second.settle(&outbound, || true, restore).await;
        assert_eq!(told.len(), 2);
        assert_eq!(lines.len(), 2, "the session that ended is not there");
        for name in ["alice", "bob"] {
            let iq = sent.recv().await.unwrap().into_element();
            assert_eq!(iq.attr("to"), Some(format!("{name}@example.org/x").as_str()));
        }
        assert!(sent.try_recv().is_err(), "only those of the session that was not taken");
        lines[0].written().await;
        second.forget_told(told, || true).await;
        assert_eq!(second.open(false).await.unwrap(), []);
        assert!(!second.open(true).await.unwrap().is_empty());
        // What it has left itself, and nobody else has taken, it may take back.
        lines[0].leave();
        drop(lines);
        let mut again = Vec::new();
        let take = |session: LeftSession| {
            again.push(second.go_on(&session));
            Restored::Here
        };
        assert_eq!(second.settle(&outbound, || true, take).await, []);
        assert_eq!(again.len(), 1);
        drop(again);
        stop.cancel();
        tasks.wait().await;
        assert_eq!(second.open(true).await.unwrap(), []);
    }

    #[tokio::test]
    async fn no_more_is_kept_than_there_are_sessions() {
        let store = Store::open("sqlite::memory:", 1, true).await.unwrap();
        let journal = journal(&store);
        journal.run.lock().failing = true;
        for _ in 0..100 {
            let mut line = journal.begin(&[peer("alice"), peer("bob")]);
            line.write(&[peer("alice"), peer("carol")]);
            line.written().await;
        }
        assert_eq!(journal.run.lock().changes.len(), 0);
    }
}
