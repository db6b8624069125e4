//! Stanzas to a bare JID on their way to a resource: what is known of them, and what they wait for.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use fingerpost_carry::shares::Permit;
use fingerpost_wire::stanza::Stanza;
use jid::{BareJid, FullJid, Jid};
use minidom::Element;
use tokio::time::Instant;

use crate::sessions::Left;

/// What was learned for a stanza since it came.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Whether its sender may know of its addressee.
    pub(super) admitted: bool,
    pub(super) choosing: Option<Choosing>,
}

impl Findings {
    /// Creates findings that say whether its sender may know of its addressee.
    pub(super) fn admitted(admitted: bool) -> Self {
        Self { admitted, choosing: None }
    }
}

/// A choice of a resource in progress.
#[derive(Debug)]
pub(super) struct Choosing {
    pub(super) since: Instant,
    /// The resources that have not taken it.
    pub(super) tried: Vec<FullJid>,
    /// The error of the last of these.
    pub(super) error: Option<Element>,
    /// Since when one of these has been silent.
    pub(super) silent: Option<Instant>,
    /// Whether a server refuses to deliver to one of them.
    pub(super) is_refused: bool,
    /// The place among the requests in work.
    pub(super) permit: Option<Permit>,
    /// The stanza, and the application of a session with whether nothing encrypts it. Each answer of a resource takes all
    /// stanzas up again that wait for its user, so nothing long is copied or read then.
    pub(super) stanza: Option<Arc<Stanza>>,
    pub(super) application: Option<(String, bool)>,
}

impl Choosing {
    pub(super) fn new(since: Instant) -> Self {
        Self {
            since,
            tried: Vec::new(),
            error: None,
            silent: None,
            is_refused: false,
            permit: None,
            stanza: None,
            application: None,
        }
    }
}

/// The resource that gets a stanza.
#[derive(Debug)]
pub(super) struct ChosenResource {
    /// The full JID.
    pub(super) jid: Jid,
    /// The choice for a bare JID.
    pub(super) choosing: Option<Choosing>,
}

#[cfg(test)]
impl ChosenResource {
    /// Creates a choice of a resource that has just shown itself.
    pub(super) fn sure(jid: Jid) -> Self {
        Self { jid, choosing: Some(Choosing::new(Instant::now())) }
    }
}

/// A stanza that waits for the answers of resources.
#[derive(Debug)]
pub(super) struct WaitingStanza {
    pub(super) stanza: Arc<Stanza>,
    pub(super) choosing: Choosing,
}

/// Stanzas to bare JIDs that wait for answers of resources, in their order: by callee, and by sender.
#[derive(Debug, Default)]
pub(super) struct WaitingStanzas {
    /// The number of the last one.
    last: u64,
    stanzas: HashMap<u64, (BareJid, WaitingStanza)>,
    by_callee: HashMap<BareJid, BTreeSet<u64>>,
    by_sender: HashMap<Jid, BTreeSet<u64>>,
}

impl WaitingStanzas {
    pub(super) fn push(&mut self, callee: BareJid, waiting: WaitingStanza) {
        self.last += 1;
        self.by_callee.entry(callee.clone()).or_default().insert(self.last);
        self.by_sender.entry(waiting.stanza.from.clone()).or_default().insert(self.last);
        self.stanzas.insert(self.last, (callee, waiting));
    }

    /// Returns those of a sender, with their numbers.
    pub(super) fn of_sender(&self, sender: &Jid) -> impl Iterator<Item = (u64, &WaitingStanza)> {
        let numbers = self.by_sender.get(sender).into_iter().flatten();
        numbers.filter_map(|number| Some((*number, &self.stanzas.get(number)?.1)))
    }

    /// Removes those of a sender.
    pub(super) fn take_of_sender(&mut self, sender: &Jid) -> Vec<WaitingStanza> {
        let numbers = self.by_sender.get(sender).cloned().unwrap_or_default();
        numbers.into_iter().filter_map(|number| self.take(number)).collect()
    }

    /// Removes those to a callee.
    pub(super) fn take_of_callee(&mut self, callee: &BareJid) -> Vec<WaitingStanza> {
        let numbers = self.by_callee.get(callee).cloned().unwrap_or_default();
        numbers.into_iter().filter_map(|number| self.take(number)).collect()
    }

    /// Removes the one with this number.
    pub(super) fn take(&mut self, number: u64) -> Option<WaitingStanza> {
        let (callee, waiting) = self.stanzas.remove(&number)?;
        if let Some(numbers) = self.by_callee.get_mut(&callee) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.by_callee.remove(&callee);
            }
        }
        if let Some(numbers) = self.by_sender.get_mut(&waiting.stanza.from) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.by_sender.remove(&waiting.stanza.from);
            }
        }
        Some(waiting)
    }

    /// Returns all of them, in no order.
    pub(super) fn into_all(self) -> impl Iterator<Item = WaitingStanza> {
        self.stanzas.into_values().map(|(_, waiting)| waiting)
    }
}

/// A session-initiate that its callee did not acknowledge.
#[derive(Debug)]
pub struct Unanswered {
    pub(super) stanza: Stanza,
    pub(super) callee: Jid,
    pub(super) tried: Vec<FullJid>,
    /// Its error, if any.
    pub(super) error: Option<Element>,
    pub(super) at: Instant,
    /// Its session, with the stanzas of its initiator since.
    pub(super) left: Left,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(from: &str, id: usize) -> WaitingStanza {
        let text =
            format!("<iq xmlns='jabber:client' type='get' id='{id}' from='{from}' to='x.test'/>");
        let stanza = Stanza::parse(text.parse().unwrap()).unwrap();
        WaitingStanza { stanza: Arc::new(stanza), choosing: Choosing::new(Instant::now()) }
    }

    /// Anyone may say at any rate that a resource has gone.
    #[test]
    fn stanzas_are_found_by_sender_and_by_callee_among_any_number() {
        let mut all = WaitingStanzas::default();
        let bob = |n: usize| BareJid::new(&format!("bob{n}@b.test")).unwrap();
        for n in 0..2000 {
            all.push(bob(n % 100), waiting(&format!("alice{}@a.test/x", n % 200), n));
        }
        let nobody = Jid::new("nobody@a.test/x").unwrap();
        assert!(all.take_of_sender(&nobody).is_empty());
        // A look-up touches no others than these.
        assert!(all.by_sender.len() == 200 && all.by_sender.values().all(|of| of.len() == 10));
        assert!(all.by_callee.len() == 100 && all.by_callee.values().all(|of| of.len() == 20));
        let ids = |taken: Vec<WaitingStanza>| -> Vec<String> {
            taken.into_iter().map(|waiting| waiting.stanza.id.clone()).collect()
        };
        let alice = Jid::new("alice7@a.test/x").unwrap();
        let (second, found) = all.of_sender(&alice).nth(1).unwrap();
        assert_eq!(found.stanza.id, "207");
        assert_eq!(all.take(second).unwrap().stanza.id, "207");
        assert!(all.take(second).is_none());
        let of_alice = ids(all.take_of_sender(&alice));
        assert_eq!(of_alice.len(), 9);
        assert_eq!(of_alice[..2], ["7", "407"]);
        let of_bob = ids(all.take_of_callee(&bob(7)));
        assert_eq!(of_bob.len(), 10, "those of the other sender");
        assert_eq!(of_bob[..2], ["107", "307"]);
        for n in 0..100 {
            all.take_of_callee(&bob(n));
        }
        assert!(all.stanzas.is_empty() && all.by_callee.is_empty() && all.by_sender.is_empty());
    }
}
