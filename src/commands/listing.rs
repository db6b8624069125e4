//! Long tables and long lists of options, in parts that fit into a stanza.
//!
//! `next` and `prev` turn the pages of a table. A list of options belongs to a form, so there the part is a field of
//! the form. In both, a `<set/>` in the `<command/>` may also request a part (XEP-0059).

use std::ops::Range;

use fingerpost_wire::{
    rsm::{self, PageRequest},
    size,
};
use minidom::Element;

use super::{
    form::{self, Form},
    page::{
        CommandPage, CommandProgress, NoPage, OptionList, ResultPart, answer, executing_actions,
        note,
    },
};

/// The most options in one form.
const SHOWN: usize = 200;
/// The room for a note about wrong input.
const NOTE: usize = 1_000;
/// The size of a `<set/>` besides the names of two options.
const SET: usize = 300;
/// The field that chooses the part of a list, and the name of the stored part.
const PART: &str = "part";
const PART_SHOWN: &str = "part-shown";

/// A table without its rows.
pub(super) struct TableHead<'a> {
    pub(super) title: &'a str,
    /// A sentence about all rows.
    pub(super) text: String,
    pub(super) columns: &'a [(&'a str, &'a str)],
}

impl OptionList {
    /// Returns the same form if another one follows.
    pub(super) fn followed(self) -> Self {
        Self { is_last: false, ..self }
    }

    /// Returns the value to store about it.
    pub(super) fn keep(&self) -> (&'static str, String) {
        (PART_SHOWN, self.number.to_string())
    }
}

fn after(stage: usize) -> String {
    format!("after-{stage}")
}

impl CommandProgress {
    /// Returns the part of a table to show: the one that the user requests, or the one after the last.
    pub(super) fn part(&self) -> Option<PageRequest> {
        let next = || match self.values.one(&after(self.stage)) {
            "" => None,
            uid => Some(PageRequest::after(uid)),
        };
        self.asked.clone().or_else(next)
    }

    /// Returns the room that is left for the rows or options of a form.
    pub(super) fn room_for(&self, form: &Form, text: &str) -> usize {
        let mut element = answer(self.command, &"0".repeat(32), "executing");
        element.append_child(executing_actions(true, &["next", "complete"]));
        element.append_child(note("info", text));
        element.append_child(form.element().clone());
        let rest = size::of(&element).unwrap_or(usize::MAX);
        self.room.saturating_sub(rest.saturating_add(NOTE))
    }

    /// Returns a part of a table, or all of it if it fits.
    pub(super) fn table(
        &self,
        table: TableHead<'_>,
        rows: Vec<(String, Vec<String>)>,
    ) -> Result<CommandPage, NoPage> {
        let form = Form::result(table.title).table(table.columns, Vec::new());
        let request = self.part();
        let uid = request.as_ref().and_then(PageRequest::uid);
        let position = uid.and_then(|uid| rows.iter().position(|(known, _)| known == uid));
        let room = self.room_for(&form, &table.text);
        let mut page = rsm::Page::new(request.as_ref(), rows.len(), position, room)?;
        while let Some(number) = page.wants() {
            let (uid, row) = rows[number].clone();
            let item = form::item(table.columns, row);
            page.offer(uid, rsm::size_inside(&item)?, item)?;
        }
        let (items, set) = page.finish();
        Ok(match set {
            None => CommandPage::Done(Some(form.items(items)), table.text.into(), None),
            Some(set) => {
                let count = items.len();
                self.shown(form.items(items), table.text, count, Some(set))
            }
        })
    }

    /// Returns a part of a long result with `count` items, which may have others before or after it.
    pub(super) fn shown(
        &self,
        form: Form,
        text: String,
        count: usize,
        set: Option<Element>,
    ) -> CommandPage {
        let part = set.as_ref().map(|set| rsm::Part::of(set, count));
        let last = part.filter(|part| part.more).and_then(|part| part.last);
        let more = last.is_some();
        let keep = last.map(|last| (after(self.stage + 1), last)).into_iter().collect();
        CommandPage::Part(ResultPart { form, text, more, keep, set })
    }

    /// Returns whether this stage's form must show a list of options. `Some(true)`: the list was shown, nothing was
    /// chosen in it, and another part was requested.
    pub(super) fn lists_options(&self, stage: usize, var: &str) -> Option<bool> {
        let (wanted, shown) = (self.values.one(PART), self.values.one(PART_SHOWN));
        let nothing = self.values.all(var).next().is_none();
        if self.stage == stage {
            return Some(false);
        }
        let other = nothing && !wanted.is_empty() && wanted != shown;
        (self.stage == stage + 1 && other).then_some(true)
    }

    /// Returns a form with the requested part of a list of options. `form` makes it from options: labels and values.
    pub(super) fn options(
        &self,
        options: &[(String, String)],
        form: impl Fn(Vec<(String, String)>) -> Form,
    ) -> Result<OptionList, NoPage> {
        let sizes = options
            .iter()
            .map(|(label, value)| rsm::size_inside(&form::option(label, value)))
            .collect::<Result<Vec<_>, _>>()?;
        let room = self.room_for(&with_part(form(Vec::new()), 99_999, 99_999), "");
        // Each part reserves the place of the `<set/>`.
        let names = options.iter().map(|(_, value)| value.len()).max().unwrap_or(0);
        let parts = split(&sizes, room.saturating_sub(SET + 2 * names));
        let number = self.values.one(PART).parse().unwrap_or(1).clamp(1, parts.len().max(1));
        let range = parts.get(number - 1).cloned().unwrap_or_default();
        let request = match &self.asked {
            Some(asked) => Some(asked.clone().at_most(SHOWN)),
            None if parts.len() > 1 => Some(PageRequest::index(range.start).at_most(range.len())),
            None => None,
        };
        let uid = request.as_ref().and_then(PageRequest::uid);
        let position = uid.and_then(|uid| options.iter().position(|(_, value)| value == uid));
        let mut page = rsm::Page::new(request.as_ref(), options.len(), position, room)?;
        while let Some(number) = page.wants() {
            let option = options[number].clone();
            page.offer(option.1.clone(), sizes[number], option)?;
        }
        let (shown, set) = page.finish();
        let mut form = form(shown);
        if parts.len() > 1 {
            form = with_part(form, number, parts.len());
        }
        Ok(OptionList { form, is_last: true, number, set })
    }
}

/// Adds the field that chooses the part of a list.
fn with_part(form: Form, number: usize, count: usize) -> Form {
    let label = format!("Part, of {count}: to see another one, choose nothing else");
    form.field("text-single", PART, &label, &[&number.to_string()])
}

/// Splits a list so that each part fits and has at most as many options as a form shows.
fn split(sizes: &[usize], room: usize) -> Vec<Range<usize>> {
    let mut parts: Vec<Range<usize>> = Vec::new();
    let mut used = 0;
    for (number, size) in sizes.iter().enumerate() {
        match parts.last_mut() {
            Some(part) if part.len() < SHOWN && used + size <= room => {
                part.end += 1;
                used += size;
            }
            _ => {
                parts.push(number..number + 1);
                used = *size;
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use fingerpost_wire::ns;
    use jid::Jid;
    use proptest::prelude::*;

    use super::*;
    use crate::commands::form::Values;

    const COLUMNS: [(&str, &str); 2] = [("name", "Name"), ("id", "Id")];

    fn progress(stage: usize, room: usize) -> CommandProgress {
        CommandProgress {
            from: Jid::new("a@b/c").unwrap(),
            command: super::super::catalogue::OF_USERS[0],
            stage,
            last: false,
            reading: false,
            values: Values::default(),
            room,
            asked: None,
            until: Instant::now(),
        }
    }

    fn rows(count: usize) -> Vec<(String, Vec<String>)> {
        (0..count)
            .map(|number| (number.to_string(), vec!["'<&>\"".repeat(20), number.to_string()]))
            .collect()
    }

    fn table(progress: &CommandProgress, count: usize) -> CommandPage {
        let table =
            TableHead { title: "Keys", text: format!("Keys found: {count}."), columns: &COLUMNS };
        progress.table(table, rows(count)).ok().unwrap()
    }

    fn value(element: &Element) -> String {
        element.get_child("value", ns::DATA).unwrap().text()
    }

    /// Returns the numbers of the rows that a part shows.
    fn numbers(form: &Form) -> Vec<usize> {
        let items = form.element().children().filter(|child| child.is("item", ns::DATA));
        items.map(|item| value(item.children().last().unwrap()).parse().unwrap()).collect()
    }

    /// Returns the length of the whole answer as it is sent.
    fn sent(progress: &CommandProgress, form: &Form, set: Option<&Element>) -> usize {
        let mut element = answer(progress.command, &"0".repeat(32), "executing");
        element.append_child(executing_actions(true, &["next", "complete"]));
        element.append_child(note("info", "Keys found: 654."));
        element.append_child(form.element().clone());
        if let Some(set) = set {
            element.append_child(set.clone());
        }
        size::of(&element).unwrap()
    }

    #[test]
    fn a_long_table_is_shown_in_parts_forth_and_back_and_as_asked() {
        let whole = table(&progress(0, 500_000), 600);
        assert!(matches!(whole, CommandPage::Done(Some(form), ..) if numbers(&form).len() == 600));
        let mut at = progress(0, 20_000);
        let mut shown = Vec::new();
        let mut parts = Vec::new();
        loop {
            let CommandPage::Part(ResultPart { form, more, keep, set, .. }) = table(&at, 654)
            else {
                panic!("not a part")
            };
            assert!(sent(&at, &form, set.as_ref()) <= 20_000);
            shown.extend(numbers(&form));
            parts.push(numbers(&form));
            if !more {
                break;
            }
            for (var, value) in keep {
                at.values.set(&var, value);
            }
            at.stage += 1;
        }
        assert_eq!(shown, (0..654).collect::<Vec<_>>());
        assert!(parts.len() > 3);
        // Going back shows the same part.
        at.stage = 1;
        let CommandPage::Part(ResultPart { form, .. }) = table(&at, 654) else {
            panic!("not a part")
        };
        assert_eq!(numbers(&form), parts[1]);
        at.asked = Some(PageRequest::index(100).at_most(3));
        let CommandPage::Part(ResultPart { form, set, .. }) = table(&at, 654) else {
            panic!("not a part")
        };
        assert_eq!(numbers(&form), [100, 101, 102]);
        assert!(set.is_some());
    }

    #[test]
    fn a_long_list_of_options_has_a_field_for_its_parts() {
        let options: Vec<(String, String)> =
            (0..654).map(|number| ("'".repeat(50), number.to_string())).collect();
        let form = |options| Form::new("Sessions", "Which?").choices("id", "Session", options);
        let mut at = progress(1, 20_000);
        let first = at.options(&options, form).ok().unwrap();
        let field = |form: &Form, var: &str| -> Vec<String> {
            let mut fields = form.element().children();
            let field = fields.find(|field| field.attr("var") == Some(var)).unwrap();
            let options = field.children().filter(|child| child.is("option", ns::DATA));
            options.map(value).collect()
        };
        let mut fields = first.form.element().children();
        let part = fields.find(|field| field.attr("var") == Some(PART)).unwrap();
        let label = part.attr("label").unwrap();
        let count: usize = label["Part, of ".len()..label.find(':').unwrap()].parse().unwrap();
        assert!(count > 3);
        let mut shown = Vec::new();
        for number in 1..=count {
            at.values.set(PART, number.to_string());
            let part = at.options(&options, form).ok().unwrap();
            assert!(sent(&at, &part.form, part.set.as_ref()) <= 20_000, "{number}");
            assert_eq!(part.number, number);
            shown.extend(field(&part.form, "id"));
        }
        assert_eq!(shown, (0..654).map(|number| number.to_string()).collect::<Vec<_>>());
        at.values.set(PART_SHOWN, "1".to_owned());
        assert_eq!(at.lists_options(1, "id"), Some(false));
        at.stage = 2;
        assert_eq!(at.lists_options(1, "id"), Some(true), "another part was asked for");
        at.values.set("id", "7".to_owned());
        assert_eq!(at.lists_options(1, "id"), None, "something was chosen");
        let few = progress(1, 20_000).options(&options[..3], form).ok().unwrap();
        assert!(few.set.is_none());
    }

    proptest! {
        #[test]
        fn parts_have_every_option_once(
            sizes in proptest::collection::vec(1_usize..100, 0..600),
            room in 100_usize..5_000,
        ) {
            let parts = split(&sizes, room);
            let numbers: Vec<usize> = parts.iter().cloned().flatten().collect();
            prop_assert_eq!(numbers, (0..sizes.len()).collect::<Vec<_>>());
            for part in parts {
                prop_assert!(!part.is_empty() && part.len() <= SHOWN);
                prop_assert!(sizes[part].iter().sum::<usize>() <= room);
            }
        }
    }
}
