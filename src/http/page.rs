//! The status page: for people, also on phones, and without a script. It shows full user names only to requests from
//! this machine.

use std::{fmt::Write as _, time::Duration};

use fingerpost_top::amount;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use time::{OffsetDateTime, macros::format_description};

use super::{
    history::{Event, Point},
    words::Words,
};

/// The content of the page.
#[derive(Debug)]
pub(super) struct StatusPage {
    pub(super) words: &'static Words,
    pub(super) component: String,
    pub(super) link: bool,
    /// How long the last ping of the component to itself took through the XMPP server.
    pub(super) trip: Option<Duration>,
    /// How long the database took to answer, if it did.
    pub(super) database: Option<Duration>,
    pub(super) draining: bool,
    pub(super) connections: (u32, usize, u32),
    pub(super) brokered: usize,
    pub(super) transfers: usize,
    pub(super) waiting: usize,
    pub(super) streams: u64,
    pub(super) bytes: u64,
    /// The rate over the last few seconds, if two samples were far enough apart.
    pub(super) bytes_per_second: Option<f64>,
    pub(super) uptime: Duration,
    pub(super) print: String,
    /// The last hour, the oldest minute first.
    pub(super) points: Vec<Point>,
    /// The last events, the newest first.
    pub(super) events: Vec<(OffsetDateTime, Event)>,
    /// The oldest sessions: both users as they may be shown, and their state.
    pub(super) sessions: Vec<[String; 3]>,
}

const STYLE: &str = "\
:root{color-scheme:light dark;--line:#8884;--soft:#8881}\
body{font:1rem/1.5 system-ui,sans-serif;margin:0 auto;max-width:40rem;padding:1rem}\
h1{font-size:1.5rem;margin:.5rem 0 0}p.sub{margin:0 0 1rem;opacity:.7;overflow-wrap:anywhere}\
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.75rem}\
.tile{border:1px solid var(--line);border-radius:.5rem;padding:.6rem .8rem;background:var(--soft)}\
.tile b{display:block;font-size:1.35rem;font-variant-numeric:tabular-nums}.tile span{opacity:.7;font-size:.85rem}\
.good b::before{content:'\\25CF';margin-right:.35em;color:#2a9d4a}.bad b::before{content:'\\25CF';margin-right:.35em;color:#d33}\
h2{font-size:1rem;margin:1.5rem 0 .5rem}dl{display:grid;grid-template-columns:auto 1fr;gap:.25rem 1rem;margin:0}\
dt{opacity:.7}dd{margin:0;overflow-wrap:anywhere}\
ol{margin:0;padding:0;list-style:none}li{border-top:1px solid var(--line);padding:.4rem 0;overflow-wrap:anywhere}\
li small{display:block;opacity:.7}\
figure{margin:0}figcaption{opacity:.7;font-size:.85rem}\
svg{display:block;width:100%;height:2.5rem;border-bottom:1px solid var(--line)}\
polyline{fill:none;stroke:#2a7ad9;stroke-width:1.5;vector-effect:non-scaling-stroke}";

/// The size of a chart, in its own units: one for each minute.
const CHART: (usize, f64) = (59, 20.0);

impl StatusPage {
    pub(super) fn render(&self) -> Markup {
        let words = self.words;
        let word = |good: bool| if good { words.up } else { words.down };
        let state = |good: bool| if good { "tile good" } else { "tile bad" };
        let latency = |time: Option<Duration>| time.map(|time| format!(", {}", brief(time)));
        let database = self.database.is_some();
        let (open, idle, most) = self.connections;
        html! {
            (DOCTYPE)
            html lang=(words.tag) {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width,initial-scale=1";
                    meta name="robots" content="noindex";
                    meta http-equiv="refresh" content="30";
                    title { "Fingerpost" }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    h1 { "Fingerpost" }
                    p.sub { (self.component) }
                    div.tiles {
                        div class=(state(self.link)) {
                            b { (word(self.link)) }
                            span { (words.link) (latency(self.trip.filter(|_| self.link)).unwrap_or_default()) }
                        }
                        div class=(state(database)) {
                            b { (word(database)) }
                            span { (words.database) (latency(self.database).unwrap_or_default()) }
                        }
                        div class=(state(!self.draining)) {
                            b { @if self.draining { (words.refused) } @else { (words.taken) } }
                            span { (words.new_sessions) }
                        }
                        div.tile { b { (self.brokered) } span { (words.brokered) } }
                        div.tile { b { (self.transfers) } span { (words.transfers) } }
                        div.tile {
                            b {
                                @match self.bytes_per_second {
                                    Some(rate) => { (amount(rate)) "/s" }
                                    None => { "–" }
                                }
                            }
                            span { (words.throughput) }
                        }
                    }
                    @if self.points.len() > 1 {
                        h2 { (words.last_hour) }
                        div.tiles {
                            (self.chart(words.throughput, |point| point.rate, |most| format!("{}/s", amount(most))))
                            (self.chart(words.sessions, |point| point.sessions as f64, |most| format!("{most:.0}")))
                            (self.chart(words.errors, |point| point.errors as f64, |most| format!("{most:.0}")))
                        }
                    }
                    h2 { (words.since_start) }
                    dl {
                        dt { (words.up_for) } dd { (span(self.uptime)) }
                        dt { (words.streams) } dd { (self.streams) }
                        dt { (words.relayed) } dd { (amount(self.bytes as f64)) }
                        dt { (words.waiting) } dd { (self.waiting) }
                        dt { (words.connections) } dd { (open) ", " (words.idle) " " (idle) ", " (words.at_most) " " (most) }
                    }
                    @if !self.events.is_empty() {
                        h2 { (words.events) }
                        ol {
                            @for (at, event) in &self.events {
                                li { (moment(*at)) small { (words.event(*event)) } }
                            }
                        }
                    }
                    @if !self.sessions.is_empty() {
                        h2 { (words.oldest) }
                        ol {
                            @for [a, b, what] in &self.sessions {
                                li { (a) " → " (b) small { (what) } }
                            }
                        }
                    }
                    h2 { (words.versions) }
                    dl {
                        dt { "Fingerpost" } dd { (env!("CARGO_PKG_VERSION")) }
                        dt { (words.certificate) } dd { "SHA-256 " (self.print) }
                    }
                }
            }
        }
    }

    /// Returns a line over the last hour, with its name and its highest value.
    fn chart(
        &self,
        name: &str,
        value: impl Fn(&Point) -> f64,
        show: impl Fn(f64) -> String,
    ) -> Markup {
        let (width, height) = CHART;
        let values: Vec<f64> = self.points.iter().map(value).collect();
        let most = values.iter().copied().fold(0.0, f64::max);
        let scale = if most > 0.0 { (height - 2.0) / most } else { 0.0 };
        let first = (width + 1).saturating_sub(values.len());
        let mut line = String::new();
        for (x, value) in (first..).zip(&values) {
            let _ = write!(line, "{x},{:.1} ", height - 1.0 - value * scale);
        }
        let caption = format!("{name}, {} {}", self.words.at_most, show(most));
        html! {
            figure.tile {
                svg viewBox=(format!("0 0 {width} {height}")) preserveAspectRatio="none" role="img" aria-label=(caption) {
                    polyline points=(line.trim_end());
                }
                figcaption { (caption) }
            }
        }
    }
}

/// Returns a short time as text.
fn brief(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

/// Returns the time of an event as text.
fn moment(at: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    at.format(format).unwrap_or_default()
}

/// Returns a time as text, no more precise than necessary.
fn span(time: Duration) -> String {
    let seconds = match time.as_secs() {
        seconds if seconds < 3600 => seconds,
        seconds if seconds < 24 * 3600 => seconds / 60 * 60,
        seconds => seconds / 3600 * 3600,
    };
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}

#[cfg(test)]
mod tests {
    use super::{super::words::ENGLISH, *};

    #[test]
    fn amounts_and_times_are_for_people() {
        assert_eq!(amount(0.0), "0 B");
        assert_eq!(amount(1536.0), "1.5 KiB");
        assert_eq!(amount(3.0 * 1024.0 * 1024.0 * 1024.0), "3.0 GiB");
        assert_eq!(span(Duration::from_secs(3_725)), "1h 2m");
        assert_eq!(span(Duration::from_secs(59)), "59s");
    }

    fn page(words: &'static Words) -> StatusPage {
        StatusPage {
            words,
            component: "xtls.example.org".into(),
            link: true,
            trip: Some(Duration::from_micros(1500)),
            database: Some(Duration::from_micros(250)),
            draining: false,
            connections: (1, 1, 8),
            brokered: 1,
            transfers: 0,
            waiting: 0,
            streams: 0,
            bytes: 0,
            bytes_per_second: None,
            uptime: Duration::ZERO,
            print: String::new(),
            points: Vec::new(),
            events: Vec::new(),
            sessions: vec![["<script>".into(), "b&c".into(), String::new()]],
        }
    }

    #[test]
    fn what_users_have_written_is_escaped() {
        let text = page(&ENGLISH).render().into_string();
        assert!(text.contains("&lt;script&gt; → b&amp;c") && !text.contains("<script"), "{text}");
        assert!(text.contains("XMPP link, 1.5 ms") && text.contains("Database, 0.2 ms"), "{text}");
    }

    #[test]
    fn the_last_hour_is_a_line_that_ends_at_the_right_and_an_event_has_its_time() {
        let point = |rate| Point { rate, sessions: 2, errors: 0 };
        let mut page = page(Words::preferred("de"));
        page.points = vec![point(0.0), point(2048.0), point(1024.0)];
        page.events = vec![(OffsetDateTime::UNIX_EPOCH, Event::LinkDown)];
        let text = page.render().into_string();
        assert!(text.contains("<html lang=\"de\">"), "{text}");
        assert!(text.contains("points=\"57,19.0 58,1.0 59,10.0\""), "{text}");
        assert!(text.contains("Durchsatz, höchstens 2.0 KiB/s"), "{text}");
        assert!(text.contains("Ablehnungen und Fehler, höchstens 0"), "{text}");
        assert!(text.contains("1970-01-01 00:00:00 UTC<small>Die Verbindung"), "{text}");
    }
}
