//! Carries stanzas and bytes between two ends, with tokio.
//!
//! These are the thin shells around `fingerpost-wire`, used by the component and by a user's program alike.
//!
//! | question | module |
//! |---|---|
//! | how stanzas are read from a connection | [`reader`]; how waiting bytes are written to one: [`writer`]; the stanzas that wait: [`outbound`] |
//! | how a request waits for its answer | [`iq`]; how many may wait for each user: [`shares`] |
//! | how many small things are kept and found in little memory | [`rows`] |
//! | how an in-band bytestream becomes a stream of tokio's | [`ibb_stream`] carries its bytes, [`ibb_handle`] its stanzas; [`ibb_params`]; what it has of the memory of all: [`ibb_memory`] |
//! | what connects a user with the next hop | [`leg`]: a TCP connection or an in-band bytestream |
//! | whether written bytes have arrived, and how a stream ends | [`leg_end`]; what the kernel knows: [`tcp`], the one module with unsafe code |

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests may panic"))]

pub mod ibb_handle;
pub mod ibb_memory;
pub mod ibb_params;
pub mod ibb_stream;
pub mod iq;
pub mod leg;
pub mod leg_end;
pub mod outbound;
pub mod reader;
pub mod rows;
pub mod shares;
pub mod tcp;
pub mod writer;
