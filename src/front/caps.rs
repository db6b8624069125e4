//! The capabilities that the component announces: in its own presence (XEP-0115 and XEP-0390), and in those of proxied
//! contacts (XEP-0115).
//!
//! Spec: XEP-0390 0.3.2, section 4 (Hash Input, Computation).

use base64::{Engine, engine::general_purpose::STANDARD};
use fingerpost_wire::{ns, xml};
use hashlink::LruCache;
use minidom::Element;
use sha2::{Digest, Sha256};

use crate::sessions::features::{self, Translation};

/// The ends of a value, an identity or field, a form, and a section.
const ENDS: [char; 4] = ['\u{1f}', '\u{1e}', '\u{1d}', '\u{1c}'];

/// What announces an answer to disco#info.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OwnCaps {
    /// The hash of XEP-0115: SHA-1, base64.
    ver: String,
    /// The hash of XEP-0390: SHA-256, base64.
    hash: String,
}

impl OwnCaps {
    /// Computes the capabilities of an answer to disco#info without a node; `None` if that is not valid.
    pub(super) fn of(info: &Element) -> Option<Self> {
        let ver = features::ver(info)?;
        Some(Self { ver, hash: STANDARD.encode(Sha256::digest(input(info))) })
    }

    /// Returns whether a disco#info node stands for these capabilities.
    pub(super) fn names(&self, node: &str) -> bool {
        let (of, hash) = node.split_once('#').unwrap_or_default();
        match of {
            ns::OWN_CAPS => hash == self.ver,
            ns::CAPS_2 => hash.strip_prefix("sha-256.") == Some(&self.hash),
            _ => false,
        }
    }

    /// Adds the capabilities to a presence.
    pub(super) fn announce(&self, presence: &mut Element) {
        presence.append_child(announced(&self.ver));
        let mut hash = xml::element("hash", ns::HASHES, &[("algo", "sha-256")]);
        hash.append_text(self.hash.as_str());
        let mut c = Element::bare("c", ns::CAPS_2);
        c.append_child(hash);
        presence.append_child(c);
    }
}

/// How many clients' capabilities are remembered. A forgotten client is asked again.
const CONTACTS: usize = 1_000;

/// The capabilities of contacts' clients as they are announced here. They are the clients' own, with the protocol for files that
/// is translated for them.
#[derive(Debug)]
pub(super) struct ContactCaps {
    translation: Option<Translation>,
    /// The announced hash by the client's own.
    known: LruCache<String, String>,
}

impl ContactCaps {
    pub(super) fn new(translation: Option<Translation>) -> Self {
        Self { translation, known: LruCache::new(CONTACTS) }
    }

    /// Returns the hash that is announced for a client that has announced this one. `None`: it is known once the client was asked.
    pub(super) fn of<'a>(&'a mut self, ver: &'a str) -> Option<&'a str> {
        match self.translation {
            None => Some(ver),
            Some(_) => self.known.get(ver).map(String::as_str),
        }
    }

    /// Returns the hash that is announced for a client that gives this answer to disco#info. `None`: the answer is not valid.
    pub(super) fn learn(&mut self, info: &Element) -> Option<String> {
        let own = features::ver(info)?;
        let Some(translation) = self.translation else { return Some(own) };
        let mut info = info.clone();
        translation.announce(&mut info);
        let announced = features::ver(&info)?;
        self.known.insert(own, announced.clone());
        Some(announced)
    }
}

/// Returns the element of XEP-0115 with a SHA-1 hash.
pub(super) fn announced(ver: &str) -> Element {
    xml::element("c", ns::CAPS, &[("hash", "sha-1"), ("node", ns::OWN_CAPS), ("ver", ver)])
}

/// Returns the input of the hash of XEP-0390.
fn input(info: &Element) -> String {
    let [value, part, form, section] = ENDS;
    let (mut features, mut identities, mut forms) = (Vec::new(), Vec::new(), Vec::new());
    for child in info.children() {
        if child.is("feature", ns::DISCO_INFO) {
            features.push(format!("{}{value}", child.attr("var").unwrap_or_default()));
        } else if child.is("identity", ns::DISCO_INFO) {
            let lang = child.attr_ns(rxml::Namespace::xml(), "lang").unwrap_or_default();
            let get = |name| child.attr(name).unwrap_or_default();
            let values = [get("category"), get("type"), lang, get("name")];
            identities
                .push(format!("{}{part}", values.map(|text| format!("{text}{value}")).concat()));
        } else if child.is("x", ns::DATA) {
            let fields = child.children().filter(|field| field.is("field", ns::DATA));
            let mut fields: Vec<String> = fields
                .map(|field| {
                    let values = field.children().filter(|child| child.is("value", ns::DATA));
                    let mut values: Vec<String> =
                        values.map(|text| format!("{}{value}", text.text())).collect();
                    values.sort_unstable();
                    let var = field.attr("var").unwrap_or_default();
                    format!("{var}{value}{}{part}", values.concat())
                })
                .collect();
            fields.sort_unstable();
            forms.push(format!("{}{form}", fields.concat()));
        }
    }
    [features, identities, forms]
        .map(|mut parts| {
            parts.sort_unstable();
            format!("{}{section}", parts.concat())
        })
        .concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::front::disco;

    /// The examples of XEP-0390, 5.
    #[test]
    fn the_hashes_are_those_of_the_standard() {
        let simple = "<query xmlns='http://jabber.org/protocol/disco#info'> \
         <identity category='client' name='BombusMod' type='mobile'/> \
         <feature var='http://jabber.org/protocol/si'/> \
         <feature var='http://jabber.org/protocol/bytestreams'/> \
         <feature var='http://jabber.org/protocol/chatstates'/> \
         <feature var='http://jabber.org/protocol/disco#info'/> \
         <feature var='http://jabber.org/protocol/disco#items'/><feature var='urn:xmpp:ping'/> \
         <feature var='jabber:iq:time'/><feature var='jabber:iq:privacy'/> \
         <feature var='jabber:iq:version'/><feature var='http://jabber.org/protocol/rosterx'/> \
         <feature var='urn:xmpp:time'/><feature var='jabber:x:oob'/> \
         <feature var='http://jabber.org/protocol/ibb'/> \
         <feature var='http://jabber.org/protocol/si/profile/file-transfer'/> \
         <feature var='urn:xmpp:receipts'/><feature var='jabber:iq:roster'/> \
         <feature var='jabber:iq:last'/></query>";
        let complex = "<query xmlns='http://jabber.org/protocol/disco#info'> \
         <identity category='client' name='Tkabber' type='pc' xml:lang='en'/> \
         <identity category='client' name='Ткаббер' type='pc' xml:lang='ru'/> \
         <feature var='games:board'/><feature var='http://jabber.org/protocol/activity'/> \
         <feature var='http://jabber.org/protocol/activity+notify'/> \
         <feature var='http://jabber.org/protocol/bytestreams'/> \
         <feature var='http://jabber.org/protocol/chatstates'/> \
         <feature var='http://jabber.org/protocol/commands'/> \
         <feature var='http://jabber.org/protocol/disco#info'/> \
         <feature var='http://jabber.org/protocol/disco#items'/> \
         <feature var='http://jabber.org/protocol/evil'/> \
         <feature var='http://jabber.org/protocol/feature-neg'/> \
         <feature var='http://jabber.org/protocol/geoloc'/> \
         <feature var='http://jabber.org/protocol/geoloc+notify'/> \
         <feature var='http://jabber.org/protocol/ibb'/> \
         <feature var='http://jabber.org/protocol/iqibb'/> \
         <feature var='http://jabber.org/protocol/mood'/> \
         <feature var='http://jabber.org/protocol/mood+notify'/> \
         <feature var='http://jabber.org/protocol/rosterx'/> \
         <feature var='http://jabber.org/protocol/si'/> \
         <feature var='http://jabber.org/protocol/si/profile/file-transfer'/> \
         <feature var='http://jabber.org/protocol/tune'/> \
         <feature var='http://www.facebook.com/xmpp/messages'/> \
         <feature var='http://www.xmpp.org/extensions/xep-0084.html#ns-metadata+notify'/> \
         <feature var='jabber:iq:avatar'/><feature var='jabber:iq:browse'/> \
         <feature var='jabber:iq:dtcp'/><feature var='jabber:iq:filexfer'/> \
         <feature var='jabber:iq:ibb'/><feature var='jabber:iq:inband'/> \
         <feature var='jabber:iq:jidlink'/><feature var='jabber:iq:last'/> \
         <feature var='jabber:iq:oob'/><feature var='jabber:iq:privacy'/> \
         <feature var='jabber:iq:roster'/><feature var='jabber:iq:time'/> \
         <feature var='jabber:iq:version'/><feature var='jabber:x:data'/> \
         <feature var='jabber:x:event'/><feature var='jabber:x:oob'/> \
         <feature var='urn:xmpp:avatar:metadata+notify'/><feature var='urn:xmpp:ping'/> \
         <feature var='urn:xmpp:receipts'/><feature var='urn:xmpp:time'/> \
         <x xmlns='jabber:x:data' type='result'><field type='hidden' var='FORM_TYPE'> \
         <value>urn:xmpp:dataforms:softwareinfo</value></field><field var='software'> \
         <value>Tkabber</value></field><field var='software_version'> \
         <value>0.11.1-svn-20111216-mod (Tcl/Tk 8.6b2)</value></field><field var='os'> \
         <value>Windows</value></field><field var='os_version'><value>XP</value></field></x> \
         </query>";
        for (query, hash) in [
            (simple, "kzBZbkqJ3ADrj7v08reD1qcWUwNGHaidNUgD7nHpiw8="),
            (complex, "u79ZroNJbdSWhdSp311mddz44oHHPsEBntQ5b1jqBSY="),
        ] {
            assert_eq!(OwnCaps::of(&query.parse().unwrap()).unwrap().hash, hash);
        }
    }

    #[test]
    fn a_contact_is_announced_by_the_hash_of_what_is_said_of_it_here() {
        let info: Element = format!(
            "<query xmlns='{}'><feature var='{}'/><feature var='{}'/></query>",
            ns::DISCO_INFO,
            ns::SI_FILE,
            ns::IBB
        )
        .parse()
        .unwrap();
        let own = features::ver(&info).unwrap();
        let mut caps = ContactCaps::new(None);
        assert_eq!(caps.of(&own), Some(&*own));
        assert_eq!(caps.learn(&info).as_ref(), Some(&own));
        let translation = Translation { socks5: false, ibb: true };
        let mut caps = ContactCaps::new(Some(translation));
        assert_eq!(caps.of(&own), None);
        let announced = caps.learn(&info).unwrap();
        assert_ne!(announced, own);
        let mut said = info.clone();
        translation.announce(&mut said);
        assert_eq!(features::ver(&said).as_ref(), Some(&announced));
        assert_eq!(caps.of(&own), Some(&*announced));
        // One hash never stands for two answers.
        let twice = Element::builder("query", ns::DISCO_INFO).append_all([info.clone(), info]);
        assert_eq!(caps.learn(&twice.build()), None);
    }

    #[test]
    fn a_node_stands_for_the_present_capabilities_only() {
        let contact = ["mailto:b@example.org".to_owned(), "xmpp:a@example.org".to_owned()];
        let own =
            OwnCaps::of(&disco::info("Fingerpost \u{fc}", &contact, true, true, true)).unwrap();
        for (node, is_own) in [
            (format!("{}#{}", ns::OWN_CAPS, own.ver), true),
            (format!("urn:xmpp:caps#sha-256.{}", own.hash), true),
            (format!("urn:xmpp:caps#sha-256.{}", own.ver), false),
            (format!("{}#x", ns::OWN_CAPS), false),
            (own.ver.clone(), false),
        ] {
            assert_eq!(own.names(&node), is_own, "{node}");
        }
    }
}
