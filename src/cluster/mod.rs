//! Several Fingerposts that serve one component together: one for each node of a cluster, with one PostgreSQL.
//!
//! In a cluster of ejabberd each node gives the stanzas of its users to the component's link at that node, also their
//! answers. So what belongs together arrives at different instances. One instance leads: it alone knows sessions,
//! reachable users and SOCKS5 streams. The others follow: each hands the stanzas that come over its link to the leader,
//! through the database, in the order in which they came. What the leader sends goes out over the leader's own link; every
//! node reaches every user.
//!
//! `Member` decides who leads. A stanza is in the database until the leader fetches it, at most a minute; short ones
//! are sent as notifications and are in no table. Anyone who can use the database belongs to the cluster.

mod member;

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use jid::BareJid;
use minidom::Element;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::member::{Member, Role, Step};
use crate::{
    metrics,
    registry::store::{Backend, Heard, Instance, Meeting, Parcel, Store, StoreError},
    shares::{Limits, Permit, Permits},
    xmpp::{
        ns,
        stanza::{Refusal, Stanza},
        xml::{self, Received, StanzaReader},
    },
};

/// The time between two signs of life.
const BEAT: Duration = Duration::from_secs(1);
/// How long a new instance looks for the one that leads.
const JOIN: Duration = Duration::from_secs(5);
/// The time between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// How long a stanza waits for a leader, or for the database.
const HOLD: Duration = Duration::from_secs(5);
/// Beats between two removals of what is old.
const FORGET: u32 = 30;
/// Stanzas that wait to be handed over, in all.
const QUEUE: usize = 4096;
/// What they may weigh: in all, those of one user, and how many times as much as is free those of one domain.
const WAITING: Limits = Limits::new(64 << 20, 4 << 20, 8);
/// What a stanza weighs besides its elements: a user's share is 256 stanzas, too.
const ITEM: usize = 16 << 10;
/// Stanzas that are sent in one transaction.
const BATCH: usize = 256;

/// What is to be done because of the other instances.
#[derive(Debug)]
pub enum Event {
    /// This instance leads from now on.
    Lead,
    /// Another one leads from now on. `lost`: it has told the users of this one's sessions that these are over.
    Follow {
        /// Whether the sessions are lost, as above.
        lost: bool,
    },
    /// A stanza that another instance has received.
    Stanza(Element),
    /// One of this instance's pings to itself has come back to another instance.
    Echo(String),
    /// Users of another instance's node may have gone unseen.
    Check,
}

/// What waits to be handed over.
#[derive(Debug)]
enum Outgoing {
    Stanza { stanza: Box<Stanza>, since: Instant, _permit: Permit },
    Echo { id: String, since: Instant },
}

#[derive(Debug)]
struct State {
    role: Role,
    /// The others that have lately given a sign of life.
    others: Vec<Instance>,
    /// Whether the XMPP server is alone, so that this instance is one of no cluster.
    alone: bool,
}

#[derive(Debug)]
struct Shared {
    component: BareJid,
    id: String,
    advertise: String,
    store: Store,
    linked: AtomicBool,
    state: Mutex<State>,
    queue: mpsc::Sender<Outgoing>,
    permits: Permits,
}

/// This instance among those of its component. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cluster(Arc<Shared>);

/// The task of a [`Cluster`].
#[derive(Debug)]
pub struct Running {
    cluster: Cluster,
    member: Member,
    meeting: Option<Meeting>,
    /// The last connection, which may still have the lock.
    last: Option<Backend>,
    queue: mpsc::Receiver<Outgoing>,
    waiting: VecDeque<Outgoing>,
}

impl Cluster {
    /// Looks for other instances of the component. Without any, or if the database cannot be shared, this instance
    /// leads. `advertise` are the addresses that it announces to users.
    pub async fn join(store: &Store, component: &BareJid, advertise: String) -> (Self, Running) {
        let id = format!("{:016x}", rand::random::<u64>());
        let (sender, queue) = mpsc::channel(QUEUE);
        let mut member = Member::new(id.clone(), Instant::now());
        let state = State { role: Role::Leads, others: Vec::new(), alone: false };
        let cluster = Self(Arc::new(Shared {
            component: component.clone(),
            id: id.clone(),
            advertise,
            store: store.clone(),
            linked: AtomicBool::new(false),
            state: Mutex::new(state),
            queue: sender,
            permits: Permits::new(WAITING),
        }));
        let meeting = match cluster.first_look(&mut member).await {
            Ok(meeting) => meeting,
            Err(error) => {
                warn!(%error, "could not look for other instances of this component");
                None
            }
        };
        cluster.set_role(member.role());
        if let Role::Follows(leader) = member.role() {
            info!(instance = id, leader, "another instance leads: it is handed what comes here");
        }
        let running = Running {
            cluster: cluster.clone(),
            member,
            meeting,
            last: None,
            queue,
            waiting: VecDeque::new(),
        };
        (cluster, running)
    }

    /// Takes the lead if it is free. Else waits for a sign of life of the one who has it: its process may just have ended.
    async fn first_look(&self, member: &mut Member) -> Result<Option<Meeting>, StoreError> {
        let Shared { store, component, id, advertise, .. } = &*self.0;
        let Some(mut meeting) = store.meet(component, id).await? else { return Ok(None) };
        let began = Instant::now();
        loop {
            let won = meeting.try_lead().await?;
            member.tried(won);
            let instances = meeting.beat(won, false, advertise).await?;
            self.note(&instances);
            let is_alive = |other: &Instance| other.leads && other.age < began.elapsed();
            let alive: Vec<Instance> =
                instances.iter().filter(|other| is_alive(other)).cloned().collect();
            if won || !alive.is_empty() || began.elapsed() >= JOIN {
                member.look(&alive, Instant::now());
                member.joined(&instances);
                return Ok(Some(meeting));
            }
            sleep(LOOK).await;
        }
    }

    /// Never held over an `.await`.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores the live other instances. Returns whether one has gone, or has lost its link, since the last time.
    fn note(&self, instances: &[Instance]) -> bool {
        let is_other = |other: &&Instance| other.id != self.0.id && other.is_alive();
        let others: Vec<Instance> = instances.iter().filter(is_other).cloned().collect();
        let mut state = self.lock();
        if state.alone {
            return false;
        }
        let old = std::mem::replace(&mut state.others, others);
        drop(state);
        let is_linked = |id: &str| {
            instances.iter().any(|other| other.id == id && other.linked && other.is_alive())
        };
        for new in self.lock().others.iter().filter(|new| !old.iter().any(|old| old.id == new.id)) {
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

    /// Whether this instance handles all stanzas that come to it.
    pub fn leads(&self) -> bool {
        self.lock().role == Role::Leads
    }

    fn set_role(&self, role: &Role) {
        let mut state = self.lock();
        if !state.alone {
            state.role = role.clone();
        }
    }

    /// Notes whether the XMPP server has no cluster. Then no other instance reaches its users, though others may share
    /// the database: this one leads, and takes no part in theirs.
    pub fn set_alone(&self, alone: bool) {
        let mut state = self.lock();
        state.alone = alone;
        if alone {
            (state.role, state.others) = (Role::Leads, Vec::new());
        }
    }

    fn is_alone(&self) -> bool {
        self.lock().alone
    }

    /// Returns the number of instances, including this one.
    pub fn count(&self) -> usize {
        self.lock().others.len() + 1
    }

    /// Returns whether another instance can reach the users.
    pub fn has_heir(&self) -> bool {
        self.lock().others.iter().any(|other| other.linked)
    }

    /// Returns what keeps this instance from serving its users, if anything does.
    pub fn obstacle(&self) -> Option<&'static str> {
        let is_lost = self.lock().role == Role::Follows(None);
        is_lost.then_some("no instance of this component leads")
    }

    /// Notes whether the link to the XMPP server is up.
    pub fn set_linked(&self, linked: bool) {
        self.0.linked.store(linked, Ordering::Relaxed);
    }

    /// Passes a stanza to the leader.
    ///
    /// # Errors
    /// The refusal for the user, if the request cannot be handed over.
    pub fn hand_over(&self, stanza: &Stanza) -> Result<(), Refusal> {
        let weight = ITEM + stanza.weight();
        let permit = self.0.permits.take(&stanza.from.to_bare(), weight).map_err(|_| busy())?;
        let (stanza, since) = (Box::new(stanza.clone()), Instant::now());
        let item = Outgoing::Stanza { stanza, since, _permit: permit };
        self.0.queue.try_send(item).map_err(|_| busy())
    }

    /// Takes the id of a ping that another program with this component's name has sent to itself. Returns whether it
    /// may be another instance's; if so, notifies that one.
    pub fn echo(&self, id: &str) -> bool {
        !self.lock().others.is_empty()
            && self
                .0
                .queue
                .try_send(Outgoing::Echo { id: id.to_owned(), since: Instant::now() })
                .is_ok()
    }
}

fn busy() -> Refusal {
    Refusal::resource_constraint("The service is busy")
}

/// Waits for what others say, if there are others.
async fn notified(meeting: &mut Option<Meeting>) -> Result<Heard, StoreError> {
    match meeting {
        Some(meeting) => meeting.notified().await,
        None => std::future::pending().await,
    }
}

impl Running {
    /// Runs until `stop`, and then leaves. `outbound` carries refusals of stanzas that cannot be handed over.
    pub async fn run(
        mut self,
        events: mpsc::Sender<Event>,
        outbound: mpsc::Sender<Element>,
        stop: CancellationToken,
    ) {
        let mut beats = interval(BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut number = 0_u32;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                heard = notified(&mut self.meeting) => {
                    let done = match heard {
                        Ok(heard) => self.hear(heard, &events).await,
                        Err(error) => Err(error),
                    };
                    self.judge(done);
                }
                _ = beats.tick() => {
                    number = number.wrapping_add(1);
                    let done = self.beat(number, &events).await;
                    self.judge(done);
                }
                Some(item) = self.queue.recv(), if self.waiting.len() < BATCH => {
                    self.waiting.push_back(item);
                    while self.waiting.len() < BATCH && let Ok(item) = self.queue.try_recv() {
                        self.waiting.push_back(item);
                    }
                }
            }
            let done = self.flush(&events, &outbound).await;
            self.judge(done);
            self.expire(&outbound).await;
        }
        if let Some(meeting) = self.meeting.take()
            && let Err(error) = meeting.leave().await
        {
            warn!(%error, "could not leave the other instances in good order");
        }
    }

    /// After an error the connection is of no use.
    fn judge(&mut self, done: Result<(), StoreError>) {
        if let Err(error) = done {
            warn!(%error, "the connection to the other instances is lost");
            if let Some(meeting) = self.meeting.take() {
                self.last = Some(meeting.backend());
                self.member.disconnected();
            }
            self.cluster.set_role(self.member.role());
        }
    }

    async fn beat(&mut self, number: u32, events: &mpsc::Sender<Event>) -> Result<(), StoreError> {
        let shared = Arc::clone(&self.cluster.0);
        let Shared { store, component, id, advertise, linked, .. } = &*shared;
        if self.cluster.is_alone() {
            let Some(meeting) = self.meeting.take() else { return Ok(()) };
            self.member.disconnected();
            return meeting.leave().await;
        }
        if self.meeting.is_none() {
            // An error here is no news: it was told when the connection was lost.
            let Ok(Some(mut meeting)) = store.meet(component, id).await else { return Ok(()) };
            let step = self.member.reconnected(Instant::now());
            if let Some(last) = self.last {
                meeting.end(last).await?;
            }
            self.last = None;
            self.meeting = Some(meeting);
            self.take(step, events).await?;
        }
        let Some(meeting) = &mut self.meeting else { return Ok(()) };
        let linked = linked.load(Ordering::Relaxed);
        self.member.set_linked(linked, Instant::now());
        let instances = meeting.beat(self.member.holds(), linked, advertise).await?;
        if number.is_multiple_of(FORGET) && self.member.holds() {
            meeting.forget_old().await?;
        }
        let is_one_gone = self.cluster.note(&instances);
        let step = self.member.look(&instances, Instant::now());
        self.take(step, events).await?;
        if is_one_gone && self.member.holds() {
            let _ = events.send(Event::Check).await;
        }
        Ok(())
    }

    async fn take(&mut self, step: Step, events: &mpsc::Sender<Event>) -> Result<(), StoreError> {
        let Some(meeting) = self.meeting.as_mut().filter(|_| !self.cluster.is_alone()) else {
            return Ok(());
        };
        let led = self.cluster.leads();
        let mut lost = true;
        match step {
            Step::Nothing => {}
            Step::Try | Step::Evict => {
                if step == Step::Evict && meeting.evict().await? {
                    warn!(
                        "the instance that leads has gone silent: its connection to the database is ended"
                    );
                }
                self.member.tried(meeting.try_lead().await?);
            }
            Step::Yield => {
                lost = false;
                // Before another one leads, who would tell the users of these sessions that they are lost.
                let _ = events.send(Event::Follow { lost }).await;
                sleep(BEAT).await;
                meeting.yield_lead().await?;
                self.member.yielded();
            }
        }
        self.cluster.set_role(self.member.role());
        let leads = self.cluster.leads();
        if leads == led {
            return Ok(());
        }
        if leads {
            info!("this instance leads now");
            let _ = events.send(Event::Lead).await;
        } else {
            info!("another instance leads now");
            if lost {
                let _ = events.send(Event::Follow { lost }).await;
            }
        }
        Ok(())
    }

    async fn hear(&mut self, heard: Heard, events: &mpsc::Sender<Event>) -> Result<(), StoreError> {
        let text = match heard {
            Heard::Stanza(text) => Some(text),
            Heard::Written(number) => match &mut self.meeting {
                Some(meeting) => meeting.fetch(number).await?,
                None => None,
            },
            Heard::Echo(id) => {
                let _ = events.send(Event::Echo(id)).await;
                return Ok(());
            }
            Heard::LeadIsFree => {
                let step = self.member.lead_is_free(Instant::now());
                return self.take(step, events).await;
            }
        };
        let element = match &text {
            Some(text) => read(text).await,
            None => None,
        };
        match element {
            Some(element) => {
                let _ = events.send(Event::Stanza(element)).await;
            }
            None => metrics::STANZAS_DROPPED.count(&["cluster"]),
        }
        Ok(())
    }

    /// Hands over what waits, if it is known to whom.
    async fn flush(
        &mut self,
        events: &mpsc::Sender<Event>,
        outbound: &mpsc::Sender<Element>,
    ) -> Result<(), StoreError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let role = self.cluster.lock().role.clone();
        let leader = match role {
            Role::Leads => None,
            Role::Follows(Some(leader)) => Some(leader),
            Role::Follows(None) => return Ok(()),
        };
        let others: Vec<String> =
            self.cluster.lock().others.iter().map(|other| other.id.clone()).collect();
        let mut parcels = Vec::new();
        let mut sent = Vec::new();
        for item in std::mem::take(&mut self.waiting) {
            match (item, &leader) {
                (Outgoing::Echo { id, .. }, _) => {
                    let to_each = others.iter().map(|to| (to.clone(), Parcel::Echo(id.clone())));
                    parcels.extend(to_each);
                }
                // This instance has come to lead since.
                (Outgoing::Stanza { stanza, .. }, None) => {
                    let _ = events.send(Event::Stanza(stanza.element)).await;
                }
                (Outgoing::Stanza { stanza, since, _permit }, Some(leader)) => {
                    match write(&stanza.element) {
                        Some(text) => {
                            parcels.push((leader.clone(), Parcel::Stanza(text)));
                            sent.push((stanza, since, _permit));
                        }
                        None => {
                            let text = "The stanza cannot be passed on";
                            let refusal = Refusal::new("modify", "not-acceptable", text);
                            refuse(&stanza, &refusal, outbound).await;
                        }
                    }
                }
            }
        }
        let Some(meeting) = &mut self.meeting else {
            for (stanza, ..) in sent {
                refuse(&stanza, &unreachable(), outbound).await;
            }
            return Ok(());
        };
        if parcels.is_empty() {
            return Ok(());
        }
        let done = meeting.send(&parcels).await;
        if done.is_err() {
            // Whether they have arrived is not known: nothing is sent twice.
            for (stanza, ..) in sent {
                refuse(&stanza, &unreachable(), outbound).await;
            }
        }
        done
    }

    /// Refuses what has waited for too long.
    async fn expire(&mut self, outbound: &mpsc::Sender<Element>) {
        let is_late = |item: &Outgoing| match item {
            Outgoing::Stanza { since, .. } | Outgoing::Echo { since, .. } => {
                since.elapsed() >= HOLD
            }
        };
        while self.waiting.front().is_some_and(is_late) {
            if let Some(Outgoing::Stanza { stanza, .. }) = self.waiting.pop_front() {
                refuse(&stanza, &unreachable(), outbound).await;
            }
        }
        if self.meeting.is_none() {
            self.waiting.retain(|item| matches!(item, Outgoing::Stanza { .. }));
        }
    }
}

fn unreachable() -> Refusal {
    Refusal::new("wait", "remote-server-timeout", "The service is being taken over: try again")
}

/// Refuses a request; whatever else is counted.
async fn refuse(stanza: &Stanza, refusal: &Refusal, outbound: &mpsc::Sender<Element>) {
    if stanza.is_request() {
        let _ = outbound.send(stanza.refuse(refusal)).await;
    } else {
        metrics::STANZAS_DROPPED.count(&["cluster"]);
    }
}

/// A stanza as XML; `None` for one that no XML can carry.
fn write(element: &Element) -> Option<String> {
    let mut bytes = Vec::new();
    xml::write(element, &mut bytes).ok()?;
    String::from_utf8(bytes).ok()
}

/// Reads what [`write`] has written.
async fn read(text: &str) -> Option<Element> {
    let stream = format!(
        "<stream:stream xmlns='{}' xmlns:stream='{}' id='1'>{text}",
        ns::COMPONENT,
        ns::STREAM
    );
    let mut reader = StanzaReader::new(stream.as_bytes());
    let Ok(Received::Header(_)) = reader.read().await else { return None };
    match reader.read().await {
        Ok(Received::Element(element)) => Some(element),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stanza_is_read_as_it_was_written() {
        for text in [
            "<iq xmlns='jabber:client' type='set' id='&gt;&#13;\"' from='a@b/c' to='x.example'>\
             <data xmlns='http://jabber.org/protocol/ibb' seq='1' sid='s'>AAAA</data></iq>",
            "<message xmlns='jabber:client' from='a@b'><body>&lt;&amp;\u{1F600}</body><x xmlns='' a='b'/></message>",
            "<presence xmlns='jabber:client' from='a@b/c'/>",
        ] {
            let element: Element = text.parse().unwrap();
            assert_eq!(read(&write(&element).unwrap()).await, Some(element));
        }
        assert_eq!(read("<iq>").await, None);
        assert_eq!(read("").await, None);
    }

    #[tokio::test]
    async fn a_database_of_one_alone_has_one_that_leads() {
        let store = Store::open("sqlite::memory:", 1, true).await.unwrap();
        let component = BareJid::new("xtls.example.org").unwrap();
        let (cluster, running) = Cluster::join(&store, &component, String::new()).await;
        assert!(cluster.leads() && cluster.obstacle().is_none());
        // At a server that is alone an instance serves its users, even if others use the database.
        cluster.lock().role = Role::Follows(None);
        assert!(!cluster.leads() && cluster.obstacle().is_some());
        cluster.set_alone(true);
        assert!(cluster.leads() && cluster.obstacle().is_none() && !cluster.has_heir());
        assert_eq!((cluster.count(), cluster.echo("fingerpost-echo-1-1")), (1, false));
        let stop = CancellationToken::new();
        let (events, mut told) = mpsc::channel(1);
        let (outbound, _sent) = mpsc::channel(1);
        stop.cancel();
        running.run(events, outbound, stop).await;
        assert!(told.recv().await.is_none());
    }
}
