//! Addresses: the one form in which they are compared, and proxied JIDs.
//!
//! One domain has many spellings: `BÜCHER.test`, `bücher.test.`, `bücher。test` and `xn--bcher-kva.test` are the same.
//! [`canonical`] reads an address before it is compared, becomes a key of a map, or is stored: labels in Unicode, in
//! lower case, separated by full stops, without a dot at the end (RFC 7622, 3.2). A server may know its own domain only
//! by another spelling; stanzas to its users use that spelling ([`respelled`]).
//!
//! A proxied JID is a user's bare JID escaped into the local part of an address at the component:
//! `juliet\40capulet.lit@xtls.example.org/balcony` stands for `juliet@capulet.lit/balcony`. Spec: XEP-0106 1.1, section
//! 4 (Transformations).

use std::{
    borrow::Cow,
    net::Ipv6Addr,
    sync::{Mutex, PoisonError},
};

use hashlink::LruCache;
use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};
use jid::{BareJid, DomainPart, FullJid, Jid};

/// The most domains with another spelling that are remembered.
const SPELLINGS: usize = 1000;

/// How servers spell domains, by the canonical form.
static SPELLED: Mutex<Option<LruCache<String, String>>> = Mutex::new(None);

/// Reads an address in any spelling into its canonical form. `None` if it is not an address.
pub fn canonical(text: &str) -> Option<Jid> {
    let (bare, resource) = match text.split_once('/') {
        Some((bare, resource)) => (bare, Some(resource)),
        None => (text, None),
    };
    let (node, domain) = match bare.split_once('@') {
        Some((node, domain)) => (Some(node), domain),
        None => (None, bare),
    };
    let spelled = canonical_domain(domain)?;
    if spelled == domain {
        return Jid::new(text).ok();
    }
    let mut address = String::with_capacity(text.len() + spelled.len());
    if let Some(node) = node {
        address.push_str(node);
        address.push('@');
    }
    address.push_str(&spelled);
    if let Some(resource) = resource {
        address.push('/');
        address.push_str(resource);
    }
    Jid::new(&address).ok()
}

/// Reads a bare address in any spelling. `None` if it is not one.
pub fn canonical_bare(text: &str) -> Option<BareJid> {
    let jid = canonical(text)?;
    jid.is_bare().then(|| jid.into_bare())
}

/// Returns the canonical form of a bare address.
pub fn identity(jid: &BareJid) -> Cow<'_, BareJid> {
    if is_plain(jid.domain().as_str()) {
        return Cow::Borrowed(jid);
    }
    canonical_bare(jid.as_str()).map_or(Cow::Borrowed(jid), Cow::Owned)
}

/// Returns whether a domain has no other spelling, as nearly all.
fn is_plain(domain: &str) -> bool {
    let letters = domain.bytes().all(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'));
    letters && !domain.ends_with('.') && !domain.contains("xn--")
}

fn canonical_domain(domain: &str) -> Option<Cow<'_, str>> {
    if is_plain(domain) {
        return Some(Cow::Borrowed(domain));
    }
    if let Some(address) = domain.strip_prefix('[') {
        let address: Ipv6Addr = address.strip_suffix(']')?.parse().ok()?;
        return Some(format!("[{address}]").into());
    }
    // The full stops of RFC 3490, 3.1.
    let dotted = domain.replace(['\u{3002}', '\u{ff0e}', '\u{ff61}'], ".");
    let dotted = dotted.strip_suffix('.').unwrap_or(&dotted);
    if dotted.ends_with('.') {
        return None;
    }
    // Servers have prepared it by RFC 3491 (nameprep); the result is the domain that is meant.
    let prepared = DomainPart::new(dotted).ok()?.to_string();
    let idna = Uts46::new();
    let (unicode, valid) = idna.to_unicode(prepared.as_bytes(), AsciiDenyList::URL, Hyphens::Check);
    valid.ok()?;
    // RFC 3491 replaces some letters that IDNA 2008 keeps: such a domain is compared as ASCII, which is stable.
    let is_stable = DomainPart::new(&unicode).is_ok_and(|again| again.as_str() == unicode);
    if is_stable {
        return Some(unicode.into_owned().into());
    }
    let ascii =
        idna.to_ascii(prepared.as_bytes(), AsciiDenyList::URL, Hyphens::Check, DnsLength::Verify);
    Some(ascii.ok()?.into_owned().into())
}

/// Remembers how a server spells the domain of an address that it has stamped.
pub fn learn_spelling(stamped: &str, canonical: &Jid) {
    let domain = canonical.domain().as_str();
    if is_plain(domain) {
        return;
    }
    let bare = stamped.split_once('/').map_or(stamped, |(bare, _)| bare);
    let spelled = bare.split_once('@').map_or(bare, |(_, domain)| domain);
    let mut known = SPELLED.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.get_or_insert_with(|| LruCache::new(SPELLINGS));
    // The first spelling stays: nobody can redirect others' stanzas by another spelling.
    if known.get(domain).is_none() {
        known.insert(domain.to_owned(), spelled.to_owned());
    }
}

/// Returns an address as its server spells it; `None` if that is the spelling here.
pub fn respelled(address: &str) -> Option<String> {
    let end = address.find('/').unwrap_or(address.len());
    let (bare, rest) = address.split_at(end);
    let (node, domain) = match bare.split_once('@') {
        Some((node, domain)) => (Some(node), domain),
        None => (None, bare),
    };
    if is_plain(domain) {
        return None;
    }
    let mut known = SPELLED.lock().unwrap_or_else(PoisonError::into_inner);
    let spelled = known.as_mut()?.get(domain).filter(|spelled| *spelled != domain)?;
    Some(match node {
        Some(node) => format!("{node}@{spelled}{rest}"),
        None => format!("{spelled}{rest}"),
    })
}

/// The ten characters that XEP-0106 escapes, with their codes.
const ESCAPES: [(char, &str); 10] = [
    (' ', "20"),
    ('"', "22"),
    ('&', "26"),
    ('\'', "27"),
    ('/', "2f"),
    (':', "3a"),
    ('<', "3c"),
    ('>', "3e"),
    ('@', "40"),
    ('\\', "5c"),
];

/// Escapes a bare JID into a local part. A backslash is escaped only where it would start an escape.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for (i, c) in text.char_indices() {
        let code = ESCAPES.iter().find(|(special, _)| *special == c).map(|(_, code)| *code);
        match code {
            Some(code) if c != '\\' || starts_escape(&text[i..]) => {
                out.push('\\');
                out.push_str(code);
            }
            _ => out.push(c),
        }
    }
    out
}

/// Undoes [`escape`].
pub fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if starts_escape(rest)
            && let Some((special, _)) = ESCAPES.iter().find(|(_, code)| rest[1..].starts_with(code))
        {
            out.push(*special);
            rest = &rest[3..];
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}

fn starts_escape(text: &str) -> bool {
    text.strip_prefix('\\')
        .is_some_and(|rest| ESCAPES.iter().any(|(_, code)| rest.starts_with(code)))
}

/// Returns the proxied address of `user` at `component`, with the user's resource if it has one.
///
/// # Errors
/// `None` if the escaped address would exceed the limit of addresses (1023 bytes).
pub fn proxied(user: &Jid, component: &BareJid) -> Option<Jid> {
    let local = escape(user.to_bare().as_str());
    let text = match user.resource() {
        Some(resource) => format!("{local}@{component}/{resource}"),
        None => format!("{local}@{component}"),
    };
    Jid::new(&text).ok()
}

/// Returns the user that a proxied address stands for; `None` if it is not an escaped bare JID of a user elsewhere.
pub fn unproxied(address: &Jid, component: &BareJid) -> Option<Jid> {
    let local = address.node()?;
    let text = unescape(local.as_str());
    let user = canonical_bare(&text)?;
    let node = user.node()?;
    // The local part must be escaped correctly; its domain may have any spelling.
    if user.domain() == identity(component).domain() || escape(&text) != local.as_str() {
        return None;
    }
    // A proxied address of another component of this kind: its local part is itself an escaped bare JID.
    if unescape(node.as_str()).contains('@') {
        return None;
    }
    match address.resource() {
        Some(resource) => Some(Jid::from(user.with_resource(resource))),
        None => Some(Jid::from(user)),
    }
}

/// Returns a JID as full, if it has a resource.
pub fn full(jid: &Jid) -> Option<FullJid> {
    FullJid::try_from(jid.clone()).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn component() -> BareJid {
        BareJid::new("xtls.example.org").unwrap()
    }

    #[test]
    fn a_user_and_its_proxied_address_stand_for_each_other() {
        let user = Jid::new("juliet@capulet.lit/balcony").unwrap();
        let address = proxied(&user, &component()).unwrap();
        assert_eq!(address.as_str(), "juliet\\40capulet.lit@xtls.example.org/balcony");
        assert_eq!(unproxied(&address, &component()), Some(user));
    }

    #[test]
    fn what_is_no_escaped_bare_jid_is_nobody() {
        for text in [
            "xtls.example.org",
            "juliet@xtls.example.org",
            "capulet.lit@xtls.example.org",
            "a\\40xtls.example.org@xtls.example.org",
            "a\\5c40b.c\\40other.example@xtls.example.org",
        ] {
            assert_eq!(unproxied(&Jid::new(text).unwrap(), &component()), None, "{text}");
        }
    }

    #[test]
    fn every_spelling_of_a_domain_is_the_same_address() {
        for (spellings, expected) in [
            (
                [
                    "alice@example.test",
                    "ALICE@EXAMPLE.test",
                    "alice@example.test.",
                    "alice@example\u{3002}test",
                    "alice@example\u{ff0e}test\u{ff61}",
                ],
                "alice@example.test",
            ),
            (
                [
                    "alice@b\u{fc}cher.test",
                    "alice@BU\u{308}CHER.test",
                    "Alice@xn--bcher-kva.test",
                    "alice@XN--BCHER-KVA.TEST.",
                    "alice@b\u{fc}cher\u{3002}test\u{3002}",
                ],
                "alice@b\u{fc}cher.test",
            ),
        ] {
            for text in spellings {
                assert_eq!(canonical(text).unwrap().as_str(), expected, "{text}");
                let full = canonical(&format!("{text}/Res.\u{3002}")).unwrap();
                assert_eq!(full.as_str(), format!("{expected}/Res.\u{3002}"), "{text}");
                let proxied = format!("{}@xtls.example.org", escape(&text.to_lowercase()));
                let proxied = Jid::new(&proxied).unwrap();
                assert_eq!(unproxied(&proxied, &component()).unwrap().as_str(), expected);
            }
        }
        assert_eq!(canonical("EXAMPLE.test.").unwrap().as_str(), "example.test");
        assert_eq!(canonical("a@[2001:DB8:0::1]").unwrap().as_str(), "a@[2001:db8::1]");
        assert_eq!(canonical("a@192.0.2.1").unwrap().as_str(), "a@192.0.2.1");
    }

    #[test]
    fn what_has_no_domain_is_not_an_address() {
        for text in
            ["", "a@", "@b", "a@.", "a@b..", "a@b..c", "a@\u{3002}", "a@b@c", "a@b/", "a@xn--0"]
        {
            assert_eq!(canonical(text), None, "{text}");
        }
    }

    #[test]
    fn domains_that_differ_in_dns_are_not_the_same_address() {
        // RFC 3491 replaces this letter and IDNA 2008 does not: two domains, each stable.
        let old = canonical("a@stra\u{df}e.test").unwrap();
        let new = canonical("a@xn--strae-oqa.test").unwrap();
        assert_eq!((old.as_str(), new.as_str()), ("a@strasse.test", "a@xn--strae-oqa.test"));
    }

    #[test]
    fn the_own_domain_is_known_in_every_spelling() {
        for text in
            ["a\\40xtls.example.org.", "a\\40xtls\u{3002}example.org", "a\\40XTLS.example.org"]
        {
            let address = format!("{text}@xtls.example.org");
            let address = Jid::new(&address).unwrap();
            assert_eq!(unproxied(&address, &component()), None, "{text}");
        }
    }

    #[test]
    fn a_server_is_written_to_as_it_spells_itself() {
        let stamped = "alice@xn--mnchen-3ya.test/here";
        let address = canonical(stamped).unwrap();
        assert_eq!(respelled(address.as_str()), None);
        learn_spelling(stamped, &address);
        learn_spelling("eve@m\u{fc}nchen.test/x", &address);
        assert_eq!(respelled(address.as_str()).as_deref(), Some(stamped));
        assert_eq!(respelled("m\u{fc}nchen.test").as_deref(), Some("xn--mnchen-3ya.test"));
        assert_eq!(respelled("alice@example.test/here"), None);
    }

    proptest! {
        #[test]
        fn the_canonical_form_is_stable(text in "[a-z]{1,8}@[a-zA-Z0-9äÄßς。.\\-]{1,20}(/[a-z]{1,4})?") {
            if let Some(address) = canonical(&text) {
                prop_assert_eq!(canonical(address.as_str()), Some(address.clone()));
                prop_assert_eq!(identity(&address.to_bare()).into_owned(), address.to_bare());
            }
        }

        #[test]
        fn escaping_is_undone(text in "[a-z\\\\ \"&'/:<>@0-9]{0,60}") {
            prop_assert_eq!(unescape(&escape(&text)), text);
        }
    }
}
