//! The commands of users, each a sequence of pages.

use base64::{Engine, engine::general_purpose::STANDARD};
use fingerpost_secure::{
    material::{Material, is_pem},
    material_error::MaterialError,
};
use fingerpost_wire::{
    jid::canonical_bare,
    key::{KeyId, State, stamp},
    ns,
    print::{Method, Print},
    size,
};
use minidom::Element;
use time::OffsetDateTime;

use super::{
    Commands,
    catalogue::{Language, Said, Text},
    form::{self, Form, KEY, MESSAGE, NOTE, PRINTS, PRINTS_OF, Values, print_lines},
    listing::{DescribedOption, ListHead, NONE},
    page::{CommandPage, CommandProgress, NoPage},
};
use crate::control::SessionRow;
use crate::registry::model::{
    ALLOWED_MAX, Actor, Key, KeyError, NewKey, Settings, Source, Visibility, check_reason,
};

pub(super) fn input(text: impl Into<Said>) -> NoPage {
    NoPage::Input(text.into())
}

/// Returns the reason that another part of the program has for refusing an input.
pub(super) fn mistake(error: impl std::fmt::Display) -> NoPage {
    NoPage::Input(Said::Foreign(error.to_string()))
}

impl Commands {
    pub(super) async fn lookup(
        &self,
        progress: &CommandProgress,
        now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        let (values, language) = (&progress.values, progress.language);
        if progress.stage == 0 {
            return Ok(CommandPage::Form(
                Form::new(language, Text::Lookup).required(
                    "jid-single",
                    "jid",
                    Text::UsersAddress,
                    &[values.one("jid")],
                ),
                true,
            ));
        }

        let owner =
            canonical_bare(values.one("jid")).ok_or_else(|| input(Text::ExpectedAddress))?;
        let keys = self.registry.visible_keys(&progress.from.to_bare(), &owner).await?;
        let text = match keys.is_empty() {
            true => Text::NoKeysShown.with(&[&owner]),
            false => Said::Nothing,
        };
        let title = Text::KeysOf.with(&[&owner]);
        let list = ListHead { title, text, is_followed: false };
        progress.listed(list, key_items(language, &keys, false, now))
    }

    pub(super) async fn erase(
        &self,
        progress: &CommandProgress,
        now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        let (values, language) = (&progress.values, progress.language);
        if progress.stage == 0 {
            return Ok(CommandPage::Form(
                Form::new(language, Text::Erase)
                    .text(NOTE, Text::PleaseNote, Text::EraseNote)
                    .required("jid-single", "confirm", Text::YourAddress, &[]),
                true,
            ));
        }

        let me = progress.from.to_bare();
        if canonical_bare(values.one("confirm")).as_ref() != Some(&me) {
            return Err(input(Text::NotYourAddress));
        }
        self.registry.erase(&me, &Actor::User(me.clone()), now).await?;
        Ok(CommandPage::done(Text::Erased))
    }

    /// Lists the user's keys, and goes on to another command for one of them.
    pub(super) async fn keys(
        &self,
        progress: &CommandProgress,
        now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        let me = progress.from.to_bare();
        let keys = self.registry.profile(&me).await?.keys.clone();
        let language = progress.language;
        let Some(chosen_at) = progress.followed_at() else {
            let text = if keys.is_empty() { Text::NoKeys.into() } else { Said::Nothing };
            let is_followed = keys.iter().any(|key| key.state != State::Revoked);
            let list = ListHead { title: Text::MyKeys.into(), text, is_followed };
            return progress.listed(list, key_items(language, &keys, false, now));
        };
        let values = &progress.values;
        if progress.stage == chosen_at {
            let open = keys
                .iter()
                .filter(|key| key.state != State::Revoked)
                .map(|key| choice(language, key));
            let options = [
                (Text::DoProve, "prove"),
                (Text::DoReplace, "replace"),
                (Text::DoRevoke, "revoke"),
            ]
            .map(|(label, value)| (language.text(label).to_owned(), value.to_owned()));
            let open: Vec<_> = open.collect();
            let id = match open.as_slice() {
                [(_, only)] => only,
                _ => values.one("id"),
            };
            let form = Form::new(language, Text::GoOn)
                .choice("id", Text::WhichKey, id, open.clone())
                .choice("then", Text::WhatToDo, values.one("then"), options);
            return Ok(CommandPage::Form(form, false));
        }
        // The other command goes on with the page after the choice of a key.
        let key = chosen(&keys, values)?;
        let mut other = progress.clone();
        other.stage -= chosen_at;
        match values.one("then") {
            "prove" => self.prove(&other, now).await,
            "revoke" => self.revoke(&other, now).await,
            "replace" => {
                other.values.set_default("replaces", key.id.to_string());
                other.values.set_default("method", key.method.to_string());
                other.values.set_default("label", key.label.clone());
                other.stage -= 1;
                self.add(&other, now).await
            }
            _ => Err(input(Text::ChooseWhatToDo)),
        }
    }

    /// Returns the export as text, in parts of its own if necessary.
    pub(super) async fn export(
        &self,
        progress: &CommandProgress,
        now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        let language = progress.language;
        let text = |lines: &[&str]| {
            Form::result(language, Text::Export).field("text-multi", "export", Text::AsXml, lines)
        };
        let size_of = |form: Form| size::of(&form.into_element()).unwrap_or(usize::MAX);
        let me = progress.from.to_bare();
        let request = progress.part();
        // Inside a value each `<` takes four bytes and each quote five; in the worst case every second byte is text.
        let mut room = progress.room_for(&text(&[""]), &Said::Nothing);
        loop {
            let mut export = self.registry.export(&me, request.as_ref(), room, now).await?;
            let set = export.remove_child("set", ns::RSM);
            let shown = String::from(&export);
            let form = text(&xml_lines(&shown).iter().map(String::as_str).collect::<Vec<_>>());
            let frame = 400;
            let (size, empty) = (size_of(form.clone()), size_of(text(&[""])));
            if size - empty + frame > progress.room_for(&text(&[""]), &Said::Nothing) {
                room = room / 4 * 3;
                continue;
            }
            let Some(set) = set else {
                return Ok(CommandPage::Done(Some(form), Said::Nothing, None));
            };
            let items = export
                .children()
                .map(|part| {
                    part.children().count() + usize::from(part.attr("visibility").is_some())
                })
                .sum();
            return Ok(progress.shown(form, Said::Nothing, items, Some(set), false));
        }
    }

    pub(super) async fn add(
        &self,
        progress: &CommandProgress,
        now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        let stage = progress.stage;
        let (values, language) = (&progress.values, progress.language);
        let me = progress.from.to_bare();
        if stage == 0 {
            let keys = self.registry.profile(&me).await?.keys.clone();
            let methods = ["x509", "openpgp"].map(|name| (name.to_owned(), name.to_owned()));
            let method =
                if values.one("method").is_empty() { "x509" } else { values.one("method") };
            let none = (language.text(Text::NoOtherKey).to_owned(), NONE.to_owned());
            let replaces = match values.one("replaces") {
                "" => NONE,
                id => id,
            };
            // A private key goes no further, not even back to its owner: others may keep what is sent.
            let material = match holds_private_key(values) {
                true => String::new(),
                false => values.lines("material"),
            };
            let form = Form::new(language, Text::Add)
                .text(NOTE, Text::PleaseNote, Text::AddNote)
                .choice("method", Text::KindOfKey, method, methods)
                .field("text-single", "label", Text::ItsName, &[values.one("label")])
                .field(
                    "text-multi",
                    "material",
                    Text::TheCertificate,
                    &material.lines().collect::<Vec<_>>(),
                )
                .field("text-single", "print", Text::OrItsPrint, &[values.one("print")])
                .choice(
                    "replaces",
                    Text::ItReplaces,
                    replaces,
                    std::iter::once(none).chain(active(language, &keys)),
                );
            return Ok(CommandPage::Form(form, false));
        }
        let new = read_new(values)?;
        if stage == 1 {
            let lines: Vec<String> = new.prints().iter().flat_map(print_lines).collect();
            let form = Form::new(language, Text::AddThisKey)
                .text(NOTE, Text::PleaseNote, Text::ComparePrints)
                .fields(vec![form::shown(PRINTS, language.text(Text::Prints), &lines)]);
            return Ok(CommandPage::Form(form, true));
        }
        let (key, notice) = self.registry.add(&progress.from, &new, now).await?;
        let text = match new.note(&key, now) {
            None => Text::Registered.into(),
            Some(note) => Text::RegisteredNote.with(&[&note]),
        };
        let form = one_key(language, &key, false, now);
        Ok(CommandPage::Done(Some(form), text, notice))
    }

    pub(super) async fn revoke(
        &self,
        progress: &CommandProgress,
        now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        let stage = progress.stage;
        let (values, language) = (&progress.values, progress.language);
        let me = progress.from.to_bare();
        let keys: Vec<Key> = self.registry.profile(&me).await?.keys.clone();
        if let Some(again) = progress.lists_options(0, "id") {
            let open = keys
                .iter()
                .filter(|key| key.state != State::Revoked)
                .map(|key| choice(language, key));
            let options = progress.options(&open.collect::<Vec<_>>(), |open| {
                Form::new(language, Text::Revoke)
                    .text(NOTE, Text::PleaseNote, Text::RevokeNote)
                    .choice("id", Text::WhichKey, values.one("id"), open)
            })?;
            return Ok(CommandPage::Options(options.followed(), again));
        }
        let key = chosen(&keys, values)?;
        let reason = check_reason(values.one("reason")).map_err(mistake)?;
        if stage == 1 {
            let form = Form::new(language, Text::RevokeThisKey)
                .text(NOTE, Text::PleaseNote, Text::WillBeRevoked)
                .fields(key_fields(language, key, false, now))
                .field("text-single", "reason", Text::Why, &[values.one("reason")])
                .required("boolean", "sure", Text::SureRevoke, &["0"]);
            return Ok(CommandPage::Form(form, true));
        }
        if !values.is_true("sure") {
            return Err(input(Text::TickToRevoke));
        }
        let actor = Actor::User(me);
        let (key, notice) =
            self.registry.revoke(&progress.from, &actor, key.id, &reason, now).await?;
        Ok(CommandPage::Done(
            Some(one_key(language, &key, false, now)),
            Text::Revoked.into(),
            notice,
        ))
    }

    pub(super) async fn prove(
        &self,
        progress: &CommandProgress,
        now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        let stage = progress.stage;
        let (values, language) = (&progress.values, progress.language);
        let me = progress.from.to_bare();
        let keys: Vec<Key> = self.registry.profile(&me).await?.keys.clone();
        if let Some(again) = progress.lists_options(0, "id") {
            let options =
                progress.options(&active(language, &keys).collect::<Vec<_>>(), |open| {
                    Form::new(language, Text::Prove).choice(
                        "id",
                        Text::WhichKey,
                        values.one("id"),
                        open,
                    )
                })?;
            return Ok(CommandPage::Options(options.followed(), again));
        }
        let id = chosen(&keys, values)?.id;
        if stage == 1 {
            let (nonce, _) = self.registry.challenge(&me, id, now).await?;
            let message = fingerpost_wire::proof::message(self.registry.component(), &me, &nonce);
            let form = Form::new(language, Text::SignThis)
                .text(NOTE, Text::PleaseNote, Text::SignNote)
                .text(MESSAGE, Text::ToBeSigned, Said::Foreign(STANDARD.encode(message)))
                .required("text-multi", "signature", Text::TheSignature, &[]);
            return Ok(CommandPage::Form(form, true));
        }
        let text = values.lines("signature");
        let signature = if text.trim_start().starts_with("-----BEGIN") {
            text.into_bytes()
        } else {
            let text: String = text.split_whitespace().collect();
            STANDARD.decode(text).map_err(|_| input(Text::BadSignature))?
        };
        let (key, notice) = self.registry.prove(&progress.from, id, &signature, now).await?;
        Ok(CommandPage::Done(
            Some(one_key(language, &key, false, now)),
            Text::Proven.into(),
            notice,
        ))
    }

    pub(super) async fn settings(
        &self,
        progress: &CommandProgress,
        now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        let stage = progress.stage;
        let (values, language) = (&progress.values, progress.language);
        let me = progress.from.to_bare();
        if stage == 0 {
            let settings = self.registry.settings(&me).await?;
            let written: Vec<&str> = values.all("allowed").collect();
            let known: Vec<&str> = settings.allowed.iter().map(|jid| jid.as_str()).collect();
            let chosen = match values.one("visibility") {
                "" => settings.visibility.as_str(),
                chosen => chosen,
            };
            let options = [
                (Text::ForEveryone, Visibility::Everyone),
                (Text::ForLocal, Visibility::Local),
                (Text::ForListed, Visibility::Listed),
                (Text::ForNobody, Visibility::Nobody),
            ]
            .map(|(label, visibility)| {
                (language.text(label).to_owned(), visibility.as_str().to_owned())
            });
            let form = Form::new(language, Text::Settings)
                .text(NOTE, Text::PleaseNote, Text::SettingsNote)
                .choice("visibility", Text::ShownTo, chosen, options)
                .field(
                    "jid-multi",
                    "allowed",
                    Text::UsersNamed,
                    if written.is_empty() { &known } else { &written },
                );
            return Ok(CommandPage::Form(form, true));
        }
        let visibility = values.one("visibility").parse::<Visibility>().map_err(mistake)?;
        let mut allowed = Vec::new();
        for text in values.all("allowed") {
            let jid = canonical_bare(text).ok_or_else(|| input(Text::ExpectedAddresses))?;
            if !allowed.contains(&jid) {
                allowed.push(jid);
            }
        }
        if allowed.len() > ALLOWED_MAX {
            return Err(input(Text::TooManyNamed));
        }
        self.registry.set_settings(&me, &Settings { visibility, allowed }, now).await?;
        Ok(CommandPage::done(Text::Stored))
    }

    pub(super) async fn sessions(
        &self,
        progress: &CommandProgress,
        _now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        let language = progress.language;
        let me = progress.from.to_bare();
        let sessions = self.control.sessions(Some(&me));
        if let Some(again) = progress.lists_options(0, "id") {
            if sessions.is_empty() {
                return Ok(CommandPage::done(Text::NoSessions));
            }
            let options = sessions.iter().map(|session| {
                let [initiator, responder] = &session.users;
                let peer = if *initiator == me { responder } else { initiator };
                described(language, session, peer.to_string(), Text::With.with(&[&peer]))
            });
            let options = progress.described_options(options.collect(), |fields, options| {
                Form::new(language, Text::MySessions).fields(fields).choice(
                    "id",
                    Text::ToBeEnded,
                    NONE,
                    [none(language)].into_iter().chain(options),
                )
            })?;
            return Ok(CommandPage::Options(options, again));
        }
        let id = progress.values.one("id");
        if matches!(id, "" | NONE) {
            return Err(input(Text::ChooseSessions));
        }
        let session = sessions.iter().find(|session| session.id == id);
        if session.is_some_and(|session| self.control.end(session, "One of its users ended it")) {
            Ok(CommandPage::done(Text::SessionEnds))
        } else {
            Err(input(Text::SessionGone))
        }
    }
}

/// Returns the bytes that were given as a certificate; `None` if they are not base64.
fn given_material(values: &Values) -> Option<Vec<u8>> {
    let material = values.lines("material");
    let text = material.trim();
    if is_pem(text.as_bytes()) {
        return Some(text.as_bytes().to_vec());
    }
    let text: String = text.split_whitespace().collect();
    STANDARD.decode(text).ok()
}

fn holds_private_key(values: &Values) -> bool {
    let is_private =
        |bytes: Vec<u8>| Material::parse(Method::X509, &bytes) == Err(MaterialError::PrivateKey);
    given_material(values).is_some_and(is_private)
}

fn read_new(values: &Values) -> Result<NewKey, NoPage> {
    let method: Method = values.one("method").parse().map_err(mistake)?;
    if method == Method::Srp {
        return Err(mistake(KeyError::Method));
    }
    let label = values.one("label");
    let material = values.lines("material");
    let print = values.one("print");
    let prints = if print.is_empty() {
        Vec::new()
    } else {
        vec![Print::read(print, method, None).map_err(mistake)?]
    };
    let new = if material.trim().is_empty() {
        NewKey::of_prints(method, prints, label, Source::Self_)
    } else {
        let bytes = given_material(values).ok_or_else(|| input(Text::BadCertificate))?;
        let material = Material::parse(method, &bytes).map_err(mistake)?;
        NewKey::of_material(material, &prints, label, Source::Self_)
    };
    let replaces = match values.one("replaces") {
        "" | NONE => None,
        id => Some(id.parse::<KeyId>().map_err(mistake)?),
    };
    Ok(new.map_err(mistake)?.replacing(replaces))
}

/// Returns a key as an option: label and value.
pub(super) fn choice(language: Language, key: &Key) -> (String, String) {
    let lines = key.prints.first().map(print_lines).unwrap_or_default();
    let print = lines.get(1).map(String::as_str).unwrap_or_default();
    let name = form::shortened(name(language, key), 14);
    (format!("{name} ({} {print}…)", key.method), key.id.to_string())
}

fn name(language: Language, key: &Key) -> &str {
    if key.label.is_empty() { language.text(Text::UnnamedKey) } else { &key.label }
}

fn active(language: Language, keys: &[Key]) -> impl Iterator<Item = (String, String)> {
    keys.iter().filter(|key| key.state == State::Active).map(move |key| choice(language, key))
}

fn chosen<'a>(keys: &'a [Key], values: &Values) -> Result<&'a Key, NoPage> {
    let id = values.one("id");
    keys.iter().find(|key| key.id.to_string() == id).ok_or_else(|| input(Text::ChooseKey))
}

/// Returns keys as the items of a list.
pub(super) fn key_items(
    language: Language,
    keys: &[Key],
    has_owner: bool,
    now: OffsetDateTime,
) -> Vec<(String, Vec<Element>)> {
    keys.iter().map(|key| (key.id.to_string(), key_fields(language, key, has_owner, now))).collect()
}

/// Returns one key as a result.
pub(super) fn one_key(language: Language, key: &Key, has_owner: bool, now: OffsetDateTime) -> Form {
    Form::result(language, Text::TheKey).fields(key_fields(language, key, has_owner, now))
}

/// Returns a key as fields: one for people, and one with the whole fingerprints for programs.
pub(super) fn key_fields(
    language: Language,
    key: &Key,
    has_owner: bool,
    now: OffsetDateTime,
) -> Vec<Element> {
    let (name, method, state) = (name(language, key), key.method, key.state_shown(now));
    let label = format!("{name} ({method}, {state}, {})", key.assurance);
    let mut lines: Vec<String> = key.prints.iter().flat_map(print_lines).collect();
    if has_owner {
        lines.push(language.fill(Text::Owner, &[&key.owner]));
    }
    lines.push(language.fill(Text::KeySource, &[&key.source]));
    lines.push(language.fill(Text::Since, &[&stamp(key.created)]));
    if let Some(expires) = key.expires {
        lines.push(language.fill(Text::Until, &[&stamp(expires)]));
    }
    lines.push(language.fill(Text::Id, &[&key.id]));
    let whole = |print: &Print| format!("{} {print}", print.hash().as_str());
    let whole: Vec<String> = key.prints.iter().map(whole).collect();
    vec![
        form::shown(&format!("{KEY}{}", key.id), &label, &lines),
        form::hidden(&format!("{PRINTS_OF}{}", key.id), &label, &whole),
    ]
}

/// Returns XML in lines that are short where the XML allows a new line.
fn xml_lines(text: &str) -> Vec<String> {
    text.replace("><", ">\n<").lines().flat_map(form::wrapped_at_words).collect()
}

/// Returns the option that stands for no session.
pub(super) fn none(language: Language) -> (String, String) {
    (language.text(Text::NoneOfThem).to_owned(), NONE.to_owned())
}

/// Returns a session as an option and a field.
pub(super) fn described(
    language: Language,
    session: &SessionRow,
    name: String,
    users: Said,
) -> DescribedOption {
    let legs = match (session.is_brokered(), session.legs) {
        (true, Some([a, b])) => language.fill(Text::Brokered, &[&a, &b]),
        (true, None) => language.text(Text::BeingSetUp).to_owned(),
        (false, _) => language.text(Text::Transfer).to_owned(),
    };
    let (seconds, bytes) = (session.age.as_secs(), session.bytes);
    let mut lines = form::wrapped(&users.in_language(language));
    let seconds = language.fill(Text::Seconds, &[&seconds]);
    lines.extend([legs, seconds, language.fill(Text::Bytes, &[&bytes])]);
    DescribedOption { name, value: session.id.clone(), lines }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(material: &str) -> Values {
        let lines = material.lines().map(|line| format!("<value>{line}</value>"));
        let form = format!(
            "<x xmlns='jabber:x:data' type='submit'><field var='material'>{}</field></x>",
            lines.collect::<String>()
        );
        let mut values = Values::default();
        values.submit(&form.parse().unwrap()).unwrap();
        values
    }

    #[test]
    fn a_private_key_is_known_in_every_form_in_which_it_may_be_given() {
        let pem = |kind: &str| format!("-----BEGIN {kind}-----\nAA==\n-----END {kind}-----\n");
        let private = pem(concat!("PRIVATE ", "KEY"));
        for given in [private.clone(), STANDARD.encode(&private), pem("CERTIFICATE") + &private] {
            assert!(holds_private_key(&values(&given)), "{given}");
        }
        for given in [pem("CERTIFICATE"), "no base64".to_owned(), String::new()] {
            assert!(!holds_private_key(&values(&given)), "{given}");
        }
    }
}
