//! The features of users' clients (XEP-0030), and how long they stay valid.
//!
//! A client that announces its capabilities in directed presence (XEP-0115) is asked once for all users of the same
//! client. Its answer is kept under the announced hash, if the hash is right. Other clients are asked again after a
//! minute.
//!
//! Spec: XEP-0115 1.6.0, sections 5.1 (Generation Method) and 5.4 (Processing Method).

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use fingerpost_wire::{ns, xml};
use hashlink::LruCache;
use jid::Jid;
use minidom::Element;
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};

/// How long the answer of a client without capabilities stays valid.
const KEEP: Duration = Duration::from_secs(60);
/// The most bytes of an announced hash.
const CAPS: usize = 128;
/// The most answers that are kept for one client each, and the most for clients that share a hash. The least needed one
/// makes room; a forgotten client is asked again.
const ANSWERS: (usize, usize) = (10_000, 1_000);
/// How many different sets of features are remembered, so that clients of the same kind share them.
const SETS: usize = 16;
/// The features that the broker uses. Of an answer only these and the Jingle applications are kept.
const WANTED: [&str; 12] = [
    ns::APPS_TLS,
    ns::BYTESTREAMS,
    ns::C2CTLS,
    ns::IBB,
    ns::JINGLE,
    ns::JINGLE_0,
    ns::JINGLE_IBB,
    ns::JINGLE_IBB_0,
    ns::JINGLE_S5B,
    ns::SECURITY_OFFER,
    ns::SI_FILE,
    ns::XTLS,
];
/// The prefix of Jingle applications' names, and how many of which length are kept of a client at most.
const APPLICATIONS: (&str, usize, usize) = ("urn:xmpp:jingle:apps:", 8, 64);
/// The features that each announce an understanding of TLS offers.
const SECURED: [&str; 4] = [ns::APPS_TLS, ns::C2CTLS, ns::SECURITY_OFFER, ns::XTLS];
/// The features that each announce a bytestream of Jingle.
const BYTESTREAMS: [&str; 3] = [ns::JINGLE_S5B, ns::JINGLE_IBB, ns::JINGLE_IBB_0];
/// Stands among the features of a client that calls itself Dino. No client can announce it as a feature.
pub const DINO: &str = "client named Dino";
/// The supported hashes of XEP-0115.
const HASHES: [&str; 3] = ["sha-1", "sha-256", "sha-512"];

/// The relevant features of a client.
pub type Features = Arc<Vec<String>>;

/// Returns how well a client with these features can take a session for an application (the namespace of its
/// description). `is_plain`: nothing encrypts it, so that a file may be [translated](translates).
///
/// | | it announces TLS | it does not |
/// |---|---|---|
/// | it [takes] the application | 4 | 3 |
/// | it takes a translated file | 2 | 2 |
/// | neither | 1 | 0 |
pub fn fit(features: &[String], application: &str, is_plain: bool) -> u8 {
    let knows = |feature: &str| features.iter().any(|known| known == feature);
    let is_secured = u8::from(SECURED.into_iter().any(knows));
    match takes(features, application) {
        true => 3 + is_secured,
        false if is_plain && translates(features, application) => 2,
        false => is_secured,
    }
}

/// Returns whether a client with these features takes files that nothing encrypts in the other one of the two protocols for
/// them, and not in this one: stream initiation (XEP-0096) or Jingle (XEP-0234).
///
/// A client that announces XTLS takes files of Jingle only with TLS, which stream initiation has not.
pub fn translates(features: &[String], application: &str) -> bool {
    let knows = |feature: &str| features.iter().any(|known| known == feature);
    match application {
        ns::SI_FILE => {
            !knows(ns::SI_FILE) && takes(features, ns::FILE_TRANSFER) && !knows(ns::XTLS)
        }
        _ if ns::FILE_TRANSFERS.contains(&application) => {
            !takes(features, application) && knows(ns::SI_FILE)
        }
        _ => false,
    }
}

/// Returns whether a client with these features can take an application, as far as they say: it announces the
/// application, and a bytestream if that is a file. `urn:xmpp:jingle:1` says nothing: Gajim announces it and takes no
/// files.
pub fn takes(features: &[String], application: &str) -> bool {
    let knows = |feature: &str| features.iter().any(|known| known == feature);
    knows(application)
        && (!ns::FILE_TRANSFERS.contains(&application) || BYTESTREAMS.into_iter().any(knows))
}

/// The bytestreams that the component has for files that it [translates].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// SOCKS5.
    pub socks5: bool,
    /// In-band.
    pub ibb: bool,
}

impl Translation {
    /// Adds to a client's answer to disco#info the protocol for files that is translated for this client, if there is one. Clients
    /// that have only that protocol offer no file otherwise.
    pub fn announce(self, info: &mut Element) {
        let known: Vec<String> = xml::features(info).map(str::to_owned).collect();
        let added = if translates(&known, ns::FILE_TRANSFER) {
            [
                (ns::JINGLE, true),
                (ns::FILE_TRANSFER, true),
                (ns::JINGLE_S5B, self.socks5),
                (ns::JINGLE_IBB, self.ibb),
            ]
        } else if translates(&known, ns::SI_FILE) {
            [
                (ns::SI, true),
                (ns::SI_FILE, true),
                (ns::BYTESTREAMS, self.socks5),
                (ns::IBB, self.ibb),
            ]
        } else {
            return;
        };
        for (feature, is_added) in added {
            if is_added && !known.iter().any(|known| known == feature) {
                info.append_child(xml::element("feature", ns::DISCO_INFO, &[("var", feature)]));
            }
        }
    }
}

/// The known clients.
///
/// Addresses, and hashes with their values, are kept as keyed hashes, which take few bytes however long the text is.
#[derive(Debug)]
pub struct Cache {
    hasher: RandomState,
    /// The capabilities that each reachable resource has announced.
    announced: HashMap<u64, u64>,
    by_caps: LruCache<u64, Features>,
    by_jid: LruCache<u64, (Instant, Features)>,
    /// The sets of features that came last.
    sets: VecDeque<Features>,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            announced: HashMap::new(),
            by_caps: LruCache::new(ANSWERS.1),
            by_jid: LruCache::new(ANSWERS.0),
            sets: VecDeque::new(),
        }
    }
}

impl Cache {
    /// Takes the capabilities in a presence of a reachable resource. Call [`Cache::forget`] when the resource is no
    /// longer reachable, which bounds the cache.
    pub fn announce(&mut self, user: &Jid, presence: &Element) {
        let caps = presence
            .get_child("c", ns::CAPS)
            .and_then(|c| Some((c.attr("hash")?, c.attr("ver")?)))
            .filter(|(hash, ver)| hash.len() + ver.len() <= CAPS)
            .map(|caps| self.hasher.hash_one(caps));
        let user = self.key(user);
        if caps.as_ref() != self.announced.get(&user) {
            self.by_jid.remove(&user);
        }
        match caps {
            Some(caps) => self.announced.insert(user, caps),
            None => self.announced.remove(&user),
        };
    }

    /// Forgets a resource that is no longer reachable.
    pub fn forget(&mut self, user: &Jid) {
        let user = self.key(user);
        self.announced.remove(&user);
        self.by_jid.remove(&user);
    }

    /// Returns the features of a client, if they are known now.
    pub fn known(&mut self, user: &Jid, now: Instant) -> Option<Features> {
        let user = self.key(user);
        if let Some(features) = self.announced.get(&user).and_then(|caps| self.by_caps.get(caps)) {
            return Some(Arc::clone(features));
        }
        let (at, features) = self.by_jid.peek(&user)?;
        (now < *at + KEEP).then(|| Arc::clone(features))
    }

    /// Takes a client's answer to disco#info.
    pub fn learn(&mut self, user: &Jid, answer: &Element, now: Instant) -> Features {
        let said: Vec<&str> = xml::features(answer).collect();
        let (begin, most, longest) = APPLICATIONS;
        let wanted = WANTED.into_iter().filter(|wanted| said.contains(wanted));
        let applications = said
            .iter()
            .copied()
            .filter(|feature| feature.starts_with(begin) && feature.len() <= longest)
            .filter(|feature| !WANTED.contains(feature))
            .take(most);
        let dino = is_dino(answer).then_some(DINO);
        let all = wanted.chain(applications).chain(dino);
        let features = self.share(all.map(str::to_owned).collect());
        let user = self.key(user);
        let right = self.announced.get(&user).copied().filter(|caps| {
            verified(answer).is_some_and(|text| {
                HASHES.iter().any(|hash| {
                    let ver = digest(&text, hash).unwrap_or_default();
                    self.hasher.hash_one((*hash, ver.as_str())) == *caps
                })
            })
        });
        match right {
            Some(caps) => drop(self.by_caps.insert(caps, Arc::clone(&features))),
            None => drop(self.by_jid.insert(user, (now, Arc::clone(&features)))),
        }
        features
    }

    /// Returns features in the memory of an equal set, if one came recently.
    fn share(&mut self, features: Vec<String>) -> Features {
        if let Some(known) = self.sets.iter().find(|known| ***known == features) {
            return Arc::clone(known);
        }
        let features = Arc::new(features);
        self.sets.truncate(SETS - 1);
        self.sets.push_front(Arc::clone(&features));
        features
    }

    fn key(&self, user: &Jid) -> u64 {
        self.hasher.hash_one(user.as_str())
    }
}

/// Returns whether a client calls itself Dino in its answer to disco#info.
fn is_dino(answer: &Element) -> bool {
    answer.children().any(|child| {
        child.is("identity", ns::DISCO_INFO)
            && child.attr("category") == Some("client")
            && child.attr("name") == Some("Dino")
    })
}

/// Returns the hash that announces a disco#info answer (XEP-0115, SHA-1). `None` if the answer is not valid.
pub fn ver(answer: &Element) -> Option<String> {
    digest(&verified(answer)?, "sha-1")
}

/// Returns the SHA-1 hash that a presence announces (XEP-0115), if it can be one.
pub fn announced_ver(presence: &Element) -> Option<&str> {
    const LENGTH: usize = 28;
    let c = presence.get_child("c", ns::CAPS)?;
    let ver = c.attr("ver").filter(|ver| ver.len() == LENGTH && STANDARD.decode(ver).is_ok())?;
    (c.attr("hash") == Some("sha-1")).then_some(ver)
}

/// Returns the text whose hash announces a disco#info answer. `None` if other answers could give the same text: the
/// answer has something twice, or the mark `<` inside a value.
///
/// # Security
/// A text that belongs to several answers would let one user's client speak for those of others.
fn verified(answer: &Element) -> Option<String> {
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
    Some(text)
}

/// Returns the hash of such a text, in base64; `None` if the hash is not supported.
fn digest(text: &str, hash: &str) -> Option<String> {
    Some(match hash {
        "sha-1" => STANDARD.encode(Sha1::digest(text)),
        "sha-256" => STANDARD.encode(Sha256::digest(text)),
        "sha-512" => STANDARD.encode(Sha512::digest(text)),
        _ => return None,
    })
}

/// Returns the parts of a form: its type, then each field and its values. `Some(None)`: the form has no type and does
/// not count.
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

    fn verification(answer: &Element, hash: &str) -> Option<String> {
        digest(&verified(answer)?, hash)
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
        assert_eq!(cache.known(&jid("b@x/2"), late).map(|f| f.len()), Some(0));
        assert_eq!(cache.known(&jid("c@x/3"), late), None);
        cache.forget(&jid("b@x/2"));
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
        // Another version of the client counts as another client.
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
        for i in 0..ANSWERS.0 + 500 {
            let user = jid(&format!("u{i}@x/1"));
            let answer = query(&format!("<feature var='f{i}'/>"));
            if i < 2 * ANSWERS.1 {
                let ver = verification(&answer, "sha-1").unwrap();
                cache.announce(&user, &presence(&ver));
                cache.learn(&user, &answer, now);
                cache.forget(&user);
            }
            cache.learn(&user, &answer, now);
        }
        assert!(cache.by_caps.len() <= ANSWERS.1);
        assert!(cache.by_jid.len() <= ANSWERS.0);
        assert_eq!(cache.announced.len(), 0);
    }

    #[test]
    fn only_what_matters_of_an_answer_is_kept() {
        let now = Instant::now();
        let mut cache = Cache::default();
        let features: String = (0..5000).map(|i| format!("<feature var='f{i}'/>")).collect();
        let answer = query(&format!("{features}<feature var='urn:xmpp:jingle:1'/>"));
        let kept = cache.learn(&jid("a@x/1"), &answer, now);
        assert_eq!(*kept, ["urn:xmpp:jingle:1"]);
        let applications: String =
            (0..5000).map(|i| format!("<feature var='urn:xmpp:jingle:apps:{i}'/>")).collect();
        let long = "x".repeat(5000);
        let answer = query(&format!("<feature var='urn:xmpp:jingle:apps:{long}'/>{applications}"));
        let kept = cache.learn(&jid("a@x/1"), &answer, now);
        assert_eq!(kept.len(), APPLICATIONS.1);
        assert!(kept.contains(&"urn:xmpp:jingle:apps:0".to_owned()));
    }

    #[test]
    fn a_client_fits_by_its_application_first_and_by_tls_then() {
        let features = |all: &[&str]| all.iter().map(|f| (*f).to_owned()).collect::<Vec<_>>();
        let listener = features(&[ns::XTLS, ns::FILE_TRANSFER, ns::JINGLE_S5B]);
        let chat_program = features(&[ns::JINGLE, ns::FILE_TRANSFER, ns::JINGLE_IBB]);
        let pipe = features(&[ns::XTLS, ns::APPS_TLS]);
        let old = features(&[ns::SI_FILE, ns::BYTESTREAMS]);
        let all = [&listener, &chat_program, &pipe, &old];
        for (application, is_plain, fits) in [
            (ns::FILE_TRANSFER, false, [4, 3, 1, 0]),
            (ns::FILE_TRANSFER, true, [4, 3, 1, 2]),
            (ns::APPS_TLS, false, [1, 0, 4, 0]),
            (ns::SI_FILE, true, [1, 2, 1, 3]),
        ] {
            assert_eq!(all.map(|f| fit(f, application, is_plain)), fits, "{application}");
        }
    }

    #[test]
    fn a_file_is_translated_only_for_a_client_that_has_the_other_protocol_alone() {
        let old = &[ns::SI_FILE, ns::BYTESTREAMS][..];
        let new = &[ns::FILE_TRANSFER, ns::JINGLE_S5B][..];
        let both = [old, new].concat();
        let with_tls = [new, &[ns::XTLS]].concat();
        for (all, of_old, of_new) in [
            (&[][..], false, false),
            (old, false, true),
            (new, true, false),
            (&both, false, false),
            (&with_tls, false, false),
            (&[ns::JINGLE, ns::JINGLE_S5B], false, false),
            (&[ns::FILE_TRANSFER], false, false),
        ] {
            let known: Vec<String> = all.iter().map(|&feature| feature.to_owned()).collect();
            assert_eq!(translates(&known, ns::SI_FILE), of_old, "{all:?}");
            assert_eq!(translates(&known, ns::FILE_TRANSFER), of_new, "{all:?}");
            assert!(!translates(&known, ns::APPS_TLS), "{all:?}");
        }
    }

    #[test]
    fn jingle_alone_does_not_say_that_a_client_takes_files() {
        for (all, takes_files) in [
            (&[ns::JINGLE, ns::JINGLE_IBB, ns::JINGLE_S5B][..], false),
            (&[ns::JINGLE, ns::FILE_TRANSFER], false),
            (&[ns::FILE_TRANSFER, ns::JINGLE_S5B], true),
            (&[ns::FILE_TRANSFER, ns::JINGLE_IBB_0], true),
        ] {
            let all: Vec<String> = all.iter().map(|&feature| feature.to_owned()).collect();
            assert_eq!(takes(&all, ns::FILE_TRANSFER), takes_files, "{all:?}");
            assert_eq!(fit(&all, ns::FILE_TRANSFER, true) > 0, takes_files, "{all:?}");
        }
        assert!(takes(&[ns::APPS_TLS.to_owned()], ns::APPS_TLS), "only files need more");
    }

    #[test]
    fn a_client_is_announced_with_the_protocol_that_is_translated_for_it() {
        let of = |features: &[&str]| {
            let features = features.iter().map(|feature| format!("<feature var='{feature}'/>"));
            query(&features.collect::<String>())
        };
        let old = [ns::SI, ns::SI_FILE, ns::BYTESTREAMS, ns::IBB];
        let new = [ns::JINGLE, ns::FILE_TRANSFER, ns::JINGLE_S5B, ns::JINGLE_IBB];
        let all = [old, new].concat();
        let with_tls = [&new[..], &[ns::XTLS]].concat();
        let both = Translation { socks5: true, ibb: true };
        let ibb = Translation { socks5: false, ibb: true };
        for (translation, features, announced) in [
            (both, &old[..], &all[..]),
            (both, &[&new[..], &old[3..]].concat(), &[&new[..], &old[3..], &old[..3]].concat()),
            (ibb, &old[..3], &[&old[..3], &new[..2], &new[3..]].concat()),
            (ibb, &new, &[&new[..], &old[..2], &old[3..]].concat()),
            (both, &all, &all),
            (both, &with_tls, &with_tls),
            (both, &[ns::JINGLE, ns::PING], &[ns::JINGLE, ns::PING]),
        ] {
            let mut info = of(features);
            translation.announce(&mut info);
            assert_eq!(xml::features(&info).collect::<Vec<_>>(), announced);
            assert!(ver(&info).is_some(), "nothing is there twice");
        }
    }

    #[test]
    fn dino_is_known_by_the_name_of_its_client_alone() {
        for (inside, expected) in [
            ("<identity category='client' type='pc' name='Dino'/>", true),
            ("<identity category='client' type='pc' name='Dino 2'/>", false),
            ("<identity category='gateway' type='xmpp' name='Dino'/>", false),
            ("<feature var='client named Dino'/>", false),
        ] {
            let answer = query(inside);
            let learnt = Cache::default().learn(&jid("a@x/1"), &answer, Instant::now());
            assert_eq!(learnt.iter().any(|feature| feature == DINO), expected, "{inside}");
        }
    }
}
