//! The bytes of a stream: two tasks between the link and the transport in the event loop.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use fingerpost_bindings::{Fault, Link};
use pyo3::{
    prelude::*,
    pybacked::PyBackedBytes,
    types::{PyBytes, PyDict, PyTuple},
};
use tokio::sync::{Notify, Semaphore, watch};

use crate::bridge::{EventLoop, Held, awaitable, exception, runtime};

/// The most bytes that are passed to the event loop at once.
const CHUNK: usize = 1 << 18;
/// The most chunks on their way to the event loop.
const CHUNKS: usize = 1;
/// How many waiting bytes pause the writer, and how few let it continue.
const HIGH: usize = 1 << 20;
const LOW: usize = 1 << 18;

/// The bytes that the event loop has written and the link has not.
#[derive(Default)]
struct Queue {
    chunks: VecDeque<PyBackedBytes>,
    /// The bytes in them and in the one that is being written.
    waiting: usize,
    high: usize,
    low: usize,
    /// Whether the protocol was told to pause.
    paused: bool,
    /// Whether nothing follows.
    ended: bool,
}

struct Shared {
    link: Link,
    queue: Mutex<Queue>,
    changed: Notify,
    credits: Semaphore,
    closing: watch::Sender<Closing>,
}

/// How the transport was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing {
    NotYet,
    InOrder,
    AtOnce,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The methods of the transport, in its event loop.
struct Outlet {
    event_loop: EventLoop,
    deliver: Py<PyAny>,
    ended: Py<PyAny>,
    resume: Py<PyAny>,
    lost: Py<PyAny>,
}

/// A stream, as the transport in the package sees it.
#[pyclass(frozen)]
pub(crate) struct Stream {
    shared: Arc<Shared>,
}

impl Stream {
    pub(crate) fn new(link: Link) -> Self {
        let queue = Queue { high: HIGH, low: LOW, ..Queue::default() };
        Self {
            shared: Arc::new(Shared {
                link,
                queue: Mutex::new(queue),
                changed: Notify::new(),
                credits: Semaphore::new(CHUNKS),
                closing: watch::Sender::new(Closing::NotYet),
            }),
        }
    }
}

#[pymethods]
impl Stream {
    /// Begins to read and to write, for a transport in the running event loop.
    fn start(&self, py: Python<'_>, transport: &Bound<'_, PyAny>) -> PyResult<()> {
        let method = |name: &str| Ok::<_, PyErr>(transport.getattr(name)?.unbind());
        let outlet = Arc::new(Held::new(Outlet {
            event_loop: EventLoop::running(py)?,
            deliver: method("_deliver")?,
            ended: method("_ended")?,
            resume: method("_resume")?,
            lost: method("_lost")?,
        }));
        let shared = Arc::clone(&self.shared);
        runtime()?.spawn(async move {
            let end = run(&shared, &outlet).await;
            if end.is_err() {
                shared.link.abort();
            }
            outlet.event_loop.call(&outlet.lost, |py| match end {
                Ok(()) => PyTuple::new(py, [py.None()]),
                Err(fault) => PyTuple::new(py, [exception(py, &fault)?]),
            });
        });
        Ok(())
    }

    /// Queues bytes; returns whether the writer must pause.
    fn write(&self, data: PyBackedBytes) -> bool {
        let mut queue = self.shared.queue();
        queue.waiting += data.len();
        queue.chunks.push_back(data);
        let pauses = !queue.paused && queue.waiting > queue.high;
        queue.paused |= pauses;
        drop(queue);
        self.shared.changed.notify_one();
        pauses
    }

    /// Says that nothing follows.
    fn end(&self) {
        self.shared.queue().ended = true;
        self.shared.changed.notify_one();
    }

    /// Says that the transport has got a chunk.
    fn delivered(&self) {
        self.shared.credits.add_permits(1);
    }

    /// Ends the stream in order: no more is passed to the transport.
    fn close(&self) {
        self.shared.closing.send_if_modified(|closing| {
            let closes = *closing == Closing::NotYet;
            if closes {
                *closing = Closing::InOrder;
            }
            closes
        });
        self.end();
    }

    /// Ends the stream at once.
    fn abort(&self) {
        self.shared.link.abort();
        self.shared.closing.send_replace(Closing::AtOnce);
    }

    /// Sets how many waiting bytes pause the writer, and how few let it continue.
    fn limit(&self, high: usize, low: usize) {
        let mut queue = self.shared.queue();
        (queue.high, queue.low) = (high, low);
    }

    #[getter]
    fn limits(&self) -> (usize, usize) {
        let queue = self.shared.queue();
        (queue.low, queue.high)
    }

    #[getter]
    fn waiting(&self) -> usize {
        self.shared.queue().waiting
    }

    /// Returns what was learned of the peer.
    fn info<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let info = self.shared.link.info();
        let facts = PyDict::new(py);
        for (name, fact) in [
            ("peer", Some(info.peer.as_str())),
            ("address", Some(info.address.as_str())),
            ("fingerprint", Some(info.fingerprint.as_str())),
            ("method", Some(info.method.as_str())),
            ("verdict", Some(info.verdict)),
            ("assurance", info.assurance),
            ("label", info.label.as_deref()),
            ("known", Some(info.known)),
            ("tls_version", Some(info.tls_version.as_str())),
            ("key_exchange", Some(info.key_exchange.as_str())),
            ("transport", Some(info.transport)),
        ] {
            facts.set_item(name, fact)?;
        }
        facts.set_item("initiator", info.initiator)?;
        Ok(facts)
    }

    /// Awaits the twelve digits that both users compare.
    fn short_authentication_string<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let link = self.shared.link.clone();
        awaitable(py, async move { link.short_authentication_string().await }, |py, digits| {
            Ok(digits.into_pyobject(py)?.into_any())
        })
    }
}

/// Moves bytes until the stream has ended, and the session with it.
async fn run(shared: &Arc<Shared>, outlet: &Arc<Held<Outlet>>) -> Result<(), Fault> {
    let reads = tokio::spawn(read(Arc::clone(shared), Arc::clone(outlet)));
    let writes = write(shared, outlet);
    tokio::pin!(writes);
    let reads = async { reads.await.unwrap_or_else(|_| Err(Fault::state("the reader failed"))) };
    tokio::pin!(reads);
    // A direction that fails ends the other one too.
    let both = async {
        tokio::select! {
            read = &mut reads => {
                read?;
                writes.await
            }
            written = &mut writes => {
                written?;
                reads.await
            }
        }
    };
    let mut closing = shared.closing.subscribe();
    tokio::select! {
        both = both => both?,
        _ = closing.wait_for(|closing| *closing == Closing::AtOnce) => {}
    }
    let closing = *shared.closing.borrow();
    if closing == Closing::InOrder { shared.link.close().await } else { shared.link.ended().await }
}

/// Passes what arrives to the event loop, until the peer's end or the transport is closed.
async fn read(shared: Arc<Shared>, outlet: Arc<Held<Outlet>>) -> Result<(), Fault> {
    let mut closing = shared.closing.subscribe();
    let mut buffer = vec![0; CHUNK];
    loop {
        let filled = tokio::select! {
            filled = next(&shared, &mut buffer) => filled?,
            _ = closing.wait_for(|closing| *closing != Closing::NotYet) => return Ok(()),
        };
        let runs = match buffer.get(..filled) {
            Some(bytes @ [_, ..]) => outlet
                .event_loop
                .call(&outlet.deliver, |py| PyTuple::new(py, [PyBytes::new(py, bytes)])),
            _ => {
                outlet.event_loop.call(&outlet.ended, |py| Ok(PyTuple::empty(py)));
                return Ok(());
            }
        };
        if !runs {
            return Err(Fault::state("the event loop has ended"));
        }
    }
}

/// Fills the buffer until the event loop has taken the chunk before: a busy loop gets few large chunks, and an idle one
/// gets each byte at once. Returns how many bytes there are; 0 at the peer's end.
async fn next(shared: &Shared, buffer: &mut [u8]) -> Result<usize, Fault> {
    let mut filled = shared.link.read(buffer).await?;
    let mut more = filled > 0;
    loop {
        let rest = buffer.get_mut(filled..).unwrap_or_default();
        more &= !rest.is_empty();
        tokio::select! {
            biased;
            credit = shared.credits.acquire() => {
                if let Ok(credit) = credit {
                    credit.forget();
                }
                return Ok(filled);
            }
            // The end, or an error, comes again with the next read.
            read = shared.link.read(rest), if more => match read {
                Ok(read @ 1..) => filled += read,
                _ => more = false,
            },
        }
    }
}

/// Writes what the event loop has queued, until its end.
async fn write(shared: &Shared, outlet: &Outlet) -> Result<(), Fault> {
    let mut flushed = true;
    // What was written is released at once only if nothing follows: that takes Python's lock.
    let mut spent = Vec::new();
    loop {
        let (chunk, ended) = {
            let mut queue = shared.queue();
            (queue.chunks.pop_front(), queue.ended)
        };
        let Some(chunk) = chunk else {
            if !spent.is_empty() {
                drop(Held::new(std::mem::take(&mut spent)));
            }
            if ended {
                return shared.link.end().await;
            }
            tokio::select! {
                biased;
                () = shared.changed.notified() => {}
                done = shared.link.flush(), if !flushed => {
                    done?;
                    flushed = true;
                }
            }
            continue;
        };
        shared.link.write_all(&chunk).await?;
        flushed = false;
        let resumes = {
            let mut queue = shared.queue();
            queue.waiting -= chunk.len();
            let resumes = queue.paused && queue.waiting <= queue.low;
            queue.paused &= !resumes;
            resumes
        };
        spent.push(chunk);
        if resumes {
            drop(Held::new(std::mem::take(&mut spent)));
            outlet.event_loop.call(&outlet.resume, |py| Ok(PyTuple::empty(py)));
        }
    }
}
