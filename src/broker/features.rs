//! What users' clients say they can do (XEP-0030), and for how long it is believed.
//!
//! A client that names its capabilities in directed presence (XEP-0115) is asked once for all users of the same
//! client: what it answers is kept under the hash that it announced, if the hash is right. Others are asked again
//! after a minute.
//!
//! Spec: XEP-0115 1.6.0, sections 5.1 (Generation Method) and 5.4 (Processing Method).

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use hashlink::LruCache;
use jid::Jid;
use minidom::Element;
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};

use crate::xmpp::ns;

/// How long the answer of a client without capabilities is believed.
const KEEP: Duration = Duration::from_secs(60);
/// Most features of one client that are kept, and most bytes of an announced hash.
const LIMITS: (usize, usize) = (256, 128);
/// Most answers that are kept for one client each, and most that are kept for all who announce them.
const ANSWERS: (usize, usize) = (10_000, 1_000);
/// Most announcements that are kept: as many as reachable users.
const ANNOUNCED: usize = 100_000;

/// A client's features.
pub type Features = Arc<Vec<String>>;

/// The hash and its value, as announced.
type Caps = (String, String);

/// What is known of clients.
#[derive(Debug)]
pub struct Cache {
    announced: HashMap<Jid, Caps>,
    /// What was not needed for longest makes room.
    by_caps: LruCache<Caps, Features>,
    /// The oldest answer makes room.
    by_jid: LruCache<Jid, (Instant, Features)>,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            announced: HashMap::new(),
            by_caps: LruCache::new(ANSWERS.1),
            by_jid: LruCache::new(ANSWERS.0),
        }
    }
}

impl Cache {
    /// Takes the capabilities of a client's presence; none if it is unavailable.
    pub fn announce(&mut self, user: &Jid, presence: &Element) {
        let caps = presence
            .get_child("c", ns::CAPS)
            .filter(|_| presence.attr("type").is_none())
            .and_then(|c| Some((c.attr("hash")?.to_owned(), c.attr("ver")?.to_owned())))
            .filter(|(hash, ver)| hash.len() + ver.len() <= LIMITS.1);
        if caps.as_ref() != self.announced.get(user) {
            self.by_jid.remove(user);
        }
        match caps {
            Some(caps) if self.announced.len() < ANNOUNCED || self.announced.contains_key(user) => {
                self.announced.insert(user.clone(), caps);
            }
            _ => {
                self.announced.remove(user);
            }
        }
    }

    /// What is known of a client now.
    pub fn known(&mut self, user: &Jid, now: Instant) -> Option<Features> {
        if let Some(features) = self.announced.get(user).and_then(|caps| self.by_caps.get(caps)) {
            return Some(Arc::clone(features));
        }
        let (at, features) = self.by_jid.peek(user)?;
        (now < *at + KEEP).then(|| Arc::clone(features))
    }

    /// Takes a client's answer to disco#info.
    pub fn learn(&mut self, user: &Jid, answer: &Element, now: Instant) -> Features {
        let features: Features = Arc::new(
            answer
                .children()
                .filter(|child| child.is("feature", ns::DISCO_INFO))
                .filter_map(|child| child.attr("var"))
                .take(LIMITS.0)
                .map(str::to_owned)
                .collect(),
        );
        let right = self
            .announced
            .get(user)
            .filter(|(hash, ver)| verification(answer, hash).as_ref() == Some(ver));
        if let Some(caps) = right {
            self.by_caps.insert(caps.clone(), Arc::clone(&features));
            return features;
        }
        self.by_jid.insert(user.clone(), (now, Arc::clone(&features)));
        features
    }
}

/// The verification string of a disco#info answer. `None` if the hash is unknown, or the answer is one from which a
/// string can be made that others could be made from too: something twice, or the mark `<` inside of something.
///
/// # Security
/// A string that belongs to several answers would let one user's client speak for those of others.
fn verification(answer: &Element, hash: &str) -> Option<String> {
    let mut identities = Vec::new();
    let mut features = Vec::new();
    let mut forms = Vec::new();
    for child in answer.children() {
        let get = |name| child.attr(name).unwrap_or_default();
        if child.is("identity", ns::DISCO_INFO) {
            let lang = child.attr_ns(rxml::Namespace::xml(), "lang").unwrap_or_default();
            let name = get("name");
            if [get("category"), get("type"), lang].iter().any(|part| part.contains('/')) {
                return None;
            }
            identities.push(format!("{}/{}/{lang}/{name}", get("category"), get("type")));
        } else if child.is("feature", ns::DISCO_INFO) {
            features.push(get("var").to_owned());
        } else if child.is("x", ns::DATA) {
            forms.extend(form(child)?);
        } else {
            return None;
        }
    }
    identities.sort_unstable();
    features.sort_unstable();
    forms.sort_unstable();
    let twice = |list: &[String]| list.windows(2).any(|pair| pair.first() == pair.last());
    let types: Vec<String> = forms.iter().filter_map(|form| form.first().cloned()).collect();
    let parts: Vec<String> =
        identities.iter().chain(&features).chain(forms.iter().flatten()).cloned().collect();
    if twice(&identities)
        || twice(&features)
        || twice(&types)
        || parts.iter().any(|part| part.contains('<'))
    {
        return None;
    }
    let mut text = String::new();
    for part in parts {
        text.push_str(&part);
        text.push('<');
    }
    Some(match hash {
        "sha-1" => STANDARD.encode(Sha1::digest(text.as_bytes())),
        "sha-256" => STANDARD.encode(Sha256::digest(text.as_bytes())),
        "sha-512" => STANDARD.encode(Sha512::digest(text.as_bytes())),
        _ => return None,
    })
}

/// The parts of a form: its type, then each field and its values. `Some(None)`: it has no type and does not count.
fn form(form: &Element) -> Option<Option<Vec<String>>> {
    let mut fields: Vec<(String, Vec<String>)> = Vec::new();
    let mut type_ = None;
    for field in form.children().filter(|child| child.is("field", ns::DATA)) {
        let mut values: Vec<String> = field
            .children()
            .filter(|child| child.is("value", ns::DATA))
            .map(Element::text)
            .collect();
        let var = field.attr("var").unwrap_or_default();
        if var != "FORM_TYPE" {
            values.sort_unstable();
            fields.push((var.to_owned(), values));
        } else if field.attr("type") == Some("hidden") {
            let [value] = values.as_slice() else { return None };
            if type_.replace(value.clone()).is_some() {
                return None;
            }
        }
    }
    let Some(type_) = type_ else { return Some(None) };
    fields.sort_unstable();
    let mut parts = vec![type_];
    for (var, values) in fields {
        parts.push(var);
        parts.extend(values);
    }
    Some(Some(parts))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The complex example of XEP-0115, 5.3.
    const PSI: &str = "<query xmlns='http://jabber.org/protocol/disco#info'>\
        <identity xml:lang='en' category='client' name='Psi 0.11' type='pc'/>\
        <identity xml:lang='el' category='client' name='\u{3a8} 0.11' type='pc'/>\
        <feature var='http://jabber.org/protocol/caps'/>\
        <feature var='http://jabber.org/protocol/disco#info'/>\
        <feature var='http://jabber.org/protocol/disco#items'/>\
        <feature var='http://jabber.org/protocol/muc'/>\
        <x xmlns='jabber:x:data' type='result'>\
        <field var='FORM_TYPE' type='hidden'><value>urn:xmpp:dataforms:softwareinfo</value></field>\
        <field var='ip_version' type='text-multi'><value>ipv4</value><value>ipv6</value></field>\
        <field var='os'><value>Mac</value></field>\
        <field var='os_version'><value>10.5.1</value></field>\
        <field var='software'><value>Psi</value></field>\
        <field var='software_version'><value>0.11</value></field></x></query>";
    const PSI_VER: &str = "q07IKJEyjvHSyhy//CH0CxmKi8w=";

    fn query(inside: &str) -> Element {
        format!("<query xmlns='http://jabber.org/protocol/disco#info'>{inside}</query>")
            .parse()
            .unwrap()
    }

    fn presence(ver: &str) -> Element {
        format!(
            "<presence xmlns='jabber:client'><c xmlns='http://jabber.org/protocol/caps' \
             hash='sha-1' node='n' ver='{ver}'/></presence>"
        )
        .parse()
        .unwrap()
    }

    fn jid(text: &str) -> Jid {
        Jid::new(text).unwrap()
    }

    #[test]
    fn the_examples_of_xep_0115_verify() {
        assert_eq!(verification(&PSI.parse().unwrap(), "sha-1").as_deref(), Some(PSI_VER));
        let exodus = query(
            "<identity category='client' type='pc' name='Exodus 0.9.1'/>\
             <feature var='http://jabber.org/protocol/muc'/>\
             <feature var='http://jabber.org/protocol/disco#info'/>\
             <feature var='http://jabber.org/protocol/disco#items'/>\
             <feature var='http://jabber.org/protocol/caps'/>",
        );
        let ver = verification(&exodus, "sha-1");
        assert_eq!(ver.as_deref(), Some("QgayPKawpkPSDYmwT/WM94uAlu0="));
        assert_eq!(verification(&exodus, "md5"), None);
    }

    #[test]
    fn a_right_hash_speaks_for_all_who_announce_it() {
        let now = Instant::now();
        let mut cache = Cache::default();
        for user in ["a@x/1", "b@x/2"] {
            cache.announce(&jid(user), &presence(PSI_VER));
        }
        assert_eq!(cache.known(&jid("b@x/2"), now), None);
        cache.learn(&jid("a@x/1"), &PSI.parse().unwrap(), now);
        let late = now + Duration::from_secs(86_400);
        assert_eq!(cache.known(&jid("b@x/2"), late).map(|f| f.len()), Some(4));
        assert_eq!(cache.known(&jid("c@x/3"), late), None);
        let mut gone = presence(PSI_VER);
        crate::xmpp::xml::set(&mut gone, "type", "unavailable");
        cache.announce(&jid("b@x/2"), &gone);
        assert_eq!(cache.known(&jid("b@x/2"), late), None);
    }

    #[test]
    fn a_wrong_hash_speaks_for_its_own_client_only_and_for_a_minute() {
        let now = Instant::now();
        let mut cache = Cache::default();
        for user in ["evil@x/1", "b@x/2"] {
            cache.announce(&jid(user), &presence(PSI_VER));
        }
        let lie =
            query("<identity category='client' type='pc'/><feature var='urn:xmpp:jingle:1'/>");
        cache.learn(&jid("evil@x/1"), &lie, now);
        assert_eq!(cache.known(&jid("b@x/2"), now), None);
        assert_eq!(cache.known(&jid("evil@x/1"), now).map(|f| f.len()), Some(1));
        assert_eq!(cache.known(&jid("evil@x/1"), now + KEEP), None);
        // Another version of the client is another client.
        cache.learn(&jid("evil@x/1"), &lie, now);
        cache.announce(&jid("evil@x/1"), &presence("other"));
        assert_eq!(cache.known(&jid("evil@x/1"), now), None);
    }

    #[test]
    fn an_answer_that_could_be_read_as_another_has_no_hash() {
        for inside in [
            "<feature var='a'/><feature var='a'/>",
            "<identity category='c' type='t'/><identity category='c' type='t'/>",
            "<identity category='c' type='t' name='n&lt;urn:xmpp:jingle:1'/>",
            "<identity category='c' type='t/en'/>",
            "<feature var='a&lt;b'/>",
            "<other/>",
            "<x xmlns='jabber:x:data'><field var='FORM_TYPE' type='hidden'><value>a</value>\
             <value>b</value></field></x>",
        ] {
            assert_eq!(verification(&query(inside), "sha-1"), None, "{inside}");
        }
    }

    #[test]
    fn the_cache_does_not_grow_without_bound() {
        let now = Instant::now();
        let mut cache = Cache::default();
        for i in 0..ANSWERS.1 + 50 {
            let user = jid(&format!("u{i}@x/1"));
            let answer = query(&format!("<feature var='f{i}'/>"));
            let ver = verification(&answer, "sha-1").unwrap();
            cache.announce(&user, &presence(&ver));
            cache.learn(&user, &answer, now + Duration::from_secs(u64::try_from(i).unwrap()));
        }
        assert_eq!(cache.by_caps.len(), ANSWERS.1);
        assert_eq!(cache.by_jid.len(), 0);
    }
}
