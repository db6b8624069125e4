//! The commands of admins, page by page.

use fingerpost_wire::{
    jid::canonical_bare,
    key::{KeyId, State, stamp},
    print::Print,
    rsm::{self, PageRequest},
};
use jid::BareJid;
use minidom::Element;
use time::OffsetDateTime;

use super::{
    Commands,
    catalogue::{Language, Said, Text},
    form::{self, ENTRY, Form, NOTE, Values},
    listing::{ListHead, NONE},
    page::{CommandPage, CommandProgress, NoPage},
    refusal::CommandRefusal,
    user::{described, input, key_fields, key_items, mistake, none, one_key},
};
use crate::registry::model::{Actor, AuditEntry, Key, check_reason};

/// The option that stands for all sessions of the list.
const ALL: &str = "all";
/// Entries on one page of the audit log.
const ROWS: usize = 20;
/// The most users whose keys one search shows.
const FOUND: u32 = 50;

impl Commands {
    pub(super) async fn reload(
        &self,
        _progress: &CommandProgress,
        _now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        Ok(match self.control.reload().await {
            Ok(restart) if restart.is_empty() => CommandPage::done(Text::Reloaded),
            Ok(restart) => CommandPage::done(Text::ReloadedRestart.with(&[&restart.join(", ")])),
            Err(error) => CommandPage::Failed(Text::NothingChanged.with(&[&error])),
        })
    }

    pub(super) async fn attest_key(
        &self,
        progress: &CommandProgress,
        now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        self.judge(true, progress, now).await
    }

    pub(super) async fn revoke_key(
        &self,
        progress: &CommandProgress,
        now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        self.judge(false, progress, now).await
    }

    pub(super) async fn all_sessions(
        &self,
        progress: &CommandProgress,
        _now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        let (values, language) = (&progress.values, progress.language);
        if progress.stage == 0 {
            return Ok(of_whom(Text::SomeSessions, progress));
        }
        let user = optional_jid(values, "jid")?;
        let sessions = self.control.sessions(user.as_ref());
        if let Some(again) = progress.lists_options(1, "id") {
            if sessions.is_empty() {
                return Ok(CommandPage::done(Text::NoSuchSessions));
            }
            let text = Text::SessionsOf.with(&[&sessions.len()]);
            let options = sessions.iter().map(|session| {
                let [from, to] = &session.users;
                let users = Text::FromTo.with(&[from, to]);
                described(language, session, format!("{from} → {to}"), users)
            });
            // Profanity shows no options of a list from which several may be chosen.
            let several =
                [none(language), (language.text(Text::AllOfThem).to_owned(), ALL.to_owned())];
            let options = progress.described_options(options.collect(), |fields, options| {
                Form::new(language, Text::SomeSessions)
                    .text(NOTE, Text::PleaseNote, text.clone())
                    .fields(fields)
                    .choice("id", Text::ToBeEnded, NONE, several.clone().into_iter().chain(options))
                    .field("text-single", "reason", Text::WhyForBoth, &[values.one("reason")])
            })?;
            return Ok(CommandPage::Options(options, again));
        }
        let chosen: Vec<&str> = values.all("id").filter(|id| *id != NONE).collect();
        if chosen.is_empty() {
            return Err(input(Text::ChooseSessions));
        }
        let reason = check_reason(values.one("reason")).map_err(mistake)?;
        let text = match reason.as_str() {
            "" => "An admin ended it".to_owned(),
            reason => format!("An admin ended it: {reason}"),
        };
        let found = sessions
            .iter()
            .filter(|session| chosen.contains(&ALL) || chosen.contains(&session.id.as_str()));
        let ended = found.filter(|session| self.control.end(session, &text)).count();
        if ended == 0 {
            return Err(input(Text::SessionNoLonger));
        }
        Ok(CommandPage::done(Text::SessionsEnded.with(&[&ended])))
    }

    pub(super) async fn search(
        &self,
        progress: &CommandProgress,
        now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        let (values, language) = (&progress.values, progress.language);
        if progress.stage == 0 {
            let form = Form::new(language, Text::AdminKeys).required(
                "text-single",
                "query",
                Text::Query,
                &[values.one("query")],
            );
            return Ok(CommandPage::Form(form, true));
        }
        let query = values.one("query");
        if query.is_empty() {
            return Err(input(Text::ExpectedQuery));
        }
        let store = self.registry.store();
        let mut keys = Vec::new();
        let mut found = Text::KeysFound;
        if let Ok(id) = query.parse::<KeyId>()
            && let Some(key) = store.key(id).await?
        {
            keys.push(key);
        } else if let Ok(print) = Print::parse(query, None) {
            for owner in store.owners_of(&print).await? {
                let theirs = store.keys_of(&owner).await?;
                keys.extend(theirs.into_iter().filter(|key| key.has(&print)));
            }
        } else {
            let mut owners = store.owners_like(query, FOUND + 1).await?;
            found = shorten(&mut owners);
            for owner in owners {
                keys.extend(store.keys_of(&owner).await?);
            }
        }
        let text = found.with(&[&keys.len()]);
        let list = ListHead { title: Text::FoundKeys.into(), text, is_followed: false };
        progress.listed(list, key_items(language, &keys, true, now))
    }

    /// Attests or revokes a key.
    async fn judge(
        &self,
        attests: bool,
        progress: &CommandProgress,
        now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        let (stage, values, language) = (progress.stage, &progress.values, progress.language);
        if stage == 0 {
            let (title, text) = if attests {
                (Text::AdminAttest, Text::AttestNote)
            } else {
                (Text::AdminRevoke, Text::RevokeNote)
            };
            let form = Form::new(language, title).text(NOTE, Text::PleaseNote, text).required(
                "text-single",
                "id",
                Text::KeyId,
                &[values.one("id")],
            );
            return Ok(CommandPage::Form(form, false));
        }
        let key = self.key(values).await?;
        let reason = check_reason(values.one("reason")).map_err(mistake)?;
        if key.state == State::Revoked {
            return Err(input(Text::RevokedAlready));
        }
        if stage == 1 {
            let text = match attests {
                true => Text::WillBeAttested,
                false => Text::WillBeRevoked,
            };
            let mut form = Form::new(language, Text::ThisKey)
                .text(NOTE, Text::PleaseNote, text)
                .fields(key_fields(language, &key, true, now));
            if !attests {
                form = form.field("text-single", "reason", Text::Why, &[values.one("reason")]);
            }
            return Ok(CommandPage::Form(
                form.required("boolean", "sure", Text::Sure, &["0"]),
                true,
            ));
        }
        if !values.is_true("sure") {
            return Err(input(Text::TickTheBox));
        }
        let (key, notice) = if attests {
            self.registry.attest(&progress.from, key.id, now).await?
        } else {
            let actor = Actor::Admin(progress.from.to_bare());
            self.registry.revoke(&progress.from, &actor, key.id, &reason, now).await?
        };
        let text = if attests { Text::Attested } else { Text::Revoked };
        Ok(CommandPage::Done(Some(one_key(language, &key, true, now)), text.into(), notice))
    }

    async fn key(&self, values: &Values) -> Result<Key, NoPage> {
        let id = values.one("id").parse::<KeyId>().map_err(mistake)?;
        self.registry.store().key(id).await?.ok_or_else(|| input(Text::NoSuchKey))
    }

    pub(super) async fn retire(
        &self,
        progress: &CommandProgress,
        now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        let admin = &progress.from.to_bare();
        let (stage, values, language) = (progress.stage, &progress.values, progress.language);
        if stage == 0 {
            let text = Text::RetireNote;
            let form = Form::new(language, Text::AdminRetire)
                .text(NOTE, Text::PleaseNote, text)
                .required("jid-single", "jid", Text::TheAddress, &[values.one("jid")])
                .required("boolean", "sure", Text::SureRetire, &["0"]);
            return Ok(CommandPage::Form(form, true));
        }
        let jid = canonical_bare(values.one("jid")).ok_or_else(|| input(Text::ExpectedAddress))?;
        if jid == *admin {
            return Err(input(Text::YourOwnAccount));
        }
        if !values.is_true("sure") {
            return Err(input(Text::TickTheBox));
        }
        let actor = Actor::Admin(admin.clone());
        let retired = self.registry.retire_account(&jid, &actor, now).await?;
        let sessions = self.control.sessions(Some(&jid));
        let text = "The account is no longer in use";
        let ended = sessions.iter().filter(|session| self.control.end(session, text)).count();
        Ok(CommandPage::done(Text::Retired.with(&[
            &jid,
            &retired.keys,
            &retired.named_by.len(),
            &ended,
        ])))
    }

    pub(super) async fn block(
        &self,
        progress: &CommandProgress,
        now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        let admin = &progress.from.to_bare();
        let (stage, values, language) = (progress.stage, &progress.values, progress.language);
        if stage == 0 {
            let text = Text::BlockNote;
            let form = Form::new(language, Text::AdminBlock)
                .text(NOTE, Text::PleaseNote, text)
                .required("jid-single", "jid", Text::UserOrDomain, &[values.one("jid")])
                .field("text-single", "reason", Text::WhyForAdmins, &[values.one("reason")]);
            return Ok(CommandPage::Form(form, true));
        }
        let jid = canonical_bare(values.one("jid"))
            .ok_or_else(|| input(Text::ExpectedAddressOrDomain))?;
        if jid.domain().as_str().contains('*') {
            return Err(input(match jid.as_str() {
                "*" => Text::LockOutAll,
                _ => Text::ExpectedNoPattern,
            }));
        }
        if jid == *admin || jid.as_str() == admin.domain().as_str() {
            return Err(input(Text::LockOut));
        }
        let reason = check_reason(values.one("reason")).map_err(mistake)?;
        let (fresh, ended) = self.control.block(&jid, &reason, admin, now).await?;
        let was = if fresh { Text::BlockedNow } else { Text::BlockedAlready };
        Ok(CommandPage::done(was.with(&[&jid, &ended])))
    }

    pub(super) async fn unblock(
        &self,
        progress: &CommandProgress,
        now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        let admin = &progress.from.to_bare();
        let (values, language) = (&progress.values, progress.language);
        let (commanded, configured) = self.control.doors().blocked();
        if let Some(again) = progress.lists_options(0, "jid") {
            if commanded.is_empty() && configured.is_empty() {
                return Ok(CommandPage::done(Text::NobodyBlocked));
            }
            let by_command = commanded.iter().map(|(jid, reason)| match reason.as_str() {
                "" => (jid.clone(), jid.clone()),
                reason => (format!("{jid} ({reason})"), jid.clone()),
            });
            let in_file = configured.iter().filter(|jid| !commanded.iter().any(|(c, _)| c == *jid));
            let in_file =
                in_file.map(|jid| (language.fill(Text::InConfiguration, &[jid]), jid.clone()));
            let blocked: Vec<(String, String)> = by_command.chain(in_file).collect();
            let options = progress.options(&blocked, |options| {
                Form::new(language, Text::AdminUnblock).choice(
                    "jid",
                    Text::Blocked,
                    values.one("jid"),
                    options,
                )
            })?;
            return Ok(CommandPage::Options(options, again));
        }
        let chosen = values.one("jid");
        let is_configured = configured.iter().any(|jid| jid == chosen);
        let Some((jid, _)) = commanded.iter().find(|(jid, _)| jid == chosen) else {
            return Err(match is_configured {
                true => input(Text::BlockedByFile.with(&[&chosen])),
                false => input(Text::ChooseToUnblock),
            });
        };
        let jid = canonical_bare(jid).ok_or_else(|| input(Text::ChooseToUnblock))?;
        self.control.unblock(&jid, admin, now).await?;
        Ok(CommandPage::done(match is_configured {
            true => Text::StillBlockedByFile.with(&[&jid]),
            false => Text::Unblocked.with(&[&jid]),
        }))
    }

    pub(super) async fn stats(
        &self,
        progress: &CommandProgress,
        _now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        let language = progress.language;
        let control = &self.control;
        let sessions = control.sessions(None);
        let brokered = sessions.iter().filter(|session| session.is_brokered()).count();
        let counts = control.table().counts();
        let up = control.store().ping().await.is_ok();
        let (open, idle, most) = control.store().connections();
        let (level, _) = control.log().now();
        let metrics = control.table().plane().metrics();
        let rows = [
            ("version", Text::Version, env!("CARGO_PKG_VERSION").to_owned()),
            ("uptime", Text::Uptime, control.started().elapsed().as_secs().to_string()),
            ("brokered", Text::BrokeredSessions, brokered.to_string()),
            ("transfers", Text::Transfers, counts.active.to_string()),
            ("waiting", Text::Waiting, counts.waiting.to_string()),
            ("streams", Text::Streams, metrics.streams().to_string()),
            ("bytes", Text::BytesRelayed, metrics.bytes().to_string()),
            ("database", Text::Database, if up { "up" } else { "down" }.to_owned()),
            (
                "connections",
                Text::Connections,
                language.fill(Text::ConnectionCounts, &[&open, &idle, &most]),
            ),
            (
                "draining",
                Text::NewSessions,
                if control.is_draining() { "refused" } else { "taken" }.to_owned(),
            ),
            ("loglevel", Text::LogLevel, level),
        ];
        let mut form = Form::result(language, Text::AdminStats);
        for (var, label, value) in &rows {
            form = form.field("text-single", var, *label, &[value]);
        }
        Ok(CommandPage::Done(Some(form), Said::Nothing, None))
    }

    pub(super) async fn drain(
        &self,
        progress: &CommandProgress,
        _now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        let (stage, values, language) = (progress.stage, &progress.values, progress.language);
        let draining = self.control.is_draining();
        if stage == 0 {
            let (text, other) = match draining {
                true => (Text::Refused, "take"),
                false => (Text::Accepted, "refuse"),
            };
            let options = [
                (language.text(Text::Refuse).to_owned(), "refuse".to_owned()),
                (language.text(Text::Accept).to_owned(), "take".to_owned()),
            ];
            let chosen = match values.one("new") {
                "" => other,
                chosen => chosen,
            };
            let form = Form::new(language, Text::NewSessions)
                .text(NOTE, Text::PleaseNote, text)
                .choice("new", Text::NewSessions, chosen, options);
            return Ok(CommandPage::Form(form, true));
        }
        match values.one("new") {
            "refuse" => {
                self.control.drain(true);
                Ok(CommandPage::done(Text::NowRefused))
            }
            "take" => {
                self.control.drain(false);
                Ok(CommandPage::done(Text::NowAccepted))
            }
            _ => Err(input(Text::ChooseRefuseOrAccept)),
        }
    }

    pub(super) async fn log_level(
        &self,
        progress: &CommandProgress,
        _now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        let (stage, values, language) = (progress.stage, &progress.values, progress.language);
        const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];
        let log = self.control.log();
        let (level, is_configured) = log.now();
        if stage == 0 {
            let text = if is_configured { Text::LevelConfigured } else { Text::LevelChosen };
            let own = (language.text(Text::AsConfigured).to_owned(), "configured".to_owned());
            let levels = LEVELS.map(|level| (level.to_owned(), level.to_owned()));
            let form = Form::new(language, Text::LogLevel)
                .text(NOTE, Text::PleaseNote, text.with(&[&level]))
                .choice("level", Text::Level, values.one("level"), levels.into_iter().chain([own]));
            return Ok(CommandPage::Form(form, true));
        }
        match values.one("level") {
            "configured" => log.choose(None),
            chosen if LEVELS.contains(&chosen) => log.choose(Some(chosen)),
            _ => return Err(input(Text::ChooseLevel)),
        }
        Ok(CommandPage::done(Text::LevelNow.with(&[&log.now().0])))
    }

    /// Asks first for the rows' user, then shows page after page, the newest first.
    pub(super) async fn audit(
        &self,
        progress: &CommandProgress,
        _now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        let (values, language) = (&progress.values, progress.language);
        if progress.stage == 0 {
            return Ok(of_whom(Text::AuditLog, progress));
        }
        let owner = optional_jid(values, "jid")?;
        let store = self.registry.store();
        let rows = async |newest: i64, skip: usize, limit: usize| {
            let [skip, limit] = [skip, limit].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
            store.audit_page(owner.as_ref(), Some(newest), skip, limit).await
        };
        // New rows come first and must not move the others.
        let newest = match values.one("newest").parse::<i64>() {
            Ok(newest) => newest,
            Err(_) => rows(i64::MAX, 0, 1).await?.first().map_or(0, |entry| entry.seq),
        };
        let count = store.audit_count(owner.as_ref(), newest).await?;
        let request = progress.part().unwrap_or_else(|| PageRequest::index(0)).at_most(ROWS);
        let mut position = None;
        if let Some(seq) = request.uid().and_then(|uid| uid.parse::<i64>().ok())
            && rows(seq, 0, 1).await?.first().is_some_and(|entry| entry.seq == seq)
        {
            position = count.checked_sub(store.audit_count(owner.as_ref(), seq).await?);
        }
        let title = Text::AuditPage.with(&[&progress.stage]);
        let form = Form::result(language, title);
        let room = progress.room_for(&form, &Said::Nothing);
        let mut page = rsm::Page::new(Some(&request), count, position, room)?;
        let mut read: (usize, Vec<AuditEntry>) = (0, Vec::new());
        while let Some(number) = page.wants() {
            if number.checked_sub(read.0).is_none_or(|at| at >= read.1.len()) {
                let first = number - number % ROWS;
                read = (first, rows(newest, first, ROWS).await?);
            }
            let at = number.checked_sub(read.0);
            let entry = at.and_then(|at| read.1.get(at)).ok_or(CommandRefusal::Failed)?;
            let field = entry_field(language, entry);
            page.offer(entry.seq.to_string(), rsm::size_inside(&field)?, field)?;
        }
        let (items, set) = page.finish();
        let shown = items.len();
        let text = if count == 0 { Text::NoEntries.into() } else { Said::Nothing };
        let mut page = progress.shown(form.fields(items), text, shown, set, false);
        if let CommandPage::Part(part) = &mut page {
            part.keep.push(("newest".to_owned(), newest.to_string()));
        }
        Ok(page)
    }
}

fn entry_field(language: Language, entry: &AuditEntry) -> Element {
    let actor = match &entry.actor {
        Some(Actor::User(jid)) => language.fill(Text::By, &[jid]),
        Some(Actor::Admin(jid)) => language.fill(Text::ByAdmin, &[jid]),
        Some(Actor::Offline) => language.text(Text::ByOffline).to_owned(),
        None => language.text(Text::ByForgotten).to_owned(),
    };
    let mut lines = vec![language.fill(Text::Owner, &[&entry.owner]), actor];
    if let Some(key) = entry.key {
        lines.push(language.fill(Text::EntryKey, &[&key]));
    }
    let label = format!("{} {}", stamp(entry.at), entry.event.as_str());
    form::shown(&format!("{ENTRY}{}", entry.seq), &label, &lines)
}

/// Returns the page that asks for a user, or for none.
fn of_whom(title: Text, progress: &CommandProgress) -> CommandPage {
    let (values, language) = (&progress.values, progress.language);
    let form = Form::new(language, title).field(
        "jid-single",
        "jid",
        Text::AllUsersAddress,
        &[values.one("jid")],
    );
    CommandPage::Form(form, false)
}

fn optional_jid(values: &Values, var: &str) -> Result<Option<BareJid>, NoPage> {
    match values.one(var) {
        "" => Ok(None),
        text => canonical_bare(text).map(Some).ok_or_else(|| input(Text::ExpectedAddressOrNothing)),
    }
}

/// Keeps as many of the users as one search shows. Returns the text for the admin, which says if there are more.
fn shorten(owners: &mut Vec<BareJid>) -> Text {
    let is_long = owners.len() > FOUND as usize;
    owners.truncate(FOUND as usize);
    if is_long { Text::KeysFoundMore } else { Text::KeysFound }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_with_more_users_than_it_shows_says_so() {
        let users = |count: u32| -> Vec<BareJid> {
            (0..count).map(|n| BareJid::new(&format!("u{n}@a.example")).unwrap()).collect()
        };
        let mut whole = users(FOUND);
        assert_eq!(shorten(&mut whole), Text::KeysFound);
        assert_eq!(whole, users(FOUND));
        let mut long = users(FOUND + 1);
        assert_eq!(shorten(&mut long), Text::KeysFoundMore);
        assert_eq!(long, users(FOUND));
    }
}
