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
    endpoint::{Error, Hint, Known, Policy, Shown, Standing},
    print::{Method, Print},
};

/// Tells the user what the registry says of a peer's key, and recognizes the key again.
///
/// The session decides what a verdict means: it refuses a key that the registry warns of before it asks this policy.
#[derive(Debug)]
pub(super) struct Peers {
    pub(super) dir: PathBuf,
    pub(super) output: Output,
}

impl Policy for Peers {
    fn offered(&self, peer: &BareJid, _method: Method, hints: &[Hint]) -> Result<(), Error> {
        let mut shown = Vec::new();
        for Hint { method, print, verdict, assurance, .. } in hints {
            shown.push(json!({
                "method": method, "print": print, "verdict": verdict, "assurance": assurance,
            }));
        }
        let verdicts = match hints {
            [] => "no word".to_owned(),
            hints => hints.iter().map(|hint| hint.verdict.as_str()).collect::<Vec<_>>().join(", "),
        };
        self.output.event(
            &json!({"event": "session", "peer": peer.as_str(), "hints": shown}),
            &format!("session with {peer}, registry: {verdicts}"),
        );
        Ok(())
    }

    fn shown(&self, shown: &Shown<'_>) -> Result<Known, Error> {
        let Shown { peer, print, standing, .. } = shown;
        // A first key is stored once the user has been told of it.
        let forms = Print::forms(shown.method, print, shown.certificate);
        let known = match Trust::load(&self.dir)?.check_forms(peer, shown.method, print, &forms)? {
            Known::First => shown.first_use()?,
            known => known,
        };
        match standing {
            Standing::Vouched | Standing::NoRegistry => {}
            Standing::Unavailable => self.output.warn(&format!(
                "the registry could not be asked about {peer}'s key {print}: it is the known one"
            )),
            standing => {
                let text = format!("the registry says of {peer}'s key {print}: {standing}");
                self.output.warn(&text);
            }
        }
        Ok(known)
    }

    fn remembers(&self, peer: &BareJid) -> bool {
        Trust::load(&self.dir)
            .is_ok_and(|trust| trust.peers().any(|(known, ..)| known == peer.as_str()))
    }
}

/// Lists and changes the known peers.
pub(super) fn trust(
    common: &Common,
    command: TrustCommand,
    output: Output,
) -> Result<(), XtlsError> {
    let mut trust = Trust::load(&lan::directory(common)?)?;
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
            if common.method == Method::Srp {
                return Err(XtlsError::usage("srp has no keys, only a password"));
            }
            let print = Print::pin(&print, common.method)
                .map_err(|error| XtlsError::usage(error.to_string()))?;
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
