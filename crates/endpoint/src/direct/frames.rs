//! The bytes of a direct connection after the greeting: frames, each with a tag that only the two ends can make.
//!
//! ```text
//! length u16 | bytes | tag
//! ```
//!
//! The stream itself is ciphertext of TLS, so the frames prove the bytes and do not hide them. Anyone who carries the connection,
//! for example a stranger who has connected to both ends, can pass the bytes on, delay them or end the connection. Other bytes end
//! it, too, and the stream goes on over the relay.

use std::{fmt, ops::Range};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, MAX_TAG_LEN, Nonce, UnboundKey},
    hmac,
};

/// The most bytes of a frame. Larger frames would hold up answers on a slow path.
pub(crate) const LONGEST: usize = 16 << 10;
/// The length of a frame's header, in bytes.
const HEAD: usize = 2;
/// The length of a tag, in bytes.
const TAG: usize = MAX_TAG_LEN;
/// What a frame adds to its bytes.
const MORE: usize = HEAD + TAG;
/// What the keys are derived from, besides the nonces of the greeting.
const LABEL: &[u8] = b"fingerpost direct frames";

/// The key of one direction, and the number of its next frame.
struct FrameKey {
    key: LessSafeKey,
    count: u64,
}

impl FrameKey {
    fn new(greeting: &[u8; 32], nonces: [&[u8]; 2]) -> Option<Self> {
        let text = [LABEL, nonces[0], nonces[1]].concat();
        let derived = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, greeting), &text);
        let key = UnboundKey::new(&AES_256_GCM, derived.as_ref()).ok()?;
        Some(Self { key: LessSafeKey::new(key), count: 0 })
    }

    /// Returns the nonce of the next frame: each number is used once per connection and direction.
    fn nonce(&mut self) -> Nonce {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.count.to_be_bytes());
        self.count += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

/// The keys of a connection's frames.
pub(crate) struct FrameKeys {
    own: FrameKey,
    peer: FrameKey,
}

impl fmt::Debug for FrameKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameKeys").finish_non_exhaustive()
    }
}

/// A frame is not the peer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Forged;

impl FrameKeys {
    /// Derives the keys from those of the greeting, and from its nonces; `None` if there is no memory for them.
    pub(super) fn new(
        [own, peer]: [&[u8; 32]; 2],
        [own_nonce, peer_nonce]: [&[u8]; 2],
    ) -> Option<Self> {
        Some(Self {
            own: FrameKey::new(own, [own_nonce, peer_nonce])?,
            peer: FrameKey::new(peer, [peer_nonce, own_nonce])?,
        })
    }

    /// Appends frames with these bytes to `out`.
    ///
    /// # Errors
    /// If more bytes were sent than the cipher can protect.
    pub(crate) fn seal(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Forged> {
        for piece in bytes.chunks(LONGEST) {
            let begin = out.len();
            let length = u16::try_from(piece.len()).map_err(|_| Forged)?;
            out.extend(length.to_be_bytes());
            out.extend_from_slice(piece);
            let nonce = self.own.nonce();
            let sealed =
                self.own.key.seal_in_place_separate_tag(nonce, Aad::from(&out[begin..]), &mut []);
            out.extend_from_slice(sealed.map_err(|_| Forged)?.as_ref());
        }
        Ok(())
    }

    /// Checks the frame at the beginning of `bytes`; returns where its bytes are, `None` if it is not whole.
    ///
    /// # Errors
    /// If it is not the peer's next frame.
    pub(crate) fn open(&mut self, bytes: &[u8]) -> Result<Option<Range<usize>>, Forged> {
        let Some(head) = bytes.first_chunk::<HEAD>() else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes(*head));
        if length == 0 || length > LONGEST {
            return Err(Forged);
        }
        let end = HEAD + length;
        let Some((frame, rest)) = bytes.split_at_checked(end) else { return Ok(None) };
        let Some(mut tag) = rest.first_chunk::<TAG>().copied() else { return Ok(None) };
        let nonce = self.peer.nonce();
        self.peer.key.open_in_place(nonce, Aad::from(frame), &mut tag).map_err(|_| Forged)?;
        Ok(Some(HEAD..end))
    }
}

/// Returns the length of a frame with its tag.
pub(crate) const fn with_frame(length: usize) -> usize {
    length + MORE
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys() -> [FrameKeys; 2] {
        let (a, b) = ([1; 32], [2; 32]);
        let (of_a, of_b) = (&[7; 16][..], &[9; 16][..]);
        [
            FrameKeys::new([&a, &b], [of_a, of_b]).unwrap(),
            FrameKeys::new([&b, &a], [of_b, of_a]).unwrap(),
        ]
    }

    fn open_all(keys: &mut FrameKeys, mut bytes: &[u8]) -> Result<Vec<u8>, Forged> {
        let mut opened = Vec::new();
        while let Some(range) = keys.open(bytes)? {
            opened.extend_from_slice(&bytes[range.clone()]);
            bytes = &bytes[range.end + TAG..];
        }
        Ok(opened)
    }

    #[test]
    fn a_frame_is_the_one_of_the_protocol() {
        let [mut a, _] = keys();
        let mut out = Vec::new();
        a.seal(b"a record", &mut out).unwrap();
        assert_eq!(out[..10], *b"\0\x08a record");
        assert_eq!(out.len(), with_frame(8));
        let text = [LABEL, &[7; 16], &[9; 16]].concat();
        let key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &[1; 32]), &text);
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.as_ref()).unwrap());
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let tag = key.seal_in_place_separate_tag(nonce, Aad::from(&out[..10]), &mut []).unwrap();
        assert_eq!(out[10..], *tag.as_ref());
    }

    #[test]
    fn frames_of_the_other_direction_of_another_connection_or_in_another_order_are_forged() {
        let [mut a, mut b] = keys();
        let (mut first, mut second) = (Vec::new(), Vec::new());
        a.seal(b"one", &mut first).unwrap();
        a.seal(b"two", &mut second).unwrap();
        assert_eq!(keys()[0].open(&first), Err(Forged), "our own");
        assert_eq!(keys()[1].open(&second), Err(Forged), "not the next one");
        assert_eq!(open_all(&mut b, &[&first[..], &second].concat()), Ok(b"onetwo".to_vec()));
        assert_eq!(b.open(&second), Err(Forged), "repeated");
        let other = FrameKeys::new([&[2; 32], &[1; 32]], [&[9; 16], &[8; 16]]);
        assert_eq!(other.unwrap().open(&first), Err(Forged), "of another connection");
        assert_eq!(keys()[1].open(&[0, 0]), Err(Forged), "empty");
        assert_eq!(keys()[1].open(&[0xff; 2]), Err(Forged), "too long");
    }

    proptest! {
        #[test]
        fn what_is_sealed_is_opened(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40_000), 0..4),
        ) {
            let [mut a, mut b] = keys();
            let mut out = Vec::new();
            for piece in &pieces {
                a.seal(piece, &mut out).unwrap();
            }
            prop_assert_eq!(open_all(&mut b, &out), Ok(pieces.concat()));
        }

        #[test]
        fn one_wrong_bit_is_forged(bytes in prop::collection::vec(any::<u8>(), 1..200), bit: prop::sample::Index) {
            let [mut a, mut b] = keys();
            let mut out = Vec::new();
            a.seal(&bytes, &mut out).unwrap();
            let bit = bit.index(out.len() * 8);
            out[bit / 8] ^= 1 << (bit % 8);
            // A longer frame may lack its end.
            prop_assert!(!matches!(b.open(&out), Ok(Some(_))));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = keys()[0].open(&bytes);
        }
    }
}
