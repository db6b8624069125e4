//! What the registry knows of an offer's prints: verdicts, the `<hints/>` element, and policy.

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
    /// It passes, with its hint.
    Annotate,
    /// It is taken out of the offer.
    Strip,
    /// The session is refused.
    Reject,
}

/// The policy for each bad verdict.
#[derive(Clone, Copy, Debug)]
pub struct Policies {
    /// A print that the registry has never seen.
    pub unknown: Policy,
    /// The user has keys of this method and this print is none of them.
    pub mismatch: Policy,
    /// A revoked key.
    pub revoked: Policy,
}

/// One offered print and what the registry says of it.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The print as offered.
    pub print: Print,
    /// Its method: as offered, else as found.
    pub method: Method,
    /// The verdict.
    pub verdict: Verdict,
    /// Assurance and date of the key that has it.
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

/// Judges an offer by the keys that its user has.
pub fn judge(offer: &Offer, keys: &[Key]) -> Judgement {
    let offered: Vec<Method> = offer.methods.iter().filter_map(|name| name.parse().ok()).collect();
    let prints: Vec<Judged> = offer
        .prints
        .iter()
        .map(|(method, print)| {
            let method = method.unwrap_or_else(|| verdict::resolve_method(keys, print));
            let verdict::Judgement { verdict, key } = verdict::judge(keys, Some(method), print);
            let known = key.map(|key| (key.assurance, key.created));
            Judged { print: print.clone(), method, verdict, known }
        })
        .collect();
    let bare = offered
        .into_iter()
        .filter(|method| !prints.iter().any(|judged| judged.method == *method))
        .collect();
    Judgement { prints, bare }
}

/// Applies the policies.
///
/// # Errors
/// The text for both users if the session must be refused; else the prints to take out.
pub fn decide(judgement: &Judgement, policies: &Policies) -> Result<Vec<Print>, String> {
    let mut gone = Vec::new();
    for judged in &judgement.prints {
        let (policy, what) = match judged.verdict {
            Verdict::Unknown => (policies.unknown, "is not in the registry"),
            Verdict::Mismatch => (policies.mismatch, "is none of the user's registered keys"),
            Verdict::Revoked => (policies.revoked, "belongs to a revoked key"),
            _ => continue,
        };
        match policy {
            Policy::Annotate => {}
            Policy::Strip => gone.push(judged.print.clone()),
            Policy::Reject => {
                return Err(format!("The {} print {} {what}", judged.method, judged.print));
            }
        }
    }
    Ok(gone)
}

/// The `<hints/>` of an offer.
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
        let judgement = judge(&Offer::read(&content), &keys);
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
}
