//! The command `trust`.

use fingerpost_wire::print::{Method, Print};
use jid::BareJid;
use serde_json::json;
use time::format_description::well_known::Rfc3339;

use super::{Device, Trust, Verified};
use crate::{
    args::{Common, TrustCommand},
    display::shown,
    lan,
    output::{Output, XtlsError},
};

/// Lists and changes the known peers.
pub(crate) fn trust(
    common: &Common,
    command: TrustCommand,
    output: Output,
) -> Result<(), XtlsError> {
    if let TrustCommand::Set { jid, .. } | TrustCommand::Forget { jid, .. } = &command {
        lan::check_account(common, jid)?;
    }
    let mut trust = Trust::load(&lan::directory(common)?)?;
    match command {
        TrustCommand::List => {
            for (peer, device) in trust.devices() {
                list(peer, device, output);
            }
            Ok(())
        }
        TrustCommand::Set { jid, print, label } => {
            if common.method == Method::Srp {
                return Err(XtlsError::usage("srp has no keys, only a password"));
            }
            let print = Print::pin(&print, common.method)
                .map_err(|error| XtlsError::usage(error.to_string()))?;
            trust.add(&jid, Device::seen_now(common.method, print, &label, Verified::Set))
        }
        TrustCommand::Forget { jid, print: None } => {
            if trust.forget(&jid, None)? {
                return Ok(());
            }
            Err(XtlsError::failed(format!("{jid} is not known")))
        }
        TrustCommand::Forget { jid, print: Some(text) } => {
            let print =
                Print::parse(&text, None).map_err(|error| XtlsError::usage(error.to_string()))?;
            if trust.forget(&jid, Some(&print))? {
                return Ok(());
            }
            Err(XtlsError::failed(format!("{jid} is not known by the key {print}"))
                .hint("`xtls trust list` shows the keys of each peer"))
        }
    }
}

fn list(peer: &BareJid, device: &Device, output: Output) {
    let Device { method, print, label, first_seen, verified, direct } = device;
    let first_seen = first_seen.and_then(|seen| seen.format(&Rfc3339).ok());
    let mut text = format!("{peer}  {method}  {print}");
    if !label.is_empty() {
        text += &format!("  \"{}\"", shown(label, None));
    }
    if let Some(first_seen) = &first_seen {
        text += &format!("  first seen {first_seen}");
    }
    if let Some(verified) = verified {
        text += &format!("  {verified}");
    }
    if *direct == Some(false) {
        text += "  not directly";
    }
    output.data(
        &json!({
            "jid": peer.as_str(), "method": method.as_str(), "print": print.to_string(), "label": label,
            "first_seen": first_seen, "verified": verified.map(Verified::as_str), "direct": direct,
        }),
        &text,
    );
}
