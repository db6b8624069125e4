//! Fingerpost: end-to-end TLS between XMPP users, brokered, relayed and checked by one XEP-0114 component.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests may panic"))]

mod accept;
pub mod access;
pub mod chat;
pub mod cli;
pub mod cluster;
pub mod commands;
pub mod config;
pub mod control;
pub mod front;
pub mod http;
pub mod lifecycle;
pub mod limits;
pub mod link;
pub mod logging;
pub mod metrics;
mod refuse;
pub mod registry;
pub mod relay;
pub mod service;
pub mod sessions;
pub mod systemd;
