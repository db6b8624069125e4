//! Judges an offered print by the keys of its user.

use fingerpost_wire::{
    key::{State, Verdict},
    print::{HashKind, Method, Print},
};

use super::model::Key;

/// A verdict and the key that it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement<'a> {
    /// The verdict.
    pub verdict: Verdict,
    /// The key with this print. Its assurance and `created` (since when) go into the hint.
    pub key: Option<&'a Key>,
}

/// Judges an offered print by `keys`, all keys that the user has ever had.
///
/// Without a method, or with one that no key with this print has, the print alone decides: a revoked print is revoked
/// under any name. Bytes are compared regardless of the hash. If several keys have the print, a revoked one takes
/// precedence over an active one, and an active one over a superseded one. The end of a key's validity does not count
/// here: pass the keys [as they are now](Key::as_of).
///
/// # Security
/// A wrong `Match` would vouch for an impostor; a wrong `Mismatch` or `Unknown` only warns.
pub fn judge<'a>(keys: &'a [Key], method: Option<Method>, print: &Print) -> Judgement<'a> {
    let found = |state| {
        keys.iter().find(|key| {
            key.state == state
                && key.has(print)
                && (state == State::Revoked || method.is_none_or(|method| key.method == method))
        })
    };
    for (state, verdict) in [
        (State::Revoked, Verdict::Revoked),
        (State::Active, Verdict::Match),
        (State::Superseded, Verdict::Superseded),
    ] {
        if let Some(key) = found(state) {
            return Judgement { verdict, key: Some(key) };
        }
    }
    let method = method.unwrap_or_else(|| resolve_method(keys, print));
    let mine = |key: &&Key| key.method == method;
    let other = |key: &Key| key.state == State::Active && !is_spki_alone(key, print);
    let any = keys.iter().filter(mine).any(|key| other(key) || may_be(key, print));
    Judgement { verdict: if any { Verdict::Mismatch } else { Verdict::Unknown }, key: None }
}

/// Judges an offered print that cannot be read, or that is by a hash which the registry does not keep: it may be that of
/// any key.
pub fn judge_unread(keys: &[Key], method: Method) -> Verdict {
    let counts = |key: &Key| matches!(key.state, State::Active | State::Revoked);
    match keys.iter().any(|key| key.method == method && counts(key)) {
        true => Verdict::Mismatch,
        false => Verdict::Unknown,
    }
}

/// Returns whether only the print of the key's public key is known, and `print` may be that of a certificate with it. A
/// party that sees the certificate can tell, and finds the key in the registry.
fn is_spki_alone(key: &Key, print: &Print) -> bool {
    key.method == Method::X509
        && !key.has_material
        && print.hash() != HashKind::SpkiSha256
        && key.prints.iter().all(|own| own.hash() == HashKind::SpkiSha256)
}

/// Returns whether a print may be that of a revoked key without anyone being able to tell: only prints of the key by
/// another hash are known.
fn may_be(key: &Key, print: &Print) -> bool {
    let kinds: &[HashKind] = match (key.method, print.hash()) {
        // An OpenPGP key has one fingerprint.
        (Method::OpenPgp | Method::Srp, _) => return false,
        (Method::X509, HashKind::Sha1) => &[HashKind::Sha1],
        // 32 bytes may be of either.
        (Method::X509, HashKind::Sha256 | HashKind::SpkiSha256) => {
            &[HashKind::Sha256, HashKind::SpkiSha256]
        }
    };
    key.state == State::Revoked
        && !key.has_material
        && !kinds.iter().any(|kind| key.prints.iter().any(|own| own.hash() == *kind))
}

/// Returns the method of a print that was offered without one: that of the user's key with this print, or one by its
/// length.
///
/// The length hardly decides: 20 bytes are a certificate's SHA-1 or an OpenPGP v4 fingerprint, 32 bytes a certificate's
/// SHA-256 or a v6 fingerprint. Both count as `x509`, as in the offers that have prints without methods.
pub fn resolve_method(keys: &[Key], print: &Print) -> Method {
    let matching = |active: bool| {
        keys.iter().find(|key| (key.state == State::Active) == active && key.has(print))
    };
    matching(true).or_else(|| matching(false)).map_or(Method::X509, |key| key.method)
}

#[cfg(test)]
mod tests {
    use fingerpost_wire::key::KeyId;
    use jid::BareJid;
    use time::macros::datetime;

    use super::*;
    use crate::registry::model::{Addition, NewKey, Source};

    fn print(byte: u8) -> Print {
        Print::new(HashKind::Sha256, &[byte; 32]).unwrap()
    }

    fn key(method: Method, byte: u8, state: State) -> Key {
        let owner = BareJid::new("romeo@montague.lit").unwrap();
        let new = NewKey::of_prints(method, vec![print(byte)], "", Source::Self_).unwrap();
        let now = datetime!(2026-11-24 2:00 UTC);
        let added = Key::add(&owner, &new, &[], 32, now, KeyId::new(u128::from(byte)));
        let Ok(Addition::Fresh { key, .. }) = added else { panic!("{added:?}") };
        Key { state, ..key }
    }

    #[test]
    fn each_verdict() {
        use Method::{OpenPgp, X509};
        let keys = [
            key(X509, 1, State::Active),
            key(X509, 2, State::Superseded),
            key(X509, 3, State::Revoked),
            key(OpenPgp, 4, State::Superseded),
            key(X509, 5, State::Active),
            key(X509, 5, State::Superseded),
            key(X509, 6, State::Active),
            key(X509, 6, State::Revoked),
        ];
        let verdict = |method, byte| {
            let judgement = judge(&keys, method, &print(byte));
            (judgement.verdict, judgement.key.map(|key| key.state))
        };
        assert_eq!(verdict(Some(X509), 1), (Verdict::Match, Some(State::Active)));
        assert_eq!(verdict(None, 1), (Verdict::Match, Some(State::Active)));
        assert_eq!(verdict(Some(X509), 2), (Verdict::Superseded, Some(State::Superseded)));
        assert_eq!(verdict(Some(X509), 3), (Verdict::Revoked, Some(State::Revoked)));
        assert_eq!(verdict(Some(OpenPgp), 3), (Verdict::Revoked, Some(State::Revoked)));
        assert_eq!(verdict(Some(X509), 9), (Verdict::Mismatch, None));
        assert_eq!(verdict(None, 9), (Verdict::Mismatch, None));
        assert_eq!(verdict(Some(OpenPgp), 1), (Verdict::Unknown, None));
        assert_eq!(verdict(Some(OpenPgp), 9), (Verdict::Unknown, None));
        assert_eq!(verdict(Some(X509), 5), (Verdict::Match, Some(State::Active)));
        assert_eq!(verdict(Some(X509), 6), (Verdict::Revoked, Some(State::Revoked)));
        assert_eq!(judge(&[], None, &print(1)), Judgement { verdict: Verdict::Unknown, key: None });
    }

    #[test]
    fn a_print_that_may_be_of_a_revoked_key_is_not_unknown() {
        let revoked = [key(Method::X509, 3, State::Revoked)];
        let sha1 = Print::new(HashKind::Sha1, &[9; 20]).unwrap();
        let verdict = |keys: &[Key], method, print: &Print| judge(keys, method, print).verdict;
        for method in [Some(Method::X509), None] {
            assert_eq!(verdict(&revoked, method, &sha1), Verdict::Mismatch);
            // The revoked key's print by this hash is known, and is another one.
            assert_eq!(verdict(&revoked, method, &print(4)), Verdict::Unknown);
        }
        let of_sha1 = Key { prints: vec![sha1.clone()], ..revoked[0].clone() };
        assert_eq!(verdict(&[of_sha1], None, &print(4)), Verdict::Mismatch);
        let whole = Key { has_material: true, ..revoked[0].clone() };
        assert_eq!(verdict(&[whole], None, &sha1), Verdict::Unknown);
        let openpgp = key(Method::OpenPgp, 3, State::Revoked);
        assert_eq!(verdict(&[openpgp], Some(Method::OpenPgp), &sha1), Verdict::Unknown);
    }

    #[test]
    fn a_print_is_judged_by_its_bytes_whatever_it_is_the_hash_of() {
        let keys = [key(Method::X509, 1, State::Active)];
        let spki = Print::new(HashKind::SpkiSha256, &[1; 32]).unwrap();
        assert_eq!(judge(&keys, None, &spki).verdict, Verdict::Match);
    }

    #[test]
    fn a_print_without_a_method_gets_that_of_the_key_then_x509() {
        let keys = [key(Method::OpenPgp, 1, State::Active)];
        assert_eq!(resolve_method(&keys, &print(1)), Method::OpenPgp);
        assert_eq!(resolve_method(&keys, &print(2)), Method::X509);
    }
}
