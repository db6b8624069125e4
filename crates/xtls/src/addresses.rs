//! Asks the user whether a peer may learn this machine's IP addresses, which a direct connection shows.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    pin::Pin,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use fingerpost_endpoint::Consent;
use jid::BareJid;
use tokio::time::{sleep, timeout};

use super::{
    secured::{TerminalTurn, UserAnswer, has_terminal},
    trust::Trust,
};

/// How long the question waits for its answer. The session runs over the relay meanwhile.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long a session must have lasted before the user is asked. A shorter one gains nothing, and questions about keys come first.
const SETTLED: Duration = Duration::from_secs(5);
/// The most answers about peers that the trust store does not know, for example because they have only a password.
const MOST: usize = 1024;

/// Decides for `--direct-path auto`: peers that the user trusts may, unless the user has said no; the user is asked about every
/// other one, if there is a terminal, until there is an answer.
#[derive(Debug)]
pub(super) struct AskUser {
    dir: PathBuf,
    /// The answers while the program runs.
    answers: Mutex<BTreeMap<BareJid, bool>>,
}

impl AskUser {
    /// Creates one for the account in this directory.
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, answers: Mutex::default() }
    }

    fn answered(&self, peer: &BareJid) -> Option<bool> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).get(peer).copied()
    }

    fn keep(&self, peer: &BareJid, allowed: bool) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() < MOST {
            answers.insert(peer.clone(), allowed);
        }
        drop(answers);
        let kept = Trust::load(&self.dir).and_then(|mut trust| trust.set_direct(peer, allowed));
        if let Err(error) = kept {
            tracing::warn!(%error, "could not keep the answer about {peer}");
        }
    }

    async fn decide(&self, peer: &BareJid) -> bool {
        sleep(SETTLED).await;
        let turn = TerminalTurn::new().await;
        // Another session may have asked meanwhile.
        if let Some(answer) = self.answered(peer) {
            return answer;
        }
        let question = format!(
            "Connect to {peer} directly, if the network allows it? It is faster, and shows {peer} the IP address of this \
             machine. Without it the session goes on over the relay. [y/N] "
        );
        let answer = tokio::select! {
            biased;
            answer = timeout(PATIENCE, turn.ask(question)) => answer,
            // A question about a key does not wait for this one.
            () = TerminalTurn::wanted() => return false,
        };
        let allowed = match answer {
            Ok(Ok(UserAnswer::Yes)) => true,
            Ok(Ok(UserAnswer::No)) => false,
            // Nobody has answered, or something else.
            Ok(Ok(UserAnswer::Unclear | UserAnswer::NoTerminal) | Err(_)) | Err(_) => return false,
        };
        self.keep(peer, allowed);
        allowed
    }
}

impl Consent for AskUser {
    fn remembered(&self, peer: &BareJid) -> Option<bool> {
        // A store that cannot be read ends the session in another place.
        let stored = Trust::load(&self.dir).ok().and_then(|trust| trust.allows_direct(peer));
        self.answered(peer).or(stored)
    }

    fn can_ask(&self) -> bool {
        has_terminal()
    }

    fn ask<'a>(&'a self, peer: &'a BareJid) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>> {
        Box::pin(self.decide(peer))
    }
}

#[cfg(test)]
mod tests {
    use fingerpost_wire::print::{HashKind, Method, Print};

    use super::*;
    use crate::trust::{Device, Verified};

    fn jid(name: &str) -> BareJid {
        BareJid::new(name).unwrap()
    }

    fn device(byte: u8, verified: Verified) -> Device {
        let print = Print::new(HashKind::Sha256, &[byte; 32]).unwrap();
        Device::seen_now(Method::X509, print, "", verified)
    }

    #[test]
    fn peers_that_the_user_trusts_may_learn_addresses_until_the_user_says_no() {
        let dir = tempfile::tempdir().unwrap();
        let (bob, carol) = (jid("bob@example.org"), jid("carol@example.org"));
        let user = AskUser::new(dir.path().to_owned());
        assert_eq!(user.remembered(&bob), None);
        Trust::load(dir.path()).unwrap().add(&bob, device(1, Verified::Set)).unwrap();
        assert_eq!(user.remembered(&bob), Some(true));
        // The answer is kept with the peer, also for its further keys and for other processes.
        user.keep(&bob, false);
        Trust::load(dir.path()).unwrap().add(&bob, device(2, Verified::Asked)).unwrap();
        let other = AskUser::new(dir.path().to_owned());
        assert_eq!((user.remembered(&bob), other.remembered(&bob)), (Some(false), Some(false)));
        let trust = Trust::load(dir.path()).unwrap();
        assert!(trust.keys(&bob).iter().all(|key| key.direct == Some(false)));
        other.keep(&bob, true);
        let third = AskUser::new(dir.path().to_owned());
        assert_eq!(third.remembered(&bob), Some(true));
        // One that the store does not know is known to this process alone.
        user.keep(&carol, true);
        assert_eq!((user.remembered(&carol), other.remembered(&carol)), (Some(true), None));
    }

    /// A stranger gets its key into the store by a session.
    #[test]
    fn a_key_that_the_user_has_not_vouched_for_is_no_consent() {
        use Verified::{Asked, Compared, FirstUse, Registry, Set};
        for (keys, remembered) in [
            (&[FirstUse][..], None),
            (&[FirstUse, Registry], None),
            (&[FirstUse, Asked], None),
            (&[Registry], None),
            (&[Compared], Some(true)),
            (&[Set], Some(true)),
            (&[Set, Asked, Registry], Some(true)),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let mallory = jid("mallory@example.org");
            let mut trust = Trust::load(dir.path()).unwrap();
            for (byte, verified) in (0..).zip(keys) {
                trust.add(&mallory, device(byte, *verified)).unwrap();
            }
            let user = AskUser::new(dir.path().to_owned());
            assert_eq!(user.remembered(&mallory), remembered, "{keys:?}");
            user.keep(&mallory, true);
            let other = AskUser::new(dir.path().to_owned());
            assert_eq!(other.remembered(&mallory), Some(true), "{keys:?}");
        }
        // A key of the older form: nobody knows how it came there.
        let dir = tempfile::tempdir().unwrap();
        let bob = jid("bob@example.org");
        let unknown = Device { verified: None, ..device(1, Set) };
        Trust::load(dir.path()).unwrap().add(&bob, unknown).unwrap();
        assert_eq!(AskUser::new(dir.path().to_owned()).remembered(&bob), None);
    }

    #[test]
    fn digits_that_are_compared_later_vouch_for_a_key_of_first_use() {
        let dir = tempfile::tempdir().unwrap();
        let bob = jid("bob@example.org");
        let (first, set) = (device(1, Verified::FirstUse), device(2, Verified::Set));
        let mut trust = Trust::load(dir.path()).unwrap();
        trust.add(&bob, first.clone()).unwrap();
        trust.add(&bob, set.clone()).unwrap();
        let user = AskUser::new(dir.path().to_owned());
        for (key, remembered) in [(&set, None), (&first, Some(true))] {
            trust.set_compared(&bob, key.method, &key.print, &[]).unwrap();
            assert_eq!(user.remembered(&bob), remembered);
        }
        let verified = trust.keys(&bob).iter().map(|key| key.verified);
        assert!(verified.eq([Some(Verified::Compared), Some(Verified::Set)]));
    }

    #[test]
    fn a_store_that_cannot_be_read_lets_nobody_learn_an_address() {
        let dir = tempfile::tempdir().unwrap();
        let bob = jid("bob@example.org");
        Trust::load(dir.path()).unwrap().add(&bob, device(1, Verified::Set)).unwrap();
        std::fs::write(dir.path().join("trust.toml"), "").unwrap();
        assert_eq!(AskUser::new(dir.path().to_owned()).remembered(&bob), None);
    }
}
