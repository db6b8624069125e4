//! Generates stanzas that are legal in XML 1.0 and Namespaces in XML, and mostly unlike those of clients. They depend
//! on the seed alone.
//!
//! It stays within what the servers accept from a client: names as in expat (no character beyond the basic plane), no
//! document type, and comments and processing instructions only for ejabberd, because Prosody ends the stream of a
//! client that sends one.

/// A generator of numbers (splitmix64): the same on every machine and with every version of any crate.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Creates a generator with a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.draw() % limit as u64).unwrap()
    }

    /// Returns true once in `n` times, on average.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// Returns one of several items.
    pub fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }
}

/// The declarations of the client's stream header; stanzas use the prefixes without declaring them again.
pub const HEADER: &str = "xmlns:sp='urn:example:header' xmlns:sq='urn:example:other'";

const NAMES: [&str; 14] = [
    "x", "query", "body", "foo", "a-b.c_d", "_", "é", "名前", "xmlfoo", "iq", "message", "error",
    "Ωmega", "a·b",
];
const PREFIXES: [&str; 6] = ["p", "q", "stream2", "é", "ns0", "_x"];
const NAMESPACES: [&str; 22] = [
    "urn:example:unknown",
    "jabber:client",
    "jabber:component:accept",
    "jabber:server",
    "http://etherx.jabber.org/streams",
    "urn:ietf:params:xml:ns:xmpp-stanzas",
    "http://www.w3.org/1999/xhtml",
    "urn:xmpp:ping",
    "http://jabber.org/protocol/disco#info",
    "http://jabber.org/protocol/disco#items",
    "http://jabber.org/protocol/ibb",
    "http://jabber.org/protocol/bytestreams",
    "http://jabber.org/protocol/commands",
    "jabber:x:data",
    "urn:xmpp:jingle:1",
    "urn:xmpp:jingle:apps:tls",
    "urn:xmpp:jingle-message:0",
    "urn:xmpp:tmp:c2ctls",
    "urn:fingerpost:keys:0",
    "urn:xmpp:saslcert:1",
    "a b",
    "&#x1F600;&lt;&amp;",
];
/// Payloads of real clients' requests.
const PAYLOADS: [(&str, &str); 12] = [
    ("ping", "urn:xmpp:ping"),
    ("query", "http://jabber.org/protocol/disco#info"),
    ("query", "http://jabber.org/protocol/disco#items"),
    ("query", "jabber:iq:version"),
    ("query", "http://jabber.org/protocol/bytestreams"),
    ("open", "http://jabber.org/protocol/ibb"),
    ("data", "http://jabber.org/protocol/ibb"),
    ("close", "http://jabber.org/protocol/ibb"),
    ("jingle", "urn:xmpp:jingle:1"),
    ("keys", "urn:fingerpost:keys:0"),
    ("command", "http://jabber.org/protocol/commands"),
    ("offer", "urn:xmpp:tmp:c2ctls"),
];
const ATTRIBUTES: [&str; 12] =
    ["a", "id", "sid", "node", "jid", "action", "name", "é", "from", "type", "x-y", "block-size"];
const XML_ATTRIBUTES: [(&str, &str); 7] = [
    ("xml:lang", "de"),
    ("xml:lang", ""),
    ("xml:space", "preserve"),
    ("xml:base", "http://example.org/"),
    ("xml:id", "i1"),
    ("xml:foo", "1"),
    ("xml:a.b", "&#13;"),
];
/// Pieces of text, as written in XML.
const TEXTS: [&str; 30] = [
    "text",
    " ",
    "&lt;",
    "&gt;",
    "&amp;",
    "&quot;",
    "&apos;",
    ">",
    "]]&gt;",
    "&#13;",
    "&#10;",
    "&#9;",
    "&#xD;&#xA;",
    "&#13;&#13;",
    "\t",
    "\n",
    "é",
    "日本語",
    "😀",
    "&#x1F600;",
    "&#x10FFFD;",
    "\u{85}",
    "\u{2028}",
    "\u{fffd}",
    "\u{7f}",
    "\u{9f}",
    "\u{1fffe}",
    "\u{e000}",
    "e\u{301}",
    "\u{202e}",
];

/// A stanza and its expected result.
#[derive(Debug)]
pub struct Stanza {
    /// The stanza as it is sent.
    pub text: String,
    /// Whether exactly one answer must come, with an id that begins with the number and a dot.
    pub asks: bool,
}

/// Generates stanzas.
#[derive(Debug)]
pub struct Grammar {
    dice: Dice,
    /// Whether comments and processing instructions are allowed.
    comments: bool,
    /// The longest stanza.
    most: usize,
    /// Prefixes in scope, the innermost last.
    scope: Vec<String>,
    depth: usize,
    out: String,
}

impl Grammar {
    /// Creates a grammar with a seed.
    pub fn new(seed: u64, comments: bool, most: usize) -> Self {
        let dice = Dice::new(seed);
        Self { dice, comments, most, scope: Vec::new(), depth: 0, out: String::new() }
    }

    /// Generates the stanza with this number; `from` is the full JID of the sender, `to` one of the destinations.
    pub fn stanza(&mut self, number: usize, from: &str, to: &str) -> Stanza {
        self.out.clear();
        self.scope = vec!["sp".to_owned(), "sq".to_owned()];
        let kind = self.dice.below(20);
        let (name, kinds, asks): (_, &[&str], _) = match kind {
            0..=11 => ("iq", &["get", "set"], true),
            12 => ("iq", &["result", "error"], false),
            13..=17 => ("message", &["", "chat", "normal", "headline", "error"], false),
            _ => ("presence", &["", "", "unavailable", "error"], false),
        };
        // The stanza's own name may have a prefix.
        let prefix = match self.dice.once_in(12) {
            true => "c:",
            false => "",
        };
        self.out += &format!("<{prefix}{name}");
        if !prefix.is_empty() {
            self.out += " xmlns:c='jabber:client'";
            self.scope.push("c".to_owned());
        }
        self.space();
        self.out += &format!("to='{to}'");
        if self.dice.once_in(3) {
            self.out += &format!(" from='{from}'");
        }
        let kind = self.dice.pick(kinds);
        if !kind.is_empty() {
            self.out += &format!(" type='{kind}'");
        }
        // The text before the dot identifies an answer.
        self.out += &format!(" id='{number}.");
        if self.dice.once_in(4) {
            self.value(self.most / 64);
        }
        self.out += "'";
        let declared = self.declarations();
        self.attributes(&["id", "type", "from", "to"]);
        self.out.push('>');
        let children = match name {
            "iq" if asks && !self.dice.once_in(16) => 1,
            _ => self.dice.below(4),
        };
        self.depth = 0;
        for n in 0..children {
            if self.dice.once_in(6) {
                self.trivia();
            }
            match n == 0 && asks && !self.dice.once_in(4) {
                true => self.payload(),
                false => self.element(),
            }
        }
        if name == "message" && self.dice.once_in(3) {
            self.text();
        }
        self.out += &format!("</{prefix}{name}");
        if self.dice.once_in(8) {
            self.out.push(' ');
        }
        self.out.push('>');
        self.scope.truncate(self.scope.len() - declared);
        Stanza { text: std::mem::take(&mut self.out), asks }
    }

    fn space(&mut self) {
        let space = self.dice.pick(&[" ", " ", " ", "\n", "\t", " \r\n "]);
        self.out += space;
    }

    /// Returns a known request with wrong content.
    fn payload(&mut self) {
        let (name, namespace) = PAYLOADS[self.dice.below(PAYLOADS.len())];
        match self.dice.once_in(3) {
            true => {
                self.out += &format!("<k:{name} xmlns:k='{namespace}'");
                self.scope.push("k".to_owned());
            }
            false => self.out += &format!("<{name} xmlns='{namespace}'"),
        }
        let prefixed = self.scope.last().is_some_and(|prefix| prefix == "k");
        let declared = self.declarations_but_default();
        self.attributes(&[]);
        if self.dice.once_in(2) {
            self.out += "/>";
        } else {
            self.out.push('>');
            self.content();
            self.out += &if prefixed { format!("</k:{name}>") } else { format!("</{name}>") };
        }
        self.scope.truncate(self.scope.len() - declared);
        if prefixed {
            self.scope.pop();
        }
    }

    /// Returns any element.
    fn element(&mut self) {
        // Rarely one that is in hundreds of others.
        let nested =
            if self.depth == 0 && self.dice.once_in(400) { 20 + self.dice.below(280) } else { 0 };
        for _ in 0..nested {
            self.out += "<n xmlns='urn:example:deep'>";
        }
        let prefix = if self.dice.once_in(10) {
            "xml".to_owned()
        } else if self.dice.once_in(3) {
            self.scope[self.dice.below(self.scope.len())].clone()
        } else {
            String::new()
        };
        // The element itself may declare its prefix.
        let own = (self.dice.once_in(4)).then(|| (*self.dice.pick(&PREFIXES)).to_owned());
        let prefix = own.clone().unwrap_or(prefix);
        let local = match self.dice.once_in(500) {
            true => "n".repeat(1 + self.dice.below(3000)),
            false => (*self.dice.pick(&NAMES)).to_owned(),
        };
        let name = if prefix.is_empty() { local } else { format!("{prefix}:{local}") };
        self.out += &format!("<{name}");
        let mut declared = 0;
        if let Some(own) = own {
            let namespace = self.dice.pick(&NAMESPACES);
            self.out += &format!(" xmlns:{own}='{namespace}'");
            self.scope.push(own.clone());
            declared += 1;
        }
        declared += self.declarations();
        self.attributes(&[]);
        if self.dice.once_in(3) {
            self.out += "/>";
        } else {
            self.out.push('>');
            self.content();
            self.out += &format!("</{name}");
            if self.dice.once_in(8) {
                self.out.push('\n');
            }
            self.out.push('>');
        }
        self.scope.truncate(self.scope.len() - declared);
        for _ in 0..nested {
            self.out += "</n>";
        }
    }

    fn content(&mut self) {
        self.depth += 1;
        for _ in 0..self.dice.below(4) {
            match self.dice.below(6) {
                0 | 1 if self.depth < 7 && self.out.len() < self.most / 2 => self.element(),
                2 => {
                    // The same child several times.
                    let at = self.out.len();
                    self.out +=
                        self.dice.pick(&["<r/>", "<r xmlns=''/>", "<r a='1'></r>", "<sp:r/>"]);
                    let one = self.out[at..].to_owned();
                    for _ in 0..self.dice.below(6) {
                        self.out += &one;
                    }
                }
                3 => self.cdata(),
                4 => self.trivia(),
                _ => self.text(),
            }
        }
        self.depth -= 1;
    }

    fn text(&mut self) {
        if self.dice.once_in(200) {
            let one = self.dice.pick(&["t", "&gt;", "&#13;", "é", "]"]);
            let count = self.dice.below(self.most / 16);
            self.out += &one.repeat(count);
            return;
        }
        for _ in 0..1 + self.dice.below(5) {
            let piece = self.dice.pick(&TEXTS);
            self.out += piece;
        }
        // A literal carriage return, which XML reads as a newline.
        if self.dice.once_in(10) {
            self.out += self.dice.pick(&["\r", "\r\n"]);
        }
    }

    fn cdata(&mut self) {
        let inside = self.dice.pick(&[
            "",
            "text",
            "<a>&amp;</a>",
            "]]",
            "]",
            " \r\n\t",
            "&#13;",
            "😀\u{85}",
            "'\">>>",
            "]]]]><![CDATA[>",
        ]);
        self.out += &format!("<![CDATA[{inside}]]>");
    }

    /// Returns comments and instructions, where they are allowed.
    fn trivia(&mut self) {
        if self.comments {
            let trivia =
                self.dice.pick(&["<!---->", "<!-- <a b='c'> & -->", "<?pi?>", "<?pi <a>&?>", "\n"]);
            self.out += trivia;
        }
    }

    /// Declares namespaces; returns how many prefixes are newly in scope.
    fn declarations(&mut self) -> usize {
        if self.dice.once_in(4) {
            let namespace = match self.depth > 0 && self.dice.once_in(4) {
                true => "",
                false => self.dice.pick(&NAMESPACES),
            };
            // A stanza's own default namespace is the stream's.
            if self.depth > 0 {
                self.space();
                self.out += &format!("xmlns=\"{namespace}\"");
            }
        }
        self.declarations_but_default()
    }

    fn declarations_but_default(&mut self) -> usize {
        let mut declared = 0;
        let first = self.dice.below(PREFIXES.len());
        let tag = self.out.rfind('<').unwrap_or_default();
        for n in 0..self.dice.below(3) {
            let prefix = PREFIXES[(first + n) % PREFIXES.len()];
            if self.out[tag..].contains(&format!("xmlns:{prefix}=")) {
                continue;
            }
            let namespace = self.dice.pick(&NAMESPACES);
            self.space();
            self.out += &format!("xmlns:{prefix}='{namespace}'");
            self.scope.push(prefix.to_owned());
            declared += 1;
        }
        if self.dice.once_in(50) {
            self.out += " xmlns:xml='http://www.w3.org/XML/1998/namespace'";
        }
        declared
    }

    /// Returns attributes, each name once.
    fn attributes(&mut self, taken: &[&str]) {
        if self.dice.once_in(6) {
            let (name, value) = XML_ATTRIBUTES[self.dice.below(XML_ATTRIBUTES.len())];
            self.space();
            self.out += &format!("{name}='{value}'");
        }
        let first = self.dice.below(ATTRIBUTES.len());
        for n in 0..self.dice.below(4) {
            let name = ATTRIBUTES[(first + n) % ATTRIBUTES.len()];
            if !taken.contains(&name) {
                self.space();
                self.out += &format!("{name}='");
                self.value(self.most / 8);
                self.out.push('\'');
            }
        }
        // Two prefixes may stand for one namespace, so only one attribute has a prefix.
        if self.dice.once_in(4) {
            let prefix = self.scope[self.dice.below(self.scope.len())].clone();
            self.space();
            self.out += &format!("{prefix}:at=\"");
            self.value(self.most / 8);
            self.out.push('"');
        }
        if self.dice.once_in(300) {
            for n in 0..self.dice.below(200) {
                self.out += &format!(" many{n}=''");
            }
        }
    }

    /// Returns the value of an attribute, seldom one of up to `most` bytes.
    fn value(&mut self, most: usize) {
        if self.dice.once_in(150) {
            let one = self.dice.pick(&["v", "&lt;", "&#10;", "é"]);
            let count = self.dice.below(most / one.len());
            self.out += &one.repeat(count);
            return;
        }
        for _ in 0..self.dice.below(4) {
            // A quote would end it.
            let piece = self.dice.pick(&TEXTS);
            self.out += piece;
        }
    }
}
