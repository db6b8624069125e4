//! Finds users on the local network (XEP-0174, 3 and 4): DNS-SD of `_presence._tcp` over multicast DNS.
//!
//! Anyone can announce any name; only the key tells who a peer is.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, SocketAddrV6},
    time::Duration,
};

use jid::BareJid;
use mdns_sd::{IfKind, Receiver, ResolvedService, ScopedIp, ServiceDaemon, ServiceEvent};
use tokio::time::{Instant, timeout_at};

use crate::{display::shown, output::XtlsError};

/// The service that users announce (XEP-0174, 2).
pub const SERVICE: &str = "_presence._tcp.local.";
/// How long a peer is looked for.
const FIND: Duration = Duration::from_secs(10);
/// How long more addresses of a peer that was found are waited for.
const MORE: Duration = Duration::from_secs(1);
/// How many names a network can make us remember.
const MOST: usize = 200;

pub(super) fn bad(error: impl std::fmt::Display) -> XtlsError {
    XtlsError::failed(format!("multicast DNS: {error}"))
}

/// Starts to speak multicast DNS on these interfaces, or on all.
pub(super) fn daemon(interfaces: &[String]) -> Result<ServiceDaemon, XtlsError> {
    let daemon = ServiceDaemon::new().map_err(bad)?;
    if !interfaces.is_empty() {
        daemon.disable_interface(IfKind::All).map_err(bad)?;
        let names: Vec<_> = interfaces.iter().cloned().map(IfKind::Name).collect();
        daemon.enable_interface(names).map_err(bad)?;
    }
    Ok(daemon)
}

/// Returns the name before the service's: `user@machine`.
pub(crate) fn instance(fullname: &str) -> Option<String> {
    let start = fullname.len().checked_sub(SERVICE.len() + 1)?;
    let (escaped, rest) = fullname.split_at_checked(start)?;
    if !rest.strip_prefix('.')?.eq_ignore_ascii_case(SERVICE) {
        return None;
    }
    let mut name = String::new();
    let mut chars = escaped.chars();
    while let Some(c) = chars.next() {
        name.push(if c == '\\' { chars.next()? } else { c });
    }
    Some(name)
}

fn addresses(service: &ResolvedService) -> Vec<SocketAddr> {
    let port = service.get_port();
    let mut addresses: Vec<_> = service
        .get_addresses()
        .iter()
        .map(|address| match (address, address.to_ip_addr()) {
            (ScopedIp::V6(scoped), IpAddr::V6(ip)) => {
                SocketAddrV6::new(ip, port, 0, scoped.scope_id().index).into()
            }
            (_, ip) => SocketAddr::new(ip, port),
        })
        .collect();
    // IPv4 first: it needs no scope.
    addresses.sort_by_key(|address| (address.is_ipv6(), *address));
    addresses
}

async fn next(events: &Receiver<ServiceEvent>, until: Instant) -> Option<ServiceEvent> {
    timeout_at(until, events.recv_async()).await.ok()?.ok()
}

/// The search for a peer.
pub(super) struct Search<'a> {
    name: &'a BareJid,
    daemon: ServiceDaemon,
    events: Receiver<ServiceEvent>,
    until: Instant,
    found: BTreeSet<SocketAddr>,
    /// The other names on the network.
    others: BTreeSet<String>,
}

impl Drop for Search<'_> {
    fn drop(&mut self) {
        let _ = self.daemon.shutdown();
    }
}

impl<'a> Search<'a> {
    /// Begins to look for a peer by its name on the network.
    pub(super) fn start(name: &'a BareJid, interfaces: &[String]) -> Result<Self, XtlsError> {
        let daemon = daemon(interfaces)?;
        let events = daemon.browse(SERVICE).map_err(bad)?;
        let until = Instant::now() + FIND;
        let (found, others) = (BTreeSet::new(), BTreeSet::new());
        Ok(Self { name, daemon, events, until, found, others })
    }

    /// Returns more addresses of the peer, or `None` if no more will come. Each interface may bring some. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Vec<SocketAddr>> {
        loop {
            let event = next(&self.events, self.until).await?;
            let ServiceEvent::ServiceResolved(service) = event else { continue };
            let Some(instance) = instance(service.get_fullname()) else { continue };
            if !instance.eq_ignore_ascii_case(self.name.as_str()) {
                if self.others.len() < MOST {
                    self.others.insert(shown(&instance, None));
                }
                continue;
            }
            let mut more = addresses(&service);
            more.retain(|address| self.found.len() < MOST && self.found.insert(*address));
            if !more.is_empty() {
                self.until = self.until.min(Instant::now() + MORE);
                return Some(more);
            }
        }
    }

    /// Returns the error of a peer that is not there, with the names of those that are: exit status 3.
    pub(super) fn not_found(&self) -> XtlsError {
        let (name, others) = (self.name, Vec::from_iter(self.others.iter().cloned()));
        XtlsError::unreachable(match others.as_slice() {
            [] => format!("{name} is not on the local network, and nobody else is"),
            others => {
                format!("{name} is not on the local network; there are {}", others.join(", "))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_what_stands_before_the_service() {
        let name = |text: &str| instance(text);
        assert_eq!(name("juliet@pronto._presence._tcp.local.").unwrap(), "juliet@pronto");
        assert_eq!(name(r"j\.c@pronto._presence._tcp.local.").unwrap(), "j.c@pronto");
        assert_eq!(name("juliet@pronto._http._tcp.local."), None);
        assert_eq!(name("é"), None);
    }
}
