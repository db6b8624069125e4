//! SOCKS5 candidates: which are offered, and which one is used (XEP-0260, 2.4).

use jid::Jid;
use minidom::Element;
use tokio::net::TcpStream;

use super::{
    Endpoint, application::first_content, error::Error, session::Session, socks5, transport::STEP,
};
use crate::{
    mediator::transfer::DstAddr,
    xmpp::{
        iq::{Answer, random_id},
        ns, xml,
    },
};

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

/// A SOCKS5 transport with these candidates.
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

/// Proxies to offer without a broker: the component's, else what the server lists.
pub(super) async fn proxies(endpoint: &Endpoint) -> Vec<Candidate> {
    let hub = endpoint.hub();
    let mut addresses: Vec<Jid> =
        endpoint.component().iter().map(|jid| Jid::from((*jid).clone())).collect();
    if addresses.is_empty() {
        let server = hub.jid.domain().as_str();
        if let Ok(server) = Jid::new(server)
            && let Answer::Result(Some(query)) =
                hub.request("get", &server, Element::bare("query", ns::DISCO_ITEMS)).await
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
        let Answer::Result(Some(query)) = hub.request("get", &address, query).await else {
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
        let mut used = None;
        for candidate in read_candidates(theirs) {
            if let Ok(socket) = socks5::connect(&candidate.host, candidate.port, &hash).await {
                used = Some((candidate, socket));
                break;
            }
        }
        let news = match &used {
            Some((candidate, _)) => {
                xml::element("candidate-used", ns::JINGLE_S5B, &[("cid", &candidate.cid)])
            }
            None => Element::bare("candidate-error", ns::JINGLE_S5B),
        };
        self.tell_transport("transport-info", s5b_news(sid, news)).await?;
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
                let socket = socks5::connect(&own.host, own.port, &hash).await?;
                let mut query = xml::element("query", ns::BYTESTREAMS, &[("sid", sid)]);
                let mut activate = Element::bare("activate", ns::BYTESTREAMS);
                activate.append_text(self.address.as_str());
                query.append_child(activate);
                let Answer::Result(_) = self.endpoint.hub().request("set", &own.jid, query).await
                else {
                    let error = Element::bare("proxy-error", ns::JINGLE_S5B);
                    self.tell_transport("transport-info", s5b_news(sid, error)).await?;
                    return Ok(None);
                };
                let activated = xml::element("activated", ns::JINGLE_S5B, &[("cid", &own.cid)]);
                self.tell_transport("transport-info", s5b_news(sid, activated)).await?;
                Ok(Some(socket))
            }
        }
    }

    /// The peer's candidate: ready at once, or when the peer has activated its proxy.
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
            let (_, jingle) = self.expect(&["transport-info"], STEP).await?;
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
