//! The pages of a command, and a user's position among them.

use std::time::Instant;

use fingerpost_wire::{ns, rsm, stanza::Refusal, text::sentence, xml};
use jid::Jid;
use minidom::Element;

use super::{
    catalogue::{Language, Said},
    form::{Form, Values},
    refusal::CommandRefusal,
    table::AdHocCommand,
};
use crate::registry::{
    KeyNotice, RegistryError, refusal::RegistryRefusal, store::error::StoreError,
};

/// The result of the forms submitted so far.
pub(super) enum CommandPage {
    /// Another form; whether it is the last one.
    Form(Form, bool),
    /// A form with a part of a long list; whether it repeats the previous form with another part.
    Options(OptionList, bool),
    /// A part of a long result.
    Part(ResultPart),
    /// The end: a result, a sentence, and the message for the owner of a changed key.
    Done(Option<Form>, Said, Option<KeyNotice>),
    /// The end: why it failed.
    Failed(Said),
}

/// A part of a long result.
pub(super) struct ResultPart {
    pub(super) form: Form,
    /// A sentence about all of it.
    pub(super) text: Said,
    /// The actions that lead on; the first is the default.
    pub(super) forth: &'static [&'static str],
    /// The values to store for the next part.
    pub(super) keep: Vec<(String, String)>,
    /// The `<set/>` of the part (XEP-0059).
    pub(super) set: Option<Element>,
}

impl CommandPage {
    /// Returns the end, with a sentence.
    pub(super) fn done(text: impl Into<Said>) -> Self {
        Self::Done(None, text.into(), None)
    }
}

/// Why there is no next page.
pub(super) enum NoPage {
    /// Show the last form again with this note.
    Input(Said),
    /// End the command.
    Refused(CommandRefusal),
}

impl From<CommandRefusal> for NoPage {
    fn from(refusal: CommandRefusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<RegistryRefusal> for NoPage {
    fn from(refusal: RegistryRefusal) -> Self {
        Self::Refused(refusal.into())
    }
}

impl From<Refusal> for NoPage {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal.into())
    }
}

impl From<StoreError> for NoPage {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotAllowed(error) => Self::Input(Said::Foreign(error.to_string())),
            error => Self::Refused(RegistryRefusal::from(error).into()),
        }
    }
}

impl From<RegistryError> for NoPage {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Store(error) => error.into(),
            RegistryError::Proof(error) => Self::Input(Said::Foreign(error.to_string())),
        }
    }
}

/// A user's position in a command.
#[derive(Clone, Debug)]
pub(super) struct CommandProgress {
    pub(super) from: Jid,
    pub(super) command: &'static AdHocCommand,
    /// The language of the present request.
    pub(super) language: Language,
    /// How many forms have been submitted.
    pub(super) stage: usize,
    /// The actions of the page shown that lead on; the first is the default.
    pub(super) forth: &'static [&'static str],
    /// Whether a part of a result is shown: there is no input, and it may be left at any page.
    pub(super) reading: bool,
    pub(super) values: Values,
    /// The room for the payload of the answer, and the page that the user requests.
    pub(super) room: usize,
    pub(super) asked: Option<rsm::PageRequest>,
    pub(super) until: Instant,
}

/// A form with a list of options that may be shown in parts.
pub(super) struct OptionList {
    pub(super) form: Form,
    /// Whether it is the last form of its command.
    pub(super) is_last: bool,
    /// The part that is shown, counted from 1.
    pub(super) number: usize,
    /// The `<set/>` of the part (XEP-0059).
    pub(super) set: Option<Element>,
}

pub(super) fn answer(command: &AdHocCommand, id: &str, status: &str) -> Element {
    xml::element(
        "command",
        ns::COMMANDS,
        &[("node", &command.node()), ("sessionid", id), ("status", status)],
    )
}

/// Returns the actions of a page: the first of `forth` is the default.
pub(super) fn executing_actions(back: bool, forth: &[&str]) -> Element {
    let default = forth.first().copied().unwrap_or("complete");
    let mut actions = xml::element("actions", ns::COMMANDS, &[("execute", default)]);
    for action in back.then_some("prev").iter().chain(forth) {
        actions.append_child(Element::bare(*action, ns::COMMANDS));
    }
    actions
}

pub(super) fn note(type_: &str, text: &str) -> Element {
    let mut note = xml::element("note", ns::COMMANDS, &[("type", type_)]);
    note.append_text(&*sentence(text));
    note
}
