//! What is due in a session, and when.

use tokio::time::Instant;

use crate::sessions::side::Side;

/// What can be due. Of timers that expire together, the first one here is handled first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timer {
    /// The session's phase has lasted as long as it may.
    Phase,
    /// The service stops.
    Stop,
    /// The responder does not know of its new leg.
    Repeat,
    /// SOCKS5 has not come up on a leg.
    FallBack(Side),
    /// A side has not been heard for a while.
    Ping(Side),
}

impl Timer {
    const ALL: [Self; 7] = [
        Self::Phase,
        Self::Stop,
        Self::Repeat,
        Self::FallBack(Side::Initiator),
        Self::FallBack(Side::Responder),
        Self::Ping(Side::Initiator),
        Self::Ping(Side::Responder),
    ];

    /// Returns its place in [`Timer::ALL`].
    fn index(self) -> usize {
        let of = |side| usize::from(side == Side::Responder);
        match self {
            Self::Phase => 0,
            Self::Stop => 1,
            Self::Repeat => 2,
            Self::FallBack(side) => 3 + of(side),
            Self::Ping(side) => 5 + of(side),
        }
    }
}

/// The timers of a session. Each is set once at most.
#[derive(Debug, Default)]
pub(super) struct TimerTable([Option<Instant>; Timer::ALL.len()]);

impl TimerTable {
    /// Sets a timer, also if it is set already.
    pub(super) fn set(&mut self, timer: Timer, at: Instant) {
        self.0[timer.index()] = Some(at);
    }

    /// Lets a timer that is set expire at a time at the latest.
    pub(super) fn hasten(&mut self, timer: Timer, at: Instant) {
        if let Some(set) = &mut self.0[timer.index()] {
            *set = (*set).min(at);
        }
    }

    /// Removes a timer.
    pub(super) fn stop(&mut self, timer: Timer) {
        self.0[timer.index()] = None;
    }

    /// Returns whether a timer is set.
    pub(super) fn is_set(&self, timer: Timer) -> bool {
        self.0[timer.index()].is_some()
    }

    /// Returns when the next timer expires.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.0.iter().flatten().min().copied()
    }

    /// Removes and returns the first timer that has expired.
    pub(super) fn expired(&mut self, now: Instant) -> Option<Timer> {
        let due = |timer: &Timer| self.0[timer.index()].is_some_and(|at| at <= now);
        let timer = Timer::ALL.into_iter().find(due)?;
        self.stop(timer);
        Some(timer)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Returns all timers that have expired.
    fn all_expired(timers: &mut TimerTable, now: Instant) -> Vec<Timer> {
        std::iter::from_fn(|| timers.expired(now)).collect()
    }

    #[test]
    fn the_earliest_timer_is_due_next() {
        let now = Instant::now();
        let mut timers = TimerTable::default();
        assert_eq!(timers.next_due(), None);
        timers.set(Timer::Phase, now + Duration::from_secs(3));
        timers.set(Timer::Ping(Side::Responder), now + Duration::from_secs(1));
        timers.set(Timer::Ping(Side::Initiator), now + Duration::from_secs(2));
        assert_eq!(timers.next_due(), Some(now + Duration::from_secs(1)));
        timers.stop(Timer::Ping(Side::Responder));
        assert_eq!(timers.next_due(), Some(now + Duration::from_secs(2)));
        assert!(timers.is_set(Timer::Phase) && !timers.is_set(Timer::Ping(Side::Responder)));
    }

    #[test]
    fn a_timer_that_is_set_again_counts_from_then_on() {
        let now = Instant::now();
        let mut timers = TimerTable::default();
        timers.set(Timer::Stop, now + Duration::from_secs(9));
        timers.set(Timer::Stop, now + Duration::from_secs(1));
        assert_eq!(timers.next_due(), Some(now + Duration::from_secs(1)));
        timers.set(Timer::Stop, now + Duration::from_secs(9));
        assert_eq!(timers.expired(now + Duration::from_secs(8)), None);
        assert_eq!(timers.expired(now + Duration::from_secs(9)), Some(Timer::Stop));
    }

    #[test]
    fn each_timer_expires_once_at_its_time_and_not_before() {
        let now = Instant::now();
        let mut timers = TimerTable::default();
        timers.set(Timer::Phase, now + Duration::from_millis(1));
        timers.set(Timer::Stop, now);
        assert_eq!(all_expired(&mut timers, now), [Timer::Stop]);
        assert_eq!(all_expired(&mut timers, now), []);
        assert_eq!(all_expired(&mut timers, now + Duration::from_millis(1)), [Timer::Phase]);
        assert_eq!(timers.next_due(), None);
    }

    #[test]
    fn the_end_of_a_phase_comes_before_all_that_expires_with_it() {
        let now = Instant::now();
        let mut timers = TimerTable::default();
        for (place, timer) in Timer::ALL.into_iter().enumerate().rev() {
            assert_eq!(timer.index(), place);
            timers.set(timer, now);
        }
        assert_eq!(all_expired(&mut timers, now), Timer::ALL);
    }
}
