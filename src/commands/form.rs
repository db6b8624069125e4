//! Data forms (XEP-0004), as far as the commands need them.

use std::collections::HashMap;

use fingerpost_wire::{ns, xml};
use minidom::Element;

/// How much all forms of one command may make the component keep: fields, values, bytes.
const LIMITS: (usize, usize, usize) = (32, 1024, 64 * 1024);

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
        let mut fields = form.children().filter(|child| child.is("field", ns::DATA));
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
#[derive(Clone, Debug)]
pub(super) struct Form(Element);

impl Form {
    /// Creates a form to be filled in.
    pub(super) fn new(title: &str, instructions: &str) -> Self {
        Self::of("form", title).text("instructions", instructions)
    }

    /// Creates a result to be read.
    pub(super) fn result(title: &str) -> Self {
        Self::of("result", title)
    }

    fn of(type_: &str, title: &str) -> Self {
        Self(xml::element("x", ns::DATA, &[("type", type_)])).text("title", title)
    }

    fn text(mut self, name: &str, text: &str) -> Self {
        if !text.is_empty() {
            self.0.append_child(with_text(name, text));
        }
        self
    }

    /// Creates the form with one more field, which has its present values.
    pub(super) fn field(mut self, type_: &str, var: &str, label: &str, values: &[&str]) -> Self {
        let mut field =
            xml::element("field", ns::DATA, &[("type", type_), ("var", var), ("label", label)]);
        for value in values {
            field.append_child(with_text("value", value));
        }
        self.0.append_child(field);
        self
    }

    /// Adds a field like [`Form::field`] that must be filled in.
    pub(super) fn required(self, type_: &str, var: &str, label: &str, values: &[&str]) -> Self {
        let mut form = self.field(type_, var, label, values);
        form.last_field(|field| {
            field.append_child(Element::bare("required", ns::DATA));
        });
        form
    }

    /// Creates the form with one more field for one of several options, each with label and value.
    pub(super) fn choice(
        self,
        var: &str,
        label: &str,
        chosen: &str,
        options: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        let values = [chosen];
        let values = if chosen.is_empty() { &values[..0] } else { &values[..] };
        self.field("list-single", var, label, values).with_options(options)
    }

    /// Creates the form with one more field for any of several options, each with label and value. None is chosen at
    /// first.
    pub(super) fn choices(
        self,
        var: &str,
        label: &str,
        options: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        self.field("list-multi", var, label, &[]).with_options(options)
    }

    fn with_options(mut self, options: impl IntoIterator<Item = (String, String)>) -> Self {
        self.last_field(|field| {
            for (label, value) in options {
                field.append_child(option(&label, &value));
            }
        });
        self
    }

    fn last_field(&mut self, change: impl FnOnce(&mut Element)) {
        if let Some(field) = self.0.children_mut().last() {
            change(field);
        }
    }

    /// Creates the form with a table: variables with their labels, then rows.
    pub(super) fn table(mut self, columns: &[(&str, &str)], rows: Vec<Vec<String>>) -> Self {
        let mut reported = Element::bare("reported", ns::DATA);
        for (var, label) in columns {
            reported.append_child(xml::element(
                "field",
                ns::DATA,
                &[("var", var), ("label", label), ("type", "text-single")],
            ));
        }
        self.0.append_child(reported);
        for row in rows {
            self.0.append_child(item(columns, row));
        }
        self
    }

    /// Adds rows to a table.
    pub(super) fn items(mut self, items: Vec<Element>) -> Self {
        for item in items {
            self.0.append_child(item);
        }
        self
    }

    /// Returns the `<x/>` element, to be measured.
    pub(super) fn element(&self) -> &Element {
        &self.0
    }

    /// Returns the `<x/>` element.
    pub(super) fn into_element(self) -> Element {
        self.0
    }
}

/// Returns a row of a table.
pub(super) fn item(columns: &[(&str, &str)], row: Vec<String>) -> Element {
    let mut item = Element::bare("item", ns::DATA);
    for ((var, _), value) in columns.iter().zip(row) {
        let mut field = xml::element("field", ns::DATA, &[("var", var)]);
        field.append_child(with_text("value", &value));
        item.append_child(field);
    }
    item
}

/// Returns an option of a field.
pub(super) fn option(label: &str, value: &str) -> Element {
    let mut option = xml::element("option", ns::DATA, &[("label", label)]);
    option.append_child(with_text("value", value));
    option
}

fn with_text(name: &str, text: &str) -> Element {
    let mut element = Element::bare(name, ns::DATA);
    element.append_text(text);
    element
}
