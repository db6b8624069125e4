//! Measures how fast a file travels in-band, and recognizes the limit of an XMPP server.
//!
//! Servers with their packages' defaults limit each client: its stanzas wait, and no error reports that.

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{
    files::{duration, size, speed},
    output::Output,
};

/// How often the bytes are counted.
const TICK: Duration = Duration::from_millis(250);

/// How long a rate must have been constant before it is judged.
const WINDOW: Duration = Duration::from_secs(20);

/// The size from which a file is large for a limited server: six minutes at the lowest rate.
const LARGE: u64 = 1 << 20;

/// The bytes on the XML stream for 100 bytes in blocks of 8,192: base64, the element, and the TLS record around it.
const STANZAS: u64 = 137;

/// A server's default limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit {
    server: &'static str,
    /// Bytes of XML per second.
    rate: u64,
    /// Measured rates that indicate it.
    looks: (u64, u64),
    /// Where an operator changes it.
    setting: &'static str,
}

/// The limits of Prosody 0.12 and 13 and of ejabberd 23 and 24.
const LIMITS: [Limit; 3] = [
    Limit {
        server: "an ejabberd server as shipped, for each client",
        rate: 3_000,
        looks: (2_200, 4_000),
        setting: "`shaper: normal: rate` in ejabberd.yml",
    },
    Limit {
        server: "a Prosody server as shipped, for each client",
        rate: 10_000,
        looks: (7_500, 12_500),
        setting: "`limits = { c2s = { rate = … } }` in prosody.cfg.lua",
    },
    Limit {
        server: "a Prosody server as shipped, for each other server",
        rate: 30_000,
        looks: (22_000, 36_000),
        setting: "`limits = { s2sin = { rate = … } }` in prosody.cfg.lua",
    },
];

/// The rate of one direction of a stream. Counts and times go in; a limit comes out once.
#[derive(Debug, Default)]
struct Pace {
    samples: VecDeque<(Instant, u64)>,
    told: bool,
}

impl Pace {
    /// Takes the count of bytes so far. Returns, once, the bytes per second and the limit that they indicate: when the
    /// rate has been the same in both halves of the last 20 s.
    fn count(&mut self, bytes: u64, now: Instant) -> Option<(u64, Limit)> {
        if self.told {
            return None;
        }
        self.samples.push_back((now, bytes));
        // One sample at the beginning of the window, or before it.
        while self.samples.get(1).is_some_and(|(at, _)| *at + WINDOW <= now) {
            self.samples.pop_front();
        }
        let (begin, first) = *self.samples.front()?;
        let span = now.saturating_duration_since(begin);
        if span < WINDOW {
            return None;
        }
        let (_, half) = *self.samples.iter().find(|(at, _)| *at + WINDOW / 2 >= now)?;
        let (before, after) = (half.saturating_sub(first), bytes.saturating_sub(half));
        if before.min(after) * 5 < before.max(after) * 2 {
            return None;
        }
        let millis = u64::try_from(span.as_millis()).ok()?.max(1);
        let rate = bytes.saturating_sub(first).saturating_mul(1000) / millis;
        let wire = rate * STANZAS / 100;
        let limit =
            LIMITS.into_iter().find(|limit| (limit.looks.0..=limit.looks.1).contains(&wire))?;
        self.told = true;
        Some((rate, limit))
    }
}

/// Does `work`. Until it is done, calls `tick` with the count of bytes repeatedly, and reports once if the rate indicates a
/// server's limit.
pub(super) async fn during<T>(
    work: impl Future<Output = T>,
    output: Output,
    in_band: bool,
    bytes: impl Fn() -> u64,
    tick: impl Fn(u64),
) -> T {
    tokio::select! {
        biased;
        done = work => done,
        never = watch(output, in_band, bytes, tick) => match never {},
    }
}

async fn watch(
    output: Output,
    in_band: bool,
    bytes: impl Fn() -> u64,
    tick: impl Fn(u64),
) -> Infallible {
    let mut pace = Pace::default();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = ticks.tick().await;
        let count = bytes();
        tick(count);
        if in_band && let Some((rate, limit)) = pace.count(count, now) {
            let (event, text) = slow(rate, limit);
            output.event(&event, &text);
        }
    }
}

fn slow(rate: u64, limit: Limit) -> (Value, String) {
    let event = json!({
        "event": "slow", "bytes_per_second": rate, "limit": limit.rate, "server": limit.server,
        "setting": limit.setting,
    });
    let text = format!(
        "only {} arrive in-band: this looks like the limit of {} ({} bytes/s of XML)\n\
         hint: ask the server's operator to raise {}, or use a network in which SOCKS5 works",
        speed(rate, 1.0),
        limit.server,
        limit.rate,
        limit.setting,
    );
    (event, text)
}

/// Tells the user how long so many bytes take in-band through servers with limits; says nothing about a small file.
pub(super) fn forecast(output: Output, bytes: u64) {
    if let Some((event, text)) = expected(bytes) {
        output.event(&event, &text);
    }
}

fn expected(bytes: u64) -> Option<(Value, String)> {
    if bytes < LARGE {
        return None;
    }
    let [ejabberd, prosody, _] =
        LIMITS.map(|limit| bytes.saturating_mul(STANZAS) / 100 / limit.rate);
    let event = json!({
        "event": "in-band", "bytes": bytes, "seconds": {"prosody": prosody, "ejabberd": ejabberd},
    });
    #[expect(clippy::cast_precision_loss, reason = "a rounded number")]
    let [ejabberd, prosody] = [ejabberd, prosody].map(|seconds| duration(seconds as f64));
    let text = format!(
        "the file goes in-band, through the XMPP servers: {} take about {prosody} where a server limits its clients as \
         Prosody does, {ejabberd} where as ejabberd does, and far less without a limit\n\
         hint: it is faster where SOCKS5 works; an operator can raise {} or {}",
        size(bytes),
        LIMITS[1].setting,
        LIMITS[0].setting,
    );
    Some((event, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the result for a stream that moves a block of `block` bytes every so many milliseconds, after a burst.
    fn judged(burst: u64, block: u64, every: u64, seconds: u64) -> Option<(u64, Limit, u64)> {
        let begin = Instant::now();
        let mut pace = Pace::default();
        for tick in 0..seconds * 4 {
            let bytes = burst + tick * 250 / every * block;
            let told = pace.count(bytes, begin + Duration::from_millis(tick * 250));
            if let Some((rate, limit)) = told {
                for more in 0..400 {
                    let now = begin + Duration::from_secs(seconds + more);
                    assert_eq!(pace.count(bytes, now), None, "told once");
                }
                return Some((rate, limit, tick / 4));
            }
        }
        None
    }

    #[test]
    fn limits_as_shipped_are_known_by_their_rates() {
        for (burst, block, every, rate) in [
            // Measured with ejabberd: 2.2 KiB/s in blocks of 8 KiB, after a burst of 20,000 bytes; its shaper varies.
            (14_600, 8192, 3640, 3_000),
            (14_600, 4096, 1820, 3_000),
            (0, 4096, 1500, 3_000),
            // Measured with Prosody: 7.3 kB/s; and between two of them: 17 to 22 kB/s.
            (0, 8192, 1120, 10_000),
            (20_000, 4096, 560, 10_000),
            (0, 8192, 480, 30_000),
            (0, 8192, 372, 30_000),
        ] {
            let told = judged(burst, block, every, 60);
            let (_, limit, after) = told.unwrap_or_else(|| panic!("{block} every {every} ms"));
            assert_eq!(limit.rate, rate, "{block} every {every} ms");
            assert!((19..40).contains(&after), "{after}");
        }
    }

    #[test]
    fn other_rates_are_not_called_a_limit() {
        for (block, every) in [
            // 1 MB/s; 64 kB/s; 1 kB/s; nothing at all.
            (262_144, 250),
            (16_384, 250),
            (1024, 1000),
            (0, 1000),
        ] {
            assert_eq!(judged(0, block, every, 120), None, "{block} every {every} ms");
        }
        // Short, or with a pause: not steady.
        assert_eq!(judged(0, 8192, 3640, 19), None);
        let (mut pace, begin) = (Pace::default(), Instant::now());
        for second in 0..20 {
            let bytes = if second < 10 { second * 8_000 } else { 80_000 };
            assert_eq!(pace.count(bytes, begin + Duration::from_secs(second)), None);
        }
    }

    #[test]
    fn a_large_file_has_a_forecast_and_a_small_one_none() {
        assert_eq!(expected(LARGE - 1), None);
        let (event, text) = expected(100 << 20).unwrap();
        assert_eq!(event["seconds"]["prosody"], 14_365);
        assert_eq!(event["seconds"]["ejabberd"], 47_884);
        assert!(text.contains("3 hours") && text.contains("13 hours"), "{text}");
        assert!(expected(u64::MAX).is_some());
    }

    #[test]
    fn the_word_about_a_limit_names_the_rate_and_the_cure() {
        let (event, text) = slow(2_250, LIMITS[0]);
        assert_eq!(event["limit"], 3_000);
        assert!(text.contains("2.20 KiB/s") && text.contains("ejabberd.yml"), "{text}");
        assert!(text.lines().nth(1).unwrap().starts_with("hint: "), "{text}");
    }
}
