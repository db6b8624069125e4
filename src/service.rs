//! The whole component as one running thing: start, reload, shutdown.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use fingerpost_carry::iq::Requests;
use fingerpost_secure::identity::Identity;
use fingerpost_wire::{plain::Plain, size};
use jid::{BareJid, FullJid};
use minidom::Element;
use tokio::{
    sync::{Notify, broadcast, mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::{
    access::{Access, Doors},
    cluster::{self, Cluster},
    config::Config,
    control::{self, Control, Reload},
    front::{self, Back, KnownStanza, Report, Router},
    http::{self, ServiceStatus},
    link::{self, LinkError, LinkOptions, Software, echo::Route},
    logging::LogLevel,
    registry::{
        self, KeyNotice, Registry,
        store::{Store, open, open::Inspected},
    },
    relay::{
        listener::{self, Socks5Listener},
        table::{self, TransferTable},
    },
    sessions::{
        self, Broker, hints,
        journal::Journal,
        reachable::{Reachable, RecalledWatcher},
    },
    systemd::Inherited,
};

/// The most stanzas that wait to be written to the XMPP server.
const OUTBOUND: usize = 1024;
/// The most messages that wait for the router.
const INBOUND: usize = 256;
/// How long a session may take to send its final stanzas over the link.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// How long tasks may take to end by themselves after the final stanzas.
const LAST: Duration = Duration::from_secs(6);

/// Why the service could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database cannot be opened or brought up to date.
    #[error("database {url}: {source}")]
    Database {
        /// As configured.
        url: String,
        /// What the store says.
        source: open::OpenError,
    },
    /// The block list cannot be read.
    #[error("the database: {0}")]
    Blocks(String),
    /// The component's own certificate cannot be made or kept.
    #[error("the component's own certificate: {0}")]
    Identity(String),
    /// A SOCKS5 address cannot be listened on.
    #[error("socks5.listen: {0}")]
    Listen(std::io::Error),
    /// The status server's address cannot be listened on.
    #[error("http.listen: cannot listen on {address}: {source}")]
    Http {
        /// As configured.
        address: String,
        /// What the system says.
        source: std::io::Error,
    },
}

/// A running component.
#[derive(Debug)]
pub struct Service {
    /// As it was read last.
    config: Config,
    broker: Broker,
    journal: Journal,
    reachable: Reachable,
    table: TransferTable,
    listener: Option<Socks5Listener>,
    registry: Registry,
    control: Control,
    cluster: Cluster,
    router: Arc<Mutex<Router>>,
    reloads: mpsc::Receiver<Reload>,
    link: JoinHandle<Result<(), LinkError>>,
    /// Shut down in this order: listeners, the link, everything else.
    accepting: CancellationToken,
    linked: CancellationToken,
    /// Ends this instance's membership among several, so that another instance can lead.
    leaving: CancellationToken,
    others: JoinHandle<()>,
    stop: CancellationToken,
    /// Whether another process that shares the sockets may take over while streams run here.
    has_heir: bool,
    /// Whether the link is up; changes when it comes and goes.
    links: watch::Receiver<bool>,
    tasks: TaskTracker,
    addresses: Vec<SocketAddr>,
}

/// What a running component asks of its caller.
#[derive(Debug)]
pub enum ServiceEvent {
    /// The link has given up by itself.
    Ended(Result<(), LinkError>),
    /// An admin wants the configuration to be reloaded.
    Reload(Reload),
    /// The link came up, or was lost.
    Link(bool),
}

impl Service {
    /// Opens the database, binds all listeners that were not inherited, then starts the link.
    ///
    /// # Errors
    /// [`StartError`]. Failures of the link come later, from [`Service::event`].
    pub async fn start(
        config: &Config,
        mut inherited: Inherited,
        log: LogLevel,
    ) -> Result<Self, StartError> {
        let store = open_to_serve(config).await?;
        store.guard_file().await.map_err(|error| StartError::Blocks(error.to_string()))?;
        let stop = CancellationToken::new();
        let (accepting, linked) = (stop.child_token(), CancellationToken::new());
        let has_heir = !inherited.is_empty();
        let pages = config.http.listen.as_deref().map(|address| inherited.of_port(address));
        let tasks = TaskTracker::new();
        let jid = config.component.jid.clone();
        let registry = Registry::new(store.clone(), registry_options(config));
        let doors = Doors::new(access(config));
        let blocks = store.blocks().await;
        doors.set_commanded(blocks.map_err(|error| StartError::Blocks(error.to_string()))?);
        let table = TransferTable::new(table_options(config), tasks.clone(), stop.clone());
        for missing in table.plane().probe() {
            warn!("{missing}");
        }
        let mut listener = None;
        let mut addresses = Vec::new();
        if !config.socks5.listen.is_empty() {
            let options = listener_options(config);
            let given = inherited.rest();
            let wanted = &config.socks5.listen;
            let bound = Socks5Listener::with(wanted, given, options, &table, &accepting, &tasks)
                .await
                .map_err(StartError::Listen)?;
            addresses = bound.local_addrs().to_vec();
            listener = Some(bound);
        }
        let config = &advertising(config, &addresses);
        for (host, port) in &config.socks5.advertise {
            info!(host, port, "SOCKS5 address announced to clients");
        }
        let (outbound, queue) = mpsc::channel(OUTBOUND);
        let requests = Requests::new(outbound.clone());
        let journal = Journal::new(store.clone(), jid.clone());
        tasks.spawn(journal.clone().run(stop.clone()));
        let broker = Broker::new(
            broker_options(config),
            outbound.clone(),
            requests.clone(),
            registry.clone(),
            table.clone(),
            journal.clone(),
            tasks.clone(),
        );
        let hearing = registry.clone();
        let heard = stop.clone();
        tasks.spawn(async move { heard.run_until_cancelled(hearing.listen()).await });
        let identity = Arc::new(own_identity(&store, &jid).await?);
        info!(print = %identity.print(), "the component's own certificate");
        let (known, again) = mpsc::channel(INBOUND);
        let (notices, told) = mpsc::channel(INBOUND);
        let (reports, reported) = mpsc::channel(INBOUND);
        let (reload, reloads) = mpsc::channel(1);
        let control = Control::new(control::Parts {
            doors: doors.clone(),
            broker: broker.clone(),
            table: table.clone(),
            store: store.clone(),
            log,
            notices: notices.clone(),
            reloads: reload,
        });
        tasks.spawn(follow_blocks(registry.clone(), control.clone(), stop.clone()));
        let (cluster, others) = Cluster::join(&store, &jid, advertised(config)).await;
        let (news, of_others) = mpsc::channel(INBOUND);
        let leaving = CancellationToken::new();
        let leave = leaving.clone();
        let others = tasks.spawn(others.run(news, outbound.clone(), leave));
        let (counted, kept) = (table.clone(), table.clone());
        let reachable = Reachable::new(store.clone(), jid.clone());
        let (recalled, watchers) =
            if cluster.leads() { recall(&reachable).await } else { Default::default() };
        tasks.spawn(reachable.clone().run(stop.clone()));
        let mut router = Router::new(
            router_options(config, doors),
            outbound.clone(),
            requests,
            broker.clone(),
            registry.clone(),
            table,
            control.clone(),
            cluster.clone(),
            Back { reports, known, notices },
            Arc::clone(&identity),
            reachable.clone(),
            tasks.clone(),
        );
        router.recall(recalled, watchers);
        let status = ServiceStatus::new(
            jid.clone(),
            control.clone(),
            cluster.clone(),
            broker.clone(),
            counted,
            identity.print(),
        );
        if let Some(address) = &config.http.listen {
            let given = pages.into_iter().flatten().next();
            // Another process that takes over answers from now on.
            let until = if has_heir { &accepting } else { &stop };
            http::start(address, given, status.clone(), until, &tasks)
                .await
                .map_err(|source| StartError::Http { address: address.clone(), source })?;
        }
        let (link, links) = watch::channel(false);
        let router = Arc::new(Mutex::new(router));
        let changed = Arc::new(Notify::new());
        let (echoes, echoed) = mpsc::channel(INBOUND);
        let among = Among {
            router: Arc::clone(&router),
            changed: Arc::clone(&changed),
            cluster: cluster.clone(),
            reachable: reachable.clone(),
            journal: journal.clone(),
            broker: broker.clone(),
            control: control.clone(),
            drain: config.limits.drain_timeout,
            links: links.clone(),
            echoes,
            tasks: tasks.clone(),
            stop: stop.clone(),
        };
        if cluster.leads() {
            among.settle_left_sessions();
        }
        tasks.spawn(among.run(of_others));
        let back = (again, told, reported);
        let visibility = (registry.visibility_changes(), control.doors().changes());
        let routed = (Arc::clone(&router), Arc::clone(&changed));
        tasks.spawn(route(routed, back, visibility, stop.clone()));
        let inbox = LinkHandler {
            router: Arc::clone(&router),
            status,
            link,
            changed,
            cluster: cluster.clone(),
        };
        let login = LinkOptions {
            servers: config.component.server.clone(),
            jid,
            secret: config.component.secret.clone(),
            max_stanza_bytes: config.component.max_stanza_bytes,
        };
        // The link stops last: the sessions' final stanzas go through it.
        let link = tokio::spawn(link::run(login, queue, echoed, inbox, linked.clone()));
        Ok(Self {
            config: config.clone(),
            broker,
            journal,
            reachable,
            table: kept,
            listener,
            registry,
            control,
            cluster,
            router,
            reloads,
            link,
            accepting,
            linked,
            leaving,
            others,
            stop,
            has_heir,
            tasks,
            addresses,
            links,
        })
    }

    /// Returns the addresses of the SOCKS5 listeners.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Waits until the caller must do something. Do not call it again after [`ServiceEvent::Ended`].
    ///
    /// # Cancel safety
    /// Nothing is lost if the future is dropped.
    pub async fn event(&mut self) -> ServiceEvent {
        tokio::select! {
            ended = &mut self.link => ServiceEvent::Ended(ended.unwrap_or(Ok(()))),
            Some(reload) = self.reloads.recv() => ServiceEvent::Reload(reload),
            Ok(()) = self.links.changed() => ServiceEvent::Link(*self.links.borrow_and_update()),
        }
    }

    /// Applies the settings that may change while sessions run, and ends sessions of users who have lost access.
    /// Returns the changed settings that need a restart.
    pub fn reload(&mut self, config: &Config) -> Vec<String> {
        let restart = self.config.needing_restart(config);
        // Settings that need a restart keep their old value for every part that reads them.
        let config = &advertising(&self.config.reloaded(config), &self.addresses);
        self.table.set_options(table_options(config));
        if let Some(listener) = &self.listener {
            listener.set_options(listener_options(config));
        }
        self.registry.set_options(registry_options(config));
        self.broker.set_options(broker_options(config));
        self.control.log().set_configured(&config.log.level);
        let doors = self.control.doors();
        doors.set_configured(access(config));
        // A user who asks after the answer to the reload sees what was read.
        lock(&self.router).reload(router_options(config, doors.clone()));
        enforce(&self.control);
        self.config = config.clone();
        restart
    }

    /// Accepts no more connections and sessions. Those that run may continue for the drain timeout, or until `hurry`;
    /// then they are ended and everything stops.
    ///
    /// Another process that takes over needs the address at the XMPP server. In that case the link ends first, and only
    /// streams between two SOCKS5 legs continue. The same holds if another instance can serve the users: it leads before
    /// the link ends, and gets what still comes.
    pub async fn shutdown(mut self, hurry: impl Future<Output = ()>) {
        let until = Instant::now() + self.config.limits.drain_timeout;
        // Load balancers that watch /readyz send no more users.
        self.control.drain(true);
        self.broker.drain(until);
        if self.has_heir || self.cluster.has_heir() {
            self.accepting.cancel();
            self.broker.end_in_band();
            sleep(LAST_WORDS).await;
            // Running streams are not lost, so no user is told that they are.
            tokio::join!(self.journal.hand_over(), self.reachable.flush());
            if self.cluster.has_heir() {
                self.cluster.retire(LAST_WORDS * 10).await;
            }
            self.linked.cancel();
            let _ = timeout(LAST, &mut self.link).await;
            // The next leader reads it once more when this instance has left.
            self.reachable.flush().await;
            self.leaving.cancel();
            let _ = timeout(LAST, &mut self.others).await;
            info!("link closed; running streams continue");
        }
        let (broker, table) = (self.broker.clone(), self.table.clone());
        let drained = async {
            // A session ends by itself at that time and then tells its users. Nothing tells a transfer.
            let transfers = || table.counts().active > 0 && Instant::now() < until;
            while broker.sessions() > 0 || transfers() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            () = drained => {}
            () = hurry => {
                self.broker.drain(Instant::now());
                sleep(LAST_WORDS).await;
            }
            () = sleep(self.config.limits.drain_timeout + LAST) => warn!("some sessions did not end in time"),
        }
        // Lets queued final stanzas reach the link before it stops.
        sleep(Duration::from_millis(50)).await;
        self.linked.cancel();
        self.stop.cancel();
        self.tasks.close();
        if !self.link.is_finished() {
            let _ = timeout(LAST, self.link).await;
        }
        self.leaving.cancel();
        let _ = timeout(LAST, self.tasks.wait()).await;
        info!("stopped");
    }
}

/// Opens the configured database.
///
/// # Errors
/// [`StartError::Database`].
pub async fn open(config: &Config) -> Result<Store, StartError> {
    Store::open_with(&options(config)).await.map_err(|source| not_opened(config, source))
}

/// Opens the database, and checks that it has the connections that a running component needs.
///
/// # Errors
/// [`StartError::Database`].
pub async fn open_to_serve(config: &Config) -> Result<Store, StartError> {
    let store = open(config).await?;
    store.check_connections().await.map_err(|source| not_opened(config, source))?;
    Ok(store)
}

fn options(config: &Config) -> open::StoreOptions<'_> {
    let database = &config.database;
    open::StoreOptions {
        url: &database.url,
        max_connections: database.max_connections,
        migrate: database.migrate,
        pooler: database.pooler,
    }
}

fn not_opened(config: &Config, source: open::OpenError) -> StartError {
    StartError::Database { url: shown(&config.database.url), source }
}

/// Looks whether the database can be opened as configured, without a change to it. Also returns the database, if
/// it can be used at once and by several instances together.
///
/// # Errors
/// [`StartError::Database`].
pub async fn inspect(config: &Config) -> Result<(Inspected, Option<Store>), StartError> {
    Store::inspect(&options(config)).await.map_err(|source| not_opened(config, source))
}

/// Returns the component's own certificate and key, which the first start makes and stores.
///
/// # Errors
/// [`StartError::Identity`].
pub async fn own_identity(store: &Store, jid: &BareJid) -> Result<Identity, StartError> {
    let wrong = |error: &dyn std::fmt::Display| StartError::Identity(error.to_string());
    if store.identity(jid).await.map_err(|error| wrong(&error))?.is_none() {
        let made = Identity::generate(jid).map_err(|error| wrong(&error))?;
        store
            .keep_identity(jid, &made.certificate, made.private_key())
            .await
            .map_err(|error| wrong(&error))?;
    }
    // Read back, because another Fingerpost may have been faster.
    let kept = store.identity(jid).await.map_err(|error| wrong(&error))?;
    let (certificate, key) = kept.ok_or_else(|| wrong(&"it was not stored"))?;
    Ok(Identity::of_parts(certificate, key))
}

/// A database address without its password, which may be before the host or among the parameters.
fn shown(url: &str) -> String {
    let url = url.split_once('?').map_or(url, |(url, _)| url);
    match url.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?.1)))
    {
        Some((scheme, host)) => format!("{scheme}://…@{host}"),
        None => url.to_owned(),
    }
}

/// Returns the resources that were reachable when a component of this name last ran, or led, and who watched them.
async fn recall(reachable: &Reachable) -> (Vec<(FullJid, i8)>, Vec<RecalledWatcher>) {
    let recalled = reachable.recall().await.unwrap_or_else(|error| {
        warn!(%error, "could not read the reachable users: each needs a new presence");
        Vec::new()
    });
    if !recalled.is_empty() {
        info!(resources = recalled.len(), "checking the users that were reachable before");
    }
    let watchers = reachable.recall_watchers().await.unwrap_or_else(|error| {
        warn!(%error, "could not read who watches users: each learns of changes after the next login");
        Vec::new()
    });
    (recalled, watchers)
}

/// Returns the addresses announced to users, as text.
fn advertised(config: &Config) -> String {
    let hosts = config.socks5.advertise.iter().map(|(host, port)| format!("{host}:{port}"));
    hosts.collect::<Vec<_>>().join(", ")
}

/// Does what other instances of the component require.
struct Among {
    router: Arc<Mutex<Router>>,
    changed: Arc<Notify>,
    cluster: Cluster,
    reachable: Reachable,
    journal: Journal,
    broker: Broker,
    control: Control,
    /// How long another process may carry streams of sessions that it has left.
    drain: Duration,
    links: watch::Receiver<bool>,
    echoes: mpsc::Sender<String>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Among {
    /// Goes on with the sessions that were open when another run or another instance ended, or notifies their users, once
    /// there is a link.
    fn settle_left_sessions(&self) {
        self.broker.set_settling(true);
        let (stop, cluster, broker) =
            (self.stop.clone(), self.cluster.clone(), self.broker.clone());
        let (mut links, control, drain) = (self.links.clone(), self.control.clone(), self.drain);
        self.tasks.spawn(async move {
            let settling = async {
                if links.wait_for(|up| *up).await.is_ok() && cluster.leads() {
                    // Somebody may have lost access meanwhile.
                    broker.settle(drain, || cluster.leads(), || enforce(&control)).await;
                }
            };
            stop.run_until_cancelled(settling).await;
            broker.set_settling(false);
        });
    }

    /// Gives the lead to another instance, with everything that this one knows of the users.
    async fn follow_in_order(&self) {
        // From now on the router notes no more changes.
        lock(&self.router).follow();
        self.reachable.flush().await;
        self.reachable.follow();
    }

    async fn run(self, mut events: mpsc::Receiver<cluster::Event>) {
        while let Some(event) = events.recv().await {
            match event {
                cluster::Event::Recall(done) => {
                    let (recalled, watchers) = recall(&self.reachable).await;
                    lock(&self.router).recall(recalled, watchers);
                    let _ = done.send(());
                }
                cluster::Event::Lead => {
                    if *self.links.borrow() {
                        lock(&self.router).ask_everybody();
                    }
                    self.changed.notify_one();
                    self.settle_left_sessions();
                }
                cluster::Event::Follow => {
                    self.broker.drain(Instant::now());
                    self.broker.refuse_sessions(false);
                    lock(&self.router).follow();
                    self.reachable.follow();
                }
                cluster::Event::Yield(done) => {
                    // Without a link these stanzas are not sent.
                    self.journal.leave_to_the_next().await;
                    self.broker.leave_renewable();
                    self.broker.end_in_band();
                    self.follow_in_order().await;
                    let _ = done.send(());
                }
                cluster::Event::Stanza(element) => handle(&self.router, &self.changed, element),
                cluster::Event::Retire(done) => {
                    self.follow_in_order().await;
                    let _ = done.send(());
                }
                cluster::Event::Echo(id) => {
                    let _full = self.echoes.try_send(id);
                }
                cluster::Event::Check => {
                    // An instance that has led may have recorded its last users only after this one has read them.
                    self.reachable.flush().await;
                    let (recalled, watchers) = recall(&self.reachable).await;
                    let mut router = lock(&self.router);
                    router.recall(recalled, watchers);
                    router.ask_everybody();
                    drop(router);
                    self.changed.notify_one();
                }
            }
        }
    }
}

/// Ends the sessions of users who have lost access.
fn enforce(control: &Control) {
    let ended = control.enforce();
    if ended > 0 {
        info!(ended, "ended sessions of users who have lost access");
    }
}

/// Passes a stanza to the router, and has its task check the next deadline.
fn handle(router: &Mutex<Router>, changed: &Notify, element: Element) {
    let mut router = lock(router);
    let before = router.deadline();
    router.handle(element);
    if router.deadline() != before {
        changed.notify_one();
    }
}

/// What the link's task does with each event.
struct LinkHandler {
    router: Arc<Mutex<Router>>,
    status: ServiceStatus,
    /// Whether the link is up.
    link: watch::Sender<bool>,
    /// Notified when the router has another deadline.
    changed: Arc<Notify>,
    cluster: Cluster,
}

impl link::Handler for LinkHandler {
    fn up(&mut self, software: Software) {
        self.status.set_link(true);
        self.cluster.set_alone(software == Software::Alone);
        self.cluster.set_linked(true);
        self.link.send_replace(true);
        lock(&self.router).link_is_up();
        self.changed.notify_one();
    }

    fn down(&mut self) {
        self.status.set_link(false);
        self.cluster.set_linked(false);
        self.link.send_replace(false);
        lock(&self.router).link_is_down();
        // Requests keep waiting: usually the link is back at once, and the answers come over it.
    }

    fn route(&mut self, route: Route) {
        self.status.set_route(route);
    }

    fn trip(&mut self, time: Duration) {
        self.status.set_trip(time);
    }

    fn echo(&mut self, id: &str) -> bool {
        self.cluster.echo(id)
    }

    fn stanza(&mut self, element: Element) {
        handle(&self.router, &self.changed, element);
    }

    fn plain(&mut self, stanza: &Plain<'_>, out: &mut Vec<u8>) -> bool {
        lock(&self.router).handle_plain(stanza, out)
    }
}

/// Never held over an `.await`.
fn lock(router: &Mutex<Router>) -> MutexGuard<'_, Router> {
    router.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Passes to the router what comes from elsewhere than the link.
async fn route(
    (router, changed): (Arc<Mutex<Router>>, Arc<Notify>),
    (mut again, mut notices, mut reports): (
        mpsc::Receiver<KnownStanza>,
        mpsc::Receiver<KeyNotice>,
        mpsc::Receiver<Report>,
    ),
    (mut visibility, mut doors): (broadcast::Receiver<BareJid>, watch::Receiver<()>),
    stop: CancellationToken,
) {
    loop {
        let expired = lock(&router).deadline();
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            // Before the reports: a report may hold what was visible before the change.
            changed = visibility.recv() => lock(&router).visibility_changed(changed.ok().as_ref()),
            Ok(()) = doors.changed() => lock(&router).visibility_changed(None),
            () = sleep_until(expired.unwrap_or_else(Instant::now)), if expired.is_some() => {
                lock(&router).expire();
            }
            () = changed.notified() => {}
            Some(known) = again.recv() => lock(&router).handle_known(known),
            Some(notice) = notices.recv() => lock(&router).notify(&notice),
            Some(report) = reports.recv() => lock(&router).handle_report(report),
        }
    }
}

/// Reloads the block list whenever another Fingerpost may have changed it.
async fn follow_blocks(registry: Registry, control: Control, stop: CancellationToken) {
    while stop.run_until_cancelled(registry.blocks_changed()).await.is_some() {
        if let Err(error) = control.refresh().await {
            warn!(%error, "could not reload the block list");
        }
    }
}

/// Completes the advertised addresses: a port that the system chooses is known only once it is bound.
fn advertising(config: &Config, addresses: &[SocketAddr]) -> Config {
    let mut config = config.clone();
    let bound = addresses.first().map_or(0, SocketAddr::port);
    for (_, port) in config.socks5.advertise.iter_mut().filter(|(_, port)| *port == 0) {
        *port = bound;
    }
    config
}

fn access(config: &Config) -> Access {
    Access {
        users: config.access.users.clone(),
        admins: config.access.admins.clone(),
        blocked: config.access.blocked.clone(),
    }
}

fn registry_options(config: &Config) -> registry::RegistryOptions {
    registry::RegistryOptions {
        component: config.component.jid.clone(),
        visibility: config.registry.visibility,
        keys_per_user: config.registry.keys_per_user,
    }
}

fn table_options(config: &Config) -> table::TransferOptions {
    let limits = &config.limits;
    table::TransferOptions {
        activation_timeout: limits.activation_timeout,
        activation_grace: table::TransferOptions::default().activation_grace,
        bytes_per_second: limits.bytes_per_second,
        idle_timeout: limits.idle_timeout,
        sessions: limits.sessions,
        sessions_per_user: limits.sessions_per_user,
        // At most half of all connections. Few connections are not divided.
        waiting: if limits.sessions < 64 { limits.sessions } else { limits.sessions / 2 },
    }
}

fn listener_options(config: &Config) -> listener::ListenerOptions {
    listener::ListenerOptions {
        connections_per_ip: config.limits.connections_per_ip,
        connections: config.limits.sessions.saturating_mul(2),
        handshake_timeout: config.limits.handshake_timeout,
        proxy_protocol: config.socks5.proxy_protocol,
        max_segment: config.socks5.max_segment,
    }
}

fn router_options(config: &Config, access: Doors) -> front::RouterOptions {
    front::RouterOptions {
        jid: config.component.jid.clone(),
        name: config.component.name.clone(),
        contact: config.component.contact.clone(),
        max_stanza_bytes: config.component.max_stanza_bytes,
        access,
        requests_per_second: config.limits.requests_per_second,
        advertise: config.socks5.advertise.clone(),
        socks5: !config.socks5.listen.is_empty(),
        ibb: config.ibb.enabled,
        direct: config.broker.direct,
        import_pep: config.registry.import_pep,
        proposals: (config.limits.sessions, config.limits.sessions_per_user),
        translation: broker_options(config).translation(),
    }
}

fn broker_options(config: &Config) -> sessions::BrokerOptions {
    sessions::BrokerOptions {
        jid: config.component.jid.clone(),
        require_tls: config.broker.require_tls,
        plain: config.broker.plain,
        policies: hints::Policies {
            unknown: config.broker.unknown,
            mismatch: config.broker.mismatch,
            revoked: config.broker.revoked,
        },
        direct: config.broker.direct,
        socks5: !config.socks5.listen.is_empty(),
        advertise: config.socks5.advertise.clone(),
        ibb: config.ibb.enabled,
        max_stanza_bytes: config.component.max_stanza_bytes,
        block_size: config
            .ibb
            .block_size
            .min(size::largest_block(config.component.max_stanza_bytes)),
        window: config.ibb.window,
        memory: config.ibb.memory,
        silence_timeout: config.ibb.silence_timeout,
        activation_timeout: config.limits.activation_timeout,
        idle_timeout: config.limits.idle_timeout,
        sessions: (config.limits.sessions, config.limits.sessions_per_user),
    }
}
