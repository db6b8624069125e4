//! The metrics: how they are counted, and written in Prometheus' text format. `relay/metrics.rs` counts the streams.
//!
//! A process has one set of counters and one page that shows it. The labels' values are words of this program, never
//! anything that a user has chosen.

use std::{
    collections::BTreeMap,
    fmt::{Display, Write},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Logins to the XMPP server.
pub static LINK_CONNECTIONS: Counter =
    Counter::new("link_connections_total", "Logins to the XMPP server that succeeded", &[]);
/// Why the link was lost, or could not be made.
pub static LINK_FAILURES: Counter = Counter::new(
    "link_failures_total",
    "Connections to the XMPP server that ended or were not made, by reason",
    &["reason"],
);
/// Stanzas over the link.
pub static STANZAS: Stanzas = Stanzas([const { [const { AtomicU64::new(0) }; 4] }; 2]);
/// Stanzas that were not sent, not read or not answered.
pub static STANZAS_DROPPED: Counter = Counter::new(
    "stanzas_dropped_total",
    "Stanzas that were dropped: not sent, or not read, or not answered",
    &["reason"],
);
/// Presences that were not taken.
pub static PRESENCES_DROPPED: Counter = Counter::new(
    "presences_dropped_total",
    "Presences that were not taken, or not remembered: too many at once, or no place left for the user or the domain",
    &["reason"],
);
/// Requests that were refused.
pub static REFUSALS: Counter = Counter::new(
    "request_refusals_total",
    "Requests over XMPP that were refused, by the error's condition",
    &["condition"],
);
/// Brokered sessions that began.
pub static SESSIONS: Counter =
    Counter::new("broker_sessions_total", "Brokered sessions since the start", &[]);
/// Brokered sessions without protection from end to end.
pub static SESSIONS_PLAIN: Counter = Counter::new(
    "broker_sessions_plain_total",
    "Brokered sessions that nothing encrypts from end to end",
    &[],
);
/// Brokered sessions that ended.
pub static SESSIONS_ENDED: Counter = Counter::new(
    "broker_sessions_ended_total",
    "Brokered sessions that ended, by their legs' transports (none: it was never up) and the reason",
    &["initiator", "responder", "reason"],
);
/// Brokered sessions whose users have connected directly.
pub static SESSIONS_DIRECT: Counter = Counter::new(
    "sessions_direct_total",
    "Brokered sessions whose initiator has reported a direct connection to the responder",
    &[],
);
/// Bytes that did not have to be relayed.
pub static DIRECT_BYTES: Counter = Counter::new(
    "direct_bytes_total",
    "Bytes that brokered sessions have moved over direct connections, as their initiators report",
    &[],
);
/// Ad-hoc commands.
pub static COMMANDS: Counter = Counter::new(
    "commands_total",
    "Pages of ad-hoc commands, by command and how they were answered",
    &["command", "status"],
);
/// Stanzas that instances of a component hand to each other.
pub static CLUSTER_HANDOVERS: Counter = Counter::new(
    "cluster_handovers_total",
    "Stanzas handed to the instance that leads, or received from others, by direction",
    &["direction"],
);
/// How this instance has come to lead, or has ceased to.
pub static CLUSTER_LEAD_CHANGES: Counter = Counter::new(
    "cluster_lead_changes_total",
    "How often this instance has taken, yielded or lost the lead among those of its component",
    &["change"],
);
/// Connections of silent leaders that this instance has ended.
pub static CLUSTER_EVICTIONS: Counter = Counter::new(
    "cluster_evictions_total",
    "Instances that led and went silent, whose connections to the database this one has ended",
    &[],
);
/// Operations on the database.
pub static REGISTRY_OPERATIONS: Counter = Counter::new(
    "registry_operations_total",
    "Operations on the database, by kind and outcome",
    &["operation", "outcome"],
);
/// Times at which changes by others may have gone unheard.
pub static NOTICES_LOST: Counter = Counter::new(
    "registry_notices_lost_total",
    "Times at which notices of changes by others may have been lost: the connection was lost or silent, or another server took the changes",
    &[],
);
/// Durations of operations on the database.
pub static REGISTRY_SECONDS: Histogram<10> = Histogram::new(
    "registry_operation_seconds",
    "How long operations on the database took",
    [100, 250, 1_000, 2_500, 10_000, 25_000, 100_000, 250_000, 1_000_000, 5_000_000],
);

/// A counter for each combination of its labels' values.
#[derive(Debug)]
pub struct Counter {
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    values: Mutex<BTreeMap<Vec<&'static str>, u64>>,
}

impl Counter {
    const fn new(name: &'static str, help: &'static str, labels: &'static [&'static str]) -> Self {
        Self { name, help, labels, values: Mutex::new(BTreeMap::new()) }
    }

    /// Adds one to the counter of these label values.
    pub fn count(&self, values: &[&'static str]) {
        self.add(values, 1);
    }

    /// Adds `n` to the counter of these label values.
    pub fn add(&self, values: &[&'static str], n: u64) {
        debug_assert_eq!(values.len(), self.labels.len());
        let mut counted = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        match counted.get_mut(values) {
            Some(count) => *count = count.saturating_add(n),
            None => {
                counted.insert(values.to_vec(), n);
            }
        }
    }

    /// Returns the counts by label values.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let counted = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        counted.iter().map(|(values, count)| (values.join(" "), *count)).collect()
    }

    /// Returns the sum over all label values.
    pub fn total(&self) -> u64 {
        let counted = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        counted.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    fn write(&self, text: &mut String) {
        head(text, self.name, "counter", self.help);
        let counted = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        if self.labels.is_empty() && counted.is_empty() {
            sample(text, self.name, &[], 0);
        }
        for (values, count) in counted.iter() {
            let labels: Vec<_> = self.labels.iter().copied().zip(values.iter().copied()).collect();
            sample(text, self.name, &labels, count);
        }
    }
}

/// Stanzas by direction and kind. There may be tens of thousands per second.
#[derive(Debug)]
pub struct Stanzas([[AtomicU64; KINDS.len()]; 2]);

const KINDS: [&str; 4] = ["iq", "message", "presence", "other"];

impl Stanzas {
    /// Counts a received stanza of this name.
    pub fn received(&self, name: &str) {
        self.count(0, name);
    }

    /// Counts a stanza of this name that is about to be sent.
    pub fn sent(&self, name: &str) {
        self.count(1, name);
    }

    fn count(&self, direction: usize, name: &str) {
        let kind = KINDS.iter().position(|kind| *kind == name).unwrap_or(KINDS.len() - 1);
        self.0[direction][kind].fetch_add(1, Ordering::Relaxed);
    }

    fn write(&self, text: &mut String) {
        let name = "stanzas_total";
        head(text, name, "counter", "Stanzas received from and sent to the XMPP server");
        for (direction, counts) in ["received", "sent"].into_iter().zip(&self.0) {
            for (kind, count) in KINDS.into_iter().zip(counts) {
                let count = count.load(Ordering::Relaxed);
                sample(text, name, &[("direction", direction), ("kind", kind)], count);
            }
        }
    }
}

/// A histogram of durations.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    name: &'static str,
    help: &'static str,
    /// The upper bounds in microseconds.
    bounds: [u64; N],
    counts: [AtomicU64; N],
    /// The durations above the last bound.
    longer: AtomicU64,
    micros: AtomicU64,
}

impl<const N: usize> Histogram<N> {
    pub(crate) const fn new(name: &'static str, help: &'static str, bounds: [u64; N]) -> Self {
        let counts = [const { AtomicU64::new(0) }; N];
        let (longer, micros) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { name, help, bounds, counts, longer, micros }
    }

    /// Counts one operation of this duration.
    pub fn took(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let bucket = self.bounds.partition_point(|bound| *bound < micros);
        self.counts.get(bucket).unwrap_or(&self.longer).fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    pub(crate) fn write(&self, text: &mut String) {
        head(text, self.name, "histogram", self.help);
        let [bucket, sum, all] =
            ["bucket", "sum", "count"].map(|part| format!("{}_{part}", self.name));
        let mut count = 0;
        for (bound, counted) in self.bounds.iter().zip(&self.counts) {
            count += counted.load(Ordering::Relaxed);
            let bound = Duration::from_micros(*bound).as_secs_f64().to_string();
            sample(text, &bucket, &[("le", &bound)], count);
        }
        count += self.longer.load(Ordering::Relaxed);
        sample(text, &bucket, &[("le", "+Inf")], count);
        let micros = self.micros.load(Ordering::Relaxed);
        sample(text, &sum, &[], format_args!("{}.{:06}", micros / 1_000_000, micros % 1_000_000));
        sample(text, &all, &[], count);
    }
}

/// Writes all of these in Prometheus' text format.
pub fn write(text: &mut String) {
    for counter in [
        &LINK_CONNECTIONS,
        &LINK_FAILURES,
        &STANZAS_DROPPED,
        &PRESENCES_DROPPED,
        &REFUSALS,
        &SESSIONS,
        &SESSIONS_PLAIN,
        &SESSIONS_ENDED,
        &SESSIONS_DIRECT,
        &DIRECT_BYTES,
        &COMMANDS,
        &CLUSTER_HANDOVERS,
        &CLUSTER_LEAD_CHANGES,
        &CLUSTER_EVICTIONS,
        &REGISTRY_OPERATIONS,
        &NOTICES_LOST,
    ] {
        counter.write(text);
    }
    STANZAS.write(text);
    REGISTRY_SECONDS.write(text);
}

/// Writes one value that is read now and can decrease.
pub(crate) fn gauge(text: &mut String, name: &str, help: &str, value: impl Display) {
    head(text, name, "gauge", help);
    sample(text, name, &[], value);
}

/// Writes one value that is read now and only increases.
pub(crate) fn counter(text: &mut String, name: &str, help: &str, value: impl Display) {
    head(text, name, "counter", help);
    sample(text, name, &[], value);
}

/// Writes the lines that describe a metric.
pub(crate) fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP fingerpost_{name} {help}\n# TYPE fingerpost_{name} {kind}");
}

/// Writes a metric's value for these labels.
pub(crate) fn sample(text: &mut String, name: &str, labels: &[(&str, &str)], value: impl Display) {
    let _ = write!(text, "fingerpost_{name}");
    for (at, (label, word)) in labels.iter().enumerate() {
        let _ = write!(text, "{}{label}=\"{word}\"", if at == 0 { '{' } else { ',' });
    }
    let _ = writeln!(text, "{} {value}", if labels.is_empty() { "" } else { "}" });
}

/// Writes what the system says of this process: files, memory, processor time. Leaves out what it does not say.
pub fn process(text: &mut String) {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).ok();
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        // While the directory is read, it counts as an open file too.
        let open = files.count().saturating_sub(1);
        gauge(text, "process_open_fds", "Open file descriptors", open);
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    if let Some(limit) = limit {
        gauge(text, "process_max_fds", "The most file descriptors that may be open", limit);
    }
    let statm = read("statm");
    let pages = statm
        .as_deref()
        .and_then(|text| text.split(' ').nth(1))
        .and_then(|n| n.parse::<u64>().ok());
    if let Some(pages) = pages {
        let bytes = pages * rustix::param::page_size() as u64;
        gauge(text, "process_resident_memory_bytes", "Memory in use", bytes);
    }
    // The name in parentheses may contain spaces.
    let stat = read("stat");
    let fields = stat.as_deref().and_then(|text| text.rsplit_once(") "));
    let ticks = fields.map(|(_, rest)| {
        rest.split(' ').skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum::<u64>()
    });
    if let Some(ticks) = ticks {
        let per_second = rustix::param::clock_ticks_per_second();
        let (whole, rest) = (ticks / per_second, ticks % per_second);
        let seconds = format_args!("{whole}.{:02}", rest * 100 / per_second);
        let help = "Processor time used, in user and system mode";
        counter(text, "process_cpu_seconds_total", help, seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_what_prometheus_reads() {
        static PLAIN: Counter = Counter::new("plain_total", "Help", &[]);
        static TWO: Counter = Counter::new("two_total", "Help", &["a", "b"]);
        static TIMES: Histogram<2> = Histogram::new("times_seconds", "Help", [100, 5_000_000]);
        let mut text = String::new();
        PLAIN.write(&mut text);
        TWO.count(&["x", "y"]);
        TWO.add(&["x", "z"], 2);
        TWO.write(&mut text);
        TIMES.took(Duration::from_micros(100));
        TIMES.took(Duration::from_secs(7));
        TIMES.write(&mut text);
        process(&mut text);
        for line in [
            "# TYPE fingerpost_plain_total counter",
            "fingerpost_plain_total 0",
            "fingerpost_two_total{a=\"x\",b=\"y\"} 1",
            "fingerpost_two_total{a=\"x\",b=\"z\"} 2",
            "# TYPE fingerpost_times_seconds histogram",
            "fingerpost_times_seconds_bucket{le=\"0.0001\"} 1",
            "fingerpost_times_seconds_bucket{le=\"5\"} 1",
            "fingerpost_times_seconds_bucket{le=\"+Inf\"} 2",
            "fingerpost_times_seconds_sum 7.000100",
            "fingerpost_times_seconds_count 2",
            "# TYPE fingerpost_process_open_fds gauge",
        ] {
            assert!(text.lines().any(|written| written == line), "{line} in\n{text}");
        }
    }
}
