//! The registry's judgement of an offer's prints: verdicts, the `<hints/>` element, and policy.

use jid::BareJid;
use minidom::Element;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::offer::Offer;
use crate::{
    print::{Method, Print},
    registry::{
        model::{Assurance, Key, State},
        verdict::{self, Verdict},
    },
    xmpp::{ns, xml},
};

/// What happens to a print with a bad verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
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
    pub unknown: Policy,
    /// The user has keys of this method, and this print belongs to none of them.
    pub mismatch: Policy,
    /// A revoked key.
    pub revoked: Policy,
}

/// One offered print, and what the registry says of it.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The print as offered.
    pub print: Print,
    /// Its method, from the offer or from the registry.
    pub method: Method,
    /// The verdict.
    pub verdict: Verdict,
    /// Assurance and date of the key with this print.
    pub known: Option<(Assurance, OffsetDateTime)>,
}

/// The verdicts on all prints of an offer, and the offered methods without a print.
#[derive(Clone, Debug, Default)]
pub struct Judgement {
    /// In the offer's order.
    pub prints: Vec<Judged>,
    /// Methods of the offer that came without a print.
    pub bare: Vec<Method>,
}

impl Judgement {
    /// Returns the offered prints, each with its method.
    pub fn prints(&self) -> Vec<(Method, Print)> {
        self.prints.iter().map(|judged| (judged.method, judged.print.clone())).collect()
    }

    /// Returns the names of all offered methods, from the list or from a print, except those that policy removes.
    pub fn methods(&self, offer: &Offer, stripped: &Stripped) -> Vec<String> {
        let mut names = offer.methods.clone();
        for judged in &self.prints {
            if !names.iter().any(|name| name == judged.method.as_str()) {
                names.push(judged.method.as_str().to_owned());
            }
        }
        names.retain(|name| !stripped.methods.iter().any(|method| method.as_str() == name));
        names
    }
}

/// Judges an offer by its user's keys. If the offer is an answer, `others` are the methods of the offer that it
/// answers: a dialect that cannot name methods means one of them.
///
/// A print without a method may be meant for any offered method. If the registry knows the print, it is judged as that
/// key; otherwise under each of those methods, and the worst verdict counts. If it were not so, a stranger could leave
/// out the method to be `unknown` instead of `mismatch`.
pub fn judge(offer: &Offer, others: &[String], keys: &[Key]) -> Judgement {
    let offered: Vec<Method> = offer.methods.iter().filter_map(|name| name.parse().ok()).collect();
    let candidates = candidates(&offered, others);
    let mut prints: Vec<Judged> = Vec::new();
    for ((said, print), method) in offer.prints.iter().zip(methods(offer, &candidates, keys)) {
        let judged = match said {
            Some(method) => judge_under(&[*method], *method, print, keys),
            None if keys.iter().any(|key| key.has(print)) => {
                judge_under(&[method], method, print, keys)
            }
            None => judge_under(&candidates.for_prints(), method, print, keys),
        };
        // One verdict on each print and method: the worst.
        let twin = prints
            .iter_mut()
            .find(|other| other.method == judged.method && other.print.same_bytes(&judged.print));
        match twin {
            Some(twin) if twin.verdict.or_worse(judged.verdict) != twin.verdict => *twin = judged,
            Some(_) => {}
            None => prints.push(judged),
        }
    }
    let bare = offered
        .into_iter()
        .filter(|method| !prints.iter().any(|judged| judged.method == *method))
        .collect();
    Judgement { prints, bare }
}

/// Judges a print under each of `methods`; the worst verdict counts.
fn judge_under(methods: &[Method], method: Method, print: &Print, keys: &[Key]) -> Judged {
    let worst = methods
        .iter()
        .map(|method| verdict::judge(keys, Some(*method), print))
        .reduce(|a, b| if a.verdict.or_worse(b.verdict) == a.verdict { a } else { b });
    let verdict::Judgement { verdict, key } =
        worst.unwrap_or_else(|| verdict::judge(keys, Some(method), print));
    let known = key.map(|key| (key.assurance, key.created));
    Judged { print: print.clone(), method, verdict, known }
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
fn candidates(offered: &[Method], others: &[String]) -> Candidates {
    let with_prints = |method: &Method| *method != Method::Srp;
    let own: Vec<Method> = offered.iter().copied().filter(with_prints).collect();
    if !own.is_empty() {
        return Candidates(own);
    }
    Candidates(others.iter().filter_map(|name| name.parse().ok()).filter(with_prints).collect())
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
fn methods(offer: &Offer, candidates: &Candidates, keys: &[Key]) -> Vec<Method> {
    let elsewhere = |print: &Print| {
        offer.prints.iter().find_map(|(method, other)| method.filter(|_| other.same_bytes(print)))
    };
    let found: Vec<Option<Method>> = offer
        .prints
        .iter()
        .map(|(method, print)| {
            method
                .or_else(|| {
                    keys.iter()
                        .any(|key| key.has(print))
                        .then(|| verdict::resolve_method(keys, print))
                })
                .or_else(|| elsewhere(print))
        })
        .collect();
    let open: Vec<&Print> =
        offer.prints.iter().zip(&found).filter(|(_, m)| m.is_none()).map(|((_, p), _)| p).collect();
    let mut free = candidates.0.iter().filter(|method| !found.contains(&Some(**method)));
    let guess: Vec<Method> = match candidates.0.as_slice() {
        [only] => vec![*only; open.len()],
        [_, ..]
            if open.iter().any(|print| print.as_bytes().len() != 20)
                && open.iter().any(|print| print.as_bytes().len() == 20) =>
        {
            let by_length = |print: &&Print| match print.as_bytes().len() {
                20 => Method::OpenPgp,
                _ => Method::X509,
            };
            open.iter().map(by_length).collect()
        }
        [_, ..] if free.clone().count() == open.len() => free.by_ref().copied().collect(),
        _ => vec![Method::X509; open.len()],
    };
    let mut guess = guess.into_iter();
    found
        .into_iter()
        .map(|method| method.or_else(|| guess.next()).unwrap_or(Method::X509))
        .collect()
}

/// The prints and methods that policy removes from an offer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stripped {
    /// The prints.
    pub prints: Vec<Print>,
    /// The methods that had prints and have none left.
    pub methods: Vec<Method>,
}

/// Applies the policies to the offer of `owner`.
///
/// # Errors
/// The text for both users, if the session must be refused.
pub fn decide(
    judgement: &Judgement,
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
            _ => (Policy::Annotate, ""),
        };
        match policy {
            Policy::Annotate => kept.push(judged.method),
            Policy::Strip => {
                gone.prints.push(judged.print.clone());
                gone.methods.push(judged.method);
            }
            Policy::Reject => {
                return Err(format!(
                    "{owner} offers the {} key {}, which {what}: this service refuses such keys",
                    judged.method, judged.print
                ));
            }
        }
    }
    gone.methods.retain(|method| !kept.contains(method));
    gone.methods.sort_unstable();
    gone.methods.dedup();
    Ok(gone)
}

/// Returns the `<hints/>` of an offer.
pub fn to_element(judgement: &Judgement, keys: &[Key], owner: &BareJid) -> Element {
    let mut hints = xml::element("hints", ns::HINTS, &[("jid", owner.as_str())]);
    let mut add = |method: Method,
                   print: &Print,
                   verdict: &str,
                   known: Option<(Assurance, OffsetDateTime)>| {
        let mut element = xml::element(
            "print",
            ns::HINTS,
            &[("method", method.as_str()), ("hash", print.hash().as_str()), ("verdict", verdict)],
        );
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
        add(judged.method, &judged.print, judged.verdict.as_str(), judged.known);
    }
    for method in &judgement.bare {
        for key in keys.iter().filter(|key| key.method == *method && key.state == State::Active) {
            for print in &key.prints {
                add(*method, print, "registered", Some((key.assurance, key.created)));
            }
        }
    }
    hints
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::{
        print::HashKind,
        registry::model::{Addition, KeyId, NewKey, Source},
    };

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
    fn an_expired_key_is_no_match() {
        let print = "02".repeat(32);
        let offer = format!("<method name='x509'><print>{print}</print></method>");
        assert!(hints(&offer, &[key(2, None)]).contains("verdict='match'"));
        assert!(hints(&offer, &[key(2, Some(NOW))]).contains("verdict='superseded'"));
    }

    /// Returns an offer of prints without methods, in the order given.
    fn bare_offer(methods: &[&str], prints: &[Print]) -> Offer {
        Offer {
            methods: methods.iter().map(|&name| name.to_owned()).collect(),
            prints: prints.iter().map(|print| (None, print.clone())).collect(),
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
            let got: Vec<_> = judge(&offer, &[], &keys).prints.iter().map(|j| j.method).collect();
            assert_eq!(got, expected, "{methods:?} {prints:?}");
        }
    }

    fn verdicts(offer: &Offer, others: &[&str], keys: &[Key]) -> Vec<(Method, Verdict)> {
        let others: Vec<String> = others.iter().map(|&name| name.to_owned()).collect();
        let judged = judge(offer, &others, keys).prints;
        judged.iter().map(|judged| (judged.method, judged.verdict)).collect()
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
                        let judged = found.iter().find(|judged| judged.print == *print).unwrap();
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
            let mut prints = vec![
                (Some(Method::X509), long(1)),
                (Some(Method::OpenPgp), long(9)),
                (None, long(9)),
            ];
            if turned {
                prints.reverse();
            }
            let methods = vec!["x509".to_owned(), "openpgp".to_owned()];
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
                methods: vec![method.to_string(), "srp".to_owned()],
                prints: vec![(Some(method), print(byte))],
            };
            let judgement = judge(&offer, &[], &keys);
            assert_eq!(judgement.prints[0].verdict.as_str(), verdict, "{method} {byte}");
            for policy in [Policy::Annotate, Policy::Strip, Policy::Reject] {
                for about in ["unknown", "mismatch", "revoked"] {
                    let of = |name| if name == about { policy } else { Policy::Annotate };
                    let policies = Policies {
                        unknown: of("unknown"),
                        mismatch: of("mismatch"),
                        revoked: of("revoked"),
                    };
                    let decided = decide(&judgement, &policies, &owner);
                    let hit = verdict == about;
                    match (hit, policy) {
                        (true, Policy::Reject) => {
                            let text = decided.unwrap_err();
                            for part in [owner.as_str(), method.as_str(), &print(byte).to_string()]
                            {
                                assert!(text.contains(part), "{text}");
                            }
                        }
                        (true, Policy::Strip) => {
                            let gone = decided.unwrap();
                            assert_eq!(gone.prints, [print(byte)]);
                            assert_eq!(judgement.methods(&offer, &gone), ["srp"]);
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
        let policies =
            Policies { unknown: Policy::Strip, mismatch: Policy::Strip, revoked: Policy::Strip };
        let gone = decide(&judgement, &policies, &BareJid::new("romeo@m.lit").unwrap()).unwrap();
        assert_eq!(gone, Stripped { prints: vec![print(2)], methods: vec![] });
    }
}
