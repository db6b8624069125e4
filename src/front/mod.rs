//! Gives each stanza exactly one answer, and no answer where the protocol forbids one.

mod caps;
mod choice;
mod component;
pub mod disco;
mod message;
mod plain;
mod presence;
mod profile;
mod rates;
mod refusal;
mod requests;
mod waiting;
mod watching;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use fingerpost_carry::{
    iq::{Requests, random_id},
    outbound::Outbound,
    shares::{Full, Limits, Permit, Permits},
};
use fingerpost_secure::identity::Identity;
use fingerpost_wire::{
    ns,
    stanza::{Kind, Refusal, Stanza, StanzaType},
};
use jid::{BareJid, FullJid, Jid};
use minidom::Element;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use self::{
    caps::{ContactCaps, OwnCaps},
    rates::{ChatRates, PresenceRates},
    refusal::FrontRefusal,
    waiting::{Findings, Unanswered, WaitingStanzas},
    watching::Probe,
};
use crate::{
    access::Doors,
    chat::Chats,
    cluster::Cluster,
    commands::Commands,
    control::Control,
    limits::Rates,
    metrics,
    refuse::{Refuse as _, refuse_address},
    registry::{KeyNotice, Registry, model::Settings, pep},
    relay::table::TransferTable,
    sessions::{
        Broker,
        features::Translation,
        message_initiation::Proposals,
        presence::{PresenceChange, Presences, Sign},
        reachable::{Reachable, RecalledWatcher},
        watchers::{WatchedPair, Watchers},
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
/// Lookups of whether watchers may know of their contacts that run at once. Few, so that those of requests do not wait
/// for them: a watcher that finds no place is told a little later.
const PROBES: Limits = Limits::new(32, 8, 1);
/// Checks of resources' presence that run at once.
const SIGNS: Limits = Limits::new(128, 16, 1);

/// The router's settings.
#[derive(Clone, Debug)]
pub struct RouterOptions {
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
    /// Whether users may agree on direct connections.
    pub direct: bool,
    /// Whether the registry imports OpenPGP keys that users publish in PEP.
    pub import_pep: bool,
    /// The most open proposals of sessions: in all, and for each user.
    pub proposals: (usize, usize),
    /// The bytestreams for files that are translated between two protocols, if any are.
    pub translation: Option<Translation>,
}

impl RouterOptions {
    /// Returns the answer to disco#info at the component itself.
    fn info(&self) -> Element {
        disco::info(&self.name, &self.contact, self.socks5, self.ibb, self.direct)
    }
}

/// Creates an empty set of proposals.
fn proposals(options: &RouterOptions) -> Proposals {
    let (jid, now) = (options.jid.clone(), tokio::time::Instant::now());
    let mut proposals = Proposals::new(jid, random_id, options.proposals, now);
    proposals.set_max_stanza_bytes(options.max_stanza_bytes);
    proposals
}

/// A stanza that was set aside until it was known whether its sender may know of its addressee. It is handled again.
#[derive(Debug)]
pub struct KnownStanza(Box<Stanza>, bool);

/// The result of a check whether a resource is present.
#[derive(Debug)]
pub struct PresenceCheck {
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
    Asked(Box<PresenceCheck>),
    /// A session-initiate was not acknowledged.
    Unanswered(Box<Unanswered>),
    /// The published keys of a user have been read.
    PublishedKeys(BareJid),
    /// The settings of a user have been read, because its watchers must be told; `None` if that failed.
    Settings(BareJid, Option<Settings>),
    /// The server has worked off so many presences to watchers, or had the time to do so.
    WorkedOff {
        /// Which link it was asked on.
        link: u64,
        /// How many.
        number: usize,
    },
    /// Whether a watcher may know of its contact has been looked up; `None` if that failed.
    Probed(WatchedPair, Option<bool>),
}

/// The channels from delegated work back to the router's task.
#[derive(Clone, Debug)]
pub struct Back {
    /// For [`Router::handle_report`].
    pub reports: mpsc::Sender<Report>,
    /// For [`Router::handle_known`].
    pub known: mpsc::Sender<KnownStanza>,
    /// For [`Router::notify`].
    pub notices: mpsc::Sender<KeyNotice>,
}

/// Sends each stanza to the role that answers it.
#[derive(Debug)]
pub struct Router {
    options: RouterOptions,
    outbound: Outbound,
    requests: Requests,
    broker: Broker,
    registry: Registry,
    commands: Commands,
    chats: Chats,
    table: TransferTable,
    control: Control,
    cluster: Cluster,
    back: Back,
    identity: Arc<Identity>,
    presences: Presences,
    watchers: Watchers,
    /// The subscriptions and probes whose answer is being looked up.
    probes: HashMap<WatchedPair, Probe>,
    waiting: WaitingStanzas,
    reachable: Reachable,
    /// The users whose published keys are being read.
    readers: pep::Readers,
    proposals: Proposals,
    rates: Rates,
    presence_rates: PresenceRates,
    chat_rates: ChatRates,
    /// The number of times that the link came up.
    links: u64,
    /// The capabilities that the component announces of itself.
    own_caps: Option<OwnCaps>,
    contact_caps: ContactCaps,
    /// The answer to disco#info, as XML; empty before the first.
    info: Vec<u8>,
    at_once: Permits,
    looking_up: Permits,
    signs: Permits,
    tasks: TaskTracker,
    started: Instant,
}

impl Router {
    /// Creates a router between the link's queue and the three roles. The caller gives the contents of `back` to
    /// [`Router::handle_known`] and [`Router::notify`].
    #[expect(clippy::too_many_arguments, reason = "each is one of the parts that it joins")]
    pub fn new(
        options: RouterOptions,
        outbound: Outbound,
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
        let commands = Commands::new(registry.clone(), control.clone());
        Self {
            chats: Chats::new(commands.clone()),
            commands,
            own_caps: OwnCaps::of(&options.info()),
            contact_caps: ContactCaps::new(options.translation),
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
            presences: Presences::new(tokio::time::Instant::now()),
            watchers: Watchers::default(),
            probes: HashMap::new(),
            waiting: WaitingStanzas::default(),
            reachable,
            readers: pep::Readers::default(),
            proposals,
            rates,
            presence_rates,
            chat_rates: ChatRates::new(),
            links: 0,
            info: Vec::new(),
            at_once: Permits::new(AT_ONCE),
            looking_up: Permits::new(PROBES),
            signs: Permits::new(SIGNS),
            tasks,
            started: Instant::now(),
        }
    }

    /// Applies new access lists and a new name after a reload.
    pub fn reload(&mut self, options: RouterOptions) {
        self.rates = Rates::new(options.requests_per_second);
        self.presence_rates = PresenceRates::new(options.requests_per_second);
        self.info.clear();
        self.own_caps = OwnCaps::of(&options.info());
        if options.translation != self.options.translation {
            self.contact_caps = ContactCaps::new(options.translation);
            self.watchers.forget_vers();
        }
        self.options = options;
        self.visibility_changed(None);
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
        if stanza.type_ != StanzaType::Error {
            self.hear(&stanza.from);
        }
        match stanza.kind {
            Kind::Presence => self.handle_presence(&stanza),
            Kind::Message => self.handle_message(&stanza),
            // The component asks itself only whether the server has worked off what came before.
            Kind::Iq
                if stanza.is_request() && stanza.from.as_str() == self.options.jid.as_str() =>
            {
                self.send(stanza.result(None));
            }
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

    /// Notes a sign of life of a user.
    fn hear(&mut self, user: &Jid) {
        if self.cluster.leads() && self.presences.count() > 0 {
            self.presences.heard(user, tokio::time::Instant::now());
        }
    }

    /// Handles a stanza while another instance leads: answers to this instance's own requests, and stanzas of sessions
    /// that run on since this one led.
    fn handle_rest(&self, stanza: &Stanza) -> bool {
        match stanza.kind {
            Kind::Iq if stanza.is_request() => match stanza.payload() {
                Some(payload) if payload.name() == "jingle" => self.broker.handle_jingle(stanza),
                Some(query) if query.is("query", ns::BYTESTREAMS) => {
                    self.handle_streamhosts_of_rest(stanza, query)
                }
                _ => self.broker.handle_ibb(stanza),
            },
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
        self.presences = Presences::new(tokio::time::Instant::now());
        self.watchers = Watchers::default();
        self.probes.clear();
        for waiting in std::mem::take(&mut self.waiting).into_all() {
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
        if self.outbound.try_send(element.into()).is_err() {
            metrics::STANZAS_DROPPED.count(&["queue"]);
            warn!("dropped an answer: the queue to the XMPP server is full");
        }
    }

    fn send_all(&self, elements: Vec<Element>) {
        for element in elements {
            self.send(element);
        }
    }

    /// Returns when [`Router::expire`] is due, if ever.
    pub fn deadline(&self) -> Option<tokio::time::Instant> {
        let watchers = self.watchers.deadline().filter(|_| self.presences.is_link_up());
        [self.proposals.deadline(), self.presences.deadline(), watchers].into_iter().flatten().min()
    }

    /// Takes the resources that were reachable when the component last ran, and who watched them.
    pub fn recall(&mut self, reachable: Vec<(FullJid, i8)>, watchers: Vec<RecalledWatcher>) {
        let now = tokio::time::Instant::now();
        for (watcher, contact, day) in watchers {
            self.watchers.recall(&watcher, &contact, day);
        }
        for (jid, priority) in reachable {
            let user = jid.to_bare();
            if self.options.access.admits(&user) {
                self.watchers.recall_resource(&user, &jid, priority, now);
                self.presences.recall(jid, priority, now);
            }
        }
        self.pass_watchers();
        self.pass_changes();
    }

    /// Handles a link that came up, for the first time or again.
    pub fn link_is_up(&mut self) {
        self.links += 1;
        if self.links > 1 {
            self.broker.link_is_back();
        }
        let now = tokio::time::Instant::now();
        self.watchers.link_is_up(now);
        self.presences.link_is_up(now);
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
        self.tell_watchers(now);
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
            Report::Settings(user, settings) => self.handle_settings(&user, settings),
            Report::WorkedOff { link, number } if link == self.links => {
                self.watchers.worked_off(number);
            }
            Report::WorkedOff { .. } => {}
            Report::Probed(pair, admitted) => self.handle_probed(&pair, admitted),
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
            if let PresenceChange::Gone { jid, .. } = &change {
                let jid = Jid::from(FullJid::clone(jid));
                self.watchers.changed(&jid.to_bare(), tokio::time::Instant::now());
                self.broker.forget(&jid);
                let out = self.proposals.gone(&jid);
                self.send_all(out);
            }
            self.reachable.note(change);
        }
    }

    /// Handles a stanza again, now that it is known whether its sender may know of its addressee.
    pub fn handle_known(&mut self, known: KnownStanza) {
        let KnownStanza(stanza, admitted) = known;
        let handled = match stanza.kind {
            Kind::Message => self.handle_initiation(&stanza, Some(admitted)),
            Kind::Presence => return,
            Kind::Iq => self.handle_request(&stanza, Some(Findings::admitted(admitted))),
        };
        if let Err(refusal) = handled {
            self.refuse(&stanza, refusal);
        }
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
            let _ = outbound.send(element.into()).await;
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
}

#[cfg(test)]
mod tests;
