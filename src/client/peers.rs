//! Known peers: the policy of sessions, and the command `trust`.

use std::path::PathBuf;

use jid::BareJid;
use serde_json::json;

use super::{
    account::{self, Account},
    args::{Common, TrustCommand},
    output::{Output, XtlsError},
    trust::Trust,
};
use crate::{
    endpoint::{Error, Hint, Known, Policy, Shown},
    print::{HashKind, Print},
};

/// Tells the user what the registry says, refuses what it warns of, and keeps a peer's first key.
#[derive(Debug)]
pub(super) struct Peers {
    pub(super) dir: PathBuf,
    pub(super) output: Output,
}

impl Policy for Peers {
    fn offered(&self, peer: &BareJid, hints: &[Hint]) -> Result<(), Error> {
        let mut shown = Vec::new();
        let mut refused = None;
        for Hint { method, print, verdict, assurance, .. } in hints {
            shown.push(json!({
                "method": method, "print": print, "verdict": verdict, "assurance": assurance,
            }));
        }
        for hint in hints.iter().filter(|hint| hint.method == "x509" && !hint.is_good()) {
            let Hint { print, verdict, .. } = hint;
            self.output.warn(&format!("the registry says of {peer}'s key {print}: {verdict}"));
            if hint.is_bad() {
                refused = Some(verdict);
            }
        }
        let verdicts: Vec<_> = hints.iter().map(|hint| hint.verdict.as_str()).collect();
        self.output.event(
            &json!({"event": "session", "peer": peer.as_str(), "hints": shown}),
            &format!("session with {peer}, registry: {}", verdicts.join(", ")),
        );
        match refused {
            Some(verdict) => Err(Error::Unverified(format!(
                "the registry's verdict on {peer}'s key is {verdict}: nothing was sent"
            ))),
            None => Ok(()),
        }
    }

    fn shown(&self, shown: &Shown<'_>) -> Result<Known, Error> {
        let mut trust = Trust::load(&self.dir)?;
        let known = trust.check(shown.peer, shown.print)?;
        if known == Known::First {
            trust.set(shown.peer, shown.print)?;
        }
        Ok(known)
    }
}

/// Lists and changes the known peers.
pub(super) fn trust(
    common: &Common,
    command: TrustCommand,
    output: Output,
) -> Result<(), XtlsError> {
    let account = Account::load(common.account.as_ref())?;
    let mut trust = Trust::load(&account::folder(&account.jid)?)?;
    match command {
        TrustCommand::List => {
            for (peer, print) in trust.peers() {
                output.data(&json!({"jid": peer, "print": print}), &format!("{peer}  {print}"));
            }
            Ok(())
        }
        TrustCommand::Set { jid, print } => {
            let print = Print::parse(&print, Some(HashKind::Sha256))
                .map_err(|error| XtlsError::usage(error.to_string()))?;
            trust.set(&jid, &print)
        }
        TrustCommand::Forget { jid } => {
            if trust.forget(&jid)? {
                Ok(())
            } else {
                Err(XtlsError::failed(format!("{jid} is not known")))
            }
        }
    }
}
