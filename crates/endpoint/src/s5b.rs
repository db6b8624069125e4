//! SOCKS5 candidates: those that are offered, and the one that is used (XEP-0260, 2.4).

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use fingerpost_carry::iq::{Answer, random_id};
use fingerpost_wire::{dst_addr::DstAddr, jingle::Action, ns, stanza::RequestKind, xml};
use jid::Jid;
use minidom::Element;
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use super::{
    application::first_content,
    direct::addresses::{self, Scope},
    endpoint::Endpoint,
    error::Error,
    session::{STEP, Session},
    socks5,
    streamhost::Streamhost,
};

/// How long a connection to a streamhost waits for preferred ones (RFC 8305, section 5).
const PATIENCE: Duration = Duration::from_millis(250);
/// The pause before the next candidate is dialled beside those that have not answered (RFC 8305, section 5).
const STAGGER: Duration = Duration::from_millis(250);
/// How long the server's services may take to name their streamhosts, and how long once they are known.
const SERVICES: Duration = Duration::from_secs(15);
const SERVICES_AGAIN: Duration = Duration::from_secs(2);
/// How many addresses are dialled for the candidates of a peer, and how many names are looked up. Honest peers name fewer.
const MOST_DIALS: usize = 16;
const MOST_NAMES: usize = 4;
/// The type preferences of candidates (XEP-0260, 2.2), and the highest local preference.
const DIRECT: u32 = 126;
const PROXY: u32 = 10;
const LOCAL_PREFERENCE: u32 = 65_535;

/// A candidate of a SOCKS5 transport.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    cid: String,
    host: String,
    port: u16,
    jid: Jid,
    priority: u32,
    proxy: bool,
}

/// What we offer for a stream.
#[derive(Debug, Default)]
pub(super) struct OwnCandidates {
    /// All candidates.
    pub(super) all: Vec<Candidate>,
    /// The listener behind those that are addresses of this machine.
    pub(super) host: Option<Streamhost>,
}

impl OwnCandidates {
    /// Returns the addresses of this machine, at which it listens for the stream of these hashes, before the proxies.
    pub(super) fn with_host(proxies: Vec<Candidate>, me: &Jid, hashes: Vec<String>) -> Self {
        let host = Streamhost::open(hashes).map_err(|error| {
            tracing::debug!(%error, "cannot listen for the peer");
        });
        let Ok(host) = host else { return Self { all: proxies, host: None } };
        let addresses = addresses::offered(Scope::Network);
        let own = addresses.into_iter().zip(0..).map(|(address, place)| Candidate {
            cid: random_id(),
            host: address.to_string(),
            port: host.port(),
            jid: me.clone(),
            priority: (DIRECT << 16) + LOCAL_PREFERENCE - place,
            proxy: false,
        });
        Self { all: own.chain(proxies).collect(), host: Some(host) }
    }
}

/// Returns a SOCKS5 transport with these candidates.
pub(super) fn transport(sid: &str, dstaddr: &str, candidates: &[Candidate]) -> Element {
    let mut transport = xml::element(
        "transport",
        ns::JINGLE_S5B,
        &[("sid", sid), ("dstaddr", dstaddr), ("mode", "tcp")],
    );
    for candidate in candidates {
        transport.append_child(xml::element(
            "candidate",
            ns::JINGLE_S5B,
            &[
                ("cid", &candidate.cid),
                ("host", &candidate.host),
                ("jid", candidate.jid.as_str()),
                ("port", &candidate.port.to_string()),
                ("priority", &candidate.priority.to_string()),
                ("type", if candidate.proxy { "proxy" } else { "direct" }),
            ],
        ));
    }
    transport
}

fn read_candidates(transport: &Element) -> Vec<Candidate> {
    let mut candidates: Vec<Candidate> = transport
        .children()
        .filter(|child| child.is("candidate", ns::JINGLE_S5B))
        .filter_map(|child| {
            Some(Candidate {
                cid: child.attr("cid")?.to_owned(),
                host: child.attr("host")?.to_owned(),
                port: child.attr("port").unwrap_or("1080").parse().ok()?,
                jid: Jid::new(child.attr("jid")?).ok()?,
                priority: child.attr("priority")?.parse().ok()?,
                proxy: child.attr("type") == Some("proxy"),
            })
        })
        .take(16)
        .collect();
    candidates.sort_by_key(|candidate| std::cmp::Reverse(candidate.priority));
    candidates
}

/// Connects to the candidates, and returns the first one, in the order of the list, that answers. Those that `is_prompt` names are
/// dialled at once. The others take turns: the next one is dialled when the one before it has failed or has not answered for
/// 250 ms. An established connection waits a moment for those before it. Only one is asked at a time: a proxy behind two candidates
/// would take them for both sides of the stream.
async fn first<T, D, A>(
    candidates: Vec<Candidate>,
    is_prompt: impl Fn(&Candidate) -> bool,
    dial: impl Fn(Candidate) -> D,
    ask: impl Fn(T) -> A,
) -> Option<(Candidate, T)>
where
    T: Send + 'static,
    D: Future<Output = io::Result<T>> + Send + 'static,
    A: Future<Output = io::Result<T>>,
{
    let mut dials = JoinSet::new();
    let begin = |dials: &mut JoinSet<_>, index: usize| {
        let dialling = dial(candidates[index].clone());
        dials.spawn(async move { (index, dialling.await) });
    };
    let (prompt, waiting): (Vec<usize>, Vec<usize>) =
        (0..candidates.len()).partition(|index| is_prompt(&candidates[*index]));
    for index in prompt {
        begin(&mut dials, index);
    }
    let mut waiting = VecDeque::from(waiting);
    let mut next_at = Instant::now();
    let mut pending: Vec<bool> = vec![true; candidates.len()];
    let mut ready: BTreeMap<usize, T> = BTreeMap::new();
    let mut patience = None;
    loop {
        let best = ready.first_key_value().map(|(best, _)| *best);
        let waits = best.is_some_and(|best| pending[..best].contains(&true))
            && patience.is_some_and(|until| Instant::now() < until);
        if let Some(best) = best
            && !waits
        {
            let connected = ready.remove(&best)?;
            match ask(connected).await {
                Ok(answered) => return Some((candidates[best].clone(), answered)),
                Err(error) => tracing::debug!(%error, "a streamhost did not accept the stream"),
            }
            continue;
        }
        tokio::select! {
            Some(dialled) = dials.join_next() => {
                // Dials neither panic nor are they aborted.
                let Ok((index, dialled)) = dialled else { continue };
                pending[index] = false;
                match dialled {
                    Ok(connected) => {
                        ready.insert(index, connected);
                        patience.get_or_insert_with(|| Instant::now() + PATIENCE);
                    }
                    Err(error) => {
                        tracing::debug!(%error, "cannot reach a streamhost");
                        next_at = Instant::now();
                    }
                }
            }
            () = sleep_until(next_at), if !waiting.is_empty() => {
                waiting.pop_front().into_iter().for_each(|index| begin(&mut dials, index));
                next_at = Instant::now() + STAGGER;
            }
            () = sleep_until(patience.unwrap_or_else(Instant::now)), if waits => {}
            else => return None,
        }
    }
}

/// A streamhost of a proxy: its host, port and JID.
type Proxy = (String, u16, Jid);

/// Services of the server, each with its streamhosts.
type Services = Vec<(Jid, Vec<Proxy>)>;

/// The services of the server, and the streamhosts of those that have answered. A session that gets another leg does not wait long for
/// them again: one that is silent would make that impossible.
#[derive(Clone, Debug, Default)]
pub(super) struct KnownProxies(Arc<Mutex<Option<Services>>>);

impl KnownProxies {
    /// Returns the proxies to offer without a broker: the component's, or those that the server lists.
    pub(super) async fn candidates(&self, endpoint: &Endpoint) -> Vec<Candidate> {
        let (mut known, wait) = {
            let mut services = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Also if the first question gets no answer, the second one does not wait long.
            let wait = if services.is_none() { SERVICES } else { SERVICES_AGAIN };
            (services.get_or_insert_default().clone(), wait)
        };
        let component = endpoint.component().map(|jid| Jid::from(jid.clone()));
        let listed = match component {
            Some(component) => Some(vec![component]),
            None => timeout(wait, services(endpoint)).await.ok().flatten(),
        };
        if let Some(listed) = listed {
            known = listed
                .into_iter()
                .map(|jid| {
                    let before = known.iter().find(|(other, _)| *other == jid);
                    let proxies = before.map(|(_, proxies)| proxies.clone()).unwrap_or_default();
                    (jid, proxies)
                })
                .collect();
        }
        let mut asked = JoinSet::new();
        for (place, (jid, _)) in known.iter().enumerate() {
            let (endpoint, jid) = (endpoint.clone(), jid.clone());
            asked.spawn(async move { (place, timeout(wait, streamhosts(&endpoint, &jid)).await) });
        }
        while let Some(answer) = asked.join_next().await {
            if let Ok((place, Ok(Some(answer)))) = answer {
                known[place].1 = answer;
            }
        }
        let proxies = known.iter().flat_map(|(_, proxies)| proxies.clone()).zip(0..);
        let candidates = proxies.map(|((host, port, jid), place)| Candidate {
            cid: random_id(),
            host,
            port,
            jid,
            priority: (PROXY << 16) + 100 - place,
            proxy: true,
        });
        let candidates = candidates.collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
        candidates
    }
}

/// Returns the services that the server lists, at most 16; `None` without an answer.
async fn services(endpoint: &Endpoint) -> Option<Vec<Jid>> {
    let hub = endpoint.hub();
    let server = Jid::new(hub.jid().domain().as_str()).ok()?;
    let query = Element::bare("query", ns::DISCO_ITEMS);
    let Answer::Result(Some(query)) = hub.request(RequestKind::Get, &server, query).await else {
        return None;
    };
    let services = query.children().filter_map(|item| Jid::new(item.attr("jid")?).ok());
    Some(services.take(16).collect())
}

/// Returns the streamhosts of a service, at most four; `None` without an answer.
async fn streamhosts(endpoint: &Endpoint, service: &Jid) -> Option<Vec<Proxy>> {
    let query = Element::bare("query", ns::BYTESTREAMS);
    let answer = endpoint.hub().request(RequestKind::Get, service, query).await;
    let Answer::Result(Some(query)) = answer else { return None };
    let hosts = query.children().filter(|child| child.is("streamhost", ns::BYTESTREAMS));
    let read = |host: &Element| {
        let port = host.attr("port")?.parse().ok()?;
        Some((host.attr("host")?.to_owned(), port, Jid::new(host.attr("jid")?).ok()?))
    };
    Some(hosts.take(4).filter_map(read).collect())
}

/// Decides which of the peer's candidates are dialled. Each connection shows the other end this machine's address, so by itself
/// the peer gets only one to streamhosts that we know; and it must not reach services of this machine through us.
#[derive(Clone, Debug)]
struct DialRules {
    /// Whether the peer may learn this machine's addresses.
    may_learn: bool,
    /// The addresses of this machine.
    own: Arc<[IpAddr]>,
    /// The streamhosts that we know ourselves, and offer too.
    known: Arc<[(String, u16)]>,
    /// Whether the candidates are the broker's, and not the peer's.
    is_brokered: bool,
    /// How many dials and look-ups are left for the peer's own candidates.
    left: Arc<Left>,
}

/// How many addresses may still be dialled, and names looked up.
#[derive(Debug)]
struct Left {
    dials: AtomicUsize,
    names: AtomicUsize,
}

/// Takes at most so many; returns how many.
fn take(left: &AtomicUsize, most: usize) -> usize {
    let before = left
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(most)));
    before.unwrap_or_default().min(most)
}

impl DialRules {
    fn new(is_brokered: bool, may_learn: bool, own: &[Candidate]) -> Self {
        let proxies = own.iter().filter(|own| own.proxy);
        Self {
            may_learn,
            own: addresses::own().into(),
            known: proxies.map(|proxy| (proxy.host.clone(), proxy.port)).collect(),
            is_brokered,
            left: Arc::new(Left { dials: MOST_DIALS.into(), names: MOST_NAMES.into() }),
        }
    }

    /// Returns whether a candidate is dialled wherever it is.
    fn trusts(&self, candidate: &Candidate) -> bool {
        let is_it =
            |(host, port): &(String, u16)| *host == candidate.host && *port == candidate.port;
        self.is_brokered || self.known.iter().any(is_it)
    }

    /// Chooses those of a peer's addresses that may be dialled.
    fn choose(&self, mut found: Vec<SocketAddr>) -> Vec<SocketAddr> {
        found.retain(|address| addresses::may_be_dialled(*address, &self.own));
        found.truncate(take(&self.left.dials, found.len()));
        found
    }
}

/// Connects to a candidate, unless the rules forbid it. The same holds for the addresses to which a name leads.
async fn dial_by(candidate: Candidate, rules: DialRules) -> io::Result<TcpStream> {
    let Candidate { host, port, .. } = &candidate;
    if rules.trusts(&candidate) {
        return socks5::dial(host, *port).await;
    }
    if !rules.may_learn {
        return Err(io::Error::other("the peer may not learn this machine's address"));
    }
    if host.parse::<IpAddr>().is_err() && take(&rules.left.names, 1) == 0 {
        return Err(io::Error::other("the peer names too many hosts"));
    }
    socks5::dial_chosen(host, *port, |found| rules.choose(found)).await
}

impl Session {
    /// Settles on a SOCKS5 candidate; `None` if there is none (XEP-0260, 2.4).
    pub(super) async fn s5b(
        &mut self,
        theirs: &Element,
        sid: &str,
        own: OwnCandidates,
    ) -> Result<Option<TcpStream>, Error> {
        let OwnCandidates { all: own, mut host } = own;
        let me = self.endpoint.jid();
        let hash = theirs
            .attr("dstaddr")
            .map_or_else(|| DstAddr::compute(sid, &self.address, &me).to_string(), str::to_owned);
        let rules = DialRules::new(self.is_brokered(), self.consent.is_given(), &own);
        let used = first(
            read_candidates(theirs),
            // The peer's own addresses may be dead, and must not delay a relay.
            |candidate| rules.trusts(candidate),
            |candidate| dial_by(candidate, rules.clone()),
            |stream| socks5::ask(stream, &hash),
        )
        .await;
        let news = match &used {
            Some((candidate, _)) => {
                xml::element("candidate-used", ns::JINGLE_S5B, &[("cid", &candidate.cid)])
            }
            None => Element::bare("candidate-error", ns::JINGLE_S5B),
        };
        self.tell_transport(Action::TransportInfo, s5b_news(sid, news)).await?;
        let chosen = loop {
            let news = self.s5b_news(sid).await?;
            match news.name() {
                "candidate-used" => {
                    break own
                        .iter()
                        .find(|own| Some(own.cid.as_str()) == news.attr("cid"))
                        .cloned();
                }
                "candidate-error" => break None,
                _ => {}
            }
        };
        match (used, chosen) {
            (None, None) => Ok(None),
            (Some((candidate, socket)), None) => self.peers(candidate, socket, sid).await,
            (Some((candidate, socket)), Some(own))
                if candidate.priority > own.priority
                    || (candidate.priority == own.priority && self.initiator) =>
            {
                self.peers(candidate, socket, sid).await
            }
            (_, Some(own)) if !own.proxy => match (host.take(), own.host.parse()) {
                (Some(host), Ok(address)) => Ok(host.take(address).await),
                _ => Ok(None),
            },
            (_, Some(own)) => {
                let hash = DstAddr::compute(sid, &me, &self.address).to_string();
                let stream = socks5::dial(&own.host, own.port).await?;
                let socket = socks5::ask(stream, &hash).await?;
                let mut query = xml::element("query", ns::BYTESTREAMS, &[("sid", sid)]);
                let mut activate = Element::bare("activate", ns::BYTESTREAMS);
                activate.append_text(self.address.as_str());
                query.append_child(activate);
                let Answer::Result(_) =
                    self.endpoint.hub().request(RequestKind::Set, &own.jid, query).await
                else {
                    let error = Element::bare("proxy-error", ns::JINGLE_S5B);
                    self.tell_transport(Action::TransportInfo, s5b_news(sid, error)).await?;
                    return Ok(None);
                };
                let activated = xml::element("activated", ns::JINGLE_S5B, &[("cid", &own.cid)]);
                self.tell_transport(Action::TransportInfo, s5b_news(sid, activated)).await?;
                Ok(Some(socket))
            }
        }
    }

    /// Returns a connection to the peer's candidate: at once, or when the peer has activated its proxy.
    async fn peers(
        &mut self,
        candidate: Candidate,
        socket: TcpStream,
        sid: &str,
    ) -> Result<Option<TcpStream>, Error> {
        if !candidate.proxy {
            return Ok(Some(socket));
        }
        loop {
            match self.s5b_news(sid).await?.name() {
                "activated" => return Ok(Some(socket)),
                "proxy-error" => return Ok(None),
                _ => {}
            }
        }
    }

    /// Returns what the peer tells next of the bytestream with this id.
    pub(super) async fn s5b_news(&mut self, sid: &str) -> Result<Element, Error> {
        loop {
            let (_, jingle) = self.expect(&[Action::TransportInfo], STEP).await?;
            let content = first_content(&jingle)?;
            let transport = content.get_child("transport", ns::JINGLE_S5B);
            let transport = transport.filter(|one| self.is_of_attempt(sid, Some(one)));
            let news = transport.and_then(|transport| transport.children().next());
            if let Some(news) = news {
                return Ok(news.clone());
            }
        }
    }
}

fn s5b_news(sid: &str, news: Element) -> Element {
    let mut transport = xml::element("transport", ns::JINGLE_S5B, &[("sid", sid)]);
    transport.append_child(news);
    transport
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    };

    use tokio::time::sleep;

    use super::*;

    /// Returns candidates whose connections take so many milliseconds; `None` is one that fails.
    fn candidates(times: &[Option<u64>]) -> Vec<Candidate> {
        let of = |(n, time): (usize, &Option<u64>)| Candidate {
            cid: n.to_string(),
            host: time.map(|time| time.to_string()).unwrap_or_default(),
            port: 1,
            jid: Jid::new("proxy.example.org").unwrap(),
            priority: 1,
            proxy: true,
        };
        times.iter().enumerate().map(of).collect()
    }

    async fn dial(candidate: Candidate) -> io::Result<String> {
        match candidate.host.parse() {
            Ok(time) => sleep(Duration::from_millis(time)).await,
            Err(_) => return Err(io::ErrorKind::NetworkUnreachable.into()),
        }
        Ok(candidate.cid)
    }

    /// Returns the used candidate, the time, and those that were asked; those in `refusing` refuse.
    async fn chosen(
        times: &[Option<u64>],
        refusing: &[&str],
    ) -> (Option<String>, u64, Vec<String>) {
        let (start, asked) = (Instant::now(), Mutex::new(Vec::new()));
        let used = first(
            candidates(times),
            |_| true,
            dial,
            |cid| {
                asked.lock().unwrap().push(cid.clone());
                let refuses = refusing.contains(&cid.as_str());
                async move { if refuses { Err(io::Error::other("no")) } else { Ok(cid) } }
            },
        );
        let used = used.await.map(|(candidate, cid)| {
            assert_eq!(candidate.cid, cid);
            cid
        });
        let took = u64::try_from(start.elapsed().as_millis()).unwrap();
        (used, took, asked.into_inner().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_candidate_costs_no_more_than_a_moment() {
        let (used, took, _) = chosen(&[Some(5_000), Some(10)], &[]).await;
        assert_eq!((used.as_deref(), took), (Some("1"), 260));
        let (used, took, _) = chosen(&[None, Some(10)], &[]).await;
        assert_eq!((used.as_deref(), took), (Some("1"), 10));
        let (used, took, _) = chosen(&[Some(5_000)], &[]).await;
        assert_eq!((used.as_deref(), took), (Some("0"), 5_000));
    }

    #[tokio::test(start_paused = true)]
    async fn the_preferred_one_is_used_if_it_answers_at_about_the_same_time() {
        let (used, took, asked) = chosen(&[Some(200), Some(10), Some(0)], &[]).await;
        assert_eq!((used.as_deref(), took), (Some("0"), 200));
        assert_eq!(asked, ["0"], "nobody else was asked for the stream");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_refuses_is_followed_by_the_next() {
        let (used, _, asked) = chosen(&[Some(1), Some(2), Some(3)], &["0", "1"]).await;
        assert_eq!((used.as_deref(), asked.len()), (Some("2"), 3));
        assert_eq!(chosen(&[Some(1), None], &["0"]).await.0, None);
        assert_eq!(chosen(&[], &[]).await.0, None);
    }

    #[tokio::test(start_paused = true)]
    async fn one_at_a_time_is_asked() {
        let asking = Arc::new(AtomicUsize::new(0));
        let used = first(
            candidates(&[Some(1), Some(1), Some(1)]),
            |_| true,
            dial,
            |cid| {
                let asking = Arc::clone(&asking);
                async move {
                    assert_eq!(asking.fetch_add(1, Ordering::Relaxed), 0);
                    sleep(Duration::from_secs(1)).await;
                    asking.fetch_sub(1, Ordering::Relaxed);
                    if cid == "2" { Ok(cid) } else { Err(io::Error::other("no")) }
                }
            },
        );
        assert!(used.await.is_some());
    }

    fn candidate(host: &str, port: u16, proxy: bool) -> Candidate {
        let jid = Jid::new("bob@example.org/x").unwrap();
        let (cid, host) = (String::new(), host.to_owned());
        Candidate { cid, host, port, jid, priority: 1, proxy }
    }

    #[tokio::test]
    async fn a_peer_leads_us_only_to_streamhosts_that_we_know_or_to_other_machines() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let known = [candidate("127.0.0.1", port, true), candidate("10.0.0.1", 1, false)];
        let stranger = DialRules::new(false, true, &[]);
        let friend = DialRules::new(false, true, &known);
        let hidden = DialRules::new(false, false, &known);
        let brokered = DialRules::new(true, false, &[]);
        for (rules, host, connects) in [
            (&stranger, "127.0.0.1", false),
            // A name leads there too.
            (&stranger, "localhost", false),
            (&friend, "127.0.0.1", true),
            (&friend, "localhost", false),
            (&hidden, "127.0.0.1", true),
            (&hidden, "localhost", false),
            (&brokered, "127.0.0.1", true),
            (&brokered, "localhost", true),
        ] {
            for proxy in [true, false] {
                let dialled = dial_by(candidate(host, port, proxy), rules.clone()).await;
                assert_eq!(dialled.is_ok(), connects, "{host} {rules:?} {dialled:?}");
            }
        }
        // Without consent nothing is dialled, and no name is looked up.
        let refused = dial_by(candidate("192.0.2.1", 1, false), hidden).await.unwrap_err();
        assert_eq!(refused.to_string(), "the peer may not learn this machine's address");
        assert!(!stranger.own.is_empty());
        let may_be_dialled = |address: SocketAddr| {
            let fresh =
                DialRules { left: DialRules::new(false, true, &[]).left, ..stranger.clone() };
            fresh.choose(vec![address]) == [address]
        };
        for own in &*stranger.own {
            assert!(!may_be_dialled(SocketAddr::new(*own, 5000)));
        }
        for (address, expected) in [
            ("192.0.2.77:5000", true),
            ("10.1.2.3:1024", true),
            ("[2001:db8::7]:5000", true),
            ("[fd77::7]:5000", true),
            ("192.0.2.77:22", false),
            ("[::1]:5000", false),
            ("[::ffff:127.0.0.1]:5000", false),
            ("127.8.8.8:5000", false),
            ("0.0.0.0:5000", false),
            ("[::]:5000", false),
            ("169.254.1.1:5000", false),
            ("[fe80::1]:5000", false),
            ("224.0.0.1:5000", false),
            ("[ff02::1]:5000", false),
            ("255.255.255.255:5000", false),
            // Loopback by a translator or a tunnel.
            ("[64:ff9b::7f00:1]:5000", false),
            ("[2002:7f00:1::1]:5000", false),
            ("[2001:0:7f00:1::1]:5000", false),
            ("[::127.0.0.1]:5000", false),
        ] {
            assert_eq!(may_be_dialled(address.parse().unwrap()), expected, "{address}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_s_own_candidates_are_dialled_one_after_the_other_and_a_relay_at_once() {
        let dead = candidates(&[Some(60_000); 15]);
        let relay = Candidate { cid: "relay".to_owned(), ..candidates(&[Some(10)]).remove(0) };
        let all = || dead.iter().cloned().chain([relay.clone()]).collect::<Vec<_>>();
        let is_relay = |candidate: &Candidate| candidate.cid == "relay";
        let begun = Arc::new(Mutex::new(Vec::new()));
        let noted = |candidate: Candidate| {
            begun.lock().unwrap().push(Instant::now());
            dial(candidate)
        };
        let start = Instant::now();
        let answer = |cid: String| async move { Ok(cid) };
        let used = first(all(), is_relay, noted, answer).await;
        assert_eq!(used.map(|(_, cid)| cid).as_deref(), Some("relay"));
        assert_eq!(start.elapsed(), Duration::from_millis(10) + PATIENCE);
        // The relay, and two candidates of the peer.
        assert_eq!(begun.lock().unwrap().len(), 3);
        begun.lock().unwrap().clear();
        let start = Instant::now();
        let used = first(dead.clone(), is_relay, noted, answer).await;
        assert_eq!(used.map(|(_, cid)| cid).as_deref(), Some("0"));
        let begun = begun.lock().unwrap().clone();
        for (begun, place) in begun.iter().zip(0..) {
            assert_eq!(*begun - start, place * STAGGER);
        }
        assert_eq!(begun.len(), 15);
        // One that fails gives its time to the next.
        let start = Instant::now();
        let used = first(candidates(&[None, None, Some(10)]), is_relay, dial, answer).await;
        assert_eq!((used.unwrap().1.as_str(), start.elapsed().as_millis()), ("2", 10));
    }

    #[tokio::test]
    async fn a_peer_has_so_many_addresses_dialled_and_names_looked_up_and_no_more() {
        let rules = DialRules::new(false, true, &[]);
        let found = |count: u8| (0..count).map(|n| SocketAddr::from(([10, 77, 77, n], 5000)));
        assert_eq!(rules.choose(found(10).collect()).len(), 10);
        assert_eq!(rules.choose(found(10).collect()).len(), 6);
        assert_eq!(rules.choose(found(10).collect()).len(), 0);
        let rules = DialRules::new(false, true, &[]);
        let mut refused = 0;
        for _ in 0..16 {
            let dialled = dial_by(candidate("localhost", 5000, false), rules.clone()).await;
            let error = dialled.unwrap_err().to_string();
            refused += usize::from(error == "the peer names too many hosts");
        }
        assert_eq!(refused, 16 - MOST_NAMES);
    }

    #[tokio::test]
    async fn own_addresses_are_preferred_to_proxies_by_the_formula_of_the_xep() {
        let me = Jid::new("alice@example.org/x").unwrap();
        let proxy =
            Candidate { priority: (PROXY << 16) + 100, ..candidate("p.example.org", 7, true) };
        let own = OwnCandidates::with_host(vec![proxy], &me, vec!["hash".to_owned()]);
        let port = own.host.as_ref().map(Streamhost::port);
        let (last, direct) = own.all.split_last().unwrap();
        assert_eq!((&*last.host, last.priority), ("p.example.org", 655_460));
        for (place, candidate) in (0..).zip(direct) {
            assert!(!candidate.proxy && Some(candidate.port) == port && candidate.jid == me);
            assert_eq!(candidate.priority, 126 * 65_536 + 65_535 - place);
            let ip: IpAddr = candidate.host.parse().unwrap();
            assert!(!ip.is_loopback() && !ip.is_unspecified(), "{ip}");
        }
        let sent = transport("sid", "hash", &own.all);
        let read = read_candidates(&sent);
        let order: Vec<_> = read.iter().map(|candidate| &candidate.host).collect();
        let wanted: Vec<_> = own.all.iter().map(|candidate| &candidate.host).collect();
        assert_eq!(order, wanted);
    }
}
