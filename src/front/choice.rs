//! Chooses the resource for stanzas to a bare JID: checks first whether the candidates are present, and passes a stanza
//! that one does not take to the next.

use std::{sync::Arc, time::Duration};

use fingerpost_carry::iq::{Answer, Requests, random_id};
use fingerpost_wire::{
    jid::unproxied,
    jingle::{self, Action},
    ns,
    stanza::{Condition, Refusal, RequestKind, Stanza},
};
use jid::{BareJid, FullJid, Jid};
use minidom::Element;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::{
    PresenceCheck, Report, Router,
    refusal::FrontRefusal,
    waiting::{Choosing, ChosenResource, Findings, Unanswered, WaitingStanza},
};
use crate::{
    refuse::Refuse as _,
    sessions::{
        Again, Callee,
        presence::{ResourceChoice, Sign},
        refusal::SessionRefusal,
    },
};

/// How long a resource may take to show that it is present, before a session is offered to another one.
const SOON: Duration = Duration::from_secs(3);
/// How long a user's server may take to show whether it delivers anything to the user.
const ACCOUNT: Duration = Duration::from_secs(1);
/// A later answer still counts for stanzas that come after it.
const LATE: Duration = Duration::from_secs(10);
/// How long a choice may take in all.
const CHOICE: Duration = Duration::from_secs(12);
/// How long a resource that has just answered may take to acknowledge a session, if there are others.
const ACKNOWLEDGE: Duration = Duration::from_secs(5);

impl Router {
    /// Returns the full JID that a proxied address stands for. `None`: the stanza will be handled when that is known.
    ///
    /// `application` is the application of a session, and whether nothing encrypts it: a resource that announces it comes
    /// first.
    ///
    /// # Errors
    /// The answer to the sender, if the address stands for nobody.
    pub(super) fn reachable(
        &mut self,
        stanza: &Stanza,
        callee: Jid,
        application: Option<(&str, bool)>,
        found: Option<Findings>,
    ) -> Result<Option<ChosenResource>, FrontRefusal> {
        if callee.resource().is_some() {
            return Ok(Some(ChosenResource { jid: callee, choosing: None }));
        }
        let bare = callee.to_bare();
        let known = found.as_ref().map(|found| found.admitted);
        let Some(admitted) = self.admitted(stanza, &bare, known)? else { return Ok(None) };
        if !admitted {
            return Err(SessionRefusal::Unreachable.into());
        }
        let now = Instant::now();
        let choosing = found.and_then(|found| found.choosing);
        let mut choosing = choosing.unwrap_or_else(|| Choosing::new(now));
        if choosing.permit.is_none() {
            choosing.permit = Some(self.permit(stanza)?);
        }
        let broker = &self.broker;
        let fit = |jid: &FullJid| match application {
            Some((application, is_plain)) => {
                broker.fit(&Jid::from(jid.clone()), application, is_plain)
            }
            None => Some(0),
        };
        let (since, tried) = (choosing.since, &choosing.tried);
        let (choice, ask) = self.presences.choose(&bare, since, tried, fit, now);
        match choice {
            ResourceChoice::Take(jid) => {
                let jid = Jid::from(FullJid::clone(&jid));
                Ok(Some(ChosenResource { jid, choosing: Some(choosing) }))
            }
            ResourceChoice::Wait if now < since + CHOICE => {
                for jid in ask {
                    self.question(jid, now, SOON, ());
                }
                let stanza = choosing.stanza.take().unwrap_or_else(|| Arc::new(stanza.clone()));
                choosing.application = application.map(|(name, plain)| (name.to_owned(), plain));
                let waiting = WaitingStanza { stanza, choosing };
                self.waiting.push(bare, waiting);
                Ok(None)
            }
            ResourceChoice::Wait => Err(silent(&bare, since)),
            ResourceChoice::Nobody(since) => {
                if let Some(error) = choosing.error {
                    self.send(stanza.error(error));
                    return Ok(None);
                }
                Err(match choosing.silent.max(since) {
                    _ if choosing.is_refused => refused(&bare, &self.options.jid),
                    Some(since) => silent(&bare, since),
                    None => SessionRefusal::Unreachable.into(),
                })
            }
        }
    }

    /// Starts a session with the chosen resource. If that does not acknowledge it, another one is chosen.
    pub(super) fn initiate(
        &mut self,
        stanza: &Stanza,
        taken: ChosenResource,
    ) -> Result<(), FrontRefusal> {
        let callee = self.callee(taken);
        Ok(self.broker.initiate(stanza.clone(), callee)?)
    }

    /// Returns the resource that gets a session, with its time limit.
    pub(super) fn callee(&self, taken: ChosenResource) -> Callee {
        let mut callee = Callee::new(taken.jid.clone());
        if let Some(Choosing { tried, .. }) = taken.choosing {
            // A busy resource is slow, and nobody else waits for it.
            callee.has_others = self.presences.has_other(&taken.jid, &tried);
            if callee.has_others {
                callee.patience = ACKNOWLEDGE;
            }
            let (reports, jid, at) = (self.back.reports.clone(), taken.jid, Instant::now());
            callee.again = Some(Again::new(move |stanza, error, left| async move {
                let unanswered = Unanswered { stanza, callee: jid, tried, error, at, left };
                let _ = reports.send(Report::Unanswered(Box::new(unanswered))).await;
            }));
        }
        callee
    }

    /// Handles a session-initiate that a resource did not acknowledge: tries another one, unless the initiator has
    /// withdrawn it.
    pub(super) fn handle_unanswered(&mut self, unanswered: Unanswered) {
        let Unanswered { stanza, callee, mut tried, error, at, left } = unanswered;
        // Until now the session received its initiator's stanzas; from now on the waiting stanza or the next session
        // does.
        let (answers, is_over) = left.close();
        self.send_all(answers);
        let Ok(jid) = FullJid::try_from(callee) else { return };
        let now = Instant::now();
        let mut choosing = Choosing::new(now);
        if error.is_none() && self.presences.is_link_up() {
            self.presences.answered(&jid, Sign::Silence, at, now);
            choosing.silent = Some(at);
            self.pass_changes();
        }
        if is_over {
            return self.refuse(&stanza, SessionRefusal::Over.into());
        }
        debug!(is_silent = error.is_none(), "session not taken: trying another resource");
        tried.push(jid);
        choosing.error = error;
        choosing.tried = tried;
        self.handle_again(&stanza, choosing);
    }

    fn handle_again(&mut self, stanza: &Stanza, choosing: Choosing) {
        let found = Findings { admitted: true, choosing: Some(choosing) };
        if let Err(refusal) = self.handle_request(stanza, Some(found)) {
            self.refuse(stanza, refusal);
        }
    }

    /// Handles stanzas about a session-initiate that waits for answers of resources: a repetition or a withdrawal.
    ///
    /// # Errors
    /// If the session exists already.
    pub(super) fn handle_waiting(
        &mut self,
        stanza: &Stanza,
        jingle: &Element,
    ) -> Result<bool, FrontRefusal> {
        let is_same = |waiting: &WaitingStanza| {
            let first = waiting.stanza.payload();
            waiting.stanza.to == stanza.to
                && first.is_some_and(|first| {
                    first.attr("action").is_some() && first.attr("sid") == jingle.attr("sid")
                })
        };
        let first = self.waiting.of_sender(&stanza.from).find(|(_, waiting)| is_same(waiting));
        let Some((number, _)) = first else { return Ok(false) };
        match jingle::action(jingle).known() {
            Some(Action::SessionInitiate) => Err(SessionRefusal::Exists.into()),
            Some(Action::SessionTerminate) => {
                self.send(stanza.result(None));
                let withdrawn = self.waiting.take(number);
                self.withdraw(withdrawn);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Withdraws the waiting stanzas of a user that has gone.
    pub(super) fn withdraw_all(&mut self, user: &Jid) {
        let gone = self.waiting.take_of_sender(user);
        self.withdraw(gone);
    }

    fn withdraw(&self, gone: impl IntoIterator<Item = WaitingStanza>) {
        for WaitingStanza { stanza, .. } in gone {
            self.send(stanza.refuse(SessionRefusal::Over));
        }
    }

    /// Ends proposals that no resource has answered in time.
    pub(super) fn expire_proposals(&mut self, now: Instant) {
        let out = self.proposals.expire(now, |user, since| Refusal::from(silent(user, since)).text);
        self.send_all(out);
    }

    /// Checks all resources of a user, because `initiator` has proposed something to all.
    pub(super) fn check_all(&mut self, user: &BareJid, initiator: &Jid, id: &str, now: Instant) {
        let (ask, silent_now) = self.presences.check_all(user, now);
        for jid in ask {
            self.question(jid, now, SOON, ());
        }
        let silent_now = silent_now.iter().map(|(jid, since)| (&**jid, *since));
        self.proposals.silent_before(initiator, id, silent_now);
    }

    /// Checks whether a resource is still present. `held` is freed when that is known.
    pub(super) fn question(
        &self,
        jid: Arc<FullJid>,
        at: Instant,
        wait: Duration,
        held: impl Send + 'static,
    ) {
        let (requests, reports) = (self.requests.clone(), self.back.reports.clone());
        let (own, link) = (Jid::from(self.options.jid.clone()), self.links);
        self.tasks.spawn(async move {
            let to = Jid::from(FullJid::clone(&jid));
            let tell = async |sign, info| {
                let asked = PresenceCheck { jid: Arc::clone(&jid), sign, info, at, link };
                let _ = reports.send(Report::Asked(Box::new(asked))).await;
            };
            let query = Element::bare("query", ns::DISCO_INFO);
            let sent = timeout(wait, requests.send(RequestKind::Get, &own, &to, query)).await;
            let Ok(mut pending) = sent else { return tell(Sign::Silence, None).await };
            let answer = pending.answer_within(wait).await;
            drop(held);
            let is_late = answer.is_none();
            if is_late {
                tell(Sign::Silence, None).await;
            }
            let answer = match answer {
                Some(answer) => Some(answer),
                None => pending.answer_within(LATE).await,
            };
            match answer {
                Some(Answer::Result(info)) => tell(Sign::Here, info).await,
                Some(Answer::Error(error)) => {
                    tell(sign_of(&error, &requests, &own, &to).await, None).await;
                }
                Some(Answer::Timeout) if !is_late => tell(Sign::Silence, None).await,
                Some(Answer::Timeout) | None => {}
            }
        });
    }

    /// Handles the result of a check.
    pub(super) fn handle_sign(&mut self, asked: PresenceCheck) {
        let PresenceCheck { jid, sign, info, at, link } = asked;
        let now = Instant::now();
        // A link that broke meanwhile says nothing about presence.
        let is_known = link == self.links && self.presences.is_link_up();
        let sign = if is_known { sign } else { Sign::Unknown };
        if let Some(info) = info {
            self.broker.learn(&Jid::from(FullJid::clone(&jid)), &info);
            self.contact_says(&jid, &info);
        }
        self.presences.answered(&jid, sign, at, now);
        self.pass_changes();
        match (sign, self.presences.silent_since(&jid)) {
            (Sign::Silence | Sign::Refused, Some(since)) => {
                let text = Refusal::from(refused(&jid.to_bare(), &self.options.jid)).text;
                let out = self.proposals.silent(&jid, since, sign == Sign::Refused, &text);
                self.send_all(out);
            }
            (Sign::Here | Sign::Silence, None) => self.proposals.here(&jid),
            _ => {}
        }
        for WaitingStanza { stanza, mut choosing } in self.waiting.take_of_callee(&jid.to_bare()) {
            choosing.is_refused |= sign == Sign::Refused;
            choosing.stanza = Some(Arc::clone(&stanza));
            self.handle_again(&stanza, choosing);
        }
    }

    /// Refuses a stanza. If the user was not found, the refusal names a room if the address is one.
    pub(super) fn refuse(&self, stanza: &Stanza, refusal: FrontRefusal) {
        let is_away = refusal == FrontRefusal::Session(SessionRefusal::Unreachable);
        let refusal = Refusal::from(refusal);
        debug!(%refusal, "refused");
        let callee = unproxied(&stanza.to, &self.options.jid);
        let Some(callee) = callee.filter(|_| is_away) else {
            return self.send(stanza.refuse(refusal));
        };
        let domain = callee.domain().as_str().to_owned();
        match (self.broker.is_room(&domain), self.permit(stanza)) {
            (Some(true), _) => self.send(stanza.refuse(SessionRefusal::Room)),
            (None, Ok(permit)) => {
                let (broker, outbound) = (self.broker.clone(), self.outbound.clone());
                let stanza = stanza.clone();
                self.tasks.spawn(async move {
                    let _permit = permit;
                    let is_room = broker.look_up_room(&domain).await;
                    let refusal = if is_room { SessionRefusal::Room.into() } else { refusal };
                    let _ = outbound.send(stanza.refuse(refusal).into()).await;
                });
            }
            _ => self.send(stanza.refuse(refusal)),
        }
    }
}

/// Returns what an error says of the resource that was checked.
async fn sign_of(error: &Element, requests: &Requests, own: &Jid, to: &Jid) -> Sign {
    let condition = Condition::of(error);
    if condition == Some(Condition::ServiceUnavailable) {
        let account = to.to_bare();
        let never = account.with_resource_str(&random_id()).map(Jid::from);
        let Ok(never) = never else { return Sign::Gone };
        let account = Jid::from(account);
        let ask = |to, payload| async move {
            requests.request(RequestKind::Get, own, to, payload, ACCOUNT).await
        };
        let (account, never) = tokio::join!(
            ask(&account, Element::bare("ping", ns::PING)),
            ask(&never, Element::bare("query", ns::DISCO_INFO)),
        );
        return gone_or_refused(error, &account, &never);
    }
    match condition {
        Some(
            Condition::Gone
            | Condition::ItemNotFound
            | Condition::JidMalformed
            | Condition::RecipientUnavailable
            | Condition::RemoteServerNotFound,
        ) => Sign::Gone,
        // A server in trouble says nothing about its users.
        Some(
            Condition::InternalServerError
            | Condition::RemoteServerTimeout
            | Condition::ResourceConstraint,
        ) => Sign::Silence,
        // Any other error comes from the client itself.
        _ => Sign::Here,
    }
}

/// Tells apart two causes of a server's service-unavailable: the resource is gone, or the user has blocked the
/// component. In the second case Prosody answers the same for the bare JID. ejabberd adds a text if a resource is gone,
/// as for one that never existed.
fn gone_or_refused(error: &Element, account: &Answer, never: &Answer) -> Sign {
    let text = |error: &Element| error.get_child("text", ns::STANZA_ERRORS).map(Element::text);
    let is_unsent = |answer: &Answer| {
        let Answer::Error(error) = answer else { return false };
        Condition::of(error) == Some(Condition::ResourceConstraint)
    };
    match (account, never) {
        _ if is_unsent(account) || is_unsent(never) => Sign::Gone,
        (Answer::Error(_), _) => Sign::Refused,
        (_, Answer::Error(never)) if text(never) != text(error) => Sign::Refused,
        _ => Sign::Gone,
    }
}

/// Returns the refusal for the case that all suitable resources are online for the server and silent.
fn silent(user: &BareJid, since: Instant) -> FrontRefusal {
    let at = OffsetDateTime::now_utc() - since.elapsed();
    let at = at.replace_nanosecond(0).unwrap_or(at).format(&Rfc3339).unwrap_or_default();
    FrontRefusal::Silent(user.clone(), at)
}

/// Returns the refusal for the case that a user's server refuses to deliver.
fn refused(user: &BareJid, component: &BareJid) -> FrontRefusal {
    FrontRefusal::Undelivered { user: user.clone(), component: component.clone() }
}

#[cfg(test)]
mod tests {
    use fingerpost_wire::stanza::ErrorType;

    use super::*;

    #[test]
    fn who_blocks_the_component_is_told_from_who_is_gone_by_what_each_server_says() {
        let error = |text| {
            Refusal::new(ErrorType::Cancel, Condition::ServiceUnavailable, text).to_element()
        };
        let (plain, gone) = (error(""), error("User session not found"));
        let full = Refusal::resource_constraint("").to_element();
        let found = Answer::Result(None);
        let says = |error: &Element| Answer::Error(error.clone());
        for (case, error, account, never, expected) in [
            ("Prosody, gone", &plain, &found, &says(&plain), Sign::Gone),
            ("Prosody, blocked", &plain, &says(&plain), &says(&plain), Sign::Refused),
            ("ejabberd, gone", &gone, &found, &says(&gone), Sign::Gone),
            ("ejabberd, blocked", &plain, &found, &says(&gone), Sign::Refused),
            ("questions that were not sent", &plain, &says(&full), &says(&full), Sign::Gone),
            (
                "a server that gives no reason",
                &plain,
                &Answer::Timeout,
                &Answer::Timeout,
                Sign::Gone,
            ),
        ] {
            assert_eq!(gone_or_refused(error, account, never), expected, "{case}");
        }
    }
}
