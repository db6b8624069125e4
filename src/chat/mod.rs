//! The commands in a chat with the component, for clients without ad-hoc commands.
//!
//! A message names a command. [`Chats`] runs the same command as XEP-0050 does ([`crate::commands`]), asks for the fields of
//! its forms one by one, and answers with its result as text. So each command is in one table, and whatever is added there
//! can be used in a chat. `form.rs` reads forms and writes them as text, `words.rs` has what is said, in each language.
//!
//! Two programs that answer each other must not do it for ever: only messages of persons are answered ([`readable`]), the
//! rate is limited, a sender that writes nothing but unknown words gets no answer after the third, and a conversation ends
//! in silence after three answers to one page that are wrong.

mod form;
mod words;

use std::{
    collections::{BTreeSet, HashMap},
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use fingerpost_carry::shares::{Limits, Place, Shares};
use fingerpost_wire::{
    ns,
    stanza::{Refusal, Stanza},
    xml,
};
use hashlink::LruCache;
use jid::{BareJid, Jid};
use minidom::Element;
use time::OffsetDateTime;

use self::{
    form::{Answer, Page},
    words::{Words, in_language},
};
use crate::{
    commands::{Commands, table::AdHocCommand},
    registry::KeyNotice,
};

/// How long a user may take to answer a question: as long as for a form.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// The bytes that all conversations may hold.
const LIMITS: Limits = Limits::new(8 << 20, 256 << 10, 4);
/// The bytes of a conversation besides its form.
const WEIGHT: usize = 2048;
/// The most bytes of one result.
const ROOM: usize = 24 << 10;
/// The longest message that is read.
const LONGEST: usize = 64 << 10;
/// How many unknown words in a row are answered, for how many senders that is known, and for how long.
const UNKNOWN: (u8, usize, Duration) = (3, 1000, Duration::from_secs(600));
/// How many wrong answers to one page are taken: not understood, or refused by the command.
const WRONG: u8 = 3;
/// How many users' messages are handled at once; those of one user are handled one after the other.
const TURNS: usize = 64;

/// A message that a person has written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    from: Jid,
    text: String,
    /// The language of the sender, as a tag.
    lang: String,
    /// The type of the message, and its thread.
    type_: Option<String>,
    thread: Option<String>,
    is_encrypted: bool,
}

/// Reads a message that a person has written to the component. `None` if it must not be answered: an error, a headline, a
/// message of a room, of a program, of the past, or of another device of the user.
pub fn readable(stanza: &Stanza) -> Option<Written> {
    let element = &stanza.element;
    let type_ = element.attr("type");
    let is_chat = matches!(type_, None | Some("" | "normal" | "chat"));
    // An address without a name before the @ is a component or a server.
    if !is_chat || stanza.from.node().is_none() || stanza.to.resource().is_some() {
        return None;
    }
    let is_copy = |child: &Element| {
        [ns::CARBONS, ns::DELAY, ns::OLD_DELAY, ns::FORWARD, ns::MUC_USER, ns::MUC_INVITATION]
            .iter()
            .any(|namespace| child.has_ns(*namespace))
    };
    if element.children().any(is_copy) {
        return None;
    }
    let text = element.get_child("body", ns::CLIENT)?.text().trim().to_owned();
    let lang = element.attr_ns(rxml::Namespace::xml(), "lang").unwrap_or_default();
    let thread = element.get_child("thread", ns::CLIENT).map(Element::text);
    (!text.is_empty() && text.len() <= LONGEST).then(|| Written {
        from: stanza.from.clone(),
        text,
        lang: lang.to_owned(),
        type_: type_.map(str::to_owned),
        thread: thread.filter(|thread| thread.len() <= 256),
        is_encrypted: element.children().any(|child| child.has_ns(ns::EME)),
    })
}

impl Written {
    /// Returns the answer to the message, with this text.
    pub fn answer(&self, component: &BareJid, id: &str, text: &str) -> Element {
        let to = self.from.to_string();
        let attributes = [("from", component.as_str()), ("to", to.as_str()), ("id", id)];
        let mut message = xml::element("message", ns::CLIENT, &attributes);
        if let Some(type_) = &self.type_ {
            xml::set(&mut message, "type", type_);
        }
        let lang = in_language(&self.lang).tag.to_owned();
        let name = rxml::xml_ncname!("lang").into();
        message.attrs_mut().insert(rxml::Namespace::XML, name, lang);
        let thread = self.thread.iter().map(|thread| ("thread", thread.as_str()));
        for (name, text) in [("body", text)].into_iter().chain(thread) {
            let mut child = Element::bare(name, ns::CLIENT);
            child.append_text(text);
            message.append_child(child);
        }
        message
    }
}

/// A command in progress, which waits for an answer.
#[derive(Debug)]
struct Conversation {
    command: &'static AdHocCommand,
    /// The session of the command.
    id: String,
    page: Page,
    /// How many wrong answers to it there were.
    wrong: u8,
    until: Instant,
}

#[derive(Debug)]
struct Open {
    all: HashMap<Jid, (Conversation, Place)>,
    until: BTreeSet<(Instant, Jid)>,
    shares: Shares,
    /// How many unknown words in a row each sender has written, and when the last.
    unknown: LruCache<u64, (u8, Instant)>,
    hasher: RandomState,
}

impl Open {
    fn take(&mut self, from: &Jid) -> Option<Conversation> {
        let (conversation, place) = self.all.remove(from)?;
        self.until.remove(&(conversation.until, from.clone()));
        self.shares.give_back(&place);
        (conversation.until > Instant::now()).then_some(conversation)
    }

    /// Keeps a conversation; returns whether there is a place for it.
    fn keep(&mut self, from: &Jid, conversation: Conversation) -> bool {
        let now = Instant::now();
        while let Some((until, old)) = self.until.first().cloned()
            && until <= now
        {
            self.take(&old);
        }
        self.take(from);
        let weight = WEIGHT + 2 * from.as_str().len() + conversation.page.weight();
        let Ok(place) = self.shares.take(&from.to_bare(), weight, &LIMITS) else { return false };
        self.until.insert((conversation.until, from.clone()));
        self.all.insert(from.clone(), (conversation, place));
        true
    }

    /// Notes an unknown word; returns whether it is answered.
    fn is_answered(&mut self, from: &Jid, now: Instant) -> bool {
        let (most, _, forgotten) = UNKNOWN;
        let key = self.hasher.hash_one(from.to_bare());
        let before = self.unknown.get(&key).filter(|(_, at)| now < *at + forgotten);
        let count = before.map_or(0, |(count, _)| *count).saturating_add(1);
        self.unknown.insert(key, (count, now));
        count <= most
    }

    fn is_known(&mut self, from: &Jid) {
        let key = self.hasher.hash_one(from.to_bare());
        self.unknown.remove(&key);
    }
}

/// What is said in answer to a message, and the notice of a change that it has made.
#[derive(Debug, Default)]
pub struct Said {
    /// The text; `None` if nothing is said.
    pub text: Option<String>,
    /// The message for the owner of a changed key.
    pub notice: Option<KeyNotice>,
}

impl From<String> for Said {
    fn from(text: String) -> Self {
        Self { text: Some(text), notice: None }
    }
}

/// All conversations. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Chats {
    commands: Commands,
    open: Arc<Mutex<Open>>,
    turns: Arc<Vec<tokio::sync::Mutex<()>>>,
}

impl Chats {
    /// Creates a chat interface to the commands.
    pub fn new(commands: Commands) -> Self {
        let open = Open {
            all: HashMap::new(),
            until: BTreeSet::new(),
            shares: Shares::default(),
            unknown: LruCache::new(UNKNOWN.1),
            hasher: RandomState::new(),
        };
        let turns = (0..TURNS).map(|_| tokio::sync::Mutex::new(())).collect();
        Self { commands, open: Arc::new(Mutex::new(open)), turns: Arc::new(turns) }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Handles a message of a user with access. The answer may be `room` bytes long.
    pub async fn handle(&self, written: &Written, now: OffsetDateTime, room: usize) -> Said {
        let hash = self.lock().hasher.hash_one(&written.from) % TURNS as u64;
        let turn = usize::try_from(hash).unwrap_or_default();
        let _turn = self.turns[turn].lock().await;
        let words = in_language(&written.lang);
        let said = self.answer(written, words, now, room.min(ROOM)).await;
        Said { text: said.text.map(|text| form::cut(&text, room.min(ROOM))), ..said }
    }

    async fn answer(
        &self,
        written: &Written,
        words: &'static Words,
        now: OffsetDateTime,
        room: usize,
    ) -> Said {
        let Written { from, text, is_encrypted, .. } = written;
        if *is_encrypted {
            let answers = self.lock().is_answered(from, Instant::now());
            return Said { text: answers.then(|| words.encrypted.to_owned()), notice: None };
        }
        let word = text.to_lowercase();
        // A long result needs no end: another command may follow at once.
        let goes_on =
            |known: &Conversation| !known.page.is_reading || words::is(words::MORE, &word);
        let conversation = self.lock().take(from).filter(goes_on);
        if let Some(mut conversation) = conversation {
            self.lock().is_known(from);
            let act = if words::is(words::CANCEL, &word) {
                "cancel"
            } else if words::is(words::BACK, &word) && conversation.page.has_previous {
                "prev"
            } else if words::is(words::BACK, &word) {
                conversation.page.step_back();
                return self.ask(from, conversation, words, "");
            } else {
                match conversation.page.take(text) {
                    Answer::Ask => return self.ask(from, conversation, words, ""),
                    Answer::NotUnderstood => {
                        conversation.wrong += 1;
                        return self.ask(from, conversation, words, words.not_understood);
                    }
                    Answer::Done(action) => action,
                }
            };
            let request = conversation.page.request(&conversation.id, act);
            let asked = (conversation.command, request);
            return self.run(from, asked, words, (None, conversation.wrong), (now, room)).await;
        }
        if words::is(words::HELP, &word) {
            self.lock().is_known(from);
            return self.help(from, words).into();
        }
        let user = from.to_bare();
        let found = self.commands.list(&user).find_map(|command| {
            let rest = words::names(command.name).find_map(|name| words::after(&name, text))?;
            Some((command, rest.to_owned()))
        });
        let Some((command, argument)) = found else {
            let answers = self.lock().is_answered(from, Instant::now());
            return Said { text: answers.then(|| words.unknown.to_owned()), notice: None };
        };
        self.lock().is_known(from);
        let mut request = Element::bare("command", ns::COMMANDS);
        xml::set(&mut request, "action", "execute");
        let argument = (!argument.is_empty()).then_some(argument);
        self.run(from, (command, request), words, (argument, 0), (now, room)).await
    }

    /// Runs a step of a command, and answers with its page.
    async fn run(
        &self,
        from: &Jid,
        (command, mut request): (&'static AdHocCommand, Element),
        words: &'static Words,
        (argument, mut wrong): (Option<String>, u8),
        (now, room): (OffsetDateTime, usize),
    ) -> Said {
        xml::set(&mut request, "node", &command.node());
        let mut first = argument;
        let mut before = String::new();
        loop {
            let done = self.commands.handle_within(from, &request, now, room, words.language).await;
            let (answer, notice) = match done {
                Ok(done) => done,
                Err(refused) => {
                    let why = Refusal::from(refused).text;
                    return format!("{before}{} {why}", words.refused).trim().to_owned().into();
                }
            };
            let mut page = Page::read(&answer, words);
            let id = answer.attr("sessionid").unwrap_or_default().to_owned();
            if page.is_over {
                return Said { text: Some(format!("{before}{}", page.text(words))), notice };
            }
            wrong = if page.is_shown_again { wrong.saturating_add(1) } else { 0 };
            // The word after the command answers the first question.
            let answered = first.take().map(|argument| page.take(&argument));
            if let Some(Answer::Done(action)) = answered {
                before = page.heading();
                request = page.request(&id, action);
                xml::set(&mut request, "node", &command.node());
                continue;
            }
            let until = Instant::now() + PATIENCE;
            let hint = match answered {
                Some(Answer::NotUnderstood) => words.not_understood,
                _ => "",
            };
            return self.ask(from, Conversation { command, id, page, wrong, until }, words, hint);
        }
    }

    /// Asks the next question of a page, or ends the conversation without a word after too many wrong answers.
    fn ask(&self, from: &Jid, mut conversation: Conversation, words: &Words, hint: &str) -> Said {
        if conversation.wrong > WRONG {
            return Said::default();
        }
        let question = conversation.page.question(words);
        conversation.until = Instant::now() + PATIENCE;
        let text = match self.lock().keep(from, conversation) {
            true => format!("{hint}\n\n{question}").trim().to_owned(),
            false => words.busy.to_owned(),
        };
        text.into()
    }

    /// Returns the list of what a user may write.
    fn help(&self, from: &Jid, words: &Words) -> String {
        let mut lines = vec![words.help.to_owned(), String::new()];
        let user = from.to_bare();
        for command in self.commands.list(&user) {
            let name = words::names(command.name).next().unwrap_or_default();
            lines.push(format!("{name} \u{2013} {}", command.title(words.language)));
        }
        lines.extend([String::new(), words.how.to_owned()]);
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests;
