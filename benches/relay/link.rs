//! The other end of a component link (XEP-0114): as the server itself, or as another component of a real one.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use data_encoding::HEXLOWER;
use sha1::{Digest, Sha1};

use support::servers::LOAD;
use support::{COMPONENT, SECRET};

/// A link, and the domain of its users.
pub(crate) struct Link {
    stream: TcpStream,
    read: Vec<u8>,
    /// Where the next stanza begins in `read`.
    at: usize,
    /// The domain of the users.
    pub(crate) domain: &'static str,
    sids: u64,
}

impl Link {
    /// Acts as the server of the component that connects.
    pub(crate) fn accept(server: &TcpListener) -> Self {
        let (stream, _) = server.accept().unwrap();
        let mut link = Self::new(stream, "example.test");
        link.read_until("<stream:stream");
        link.send(
            "<?xml version='1.0'?><stream:stream xmlns='jabber:component:accept' \
             xmlns:stream='http://etherx.jabber.org/streams' id='bench' from='xtls.example.test'>",
        );
        link.read_until("</handshake>");
        link.send("<handshake/>");
        link
    }

    /// Returns a link to a program that needs no login.
    pub(crate) fn plain(server: &TcpListener) -> Self {
        Self::new(server.accept().unwrap().0, "example.test")
    }

    /// Acts as a component of a server.
    pub(crate) fn connect(server: &str) -> Self {
        let mut link = Self::new(TcpStream::connect(server).unwrap(), LOAD);
        link.send(&format!(
            "<?xml version='1.0'?><stream:stream xmlns='jabber:component:accept' \
             xmlns:stream='http://etherx.jabber.org/streams' to='{LOAD}'>"
        ));
        let head = link.read_until("<stream:stream");
        let head = if head.ends_with('>') { head } else { head + &link.read_until(">") };
        let id = head.split_once(" id=").unwrap().1;
        let quote = id.chars().next().unwrap();
        let id = id[1..].split(quote).next().unwrap();
        let proof = HEXLOWER.encode(&Sha1::digest(format!("{id}{SECRET}")));
        link.send(&format!("<handshake>{proof}</handshake>"));
        let answer = link.read_until("handshake");
        assert!(!answer.contains("error"), "{answer}");
        if !answer.ends_with('>') {
            link.read_until(">");
        }
        link.read.clear();
        link.at = 0;
        link
    }

    fn new(stream: TcpStream, domain: &'static str) -> Self {
        stream.set_nodelay(true).unwrap();
        Self { stream, read: Vec::new(), at: 0, domain, sids: 0 }
    }

    /// Returns the requesting user.
    pub(crate) fn from(&self) -> String {
        format!("a@{}/a", self.domain)
    }

    /// Returns the requested user.
    pub(crate) fn target(&self) -> String {
        format!("b@{}/b", self.domain)
    }

    pub(crate) fn next_sid(&mut self) -> String {
        self.sids += 1;
        format!("s{}", self.sids)
    }

    pub(crate) fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    /// Returns the next stanza. It understands only the XML that the programs under test write: no stanza within one of
    /// the same name, and `>` only at the end of a tag.
    pub(crate) fn stanza(&mut self) -> String {
        loop {
            if let Some(stanza) = self.complete() {
                return stanza;
            }
            self.read.drain(..self.at);
            self.at = 0;
            self.more();
        }
    }

    /// Returns the next stanza, if it has arrived. Answers a ping of the link to itself, as a server does.
    fn complete(&mut self) -> Option<String> {
        loop {
            let end = stanza_end(&self.read[self.at..])?;
            let text = String::from_utf8_lossy(&self.read[self.at..self.at + end]);
            let text = text.trim().to_owned();
            self.at += end;
            if !attribute(&text, "id").is_some_and(|id| id.starts_with("fingerpost-echo-")) {
                return Some(text);
            }
            self.send(&text);
        }
    }

    /// Does what a server does outside of a measurement, to keep the link alive.
    pub(crate) fn serve(&mut self) {
        let mut bytes = [0; 4096];
        self.stream.set_nonblocking(true).unwrap();
        let n = self.stream.read(&mut bytes).unwrap_or(0);
        self.stream.set_nonblocking(false).unwrap();
        self.read.extend_from_slice(&bytes[..n]);
        // The last stanzas of a measured session.
        while let Some(stanza) = self.complete() {
            if stanza.starts_with("<iq")
                && matches!(attribute(&stanza, "type"), Some("get" | "set"))
            {
                super::inband::answer(self, &stanza);
            }
        }
    }

    fn more(&mut self) {
        let old = self.read.len();
        self.read.resize(old + (256 << 10), 0);
        let n = self.stream.read(&mut self.read[old..]).unwrap();
        assert_ne!(n, 0, "the other end left: {}", String::from_utf8_lossy(&self.read[..old]));
        self.read.truncate(old + n);
    }

    /// Reads up to a text, and removes it.
    fn read_until(&mut self, text: &str) -> String {
        while !String::from_utf8_lossy(&self.read).contains(text) {
            self.more();
        }
        String::from_utf8(std::mem::take(&mut self.read)).unwrap()
    }

    /// Activates streams at a proxy and waits for all answers.
    pub(crate) fn activate(&mut self, proxy: &str, sids: &[String]) {
        let (from, target) = (self.from(), self.target());
        let requests: String = sids
            .iter()
            .map(|sid| {
                format!(
                    "<iq type='set' id='{sid}' from='{from}' to='{proxy}'><query \
                     xmlns='http://jabber.org/protocol/bytestreams' sid='{sid}'><activate>{target}</activate></query></iq>"
                )
            })
            .collect();
        self.send(&requests);
        let mut left = sids.len();
        while left > 0 {
            let stanza = self.stanza();
            // The component asks for itself from time to time.
            if matches!(attribute(&stanza, "type"), Some("get" | "set")) {
                super::inband::answer(self, &stanza);
                continue;
            }
            assert!(attribute(&stanza, "type") == Some("result"), "{stanza}");
            left -= 1;
        }
    }

    /// Returns a disco#info request of a user.
    pub(crate) fn information_request(&self, whom: &str) -> String {
        let from = self.from();
        format!(
            "<iq type='get' id='d' from='{from}' to='{whom}'><query xmlns='http://jabber.org/protocol/disco#info'/></iq>"
        )
    }

    /// Sends disco#info requests, `batch` in one write and with two batches on their way, while `more` allows it. Calls
    /// `answered` after each batch. All answers are the same, so only the first is checked.
    pub(crate) fn ask(
        &mut self,
        whom: &str,
        batch: usize,
        more: impl Fn() -> bool,
        mut answered: impl FnMut(usize),
    ) {
        let request = self.information_request(whom);
        self.send(&request);
        let answer = self.stanza();
        assert!(answer.contains("bytestreams"), "{answer}");
        let requests = request.repeat(batch);
        self.send(&requests);
        let mut batches = 1;
        while batches > 0 {
            if more() {
                self.send(&requests);
                batches += 1;
            }
            for _ in 0..batch {
                while self.read.len() < self.at + answer.len() {
                    self.read.drain(..self.at);
                    self.at = 0;
                    self.more();
                }
                if self.read[self.at..].starts_with(answer.as_bytes()) {
                    self.at += answer.len();
                } else {
                    // A ping of the link comes first.
                    assert_eq!(self.stanza(), answer);
                }
            }
            batches -= 1;
            answered(batch);
        }
    }
}

/// Returns the end of the first stanza in a text.
fn stanza_end(read: &[u8]) -> Option<usize> {
    let begin = read.iter().position(|byte| *byte == b'<')?;
    let name_end =
        begin + read[begin..].iter().position(|byte| matches!(byte, b' ' | b'>' | b'/'))?;
    let tag_end = begin + read[begin..].iter().position(|byte| *byte == b'>')?;
    if read[tag_end - 1] == b'/' {
        return Some(tag_end + 1);
    }
    let mut close = b"</".to_vec();
    close.extend_from_slice(&read[begin + 1..name_end]);
    close.push(b'>');
    let mut from = tag_end;
    loop {
        let next = from + read[from..].iter().position(|byte| *byte == b'<')?;
        if read[next..].starts_with(&close) {
            return Some(next + close.len());
        }
        from = next + 1;
    }
}

/// Returns an attribute of the first tag.
pub(crate) fn attribute<'a>(stanza: &'a str, name: &str) -> Option<&'a str> {
    let tag = &stanza[..stanza.find('>')?];
    let at = tag.find(&format!(" {name}="))? + name.len() + 2;
    let quote = tag[at..].chars().next()?;
    tag[at + 1..].split(quote).next()
}

/// Returns the proxied address of a user of the link's domain.
pub(crate) fn proxied(user: &str) -> String {
    let (bare, resource) = user.split_once('/').unwrap();
    format!("{}@{COMPONENT}/{resource}", bare.replace('@', "\\40"))
}
