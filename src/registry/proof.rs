//! Proofs of possession: the challenges that wait for their answers.

use std::{sync::Mutex, sync::PoisonError, time::Duration};

use fingerpost_secure::signature::SignatureError;
use fingerpost_wire::{key::KeyId, proof::Nonce};
use hashlink::LruCache;
use jid::BareJid;
use time::OffsetDateTime;

/// How long a challenge is valid.
pub const LIFETIME: Duration = Duration::from_secs(300);
/// The most challenges of all users; the oldest is forgotten first.
const MOST: usize = 10_000;

/// Why a proof is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProofError {
    /// Never requested, used, too old, or another user's.
    #[error("there is no such challenge: ask for one, answer it within 5 minutes and only once")]
    NoChallenge,
    /// The signature is not valid.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// Only prints of the key are known.
    #[error("the registry has only prints of this key: add it with its certificate first")]
    NoMaterial,
}

/// Challenges that wait for their answers, the oldest first. All have the same lifetime, so the oldest expires first
/// too.
#[derive(Debug)]
pub struct Challenges(Mutex<LruCache<KeyId, (BareJid, Nonce, OffsetDateTime)>>);

impl Default for Challenges {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(MOST)))
    }
}

impl Challenges {
    /// Sets a challenge for a key of `owner`, in place of an older one for that key. Returns its expiry.
    pub fn set(
        &self,
        key: KeyId,
        owner: &BareJid,
        nonce: Nonce,
        now: OffsetDateTime,
    ) -> OffsetDateTime {
        let mut challenges = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while challenges.iter().next().is_some_and(|(_, (_, _, expires))| *expires <= now) {
            challenges.remove_lru();
        }
        let expires = now + LIFETIME;
        challenges.insert(key, (owner.clone(), nonce, expires));
        expires
    }

    /// Takes the challenge for a key; it is used up whatever the result.
    ///
    /// # Errors
    /// [`ProofError::NoChallenge`]
    pub fn take(
        &self,
        key: KeyId,
        owner: &BareJid,
        now: OffsetDateTime,
    ) -> Result<Nonce, ProofError> {
        let mut challenges = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match challenges.peek(&key) {
            // A stranger cannot use up another user's challenge.
            Some((user, ..)) if user != owner => return Err(ProofError::NoChallenge),
            _ => {}
        }
        challenges
            .remove(&key)
            .filter(|(_, _, expires)| now < *expires)
            .map(|(_, nonce, _)| nonce)
            .ok_or(ProofError::NoChallenge)
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-24 2:00 UTC);

    #[test]
    fn a_challenge_is_good_once_in_time_and_for_its_user() {
        let challenges = Challenges::default();
        let (romeo, juliet) =
            (BareJid::new("romeo@m.lit").unwrap(), BareJid::new("j@c.lit").unwrap());
        let key = KeyId::new(1);
        assert_eq!(challenges.take(key, &romeo, NOW), Err(ProofError::NoChallenge));
        let end = challenges.set(key, &romeo, [7; 32], NOW);
        assert_eq!(end, NOW + LIFETIME);
        assert_eq!(challenges.take(key, &juliet, NOW), Err(ProofError::NoChallenge));
        assert_eq!(challenges.take(key, &romeo, NOW), Ok([7; 32]));
        assert_eq!(challenges.take(key, &romeo, NOW), Err(ProofError::NoChallenge));
        challenges.set(key, &romeo, [7; 32], NOW);
        assert_eq!(challenges.take(key, &romeo, end), Err(ProofError::NoChallenge));
        challenges.set(key, &romeo, [7; 32], NOW);
        challenges.set(key, &romeo, [8; 32], NOW);
        assert_eq!(challenges.take(key, &romeo, NOW), Ok([8; 32]));
    }

    #[test]
    fn challenges_do_not_grow_without_bound() {
        let challenges = Challenges::default();
        let romeo = BareJid::new("romeo@m.lit").unwrap();
        for n in 0..2 * MOST as u128 {
            challenges.set(KeyId::new(n), &romeo, [0; 32], NOW);
        }
        assert_eq!(challenges.0.lock().unwrap().len(), MOST);
    }
}
