//! Whose key is taken for whose: what the registry says, what is known, and what to make of both.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, PoisonError},
};

use jid::BareJid;
use minidom::Element;

use super::error::Error;
use crate::{
    print::{HashKind, Method, Print},
    xmpp::ns,
};

/// What the component's registry says of one of the peer's prints.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hint {
    /// `x509`, `openpgp` or `srp`; empty if the registry did not say.
    pub method: String,
    /// The print, as it was written.
    pub print: String,
    /// `match`, `unknown`, `mismatch`, `superseded`, `revoked`, or `registered` for a key that was not offered.
    pub verdict: String,
    /// `asserted`, `proven` or `attested`, if the key is in the registry.
    pub assurance: Option<String>,
}

impl Hint {
    /// Whether the registry knows this print as that of a good key of the user.
    pub fn is_good(&self) -> bool {
        matches!(self.verdict.as_str(), "match" | "registered")
    }

    /// Whether the registry warns of this print: it is revoked, or the user's keys are others.
    pub fn is_bad(&self) -> bool {
        matches!(self.verdict.as_str(), "revoked" | "mismatch")
    }

    /// All hints in a content.
    pub(super) fn read(content: &Element) -> Vec<Self> {
        let Some(hints) = content.get_child("hints", ns::HINTS) else { return Vec::new() };
        hints
            .children()
            .filter(|child| child.is("print", ns::HINTS))
            .map(|hint| {
                let get = |name| hint.attr(name).unwrap_or_default().to_owned();
                Self {
                    method: get("method"),
                    print: hint.text(),
                    verdict: get("verdict"),
                    assurance: hint.attr("assurance").map(str::to_owned),
                }
            })
            .collect()
    }
}

/// Whether a peer's key was seen before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It is the known one, or the peer has proved the password (srp).
    Same,
    /// The peer was never seen: the key is taken on first use.
    First,
}

/// The key that a peer has shown in a handshake that ended well.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Shown<'a> {
    /// Whose it is said to be.
    pub peer: &'a BareJid,
    /// `x509` or `openpgp`.
    pub method: Method,
    /// The SHA-256 print of its certificate, or its OpenPGP fingerprint.
    pub print: &'a Print,
    /// The certificate, DER.
    pub certificate: &'a [u8],
    /// What the registry says.
    pub hints: &'a [Hint],
}

impl Shown<'_> {
    /// Whether the registry vouches for the key that was shown, not for another one that was offered.
    pub fn is_vouched_for(&self) -> bool {
        let of_method =
            self.hints.iter().filter(|hint| hint.method == self.method.as_str() && hint.is_good());
        of_method.filter_map(|hint| Print::parse(&hint.print, None).ok()).any(|print| {
            if self.method == Method::OpenPgp {
                return print == *self.print;
            }
            [print.hash(), HashKind::SpkiSha256]
                .into_iter()
                .filter_map(|hash| Print::of_certificate(hash, self.certificate))
                .any(|shown| shown.same_bytes(&print))
        })
    }
}

/// Decides whose key is taken for whose.
///
/// That the peer holds the key whose print it offered is checked before, always; a policy says whether that key is
/// the right user's.
///
/// # Security
/// A policy that says yes too often lets whoever sits between the users in.
pub trait Policy: fmt::Debug + Send + Sync + 'static {
    /// Looks at what the registry says of the offered prints, before a transport is made.
    ///
    /// Unless overridden, a revoked or mismatching print of the session's method is refused.
    ///
    /// # Errors
    /// [`Error::Unverified`] ends the session.
    fn offered(&self, peer: &BareJid, method: Method, hints: &[Hint]) -> Result<(), Error> {
        let bad = hints.iter().find(|hint| hint.method == method.as_str() && hint.is_bad());
        match bad {
            None => Ok(()),
            Some(hint) => Err(Error::Unverified(format!(
                "the registry's verdict on {peer}'s key is {}: nothing was sent",
                hint.verdict
            ))),
        }
    }

    /// Looks at the key that was shown, before a byte of the application is sent. Not asked for the method srp, where the
    /// password says who the peer is.
    ///
    /// # Errors
    /// [`Error::Unverified`] ends the session.
    fn shown(&self, shown: &Shown<'_>) -> Result<Known, Error>;
}

/// Takes the keys that the component's registry vouches for, and no others.
///
/// This is what an endpoint does if it is told nothing else. It asks nothing of the user, trusts the component's
/// registry, and refuses every session without a broker.
#[derive(Clone, Copy, Debug, Default)]
pub struct Registered;

impl Policy for Registered {
    fn shown(&self, shown: &Shown<'_>) -> Result<Known, Error> {
        if shown.is_vouched_for() {
            return Ok(Known::Same);
        }
        Err(Error::Unverified(format!(
            "the registry does not vouch for the key that {} has shown: nothing was sent",
            shown.peer
        )))
    }
}

/// Takes a peer's first key and refuses any other after it, for as long as the program runs.
///
/// Start with prints that are known already by [`FirstUse::with`].
///
/// ```
/// use fingerpost::{endpoint::FirstUse, print::{HashKind, Print}};
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
    /// The same policy, which knows this peer already.
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
                peers.insert(shown.peer.clone(), shown.print.clone());
                Ok(Known::First)
            }
            Some(known) if known == shown.print => Ok(Known::Same),
            Some(_) => Err(Error::Unverified(format!(
                "the key of {} has changed: nothing was sent",
                shown.peer
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(print: &Print, verdict: &str) -> Hint {
        Hint {
            method: "x509".to_owned(),
            print: print.to_string(),
            verdict: verdict.to_owned(),
            assurance: None,
        }
    }

    #[test]
    fn the_registry_must_vouch_for_the_key_that_is_shown_and_not_for_another() {
        let peer = BareJid::new("juliet@capulet.lit").unwrap();
        let certificate = b"a certificate".as_slice();
        let print = Print::of_certificate(HashKind::Sha256, certificate).unwrap();
        let sha1 = Print::of_certificate(HashKind::Sha1, certificate).unwrap();
        let other = Print::of_certificate(HashKind::Sha256, b"another").unwrap();
        for (hints, taken) in [
            (vec![], false),
            (vec![hint(&print, "match")], true),
            (vec![hint(&sha1, "match")], true),
            (vec![hint(&print, "unknown")], false),
            (vec![hint(&other, "match"), hint(&print, "unknown")], false),
        ] {
            let shown = Shown {
                peer: &peer,
                method: Method::X509,
                print: &print,
                certificate,
                hints: hints.as_slice(),
            };
            assert_eq!(Registered.shown(&shown).is_ok(), taken, "{hints:?}");
        }
    }

    #[test]
    fn a_second_key_is_refused_and_so_is_a_bad_verdict() {
        let peer = BareJid::new("juliet@capulet.lit").unwrap();
        let policy = FirstUse::default();
        let show = |certificate: &[u8]| {
            let print = Print::of_certificate(HashKind::Sha256, certificate).unwrap();
            policy.shown(&Shown {
                peer: &peer,
                method: Method::X509,
                print: &print,
                certificate,
                hints: &[],
            })
        };
        assert_eq!(show(b"one"), Ok(Known::First));
        assert_eq!(show(b"one"), Ok(Known::Same));
        assert!(matches!(show(b"two"), Err(Error::Unverified(_))));
        let print = Print::of_certificate(HashKind::Sha256, b"one").unwrap();
        for verdict in ["revoked", "mismatch"] {
            let refused = policy.offered(&peer, Method::X509, &[hint(&print, verdict)]);
            assert!(matches!(refused, Err(Error::Unverified(_))), "{verdict}");
        }
        assert_eq!(policy.offered(&peer, Method::X509, &[hint(&print, "unknown")]), Ok(()));
    }
}
