//! Finds out whether the server hands this component its own stanzas.
//!
//! The component sends numbered IQs to its own address. A server that routes correctly sends each of them back once. A
//! connection can be up without that:
//!
//! - ejabberd accepts a second component with the same name and gives each stanza to either of them at random. The same
//!   happens when the previous connection died silently and the server still routes to it, and when one
//!   `ejabberd_service` listener has several names in `hosts`.
//! - A firewall or NAT forgot the connection: nothing comes back, and no error tells it.
//!
//! A state machine: time and the numbers that come back go in; numbers to send, a verdict and the time to look again
//! come out.

use std::time::Duration;

use tokio::time::Instant;

/// The prefix of these IQs' ids.
const PREFIX: &str = "fingerpost-echo-";
/// How many are sent after each login. If a second connection takes half of the stanzas, all of them come back by
/// chance once in 2^12 logins; the pings after that soon show it.
const BURST: u32 = 12;
/// The interval of the later pings.
const EVERY: Duration = Duration::from_secs(5);
/// A number that has not come back after this time is lost.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a lost stanza, or a stanza of another program, counts.
const MEMORY: Duration = Duration::from_secs(60);
/// How many numbers are remembered: those of the last minute, and those of a login.
const REMEMBERED: usize = 32;

/// The state of the link according to the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Nothing has come back yet, and nothing is late.
    Unknown,
    /// Every stanza came back, once.
    Good,
    /// Some did not come back.
    Lost {
        /// How many of the last ones did not come back.
        missing: u32,
        /// The number of the last ones.
        of: u32,
    },
    /// A stanza came that another program with this component's name had sent, or one came twice.
    Shared,
}

/// The kind of an IQ from the component to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EchoOf {
    /// A ping of this connection, or of this program's previous one.
    Own,
    /// A ping of another program with this component's name.
    Foreign,
    /// Something else.
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Waiting,
    Back,
    Lost,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    number: u32,
    at: Instant,
    fate: Fate,
}

/// Returns whether an IQ that comes from the component itself belongs here.
pub(crate) fn is_id(id: &str) -> bool {
    id.starts_with(PREFIX)
}

/// The numbers of one login.
#[derive(Debug)]
pub struct Echo {
    /// Random, so that an earlier connection or another program has other numbers.
    nonce: u64,
    /// The nonce of the previous connection: its last pings may arrive here.
    before: Option<u64>,
    next: u32,
    sent: Vec<Sent>,
    next_at: Instant,
    shared_at: Option<Instant>,
    trip: Option<Duration>,
}

impl Echo {
    /// Creates the state of a login at `now`. `nonce` is random; `before` is that of this program's previous
    /// connection.
    pub fn new(nonce: u64, before: Option<u64>, now: Instant) -> Self {
        Self { nonce, before, next: 0, sent: Vec::new(), next_at: now, shared_at: None, trip: None }
    }

    /// Returns the ids to send now; each goes into an IQ get from the component to itself.
    pub fn due(&mut self, now: Instant) -> Vec<String> {
        for sent in &mut self.sent {
            if sent.fate == Fate::Waiting && now.saturating_duration_since(sent.at) >= PATIENCE {
                sent.fate = Fate::Lost;
            }
        }
        if now < self.next_at {
            return Vec::new();
        }
        self.next_at = now + EVERY;
        let count = if self.next == 0 { BURST } else { 1 };
        let ids = (0..count).map(|_| {
            let number = self.next;
            self.next = self.next.wrapping_add(1);
            self.sent.push(Sent { number, at: now, fate: Fate::Waiting });
            format!("{PREFIX}{:016x}-{number}", self.nonce)
        });
        let ids = ids.collect();
        let excess = self.sent.len().saturating_sub(REMEMBERED);
        self.sent.drain(..excess);
        ids
    }

    /// Takes the id of an IQ that the component has sent to itself; returns whose it is. A ping of this program, or of
    /// another one, needs no answer.
    pub fn came(&mut self, id: &str, now: Instant) -> EchoOf {
        let Some(rest) = id.strip_prefix(PREFIX) else { return EchoOf::Other };
        let nonce = |text| u64::from_str_radix(text, 16).ok();
        let parts = rest.split_once('-').map(|(text, number)| (nonce(text), number));
        if parts.is_some_and(|(nonce, _)| nonce.is_some() && nonce == self.before) {
            return EchoOf::Own;
        }
        let number = parts
            .filter(|(nonce, _)| *nonce == Some(self.nonce))
            .and_then(|(_, number)| number.parse::<u32>().ok());
        let Some(number) = number else { return EchoOf::Foreign };
        match self.sent.iter_mut().find(|sent| sent.number == number) {
            Some(sent) if sent.fate == Fate::Back => self.shared_at = Some(now),
            Some(sent) => {
                sent.fate = Fate::Back;
                self.trip = Some(now.saturating_duration_since(sent.at));
            }
            // It is too late to be remembered.
            None => {}
        }
        EchoOf::Own
    }

    /// Notes that another program gets stanzas for this component, and should not.
    pub fn is_shared(&mut self, now: Instant) {
        self.shared_at = Some(now);
    }

    /// Returns how long the last number took that came back.
    pub fn trip(&self) -> Option<Duration> {
        self.trip
    }

    /// Returns whether a number may still come back.
    pub fn is_waiting(&self) -> bool {
        self.sent.iter().any(|sent| sent.fate == Fate::Waiting)
    }

    /// Returns the state according to the numbers of the last minute.
    pub fn route(&self, now: Instant) -> Route {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < MEMORY;
        if self.shared_at.is_some_and(is_recent) {
            return Route::Shared;
        }
        let count = |fate: Fate| {
            let of = self.sent.iter().filter(|sent| sent.fate == fate && is_recent(sent.at));
            u32::try_from(of.count()).unwrap_or(u32::MAX)
        };
        let (missing, back) = (count(Fate::Lost), count(Fate::Back));
        match (missing, back) {
            (0, 0) => Route::Unknown,
            (0, _) => Route::Good,
            (missing, back) => Route::Lost { missing, of: missing + back },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_link_is_good_when_all_came_back_once() {
        let start = Instant::now();
        let mut echo = Echo::new(7, None, start);
        assert_eq!(echo.route(start), Route::Unknown);
        assert!(!echo.is_waiting());
        let burst = echo.due(start);
        assert!(echo.is_waiting());
        assert_eq!(burst.len(), 12);
        for id in &burst {
            assert_eq!(echo.came(id, start), EchoOf::Own);
        }
        assert_eq!(echo.route(start), Route::Good);
        for step in 1..1000 {
            let now = start + seconds(5 * step);
            let ids = echo.due(now);
            assert_eq!(ids.len(), 1);
            assert!(echo.due(now + seconds(1)).is_empty());
            assert_eq!(echo.came(&ids[0], now + seconds(1)), EchoOf::Own);
            assert_eq!(echo.route(now + seconds(2)), Route::Good);
            assert!(echo.sent.len() <= REMEMBERED);
        }
    }

    #[test]
    fn what_does_not_come_back_is_counted_and_forgotten_after_a_minute() {
        let start = Instant::now();
        let mut echo = Echo::new(7, None, start);
        for (number, id) in echo.due(start).iter().enumerate() {
            if number % 2 == 0 {
                echo.came(id, start);
            }
        }
        let mut now = start + seconds(5);
        let id = echo.due(now).remove(0);
        echo.came(&id, now);
        assert_eq!(echo.route(now), Route::Good, "the others may still come");
        now += seconds(5);
        let id = echo.due(now).remove(0);
        assert_eq!(echo.route(now), Route::Lost { missing: 6, of: 13 });
        echo.came(&id, now);
        // A late stanza is not lost.
        echo.came(&format!("{PREFIX}{:016x}-1", 7), now);
        assert_eq!(echo.route(now), Route::Lost { missing: 5, of: 14 });
        while now < start + seconds(60) {
            now += seconds(5);
            let id = echo.due(now).remove(0);
            echo.came(&id, now);
        }
        assert_eq!(echo.route(now), Route::Good);
    }

    #[test]
    fn another_program_and_a_repeated_stanza_are_told() {
        let start = Instant::now();
        let mut echo = Echo::new(7, None, start);
        let ids = echo.due(start);
        for id in &ids {
            echo.came(id, start);
        }
        assert_eq!(echo.came(&ids[0], start), EchoOf::Own);
        assert_eq!(echo.route(start), Route::Shared);
        let mut other = Echo::new(8, Some(9), start);
        for id in other.due(start) {
            other.came(&id, start);
        }
        // Late stanzas of the previous connection prove nothing.
        assert_eq!(other.came(&format!("{PREFIX}{:016x}-3", 9), start), EchoOf::Own);
        assert_eq!(other.route(start), Route::Good);
        assert_eq!(other.came(&ids[1], start), EchoOf::Foreign);
        assert_eq!(other.route(start), Route::Good, "it may be meant to be there");
        other.is_shared(start);
        assert_eq!(other.route(start + seconds(59)), Route::Shared);
        assert_ne!(other.route(start + seconds(60)), Route::Shared);
        // Another request to ourselves is not a ping.
        assert_eq!(other.came("ping-1", start), EchoOf::Other);
    }
}
