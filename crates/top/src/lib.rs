//! The live view of a running Fingerpost: sessions, throughput, limits and refusals in a terminal.
//!
//! [`StatusDocument`] is what the service says of itself. [`TopView`] is a state machine that takes documents, keys and
//! the time, and draws; [`watch`] is the shell around it that has the terminal.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests may panic"))]

mod amount;
mod document;
mod terminal;
mod view;

pub use self::{
    amount::amount,
    document::{SessionDocument, StatusDocument, Usage},
    terminal::watch,
    view::{TopKey, TopView},
};
