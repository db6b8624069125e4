//! Moves bytes: SOCKS5 and in-band bytestreams, the transfers between them, and the pipe.
//!
//! The protocol machines ([`socks5`], [`proxy_header`], [`transfer`], and [`ibb`](fingerpost_wire::ibb) and
//! [`client_hello`](fingerpost_wire::client_hello) below) do no I/O and read no clock; the thin shells around them
//! ([`listener`], [`table`], [`leg`](fingerpost_carry::leg), [`plane`], [`join`], [`pipe`]) own the sockets, queues and timers.
//! No code here opens an outgoing connection.

mod admission;
mod byte_rate;
mod clock;
mod crowd;
mod ending;
mod engine;
#[cfg(test)]
mod ibb_stream_tests;
pub mod join;
pub mod listener;
pub mod metrics;
mod names;
pub(crate) mod origins;
mod pair;
pub mod pipe;
pub mod plane;
pub mod proxy_header;
pub mod socket;
pub mod socks5;
mod splice;
pub mod table;
pub mod transfer;
pub mod watch;
