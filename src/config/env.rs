//! Settings from the environment: `FINGERPOST_COMPONENT__SECRET` stands for `secret` in `[component]`.

use std::collections::BTreeMap;

use crate::config::{
    error::{ConfigError, Where},
    keys::{KEYS, closest},
};

const PREFIX: &str = "FINGERPOST_";

/// Variable and value by section and key.
pub(super) type Settings = BTreeMap<(&'static str, &'static str), (String, String)>;

/// Finds the settings among the variables of an environment.
///
/// `FINGERPOST_` variables that name no section are ignored; they have other uses.
///
/// # Errors
/// A variable that names a section and an unknown key.
pub(super) fn settings(
    vars: impl IntoIterator<Item = (String, String)>,
) -> Result<Settings, ConfigError> {
    let mut found = BTreeMap::new();
    for (name, value) in vars {
        let Some((section, key)) = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once("__"))
        else {
            continue;
        };
        let Some((section, keys)) =
            KEYS.iter().find(|(known, _)| known.eq_ignore_ascii_case(section))
        else {
            continue;
        };
        let Some(key) = keys.iter().find(|known| known.eq_ignore_ascii_case(key)) else {
            let key = key.to_ascii_lowercase();
            let text = match closest(&key, keys) {
                Some(known) => format!("unknown key in [{section}]; did you mean `{known}`?"),
                None => format!("unknown key in [{section}]"),
            };
            return Err(ConfigError::new(&Where::Env(name), section, &key, text));
        };
        found.insert((*section, *key), (name, value));
    }
    Ok(found)
}
