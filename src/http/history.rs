//! What the status page shows of the last hour: a point for each minute, and the last events.
//!
//! A state machine: counters, events and the time go in.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use time::OffsetDateTime;

/// The time between two points.
pub(super) const EVERY: Duration = Duration::from_secs(60);
/// How many points are kept.
const POINTS: usize = 60;
/// How many events are kept.
const EVENTS: usize = 10;

/// The figures of a moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    /// Relayed bytes since the start.
    pub(super) bytes: u64,
    /// Sessions and transfers now.
    pub(super) sessions: usize,
    /// Refused requests and lost stanzas since the start.
    pub(super) errors: u64,
}

/// A minute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    /// Bytes per second, on average.
    pub(super) rate: f64,
    /// Sessions and transfers at its end.
    pub(super) sessions: usize,
    /// Refused requests and lost stanzas in it.
    pub(super) errors: u64,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    LinkUp,
    LinkDown,
    /// Stanzas for this component go elsewhere.
    RouteBad,
    RouteGood,
}

/// The last hour.
#[derive(Debug)]
pub(super) struct History {
    before: (Instant, Counters),
    points: VecDeque<Point>,
    events: VecDeque<(OffsetDateTime, Event)>,
}

impl History {
    /// Creates an empty history that begins now.
    pub(super) fn new(now: Instant) -> Self {
        let before = (now, Counters::default());
        Self { before, points: VecDeque::new(), events: VecDeque::new() }
    }

    /// Takes the figures of now; call it once in each [`EVERY`].
    pub(super) fn note(&mut self, counters: Counters, now: Instant) {
        let (at, before) = std::mem::replace(&mut self.before, (now, counters));
        let seconds = now.saturating_duration_since(at).as_secs_f64().max(0.001);
        self.points.push_back(Point {
            rate: counters.bytes.saturating_sub(before.bytes) as f64 / seconds,
            sessions: counters.sessions,
            errors: counters.errors.saturating_sub(before.errors),
        });
        let excess = self.points.len().saturating_sub(POINTS);
        self.points.drain(..excess);
    }

    /// Takes an event.
    pub(super) fn happened(&mut self, event: Event, at: OffsetDateTime) {
        self.events.push_back((at, event));
        let excess = self.events.len().saturating_sub(EVENTS);
        self.events.drain(..excess);
    }

    /// Returns the points, the oldest first, and the last events, the newest first.
    pub(super) fn all(&self) -> (Vec<Point>, Vec<(OffsetDateTime, Event)>) {
        (self.points.iter().copied().collect(), self.events.iter().rev().copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_is_a_point_and_an_hour_is_kept() {
        let mut now = Instant::now();
        let mut history = History::new(now);
        for minute in 1..=100 {
            now += EVERY;
            history.note(Counters { bytes: minute * 6000, sessions: 3, errors: minute * 2 }, now);
        }
        let (points, _) = history.all();
        assert_eq!(points.len(), POINTS);
        assert_eq!(points[0], Point { rate: 100.0, sessions: 3, errors: 2 });
    }

    #[test]
    fn the_last_events_are_kept_and_the_newest_is_first() {
        let mut history = History::new(Instant::now());
        for _ in 0..EVENTS {
            history.happened(Event::LinkUp, OffsetDateTime::UNIX_EPOCH);
        }
        history.happened(Event::LinkDown, OffsetDateTime::UNIX_EPOCH);
        let (_, events) = history.all();
        assert_eq!(events.len(), EVENTS);
        assert_eq!(events[0].1, Event::LinkDown);
    }
}
