//! Health, readiness, metrics and a status page.
//!
//! | path | answer |
//! |---|---|
//! | `/healthz` | 200 while the process serves |
//! | `/readyz` | 200 if stanzas to the component come back through the XMPP server and the database has recently accepted a change, otherwise 503 and the reason |
//! | `/metrics` | Prometheus text |
//! | `/` | a page for a person (`page.rs`) |
//! | `/status.json` | the same and more for a program: a [`StatusDocument`] |

mod history;
mod page;
mod serve;
mod viewer;
mod words;

use std::{
    borrow::Cow,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{Request, State},
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{
            ACCEPT_LANGUAGE, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY,
            VARY, X_CONTENT_TYPE_OPTIONS,
        },
    },
    middleware::{self, Next},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use fingerpost_top::{SessionDocument, StatusDocument, Usage};
use fingerpost_wire::print::Print;
use jid::BareJid;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::info;

pub(crate) use self::serve::CONNECTIONS;
use self::{
    history::{Counters, Event, History},
    page::StatusPage,
    viewer::Viewer,
    words::Words,
};
use crate::{
    cluster::{Cluster, ClusterStanding},
    control::Control,
    link::echo::Route,
    metrics,
    relay::table::TransferTable,
    sessions::Broker,
};

/// The most sessions on the page.
const SESSIONS: usize = 10;
/// The most sessions in the document.
const LISTED: usize = 500;
/// How long ago the last change of the database may be.
const WRITTEN: Duration = Duration::from_secs(60);
/// The shortest time over which the page shows a throughput.
const SAMPLE: Duration = Duration::from_secs(2);

/// The state that the pages show. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ServiceStatus {
    link: Arc<AtomicBool>,
    route: Arc<Mutex<Route>>,
    control: Control,
    cluster: Cluster,
    broker: Broker,
    table: TransferTable,
    own: Print,
    component: BareJid,
    /// When the relayed bytes were last counted, their number, and the rate before that.
    sample: Arc<Mutex<(Instant, u64, Option<f64>)>>,
    /// How long the last ping through the XMPP server took, in microseconds; 0 if none has come back.
    trip: Arc<AtomicU64>,
    history: Arc<Mutex<History>>,
}

impl ServiceStatus {
    /// Returns the state of a service whose link is not up yet; `own` is the print of its certificate.
    pub fn new(
        component: BareJid,
        control: Control,
        cluster: Cluster,
        broker: Broker,
        table: TransferTable,
        own: Print,
    ) -> Self {
        let sample = Arc::new(Mutex::new((Instant::now(), 0, None)));
        let route = Arc::new(Mutex::new(Route::Unknown));
        Self {
            link: Arc::default(),
            route,
            control,
            cluster,
            broker,
            table,
            own,
            component,
            sample,
            trip: Arc::default(),
            history: Arc::new(Mutex::new(History::new(Instant::now()))),
        }
    }

    /// Returns the bytes per second between the last two samples that were far enough apart.
    fn rate(&self, bytes: u64) -> Option<f64> {
        let mut sample = self.sample.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, before, _) = *sample;
        let past = at.elapsed();
        if past >= SAMPLE {
            let rate = bytes.saturating_sub(before) as f64 / past.as_secs_f64();
            *sample = (Instant::now(), bytes, Some(rate));
        }
        sample.2
    }

    /// Notes whether the link is up, and forgets the state of the route through the server.
    pub fn set_link(&self, up: bool) {
        self.replace_route(Route::Unknown);
        self.link.store(up, Ordering::Relaxed);
        self.happened(if up { Event::LinkUp } else { Event::LinkDown });
    }

    /// Notes the state of the route through the server.
    pub fn set_route(&self, route: Route) {
        let before = self.replace_route(route);
        match (before, route) {
            (Route::Lost { .. }, Route::Lost { .. }) => {}
            (_, Route::Lost { .. } | Route::Shared) => self.happened(Event::RouteBad),
            (Route::Lost { .. } | Route::Shared, Route::Good) => self.happened(Event::RouteGood),
            _ => {}
        }
    }

    fn replace_route(&self, route: Route) -> Route {
        std::mem::replace(&mut *self.route.lock().unwrap_or_else(PoisonError::into_inner), route)
    }

    /// Notes how long a ping through the server took.
    pub fn set_trip(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.trip.store(micros.max(1), Ordering::Relaxed);
    }

    /// Returns how long that ping took, if one has come back.
    fn trip(&self) -> Option<Duration> {
        let micros = self.trip.load(Ordering::Relaxed);
        (micros > 0).then(|| Duration::from_micros(micros))
    }

    /// Returns how long the database takes to answer, if it does.
    async fn database(&self) -> Option<Duration> {
        let asked_at = Instant::now();
        self.control.store().ping().await.is_ok().then(|| asked_at.elapsed())
    }

    fn happened(&self, event: Event) {
        self.history().happened(event, OffsetDateTime::now_utc());
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the figures of each minute.
    async fn follow(self) {
        let mut minutes = tokio::time::interval(history::EVERY);
        minutes.tick().await;
        loop {
            minutes.tick().await;
            let counters = Counters {
                bytes: self.table.plane().metrics().bytes(),
                sessions: self.broker.sessions() + self.table.counts().active,
                errors: metrics::REFUSALS.total() + metrics::STANZAS_DROPPED.total(),
            };
            self.history().note(counters, Instant::now());
        }
    }

    /// Returns what keeps stanzas from the component, if anything does.
    fn obstacle(&self) -> Option<Cow<'static, str>> {
        if !self.link() {
            return Some("the link to the XMPP server is down".into());
        }
        if let Some(why) = self.cluster.obstacle() {
            return Some(format!("apart: {why}").into());
        }
        let why = match *self.route.lock().unwrap_or_else(PoisonError::into_inner) {
            Route::Good => return None,
            Route::Unknown => "no stanza has come back through the XMPP server yet",
            Route::Lost { .. } => {
                "the XMPP server gives some stanzas for this component to another connection (the log names causes and cures)"
            }
            Route::Shared => {
                "another connection to the XMPP server receives stanzas for this component (the log names the cure)"
            }
        };
        Some(why.into())
    }

    fn link(&self) -> bool {
        self.link.load(Ordering::Relaxed)
    }
}

/// Serves the pages at `address`, or on the listening socket `given`, until `stop`; returns the address.
///
/// # Errors
/// If it cannot listen on the address.
pub async fn start(
    address: &str,
    given: Option<std::net::TcpListener>,
    status: ServiceStatus,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) -> io::Result<SocketAddr> {
    let listener = match given {
        Some(listener) => {
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)?
        }
        None => TcpListener::bind(address).await?,
    };
    let bound = listener.local_addr()?;
    let (following, until) = (status.clone(), stop.clone());
    tasks.spawn(async move { until.run_until_cancelled(following.follow()).await });
    let pages = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/", get(page))
        .route("/status.json", get(document))
        .layer(middleware::from_fn(as_said))
        .with_state(status);
    let limits = serve::ServeLimits::default();
    tasks.spawn(serve::serve(listener, pages, limits, stop.clone(), tasks.clone()));
    info!(%bound, "status server");
    Ok(bound)
}

async fn readyz(State(status): State<ServiceStatus>) -> (StatusCode, String) {
    let no = |why: &str| (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"));
    if let Some(why) = status.obstacle() {
        return no(&why);
    }
    if status.control.is_draining() {
        return no("draining: new sessions are refused");
    }
    let store = status.control.store();
    if let Some(why) = store.obstacle() {
        return no(why);
    }
    let written = store.last_write(&status.component, OffsetDateTime::now_utc()).await;
    if written.is_none_or(|ago| ago > WRITTEN) {
        return no("the database does not accept changes");
    }
    let count = status.cluster.count();
    let ready = match status.cluster.standing() {
        ClusterStanding::Alone => "ready\n".to_owned(),
        ClusterStanding::Leads => format!("ready: the one of {count} instances that leads\n"),
        ClusterStanding::Follows => {
            format!("ready: one of {count} instances, and another one leads\n")
        }
        ClusterStanding::Apart => return no("apart: no instance of this component leads"),
    };
    (StatusCode::OK, ready)
}

async fn metrics(State(status): State<ServiceStatus>) -> impl IntoResponse {
    let counts = status.table.counts();
    let (free, busy) = status.table.plane().pipes();
    let store = status.control.store();
    let database = store.ping().await.is_ok();
    let (open, idle, _) = store.connections();
    let (held, limit) = status.broker.memory();
    let mut text = String::new();
    let figures: [(&str, &str, u64); 13] = [
        ("link_up", "1 if the link to the XMPP server is up", status.link().into()),
        ("database_up", "1 if the database answers", database.into()),
        ("draining", "1 if new sessions are refused", status.control.is_draining().into()),
        ("uptime_seconds", "Seconds since the start", status.control.started().elapsed().as_secs()),
        ("ibb_memory_bytes", "Memory that in-band streams hold or have reserved", held as u64),
        ("ibb_memory_limit_bytes", "Memory that in-band streams may hold", limit as u64),
        ("broker_sessions", "Brokered sessions", status.broker.sessions() as u64),
        ("transfers_active", "Active XEP-0065 transfers", counts.active as u64),
        ("transfers_waiting", "XEP-0065 transfers not activated", counts.waiting as u64),
        ("pipes_free", "Kernel pipes that wait for use", free as u64),
        ("pipes_busy", "Kernel pipes with bytes in flight", busy as u64),
        ("database_connections_open", "Connections to the database", open.into()),
        (
            "database_connections_idle",
            "Connections to the database that are not in use",
            idle as u64,
        ),
    ];
    for (name, help, value) in figures {
        metrics::gauge(&mut text, name, help, value);
    }
    let help = "Bytes of ended XEP-0065 transfers";
    metrics::counter(&mut text, "transfers_bytes_total", help, counts.bytes);
    let help = "Kernel pipes taken by streams that move much at once; others are copied";
    metrics::counter(&mut text, "pipes_taken_total", help, status.table.plane().pipes_lent());
    write_cluster(&status.cluster, &mut text);
    status.table.plane().metrics().write(&mut text);
    metrics::write(&mut text);
    metrics::process(&mut text);
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

/// What this instance is among those of its component.
fn write_cluster(cluster: &Cluster, text: &mut String) {
    let (is, help) =
        (cluster.standing(), "1 for the role of this instance among those of its component");
    metrics::head(text, "cluster_role", "gauge", help);
    for role in ClusterStanding::ALL {
        metrics::sample(text, "cluster_role", &[("role", role.name())], u8::from(role == is));
    }
    let help = "Instances of this component that this one knows of, itself included";
    metrics::gauge(text, "cluster_instances", help, cluster.count());
    let age = cluster.heartbeat().unwrap_or_default().as_secs_f64();
    let help = "Time since the last sign of life that the database took from this instance; 0 if it gives none";
    metrics::gauge(text, "cluster_heartbeat_age_seconds", help, format!("{age:.3}"));
}

async fn page(
    State(status): State<ServiceStatus>,
    viewer: Viewer,
    asked: HeaderMap,
) -> impl IntoResponse {
    let accepted = asked.get(ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok());
    let words = Words::preferred(accepted.unwrap_or_default());
    let control = &status.control;
    let counts = status.table.counts();
    let metrics = status.table.plane().metrics();
    let sessions = control.sessions(None);
    let sessions = sessions.iter().take(SESSIONS).map(|session| {
        let legs = match session.legs {
            Some([a, b]) if session.is_brokered() => format!("{a}-{b}"),
            Some(_) => "SOCKS5".to_owned(),
            None => words.being_set_up.to_owned(),
        };
        let [a, b] = &session.users;
        let mark = if session.is_plain { format!(", {}", words.plain) } else { String::new() };
        let what = format!("{legs}, {} s, {} bytes{mark}", session.age.as_secs(), session.bytes);
        [viewer.shown(a), viewer.shown(b), what]
    });
    let (database, trip) = (status.database().await, status.trip());
    let (points, events) = status.history().all();
    let page = StatusPage {
        words,
        component: status.component.to_string(),
        link: status.link(),
        trip,
        database,
        draining: control.is_draining(),
        connections: control.store().connections(),
        brokered: status.broker.sessions(),
        transfers: counts.active,
        waiting: counts.waiting,
        streams: metrics.streams(),
        bytes: metrics.bytes(),
        bytes_per_second: status.rate(metrics.bytes()),
        uptime: control.started().elapsed(),
        print: status.own.to_string(),
        points,
        events,
        sessions: sessions.collect(),
    };
    let headers = [
        // Only the page's own style.
        (
            CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
        ),
        (CACHE_CONTROL, "no-store"),
        (VARY, "accept-language"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    (headers, Html(page.render().into_string()))
}

async fn document(State(status): State<ServiceStatus>, viewer: Viewer) -> impl IntoResponse {
    let control = &status.control;
    let metrics = status.table.plane().metrics();
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let all = control.sessions(None);
    let sessions = all.iter().take(LISTED).map(|session| SessionDocument {
        id: session.id.clone(),
        users: session.users.each_ref().map(|jid| viewer.shown(jid)),
        legs: session.legs.map(|legs| legs.map(str::to_owned)),
        age_seconds: session.age.as_secs(),
        bytes: session.bytes,
        is_plain: session.is_plain,
    });
    let usage = |name: &str, used: usize, limit: usize, is_bytes| {
        let (used, limit) = (used as u64, limit as u64);
        Usage { name: name.to_owned(), used, limit, is_bytes }
    };
    let (held, memory) = status.broker.memory();
    let (open, _, most) = control.store().connections();
    let document = StatusDocument {
        component: status.component.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_seconds: control.started().elapsed().as_secs(),
        link: status.link(),
        link_micros: status.trip().map(micros),
        database_micros: status.database().await.map(micros),
        draining: control.is_draining(),
        bytes: metrics.bytes(),
        streams: metrics.streams(),
        usage: vec![
            usage("sessions", status.broker.sessions(), status.broker.most_sessions(), false),
            usage("in-band memory", held, memory, true),
            usage("database connections", open as usize, most as usize, false),
        ],
        refusals: metrics::REFUSALS.counts(),
        sessions_total: all.len(),
        sessions: sessions.collect(),
    };
    let headers = [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")];
    match serde_json::to_string(&document) {
        Ok(text) => (headers, text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Adds the header that makes browsers keep the declared content type.
async fn as_said(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
