//! Pages of commands as text: forms become questions, results become lines.

use fingerpost_wire::{ns, xml};
use minidom::Element;

use super::words::{self, Words};
use crate::commands::is_read_only;

/// The fields that repeat a note.
const NOTES: [&str; 2] = ["error", "result"];

/// A field that the user fills in.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Field {
    var: String,
    label: String,
    type_: String,
    values: Vec<String>,
    /// Label and value of each option.
    options: Vec<(String, String)>,
    is_required: bool,
}

/// What follows an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The next question.
    Ask,
    /// The same question again.
    NotUnderstood,
    /// The page is filled in: the command goes on with this action.
    Done(&'static str),
}

/// A page of a command.
#[derive(Debug)]
pub(super) struct Page {
    /// The notes and the title.
    heading: Vec<String>,
    /// What is only read.
    lines: Vec<String>,
    fields: Vec<Field>,
    /// The number of the field that is asked for.
    at: usize,
    is_heading_shown: bool,
    /// Whether the command has ended.
    pub(super) is_over: bool,
    pub(super) has_previous: bool,
    /// Whether it is a part of a long result, which may be left at any time.
    pub(super) is_reading: bool,
    /// Whether the command shows it again, with a note, because it was filled in wrong.
    pub(super) is_shown_again: bool,
    /// The action that follows the last field.
    forth: &'static str,
}

impl Page {
    /// Reads the answer of a command.
    pub(super) fn read(answer: &Element, words: &Words) -> Self {
        let texts = |of: &Element, name: &str, namespace: &'static str| -> Vec<String> {
            let children = of.children().filter(|child| child.is(name, namespace));
            children.map(Element::text).filter(|text| !text.is_empty()).collect()
        };
        let actions = answer.get_child("actions", ns::COMMANDS);
        let has = |name: &str| actions.is_some_and(|actions| actions.has_child(name, ns::COMMANDS));
        let mut page = Self {
            heading: texts(answer, "note", ns::COMMANDS),
            lines: Vec::new(),
            fields: Vec::new(),
            at: 0,
            is_heading_shown: false,
            is_over: answer.attr("status") != Some("executing"),
            has_previous: has("prev"),
            is_reading: false,
            is_shown_again: answer
                .children()
                .any(|child| child.is("note", ns::COMMANDS) && child.attr("type") == Some("error")),
            forth: if has("next") { "next" } else { "complete" },
        };
        if answer.attr("status") == Some("canceled") {
            page.heading.push(words.cancelled.to_owned());
        }
        let has_note = !page.heading.is_empty();
        let Some(form) = answer.get_child("x", ns::DATA) else { return page };
        page.heading.extend(texts(form, "title", ns::DATA));
        let said = |field: &Element| field.attr("var").is_some_and(|var| NOTES.contains(&var));
        for field in form.children().filter(|child| child.is("field", ns::DATA)) {
            if !(has_note && said(field)) {
                page.read_field(field, form.attr("type") == Some("form"));
            }
        }
        let is_result = form.attr("type") == Some("result") || has("next") && has("complete");
        page.is_reading = !page.is_over && page.fields.is_empty() && is_result;
        page
    }

    fn read_field(&mut self, field: &Element, is_asked: bool) {
        let get = |name| field.attr(name).unwrap_or_default().to_owned();
        let (type_, values) = (get("type"), values_of(field));
        let var = get("var");
        if type_ == "hidden" {
            return;
        }
        if !is_asked || type_ == "fixed" || is_read_only(&var) {
            return self.show(&get("label"), &values);
        }
        let options = field.children().filter(|child| child.is("option", ns::DATA));
        let options = options.map(|option| {
            let value = values_of(option).pop().unwrap_or_default();
            (option.attr("label").map_or_else(|| value.clone(), str::to_owned), value)
        });
        self.fields.push(Field {
            var,
            label: get("label"),
            type_,
            values,
            options: options.collect(),
            is_required: field.has_child("required", ns::DATA),
        });
    }

    fn show(&mut self, label: &str, values: &[String]) {
        match (label, values) {
            (_, []) => {}
            ("", values) => self.lines.extend_from_slice(values),
            (label, [value]) if !value.is_empty() => self.lines.push(format!("{label}: {value}")),
            (_, [_]) => {}
            (label, values) => {
                self.lines.push(format!("{label}:"));
                self.lines.extend(values.iter().map(|value| format!("  {value}")));
            }
        }
    }

    /// Returns about how many bytes of memory it takes.
    pub(super) fn weight(&self) -> usize {
        let of_field = |field: &Field| {
            let options = field.options.iter().map(|(label, value)| 48 + label.len() + value.len());
            let values = field.values.iter().map(|value| 24 + value.len());
            128 + field.var.len() + field.label.len() + options.chain(values).sum::<usize>()
        };
        let texts = self.heading.iter().chain(&self.lines).map(|text| 24 + text.len());
        texts.chain(self.fields.iter().map(of_field)).sum()
    }

    /// Returns the notes and the title, with an empty line after them.
    pub(super) fn heading(&self) -> String {
        self.heading.iter().map(|text| format!("{text}\n")).chain(["\n".to_owned()]).collect()
    }

    /// Returns everything that is only read.
    pub(super) fn text(&self, words: &Words) -> String {
        let lines: Vec<&str> = self.heading.iter().chain(&self.lines).map(String::as_str).collect();
        let text = lines.join("\n").trim().to_owned();
        if text.is_empty() { words.nothing.to_owned() } else { text }
    }

    /// Returns the question for the present field.
    pub(super) fn question(&mut self, words: &Words) -> String {
        let mut lines = Vec::new();
        if !std::mem::replace(&mut self.is_heading_shown, true) {
            lines.extend([self.text(words), String::new()]);
        }
        let Some(field) = self.fields.get(self.at) else {
            let how = match (self.is_reading, self.forth) {
                (true, "next") => words.more,
                (true, _) => "",
                (false, _) => words.go_on,
            };
            lines.push(how.to_owned());
            return lines.join("\n").trim().to_owned();
        };
        lines.push(format!("{} ({}/{})", field.label, self.at + 1, self.fields.len()));
        for (number, (label, _)) in field.options.iter().enumerate() {
            lines.push(format!("  {}. {label}", number + 1));
        }
        lines.push(field.hint(words));
        lines.join("\n")
    }

    /// Takes the answer to the present question.
    pub(super) fn take(&mut self, text: &str) -> Answer {
        let Some(field) = self.fields.get_mut(self.at) else {
            return match words::is(words::MORE, text) || words::is(words::YES, text) {
                true => Answer::Done(self.forth),
                false => Answer::NotUnderstood,
            };
        };
        let keeps = text.trim() == "-" && (!field.is_required || !field.values.is_empty());
        if !keeps {
            match field.read(text) {
                Some(values) => field.values = values,
                None => return Answer::NotUnderstood,
            }
        }
        self.at += 1;
        if self.at < self.fields.len() { Answer::Ask } else { Answer::Done(self.forth) }
    }

    /// Goes back to the question before, if there is one on this page.
    pub(super) fn step_back(&mut self) {
        self.at = self.at.saturating_sub(1);
    }

    /// Returns the request for the next page.
    pub(super) fn request(&self, id: &str, action: &str) -> Element {
        let mut request =
            xml::element("command", ns::COMMANDS, &[("sessionid", id), ("action", action)]);
        if matches!(action, "next" | "complete") && !self.fields.is_empty() {
            let mut form = xml::element("x", ns::DATA, &[("type", "submit")]);
            for field in &self.fields {
                let mut element = xml::element("field", ns::DATA, &[("var", &field.var)]);
                for text in &field.values {
                    let mut value = Element::bare("value", ns::DATA);
                    value.append_text(text.as_str());
                    element.append_child(value);
                }
                form.append_child(element);
            }
            request.append_child(form);
        }
        request
    }
}

impl Field {
    fn is_yes(&self) -> bool {
        self.values.first().is_some_and(|value| words::is(words::YES, value))
    }

    /// Returns how to answer, and the present value.
    fn hint(&self, words: &Words) -> String {
        let how = match self.type_.as_str() {
            "list-single" => words.number,
            "list-multi" => words.numbers,
            "boolean" => words.yes_or_no,
            "text-multi" | "jid-multi" => words.lines,
            _ => "",
        };
        let label_of = |value: &String| {
            let option = self.options.iter().find(|(_, of)| of == value);
            option.map_or_else(|| value.clone(), |(label, _)| label.clone())
        };
        let values: Vec<String> =
            self.values.iter().filter(|value| !value.is_empty()).map(label_of).collect();
        let present = match (self.type_.as_str(), values.is_empty()) {
            ("boolean", _) if self.is_yes() => format!("{} {}.", words.now, words::YES[0]),
            (_, true) if self.is_required => String::new(),
            ("boolean", _) => String::new(),
            (_, true) => words.empty.to_owned(),
            _ => format!("{} {}. {}", words.now, values.join(", "), words.keep),
        };
        format!("{how} {present}").trim().to_owned()
    }

    /// Reads an answer; `None` if it does not fit the field.
    fn read(&self, text: &str) -> Option<Vec<String>> {
        let text = text.trim();
        let parts = || text.split([',', ';', '\n']).flat_map(str::split_whitespace);
        Some(match self.type_.as_str() {
            "list-single" => vec![self.choose(text)?],
            "list-multi" => parts().map(|part| self.choose(part)).collect::<Option<_>>()?,
            "boolean" if words::is(words::YES, text) => vec!["1".to_owned()],
            "boolean" if words::is(words::NO, text) => vec!["0".to_owned()],
            "boolean" => return None,
            "jid-multi" => parts().map(str::to_owned).collect(),
            "text-multi" => text.lines().map(str::to_owned).collect(),
            _ => vec![text.to_owned()],
        })
    }

    /// Returns the option that a text means: its number, its value or the beginning of it, or its label.
    fn choose(&self, text: &str) -> Option<String> {
        const SHORTEST: usize = 4;
        let same = |other: &str| other.to_lowercase() == text.to_lowercase();
        let exact = self.options.iter().find(|(label, value)| same(value) || same(label));
        let number = text.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
        let numbered = number.and_then(|number| self.options.get(number));
        let begins = |(_, value): &&(String, String)| value.starts_with(text);
        let mut beginning = self.options.iter().filter(begins).filter(|_| text.len() >= SHORTEST);
        let found = exact.or(numbered).or_else(|| {
            let only = beginning.next()?;
            beginning.next().is_none().then_some(only)
        });
        found.map(|(_, value)| value.clone())
    }
}

fn values_of(field: &Element) -> Vec<String> {
    field.children().filter(|child| child.is("value", ns::DATA)).map(Element::text).collect()
}

/// Returns a text of at most `most` bytes.
pub(super) fn cut(text: &str, most: usize) -> String {
    match text.len() <= most {
        true => text.to_owned(),
        false => format!("{}\u{2026}", &text[..text.floor_char_boundary(most.saturating_sub(3))]),
    }
}
