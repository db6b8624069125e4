//! The other end's stream: what has come of it, on whichever path, and what TLS has taken.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::machine::{Fault, WINDOW};

/// After how many bytes that TLS has taken an acknowledgement goes out at once.
const ACK_AFTER: u64 = 128 << 10;
/// How long fewer bytes wait for their acknowledgement.
const ACK_WITHIN: Duration = Duration::from_millis(200);
/// The most gaps in what has come. Two paths leave one; each announcement of a sender that changes paths leaves one more.
const RUNS: usize = 32;
/// How much memory an empty buffer keeps, in bytes.
const KEPT_EMPTY: usize = 64 << 10;

/// The other end's stream.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    /// What TLS has not taken yet.
    inbox: VecDeque<u8>,
    taken: u64,
    /// Everything before this offset has come.
    received: u64,
    /// Bytes that came before those in front of them, from a faster path.
    runs: Vec<Run>,
    held: usize,
    /// Where the stream ends, once the other end has said it.
    end: Option<u64>,
    /// The last acknowledgement that was sent.
    told: u64,
    /// When the next one goes out.
    due: Option<Instant>,
    /// Whether an acknowledgement goes out now, even if it says nothing new.
    overdue: bool,
    /// Whether the peer is verified. Before that, what has come is not acknowledged.
    is_open: bool,
    /// Whether the reader is gone, and whether bytes were dropped since then.
    discards: bool,
    has_dropped: bool,
}

/// Bytes in a row that came on one path.
#[derive(Debug)]
struct Run {
    path: u32,
    start: u64,
    bytes: Vec<u8>,
}

impl Run {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

impl Incoming {
    /// Returns whether the peer is verified.
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Takes bytes that came on a path and begin at `offset`.
    pub(super) fn insert(&mut self, path: u32, offset: u64, bytes: &[u8]) -> Result<(), Fault> {
        let stop = offset.checked_add(bytes.len() as u64).ok_or(Fault::Window { offset })?;
        if stop > self.taken + WINDOW {
            return Err(Fault::Window { offset: stop });
        }
        if let Some(end) = self.end.filter(|end| stop > *end) {
            return Err(Fault::AfterEnd { end, offset: stop });
        }
        let (mut offset, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let known = self.known_until(offset);
            if known > offset {
                let length = usize::try_from(known - offset).unwrap_or(usize::MAX);
                (offset, rest) = (known, rest.get(length..).unwrap_or_default());
                continue;
            }
            let ahead = self.runs.iter().map(|run| run.start).filter(|start| *start > offset);
            let gap = ahead
                .min()
                .map_or(usize::MAX, |next| usize::try_from(next - offset).unwrap_or(usize::MAX));
            let (new, behind) = rest.split_at(gap.min(rest.len()));
            if offset == self.received {
                self.append(new);
                self.close_gaps();
            } else {
                self.keep(path, offset, new)?;
            }
            (offset, rest) = (offset + new.len() as u64, behind);
        }
        Ok(())
    }

    /// Returns where what has come from an offset on ends; the offset itself if nothing has.
    ///
    /// A byte that comes again is skipped. So all that is kept fits into the window, although an honest other end may send more than a
    /// window while it repeats what another path has lost.
    fn known_until(&self, offset: u64) -> u64 {
        let run = self.runs.iter().find(|run| (run.start..run.end()).contains(&offset));
        run.map_or(offset, Run::end).max(self.received)
    }

    /// Keeps bytes that came before those in front of them. None of them may be there already.
    fn keep(&mut self, path: u32, offset: u64, bytes: &[u8]) -> Result<(), Fault> {
        let gaps = self.runs.len();
        match self.runs.iter_mut().find(|run| run.path == path && run.end() == offset) {
            Some(run) => run.bytes.extend(bytes),
            None if gaps >= RUNS => return Err(Fault::Gaps),
            None => self.runs.push(Run { path, start: offset, bytes: bytes.to_vec() }),
        }
        self.held += bytes.len();
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) {
        self.received += bytes.len() as u64;
        self.overdue |= self.is_whole();
        if self.discards {
            (self.taken, self.has_dropped) = (self.received, true);
            return;
        }
        self.inbox.extend(bytes);
    }

    /// Takes the bytes after a gap that is closed now.
    fn close_gaps(&mut self) {
        while let Some(index) = self.runs.iter().position(|run| run.start <= self.received) {
            let run = self.runs.swap_remove(index);
            self.held -= run.bytes.len();
            let overlap = usize::try_from(self.received - run.start).unwrap_or(usize::MAX);
            self.append(run.bytes.get(overlap..).unwrap_or_default());
        }
    }

    /// Forgets the bytes after a gap that came on a path: the other end sends them again.
    pub(super) fn forget(&mut self, path: u32) {
        self.runs.retain(|run| run.path != path);
        self.held = self.runs.iter().map(|run| run.bytes.len()).sum();
    }

    /// Checks from which byte a path goes on; returns whether bytes before it are missing.
    pub(super) fn announced(&self, offset: u64) -> Result<bool, Fault> {
        if offset > self.taken + WINDOW {
            return Err(Fault::Window { offset });
        }
        Ok(offset > self.received)
    }

    /// Notes where the stream ends.
    pub(super) fn ends(&mut self, offset: u64) -> Result<(), Fault> {
        let furthest = self.runs.iter().map(Run::end).fold(self.received, u64::max);
        if offset > self.taken + WINDOW {
            return Err(Fault::Window { offset });
        }
        if offset < furthest || self.end.is_some_and(|end| end != offset) {
            return Err(Fault::AfterEnd { end: offset, offset: furthest });
        }
        self.end = Some(offset);
        self.overdue |= self.is_whole();
        Ok(())
    }

    /// Returns whether TLS has taken everything.
    pub(super) fn has_ended(&self) -> bool {
        self.end == Some(self.taken)
    }

    /// Returns whether everything has come.
    pub(super) fn is_whole(&self) -> bool {
        self.end == Some(self.received)
    }

    /// Returns whether the other end knows that everything has come, as far as we can see.
    pub(super) fn is_told(&self) -> bool {
        self.end.is_some_and(|end| self.told > end)
    }

    /// Returns the next bytes for TLS.
    pub(super) fn chunk(&self) -> &[u8] {
        let (front, back) = self.inbox.as_slices();
        if front.is_empty() { back } else { front }
    }

    /// Notes that TLS has taken so many bytes of the chunk.
    pub(super) fn consume(&mut self, length: usize, now: Instant) {
        let length = length.min(self.inbox.len());
        self.inbox.drain(..length);
        self.taken += length as u64;
        if self.inbox.is_empty() && self.inbox.capacity() > 4 * KEPT_EMPTY {
            self.inbox.shrink_to(KEPT_EMPTY);
        }
        self.plan_acknowledgement(now);
    }

    /// Lets what TLS has taken be acknowledged from now on.
    pub(super) fn open(&mut self, now: Instant) {
        self.is_open = true;
        self.plan_acknowledgement(now);
    }

    fn plan_acknowledgement(&mut self, now: Instant) {
        if !self.is_open {
            return;
        }
        if self.taken.saturating_sub(self.told) >= ACK_AFTER {
            self.overdue = true;
        } else if self.taken > self.told {
            self.due.get_or_insert(now + ACK_WITHIN);
        }
    }

    /// Keeps nothing more of the stream, because nobody reads it. Dropped bytes are not acknowledged.
    pub(super) fn discard(&mut self) {
        (self.discards, self.has_dropped) = (true, !self.inbox.is_empty());
        (self.inbox, self.runs, self.held) = (VecDeque::new(), Vec::new(), 0);
        self.taken = self.received;
    }

    /// Lets an acknowledgement go out now: an earlier one may be lost.
    pub(super) fn repeat(&mut self) {
        self.overdue = true;
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.due.filter(|_| !self.overdue)
    }

    pub(super) fn handle_deadline(&mut self, now: Instant) {
        if self.due.is_some_and(|due| due <= now) {
            (self.due, self.overdue) = (None, true);
        }
    }

    /// Returns whether an acknowledgement goes out now.
    pub(super) fn is_overdue(&self) -> bool {
        self.overdue
    }

    /// Returns what to acknowledge, and notes that it goes out; `None` if bytes were dropped.
    pub(super) fn acknowledgement(&mut self) -> Option<u64> {
        (self.due, self.overdue) = (None, false);
        if self.has_dropped {
            return None;
        }
        // Nothing follows a stream that is whole, so what TLS has not taken yet needs no room in front of it.
        self.told = self.end.filter(|_| self.is_whole()).map_or(self.taken, |end| end + 1);
        Some(self.told)
    }

    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        self.inbox.len() + self.held
    }
}
