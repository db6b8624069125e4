//! What an in-band bytestream has of the memory that all streams share.
//!
//! Each stream has room for one block from its beginning to its end. Everything beyond comes from what is left: room for
//! blocks of the peer that wait for their reader, and the right to have more blocks of ours under way. A stream that gets
//! no more goes on with what it has.

use std::mem;

use fingerpost_wire::{ibb::MAX_ROOM, ibb_window::START};
use jid::BareJid;

use crate::shares::{Full, Permit, Permits};

/// The least that is taken at once beyond the beginning, bytes.
const STEP: usize = 32 * 1024;

/// The part of one stream.
#[derive(Debug)]
pub struct IbbMemory {
    /// The room that it always has.
    least: usize,
    /// The permit for that, by which more is taken; `None` once everything is given back.
    always: Option<Permit>,
    received: Growth,
    sent: Growth,
}

/// What was taken beyond the beginning, in steps that may be given back one by one.
#[derive(Debug, Default)]
struct Growth {
    steps: Vec<(Permit, usize)>,
    bytes: usize,
}

impl IbbMemory {
    /// Takes what a stream of `user` with blocks of so many bytes always has.
    ///
    /// # Errors
    /// [`Full`]
    pub fn reserve(permits: &Permits, user: &BareJid, block_size: u16) -> Result<Self, Full> {
        let least = usize::from(block_size).max(START);
        let always = Some(permits.take(user, least)?);
        let (received, sent) = (Growth::default(), Growth::default());
        Ok(Self { least, always, received, sent })
    }

    /// Returns how many bytes of the peer may be held.
    pub(super) fn room(&self) -> usize {
        self.least + self.received.bytes
    }

    /// Returns how many bytes of ours may be under way.
    pub(super) fn for_sending(&self) -> usize {
        START + self.sent.bytes
    }

    /// Takes more room, at least `bytes` and at most `most` in all; returns whether there is more now.
    pub(super) fn add_room(&mut self, bytes: usize, most: usize) -> bool {
        let left = most.saturating_sub(self.room());
        let step = bytes.max(STEP).max(self.received.bytes.min(MAX_ROOM)).min(left);
        let least = bytes.max(STEP).min(left);
        let Some(permit) = &self.always else { return false };
        self.received.take(permit, step) || self.received.take(permit, least)
    }

    /// Takes more for sending; returns whether there is more now.
    pub(super) fn add_for_sending(&mut self) -> bool {
        let left = MAX_ROOM.saturating_sub(self.for_sending());
        let step = STEP.max(self.sent.bytes).min(left);
        self.always.as_ref().is_some_and(|permit| self.sent.take(permit, step))
    }

    /// Gives back the room beyond that at the start; returns whether there is less now.
    pub(super) fn shrink_room(&mut self) -> bool {
        self.received.shrink(0)
    }

    /// Gives back what is not needed while so many bytes are under way; returns whether there is less now.
    pub(super) fn shrink_for_sending(&mut self, under_way: usize) -> bool {
        // A window that is in use is filled again at once.
        under_way * 4 <= self.sent.bytes && self.sent.shrink(self.sent.bytes / 2)
    }

    /// Gives back everything, because the stream holds and sends nothing more.
    pub(super) fn release(&mut self) {
        drop((self.always.take(), mem::take(&mut self.received), mem::take(&mut self.sent)));
    }
}

impl Growth {
    fn take(&mut self, permit: &Permit, bytes: usize) -> bool {
        let taken = if bytes == 0 { None } else { permit.more(bytes).ok() };
        let is_more = taken.is_some();
        if let Some(permit) = taken {
            self.steps.push((permit, bytes));
            self.bytes += bytes;
        }
        is_more
    }

    /// Gives back the last steps that are not needed for so many bytes.
    fn shrink(&mut self, needed: usize) -> bool {
        let before = self.bytes;
        while let Some((_, bytes)) = self.steps.last()
            && self.bytes - bytes >= needed
        {
            self.bytes -= bytes;
            self.steps.pop();
        }
        self.bytes < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shares::Limits;

    fn user(name: &str) -> BareJid {
        BareJid::new(name).unwrap()
    }

    #[test]
    fn what_a_stream_takes_is_counted_and_given_back() {
        let permits = Permits::new(Limits::new(4 << 20, 1 << 20, 4));
        let mut memory = IbbMemory::reserve(&permits, &user("romeo@montague.lit"), 8192).unwrap();
        assert_eq!((memory.room(), memory.for_sending(), permits.taken()), (8192, START, 8192));
        while memory.add_room(1, 300_000) {}
        assert_eq!(memory.room(), 300_000);
        assert_eq!(permits.taken(), 300_000);
        while memory.add_for_sending() {}
        assert!(permits.taken() <= 1 << 20, "a user has a quarter");
        let sending = memory.for_sending();
        assert!(!memory.shrink_for_sending(sending / 2) && memory.shrink_for_sending(0));
        assert!(memory.shrink_room() && memory.room() == 8192);
        memory.release();
        assert_eq!((memory.room(), memory.for_sending(), permits.taken()), (8192, START, 0));
    }

    #[test]
    fn a_stranger_leaves_memory_for_others() {
        let permits = Permits::new(Limits::new(1 << 20, 256 * 1024, 4));
        let mut streams: Vec<IbbMemory> = Vec::new();
        let stranger = user("stranger@evil.example");
        while let Ok(mut memory) = IbbMemory::reserve(&permits, &stranger, 8192) {
            while memory.add_room(1, MAX_ROOM) {}
            streams.push(memory);
        }
        assert!(permits.taken() <= 256 * 1024);
        let mut other = IbbMemory::reserve(&permits, &user("romeo@montague.lit"), 65_535).unwrap();
        assert!(other.add_room(1, MAX_ROOM));
    }
}
