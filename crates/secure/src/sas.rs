//! The short authentication string: twelve digits that two people read to each other.
//!
//! Both ends of one TLS channel have the same digits; an attacker that terminates TLS between them has two channels.
//! The digits come from the TLS exporter through PBKDF2. The attacker may try to make the two strings equal by varying
//! the later of its two handshakes until the digits fit; each try costs one PBKDF2. The cost of a try, the number of
//! digits and the time limit of a handshake bound its chances; docs/PROTOCOL.md has the figures.

use std::num::NonZeroU32;

use aws_lc_rs::pbkdf2;
use jid::BareJid;
use tokio_rustls::TlsStream;

use super::stream::{TlsError, export};

/// The exporter's label.
const LABEL: &[u8] = b"EXPORTER-fingerpost-sas";
const SALT: &[u8] = b"fingerpost:sas:0";
/// The iterations: a try takes a processor about a third of a second.
const ITERATIONS: NonZeroU32 = NonZeroU32::new(1 << 20).expect("it is not zero");
const MODULUS: u64 = 1_000_000_000_000;

/// Returns the string of a channel between these two users. It runs outside the other tasks, because it takes a while
/// on purpose. The future does not borrow the stream, which carries bytes meanwhile.
///
/// # Errors
/// [`TlsError::Failed`] if TLS exports no key material.
pub fn of<S>(
    stream: &TlsStream<S>,
    initiator: &BareJid,
    responder: &BareJid,
) -> impl Future<Output = Result<String, TlsError>> + use<S> {
    let exported: Result<[u8; 32], TlsError> =
        export(stream, LABEL, &context(initiator, responder));
    async move {
        let exported = exported?;
        tokio::task::spawn_blocking(move || digits(&exported))
            .await
            .map_err(|error| TlsError::Failed(std::io::Error::other(error)))
    }
}

/// Returns the exporter's context: the initiator and the responder of the session.
fn context(initiator: &BareJid, responder: &BareJid) -> Vec<u8> {
    [initiator.as_str().as_bytes(), responder.as_str().as_bytes()].join(&0)
}

/// Returns the string for 32 exported bytes: three groups of four digits.
fn digits(exported: &[u8; 32]) -> String {
    let mut bytes = [0; 8];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ITERATIONS, SALT, exported, &mut bytes);
    let number = u64::from_be_bytes(bytes) % MODULUS;
    let (first, second, third) = (number / 100_000_000, number / 10_000 % 10_000, number % 10_000);
    format!("{first:04} {second:04} {third:04}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digits_are_those_that_others_compute() {
        // python3 -c "import hashlib; print(int.from_bytes(hashlib.pbkdf2_hmac('sha256', bytes(range(32)),
        //             b'fingerpost:sas:0', 1 << 20, 8), 'big') % 10**12)"
        let exported: Vec<u8> = (0..32).collect();
        assert_eq!(digits(&exported.try_into().unwrap()), "2721 9246 3428");
    }

    #[test]
    fn the_context_tells_who_began() {
        let (a, b) = (BareJid::new("a@x.org").unwrap(), BareJid::new("b@x.org").unwrap());
        assert_eq!(context(&a, &b), b"a@x.org\0b@x.org");
        assert_ne!(context(&a, &b), context(&b, &a));
    }
}
