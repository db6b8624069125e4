//! End-to-end TLS to another XMPP user, as a library: negotiate, then read and write.
//!
//! An [`Endpoint`] is one user's program. It logs in to the user's XMPP server, starts [sessions](Endpoint::initiate)
//! with other users and takes those that [come in](Incoming). Each session ends up in a [`SecureStream`]: bytes
//! that only the two programs can read, with what was [learned](Learned) of the peer on the way.
//!
//! A stream that is cut is never taken for one that has ended: reading gives `Ok(0)` only after the peer's own TLS
//! `close_notify`, and an error of kind `UnexpectedEof` wherever somebody between the two, or a crash, ended it.
//!
//! ```text
//!  Login ──login──▶ Endpoint ──initiate──▶ (Session, SecureStream)
//!                      │
//!                   Incoming ──next──▶ Request ──accept──▶ (Session, SecureStream)
//! ```
//!
//! A session runs through a broker (a Fingerpost component, [`Builder::via`]), which finds the user, tells each side
//! what its registry knows of the other's key and carries the bytes; or directly between two full JIDs, with the
//! component as proxy and registry only ([`Builder::component`]), or without any.
//!
//! # Whose key is it?
//! The peer must show the key whose print it has offered, or prove the password that both know; nothing else gets past the
//! handshake. Which it is, the [`Credential`] says that the endpoint is built with.
//! Then the endpoint asks the component's registry about the key that was shown, in every session, and refuses one that is
//! revoked or none of the peer's registered keys.
//! Whether that key is the right user's is for a [`Policy`] to say: [`Registered`] (the registry vouches for it; the
//! default), [`FirstUse`] (the first key is kept, another is refused), or one of your own. Nothing of the application is
//! sent before it has agreed.
//!
//! # Example
//! ```no_run
//! use fingerpost_endpoint::{Application, Endpoint, Error, Login, Reason};
//! use fingerpost_secure::identity::Identity;
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let login = Login::new("alice@example.org".parse()?, "her password");
//! let identity = Identity::generate(&login.jid)?;
//! let (endpoint, _incoming) =
//!     Endpoint::builder(identity).via("xtls.example.org".parse()?).login(&login).await?;
//!
//! let bob = "bob@example.org".parse()?;
//! let (mut session, mut stream) = match endpoint.initiate(&bob, &Application::tls()).await {
//!     Ok(secured) => secured,
//!     Err(Error::Unreachable(why)) => return Ok(println!("try later: {why}")),
//!     Err(error) => return Err(error.into()),
//! };
//! stream.write_all(b"Hello, Bob\n").await?;
//! stream.shutdown().await?;
//! let mut answer = String::new();
//! stream.read_to_string(&mut answer).await?;
//! session.terminate(Reason::Success, "").await;
//! endpoint.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! Whole programs: `examples/echo.rs`, a service, and `examples/send_line.rs`, which asks it. `xtls` is built on this
//! crate too.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests may panic"))]

mod application;
#[cfg(test)]
mod between;
mod builder;
mod cause;
mod consent;
mod credential;
mod dial;
mod direct;
mod discovery;
mod driver;
mod endpoint;
mod error;
mod fast;
mod guesses;
mod hub;
mod ice;
mod keeper;
mod login;
mod managed;
mod message_initiation;
mod method;
mod nat64;
mod negotiate;
mod network;
mod path;
mod paths;
mod places;
mod policy;
mod progress;
mod registry;
mod s5b;
mod sasl;
mod sasl2;
mod session;
mod socks5;
mod start;
mod stream;
mod streamhost;
mod stun_servers;
mod transport;
mod unwritten;

pub use fingerpost_wire::{jingle::Reason, stanza::RequestKind, transport_kind::TransportKind};

#[cfg(feature = "testing")]
pub use self::direct::probe;
#[cfg(feature = "testing")]
pub use self::ice::fuzzing as ice_fuzzing;
#[cfg(any(test, feature = "testing"))]
pub use self::stream::testing;
pub use self::{
    application::{Application, CHUNKS},
    builder::Builder,
    consent::{Consent, DirectPath},
    credential::Credential,
    dial::{DialError, dial_addresses},
    endpoint::Endpoint,
    error::{Detail, Error},
    fast::{FastStore, FastToken},
    keeper::Contact,
    login::{Connection, Login, ServerTrust, login},
    message_initiation::{Proposal, ProposalAnswer, ProposalNews, Proposed, Ringer},
    negotiate::{Incoming, Request},
    path::loses_large_packets,
    paths::Path,
    policy::{FirstUse, Hint, Known, Listed, Policy, Registered, Shown, Standing},
    progress::{Monitor, Waiting},
    session::Session,
    stream::{Learned, SecureStream},
};
