//! XMPP streams as bytes: a client and a component that send the given bytes and keep the received ones, without a
//! parser that would refuse or normalize any of them.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use base64::Engine;
use data_encoding::HEXLOWER;
use sha1::{Digest, Sha1};

use super::servers::Server;
use super::{COMPONENT, DOMAIN, PATIENCE, SECRET, USERS};

/// Splits the bytes of an XML stream into its first-level elements. It knows tags, quotes, comments and CDATA, but not
/// names.
#[derive(Debug, Default)]
pub struct Framer {
    buffer: Vec<u8>,
    /// Where the next scan begins.
    at: usize,
    /// Where the incomplete element begins.
    start: usize,
    depth: usize,
}

impl Framer {
    /// Creates a framer for the bytes after a stream header.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns the next complete first-level element. The end tag of the stream, and a malformed tag, are returned as
    /// they are.
    pub fn next_stanza(&mut self) -> Option<Vec<u8>> {
        loop {
            let open = memchr::memchr(b'<', &self.buffer[self.at..])? + self.at;
            if self.depth == 0 {
                self.start = open;
            }
            let rest = &self.buffer[open..];
            let end = if rest.starts_with(b"<!--") {
                find(rest, b"-->")?
            } else if rest.starts_with(b"<![CDATA[") {
                find(rest, b"]]>")?
            } else if rest.starts_with(b"<?") {
                find(rest, b"?>")?
            } else if b"<![CDATA[".starts_with(rest) || b"<!--".starts_with(rest) {
                // Too short for a verdict.
                return None;
            } else {
                let end = tag_end(rest)?;
                if rest.starts_with(b"</") {
                    if self.depth == 0 {
                        self.at = open + end;
                        return Some(self.take());
                    }
                    self.depth -= 1;
                } else if rest[end - 2] != b'/' {
                    self.depth += 1;
                }
                self.at = open + end;
                if self.depth == 0 {
                    return Some(self.take());
                }
                continue;
            };
            self.at = open + end;
            if self.depth == 0 {
                self.start = self.at;
            }
        }
    }

    fn take(&mut self) -> Vec<u8> {
        let element = self.buffer[self.start..self.at].to_vec();
        self.buffer.drain(..self.at);
        (self.at, self.start) = (0, 0);
        element
    }
}

fn find(text: &[u8], end: &[u8]) -> Option<usize> {
    memchr::memmem::find(text, end).map(|at| at + end.len())
}

/// Returns the end of a tag: the position after the first `>` outside quotes.
fn tag_end(text: &[u8]) -> Option<usize> {
    let mut quote = None;
    for (at, byte) in text.iter().enumerate() {
        match (quote, byte) {
            (None, b'>') => return Some(at + 1),
            (None, b'"' | b'\'') => quote = Some(*byte),
            (Some(open), _) if open == *byte => quote = None,
            _ => {}
        }
    }
    None
}

/// Returns the start tag of an element as text.
pub fn start_tag(element: &[u8]) -> String {
    let end = tag_end(element).unwrap_or(element.len());
    String::from_utf8_lossy(&element[..end]).into_owned()
}

/// Returns an attribute of a start tag as written.
pub fn attribute<'a>(tag: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = tag;
    loop {
        let at = rest.find(name)?;
        let before = rest[..at].chars().next_back();
        let behind = &rest[at + name.len()..];
        if before.is_some_and(char::is_whitespace) && behind.starts_with('=') {
            let quote = behind[1..].chars().next()?;
            return behind[2..].split(quote).next();
        }
        rest = behind;
    }
}

/// One end of an XMPP stream.
pub struct Raw {
    socket: TcpStream,
    framer: Framer,
    /// Everything that has arrived.
    pub seen: Vec<u8>,
    /// Whether all received bytes are kept in `seen`.
    keep: bool,
}

impl Raw {
    fn connect(address: &str) -> Self {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, framer: Framer::new(), seen: Vec::new(), keep: true }
    }

    /// Logs a user in, without TLS (see [`Server::start_in_clear`]); `header` are further declarations of its stream
    /// header.
    pub fn client(server: &Server, user: &str, resource: &str, header: &str) -> Self {
        let (_, password) = USERS.iter().find(|(name, _)| *name == user).unwrap();
        let mut this = Self::connect(&server.client_address());
        let open = format!(
            "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
             xmlns:stream='http://etherx.jabber.org/streams' to='{DOMAIN}' version='1.0' {header}>"
        );
        this.send(&open);
        this.wait_for("</stream:features>");
        let plain = format!("\0{user}\0{password}");
        let plain = base64::engine::general_purpose::STANDARD.encode(plain);
        this.send(&format!(
            "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{plain}</auth>"
        ));
        this.wait_for("<success");
        this.seen.clear();
        this.send(&open);
        this.wait_for("</stream:features>");
        this.send(&format!(
            "<iq type='set' id='bind'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>\
             <resource>{resource}</resource></bind></iq>"
        ));
        this.wait_for("</iq>");
        let session = "<session xmlns='urn:ietf:params:xml:ns:xmpp-session'/>";
        this.send(&format!("<iq type='set' id='session'>{session}</iq>"));
        this.wait_for("id='session'");
        this.begin();
        this
    }

    /// Logs a component in.
    pub fn component(server: &Server) -> Self {
        Self::component_of(server, COMPONENT)
    }

    /// Logs a component of this name in, with the same secret.
    pub fn component_of(server: &Server, name: &str) -> Self {
        let mut this = Self::connect(&server.component_address());
        this.send(&format!(
            "<stream:stream xmlns='jabber:component:accept' \
             xmlns:stream='http://etherx.jabber.org/streams' to='{name}'>"
        ));
        this.wait_for(" id=");
        this.wait_for(">");
        let header = String::from_utf8_lossy(&this.seen).into_owned();
        let header = &header[header.find("<stream:stream").unwrap()..];
        let id = attribute(header, "id").unwrap();
        let digest = Sha1::digest(format!("{id}{SECRET}"));
        this.send(&format!("<handshake>{}</handshake>", HEXLOWER.encode(&digest)));
        this.wait_for("<handshake");
        this.wait_for(">");
        this.begin();
        this
    }

    /// Sets the received bytes aside.
    fn begin(&mut self) {
        self.seen.clear();
        self.framer = Framer::new();
    }

    /// Sends text unchanged.
    pub fn send(&mut self, text: &str) {
        self.socket.write_all(text.as_bytes()).unwrap();
    }

    /// Sends text unchanged.
    ///
    /// # Errors
    /// The other side has ended the stream.
    pub fn try_send(&mut self, text: &str) -> io::Result<()> {
        self.socket.write_all(text.as_bytes())
    }

    /// Reads until a text has arrived, in either kind of quotes.
    ///
    /// # Panics
    /// If the stream ends before, with the received bytes.
    pub fn wait_for(&mut self, text: &str) {
        let other = text.replace('\'', "\"");
        while !contains(&self.seen, text.as_bytes()) && !contains(&self.seen, other.as_bytes()) {
            if let Err(error) = self.fill() {
                panic!("{text} did not come: {error}\n{}", String::from_utf8_lossy(&self.seen));
            }
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut block = [0; 16 * 1024];
        match self.socket.read(&mut block)? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the stream has ended")),
            n => {
                if self.keep {
                    self.seen.extend_from_slice(&block[..n]);
                }
                self.framer.push(&block[..n]);
                Ok(())
            }
        }
    }

    /// Reads the next first-level element.
    ///
    /// # Errors
    /// The stream has ended.
    pub fn read(&mut self) -> io::Result<Vec<u8>> {
        loop {
            if let Some(element) = self.framer.next_stanza() {
                return Ok(element);
            }
            self.fill()?;
        }
    }

    /// Splits it into a sending and a reading half, for two threads.
    pub fn split(mut self) -> (TcpStream, Self) {
        self.keep = false;
        (self.socket.try_clone().unwrap(), self)
    }

    /// Sets how long a read waits.
    pub fn set_patience(&self, patience: Duration) {
        self.socket.set_read_timeout(Some(patience)).unwrap();
    }
}

/// Returns whether `bytes` contains `part`.
pub fn contains(bytes: &[u8], part: &[u8]) -> bool {
    memchr::memmem::find(bytes, part).is_some()
}
