//! The commands of users, each a sequence of pages.

use base64::{Engine, engine::general_purpose::STANDARD};
use fingerpost_secure::material::{Material, is_pem};
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
    form::{self, Form, KEY, MESSAGE, NOTE, PRINTS, PRINTS_OF, Values, print_lines},
    listing::{DescribedOption, ListHead},
    page::{CommandPage, CommandProgress, NoPage},
    refusal::CommandRefusal,
};
use crate::control::SessionRow;
use crate::registry::model::{
    ALLOWED_MAX, Actor, Key, KeyError, NewKey, Settings, Source, Visibility, check_reason,
};

/// The option of a list of keys that stands for none of them.
const NO_KEY: &str = "none";

pub(super) fn input(error: impl std::fmt::Display) -> NoPage {
    NoPage::Input(error.to_string())
}

impl Commands {
    /// Returns the page that follows the forms submitted so far.
    pub(super) async fn page(
        &self,
        progress: &CommandProgress,
        now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        let (stage, values) = (progress.stage, &progress.values);
        if let Some(name) = progress.command.name.strip_prefix("admin:") {
            return self.admin_page(name, progress, now).await;
        }
        match (progress.command.name, stage) {
            ("keys", _) => self.keys(progress, now).await,
            ("lookup", 0) => Ok(CommandPage::Form(
                Form::new("Look up keys").required(
                    "jid-single",
                    "jid",
                    "The user's address",
                    &[values.one("jid")],
                ),
                true,
            )),
            ("lookup", _) => {
                let owner = canonical_bare(values.one("jid"))
                    .ok_or_else(|| input("Expected an address like romeo@montague.lit"))?;
                let keys =
                    self.registry.visible_keys(&progress.from.to_bare(), &owner).await?;
                let text = match keys.is_empty() {
                    true => format!("{owner} shows you no keys."),
                    false => String::new(),
                };
                let title = format!("Keys of {owner}");
                let list = ListHead { title: &title, text, is_followed: false };
                progress.listed(list, key_items(&keys, false, now))
            }
            ("add", stage) => self.add(progress, stage, now).await,
            ("revoke", stage) => self.revoke(progress, stage, now).await,
            ("prove", stage) => self.prove(progress, stage, now).await,
            ("settings", stage) => self.settings(progress, stage, now).await,
            ("sessions", _) => self.sessions(progress),
            ("export", _) => self.export(progress).await,
            ("erase", 0) => Ok(CommandPage::Form(
                Form::new("Erase everything held about me")
                .text(
                    NOTE,
                    "Please note",
                    "Your keys, proofs and settings will be deleted, for good. To confirm, write your own address.",
                )
                .required("jid-single", "confirm", "Your address", &[]),
                true,
            )),
            ("erase", _) => {
                let me = progress.from.to_bare();
                if canonical_bare(values.one("confirm")).as_ref() != Some(&me) {
                    return Err(input("That is not your own address: nothing was deleted"));
                }
                self.registry.erase(&me, &Actor::User(me.clone()), now).await?;
                Ok(CommandPage::done("Everything held about you has been deleted."))
            }
            _ => Err(NoPage::Refused(CommandRefusal::NoSuchCommand)),
        }
    }

    /// Lists the user's keys, and goes on to another command for one of them.
    async fn keys(
        &self,
        progress: &CommandProgress,
        now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        let me = progress.from.to_bare();
        let keys = self.registry.profile(&me).await?.keys.clone();
        let Some(chosen_at) = progress.followed_at() else {
            let text = if keys.is_empty() { "You have no keys." } else { "" };
            let is_followed = keys.iter().any(|key| key.state != State::Revoked);
            let list = ListHead { title: "My keys", text: text.to_owned(), is_followed };
            return progress.listed(list, key_items(&keys, false, now));
        };
        let values = &progress.values;
        if progress.stage == chosen_at {
            let open = keys.iter().filter(|key| key.state != State::Revoked).map(choice);
            let options = [("Prove", "prove"), ("Replace", "replace"), ("Revoke", "revoke")]
                .map(|(label, value)| (label.to_owned(), value.to_owned()));
            let open: Vec<_> = open.collect();
            let id = match open.as_slice() {
                [(_, only)] => only,
                _ => values.one("id"),
            };
            let form = Form::new("Go on with a key")
                .choice("id", "Which key", id, open.clone())
                .choice("then", "What to do", values.one("then"), options);
            return Ok(CommandPage::Form(form, false));
        }
        // The other command goes on with the page after the choice of a key.
        let key = chosen(&keys, values)?;
        let mut other = progress.clone();
        other.stage -= chosen_at;
        match values.one("then") {
            "prove" => self.prove(&other, other.stage, now).await,
            "revoke" => self.revoke(&other, other.stage, now).await,
            "replace" => {
                other.values.set_default("replaces", key.id.to_string());
                other.values.set_default("method", key.method.to_string());
                other.values.set_default("label", key.label.clone());
                self.add(&other, other.stage - 1, now).await
            }
            _ => Err(input("Choose what to do with the key")),
        }
    }

    /// Returns the export as text, in parts of its own if necessary.
    async fn export(&self, progress: &CommandProgress) -> Result<CommandPage, NoPage> {
        let text = |lines: &[&str]| {
            Form::result("Everything held about me").field("text-multi", "export", "As XML", lines)
        };
        let size_of = |form: Form| size::of(&form.into_element()).unwrap_or(usize::MAX);
        let me = progress.from.to_bare();
        let request = progress.part();
        // Inside a value each `<` takes four bytes and each quote five; in the worst case every second byte is text.
        let mut room = progress.room_for(&text(&[""]), "");
        loop {
            let mut export = self.registry.export(&me, request.as_ref(), room).await?;
            let set = export.remove_child("set", ns::RSM);
            let shown = String::from(&export);
            let form = text(&xml_lines(&shown).iter().map(String::as_str).collect::<Vec<_>>());
            let frame = 400;
            let (size, empty) = (size_of(form.clone()), size_of(text(&[""])));
            if size - empty + frame > progress.room_for(&text(&[""]), "") {
                room = room / 4 * 3;
                continue;
            }
            let Some(set) = set else { return Ok(CommandPage::Done(Some(form), "".into(), None)) };
            let items = export
                .children()
                .map(|part| {
                    part.children().count() + usize::from(part.attr("visibility").is_some())
                })
                .sum();
            return Ok(progress.shown(form, String::new(), items, Some(set), false));
        }
    }

    async fn add(
        &self,
        progress: &CommandProgress,
        stage: usize,
        now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        let values = &progress.values;
        let me = progress.from.to_bare();
        if stage == 0 {
            let keys = self.registry.profile(&me).await?.keys.clone();
            let methods = ["x509", "openpgp"].map(|name| (name.to_owned(), name.to_owned()));
            let method =
                if values.one("method").is_empty() { "x509" } else { values.one("method") };
            let none = ("No other key".to_owned(), NO_KEY.to_owned());
            let replaces = match values.one("replaces") {
                "" => NO_KEY,
                id => id,
            };
            let material = values.lines("material");
            let form = Form::new("Add a key")
            .text(
                NOTE,
                "Please note",
                "Give the certificate itself, as PEM or armour, or only its print. Never send a private key.",
            )
            .choice("method", "Kind of key", method, methods)
            .field("text-single", "label", "A name for it", &[values.one("label")])
            .field(
                "text-multi",
                "material",
                "The certificate",
                &material.lines().collect::<Vec<_>>(),
            )
            .field("text-single", "print", "Or its print, hexadecimal", &[values.one("print")])
            .choice(
                "replaces",
                "It replaces",
                replaces,
                std::iter::once(none).chain(active(&keys)),
            );
            return Ok(CommandPage::Form(form, false));
        }
        let new = read_new(values)?;
        if stage == 1 {
            let lines: Vec<String> = new.prints().iter().flat_map(print_lines).collect();
            let form = Form::new("Add this key?")
                .text(NOTE, "Please note", "Compare the prints with those that you know.")
                .fields(vec![form::shown(PRINTS, "Prints", &lines)]);
            return Ok(CommandPage::Form(form, true));
        }
        let (key, notice) = self.registry.add(&progress.from, &new, now).await?;
        let text = match new.note(&key, now) {
            None => "The key is registered.".into(),
            Some(note) => format!("The key is registered. {note}").into(),
        };
        let form = one_key(&key, false, now);
        Ok(CommandPage::Done(Some(form), text, notice))
    }

    async fn revoke(
        &self,
        progress: &CommandProgress,
        stage: usize,
        now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        let values = &progress.values;
        let me = progress.from.to_bare();
        let keys: Vec<Key> = self.registry.profile(&me).await?.keys.clone();
        if let Some(again) = progress.lists_options(0, "id") {
            let open = keys.iter().filter(|key| key.state != State::Revoked).map(choice);
            let options = progress.options(&open.collect::<Vec<_>>(), |open| {
                Form::new("Revoke a key")
                    .text(NOTE, "Please note", "A revoked key is never good again.")
                    .choice("id", "Which key", values.one("id"), open)
            })?;
            return Ok(CommandPage::Options(options.followed(), again));
        }
        let key = chosen(&keys, values)?;
        let reason = check_reason(values.one("reason")).map_err(input)?;
        if stage == 1 {
            let form = Form::new("Revoke this key?")
                .text(NOTE, "Please note", "This key will be revoked, for good.")
                .fields(key_fields(key, false, now))
                .field("text-single", "reason", "Why", &[values.one("reason")])
                .required("boolean", "sure", "Yes, revoke it", &["0"]);
            return Ok(CommandPage::Form(form, true));
        }
        if !values.is_true("sure") {
            return Err(input("Tick the box to revoke the key, or cancel"));
        }
        let actor = Actor::User(me);
        let (key, notice) =
            self.registry.revoke(&progress.from, &actor, key.id, &reason, now).await?;
        Ok(CommandPage::Done(Some(one_key(&key, false, now)), "The key is revoked.".into(), notice))
    }

    async fn prove(
        &self,
        progress: &CommandProgress,
        stage: usize,
        now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        let values = &progress.values;
        let me = progress.from.to_bare();
        let keys: Vec<Key> = self.registry.profile(&me).await?.keys.clone();
        if let Some(again) = progress.lists_options(0, "id") {
            let options = progress.options(&active(&keys).collect::<Vec<_>>(), |open| {
                Form::new("Prove that a key is mine").choice(
                    "id",
                    "Which key",
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
            let form = Form::new("Sign this")
            .text(
                NOTE,
                "Please note",
                "Decode the text below and sign the bytes with your key: Ed25519, ECDSA P-256 with SHA-256, RSA-PSS with \
                 SHA-256, or a detached OpenPGP signature. It is good for 5 minutes.",
            )
            .text(MESSAGE, "To be signed, base64", &STANDARD.encode(message))
            .required("text-multi", "signature", "The signature, base64 or armour", &[]);
            return Ok(CommandPage::Form(form, true));
        }
        let text = values.lines("signature");
        let signature = if text.trim_start().starts_with("-----BEGIN") {
            text.into_bytes()
        } else {
            let text: String = text.split_whitespace().collect();
            STANDARD.decode(text).map_err(|_| input("The signature must be base64 or armour"))?
        };
        let (key, notice) = self.registry.prove(&progress.from, id, &signature, now).await?;
        Ok(CommandPage::Done(Some(one_key(&key, false, now)), "The key is proven.".into(), notice))
    }

    async fn settings(
        &self,
        progress: &CommandProgress,
        stage: usize,
        now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        let values = &progress.values;
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
                ("Everyone who may use the service", Visibility::Everyone),
                ("Users of my own domain", Visibility::Local),
                ("Only those I name", Visibility::Listed),
                ("Nobody", Visibility::Nobody),
            ]
            .map(|(label, visibility)| (label.to_owned(), visibility.as_str().to_owned()));
            let form = Form::new("Choose who may see my keys")
                .text(
                    NOTE,
                    "Please note",
                    "Users that may not see them cannot reach you by your bare address.",
                )
                .choice("visibility", "My keys are shown to", chosen, options)
                .field(
                    "jid-multi",
                    "allowed",
                    "Users I name",
                    if written.is_empty() { &known } else { &written },
                );
            return Ok(CommandPage::Form(form, true));
        }
        let visibility = values.one("visibility").parse::<Visibility>().map_err(input)?;
        let mut allowed = Vec::new();
        for text in values.all("allowed") {
            let jid = canonical_bare(text)
                .ok_or_else(|| input("Expected addresses like romeo@montague.lit"))?;
            if !allowed.contains(&jid) {
                allowed.push(jid);
            }
        }
        if allowed.len() > ALLOWED_MAX {
            return Err(input("At most 256 users may be named"));
        }
        self.registry.set_settings(&me, &Settings { visibility, allowed }, now).await?;
        Ok(CommandPage::done("Your choice is stored."))
    }

    fn sessions(&self, progress: &CommandProgress) -> Result<CommandPage, NoPage> {
        let me = progress.from.to_bare();
        let sessions = self.control.sessions(Some(&me));
        if let Some(again) = progress.lists_options(0, "id") {
            if sessions.is_empty() {
                return Ok(CommandPage::done("You have no sessions now."));
            }
            let options = sessions.iter().map(|session| {
                let [initiator, responder] = &session.users;
                let peer = if *initiator == me { responder } else { initiator };
                described(session, peer.to_string(), format!("With: {peer}"))
            });
            let options = progress.described_options(options.collect(), |fields, options| {
                Form::new("My sessions").fields(fields).choice(
                    "id",
                    "To be ended",
                    progress.values.one("id"),
                    options,
                )
            })?;
            return Ok(CommandPage::Options(options, again));
        }
        let id = progress.values.one("id");
        let session = sessions.iter().find(|session| session.id == id);
        if session.is_some_and(|session| self.control.end(session, "One of its users ended it")) {
            Ok(CommandPage::done("The session is being ended."))
        } else {
            Err(input("There is no such session any more"))
        }
    }
}

fn read_new(values: &Values) -> Result<NewKey, NoPage> {
    let method: Method = values.one("method").parse().map_err(input)?;
    if method == Method::Srp {
        return Err(input(KeyError::Method));
    }
    let label = values.one("label");
    let material = values.lines("material");
    let print = values.one("print");
    let prints = if print.is_empty() {
        Vec::new()
    } else {
        vec![Print::read(print, method, None).map_err(input)?]
    };
    let new = if material.trim().is_empty() {
        NewKey::of_prints(method, prints, label, Source::Self_)
    } else {
        let text = material.trim();
        let bytes = if is_pem(text.as_bytes()) {
            text.as_bytes().to_vec()
        } else {
            let text: String = text.split_whitespace().collect();
            STANDARD
                .decode(text)
                .map_err(|_| input("The certificate must be PEM, armour or base64"))?
        };
        let material = Material::parse(method, &bytes).map_err(input)?;
        NewKey::of_material(material, &prints, label, Source::Self_)
    };
    let replaces = match values.one("replaces") {
        "" | NO_KEY => None,
        id => Some(id.parse::<KeyId>().map_err(input)?),
    };
    Ok(new.map_err(input)?.replacing(replaces))
}

/// Returns a key as an option: label and value.
pub(super) fn choice(key: &Key) -> (String, String) {
    let lines = key.prints.first().map(print_lines).unwrap_or_default();
    let print = lines.get(1).map(String::as_str).unwrap_or_default();
    let name = form::shortened(name(key), 14);
    (format!("{name} ({} {print}…)", key.method), key.id.to_string())
}

fn name(key: &Key) -> &str {
    if key.label.is_empty() { "key" } else { &key.label }
}

fn active(keys: &[Key]) -> impl Iterator<Item = (String, String)> {
    keys.iter().filter(|key| key.state == State::Active).map(choice)
}

fn chosen<'a>(keys: &'a [Key], values: &Values) -> Result<&'a Key, NoPage> {
    let id = values.one("id");
    keys.iter().find(|key| key.id.to_string() == id).ok_or_else(|| input("Choose one of your keys"))
}

/// Returns keys as the items of a list.
pub(super) fn key_items(
    keys: &[Key],
    has_owner: bool,
    now: OffsetDateTime,
) -> Vec<(String, Vec<Element>)> {
    keys.iter().map(|key| (key.id.to_string(), key_fields(key, has_owner, now))).collect()
}

/// Returns one key as a result.
pub(super) fn one_key(key: &Key, has_owner: bool, now: OffsetDateTime) -> Form {
    Form::result("The key").fields(key_fields(key, has_owner, now))
}

/// Returns a key as fields: one for people, and one with the whole fingerprints for programs.
pub(super) fn key_fields(key: &Key, has_owner: bool, now: OffsetDateTime) -> Vec<Element> {
    let (name, method, state) = (name(key), key.method, key.state_shown(now));
    let label = format!("{name} ({method}, {state}, {})", key.assurance);
    let mut lines: Vec<String> = key.prints.iter().flat_map(print_lines).collect();
    if has_owner {
        lines.push(format!("Owner: {}", key.owner));
    }
    lines.push(format!("Source: {}", key.source));
    lines.push(format!("Since: {}", stamp(key.created)));
    if let Some(expires) = key.expires {
        lines.push(format!("Until: {}", stamp(expires)));
    }
    lines.push(format!("Id: {}", key.id));
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

/// Returns a session as an option and a field.
pub(super) fn described(session: &SessionRow, name: String, users: String) -> DescribedOption {
    let legs = match (session.is_brokered(), session.legs) {
        (true, Some([a, b])) => format!("brokered {a}-{b}"),
        (true, None) => "brokered, being set up".to_owned(),
        (false, _) => "SOCKS5 transfer".to_owned(),
    };
    let (seconds, bytes) = (session.age.as_secs(), session.bytes);
    let mut lines = form::wrapped(&users);
    lines.extend([legs, format!("Seconds: {seconds}"), format!("Bytes: {bytes}")]);
    DescribedOption { title: "Session", name, value: session.id.clone(), lines }
}
