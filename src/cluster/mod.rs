//! Several Fingerposts that serve one component together: one for each node of a cluster, with one PostgreSQL.
//!
//! In a cluster of ejabberd each node gives its users' stanzas, including answers, to the component's link at that
//! node. So stanzas that belong together arrive at different instances. One instance leads: only it has the sessions,
//! reachable users and SOCKS5 streams. The others follow: each passes the stanzas from its link to the leader, through
//! the database and in order. The leader's stanzas go out over its own link; every node reaches every user.
//!
//! `Member` decides who leads, [`ClusterTask`] asks the database. A leader that is cut off from the database stops to lead before
//! another one does, even if it knows of no other one: requests that come to it are refused meanwhile, and its sessions go on. A stanza is in the database until the leader fetches it, at most a minute; short ones
//! are sent as notifications and are in no table. Anyone who can use the database belongs to the cluster.

mod desk;
mod instance;
mod member;
pub mod refusal;
mod seat;
mod sightings;

use std::time::Duration;

use fingerpost_carry::outbound::Outbound;
use jid::BareJid;
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

pub use self::instance::{Cluster, ClusterStanding, Event};
use self::{desk::HandoverDesk, seat::InstanceSeat};
use crate::registry::store::Store;

/// The time between two signs of life.
const BEAT: Duration = Duration::from_secs(1);

/// The task of a [`Cluster`].
#[derive(Debug)]
pub struct ClusterTask {
    cluster: Cluster,
    seat: InstanceSeat,
    desk: HandoverDesk,
}

impl Cluster {
    /// Looks who else serves the component. Without anybody, or where the database belongs to one alone, this instance
    /// leads. `advertise`: what it tells users to connect to.
    pub async fn join(
        store: &Store,
        component: &BareJid,
        advertise: String,
    ) -> (Self, ClusterTask) {
        let (cluster, queue) = Self::new(store, component, advertise);
        let seat = InstanceSeat::take(cluster.clone()).await;
        let desk = HandoverDesk::new(cluster.clone(), queue);
        (cluster.clone(), ClusterTask { cluster, seat, desk })
    }
}

/// Sends what waits, if its receiver is known. Says, as [`InstanceSeat::judge`], whether another connection is to be tried at once.
async fn hand_over(
    seat: &mut InstanceSeat,
    desk: &mut HandoverDesk,
    events: &mpsc::Sender<Event>,
    outbound: &Outbound,
) -> bool {
    let mut again = false;
    if let Some(packed) = desk.pack(events, outbound).await {
        let done = desk.meanwhile(outbound, seat.send(packed.parcels())).await;
        packed.sent(matches!(done, Ok(true)), outbound).await;
        again = seat.judge(done.map(|_| ()));
    }
    desk.expire(outbound).await;
    again
}

impl ClusterTask {
    /// Runs until `stop`, and then leaves. `outbound` is for the refusals of what cannot be handed over.
    pub async fn run(
        self,
        events: mpsc::Sender<Event>,
        outbound: Outbound,
        stop: CancellationToken,
    ) {
        let Self { mut seat, mut desk, cluster } = self;
        let mut beats = interval(BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut number = 0_u32;
        loop {
            // The database may take its time, and what waits is refused all the same.
            let done = tokio::select! {
                () = stop.cancelled() => break,
                heard = seat.notified() => match heard {
                    Ok(heard) => desk.meanwhile(&outbound, seat.hear(heard, &events)).await,
                    Err(error) => Err(error),
                },
                _ = beats.tick() => {
                    number = number.wrapping_add(1);
                    desk.meanwhile(&outbound, seat.beat(number, &events)).await
                }
                () = cluster.0.retiring.notified() => {
                    desk.meanwhile(&outbound, seat.retire(&events)).await
                }
                () = desk.fill() => Ok(()),
            };
            let lost = seat.judge(done);
            if hand_over(&mut seat, &mut desk, &events, &outbound).await || lost {
                beats.reset_immediately();
            }
        }
        // What came over the link until it ended.
        desk.fill_now();
        hand_over(&mut seat, &mut desk, &events, &outbound).await;
        seat.leave().await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::{
        member::{LEASE, Role},
        *,
    };
    use crate::registry::store::records::Instance;

    #[tokio::test]
    async fn a_database_of_one_alone_has_one_that_leads() {
        let store = Store::open("sqlite::memory:", 1, true).await.unwrap();
        let component = BareJid::new("xtls.example.org").unwrap();
        let (cluster, running) = Cluster::join(&store, &component, String::new()).await;
        assert!(cluster.leads() && cluster.obstacle().is_none());
        assert_eq!((cluster.standing(), cluster.heartbeat()), (ClusterStanding::Alone, None));
        // At a server that is alone an instance serves its users, even if others use the database.
        cluster.lock().role = Role::Follows(None);
        assert!(!cluster.leads() && cluster.obstacle().is_some());
        assert_eq!(cluster.standing(), ClusterStanding::Apart);
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

    #[tokio::test]
    async fn a_lease_that_is_over_is_over_whatever_this_process_has_noticed() {
        let store = Store::open("sqlite::memory:", 1, true).await.unwrap();
        let component = BareJid::new("xtls.example.org").unwrap();
        let (cluster, _running) = Cluster::join(&store, &component, String::new()).await;
        let other = Instance {
            id: "other".to_owned(),
            leads: false,
            linked: true,
            advertise: String::new(),
            age: Duration::ZERO,
            watched: Duration::ZERO,
            beat: 0,
        };
        cluster.note(&[other]);
        cluster.lock().until = Some(Instant::now() + LEASE);
        assert_eq!((cluster.leads(), cluster.standing()), (true, ClusterStanding::Leads));
        cluster.lock().until = Some(Instant::now());
        assert_eq!((cluster.leads(), cluster.standing()), (false, ClusterStanding::Apart));
        assert!(cluster.obstacle().unwrap().contains("the database does not answer"));
        cluster.note_beat(Instant::now());
        assert!(cluster.obstacle().unwrap().contains("no instance of this component leads"));
    }
}
