//! Long results and long lists of options, in parts that fit into a stanza.
//!
//! `next` and `prev` turn the pages of a result. A list of options belongs to a form, so there the part is a field of
//! the form. In both, a `<set/>` in the `<command/>` may also request a part (XEP-0059).

use std::ops::Range;

use fingerpost_wire::{
    rsm::{self, PageRequest},
    size,
};
use minidom::Element;

use super::{
    catalogue::{Said, Text},
    form::{self, Form, RESULT, SESSION},
    page::{
        CommandPage, CommandProgress, NoPage, OptionList, ResultPart, answer, executing_actions,
        note,
    },
};

/// The most options in one form.
const SHOWN: usize = 200;
/// The most options in one form if each has a field.
const SHOWN_WITH_FIELDS: usize = 20;
/// The room for a note about wrong input, and for the field with the same text.
const NOTE: usize = 3_000;
/// The size of a `<set/>` besides the names of two options.
const SET: usize = 300;
/// The field that chooses the part of a list, and the name of the stored part.
pub(super) const PART: &str = "part";
const PART_SHOWN: &str = "part-shown";
/// The option of a list that stands for none of them. poezio and Psi+ choose the first option by themselves.
pub(super) const NONE: &str = "none";
/// The name of the stored stage of the last part of a result.
const READ: &str = "read";

/// A long result without its items.
pub(super) struct ListHead {
    pub(super) title: Said,
    /// A sentence about all items.
    pub(super) text: Said,
    /// Whether a form follows the last part.
    pub(super) is_followed: bool,
}

/// An option that a field describes.
pub(super) struct DescribedOption {
    /// The label of the option, after the number.
    pub(super) name: String,
    pub(super) value: String,
    /// The text of the field.
    pub(super) lines: Vec<String>,
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
    /// Returns the part of a result to show: the one that the user requests, or the one after the last.
    pub(super) fn part(&self) -> Option<PageRequest> {
        let next = || match self.values.one(&after(self.stage)) {
            "" => None,
            uid => Some(PageRequest::after(uid)),
        };
        self.asked.clone().or_else(next)
    }

    /// Returns the room that is left for the rows or options of a form.
    pub(super) fn room_for(&self, form: &Form, text: &Said) -> usize {
        let mut element = answer(self.command, &"0".repeat(32), "executing");
        element.append_child(executing_actions(true, &["next", "complete"]));
        element.append_child(note("info", &text.in_language(self.language)));
        let form = form.clone().text_first(RESULT, Text::Result, text.clone());
        element.append_child(form.into_element());
        let rest = size::of(&element).unwrap_or(usize::MAX);
        self.room.saturating_sub(rest.saturating_add(NOTE))
    }

    /// Returns a part of a list of items, or all of it if it fits. An item has a name and its fields.
    pub(super) fn listed(
        &self,
        list: ListHead,
        items: Vec<(String, Vec<Element>)>,
    ) -> Result<CommandPage, NoPage> {
        let form = Form::result(self.language, list.title);
        let request = self.part();
        let uid = request.as_ref().and_then(PageRequest::uid);
        let position = uid.and_then(|uid| items.iter().position(|(known, _)| known == uid));
        let room = self.room_for(&form, &list.text);
        let mut page = rsm::Page::new(request.as_ref(), items.len(), position, room)?;
        while let Some(number) = page.wants() {
            let (uid, fields) = items[number].clone();
            page.offer(uid, size_of(&fields)?, fields)?;
        }
        let (items, set) = page.finish();
        let count = items.len();
        let form = form.fields(items.into_iter().flatten().collect());
        Ok(match set {
            None if !list.is_followed => CommandPage::Done(Some(form), list.text, None),
            set => self.shown(form, list.text, count, set, list.is_followed),
        })
    }

    /// Returns a part of a long result with `count` items, which may have others before or after it. `is_followed`:
    /// whether a form follows the last part.
    pub(super) fn shown(
        &self,
        form: Form,
        text: Said,
        count: usize,
        set: Option<Element>,
        is_followed: bool,
    ) -> CommandPage {
        let part = set.as_ref().map(|set| rsm::Part::of(set, count));
        let last = part.filter(|part| part.more).and_then(|part| part.last);
        let (forth, keep): (&[&str], _) = match last {
            Some(last) => (&["next", "complete"], Some((after(self.stage + 1), last))),
            None if is_followed => {
                (&["complete", "next"], Some((READ.to_owned(), self.stage.to_string())))
            }
            None => (&["complete"], None),
        };
        CommandPage::Part(ResultPart { form, text, forth, keep: keep.into_iter().collect(), set })
    }

    /// Returns the stage at which the form after a long result is shown, if the user has read it to its end.
    pub(super) fn followed_at(&self) -> Option<usize> {
        let read: usize = self.values.one(READ).parse().ok()?;
        (self.stage > read).then_some(read + 1)
    }

    /// Returns whether this stage's form must show a list of options. `Some(true)`: the list was shown, nothing was
    /// chosen in it, and another part was requested.
    pub(super) fn lists_options(&self, stage: usize, var: &str) -> Option<bool> {
        let (wanted, shown) = (self.values.one(PART), self.values.one(PART_SHOWN));
        let nothing = self.values.all(var).all(|value| value == NONE);
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
        let options: Vec<_> = options.iter().map(|option| (option.clone(), None)).collect();
        self.parts(&options, SHOWN, |_, options| form(options))
    }

    /// Returns a form with the requested part of a list of sessions. `form` makes it from a field about each session,
    /// and from options.
    pub(super) fn described_options(
        &self,
        options: Vec<DescribedOption>,
        form: impl Fn(Vec<Element>, Vec<(String, String)>) -> Form,
    ) -> Result<OptionList, NoPage> {
        let numbered = |(at, option): (usize, DescribedOption)| {
            let (number, DescribedOption { name, value, lines }) = (at + 1, option);
            let var = format!("{SESSION}{value}");
            let title = self.language.fill(Text::Session, &[&number]);
            let field = form::shown(&var, &title, &lines);
            let label = form::shortened(&format!("{number}: {name}"), form::LINE).into_owned();
            ((label, value), Some(field))
        };
        let options: Vec<_> = options.into_iter().enumerate().map(numbered).collect();
        self.parts(&options, SHOWN_WITH_FIELDS, form)
    }

    fn parts(
        &self,
        options: &[((String, String), Option<Element>)],
        most: usize,
        form: impl Fn(Vec<Element>, Vec<(String, String)>) -> Form,
    ) -> Result<OptionList, NoPage> {
        let size = |((label, value), field): &((String, String), Option<Element>)| {
            let option = rsm::size_inside(&form::option(label, value))?;
            Ok::<_, NoPage>(option + size_of(field.as_slice())?)
        };
        let sizes = options.iter().map(size).collect::<Result<Vec<_>, _>>()?;
        let empty = with_part(form(Vec::new(), Vec::new()), 99_999, 99_999);
        let room = self.room_for(&empty, &Said::Nothing);
        // Each part reserves the place of the `<set/>`.
        let names = options.iter().map(|((_, value), _)| value.len()).max().unwrap_or(0);
        let parts = split(&sizes, most, room.saturating_sub(SET + 2 * names));
        let number = self.values.one(PART).parse().unwrap_or(1).clamp(1, parts.len().max(1));
        let range = parts.get(number - 1).cloned().unwrap_or_default();
        let request = match &self.asked {
            Some(asked) => Some(asked.clone().at_most(most)),
            None if parts.len() > 1 => Some(PageRequest::index(range.start).at_most(range.len())),
            None => None,
        };
        let uid = request.as_ref().and_then(PageRequest::uid);
        let position = uid.and_then(|uid| options.iter().position(|((_, value), _)| value == uid));
        let mut page = rsm::Page::new(request.as_ref(), options.len(), position, room)?;
        while let Some(number) = page.wants() {
            let option = options[number].clone();
            page.offer(option.0.1.clone(), sizes[number], option)?;
        }
        let (shown, set) = page.finish();
        let (shown, fields): (Vec<_>, Vec<_>) = shown.into_iter().unzip();
        let mut form = form(fields.into_iter().flatten().collect(), shown);
        if parts.len() > 1 {
            form = with_part(form, number, parts.len());
        }
        Ok(OptionList { form, is_last: true, number, set })
    }
}

/// Adds the field that chooses the part of a list.
fn with_part(form: Form, number: usize, count: usize) -> Form {
    form.field("text-single", PART, Text::Part.with(&[&count]), &[&number.to_string()])
}

/// Returns how many bytes the fields of an item take in a stanza.
pub(super) fn size_of(fields: &[Element]) -> Result<usize, NoPage> {
    let sizes = fields.iter().map(rsm::size_inside);
    Ok(sizes.sum::<Result<usize, _>>()?)
}

/// Splits a list so that each part fits and has at most as many options as a form shows.
fn split(sizes: &[usize], most: usize, room: usize) -> Vec<Range<usize>> {
    let mut parts: Vec<Range<usize>> = Vec::new();
    let mut used = 0;
    for (number, size) in sizes.iter().enumerate() {
        match parts.last_mut() {
            Some(part) if part.len() < most && used + size <= room => {
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
    use crate::commands::{catalogue::Language, form::Values};

    fn progress(stage: usize, room: usize) -> CommandProgress {
        CommandProgress {
            from: Jid::new("a@b/c").unwrap(),
            command: &super::super::table::OF_USERS[0],
            language: Language::English,
            stage,
            forth: &[],
            reading: false,
            values: Values::default(),
            room,
            asked: None,
            until: Instant::now(),
        }
    }

    fn items(count: usize) -> Vec<(String, Vec<Element>)> {
        let item = |number: usize| {
            let lines = ["'<&>\"".repeat(20), number.to_string()];
            (number.to_string(), vec![form::shown(&format!("entry-{number}"), "Entry", &lines)])
        };
        (0..count).map(item).collect()
    }

    fn list(progress: &CommandProgress, count: usize, is_followed: bool) -> CommandPage {
        let text = Text::KeysFound.with(&[&count]);
        let list = ListHead { title: Text::FoundKeys.into(), text, is_followed };
        progress.listed(list, items(count)).ok().unwrap()
    }

    fn value(element: &Element) -> String {
        element.get_child("value", ns::DATA).unwrap().text()
    }

    fn fields(form: &Form) -> Vec<Element> {
        let form = form.clone().into_element();
        form.children().filter(|child| child.is("field", ns::DATA)).cloned().collect()
    }

    /// Returns the numbers of the items that a part shows.
    fn numbers(form: &Form) -> Vec<usize> {
        let last = |field: &Element| field.children().last().unwrap().text();
        fields(form).iter().map(|field| last(field).parse().unwrap()).collect()
    }

    /// Returns the length of the whole answer as it is sent.
    fn sent(progress: &CommandProgress, form: &Form, set: Option<&Element>) -> usize {
        let mut element = answer(progress.command, &"0".repeat(32), "executing");
        element.append_child(executing_actions(true, &["next", "complete"]));
        element.append_child(note("info", "Keys found: 654."));
        let form = form.clone().text_first(RESULT, Text::Result, Text::KeysFound.with(&[&654]));
        element.append_child(form.into_element());
        if let Some(set) = set {
            element.append_child(set.clone());
        }
        size::of(&element).unwrap()
    }

    #[test]
    fn a_long_result_is_shown_in_parts_forth_and_back_and_as_asked() {
        let whole = list(&progress(0, 500_000), 600, false);
        assert!(matches!(whole, CommandPage::Done(Some(form), ..) if numbers(&form).len() == 600));
        let mut at = progress(0, 20_000);
        let mut shown = Vec::new();
        let mut parts = Vec::new();
        loop {
            let CommandPage::Part(ResultPart { form, forth, keep, set, .. }) = list(&at, 654, true)
            else {
                panic!("not a part")
            };
            assert!(sent(&at, &form, set.as_ref()) <= 20_000);
            shown.extend(numbers(&form));
            parts.push(numbers(&form));
            for (var, value) in keep {
                at.values.set(&var, value);
            }
            assert_eq!(at.followed_at(), None);
            at.stage += 1;
            if forth[0] != "next" {
                assert_eq!(forth, ["complete", "next"], "a form follows");
                break;
            }
        }
        assert_eq!(shown, (0..654).collect::<Vec<_>>());
        assert!(parts.len() > 3);
        assert_eq!(at.followed_at(), Some(at.stage));
        // Going back shows the same part.
        at.stage = 1;
        let CommandPage::Part(ResultPart { form, .. }) = list(&at, 654, true) else {
            panic!("not a part")
        };
        assert_eq!(numbers(&form), parts[1]);
        at.asked = Some(PageRequest::index(100).at_most(3));
        let CommandPage::Part(ResultPart { form, set, .. }) = list(&at, 654, true) else {
            panic!("not a part")
        };
        assert_eq!(numbers(&form), [100, 101, 102]);
        assert!(set.is_some());
    }

    #[test]
    fn a_long_list_of_options_has_a_field_for_its_parts() {
        let options: Vec<(String, String)> =
            (0..654).map(|number| ("'".repeat(50), number.to_string())).collect();
        let form = |options| {
            Form::new(Language::English, Text::SomeSessions).choice(
                "id",
                Text::ToBeEnded,
                "",
                options,
            )
        };
        let mut at = progress(1, 20_000);
        let first = at.options(&options, form).ok().unwrap();
        let field = |form: &Form, var: &str| -> Vec<String> {
            let fields = fields(form);
            let field = fields.iter().find(|field| field.attr("var") == Some(var)).unwrap();
            let options = field.children().filter(|child| child.is("option", ns::DATA));
            options.map(value).collect()
        };
        let fields = fields(&first.form);
        let part = fields.iter().find(|field| field.attr("var") == Some(PART)).unwrap();
        let label = part.attr("label").unwrap();
        let count: usize = label["Part, of ".len()..label.find(';').unwrap()].parse().unwrap();
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
            let parts = split(&sizes, SHOWN, room);
            let numbers: Vec<usize> = parts.iter().cloned().flatten().collect();
            prop_assert_eq!(numbers, (0..sizes.len()).collect::<Vec<_>>());
            for part in parts {
                prop_assert!(!part.is_empty() && part.len() <= SHOWN);
                prop_assert!(sizes[part].iter().sum::<usize>() <= room);
            }
        }
    }
}
