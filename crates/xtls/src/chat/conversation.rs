//! The rules of a chat over one XML stream, without a socket or a terminal: lines go in, news for a person come out.

use std::{collections::VecDeque, time::Duration};

use fingerpost_wire::{
    ns,
    stanza::{Refusal, StanzaType},
    xml,
};
use jid::BareJid;
use minidom::Element;

use crate::stream::{
    End, Event, Fault, Names, Role, XmlStream,
    acks::{Acks, Step},
};

/// The longest text of one message, in bytes: with its escapes it fits into what a peer accepts.
pub(crate) const MAX_TEXT: usize = 20 << 10;
/// The most lines on their way: more than a person writes, and a bound for a peer that does not acknowledge.
const MAX_WAITING: usize = 1000;

/// How long the peer may take to open its stream.
const OPEN: Duration = Duration::from_secs(30);
/// How long an initiator may take to enable acknowledgements; earlier lines cannot be acknowledged.
const ENABLE: Duration = Duration::from_secs(3);
/// How long the peer may take to close its stream after we have closed ours.
const CLOSE: Duration = Duration::from_secs(5);

/// News for a person.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    /// The chat may begin. `acknowledged`: the peer will acknowledge lines.
    Started { acknowledged: bool },
    /// The peer wrote this.
    Message(String),
    /// The line of this number has arrived.
    Arrived(u64),
    /// The peer's program did not accept the line.
    NotTaken(String),
    /// The chat has ended; these lines may not have arrived.
    Ended { end: End, lost: Vec<u64> },
}

/// Why a line is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotSent {
    #[error("the line is longer than {} KiB: send a file instead", MAX_TEXT >> 10)]
    TooLong,
    #[error("the peer has not acknowledged the last {MAX_WAITING} lines: wait for it")]
    TooMany,
    #[error("the chat is over")]
    Over,
}

/// A chat. See the module's documentation.
#[derive(Debug)]
pub(crate) struct Conversation {
    stream: XmlStream,
    acks: Acks,
    own: Option<BareJid>,
    peer: Option<BareJid>,
    lines: u64,
    /// Our unacknowledged stanzas, oldest first; those with a person's line have a number.
    waiting: VecDeque<Option<u64>>,
    news: VecDeque<News>,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The headers are still to come.
    Opening,
    /// We have offered to acknowledge.
    Offered,
    Open,
    Closing,
    Over,
}

impl Conversation {
    /// Creates a chat that we or the peer open. If we respond, `id` is the stream's id and must be unguessable.
    pub(super) fn new(role: Role, names: Names, id: String) -> Self {
        let (own, peer) = (names.own.first().cloned(), names.peer.first().cloned());
        let stream = match role {
            Role::Initiator => XmlStream::initiate(names),
            Role::Responder => XmlStream::respond(names, vec![Acks::feature()], id),
        };
        Self {
            stream,
            acks: Acks::default(),
            own,
            peer,
            lines: 0,
            waiting: VecDeque::new(),
            news: VecDeque::new(),
            phase: Phase::Opening,
        }
    }

    /// Handles received bytes.
    pub(super) fn handle_bytes(&mut self, mut bytes: &[u8]) {
        while let Some(event) = self.stream.next(&mut bytes) {
            self.handle(event);
        }
    }

    /// Handles the end of the bytes.
    pub(crate) fn handle_end(&mut self) {
        if let Some(event) = self.stream.handle_end() {
            self.handle(event);
        }
    }

    /// Returns how long the present phase may last before [`handle_timeout`](Self::handle_timeout).
    pub(super) fn patience(&self) -> Option<Duration> {
        match self.phase {
            Phase::Opening => Some(OPEN),
            Phase::Offered => Some(ENABLE),
            Phase::Closing => Some(CLOSE),
            Phase::Open | Phase::Over => None,
        }
    }

    /// Handles the timeout of the present phase.
    pub(super) fn handle_timeout(&mut self) {
        let event = match self.phase {
            Phase::Opening => Some(self.stream.fail(Fault::Timeout)),
            Phase::Closing => self.stream.handle_end(),
            Phase::Offered => return self.start(false),
            Phase::Open | Phase::Over => None,
        };
        if let Some(event) = event {
            self.handle(event);
        }
    }

    /// Returns the bytes to send.
    pub(crate) fn take_output(&mut self) -> Vec<u8> {
        self.stream.take_output()
    }

    /// Sends a sign of life.
    pub(crate) fn keep_alive(&mut self) {
        self.stream.keep_alive();
    }

    /// Returns the next news for a person.
    pub(crate) fn poll_news(&mut self) -> Option<News> {
        self.news.pop_front()
    }

    /// Returns whether lines may be sent.
    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Returns whether the chat is over.
    pub(super) fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Returns whether one more line may be sent.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < MAX_WAITING
    }

    /// Sends a line; returns its number.
    ///
    /// # Errors
    /// [`NotSent`]; nothing was sent then.
    pub(super) fn say(&mut self, text: &str) -> Result<u64, NotSent> {
        if !self.is_open() {
            return Err(NotSent::Over);
        }
        if text.len() > MAX_TEXT {
            return Err(NotSent::TooLong);
        }
        if !self.has_room() {
            return Err(NotSent::TooMany);
        }
        self.lines += 1;
        let id = self.lines.to_string();
        let mut message = self.addressed("message", &[("type", "chat"), ("id", &id)]);
        let mut body = Element::bare("body", ns::CLIENT);
        body.append_text(carried(text));
        message.append_child(body);
        self.send(&message, Some(self.lines));
        Ok(self.lines)
    }

    /// Ends the chat: sends the last acknowledgement, then the closing tag.
    pub(super) fn close(&mut self) {
        if matches!(self.phase, Phase::Closing | Phase::Over) {
            return;
        }
        self.phase = Phase::Closing;
        if let Some(last) = self.acks.last_word() {
            self.stream.send(&last);
        }
        self.stream.close();
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Opened { from, features } => {
                tracing::trace!(?from, "the chat's stream is open");
                if self.phase == Phase::Closing {
                    return;
                }
                if self.stream.role() == Role::Responder {
                    self.phase = Phase::Offered;
                    return;
                }
                let offered = features.is_some_and(|features| features.has_child("sm", ns::SM));
                if offered {
                    let enable = self.acks.enable();
                    self.stream.send(&enable);
                }
                self.start(offered);
            }
            Event::Element(element) => {
                if let Err(fault) = self.element(&element) {
                    let event = self.stream.fail(fault);
                    self.handle(event);
                }
            }
            Event::Ended(end) => {
                self.phase = Phase::Over;
                let lost = if self.acks.is_on() || end != End::Closed {
                    self.waiting.drain(..).flatten().collect()
                } else {
                    Vec::new()
                };
                self.news.push_back(News::Ended { end, lost });
            }
        }
    }

    fn start(&mut self, acknowledged: bool) {
        self.phase = Phase::Open;
        self.news.push_back(News::Started { acknowledged });
    }

    fn element(&mut self, element: &Element) -> Result<(), Fault> {
        if element.has_ns(ns::SM) {
            match self.acks.handle(element)? {
                Step::Done => {}
                Step::Reply(reply) => {
                    self.stream.send(&reply);
                    if self.phase == Phase::Offered {
                        self.start(true);
                    }
                }
                Step::Handled(count) => {
                    for _ in 0..count {
                        if let Some(Some(line)) = self.waiting.pop_front() {
                            self.news.push_back(News::Arrived(line));
                        }
                    }
                }
                Step::Unavailable => self.news.push_back(News::Started { acknowledged: false }),
            }
            return Ok(());
        }
        if self.phase == Phase::Offered {
            self.start(false);
        }
        if !element.has_ns(ns::CLIENT) {
            return Err(Fault::Unsupported);
        }
        match element.name() {
            "message" => self.message(element),
            "iq" => self.iq(element),
            "presence" => {}
            _ => return Err(Fault::Unsupported),
        }
        self.acks.received();
        Ok(())
    }

    fn message(&mut self, message: &Element) {
        if message.attr("type") == Some("error") {
            let condition = message
                .get_child("error", ns::CLIENT)
                .and_then(|error| error.children().find(|c| c.has_ns(ns::STANZA_ERRORS)))
                .map_or("undefined-condition", Element::name);
            self.news.push_back(News::NotTaken(condition.to_owned()));
        } else if let Some(body) = message.get_child("body", ns::CLIENT) {
            self.news.push_back(News::Message(body.text()));
        }
    }

    /// Answers the requests that every XMPP entity answers; refuses all others.
    fn iq(&mut self, iq: &Element) {
        let type_ = StanzaType::of(iq);
        if !type_.asks() {
            return;
        }
        let payload = iq.children().next();
        let is = |name: &str, namespace: &str| payload.is_some_and(|p| p.is(name, namespace));
        let id = iq.attr("id").unwrap_or_default();
        let result = |this: &Self| this.addressed("iq", &[("type", "result"), ("id", id)]);
        let answer = match type_ {
            StanzaType::Get if is("ping", ns::PING) => result(self),
            StanzaType::Get if is("query", ns::DISCO_INFO) => {
                let mut query = Element::bare("query", ns::DISCO_INFO);
                query.append_child(xml::element(
                    "identity",
                    ns::DISCO_INFO,
                    &[("category", "client"), ("type", "console"), ("name", "xtls")],
                ));
                for feature in [ns::DISCO_INFO, ns::PING] {
                    let feature = xml::element("feature", ns::DISCO_INFO, &[("var", feature)]);
                    query.append_child(feature);
                }
                let mut answer = result(self);
                answer.append_child(query);
                answer
            }
            _ => {
                let mut answer = self.addressed("iq", &[("type", "error"), ("id", id)]);
                answer.append_child(Refusal::service_unavailable().to_element());
                answer
            }
        };
        self.send(&answer, None);
    }

    fn addressed(&self, name: &str, attributes: &[(&str, &str)]) -> Element {
        let mut stanza = xml::element(name, ns::CLIENT, attributes);
        for (name, address) in [("from", &self.own), ("to", &self.peer)] {
            if let Some(address) = address {
                xml::set(&mut stanza, name, address.as_str());
            }
        }
        stanza
    }

    fn send(&mut self, stanza: &Element, line: Option<u64>) {
        // Answers are not kept for a peer that sends requests and never acknowledges.
        if self.waiting.len() > 2 * MAX_WAITING {
            return;
        }
        self.stream.send(stanza);
        if let Some(request) = self.acks.sent() {
            self.waiting.push_back(line);
            self.stream.send(&request);
        }
    }
}

/// Returns the text with replacements for characters that XML 1.0 cannot carry.
fn carried(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\t' | '\n' => c,
            '\u{FFFE}' | '\u{FFFF}' => '\u{FFFD}',
            c if c.is_control() => '\u{FFFD}',
            c => c,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jid(text: &str) -> BareJid {
        BareJid::new(text).unwrap()
    }

    fn pair() -> (Conversation, Conversation) {
        let (romeo, juliet) = (jid("romeo@montague.lit"), jid("juliet@capulet.lit"));
        let names = |own: &BareJid, peer: &BareJid| Names {
            own: vec![own.clone()],
            peer: vec![peer.clone()],
        };
        let mut pair = (
            Conversation::new(Role::Initiator, names(&romeo, &juliet), String::new()),
            Conversation::new(Role::Responder, names(&juliet, &romeo), "id".to_owned()),
        );
        drive(&mut pair);
        assert_eq!(news(&mut pair.0), [News::Started { acknowledged: true }]);
        assert_eq!(news(&mut pair.1), [News::Started { acknowledged: true }]);
        pair
    }

    fn drive(pair: &mut (Conversation, Conversation)) {
        loop {
            let (a, b) = (pair.0.take_output(), pair.1.take_output());
            if a.is_empty() && b.is_empty() {
                return;
            }
            pair.1.handle_bytes(&a);
            pair.0.handle_bytes(&b);
        }
    }

    fn news(side: &mut Conversation) -> Vec<News> {
        std::iter::from_fn(|| side.poll_news()).collect()
    }

    #[test]
    fn a_line_is_told_to_the_peer_and_its_arrival_to_the_writer() {
        let mut pair = pair();
        assert_eq!(pair.0.say("M'lady, I would be <pleased>"), Ok(1));
        assert_eq!(pair.1.say("Art thou not Romeo?"), Ok(1));
        drive(&mut pair);
        let theirs = News::Message("Art thou not Romeo?".to_owned());
        assert_eq!(news(&mut pair.0), [theirs, News::Arrived(1)]);
        let ours = News::Message("M'lady, I would be <pleased>".to_owned());
        assert_eq!(news(&mut pair.1), [ours, News::Arrived(1)]);
    }

    #[test]
    fn a_peer_that_does_not_count_stanzas_can_chat_too() {
        let names = Names { own: vec![jid("juliet@capulet.lit")], peer: vec![] };
        let header = format!(
            "<stream:stream xmlns='jabber:client' xmlns:stream='{}' from='romeo@montague.lit' version='1.0'>",
            ns::STREAM
        );
        for hello in ["", "<message><body>hi</body></message>"] {
            let mut chat = Conversation::new(Role::Responder, names.clone(), String::new());
            assert_eq!(chat.patience(), Some(OPEN));
            chat.handle_bytes(header.as_bytes());
            assert_eq!((chat.patience(), chat.is_open()), (Some(ENABLE), false));
            chat.handle_bytes(hello.as_bytes());
            if hello.is_empty() {
                chat.handle_timeout();
            }
            assert_eq!(chat.poll_news(), Some(News::Started { acknowledged: false }));
            assert_eq!((chat.patience(), chat.say("hello")), (None, Ok(1)));
            chat.handle_bytes(b"</stream:stream>");
            let news = news(&mut chat);
            assert_eq!(news.last(), Some(&News::Ended { end: End::Closed, lost: vec![] }));
        }
    }

    #[test]
    fn a_chat_is_closed_by_both_and_nothing_is_lost() {
        let mut pair = pair();
        pair.0.say("goodbye").unwrap();
        pair.0.close();
        assert_eq!(pair.0.say("too late"), Err(NotSent::Over));
        drive(&mut pair);
        let closed = || News::Ended { end: End::Closed, lost: vec![] };
        assert_eq!(news(&mut pair.1), [News::Message("goodbye".to_owned()), closed()]);
        assert_eq!(news(&mut pair.0), [News::Arrived(1), closed()]);
        assert!(pair.0.is_over() && pair.1.is_over());
    }

    #[test]
    fn lines_that_were_not_acknowledged_are_named_when_the_stream_breaks() {
        let mut pair = pair();
        pair.0.say("one").unwrap();
        drive(&mut pair);
        pair.0.say("two").unwrap();
        pair.0.say("three").unwrap();
        pair.0.handle_end();
        let ended = News::Ended { end: End::Broken, lost: vec![2, 3] };
        assert_eq!(news(&mut pair.0), [News::Arrived(1), ended]);
    }

    #[test]
    fn control_characters_are_not_sent_and_a_line_has_a_length() {
        let mut pair = pair();
        pair.0.say("a\u{1b}[2Jb\tc").unwrap();
        assert_eq!(pair.0.say(&"x".repeat(MAX_TEXT + 1)), Err(NotSent::TooLong));
        drive(&mut pair);
        assert_eq!(news(&mut pair.1), [News::Message("a\u{FFFD}[2Jb\tc".to_owned())]);
    }

    #[test]
    fn pings_and_disco_are_answered_and_what_is_unknown_is_refused() {
        let mut pair = pair();
        for (payload, expected) in [
            (Element::bare("ping", ns::PING), "type='result'"),
            (Element::bare("query", ns::DISCO_INFO), "<identity"),
            (Element::bare("jingle", ns::JINGLE), "service-unavailable"),
        ] {
            let mut iq = xml::element("iq", ns::CLIENT, &[("type", "get"), ("id", "7")]);
            iq.append_child(payload);
            let bytes = String::from(&iq);
            pair.1.handle_bytes(bytes.as_bytes());
            let out = String::from_utf8(pair.1.take_output()).unwrap();
            assert!(out.contains(expected), "{out}");
        }
    }

    #[test]
    fn an_unknown_element_and_a_wrong_count_end_the_stream() {
        for (bytes, fault) in [
            ("<x xmlns='urn:x'/>", Fault::Unsupported),
            ("<a xmlns='urn:xmpp:sm:3' h='9'/>", Fault::HandledTooMany { handled: 9, sent: 0 }),
        ] {
            let mut pair = pair();
            pair.1.handle_bytes(bytes.as_bytes());
            let ended = News::Ended { end: End::Fault(fault), lost: vec![] };
            assert_eq!(news(&mut pair.1), [ended]);
        }
    }

    #[test]
    fn a_peer_that_asks_and_never_acknowledges_is_not_kept_answers_for() {
        let mut pair = pair();
        let ping = "<iq type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq>";
        for _ in 0..3 * MAX_WAITING {
            pair.1.handle_bytes(ping.as_bytes());
            pair.1.take_output();
        }
        assert_eq!(pair.1.waiting.len(), 2 * MAX_WAITING + 1);
    }
}
