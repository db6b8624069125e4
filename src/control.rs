//! What admins can see and change while the service runs: sessions, blocks, draining, the configuration, the log level.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use fingerpost_wire::jingle::Reason;
use jid::BareJid;
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};
use tracing::info;

use crate::{
    access::Doors,
    logging::LogLevel,
    registry::{
        KeyNotice,
        model::Actor,
        store::{Store, error::StoreError},
    },
    relay::table::{TransferId, TransferTable},
    sessions::{Broker, SessionKey},
};

/// Asks for a reload of the configuration. The answer lists the changed settings that need a restart, or says what is
/// wrong with the file.
#[derive(Debug)]
pub struct Reload(pub oneshot::Sender<Result<Vec<String>, String>>);

/// A session between two users, brokered or a plain transfer over SOCKS5.
#[derive(Clone, Debug)]
pub struct SessionRow {
    /// Its name, here and in the log.
    pub id: String,
    /// Initiator and responder; requester and target.
    pub users: [BareJid; 2],
    /// Both legs' transports, once they are up.
    pub legs: Option<[&'static str; 2]>,
    /// What finds it.
    key: SessionRowKey,
    /// The time since the session began.
    pub age: Duration,
    /// Bytes so far, both directions.
    pub bytes: u64,
    /// Whether it is brokered and nothing encrypts it from end to end.
    pub is_plain: bool,
}

/// What finds a session, however many there are.
#[derive(Clone, Debug)]
enum SessionRowKey {
    Brokered(SessionKey),
    Plain(TransferId),
}

impl SessionRow {
    /// Returns whether it is brokered.
    pub fn is_brokered(&self) -> bool {
        matches!(self.key, SessionRowKey::Brokered(_))
    }
}

/// The controls. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Control {
    doors: Doors,
    broker: Broker,
    table: TransferTable,
    store: Store,
    log: LogLevel,
    draining: Arc<AtomicBool>,
    notices: mpsc::Sender<KeyNotice>,
    reloads: mpsc::Sender<Reload>,
    started: Instant,
}

/// The parts under control, and the channels to the tasks that carry out a request.
#[derive(Debug)]
pub struct Parts {
    /// Decides who may use the service.
    pub doors: Doors,
    /// Brokered sessions.
    pub broker: Broker,
    /// Plain transfers.
    pub table: TransferTable,
    /// Blocks and the audit log.
    pub store: Store,
    /// The level of the log.
    pub log: LogLevel,
    /// Chat messages to users.
    pub notices: mpsc::Sender<KeyNotice>,
    /// To the task that can read the configuration.
    pub reloads: mpsc::Sender<Reload>,
}

impl Control {
    /// Controls over `parts`.
    pub fn new(parts: Parts) -> Self {
        let Parts { doors, broker, table, store, log, notices, reloads } = parts;
        let draining = Arc::default();
        let started = Instant::now();
        Self { doors, broker, table, store, log, draining, notices, reloads, started }
    }

    /// Returns the rules that decide who may use the service.
    pub fn doors(&self) -> &Doors {
        &self.doors
    }

    /// Returns the level of the log.
    pub fn log(&self) -> &LogLevel {
        &self.log
    }

    /// Returns the table of plain transfers, which has the counters of all streams.
    pub fn table(&self) -> &TransferTable {
        &self.table
    }

    /// Returns the database.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Returns when the service started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Returns all sessions, or those of one user; the oldest first.
    pub fn sessions(&self, user: Option<&BareJid>) -> Vec<SessionRow> {
        let brokered = self.broker.list().into_iter().map(|session| SessionRow {
            id: session.key.id.clone(),
            users: session.users,
            legs: session.legs.map(|legs| legs.map(|leg| leg.as_str())),
            key: SessionRowKey::Brokered(session.key),
            age: session.age,
            bytes: session.bytes,
            is_plain: session.is_plain,
        });
        let plain = self.table.list().into_iter().map(|transfer| SessionRow {
            id: format!("t{}", transfer.id),
            users: transfer.users,
            legs: Some(["s5b"; 2]),
            key: SessionRowKey::Plain(transfer.id),
            age: transfer.age,
            bytes: transfer.bytes,
            is_plain: false,
        });
        let mut all: Vec<SessionRow> = brokered
            .chain(plain)
            .filter(|session| user.is_none_or(|user| session.users.contains(user)))
            .collect();
        all.sort_by_key(|session| std::cmp::Reverse(session.age));
        all
    }

    /// Ends a session and shows `text` to both users. A plain transfer has no session-terminate, so its users get a
    /// chat message. Returns whether the session existed.
    pub fn end(&self, session: &SessionRow, text: &str) -> bool {
        let transfer = match &session.key {
            SessionRowKey::Brokered(key) => {
                return self.broker.end_session(key, Reason::Cancel, text);
            }
            SessionRowKey::Plain(transfer) => *transfer,
        };
        let ended = self.table.end(transfer);
        if ended {
            let [a, b] = &session.users;
            for (user, peer) in [(a, b), (b, a)] {
                let text = format!("Your transfer with {peer} has ended: {text}");
                let _ = self.notices.try_send(KeyNotice { owner: user.clone(), text });
            }
        }
        ended
    }

    /// Ends the sessions of users who have lost access, and returns how many.
    pub fn enforce(&self) -> usize {
        let barred = |session: &SessionRow| {
            let [first, second] = &session.users;
            !self.doors.admits(first) || self.doors.blocks(second)
        };
        let text = "One of the users has lost access to the service";
        let sessions = self.sessions(None);
        sessions.iter().filter(|session| barred(session) && self.end(session, text)).count()
    }

    /// Blocks a user or a domain on behalf of an admin. The block survives a restart. Returns whether it is new, and
    /// how many sessions it ended.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn block(
        &self,
        jid: &BareJid,
        reason: &str,
        admin: &BareJid,
        now: OffsetDateTime,
    ) -> Result<(bool, usize), StoreError> {
        let fresh = self.store.block(jid, reason, &Actor::Admin(admin.clone()), now).await?;
        let ended = self.refresh().await?;
        info!(%jid, %admin, ended, "blocked");
        Ok((fresh, ended))
    }

    /// Removes a block by command, and returns whether there was one.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn unblock(
        &self,
        jid: &BareJid,
        admin: &BareJid,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        let was = self.store.unblock(jid, &Actor::Admin(admin.clone()), now).await?;
        self.refresh().await?;
        info!(%jid, %admin, "no longer blocked");
        Ok(was)
    }

    /// Reads the block list again and ends the sessions of blocked users. Returns how many sessions ended.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn refresh(&self) -> Result<usize, StoreError> {
        self.doors.set_commanded(self.store.blocks().await?);
        Ok(self.enforce())
    }

    /// Returns whether new sessions are refused.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Refuses new sessions from now on, or accepts them again. Running sessions continue.
    pub fn drain(&self, refuse: bool) {
        self.draining.store(refuse, Ordering::Relaxed);
        self.broker.refuse_sessions(refuse);
        self.table.refuse_activations(refuse);
        info!(refuse, "new sessions");
    }

    /// Reloads the configuration. Returns the changed settings that need a restart.
    ///
    /// # Errors
    /// What is wrong with it, in one line.
    pub async fn reload(&self) -> Result<Vec<String>, String> {
        let (answer, told) = oneshot::channel();
        let gone = |_| "the service is being stopped".to_owned();
        self.reloads.send(Reload(answer)).await.map_err(|_| gone(()))?;
        told.await.map_err(|_| gone(()))?
    }
}
