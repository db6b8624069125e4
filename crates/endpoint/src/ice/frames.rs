//! The frames of a connection that ICE has found: a length of two bytes before each message (RFC 4571, as RFC 6544 uses it).
//!
//! STUN messages and the application's bytes share the connection. A frame is STUN if it has STUN's magic cookie and a valid FINGERPRINT;
//! everything else is the application's.

use std::ops::Range;

/// The length of the field that holds a frame's length, in bytes.
pub(super) const HEADER: usize = 2;
/// The longest STUN message that is looked at, in bytes. Usual ones have about 120.
pub(super) const LONGEST_STUN: usize = 1024;
/// The shortest STUN message: only a header.
const SHORTEST_STUN: usize = 20;
/// How many bytes of a frame are needed to tell whether it may be STUN: type, length and magic cookie (RFC 8489, 5).
const TELLING: usize = 8;
const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
/// How many bytes of a connection are kept until they are read.
const KEPT: usize = 16 * 1024;

/// What comes next on a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A whole frame that may be STUN, at this place of the [bytes](Frames::bytes).
    Stun(Range<usize>),
    /// Bytes of the application, at this place.
    Data(Range<usize>),
    /// More bytes are needed.
    More,
}

/// Takes the bytes of a connection apart.
#[derive(Debug)]
pub(super) struct Frames {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// How many bytes of the application are missing in the frame that has begun.
    left: usize,
}

impl Frames {
    pub(super) fn new() -> Self {
        Self { buffer: vec![0; KEPT].into(), start: 0, end: 0, left: 0 }
    }

    /// Returns the place for bytes that come. It is never empty after [`Next::More`].
    pub(super) fn free(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.buffer.len() - self.end < LONGEST_STUN + HEADER {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.buffer[self.end..]
    }

    /// Notes that so many bytes have come.
    pub(super) fn filled(&mut self, count: usize) {
        self.end += count;
    }

    pub(super) fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.buffer[range]
    }

    /// Returns what comes next, without taking it.
    pub(super) fn next(&mut self) -> Next {
        loop {
            let here = self.start..self.end;
            if self.left > 0 {
                let end = here.end.min(here.start + self.left);
                return if end > here.start { Next::Data(here.start..end) } else { Next::More };
            }
            let Some(&[high, low]) = self.buffer[here.clone()].first_chunk() else {
                return Next::More;
            };
            let length = usize::from(u16::from_be_bytes([high, low]));
            let inside = here.start + HEADER..here.end;
            if inside.len() < length.min(TELLING) {
                return Next::More;
            }
            if !may_be_stun(length, &self.buffer[inside.clone()]) {
                self.start = inside.start;
                self.left = length;
                continue;
            }
            if inside.len() < length {
                return Next::More;
            }
            return Next::Stun(inside.start..inside.start + length);
        }
    }

    /// Takes a STUN message.
    pub(super) fn take_stun(&mut self, range: &Range<usize>) {
        self.start = range.end;
    }

    /// Takes so many bytes of the application.
    pub(super) fn take_data(&mut self, count: usize) {
        self.start += count;
        self.left -= count;
    }

    /// Gives a frame that only looked like STUN to the application.
    pub(super) fn is_data(&mut self, range: &Range<usize>) {
        self.start = range.start;
        self.left = range.len();
    }

    /// Returns how many bytes of the application may be read past the buffer, which is empty.
    pub(super) fn direct(&self) -> usize {
        if self.start == self.end { self.left } else { 0 }
    }

    /// Notes that so many bytes of the application were read past the buffer.
    pub(super) fn read_directly(&mut self, count: usize) {
        self.left -= count;
    }
}

/// Returns whether a frame of this length may be STUN, by its first bytes.
fn may_be_stun(length: usize, begin: &[u8]) -> bool {
    let Some(&[kind, _, high, low, a, b, c, d]) = begin.first_chunk::<TELLING>() else {
        return false;
    };
    let told = SHORTEST_STUN + usize::from(u16::from_be_bytes([high, low]));
    kind < 4 && [a, b, c, d] == COOKIE && told == length && length <= LONGEST_STUN
}

/// Returns a STUN message in its frame.
pub(super) fn framed(message: &[u8]) -> Vec<u8> {
    // No message of ours is that long.
    let length = u16::try_from(message.len()).unwrap_or_default();
    [&length.to_be_bytes(), message].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stun(length: usize) -> Vec<u8> {
        let mut message = vec![0; SHORTEST_STUN + length];
        message[1] = 1;
        message[2..4].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
        message[4..8].copy_from_slice(&COOKIE);
        message
    }

    /// Gives all bytes in pieces of these lengths; returns the STUN messages and the application's bytes.
    fn give(mut bytes: &[u8], cuts: &[usize]) -> (Vec<Vec<u8>>, Vec<u8>) {
        let mut frames = Frames::new();
        let (mut messages, mut data) = (Vec::new(), Vec::new());
        let mut cuts = cuts.iter().cycle();
        loop {
            match frames.next() {
                Next::Stun(range) => {
                    messages.push(frames.bytes(range.clone()).to_vec());
                    frames.take_stun(&range);
                }
                Next::Data(range) => {
                    let count = range.len().min(*cuts.next().unwrap());
                    data.extend(frames.bytes(range.start..range.start + count));
                    frames.take_data(count);
                }
                Next::More if bytes.is_empty() => return (messages, data),
                Next::More => {
                    let direct = frames.direct();
                    let cut = *cuts.next().unwrap();
                    if direct > 0 && cut.is_multiple_of(2) {
                        let (piece, later) = bytes.split_at(direct.min(bytes.len()));
                        data.extend(piece);
                        frames.read_directly(piece.len());
                        bytes = later;
                        continue;
                    }
                    let free = frames.free();
                    assert!(!free.is_empty());
                    let (piece, later) = bytes.split_at(cut.min(bytes.len()).min(free.len()));
                    free[..piece.len()].copy_from_slice(piece);
                    frames.filled(piece.len());
                    bytes = later;
                }
            }
        }
    }

    #[test]
    fn two_bytes_of_a_stranger_are_an_unfinished_frame() {
        for begin in [&[][..], &[0], &[0, 1], &[0, 2, 9], &[0xff, 0xff]] {
            let (messages, data) = give(begin, &[1]);
            assert!(messages.is_empty() && data.len() < 2, "{begin:?}");
        }
    }

    #[test]
    fn a_frame_is_stun_only_as_a_whole() {
        let whole = stun(12);
        let mut longer = whole.clone();
        longer.push(0);
        let mut other = whole.clone();
        other[7] ^= 1;
        let mut record = whole.clone();
        record[0] = 22;
        for (message, is_stun) in [
            (&whole, true),
            (&longer, false),
            (&other, false),
            (&record, false),
            (&stun(LONGEST_STUN), false),
        ] {
            let (messages, data) = give(&framed(message), &[usize::MAX]);
            let expected =
                if is_stun { (vec![message.clone()], vec![]) } else { (vec![], message.clone()) };
            assert_eq!((messages, data), expected);
        }
    }

    #[test]
    fn what_only_looks_like_stun_is_given_back() {
        let mut frames = Frames::new();
        let bytes = framed(&stun(0));
        frames.free()[..bytes.len()].copy_from_slice(&bytes);
        frames.filled(bytes.len());
        let Next::Stun(range) = frames.next() else { panic!("it has the cookie") };
        frames.is_data(&range);
        assert_eq!(frames.next(), Next::Data(range));
    }

    proptest! {
        #[test]
        fn frames_are_read_however_they_are_cut(
            parts in prop::collection::vec((any::<bool>(), 0_usize..3000), 0..20),
            long in 0_usize..=0xffff,
            cuts in prop::collection::vec(1_usize..5000, 1..50),
        ) {
            let (mut bytes, mut messages, mut data) = (Vec::new(), Vec::new(), Vec::new());
            for (number, (is_stun, length)) in (0_u8..).zip(parts.into_iter().chain([(false, long)])) {
                if is_stun {
                    messages.push(stun(length % (LONGEST_STUN - SHORTEST_STUN)));
                    bytes.extend(framed(messages.last().unwrap()));
                } else {
                    let part = vec![number; length];
                    bytes.extend(framed(&part));
                    data.extend(part);
                }
            }
            prop_assert_eq!(give(&bytes, &cuts), (messages, data));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..5000), cut in 1_usize..700) {
            let (messages, data) = give(&bytes, &[cut]);
            prop_assert!(messages.iter().map(Vec::len).sum::<usize>() + data.len() <= bytes.len());
        }
    }
}
