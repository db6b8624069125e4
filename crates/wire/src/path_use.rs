//! Checks that a stream over a later leg of the relay begins as the path layer of two programs does.

use crate::client_hello::Guard;

/// The start of a USE record: the type of control records, the version, the payload's length, and the kind of record. The
/// number of the leg follows. See docs/PROTOCOL.md.
const START: [u8; 6] = [26, 3, 3, 0, 5, 8];

/// Judges the first bytes of the initiator's stream over a leg that replaces a broken one. It refuses at the first wrong
/// byte.
///
/// `first` is all that was received so far, from the leg's first byte on; six bytes suffice.
///
/// # Security
/// The first leg began with a ClientHello, so a later one cannot. This keeps out a pair of programs that negotiate a
/// session with TLS, and then another leg for something else.
pub fn check_path_use(first: &[u8]) -> Guard {
    let known = first.len().min(START.len());
    match first[..known] == START[..known] {
        true if known == START.len() => Guard::Pass,
        true => Guard::NeedMore,
        false => Guard::Refuse,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_use_record_passes() {
        let record = [26, 3, 3, 0, 5, 8, 0x80, 0, 0, 0];
        for known in 0..record.len() {
            let verdict = if known < 6 { Guard::NeedMore } else { Guard::Pass };
            assert_eq!(check_path_use(&record[..known]), verdict, "{known} bytes");
        }
        for at in 0..6 {
            let mut wrong = record;
            wrong[at] ^= 1;
            assert_eq!(check_path_use(&wrong[..=at]), Guard::Refuse, "byte {at}");
        }
        assert_eq!(check_path_use(b"GET / HTTP/1.1"), Guard::Refuse);
    }
}
