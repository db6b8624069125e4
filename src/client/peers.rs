//! Known peers: the policy of sessions, and the command `trust`.

use std::path::PathBuf;

use jid::BareJid;
use serde_json::json;

use super::{
    args::{Common, TrustCommand},
    lan,
    output::{Output, XtlsError},
    trust::Trust,
};
use crate::{
    endpoint::{Error, Hint, Known, Policy, Shown},
    print::{HashKind, Method, Print},
};

/// Tells the user what the registry says, refuses what it warns of, and knows a peer's key again.
#[derive(Debug)]
pub(super) struct Peers {
    pub(super) dir: PathBuf,
    pub(super) output: Output,
}

impl Policy for Peers {
    fn offered(&self, peer: &BareJid, method: Method, hints: &[Hint]) -> Result<(), Error> {
        let mut shown = Vec::new();
        let mut refused = None;
        for Hint { method, print, verdict, assurance, .. } in hints {
            shown.push(json!({
                "method": method, "print": print, "verdict": verdict, "assurance": assurance,
            }));
        }
        for hint in hints.iter().filter(|hint| hint.method == method.as_str() && !hint.is_good()) {
            let Hint { print, verdict, .. } = hint;
            self.output.warn(&format!("the registry says of {peer}'s key {print}: {verdict}"));
            if hint.is_bad() {
                refused = Some(verdict);
            }
        }
        let verdicts = match hints {
            [] => "no word".to_owned(),
            hints => hints.iter().map(|hint| hint.verdict.as_str()).collect::<Vec<_>>().join(", "),
        };
        self.output.event(
            &json!({"event": "session", "peer": peer.as_str(), "hints": shown}),
            &format!("session with {peer}, registry: {verdicts}"),
        );
        match refused {
            Some(verdict) => Err(Error::Unverified(format!(
                "the registry's verdict on {peer}'s key is {verdict}: nothing was sent"
            ))),
            None => Ok(()),
        }
    }

    fn shown(&self, shown: &Shown<'_>) -> Result<Known, Error> {
        // A first key is kept when the user has been told of it.
        Ok(Trust::load(&self.dir)?.check(shown.peer, shown.method, shown.print)?)
    }
}

/// Lists and changes the known peers.
pub(super) fn trust(
    common: &Common,
    command: TrustCommand,
    output: Output,
) -> Result<(), XtlsError> {
    let mut trust = Trust::load(&lan::folder(common)?)?;
    match command {
        TrustCommand::List => {
            for (peer, method, print) in trust.peers() {
                output.data(
                    &json!({"jid": peer, "method": method, "print": print}),
                    &format!("{peer}  {method}  {print}"),
                );
            }
            Ok(())
        }
        TrustCommand::Set { jid, print } => {
            let hash = match common.method {
                Method::X509 => Some(HashKind::Sha256),
                Method::OpenPgp => None,
                Method::Srp => return Err(XtlsError::usage("srp has no keys, only a password")),
            };
            let print = Print::parse(&print, hash).map_err(|error| {
                XtlsError::usage(format!("{error}; for an OpenPGP key add --method openpgp"))
            })?;
            trust.set(&jid, common.method, &print)
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
