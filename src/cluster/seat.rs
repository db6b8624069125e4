//! The place of this instance in the database: it asks what [`Member`] wants to know, and does what it decides.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

use super::{
    desk,
    instance::{Cluster, ClusterParts, Event},
    member::{Member, MemberStep, Role},
    sightings::Sightings,
};
use crate::{
    metrics,
    registry::store::{
        Meeting,
        error::StoreError,
        records::{Backend, Heard, Parcel, Won},
    },
};

/// How long a new instance looks for the one that leads.
const JOIN: Duration = Duration::from_secs(5);
/// The time between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// How long a new leader reads what the last one has recorded before it serves users all the same: less than its lease.
const RECALL: Duration = Duration::from_secs(2);
/// Beats between two removals of what is old.
const FORGET: u32 = 30;

/// Sends an event and waits until it is done.
async fn done(events: &mpsc::Sender<Event>, event: impl FnOnce(oneshot::Sender<()>) -> Event) {
    let (done, waiting) = oneshot::channel();
    if events.send(event(done)).await.is_ok() {
        // An error means that the service is about to end.
        let _ = waiting.await;
    }
}

/// See above.
#[derive(Debug)]
pub(super) struct InstanceSeat {
    cluster: Cluster,
    member: Member,
    sightings: Sightings,
    meeting: Option<Meeting>,
    /// The last connection, which may still have the lock.
    last: Option<Backend>,
    /// Whether the connection that there is has worked.
    is_sound: bool,
    /// Whether the sessions and reachable users are known here, as a leader has them.
    serves: bool,
}

impl InstanceSeat {
    /// Looks who leads, and takes the lead if nobody does.
    pub(super) async fn take(cluster: Cluster) -> Self {
        let mut member = Member::new(cluster.0.id.clone(), Instant::now());
        if !cluster.0.store.lets_instances_meet() {
            member.set_sole();
        }
        let (sightings, meeting, last) = (Sightings::default(), None, None);
        let mut seat =
            Self { cluster, member, sightings, meeting, last, is_sound: false, serves: false };
        if let Err(error) = seat.join().await {
            warn!(%error, "could not look for other instances of this component");
            seat.meeting = None;
            seat.member.disconnected(Instant::now());
            seat.member.joined();
        }
        seat.cluster.set_role(&seat.member);
        if let Role::Follows(leader) = seat.member.role() {
            let instance = &seat.cluster.0.id;
            info!(instance, leader, "another instance leads: it is handed what comes here");
        }
        seat.cluster.tell_standing();
        seat.serves = *seat.member.role() == Role::Leads;
        seat
    }

    /// Takes the lead if it is free. Else waits for a sign of life of the one who has it: its process may just have ended.
    async fn join(&mut self) -> Result<(), StoreError> {
        let shared = Arc::clone(&self.cluster.0);
        let ClusterParts { store, component, id, advertise, .. } = &*shared;
        let Some(meeting) = store.meet(component, id).await? else { return Ok(()) };
        let meeting = self.meeting.insert(meeting);
        let began = Instant::now();
        loop {
            let sent = Instant::now();
            let rows = meeting.beat(self.member.holds(), false, advertise).await?;
            let now = Instant::now();
            let instances = self.sightings.aged(rows, now);
            self.cluster.note(&instances);
            self.cluster.note_beat(sent);
            let step = self.member.seek(&instances, began, now);
            if step == Some(MemberStep::Try) && !self.member.holds() {
                let won = meeting.try_lead(self.member.silent()).await?;
                self.member.tried(won, sent);
            }
            let is_over = step.is_none() || began.elapsed() >= JOIN;
            if self.member.holds() || is_over {
                // What one that leads, or none, has to do is done at its next sign of life.
                let _later = self.member.look(&instances, sent, now);
                self.member.joined();
                return Ok(());
            }
            sleep(LOOK).await;
        }
    }

    /// Waits for what others say, if there are others.
    ///
    /// # Cancel safety
    /// Nothing is lost if the future is dropped.
    pub(super) async fn notified(&mut self) -> Result<Heard, StoreError> {
        match &mut self.meeting {
            Some(meeting) => meeting.notified().await,
            None => std::future::pending().await,
        }
    }

    /// After an error the connection is of no use. Says whether another one is to be tried at once.
    pub(super) fn judge(&mut self, done: Result<(), StoreError>) -> bool {
        let Err(error) = done else { return false };
        warn!(%error, "lost the connection to the other instances");
        if let Some(meeting) = self.meeting.take() {
            self.last = Some(meeting.backend());
        }
        self.member.disconnected(Instant::now());
        self.cluster.note_loss();
        self.cluster.set_role(&self.member);
        self.cluster.tell_standing();
        std::mem::replace(&mut self.is_sound, false)
    }

    /// Gives a sign of life, and does what follows from those of the others.
    pub(super) async fn beat(
        &mut self,
        number: u32,
        events: &mpsc::Sender<Event>,
    ) -> Result<(), StoreError> {
        let shared = Arc::clone(&self.cluster.0);
        let ClusterParts { store, component, id, advertise, linked, .. } = &*shared;
        if self.cluster.is_alone() {
            let meeting = self.meeting.take();
            self.member.disconnected(Instant::now());
            self.settle(None, events).await;
            return match meeting {
                Some(meeting) => meeting.leave().await,
                None => Ok(()),
            };
        }
        if self.meeting.is_none() {
            // An error here is no news: it was told when the connection was lost.
            let Ok(Some(mut meeting)) = store.meet(component, id).await else {
                self.settle(None, events).await;
                return Ok(());
            };
            let step = self.member.reconnected(Instant::now());
            if let Some(last) = self.last {
                meeting.end(last).await?;
            }
            self.last = None;
            self.meeting = Some(meeting);
            self.step(step, events).await?;
        }
        let Some(meeting) = &mut self.meeting else { return Ok(()) };
        let linked = linked.load(Ordering::Relaxed);
        let began = Instant::now();
        self.member.set_linked(linked, began);
        let leads = *self.member.role() == Role::Leads;
        let rows = meeting.beat(leads, linked, advertise).await?;
        let now = Instant::now();
        if number.is_multiple_of(FORGET) && self.member.holds() {
            meeting.forget_old().await?;
        }
        let instances = self.sightings.aged(rows, now);
        let is_one_gone = self.cluster.note(&instances);
        self.cluster.note_beat(began);
        let step = self.member.look(&instances, began, now);
        self.step(step, events).await?;
        self.is_sound = true;
        if is_one_gone && self.member.holds() {
            let _ = events.send(Event::Check).await;
        }
        Ok(())
    }

    async fn step(
        &mut self,
        step: MemberStep,
        events: &mpsc::Sender<Event>,
    ) -> Result<(), StoreError> {
        let Some(meeting) = self.meeting.as_mut().filter(|_| !self.cluster.is_alone()) else {
            return Ok(());
        };
        let mut won = None;
        match step {
            MemberStep::Nothing => {}
            MemberStep::Try | MemberStep::Evict => {
                if step == MemberStep::Evict && meeting.evict(self.member.silent()).await? {
                    metrics::CLUSTER_EVICTIONS.count(&[]);
                    warn!(
                        "the instance that leads has gone silent: its connection to the database is ended"
                    );
                }
                let began = Instant::now();
                won = meeting.try_lead(self.member.silent()).await?;
                self.member.tried(won, began);
            }
            MemberStep::Yield => {
                self.member.yielded();
                self.cluster.set_role(&self.member);
                if std::mem::replace(&mut self.serves, false) {
                    metrics::CLUSTER_LEAD_CHANGES.count(&["yielded"]);
                    info!("this instance has no link to the XMPP server: another one is to lead");
                    done(events, Event::Yield).await;
                }
                meeting.yield_lead().await?;
            }
        }
        self.settle(won, events).await;
        Ok(())
    }

    /// Gives the lead up, if this instance has it, and hands on what still comes.
    pub(super) async fn retire(&mut self, events: &mpsc::Sender<Event>) -> Result<(), StoreError> {
        self.member.retired();
        let Some(meeting) = self.meeting.as_mut().filter(|_| self.serves) else { return Ok(()) };
        self.member.yielded();
        self.serves = false;
        self.cluster.set_role(&self.member);
        metrics::CLUSTER_LEAD_CHANGES.count(&["yielded"]);
        done(events, Event::Retire).await;
        meeting.yield_lead().await
    }

    /// Tells what has become of the lead.
    async fn settle(&mut self, won: Option<Won>, events: &mpsc::Sender<Event>) {
        let was_apart = !self.cluster.leads();
        let leads = self.cluster.is_alone() || *self.member.role() == Role::Leads;
        let served = std::mem::replace(&mut self.serves, leads);
        let is_taken = leads && (!served || won == Some(Won::Anew));
        if !is_taken {
            self.cluster.set_role(&self.member);
        }
        if served && (is_taken || !leads) {
            metrics::CLUSTER_LEAD_CHANGES.count(&["lost"]);
            info!("another instance leads now");
            let _ = events.send(Event::Follow).await;
        }
        if is_taken {
            // Until this is done, what comes over the link waits: a user who was reachable must not seem to be away.
            if timeout(RECALL, done(events, Event::Recall)).await.is_err() {
                warn!(
                    "the reachable users are still being read: some may seem to be away meanwhile"
                );
            }
            self.cluster.set_role(&self.member);
            metrics::CLUSTER_LEAD_CHANGES.count(&["taken"]);
            info!("this instance leads now");
            let _ = events.send(Event::Lead).await;
        } else if served && was_apart && self.cluster.leads() {
            info!("this instance leads again, and no other one has led meanwhile");
            let _ = events.send(Event::Check).await;
        }
        self.cluster.tell_standing();
    }

    /// Does what another instance has said.
    pub(super) async fn hear(
        &mut self,
        heard: Heard,
        events: &mpsc::Sender<Event>,
    ) -> Result<(), StoreError> {
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
            // The rows say whether the lead is free.
            Heard::Left => return self.beat(1, events).await,
        };
        let element = match &text {
            Some(text) => desk::read(text).await,
            None => None,
        };
        match element {
            Some(element) => {
                metrics::CLUSTER_HANDOVERS.count(&["received"]);
                let _ = events.send(Event::Stanza(element)).await;
            }
            None => metrics::STANZAS_DROPPED.count(&["cluster"]),
        }
        Ok(())
    }

    /// Sends parcels. Says whether there is a connection.
    pub(super) async fn send(&mut self, parcels: &[(String, Parcel)]) -> Result<bool, StoreError> {
        match &mut self.meeting {
            Some(meeting) => meeting.send(parcels).await.map(|()| true),
            None => Ok(false),
        }
    }

    /// Leaves the others in good order.
    pub(super) async fn leave(self) {
        if let Some(meeting) = self.meeting
            && let Err(error) = meeting.leave().await
        {
            warn!(%error, "could not leave the other instances in good order");
        }
    }
}
