//! Checks what real servers do to a client's stanza on its way to a component: the table of docs/INTEROP.md, byte for
//! byte.
//!
//! With `FINGERPOST_WRITE_INTEROP` set (`make interop`), the columns of the present servers are written into the page;
//! otherwise they must be there.

use std::fmt::Write as _;

use support::raw::{Raw, attribute, contains, start_tag};
use support::servers::{Kind, Server};
use support::{COMPONENT, DOMAIN, root};

const BEGIN: &str = "<!-- wire -->\n";
const END: &str = "<!-- end of wire -->";
const SERVERS: [&str; 4] = ["Prosody 0.12", "Prosody 13.0", "ejabberd 23.01", "ejabberd 24.12"];

/// The stanza that is sent, and the part of the result that is shown.
enum Case {
    /// The content of a message, and of the result.
    Content(&'static str),
    /// An attribute of the message: its name, and its text.
    Attribute(&'static str, &'static str),
    /// A client's message with a text of so many bytes: whether it passes.
    FromClient(usize),
    /// The same from the component to the client.
    FromComponent(usize),
}

const CASES: [(&str, Case); 40] = [
    ("a prefix that the element declares", Case::Content("<p:x xmlns:p='u:p'/>")),
    ("an attribute with such a prefix", Case::Content("<x xmlns='u:x' xmlns:p='u:p' p:a='1'/>")),
    ("a prefix that the stanza declares", Case::Content("<x xmlns='u:x' xmlns:p='u:p'><p:y/></x>")),
    ("a prefix that the client's stream header declares", Case::Content("<sp:x/>")),
    ("an attribute with such a prefix", Case::Content("<x xmlns='u:x' sp:a='1'/>")),
    ("an attribute of the stanza with such a prefix", Case::Attribute("sp:a", "sp:a='1'")),
    ("no namespace", Case::Content("<x xmlns=''/>")),
    ("a child without a declaration", Case::Content("<body/>")),
    (
        "the client's namespace further in",
        Case::Content("<x xmlns='u:x'><y xmlns='jabber:client'/></x>"),
    ),
    ("the component's namespace", Case::Content("<x xmlns='jabber:component:accept'/>")),
    ("the stream's namespace", Case::Content("<stream:x/>")),
    ("an element with the prefix `xml`", Case::Content("<xml:x/>")),
    ("an attribute `xml:base`", Case::Content("<x xmlns='u:x' xml:base='b'/>")),
    ("an attribute `xml:foo`", Case::Content("<x xmlns='u:x' xml:foo='1'/>")),
    ("an attribute `xml:lang`", Case::Content("<x xmlns='u:x' xml:lang='de'/>")),
    ("`xml:lang` of the stanza", Case::Attribute("xml:lang", "xml:lang='de'")),
    ("a stanza without `xml:lang`", Case::Attribute("xml:lang", "")),
    ("CR in an attribute", Case::Content("<x xmlns='u:x' a='b&#13;c'/>")),
    ("LF in an attribute", Case::Content("<x xmlns='u:x' a='b&#10;c'/>")),
    ("TAB in an attribute", Case::Content("<x xmlns='u:x' a='b&#9;c'/>")),
    ("CR at the end of an attribute", Case::Content("<x xmlns='u:x' a='b&#13;'/>")),
    ("CR in an attribute of the stanza", Case::Attribute("id", "id='c&#13;d'")),
    ("CR in text", Case::Content("<x xmlns='u:x'>b&#13;c</x>")),
    ("LF and TAB in text", Case::Content("<x xmlns='u:x'>b&#10;&#9;c</x>")),
    ("a line's end of CR LF", Case::Content("<x xmlns='u:x'>b\r\nc</x>")),
    ("CDATA", Case::Content("<x xmlns='u:x'><![CDATA[<&]]></x>")),
    ("`>` in CDATA", Case::Content("<x xmlns='u:x'><![CDATA[>]]></x>")),
    ("`>` in text", Case::Content("<x xmlns='u:x'>></x>")),
    ("quotes in text", Case::Content("<x xmlns='u:x'>'\"</x>")),
    ("`>` and quotes in an attribute", Case::Content("<x xmlns='u:x' a='>\"&apos;'/>")),
    ("a character of a plane above the first", Case::Content("<x xmlns='u:x'>&#x1F600;</x>")),
    ("U+0085, U+2028", Case::Content("<x xmlns='u:x'>&#x85;&#x2028;</x>")),
    ("an empty element", Case::Content("<x xmlns='u:x'></x>")),
    ("a comment", Case::Content("<x xmlns='u:x'><!--c--></x>")),
    ("a processing instruction", Case::Content("<x xmlns='u:x'><?p i?></x>")),
    ("text of 250,000 bytes, from a client", Case::FromClient(250_000)),
    ("text of 270,000 bytes, from a client", Case::FromClient(270_000)),
    ("text of 500,000 bytes, from a component", Case::FromComponent(500_000)),
    ("text of 540,000 bytes, from a component", Case::FromComponent(540_000)),
    ("text of 4,000,000 bytes, from a component", Case::FromComponent(4_000_000)),
];

impl Case {
    /// Returns the table's cell for the sent stanza.
    fn sent(&self) -> String {
        match self {
            Self::Content(text) | Self::Attribute(_, text) if !text.is_empty() => shown(text),
            _ => String::new(),
        }
    }
}

/// Sorts the attributes of each tag: a server's order may differ in each run.
fn sorted(mut text: &str) -> String {
    let mut out = String::new();
    while let Some(at) = text.find('<') {
        let tag = start_tag(&text.as_bytes()[at..]);
        out += &text[..at];
        text = &text[at + tag.len()..];
        let end = if tag.ends_with("/>") { "/>" } else { ">" };
        let inside = tag.trim_end_matches(end);
        let mut rest = inside;
        let mut parts = Vec::new();
        while let Some((name, after)) = rest.split_once('=').filter(|_| !tag.starts_with("</")) {
            let quote = after.chars().next().unwrap();
            let close = after[1..].find(quote).unwrap() + 2;
            parts.push(format!("{name}={}", &after[..close]));
            rest = &after[close..];
        }
        if parts.is_empty() {
            out += inside;
        } else {
            let (head, first) =
                parts[0].split_once(' ').map(|(h, f)| (h.to_owned(), format!(" {f}"))).unwrap();
            parts[0] = first;
            // Declarations first.
            parts.sort_by_key(|part| (!part.starts_with(" xmlns"), part.clone()));
            out += &head;
            out += &parts.concat();
        }
        out += end;
    }
    out + text
}

/// Returns text for a cell.
fn shown(text: &str) -> String {
    let mut out = String::from("`");
    for c in text.chars() {
        match c {
            '\r' => out += "[CR]",
            '\n' => out += "[LF]",
            '\t' => out += "[TAB]",
            '\u{85}' => out += "[U+0085]",
            '\u{2028}' => out += "[U+2028]",
            // Both servers write either kind of quotes.
            '"' if !text.contains('\'') => out.push('\''),
            c => out.push(c),
        }
    }
    out.push('`');
    out
}

/// Both ends of a path through a server.
struct Way<'a> {
    server: &'a Server,
    client: Raw,
    component: Raw,
    count: usize,
}

impl<'a> Way<'a> {
    fn new(server: &'a Server) -> Self {
        let component = Raw::component(server);
        Self { server, client: Self::client(server), component, count: 0 }
    }

    fn client(server: &Server) -> Raw {
        Raw::client(server, "alice", "wire", "xmlns:sp='u:sp'")
    }

    /// Returns the result of a case.
    fn outcome(&mut self, case: &Case) -> String {
        match case {
            Case::Content(content) => {
                self.through("", content).map_or_else(std::convert::identity, |message| {
                    let text = String::from_utf8(message).unwrap();
                    let from = text.find('>').unwrap() + 1;
                    let to = text.rfind("</").unwrap_or(from);
                    shown(&sorted(&text[from..to]))
                })
            }
            Case::Attribute(name, written) => {
                self.through(written, "").map_or_else(std::convert::identity, |message| {
                    let tag = start_tag(&message);
                    // The prefix may differ.
                    let local = name.rsplit(':').next().unwrap();
                    let named =
                        |name: &str| attribute(&tag, name).map(|value| format!("{name}='{value}'"));
                    let other = || {
                        let at = tag.find(&format!(":{local}="))?;
                        let from = tag[..at].rfind(char::is_whitespace)? + 1;
                        let declared =
                            tag.split_whitespace().find(|part| part.starts_with("xmlns:"));
                        let value = named(&tag[from..at + 1 + local.len()])?;
                        Some(format!("{} {value}", declared.unwrap_or_default().replace('"', "'")))
                    };
                    named(name).or_else(other).map_or("none".to_owned(), |text| shown(&text))
                })
            }
            Case::FromClient(size) => {
                let content = format!("<x xmlns='u:x'>{}</x>", "x".repeat(*size));
                self.through("", &content)
                    .map_or_else(std::convert::identity, |_| "passes".to_owned())
            }
            Case::FromComponent(size) => self.back(*size),
        }
    }

    /// Sends a message to the component; returns it as it arrives, or how the client's stream ended.
    fn through(&mut self, attributes: &str, content: &str) -> Result<Vec<u8>, String> {
        self.count += 1;
        let n = self.count;
        // The message is the one between these two.
        let mark =
            |place: &str| format!("<message to='{COMPONENT}' type='headline' id='{place}-{n}'/>");
        let ping = format!(
            "<iq type='get' id='ping-{n}' to='{DOMAIN}'><ping xmlns='urn:xmpp:ping'/></iq>"
        );
        let text = format!(
            "{}<message to='{COMPONENT}' {attributes}>{content}</message>{}{ping}",
            mark("begin"),
            mark("end")
        );
        let written = self.client.try_send(&text);
        let ended = loop {
            let element = match self.client.read() {
                Ok(element) => element,
                Err(error) if written.is_ok() => break Some(error.to_string()),
                Err(_) => break Some("the stream ends".to_owned()),
            };
            let tag = start_tag(&element);
            if tag.starts_with("<stream:error") {
                break Some(format!("the stream ends: {}", condition(&element)));
            }
            if attribute(&tag, "id") == Some(&format!("ping-{n}")) {
                break None;
            }
        };
        if let Some(ended) = ended {
            self.client = Self::client(self.server);
            return Err(ended);
        }
        let is = |element: &[u8], place: &str| {
            attribute(&start_tag(element), "id") == Some(&format!("{place}-{n}"))
        };
        while !is(&self.component.read().unwrap(), "begin") {}
        let message = self.component.read().unwrap();
        assert!(contains(&message, b"<message"), "{}", String::from_utf8_lossy(&message));
        assert!(is(&self.component.read().unwrap(), "end"), "one message arrives as one");
        Ok(message)
    }

    /// Sends a message of the component; returns whether it passes.
    fn back(&mut self, size: usize) -> String {
        self.count += 1;
        let n = self.count;
        let to = format!("alice@{DOMAIN}/wire");
        let head = |id: &str| {
            format!("<message from='{COMPONENT}' to='{to}' type='headline' id='{id}-{n}'")
        };
        let text = format!(
            "{}><x xmlns='u:x'>{}</x></message>{}/>",
            head("big"),
            "x".repeat(size),
            head("end")
        );
        let _ended = self.component.try_send(&text);
        // A ping to the server comes back, or the stream has ended.
        let ping = format!(
            "<iq type='get' id='ping-{n}' from='{COMPONENT}' to='{DOMAIN}'><ping xmlns='urn:xmpp:ping'/></iq>"
        );
        let _ended = self.component.try_send(&ping);
        loop {
            let Ok(element) = self.component.read() else {
                self.component = Raw::component(self.server);
                return "the link ends".to_owned();
            };
            let tag = start_tag(&element);
            if tag.starts_with("<stream:error") {
                let condition = condition(&element);
                self.component = Raw::component(self.server);
                return format!("the link ends: {condition}");
            }
            if attribute(&tag, "id") == Some(&format!("ping-{n}")) {
                break;
            }
        }
        loop {
            let tag = start_tag(&self.client.read().unwrap());
            let id = attribute(&tag, "id").unwrap_or_default();
            if id == format!("big-{n}") {
                return "passes".to_owned();
            }
            if id == format!("end-{n}") {
                return "dropped".to_owned();
            }
        }
    }
}

/// Returns the condition of a stream error.
fn condition(element: &[u8]) -> String {
    let text = String::from_utf8_lossy(element).into_owned();
    let inside = text.split_once('>').map_or("", |(_, rest)| rest);
    inside.trim_start_matches('<').split([' ', '/', '>']).next().unwrap_or_default().to_owned()
}

/// Returns the column of the present server.
fn column(kind: Kind) -> usize {
    let name = format!("{kind:?} {}", kind.version());
    SERVERS
        .iter()
        .position(|server| name.to_lowercase().starts_with(&server.to_lowercase()))
        .unwrap_or_else(|| panic!("{name} is none of {SERVERS:?}: give it a column"))
}

#[test]
fn the_table_says_what_the_servers_do_to_a_stanza_on_its_way() {
    let path = root().join("docs/INTEROP.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let from = page.find(BEGIN).expect("the page has the table") + BEGIN.len();
    let to = page.find(END).expect("the table has an end");
    let written: Vec<Vec<String>> = page[from..to]
        .lines()
        .skip(2)
        .map(|line| {
            line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect()
        })
        .collect();
    let mut cells: Vec<[String; 4]> = CASES
        .iter()
        .enumerate()
        .map(|(n, _)| {
            let line = written.get(n).cloned().unwrap_or_default();
            std::array::from_fn(|at| line.get(at + 2).cloned().unwrap_or_default())
        })
        .collect();
    for kind in [Kind::Prosody, Kind::Ejabberd] {
        let column = column(kind);
        let server = Server::start_in_clear(kind);
        let mut way = Way::new(&server);
        for ((_, case), cells) in CASES.iter().zip(&mut cells) {
            cells[column] = way.outcome(case);
        }
    }
    let mut table =
        format!("| what | sent | {} |\n|---|---|---|---|---|---|\n", SERVERS.join(" | "));
    for ((what, case), cells) in CASES.iter().zip(&cells) {
        writeln!(table, "| {what} | {} | {} |", case.sent(), cells.join(" | ")).unwrap();
    }
    if std::env::var_os("FINGERPOST_WRITE_INTEROP").is_some() {
        std::fs::write(path, format!("{}{table}{}", &page[..from], &page[to..])).unwrap();
    } else {
        assert_eq!(
            &page[from..to],
            table,
            "`make interop` and `make interop-trixie` write the table"
        );
    }
}
