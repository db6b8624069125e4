//! The broker stands between two users in a Jingle session and sees nothing but TLS ciphertext.
//!
//! [`Broker`] finds the session of a stanza, or creates one. Each session is a task of its own (`driver.rs`).

mod broker;
mod callee;
mod directory;
mod driver;
pub mod features;
pub mod hints;
mod inbox;
pub mod journal;
mod legs;
mod lookups;
mod machine;
pub mod message_initiation;
mod options;
mod own;
mod own_driver;
mod peer;
mod peer_error;
pub mod presence;
pub mod reachable;
pub mod refusal;
mod rooms;
mod session;
mod shared;
mod si;
mod side;
pub mod watchers;

pub(crate) use self::peer_error::of_peer;
pub use self::{
    broker::Broker,
    callee::{Again, Callee, Left},
    directory::{SessionInfo, SessionKey},
    options::{BrokerOptions, PlainFiles},
};
