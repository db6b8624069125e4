//! The client's stanza hub: answers small talk, and sends each stanza to the session or stream it belongs to.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jid::{FullJid, Jid};
use minidom::Element;
use tokio::sync::mpsc;

use super::{connection::Connection, output::XtlsError};
use crate::{
    mediator::ibb_stream::{IbbHandle, IbbParams, IbbStream},
    xmpp::{
        iq::{Answer, Requests},
        ns,
        stanza::{Kind, Refusal, Stanza},
        xml,
    },
};

/// How long we wait for the answer to a request.
const ANSWER: Duration = Duration::from_secs(45);

type Streams = HashMap<(Jid, String), IbbHandle>;

#[derive(Debug, Default)]
struct State {
    sessions: HashMap<(Jid, String), mpsc::Sender<Stanza>>,
    opens: HashMap<(Jid, String), mpsc::Sender<Stanza>>,
    streams: Streams,
}

/// The hub. Cheap to clone; the connection lives as long as its clones.
#[derive(Clone, Debug)]
pub(crate) struct Hub {
    pub(crate) jid: FullJid,
    outbound: mpsc::Sender<Element>,
    pub(crate) requests: Requests,
    state: Arc<Mutex<State>>,
    features: Arc<Vec<&'static str>>,
}

/// Which transports are announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum TransportKind {
    /// SOCKS5 bytestreams.
    S5b,
    /// In-band bytestreams.
    Ibb,
}

impl Hub {
    /// Starts to route the connection's stanzas; gives new sessions' initiates, and the connection's task.
    pub(crate) fn start(
        connection: Connection,
        only: Option<TransportKind>,
    ) -> (Self, mpsc::Receiver<Stanza>, tokio::task::JoinHandle<()>) {
        let Connection { jid, outbound, mut inbound, task } = connection;
        let mut features = vec![
            ns::DISCO_INFO,
            ns::PING,
            ns::JINGLE,
            ns::JINGLE_0,
            ns::APPS_TLS,
            ns::SECURITY_OFFER,
            ns::XTLS,
            ns::HINTS,
            ns::FILE_TRANSFER,
            ns::HASHES,
        ];
        if only != Some(TransportKind::Ibb) {
            features.push(ns::JINGLE_S5B);
        }
        if only != Some(TransportKind::S5b) {
            features.extend([ns::IBB, ns::JINGLE_IBB, ns::JINGLE_IBB_0]);
        }
        let hub = Self {
            jid,
            requests: Requests::new(outbound.clone()),
            outbound,
            state: Arc::default(),
            features: Arc::new(features),
        };
        let (sender, initiates) = mpsc::channel(8);
        let router = hub.clone();
        tokio::spawn(async move {
            while let Some(stanza) = inbound.recv().await {
                router.route(stanza, &sender).await;
            }
            router.requests.fail_all();
            router.lock().sessions.clear();
        });
        (hub, initiates, task)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn send(&self, element: Element) {
        let _ = self.outbound.send(element).await;
    }

    /// Sends a stanza if there is room for it, without waiting.
    pub(crate) fn try_send(&self, element: Element) {
        let _ = self.outbound.try_send(element);
    }

    async fn route(&self, stanza: Stanza, initiates: &mpsc::Sender<Stanza>) {
        if !stanza.is_request() {
            if stanza.kind == Kind::Iq && !self.requests.handle(&stanza) {
                let handles: Vec<_> = self.lock().streams.values().cloned().collect();
                let ok = stanza.type_ == "result";
                let _ = handles.iter().any(|handle| handle.handle_answer(&stanza.id, ok));
            }
            return;
        }
        let Some(payload) = stanza.payload() else {
            return self.send(stanza.refuse(&Refusal::bad_request("A child was expected"))).await;
        };
        if payload.name() == "jingle"
            && [ns::JINGLE, ns::JINGLE_0].iter().any(|n| payload.has_ns(*n))
        {
            let key = (stanza.from.clone(), payload.attr("sid").unwrap_or_default().to_owned());
            let session = self.lock().sessions.get(&key).cloned();
            let refused = match session {
                // Acknowledged on arrival: two sides that wait for each other's answer must not block.
                Some(inbox) => match inbox.try_send(stanza.clone()) {
                    Ok(()) => {
                        self.send(stanza.result(None)).await;
                        false
                    }
                    Err(_) => true,
                },
                None if payload.attr("action") == Some("session-initiate") => {
                    initiates.try_send(stanza.clone()).is_err()
                }
                None => true,
            };
            if refused {
                let refusal = Refusal::item_not_found("There is no such session")
                    .with_extra("unknown-session", ns::JINGLE_ERRORS);
                self.send(stanza.refuse(&refusal)).await;
            }
            return;
        }
        if payload.has_ns(ns::IBB) {
            let key = (stanza.from.clone(), payload.attr("sid").unwrap_or_default().to_owned());
            let (open, stream) = {
                let state = self.lock();
                (state.opens.get(&key).cloned(), state.streams.get(&key).cloned())
            };
            let taken = match (payload.name(), open, stream) {
                ("open", Some(open), _) => open.send(stanza.clone()).await.is_ok(),
                (_, _, Some(stream)) => stream.handle(&stanza),
                _ => false,
            };
            if !taken {
                self.send(stanza.refuse(&Refusal::item_not_found("There is no such bytestream")))
                    .await;
            }
            return;
        }
        let answer = match (payload.name(), payload.ns().as_str()) {
            ("query", ns::DISCO_INFO) => stanza.result(Some(self.info(payload.attr("node")))),
            ("ping", ns::PING) => stanza.result(None),
            _ => stanza.refuse(&Refusal::service_unavailable()),
        };
        self.send(answer).await;
    }

    fn info(&self, node: Option<&str>) -> Element {
        let mut query = Element::bare("query", ns::DISCO_INFO);
        if let Some(node) = node {
            xml::set(&mut query, "node", node);
        }
        query.append_child(xml::element(
            "identity",
            ns::DISCO_INFO,
            &[("category", "client"), ("type", "console"), ("name", "xtls")],
        ));
        for feature in self.features.iter() {
            query.append_child(xml::element("feature", ns::DISCO_INFO, &[("var", feature)]));
        }
        query
    }

    /// Sends a request as ourselves.
    pub(crate) async fn request(&self, type_: &str, to: &Jid, payload: Element) -> Answer {
        self.requests.request(type_, &Jid::from(self.jid.clone()), to, payload, ANSWER).await
    }

    /// The inbox of a session; stanzas go there until the guard is dropped.
    pub(crate) fn session(&self, peer: &Jid, sid: &str) -> Inbox {
        let (sender, receiver) = mpsc::channel(32);
        let key = (peer.clone(), sid.to_owned());
        self.lock().sessions.insert(key.clone(), sender);
        Inbox { hub: self.clone(), key, receiver }
    }

    /// The `<open/>` that a peer is expected to send.
    pub(crate) fn expect_open(&self, peer: &Jid, sid: &str) -> mpsc::Receiver<Stanza> {
        let (sender, receiver) = mpsc::channel(1);
        self.lock().opens.insert((peer.clone(), sid.to_owned()), sender);
        receiver
    }

    /// Opens an in-band bytestream.
    pub(crate) async fn open(
        &self,
        peer: &Jid,
        sid: &str,
        block_size: u16,
    ) -> Result<IbbStream, XtlsError> {
        let size = block_size.to_string();
        let open =
            xml::element("open", ns::IBB, &[("sid", sid), ("block-size", &size), ("stanza", "iq")]);
        // The peer may send as soon as it has answered.
        let stream = self.stream(peer, sid, block_size);
        match self.request("set", peer, open).await {
            Answer::Result(_) => Ok(stream),
            Answer::Error(error) => Err(XtlsError::failed(format!(
                "the in-band bytestream was refused: {}",
                condition(&error)
            ))),
            Answer::Timeout => Err(XtlsError::failed("the in-band bytestream was not answered")),
        }
    }

    /// Our end of an in-band bytestream that is open.
    pub(crate) fn stream(&self, peer: &Jid, sid: &str, block_size: u16) -> IbbStream {
        let mut params = IbbParams::new(Jid::from(self.jid.clone()), peer.clone(), sid);
        params.block_size = block_size;
        let (stream, handle) = IbbStream::new(params, self.outbound.clone());
        let mut state = self.lock();
        state.streams.retain(|_, handle| !handle.is_over());
        state.streams.insert((peer.clone(), sid.to_owned()), handle);
        state.opens.remove(&(peer.clone(), sid.to_owned()));
        stream
    }
}

/// A session's stanzas.
#[derive(Debug)]
pub(crate) struct Inbox {
    hub: Hub,
    key: (Jid, String),
    receiver: mpsc::Receiver<Stanza>,
}

impl Inbox {
    /// The next Jingle request of this session; `None` if the connection is gone.
    pub(crate) async fn next(&mut self) -> Option<Stanza> {
        self.receiver.recv().await
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.hub.lock().sessions.remove(&self.key);
    }
}

/// The defined condition of an `<error/>`.
pub(crate) fn condition(error: &Element) -> String {
    let find = |name: &str| {
        error
            .children()
            .find(|c| c.has_ns(ns::STANZA_ERRORS) && (c.name() == "text") == (name == "text"))
    };
    let condition = find("").map_or("an error", Element::name).to_owned();
    match find("text").map(Element::text) {
        Some(text) if !text.is_empty() => {
            let text: String = text.chars().filter(|c| !c.is_control()).take(300).collect();
            format!("{condition} ({text})")
        }
        _ => condition,
    }
}
