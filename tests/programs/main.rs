//! The tests that start no server, which `make test-fast` runs. A test that starts one belongs to another directory.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod cli;
mod config;
mod fuzz;
mod suites;
mod xep;
