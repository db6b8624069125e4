//! Decides whether a key belongs to a user: by what the registry says of it, and by what is remembered.
//!
//! A verdict belongs to a key. The session determines the [`Standing`] of the key that the peer has *shown*, from the
//! registry's own answer and from the broker's hints, and refuses a bad one before it asks any policy. No policy can
//! skip that, and no other print in the offer can replace the key.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, PoisonError},
};

use fingerpost_wire::{
    key::{Assurance, Verdict},
    ns,
    print::{HashKind, Method, Print},
    word::Word,
};
use jid::BareJid;
use minidom::Element;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::error::Error;

/// The most characters of a key's label that are kept.
const LABEL: usize = 64;

/// What the component's registry says of one of the peer's prints.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hint {
    /// The method of the key; an empty word if the registry did not say.
    pub method: Word<Method>,
    /// The print as written.
    pub print: String,
    /// The verdict on it.
    pub verdict: Word<Verdict>,
    /// How sure the registry is that the key is the user's, if it knows the key.
    pub assurance: Option<Word<Assurance>>,
}

impl Hint {
    /// Returns whether the registry warns of this print: it is revoked or replaced, or the user has other keys.
    fn is_bad(&self) -> bool {
        matches!(
            self.verdict.known(),
            Some(Verdict::Revoked | Verdict::Mismatch | Verdict::Superseded)
        )
    }

    /// Reads the hints about `peer` in a content; hints about others do not concern this session.
    pub(super) fn read(content: &Element, peer: &BareJid) -> Vec<Self> {
        content
            .children()
            .filter(|child| child.is("hints", ns::HINTS))
            .filter(|hints| {
                hints.attr("jid").and_then(|jid| BareJid::new(jid).ok()).as_ref() == Some(peer)
            })
            .flat_map(Element::children)
            .filter(|child| child.is("print", ns::HINTS))
            .map(|hint| {
                let get = |name| hint.attr(name).unwrap_or_default();
                Self {
                    method: Word::new(get("method")),
                    print: hint.text(),
                    verdict: Word::new(get("verdict")),
                    assurance: hint.attr("assurance").map(Word::new),
                }
            })
            .collect()
    }

    /// Returns the standing of the session's key by `method`. A good verdict on a key of another method does not count.
    fn standing(&self, method: Method) -> Standing {
        match self.verdict.known() {
            Some(Verdict::Revoked) => Standing::Revoked,
            Some(Verdict::Mismatch) => Standing::Mismatch,
            Some(Verdict::Superseded) => Standing::Superseded,
            Some(Verdict::Match | Verdict::Registered) if self.method == method => {
                Standing::Vouched
            }
            _ => Standing::Unknown,
        }
    }
}

/// What the registry says of the key that a peer has shown, in ascending order of alarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Standing {
    /// An active key of the peer.
    Vouched,
    /// The endpoint knows no registry.
    NoRegistry,
    /// The registry does not know it, and knows no other key of the peer for this method.
    Unknown,
    /// It has expired, and no other key has replaced it.
    Expired,
    /// The registry could not be asked.
    Unavailable,
    /// Another key has replaced it. By a hint alone, it may also have expired.
    Superseded,
    /// The peer has registered keys of this method, and this is not one of them.
    Mismatch,
    /// It was revoked.
    Revoked,
}

impl Standing {
    /// Returns the name in events and messages: that of the verdict, if there is one.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vouched => "match",
            Self::NoRegistry => "none",
            Self::Unknown => "unknown",
            Self::Superseded => "superseded",
            Self::Expired => "expired",
            Self::Unavailable => "unavailable",
            Self::Mismatch => "mismatch",
            Self::Revoked => "revoked",
        }
    }

    /// Returns that of a key in this state, which the registry names.
    pub(super) fn of_state(state: &str) -> Self {
        match state {
            "active" => Self::Vouched,
            "expired" => Self::Expired,
            "superseded" => Self::Superseded,
            "revoked" => Self::Revoked,
            _ => Self::Unknown,
        }
    }

    /// Returns whether the key is refused whatever is known of the peer.
    pub fn is_bad(self) -> bool {
        self >= Self::Superseded
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The registry's entry of a key that it vouches for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Listed {
    /// How sure the registry is that the key is the peer's.
    pub assurance: Assurance,
    /// The name that the peer has given the key, if the registry was asked. It may contain any text.
    pub label: String,
}

impl Listed {
    /// Returns whether the owner has shown possession of the key, or an admin vouches for it.
    pub fn is_proven(&self) -> bool {
        self.assurance >= Assurance::Proven
    }

    /// Keeps the lower assurance of two answers about one key.
    fn or_less(self, other: Option<Self>) -> Self {
        match other {
            Some(other) if other.assurance < self.assurance => {
                Self { assurance: other.assurance, ..self }
            }
            _ => self,
        }
    }

    /// Reads the registry's own answer about the key with these forms, and the hints on it.
    pub(super) fn read(
        method: Method,
        forms: &[Print],
        keys: Option<&[KnownKey]>,
        hints: &[Hint],
    ) -> Option<Self> {
        let hinted = hints
            .iter()
            .filter(|hint| hint.standing(method) == Standing::Vouched)
            .filter(|hint| {
                Print::parse(&hint.print, None)
                    .is_ok_and(|print| forms.iter().any(|form| print.same_bytes(form)))
            })
            .map(|hint| Self::new(hint.assurance.as_ref(), ""))
            .min_by_key(|listed| listed.assurance);
        let Some(keys) = keys else { return hinted };
        keys.iter()
            .filter(|key| key.method == method && key.standing == Standing::Vouched)
            .filter(|key| forms.iter().any(|form| key.has(form)))
            .map(|key| Self::new(Some(&key.assurance), &key.label))
            .max_by_key(|listed| listed.assurance)
            .map(|listed| listed.or_less(hinted))
    }

    /// Makes an entry. An unknown assurance counts as the lowest.
    fn new(assurance: Option<&Word<Assurance>>, label: &str) -> Self {
        let assurance = assurance.and_then(Word::known);
        Self { assurance: assurance.unwrap_or(Assurance::Asserted), label: label.to_owned() }
    }
}

/// Returns the standing of the key with these forms, by hints.
///
/// Of several hints on one form the worst counts. The forms are combined by [`combined`]. Without a hint on any form the
/// key is unknown, whatever the hints say of other keys.
pub(super) fn by_hints(method: Method, forms: &[Print], hints: &[Hint]) -> Standing {
    let said: Vec<(Of, Standing)> = forms
        .iter()
        .filter_map(|form| {
            let about = |hint: &&Hint| {
                Print::parse(&hint.print, None).is_ok_and(|print| print.same_bytes(form))
            };
            let worst = hints.iter().filter(about).map(|hint| hint.standing(method)).max();
            worst.map(|worst| (Of::form(form), worst))
        })
        .collect();
    combined(&said)
}

/// Returns the standing of the key with these forms, by the registry's own answer.
pub(super) fn by_keys(method: Method, forms: &[Print], keys: &[KnownKey]) -> Standing {
    let of_method = |key: &KnownKey| key.method == method;
    let said: Vec<(Of, Standing)> = keys
        .iter()
        .filter_map(|key| {
            let of = forms.iter().filter(|form| key.has(form)).map(Of::form).min()?;
            let standing = match key.standing {
                standing if standing == Standing::Revoked || of_method(key) => standing,
                _ => Standing::Unknown,
            };
            Some((of, standing))
        })
        .collect();
    match combined(&said) {
        Standing::Unknown
            if keys.iter().any(|key| of_method(key) && key.standing == Standing::Vouched) =>
        {
            Standing::Mismatch
        }
        standing => standing,
    }
}

/// The subject of a statement of the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Of {
    /// The certificate that was shown, or the OpenPGP key.
    Whole,
    /// Its public key, which certificates that were renewed share.
    PublicKey,
}

impl Of {
    fn form(form: &Print) -> Self {
        match form.hash() {
            HashKind::SpkiSha256 => Self::PublicKey,
            HashKind::Sha1 | HashKind::Sha256 => Self::Whole,
        }
    }
}

/// Combines everything that the registry says of one key.
///
/// Of the statements on the certificate itself the worst counts. Those on its public key alone count only without such
/// a statement, because the registry may have replaced an older certificate with the same public key; one active
/// certificate vouches for it then. A revocation always counts. A form that the registry does not know tells nothing
/// beside a form that it knows: it may know the key by one hash alone.
fn combined(said: &[(Of, Standing)]) -> Standing {
    let known = |standing: Standing| {
        matches!(standing, Standing::Vouched | Standing::Expired | Standing::Superseded)
    };
    let all = |of| said.iter().filter(move |(o, _)| *o == of).map(|(_, standing)| *standing);
    let worst = said.iter().map(|(_, standing)| *standing).max().unwrap_or(Standing::Unknown);
    if worst == Standing::Revoked {
        return worst;
    }
    if let Some(worst) = all(Of::Whole).filter(|standing| known(*standing)).max() {
        return worst;
    }
    if all(Of::PublicKey).any(|standing| standing == Standing::Vouched) {
        return Standing::Vouched;
    }
    worst
}

/// Returns the standing by the broker's hints, if the session has them, and the registry's own answer: the worse.
///
/// There are two exceptions. The broker cannot judge a print by another hash than the one in the registry, so its
/// `unknown` is nothing against the answer. And it calls an expired key `superseded`: the answer tells which it is.
pub(super) fn worse(hinted: Option<Standing>, asked: Standing) -> Standing {
    match (hinted, asked) {
        (None, asked)
        | (Some(Standing::Unknown), asked @ Standing::Vouched)
        | (Some(Standing::Superseded), asked @ Standing::Expired) => asked,
        (Some(hinted), asked) => hinted.max(asked),
    }
}

/// Judges a key about which the registry gave no answer.
///
/// # Errors
/// [`Error::Unverified`] in a direct session that the peer has started: the peer must not be able to choose, or to
/// cause, a moment at which a revoked key is still accepted. A session through the broker has its hints.
pub(super) fn without_answer(
    peer: &BareJid,
    initiator: bool,
    hinted: Option<Standing>,
) -> Result<Standing, Error> {
    if initiator || hinted.is_some() {
        return Ok(Standing::Unavailable);
    }
    Err(Error::unverified(format!(
        "the registry could not be asked about the key of {peer}, who started the session without the broker: nothing was \
         sent; try again later"
    )))
}

/// Refuses an offer if it can only lead to a key that the registry warns of; no transport is set up then.
pub(super) fn refuse_offer(peer: &BareJid, method: Method, hints: &[Hint]) -> Result<(), Error> {
    let about: Vec<&Hint> = hints.iter().filter(|hint| hint.method == method).collect();
    match about.iter().map(|hint| hint.standing(method)).max() {
        Some(worst) if about.iter().all(|hint| hint.is_bad()) => Err(refused(peer, worst)),
        _ => Ok(()),
    }
}

fn refused(peer: &BareJid, standing: Standing) -> Error {
    Error::unverified(match standing {
        Standing::Superseded => format!(
            "the registry says that {peer}'s key was replaced by another one, or that it has expired: nothing was sent; \
             the other side must use its new key"
        ),
        standing => {
            format!("the registry's verdict on {peer}'s key is {standing}: nothing was sent")
        }
    })
}

/// Whether a peer's key was seen before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It is a known one, or the peer has proved the password (srp).
    Same,
    /// The peer was never seen: the key is accepted on first use.
    First,
    /// The peer is known by other keys and this one is new. The user must decide on it before anything is sent.
    Further,
}

/// The key that a peer has shown in a successful handshake.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Shown<'a> {
    /// The claimed owner.
    pub peer: &'a BareJid,
    /// `x509` or `openpgp`.
    pub method: Method,
    /// The SHA-256 print of its certificate, or its OpenPGP fingerprint.
    pub print: &'a Print,
    /// The certificate, DER.
    pub certificate: &'a [u8],
    /// The broker's hints about the offered prints.
    pub hints: &'a [Hint],
    /// The registry's view of this key, by hints and by its own answer.
    pub standing: Standing,
    /// The registry's entry of this key, if it vouches for it.
    pub listed: Option<&'a Listed>,
}

impl Shown<'_> {
    /// Returns whether the registry vouches for the key that was shown.
    pub fn is_vouched_for(&self) -> bool {
        self.standing == Standing::Vouched
    }

    /// Returns whether the registry vouches for the shown key and calls it proven or attested.
    pub fn is_proven(&self) -> bool {
        self.is_vouched_for() && self.listed.is_some_and(Listed::is_proven)
    }

    /// Refuses a key that the registry warns of.
    ///
    /// # Errors
    /// [`Error::Unverified`]
    pub(super) fn refuse_bad(&self) -> Result<(), Error> {
        if self.standing.is_bad() {
            return Err(refused(self.peer, self.standing));
        }
        Ok(())
    }

    /// Decides on the first key of a peer that is not remembered, for policies that accept keys on first use.
    ///
    /// # Errors
    /// [`Error::Unverified`] if the registry warns of the key, or could not be asked.
    pub fn first_use(&self) -> Result<Known, Error> {
        self.refuse_bad()?;
        if self.standing == Standing::Unavailable {
            return Err(Error::unverified(format!(
                "the registry could not be asked about the first key of {}: nothing was sent",
                self.peer
            )));
        }
        Ok(Known::First)
    }
}

/// Decides whether a key is accepted as a peer's.
///
/// Two things are always checked before a policy is asked: the peer holds the key whose print it offered, and the
/// registry does not warn of that key. A policy says whether the key is the right user's.
///
/// # Security
/// A policy that accepts too much admits an attacker in the middle.
pub trait Policy: fmt::Debug + Send + Sync + 'static {
    /// Checks the broker's hints about the offered prints, before a transport is set up.
    ///
    /// # Errors
    /// [`Error::Unverified`] ends the session.
    fn offered(&self, peer: &BareJid, method: Method, hints: &[Hint]) -> Result<(), Error> {
        let _ = (peer, method, hints);
        Ok(())
    }

    /// Checks the key that was shown, before a byte of the application is sent. It is not called for the method srp,
    /// where the password proves the peer's identity.
    ///
    /// # Errors
    /// [`Error::Unverified`] ends the session.
    fn shown(&self, shown: &Shown<'_>) -> Result<Known, Error>;

    /// Returns whether a peer's key is remembered. Such peers get places of their own for their sessions.
    fn remembers(&self, peer: &BareJid) -> bool {
        let _ = peer;
        false
    }
}

/// Accepts the keys that the component's registry vouches for, and no others.
///
/// This is an endpoint's default. It asks the user nothing, trusts the component's registry, and refuses every session
/// if it knows no registry.
#[derive(Clone, Copy, Debug, Default)]
pub struct Registered;

impl Policy for Registered {
    fn shown(&self, shown: &Shown<'_>) -> Result<Known, Error> {
        if shown.is_vouched_for() {
            return Ok(Known::Same);
        }
        Err(Error::unverified(format!(
            "the registry does not vouch for the key that {} has shown: nothing was sent",
            shown.peer
        )))
    }
}

/// Takes a peer's first key and refuses any other after it, for as long as the program runs.
///
/// Start with prints that are known already by [`FirstUse::with`]. A first key that the registry warns of is refused, and so
/// is one while the registry cannot be asked.
///
/// ```
/// use fingerpost_endpoint::FirstUse;
/// use fingerpost_wire::print::{HashKind, Print};
///
/// let juliet = "juliet@capulet.lit".parse()?;
/// let print = Print::parse(&"AB".repeat(32), Some(HashKind::Sha256))?;
/// let policy = FirstUse::default().with(juliet, print);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
pub struct FirstUse {
    peers: Mutex<BTreeMap<BareJid, Print>>,
}

impl FirstUse {
    /// Returns the same policy with one more known peer.
    #[must_use]
    pub fn with(self, peer: BareJid, print: Print) -> Self {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).insert(peer, print);
        self
    }
}

impl Policy for FirstUse {
    fn shown(&self, shown: &Shown<'_>) -> Result<Known, Error> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        match peers.get(shown.peer) {
            None => {
                let first = shown.first_use()?;
                peers.insert(shown.peer.clone(), shown.print.clone());
                Ok(first)
            }
            Some(known) if known == shown.print => Ok(Known::Same),
            Some(_) => Err(Error::unverified(format!(
                "the key of {} has changed: nothing was sent",
                shown.peer
            ))),
        }
    }

    fn remembers(&self, peer: &BareJid) -> bool {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).contains_key(peer)
    }
}

/// A key that the registry lists for a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KnownKey {
    pub(super) id: String,
    pub(super) method: Word<Method>,
    /// That of its state, as of now.
    pub(super) standing: Standing,
    pub(super) assurance: Word<Assurance>,
    /// The name that its owner has given it, the beginning of it.
    pub(super) label: String,
    pub(super) prints: Vec<Print>,
    /// The registry's certificate of it, if it was requested and exists.
    pub(super) material: Option<Vec<u8>>,
}

impl KnownKey {
    /// Returns whether one of its prints has these bytes.
    pub(super) fn has(&self, print: &Print) -> bool {
        self.prints.iter().any(|own| own.same_bytes(print))
    }

    /// Reads a `<key/>` of the registry's answer; `now` decides whether it has expired.
    pub(super) fn read(element: &Element, now: OffsetDateTime) -> Self {
        let get = |name| element.attr(name).unwrap_or_default();
        let end = OffsetDateTime::parse(get("expires"), &Rfc3339);
        let state = match get("state") {
            "active" if end.is_ok_and(|end| end <= now) => "expired",
            // The registry marks a key that has only expired. A key that was replaced stays so after its date.
            "superseded" if get("expired") == "true" => "expired",
            state => state,
        };
        let prints = element
            .children()
            .filter(|child| child.is("print", ns::KEYS))
            .filter_map(|print| {
                let hash = print.attr("hash").and_then(|hash| hash.parse::<HashKind>().ok());
                Print::parse(&print.text(), hash).ok()
            })
            .collect();
        Self {
            id: get("id").to_owned(),
            method: Word::new(get("method")),
            standing: Standing::of_state(state),
            assurance: Word::new(get("assurance")),
            label: get("label").chars().take(LABEL).collect(),
            prints,
            material: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use fingerpost_secure::identity::Identity;
    use fingerpost_wire::print::HashKind;

    use super::*;

    fn peer() -> BareJid {
        BareJid::new("juliet@capulet.lit").unwrap()
    }

    fn certificate() -> Vec<u8> {
        Identity::generate(&peer()).unwrap().certificate.to_vec()
    }

    fn print_of(hash: HashKind, certificate: &[u8]) -> Print {
        Print::of_certificate(hash, certificate).unwrap()
    }

    fn hint(method: &str, print: &Print, verdict: &str) -> Hint {
        Hint {
            method: Word::new(method),
            print: print.to_string(),
            verdict: Word::new(verdict),
            assurance: None,
        }
    }

    fn key(method: &str, state: &str, prints: &[&Print]) -> KnownKey {
        KnownKey {
            method: Word::new(method),
            standing: Standing::of_state(state),
            prints: prints.iter().map(|&print| print.clone()).collect(),
            id: String::new(),
            assurance: Word::default(),
            label: String::new(),
            material: None,
        }
    }

    const KINDS: [HashKind; 3] = [HashKind::Sha1, HashKind::Sha256, HashKind::SpkiSha256];

    #[test]
    fn only_hints_on_the_key_that_was_shown_count_whichever_hash_they_name_it_by() {
        let (shown, other) = (certificate(), certificate());
        let sha256 = print_of(HashKind::Sha256, &shown);
        let forms = Print::forms(Method::X509, &sha256, &shown);
        let standing = |hints: &[Hint]| by_hints(Method::X509, &forms, hints);
        assert_eq!(standing(&[]), Standing::Unknown);
        for kind in KINDS {
            let (own, other) = (print_of(kind, &shown), print_of(kind, &other));
            for (verdict, expected) in [
                ("match", Standing::Vouched),
                ("registered", Standing::Vouched),
                ("unknown", Standing::Unknown),
                ("a new word", Standing::Unknown),
                ("superseded", Standing::Superseded),
                ("mismatch", Standing::Mismatch),
                ("revoked", Standing::Revoked),
            ] {
                // A match of another key beside it changes nothing.
                let lie = hint("x509", &other, "match");
                for hints in [
                    vec![hint("x509", &own, verdict)],
                    vec![hint("x509", &own, verdict), lie.clone()],
                    vec![lie.clone(), hint("x509", &own, verdict)],
                ] {
                    assert_eq!(standing(&hints), expected, "{kind:?} {verdict}");
                }
                // Nor does the other key's verdict apply to the shown one.
                assert_eq!(standing(&[hint("x509", &other, verdict)]), Standing::Unknown);
            }
        }
    }

    #[test]
    fn a_hint_of_another_method_can_only_warn() {
        let shown = certificate();
        let sha256 = print_of(HashKind::Sha256, &shown);
        let forms = Print::forms(Method::X509, &sha256, &shown);
        for (verdict, expected) in [
            ("match", Standing::Unknown),
            ("registered", Standing::Unknown),
            ("mismatch", Standing::Mismatch),
            ("revoked", Standing::Revoked),
        ] {
            for method in ["openpgp", "srp", ""] {
                let hints = [hint(method, &sha256, verdict)];
                assert_eq!(by_hints(Method::X509, &forms, &hints), expected, "{method} {verdict}");
            }
        }
    }

    #[test]
    fn of_several_hints_on_one_print_the_worst_counts_and_a_revoked_form_revokes_the_key() {
        let shown = certificate();
        let [sha1, sha256, spki] = KINDS.map(|kind| print_of(kind, &shown));
        let forms = Print::forms(Method::X509, &sha256, &shown);
        let standing = |hints: &[Hint]| by_hints(Method::X509, &forms, hints);
        for worse in ["unknown", "superseded", "mismatch", "revoked"] {
            let pair = [hint("x509", &sha256, "match"), hint("x509", &sha256, worse)];
            let turned = [pair[1].clone(), pair[0].clone()];
            assert_eq!(standing(&pair).as_str(), worse);
            assert_eq!(standing(&turned).as_str(), worse);
        }
        for form in [&sha1, &spki] {
            let hints = [hint("x509", &sha256, "match"), hint("x509", form, "revoked")];
            assert_eq!(standing(&hints), Standing::Revoked);
            // A registry that knows the key by one hash alone does not know the other forms.
            let hints = [hint("x509", &sha256, "match"), hint("x509", form, "mismatch")];
            assert_eq!(standing(&hints), Standing::Vouched);
        }
    }

    #[test]
    fn an_openpgp_key_is_judged_by_its_fingerprint_and_not_by_the_certificate_around_it() {
        let certificate = certificate();
        let fingerprint = Print::new(HashKind::Sha1, &[7; 20]).unwrap();
        let forms = Print::forms(Method::OpenPgp, &fingerprint, &certificate);
        let around = print_of(HashKind::Sha256, &certificate);
        let standing = |hints: &[Hint]| by_hints(Method::OpenPgp, &forms, hints);
        assert_eq!(standing(&[hint("openpgp", &around, "match")]), Standing::Unknown);
        assert_eq!(standing(&[hint("openpgp", &fingerprint, "match")]), Standing::Vouched);
        assert_eq!(standing(&[hint("x509", &fingerprint, "match")]), Standing::Unknown);
    }

    #[test]
    fn the_registrys_own_answer_is_read_the_same_way() {
        let (shown, other) = (certificate(), certificate());
        let [sha1, sha256, spki] = KINDS.map(|kind| print_of(kind, &shown));
        let other = print_of(HashKind::Sha256, &other);
        let forms = Print::forms(Method::X509, &sha256, &shown);
        let standing = |keys: &[KnownKey]| by_keys(Method::X509, &forms, keys);
        assert_eq!(standing(&[]), Standing::Unknown);
        for form in [&sha1, &sha256, &spki] {
            assert_eq!(standing(&[key("x509", "active", &[form])]), Standing::Vouched);
            assert_eq!(standing(&[key("x509", "superseded", &[form])]), Standing::Superseded);
            assert_eq!(standing(&[key("x509", "expired", &[form])]), Standing::Expired);
            assert_eq!(standing(&[key("openpgp", "active", &[form])]), Standing::Unknown);
            for method in ["x509", "openpgp"] {
                let keys = [key("x509", "active", &[&sha256]), key(method, "revoked", &[form])];
                assert_eq!(standing(&keys), Standing::Revoked);
            }
        }
        assert_eq!(standing(&[key("x509", "active", &[&other])]), Standing::Mismatch);
        assert_eq!(standing(&[key("openpgp", "active", &[&other])]), Standing::Unknown);
        assert_eq!(standing(&[key("x509", "revoked", &[&other])]), Standing::Unknown);
        let both = [key("x509", "active", &[&other]), key("x509", "active", &[&sha256])];
        assert_eq!(standing(&both), Standing::Vouched);
    }

    #[test]
    fn hints_about_somebody_else_are_not_read() {
        let content: Element = "<content xmlns='urn:xmpp:jingle:1'>\
            <hints xmlns='urn:fingerpost:xtls:0' jid='romeo@montague.lit'><print verdict='match'>aa</print></hints>\
            <hints xmlns='urn:fingerpost:xtls:0'><print verdict='match'>bb</print></hints>\
            <hints xmlns='urn:fingerpost:xtls:0' jid='juliet@capulet.lit'><print verdict='match'>cc</print></hints>\
            <description xmlns='urn:x'><hints xmlns='urn:fingerpost:xtls:0' jid='juliet@capulet.lit'>\
            <print verdict='match'>dd</print></hints></description></content>"
            .parse()
            .unwrap();
        let hints = Hint::read(&content, &peer());
        assert_eq!(hints.iter().map(|hint| hint.print.as_str()).collect::<Vec<_>>(), ["cc"]);
    }

    #[test]
    fn an_offer_is_refused_at_once_if_every_print_of_the_method_is_bad() {
        let [one, two] = [1, 2].map(|byte| Print::new(HashKind::Sha1, &[byte; 20]).unwrap());
        let offer = |hints: &[Hint]| refuse_offer(&peer(), Method::X509, hints);
        for verdict in ["revoked", "mismatch", "superseded"] {
            assert!(matches!(offer(&[hint("x509", &one, verdict)]), Err(Error::Unverified(_))));
            let all = [hint("x509", &one, verdict), hint("x509", &two, "revoked")];
            assert!(offer(&all).is_err());
            // Only the handshake tells which one is shown.
            assert_eq!(offer(&[hint("x509", &one, verdict), hint("x509", &two, "match")]), Ok(()));
            assert_eq!(offer(&[hint("openpgp", &one, verdict)]), Ok(()));
        }
        assert_eq!(offer(&[]), Ok(()));
        assert_eq!(offer(&[hint("x509", &one, "unknown")]), Ok(()));
    }

    const ALL: [Standing; 8] = [
        Standing::Vouched,
        Standing::NoRegistry,
        Standing::Unknown,
        Standing::Expired,
        Standing::Unavailable,
        Standing::Superseded,
        Standing::Mismatch,
        Standing::Revoked,
    ];
    /// Those that refuse a key whatever else is true of it.
    const BAD: [Standing; 3] = [Standing::Superseded, Standing::Mismatch, Standing::Revoked];

    fn show(policy: &dyn Policy, certificate: &[u8], standing: Standing) -> Result<Known, Error> {
        let print = print_of(HashKind::Sha256, certificate);
        let peer = peer();
        let method = Method::X509;
        policy.shown(&Shown {
            peer: &peer,
            method,
            print: &print,
            certificate,
            hints: &[],
            standing,
            listed: None,
        })
    }

    #[test]
    fn a_direct_session_of_a_peers_is_refused_while_the_registry_gives_no_answer() {
        let judged = |initiator, hinted| without_answer(&peer(), initiator, hinted);
        let refused = judged(false, None).unwrap_err();
        assert!(matches!(&refused, Error::Unverified(_)), "{refused}");
        assert!(refused.to_string().contains("the registry could not be asked"), "{refused}");
        assert_eq!(judged(true, None), Ok(Standing::Unavailable));
        for initiator in [true, false] {
            assert_eq!(judged(initiator, Some(Standing::Vouched)), Ok(Standing::Unavailable));
        }
    }

    #[test]
    fn every_policy_binds_to_the_key_that_was_shown() {
        for standing in ALL {
            let taken = show(&Registered, b"a key", standing).is_ok();
            assert_eq!(taken, standing == Standing::Vouched, "{standing}");
            let policy = FirstUse::default();
            let first = show(&policy, b"a key", standing);
            match standing {
                bad if bad.is_bad() || bad == Standing::Unavailable => {
                    assert!(matches!(first, Err(Error::Unverified(_))), "{standing}");
                    assert!(!policy.remembers(&peer()), "{standing}");
                }
                _ => {
                    assert_eq!(first, Ok(Known::First), "{standing}");
                    assert!(policy.remembers(&peer()), "{standing}");
                }
            }
        }
    }

    #[test]
    fn a_second_key_is_refused_and_a_known_one_is_not_asked_about() {
        let policy = FirstUse::default();
        assert_eq!(show(&policy, b"one", Standing::Unknown), Ok(Known::First));
        assert_eq!(show(&policy, b"one", Standing::Unknown), Ok(Known::Same));
        assert_eq!(show(&policy, b"one", Standing::Unavailable), Ok(Known::Same));
        for standing in ALL {
            assert!(matches!(show(&policy, b"two", standing), Err(Error::Unverified(_))));
        }
    }

    #[test]
    fn of_a_hint_and_an_answer_the_worse_decides() {
        for asked in ALL {
            assert_eq!(worse(None, asked), asked);
            for hinted in ALL {
                let standing = worse(Some(hinted), asked);
                let expected = match (hinted, asked) {
                    (Standing::Unknown, Standing::Vouched) => Standing::Vouched,
                    // The answer says that the key has no replacement.
                    (Standing::Superseded, Standing::Expired) => Standing::Expired,
                    pair => pair.0.max(pair.1),
                };
                assert_eq!(standing, expected, "{hinted} {asked}");
                let bad = [hinted, asked].iter().any(|standing| BAD.contains(standing));
                let expired = (hinted, asked) == (Standing::Superseded, Standing::Expired);
                assert_eq!(standing.is_bad(), bad && !expired, "{hinted} {asked}");
            }
        }
        for standing in ALL {
            assert_eq!(standing.is_bad(), BAD.contains(&standing), "{standing}");
        }
    }

    #[test]
    fn of_two_entries_for_one_certificate_the_worse_decides() {
        let shown = certificate();
        let [sha1, sha256, spki] = KINDS.map(|kind| print_of(kind, &shown));
        let forms = Print::forms(Method::X509, &sha256, &shown);
        let states = [
            ("active", "match", Standing::Vouched),
            ("expired", "superseded", Standing::Expired),
            ("superseded", "superseded", Standing::Superseded),
            ("revoked", "revoked", Standing::Revoked),
        ];
        for (one, hint_one, standing_one) in states {
            for (two, hint_two, standing_two) in states {
                let worst = standing_one.max(standing_two);
                let keys = |a, b| [key("x509", one, &[a]), key("x509", two, &[b])];
                let answer = |a, b| by_keys(Method::X509, &forms, &keys(a, b));
                let hinted = |a, b| {
                    let hints = [hint("x509", a, hint_one), hint("x509", b, hint_two)];
                    by_hints(Method::X509, &forms, &hints)
                };
                // Hints do not tell an expired key from a replaced one.
                let blurred = match worst {
                    Standing::Expired => Standing::Superseded,
                    worst => worst,
                };
                for (a, b) in [(&sha1, &sha256), (&sha256, &sha1), (&sha256, &sha256)] {
                    assert_eq!(answer(a, b), worst, "{one} {two}");
                    assert_eq!(hinted(a, b), blurred, "{one} {two}");
                }
                // An older certificate with the same public key tells nothing of this one, unless it was revoked.
                let renewed = match standing_two {
                    Standing::Revoked => Standing::Revoked,
                    _ => standing_one,
                };
                assert_eq!(answer(&sha256, &spki), renewed, "{one} {two}");
            }
        }
        // The public key of two certificates is good if one of them is active.
        let keys = [key("x509", "superseded", &[&spki]), key("x509", "active", &[&spki])];
        assert_eq!(by_keys(Method::X509, &forms, &keys), Standing::Vouched);
    }
}
