//! What the view shows: a state machine that takes documents, keys and the time, and draws.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use ratatui::{
    buffer::Buffer,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Paragraph, Row, Sparkline, Table, Widget as _},
};

use crate::{SessionDocument, StatusDocument, amount};

/// How many rates of the past are kept for the chart.
const RATES: usize = 240;
/// The shortest time between two documents from which a rate follows.
const SAMPLE: Duration = Duration::from_millis(50);
/// How much of a limit may be in use without a warning, in per cent.
const MUCH: u64 = 80;

/// A key that has a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopKey {
    /// Ends the view.
    Quit,
    /// Sorts the sessions by the next column.
    Order,
    /// Stops taking documents, or goes on with it.
    Pause,
    /// Goes down in the list by so many lines.
    Down(usize),
    /// Goes up in the list by so many lines.
    Up(usize),
}

/// By what the sessions are sorted, the most first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Order {
    #[default]
    Rate,
    Bytes,
    Age,
}

impl Order {
    fn next(self) -> Self {
        match self {
            Self::Rate => Self::Bytes,
            Self::Bytes => Self::Age,
            Self::Age => Self::Rate,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Bytes => "bytes",
            Self::Age => "age",
        }
    }
}

/// The state of the view.
#[derive(Debug, Default)]
pub struct TopView {
    document: Option<(Instant, StatusDocument)>,
    /// Why the last document is missing.
    failure: Option<String>,
    /// Bytes per second in all, the oldest first.
    rates: VecDeque<u64>,
    /// Bytes per second of each session.
    rate_of: HashMap<String, u64>,
    /// Refusals per condition since the document before.
    refused: HashMap<String, u64>,
    order: Order,
    is_paused: bool,
    first: usize,
}

impl TopView {
    /// Takes the state of the service at a moment.
    pub fn take(&mut self, document: StatusDocument, now: Instant) {
        self.failure = None;
        if self.is_paused {
            return;
        }
        if let Some((at, before)) = &self.document {
            let past = now.saturating_duration_since(*at);
            if past < SAMPLE {
                return;
            }
            // A service that has started again counts from the beginning.
            let is_same = document.uptime_seconds >= before.uptime_seconds;
            let since = |bytes: u64| if is_same { bytes } else { 0 };
            let rate =
                |new: u64, old: u64| (new.saturating_sub(old) as f64 / past.as_secs_f64()) as u64;
            let old: HashMap<_, _> = before.sessions.iter().map(|s| (&s.id, s.bytes)).collect();
            let of_session = |session: &SessionDocument| {
                let old = since(old.get(&session.id).copied().unwrap_or_default());
                (session.id.clone(), rate(session.bytes, old))
            };
            self.rate_of = document.sessions.iter().map(of_session).collect();
            self.rates.push_back(rate(document.bytes, since(before.bytes)));
            let excess = self.rates.len().saturating_sub(RATES);
            self.rates.drain(..excess);
            let newly = |(condition, count): (&String, &u64)| {
                let old = since(before.refusals.get(condition).copied().unwrap_or_default());
                (condition.clone(), count.saturating_sub(old))
            };
            self.refused = document.refusals.iter().map(newly).collect();
        }
        self.first = self.first.min(document.sessions.len().saturating_sub(1));
        self.document = Some((now, document));
    }

    /// Notes why there is no document; the last one stays.
    pub fn fail(&mut self, why: String) {
        self.failure = Some(why);
    }

    /// Handles a key. Returns whether the view goes on.
    pub fn press(&mut self, key: TopKey) -> bool {
        let last = self.document.as_ref().map_or(0, |(_, d)| d.sessions.len().saturating_sub(1));
        match key {
            TopKey::Quit => return false,
            TopKey::Order => self.order = self.order.next(),
            TopKey::Pause => self.is_paused = !self.is_paused,
            TopKey::Down(lines) => self.first = self.first.saturating_add(lines).min(last),
            TopKey::Up(lines) => self.first = self.first.saturating_sub(lines),
        }
        true
    }

    /// Draws the whole view.
    pub fn draw(&self, area: Rect, buffer: &mut Buffer) {
        let document = self.document.as_ref().map(|(_, document)| document);
        let limits = document.map_or(0, |d| d.usage.len());
        let limits = u16::try_from(limits.max(1)).unwrap_or(u16::MAX).min(6) + 2;
        let [head, middle, list, foot] = Layout::vertical([
            Constraint::Length(2),
            Constraint::Length(limits),
            Constraint::Min(3),
            Constraint::Length(1),
        ])
        .areas(area);
        let [throughput, usage, refusals] =
            Layout::horizontal([Constraint::Fill(2), Constraint::Fill(2), Constraint::Fill(1)])
                .areas(middle);
        match document {
            Some(document) => {
                self.head(document).render(head, buffer);
                self.throughput(throughput, buffer);
                Self::usage(document).render(usage, buffer);
                self.refusals(document).render(refusals, buffer);
                self.sessions(document).render(list, buffer);
            }
            None => Paragraph::new("waiting for the first answer …").render(head, buffer),
        }
        self.foot().render(foot, buffer);
    }

    fn head<'a>(&self, document: &'a StatusDocument) -> Paragraph<'a> {
        let state = |name: &'static str, is_good: bool, micros: Option<u64>| {
            let colour = if is_good { Color::Green } else { Color::Red };
            let word = if is_good { "up" } else { "down" };
            let time = micros.map(|micros| format!(" {:.1} ms", micros as f64 / 1000.0));
            let text = format!("● {name} {word}{}   ", time.unwrap_or_default());
            Span::styled(text, Style::new().fg(colour))
        };
        let mut states = vec![
            state("link", document.link, document.link_micros.filter(|_| document.link)),
            state("database", document.database_micros.is_some(), document.database_micros),
        ];
        if document.draining {
            states.push(Span::styled("● new sessions are refused", Style::new().fg(Color::Yellow)));
        }
        let title = format!(
            "{}   Fingerpost {}, up {}, {} relayed in {} streams",
            document.component,
            document.version,
            span(document.uptime_seconds),
            amount(document.bytes as f64),
            document.streams
        );
        Paragraph::new(vec![
            Line::styled(title, Style::new().add_modifier(Modifier::BOLD)),
            Line::from(states),
        ])
    }

    fn throughput(&self, area: Rect, buffer: &mut Buffer) {
        let now = self.rates.back().map_or_else(|| "–".to_owned(), |rate| per_second(*rate));
        let most = per_second(self.rates.iter().copied().max().unwrap_or_default());
        let block = Block::bordered().title(format!(" throughput {now}, at most {most} "));
        let width = usize::from(block.inner(area).width);
        let shown: Vec<u64> =
            self.rates.iter().copied().skip(self.rates.len().saturating_sub(width)).collect();
        let style = Style::new().fg(Color::Cyan);
        Sparkline::default().block(block).data(shown).style(style).render(area, buffer);
    }

    fn usage(document: &StatusDocument) -> Paragraph<'_> {
        let lines = document.usage.iter().map(|usage| {
            let show = |number: u64| {
                if usage.is_bytes { amount(number as f64) } else { number.to_string() }
            };
            let percent = usage.used.saturating_mul(100).checked_div(usage.limit).unwrap_or(0);
            let style = match percent {
                percent if percent >= MUCH => Style::new().fg(Color::Yellow),
                _ => Style::new(),
            };
            let text = format!("{}: {} of {}", usage.name, show(usage.used), show(usage.limit));
            Line::styled(text, style)
        });
        Paragraph::new(lines.collect::<Vec<_>>()).block(Block::bordered().title(" limits "))
    }

    fn refusals(&self, document: &StatusDocument) -> Paragraph<'_> {
        let mut counted: Vec<_> = document.refusals.iter().collect();
        counted.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let lines = counted.into_iter().map(|(condition, count)| {
            let new = self.refused.get(condition).copied().unwrap_or_default();
            let style = if new > 0 { Style::new().fg(Color::Yellow) } else { Style::new() };
            Line::styled(format!("{condition}: {count}"), style)
        });
        Paragraph::new(lines.collect::<Vec<_>>()).block(Block::bordered().title(" refused "))
    }

    /// Returns the sessions in the order that the user wants, with their rates.
    fn sorted<'a>(&self, document: &'a StatusDocument) -> Vec<(&'a SessionDocument, u64)> {
        let rate =
            |session: &SessionDocument| self.rate_of.get(&session.id).copied().unwrap_or_default();
        let mut all: Vec<_> = document.sessions.iter().map(|s| (s, rate(s))).collect();
        all.sort_by_key(|(session, rate)| {
            std::cmp::Reverse(match self.order {
                Order::Rate => (*rate, session.bytes),
                Order::Bytes => (session.bytes, *rate),
                Order::Age => (session.age_seconds, session.bytes),
            })
        });
        all
    }

    fn sessions<'a>(&self, document: &'a StatusDocument) -> Table<'a> {
        let rows = self.sorted(document).into_iter().skip(self.first).map(|(session, rate)| {
            let style =
                if session.is_plain { Style::new().fg(Color::Yellow) } else { Style::new() };
            Row::new(cells(session, rate)).style(style)
        });
        let widths = [
            Constraint::Length(10),
            Constraint::Fill(1),
            Constraint::Fill(1),
            Constraint::Length(12),
            Constraint::Length(8),
            Constraint::Length(10),
            Constraint::Length(12),
        ];
        let head = Row::new(HEAD).style(Style::new().add_modifier(Modifier::REVERSED));
        let mut title = format!(" {} sessions, by {}", document.sessions_total, self.order.name());
        if document.sessions.len() < document.sessions_total {
            title += &format!(", the oldest {}", document.sessions.len());
        }
        Table::new(rows, widths).header(head).block(Block::bordered().title(title + " "))
    }

    fn foot(&self) -> Line<'_> {
        match &self.failure {
            Some(why) => Line::styled(why.as_str(), Style::new().fg(Color::Red)),
            None if self.is_paused => {
                Line::from("paused: p goes on   q quit   s order   ↑↓ scroll")
            }
            None => Line::from("q quit   s order   p pause   ↑↓ scroll"),
        }
    }
}

const HEAD: [&str; 7] = ["session", "from", "to", "legs", "age", "bytes", "rate"];

fn cells(session: &SessionDocument, rate: u64) -> [String; 7] {
    let legs = match &session.legs {
        Some([a, b]) => format!("{a}-{b}"),
        None => "set up".to_owned(),
    };
    let [from, to] = session.users.clone();
    let legs = if session.is_plain { format!("{legs} plain") } else { legs };
    let (age, bytes) = (span(session.age_seconds), amount(session.bytes as f64));
    [session.id.clone(), from, to, legs, age, bytes, per_second(rate)]
}

impl StatusDocument {
    /// Returns the document as lines of text, for output that is no terminal. Control characters are replaced.
    pub fn to_text(&self) -> String {
        let word = |is_good: bool| if is_good { "up" } else { "down" };
        let mut lines = vec![
            format!("component {}", self.component),
            format!("version {}", self.version),
            format!("up for {}", span(self.uptime_seconds)),
            format!("link {}", word(self.link)),
            format!("database {}", word(self.database_micros.is_some())),
            format!("relayed {} in {} streams", amount(self.bytes as f64), self.streams),
        ];
        if self.draining {
            lines.push("new sessions are refused".to_owned());
        }
        lines.extend(
            self.usage
                .iter()
                .map(|usage| format!("limit {}: {} of {}", usage.name, usage.used, usage.limit)),
        );
        let refused = |(condition, count)| format!("refused {condition}: {count}");
        lines.extend(self.refusals.iter().map(refused));
        lines.push(format!("sessions {}", self.sessions_total));
        lines.extend(self.sessions.iter().map(|session| {
            let [id, from, to, legs, age, bytes, _] = cells(session, 0);
            format!("session {id}: {from} to {to}, {legs}, {age}, {bytes}")
        }));
        let safe = |line: String| line.replace(char::is_control, "\u{fffd}") + "\n";
        lines.into_iter().map(safe).collect()
    }
}

fn per_second(rate: u64) -> String {
    format!("{}/s", amount(rate as f64))
}

/// Returns a time as text, no more precise than necessary.
fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Usage;

    fn session(id: &str, bytes: u64, age_seconds: u64) -> SessionDocument {
        let users = ["alice@example.org".to_owned(), format!("{id}@example.net")];
        let legs = Some(["s5b".to_owned(), "ibb".to_owned()]);
        SessionDocument { id: id.to_owned(), users, legs, age_seconds, bytes, is_plain: false }
    }

    fn document(uptime_seconds: u64, sessions: Vec<SessionDocument>) -> StatusDocument {
        StatusDocument {
            component: "xtls.example.org".to_owned(),
            version: "1.2.3".to_owned(),
            uptime_seconds,
            link: true,
            link_micros: Some(1500),
            bytes: sessions.iter().map(|session| session.bytes).sum(),
            usage: vec![Usage { name: "sessions".into(), used: 9, limit: 10, is_bytes: false }],
            refusals: [("not-allowed".to_owned(), 3)].into(),
            sessions_total: sessions.len(),
            sessions,
            ..StatusDocument::default()
        }
    }

    fn drawn(view: &TopView, width: u16, height: u16) -> String {
        let area = Rect::new(0, 0, width, height);
        let mut buffer = Buffer::empty(area);
        view.draw(area, &mut buffer);
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>() + "\n";
        (0..height).map(line).collect()
    }

    #[test]
    fn a_rate_follows_from_two_documents() {
        let (mut view, start) = (TopView::default(), Instant::now());
        view.take(document(10, vec![session("one", 1 << 20, 9), session("two", 0, 5)]), start);
        assert!(drawn(&view, 110, 20).contains("throughput –"));
        let later = start + Duration::from_secs(2);
        view.take(
            document(12, vec![session("one", 1 << 20, 11), session("two", 4 << 20, 7)]),
            later,
        );
        let text = drawn(&view, 110, 20);
        assert!(text.contains("throughput 2.0 MiB/s, at most 2.0 MiB/s"), "{text}");
        let at = |name: &str| text.find(&format!("│{name}")).unwrap();
        assert!(at("two") < at("one"), "the fastest is first: {text}");
        assert!(text.contains("sessions: 9 of 10") && text.contains("not-allowed: 3"), "{text}");
        assert!(text.contains("● link up 1.5 ms") && text.contains("● database down"), "{text}");

        // By age, the oldest first.
        assert!(view.press(TopKey::Order) && view.press(TopKey::Order));
        let text = drawn(&view, 110, 20);
        let at = |name: &str| text.find(&format!("│{name}")).unwrap();
        assert!(at("one") < at("two") && text.contains("2 sessions, by age"), "{text}");
    }

    #[test]
    fn a_service_that_has_started_again_counts_from_the_beginning() {
        let (mut view, start) = (TopView::default(), Instant::now());
        view.take(document(1000, vec![session("one", 1 << 30, 9)]), start);
        let later = start + Duration::from_secs(1);
        view.take(document(1, vec![session("one", 1 << 20, 1)]), later);
        assert!(drawn(&view, 110, 20).contains("throughput 1.0 MiB/s"));
    }

    #[test]
    fn a_failure_is_shown_and_the_last_state_stays() {
        let mut view = TopView::default();
        view.fail("the service does not answer".to_owned());
        let text = drawn(&view, 80, 10);
        assert!(text.contains("waiting for") && text.contains("the service does not answer"));
        view.take(document(10, Vec::new()), Instant::now());
        assert!(!drawn(&view, 80, 10).contains("does not answer"));
        view.fail("the service does not answer".to_owned());
        let text = drawn(&view, 80, 12);
        assert!(text.contains("xtls.example.org") && text.contains("does not answer"), "{text}");
    }

    #[test]
    fn keys_scroll_within_the_list_pause_and_quit() {
        let (mut view, now) = (TopView::default(), Instant::now());
        let all = (0..30).map(|n| session(&format!("s{n:02}"), 100 - n, n)).collect();
        view.take(document(10, all), now);
        assert!(view.press(TopKey::Down(10)) && view.press(TopKey::Down(2)));
        let text = drawn(&view, 100, 20);
        assert!(text.contains("│s12") && !text.contains("│s11"), "{text}");
        view.press(TopKey::Down(usize::MAX));
        assert!(drawn(&view, 100, 20).contains("│s29"));
        view.press(TopKey::Up(usize::MAX));
        assert!(drawn(&view, 100, 20).contains("│s00"));
        view.press(TopKey::Pause);
        view.take(document(99, Vec::new()), now + Duration::from_secs(9));
        let text = drawn(&view, 100, 20);
        assert!(text.contains("30 sessions") && text.contains("paused"), "{text}");
        view.press(TopKey::Pause);
        view.take(document(99, Vec::new()), now + Duration::from_secs(9));
        assert!(drawn(&view, 100, 20).contains("0 sessions"));
        assert!(!view.press(TopKey::Quit));
    }

    #[test]
    fn text_for_a_file_has_a_line_for_each_thing_and_no_control_characters() {
        let mut document = document(10, vec![session("one", 2048, 9)]);
        document.sessions[0].users[0] = "a\u{1b}[2Jb".to_owned();
        let text = document.to_text();
        assert!(!text.contains('\u{1b}') && text.contains("a\u{fffd}[2Jb to one@example.net"));
        assert!(text.contains("limit sessions: 9 of 10\nrefused not-allowed: 3\nsessions 1\n"));
    }

    fn hostile() -> impl Strategy<Value = StatusDocument> {
        let one = (any::<String>(), any::<String>(), any::<u64>(), any::<u64>(), any::<bool>());
        let session = one.prop_map(|(id, user, age_seconds, bytes, is_plain)| SessionDocument {
            id,
            users: [user.clone(), user],
            legs: None,
            age_seconds,
            bytes,
            is_plain,
        });
        let usage = (any::<String>(), any::<u64>(), any::<u64>(), any::<bool>())
            .prop_map(|(name, used, limit, is_bytes)| Usage { name, used, limit, is_bytes });
        let lists = (prop::collection::vec(session, 0..5), prop::collection::vec(usage, 0..9));
        (lists, any::<u64>(), any::<u64>(), any::<String>()).prop_map(
            |((sessions, usage), uptime_seconds, bytes, component)| StatusDocument {
                component,
                uptime_seconds,
                bytes,
                usage,
                sessions_total: usize::MAX,
                sessions,
                ..StatusDocument::default()
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn whatever_a_service_says_is_drawn_in_any_size(
            documents in prop::collection::vec(hostile(), 1..4), width in 0u16..130, height in 0u16..40,
        ) {
            let (mut view, mut now) = (TopView::default(), Instant::now());
            for document in documents {
                let _text = document.to_text();
                view.take(document, now);
                now += Duration::from_secs(1);
                let text = drawn(&view, width, height);
                prop_assert!(!text.replace('\n', "").contains(char::is_control), "{text:?}");
            }
        }
    }
}
