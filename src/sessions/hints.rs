//! The registry's judgement of an offer's prints: verdicts, the `<hints/>` element, and policy.

use std::collections::{HashMap, hash_map::Entry};

use fingerpost_wire::{
    key::{Assurance, State, Verdict},
    ns,
    offer::{Offer, Printed},
    print::Method,
    word::Word,
    xml,
};
use jid::BareJid;
use minidom::Element;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::registry::{model::Key, verdict};

/// What happens to a print with a bad verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerdictPolicy {
    /// The print passes, with its hint.
    Annotate,
    /// The print is removed from the offer.
    Strip,
    /// The session is refused.
    Reject,
}

/// The policy for each bad verdict.
#[derive(Clone, Copy, Debug)]
pub struct Policies {
    /// A print that the registry has never seen.
    pub unknown: VerdictPolicy,
    /// The user has keys of this method, and this print belongs to none of them.
    pub mismatch: VerdictPolicy,
    /// A revoked key.
    pub revoked: VerdictPolicy,
}

/// One offered print, and what the registry says of it.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The print as offered.
    pub print: Printed,
    /// Its method, from the offer or from the registry.
    pub method: Word<Method>,
    /// The verdict.
    pub verdict: Verdict,
    /// Assurance and date of the key with this print.
    pub known: Option<(Assurance, OffsetDateTime)>,
}

/// The verdicts on all prints of an offer, and the offered methods without a print.
#[derive(Clone, Debug, Default)]
pub struct OfferJudgement {
    /// In the offer's order.
    pub prints: Vec<Judged>,
    /// Methods of the offer that came without a print.
    pub bare: Vec<Method>,
}

impl OfferJudgement {
    /// Returns the offered prints, each with its method.
    pub fn prints(&self) -> Vec<(Word<Method>, Printed)> {
        self.prints.iter().map(|judged| (judged.method.clone(), judged.print.clone())).collect()
    }

    /// Returns the names of all offered methods, from the list or from a print, except those that policy removes.
    pub fn methods(&self, offer: &Offer, stripped: &Stripped) -> Vec<Word<Method>> {
        let mut names = offer.methods.clone();
        for judged in &self.prints {
            if !names.contains(&judged.method) {
                names.push(judged.method.clone());
            }
        }
        names.retain(|name| !stripped.methods.contains(name));
        names
    }
}

/// Judges an offer by its user's keys. If the offer is an answer, `others` are the methods of the offer that it
/// answers: a dialect that cannot name methods means one of them.
///
/// A print without a method may be meant for any offered method. If the registry knows the print, it is judged as that
/// key; otherwise under each of those methods, and the worst verdict counts. If it were not so, a stranger could leave
/// out the method to be `unknown` instead of `mismatch`.
///
/// A print that could not be read is judged as one that the registry does not know.
pub fn judge(offer: &Offer, others: &[Word<Method>], keys: &[Key]) -> OfferJudgement {
    let offered: Vec<Method> = offer.methods.iter().filter_map(Word::known).collect();
    let candidates = candidates(&offered, others);
    let mut prints: Vec<Judged> = Vec::new();
    let mut places = HashMap::new();
    for ((said, print), method) in offer.prints.iter().zip(methods(offer, &candidates, keys)) {
        let under = match said {
            Some(name) => Vec::from_iter(name.likely()),
            None if is_registered(print, keys) => Vec::from_iter(method.likely()),
            None => candidates.for_prints(),
        };
        let place = places.entry((method.clone(), print.identity()));
        let judged = judge_under(&under, method, print, keys);
        // One verdict on each print and method: the worst.
        match place {
            Entry::Vacant(place) => {
                place.insert(prints.len());
                prints.push(judged);
            }
            Entry::Occupied(place) => {
                let twin = &mut prints[*place.get()];
                if judged.verdict > twin.verdict {
                    *twin = judged;
                }
            }
        }
    }
    let bare = offered
        .into_iter()
        .filter(|method| !prints.iter().any(|judged| judged.method == *method))
        .collect();
    OfferJudgement { prints, bare }
}

/// Returns whether the user has, or had, a key with this print.
fn is_registered(print: &Printed, keys: &[Key]) -> bool {
    print.print().is_some_and(|print| keys.iter().any(|key| key.has(print)))
}

/// Judges a print under each of `methods`; the worst verdict counts. Without methods, it is that of a method which no
/// key is registered for.
fn judge_under(
    methods: &[Method],
    method: Word<Method>,
    printed: &Printed,
    keys: &[Key],
) -> Judged {
    let methods = if methods.is_empty() { &[Method::Srp] } else { methods };
    let under = |method: &Method| match printed.print() {
        Some(print) => verdict::judge(keys, Some(*method), print),
        None => verdict::Judgement { verdict: verdict::judge_unread(keys, *method), key: None },
    };
    let worst = methods.iter().map(under).reduce(|a, b| if a.verdict >= b.verdict { a } else { b });
    let (verdict, key) = worst.map_or((Verdict::Unknown, None), |worst| (worst.verdict, worst.key));
    let known = key.map(|key| (key.assurance, key.created));
    Judged { print: printed.clone(), method, verdict, known }
}

/// The methods that a print without a method may be meant for.
struct Candidates(Vec<Method>);

impl Candidates {
    /// Returns all of them; without any, every method that has prints.
    fn for_prints(&self) -> Vec<Method> {
        if self.0.is_empty() { vec![Method::X509, Method::OpenPgp] } else { self.0.clone() }
    }
}

/// Returns the methods with prints in an offer's list, or, without a list, those of the offer that it answers.
fn candidates(offered: &[Method], others: &[Word<Method>]) -> Candidates {
    let with_prints = |method: &Method| *method != Method::Srp;
    let own: Vec<Method> = offered.iter().copied().filter(with_prints).collect();
    if !own.is_empty() {
        return Candidates(own);
    }
    Candidates(others.iter().filter_map(Word::known).filter(with_prints).collect())
}

/// Returns the method of each print. If the offer does not say it, the first of these that applies decides:
///
/// 1. the user's key with this print;
/// 2. the same print elsewhere in the offer;
/// 3. the only candidate;
/// 4. the length, if prints of 20 and 32 bytes stand side by side: 20 is OpenPGP (a version 4 fingerprint), 32 is
///    X.509;
/// 5. the order of the methods, if as many prints are left as methods;
/// 6. X.509.
fn methods(offer: &Offer, candidates: &Candidates, keys: &[Key]) -> Vec<Word<Method>> {
    let mut elsewhere: HashMap<(bool, &[u8]), Method> = HashMap::new();
    for (name, print) in &offer.prints {
        if let Some(Word::Known(method)) = name {
            elsewhere.entry(print.identity()).or_insert(*method);
        }
    }
    let registered = |print: &Printed| {
        let print = print.print().filter(|_| is_registered(print, keys))?;
        Some(verdict::resolve_method(keys, print))
    };
    let found: Vec<Option<Word<Method>>> = offer
        .prints
        .iter()
        .map(|(name, print)| {
            name.clone().or_else(|| {
                let method =
                    registered(print).or_else(|| elsewhere.get(&print.identity()).copied());
                method.map(Word::Known)
            })
        })
        .collect();
    let open: Vec<&Printed> =
        offer.prints.iter().zip(&found).filter(|(_, m)| m.is_none()).map(|((_, p), _)| p).collect();
    let is_short =
        |printed: &Printed| printed.print().is_some_and(|print| print.as_bytes().len() == 20);
    let free: Vec<Method> = candidates
        .0
        .iter()
        .copied()
        .filter(|method| !found.contains(&Some(Word::Known(*method))))
        .collect();
    let guess: Vec<Method> = match candidates.0.as_slice() {
        [only] => vec![*only; open.len()],
        [_, ..]
            if open.iter().any(|print| !is_short(print))
                && open.iter().any(|print| is_short(print)) =>
        {
            let by_length = |print: &&Printed| match is_short(print) {
                true => Method::OpenPgp,
                false => Method::X509,
            };
            open.iter().map(by_length).collect()
        }
        [_, ..] if free.len() == open.len() => free,
        _ => vec![Method::X509; open.len()],
    };
    let mut guess = guess.into_iter();
    found
        .into_iter()
        .map(|name| name.unwrap_or_else(|| Word::Known(guess.next().unwrap_or(Method::X509))))
        .collect()
}

/// The prints and methods that policy removes from an offer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stripped {
    /// The prints.
    pub prints: Vec<Printed>,
    /// The methods that had prints and have none left.
    pub methods: Vec<Word<Method>>,
}

/// Applies the policies to the offer of `owner`.
///
/// # Errors
/// The text for both users, if the session must be refused.
pub fn decide(
    judgement: &OfferJudgement,
    policies: &Policies,
    owner: &BareJid,
) -> Result<Stripped, String> {
    let mut gone = Stripped::default();
    let mut kept = Vec::new();
    for judged in &judgement.prints {
        let (policy, what) = match judged.verdict {
            Verdict::Unknown => (policies.unknown, "is not in the registry"),
            Verdict::Mismatch => {
                (policies.mismatch, "is none of the keys that this user registered")
            }
            Verdict::Revoked => (policies.revoked, "was revoked"),
            _ => (VerdictPolicy::Annotate, ""),
        };
        let what = match judged.print {
            Printed::Read(_) => what,
            Printed::Unread { .. } => "is not a fingerprint that this service can read",
        };
        match policy {
            VerdictPolicy::Annotate => kept.push(&judged.method),
            VerdictPolicy::Strip => {
                gone.prints.push(judged.print.clone());
                gone.methods.push(judged.method.clone());
            }
            VerdictPolicy::Reject => {
                return Err(format!(
                    "{owner} offers the {} key {}, which {what}: this service refuses such keys",
                    judged.method, judged.print
                ));
            }
        }
    }
    gone.methods.sort_unstable();
    gone.methods.dedup();
    gone.methods.retain(|method| !kept.contains(&method));
    Ok(gone)
}

/// Returns the `<hints/>` of an offer.
pub fn to_element(judgement: &OfferJudgement, keys: &[Key], owner: &BareJid) -> Element {
    let mut hints = xml::element("hints", ns::HINTS, &[("jid", owner.as_str())]);
    let mut add = |method: &str,
                   print: &Printed,
                   verdict: Verdict,
                   known: Option<(Assurance, OffsetDateTime)>| {
        let mut element = xml::element("print", ns::HINTS, &[("method", method)]);
        if let Some(hash) = print.hash() {
            xml::set(&mut element, "hash", &hash);
        }
        xml::set(&mut element, "verdict", verdict.as_str());
        if let Some((assurance, since)) = known {
            xml::set(&mut element, "assurance", assurance.as_str());
            let since = since.replace_nanosecond(0).unwrap_or(since);
            if let Ok(since) = since.format(&Rfc3339) {
                xml::set(&mut element, "since", &since);
            }
        }
        element.append_text(print.to_string());
        hints.append_child(element);
    };
    for judged in &judgement.prints {
        add(judged.method.as_str(), &judged.print, judged.verdict, judged.known);
    }
    for method in &judgement.bare {
        for key in keys.iter().filter(|key| key.method == *method && key.state == State::Active) {
            for print in &key.prints {
                let print = Printed::Read(print.clone());
                add(
                    method.as_str(),
                    &print,
                    Verdict::Registered,
                    Some((key.assurance, key.created)),
                );
            }
        }
    }
    hints
}

#[cfg(test)]
mod tests {
    use fingerpost_wire::{
        key::KeyId,
        print::{HashKind, Print},
    };
    use time::macros::datetime;

    use super::*;
    use crate::registry::model::{Addition, NewKey, Source};

    const NOW: OffsetDateTime = datetime!(2026-11-24 2:00 UTC);

    fn key(byte: u8, expires: Option<OffsetDateTime>) -> Key {
        let print = Print::new(HashKind::Sha256, &[byte; 32]).unwrap();
        let new = NewKey::of_prints(Method::X509, vec![print], "", Source::Self_).unwrap();
        let owner = BareJid::new("romeo@m.lit").unwrap();
        let id = KeyId::new(byte.into());
        match Key::add(&owner, &new, &[], 9, NOW, id).unwrap() {
            Addition::Fresh { key, .. } => Key { expires, ..key },
            known => panic!("{known:?}"),
        }
    }

    fn hints(offer: &str, keys: &[Key]) -> String {
        let keys: Vec<Key> = keys.iter().map(|key| key.as_of(NOW)).collect();
        let content: Element = format!(
            "<content xmlns='urn:xmpp:jingle:1'><description xmlns='urn:xmpp:jingle:apps:tls'><methods>{offer}\
             </methods></description></content>"
        )
        .parse()
        .unwrap();
        let judgement = judge(&Offer::read(&content), &[], &keys);
        String::from(&to_element(&judgement, &keys, &BareJid::new("romeo@m.lit").unwrap()))
    }

    #[test]
    fn a_method_without_a_print_gets_the_keys_in_use_and_not_the_expired() {
        let keys = [key(1, None), key(2, Some(NOW)), key(3, Some(NOW + time::Duration::DAY))];
        let said = hints("<method name='x509'/>", &keys);
        assert_eq!(said.matches("registered").count(), 2, "{said}");
        assert!(!said.contains(&"02:".repeat(31)), "{said}");
    }

    #[test]
    fn an_unreadable_print_is_judged_and_hides_the_users_keys() {
        let revoked = Key { state: State::Revoked, ..key(3, None) };
        for text in ["", "hello", &"AB".repeat(64), &"x".repeat(5000)] {
            let offer =
                format!("<method name='x509'><print hash='sha-512'>{text}</print></method>");
            for (keys, verdict) in [
                (&[][..], "unknown"),
                (&[key(1, None)], "mismatch"),
                (std::slice::from_ref(&revoked), "mismatch"),
            ] {
                let said = hints(&offer, keys);
                assert_eq!(said.matches("<print ").count(), 1, "{said}");
                assert!(said.contains(&format!("verdict='{verdict}'")), "{said}");
                assert!(said.contains("hash='sha-512'") && said.len() < 600, "{said}");
            }
        }
        // Of several methods, it may be meant for the one that the user has keys of.
        let offer = Offer {
            methods: vec![Method::OpenPgp.into(), Method::X509.into()],
            prints: vec![(None, Printed::Unread { text: "hello".to_owned(), hash: None })],
        };
        let judged = judge(&offer, &[], &[key(1, None)]);
        assert_eq!(judged.prints[0].verdict, Verdict::Mismatch);
    }

    #[test]
    fn a_print_of_an_unknown_method_stays_under_its_name() {
        let revoked = Key { state: State::Revoked, ..key(3, None) };
        let keys = [key(1, None), revoked];
        for (name, byte, verdict) in [
            ("foo", "01", "unknown"),
            ("foo", "02", "unknown"),
            ("foo", "03", "revoked"),
            ("X509", "01", "match"),
            ("X509", "02", "mismatch"),
        ] {
            let print = byte.repeat(32);
            let said =
                hints(&format!("<method name='{name}'><print>{print}</print></method>"), &keys);
            assert_eq!(said.matches("<print ").count(), 1, "{said}");
            assert!(said.contains(&format!("method='{name}'")), "{said}");
            assert!(said.contains(&format!("verdict='{verdict}'")), "{said}");
        }
    }

    #[test]
    fn an_expired_key_is_no_match() {
        let print = "02".repeat(32);
        let offer = format!("<method name='x509'><print>{print}</print></method>");
        assert!(hints(&offer, &[key(2, None)]).contains("verdict='match'"));
        assert!(hints(&offer, &[key(2, Some(NOW))]).contains("verdict='superseded'"));
    }

    /// Returns an offer of prints without methods, in the order given.
    fn bare_offer(methods: &[&str], prints: &[Print]) -> Offer {
        Offer {
            methods: methods.iter().map(|name| Word::new(name)).collect(),
            prints: prints.iter().map(|print| (None, Printed::Read(print.clone()))).collect(),
        }
    }

    #[test]
    fn the_method_of_a_print_without_one_is_told_by_registry_then_company_then_length_then_order() {
        use Method::{OpenPgp, X509};
        let long = |byte| Print::new(HashKind::Sha256, &[byte; 32]).unwrap();
        let short = |byte| Print::new(HashKind::Sha1, &[byte; 20]).unwrap();
        let keys = [key(1, None)];
        for (methods, prints, expected) in [
            (vec!["openpgp", "srp"], vec![long(1)], vec![X509]),
            (vec!["openpgp", "srp"], vec![short(9)], vec![OpenPgp]),
            (vec!["openpgp", "x509"], vec![long(1), long(2)], vec![X509, OpenPgp]),
            (vec!["openpgp", "x509"], vec![long(2), short(3)], vec![X509, OpenPgp]),
            (vec!["openpgp", "x509"], vec![short(2), short(3)], vec![OpenPgp, X509]),
            (vec!["x509", "openpgp"], vec![short(2), short(3)], vec![X509, OpenPgp]),
            (vec!["x509", "openpgp"], vec![short(2), short(3), short(4)], vec![X509; 3]),
            (vec![], vec![short(2), short(3)], vec![X509; 2]),
        ] {
            let offer = bare_offer(&methods, &prints);
            let got = judge(&offer, &[], &keys).prints;
            let got: Vec<_> = got.iter().filter_map(|judged| judged.method.likely()).collect();
            assert_eq!(got, expected, "{methods:?} {prints:?}");
        }
    }

    fn verdicts(offer: &Offer, others: &[&str], keys: &[Key]) -> Vec<(Method, Verdict)> {
        let others: Vec<_> = others.iter().map(|name| Word::new(name)).collect();
        let judged = judge(offer, &others, keys).prints;
        let known = |judged: &Judged| match judged.method {
            Word::Known(method) => (method, judged.verdict),
            Word::Other(_) => panic!("{judged:?}"),
        };
        judged.iter().map(known).collect()
    }

    #[test]
    fn a_print_without_a_method_is_judged_under_every_method_and_the_worst_counts() {
        use Method::{OpenPgp, X509};
        let long = |byte| Print::new(HashKind::Sha256, &[byte; 32]).unwrap();
        let short = |byte| Print::new(HashKind::Sha1, &[byte; 20]).unwrap();
        // The user has an x509 key. A stranger's print beside it is not hers, whatever its method.
        let keys = [key(1, None)];
        for methods in [&["x509", "openpgp"][..], &["openpgp", "x509"], &["x509"], &[]] {
            for stranger in [long(9), short(9)] {
                for prints in [[long(1), stranger.clone()], [stranger.clone(), long(1)]] {
                    let found = judge(&bare_offer(methods, &prints), &[], &keys).prints;
                    let of = |print: &Print| {
                        let judged = found
                            .iter()
                            .find(|judged| judged.print.print() == Some(print))
                            .unwrap();
                        judged.verdict
                    };
                    assert_eq!(of(&long(1)), Verdict::Match, "{methods:?} {prints:?}");
                    assert_eq!(of(&stranger), Verdict::Mismatch, "{methods:?} {prints:?}");
                }
            }
        }
        // Under a method without keys of the user, it is unknown.
        let only = bare_offer(&["openpgp"], &[long(9)]);
        assert_eq!(verdicts(&only, &[], &keys), [(OpenPgp, Verdict::Unknown)]);
        // A revoked print is revoked under any method.
        let revoked = Key { state: State::Revoked, ..key(3, None) };
        let offer = bare_offer(&["openpgp"], &[long(3)]);
        assert_eq!(verdicts(&offer, &[], &[revoked]), [(X509, Verdict::Revoked)]);
    }

    #[test]
    fn a_print_that_is_repeated_without_its_method_is_judged_as_if_it_had_none() {
        let long = |byte| Print::new(HashKind::Sha256, &[byte; 32]).unwrap();
        let keys = [key(1, None)];
        for turned in [false, true] {
            let long = |byte| Printed::Read(long(byte));
            let mut prints = vec![
                (Some(Word::Known(Method::X509)), long(1)),
                (Some(Word::Known(Method::OpenPgp)), long(9)),
                (None, long(9)),
            ];
            if turned {
                prints.reverse();
            }
            let methods = vec![Method::X509.into(), Method::OpenPgp.into()];
            let mut found = verdicts(&Offer { methods, prints }, &[], &keys);
            found.sort_unstable_by_key(|(method, _)| *method);
            let expected = [(Method::X509, Verdict::Match), (Method::OpenPgp, Verdict::Mismatch)];
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn the_method_of_an_answer_that_names_none_follows_from_what_was_offered() {
        use Method::{OpenPgp, X509};
        let print = Print::new(HashKind::Sha1, &[2; 20]).unwrap();
        for (offered, expected) in [
            (&["openpgp"][..], OpenPgp),
            (&["openpgp", "srp"], OpenPgp),
            (&["x509", "srp"], X509),
            (&["srp"], X509),
            (&[], X509),
        ] {
            for own in [&[][..], &["srp"]] {
                let found = verdicts(&bare_offer(own, std::slice::from_ref(&print)), offered, &[]);
                assert_eq!(found, [(expected, Verdict::Unknown)], "{offered:?} {own:?}");
            }
        }
        // Its own list says more than the other side's.
        let own = bare_offer(&["x509"], &[print]);
        assert_eq!(verdicts(&own, &["openpgp"], &[]), [(X509, Verdict::Unknown)]);
    }

    #[test]
    fn each_policy_for_each_verdict_and_method() {
        let owner = BareJid::new("romeo@m.lit").unwrap();
        let revoked = Key { state: State::Revoked, ..key(3, None) };
        let keys = [key(1, None), revoked];
        let print = |byte| Print::new(HashKind::Sha256, &[byte; 32]).unwrap();
        // The x509 key 1 is registered and 3 is revoked; the user has no openpgp key.
        let cases = [
            ("match", Method::X509, 1),
            ("mismatch", Method::X509, 2),
            ("revoked", Method::X509, 3),
            ("unknown", Method::OpenPgp, 2),
            ("revoked", Method::OpenPgp, 3),
        ];
        for (verdict, method, byte) in cases {
            let offer = Offer {
                methods: vec![method.into(), Method::Srp.into()],
                prints: vec![(Some(Word::Known(method)), Printed::Read(print(byte)))],
            };
            let judgement = judge(&offer, &[], &keys);
            assert_eq!(judgement.prints[0].verdict.as_str(), verdict, "{method} {byte}");
            for policy in [VerdictPolicy::Annotate, VerdictPolicy::Strip, VerdictPolicy::Reject] {
                for about in ["unknown", "mismatch", "revoked"] {
                    let of = |name| if name == about { policy } else { VerdictPolicy::Annotate };
                    let policies = Policies {
                        unknown: of("unknown"),
                        mismatch: of("mismatch"),
                        revoked: of("revoked"),
                    };
                    let decided = decide(&judgement, &policies, &owner);
                    let hit = verdict == about;
                    match (hit, policy) {
                        (true, VerdictPolicy::Reject) => {
                            let text = decided.unwrap_err();
                            for part in [owner.as_str(), method.as_str(), &print(byte).to_string()]
                            {
                                assert!(text.contains(part), "{text}");
                            }
                        }
                        (true, VerdictPolicy::Strip) => {
                            let gone = decided.unwrap();
                            assert_eq!(gone.prints, [Printed::Read(print(byte))]);
                            assert_eq!(judgement.methods(&offer, &gone), [Method::Srp]);
                        }
                        _ => {
                            let gone = decided.unwrap();
                            assert_eq!(gone, Stripped::default());
                            assert_eq!(judgement.methods(&offer, &gone), offer.methods);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_method_with_a_good_print_left_is_not_stripped() {
        let print = |byte| Print::new(HashKind::Sha256, &[byte; 32]).unwrap();
        let offer = bare_offer(&["x509"], &[print(1), print(2)]);
        let judgement = judge(&offer, &[], &[key(1, None)]);
        let policies = Policies {
            unknown: VerdictPolicy::Strip,
            mismatch: VerdictPolicy::Strip,
            revoked: VerdictPolicy::Strip,
        };
        let gone = decide(&judgement, &policies, &BareJid::new("romeo@m.lit").unwrap()).unwrap();
        assert_eq!(gone, Stripped { prints: vec![Printed::Read(print(2))], methods: vec![] });
    }
}
