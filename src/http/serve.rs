//! The connections of the status server: few, short, and independent of each other.
//!
//! | limit | protects against |
//! |---|---|
//! | [`HEADER_TIMEOUT`] for a request's header, also between two requests | incomplete requests, idle connections |
//! | [`REQUEST_TIMEOUT`] for an answer | a database that hangs |
//! | [`LIFETIME`] of a connection | answers that are not read |
//! | [`CONNECTIONS`] at once; one more displaces the oldest that waits for a request | many of all of these |
//!
//! So these pages never hold more than [`CONNECTIONS`] file descriptors, and a request that is sent at once gets its
//! answer however many connections others hold open. A few descriptors are reserved: if SOCKS5 clients have taken all
//! others, a health check still gets an answer.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::ConnectInfo,
    http::{Request, StatusCode},
    response::{IntoResponse, Response},
};
use hyper::{body::Incoming, server::conn::http1, service::Service};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use crate::accept::{Backoff, Failed, Reserve};

/// The most connections at once.
pub(crate) const CONNECTIONS: usize = 256;

/// How long a request's header may take, from the beginning of the wait.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an answer may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may last, whatever happens on it.
const LIFETIME: Duration = Duration::from_secs(120);

/// The longest request header in bytes.
const HEADER: usize = 16 * 1024;

/// Reserved file descriptors.
const RESERVED: usize = 8;

/// The limits, smaller in tests.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServeLimits {
    pub(super) connections: usize,
    pub(super) header_timeout: Duration,
    pub(super) request_timeout: Duration,
    pub(super) lifetime: Duration,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self {
            connections: CONNECTIONS,
            header_timeout: HEADER_TIMEOUT,
            request_timeout: REQUEST_TIMEOUT,
            lifetime: LIFETIME,
        }
    }
}

/// Serves `pages` until `stop`, which ends the connections too.
pub(super) async fn serve(
    listener: TcpListener,
    pages: Router,
    limits: ServeLimits,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let waiting = WaitingConnections::default();
    let mut backoff = Backoff::new();
    let mut reserve = Reserve::new(RESERVED);
    loop {
        reserve.refill();
        let (stream, peer) = match stop.run_until_cancelled(listener.accept()).await {
            None => return,
            Some(Ok(accepted)) => accepted,
            Some(Err(error)) => match Failed::of(&error) {
                Failed::Connection => continue,
                Failed::Descriptors if !reserve.is_empty() => match reserve.accept(&listener) {
                    Some(accepted) => accepted,
                    None => continue,
                },
                Failed::Descriptors | Failed::Listener => {
                    let pause = backoff.next();
                    warn!(%error, ?pause, "the status server cannot accept connections");
                    if stop.run_until_cancelled(sleep(pause)).await.is_none() {
                        return;
                    }
                    continue;
                }
            },
        };
        backoff.reset();
        let Some(place) = stop.run_until_cancelled(place(&places, &waiting)).await else { return };
        let connection = connection(stream, peer, pages.clone(), limits, waiting.clone());
        let stop = stop.clone();
        tasks.spawn(async move {
            let _place = place;
            stop.run_until_cancelled(connection).await;
        });
    }
}

/// Returns a place for one more connection. If none is free, the oldest connection that waits for a request makes room.
async fn place(
    places: &Arc<Semaphore>,
    waiting: &WaitingConnections,
) -> Option<OwnedSemaphorePermit> {
    if let Ok(place) = Arc::clone(places).try_acquire_owned() {
        return Some(place);
    }
    waiting.displace();
    // The semaphore is never closed.
    Arc::clone(places).acquire_owned().await.ok()
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    pages: Router,
    limits: ServeLimits,
    waiting: WaitingConnections,
) {
    let entry = Arc::new(waiting.enter());
    let displaced = entry.displaced.clone();
    let pages = TowerToHyperService::new(pages);
    let answer = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        let busy = Busy::new(Arc::clone(&entry));
        request.extensions_mut().insert(ConnectInfo(peer));
        let answer = pages.call(request);
        async move {
            let _busy = busy;
            let late = (StatusCode::SERVICE_UNAVAILABLE, "the service did not answer in time\n");
            let response: Response<Body> = match timeout(limits.request_timeout, answer).await {
                Ok(Ok(response)) => response,
                Ok(Err(never)) => match never {},
                Err(_) => late.into_response(),
            };
            Ok::<_, Infallible>(response)
        }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(HEADER)
        .serve_connection(TokioIo::new(stream), answer);
    tokio::select! {
        ended = serving => if let Err(error) = ended {
            debug!(%error, "connection to the status server ended");
        },
        () = displaced.cancelled() => debug!("connection to the status server made room for a new one"),
        () = sleep(limits.lifetime) => debug!("connection to the status server lasted too long"),
    }
}

/// The connections that wait for a request, or for their answer to be read, oldest first.
#[derive(Clone, Debug, Default)]
struct WaitingConnections {
    state: Arc<Mutex<Numbered>>,
}

#[derive(Debug, Default)]
struct Numbered {
    next: u64,
    waiting: BTreeMap<u64, CancellationToken>,
}

impl WaitingConnections {
    fn enter(&self) -> Entry {
        let displaced = CancellationToken::new();
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.waiting.insert(number, displaced.clone());
        drop(state);
        Entry { waiting: self.clone(), number, displaced }
    }

    /// Ends the oldest one.
    fn displace(&self) {
        if let Some((_, oldest)) = self.lock().waiting.pop_first() {
            oldest.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Numbered> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection's place among those that wait.
#[derive(Debug)]
struct Entry {
    waiting: WaitingConnections,
    number: u64,
    displaced: CancellationToken,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.waiting.lock().waiting.remove(&self.number);
    }
}

/// Protects a connection while its request is answered.
struct Busy {
    entry: Arc<Entry>,
}

impl Busy {
    fn new(entry: Arc<Entry>) -> Self {
        entry.waiting.lock().waiting.remove(&entry.number);
        Self { entry }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let Entry { waiting, number, displaced } = &*self.entry;
        waiting.lock().waiting.insert(*number, displaced.clone());
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const PATIENT: ServeLimits = ServeLimits {
        connections: 4,
        header_timeout: Duration::from_secs(600),
        request_timeout: Duration::from_secs(600),
        lifetime: Duration::from_secs(600),
    };

    async fn start(limits: ServeLimits) -> (SocketAddr, CancellationToken, TaskTracker) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let pages = Router::new()
            .route(
                "/",
                get(|ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.to_string() }),
            )
            .route("/never", get(std::future::pending::<()>));
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(serve(listener, pages, limits, stop.clone(), tasks.clone()));
        (address, stop, tasks)
    }

    /// Returns a connection on which something was sent.
    async fn sent(address: SocketAddr, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }

    async fn rest(stream: &mut TcpStream) -> String {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes).await;
        String::from_utf8_lossy(&bytes).into_owned()
    }

    const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    const HALF: &[u8] = b"GET / HTTP/1.1\r\nHost: loc";

    #[tokio::test]
    async fn a_page_knows_who_asks() {
        let (address, _stop, _tasks) = start(PATIENT).await;
        let mut stream = sent(address, GET).await;
        let own = stream.local_addr().unwrap().to_string();
        assert!(rest(&mut stream).await.ends_with(&own));
    }

    #[tokio::test]
    async fn half_sent_requests_and_idle_connections_make_room() {
        let (address, _stop, _tasks) = start(PATIENT).await;
        let kept = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
        for bytes in [&b""[..], HALF, kept, b"GET / HTTP/1.1\r\nA: ", &GET[..GET.len() - 1]] {
            let mut held = Vec::new();
            for _ in 0..10 * PATIENT.connections {
                held.push(sent(address, bytes).await);
                let mut asking = sent(address, GET).await;
                assert!(rest(&mut asking).await.starts_with("HTTP/1.1 200"), "{bytes:?}");
            }
            for stream in &mut held[..9 * PATIENT.connections] {
                rest(stream).await;
            }
        }
    }

    #[tokio::test]
    async fn a_request_that_is_being_answered_is_not_displaced() {
        let limits = ServeLimits { request_timeout: Duration::from_millis(400), ..PATIENT };
        let (address, _stop, _tasks) = start(limits).await;
        let never = b"GET /never HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let mut slow = sent(address, never).await;
        for _ in 0..2 * PATIENT.connections {
            let mut asking = sent(address, GET).await;
            assert!(rest(&mut asking).await.starts_with("HTTP/1.1 200"));
        }
        assert!(rest(&mut slow).await.starts_with("HTTP/1.1 503"), "and not for ever");
    }

    #[tokio::test]
    async fn a_header_that_does_not_come_ends_the_connection() {
        let limits = ServeLimits { header_timeout: Duration::from_millis(100), ..PATIENT };
        let (address, _stop, _tasks) = start(limits).await;
        for bytes in [&b""[..], HALF, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET /"] {
            let mut stream = sent(address, bytes).await;
            // It would wait without end.
            rest(&mut stream).await;
        }
    }

    #[tokio::test]
    async fn a_connection_does_not_last_for_ever() {
        let limits = ServeLimits { lifetime: Duration::from_millis(100), ..PATIENT };
        let (address, _stop, _tasks) = start(limits).await;
        rest(&mut sent(address, HALF).await).await;
    }

    #[tokio::test]
    async fn a_header_has_a_longest() {
        let (address, _stop, _tasks) = start(PATIENT).await;
        let mut long = b"GET / HTTP/1.1\r\nHost: localhost\r\nA: ".to_vec();
        long.resize(HEADER * 2, b'a');
        let mut stream = TcpStream::connect(address).await.unwrap();
        let _ = stream.write_all(&long).await;
        let answer = rest(&mut stream).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    }

    #[tokio::test]
    async fn the_token_ends_the_connections_too() {
        let (address, stop, tasks) = start(PATIENT).await;
        let mut held = sent(address, HALF).await;
        stop.cancel();
        tasks.close();
        tasks.wait().await;
        rest(&mut held).await;
    }
}
