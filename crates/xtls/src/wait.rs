//! Starts a session, and waits for a peer that is not there.
//!
//! While it waits, the session is proposed to the peer's programs (XEP-0353): one that appears may take it. Beside that it
//! is started every few seconds as without a wait, because not every program answers proposals. There is one attempt at a
//! time, so the peer never gets two sessions.

use std::time::Duration;

use fingerpost_endpoint::{
    Application, Endpoint, Error, Proposal, ProposalNews, SecureStream, Session,
};
use fingerpost_wire::message_initiation::RING;
use jid::Jid;
use serde_json::json;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{client::Client, output::XtlsError};

/// The first and the longest pause between two attempts to reach a peer.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// The first and the longest pause between two proposals that may have reached somebody. Servers store them.
const PROPOSALS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));
/// The longest such pause if only a proposal can reach the peer, and as a part of the time waited so far, whichever is longer: a program
/// that appears hears none of the earlier ones.
const ONLY_PROPOSALS: (Duration, u32) = (Duration::from_secs(60), 10);

/// What to do about a peer that is not there.
const ABSENT: &str =
    "the other side must run `xtls listen`, or another program that takes files and is online";

type Started = (Session, SecureStream);

/// How long to wait for a peer that is not there.
#[derive(Debug)]
pub(super) struct Patience {
    wait: Duration,
    until: Instant,
    /// Whether the user knows that we wait.
    told: bool,
}

impl Patience {
    pub(super) fn new(wait: Duration) -> Self {
        Self { wait, until: Instant::now() + wait, told: false }
    }
}

/// Starts a session. If the peer is not there, waits as long as there is patience.
pub(super) async fn initiate(
    client: &Client,
    endpoint: &Endpoint,
    peer: &Jid,
    application: &Application,
    patience: Option<&mut Patience>,
) -> Result<Started, XtlsError> {
    let error = match endpoint.initiate(peer, application).await {
        Ok(started) => return Ok(started),
        Err(error) => error,
    };
    let Some(patience) = patience else {
        return Err(failure(error, "; `xtls send --wait 10m` waits for that"));
    };
    let can_call = client.via.is_some() || !peer.is_bare();
    let (proposal, ringing, pace) = (None, None, Pace::new(Instant::now(), can_call));
    let wait = Wait { client, endpoint, peer, application, can_call, proposal, ringing, pace };
    let error = match error {
        Error::Address(_) if !can_call => {
            Error::Unreachable(format!("no program of {peer} has taken the session"))
        }
        error => error,
    };
    wait.run(patience, error).await.map_err(|error| failure(error, ""))
}

fn failure(error: Error, more: &str) -> XtlsError {
    let is_absent = matches!(error, Error::Unreachable(_));
    let error = XtlsError::from(error);
    if is_absent { error.hint(format!("{ABSENT}{more}")) } else { error }
}

/// The wait for a peer.
struct Wait<'a> {
    client: &'a Client,
    endpoint: &'a Endpoint,
    peer: &'a Jid,
    application: &'a Application,
    /// Whether the address is enough to start a session. Without a broker, a bare JID is not.
    can_call: bool,
    /// The open proposal.
    proposal: Option<Proposal>,
    /// Since when it rings.
    ringing: Option<Instant>,
    pace: Pace,
}

impl Wait<'_> {
    /// Waits after an attempt that has failed with this error.
    async fn run(mut self, patience: &mut Patience, mut error: Error) -> Result<Started, Error> {
        let mut pause = PAUSES.0;
        while self.may_change(&error) && Instant::now() < patience.until {
            self.tell(patience);
            let until = (Instant::now() + pause).min(patience.until);
            pause = (pause * 2).min(PAUSES.1);
            error = match self.propose_until(until).await {
                Ok(Some(started)) => return Ok(started),
                // Where it rings, its user decides, and gets no second question.
                Ok(None) if !self.can_call || self.rings() => error,
                Ok(None) => match self.endpoint.initiate(self.peer, self.application).await {
                    Ok(started) => return Ok(started),
                    Err(error) => error,
                },
                Err(error) => error,
            };
        }
        Err(error)
    }

    fn may_change(&self, error: &Error) -> bool {
        let is_away = matches!(error, Error::Unreachable(_) | Error::Silent(_));
        // Between two connections to the server nobody can be reached.
        is_away || matches!(error, Error::Disconnected) && self.endpoint.is_connected()
    }

    fn tell(&self, patience: &mut Patience) {
        if std::mem::replace(&mut patience.told, true) {
            return;
        }
        let (peer, wait) = (self.peer, patience.wait);
        self.client.output.event(
            &json!({"event": "waiting", "peer": peer.as_str(), "seconds": wait.as_secs()}),
            &format!(
                "{peer} is not there yet: waiting up to {} (Ctrl-C ends)",
                indicatif::HumanDuration(wait)
            ),
        );
    }

    /// Proposes the session if it is time to, and starts it if somebody takes it before `until`.
    ///
    /// # Errors
    /// [`Error::Unreachable`] after that time if nobody could get a session; at once if the peer rejects the session,
    /// or the session that was taken fails.
    async fn propose_until(&mut self, until: Instant) -> Result<Option<Started>, Error> {
        self.propose().await;
        while let Some(proposal) = &mut self.proposal {
            let Ok(news) = timeout_at(until, proposal.next()).await else { return Ok(None) };
            match news {
                Ok(ProposalNews::Ringing) => self.ring(),
                Ok(ProposalNews::Proceeds) => {
                    // A program that takes it at once does not ring.
                    if self.ringing.is_none() {
                        self.ring();
                    }
                    let Some(taken) = self.proposal.take() else { break };
                    return taken.initiate(self.application).await.map(Some);
                }
                Ok(_) => {}
                Err(error) => {
                    self.proposal = None;
                    match error {
                        Error::Refused(_) => return Err(error),
                        // It has reached nobody, and a bare address then leads to nobody. A full one does
                        // even if its user is hidden or has announced nothing.
                        Error::Unreachable(_) if self.peer.is_bare() => {
                            self.pace = Pace::new(Instant::now(), self.can_call);
                            sleep_until(until).await;
                            return Err(error);
                        }
                        _ => {}
                    }
                }
            }
        }
        sleep_until(until).await;
        Ok(None)
    }

    fn ring(&mut self) {
        self.ringing = Some(Instant::now());
        let peer = self.peer;
        let event = json!({"event": "ringing", "peer": peer.as_str()});
        self.client.output.event(&event, &format!("{peer}: ringing"));
    }

    fn rings(&self) -> bool {
        let rings = self.ringing.is_some_and(|since| Instant::now() < since + RING);
        rings && self.proposal.is_some()
    }

    async fn propose(&mut self) {
        let now = Instant::now();
        if self.rings() || !self.pace.is_due(now) {
            return;
        }
        // An open one is retracted first.
        (self.proposal, self.ringing) = (None, None);
        // If it cannot be sent, the next attempt tells why.
        if let Ok(proposal) = self.endpoint.propose(self.peer, self.application).await {
            self.proposal = Some(proposal);
            self.pace.proposed(now);
        }
    }
}

/// The times of proposals.
#[derive(Debug)]
struct Pace {
    begin: Instant,
    next: Instant,
    gap: Duration,
    /// Whether the peer can also be reached without a proposal.
    can_call: bool,
}

impl Pace {
    fn new(now: Instant, can_call: bool) -> Self {
        Self { begin: now, next: now, gap: PROPOSALS.0, can_call }
    }

    fn is_due(&self, now: Instant) -> bool {
        now >= self.next
    }

    fn proposed(&mut self, now: Instant) {
        self.next = now + self.gap;
        let (least, part) = ONLY_PROPOSALS;
        let longest = match self.can_call {
            true => PROPOSALS.1,
            false => least.max((now - self.begin) / part).min(PROPOSALS.1),
        };
        self.gap = (self.gap * 2).min(longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the pauses between the proposals of a wait of so many seconds, if each may have reached somebody.
    fn pauses(wait: u64, can_call: bool) -> Vec<u64> {
        let begin = Instant::now();
        let mut pace = Pace::new(begin, can_call);
        let mut is_one = |second: &u64| {
            let now = begin + Duration::from_secs(*second);
            pace.is_due(now).then(|| pace.proposed(now)).is_some()
        };
        let seconds: Vec<u64> = (0..wait).filter(|second| is_one(second)).collect();
        seconds.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }

    #[test]
    fn a_long_wait_does_not_fill_the_archive_of_a_peer_that_can_be_called() {
        assert!(pauses(1, true).is_empty());
        assert_eq!(pauses(60, true), [5, 10, 20]);
        assert_eq!(pauses(600, true), [5, 10, 20, 40, 80, 160]);
        let day = pauses(86_400, true).len();
        assert!((140..160).contains(&day), "{day}");
    }

    #[test]
    fn a_peer_that_only_a_proposal_reaches_misses_no_more_than_a_tenth_of_the_wait() {
        assert_eq!(pauses(60, false), [5, 10, 20]);
        let ten_minutes = pauses(600, false);
        assert_eq!(ten_minutes[..4], [5, 10, 20, 40]);
        assert_eq!(ten_minutes[4..], [60; 8]);
        let day = pauses(86_400, false);
        assert!((140..200).contains(&day.len()), "{day:?}");
        assert_eq!(day.last(), Some(&600));
    }
}
