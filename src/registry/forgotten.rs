//! Prints that were revoked for an address whose keys have been deleted since: they stay revoked for that address.
//!
//! Only salted hashes of them are kept. Anybody who has the database can ask whether a print that is known was revoked for
//! an address that is known, and can list neither.

use std::collections::HashMap;

use fingerpost_wire::{
    key::{Assurance, KeyId, State},
    print::{Method, Print},
};
use jid::BareJid;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::model::{Key, Source};

/// What the hashes are made with.
pub(super) type Salt = Vec<u8>;

/// One print.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// The hash of its owner's address.
    pub owner: Vec<u8>,
    /// The hash of the print, for this owner.
    pub print: Vec<u8>,
    /// What it was good for.
    pub method: Method,
    /// When it was revoked.
    pub at: OffsetDateTime,
}

impl Revoked {
    /// What is kept of a print that was revoked.
    pub(super) fn new(
        salt: &[u8],
        owner: &BareJid,
        print: &Print,
        method: Method,
        at: OffsetDateTime,
    ) -> Self {
        let print = hash_of(salt, owner, print);
        Self { owner: hash_of_owner(salt, owner.as_str()), print, method, at }
    }
}

/// The prints that stay revoked for one address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// The salts that there are.
    pub(super) salts: Vec<Salt>,
    /// The prints.
    pub(super) prints: Vec<Revoked>,
}

impl Forgotten {
    /// What is kept of a print of `owner`, if anything.
    pub(super) fn find(&self, owner: &BareJid, print: &Print) -> Option<&Revoked> {
        if self.prints.is_empty() {
            return None;
        }
        let hashes: Vec<_> = self.salts.iter().map(|salt| hash_of(salt, owner, print)).collect();
        self.prints.iter().find(|known| hashes.contains(&known.print))
    }

    /// Revoked keys of those of `prints` that stay revoked, to judge by.
    pub(super) fn keys(&self, owner: &BareJid, prints: &[Print]) -> Vec<Key> {
        // A stanza may offer thousands of prints, and an owner may have had hundreds of keys.
        let revoked: HashMap<_, _> =
            self.prints.iter().map(|known| (known.print.as_slice(), known)).collect();
        if revoked.is_empty() {
            return Vec::new();
        }
        let find = |print: &Print| {
            self.salts
                .iter()
                .find_map(|salt| revoked.get(hash_of(salt, owner, print).as_slice()).copied())
        };
        let known = |print: &Print| {
            find(print).map(|known| Key {
                id: KeyId::new(0),
                owner: owner.clone(),
                method: known.method,
                prints: vec![print.clone()],
                has_material: true,
                label: String::new(),
                state: State::Revoked,
                assurance: Assurance::Asserted,
                source: Source::Self_,
                created: known.at,
                expires: None,
                changed: known.at,
                replaced_by: None,
                reason: String::new(),
            })
        };
        prints.iter().filter_map(known).collect()
    }
}

/// The hash of an address.
pub(super) fn hash_of_owner(salt: &[u8], owner: &str) -> Vec<u8> {
    Sha256::new().chain_update(salt).chain_update(owner).finalize().to_vec()
}

/// The hash of a print of an address.
fn hash_of(salt: &[u8], owner: &BareJid, print: &Print) -> Vec<u8> {
    let hash = Sha256::new().chain_update(salt).chain_update(owner.as_str()).chain_update([0]);
    hash.chain_update(print.as_bytes()).finalize().to_vec()
}

#[cfg(test)]
mod tests {
    use fingerpost_wire::print::HashKind;
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_print_is_found_for_its_address_alone_and_with_any_salt() {
        let now = datetime!(2026-11-24 2:00 UTC);
        let [romeo, juliet] = ["romeo@m.lit", "juliet@c.lit"].map(|jid| BareJid::new(jid).unwrap());
        let print = |byte| Print::new(HashKind::Sha256, &[byte; 32]).unwrap();
        let salts = vec![vec![1; 16], vec![2; 16]];
        let kept = |salt: &[u8], byte| Revoked::new(salt, &romeo, &print(byte), Method::X509, now);
        let prints = vec![kept(&salts[0], 1), kept(&salts[1], 2)];
        let forgotten = Forgotten { salts, prints };
        for byte in [1, 2] {
            assert!(forgotten.find(&romeo, &print(byte)).is_some());
            assert!(forgotten.find(&juliet, &print(byte)).is_none());
        }
        assert!(forgotten.find(&romeo, &print(3)).is_none());
        let keys = forgotten.keys(&romeo, &[print(3), print(2)]);
        assert_eq!(keys.len(), 1);
        assert!(keys[0].has(&print(2)) && keys[0].state == State::Revoked);
    }
}
