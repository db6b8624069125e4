//! Notices that this machine has left a network, or joined one: a cable is pulled, a laptop changes from one Wi-Fi to another.
//!
//! The kernel does not end connections whose address is gone. Without this, each would wait for its own timeout.

use std::{collections::BTreeSet, future::pending, net::IpAddr, time::Duration};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use super::direct::addresses;

/// How often the addresses are listed.
const LOOK: Duration = Duration::from_secs(1);

/// The addresses of this machine's interfaces that are up.
pub(crate) type OwnAddresses = BTreeSet<IpAddr>;

/// What this machine's addresses are, and when they change.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    /// `None` if nobody looks.
    addresses: Option<watch::Receiver<OwnAddresses>>,
}

impl Network {
    /// Begins to look, until all clones are dropped. A container or virtual machine of this one that starts or stops is no change.
    pub(crate) fn watch() -> Self {
        let [up, mut outer] = addresses::up().unwrap_or_default();
        let (sender, addresses) = watch::channel(up);
        tokio::spawn(async move {
            let mut look = interval(LOOK);
            look.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = look.tick() => {}
                    () = sender.closed() => return,
                }
                let Some(up) = addresses::up() else { continue };
                note(&sender, &mut outer, up);
            }
        });
        Self { addresses: Some(addresses) }
    }

    /// Returns a network that never changes.
    pub(crate) fn fixed() -> Self {
        Self { addresses: None }
    }

    /// Returns a network whose addresses a test sets.
    #[cfg(test)]
    pub(crate) fn of(addresses: watch::Receiver<OwnAddresses>) -> Self {
        Self { addresses: Some(addresses) }
    }

    /// Lets [`changed`](Self::changed) wait for the next change.
    pub(crate) fn forget_changes(&mut self) {
        if let Some(addresses) = &mut self.addresses {
            addresses.mark_unchanged();
        }
    }

    /// Waits until the addresses are others than when this was last called. A clone begins where the original was.
    pub(crate) async fn changed(&mut self) {
        let is_changed = match &mut self.addresses {
            Some(addresses) => addresses.changed().await.is_ok(),
            None => false,
        };
        if !is_changed {
            pending().await
        }
    }

    /// Returns whether an address is this machine's. `false` is certain; if nobody looks, it is `true`.
    pub(crate) fn has(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.addresses.as_ref().is_none_or(|addresses| addresses.borrow().contains(&ip))
    }
}

/// Keeps this machine's addresses, and tells of a change of those that lead to other machines.
fn note(
    addresses: &watch::Sender<OwnAddresses>,
    outer: &mut OwnAddresses,
    [up, new_outer]: [OwnAddresses; 2],
) {
    addresses.send_if_modified(|known| {
        *known = up;
        let is_changed = *outer != new_outer;
        if is_changed {
            tracing::debug!(?new_outer, "this machine's addresses have changed");
            *outer = new_outer;
        }
        is_changed
    });
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[tokio::test]
    async fn a_change_is_noticed_once() {
        let (sender, receiver) = watch::channel(OwnAddresses::new());
        let mut network = Network::of(receiver);
        let ip = IpAddr::from(Ipv4Addr::new(192, 0, 2, 7));
        assert!(!network.has(ip));
        sender.send_replace([ip].into());
        network.changed().await;
        assert!(
            network.has(ip) && network.has(Ipv4Addr::new(192, 0, 2, 7).to_ipv6_mapped().into())
        );
        tokio::select! {
            biased;
            () = network.changed() => panic!("nothing has changed"),
            () = std::future::ready(()) => {}
        }
    }

    #[tokio::test]
    async fn a_container_that_starts_is_no_change_and_its_addresses_are_known() {
        let [eth0, docker0] = ["192.0.2.7", "172.17.0.1"].map(|ip| ip.parse::<IpAddr>().unwrap());
        let (sender, receiver) = watch::channel(OwnAddresses::new());
        let mut outer = OwnAddresses::new();
        let mut network = Network::of(receiver);
        note(&sender, &mut outer, [[eth0].into(), [eth0].into()]);
        network.changed().await;
        note(&sender, &mut outer, [[eth0, docker0].into(), [eth0].into()]);
        assert!(network.has(docker0));
        tokio::select! {
            biased;
            () = network.changed() => panic!("nothing has changed outside"),
            () = std::future::ready(()) => {}
        }
        note(&sender, &mut outer, [[docker0].into(), [].into()]);
        network.changed().await;
        assert!(!network.has(eth0));
    }

    #[tokio::test]
    async fn a_machine_has_its_loopback_address_and_no_other_s() {
        let network = Network::watch();
        assert!(network.has(Ipv4Addr::LOCALHOST.into()));
        assert!(!network.has(Ipv4Addr::new(192, 0, 2, 7).into()));
        assert!(Network::fixed().has(Ipv4Addr::new(192, 0, 2, 7).into()));
    }
}
