//! The method `srp`: SRP-6a inside a TLS channel, bound to it (profile `srp6a-exporter`).
//!
//! Both users know a password. The messages run in a TLS 1.3 channel with unchecked certificates, before any byte of
//! the application:
//!
//! 1. initiator → responder: `A`
//! 2. responder → initiator: `salt`, `B`
//! 3. initiator → responder: `M1`
//! 4. responder → initiator: `M2`
//!
//! Group: 3072 bits of RFC 5054; hash: SHA-256; user name: the initiator's bare JID. The proofs cover the channel's
//! `tls-exporter` value (RFC 9266). An attacker that terminates TLS on both sides has two values, and neither proof
//! helps on the other side. The error does not tell a wrong password, an illegal public value and a broken message
//! apart.
//!
//! The responder's salt and verifier are made for one session and end with it.
//!
//! This module has no I/O: bytes and randomness go in, bytes come out. Spec: docs/PROTOCOL.md.

mod group;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use self::group::{Exponent, Group};

/// The profile's name in the method's element.
pub const PROFILE: &str = "srp6a-exporter";
/// The longest message: head, salt and a public value.
pub const MESSAGE_MAX: usize = HEAD + SALT + PUBLIC;
/// The bytes before a message's body: its type, and the body's length (big endian).
pub const HEAD: usize = 3;

const SALT: usize = 16;
const PUBLIC: usize = 384;
const PROOF: usize = 32;

/// The channel's `tls-exporter` value.
pub type Binding = [u8; 32];

/// The peer does not know the password, or violates this protocol. The error tells nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the password is not the one that the peer has")]
pub struct Refused;

/// The password has characters that no two keyboards agree on (RFC 4013), or is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the password is empty or has control characters in it")]
pub struct BadPassword;

/// A shared password, prepared by SASLprep (RFC 5054, 2.3; RFC 4013).
#[derive(Clone)]
pub struct Password(Zeroizing<String>);

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl Password {
    /// Prepares a password.
    ///
    /// # Errors
    /// [`BadPassword`]
    pub fn new(text: &str) -> Result<Self, BadPassword> {
        let prepared = stringprep::saslprep(text).map_err(|_| BadPassword)?;
        if prepared.is_empty() {
            return Err(BadPassword);
        }
        Ok(Self(Zeroizing::new(prepared.into_owned())))
    }
}

/// The values that both sides know before the first message.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The initiator's bare JID.
    pub user: String,
    /// The password.
    pub password: Password,
    /// The channel's binding.
    pub binding: Binding,
}

/// A message's type and its body's length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    kind: u8,
    body: usize,
}

const HELLO: Shape = Shape { kind: 1, body: PUBLIC };
const CHALLENGE: Shape = Shape { kind: 2, body: SALT + PUBLIC };
const CLIENT_PROOF: Shape = Shape { kind: 3, body: PROOF };
const SERVER_PROOF: Shape = Shape { kind: 4, body: PROOF };

impl Shape {
    /// Returns the number of bytes after a head of this shape.
    ///
    /// # Errors
    /// [`Refused`] if the head has another shape.
    pub fn read_head(self, head: [u8; HEAD]) -> Result<usize, Refused> {
        if head == self.head() { Ok(self.body) } else { Err(Refused) }
    }

    fn head(self) -> [u8; HEAD] {
        let length = u16::try_from(self.body).expect("bodies have a few hundred bytes");
        let [high, low] = length.to_be_bytes();
        [self.kind, high, low]
    }

    fn message(self, parts: &[&[u8]]) -> Vec<u8> {
        let mut message = self.head().to_vec();
        for part in parts {
            message.extend_from_slice(part);
        }
        message
    }

    fn check(self, body: &[u8]) -> Result<(), Refused> {
        if body.len() == self.body { Ok(()) } else { Err(Refused) }
    }
}

/// The initiator while it waits for salt and `B`.
pub struct Initiator {
    group: Group<Sha256>,
    shared: Shared,
    a: Zeroizing<Exponent>,
    a_public: Vec<u8>,
}

impl std::fmt::Debug for Initiator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Initiator").field("user", &self.shared.user).finish_non_exhaustive()
    }
}

impl Initiator {
    /// The message that it waits for.
    pub const EXPECTS: Shape = CHALLENGE;

    /// Begins; returns the first message. `random` must be fresh and used once.
    pub fn new(shared: Shared, random: Exponent) -> (Self, Vec<u8>) {
        let group = Group::of_3072_bits();
        let a = Zeroizing::new(random);
        let a_public = group.client_public(&a);
        let message = HELLO.message(&[&a_public]);
        (Self { group, shared, a, a_public }, message)
    }

    /// Answers salt and `B` with a proof.
    ///
    /// # Errors
    /// [`Refused`]
    pub fn handle_challenge(self, body: &[u8]) -> Result<(InitiatorProved, Vec<u8>), Refused> {
        CHALLENGE.check(body)?;
        let (salt, b_public) = body.split_at_checked(SALT).ok_or(Refused)?;
        let Self { group, shared, a, a_public } = self;
        let x = group.x(&shared.user, &shared.password.0, salt);
        let secret = group.client_secret(&a, &a_public, b_public, &x).map_err(|_| Refused)?;
        let proofs = Proofs::new(&group, &shared, salt, &a_public, b_public, &secret);
        let message = CLIENT_PROOF.message(&[&*proofs.initiator]);
        Ok((InitiatorProved(proofs), message))
    }
}

/// The initiator while it waits for the responder's proof.
#[derive(Debug)]
pub struct InitiatorProved(Proofs);

impl InitiatorProved {
    /// The message that it waits for.
    pub const EXPECTS: Shape = SERVER_PROOF;

    /// Checks the responder's proof that it knows the password and has the same channel.
    ///
    /// # Errors
    /// [`Refused`]
    pub fn handle_proof(self, body: &[u8]) -> Result<(), Refused> {
        same(body, &self.0.responder)
    }
}

/// The responder while it waits for `A`.
pub struct Responder {
    shared: Shared,
    b: Zeroizing<Exponent>,
    salt: [u8; SALT],
}

impl std::fmt::Debug for Responder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Responder").field("user", &self.shared.user).finish_non_exhaustive()
    }
}

impl Responder {
    /// The message that it waits for.
    pub const EXPECTS: Shape = HELLO;

    /// Begins. `random` and `salt` must be fresh and used once.
    pub fn new(shared: Shared, random: Exponent, salt: [u8; SALT]) -> Self {
        Self { shared, b: Zeroizing::new(random), salt }
    }

    /// Answers `A` with salt and `B`.
    ///
    /// # Errors
    /// [`Refused`]
    pub fn handle_hello(self, a_public: &[u8]) -> Result<(ResponderChallenged, Vec<u8>), Refused> {
        HELLO.check(a_public)?;
        let Self { shared, b, salt } = self;
        let group = Group::of_3072_bits();
        let x = group.x(&shared.user, &shared.password.0, &salt);
        let verifier = group.verifier(&x);
        let b_public = group.server_public(&b, &verifier);
        let secret =
            group.server_secret(&b, a_public, &b_public, &verifier).map_err(|_| Refused)?;
        let proofs = Proofs::new(&group, &shared, &salt, a_public, &b_public, &secret);
        Ok((ResponderChallenged(proofs), CHALLENGE.message(&[&salt, &b_public])))
    }
}

/// The responder while it waits for the initiator's proof.
#[derive(Debug)]
pub struct ResponderChallenged(Proofs);

impl ResponderChallenged {
    /// The message that it waits for.
    pub const EXPECTS: Shape = CLIENT_PROOF;

    /// Checks the initiator's proof; returns the responder's own.
    ///
    /// # Errors
    /// [`Refused`]; only a peer that knows the password gets the responder's proof.
    pub fn handle_proof(self, body: &[u8]) -> Result<Vec<u8>, Refused> {
        same(body, &self.0.initiator)?;
        Ok(SERVER_PROOF.message(&[&*self.0.responder]))
    }
}

/// Both sides' proofs.
struct Proofs {
    initiator: Zeroizing<[u8; PROOF]>,
    responder: Zeroizing<[u8; PROOF]>,
}

impl std::fmt::Debug for Proofs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Proofs")
    }
}

impl Proofs {
    /// K = H(PAD(S)), M1 = H(H(N) xor H(PAD(g)) | H(I) | s | PAD(A) | PAD(B) | K | binding),
    /// M2 = H(PAD(A) | M1 | K | binding): RFC 2945, 3 with the binding added.
    fn new(
        group: &Group<Sha256>,
        shared: &Shared,
        salt: &[u8],
        a_public: &[u8],
        b_public: &[u8],
        secret: &[u8],
    ) -> Self {
        let mut mixed: [u8; 32] = Sha256::digest(group.modulus()).into();
        for (byte, other) in mixed.iter_mut().zip(Sha256::digest(group.generator())) {
            *byte ^= other;
        }
        let key = Zeroizing::new(<[u8; 32]>::from(Sha256::digest(secret)));
        let initiator: [u8; PROOF] = Sha256::new()
            .chain_update(mixed)
            .chain_update(Sha256::digest(&shared.user))
            .chain_update(salt)
            .chain_update(a_public)
            .chain_update(b_public)
            .chain_update(*key)
            .chain_update(shared.binding)
            .finalize()
            .into();
        let responder: [u8; PROOF] = Sha256::new()
            .chain_update(a_public)
            .chain_update(initiator)
            .chain_update(*key)
            .chain_update(shared.binding)
            .finalize()
            .into();
        Self { initiator: Zeroizing::new(initiator), responder: Zeroizing::new(responder) }
    }
}

/// Compares proofs in a time that does not depend on where they differ.
fn same(shown: &[u8], expected: &[u8; PROOF]) -> Result<(), Refused> {
    if bool::from(shown.ct_eq(expected)) { Ok(()) } else { Err(Refused) }
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXUPPER;

    use super::*;

    fn shared(user: &str, password: &str, binding: u8) -> Shared {
        let password = Password::new(password).unwrap();
        Shared { user: user.to_owned(), password, binding: [binding; 32] }
    }

    /// Runs all four messages; returns each side's result.
    fn run(a: Shared, b: Shared) -> (Result<(), Refused>, Result<(), Refused>) {
        let (initiator, hello) = Initiator::new(a, [0xA1; 32]);
        let responder = Responder::new(b, [0xB2; 32], [0x5A; SALT]);
        let (responder, challenge) = responder.handle_hello(&hello[HEAD..]).unwrap();
        let (initiator, proof) = initiator.handle_challenge(&challenge[HEAD..]).unwrap();
        match responder.handle_proof(&proof[HEAD..]) {
            Ok(answer) => (initiator.handle_proof(&answer[HEAD..]), Ok(())),
            Err(refused) => (Err(refused), Err(refused)),
        }
    }

    #[test]
    fn the_same_password_in_the_same_channel_is_proved_to_both() {
        let side = || shared("alice@example.org", "correct horse", 1);
        assert_eq!(run(side(), side()), (Ok(()), Ok(())));
    }

    /// Computed by another program (Python's integers and hashlib) from docs/PROTOCOL.md, which has the same example.
    #[test]
    fn the_example_of_the_protocols_page_comes_out() {
        let side = || shared("alice@example.org", "password123", 1);
        let (initiator, hello) = Initiator::new(side(), [0xA1; 32]);
        let responder = Responder::new(side(), [0xB2; 32], [0x5A; SALT]);
        let (responder, challenge) = responder.handle_hello(&hello[HEAD..]).unwrap();
        let (_, proof) = initiator.handle_challenge(&challenge[HEAD..]).unwrap();
        let answer = responder.handle_proof(&proof[HEAD..]).unwrap();
        let hex = |bytes: &[u8]| HEXUPPER.encode(bytes);
        let hash = |bytes: &[u8]| hex(&Sha256::digest(bytes));
        assert_eq!(hex(&challenge[..HEAD + SALT]), format!("020190{}", "5A".repeat(SALT)));
        assert_eq!(
            [hash(&hello[HEAD..]), hash(&challenge[HEAD + SALT..]), hex(&proof), hex(&answer)],
            [
                "2A1DAA668723DABE84D977614ED45E9D81F6CFA0D658FE5A41A6717B2DC3FCB1",
                "EA6F32132A3AEA48A4524C08CCC81D21DCB358C203BFB1934E581DEB50E52C2E",
                "030020F69E9A2B82FCEC839B7A5F265B6C44E6CF47FBF5B1DC0E666C616156D16E76C0",
                "04002045A5DA011CDE504FE95C1A7A84F62063266FED2E51B74D4891E7EAD6480FF9BD",
            ]
        );
    }

    #[test]
    fn another_password_user_or_channel_is_refused() {
        let side = || shared("alice@example.org", "correct horse", 1);
        for other in [
            shared("alice@example.org", "correct house", 1),
            shared("bob@example.org", "correct horse", 1),
            shared("alice@example.org", "correct horse", 2),
        ] {
            assert_eq!(run(side(), other), (Err(Refused), Err(Refused)));
        }
    }

    #[test]
    fn a_responder_that_guesses_is_refused_by_the_initiator() {
        let (initiator, hello) = Initiator::new(shared("a@b.c", "right", 1), [1; 32]);
        let responder = Responder::new(shared("a@b.c", "wrong", 1), [2; 32], [3; SALT]);
        let (responder, challenge) = responder.handle_hello(&hello[HEAD..]).unwrap();
        let (initiator, _) = initiator.handle_challenge(&challenge[HEAD..]).unwrap();
        assert_eq!(initiator.handle_proof(&*responder.0.responder), Err(Refused));
    }

    #[test]
    fn public_values_that_are_zero_modulo_n_are_refused() {
        let n = Group::<Sha256>::of_3072_bits().modulus();
        for bad in [vec![0; PUBLIC], n] {
            let responder = Responder::new(shared("a@b.c", "pw", 1), [2; 32], [3; SALT]);
            assert!(matches!(responder.handle_hello(&bad), Err(Refused)));
            let (initiator, _) = Initiator::new(shared("a@b.c", "pw", 1), [1; 32]);
            let body = [vec![3; SALT], bad].concat();
            assert!(matches!(initiator.handle_challenge(&body), Err(Refused)));
        }
    }

    #[test]
    fn messages_of_another_shape_are_refused() {
        assert_eq!(HELLO.read_head([1, 1, 128]), Ok(384));
        for head in [[2, 1, 128], [1, 1, 127], [1, 255, 255], [b'G', b'E', b'T']] {
            assert_eq!(HELLO.read_head(head), Err(Refused));
        }
        let responder = Responder::new(shared("a@b.c", "pw", 1), [2; 32], [3; SALT]);
        assert!(matches!(responder.handle_hello(&[1; 10]), Err(Refused)));
        let (initiator, _) = Initiator::new(shared("a@b.c", "pw", 1), [1; 32]);
        assert!(matches!(initiator.handle_challenge(&[]), Err(Refused)));
    }

    #[test]
    fn passwords_are_prepared_and_not_shown() {
        assert_eq!(*Password::new("I\u{ad}X").unwrap().0, "IX");
        assert_eq!(*Password::new("\u{2168}").unwrap().0, "IX");
        for bad in ["", "\u{7}"] {
            assert_eq!(Password::new(bad).err(), Some(BadPassword));
        }
        let side = shared("a@b.c", "hunter2", 1);
        assert!(!format!("{side:?}").contains("hunter2"));
        let (initiator, _) = Initiator::new(side, [1; 32]);
        assert!(!format!("{initiator:?}").contains("hunter2"));
    }
}
