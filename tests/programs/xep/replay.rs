//! Replays examples: plays the XMPP server of a component, and the users behind it.
//!
//! What users send is sent as written, with the ids that the component has chosen in the place of those in the text.
//! What the component sends must equal the example: elements, attributes, text. Only the values that the component
//! chooses may differ ([`CHOSEN`], and dates), and each of them has one value throughout.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Instant;

use base64::{Engine, engine::general_purpose::STANDARD};
use fingerpost_secure::identity::Identity;
use fingerpost_wire::{
    ns,
    print::{HashKind, Print},
    proof,
};
use jid::BareJid;
use minidom::Element;
use support::process::Process;
use support::programs::clean;
use support::raw::Framer;
use support::{PATIENCE, own_program, wait_for};

use super::text::{Example, Step, stanzas};

/// The component of the examples.
const COMPONENT: &str = "xtls.shakespeare.lit";
/// The user whose key the certificate in the examples belongs to, and its id there.
const OWNER: &str = "romeo@montague.lit";
const KEY_ID: &str = "a7c96dc7e2207fa14fde0050489eee15";
/// The secret of that key, an Ed25519 key: PKCS#8 around these 32 bytes.
const SECRET: [u8; 32] = [1; 32];
const PKCS8: &[u8] = b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";
/// The attributes whose values the component chooses, by their elements.
const CHOSEN: [(&str, &[&str]); 11] = [
    ("candidate", &["cid"]),
    ("challenge", &["nonce"]),
    ("command", &["sessionid"]),
    ("data", &["sid"]),
    ("jingle", &["sid"]),
    ("key", &["id"]),
    ("message", &["id"]),
    ("observed", &["port"]),
    ("open", &["sid"]),
    ("propose", &["id"]),
    ("transport", &["dstaddr", "sid"]),
];
/// Values of this length or more are also replaced inside of texts.
const LONG: usize = 32;

/// Replays the examples of one file.
pub(super) fn run(file: &Path, steps: &[Step]) {
    let mut replay: Option<Replay> = None;
    for step in steps {
        if let Step::Start { line, settings } = step {
            if let Some(replay) = replay.take() {
                replay.end();
            }
            replay = Some(Replay::start(format!("{}:{line}", file.display()), settings));
            continue;
        }
        let replay = replay.as_mut().expect("the first step is a start");
        match step {
            Step::Start { .. } => {}
            Step::Key { owner, key, is_revoked } => replay.register(owner, key, *is_revoked),
            Step::Client { jid, features } => replay.appear(jid, features),
            Step::Connect { stream } => replay.connect(stream),
            Step::Sign => replay.sign(),
            Step::Again => replay.is_repeated = true,
            Step::Chosen(text) => {
                replay.chosen.insert(text.clone());
            }
            Step::Unshown(words) => replay.unshown.extend(words.iter().cloned()),
            Step::Sends(example) => replay.sends(example),
            Step::Gets(example) => replay.gets(example),
        }
    }
    replay.expect("the file has examples").end();
}

/// One component and what was said to it.
struct Replay {
    place: String,
    link: TcpStream,
    framer: Framer,
    program: Process,
    directory: tempfile::TempDir,
    port: u16,
    /// The stanzas of the component that no example has shown yet.
    left: Vec<Element>,
    /// The values that the component has chosen, by those in the text.
    bound: BTreeMap<String, String>,
    /// The values that users have sent: the component cannot have chosen them.
    sent: BTreeSet<String>,
    /// Texts that stand for something chosen.
    chosen: BTreeSet<String>,
    /// The features of clients.
    clients: BTreeMap<String, Vec<String>>,
    /// The words for stanzas that no example shows.
    unshown: BTreeSet<String>,
    /// The names of SOCKS5 streams, by their ids, and the open connections.
    streams: BTreeMap<String, String>,
    connections: Vec<TcpStream>,
    /// The bytes to be signed, in the text and by the component.
    to_sign: Option<(Vec<u8>, Vec<u8>)>,
    /// Whether the next stanza is sent until its answer is a result; that stanza, and when to give up.
    is_repeated: bool,
    repeated: Option<(String, Instant)>,
    /// Numbers for requests of the test's own.
    asked: u32,
}

impl Replay {
    fn start(place: String, more: &[String]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let port = support::free_port();
        let directory = tempfile::tempdir().unwrap();
        let settings = format!(
            "[component]\njid = \"{COMPONENT}\"\nserver = \"{server}\"\nsecret = \"s\"\n\
             [database]\nurl = \"sqlite:{}\"\n\
             [socks5]\nlisten = [\"127.0.0.1:{port}\"]\nadvertise = [\"proxy.shakespeare.lit:7625\"]\n\
             [registry]\nimport_pep = false\n\
             [access]\nusers = [\"montague.lit\", \"capulet.lit\"]\n[http]\nlisten = \"\"\n",
            directory.path().join("keys.db").display()
        );
        let file = directory.path().join("fingerpost.toml");
        std::fs::write(&file, settings).unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        let mut command = clean(&own_program("fingerpost"));
        command.args(["serve", "-c"]).arg(&file).current_dir(directory.path());
        for setting in more {
            let (name, value) = setting.split_once('=').expect("a setting has a value");
            let name = format!("FINGERPOST_{}", name.to_uppercase().replace('.', "__"));
            command.env(name, value);
        }
        let mut program = Process::start(command, &directory.path().join("log"));
        listener.set_nonblocking(true).unwrap();
        let mut link = None;
        let log = directory.path().join("log");
        let why = || std::fs::read_to_string(&log).unwrap_or_default();
        wait_for("a connection of the component", PATIENCE, why, || {
            assert_eq!(program.ended(), None, "{}", why());
            link = listener.accept().ok().map(|(link, _)| link);
            link.is_some()
        });
        let link = link.unwrap();
        link.set_nonblocking(false).unwrap();
        link.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut this = Self {
            place,
            link,
            framer: Framer::new(),
            program,
            directory,
            port,
            left: Vec::new(),
            bound: BTreeMap::new(),
            sent: BTreeSet::new(),
            chosen: BTreeSet::new(),
            clients: BTreeMap::new(),
            unshown: BTreeSet::new(),
            streams: BTreeMap::new(),
            connections: Vec::new(),
            to_sign: None,
            is_repeated: false,
            repeated: None,
            asked: 0,
        };
        this.read_until(&["<stream:stream", ">"]);
        this.write(
            "<stream:stream xmlns='jabber:component:accept' \
             xmlns:stream='http://etherx.jabber.org/streams' from='xtls' id='1'>",
        );
        this.read_until(&["</handshake>"]);
        this.write("<handshake/>");
        this
    }

    fn write(&mut self, text: &str) {
        self.link.write_all(text.as_bytes()).unwrap();
    }

    /// Reads byte by byte until all of these texts have come, one after the other.
    fn read_until(&mut self, texts: &[&str]) {
        for text in texts {
            let mut seen = Vec::new();
            while !seen.ends_with(text.as_bytes()) {
                let mut byte = [0];
                self.link.read_exact(&mut byte).unwrap();
                seen.push(byte[0]);
            }
        }
    }

    fn fail(&self, why: &str) -> ! {
        let left: Vec<String> = self.left.iter().map(String::from).collect();
        let log = std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        panic!("{}: {why}\nnot shown yet:\n{}\n{log}", self.place, left.join("\n"));
    }

    /// Waits for a stanza of the component, and puts it with those that are left.
    fn receive(&mut self, awaited: &str) {
        loop {
            while let Some(raw) = self.framer.next_stanza() {
                if self.take(&String::from_utf8(raw).unwrap()) {
                    return;
                }
            }
            let mut block = [0; 16 * 1024];
            match self.link.read(&mut block) {
                Ok(count) if count > 0 => self.framer.push(&block[..count]),
                end => self.fail(&format!("{awaited} did not come: {end:?}")),
            }
        }
    }

    /// Handles what the server or a client answers by itself. Returns whether the stanza is left to be shown.
    fn take(&mut self, raw: &str) -> bool {
        let stanza = stanzas(raw).unwrap().remove(0);
        let get = |name| stanza.attr(name).unwrap_or_default().to_owned();
        let (to, from, id) = (get("to"), get("from"), get("id"));
        if to == COMPONENT && from == COMPONENT {
            // The component looks whether the server is there.
            self.write(raw);
            return false;
        }
        for transport in descendants(&stanza) {
            if let (Some(sid), Some(name)) = (transport.attr("sid"), transport.attr("dstaddr")) {
                self.streams.insert(sid.to_owned(), name.to_owned());
            }
        }
        let is_question =
            get("type") == "get" && stanza.children().any(|c| c.has_ns(ns::DISCO_INFO));
        if is_question && let Some(features) = self.clients.get(&to) {
            let features: String =
                features.iter().map(|feature| format!("<feature var='{feature}'/>")).collect();
            self.write(&format!(
                "<iq type='result' id='{id}' from='{to}' to='{from}'><query xmlns='{}'>\
                 <identity category='client' type='pc'/>{features}</query></iq>",
                ns::DISCO_INFO
            ));
            return false;
        }
        self.left.push(stanza);
        true
    }

    /// Sends a request of a user that no example shows, and returns its answer.
    fn ask(&mut self, from: &str, kind: &str, payload: &str) -> Element {
        self.asked += 1;
        let id = format!("test-{}", self.asked);
        self.write(&format!(
            "<iq type='{kind}' id='{id}' from='{from}' to='{COMPONENT}'>{payload}</iq>"
        ));
        loop {
            let is_answer = |left: &Element| left.name() == "iq" && left.attr("id") == Some(&id);
            if let Some(at) = self.left.iter().position(is_answer) {
                return self.left.remove(at);
            }
            self.receive(payload);
        }
    }

    /// Waits for the notice about a changed key.
    fn drop_notice(&mut self) {
        loop {
            if let Some(at) = self.left.iter().position(|left| left.name() == "message") {
                self.left.remove(at);
                return;
            }
            self.receive("the notice");
        }
    }

    fn register(&mut self, owner: &str, key: &str, is_revoked: bool) {
        let inside = match key {
            "certificate" => format!("<material>{}</material>", STANDARD.encode(certificate())),
            print => format!("<print>{print}</print>"),
        };
        let from = format!("{owner}/setup");
        let add = format!(
            "<add xmlns='{}'><key method='x509' label='laptop'>{inside}</key></add>",
            ns::KEYS
        );
        let answer = self.ask(&from, "set", &add);
        let stored = answer.get_child("key", ns::KEYS).expect("the key is stored");
        let id = stored.attr("id").unwrap().to_owned();
        self.drop_notice();
        if is_revoked {
            self.ask(&from, "set", &format!("<revoke xmlns='{}' id='{id}'/>", ns::KEYS));
            self.drop_notice();
        }
        if owner == OWNER {
            self.bound.insert(KEY_ID.to_owned(), id);
        }
    }

    fn appear(&mut self, jid: &str, features: &[String]) {
        self.clients.insert(jid.to_owned(), features.to_vec());
        self.write(&format!("<presence from='{jid}' to='{COMPONENT}'/>"));
    }

    /// Connects to the component for a stream that it knows by this id.
    fn connect(&mut self, stream: &str) {
        let name = self.streams.get(stream).expect("the component has named the stream").clone();
        let mut socket = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.write_all(&[5, 1, 0]).unwrap();
        let mut method = [0; 2];
        socket.read_exact(&mut method).unwrap();
        let mut request = vec![5, 1, 0, 3, u8::try_from(name.len()).unwrap()];
        request.extend_from_slice(name.as_bytes());
        request.extend_from_slice(&[0, 0]);
        socket.write_all(&request).unwrap();
        let mut answer = vec![0; request.len()];
        socket.read_exact(&mut answer).unwrap();
        assert_eq!(answer[1], 0, "{}: the connection is refused", self.place);
        self.connections.push(socket);
    }

    /// Signs what the component has asked to be signed. The signature in the text must be that of the text.
    fn sign(&mut self) {
        let Some((in_text, actual)) = self.to_sign.take() else { self.fail("nothing to sign") };
        let sign = |message: &[u8]| {
            let key = [PKCS8, &SECRET].concat();
            let signature = Identity::of_parts(certificate(), key).sign(message).unwrap();
            STANDARD.encode(signature)
        };
        self.bound.insert(sign(&in_text), sign(&actual));
    }

    fn sends(&mut self, example: &Example) {
        self.place_at(example);
        let mut text = example.raw.clone();
        for (in_text, actual) in &self.bound {
            if in_text.len() >= LONG {
                text = text.replace(in_text, actual);
            }
            text = text.replace(&format!("'{in_text}'"), &format!("'{actual}'"));
        }
        for stanza in &example.stanzas {
            for element in descendants(stanza) {
                let values = element.attrs().iter().map(|(_, value)| value.clone());
                self.sent.extend(values.filter(|value| !self.bound.contains_key(value)));
            }
        }
        self.write(&text);
        self.repeated =
            std::mem::take(&mut self.is_repeated).then(|| (text, Instant::now() + PATIENCE));
    }

    fn place_at(&mut self, example: &Example) {
        let (file, _) = self.place.split_once(".xml").unwrap_or((&self.place, ""));
        self.place = format!("{file}.xml:{} ({})", example.line, example.caption);
    }

    fn gets(&mut self, example: &Example) {
        self.place_at(example);
        for expected in &example.stanzas {
            let received = self.shown(expected);
            if let Err(why) = self.compare(expected, &received) {
                let (expected, received) = (String::from(expected), String::from(&received));
                self.fail(&format!("{why}\nexpected {expected}\nfound    {received}"));
            }
        }
    }

    /// Returns the stanza of the component that an example shows.
    fn shown(&mut self, expected: &Element) -> Element {
        loop {
            if let Some(at) = self.left.iter().position(|left| self.is_like(expected, left)) {
                let found = self.left.remove(at);
                if found.attr("type") == Some("error")
                    && expected.attr("type") == Some("result")
                    && let Some((again, until)) = self.repeated.clone()
                    && Instant::now() < until
                {
                    self.write(&again);
                    continue;
                }
                return found;
            }
            self.receive(&String::from(expected));
        }
    }

    /// Returns whether a stanza may be the one in an example. If it differs in the rest, that is an error.
    fn is_like(&self, expected: &Element, found: &Element) -> bool {
        let is_answer = |iq: &Element| matches!(iq.attr("type"), Some("result" | "error"));
        if expected.name() != found.name() || expected.attr("to") != found.attr("to") {
            return false;
        }
        if expected.name() == "iq" && is_answer(expected) != is_answer(found) {
            return false;
        }
        if is_answer(expected) {
            return Some(self.actual(expected.attr("id").unwrap_or_default()).as_str())
                == found.attr("id");
        }
        kind(expected) == kind(found)
    }

    /// Returns a text with the values that the component has chosen.
    fn actual(&self, text: &str) -> String {
        if let Some(actual) = self.bound.get(text) {
            return actual.clone();
        }
        let long = self.bound.iter().filter(|(in_text, _)| in_text.len() >= LONG);
        long.fold(text.to_owned(), |text, (in_text, actual)| text.replace(in_text, actual))
    }

    /// Compares two trees, and learns what the component has chosen.
    fn compare(&mut self, expected: &Element, found: &Element) -> Result<(), String> {
        let name = expected.name();
        if (name, expected.ns()) != (found.name(), found.ns()) {
            return Err(format!("expected <{name}/> in {}, found {}", expected.ns(), found.name()));
        }
        let names = |element: &Element| -> BTreeSet<String> {
            element.attrs().iter().map(|((_, name), _)| name.to_string()).collect()
        };
        if names(expected) != names(found) {
            return Err(format!("<{name}/> has the attributes {:?}", names(found)));
        }
        for ((_, attribute), value) in expected.attrs() {
            let is =
                found.attrs().iter().find(|((_, name), _)| name.as_str() == attribute.as_str());
            let is = is.map(|(_, value)| value.clone()).unwrap_or_default();
            let is_request = name == "iq" && matches!(expected.attr("type"), Some("get" | "set"));
            let is_chosen = is_request && attribute.as_str() == "id"
                || CHOSEN.iter().any(|(element, attributes)| {
                    *element == name && attributes.contains(&attribute.as_str())
                });
            self.compare_value(value, &is, is_chosen)
                .map_err(|error| format!("<{name}/>, {attribute}: {error}"))?;
        }
        if name == "challenge" {
            let nonce = |element: &Element| -> Option<proof::Nonce> {
                STANDARD.decode(element.attr("nonce")?).ok()?.try_into().ok()
            };
            let message = |nonce: proof::Nonce| {
                let jid = |text| BareJid::new(text).unwrap();
                proof::message(&jid(COMPONENT), &jid(OWNER), &nonce)
            };
            self.to_sign = nonce(expected).map(message).zip(nonce(found).map(message));
        }
        if name == "field" && expected.attr("var") == Some("message") {
            let message = |field: &Element| {
                let lines: String = field.children().map(Element::text).collect();
                STANDARD.decode(lines).ok()
            };
            self.to_sign = message(expected).zip(message(found));
            return match self.to_sign {
                Some(_) => Ok(()),
                None => Err("no message to be signed".to_owned()),
            };
        }
        let (text, is) = (own_text(expected), own_text(found));
        let is_chosen = self.chosen.contains(&text);
        self.compare_value(&text, &is, is_chosen).map_err(|error| format!("<{name}/>: {error}"))?;
        let (mut parts, mut others) = (expected.children(), found.children());
        loop {
            match (parts.next(), others.next()) {
                (None, None) => return Ok(()),
                (Some(part), Some(other)) => self.compare(part, other)?,
                (Some(missing), None) => {
                    return Err(format!("<{name}/> lacks <{}/>", missing.name()));
                }
                (None, Some(more)) => {
                    return Err(format!("<{name}/> also has {}", String::from(more)));
                }
            }
        }
    }

    fn compare_value(
        &mut self,
        expected: &str,
        found: &str,
        is_chosen: bool,
    ) -> Result<(), String> {
        for prefix in ["key-", "prints-"] {
            if let (Some(expected), Some(found)) =
                (expected.strip_prefix(prefix), found.strip_prefix(prefix))
            {
                return self.compare_value(expected, found, true);
            }
        }
        let actual = self.actual(expected);
        if actual == found || without_dates(&actual) == without_dates(found) {
            return Ok(());
        }
        let is_known = self.bound.contains_key(expected) || self.sent.contains(expected);
        if is_chosen && !is_known && !found.is_empty() {
            self.bound.insert(expected.to_owned(), found.to_owned());
            return Ok(());
        }
        Err(format!("expected {actual:?}, found {found:?}"))
    }

    /// Ends the component. Nothing must be left that no example has shown.
    fn end(mut self) {
        self.ask("romeo@montague.lit/end", "get", &format!("<ping xmlns='{}'/>", ns::PING));
        let left = std::mem::take(&mut self.left);
        self.left = left.into_iter().filter(|left| !self.unshown.contains(&word(left))).collect();
        if !self.left.is_empty() {
            let words: Vec<String> = self.left.iter().map(word).collect();
            self.fail(&format!("no example shows these stanzas: {words:?}"));
        }
        self.program.signal("KILL");
    }
}

/// Returns the certificate of the examples, which is the one in docs/xep/key-registry.xml.
fn certificate() -> Vec<u8> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/xep/key-registry.xml");
    let text = std::fs::read_to_string(file).unwrap();
    let (_, rest) = text.split_once("<material>").unwrap();
    let (material, _) = rest.split_once("</material>").unwrap();
    let der = STANDARD.decode(material.split_whitespace().collect::<String>()).unwrap();
    let print = Print::of_certificate(HashKind::Sha256, &der).unwrap();
    assert!(text.contains(&print.to_string()), "the text has another fingerprint than {print}");
    der
}

/// Returns what a stanza is about: its payload, and the action of a Jingle payload.
fn kind(stanza: &Element) -> Option<(String, String, Option<String>)> {
    let payload = stanza.children().next()?;
    Some((payload.name().to_owned(), payload.ns(), payload.attr("action").map(str::to_owned)))
}

/// Returns the word by which a stanza is called that no example shows.
fn word(stanza: &Element) -> String {
    match (stanza.name(), kind(stanza)) {
        ("iq", Some((_, _, Some(action)))) => action,
        ("iq", Some((name, ..))) => name,
        ("iq", None) => stanza.attr("type").unwrap_or_default().to_owned(),
        (name, _) => name.to_owned(),
    }
}

/// Returns an element and all elements in it.
fn descendants(element: &Element) -> Vec<&Element> {
    let inside = element.children().flat_map(descendants);
    std::iter::once(element).chain(inside).collect()
}

/// Returns the text of an element as its readers take it: without space around it, and without line breaks in base64.
fn own_text(element: &Element) -> String {
    let words = element.text();
    let is_code = matches!(element.name(), "material" | "signature" | "x509cert");
    let separator = if is_code { "" } else { " " };
    words.split_whitespace().collect::<Vec<_>>().join(separator)
}

/// Returns a text in which every date is the same.
fn without_dates(text: &str) -> String {
    const FORM: &[u8] = b"0000-00-00T00:00:00Z";
    let bytes = text.as_bytes();
    let is_date = |at: usize| {
        bytes.get(at..at + FORM.len()).is_some_and(|part| {
            part.iter().zip(FORM).all(|(byte, form)| match form {
                b'0' => byte.is_ascii_digit(),
                form => byte == form,
            })
        })
    };
    let mut out = String::new();
    let mut skip = 0;
    for (at, c) in text.char_indices() {
        if skip > 0 {
            skip -= 1;
        } else if is_date(at) {
            out.push_str("DATE");
            skip = FORM.len() - 1;
        } else {
            out.push(c);
        }
    }
    out
}
