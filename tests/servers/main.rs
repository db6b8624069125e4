//! The programs on real XMPP servers, with independent clients.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod addresses;
mod admin;
mod away;
mod chat;
mod client;
mod clients;
mod cluster;
mod codes;
mod contact;
mod crashes;
mod crowds;
mod devices;
mod differential;
mod direct;
mod e2e_ejabberd;
mod e2e_prosody;
mod harness;
mod ice;
mod idle;
mod interop;
mod interop_tls;
mod lan;
mod library;
mod link;
mod login;
mod message_initiation;
mod methods;
mod mitm;
mod nats;
mod operations;
mod outgoing;
mod paths;
mod pipe;
mod resume;
mod roaming;
mod sets;
mod setup;
mod terminal;
mod wire;
