//! The content of a stream between two pipes: chunks, and the end of a direction inside TLS.
//!
//! A TLS direction ends with its `close_notify`, and each direction has only one. If it says "this was all of mine", it
//! cannot also say "I have all of yours". Here the last chunk says the first, and `close_notify` the second.

/// The length of a chunk's header: the number of bytes that follow, big endian, or one of [`END`] and [`KEEP`].
pub(super) const HEADER: usize = 2;

/// The most bytes in one chunk of ours: with its header it fills four TLS records.
pub(super) const MOST: usize = (1 << 16) - HEADER;

/// The end of a direction.
pub(super) const END: [u8; HEADER] = [0; HEADER];

/// A sign of life instead of a chunk. It may come at any time, also after the end.
pub(super) const KEEP: [u8; HEADER] = [0xff; HEADER];

/// Returns the header of a chunk with so many bytes, 1 to [`MOST`].
pub(super) fn header(bytes: usize) -> [u8; HEADER] {
    debug_assert!((1..=MOST).contains(&bytes));
    #[expect(clippy::cast_possible_truncation, reason = "a chunk is shorter than 64 KiB")]
    (bytes as u16).to_be_bytes()
}

/// Parses the chunks of one direction. It holds no content: bytes pass on as they come.
#[derive(Debug, Default)]
pub(super) struct ChunkReader {
    /// The first byte of a header whose second byte has not come.
    half: Option<u8>,
    /// How many bytes of the current chunk are still to come.
    left: usize,
    ended: bool,
}

/// The next part of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    Data(&'a [u8]),
    End,
}

/// The peer has sent a chunk after its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AfterEnd;

impl ChunkReader {
    /// Returns the next piece of `bytes`, and moves `bytes` behind it; `None` if more bytes are needed.
    pub(super) fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Piece<'a>>, AfterEnd> {
        while let Some((first, rest)) = bytes.split_first() {
            if self.left > 0 {
                let (data, rest) = bytes.split_at(self.left.min(bytes.len()));
                (self.left, *bytes) = (self.left - data.len(), rest);
                return Ok(Some(Piece::Data(data)));
            }
            *bytes = rest;
            let Some(high) = self.half.take() else {
                self.half = Some(*first);
                continue;
            };
            match [high, *first] {
                KEEP => {}
                _ if self.ended => return Err(AfterEnd),
                END => {
                    self.ended = true;
                    return Ok(Some(Piece::End));
                }
                length => self.left = usize::from(u16::from_be_bytes(length)),
            }
        }
        Ok(None)
    }

    /// Returns whether the direction has ended, and nothing has begun after it.
    pub(super) fn is_ended(&self) -> bool {
        self.ended && self.half.is_none()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns the content of these pieces, and whether it has ended.
    fn read(pieces: &[&[u8]]) -> Result<(Vec<u8>, bool), AfterEnd> {
        let (mut reader, mut content) = (ChunkReader::default(), Vec::new());
        for piece in pieces {
            let mut rest = *piece;
            while let Some(piece) = reader.next(&mut rest)? {
                match piece {
                    Piece::Data(data) => content.extend_from_slice(data),
                    Piece::End => assert!(reader.is_ended()),
                }
            }
            assert!(rest.is_empty());
        }
        Ok((content, reader.is_ended()))
    }

    fn written(content: &[u8], size: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for chunk in content.chunks(size) {
            bytes.extend(header(chunk.len()));
            bytes.extend(chunk);
        }
        bytes.extend(END);
        bytes
    }

    #[test]
    fn nothing_may_follow_the_end() {
        assert_eq!(read(&[&END]), Ok((Vec::new(), true)));
        assert_eq!(read(&[&END, &[]]), Ok((Vec::new(), true)));
        assert_eq!(read(&[&END, &[0]]), Ok((Vec::new(), false)));
        assert_eq!(read(&[&END, &END]), Err(AfterEnd));
        assert_eq!(read(&[&[0, 1, 7, 0, 0, 9, 9]]), Err(AfterEnd));
    }

    #[test]
    fn a_sign_of_life_is_no_content_and_may_come_at_any_time() {
        let bytes = [&KEEP[..], &[0, 2, 7, 8], &KEEP, &KEEP, &[0, 1, 9], &END, &KEEP];
        assert_eq!(read(&bytes), Ok((vec![7, 8, 9], true)));
        assert_eq!(read(&bytes.concat().chunks(1).collect::<Vec<_>>()), read(&bytes));
    }

    proptest! {
        #[test]
        fn content_arrives_however_it_is_cut(
            content in prop::collection::vec(any::<u8>(), 0..400),
            size in 1_usize..100,
            piece in 1_usize..50,
            cut in any::<prop::sample::Index>(),
        ) {
            let bytes = written(&content, size);
            let pieces: Vec<_> = bytes.chunks(piece).collect();
            prop_assert_eq!(read(&pieces), Ok((content.clone(), true)));
            // A part of the content is a beginning of it, and has no end.
            let part = &bytes[..cut.index(bytes.len())];
            let (got, ended) = read(&part.chunks(piece).collect::<Vec<_>>()).unwrap();
            prop_assert!(content.starts_with(&got) && !ended);
        }

        #[test]
        fn any_bytes_are_taken_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            if let Ok((content, _)) = read(&[&bytes]) {
                prop_assert!(content.len() <= bytes.len());
            }
        }
    }
}
