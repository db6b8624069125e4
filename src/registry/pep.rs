//! OpenPGP keys that users publish openly in PEP (XEP-0373 0.6, section 4).
//!
//! There are two kinds of nodes: a list of fingerprints, and one node for each key. The user's server answers for the
//! user; keys that it does not show us were not published openly.

use std::{
    collections::{HashMap, VecDeque},
    time::Instant,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use fingerpost_carry::shares::{Full, Limits, Place, Shares};
use fingerpost_secure::material::Material;
use fingerpost_wire::{key::State, ns, print::Method, xml};
use jid::{BareJid, Jid};
use minidom::Element;
use time::OffsetDateTime;

use super::{
    KeyNotice, Registry,
    model::{NewKey, Source},
};
use crate::{
    limits::{Rate, Rates},
    registry::store::error::StoreError,
};

/// The most keys of one user that are read.
const KEYS: usize = 8;
/// The longest text of a key that is read: 16 KiB in base64, and white space.
const TEXT: usize = 32 * 1024;
/// The places for users whose keys are being read, and for users that wait.
const READERS: (Limits, Limits) = (Limits::new(64, 1, 1), Limits::new(2048, 1, 1));
/// How often the keys of one user are read: three times at once, then every five minutes.
const RATE: Rate = Rate { per_second: 1.0 / 300.0, burst: 3.0 };

/// The schedule for reading users' published keys.
///
/// Each user's keys are read once at a time. A domain takes at most as many places as it leaves free. A user without a
/// place waits. A user that asks too often keeps the keys that were read last.
#[derive(Debug)]
pub struct Readers {
    /// Whether the keys must be read again after the present reading.
    running: HashMap<BareJid, (Place, bool)>,
    shares: Shares,
    waiting: VecDeque<(BareJid, Place)>,
    waiting_shares: Shares,
    rates: Rates,
}

impl Default for Readers {
    fn default() -> Self {
        Self {
            running: HashMap::new(),
            shares: Shares::default(),
            waiting: VecDeque::new(),
            waiting_shares: Shares::default(),
            rates: Rates::at(RATE),
        }
    }
}

impl Readers {
    /// Schedules a reading of the keys of `user`. Returns whether it may begin now; if so, call [`Readers::done`] when
    /// it has ended.
    pub fn begin(&mut self, user: &BareJid, now: Instant) -> bool {
        if let Some((_, again)) = self.running.get_mut(user) {
            *again = true;
            return false;
        }
        match self.shares.take(user, 1, &READERS.0) {
            Ok(place) if self.rates.allow(user, now) => {
                self.running.insert(user.clone(), (place, false));
                true
            }
            Ok(place) => {
                self.shares.give_back(&place);
                false
            }
            Err(Full::User) => false,
            Err(Full::All | Full::Domain) => {
                if let Ok(place) = self.waiting_shares.take(user, 1, &READERS.1) {
                    self.waiting.push_back((user.clone(), place));
                }
                false
            }
        }
    }

    /// Notes that the reading of the keys of `user` has ended. Returns the user whose keys are read next.
    pub fn done(&mut self, user: &BareJid, now: Instant) -> Option<BareJid> {
        let (place, again) = self.running.remove(user)?;
        self.shares.give_back(&place);
        if again && self.begin(user, now) {
            return Some(user.clone());
        }
        // Users whose domain has used its share wait behind the others.
        for _ in 0..self.waiting.len() {
            let (next, place) = self.waiting.pop_front()?;
            self.waiting_shares.give_back(&place);
            if self.begin(&next, now) {
                return Some(next);
            }
        }
        None
    }
}

/// Returns the request for the list of a user's keys.
pub fn list_request() -> Element {
    items_request(ns::OPENPGP_KEYS)
}

/// Returns the request for one key.
pub fn key_request(fingerprint: &str) -> Element {
    items_request(&format!("{}:{fingerprint}", ns::OPENPGP_KEYS))
}

fn items_request(node: &str) -> Element {
    let mut pubsub = Element::bare("pubsub", ns::PUBSUB);
    pubsub.append_child(xml::element("items", ns::PUBSUB, &[("node", node), ("max_items", "1")]));
    pubsub
}

/// Returns the fingerprints in an answer to [`list_request`], in upper case hexadecimal as in the names of their nodes.
pub fn fingerprints(answer: &Element) -> Vec<String> {
    let Some(list) = payload(answer).filter(|p| p.is("public-keys-list", ns::OPENPGP)) else {
        return Vec::new();
    };
    list.children()
        .filter(|child| child.is("pubkey-metadata", ns::OPENPGP))
        .filter_map(|child| child.attr("v4-fingerprint").or_else(|| child.attr("v6-fingerprint")))
        .filter(|text| matches!(text.len(), 40 | 64))
        .filter(|text| text.bytes().all(|c| c.is_ascii_hexdigit()))
        .map(str::to_ascii_uppercase)
        .take(KEYS)
        .collect()
}

/// Returns the certificate in an answer to [`key_request`].
pub fn certificate(answer: &Element) -> Option<Vec<u8>> {
    let data = payload(answer)?
        .children()
        .find(|child| child.is("data", ns::OPENPGP))
        .map(Element::text)
        .filter(|text| text.len() <= TEXT)?;
    let text: String = data.split_whitespace().collect();
    STANDARD.decode(text).ok()
}

fn payload(answer: &Element) -> Option<&Element> {
    let items = answer.get_child("items", ns::PUBSUB)?;
    items.children().find(|child| child.is("item", ns::PUBSUB))?.children().next()
}

impl Registry {
    /// Updates the registry from the keys that a user publishes now: adds new keys, and takes earlier published keys
    /// that are missing now out of use. Returns the messages for the user.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn refresh_pep(
        &self,
        owner: &BareJid,
        published: &[Vec<u8>],
        now: OffsetDateTime,
    ) -> Result<Vec<KeyNotice>, StoreError> {
        let from = Jid::from(owner.clone());
        let mut notices = Vec::new();
        let mut current = Vec::new();
        for bytes in published {
            let Ok(material) = Material::parse(Method::OpenPgp, bytes) else { continue };
            current.extend(material.prints.iter().cloned());
            let Ok(new) = NewKey::of_material(material, &[], "", Source::Pep) else { continue };
            match self.add(&from, &new, now).await {
                Ok((_, notice)) => notices.extend(notice),
                Err(StoreError::NotAllowed(error)) => {
                    tracing::debug!(%error, "published key not imported");
                }
                Err(error) => return Err(error),
            }
        }
        let profile = self.profile(owner).await?;
        for key in &profile.keys {
            let gone = key.source == Source::Pep
                && key.state == State::Active
                && !current.iter().any(|print| key.has(print));
            if gone {
                notices.extend(self.retire(&from, key.id, now).await?.1);
            }
        }
        Ok(notices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Example 3 of XEP-0373, with the answer around it.
    const LIST: &str = "<pubsub xmlns='http://jabber.org/protocol/pubsub'>\
        <items node='urn:xmpp:openpgp:0:public-keys'><item id='2020-01-21T10:46:21Z'>\
        <public-keys-list xmlns='urn:xmpp:openpgp:0'>\
        <pubkey-metadata v4-fingerprint='1357B01865B2503C18453D208CAC2A9678548E35' date='2018-03-01T15:26:12Z'/>\
        <pubkey-metadata v4-fingerprint='67819B343B2AB70DED9320872C6464AF2A8E4C02' date='1953-05-16T12:00:00Z'/>\
        <pubkey-metadata v4-fingerprint='../../etc' date='1953-05-16T12:00:00Z'/>\
        </public-keys-list></item></items></pubsub>";

    #[test]
    fn the_list_of_the_xep_is_read_and_nonsense_passed_over() {
        assert_eq!(
            fingerprints(&LIST.parse().unwrap()),
            [
                "1357B01865B2503C18453D208CAC2A9678548E35",
                "67819B343B2AB70DED9320872C6464AF2A8E4C02"
            ]
        );
    }

    #[test]
    fn a_key_is_read() {
        let answer: Element =
            "<pubsub xmlns='http://jabber.org/protocol/pubsub'><items node='x'><item id='1'>\
            <pubkey xmlns='urn:xmpp:openpgp:0'><data>QUJ\nD</data></pubkey></item></items></pubsub>"
                .parse()
                .unwrap();
        assert_eq!(certificate(&answer).unwrap(), b"ABC");
    }

    fn user(number: usize, domain: &str) -> BareJid {
        BareJid::new(&format!("u{number}@{domain}")).unwrap()
    }

    #[test]
    fn a_storm_of_one_user_is_one_question_at_a_time_and_three_in_all() {
        let (mut readers, now) = (Readers::default(), Instant::now());
        let alice = user(0, "a.test");
        assert!(readers.begin(&alice, now));
        assert!((0..8400).all(|_| !readers.begin(&alice, now)));
        assert_eq!(readers.done(&alice, now), Some(alice.clone()), "a change meanwhile is read");
        assert_eq!(readers.done(&alice, now), None);
        assert!(readers.begin(&alice, now));
        assert_eq!(readers.done(&alice, now), None);
        assert!(!readers.begin(&alice, now), "cached");
        assert!(readers.begin(&alice, now + std::time::Duration::from_secs(301)));
    }

    #[test]
    fn a_crowd_of_one_domain_takes_half_and_the_rest_waits_for_its_turn() {
        let (mut readers, now) = (Readers::default(), Instant::now());
        let began: Vec<BareJid> = (0..8400)
            .map(|number| user(number, "evil.test"))
            .filter(|user| readers.begin(user, now))
            .collect();
        assert_eq!(began.len(), 32);
        let good = user(0, "good.test");
        assert!(readers.begin(&good, now));
        assert_eq!(readers.waiting.len(), 1024);
        assert_eq!(readers.done(&began[0], now), None, "it leaves as much as it takes");
        assert_eq!(readers.done(&good, now), Some(user(32, "evil.test")));
        let mut read = 0;
        let mut next = Some(user(32, "evil.test"));
        while let Some(user) = next {
            read += 1;
            next = readers.done(&user, now);
        }
        assert_eq!((read, readers.waiting.len()), (1024, 0));
    }
}
