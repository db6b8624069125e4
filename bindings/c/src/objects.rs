//! The objects behind the numbers, and the work of each call.

use std::{
    collections::HashMap,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use fingerpost_bindings::{Arrival, Client, Info, Link, Requests, Settings};
use tokio::{runtime, time::timeout};

use crate::error::{Failure, fingerpost_code as Code};

/// How long the tasks of an endpoint may take to end with it.
const END: Duration = Duration::from_secs(2);
/// Threads that serve the network beside the program's own.
const WORKERS: usize = 2;

/// The runtime of an endpoint and of its streams. It ends with the last of them.
#[derive(Debug)]
struct Runtime(Option<runtime::Runtime>);

impl Runtime {
    fn start() -> Result<Self, Failure> {
        let mut builder = runtime::Builder::new_multi_thread();
        let started =
            builder.worker_threads(WORKERS).thread_name("fingerpost").enable_all().build();
        match started {
            Ok(started) => Ok(Self(Some(started))),
            Err(error) => {
                let text = format!("cannot start the library's threads: {error}");
                Err(Failure::new(Code::FINGERPOST_FAILED, text))
            }
        }
    }

    fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        let runtime = self.0.as_ref().expect("it is taken only when it is dropped");
        runtime.block_on(work)
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_timeout(END);
        }
    }
}

#[derive(Debug)]
struct EndpointObject {
    client: Client,
    requests: Requests,
    runtime: Arc<Runtime>,
}

#[derive(Debug)]
struct RequestObject {
    peer: String,
    /// Empty once it is accepted or declined.
    arrival: Mutex<Option<Arrival>>,
    runtime: Arc<Runtime>,
}

#[derive(Debug)]
struct StreamObject {
    link: Link,
    runtime: Arc<Runtime>,
}

#[derive(Clone, Debug)]
enum Object {
    Endpoint(Arc<EndpointObject>),
    Request(Arc<RequestObject>),
    Stream(Arc<StreamObject>),
}

static OBJECTS: LazyLock<Mutex<HashMap<u64, Object>>> = LazyLock::new(Mutex::default);
/// No number is given out twice, so that a closed one never means another object.
static NEXT: AtomicU64 = AtomicU64::new(1);

fn objects() -> MutexGuard<'static, HashMap<u64, Object>> {
    OBJECTS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn keep(object: Object) -> u64 {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    objects().insert(number, object);
    number
}

/// Takes an object away from its number. It ends when the calls that use it have returned.
fn forget(number: u64) {
    let object = {
        let mut objects = objects();
        let object = objects.remove(&number);
        if objects.is_empty() {
            // A program that has closed everything has no memory of ours left.
            *objects = HashMap::new();
        }
        object
    };
    drop(object);
}

fn wrong(what: &str, number: u64) -> Failure {
    let text = format!("{number} is not an open {what}");
    Failure::new(Code::FINGERPOST_HANDLE, text)
}

fn endpoint(number: u64) -> Result<Arc<EndpointObject>, Failure> {
    match objects().get(&number) {
        Some(Object::Endpoint(object)) => Ok(Arc::clone(object)),
        _ => Err(wrong("endpoint", number)),
    }
}

fn request(number: u64) -> Result<Arc<RequestObject>, Failure> {
    match objects().get(&number) {
        Some(Object::Request(object)) => Ok(Arc::clone(object)),
        _ => Err(wrong("request", number)),
    }
}

fn stream(number: u64) -> Result<Arc<StreamObject>, Failure> {
    match objects().get(&number) {
        Some(Object::Stream(object)) => Ok(Arc::clone(object)),
        _ => Err(wrong("stream", number)),
    }
}

pub(crate) fn login(settings: Settings) -> Result<u64, Failure> {
    let runtime = Runtime::start()?;
    let (client, requests) = runtime.wait(Client::login(settings))?;
    let runtime = Arc::new(runtime);
    Ok(keep(Object::Endpoint(Arc::new(EndpointObject { client, requests, runtime }))))
}

pub(crate) fn jid(number: u64) -> Result<String, Failure> {
    Ok(endpoint(number)?.client.jid())
}

pub(crate) fn fingerprint(number: u64) -> Result<String, Failure> {
    Ok(endpoint(number)?.client.fingerprint())
}

pub(crate) fn register(number: u64, label: &str) -> Result<(), Failure> {
    let object = endpoint(number)?;
    Ok(object.runtime.wait(object.client.register(label))?)
}

pub(crate) fn listen(number: u64) -> Result<(), Failure> {
    let object = endpoint(number)?;
    object.runtime.wait(object.client.appear());
    Ok(())
}

pub(crate) fn connect(number: u64, peer: &str) -> Result<u64, Failure> {
    let object = endpoint(number)?;
    let link = object.runtime.wait(object.client.connect(peer))?;
    Ok(keep_stream(link, &object.runtime))
}

fn keep_stream(link: Link, runtime: &Arc<Runtime>) -> u64 {
    keep(Object::Stream(Arc::new(StreamObject { link, runtime: Arc::clone(runtime) })))
}

/// Waits for the next session; without end if `limit` is `None`.
pub(crate) fn next(number: u64, limit: Option<Duration>) -> Result<u64, Failure> {
    let object = endpoint(number)?;
    let next = object.requests.next(&object.client);
    let arrival = match limit {
        None => object.runtime.wait(next)?,
        Some(limit) => match object.runtime.wait(async { timeout(limit, next).await }) {
            Ok(arrival) => arrival?,
            Err(_) => {
                let text = format!("no peer has started a session within {} ms", limit.as_millis());
                return Err(Failure::new(Code::FINGERPOST_TIMEOUT, text));
            }
        },
    };
    let (peer, arrival) = (arrival.peer(), Mutex::new(Some(arrival)));
    let runtime = Arc::clone(&object.runtime);
    Ok(keep(Object::Request(Arc::new(RequestObject { peer, arrival, runtime }))))
}

pub(crate) fn request_peer(number: u64) -> Result<String, Failure> {
    Ok(request(number)?.peer.clone())
}

/// Takes the session out of a request, whose number is closed with it.
fn take_arrival(number: u64) -> Result<(Arrival, Arc<Runtime>), Failure> {
    let object = request(number)?;
    let arrival = object.arrival.lock().unwrap_or_else(PoisonError::into_inner).take();
    forget(number);
    // Another thread was faster.
    let arrival = arrival.ok_or_else(|| wrong("request", number))?;
    Ok((arrival, Arc::clone(&object.runtime)))
}

pub(crate) fn accept(number: u64) -> Result<u64, Failure> {
    let (arrival, runtime) = take_arrival(number)?;
    let link = runtime.wait(arrival.accept())?;
    Ok(keep_stream(link, &runtime))
}

pub(crate) fn decline(number: u64, text: &str) -> Result<(), Failure> {
    let (arrival, runtime) = take_arrival(number)?;
    runtime.wait(arrival.decline(text));
    Ok(())
}

pub(crate) fn read(number: u64, buffer: &mut [u8]) -> Result<usize, Failure> {
    let object = stream(number)?;
    Ok(object.runtime.wait(object.link.read(buffer))?)
}

pub(crate) fn write(number: u64, bytes: &[u8]) -> Result<(), Failure> {
    let object = stream(number)?;
    Ok(object.runtime.wait(async {
        object.link.write_all(bytes).await?;
        object.link.flush().await
    })?)
}

pub(crate) fn end(number: u64) -> Result<(), Failure> {
    let object = stream(number)?;
    Ok(object.runtime.wait(object.link.end())?)
}

pub(crate) fn info(number: u64) -> Result<Info, Failure> {
    Ok(stream(number)?.link.info().clone())
}

pub(crate) fn sas(number: u64) -> Result<String, Failure> {
    let object = stream(number)?;
    Ok(object.runtime.wait(object.link.short_authentication_string())?)
}

pub(crate) fn close_stream(number: u64) -> Result<(), Failure> {
    let object = stream(number)?;
    let closed = object.runtime.wait(object.link.close()).map_err(Failure::from);
    if closed.as_ref().is_err_and(|failure| failure.code == Code::FINGERPOST_STATE)
        && !object.link.is_over()
    {
        // Another thread is in a call; the stream stays open.
        return closed;
    }
    forget(number);
    closed
}

pub(crate) fn abort_stream(number: u64) -> Result<(), Failure> {
    let object = stream(number)?;
    object.link.abort();
    // The reason of the end is this call itself, or one that a read or a write has told.
    let _ = object.runtime.wait(object.link.ended());
    forget(number);
    Ok(())
}

pub(crate) fn close_endpoint(number: u64) -> Result<(), Failure> {
    let object = endpoint(number)?;
    forget(number);
    object.runtime.wait(object.client.close());
    Ok(())
}
