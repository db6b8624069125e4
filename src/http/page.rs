//! The status page: for people, also on phones, and without a script. It shows full user names only to requests from
//! this machine.

use std::time::Duration;

use maud::{DOCTYPE, Markup, PreEscaped, html};

/// The content of the page.
#[derive(Debug)]
pub(super) struct StatusPage {
    pub(super) component: String,
    pub(super) link: bool,
    pub(super) database: bool,
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
li small{display:block;opacity:.7}";

impl StatusPage {
    pub(super) fn render(&self) -> Markup {
        let word = |good: bool| if good { "up" } else { "down" };
        let state = |good: bool| if good { "tile good" } else { "tile bad" };
        let (open, idle, most) = self.connections;
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width,initial-scale=1";
                    meta name="robots" content="noindex";
                    title { "Fingerpost" }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    h1 { "Fingerpost" }
                    p.sub { (self.component) }
                    div.tiles {
                        div class=(state(self.link)) { b { (word(self.link)) } span { "XMPP link" } }
                        div class=(state(self.database)) { b { (word(self.database)) } span { "Database" } }
                        div class=(state(!self.draining)) {
                            b { @if self.draining { "refused" } @else { "taken" } }
                            span { "New sessions" }
                        }
                        div.tile { b { (self.brokered) } span { "Brokered sessions" } }
                        div.tile { b { (self.transfers) } span { "SOCKS5 transfers" } }
                        div.tile {
                            b {
                                @match self.bytes_per_second {
                                    Some(rate) => { (amount(rate)) "/s" }
                                    None => { "–" }
                                }
                            }
                            span { "Throughput" }
                        }
                    }
                    h2 { "Since the start" }
                    dl {
                        dt { "Up for" } dd { (span(self.uptime)) }
                        dt { "Streams" } dd { (self.streams) }
                        dt { "Relayed" } dd { (amount(self.bytes as f64)) }
                        dt { "Waiting" } dd { (self.waiting) " SOCKS5 transfers" }
                        dt { "Connections" } dd { (open) " to the database, " (idle) " idle, at most " (most) }
                    }
                    @if !self.sessions.is_empty() {
                        h2 { "Oldest sessions" }
                        ol {
                            @for [a, b, what] in &self.sessions {
                                li { (a) " → " (b) small { (what) } }
                            }
                        }
                    }
                    h2 { "Versions" }
                    dl {
                        dt { "Fingerpost" } dd { (env!("CARGO_PKG_VERSION")) }
                        dt { "Certificate" } dd { "SHA-256 " (self.print) }
                    }
                }
            }
        }
    }
}

/// Returns a number of bytes as text.
fn amount(bytes: f64) -> String {
    let mut value = bytes;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return match unit {
                "B" => format!("{value:.0} {unit}"),
                _ => format!("{value:.1} {unit}"),
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
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
    use super::*;

    #[test]
    fn amounts_and_times_are_for_people() {
        assert_eq!(amount(0.0), "0 B");
        assert_eq!(amount(1536.0), "1.5 KiB");
        assert_eq!(amount(3.0 * 1024.0 * 1024.0 * 1024.0), "3.0 GiB");
        assert_eq!(span(Duration::from_secs(3_725)), "1h 2m");
        assert_eq!(span(Duration::from_secs(59)), "59s");
    }

    #[test]
    fn what_users_have_written_is_escaped() {
        let page = StatusPage {
            component: "xtls.example.org".into(),
            link: true,
            database: true,
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
            sessions: vec![["<script>".into(), "b&c".into(), String::new()]],
        };
        let text = page.render().into_string();
        assert!(text.contains("&lt;script&gt; → b&amp;c") && !text.contains("<script"), "{text}");
    }
}
