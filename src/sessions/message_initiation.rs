//! Jingle message initiation: a session is proposed to all of a user's resources before it is started with one.
//!
//! ```text
//! initiator A                        component                        callee B
//!   propose id=a  →  (to B's proxied bare JID)  → propose id=b to each reachable resource
//!   ← ringing id=a ─────────────────────────────  ringing id=b, from any
//!   ← proceed id=a ─────────────────────────────  proceed id=b, from one: the others get retract id=b
//!   session-initiate sid=a  →  (see `Proposals::session`)  → session-initiate sid=b to that one
//!   finish id=a  ⇄ ─────────────────────────────  ⇄ finish id=b
//! ```
//!
//! Each side knows only its own id. An answer counts if it names the id and comes from a resource that got the
//! proposal. The first proceed or reject decides. A retract, or the timeout of a proposal, reaches all resources.
//!
//! [`Proposals`] decides and does no I/O: stanzas and the time go in, stanzas come out.
//!
//! Spec: XEP-0353 0.7.0, sections 3 and 4.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use fingerpost_carry::shares::{Full, Limits, Place, Shares};
use fingerpost_wire::{
    jid::proxied,
    jingle::Reason,
    message_initiation::{self as initiation, Action, LONGEST_ID, RING, START, said_with},
    ns, size,
    stanza::Stanza,
    xml,
};
use hashlink::LruCache;
use jid::{BareJid, FullJid, Jid};
use minidom::Element;
use tokio::time::Instant;

use super::refusal::SessionRefusal;
use super::side::{PerSide, Side};

/// How long a proposal may ring if nobody answers: devices sleep, and a message wakes them.
const QUIET: Duration = Duration::from_secs(30);
/// How long a started session's finish is waited for (XEP-0353, 5).
const FINISH: Duration = Duration::from_secs(24 * 3600);
/// How many times the free proposals one domain may have open.
const SLOPE: usize = 16;
/// The proposals to one callee that nobody has started: in all, and from one initiator. One domain has half of them.
const TO_CALLEE: Limits = Limits::new(256, 8, 1);
/// The answers for each resource that has got a proposal which are not charged to its user, and for how many proposals
/// that are over the rest of them is known: answers may cross a retract.
const ANSWERS: usize = 4;
const OVER: usize = 4096;
/// The longest message about a proposal, in bytes: it is copied to each resource.
const LONGEST: usize = 16 << 10;
/// The bytes that all proposals may hold, and those of one proposal besides its addresses and ids.
const BYTES: usize = 32 << 20;
const PROPOSAL: usize = 1024;

/// How namespaces begin that mean something to clients and servers of XMPP.
const OF_XMPP: [&str; 14] = [
    "jabber:",
    "urn:xmpp:",
    "urn:ietf:",
    "http://jabber.org/",
    "http://etherx.jabber.org/",
    "http://www.xmpp.org/",
    "http://www.w3.org/",
    "https://xmpp.org/",
    "http://xmpp.org/",
    "eu.siacs.conversations.",
    "google:",
    "storage:",
    "urn:fingerpost:",
    "vcard-temp",
];

/// The state of a proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    /// No resource has decided.
    Ringing,
    /// This resource takes the proposal.
    Proceeding(FullJid),
    /// The session has been started with this resource.
    Started(FullJid),
}

#[derive(Debug)]
struct Proposal {
    initiator: Jid,
    /// The initiator's id for it.
    id: String,
    callee: BareJid,
    /// The resources that have received the proposal.
    told: Vec<Told>,
    /// How many more answers are not charged to the callee.
    answers: usize,
    /// When the last of them became silent.
    since: Instant,
    began: Instant,
    stage: Stage,
    /// Whether the initiator, and the callee, have said that the session is over.
    finished: PerSide<bool>,
    deadline: Instant,
    places: Vec<Place>,
    /// Its place among those to the callee, until the session is started.
    place_at_callee: Option<Place>,
}

/// A resource that has received a proposal.
#[derive(Debug)]
struct Told {
    jid: FullJid,
    /// If it does not answer: whether its server refuses to deliver to it.
    silence: Option<bool>,
    /// Whether the initiator knows that it rings.
    rings: bool,
}

/// The proposals that a resource has received and whose session is not started.
#[derive(Debug, Default)]
struct ToldOf {
    ids: BTreeSet<String>,
    /// Whether it was silent since it last showed itself.
    is_silent: bool,
}

impl Proposal {
    /// Returns whether a message from a callee's resource to `peer` is an answer to this proposal.
    fn is_answered(&self, from: &FullJid, peer: &Jid) -> bool {
        self.initiator.to_bare() == peer.to_bare()
            && self.told.iter().any(|told| told.jid == *from)
            && peer.resource().is_none_or(|_| self.initiator == *peer)
    }

    /// Returns the callee, and the initiator's bare address.
    fn ends(&self) -> (BareJid, BareJid) {
        (self.callee.clone(), self.initiator.to_bare())
    }

    /// Returns the resource that has taken it.
    fn taker(&self) -> Option<&FullJid> {
        match &self.stage {
            Stage::Ringing => None,
            Stage::Proceeding(by) | Stage::Started(by) => Some(by),
        }
    }

    /// Returns whether no resource has decided and none answers.
    fn is_silent(&self) -> bool {
        self.stage == Stage::Ringing && self.told.iter().all(|told| told.silence.is_some())
    }

    /// Returns whether the proposal reaches no resource: the server delivers nothing to the remaining ones.
    fn is_refused(&self) -> bool {
        self.stage == Stage::Ringing && self.told.iter().all(|told| told.silence == Some(true))
    }

    /// Notes whether a resource answers.
    fn set_silence(&mut self, user: &FullJid, silence: Option<bool>) {
        for told in self.told.iter_mut().filter(|told| told.jid == *user) {
            told.silence = silence;
        }
    }
}

/// All open proposals, by the id that the callee knows.
#[derive(Debug)]
pub struct Proposals {
    component: BareJid,
    ids: fn() -> String,
    /// The most proposals, and the most bytes that they may hold.
    limits: [Limits; 2],
    shares: [Shares; 2],
    /// The longest message that can be sent, in bytes.
    max_stanza_bytes: usize,
    open: HashMap<String, Proposal>,
    by_initiator: HashMap<Jid, HashMap<String, String>>,
    /// By each resource that has received them: a presence costs no more than what it is about.
    by_told: HashMap<FullJid, ToldOf>,
    /// By callee and the initiator's bare address.
    between: HashMap<(BareJid, BareJid), BTreeSet<String>>,
    /// The shares of initiators in the proposals to each callee.
    to_callees: HashMap<BareJid, Shares>,
    /// Proposals whose session was started, by user and by domain. They are forgotten first, the oldest first.
    started: [BTreeSet<(String, Instant, String)>; 2],
    deadlines: BTreeSet<(Instant, String)>,
    /// By the keyed hash of callee and id: how many more answers to a proposal that is over are not charged.
    over: LruCache<u64, usize>,
    hasher: RandomState,
    /// The earliest deadline is not before this.
    began: Instant,
}

impl Proposals {
    /// Creates an empty set. `ids` returns ids that nobody can guess; `limits` are those in all, and for each
    /// initiator.
    pub fn new(
        component: BareJid,
        ids: fn() -> String,
        limits: (usize, usize),
        now: Instant,
    ) -> Self {
        Self {
            component,
            ids,
            limits: [
                Limits::new(limits.0, limits.1, SLOPE),
                Limits::new(BYTES, limits.1.saturating_mul(BYTES / 256), SLOPE),
            ],
            shares: Default::default(),
            max_stanza_bytes: size::DEFAULT,
            open: HashMap::new(),
            by_initiator: HashMap::new(),
            by_told: HashMap::new(),
            between: HashMap::new(),
            to_callees: HashMap::new(),
            started: Default::default(),
            deadlines: BTreeSet::new(),
            over: LruCache::new(OVER),
            hasher: RandomState::new(),
            began: now,
        }
    }

    /// Sets the longest message that can be sent, in bytes.
    pub fn set_max_stanza_bytes(&mut self, bytes: usize) {
        self.max_stanza_bytes = bytes;
    }

    /// Returns how long a message is, in bytes.
    ///
    /// # Errors
    /// The answer to the sender, if it is too long to be passed on.
    pub fn length(stanza: &Stanza) -> Result<usize, SessionRefusal> {
        let size = size::of(&stanza.element).unwrap_or(usize::MAX);
        if size > LONGEST {
            return Err(size::refusal(size, LONGEST).into());
        }
        Ok(size)
    }

    /// Returns to how many resources a message about a proposal goes, at most.
    pub fn copies(&self, stanza: &Stanza) -> usize {
        let retracted = read(stanza).filter(|(action, _)| action == "retract");
        let proposal = retracted
            .and_then(|(_, id)| self.open.get(self.by_initiator.get(&stanza.from)?.get(&id)?));
        proposal.map_or(1, |proposal| proposal.told.len())
    }

    /// Checks the length of messages that are passed on.
    ///
    /// # Errors
    /// The answer to the sender, if one of them is too long.
    fn check(&self, out: &[Element]) -> Result<(), SessionRefusal> {
        let limit = self.max_stanza_bytes;
        let sizes = out.iter().filter_map(|message| size::of(message).ok());
        match sizes.max().filter(|size| *size > limit) {
            Some(size) => Err(size::refusal(size, limit).into()),
            None => Ok(()),
        }
    }

    /// Returns when [`Proposals::expire`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Passes a proposal on to all reachable `resources` of `callee`.
    ///
    /// # Errors
    /// The answer to the initiator, if it cannot be passed on.
    pub fn propose(
        &mut self,
        stanza: &Stanza,
        callee: &BareJid,
        resources: Vec<FullJid>,
        now: Instant,
    ) -> Result<Vec<Element>, SessionRefusal> {
        let (_, id) = read(stanza).ok_or(SessionRefusal::NoProposal)?;
        if id.is_empty() || id.len() > LONGEST_ID {
            return Err(SessionRefusal::ProposalId(LONGEST_ID));
        }
        if stanza.from.resource().is_none() {
            return Err(SessionRefusal::ProposalFrom);
        }
        if resources.is_empty() {
            return Err(SessionRefusal::Unreachable);
        }
        let own = self.by_initiator.get(&stanza.from);
        if own.is_some_and(|ids| ids.contains_key(&id)) {
            return Err(SessionRefusal::ProposalExists);
        }
        let proposal = Proposal {
            initiator: stanza.from.clone(),
            id: id.clone(),
            callee: callee.clone(),
            answers: ANSWERS * resources.len(),
            told: resources
                .into_iter()
                .map(|jid| Told { jid, silence: None, rings: false })
                .collect(),
            since: now,
            began: now,
            stage: Stage::Ringing,
            finished: PerSide::default(),
            deadline: now + RING,
            places: Vec::new(),
            place_at_callee: None,
        };
        let Some(mask) = proxied(&proposal.initiator, &self.component) else {
            return Err(SessionRefusal::LongJid);
        };
        let theirs = self.their_id(&proposal);
        let out: Vec<Element> = proposal
            .told
            .iter()
            .map(|to| self.moved(stanza, &mask, &Jid::from(to.jid.clone()), &theirs, true))
            .collect();
        self.check(&out)?;
        let proposal = self.admit(proposal)?;
        self.deadlines.insert((proposal.deadline, theirs.clone()));
        self.by_initiator.entry(stanza.from.clone()).or_default().insert(id, theirs.clone());
        self.between.entry(proposal.ends()).or_default().insert(theirs.clone());
        for Told { jid, .. } in &proposal.told {
            self.by_told.entry(jid.clone()).or_default().ids.insert(theirs.clone());
        }
        self.open.insert(theirs, proposal);
        Ok(out)
    }

    /// Returns whether a message answers a proposal of `peer`, and is one of the few that are not charged to the user that
    /// answers: the initiator decides how many proposals there are.
    pub fn is_free_answer(&mut self, stanza: &Stanza, peer: &Jid) -> bool {
        let Some((action, id)) = read(stanza) else { return false };
        let Ok(from) = FullJid::try_from(stanza.from.clone()) else { return false };
        if !matches!(action.as_str(), "ringing" | "proceed" | "reject" | "finish") {
            return false;
        }
        let left = match self.open.get_mut(&id) {
            Some(open) if open.is_answered(&from, peer) => Some(&mut open.answers),
            Some(_) => None,
            None => self.over.get_mut(&self.hasher.hash_one((&from.to_bare(), id.as_str()))),
        };
        let Some(left) = left.filter(|left| **left > 0) else { return false };
        *left -= 1;
        true
    }

    /// Passes on a message about a proposal: ringing, proceed, reject, retract, finish. `peer` is the user that the
    /// addressee stands for.
    ///
    /// # Errors
    /// `item-not-found` if the two have no such proposal.
    pub fn handle(
        &mut self,
        stanza: &Stanza,
        peer: &Jid,
        now: Instant,
    ) -> Result<Vec<Element>, SessionRefusal> {
        let none = || SessionRefusal::NoSuchProposal;
        let (action, id) = read(stanza).ok_or_else(none)?;
        let theirs = self.by_initiator.get(&stanza.from).and_then(|ids| ids.get(&id)).cloned();
        if let Some(theirs) = theirs
            && self.open.get(&theirs).is_some_and(|open| open.callee == peer.to_bare())
        {
            return self.of_initiator(stanza, &action, &theirs, now)?.ok_or_else(none);
        }
        let from = FullJid::try_from(stanza.from.clone()).map_err(|_| none())?;
        if !self.open.get(&id).is_some_and(|open| open.is_answered(&from, peer)) {
            return Err(none());
        }
        self.of_callee(stanza, &action, &id, from, now)?.ok_or_else(none)
    }

    fn of_initiator(
        &mut self,
        stanza: &Stanza,
        action: &str,
        theirs: &str,
        now: Instant,
    ) -> Result<Option<Vec<Element>>, SessionRefusal> {
        let Some(proposal) = self.open.get(theirs) else { return Ok(None) };
        let Some(mask) = proxied(&proposal.initiator, &self.component) else { return Ok(None) };
        let moved =
            |to: &FullJid, alone| self.moved(stanza, &mask, &Jid::from(to.clone()), theirs, alone);
        match (action, proposal.taker()) {
            ("retract", _) => {
                let out: Vec<Element> =
                    proposal.told.iter().map(|to| moved(&to.jid, true)).collect();
                self.check(&out)?;
                self.remove(theirs);
                Ok(Some(out))
            }
            // The server of the callee may copy it to the other devices.
            ("finish", Some(by)) if !proposal.finished.initiator => {
                let out = vec![moved(by, false)];
                self.check(&out)?;
                self.finish(theirs, Side::Initiator, now);
                Ok(Some(out))
            }
            _ => Ok(None),
        }
    }

    fn of_callee(
        &mut self,
        stanza: &Stanza,
        action: &str,
        theirs: &str,
        from: FullJid,
        now: Instant,
    ) -> Result<Option<Vec<Element>>, SessionRefusal> {
        let Some(proposal) = self.open.get(theirs) else { return Ok(None) };
        let Some(mask) = proxied(&stanza.from, &self.component) else { return Ok(None) };
        let passed = self.moved(stanza, &mask, &proposal.initiator, &proposal.id, false);
        self.check(std::slice::from_ref(&passed))?;
        Ok(match (action, proposal.taker()) {
            ("ringing", None) => {
                self.answers(theirs, &from);
                let told = self.open.get_mut(theirs).map(|open| &mut open.told);
                let told = told.into_iter().flatten().find(|told| told.jid == from);
                let is_new = told.is_some_and(|told| !std::mem::replace(&mut told.rings, true));
                Some(if is_new { vec![passed] } else { Vec::new() })
            }
            // The proposal no longer rings; the resource may have missed that.
            ("ringing" | "proceed" | "reject", Some(by)) if *by != from => {
                let late = "Answered on another device";
                Some(
                    self.retract(proposal, theirs, &from, Reason::Cancel, late)
                        .into_iter()
                        .collect(),
                )
            }
            ("ringing" | "proceed", Some(_)) => Some(Vec::new()),
            ("proceed", None) => {
                let mut out = vec![passed];
                out.extend(self.retract_others(theirs, &from, "Answered on another device"));
                self.advance(theirs, Stage::Proceeding(from), now + START);
                Some(out)
            }
            ("reject", None) => {
                let mut out = vec![passed];
                out.extend(self.retract_others(theirs, &from, "Declined on another device"));
                self.remove(theirs);
                Some(out)
            }
            // The resource that took it has changed its mind.
            ("reject", Some(_)) => {
                self.remove(theirs);
                Some(vec![passed])
            }
            ("finish", Some(by)) if *by == from && !proposal.finished.responder => {
                self.finish(theirs, Side::Responder, now);
                Some(vec![passed])
            }
            _ => None,
        })
    }

    /// Returns the resource that took the proposal, and the session id that it knows, if a session-initiate from
    /// `initiator` to `callee` is that of a proposed session. Once that session exists, it is [`Self::started`].
    pub fn session(&self, initiator: &Jid, callee: &Jid, sid: &str) -> Option<(FullJid, String)> {
        let theirs = self.by_initiator.get(initiator)?.get(sid)?;
        let Stage::Proceeding(by) = &self.open.get(theirs)?.stage else { return None };
        if callee.to_bare() != self.open[theirs].callee
            || callee.resource().is_some() && *callee != **by
        {
            return None;
        }
        Some((by.clone(), theirs.clone()))
    }

    /// Notes that the session of a proposal has begun, by the id that the callee knows.
    pub fn started(&mut self, theirs: &str, now: Instant) {
        if let Some(Proposal { stage: Stage::Proceeding(by), .. }) = self.open.get(theirs) {
            let by = by.clone();
            self.advance(theirs, Stage::Started(by), now + FINISH);
            self.leave_callee(theirs);
        }
    }

    /// Handles a resource that has gone: retracts its proposals, and rejects those that no other resource can take.
    pub fn gone(&mut self, user: &Jid) -> Vec<Element> {
        let mut out = Vec::new();
        let own = self.by_initiator.get(user).into_iter().flat_map(HashMap::values).cloned();
        for theirs in own.collect::<Vec<_>>() {
            out.extend(self.end(&theirs, Reason::Gone, "The other user went away", true, false));
        }
        let Ok(user) = FullJid::try_from(user.clone()) else { return out };
        let asked = self.by_told.remove(&user).unwrap_or_default().ids;
        for theirs in asked {
            let Some(proposal) = self.open.get_mut(&theirs) else { continue };
            proposal.told.retain(|told| told.jid != user);
            let left = match &proposal.stage {
                Stage::Ringing => proposal.is_refused(),
                Stage::Proceeding(by) => *by == user,
                // The session itself reports its end.
                Stage::Started(_) => false,
            };
            if left {
                out.extend(self.end(
                    &theirs,
                    Reason::Gone,
                    "The other user went away",
                    false,
                    true,
                ));
            } else {
                self.settle(&theirs);
            }
        }
        out
    }

    /// Notes that a resource has shown itself.
    pub fn here(&mut self, user: &FullJid) {
        let Some(told) = self.by_told.get_mut(user) else { return };
        if std::mem::take(&mut told.is_silent) {
            for theirs in told.ids.clone() {
                self.answers(&theirs, user);
            }
        }
    }

    fn answers(&mut self, theirs: &str, user: &FullJid) {
        if let Some(proposal) = self.open.get_mut(theirs) {
            proposal.set_silence(user, None);
            self.settle(theirs);
        }
    }

    /// Sets how long a proposal may ring.
    fn settle(&mut self, theirs: &str) {
        let Some(proposal) = self.open.get(theirs) else { return };
        let deadline = proposal.began + if proposal.is_silent() { QUIET } else { RING };
        let is_open = proposal.stage == Stage::Ringing && proposal.finished == PerSide::default();
        if is_open && deadline != proposal.deadline {
            self.advance(theirs, Stage::Ringing, deadline);
        }
    }

    /// Handles a resource that does not answer, `since` then. A proposal that rings nowhere else is rejected: at once
    /// with this text if the user's server refuses to deliver (`is_refused`), otherwise if the silence lasts.
    pub fn silent(
        &mut self,
        user: &FullJid,
        since: Instant,
        is_refused: bool,
        text: &str,
    ) -> Vec<Element> {
        let mut out = Vec::new();
        let Some(told) = self.by_told.get_mut(user) else { return out };
        told.is_silent = true;
        for theirs in told.ids.clone() {
            let Some(proposal) = self.open.get_mut(&theirs) else { continue };
            if proposal.stage != Stage::Ringing {
                continue;
            }
            proposal.set_silence(user, Some(is_refused));
            proposal.since = since;
            if proposal.is_refused() {
                out.extend(self.end(&theirs, Reason::Timeout, text, true, true));
            } else {
                self.settle(&theirs);
            }
        }
        out
    }

    /// Notes resources that were silent already when they got a proposal of `initiator`, each since then.
    pub fn silent_before<'a>(
        &mut self,
        initiator: &Jid,
        id: &str,
        silent: impl Iterator<Item = (&'a FullJid, Instant)>,
    ) {
        let theirs = self.by_initiator.get(initiator).and_then(|ids| ids.get(id)).cloned();
        let Some(theirs) = theirs else { return };
        for (user, since) in silent {
            if let Some(told) = self.by_told.get_mut(user)
                && let Some(proposal) = self.open.get_mut(&theirs)
            {
                told.is_silent = true;
                proposal.set_silence(user, Some(false));
                proposal.since = since;
            }
        }
        self.settle(&theirs);
    }

    /// Ends old proposals. `silent` returns since when a user does not answer.
    pub fn expire(
        &mut self,
        now: Instant,
        silent: impl Fn(&BareJid, Instant) -> String,
    ) -> Vec<Element> {
        let mut out = Vec::new();
        while let Some((deadline, theirs)) = self.deadlines.first()
            && *deadline <= now
        {
            let theirs = theirs.clone();
            let started = self.open.get(&theirs).is_some_and(|open| {
                matches!(open.stage, Stage::Started(_)) || open.finished != PerSide::default()
            });
            let quiet = self.open.get(&theirs).filter(|open| open.is_silent());
            let quiet = quiet.map(|open| silent(&open.callee, open.since));
            if started {
                self.remove(&theirs);
            } else if let Some(text) = quiet {
                out.extend(self.end(&theirs, Reason::Timeout, &text, true, true));
            } else {
                out.extend(self.end(
                    &theirs,
                    Reason::Expired,
                    "Nobody answered in time",
                    true,
                    true,
                ));
            }
        }
        out
    }

    /// Ends a proposal with a message of the component's own to its users.
    fn end(
        &mut self,
        theirs: &str,
        condition: Reason,
        text: &str,
        callee: bool,
        initiator: bool,
    ) -> Vec<Element> {
        let Some(proposal) = self.remove(theirs) else { return Vec::new() };
        if matches!(proposal.stage, Stage::Started(_)) {
            return Vec::new();
        }
        let mut out = Vec::new();
        if callee {
            let retract = |to: &Told| self.retract(&proposal, theirs, &to.jid, condition, text);
            out.extend(proposal.told.iter().filter_map(retract));
        }
        if initiator && let Some(mask) = proxied(&proposal.callee.into(), &self.component) {
            let element = said_with(Action::Reject, &proposal.id, condition, text);
            out.push(self.message(&mask, &proposal.initiator, element));
        }
        out
    }

    fn retract_others(&self, theirs: &str, but: &FullJid, text: &str) -> Vec<Element> {
        let Some(proposal) = self.open.get(theirs) else { return Vec::new() };
        let others = proposal.told.iter().map(|told| &told.jid).filter(|told| *told != but);
        others.filter_map(|to| self.retract(proposal, theirs, to, Reason::Cancel, text)).collect()
    }

    fn retract(
        &self,
        proposal: &Proposal,
        theirs: &str,
        to: &FullJid,
        condition: Reason,
        text: &str,
    ) -> Option<Element> {
        let mask = proxied(&proposal.initiator, &self.component)?;
        let element = said_with(Action::Retract, theirs, condition, text);
        let mut message = self.message(&mask, &Jid::from(to.clone()), element);
        message.append_child(Element::bare("private", ns::CARBONS));
        Some(message)
    }

    /// Returns a message of the component's own.
    fn message(&self, from: &Jid, to: &Jid, element: Element) -> Element {
        initiation::message(from, to, &(self.ids)(), element)
    }

    /// Returns a message for the other side: addresses and ids are new, and of the rest is kept what [`is_kept`]. `alone`:
    /// the user's server must not copy it to other resources, because each gets its own.
    fn moved(&self, stanza: &Stanza, from: &Jid, to: &Jid, id: &str, alone: bool) -> Element {
        let mut out = xml::head_in(&stanza.element, ns::CLIENT);
        for (name, value) in [("from", from.as_str()), ("to", to.as_str()), ("id", &(self.ids)())] {
            xml::set(&mut out, name, value);
        }
        let mut private = alone;
        for child in stanza.element.children() {
            if child.has_ns(ns::JINGLE_MESSAGE) {
                let mut child = child.clone();
                xml::set(&mut child, "id", id);
                if let Some(migrated) = child.get_child_mut("migrated", ns::JINGLE_MESSAGE)
                    && let Some(new) = migrated.attr("to")
                    && let Some(new) = self.other_id(&stanza.from, new)
                {
                    xml::set(migrated, "to", &new);
                }
                out.append_child(child);
            } else if is_kept(child) {
                private &= !child.has_ns(ns::CARBONS);
                out.append_child(child.clone());
            }
        }
        if private {
            out.append_child(Element::bare("private", ns::CARBONS));
        }
        out
    }

    /// Returns the id of a proposal on the other side than that of `user`.
    fn other_id(&self, user: &Jid, id: &str) -> Option<String> {
        if let Some(theirs) = self.by_initiator.get(user).and_then(|ids| ids.get(id)) {
            return Some(theirs.clone());
        }
        let told = |open: &&Proposal| open.told.iter().any(|told| *user == *told.jid);
        self.open.get(id).filter(told).map(|open| open.id.clone())
    }

    /// Returns the id for the callee. When two users propose to each other at once, the lower id wins (XEP-0353, 4.1).
    /// Both must find the same proposal lower, so the new id compares to the other proposal's as the initiator's id
    /// does.
    fn their_id(&self, proposal: &Proposal) -> String {
        let (callee, initiator) = proposal.ends();
        let back = self.between.get(&(initiator, callee)).into_iter().flatten();
        let mut back = back.filter_map(|known| Some((known, self.open.get(known)?)));
        let Some((known, back)) = back.next() else { return (self.ids)() };
        let lower = proposal.id < *known;
        for prefix in ["", "!", "~"] {
            for _ in 0..16 {
                let id = format!("{prefix}{}", (self.ids)());
                if (id < back.id) == lower {
                    return id;
                }
            }
        }
        (self.ids)()
    }

    /// Takes the places that a proposal needs. A started session of its user or domain may make room: the component
    /// then cannot pass on its finish.
    fn admit(&mut self, mut proposal: Proposal) -> Result<Proposal, SessionRefusal> {
        let user = proposal.initiator.to_bare();
        let told: usize = proposal.told.iter().map(|told| 64 + told.jid.as_str().len()).sum();
        let addresses = proposal.initiator.as_str().len() + proposal.callee.as_str().len();
        // The index has each resource once more.
        let bytes = PROPOSAL + 2 * (2 * told + addresses + proposal.id.len());
        let shares = self.to_callees.entry(proposal.callee.clone()).or_default();
        let place = shares.take(&user, 1, &TO_CALLEE);
        proposal.place_at_callee = Some(place.map_err(|_| SessionRefusal::TooManyProposals)?);
        for (kind, weight) in [1, bytes].into_iter().enumerate() {
            loop {
                match self.shares[kind].take(&user, weight, &self.limits[kind]) {
                    Ok(place) => {
                        proposal.places.push(place);
                        break;
                    }
                    Err(full) if self.forget_started(&user, full) => {}
                    Err(_) => {
                        for (shares, place) in self.shares.iter_mut().zip(&proposal.places) {
                            shares.give_back(place);
                        }
                        self.free_at_callee(&mut proposal);
                        return Err(SessionRefusal::TooManyProposals);
                    }
                }
            }
        }
        Ok(proposal)
    }

    fn advance(&mut self, theirs: &str, stage: Stage, deadline: Instant) {
        let Some(proposal) = self.open.get_mut(theirs) else { return };
        let old = std::mem::replace(&mut proposal.deadline, deadline);
        proposal.stage = stage;
        let is_started = matches!(proposal.stage, Stage::Started(_));
        let groups = groups(&proposal.initiator);
        self.deadlines.remove(&(old, theirs.to_owned()));
        self.deadlines.insert((deadline, theirs.to_owned()));
        for (started, group) in self.started.iter_mut().zip(groups) {
            started.remove(&(group.clone(), old, theirs.to_owned()));
            if is_started {
                started.insert((group, deadline, theirs.to_owned()));
            }
        }
    }

    /// Notes that one side has said that the session is over; the other may say so too.
    fn finish(&mut self, theirs: &str, side: Side, now: Instant) {
        let Some(proposal) = self.open.get_mut(theirs) else { return };
        proposal.finished[side] = true;
        if proposal.finished == PerSide::both(true) {
            self.remove(theirs);
        } else {
            let (stage, deadline) = (proposal.stage.clone(), proposal.deadline.min(now + START));
            self.advance(theirs, stage, deadline);
        }
    }

    /// Makes room after `full`: forgets the oldest started session of the user or of the user's domain.
    fn forget_started(&mut self, user: &BareJid, full: Full) -> bool {
        let [of_user, of_domain] = groups(&user.clone().into());
        let (started, group) = match full {
            Full::User => (&self.started[0], of_user),
            Full::Domain | Full::All => (&self.started[1], of_domain),
        };
        let oldest = started
            .range((group.clone(), self.began, String::new())..)
            .next()
            .filter(|(of, ..)| *of == group)
            .map(|(_, _, theirs)| theirs.clone());
        oldest.is_some_and(|theirs| self.remove(&theirs).is_some())
    }

    /// Forgets which resources have received a proposal, and frees its place among those to the callee: it no longer
    /// rings anywhere.
    fn leave_callee(&mut self, theirs: &str) {
        let Some(mut proposal) = self.open.remove(theirs) else { return };
        self.unlist(theirs, &mut proposal);
        self.open.insert(theirs.to_owned(), proposal);
    }

    fn unlist(&mut self, theirs: &str, proposal: &mut Proposal) {
        for Told { jid, .. } in &proposal.told {
            if let Some(told) = self.by_told.get_mut(jid) {
                told.ids.remove(theirs);
                if told.ids.is_empty() {
                    self.by_told.remove(jid);
                }
            }
        }
        self.free_at_callee(proposal);
    }

    fn free_at_callee(&mut self, proposal: &mut Proposal) {
        let place = proposal.place_at_callee.take();
        if let Some(place) = place
            && let Some(shares) = self.to_callees.get_mut(&proposal.callee)
        {
            shares.give_back(&place);
            if shares.taken() == 0 {
                self.to_callees.remove(&proposal.callee);
            }
        }
    }

    fn remove(&mut self, theirs: &str) -> Option<Proposal> {
        let mut proposal = self.open.remove(theirs)?;
        let over = self.hasher.hash_one((&proposal.callee, theirs));
        self.over.insert(over, proposal.answers);
        self.deadlines.remove(&(proposal.deadline, theirs.to_owned()));
        for (started, group) in self.started.iter_mut().zip(groups(&proposal.initiator)) {
            started.remove(&(group, proposal.deadline, theirs.to_owned()));
        }
        if let Some(ids) = self.by_initiator.get_mut(&proposal.initiator) {
            ids.remove(&proposal.id);
            if ids.is_empty() {
                self.by_initiator.remove(&proposal.initiator);
            }
        }
        self.unlist(theirs, &mut proposal);
        let ends = proposal.ends();
        if let Some(ids) = self.between.get_mut(&ends) {
            ids.remove(theirs);
            if ids.is_empty() {
                self.between.remove(&ends);
            }
        }
        for (shares, place) in self.shares.iter_mut().zip(&proposal.places) {
            shares.give_back(place);
        }
        Some(proposal)
    }
}

/// Returns the user and the domain of an initiator.
fn groups(initiator: &Jid) -> [String; 2] {
    [initiator.to_bare().to_string(), initiator.domain().to_string()]
}

/// Returns whether an element beside the one about the proposal is passed on: hints, and what is unknown to XMPP.
///
/// All else has a meaning of its own to the other user's client or server: a text, a copied message of somebody else, an
/// invitation, a time, an id, a question. The two users have agreed on nothing yet, and what comes from the address of a
/// contact here must not pass for more than it is.
fn is_kept(child: &Element) -> bool {
    let namespace = child.ns();
    child.is("private", ns::CARBONS)
        || namespace == ns::PROCESSING_HINTS
        || !OF_XMPP.iter().any(|begin| namespace.starts_with(begin))
}

/// Returns a proposal message's action and id.
pub fn read(stanza: &Stanza) -> Option<(String, String)> {
    let said = initiation::read(&stanza.element)?;
    Some((said.name().to_owned(), said.attr("id").unwrap_or_default().to_owned()))
}

#[cfg(test)]
mod tests;
