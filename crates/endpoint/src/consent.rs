//! Decides which peers may learn this machine's addresses.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, OnceLock},
};

use jid::BareJid;

/// Whether the two programs of a session connect to each other directly where the network allows it. Each of them then learns
/// the other's IP addresses, and a session goes direct only if both agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DirectPath {
    /// With peers that [`Consent`] remembers with a yes, or agrees to when it is asked.
    #[default]
    Auto,
    /// With nobody. Sessions do not even mention the possibility.
    Never,
    /// With every peer.
    Always,
}

/// Decides for [`DirectPath::Auto`].
pub trait Consent: fmt::Debug + Send + Sync + 'static {
    /// Returns whether a peer may learn this machine's addresses, if that is known without a question. It is called before TLS and
    /// after it. Before TLS nobody has proved to be the peer.
    fn remembered(&self, peer: &BareJid) -> Option<bool>;

    /// Returns whether [`ask`](Self::ask) can say yes: for example whether there is someone to ask. If not, a session with a peer that is
    /// not known does not mention the possibility.
    fn can_ask(&self) -> bool;

    /// Asks whether a peer that is not known may learn this machine's addresses. It has shown a key that the policy accepts.
    ///
    /// # Cancel safety
    /// The future is dropped if the session ends before the answer.
    fn ask<'a>(&'a self, peer: &'a BareJid) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>>;
}

/// Whether the peer of one session may learn this machine's addresses. All parts of the session share it.
///
/// It is decided once: by what is known before the peer shows a key, or by the user's answer after that. Until then nothing is
/// told, whatever [`Consent`] comes to remember of the peer while the user thinks.
#[derive(Clone, Debug, Default)]
pub(super) struct SessionConsent(Arc<OnceLock<bool>>);

impl SessionConsent {
    /// Creates one with this decision, or without one yet.
    pub(super) fn new(decision: Option<bool>) -> Self {
        Self(Arc::new(decision.map_or_else(OnceLock::new, OnceLock::from)))
    }

    /// Returns the decision; `None` before there is one.
    pub(super) fn decision(&self) -> Option<bool> {
        self.0.get().copied()
    }

    /// Returns whether addresses may be told now.
    pub(super) fn is_given(&self) -> bool {
        self.decision() == Some(true)
    }

    /// Takes the user's answer, unless the decision is made already.
    pub(super) fn decide(&self, answer: bool) {
        let _ = self.0.set(answer);
    }
}

/// Remembers nobody, and agrees to nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NoConsent;

impl Consent for NoConsent {
    fn remembered(&self, _peer: &BareJid) -> Option<bool> {
        None
    }

    fn can_ask(&self) -> bool {
        false
    }

    fn ask<'a>(&'a self, _peer: &'a BareJid) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>> {
        Box::pin(std::future::ready(false))
    }
}

impl DirectPath {
    /// Returns whether a peer may learn this machine's addresses; `None` if that has to be asked.
    pub(super) fn decide(self, consent: &dyn Consent, peer: &BareJid) -> Option<bool> {
        match self {
            Self::Auto => consent.remembered(peer),
            Self::Never => Some(false),
            Self::Always => Some(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Friends(&'static str);

    impl Consent for Friends {
        fn remembered(&self, peer: &BareJid) -> Option<bool> {
            (peer.as_str() == self.0).then_some(true)
        }

        fn can_ask(&self) -> bool {
            true
        }

        fn ask<'a>(&'a self, peer: &'a BareJid) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>> {
            NoConsent.ask(peer)
        }
    }

    #[test]
    fn only_a_remembered_peer_needs_no_question() {
        let of = |name: &str| BareJid::new(name).unwrap();
        let (friend, stranger) = (of("bob@example.org"), of("mallory@example.org"));
        let friends = Friends("bob@example.org");
        for (choice, for_friend, for_stranger) in [
            (DirectPath::Auto, Some(true), None),
            (DirectPath::Never, Some(false), Some(false)),
            (DirectPath::Always, Some(true), Some(true)),
        ] {
            assert_eq!(choice.decide(&friends, &friend), for_friend);
            assert_eq!(choice.decide(&friends, &stranger), for_stranger);
        }
        assert_eq!(DirectPath::default().decide(&NoConsent, &friend), None);
    }

    #[test]
    fn a_session_has_no_consent_until_there_is_an_answer_and_keeps_its_first_one() {
        let open = SessionConsent::new(None);
        let part = open.clone();
        assert_eq!((part.decision(), part.is_given()), (None, false));
        open.decide(true);
        part.decide(false);
        assert_eq!((open.decision(), part.is_given()), (Some(true), true));
        let refused = SessionConsent::new(Some(false));
        refused.decide(true);
        assert!(!refused.is_given() && !SessionConsent::default().is_given());
    }

    #[tokio::test]
    async fn without_a_consent_the_answer_is_no() {
        assert!(!NoConsent.ask(&BareJid::new("bob@example.org").unwrap()).await);
    }
}
