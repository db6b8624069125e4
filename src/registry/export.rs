//! All that is held about a user, as XML, in pages.
//!
//! | item | its name (UID) | where it stands |
//! |---|---|---|
//! | a key with its certificate | `key-ID` | in `<keys/>` |
//! | the settings, if the user has made any | `settings` | `<settings visibility='…'/>` |
//! | a user who may see the keys | `allow-JID` | in `<settings/>` |
//! | a row of the audit log | `entry-NUMBER` | in `<audit/>` |
//!
//! The items are in this order. Keys and rows are never removed one by one and new ones come last in their parts, so a
//! user who follows the pages gets each item once, whatever changes meanwhile.

use jid::BareJid;
use minidom::Element;

use super::{
    Registry,
    model::{Actor, AuditEntry, stamp},
    requests::{allow_element, to_element},
    store::{Profile, StoreError},
};
use crate::xmpp::{
    ns,
    rsm::{self, Page, Request},
    stanza::Refusal,
    xml,
};

/// Rows of the audit log that are read at once.
const ROWS: usize = 200;

/// A part of the export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Key,
    Settings,
    Allow,
    Entry,
}

/// How many items there are of each part, and so which item has which number.
#[derive(Clone, Copy, Debug)]
struct Layout {
    keys: usize,
    settings: usize,
    allowed: usize,
    entries: usize,
}

impl Layout {
    fn count(self) -> usize {
        self.keys + self.settings + self.allowed + self.entries
    }

    /// The part that the item of a number belongs to, and its number there.
    fn part(self, number: usize) -> (Part, usize) {
        let mut number = number;
        for (part, count) in
            [(Part::Key, self.keys), (Part::Settings, self.settings), (Part::Allow, self.allowed)]
        {
            if number < count {
                return (part, number);
            }
            number -= count;
        }
        (Part::Entry, number)
    }

    /// The number of an item of a part.
    fn number(self, part: Part, number: usize) -> usize {
        number
            + match part {
                Part::Key => 0,
                Part::Settings => self.keys,
                Part::Allow => self.keys + self.settings,
                Part::Entry => self.keys + self.settings + self.allowed,
            }
    }
}

impl Registry {
    /// Everything held about a user, or the page of it that is asked for; it may be `room` bytes long.
    ///
    /// # Errors
    /// The refusal that the asker gets.
    pub async fn export(
        &self,
        owner: &BareJid,
        request: Option<&Request>,
        room: usize,
    ) -> Result<Element, Refusal> {
        let profile = self.profile(owner).await?;
        // Rows that are written meanwhile do not count, or the numbers of the others would change.
        let newest = self.store.audit_page(Some(owner), None, 0, 1).await?;
        let newest = newest.first().map_or(0, |entry| entry.seq);
        let layout = Layout {
            keys: profile.keys.len(),
            settings: usize::from(profile.settings.is_some()),
            allowed: profile.settings.as_ref().map_or(0, |settings| settings.allowed.len()),
            entries: self.store.audit_count(owner, newest).await?,
        };
        let position = match request.and_then(Request::uid) {
            Some(uid) => self.position(owner, &profile, layout, uid).await?,
            None => None,
        };
        let mut keys = xml::element("keys", ns::KEYS, &[("jid", owner.as_str())]);
        let mut settings = Element::bare("settings", ns::KEYS);
        let mut audit = Element::bare("audit", ns::KEYS);
        if let Some(known) = &profile.settings {
            xml::set(&mut settings, "visibility", known.visibility.as_str());
        }
        let mut export = xml::element("export", ns::KEYS, &[("jid", owner.as_str())]);
        let mut rest = rsm::room_inside(&export, room);
        for (part, is_there, is_filled) in [
            (&keys, true, layout.keys > 0),
            (&settings, profile.settings.is_some(), layout.allowed > 0),
            (&audit, true, layout.entries > 0),
        ] {
            let close = if is_filled { part.name().len() + 2 } else { 0 };
            let own = if is_there { rsm::size_inside(part)? + close } else { 0 };
            rest = rest.saturating_sub(own);
        }
        let mut page = Page::new(request, layout.count(), position, rest)?;
        let mut rows: (usize, Vec<AuditEntry>) = (0, Vec::new());
        while let Some(number) = page.wants() {
            let (part, number) = layout.part(number);
            let (uid, element) = match part {
                Part::Key => {
                    let key = &profile.keys[number];
                    let material = self.store.material(key.id).await?;
                    (format!("key-{}", key.id), Some(to_element(key, material.as_deref())))
                }
                // Its room is taken already.
                Part::Settings => ("settings".to_owned(), None),
                Part::Allow => {
                    let allowed =
                        profile.settings.as_ref().and_then(|known| known.allowed.get(number));
                    let jid = allowed.ok_or_else(Refusal::internal)?;
                    (format!("allow-{jid}"), Some(allow_element(jid)))
                }
                Part::Entry => {
                    if number.checked_sub(rows.0).is_none_or(|at| at >= rows.1.len()) {
                        rows = self.rows(owner, newest, layout.entries, number).await?;
                    }
                    let at = number.checked_sub(rows.0);
                    let entry = at.and_then(|at| rows.1.get(at)).ok_or_else(Refusal::internal)?;
                    (format!("entry-{}", entry.seq), Some(entry_element(entry, owner)))
                }
            };
            let size = element.as_ref().map_or(Ok(0), rsm::size_inside)?;
            page.offer(uid, size, (part, element))?;
        }
        let (items, set) = page.finish();
        // On a page that begins among the users who are allowed, the settings themselves have been told.
        if !items.iter().any(|(part, _)| *part == Part::Settings) {
            settings = Element::bare("settings", ns::KEYS);
        }
        let has_settings =
            items.iter().any(|(part, _)| matches!(part, Part::Settings | Part::Allow));
        for (part, element) in items {
            let Some(element) = element else { continue };
            match part {
                Part::Key => keys.append_child(element),
                Part::Settings | Part::Allow => settings.append_child(element),
                Part::Entry => audit.append_child(element),
            };
        }
        export.append_child(keys);
        if has_settings {
            export.append_child(settings);
        }
        export.append_child(audit);
        if let Some(set) = set {
            export.append_child(set);
        }
        Ok(export)
    }

    /// The number of the item of this name.
    async fn position(
        &self,
        owner: &BareJid,
        profile: &Profile,
        layout: Layout,
        uid: &str,
    ) -> Result<Option<usize>, StoreError> {
        let number = |part, number: Option<usize>| number.map(|number| layout.number(part, number));
        let (part, name) = uid.split_once('-').unwrap_or((uid, ""));
        Ok(match part {
            "key" => {
                let keys = &mut profile.keys.iter();
                number(Part::Key, keys.position(|key| key.id.to_string() == name))
            }
            "settings" if uid == "settings" => {
                number(Part::Settings, profile.settings.as_ref().map(|_| 0))
            }
            "allow" => {
                let allowed = profile.settings.iter().flat_map(|settings| &settings.allowed);
                number(Part::Allow, allowed.into_iter().position(|jid| jid.as_str() == name))
            }
            "entry" => {
                let Ok(seq) = name.parse::<i64>() else { return Ok(None) };
                let last = self.store.audit_page(Some(owner), Some(seq), 0, 1).await?;
                if last.first().is_none_or(|entry| entry.seq != seq) {
                    return Ok(None);
                }
                number(Part::Entry, self.store.audit_count(owner, seq).await?.checked_sub(1))
            }
            _ => None,
        })
    }

    /// Rows of the audit log around one, oldest first, and the number of the first of them. `count` is how many there
    /// are up to `newest`.
    async fn rows(
        &self,
        owner: &BareJid,
        newest: i64,
        count: usize,
        number: usize,
    ) -> Result<(usize, Vec<AuditEntry>), StoreError> {
        let first = number - number % ROWS;
        let end = (first + ROWS).min(count);
        let skip = u32::try_from(count - end).unwrap_or(u32::MAX);
        let limit = u32::try_from(end - first).unwrap_or(u32::MAX);
        let mut rows = self.store.audit_page(Some(owner), Some(newest), skip, limit).await?;
        rows.reverse();
        Ok((first, rows))
    }
}

/// A row of the audit log as its user may see it.
fn entry_element(entry: &AuditEntry, owner: &BareJid) -> Element {
    let mut row = xml::element(
        "entry",
        ns::KEYS,
        &[("at", &stamp(entry.at)), ("event", entry.event.as_str())],
    );
    if let Some(id) = entry.key {
        xml::set(&mut row, "key", &id.to_string());
    }
    let by = match &entry.actor {
        Some(Actor::User(jid)) if jid == owner => Some("self"),
        Some(Actor::User(_)) => Some("user"),
        Some(Actor::Admin(_) | Actor::Offline) => Some("admin"),
        None => None,
    };
    if let Some(by) = by {
        xml::set(&mut row, "by", by);
    }
    row
}

#[cfg(test)]
mod tests {
    use jid::Jid;
    use time::{OffsetDateTime, macros::datetime};

    use super::*;
    use crate::{
        print::{HashKind, Method, Print},
        registry::{
            Options,
            material::Material,
            model::{NewKey, Settings, Source, Visibility},
            requests::RequestKind,
            store::Store,
        },
        tls::identity::Identity,
        xmpp::size,
    };

    const NOW: OffsetDateTime = datetime!(2026-11-24 2:00 UTC);

    fn romeo() -> Jid {
        Jid::new("romeo@montague.lit/orchard").unwrap()
    }

    async fn registry() -> Registry {
        let store = Store::open("sqlite::memory:", 1, true).await.unwrap();
        let component = BareJid::new("xtls.montague.lit").unwrap();
        let visibility = Visibility::Everyone;
        Registry::new(store, Options { component, visibility, keys_per_user: 100 })
    }

    async fn add(registry: &Registry, number: usize) {
        let bytes: Vec<u8> = number.to_be_bytes().into_iter().cycle().take(32).collect();
        let print = Print::new(HashKind::Sha256, &bytes).unwrap();
        let label = format!("{number:064}");
        let new = NewKey::of_prints(Method::X509, vec![print], &label, Source::Self_).unwrap();
        let now = NOW + time::Duration::seconds(i64::try_from(number).unwrap());
        registry.add(&romeo(), &new, now).await.unwrap();
    }

    async fn add_certificate(registry: &Registry, label: &str) {
        let identity = Identity::generate(&romeo().to_bare()).unwrap();
        let material = Material::parse(Method::X509, &identity.certificate).unwrap();
        let new = NewKey::of_material(material, &[], label, Source::Self_).unwrap();
        registry.add(&romeo(), &new, NOW).await.unwrap();
    }

    async fn ask(registry: &Registry, request: &str, room: usize) -> Result<Element, Refusal> {
        let payload: Element = request.parse().unwrap();
        let handled = if payload.has_ns(ns::SASLCERT) {
            registry.handle_saslcert_within(&romeo(), false, &payload, NOW, room).await
        } else {
            registry.handle_within(&romeo(), RequestKind::Get, &payload, NOW, room).await
        };
        handled.map(|handled| handled.answer.unwrap())
    }

    /// Everything in a payload that is an item of its own, as XML.
    fn items(payload: &Element) -> Vec<String> {
        let mut found = Vec::new();
        for child in payload.children() {
            match child.name() {
                "set" => {}
                "keys" | "audit" => found.extend(child.children().map(String::from)),
                "settings" => {
                    found.extend(child.attr("visibility").map(str::to_owned));
                    found.extend(child.children().map(String::from));
                }
                _ => found.push(String::from(child)),
            }
        }
        found
    }

    /// All items of all pages, by as many pages as it takes.
    async fn follow(registry: &Registry, request: &str, room: usize) -> (Vec<String>, usize) {
        let (mut found, mut pages, mut set) = (Vec::new(), 0, None);
        loop {
            let mut payload: Element = request.parse().unwrap();
            payload.append_child_opt(set.take());
            let answer = ask(registry, &String::from(&payload), room).await.unwrap();
            assert!(size::of(&answer).unwrap() <= room, "page {pages}");
            pages += 1;
            let new = items(&answer);
            let part = rsm::Part::read(&answer, new.len());
            found.extend(new);
            match part.last.filter(|_| part.more) {
                Some(last) => set = Some(rsm::after(&last)),
                None => return (found, pages),
            }
        }
    }

    trait AppendOptional {
        fn append_child_opt(&mut self, child: Option<Element>);
    }

    impl AppendOptional for Element {
        fn append_child_opt(&mut self, child: Option<Element>) {
            if let Some(child) = child {
                self.append_child(child);
            }
        }
    }

    const REQUESTS: [&str; 3] = [
        "<keys xmlns='urn:fingerpost:keys:0'/>",
        "<export xmlns='urn:fingerpost:keys:0'/>",
        "<items xmlns='urn:xmpp:saslcert:1'/>",
    ];

    /// Keys with and without certificates, settings, and an audit log.
    async fn filled() -> Registry {
        let registry = registry().await;
        for number in 0..20 {
            add(&registry, number).await;
            add_certificate(&registry, &format!("certificate {number}")).await;
        }
        let allowed = (0..30).map(|number| format!("user{number:02}@capulet.lit"));
        let allowed = allowed.map(|jid| BareJid::new(&jid).unwrap()).collect();
        let settings = Settings { visibility: Visibility::Listed, allowed };
        registry.set_settings(&romeo().to_bare(), &settings, NOW).await.unwrap();
        registry
    }

    #[tokio::test]
    async fn what_fits_to_the_byte_is_whole_and_else_each_item_is_on_one_page() {
        let registry = filled().await;
        for request in REQUESTS {
            let whole = ask(&registry, request, usize::MAX).await.unwrap();
            assert!(!whole.has_child("set", ns::RSM));
            let size = size::of(&whole).unwrap();
            for room in [size + 1, size] {
                assert_eq!(ask(&registry, request, room).await.unwrap(), whole, "{request}");
            }
            for room in [size - 1, size / 2, 3_000] {
                let (found, pages) = follow(&registry, request, room).await;
                assert!(pages > 1, "{request}");
                assert_eq!(found, items(&whole), "{request} {room}");
            }
            let refusal = ask(&registry, request, 500).await.unwrap_err();
            assert_eq!(refusal.condition, "policy-violation", "{request}");
        }
    }

    #[tokio::test]
    async fn names_of_pages_lead_to_every_item_and_unknown_ones_to_none() {
        let registry = filled().await;
        for request in REQUESTS {
            let whole = items(&ask(&registry, request, usize::MAX).await.unwrap());
            let page = |set: &str| {
                let set = format!("<set xmlns='{}'>{set}</set>", ns::RSM);
                request
                    .replace("/>", &format!(">{set}</{}>", &request[1..request.find(' ').unwrap()]))
            };
            let mut after = String::new();
            for item in &whole {
                let request = page(&format!("<max>1</max>{after}"));
                let answer = ask(&registry, &request, usize::MAX).await.unwrap();
                assert_eq!(items(&answer), std::slice::from_ref(item), "{request}");
                let set = answer.get_child("set", ns::RSM).unwrap();
                let last = set.get_child("last", ns::RSM).unwrap().text();
                // Back again to the one in front of it.
                let before = page(&format!("<max>1</max><before>{last}</before>"));
                let back = ask(&registry, &before, usize::MAX).await.unwrap();
                let number = whole.iter().position(|other| other == item).unwrap();
                let expected: Vec<_> =
                    number.checked_sub(1).map(|at| whole[at].clone()).into_iter().collect();
                assert_eq!(items(&back), expected, "{before}");
                after = format!("<after>{last}</after>");
            }
            for unknown in ["entry-0", "entry-x", "key-", "0123", "allow-x@y", "settings-", "x"] {
                let request = page(&format!("<after>{unknown}</after>"));
                let refusal = ask(&registry, &request, usize::MAX).await;
                assert_eq!(refusal.unwrap_err().condition, "item-not-found", "{request}");
            }
        }
    }

    #[tokio::test]
    async fn changes_between_pages_neither_repeat_nor_lose_an_item() {
        let registry = registry().await;
        for number in 0..654 {
            add(&registry, number).await;
            if number % 2 == 0 {
                let keys = registry.profile(&romeo().to_bare()).await.unwrap();
                let last = keys.keys.last().unwrap().id;
                let actor = Actor::User(romeo().to_bare());
                registry.revoke(&romeo(), &actor, last, "lost", NOW).await.unwrap();
            }
            if number % 64 == 63 {
                // Room for others: the number of active keys is limited.
                let keys = registry.profile(&romeo().to_bare()).await.unwrap();
                for key in keys.keys.iter().filter(|key| key.state.as_str() == "active") {
                    registry.retire(&romeo(), key.id, NOW).await.unwrap();
                }
            }
        }
        let id = |item: &str| {
            let element: Element = item.parse().unwrap();
            element.attr("id").map(str::to_owned)
        };
        let (before, _) = follow(&registry, REQUESTS[0], 50_000).await;
        assert_eq!(before.len(), 654);
        let mut set = None;
        let mut found = Vec::new();
        for page in 0.. {
            let mut payload: Element = REQUESTS[0].parse().unwrap();
            payload.append_child_opt(set.take());
            let answer = ask(&registry, &String::from(&payload), 50_000).await.unwrap();
            let new = items(&answer);
            let part = rsm::Part::read(&answer, new.len());
            found.extend(new);
            let Some(last) = part.last.filter(|_| part.more) else { break };
            set = Some(rsm::after(&last));
            add(&registry, 1000 + page).await;
            let actor = Actor::User(romeo().to_bare());
            let seen = last.parse().unwrap();
            registry.revoke(&romeo(), &actor, seen, "lost", NOW).await.unwrap();
        }
        let mut ids: Vec<_> = found.iter().filter_map(|item| id(item)).collect();
        assert!(before.iter().filter_map(|item| id(item)).all(|id| ids.contains(&id)));
        let all = ids.len();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), all, "none came twice");
    }
}
