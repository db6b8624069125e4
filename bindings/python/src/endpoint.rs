//! One user's connection, and the sessions that peers start.

use std::sync::{Arc, Mutex, PoisonError};

use fingerpost_bindings::{Arrival, Client, Fault, Link, Requests, Settings};
use pyo3::prelude::*;

use crate::{
    bridge::{awaitable, raised},
    stream::Stream,
};

/// Logs in; awaits an [`Endpoint`].
#[pyfunction]
#[pyo3(signature = (jid, password, component, *, server, ca_file, identity, trust, known, transport, reconnect))]
#[expect(clippy::too_many_arguments, reason = "the package passes each by its name")]
pub(crate) fn login<'py>(
    py: Python<'py>,
    jid: String,
    password: String,
    component: String,
    server: Option<String>,
    ca_file: Option<std::path::PathBuf>,
    identity: Option<std::path::PathBuf>,
    trust: &str,
    known: Vec<(String, String)>,
    transport: Option<String>,
    reconnect: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let settings = Settings {
        jid,
        password,
        component,
        server,
        ca_file,
        identity,
        trust: trust.parse().map_err(|fault: Fault| raised(py, &fault))?,
        known,
        transport,
        reconnect,
    };
    awaitable(py, Client::login(settings), |py, (client, requests)| {
        let endpoint = Endpoint { client, requests: Arc::new(requests) };
        Ok(Bound::new(py, endpoint)?.into_any())
    })
}

/// One user's connection to its XMPP server.
#[pyclass(frozen)]
pub(crate) struct Endpoint {
    client: Client,
    requests: Arc<Requests>,
}

/// Returns a stream for the running event loop.
fn stream(py: Python<'_>, link: Link) -> PyResult<Bound<'_, PyAny>> {
    Ok(Bound::new(py, Stream::new(link))?.into_any())
}

#[pymethods]
impl Endpoint {
    #[getter]
    fn jid(&self) -> String {
        self.client.jid()
    }

    #[getter]
    fn fingerprint(&self) -> String {
        self.client.fingerprint()
    }

    #[getter]
    fn is_connected(&self) -> bool {
        self.client.is_connected()
    }

    fn register<'py>(&self, py: Python<'py>, label: String) -> PyResult<Bound<'py, PyAny>> {
        let client = self.client.clone();
        awaitable(py, async move { client.register(&label).await }, |py, ()| {
            Ok(py.None().into_bound(py))
        })
    }

    fn listen<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let client = self.client.clone();
        let work = async move {
            client.appear().await;
            Ok(())
        };
        awaitable(py, work, |py, ()| Ok(py.None().into_bound(py)))
    }

    fn connect<'py>(&self, py: Python<'py>, peer: String) -> PyResult<Bound<'py, PyAny>> {
        let client = self.client.clone();
        awaitable(py, async move { client.connect(&peer).await }, stream)
    }

    fn next<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let (client, requests) = (self.client.clone(), Arc::clone(&self.requests));
        awaitable(py, async move { requests.next(&client).await }, |py, arrival| {
            let request = Request { peer: arrival.peer(), arrival: Mutex::new(Some(arrival)) };
            Ok(Bound::new(py, request)?.into_any())
        })
    }

    fn close<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let client = self.client.clone();
        let work = async move {
            client.close().await;
            Ok(())
        };
        awaitable(py, work, |py, ()| Ok(py.None().into_bound(py)))
    }
}

/// A session that a peer has started.
#[pyclass(frozen)]
pub(crate) struct Request {
    #[pyo3(get)]
    peer: String,
    arrival: Mutex<Option<Arrival>>,
}

impl Request {
    fn take(&self, py: Python<'_>) -> PyResult<Arrival> {
        let taken = self.arrival.lock().unwrap_or_else(PoisonError::into_inner).take();
        taken.ok_or_else(|| {
            raised(py, &Fault::state("the session was accepted or declined already"))
        })
    }
}

#[pymethods]
impl Request {
    fn accept<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        awaitable(py, self.take(py)?.accept(), stream)
    }

    fn decline<'py>(&self, py: Python<'py>, text: String) -> PyResult<Bound<'py, PyAny>> {
        let arrival = self.take(py)?;
        let work = async move {
            arrival.decline(&text).await;
            Ok(())
        };
        awaitable(py, work, |py, ()| Ok(py.None().into_bound(py)))
    }
}
