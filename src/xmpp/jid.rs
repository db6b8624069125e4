//! Proxied JIDs: a user's bare JID escaped into the local part of an address at the component.
//!
//! `juliet\40capulet.lit@xtls.example.org/balcony` stands for `juliet@capulet.lit/balcony`.
//! Spec: XEP-0106 1.1, section 4 (Transformations).

use jid::{BareJid, FullJid, Jid};

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

/// The proxied address of `user` at `component`, with the user's resource if it has one.
///
/// # Errors
/// `None` if the escaped address would be longer than an address may be (1023 bytes).
pub fn proxied(user: &Jid, component: &BareJid) -> Option<Jid> {
    let local = escape(user.to_bare().as_str());
    let text = match user.resource() {
        Some(resource) => format!("{local}@{component}/{resource}"),
        None => format!("{local}@{component}"),
    };
    Jid::new(&text).ok()
}

/// Whom a proxied address stands for; `None` if it is not an escaped bare JID of a user elsewhere.
pub fn unproxied(address: &Jid, component: &BareJid) -> Option<Jid> {
    let local = address.node()?;
    let user = BareJid::new(&unescape(local.as_str())).ok()?;
    user.node()?;
    if user.domain() == component.domain() || escape(user.as_str()) != local.as_str() {
        return None;
    }
    // A proxied address of another component of this kind: its local part is an escaped bare JID itself.
    if user.node().is_some_and(|node| unescape(node.as_str()).contains('@')) {
        return None;
    }
    match address.resource() {
        Some(resource) => Some(Jid::from(user.with_resource(resource))),
        None => Some(Jid::from(user)),
    }
}

/// A JID as full, if it has a resource.
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

    proptest! {
        #[test]
        fn escaping_is_undone(text in "[a-z\\\\ \"&'/:<>@0-9]{0,60}") {
            prop_assert_eq!(unescape(&escape(&text)), text);
        }
    }
}
