//! One brokered Jingle session: two users, two legs, each with its own sid, addresses and transport.
//!
//! ```text
//! initiator A                      component                       responder B
//!   session-initiate (A's transport) → hints, policy → session-initiate (our transport)
//!   ← result ──────────────────────────────────────────────────────── result
//!   ← session-accept (our transport) ← hints, policy ← session-accept (B's transport)
//!   transport of leg A ⇄ │ first bytes must be a ClientHello │ ⇄ transport of leg B
//! ```
//!
//! The accept may come before the transport is up (XTLS) or after TLS is up (the seed): leg B is opened by the
//! accept or by leg A becoming ready, whichever is first. Transport actions stay on their leg; all others are passed
//! on and their answers passed back. Either user's terminate, silence or absence ends both legs.
//!
//! Spec: XEP-0166 1.1.2, sections 6 and 7; XEP-0260 1.0.3, section 2; XEP-0261 1.0, section 2.

use std::{sync::Arc, time::Duration};

use jid::Jid;
use minidom::Element;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, info};

use super::{
    Shared, Side, hints,
    legs::{LegState, Plan},
    offer, rewrite,
    rewrite::Frame,
    transport::{self, Transport},
};
use crate::{
    mediator::{
        ibb_stream::{IbbParams, IbbStream},
        ibb_xml::IbbStanza,
        leg::Leg,
        pipe::{self, Ended, Outcome},
        socket::Socket,
        transfer::DstAddr,
    },
    xmpp::{
        iq::{Answer, random_id},
        ns,
        stanza::{Refusal, Stanza},
        xml,
    },
};

/// How long a user may take to answer one of our requests.
const ANSWER: Duration = Duration::from_secs(30);
/// How long bytes may still flow after one side has said that the session is over.
const LINGER: Duration = Duration::from_secs(5);
/// How long an ended stream waits for the users' own session-terminate.
const GOODBYE: Duration = Duration::from_secs(30);

/// What a session is told.
#[derive(Debug)]
pub(crate) enum Input {
    /// A Jingle IQ of one side.
    Jingle(Side, Stanza),
    /// An IBB `<open/>` of one side.
    Open(Side, Stanza),
    /// One side is no longer there.
    Gone(Side),
    /// The service stops: streams that run may go on until the deadline.
    Drain(Instant),
}

/// One user's end of the session.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// The user's full JID.
    pub(crate) user: Jid,
    /// The address under which the other user appears here.
    pub(crate) mask: Jid,
    /// The Jingle session id here.
    pub(crate) sid: String,
    /// The Jingle namespace spoken here.
    pub(crate) namespace: String,
}

/// What a session waits for beside its inputs.
enum Event {
    Initiated(Answer),
    Forwarded(Box<Stanza>, Answer),
    Arrived(Side, Option<Socket>),
    Opened(Side, Answer, u16),
    Replaced(Answer),
    Relayed(Outcome),
    Nothing,
}

/// The session's task.
pub(crate) struct Session {
    shared: Arc<Shared>,
    peers: [Peer; 2],
    legs: [LegState; 2],
    /// The session-initiate while its answer is outstanding.
    initiate: Option<Stanza>,
    methods: Vec<String>,
    accepted: bool,
    relaying: bool,
    relayed: bool,
    /// Whatever the session waits for; dropped, that is ended, with it.
    work: JoinSet<Event>,
    deadline: Instant,
    /// Why the session ends at the deadline.
    deadline_reason: &'static str,
    over: bool,
}

impl Session {
    /// A session for a session-initiate that has been admitted.
    pub(crate) fn new(
        shared: Arc<Shared>,
        peers: [Peer; 2],
        legs: [LegState; 2],
        initiate: Stanza,
    ) -> Self {
        let deadline = Instant::now() + shared.options.activation_timeout;
        Self {
            shared,
            peers,
            legs,
            initiate: Some(initiate),
            methods: Vec::new(),
            accepted: false,
            relaying: false,
            relayed: false,
            work: JoinSet::new(),
            deadline,
            deadline_reason: "timeout",
            over: false,
        }
    }

    /// Lives as long as the session.
    pub(crate) async fn run(mut self, mut inputs: mpsc::Receiver<Input>) {
        self.begin().await;
        while !self.over {
            let event = tokio::select! {
                biased;
                input = inputs.recv() => {
                    match input {
                        Some(input) => self.handle(input).await,
                        None => self.end_both("gone", "The service stopped").await,
                    }
                    continue;
                }
                Some(event) = self.work.join_next() => event.unwrap_or(Event::Nothing),
                () = sleep_until(self.deadline) => {
                    let reason = self.deadline_reason;
                    self.end_both(reason, "").await;
                    continue;
                }
            };
            self.handle_event(event).await;
        }
        // What still flows when both users know of the end may reach its reader.
        if self.relaying {
            let rest = async {
                while let Some(event) = self.work.join_next().await {
                    if matches!(event, Ok(Event::Relayed(_))) {
                        break;
                    }
                }
            };
            let _ = tokio::time::timeout(LINGER, rest).await;
        }
    }

    fn peer(&self, side: Side) -> &Peer {
        &self.peers[side.index()]
    }

    fn leg(&mut self, side: Side) -> &mut LegState {
        &mut self.legs[side.index()]
    }

    fn frame(&self, side: Side) -> Frame<'_> {
        let peer = self.peer(side);
        let (initiator, responder) = match side {
            Side::Initiator => (&peer.user, &peer.mask),
            Side::Responder => (&peer.mask, &peer.user),
        };
        Frame { namespace: &peer.namespace, sid: &peer.sid, initiator, responder }
    }

    async fn send(&self, element: Element) {
        let _ = self.shared.outbound.send(element).await;
    }

    /// Sends a Jingle element to one side; its answer becomes an event.
    async fn ask(
        &mut self,
        side: Side,
        jingle: Element,
        event: impl FnOnce(Answer) -> Event + Send + 'static,
    ) {
        let peer = self.peer(side);
        let pending = self.shared.requests.send("set", &peer.mask, &peer.user, jingle).await;
        self.work.spawn(async move { event(pending.answer(ANSWER).await) });
    }

    /// Sends a Jingle element to one side at once; nobody waits for the answer.
    async fn tell(&self, side: Side, jingle: Element) {
        let peer = self.peer(side);
        let mut iq = xml::element(
            "iq",
            ns::CLIENT,
            &[
                ("type", "set"),
                ("from", peer.mask.as_str()),
                ("to", peer.user.as_str()),
                ("id", &random_id()),
            ],
        );
        iq.append_child(jingle);
        self.send(iq).await;
    }

    /// Ends the session with a session-terminate to both sides (an initiate still unanswered is answered first).
    async fn end_both(&mut self, condition: &str, text: &str) {
        self.answer_initiate(None).await;
        for side in [Side::Initiator, Side::Responder] {
            if side == Side::Responder && !self.legs[side.index()].told {
                continue;
            }
            let jingle = rewrite::terminate(&self.frame(side), condition, text);
            self.tell(side, jingle).await;
        }
        info!(reason = condition, "session ended");
        self.over = true;
    }

    async fn answer_initiate(&mut self, error: Option<Element>) {
        let Some(stanza) = self.initiate.take() else { return };
        let answer = match error {
            None => stanza.result(None),
            Some(error) => refuse_with(&stanza, error),
        };
        self.send(answer).await;
    }

    /// Checks the initiator's offer and passes the session-initiate on.
    async fn begin(&mut self) {
        let Some(stanza) = self.initiate.clone() else { return };
        let Some(jingle) = stanza.payload() else { return };
        let (user, mask) = {
            let peer = self.peer(Side::Responder);
            (peer.user.clone(), peer.mask.clone())
        };
        let features = self.shared.features(&user, &mask).await;
        let speaks = |feature: &str| features.iter().any(|known| known == feature);
        if self.peer(Side::Responder).namespace == ns::JINGLE_0
            && speaks(ns::JINGLE)
            && !speaks(ns::JINGLE_0)
        {
            self.peers[Side::Responder.index()].namespace = ns::JINGLE.to_owned();
        }
        let from_ns = jingle.ns();
        let contents: Vec<_> =
            jingle.children().filter(|c| c.is("content", from_ns.as_str())).collect();
        let checked = match contents.as_slice() {
            [content] => self.check(Side::Initiator, content).await,
            _ => {
                let refusal = Refusal::new(
                    "modify",
                    "not-acceptable",
                    "A brokered session has exactly one content",
                );
                self.answer_initiate(Some(refusal.to_element())).await;
                self.over = true;
                return;
            }
        };
        let (content, hints) = match checked {
            Ok(checked) => checked,
            Err(Rejected::Offer(text)) => return self.end_both("security-error", &text).await,
            Err(Rejected::Registry) => {
                self.answer_initiate(Some(Refusal::internal().to_element())).await;
                self.over = true;
                return;
            }
        };
        self.methods = offer::Offer::read(&content).methods;
        let transport = self.offer_leg(&features);
        let Some(transport) = transport else {
            return self
                .end_both("unsupported-transports", "The component offers neither SOCKS5 nor IBB")
                .await;
        };
        let original = &content;
        let out = rewrite::jingle(jingle, &self.frame(Side::Responder), |moved| {
            let stripped = offer::Offer::read(&moved) != offer::Offer::read(original);
            let base = if stripped {
                rewrite::reframe(original, &original.ns(), &moved.ns())
            } else {
                moved
            };
            rewrite::content(&base, Some(transport.clone()), Some(hints.clone()))
        });
        self.leg(Side::Responder).told = true;
        self.ask(Side::Responder, out, Event::Initiated).await;
        self.await_socket(Side::Initiator);
        self.await_socket(Side::Responder);
    }

    /// Hints and policy for one side's offer.
    async fn check(&self, side: Side, content: &Element) -> Result<(Element, Element), Rejected> {
        let owner = self.peer(side).user.to_bare();
        let asker = self.peer(side.other()).user.to_bare();
        let keys = self.shared.keys(&owner, &asker).await.map_err(|()| Rejected::Registry)?;
        let judged = hints::judge(&offer::Offer::read(content), &keys);
        let decided = hints::decide(&judged, &self.shared.options.policies);
        match decided {
            Ok(gone) => {
                let hints = hints::to_element(&judged, &keys, &owner);
                Ok((offer::without(content, &gone), hints))
            }
            Err(text) => Err(Rejected::Offer(text)),
        }
    }

    /// Chooses the transport of the responder's leg, by what it says it can do.
    fn offer_leg(&mut self, features: &[String]) -> Option<Element> {
        let speaks = |feature: &str| features.iter().any(|known| known == feature);
        let options = &self.shared.options;
        let sid = random_id();
        if options.socks5 && speaks(ns::JINGLE_S5B) {
            let peer = self.peer(Side::Responder).clone();
            let leg = LegState::s5b(&self.shared.table, &sid, &peer.user, &peer.mask);
            let dst = DstAddr::compute(&sid, &peer.mask, &peer.user);
            let element = transport::s5b(
                &sid,
                &dst.to_string(),
                leg.cid(),
                options.jid.as_str(),
                &options.advertise,
            );
            *self.leg(Side::Responder) = leg;
            return Some(element);
        }
        if !options.ibb {
            return None;
        }
        let namespace =
            if speaks(ns::JINGLE_IBB) || !self.initiator_is_old(speaks(ns::JINGLE_IBB_0)) {
                ns::JINGLE_IBB
            } else {
                ns::JINGLE_IBB_0
            };
        let block_size = options.block_size;
        let leg = LegState::ibb(namespace, Some(sid.clone()), block_size);
        *self.leg(Side::Responder) = leg;
        Some(transport::ibb(namespace, &sid, block_size))
    }

    /// Whether to speak the 2009 form of the in-band transport to the responder.
    fn initiator_is_old(&self, responder_says_so: bool) -> bool {
        let old = matches!(
            &self.legs[0].plan,
            Plan::Ibb { namespace, .. } if namespace == ns::JINGLE_IBB_0
        );
        responder_says_so || (old && self.peer(Side::Responder).namespace == ns::JINGLE_0)
    }

    fn await_socket(&mut self, side: Side) {
        if let Some(mut registration) = self.leg(side).take_registration() {
            self.work.spawn(async move {
                let socket = registration.arrived().await;
                Event::Arrived(side, socket)
            });
        }
    }

    async fn handle(&mut self, input: Input) {
        match input {
            Input::Jingle(side, stanza) => self.handle_jingle(side, stanza).await,
            Input::Open(side, stanza) => self.handle_open(side, &stanza).await,
            Input::Gone(side) => {
                let other = side.other();
                self.answer_initiate(Some(
                    Refusal::new("wait", "recipient-unavailable", "The user went away")
                        .to_element(),
                ))
                .await;
                let jingle =
                    rewrite::terminate(&self.frame(other), "gone", "The other user went away");
                self.tell(other, jingle).await;
                self.over = true;
            }
            Input::Drain(deadline) => {
                if self.relaying {
                    self.deadline = self.deadline.min(deadline);
                    self.deadline_reason = "gone";
                } else {
                    self.end_both("gone", "The service is being stopped").await;
                }
            }
        }
    }

    async fn handle_jingle(&mut self, side: Side, stanza: Stanza) {
        let Some(jingle) = stanza.payload().cloned() else { return };
        let action = jingle.attr("action").unwrap_or_default().to_owned();
        debug!(action, side = side.as_str(), "jingle");
        match action.as_str() {
            "session-terminate" => {
                self.send(stanza.result(None)).await;
                if self.relaying {
                    // Bytes sent before the terminate travel another way; let them arrive first.
                    let wait = sleep(Duration::from_millis(150));
                    tokio::pin!(wait);
                    loop {
                        tokio::select! {
                            () = &mut wait => break,
                            Some(event) = self.work.join_next() => {
                                if matches!(event, Ok(Event::Relayed(_))) {
                                    self.relaying = false;
                                    break;
                                }
                            }
                        }
                    }
                }
                let other = side.other();
                if self.legs[other.index()].told {
                    let out = rewrite::jingle(&jingle, &self.frame(other), |content| content);
                    self.tell(other, out).await;
                }
                info!(by = side.as_str(), "session terminated");
                self.over = true;
            }
            "session-accept" if side == Side::Responder && !self.accepted => {
                self.handle_accept(stanza, &jingle).await;
            }
            "session-accept" | "session-initiate" => {
                let refusal =
                    Refusal::new("wait", "unexpected-request", "The session is not in that state")
                        .with_extra("out-of-order", ns::JINGLE_ERRORS);
                self.send(stanza.refuse(&refusal)).await;
            }
            "transport-info" | "transport-replace" | "transport-accept" | "transport-reject" => {
                self.send(stanza.result(None)).await;
                self.handle_transport(side, &action, &jingle).await;
            }
            "session-info" | "security-info" | "description-info" | "content-add"
            | "content-accept" | "content-modify" | "content-reject" | "content-remove" => {
                let out = rewrite::jingle(&jingle, &self.frame(side.other()), |content| content);
                self.ask(side.other(), out, move |answer| {
                    Event::Forwarded(Box::new(stanza), answer)
                })
                .await;
            }
            _ => {
                let refusal = Refusal::bad_request("The action must be one of XEP-0166");
                self.send(stanza.refuse(&refusal)).await;
            }
        }
    }

    async fn handle_accept(&mut self, stanza: Stanza, jingle: &Element) {
        let namespace = jingle.ns();
        let Some(content) = jingle.children().find(|c| c.is("content", namespace.as_str())) else {
            let refusal = Refusal::bad_request("A session-accept must have a content");
            return self.send(stanza.refuse(&refusal)).await;
        };
        let (checked, hints) = match self.check(Side::Responder, content).await {
            Ok(checked) => checked,
            Err(Rejected::Offer(text)) => {
                self.send(stanza.result(None)).await;
                return self.end_both("security-error", &text).await;
            }
            Err(Rejected::Registry) => {
                return self.send(stanza.refuse(&Refusal::internal())).await;
            }
        };
        let methods = offer::Offer::read(&checked).methods;
        if !methods.is_empty()
            && !self.methods.is_empty()
            && !methods.iter().any(|method| self.methods.contains(method))
        {
            self.send(stanza.result(None)).await;
            let text = format!(
                "No TLS method in common: the initiator has {}, the responder {}",
                self.methods.join(", "),
                methods.join(", ")
            );
            return self.end_both("unsupported-applications", &text).await;
        }
        self.answer_initiate(None).await;
        self.leg(Side::Responder).accept(Transport::read(content));
        self.accepted = true;
        let transport = self.accept_leg();
        let out = rewrite::jingle(jingle, &self.frame(Side::Initiator), |moved| {
            let base = if offer::Offer::read(&moved) == offer::Offer::read(&checked) {
                moved
            } else {
                rewrite::reframe(&checked, &checked.ns(), &moved.ns())
            };
            rewrite::content(&base, Some(transport.clone()), Some(hints.clone()))
        });
        self.ask(Side::Initiator, out, move |answer| Event::Forwarded(Box::new(stanza), answer))
            .await;
        if !self.relaying && !self.relayed {
            self.deadline = Instant::now() + self.shared.options.activation_timeout;
        }
        for side in [Side::Initiator, Side::Responder] {
            self.nominate(side, &content_name(content)).await;
        }
        self.open_responder();
    }

    /// Our transport in the answer to the initiator.
    fn accept_leg(&self) -> Element {
        let peer = self.peer(Side::Initiator);
        let options = &self.shared.options;
        match &self.legs[0].plan {
            Plan::Ibb { namespace, sid, block_size } => {
                let sid = sid.as_deref().unwrap_or(&peer.sid);
                transport::ibb(namespace, sid, (*block_size).min(options.block_size))
            }
            Plan::S5b { sid, cid, .. } => {
                let dst = DstAddr::compute(sid, &peer.mask, &peer.user);
                transport::s5b(sid, &dst.to_string(), cid, options.jid.as_str(), &options.advertise)
            }
        }
    }

    /// Says which of the user's candidates we use: none, or its own one at this very component.
    async fn nominate(&mut self, side: Side, content: &str) {
        let Plan::S5b { sid, ours, nominated, .. } = &mut self.legs[side.index()].plan else {
            return;
        };
        if std::mem::replace(nominated, true) {
            return;
        }
        let news = match ours {
            Some(cid) => xml::element("candidate-used", ns::JINGLE_S5B, &[("cid", cid.as_str())]),
            None => Element::bare("candidate-error", ns::JINGLE_S5B),
        };
        let transport = transport::s5b_news(sid, news);
        self.tell_transport(side, "transport-info", content, transport).await;
    }

    async fn tell_transport(&self, side: Side, action: &str, content: &str, transport: Element) {
        let jingle = self.transport_jingle(side, action, content, transport);
        self.tell(side, jingle).await;
    }

    fn transport_jingle(
        &self,
        side: Side,
        action: &str,
        name: &str,
        transport: Element,
    ) -> Element {
        let frame = self.frame(side);
        let mut jingle = rewrite::own(action, &frame);
        let mut content =
            xml::element("content", frame.namespace, &[("creator", "initiator"), ("name", name)]);
        content.append_child(transport);
        jingle.append_child(content);
        jingle
    }

    /// A transport action of one side: it stays on that leg.
    async fn handle_transport(&mut self, side: Side, action: &str, jingle: &Element) {
        let namespace = jingle.ns();
        let Some(content) = jingle.children().find(|c| c.is("content", namespace.as_str())) else {
            return;
        };
        let name = content_name(content);
        match action {
            "transport-info" => {
                let Some(news) = content
                    .children()
                    .find(|c| c.is("transport", ns::JINGLE_S5B))
                    .and_then(|transport| transport.children().next())
                else {
                    return;
                };
                match news.name() {
                    "candidate-used" | "activated" => {
                        self.leg(side).used();
                        self.check_ready(side).await;
                    }
                    "candidate-error" | "proxy-error"
                        if self.legs[side.index()].has_own_proxy() => {}
                    "candidate-error" | "proxy-error" => self.fall_back(side, &name).await,
                    _ => {}
                }
            }
            "transport-replace" => match Transport::read(content) {
                Some(Transport::Ibb { namespace, sid, block_size }) if self.shared.options.ibb => {
                    let block_size = block_size.min(self.shared.options.block_size);
                    let sid = sid.unwrap_or_else(random_id);
                    let answer = transport::ibb(&namespace, &sid, block_size);
                    let told = self.legs[side.index()].told;
                    *self.leg(side) = LegState::ibb(&namespace, Some(sid), block_size);
                    self.leg(side).told = told;
                    self.expect_open(side);
                    self.tell_transport(side, "transport-accept", &name, answer).await;
                }
                _ => {
                    let transport = content.children().find(|c| c.name() == "transport").cloned();
                    let transport =
                        transport.unwrap_or_else(|| Element::bare("transport", ns::JINGLE_IBB));
                    self.tell_transport(side, "transport-reject", &name, transport).await;
                }
            },
            "transport-accept" => {
                self.leg(side).accept(Transport::read(content));
                self.open(side);
            }
            _ => self.end_both("failed-transport", "No transport was left to try").await,
        }
    }

    /// SOCKS5 failed on this leg: IBB instead, without the other leg knowing.
    async fn fall_back(&mut self, side: Side, content: &str) {
        if self.legs[side.index()].ready.is_some() || self.relaying {
            return;
        }
        if !self.shared.options.ibb {
            return self
                .end_both("failed-transport", "SOCKS5 failed and IBB is switched off")
                .await;
        }
        // XEP-0260, section 3: the initiator of the leg replaces the transport; on leg A that is the user.
        if side == Side::Initiator {
            return;
        }
        let sid = random_id();
        let block_size = self.shared.options.block_size;
        let told = self.legs[side.index()].told;
        *self.leg(side) = LegState::ibb(ns::JINGLE_IBB, Some(sid.clone()), block_size);
        self.leg(side).told = told;
        self.leg(side).opening = true;
        self.expect_open(side);
        let transport = transport::ibb(ns::JINGLE_IBB, &sid, block_size);
        let jingle = self.transport_jingle(side, "transport-replace", content, transport);
        self.ask(side, jingle, Event::Replaced).await;
    }

    /// Lets the broker's table know which `<open/>` belongs to this leg.
    fn expect_open(&self, side: Side) {
        if let Plan::Ibb { sid, .. } = &self.legs[side.index()].plan {
            self.shared.expect_open(self.peer(side), sid.clone());
        }
    }

    /// Opens the responder's leg, if it is in-band and not yet open.
    fn open_responder(&mut self) {
        if !self.legs[1].opening {
            self.open(Side::Responder);
        }
    }

    fn open(&mut self, side: Side) {
        let peer = self.peer(side).clone();
        let leg = self.leg(side);
        if leg.ready.is_some() || leg.opened {
            return;
        }
        let Plan::Ibb { sid, block_size, .. } = &leg.plan else { return };
        let (sid, block_size) = (sid.clone().unwrap_or_else(|| peer.sid.clone()), *block_size);
        leg.opened = true;
        leg.opening = true;
        let size = block_size.to_string();
        let open = xml::element(
            "open",
            ns::IBB,
            &[("sid", &sid), ("block-size", &size), ("stanza", "iq")],
        );
        let requests = self.shared.requests.clone();
        self.work.spawn(async move {
            let answer = requests.request("set", &peer.mask, &peer.user, open, ANSWER).await;
            Event::Opened(side, answer, block_size)
        });
    }

    /// One side opens its in-band bytestream.
    async fn handle_open(&mut self, side: Side, stanza: &Stanza) {
        let Some(open) = stanza.payload() else { return };
        let size = open.attr("block-size").and_then(|text| text.parse::<u16>().ok());
        let Some(block_size) = size.filter(|size| *size > 0) else {
            let refusal = Refusal::bad_request("The block-size must be 1 to 65535");
            return self.send(stanza.refuse(&refusal)).await;
        };
        let sid = open.attr("sid").unwrap_or_default().to_owned();
        let kind =
            if open.attr("stanza") == Some("message") { IbbStanza::Message } else { IbbStanza::Iq };
        let leg = self.leg(side);
        if leg.ready.is_some() || self.relaying || self.relayed {
            let refusal =
                Refusal::new("cancel", "not-acceptable", "The bytestream is already open");
            return self.send(stanza.refuse(&refusal)).await;
        }
        let stream = self.stream(side, sid, block_size, kind);
        self.leg(side).ready = Some(stream);
        self.send(stanza.result(None)).await;
        self.ready(side);
    }

    fn stream(&self, side: Side, sid: String, block_size: u16, stanza: IbbStanza) -> Leg {
        let peer = self.peer(side);
        let mut params = IbbParams::new(peer.mask.clone(), peer.user.clone(), sid.as_str());
        params.block_size = block_size;
        params.stanza = stanza;
        params.window = self.shared.options.window;
        let (stream, handle) = IbbStream::new(params, self.shared.outbound.clone());
        self.shared.add_stream(peer, sid, handle);
        Leg::Ibb(stream)
    }

    /// A SOCKS5 leg is ready when its connection is there and the user has chosen it.
    async fn check_ready(&mut self, side: Side) {
        let leg = self.leg(side);
        if leg.ready.is_none()
            && leg.is_used()
            && let Some(socket) = leg.socket.take()
        {
            leg.ready = Some(Leg::Socket(socket));
            self.ready(side);
        }
    }

    /// A leg is ready: open the other, or join both.
    fn ready(&mut self, side: Side) {
        debug!(side = side.as_str(), "leg ready");
        if side == Side::Initiator {
            self.open_responder();
        }
        if self.relaying || self.relayed || self.legs.iter().any(|leg| leg.ready.is_none()) {
            return;
        }
        let (Some(a), Some(b)) = (self.legs[0].ready.take(), self.legs[1].ready.take()) else {
            return;
        };
        info!(initiator = a.kind(), responder = b.kind(), "both legs up");
        self.relaying = true;
        self.deadline = Instant::now() + Duration::from_secs(365 * 24 * 3600);
        let options = pipe::Options {
            idle_timeout: self.shared.options.idle_timeout,
            guard: self.shared.options.require_tls,
        };
        self.work.spawn(async move { Event::Relayed(pipe::relay_guarded(a, b, options).await) });
    }

    async fn handle_event(&mut self, event: Event) {
        match event {
            Event::Initiated(Answer::Result(_)) => self.answer_initiate(None).await,
            Event::Initiated(Answer::Error(error)) => {
                if self.initiate.is_some() {
                    self.answer_initiate(Some(error)).await;
                    self.over = true;
                }
            }
            Event::Initiated(Answer::Timeout) => {
                let refusal =
                    Refusal::new("wait", "remote-server-timeout", "The other user did not answer");
                if self.initiate.is_some() {
                    self.answer_initiate(Some(refusal.to_element())).await;
                    self.over = true;
                }
            }
            Event::Forwarded(stanza, answer) => {
                let reply = match answer {
                    Answer::Result(payload) => stanza.result(payload),
                    Answer::Error(error) => refuse_with(&stanza, error),
                    Answer::Timeout => stanza.refuse(&Refusal::new(
                        "wait",
                        "remote-server-timeout",
                        "The other user did not answer",
                    )),
                };
                self.send(reply).await;
            }
            Event::Arrived(side, Some(socket)) => {
                self.leg(side).socket = Some(socket);
                self.check_ready(side).await;
            }
            Event::Opened(side, Answer::Result(_), block_size) => {
                let peer = self.peer(side);
                let sid = match &self.legs[side.index()].plan {
                    Plan::Ibb { sid: Some(sid), .. } => sid.clone(),
                    _ => peer.sid.clone(),
                };
                if self.legs[side.index()].ready.is_none() && !self.relaying {
                    let stream = self.stream(side, sid, block_size, IbbStanza::Iq);
                    self.leg(side).ready = Some(stream);
                    self.ready(side);
                }
            }
            Event::Opened(side, Answer::Error(_), block_size) if block_size > 4096 => {
                let leg = self.leg(side);
                leg.opened = false;
                if let Plan::Ibb { block_size, .. } = &mut leg.plan {
                    *block_size = 4096;
                }
                self.open(side);
            }
            Event::Opened(..) => {
                if !self.relaying {
                    self.end_both("failed-transport", "The in-band bytestream was refused").await;
                }
            }
            Event::Replaced(Answer::Result(_)) => {}
            Event::Replaced(_) => {
                self.end_both("failed-transport", "The other transport was refused").await;
            }
            Event::Arrived(..) | Event::Nothing => {}
            Event::Relayed(outcome) => self.relayed(outcome).await,
        }
    }

    async fn relayed(&mut self, outcome: Outcome) {
        self.relaying = false;
        self.relayed = true;
        info!(
            forward_bytes = outcome.a_to_b,
            backward_bytes = outcome.b_to_a,
            ended = ?outcome.end,
            "stream ended"
        );
        match outcome.end {
            Ended::NotTls => {
                self.end_both("security-error", "The stream did not start with a TLS ClientHello")
                    .await;
            }
            Ended::Idle => self.end_both("timeout", "No byte was sent for too long").await,
            Ended::Error(_) => self.end_both("connectivity-error", "A leg broke").await,
            Ended::Eof => {
                self.deadline = Instant::now() + GOODBYE;
                self.deadline_reason = "success";
            }
        }
    }
}

/// Why an offer does not pass.
enum Rejected {
    /// Policy, with the text for the users.
    Offer(String),
    /// The registry cannot be asked.
    Registry,
}

fn content_name(content: &Element) -> String {
    content.attr("name").unwrap_or_default().to_owned()
}

/// The error answer to a stanza, with an `<error/>` that came from elsewhere.
pub(crate) fn refuse_with(stanza: &Stanza, error: Element) -> Element {
    let mut answer = xml::element(
        "iq",
        ns::CLIENT,
        &[
            ("type", "error"),
            ("from", stanza.to.as_str()),
            ("to", stanza.from.as_str()),
            ("id", &stanza.id),
        ],
    );
    answer.append_child(error);
    answer
}
