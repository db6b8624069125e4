//! The words of the status page, in each of its languages.

use super::history::Event;

/// The words of a language.
#[derive(Debug)]
pub(super) struct Words {
    /// Its tag (BCP 47).
    pub(super) tag: &'static str,
    pub(super) up: &'static str,
    pub(super) down: &'static str,
    pub(super) link: &'static str,
    pub(super) database: &'static str,
    pub(super) taken: &'static str,
    pub(super) refused: &'static str,
    pub(super) new_sessions: &'static str,
    pub(super) brokered: &'static str,
    pub(super) transfers: &'static str,
    pub(super) throughput: &'static str,
    pub(super) last_hour: &'static str,
    pub(super) sessions: &'static str,
    pub(super) errors: &'static str,
    pub(super) at_most: &'static str,
    pub(super) since_start: &'static str,
    pub(super) up_for: &'static str,
    pub(super) streams: &'static str,
    pub(super) relayed: &'static str,
    pub(super) waiting: &'static str,
    pub(super) connections: &'static str,
    pub(super) idle: &'static str,
    pub(super) events: &'static str,
    pub(super) oldest: &'static str,
    pub(super) versions: &'static str,
    pub(super) certificate: &'static str,
    pub(super) being_set_up: &'static str,
    pub(super) plain: &'static str,
    link_up: &'static str,
    link_down: &'static str,
    route_bad: &'static str,
    route_good: &'static str,
}

impl Words {
    /// Returns the words of the language that a browser prefers (`Accept-Language`, RFC 9110, 12.5.4); English if it names none of
    /// ours.
    pub(super) fn preferred(accepted: &str) -> &'static Self {
        let weight = |parameters: &str| {
            let quality = parameters.split(';').find_map(|part| part.trim().strip_prefix("q="));
            quality.map_or(Some(1.0), |quality| quality.parse::<f32>().ok()).unwrap_or(0.0)
        };
        let mut best: (&Self, f32) = (&ENGLISH, 0.0);
        for range in accepted.split(',').take(16) {
            let (tag, parameters) = range.split_once(';').unwrap_or((range, ""));
            let language = tag.trim().split('-').next().unwrap_or_default();
            let known = [&ENGLISH, &GERMAN]
                .into_iter()
                .find(|words| words.tag.eq_ignore_ascii_case(language));
            if let Some(words) = known
                && weight(parameters) > best.1
            {
                best = (words, weight(parameters));
            }
        }
        best.0
    }

    /// Returns what an event is called.
    pub(super) fn event(&self, event: Event) -> &'static str {
        match event {
            Event::LinkUp => self.link_up,
            Event::LinkDown => self.link_down,
            Event::RouteBad => self.route_bad,
            Event::RouteGood => self.route_good,
        }
    }
}

pub(super) static ENGLISH: Words = Words {
    tag: "en",
    up: "up",
    down: "down",
    link: "XMPP link",
    database: "Database",
    taken: "taken",
    refused: "refused",
    new_sessions: "New sessions",
    brokered: "Brokered sessions",
    transfers: "SOCKS5 transfers",
    throughput: "Throughput",
    last_hour: "Last hour",
    sessions: "Sessions",
    errors: "Refusals and errors",
    at_most: "at most",
    since_start: "Since the start",
    up_for: "Up for",
    streams: "Streams",
    relayed: "Relayed",
    waiting: "Waiting SOCKS5 transfers",
    connections: "Database connections",
    idle: "idle",
    events: "Last events",
    oldest: "Oldest sessions",
    versions: "Versions",
    certificate: "Certificate",
    being_set_up: "being set up",
    plain: "not encrypted from end to end",
    link_up: "The link to the XMPP server is up",
    link_down: "The link to the XMPP server is lost",
    route_bad: "The XMPP server gives stanzas for this component to another connection",
    route_good: "Stanzas arrive",
};

static GERMAN: Words = Words {
    tag: "de",
    up: "verbunden",
    down: "getrennt",
    link: "XMPP-Server",
    database: "Datenbank",
    taken: "angenommen",
    refused: "abgelehnt",
    new_sessions: "Neue Sitzungen",
    brokered: "Vermittelte Sitzungen",
    transfers: "SOCKS5-Übertragungen",
    throughput: "Durchsatz",
    last_hour: "Letzte Stunde",
    sessions: "Sitzungen",
    errors: "Ablehnungen und Fehler",
    at_most: "höchstens",
    since_start: "Seit dem Start",
    up_for: "Läuft seit",
    streams: "Datenströme",
    relayed: "Weitergeleitet",
    waiting: "Wartende SOCKS5-Übertragungen",
    connections: "Datenbankverbindungen",
    idle: "frei",
    events: "Letzte Ereignisse",
    oldest: "Älteste Sitzungen",
    versions: "Versionen",
    certificate: "Zertifikat",
    being_set_up: "wird aufgebaut",
    plain: "nicht Ende zu Ende verschlüsselt",
    link_up: "Die Verbindung zum XMPP-Server steht",
    link_down: "Die Verbindung zum XMPP-Server ist verloren",
    route_bad: "Der XMPP-Server gibt Stanzas für diese Komponente an eine andere Verbindung",
    route_good: "Stanzas kommen an",
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_browser_chooses_the_language() {
        for (accepted, tag) in [
            ("", "en"),
            ("fr,*;q=0.5", "en"),
            ("de-AT,de;q=0.9,en;q=0.8", "de"),
            ("en-GB,en;q=0.9,de;q=0.8", "en"),
            ("fr, DE;q=0.7, en;q=0.3", "de"),
            ("de;q=0", "en"),
            ("de;q=x", "en"),
            (";;,;q=,-", "en"),
        ] {
            assert_eq!(Words::preferred(accepted).tag, tag, "{accepted}");
        }
    }
}
