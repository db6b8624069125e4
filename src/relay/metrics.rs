//! The metrics of streams, counted as things happen.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use fingerpost_wire::transport_kind::TransportKind;
use strum::{IntoStaticStr, VariantArray};

use super::pipe::Ended;
use crate::metrics::{Histogram, head, sample};

/// Why a connection or an activation was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Cause {
    /// Too many connections from one address.
    AddressLimit,
    /// No file descriptor was left.
    Descriptors,
    /// A silent connection made room for a new one.
    MadeRoom,
    /// The first bytes were not a valid SOCKS5 handshake.
    Handshake,
    /// The PROXY header was missing or malformed.
    ProxyHeader,
    /// Two sides were connected already, or the connection was not expected.
    ThirdConnection,
    /// Too many sessions.
    SessionLimit,
    /// Too many sessions of one user.
    UserLimit,
    /// An activation of a transfer that does not exist, or belongs to another user.
    NotFound,
    /// An activation with one side missing.
    OneSide,
    /// A second activation.
    AlreadyActive,
    /// An activation while the component drains.
    Draining,
    /// The stream of a brokered session did not start with a ClientHello.
    NotTls,
}

/// The wait that timed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum TimeoutPhase {
    /// Greeting and request.
    Handshake,
    /// Connected and not activated.
    Activation,
    /// No byte either way.
    Idle,
    /// A peer that TCP or an in-band stream asked did not answer.
    Vanished,
}

/// The counters. Only the gauge of open sessions can decrease.
#[derive(Debug, Default)]
pub struct Metrics {
    started: [[AtomicU64; 2]; 2],
    open: [[AtomicU64; 2]; 2],
    bytes: [[AtomicU64; 2]; 2],
    refusals: [AtomicU64; Cause::VARIANTS.len()],
    timeouts: [AtomicU64; TimeoutPhase::VARIANTS.len()],
    setup: SetupTimes,
}

/// The times of sessions from their first connection to their activation.
#[derive(Debug)]
struct SetupTimes(Histogram<12>);

impl Default for SetupTimes {
    fn default() -> Self {
        Self(Histogram::new(
            "setup_seconds",
            "From a transfer's first connection to its activation",
            [
                1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000,
                5_000_000, 15_000_000, 60_000_000,
            ],
        ))
    }
}

impl Metrics {
    /// Counts the beginning of a session between two legs.
    pub(super) fn session_began(&self, initiator: TransportKind, responder: TransportKind) {
        add(&self.started[initiator as usize][responder as usize], 1);
        add(&self.open[initiator as usize][responder as usize], 1);
    }

    /// Counts the end of a session.
    pub(super) fn session_ended(&self, initiator: TransportKind, responder: TransportKind) {
        self.open[initiator as usize][responder as usize].fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts bytes that came from one leg and were written to the other.
    pub(super) fn moved(&self, from: TransportKind, to: TransportKind, bytes: u64) {
        add(&self.bytes[from as usize][to as usize], bytes);
    }

    /// Counts a refusal.
    pub(super) fn refused(&self, cause: Cause) {
        add(&self.refusals[cause as usize], 1);
    }

    /// Counts why a stream ended.
    pub(super) fn ended(&self, end: Ended) {
        match end {
            Ended::Idle => self.timed_out(TimeoutPhase::Idle, 1),
            Ended::NotTls => self.refused(Cause::NotTls),
            // The component, keepalive, or the acknowledgements of an in-band leg found it.
            Ended::Error(io::ErrorKind::TimedOut) => self.timed_out(TimeoutPhase::Vanished, 1),
            Ended::Eof | Ended::Error(_) => {}
        }
    }

    /// Counts timeouts.
    pub(super) fn timed_out(&self, phase: TimeoutPhase, count: usize) {
        add(&self.timeouts[phase as usize], count as u64);
    }

    /// Counts the time of a session from its first connection to its activation.
    pub(super) fn set_up(&self, took: Duration) {
        self.setup.0.took(took);
    }

    /// Returns the number of streams between two legs since the start.
    pub fn streams(&self) -> u64 {
        self.started.iter().flatten().map(get).sum()
    }

    /// Returns the number of bytes relayed since the start.
    pub fn bytes(&self) -> u64 {
        self.bytes.iter().flatten().map(get).sum()
    }

    /// Returns the number of refusals for one cause.
    pub fn refusals(&self, cause: Cause) -> u64 {
        get(&self.refusals[cause as usize])
    }

    /// Returns the number of timeouts of one kind.
    pub fn timeouts(&self, phase: TimeoutPhase) -> u64 {
        get(&self.timeouts[phase as usize])
    }

    /// Writes all of it in Prometheus' text format.
    pub fn write(&self, text: &mut String) {
        let by_legs = |text: &mut String, name, kind, help, labels: [&str; 2], of: &[[_; 2]; 2]| {
            head(text, name, kind, help);
            let [x, y] = labels;
            for a in TransportKind::ALL {
                for b in TransportKind::ALL {
                    let value = get(&of[a as usize][b as usize]);
                    sample(text, name, &[(x, a.as_str()), (y, b.as_str())], value);
                }
            }
        };
        let legs = ["initiator", "responder"];
        let help = "Streams between two legs since the start, by the legs' transports";
        by_legs(text, "streams_total", "counter", help, legs, &self.started);
        let help = "Streams between two legs now, by the legs' transports";
        by_legs(text, "streams_open", "gauge", help, legs, &self.open);
        let help = "Bytes relayed, by the transports they came from and went to";
        by_legs(text, "relayed_bytes_total", "counter", help, ["from", "to"], &self.bytes);
        let help = "Connections and activations refused, by cause";
        head(text, "refusals_total", "counter", help);
        for &cause in Cause::VARIANTS {
            sample(text, "refusals_total", &[("cause", cause.into())], self.refusals(cause));
        }
        head(text, "timeouts_total", "counter", "Waits that were too long, by phase");
        for &phase in TimeoutPhase::VARIANTS {
            sample(text, "timeouts_total", &[("phase", phase.into())], self.timeouts(phase));
        }
        self.setup.0.write(text);
    }
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let metrics = Metrics::default();
        metrics.session_began(TransportKind::S5b, TransportKind::Ibb);
        metrics.moved(TransportKind::Ibb, TransportKind::S5b, 7);
        metrics.refused(Cause::UserLimit);
        metrics.timed_out(TimeoutPhase::Idle, 2);
        for micros in [1, 1_000, 1_001, 61_000_000] {
            metrics.set_up(Duration::from_micros(micros));
        }
        let mut text = String::new();
        metrics.write(&mut text);
        for line in [
            "fingerpost_streams_total{initiator=\"s5b\",responder=\"ibb\"} 1",
            "fingerpost_streams_open{initiator=\"s5b\",responder=\"ibb\"} 1",
            "fingerpost_streams_open{initiator=\"s5b\",responder=\"s5b\"} 0",
            "fingerpost_relayed_bytes_total{from=\"ibb\",to=\"s5b\"} 7",
            "fingerpost_refusals_total{cause=\"user_limit\"} 1",
            "fingerpost_timeouts_total{phase=\"idle\"} 2",
            "fingerpost_setup_seconds_bucket{le=\"0.001\"} 2",
            "fingerpost_setup_seconds_bucket{le=\"0.0025\"} 3",
            "fingerpost_setup_seconds_bucket{le=\"60\"} 3",
            "fingerpost_setup_seconds_bucket{le=\"+Inf\"} 4",
            "fingerpost_setup_seconds_sum 61.002002",
            "fingerpost_setup_seconds_count 4",
        ] {
            assert!(text.lines().any(|written| written == line), "{line} in\n{text}");
        }
        let mut names: Vec<_> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
        metrics.session_ended(TransportKind::S5b, TransportKind::Ibb);
        assert_eq!(get(&metrics.open[0][1]), 0);
    }
}
