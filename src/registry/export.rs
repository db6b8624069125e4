//! Everything held about a user, as XML, in pages.
//!
//! | item | its name (UID) | place |
//! |---|---|---|
//! | a key with its certificate | `key-ID` | in `<keys/>` |
//! | the settings, if the user has made any | `settings` | `<settings visibility='…'/>` |
//! | a user who may see the keys | `allow-JID` | in `<settings/>` |
//! | a row of the audit log | `entry-NUMBER` | in `<audit/>` |
//! | a session that is open | `session-SID` | in `<sessions/>` |
//!
//! The items are in this order. Keys and rows are never removed one by one, and new ones come last in their parts. So a
//! user that follows the pages gets each item once, whatever changes meanwhile. Sessions may begin and end.
//!
//! A test compares the export with every column of every table, so that none is forgotten.

use fingerpost_wire::{
    key::stamp,
    ns,
    rsm::{self, Page, PageRequest},
    xml,
};
use jid::BareJid;
use minidom::Element;
use time::OffsetDateTime;

use super::{
    Registry,
    model::{Actor, AuditEntry, AuditEvent, Key},
    refusal::RegistryRefusal,
    requests::{allow_element, to_element_as_of},
};
use crate::registry::store::{
    error::StoreError,
    records::{OpenSide, Profile, RenewableSide},
};

/// Rows of the audit log that are read at once.
const ROWS: usize = 200;

/// A part of the export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ExportPart {
    Key,
    Settings,
    Allow,
    Entry,
    Session,
}

/// The number of items of each part, which gives each item its number.
#[derive(Clone, Copy, Debug)]
struct Layout {
    keys: usize,
    settings: usize,
    allowed: usize,
    entries: usize,
    sessions: usize,
}

impl Layout {
    fn count(self) -> usize {
        self.keys + self.settings + self.allowed + self.entries + self.sessions
    }

    /// Returns the part of the item with this number, and its number within the part.
    fn part(self, number: usize) -> (ExportPart, usize) {
        let mut number = number;
        for (part, count) in [
            (ExportPart::Key, self.keys),
            (ExportPart::Settings, self.settings),
            (ExportPart::Allow, self.allowed),
            (ExportPart::Entry, self.entries),
        ] {
            if number < count {
                return (part, number);
            }
            number -= count;
        }
        (ExportPart::Session, number)
    }

    /// Returns the number of an item of a part.
    fn number(self, part: ExportPart, number: usize) -> usize {
        number
            + match part {
                ExportPart::Key => 0,
                ExportPart::Settings => self.keys,
                ExportPart::Allow => self.keys + self.settings,
                ExportPart::Entry => self.keys + self.settings + self.allowed,
                ExportPart::Session => self.keys + self.settings + self.allowed + self.entries,
            }
    }
}

impl Registry {
    /// Returns everything held about a user, or the requested page of it; it may be `room` bytes long.
    ///
    /// # Errors
    /// The refusal for the asker.
    pub async fn export(
        &self,
        owner: &BareJid,
        request: Option<&PageRequest>,
        room: usize,
        now: OffsetDateTime,
    ) -> Result<Element, RegistryRefusal> {
        let profile = self.profile(owner).await?;
        // Rows that are written meanwhile do not count; otherwise the numbers of the others would change.
        let newest = self.store.audit_page(Some(owner), None, 0, 1).await?;
        let newest = newest.first().map_or(0, |entry| entry.seq);
        let open = self.store.open_of(owner).await?;
        let layout = Layout {
            keys: profile.keys.len(),
            settings: usize::from(profile.settings.is_some()),
            allowed: profile.settings.as_ref().map_or(0, |settings| settings.allowed.len()),
            entries: self.store.audit_count(Some(owner), newest).await?,
            sessions: open.len(),
        };
        let position = match request.and_then(PageRequest::uid) {
            Some(uid) if uid.starts_with("session-") => open
                .iter()
                .position(|(side, _)| uid == session_uid(side))
                .map(|number| layout.number(ExportPart::Session, number)),
            Some(uid) => self.position(owner, &profile, layout, uid).await?,
            None => None,
        };
        let mut keys = xml::element("keys", ns::KEYS, &[("jid", owner.as_str())]);
        let mut settings = Element::bare("settings", ns::KEYS);
        let mut audit = Element::bare("audit", ns::KEYS);
        let mut sessions = Element::bare("sessions", ns::KEYS);
        if let Some(known) = &profile.settings {
            xml::set(&mut settings, "visibility", known.visibility.as_str());
        }
        let mut export = xml::element("export", ns::KEYS, &[("jid", owner.as_str())]);
        let mut rest = rsm::room_inside(&export, room);
        for (part, is_there, is_filled) in [
            (&keys, true, layout.keys > 0),
            (&settings, profile.settings.is_some(), layout.allowed > 0),
            (&audit, true, layout.entries > 0),
            (&sessions, !open.is_empty(), true),
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
                ExportPart::Key => {
                    let key = &profile.keys[number];
                    let material = self.store.material(key.id).await?;
                    (format!("key-{}", key.id), Some(key_element(key, material.as_deref(), now)))
                }
                // Its room is taken already.
                ExportPart::Settings => ("settings".to_owned(), None),
                ExportPart::Allow => {
                    let allowed =
                        profile.settings.as_ref().and_then(|known| known.allowed.get(number));
                    let jid = allowed.ok_or(RegistryRefusal::Failed)?;
                    (format!("allow-{jid}"), Some(allow_element(jid)))
                }
                ExportPart::Entry => {
                    if number.checked_sub(rows.0).is_none_or(|at| at >= rows.1.len()) {
                        rows = self.rows(owner, newest, layout.entries, number).await?;
                    }
                    let at = number.checked_sub(rows.0);
                    let entry = at.and_then(|at| rows.1.get(at)).ok_or(RegistryRefusal::Failed)?;
                    (format!("entry-{}", entry.seq), Some(entry_element(entry, owner)))
                }
                ExportPart::Session => {
                    let session = open.get(number).ok_or(RegistryRefusal::Failed)?;
                    (session_uid(&session.0), Some(session_element(session)))
                }
            };
            let size = element.as_ref().map_or(Ok(0), rsm::size_inside)?;
            page.offer(uid, size, (part, element))?;
        }
        let (items, set) = page.finish();
        // If a page begins among the allowed users, an earlier page had the settings themselves.
        if !items.iter().any(|(part, _)| *part == ExportPart::Settings) {
            settings = Element::bare("settings", ns::KEYS);
        }
        let has_settings =
            items.iter().any(|(part, _)| matches!(part, ExportPart::Settings | ExportPart::Allow));
        for (part, element) in items {
            let Some(element) = element else { continue };
            match part {
                ExportPart::Key => keys.append_child(element),
                ExportPart::Settings | ExportPart::Allow => settings.append_child(element),
                ExportPart::Entry => audit.append_child(element),
                ExportPart::Session => sessions.append_child(element),
            };
        }
        export.append_child(keys);
        if has_settings {
            export.append_child(settings);
        }
        export.append_child(audit);
        if sessions.children().next().is_some() {
            export.append_child(sessions);
        }
        if let Some(set) = set {
            export.append_child(set);
        }
        Ok(export)
    }

    /// Returns the number of the item of this name.
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
                number(ExportPart::Key, keys.position(|key| key.id.to_string() == name))
            }
            "settings" if uid == "settings" => {
                number(ExportPart::Settings, profile.settings.as_ref().map(|_| 0))
            }
            "allow" => {
                let allowed = profile.settings.iter().flat_map(|settings| &settings.allowed);
                number(ExportPart::Allow, allowed.into_iter().position(|jid| jid.as_str() == name))
            }
            "entry" => {
                let Ok(seq) = name.parse::<i64>() else { return Ok(None) };
                let last = self.store.audit_page(Some(owner), Some(seq), 0, 1).await?;
                if last.first().is_none_or(|entry| entry.seq != seq) {
                    return Ok(None);
                }
                number(
                    ExportPart::Entry,
                    self.store.audit_count(Some(owner), seq).await?.checked_sub(1),
                )
            }
            _ => None,
        })
    }

    /// Returns rows of the audit log around one, oldest first, and the number of the first. `count` is the number of
    /// rows up to `newest`.
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

/// Returns a key with everything known about it.
fn key_element(key: &Key, material: Option<&[u8]>, now: OffsetDateTime) -> Element {
    let mut element = to_element_as_of(key, material, now);
    xml::set(&mut element, "changed", &stamp(key.changed));
    if let Some(by) = key.replaced_by {
        xml::set(&mut element, "replaced-by", &by.to_string());
    }
    if !key.reason.is_empty() {
        xml::set(&mut element, "reason", &key.reason);
    }
    element
}

fn session_uid(side: &OpenSide) -> String {
    format!("session-{}", side.sid)
}

/// Returns one side of an open session, and when it began.
fn session_element((side, began): &(OpenSide, OffsetDateTime)) -> Element {
    let mut session = xml::element(
        "session",
        ns::KEYS,
        &[
            ("jid", side.user.as_str()),
            ("with", side.mask.as_str()),
            ("sid", &side.sid),
            ("namespace", &side.namespace),
            ("began", &stamp(*began)),
        ],
    );
    if let Some(RenewableSide { role, content, transport }) = &side.renewable {
        xml::set(&mut session, "role", role);
        xml::set(&mut session, "content", content);
        xml::set(&mut session, "transport", transport);
    }
    session
}

/// Returns a row of the audit log as its user may see it. Another originator is named by kind only: others' addresses
/// are private.
fn entry_element(entry: &AuditEntry, owner: &BareJid) -> Element {
    let mut row = xml::element(
        "entry",
        ns::KEYS,
        &[
            ("number", &entry.seq.to_string()),
            ("at", &stamp(entry.at)),
            ("event", entry.event.as_str()),
        ],
    );
    if let AuditEvent::Superseded { by } = entry.event {
        xml::set(&mut row, "replaced-by", &by.to_string());
    }
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
    use std::collections::BTreeMap;

    use fingerpost_secure::{identity::Identity, material::Material};
    use fingerpost_wire::{
        key::KeyId,
        print::{HashKind, Method, Print},
        size,
        stanza::{Condition, Refusal, RequestKind},
    };
    use jid::Jid;
    use sqlx::{Connection as _, Row as _};
    use time::macros::datetime;

    use super::*;
    use crate::registry::{
        RegistryOptions,
        model::{NewKey, Settings, Source, Visibility},
        store::Store,
    };

    /// Returns the certificate of a new key.
    fn certificate() -> Vec<u8> {
        Identity::anonymous().unwrap().certificate.to_vec()
    }

    const NOW: OffsetDateTime = datetime!(2026-11-24 2:00 UTC);

    fn romeo() -> Jid {
        Jid::new("romeo@montague.lit/orchard").unwrap()
    }

    async fn registry() -> Registry {
        let store = Store::open("sqlite::memory:", 1, true).await.unwrap();
        let component = BareJid::new("xtls.montague.lit").unwrap();
        let visibility = Visibility::Everyone;
        Registry::new(store, RegistryOptions { component, visibility, keys_per_user: 1000 })
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
        Ok(handled?.answer.unwrap())
    }

    /// Returns every item in a payload, as XML.
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

    /// Returns all items of all pages.
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

    /// Creates a registry with keys with and without certificates, settings, and an audit log.
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
            assert_eq!(refusal.condition, Condition::PolicyViolation, "{request}");
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
                // And back to the page before it.
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
                assert_eq!(refusal.unwrap_err().condition, Condition::ItemNotFound, "{request}");
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

    /// The place of a column in the export.
    enum Held {
        /// Elements by name, then an attribute after `@`, or the text.
        At(&'static str),
        /// Not exported, with the reason.
        Not(&'static str),
    }

    const COLUMNS: &[(&str, &str, Held)] = {
        use Held::{At, Not};
        const OTHERS: Held = Not("it is another user's address");
        const OWN: Held = Not("it is the component's own");
        const PRESENCE: Held =
            Not("it is what the user's clients say of themselves now, and goes with them");
        const WATCH: Held = Not("it is in the contact list that the user's own server keeps");
        const HASH: Held = Not(
            "it is a salted hash of an address whose keys were deleted, and may be another person's now",
        );
        const BLOCK: Held = Not("a blocked user may ask for nothing; it names no party");
        &[
            ("parties", "id", Not("it joins tables")),
            ("parties", "jid", At("@jid")),
            ("parties", "erased", Not("nothing else is held about that user")),
            ("keys", "id", At("keys/key@id")),
            ("keys", "owner", At("keys@jid")),
            ("keys", "method", At("keys/key@method")),
            ("keys", "label", At("keys/key@label")),
            ("keys", "state", At("keys/key@state")),
            ("keys", "assurance", At("keys/key@assurance")),
            ("keys", "source", At("keys/key@source")),
            ("keys", "created", At("keys/key@created")),
            ("keys", "changed", At("keys/key@changed")),
            ("keys", "expires", At("keys/key@expires")),
            ("keys", "replaced_by", At("keys/key@replaced-by")),
            ("keys", "reason", At("keys/key@reason")),
            ("prints", "key_id", At("keys/key@id")),
            ("prints", "position", Not("it is the order of the prints")),
            ("prints", "hash", At("keys/key/print@hash")),
            ("prints", "bytes", At("keys/key/print")),
            ("materials", "key_id", At("keys/key@id")),
            ("materials", "bytes", At("keys/key/material")),
            ("settings", "owner", At("@jid")),
            ("settings", "visibility", At("settings@visibility")),
            ("allowed", "owner", At("@jid")),
            ("allowed", "jid", At("settings/allow@jid")),
            ("identities", "component", OWN),
            ("identities", "certificate", OWN),
            ("identities", "private_key", OWN),
            ("audit", "seq", At("audit/entry@number")),
            ("audit", "at", At("audit/entry@at")),
            ("audit", "event", At("audit/entry@event")),
            ("audit", "key_id", At("audit/entry@key")),
            ("audit", "owner", At("@jid")),
            ("audit", "actor_kind", At("audit/entry@by")),
            ("audit", "actor", OTHERS),
            ("audit", "other", OTHERS),
            ("audit", "other_key", At("audit/entry@replaced-by")),
            ("open_sessions", "component", OWN),
            ("open_sessions", "session", Not("it joins the two sides")),
            ("open_sessions", "sid", At("sessions/session@sid")),
            ("open_sessions", "user_jid", At("sessions/session@jid")),
            ("open_sessions", "mask", At("sessions/session@with")),
            ("open_sessions", "namespace", At("sessions/session@namespace")),
            ("open_sessions", "began", At("sessions/session@began")),
            ("open_sessions", "role", At("sessions/session@role")),
            ("open_sessions", "content", At("sessions/session@content")),
            ("open_sessions", "transport", At("sessions/session@transport")),
            ("salts", "salt", OWN),
            ("revoked_prints", "owner", HASH),
            ("revoked_prints", "print", HASH),
            ("revoked_prints", "method", HASH),
            ("revoked_prints", "at", HASH),
            ("blocks", "jid", BLOCK),
            ("blocks", "reason", BLOCK),
            ("blocks", "at", BLOCK),
            ("reachable", "component", OWN),
            ("reachable", "jid", PRESENCE),
            ("reachable", "owner", PRESENCE),
            ("reachable", "priority", PRESENCE),
            ("reachable", "seen", PRESENCE),
            ("watchers", "component", OWN),
            ("watchers", "watcher", WATCH),
            ("watchers", "contact", WATCH),
            ("watchers", "seen", WATCH),
            ("heartbeats", "component", OWN),
            ("heartbeats", "at", OWN),
            ("heartbeats", "room", OWN),
        ]
    };

    fn at(element: &Element, path: &str) -> Vec<String> {
        let (names, attribute) = match path.split_once('@') {
            Some((names, attribute)) => (names, Some(attribute)),
            None => (path, None),
        };
        let mut found = vec![element];
        for name in names.split('/').filter(|name| !name.is_empty()) {
            found = found
                .into_iter()
                .flat_map(|element| element.children().filter(move |child| child.name() == name))
                .collect();
        }
        found
            .into_iter()
            .filter_map(|element| match attribute {
                Some(attribute) => element.attr(attribute).map(str::to_owned),
                None => Some(element.text()),
            })
            .filter(|value| !value.is_empty())
            .collect()
    }

    #[tokio::test]
    async fn every_column_of_every_table_is_exported_or_is_not_the_users() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", dir.path().join("keys.db").display());
        let store = Store::open(&url, 2, true).await.unwrap();
        let component = BareJid::new("xtls.m.lit").unwrap();
        let visibility = Visibility::Everyone;
        let options =
            RegistryOptions { component: component.clone(), visibility, keys_per_user: 9 };
        let registry = Registry::new(store.clone(), options);
        let from = Jid::new("romeo@m.lit/here").unwrap();
        let romeo = from.to_bare();
        let (first, second) = (certificate(), certificate());
        let new = |der: &[u8], label| {
            let material = Material::parse(Method::X509, der).unwrap();
            NewKey::of_material(material, &[], label, Source::Self_).unwrap()
        };
        let old = registry.add(&from, &new(&first, "old"), NOW).await.unwrap().0;
        let replacing = new(&second, "new").replacing(Some(old.id));
        let key = registry.add(&from, &replacing, NOW).await.unwrap().0;
        let admin = Actor::Admin(BareJid::new("admin@m.lit").unwrap());
        store.revoke(key.id, &admin, "lost at the ball", NOW).await.unwrap();
        let print = Print::parse(&"AB".repeat(20), None).unwrap();
        let bare = NewKey::of_prints(Method::OpenPgp, vec![print], "", Source::Self_).unwrap();
        store.add(&romeo, &bare, 9, &Actor::User(romeo.clone()), NOW, KeyId::new(7)).await.unwrap();
        let juliet = BareJid::new("juliet@c.lit").unwrap();
        let settings = Settings { visibility: Visibility::Listed, allowed: vec![juliet] };
        registry.set_settings(&romeo, &settings, NOW).await.unwrap();
        let side = OpenSide {
            session: "s".to_owned(),
            user: from.clone(),
            mask: Jid::new("juliet\\40c.lit@xtls.m.lit/balcony").unwrap(),
            sid: "a-sid".to_owned(),
            namespace: "urn:xmpp:jingle:1".to_owned(),
            renewable: Some(RenewableSide {
                role: "initiator".to_owned(),
                content: "ballad".to_owned(),
                transport: ns::JINGLE_S5B.to_owned(),
            }),
        };
        let other = OpenSide { user: Jid::new("romeo@m.lithe/x").unwrap(), ..side.clone() };
        let other = OpenSide { sid: "other".to_owned(), ..other };
        store.change_open(&component, &[side, other], &[], NOW).await.unwrap();

        let export = registry.export(&romeo, None, size::DEFAULT, NOW).await.unwrap();
        let mut listed = BTreeMap::new();
        for (table, column, held) in COLUMNS {
            assert!(
                listed.insert(((*table).to_owned(), (*column).to_owned()), held).is_none(),
                "{table}.{column} twice"
            );
            match held {
                Held::At(path) => {
                    let values = at(&export, path);
                    assert!(!values.is_empty(), "{table}.{column} is not at {path}: {export:?}");
                }
                Held::Not(why) => assert!(!why.is_empty()),
            }
        }
        let mut db = sqlx::SqliteConnection::connect(&url).await.unwrap();
        let rows = sqlx::query(
            "SELECT tables.name AS t, columns.name AS c FROM sqlite_master AS tables
             JOIN pragma_table_info(tables.name) AS columns
             WHERE tables.type = 'table' AND tables.name NOT LIKE 'sqlite_%'
                   AND tables.name <> '_sqlx_migrations'",
        )
        .fetch_all(&mut db)
        .await
        .unwrap();
        for row in &rows {
            let (table, column): (String, String) = (row.get("t"), row.get("c"));
            let column = (table, column);
            assert!(
                listed.remove(&column).is_some(),
                "say of {column:?} where it is exported, or why not"
            );
        }
        assert!(listed.is_empty(), "these are no longer there: {:?}", listed.keys());

        assert_eq!(at(&export, "keys/key@reason"), ["lost at the ball"]);
        assert_eq!(at(&export, "keys/key@replaced-by"), [key.id.to_string()]);
        assert_eq!(at(&export, "keys/key/material").len(), 2);
        assert_eq!(at(&export, "sessions/session@sid"), ["a-sid"]);
        assert_eq!(
            at(&export, "audit/entry@by"),
            ["self", "self", "self", "admin", "self", "self"]
        );
        assert!(!String::from(&export).contains("admin@m.lit"));
    }
}
