//! The fuzz targets: each function takes any bytes and panics if a promise does not hold for them.
//!
//! libFuzzer calls them (`cargo fuzz run NAME`, in fuzz_targets), and so does the bounded loop of tests/programs/fuzz.rs
//! (`make fuzz SECONDS=60`), which needs no other compiler.

use std::io;
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use fingerpost::{
    relay::{proxy_header::HeaderReader, socks5},
    sessions::hints::{self, Policies, VerdictPolicy},
};
use fingerpost_carry::reader::StanzaReader;
use fingerpost_secure::{material::Material, material_error::MATERIAL_MAX, openpgp, signature};
use fingerpost_wire::{
    client_hello::{Guard, check_client_hello},
    dialect::{self, Dialect},
    ibb::{self, IbbMachine},
    ibb_xml::IbbPayload,
    ice::{IceTransport, MOST_CANDIDATES},
    jid::{escape, proxied, unescape, unproxied},
    offer::{self, Offer},
    print::{HashKind, Method, Print},
    stanza::{Refusal, Stanza},
    xml::{Received, write},
};
use fingerpost_xtls::fuzzing as client;
use jid::{BareJid, Jid};
use minidom::Element;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, ReadBuf};

/// A target by its name.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 23] = [
    ("base64", base64),
    ("chat_stream", chat_stream),
    ("client_hello", client_hello),
    ("file_offer", file_offer),
    ("hints", hints),
    ("ibb", ibb),
    ("ice_agent", ice_agent),
    ("ice_transport", ice_transport),
    ("jid_escaping", jid_escaping),
    ("mdns_message", mdns_message),
    ("mdns_name", mdns_name),
    ("offer", offer),
    ("openpgp", openpgp),
    ("openpgp_spki", openpgp_spki),
    ("print", print),
    ("proxy_header", proxy_header),
    ("set_manifest", set_manifest),
    ("signature", signature),
    ("socks5", socks5),
    ("stanza", stanza),
    ("x509", x509),
    ("xml_reader", xml_reader),
    ("xml_writer", xml_writer),
];

const HEADER: &str = "<stream:stream xmlns='jabber:component:accept' \
                      xmlns:stream='http://etherx.jabber.org/streams' id='s'>";

/// Bytes that arrive in pieces of one size.
struct Pieces<'a> {
    bytes: &'a [u8],
    size: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let n = self.size.min(self.bytes.len()).min(buf.remaining());
        let (now, rest) = self.bytes.split_at(n);
        buf.put_slice(now);
        self.bytes = rest;
        Poll::Ready(Ok(()))
    }
}

/// Returns the elements of a component's stream with this content, with marks on those that were too large, and whether
/// it ended well.
fn read(content: &[u8], size: usize) -> (Vec<(bool, Element)>, bool) {
    let bytes = [HEADER.as_bytes(), content].concat();
    let mut reader = StanzaReader::new(Pieces { bytes: &bytes, size });
    let mut found = Vec::new();
    loop {
        match futures::executor::block_on(reader.read()) {
            Ok(Received::Header(_)) => {}
            Ok(Received::Element(element)) => found.push((false, element)),
            Ok(Received::Oversized(element)) => found.push((true, element)),
            Ok(Received::Dropped) => found.push((true, Element::bare("dropped", ""))),
            Ok(Received::Footer) => return (found, true),
            Err(_) => return (found, false),
        }
    }
}

fn written(element: &Element) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    write(element, &mut out).ok().map(|()| out)
}

/// Returns whether it contains a namespace that XML reserves: such an element is read, and never written.
fn is_reserved(element: &Element) -> bool {
    let reserved = ["http://www.w3.org/XML/1998/namespace", "http://www.w3.org/2000/xmlns/"];
    let own = reserved.iter().any(|namespace| element.has_ns(*namespace));
    let mut attributes = element.attrs().iter();
    own || attributes.any(|((namespace, _), _)| reserved.contains(&namespace.as_str()))
        || element.children().any(is_reserved)
}

/// Returns depth and number of elements.
fn shape(element: &Element) -> (usize, usize) {
    element
        .children()
        .map(shape)
        .fold((1, 1), |(depth, count), (d, c)| (depth.max(d + 1), count + c))
}

/// A component's stream: splitting the bytes changes nothing. An element that was read can be written, is not much
/// larger then, and reads back as the same.
pub fn xml_reader(data: &[u8]) {
    let size = 1 + usize::from(data.first().copied().unwrap_or_default() % 32);
    let (whole, end) = read(data, usize::MAX);
    let (pieces, pieces_end) = read(data, size);
    assert_eq!(whole, pieces, "splitting the bytes changes the elements");
    assert_eq!(end, pieces_end, "splitting the bytes changes the end");
    let mut room = 64 + 6 * data.len();
    // The program writes stanzas: in the stream's own namespace.
    let stanzas = || whole.iter().filter(|(_, element)| element.ns() == "jabber:client");
    for (_, element) in stanzas() {
        let (depth, count) = shape(element);
        assert!(depth <= 65, "deeper than is taken");
        // A prefix and its declaration may be added to each element and attribute.
        room += count * 128;
        let Some(bytes) = written(element) else {
            assert!(is_reserved(element), "cannot be written: {element:?}");
            continue;
        };
        let (again, _) = read(&bytes, usize::MAX);
        assert_eq!(again.len(), 1, "one element is written as one");
        assert_eq!(&again[0].1, element, "what is written is read back as another");
    }
    let total: usize =
        stanzas().filter_map(|(_, element)| written(element)).map(|bytes| bytes.len()).sum();
    let namespaces = 16 * data.len() * whole.len().max(1);
    assert!(total <= room + namespaces, "{} bytes become {total}", data.len());
}

/// Makes choices from the bytes of an input.
struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::from(self.byte()) % all.len()]
    }

    fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (now, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        now
    }

    /// Returns a text of a few characters, also those that XML cannot carry.
    fn text(&mut self) -> String {
        let n = usize::from(self.byte() % 8);
        let odd = [
            '\0', '\u{1}', '\t', '\n', '\r', '\u{b}', '\u{1f}', '\u{7f}', '\u{85}', '\u{fffe}',
            '\u{ffff}', '😀',
        ];
        (0..n)
            .map(|_| match self.byte() {
                byte @ b' '..=b'~' => char::from(byte),
                byte => odd[usize::from(byte) % odd.len()],
            })
            .collect()
    }
}

/// Returns whether all characters are allowed in XML 1.0 (2.2).
fn is_xml(text: &str) -> bool {
    text.chars().all(|c| {
        matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
    })
}

fn tree(choices: &mut Choices<'_>, depth: usize, fine: &mut bool) -> Element {
    let names = ["x", "body", "jingle", "é", "a-b"];
    let namespaces =
        ["jabber:client", "urn:x", "", "urn:<&'\">", "http://etherx.jabber.org/streams"];
    let mut element = Element::bare(choices.of(&names), choices.of(&namespaces));
    for name in ["a", "id", "to"] {
        if choices.byte().is_multiple_of(3) {
            let value = choices.text();
            *fine &= is_xml(&value);
            fingerpost_wire::xml::set(&mut element, name, &value);
        }
    }
    for _ in 0..choices.byte() % 4 {
        if choices.byte().is_multiple_of(2) && depth < 20 {
            element.append_child(tree(choices, depth + 1, fine));
        } else {
            let text = choices.text();
            // Adjacent texts are read as one.
            let last = element.nodes().last().is_none_or(|node| node.as_text().is_none());
            if !text.is_empty() && last {
                *fine &= is_xml(&text);
                element.append_text(text);
            }
        }
    }
    element
}

/// Any tree of elements is written within bounds and reads back as it was. If it contains characters that XML cannot
/// carry, it is refused or written without them, and the stream never breaks.
pub fn xml_writer(data: &[u8]) {
    let mut fine = true;
    let mut element = Element::bare("message", "jabber:client");
    element.append_child(tree(&mut Choices(data), 1, &mut fine));
    let Some(bytes) = written(&element) else {
        assert!(!fine, "XML can carry it: {element:?}");
        return;
    };
    let (_, count) = shape(&element);
    assert!(bytes.len() <= 200 * count + 6 * data.len(), "{} bytes for {count}", bytes.len());
    for size in [usize::MAX, 1] {
        let (again, _) = read(&bytes, size);
        assert_eq!(again.len(), 1, "the stream is broken by {element:?}");
        assert!(!fine || again == [(false, element.clone())], "{element:?} became {again:?}");
    }
}

fn element(data: &[u8]) -> Option<Element> {
    let text = std::str::from_utf8(data).ok()?;
    // The parser of the tree is recursive.
    (text.matches('<').count() < 500).then(|| Element::from_str(text).ok())?
}

/// A stanza and its answers: each is addressed to the sender, with its id, of bounded size.
pub fn stanza(data: &[u8]) {
    let Some(element) = element(data) else { return };
    let Ok(stanza) = Stanza::parse(element) else { return };
    let refusal = Refusal::bad_request("a text");
    for answer in [stanza.result(None), stanza.refusal(&refusal)] {
        // The addresses as written, or in canonical form.
        let is = |name: &str, jid: &Jid, written: &str| {
            let said = answer.attr(name);
            said == Some(jid.as_str()) || said == stanza.element.attr(written)
        };
        assert!(is("to", &stanza.from, "from") && is("from", &stanza.to, "to"), "{answer:?}");
        assert_eq!(answer.attr("id"), Some(stanza.id.as_str()));
        let bytes = written(&answer).expect("an answer to what was read can be written");
        let echoed = stanza.from.as_str().len() + stanza.to.as_str().len() + stanza.id.len();
        assert!(
            bytes.len() < 512 + 6 * echoed,
            "the answer to {} bytes has {}",
            data.len(),
            bytes.len()
        );
        let back = Stanza::parse(answer).expect("an answer is a stanza");
        assert!(!back.is_request(), "an answer must not ask");
    }
    if let Some(payload) = stanza.payload()
        && let Ok(Some(IbbPayload::Open { sid, block_size, .. })) = IbbPayload::parse(payload)
    {
        assert!(block_size > 0 && !sid.is_empty());
    }
}

/// Escaped addresses (XEP-0106) survive a round trip, and each user has one address.
pub fn jid_escaping(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let escaped = escape(text);
    assert_eq!(unescape(&escaped), text);
    assert!(escaped.len() <= 3 * text.len());
    assert!(!escaped.contains(['"', '&', '\'', '/', ':', '<', '>', '@', ' ']), "{escaped}");
    let component = BareJid::new("xtls.example.test").expect("a JID");
    let Ok(jid) = Jid::new(text) else { return };
    // The library reads some addresses with a dot after the domain as another's; they are skipped here.
    if !Jid::new(jid.as_str()).is_ok_and(|again| again == jid) || text.contains("./") {
        return;
    }
    if let Some(address) = proxied(&jid, &component)
        && let Some(back) = unproxied(&address, &component)
    {
        // Addresses have one canonical form, which is stable.
        let again = proxied(&back, &component).and_then(|address| unproxied(&address, &component));
        assert_eq!(again, Some(back), "{address} stands for another");
    }
    if let Some(user) = unproxied(&jid, &component) {
        let address = proxied(&user, &component).expect("it has an address");
        assert_eq!(unproxied(&address, &component).as_ref(), Some(&user), "{address}");
        assert_ne!(user.domain(), component.domain());
    }
}

/// A SOCKS5 negotiation: splitting the bytes changes nothing, and the bytes after the request are kept whole.
pub fn socks5(data: &[u8]) {
    let run = |size: usize| {
        let mut handshake = socks5::Handshake::new();
        let mut actions = Vec::new();
        for piece in data.chunks(size) {
            handshake.handle_bytes(piece);
            actions.extend(std::iter::from_fn(|| handshake.poll_action()));
        }
        (actions, handshake.reply(socks5::Code::Succeeded), handshake.into_rest())
    };
    let (actions, reply, rest) = run(usize::MAX);
    let size = 1 + usize::from(data.first().copied().unwrap_or_default() % 5);
    assert_eq!((actions.clone(), reply.clone(), rest.clone()), run(size));
    assert!(reply.len() <= 262 && data.ends_with(&rest));
    let connects =
        actions.iter().filter(|action| matches!(action, socks5::Socks5Action::Connect(_)));
    assert!(connects.count() <= 1);
    let said: usize = actions
        .iter()
        .map(|action| if let socks5::Socks5Action::Write(bytes) = action { bytes.len() } else { 0 })
        .sum();
    assert!(said <= 2 + 262, "{said} bytes are written before the request");
    if let Some(at) = actions.iter().position(|action| *action == socks5::Socks5Action::Close) {
        assert_eq!(at, actions.len() - 1, "nothing after the end");
    }
}

/// A PROXY header: splitting the bytes changes nothing, the verdict comes within bounds, and the rest is kept whole.
pub fn proxy_header(data: &[u8]) {
    let run = |size: usize| {
        let mut reader = HeaderReader::new();
        let mut given = 0;
        for piece in data.chunks(size) {
            given += piece.len();
            match reader.handle_bytes(piece) {
                Ok(None) => {}
                Ok(Some(header)) => {
                    let rest = [&header.rest, &data[given..]].concat();
                    return Ok(Some((header.source, rest)));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    };
    let whole = run(usize::MAX);
    let pieces = run(1 + usize::from(data.first().copied().unwrap_or_default() % 7));
    assert_eq!(whole.is_ok(), pieces.is_ok(), "{whole:?} {pieces:?}");
    if let (Ok(whole), Ok(pieces)) = (&whole, &pieces) {
        assert_eq!(whole, pieces);
    }
    match whole {
        Ok(None) => assert!(data.len() < 8192, "{} bytes, and still no answer", data.len()),
        Ok(Some((_, rest))) => assert!(data.ends_with(&rest)),
        Err(_) => {}
    }
}

/// Decodes base64 as in RFC 4648, section 4, the slow way: padded, without a stray bit.
fn decoded(text: &str) -> Option<Vec<u8>> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = text.trim_end_matches('=');
    let padding = text.len() - digits.len();
    if !text.len().is_multiple_of(4) || padding > 2 {
        return None;
    }
    let mut bits: Vec<bool> = Vec::new();
    for byte in digits.bytes() {
        let value = ALPHABET.iter().position(|known| *known == byte)?;
        bits.extend((0..6).rev().map(|bit| value >> bit & 1 == 1));
    }
    let (bytes, rest) = bits.split_at(bits.len() / 8 * 8);
    if rest.iter().any(|bit| *bit) || rest.len() != 2 * padding {
        return None;
    }
    Some(
        bytes
            .chunks(8)
            .map(|byte| byte.iter().fold(0, |all, bit| all << 1 | u8::from(*bit)))
            .collect(),
    )
}

/// A block's text is accepted if and only if it is base64, and gives the same bytes then.
pub fn base64(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let now = Instant::now();
    let options = ibb::Options { block_size: u16::MAX, ..ibb::Options::default() };
    let mut machine = IbbMachine::new(options, now);
    machine.handle_data(Some("i"), 0, text, now);
    // White space around the data is accepted, because several clients send it.
    let expected = decoded(text.trim_ascii()).filter(|bytes| bytes.len() <= usize::from(u16::MAX));
    let taken = !matches!(machine.end(), Some(Err(_)));
    assert_eq!(taken, expected.is_some(), "{text:?}");
    if let Some(bytes) = expected {
        assert_eq!(machine.chunk(), bytes);
    }
    // Every stanza is answered once.
    let answers = std::iter::from_fn(|| machine.poll_action()).filter(|action| {
        matches!(action, ibb::IbbAction::Ack { .. } | ibb::IbbAction::Refuse { .. })
    });
    assert!(answers.count() <= 1);
}

/// Two ends of an in-band stream, with anything that the network and the users may do. The received bytes are a prefix
/// of the sent ones, and all of them if both ends ended well. A stranger's blocks never exceed the bound.
pub fn ibb(data: &[u8]) {
    let mut choices = Choices(data);
    let mut now = Instant::now();
    let options = ibb::Options {
        block_size: 1 + u16::from(choices.byte()),
        window: 1 + u16::from(choices.byte() % 8),
        acknowledged: !choices.byte().is_multiple_of(4),
        ..ibb::Options::default()
    };
    let (mut a, mut b) = (IbbMachine::new(options, now), IbbMachine::new(options, now));
    let (mut sent, mut read) = (Vec::new(), Vec::new());
    // The answers on their way from b to a: the numbers of the blocks.
    let mut open: Vec<(String, u16)> = Vec::new();
    let mut honest = true;
    while !choices.0.is_empty() {
        match choices.byte() % 9 {
            0..=2 => {
                let n = usize::from(choices.byte());
                let block = choices.bytes(n);
                let n = a.write(block, now);
                sent.extend_from_slice(&block[..n]);
            }
            3 => {
                let n = usize::from(choices.byte()).min(b.chunk().len());
                read.extend_from_slice(&b.chunk()[..n]);
                b.consume(n);
            }
            4 => {
                a.shutdown(now);
            }
            5 => {
                now += Duration::from_secs(u64::from(choices.byte() % 16));
                a.handle_deadline(now);
                b.handle_deadline(now);
            }
            6 => {
                // A stranger's block, or one that is out of order.
                honest = false;
                let seq = u16::from(choices.byte());
                let text = String::from_utf8_lossy(choices.bytes(8)).into_owned();
                b.handle_data(Some("x"), seq, &text, now);
            }
            7 => {
                // A server may say of any block, and of the peer, that it does not exist.
                let pongs = [ibb::Pong::Alive, ibb::Pong::Absent, ibb::Pong::Unreachable];
                a.handle_answer(u16::from(choices.byte()), ibb::BlockAnswer::Undelivered, now);
                a.handle_pong(pongs[usize::from(choices.byte()) % 3], now);
            }
            _ => {
                honest = false;
                let answers =
                    [ibb::BlockAnswer::Taken, ibb::BlockAnswer::Gap, ibb::BlockAnswer::Refused];
                let answer = answers[usize::from(choices.byte()) % 3];
                a.handle_answer(u16::from(choices.byte()), answer, now);
            }
        }
        // The stanzas of a arrive at b, and the other way round, in order.
        while let Some(action) = a.poll_action() {
            match action {
                ibb::IbbAction::SendData { seq, payload } => {
                    assert!(payload.len() <= usize::from(options.block_size));
                    let id = format!("i{seq}");
                    let text = ::base64::Engine::encode(
                        &::base64::engine::general_purpose::STANDARD,
                        &payload,
                    );
                    open.push((id.clone(), seq));
                    b.handle_data(options.acknowledged.then_some(id.as_str()), seq, &text, now);
                }
                ibb::IbbAction::SendClose => b.handle_close(Some("close")),
                ibb::IbbAction::Ack { .. }
                | ibb::IbbAction::Refuse { .. }
                | ibb::IbbAction::Ping => {}
            }
        }
        while let Some(action) = b.poll_action() {
            match action {
                ibb::IbbAction::Ack { id } if id == "close" => a.handle_close_answer(),
                ibb::IbbAction::Ack { id } | ibb::IbbAction::Refuse { id, .. } if id == "x" => {}
                ibb::IbbAction::Ack { id } => {
                    if let Some(at) = open.iter().position(|(name, _)| *name == id) {
                        a.handle_answer(open.remove(at).1, ibb::BlockAnswer::Taken, now);
                    }
                }
                ibb::IbbAction::Refuse { id, .. } => {
                    if let Some(at) = open.iter().position(|(name, _)| *name == id) {
                        a.handle_answer(open.remove(at).1, ibb::BlockAnswer::Refused, now);
                    }
                }
                ibb::IbbAction::SendClose => a.handle_close(None),
                ibb::IbbAction::SendData { .. } | ibb::IbbAction::Ping => {}
            }
        }
    }
    let mut held = 0;
    while !b.chunk().is_empty() {
        let n = b.chunk().len();
        held += n;
        read.extend_from_slice(&b.chunk()[..n]);
        b.consume(n);
    }
    assert!(held <= ibb::MAX_ROOM + 3 * ibb::TRIAL, "{held} bytes are held");
    if honest {
        assert!(sent.starts_with(&read), "what arrives is not what was sent");
        if b.end() == Some(Ok(())) && a.is_flushed() && a.end() == Some(Ok(())) {
            assert_eq!(sent, read, "both ends ended well, and something is missing");
        }
    }
}

/// A print in any form equals its hex digits, and reads back as the same after writing.
pub fn print(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for hash in [None, Some(HashKind::Sha1), Some(HashKind::Sha256), Some(HashKind::SpkiSha256)] {
        let Ok(print) = Print::parse(text, hash) else { continue };
        let says_spki = print.hash() == HashKind::SpkiSha256;
        assert!(hash.is_none_or(|hash| hash == print.hash() || says_spki && hash.len() == 32));
        let shown = print.to_string();
        assert_eq!(shown.len(), 3 * print.as_bytes().len() - 1);
        assert_eq!(Print::parse(&shown, Some(print.hash())).as_ref(), Ok(&print));
        assert_eq!(Print::new(print.hash(), print.as_bytes()).as_ref(), Ok(&print));
    }
}

fn material(method: Method, data: &[u8]) -> Option<Material> {
    match Material::parse(method, data) {
        Ok(material) => {
            assert!(material.bytes.len() <= MATERIAL_MAX && !material.prints.is_empty());
            assert_eq!(material.method, method);
            let again = Material::parse(method, &material.bytes);
            assert_eq!(again.as_ref(), Ok(&material), "what is stored is read back as another");
            Some(material)
        }
        Err(error) => {
            let said = error.to_string();
            assert!(!said.is_empty() && !said.contains("PRIVATE KEY-----"), "{said}");
            None
        }
    }
}

/// A certificate's prints are those of its bytes, in any form; a private key is never accepted.
pub fn x509(data: &[u8]) {
    if let Some(material) = material(Method::X509, data) {
        let digest = Sha256::digest(&material.bytes);
        assert!(material.prints.iter().any(|print| print.as_bytes() == digest.as_slice()));
        assert_eq!(
            Print::of_certificate(HashKind::Sha256, &material.bytes).as_ref(),
            material.prints.get(1)
        );
    }
    refuses_private(Method::X509, data);
}

/// The same for an OpenPGP certificate.
pub fn openpgp(data: &[u8]) {
    if let Some(material) = material(Method::OpenPgp, data) {
        assert_eq!(material.prints.len(), 1);
    }
    refuses_private(Method::OpenPgp, data);
}

fn refuses_private(method: Method, data: &[u8]) {
    let mut beside = data.to_vec();
    beside.extend_from_slice(b"\n-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    assert!(Material::parse(method, &beside).is_err(), "a private key beside it is taken");
}

const CERTIFICATE: &[u8] = include_bytes!("../corpus/x509/ed25519.der");
const OPENPGP: &[u8] = include_bytes!("../corpus/openpgp/v4.pgp");

/// Signatures: none is ever valid for bytes that were not signed.
pub fn signature(data: &[u8]) {
    let now = time::OffsetDateTime::from_unix_timestamp(1_800_000_000).expect("a time");
    for (method, material) in [(Method::X509, CERTIFICATE), (Method::OpenPgp, OPENPGP)] {
        assert!(signature::verify(method, material, b"never signed", data, now).is_err());
        // With the input as the key: any answer except a panic, and never success for an empty signature.
        assert!(signature::verify(method, data, b"never signed", b"", now).is_err());
    }
}

const VOUCHED: &[u8] = include_bytes!("../corpus/openpgp_spki/v4.der");

/// A TLS certificate with an OpenPGP key's signature: only a pinned key vouches, and only for the TLS key that it
/// signed.
pub fn openpgp_spki(data: &[u8]) {
    let now = rustls::pki_types::UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
    assert!(openpgp::vouched(data, &[], now).is_err());
    let pin =
        Material::parse(Method::OpenPgp, include_bytes!("../corpus/openpgp_spki/v4.pgp.seed"))
            .expect("the seed is a certificate")
            .prints
            .remove(0);
    if let Ok(print) = openpgp::vouched(data, std::slice::from_ref(&pin), now) {
        assert_eq!(print, pin);
        let of = |der| Print::of_certificate(HashKind::SpkiSha256, der);
        assert_eq!(of(data), of(VOUCHED), "vouched for another TLS key");
    }
}

/// Two ICE agents, what is said between them, and what a stranger says.
pub fn ice_agent(data: &[u8]) {
    fingerpost_endpoint::ice_fuzzing::frames(data);
    fingerpost_endpoint::ice_fuzzing::agents(data);
}

/// A peer's ICE transport: it is bounded, and reads back as it was understood.
pub fn ice_transport(data: &[u8]) {
    let Some(element) = element(data) else { return };
    let Ok(read) = IceTransport::read(&element) else { return };
    assert!(read.candidates.len() <= MOST_CANDIDATES && read.remote.len() <= MOST_CANDIDATES);
    let understood = IceTransport { others: 0, ..read };
    assert_eq!(IceTransport::read(&understood.to_element()), Ok(understood));
}

/// An offer in every dialect: a translation never offers more than the original, and removed prints are gone.
pub fn offer(data: &[u8]) {
    let Some(content) = element(data) else { return };
    let offer = Offer::read(&content);
    let judgement = hints::judge(&offer, &[], &[]);
    let prints = judgement.prints();
    assert!(prints.len() <= offer.prints.len());
    for (_, print) in &offer.prints {
        assert!(
            prints.iter().any(|(_, judged)| judged.identity() == print.identity()),
            "{print} is not judged"
        );
    }
    let names = judgement.methods(&offer, &hints::Stripped::default());
    assert_eq!(offer::protection(&content), offer::protection(&content.clone()));
    for known in Dialect::ALL {
        let translated = dialect::for_peer(&content, &[known], &prints);
        let now = Offer::read(&translated);
        for (_, print) in &now.prints {
            assert!(
                offer.prints.iter().any(|(_, had)| had.identity() == print.identity()),
                "{print} is new"
            );
        }
        for method in &now.methods {
            assert!(names.contains(method), "{method} is new: {known:?}");
        }
        assert!(written(&translated).is_some() || is_reserved(&content));
    }
    if let Some((_, gone)) = offer.prints.first() {
        let gone = std::slice::from_ref(gone);
        let less = offer::without(&content, gone, &[]);
        let left = Offer::read(&less);
        assert!(
            !left.prints.iter().any(|(_, print)| print.identity() == gone[0].identity()),
            "it is still there"
        );
        assert_eq!(offer::without(&less, gone, &[]), less, "taken out twice is taken out once");
    }
}

/// Hints: one for each print of the offer, and policy removes only what the offer has.
pub fn hints(data: &[u8]) {
    let Some(content) = element(data) else { return };
    let offer = Offer::read(&content);
    let judgement = hints::judge(&offer, &[], &[]);
    let owner = BareJid::new("juliet@example.test").expect("a JID");
    let hints = hints::to_element(&judgement, &[], &owner);
    let judged = judgement.prints.len();
    assert_eq!(hints.children().count(), judged, "one for each, and no others without keys");
    assert!(hints.children().all(|hint| hint.attr("verdict") == Some("unknown")));
    for unknown in [VerdictPolicy::Annotate, VerdictPolicy::Strip, VerdictPolicy::Reject] {
        let policies =
            Policies { unknown, mismatch: VerdictPolicy::Annotate, revoked: VerdictPolicy::Reject };
        match hints::decide(&judgement, &policies, &owner) {
            Ok(stripped) => {
                let all = unknown == VerdictPolicy::Strip;
                assert_eq!(stripped.prints.len(), if all { judged } else { 0 });
                assert!(unknown != VerdictPolicy::Reject || offer.prints.is_empty());
            }
            Err(text) => assert!(unknown == VerdictPolicy::Reject && text.len() < 1024, "{text}"),
        }
    }
}

/// Returns whether all records name an existing version: rustls does not check that, as RFC 8446, 5.1 requires.
fn has_versions(data: &[u8]) -> bool {
    let mut rest = data;
    while let [_, major, minor, high, low, after @ ..] = rest {
        if *major != 3 || !(1..=3).contains(minor) {
            return false;
        }
        rest = &after[after.len().min(usize::from(u16::from_be_bytes([*high, *low])))..];
    }
    true
}

/// The guard: a verdict is final, and everything that rustls accepts as a ClientHello passes.
pub fn client_hello(data: &[u8]) {
    let mut sure = None;
    for end in 0..=data.len().min(128) {
        let says = check_client_hello(&data[..end]);
        if let Some(before) = sure {
            assert_eq!(says, before, "it changes its mind at {end}");
        } else if says != Guard::NeedMore {
            sure = Some(says);
        }
    }
    let mut acceptor = rustls::server::Acceptor::default();
    let mut input = data;
    while !input.is_empty() && acceptor.read_tls(&mut input).is_ok_and(|n| n > 0) {
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(_)) => {
                if !has_versions(data) {
                    break;
                }
                assert_eq!(check_client_hello(data), Guard::Pass, "rustls reads a ClientHello");
                break;
            }
            Err(_) => break,
        }
    }
}

/// A peer's file: its name stays inside the directory and cannot control a terminal.
pub fn file_offer(data: &[u8]) {
    let mut names = Vec::new();
    if let Some(element) = element(data)
        && let Some((name, size, hash)) = client::file(&element)
    {
        assert!(hash.is_none_or(|hash| hash.len() == 32));
        let _any: u64 = size;
        names.push(name);
    }
    if let Ok(text) = std::str::from_utf8(data) {
        names.push(client::safe_name(text));
    }
    for name in names {
        assert!(!name.is_empty() && name.len() <= 255, "{name:?}");
        assert!(!name.contains(['/', '\\']) && !name.starts_with('.'), "{name:?}");
        assert!(!name.chars().any(char::is_control), "{name:?}");
        assert_eq!(std::path::Path::new(&name).components().count(), 1, "{name:?}");
        assert_eq!(client::safe_name(&name), name, "a safe name is safe");
    }
}

/// The manifest of a set: what is read is written again, and no entry lands outside its directory or under a name that
/// `xtls` uses itself.
pub fn set_manifest(data: &[u8]) {
    let Some((written, paths)) = client::manifest(data) else { return };
    assert_eq!(written, data);
    for parts in paths {
        assert!(!parts.is_empty() && parts.len() <= 64, "{parts:?}");
        assert!(!parts[0].starts_with('.'), "{parts:?}");
        for name in parts {
            assert!(!name.is_empty() && name.len() <= 255, "{name:?}");
            assert!(!name.contains(['/', '\\']) && !name.chars().any(char::is_control), "{name:?}");
            assert!(!name.starts_with("..") && !name.starts_with(".xtls-"), "{name:?}");
            assert_eq!(std::path::Path::new(&name).components().count(), 1, "{name:?}");
        }
    }
}

/// An XML stream of a chat: splitting the bytes changes nothing, and elements stay within their limits.
pub fn chat_stream(data: &[u8]) {
    // Which of several faults is found first may differ.
    let read = |size: usize| {
        let (elements, end) = client::stream(data, size);
        let end = if ["closed", "more is to come"].contains(&end.as_str()) {
            end
        } else {
            "fault".to_owned()
        };
        (elements, end)
    };
    let (whole, end) = read(usize::MAX);
    let size = 1 + usize::from(data.first().copied().unwrap_or_default() % 16);
    assert_eq!((&whole, &end), (&read(size).0, &read(size).1));
    for element in &whole {
        assert!(shape(element).0 <= client::MAX_DEPTH);
        assert!(written(element).is_some() || is_reserved(element));
    }
}

/// Messages of multicast DNS: after any of them, a listener still has a name, its own or the next.
pub fn mdns_message(data: &[u8]) {
    let (own, next) = ("bob@pronto", "bob@pronto-2");
    let name = client::name_after(data, BareJid::new(own).expect("a name"));
    assert!([own, next].contains(&name.as_str()), "{name}");
}

/// Names of services: an escaped name reads back, and nothing grows.
pub fn mdns_name(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(name) = client::instance(text) {
        assert!(name.len() < text.len());
    }
    let escaped: String = text
        .chars()
        .flat_map(|c| matches!(c, '.' | '\\').then_some('\\').into_iter().chain([c]))
        .collect();
    let full = format!("{escaped}.{}", client::SERVICE);
    assert_eq!(client::instance(&full).as_deref(), Some(text));
}
