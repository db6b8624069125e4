//! Our own stream: what TLS has written and the other end has not acknowledged yet.

use std::collections::VecDeque;

use super::{
    machine::{Fault, WINDOW},
    records::{RecordError, Splitter},
};

/// How many bytes of TLS records are put on a path at once: four full records. A control record waits for no more than this.
const BATCH: u64 = 4 * ((16 << 10) + 64);
/// How much memory an empty buffer keeps, in bytes.
const KEPT_EMPTY: usize = 64 << 10;

/// The bytes of our stream from the last acknowledged record boundary on.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    bytes: VecDeque<u8>,
    /// The offset of the first of them: a boundary at or below `acknowledged`.
    kept: u64,
    /// The other end's TLS has taken everything before this offset. The end counts as one byte, and is acknowledged as
    /// soon as everything has come.
    acknowledged: u64,
    /// The ends of the whole records in `bytes`, in ascending order.
    boundaries: VecDeque<u64>,
    splitter: Splitter,
    /// Where the stream ends, once TLS has ended it.
    end: Option<u64>,
    /// The first offset that was never put on a path.
    fresh: u64,
}

impl Outgoing {
    fn written(&self) -> u64 {
        self.kept + self.bytes.len() as u64
    }

    /// Returns where the last whole record ends. Only whole records are put on a path: otherwise a full window could
    /// stop in the middle of one, in both directions, and no acknowledgement could pass.
    fn whole(&self) -> u64 {
        self.boundaries.back().copied().unwrap_or(self.kept)
    }

    /// Returns the boundary from which on the stream is sent again.
    pub(super) fn kept(&self) -> u64 {
        self.kept
    }

    /// Returns the last boundary at or before `offset`, of those that are kept.
    pub(super) fn boundary(&self, offset: u64) -> u64 {
        let before = self.boundaries.partition_point(|boundary| *boundary <= offset);
        let last = before.checked_sub(1).and_then(|index| self.boundaries.get(index));
        last.copied().unwrap_or(self.kept)
    }

    /// Returns how many bytes the other end's TLS has taken.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Returns how many bytes fit into the other end's window.
    pub(super) fn room(&self) -> u64 {
        (self.acknowledged.min(self.written()) + WINDOW).saturating_sub(self.written())
    }

    /// Takes bytes of TLS; returns how many. It takes none while the other end has a whole window.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<usize, RecordError> {
        let length = usize::try_from(self.room()).unwrap_or(usize::MAX).min(bytes.len());
        let (start, boundaries) = (self.written(), &mut self.boundaries);
        self.splitter.split(&bytes[..length], |read| boundaries.push_back(start + read as u64))?;
        self.bytes.extend(&bytes[..length]);
        Ok(length)
    }

    /// Notes that TLS writes nothing more. An incomplete record at the end is dropped.
    pub(super) fn finish(&mut self) {
        if self.end.is_none() {
            let whole = self.whole();
            self.bytes.truncate(usize::try_from(whole - self.kept).unwrap_or(usize::MAX));
            self.end = Some(whole);
        }
    }

    pub(super) fn is_finished(&self) -> bool {
        self.end.is_some()
    }

    /// Returns whether the other end has everything, and knows that it is everything.
    pub(super) fn is_delivered(&self) -> bool {
        self.end.is_some_and(|end| self.acknowledged > end)
    }

    /// Takes the other end's acknowledgement.
    pub(super) fn acknowledge(&mut self, offset: u64) -> Result<(), Fault> {
        if offset > self.fresh {
            return Err(Fault::NotSent { offset, sent: self.fresh });
        }
        self.acknowledged = self.acknowledged.max(offset);
        let mut kept = self.kept;
        while self.boundaries.front().is_some_and(|boundary| *boundary <= self.acknowledged) {
            kept = self.boundaries.pop_front().unwrap_or(kept);
        }
        self.bytes.drain(..usize::try_from(kept - self.kept).unwrap_or(usize::MAX));
        self.kept = kept;
        if self.bytes.is_empty() && self.bytes.capacity() > 4 * KEPT_EMPTY {
            self.bytes.shrink_to(KEPT_EMPTY);
            self.boundaries.shrink_to(0);
        }
        Ok(())
    }

    /// Returns whether a path on which everything before `position` was put has more to carry.
    pub(super) fn has_more(&self, position: u64) -> bool {
        position < self.whole()
    }

    /// Appends whole records from `position` on, at most a batch, but at least one if there is one, and none behind `limit`,
    /// which is a boundary; returns where they end.
    pub(super) fn copy(&mut self, position: u64, limit: u64, out: &mut Vec<u8>) -> u64 {
        let most = limit.min(position + BATCH);
        let fitting = self.boundaries.partition_point(|end| *end <= most);
        let last = fitting.checked_sub(1).and_then(|index| self.boundaries.get(index)).copied();
        let stop = last.filter(|end| *end > position).or(self.boundaries.get(fitting).copied());
        let Some(stop) = stop.filter(|stop| *stop > position) else { return position };
        let index = |offset: u64| usize::try_from(offset - self.kept).unwrap_or(usize::MAX);
        let (from, to) = (index(position), index(stop));
        let (front, back) = self.bytes.as_slices();
        let middle = front.len();
        out.extend(&front[from.min(middle)..to.min(middle)]);
        out.extend(&back[from.saturating_sub(middle)..to.saturating_sub(middle)]);
        self.fresh = self.fresh.max(stop);
        stop
    }

    /// Returns where the stream ends if a path on which everything before `position` was put can say so now.
    pub(super) fn end_at(&mut self, position: u64) -> Option<u64> {
        let end = self.end.filter(|end| *end == position)?;
        self.fresh = self.fresh.max(end + 1);
        Some(end)
    }

    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        self.bytes.len()
    }
}
