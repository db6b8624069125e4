//! The commands `send --code` and `receive`: files for a peer that knows a [code](phrase), without a key on either side.
//!
//! 1. The sender logs in at the resource that its code names, and waits.
//! 2. The receiver starts a session there, with the method `srp` and the words of the code as password. Its description is
//!    empty: nothing about the files is in any stanza.
//! 3. In the secured stream the sender sends a [set](super::set) of files.
//!
//! The receiver starts the session, so the sender judges the guesses: it takes [`GUESSES`] wrong ones, of all peers together. The
//! first peer that knows the words gets the files, and no other one.

mod ask;
mod phrase;
mod receive;
mod send;

use fingerpost_secure::srp::BadPassword;
use fingerpost_wire::ns;
use minidom::Element;

pub(super) use self::{receive::receive, send::send};
use super::output::XtlsError;

/// The wrong guesses after which a code is no longer valid. Three of 2^33.
const GUESSES: u32 = 3;

/// Returns the description of the session. It is the same for all files.
fn description() -> Element {
    Element::bare("description", ns::CODE)
}

impl From<BadPassword> for XtlsError {
    fn from(error: BadPassword) -> Self {
        Self::failed(error.to_string())
    }
}
