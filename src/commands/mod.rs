//! Ad-hoc commands (XEP-0050): the registry and the user's sessions, in any client that shows forms.
//!
//! A command is a sequence of pages (`user.rs`, `admin.rs`). [`Commands`] keeps each user's position in it, moves
//! forward and back, and shows a page again with a note when the input is wrong. A result that does not fit in a stanza
//! is shown on several pages (`listing.rs`). Spec: XEP-0050 1.3.0, XEP-0004 2.13.1.

mod admin;
pub mod catalogue;
mod form;
mod listing;
mod page;
pub mod refusal;
pub mod table;
mod user;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use fingerpost_carry::{
    iq::random_id,
    shares::{Full, Limits, Place, Shares},
};
use fingerpost_wire::{ns, rsm, text::sentence};
use jid::{BareJid, Jid};
use minidom::Element;
use time::OffsetDateTime;

pub(crate) use self::form::is_read_only;
use self::{
    catalogue::{Language, Said, Text},
    form::{ERROR, Form, RESULT, TooMuch, Values},
    page::{CommandPage, CommandProgress, NoPage, ResultPart, answer, executing_actions, note},
    refusal::CommandRefusal,
    table::AdHocCommand,
};
use crate::{
    control::Control,
    metrics,
    registry::{KeyNotice, Registry},
};

/// How long a user may take for a form.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// The most open commands of one user; beyond that the oldest are forgotten.
const PER_USER: usize = 16;
/// The bytes that all of them may hold.
const LIMITS: Limits = Limits::new(32 << 20, 2 << 20, 4);
/// The bytes of a command besides the input of its forms.
const WEIGHT: usize = 4096;

/// The open commands by session id, by user, and by the time at which they expire.
#[derive(Debug, Default)]
struct UnderWay {
    all: HashMap<String, (CommandProgress, Place)>,
    by_user: HashMap<BareJid, BTreeSet<(Instant, String)>>,
    until: BTreeSet<(Instant, String)>,
    shares: Shares,
}

impl UnderWay {
    fn remove(&mut self, id: &str) {
        let Some((progress, place)) = self.all.remove(id) else { return };
        self.shares.give_back(&place);
        let entry = (progress.until, id.to_owned());
        self.until.remove(&entry);
        let user = progress.from.to_bare();
        if let Some(own) = self.by_user.get_mut(&user) {
            own.remove(&entry);
            if own.is_empty() {
                self.by_user.remove(&user);
            }
        }
    }

    /// Stores a user's position. Forgets commands that ended long ago, and the oldest one of a user that has too many.
    fn keep(&mut self, id: String, progress: CommandProgress, now: Instant) -> Result<(), Full> {
        self.remove(&id);
        while let Some((until, old)) = self.until.first()
            && *until + PATIENCE <= now
        {
            self.remove(&old.clone());
        }
        let user = progress.from.to_bare();
        let weight = WEIGHT + progress.values.bytes();
        let place = loop {
            let own = self.by_user.get(&user);
            let oldest = own.and_then(BTreeSet::first).map(|(_, id)| id.clone());
            if own.is_none_or(|own| own.len() < PER_USER) {
                match self.shares.take(&user, weight, &LIMITS) {
                    Ok(place) => break place,
                    Err(Full::User) if oldest.is_some() => {}
                    Err(full) => return Err(full),
                }
            }
            match oldest {
                Some(oldest) => self.remove(&oldest),
                None => return Err(Full::User),
            }
        };
        let entry = (progress.until, id.clone());
        self.until.insert(entry.clone());
        self.by_user.entry(user).or_default().insert(entry);
        self.all.insert(id, (progress, place));
        Ok(())
    }
}

/// All open commands. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Commands {
    registry: Registry,
    control: Control,
    under_way: Arc<Mutex<UnderWay>>,
}

impl Commands {
    /// Creates the commands on the registry and on the controls of admins.
    pub fn new(registry: Registry, control: Control) -> Self {
        Self { registry, control, under_way: Arc::default() }
    }

    /// Returns the commands that a user may run.
    pub fn list(&self, user: &BareJid) -> impl Iterator<Item = &'static AdHocCommand> {
        let admin = self.control.doors().administers(user);
        table::OF_USERS.iter().chain(table::OF_ADMINS.iter().filter(move |_| admin))
    }

    /// Returns the command of a node, if this user may run it.
    pub fn find(&self, node: &str, user: &BareJid) -> Option<&'static AdHocCommand> {
        let name = node.strip_prefix(ns::COMMAND_NODES)?;
        self.list(user).find(|command| command.name == name)
    }

    fn lock(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a `<command/>` of the user at `from`; the payload of the answer may be `room` bytes long. The texts have
    /// the language of the `<command/>`, or else that of its stanza.
    ///
    /// # Errors
    /// The refusal for the user, if there is no such command, session or action.
    pub async fn handle_within(
        &self,
        from: &Jid,
        request: &Element,
        now: OffsetDateTime,
        room: usize,
        language: Language,
    ) -> Result<(Element, Option<KeyNotice>), CommandRefusal> {
        let language = Language::of(request).unwrap_or(language);
        let node = request.attr("node").unwrap_or_default();
        let command = self.find(node, &from.to_bare()).ok_or_else(|| {
            // Only admins may know whether the command exists.
            match node.strip_prefix(ns::COMMAND_NODES) {
                Some(name) if name.starts_with("admin:") => CommandRefusal::AdminsOnly,
                _ => CommandRefusal::NoSuchCommand,
            }
        })?;
        let done = self.go_on(from, command, request, now, (room, language)).await;
        let status = match &done {
            Err(_) => "refused",
            Ok((answer, _)) => match answer.attr("status") {
                Some("canceled") => "canceled",
                Some("executing") => "executing",
                _ => "completed",
            },
        };
        metrics::COMMANDS.count(&[command.name, status]);
        done
    }

    async fn go_on(
        &self,
        from: &Jid,
        command: &'static AdHocCommand,
        request: &Element,
        now: OffsetDateTime,
        (room, language): (usize, Language),
    ) -> Result<(Element, Option<KeyNotice>), CommandRefusal> {
        let action = request.attr("action").unwrap_or("execute");
        let form = request.children().find(|child| child.is("x", ns::DATA));
        let (id, mut progress) = match request.attr("sessionid").filter(|id| !id.is_empty()) {
            Some(id) => (id.to_owned(), self.resume(id, from, command)?),
            None => {
                match action {
                    "execute" | "next" | "complete" => {}
                    "prev" => return Err(CommandRefusal::NothingBefore),
                    "cancel" => return Err(CommandRefusal::NothingToCancel),
                    _ => return Err(CommandRefusal::UnknownAction),
                }
                let fresh = CommandProgress {
                    from: from.clone(),
                    command,
                    language,
                    stage: 0,
                    forth: &[],
                    reading: false,
                    values: Values::default(),
                    room,
                    asked: None,
                    until: Instant::now() + PATIENCE,
                };
                (random_id(), fresh)
            }
        };
        (progress.room, progress.language) = (room, language);
        progress.asked = rsm::PageRequest::read(request)?;
        let resumed = request.attr("sessionid").is_some();
        let cancels = form.is_some_and(|form| form.attr("type") == Some("cancel"));
        match action {
            "cancel" => return Ok((self.cancelled(&id, command), None)),
            _ if cancels => return Ok((self.cancelled(&id, command), None)),
            "prev" => {
                progress.stage = progress.stage.checked_sub(1).ok_or(CommandRefusal::FirstPage)?;
            }
            "execute" | "next" | "complete" if resumed => {
                // poezio knows only `next`, also for the last page.
                let action = match action {
                    "next" if progress.forth == ["complete"] => "complete",
                    "next" | "complete" => action,
                    _ => progress.forth.first().copied().unwrap_or("complete"),
                };
                if !progress.forth.contains(&action) {
                    return Err(CommandRefusal::NotOnThisPage);
                }
                if progress.reading && action == "complete" {
                    self.lock().remove(&id);
                    return Ok((answer(command, &id, "completed"), None));
                }
                if let Some(form) = form {
                    progress.values.submit(form).map_err(|TooMuch| CommandRefusal::TooMuchInput)?;
                }
                progress.stage += 1;
            }
            "execute" | "next" | "complete" => {}
            _ => return Err(CommandRefusal::UnknownAction),
        }
        let page = match (command.handler)(self, &progress, now).await {
            Ok(page) => page,
            Err(NoPage::Refused(refusal)) => {
                self.lock().remove(&id);
                return Err(refusal);
            }
            Err(NoPage::Input(text)) if progress.stage > 0 => {
                progress.stage -= 1;
                match (command.handler)(self, &progress, now).await {
                    Ok(page) => {
                        let answer = self.show(id, progress, page, Some(text))?;
                        return Ok((answer, None));
                    }
                    Err(NoPage::Refused(refusal)) => return Err(refusal),
                    Err(NoPage::Input(text)) => {
                        return Err(CommandRefusal::Input(text.in_language(language).into_owned()));
                    }
                }
            }
            Err(NoPage::Input(text)) => {
                return Err(CommandRefusal::Input(text.in_language(language).into_owned()));
            }
        };
        let notice = match &page {
            CommandPage::Done(_, _, notice) => notice.clone(),
            CommandPage::Form(..)
            | CommandPage::Options(..)
            | CommandPage::Part(_)
            | CommandPage::Failed(_) => None,
        };
        Ok((self.show(id, progress, page, None)?, notice))
    }

    fn resume(
        &self,
        id: &str,
        from: &Jid,
        command: &AdHocCommand,
    ) -> Result<CommandProgress, CommandRefusal> {
        let under_way = self.lock();
        match under_way.all.get(id) {
            Some((progress, _))
                if progress.from == *from && progress.command.name == command.name =>
            {
                if progress.until > Instant::now() {
                    Ok(progress.clone())
                } else {
                    Err(CommandRefusal::Expired)
                }
            }
            _ => Err(CommandRefusal::NoSuchSession),
        }
    }

    fn cancelled(&self, id: &str, command: &AdHocCommand) -> Element {
        self.lock().remove(id);
        answer(command, id, "canceled")
    }

    /// Shows a page, with a note of type error if the input is wrong.
    fn show(
        &self,
        id: String,
        mut progress: CommandProgress,
        page: CommandPage,
        error: Option<Said>,
    ) -> Result<Element, CommandRefusal> {
        let language = progress.language;
        Ok(match page {
            CommandPage::Done(form, text, _) => {
                self.lock().remove(&id);
                let form = form.unwrap_or_else(|| Form::result(language, progress.command.title));
                ended(&progress, &id, "info", form, (RESULT, Text::Result), text)
            }
            CommandPage::Failed(text) => {
                self.lock().remove(&id);
                let form = Form::result(language, progress.command.title);
                ended(&progress, &id, "error", form, (ERROR, Text::Error), text)
            }
            CommandPage::Part(ResultPart { mut form, text, forth, keep, set }) => {
                for (var, value) in keep {
                    progress.values.set(&var, value);
                }
                let note_text = text.in_language(language);
                if !note_text.is_empty() {
                    form = form.text_first(RESULT, Text::Result, text);
                }
                progress.reading = true;
                let mut element = self.executing(id, progress, form.followed(), forth, error)?;
                if !note_text.is_empty() {
                    element.append_child(note("info", &note_text));
                }
                if let Some(set) = set {
                    element.append_child(set);
                }
                element
            }
            CommandPage::Options(options, again) => {
                if again {
                    progress.stage = progress.stage.saturating_sub(1);
                }
                progress.reading = false;
                let (var, value) = options.keep();
                progress.values.set(var, value);
                let forth: &'static [&str] =
                    if options.is_last { &["complete"] } else { &["next"] };
                let mut element = self.executing(id, progress, options.form, forth, error)?;
                if let Some(set) = options.set {
                    element.append_child(set);
                }
                element
            }
            CommandPage::Form(form, last) => {
                progress.reading = false;
                let forth: &'static [&str] = if last { &["complete"] } else { &["next"] };
                return self.executing(id, progress, form, forth, error);
            }
        })
    }

    /// Shows a page that is not the end, with its actions: the first is the default.
    fn executing(
        &self,
        id: String,
        mut progress: CommandProgress,
        mut form: Form,
        forth: &'static [&'static str],
        error: Option<Said>,
    ) -> Result<Element, CommandRefusal> {
        let command = progress.command;
        let is_known = |var: &str| var == listing::PART || command.fields.contains(&var);
        debug_assert!(form.inputs().all(is_known), "{}: {form:?}", command.name);
        let mut element = answer(command, &id, "executing");
        element.append_child(executing_actions(progress.stage > 0, forth));
        if let Some(text) = error {
            let text = text.in_language(progress.language);
            let text = sentence(&text).into_owned();
            element.append_child(note("error", &text));
            form = form.text_first(ERROR, Text::Error, Said::Foreign(text));
        }
        element.append_child(form.into_element());
        progress.forth = forth;
        progress.until = Instant::now() + PATIENCE;
        let kept = self.lock().keep(id, progress, Instant::now());
        kept.map_err(|_| CommandRefusal::TooManyForms)?;
        Ok(element)
    }
}

/// Returns the end of a command. The text is in a note and, for clients that show no notes beside a form, in a field.
fn ended(
    progress: &CommandProgress,
    id: &str,
    type_: &str,
    mut form: Form,
    (var, label): (&str, Text),
    text: Said,
) -> Element {
    let mut element = answer(progress.command, id, "completed");
    let text = text.in_language(progress.language);
    if !text.is_empty() {
        element.append_child(note(type_, &text));
        form = form.text_first(var, label, Said::Foreign(sentence(&text).into_owned()));
    }
    element.append_child(form.into_element());
    element
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(user: &str, until: Instant) -> CommandProgress {
        CommandProgress {
            from: Jid::new(user).unwrap(),
            command: &table::OF_USERS[2],
            language: Language::English,
            stage: 1,
            forth: &[],
            reading: false,
            room: 100_000,
            asked: None,
            values: Values::default(),
            until,
        }
    }

    #[test]
    fn a_crowd_that_opens_forms_keeps_nobody_else_from_it() {
        let now = Instant::now();
        let mut under_way = UnderWay::default();
        let mut kept = 0;
        for number in 0..50_000 {
            let open = progress(&format!("u{number}@evil.test/x"), now + PATIENCE);
            kept += usize::from(under_way.keep(format!("e{number}"), open, now).is_ok());
        }
        assert!(kept > 1000 && kept < 50_000, "{kept}");
        let open = progress("alice@good.test/x", now + PATIENCE);
        assert_eq!(under_way.keep("good".to_owned(), open, now), Ok(()));
        let later = now + 2 * PATIENCE;
        let open = progress("bob@good.test/x", later + PATIENCE);
        assert_eq!(under_way.keep("later".to_owned(), open, later), Ok(()));
        assert_eq!((under_way.all.len(), under_way.by_user.len()), (1, 1), "the old are forgotten");
    }

    #[test]
    fn of_too_many_forms_of_one_user_the_oldest_are_forgotten() {
        let now = Instant::now();
        let mut under_way = UnderWay::default();
        for number in 0..PER_USER as u64 + 4 {
            let until = now + Duration::from_secs(60 + number);
            let open = progress("alice@good.test/x", until);
            assert_eq!(under_way.keep(format!("{number}"), open, now), Ok(()));
        }
        assert_eq!(under_way.all.len(), PER_USER);
        assert!(!under_way.all.contains_key("3") && under_way.all.contains_key("4"));
        let form: Element = format!(
            "<x xmlns='jabber:x:data' type='submit'><field var='a'><value>{}</value></field></x>",
            "x".repeat(70_000)
        )
        .parse()
        .unwrap();
        assert_eq!(Values::default().submit(&form), Err(TooMuch));
    }
}
