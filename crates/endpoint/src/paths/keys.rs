//! The keys of a stream's paths, and the messages that only its two ends can read.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use fingerpost_secure::stream::{TlsError, TlsStream, export};
use zeroize::Zeroizing;

use super::{leg::PathLeg, records::SEALED};
use crate::direct::{Candidate, CandidateKind, GreetingKeys};

/// The exporter's label (RFC 8446, 7.5); the context is the side whose messages the keys are for.
const LABEL: &[u8] = b"EXPORTER-fingerpost-paths-1";
/// The most candidates of one message.
const MOST: usize = 16;
/// The length of a message's counter, in bytes.
const COUNTER: usize = 8;

/// What one side tells the other: with the number 0 that it may learn addresses, otherwise the candidates of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// The number of the attempt; attempts are numbered from 1 on by the TLS client.
    pub(super) attempt: u32,
    pub(super) candidates: Vec<Candidate>,
}

impl Message {
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.attempt.to_be_bytes().to_vec();
        let candidates = &self.candidates[..self.candidates.len().min(MOST)];
        bytes.extend(u8::try_from(candidates.len()));
        for Candidate { address, kind } in candidates {
            match address.ip() {
                IpAddr::V4(ip) => {
                    bytes.push(4);
                    bytes.extend(ip.octets());
                }
                IpAddr::V6(ip) => {
                    bytes.push(6);
                    bytes.extend(ip.octets());
                }
            }
            bytes.extend(address.port().to_be_bytes());
            bytes.push(match kind {
                CandidateKind::Host => 0,
                CandidateKind::ServerReflexive => 1,
            });
        }
        bytes
    }

    fn read(mut bytes: &[u8]) -> Option<Self> {
        let attempt = u32::from_be_bytes(take(&mut bytes)?);
        let [count] = take(&mut bytes)?;
        if usize::from(count) > MOST {
            return None;
        }
        let mut candidates = Vec::new();
        for _ in 0..count {
            let ip = match take(&mut bytes)? {
                [4] => IpAddr::from(Ipv4Addr::from(take::<4>(&mut bytes)?)),
                [6] => IpAddr::from(Ipv6Addr::from(take::<16>(&mut bytes)?)),
                _ => return None,
            };
            let port = u16::from_be_bytes(take(&mut bytes)?);
            let kind = match take(&mut bytes)? {
                [0] => CandidateKind::Host,
                [1] => CandidateKind::ServerReflexive,
                _ => return None,
            };
            candidates.push(Candidate { address: SocketAddr::new(ip, port), kind });
        }
        bytes.is_empty().then_some(Self { attempt, candidates })
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*first)
}

/// The keys of one end.
pub(crate) struct Keys {
    own: Zeroizing<[u8; 64]>,
    peer: Zeroizing<[u8; 64]>,
    /// The counters of the next message, and of the last one that came.
    next: u64,
    last: Option<u64>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

impl Keys {
    /// Exports the keys of a stream.
    ///
    /// # Errors
    /// [`TlsError`] before the handshake is done.
    pub(crate) fn of(tls: &TlsStream<PathLeg>) -> Result<Self, TlsError> {
        let export = |side: &[u8]| export(tls, LABEL, side).map(Zeroizing::new);
        let (client, server) = (export(b"client")?, export(b"server")?);
        Ok(match tls {
            TlsStream::Client(_) => Self::new(client, server),
            TlsStream::Server(_) => Self::new(server, client),
        })
    }

    fn new(own: Zeroizing<[u8; 64]>, peer: Zeroizing<[u8; 64]>) -> Self {
        Self { own, peer, next: 0, last: None }
    }

    /// Returns the keys with which the two ends greet each other on a direct connection.
    pub(super) fn greeting(&self) -> GreetingKeys {
        let first = |keys: &[u8; 64]| keys.first_chunk().copied().unwrap_or([0; 32]);
        GreetingKeys { own: first(&self.own), peer: first(&self.peer) }
    }

    /// Returns how many messages were sealed.
    #[cfg(test)]
    pub(super) fn sent(&self) -> u64 {
        self.next
    }

    /// Seals a message: its counter, and what only the peer can read.
    pub(super) fn seal(&mut self, message: &Message) -> Option<Vec<u8>> {
        let counter = self.next;
        self.next += 1;
        let mut bytes = Zeroizing::new(message.to_bytes());
        let tag = key(&self.own)?
            .seal_in_place_separate_tag(nonce(counter), Aad::from([SEALED]), &mut bytes)
            .ok()?;
        Some([&counter.to_be_bytes()[..], &bytes, tag.as_ref()].concat())
    }

    /// Opens a message of the peer; `None` if it is not the peer's, or came before.
    pub(super) fn open(&mut self, sealed: &[u8]) -> Option<Message> {
        let (counter, rest) = sealed.split_first_chunk::<COUNTER>()?;
        let counter = u64::from_be_bytes(*counter);
        if self.last.is_some_and(|last| counter <= last) {
            return None;
        }
        let mut rest = Zeroizing::new(rest.to_vec());
        let opened =
            key(&self.peer)?.open_in_place(nonce(counter), Aad::from([SEALED]), &mut rest).ok()?;
        self.last = Some(counter);
        Message::read(opened)
    }
}

fn key(keys: &[u8; 64]) -> Option<LessSafeKey> {
    let (_, sealing) = keys.split_at(32);
    Some(LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, sealing).ok()?))
}

/// Returns the nonce of a message: each counter is used once per direction and stream.
fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys() -> [Keys; 2] {
        let [one, other] = [1, 2].map(|byte| Zeroizing::new([byte; 64]));
        [Keys::new(one.clone(), other.clone()), Keys::new(other, one)]
    }

    fn candidate(address: &str, kind: CandidateKind) -> Candidate {
        Candidate { address: address.parse().unwrap(), kind }
    }

    #[test]
    fn a_message_is_read_by_the_other_end_once() {
        let [mut alice, mut bob] = keys();
        let message = Message {
            attempt: 7,
            candidates: vec![
                candidate("192.0.2.7:4711", CandidateKind::ServerReflexive),
                candidate("[2001:db8::1]:2", CandidateKind::Host),
            ],
        };
        let (first, second) = (alice.seal(&message).unwrap(), alice.seal(&message).unwrap());
        assert_ne!(first[COUNTER..], second[COUNTER..]);
        assert_eq!(bob.open(&first), Some(message.clone()));
        assert_eq!(bob.open(&first), None, "it came before");
        assert_eq!(alice.open(&second), None, "it is our own");
        let mut changed = second.clone();
        changed[COUNTER] ^= 1;
        assert_eq!(bob.open(&changed), None);
        assert_eq!(bob.open(&second), Some(message));
    }

    #[test]
    fn the_bytes_of_a_message_are_those_of_the_documentation() {
        let host = candidate("192.0.2.7:4711", CandidateKind::Host);
        let message = Message { attempt: 1, candidates: vec![host] };
        assert_eq!(message.to_bytes(), [0, 0, 0, 1, 1, 4, 192, 0, 2, 7, 18, 103, 0]);
        let many = Message { attempt: 1, candidates: vec![host; 20] };
        assert_eq!(Message::read(&many.to_bytes()).unwrap().candidates.len(), MOST);
    }

    #[test]
    fn the_two_ends_greet_with_each_other_s_keys() {
        let [alice, bob] = keys().map(|keys| keys.greeting());
        assert_eq!((alice.own, alice.peer), (bob.peer, bob.own));
        assert_ne!(alice.own, alice.peer);
    }

    proptest! {
        #[test]
        fn no_message_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            if let Some(message) = Message::read(&bytes) {
                prop_assert_eq!(message.to_bytes(), bytes.clone());
            }
            prop_assert_eq!(keys()[0].open(&bytes), None);
        }
    }
}
