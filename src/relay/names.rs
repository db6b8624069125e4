//! Users' addresses that many transfers share, by number.

use std::num::NonZeroU32;

use compact_str::CompactString;
use fingerpost_carry::rows::{Row, Rows};
use jid::BareJid;

/// The number of an address. It must be given back once for each time it was given out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Name(u32);

/// Addresses, each kept once while anything uses it. Short ones need no memory besides their row.
#[derive(Debug, Default)]
pub(super) struct Names {
    rows: Rows<UsedName>,
}

#[derive(Debug)]
struct UsedName {
    text: CompactString,
    uses: NonZeroU32,
}

impl Row for UsedName {
    type Key = str;

    fn key(&self) -> &str {
        &self.text
    }
}

impl Names {
    /// Returns the number of an address.
    pub(super) fn take(&mut self, user: &BareJid) -> Name {
        let number = match self.rows.find(user.as_str()) {
            Some(number) => {
                if let Some(row) = self.rows.get_mut(number) {
                    row.uses = row.uses.saturating_add(1);
                }
                number
            }
            None => {
                let text = CompactString::new(user.as_str());
                self.rows.insert(UsedName { text, uses: NonZeroU32::MIN })
            }
        };
        Name(number)
    }

    /// Takes a number back.
    pub(super) fn give_back(&mut self, name: &Name) {
        let Some(row) = self.rows.get_mut(name.0) else { return };
        match NonZeroU32::new(row.uses.get() - 1) {
            Some(left) => row.uses = left,
            None => drop(self.rows.remove(name.0)),
        }
    }

    /// Returns an address.
    pub(super) fn get(&self, name: &Name) -> Option<BareJid> {
        self.rows.get(name.0).and_then(|row| BareJid::new(&row.text).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_kept_once_and_no_longer_than_it_is_used() {
        let mut names = Names::default();
        let jid = |text| BareJid::new(text).unwrap();
        let (romeo, juliet) = (jid("romeo@montague.lit"), jid("juliet@capulet.lit"));
        let first = names.take(&romeo);
        let second = names.take(&romeo);
        let hers = names.take(&juliet);
        assert_eq!(first, second);
        assert_eq!((names.get(&first), names.get(&hers)), (Some(romeo), Some(juliet)));
        names.give_back(&first);
        names.give_back(&hers);
        assert_eq!(names.rows.len(), 1);
        names.give_back(&second);
        assert!(names.rows.is_empty());
    }
}
