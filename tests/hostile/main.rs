//! Attackers, each in a file of its own. Every attack that once succeeded stays here as a test, on real servers.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod broker;
mod cuts;
mod file_peer;
mod guest;
mod hidden_prints;
mod http_client;
mod in_band;
mod network;
mod permitted_user;
mod permitted_user_registry;
mod presence_flood;
mod session_peer;
mod socks5_socket;
mod stranger;
