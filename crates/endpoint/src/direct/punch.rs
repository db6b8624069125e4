//! Decides when to dial which candidate, so that two NATs let the two sides' connections through.
//!
//! Both sides dial each other at the same time from the ports they listen on. A SYN that leaves one NAT lets the other
//! side's SYN in. One that comes too early may be refused by the far NAT, which also closes the near one again:
//!
//! | result | next |
//! |---|---|
//! | refused, by a reset or an ICMP error | dials again at once: while a SYN is on its way, the peer's SYN passes. A fixed pause can keep both sides in step |
//! | the address pair is in use | waits: the listener has the peer's connection |
//! | unreachable, by another ICMP error or without a route | dials again, but slowly |
//! | no answer | nothing: the kernel repeats the SYN |
//!
//! Where the NATs answer with ICMP errors, and the network is fast, some attempts never succeed between the same two ports, however
//! long both sides go on. So a side whose dials were refused for a while [takes another port](Step::Move). The two sides do so at
//! different times.
//!
//! A candidate at which no SYNs can cross, because the port of a NAT cannot be foretold, is dialled [slowly](Pace::Slow).
//!
//! Nothing is dialled after 5 s or 400 dials, and each candidate has its share of these. So neither a candidate that
//! refuses quickly nor a peer that names other people's machines costs more.

use std::{io, time::Duration};

use tokio::time::Instant;

/// How long an attempt lasts.
pub(crate) const ATTEMPT: Duration = Duration::from_secs(5);
/// How many dials an attempt has at most.
const MOST_DIALS: u32 = 400;
/// The pause before the next candidate is dialled beside those that have not answered (RFC 8305, section 5).
const STAGGER: Duration = Duration::from_millis(250);
/// A refusal that comes sooner is followed by a pause of at most [`SPREAD`]: on a network this fast, the dials would be used
/// up before the peer has begun.
const QUICK: Duration = Duration::from_millis(5);
const SPREAD: Duration = Duration::from_millis(10);
/// The pause before a candidate of the slow pace is dialled again, and how many dials it has at most.
const SLOW: Duration = Duration::from_millis(250);
const MOST_SLOW_DIALS: u32 = 16;
/// When the TLS client and when the server take another port in an attempt whose dials are refused.
const MOVES: [[Duration; MOST_MOVES]; 2] = [
    [Duration::from_millis(700), Duration::from_millis(2100)],
    [Duration::from_millis(1400), Duration::from_millis(2800)],
];
/// How many other ports a side takes in an attempt.
pub(super) const MOST_MOVES: usize = 2;
/// How long the listener has for the greeting of the connection that is in the way.
const IN_USE: Duration = Duration::from_secs(1);

/// The result of a dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialled {
    /// There is a connection, with the peer or with a stranger.
    Connected,
    /// The other side, or a NAT before it, has refused.
    Refused,
    /// There is a connection between these two addresses already.
    InUse,
    /// There is no way to this network, or a router or a NAT says so.
    Unreachable,
}

impl Dialled {
    /// Returns what came of a dial.
    pub(crate) fn of<T>(connected: &io::Result<T>) -> Self {
        match connected.as_ref().map_err(io::Error::kind) {
            Ok(_) => Self::Connected,
            Err(
                io::ErrorKind::ConnectionRefused
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::HostUnreachable,
            ) => Self::Refused,
            Err(io::ErrorKind::AddrNotAvailable) => Self::InUse,
            Err(_) => Self::Unreachable,
        }
    }
}

/// How a candidate that refuses is dialled again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// At once.
    Quick,
    /// At once, so that the two sides' SYNs cross: a NAT maps the candidate. Only these refusals are a reason to take another port.
    Crossing,
    /// Now and then: the dials do not have to cross, because one of the NATs lets in whatever comes from the other one.
    Slow,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Dial the candidate of this number.
    Dial(usize),
    /// Take another port, and [begin again](Punch::restart) with it.
    Move,
    /// Wait for a result until this time.
    Wait(Instant),
    /// The attempt is over.
    Over,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Not dialled yet.
    New,
    /// To be dialled again at this time.
    Again(Instant),
    /// Since this time, without an answer.
    Dialling(Instant),
    /// Not dialled any more.
    Done,
}

/// The dials of one candidate.
#[derive(Debug)]
struct Dials {
    state: State,
    pace: Pace,
    /// Whether its pace was [`Pace::Crossing`] at first.
    crosses: bool,
    /// How many there were.
    count: u32,
    /// How many there are at most.
    share: u32,
}

impl Dials {
    fn new(pace: Pace, share: u32) -> Self {
        let crosses = pace == Pace::Crossing;
        let mut dials = Self { state: State::New, pace, crosses, count: 0, share };
        if pace == Pace::Slow {
            dials.slow_down();
        }
        dials
    }

    fn slow_down(&mut self) {
        self.pace = Pace::Slow;
        self.share = self.share.min(MOST_SLOW_DIALS);
    }
}

/// The dials of one attempt.
#[derive(Debug)]
pub(crate) struct Punch {
    candidates: Vec<Dials>,
    end: Instant,
    /// When the next new candidate is dialled.
    next_new: Instant,
    has_peer: bool,
    /// How many dials there were.
    dialled: u32,
    /// When to take another port, the next one at the end.
    moves: Vec<Instant>,
    /// Whether a dial was refused since the attempt began or the port was changed.
    is_refused: bool,
}

impl Punch {
    /// Begins an attempt with candidates of these paces.
    pub(crate) fn new(
        paces: impl ExactSizeIterator<Item = Pace>,
        is_client: bool,
        now: Instant,
    ) -> Self {
        let mut punch = Self {
            candidates: Vec::new(),
            end: now + ATTEMPT,
            next_new: now,
            has_peer: false,
            dialled: 0,
            moves: MOVES[usize::from(!is_client)].iter().rev().map(|after| now + *after).collect(),
            is_refused: false,
        };
        punch.restart(paces, now);
        punch
    }

    /// Goes on with other candidates, or from another port. What is left of the time and of the dials stays.
    pub(super) fn restart(&mut self, paces: impl ExactSizeIterator<Item = Pace>, now: Instant) {
        let left = MOST_DIALS.saturating_sub(self.dialled);
        let share = left / u32::try_from(paces.len().max(1)).unwrap_or(MOST_DIALS);
        self.candidates = paces.map(|pace| Dials::new(pace, share)).collect();
        self.next_new = now;
        self.is_refused = false;
    }

    /// Adds a candidate of this pace. All have the same share then; those that come late get what is left.
    pub(crate) fn add(&mut self, pace: Pace) {
        self.candidates.push(Dials::new(pace, MOST_DIALS));
        let count = u32::try_from(self.candidates.len()).unwrap_or(MOST_DIALS);
        for dials in &mut self.candidates {
            dials.share = dials.share.min(MOST_DIALS / count);
        }
    }

    /// Returns what to do. Call it again after a dial, a result or the end of a wait.
    pub(crate) fn next(&mut self, now: Instant) -> Step {
        if now >= self.end {
            return Step::Over;
        }
        if self.has_peer {
            return Step::Wait(self.end);
        }
        let mut wait = self.end;
        if let Some(at) = self.moves.last().copied() {
            if at > now {
                wait = wait.min(at);
            } else {
                self.moves.pop();
                if self.is_refused {
                    return Step::Move;
                }
            }
        }
        let mut has_new = false;
        for (number, dials) in self.candidates.iter_mut().enumerate() {
            let at = match dials.state {
                // The new ones come in turn.
                State::New if has_new => continue,
                State::New => {
                    has_new = true;
                    self.next_new
                }
                State::Again(at) => at,
                State::Dialling(_) | State::Done => continue,
            };
            if at > now {
                wait = wait.min(at);
                continue;
            }
            if dials.count >= dials.share || self.dialled >= MOST_DIALS {
                dials.state = State::Done;
                continue;
            }
            if matches!(dials.state, State::New) {
                self.next_new = now + STAGGER;
            }
            dials.state = State::Dialling(now);
            dials.count += 1;
            self.dialled += 1;
            return Step::Dial(number);
        }
        Step::Wait(wait)
    }

    /// Takes the result of a dial. `random` is a new random number.
    pub(crate) fn dialled(&mut self, number: usize, result: Dialled, now: Instant, random: u32) {
        let Some(dials) = self.candidates.get_mut(number) else { return };
        let State::Dialling(since) = dials.state else { return };
        self.is_refused |=
            dials.crosses && matches!(result, Dialled::Refused | Dialled::Unreachable);
        dials.state = match result {
            Dialled::Connected => State::Done,
            Dialled::Unreachable => {
                // Nothing answers here: the next one need not wait.
                self.next_new = self.next_new.min(now);
                dials.slow_down();
                State::Again(now + SLOW)
            }
            Dialled::InUse => State::Again(now + IN_USE),
            Dialled::Refused if dials.pace == Pace::Slow => State::Again(now + SLOW),
            Dialled::Refused => {
                let left = dials.share.saturating_sub(dials.count);
                let most = if left <= dials.share / 2 {
                    // The second half of the dials lasts until the end.
                    self.end.saturating_duration_since(now) * 2 / (left + 1)
                } else if now.saturating_duration_since(since) < QUICK {
                    SPREAD
                } else {
                    Duration::ZERO
                };
                State::Again(now + most.mul_f64(f64::from(random) / f64::from(u32::MAX)))
            }
        };
    }

    /// Dials no more: there is a connection to the peer. The attempt goes on, because only the peer may know which one is used.
    pub(crate) fn succeeded(&mut self) {
        self.has_peer = true;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn quick(count: usize, now: Instant) -> Punch {
        let mut punch = Punch::new(vec![Pace::Quick; count].into_iter(), true, now);
        punch.moves.clear();
        punch
    }

    /// Returns the dials until there is something to wait for, and until when.
    fn dials(punch: &mut Punch, now: Instant) -> (Vec<usize>, Option<Duration>) {
        let mut dials = Vec::new();
        loop {
            match punch.next(now) {
                Step::Dial(number) => dials.push(number),
                Step::Move => panic!("nothing is wrong with the port"),
                Step::Wait(until) => return (dials, Some(until - now)),
                Step::Over => return (dials, None),
            }
        }
    }

    #[test]
    fn candidates_begin_one_after_the_other() {
        let start = Instant::now();
        let mut punch = quick(3, start);
        assert_eq!(dials(&mut punch, start), (vec![0], Some(STAGGER)));
        assert_eq!(dials(&mut punch, start + 100 * MS), (vec![], Some(150 * MS)));
        assert_eq!(dials(&mut punch, start + STAGGER), (vec![1], Some(STAGGER)));
        let now = start + 300 * MS;
        punch.dialled(1, Dialled::Unreachable, now, 0);
        assert_eq!(dials(&mut punch, now), (vec![2], Some(SLOW)));
        assert_eq!(dials(&mut punch, start + ATTEMPT), (vec![], None));
    }

    #[test]
    fn a_refused_one_is_dialled_again_at_once() {
        let mut now = Instant::now();
        let mut punch = quick(1, now);
        for _ in 0..100 {
            assert_eq!(dials(&mut punch, now).0, [0]);
            now += 20 * MS;
            punch.dialled(0, Dialled::Refused, now, u32::MAX);
        }
    }

    #[test]
    fn a_refusal_by_a_near_machine_does_not_use_up_the_dials() {
        let mut now = Instant::now();
        let end = now + ATTEMPT;
        let mut punch = quick(1, now);
        let mut times = Vec::new();
        let mut random = 1_u32;
        loop {
            match punch.next(now) {
                Step::Dial(_) => {
                    times.push(now);
                    now += MS / 4;
                    random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    punch.dialled(0, Dialled::Refused, now, random);
                }
                Step::Wait(until) => now = until,
                Step::Move => unreachable!("there are no moves"),
                Step::Over => break,
            }
        }
        assert!(times.len() <= 400, "{}", times.len());
        assert!(end - *times.last().unwrap() < 500 * MS, "the last dials come near the end");
        let pauses: Vec<Duration> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(pauses[..150].iter().all(|pause| *pause <= SPREAD + MS), "quickly at first");
        assert!(pauses.windows(2).any(|pair| pair[0] != pair[1]), "never in step");
    }

    #[test]
    fn a_slow_one_is_dialled_now_and_then() {
        let start = Instant::now();
        let mut punch = Punch::new([Pace::Slow].into_iter(), true, start);
        let mut now = start;
        for _ in 0..MOST_SLOW_DIALS {
            assert_eq!(dials(&mut punch, now).0, [0]);
            punch.dialled(0, Dialled::Refused, now, u32::MAX);
            assert!(dials(&mut punch, now).0.is_empty());
            now += SLOW;
        }
        assert_eq!(dials(&mut punch, now), (vec![], Some(start + ATTEMPT - now)));
    }

    #[test]
    fn the_listener_s_connection_comes_first() {
        let start = Instant::now();
        let mut punch = quick(1, start);
        assert_eq!(dials(&mut punch, start).0, [0]);
        punch.dialled(0, Dialled::InUse, start, 0);
        assert_eq!(dials(&mut punch, start), (vec![], Some(IN_USE)));
        assert_eq!(dials(&mut punch, start + IN_USE).0, [0]);
    }

    #[test]
    fn what_is_connected_is_left_and_what_is_unreachable_is_dialled_slowly() {
        let start = Instant::now();
        let mut punch = quick(1, start);
        assert_eq!(dials(&mut punch, start).0, [0]);
        punch.dialled(0, Dialled::Connected, start, 0);
        assert_eq!(dials(&mut punch, start), (vec![], Some(ATTEMPT)));

        let mut punch = quick(1, start);
        let mut now = start;
        for _ in 0..MOST_SLOW_DIALS {
            assert_eq!(dials(&mut punch, now).0, [0]);
            punch.dialled(0, Dialled::Unreachable, now, 0);
            assert_eq!(dials(&mut punch, now).1, Some(SLOW));
            now += SLOW;
        }
        assert_eq!(dials(&mut punch, now).0, [0; 0]);
    }

    #[test]
    fn a_side_that_is_refused_takes_another_port_at_its_time_and_begins_again() {
        let start = Instant::now();
        let of = |is_client| {
            let mut punch = Punch::new([Pace::Crossing].into_iter(), is_client, start);
            let (mut now, mut moves, mut dials) = (start, Vec::new(), 0);
            loop {
                match punch.next(now) {
                    Step::Dial(number) => {
                        dials += 1;
                        now += MS;
                        punch.dialled(number, Dialled::Refused, now, u32::MAX / 2);
                    }
                    Step::Move => {
                        moves.push((now - start).as_millis());
                        punch.restart([Pace::Crossing].into_iter(), now);
                    }
                    Step::Wait(until) => now = until,
                    Step::Over => return (moves, dials),
                }
            }
        };
        let about = |moves: &[u128], expected: [u128; MOST_MOVES]| {
            moves.len() == MOST_MOVES
                && moves.iter().zip(expected).all(|(one, expected)| one.abs_diff(expected) < 20)
        };
        for (is_client, expected) in [(true, [700, 2100]), (false, [1400, 2800])] {
            let (moves, dials) = of(is_client);
            assert!(about(&moves, expected), "{moves:?}");
            assert!(dials <= MOST_DIALS && dials > 100, "{dials}");
        }
    }

    #[test]
    fn a_side_that_nobody_refuses_keeps_its_port() {
        let start = Instant::now();
        for (pace, result) in [
            (Pace::Crossing, Dialled::InUse),
            (Pace::Slow, Dialled::Refused),
            // Nobody at home has this address.
            (Pace::Quick, Dialled::Unreachable),
        ] {
            let mut punch = Punch::new([pace].into_iter(), true, start);
            let mut now = start;
            loop {
                match punch.next(now) {
                    Step::Dial(number) => punch.dialled(number, result, now, 0),
                    Step::Move => panic!("{pace:?} {result:?}"),
                    Step::Wait(until) => now = until,
                    Step::Over => break,
                }
            }
        }
    }

    #[test]
    fn candidates_that_come_later_are_dialled_within_the_same_limits() {
        let start = Instant::now();
        let mut punch = quick(0, start);
        assert_eq!(dials(&mut punch, start), (vec![], Some(ATTEMPT)));
        punch.add(Pace::Quick);
        assert_eq!(dials(&mut punch, start).0, [0]);
        let mut now = start;
        for _ in 0..300 {
            now += 6 * MS;
            punch.dialled(0, Dialled::Refused, now, 0);
            assert_eq!(dials(&mut punch, now).0, [0]);
        }
        punch.add(Pace::Quick);
        let mut count = 0;
        while now < start + ATTEMPT {
            for number in dials(&mut punch, now).0 {
                count += 1;
                punch.dialled(number, Dialled::Refused, now, 0);
            }
            now += 6 * MS;
        }
        assert_eq!(count, MOST_DIALS - 301);
    }

    #[test]
    fn nothing_new_is_dialled_after_a_success() {
        let start = Instant::now();
        let mut punch = quick(3, start);
        assert_eq!(dials(&mut punch, start).0, [0]);
        punch.succeeded();
        punch.dialled(0, Dialled::Refused, start, 0);
        assert_eq!(dials(&mut punch, start + STAGGER), (vec![], Some(ATTEMPT - STAGGER)));
        assert_eq!(dials(&mut punch, start + ATTEMPT), (vec![], None));
    }

    proptest! {
        #[test]
        fn every_attempt_is_bounded(
            paces in prop::collection::vec(0_usize..3, 0..17), is_client: bool,
            results in prop::collection::vec((0_u8..4, 0_u64..300, any::<u32>()), 1..50),
        ) {
            let start = Instant::now();
            let mut now = start;
            let pace = |number: &usize| [Pace::Quick, Pace::Crossing, Pace::Slow][*number];
            let mut punch = Punch::new(paces.iter().map(pace), is_client, start);
            let mut results = results.iter().cycle();
            let mut each = vec![0; paces.len()];
            let (mut under_way, mut moves) = (Vec::new(), 0);
            loop {
                match punch.next(now) {
                    Step::Dial(number) => {
                        each[number] += 1;
                        prop_assert!(!under_way.contains(&number), "one dial at a time");
                        under_way.push(number);
                    }
                    Step::Move => {
                        moves += 1;
                        under_way.clear();
                        punch.restart(paces.iter().map(pace), now);
                    }
                    Step::Wait(until) => {
                        prop_assert!(until > now && until <= start + ATTEMPT);
                        let (result, after, random) = *results.next().unwrap();
                        // Some results come before the time is up.
                        let Some(number) = under_way.pop() else { now = until; continue };
                        now = until.min(now + MS * u32::try_from(after).unwrap());
                        let result = match result {
                            0 => Dialled::Connected,
                            1 => Dialled::InUse,
                            2 => Dialled::Unreachable,
                            _ => Dialled::Refused,
                        };
                        punch.dialled(number, result, now, random);
                    }
                    Step::Over => break,
                }
            }
            prop_assert_eq!(now, start + ATTEMPT);
            prop_assert!(moves <= MOST_MOVES);
            prop_assert!(each.iter().sum::<u32>() <= MOST_DIALS);
        }
    }
}
