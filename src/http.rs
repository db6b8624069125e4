//! Health, readiness, metrics and a status page.
//!
//! | path | answer |
//! |---|---|
//! | `/healthz` | 200 while the process serves |
//! | `/readyz` | 200 with the XMPP link and the database up, else 503 and why |
//! | `/metrics` | Prometheus text |
//! | `/` | a page for a person; it names nobody |

use std::{
    fmt::Write,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{Html, IntoResponse},
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::{broker::Broker, control::Control, mediator::table::Table, print::Print};

/// What the pages tell of. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Status {
    link: Arc<AtomicBool>,
    control: Control,
    broker: Broker,
    table: Table,
    own: Print,
    started: Instant,
}

impl Status {
    /// The state of a service whose link is not up yet; `own` is the print of its certificate.
    pub fn new(control: Control, broker: Broker, table: Table, own: Print) -> Self {
        Self { link: Arc::default(), control, broker, table, own, started: Instant::now() }
    }

    /// Notes whether the link is up.
    pub fn set_link(&self, up: bool) {
        self.link.store(up, Ordering::Relaxed);
    }

    fn link(&self) -> bool {
        self.link.load(Ordering::Relaxed)
    }
}

/// Serves the pages at `address`, or where `given` listens already, until `stop`; gives the address bound.
///
/// # Errors
/// If the address cannot be listened on.
pub async fn start(
    address: &str,
    given: Option<std::net::TcpListener>,
    status: Status,
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
    let pages = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/", get(page))
        .with_state(status);
    let stop = stop.clone();
    tasks.spawn(async move {
        let serving = axum::serve(listener, pages);
        tokio::select! {
            ended = serving => if let Err(error) = ended { warn!(%error, "the status server ended") },
            () = stop.cancelled() => {}
        }
    });
    info!(%bound, "status server");
    Ok(bound)
}

async fn readyz(State(status): State<Status>) -> (StatusCode, &'static str) {
    if !status.link() {
        return (StatusCode::SERVICE_UNAVAILABLE, "the link to the XMPP server is down\n");
    }
    if status.control.is_draining() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining: new sessions are refused\n");
    }
    if status.control.store().ping().await.is_err() {
        return (StatusCode::SERVICE_UNAVAILABLE, "the database does not answer\n");
    }
    (StatusCode::OK, "ready\n")
}

async fn metrics(State(status): State<Status>) -> impl IntoResponse {
    let counts = status.table.counts();
    let figures = [
        ("link_up", "gauge", "1 if the link to the XMPP server is up", u64::from(status.link())),
        ("uptime_seconds", "gauge", "Seconds since the start", status.started.elapsed().as_secs()),
        ("broker_sessions", "gauge", "Brokered sessions", status.broker.sessions() as u64),
        ("transfers_active", "gauge", "Active XEP-0065 transfers", counts.active as u64),
        ("transfers_waiting", "gauge", "XEP-0065 transfers not activated", counts.waiting as u64),
        ("transfers_bytes_total", "counter", "Bytes of ended XEP-0065 transfers", counts.bytes),
    ];
    let mut text = String::new();
    for (name, kind, help, value) in figures {
        let _ = writeln!(
            text,
            "# HELP fingerpost_{name} {help}\n# TYPE fingerpost_{name} {kind}\nfingerpost_{name} {value}"
        );
    }
    status.table.plane().metrics().write(&mut text);
    let (free, busy) = status.table.plane().pipes();
    for (name, help, value) in [
        ("pipes_free", "Kernel pipes that wait for use", free),
        ("pipes_busy", "Kernel pipes with bytes in flight", busy),
    ] {
        let _ = writeln!(
            text,
            "# HELP fingerpost_{name} {help}\n# TYPE fingerpost_{name} gauge\nfingerpost_{name} {value}"
        );
    }
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

async fn page(State(status): State<Status>) -> Html<String> {
    let counts = status.table.counts();
    let word = |good| if good { "up" } else { "down" };
    let rows = [
        ("Link to the XMPP server", word(status.link()).to_owned()),
        ("Database", word(status.control.store().ping().await.is_ok()).to_owned()),
        ("Brokered sessions", status.broker.sessions().to_string()),
        ("SOCKS5 transfers", counts.active.to_string()),
        ("Up for", format!("{} s", status.started.elapsed().as_secs())),
        ("Own certificate, SHA-256", status.own.to_string()),
        ("Version", env!("CARGO_PKG_VERSION").to_owned()),
    ];
    let rows: String = rows
        .iter()
        .map(|(name, value)| format!("<tr><th>{name}</th><td>{value}</td></tr>"))
        .collect();
    Html(format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>Fingerpost</title>\
         <style>body{{font:1rem/1.5 system-ui;margin:2rem auto;max-width:32rem;padding:0 1rem}}\
         th{{text-align:left;padding-right:2rem;vertical-align:top}}td{{overflow-wrap:anywhere}}</style>\
         <h1>Fingerpost</h1><table>{rows}</table></html>"
    ))
}
