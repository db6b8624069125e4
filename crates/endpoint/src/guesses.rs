//! Limits guesses of the password (srp): one at a time for each peer, and a budget for all peers that have not proved
//! it.
//!
//! A peer has one guess in each session. After a wrong guess its next one waits, twice as long each time, in every
//! session. Parallel sessions of one peer wait for each other. A peer that has proved the password, or whose key is
//! remembered, waits for no other peer.
//!
//! A password for one use may have a [limit](Ledger::most): all wrong guesses of all peers together. The guesses in progress
//! count until they are over, so that parallel ones are not more either.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jid::BareJid;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

/// The longest wait of a peer for its own wrong guesses: shorter than a handshake may take.
const LONGEST: Duration = Duration::from_secs(30);
/// The guesses that all unproven peers together have at once.
const BURST: u32 = 16;
/// The time until the budget has one more. One peer alone, at one guess in [`LONGEST`], never uses it up.
const REFILL: Duration = Duration::from_secs(5);
/// The most peers that are remembered.
const PEERS: usize = 1024;
/// How long a peer's wrong guesses are remembered.
const MEMORY: Duration = Duration::from_secs(3600);

#[derive(Debug)]
struct Peer {
    /// Wrong guesses since the last right one.
    wrong: u32,
    /// When the next guess may come.
    from: Instant,
    /// Whether a guess is in progress.
    busy: bool,
    /// Whether the peer has proved the password.
    proven: bool,
    /// Whether the guess in progress was taken from the budget.
    paid: bool,
    last: Instant,
}

/// When a guess may be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Now,
    /// Not before this moment.
    At(Instant),
    /// When another guess is over.
    AfterAnother,
    /// No more.
    Never,
}

/// The rules, without a clock: the time is an argument.
#[derive(Debug)]
struct Ledger {
    peers: HashMap<BareJid, Peer>,
    budget: u32,
    refilled: Instant,
    /// The most wrong guesses in all, if they are limited.
    most: Option<u32>,
    /// Wrong guesses of all peers.
    wrong: u32,
    /// Guesses in progress.
    running: u32,
}

impl Ledger {
    fn new(most: Option<u32>, now: Instant) -> Self {
        let (peers, budget, refilled) = (HashMap::new(), BURST, now);
        Self { peers, budget, refilled, most, wrong: 0, running: 0 }
    }

    /// Returns the wait before a peer's next guess after so many wrong ones.
    fn delay(wrong: u32) -> Duration {
        LONGEST.min(Duration::from_secs(1 << wrong.saturating_sub(1).min(5)))
    }

    fn refill(&mut self, now: Instant) {
        while self.budget < BURST && now.duration_since(self.refilled) >= REFILL {
            self.budget += 1;
            self.refilled += REFILL;
        }
        if self.budget == BURST {
            self.refilled = now;
        }
    }

    /// Begins a guess if it is the peer's turn. A `remembered` peer uses no budget, like one that has proved the
    /// password.
    fn begin(&mut self, peer: &BareJid, remembered: bool, now: Instant) -> Turn {
        self.refill(now);
        match self.most {
            Some(most) if self.wrong >= most => return Turn::Never,
            Some(most) if self.wrong.saturating_add(self.running) >= most => {
                return Turn::AfterAnother;
            }
            _ => {}
        }
        let known = self.peers.get(peer);
        if known.is_some_and(|known| known.busy) {
            return Turn::AfterAnother;
        }
        if let Some(known) = known.filter(|known| known.from > now) {
            return Turn::At(known.from);
        }
        let is_exempt = remembered || known.is_some_and(|known| known.proven);
        if !is_exempt && self.budget == 0 {
            return Turn::At(self.refilled + REFILL);
        }
        if known.is_none() && !self.make_room(now) {
            return Turn::AfterAnother;
        }
        if !is_exempt {
            self.budget -= 1;
        }
        let fresh =
            || Peer { wrong: 0, from: now, busy: false, proven: false, paid: false, last: now };
        let known = self.peers.entry(peer.clone()).or_insert_with(fresh);
        known.busy = true;
        known.paid = !is_exempt;
        known.last = now;
        self.running += 1;
        Turn::Now
    }

    /// Forgets old entries. If too many are left, forgets the least recent one.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.peers.len() < PEERS {
            return true;
        }
        self.peers.retain(|_, peer| peer.busy || now.duration_since(peer.last) < MEMORY);
        if self.peers.len() < PEERS {
            return true;
        }
        let idle = self.peers.iter().filter(|(_, peer)| !peer.busy);
        let oldest =
            idle.min_by_key(|(_, peer)| (peer.proven, peer.last)).map(|(jid, _)| jid.clone());
        oldest.is_some_and(|jid| self.peers.remove(&jid).is_some())
    }

    /// Ends a guess: right, wrong, or (`None`) not made.
    fn end(&mut self, peer: &BareJid, right: Option<bool>, now: Instant) {
        self.running = self.running.saturating_sub(1);
        if right == Some(false) {
            self.wrong = self.wrong.saturating_add(1);
        }
        let Some(known) = self.peers.get_mut(peer) else { return };
        known.busy = false;
        known.last = now;
        let paid = std::mem::take(&mut known.paid);
        match right {
            Some(true) => (known.wrong, known.from, known.proven) = (0, now, true),
            Some(false) => {
                known.wrong = known.wrong.saturating_add(1);
                known.from = now + Self::delay(known.wrong);
            }
            None => {}
        }
        if right != Some(false) && paid {
            self.budget = BURST.min(self.budget + 1);
        }
    }
}

/// The guesses at an endpoint's password.
#[derive(Debug)]
pub(super) struct Guesses {
    ledger: Mutex<Ledger>,
    ended: Notify,
}

/// There have been as many wrong guesses as are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spent;

impl Guesses {
    /// Creates the rules for a password. With `most`, no more wrong guesses are taken in all.
    pub(super) fn new(most: Option<u32>) -> Self {
        Self { ledger: Mutex::new(Ledger::new(most, Instant::now())), ended: Notify::new() }
    }

    /// Returns the number of wrong guesses of all peers.
    pub(super) fn wrong(&self) -> u32 {
        self.lock().wrong
    }

    /// Waits until a peer may try a guess. `remembered` says whether the peer is known by its key: strangers' guesses do not
    /// make it wait.
    ///
    /// # Errors
    /// [`Spent`] if there is no further guess for any peer.
    pub(super) async fn turn(&self, peer: &BareJid, remembered: bool) -> Result<Guess<'_>, Spent> {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            // A guess that ends from here on is noticed.
            ended.as_mut().enable();
            let turn = self.lock().begin(peer, remembered, Instant::now());
            match turn {
                Turn::Now => {
                    return Ok(Guess { guesses: self, peer: peer.clone(), right: None });
                }
                Turn::AfterAnother => ended.await,
                Turn::At(moment) => sleep_until(moment).await,
                Turn::Never => return Err(Spent),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A guess in progress. If it is dropped without a result, it was not made.
#[derive(Debug)]
pub(super) struct Guess<'a> {
    guesses: &'a Guesses,
    peer: BareJid,
    right: Option<bool>,
}

impl Guess<'_> {
    /// Records the result: whether the peer knows the password.
    pub(super) fn settle(&mut self, right: bool) {
        self.right = Some(right);
    }
}

impl Drop for Guess<'_> {
    fn drop(&mut self) {
        self.guesses.lock().end(&self.peer, self.right, Instant::now());
        self.guesses.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::task::JoinSet;

    use super::*;

    fn user(name: impl std::fmt::Display) -> BareJid {
        BareJid::new(&format!("{name}@example.org")).unwrap()
    }

    /// Makes one guess; returns how long it had to wait.
    async fn guess(guesses: &Guesses, name: &str, right: bool) -> u64 {
        let before = Instant::now();
        let mut turn = guesses.turn(&user(name), false).await.unwrap();
        turn.settle(right);
        before.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn wrong_guesses_make_the_next_wait_and_a_right_one_ends_that() {
        let guesses = Guesses::new(None);
        assert_eq!(guess(&guesses, "carol", false).await, 0);
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            assert_eq!(guess(&guesses, "carol", false).await, seconds);
        }
        assert_eq!(guess(&guesses, "carol", true).await, 30);
        assert_eq!(guess(&guesses, "carol", true).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn guesses_in_parallel_sessions_are_no_more_than_one_after_the_other() {
        let guesses = Arc::new(Guesses::new(None));
        // Eight guesses at once, none made yet: each has its turn.
        let mut sessions = JoinSet::new();
        let begin = Instant::now();
        for _ in 0..8 {
            let guesses = Arc::clone(&guesses);
            sessions.spawn(async move {
                let mut turn = guesses.turn(&user("carol"), false).await.unwrap();
                let at = begin.elapsed().as_secs();
                tokio::time::sleep(Duration::from_millis(1)).await;
                turn.settle(false);
                at
            });
        }
        let mut times = sessions.join_all().await;
        times.sort_unstable();
        assert_eq!(times, [0, 1, 3, 7, 15, 31, 61, 91]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_right_user_does_not_wait_for_a_strangers_guesses() {
        let guesses = Arc::new(Guesses::new(None));
        let mut sessions = JoinSet::new();
        for _ in 0..50 {
            let guesses = Arc::clone(&guesses);
            sessions.spawn(async move {
                loop {
                    guess(&guesses, "carol", false).await;
                }
            });
        }
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_secs(7)).await;
            assert_eq!(guess(&guesses, "alice", true).await, 0);
        }
        // Nor does a second peer that comes for the first time.
        assert_eq!(guess(&guesses, "bob", true).await, 0);
        // Nor for a peer that holds its turn and sends nothing.
        let _silent = guesses.turn(&user("dave"), false).await;
        assert_eq!(guess(&guesses, "erin", true).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn many_accounts_share_a_budget_that_leaves_out_whoever_has_proved_the_password() {
        let guesses = Arc::new(Guesses::new(None));
        assert_eq!(guess(&guesses, "alice", true).await, 0);
        let begin = Instant::now();
        let mut sessions = JoinSet::new();
        for n in 0..200 {
            let guesses = Arc::clone(&guesses);
            sessions.spawn(async move {
                guess(&guesses, &format!("m{n}"), false).await;
                begin.elapsed()
            });
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(guess(&guesses, "alice", true).await, 0);
        let mut times = sessions.join_all().await;
        times.sort_unstable();
        let at_once = times.iter().filter(|time| time.as_secs() == 0).count();
        assert_eq!(at_once, usize::try_from(BURST).unwrap());
        let within = |limit: Duration| times.iter().filter(|time| **time <= limit).count();
        assert_eq!(within(Duration::from_secs(60)), at_once + 12);
        assert_eq!(within(Duration::from_secs(600)), at_once + 120);
    }

    #[tokio::test(start_paused = true)]
    async fn a_remembered_peer_does_not_wait_for_the_strangers_budget() {
        let guesses = Guesses::new(None);
        for n in 0..BURST {
            assert_eq!(guess(&guesses, &format!("m{n}"), false).await, 0);
        }
        let begin = Instant::now();
        guesses.turn(&user("alice"), true).await.unwrap().settle(true);
        assert_eq!(begin.elapsed(), Duration::ZERO);
        // It has no more guesses at once than others.
        for seconds in [0, 1, 2, 4] {
            let begin = Instant::now();
            guesses.turn(&user("bob"), true).await.unwrap().settle(false);
            assert_eq!(begin.elapsed().as_secs(), seconds);
        }
        // It gives back nothing that it has not taken.
        let full = guesses.lock().budget;
        drop(guesses.turn(&user("erin"), true).await);
        assert_eq!(guesses.lock().budget, full);
    }

    #[tokio::test(start_paused = true)]
    async fn a_password_with_a_limit_takes_no_more_wrong_guesses_however_they_come() {
        let guesses = Arc::new(Guesses::new(Some(3)));
        // Of ten at once, three are made. The others wait for their results, and get no turn.
        let mut sessions = JoinSet::new();
        for n in 0..10 {
            let guesses = Arc::clone(&guesses);
            sessions.spawn(async move {
                let Ok(mut turn) = guesses.turn(&user(n), false).await else { return false };
                tokio::time::sleep(Duration::from_millis(1)).await;
                turn.settle(false);
                true
            });
        }
        let made = sessions.join_all().await;
        assert_eq!(made.iter().filter(|made| **made).count(), 3);
        assert_eq!(guesses.wrong(), 3);
        // Nor does one who knows the password.
        assert_eq!(guesses.turn(&user("alice"), true).await.unwrap_err(), Spent);
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_limit_only_wrong_guesses_count() {
        let guesses = Guesses::new(Some(2));
        for _ in 0..5 {
            drop(guesses.turn(&user("carol"), false).await.unwrap());
            assert_eq!(guess(&guesses, "alice", true).await, 0);
        }
        guess(&guesses, "carol", false).await;
        assert_eq!(guess(&guesses, "alice", true).await, 0);
        guess(&guesses, "mallory", false).await;
        assert_eq!(
            (guesses.wrong(), guesses.turn(&user("bob"), false).await.unwrap_err()),
            (2, Spent)
        );
    }

    #[test]
    fn a_guess_that_was_never_made_costs_nothing_and_memory_is_bounded() {
        let now = Instant::now();
        let mut ledger = Ledger::new(None, now);
        for n in 0..3 * PEERS {
            let peer = user(n);
            assert_eq!(ledger.begin(&peer, false, now), Turn::Now);
            assert_eq!(ledger.begin(&peer, false, now), Turn::AfterAnother);
            ledger.end(&peer, None, now);
            assert_eq!(ledger.begin(&peer, false, now), Turn::Now);
            ledger.end(&peer, None, now);
        }
        assert_eq!(ledger.peers.len(), PEERS);
        assert_eq!(ledger.budget, BURST);
    }
}
