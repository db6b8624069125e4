//! Written settings: reads one section's settings from the environment or a TOML file, with the expected type of each.

use std::str::FromStr;
use std::time::Duration;

use toml::{Table, Value};

use super::{
    env,
    error::{ConfigError, Where},
    keys::{KEYS, closest},
};

/// The longest text of a wrong value that an error repeats, in characters.
const MAX_SHOWN: usize = 60;

/// All settings that are written somewhere.
#[derive(Debug)]
pub(super) struct Written {
    file: String,
    table: Table,
    env: env::Settings,
}

impl Written {
    /// Reads TOML `text` that came from `file`; the environment overrides it.
    ///
    /// # Errors
    /// Text that is not valid TOML, or an unknown section or key.
    pub(super) fn parse(
        file: &str,
        text: &str,
        vars: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let table: Table = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| {
                text.get(..span.start).unwrap_or_default().matches('\n').count() + 1
            });
            let mut message = error.message().lines().next().unwrap_or("no TOML").to_owned();
            let at = error.span().and_then(|span| text.get(span)).map(str::trim);
            if message == "duplicate key"
                && let Some(key) = at.filter(|key| !key.is_empty() && !key.contains('\n'))
            {
                message = format!("{key}: duplicate key: expected it once in its section");
            }
            ConfigError::at(format!("{file}: line {line}"), message)
        })?;
        let sections: Vec<&str> = KEYS.iter().map(|(section, _)| *section).collect();
        for (section, value) in &table {
            let Some((_, keys)) = KEYS.iter().find(|(known, _)| known == section) else {
                let what = if value.is_table() { "section" } else { "key" };
                let text = match closest(section, &sections) {
                    Some(known) => format!("unknown {what}; did you mean [{known}]?"),
                    None => format!("unknown {what}"),
                };
                return Err(ConfigError::at(format!("{file}: {section}"), text));
            };
            let Some(settings) = value.as_table() else {
                return Err(ConfigError::at(
                    format!("{file}: {section}"),
                    format!("expected a section, [{section}], found {}", shown(value)),
                ));
            };
            if let Some(key) = settings.keys().find(|key| !keys.contains(&key.as_str())) {
                let text = match closest(key, keys) {
                    Some(known) => format!("unknown key in [{section}]; did you mean `{known}`?"),
                    None => format!("unknown key in [{section}]"),
                };
                return Err(ConfigError::new(&Where::File(file.to_owned()), section, key, text));
            }
        }
        Ok(Self { file: file.to_owned(), table, env: env::settings(vars)? })
    }

    /// Returns the settings of one section.
    pub(super) fn section(&self, name: &'static str) -> Section<'_> {
        Section { written: self, name }
    }
}

/// The settings of one section. Each reader returns the default for a key that is not written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Section<'a> {
    written: &'a Written,
    name: &'static str,
}

impl Section<'_> {
    fn value(&self, key: &'static str) -> Option<(Where, Value)> {
        if let Some((variable, text)) = self.written.env.get(&(self.name, key)) {
            return Some((Where::Env(variable.clone()), Value::String(text.clone())));
        }
        let value = self.written.table.get(self.name)?.as_table()?.get(key)?;
        Some((Where::File(self.written.file.clone()), value.clone()))
    }

    /// Returns whether the environment sets a key.
    pub(super) fn in_env(&self, key: &'static str) -> bool {
        self.written.env.contains_key(&(self.name, key))
    }

    /// Returns the error for a key that is missing, or conflicts with others.
    pub(super) fn error(&self, key: &str, text: impl Into<String>) -> ConfigError {
        ConfigError::new(&Where::File(self.written.file.clone()), self.name, key, text.into())
    }

    /// Reads one key with `read`, which returns `None` for a value that is not `expected`.
    pub(super) fn read<T>(
        &self,
        key: &'static str,
        expected: &str,
        read: impl FnOnce(&Where, &Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some((at, value)) = self.value(key) else { return Ok(None) };
        match read(&at, &value) {
            Some(read) => Ok(Some(read)),
            // A database's address may contain a password.
            None if matches!(key, "secret" | "url") => {
                Err(ConfigError::new(&at, self.name, key, format!("expected {expected}")))
            }
            None => {
                let text = format!("expected {expected}, found {}", shown(&value));
                Err(ConfigError::new(&at, self.name, key, text))
            }
        }
    }

    /// Returns a text that `parse` accepts.
    pub(super) fn text<T>(
        &self,
        key: &'static str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        self.read(key, expected, |_, value| value.as_str().and_then(parse))
    }

    /// Returns true or false.
    pub(super) fn boolean(&self, key: &'static str, default: bool) -> Result<bool, ConfigError> {
        let read = self.read(key, "true or false", |at, value| match (at, value) {
            (_, Value::Boolean(value)) => Some(*value),
            (Where::Env(_), Value::String(text)) => text.parse().ok(),
            _ => None,
        })?;
        Ok(read.unwrap_or(default))
    }

    /// Returns a whole number from `min` to `max`.
    pub(super) fn number<T>(
        &self,
        key: &'static str,
        (min, max): (T, T),
        default: T,
    ) -> Result<T, ConfigError>
    where
        T: TryFrom<i64> + FromStr + PartialOrd + std::fmt::Display + Copy,
    {
        let expected = format!("a whole number from {min} to {max}");
        let read = self.read(key, &expected, |at, value| {
            let number = match (at, value) {
                (_, Value::Integer(value)) => T::try_from(*value).ok(),
                (Where::Env(_), Value::String(text)) => text.parse().ok(),
                _ => None,
            };
            number.filter(|number| (min..=max).contains(number))
        })?;
        Ok(read.unwrap_or(default))
    }

    /// Returns a duration written as text, from `min` to `max`.
    pub(super) fn duration(
        &self,
        key: &'static str,
        (min, max): (Duration, Duration),
        default: Duration,
    ) -> Result<Duration, ConfigError> {
        let expected = format!(
            "a duration from {} to {} such as \"{}\"",
            humantime::format_duration(min),
            humantime::format_duration(max),
            humantime::format_duration(default)
        );
        let read = self.text(key, &expected, |text| {
            humantime::parse_duration(text).ok().filter(|read| (min..=max).contains(read))
        })?;
        Ok(read.unwrap_or(default))
    }

    /// Returns one of several words.
    pub(super) fn choice<T: Copy>(
        &self,
        key: &'static str,
        choices: &[(&str, T)],
        default: T,
    ) -> Result<T, ConfigError> {
        let words: Vec<String> = choices.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        let read = self.text(key, &format!("one of {}", words.join(", ")), |text| {
            choices.iter().find(|(word, _)| *word == text).map(|(_, choice)| *choice)
        })?;
        Ok(read.unwrap_or(default))
    }

    /// Returns one text that `parse` accepts, or a list of at least one such text. In the environment they are
    /// separated by commas.
    pub(super) fn one_or_several<T>(
        &self,
        key: &'static str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<Vec<T>>, ConfigError> {
        match self.value(key) {
            Some((Where::File(_), value)) if !value.is_array() => {
                let or_list = if value.is_str() { "" } else { " or a list of such" };
                let read = self.text(key, &format!("{expected}{or_list}"), parse)?;
                Ok(read.map(|one| vec![one]))
            }
            Some((at, value)) => {
                let read = self.list(key, expected, parse)?.unwrap_or_default();
                if read.is_empty() {
                    let text =
                        format!("expected {expected} or a list of such, found {}", shown(&value));
                    return Err(ConfigError::new(&at, self.name, key, text));
                }
                Ok(Some(read))
            }
            None => Ok(None),
        }
    }

    /// Returns a list of texts that `parse` accepts. In the environment they are separated by commas.
    pub(super) fn list<T>(
        &self,
        key: &'static str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<Vec<T>>, ConfigError> {
        let Some((at, value)) = self.value(key) else { return Ok(None) };
        let list = match (&at, value) {
            (Where::Env(_), Value::String(text)) => text
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(|item| Value::String(item.to_owned()))
                .collect(),
            (_, Value::Array(list)) => list,
            (_, value) => {
                let text = format!("expected a list of {expected}, found {}", shown(&value));
                return Err(ConfigError::new(&at, self.name, key, text));
            }
        };
        let read = list.iter().map(|item| {
            item.as_str().and_then(&parse).ok_or_else(|| {
                let text = format!("expected {expected} in the list, found {}", shown(item));
                ConfigError::new(&at, self.name, key, text)
            })
        });
        read.collect::<Result<_, _>>().map(Some)
    }
}

/// Returns a value for an error message, on one line and not too long.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::Table(_) => "a section".to_owned(),
        value => value.to_string().replace(['\n', '\r'], " "),
    };
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
