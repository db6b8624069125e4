//! Checks that a stream begins with a TLS ClientHello, before a byte of a brokered stream is passed on.
//!
//! A record may have any size from one byte on, and a handshake message may begin in one record and continue in others
//! (RFC 8446, 5.1). Some clients send the ClientHello in pieces, because some middleboxes look only at its first
//! record.

/// The header of a record: content type, version, length.
const RECORD_HEADER: usize = 5;

/// The number of bytes of the handshake message that decide: its type and its length.
const MESSAGE_HEADER: usize = 4;

/// The number of bytes after which a verdict is certain: each byte of the message's header in a record of its own.
pub const DECIDED_AFTER: usize = MESSAGE_HEADER * (RECORD_HEADER + 1);

/// The content type of handshake messages.
const HANDSHAKE: u8 = 22;

/// The handshake type of a ClientHello.
const CLIENT_HELLO: u8 = 1;

/// The largest fragment of a plaintext record in bytes (RFC 8446, 5.1).
const MAX_FRAGMENT: u16 = 1 << 14;

/// The shortest ClientHello body: version, random, empty session id, one suite, one compression method.
const MIN_HELLO: u32 = 2 + 32 + 1 + 2 + 2 + 1 + 1;

/// The longest accepted ClientHello body; post-quantum ones have about 2 KiB.
const MAX_HELLO: u32 = 0xffff;

/// What the first bytes of a stream say about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// A ClientHello so far, but too short for a verdict.
    NeedMore,
    /// The stream starts with a ClientHello.
    Pass,
    /// The stream does not start with a ClientHello, whatever follows.
    Refuse,
}

/// Judges the first bytes of the initiator's stream. It refuses at the first wrong byte.
///
/// `first` is all that was received so far, from the stream's first byte on; [`DECIDED_AFTER`] bytes always suffice,
/// and the nine bytes of both headers do if the first record has the message's header in one piece.
///
/// # Security
/// A wrong `Pass` gives plaintext to the responder's TLS library, which refuses it. A wrong `Refuse` ends an honest
/// session. Only headers are judged; the responder checks the rest.
///
/// Spec: RFC 8446, section 5.1 (Record Layer) and section 4 (Handshake Protocol).
pub fn check_client_hello(first: &[u8]) -> Guard {
    let mut message = [0; MESSAGE_HEADER];
    let mut known = 0;
    let mut rest = first;
    while !rest.is_empty() {
        let (header, after) = rest.split_at(rest.len().min(RECORD_HEADER));
        let Some(length) = check_record(header) else { return Guard::Refuse };
        let fragment = &after[..after.len().min(length)];
        for byte in fragment.iter().take(MESSAGE_HEADER - known) {
            message[known] = *byte;
            known += 1;
        }
        if !is_hello_so_far(message, known) {
            return Guard::Refuse;
        }
        if known == MESSAGE_HEADER {
            return Guard::Pass;
        }
        rest = &after[fragment.len()..];
    }
    Guard::NeedMore
}

/// Checks the known part of a record's header. Returns the fragment's length as far as it is known, or 0.
fn check_record(header: &[u8]) -> Option<usize> {
    let at = |i: usize| header.get(i).copied();
    // The version is a legacy field that must be ignored for all purposes (RFC 8446, 5.1): 3.1 in most first records, 3.3
    // or 3.0 in some. Its first byte is 3 in every version of TLS, and keeps other protocols out.
    if at(0).is_some_and(|b| b != HANDSHAKE) || at(1).is_some_and(|b| b != 3) {
        return None;
    }
    // A lone high byte is compared with the smallest length that it can still become.
    let length = u16::from_be_bytes([at(3).unwrap_or(0), at(4).unwrap_or(0)]);
    // Handshake fragments of length zero must not be sent.
    if length > MAX_FRAGMENT || header.len() == RECORD_HEADER && length == 0 {
        return None;
    }
    Some(if header.len() == RECORD_HEADER { usize::from(length) } else { 0 })
}

/// Returns whether the first `known` bytes of a handshake message can begin a ClientHello.
fn is_hello_so_far(message: [u8; MESSAGE_HEADER], known: usize) -> bool {
    let [kind, high, middle, low] = message;
    let length = u32::from_be_bytes([0, high, middle, low]);
    // Unknown bytes are 0, so this is the smallest length that it can become.
    (known == 0 || kind == CLIENT_HELLO)
        && length <= MAX_HELLO
        && (known < MESSAGE_HEADER || length >= MIN_HELLO)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HELLO: [u8; 9] = [0x16, 3, 1, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc];

    /// Returns a message in records with fragments of these sizes; the last one takes the rest.
    fn in_records(message: &[u8], sizes: &[usize]) -> Vec<u8> {
        let (mut bytes, mut rest) = (Vec::new(), message);
        let mut sizes = sizes.iter().copied();
        while !rest.is_empty() {
            let size = sizes.next().unwrap_or(rest.len()).clamp(1, rest.len());
            let (fragment, after) = rest.split_at(size);
            bytes.extend([0x16, 3, 1]);
            bytes.extend(u16::try_from(size).unwrap().to_be_bytes());
            bytes.extend(fragment);
            rest = after;
        }
        bytes
    }

    fn hello(length: usize) -> Vec<u8> {
        let mut message = vec![1, 0];
        message.extend(u16::try_from(length).unwrap().to_be_bytes());
        message.resize(4 + length, 3);
        message
    }

    #[test]
    fn a_client_hello_passes_after_its_headers() {
        for n in 0..HELLO.len() {
            assert_eq!(check_client_hello(&HELLO[..n]), Guard::NeedMore, "{n} bytes");
        }
        assert_eq!(check_client_hello(&HELLO), Guard::Pass);
    }

    #[test]
    fn the_minor_version_of_a_record_is_ignored() {
        for minor in 0..=u8::MAX {
            let mut bytes = HELLO;
            bytes[2] = minor;
            assert_eq!(check_client_hello(&bytes[..3]), Guard::NeedMore, "3.{minor}");
            assert_eq!(check_client_hello(&bytes), Guard::Pass, "3.{minor}");
        }
    }

    #[test]
    fn records_of_any_size_pass_as_soon_as_the_message_is_recognised() {
        for sizes in [vec![1], vec![2], vec![3], vec![1; 100], vec![1, 2], vec![2, 1, 1], vec![4]] {
            let bytes = in_records(&hello(200), &sizes);
            let decided = (0..=bytes.len())
                .find(|n| check_client_hello(&bytes[..*n]) != Guard::NeedMore)
                .unwrap();
            assert_eq!(check_client_hello(&bytes[..decided]), Guard::Pass, "{sizes:?}");
            assert!(decided <= DECIDED_AFTER, "{sizes:?}: {decided}");
        }
    }

    #[test]
    fn each_wrong_byte_is_refused_at_once() {
        let wrong = [
            (0, 0x17),
            (0, 0x80),
            (0, b'G'),
            (0, 0x14),
            (0, 0x15),
            (1, 2),
            (1, 4),
            (3, 0x41),
            (5, 2),
            (5, 0),
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
    fn a_wrong_byte_in_a_later_record_is_refused_at_once() {
        let whole = in_records(&hello(200), &[1, 1, 1, 1]);
        // 0x40 alone could become the length 0x4000, which is allowed.
        let wrong: [(usize, &[u8]); 5] =
            [(6, &[0x17]), (7, &[2]), (9, &[0x40, 1]), (12, &[0x14]), (11, &[1])];
        for (at, wrong) in wrong {
            let mut bytes = whole[..at].to_vec();
            assert_eq!(check_client_hello(&bytes), Guard::NeedMore, "{at}");
            bytes.extend(wrong);
            assert_eq!(check_client_hello(&bytes), Guard::Refuse, "byte {at}: {wrong:?}");
        }
        let mut empty = whole[..6].to_vec();
        empty.extend([0x16, 3, 1, 0]);
        assert_eq!(check_client_hello(&empty), Guard::NeedMore);
        empty.push(0);
        assert_eq!(check_client_hello(&empty), Guard::Refuse, "a second record of length zero");
    }

    #[test]
    fn lengths_must_be_plausible() {
        assert_eq!(check_client_hello(&[0x16, 3, 1, 0x40]), Guard::NeedMore);
        assert_eq!(check_client_hello(&[0x16, 3, 1, 0x40, 0]), Guard::NeedMore);
        assert_eq!(check_client_hello(&[0x16, 3, 1, 0x40, 1]), Guard::Refuse);
        assert_eq!(check_client_hello(&[0x16, 3, 1, 0, 0]), Guard::Refuse);
        for length in 1..4 {
            assert_eq!(check_client_hello(&[0x16, 3, 1, 0, length]), Guard::NeedMore);
        }
        assert_eq!(check_client_hello(&[0x16, 3, 1, 0, 80, 1, 0, 0, 40]), Guard::Refuse);
        assert_eq!(check_client_hello(&[0x16, 3, 1, 0, 80, 1, 0, 0, 41]), Guard::Pass);
    }

    proptest! {
        #[test]
        fn a_verdict_never_changes(bytes in proptest::collection::vec(any::<u8>(), 0..40), cut in 0_usize..40) {
            let cut = cut.min(bytes.len());
            match check_client_hello(&bytes[..cut]) {
                Guard::NeedMore => {}
                verdict => prop_assert_eq!(check_client_hello(&bytes), verdict),
            }
        }

        #[test]
        fn any_fragmentation_of_a_hello_passes_and_of_anything_else_does_not(
            length in 41_usize..2000,
            sizes in proptest::collection::vec(1_usize..10, 0..10),
            kind in any::<u8>(),
            cut in 0_usize..2100,
        ) {
            let mut message = hello(length);
            let bytes = in_records(&message, &sizes);
            prop_assert_eq!(check_client_hello(&bytes), Guard::Pass);
            let cut = &bytes[..cut.min(bytes.len())];
            prop_assert_ne!(check_client_hello(cut), Guard::Refuse);
            if cut.len() >= DECIDED_AFTER {
                prop_assert_eq!(check_client_hello(cut), Guard::Pass);
            }
            message[0] = kind;
            let expected = if kind == 1 { Guard::Pass } else { Guard::Refuse };
            prop_assert_eq!(check_client_hello(&in_records(&message, &sizes)), expected);
        }

        #[test]
        fn the_verdict_is_there_in_bounded_bytes(
            records in proptest::collection::vec((1_u8..5, any::<[u8; 4]>()), 6..12),
        ) {
            let mut bytes = Vec::new();
            for (size, fragment) in records {
                bytes.extend([0x16, 3, 3, 0, size]);
                bytes.extend(&fragment[..usize::from(size)]);
            }
            prop_assert_ne!(check_client_hello(&bytes[..DECIDED_AFTER]), Guard::NeedMore);
        }
    }
}
