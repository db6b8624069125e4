//! One end-to-end session of a client: Jingle, then a transport, then TLS.
//!
//! The responder is the TLS server. Order: session-initiate, session-accept, transport, TLS, data,
//! session-terminate (XTLS). What the peer offered pins its certificate; hints and trust store are asked before a
//! byte of the application is sent.

use std::time::Duration;

use jid::{BareJid, Jid};
use minidom::Element;
use serde_json::json;
use tokio::time::timeout;
use tokio_rustls::TlsStream;

use super::{
    Client,
    hub::{Hub, Inbox, TransportKind, condition},
    output::XtlsError,
    socks5,
    trust::{Known, Trust},
};
use crate::{
    broker::{
        offer::{self, Offer},
        rewrite,
    },
    mediator::{leg::Leg, transfer::DstAddr},
    print::{Method, Print},
    tls::stream::{self as tls, Secured, TlsError},
    xmpp::{
        iq::{Answer, random_id},
        jid::unproxied,
        ns,
        stanza::{Refusal, Stanza},
        xml,
    },
};

/// How long a peer's user may think.
const ACCEPT: Duration = Duration::from_secs(300);
/// How long a step of the transport may take.
const STEP: Duration = Duration::from_secs(60);
/// The in-band block size we offer.
const BLOCK: u16 = 8192;
/// How long what is under way may take to arrive when the peer has ended the session.
const LINGER: Duration = Duration::from_secs(5);
/// How long the reason of a stream's end may come after the end itself.
const REASON: Duration = Duration::from_secs(2);

/// What a session is for.
#[derive(Clone, Debug)]
pub(crate) enum Application {
    /// A raw TLS stream.
    Pipe,
    /// A file: its `<file/>` element.
    File(Element),
}

/// A session whose Jingle part is under way.
#[derive(Debug)]
pub(crate) struct Session {
    hub: Hub,
    inbox: Inbox,
    peer: Jid,
    /// Who the peer is behind a proxied address.
    pub(crate) user: BareJid,
    sid: String,
    namespace: String,
    content: String,
    initiator: bool,
    via: Option<BareJid>,
    /// One side has said that it is over, or the other never knew of it.
    over: bool,
}

/// A candidate of a SOCKS5 transport.
#[derive(Clone, Debug)]
struct Candidate {
    cid: String,
    host: String,
    port: u16,
    jid: Jid,
    priority: u32,
    proxy: bool,
}

/// A secured stream.
pub(crate) type Stream = TlsStream<Leg>;

impl Drop for Session {
    /// However a session is left, on Ctrl-C for one, the peer is told.
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let mut iq = xml::element(
            "iq",
            ns::CLIENT,
            &[("type", "set"), ("to", self.peer.as_str()), ("id", &random_id())],
        );
        iq.append_child(self.goodbye("cancel", ""));
        self.hub.try_send(iq);
    }
}

impl Session {
    /// Ends the session with a reason, if it is not over.
    pub(crate) async fn terminate(&mut self, reason: &str, text: &str) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        let wait = self.hub.request("set", &self.peer, self.goodbye(reason, text));
        let _ = timeout(Duration::from_secs(5), wait).await;
    }

    fn goodbye(&self, reason: &str, text: &str) -> Element {
        let me = Jid::from(self.hub.jid.clone());
        let frame = rewrite::Frame {
            namespace: &self.namespace,
            sid: &self.sid,
            initiator: &me,
            responder: &self.peer,
        };
        rewrite::terminate(&frame, reason, text)
    }

    /// Does `work` for as long as the peer does not end the session.
    ///
    /// A peer that ends it with success has sent all; what is still under way gets a moment to arrive. A lost
    /// XMPP connection does not end a stream that may run beside it.
    ///
    /// # Errors
    /// Those of `work`, or why the peer ended the session.
    pub(crate) async fn during<T>(
        &mut self,
        work: impl Future<Output = Result<T, XtlsError>>,
    ) -> Result<T, XtlsError> {
        tokio::pin!(work);
        let ended = tokio::select! {
            biased;
            done = &mut work => {
                let Err(error) = done else { return done };
                // The peer's reason says more than a broken stream, and may be a moment behind it.
                return match timeout(REASON, self.terminated()).await {
                    Ok(Err(reason)) if self.over => Err(reason),
                    _ => Err(error),
                };
            }
            ended = self.terminated() => ended,
        };
        match ended {
            Ok(()) => timeout(LINGER, work).await.unwrap_or_else(|_| {
                Err(XtlsError::refused("the peer ended the session before all was said"))
            }),
            Err(_) if !self.over => work.await,
            Err(error) => Err(error),
        }
    }

    /// Waits until the peer ends the session, if it is not over.
    ///
    /// # Errors
    /// Exit status 4 or 5 if the reason is not success.
    pub(crate) async fn terminated(&mut self) -> Result<(), XtlsError> {
        if self.over {
            return Ok(());
        }
        loop {
            let (_, action, _) = self.next().await?;
            if action == "success" {
                return Ok(());
            }
        }
    }

    /// The next action. A terminate is `success` or an error.
    async fn next(&mut self) -> Result<(Stanza, String, Element), XtlsError> {
        let stanza = self
            .inbox
            .next()
            .await
            .ok_or_else(|| XtlsError::failed("the connection to the XMPP server is lost"))?;
        let jingle =
            stanza.payload().cloned().unwrap_or_else(|| Element::bare("jingle", ns::JINGLE));
        let action = jingle.attr("action").unwrap_or_default().to_owned();
        if action != "session-terminate" {
            return Ok((stanza, action, jingle));
        }
        self.over = true;
        let namespace = jingle.ns();
        let reason = jingle.get_child("reason", namespace.as_str());
        let name = reason
            .and_then(|reason| reason.children().find(|child| child.name() != "text"))
            .map_or("no reason", Element::name)
            .to_owned();
        let text = reason
            .and_then(|reason| reason.get_child("text", namespace.as_str()))
            .map(|text| {
                text.text().chars().filter(|c| !c.is_control()).take(300).collect::<String>()
            })
            .filter(|text| !text.is_empty())
            .map(|text| format!(": {text}"))
            .unwrap_or_default();
        match name.as_str() {
            "success" => Ok((stanza, "success".to_owned(), jingle)),
            "gone" | "timeout" | "connectivity-error" | "failed-transport" => {
                Err(XtlsError::failed(format!("the session was ended: {name}{text}")))
            }
            _ => Err(XtlsError::refused(format!("the peer ended the session: {name}{text}"))),
        }
    }

    /// The next action of a given name.
    async fn expect(
        &mut self,
        wanted: &[&str],
        wait: Duration,
    ) -> Result<(String, Element), XtlsError> {
        let wanted_action = async {
            loop {
                let (_, action, jingle) = self.next().await?;
                if wanted.contains(&action.as_str()) {
                    return Ok((action, jingle));
                }
                if action == "success" {
                    return Err(XtlsError::refused("the peer ended the session early"));
                }
            }
        };
        timeout(wait, wanted_action).await.map_err(|_| {
            XtlsError::failed(format!("the peer did not answer in time ({})", wanted.join(", ")))
        })?
    }

    fn jingle(&self, action: &str, children: Vec<Element>) -> Element {
        let me = self.hub.jid.to_string();
        let mut jingle =
            xml::element("jingle", &self.namespace, &[("action", action), ("sid", &self.sid)]);
        match action {
            "session-initiate" => xml::set(&mut jingle, "initiator", &me),
            "session-accept" => xml::set(&mut jingle, "responder", &me),
            _ => {}
        }
        let mut content = xml::element(
            "content",
            &self.namespace,
            &[("creator", "initiator"), ("name", &self.content)],
        );
        for child in children {
            content.append_child(child);
        }
        jingle.append_child(content);
        jingle
    }

    async fn ask(&self, jingle: Element) -> Result<(), XtlsError> {
        match self.hub.request("set", &self.peer, jingle).await {
            Answer::Result(_) => Ok(()),
            Answer::Error(error) => {
                let text = format!("{}: {}", self.user, condition(&error));
                let condition = condition(&error);
                let name = condition.split(' ').next().unwrap_or_default();
                Err(match name {
                    "recipient-unavailable"
                    | "item-not-found"
                    | "service-unavailable"
                    | "remote-server-not-found"
                    | "remote-server-timeout"
                    | "gone" => XtlsError::unreachable(text),
                    _ => XtlsError::refused(text),
                })
            }
            Answer::Timeout => Err(XtlsError::unreachable(format!("{} did not answer", self.user))),
        }
    }

    async fn tell_transport(&self, action: &str, transport: Element) -> Result<(), XtlsError> {
        self.ask(self.jingle(action, vec![transport])).await
    }
}

/// Starts a session to `peer` and secures it.
pub(crate) async fn initiate(
    client: &Client,
    hub: &Hub,
    peer: Jid,
    application: Application,
) -> Result<(Session, Stream), XtlsError> {
    let sid = random_id();
    let user = client.user_of(&peer);
    let mut session = Session {
        inbox: hub.session(&peer, &sid),
        hub: hub.clone(),
        peer: peer.clone(),
        user,
        sid,
        namespace: ns::JINGLE.to_owned(),
        content: "e2e-tls".to_owned(),
        initiator: true,
        via: client.via.clone().filter(|via| peer.domain() == via.domain()),
        over: false,
    };
    let stream_sid = random_id();
    let me = Jid::from(hub.jid.clone());
    let mut own = Vec::new();
    let transport = if client.transport == Some(TransportKind::Ibb) {
        xml::element(
            "transport",
            ns::JINGLE_IBB,
            &[("sid", &stream_sid), ("block-size", &BLOCK.to_string())],
        )
    } else {
        if session.via.is_none() {
            own = proxies(client, hub).await;
        }
        s5b_transport(&stream_sid, &DstAddr::compute(&stream_sid, &me, &peer).to_string(), &own)
    };
    let mut children = application_elements(client, &application);
    children.push(transport);
    if let Err(error) = session.ask(session.jingle("session-initiate", children)).await {
        session.over = true;
        return Err(error);
    }
    let (_, jingle) = match session.expect(&["session-accept"], ACCEPT).await {
        Ok(accept) => accept,
        Err(error) => {
            session.terminate("cancel", "").await;
            return Err(error);
        }
    };
    let outcome = async {
        let content = first_content(&jingle)?;
        let pins = pins(client, &session.user, &content)?;
        let leg = session.initiator_leg(&content, &stream_sid, &own).await?;
        tokio::select! {
            done = tls::connect(leg, &client.identity, pins) => Ok(done?),
            ended = session.inbox.next() => Err(session.ended(ended)),
        }
    }
    .await;
    finish(client, session, outcome).await
}

/// Answers a session-initiate and secures it. `accept` looks at the application first.
pub(crate) async fn respond(
    client: &Client,
    hub: &Hub,
    initiate: Stanza,
    accept: impl FnOnce(&BareJid, &Application) -> Result<(), XtlsError>,
) -> Result<(Session, Stream, Application), XtlsError> {
    let peer = initiate.from.clone();
    let user = client.user_of(&peer);
    let jingle = initiate.payload().cloned().unwrap_or_else(|| Element::bare("jingle", ns::JINGLE));
    let sid = jingle.attr("sid").unwrap_or_default().to_owned();
    let mut session = Session {
        inbox: hub.session(&peer, &sid),
        hub: hub.clone(),
        peer: peer.clone(),
        user,
        sid,
        namespace: jingle.ns(),
        content: String::new(),
        initiator: false,
        via: client.via.clone().filter(|via| peer.domain() == via.domain()),
        over: false,
    };
    let content = match first_content(&jingle) {
        Ok(content) => content,
        Err(error) => {
            session.over = true;
            hub.send(initiate.refuse(&Refusal::bad_request("A content was expected"))).await;
            return Err(error);
        }
    };
    session.content = content.attr("name").unwrap_or_default().to_owned();
    hub.send(initiate.result(None)).await;
    let application = match content
        .get_child("description", ns::FILE_TRANSFER)
        .and_then(|description| description.get_child("file", ns::FILE_TRANSFER))
    {
        Some(file) => Application::File(file.clone()),
        None => Application::Pipe,
    };
    let outcome = async {
        accept(&session.user, &application)?;
        let pins = pins(client, &session.user, &content)?;
        let leg = session.responder_leg(client, &content).await?;
        tokio::select! {
            done = tls::accept(leg, &client.identity, pins) => Ok(done?),
            ended = session.inbox.next() => Err(session.ended(ended)),
        }
    }
    .await;
    let (session, stream) = finish(client, session, outcome).await?;
    Ok((session, stream, application))
}

/// The trust store's word, after the handshake and before the first byte of the application.
async fn finish(
    client: &Client,
    mut session: Session,
    outcome: Result<(Stream, Secured), XtlsError>,
) -> Result<(Session, Stream), XtlsError> {
    let checked = outcome.and_then(|(stream, secured)| {
        let mut trust = Trust::load(&client.dir)?;
        let known = trust.check(&session.user, &secured.peer)?;
        if known == Known::First {
            trust.set(&session.user, &secured.peer)?;
        }
        Ok((stream, secured, known))
    });
    let (stream, secured, known) = match checked {
        Ok(checked) => checked,
        Err(error) => {
            let reason = match error.code {
                4 => "security-error",
                5 => "decline",
                _ => "failed-application",
            };
            session.terminate(reason, "").await;
            return Err(error);
        }
    };
    let transport = stream.get_ref().0.kind();
    client.output.event(
        &json!({
            "event": "secured",
            "peer": session.user.as_str(),
            "tls_version": secured.version,
            "key_exchange": secured.key_exchange,
            "peer_print": secured.peer.to_string(),
            "transport": transport,
            "first_use": known == Known::First,
        }),
        &format!(
            "secured with {} over {transport}: {} {}\n  key {}{}",
            session.user,
            secured.version,
            secured.key_exchange,
            secured.peer,
            if known == Known::First { " (first use: trusted from now on)" } else { "" }
        ),
    );
    Ok((session, stream))
}

impl From<TlsError> for XtlsError {
    fn from(error: TlsError) -> Self {
        match error {
            TlsError::Unverified => Self::unverified(format!("{error}: nothing was sent")),
            TlsError::Refused => Self::refused(error.to_string()),
            TlsError::Failed(_) => Self::failed(error.to_string()),
        }
    }
}

fn first_content(jingle: &Element) -> Result<Element, XtlsError> {
    let namespace = jingle.ns();
    jingle
        .children()
        .find(|child| child.is("content", namespace.as_str()))
        .cloned()
        .ok_or_else(|| XtlsError::failed("the peer's session has no content"))
}

/// What we offer: the application with our print in the fitting dialect.
fn application_elements(client: &Client, application: &Application) -> Vec<Element> {
    let print = client.offered_print().to_string();
    match application {
        Application::Pipe => vec![offer::description(&print)],
        Application::File(file) => {
            let mut description = Element::bare("description", ns::FILE_TRANSFER);
            description.append_child(file.clone());
            vec![description, offer::security(&print)]
        }
    }
}

/// The prints that the peer's certificate may have, after a look at the hints.
fn pins(client: &Client, user: &BareJid, content: &Element) -> Result<Vec<Print>, XtlsError> {
    let offer = Offer::read(content);
    let pins: Vec<Print> = offer
        .prints
        .iter()
        .filter(|(method, _)| matches!(method, None | Some(Method::X509)))
        .map(|(_, print)| print.clone())
        .collect();
    if pins.is_empty() {
        return Err(XtlsError::unverified(format!(
            "{user} offered no print of an x509 certificate: nothing was sent"
        )));
    }
    let mut shown = Vec::new();
    let mut refused = None;
    if let Some(hints) = content.get_child("hints", ns::HINTS) {
        for hint in hints.children().filter(|c| c.is("print", ns::HINTS)) {
            let get = |name| hint.attr(name).unwrap_or_default();
            let (method, verdict, print) = (get("method"), get("verdict"), hint.text());
            shown.push(json!({
                "method": method, "print": print, "verdict": verdict, "assurance": hint.attr("assurance"),
            }));
            if method == "x509" && !matches!(verdict, "match" | "registered") {
                client
                    .output
                    .warn(&format!("the registry says of {user}'s key {print}: {verdict}"));
                if matches!(verdict, "revoked" | "mismatch") {
                    refused = Some(verdict.to_owned());
                }
            }
        }
    }
    let verdicts: Vec<_> =
        shown.iter().map(|hint| hint["verdict"].as_str().unwrap_or_default().to_owned()).collect();
    client.output.event(
        &json!({"event": "session", "peer": user.as_str(), "hints": shown}),
        &format!("session with {user}, registry: {}", verdicts.join(", ")),
    );
    match refused {
        Some(verdict) => Err(XtlsError::unverified(format!(
            "the registry's verdict on {user}'s key is {verdict}: nothing was sent"
        ))),
        None => Ok(pins),
    }
}

fn s5b_transport(sid: &str, dstaddr: &str, candidates: &[Candidate]) -> Element {
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
async fn proxies(client: &Client, hub: &Hub) -> Vec<Candidate> {
    let mut addresses: Vec<Jid> =
        client.component.iter().map(|jid| Jid::from(jid.clone())).collect();
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
    fn ended(&mut self, stanza: Option<Stanza>) -> XtlsError {
        let Some(stanza) = stanza else {
            return XtlsError::failed("the connection to the XMPP server is lost");
        };
        self.over =
            stanza.payload().and_then(|jingle| jingle.attr("action")) == Some("session-terminate");
        let reason = stanza
            .payload()
            .and_then(|jingle| jingle.children().find(|c| c.name() == "reason"))
            .and_then(|reason| reason.children().next())
            .map_or_else(|| "no reason".to_owned(), |reason| reason.name().to_owned());
        XtlsError::refused(format!("the session was ended before it was secured: {reason}"))
    }

    async fn initiator_leg(
        &mut self,
        content: &Element,
        stream_sid: &str,
        own: &[Candidate],
    ) -> Result<Leg, XtlsError> {
        let transport = content.children().find(|child| child.name() == "transport");
        let transport =
            transport.ok_or_else(|| XtlsError::failed("the peer named no transport"))?;
        if !transport.has_ns(ns::JINGLE_S5B) {
            let size =
                transport.attr("block-size").and_then(|size| size.parse().ok()).unwrap_or(4096);
            let sid = transport.attr("sid").unwrap_or(stream_sid).to_owned();
            return Ok(Leg::Ibb(self.hub.open(&self.peer, &sid, size.min(BLOCK)).await?));
        }
        if let Some(socket) = self.s5b(transport, stream_sid, own).await? {
            return Ok(Leg::from(socket));
        }
        let sid = random_id();
        let replace = xml::element(
            "transport",
            ns::JINGLE_IBB,
            &[("sid", &sid), ("block-size", &BLOCK.to_string())],
        );
        self.tell_transport("transport-replace", replace).await?;
        let (action, jingle) = self.expect(&["transport-accept", "transport-reject"], STEP).await?;
        if action == "transport-reject" {
            return Err(XtlsError::failed(
                "SOCKS5 failed and the peer refuses the in-band transport",
            ));
        }
        let size = first_content(&jingle)?
            .children()
            .find(|child| child.name() == "transport")
            .and_then(|transport| transport.attr("block-size")?.parse().ok())
            .unwrap_or(BLOCK);
        Ok(Leg::Ibb(self.hub.open(&self.peer, &sid, size.min(BLOCK)).await?))
    }

    async fn responder_leg(
        &mut self,
        client: &Client,
        content: &Element,
    ) -> Result<Leg, XtlsError> {
        let Some(transport) = content.children().find(|child| child.name() == "transport") else {
            return Err(XtlsError::failed("the peer offered no transport"));
        };
        let print = client.offered_print().to_string();
        // The answer speaks the dialect of the offer.
        let mut children = Vec::new();
        for child in content.children() {
            if child.is("description", ns::APPS_TLS) {
                children.push(offer::description(&print));
            } else if child.name() == "description" {
                children.push(child.clone());
            } else if child.is("security", ns::XTLS) {
                children.push(offer::security(&print));
            }
        }
        let me = Jid::from(self.hub.jid.clone());
        if transport.has_ns(ns::JINGLE_S5B) {
            let sid = transport.attr("sid").unwrap_or_default().to_owned();
            let own =
                if self.via.is_some() { Vec::new() } else { proxies(client, &self.hub).await };
            let dst = DstAddr::compute(&sid, &me, &self.peer).to_string();
            children.push(s5b_transport(&sid, &dst, &own));
            self.ask(self.jingle("session-accept", children)).await?;
            if let Some(socket) = self.s5b(transport, &sid, &own).await? {
                return Ok(Leg::from(socket));
            }
            let (_, jingle) = self.expect(&["transport-replace"], STEP).await?;
            let content = first_content(&jingle)?;
            let replaced = content.children().find(|child| child.name() == "transport").cloned();
            let Some(replaced) = replaced.filter(|transport| transport.has_ns(ns::JINGLE_IBB))
            else {
                return Err(XtlsError::failed("the peer wants a transport that is not known here"));
            };
            let sid = replaced.attr("sid").unwrap_or_default().to_owned();
            let mut opens = self.hub.expect_open(&self.peer, &sid);
            self.tell_transport("transport-accept", replaced).await?;
            return self.opened(&mut opens, &sid).await;
        }
        if ![ns::JINGLE_IBB, ns::JINGLE_IBB_0].iter().any(|n| transport.has_ns(*n)) {
            return Err(XtlsError::failed("the peer wants a transport that is not known here"));
        }
        let sid = transport.attr("sid").unwrap_or(&self.sid).to_owned();
        let size = transport.attr("block-size").and_then(|size| size.parse().ok()).unwrap_or(4096);
        let size = BLOCK.min(size).to_string();
        let mut opens = self.hub.expect_open(&self.peer, &sid);
        children.push(xml::element(
            "transport",
            &transport.ns(),
            &[("sid", &sid), ("block-size", &size)],
        ));
        self.ask(self.jingle("session-accept", children)).await?;
        self.opened(&mut opens, &sid).await
    }

    async fn opened(
        &mut self,
        opens: &mut tokio::sync::mpsc::Receiver<Stanza>,
        sid: &str,
    ) -> Result<Leg, XtlsError> {
        let stanza = tokio::select! {
            stanza = timeout(STEP, opens.recv()) => stanza,
            ended = self.inbox.next() => return Err(self.ended(ended)),
        };
        let stanza = stanza
            .ok()
            .flatten()
            .ok_or_else(|| XtlsError::failed("the peer did not open the in-band bytestream"))?;
        let size = stanza
            .payload()
            .and_then(|open| open.attr("block-size")?.parse::<u16>().ok())
            .ok_or_else(|| XtlsError::failed("the peer's bytestream has no block-size"))?;
        let stream = self.hub.stream(&self.peer, sid, size);
        self.hub.send(stanza.result(None)).await;
        Ok(Leg::Ibb(stream))
    }

    /// Settles on a SOCKS5 candidate; `None` if there is none (XEP-0260, 2.4).
    async fn s5b(
        &mut self,
        theirs: &Element,
        sid: &str,
        own: &[Candidate],
    ) -> Result<Option<tokio::net::TcpStream>, XtlsError> {
        let me = Jid::from(self.hub.jid.clone());
        let hash = theirs
            .attr("dstaddr")
            .map_or_else(|| DstAddr::compute(sid, &self.peer, &me).to_string(), str::to_owned);
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
                let hash = DstAddr::compute(sid, &me, &self.peer).to_string();
                let socket = socks5::connect(&own.host, own.port, &hash).await?;
                let mut query = xml::element("query", ns::BYTESTREAMS, &[("sid", sid)]);
                let mut activate = Element::bare("activate", ns::BYTESTREAMS);
                activate.append_text(self.peer.as_str());
                query.append_child(activate);
                let Answer::Result(_) = self.hub.request("set", &own.jid, query).await else {
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
        socket: tokio::net::TcpStream,
    ) -> Result<Option<tokio::net::TcpStream>, XtlsError> {
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

    async fn s5b_news(&mut self) -> Result<Element, XtlsError> {
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

impl Client {
    /// The user behind an address: itself, or whom it stands for at the component.
    pub(crate) fn user_of(&self, address: &Jid) -> BareJid {
        self.via
            .as_ref()
            .filter(|via| via.domain() == address.domain())
            .and_then(|via| unproxied(address, via))
            .map_or_else(|| address.to_bare(), |user| user.to_bare())
    }
}
