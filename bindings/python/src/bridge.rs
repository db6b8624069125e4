//! From Rust's tasks to Python's event loop.
//!
//! pyo3-async-runtimes makes awaitables too. It takes Python's lock in a way that panics while the interpreter exits, and
//! its runtime never ends; the path of the bytes needs its own way to the event loop in any case.

use std::{
    ops::Deref,
    process,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use fingerpost_bindings::Fault;
use pyo3::{exceptions::PyRuntimeError, prelude::*, types::PyTuple};
use tokio::{
    runtime::{Builder, Handle, Runtime},
    task::AbortHandle,
};

/// How long tasks may take to end when the interpreter exits.
const END: Duration = Duration::from_secs(2);

/// The runtime of the process, and whose process it was.
static RUNTIME: Mutex<Option<(u32, Runtime)>> = Mutex::new(None);

/// Returns the runtime of this process, which starts with the first call.
pub(crate) fn runtime() -> PyResult<Handle> {
    let mut place = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    let own = process::id();
    match place.take() {
        Some((process, runtime)) if process == own => {
            return Ok(place.insert((process, runtime)).1.handle().clone());
        }
        // The threads stayed in the parent process; ending them here would wait for them without end.
        Some((_, runtime)) => std::mem::forget(runtime),
        None => {}
    }
    let started = Builder::new_multi_thread().thread_name("fingerpost").enable_all().build();
    let started = started.map_err(|error| {
        PyRuntimeError::new_err(format!("cannot start the threads of fingerpost: {error}"))
    })?;
    Ok(place.insert((own, started)).1.handle().clone())
}

/// Ends all tasks; the package registers it to run before the interpreter's end.
#[pyfunction]
pub(crate) fn shut_down(py: Python<'_>) {
    py.detach(|| {
        let taken = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner).take();
        match taken {
            Some((process, runtime)) if process == process::id() => runtime.shutdown_timeout(END),
            Some((_, runtime)) => std::mem::forget(runtime),
            None => {}
        }
    });
}

/// Returns the Python exception of an error.
pub(crate) fn exception<'py>(py: Python<'py>, fault: &Fault) -> PyResult<Bound<'py, PyAny>> {
    let make = py.import("fingerpost._errors")?.getattr("make")?;
    make.call1((fault.kind.as_str(), &fault.text))
}

/// Returns an error as one that a function of Rust raises.
pub(crate) fn raised(py: Python<'_>, fault: &Fault) -> PyErr {
    exception(py, fault).map_or_else(|error| error, PyErr::from_value)
}

/// Objects of Python that a task of Rust holds. They are released with Python's lock. Without it they would live until some
/// later call takes the lock, which may never come.
pub(crate) struct Held<T>(Option<T>);

impl<T> Held<T> {
    pub(crate) fn new(held: T) -> Self {
        Self(Some(held))
    }
}

impl<T> Deref for Held<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("it is taken only when it is dropped")
    }
}

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        let held = self.0.take();
        Python::try_attach(|_| drop(held));
    }
}

/// The event loop that the objects of one thread belong to.
pub(crate) struct EventLoop(Py<PyAny>);

impl EventLoop {
    /// Returns the running one.
    pub(crate) fn running(py: Python<'_>) -> PyResult<Self> {
        Ok(Self(py.import("asyncio")?.call_method0("get_running_loop")?.unbind()))
    }

    /// Calls `function` in the loop soon, from any thread; returns whether the loop still runs.
    pub(crate) fn call(
        &self,
        function: &Py<PyAny>,
        arguments: impl for<'py> FnOnce(Python<'py>) -> PyResult<Bound<'py, PyTuple>>,
    ) -> bool {
        let called = Python::try_attach(|py| {
            let mut all = vec![function.clone_ref(py)];
            all.extend(arguments(py)?.iter().map(Bound::unbind));
            let call = self.0.bind(py).getattr("call_soon_threadsafe")?;
            call.call1(PyTuple::new(py, all)?).map(drop)
        });
        // A loop that is closed refuses the call; nobody waits for it then.
        called.is_some_and(|called: PyResult<()>| called.is_ok())
    }
}

/// Aborts a task when the awaitable is done, which only matters if it was cancelled.
#[pyclass(frozen)]
struct Abort(AbortHandle);

#[pymethods]
impl Abort {
    fn __call__(&self, _future: &Bound<'_, PyAny>) {
        self.0.abort();
    }
}

/// Returns an awaitable for `work`. Cancelling it drops `work`, also if that is done already but nobody has its result yet.
pub(crate) fn awaitable<'py, T: Send + 'static>(
    py: Python<'py>,
    work: impl Future<Output = Result<T, Fault>> + Send + 'static,
    convert: impl for<'a> FnOnce(Python<'a>, T) -> PyResult<Bound<'a, PyAny>> + Send + 'static,
) -> PyResult<Bound<'py, PyAny>> {
    let event_loop = EventLoop::running(py)?;
    let future = event_loop.0.bind(py).call_method0("create_future")?;
    let settle = py.import("fingerpost._errors")?.getattr("settle")?.unbind();
    let runtime = runtime()?;
    let held = Held::new((event_loop, settle, future.clone().unbind()));
    let task = runtime.spawn(work);
    future.call_method1("add_done_callback", (Abort(task.abort_handle()),))?;
    runtime.spawn(async move {
        let outcome = match task.await {
            Ok(outcome) => outcome.map_err(Some),
            Err(error) if error.is_cancelled() => return,
            Err(_) => Err(None),
        };
        let (event_loop, settle, waiting) = &*held;
        event_loop.call(settle, |py| {
            let (value, error) = match outcome {
                Ok(value) => (Some(convert(py, value)?), None),
                Err(Some(fault)) => (None, Some(exception(py, &fault)?)),
                Err(None) => {
                    let text = "a fault of the library, which has written it to standard error";
                    (
                        None,
                        Some(
                            PyRuntimeError::new_err(text).into_value(py).into_bound(py).into_any(),
                        ),
                    )
                }
            };
            (waiting, value, error).into_pyobject(py)
        });
    });
    Ok(future)
}
