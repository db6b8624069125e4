//! The endpoint library for C: `include/fingerpost.h`.
//!
//! Endpoints, requests and streams are numbers in C, never pointers: a number that was closed, or never given out, is
//! answered with an error. All calls block their thread; every endpoint has a runtime of its own, which ends with the
//! last of its objects.

mod error;
mod interface;
mod objects;

pub use self::{error::*, interface::*};
