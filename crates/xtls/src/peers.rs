//! Known peers: the policy of sessions.

use std::path::PathBuf;

use fingerpost_endpoint::{Error, Hint, Known, Policy, Shown, Standing};
use fingerpost_wire::{
    print::{Method, Print},
    word::Word,
};
use jid::BareJid;
use serde_json::json;

use super::{
    args::AcceptNewDevice,
    output::{Output, XtlsError},
    trust::Trust,
};

/// Tells the user what the registry says of a peer's key, and recognizes the key again.
///
/// The session decides what a verdict means: it refuses a key that the registry warns of before it asks this policy.
#[derive(Debug)]
pub(super) struct Peers {
    pub(super) dir: PathBuf,
    pub(super) accept_new_device: AcceptNewDevice,
    pub(super) output: Output,
}

impl Peers {
    /// Decides on a key of a peer that is known by other keys. The user is asked, or told, later.
    ///
    /// # Errors
    /// Exit status 4, unless the registry says that the peer has proven this very key.
    fn further(&self, trust: &Trust, shown: &Shown<'_>) -> Result<Known, XtlsError> {
        let Shown { peer, method, print, .. } = shown;
        let remark = match (shown.is_proven(), self.accept_new_device) {
            (true, AcceptNewDevice::Ask | AcceptNewDevice::Registry) => return Ok(Known::Further),
            (true, AcceptNewDevice::Never) => format!(
                "The registry says that {peer} has proven it; with --accept-new-device never that is not enough.\n"
            ),
            (false, _) if shown.is_vouched_for() => format!(
                "The registry lists the key, and {peer} has not proven it: `xtls prove` does that there.\n"
            ),
            (false, _) => String::new(),
        };
        Err(trust.refusal(peer, *method, print, &remark))
    }
}

impl Policy for Peers {
    fn offered(&self, peer: &BareJid, method: Method, hints: &[Hint]) -> Result<(), Error> {
        let mut shown = Vec::new();
        for Hint { method, print, verdict, assurance, .. } in hints {
            shown.push(json!({
                "method": method.as_str(), "print": print, "verdict": verdict.as_str(),
                "assurance": assurance.as_ref().map(Word::as_str),
            }));
        }
        let verdicts = match hints {
            [] => "no word".to_owned(),
            hints => hints.iter().map(|hint| hint.verdict.as_str()).collect::<Vec<_>>().join(", "),
        };
        let text = match method {
            // The registry knows of no passwords.
            Method::Srp => String::new(),
            _ => format!("session with {peer}, registry: {verdicts}"),
        };
        let event = json!({"event": "session", "peer": peer.as_str(), "hints": shown});
        self.output.event(&event, &text);
        Ok(())
    }

    fn shown(&self, shown: &Shown<'_>) -> Result<Known, Error> {
        let Shown { peer, print, standing, .. } = shown;
        // A first key is stored once the user has been told of it.
        let trust = Trust::load(&self.dir)?;
        let forms = Print::forms(shown.method, print, shown.certificate);
        let known = match trust.check_forms(peer, shown.method, print, &forms) {
            Known::First => shown.first_use()?,
            Known::Further => self.further(&trust, shown)?,
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
        Trust::load(&self.dir).is_ok_and(|trust| trust.knows(peer))
    }
}
