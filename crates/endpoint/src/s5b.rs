//! SOCKS5 candidates: those that are offered, and the one that is used (XEP-0260, 2.4).

use std::{collections::BTreeMap, io, time::Duration};

use fingerpost_carry::iq::{Answer, random_id};
use fingerpost_wire::{dst_addr::DstAddr, jingle::Action, ns, stanza::RequestKind, xml};
use jid::Jid;
use minidom::Element;
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    application::first_content,
    endpoint::Endpoint,
    error::Error,
    session::{STEP, Session},
    socks5,
};

/// How long a connection to a streamhost waits for preferred ones (RFC 8305, section 5).
const PATIENCE: Duration = Duration::from_millis(250);

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

/// Connects to all candidates at once, and returns the first one, in the order of the list, that answers. An
/// established connection waits a moment for those before it. Only one is asked at a time: a proxy behind two
/// candidates would take them for both sides of the stream.
async fn first<T, D, A>(
    candidates: Vec<Candidate>,
    dial: impl Fn(Candidate) -> D,
    ask: impl Fn(T) -> A,
) -> Option<(Candidate, T)>
where
    T: Send + 'static,
    D: Future<Output = io::Result<T>> + Send + 'static,
    A: Future<Output = io::Result<T>>,
{
    let mut dials = JoinSet::new();
    for (index, candidate) in candidates.iter().enumerate() {
        let dialling = dial(candidate.clone());
        dials.spawn(async move { (index, dialling.await) });
    }
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
                    Err(error) => tracing::debug!(%error, "cannot reach a streamhost"),
                }
            }
            () = sleep_until(patience.unwrap_or_else(Instant::now)), if waits => {}
            else => return None,
        }
    }
}

/// Returns the proxies to offer without a broker: the component's, or those that the server lists.
pub(super) async fn proxies(endpoint: &Endpoint) -> Vec<Candidate> {
    let hub = endpoint.hub();
    let mut addresses: Vec<Jid> =
        endpoint.component().iter().map(|jid| Jid::from((*jid).clone())).collect();
    if addresses.is_empty() {
        let own = hub.jid();
        if let Ok(server) = Jid::new(own.domain().as_str())
            && let Answer::Result(Some(query)) = hub
                .request(RequestKind::Get, &server, Element::bare("query", ns::DISCO_ITEMS))
                .await
        {
            addresses = query
                .children()
                .filter_map(|item| Jid::new(item.attr("jid")?).ok())
                .take(16)
                .collect();
        }
    }
    let mut found = Vec::new();
    for address in addresses {
        let query = Element::bare("query", ns::BYTESTREAMS);
        let Answer::Result(Some(query)) = hub.request(RequestKind::Get, &address, query).await
        else {
            continue;
        };
        for host in query.children().filter(|c| c.is("streamhost", ns::BYTESTREAMS)).take(4) {
            let port = host.attr("port").and_then(|port| port.parse().ok());
            let jid = host.attr("jid").and_then(|jid| Jid::new(jid).ok());
            if let (Some(name), Some(port), Some(jid)) = (host.attr("host"), port, jid) {
                let priority = (10 << 16) + 100 - u32::try_from(found.len()).unwrap_or(100);
                found.push(Candidate {
                    cid: random_id(),
                    host: name.to_owned(),
                    port,
                    jid,
                    priority,
                    proxy: true,
                });
            }
        }
    }
    found
}

impl Session {
    /// Settles on a SOCKS5 candidate; `None` if there is none (XEP-0260, 2.4).
    pub(super) async fn s5b(
        &mut self,
        theirs: &Element,
        sid: &str,
        own: &[Candidate],
    ) -> Result<Option<TcpStream>, Error> {
        let me = self.endpoint.jid();
        let hash = theirs
            .attr("dstaddr")
            .map_or_else(|| DstAddr::compute(sid, &self.address, &me).to_string(), str::to_owned);
        let used = first(
            read_candidates(theirs),
            |candidate| async move { socks5::dial(&candidate.host, candidate.port).await },
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
            let news = self.s5b_news().await?;
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
            (Some((candidate, socket)), None) => self.peers(candidate, socket).await,
            (Some((candidate, socket)), Some(own))
                if candidate.priority > own.priority
                    || (candidate.priority == own.priority && self.initiator) =>
            {
                self.peers(candidate, socket).await
            }
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
    ) -> Result<Option<TcpStream>, Error> {
        if !candidate.proxy {
            return Ok(Some(socket));
        }
        loop {
            match self.s5b_news().await?.name() {
                "activated" => return Ok(Some(socket)),
                "proxy-error" => return Ok(None),
                _ => {}
            }
        }
    }

    async fn s5b_news(&mut self) -> Result<Element, Error> {
        loop {
            let (_, jingle) = self.expect(&[Action::TransportInfo], STEP).await?;
            let content = first_content(&jingle)?;
            let news = content
                .get_child("transport", ns::JINGLE_S5B)
                .and_then(|transport| transport.children().next());
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
        let used = first(candidates(times), dial, |cid| {
            asked.lock().unwrap().push(cid.clone());
            let refuses = refusing.contains(&cid.as_str());
            async move { if refuses { Err(io::Error::other("no")) } else { Ok(cid) } }
        });
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
        let used = first(candidates(&[Some(1), Some(1), Some(1)]), dial, |cid| {
            let asking = Arc::clone(&asking);
            async move {
                assert_eq!(asking.fetch_add(1, Ordering::Relaxed), 0);
                sleep(Duration::from_secs(1)).await;
                asking.fetch_sub(1, Ordering::Relaxed);
                if cid == "2" { Ok(cid) } else { Err(io::Error::other("no")) }
            }
        });
        assert!(used.await.is_some());
    }
}
