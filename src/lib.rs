//! Fingerpost: end-to-end TLS between XMPP users, brokered, relayed and checked by one XEP-0114 component.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests may panic"))]

mod accept;
pub mod access;
pub mod broker;
pub mod cli;
pub mod client;
pub mod clock;
pub mod cluster;
pub mod commands;
pub mod config;
pub mod control;
pub mod endpoint;
pub mod http;
pub mod lifecycle;
pub mod limits;
pub mod logging;
pub mod mediator;
pub mod metrics;
pub mod print;
pub mod redact;
mod refuse;
pub mod registry;
pub mod router;
pub mod service;
mod shared_file;
pub mod shares;
pub mod stdout;
pub mod systemd;
pub mod tls;
pub mod xmpp;
