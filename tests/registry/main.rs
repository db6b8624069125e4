//! The registry and its data: certificates of other programs, both databases, and failures of either.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod certificates;
mod e2e_registry;
mod postgres;
mod registry_model;
mod registry_storage;
