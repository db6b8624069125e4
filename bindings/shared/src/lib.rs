//! What the Python and the C library share, so that both behave the same.
//!
//! | what | where |
//! |---|---|
//! | every setting of an endpoint, as text | [`Settings`] |
//! | one user's connection | [`Client`], [`Requests`] |
//! | one session, for two tasks that read and write | [`Link`], [`Info`] |
//! | errors as a kind and a sentence | [`Fault`], [`Kind`] |

mod client;
mod fault;
mod link;
mod settings;

pub use self::{
    client::{Arrival, Client, Requests},
    fault::{Fault, Kind},
    link::{Info, Link},
    settings::{Settings, Trust},
};
