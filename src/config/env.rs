//! Settings from the environment: `FINGERPOST_COMPONENT__SECRET` stands for `secret` in `[component]`.

use std::collections::BTreeMap;

use crate::config::{
    error::{ConfigError, Where},
    keys::{Sections, unknown_key},
};

const PREFIX: &str = "FINGERPOST_";

/// Variable and value by section and key.
pub(super) type Variables = BTreeMap<(&'static str, &'static str), (String, String)>;

/// Finds the settings among the variables of an environment.
///
/// `FINGERPOST_` variables that name no section are ignored; they have other uses.
///
/// # Errors
/// A variable that names a section and an unknown key.
pub(super) fn settings(
    sections: Sections,
    vars: impl IntoIterator<Item = (String, String)>,
) -> Result<Variables, ConfigError> {
    let mut found = BTreeMap::new();
    for (name, value) in vars {
        let Some((section, key)) = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once("__"))
        else {
            continue;
        };
        let Some((section, settings)) =
            sections.iter().find(|(known, _)| known.eq_ignore_ascii_case(section))
        else {
            continue;
        };
        let Some(setting) = settings.iter().find(|known| known.key.eq_ignore_ascii_case(key))
        else {
            let key = key.to_ascii_lowercase();
            return Err(unknown_key(&Where::Env(name), section, &key, settings));
        };
        found.insert((*section, setting.key), (name, value));
    }
    Ok(found)
}
