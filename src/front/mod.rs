//! Gives each stanza exactly one answer, and no answer where the protocol forbids one.

mod choice;
pub mod disco;
mod plain;
mod refusal;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use fingerpost_carry::{
    iq::{Answer, Requests, random_id},
    shares::{Full, Limits, Permit, Permits},
};
use fingerpost_secure::identity::Identity;
use fingerpost_wire::{
    jid::{canonical, full, unproxied},
    jingle::{self, Action},
    ns, rsm,
    stanza::{Kind, Refusal, RequestKind, Stanza, StanzaType},
    xml,
};
use jid::{BareJid, FullJid, Jid};
use minidom::Element;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use self::{
    choice::{Findings, Taken, Unanswered, Waiting},
    refusal::FrontRefusal,
};
use crate::{
    access::Doors,
    cluster::Cluster,
    commands::Commands,
    control::Control,
    limits::{Rate, Rates},
    metrics,
    refuse::{Refuse as _, refuse_address},
    registry::{KeyNotice, Registry, pep, refusal::RegistryRefusal, requests::Handled},
    relay::table::{NotActivated, TransferTable},
    sessions::{
        Broker, Callee,
        message_initiation::{self, Proposals},
        of_peer,
        presence::{Change, Presences, Sign},
        reachable::Reachable,
        refusal::SessionRefusal,
    },
};

/// How long a user may take to answer another user's request that the component forwarded.
const FORWARD: Duration = Duration::from_secs(30);
/// How long a resource may take to answer a check of its presence.
const SIGN: Duration = Duration::from_secs(10);
/// Requests that are in work at once, by weight; beyond that the sender gets an error of type wait.
const AT_ONCE: Limits = Limits::new(64 << 20, 4 << 20, 8);
/// The weight of a request besides its stanza: 4096 small ones fit in all, 256 for one user.
const REQUEST: usize = 16 << 10;
/// Checks of resources' presence that run at once.
const SIGNS: Limits = Limits::new(128, 16, 1);
/// The presence rates of one user without access, and of all users without access of one domain.
const GUEST_RATES: (Rate, Rate) =
    (Rate { per_second: 1.0, burst: 4.0 }, Rate { per_second: 50.0, burst: 500.0 });
/// The presence rate of a domain, as a multiple of one user's.
const DOMAIN_RATE: u32 = 500;

/// The router's settings.
#[derive(Clone, Debug)]
pub struct Options {
    /// The component's address.
    pub jid: BareJid,
    /// Its name in service discovery.
    pub name: String,
    /// Contact addresses of the operators, as URIs (XEP-0157).
    pub contact: Vec<String>,
    /// The longest stanza that can be sent, in bytes.
    pub max_stanza_bytes: usize,
    /// Decides who may use it.
    pub access: Doors,
    /// Requests per second for each user.
    pub requests_per_second: u32,
    /// The SOCKS5 addresses that are announced to users; empty without SOCKS5.
    pub advertise: Vec<(String, u16)>,
    /// Whether SOCKS5 is on.
    pub socks5: bool,
    /// Whether in-band legs are on.
    pub ibb: bool,
    /// Whether the registry imports OpenPGP keys that users publish in PEP.
    pub import_pep: bool,
    /// The most open proposals of sessions: in all, and for each user.
    pub proposals: (usize, usize),
}

impl Options {
    /// Returns the answer to disco#info at the component itself.
    fn info(&self) -> Element {
        disco::info(&self.name, &self.contact, self.socks5, self.ibb)
    }
}

/// Creates an empty set of proposals.
fn proposals(options: &Options) -> Proposals {
    let (jid, now) = (options.jid.clone(), tokio::time::Instant::now());
    let mut proposals = Proposals::new(jid, random_id, options.proposals, now);
    proposals.set_max_stanza_bytes(options.max_stanza_bytes);
    proposals
}

/// Returns the answer to a request of the registry, after queuing its notice.
async fn finish(
    stanza: &Stanza,
    done: Result<Handled, RegistryRefusal>,
    notices: &mpsc::Sender<KeyNotice>,
) -> Element {
    match done {
        Ok(Handled { answer, notice }) => {
            if let Some(notice) = notice {
                let _ = notices.send(notice).await;
            }
            stanza.result(answer)
        }
        Err(refusal) => stanza.refuse(refusal),
    }
}

/// Returns the certificates that a user publishes; `None` if the user's server does not answer.
async fn published_keys(requests: &Requests, own: &Jid, user: &Jid) -> Option<Vec<Vec<u8>>> {
    let ask = |payload| requests.request(RequestKind::Get, own, user, payload, FORWARD);
    // An error means that the user publishes nothing openly. Silence means nothing.
    let listed = match ask(pep::list_request()).await {
        Answer::Result(Some(answer)) => pep::fingerprints(&answer),
        Answer::Result(None) | Answer::Error(_) => Vec::new(),
        Answer::Timeout => return None,
    };
    let mut published = Vec::new();
    for fingerprint in listed {
        match ask(pep::key_request(&fingerprint)).await {
            Answer::Result(Some(answer)) => published.extend(pep::certificate(&answer)),
            Answer::Result(None) | Answer::Error(_) => {}
            Answer::Timeout => return None,
        }
    }
    Some(published)
}

/// Limits on presences.
#[derive(Debug)]
struct PresenceRates {
    users: [Rates; 2],
    domains: [Rates; 2],
}

impl PresenceRates {
    /// Users with access may send as many presences as requests.
    fn new(per_second: u32) -> Self {
        let domain = Rate::per_second(per_second.saturating_mul(DOMAIN_RATE));
        Self {
            users: [Rates::at(GUEST_RATES.0), Rates::new(per_second)],
            domains: [Rates::at(GUEST_RATES.1), Rates::at(domain)],
        }
    }

    fn allow(&mut self, user: &BareJid, has_access: bool, now: Instant) -> bool {
        let kind = usize::from(has_access);
        self.users[kind].allow(user, now) && self.domains[kind].allow_domain(user, now)
    }
}

/// A stanza that was set aside until it was known whether its sender may know of its addressee. It is handled again.
#[derive(Debug)]
pub struct Known(Box<Stanza>, bool);

/// The result of a check whether a resource is present.
#[derive(Debug)]
pub struct Asked {
    jid: Arc<FullJid>,
    sign: Sign,
    /// The resource's answer to disco#info.
    info: Option<Element>,
    /// When the check was sent, and the number of the link that carried it.
    at: tokio::time::Instant,
    link: u64,
}

/// The result of work that the router has delegated.
#[derive(Debug)]
pub enum Report {
    /// A check whether a resource is present has ended.
    Asked(Box<Asked>),
    /// A session-initiate was not acknowledged.
    Unanswered(Box<Unanswered>),
    /// The published keys of a user have been read.
    PublishedKeys(BareJid),
}

/// The channels from delegated work back to the router's task.
#[derive(Clone, Debug)]
pub struct Back {
    /// For [`Router::handle_report`].
    pub reports: mpsc::Sender<Report>,
    /// For [`Router::handle_known`].
    pub known: mpsc::Sender<Known>,
    /// For [`Router::notify`].
    pub notices: mpsc::Sender<KeyNotice>,
}

/// Sends each stanza to the role that answers it.
#[derive(Debug)]
pub struct Router {
    options: Options,
    outbound: mpsc::Sender<Element>,
    requests: Requests,
    broker: Broker,
    registry: Registry,
    commands: Commands,
    table: TransferTable,
    control: Control,
    cluster: Cluster,
    back: Back,
    identity: Arc<Identity>,
    presences: Presences,
    /// Stanzas to bare JIDs, by JID, that wait for answers of resources.
    waiting: HashMap<BareJid, Vec<Waiting>>,
    reachable: Reachable,
    /// The users whose published keys are being read.
    readers: pep::Readers,
    proposals: Proposals,
    rates: Rates,
    presence_rates: PresenceRates,
    /// The number of times that the link came up.
    links: u64,
    /// The answer to disco#info, as XML; empty before the first.
    info: Vec<u8>,
    at_once: Permits,
    signs: Permits,
    tasks: TaskTracker,
    started: Instant,
}

impl Router {
    /// Creates a router between the link's queue and the three roles. The caller gives the contents of `back` to
    /// [`Router::handle_known`] and [`Router::notify`].
    #[expect(clippy::too_many_arguments, reason = "each is one of the parts that it joins")]
    pub fn new(
        options: Options,
        outbound: mpsc::Sender<Element>,
        requests: Requests,
        broker: Broker,
        registry: Registry,
        table: TransferTable,
        control: Control,
        cluster: Cluster,
        back: Back,
        identity: Arc<Identity>,
        reachable: Reachable,
        tasks: TaskTracker,
    ) -> Self {
        let rates = Rates::new(options.requests_per_second);
        let presence_rates = PresenceRates::new(options.requests_per_second);
        let proposals = proposals(&options);
        Self {
            commands: Commands::new(registry.clone(), control.clone()),
            options,
            outbound,
            requests,
            broker,
            registry,
            table,
            control,
            cluster,
            back,
            identity,
            presences: Presences::new(),
            waiting: HashMap::new(),
            reachable,
            readers: pep::Readers::default(),
            proposals,
            rates,
            presence_rates,
            links: 0,
            info: Vec::new(),
            at_once: Permits::new(AT_ONCE),
            signs: Permits::new(SIGNS),
            tasks,
            started: Instant::now(),
        }
    }

    /// Applies new access lists and a new name after a reload.
    pub fn reload(&mut self, options: Options) {
        self.rates = Rates::new(options.requests_per_second);
        self.presence_rates = PresenceRates::new(options.requests_per_second);
        self.info.clear();
        self.options = options;
    }

    /// Handles one stanza from the link.
    pub fn handle(&mut self, element: Element) {
        let stanza = match Stanza::parse_canonical(element) {
            Ok(stanza) => stanza,
            Err(unreadable) => {
                debug!(reason = %unreadable, "stanza cannot be handled");
                if let Some(refusal) = refuse_address(&unreadable) {
                    self.send(refusal);
                }
                return;
            }
        };
        if !self.cluster.leads() {
            if !self.handle_rest(&stanza) {
                self.hand_over(&stanza);
            }
            return;
        }
        // A server may send an error in the name of its user.
        if stanza.type_ != StanzaType::Error && self.presences.count() > 0 {
            self.presences.heard(&stanza.from, tokio::time::Instant::now());
        }
        match stanza.kind {
            Kind::Presence => self.handle_presence(&stanza),
            Kind::Message => self.handle_message(&stanza),
            Kind::Iq if stanza.is_request() => {
                if let Err(refusal) = self.handle_request(&stanza, None) {
                    self.refuse(&stanza, refusal);
                }
            }
            Kind::Iq if matches!(stanza.type_, StanzaType::Result | StanzaType::Error) => {
                if !self.broker.handle_ibb_answer(&stanza) && !self.requests.handle(&stanza) {
                    debug!("dropped an answer that matches no request");
                }
            }
            Kind::Iq => {
                self.send(stanza.refuse(FrontRefusal::IqType));
            }
        }
    }

    /// Handles a stanza while another instance leads: answers to this instance's own requests, and stanzas of sessions
    /// that run on since this one led.
    fn handle_rest(&self, stanza: &Stanza) -> bool {
        match stanza.kind {
            Kind::Iq if stanza.is_request() => {
                let is_jingle = stanza.payload().is_some_and(|payload| payload.name() == "jingle");
                is_jingle && self.broker.handle_jingle(stanza) || self.broker.handle_ibb(stanza)
            }
            Kind::Iq => self.broker.handle_ibb_answer(stanza) || self.requests.handle(stanza),
            Kind::Message => self.broker.handle_ibb(stanza),
            Kind::Presence => false,
        }
    }

    fn hand_over(&self, stanza: &Stanza) {
        // A blocked user takes no place from others.
        let handed = match self.options.access.blocks(&stanza.from.to_bare()) {
            true => Err(Refusal::from(FrontRefusal::Forbidden)),
            false => self.cluster.hand_over(stanza).map_err(Refusal::from),
        };
        if let Err(refusal) = handed {
            match stanza.is_request() {
                true => self.send(stanza.refuse(refusal)),
                false => metrics::STANZAS_DROPPED.count(&["cluster"]),
            }
        }
    }

    /// Hands over to another instance that leads, which keeps its own view of the users.
    pub fn follow(&mut self) {
        self.presences = Presences::new();
        for waiting in std::mem::take(&mut self.waiting).into_values().flatten() {
            self.hand_over(&waiting.stanza);
        }
        self.proposals = proposals(&self.options);
        self.readers = pep::Readers::default();
    }

    /// Asks all known users whether they are present, because presences may have been missed or are old.
    pub fn ask_everybody(&mut self) {
        self.broker.check_users();
        self.presences.link_is_up(tokio::time::Instant::now());
    }

    fn send(&self, element: Element) {
        if self.outbound.try_send(element).is_err() {
            metrics::STANZAS_DROPPED.count(&["queue"]);
            warn!("dropped an answer: the queue to the XMPP server is full");
        }
    }

    /// Handles a request. `found`: what was learned since the first attempt.
    fn handle_request(
        &mut self,
        stanza: &Stanza,
        found: Option<Findings>,
    ) -> Result<(), FrontRefusal> {
        let mut payloads = stanza.element.children().filter(|child| !child.is("error", ns::CLIENT));
        let (Some(payload), None) = (payloads.next(), payloads.next()) else {
            return Err(FrontRefusal::Children);
        };
        let asker = stanza.from.to_bare();
        if self.options.access.blocks(&asker) {
            return Err(FrontRefusal::Forbidden);
        }
        let is_jingle = payload.is("jingle", ns::JINGLE) || payload.is("jingle", ns::JINGLE_0);
        // A session admits its own stanzas: its callee need not be a user of the service.
        if is_jingle && stanza.type_ == StanzaType::Set && self.broker.handle_jingle(stanza) {
            return Ok(());
        }
        if payload.has_ns(ns::IBB) && stanza.type_ == StanzaType::Set {
            if self.broker.handle_ibb(stanza) {
                return Ok(());
            }
            return Err(FrontRefusal::NoSuchBytestream);
        }
        if is_jingle && found.is_none() && self.handle_waiting(stanza, payload)? {
            return Ok(());
        }
        if found.is_none() && !self.rates.allow(&asker, Instant::now()) {
            return Err(FrontRefusal::TooFast);
        }
        if !self.options.access.admits(&asker) {
            if is_jingle && self.broker.remembers(stanza) {
                return Err(SessionRefusal::Over.into());
            }
            if !self.serves_callee(stanza, payload) {
                return Err(FrontRefusal::Forbidden);
            }
        }
        if stanza.to.node().is_none() {
            return self.handle_own(stanza, payload);
        }
        let Some(callee) = unproxied(&stanza.to, &self.options.jid) else {
            return Err(FrontRefusal::NoSuchUser);
        };
        if self.options.access.blocks(&callee.to_bare()) {
            return Err(SessionRefusal::Unreachable.into());
        }
        if is_jingle && self.broker.is_room(callee.domain().as_str()) == Some(true) {
            return Err(SessionRefusal::Room.into());
        }
        let forwarded = payload.is("query", ns::DISCO_INFO) || payload.is("ping", ns::PING);
        if stanza.type_ == StanzaType::Get && payload.is("offer", ns::C2CTLS) {
            return self.handle_offer(stanza, payload.clone(), callee, found);
        }
        if stanza.type_ == StanzaType::Get && payload.is("pubkey", ns::PUBKEY) {
            let (registry, stanza) = (self.registry.clone(), stanza.clone());
            return self.work(self.permit(&stanza)?, async move {
                match registry.pubkey(&stanza.from.to_bare(), &callee.to_bare()).await {
                    Ok(pubkey) => stanza.result(Some(pubkey)),
                    Err(refusal) => stanza.refuse(refusal),
                }
            });
        }
        if is_jingle && stanza.type_ == StanzaType::Set {
            if jingle::action(payload) != Action::SessionInitiate {
                return Err(FrontRefusal::NoSuchSession);
            }
            let sid = payload.attr("sid").unwrap_or_default();
            let now = tokio::time::Instant::now();
            if let Some((taker, sid)) = self.proposals.session(&stanza.from, &callee, sid, now) {
                let callee = Callee { sid: Some(sid), ..Callee::new(taker.into()) };
                return Ok(self.broker.initiate(stanza.clone(), callee)?);
            }
            let application = self.broker.application(payload);
            return match self.reachable(stanza, callee, application.as_deref(), found)? {
                Some(taken) => self.initiate(stanza, taken),
                None => Ok(()),
            };
        }
        if forwarded && stanza.type_ == StanzaType::Get {
            return match self.reachable(stanza, callee, None, found)? {
                Some(Taken { jid, .. }) => self.forward(stanza, payload.clone(), jid),
                None => Ok(()),
            };
        }
        Err(FrontRefusal::NotSupported)
    }

    /// Returns whether a request is part of a session that its sender has. A callee need not be a user of the service,
    /// and may use what a session needs, at the address of the other user and at the component.
    fn serves_callee(&self, stanza: &Stanza, payload: &Element) -> bool {
        let get = stanza.type_ == StanzaType::Get;
        let asks = payload.is("ping", ns::PING)
            || payload.is("query", ns::DISCO_INFO) && payload.attr("node").is_none();
        if stanza.to.node().is_some() {
            let asks = asks || payload.is("offer", ns::C2CTLS);
            return get && asks && self.broker.has_session(&stanza.from, Some(&stanza.to));
        }
        let is_streamhost = payload.is("query", ns::BYTESTREAMS);
        if get {
            return (asks || is_streamhost) && self.broker.has_session(&stanza.from, None);
        }
        // The client that offers the component as its proxy activates the stream.
        let target = payload.get_child("activate", ns::BYTESTREAMS).map(Element::text);
        let target = target.and_then(|target| canonical(target.trim()));
        is_streamhost
            && target.is_some_and(|target| self.broker.has_session(&stanza.from, Some(&target)))
    }

    /// Returns whether the sender of a stanza may know of `owner`. `None`: the stanza will be handled when that is
    /// known.
    fn admitted(
        &self,
        stanza: &Stanza,
        owner: &BareJid,
        known: Option<bool>,
    ) -> Result<Option<bool>, FrontRefusal> {
        if known.is_none() && !self.registry.shows(&stanza.from.to_bare(), owner) {
            self.look_up(stanza, owner.clone())?;
            return Ok(None);
        }
        Ok(Some(known.unwrap_or(true)))
    }

    /// Handles a message of Jingle message initiation: a proposal, or a message about one.
    fn handle_initiation(
        &mut self,
        stanza: &Stanza,
        known: Option<bool>,
    ) -> Result<(), FrontRefusal> {
        let asker = stanza.from.to_bare();
        if self.options.access.blocks(&asker) {
            return Err(FrontRefusal::Forbidden);
        }
        if known.is_none() && !self.rates.allow(&asker, Instant::now()) {
            return Err(FrontRefusal::TooFast);
        }
        let Some(peer) = unproxied(&stanza.to, &self.options.jid) else {
            return Err(FrontRefusal::NoSuchUser);
        };
        if self.options.access.blocks(&peer.to_bare()) {
            return Err(SessionRefusal::Unreachable.into());
        }
        let now = tokio::time::Instant::now();
        let proposes =
            message_initiation::read(stanza).is_some_and(|(action, _)| action == "propose");
        let out = if proposes {
            if !self.options.access.admits(&asker) {
                return Err(FrontRefusal::Forbidden);
            }
            if peer.resource().is_some() {
                return Err(FrontRefusal::NotSupported);
            }
            let callee = peer.to_bare();
            let Some(admitted) = self.admitted(stanza, &callee, known)? else { return Ok(()) };
            let resources = self.presences.all(&callee).filter(|_| admitted).cloned().collect();
            let mut out = self.proposals.propose(stanza, &callee, resources, now)?;
            out.extend(self.check_all(&callee, now));
            out
        } else {
            // The proposal's addressee need not be a user of the service.
            self.proposals.handle(stanza, &peer, now)?
        };
        self.send_all(out);
        Ok(())
    }

    fn send_all(&self, elements: Vec<Element>) {
        for element in elements {
            self.send(element);
        }
    }

    /// Returns when [`Router::expire`] is due, if ever.
    pub fn deadline(&self) -> Option<tokio::time::Instant> {
        [self.proposals.deadline(), self.presences.deadline()].into_iter().flatten().min()
    }

    /// Takes the resources that were reachable when the component last ran.
    pub fn recall(&mut self, reachable: Vec<(FullJid, i8)>) {
        let now = tokio::time::Instant::now();
        for (jid, priority) in reachable {
            if self.options.access.admits(&jid.to_bare()) {
                self.presences.recall(jid, priority, now);
            }
        }
        self.pass_changes();
    }

    /// Handles a link that came up, for the first time or again.
    pub fn link_is_up(&mut self) {
        self.links += 1;
        if self.links > 1 {
            self.broker.link_is_back();
        }
        self.presences.link_is_up(tokio::time::Instant::now());
    }

    /// Handles the loss of the link.
    pub fn link_is_down(&mut self) {
        self.presences.link_is_down();
    }

    /// Ends what has waited too long, and checks users who have been silent too long.
    pub fn expire(&mut self) {
        let now = tokio::time::Instant::now();
        self.expire_proposals(now);
        while let Some(jid) = self.presences.ask(now) {
            self.ask_for_sign(jid, now);
        }
        self.pass_changes();
    }

    /// Checks whether a resource is still present.
    fn ask_for_sign(&mut self, jid: Arc<FullJid>, now: tokio::time::Instant) {
        let Ok(permit) = self.signs.take(&jid.to_bare(), 1) else {
            return self.presences.postpone(&jid, now);
        };
        self.question(jid, now, SIGN, permit);
    }

    /// Handles the result of delegated work.
    pub fn handle_report(&mut self, report: Report) {
        match report {
            Report::Asked(asked) => self.handle_sign(*asked),
            Report::Unanswered(unanswered) => self.handle_unanswered(*unanswered),
            Report::PublishedKeys(user) => {
                if let Some(next) = self.readers.done(&user, Instant::now()) {
                    self.read_pep(next);
                }
            }
        }
    }

    /// Passes on changes of reachable resources.
    fn pass_changes(&mut self) {
        while let Some(change) = self.presences.poll_change() {
            if let Change::Gone { jid, .. } = &change {
                let jid = Jid::from(FullJid::clone(jid));
                self.broker.forget(&jid);
                let out = self.proposals.gone(&jid);
                self.send_all(out);
            }
            self.reachable.note(change);
        }
    }

    /// Looks up whether a stanza's sender may know of `owner`, then has the stanza handled again.
    fn look_up(&self, stanza: &Stanza, owner: BareJid) -> Result<(), FrontRefusal> {
        let permit = self.permit(stanza)?;
        let (registry, again) = (self.registry.clone(), self.back.known.clone());
        let (outbound, stanza) = (self.outbound.clone(), stanza.clone());
        self.tasks.spawn(async move {
            let _permit = permit;
            match registry.visible(&stanza.from.to_bare(), &owner).await {
                Ok(visible) => {
                    let _ = again.send(Known(Box::new(stanza), visible.is_some())).await;
                }
                Err(error) => {
                    let _ = outbound.send(stanza.refuse(RegistryRefusal::from(error))).await;
                }
            }
        });
        Ok(())
    }

    /// Handles a stanza again, now that it is known whether its sender may know of its addressee.
    pub fn handle_known(&mut self, known: Known) {
        let Known(stanza, admitted) = known;
        let handled = match stanza.kind {
            Kind::Message => self.handle_initiation(&stanza, Some(admitted)),
            _ => self.handle_request(&stanza, Some(Findings::admitted(admitted))),
        };
        if let Err(refusal) = handled {
            self.refuse(&stanza, refusal);
        }
    }

    /// Sends one chat message to the bare JID and to each reachable resource.
    pub fn notify(&self, notice: &KeyNotice) {
        let resources = self.presences.all(&notice.owner);
        let to =
            std::iter::once(notice.owner.to_string()).chain(resources.map(ToString::to_string));
        for to in to {
            let mut message = xml::element(
                "message",
                ns::CLIENT,
                &[
                    ("type", "chat"),
                    ("from", self.options.jid.as_str()),
                    ("to", &to),
                    ("id", &random_id()),
                ],
            );
            let mut body = Element::bare("body", ns::CLIENT);
            body.append_text(notice.text.as_str());
            message.append_child(body);
            self.send(message);
        }
    }

    /// Asks the callee and passes the answer back to the asker alone.
    fn forward(&self, stanza: &Stanza, payload: Element, callee: Jid) -> Result<(), FrontRefusal> {
        let Some(mask) = fingerpost_wire::jid::proxied(&stanza.from, &self.options.jid) else {
            return Err(FrontRefusal::LongJid);
        };
        let (requests, stanza) = (self.requests.clone(), stanza.clone());
        self.work(self.permit(&stanza)?, async move {
            match requests.request(RequestKind::Get, &mask, &callee, payload, FORWARD).await {
                Answer::Result(payload) => stanza.result(payload),
                Answer::Error(error) => stanza.error(of_peer(error)),
                Answer::Timeout => stanza.refuse(FrontRefusal::NoAnswer),
            }
        })
    }

    /// Handles a XEP-0250 query. The callee answers it; if the callee cannot be reached, the registry answers.
    fn handle_offer(
        &mut self,
        stanza: &Stanza,
        payload: Element,
        callee: Jid,
        found: Option<Findings>,
    ) -> Result<(), FrontRefusal> {
        let owner = callee.to_bare();
        let reached = match self.reachable(stanza, callee, None, found) {
            Ok(Some(taken)) => Some(taken.jid),
            Ok(None) => return Ok(()),
            Err(_) => None,
        };
        let Some(mask) = fingerpost_wire::jid::proxied(&stanza.from, &self.options.jid) else {
            return Err(FrontRefusal::LongJid);
        };
        let (requests, registry, stanza) =
            (self.requests.clone(), self.registry.clone(), stanza.clone());
        self.work(self.permit(&stanza)?, async move {
            if let Some(callee) = reached {
                let asked = requests
                    .request(RequestKind::Get, &mask, &callee, payload.clone(), FORWARD)
                    .await;
                if let Answer::Result(answer) = asked {
                    return stanza.result(answer);
                }
            }
            match registry.offer(&stanza.from.to_bare(), &owner, &payload).await {
                Ok(offer) => stanza.result(Some(offer)),
                Err(refusal) => stanza.refuse(refusal),
            }
        })
    }

    /// Answers a request in a task of its own, which holds the request's place.
    fn work(
        &self,
        permit: Permit,
        answer: impl Future<Output = Element> + Send + 'static,
    ) -> Result<(), FrontRefusal> {
        let outbound = self.outbound.clone();
        self.tasks.spawn(async move {
            let _permit = permit;
            let element = answer.await;
            let _ = outbound.send(element).await;
        });
        Ok(())
    }

    /// Takes a place among the requests in work.
    fn permit(&self, stanza: &Stanza) -> Result<Permit, FrontRefusal> {
        let weight = REQUEST + stanza.weight();
        self.at_once.take(&stanza.from.to_bare(), weight).map_err(|full| match full {
            Full::User => FrontRefusal::TooManyInWork,
            Full::All | Full::Domain => FrontRefusal::Busy,
        })
    }

    /// Handles requests to the component itself.
    fn handle_own(&self, stanza: &Stanza, payload: &Element) -> Result<(), FrontRefusal> {
        let get = stanza.type_ == StanzaType::Get;
        let answer = match (payload.name(), payload.ns().as_str()) {
            ("query", ns::DISCO_INFO) if get => match payload.attr("node") {
                None => self.options.info(),
                Some(ns::COMMANDS) => disco::commands(),
                Some(node) => match self.commands.find(node, &stanza.from.to_bare()) {
                    Some(command) => disco::command(node, command.title),
                    None => return Err(FrontRefusal::NoSuchNode),
                },
            },
            ("query", ns::DISCO_ITEMS) if get => {
                let mut query = Element::bare("query", ns::DISCO_ITEMS);
                if let Some(node) = payload.attr("node") {
                    if node != ns::COMMANDS {
                        return Err(FrontRefusal::NoSuchNode);
                    }
                    xml::set(&mut query, "node", node);
                    for command in self.commands.list(&stanza.from.to_bare()) {
                        let node = command.node();
                        let item = [
                            ("jid", self.options.jid.as_str()),
                            ("node", node.as_str()),
                            ("name", command.title),
                        ];
                        query.append_child(xml::element("item", ns::DISCO_ITEMS, &item));
                    }
                }
                query
            }
            ("ping", ns::PING) if get => return self.reply(stanza, None),
            ("query", ns::VERSION) if get => {
                let mut query = Element::bare("query", ns::VERSION);
                for (name, text) in [("name", "Fingerpost"), ("version", env!("CARGO_PKG_VERSION"))]
                {
                    let mut child = Element::bare(name, ns::VERSION);
                    child.append_text(text);
                    query.append_child(child);
                }
                query
            }
            ("query", ns::LAST) if get => {
                let seconds = self.started.elapsed().as_secs().to_string();
                xml::element("query", ns::LAST, &[("seconds", &seconds)])
            }
            ("time", ns::TIME) if get => {
                let mut time = Element::bare("time", ns::TIME);
                let now = OffsetDateTime::now_utc();
                let now = now.replace_nanosecond(0).unwrap_or(now);
                let utc = now.format(&Rfc3339).map_err(|_| FrontRefusal::Failed)?;
                for (name, text) in [("tzo", "+00:00"), ("utc", utc.as_str())] {
                    let mut child = Element::bare(name, ns::TIME);
                    child.append_text(text);
                    time.append_child(child);
                }
                time
            }
            ("query", ns::BYTESTREAMS) if self.options.socks5 => {
                return self.handle_bytestreams(stanza, payload, get);
            }
            ("jingle", ns::JINGLE | ns::JINGLE_0) if !get => {
                if jingle::action(payload) != Action::SessionInitiate {
                    return Err(FrontRefusal::NoSuchSession);
                }
                let (identity, notices) = (Arc::clone(&self.identity), self.back.notices.clone());
                return Ok(self.broker.initiate_own(stanza.clone(), identity, notices)?);
            }
            ("command", ns::COMMANDS) if !get => return self.handle_command(stanza, payload),
            (_, ns::SASLCERT) => {
                let (registry, payload) = (self.registry.clone(), payload.clone());
                let (stanza_, notices) = (stanza.clone(), self.back.notices.clone());
                let room = self.room(stanza);
                return self.work(self.permit(stanza)?, async move {
                    let now = OffsetDateTime::now_utc();
                    let from = &stanza_.from;
                    let done =
                        registry.handle_saslcert_within(from, !get, &payload, now, room).await;
                    finish(&stanza_, done, &notices).await
                });
            }
            (_, ns::KEYS) => return self.handle_keys(stanza, payload, get),
            _ => return Err(FrontRefusal::NotSupported),
        };
        self.reply(stanza, Some(answer))
    }

    fn reply(&self, stanza: &Stanza, payload: Option<Element>) -> Result<(), FrontRefusal> {
        self.send(stanza.result(payload));
        Ok(())
    }

    /// Handles XEP-0065: the address query (get) and the activation (set).
    fn handle_bytestreams(
        &self,
        stanza: &Stanza,
        query: &Element,
        get: bool,
    ) -> Result<(), FrontRefusal> {
        if get {
            let mut answer = Element::bare("query", ns::BYTESTREAMS);
            for (host, port) in &self.options.advertise {
                answer.append_child(xml::element(
                    "streamhost",
                    ns::BYTESTREAMS,
                    &[
                        ("jid", self.options.jid.as_str()),
                        ("host", host),
                        ("port", &port.to_string()),
                    ],
                ));
            }
            return self.reply(stanza, Some(answer));
        }
        let sid = query.attr("sid").filter(|sid| !sid.is_empty());
        let target = query
            .get_child("activate", ns::BYTESTREAMS)
            .and_then(|activate| Jid::new(activate.text().trim()).ok());
        let (Some(sid), Some(target)) = (sid, target) else {
            return Err(FrontRefusal::Activation);
        };
        if self.options.access.blocks(&target.to_bare()) {
            return Err(FrontRefusal::Forbidden);
        }
        match self.table.try_activate(&stanza.from, sid, &target) {
            Ok(()) => return self.reply(stanza, None),
            Err(NotActivated::OneSide) => {}
            Err(refusal) => return Err(FrontRefusal::Relay(refusal)),
        }
        let (table, stanza, sid) = (self.table.clone(), stanza.clone(), sid.to_owned());
        let control = self.control.clone();
        self.work(self.permit(&stanza)?, async move {
            match table.activate_soon(&stanza.from, &sid, &target).await {
                Ok(()) => {
                    // A user may have been blocked while the request waited.
                    let barred = |jid: &Jid| control.doors().blocks(&jid.to_bare());
                    if barred(&stanza.from) || barred(&target) {
                        control.enforce();
                    }
                    stanza.result(None)
                }
                Err(refusal) => stanza.refuse(refusal),
            }
        })
    }

    /// Returns the longest permitted payload of the answer to a request.
    fn room(&self, stanza: &Stanza) -> usize {
        rsm::room_inside(&stanza.result(None), self.options.max_stanza_bytes)
    }

    fn handle_keys(
        &self,
        stanza: &Stanza,
        payload: &Element,
        get: bool,
    ) -> Result<(), FrontRefusal> {
        let registry = self.registry.clone();
        let payload = payload.clone();
        let kind = if get { RequestKind::Get } else { RequestKind::Set };
        let room = self.room(stanza);
        let (stanza, notices) = (stanza.clone(), self.back.notices.clone());
        self.work(self.permit(&stanza)?, async move {
            let now = OffsetDateTime::now_utc();
            let done = registry.handle_within(&stanza.from, kind, &payload, now, room).await;
            finish(&stanza, done, &notices).await
        })
    }

    fn handle_command(&self, stanza: &Stanza, payload: &Element) -> Result<(), FrontRefusal> {
        let (commands, payload) = (self.commands.clone(), payload.clone());
        let room = self.room(stanza);
        let (stanza, notices) = (stanza.clone(), self.back.notices.clone());
        self.work(self.permit(&stanza)?, async move {
            let now = OffsetDateTime::now_utc();
            match commands.handle_within(&stanza.from, &payload, now, room).await {
                Ok((answer, notice)) => {
                    if let Some(notice) = notice {
                        let _ = notices.send(notice).await;
                    }
                    stanza.result(Some(answer))
                }
                Err(refusal) => stanza.refuse(refusal),
            }
        })
    }

    fn handle_presence(&mut self, stanza: &Stanza) {
        let user = stanza.from.to_bare();
        if self.options.access.blocks(&user) {
            return;
        }
        let jid = full(&stanza.from);
        match (stanza.type_, jid) {
            // Accepted at any rate: it frees resources.
            (StanzaType::Unavailable | StanzaType::Error, Some(jid)) => {
                self.presences.unavailable(&jid);
                self.withdraw_all(&stanza.from);
                self.broker.user_gone(&stanza.from);
                self.broker.forget(&stanza.from);
                let out = self.proposals.gone(&stanza.from);
                self.send_all(out);
                self.pass_changes();
            }
            (StanzaType::Absent | StanzaType::Unavailable | StanzaType::Error, None) => {}
            (StanzaType::Absent | StanzaType::Subscribe | StanzaType::Probe, jid) => {
                let has_access = self.options.access.admits(&user);
                if !self.presence_rates.allow(&user, has_access, Instant::now()) {
                    metrics::PRESENCES_DROPPED.count(&["rate"]);
                    return;
                }
                match (stanza.type_, jid) {
                    (StanzaType::Absent, Some(jid)) => self.available(stanza, jid, has_access),
                    (StanzaType::Subscribe, _) => self.presence(stanza, "subscribed"),
                    _ => self.presence(stanza, ""),
                }
            }
            _ => {}
        }
    }

    /// Handles the presence of a resource that says that it is reachable.
    fn available(&mut self, stanza: &Stanza, jid: FullJid, has_access: bool) {
        let priority = stanza
            .element
            .get_child("priority", ns::CLIENT)
            .and_then(|priority| priority.text().trim().parse().ok())
            .unwrap_or(0);
        let user = stanza.from.to_bare();
        let now = tokio::time::Instant::now();
        let taken = self.presences.available(jid, priority, has_access, now);
        self.pass_changes();
        if let Some(jid) = full(&stanza.from) {
            self.proposals.here(&jid);
        }
        match taken {
            Ok(came) => {
                if came {
                    // Another program may have the address now.
                    self.broker.forget(&stanza.from);
                }
                self.broker.announce(stanza);
                if came && has_access && self.options.import_pep {
                    self.refresh_pep(user);
                }
            }
            Err(full) => {
                metrics::PRESENCES_DROPPED.count(&["share"]);
                debug!(%full, "presence refused: no place for another reachable resource");
            }
        }
    }

    /// Reads the OpenPGP keys that a newly reachable user publishes, when the user's turn comes.
    fn refresh_pep(&mut self, user: BareJid) {
        if self.readers.begin(&user, Instant::now()) {
            self.read_pep(user);
        }
    }

    fn read_pep(&self, user: BareJid) {
        let (requests, registry) = (self.requests.clone(), self.registry.clone());
        let (own, back) = (Jid::from(self.options.jid.clone()), self.back.clone());
        self.tasks.spawn(async move {
            let to = Jid::from(user.clone());
            if let Some(published) = published_keys(&requests, &own, &to).await {
                match registry.refresh_pep(&user, &published, OffsetDateTime::now_utc()).await {
                    Ok(changes) => {
                        for notice in changes {
                            let _ = back.notices.send(notice).await;
                        }
                    }
                    Err(error) => warn!(%error, "could not store published keys"),
                }
            }
            let _ = back.reports.send(Report::PublishedKeys(user)).await;
        });
    }

    fn presence(&self, stanza: &Stanza, type_: &str) {
        let mut presence = xml::element(
            "presence",
            ns::CLIENT,
            &[("from", stanza.to.as_str()), ("to", stanza.from.as_str())],
        );
        if !type_.is_empty() {
            xml::set(&mut presence, "type", type_);
        }
        self.send(presence);
    }

    fn handle_message(&mut self, stanza: &Stanza) {
        if self.broker.handle_ibb(stanza) || stanza.type_ == StanzaType::Error {
            return;
        }
        if stanza.element.children().any(|child| child.has_ns(ns::JINGLE_MESSAGE)) {
            if let Err(refusal) = self.handle_initiation(stanza, None) {
                self.refuse(stanza, refusal);
            }
            return;
        }
        // A message that a person wrote gets an answer; notices and the like do not.
        let has_body = stanza.element.has_child("body", ns::CLIENT);
        if has_body && self.rates.allow(&stanza.from.to_bare(), Instant::now()) {
            self.send(stanza.refuse(FrontRefusal::NotSupported));
        }
    }
}

#[cfg(test)]
mod tests;
