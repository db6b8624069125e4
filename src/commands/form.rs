//! Data forms (XEP-0004), as far as the commands need them.

use std::{borrow::Cow, collections::HashMap};

use fingerpost_wire::{ns, print::Print, xml};
use minidom::Element;

use super::catalogue::{Language, Said, Text};

/// How much all forms of one command may make the component keep: fields, values, bytes.
const LIMITS: (usize, usize, usize) = (32, 1024, 64 * 1024);
/// The longest line of a text: Gajim wraps longer ones. poezio shows one line of a field at a time, in half of its window,
/// and no part of a line that is longer.
pub(super) const LINE: usize = 34;
/// The longest label of an option, for the same reason.
const OPTION: usize = 48;
/// The bytes of a fingerprint in one line, for the same reason.
const LINE_OF_PRINT: usize = 8;
/// The variables of fields that are only read, and the beginnings of such variables. Clients send them back.
const READ_ONLY: [&str; 5] = [NOTE, ERROR, RESULT, PRINTS, MESSAGE];
const READ_ONLY_OF: [&str; 4] = [KEY, PRINTS_OF, ENTRY, SESSION];

/// What a user should know before filling in the form.
pub(super) const NOTE: &str = "note";
/// Why the form is shown again, or why the command failed.
pub(super) const ERROR: &str = "error";
/// How the command ended.
pub(super) const RESULT: &str = "result";
/// The fingerprints of a key that is not stored yet.
pub(super) const PRINTS: &str = "prints";
/// The bytes to be signed.
pub(super) const MESSAGE: &str = "message";
/// A key, followed by its id.
pub(super) const KEY: &str = "key-";
/// A key's whole fingerprints, followed by its id.
pub(super) const PRINTS_OF: &str = "prints-";
/// An entry of the audit log, followed by its number.
pub(super) const ENTRY: &str = "entry-";
/// A session, followed by its id.
pub(super) const SESSION: &str = "session-";

/// A user has put more into the fields of a command than may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooMuch;

/// A user's input so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Values(HashMap<String, Vec<String>>);

impl Values {
    /// Takes a submitted form. Fields that it does not have stay as they are.
    ///
    /// # Errors
    /// [`TooMuch`] if it exceeds the limit together with earlier input; then nothing of it is kept.
    pub(super) fn submit(&mut self, form: &Element) -> Result<(), TooMuch> {
        let mut submitted = HashMap::new();
        let mut fields = form.children().filter(|child| {
            child.is("field", ns::DATA) && !child.attr("var").is_some_and(is_read_only)
        });
        for field in fields.by_ref().take(LIMITS.0 + 1) {
            let Some(var) = field.attr("var").filter(|var| var.len() <= 64) else { continue };
            let values = field.children().filter(|child| child.is("value", ns::DATA));
            let values: Vec<String> = values.take(LIMITS.1 + 1).map(Element::text).collect();
            submitted.insert(var.to_owned(), values);
        }
        if fields.next().is_some() {
            return Err(TooMuch);
        }
        let kept = self.0.iter().filter(|(var, _)| !submitted.contains_key(*var));
        let all = kept.chain(&submitted);
        let (mut number, mut values, mut bytes) = (0, 0, 0);
        for (var, texts) in all {
            number += 1;
            values += texts.len();
            bytes += var.len() + texts.iter().map(String::len).sum::<usize>();
        }
        if number > LIMITS.0 || values > LIMITS.1 || bytes > LIMITS.2 {
            return Err(TooMuch);
        }
        self.0.extend(submitted);
        Ok(())
    }

    /// Returns the bytes that are kept.
    pub(super) fn bytes(&self) -> usize {
        let of = |texts: &Vec<String>| texts.iter().map(|text| 24 + text.len()).sum::<usize>();
        self.0.iter().map(|(var, texts)| 64 + var.len() + of(texts)).sum()
    }

    /// Stores a value that no form asked for.
    pub(super) fn set(&mut self, var: &str, value: String) {
        self.0.insert(var.to_owned(), vec![value]);
    }

    /// Stores a value for a field that has none.
    pub(super) fn set_default(&mut self, var: &str, value: String) {
        self.0.entry(var.to_owned()).or_insert_with(|| vec![value]);
    }

    /// Returns the first value of a field, without space around it; empty if there is none.
    pub(super) fn one(&self, var: &str) -> &str {
        self.0.get(var).and_then(|values| values.first()).map_or("", |value| value.trim())
    }

    /// Returns all values of a field, as lines.
    pub(super) fn lines(&self, var: &str) -> String {
        self.0.get(var).map(|values| values.join("\n")).unwrap_or_default()
    }

    /// Returns all values of a field that are not empty.
    pub(super) fn all(&self, var: &str) -> impl Iterator<Item = &str> {
        self.0.get(var).into_iter().flatten().map(|value| value.trim()).filter(|v| !v.is_empty())
    }

    /// Returns whether a boolean field is set.
    pub(super) fn is_true(&self, var: &str) -> bool {
        matches!(self.one(var), "1" | "true")
    }
}

/// A form to be filled in, or a result to be read.
///
/// Every text is in a field with a label, because some clients show neither instructions nor notes.
#[derive(Clone, Debug)]
pub(super) struct Form {
    type_: &'static str,
    language: Language,
    title: String,
    fields: Vec<Element>,
}

impl Form {
    /// Creates a form to be filled in.
    pub(super) fn new(language: Language, title: impl Into<Said>) -> Self {
        let title = title.into().in_language(language).into_owned();
        Self { type_: "form", language, title, fields: Vec::new() }
    }

    /// Creates a result to be read.
    pub(super) fn result(language: Language, title: impl Into<Said>) -> Self {
        Self { type_: "result", ..Self::new(language, title) }
    }

    /// Returns the form as a page that others follow. Profanity shows a result only at the end of a command.
    pub(super) fn followed(self) -> Self {
        Self { type_: "form", ..self }
    }

    /// Adds a field with its present values.
    pub(super) fn field(
        mut self,
        type_: &str,
        var: &str,
        label: impl Into<Said>,
        values: &[&str],
    ) -> Self {
        let label = label.into().in_language(self.language);
        self.fields.push(field(type_, var, &label, values));
        self
    }

    /// Adds a field like [`Form::field`] that must be filled in.
    pub(super) fn required(
        self,
        type_: &str,
        var: &str,
        label: impl Into<Said>,
        values: &[&str],
    ) -> Self {
        let mut form = self.field(type_, var, label, values);
        if let Some(field) = form.fields.last_mut() {
            field.append_child(Element::bare("required", ns::DATA));
        }
        form
    }

    /// Adds a text to be read.
    pub(super) fn text(self, var: &str, label: Text, text: impl Into<Said>) -> Self {
        let field = self.read_field(var, label, text);
        self.fields(vec![field])
    }

    /// Adds a text to be read before all other fields.
    pub(super) fn text_first(mut self, var: &str, label: Text, text: impl Into<Said>) -> Self {
        self.fields.insert(0, self.read_field(var, label, text));
        self
    }

    fn read_field(&self, var: &str, label: Text, text: impl Into<Said>) -> Element {
        let text = text.into().in_language(self.language);
        shown(var, self.language.text(label), &wrapped(&text))
    }

    /// Adds fields.
    pub(super) fn fields(mut self, fields: Vec<Element>) -> Self {
        self.fields.extend(fields);
        self
    }

    /// Adds a field for one of several options, each with label and value.
    pub(super) fn choice(
        self,
        var: &str,
        label: impl Into<Said>,
        chosen: &str,
        options: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        let values = [chosen];
        let values = if chosen.is_empty() { &values[..0] } else { &values[..] };
        self.field("list-single", var, label, values).with_options(options)
    }

    fn with_options(mut self, options: impl IntoIterator<Item = (String, String)>) -> Self {
        if let Some(field) = self.fields.last_mut() {
            for (label, value) in options {
                field.append_child(option(&label, &value));
            }
        }
        self
    }

    /// Returns the variables of the fields that a user fills in.
    pub(super) fn inputs(&self) -> impl Iterator<Item = &str> {
        let vars = self.fields.iter().filter_map(|field| field.attr("var"));
        vars.filter(|var| !is_read_only(var))
    }

    /// Returns the `<x/>` element.
    pub(super) fn into_element(self) -> Element {
        let mut form = xml::element("x", ns::DATA, &[("type", self.type_)]);
        form.append_child(with_text("title", &self.title));
        for field in self.fields {
            form.append_child(field);
        }
        form
    }
}

/// Returns whether a field is shown only: what is submitted for it is ignored.
pub(crate) fn is_read_only(var: &str) -> bool {
    READ_ONLY.contains(&var) || READ_ONLY_OF.iter().any(|beginning| var.starts_with(beginning))
}

fn field(type_: &str, var: &str, label: &str, values: &[impl AsRef<str>]) -> Element {
    let mut field =
        xml::element("field", ns::DATA, &[("type", type_), ("var", var), ("label", label)]);
    for value in values {
        field.append_child(with_text("value", value.as_ref()));
    }
    field
}

/// Returns a field with lines to be read.
pub(super) fn shown(var: &str, label: &str, lines: &[String]) -> Element {
    debug_assert!(is_read_only(var), "{var} would be kept");
    field("text-multi", var, label, lines)
}

/// Returns a field for programs, which no client shows.
pub(super) fn hidden(var: &str, label: &str, values: &[String]) -> Element {
    debug_assert!(is_read_only(var), "{var} would be kept");
    field("hidden", var, label, values)
}

/// Returns an option of a field. Profanity crashes if the value is empty.
pub(super) fn option(label: &str, value: &str) -> Element {
    let label = shortened(label, OPTION);
    let mut option = xml::element("option", ns::DATA, &[("label", &label)]);
    option.append_child(with_text("value", value));
    option
}

/// Returns the beginning of a text that is too long.
pub(super) fn shortened(text: &str, most: usize) -> Cow<'_, str> {
    match text.chars().count() <= most {
        true => Cow::Borrowed(text),
        false => text.chars().take(most - 1).chain(['…']).collect(),
    }
}

/// Returns the lines of a text. Words stay whole if they fit.
pub(super) fn wrapped(text: &str) -> Vec<String> {
    let split = |line: String| {
        let line: Vec<char> = line.chars().collect();
        line.chunks(LINE).map(|part| part.iter().collect()).collect::<Vec<String>>()
    };
    wrapped_at_words(text).into_iter().flat_map(split).collect()
}

/// Returns the lines of a text in which all words stay whole.
pub(super) fn wrapped_at_words(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut length = 0;
    for word in text.split_whitespace() {
        let more = word.chars().count();
        match lines.last_mut() {
            Some(line) if length + 1 + more <= LINE => {
                line.push(' ');
                line.push_str(word);
                length += 1 + more;
            }
            _ => {
                lines.push(word.to_owned());
                length = more;
            }
        }
    }
    lines
}

/// Returns a fingerprint as lines: its hash, then groups of bytes.
pub(super) fn print_lines(print: &Print) -> Vec<String> {
    let mut lines = vec![print.hash().as_str().to_uppercase()];
    let text = print.to_string();
    let pairs: Vec<&str> = text.split(':').collect();
    lines.extend(pairs.chunks(LINE_OF_PRINT).map(|pairs| pairs.join(":")));
    lines
}

fn with_text(name: &str, text: &str) -> Element {
    let mut element = Element::bare(name, ns::DATA);
    element.append_text(text);
    element
}
