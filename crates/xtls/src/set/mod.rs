//! Many files and directories in one session: a set.
//!
//! A set is offered beside one of its files (XEP-0234), which is all that another program sees. If the receiver takes
//! the set, the stream has these parts, with all numbers in network order:
//!
//! 1. sender: the length of the [manifest], 4 bytes, and the manifest
//! 2. receiver: for each file of the manifest, 8 bytes: the offset from which it wants the file, a multiple of
//!    [`CHUNK`] or the size; [`THERE`] or [`TOO_LARGE`] if it does not want it
//! 3. sender: the wanted files in the order of the manifest, in chunks of [`CHUNK`] bytes and a shorter last one: the
//!    length, 4 bytes; the SHA-256, 32; the bytes. [`SKIPPED`] in place of a length means that the file cannot be read
//!    any more, and the next one follows. Then the sender ends its direction
//! 4. receiver: for each file a byte with its [`Outcome`]. Then it ends its direction
//!
//! A chunk is on the receiver's disk only after its hash was right, so another session continues behind it.

pub(crate) mod manifest;
pub(super) mod receive;
pub(super) mod send;
mod tree;
pub(super) mod walk;

use fingerpost_wire::{ns, xml};
use minidom::Element;

/// The bytes of a chunk.
const CHUNK: u64 = 1 << 20;
/// The receiver has the file already.
const THERE: u64 = u64::MAX;
/// The receiver does not take files of this size.
const TOO_LARGE: u64 = u64::MAX - 1;
/// In place of a chunk's length: the sender cannot read the file any more.
const SKIPPED: u32 = u32::MAX;

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Stored,
    /// It was there from an earlier session.
    There,
    /// The sender could not read it.
    Skipped,
    /// The receiver does not take files of this size.
    TooLarge,
    /// The receiver could not store it.
    NotStored,
}

impl Outcome {
    const ALL: [Self; 5] =
        [Self::Stored, Self::There, Self::Skipped, Self::TooLarge, Self::NotStored];

    fn to_byte(self) -> u8 {
        let place = Self::ALL.iter().position(|known| *known == self);
        place.and_then(|place| u8::try_from(place).ok()).unwrap_or(u8::MAX)
    }

    /// Returns why the receiver does not have a file, in its words.
    fn here(self) -> &'static str {
        match self {
            Self::Stored | Self::There => "it is here",
            Self::Skipped => "the sender could not read it",
            Self::TooLarge => "it is larger than --max-size",
            Self::NotStored => "it could not be stored",
        }
    }

    /// Returns why the receiver does not have a file, in the sender's words; `None` if it has it.
    pub(super) fn there(self) -> Option<&'static str> {
        match self {
            Self::Stored | Self::There => None,
            Self::Skipped => Some("it could not be read, or became shorter while it was sent"),
            Self::TooLarge => Some("it is larger than the receiver takes"),
            Self::NotStored => Some("the receiver could not store it"),
        }
    }

    fn read(byte: u8) -> Option<Self> {
        Self::ALL.get(usize::from(byte)).copied()
    }
}

/// Returns the part of a file's offer that offers a set.
pub(super) fn offer(files: usize, bytes: u64) -> Element {
    let (files, bytes) = (files.to_string(), bytes.to_string());
    xml::element("set", ns::FILE_SET, &[("files", &files), ("bytes", &bytes)])
}

/// Returns whether a description offers a set.
pub(super) fn is_offered(description: &Element) -> bool {
    description.has_child("set", ns::FILE_SET)
}

/// Accepts the set in a receiver's answer. A program that only repeats the offer does not write this.
pub(super) fn accept(answer: &mut Element) {
    answer.remove_child("set", ns::FILE_SET);
    answer.append_child(xml::element("set", ns::FILE_SET, &[("accepted", "true")]));
}

/// Returns whether a receiver's answer accepts a set.
pub(super) fn is_accepted(answer: Option<&Element>) -> bool {
    let set = answer.and_then(|answer| answer.get_child("set", ns::FILE_SET));
    set.is_some_and(|set| set.attr("accepted") == Some("true"))
}

#[cfg(test)]
mod tests;
