//! Access: the users, the administrators, and the blocked.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use fingerpost_wire::jid::identity;
use jid::BareJid;
use tokio::sync::watch;

/// The access lists: JIDs and domains in the form in which they are compared, or `*` for anyone.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Users and domains that may use proxy, broker and registry.
    pub users: Vec<String>,
    /// Users and domains that may administer the component.
    pub admins: Vec<String>,
    /// Users and domains that may do nothing. This list overrides the others.
    pub blocked: Vec<String>,
}

/// Decides who may use the service now, by the configured lists and the blocks that admins have set by command. Cheap
/// to clone; all clones change together.
#[derive(Clone, Debug, Default)]
pub struct Doors {
    lists: Arc<RwLock<Lists>>,
    /// Notified of each change.
    changes: Arc<watch::Sender<()>>,
}

/// The configured lists, as sets for quick lookups.
#[derive(Debug, Default)]
struct Sets {
    users: HashSet<String>,
    admins: HashSet<String>,
    blocked: HashSet<String>,
}

impl From<&Access> for Sets {
    fn from(lists: &Access) -> Self {
        let set = |list: &[String]| list.iter().cloned().collect();
        Self { users: set(&lists.users), admins: set(&lists.admins), blocked: set(&lists.blocked) }
    }
}

#[derive(Debug, Default)]
struct Lists {
    configured: Access,
    /// The configured lists as sets.
    sets: Sets,
    /// Addresses and domains that admins have blocked by command, each with the reason.
    commanded: BTreeMap<String, String>,
}

impl Doors {
    /// Creates doors with the configured lists.
    pub fn new(configured: Access) -> Self {
        let sets = Sets::from(&configured);
        let lists = Lists { configured, sets, commanded: BTreeMap::new() };
        Self { lists: Arc::new(RwLock::new(lists)), changes: Arc::default() }
    }

    /// Returns a receiver that is notified of each change of the lists.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Returns whether `jid` may use the service.
    pub fn admits(&self, jid: &BareJid) -> bool {
        let lists = self.read();
        let Sets { users, admins, .. } = &lists.sets;
        !lists.block(jid) && (listed(users, jid) || listed(admins, jid))
    }

    /// Returns whether `jid` is blocked, even as a callee.
    pub fn blocks(&self, jid: &BareJid) -> bool {
        self.read().block(jid)
    }

    /// Returns whether `jid` may administer the service.
    pub fn administers(&self, jid: &BareJid) -> bool {
        let lists = self.read();
        !lists.block(jid) && listed(&lists.sets.admins, jid)
    }

    /// Replaces the configured lists after a reload.
    pub fn set_configured(&self, configured: Access) {
        let mut lists = self.write();
        lists.sets = Sets::from(&configured);
        lists.configured = configured;
        drop(lists);
        self.changes.send_replace(());
    }

    /// Replaces all blocks by command, each with its reason.
    pub fn set_commanded(&self, commanded: impl IntoIterator<Item = (String, String)>) {
        self.write().commanded = commanded.into_iter().collect();
        self.changes.send_replace(());
    }

    /// Returns the blocks by command, each with its reason, then those of the configuration.
    pub fn blocked(&self) -> (Vec<(String, String)>, Vec<String>) {
        let lists = self.read();
        let commanded = lists.commanded.iter().map(|(jid, why)| (jid.clone(), why.clone()));
        (commanded.collect(), lists.configured.blocked.clone())
    }

    fn read(&self) -> RwLockReadGuard<'_, Lists> {
        self.lists.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Lists> {
        self.lists.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lists {
    fn block(&self, jid: &BareJid) -> bool {
        let jid = &*identity(jid);
        listed(&self.sets.blocked, jid)
            || self.commanded.contains_key(jid.as_str())
            || self.commanded.contains_key(jid.domain().as_str())
    }
}

fn listed(list: &HashSet<String>, jid: &BareJid) -> bool {
    let jid = &*identity(jid);
    list.contains("*") || list.contains(jid.as_str()) || list.contains(jid.domain().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocked_wins_over_all() {
        let doors = Doors::new(Access {
            users: vec!["example.org".into(), "eve@evil.example".into()],
            admins: vec!["admin@example.org".into(), "root@other.example".into()],
            blocked: vec!["mallory@example.org".into()],
        });
        let bare = |jid: &str| BareJid::new(jid).unwrap();
        let admits = |jid: &str| doors.admits(&bare(jid));
        assert!(admits("alice@example.org"));
        assert!(admits("eve@evil.example"));
        assert!(admits("root@other.example"));
        assert!(!admits("bob@evil.example"));
        assert!(!admits("mallory@example.org"));
        assert!(!doors.administers(&bare("alice@example.org")));
        assert!(doors.administers(&bare("admin@example.org")));

        let block = |jid: &str| doors.set_commanded([(jid.to_owned(), String::new())]);
        block("alice@example.org");
        assert!(doors.blocks(&bare("alice@example.org")));
        assert!(admits("eve@evil.example") && !admits("alice@example.org"));
        block("example.org");
        assert!(!admits("bob@example.org") && admits("root@other.example"));
        assert!(!doors.administers(&bare("admin@example.org")));
    }
}
