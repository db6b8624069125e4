//! The name of a SOCKS5 bytestream, which both users send as the destination's address (XEP-0065).

use std::{fmt, str::FromStr};

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use jid::Jid;
use sha1::{Digest, Sha1};

use crate::jid::respelled;

/// The name of a transfer: SHA-1 of stream id, requester and target, written as 40 lower case hex digits.
///
/// # Security
/// Anyone who knows the hash can connect in the place of a side, so `Debug` does not show it.
///
/// Spec: XEP-0065 1.8.2, section 5.3.2 (Target Connects).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DstAddr([u8; 20]);

impl DstAddr {
    /// Computes the name from the full JIDs as they are written on the wire.
    pub fn compute(sid: &str, requester: &Jid, target: &Jid) -> Self {
        let mut sha1 = Sha1::new();
        sha1.update(sid.as_bytes());
        for jid in [requester, target] {
            let spelled = respelled(jid.as_str());
            sha1.update(spelled.as_deref().unwrap_or(jid.as_str()));
        }
        Self(sha1.finalize().into())
    }
}

impl FromStr for DstAddr {
    type Err = NoDstAddr;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut hash = [0; 20];
        if text.len() != 2 * hash.len() {
            return Err(NoDstAddr);
        }
        let decoded = HEXLOWER_PERMISSIVE.decode_mut(text.as_bytes(), &mut hash);
        decoded.map(|_| Self(hash)).map_err(|_| NoDstAddr)
    }
}

impl fmt::Display for DstAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        HEXLOWER.encode_display(&self.0).fmt(f)
    }
}

impl fmt::Debug for DstAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DstAddr(…)")
    }
}

/// The text is not 40 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the destination must be 40 hexadecimal digits")]
pub struct NoDstAddr;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_hash_is_that_of_sid_requester_and_target() {
        let requester = Jid::new("requester@example.org/foo").unwrap();
        let target = Jid::new("target@example.org/bar").unwrap();
        let hash = DstAddr::compute("mySID", &requester, &target);
        let text = Sha1::digest(b"mySIDrequester@example.org/footarget@example.org/bar");
        let text = HEXLOWER.encode(&text);
        assert_eq!(hash.to_string(), text);
        assert_eq!(text.to_uppercase().parse(), Ok(hash));
        assert_ne!(hash, DstAddr::compute("mySID", &target, &requester));
        assert!(!format!("{hash:?}").contains(&text[..4]));
    }

    proptest! {
        #[test]
        fn any_text_is_a_hash_or_refused(text in "\\PC{0,50}") {
            let _ = text.parse::<DstAddr>();
        }

        #[test]
        fn either_case_is_read_and_lower_case_written(text in "[0-9a-fA-F]{40}") {
            let hash: DstAddr = text.parse().unwrap();
            prop_assert_eq!(hash.to_string(), text.to_lowercase());
        }
    }
}
