//! The native part of the Python package `fingerpost`; python/fingerpost has its interface.
//!
//! Bytes move on Rust's threads, without Python's lock. A thread takes the lock only to pass a chunk, or the end of
//! something, to the event loop.

mod bridge;
mod endpoint;
mod stream;

/// The module `fingerpost._native`.
#[pyo3::pymodule]
mod _native {
    #[pymodule_export]
    use crate::{
        bridge::shut_down,
        endpoint::{Endpoint, Request, login},
        stream::Stream,
    };
}
