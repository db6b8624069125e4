//! The registry in the words of older protocols.
//!
//! | protocol | request | effect |
//! |---|---|---|
//! | XEP-0257 1.0 | `append`, `items`, `disable`, `revoke` in `urn:xmpp:saslcert:1`, to the component | the asker's own certificates, by name |
//! | XEP-0250 0.1 | `<offer xmlns='urn:xmpp:tmp:c2ctls'/>`, at a proxied JID that cannot be reached | the prints of that user's active keys of the methods that the asker has |
//! | XEP-0189 0.13 | `<pubkey xmlns='urn:xmpp:pubkey:2'/>`, at a proxied JID | the key of that user's active certificate with the highest assurance |
//!
//! Hidden, unknown and keyless users look the same here too.

use base64::{Engine, engine::general_purpose::STANDARD};
use fingerpost_secure::material::Material;
use fingerpost_wire::{
    key::{State, stamp},
    ns,
    print::{HashKind, Method, Print},
    rsm, size, xml,
};
use jid::{BareJid, Jid};
use minidom::Element;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    Registry,
    model::{Actor, Key, NewKey, Source},
    refusal::RegistryRefusal,
    requests::Handled,
    verdict,
};

impl Registry {
    /// Answers a XEP-0257 request of the user at `from`; `set` tells `set` from `get`.
    ///
    /// # Errors
    /// The refusal for the asker.
    pub async fn handle_saslcert(
        &self,
        from: &Jid,
        set: bool,
        payload: &Element,
        now: OffsetDateTime,
    ) -> Result<Handled, RegistryRefusal> {
        self.handle_saslcert_within(from, set, payload, now, size::DEFAULT).await
    }

    /// Answers a XEP-0257 request of the user at `from`; the payload of the answer may be `room` bytes long.
    ///
    /// # Errors
    /// The refusal for the asker.
    pub async fn handle_saslcert_within(
        &self,
        from: &Jid,
        set: bool,
        payload: &Element,
        now: OffsetDateTime,
        room: usize,
    ) -> Result<Handled, RegistryRefusal> {
        let owner = from.to_bare();
        let profile = self.profile(&owner).await?;
        let listed: Vec<&Key> = profile.keys.iter().filter(|key| is_certificate(key)).collect();
        if !set {
            if payload.name() != "items" {
                return Err(RegistryRefusal::NotItems);
            }
            let mut items = Element::bare("items", ns::SASLCERT);
            let request = rsm::PageRequest::read(payload)?;
            let position = request
                .as_ref()
                .and_then(rsm::PageRequest::uid)
                .and_then(|uid| listed.iter().position(|key| key.id.to_string() == uid));
            let room = rsm::room_inside(&items, room);
            let mut page = rsm::Page::new(request.as_ref(), listed.len(), position, room)?;
            while let Some(number) = page.wants() {
                let key = listed[number];
                let material = self.store.material(key.id).await?.unwrap_or_default();
                let mut item = Element::bare("item", ns::SASLCERT);
                item.append_child(with_text("name", ns::SASLCERT, &name_of(key)));
                let material = STANDARD.encode(material);
                item.append_child(with_text("x509cert", ns::SASLCERT, &material));
                let size = rsm::size_inside(&item)?;
                page.offer(key.id.to_string(), size, item)?;
            }
            page.finish_in(&mut items);
            return Ok(items.into());
        }
        let name = payload
            .get_child("name", ns::SASLCERT)
            .map(|name| name.text().trim().to_owned())
            .filter(|name| !name.is_empty())
            .ok_or(RegistryRefusal::NoName)?;
        let named = listed.iter().find(|key| name_of(key) == name);
        let (_, notice) = match (payload.name(), named) {
            ("append", Some(_)) => {
                return Err(RegistryRefusal::NameInUse);
            }
            ("append", None) => {
                let text: String = payload
                    .get_child("x509cert", ns::SASLCERT)
                    .map(Element::text)
                    .unwrap_or_default()
                    .split_whitespace()
                    .collect();
                let bytes = STANDARD.decode(text).map_err(|_| RegistryRefusal::CertificateCode)?;
                let material =
                    Material::parse(Method::X509, &bytes).map_err(RegistryRefusal::invalid)?;
                let new = NewKey::of_material(material, &[], &name, Source::Self_)
                    .map_err(RegistryRefusal::invalid)?;
                let (key, notice) = self.add(from, &new, now).await?;
                if key.state != State::Active {
                    return Err(RegistryRefusal::Known(key.state));
                }
                (key, notice)
            }
            ("disable", Some(key)) => self.retire(from, key.id, now).await?,
            ("revoke", Some(key)) => {
                self.revoke(from, &Actor::User(owner), key.id, "", now).await?
            }
            ("disable" | "revoke", None) => {
                return Err(RegistryRefusal::NoSuchCertificate);
            }
            _ => return Err(RegistryRefusal::UnknownChange),
        };
        Ok(Handled { answer: None, notice })
    }

    /// Answers a XEP-0250 query of `asker` about `owner`, who cannot be reached: the methods that both have.
    ///
    /// # Errors
    /// The refusal for the asker.
    pub async fn offer(
        &self,
        asker: &BareJid,
        owner: &BareJid,
        query: &Element,
    ) -> Result<Element, RegistryRefusal> {
        let own = self.profile(asker).await?;
        let mut methods: Vec<Method> = Vec::new();
        for keyinfo in query.children().filter(|c| c.is("keyinfo", ns::TMP_PUBKEY)).take(32) {
            let print = keyinfo
                .get_child("name", ns::TMP_PUBKEY)
                .and_then(|name| Print::parse(&name.text(), None).ok());
            if let Some(print) = print {
                methods.push(verdict::resolve_method(&own.keys, &print));
            }
        }
        let mut offer = Element::bare("offer", ns::C2CTLS);
        let now = OffsetDateTime::now_utc();
        for key in self.visible_keys(asker, owner).await? {
            let good = key.state == State::Active && key.expires.is_none_or(|end| end > now);
            if !good || !methods.contains(&key.method) {
                continue;
            }
            // The XEP's own prints are SHA-1; a key without one is named by another print.
            let print = key
                .prints
                .iter()
                .find(|print| print.hash() == HashKind::Sha1)
                .or_else(|| key.prints.first());
            if let Some(print) = print {
                let mut keyinfo = Element::bare("keyinfo", ns::TMP_PUBKEY);
                let name = print.to_string().replace(':', "").to_lowercase();
                keyinfo.append_child(with_text("name", ns::TMP_PUBKEY, &name));
                offer.append_child(keyinfo);
            }
        }
        Ok(offer)
    }

    /// Answers a XEP-0189 request of `asker` for the key of `owner` (section 6).
    ///
    /// # Errors
    /// The refusal for the asker.
    pub async fn pubkey(
        &self,
        asker: &BareJid,
        owner: &BareJid,
    ) -> Result<Element, RegistryRefusal> {
        let keys = self.visible_keys(asker, owner).await?;
        let key = keys
            .iter()
            .filter(|key| is_certificate(key))
            .max_by_key(|key| (key.assurance, key.created))
            .ok_or(RegistryRefusal::NoPublicKey)?;
        let der = self.store.material(key.id).await?.ok_or(RegistryRefusal::NoPublicKey)?;
        let (_, certificate) =
            X509Certificate::from_der(&der).map_err(|_| RegistryRefusal::NoPublicKey)?;
        let spki = Print::of_certificate(HashKind::SpkiSha256, &der)
            .ok_or(RegistryRefusal::NoPublicKey)?;
        let validity = certificate.validity();
        let mut pubkey = Element::bare("pubkey", ns::PUBKEY);
        for (name, text) in [
            ("begin", stamp(validity.not_before.to_datetime())),
            ("end", stamp(validity.not_after.to_datetime())),
            ("jid", owner.to_string()),
            ("key", STANDARD.encode(certificate.public_key().raw)),
            ("print", spki.to_string().replace(':', "").to_lowercase()),
        ] {
            pubkey.append_child(with_text(name, ns::PUBKEY, &text));
        }
        Ok(pubkey)
    }
}

/// Returns whether it is an active certificate.
fn is_certificate(key: &Key) -> bool {
    key.method == Method::X509 && key.state == State::Active && key.has_material
}

/// Returns the name of a certificate: its label, or its id if it has none.
fn name_of(key: &Key) -> String {
    if key.label.is_empty() { key.id.to_string() } else { key.label.clone() }
}

fn with_text(name: &str, namespace: &str, text: &str) -> Element {
    let mut element = xml::element(name, namespace, &[]);
    element.append_text(text);
    element
}

#[cfg(test)]
mod tests {
    use fingerpost_wire::stanza::{Condition, Refusal};
    use time::macros::datetime;

    use super::*;
    use crate::registry::{RegistryOptions, model::Visibility, store::Store};

    const NOW: OffsetDateTime = datetime!(2026-11-24 2:00 UTC);
    /// Example 1 of XEP-0257.
    const APPEND: &str = "<append xmlns='urn:xmpp:saslcert:1'><name>Mobile Client</name><x509cert>
      MIICCTCCAXKgAwIBAgIJALhU0Id6xxwQMA0GCSqGSIb3DQEBBQUAMA4xDDAKBgNV
      BAMTA2ZvbzAeFw0wNzEyMjgyMDA1MTRaFw0wODEyMjcyMDA1MTRaMA4xDDAKBgNV
      BAMTA2ZvbzCBnzANBgkqhkiG9w0BAQEFAAOBjQAwgYkCgYEA0DPcfeJzKWLGE22p
      RMINLKr+CxqozF14DqkXkLUwGzTqYRi49yK6aebZ9ssFspTTjqa2uNpw1U32748t
      qU6bpACWHbcC+eZ/hm5KymXBhL3Vjfb/dW0xrtxjI9JRFgrgWAyxndlNZUpN2s3D
      hKDfVgpPSx/Zp8d/ubbARxqZZZkCAwEAAaNvMG0wHQYDVR0OBBYEFJWwFqmSRGcx
      YXmQfdF+XBWkeML4MD4GA1UdIwQ3MDWAFJWwFqmSRGcxYXmQfdF+XBWkeML4oRKk
      EDAOMQwwCgYDVQQDEwNmb2+CCQC4VNCHesccEDAMBgNVHRMEBTADAQH/MA0GCSqG
      SIb3DQEBBQUAA4GBAIhlUeGZ0d0msNVxYWAXg2lRsJt9INHJQTCJMmoUeTtaRjyp
      ffJtuopguNNBDn+MjrEp2/+zLNMahDYLXaTVmBf6zvY0hzB9Ih0kNTh23Fb5j+yK
      QChPXQUo0EGCaODWhfhKRNdseUozfNWOz9iTgMGw8eYNLllQRL//iAOfOr/8
    </x509cert></append>";

    async fn registry(visibility: Visibility) -> Registry {
        let store = Store::open("sqlite::memory:", 1, true).await.unwrap();
        let component = BareJid::new("xtls.shakespeare.lit").unwrap();
        Registry::new(store, RegistryOptions { component, visibility, keys_per_user: 9 })
    }

    async fn ask(registry: &Registry, set: bool, text: &str) -> Result<Option<Element>, Refusal> {
        let from = Jid::new("hamlet@shakespeare.lit/denmark").unwrap();
        let payload: Element = text.parse().unwrap();
        let handled = registry.handle_saslcert(&from, set, &payload, NOW).await?;
        Ok(handled.answer)
    }

    #[tokio::test]
    async fn the_stanzas_of_xep_0257_work() {
        let registry = registry(Visibility::Everyone).await;
        assert_eq!(ask(&registry, true, APPEND).await.unwrap(), None);
        assert_eq!(ask(&registry, true, APPEND).await.unwrap_err().condition, Condition::Conflict);
        let items = "<items xmlns='urn:xmpp:saslcert:1'/>";
        let listed = ask(&registry, false, items).await.unwrap().unwrap();
        let item = listed.children().next().unwrap();
        assert_eq!(item.get_child("name", ns::SASLCERT).unwrap().text(), "Mobile Client");
        let der = item.get_child("x509cert", ns::SASLCERT).unwrap().text();
        assert!(der.starts_with("MIICCTCCAXKgAwIBAgIJALhU0Id6xxwQ"), "{der}");
        for (name, after) in [("disable", "superseded"), ("revoke", "revoked")] {
            let owner = BareJid::new("hamlet@shakespeare.lit").unwrap();
            let change =
                format!("<{name} xmlns='urn:xmpp:saslcert:1'><name>Mobile Client</name></{name}>");
            assert_eq!(ask(&registry, true, &change).await.unwrap(), None);
            let keys = registry.profile(&owner).await.unwrap().keys.clone();
            assert_eq!(keys[0].state.as_str(), after);
            let gone = ask(&registry, true, &change).await.unwrap_err();
            assert_eq!(gone.condition, Condition::ItemNotFound);
            // A fresh registry for the second test.
            if name == "disable" {
                registry.erase(&owner, &Actor::User(owner.clone()), NOW).await.unwrap();
                ask(&registry, true, APPEND).await.unwrap();
            }
        }
        let bad = APPEND.replace("MIIC", "AAAA");
        assert_eq!(ask(&registry, true, &bad).await.unwrap_err().condition, Condition::BadRequest);
    }

    #[tokio::test]
    async fn offers_and_public_keys_tell_nothing_of_hidden_users() {
        let query: Element =
            "<offer xmlns='urn:xmpp:tmp:c2ctls'><keyinfo xmlns='urn:xmpp:tmp:pubkey'>\
            <name>428b1358a286430f628da23fb33ddaf6e474f5c5</name></keyinfo><srp/></offer>"
                .parse()
                .unwrap();
        let hamlet = BareJid::new("hamlet@shakespeare.lit").unwrap();
        let romeo = BareJid::new("romeo@montague.lit").unwrap();
        let nobody = BareJid::new("nobody@shakespeare.lit").unwrap();
        for visibility in [Visibility::Everyone, Visibility::Nobody] {
            let registry = registry(visibility).await;
            ask(&registry, true, APPEND).await.unwrap();
            let print = Print::parse(&"ab".repeat(20), None).unwrap();
            let new = NewKey::of_prints(Method::X509, vec![print], "", Source::Self_).unwrap();
            let from = Jid::new("hamlet@shakespeare.lit/denmark").unwrap();
            registry.add(&from, &new, NOW).await.unwrap();
            let offer = registry.offer(&romeo, &hamlet, &query).await.unwrap();
            let unknown = registry.offer(&romeo, &nobody, &query).await.unwrap();
            let key = registry.pubkey(&romeo, &hamlet).await;
            let no_key = registry.pubkey(&romeo, &nobody).await.unwrap_err();
            if visibility == Visibility::Nobody {
                assert_eq!((offer, key.unwrap_err()), (unknown, no_key));
                continue;
            }
            let name = offer.children().next().unwrap().children().next().unwrap().text();
            assert_eq!(name, "ab".repeat(20), "the certificate has expired");
            let key = key.unwrap();
            assert_eq!(key.get_child("jid", ns::PUBKEY).unwrap().text(), hamlet.as_str());
            assert_eq!(key.get_child("end", ns::PUBKEY).unwrap().text(), "2008-12-27T20:05:14Z");
        }
    }
}
