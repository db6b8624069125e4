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
    form::{self, ENTRY, Form, NOTE, Values},
    listing::ListHead,
    page::{CommandPage, CommandProgress, NoPage},
    refusal::CommandRefusal,
    user::{described, input, key_fields, key_items, one_key},
};
use crate::registry::model::{Actor, AuditEntry, Key, check_reason};

/// Entries on one page of the audit log.
const ROWS: usize = 20;
/// The most users whose keys one search shows.
const FOUND: u32 = 50;

impl Commands {
    /// Returns the page that follows the forms submitted so far; the user is an admin.
    pub(super) async fn admin_page(
        &self,
        name: &str,
        progress: &CommandProgress,
        now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        let (stage, values) = (progress.stage, &progress.values);
        let admin = progress.from.to_bare();
        match name {
            "sessions" => self.all_sessions(progress),
            "keys" => self.search(progress, now).await,
            "attest" | "revoke" => self.judge(name, progress, now).await,
            "retire" => self.retire(stage, values, &admin, now).await,
            "block" => self.block(stage, values, &admin, now).await,
            "unblock" => self.unblock(progress, &admin, now).await,
            "stats" => self.stats().await,
            "drain" => self.drain(stage, values),
            "reload" => Ok(match self.control.reload().await {
                Ok(restart) if restart.is_empty() => {
                    CommandPage::done("The configuration was reloaded.")
                }
                Ok(restart) => CommandPage::done(format!(
                    "The configuration was reloaded. These settings take effect after a restart: {}.",
                    restart.join(", ")
                )),
                Err(error) => CommandPage::Failed(format!("Nothing was changed: {error}")),
            }),
            "loglevel" => self.log_level(stage, values),
            _ => self.audit(progress).await,
        }
    }

    fn all_sessions(&self, progress: &CommandProgress) -> Result<CommandPage, NoPage> {
        let values = &progress.values;
        if progress.stage == 0 {
            return Ok(of_whom("Sessions", values));
        }
        let user = optional_jid(values, "jid")?;
        let sessions = self.control.sessions(user.as_ref());
        if let Some(again) = progress.lists_options(1, "id") {
            if sessions.is_empty() {
                return Ok(CommandPage::done("There are no such sessions now."));
            }
            let text = format!("{} sessions, the oldest first.", sessions.len());
            let options = sessions.iter().map(|session| {
                let [from, to] = &session.users;
                described(session, format!("{from} → {to}"), format!("From: {from} to: {to}"))
            });
            let options = progress.described_options(options.collect(), |fields, options| {
                Form::new("Sessions")
                    .text(NOTE, "Please note", &text)
                    .fields(fields)
                    .choices("id", "To be ended", options)
                    .field("text-single", "reason", "Why, for both users", &[values.one("reason")])
            })?;
            return Ok(CommandPage::Options(options, again));
        }
        let chosen: Vec<&str> = values.all("id").collect();
        if chosen.is_empty() {
            return Err(input("Choose the sessions to be ended, or cancel"));
        }
        let reason = check_reason(values.one("reason")).map_err(input)?;
        let text = match reason.as_str() {
            "" => "An admin ended it".to_owned(),
            reason => format!("An admin ended it: {reason}"),
        };
        let found = sessions.iter().filter(|session| chosen.contains(&session.id.as_str()));
        let ended = found.filter(|session| self.control.end(session, &text)).count();
        if ended == 0 {
            return Err(input("The session no longer exists"));
        }
        Ok(CommandPage::done(format!("Sessions ended: {ended}.")))
    }

    async fn search(
        &self,
        progress: &CommandProgress,
        now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        let values = &progress.values;
        if progress.stage == 0 {
            let form = Form::new("Search keys").required(
                "text-single",
                "query",
                "Part of an address, a print, or a key's id",
                &[values.one("query")],
            );
            return Ok(CommandPage::Form(form, true));
        }
        let query = values.one("query");
        if query.is_empty() {
            return Err(input("Expected a part of an address, a print or a key's id"));
        }
        let store = self.registry.store();
        let mut keys = Vec::new();
        let mut more = "";
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
            more = shorten(&mut owners);
            for owner in owners {
                keys.extend(store.keys_of(&owner).await?);
            }
        }
        let text = format!("Keys found: {}.{more}", keys.len());
        let list = ListHead { title: "Keys", text, is_followed: false };
        progress.listed(list, key_items(&keys, true, now))
    }

    /// Attests or revokes a key.
    async fn judge(
        &self,
        name: &str,
        progress: &CommandProgress,
        now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        let (stage, values) = (progress.stage, &progress.values);
        let attests = name == "attest";
        if stage == 0 {
            let (title, text) = if attests {
                ("Attest a key", "You vouch that the key is its owner's.")
            } else {
                ("Revoke a key", "A revoked key is never good again.")
            };
            let form = Form::new(title).text(NOTE, "Please note", text).required(
                "text-single",
                "id",
                "The key's id, as the search shows it",
                &[values.one("id")],
            );
            return Ok(CommandPage::Form(form, false));
        }
        let key = self.key(values).await?;
        let reason = check_reason(values.one("reason")).map_err(input)?;
        if key.state == State::Revoked {
            return Err(input("The key is revoked already"));
        }
        if stage == 1 {
            let text = match attests {
                true => "This key will be attested.",
                false => "This key will be revoked, for good.",
            };
            let mut form = Form::new("This key?")
                .text(NOTE, "Please note", text)
                .fields(key_fields(&key, true, now));
            if !attests {
                form = form.field("text-single", "reason", "Why", &[values.one("reason")]);
            }
            return Ok(CommandPage::Form(form.required("boolean", "sure", "Yes", &["0"]), true));
        }
        if !values.is_true("sure") {
            return Err(input("Tick the box, or cancel"));
        }
        let (key, notice) = if attests {
            self.registry.attest(&progress.from, key.id, now).await?
        } else {
            let actor = Actor::Admin(progress.from.to_bare());
            self.registry.revoke(&progress.from, &actor, key.id, &reason, now).await?
        };
        let text = if attests { "The key is attested." } else { "The key is revoked." };
        Ok(CommandPage::Done(Some(one_key(&key, true, now)), text.into(), notice))
    }

    async fn key(&self, values: &Values) -> Result<Key, NoPage> {
        let id = values.one("id").parse::<KeyId>().map_err(input)?;
        self.registry.store().key(id).await?.ok_or_else(|| input("There is no such key"))
    }

    async fn retire(
        &self,
        stage: usize,
        values: &Values,
        admin: &BareJid,
        now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        if stage == 0 {
            let text = "For an account that was deleted at its server. All that is held about its owner is deleted, and nobody \
                        shows keys to the address any more. Whoever has the address later begins anew; what was revoked \
                        for it stays revoked.";
            let form = Form::new("Retire an account")
                .text(NOTE, "Please note", text)
                .required("jid-single", "jid", "The address", &[values.one("jid")])
                .required("boolean", "sure", "The account is no longer its owner's", &["0"]);
            return Ok(CommandPage::Form(form, true));
        }
        let jid = canonical_bare(values.one("jid"))
            .ok_or_else(|| input("Expected an address like romeo@montague.lit"))?;
        if jid == *admin {
            return Err(input("That is your own account"));
        }
        if !values.is_true("sure") {
            return Err(input("Tick the box, or cancel"));
        }
        let actor = Actor::Admin(admin.clone());
        let retired = self.registry.retire_account(&jid, &actor, now).await?;
        let sessions = self.control.sessions(Some(&jid));
        let text = "The account is no longer in use";
        let ended = sessions.iter().filter(|session| self.control.end(session, text)).count();
        Ok(CommandPage::done(format!(
            "{jid} is retired. Keys deleted: {}. Users who no longer show it their keys: {}. Sessions ended: {ended}.",
            retired.keys,
            retired.named_by.len()
        )))
    }

    async fn block(
        &self,
        stage: usize,
        values: &Values,
        admin: &BareJid,
        now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        if stage == 0 {
            let text = "Sessions end at once, and no others begin, also after a restart.";
            let form = Form::new("Block a user or a domain")
                .text(NOTE, "Please note", text)
                .required(
                    "jid-single",
                    "jid",
                    "The user's address, or a domain",
                    &[values.one("jid")],
                )
                .field("text-single", "reason", "Why, for other admins", &[values.one("reason")]);
            return Ok(CommandPage::Form(form, true));
        }
        let jid = canonical_bare(values.one("jid"))
            .ok_or_else(|| input("Expected an address like romeo@montague.lit, or a domain"))?;
        if jid.domain().as_str().contains('*') {
            return Err(input(match jid.as_str() {
                "*" => "That would lock you out yourself: block addresses and domains one by one",
                _ => "Expected an address or a whole domain, found a pattern: block each domain",
            }));
        }
        if jid == *admin || jid.as_str() == admin.domain().as_str() {
            return Err(input("That would lock you out yourself"));
        }
        let reason = check_reason(values.one("reason")).map_err(input)?;
        let (fresh, ended) = self.control.block(&jid, &reason, admin, now).await?;
        let was = if fresh { "is blocked now" } else { "was blocked already" };
        Ok(CommandPage::done(format!("{jid} {was}. Sessions ended: {ended}.")))
    }

    async fn unblock(
        &self,
        progress: &CommandProgress,
        admin: &BareJid,
        now: OffsetDateTime,
    ) -> Result<CommandPage, NoPage> {
        let values = &progress.values;
        let (commanded, configured) = self.control.doors().blocked();
        if let Some(again) = progress.lists_options(0, "jid") {
            if commanded.is_empty() && configured.is_empty() {
                return Ok(CommandPage::done("Nobody is blocked."));
            }
            let by_command = commanded.iter().map(|(jid, reason)| match reason.as_str() {
                "" => (jid.clone(), jid.clone()),
                reason => (format!("{jid} ({reason})"), jid.clone()),
            });
            let in_file = configured.iter().filter(|jid| !commanded.iter().any(|(c, _)| c == *jid));
            let in_file = in_file.map(|jid| (format!("{jid} (in the configuration)"), jid.clone()));
            let blocked: Vec<(String, String)> = by_command.chain(in_file).collect();
            let options = progress.options(&blocked, |options| {
                Form::new("Unblock a user or a domain").choice(
                    "jid",
                    "Blocked",
                    values.one("jid"),
                    options,
                )
            })?;
            return Ok(CommandPage::Options(options, again));
        }
        let chosen = values.one("jid");
        let is_configured = configured.iter().any(|jid| jid == chosen);
        let by_file = "blocked by the configuration: take it out of [access] blocked and reload";
        let Some((jid, _)) = commanded.iter().find(|(jid, _)| jid == chosen) else {
            return Err(match is_configured {
                true => input(format!("{chosen} is {by_file}")),
                false => input("Choose the user or domain to unblock"),
            });
        };
        let jid =
            canonical_bare(jid).ok_or_else(|| input("Choose the user or domain to unblock"))?;
        self.control.unblock(&jid, admin, now).await?;
        Ok(CommandPage::done(match is_configured {
            true => format!("{jid} is still {by_file}."),
            false => format!("{jid} is no longer blocked."),
        }))
    }

    async fn stats(&self) -> Result<CommandPage, NoPage> {
        let control = &self.control;
        let sessions = control.sessions(None);
        let brokered = sessions.iter().filter(|session| session.is_brokered()).count();
        let counts = control.table().counts();
        let up = control.store().ping().await.is_ok();
        let (open, idle, most) = control.store().connections();
        let (level, _) = control.log().now();
        let metrics = control.table().plane().metrics();
        let rows = [
            ("version", "Version", env!("CARGO_PKG_VERSION").to_owned()),
            (
                "uptime",
                "Seconds since the start",
                control.started().elapsed().as_secs().to_string(),
            ),
            ("brokered", "Brokered sessions", brokered.to_string()),
            ("transfers", "SOCKS5 transfers", counts.active.to_string()),
            ("waiting", "SOCKS5 transfers that wait", counts.waiting.to_string()),
            ("streams", "Streams since the start", metrics.streams().to_string()),
            ("bytes", "Bytes relayed since the start", metrics.bytes().to_string()),
            ("database", "Database", if up { "up" } else { "down" }.to_owned()),
            (
                "connections",
                "Connections to it",
                format!("{open} open, {idle} idle, {most} at most"),
            ),
            (
                "draining",
                "New sessions",
                if control.is_draining() { "refused" } else { "taken" }.to_owned(),
            ),
            ("loglevel", "Log level", level),
        ];
        let mut form = Form::result("Statistics");
        for (var, label, value) in &rows {
            form = form.field("text-single", var, label, &[value]);
        }
        Ok(CommandPage::Done(Some(form), "".into(), None))
    }

    fn drain(&self, stage: usize, values: &Values) -> Result<CommandPage, NoPage> {
        let draining = self.control.is_draining();
        if stage == 0 {
            let (now, other) = if draining { ("refused", "take") } else { ("accepted", "refuse") };
            let text = format!(
                "New sessions are {now} now; running sessions continue in either case. To end this state later, \
                 run this command again."
            );
            let options = [
                ("Refuse new sessions".to_owned(), "refuse".to_owned()),
                ("Accept new sessions (again)".to_owned(), "take".to_owned()),
            ];
            let chosen = match values.one("new") {
                "" => other,
                chosen => chosen,
            };
            let form = Form::new("New sessions").text(NOTE, "Please note", &text).choice(
                "new",
                "New sessions",
                chosen,
                options,
            );
            return Ok(CommandPage::Form(form, true));
        }
        match values.one("new") {
            "refuse" => {
                self.control.drain(true);
                Ok(CommandPage::done("New sessions are refused from now on."))
            }
            "take" => {
                self.control.drain(false);
                Ok(CommandPage::done("New sessions are accepted."))
            }
            _ => Err(input("Choose whether new sessions are refused or accepted")),
        }
    }

    fn log_level(&self, stage: usize, values: &Values) -> Result<CommandPage, NoPage> {
        const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];
        let log = self.control.log();
        let (level, is_configured) = log.now();
        if stage == 0 {
            let text = if is_configured {
                format!("It is {level} now, as configured.")
            } else {
                format!("It is {level} now; the configuration has another.")
            };
            let own = ("As configured".to_owned(), "configured".to_owned());
            let levels = LEVELS.map(|level| (level.to_owned(), level.to_owned()));
            let form = Form::new("Log level").text(NOTE, "Please note", &text).choice(
                "level",
                "Level, until it is changed or the program ends",
                values.one("level"),
                levels.into_iter().chain([own]),
            );
            return Ok(CommandPage::Form(form, true));
        }
        match values.one("level") {
            "configured" => log.choose(None),
            chosen if LEVELS.contains(&chosen) => log.choose(Some(chosen)),
            _ => return Err(input("Choose one of the levels")),
        }
        Ok(CommandPage::done(format!("The log level is {} now.", log.now().0)))
    }

    /// Asks first for the rows' user, then shows page after page, the newest first.
    async fn audit(&self, progress: &CommandProgress) -> Result<CommandPage, NoPage> {
        let values = &progress.values;
        if progress.stage == 0 {
            return Ok(of_whom("Audit log", values));
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
        let title = format!("Audit log, page {}", progress.stage);
        let form = Form::result(&title);
        let room = progress.room_for(&form, "");
        let mut page = rsm::Page::new(Some(&request), count, position, room)?;
        let mut read: (usize, Vec<AuditEntry>) = (0, Vec::new());
        while let Some(number) = page.wants() {
            if number.checked_sub(read.0).is_none_or(|at| at >= read.1.len()) {
                let first = number - number % ROWS;
                read = (first, rows(newest, first, ROWS).await?);
            }
            let at = number.checked_sub(read.0);
            let entry = at.and_then(|at| read.1.get(at)).ok_or(CommandRefusal::Failed)?;
            let field = entry_field(entry);
            page.offer(entry.seq.to_string(), rsm::size_inside(&field)?, field)?;
        }
        let (items, set) = page.finish();
        let shown = items.len();
        let text = if count == 0 { "There are no entries.".to_owned() } else { String::new() };
        let mut page = progress.shown(form.fields(items), text, shown, set, false);
        if let CommandPage::Part(part) = &mut page {
            part.keep.push(("newest".to_owned(), newest.to_string()));
        }
        Ok(page)
    }
}

fn entry_field(entry: &AuditEntry) -> Element {
    let actor = match &entry.actor {
        Some(Actor::User(jid)) => jid.to_string(),
        Some(Actor::Admin(jid)) => format!("admin {jid}"),
        Some(Actor::Offline) => "offline".to_owned(),
        None => "a forgotten user".to_owned(),
    };
    let mut lines = vec![format!("Owner: {}", entry.owner), format!("By: {actor}")];
    if let Some(key) = entry.key {
        lines.push(format!("Key: {key}"));
    }
    let label = format!("{} {}", stamp(entry.at), entry.event.as_str());
    form::shown(&format!("{ENTRY}{}", entry.seq), &label, &lines)
}

/// Returns the page that asks for a user, or for none.
fn of_whom(title: &str, values: &Values) -> CommandPage {
    let form = Form::new(title).field(
        "jid-single",
        "jid",
        "The user's address; nothing: all users",
        &[values.one("jid")],
    );
    CommandPage::Form(form, false)
}

fn optional_jid(values: &Values, var: &str) -> Result<Option<BareJid>, NoPage> {
    match values.one(var) {
        "" => Ok(None),
        text => canonical_bare(text)
            .map(Some)
            .ok_or_else(|| input("Expected an address like romeo@montague.lit, or nothing")),
    }
}

/// Keeps as many of the users as one search shows. Returns a note for the admin if there are more.
fn shorten(owners: &mut Vec<BareJid>) -> &'static str {
    let is_long = owners.len() > FOUND as usize;
    owners.truncate(FOUND as usize);
    if is_long { " More users match: enter a longer part of the address." } else { "" }
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
        assert_eq!(shorten(&mut whole), "");
        assert_eq!(whole, users(FOUND));
        let mut long = users(FOUND + 1);
        assert!(shorten(&mut long).contains("More users match"));
        assert_eq!(long, users(FOUND));
    }
}
