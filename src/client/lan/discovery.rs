//! Who is on the local network (XEP-0174, 3 and 4): DNS-SD of `_presence._tcp` over multicast DNS.
//!
//! What is found is a claim of whoever has sent it; who it is, its key says.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, SocketAddrV6},
    time::Duration,
};

use jid::BareJid;
use mdns_sd::{
    DaemonEvent, IfKind, Receiver, ResolvedService, ScopedIp, ServiceDaemon, ServiceEvent,
    ServiceInfo,
};
use tokio::time::{Instant, timeout_at};

use crate::client::{display::shown, output::XtlsError};

/// The service that users announce (XEP-0174, 2).
pub const SERVICE: &str = "_presence._tcp.local.";
/// How long we look for others before we take a name.
const LOOK: Duration = Duration::from_millis(900);
/// How long our own announcement may take.
const ANNOUNCE: Duration = Duration::from_secs(3);
/// How long a peer is looked for.
const FIND: Duration = Duration::from_secs(10);
/// How long our goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);
/// How many names a network can make us remember.
const MOST: usize = 200;

fn bad(error: impl std::fmt::Display) -> XtlsError {
    XtlsError::failed(format!("multicast DNS: {error}"))
}

/// A peer that was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) name: BareJid,
    pub(super) addresses: Vec<SocketAddr>,
}

/// Starts to speak multicast DNS on these interfaces, or on all.
fn daemon(interfaces: &[String]) -> Result<ServiceDaemon, XtlsError> {
    let daemon = ServiceDaemon::new().map_err(bad)?;
    if !interfaces.is_empty() {
        daemon.disable_interface(IfKind::All).map_err(bad)?;
        let names: Vec<_> = interfaces.iter().cloned().map(IfKind::Name).collect();
        daemon.enable_interface(names).map_err(bad)?;
    }
    Ok(daemon)
}

/// Returns the name before the service's: `user@machine`.
pub(in crate::client) fn instance(fullname: &str) -> Option<String> {
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

/// Looks for a peer by its name on the network.
///
/// # Errors
/// Exit status 3 if it is not there, with the names of those who are.
pub(super) async fn find(name: &BareJid, interfaces: &[String]) -> Result<Found, XtlsError> {
    let daemon = daemon(interfaces)?;
    let events = daemon.browse(SERVICE).map_err(bad)?;
    let until = Instant::now() + FIND;
    let mut others = BTreeSet::new();
    let found = loop {
        let Some(event) = next(&events, until).await else { break None };
        let ServiceEvent::ServiceResolved(service) = event else { continue };
        let Some(instance) = instance(service.get_fullname()) else { continue };
        let addresses = addresses(&service);
        if instance.eq_ignore_ascii_case(name.as_str()) && !addresses.is_empty() {
            break Some(Found { name: name.clone(), addresses });
        }
        if others.len() < MOST {
            others.insert(shown(&instance, None));
        }
    };
    let _ = daemon.shutdown();
    found.ok_or_else(|| {
        let others: Vec<_> = others.into_iter().collect();
        XtlsError::unreachable(match others.as_slice() {
            [] => format!("{name} is not on the local network, and nobody else is"),
            others => {
                format!("{name} is not on the local network; there are {}", others.join(", "))
            }
        })
    })
}

/// Our presence on the network; it ends with [`Announced::end`].
pub(super) struct Announced {
    daemon: ServiceDaemon,
    events: Receiver<DaemonEvent>,
    fullname: String,
    /// What we are called.
    pub(super) name: BareJid,
}

impl Announced {
    /// Waits until another program takes our name, which multicast DNS calls a conflict.
    pub(super) async fn conflict(&self) -> XtlsError {
        loop {
            match self.events.recv_async().await {
                Ok(DaemonEvent::NameChange(_)) => {
                    return XtlsError::failed(format!(
                        "somebody else on the network is called {} too: choose another name with --name",
                        self.name
                    ));
                }
                Ok(_) => {}
                Err(_) => return bad("it has ended"),
            }
        }
    }

    /// Says goodbye.
    pub(super) async fn end(self) {
        let until = Instant::now() + GOODBYE;
        if let Ok(done) = self.daemon.unregister(&self.fullname) {
            let _ = timeout_at(until, done.recv_async()).await;
        }
        if let Ok(done) = self.daemon.shutdown() {
            let _ = timeout_at(until, done.recv_async()).await;
        }
    }
}

/// Announces that we listen on `port`, under a name that nobody else has: `user@machine`, else `user-1@machine` and so on.
pub(super) async fn announce(
    user: &str,
    machine: &str,
    port: u16,
    interfaces: &[String],
) -> Result<Announced, XtlsError> {
    let daemon = daemon(interfaces)?;
    let browsed = daemon.browse(SERVICE).map_err(bad)?;
    let until = Instant::now() + LOOK;
    let mut taken = BTreeSet::new();
    while let Some(event) = next(&browsed, until).await {
        if let ServiceEvent::ServiceFound(_, fullname) = event
            && let Some(name) = instance(&fullname)
            && taken.len() < MOST
        {
            taken.insert(name.to_lowercase());
        }
    }
    let _ = daemon.stop_browse(SERVICE);
    let candidates = std::iter::once(user.to_owned()).chain((1..).map(|n| format!("{user}-{n}")));
    let name = candidates
        .map(|user| format!("{user}@{machine}"))
        .find(|name| !taken.contains(&name.to_lowercase()))
        .unwrap_or_default();
    let name = BareJid::new(&name).map_err(|error| XtlsError::usage(format!("{name}: {error}")))?;
    // No personal data: only what another program needs.
    let txt = [("txtvers", "1"), ("port.p2pj", &port.to_string()), ("status", "avail")];
    let host = format!("{machine}.local.");
    let service = ServiceInfo::new(SERVICE, name.as_str(), &host, "", port, &txt[..])
        .map_err(bad)?
        .enable_addr_auto();
    let fullname = service.get_fullname().to_owned();
    let events = daemon.monitor().map_err(bad)?;
    daemon.register(service).map_err(bad)?;
    // Others see us from the announcement on, which comes when nobody has objected.
    let until = Instant::now() + ANNOUNCE;
    while let Ok(Ok(event)) = timeout_at(until, events.recv_async()).await {
        if matches!(&event, DaemonEvent::Announce(who, _) if who.eq_ignore_ascii_case(&fullname)) {
            break;
        }
    }
    Ok(Announced { daemon, events, fullname, name })
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
