//! Who may use the service.

use jid::BareJid;

/// The access lists: JIDs, domains, or `*` for anyone.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Who may use proxy, broker and registry.
    pub users: Vec<String>,
    /// Who may administer.
    pub admins: Vec<String>,
    /// Who may do nothing; wins over all.
    pub blocked: Vec<String>,
}

impl Access {
    /// Whether `jid` may use the service.
    pub fn admits(&self, jid: &BareJid) -> bool {
        !self.blocks(jid) && (listed(&self.users, jid) || listed(&self.admins, jid))
    }

    /// Whether `jid` is blocked, even as a callee.
    pub fn blocks(&self, jid: &BareJid) -> bool {
        listed(&self.blocked, jid)
    }
}

fn listed(list: &[String], jid: &BareJid) -> bool {
    list.iter().any(|entry| entry == "*" || entry == jid.as_str() || entry == jid.domain().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocked_wins_over_all() {
        let access = Access {
            users: vec!["example.org".into(), "eve@evil.example".into()],
            admins: vec![],
            blocked: vec!["mallory@example.org".into()],
        };
        let admits = |jid: &str| access.admits(&BareJid::new(jid).unwrap());
        assert!(admits("alice@example.org"));
        assert!(admits("eve@evil.example"));
        assert!(!admits("bob@evil.example"));
        assert!(!admits("mallory@example.org"));
    }
}
