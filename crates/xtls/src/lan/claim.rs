//! Decides which program has a name on the local network: probing, conflict and defence of multicast DNS (RFC 6762, 8 and 9),
//! without a socket.
//!
//! A name is probed for three times; a program that has it answers, and we take the next name. From then on an
//! announcement of our name that is not ours is a conflict: we fall silent and probe again. If nobody answers, the name
//! stays ours and is announced again, which replaces what others have read; else we take the next name.
//!
//! Our host's name is a random label, so it is not probed for: two machines that are called the same, or this program
//! beside the machine's own responder, cannot come into each other's way.

use std::{collections::VecDeque, net::IpAddr, time::Duration};

use hickory_resolver::proto::{
    ProtoError,
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{SRV, TXT},
    },
    serialize::binary::BinEncodable,
};
use jid::BareJid;
use tokio::time::Instant;

/// The labels of the service that users announce (XEP-0174, 2).
const SERVICE: [&[u8]; 3] = [b"_presence", b"_tcp", b"local"];
/// How many bytes a label has at most (RFC 1035, 2.3.4).
pub(super) const LABEL: usize = 63;
/// How long records that name our host may be kept, in seconds (RFC 6762, 10).
const HOST_TTL: u32 = 120;
/// How long the others may be kept, in seconds.
const OTHER_TTL: u32 = 4500;
/// How often a name is probed for.
const PROBES: u8 = 3;
/// The time between two probes, and after the last (RFC 6762, 8.1).
const INTERVAL: Duration = Duration::from_millis(250);
/// How long the loser of two simultaneous probes waits (RFC 6762, 8.2).
const DEFER: Duration = Duration::from_secs(1);
/// So many conflicts in [`CONFLICTS_WITHIN`] make us wait for [`CALM`] before each further probe (RFC 6762, 8.1).
const MANY_CONFLICTS: usize = 15;
const CONFLICTS_WITHIN: Duration = Duration::from_secs(10);
const CALM: Duration = Duration::from_secs(5);
/// Our records are announced again at most so often for what others say about them.
const RESTATE: Duration = Duration::from_secs(1);
/// So many notices of a defence are given in [`NOTICES_WITHIN`]: a forger cannot fill a log.
const MANY_NOTICES: usize = 8;
const NOTICES_WITHIN: Duration = Duration::from_secs(600);

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ClaimAction {
    /// Multicast this message on every interface.
    Send(Vec<u8>),
    /// The name is ours: announce it on every interface and answer for it.
    Announce,
    /// Answer nothing, without a goodbye: the name may belong to another program.
    Mute,
    /// Tell the user.
    Tell(Notice),
}

/// What a user must know of the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// Another program announced other records under our name, or ended ours, and did not answer our probes.
    Defended {
        /// What was announced.
        forged: Forged,
    },
    /// Another program has the name that the user knows; we have the next one now.
    Renamed {
        /// The name that another program has.
        from: BareJid,
        /// Ours.
        to: BareJid,
    },
}

/// A false record about us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Forged {
    /// Another host and port of our name.
    Place(String),
    /// Other properties of our name.
    Properties,
    /// Another address of our host.
    Address(IpAddr),
    /// That we are gone.
    Goodbye,
}

#[derive(Debug)]
enum ClaimState {
    /// `sent` probes are out; the next step is due at `due`. What made us ask again, if we had the name.
    Probing {
        sent: u8,
        due: Instant,
        forged: Option<Forged>,
    },
    Held,
}

/// The claim to a name. Messages go in by [`Claim::handle_message`], time by [`Claim::handle_deadline`]; after either,
/// actions come out of [`Claim::poll_action`] until there are none.
#[derive(Debug)]
pub(super) struct Claim {
    name: BareJid,
    /// The name that the user knows us by.
    told: BareJid,
    host: String,
    /// The label before this one: what we said with it may still come back.
    former_host: Option<String>,
    port: u16,
    txt: Vec<String>,
    state: ClaimState,
    conflicts: VecDeque<Instant>,
    notices: VecDeque<Instant>,
    restated: Option<Instant>,
    actions: VecDeque<ClaimAction>,
}

impl Claim {
    /// Claims `name` for a program at `port` of the machine that the label `host` stands for. The first probe is due
    /// after `delay`, which is to be random and below a quarter of a second.
    pub(super) fn new(
        name: BareJid,
        host: String,
        port: u16,
        now: Instant,
        delay: Duration,
    ) -> Self {
        let txt = properties(port).map(|(key, value)| format!("{key}={value}")).to_vec();
        Self {
            told: name.clone(),
            name,
            host,
            former_host: None,
            port,
            txt,
            state: ClaimState::Probing { sent: 0, due: now + delay, forged: None },
            conflicts: VecDeque::new(),
            notices: VecDeque::new(),
            restated: None,
            actions: VecDeque::new(),
        }
    }

    /// Returns the claimed name.
    pub(super) fn name(&self) -> &BareJid {
        &self.name
    }

    /// Returns the full name of our host.
    pub(super) fn host(&self) -> String {
        format!("{}.local.", self.host)
    }

    /// Returns when [`Claim::handle_deadline`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.state {
            ClaimState::Probing { due, .. } => Some(due),
            ClaimState::Held => None,
        }
    }

    /// Returns the next action.
    pub(super) fn poll_action(&mut self) -> Option<ClaimAction> {
        self.actions.pop_front()
    }

    /// Tells the claim that time has passed. A call that is too early does nothing.
    pub(super) fn handle_deadline(&mut self, now: Instant) {
        let ClaimState::Probing { sent, due, forged } = &mut self.state else { return };
        if now < *due {
            return;
        }
        if *sent < PROBES {
            *sent += 1;
            *due = now + INTERVAL;
            match self.probe() {
                Ok(message) => self.actions.push_back(ClaimAction::Send(message)),
                Err(error) => tracing::warn!(%error, "no probe"),
            }
            return;
        }
        let forged = forged.take();
        self.state = ClaimState::Held;
        self.actions.push_back(ClaimAction::Announce);
        if self.told != self.name {
            let from = std::mem::replace(&mut self.told, self.name.clone());
            self.actions
                .push_back(ClaimAction::Tell(Notice::Renamed { from, to: self.name.clone() }));
        } else if let Some(forged) = forged {
            self.tell(forged, now);
        }
    }

    /// Tells the claim that the machine is on another network now, where another program may have the name.
    pub(super) fn handle_network(&mut self, now: Instant) {
        match &mut self.state {
            ClaimState::Probing { sent, due, .. } => {
                *sent = 0;
                *due = now.max(*due);
            }
            ClaimState::Held => {
                self.state = ClaimState::Probing { sent: 0, due: now, forged: None }
            }
        }
    }

    /// Reads a message. `is_own` tells whether an address is one of this machine's.
    pub(super) fn handle_message(
        &mut self,
        bytes: &[u8],
        is_own: impl Fn(IpAddr) -> bool,
        now: Instant,
    ) {
        let Ok(message) = Message::from_vec(bytes) else { return };
        let metadata = &message.metadata;
        // Others are to be ignored (RFC 6762, 18.3 and 18.11).
        if metadata.op_code != OpCode::Query || metadata.response_code != ResponseCode::NoError {
            return;
        }
        if metadata.message_type == MessageType::Query {
            return self.break_tie(&message, now);
        }
        let records = message.answers.iter().chain(&message.additionals);
        let mut forged: Vec<_> = records.filter_map(|record| self.judge(record, &is_own)).collect();
        // What matters most first: a message may have several records.
        forged.sort_by_key(|forged| match forged {
            Forged::Place(_) | Forged::Properties => 0,
            Forged::Address(_) => 1,
            Forged::Goodbye => 2,
        });
        match forged.into_iter().next() {
            None => {}
            Some(Forged::Goodbye) => self.restate(now),
            Some(forged @ Forged::Address(_)) => self.leave_host(forged, now),
            Some(forged) => self.conflict(forged, now),
        }
    }

    /// Returns what a record says about us that we do not say.
    fn judge(&self, record: &Record, is_own: impl Fn(IpAddr) -> bool) -> Option<Forged> {
        // The top bit says that what was known before is to be forgotten (RFC 6762, 10.2).
        if u16::from(record.dns_class) & 0x7fff != u16::from(DNSClass::IN) {
            return None;
        }
        let forged = match &record.data {
            RData::SRV(srv) if record.name == self.instance()? => {
                let is_former = self.former_host.as_ref().and_then(|host| self.srv_at(host));
                if is_former.as_ref() == Some(srv) {
                    return None;
                }
                let place = || Forged::Place(format!("{}:{}", srv.target, srv.port));
                (*srv != self.srv_at(&self.host)?).then(place)
            }
            RData::TXT(txt) if record.name == self.instance()? => {
                (*txt != self.txt()).then_some(Forged::Properties)
            }
            RData::PTR(target) if record.name == service()? && target.0 == self.instance()? => None,
            RData::A(ip) if record.name == self.host_name()? => {
                let ip = IpAddr::V4(ip.0);
                (!is_own(ip)).then_some(Forged::Address(ip))
            }
            RData::AAAA(ip) if record.name == self.host_name()? => {
                let ip = IpAddr::V6(ip.0);
                (!is_own(ip)).then_some(Forged::Address(ip))
            }
            _ => return None,
        };
        // A record of ours that others are to forget much earlier than we say (RFC 6762, 6.6).
        let is_host = matches!(record.data, RData::SRV(_) | RData::A(_) | RData::AAAA(_));
        let ttl = if is_host { HOST_TTL } else { OTHER_TTL };
        match forged {
            // The end of a record that is not ours is not a conflict.
            Some(forged) => (record.ttl > 0).then_some(forged),
            None => (record.ttl < ttl / 2).then_some(Forged::Goodbye),
        }
    }

    /// Handles a record of another program that has our name, or says so.
    fn conflict(&mut self, forged: Forged, now: Instant) {
        let is_calm =
            matches!(self.state, ClaimState::Probing { sent: 0, due, .. } if due > now + DEFER);
        if is_calm {
            return;
        }
        remember(&mut self.conflicts, now, CONFLICTS_WITHIN, MANY_CONFLICTS);
        let due = if self.conflicts.len() < MANY_CONFLICTS { now } else { now + CALM };
        self.actions.push_back(ClaimAction::Mute);
        if matches!(self.state, ClaimState::Held) {
            self.state = ClaimState::Probing { sent: 0, due, forged: Some(forged) };
            return;
        }
        if let Some(next) = next_name(&self.name) {
            self.name = next;
        }
        self.state = ClaimState::Probing { sent: 0, due, forged: None };
    }

    /// Handles another address of our host: we take the next label.
    fn leave_host(&mut self, forged: Forged, now: Instant) {
        if !matches!(self.state, ClaimState::Held) || !self.may_restate(now) {
            return;
        }
        let next = numbered(&self.host, LABEL);
        self.former_host = Some(std::mem::replace(&mut self.host, next));
        self.actions.push_back(ClaimAction::Announce);
        self.tell(forged, now);
    }

    /// Handles a false goodbye: our records are announced again.
    fn restate(&mut self, now: Instant) {
        if !matches!(self.state, ClaimState::Held) || !self.may_restate(now) {
            return;
        }
        self.actions.push_back(ClaimAction::Announce);
        self.tell(Forged::Goodbye, now);
    }

    fn may_restate(&mut self, now: Instant) -> bool {
        if self.restated.is_some_and(|last| now < last + RESTATE) {
            return false;
        }
        self.restated = Some(now);
        true
    }

    fn tell(&mut self, forged: Forged, now: Instant) {
        if remember(&mut self.notices, now, NOTICES_WITHIN, MANY_NOTICES) {
            self.actions.push_back(ClaimAction::Tell(Notice::Defended { forged }));
        }
    }

    /// Handles a probe of another program at the same time: the later data wins (RFC 6762, 8.2). A probe for a name that we
    /// hold is answered like every query.
    fn break_tie(&mut self, message: &Message, now: Instant) {
        let ClaimState::Probing { sent: 1.., .. } = self.state else { return };
        let Some(instance) = self.instance() else { return };
        let mut theirs: Vec<_> =
            message.authorities.iter().filter(|r| r.name == instance).filter_map(order).collect();
        let mut ours: Vec<_> = self.records().iter().filter_map(order).collect();
        theirs.sort();
        ours.sort();
        if theirs.is_empty() || ours >= theirs {
            return;
        }
        if let ClaimState::Probing { sent, due, .. } = &mut self.state {
            *sent = 0;
            *due = now + DEFER;
        }
    }

    fn probe(&self) -> Result<Vec<u8>, ProtoError> {
        let mut message = Message::new(0, MessageType::Query, OpCode::Query);
        if let Some(instance) = self.instance() {
            // Not to be answered by unicast: another program of this machine may get what comes to the port.
            message.add_query(Query::query(instance, RecordType::ANY));
        }
        message.authorities = self.records();
        message.to_vec()
    }

    /// Returns the records that only we may have.
    fn records(&self) -> Vec<Record> {
        let (Some(instance), Some(srv)) = (self.instance(), self.srv_at(&self.host)) else {
            return Vec::new();
        };
        vec![
            Record::from_rdata(instance.clone(), HOST_TTL, RData::SRV(srv)),
            Record::from_rdata(instance, OTHER_TTL, RData::TXT(self.txt())),
        ]
    }

    fn instance(&self) -> Option<Name> {
        zone([self.name.as_str().as_bytes()].into_iter().chain(SERVICE))
    }

    fn host_name(&self) -> Option<Name> {
        in_zone(&self.host)
    }

    fn srv_at(&self, host: &str) -> Option<SRV> {
        Some(SRV::new(0, 0, self.port, in_zone(host)?))
    }

    fn txt(&self) -> TXT {
        TXT::new(self.txt.clone())
    }
}

/// Returns the name that a claim to `name` ends with if others send this message twice, and nothing else.
pub(crate) fn name_after(message: &[u8], name: BareJid, now: Instant) -> BareJid {
    let mut claim = Claim::new(name, "0123456789abcdef".to_owned(), 5298, now, Duration::ZERO);
    let quiet = |claim: &mut Claim, mut now: Instant| {
        while let Some(deadline) = claim.deadline() {
            now = deadline;
            claim.handle_deadline(now);
        }
        now
    };
    let now = quiet(&mut claim, now);
    claim.handle_message(message, |_| false, now);
    claim.handle_message(message, |_| false, now);
    quiet(&mut claim, now);
    claim.name
}

/// Returns the properties that a listener at `port` announces: only what another program needs, nothing personal.
pub(super) fn properties(port: u16) -> [(&'static str, String); 3] {
    let text = str::to_owned;
    [("txtvers", text("1")), ("port.p2pj", port.to_string()), ("status", text("avail"))]
}

fn service() -> Option<Name> {
    zone(SERVICE)
}

fn in_zone(host: &str) -> Option<Name> {
    zone([host.as_bytes(), b"local"])
}

fn zone<'a>(labels: impl IntoIterator<Item = &'a [u8]>) -> Option<Name> {
    Name::from_labels(labels).ok()
}

/// Returns the key by which records of one name are ordered (RFC 6762, 8.2.1): class, type and data.
fn order(record: &Record) -> Option<(u16, u16, Vec<u8>)> {
    let class = u16::from(record.dns_class) & 0x7fff;
    Some((class, record.record_type().into(), record.data.to_bytes().ok()?))
}

/// Adds `now` to the times within `span`; returns false if there are `most` already.
fn remember(times: &mut VecDeque<Instant>, now: Instant, span: Duration, most: usize) -> bool {
    while times.front().is_some_and(|time| now >= *time + span) {
        times.pop_front();
    }
    if times.len() >= most {
        return false;
    }
    times.push_back(now);
    true
}

/// Returns the name to try after this one: `bob@pronto`, `bob@pronto-2`, `bob@pronto-3`.
fn next_name(name: &BareJid) -> Option<BareJid> {
    let (user, machine) = (name.node()?, name.domain().as_str());
    let (first, rest) = match machine.split_once('.') {
        Some((first, rest)) => (first, format!(".{rest}")),
        None => (machine, String::new()),
    };
    // The user keeps a letter at least.
    let machine = numbered(first, LABEL.saturating_sub(rest.len() + 2)) + &rest;
    let user = cut(user.as_str(), LABEL.saturating_sub(machine.len() + 1));
    BareJid::new(&format!("{user}@{machine}")).ok()
}

/// Appends the next number to a text, in `most` bytes, as Avahi numbers hosts: `pronto`, `pronto-2`, `pronto-3`.
fn numbered(text: &str, most: usize) -> String {
    let numbered = text.rsplit_once('-').and_then(|(head, digits)| {
        let is_number = !digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit());
        let next = digits.parse::<u32>().ok().filter(|_| is_number)?.checked_add(1)?;
        Some((head, next))
    });
    let (head, number) = numbered.unwrap_or((text, 2));
    let tail = format!("-{number}");
    format!("{}{tail}", cut(head, most.saturating_sub(tail.len())))
}

/// Returns the beginning of a text, in `most` bytes.
fn cut(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_resolver::proto::rr::rdata::{A, PTR};

    use super::*;

    const OWN: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1));

    fn is_own(ip: IpAddr) -> bool {
        ip == OWN
    }

    fn bob() -> BareJid {
        BareJid::new("bob@pronto").unwrap()
    }

    /// A program on the network, and what it has done.
    struct Program {
        claim: Claim,
        sent: Vec<Vec<u8>>,
        answers: bool,
        told: Vec<Notice>,
    }

    impl Program {
        fn new(host: &str, port: u16, now: Instant) -> Self {
            let claim = Claim::new(bob(), host.to_owned(), port, now, Duration::ZERO);
            Self { claim, sent: Vec::new(), answers: false, told: Vec::new() }
        }

        fn act(&mut self) {
            while let Some(action) = self.claim.poll_action() {
                match action {
                    ClaimAction::Send(message) => self.sent.push(message),
                    ClaimAction::Announce => {
                        self.answers = true;
                        self.sent.push(self.announcement(HOST_TTL));
                    }
                    ClaimAction::Mute => self.answers = false,
                    ClaimAction::Tell(notice) => self.told.push(notice),
                }
            }
        }

        fn hear(&mut self, message: &[u8], now: Instant) {
            self.claim.handle_message(message, is_own, now);
            self.act();
            let query = Message::from_vec(message).unwrap();
            let asked = |name: Name| query.queries.iter().any(|query| *query.name() == name);
            let is_query = query.metadata.message_type == MessageType::Query;
            if self.answers && is_query && asked(self.claim.instance().unwrap()) {
                self.sent.push(self.announcement(HOST_TTL));
            }
        }

        fn announcement(&self, ttl: u32) -> Vec<u8> {
            let mut records = self.claim.records();
            let (service, instance) = (service().unwrap(), self.claim.instance().unwrap());
            records.push(Record::from_rdata(service, OTHER_TTL, RData::PTR(PTR(instance))));
            for record in &mut records {
                record.ttl = record.ttl.min(ttl * OTHER_TTL);
            }
            response(records)
        }
    }

    fn response(records: Vec<Record>) -> Vec<u8> {
        let mut message = Message::new(0, MessageType::Response, OpCode::Query);
        message.answers = records;
        message.to_vec().unwrap()
    }

    /// Lets time pass; what one sends, all hear, itself too.
    fn drive(programs: &mut [&mut Program], now: &mut Instant, time: Duration) {
        let end = *now + time;
        while *now <= end {
            for program in programs.iter_mut() {
                program.claim.handle_deadline(*now);
                program.act();
            }
            loop {
                let sent: Vec<_> =
                    programs.iter_mut().flat_map(|program| program.sent.drain(..)).collect();
                if sent.is_empty() {
                    break;
                }
                for message in &sent {
                    programs.iter_mut().for_each(|program| program.hear(message, *now));
                }
            }
            *now += Duration::from_millis(10);
        }
    }

    fn held(now: &mut Instant) -> Program {
        let mut program = Program::new("a", 1, *now);
        drive(&mut [&mut program], now, Duration::from_secs(2));
        assert!(program.answers && program.told.is_empty(), "{:?}", program.told);
        program
    }

    fn names(programs: &[&Program]) -> Vec<String> {
        let mut names: Vec<_> = programs.iter().map(|p| p.claim.name().to_string()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_name_that_nobody_has_is_taken_after_three_probes() {
        let mut now = Instant::now();
        let mut program = Program::new("a", 1, now);
        let mut probes = 0;
        while !program.answers {
            program.claim.handle_deadline(now);
            program.act();
            probes += program.sent.drain(..).filter(|_| !program.answers).count();
            now += Duration::from_millis(10);
        }
        assert_eq!(probes, 3);
        // What others hear from it, it hears too.
        let own = program.announcement(HOST_TTL);
        program.hear(&own, now);
        assert_eq!((program.answers, program.claim.deadline()), (true, None));
    }

    #[test]
    fn who_comes_second_takes_the_next_name_and_is_told_once() {
        let mut now = Instant::now();
        let mut first = held(&mut now);
        let mut second = Program::new("b", 2, now);
        drive(&mut [&mut first, &mut second], &mut now, Duration::from_secs(3));
        let mut third = Program::new("c", 3, now);
        drive(&mut [&mut first, &mut second, &mut third], &mut now, Duration::from_secs(3));
        assert_eq!(
            names(&[&first, &second, &third]),
            ["bob@pronto", "bob@pronto-2", "bob@pronto-3"]
        );
        assert_eq!(first.told, []);
        let to = BareJid::new("bob@pronto-3").unwrap();
        assert_eq!(third.told, [Notice::Renamed { from: bob(), to }]);
    }

    #[test]
    fn of_two_that_probe_at_once_one_takes_the_name() {
        let mut now = Instant::now();
        let (mut first, mut second) = (Program::new("a", 1, now), Program::new("b", 2, now));
        drive(&mut [&mut first, &mut second], &mut now, Duration::from_secs(5));
        assert_eq!(names(&[&first, &second]), ["bob@pronto", "bob@pronto-2"]);
        assert!(first.answers && second.answers);
        assert_eq!(second.claim.name(), &bob(), "the later data wins");
    }

    #[test]
    fn of_two_networks_that_become_one_one_program_keeps_the_name() {
        let mut now = Instant::now();
        let (mut first, mut second) = (Program::new("a", 1, now), Program::new("b", 2, now));
        drive(&mut [&mut first], &mut now, Duration::from_secs(2));
        drive(&mut [&mut second], &mut now, Duration::from_secs(2));
        second.claim.handle_network(now);
        drive(&mut [&mut first, &mut second], &mut now, Duration::from_secs(5));
        assert_eq!(names(&[&first, &second]), ["bob@pronto", "bob@pronto-2"]);
        assert!(first.answers && second.answers);
    }

    #[test]
    fn what_is_forged_is_defended_and_told() {
        let mut now = Instant::now();
        let mut program = held(&mut now);
        let forger = Program::new("f", 66, now);
        let host = program.claim.host_name().unwrap();
        let forged_ip = Ipv4Addr::new(10, 77, 0, 66);
        let address = |ip| Record::from_rdata(host.clone(), HOST_TTL, RData::A(A(ip)));
        let txt = RData::TXT(TXT::new(vec!["status=dnd".to_owned()]));
        let txt = Record::from_rdata(program.claim.instance().unwrap(), OTHER_TTL, txt);
        let mut goodbye = program.claim.records();
        goodbye.iter_mut().for_each(|record| record.ttl = 0);
        for (message, forged) in [
            (forger.announcement(HOST_TTL), Forged::Place("f.local.:66".to_owned())),
            (response(vec![txt]), Forged::Properties),
            (response(goodbye), Forged::Goodbye),
            (response(vec![address(forged_ip)]), Forged::Address(forged_ip.into())),
        ] {
            program.hear(&message, now);
            drive(&mut [&mut program], &mut now, Duration::from_secs(2));
            assert_eq!(program.told.pop(), Some(Notice::Defended { forged }));
            assert!(program.answers && *program.claim.name() == bob());
        }
        // The label is left to the forger.
        assert_eq!(program.claim.host(), "a-2.local.");
        let mut ended = forger.claim.records();
        ended.iter_mut().for_each(|record| record.ttl = 0);
        // Our own addresses, the end of others, other names, errors and rubbish are none of it.
        for message in [
            response(vec![address(Ipv4Addr::new(10, 77, 0, 1))]),
            response(ended),
            response(vec![Record::from_rdata(service().unwrap(), 1, RData::A(A(forged_ip)))]),
            b"rubbish".to_vec(),
        ] {
            program.claim.handle_message(&message, is_own, now);
            assert_eq!(program.claim.poll_action(), None);
        }
    }

    #[test]
    fn a_name_that_somebody_else_answers_for_is_given_up() {
        let mut now = Instant::now();
        let mut program = held(&mut now);
        let mut forger = Program::new("f", 66, now);
        (forger.answers, forger.claim.state) = (true, ClaimState::Held);
        program.hear(&forger.announcement(HOST_TTL), now);
        assert!(!program.answers, "silent while it asks");
        // Only ours reacts to a conflict: the forger goes on.
        for _ in 0..300 {
            program.claim.handle_deadline(now);
            program.act();
            for probe in std::mem::take(&mut program.sent) {
                let name = program.claim.name() == forger.claim.name();
                let is_query = Message::from_vec(&probe).unwrap().queries.len() == 1;
                if name && is_query {
                    program.hear(&forger.announcement(HOST_TTL), now);
                }
            }
            now += Duration::from_millis(10);
        }
        let to = BareJid::new("bob@pronto-2").unwrap();
        assert_eq!(program.told, [Notice::Renamed { from: bob(), to }]);
    }

    #[test]
    fn a_flood_of_conflicts_slows_us_down_and_fills_no_log() {
        let mut now = Instant::now();
        let mut program = held(&mut now);
        let begun = now;
        let mut renamed = 0;
        while now < begun + Duration::from_secs(60) {
            let name = program.claim.name().clone();
            let forger = Program {
                claim: Claim::new(name.clone(), "f".to_owned(), 66, now, Duration::ZERO),
                ..Program::new("f", 66, now)
            };
            program.hear(&forger.announcement(HOST_TTL), now);
            renamed += usize::from(*program.claim.name() != name);
            now += Duration::from_millis(10);
            program.claim.handle_deadline(now);
            program.act();
        }
        assert!(renamed < 100 && program.told.len() <= 1, "{renamed} {:?}", program.told);

        let mut program = held(&mut now);
        for _ in 0..100 {
            let forger = Program::new("f", 66, now);
            program.hear(&forger.announcement(HOST_TTL), now);
            drive(&mut [&mut program], &mut now, Duration::from_secs(3));
        }
        assert_eq!(program.told.len(), MANY_NOTICES);
        assert_eq!(program.claim.name(), &bob());
    }

    #[test]
    fn names_are_numbered_within_a_label() {
        let next = |name: &str| next_name(&BareJid::new(name).unwrap()).unwrap().to_string();
        assert_eq!(next("bob@pronto"), "bob@pronto-2");
        assert_eq!(next("bob@pronto-2"), "bob@pronto-3");
        assert_eq!(next("bob@pronto-9"), "bob@pronto-10");
        assert_eq!(next("bob@ward-07"), "bob@ward-07-2");
        assert_eq!(next("bob@pronto.local"), "bob@pronto-2.local");
        let long = "é".repeat(20);
        for name in [
            format!("{}@pronto", "b".repeat(56)),
            format!("bob@{}", "p".repeat(59)),
            format!("{long}@{long}"),
        ] {
            let name = next(&name);
            assert!(name.len() <= LABEL && name.ends_with("-2"), "{name}");
        }
    }
}
