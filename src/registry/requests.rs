//! Requests in `urn:fingerpost:keys:0`.
//!
//! | request | answer |
//! |---|---|
//! | get `<keys jid='…'/>` (no jid: the asker's own) | `<keys/>` with every key; unknown, hidden and keyless look the same |
//! | get `<key id='…' material='true'/>` | the key, with its certificate if asked |
//! | set `<add><key method='…'><print/>… or <material/></key></add>` | the stored key |
//! | set `<revoke id='…' reason='…'/>` | the key, revoked |
//! | get `<challenge id='…'/>` | `<challenge id nonce expires/>` |
//! | set `<prove id='…'><signature/></prove>` | the key, proven |
//! | get `<settings/>`, set `<settings visibility='…'><allow jid='…'/></settings>` | the settings |
//! | get `<export/>` | everything held about the asker |
//! | set `<erase confirm='…'/>` | an empty result: all of it is gone |
//!
//! `keys` and `export` come in pages (XEP-0059) if the request asks for one, or if the whole answer does not fit in a
//! stanza.

use base64::{Engine, engine::general_purpose::STANDARD};
use fingerpost_secure::{
    material::{Material, TEXT_MAX},
    material_error::MaterialError,
};
use fingerpost_wire::{
    jid::canonical_bare,
    key::{KeyId, stamp},
    ns,
    print::{HashKind, Method, Print},
    rsm, size,
    stanza::RequestKind,
    xml,
};
use jid::{BareJid, Jid};
use minidom::Element;
use time::OffsetDateTime;

use super::{
    Changed, KeyNotice, Registry,
    model::{
        ALLOWED_MAX, Actor, Key, KeyError, NewKey, NotAllowed, Settings, Source, Visibility,
        check_reason,
    },
    refusal::RegistryRefusal,
};

/// The answer to a request, and the message for the owner of a changed key.
#[derive(Clone, Debug)]
pub struct Handled {
    /// The payload of the result; none for an empty one.
    pub answer: Option<Element>,
    /// The message for the owner.
    pub notice: Option<KeyNotice>,
}

impl From<Element> for Handled {
    fn from(answer: Element) -> Self {
        Self { answer: Some(answer), notice: None }
    }
}

impl Handled {
    /// Returns the answer with a changed key as it is now.
    fn changed((key, notice): Changed, now: OffsetDateTime) -> Self {
        Self { answer: Some(to_element_as_of(&key, None, now)), notice }
    }
}

impl Registry {
    /// Answers one request of the user at `from`.
    ///
    /// # Errors
    /// The refusal for the asker.
    pub async fn handle(
        &self,
        from: &Jid,
        kind: RequestKind,
        payload: &Element,
        now: OffsetDateTime,
    ) -> Result<Handled, RegistryRefusal> {
        self.handle_within(from, kind, payload, now, size::DEFAULT).await
    }

    /// Answers one request of the user at `from`; the payload of the answer may be `room` bytes long.
    ///
    /// # Errors
    /// The refusal for the asker.
    pub async fn handle_within(
        &self,
        from: &Jid,
        kind: RequestKind,
        payload: &Element,
        now: OffsetDateTime,
        room: usize,
    ) -> Result<Handled, RegistryRefusal> {
        let asker = from.to_bare();
        match (kind, payload.name()) {
            (RequestKind::Get, "keys") => {
                let owner = match payload.attr("jid") {
                    Some(text) => canonical_bare(text).ok_or(RegistryRefusal::OwnerJid)?,
                    None => asker.clone(),
                };
                let mut keys = xml::element("keys", ns::KEYS, &[("jid", owner.as_str())]);
                let listed = self.visible_keys(&asker, &owner).await?;
                let request = rsm::PageRequest::read(payload)?;
                let position = request
                    .as_ref()
                    .and_then(rsm::PageRequest::uid)
                    .and_then(|uid| listed.iter().position(|key| key.id.to_string() == uid));
                let room = rsm::room_inside(&keys, room);
                let mut page = rsm::Page::new(request.as_ref(), listed.len(), position, room)?;
                while let Some(number) = page.wants() {
                    let key = to_element_as_of(&listed[number], None, now);
                    let size = rsm::size_inside(&key)?;
                    page.offer(listed[number].id.to_string(), size, key)?;
                }
                page.finish_in(&mut keys);
                Ok(keys.into())
            }
            (RequestKind::Get, "key") => {
                let id = id(payload)?;
                let key = self.visible_key(&asker, id).await?;
                let material = match payload.attr("material") {
                    Some("true" | "1") => self.store.material(id).await?,
                    _ => None,
                };
                Ok(to_element_as_of(&key, material.as_deref(), now).into())
            }
            (RequestKind::Get, "challenge") => {
                let id = id(payload)?;
                let (nonce, expires) = self.challenge(&asker, id, now).await?;
                Ok(xml::element(
                    "challenge",
                    ns::KEYS,
                    &[
                        ("id", &id.to_string()),
                        ("nonce", &STANDARD.encode(nonce)),
                        ("expires", &stamp(expires)),
                    ],
                )
                .into())
            }
            (RequestKind::Get, "settings") => {
                Ok(settings_element(&self.settings(&asker).await?).into())
            }
            (RequestKind::Get, "export") => {
                let request = rsm::PageRequest::read(payload)?;
                Ok(self.export(&asker, request.as_ref(), room, now).await?.into())
            }
            (RequestKind::Set, "add") => {
                let new = read_new(payload)?;
                let (key, notice) = self.add(from, &new, now).await?;
                let mut answer = to_element_as_of(&key, None, now);
                if let Some(text) = new.note(&key, now) {
                    let mut note = Element::bare("note", ns::KEYS);
                    note.append_text(text);
                    answer.append_child(note);
                }
                Ok(Handled { answer: Some(answer), notice })
            }
            (RequestKind::Set, "revoke") => {
                let reason = check_reason(payload.attr("reason").unwrap_or_default())
                    .map_err(RegistryRefusal::invalid)?;
                let actor = Actor::User(asker);
                let changed = self.revoke(from, &actor, id(payload)?, &reason, now).await?;
                Ok(Handled::changed(changed, now))
            }
            (RequestKind::Set, "prove") => {
                let signature = only(payload, "signature", RegistryRefusal::SeveralSignatures)?
                    .and_then(|signature| unbase64(&signature.text()))
                    .ok_or(RegistryRefusal::NoSignature)?;
                let changed = self.prove(from, id(payload)?, &signature, now).await?;
                Ok(Handled::changed(changed, now))
            }
            (RequestKind::Set, "settings") => {
                let settings = read_settings(payload)?;
                self.set_settings(&asker, &settings, now).await?;
                Ok(settings_element(&settings).into())
            }
            (RequestKind::Set, "erase") => {
                let confirm = payload.attr("confirm").and_then(canonical_bare);
                if confirm.as_ref() != Some(&asker) {
                    return Err(RegistryRefusal::Unconfirmed);
                }
                self.erase(&asker, &Actor::User(asker.clone()), now).await?;
                Ok(Handled { answer: None, notice: None })
            }
            (RequestKind::Get, _) => Err(RegistryRefusal::UnknownGet),
            (RequestKind::Set, _) => Err(RegistryRefusal::UnknownSet),
        }
    }
}

fn unbase64(text: &str) -> Option<Vec<u8>> {
    let text: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    STANDARD.decode(text).ok()
}

fn settings_element(settings: &Settings) -> Element {
    let mut element =
        xml::element("settings", ns::KEYS, &[("visibility", settings.visibility.as_str())]);
    for jid in &settings.allowed {
        element.append_child(allow_element(jid));
    }
    element
}

pub(super) fn allow_element(jid: &BareJid) -> Element {
    xml::element("allow", ns::KEYS, &[("jid", jid.as_str())])
}

fn read_settings(element: &Element) -> Result<Settings, RegistryRefusal> {
    let visibility = element
        .attr("visibility")
        .unwrap_or_default()
        .parse::<Visibility>()
        .map_err(|error| RegistryRefusal::Invalid(format!("visibility: {error}")))?;
    let mut allowed = Vec::new();
    for allow in element.children().filter(|child| child.is("allow", ns::KEYS)) {
        let jid = allow.attr("jid").and_then(canonical_bare).ok_or(RegistryRefusal::AllowedJid)?;
        if !allowed.contains(&jid) {
            allowed.push(jid);
        }
    }
    if allowed.len() > ALLOWED_MAX {
        return Err(RegistryRefusal::TooManyAllowed);
    }
    allowed.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    Ok(Settings { visibility, allowed })
}

fn id(payload: &Element) -> Result<KeyId, RegistryRefusal> {
    let text = payload.attr("id").ok_or(RegistryRefusal::NoKeyId)?;
    text.parse().map_err(|_| NotAllowed::NoSuchKey.into())
}

/// Returns the child of this name, if there is one.
///
/// # Errors
/// The refusal with their number, if there are several: none of them may be dropped silently.
fn only<'a>(
    parent: &'a Element,
    name: &str,
    several: fn(usize) -> RegistryRefusal,
) -> Result<Option<&'a Element>, RegistryRefusal> {
    let mut found = parent.children().filter(|child| child.is(name, ns::KEYS));
    let first = found.next();
    match found.count() {
        0 => Ok(first),
        more => Err(several(more + 1)),
    }
}

fn read_new(add: &Element) -> Result<NewKey, RegistryRefusal> {
    let key = only(add, "key", RegistryRefusal::SeveralKeys)?.ok_or(RegistryRefusal::NoKey)?;
    let method: Method =
        key.attr("method").unwrap_or_default().parse().map_err(RegistryRefusal::invalid)?;
    if method == Method::Srp {
        return Err(RegistryRefusal::invalid(KeyError::Method));
    }
    let mut prints = Vec::new();
    for element in key.children().filter(|child| child.is("print", ns::KEYS)) {
        let hash = match element.attr("hash") {
            Some(text) => Some(text.parse::<HashKind>().map_err(RegistryRefusal::invalid)?),
            None => None,
        };
        prints.push(Print::read(&element.text(), method, hash).map_err(RegistryRefusal::invalid)?);
    }
    let replaces = match key.attr("replaces") {
        Some(text) => Some(text.parse::<KeyId>().map_err(|_| NotAllowed::NotReplaceable)?),
        None => None,
    };
    let label = key.attr("label").unwrap_or_default();
    let new = match only(key, "material", RegistryRefusal::SeveralMaterials)? {
        Some(material) => {
            let text = material.text();
            if text.len() > TEXT_MAX * 2 {
                return Err(RegistryRefusal::invalid(MaterialError::TooLarge));
            }
            let bytes = unbase64(&text).ok_or(RegistryRefusal::MaterialCode)?;
            let material = Material::parse(method, &bytes).map_err(RegistryRefusal::invalid)?;
            NewKey::of_material(material, &prints, label, Source::Self_)
        }
        None => NewKey::of_prints(method, prints, label, Source::Self_),
    };
    Ok(new.map_err(RegistryRefusal::invalid)?.replacing(replaces))
}

/// Returns a key as others see it now: an expired one is superseded, and says so.
pub(super) fn to_element_as_of(key: &Key, material: Option<&[u8]>, now: OffsetDateTime) -> Element {
    let mut element = to_element(&key.as_of(now), material);
    if key.is_expired(now) {
        xml::set(&mut element, "expired", "true");
    }
    element
}

fn to_element(key: &Key, material: Option<&[u8]>) -> Element {
    let mut element = xml::element(
        "key",
        ns::KEYS,
        &[
            ("id", &key.id.to_string()),
            ("method", key.method.as_str()),
            ("state", key.state.as_str()),
            ("assurance", key.assurance.as_str()),
            ("source", key.source.as_str()),
            ("label", &key.label),
            ("created", &stamp(key.created)),
        ],
    );
    if let Some(expires) = key.expires {
        xml::set(&mut element, "expires", &stamp(expires));
    }
    for print in &key.prints {
        let mut child = xml::element("print", ns::KEYS, &[("hash", print.hash().as_str())]);
        child.append_text(print.to_string());
        element.append_child(child);
    }
    if let Some(material) = material {
        let mut child = Element::bare("material", ns::KEYS);
        child.append_text(STANDARD.encode(material));
        element.append_child(child);
    }
    element
}

#[cfg(test)]
mod tests {
    use fingerpost_wire::stanza::{Condition, Refusal};
    use time::macros::datetime;

    use super::*;
    use crate::registry::{RegistryOptions, model::Visibility, store::Store};

    const NOW: OffsetDateTime = datetime!(2026-11-24 2:00 UTC);
    const SEED: &str = "72:72:DF:06:3A:4D:7D:80:97:0E:53:77:0A:8F:CD:A9:80:A3:CB:38";

    async fn registry(visibility: Visibility) -> Registry {
        let store = Store::open("sqlite::memory:", 1, true).await.unwrap();
        let component = BareJid::new("xtls.m.lit").unwrap();
        Registry::new(store, RegistryOptions { component, visibility, keys_per_user: 2 })
    }

    async fn ask(
        registry: &Registry,
        who: &str,
        kind: RequestKind,
        text: &str,
    ) -> Result<Element, Refusal> {
        let payload: Element = text.parse().unwrap();
        let from = Jid::new(&format!("{who}/here")).unwrap();
        let handled = registry.handle(&from, kind, &payload, NOW).await?;
        Ok(handled.answer.unwrap_or_else(|| Element::bare("empty", ns::KEYS)))
    }

    fn add(print: &str) -> String {
        format!(
            "<add xmlns='urn:fingerpost:keys:0'><key method='x509' label='laptop'><print>{print}</print></key></add>"
        )
    }

    #[tokio::test]
    async fn a_key_is_added_listed_and_revoked() {
        let registry = registry(Visibility::Everyone).await;
        let lower = SEED.replace(':', "").to_lowercase();
        let key = ask(&registry, "romeo@m.lit", RequestKind::Set, &add(&lower)).await.unwrap();
        let expected = [
            ("method", "x509"),
            ("state", "active"),
            ("assurance", "asserted"),
            ("source", "self"),
            ("label", "laptop"),
            ("created", "2026-11-24T02:00:00Z"),
        ];
        for (name, value) in expected {
            assert_eq!(key.attr(name), Some(value), "{name}");
        }
        let print = key.get_child("print", ns::KEYS).unwrap();
        assert_eq!((print.attr("hash"), print.text().as_str()), (Some("sha-1"), SEED));
        let get = "<keys xmlns='urn:fingerpost:keys:0' jid='romeo@m.lit'/>";
        let keys = ask(&registry, "juliet@c.lit", RequestKind::Get, get).await.unwrap();
        let mut key = key;
        let note = key.remove_child("note", ns::KEYS).unwrap().text();
        assert!(note.contains("another hash"), "the disadvantages without the certificate: {note}");
        assert_eq!(keys.children().collect::<Vec<_>>(), [&key]);
        let id = key.attr("id").unwrap();
        let revoke = format!("<revoke xmlns='urn:fingerpost:keys:0' id='{id}' reason='lost'/>");
        let foreign = ask(&registry, "juliet@c.lit", RequestKind::Set, &revoke).await.unwrap_err();
        assert_eq!(foreign.condition, Condition::ItemNotFound);
        let revoked = ask(&registry, "romeo@m.lit", RequestKind::Set, &revoke).await.unwrap();
        assert_eq!(revoked.attr("state"), Some("revoked"));
    }

    #[tokio::test]
    async fn hidden_unknown_and_keyless_users_look_the_same() {
        let registry = registry(Visibility::Nobody).await;
        ask(&registry, "romeo@m.lit", RequestKind::Set, &add(SEED)).await.unwrap();
        let get = |jid: &str| format!("<keys xmlns='urn:fingerpost:keys:0' jid='{jid}'/>");
        let hidden =
            ask(&registry, "j@c.lit", RequestKind::Get, &get("romeo@m.lit")).await.unwrap();
        let unknown =
            ask(&registry, "j@c.lit", RequestKind::Get, &get("nobody@m.lit")).await.unwrap();
        assert_eq!(hidden.nodes().len(), 0);
        assert_eq!(String::from(&hidden).replace("romeo", "nobody"), String::from(&unknown));
        let own = "<keys xmlns='urn:fingerpost:keys:0'/>";
        let own = ask(&registry, "romeo@m.lit", RequestKind::Get, own).await.unwrap();
        assert_eq!(own.children().count(), 1);
    }

    #[tokio::test]
    async fn bad_content_is_refused_with_what_was_expected() {
        let registry = registry(Visibility::Everyone).await;
        let private = STANDARD.encode(format!(
            "-----BEGIN PRIVATE {0}-----\nAA==\n-----END PRIVATE {0}-----\n",
            "KEY"
        ));
        for (request, says) in [
            (add("zz"), "hexadecimal"),
            (add("7272"), "hexadecimal digits, found 4"),
            ("<add xmlns='urn:fingerpost:keys:0'/>".to_owned(), "Expected a key"),
            (add(SEED).replace("x509", "dsa"), "x509, openpgp or srp"),
            (add(SEED).replace("x509", "srp"), "srp has no keys"),
            (
                add(SEED).replace("</add>", "<key method='x509'/></add>"),
                "Expected one key with prints or material, found 2",
            ),
            (
                add(SEED).replace("</key>", "<material/><material/></key>"),
                "Expected one material in a key, found 2",
            ),
            (
                format!(
                    "<add xmlns='urn:fingerpost:keys:0'><key method='x509'><material>{private}</material></key></add>"
                ),
                "private key",
            ),
        ] {
            let refusal = ask(&registry, "r@m.lit", RequestKind::Set, &request).await.unwrap_err();
            assert_eq!(refusal.condition, Condition::BadRequest, "{request}");
            assert!(refusal.text.contains(says), "{request}: {}", refusal.text);
        }
    }
}
