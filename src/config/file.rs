//! Written settings, from the environment or a TOML file.

use toml::{Table, Value};

use super::{
    env,
    error::{ConfigError, Where},
    keys::{Sections, closest, unknown_key},
    values::{Given, shown},
};

/// All settings that are written somewhere.
#[derive(Debug)]
pub(super) struct Written {
    file: String,
    table: Table,
    env: env::Variables,
}

impl Written {
    /// Reads TOML `text` that came from `file`; the environment overrides it.
    ///
    /// # Errors
    /// Text that is not valid TOML, or an unknown section or key.
    pub(super) fn parse(
        file: &str,
        text: &str,
        sections: Sections,
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
        let names: Vec<&str> = sections.iter().map(|(section, _)| *section).collect();
        for (section, value) in &table {
            let Some((_, known)) = sections.iter().find(|(known, _)| known == section) else {
                let what = if value.is_table() { "section" } else { "key" };
                let text = match closest(section, &names) {
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
            let is_known = |key: &str| known.iter().any(|setting| setting.key == key);
            if let Some(key) = settings.keys().find(|key| !is_known(key)) {
                return Err(unknown_key(&Where::File(file.to_owned()), section, key, known));
            }
        }
        Ok(Self { file: file.to_owned(), table, env: env::settings(sections, vars)? })
    }

    /// Returns the settings of one section.
    pub(super) fn section(&self, name: &'static str) -> SectionReader<'_> {
        SectionReader { written: self, name }
    }
}

/// The settings of one section.
#[derive(Clone, Copy, Debug)]
pub(super) struct SectionReader<'a> {
    written: &'a Written,
    name: &'static str,
}

impl SectionReader<'_> {
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

    /// Returns whether a key is written anywhere.
    pub(super) fn is_written(&self, key: &'static str) -> bool {
        self.value(key).is_some()
    }

    /// Reads a setting whose default is `shown`.
    pub(super) fn default<T>(
        &self,
        key: &'static str,
        shown: &'static str,
        read: impl Fn(&Given<'_>) -> Result<T, ConfigError>,
    ) -> Result<T, ConfigError> {
        let own = || (Where::File(self.written.file.clone()), literal(shown));
        let (at, value) = self.value(key).unwrap_or_else(own);
        read(&Given { section: self.name, key, shown, at, value: &value })
    }

    /// Reads a setting without a fixed default, of which `shown` is an example.
    pub(super) fn example<T: Default>(
        &self,
        key: &'static str,
        shown: &'static str,
        read: impl Fn(&Given<'_>) -> Result<T, ConfigError>,
    ) -> Result<T, ConfigError> {
        if self.is_written(key) { self.default(key, shown, read) } else { Ok(T::default()) }
    }
}

/// Reads a value that this program has in it.
fn literal(shown: &str) -> Value {
    let table: Option<Table> = toml::from_str(&format!("value = {shown}")).ok();
    table.and_then(|mut table| table.remove("value")).expect("a default is TOML")
}
