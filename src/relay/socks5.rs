//! The server side of a SOCKS5 negotiation, as far as XEP-0065 uses it.
//!
//! 1. greeting: `05 n methods…`, which must offer "no authentication" (0x00); answer `05 00`
//! 2. request: `05 01 00 03 28 <40 hex digits> 00 00` (CONNECT to a domain name that is the transfer's hash); the
//!    answer echoes the address, as sent, in BND.ADDR and BND.PORT
//!
//! A request is refused as soon as its header is wrong. The reply is an RFC 1928 code, then the connection is closed.
//! Refused are a command other than CONNECT, an address other than a domain name, and a host that is not a hash. The
//! port has no meaning: clients send 0, and any other value is echoed.
//!
//! Spec: RFC 1928, sections 3 to 6; XEP-0065 1.8.2, section 5.3.2 (Target Connects).

use std::{fmt, ops::Deref};

use fingerpost_wire::dst_addr::DstAddr;

const VERSION: u8 = 0x05;
const NO_AUTHENTICATION: u8 = 0x00;
const NO_ACCEPTABLE_METHOD: u8 = 0xff;
const CONNECT: u8 = 0x01;
const DOMAIN_NAME: u8 = 0x03;

/// The bytes of a request or a reply before its address type.
const HEAD: usize = 3;
/// The longest replies: the answer to the greeting, then a domain name of 255 bytes, with its length and a port.
const LONGEST: usize = 2 + HEAD + 1 + 1 + 255 + 2;

/// The reply codes in use (RFC 1928, section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The connection is accepted.
    Succeeded = 0x00,
    /// The transfer already has two sides, or the client's address has too many connections.
    NotAllowed = 0x02,
    /// The host is not a hash.
    HostUnreachable = 0x04,
    /// The command is not CONNECT.
    CommandNotSupported = 0x07,
    /// The address is not a domain name.
    AddressNotSupported = 0x08,
}

/// Bytes for the client, without an allocation.
#[derive(Clone)]
pub struct Reply {
    bytes: [u8; LONGEST],
    length: usize,
}

impl Reply {
    const EMPTY: Self = Self { bytes: [0; LONGEST], length: 0 };

    /// Returns both replies as one.
    pub fn then(&self, second: &Self) -> Self {
        Self::new([self, second])
    }

    /// Creates a reply of at most [`LONGEST`] bytes; more are cut off.
    fn new(parts: [&[u8]; 2]) -> Self {
        let mut reply = Self::EMPTY;
        for part in parts {
            let free = &mut reply.bytes[reply.length..];
            let length = part.len().min(free.len());
            free[..length].copy_from_slice(&part[..length]);
            reply.length += length;
        }
        reply
    }
}

impl Deref for Reply {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reply").field(&&**self).finish()
    }
}

impl PartialEq for Reply {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Reply {}

/// An action that the owner of the socket must carry out, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "handled at once, and never kept")]
pub enum Socks5Action {
    /// Close the connection after what was written.
    Close,
    /// Decide about this connection, answer with [`Handshake::reply`], continue with [`Handshake::into_rest`].
    Connect(DstAddr),
    /// Write these bytes, in one piece.
    Write(Reply),
}

/// The negotiation on one accepted connection.
///
/// Give the input to [`Self::handle_bytes`] in chunks of any size; then call [`Self::poll_action`] until `None`. Until
/// the request is complete, at most its length (262 bytes) is kept, besides the last chunk. A greeting and a request
/// that arrive whole are not kept at all.
#[derive(Debug)]
pub struct Handshake {
    state: HandshakeState,
    /// Bytes that were received and not yet parsed; after the request, the bytes behind it.
    buffer: Vec<u8>,
    /// ATYP, DST.ADDR and DST.PORT as they were sent.
    address: Reply,
    /// The actions that are due, in this order: the answer to the greeting, the refusal, the decision, the end.
    method: Option<u8>,
    refusal: Option<Code>,
    connect: Option<DstAddr>,
    close: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum HandshakeState {
    #[default]
    Greeting,
    Request,
    Requested,
    Closed,
}

impl Default for Handshake {
    fn default() -> Self {
        Self::new()
    }
}

impl Handshake {
    /// Creates a negotiation that has not seen a byte.
    pub fn new() -> Self {
        Self {
            state: HandshakeState::default(),
            buffer: Vec::new(),
            address: Reply::EMPTY,
            method: None,
            refusal: None,
            connect: None,
            close: false,
        }
    }

    /// Takes what was received.
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        match self.state {
            HandshakeState::Closed => return,
            HandshakeState::Requested => return self.buffer.extend_from_slice(bytes),
            HandshakeState::Greeting | HandshakeState::Request if self.buffer.is_empty() => {
                return self.parse(bytes);
            }
            HandshakeState::Greeting | HandshakeState::Request => {}
        }
        let mut all = std::mem::take(&mut self.buffer);
        all.extend_from_slice(bytes);
        self.parse(&all);
    }

    /// Parses everything that has not been parsed, and keeps the rest.
    fn parse(&mut self, mut bytes: &[u8]) {
        if self.state == HandshakeState::Greeting {
            self.read_greeting(&mut bytes);
        }
        if self.state == HandshakeState::Request {
            self.read_request(&mut bytes);
        }
        if self.state != HandshakeState::Closed {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// Returns what to do next; call until `None`.
    pub fn poll_action(&mut self) -> Option<Socks5Action> {
        if let Some(method) = self.method.take() {
            return Some(Socks5Action::Write(Reply::new([&[VERSION, method], &[]])));
        }
        if let Some(code) = self.refusal.take() {
            return Some(Socks5Action::Write(self.reply(code)));
        }
        if let Some(hash) = self.connect.take() {
            return Some(Socks5Action::Connect(hash));
        }
        std::mem::take(&mut self.close).then_some(Socks5Action::Close)
    }

    /// Returns the reply to the request, which echoes its address, or 0.0.0.0:0 if no address was parsed.
    pub fn reply(&self, code: Code) -> Reply {
        let address: &[u8] =
            if self.address.is_empty() { &[0x01, 0, 0, 0, 0, 0, 0] } else { &self.address };
        Reply::new([&[VERSION, code as u8, 0x00], address])
    }

    /// Returns whether the client has not sent anything yet.
    pub fn is_untouched(&self) -> bool {
        self.state == HandshakeState::Greeting && self.buffer.is_empty()
    }

    /// Returns the bytes behind the request: the first bytes of the stream itself.
    pub fn into_rest(self) -> Vec<u8> {
        if self.state == HandshakeState::Requested { self.buffer } else { Vec::new() }
    }

    fn read_greeting(&mut self, bytes: &mut &[u8]) {
        match **bytes {
            [version, ..] if version != VERSION => self.close(),
            [_, count, ref rest @ ..] => {
                let Some((methods, after)) = rest.split_at_checked(usize::from(count)) else {
                    return;
                };
                if methods.contains(&NO_AUTHENTICATION) {
                    self.method = Some(NO_AUTHENTICATION);
                    self.state = HandshakeState::Request;
                    *bytes = after;
                } else {
                    self.method = Some(NO_ACCEPTABLE_METHOD);
                    self.close();
                }
            }
            _ => {}
        }
    }

    fn read_request(&mut self, bytes: &mut &[u8]) {
        match **bytes {
            [version, ..] if version != VERSION => self.close(),
            [_, command, ..] if command != CONNECT => self.refuse(Code::CommandNotSupported),
            [_, _, _, atyp, ..] if atyp != DOMAIN_NAME => self.refuse(Code::AddressNotSupported),
            [_, _, _, _, length, ref rest @ ..] => {
                let length = usize::from(length);
                let Some((address, after)) = rest.split_at_checked(length + 2) else { return };
                let host = str::from_utf8(&address[..length]).ok();
                self.address = Reply::new([&bytes[HEAD..HEAD + 2], address]);
                *bytes = after;
                match host.and_then(|host| host.parse().ok()) {
                    None => self.refuse(Code::HostUnreachable),
                    Some(hash) => {
                        self.state = HandshakeState::Requested;
                        self.connect = Some(hash);
                    }
                }
            }
            _ => {}
        }
    }

    fn refuse(&mut self, code: Code) {
        self.refusal = Some(code);
        self.close();
    }

    fn close(&mut self) {
        self.state = HandshakeState::Closed;
        self.close = true;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HASH: &str = "972b7bf47291ca609517f67f86b5081086052dad";

    fn request(command: u8, atyp: u8, host: &str, port: [u8; 2]) -> Vec<u8> {
        let mut bytes = vec![5, command, 0, atyp, u8::try_from(host.len()).unwrap()];
        bytes.extend_from_slice(host.as_bytes());
        bytes.extend_from_slice(&port);
        bytes
    }

    fn run(chunks: &[&[u8]]) -> (Handshake, Vec<Socks5Action>) {
        let mut handshake = Handshake::new();
        let mut actions = Vec::new();
        for chunk in chunks {
            handshake.handle_bytes(chunk);
            actions.extend(std::iter::from_fn(|| handshake.poll_action()));
        }
        (handshake, actions)
    }

    fn write(bytes: &[u8]) -> Socks5Action {
        Socks5Action::Write(Reply::new([bytes, &[]]))
    }

    fn after_greeting(request: &[u8]) -> Vec<Socks5Action> {
        let (_, actions) = run(&[&[5, 1, 0], request]);
        assert_eq!(actions[0], write(&[5, 0]));
        actions[1..].to_vec()
    }

    #[test]
    fn socks5_greeting_may_arrive_byte_by_byte() {
        let mut all = vec![5, 2, 2, 0];
        all.extend(request(1, 3, HASH, [0, 0]));
        let chunks: Vec<&[u8]> = all.chunks(1).collect();
        let (_, actions) = run(&chunks);
        assert_eq!(actions, [write(&[5, 0]), Socks5Action::Connect(HASH.parse().unwrap())]);
    }

    #[test]
    fn the_reply_echoes_the_address_exactly_as_sent() {
        let sent = request(1, 3, &HASH.to_uppercase(), [0, 0]);
        let (handshake, actions) = run(&[&[5, 1, 0], &sent]);
        assert_eq!(actions[1], Socks5Action::Connect(HASH.parse().unwrap()));
        let reply = handshake.reply(Code::Succeeded);
        assert_eq!(reply[..3], [5, 0, 0]);
        assert_eq!(reply[3..], sent[3..]);
        assert_eq!(handshake.reply(Code::NotAllowed)[1], 2);
    }

    #[test]
    fn wrong_cmd_and_atyp_get_their_reply_code() {
        let refused =
            |code: u8| vec![write(&[5, code, 0, 1, 0, 0, 0, 0, 0, 0]), Socks5Action::Close];
        assert_eq!(after_greeting(&request(2, 3, HASH, [0, 0])), refused(7));
        assert_eq!(after_greeting(&request(3, 3, HASH, [0, 0])), refused(7));
        assert_eq!(after_greeting(&[5, 1, 0, 1, 127, 0, 0, 1, 0, 80]), refused(8));
        assert_eq!(after_greeting(&[5, 1, 0, 4]), refused(8));
    }

    #[test]
    fn a_host_that_is_no_hash_is_refused() {
        let code = |request: &[u8]| match after_greeting(request).as_slice() {
            [Socks5Action::Write(reply), Socks5Action::Close] => {
                (reply[1], reply[3..] == request[3..])
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(code(&request(1, 3, "example.org", [0, 0])), (4, true));
        assert_eq!(code(&request(1, 3, "", [0, 0])), (4, true));
        assert_eq!(code(&request(1, 3, &HASH[1..], [0, 0])), (4, true));
        assert_eq!(code(&request(1, 3, &HASH[1..], [0, 80])), (4, true));
    }

    #[test]
    fn any_port_is_taken_and_echoed() {
        for port in [[0, 0], [0, 80], [0x1d, 0xc9], [0xff, 0xff]] {
            let sent = request(1, 3, HASH, port);
            let (handshake, actions) = run(&[&[5, 1, 0], &sent]);
            assert_eq!(actions[1..], [Socks5Action::Connect(HASH.parse().unwrap())]);
            assert_eq!(handshake.reply(Code::Succeeded)[3..], sent[3..]);
        }
    }

    #[test]
    fn another_version_is_closed_without_a_word() {
        assert_eq!(run(&[&[4, 1]]).1, [Socks5Action::Close]);
        assert_eq!(run(&[b"GET / HTTP/1.1\r\n"]).1, [Socks5Action::Close]);
        assert_eq!(after_greeting(&[4]), [Socks5Action::Close]);
    }

    #[test]
    fn no_acceptable_method_is_said_before_closing() {
        assert_eq!(run(&[&[5, 1, 2]]).1, [write(&[5, 0xff]), Socks5Action::Close]);
        assert_eq!(run(&[&[5, 0]]).1, [write(&[5, 0xff]), Socks5Action::Close]);
    }

    #[test]
    fn pipelined_bytes_are_handed_on() {
        let mut all = vec![5, 1, 0];
        all.extend(request(1, 3, HASH, [0, 0]));
        all.extend(b"early");
        let (handshake, actions) = run(&[&all, b" bird"]);
        assert_eq!(actions.len(), 2);
        assert_eq!(handshake.into_rest(), b"early bird");
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_result(
            methods in proptest::collection::vec(0_u8..3, 0..6),
            request in prop_oneof![
                any::<[u8; 2]>().prop_map(|port| request(1, 3, HASH, port)),
                proptest::collection::vec(any::<u8>(), 0..300),
            ],
            cuts in proptest::collection::vec(1_usize..9, 0..100),
        ) {
            let mut all = vec![5, u8::try_from(methods.len()).unwrap()];
            all.extend(methods);
            all.extend(request);
            let (whole, expected) = run(&[&all]);
            let mut rest = all.as_slice();
            let mut chunks = Vec::new();
            for cut in cuts {
                let (chunk, after) = rest.split_at(cut.min(rest.len()));
                chunks.push(chunk);
                rest = after;
            }
            chunks.push(rest);
            let (pieces, actions) = run(&chunks);
            prop_assert_eq!(actions, expected);
            prop_assert_eq!(pieces.into_rest(), whole.into_rest());
        }
    }
}
