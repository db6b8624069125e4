//! Who is reachable: users that sent directed presence to the component.

use std::collections::HashMap;

use jid::{BareJid, FullJid};

/// Most users, and most resources of one user, that are kept.
const LIMITS: (usize, usize) = (100_000, 16);

/// The reachable resources of each user with their priorities.
#[derive(Debug, Default)]
pub struct Presences {
    users: HashMap<BareJid, Vec<(FullJid, i8)>>,
}

impl Presences {
    /// A resource became available, or changed its priority.
    pub fn available(&mut self, jid: FullJid, priority: i8) {
        if self.users.len() >= LIMITS.0 && !self.users.contains_key(&jid.to_bare()) {
            return;
        }
        let resources = self.users.entry(jid.to_bare()).or_default();
        resources.retain(|(known, _)| *known != jid);
        if resources.len() < LIMITS.1 {
            resources.push((jid, priority));
        }
    }

    /// A resource went away.
    pub fn unavailable(&mut self, jid: &FullJid) {
        let bare = jid.to_bare();
        if let Some(resources) = self.users.get_mut(&bare) {
            resources.retain(|(known, _)| known != jid);
            if resources.is_empty() {
                self.users.remove(&bare);
            }
        }
    }

    /// All reachable resources of a user.
    pub fn all(&self, user: &BareJid) -> impl Iterator<Item = &FullJid> {
        self.users.get(user).into_iter().flatten().map(|(jid, _)| jid)
    }

    /// The resource of highest priority that is not negative; among equals the latest.
    pub fn best(&self, user: &BareJid) -> Option<&FullJid> {
        self.users
            .get(user)?
            .iter()
            .filter(|(_, priority)| *priority >= 0)
            .max_by_key(|(_, priority)| *priority)
            .map(|(jid, _)| jid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_priority_is_reached_and_unavailable_ends_it() {
        let full = |text: &str| FullJid::new(text).unwrap();
        let bare = BareJid::new("j@c").unwrap();
        let mut presences = Presences::default();
        assert_eq!(presences.best(&bare), None);
        presences.available(full("j@c/low"), 1);
        presences.available(full("j@c/high"), 5);
        presences.available(full("j@c/hidden"), -1);
        assert_eq!(presences.best(&bare), Some(&full("j@c/high")));
        presences.unavailable(&full("j@c/high"));
        assert_eq!(presences.best(&bare), Some(&full("j@c/low")));
        presences.unavailable(&full("j@c/low"));
        assert_eq!(presences.best(&bare), None);
    }
}
