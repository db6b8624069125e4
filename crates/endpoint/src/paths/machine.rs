//! One stream over up to two paths, as plain state: bytes and time in, bytes and events out.
//!
//! The bytes of each direction have numbers. A path says from which byte on it carries the stream, the receiver puts
//! together what comes, and the sender keeps what is not acknowledged. When a path is lost, the sender goes on over the
//! other one, from the last boundary of a record that the receiver had taken. If there is no other one, it waits for a
//! new leg of the relay. The rules are in docs/PROTOCOL.md.

use std::{
    collections::VecDeque,
    fmt,
    time::{Duration, Instant},
};

use super::{
    backlog::Backlog,
    incoming::Incoming,
    outgoing::Outgoing,
    records::{Control, Decoded, Decoder, RecordError},
};

/// The most bytes of one direction that are sent and not acknowledged.
pub(super) const WINDOW: u64 = 4 << 20;
/// The number of the relay's first leg; direct connections have numbers from 1 on.
pub(super) const RELAY: u32 = 0;
/// Later legs of the relay have numbers from this one on.
pub(super) const LATER: u32 = 1 << 31;
/// How far a number that the TLS client gives may be above the highest one. The client counts up one by one, but the server may miss
/// a few of the numbers. Anyone who carries a path can forge a number. Above a forged number near the end of the range, none would be
/// left.
const FURTHEST: u32 = 1 << 10;
/// How long a stream without a path waits for a new leg of the relay.
pub(super) const RENEWAL: Duration = Duration::from_secs(20);
/// How long a direct path is silent until this side asks for a sign of life, and until this side gives one.
const PING_AFTER: Duration = Duration::from_millis(500);
/// How long a direct path that owes an answer may be silent. It is longer if round trips take long.
const SILENCE: Duration = Duration::from_millis(1500);
/// The longest such time, whatever the other end makes of round trips, and that beside another path. If this one works after all, the
/// move costs a few bytes twice; until then the stream stands still.
const LONGEST_SILENCE: Duration = Duration::from_secs(10);
const LONGEST_BESIDE: Duration = Duration::from_secs(2);
/// How long the relay may deliver nothing of what it still holds when the stream leaves it. It is longer if round trips take
/// long.
const DRAIN: Duration = Duration::from_millis(500);
/// How long nothing is sent on an idle direct path.
const IDLE_DIRECT: Duration = Duration::from_secs(15);
/// The same on the relay while a direct path is in use: the component ends silent streams.
const IDLE_RELAY: Duration = Duration::from_secs(60);
/// How long a stream without a path may replace lost legs by new ones on which nothing comes.
const STANDSTILL: Duration = Duration::from_secs(60);
/// How long nothing may have come on a new leg of the relay when the other end reports that it has none. The report may have been
/// under way for seconds.
const MUTE: Duration = Duration::from_secs(15);
/// The most sealed messages that wait for their reader.
const SEALED: usize = 4;

/// Returns whether a number is that of a direct connection, and not of a leg of the relay.
pub(super) fn is_direct(number: u32) -> bool {
    (RELAY + 1..LATER).contains(&number)
}

/// What the other end did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A record is malformed.
    Record(RecordError),
    /// A byte is outside the window.
    Window { offset: u64 },
    /// A byte was acknowledged that was not sent.
    NotSent { offset: u64, sent: u64 },
    /// There are bytes after the end, or a second end.
    AfterEnd { end: u64, offset: u64 },
    /// Bytes came on a new path before it said where it begins.
    Unannounced,
    /// Bytes were left out, and no other path can have them.
    Missing { offset: u64 },
    /// Bytes are missing in too many places.
    Gaps,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record(error) => write!(f, "{error}"),
            Self::Window { offset } => write!(f, "byte {offset} is outside of the window"),
            Self::NotSent { offset, sent } => {
                write!(f, "byte {offset} was acknowledged, and {sent} were sent")
            }
            Self::AfterEnd { end, offset } => {
                write!(f, "the stream ended at byte {end}, and there is byte {offset}")
            }
            Self::Unannounced => f.write_str("a new path did not say where it begins"),
            Self::Missing { offset } => write!(f, "bytes before byte {offset} were left out"),
            Self::Gaps => f.write_str("too many bytes are missing in between"),
        }
    }
}

impl std::error::Error for Fault {}

impl From<RecordError> for Fault {
    fn from(error: RecordError) -> Self {
        Self::Record(error)
    }
}

/// What the owner of the connections has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The path with this number has ended: its connection is no longer needed.
    Closed(u32),
    /// Our stream goes on over this path.
    Moved(u32),
    /// A message that only the two ends can read.
    Sealed(Vec<u8>),
}

/// What a stream lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Nothing.
    Nothing,
    /// A leg of the relay, beside the direct connection that it is on.
    Relay,
    /// A better path: the only one is a leg of the relay that does not answer, but may come to life again.
    Better,
    /// Any path: it stands still.
    Path,
}

/// Which side chooses among direct connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The TLS client: it numbers them.
    Chooses,
    /// The TLS server.
    Follows,
}

/// One end of a stream over a relay and, at times, a direct connection.
///
/// The owner calls [`receive`](Self::receive) with what comes on a path, [`transmit`](Self::transmit) for what to send on
/// it, and [`handle_deadline`](Self::handle_deadline) at the time that [`deadline`](Self::deadline) says. After each of
/// them there may be [events](Self::poll_event), and more to transmit.
#[derive(Debug)]
pub(super) struct Machine {
    role: Role,
    outgoing: Outgoing,
    incoming: Incoming,
    /// The relay's path and a direct one, as long as they live.
    paths: Vec<Path>,
    /// The path that our stream goes on.
    current: u32,
    /// The highest number of a direct connection that either side has used or given up.
    newest: u32,
    /// The same of the relay's legs.
    leg: u32,
    /// Whether anything has come on the newest direct connection.
    has_answer: bool,
    /// Whether a lost leg of the relay may be replaced.
    renews: bool,
    /// Until when the stream, which has no path, waits for one.
    until: Option<Instant>,
    /// Since when nothing has come, if it has lost its last path since then.
    stands_since: Option<Instant>,
    /// Sealed messages that wait for the path.
    sealed: VecDeque<Vec<u8>>,
    events: VecDeque<Event>,
    next_ping: u32,
    fault: Option<Fault>,
}

/// One path, in both directions.
#[derive(Debug)]
struct Path {
    number: u32,
    /// Since when it is in use, and whether anything has come on it.
    since: Instant,
    has_answer: bool,
    decoder: Decoder,
    /// Which byte of the other end's stream comes next here, once it has said so.
    next: Option<u64>,
    /// Which byte of our stream comes next here, if it goes on here.
    position: u64,
    /// Whether the position has to be announced first.
    announces: bool,
    /// Whether the end of our stream was sent here.
    ended: bool,
    /// Up to which byte our stream was sent here.
    sent: u64,
    /// Up to which byte another path has carried our stream too. An acknowledgement of these bytes does not show that this path works.
    shared: u64,
    /// What the relay still holds of our stream, if the stream has moved here.
    backlog: Option<Backlog>,
    /// What is sent again here before our stream goes on.
    repeated: Option<Repeated>,
    claims: bool,
    ping: Option<u32>,
    pong: Option<u32>,
    lost: Option<u32>,
    /// Whether an acknowledgement goes out here as a sign of life.
    echoes: bool,
    /// The last ping and its time, until it is answered.
    asked: Option<(u32, Instant)>,
    /// Since when an answer is owed and nothing has come.
    silent_since: Option<Instant>,
    /// When the first bytes came after we last sent something here.
    heard: Option<Instant>,
    /// Until when something must have come, because this machine's addresses have changed.
    doubted: Option<Instant>,
    /// Whether nothing had come by then. The relay may only be slow, so its leg stays until there is another one.
    is_suspect: bool,
    /// When something was last sent here.
    quiet_since: Instant,
    round_trip: Option<Duration>,
}

/// What the relay has not delivered in time.
#[derive(Clone, Copy, Debug)]
struct Repeated {
    /// Where it ends.
    end: u64,
    /// Where our stream goes on after it.
    resume: u64,
}

impl Path {
    fn new(number: u32, now: Instant) -> Self {
        Self {
            number,
            since: now,
            has_answer: false,
            decoder: Decoder::default(),
            next: None,
            position: 0,
            announces: true,
            ended: false,
            sent: 0,
            shared: 0,
            backlog: None,
            repeated: None,
            claims: false,
            ping: None,
            pong: None,
            lost: None,
            echoes: false,
            asked: None,
            silent_since: None,
            heard: None,
            doubted: None,
            is_suspect: false,
            quiet_since: now,
            round_trip: None,
        }
    }

    fn is_direct(&self) -> bool {
        is_direct(self.number)
    }

    /// Returns how long the path may owe an answer.
    fn patience(&self) -> Duration {
        self.round_trips(SILENCE)
    }

    /// Returns a time, or that of four round trips if it is longer.
    fn round_trips(&self, least: Duration) -> Duration {
        let usual = self.round_trip.map_or(least, |time| time.saturating_mul(4).max(least));
        usual.min(LONGEST_SILENCE)
    }

    /// Returns when something of what the relay holds may have to be sent again here.
    fn repeats_at(&self) -> Option<Instant> {
        self.backlog.as_ref().map(|backlog| backlog.deadline(self.round_trips(DRAIN)))
    }

    /// Sends again here what the relay does not deliver in time.
    fn repeat(&mut self, outgoing: &Outgoing, now: Instant) {
        let period = self.round_trips(DRAIN);
        let Some(backlog) = &mut self.backlog else { return };
        let acknowledged = outgoing.acknowledged();
        let boundary = |offset| outgoing.boundary(offset);
        let Some(late) = backlog.repeat(acknowledged, boundary, period, now) else { return };
        self.backlog.take_if(|_| late.start <= acknowledged);
        // An earlier repetition that is still under way keeps the place where our stream resumes.
        let new = Repeated { end: late.end, resume: self.position };
        self.repeated.get_or_insert(new);
        (self.position, self.announces) = (late.start, true);
    }

    /// Lets our stream go on here from `kept`, because no other path has all of it now.
    fn rewind(&mut self, kept: u64) {
        (self.position, self.announces, self.ended) = (kept, true, false);
        (self.backlog, self.repeated) = (None, None);
    }

    /// Notes a sign of life; `owes` says whether bytes sent here are not acknowledged.
    fn lives(&mut self, owes: bool, now: Instant) {
        self.silent_since = owes.then_some(now);
        (self.doubted, self.is_suspect) = (None, false);
    }

    /// Returns when to ask for a sign of life.
    fn ping_at(&self, is_parted: bool) -> Option<Instant> {
        if self.ping.is_some() || !is_parted {
            return None;
        }
        if !self.is_direct() {
            return Some(self.quiet_since + IDLE_RELAY);
        }
        match self.silent_since {
            Some(since) if self.asked.is_some_and(|(_, at)| at >= since) => None,
            Some(since) => Some(since + PING_AFTER),
            None => Some(self.quiet_since + IDLE_DIRECT),
        }
    }

    /// Takes a measured round trip. A shorter one counts at once. A longer one may have spent its time in an outage, or in our own queue:
    /// only several of them count.
    fn measure(&mut self, time: Duration) {
        let known = self.round_trip.unwrap_or(time);
        self.round_trip = Some(time.min(known + time.saturating_sub(known) / 8));
    }

    fn echo_at(&self) -> Option<Instant> {
        self.heard.filter(|_| self.is_direct() && !self.echoes).map(|heard| heard + PING_AFTER)
    }
}

impl Machine {
    /// Creates the state of a stream that starts on the relay.
    pub(super) fn new(role: Role, now: Instant) -> Self {
        let relay = Path { next: Some(0), announces: false, ..Path::new(RELAY, now) };
        Self {
            role,
            outgoing: Outgoing::default(),
            incoming: Incoming::default(),
            paths: vec![relay],
            current: RELAY,
            newest: RELAY,
            leg: RELAY,
            has_answer: false,
            renews: false,
            until: None,
            stands_since: None,
            sealed: VecDeque::new(),
            events: VecDeque::new(),
            next_ping: 0,
            fault: None,
        }
    }

    fn path(&mut self, number: u32) -> Option<&mut Path> {
        self.paths.iter_mut().find(|path| path.number == number)
    }

    /// Returns whether a direct path is in use.
    fn is_parted(&self) -> bool {
        self.paths.iter().any(Path::is_direct)
    }

    /// Returns the number for the next direct connection that this side chooses.
    pub(super) fn next_number(&self) -> Option<u32> {
        let next = Some(self.newest + 1).filter(|next| is_direct(*next));
        next.filter(|_| self.role == Role::Chooses && !self.is_over())
    }

    /// Returns the number for the next leg of the relay that this side negotiates.
    pub(super) fn next_leg(&self) -> Option<u32> {
        let next = self.leg.checked_add(1).map(|next| next.max(LATER));
        next.filter(|_| self.role == Role::Chooses && self.renews && !self.is_over())
    }

    /// Returns by how much a number is above all earlier ones of its kind; `None` if it is not above them.
    fn above_newest(&self, number: u32) -> Option<u32> {
        let newest = if is_direct(number) { self.newest } else { self.leg.max(LATER - 1) };
        number.checked_sub(newest).filter(|above| *above > 0)
    }

    /// Returns whether anything has come on the newest direct connection.
    pub(super) fn has_answer(&self) -> bool {
        self.has_answer
    }

    /// Returns the number of the relay's newest leg.
    pub(super) fn leg(&self) -> u32 {
        self.leg
    }

    /// Returns whether the relay has a leg that leads to the other end as far as we can see.
    pub(super) fn has_relay(&self) -> bool {
        self.paths.iter().any(|path| !path.is_direct() && !path.is_suspect)
    }

    /// Returns whether a path is left, even if it does not answer.
    pub(super) fn has_path(&self) -> bool {
        !self.paths.is_empty()
    }

    /// Returns whether no path is left, and none is waited for.
    pub(super) fn is_over(&self) -> bool {
        self.paths.is_empty() && self.until.is_none()
    }

    /// Returns what the stream lacks.
    pub(super) fn need(&self) -> Need {
        match self.has_relay() {
            true => Need::Nothing,
            false if self.paths.is_empty() => Need::Path,
            false if self.paths.iter().all(|path| path.is_suspect) => Need::Better,
            false => Need::Relay,
        }
    }

    /// Returns whether the stream stands still until the relay has a new leg.
    #[cfg(test)]
    pub(super) fn is_stranded(&self) -> bool {
        self.paths.is_empty() && self.until.is_some()
    }

    /// Notes that somebody negotiates new legs of the relay from now on.
    pub(super) fn renew(&mut self) {
        self.renews = !self.is_over();
    }

    /// Returns whether a lost leg of the relay may be replaced.
    pub(super) fn renews(&self) -> bool {
        self.renews
    }

    /// Notes that the relay gets no more new legs.
    pub(super) fn give_up(&mut self) {
        (self.renews, self.until) = (false, None);
    }

    /// Returns what the other end did wrong, if that has ended the stream.
    pub(super) fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// Returns whether both directions have ended, and each end knows it of the other as far as we can see.
    pub(super) fn is_done(&self) -> bool {
        self.outgoing.is_delivered() && self.incoming.is_told()
    }

    /// Adds a path. Our stream moves to a direct connection, and to a new leg of the relay if it was on the old one or
    /// on none. The other end's stream follows by itself.
    ///
    /// Returns `false`, and takes no path, if the number is not higher than all earlier ones of its kind, if it is much higher, or if
    /// the stream is over.
    pub(super) fn install(&mut self, number: u32, now: Instant) -> bool {
        if self.above_newest(number).is_none_or(|above| above > FURTHEST) || self.is_over() {
            return false;
        }
        let claims = self.role == Role::Chooses;
        let mut path = Path { claims, ..Path::new(number, now) };
        // The other end has given up the older one of this kind.
        let same = |path: &&Path| path.is_direct() == is_direct(number);
        let older = self.paths.iter().find(same).map(|path| path.number);
        if is_direct(number) {
            (self.newest, self.has_answer) = (number, false);
            path.ping = Some(self.fresh_ping());
            if let Some(older) = older {
                if self.paths.len() == 1 {
                    // Without this one, the stream might be over.
                    self.paths.push(path);
                    self.lose(older, false, now);
                    return true;
                }
                self.lose(older, false, now);
            }
            // What the relay holds arrives there meanwhile. Bytes that are sent twice would hold up new ones here, where the
            // connection begins slowly.
            path.shared = self.paths.iter().map(|path| path.sent).max().unwrap_or_default();
            let left = self.paths.iter().find(|path| path.number == self.current);
            path.position = left.map_or(0, |left| left.position).max(self.outgoing.kept());
            path.backlog =
                left.and_then(|_| Backlog::new(self.outgoing.acknowledged(), path.position, now));
            self.paths.push(path);
            self.until = None;
            self.go_on(number);
            return true;
        }
        path.position = self.outgoing.kept();
        path.shared = self.paths.iter().map(|path| path.sent).max().unwrap_or_default();
        // The loss of the last direct connection could not be told, or was told on a leg that has broken too. The other end may see
        // no end of it, and answer there.
        path.lost = Some(self.newest).filter(|newest| *newest != RELAY && !self.is_parted());
        self.leg = number;
        self.paths.push(path);
        match older {
            Some(older) => self.lose(older, false, now),
            // Without a path, an acknowledgement may have been lost with the last one.
            None if self.paths.len() == 1 => self.go_on(number),
            None => {}
        }
        self.until = None;
        true
    }

    /// Moves our stream to a path.
    fn go_on(&mut self, number: u32) {
        self.current = number;
        self.events.push_back(Event::Moved(number));
    }

    fn fresh_ping(&mut self) -> u32 {
        self.next_ping = self.next_ping.wrapping_add(1);
        self.next_ping
    }

    /// Takes bytes of TLS; returns how many, 0 while the window is full.
    ///
    /// # Errors
    /// [`RecordError`] if they are not records of TLS.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<usize, RecordError> {
        self.outgoing.write(bytes)
    }

    /// Returns whether [`write`](Self::write) takes at least a byte.
    pub(super) fn has_room(&self) -> bool {
        self.outgoing.room() > 0
    }

    /// Ends our stream.
    pub(super) fn finish(&mut self) {
        self.outgoing.finish();
    }

    /// Returns whether our stream was ended.
    pub(super) fn is_finished(&self) -> bool {
        self.outgoing.is_finished()
    }

    /// Returns whether the other end has all of our stream and knows that it is all.
    pub(super) fn is_delivered(&self) -> bool {
        self.outgoing.is_delivered()
    }

    /// Returns whether a direct connection was ever used.
    fn was_parted(&self) -> bool {
        self.newest != RELAY
    }

    /// Returns whether what was sent may have to be sent again.
    pub(super) fn may_repeat(&self) -> bool {
        self.renews || self.was_parted() || self.leg != RELAY
    }

    /// Returns how many bytes of our stream the other end's TLS has taken.
    pub(super) fn acknowledged(&self) -> u64 {
        self.outgoing.acknowledged()
    }

    /// Returns whether everything that was written has been transmitted, the end included.
    pub(super) fn is_transmitted(&self) -> bool {
        let Some(path) = self.paths.iter().find(|path| path.number == self.current) else {
            return false;
        };
        !self.outgoing.has_more(path.position.max(self.outgoing.kept()))
            && (!self.outgoing.is_finished() || path.ended || self.outgoing.is_delivered())
    }

    /// Returns the next bytes for TLS.
    pub(super) fn chunk(&self) -> &[u8] {
        self.incoming.chunk()
    }

    /// Notes that TLS has taken so many bytes of the chunk.
    pub(super) fn consume(&mut self, length: usize, now: Instant) {
        self.incoming.consume(length, now);
    }

    /// Notes that the peer is verified: from now on what TLS has taken is acknowledged. Records of the path layer in the middle of
    /// a handshake would break it if its other end is not the peer, and the user would not learn why.
    pub(super) fn open(&mut self, now: Instant) {
        self.incoming.open(now);
    }

    /// Returns whether TLS has taken all of the other end's stream.
    pub(super) fn has_ended(&self) -> bool {
        self.incoming.has_ended()
    }

    /// Returns whether all of the other end's stream has come.
    pub(super) fn is_whole(&self) -> bool {
        self.incoming.is_whole()
    }

    /// Lets nothing more be read.
    pub(super) fn discard(&mut self) {
        self.incoming.discard();
    }

    /// Returns whether an acknowledgement has to go out now.
    pub(super) fn owes_acknowledgement(&self) -> bool {
        self.incoming.is_overdue()
    }

    /// Sends a message that only the other end can read.
    pub(super) fn seal(&mut self, message: Vec<u8>) {
        self.sealed.push_back(message);
    }

    /// Returns the next event.
    pub(super) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Takes bytes that came on a path. Those of an unknown path are dropped.
    ///
    /// # Errors
    /// [`Fault`]; the stream is over.
    pub(super) fn receive(&mut self, number: u32, bytes: &[u8], now: Instant) -> Result<(), Fault> {
        let received = self.read(number, bytes, now);
        if let Err(fault) = received {
            self.fault = Some(fault);
            self.end_all();
        }
        received
    }

    fn read(&mut self, number: u32, mut bytes: &[u8], now: Instant) -> Result<(), Fault> {
        let Some(index) = self.paths.iter().position(|path| path.number == number) else {
            return Ok(());
        };
        self.has_answer |= is_direct(number);
        self.paths[index].has_answer = true;
        self.stands_since = None;
        let owes = self.paths[index].sent > self.outgoing.acknowledged();
        self.paths[index].lives(owes, now);
        // A path that is lost while its own bytes are read has no more of them.
        while let Some(path) = self.paths.iter_mut().find(|path| path.number == number) {
            let head;
            let bytes = match path.decoder.decode(&mut bytes)? {
                None => break,
                Some(Decoded::Control(control)) => {
                    self.obey(number, control, now)?;
                    continue;
                }
                Some(Decoded::Stream(bytes)) => bytes,
                Some(Decoded::Head(bytes)) => {
                    head = bytes;
                    &head[..]
                }
            };
            let offset = path.next.ok_or(Fault::Unannounced)?;
            path.next = Some(offset.saturating_add(bytes.len() as u64));
            path.heard.get_or_insert(now);
            self.incoming.insert(number, offset, bytes)?;
        }
        Ok(())
    }

    fn obey(&mut self, number: u32, control: Control, now: Instant) -> Result<(), Fault> {
        match control {
            Control::Ack(offset) => {
                let before = self.outgoing.acknowledged();
                self.outgoing.acknowledge(offset)?;
                let acknowledged = self.outgoing.acknowledged();
                if acknowledged == before {
                    return Ok(());
                }
                for path in &mut self.paths {
                    path.backlog.take_if(|backlog| !backlog.acknowledge(acknowledged, now));
                }
                // What only a direct path has carried was acknowledged, perhaps over the relay: it lives.
                let proved = |path: &&mut Path| path.is_direct() && acknowledged > path.shared;
                for path in self.paths.iter_mut().filter(proved) {
                    let unanswered = path.asked.filter(|(_, at)| path.silent_since <= Some(*at));
                    if path.sent > acknowledged || unanswered.is_none() {
                        path.lives(path.sent > acknowledged, now);
                    }
                }
            }
            Control::From(offset) => {
                if self.incoming.announced(offset)? && !self.was_parted() {
                    return Err(Fault::Missing { offset });
                }
                if let Some(path) = self.path(number) {
                    path.next = Some(offset);
                }
            }
            Control::End(offset) => self.incoming.ends(offset)?,
            Control::Ping(ping) => {
                if let Some(path) = self.path(number) {
                    path.pong = Some(ping);
                }
            }
            Control::Pong(pong) => {
                if let Some(path) = self.path(number)
                    && let Some((ping, at)) = path.asked
                    && ping == pong
                {
                    path.asked = None;
                    path.measure(now.saturating_duration_since(at));
                }
            }
            Control::Sealed(message) => {
                let waiting = self.events.iter().filter(|one| matches!(one, Event::Sealed(_)));
                if waiting.count() < SEALED {
                    self.events.push_back(Event::Sealed(message));
                }
            }
            // A path that still carries a record is not lost, even if the record says so.
            Control::Lost(lost) if lost == number => {}
            Control::Lost(lost)
                if self.above_newest(lost).is_some_and(|above| above > FURTHEST) => {}
            Control::Lost(lost) if !is_direct(lost) => {
                if self.role == Role::Follows {
                    self.leg = self.leg.max(lost);
                }
                let legs = self.paths.iter().filter(|path| !path.is_direct());
                let known = legs.map(|path| path.number).find(|n| *n <= lost && *n != number);
                if let Some(leg) = known {
                    self.lose(leg, false, now);
                }
            }
            Control::Lost(lost) => {
                // A connection that the other end gave up before we knew of it must not be used later.
                if self.role == Role::Follows {
                    self.newest = self.newest.max(lost);
                }
                let mut known = self.paths.iter().map(|path| path.number);
                if let Some(direct) = known.find(|n| is_direct(*n) && *n <= lost) {
                    self.lose(direct, false, now);
                }
            }
            Control::Use(_) => {}
        }
        Ok(())
    }

    /// Notes that the connection of a path has ended or broken.
    pub(super) fn handle_loss(&mut self, number: u32, now: Instant) {
        self.lose(number, true, now);
    }

    /// Notes that this machine has left a network, or joined one. The paths with these numbers are lost, and each other one has
    /// to show soon that it still leads to the other end, if the stream can go on without it. The relay's leg, if it is the
    /// only path, stays in use while a new one is negotiated: perhaps that is impossible, and the other end just slow.
    pub(super) fn handle_network(&mut self, lost: &[u32], now: Instant) {
        for number in lost {
            if self.renews || self.paths.len() > 1 {
                self.lose(*number, true, now);
            }
        }
        if !self.renews && self.paths.len() < 2 {
            // The address may return, for example when the cable is plugged in again.
            return;
        }
        let ping = self.fresh_ping();
        for path in &mut self.paths {
            path.ping = Some(ping);
            path.doubted = Some(now + path.patience());
        }
    }

    /// Notes that the other end has lost the relay's leg with this number, and had no path to say so. A newer leg on which nothing
    /// has come exists at this end only.
    pub(super) fn handle_told_loss(&mut self, number: u32, now: Instant) {
        let is_half =
            |path: &Path| path.number > number && !path.has_answer && now >= path.since + MUTE;
        let mut legs = self.paths.iter().filter(|path| !path.is_direct());
        if let Some(leg) = legs.find(|path| path.number == number || is_half(path)) {
            self.lose(leg.number, false, now);
        }
    }

    /// Notes that nothing comes to the other end on the relay's leg with this number, or that our own next hop does not answer. The leg
    /// may just be slow: it stays until there is a new one, or something comes on it.
    pub(super) fn handle_doubt(&mut self, number: u32) {
        if let Some(leg) = self.paths.iter_mut().find(|path| path.number == number) {
            leg.is_suspect |= !leg.is_direct();
        }
    }

    /// Gives a path up; `tells` says whether the other end has to be told.
    fn lose(&mut self, number: u32, tells: bool, now: Instant) {
        let Some(index) = self.paths.iter().position(|path| path.number == number) else { return };
        let gone = self.paths.remove(index);
        self.incoming.forget(number);
        // An acknowledgement may have been lost with it.
        self.incoming.repeat();
        self.events.push_back(Event::Closed(number));
        let (kept, acknowledged) = (self.outgoing.kept(), self.outgoing.acknowledged());
        // The relay's leg may have broken unseen while it was idle: the kernel finds it out if it has something to deliver.
        let ping = gone.is_direct().then(|| self.fresh_ping());
        let Some(other) = self.paths.first_mut() else {
            if self.renews && !self.is_done() {
                let since = *self.stands_since.get_or_insert(now);
                self.until = Some((now + RENEWAL).min(since + STANDSTILL));
            }
            return;
        };
        if tells {
            other.lost = Some(number);
        }
        if self.current == number || gone.sent > acknowledged {
            other.rewind(kept);
        }
        other.ping = ping.or(other.ping);
        if self.current == number {
            let other = other.number;
            self.go_on(other);
        }
    }

    /// Gives all paths up.
    pub(super) fn end_all(&mut self) {
        self.give_up();
        for path in self.paths.drain(..) {
            self.events.push_back(Event::Closed(path.number));
        }
    }

    /// Appends what goes out on a path now, in whole records: all control records, and at most 64 KiB or one record of
    /// the stream.
    pub(super) fn transmit(&mut self, number: u32, now: Instant, out: &mut Vec<u8>) {
        let is_current = self.current == number;
        let Self { paths, outgoing, incoming, sealed, .. } = self;
        let Some(path) = paths.iter_mut().find(|path| path.number == number) else { return };
        let before = out.len();
        if std::mem::take(&mut path.claims) {
            Control::Use(number).put(out);
        }
        if let Some(lost) = path.lost.take() {
            Control::Lost(lost).put(out);
        }
        // Before the peer is verified, nothing of the path layer comes between the records of TLS.
        if let Some(pong) = path.pong.take_if(|_| incoming.is_open()) {
            Control::Pong(pong).put(out);
        }
        if let Some(ping) = path.ping.take() {
            Control::Ping(ping).put(out);
            path.asked = Some((ping, now));
            path.silent_since.get_or_insert(now);
        }
        let echoes = std::mem::take(&mut path.echoes);
        if echoes {
            // Clear it even if nothing is acknowledged now; otherwise it would be due again at once.
            path.heard = None;
        }
        if ((is_current && incoming.is_overdue()) || echoes)
            && let Some(offset) = incoming.acknowledgement()
        {
            Control::Ack(offset).put(out);
        }
        if is_current {
            sealed.drain(..).for_each(|message| Control::Sealed(message).put(out));
            if path.position < outgoing.kept() {
                // The other end has acknowledged what would be sent again.
                (path.position, path.announces) = (outgoing.kept(), true);
            }
            if let Some(repeated) = path.repeated.take_if(|one| path.position >= one.end)
                && repeated.resume > path.position
            {
                (path.position, path.announces) = (repeated.resume, true);
            }
            let ends = !path.ended && !outgoing.is_delivered() && outgoing.is_finished();
            if path.announces && (outgoing.has_more(path.position) || ends) {
                Control::From(path.position).put(out);
                path.announces = false;
            }
            let start = path.position;
            // A byte that is kept twice behind a gap could exceed the other end's window.
            let limit = path.repeated.map_or(u64::MAX, |repeated| repeated.end);
            path.position = outgoing.copy(start, limit, out);
            path.sent = path.sent.max(path.position);
            if ends && let Some(end) = outgoing.end_at(path.position) {
                Control::End(end).put(out);
                (path.ended, path.sent) = (true, end + 1);
            }
            if path.sent > outgoing.acknowledged() {
                path.silent_since.get_or_insert(now);
            }
        }
        if out.len() > before {
            (path.quiet_since, path.heard) = (now, None);
        }
    }

    /// Returns when [`handle_deadline`](Self::handle_deadline) has to be called.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let is_parted = self.is_parted();
        let of_paths = self
            .paths
            .iter()
            .flat_map(|path| {
                [path.ping_at(is_parted), self.lost_at(path), path.echo_at(), path.repeats_at()]
            })
            .flatten();
        of_paths.chain(self.incoming.due()).chain(self.until).min()
    }

    /// Returns when a path is lost.
    fn lost_at(&self, path: &Path) -> Option<Instant> {
        let silent = path.silent_since.filter(|_| path.is_direct());
        silent.map(|since| since + self.may_be_silent(path)).into_iter().chain(path.doubted).min()
    }

    /// Returns how long a direct path may be silent. If it is the only path, its network may come back, and until then
    /// nothing else would carry the stream either.
    fn may_be_silent(&self, path: &Path) -> Duration {
        if self.paths.len() == 1 {
            return LONGEST_SILENCE;
        }
        let is_beside = self.paths.iter().any(|path| !path.is_direct() && !path.is_suspect);
        path.patience().min(if is_beside { LONGEST_BESIDE } else { LONGEST_SILENCE })
    }

    /// Does what is due.
    pub(super) fn handle_deadline(&mut self, now: Instant) {
        self.incoming.handle_deadline(now);
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let mut left = self.paths.len();
        loop {
            let overdue = |path: &usize| is_due(self.lost_at(&self.paths[*path]));
            // A direct connection first: then the relay's leg may be the only path.
            let overdue = (0..self.paths.len()).filter(overdue);
            let Some(path) = overdue.max_by_key(|path| self.paths[*path].is_direct()) else {
                break;
            };
            let path = &mut self.paths[path];
            if path.is_direct() || left > 1 {
                let number = path.number;
                self.lose(number, true, now);
                left -= 1;
            } else {
                (path.doubted, path.is_suspect) = (None, true);
            }
        }
        if is_due(self.until) {
            self.give_up();
        }
        let is_parted = self.is_parted();
        for index in 0..self.paths.len() {
            self.paths[index].repeat(&self.outgoing, now);
            if is_due(self.paths[index].ping_at(is_parted)) {
                let ping = self.fresh_ping();
                let path = &mut self.paths[index];
                path.ping = Some(ping);
                // Also if the connection takes nothing any more, not even this.
                path.silent_since.get_or_insert(now);
            }
            let path = &mut self.paths[index];
            path.echoes |= is_due(path.echo_at());
        }
    }

    /// Returns the path that our stream goes on.
    #[cfg(test)]
    pub(super) fn current(&self) -> u32 {
        self.current
    }

    /// Returns how many bytes are kept of both directions.
    #[cfg(test)]
    pub(super) fn memory(&self) -> [usize; 2] {
        [self.outgoing.memory(), self.incoming.memory()]
    }
}

#[cfg(test)]
mod tests;
