//! Are these first bytes a TLS ClientHello? Asked before a byte of a brokered stream is passed on.

/// How many bytes decide: the record header (5) and the handshake header (4).
pub const DECIDED_AFTER: usize = 9;

/// The largest fragment of a plaintext record in bytes (RFC 8446, 5.1).
const MAX_FRAGMENT: u16 = 1 << 14;

/// The shortest ClientHello body: version, random, empty session id, one suite, one compression method.
const MIN_HELLO: u32 = 2 + 32 + 1 + 2 + 2 + 1 + 1;

/// The longest ClientHello body that is believed; post-quantum ones have about 2 KiB.
const MAX_HELLO: u32 = 0xffff;

/// What the first bytes of a stream say about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// A ClientHello so far, but not enough of it to be sure.
    NeedMore,
    /// The stream starts with a ClientHello.
    Pass,
    /// Whatever follows, it is no ClientHello.
    Refuse,
}

/// Judges the first bytes of the initiator's stream, as soon as one of them is wrong.
///
/// `first` is all that was received so far, from the stream's first byte on; [`DECIDED_AFTER`] bytes suffice.
///
/// # Security
/// A wrong `Pass` lets plaintext look like TLS to the responder's TLS library, which refuses it; a wrong
/// `Refuse` ends an honest session. Only headers are judged: the rest is the responder's to check.
///
/// Spec: RFC 8446, section 5.1 (Record Layer) and section 4 (Handshake Protocol).
pub fn check_client_hello(first: &[u8]) -> Guard {
    let at = |i: usize| first.get(i).copied();
    let mut given = [0_u8; DECIDED_AFTER];
    for (to, from) in given.iter_mut().zip(first) {
        *to = *from;
    }
    // Content type handshake, version 3.0 to 3.4 (the record's version is only a legacy field).
    if at(0).is_some_and(|b| b != 0x16)
        || at(1).is_some_and(|b| b != 0x03)
        || at(2).is_some_and(|b| b > 0x04)
    {
        return Guard::Refuse;
    }
    // A lone high byte is compared with the largest and smallest length it can still become.
    let length = u16::from_be_bytes([given[3], given[4]]);
    if at(3).is_some() && length > MAX_FRAGMENT || at(4).is_some() && length < 4 {
        return Guard::Refuse;
    }
    let hello = u32::from_be_bytes([0, given[6], given[7], given[8]]);
    if at(5).is_some_and(|b| b != 0x01)
        || at(6).is_some() && hello > MAX_HELLO
        || at(8).is_some() && hello < MIN_HELLO
    {
        return Guard::Refuse;
    }
    if first.len() < DECIDED_AFTER { Guard::NeedMore } else { Guard::Pass }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HELLO: [u8; 9] = [0x16, 3, 1, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc];

    #[test]
    fn a_client_hello_passes_after_its_headers() {
        for n in 0..HELLO.len() {
            assert_eq!(check_client_hello(&HELLO[..n]), Guard::NeedMore, "{n} bytes");
        }
        assert_eq!(check_client_hello(&HELLO), Guard::Pass);
    }

    #[test]
    fn each_wrong_byte_is_refused_at_once() {
        let wrong = [
            (0, 0x17),
            (0, 0x80),
            (0, b'G'),
            (1, 2),
            (2, 5),
            (3, 0x41),
            (5, 2),
            (6, 1),
            (0, 0),
            (1, 0xff),
        ];
        for (at, byte) in wrong {
            let mut bytes = HELLO;
            bytes[at] = byte;
            assert_eq!(check_client_hello(&bytes[..=at]), Guard::Refuse, "byte {at}: {byte:#x}");
        }
    }

    #[test]
    fn lengths_must_be_plausible() {
        assert_eq!(check_client_hello(&[0x16, 3, 1, 0x40]), Guard::NeedMore);
        assert_eq!(check_client_hello(&[0x16, 3, 1, 0x40, 1]), Guard::Refuse);
        assert_eq!(check_client_hello(&[0x16, 3, 1, 0, 3]), Guard::Refuse);
        assert_eq!(check_client_hello(&[0x16, 3, 1, 0, 4]), Guard::NeedMore);
        assert_eq!(check_client_hello(&[0x16, 3, 1, 0, 80, 1, 0, 0, 40]), Guard::Refuse);
        assert_eq!(check_client_hello(&[0x16, 3, 1, 0, 80, 1, 0, 0, 41]), Guard::Pass);
    }

    proptest! {
        #[test]
        fn a_verdict_never_changes(bytes in proptest::collection::vec(any::<u8>(), 0..20), cut in 0_usize..20) {
            let cut = cut.min(bytes.len());
            match check_client_hello(&bytes[..cut]) {
                Guard::NeedMore => {}
                verdict => prop_assert_eq!(check_client_hello(&bytes), verdict),
            }
        }
    }
}
