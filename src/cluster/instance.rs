//! What an instance knows of itself and of the others, and what it hands them.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use fingerpost_carry::shares::{Limits, Permit, Permits};
use fingerpost_wire::stanza::Stanza;
use jid::BareJid;
use minidom::Element;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

use super::{
    member::{LEASE, Member, Role},
    refusal::ClusterRefusal,
};
use crate::registry::store::{Store, records::Instance};

/// Stanzas that wait to be handed over, in all.
const QUEUE: usize = 4096;
/// Their weight: in all, those of one user, and how many times the free weight those of one domain.
const WAITING: Limits = Limits::new(64 << 20, 4 << 20, 8);
/// The weight of a stanza besides its elements: a user's share is also 256 stanzas.
const ITEM: usize = 16 << 10;

/// What other instances require this one to do.
#[derive(Debug)]
pub enum Event {
    /// This instance is about to lead: it reads what the last leader has recorded, and then answers.
    Recall(oneshot::Sender<()>),
    /// This instance leads from now on.
    Lead,
    /// Another one leads from now on. It has told the users of this one's sessions that these are over.
    Follow,
    /// Another one is to lead, because this one has no link. It may lead after the answer, and then tells the users of this
    /// one's sessions that these are over.
    Yield(oneshot::Sender<()>),
    /// A stanza that another instance has received.
    Stanza(Element),
    /// One of this instance's pings to itself came back to another instance.
    Echo(String),
    /// Users may have gone unseen.
    Check,
    /// This instance gives the lead up, to leave: its users have been told what concerns them. Another one may lead after the
    /// answer.
    Retire(oneshot::Sender<()>),
}

/// What an instance is among those of its component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterStanding {
    /// It knows of no other instance, and serves all users that reach it.
    Alone,
    /// It serves all users, and the others hand it what comes to them.
    Leads,
    /// It hands what comes to it to the one that leads.
    Follows,
    /// It takes no new sessions: no instance leads as far as it knows.
    Apart,
}

impl ClusterStanding {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Alone, Self::Leads, Self::Follows, Self::Apart];

    /// Its name in metrics and texts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::Leads => "leads",
            Self::Follows => "follows",
            Self::Apart => "apart",
        }
    }
}

#[derive(Debug)]
pub(super) struct ClusterView {
    /// The role, but for the lease.
    pub(super) role: Role,
    /// The end of the lease; `None` if there cannot be another instance.
    pub(super) until: Option<Instant>,
    /// The others that have recently given a sign of life.
    pub(super) others: Vec<Instance>,
    /// Whether the XMPP server has no cluster, so that this instance belongs to none.
    pub(super) alone: bool,
    /// Before the last sign of life that the database took; `None` where there is none to give.
    pub(super) beat: Option<Instant>,
    /// Whether the database is connected, as far as is known.
    pub(super) is_connected: bool,
    /// What the log last said that it is.
    pub(super) told: ClusterStanding,
}

impl ClusterView {
    fn role(&self) -> &Role {
        match &self.role {
            Role::Leads if self.until.is_some_and(|until| Instant::now() >= until) => {
                &Role::Follows(None)
            }
            role => role,
        }
    }

    fn standing(&self) -> ClusterStanding {
        match self.role() {
            Role::Leads if self.others.is_empty() => ClusterStanding::Alone,
            Role::Leads => ClusterStanding::Leads,
            Role::Follows(Some(_)) => ClusterStanding::Follows,
            Role::Follows(None) => ClusterStanding::Apart,
        }
    }

    /// Why it is that.
    fn why(&self, standing: ClusterStanding) -> &'static str {
        match standing {
            ClusterStanding::Alone => "no other instance is known",
            ClusterStanding::Leads => "this instance has the lead in the database",
            ClusterStanding::Follows => "another instance leads",
            ClusterStanding::Apart => {
                let is_old = self.beat.is_some_and(|beat| beat.elapsed() >= LEASE);
                if is_old || !self.is_connected {
                    "the database does not answer: this instance may not lead, nor find the one that does"
                } else {
                    "no instance of this component leads"
                }
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct ClusterParts {
    pub(super) component: BareJid,
    pub(super) id: String,
    pub(super) advertise: String,
    pub(super) store: Store,
    pub(super) linked: AtomicBool,
    pub(super) state: Mutex<ClusterView>,
    pub(super) queue: mpsc::Sender<Outgoing>,
    pub(super) permits: Permits,
    pub(super) retiring: Notify,
}

/// What waits to be handed over.
#[derive(Debug)]
pub(super) enum Outgoing {
    Stanza { stanza: Box<Stanza>, since: Instant, permit: Permit },
    Echo { id: String, since: Instant },
}

/// This instance among those of its component. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cluster(pub(super) Arc<ClusterParts>);

impl Cluster {
    /// Creates an instance that leads as long as it knows of no other, and the queue of what it hands over.
    pub(super) fn new(
        store: &Store,
        component: &BareJid,
        advertise: String,
    ) -> (Self, mpsc::Receiver<Outgoing>) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let state = ClusterView {
            role: Role::Leads,
            until: None,
            others: Vec::new(),
            alone: false,
            beat: None,
            is_connected: false,
            told: ClusterStanding::Alone,
        };
        let shared = ClusterParts {
            component: component.clone(),
            id: format!("{:016x}", rand::random::<u64>()),
            advertise,
            store: store.clone(),
            linked: AtomicBool::new(false),
            state: Mutex::new(state),
            queue: sender,
            permits: Permits::new(WAITING),
            retiring: Notify::new(),
        };
        (Self(Arc::new(shared)), queue)
    }

    /// Never held over an `.await`.
    pub(super) fn lock(&self) -> MutexGuard<'_, ClusterView> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the other instances that are alive. Says whether one is gone, or has lost its link, since the last time.
    pub(super) fn note(&self, instances: &[Instance]) -> bool {
        let is_other = |other: &&Instance| other.id != self.0.id && other.is_alive();
        let others: Vec<Instance> = instances.iter().filter(is_other).cloned().collect();
        let mut state = self.lock();
        if state.alone {
            return false;
        }
        let old = std::mem::replace(&mut state.others, others.clone());
        drop(state);
        let is_linked = |id: &str| others.iter().any(|other| other.id == id && other.linked);
        for new in others.iter().filter(|new| !old.iter().any(|old| old.id == new.id)) {
            info!(instance = new.id, leads = new.leads, "another instance serves this component");
            if new.advertise == self.0.advertise && !new.advertise.is_empty() {
                warn!(
                    advertise = new.advertise,
                    cure = "give each instance an address of its own in [socks5] advertise",
                    "another instance advertises the same SOCKS5 address: streams reach the wrong one"
                );
            }
        }
        old.iter().any(|old| old.linked && !is_linked(&old.id))
    }

    /// Notes a sign of life that the database has taken; `began`: before it was sent.
    pub(super) fn note_beat(&self, began: Instant) {
        let mut state = self.lock();
        (state.beat, state.is_connected) = (Some(began), true);
    }

    pub(super) fn note_loss(&self) {
        self.lock().is_connected = false;
    }

    /// Whether this instance handles all stanzas that come to it. Ask again for each: a process may stand still at any moment,
    /// and its lease be over when it goes on.
    pub fn leads(&self) -> bool {
        *self.lock().role() == Role::Leads
    }

    pub(super) fn role(&self) -> Role {
        self.lock().role().clone()
    }

    pub(super) fn set_role(&self, member: &Member) {
        let mut state = self.lock();
        if !state.alone {
            (state.role, state.until) = (member.role().clone(), member.until());
        }
    }

    /// Writes to the log what this instance is, if that has changed.
    pub(super) fn tell_standing(&self) {
        let mut state = self.lock();
        let standing = state.standing();
        let why = state.why(standing);
        if standing == std::mem::replace(&mut state.told, standing) {
            return;
        }
        let (role, instances) = (standing.name(), state.others.len() + 1);
        match standing {
            ClusterStanding::Apart => warn!(
                role,
                why,
                instances,
                "this instance takes no new sessions: requests are refused after 5 s, sessions under way go on"
            ),
            _ => info!(role, why, instances, "the role of this instance has changed"),
        }
    }

    /// Notes whether the XMPP server is alone. No other instance then reaches its users, though others may share the
    /// database: this one leads, and takes no part in what they do.
    pub fn set_alone(&self, alone: bool) {
        let mut state = self.lock();
        state.alone = alone;
        if alone {
            (state.role, state.others) = (Role::Leads, Vec::new());
            (state.until, state.beat) = (None, None);
        }
    }

    pub(super) fn is_alone(&self) -> bool {
        self.lock().alone
    }

    /// How many instances there are, this one too.
    pub fn count(&self) -> usize {
        self.lock().others.len() + 1
    }

    /// What this instance is among them.
    pub fn standing(&self) -> ClusterStanding {
        self.lock().standing()
    }

    /// How long ago the last sign of life was sent that the database has taken; `None` where none is given.
    pub fn heartbeat(&self) -> Option<Duration> {
        self.lock().beat.map(|beat| beat.elapsed())
    }

    /// Whether another instance can reach the users.
    pub fn has_heir(&self) -> bool {
        self.lock().others.iter().any(|other| other.linked)
    }

    /// Gives the lead up for good, and waits until another instance leads, for `patience` at most. What comes from then on is
    /// handed on, while the link still runs.
    pub async fn retire(&self, patience: Duration) {
        self.0.retiring.notify_one();
        let led = async {
            while self.standing() != ClusterStanding::Follows {
                sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(patience, led).await.is_err() {
            warn!(
                "no other instance has come to lead: requests may go without an answer meanwhile"
            );
        }
    }

    /// What keeps this instance from serving its users, if anything does.
    pub fn obstacle(&self) -> Option<&'static str> {
        let state = self.lock();
        let standing = state.standing();
        (standing == ClusterStanding::Apart).then(|| state.why(standing))
    }

    /// Notes whether the link to the XMPP server is up.
    pub fn set_linked(&self, linked: bool) {
        self.0.linked.store(linked, Ordering::Relaxed);
    }

    /// Hands a stanza to the instance that leads.
    ///
    /// # Errors
    /// What a user is told whose request cannot be handed over.
    pub fn hand_over(&self, stanza: &Stanza) -> Result<(), ClusterRefusal> {
        let weight = ITEM + stanza.weight();
        let permit = self
            .0
            .permits
            .take(&stanza.from.to_bare(), weight)
            .map_err(|_| ClusterRefusal::Busy)?;
        let (stanza, since) = (Box::new(stanza.clone()), Instant::now());
        let item = Outgoing::Stanza { stanza, since, permit };
        self.0.queue.try_send(item).map_err(|_| ClusterRefusal::Busy)
    }

    /// Takes the id of a ping that another program with this component's name has sent to itself. Says whether it may be
    /// another instance's: then it is told.
    pub fn echo(&self, id: &str) -> bool {
        !self.lock().others.is_empty()
            && self
                .0
                .queue
                .try_send(Outgoing::Echo { id: id.to_owned(), since: Instant::now() })
                .is_ok()
    }
}
