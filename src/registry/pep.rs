//! OpenPGP keys that users publish in PEP (XEP-0373 0.6, section 4), if anyone may read them there.
//!
//! Two kinds of nodes: a list of fingerprints, and one node for each key. The user's server answers for the user; what
//! it does not give to us was not published openly.

use base64::{Engine, engine::general_purpose::STANDARD};
use jid::{BareJid, Jid};
use minidom::Element;
use time::OffsetDateTime;

use super::{
    Notice, Registry,
    material::Material,
    model::{NewKey, Source, State},
    store::StoreError,
};
use crate::{
    print::Method,
    xmpp::{ns, xml},
};

/// Keys of one user that are read at most.
const KEYS: usize = 8;

/// The request for the list of a user's keys.
pub fn list_request() -> Element {
    items_request(ns::OPENPGP_KEYS)
}

/// The request for one key.
pub fn key_request(fingerprint: &str) -> Element {
    items_request(&format!("{}:{fingerprint}", ns::OPENPGP_KEYS))
}

fn items_request(node: &str) -> Element {
    let mut pubsub = Element::bare("pubsub", ns::PUBSUB);
    pubsub.append_child(xml::element("items", ns::PUBSUB, &[("node", node), ("max_items", "1")]));
    pubsub
}

/// The fingerprints in an answer to [`list_request`]: upper case hexadecimal, as their nodes are named.
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

/// The certificate in an answer to [`key_request`].
pub fn certificate(answer: &Element) -> Option<Vec<u8>> {
    let data = payload(answer)?
        .children()
        .find(|child| child.is("data", ns::OPENPGP))
        .map(Element::text)?;
    let text: String = data.split_whitespace().collect();
    STANDARD.decode(text).ok()
}

fn payload(answer: &Element) -> Option<&Element> {
    let items = answer.get_child("items", ns::PUBSUB)?;
    items.children().find(|child| child.is("item", ns::PUBSUB))?.children().next()
}

impl Registry {
    /// Takes over what a user publishes now: new keys are added, and those that came from there and are there no more
    /// are taken out of use. Gives what the user is to be told.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn refresh_pep(
        &self,
        owner: &BareJid,
        published: &[Vec<u8>],
        now: OffsetDateTime,
    ) -> Result<Vec<Notice>, StoreError> {
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
                    tracing::debug!(%error, "a published key is not taken over");
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
}
