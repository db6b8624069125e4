//! Finds the XMPP server of a domain by its SRV records (RFC 6120, section 3.2.1), including those for TLS from the
//! first byte (XEP-0368).
//!
//! It asks the system's resolver, or the one that the environment variable [`RESOLVER`] names.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::RData,
};
use tokio::time::timeout;

use super::error::{Detail, Error};

/// The environment variable with the address of a DNS server to ask instead of the system's, such as `127.0.0.1:53`.
pub(super) const RESOLVER: &str = "XTLS_RESOLVER";
/// How long to wait for the answers. Without them the domain itself is tried.
const LOOKUP: Duration = Duration::from_secs(5);
/// The most servers that are tried; real domains have fewer.
const MOST: usize = 16;
/// The clients' port if no record names one.
const PORT: u16 = 5222;

/// A server to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// `host:port`, or `[IPv6]:port`.
    pub(super) address: String,
    /// TLS begins with the first byte (XEP-0368), not with STARTTLS.
    pub(super) is_direct: bool,
}

/// An SRV record (RFC 2782).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    priority: u16,
    weight: u16,
    port: u16,
    /// The host; empty if the domain does not offer the service.
    host: String,
    is_direct: bool,
}

/// The answer to a query for the records of one service.
#[derive(Debug)]
enum SrvAnswer {
    Records(Vec<Record>),
    /// The domain has none.
    None,
    /// The query failed.
    Failed,
}

/// Returns the servers of a domain, given by its A-labels, in the order in which to try them.
///
/// # Errors
/// If the domain says that it has none.
pub(super) async fn servers(domain: &str) -> Result<Vec<Target>, Error> {
    let itself = || vec![Target { address: format!("{domain}:{PORT}"), is_direct: false }];
    if domain.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
        return Ok(itself());
    }
    let Some(resolver) = resolver()? else { return Ok(itself()) };
    let ask = async |service: &str, is_direct| {
        let name = format!("{service}._tcp.{domain}.");
        let asked = timeout(LOOKUP, resolver.srv_lookup(name.as_str())).await;
        let answer = match asked {
            Ok(Ok(lookup)) => read(lookup.answers().iter().map(|record| &record.data), is_direct),
            Ok(Err(error)) if error.is_no_records_found() => SrvAnswer::None,
            Ok(Err(error)) => {
                tracing::debug!(name, %error, "no answer to the DNS query for the XMPP server");
                SrvAnswer::Failed
            }
            Err(_) => SrvAnswer::Failed,
        };
        tracing::debug!(name, ?answer, "looked up the XMPP server");
        answer
    };
    let answers = tokio::join!(ask("_xmpp-client", false), ask("_xmpps-client", true));
    match choose(answers.0, answers.1, || rand::random_range(0.0..1.0)) {
        Choice::Servers(targets) => Ok(targets),
        Choice::Domain => Ok(itself()),
        Choice::None => {
            Err(Error::login(format!("{domain} has no XMPP service, say its DNS records")))
        }
    }
}

/// Returns the addresses of a host, by the resolver of [`RESOLVER`] or the system's.
///
/// # Errors
/// If it has none.
pub(super) async fn addresses(address: &str) -> io::Result<Vec<SocketAddr>> {
    let special = special().map_err(io::Error::other)?;
    let (Some(server), Some((host, port))) = (special, address.rsplit_once(':')) else {
        return Ok(tokio::net::lookup_host(address).await?.collect());
    };
    let port = port.parse().map_err(|_| io::Error::other("the port is not a number"))?;
    let resolver = at(server).map_err(io::Error::other)?;
    let host = host.trim_matches(['[', ']']);
    let found = resolver.lookup_ip(host).await.map_err(io::Error::other)?;
    Ok(found.iter().map(|ip| SocketAddr::new(ip, port)).collect())
}

/// Returns the DNS server of [`RESOLVER`].
fn special() -> Result<Option<SocketAddr>, Error> {
    let Some(text) = std::env::var(RESOLVER).ok().filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    text.parse().map(Some).map_err(|_| {
        Error::login(format!("{RESOLVER}: expected an address such as 127.0.0.1:53, found {text}"))
    })
}

fn at(server: SocketAddr) -> Result<TokioResolver, NetError> {
    let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
    for connection in &mut connections {
        connection.port = server.port();
    }
    let server = NameServerConfig::new(server.ip(), true, connections);
    let config = ResolverConfig::from_name_servers(vec![server]);
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).build()
}

/// Returns a resolver; `None` if this machine has none.
fn resolver() -> Result<Option<TokioResolver>, Error> {
    if let Some(server) = special()? {
        return at(server).map(Some).map_err(|error| Error::login(Detail::of(error)));
    }
    let system = TokioResolver::builder_tokio().and_then(|builder| builder.build());
    Ok(system.inspect_err(|error| tracing::debug!(%error, "no resolver for SRV records")).ok())
}

fn read<'a>(data: impl Iterator<Item = &'a RData>, is_direct: bool) -> SrvAnswer {
    let records = data.filter_map(|data| match data {
        RData::SRV(srv) => Some(Record {
            priority: srv.priority,
            weight: srv.weight,
            port: srv.port,
            host: srv.target.to_ascii().trim_end_matches('.').to_owned(),
            is_direct,
        }),
        // The aliases that led to it.
        _ => None,
    });
    let records: Vec<_> = records.collect();
    if records.is_empty() { SrvAnswer::None } else { SrvAnswer::Records(records) }
}

/// What to try next.
#[derive(Debug, PartialEq, Eq)]
enum Choice {
    Servers(Vec<Target>),
    /// The domain itself.
    Domain,
    /// Nothing: the domain does not offer the service.
    None,
}

/// Chooses from the records of `_xmpp-client` (`starttls`) and those of `_xmpps-client` (`direct`), which count the
/// same (XEP-0368, section 3). `chance` is from 0 to 1.
fn choose(starttls: SrvAnswer, direct: SrvAnswer, chance: impl FnMut() -> f64) -> Choice {
    let usable = |answer: SrvAnswer| match answer {
        SrvAnswer::Records(records) => {
            let there: Vec<_> =
                records.into_iter().filter(|record| !record.host.is_empty()).collect();
            let is_refused = there.is_empty();
            (there, is_refused)
        }
        SrvAnswer::None | SrvAnswer::Failed => (Vec::new(), false),
    };
    let ((mut records, is_refused), (direct, _)) = (usable(starttls), usable(direct));
    records.extend(direct);
    if records.is_empty() {
        return if is_refused { Choice::None } else { Choice::Domain };
    }
    let mut targets = Vec::new();
    for Record { host, port, is_direct, .. } in order(records, chance) {
        let target = Target { address: format!("{host}:{port}"), is_direct };
        if !targets.contains(&target) && targets.len() < MOST {
            targets.push(target);
        }
    }
    Choice::Servers(targets)
}

/// Orders the records by priority; equal ones by chance, in proportion to their weights (RFC 2782).
fn order(mut records: Vec<Record>, mut chance: impl FnMut() -> f64) -> Vec<Record> {
    // Records without weight come first, so that they have a chance at all.
    records.sort_by_key(|record| (record.priority, record.weight > 0));
    let mut ordered = Vec::with_capacity(records.len());
    while let Some(first) = records.first() {
        let equals = records.iter().take_while(|record| record.priority == first.priority);
        let total: u32 = equals.clone().map(|record| u32::from(record.weight)).sum();
        let wanted = chance() * f64::from(total);
        let mut sum = 0;
        let chosen = equals
            .take_while(|record| {
                sum += u32::from(record.weight);
                f64::from(sum) < wanted
            })
            .count();
        ordered.push(records.remove(chosen.min(records.len() - 1)));
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(priority: u16, weight: u16, host: &str) -> Record {
        Record { priority, weight, port: 5222, host: host.to_owned(), is_direct: false }
    }

    fn direct(priority: u16, host: &str) -> Record {
        Record { port: 5223, is_direct: true, ..record(priority, 0, host) }
    }

    fn addresses(choice: Choice) -> Vec<(String, bool)> {
        let Choice::Servers(targets) = choice else { panic!("{choice:?}") };
        targets.into_iter().map(|target| (target.address, target.is_direct)).collect()
    }

    fn hosts(records: Vec<Record>, chance: f64) -> Vec<String> {
        order(records, || chance).into_iter().map(|record| record.host).collect()
    }

    #[test]
    fn priorities_come_in_their_order_and_weights_decide_among_equals() {
        let records = || {
            vec![record(20, 100, "c"), record(10, 10, "a"), record(10, 30, "b"), record(10, 0, "z")]
        };
        assert_eq!(hosts(records(), 0.0), ["z", "a", "b", "c"]);
        assert_eq!(hosts(records(), 0.2), ["a", "b", "z", "c"]);
        assert_eq!(hosts(records(), 0.999), ["b", "a", "z", "c"]);
        // In proportion: of 4,000 evenly spread draws, three quarters go to the record with three times the weight.
        let first_is_b = (0..4000).filter(|draw| {
            let records = vec![record(1, 10, "a"), record(1, 30, "b")];
            hosts(records, (f64::from(*draw) + 0.5) / 4000.0)[0] == "b"
        });
        assert_eq!(first_is_b.count(), 3000);
    }

    #[test]
    fn both_services_are_one_list() {
        let starttls = SrvAnswer::Records(vec![record(10, 0, "b"), record(30, 0, "d")]);
        let both =
            choose(starttls, SrvAnswer::Records(vec![direct(5, "a"), direct(20, "c")]), || 0.5);
        let expected = [("a:5223", true), ("b:5222", false), ("c:5223", true), ("d:5222", false)];
        let expected = expected.map(|(address, is_direct)| (address.to_owned(), is_direct));
        assert_eq!(addresses(both), expected);
    }

    #[test]
    fn a_root_target_means_that_there_is_no_such_service() {
        let none = || SrvAnswer::Records(vec![record(0, 0, "")]);
        for other in [SrvAnswer::None, SrvAnswer::Failed, none()] {
            assert_eq!(choose(none(), other, || 0.5), Choice::None);
        }
        // One of the two may exist.
        let only = choose(none(), SrvAnswer::Records(vec![direct(5, "a")]), || 0.5);
        assert_eq!(addresses(only), [("a:5223".to_owned(), true)]);
        let only = choose(SrvAnswer::Records(vec![record(5, 0, "a")]), none(), || 0.5);
        assert_eq!(addresses(only), [("a:5222".to_owned(), false)]);
        assert_eq!(choose(SrvAnswer::None, none(), || 0.5), Choice::Domain);
    }

    #[test]
    fn without_records_the_domain_itself_is_tried() {
        for answers in [
            (SrvAnswer::None, SrvAnswer::None),
            (SrvAnswer::Failed, SrvAnswer::Failed),
            (SrvAnswer::None, SrvAnswer::Failed),
            (SrvAnswer::Failed, SrvAnswer::None),
        ] {
            assert_eq!(choose(answers.0, answers.1, || 0.5), Choice::Domain);
        }
    }

    #[test]
    fn there_is_an_end_to_what_is_tried() {
        let many = (0..200).map(|n| record(n, 0, &format!("h{n}"))).collect();
        assert_eq!(
            addresses(choose(SrvAnswer::Records(many), SrvAnswer::None, || 0.5)).len(),
            MOST
        );
        let same = vec![record(1, 1, "a"), record(2, 2, "a")];
        assert_eq!(addresses(choose(SrvAnswer::Records(same), SrvAnswer::None, || 0.5)).len(), 1);
    }

    #[tokio::test]
    async fn an_address_is_not_asked_for() {
        for (domain, address) in [("127.0.0.1", "127.0.0.1:5222"), ("[::1]", "[::1]:5222")] {
            let expected = Target { address: address.to_owned(), is_direct: false };
            assert_eq!(servers(domain).await.unwrap(), [expected]);
        }
    }
}
