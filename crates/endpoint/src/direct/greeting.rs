//! The first bytes of a direct connection: each side shows the other that it holds the session's keys.
//!
//! Both sides do the same, whichever of them connected:
//!
//! | step | sends | bytes |
//! |---|---|---|
//! | at once | a nonce | 16 |
//! | on the peer's nonce | HMAC-SHA-256(own key, own nonce ‖ peer's nonce) | 32 |
//!
//! The two keys differ, so a stranger who sends back what it got shows nothing. To a stranger all bytes look random.

use std::fmt;

use aws_lc_rs::hmac;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::frames::FrameKeys;

/// The length of a nonce, in bytes.
pub(super) const NONCE: usize = 16;
/// The length of a proof, in bytes.
const PROOF: usize = 32;
/// The length of a greeting in each direction, in bytes.
const GREETING: usize = NONCE + PROOF;

/// The keys of both sides' greetings, from the TLS exporter of the session.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct GreetingKeys {
    /// The key of this side's proof.
    pub(crate) own: [u8; 32],
    /// The key of the peer's proof.
    pub(crate) peer: [u8; 32],
}

impl fmt::Debug for GreetingKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GreetingKeys").finish_non_exhaustive()
    }
}

/// The other end does not hold the session's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stranger;

/// One side of a greeting.
pub(super) struct Greeting<'a> {
    keys: &'a GreetingKeys,
    nonce: [u8; NONCE],
    /// What the peer has sent, so many bytes of it.
    received: [u8; GREETING],
    len: usize,
    output: Vec<u8>,
}

impl<'a> Greeting<'a> {
    /// Begins a greeting. The nonce must be random and new.
    pub(super) fn new(keys: &'a GreetingKeys, nonce: [u8; NONCE]) -> Self {
        Self { keys, nonce, received: [0; GREETING], len: 0, output: nonce.to_vec() }
    }

    /// Returns the bytes to send since the last call.
    pub(super) fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// Returns how many bytes of the peer's greeting are still to come. 0 means that the peer has greeted. The bytes after
    /// these belong to the session.
    pub(super) fn missing(&self) -> usize {
        GREETING - self.len
    }

    /// Returns the keys of what follows, once the peer has greeted.
    pub(super) fn frame_keys(&self) -> Option<FrameKeys> {
        let (nonce, _) = self.received.split_at(NONCE);
        FrameKeys::new([&self.keys.own, &self.keys.peer], [&self.nonce, nonce])
    }

    /// Takes received bytes off the front of `bytes`, and leaves those that follow the greeting.
    ///
    /// # Errors
    /// If the proof is not the peer's.
    pub(super) fn take(&mut self, bytes: &mut &[u8]) -> Result<(), Stranger> {
        let had = self.len;
        let (ours, rest) = bytes.split_at(self.missing().min(bytes.len()));
        *bytes = rest;
        self.len += ours.len();
        self.received[had..self.len].copy_from_slice(ours);
        let (nonce, proof) = self.received.split_at(NONCE);
        if had < NONCE && self.len >= NONCE {
            let text = [&self.nonce, nonce].concat();
            self.output.extend_from_slice(hmac::sign(&key(&self.keys.own), &text).as_ref());
        }
        if had < GREETING && self.len == GREETING {
            let text = [nonce, &self.nonce].concat();
            // In constant time.
            hmac::verify(&key(&self.keys.peer), &text, proof).map_err(|_| Stranger)?;
        }
        Ok(())
    }
}

fn key(bytes: &[u8; 32]) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys(own: u8, peer: u8) -> GreetingKeys {
        GreetingKeys { own: [own; 32], peer: [peer; 32] }
    }

    /// Gives all bytes in pieces of these lengths; returns what follows the greeting.
    fn give(
        greeting: &mut Greeting<'_>,
        mut bytes: &[u8],
        cuts: &[usize],
    ) -> Result<Vec<u8>, Stranger> {
        let mut rest = Vec::new();
        let mut cuts = cuts.iter();
        while !bytes.is_empty() {
            let (mut piece, later) = bytes.split_at((*cuts.next().unwrap_or(&64)).min(bytes.len()));
            greeting.take(&mut piece)?;
            rest.extend_from_slice(piece);
            bytes = later;
        }
        Ok(rest)
    }

    /// Returns all bytes that a side with these keys sends to one with this nonce.
    fn sent(keys: &GreetingKeys, nonce: [u8; NONCE], to: [u8; NONCE]) -> Vec<u8> {
        let mut greeting = Greeting::new(keys, nonce);
        greeting.take(&mut &to[..]).unwrap();
        greeting.take_output()
    }

    #[test]
    fn the_proof_is_the_one_of_the_protocol() {
        let text = [[7; NONCE], [9; NONCE]].concat();
        let proof = hmac::sign(&key(&[1; 32]), &text);
        let expected = [&[7; NONCE][..], proof.as_ref()].concat();
        assert_eq!(sent(&keys(1, 2), [7; NONCE], [9; NONCE]), expected);
    }

    #[test]
    fn a_side_that_has_heard_nothing_shows_only_its_nonce() {
        let keys = keys(1, 2);
        let mut greeting = Greeting::new(&keys, [7; NONCE]);
        assert_eq!(greeting.take_output(), [7; NONCE]);
        greeting.take(&mut &[0; NONCE - 1][..]).unwrap();
        assert!(greeting.take_output().is_empty());
        greeting.take(&mut &[0][..]).unwrap();
        assert_eq!(greeting.take_output().len(), PROOF);
    }

    #[test]
    fn the_keys_are_not_shown() {
        assert_eq!(format!("{:?}", keys(1, 2)), "GreetingKeys { .. }");
    }

    proptest! {
        #[test]
        fn both_sides_greet_and_keep_what_follows(
            one in any::<[u8; 32]>(), other in any::<[u8; 32]>(),
            nonces in any::<[[u8; NONCE]; 2]>(),
            follows in prop::collection::vec(any::<u8>(), 0..100),
            cuts in prop::collection::vec(1_usize..50, 0..50),
        ) {
            let a_keys = GreetingKeys { own: one, peer: other };
            let b_keys = GreetingKeys { own: other, peer: one };
            for (own, peer, nonce, its) in
                [(&a_keys, &b_keys, nonces[0], nonces[1]), (&b_keys, &a_keys, nonces[1], nonces[0])]
            {
                let mut greeting = Greeting::new(own, nonce);
                let mut stream = sent(peer, its, nonce);
                stream.extend_from_slice(&follows);
                prop_assert_eq!(give(&mut greeting, &stream, &cuts), Ok(follows.clone()));
                prop_assert_eq!(greeting.missing(), 0);
            }
        }

        #[test]
        fn a_stranger_is_told_from_the_peer(
            nonces in any::<[[u8; NONCE]; 2]>(), proof in any::<[u8; PROOF]>(),
            cuts in prop::collection::vec(1_usize..50, 0..50),
        ) {
            let keys = keys(1, 2);
            let mut greeting = Greeting::new(&keys, nonces[0]);
            let stream = [&nonces[1][..], &proof].concat();
            prop_assert_eq!(give(&mut greeting, &stream, &cuts), Err(Stranger));
        }

        #[test]
        fn one_wrong_bit_is_a_stranger_s(
            nonces in any::<[[u8; NONCE]; 2]>(), bit in 0..GREETING * 8,
        ) {
            let (own, peer) = (keys(1, 2), keys(2, 1));
            let mut stream = sent(&peer, nonces[1], nonces[0]);
            stream[bit / 8] ^= 1 << (bit % 8);
            let mut greeting = Greeting::new(&own, nonces[0]);
            prop_assert_eq!(give(&mut greeting, &stream, &[]), Err(Stranger));
        }

        #[test]
        fn a_truncated_greeting_is_none(
            nonces in any::<[[u8; NONCE]; 2]>(), len in 0..GREETING,
        ) {
            let (own, peer) = (keys(1, 2), keys(2, 1));
            let stream = sent(&peer, nonces[1], nonces[0]);
            let mut greeting = Greeting::new(&own, nonces[0]);
            prop_assert_eq!(give(&mut greeting, &stream[..len], &[]), Ok(Vec::new()));
            prop_assert_eq!(greeting.missing(), GREETING - len);
        }

        #[test]
        fn own_bytes_sent_back_are_a_stranger_s(nonce in any::<[u8; NONCE]>()) {
            let keys = keys(1, 2);
            let mut greeting = Greeting::new(&keys, nonce);
            let mut back = greeting.take_output();
            greeting.take(&mut &back[..]).unwrap();
            back = greeting.take_output();
            prop_assert_eq!(back.len(), PROOF);
            prop_assert_eq!(greeting.take(&mut &back[..]), Err(Stranger));
        }

        #[test]
        fn a_proof_of_another_connection_is_a_stranger_s(
            nonces in any::<[[u8; NONCE]; 3]>(),
        ) {
            prop_assume!(nonces[0] != nonces[2]);
            let (own, peer) = (keys(1, 2), keys(2, 1));
            let recorded = sent(&peer, nonces[1], nonces[2]);
            let mut greeting = Greeting::new(&own, nonces[0]);
            prop_assert_eq!(give(&mut greeting, &recorded, &[]), Err(Stranger));
        }
    }
}
