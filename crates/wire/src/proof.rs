//! The message that a proof of possession signs.
//!
//! The signed bytes are `"fingerpost:prove:0" ‖ 0x00 ‖ component JID ‖ 0x00 ‖ bare JID ‖ 0x00 ‖ nonce`: a signature
//! made for another purpose does not fit, and one made for one component, user or challenge is not valid for another.

use jid::BareJid;

const DOMAIN: &[u8] = b"fingerpost:prove:0";

/// 32 random bytes.
pub type Nonce = [u8; 32];

/// Returns the bytes to be signed.
pub fn message(component: &BareJid, owner: &BareJid, nonce: &Nonce) -> Vec<u8> {
    [DOMAIN, component.as_str().as_bytes(), owner.as_str().as_bytes(), nonce].join(&0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_signed_names_component_user_and_nonce() {
        let component = BareJid::new("xtls.example.org").unwrap();
        let owner = BareJid::new("romeo@m.lit").unwrap();
        let mut expected = b"fingerpost:prove:0\0xtls.example.org\0romeo@m.lit\0".to_vec();
        expected.extend([9; 32]);
        assert_eq!(message(&component, &owner, &[9; 32]), expected);
    }
}
